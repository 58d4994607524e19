"""Exported tasks: what is written, what is refused, and that lm-eval gives every item our score."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

import toy
from llmkick import cli
from llmkick.errors import ConfigError
from llmkick.files import cache_folder
from llmkick.lm_eval import exporting
from llmkick.lm_eval.exporting import export_tasks
from llmkick.lm_eval.pairing import SamplePair
from llmkick.lm_eval.samples import Sample, find_samples
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.language_model import ContinuationScore, Generation, ScoreRequest
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from llmkick.tasks.renaming import renamed
from llmkick.tasks.task import Answer, Record, Task, groups_of
from toy import save_toy, toy_model

NAMES = ("factoid_qa", "multiple_choice:letter", "multiple_choice:cloze", "context_qa:closed", "context_qa:open")
PAPER = ("factoid_qa", "multiple_choice:letter", "context_qa:closed", "context_qa:open")
# The environment that benchmarks/scoring.py makes: lm-eval pins and drags in too much to live in ours.
LM_EVAL = Path(os.environ.get("LLMKICK_LM_EVAL", cache_folder("benchmarks") / "lm_eval-0.4.13" / "bin" / "python"))


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def utils_of(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_utils", folder / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What is written


def test_documents_hold_the_prompts_as_they_are_asked(tmp_path: Path):
    tasks = [get_task(name, limit=5) for name in NAMES]
    export = export_tasks(tasks, tmp_path / "out")
    assert export.names == (
        "llmkick_factoid_qa", "llmkick_multiple_choice_letter", "llmkick_multiple_choice_cloze",
        "llmkick_context_qa_closed", "llmkick_context_qa_open",
    )  # fmt: skip
    for task, name in zip(tasks, export.names, strict=True):
        for row, item in zip(rows(tmp_path / "out", name), task.items(), strict=True):
            requests = task.requests(item, "raw")
            group = row["subject" if groups_of(task) == "strata" else "cluster"]
            assert (row["id"], group, row["prompt"]) == (item.id, item.cluster, requests[0].prompt)
            if isinstance(requests[0], ScoreRequest):
                assert row["options"] == [request.continuation for request in requests]  # type: ignore[union-attr]
                assert row["answer"] == item.answer
    assert export.command in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "pretrained=MODEL,dtype=float32 --tasks llmkick_factoid_qa,llmkick_mult" in export.command


@pytest.mark.parametrize(
    ("name", "protocol"), [*((name, "strict") for name in NAMES), ("multiple_choice:letter", "paper")]
)
def test_an_import_of_exported_tasks_has_the_groups_and_chance_of_a_run_here(tmp_path: Path, name: str, protocol: str):
    task = get_task(name, protocol=protocol)
    (exported,) = export_tasks([task], tmp_path / "out").names
    samples = {
        number: Sample(doc_hash="", prompt_hash="", metrics={"acc": 1}, fields=fields_of(row), options=0, labels={})
        for number, row in enumerate(rows(tmp_path / "out", exported))
    }
    pair = SamplePair(task=exported, files=(tmp_path, tmp_path), dense=samples, compressed=samples)
    (groups,) = pair.groups()
    assert groups.kind == groups_of(task)
    assert [groups.of[number] for number in samples] == [item.cluster for item in task.items()]
    assert pair.chance("acc") == task.chance_level


def fields_of(row: dict) -> dict[str, str]:
    return {name: str(value) for name, value in row.items() if isinstance(value, str | int)}


ANSWERS = ["Paris", "It is Paris.", "\n\n Paris\nLondon", "London\nParis", "", "the paris-dakar", "par is", "P"]


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize("name", ["factoid_qa", "context_qa:closed"])
def test_exported_scoring_of_answers_is_ours(tmp_path: Path, name: str, protocol: str):
    task = get_task(name, limit=4, protocol=protocol)
    (lm_eval_name,) = export_tasks([task], tmp_path / "out").names
    document, item = rows(tmp_path / "out", lm_eval_name)[0], task.items()[0]
    score = getattr(utils_of(tmp_path / "out"), scorer_in(tmp_path / "out" / f"{lm_eval_name}.yaml"))
    scores = set()
    right = item.references[0]
    for text in [*ANSWERS, right, f"\n{right}!", f"x{right}x", f"no\n{right}", right[: len(right) // 2]]:
        ours = task.score(item, [Generation(text=text, tokens=3, finish="end")]).score
        assert score(document, [text]) == {"acc": ours}, text
        scores.add(ours)
    assert scores == {0, 1}


def scorer_in(path: Path) -> str:
    found = re.search(r"process_results: !function utils\.(\w+)", path.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", ["multiple_choice:letter", "multiple_choice:cloze"])
def test_exported_scoring_of_options_is_ours_ties_too(tmp_path: Path, name: str):
    task = get_task(name, limit=4)
    (lm_eval_name,) = export_tasks([task], tmp_path / "out").names
    score = getattr(utils_of(tmp_path / "out"), scorer_in(tmp_path / "out" / f"{lm_eval_name}.yaml"))
    scores = set()
    for document, item in zip(rows(tmp_path / "out", lm_eval_name), task.items(), strict=True):
        for place in range(4):
            for tie in (False, True):
                values = [-1.0 if n == place else -60.0 for n in range(4)]
                if tie:
                    values = [-2.0 * size for size in document["bytes"]] if name.endswith("cloze") else [-2.0] * 4
                answers: list[Answer] = [ContinuationScore(logprob=v, tokens=1, is_greedy=False) for v in values]
                ours = task.score(item, answers).score
                assert score(document, [(value, False) for value in values]) == {"acc": ours}
                scores.add(ours)
    assert scores == {0, 1}


def test_the_paper_s_letter_is_the_last_character(tmp_path: Path):
    task = get_task("multiple_choice:letter", limit=3, protocol="paper")
    export_tasks([task], tmp_path / "out")
    document, item = rows(tmp_path / "out", "llmkick_multiple_choice_letter_paper")[0], task.items()[0]
    for text in ("A", " B", "C.", "\nD", "", "ABCD"):
        ours = task.score(item, [Generation(text=text, tokens=1, finish="length")]).score
        assert utils_of(tmp_path / "out").letter_is_last(document, [text]) == {"acc": ours}
    assert "max_gen_toks: 1}" in (tmp_path / "out" / "llmkick_multiple_choice_letter_paper.yaml").read_text()


# For a model


def test_prompts_for_a_model_are_those_that_it_is_asked(tmp_path: Path):
    model = toy_model(chat=True, max_position_embeddings=2048)
    tasks = [get_task(name, limit=3) for name in ("factoid_qa", "multiple_choice:letter")]
    export = export_tasks(tasks, tmp_path / "out", model=model)
    for task, name in zip(tasks, export.names, strict=True):
        asked = [model.render_chat(task.requests(item, "chat")[0].prompt) for item in task.items(model)]  # type: ignore[arg-type]
        assert [row["prompt"] for row in rows(tmp_path / "out", name)] == asked
    # The toy's tokenizer begins every text with <s>, its template does not.
    assert ",dtype=float32,add_bos_token=False " in export.command
    assert "toy-llama, in its chat template" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_what_lm_eval_will_do_otherwise_is_counted(tmp_path: Path):
    # The toy merges a colon with the space after it; and with so few positions no question fits.
    task = get_task("multiple_choice:cloze", limit=6)
    merged = export_tasks([task], tmp_path / "merged", model=toy_model(max_position_embeddings=1024)).notes
    assert any(note.startswith("multiple_choice:cloze: 6 of 6 prompts are split otherwise") for note in merged)
    long = export_tasks([task], tmp_path / "long", model=toy_model(max_position_embeddings=64)).notes
    assert any(note.startswith("multiple_choice:cloze: 6 of 6 prompts are longer than the model's") for note in long)
    assert not export_tasks([task], tmp_path / "any").notes


BAD = [
    (["perplexity"], {}, "perplexity cannot be exported to lm-eval .lm-eval cuts text into windows"),
    (["factoid_qa", "factoid_qa"], {}, "factoid_qa is listed twice"),
    (["factoid_qa"], {"prompting": "chat"}, "give --model"),
]


@pytest.mark.parametrize(("names", "options", "message"), BAD)
def test_what_cannot_be_exported_is_refused(tmp_path: Path, names: list[str], options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        export_tasks([get_task(name, limit=3) for name in names], tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob("*"))


def test_a_task_with_a_name_of_its_own_is_exported_like_the_task_that_it_is(tmp_path: Path):
    tasks = [renamed(get_task(name, limit=3), f"my {name} @2") for name in NAMES]
    mine = export_tasks(tasks, tmp_path / "mine")
    plain = export_tasks([get_task(name, limit=3) for name in NAMES], tmp_path / "plain")
    for name, other in zip(mine.names, plain.names, strict=True):
        assert re.fullmatch(r"llmkick_my_\w+_2", name)
        assert rows(tmp_path / "mine", name) == rows(tmp_path / "plain", other)
        assert scorer_in(tmp_path / "mine" / f"{name}.yaml") == scorer_in(tmp_path / "plain" / f"{other}.yaml")
    cloze = renamed(get_task("multiple_choice:cloze", limit=3), "mine")
    with pytest.raises(ConfigError, match="mine cannot be exported as chat"):
        export_tasks([cloze], tmp_path / "chat", model=toy_model(chat=True))
    with pytest.raises(ConfigError, match="lm-eval cuts text into windows"):
        export_tasks([renamed(get_task("perplexity", limit=3), "mine")], tmp_path / "text")


def test_cloze_as_chat_is_refused_and_a_folder_in_use_too(tmp_path: Path):
    with pytest.raises(ConfigError, match="multiple_choice:cloze cannot be exported as chat: lm-eval counts the white"):
        export_tasks([get_task("multiple_choice:cloze", limit=3)], tmp_path / "out", model=toy_model(chat=True))
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_tasks([get_task("factoid_qa")], tmp_path)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_tasks([get_task("factoid_qa")], tmp_path / "mine")


@pytest.mark.parametrize("kind", ["current", "link", "dangling", "there", "new"])
def test_every_kind_of_empty_folder_gets_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """An empty folder that is there stays: it may be a mount point, or that in which the shell is."""
    place, target = tmp_path / "place", tmp_path / "out"
    if kind not in ("dangling", "new"):
        place.mkdir()
    if kind in ("link", "dangling"):
        target.symlink_to(place)
    elif kind == "current":
        monkeypatch.chdir(place)
        target = Path()
    else:
        target = place
    before = place.stat().st_ino if place.exists() else None
    export_tasks([get_task("factoid_qa", limit=2)], target)
    assert sorted(path.name for path in place.iterdir()) == [
        "README.md", "llmkick_factoid_qa.jsonl", "llmkick_factoid_qa.yaml", "utils.py",
    ]  # fmt: skip
    assert before in (None, place.stat().st_ino)
    assert (tmp_path / "out").is_symlink() == (kind in ("link", "dangling"))
    assert len(list(tmp_path.iterdir())) == 1 + (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("is_there", [True, False])
def test_of_two_exports_to_a_folder_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
):
    target, document, refused = tmp_path / "out", exporting._document, list[str]()
    if is_there:
        target.mkdir()

    def beside(*arguments: object) -> object:
        # Another thread has locks of its own, as another command has.
        with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError) as error:
            pool.submit(export_tasks, [get_task("context_qa:closed", limit=2)], target).result()
        refused.append(str(error.value))
        return document(*arguments)

    monkeypatch.setattr(exporting, "_document", beside)
    export_tasks([get_task("factoid_qa", limit=1)], target)
    assert refused == [f"another command is writing {target}; wait until it has ended, or choose another folder"]
    assert (target / "llmkick_factoid_qa.yaml").is_file()
    assert not list(target.glob("*context*"))


@pytest.mark.parametrize("is_there", [True, False])
def test_files_that_came_meanwhile_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool):
    target, document = tmp_path / "out", exporting._document
    if is_there:
        target.mkdir()

    def beside(*arguments: object) -> object:
        target.mkdir(exist_ok=True)
        (target / "utils.py").write_text("theirs")
        return document(*arguments)

    monkeypatch.setattr(exporting, "_document", beside)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_tasks([get_task("factoid_qa", limit=1)], target)
    assert [(path.name, path.read_text()) for path in target.iterdir()] == [("utils.py", "theirs")]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    save_toy(tmp_path / "toy", chat=True, max_position_embeddings=1024)
    capsys.readouterr()
    arguments = [
        "factoid_qa",
        "-m",
        str(tmp_path / "toy"),
        "--limit",
        "4",
        "-o",
        str(tmp_path / "out"),
        "--dtype",
        "float32",
    ]
    monkeypatch.setattr(sys, "argv", ["kick", "export-lm-eval", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    assert f"lm_eval --model hf --model_args pretrained={tmp_path / 'toy'},dtype=float32,add_bos_token=False" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "llmkick_factoid_qa.jsonl", "llmkick_factoid_qa.yaml", "utils.py",
    ]  # fmt: skip


# For real


def run_lm_eval(command: str, out: Path) -> dict[str, list[dict]]:
    """Task → the lines that lm-eval logs, after running the command that the export gives."""
    if not LM_EVAL.exists():
        pytest.skip(
            f"lm-eval 0.4.13 is not at {LM_EVAL}: benchmarks/scoring.py makes it, LLMKICK_LM_EVAL names another"
        )
    arguments = command.replace("--output_path OUT", f"--output_path {out}").split()[1:]
    hidden = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **hidden, "HF_HOME": str(out / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # what is exported must not need us
    done = subprocess.run(
        [str(LM_EVAL), "-m", "lm_eval", *arguments, "--device", "cpu"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = next(path.parent for path in out.rglob("samples_*.jsonl"))
    files = find_samples(folder)
    return {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in files.items()
    }


def assert_same(tasks: Sequence[Task], names: Sequence[str], logged: dict[str, list[dict]], ours: list[list[Record]]):
    for task, name, records in zip(tasks, names, ours, strict=True):
        found = {line["doc"]["id"]: line["acc"] for line in logged[name]}
        assert found == {record.item_id: record.score for record in records}, name
        for line, record in zip(sorted(logged[name], key=lambda line: line["doc_id"]), records, strict=True):
            answers = line["filtered_resps"]
            if "choice_logprobs" in record.details:
                # The white space that lm-eval adds to every option shifts all alike.
                theirs = [float(answer[0]) for answer in answers]
                shift = theirs[0] - record.details["choice_logprobs"][0]
                for value, own in zip(theirs, record.details["choice_logprobs"], strict=True):
                    assert value - own == pytest.approx(shift, abs=2e-3)
            elif task.key["protocol"] == "strict":
                assert next((one.strip() for one in answers[0].splitlines() if one.strip()), "") == record.response


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chat", [False, True], ids=["raw", "chat"])
def test_lm_eval_gives_our_scores_on_the_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool):
    monkeypatch.setattr(toy, "MERGES", tuple(merge for merge in toy.MERGES if merge != (":", "Ġ")))
    save_toy(tmp_path / "toy", chat=chat, max_position_embeddings=4096)
    model = load_model(str(tmp_path / "toy"), dtype="float32", device="cpu")
    names = [name for name in NAMES if not (chat and name == "multiple_choice:cloze")]
    tasks = [get_task(name, limit=16) for name in names]
    if not chat:
        tasks += [get_task(name, limit=16, protocol="paper") for name in PAPER]
    export = export_tasks(tasks, tmp_path / "out", model=model)
    assert not export.notes
    logged = run_lm_eval(export.command, tmp_path / "logs")
    ours = [evaluate(model, task) for task in tasks]
    assert_same(tasks, export.names, logged, ours)
    assert 0 < sum(record.score or 0 for record in ours[1]) < 16


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("style", ["raw", "chat"])
def test_lm_eval_gives_our_scores_on_the_built_in_model(tmp_path: Path, style: str):
    names = [name for name in NAMES if not (style == "chat" and name == "multiple_choice:cloze")]
    tasks = [get_task(name, limit=12) for name in names]
    meta_model = load_meta_model("smollm2-135m-instruct", dtype="float32", device="cpu")
    export = export_tasks(tasks, tmp_path / "out", model=meta_model.model, prompting=style)
    logged = run_lm_eval(export.command, tmp_path / "logs")
    model = load_model("smollm2-135m-instruct", dtype="float32", device="cpu")
    ours = [evaluate(model, task, prompting=style) for task in tasks]
    assert_same(tasks, export.names, logged, ours)
    assert all(0 < sum(record.score or 0 for record in records) < 12 for records in ours[-2:])
