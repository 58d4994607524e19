"""The tokens of a GGUF file as llama.cpp chooses them: how it begins, splits and ends a text.

transformers takes the end-of-text token alone, a start token only where the file says that there is one, and GPT-2's
split for every pre-tokenizer that it does not know. The rules here are those of `llama_vocab::impl::load` and
`llm_tokenizer_bpe` in llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers

from llmkick.errors import ModelError

# Tokens that end an answer in every vocabulary that has them. llama.cpp also ends at its tokens for filling in code,
# such as <|file_sep|>, which no model writes at the end of an answer.
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
# Texts that end a part of an answer in vocabularies that have the others too, one of each group.
NO_END_BESIDE: dict[str, tuple[tuple[str, ...], ...]] = {
    "<|end|>": (("<|call|>", "<|calls|>"), ("<|return|>", "<|flush|>")),
    "</s>": (("<|tool_response>",),),
}
# Pre-tokenizers of byte-level vocabularies whose texts begin with the start token, unless the file says otherwise.
WITH_START = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "tekken", "chameleon",
)  # fmt: skip

# Pre-tokenizers of byte-level vocabularies that split as GPT-2's does, which is what transformers falls back to.
AS_GPT_2 = (
    "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "mellum", "gigachat", "exaone4", "a.x-4.0",
    "jina-es", "jina-de", "jina-v1-en", "jina-v2-code", "jina-v2-es", "jina-v2-de", "roberta-bpe", "modern-bert",
)  # fmt: skip
THREE_DIGITS = "[0-9][0-9][0-9]"
# Words of BLOOM and its kin, each with the space before it.
WORDS = r" ?[^(\s|.,!?…。，、।۔،)]+"


def _byte_level(*, splits: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits)


def _isolated(*patterns: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


def _like(name: str) -> Callable[[], Any]:
    """The split that transformers has under another name."""

    def split() -> Any:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        return pre_tokenizers.Sequence([*_isolated(GGUF_PRE_TOKENIZER_SPLITS[name]), _byte_level(splits=False)])

    return split


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level(splits=True)])


def _unnamed() -> Any:
    return pre_tokenizers.Sequence([
        *_isolated(r"[\p{P}$+<=>^~|]+"), _byte_level(splits=True),
        pre_tokenizers.Digits(individual_digits=False), *_isolated(THREE_DIGITS),
    ])  # fmt: skip


def _falcon() -> Any:
    return pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation(behavior="contiguous"), _byte_level(splits=True), *_isolated(THREE_DIGITS)
    ])  # fmt: skip


def _deepseek_coder() -> Any:
    return pre_tokenizers.Sequence([
        *_isolated(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True), _byte_level(splits=False),
    ])  # fmt: skip


def _bloom() -> Any:
    return pre_tokenizers.Sequence([*_isolated(WORDS), _byte_level(splits=False)])


def _viking() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([*_isolated(WORDS), digits, _byte_level(splits=False)])


# What transformers does not know, by the name of the pre-tokenizer.
SPLITS: Mapping[str, Callable[[], Any]] = {
    **dict.fromkeys(
        ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], _single_digits
    ),
    **dict.fromkeys(["stablelm2", "hunyuan", "solar-open"], _like("qwen2")),
    **dict.fromkeys(["chatglm-bpe", "glm4"], _like("llama3")),
    **dict.fromkeys(["bloom", "poro-chat", "gpt3-finnish"], _bloom),
    "default": _unnamed,
    "falcon": _falcon,
    "deepseek-coder": _deepseek_coder,
    "viking": _viking,
}


def settle_split(tokenizer: Any, reader: Any, name: str) -> None:
    """Split texts as the vocabulary of a file was learned; `name` is that of the file.

    Raises ModelError for a pre-tokenizer that neither transformers nor this module knows. Only byte-level vocabularies
    have one; a file without the entry is left to transformers.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pre = _entry(reader, "pre")
    if _entry(reader, "model") != "gpt2" or pre is None or pre in GGUF_PRE_TOKENIZER_SPLITS or pre in AS_GPT_2:
        return
    if pre not in SPLITS:
        raise ModelError(
            f"{name} splits texts with the pre-tokenizer {pre!r}, which is not known here: the model would be asked "
            "with other tokens than it was trained on. Give the original Hugging Face folder, or serve the file with "
            "llama.cpp and give its address, openai:URL#NAME"
        )
    tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[pre]()


def end_tokens(reader: Any) -> list[int]:
    """Ids of the tokens that end an answer: what the file says (end of text, of a turn, of a message), then others."""
    texts = _texts(reader)
    stated = [_entry(reader, f"{kind}_token_id") for kind in ("eos", "eot", "eom")]
    known = [place for place, text in enumerate(texts) if text in END_TEXTS]
    ids = dict.fromkeys([*(place for place in stated if place is not None and place < len(texts)), *known])
    there = {texts[place] for place in ids}
    no_end = {
        text
        for text, others in NO_END_BESIDE.items()
        if all(any(other in there for other in group) for group in others)
    }
    return [place for place in ids if texts[place] not in no_end]


def lacks_start_token(reader: Any) -> bool:
    """Whether texts begin with the start token although the file does not say so, which transformers leaves out."""
    is_silent = _entry(reader, "add_bos_token") is None and _entry(reader, "bos_token_id") is not None
    return is_silent and _entry(reader, "model") == "gpt2" and _entry(reader, "pre") in WITH_START


def _entry(reader: Any, name: str) -> Any:
    field = reader.fields.get(f"tokenizer.ggml.{name}")
    return None if field is None else field.contents()


def _texts(reader: Any) -> list[str]:
    """The texts of all tokens; bytes that are no UTF-8 are replaced, where `contents` would raise an error."""
    field = reader.fields.get("tokenizer.ggml.tokens")
    return [] if field is None else [field.parts[place].tobytes().decode(errors="replace") for place in field.data]
