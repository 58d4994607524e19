"""The forecast of one compression into a folder, of a model that need not be in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from llmkick.compression.recipe import Recipe
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.study.advice import WORTH_SHARE, Advice, advice_on_sequences, advice_on_source, seconds_of
from llmkick.study.announcement import announce
from llmkick.study.cells import Variant
from llmkick.study.expected_work import NO_WORK, calibrating, calibration_key, compressing, compression_key
from llmkick.study.forecast import Forecast
from llmkick.study.model_speed import expected_speed, machine_speed
from llmkick.study.progress import Observer, show_plan
from llmkick.study.spec.axes import CalibrationSetting


@dataclass(kw_only=True)
class CompressionProgress:
    """The observer of a compression that shows how long it will take.

    Its stages are known by the first word of their titles, which a reader sees too.
    """

    observer: Observer
    recipe: Recipe
    source: str
    sequences: int
    length: int
    _forecast: Forecast = field(default_factory=lambda: Forecast(()))
    _part: str = ""
    _done: int = 0
    _since: float = 0.0

    def plan(self, meta_model: MetaModel) -> None:
        """Announce the compression of a model whose structure is known; sizes out of range are refused elsewhere."""
        if self.sequences < 1 or self.length < 2:
            return
        dtype = next(meta_model.model.network.parameters()).dtype
        speed = expected_speed(meta_model.info.parameters, machine_speed(dtype, meta_model.device), dtype)
        work, advice = NO_WORK, list[Advice]()
        setting, sampling = self._setting, 0.0
        if self.recipe.needs_calibration:
            text = calibrating([(setting, 0)], meta_model.info, meta_model.device, speed=speed)
            work = replace(text, tokens=setting.sequences * setting.length)
            sampling = seconds_of(work.parts)
            advice = advice_on_sequences(setting.sequences)
        work += compressing(meta_model.model, [self._variant], setting, speed=speed)
        share = sampling / (seconds_of(work.parts) or 1.0)
        if share >= WORTH_SHARE:
            advice.insert(0, advice_on_source(share))
        self._forecast = Forecast(work.parts)
        show_plan(self.observer, self._forecast, announce(work, self._forecast, advice=advice))

    @property
    def _variant(self) -> Variant:
        return Variant(recipe=self.recipe)

    @property
    def _setting(self) -> CalibrationSetting:
        return CalibrationSetting(source=self.source, sequences=self.sequences, length=self.length)

    def stage(self, title: str, total: int) -> None:
        """A stage of `total` steps begins."""
        self._count(self._done)
        self._forecast.end(self._part)
        parts = {"calibration": calibration_key(self._setting.text(0)), "compressing": compression_key(self._variant)}
        self._part = parts.get(title.partition(" ")[0], "")
        self._done, self._since = 0, time.monotonic()
        if self._part:
            self._forecast.begin(self._part)
        self.observer.stage(title, total)

    def advance(self, done: int) -> None:
        """This many steps of the stage are done."""
        self._count(done)
        self.observer.advance(done)

    def _count(self, done: int) -> None:
        now = time.monotonic()
        if self._part:
            self._forecast.work(self._part, done - self._done, now - self._since)
        self._done, self._since = done, now
