"""Verdicts from lm-eval's logged samples: pairing, metrics, filters, groups, and everything that can be wrong."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from commands import Kick
from llmkick.errors import ConfigError, DataError
from llmkick.lm_eval.importing import ImportedTask, import_lm_eval, write_imported
from llmkick.lm_eval.samples import find_samples, read_samples
from llmkick.statistics import compare

NAME = "samples_capitals_2026-11-20T10-00-00.000001.jsonl"


def line(number: int, *, through: str = "none", options: int = 0, **metrics: Any) -> dict[str, Any]:
    """A line as lm-eval 0.4.13 writes it."""
    answers: Any = [["-1.5", "False"]] * options or ["an answer"]
    return {
        "doc_id": number,
        "doc": {"id": number, "question": f"question {number}", "subject": f"subject {number % 4}"},
        "target": "0",
        "arguments": {f"gen_args_{n}": {"arg_0": "prompt", "arg_1": " option"} for n in range(max(1, options))},
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": through,
        "metrics": list(metrics),
        "doc_hash": f"{number:064x}",
        "prompt_hash": f"{number:064x}",
        "target_hash": "0" * 64,
        **metrics,
    }


def write(path: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def make(dense: Sequence[Any], compressed: Sequence[Any]) -> tuple[Path, Path]:
        return write(tmp_path / "dense" / NAME, dense), write(tmp_path / "pruned" / NAME, compressed)

    return make


Pair = Callable[..., tuple[Path, Path]]


def accuracies(scores: Sequence[float], **options: Any) -> list[dict[str, Any]]:
    return [line(number, acc=score, **options) for number, score in enumerate(scores)]


def compare_one(files: tuple[Path, Path], **options: Any) -> ImportedTask:
    (only,) = import_lm_eval(*files, **options)
    return only


# What comes out


def test_the_verdict_is_that_of_our_statistics_on_the_same_pairs(pair: Pair):
    dense, compressed = [1.0] * 60 + [0.0] * 20, [1.0] * 30 + [0.0] * 30 + [1.0] * 2 + [0.0] * 18
    # The order of the lines says nothing: documents pair by their number.
    found = compare_one(pair(accuracies(dense, options=4), accuracies(compressed, options=4)[::-1]))
    ids = [str(number) for number in range(80)]
    expected = compare(
        dict(zip(ids, dense, strict=True)), dict(zip(ids, compressed, strict=True)),
        strata={i: f"subject {int(i) % 4}" for i in ids}, chance=0.25, task="capitals", recipe="compressed", seeds=(),
    )  # fmt: skip
    assert found.comparison == expected
    assert (found.comparison.verdict, found.comparison.gained, found.comparison.lost) == ("not matching", 2, 30)
    assert found.label == "capitals"
    assert found.scores[79] == (0, 0)
    assert "'subject' gives 4 fixed strata: the verdict is about these" in found.notes
    assert "guessing scores 0.25" in found.notes


@pytest.mark.parametrize(
    ("declared", "clusters", "strata", "notes"),
    [
        ({}, 8, 4, ["'subject' gives 4 fixed strata"]),
        ({"cluster": "none"}, 8, 4, ["'subject' gives 4 fixed strata"]),
        ({"strata": "none"}, 8, None, []),
        ({"cluster": "none", "strata": "none"}, 8, None, []),
        ({"cluster": "subject"}, 4, None, ["'subject' gives 4 drawn clusters"]),
        ({"strata": "question"}, 8, 8, ["'question' gives 8 fixed strata"]),
        ({"cluster": "story"}, 2, None, ["'story' gives 2 drawn clusters"]),
        ({"cluster": "story", "strata": "subject"}, 2, 4, ["'story' gives 2 drawn", "'subject' gives 4 fixed"]),
    ],
)
def test_groups(pair: Pair, declared: dict[str, str], clusters: int, strata: int | None, notes: list[str]):
    lines = accuracies([1] * 8)
    for number, one in enumerate(lines):
        one["doc"]["story"] = f"story {number // 4}"
    found = compare_one(pair(lines, lines), **declared)
    assert (found.comparison.clusters, found.comparison.strata) == (clusters, strata)
    given = [note for note in found.notes if " gives " in note]
    assert len(given) == len(notes)
    assert all(note.startswith(start) for note, start in zip(given, notes, strict=True))


def test_drawn_clusters_claim_less_than_strata(pair: Pair):
    """All of one subject lost: proof about these four, and none about subjects like them."""
    dense, compressed = accuracies([1] * 400), accuracies([float(number % 4 > 0) for number in range(400)])
    files = pair(dense, compressed)
    assert compare_one(files).comparison.verdict == "not matching"
    assert compare_one(files, cluster="subject").comparison.verdict == "undecided"


def test_groups_that_are_both_or_no_field(pair: Pair):
    files = pair(accuracies([1, 0, 1]), accuracies([1, 0, 1]))
    with pytest.raises(ConfigError, match="cannot name both clusters and strata"):
        compare_one(files, cluster="subject", strata="subject")
    for kind in ("cluster", "strata"):
        with pytest.raises(ConfigError, match="not every document has a field 'topic'; all have id, question, subject"):
            compare_one(files, **{kind: "topic"})


def test_a_usual_field_that_tells_all_or_none_apart_gives_no_groups(pair: Pair):
    lines = accuracies([1, 0, 1, 1])
    for number, one in enumerate(lines):
        one["doc"] = {"cluster": number, "subject": "all the same", "category": number // 2}
    found = compare_one(pair(lines, lines))
    assert [(groups.kind, groups.field) for groups in found.groups] == [("strata", "category")]
    for one in lines:
        one["doc"]["cluster"] //= 2
    found = compare_one(pair(lines, lines))
    assert [(groups.kind, groups.field) for groups in found.groups] == [("clusters", "cluster")]
    lines[0]["doc"].pop("category")
    lines[0]["doc"].pop("cluster")
    assert compare_one(pair(lines, lines)).groups == ()


@pytest.mark.parametrize(
    ("metrics", "options", "given", "chance"),
    [
        ({"acc": 1}, 4, None, 0.25),
        ({"acc": 1}, 2, 0.4, 0.4),
        ({"acc": 1}, 0, None, 0.0),
        ({"exact_match": 1}, 4, None, 0.0),
        ({"acc": 1, "acc_mutual_info": 1}, 8, None, 0.25),
    ],
)
def test_chance_is_one_in_the_number_of_options(
    pair: Pair, metrics: dict[str, int], options: int, given: float | None, chance: float
):
    lines = [line(number, options=options, **metrics) for number in range(4)]
    assert compare_one(pair(lines, lines), chance=given).comparison.chance == chance


def truthful(number: int, *, true: int, of: int, **scored: Any) -> dict[str, Any]:
    """A document of TruthfulQA, which has the options of both of its tasks: one true one of 4, several true of more."""
    row = line(number, **scored)
    row["doc"] |= {
        "mc1_targets": {"choices": ["…"] * 4, "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": ["…"] * of, "labels": [1] * true + [0] * (of - true)},
    }
    return row


def test_chance_is_the_share_of_true_options_where_several_are_true(pair: Pair):
    counts = [(1, 2), (3, 4), (2, 8), (5, 10)]
    several = [truthful(n, true=true, of=of, options=of, acc=0.4) for n, (true, of) in enumerate(counts)]
    assert compare_one(pair(several, several)).comparison.chance == (1 / 2 + 3 / 4 + 2 / 8 + 5 / 10) / 4
    assert compare_one(pair(several, several), chance=0.1).comparison.chance == 0.1
    one = [truthful(n, true=true, of=of, options=4, acc=1) for n, (true, of) in enumerate(counts)]
    assert compare_one(pair(one, one)).comparison.chance == 1 / 4


def test_every_filter_is_a_line_of_its_own(pair: Pair):
    lines = [line(n, through=name, exact_match=n % 2) for name in ("strict-match", "flexible") for n in range(6)]
    found = import_lm_eval(*pair(lines, lines))
    assert [one.label for one in found] == ["capitals (strict-match)", "capitals (flexible)"]
    assert [one.label for one in import_lm_eval(*pair(lines, lines), filters=["flexible"])] == ["capitals (flexible)"]
    with pytest.raises(ConfigError, match=r"capitals has no filter loose; it has strict-match, flexible"):
        import_lm_eval(*pair(lines, lines), filters=["loose"])
    with pytest.raises(DataError, match=r"capitals: filters strict-match, flexible in .*, but strict-match in"):
        import_lm_eval(*pair(lines, lines[:6]))


def test_metrics_are_chosen_in_the_order_given(pair: Pair):
    lines = [line(n, acc=n % 2, acc_norm=1, bleu=40.0, perplexity=3.0, pair=[1, 2]) for n in range(6)]
    files = pair(lines, lines)
    assert compare_one(files).metric == "acc"
    assert compare_one(files, metrics=["exact_match", "acc_norm"]).metric == "acc_norm"
    assert compare_one(files, metrics=["bleu"], highest=100).comparison.dense == 40
    with pytest.raises(ConfigError, match=r"capitals has no metric f1; choose from: acc, acc_norm, bleu"):
        compare_one(files, metrics=["f1"])
    with pytest.raises(ConfigError, match=r"of perplexity less is better"):
        compare_one(files, metrics=["perplexity"])
    with pytest.raises(DataError, match=r"pair is \[1, 2\], not a number; choose from: acc, acc_norm, bleu"):
        compare_one(files, metrics=["pair"])
    with pytest.raises(DataError, match=r"bleu of doc_id 0 in .* is 40, outside 0 to 1; give --highest"):
        compare_one(files, metrics=["bleu"])
    only = [line(n, f1=0.5, pair=[1]) for n in range(4)]
    assert compare_one(pair(only, only)).metric == "f1"
    two = [line(n, f1=0.5, em=1) for n in range(4)]
    with pytest.raises(ConfigError, match=r"several metrics; choose with --metric from: em, f1"):
        compare_one(pair(two, two))


def test_nan_is_no_score_and_is_counted(pair: Pair):
    found = compare_one(pair(accuracies([1, 1, math.nan, 0]), accuracies([1, math.nan, 1, 0])))
    assert found.scores == {0: (1, 1), 1: (1, None), 2: (None, 1), 3: (0, 0)}
    assert (found.comparison.n, found.comparison.unscored) == (2, 2)
    assert "2 of 4 documents have NaN for a score and count as unscored" in found.notes
    with pytest.raises(DataError, match=r"acc of doc_id 0 in .* is inf, outside 0 to 1"):
        compare_one(pair(accuracies([math.inf, 1]), accuracies([1, 1])))


def test_other_prompts_are_a_note(pair: Pair):
    other = [{**one, "prompt_hash": "f" * 64} for one in accuracies([1, 0, 1])]
    found = compare_one(pair(accuracies([1, 0, 1]), other))
    assert any(note.startswith("3 of 3 prompts differ between the runs") for note in found.notes)


def test_lines_of_older_versions_without_filter_and_list_of_metrics(pair: Pair):
    old = [{k: v for k, v in one.items() if k not in ("filter", "metrics")} for one in accuracies([1, 0, 1])]
    found = compare_one(pair(old, old))
    assert (found.metric, found.label, found.comparison.n) == ("acc", "capitals", 3)


# What cannot be paired


def test_other_documents_are_refused(pair: Pair):
    with pytest.raises(DataError, match=r"lacks doc_id 2, 3, and has none beyond .* the same --limit\?"):
        import_lm_eval(*pair(accuracies([1] * 4), accuracies([1] * 2)))
    changed = accuracies([1] * 4)
    changed[2]["doc_hash"] = "f" * 64
    with pytest.raises(DataError, match=r"1 of 4 documents have another doc_hash in .* \(doc_id 2\): two versions"):
        import_lm_eval(*pair(accuracies([1] * 4), changed))


def test_a_metric_that_one_side_lacks(pair: Pair):
    other = accuracies([1, 1])
    other[1]["acc"] = "yes"
    with pytest.raises(DataError, match=r"acc of doc_id 1 in .* is 'yes', not a number"):
        import_lm_eval(*pair(accuracies([1, 1]), other))


BROKEN = [
    ('{"doc_id": 1, "doc', "line 2: not JSON"),
    ("[1, 2]", "line 2: has no doc_id, doc, doc_hash"),
    ('{"doc_id": 1, "doc": {}}', "line 2: has no doc_hash"),
    ('{"doc_id": "1", "doc": {}, "doc_hash": ""}', "line 2: doc_id is '1', not a whole number"),
    (json.dumps(line(0, acc=1)), "line 2: doc_id 0 is there a second time"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_damaged_line_is_named(pair: Pair, text: str, message: str):
    dense, compressed = pair(accuracies([1]), [line(0, acc=1), text])
    with pytest.raises(DataError, match=f"{NAME}, {message}"):
        import_lm_eval(dense, compressed)


def test_files_that_are_empty_or_no_text(pair: Pair, tmp_path: Path):
    dense, compressed = pair(accuracies([1]), [])
    with pytest.raises(DataError, match=r"is empty"):
        import_lm_eval(dense, compressed)
    compressed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"line 1: cannot be read"):
        import_lm_eval(dense, compressed)
    with pytest.raises(DataError, match=r"there is no file or folder"):
        import_lm_eval(dense, tmp_path / "none")


# Folders


def test_a_folder_holds_several_tasks_of_each_the_newest(tmp_path: Path):
    for model in ("dense", "pruned"):
        for task, day, score in (("a", "20", 0), ("a", "21", 1), ("b_c", "20", 1)):
            name = f"samples_{task}_2026-11-{day}T10-00-00.000001.jsonl"
            write(tmp_path / model / "name" / name, accuracies([score] * 3))
        write(tmp_path / model / "name" / "results_2026-11-20T10-00-00.000001.json", ["{}"])
    found = import_lm_eval(tmp_path / "dense", tmp_path / "pruned")
    assert [(one.label, one.comparison.dense) for one in found] == [("a", 1), ("b_c", 1)]
    assert [one.label for one in import_lm_eval(tmp_path / "dense", tmp_path / "pruned", tasks=["b_c"])] == ["b_c"]
    with pytest.raises(ConfigError, match=r"no samples of 'c'; .* has a, b_c"):
        import_lm_eval(tmp_path / "dense", tmp_path / "pruned", tasks=["c"])
    next((tmp_path / "pruned").rglob("samples_b_c*")).unlink()
    with pytest.raises(DataError, match=r"tasks differ: .* has a, b_c, .* has a; .* give --task a"):
        import_lm_eval(tmp_path / "dense", tmp_path / "pruned")
    with pytest.raises(DataError, match=r"holds samples in several folders; give one of: .*dense/name, .*pruned/name"):
        find_samples(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no samples_TASK_DATE.jsonl: run lm-eval with --log_samples"):
        find_samples(tmp_path / "empty")


def test_files_of_two_tasks_do_not_pair_files_of_any_name_do(tmp_path: Path):
    dense = write(tmp_path / NAME, accuracies([1, 0, 1]))
    other = write(tmp_path / NAME.replace("capitals", "rivers"), accuracies([1, 0, 1]))
    with pytest.raises(DataError, match=r"tasks differ: .* has capitals, .* has rivers"):
        import_lm_eval(dense, other)
    renamed = write(tmp_path / "pruned.jsonl", accuracies([1, 0, 1]))
    assert compare_one((dense, renamed)).label == "capitals"
    assert compare_one((renamed, renamed)).label == "pruned"


# What is written


def test_results_are_written_as_json_csv_or_a_folder(pair: Pair, tmp_path: Path):
    found = import_lm_eval(*pair(accuracies([1, 1, math.nan, 0] * 3), accuracies([1, 0, 1, 0] * 3)))
    (as_json,) = write_imported(found, tmp_path / "new" / "verdicts.json")
    (comparison,) = json.loads(as_json.read_text())["comparisons"]
    assert (comparison["task"], comparison["metric"], comparison["n"], comparison["unscored"]) == (
        "capitals",
        "acc",
        9,
        3,
    )
    (as_csv,) = write_imported(found, tmp_path / "verdicts.csv")
    with as_csv.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["verdict"] == comparison["verdict"]
    assert "'subject' gives 4 fixed strata: the verdict is about these; 3 of 12 documents have NaN" in row["notes"]
    names = [path.name for path in write_imported(found, tmp_path / "folder")]
    assert names == ["verdicts.json", "verdicts.csv", "scores.csv"]
    with (tmp_path / "folder" / "scores.csv").open(newline="") as stream:
        scores = list(csv.DictReader(stream))
    assert len(scores) == 12
    assert (scores[2]["doc_id"], scores[2]["dense"], scores[2]["compressed"]) == ("2", "", "1.0")
    assert (scores[2]["cluster"], scores[2]["stratum"]) == ("", "subject 2")
    (tmp_path / "verdicts.xlsx").touch()
    with pytest.raises(ConfigError, match=r"verdicts.xlsx is a file: verdicts are written as .json, as .csv, or into"):
        write_imported(found, tmp_path / "verdicts.xlsx")


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "v1.2/run.x", "of.json"])
def test_a_folder_may_have_a_dot_in_its_name(kick: Kick, pair: Pair, tmp_path: Path, name: str, is_there: bool):
    target = tmp_path / name
    if is_there:
        target.mkdir(parents=True)
    dense, compressed = pair(accuracies([1] * 40, options=4), accuracies([1] * 40, options=4))
    code, _, err = kick("import-lm-eval", dense, compressed, "--out", target)
    assert (code, err) == (0, "")
    if name == "of.json" and not is_there:
        assert target.is_file()
    else:
        assert sorted(path.name for path in target.iterdir()) == ["scores.csv", "verdicts.csv", "verdicts.json"]


def test_the_command(kick: Kick, pair: Pair, tmp_path: Path):
    dense, compressed = pair(accuracies([1] * 40, options=4), accuracies([1] * 40, options=4))

    code, out, err = kick("import-lm-eval", dense.parent, compressed.parent, "--out", tmp_path / "verdicts.csv")
    assert (code, err) == (0, "")
    assert "capitals" in out
    assert "✓ matching" in out
    assert "note: every task: 'subject' gives 4 fixed strata" in out
    assert (tmp_path / "verdicts.csv").is_file()
    code, out, err = kick("import-lm-eval", dense, compressed, "--metric", "f1")
    assert (code, out) == (2, "")
    assert "capitals has no metric f1; choose from: acc" in err
    (tmp_path / "verdicts.xlsx").touch()
    code, _, err = kick("import-lm-eval", dense, compressed, "--out", tmp_path / "verdicts.xlsx")
    assert code == 2
    assert "verdicts are written as .json, as .csv, or into a folder" in err
    code, _, err = kick("import-lm-eval", dense, tmp_path / "none")
    assert code == 1
    assert "there is no file or folder" in err


# Files as lm-eval wrote them

REAL = Path(__file__).parent / "samples"


def test_files_that_lm_eval_wrote(tmp_path: Path):
    """lm-eval 0.4.13 on the built-in model, dense and magnitude@0.3, two small tasks of our own; counted by hand."""
    found = import_lm_eval(REAL / "dense", REAL / "pruned", metrics=["acc", "exact_match"])
    assert {one.label: one.scores for one in found} == EXPECTED
    by_label = {one.label: one.comparison for one in found}
    assert by_label["own_words"].chance == 0.25
    assert (by_label["own_words"].strata, by_label["own_words"].clusters) == (3, by_label["own_words"].n)
    assert by_label["own_sums (strict)"].chance == 0
    samples = read_samples(next((REAL / "dense").glob("samples_own_words_*")))
    assert set(samples["none"][0].metrics) == {"acc", "acc_norm"}


# The pruned model goes on after each sum, which "strict" does not forgive, and gives 10 for three of them.
EXPECTED: dict[str, dict[int, tuple[float, float]]] = {
    "own_words": dict.fromkeys(range(8), (1, 1)),
    "own_sums (strict)": dict.fromkeys(range(6), (1, 0)),
    "own_sums (flexible)": {0: (1, 1), 1: (1, 0), 2: (1, 0), 3: (1, 0), 4: (1, 1), 5: (1, 1)},
}
