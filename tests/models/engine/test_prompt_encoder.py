"""Raw text as a prompt: with what a tokenizer puts before it, without what it appends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from llmkick.models.engine.prompt_encoder import LONG_TEXT, PromptEncoder
from llmkick.models.language_model import ContinuationScore, GenerateRequest, Message, ScoreRequest
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model, toy_tokenizer

TEMPLATES = {
    "an end token": ("<s> $A </s>", ["<s>", "</s>"]),
    "an end token alone": ("$A </s>", ["</s>"]),
    "two tokens": ("<s> $A </s> <|im_end|>", ["<s>", "</s>", "<|im_end|>"]),
    "the start token again": ("<s> $A <s>", ["<s>"]),
    "several tokens before": ("<s> <|im_start|> $A </s>", ["<s>", "<|im_start|>", "</s>"]),
}


def templated(single: str, names: list[str]) -> Any:
    tokenizer: Any = toy_tokenizer(chat=True)
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


def with_tokenizer(tokenizer: Any) -> TransformersModel:
    model = toy_model(chat=True)
    return TransformersModel.wrap(model.network, tokenizer, model.info)


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_prompt_has_no_token_that_is_put_behind_every_text(case: str):
    """All answers are those of a tokenizer that appends nothing."""
    template, names = TEMPLATES[case]
    start = template.split("$A")[0].split()
    appending, plain = (with_tokenizer(templated(one, names)) for one in (template, " ".join([*start, "$A"])))
    assert appending.tokenizer("the").input_ids != plain.tokenizer("the").input_ids
    for text in ("", "the x", "</s>", "the</s>", "x " * LONG_TEXT):
        assert appending.tokenize(text) == plain.tokenize(text) == plain.tokenizer(text).input_ids
        assert appending.encode(text) == plain.encode(text)
    chat = (Message("user", "the 12"),)
    requests = [ScoreRequest(prompt, text) for prompt in ("the x", chat, "") for text in (" and", " 12 the")]
    found = appending.logprobs(requests)
    assert found == plain.logprobs(requests)
    assert not any(score.boundary_moved for score in found if isinstance(score, ContinuationScore))
    asked = [GenerateRequest("the x", max_new_tokens=8), GenerateRequest(chat, max_new_tokens=8)]
    assert appending.generate(asked) == plain.generate(asked)


def test_a_folder_that_asks_for_an_end_token(tmp_path: Path):
    """As tokenizer_config.json does with "add_eos_token": true."""
    toy_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True, add_eos_token=True)
    assert tokenizer("the x").input_ids[-1] == tokenizer.eos_token_id
    encoder = PromptEncoder(tokenizer=tokenizer, model_name="toy")
    assert encoder.tokenize("the x") == toy_tokenizer()("the x").input_ids
    assert encoder.encode("") == [tokenizer.bos_token_id]
