"""The expected work of a study: its cells, compressions and calibration texts as parts of a forecast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from llmkick.compression.recipe import Dense, Recipe, Recovered, is_trained
from llmkick.compression.recoveries import EoRA, LoRA, Recovery
from llmkick.compression.walk.batches import ERROR_SEQUENCES
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import chosen_source
from llmkick.models.language_model import LanguageModel, ModelInfo
from llmkick.models.transformers_model import TransformersModel
from llmkick.statistics.item_order import EARLY_LOOKS, LOOK_ITEMS
from llmkick.study.cells import Variant
from llmkick.study.expected_stop import UNKNOWN_RISE, StopSettings, expected_rise
from llmkick.study.model_speed import ModelSpeed
from llmkick.study.parts import Part
from llmkick.study.request_tokens import WRITTEN_SHARE, RequestTokens, request_tokens
from llmkick.study.results.noise_floor import HALF_PRECISIONS, NOISE_ITEMS
from llmkick.study.spec.axes import CalibrationSetting, CalibrationText, Windows
from llmkick.tasks.evaluate import BATCH_ITEMS
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, Task

# Seconds for a column of a column-by-column method beside its arithmetic, and for a layer of any method.
COLUMN_SECONDS, LAYER_SECONDS = 2e-5, 2e-3
# The product operations that choosing, rounding, packing and hashing a weight take as long as, measured on two cores.
OPERATIONS_OF_A_WEIGHT = 3000
# Passes that a step of a training takes: forward and backward, of the dense model forward, and a share of the checks.
PASSES_OF_A_STEP = 5
# Operations of an eigendecomposition per cube of its width, which are much slower than those of a product, and products
# with the second moments that a refit takes.
EIGEN_OPERATIONS, ITERATIONS_OF_A_REFIT = 100, 28
# The share of a compression that loading its finished model takes.
LOADING_SHARE = 0.05
# Expected seconds of a compression beside its blocks, and of the first one of a process.
COMPRESSION_SECONDS, FIRST_SECONDS = 0.1, 0.5
# Expected seconds of a comparison, and of all that is computed beside the comparisons at the end.
VERDICT_SECONDS, STATISTICS_SECONDS = 0.015, 0.1
READ_SECONDS = 1e-5  # expected, for a token of a calibration text
# What an item of a batch of half the size takes more, as a share, of a task that writes and of one that only reads.
SMALL_BATCH_WRITES, SMALL_BATCH_READS = 0.4, 0.12
REQUEST_SECONDS = 1.0  # expected, of a request to a server or a judge


def cell_key(variant: Variant, task: str) -> str:
    """The key of the part that fills a cell."""
    return f"{variant} on {task}"


def compression_key(variant: Variant) -> str:
    """The key of the part that makes or loads the model of a variant."""
    return f"model {variant}"


def pass_key(text: CalibrationText) -> str:
    """The key of the pass that compresses all recipes of a calibration text together, whatever number of windows."""
    return f"all models of {_described(text)}"


def calibration_key(text: CalibrationText) -> str:
    """The key of the part that reads or samples a calibration text."""
    return f"calibration {_described(text)}"


def _described(text: CalibrationText) -> str:
    return f"seed {text.seed}, {text.source}, windows of {text.length}"


def noise_key(task: str) -> str:
    """The key of the part that measures the noise floor of a task."""
    return f"noise floor of {task}"


VERDICTS, STATISTICS, JUDGING = "verdicts", "statistics", "judging"


@dataclass(frozen=True, kw_only=True)
class ExpectedWork:
    """The parts of a run, with the numbers for a person: items and tokens, each at most."""

    parts: Sequence[Part]
    items: int
    tokens: int
    stops_early: bool = False
    judgements: int = 0

    def __add__(self, other: ExpectedWork) -> ExpectedWork:
        """The work of both."""
        return ExpectedWork(
            parts=(*self.parts, *other.parts),
            items=self.items + other.items,
            tokens=self.tokens + other.tokens,
            stops_early=self.stops_early or other.stops_early,
            judgements=self.judgements + other.judgements,
        )


NO_WORK = ExpectedWork(parts=(), items=0, tokens=0)


def asking(
    model: LanguageModel,
    tasks: Sequence[Task],
    items: Mapping[str, Sequence[Item]],
    styles: Mapping[str, Prompting],
    variants: Iterable[Variant],
    *,
    speed: ModelSpeed | None,
    stopping: Mapping[str, StopSettings] | None = None,
) -> ExpectedWork:
    """The cells of variants; `stopping` has the tasks whose cells end as soon as their verdict is known."""
    stopping, parts, tokens, every = stopping or {}, list[Part](), 0.0, list(variants)
    counted = {
        task.name: request_tokens(task, items[task.name], styles[task.name], model, in_order=task.name not in stopping)
        for task in tasks
    }
    rises = {
        variant.label: UNKNOWN_RISE if variant.reference else expected_rise(variant.recipe, model.info.parameters)
        for variant in every
    }
    for variant in every:
        for task in tasks:
            count, size = len(items[task.name]), counted[task.name]
            tokens, cost = tokens + count * (size.read + size.written), _item_seconds(size, count, speed)
            small = EARLY_LOOKS * LOOK_ITEMS if task.name in stopping else 0
            parts.append(
                Part(
                    key=cell_key(variant, task.name),
                    pool=("ask", task.name, "dense" if variant.is_dense else "compared"),
                    steps=count,
                    cost=cost,
                    start=small * cost * (SMALL_BATCH_WRITES if size.written else SMALL_BATCH_READS),
                    start_steps=small,
                    stop=stopping.get(task.name),
                    is_reference=task.name in stopping and variant.is_dense,
                    recipe=variant.label,
                    severity=rises[variant.label],
                    model=variant.label if variant.reference else "",
                )
            )
    return ExpectedWork(
        parts=parts, items=sum(int(part.steps) for part in parts), tokens=round(tokens), stops_early=bool(stopping)
    )


def _item_seconds(size: RequestTokens, items: int, speed: ModelSpeed | None) -> float:
    if speed is None:
        return REQUEST_SECONDS * size.requests
    batch = max(1, min(items, BATCH_ITEMS))
    # The answers of a batch grow together, a token a pass.
    writing = WRITTEN_SHARE * size.written * (speed.pass_seconds / batch + speed.token_seconds)
    return size.passed_to_read(batch) * speed.token_seconds + 2 * speed.pass_seconds / batch + writing


def compressing(
    model: TransformersModel,
    variants: Iterable[Variant],
    calibration: CalibrationSetting,
    *,
    speed: ModelSpeed,
) -> ExpectedWork:
    """The compressions of recipes: a step a block. Without propagation, one pass a text compresses all of them.

    `calibration` is the setting of variants that are no level of an axis.
    """
    recipes = [variant for variant in variants if variant.is_recipe]
    if not recipes:
        return NO_WORK
    blocks = decoder_blocks(model.network)
    layers = [(layer.weight.shape[0], layer.weight.shape[1]) for layer in blocks[0].layers] if blocks else []
    settings = {variant: variant.calibration or calibration for variant in recipes}
    costs = {v: block_seconds(v.recipe, layers, len(blocks), settings[v], speed) for v in recipes}
    together: dict[CalibrationText, list[Variant]] = {}
    parts = []
    for variant, cost in costs.items():
        pool: tuple[str, ...] = ("compress", variant.recipe.method)
        if not variant.propagate and not is_trained(variant.recipe):
            together.setdefault(settings[variant].text(variant.seed), []).append(variant)
            pool, cost = ("load",), LOADING_SHARE * cost
        start = COMPRESSION_SECONDS + (FIRST_SECONDS if variant == recipes[0] else 0.0)
        parts.append(Part(key=compression_key(variant), pool=pool, steps=len(blocks), cost=cost, start=start))
    for text, each in together.items():
        # The calibration text passes once for all recipes.
        passes = [block_seconds(Dense(), [], len(blocks), settings[variant], speed) for variant in each]
        cost = sum(costs[variant] for variant in each) - (sum(passes) - max(passes))
        parts.append(Part(key=pass_key(text), pool=("compress", "one pass"), steps=len(blocks), cost=cost))
    return ExpectedWork(parts=parts, items=0, tokens=0)


def block_seconds(
    recipe: Recipe, layers: Sequence[tuple[int, int]], blocks: int, calibration: CalibrationSetting, speed: ModelSpeed
) -> float:
    """The expected seconds of one block: passes of the calibration text, and the method's work on each layer."""
    sequences = calibration.sequences if recipe.needs_calibration else min(ERROR_SEQUENCES, calibration.sequences)
    # Each block runs twice, before and after it is compressed; a sum of second moments costs about one pass more.
    passes = 2 + recipe.needs_hessian
    seconds = passes * (sequences * calibration.length * speed.token_seconds / max(1, blocks))
    for rows, columns in layers:
        seconds += LAYER_SECONDS + OPERATIONS_OF_A_WEIGHT * rows * columns / speed.operations_a_second
        if recipe.needs_hessian:
            operations = 2 * rows * columns**2 + 3 * columns**3
            seconds += columns * COLUMN_SECONDS + operations / speed.operations_a_second
        if isinstance(recipe, Recovered) and not is_trained(recipe):
            seconds += recovery_operations(recipe.recovery, rows, columns) / speed.operations_a_second
    if isinstance(recipe, Recovered) and isinstance(recipe.recovery, LoRA):
        took = PASSES_OF_A_STEP * trained_tokens(recipe.recovery, calibration) * speed.token_seconds
        minutes = recipe.recovery.training.minutes
        seconds += (took if minutes is None else min(took, 60 * minutes)) / max(1, blocks)
    return seconds


def trained_tokens(recovery: LoRA, calibration: CalibrationSetting) -> int:
    """The tokens that the steps of a training read, unless a limit of minutes ends it earlier."""
    training = recovery.training
    tokens = training.steps * min(training.batch, calibration.sequences) * calibration.length
    return tokens if training.tokens is None else min(tokens, training.tokens)


def recovery_operations(recovery: Recovery, rows: int, columns: int) -> float:
    """The floating-point operations of the recovery of one layer, those of an eigendecomposition as if it were fast."""
    if isinstance(recovery, EoRA):
        return EIGEN_OPERATIONS * min(rows, columns) ** 3 + 4.0 * rows * columns**2
    return ITERATIONS_OF_A_REFIT * 2.0 * rows * columns**2


def calibrating(
    wanted: Iterable[Windows], info: ModelInfo, device: torch.device, *, speed: ModelSpeed | None
) -> ExpectedWork:
    """The calibration texts of these windows; a step a token. The largest number of windows of a text has all others.

    The model with this `info` is asked on this `device`.
    """
    parts = []
    for text, calibration in largest_of_texts(wanted).items():
        cost = READ_SECONDS
        if speed is not None and chosen_source(text.source, info, device) == "self":
            cost = speed.token_seconds + speed.pass_seconds / calibration.sequences
        tokens = calibration.sequences * calibration.length
        parts.append(Part(key=calibration_key(text), pool=("calibrate", text.source), steps=tokens, cost=cost))
    return ExpectedWork(parts=parts, items=0, tokens=0)


def largest_of_texts(wanted: Iterable[Windows]) -> dict[CalibrationText, CalibrationSetting]:
    """The setting with the largest number of windows of each text."""
    largest: dict[CalibrationText, CalibrationSetting] = {}
    for setting, seed in wanted:
        text = setting.text(seed)
        if text not in largest or largest[text].sequences < setting.sequences:
            largest[text] = setting
    return largest


def comparing(variants: Sequence[Variant], tasks: int) -> ExpectedWork:
    """The verdicts as the run goes, and the statistics at its end."""
    cells = tasks * sum(not variant.is_dense for variant in variants)
    parts = [
        Part(key=key, pool=(key,), steps=cells, cost=cost)
        for key, cost in (
            (VERDICTS, VERDICT_SECONDS),
            (STATISTICS, VERDICT_SECONDS + STATISTICS_SECONDS / max(1, cells)),
        )
        if cells
    ]
    return ExpectedWork(parts=parts, items=0, tokens=0)


def measuring_noise(
    model: LanguageModel,
    tasks: Sequence[Task],
    items: Mapping[str, Sequence[Item]],
    styles: Mapping[str, Prompting],
    *,
    speed: ModelSpeed | None,
) -> ExpectedWork:
    """The noise floors of choices in half precision: some questions, each in a batch of its own."""
    parts = []
    for task in tasks:
        count = min(NOISE_ITEMS, len(items[task.name]))
        if model.info.dtype in HALF_PRECISIONS and count and items[task.name][0].choices:
            size = request_tokens(task, items[task.name], styles[task.name], model)
            cost = _item_seconds(size, 1, speed)
            parts.append(Part(key=noise_key(task.name), pool=("noise", task.name), steps=count, cost=cost))
    return ExpectedWork(parts=parts, items=0, tokens=0)


def judging(judgements: int) -> ExpectedWork:
    """The questions to a judge, at most."""
    part = Part(key=JUDGING, pool=("judge",), steps=judgements, cost=REQUEST_SECONDS)
    return ExpectedWork(parts=(part,), items=0, tokens=0, judgements=judgements)
