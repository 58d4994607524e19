"""The worker process on a cluster machine, with the dense model and one compressed model at a time.

A worker answers requests. It writes only to the cache of its machine and to the shared store of compressed models.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.report import CompressionReport
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ModelInfo,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from llmkick.study.cells import Variant
from llmkick.study.progress import Silent
from llmkick.study.results.records import Environment
from llmkick.study.running.compressor import StudyCompressor
from llmkick.study.running.environment import environment
from llmkick.study.running.executor import store_at, windows
from llmkick.study.running.packages import installed_versions
from llmkick.study.spec.axes import CalibrationSetting
from llmkick.study.spec.study import Study

Which = Literal["dense", "compressed"]
Requests = Sequence[ScoreRequest] | Sequence[GenerateRequest]
Answers = Sequence[ContinuationScore | Generation | Unanswered]


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """The description of a worker after it has loaded the dense model. machine: the name of its host."""

    machine: str
    info: ModelInfo
    device: str
    process: int
    environment: Environment


class Worker:
    """The remote end of `WorkerHandle`; Ray creates and calls it."""

    def __init__(self, *, threads: int) -> None:
        # The last bits of compressed weights depend on how sums are split between threads.
        torch.set_num_threads(threads)
        self._warnings: list[str] = []
        self._told: list[str] = []  # notes about prompts, which are passed on once

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Return the versions of the packages that can change the answers."""
        return installed_versions(packages)

    def load(self, study: Study, *, dtype: str, device: str, artifacts: str | None) -> WorkerInfo:
        """Load the dense model; raises the errors of `load_model`."""
        self._study = study
        self._dense = load_model(study.model, dtype=dtype, device=device).with_thinking(study.thinking)
        self._compressor = StudyCompressor(
            model=self._dense,
            propagate=study.propagate,
            allow_partial=study.allow_partial,
            observer=Silent(),
            warnings=self._warnings,
            store=store_at(artifacts),
        )
        self._compressed: TransformersModel | None = None
        return WorkerInfo(
            machine=platform.node(),
            info=self._dense.info,
            device=str(self._dense.device),
            process=os.getpid(),
            environment=environment(self._dense),
        )

    def calibrate(self, setting: CalibrationSetting, seed: int) -> Calibration:
        """Return the calibration windows of a seed; for the source `self` the dense model samples them."""
        return windows(self._dense, setting, seed, Silent())

    def dense_digest(self) -> str:
        """Return the digest of the dense weights."""
        return weights_digest(self._dense.network)

    def compress(
        self, variant: Variant, calibration: Calibration | None, expected: str | None
    ) -> tuple[CompressionReport, bool, list[str]]:
        """Load the model of a variant from the cache or the store, or compress it.

        Return its report, whether other workers can load it too, and warnings.
        """
        self._compressed = None  # frees the previous model before the next model needs memory
        self._compressed, report = self._compressor.compressed(
            variant.recipe, variant.seed, calibration, expected=expected
        )
        is_kept = self._compressor.is_kept(variant.recipe, calibration)
        return report, is_kept, self._taken(self._warnings)

    def answer(self, which: Which, kind: str, requests: Requests) -> tuple[Answers, list[str]]:
        """Return the answers of the dense or the compressed model, one per request, and notes about them."""
        model = self._dense if which == "dense" else self._compressed
        assert model is not None, "nothing is compressed"
        answers: Answers
        if kind == "logprobs":
            answers = model.logprobs([request for request in requests if isinstance(request, ScoreRequest)])
        else:
            answers = model.generate([request for request in requests if isinstance(request, GenerateRequest)])
        new = [note for note in model.engine.encoder.notes if note not in self._told]
        self._told += new
        return answers, [*self._taken(model.engine.budget.notes), *new]

    def _taken(self, lines: list[str]) -> list[str]:
        taken = list(lines)
        lines.clear()
        return taken
