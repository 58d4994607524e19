"""Where a model's files come from: folders, GGUF files and the hub, whole, damaged, missing or half-written."""

from __future__ import annotations

import hashlib
import http.server
import importlib.metadata
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkick.errors import KickError, ModelError, NumericalError
from llmkick.files import new_folder
from llmkick.models.checkpoints import references
from llmkick.models.checkpoints.gguf_files import gguf_precision
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.checkpoints.references import SOURCE_FILE, locate
from llmkick.models.engine.network import end_tokens_of
from llmkick.models.language_model import ScoreRequest
from toy import save_toy, save_toy_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLMKICK_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_toy(tmp_path / "models" / "toy")
    return tmp_path / "models" / "toy"


def load(reference: Path | str) -> Any:
    return load_model(str(reference), dtype="float32", device="cpu")


# A folder


def test_a_folder_gives_the_saved_weights_and_says_what_it_is(folder: Path):
    model, saved = load(folder), save_toy(folder.parent / "again")
    for name, tensor in saved.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name
    assert model.tokenize("é the<|im_end|>") == saved.tokenize("é the<|im_end|>")
    assert model.logprobs([ScoreRequest("the", " and")]) == saved.logprobs([ScoreRequest("the", " and")])
    info = model.info
    assert (info.name, info.revision, info.architecture) == ("toy", "", "LlamaForCausalLM")
    assert (info.parameters, info.dtype, info.source_precision) == (18544, "float32", "float")
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "opt", "gpt_neox", "gpt2", "mixtral"])
def test_every_kind_of_folder_loads(tmp_path: Path, architecture: str):
    saved = save_toy(tmp_path / "toy", architecture, tie_word_embeddings=True)  # one tensor of two is stored
    request = [ScoreRequest("the and", " on")]
    assert load(tmp_path / "toy").logprobs(request) == saved.logprobs(request)


@pytest.mark.parametrize("own", [True, False])
def test_end_tokens_come_from_the_folder_however_it_is_read(folder: Path, own: bool):
    settings = {"eos_token_id": [1, 3], "bos_token_id": 0}
    if own:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    else:  # as in folders that are older than that file
        (folder / "generation_config.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))
    meta = load_meta_model(str(folder), dtype="float32", device="cpu")
    for network in (load(folder).network, meta.model.network):
        assert network.generation_config.eos_token_id == [1, 3]


def test_the_same_files_have_the_same_digest_wherever_they_lie(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert locate(str(tmp_path / "elsewhere")).digest == locate(str(folder)).digest


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "merges.txt", "a.jinja"]
)
def test_the_digest_covers_every_file_that_can_change_an_answer(folder: Path, name: str):
    file = folder / name
    if not file.exists():
        file.write_text("as it was\n")
    before = locate(str(folder)).digest
    content = bytearray(file.read_bytes())
    content[-2] ^= 1  # one bit
    file.write_bytes(content)
    assert locate(str(folder)).digest != before


def test_a_note_of_origin_gives_the_precision_but_not_the_digest(folder: Path):
    before = locate(str(folder)).digest
    # As in a copy of a converted folder whose weights were trained further.
    (folder / SOURCE_FILE).write_text(json.dumps({"digest": "0" * 64, "source_precision": "Q4_1"}))
    located = locate(str(folder))
    assert located.source_precision == "Q4_1"
    assert located.digest not in {before, "0" * 64}
    (folder / SOURCE_FILE).write_text('{"source_prec')
    with pytest.raises(ModelError, match=f"{SOURCE_FILE} is damaged"):
        locate(str(folder))


def test_a_folder_without_config(folder: Path):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"toy is not a Hugging Face model folder: it has no config\.json"):
        load(folder)


def test_a_folder_with_pickled_weights_only_is_refused(folder: Path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors weights$"):
        load(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle, which can run any code and is never loaded"):
        load(folder)


def test_pickled_weights_beside_safetensors_are_never_opened(folder: Path):
    (folder / "pytorch_model.bin").write_bytes(b"reading this would fail")
    assert load(folder).info.parameters == 18544


@pytest.mark.parametrize("kept", [0, 7, 200, 5000, -1])
def test_truncated_weights(folder: Path, kept: int):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        ModelError, match=r"model\.safetensors cannot be read .* it is cut short or damaged; fetch it again"
    ):
        load(folder)


def test_a_shard_that_is_missing(folder: Path, tmp_path: Path):
    save_toy(tmp_path / "whole").network.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "sharded")
    assert load(tmp_path / "sharded").info.parameters == 18544
    shards[-1].unlink()
    with pytest.raises(
        ModelError, match=rf"lacks 1 of the {len(shards)} files .*index\.json lists: {shards[-1].name}; fetch"
    ):
        load(tmp_path / "sharded")


def test_missing_tensors_are_not_made_up(folder: Path):
    edit(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 tensors of a LlamaForCausalLM, among them .*1\.mlp\.up_proj"):
        load(folder)


def test_a_tensor_of_the_wrong_shape(folder: Path):
    edit(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(3, 16)}))
    with pytest.raises(ModelError, match=r"lm_head.weight has shape \(3, 16\), but config.json asks for \(\d+, 16\)"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_name_the_tensor(folder: Path, value: float):
    edit(folder, lambda weights: weights["model.layers.2.self_attn.k_proj.weight"][3].fill_(value))
    with pytest.raises(NumericalError, match=r"model\.layers\.2\.self_attn\.k_proj\.weight hold NaN or Inf"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_json(folder: Path, name: str):
    (folder / name).write_text((folder / name).read_text()[:-40])
    with pytest.raises(ModelError, match="cannot load toy"):
        load(folder)


def test_a_folder_without_tokenizer(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="cannot load toy"):
        load(folder)


def edit(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# A name that leads nowhere


def test_an_unknown_reference_lists_the_choices(tmp_path: Path):
    for reference in ("smollm", str(tmp_path / "nowhere"), "a/b/c", "spaced name/model"):
        with pytest.raises(ModelError, match=r"unknown model .*smollm2-135m-instruct.*folder or \.gguf.*owner/name"):
            locate(reference)
    with pytest.raises(ModelError, match=r"there is no file .*missing\.gguf"):
        locate(str(tmp_path / "missing.gguf"))


def test_code_from_a_folder_is_never_run(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="cannot load toy"):
        load(folder)


# GGUF


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    save_toy_gguf(tmp_path / "toy.gguf")
    return tmp_path / "toy.gguf"


def test_a_gguf_file_gives_its_weights_and_tokenizer(tmp_path: Path):
    saved = save_toy_gguf(tmp_path / "toy.gguf")
    model = load(tmp_path / "toy.gguf")
    for name, tensor in saved.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name
    assert model.tokenize("é the<|im_end|> and 12:\n\n") == saved.tokenize("é the<|im_end|> and 12:\n\n")[1:]
    assert model.has_chat_template
    assert end_tokens_of(model.network, model.tokenizer) == {1, 3}  # </s>, and <|im_end|> of the conversations
    assert model.max_tokens == 256
    assert (model.info.name, model.info.source_precision) == ("toy", "float")


def test_the_digest_of_a_gguf_file_is_that_of_its_conversion(
    gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """A conversion that comes out alike has the digest of the earlier one; another one has its own."""
    first = locate(str(gguf_file))
    monkeypatch.setattr(references, "CONVERSION_VERSION", references.CONVERSION_VERSION + 1)
    again = locate(str(gguf_file))
    assert (again.digest, again.folder == first.folder) == (first.digest, False)
    convert = references.convert_gguf

    def with_another_template(path: Path, folder: Path) -> None:
        convert(path, folder)
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")

    monkeypatch.setattr(references, "convert_gguf", with_another_template)
    shutil.rmtree(cache / "converted")
    assert locate(str(gguf_file)).digest != first.digest


def test_another_version_of_transformers_converts_a_gguf_file_anew(gguf_file: Path, monkeypatch: pytest.MonkeyPatch):
    """What it writes of itself into the configuration is no part of the digest."""
    first = locate(str(gguf_file))
    version, convert = importlib.metadata.version, references.convert_gguf

    def by_another_version(path: Path, folder: Path) -> None:
        convert(path, folder)
        for name in ("config.json", "generation_config.json"):
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            assert "transformers_version" in values
            (folder / name).write_text(json.dumps({**values, "transformers_version": "99.0"}), encoding="utf-8")

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == "transformers" else version(name))
    monkeypatch.setattr(references, "convert_gguf", by_another_version)
    again = locate(str(gguf_file))
    assert again.folder != first.folder
    assert again.digest == first.digest


def test_what_lies_beside_a_gguf_file_is_not_read(gguf_file: Path, cache: Path):
    """Files are often converted into the folder of the model; transformers would prefer what lies there."""
    alone = load(gguf_file)
    ids, digest = alone.tokenize("the x and 12"), alone.info.digest
    shutil.rmtree(cache / "converted")
    vocabulary = json.loads(alone.tokenizer.backend_tokenizer.to_str())
    tokens = vocabulary["model"]["vocab"]
    tokens["t"], tokens["x"] = tokens["x"], tokens["t"]
    (gguf_file.parent / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (gguf_file.parent / "chat_template.jinja").write_text("other", encoding="utf-8")
    again = load(gguf_file)
    assert again.tokenize("the x and 12") == ids
    assert again.info.digest == digest
    assert again.tokenizer.chat_template == alone.tokenizer.chat_template != "other"


@pytest.mark.parametrize(
    ("precision", "expected"), [("F32", "float"), ("F16", "float"), ("Q8_0", "Q8_0"), ("Q4_1", "Q4_1")]
)
def test_rounded_gguf_weights_are_taken_as_stored_and_named(tmp_path: Path, precision: str, expected: str):
    import gguf

    saved = save_toy_gguf(tmp_path / "toy.gguf", precision=precision)
    assert gguf_precision(tmp_path / "toy.gguf") == expected
    model = load(tmp_path / "toy.gguf")
    assert model.info.source_precision == expected
    kind = gguf.GGMLQuantizationType[precision]
    original = saved.network.state_dict()["model.layers.1.mlp.up_proj.weight"]
    rounded = gguf.quants.dequantize(gguf.quants.quantize(original.numpy(), kind), kind)
    assert torch.equal(model.network.state_dict()["model.layers.1.mlp.up_proj.weight"], torch.from_numpy(rounded))


def test_a_gguf_file_is_converted_once(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = locate(str(gguf_file))
    assert sorted(path.name for path in (cache / "converted").iterdir()) == [first.folder.name]  # nothing left over
    monkeypatch.setattr(references, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert locate(str(gguf_file)) == first
    copy = shutil.copy(gguf_file, gguf_file.with_name("copy.GGUF"))
    assert locate(str(copy)).folder == first.folder


def test_a_conversion_that_fails_leaves_nothing(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    convert = references.convert_gguf

    def interrupted(path: Path, folder: Path) -> None:
        convert(path, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(references, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locate(str(gguf_file))
    assert list((cache / "converted").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("LLMKICK_CACHE", str(cache))
    assert load(gguf_file).info.parameters == 30880


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_converting_leaves_nothing_that_counts(gguf_file: Path):
    def killed(_path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        references.convert_gguf = killed
        locate(str(gguf_file))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert load(gguf_file).info.parameters == 30880


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_an_altered_conversion_is_made_again(gguf_file: Path, name: str):
    located = locate(str(gguf_file))
    file = located.folder / name
    original = file.read_bytes()
    file.write_bytes(original[:-2] + bytes([original[-2] ^ 1]) + original[-1:])
    assert locate(str(gguf_file)) == located
    assert file.read_bytes() == original
    file.unlink()
    assert locate(str(gguf_file)) == located
    assert file.read_bytes() == original


def test_a_half_written_conversion_is_not_trusted(gguf_file: Path):
    located = locate(str(gguf_file))
    # What a crash without the atomic rename would leave: weights cut short, no note of origin yet.
    (located.folder / SOURCE_FILE).unlink()
    (located.folder / "model.safetensors").write_bytes(b"half")
    assert load(gguf_file).info.parameters == 30880


def test_a_new_folder_is_moved_into_place_as_a_whole(tmp_path: Path):
    with new_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("whole")
        written = (folder / "file").stat().st_ino
        assert not (tmp_path / "target").exists()
    assert (tmp_path / "target" / "file").stat().st_ino == written  # renamed, not copied
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_two_processes_that_convert_the_same_file_both_get_it(gguf_file: Path, monkeypatch: pytest.MonkeyPatch):
    convert = references.convert_gguf

    def overtaken(path: Path, folder: Path) -> None:
        monkeypatch.setattr(references, "convert_gguf", convert)
        locate(str(path))  # the other process, faster
        convert(path, folder)

    monkeypatch.setattr(references, "convert_gguf", overtaken)
    located = locate(str(gguf_file))
    assert load(gguf_file).info.digest == located.digest
    assert [path.name for path in located.folder.parent.iterdir()] == [located.folder.name]


@pytest.mark.parametrize("without", ["ffn_up", "attn_norm", "token_embd"])
def test_a_gguf_file_without_some_tensor_is_refused_not_filled_up(tmp_path: Path, cache: Path, without: str):
    save_toy_gguf(tmp_path / "toy.gguf", without=without)
    with pytest.raises(ModelError, match=r"toy\.gguf lacks [12] tensors of a LlamaForCausalLM"):
        load(tmp_path / "toy.gguf")
    assert list((cache / "converted").iterdir()) == []


def test_a_gguf_file_without_blocks(tmp_path: Path):
    save_toy_gguf(tmp_path / "toy.gguf", without="blk.")
    with pytest.raises(ModelError, match=r"toy\.gguf holds no decoder weights"):
        load(tmp_path / "toy.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100])
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes):
    (tmp_path / "toy.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"toy\.gguf is not a readable GGUF file \(damaged or cut short\?\)"):
        load(tmp_path / "toy.gguf")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99])
def test_a_gguf_file_cut_short(gguf_file: Path, cache: Path, share: float):
    content = gguf_file.read_bytes()
    gguf_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"damaged or cut short\?"):
        load(gguf_file)
    assert not (cache / "converted").exists() or list((cache / "converted").iterdir()) == []


def test_damage_anywhere_in_the_header_gives_an_error_of_ours_or_a_model(gguf_file: Path):
    content = gguf_file.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(25):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[generator.randrange(4, 2000)] ^= 1 << generator.randrange(8)
        gguf_file.write_bytes(damaged)
        try:
            load(gguf_file)
        except KickError:
            refused += 1
    assert refused > 5


def test_no_space_to_convert_is_said_before_the_work(gguf_file: Path, monkeypatch: pytest.MonkeyPatch):
    free = shutil.disk_usage(gguf_file)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    monkeypatch.setattr(references, "convert_gguf", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(KickError, match=r"converting toy\.gguf needs .* MB .* are free"):
        load(gguf_file)


@pytest.mark.parametrize("precision", ["F32", "Q8_0", "Q4_1", "Q4_0"])
def test_the_space_that_a_conversion_needs_is_that_of_its_weights(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
):
    """Four bytes a weight, however many of them a byte of the file holds."""
    saved = save_toy_gguf(tmp_path / "toy.gguf", precision=precision)
    asked: list[int] = []
    monkeypatch.setattr(references, "require_space", lambda _folder, needed, _purpose: asked.append(needed))
    written = locate(str(tmp_path / "toy.gguf")).folder / "model.safetensors"
    assert asked == [4 * saved.info.parameters + references.CONVERSION_MARGIN]
    assert asked[0] > written.stat().st_size


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_disk_that_fills_while_a_conversion_is_written(gguf_file: Path, cache: Path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # the weights take 124 KB
    try:
        with pytest.raises(
            ModelError, match=r"toy\.gguf was read, but .* cannot be written to .*make room, or set LLMK"
        ):
            locate(str(gguf_file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((cache / "converted").iterdir()) == []
    assert load(gguf_file).info.parameters == 30880


def test_a_cache_that_cannot_be_written(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "file"))
    with pytest.raises(KickError, match=r"cannot make the cache folder .*set LLMKICK_CACHE to another"):
        load(gguf_file)


# The hub, as a server on this machine

REVISION = "0123456789abcdef0123456789abcdef01234567"


# What transformers reads of a repository, and what belongs to the model.
FETCHED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "additional_chat_templates/search.jinja",
    "consolidated.safetensors.index.json",
}
NOT_FETCHED = [
    "pytorch_model.bin",
    "modeling_toy.py",
    "consolidated.safetensors",
    "consolidated-00001-of-00002.safetensors",
    "original/model.safetensors",
    "original/config.json",
    "original/deeper/model.safetensors.index.json",
    "checkpoint-100/tokenizer.json",
    "onnx/README.md",
]


class Hub:
    """A server that can go away. `asked` are the files that were asked for, as `repository/path`."""

    def __init__(self, server: http.server.ThreadingHTTPServer) -> None:
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.asked: set[str] = set()

    def asked_of(self, repository: str) -> set[str]:
        return {path.partition("/")[2] for path in self.asked if path.startswith(f"{repository}/")}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    """A server that lays out `folder` and those beside it as the hub does the repositories me/toy and so on."""
    (folder / "README.md").write_text("# Toy")
    for name, weights in (("own", "consolidated.safetensors"), ("only", "consolidated.safetensors"), ("old", "x.bin")):
        shutil.copytree(folder, folder.with_name(name))
        (folder.with_name(name) / "model.safetensors").rename(folder.with_name(name) / weights)
    own = folder.with_name("own") / "config.json"
    own.write_text(json.dumps({**json.loads(own.read_text()), "transformers_weights": "consolidated.safetensors"}))
    for path in (*NOT_FETCHED, "additional_chat_templates/search.jinja", "consolidated.safetensors.index.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}")

    def etag_of(file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0].removeprefix("/api/models")
            repository, _, rest = path.removeprefix("/me/").partition("/")
            root = folder.with_name(repository)
            files = {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}
            file = files.get(rest.removeprefix(f"resolve/{REVISION}/"))
            if root.is_dir() and rest in {"revision/main", f"revision/{REVISION}"}:
                siblings = [{"rfilename": name} for name in files]
                found = {"id": f"me/{repository}", "sha": REVISION, "siblings": siblings}
                self.send(json.dumps(found).encode(), {}, body=body)
            elif root.is_dir() and rest == f"tree/{REVISION}":
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": etag_of(file)}
                    for name, file in files.items()
                ]
                self.send(json.dumps(tree).encode(), {}, body=body)
            elif file is not None:
                found_hub.asked.add(str(file.relative_to(folder.parent)))
                headers = {"ETag": f'"{etag_of(file)}"', "X-Repo-Commit": REVISION}
                self.send(file.read_bytes(), headers, body=body)
            else:
                self.send(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body=body, code=404)

        def send(self, content: bytes, headers: dict[str, str], *, body: bool, code: int = 200) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    found_hub = Hub(server)
    yield found_hub
    found_hub.close()


def test_hub_models_are_fetched_once_and_then_found_without_a_network(hub: Hub, tmp_path: Path, folder: Path):
    # Each line of input is answered by a process that has looked for nothing yet.
    script = """if True:
        import json, os, sys
        from llmkick.errors import ModelError
        from llmkick.models.checkpoints.references import locate
        for line in sys.stdin:
            if process := os.fork():
                assert os.waitpid(process, 0)[1] == 0
                continue
            answers = []
            for reference in json.loads(line):
                try:
                    found = locate(reference)
                    answers.append([found.name, found.revision, found.digest, str(found.folder)])
                except ModelError as error:
                    answers.append(str(error))
            print(json.dumps(answers), flush=True)
            os._exit(0)
    """
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
        "HF_ENDPOINT": hub.url,
    }
    environment.pop("HF_HUB_OFFLINE")
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None

        def located(*references: str) -> Any:
            program.stdin.write(json.dumps(references) + "\n")
            return json.loads(program.stdout.readline())

        latest, pinned, unknown = located("me/toy", f"me/toy@{REVISION}", "me/unknown")
        own, only, old = located("me/own", "me/only", "me/old")
        hub.close()
        offline, unreachable, own_offline, only_offline = located("me/toy", "me/unknown", "me/own", "me/only")
    assert latest[:2] == ["me/toy", REVISION]
    assert pinned == latest
    assert unknown.startswith("cannot get 'me/unknown' from the hub, and it is not cached: 404 Client Error")
    assert "Repository Not Found" in unknown.splitlines()[0]
    assert "smollm2-135m-instruct" in unknown
    # Pickles, code and other forms of the weights stay where they are; the model card travels with compressed weights.
    fetched = {str(path.relative_to(latest[3])) for path in Path(latest[3]).rglob("*") if path.is_file()}
    assert fetched == hub.asked_of("toy") == {*FETCHED, "model.safetensors"}
    assert load(latest[3]).info.parameters == 18544

    # Weights in the form of another library are read only where the configuration says so.
    assert own[:2] == own_offline[:2] == ["me/own", REVISION]
    assert "consolidated.safetensors" in hub.asked_of("own")
    assert only.startswith("me/only has consolidated.safetensors, but neither model.safetensors nor model.safetensors.")
    assert only_offline.endswith("has no .safetensors weights")
    assert old.startswith("me/old has no .safetensors weights: x.bin is a pickle, which can run any code and is never")
    assert "x.bin" not in hub.asked_of("old")
    assert not any("consolidated" in name for name in hub.asked_of("only"))

    assert offline == latest
    assert unreachable.startswith("cannot get 'me/unknown' from the hub, and it is not cached: ")


def test_a_hub_model_without_network_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline\n\nmode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError) as caught:
        load("owner/name@v1.0")
    assert str(caught.value).startswith(
        "cannot get 'owner/name@v1.0' from the hub, and it is not cached: offline mode is enabled\nCheck the name"
    )
