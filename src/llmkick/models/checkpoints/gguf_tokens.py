"""The tokens with which a GGUF file begins a text and ends an answer, as llama.cpp chooses them.

transformers takes the end-of-text token alone, and a start token only where the file says that there is one. Both rules
are those of `llama_vocab::impl::load` in llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from typing import Any

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
