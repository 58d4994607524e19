"""What a study found: computed from the journal's records alone, and written as results.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd

from llmkick.errors import DataError
from llmkick.files import write_text_atomically
from llmkick.statistics import (
    Comparison,
    ItemOrder,
    PerplexityComparison,
    compare,
    compare_bits_per_byte,
    compare_perplexity,
    compare_stopped,
    overall_verdict,
)
from llmkick.study.spec.model_names import label_others
from llmkick.tasks.registry import full_key
from llmkick.tasks.task import LARGEST_NATS, Record, Task, summary_value

RESULTS_FILE = "results.json"
RESULTS_SCHEMA = 1
# Metrics of the control: lower is better, and no verdict.
CONTROL_METRICS = ("perplexity", "bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """Everything in results.json, and the folder it lies in."""

    folder: Path
    study: Mapping[str, Any]
    environment: Mapping[str, Any]
    timing: Mapping[str, Any]
    model: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]]
    overall: Sequence[Mapping[str, Any]]
    compression: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]
    noise: Sequence[Mapping[str, Any]] = field(default_factory=list)
    # Size and kind of every model, where models made elsewhere are among them.
    models: Sequence[Mapping[str, Any]] = field(default_factory=list)
    # Who judged the generated answers, at what cost, and how far that judge can be believed; None without one.
    judge: Mapping[str, Any] | None = None
    families: Sequence[Mapping[str, Any]] = field(default_factory=list)
    agreement: Sequence[Mapping[str, Any]] = field(default_factory=list)
    # Cells that were given up, and why; their records are in the journal only.
    failures: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """What is compared with the dense model, in the order of the tables: recipes, then other models."""
        named = [str(model["label"]) for model in self.models if model["label"] != "dense"]
        if not self.models:  # a run that is not finished
            named = list(label_others(self.study.get("others", ()), taken=()))
        return list(dict.fromkeys([*self.study["recipes"], *named]))

    def write(self) -> Path:
        """Write results.json whole or not at all. Raises DataError when it cannot be written."""
        content = {"schema": RESULTS_SCHEMA, **{k: v for k, v in vars(self).items() if k != "folder"}}
        path = self.folder / RESULTS_FILE
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            write_text_atomically(path, text)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error}. Every record is safe in the journal: "
                "mend the cause (disk space, permissions) and run the same command again"
            ) from error
        return path


def read_results(folder: Path) -> StudyResult:
    """Read a run folder's results.json. Raises DataError when it is missing, damaged or of another schema."""
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise DataError(f"{folder} holds no {RESULTS_FILE}: run `kick run` to its end first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema != RESULTS_SCHEMA:
            raise DataError(f"{path} has schema {schema}; this version reads {RESULTS_SCHEMA}")
        return StudyResult(folder=folder, **content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def describe_task(task: Task, prompting: str) -> dict[str, Any]:
    """A task as results.json lists it."""
    return {
        **full_key(task),
        "metric": task.metric,
        "chance_level": task.chance_level,
        "setting": task.setting,
        "prompting": task.prompting or prompting,
    }


def cell_results(records: pd.DataFrame, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model × recipe × seed × task: the metric's value over its scored items."""
    metric = {task["name"]: task["metric"] for task in tasks}
    rows = []
    for key, cell in records.groupby(["model", "recipe", "seed", "task"], dropna=False):
        model, recipe, seed, task = cast(tuple[str, str, float, str], key)
        scored = cell["score"].dropna()
        reasons = cell.loc[cell["score"].isna(), "unscored_reason"].value_counts().sort_index()
        rows.append(
            {
                "model": model,
                "recipe": recipe,
                "seed": None if pd.isna(seed) else int(seed),
                "task": task,
                "metric": metric[task],
                "value": summary_value(metric[task], _as_records(cell)),
                "n": len(scored),
                "unscored": len(cell) - len(scored),
                "unscored_reasons": {str(reason): int(count) for reason, count in reasons.items()},
                "truncated": int(cell["truncated"].sum()),
                "tokens": int(cell["tokens"].sum()),
                "details": _mean_details(cell),
                **_groups(cell),
            }
        )
    return rows


def _as_records(cell: pd.DataFrame) -> list[Record]:
    return [
        Record(item_id=str(item), cluster="", response="", score=_score(score), tokens=int(tokens), details=details)
        for item, score, tokens, details in zip(
            cell["item_id"], cell["score"], cell["tokens"], cell["details"], strict=True
        )
    ]


def _groups(cell: pd.DataFrame) -> dict[str, Any]:
    """The scored records by category or length of story: how many, their mean score, and the means beside it."""
    scored = cell[cell["score"].notna()]
    for name in ("category", "bucket"):
        if len(scored) and all(name in details for details in scored["details"]):
            by = scored.groupby([details[name] for details in scored["details"]], sort=True)
            return {
                "groups": {
                    str(group): {"n": len(own), "value": float(own["score"].mean()), **_mean_details(own)}
                    for group, own in by
                }
            }
    return {}


def _mean_details(cell: pd.DataFrame) -> dict[str, float]:
    """Means of the plain numbers beside the score (exact match, F1, …)."""
    details = pd.DataFrame(list(cell.loc[cell["score"].notna(), "details"]))
    numbers = details.select_dtypes("number")
    return {str(name): float(numbers[name].mean()) for name in numbers.columns}


def compare_all(
    records: pd.DataFrame,
    tasks: Sequence[Mapping[str, Any]],
    recipes: Sequence[str],
    *,
    margin: float,
    alpha: float,
    orders: Mapping[str, ItemOrder] | None = None,
    same_weights: Callable[[str], bool] | None = None,
) -> list[Comparison | PerplexityComparison]:
    """Every recipe against the dense model on every task, paired by item.

    `orders` are those of the tasks that stop when decided. `same_weights` says whether a recipe left the weights as
    they were; it is asked where all scores are identical.

    A perplexity over other windows than the dense model's is no comparison: where a window has no score there
    is none, and `results` counts what is unscored.
    """
    found: list[Comparison | PerplexityComparison] = []
    for task in tasks:
        of_task = records[records["task"] == task["name"]]
        dense = of_task[of_task["recipe"] == "dense"].set_index("item_id")
        for recipe in recipes:
            cells = of_task[of_task["recipe"] == recipe]
            if not cells.empty and not dense.empty and is_comparable(task, dense, cells):
                found.append(
                    compare_cell(
                        task,
                        recipe,
                        dense,
                        cells,
                        order=(orders or {}).get(task["name"]),
                        same_weights=same_weights,
                        margin=margin,
                        alpha=alpha,
                    )
                )
    return found


def is_comparable(task: Mapping[str, Any], dense: pd.DataFrame, cells: pd.DataFrame) -> bool:
    """Whether there is a comparison: a perplexity needs a finite loss on every window."""
    if task["metric"] not in CONTROL_METRICS:
        return True
    scores = pd.concat([dense["score"], cells["score"]])
    return bool(scores.notna().all()) and float(scores.max()) < LARGEST_NATS


def compare_cell(
    task: Mapping[str, Any],
    recipe: str,
    dense: pd.DataFrame,
    cells: pd.DataFrame,
    *,
    order: ItemOrder | None,
    same_weights: Callable[[str], bool] | None,
    margin: float,
    alpha: float,
) -> Comparison | PerplexityComparison:
    """One recipe on one task: `cells` are its records with every seed, `dense` those of the dense model by item."""
    compressed = {
        _seed_name(seed): _scores(cell.set_index("item_id")) for seed, cell in cells.groupby("seed", dropna=False)
    }
    seeds: tuple[str, ...] = tuple(seed for seed in compressed if seed != "no seed")
    only = next(iter(compressed.values()))
    common: dict[str, Any] = {
        "margin": margin,
        "alpha": alpha,
        "task": task["name"],
        "recipe": recipe,
        "seeds": [int(seed) for seed in seeds],
    }
    scores: Any = compressed if len(compressed) > 1 else only
    if task["metric"] == "perplexity":
        tokens = {item: float(count) for item, count in dense["tokens"].items()}
        return compare_perplexity(_scores(dense), scores, tokens, **common)  # type: ignore[arg-type]
    if task["metric"] == "bits_per_byte":
        sizes = {item: float(details["bytes"]) for item, details in dense["details"].items()}
        return compare_bits_per_byte(_scores(dense), scores, sizes, **common)  # type: ignore[arg-type]
    dense_scores = _scores(dense)
    common["chance"] = task["chance_level"]
    if same_weights is not None:
        alike = all(
            row.get(item, score) == score for row in compressed.values() for item, score in dense_scores.items()
        )
        common["same_model"] = alike and same_weights(recipe)
    if order is not None:
        return compare_stopped(order, dense_scores, only, **common)
    return compare(dense_scores, scores, clusters=dict(dense["cluster"]), **common)


def _seed_name(seed: Any) -> str:
    return "no seed" if pd.isna(seed) else str(int(seed))


def _scores(cell: pd.DataFrame) -> dict[str, float | None]:
    return {str(item): _score(score) for item, score in cell["score"].items()}


def _score(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def overall_by_recipe(comparisons: Sequence[Comparison | PerplexityComparison]) -> list[dict[str, Any]]:
    """The verdict over all tasks of each recipe (intersection-union); perplexity has no say in it."""
    by_recipe: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        if isinstance(comparison, Comparison):
            by_recipe.setdefault(comparison.recipe, []).append(comparison)
    return [{"recipe": recipe, "verdict": overall_verdict(found)} for recipe, found in by_recipe.items()]


def as_json(value: Any) -> dict[str, Any]:
    """A frozen record as plain JSON types; NaN and Inf, which JSON does not have, are refused on writing."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value)))
    return plain
