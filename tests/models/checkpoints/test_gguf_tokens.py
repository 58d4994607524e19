"""The tokens with which a converted GGUF file begins a text and ends an answer: those of llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest

from llmkick.errors import ModelError
from llmkick.models.checkpoints.gguf_tokens import end_tokens
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import locate
from llmkick.models.transformers_model import TransformersModel
from models.checkpoints.gguf_writing import rewrite
from toy import SPECIAL_TOKENS, VOCABULARY, toy_tokenizer

PRE = "tokenizer.ggml.pre"
ADD = "tokenizer.ggml.add_bos_token"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(path: Path) -> TransformersModel:
    return load_model(str(path), dtype="float32", device="cpu")


def with_tokens(path: Path, texts: Mapping[int, str], entries: Mapping[str, Any] | None = None) -> Path:
    """The toy file with other texts at some places of its vocabulary; the last four are unused."""
    vocabulary = toy_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), *(f"<|unused_{index}|>" for index in range(4))]
    for place, text in texts.items():
        tokens[place] = text
    kinds = [3] * len(SPECIAL_TOKENS) + [1] * (VOCABULARY - len(SPECIAL_TOKENS)) + [3] * 4
    return rewrite(path, {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, **(entries or {})})


# What ends an answer


def test_the_end_of_a_turn_ends_an_answer_beside_the_end_of_text(tmp_path: Path):
    """As in a file of an instruct model of Gemma, whose <eos> no answer ends with."""
    path = with_tokens(tmp_path / "toy.gguf", {284: "<end_of_turn>", 285: "<|eom_id|>"})
    model = load(path)
    assert model.end_tokens == {1, 3, 284, 285}
    stated = json.loads((locate(str(path)).folder / "generation_config.json").read_text())["eos_token_id"]
    assert stated == [1, 3, 284, 285]


def test_the_tokens_that_the_file_names_end_an_answer_whatever_they_are_called(tmp_path: Path):
    entries = {"tokenizer.ggml.eot_token_id": 286, "tokenizer.ggml.eom_token_id": 287}
    assert load(with_tokens(tmp_path / "toy.gguf", {}, entries)).end_tokens == {1, 3, 286, 287}


def test_a_number_outside_the_vocabulary_is_no_token(tmp_path: Path):
    assert load(with_tokens(tmp_path / "toy.gguf", {}, {"tokenizer.ggml.eot_token_id": 5000})).end_tokens == {1, 3}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({284: "<|end|>"}, [1, 3, 284]),  # Phi 3
        ({284: "<|end|>", 285: "<|return|>", 286: "<|call|>"}, [1, 3, 285, 286]),  # gpt-oss: a part of an answer
        ({284: "<|end|>", 285: "<|return|>"}, [1, 3, 284, 285]),
        ({284: "<|end|>", 285: "<|calls|>", 286: "<|flush|>"}, [1, 3, 285, 286]),
        ({1: "<eos>", 284: "</s>"}, [1, 3, 284]),
        ({1: "<eos>", 284: "</s>", 285: "<|tool_response>"}, [1, 3, 285]),
        ({284: "<|file_sep|>", 285: "[PAD]"}, [1, 3]),
        ({284: "<｜end▁of▁sentence｜>"}, [1, 3, 284]),
    ],
)
def test_tokens_that_end_an_answer_by_their_text(tmp_path: Path, texts: dict[int, str], expected: list[int]):
    assert end_tokens(gguf.GGUFReader(with_tokens(tmp_path / "toy.gguf", texts))) == expected


# What begins a text


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "falcon3", "tekken"])
def test_texts_of_llama_3_begin_with_the_start_token(tmp_path: Path, pre: str):
    model = load(rewrite(tmp_path / "toy.gguf", {PRE: pre}))
    ids = model.tokenize("the x")
    assert ids[0] == 0
    assert model.tokenizer.decode(ids[1:]) == "the x"
    assert 0 not in ids[1:]
    assert model.encode("the", " x") == ids


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({PRE: "llama-bpe", ADD: False}, False),
        ({PRE: "llama-bpe", ADD: True}, True),
        ({PRE: "qwen2"}, False),
        ({PRE: "qwen2", ADD: True}, True),
        ({PRE: "smollm"}, False),
        ({}, False),
        ({PRE: "llama-bpe", "tokenizer.ggml.bos_token_id": None}, False),
    ],
)
def test_other_texts_begin_as_the_file_says(tmp_path: Path, entries: dict[str, Any], expected: bool):
    ids = load(rewrite(tmp_path / "toy.gguf", entries)).tokenize("the x")
    assert (ids[0] == 0) is expected


# How a text is split

TEXT = "www.example (it's)\n\n1  12345 $5"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        # GPT-2's own split, and the same after single digits.
        ("gpt-2", ["www", ".", "example", " (", "it", "'s", ")", "\n", "\n", "1", " ", " 12345", " $", "5"]),
        (
            "smollm",
            ["www", ".", "example", " (", "it", "'s", ")", "\n\n", "1", "  ", *"12345", " $", "5"],
        ),
        (
            "stablelm2",
            ["www", ".example", " (", "it", "'s", ")\n\n", "1", " ", " ", *"12345", " $", "5"],
        ),
        ("qwen2", ["www", ".example", " (", "it", "'s", ")\n\n", "1", " ", " ", *"12345", " $", "5"]),
        (
            "glm4",
            ["www", ".example", " (", "it", "'s", ")\n\n", "1", " ", " ", "123", "45", " $", "5"],
        ),
        (
            "falcon",
            [
                "www",
                ".",
                "example",
                " ",
                "(",
                "it",
                "'",
                "s",
                ")",
                "\n",
                "\n",
                "1",
                " ",
                " ",
                "123",
                "45",
                " ",
                "$",
                "5",
            ],
        ),
        (
            "deepseek-coder",
            ["www", ".", "example", " (", "it", "'", "s", ")", "\n", "\n", "1", "  ", *"12345", " $", "5"],
        ),
        ("bloom", ["www", ".", "example", " (", "it's", ")\n\n", "1", " ", " 12345", " $5"]),
        ("viking", ["www", ".", "example", " (", "it's", ")\n\n", "1", " ", " ", *"12345", " $", "5"]),
    ],
)
def test_a_text_is_split_as_the_vocabulary_was_learned(tmp_path: Path, pre: str, pieces: list[str]):
    """The pieces are those of the expressions in llama.cpp, worked out by hand."""
    tokenizer = load(rewrite(tmp_path / "toy.gguf", {PRE: pre})).tokenizer
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[begin:end] for _, (begin, end) in split] == pieces


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("falcon", ["x", " 12", " ", "`", "y"]),
        ("default", ["x", " ", "12", " `", "y"]),
        ("gpt-2", ["x", " 12", " `", "y"]),
    ],
)
def test_numbers_with_a_space_before_them(tmp_path: Path, pre: str, pieces: list[str]):
    text = "x 12 `y"
    tokenizer = load(rewrite(tmp_path / "toy.gguf", {PRE: pre})).tokenizer
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in split] == pieces


def test_a_split_that_is_not_known_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ModelError, match=r"pre-tokenizer 'superbpe'.*original Hugging Face folder"):
        load(rewrite(tmp_path / "toy.gguf", {PRE: "superbpe"}))
