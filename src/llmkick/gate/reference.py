"""The reference of a gate: its identity, the file of its answers, and the model behind them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from llmkick.errors import ConfigError
from llmkick.files import cache_folder, named_path
from llmkick.gate.answer_file import PART, SCHEMA, AnswerFile
from llmkick.gate.policy import GatePolicy, is_stored
from llmkick.gate.recorded_model import RecordedModel
from llmkick.models.checkpoints.loading import load_located
from llmkick.models.checkpoints.references import locate
from llmkick.models.engine.version import ENGINE_VERSION
from llmkick.models.language_model import LanguageModel
from llmkick.models.plugin_models import plugin_of
from llmkick.models.precision import resolve_device, resolve_dtype
from llmkick.models.server.address import parse_address
from llmkick.models.server.open_model import open_model
from llmkick.models.server.settings import ServerSettings
from llmkick.models.server_scheme import is_server
from llmkick.study.cells import digest_of

# Packages that compute the answers of a local model: the candidate is asked with the same versions.
COMPUTING = ("torch", "transformers")


def recorded_reference(policy: GatePolicy, *, refresh: bool = False, target: Path | None = None) -> RecordedModel:
    """Return the reference of a policy with the answers that are known already; no weights are loaded.

    The answers are those of a file that the policy names, or those in the cache under the identity of the model.
    `refresh` forgets the answers. They go to `target` instead of the cache if it is given.
    Raises ModelError for a missing model, DataError for a damaged file and ConfigError for one of other settings.
    """
    if is_stored(policy.reference):
        return _stored(policy)
    identity, opened = _identified(policy)
    path = target or cache_folder(PART) / f"{digest_of([SCHEMA, identity])[:32]}.jsonl"
    file = AnswerFile.read(path, strict=False)
    differs = file.header is not None and file.header.identity != identity
    if target is not None and differs and not refresh:
        raise ConfigError(
            f"{path} holds the answers of another model, or of other versions or settings: give another file, or "
            "--refresh-reference to replace them"
        )
    if file.damaged:
        file.mend()
    if refresh or differs:
        path.unlink(missing_ok=True)
        file = AnswerFile(path=path)
    # A server may answer the next time, and a plug-in may be anything.
    return RecordedModel(file=file, identity=identity, open_model=opened, keeps_unanswered="device" in identity)


def _stored(policy: GatePolicy) -> RecordedModel:
    file = AnswerFile.read(named_path(policy.reference), strict=True)
    assert file.header is not None, "a file that was read strictly has a header"
    identity = file.header.identity
    for name, expected in (("engine", ENGINE_VERSION), ("thinking", policy.thinking)):
        if identity.get(name, expected) != expected:
            raise ConfigError(
                f"{policy.reference} was stored with {name} = {identity[name]}, and this gate has {expected}: "
                "store the answers anew with `kick gate --store-reference FILE`"
            )
    return RecordedModel(file=file, identity=identity, open_model=None)


def _identified(policy: GatePolicy) -> tuple[dict[str, JsonValue], Callable[[], LanguageModel]]:
    """Return what identifies the answers of a model besides the questions, and a function that opens the model."""
    reference, dtype, device = policy.reference, policy.dtype, policy.device
    settings = ServerSettings(**policy.server.model_dump(), thinking=policy.thinking)
    if is_server(reference):
        # Nobody can see the weights of a server, so its address and its name for the model stand for them.
        address = parse_address(reference)
        identity: dict[str, JsonValue] = {"server": address.url, "model": address.name, "thinking": policy.thinking}
        return identity, lambda: open_model(reference, dtype=dtype, device=device, server=settings)
    if plugin_of(reference) is not None:
        model = open_model(reference, dtype=dtype, device=device, server=settings)
        return {"reference": reference, "weights": model.info.digest, "dtype": model.info.dtype}, lambda: model
    checkpoint, place = locate(reference), resolve_device(device)
    identity = {
        "weights": checkpoint.digest,
        "dtype": str(resolve_dtype(dtype, place)).removeprefix("torch."),
        "device": place.type,
        "thinking": policy.thinking,
        "engine": ENGINE_VERSION,
        **{package: importlib.metadata.version(package) for package in COMPUTING},
    }
    return identity, lambda: load_located(checkpoint, dtype=dtype, device=device).with_thinking(policy.thinking)
