import csv
import math
import sqlite3

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from llmkick.report import tables
from llmkick.report.lookup import layer_place, ordered_tasks
from report.synthetic import RECIPES, TASKS, build_run


def scores_of(result, recipe, task):
    """Scores by item, straight from the journal's file."""
    query = "SELECT item_id, score, tokens FROM records WHERE recipe = ? AND task = ? ORDER BY item_id"
    with sqlite3.connect(result.folder / "journal.sqlite") as connection:
        rows = connection.execute(query, (recipe, task)).fetchall()
    return {item: score for item, score, _ in rows}, {item: tokens for item, _, tokens in rows}


@pytest.mark.parametrize("recipe", ["dense", *RECIPES])
def test_scores_are_the_means_of_the_records(plain, recipe):
    table = tables.scores_table(plain).set_index(["recipe", "task"])
    for task in TASKS:
        scores, tokens = scores_of(plain, recipe, task)
        if task == "perplexity":
            expected = math.exp(sum(scores[i] * tokens[i] for i in scores) / sum(tokens.values()))
        else:
            expected = sum(scores.values()) / len(scores)
        assert table.loc[(recipe, task), "value"] == pytest.approx(expected, rel=1e-12)
        assert table.loc[(recipe, task), "n"] == len(scores)


def test_losses_and_flips_are_those_of_the_records(plain):
    table = tables.comparisons_table(plain)
    assert len(table) == len(RECIPES) * 3
    for row in table.to_dict("records"):
        dense, other = (scores_of(plain, recipe, row["task"])[0] for recipe in ("dense", row["recipe"]))
        lost = sum(other[item] < dense[item] for item in dense)
        gained = sum(other[item] > dense[item] for item in dense)
        means = [sum(scores.values()) / len(scores) for scores in (dense, other)]
        above = [mean - row["chance"] for mean in means]
        if above[0] > 0:
            assert row["loss"] == pytest.approx(1 - above[1] / above[0], abs=1e-12)
        else:
            assert np.isnan(row["loss"])
        assert row["raw_loss"] == pytest.approx(1 - means[1] / means[0], abs=1e-12)
        assert (row["lost"], row["gained"], row["n"]) == (lost, gained, len(dense))
        p = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        assert row["mcnemar_p"] == pytest.approx(p)
        close = sum(other.values()) >= 0.95 * sum(dense.values())
        assert row["paper_verdict"] == ("matching" if close else "not matching")
        assert row["loss_low"] <= row["loss"] <= row["loss_high"]


def test_perplexity_has_a_table_of_its_own(plain):
    table = tables.perplexity_table(plain)
    assert list(table["recipe"]) == list(RECIPES)
    assert table["increase"].tolist() == pytest.approx((table["compressed"] / table["dense"] - 1).tolist())
    assert set(table["outcome"]) <= {"within margin", "beyond margin", "undecided"}
    assert "perplexity" not in set(tables.comparisons_table(plain)["task"])


def test_compression_is_weighted_by_layer_size(plain):
    table = tables.compression_table(plain).set_index("recipe")
    report = next(report for report in plain.compression if report["recipe"] == "gptq@3b-g64")
    sizes = [a * b for a, b in (layer.shape for layer in report.layers)]
    zeros = sum(size * layer.realised_sparsity for size, layer in zip(sizes, report.layers, strict=True))
    errors = [layer.relative_output_error for layer in report.layers]
    row = table.loc["gptq@3b-g64"]
    assert row["realised_sparsity"] == pytest.approx(zeros / sum(sizes))
    assert row["mean_output_error"] == pytest.approx(sum(errors) / len(errors))
    assert row["max_output_error"] == max(errors)
    assert row["worst_layer"] == "model.layers.1.mlp.down_proj"
    assert row["seed"] == 0
    assert pd.isna(table.loc["rtn@8b", "seed"])
    assert (row["block_share"], row["model_share"]) == (1.0, 0.79)


def test_unscored_items_are_counted_by_reason(result):
    table = tables.unscored_table(result)
    assert set(table["task"]) == {"context_qa:open"}
    assert set(table["reason"]) == {"the prompt is too long"}
    assert set(table["count"]) == {3}
    assert "dense" not in set(table["recipe"])


def test_csv_files_hold_the_same_numbers_in_full(plain, tmp_path):
    paths = {path.stem: path for path in tables.write_tables(plain, tmp_path)}
    assert set(paths) == {"scores", "comparisons", "perplexity", "overall", "compression", "layers", "unscored"}
    with paths["comparisons"].open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    written = tables.plain_rows(tables.comparisons_table(plain))
    for column in ("loss", "loss_low", "loss_high", "mcnemar_p", "smallest_detectable_loss", "p_matching"):
        assert [float(row[column]) if row[column] else None for row in read] == [row[column] for row in written]
    assert list(pd.read_csv(paths["unscored"]).columns) == list(tables.UNSCORED)
    assert not list(tmp_path.rglob(".*")), "nothing temporary is left"


def test_layers_have_a_place():
    assert layer_place("model.layers.3.mlp.up_proj") == (3, "mlp.up_proj")
    assert layer_place("model.layers.3.mlp.experts.17.up_proj") == (3, "mlp.experts.*.up_proj")
    assert layer_place("transformer.h.0.attn.c_attn") == (0, "attn.c_attn")
    assert layer_place("lm_head") == (None, "lm_head")


def test_experts_of_a_block_are_averaged(folder):
    result = build_run(folder, recipes=["rtn@8b"], items=8)
    layer = {"shape": [2, 2], "realised_sparsity": 0.0, "damping": None, "tokens": 1}
    layers = [
        {**layer, "name": f"model.layers.0.experts.{i}.up", "relative_output_error": error}
        for i, error in enumerate([0.1, 0.3, None])
    ]
    (report,) = result.compression
    changed = type(report).model_validate({**report.facts, "layers": layers})
    means = tables.layer_means(result.model_copy(update={"compression": (changed,)}))
    assert means[["model", "kind", "depth"]].to_numpy().tolist() == [["rtn@8b", "experts.*.up", 0]]
    assert means["relative_output_error"].tolist() == pytest.approx([0.2])


def test_tasks_are_in_the_papers_order_with_the_control_last(folder):
    result = build_run(folder, tasks=("perplexity", "context_qa:open", "factoid_qa"), items=8)
    assert [task["name"] for task in ordered_tasks(result)] == ["factoid_qa", "context_qa:open", "perplexity"]


def printed(result, width):
    console = Console(width=width, force_terminal=False, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(tables.verdict_table(result))
    return capture.get()


def test_the_terminal_table_reads_without_colour(result):
    text = printed(result, 160)
    rows = [line for line in text.splitlines() if "@" in line]
    assert [row.split()[0] for row in rows] == list(RECIPES)
    assert text.index("dense") < text.index(RECIPES[0])
    for entry in result.comparisons:
        if entry.kind == "task":
            assert entry.verdict in text
    assert "✗ not matching" in text
    assert "∅ no signal" in text
    assert "overall" in text


def test_a_narrow_terminal_gets_a_list(result):
    text = printed(result, 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    lines = [line.split() for line in text.splitlines() if line.strip().startswith("wanda@0.25")]
    assert len(lines) == len(TASKS) + 1
    assert lines[-1][:2] == ["wanda@0.25", "overall"]


def test_a_study_without_comparisons_has_empty_tables(folder):
    result = build_run(folder, recipes=[], items=8)
    assert tables.comparisons_table(result).empty
    assert list(tables.comparisons_table(result).columns) == list(tables.COMPARISONS)
    assert len(tables.scores_table(result)) == len(TASKS)
    assert "dense" in printed(result, 160)
    assert len(tables.write_tables(result, folder)) == 7
