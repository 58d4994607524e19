"""The keys of a study: hashes of all inputs that determine the weights of its variants and the cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from llmkick.compression.walk.batches import ERROR_SEQUENCES
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compression_key import artifact_key
from llmkick.models.language_model import LanguageModel
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.cells import Cell, Variant, cells_of, digest_of, variants_of
from llmkick.study.running.early_stopping import StoppingRule
from llmkick.study.running.external_models import ExternalModels, answers_key
from llmkick.study.spec.axes import CalibrationSetting, CalibrationText, Windows, calibration_settings
from llmkick.study.spec.study import Study
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class StudyKeys:
    """All inputs of the run keys of a study.

    calibrations: the calibration windows by setting and seed. rules: the stopping rules by task, for
    `stop = "decided"`.
    """

    study: Study
    model: LanguageModel
    tasks: Sequence[Task]
    external_models: ExternalModels
    prompting: Prompting
    calibrations: Mapping[Windows, Calibration]
    rules: Mapping[str, StoppingRule] = field(default_factory=dict)

    @cached_property
    def calibrates(self) -> bool:
        """Whether a recipe of the study chooses its weights by calibration text."""
        return any(level.recipe.needs_calibration for level in self.study.recipe_levels())

    def calibration_of(self, variant: Variant) -> Calibration | None:
        """Return the calibration windows of a variant, or None for the dense model and external models.

        A method without calibration measures its output error on the windows of the study's first setting and seed.
        """
        return self.calibrations[self.windows_of(variant)] if variant.is_recipe else None

    def windows_of(self, variant: Variant) -> Windows:
        """Return the calibration setting and the seed of the windows of a variant."""
        setting = variant.calibration or calibration_settings(self.study.calibration)[0]
        if not self.calibrates:
            setting = _for_errors(setting)
        return setting, self.study.seeds[0] if variant.seed is None else variant.seed

    def text_of(self, variant: Variant) -> CalibrationText:
        """Return what the variants have in common whose windows are the beginning of one text."""
        return self.windows_of(variant)[0].text(variant.seed)

    def weights_key(self, variant: Variant) -> dict[str, object]:
        """Return all inputs that determine the weights of a variant."""
        if variant.reference:
            return self._external_key(variant)
        if not isinstance(self.model, TransformersModel):
            return answers_key(self.model)
        calibration = self.calibration_of(variant)
        return artifact_key(
            self.model.info, self.model.device, variant.recipe, calibration, propagate=variant.propagate
        )

    def _external_key(self, variant: Variant) -> dict[str, object]:
        """Return the key of an external model; the label tells apart models that would give the same answers.

        Without the label, the records of two equal models would be the records of one.
        """
        key = self.external_models.weights_key(variant)
        earlier = itertools.takewhile(lambda other: other.label != variant.label, variants_of(self.study))
        earlier_keys = [self.external_models.weights_key(other) for other in earlier if other.reference]
        if not isinstance(self.model, TransformersModel):
            earlier_keys.append(answers_key(self.model))
        return {**key, "label": variant.label} if key in earlier_keys else key

    def report_key(self, variant: Variant) -> str:
        """Return the journal key of the digest and the report of a variant."""
        return digest_of([self.weights_key(variant), variant.seed])

    def cells(self, variant: Variant) -> list[Cell]:
        """Return the cells of a variant, one per task."""
        info = self.model.info
        return cells_of(
            variant,
            self.tasks,
            weights=self.weights_key(variant),
            prompting=self.prompting,
            reference={"digest": info.digest, "dtype": info.dtype},
            batches={name: self._batch_key(variant, rule) for name, rule in self.rules.items()},
            conversations=self._thinking_key(variant),
        )

    def _batch_key(self, variant: Variant, rule: StoppingRule) -> dict[str, object]:
        """Return the inputs that determine the batches of a cell; prompts of an external model fit its own context."""
        return {**rule.key, "fitted": "own context"} if variant.reference else rule.key

    def _thinking_key(self, variant: Variant) -> dict[str, str]:
        """Return whether the model thinks, where that changes its prompts, or those of the model that reads answers."""
        dense = self.model if isinstance(self.model, TransformersModel) else None
        if not variant.reference:
            thinking = None if dense is None else dense.thinking_in_prompts
            return {} if thinking is None else {"thinking": thinking}
        other = self.external_models.thinking_in_prompts(variant)
        reading = None if dense is None else dense.with_thinking("off").thinking_in_prompts
        given = {"thinking": other, "reference_thinking": reading}
        return {name: value for name, value in given.items() if value is not None}


def _for_errors(setting: CalibrationSetting) -> CalibrationSetting:
    """Return the windows with which output errors are measured if nothing else needs any.

    They are the few that are read, and nothing is sampled for them unless the user asks for sampled text.
    """
    source = "pocket" if setting.source == "auto" else setting.source
    return replace(setting, source=source, sequences=min(setting.sequences, ERROR_SEQUENCES))
