"""Studies of models that think, and of servers as they are: in the key where it changes prompts, said, and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llmkick.errors import ModelError
from llmkick.models.engine import answers
from llmkick.models.server import failures as endpoint_failures
from llmkick.models.thoughts import Thinking
from llmkick.report.page.page import write_report
from llmkick.study.cells import Variant, cells_of
from llmkick.study.journal.journal import Journal
from llmkick.study.results.results import RESULTS_FILE
from llmkick.study.run import run_study
from llmkick.study.running.external_models import ExternalModels
from llmkick.study.running.keys import StudyKeys
from llmkick.study.spec.study import Study, make_study
from llmkick.tasks import evaluate as asking
from llmkick.tasks.prompting import Prompting
from loopback import Reply, chat, refused, serving
from speeds import others_slow
from toy import save_toy, toy_model, toy_tokenizer

PLAIN: str = toy_tokenizer(chat=True).chat_template  # type: ignore[assignment]
SWITCHED = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
OPENS = PLAIN + "{% if add_generation_prompt %}<think>\n{% endif %}"
TASKS = [{"name": "factoid_qa", "limit": 6}]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(asking, "BATCH_ITEMS", 2)
        patch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)
        yield


def study_of(model: str, *others: str, **changes: Any) -> Study:
    values = {"model": model, "others": list(others), "tasks": TASKS, "dtype": "float32", "device": "cpu"}
    return make_study({**values, "server": {"attempts": 2, "concurrency": 1}, **changes})


def records_of(folder: Path) -> pd.DataFrame:
    journal = Journal(folder, read_only=True)
    try:
        return journal.records()
    finally:
        journal.close()


# Keys


def keys_of(template: str, thinking: Thinking, prompting: Prompting) -> tuple[str, str]:
    """The run key of the dense model, and the same without anything about thinking."""
    model = toy_model(chat=True).with_thinking(thinking)
    model.tokenizer.chat_template = template
    study = make_study({"model": "x", "recipes": ["rtn@4b"], "tasks": TASKS, "thinking": thinking})
    tasks = [spec.make() for spec in study.tasks]
    keys = StudyKeys(
        study=study, model=model, tasks=tasks, external_models=ExternalModels(study=study), prompting=prompting,
        calibrations={},
    )  # fmt: skip
    plain = cells_of(Variant(), tasks, weights=keys.weights_key(Variant()), prompting=prompting)
    return keys.cells(Variant())[0].run_key, plain[0].run_key


@pytest.mark.parametrize("prompting", ["chat", "raw"])
@pytest.mark.parametrize("template", [PLAIN, SWITCHED, OPENS])
def test_thinking_is_in_the_key_where_it_changes_prompts_or_is_on(template: str, prompting: Prompting):
    off, plain = keys_of(template, "off", prompting)
    on, same_plain = keys_of(template, "on", prompting)
    assert plain == same_plain
    assert (off == plain) is (prompting == "raw" or template == PLAIN)
    assert (on == plain) is (prompting == "raw")
    assert (on == off) is (prompting == "raw")


def test_studies_without_thinking_keep_their_hash():
    default = study_of("x", "y")
    assert default.hash() == study_of("x", "y", thinking="off").hash() != study_of("x", "y", thinking="on").hash()
    assert "thinking" not in json.dumps(default.model_dump(exclude={"thinking"}))


def test_two_models_here_with_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "THOUGHT_TOKENS", 40)  # a toy never ends a thought
    for name, template in (("dense", SWITCHED), ("other", OPENS)):
        save_toy(tmp_path / name, chat=True, max_position_embeddings=2048)
        settings = tmp_path / name / "chat_template.jinja"
        settings.write_text(template, encoding="utf-8")
    found = {}
    for thinking in ("off", "on"):
        study = study_of(str(tmp_path / "dense"), str(tmp_path / "other"), thinking=thinking)
        result = run_study(study, out=tmp_path / thinking)
        found[thinking] = set(records_of(tmp_path / thinking)["run_key"])
        assert f"dense: thinking is {thinking} in conversations" in result.warnings
        assert json.loads((tmp_path / thinking / RESULTS_FILE).read_text())["study"]["thinking"] == thinking
    assert len(found["off"]) == len(found["on"]) == 2
    assert not found["off"] & found["on"]


# Servers


def chat_only(answer: Any) -> Any:
    def script(path: str, body: dict[str, Any]) -> Any:
        return answer(body) if path.endswith("/chat/completions") else refused("Not Found", 404)

    return script


BROKEN = ("Paris \ud83d", "\ude00 Paris", "Par\x00is", "\ud83d\ud83d")


@pytest.mark.parametrize("broken", others_slow(BROKEN, [BROKEN[0], BROKEN[2]]))
def test_broken_characters_of_a_server_stand_in_every_file(tmp_path: Path, broken: str):
    with serving(chat_only(lambda body: chat(broken))) as server:
        study = study_of(server.reference(), "again=" + server.reference())  # the same server twice
        result = run_study(study, out=tmp_path / "run")
        write_report(tmp_path / "run")
        again = run_study(study, out=tmp_path / "run")
    records = records_of(tmp_path / "run")
    assert set(records["response"]) == {"".join(c if c.isalpha() or c == " " else "\ufffd" for c in broken).strip()}
    assert [details["replaced_characters"] for details in records["details"]]
    records.drop(columns="details").to_parquet(tmp_path / "records.parquet")
    assert "dense on factoid_qa: 6 answers came with broken characters, which are replaced" in result.warnings
    assert again.comparisons == result.comparisons
    assert len(result.models) == 2


def test_a_run_that_stopped_after_a_broken_character_goes_on(tmp_path: Path):
    lives = [7]

    def answer(body: dict[str, Any]) -> Any:
        lives[0] -= 1
        return Reply(nothing=True) if lives[0] < 0 else chat("Paris \ud83d")

    save_toy(tmp_path / "toy", chat=True, max_position_embeddings=2048)
    with serving(chat_only(answer)) as server:
        study = study_of(str(tmp_path / "toy"), "served=" + server.reference())
        with pytest.raises(ModelError, match="cannot reach"):
            run_study(study, out=tmp_path / "run")
        before = records_of(tmp_path / "run")
        lives[0] = 10**6
        run_study(study, out=tmp_path / "run")
    records = records_of(tmp_path / "run")
    assert len(before) < len(records) == 12
    assert set(records[records["recipe"] == "served"]["response"]) == {"Paris \ufffd"}


def test_thoughts_of_a_server_are_not_scored_and_that_is_said(tmp_path: Path):
    def answer(body: dict[str, Any]) -> Any:
        if "temperature" in body:
            return refused("Unsupported parameter: 'temperature' is not supported with this model.")
        if "capital" in str(body["messages"][-1]):
            return chat("<think>It is Par", finish="length")
        return chat("<think>Paris</think>I do not know.")

    tasks = [{"name": "factoid_qa", "limit": 60}]
    with serving(chat_only(answer)) as server:
        result = run_study(study_of(server.reference(), "o=" + server.reference(), tasks=tasks), out=tmp_path / "run")
    records = records_of(tmp_path / "run")
    cut = records[records["score"].isna()]
    assert 0 < len(cut) < len(records)
    assert set(records[records["score"].notna()]["response"]) == {"I do not know."}
    assert all("inside its thought" in reason for reason in cut["unscored_reason"])
    warnings = " | ".join(result.warnings)
    assert "m: it thinks although thinking is off; thoughts are not scored" in warnings
    assert "m: it refuses temperature, which is left out" in warnings
    assert "answers were scored without the thoughts before them" in warnings
