"""Which files of a folder hold its weights: chosen in one place, and refused by name where they are not what counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmkick.compression.storage.compress_to_disk import compress_checkpoint
from llmkick.errors import ModelError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.checkpoints.references import locate
from llmkick.models.checkpoints.weight_files import TensorFiles, weight_files
from toy import save_toy

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"


class Silent:
    def stage(self, title: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_toy(tmp_path / "toy")
    return tmp_path / "toy"


def write_shards(folder: Path, tensors: dict[str, Tensor], *, count: int = 2) -> list[Path]:
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    place = {name: names[index % count] for index, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({n: t for n, t in tensors.items() if place[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return [folder / name for name in names]


def refused_everywhere(folder: Path, message: str) -> None:
    """Evaluating, planning a compression and compressing all give the same one error."""
    errors = []
    for attempt in (
        lambda: load_model(str(folder), dtype="float32", device="cpu"),
        lambda: load_meta_model(str(folder), dtype="float32", device="cpu"),
        lambda: compress_checkpoint(str(folder), "rtn@8b", folder.parent / "out", device="cpu", observer=Silent()),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            attempt()
        errors.append(str(caught.value))
    assert len(set(errors)) == 1, errors
    assert not (folder.parent / "out").exists()


def embedding_as_read(folder: Path) -> Tensor:
    """The embeddings, the same ones wherever they are read."""
    whole = load_model(str(folder), dtype="float32", device="cpu").network.state_dict()[EMBEDDING]
    meta = load_meta_model(str(folder), dtype="float32", device="cpu").files.read(EMBEDDING)
    assert torch.equal(whole, meta)
    return meta


# One set of weights


def test_a_single_file_counts_and_others_beside_it_do_not(folder: Path):
    before = locate(str(folder))
    tensors = load_file(folder / SINGLE)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert weight_files(folder) == [folder / SINGLE]
    assert torch.equal(embedding_as_read(folder), tensors[EMBEDDING])
    after = locate(str(folder))
    assert (after.digest, after.stored_bytes) == (before.digest, (folder / SINGLE).stat().st_size)


def test_shards_count_by_their_index(folder: Path):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    shards = write_shards(folder, tensors)
    save_file({EMBEDDING: tensors[EMBEDDING] * 2}, folder / "model-00003-of-00003.safetensors")  # of an older save
    assert weight_files(folder) == shards
    assert TensorFiles(folder).names == set(tensors)
    assert torch.equal(embedding_as_read(folder), tensors[EMBEDDING])
    assert locate(str(folder)).stored_bytes == sum(file.stat().st_size for file in shards)


def test_an_index_of_the_single_file_is_no_second_set(folder: Path):
    names = load_file(folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, SINGLE)}))
    assert weight_files(folder) == [folder / SINGLE]


def test_an_index_left_over_without_any_of_its_files(folder: Path):
    names = load_file(folder / SINGLE)
    gone = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": gone}))
    assert weight_files(folder) == [folder / SINGLE]


def test_the_file_that_the_configuration_names(folder: Path):
    tensors = load_file(folder / SINGLE)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, folder / "ema.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "ema.safetensors"}))
    assert torch.equal(embedding_as_read(folder), tensors[EMBEDDING] * 2)
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "../other.safetensors"}))
    refused_everywhere(folder, r"config\.json: \"transformers_weights\" is '\.\./other\.safetensors'")


# Two sets of weights


def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * 2 for name, tensor in tensors.items()}


def one_changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, EMBEDDING: tensors[EMBEDDING].clone().index_fill_(0, torch.tensor([7]), 0.5)}


def one_less(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != EMBEDDING}


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [doubled, one_changed, one_less, halved])
def test_a_single_file_beside_other_shards_is_refused(folder: Path, change: Callable[..., dict[str, Tensor]]):
    write_shards(folder, change(load_file(folder / SINGLE)))
    refused_everywhere(
        folder, r"two sets of weights, model\.safetensors and the files of .*index\.json .* delete the outdated set"
    )


def test_the_same_weights_twice_are_no_question(folder: Path):
    tensors = load_file(folder / SINGLE)
    before = locate(str(folder))
    shards = write_shards(folder, tensors)
    assert weight_files(folder) == [folder / SINGLE]
    assert locate(str(folder)).stored_bytes == before.stored_bytes
    shards[1].unlink()  # one of the second set is missing: which set is whole cannot be told from the index
    refused_everywhere(folder, r"lacks 1 of the 2 files .* model-00002-of-00002\.safetensors")


def test_a_tensor_in_two_shards_must_be_the_same(folder: Path):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    other = next(file for file in write_shards(folder, tensors) if EMBEDDING not in load_file(file))
    rest = load_file(other)
    save_file({**rest, EMBEDDING: tensors[EMBEDDING]}, other, metadata={"format": "pt"})
    assert torch.equal(embedding_as_read(folder), tensors[EMBEDDING])
    save_file({**rest, EMBEDDING: tensors[EMBEDDING] + 1}, other, metadata={"format": "pt"})
    refused_everywhere(folder, rf"both hold {EMBEDDING}, with different values")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_a_model_and_alone(folder: Path, name: str):
    weights = load_file(folder / SINGLE)
    (folder / name).write_bytes((folder / SINGLE).read_bytes())
    refused_everywhere(folder, rf"a whole model \({SINGLE}\) and an adapter \({name}\): merge the adapter")
    (folder / SINGLE).unlink()
    refused_everywhere(folder, rf"holds an adapter \({name}\), not a model: merge it")
    shards = write_shards(folder, weights)
    refused_everywhere(folder, rf"a whole model \({shards[0].name}, …\) and an adapter \({name}\): merge the adapter")


# Files that are missing or broken


def test_a_link_into_the_cache_of_the_hub_whose_file_is_gone(folder: Path):
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("../../blobs/gone")
    refused_everywhere(folder, r"model\.safetensors is a link to \.\./\.\./blobs/gone, which is not there .*fetch")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_other_links_that_lead_nowhere(folder: Path, name: str):
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/gone")
    refused_everywhere(folder, rf"{name.replace('.', '.')} is a link to .*which is not there")


def test_links_that_lead_somewhere_are_read(folder: Path):
    (folder / SINGLE).rename(folder.parent / "blob")
    (folder / SINGLE).symlink_to("../blob")
    assert embedding_as_read(folder).shape == (288, 16)


def test_a_shard_of_which_only_a_link_is_left(folder: Path):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    shards = write_shards(folder, tensors)
    shards[0].unlink()
    shards[0].symlink_to("../../blobs/gone")
    refused_everywhere(folder, r"model-00001-of-00002\.safetensors is a link to .*which is not there")


@pytest.mark.parametrize("missing", [[1], [0, 1]])
def test_shards_that_are_missing_are_named(folder: Path, missing: list[int]):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    shards = write_shards(folder, tensors)
    for index in missing:
        shards[index].unlink()
    names = ", ".join(shards[index].name for index in missing)
    refused_everywhere(
        folder, rf"lacks {len(missing)} of the 2 files with its weights, which {INDEX} lists: {names}; fe"
    )


@pytest.mark.parametrize("name", [SINGLE, "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs_are_named(folder: Path, name: str):
    (folder / name).write_bytes(POINTER)
    refused_everywhere(folder, rf"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`")


def test_a_shard_that_is_a_pointer(folder: Path):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    write_shards(folder, tensors)[1].write_bytes(POINTER)
    refused_everywhere(folder, r"model-00002-of-00002\.safetensors is a Git LFS pointer")


@pytest.mark.parametrize("kept", [0, 7, 200, 5000, -1])
def test_a_file_that_is_cut_short(folder: Path, kept: int):
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:kept])
    refused_everywhere(folder, r"model\.safetensors cannot be read .*cut short or damaged; fetch it again")


@pytest.mark.parametrize(
    "content", ["", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}', '{"weight_map": 3}']
)
def test_an_index_that_is_damaged(folder: Path, content: str):
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(content)
    refused_everywhere(folder, r"model\.safetensors\.index\.json cannot be read .*fetch it again")


def test_files_that_nothing_says_to_count(folder: Path):
    (folder / SINGLE).rename(folder / "weights.safetensors")
    refused_everywhere(folder, r"has weights\.safetensors, but neither model\.safetensors nor .*name the only file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_alone(folder: Path, name: str):
    (folder / SINGLE).rename(folder / name)
    refused_everywhere(folder, rf"no \.safetensors weights: {name} is a pickle, .* never loaded")
