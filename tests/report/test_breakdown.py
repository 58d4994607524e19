import numpy as np
import pytest

from llmkick.report.breakdown import groups_table, measures_table
from llmkick.report.figures import figures
from llmkick.report.run_folder import opened_run
from llmkick.statistics import compare
from report.specs import validate, write_figures
from report.synthetic import build_run

TASKS = ("multiple_choice:cloze", "summarization", "instruction")
KINDS = ("wanda@0.1", "wanda@0.5", "wanda@2:4", "gptq@3b-g64")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    result = build_run(tmp_path_factory.mktemp("parts"), recipes=KINDS, tasks=TASKS, items=48, seeds=(0, 1))
    with opened_run(result.folder) as run:
        yield result, run, groups_table(run), measures_table(run)


def test_a_part_is_compared_as_the_whole_would_be(parts):
    _, run, groups, _ = parts
    known = groups["loss_low"].notna() & (groups["detail"] == "discipline") & (groups["recipe"] == "wanda@0.5")
    row = groups[known].iloc[0]
    records = run.records[run.records["task"] == "multiple_choice:cloze"]
    ours = records[[details.get("discipline") == row["group"] for details in records["details"]]]

    def scores(recipe, seed=None):
        chosen = ours[ours["recipe"] == recipe]
        chosen = chosen if seed is None else chosen[chosen["seed"] == seed]
        return dict(zip(chosen["item_id"], chosen["score"], strict=True))

    clusters = dict(zip(ours["item_id"], ours["cluster"], strict=True))
    by_seed = {str(seed): scores("wanda@0.5", seed) for seed in (0, 1)}
    expected = compare(scores("dense"), by_seed, clusters=clusters, chance=0.25)
    assert row["n"] == expected.n == len(clusters)
    assert row["loss"] == pytest.approx(expected.relative_drop)
    assert [row["loss_low"], row["loss_high"]] == pytest.approx(expected.interval)


def test_every_task_with_parts_is_broken_down_in_their_order(parts):
    _, _, groups, _ = parts
    assert list(dict.fromkeys(groups["detail"])) == ["discipline", "bucket"]
    assert list(dict.fromkeys(groups.loc[groups["detail"] == "bucket", "group"])) == ["short", "medium", "long"]
    assert len(groups) == len(KINDS) * (4 + 3)


def test_measures_are_means_with_their_interval(parts):
    _, run, _, measures = parts
    row = measures[(measures["measure"] == "unique_tokens") & (measures["recipe"] == "wanda@0.5")].iloc[0]
    records = run.records[(run.records["task"] == "instruction") & (run.records["recipe"] == "wanda@0.5")]
    values = np.array([details["unique_tokens"] for details in records["details"]])
    assert row["value"] == pytest.approx(values.mean())
    assert row["low"] < row["value"] < row["high"]
    assert row["high"] - row["low"] < 4 * values.std()
    assert {*measures["measure"]} == {"unique_tokens", "repetition", "copied_share"}
    assert "dense" in set(measures["recipe"])


def test_parts_and_measures_are_drawn(parts):
    result, _, groups, measures = parts
    drawn = {figure.name: figure for figure in figures.figures(result, groups=groups, measures=measures)}
    wanted = {
        "discipline-multiple_choice-cloze": 4 * 3, "bucket-summarization": 3 * 3, "answers-instruction": 2 * 3,
        "answers-summarization": 1 * 3,
    }  # fmt: skip
    for name, panels in wanted.items():
        validate(drawn[name].spec)
        assert len(drawn[name].spec["concat"]) == panels
        assert len(drawn[name].csv.splitlines()) > panels
    write_figures(result, [drawn[name] for name in wanted])


def test_a_study_without_parts_has_none(plain):
    with opened_run(plain.folder) as run:
        assert set(groups_table(run)["task"]) == {"multiple_choice:letter"}
        assert measures_table(run).empty
