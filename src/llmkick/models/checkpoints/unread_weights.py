"""Weights that are there and are not read: the errors of a folder, or of a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from llmkick.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def only_pickles(place: Path | str, names: list[str]) -> ModelError:
    """The error for a folder or a repository whose weights are pickles."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ModelError(
        f"{place} has no .safetensors weights: {', '.join(names[:3])}{more} is a pickle, which can run any code and is "
        "never loaded. If you trust it, convert it once: AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained("
        "FOLDER) and the same with AutoTokenizer, both of transformers; then give the folder"
    )


def uncounted(place: Path | str, names: list[str]) -> ModelError:
    """The error for a folder or a repository that has files of weights, none of which is known to count."""
    return ModelError(
        f"{place} has {', '.join(names[:3])}, but neither {SINGLE} nor {INDEX} that says which files count: "
        f"name the only file {SINGLE}, or fetch the index"
    )
