"""Networks that see the tokens after a token: refused, for they give no probability of the next token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, ElectraConfig, GPTNeoXConfig, XLNetConfig

from llmkick.errors import ModelError
from llmkick.models.checkpoints.loading import load_model, read_config
from llmkick.models.checkpoints.meta_model import load_meta_model
from tiny import families, save_tiny
from toy import toy_tokenizer

SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
ENCODERS = {
    "bert": BertConfig(**SIZES),
    "electra": ElectraConfig(**SIZES),
    "xlnet": XLNetConfig(vocab_size=384, d_model=32, n_layer=2, n_head=2, d_inner=32),
}
DECODERS = {"bert": BertConfig(**SIZES, is_decoder=True), "gpt_neox": GPTNeoXConfig(**SIZES)}


def saved(folder: Path, config: Any) -> Any:
    network = AutoModelForCausalLM.from_config(config).eval()
    network.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return network


def later_tokens_matter(network: Any) -> bool:
    with torch.no_grad():
        first, second = (network(input_ids=torch.tensor([[5, 6, 7, last]])).logits[:, :3] for last in (8, 9))
    return not torch.equal(first, second)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_refused(tmp_path: Path, name: str):
    network = saved(tmp_path / "model", ENCODERS[name])
    assert later_tokens_matter(network)
    for load in (load_model, load_meta_model):
        with pytest.raises(ModelError, match=f"type {name} reads text in both directions"):
            load(str(tmp_path / "model"))


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_of_the_same_family_is_not(tmp_path: Path, name: str):
    assert not later_tokens_matter(saved(tmp_path / "model", DECODERS[name]))
    assert load_model(str(tmp_path / "model"), dtype="float32").info.parameters > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(families()))
def test_no_family_that_is_read_sees_later_tokens(tmp_path: Path, family: str):
    try:
        saved = save_tiny(tmp_path / "model", family)
        read_config(tmp_path / "model")
    except ModelError:
        return
    except Exception as error:  # noqa: BLE001 - what cannot be built here
        pytest.skip(f"{type(error).__name__}: {str(error)[:80]}")
    network = getattr(saved, "network", saved)
    tokens = torch.randint(20, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    tokens[1, :-1] = tokens[0, :-1]
    try:
        with torch.no_grad():
            first, second = (network(input_ids=row[None], use_cache=False).logits[:, :-1] for row in tokens)
    except Exception as error:  # noqa: BLE001 - families that need more than text are refused when they are compressed
        pytest.skip(f"{type(error).__name__}: {str(error)[:80]}")
    assert (first - second).abs().max() <= 1e-5 * first.abs().max()
