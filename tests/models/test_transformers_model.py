"""The model behind the protocol: precision and device, digests, tokens and conversations."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkick.errors import ConfigError, NumericalError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.engine.network import end_tokens_of
from llmkick.models.language_model import LanguageModel, Message
from llmkick.models.precision import DTYPES
from llmkick.models.weights import check_finite, weights_digest
from toy import ARCHITECTURES, save_toy, toy_model

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "toy"
    save_toy(path)
    return path


# Precision and device


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_asked_for_is_the_one_loaded(folder: Path, dtype: str):
    model = load_model(str(folder), dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.network.parameters()} == {DTYPES[dtype]}
    assert model.info.dtype == dtype


def test_the_dtype_is_no_part_of_the_checkpoint_digest(folder: Path):
    digests = {load_model(str(folder), dtype=dtype, device="cpu").info.digest for dtype in DTYPES}
    assert len(digests) == 1


def test_unknown_dtypes_list_the_choices_before_anything_is_read():
    with pytest.raises(ConfigError, match="unknown dtype 'fp16'; choose from: auto, float32, bfloat16, float16"):
        load_model("no/such-model", dtype="fp16")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "meta"])
def test_devices_that_are_not_here(device: str):
    with pytest.raises(ConfigError, match=rf"device {device!r} is not available here.*use auto, cpu, cuda or balanced"):
        load_model("no/such-model", device=device)


# Digests and damage


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_bit_anywhere_changes_the_digest(architecture: str, dtype: torch.dtype):
    network = toy_model(architecture, dtype=dtype).network
    before = weights_digest(network)
    assert weights_digest(copy.deepcopy(network)) == before
    for name, parameter in network.named_parameters():
        bits = parameter.view(torch.int16 if dtype == torch.bfloat16 else torch.int32).view(-1)
        bits[-1] ^= 1
        assert weights_digest(network) != before, name
        bits[-1] ^= 1
    assert weights_digest(network) == before


def test_the_digest_tells_apart_what_holds_the_same_bytes():
    def digest(**tensors: torch.Tensor) -> str:
        return weights_digest(SimpleNamespace(state_dict=lambda: tensors))  # type: ignore[arg-type]

    zeros = torch.zeros(4, 2)
    different = [
        digest(a=zeros),
        digest(b=zeros),
        digest(a=zeros.view(2, 4)),
        digest(a=zeros.view(torch.int32)),
        digest(a=zeros[:2], b=zeros[:2]),
        digest(a=zeros, b=torch.zeros(0)),
        digest(a=torch.tensor(0.0)),
    ]
    assert len(set(different)) == len(different)
    assert digest(a=zeros, b=zeros + 1) == digest(b=zeros + 1, a=zeros)
    columns = torch.arange(8.0).view(2, 4).t()  # not contiguous
    assert digest(a=columns) == digest(a=columns.contiguous())


def test_seeds_and_settings_make_toys_that_differ():
    digests = {
        toy_model(seed=0).info.digest,
        toy_model(seed=1).info.digest,
        toy_model(hidden_size=24).info.digest,
        toy_model("opt").info.digest,
    }
    assert len(digests) == 4
    assert toy_model(seed=1).info == toy_model(seed=1).info


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_check_finite_names_the_tensor(value: float):
    network = toy_model("gpt2").network
    check_finite(network)
    network.transformer.h[1].attn.c_proj.bias[3] = value
    with pytest.raises(NumericalError, match=r"transformer\.h\.1\.attn\.c_proj\.bias hold NaN or Inf"):
        check_finite(network)


# What tasks ask of a model


def test_a_toy_is_a_language_model():
    model: LanguageModel = toy_model()
    assert model.info.parameters == 18544
    assert (model.max_tokens, model.has_chat_template) == (256, False)
    assert toy_model(max_position_embeddings=64).max_tokens == 64
    assert toy_model("gpt2", max_position_embeddings=32).max_tokens == 32


def test_models_without_a_position_limit_get_a_modest_one():
    for config, expected in ((SimpleNamespace(), 2048), (SimpleNamespace(n_positions=512), 512)):
        network = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder, c=config: c))
        assert toy_model().with_network(network, digest="").max_tokens == expected


@pytest.mark.parametrize(("configured", "expected"), [(1, {1}), (7, {1, 7}), ([3, 9], {1, 3, 9}), (None, {1})])
def test_end_tokens_are_those_of_the_tokenizer_and_of_the_configuration(configured: Any, expected: set[int]):
    model = toy_model()
    model.network.generation_config.eos_token_id = configured
    assert end_tokens_of(model.network, model.tokenizer) == expected


def test_prompts_and_their_continuations_are_tokenised_as_one_text():
    model = toy_model(chat=True)
    assert model.encode("") == model.tokenize("") == [0]
    assert model.encode("the:", " on") == model.tokenize("the: on")
    assert model.encode("the:", " on")[:3] != model.tokenize("the:")  # ":" and " " are one token together
    conversation = (Message("user", "the"),)
    rendered = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert model.render_chat(conversation) == rendered
    # No second start token: the template writes what is to be written.
    assert model.encode(conversation, " and") == model.tokenize(rendered + " and")[1:]


def test_the_last_long_text_is_tokenised_once(monkeypatch: pytest.MonkeyPatch):
    model, texts = toy_model(), ["the and " * 4000, "a 12 " * 6000, "the and"]
    plain = [model.tokenizer(text)["input_ids"] for text in texts]
    asked: list[str] = []
    call = type(model.tokenizer).__call__
    monkeypatch.setattr(
        type(model.tokenizer), "__call__", lambda self, text, **o: asked.append(text) or call(self, text, **o)
    )
    for number in (0, 0, 2, 0, 2, 1, 1, 0):
        tokens = model.tokenize(texts[number])
        assert tokens == plain[number]
        tokens.clear()  # the caller's own
    copy_of_it = model.with_network(model.network, digest="compressed")
    assert copy_of_it.tokenize(texts[0]) == plain[0]
    assert [texts.index(text) for text in asked if text in texts] == [0, 2, 2, 1, 0]


def test_many_texts_are_tokenised_as_each_would_be():
    model = toy_model(chat=True)
    conversation = (Message("user", "the"),)
    texts = [("the:", " on"), (conversation, ""), ("", ""), (conversation, " and"), ("12", ""), ("the:", "")]
    assert model.engine.encoder.encode_all([]) == []
    assert model.engine.encoder.encode_all(texts) == [
        model.tokenize("the: on"),
        model.tokenize(model.render_chat(conversation))[1:],
        [0],
        model.tokenize(model.render_chat(conversation) + " and")[1:],
        model.tokenize("12"),
        model.tokenize("the:"),
    ]


def test_a_conversation_that_ends_with_the_assistant_is_continued():
    model = toy_model(chat=True)
    conversation = (Message("system", "on"), Message("user", "the"), Message("assistant", "Answer: "))
    assert model.render_chat(conversation) == (
        "<|im_start|>system\non<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\nAnswer: "
    )


def test_a_conversation_without_a_template():
    with pytest.raises(ConfigError, match='toy-llama has no chat template: use prompting = "raw"'):
        toy_model().encode((Message("user", "the"),))


def test_other_weights_keep_the_name_and_change_the_digest():
    model = toy_model()
    other = model.with_network(toy_model(seed=1).network, digest="1" * 64)
    assert other.info.digest == "1" * 64
    assert (other.info.name, other.tokenizer) == (model.info.name, model.tokenizer)
    assert model.info.digest != "1" * 64
