"""A judge in a study: it is paid once, its scores are compared like any others, and its habits are told."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from judges import KEY, MODEL, Answer, Endpoint, answering, asked_of, is_probe
from llmkick.claims.runs import base_of
from llmkick.cli import app
from llmkick.errors import ConfigError, DataError, JudgeError
from llmkick.models.server import failures as endpoint_failures
from llmkick.report.page.page import write_report
from llmkick.study.cells import Variant, cells_of, variants_of
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.judging import reliability as judge_trust
from llmkick.study.judging.questions import PlacedQuestion, estimate
from llmkick.study.judging.reliability import doubts, reliability
from llmkick.study.plan import plan_study
from llmkick.study.results.from_journal import left_of_run, newest, partial_result
from llmkick.study.results.results import RESULTS_FILE, StudyResult, read_results
from llmkick.study.run import run_study
from llmkick.study.spec.study import Study, make_study
from llmkick.tasks.judge.clients import OVER_BUDGET, Question
from llmkick.tasks.judge.prompts import Contest, Unreadable
from llmkick.tasks.registry import get_task
from published import lines, put
from toy import save_toy

RECIPES = ("magnitude@0.5", "rtn@8b")
TASKS = ("instruction", "summarization")
ITEMS = {"instruction": 6, "summarization": 3}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, chat=True, max_position_embeddings=1024)
    return folder


def study_of(toy: Path, judge: dict[str, Any] | None = None, **changes: Any) -> Study:
    values = {
        "name": "judged",
        "model": str(toy),
        "dtype": "float32",
        "device": "cpu",
        "recipes": list(RECIPES),
        "tasks": [
            {"name": "instruction", "limit": 3, "max_new_tokens": 8},
            {"name": "summarization", "limit": 3, "max_new_tokens": 8},
        ],
        "calibration": {"sequences": 2, "length": 16},
        **changes,
    }
    return make_study(values if judge is None else {**values, "judge": judge})


@pytest.fixture(scope="module")
def answered(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """The study without a judge: its answers serve every test."""
    return run_study(study_of(toy), out=tmp_path_factory.mktemp("runs") / "answered")


@pytest.fixture
def folder(answered: StudyResult, tmp_path: Path) -> Path:
    return copied(answered, tmp_path / "run")


def copied(answered: StudyResult, target: Path) -> Path:
    """A folder with the answers of a run."""
    target.mkdir()
    with (
        contextlib.closing(sqlite3.connect(answered.folder / JOURNAL_FILE)) as whole,
        contextlib.closing(sqlite3.connect(target / JOURNAL_FILE)) as copy,
    ):
        whole.backup(copy)
    return target


def shown(request: dict[str, Any]) -> tuple[str, str]:
    """The two answers that a strict prompt shows, in their order."""
    first = re.search(r"<assistant_1>\n(.*?)\n</assistant_1>", asked_of(request), re.DOTALL)
    second = re.search(r"<assistant_2>\n(.*?)\n</assistant_2>", asked_of(request), re.DOTALL)
    assert first is not None
    assert second is not None
    return first[1], second[1]


def verdict(request: dict[str, Any], first: float, second: float) -> Answer:
    names = list(request["response_format"]["json_schema"]["schema"]["required"])[1:]
    pair = {"assistant_1": first, "assistant_2": second}
    return Answer(text=json.dumps({"explanation": "…", **dict.fromkeys(names, pair)}))


def fair(request: dict[str, Any], number: int) -> Answer:
    """A judge with a taste that has nothing to do with the order."""
    if is_probe(request):
        return Answer(text="ready")
    first, second = (1 + sum(text.encode()) % 10 for text in shown(request))
    return verdict(request, first, second)


def judged(toy: Path, endpoint: Endpoint, folder: Path, **judge: Any) -> StudyResult:
    return run_study(study_of(toy, {"model": endpoint.reference, "attempts": 1, **judge}), out=folder)


def records(folder: Path, task: str, recipe: str) -> dict[str, dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM records WHERE task = ? AND recipe = ?", (task, recipe)).fetchall()
    return {row["item_id"]: {**dict(row), "details": json.loads(row["details"])} for row in rows}


def count(folder: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def content(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    del values["timing"]
    return values


# Without a judge


def test_both_tasks_are_compared_like_every_other(answered: StudyResult):
    assert [(c.task, c.recipe) for c in answered.comparisons] == [(t, r) for t in TASKS for r in RECIPES]
    assert answered.judge is None
    for task in TASKS:
        dense, other = records(answered.folder, task, "dense"), records(answered.folder, task, RECIPES[0])
        assert len(dense) == len(other) == ITEMS[task]
        assert all("dense_logprob" in row["details"] for row in other.values() if row["response"])
    stories = records(answered.folder, "summarization", "dense").values()
    assert all(row["details"]["dense_rougeL"] in (0, 1) for row in stories)  # its own; 0 without a word
    by_task = {row["task"]: row for row in answered.results if row["recipe"] == "dense"}
    groups = by_task["instruction"]["groups"]
    assert sum(group["n"] for group in groups.values()) == by_task["instruction"]["n"]
    assert all(group["unique_tokens"] <= 8 for group in groups.values())
    assert set(by_task["summarization"]["groups"]) == {"short", "medium", "long"}
    # The compressed summaries are held against the dense ones.
    for row in records(answered.folder, "summarization", RECIPES[0]).values():
        assert 0 <= row["details"]["dense_rougeL"] < 1


def test_the_run_key_names_the_model_that_reads_the_answers():
    tasks = [get_task("instruction"), get_task("factoid_qa")]
    keys = []
    for digest in ("a", "b"):
        cells = cells_of(_dense(), tasks, weights={}, prompting="raw", reference={"digest": digest})
        keys.append([cell.run_key for cell in cells])
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]


def _dense() -> Variant:
    return next(variants_of(make_study({"model": "x", "recipes": ["rtn@8b"], "tasks": ["factoid_qa"]})))


# With one


def test_a_judge_adds_tasks_with_the_same_statistics(toy: Path, folder: Path, answered: StudyResult):
    with answering(fair) as endpoint:
        result = judged(toy, endpoint, folder)
        asked = [request for request in endpoint.requests if not is_probe(request)]
    names = [*TASKS, "instruction:judge", "summarization:judge"]
    assert [task["name"] for task in result.tasks] == names
    assert [(c.task, c.recipe) for c in result.comparisons] == [(t, r) for t in names for r in RECIPES]
    # What was there before has not moved.
    assert [row for row in result.results if ":judge" not in row["task"]] == list(answered.results)
    for task in TASKS:
        dense = records(folder, f"{task}:judge", "dense")
        assert {row["score"] for row in dense.values()} == {0.5}  # an empty answer is as good as itself
    seen = {shown(request) for request in asked}
    assert {(second, first) for first, second in seen} == seen  # both orders
    assert all(first != second for first, second in seen)  # nobody pays for what is the same
    for task in TASKS:
        own = records(folder, task, "dense")
        for recipe in RECIPES:
            for item_id, row in records(folder, f"{task}:judge", recipe).items():
                details = row["details"]
                if details["judgements"]:
                    difference = details["answer_points"] - details["reference_points"]
                    assert row["score"] == pytest.approx(0.5 + difference / 18, abs=1e-6)
                    assert details["order_decided"] is False
                elif row["response"]:
                    assert row["score"] == 0.5
                assert row["cluster"] == own[item_id]["cluster"]
    assert result.judge is not None
    assert result.judge["judgements"] == len(asked) == count(folder, "judgements")
    assert result.judge["completion_tokens"] == 7 * len(asked)
    assert result.judge["prompt_tokens"] > 100 * len(asked)
    assert result.judge["tasks"]["instruction"]["order_decided"] == 0
    assert result.judge["tasks"]["instruction"]["first_preferred"] == 0.5


def test_the_judged_task_of_a_renamed_one_says_what_it_is(toy: Path, tmp_path: Path):
    tasks = [{"name": "instruction", "id": "mt", "limit": 2, "max_new_tokens": 4}]
    with answering(fair) as endpoint:
        judge = {"model": endpoint.reference, "attempts": 1}
        result = run_study(study_of(toy, judge, tasks=tasks, recipes=["rtn@4b"]), out=tmp_path / "run")
    assert {task.name: task.task for task in result.tasks} == {"mt": "instruction", "mt:judge": "instruction"}
    assert {base_of(task) for task in result.tasks} == {"instruction"}


def test_what_a_judge_said_is_in_the_journal(toy: Path, folder: Path):
    """A run without its results.json shows the judged verdicts, and one that was not judged yet says so."""
    with answering(fair) as endpoint:
        whole = judged(toy, endpoint, folder)
    (folder / RESULTS_FILE).unlink()
    with contextlib.closing(Journal(folder, read_only=True)) as journal:
        found = partial_result(journal, folder)
        assert "judge" not in left_of_run(journal, folder, newest(journal.cells()))
    assert [(c.task, c.recipe, c.verdict) for c in found.comparisons] == [
        (c.task, c.recipe, c.verdict) for c in whole.comparisons
    ]
    assert {row.recipe: row.verdict for row in found.overall} == {row.recipe: row.verdict for row in whole.overall}
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as journal_file, journal_file:
        journal_file.execute("DELETE FROM records WHERE task LIKE '%:judge'")
        journal_file.execute("DELETE FROM meta WHERE key = 'judged'")
    with contextlib.closing(Journal(folder, read_only=True)) as journal:
        unjudged = partial_result(journal, folder)
        left = left_of_run(journal, folder, newest(journal.cells()))
    assert left.endswith("the judge is asked when all answers are there")
    assert any(line.startswith("not asked yet: dense on instruction:judge") for line in unjudged.warnings)
    assert {row.verdict for row in unjudged.overall} <= {"not matching"}


def test_the_second_turn_is_judged_after_the_first(toy: Path, folder: Path):
    with answering(fair) as endpoint:
        judged(toy, endpoint, folder)
    prompts = [asked_of(request) for request in endpoint.requests if "[Turn 2]" in asked_of(request)]
    assert prompts
    for text in prompts:
        assert text.count("[Turn 1]") == text.count("[Turn 2]") == 3
        assert "(Rate the answers to turn 2; the turns before are what led to it.)" in text


def test_a_finished_run_pays_nothing_and_needs_no_judge(toy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    with answering(fair) as endpoint:
        judged(toy, endpoint, folder)
        before, asked = content(folder), len(endpoint.requests)
        monkeypatch.delenv("OPENAI_API_KEY")
        judged(toy, endpoint, folder)
        assert len(endpoint.requests) == asked
    assert content(folder) == before


def test_a_judge_lost_half_way_is_asked_for_the_rest_only(
    toy: Path, folder: Path, answered: StudyResult, tmp_path: Path
):
    def leaving(request: dict[str, Any], number: int) -> Answer:
        return fair(request, number) if number < 5 else Answer(status=401, text="expired")

    answers: list[Callable[[dict[str, Any], int], Answer]] = [leaving]
    with answering(lambda request, number: answers[0](request, number)) as endpoint:
        result = judged(toy, endpoint, folder, concurrency=1)
        assert any("judgements are missing" in warning for warning in result.warnings)
        assert count(folder, "judgements") == 4
        unscored = sum(row["unscored"] for row in result.results if ":judge" in row["task"])
        assert unscored > 0
        assert all("does not accept the key" in r for row in result.results for r in row["unscored_reasons"])
        answers[0] = fair
        asked = len(endpoint.requests)
        result = judged(toy, endpoint, folder, concurrency=1)
        texts = [str(request["messages"]) for request in endpoint.requests[asked:] if not is_probe(request)]
        paid = {str(request["messages"]) for request in endpoint.requests[1:5]}
        assert not paid & set(texts)
        assert not any("judgements are missing" in warning for warning in result.warnings)
        whole = copied(answered, tmp_path / "whole")
        judged(toy, endpoint, whole)
    resumed, at_once = content(folder), content(whole)
    assert resumed["results"] == at_once["results"]
    assert resumed["comparisons"] == at_once["comparisons"]
    assert resumed["judge"] == at_once["judge"]


def test_a_budget_stops_and_a_larger_one_goes_on(toy: Path, folder: Path):
    with answering(fair) as endpoint:
        result = judged(toy, endpoint, folder, budget=1, concurrency=1)
        assert count(folder, "judgements") == 1
        (missing,) = [warning for warning in result.warnings if OVER_BUDGET in warning]
        assert missing.endswith("; raise judge.budget, and the same command asks for them")
        again = judged(toy, endpoint, folder, budget=1, concurrency=1)
        assert count(folder, "judgements") == 1, "the budget is for all commands"
        assert missing in again.warnings
        result = judged(toy, endpoint, folder, budget=10**6)
    assert not any("missing" in warning for warning in result.warnings)
    assert result.judge is not None
    assert count(folder, "judgements") == result.judge["judgements"] > 1


def test_another_judge_has_a_budget_of_its_own(toy: Path, folder: Path):
    """What the first one was paid, more than the budget, is not counted."""
    with answering(fair) as endpoint:
        first = judged(toy, endpoint, folder).judge
        assert first is not None
        paid = count(folder, "judgements")
        spent = int(first["prompt_tokens"]) + int(first["completion_tokens"])
        result = judged(toy, endpoint, folder, temperature=0.5, budget=spent, concurrency=1)
    assert not any("missing" in warning for warning in result.warnings)
    assert count(folder, "judgements") == 2 * paid


def test_another_judge_later_replaces_the_first(toy: Path, folder: Path):
    with answering(fair) as endpoint:
        judged(toy, endpoint, folder)
        first = count(folder, "judgements")
        result = judged(toy, endpoint, folder, temperature=0.5)
    assert count(folder, "judgements") == 2 * first
    assert len(records(folder, "instruction:judge", "dense")) == ITEMS["instruction"]
    assert any("were dropped" in warning for warning in result.warnings)


def test_unreadable_replies_are_unscored_with_what_was_said(toy: Path, folder: Path):
    def refusing(request: dict[str, Any], number: int) -> Answer:
        return Answer(text="ready" if is_probe(request) else "I cannot rate 8 or 7 of these.")

    with answering(refusing) as endpoint:
        result = judged(toy, endpoint, folder)
        asked = len(endpoint.requests)
        again = judged(toy, endpoint, folder)
        assert len(endpoint.requests) == asked  # they were paid for: the same would come again
    rows = records(folder, "instruction:judge", RECIPES[0]).values()
    reasons = [row["unscored_reason"] for row in rows if row["score"] is None]
    assert reasons
    assert set(reasons) == {"judge: no scores can be read: 'I cannot rate 8 or 7 of these.'"}
    assert content(folder)["results"] == [row.facts for row in again.results]
    assert any(re.search(r"instruction:judge: \d+ of \d+ replies are unreadable", line) for line in result.warnings)


@pytest.mark.parametrize(
    ("habit", "told"),
    [
        (lambda request: verdict(request, 9, 4), "the judge gave the same scores in all"),
        (
            lambda request: verdict(request, 9, 3 + len(shown(request)[0]) % 3),
            "the judge prefers whatever stands first (100%)",
        ),
    ],
)
def test_a_judge_that_does_not_read_is_reported(
    toy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, habit: Callable[[dict[str, Any]], Answer], told: str
):
    monkeypatch.setattr(judge_trust, "FEW", 4)
    with answering(lambda request, number: Answer(text="ok") if is_probe(request) else habit(request)) as endpoint:
        result = judged(toy, endpoint, folder)
    assert any(told in warning for warning in result.warnings)
    assert any("the order decided the winner in 100% of" in warning for warning in result.warnings)
    rows = records(folder, "instruction:judge", RECIPES[0]).values()
    assert all(row["details"]["order_decided"] for row in rows if row["details"].get("judgements"))


def test_replicates_and_what_they_agree_on(toy: Path, folder: Path):
    def moody(request: dict[str, Any], number: int) -> Answer:
        return (
            Answer(text="ok") if is_probe(request) else verdict(request, *((8, 5) if request["seed"] == 0 else (5, 8)))
        )

    with answering(moody) as endpoint:
        result = judged(toy, endpoint, folder, replicates=2)
    assert result.judge is not None
    assert result.judge["tasks"]["instruction"]["agreement"] == 0
    assert any("replicates agree on the winner in 0%" in warning for warning in result.warnings)
    rows = records(folder, "instruction:judge", RECIPES[0]).values()
    assert {row["score"] for row in rows if row["details"].get("judgements") == 4} == {0.5}


# Zeros, thoughts, and what is missing


def scoring(first: float, second: float) -> Callable[[dict[str, Any], int], Answer]:
    def judge(request: dict[str, Any], number: int) -> Answer:
        if is_probe(request):
            return Answer(text="ok")
        if "response_format" in request:
            return verdict(request, first, second)
        lines_ = 4 if "[STORY]" in asked_of(request) else 1
        return Answer(text="\n".join([f"{first} {second}"] * lines_) + "\nWhat a pity.")

    return judge


@pytest.mark.parametrize(("protocol", "expected"), [("paper", 0.0), ("strict", 0.5)])
def test_a_zero_is_a_score_and_is_counted(toy: Path, folder: Path, protocol: str, expected: float):
    with answering(scoring(10, 0)) as endpoint:
        result = judged(toy, endpoint, folder, protocol=protocol)
    for task in TASKS:
        rows = records(folder, f"{task}:judge", RECIPES[0]).values()
        asked_for = [row for row in rows if row["details"].get("judgements")]
        assert asked_for
        assert {row["score"] for row in asked_for} == {expected}
        assert all(row["details"]["below_scale"] for row in asked_for)
    assert result.judge is not None
    facts = result.judge["tasks"]["instruction"]
    assert facts["zeros"] == facts["judgements"] > 0
    assert facts["unreadable"] == {}
    assert any("replies give a 0, below the scale of 1 to 10 that was asked for" in line for line in result.warnings)


def test_the_worst_in_both_orders_has_the_lowest_score(toy: Path, folder: Path):
    own = {str(row["response"]) for task in TASKS for row in records(folder, task, "dense").values()}

    def against_the_recipe(request: dict[str, Any], number: int) -> Answer:
        if is_probe(request):
            return Answer(text="ok")
        first = shown(request)[0]
        return verdict(request, *((10, 0) if any(text and text in first for text in own) else (0, 10)))

    with answering(against_the_recipe) as endpoint:
        judged(toy, endpoint, folder)
    rows = records(folder, "instruction:judge", RECIPES[0]).values()
    scores = {row["score"] for row in rows if row["details"].get("judgements")}
    assert scores
    assert scores <= {0.0, 0.5}  # ½ where both answers are the dense model's in part
    assert 0.0 in scores


def test_replies_that_an_earlier_version_left_unscored_are_read_again(toy: Path, folder: Path):
    with answering(scoring(10, 0)) as endpoint:
        judged(toy, endpoint, folder, protocol="paper")
        paid = len(endpoint.requests)
        expected = content(folder)
        with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection, connection:
            connection.execute(
                "UPDATE records SET score = NULL, details = '{}', run_key = 'old ' || run_key, "
                "unscored_reason = 'judge: a score is outside 1 to 10' WHERE task LIKE '%:judge'"
            )
        judged(toy, endpoint, folder, protocol="paper")
        assert len(endpoint.requests) == paid
    again = content(folder)
    assert again["results"] == expected["results"]
    assert again["judge"] == expected["judge"]
    assert [row for row in records(folder, "instruction:judge", RECIPES[0]).values() if row["score"] is None] == []


def test_thoughts_before_a_verdict_are_no_scores(toy: Path, folder: Path):
    def thinking(request: dict[str, Any], number: int) -> Answer:
        if is_probe(request):
            return Answer(text="ok")
        draft, final = verdict(request, 9, 2).text, verdict(request, 4, 8).text
        return Answer(text=f"First {draft}\n</think>\n\nDraft:\n{draft}\n\nFinal verdict:\n{final}")

    with answering(thinking) as endpoint:
        result = judged(toy, endpoint, folder)
    assert result.judge is not None
    assert result.judge["tasks"]["instruction"]["unreadable"] == {}
    assert result.judge["tasks"]["instruction"]["first_preferred"] == 0


def test_judgements_missing_for_one_recipe_make_it_incomplete(toy: Path, folder: Path, tmp_path: Path):
    study = {
        "name": "instruction",
        "limit": 8,
        "max_new_tokens": 8,
    }
    broken = run_study(study_of(toy, tasks=[study]), out=tmp_path / "answers")
    worst = {str(row["response"]) for row in records(broken.folder, "instruction", RECIPES[0]).values()}
    kept = {str(row["response"]) for row in records(broken.folder, "instruction", "dense").values()}
    worst -= kept

    def speechless(request: dict[str, Any], number: int) -> Answer:
        if is_probe(request):
            return Answer(text="ok")
        last = [text.split("[Turn 2]\n")[-1] for text in shown(request)]
        return Answer(text="I cannot rate this.") if worst & set(last) else verdict(request, 7, 7)

    with answering(speechless) as endpoint:
        judge = {"model": endpoint.reference, "attempts": 1}
        result = run_study(study_of(toy, judge, tasks=[study]), out=broken.folder)
        page = write_report(broken.folder).read_text(encoding="utf-8")
    rows = {row.recipe: row for row in result.missing_judgements}
    assert rows[RECIPES[0]].differs
    assert rows[RECIPES[0]].dense_missing == rows[RECIPES[1]].missing == 0
    assert rows[RECIPES[0]].share == rows[RECIPES[0]].missing / rows[RECIPES[0]].items > 0.5
    verdicts = {c.recipe: c for c in result.comparisons if c.task == "instruction:judge"}
    assert verdicts[RECIPES[0]].verdict == "incomplete"
    assert "what is missing depends on the model" in verdicts[RECIPES[0]].notes[-1]
    told = f"{RECIPES[0]} on instruction:judge is incomplete: {rows[RECIPES[0]].missing} of 16 judgements are missing"
    assert any(line.startswith(told) for line in result.warnings)
    assert not any(line.startswith(f"{RECIPES[1]} on instruction:judge is incomplete") for line in result.warnings)
    assert "Missing judgements" in page
    assert told in page
    assert read_results(broken.folder).missing_judgements == result.missing_judgements
    table = (broken.folder / "tables" / "missing_judgements.csv").read_text(encoding="utf-8")
    assert table.splitlines()[1].startswith(f"instruction:judge,{RECIPES[0]},,16,{rows[RECIPES[0]].missing},")


# The paper's protocol, and a file of answers


def test_the_papers_protocol_scores_every_answer_behind_the_reference(toy: Path, folder: Path, tmp_path: Path):
    items = [item for name in TASKS for item in get_task(name, limit=3).items()]
    answers = [{"id": item.id, "answer": f"Reference to {item.id}."} for item in items]
    file = put(tmp_path / "gpt-3.5.jsonl", lines(answers))

    def paper(request: dict[str, Any], number: int) -> Answer:
        text = asked_of(request)
        if "We would like to request your feedback on the performance" in text and "[STORY]" in text:
            return Answer(text="9 8\n9 7\n9 6\n9 5\nFine.")
        return Answer(text="(9, 6)" if "Python tuple" in text else "9 6\nFine.")

    with answering(paper) as endpoint:
        result = judged(toy, endpoint, folder, protocol="paper", reference=str(file))
        asked = [request for request in endpoint.requests if not is_probe(request)]
    assert all(request.get("response_format") is None and request["temperature"] == 0.2 for request in asked)
    assert all("Reference to" in re.split(r"The End of Assistant 1", asked_of(request))[0] for request in asked)
    for task, score in (("instruction", 0.6), ("summarization", 0.65)):
        for recipe in ("dense", *RECIPES):
            rows = records(folder, f"{task}:judge", recipe).values()
            assert {row["score"] for row in rows if row["response"]} <= {score}
    assert result.judge is not None
    assert result.judge["tasks"]["summarization"]["order_decided"] is None


def test_answers_to_other_questions_are_refused_before_anything(toy: Path, tmp_path: Path):
    file = put(tmp_path / "other.jsonl", lines([{"id": "81:1", "answer": "x"}]))
    with answering(fair) as endpoint:
        with pytest.raises(DataError, match="has no answer to 6 of 6 items"):
            judged(toy, endpoint, tmp_path / "run", reference=str(file))
        assert endpoint.requests == []
    assert count(tmp_path / "run", "records") == 0


# Before anything is generated


def test_no_key_wrong_address_unknown_model(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"
    with answering(fair) as endpoint:
        for reference in (endpoint.reference.replace(MODEL, "gpt-99"), f"openai:http://127.0.0.1:9/v1#{MODEL}"):
            with pytest.raises(JudgeError, match=r"knows no 'gpt-99'|cannot reach http"):
                run_study(study_of(toy, {"model": reference, "attempts": 1}), out=out)
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(JudgeError, match="needs a key: set the environment variable OPENAI_API_KEY"):
            judged(toy, endpoint, out)
    assert count(out, "records") == 0
    with pytest.raises(JudgeError, match="the judge no-such-model cannot be used"):
        run_study(study_of(toy, {"model": "no-such-model"}), out=out)
    assert KEY not in (out / "study.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("judge", "tasks", "message"),
    [
        ({"model": "openai:x"}, None, "judge.model: cannot read the server 'openai:x'; it is written openai:URL#NAME"),
        ({"model": "openai:https://h/v1?key=sk-12345#m"}, None, "judge.model: a server's address must hold no key"),
        ({"model": "toy", "protocol": "kind"}, None, "judge.protocol: unknown protocol 'kind' of the judge"),
        ({"model": "toy", "replicates": 2}, None, "judge.replicates: a local judge decodes greedily"),
        ({"model": "toy", "api_key_env": "sk-12345"}, None, "judge.api_key_env: api_key_env is the name of an env"),
        ({"model": "toy"}, ["factoid_qa"], "judge: none of the tasks is judged"),
        ({"model": "toy", "reference": {"instruction": "a"}}, None, "judge.reference: files of reference answers for"),
        ({"model": "toy", "budge": 2}, None, "judge.budge: unknown key; choose from: model, protocol"),
    ],
)
def test_what_a_study_may_not_say_of_its_judge(judge: dict[str, Any], tasks: list[str] | None, message: str):
    changes = {} if tasks is None else {"tasks": tasks}
    with pytest.raises(ConfigError) as refused:
        study_of(Path("toy"), judge, **changes)
    assert message in str(refused.value)
    assert "sk-12345" not in str(refused.value)


def test_what_judging_will_cost_is_known_before(toy: Path):
    study = study_of(toy, {"model": "openai:http://127.0.0.1:9/v1#m", "max_tokens": 100})
    cost = estimate(study, models=3)
    assert cost.requests == 2 * 2 * (6 + 3)  # two recipes, two orders
    assert cost.completion_tokens == 100 * cost.requests
    assert 300 * cost.requests < cost.prompt_tokens < 3000 * cost.requests
    assert any(line.startswith("judge: at most 36 requests") for line in plan_study(study).lines())
    paper = study_of(toy, {"model": "openai:http://127.0.0.1:9/v1#m", "protocol": "paper", "replicates": 2})
    assert estimate(paper, models=3).requests == 3 * 2 * (6 + 3)


def test_the_command_tells_costs_before_and_tokens_after(toy: Path, folder: Path, tmp_path: Path):
    with answering(fair) as endpoint:
        study = study_of(toy, {"model": endpoint.reference, "attempts": 1})
        file = put(tmp_path / "judged.toml", study.to_toml())
        planned = CliRunner().invoke(app, ["run", str(file), "--plan"])
        assert "judge: at most 36 requests" in planned.stdout
        assert endpoint.requests == []
        done = CliRunner().invoke(app, ["run", str(file), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert "judge: at most 36 requests" in done.stderr
    result = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))["judge"]
    assert f"judge: {result['judgements']} judgements, {result['prompt_tokens']:,} tokens asked" in done.stdout
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "instruction:judge" in page
    assert KEY not in page + done.output


# Whether a judge can be believed


def asked(item: str, first: str, second: str, *, answer_first: bool, replicate: int = 0) -> PlacedQuestion:
    contest = Contest(kind="general", question="Q", first=first, second=second)
    question = Question(key="", messages=())
    return PlacedQuestion(
        question=question,
        contest=contest,
        task="instruction",
        item_id=item,
        answer_first=answer_first,
        replicate=replicate,
    )


def test_reliability_by_hand():
    """Scores are (answer, reference), whichever stood first."""
    questions = {
        "a1": asked("a", "ref", "ans", answer_first=False),
        "a2": asked("a", "ans", "ref", answer_first=True),
        "b1": asked("b", "ref", "ans", answer_first=False),
        "b2": asked("b", "ans", "ref", answer_first=True),
        "b3": asked("b", "ans", "ref", answer_first=True, replicate=1),
        "c1": asked("c", "ref", "ans", answer_first=False),
    }
    read = {
        "a1": ((3.0, 8.0),), "a2": ((9.0, 4.0),),  # the first wins both times
        "b1": ((8.0, 3.0),), "b2": ((8.0, 3.0),), "b3": ((5.0, 5.0),),  # the answer wins, or nobody
        "c1": Unreadable("no scores can be read"),
    }  # fmt: skip
    facts = reliability(questions, read)
    assert facts.judgements == 6
    assert facts.unreadable == {"no scores can be read": 1}
    assert (facts.pairs_in_both_orders, facts.order_decided) == (2, 0.5)
    assert facts.first_preferred == 3 / 4
    assert facts.agreement == 0
    assert facts.most_common_scores == 2 / 5  # (8, 3) as shown: a1 and b2
    told = doubts(facts)
    assert told[0] == "1 of 6 replies are unreadable (1 × no scores can be read)"
    assert told[1] == "the order decided the winner in 50% of 2 pairs of answers"


def test_no_judgements_say_nothing():
    facts = reliability({}, {})
    assert facts.order_decided is facts.first_preferred is facts.agreement is None
    assert doubts(facts) == []
