import io
import json
from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from llmkick.cli.progress import verdict_line
from llmkick.errors import DataError
from llmkick.report import exports, formatting, matrix, numbers, tables
from llmkick.report.figures.kept import kept_frame
from llmkick.report.run_folder import opened_run
from report.synthetic import build_run


def test_markdown_says_what_the_page_says(result):
    text = exports.markdown(result)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert len({len(line) for line in lines}) == 1
    header, _, dense, *rows = lines
    assert header == ["recipe", *(task.name for task in matrix.matrix(result).tasks), "all tasks"]
    assert dense[0] == "dense"
    assert [row[0] for row in rows] == list(result.study.recipes)
    by_cell = {(entry.recipe, entry.task): entry for entry in result.comparisons}
    for row in rows:
        for task, cell in zip(header[1:-1], row[1:-1], strict=True):
            entry = by_cell[row[0], task]
            assert formatting.score(entry.compressed, "perplexity" if entry.kind == "perplexity" else "") in cell
            if entry.kind == "task" and entry.verdict != "no signal":
                assert entry.verdict in cell
                assert str(formatting.loss(entry)) in cell


def test_latex_is_a_booktabs_table_without_bare_signs(result):
    text = exports.latex(result)
    assert [rule for rule in (r"\toprule", r"\midrule", r"\bottomrule") if text.count(rule) == 1] == [
        r"\toprule", r"\midrule", r"\bottomrule",
    ]  # fmt: skip
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 + len(list(result.study.recipes))
    columns = 2 + len(result.tasks)
    for row in rows:
        bare = row.replace(r"\&", "").replace(r"\%", "").replace(r"\_", "")
        assert bare.count("&") == columns - 1
        assert "%" not in bare
        assert "_" not in bare
        assert bare.isascii()
    assert "\\multicolumn" not in text
    assert r"not matching, 26 \% [3.0, 49]" in text or r"not matching, " in text


def test_a_perplexity_of_many_digits_has_an_exponent_everywhere(result):
    """A broken model: 3.2e21, of which the other digits say nothing."""
    broken = {"compressed": 3.2e21, "relative_increase": 1.6e20, "interval": (1.5e20, 1.7e20)}
    changed = tuple(replace(entry, **(broken if entry.kind == "perplexity" else {})) for entry in result.comparisons)
    result = result.model_copy(update={"comparisons": changed})
    console = Console(file=io.StringIO(), width=400)
    console.print(tables.verdict_table(result))
    (entry, *_) = (entry for entry in changed if entry.kind == "perplexity")
    control = next(i for i, task in enumerate(matrix.matrix(result).tasks) if task.control)
    cell = matrix.matrix(result).rows[0].cells[control]
    shown = {
        "Markdown": (exports.markdown(result), "3.2e+21 ×1.6e+20 [1.5e+20, 1.7e+20]"),
        "LaTeX": (exports.latex(result), r"3.2e+21 $\times$1.6e+20 [1.5e+20, 1.7e+20]"),
        "terminal": (console.file.getvalue(), "3.2e+21"),
        "line of a run": (verdict_line(entry).plain, "3.2e+21, ×1.6e+20 [1.5e+20, 1.7e+20]"),
        "cell of the page": (f"{cell.score} {cell.number} {cell.details}", "3.2e+21 ×1.6e+20"),
        "numbers of the page": (str(numbers.control_numbers(result)), "'3.2e+21'"),
        "figure": (str(kept_frame(result)["perplexity"].tolist()), "'+1.6e+22 %'"),
    }
    for where, (text, expected) in shown.items():
        assert expected in text, where
        assert "0000000" not in text, where


def test_latex_escapes_what_a_name_may_hold():
    assert exports._latex("a_b & 5 % − ×24 #1 {x} ~^\\ <y>") == (
        r"a\_b \& 5 \% $-$ $\times$24 \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}y\textgreater{}"
    )


def test_parquet_holds_every_record(result, tmp_path):
    with opened_run(result.folder) as run:
        written = exports.write_parquet(run, tmp_path / "records.parquet")
        records = run.records
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.schema.equals(exports.RECORD_SCHEMA)
    frame = table.to_pandas()
    assert written == len(frame) == len(records)
    keys = ["run_key", "item_id"]
    ours, theirs = frame.set_index(keys).sort_index(), records.set_index(keys).sort_index()
    assert ours["response"].tolist() == theirs["response"].tolist()
    pd.testing.assert_series_equal(ours["score"], theirs["score"])
    assert [json.loads(text) for text in ours["details"]] == theirs["details"].tolist()
    assert ours["seed"].isna().tolist() == theirs["seed"].isna().tolist()
    assert not list(tmp_path.glob("*.partial"))


def test_parquet_of_a_run_without_a_journal_is_refused(plain, tmp_path):
    import shutil

    folder = shutil.copytree(plain.folder, tmp_path / "copy")
    (folder / "journal.sqlite").unlink()
    with opened_run(folder) as run, pytest.raises(DataError, match="no journal"):
        exports.write_parquet(run, tmp_path / "records.parquet")


def test_flat_numbers_are_those_of_the_comparisons(result):
    numbers = exports.flat_numbers(result, "wanda@0.25")
    entry = next(e for e in result.comparisons if (e.recipe, e.task) == ("wanda@0.25", "factoid_qa"))
    assert numbers["score/factoid_qa"] == entry.compressed
    assert numbers["loss/factoid_qa"] == entry.relative_drop
    assert [numbers["loss_low/factoid_qa"], numbers["loss_high/factoid_qa"]] == list(entry.interval)
    assert "rise/perplexity" in numbers
    assert exports.verdicts_of(result, "wanda@0.25")["verdict/factoid_qa"] == entry.verdict
    assert "verdict/overall" not in exports.verdicts_of(result, "dense")
    assert set(exports.flat_numbers(result, "dense")) >= {"score/factoid_qa", "unscored/perplexity"}


def test_unscored_items_of_every_seed_are_logged(tmp_path):
    result = build_run(tmp_path, recipes=("wanda@0.25",), seeds=(0, 1), items=12, unscored={"factoid_qa": 12})
    numbers = exports.flat_numbers(result, "wanda@0.25")
    assert numbers["unscored/factoid_qa"] == 24
    assert "score/factoid_qa" not in numbers


def test_a_task_without_a_signal_has_no_loss(result):
    silent = next(e for e in result.comparisons if e.kind == "task" and e.verdict == "no signal")
    assert silent.relative_drop is not None
    numbers = exports.flat_numbers(result, silent.recipe)
    task = silent.task.replace(":", "-")
    assert not {name for name in numbers if name.startswith("loss") and task[:6] in name}
