"""The files of a model on the hub: those that are read are fetched, and no others."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from llmkick.models.checkpoints.unread_weights import INDEX, PICKLES, only_pickles, uncounted

TEMPLATES = "*.jinja"
SMALL_FILES = ["*.json", "tokenizer*", TEMPLATES, "*.model", "*.txt"]
# What no answer depends on, but belongs to a model: a compressed one is given away with it.
ABOUT_FILES = ["*.md", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "COPYING*", "*.tiktoken"]
MODEL_FILES = ["*.safetensors", *SMALL_FILES, *ABOUT_FILES]
# `*` matches "/", too. In the folders of a repository are the model in other forms (`original` of gpt-oss) and states
# of its training. Nothing of them is read but the further templates in additional_chat_templates.
FILES_OF_FOLDERS = [f"*/{pattern}" for pattern in MODEL_FILES if pattern != TEMPLATES]
# The weights in the form of Mistral's own library, mostly beside those that transformers reads.
CONSOLIDATED = "consolidated*.safetensors"


def fetch_model(repository: str, revision: str | None) -> Path:
    """The folder of a model, with its weights. Raises the errors of the hub."""
    folder = _fetched(repository, revision, MODEL_FILES, but=[*FILES_OF_FOLDERS, CONSOLIDATED])
    if any('"consolidated' in _text(folder / name) for name in ("config.json", INDEX)):
        _fetched(repository, folder.name, [CONSOLIDATED], but=FILES_OF_FOLDERS)
    return folder


def fetch_small_files(repository: str, revision: str | None) -> Path:
    """The folder of a model, perhaps without its weights. Raises the errors of the hub."""
    return _fetched(repository, revision, SMALL_FILES, but=FILES_OF_FOLDERS)


def refuse_unread(repository: str, folder: Path) -> None:
    """Raise ModelError where a repository has no weights but those that `fetch_model` leaves out."""
    if not (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(repository, revision=folder.name)
    except Exception:  # noqa: BLE001 - of any HTTP library; offline, the error of the folder without weights will do
        return
    of_the_model = [name for name in sorted(names) if "/" not in name]
    if left_out := [name for name in of_the_model if fnmatch.fnmatchcase(name, CONSOLIDATED)]:
        raise uncounted(repository, left_out)
    if pickles := [name for name in of_the_model if any(fnmatch.fnmatchcase(name, form) for form in PICKLES)]:
        raise only_pickles(repository, pickles)


def _fetched(repository: str, revision: str | None, patterns: list[str], *, but: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=but))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
