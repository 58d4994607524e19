"""llmcompressor's `oneshot` as a contender: its sequential pipeline, which is the walk over blocks."""

from typing import Any

from common import Level, hand_back, linears, load_network, load_tokens, parse, read_job, timed
from datasets import Dataset
from llmcompressor import oneshot

# The plain name "lm_head" does not keep the pruning modifiers (0.14) from sparsifying the head; this does.
HEAD = ["re:.*lm_head"]


def modifier(level: Level) -> Any:
    """The recipe in its words; no act-order, 1 % damping and blocks of 128, as everywhere here."""
    if level.method == "wanda":
        from llmcompressor.modifiers.pruning import WandaPruningModifier

        return WandaPruningModifier(sparsity=level.sparsity, mask_structure="0:0", ignore=HEAD)
    if level.method == "sparsegpt":
        from llmcompressor.modifiers.pruning import SparseGPTModifier

        return SparseGPTModifier(sparsity=level.sparsity, dampening_frac=0.01, block_size=128, ignore=HEAD)
    from llmcompressor.modifiers.gptq import GPTQModifier

    weights = {
        "num_bits": level.bits,
        "type": "int",
        "symmetric": False,
        "strategy": "channel" if level.group is None else "group",
        "group_size": level.group,
    }
    return GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
        ignore=HEAD,
        dampening_frac=0.01,
        block_size=128,
        actorder=None,
    )


def main() -> None:
    job = read_job()
    network = load_network(job)
    tokens = load_tokens(job)
    rows = {"input_ids": tokens.tolist(), "attention_mask": [[1] * tokens.shape[1]] * len(tokens)}
    seconds, _ = timed(
        lambda: oneshot(
            model=network,
            dataset=Dataset.from_dict(rows),
            recipe=modifier(parse(job["recipe"])),
            max_seq_length=tokens.shape[1],
            num_calibration_samples=len(tokens),
            shuffle_calibration_samples=False,
            pipeline="sequential",
        )
    )
    weights = {name: layer.weight for name, layer in linears(network).items()}
    hand_back(job, seconds, weights, ("llmcompressor", "compressed-tensors", "torch", "transformers"))


if __name__ == "__main__":
    main()
