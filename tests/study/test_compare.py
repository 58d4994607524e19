"""A dense model and others made elsewhere: folders, files, packed models, servers; paired, resumed, refused in time."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import vllm_stub
from llmkick.errors import ConfigError, ModelError
from llmkick.models.checkpoints import loading
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.language_model import GenerateRequest
from llmkick.models.server import failures as endpoint_failures
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.vllm.model import load_vllm
from llmkick.report.models import model_facts, models_frame
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.results.results import RESULTS_FILE, StudyResult, read_results
from llmkick.study.run import run_study
from llmkick.study.running import external_models as others_module
from llmkick.study.spec.model_names import label_others
from llmkick.study.spec.study import Study, make_study
from llmkick.tasks import evaluate as asking
from loopback import Reply, completion, refused, serving
from toy import save_toy, save_toy_gguf, toy_tokenizer

TASKS = [
    {"name": "factoid_qa", "limit": 5},
    {"name": "multiple_choice:cloze", "limit": 4},
    {"name": "perplexity", "window": 24, "limit": 3},
]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(asking, "BATCH_ITEMS", 2)
        patch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense, other (other weights), pruned (by hand, 2:4), talker (with a chat template), spaced (other tokens)."""
    folder = tmp_path_factory.mktemp("models")
    for name, options in (("dense", {}), ("other", {"seed": 1}), ("talker", {"seed": 2, "chat": True})):
        save_toy(folder / name, max_position_embeddings=2048, **options)
    save_toy(folder / "pruned", max_position_embeddings=2048)
    weights = load_file(folder / "pruned" / "model.safetensors")
    for name, weight in weights.items():
        if ".layers." in name and weight.dim() == 2:
            weight.reshape(-1, 4)[:, :2] = 0
    save_file(weights, folder / "pruned" / "model.safetensors", metadata={"format": "pt"})
    save_toy(folder / "spaced", seed=1, max_position_embeddings=2048)
    toy_tokenizer(start=False).save_pretrained(folder / "spaced")
    return folder


def study_of(models: Path, *others: str, **changes: Any) -> Study:
    known = [str(models / other) if (models / other).exists() else other for other in others]
    values = {"model": str(models / "dense"), "dtype": "float32", "device": "cpu", "tasks": TASKS, "others": known}
    return make_study({**values, **changes})


def records_of(folder: Path) -> pd.DataFrame:
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        return pd.read_sql_query("SELECT * FROM records", connection)


def content(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    del values["timing"]
    return values


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return run_study(study_of(models, "other", "pruned"), out=tmp_path_factory.mktemp("runs") / "finished")


def test_every_model_is_asked_and_compared_with_the_dense_one(finished: StudyResult, models: Path):
    names = [task["name"] for task in TASKS]
    assert [(row["recipe"], row["task"]) for row in finished.results] == [
        (label, name) for label in ("dense", "other", "pruned") for name in names
    ]
    assert {(c.recipe, c.task) for c in finished.comparisons} == {
        (label, name) for label in ("other", "pruned") for name in names
    }
    assert [row["recipe"] for row in finished.overall] == ["other", "pruned"] == finished.labels
    records = records_of(finished.folder)
    assert dict(records.groupby("recipe")["model"].first()) == {
        "dense": "dense", "other": "other", "pruned": "pruned"
    }  # fmt: skip
    assert finished.compression == ()


def test_the_records_are_those_that_each_model_gives_alone(finished: StudyResult, models: Path):
    records = records_of(finished.folder)
    for label in ("dense", "other", "pruned"):
        model = load_model(str(models / label), dtype="float32", device="cpu")
        for spec in study_of(models, "other").tasks:
            own = records[(records["recipe"] == label) & (records["task"] == spec.make().name)].set_index("item_id")
            for record in asking.evaluate(model, spec.make()):
                assert own.loc[record.item_id, "score"] == pytest.approx(record.score)
                assert own.loc[record.item_id, "response"] == record.response


def test_sizes_zeros_and_patterns_stand_beside_the_scores(finished: StudyResult, models: Path):
    found = {model["label"]: model for model in finished.models}
    assert list(found) == ["dense", "other", "pruned"]
    for label, model in found.items():
        assert model["parameters"] == 18544
        assert model["stored_bytes"] == (models / label / "model.safetensors").stat().st_size
    assert (found["dense"]["zeros"]["pattern"], found["pruned"]["zeros"]["pattern"]) == ("", "2:4")
    assert found["pruned"]["zeros"]["share"] == 0.5
    frame = models_frame(finished).set_index("model")
    assert frame.loc["pruned", "nonzero"] == 18544 - found["pruned"]["zeros"]["count"]
    assert "50 % zeros (2:4)" in dict(model_facts(finished))["pruned"]
    assert read_results(finished.folder).models == finished.models


def test_again_nothing_is_opened_or_asked(finished: StudyResult, models: Path, monkeypatch: pytest.MonkeyPatch):
    before = content(finished.folder)
    monkeypatch.setattr(others_module, "load_located", None)
    monkeypatch.setattr(TransformersModel, "generate", None)
    run_study(study_of(models, "other", "pruned"), out=finished.folder)
    assert content(finished.folder) == before


def test_one_model_is_in_memory_beside_the_dense_one_at_a_time(models: Path, tmp_path: Path, monkeypatch: Any):
    import gc
    import weakref

    alive: list[Any] = []
    original = others_module.load_located

    def loading(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        assert [one for one in alive if one() is not None] == []
        model = original(*arguments, **options)
        alive.append(weakref.ref(model.network))
        return model

    monkeypatch.setattr(others_module, "load_located", loading)
    run_study(study_of(models, "other", "pruned", tasks=TASKS[:1]), out=tmp_path / "run")
    assert len(alive) == 2


def test_recipes_and_other_models_share_a_study(models: Path, tmp_path: Path):
    study = study_of(models, "pruned", recipes=["magnitude@2:4"], tasks=TASKS[1:2])
    result = run_study(study, out=tmp_path / "run")
    assert result.labels == ["magnitude@2:4", "pruned"]
    assert [row["recipe"] for row in result.results] == ["dense", "magnitude@2:4", "pruned"]
    assert [report["recipe"] for report in result.compression] == ["magnitude@2:4"]
    sizes = {model["label"]: model["stored_bytes"] for model in result.models}
    assert sizes["magnitude@2:4"] < 4 * 18544 < sizes["pruned"]


def test_a_gguf_and_its_origin(models: Path, tmp_path: Path):
    save_toy_gguf(tmp_path / "a.gguf", precision="F32")
    save_toy_gguf(tmp_path / "b.gguf", precision="Q4_0")
    study = make_study(
        {
            "model": str(tmp_path / "a.gguf"),
            "others": [str(tmp_path / "b.gguf")],
            "tasks": TASKS[1:],
            "dtype": "float32",
            "device": "cpu",
            "prompting": "raw",
        }
    )
    result = run_study(study, out=tmp_path / "run")
    assert result.labels == ["b"]
    assert [model["source_precision"] for model in result.models] == ["float", "Q4_0"]
    assert result.models[1]["stored_bytes"] < result.models[0]["stored_bytes"]
    assert [task["name"] for task in result.tasks] == ["multiple_choice:cloze", "perplexity"]  # the same tokens


# Different tokens


def test_with_other_tokens_perplexity_becomes_bits_per_byte(models: Path, tmp_path: Path):
    result = run_study(study_of(models, "spaced", "other"), out=tmp_path / "run")
    assert [task["name"] for task in result.tasks] == ["factoid_qa", "multiple_choice:cloze", "bits_per_byte"]
    assert result.warnings[0].startswith("perplexity is measured in bits per byte: the tokens of spaced are not")
    found = [entry for entry in result.comparisons if entry.task == "bits_per_byte"]
    assert [entry.recipe for entry in found] == ["spaced", "other"]
    assert all(entry.n == 3 and entry.kind == "perplexity" for entry in found)
    # The same weights behind other start tokens: close, but not the same number of bits.
    assert found[0].compressed == pytest.approx(found[1].compressed, rel=0.2)


@pytest.mark.parametrize("other", ["other", "spaced"])
def test_tokens_of_models_that_vllm_runs_are_compared(models: Path, other: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", vllm_stub.installed())
    dense, compared = (load_vllm(str(models / name), dtype="float32", device="auto") for name in ("dense", other))
    study = study_of(models, f"vllm:{models / other}")
    external = others_module.ExternalModels(study=study, checkpoints={}, live={other: compared})
    assert external.with_other_tokens(dense) == ([] if other == "other" else ["spaced"])


def test_a_unit_that_is_asked_for_is_kept(models: Path, tmp_path: Path):
    tasks = [{"name": "perplexity", "window": 24, "limit": 3, "unit": "bytes"}]
    result = run_study(study_of(models, "other", tasks=tasks), out=tmp_path / "run")
    assert [task["metric"] for task in result.tasks] == ["bits_per_byte"]
    assert not [warning for warning in result.warnings if "bits per byte" in warning]


# How they are asked


def test_all_are_asked_alike_in_raw_text_when_one_has_no_chat_template(models: Path, tmp_path: Path):
    study = study_of(models, "other", model=str(models / "talker"), tasks=TASKS[:1])
    assert run_study(study, out=tmp_path / "run").tasks[0]["prompting"] == "raw"
    both = study_of(models, "t=" + str(models / "talker"), model=str(models / "talker"), tasks=TASKS[:1])
    assert run_study(both, out=tmp_path / "chat").tasks[0]["prompting"] == "chat"
    with pytest.raises(ConfigError, match="other has no chat template"):
        run_study(study_of(models, "other", model=str(models / "talker"), prompting="chat"), out=tmp_path / "refused")


def test_fewer_worked_examples_than_the_dense_model_got_are_said(models: Path, tmp_path: Path):
    save_toy(tmp_path / "short", max_position_embeddings=180)
    study = study_of(models, str(tmp_path / "short"), tasks=[{"name": "context_qa:closed", "limit": 4}])
    warnings = run_study(study, out=tmp_path / "run").warnings
    assert [w for w in warnings if w.startswith("short on context_qa:closed: 4 items were asked with other worked")]


# Labels


def test_labels(tmp_path: Path):
    for place in ("a/q4", "b/q4"):
        (tmp_path / place).mkdir(parents=True)
    first, second = str(tmp_path / "a/q4"), str(tmp_path / "b/q4")
    assert label_others([first, "x/y@v1"], taken=()) == {"q4": first, "x/y@v1": "x/y@v1"}
    assert list(label_others([first, second], taken=())) == ["a/q4", "b/q4"]
    assert label_others([f"mine={first}", second], taken=()) == {"mine": first, "q4": second}
    server = "openai:http://h:1/a=b/v1#org/name"
    assert label_others([server, f"s={server}", "m.gguf"], taken=()) == {"org/name": server, "s": server, "m": "m.gguf"}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["a=x", "a=y"], "'a' would name two models"),
        (["x/y", "x/y"], "'x/y' would name two models"),
        (["dense=x"], "'dense' already names the dense model or a recipe"),
        (["wanda@0.5=x"], "'wanda@0.5' already names"),
        (["n= "], "an empty model reference"),
        (["openai:nowhere"], "cannot read the server"),
    ],
)
def test_labels_that_cannot_be(others: list[str], message: str, models: Path):
    with pytest.raises(ConfigError, match=message):
        study_of(models, *others, recipes=["wanda@0.5"])


def test_a_server_cannot_be_compressed(models: Path):
    with pytest.raises(ConfigError, match="is a server, whose model cannot be compressed here"):
        study_of(models, model="openai:http://127.0.0.1:1/v1#m", recipes=["wanda@0.5"])


def test_other_models_and_how_servers_are_asked_do_not_change_old_hashes(models: Path):
    plain = study_of(models, recipes=["wanda@0.5"])
    assert plain.hash() == study_of(models, recipes=["wanda@0.5"], server={"concurrency": 3}).hash()
    assert plain.hash() != study_of(models, "other", recipes=["wanda@0.5"]).hash()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no/such@model", "cannot get 'no/such@model' from the hub"),
        ("nowhere", "unknown model 'nowhere'"),
        ("missing.gguf", "there is no file missing.gguf"),
        ("openai:http://127.0.0.1:9/v1#m", "cannot reach http://127.0.0.1:9/v1"),
    ],
)
def test_what_is_missing_shows_before_any_model_is_loaded(
    reference: str, message: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "_read", None)
    with pytest.raises(ModelError, match=message):
        run_study(study_of(models, "other", reference, server={"attempts": 1}), out=tmp_path / "run")


# Servers


class Serving:
    """A toy behind a server's interface; after `lives` batches of answers it is gone."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(str(folder), dtype="float32", device="cpu")
        self.lives = 10**6

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if not path.endswith("/completions") or path.endswith("chat/completions") or body.get("echo"):
            return refused("not here", 404)
        self.lives -= 1
        if self.lives < 0:
            return Reply(nothing=True)
        stops = tuple(body.get("stop", ()))
        with torch.inference_mode():
            answer: Any = self.model.generate([GenerateRequest(body["prompt"], stops, body["max_tokens"])])[0]
        return completion(answer.text, finish="length" if answer.finish == "length" else "stop", tokens=answer.tokens)


ASKED = [{"name": "factoid_qa", "limit": 5}, {"name": "context_qa:closed", "limit": 4}]


@pytest.fixture
def behind(models: Path) -> Serving:
    return Serving(models / "other")


def test_a_server_and_the_same_model_here_give_the_same_answers(models: Path, tmp_path: Path, behind: Serving):
    with serving(behind) as server:
        study = study_of(models, "other", "served=" + server.reference(), tasks=ASKED, server={"attempts": 2})
        result = run_study(study, out=tmp_path / "run")
    records = records_of(tmp_path / "run").set_index(["recipe", "task", "item_id"])
    for column in ("response", "score", "truncated"):
        assert records.loc["served"][column].to_dict() == records.loc["other"][column].to_dict()
    assert [warning for warning in result.warnings if "cannot be verified" in warning]
    described = result.models[-1]
    assert (described["parameters"], described["stored_bytes"], described["zeros"]) == (None, None, None)
    assert dict(model_facts(result))["served"] == "as unknown"


def test_a_server_may_be_the_dense_model(models: Path, tmp_path: Path, behind: Serving):
    with serving(behind) as server:
        result = run_study(study_of(models, "other", model=server.reference(), tasks=ASKED), out=tmp_path / "run")
    assert {entry.lost + entry.gained for entry in result.comparisons} == {0}


def test_equal_models_keep_a_row_each(models: Path, tmp_path: Path, behind: Serving):
    """Two servers with one address, or two folders with the same weights, give the same answers under two labels."""
    folder = str(models / "other")
    twins = run_study(study_of(models, f"a={folder}", f"b={folder}", tasks=ASKED[:1]), out=tmp_path / "folders")
    assert [row.recipe for row in twins.results] == ["dense", "a", "b"]
    assert [row.value for row in twins.results[1:]] == [twins.results[1].value] * 2
    assert [comparison.recipe for comparison in twins.comparisons] == ["a", "b"]
    with serving(behind) as server:
        served = server.reference()
        study = study_of(models, f"twin={served}", model=served, tasks=ASKED[:1])
        result = run_study(study, out=tmp_path / "servers")
    assert [row.recipe for row in result.results] == ["dense", "twin"]
    assert result.comparisons[0].compressed == result.comparisons[0].dense
    assert [model.label for model in result.models] == ["dense", "twin"]


def questions_of(asked: list[tuple[str, dict[str, Any]]]) -> set[str]:
    """Prompts of the items; what a check of the server asks takes one token."""
    return {body["prompt"] for _, body in asked if body["max_tokens"] > 1 and "prompt" in body}


@pytest.mark.parametrize("lives", [6, pytest.param(10, marks=pytest.mark.slow)])
def test_a_server_that_goes_away_loses_one_batch_at_most(models: Path, tmp_path: Path, behind: Serving, lives: int):
    with serving(behind) as server:
        study = study_of(models, "served=" + server.reference(), tasks=ASKED, server={"attempts": 2})
        whole = run_study(study, out=tmp_path / "whole")
        questions = questions_of(server.asked)
        behind.lives = lives
        with pytest.raises(ModelError, match=r"cannot reach"):
            run_study(study, out=tmp_path / "run")
        kept = records_of(tmp_path / "run")
        of_server = kept[kept["recipe"] == "served"]
        assert len(of_server) >= 2
        behind.lives = 10**6
        asked = len(server.asked)
        run_study(study, out=tmp_path / "run")
        # A set: a request of the stopped run may still arrive, for a question that has no record.
        assert len(questions_of(server.asked[asked:])) == len(questions) - len(of_server)
    assert content(tmp_path / "run") == content(whole.folder)


@pytest.mark.parametrize("task", ["perplexity", "multiple_choice:cloze"])
def test_what_a_server_cannot_be_asked_is_said_before_any_work(
    models: Path, tmp_path: Path, behind: Serving, task: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TransformersModel, "logprobs", None)
    with serving(behind) as server:
        study = study_of(models, "served=" + server.reference(), tasks=[{"name": task, "limit": 2}])
        with pytest.raises(ConfigError, match=r"cannot be asked of m: .*gives no log-probabilities"):
            run_study(study, out=tmp_path / "run")
    assert len(records_of(tmp_path / "run")) == 0


def test_letters_of_a_server_are_labelled(models: Path, tmp_path: Path, behind: Serving):
    tasks = [{"name": "multiple_choice:letter", "limit": 3, "shots": 0}]

    def script(path: str, body: dict[str, Any]) -> Any:
        found = behind(path, body)
        return found if isinstance(found, Reply) else completion(" B")

    with serving(script) as server:
        result = run_study(study_of(models, "served=" + server.reference(), tasks=tasks), out=tmp_path / "run")
    assert "served on multiple_choice:letter: 3 options were chosen by generated letter, not by log-probability" in (
        result.warnings
    )
