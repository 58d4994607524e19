"""Perplexity: against the plain formula on a toy network, and with every kind of bad text."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llmkick.errors import ConfigError, DataError
from llmkick.models.language_model import ScoreRequest, Unanswered
from llmkick.models.transformers_model import TransformersModel
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from llmkick.tasks.suite.perplexity import (
    DEFAULT_WINDOW,
    Perplexity,
    cut_windows,
    perplexity,
    text_segments,
    text_windows,
)
from llmkick.tasks.task import summary_value
from scripted import ScriptedModel, scored
from toy import toy_model, toy_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog, and the dog wonders what the fox is on about. " * 6


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return toy_model()


def naive(model: TransformersModel, windows: list[tuple[int, ...]]) -> list[list[float]]:
    """Negative log-likelihood of every predicted token: one window at a time, in double precision."""
    network = model.network.double()
    losses = []
    with torch.no_grad():
        for window in windows:
            logits = network(torch.tensor([window])).logits[0]
            predicted = torch.log_softmax(logits[:-1], dim=-1)
            losses.append([-float(row[token]) for row, token in zip(predicted, window[1:], strict=True)])
    model.network.float()
    return losses


@pytest.mark.parametrize("window", [2, 17, 64])
def test_perplexity_is_the_exponential_of_the_mean_loss(model: TransformersModel, window: int):
    ids = model.tokenize(TEXT)
    windows = [tuple(ids[start : start + window]) for start in range(0, len(ids), window)]
    whole = [one for one in windows if len(one) == window]
    assert len(whole) < len(windows), "the text should leave a tail to drop"
    losses = [loss for losses in naive(model, whole) for loss in losses]
    assert len(losses) == len(whole) * (window - 1)
    expected = math.exp(sum(losses) / len(losses))
    assert perplexity(model, TEXT, window=window) == pytest.approx(expected, rel=1e-4)
    assert perplexity(model, ids, window=window) == pytest.approx(expected, rel=1e-4)


def test_token_ids_of_any_shape_are_one_stream(model: TransformersModel):
    ids = np.array(model.tokenize(TEXT)[:120])
    expected = perplexity(model, ids, window=12)
    assert perplexity(model, ids.reshape(10, 12), window=12) == expected
    assert perplexity(model, torch.tensor(ids).reshape(2, 60), window=12) == expected
    assert perplexity(model, ids.astype(np.int32), window=12) == expected


def test_the_task_scores_windows_by_the_same_formula(model: TransformersModel):
    task = get_task("perplexity", window=40, limit=5)
    items = task.items(model)
    records = evaluate(model, task)
    expected = naive(model, [item.tokens for item in items])
    for record, losses in zip(records, expected, strict=True):
        assert record.tokens == len(losses) == 39
        assert record.score == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    everything = [loss for losses in expected for loss in losses]
    assert summary_value("perplexity", records) == pytest.approx(math.exp(sum(everything) / len(everything)), rel=1e-4)


def test_windows_do_not_overlap_and_drop_the_tail():
    assert cut_windows(range(10), 3) == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert cut_windows(range(9), 3) == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert cut_windows(range(3), 3) == [(0, 1, 2)]


def test_the_windows_of_a_task_are_those_of_the_text(model: TransformersModel):
    task = Perplexity(window=50)
    items = task.items(model)
    stream = [token for item in items for token in item.tokens]
    ids = model.tokenize(task._text)
    assert stream == ids[: len(ids) // 50 * 50]
    assert [item.id for item in items] == [f"window-{number:04d}" for number in range(len(items))]
    assert len({item.cluster for item in items}) == len(items)
    # All our own running text is in it.
    assert "Amazon" in task._text
    assert "Harrow Lane library" in task._text


def test_a_sample_of_windows_is_spread_over_the_text(model: TransformersModel):
    every = [item.id for item in Perplexity(window=50).items(model)]
    sample = [item.id for item in Perplexity(window=50, limit=8).items(model)]
    assert len(sample) == 8
    assert sample != every[:8]
    assert sample == sorted(sample)


def test_prompting_does_not_matter_to_running_text():
    task = Perplexity()
    model = ScriptedModel(max_tokens=64)
    item = task.items(model)[3]
    assert task.requests(item, "chat") == task.requests(item, "raw") == [ScoreRequest("", item.tokens)]


# Windows that cannot be


@pytest.mark.parametrize("window", [1, 0, -5, 257, 10_000, 12.0])
def test_a_window_that_the_model_cannot_hold_is_refused(model: TransformersModel, window: int):
    for text_or_ids in (TEXT, model.tokenize(TEXT)):
        with pytest.raises(ConfigError, match="window must be between 2 and the 256 tokens that toy-llama holds; got"):
            perplexity(model, text_or_ids, window=window)
    with pytest.raises(ConfigError, match="window must be between"):
        text_windows(model, TEXT, window)


@pytest.mark.parametrize("window", [1, 0, -1, 2.5, "512", True])
def test_a_task_refuses_an_impossible_window_before_a_model_is_there(window: object):
    with pytest.raises(ConfigError, match="window of perplexity must be a whole number of at least 2 tokens; got"):
        get_task("perplexity", window=window)


def test_a_window_asked_for_is_never_made_smaller_silently():
    with pytest.raises(ConfigError, match="between 2 and the 300 tokens that scripted holds; got 301"):
        Perplexity(window=301).items(ScriptedModel(max_tokens=300))


@pytest.mark.parametrize(("holds", "window"), [(300, 300), (512, 512), (4096, DEFAULT_WINDOW)])
def test_the_default_window_fits_the_model(holds: int, window: int):
    items = Perplexity().items(ScriptedModel(max_tokens=holds))
    assert {len(item.tokens) for item in items} == {window}


def test_windows_need_a_model():
    with pytest.raises(ConfigError, match=r"call items\(model\)"):
        Perplexity().items()


# Text that cannot be


@pytest.mark.parametrize("text", ["", "short"])
def test_a_text_shorter_than_a_window_is_refused(model: TransformersModel, text: str):
    with pytest.raises(DataError, match=r"the text has \d+ tokens, which is less than one window of 64"):
        perplexity(model, text, window=64)
    with pytest.raises(DataError, match="the text has 0 tokens"):
        perplexity(model, [], window=64)


@pytest.mark.parametrize("ids", [[1.5] * 99, np.ones(99), np.array(["a"] * 99)])
def test_token_ids_are_integers(model: TransformersModel, ids: object):
    with pytest.raises(ConfigError, match="perplexity is of text or of integer token ids; got"):
        perplexity(model, ids, window=64)  # type: ignore[arg-type]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_text_files_plain_and_compressed_are_the_same_text(tmp_path: Path, model: TransformersModel):
    data = TEXT.encode()
    plain = Perplexity(source=write(tmp_path / "text.txt", data), window=30)
    packed = Perplexity(source=write(tmp_path / "text.txt.gz", gzip.compress(data)), window=30)
    assert plain.items(model) == packed.items(model)
    assert plain.key["data"] == packed.key["data"]
    assert plain.key["data"] != Perplexity(window=30).key["data"]
    value = summary_value("perplexity", evaluate(model, plain))
    assert value == pytest.approx(perplexity(model, TEXT, window=30), rel=1e-6)


PACKED = gzip.compress(TEXT.encode(), mtime=0)  # part of the tests' names, the same in every process


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("broken.txt", b"caf\xe9 latin-1"),
        ("half.txt", "café".encode()[:-1]),
        ("text.gz", b"this is not gzip"),
        ("cut.gz", PACKED[:-20]),
        ("damaged.gz", PACKED[:12] + b"\xff\xff\xff\xff" + PACKED[16:]),
        ("checksum.gz", PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:]),
        ("bytes.gz", gzip.compress(b"\xff\xfe\x00", mtime=0)),
    ],
)
def test_a_file_that_is_no_utf8_text_is_named(tmp_path: Path, model: TransformersModel, name: str, data: bytes):
    task = get_task("perplexity", source=write(tmp_path / name, data))
    with pytest.raises(DataError, match=rf"{name}(, line 1: not UTF-8| cannot be read to its end)"):
        task.items(model)


def test_an_empty_file_is_a_short_text(tmp_path: Path, model: TransformersModel):
    with pytest.raises(DataError, match="less than one window"):
        get_task("perplexity", source=write(tmp_path / "empty.txt", b"")).items(model)


def test_a_missing_file_is_refused_at_once(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"unknown source '.*missing.txt' for perplexity: neither pocket, hub, a text"
    ):
        get_task("perplexity", source=str(tmp_path / "missing.txt"))
    with pytest.raises(DataError, match=r"holds no WikiText-2 \(test or validation\); looked for .*wiki.test.raw"):
        get_task("perplexity", source=str(tmp_path)).items(ScriptedModel())


# Answers that cannot be


def test_an_unanswered_window_is_unscored_and_leaves_perplexity_undefined():
    def answer(request: ScoreRequest):
        return Unanswered(reason="the output is NaN") if request.continuation[0] == ord("T") else scored(-6.0, tokens=3)

    model = ScriptedModel(logprob=answer)
    with pytest.raises(DataError, match="perplexity is undefined: the output is NaN"):
        perplexity(model, "abcdTbcd", window=4)
    assert perplexity(model, "abcdabcd", window=4) == pytest.approx(math.exp(2))
    item = Perplexity(window=4).items(model)[0]
    record = Perplexity().score(item, [Unanswered(reason="the output is NaN")])
    assert (record.score, record.unscored_reason) == (None, "the output is NaN")


# Bits per byte


@pytest.mark.parametrize("size", [40, 200, 1000])
def test_segments_are_the_text_whatever_the_tokens(size: int):
    text = " ".join(f"word{n}" + ("\n\n" if n % 7 == 0 else "") for n in range(400)) + " é日本 end"
    segments = text_segments(text, size)
    assert text.startswith("".join(map("".join, segments)))
    for read, rest in segments:
        assert read.strip()
        assert rest[0].isspace()
        assert not read[-1].isspace()
        assert size <= len((read + rest).encode()) < size + 12
        assert len(read.encode()) >= size / 8
        assert len(rest.encode()) > size / 2
    with pytest.raises(DataError, match="less than one segment of 99999"):
        text_segments(text, 99999)


def test_text_without_spaces_is_scored_too():
    """A line of Chinese is one word: it was dropped where it filled a segment."""
    line = "模型读了这句话然后忘记了" * 60
    text = "\n".join([*[line] * 5, "The model reads this sentence, and then the next. " * 60])
    segments = text_segments(text, 512)
    assert "".join(read + scored for read, scored in segments) == text[: sum(len(a) + len(b) for a, b in segments)]
    assert len(text.encode()) - sum(len((a + b).encode()) for a, b in segments) < 512 + 64
    assert all(read and scored for read, scored in segments)
    assert all(len(read.encode()) < 0.3 * 512 for read, _ in segments)
    alone = text_segments(line * 5, 2048)
    assert len(alone) == len((line * 5).encode()) // 2048


def test_bits_per_byte_is_the_log_probability_of_the_same_bytes_for_any_tokenizer(tmp_path: Path):
    (tmp_path / "text.txt").write_text("the cat and the dog sat on the mat; " * 40, encoding="utf-8")
    task = get_task("perplexity", source=str(tmp_path / "text.txt"), window=20, unit="bytes")
    assert (task.name, task.metric) == ("bits_per_byte", "bits_per_byte")
    first, second = toy_model(), toy_model(seed=1)
    second = TransformersModel.wrap(second.network, toy_tokenizer(start=False), second.info)
    assert task.items(first) == task.items(second) == task.items()
    for model in (first, second):
        records = evaluate(model, task)
        for item, record in zip(task.items(), records, strict=True):
            whole = model.encode(item.context + item.question)
            before = len(model.encode(item.context))
            assert whole[:before] == model.encode(item.context)
            logits = model.network(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            nats = -sum(float(logits[place - 1, whole[place]]) for place in range(before, len(whole)))
            assert record.score == pytest.approx(nats / math.log(2) / len(item.question.encode()), rel=1e-4)
            assert record.details["bytes"] == len(item.question.encode())
        total = sum(record.score * record.details["bytes"] for record in records)
        size = sum(record.details["bytes"] for record in records)
        assert summary_value(task.metric, records) == pytest.approx(total / size)


def test_the_unit_is_part_of_the_key_only_when_it_is_not_tokens():
    plain, bits = get_task("perplexity"), get_task("perplexity", unit="bytes")
    assert "unit" not in plain.key
    assert bits.key["unit"] == "bytes"
    with pytest.raises(ConfigError, match="unknown unit 'words' of perplexity; choose from: tokens, bytes"):
        get_task("perplexity", unit="words")
