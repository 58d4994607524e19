"""Gates from end to end: exit codes, the cache of the reference's answers, budgets, and what cannot run."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gating import policy_of, served
from llmkick.errors import ConfigError, DataError, KickError, ModelError
from llmkick.gate import deadline as deadline_module
from llmkick.gate import reference as reference_module
from llmkick.gate import run as run_module
from llmkick.gate.policy import make_policy
from llmkick.gate.result import GateResult
from llmkick.gate.run import run_gate, store_reference
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.results.results import read_results
from toy import save_toy


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextlib.contextmanager
def gated(loss: float, tmp_path: Path, **changes: Any) -> Iterator[tuple[GateResult, Any, Any]]:
    """The result of a gate on two servers, and what each of them was asked."""
    with served() as (dense, of_dense), served(loss) as (server, of_candidate):
        policy = policy_of(server.reference(), dense.reference(), **changes)
        yield run_gate(policy, out=tmp_path / "run"), of_dense, of_candidate


@pytest.mark.parametrize(("loss", "outcome", "code"), [(0.0, "matches", 0), (0.25, "loses", 1), (0.05, "undecided", 2)])
def test_the_exit_code_says_what_is_shown(loss: float, outcome: str, code: int, tmp_path: Path):
    items = 150 if code == 2 else 480
    with gated(loss, tmp_path, budget={"items": items}) as (result, of_dense, of_candidate):
        (task,) = result.tasks
        assert (result.outcome, result.exit_code, task.outcome) == (outcome, code, outcome)
        assert result.matches == (code == 0)
        assert task.asked == len(of_candidate.asked) == len(of_dense.asked)
        assert task.asked == items if code == 2 else task.asked < items
    assert json.loads((tmp_path / "run" / "gate.json").read_text())["exit_code"] == code
    assert GateResult.read(tmp_path / "run") == result
    # Numbers and bounds are those of the study in the same folder.
    (comparison,) = read_results(tmp_path / "run").comparisons
    assert (task.loss, task.bounds, task.scored) == (comparison.relative_drop, comparison.interval, comparison.n)
    assert len(task.flips) == comparison.lost + comparison.gained


def test_a_reference_that_the_candidate_was_not_made_from_is_said(tmp_path: Path):
    """The policy of the examples has the built-in model as its reference, whatever --model names."""
    save_toy(tmp_path / "small", max_position_embeddings=512)
    save_toy(tmp_path / "large", max_position_embeddings=512, num_hidden_layers=9)
    for candidate, reference, said in (("large", "small", 1), ("small", "large", 0)):
        result = run_gate(policy_of(str(tmp_path / candidate), str(tmp_path / reference)))
        assert sum("was made from (--reference)" in warning for warning in result.warnings) == said


def test_flips_have_both_answers_and_losses_first(tmp_path: Path):
    with gated(0.25, tmp_path) as (result, *_):
        (task,) = result.tasks
    assert task.flips
    assert all(flip.is_lost and flip.candidate_answer.startswith("xylophone") for flip in task.flips)
    assert all((flip.reference_score, flip.candidate_score) == (1.0, 0.0) for flip in task.flips)


def test_the_second_time_only_the_candidate_is_asked(tmp_path: Path):
    with served(0.25) as (server, candidate):
        with served() as (dense, of_dense):
            policy = policy_of(server.reference(), dense.reference())
            first = run_gate(policy)
            assert len(of_dense.asked) == first.tasks[0].asked > 0
            assert first.asked is not None
            assert first.asked.reference_questions == len(of_dense.asked)
        # The server of the reference is gone.
        before = len(candidate.asked)
        second = run_gate(policy)
        assert len(candidate.asked) == 2 * before
        assert second.asked is not None
        assert (second.asked.reference_questions, second.asked.candidate_items) == (0, before)
        assert (second.tasks, second.reference_digest) == (first.tasks, first.reference_digest)
        with pytest.raises(ModelError, match="cannot reach"):
            run_gate({**policy, "prompting": "raw"})
        with pytest.raises(ModelError, match="cannot reach"):
            run_gate(policy, refresh=True)


def test_more_items_are_asked_of_the_reference_only_beyond_those_known(tmp_path: Path):
    with served() as (server, _), served() as (dense, of_dense):
        policy = policy_of(server.reference(), dense.reference(), budget={"items": 100})
        run_gate(policy)
        known = set(of_dense.asked)
        run_gate({**policy, "budget": {"items": 150}, "margin": 0.04})
        assert len(of_dense.asked) == len(set(of_dense.asked)) > len(known)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    for name, seed in (("dense", 0), ("other", 1)):
        save_toy(tmp_path / name, seed=seed, max_position_embeddings=512, chat=True)
    return tmp_path


def toy_policy(toys: Path, **changes: Any) -> dict[str, Any]:
    tasks = [{"name": "multiple_choice:letter", "limit": 24, "shots": 0}]
    few = {} if "tasks" in changes else {"margin": 0.5, "alpha": 0.2}  # 24 items decide nothing at a margin of 5 %
    values = policy_of(str(toys / "other"), str(toys / "dense"), tasks=tasks, dtype="float32", device="cpu", **few)
    return {**values, **changes}


class Loads:
    """Counts how often the reference is loaded."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, original = 0, reference_module.load_located

        def load(*arguments: Any, **options: Any) -> TransformersModel:
            self.count += 1
            return original(*arguments, **options)

        patch.setattr(reference_module, "load_located", load)

    def by(self, policy: dict[str, Any]) -> int:
        before = self.count
        run_gate(policy)
        return self.count - before


def test_the_weights_of_the_reference_are_loaded_once_for_the_same_questions(
    toys: Path, monkeypatch: pytest.MonkeyPatch
):
    loads, policy = Loads(monkeypatch), toy_policy(toys)
    assert [loads.by(policy), loads.by(policy)] == [1, 0]
    assert loads.by({**policy, "model": str(toys / "dense")}) == 0
    assert loads.by({**policy, "prompting": "raw"}) == 1
    assert loads.by({**policy, "dtype": "bfloat16"}) == 1
    assert loads.by({**policy, "dtype": "bfloat16"}) == 0
    shots = [{"name": "multiple_choice:letter", "limit": 24, "shots": 1}]
    assert loads.by({**policy, "tasks": shots}) == 1
    save_toy(toys / "dense", seed=2, max_position_embeddings=512, chat=True)
    assert [loads.by(policy), loads.by(policy)] == [1, 0]
    monkeypatch.setattr(reference_module.importlib.metadata, "version", lambda name: f"{name} of tomorrow")
    assert loads.by(policy) == 1


def test_a_reference_that_reads_is_loaded_for_answers_that_it_has_not_read(toys: Path, monkeypatch: pytest.MonkeyPatch):
    tasks = [{"name": "instruction", "limit": 16, "max_new_tokens": 4}]
    loads, policy = Loads(monkeypatch), toy_policy(toys, tasks=tasks, margin=0.9, alpha=0.4)
    assert [loads.by(policy), loads.by(policy)] == [1, 0]
    save_toy(toys / "other", seed=3, max_position_embeddings=512, chat=True)
    assert [loads.by(policy), loads.by(policy)] == [1, 0]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_dense_against_itself_matches_whatever_the_task_shows(toys: Path, dtype: str):
    """The toy model has no signal on these tasks, and few items would decide nothing."""
    tasks = [{"name": "multiple_choice:letter", "limit": 40, "shots": 0}, {"name": "factoid_qa", "limit": 3}]
    policy = toy_policy(toys, model=str(toys / "dense"), tasks=tasks, dtype=dtype)
    for _ in range(2):  # asked, and recalled
        result = run_gate(policy)
        assert result.exit_code == 0, result
        assert [entry.outcome for entry in result.tasks] == ["matches", "matches"]
        assert all("matches by definition" in entry.reason for entry in result.tasks)


def test_another_model_without_signal_could_not_be_measured(toys: Path):
    result = run_gate(toy_policy(toys))
    assert (result.exit_code, result.tasks[0].outcome) == (3, "unmeasured")
    assert "not shown to be above chance (0.25)" in result.tasks[0].reason


class Clock:
    """Advances by a second at every look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


def test_when_the_minutes_run_out_it_is_undecided_and_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deadline = deadline_module.Deadline
    monkeypatch.setattr(run_module, "Deadline", lambda seconds: deadline(seconds=seconds, now=Clock()))
    with served() as (dense, _), served(0.05) as (server, candidate):
        policy = policy_of(server.reference(), dense.reference(), margin=0.2)
        short = run_gate({**policy, "budget": {"minutes": 8 / 60}}, out=tmp_path / "run")
        (task,) = short.tasks
        assert (short.exit_code, task.outcome) == (2, "undecided")
        assert "minutes of the budget ran out" in task.reason
        assert 0 < task.asked == task.scored < 200
        assert task.bounds is not None
        assert task.bounds[0] < task.loss < task.bounds[1]
        asked = len(candidate.asked)
        whole = run_gate(policy, out=tmp_path / "run")
        assert whole.exit_code == 0
        assert len(candidate.asked) == whole.tasks[0].asked > asked
        assert any("were not asked again" in warning for warning in whole.warnings)
        assert whole.tasks == run_gate(policy).tasks


def test_minutes_that_are_over_at_once_leave_every_task_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deadline = deadline_module.Deadline
    monkeypatch.setattr(run_module, "Deadline", lambda seconds: deadline(seconds=0.5, now=Clock()))
    with served() as (dense, _), served() as (server, candidate):
        tasks = ["factoid_qa", {"name": "context_qa:closed"}]
        result = run_gate(policy_of(server.reference(), dense.reference(), tasks=tasks, budget={"minutes": 1}))
    assert result.exit_code == 2
    assert [(entry.outcome, entry.asked) for entry in result.tasks] == [("undecided", 0)] * 2
    assert candidate.asked == []


def test_a_model_that_was_not_asked_matches_nothing_not_even_itself(toys: Path, monkeypatch: pytest.MonkeyPatch):
    """The time is spent when the candidate's turn comes; that its weights are the reference's does not help it."""
    policy = toy_policy(toys, model=str(toys / "dense"))
    assert run_gate(policy).exit_code == 0
    deadline = deadline_module.Deadline
    monkeypatch.setattr(run_module, "Deadline", lambda seconds: deadline(seconds=0.5, now=Clock()))
    result = run_gate({**policy, "budget": {"minutes": 1}})
    assert (result.exit_code, [(entry.outcome, entry.asked) for entry in result.tasks]) == (2, [("undecided", 0)])


def test_answers_that_a_server_owes_make_it_incomplete(tmp_path: Path):
    with served() as (dense, _), served() as (server, candidate):
        known = candidate.__call__

        def script(path: str, body: dict[str, Any]) -> Any:
            from loopback import refused

            reply = known(path, body)
            return refused("too long", status=400) if len(candidate.asked) % 10 == 9 else reply

        server.script = script
        result = run_gate(policy_of(server.reference(), dense.reference(), margin=0.1, budget={"items": 100}))
    assert (result.exit_code, result.tasks[0].outcome) == (3, "unmeasured")
    assert "have no score, which could change the verdict" in result.tasks[0].reason


def test_a_refreshed_reference_is_asked_in_a_folder_that_has_its_answers_too(tmp_path: Path):
    with served() as (dense, of_dense), served() as (server, of_candidate):
        policy = policy_of(server.reference(), dense.reference(), budget={"items": 100}, margin=0.1)
        first = run_gate(policy, out=tmp_path / "run")
        asked = [len(knowing.asked) for knowing in (of_dense, of_candidate)]
        again = run_gate(policy, out=tmp_path / "run", refresh=True)
        assert [len(knowing.asked) for knowing in (of_dense, of_candidate)] == [2 * asked[0], asked[1]]
        assert again.tasks == first.tasks


# What cannot run


def test_a_budget_that_can_decide_nothing_is_refused_before_any_model_is_looked_for(tmp_path: Path):
    policy = policy_of("openai:http://127.0.0.1:9/v1#a", "openai:http://127.0.0.1:9/v1#b", budget={"items": 40})
    with pytest.raises(ConfigError, match=r"factoid_qa cannot be decided with its 40 items.* at least"):
        run_gate(policy)


def test_the_number_of_items_that_the_refusal_names_is_enough(tmp_path: Path):
    policy = policy_of("openai:http://127.0.0.1:9/v1#a", "openai:http://127.0.0.1:9/v1#b", budget={"items": 10})
    with pytest.raises(ConfigError) as refusal:
        run_gate(policy)
    needed = int(str(refusal.value).partition("it takes about ")[2].partition(" ")[0])
    with pytest.raises(ModelError, match="cannot reach"):
        run_gate({**policy, "budget": {"items": needed}})


def test_a_task_without_items_is_refused(monkeypatch: pytest.MonkeyPatch):
    from llmkick.tasks.suite.factoid_qa import FactoidQA

    monkeypatch.setattr(FactoidQA, "items", lambda *_: ())
    policy = policy_of("openai:http://127.0.0.1:9/v1#a", "openai:http://127.0.0.1:9/v1#b")
    with pytest.raises(ConfigError, match="factoid_qa has no items"):
        run_gate(policy)


@pytest.mark.parametrize("gone", ["model", "reference"])
def test_a_missing_model_or_server_is_an_error(toys: Path, gone: str):
    for nothing in (str(toys / "nowhere"), "openai:http://127.0.0.1:9/v1#m"):
        with pytest.raises(ModelError, match=r"nowhere|cannot reach"):
            run_gate({**toy_policy(toys), gone: nothing})


def test_a_server_that_goes_down_is_an_error_that_keeps_the_answers(tmp_path: Path):
    with served() as (dense, _), served() as (server, candidate):
        policy = policy_of(server.reference(), dense.reference())
        known = candidate.__call__

        def script(path: str, body: dict[str, Any]) -> Any:
            from loopback import Reply

            return Reply(nothing=True) if len(candidate.asked) >= 50 else known(path, body)

        server.script = script
        with pytest.raises(KickError, match="cannot reach"):
            run_gate(policy, out=tmp_path / "run")
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / JOURNAL_FILE)) as journal:
        assert journal.execute("SELECT count(*) FROM records WHERE recipe = 'built'").fetchone()[0] >= 32


# Stored answers


@pytest.fixture(scope="module")
def answers_of_a_reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A policy, and the file with the answers of its reference, whose server is gone."""
    target = tmp_path_factory.mktemp("stored") / "reference.jsonl"
    with pytest.MonkeyPatch.context() as patch, served() as (dense, _):
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("NO_PROXY", "127.0.0.1")
        values = policy_of("openai:http://127.0.0.1:9/v1#a", dense.reference(), budget={"items": 150})
        assert store_reference(make_policy(values), target) == 150
    return values, target


@pytest.fixture
def stored(answers_of_a_reference: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """The same, in a file that a test may spoil."""
    values, file = answers_of_a_reference
    target = tmp_path / "reference.jsonl"
    shutil.copy(file, target)
    return {**values, "reference": str(target)}, target


def test_stored_answers_take_the_place_of_the_reference(stored: tuple[dict[str, Any], Path]):
    policy, _ = stored
    with served(0.3) as (server, candidate):
        result = run_gate({**policy, "model": server.reference()})
        assert (result.exit_code, result.asked.reference_questions) == (1, 0)
        assert len(candidate.asked) == result.tasks[0].asked


@pytest.mark.parametrize(
    "changes", [{"budget": {"items": 200}}, {"prompting": "raw"}, {"tasks": [{"name": "factoid_qa", "seed": 3}]}]
)
def test_stored_answers_to_other_questions_are_refused_before_the_candidate_is_asked(
    stored: tuple[dict[str, Any], Path], changes: dict[str, Any]
):
    policy, _ = stored
    with served() as (server, candidate):
        with pytest.raises(DataError, match="stored for other items, prompts or settings"):
            run_gate({**policy, "model": server.reference(), **changes})
        assert candidate.asked == []


def test_stored_answers_of_other_settings_or_damaged_ones_are_refused(stored: tuple[dict[str, Any], Path]):
    policy, target = stored
    with pytest.raises(ConfigError, match="stored with thinking = off"):
        run_gate({**policy, "thinking": "on"})
    lines = target.read_text().splitlines()
    target.write_text("\n".join([*lines[:5], lines[5][:20], *lines[6:]]) + "\n")
    with pytest.raises(DataError, match=r"reference\.jsonl, line 6: not a stored answer"):
        run_gate(policy)
    target.write_text(lines[0].replace('"llmkick_answers": 1', '"llmkick_answers": 9') + "\n")
    with pytest.raises(DataError, match="has schema 9; this version reads 1"):
        run_gate(policy)
    target.write_text("")
    with pytest.raises(DataError, match="holds no stored answers"):
        run_gate(policy)


def test_stored_answers_cannot_read_those_of_the_candidate(stored: tuple[dict[str, Any], Path], tmp_path: Path):
    policy, _ = stored
    reading = {**policy, "tasks": ["factoid_qa", "instruction"], "margin": 0.9}
    with pytest.raises(ConfigError, match="instruction has the reference read"):
        run_gate(reading)
    with pytest.raises(ConfigError, match="instruction has the reference read"):
        store_reference(make_policy({**reading, "reference": "openai:http://127.0.0.1:9/v1#a"}), tmp_path / "b.jsonl")


def test_storing_again_mends_a_damaged_file(tmp_path: Path):
    target = tmp_path / "reference.jsonl"
    with served() as (dense, _), served(0.3) as (server, _):
        values = policy_of(server.reference(), dense.reference(), budget={"items": 150})
        assert store_reference(make_policy(values), target) == 150
        lines = target.read_text().splitlines()
        target.write_text("\n".join([*lines[:5], lines[5][:20], *lines[6:]]) + "\n")
        assert store_reference(make_policy(values), target) == 1
        assert run_gate({**values, "reference": str(target)}).exit_code == 1


def test_answers_of_another_model_are_replaced_on_demand_only(tmp_path: Path):
    target = tmp_path / "reference.jsonl"
    with served() as (dense, of_dense), served() as (other, of_other):
        values = policy_of(other.reference(), dense.reference(), budget={"items": 80})
        store_reference(make_policy(values), target)
        before = target.read_bytes()
        changed = make_policy({**values, "reference": other.reference()})
        with pytest.raises(ConfigError, match="holds the answers of another model"):
            store_reference(changed, target)
        assert target.read_bytes() == before
        assert store_reference(changed, target, refresh=True) == 80
        assert len(of_other.asked) == 80
        # A server may have another model under the same name.
        assert store_reference(changed, target) == 0
        assert store_reference(changed, target, refresh=True) == 80
        assert len(of_dense.asked) == 80


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path):
    target = tmp_path / "data.jsonl"
    target.write_text('{"question": "mine"}\n')
    values = policy_of("openai:http://127.0.0.1:9/v1#a", "openai:http://127.0.0.1:9/v1#b")
    with pytest.raises(ConfigError, match="exists and holds no stored answers"):
        store_reference(make_policy(values), target)
    assert target.read_text() == '{"question": "mine"}\n'
