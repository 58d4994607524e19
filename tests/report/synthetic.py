"""Run folders without a model: invented answers through the real journal, comparisons and results file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmkick.compression.recoveries import recovery_of
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.journal.journal import Journal
from llmkick.study.journal.prompts import PromptPart, packed_prompt
from llmkick.study.results.comparisons import cell_results, compare_all, overall_by_recipe
from llmkick.study.results.overlap import OverlapRow
from llmkick.study.results.records import JournalledCompression, ResultRow, TaskSummary
from llmkick.study.results.results import StudyResult
from llmkick.study.results.returned import recovered_models, returned
from llmkick.tasks.task import Item, Record

RECIPES = ("magnitude@0.25", "wanda@0.1", "wanda@0.25", "wanda@2:4", "rtn@8b", "gptq@3b-g64")
TASKS = ("factoid_qa", "multiple_choice:letter", "context_qa:open", "perplexity")
CALIBRATED = ("wanda", "sparsegpt", "gptq")
DENSE_SCORE = {
    "factoid_qa": 0.8,
    "multiple_choice:letter": 0.26,
    "multiple_choice:cloze": 0.6,
    "context_qa:closed": 0.45,
    "context_qa:open": 0.85,
    "summarization": 0.6,
    "instruction": 0.7,
}
# How much of the knowledge a recipe loses; whatever is not listed loses nothing.
SEVERITY = {
    "magnitude@0.1": 0.08, "magnitude@0.25": 0.35, "magnitude@0.5": 0.95, "magnitude@2:4": 0.97,
    "wanda@0.1": 0.01, "wanda@0.25": 0.22, "wanda@0.5": 0.6, "wanda@2:4": 0.8, "wanda@4:8": 0.7,
    "sparsegpt@0.1": 0.0, "sparsegpt@0.25": 0.15, "sparsegpt@0.5": 0.45, "sparsegpt@2:4": 0.6,
    "rtn@8b": 0.0, "rtn@4b-g64": 0.2, "rtn@3b-g64": 0.7,
    "gptq@8b": 0.0, "gptq@4b-g64": 0.1, "gptq@3b-g64": 0.4, "wanda@0.5+gptq@4b": 0.65,
    "wanda@0.25+lora": 0.05, "wanda@2:4+lora": 0.35, "wanda@2:4+reconstruct": 0.78, "gptq@3b-g64+eora-r8": 0.25,
    "magnitude@0.25+lora": 0.2, "rtn@8b+eora-r8": 0.0,
}  # fmt: skip
DENSE_WEIGHTS = "e" * 64  # their digest
LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
HOSTILE = (
    "<script>document.title = 'attacked'</script>",
    "</script><img src=x onerror=\"document.title='attacked'\">",
    "{{7*7}} {% raw %} ${7*7}",
    "الجواب هو \u202eالقاهرة\u202c <b>bold</b> \u2028 & &amp; <!-- -->",
)


def build_run(
    folder: Path,
    *,
    recipes: Sequence[str] = RECIPES,
    tasks: Sequence[str] = TASKS,
    items: int = 60,
    seeds: Sequence[int] = (0,),
    blocks: int = 2,
    hostile: bool = False,
    unscored: Mapping[str, int] | None = None,
    source_precision: str = "Q4_1",
    questions: Mapping[str, Sequence[Item]] | None = None,
    flips: float = 0.0,
    overlap: Sequence[Mapping[str, Any]] = (),
) -> StudyResult:
    """Write journal.sqlite and results.json; `unscored` gives the number of unanswered items of a task.

    flips: the share by which the losses of two seeds differ. overlap: rows of results.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    described = [describe(task) for task in tasks]
    its_facts = facts(recipes, tasks, seeds, source_precision)
    journal.claim("hash-of-the-study", study_text(recipes, tasks, seeds))
    for key, value in (("model", its_facts["model"]), ("tasks", described), ("environment", its_facts["environment"])):
        journal.note(key, value)
    journal.note("dense_digest", DENSE_WEIGHTS)
    journal.add_command("2026-01-01T10:00:00+00:00", "0.1.0", "kick run study.toml --out runs/synthetic")
    asked = {task: (questions or {}).get(task) or make_items(task, items, hostile=hostile) for task in tasks}
    for task, its_items in asked.items():
        journal.add_items(task, its_items)
        journal.add_prompts(task, prompts_of(task, its_items))
        add_answers(journal, task, its_items, recipes, seeds, skipped=(unscored or {}).get(task, 0), flips=flips)
    reports = [report(recipe, seed, blocks) for recipe in recipes for seed in seeds_of(recipe, seeds)]
    for number, one in enumerate(reports):
        journal.add_artifact(
            f"artifact-{number}", one["digest"], JournalledCompression.model_validate({**one, "seconds": 1.0})
        )
    records = journal.records()
    journal.close()
    summaries = [TaskSummary.model_validate(task) for task in described]
    comparisons = compare_all(
        records, summaries, recipes, margin=0.05, alpha=0.05,
        same_weights=lambda recipe: SEVERITY.get(recipe, 0.0) == 0,
    )  # fmt: skip
    result = StudyResult(
        folder=folder,
        **its_facts,
        tasks=tuple(summaries),
        results=tuple(order(cell_results(records, summaries), recipes, tasks)),
        comparisons=tuple(comparisons),
        overall=tuple(overall_by_recipe(comparisons)),
        compression=reports,
        returned=tuple(returned(records, summaries, recovered_models(recipes)[0], alpha=0.05)),
        overlap=tuple(map(OverlapRow.model_validate, overlap)),
    )
    result.write()
    return result


def study_text(recipes: Sequence[str], tasks: Sequence[str], seeds: Sequence[int]) -> str:
    """The study as its file would say it."""
    return (
        f"name = 'synthetic'\nmodel = 'toy'\nrecipes = {json.dumps(list(recipes))}\n"
        f"tasks = {json.dumps(list(tasks))}\nseeds = {json.dumps(list(seeds))}\n"
    )


def prompts_of(task: str, items: Sequence[Item]) -> list[PromptPart]:
    """Every other item asked with an emoji before it: what JavaScript counts as two units is one character."""
    if task == "perplexity":
        return []
    texts = [
        json.dumps(
            {
                "prompt": [
                    ["user", "Are you there? 🙂"],
                    ["assistant", "Yes."],
                    ["user", f"{item.question} 🙂 {number}"],
                ],
                "stops": ["\n"],
                "max_new_tokens": 32,
            },
            ensure_ascii=False,
        )
        for number, item in enumerate(items)
    ]
    return [packed_prompt(item.id, text, items[0].id, texts[0]) for item, text in zip(items, texts, strict=True)]


def facts(recipes: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], source_precision: str) -> dict[str, Any]:
    """What results.json says besides the numbers."""
    return {
        "study": {
            "name": "synthetic", "model": "toy", "recipes": list(recipes), "seeds": list(seeds),
            "tasks": [{"name": task} for task in tasks], "margin": 0.05, "alpha": 0.05, "propagate": True,
            "calibration": {"source": "self", "sequences": 8, "length": 128}, "hash": "hash-of-the-study",
        },
        "environment": {
            "packages": {"llmkick": "0.1.0", "torch": "2.13.0"}, "python": "3.11.7", "platform": "Linux",
            "processor": "a processor", "cores": 2, "threads": 2, "memory_bytes": 16_000_000_000,
            "device": "cpu", "accelerator": None,
        },
        "timing": {
            "started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:09:00+00:00",
            "seconds": {
                "load": {"toy": 2.0}, "evaluate": dict.fromkeys(tasks, 61.5), "compress": dict.fromkeys(recipes, 3.5),
            },
            "compression_seconds": {digest_of(r, s): 3.5 for r in recipes for s in seeds_of(r, seeds)},
            "peak_memory_bytes": 1_300_000_000,
        },
        "model": {
            "name": "toy-135m-instruct", "revision": "1", "digest": "d" * 64, "architecture": "ToyForCausalLM",
            "parameters": 134_515_008, "dtype": "bfloat16", "source_precision": source_precision,
        },
        "warnings": ["the dense weights come from a file already rounded"] if source_precision != "float" else [],
    }  # fmt: skip


def digest_of(recipe: str, seed: int | None) -> str:
    """An invented digest for each compressed model; those that lose nothing have the dense model's weights."""
    if SEVERITY.get(recipe, 0.0) == 0:
        return DENSE_WEIGHTS
    return hashlib.sha256(f"{recipe} {seed}".encode()).hexdigest()


def make_items(task: str, count: int, *, hostile: bool = False) -> list[Item]:
    """Invented questions; with `hostile` the first few hold text that a careless page would run."""
    found = []
    for number in range(count):
        evil = HOSTILE[number % len(HOSTILE)] if hostile and number < len(HOSTILE) else ""
        choice = task.startswith("multiple_choice")
        shown = task != "perplexity"
        found.append(
            Item(
                id=f"{task}-{number:03d}",
                cluster=f"subject-{number % 12}",
                question=f"What is the number of question {number}? {evil}".strip() if shown else "",
                context=f"Passage {number // 4} speaks of number {number}." if "open" in task else "",
                references=(f"number {number}",) if shown else (),
                choices=tuple(f"number {number + i}" for i in range(4)) if choice else (),
            )
        )
    return found


def add_answers(
    journal: Journal,
    task: str,
    items: Sequence[Item],
    recipes: Sequence[str],
    seeds: Sequence[int],
    *,
    skipped: int,
    flips: float,
) -> None:
    """Answers of the dense model and of every recipe; those that lose more keep the losses of the milder."""
    rng = np.random.default_rng(int(hashlib.sha256(task.encode()).hexdigest()[:8], 16))
    known, luck = rng.random(len(items)), rng.random(len(items))
    for recipe in ("dense", *recipes):
        for seed in seeds_of(recipe, seeds):
            noise = rng.random(len(items))
            its_luck = (luck + flips * np.random.default_rng(seed or 0).random(len(items))) % 1
            records = [
                answer(task, recipe, item, known[i], its_luck[i], noise[i], skipped=i < skipped and recipe != "dense")
                for i, item in enumerate(items)
            ]
            key = f"{recipe}-{seed}-{task}"
            journal.add_records(key, model="toy-135m-instruct", recipe=recipe, seed=seed, task=task, records=records)


def answer(task: str, recipe: str, item: Item, known: float, luck: float, noise: float, *, skipped: bool) -> Record:
    """One record: right, wrong, or without a score."""
    severity = SEVERITY.get(recipe, 0.0)
    common = {"item_id": item.id, "cluster": item.cluster}
    if skipped:
        return Record(**common, response="", score=None, unscored_reason="the prompt is too long")
    if task == "perplexity":
        return Record(**common, response="", score=2.9 + 0.4 * luck + 1.2 * severity**2 + 0.01 * noise, tokens=255)
    right = known < DENSE_SCORE[task]
    if right and luck < severity:
        right = False
    elif not right and noise < 0.1 * severity:
        right = True
    text = item.references[0] if right else f"something else ({recipe.partition('@')[0]})"
    if item.question.endswith(HOSTILE):
        text += f" {item.question}"
    tokens, details = (
        len(text) // 4,
        {"exact_match": float(right), "f1": 0.5 + 0.5 * right, **noted(task, item, severity)},
    )
    return Record(**common, response=text, score=float(right), tokens=tokens, truncated=noise > 0.9, details=details)


def noted(task: str, item: Item, severity: float) -> dict[str, Any]:
    """What records of such a task note beside the score."""
    number = int(item.id[-3:])
    if task.startswith("multiple_choice"):
        return {"discipline": ("stem", "humanities", "social sciences", "other")[number % 4]}
    if task == "summarization":
        return {"bucket": ("short", "medium", "long")[number % 3], "copied_share": min(1.0, severity + number / 100)}
    if task == "instruction":
        unique = 60.0 - 50 * severity + number % 5
        return {"unique_tokens": unique, "repetition": severity / 2 + number % 3 / 100}
    return {}


def describe(task: str) -> dict[str, Any]:
    """A task as results.json lists it."""
    settings = {"perplexity": "control", "context_qa:open": "synthesis", "summarization": "synthesis"}
    setting = {**settings, "instruction": "instruction"}.get(task, "knowledge")
    return {
        "name": task, "version": 1, "protocol": "strict", "source": "pocket", "data": "a" * 64, "limit": None,
        "seed": 0, "metric": "perplexity" if task == "perplexity" else "accuracy",
        "chance_level": 0.25 if task.startswith("multiple_choice") else 0.0, "setting": setting, "prompting": "chat",
    }  # fmt: skip


def seeds_of(recipe: str, seeds: Sequence[int]) -> Sequence[int | None]:
    """Calibration seeds, for a method that has any."""
    return seeds if recipe.startswith(CALIBRATED) or recovery_of(recipe) else (None,)


def report(recipe: str, seed: int | None, blocks: int) -> dict[str, Any]:
    """A compression report."""
    severity, rounding = SEVERITY.get(recipe, 0.0), recipe.startswith(("rtn", "gptq"))
    layers = [
        {
            "name": f"model.layers.{depth}.{kind}", "shape": [64, 64 if position < 2 else 128],
            "realised_sparsity": 0.2 if rounding else severity / 2,
            "relative_output_error": severity * (0.05 + 0.01 * position + 0.02 * depth / blocks),
            "damping": 0.01 if recipe.startswith(("gptq", "sparsegpt")) else None, "tokens": 1024,
        }
        for depth in range(blocks)
        for position, kind in enumerate(LAYERS)
    ]  # fmt: skip
    return {
        "recipe": recipe, "model": "toy-135m-instruct", "source_precision": "Q4_1", "seed": seed or 0,
        "calibration": None if seed is None else "c" * 64, "calibration_source": None if seed is None else "self",
        "propagate": True, "digest": digest_of(recipe, seed),
        "dense_bytes": 212_336_640, "stored_bytes": int(212_336_640 * (0.3 if rounding else 0.9)),
        "layers": layers, "block_share": 1.0, "model_share": 0.79,
        "warnings": ["few tokens: a layer was calibrated on 3 tokens"] if recipe == "wanda@2:4" else [],
    }  # fmt: skip


def order(rows: list[ResultRow], recipes: Sequence[str], tasks: Sequence[str]) -> list[ResultRow]:
    """Dense first, then the study's order."""
    names = ["dense", *recipes]
    return sorted(rows, key=lambda row: (names.index(row.recipe), row.seed or 0, tasks.index(row.task)))


def task_comparison(**values: Any) -> Comparison:
    """A comparison of which only some values matter."""
    common: dict[str, Any] = {
        "task": "factoid_qa", "recipe": "wanda@0.5", "seeds": (), "n": 9, "unscored": 0, "clusters": 9, "dense": 0.5,
        "compressed": 0.5, "relative_drop": 0.0, "drop_bounds": None, "interval": (-0.1, 0.1), "interval_method": "",
        "gained": 0.0, "lost": 0.0, "mcnemar_p": None, "verdict": "undecided", "paper_verdict": "matching",
        "p_matching": None, "p_not_matching": None, "smallest_detectable_loss": 0.2, "margin": 0.05, "alpha": 0.05,
        "chance": 0.0, "notes": (),
    }  # fmt: skip
    return Comparison(**{**common, **values})


def perplexity_comparison(**values: Any) -> PerplexityComparison:
    """A comparison of perplexity of which only some values matter."""
    common: dict[str, Any] = {
        "task": "perplexity", "recipe": "wanda@0.5", "seeds": (), "n": 9, "dense": 20.0, "compressed": 20.0,
        "relative_increase": 0.0, "interval": None, "interval_method": "", "outcome": "undecided",
        "p_within": None, "p_beyond": None, "margin": 0.05, "alpha": 0.05, "notes": (),
    }  # fmt: skip
    return PerplexityComparison(**{**common, **values})
