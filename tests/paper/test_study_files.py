"""The study files of the paper's experiments: valid, as the examples have them, planned, and run to their end."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from judges import KEY, Answer, answering, is_probe
from llmkick.errors import ConfigError
from llmkick.paper.experiments import EXPERIMENTS, MODELS
from llmkick.paper.numbers import paper_claims
from llmkick.paper.study_files import REFERENCES, StudyOptions, experiment_of, ready_files, study_text
from llmkick.study.plan import plan_study
from llmkick.study.results.results import StudyResult
from llmkick.study.run import run_study
from llmkick.study.spec.study import Study, load_study, make_study
from speeds import others_slow
from toy import save_toy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "paper"
FILES = sorted(ready_files())


def test_the_examples_are_those_of_the_package() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.toml")}
    assert written == ready_files(), "run: python examples/paper_studies.py"


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_its_place_in_the_paper_and_is_a_study(name: str) -> None:
    study, text = load_study(EXAMPLES / name), (EXAMPLES / name).read_text(encoding="utf-8")
    experiment, nick = next(
        (e, nick) for e in EXPERIMENTS.values() for nick in e.models if name == f"{e.name}-{nick}.toml"
    )
    assert text.startswith(f"# {experiment.place} of the paper, {nick}: ")
    assert study.model == MODELS[nick]
    assert max(map(len, text.splitlines())) <= 120
    comment = text.replace("\n#", "")
    assert all(f"{claim}. {paper_claims()[claim].title}" in comment for claim in experiment.claims)


def test_every_row_of_the_paper_has_a_study_for_its_models() -> None:
    places = {experiment.place for experiment in EXPERIMENTS.values()}
    assert places >= {*(f"Figure {n}" for n in range(1, 8)), "Section 4", "Table 2 (A.6)", "A.7", "A.9", "Table 3"}
    assert {model for experiment in EXPERIMENTS.values() for model in experiment.models} == set(MODELS)
    assert {claim for experiment in EXPERIMENTS.values() for claim in experiment.claims} == set(paper_claims())


def test_the_grid_has_the_levels_between_which_facts_go() -> None:
    study = load_study(EXAMPLES / "figure-2-vicuna-7b.toml")
    for method in ("magnitude", "wanda", "sparsegpt"):
        assert {f"{method}@{level}" for level in (0.1, 0.25, 0.3, 0.35, 0.7)} <= set(study.recipes)


def test_summaries_are_as_many_of_each_length_by_words() -> None:
    (stories,) = load_study(EXAMPLES / "figure-5-vicuna-7b.toml").tasks
    assert (stories.bucket_words, stories.per_bucket, stories.limit) == ([470, 790], 100, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "x"}, "no answer of figure-2 is judged; leave --judge out"),
        ({"sparsity": 0.3}, "figure-2 has sparsities of its own; --sparsity is of section-4"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_text(experiment_of("figure-2"), StudyOptions(model="x", **options))


@pytest.mark.parametrize(
    ("experiment", "options", "message"),
    [
        ("figure-2", {"references": {"summarization": "x"}}, "no judge of figure-2 sees answers to summarization"),
        ("figure-5", {"references": {"instruction": "x"}}, "leave --reference instruction=… out"),
        ("figure-5", {"scale": "small", "references": {"summarization": "x"}}, "give --judge, too"),
        (
            "table-3",
            {"scale": "small", "judge": "openai:http://localhost/v1#m", "references": {"summarization": "x"}},
            "--reference gives no answers to instruction",
        ),
    ],
)
def test_answers_that_no_judge_sees_are_refused(experiment: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_text(experiment_of(experiment), StudyOptions(model="x", **options))


def test_a_judge_sees_the_answers_that_are_given() -> None:
    given = {"summarization": "a.jsonl", "instruction": "b.jsonl"}
    options = StudyOptions(model="x", scale="small", judge="openai:http://localhost/v1#m", references=given)
    assert tomllib.loads(study_text(experiment_of("table-3"), options))["judge"]["reference"] == given
    options = StudyOptions(model="x", references={"instruction": "b.jsonl"})
    expected = {**REFERENCES, "instruction": "b.jsonl"}
    assert tomllib.loads(study_text(experiment_of("table-3"), options))["judge"]["reference"] == expected


@pytest.mark.parametrize("name", [name for name, each in EXPERIMENTS.items() if 11 in each.claims])
def test_small_studies_ask_worked_examples_of_models_that_do_not_know_letters(name: str) -> None:
    """A claim about worked examples needs a task with a signal, with and without them."""
    tasks = tomllib.loads(study_text(EXPERIMENTS[name], StudyOptions(model="x", scale="small")))["tasks"]
    shots = {task["name"]: task["shots"] for task in tasks if task["name"].startswith("multiple_choice")}
    assert shots["multiple_choice:cloze"] == shots["multiple_choice:letter"]
    assert len(shots["multiple_choice:cloze"]) > 1


def test_an_unknown_experiment() -> None:
    with pytest.raises(ConfigError, match="unknown experiment 'figure-9'; choose from: figure-1, figure-2"):
        experiment_of("figure-9")


# On a toy model


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OPENAI_API_KEY", KEY)
        yield


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy model, and one with other weights as the external model."""
    folder = tmp_path_factory.mktemp("models")
    save_toy(folder / "toy", max_position_embeddings=2048)
    save_toy(folder / "other", max_position_embeddings=2048, seed=1)
    return folder / "toy", folder / "other"


def small_study(name: str, toys: tuple[Path, Path], judge: str = "") -> Study:
    """The small study of an experiment on a toy model: two items of each task, the first and last recipe."""
    experiment = EXPERIMENTS[name]
    others = [f"{other}={toys[1]}" for other in list(experiment.others)[:1]]
    options = StudyOptions(
        model=str(toys[0]), scale="small", limit=2, others=others, judge=judge or None if experiment.judged else None
    )
    values = tomllib.loads(study_text(experiment, options))
    values["calibration"]["length"] = 32
    for task in values["tasks"]:
        task |= {"max_new_tokens": 4} if task["name"] in REFERENCES else {}
        task |= {"limit": 1, "per_bucket": None} if "per_bucket" in task else {}
    values["tasks"] = [{key: value for key, value in task.items() if value is not None} for task in values["tasks"]]
    recipes = values["recipes"]
    return make_study(
        {"name": name, "dtype": "float32", "device": "cpu", **values, "recipes": [recipes[0], recipes[-1]]}
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_small_studies_are_planned(name: str, toys: tuple[Path, Path]) -> None:
    plan = plan_study(small_study(name, toys))
    assert plan.cells > 0
    assert all(task.items for task in plan.tasks)


@pytest.mark.parametrize("name", FILES)
def test_the_paper_studies_are_planned_as_far_as_a_machine_without_a_network_can(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the package reads the variable only once
    plan = plan_study(load_study(EXAMPLES / name))
    assert plan.cells == plan.models * len(plan.tasks) > 0
    assert any("unknown" in line for line in plan.lines())


def verdict_of(request: dict[str, Any], _number: int) -> Answer:
    """The judge finds the second answer a little better."""
    if is_probe(request):
        return Answer("OK")
    aspects = ("coherence", "consistency", "fluency", "relevance")
    names = aspects if "coherence" in request["messages"][-1]["content"] else ("score",)
    pair = {"assistant_1": 5, "assistant_2": 6}
    return Answer(json.dumps({"explanation": "so", **dict.fromkeys(names, pair)}))


# The others ask tasks of these, and nothing besides.
DIFFERENT = (
    "figure-1", "figures-2-to-4", "figure-5", "figure-6", "section-4", "figure-7", "table-2-prompt", "appendix-7",
)  # fmt: skip


@pytest.mark.parametrize("name", others_slow(EXPERIMENTS, DIFFERENT))
def test_small_studies_run_to_their_end(name: str, toys: tuple[Path, Path], tmp_path: Path) -> None:
    with answering(verdict_of) as judge:
        result = run_study(small_study(name, toys, judge.reference), out=tmp_path / name)
    check(result, EXPERIMENTS[name].judged)


def check(result: StudyResult, judged: bool) -> None:
    assert result.failures == ()
    assert result.comparisons
    assert [row.id for row in result.claims] == list(range(1, 12))
    assert (result.judge is not None) == judged
