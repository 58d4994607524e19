"""The calibration windows of a study, by setting and seed: from its journal, or read or sampled once for all counts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Protocol

from llmkick.compression.walk.calibration import Calibration, chosen_source, refuse_small_corpus
from llmkick.compression.walk.pocket_text import pocket_text
from llmkick.errors import ConfigError
from llmkick.models.language_model import LanguageModel
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.cells import digest_of, variants_of
from llmkick.study.expected_work import calibration_key
from llmkick.study.forecast import Forecast
from llmkick.study.journal.journal import Journal
from llmkick.study.progress import Observer, StepObserver
from llmkick.study.running.keys import StudyKeys
from llmkick.study.spec.axes import CalibrationSetting, Windows
from llmkick.tasks.renaming import registry_name
from llmkick.tasks.task import Task

# Tasks whose pocket data are the passages and stories of the calibration source "pocket".
_SAME_TEXTS = ("perplexity", "context_qa:closed", "context_qa:open", "summarization")


class WindowSource(Protocol):
    """Provides calibration windows."""

    def calibrate(self, setting: CalibrationSetting, seed: int, observer: Observer) -> Calibration:
        """Return the calibration windows of a setting and a seed."""
        ...


def windows_wanted(keys: StudyKeys, seeds: Sequence[int]) -> list[Windows]:
    """Return the setting and seed of all windows that a recipe of the study needs, and those of the other `seeds`."""
    used = [keys.windows_of(variant) for variant in variants_of(keys.study) if variant.is_recipe]
    settings = dict.fromkeys(setting for setting, _ in used)
    return list(dict.fromkeys([*used, *((setting, seed) for seed in seeds for setting in settings)]))


def recorded_windows(wanted: Iterable[Windows], model: LanguageModel, journal: Journal) -> dict[Windows, Calibration]:
    """Return those windows that the journal has, by setting and seed."""
    recorded = {(setting, seed): journal.calibration(_key(model, setting, seed)) for setting, seed in wanted}
    return {windows: calibration for windows, calibration in recorded.items() if calibration is not None}


def calibration_windows(
    wanted: Iterable[Windows],
    keys: StudyKeys,
    *,
    journal: Journal,
    observer: Observer,
    source: WindowSource,
    forecast: Forecast,
) -> dict[Windows, Calibration]:
    """Return the windows by setting and seed: those that `keys` has already, and the others read or sampled.

    A smaller number of windows is the beginning of a larger one, so the largest number is read or sampled for all.
    Raises ConfigError if two settings give the same windows, DataError if a text is too short for several numbers.
    """
    wanted, model = list(wanted), keys.model
    counts = {setting.sequences for setting, _ in wanted}
    calibrations = {windows: keys.calibrations[windows] for windows in wanted if windows in keys.calibrations}
    missing = [windows for windows in wanted if windows not in calibrations]
    for setting, seed in sorted(missing, key=lambda windows: -windows[0].sequences):
        larger = [windows for windows in calibrations if _begins_with(windows, (setting, seed))]
        if larger:
            whole = calibrations[larger[0]]
            calibration = replace(whole, tokens=whole.tokens[: setting.sequences])
        else:
            if len(counts) > 1:
                _refuse_small(setting, model)
            observer.stage(f"calibration text ({setting.source}, seed {seed})", setting.sequences * setting.length)
            started = time.perf_counter()
            with forecast.working(calibration_key(setting.text(seed))) as advance:
                told = StepObserver(observer=observer, on_step=advance)
                calibration = source.calibrate(setting, seed, told)
            journal.add_seconds("calibrate", f"{setting.source}, seed {seed}", time.perf_counter() - started)
        journal.add_calibration(_key(model, setting, seed), calibration)
        calibrations[setting, seed] = calibration
    _refuse_equal(calibrations)
    return calibrations


def _refuse_small(setting: CalibrationSetting, model: LanguageModel) -> None:
    """Refuse an axis of counts whose windows would repeat the text: they would not be of so many windows."""
    assert isinstance(model, TransformersModel), "the compressor refuses any other"
    if chosen_source(setting.source, model.info, model.device) != "self":
        size = {"sequences": setting.sequences, "length": setting.length}
        refuse_small_corpus(setting.source, model.tokenize, **size)


def _key(model: LanguageModel, setting: CalibrationSetting, seed: int) -> str:
    return digest_of([model.info.digest, asdict(setting), seed])


def _begins_with(larger: Windows, smaller: Windows) -> bool:
    (one, seed), (other, other_seed) = larger, smaller
    return one.text(seed) == other.text(other_seed) and one.sequences >= other.sequences


def _refuse_equal(calibrations: Mapping[Windows, Calibration]) -> None:
    """Refuse two settings with the same windows: they would be one model under two labels."""
    seen: dict[tuple[str, int], CalibrationSetting] = {}
    for (setting, seed), calibration in calibrations.items():
        earlier = seen.setdefault((calibration.digest, seed), setting)
        if earlier != setting:
            both = f"{earlier.source} and {setting.source}"
            raise ConfigError(f"calibration.source: {both} give the same windows; leave one out")


def pocket_notes(calibrations: Mapping[Windows, Calibration], model: LanguageModel, tasks: Sequence[Task]) -> list[str]:
    """Return what a reader must know of calibration on the pocket texts: that they were used, and what that means."""
    used = [(setting, found) for (setting, _), found in calibrations.items() if found.source == "pocket"]
    if not used or not isinstance(model, TransformersModel):
        return []
    auto = any(setting.source == "auto" for setting, _ in used)
    why = ' (source = "auto": this model would sample its own text slowly here)' if auto else ""
    notes = [f"calibrated on the pocket texts of this package{why}"]
    tokens = len(model.tokenize(pocket_text()))
    wanted = max(setting.sequences * setting.length for setting, _ in used)
    if wanted > tokens:
        notes.append(f"the pocket texts have {tokens:,} tokens and the windows {wanted:,}: windows overlap")
    same = [task.name for task in tasks if task.key.get("source") == "pocket" and registry_name(task) in _SAME_TEXTS]
    if same:
        notes.append(f"{', '.join(same)}: asked about the texts that calibrated, which flatters calibrated recipes")
    return notes
