"""Tokens that were added to a tokenizer without resizing the network: refused where a prompt can contain them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from llmkick.errors import ModelError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.language_model import GenerateRequest, Generation, Message, ScoreRequest, Unanswered
from toy import CHAT_TEMPLATE, VOCABULARY, save_toy, toy_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tokenizer_with_turns(template: str = "") -> Any:
    """A tokenizer with four more tokens than the vocabulary; the toy's embeddings then end before the last two."""
    tokenizer = toy_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>", "<turn>", "<image>"]})
    tokenizer.chat_template = template or None
    assert tokenizer.convert_tokens_to_ids("<turn>") == VOCABULARY + 2
    return tokenizer


def save(folder: Path, tokenizer: Any, *, rows: int = VOCABULARY + 2) -> Path:
    save_toy(folder, vocab_size=rows)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    return folder


def refused(folder: Path, message: str) -> None:
    for load in (load_model, load_meta_model):
        with pytest.raises(ModelError, match=message):
            load(str(folder), dtype="float32", device="cpu")


TURN = rf"toy: the chat template writes the token '<turn>' with id {VOCABULARY + 2}, but .* ids 0 to {VOCABULARY + 1}:"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<turn>{{ m.content }}{% endfor %}",
        CHAT_TEMPLATE + "{% if add_generation_prompt %}<turn>{% endif %}",
        CHAT_TEMPLATE + "{% if messages[0].role == 'system' %}<turn>{% endif %}",
        CHAT_TEMPLATE + "{% if messages | length > 2 %}<turn>{% endif %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}<turn>{{ messages[0].content }}",
    ],
)
def test_a_template_that_writes_a_token_without_a_row(tmp_path: Path, template: str):
    refused(save(tmp_path / "toy", tokenizer_with_turns(template)), TURN)


def test_the_same_token_with_a_row(tmp_path: Path):
    template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
    model = load_model(str(save(tmp_path / "toy", tokenizer_with_turns(template), rows=VOCABULARY + 3)))
    assert isinstance(model.generate([GenerateRequest((Message("user", "the"),))])[0], Generation)


def test_a_start_token_without_a_row(tmp_path: Path):
    tokenizer = tokenizer_with_turns()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<turn> $A", pair="<turn> $A $B", special_tokens=[("<turn>", VOCABULARY + 2)]
    )
    refused(save(tmp_path / "toy", tokenizer), "the tokenizer puts into every text the token '<turn>'")


def test_a_vocabulary_larger_than_the_embeddings(tmp_path: Path):
    refused(save(tmp_path / "toy", toy_tokenizer(), rows=VOCABULARY - 1), rf"vocabulary.* id {VOCABULARY - 1}, but")


def test_added_tokens_that_nothing_writes_do_no_harm_until_a_prompt_holds_them(tmp_path: Path):
    model = load_model(str(save(tmp_path / "toy", tokenizer_with_turns(CHAT_TEMPLATE))), dtype="float32", device="cpu")
    load_meta_model(str(tmp_path / "toy"), dtype="float32", device="cpu")
    scores = model.logprobs(
        [ScoreRequest("the", " and"), ScoreRequest("the <image>", " and"), ScoreRequest("the", " <image>")]
    )
    answers = model.generate([GenerateRequest("the"), GenerateRequest("the <image>")])
    outside = Unanswered(reason=f"it holds token ids outside the vocabulary of {VOCABULARY + 2}")
    assert [isinstance(answer, Unanswered) for answer in (*scores, *answers)] == [False, True, True, False, True]
    assert scores[1:] == [outside, outside]
    assert answers[1] == outside


def test_the_tokenizer_of_another_model(tmp_path: Path):
    save_toy(tmp_path / "toy")
    content = json.loads((tmp_path / "toy" / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"word{number}": VOCABULARY + number for number in range(100)}
    (tmp_path / "toy" / "tokenizer.json").write_text(json.dumps(content))
    refused(tmp_path / "toy", rf"the vocabulary of the tokenizer has the token 'word99' with id {VOCABULARY + 99}")
