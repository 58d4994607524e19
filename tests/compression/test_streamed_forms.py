"""Every form is written while the model is compressed: each byte is read once, hashed once and not read back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from composites import COMPOSITES, save_composite
from compressing import Silent
from llmkick.compression.storage import folder as folder_module
from llmkick.compression.storage import target as target_module
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, Form, compress_checkpoint
from llmkick.compression.walk import recipe_output
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import NumericalError
from llmkick.models.checkpoints import packed_file, references, weight_files
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.weights import weights_digest
from processes import run_commands
from toy import save_toy

PLAN = CalibrationPlan(source="pocket", sequences=4, length=32)
FORMS: dict[Form, str] = {
    "folder": "wanda@2:4",
    "packed": "gptq@4b-g8",
    "compressed-tensors": "gptq@4b-g8",
    "adapter": "gptq@3b-g8+eora-r4",
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


def compressed(source: Path, target: Path, form: Form, recipe: str) -> CompressionReport:
    if form == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    return compress_checkpoint(
        str(source), recipe, target, form=form, calibration=PLAN, dtype="float32", device="cpu", observer=Silent()
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name, without the seconds of the report."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = json.loads(files["llmkick_compression.json"])
    report.pop("seconds")
    if report.get("recovery"):
        report["recovery"].pop("seconds")
    text = json.dumps(report).replace(str(folder), "")
    adapter = files.get("adapter/adapter_config.json", b"").replace(str(folder).encode(), b"")
    return {**files, "llmkick_compression.json": text.encode(), "adapter/adapter_config.json": adapter}


# Reading


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor is read from a weight file, and each file of finished blocks."""
    counts: Counter[str] = Counter()
    read, read_back = weight_files.read_tensor, packed_file.read_parts

    def counted(file: Path, name: str) -> Tensor:
        counts[name] += 1
        return read(file, name)

    def counted_back(file: Path) -> Any:
        counts[file.name] += 1
        return read_back(file)

    monkeypatch.setattr(weight_files, "read_tensor", counted)
    monkeypatch.setattr(packed_file, "read_parts", counted_back)
    return counts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # a head of its own, and one that is tied
def test_every_tensor_of_the_source_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, form: Form
):
    save_toy(tmp_path / "model", architecture)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    counts = count_reads(monkeypatch)
    compressed(tmp_path / "model", tmp_path / "out", form, FORMS[form])
    assert counts == dict.fromkeys(stored, 1)


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_head_that_is_stored_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form):
    from safetensors.torch import save_file

    save_toy(tmp_path / "model", "qwen2")
    file = tmp_path / "model" / "model.safetensors"
    stored = load_file(file)
    head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
    save_file({**stored, head: stored[embeddings].clone()}, file, metadata={"format": "pt"})
    counts = count_reads(monkeypatch)
    compressed(tmp_path / "model", tmp_path / "out", form, FORMS[form])
    assert counts == {**dict.fromkeys(stored, 1), embeddings: 2, head: 1}  # compared before, then compressed


@pytest.mark.parametrize("form", ["folder", "packed", "compressed-tensors"])
@pytest.mark.parametrize("architecture", COMPOSITES)
def test_the_other_parts_of_a_model_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, form: Form
):
    save_composite(tmp_path / "model", architecture)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    counts = count_reads(monkeypatch)
    compressed(tmp_path / "model", tmp_path / "out", form, "rtn@4b")
    assert counts == dict.fromkeys(stored, 1)


def test_a_packed_model_in_the_cache_is_written_without_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_toy(tmp_path / "model")
    compressed(tmp_path / "model", tmp_path / "one", "packed", "gptq@4b-g8")
    counts = count_reads(monkeypatch)
    compressed(tmp_path / "model", tmp_path / "two", "packed", "gptq@4b-g8")
    assert not [name for name in counts if "block" in name or "_proj" in name]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("form", ["compressed-tensors", "adapter"])
@pytest.mark.parametrize("head_dim", [16, 4])  # with 4, projections of keys and values are stored as plain weights
def test_a_compression_in_the_cache_gives_the_same_files(tmp_path: Path, form: Form, head_dim: int):
    recipe = "rtn@4b-g8" if form == "compressed-tensors" else FORMS[form]
    save_toy(tmp_path / "model", num_key_value_heads=1, num_attention_heads=8, head_dim=head_dim)
    report = compressed(tmp_path / "model", tmp_path / "one", form, recipe)
    is_plain = [note for note in report.warnings if note.startswith("stored as plain weights")]
    assert bool(is_plain) == (form == "compressed-tensors" and head_dim == 4)
    compressed(tmp_path / "model", tmp_path / "two", form, recipe)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_blocks_that_cannot_be_linked_are_written_and_not_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_toy(tmp_path / "model", "mixtral")
    compressed(tmp_path / "model", tmp_path / "linked", "packed", "wanda@2:4")
    shutil.rmtree(tmp_path / "cache" / "compressed")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    def copied(*_: object) -> None:
        raise AssertionError("a finished block was read back")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        patch.setattr(folder_module.shutil, "copy2", copied)
        compressed(tmp_path / "model", tmp_path / "written", "packed", "wanda@2:4")
    assert contents(tmp_path / "linked") == contents(tmp_path / "written")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_damaged_tensor_outside_the_blocks_is_named(tmp_path: Path, name: str):
    from safetensors.torch import save_file

    save_toy(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=rf"{name} hold NaN"):
        compressed(tmp_path / "model", tmp_path / "out", "folder", "rtn@4b")
    assert not (tmp_path / "out").exists()


# Hashing


class CountingHash:
    """A sha256 that counts the bytes of tensors: what is given to `update` as a view of memory."""

    total = 0
    sha256: Callable[..., Any] = hashlib.sha256

    def __init__(self, data: bytes = b"") -> None:
        self._hash = CountingHash.sha256(data)

    def update(self, data: Any) -> None:
        if isinstance(data, memoryview):
            CountingHash.total += data.nbytes
        self._hash.update(data)

    def hexdigest(self) -> str:
        return str(self._hash.hexdigest())


def parts_beside(cache: Path) -> int:
    """Bytes of all scales and zero points in finished blocks."""
    blocks = [load_file(file) for file in cache.glob("compressed/*/block-*.safetensors")]
    assert blocks
    return sum(t.nbytes for block in blocks for name, t in block.items() if name.endswith((":scale", ":zero")))


@pytest.mark.parametrize(
    ("architecture", "form", "recipe"),
    [
        ("llama", "folder", "wanda@2:4"),
        ("llama", "folder", "rtn@4b-g8"),
        ("llama", "packed", "magnitude@0.5"),
        ("llama", "packed", "rtn@4b-g8"),
        ("llama", "compressed-tensors", "rtn@4b-g8"),
        ("qwen2", "packed", "wanda@2:4"),  # a tied head
        ("gpt2", "packed", "magnitude@0.5"),  # layers that are stored transposed
        ("mixtral", "packed", "magnitude@0.5"),  # experts in one parameter
        ("gpt_oss", "packed", "rtn@4b-g8"),  # experts that are stored transposed
    ],
)
def test_every_byte_of_a_finished_weight_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, form: Form, recipe: str
):
    """The values of the network, and beside them only the scales and zero points from which they are rounded."""
    save_toy(tmp_path / "model", architecture)
    network = load_model(str(tmp_path / "model"), dtype="float32").network
    tied = network.all_tied_weights_keys
    size = sum(tensor.nbytes for name, tensor in network.state_dict().items() if name not in tied)
    files: Counter[str] = Counter()
    of_file = references.sha256_of_file

    def counted(path: Path) -> str:
        files[path.name] += 1
        return of_file(path)

    monkeypatch.setattr(references, "sha256_of_file", counted)
    monkeypatch.setattr(hashlib, "sha256", CountingHash)
    monkeypatch.setattr(CountingHash, "total", 0)
    report = compressed(tmp_path / "model", tmp_path / "out", form, recipe)
    hashed = CountingHash.total
    monkeypatch.undo()
    assert hashed == size + parts_beside(tmp_path / "cache")
    assert files["model.safetensors"] == 1
    if form != "compressed-tensors":
        assert weights_digest(load_model(str(tmp_path / "out"), dtype="float32").network) == report.digest


# Stopped and resumed


def _killed(source: str, target: str, form: Form, recipe: str) -> None:
    """Compress until the second block is on disk, in all its files, but not yet counted as finished."""
    write_state = FinishedBlocks._write_state

    def killed(finished: FinishedBlocks, count: int, tally: Any) -> None:
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write_state(finished, count, tally)

    pytest.MonkeyPatch().setattr(FinishedBlocks, "_write_state", killed)
    compressed(Path(source), Path(target), form, recipe)


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_compression_goes_on_and_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
):
    if form == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    save_toy(tmp_path / "model")
    recipe, target = FORMS[form], tmp_path / "out"
    (ended,) = run_commands(_killed, tmp_path / "first", [{}], str(tmp_path / "model"), str(target), form, recipe)
    assert ended.code == -signal.SIGKILL
    assert (tmp_path / ".out.weights.partial").is_dir()
    assert (tmp_path / ".out.lock.partial").is_file()  # of a lock that the system has freed
    solved: list[str] = []
    solve = recipe_output.compress_with_statistics

    def counted(*arguments: Any, name: str, **options: Any) -> Any:
        solved.append(name)
        return solve(*arguments, name=name, **options)

    monkeypatch.setattr(recipe_output, "compress_with_statistics", counted)
    compressed(tmp_path / "model", target, form, recipe)
    assert {name.split(".")[2] for name in solved} == {"1", "2"}  # the first block is not compressed again
    assert not list(tmp_path.glob(".out*"))
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "other"))
    compressed(tmp_path / "model", tmp_path / "whole", form, recipe)
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize("is_there", [True, False], ids=["inside", "beside"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_killed_command_left_is_gone_whatever_the_next_one_writes(tmp_path: Path, form: Form, is_there: bool):
    """It was killed after its last block: what comes next has all blocks, and may write no weights beside the work."""
    save_toy(tmp_path / "model")
    compressed(tmp_path / "model", tmp_path / "whole", form, FORMS[form])
    target = tmp_path / "out"
    places = [tmp_path / ".out.weights.partial", tmp_path / ".out.new.partial"]
    if is_there:
        places += [target / ".llmkick.weights.partial", target / ".llmkick.new.partial"]
    for place in places:
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(b"half")
    compressed(tmp_path / "model", target, form, FORMS[form])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "out", "whole"]
    assert contents(target) == contents(tmp_path / "whole")


def test_a_compression_that_cannot_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_toy(tmp_path / "model")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target_module, "ShardWriter", full)
    with pytest.raises(OSError, match="No space left"):
        compressed(tmp_path / "model", tmp_path / "new" / "out", "folder", "rtn@4b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model"]


# Files of the first format


def as_format_1(file: Path) -> None:
    """Rewrite a block as earlier versions did: a digest of (out, in) and a checksum of all parts for each weight."""
    from safetensors.torch import save_file

    from llmkick.models.checkpoints.packed import _checksum
    from llmkick.models.weights import digest_of

    layouts, tensors = {}, {}
    for name, packed, weight in packed_file.read_checked(file):
        fields = packed_file._fields(packed.layout)
        fields.pop("beside", None)
        layouts[name] = {**fields, "digest": digest_of(weight), "checksum": _checksum(packed.parts)}
        tensors |= {f"{name}:{key}": part.clone() for key, part in packed.parts.items()}
    save_file(tensors, file, metadata={"format": "pt", "llmkick": json.dumps(layouts)})


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_a_compression_of_an_earlier_version_goes_on(tmp_path: Path, architecture: str):
    save_toy(tmp_path / "model", architecture)
    expected = compressed(tmp_path / "model", tmp_path / "new", "packed", "rtn@4b-g8")
    (entry,) = (path for path in (tmp_path / "cache" / "compressed").iterdir() if path.is_dir())
    blocks = sorted(entry.glob("block-*"))
    for block in blocks[1:]:
        block.unlink()
    copy = blocks[0].read_bytes()
    blocks[0].unlink()  # the folder `new` has the same file
    blocks[0].write_bytes(copy)
    as_format_1(blocks[0])
    state = json.loads((entry / "compression.json").read_text())
    state["tally"]["layers"] = [each for each in state["tally"]["layers"] if ".0." in each["name"][:16]]
    for name in ("dense_bytes", "stored_bytes", "seconds"):
        state["tally"][name] = 0
    old = {**state, "format": 1, "finished": 1, "report": None, "digests": {}}
    (entry / "compression.json").write_text(json.dumps(old))
    report = compressed(tmp_path / "model", tmp_path / "out", "packed", "rtn@4b-g8")
    assert report.digest == expected.digest
    assert weights_digest(load_model(str(tmp_path / "out"), dtype="float32").network) == expected.digest


def test_a_folder_of_an_earlier_version_opens(tmp_path: Path):
    save_toy(tmp_path / "model", "mixtral")
    report = compressed(tmp_path / "model", tmp_path / "out", "packed", "rtn@4b-g8")
    for file in (tmp_path / "out").glob("packed-*.safetensors"):
        as_format_1(file)
    manifest = tmp_path / "out" / "llmkick_packed.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    assert weights_digest(load_model(str(tmp_path / "out"), dtype="float32").network) == report.digest
