"""Calibration windows: drawn as the original code draws them, from text of any form, or sampled by the model."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.compression.walk import calibration, self_sampling
from llmkick.compression.walk.calibration import (
    Calibration,
    as_calibration,
    calibrate,
    chosen_source,
    draw_windows,
    refuse_small_corpus,
)
from llmkick.compression.walk.documents import read_documents
from llmkick.compression.walk.pocket_text import pocket_text
from llmkick.errors import ConfigError, DataError, ModelError, NumericalError
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model, toy_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def words(text: str) -> list[int]:
    """A tokenizer whose tokens can be read: `12 5` is [12, 5]."""
    return [int(word) for word in text.split()]


def corpus(lengths: list[int]) -> list[str]:
    return [" ".join(str(1000 * number + place) for place in range(length)) for number, length in enumerate(lengths)]


def original(documents: list[str], sequences: int, length: int, seed: int) -> list[list[int]]:
    """What SparseGPT's and Wanda's get_c4 do, with their global generator."""
    state = random.getstate()
    random.seed(seed)
    try:
        windows = []
        for _ in range(sequences):
            while True:
                i = random.randint(0, len(documents) - 1)
                encoded = words(documents[i])
                if len(encoded) > length:
                    break
            i = random.randint(0, len(encoded) - length - 1)
            windows.append(encoded[i : i + length])
        return windows
    finally:
        random.setstate(state)


# Drawing


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 8),
    st.integers(1, 10),
    st.integers(2, 8),
    st.integers(0, 2**32),
)
def test_windows_are_those_of_the_original_code(lengths: list[int], sequences: int, length: int, seed: int):
    documents = corpus(lengths)
    found = draw_windows(documents, words, sequences=sequences, length=length, seed=seed, origin="corpus")
    assert found.tolist() == original(documents, sequences, length, seed)
    assert found.dtype == np.int64


def test_drawing_leaves_the_global_generator_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    draw_windows(corpus([30]), words, sequences=4, length=8, seed=0, origin="corpus")
    assert random.random() == expected


@pytest.mark.parametrize(
    ("lengths", "found"),
    [([], 0), ([8], 0), ([0, 0, 0], 0), ([8] * 500, 0), ([3, 8, 1], 0)],
)
def test_a_corpus_of_short_documents_is_an_error_not_an_endless_loop(lengths: list[int], found: int):
    with pytest.raises(DataError) as caught:
        draw_windows(corpus(lengths), words, sequences=4, length=8, seed=0, origin="corpus.jsonl")
    assert f"corpus.jsonl: found {found} of 4 calibration windows: among its {len(lengths)} documents" in str(
        caught.value
    )
    assert "more than 8 tokens; use a shorter length or longer documents" in str(caught.value)


def test_one_long_document_among_many_is_found_and_each_is_tokenised_once():
    documents = corpus([3] * 300 + [9])
    tokenised: list[str] = []

    def spy(text: str) -> list[int]:
        tokenised.append(text)
        return words(text)

    found = draw_windows(documents, spy, sequences=5, length=8, seed=0, origin="corpus")
    assert found.tolist() == [words(documents[-1])[:8]] * 5  # 9 tokens leave one place for 8, as in the original
    assert len(tokenised) == len(set(tokenised))


def test_the_number_of_draws_is_bounded(monkeypatch: pytest.MonkeyPatch):
    # A document that is never drawn: the others are all short, so only the bound can end the search.
    draws = 0

    class Unlucky(random.Random):
        def randint(self, a: int, b: int) -> int:
            nonlocal draws
            draws += 1
            return 0

    monkeypatch.setattr(calibration.random, "Random", Unlucky)
    with pytest.raises(DataError, match="found 0 of 4"):
        draw_windows(corpus([3, 30]), words, sequences=4, length=8, seed=0, origin="corpus")
    assert draws < 1000


# Reading


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def compressed(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return target


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".txt"])
def test_text_and_json_lines_plain_and_compressed(tmp_path: Path, ending: str, *, packed: bool):
    path = tmp_path / f"corpus{ending}"
    if ending == ".txt":
        path.write_bytes("one\r\ndocument, é\n".encode())
        expected = ["one\ndocument, é\n"]
    else:
        write_lines(path, {"text": "first é\n"}, {"text": "", "url": "x"})
        path.write_bytes(path.read_bytes() + b"\r\n  \n" + '{"text": "third é"}'.encode())
        expected = ["first é\n", "", "third é"]
    assert list(read_documents(compressed(path) if packed else path)) == expected


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path):
    (tmp_path / "b" / "c.json").mkdir(parents=True)  # a folder's name may end like a file's
    write_lines(tmp_path / "b" / "c.json" / "a.jsonl", {"text": "third"}, {"text": "fourth"})
    (tmp_path / "b" / "b.txt").write_text("second")
    compressed(write_lines(tmp_path / "a.jsonl", {"text": "first"}))
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "README.md").write_text("ignored")
    assert list(read_documents(tmp_path)) == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', 'expected a JSON object with a "text" field'),
        (b'{"content": "x"}', 'expected a JSON object with a "text" field'),
        (b'["text"]', 'expected a JSON object with a "text" field'),
        (b'"text"', 'expected a JSON object with a "text" field'),
        (b'{"text": "\xff"}', 'expected a JSON object with a "text" field'),
        (b'{"text": null}', '"text" is NoneType, not text'),
        (b'{"text": ["x"]}', '"text" is list, not text'),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, message: str):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    for file in (path, compressed(path)):
        with pytest.raises(DataError) as caught:
            list(read_documents(file))
        assert str(caught.value) == f"{file}, line 3: {message}"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def bit(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 0x55
    return bytes(damaged)


@pytest.mark.parametrize("damage", [cut, bit, lambda content: b"no gzip at all"], ids=["cut", "bit", "other"])
@pytest.mark.parametrize("ending", [".jsonl", ".txt"])
def test_damaged_archives_name_the_file(tmp_path: Path, damage: Callable[[bytes], bytes], ending: str):
    generator = random.Random(0)
    rows = [{"text": "".join(generator.choices("abcdefgh ", k=900))} for _ in range(50)]
    file = compressed(write_lines(tmp_path / f"corpus{ending}", *rows))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=rf"corpus{ending}\.gz"):
        list(read_documents(file))


def test_an_archive_cut_short_says_how_far_it_could_be_read(tmp_path: Path):
    file = compressed(write_lines(tmp_path / "corpus.jsonl", *({"text": f"row {n}"} for n in range(9))))
    file.write_bytes(file.read_bytes()[:-8])  # all of the data, but not its checksum
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz cannot be read past line 9: "):
        list(read_documents(file))


def test_text_that_is_not_utf8(tmp_path: Path):
    (tmp_path / "corpus.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"corpus\.txt cannot be read to its end: .*utf-8"):
        list(read_documents(tmp_path / "corpus.txt"))


def test_sources_that_are_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"calibration source .*missing\.txt' is neither self, pocket, auto, c4,"):
        calibrate(MODEL, source=str(tmp_path / "missing.txt"), sequences=1, length=8)
    with pytest.raises(DataError, match=r"holds no \.txt, \.jsonl, \.json or \.gz file"):
        calibrate(MODEL, source=str(tmp_path), sequences=1, length=8)


def test_c4_without_network_and_cache(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route\n\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ModelError, match='not cached: no route to host\nUse calibration source "self"'):
        calibrate(MODEL, source="c4", sequences=1, length=8)


def test_c4_is_one_pinned_file_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    asked: list[Any] = []
    file = compressed(write_lines(tmp_path / "c4.json", {"text": "the and 12 " * 20}))

    def download(repository: str, name: str, *, repo_type: str, revision: str) -> str:
        asked.append((repository, name, repo_type, len(revision)))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = calibrate(MODEL, source="c4", sequences=2, length=8)
    assert asked == [("allenai/c4", "en/c4-train.00000-of-01024.json.gz", "dataset", 40)]
    assert (found.tokens.shape, found.source) == ((2, 8), "c4")


MODEL = toy_model()


def test_windows_come_from_the_models_tokens_of_the_documents(tmp_path: Path):
    documents = ["the and " * 30, "on a 12 (" * 20, "short"]
    path = write_lines(tmp_path / "corpus.jsonl", *({"text": text} for text in documents))
    found = calibrate(MODEL, source=str(path), sequences=6, length=16, seed=3)
    expected = draw_windows(documents, MODEL.tokenize, sequences=6, length=16, seed=3, origin="corpus")
    assert np.array_equal(found.tokens, expected)
    assert (found.source, found.seed) == (str(path), 3)
    other = calibrate(MODEL, source=str(path), sequences=6, length=16, seed=4)
    assert not np.array_equal(found.tokens, other.tokens)


@pytest.mark.parametrize(
    ("sequences", "length", "message"),
    [
        (0, 8, "sequences >= 1 and length >= 2; got 0 and 8"),
        (-1, 8, "got -1 and 8"),
        (1, 1, "got 1 and 1"),
        (1, 257, "calibration length 257 exceeds the model's context of 256 tokens"),
    ],
)
def test_settings_out_of_range(sequences: int, length: int, message: str):
    with pytest.raises(ConfigError, match=message):
        calibrate(MODEL, sequences=sequences, length=length)


# Self-sampled text


def test_sampled_text_depends_on_model_seed_and_size_only(cache: Path):
    first = calibrate(MODEL, sequences=3, length=12, seed=1)
    assert first.tokens.shape == (3, 12)
    assert (first.source, first.seed) == ("self", 1)
    for file in (cache / "calibration").iterdir():
        file.unlink()
    torch.manual_seed(123)  # the global generator is not part of it
    again = calibrate(toy_model(), sequences=3, length=12, seed=1)
    assert np.array_equal(again.tokens, first.tokens)
    for model, seed in ((MODEL, 2), (toy_model(seed=1), 1)):
        assert not np.array_equal(calibrate(model, sequences=3, length=12, seed=seed).tokens, first.tokens)
    # Another dtype or size is another entry, never a part of one.
    calibrate(toy_model(dtype=torch.float64), sequences=3, length=12, seed=1)
    assert calibrate(MODEL, sequences=3, length=13, seed=1).tokens.shape == (3, 13)
    assert len(list((cache / "calibration").iterdir())) == 5


def test_sampled_text_is_cached_and_the_cache_is_not_trusted_blindly(cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = calibrate(MODEL, sequences=2, length=10)
    (file,) = (cache / "calibration").iterdir()  # no temporary file is left
    sample = self_sampling._sample
    monkeypatch.setattr(self_sampling, "_sample", lambda *_: pytest.fail("sampled again"))
    assert np.array_equal(calibrate(MODEL, sequences=2, length=10).tokens, first.tokens)
    monkeypatch.setattr(self_sampling, "_sample", sample)
    whole = file.read_bytes()
    for damaged in (b"", whole[:40], whole[:-9], b"pickle" * 50):
        file.write_bytes(damaged)
        assert np.array_equal(calibrate(MODEL, sequences=2, length=10).tokens, first.tokens)
        assert file.read_bytes() == whole
    np.save(file, first.tokens[:1])
    assert np.array_equal(calibrate(MODEL, sequences=2, length=10).tokens, first.tokens)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "gpt2", "opt", "mixtral", "mamba", "minimax"])
def test_sampled_text_follows_the_models_probabilities(architecture: str):
    """Drawn again from whole forwards, row by row: neither the cache nor the batch changes a token."""
    model = toy_model(architecture)  # windows of 12 where there are any
    found = calibrate(model, sequences=2, length=30, seed=7).tokens
    for row in range(2):
        uniform = np.random.default_rng([7, row]).random(29)
        ids = [0]  # <s>
        with torch.no_grad():
            for draw in uniform:
                logits = model.network(torch.tensor([ids])).logits[0, -1]
                reached = np.cumsum(torch.softmax(logits.double(), dim=-1).numpy())
                ids.append(int((reached <= draw).sum()))
        assert ids == found[row].tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniform = torch.linspace(0, 1 - 1e-9, 10_001, dtype=torch.float64)
    chosen = self_sampling.chosen_tokens(probabilities.log().expand(len(uniform), 4), uniform)
    counts = torch.bincount(chosen, minlength=4) / len(uniform)
    assert counts.tolist() == pytest.approx([0.5, 0.0, 0.3, 0.2], abs=2e-4)
    assert counts[1] == 0


def test_a_smaller_number_of_windows_is_the_beginning_of_a_larger_one(cache: Path):
    alone = calibrate(MODEL, sequences=3, length=12, seed=5).tokens
    (file,) = (cache / "calibration").iterdir()
    file.unlink()
    many = calibrate(MODEL, sequences=7, length=12, seed=5).tokens
    assert np.array_equal(many[:3], alone)
    assert np.array_equal(calibrate(MODEL, sequences=3, length=12, seed=5).tokens, alone)
    assert len(calibrate(MODEL, sequences=9, length=12, seed=5).tokens) == 9  # two rows more, in the same file
    assert len(list((cache / "calibration").iterdir())) == 1


@pytest.mark.parametrize("architecture", ["llama", "mistral", "mamba"])
def test_sampling_that_was_stopped_goes_on(architecture: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy_model(architecture)
    whole = calibrate(model, sequences=3, length=40, seed=2).tokens
    for file in (cache / "calibration").iterdir():
        file.unlink()
    monkeypatch.setattr(self_sampling, "KEEP_EVERY", 8)
    told: list[int] = []

    def stop(done: int, _total: int) -> None:
        told.append(done)
        if done >= 3 * 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, sequences=3, length=40, seed=2, progress=stop)
    (partial,) = (cache / "calibration").iterdir()
    assert np.array_equal(np.load(partial), whole[:, :25])
    told.clear()
    again = calibrate(model, sequences=3, length=40, seed=2, progress=lambda done, _: told.append(done))
    assert np.array_equal(again.tokens, whole)
    assert told == [3 * position for position in range(26, 41)], "only what was missing is sampled"
    assert not list((cache / "calibration").glob("*.part.npy"))


def test_a_damaged_beginning_is_sampled_anew(cache: Path):
    whole = calibrate(MODEL, sequences=2, length=20).tokens
    (file,) = (cache / "calibration").iterdir()
    file.unlink()
    partial = file.with_suffix(".0-2.part.npy")
    for beginning in (b"pickle", None):
        if beginning is None:
            np.save(partial, whole[:1, :5])  # of another number of rows
        else:
            partial.write_bytes(beginning)
        assert np.array_equal(calibrate(MODEL, sequences=2, length=20).tokens, whole)
        file.unlink()


# The pocket texts


def test_the_pocket_texts_calibrate_without_a_network_and_without_sampling(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(self_sampling, "_sample", lambda *_: pytest.fail("sampled"))
    found = calibrate(MODEL, source="pocket", sequences=4, length=64, seed=1)
    assert (found.source, found.tokens.shape) == ("pocket", (4, 64))
    text = MODEL.tokenize(pocket_text())
    starts = {tuple(text[start : start + 64]) for start in range(len(text) - 63)}
    assert all(tuple(window) in starts for window in found.tokens.tolist())
    more = calibrate(MODEL, source="pocket", sequences=9, length=64, seed=1)
    assert np.array_equal(more.tokens[:4], found.tokens)


def test_auto_is_the_pocket_texts_for_a_large_model_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    assert calibrate(MODEL, source="auto", sequences=2, length=8).source == "self"
    large = dataclasses.replace(MODEL.info, parameters=1_500_000_000)
    assert chosen_source("auto", large, torch.device("cpu")) == "pocket"
    assert chosen_source("auto", large, torch.device("cuda")) == "self"
    assert chosen_source("c4", large, torch.device("cpu")) == "c4"


def test_a_text_shorter_than_its_windows_is_refused_where_counts_are_compared(tmp_path: Path):
    file = tmp_path / "short.txt"
    file.write_text("a b c d e f g h " * 40, encoding="utf-8")
    tokens = len(MODEL.tokenize(file.read_text(encoding="utf-8")))
    refuse_small_corpus(str(file), MODEL.tokenize, sequences=tokens // 16, length=16)
    with pytest.raises(DataError, match=rf"calibration\.sequences {tokens // 16 + 1}: .*short\.txt has {tokens:,} in"):
        refuse_small_corpus(str(file), MODEL.tokenize, sequences=tokens // 16 + 1, length=16)


def test_many_sequences_are_sampled_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(self_sampling, "SAMPLING_ROWS", 2)
    reported: list[tuple[int, int]] = []
    found = calibrate(MODEL, sequences=5, length=6, progress=lambda done, total: reported.append((done, total)))
    assert found.tokens.shape == (5, 6)
    assert len({tuple(row) for row in found.tokens.tolist()}) == 5
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert reported[-1] == (30, 30)


def test_models_without_a_start_token_begin_after_the_end_of_a_text():
    tokenizer = toy_tokenizer(start=False)
    tokenizer.bos_token = None
    model = TransformersModel.wrap(MODEL.network, tokenizer, MODEL.info)
    assert (calibrate(model, sequences=2, length=4).tokens[:, 0] == 1).all()


def test_a_model_that_gives_nan_cannot_sample(cache: Path):
    model = toy_model()
    model.network.lm_head.weight[7] = math.nan
    with pytest.raises(NumericalError, match="toy-llama gives NaN or Inf"):
        calibrate(model, sequences=2, length=4)
    assert list((cache / "calibration").iterdir()) == []


# What a calibration is


def test_the_digest_is_of_shape_and_tokens():
    tokens = np.arange(12).reshape(3, 4)

    def digest(array: npt.ArrayLike) -> str:
        return as_calibration(array).digest

    # Written down so that journals stay valid from one version to the next.
    assert digest(tokens) == "970e19d9a41a428afafb9ea453a279803c82eada1bc23995fb2ee63c2ed030a2"
    assert (
        digest(tokens.astype(np.int32))
        == digest(tokens)
        == digest(np.asfortranarray(tokens))
        == digest(tokens.tolist())
    )
    assert digest(torch.from_numpy(tokens)) == digest(tokens)
    different = {digest(tokens), digest(tokens.reshape(4, 3)), digest(tokens[::-1]), digest(tokens + 1)}
    assert len(different) == 4


@pytest.mark.parametrize(
    "tokens",
    [np.zeros((2, 3)), np.zeros(3, dtype=int), np.zeros((0, 3), dtype=int), np.zeros((1, 2, 3), dtype=int), "text"],
)
def test_what_is_no_calibration(tokens: Any):
    with pytest.raises(ConfigError, match=r"integer token ids \(sequences, tokens\); got .* of shape"):
        as_calibration(tokens)


def test_a_calibration_stays_what_it_is():
    given_ = Calibration(tokens=np.zeros((1, 2), dtype=np.int64), source="x", seed=4)
    assert as_calibration(given_) is given_
