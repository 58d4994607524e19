"""Published data sets in every layout; and every way in which a file can be bad, named by file, row and column."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

import published as files
from llmkick.errors import ConfigError, DataError
from llmkick.tasks.data.published import CNN_DAILYMAIL, MT_BENCH, VICUNA_80
from llmkick.tasks.data.readers.cnn_dailymail import read_stories
from llmkick.tasks.data.readers.dialogues import read_dialogues
from llmkick.tasks.data.readers.mmlu import DISCIPLINES
from llmkick.tasks.data.readers.popqa import relation_of
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import Item
from scripted import ScriptedModel

EVAL = "FreebaseQA-eval.json"


def items(name: str, folder: Path, **options: Any) -> list[Item]:
    return list(get_task(name, source=str(folder), **options).items())


def refused(name: str, folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        items(name, folder, **options)
    return str(error.value)


def test_freebaseqa_joins_the_aliases_of_every_parse(tmp_path: Path):
    question = files.freebaseqa_question(1)
    question["Parses"].append(
        {"InferentialChain": "x.y", "Answers": [{"AnswersName": ["paris", "paname"]}, {"AnswersName": [None]}]}
    )
    for name in (EVAL, f"{EVAL}.gz"):
        folder = tmp_path / name.replace(".", "")
        files.put(folder / name, files.freebaseqa([question]))
        assert items("factoid_qa", folder) == [
            Item(
                id="q-1",
                cluster="location",
                question="Question number 1?",
                references=("paris", "city of light", "paname"),
            )
        ]


def test_a_question_whose_answers_have_no_name_is_counted_not_silently_dropped(tmp_path: Path):
    questions = [files.freebaseqa_question(1), files.freebaseqa_question(2, [None])]
    files.put(tmp_path / EVAL, files.freebaseqa(questions))
    task = get_task("factoid_qa", source=str(tmp_path))
    assert [item.id for item in task.items()] == ["q-1"]
    assert task.notes == ("1 questions whose answers have no name are left out",)
    assert task.key["notes"] == list(task.notes)


def changed(**changes: Any) -> dict[str, Any]:
    return {**files.freebaseqa_question(2), **changes}


def without(column: str) -> dict[str, Any]:
    return {name: value for name, value in files.freebaseqa_question(2).items() if name != column}


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        (without("RawQuestion"), r"row 2, column 'RawQuestion': is missing; the row has 'Question-ID'"),
        (changed(RawQuestion=7), r"row 2, column 'RawQuestion': is a number \('7'\), not text"),
        (changed(RawQuestion="  "), r"row 2, column 'RawQuestion': is empty"),
        (changed(RawQuestion=None), r"row 2, column 'RawQuestion': is null, not text"),
        (changed(Parses=[]), r"row 2, column 'Parses': is empty"),
        (files.freebaseqa_question(2, []), r"row 2, column 'Parses.Answers.AnswersName': is empty"),
        (files.freebaseqa_question(2, ["  "]), r"row 2, column 'Parses.Answers.AnswersName': is empty"),
        (files.freebaseqa_question(1), r"row 2, column 'Question-ID': 'q-1' is the id of FreebaseQA-eval.json, row 1"),
        ("text", "row 2: is not an object"),
    ],
)
def test_bad_questions_are_named(tmp_path: Path, question: Any, problem: str):
    files.put(tmp_path / EVAL, files.freebaseqa([files.freebaseqa_question(1), question]))
    with pytest.raises(DataError, match=f"^FreebaseQA-eval.json, {problem}"):
        items("factoid_qa", tmp_path)


def mmlu_folder(folder: Path, test: str, dev: str = "Q?,a,b,c,d,A\n" * 5) -> Path:
    files.put(folder / "test/anatomy_test.csv", test)
    files.put(folder / "dev/anatomy_dev.csv", dev)
    return folder


def test_mmlu_words_stay_words_and_cells_keep_their_lines(tmp_path: Path):
    folder = mmlu_folder(tmp_path, '"Which,\n""base""?",None,NaN,NA,"Sep\u2028arated",A\nNext?,1,2,3,4,D\n')
    first, second = items("multiple_choice", folder)
    assert first.question == 'Which,\n"base"?'
    assert first.choices == ("None", "NaN", "NA", "Sep\u2028arated")
    assert (first.id, first.cluster, first.answer, first.references) == ("anatomy-test-0001", "anatomy", 0, ("None",))
    assert first.details == {"discipline": "other"}
    assert second.answer == 3


@pytest.mark.parametrize(
    ("test", "problem"),
    [
        ("Q?,a,b,c,d,A\nQ?,a,b,c,d\n", "row 2: 5 columns, expected 6, column 'answer' is missing"),
        ("Q?,a,b,c,d,A,more\n", "row 1: 7 columns, expected 6"),
        ("Q?,a,b,c,d,E\n", "row 1, column 'answer': is 'E', not one of A, B, C, D"),
        ("Q?,a,b,c,d,AB\n", "row 1, column 'answer': is 'AB'"),
        ("Q?,a,b,c,d,\n", "row 1, column 'answer': is empty"),
        ("Q?,a,,c,d,A\n", "row 1, column 'B': is empty"),
        ('Q?,a,b,c,d,A\n"Q?,a,b', "row 2: not CSV"),
        (b"Q?,a,b,c,d,A\nQ\xff?,a,b,c,d,A\n", "line 2: not UTF-8"),
    ],
)
def test_bad_mmlu_rows_are_named(tmp_path: Path, test: str | bytes, problem: str):
    assert f"test/anatomy_test.csv, {problem}" in refused("multiple_choice", mmlu_folder(tmp_path, test))  # type: ignore[arg-type]


def test_mmlu_wants_its_own_subjects_and_worked_examples(tmp_path: Path):
    folder = mmlu_folder(tmp_path / "a", "Q?,a,b,c,d,A\n", dev="Q?,a,b,c,d,A\n")
    task = get_task("multiple_choice", source=str(folder))
    with pytest.raises(DataError, match="anatomy has 1 worked examples, 5 are asked for"):
        task.requests(task.items()[0], "raw")
    files.put(folder / "test/astrology_test.csv", "Q?,a,b,c,d,A\n")
    assert "'astrology' is not one of MMLU's 57 subjects" in refused("multiple_choice", folder)
    (folder / "test/astrology_test.csv").rename(folder / "test/astronomy_test.csv")
    assert "no worked examples (dev) of astronomy" in refused("multiple_choice", folder)


def test_worked_examples_cannot_be_asked(tmp_path: Path):
    """Their answers are in the prompt."""
    folder = mmlu_folder(tmp_path, "Q?,a,b,c,d,A\n")
    with pytest.raises(ConfigError, match=r"unknown split 'dev' of MMLU; choose from: test, val$"):
        get_task("multiple_choice", source=str(folder), split="dev")


def test_a_subject_in_several_files_has_one_id_for_each_question(tmp_path: Path):
    """As of a data set in shards."""
    row = {"subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 0}
    for shard in range(2):
        questions = [{**row, "question": f"Number {2 * shard + k}?"} for k in range(2)]
        (tmp_path / "all").mkdir(exist_ok=True)
        files.parquet(tmp_path / "all" / f"test-0000{shard}-of-00002.parquet", questions)
    files.parquet(tmp_path / "all" / "dev-00000-of-00001.parquet", [{**row, "question": f"E{k}?"} for k in range(5)])
    found = items("multiple_choice", tmp_path)
    assert [(item.id, item.question) for item in found] == [
        (f"anatomy-test-{number + 1:04d}", f"Number {number}?") for number in range(4)
    ]


@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        ("summarization", "test.jsonl", b""),
        ("factoid_qa", EVAL, b'{"Questions": []}'),
        ("summarization", "test.jsonl", b'{"id": "1", "article": "@highlight a", "highlights": "a"}\n'),
    ],
)
def test_data_with_nothing_to_ask_is_refused(task: str, name: str, content: bytes, tmp_path: Path):
    files.put(tmp_path / name, content)
    assert refused(task, tmp_path)


def test_mmlu_has_57_subjects_in_four_disciplines():
    counts = {name: list(DISCIPLINES.values()).count(name) for name in set(DISCIPLINES.values())}
    assert counts == {"stem": 18, "humanities": 13, "social_sciences": 12, "other": 14}


def test_mmlu_parquet_gives_what_the_csv_does(tmp_path: Path):
    rows = [{"question": "Q?", "subject": "anatomy", "choices": ["None", "b", "c", "d"], "answer": 2}]
    for split in ("test", "dev"):
        files.parquet(tmp_path / f"p/all/{split}-00000-of-00001.parquet", rows)
    folder = mmlu_folder(tmp_path / "c", "Q?,None,b,c,d,C\n")
    assert items("multiple_choice", tmp_path / "p") == items("multiple_choice", folder)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"choices": ["a", "b", "c"]}, "row 1, column 'choices': is a list of 3, expected at least 4"),
        ({"choices": ["a", "b", "c", None]}, "row 1, column 'choices': is null, not text"),
        ({"answer": 4}, "row 1, column 'answer': is 4, expected 0 to 3"),
        ({"answer": "A"}, "row 1, column 'answer': is 'A', not a whole number"),
        ({"question": None}, "row 1, column 'question': is null, not text"),
        (None, "row 1, column 'question': is missing; the file has 'other'"),
    ],
)
def test_bad_parquet_is_named(tmp_path: Path, row: dict[str, Any] | None, problem: str):
    good = {"question": "Q?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 0}
    files.parquet(tmp_path / "dev-0.parquet", [good] * 5)
    files.parquet(tmp_path / "test-0.parquet", [{"other": 1} if row is None else {**good, **row}])
    assert refused("multiple_choice", tmp_path) == f"test-0.parquet, {problem}"
    files.put(tmp_path / "test-0.parquet", b"PAR1 but cut")
    assert "test-0.parquet is not a readable parquet file" in refused("multiple_choice", tmp_path)


# TriviaQA


def test_triviaqa_layouts_give_the_same(tmp_path: Path):
    rows = [files.triviaqa_row(n, [f"About {n}.", "More.", "More."]) for n in range(3)]
    files.put(tmp_path / "a/rc-validation.jsonl.gz", files.lines(rows))
    files.parquet(tmp_path / "b/rc/validation-00000-of-00002.parquet", rows[:2])
    files.parquet(tmp_path / "b/rc/validation-00001-of-00002.parquet", rows[2:])
    found = items("context_qa:open", tmp_path / "a")
    assert found == items("context_qa:open", tmp_path / "b")
    assert found[1] == Item(
        id="tc_1",
        cluster="Page 1",
        question="Which capital is number 1?",
        references=("Paris", "City of Light"),
        context="About 1.\n\nMore.",
    )


def test_questions_without_evidence_are_left_out_of_both_books_and_counted(tmp_path: Path):
    rows = [files.triviaqa_row(1, ["Page."]), files.triviaqa_row(2), files.triviaqa_row(3, [" "])]
    files.put(tmp_path / "rc-validation.jsonl", files.lines(rows))
    for name in ("context_qa:open", "context_qa:closed"):
        task = get_task(name, source=str(tmp_path))
        assert [item.id for item in task.items()] == ["tc_1"]
        assert task.notes == ("2 questions without evidence are left out",)
    assert items("context_qa:closed", tmp_path)[0].context == ""


def test_without_any_evidence_only_the_closed_book_can_be_asked(tmp_path: Path):
    files.put(tmp_path / "nocontext-dev.jsonl", files.lines([files.triviaqa_row(1), files.triviaqa_row(2)]))
    assert len(items("context_qa:closed", tmp_path)) == 2
    assert "no question has evidence to read; ask context_qa:closed" in refused("context_qa:open", tmp_path)


def test_a_question_of_web_and_wikipedia_is_one_question_with_both_pages(tmp_path: Path):
    rows = [files.triviaqa_row(1, ["Web."]), files.triviaqa_row(2, ["Other."]), files.triviaqa_row(1, ["Wiki."])]
    files.put(tmp_path / "rc-validation.jsonl", files.lines(rows))
    task = get_task("context_qa:open", source=str(tmp_path))
    assert [(item.id, item.context) for item in task.items()] == [("tc_1", "Web.\n\nWiki."), ("tc_2", "Other.")]
    assert task.notes == ("1 rows repeat a question with other pages; the pages are joined",)
    rows[2]["question"] = "Another?"
    files.put(tmp_path / "rc-validation.jsonl", files.lines(rows))
    assert "row 3, column 'question_id': 'tc_1' is the id of another question" in refused("context_qa", tmp_path)


def both_kinds_of_pages(number: int, wikipedia: list[str], web: list[str]) -> dict[str, Any]:
    """A row of the hub's rc with Wikipedia pages and pages found on the web."""
    found = {"title": [f"Found {n}" for n in range(len(web))], "search_context": web}
    return files.triviaqa_row(number, wikipedia, search_results=found)


@pytest.mark.parametrize("first", ["web", "wikipedia"])
@pytest.mark.parametrize("size", [1, 200, 6000])  # characters a page: less and more than the evidence holds
def test_the_pages_of_both_rows_of_rc_stand_once_in_the_evidence_wikipedia_first(tmp_path: Path, size: int, first: str):
    """The web row of rc has the Wikipedia pages of the other row too."""
    wiki, web = [f"Wiki {n} {'w' * size}" for n in range(2)], [f"Web {n} {'s' * size}" for n in range(2)]
    rows = [both_kinds_of_pages(1, wiki, web), both_kinds_of_pages(1, wiki, [])]
    files.put(tmp_path / "rc-validation.jsonl", files.lines(rows if first == "web" else rows[::-1]))
    task = get_task("context_qa:open", source=str(tmp_path), evidence_tokens=500)
    (item,) = task.items()
    assert item.context == "\n\n".join([*wiki, *web])[: 500 * 16]
    assert item.cluster == "Page 1"
    filled = sum(map(len, wiki)) >= 500 * 16
    other = "" if filled else " with other pages; the pages are joined"
    assert task.notes == (f"1 rows repeat a question{other}",)


def test_the_wikipedia_pages_of_a_later_row_stand_before_those_found_on_the_web(tmp_path: Path):
    rows = [both_kinds_of_pages(1, [], ["Web.", "Both."]), both_kinds_of_pages(1, ["Both.", "Wiki."], [])]
    files.put(tmp_path / "rc-validation.jsonl", files.lines(rows))
    (item,) = items("context_qa:open", tmp_path)
    assert (item.context, item.cluster) == ("Both.\n\nWiki.\n\nWeb.", "Page 1")


def test_rows_that_repeat_a_question_are_counted(tmp_path: Path):
    """Word for word, without any pages, or with the aliases in another order."""
    turned = {"value": "City of Light", "aliases": ["Paris", "City of Light"]}
    rows = [files.triviaqa_row(1, ["Page."]), files.triviaqa_row(1, ["Page."], answer=turned)]
    files.put(tmp_path / "a/rc-validation.jsonl", files.lines([rows[0], *rows]))
    task = get_task("context_qa:open", source=str(tmp_path / "a"))
    assert [(item.context, item.references) for item in task.items()] == [("Page.", ("Paris", "City of Light"))]
    assert task.notes == ("2 rows repeat a question",)
    files.put(tmp_path / "b/nocontext-dev.jsonl", files.lines([files.triviaqa_row(1)] * 2))
    closed = get_task("context_qa:closed", source=str(tmp_path / "b"))
    assert len(closed.items()) == 1
    assert closed.notes == ("1 rows repeat a question",)
    other = files.triviaqa_row(1, answer={"value": "Rome", "aliases": ["Rome"]})
    files.put(tmp_path / "b/nocontext-dev.jsonl", files.lines([files.triviaqa_row(1), other]))
    assert "'tc_1' is the id of another question, nocontext-dev.jsonl, row 1" in refused("context_qa", tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer": {"value": "x", "aliases": []}}, "column 'answer.aliases': is empty"),
        ({"answer": {"value": "x"}}, "column 'answer.aliases': is missing; the row has 'value'"),
        ({"answer": "Paris"}, "column 'answer': is text ('Paris'), not an object"),
        ({"entity_pages": {"title": [], "wiki_context": ["x"]}}, "column 'entity_pages.title': is a list of 0 beside"),
    ],
)
def test_bad_triviaqa_rows_are_named(tmp_path: Path, change: dict[str, Any], problem: str):
    files.put(tmp_path / "rc-validation.jsonl", files.lines([files.triviaqa_row(1), files.triviaqa_row(2, **change)]))
    assert refused("context_qa", tmp_path).startswith(f"rc-validation.jsonl, row 2, {problem}")


GOOD = files.lines([files.triviaqa_row(1, ["Page."])])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (GOOD + b'{"question": \n', "row 2: not JSON"),
        (GOOD + b'{"question": NaN}\n', "row 2: not JSON (NaN is not JSON)"),
        (GOOD + b"[1]\n", "row 2: is a list"),
        (GOOD + b'{"question": "caf\xe9"}\n', "row 2: not UTF-8"),
        (GOOD + b'{"question": "x"}\n', "row 2, column 'question_id': is missing"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, data: bytes, problem: str):
    files.put(tmp_path / "rc-validation.jsonl.gz", data)
    assert refused("context_qa", tmp_path).startswith(f"rc-validation.jsonl.gz, {problem}")


def test_a_truncated_archive_is_an_error_not_a_shorter_data_set(tmp_path: Path):
    rows = [files.triviaqa_row(n, [f"Page {n * 7919 % 1000}."]) for n in range(400)]
    packed = gzip.compress(files.lines(rows))
    files.put(tmp_path / "rc-validation.jsonl", b"").with_suffix(".jsonl").unlink()
    (tmp_path / "rc-validation.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    message = refused("context_qa", tmp_path)
    assert "rc-validation.jsonl.gz, row " in message
    assert "cannot be read to its end" in message


# PopQA


def test_popqa_keeps_popularity_in_table_and_sample(tmp_path: Path):
    header = "id\tprop\tquestion\ts_pop\tpossible_answers\n"
    row = '4222362\toccupation\tWhat is X\'s occupation?\t142\t"[""politician"", ""pol""]"\n'
    files.put(tmp_path / "a/test.tsv", header + row)
    sample = {"question": "What is X's occupation?", "answers": ["politician", "pol"], "s_pop": 142}
    files.put(tmp_path / "b/popqa-sample.jsonl.gz", files.lines([sample]))
    (table,), (line,) = items("factoid_qa:popqa", tmp_path / "a"), items("factoid_qa:popqa", tmp_path / "b")
    assert table.id == "4222362"
    for item in (table, line):
        assert item.details == {"popularity": 142}
        assert (item.cluster, item.references) == ("occupation", ("politician", "pol"))
    task = get_task("factoid_qa:popqa", source=str(tmp_path / "a"))
    (record,) = evaluate(ScriptedModel(generation=lambda _: "A politician."), task)
    assert (record.score, record.details["popularity"]) == (1.0, 142)


def test_popqa_questions_that_no_answer_can_match_are_left_out(tmp_path: Path):
    rows = [{"question": f"Q{n}?", "answers": answers, "s_pop": 1} for n, answers in enumerate((["the"], ["?", "π"]))]
    files.put(tmp_path / "popqa-sample.jsonl.gz", files.lines(rows))
    task = get_task("factoid_qa:popqa", source=str(tmp_path))
    assert [item.question for item in task.items()] == ["Q1?"]
    assert task.notes == ("1 questions whose answers are articles or punctuation only are left out",)


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("1\ta\tQ?\tmany\t[]", "row 2, column 's_pop': is 'many', not a whole number"),
        ("1\ta\tQ?\t-1\t[]", "row 2, column 's_pop': is -1"),
        ("1\ta\tQ?\t1\tx", "row 2, column 'possible_answers': is no JSON list"),
        ("1\ta\tQ?\t1\t[]", "row 2, column 'possible_answers': is empty"),
        ("1\ta\tQ?\t1", "row 2: 4 columns, but the header names 5"),
    ],
)
def test_bad_popqa_rows_are_named(tmp_path: Path, cells: str, problem: str):
    files.put(tmp_path / "test.tsv", "id\tprop\tquestion\ts_pop\tpossible_answers\n" + cells + "\n")
    assert refused("factoid_qa:popqa", tmp_path).startswith(f"test.tsv, {problem}")


def test_relations_are_told_by_their_templates():
    assert relation_of("What is France the capital of?") == "capital of"
    assert relation_of("What is the capital of France?") == "capital"
    assert relation_of("Where is France?") == "other"


# Text, stories, dialogues


def test_wikitext_is_the_same_text_from_parquet_and_raw(tmp_path: Path):
    raw = " \n = Title = \n \n Some text . \n"
    files.put(tmp_path / "a/wiki.test.raw.gz", raw)
    rows = [{"text": text} for text in ("", " = Title = \n", "", " Some text . \n")]
    files.parquet(tmp_path / "b/test-00000-of-00001.parquet", rows)
    texts = [get_task("perplexity", source=str(tmp_path / name), window=2)._text for name in "ab"]  # type: ignore[attr-defined]
    assert texts[0] == texts[1] == "\n\n = Title = \n\n\n\n\n Some text . \n"


def test_c4_is_a_seeded_sample_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmkick.tasks.data.readers.running_text.C4_DOCUMENTS", 3)
    documents = [{"text": f"document {n}"} for n in range(40)]
    files.put(tmp_path / "c4-validation.00000-of-00008.json.gz", files.lines(documents))
    texts = [get_task("perplexity:c4", source=str(tmp_path), seed=seed)._text for seed in (0, 0, 1)]  # type: ignore[attr-defined]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].count("document") == 3
    assert "\n\n".join(f"document {n}" for n in range(3)) not in texts


def test_stories_keep_the_highlights_apart(tmp_path: Path):
    row = {"id": "a1", "article": "Long story.", "highlights": "Short."}
    files.parquet(tmp_path / "test-0.parquet", [row])
    origin = Origin(task="stories", dataset=CNN_DAILYMAIL, source=str(tmp_path))
    (story,) = read_stories(origin).items
    assert (story.context, story.references, story.question) == ("Long story.", ("Short.",), "")
    files.put(tmp_path / "validation.jsonl.gz", files.lines([row, row]))
    with pytest.raises(DataError, match=r"validation.jsonl.gz, row 2, column 'id': 'a1' is the id of"):
        read_stories(Origin(task="stories", dataset=CNN_DAILYMAIL, source=str(tmp_path), split="validation"))


def test_dialogues_of_one_and_two_turns(tmp_path: Path):
    two = {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]}
    files.put(tmp_path / "mt_bench-question.jsonl", files.lines([two, {**two, "question_id": 82, "reference": ["R"]}]))
    answer = {"question_id": 81, "choices": [{"index": 0, "turns": ["First.", "Second."]}]}
    files.put(tmp_path / "mt_bench-reference_answer-gpt-4.jsonl", files.lines([answer]))
    files.put(tmp_path / "vicuna_bench-question.jsonl", files.lines([{**two, "turns": ["One?"]}]))
    first, second = read_dialogues(Origin(task="mt", dataset=MT_BENCH, source=str(tmp_path)))
    assert (first.id, first.turns, first.references) == ("81", ("One?", "Two?"), ("First.", "Second."))
    assert second.references == ("R",)
    (single,) = read_dialogues(Origin(task="vicuna", dataset=VICUNA_80, source=str(tmp_path)))
    assert single.turns == ("One?",)
    files.put(tmp_path / "mt_bench-question.jsonl", files.lines([{**two, "turns": ["One?"]}]))
    with pytest.raises(DataError, match="column 'turns': is a list of 1, expected at least 2"):
        read_dialogues(Origin(task="mt", dataset=MT_BENCH, source=str(tmp_path)))


# Where data comes from


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"source": "nowhere"}, "unknown source 'nowhere' for factoid_qa: neither pocket, hub nor a folder"),
        ({"source": "hub", "split": "train"}, "unknown split 'train' of FreebaseQA; choose from: eval, dev"),
        ({"source": "hub", "sha256": "abc"}, "sha256 of factoid_qa is 64 hexadecimal digits; got 'abc'"),
        ({"revision": "main"}, "revision of factoid_qa is for source hub or a folder, not for pocket"),
        ({"split": "dev"}, "split of factoid_qa is for source hub or a folder, not for pocket"),
    ],
)
def test_origins_that_cannot_be(options: dict[str, Any], reason: str):
    with pytest.raises(ConfigError) as error:
        get_task("factoid_qa", **options)
    assert str(error.value) == reason


def test_folders_that_hold_nothing_and_checksums_of_nothing(tmp_path: Path):
    with pytest.raises(ConfigError, match="revision of factoid_qa is a commit"):
        get_task("factoid_qa", source=str(tmp_path), revision="main")
    with pytest.raises(ConfigError, match='source of factoid_qa:popqa is "hub" or a folder'):
        get_task("factoid_qa:popqa")
    assert "holds no FreebaseQA (eval or dev); looked for FreebaseQA-eval.json" in refused("factoid_qa", tmp_path)
    files.put(tmp_path / EVAL, files.freebaseqa([files.freebaseqa_question(1)]))
    with pytest.raises(ConfigError, match=r"names 'x'; the files are FreebaseQA-eval.json"):
        items("factoid_qa", tmp_path, sha256={"x": "0" * 64})
    with pytest.raises(DataError, match=r"FreebaseQA-eval.json of FreebaseQA has sha256 \w+, but the study demands 0"):
        items("factoid_qa", tmp_path, sha256="0" * 64)
    with pytest.raises(ConfigError, match="MMLU is 2 files"):
        items("multiple_choice", mmlu_folder(tmp_path, "Q?,a,b,c,d,A\n"), sha256="0" * 64)
