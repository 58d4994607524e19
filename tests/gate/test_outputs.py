"""The files of a gate: Markdown and XML that say what the result says, whatever models answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llmkick.errors import ModelError
from llmkick.gate.junit import junit
from llmkick.gate.result import EXIT_CODES, Asked, Flip, GateResult, Outcome, TaskOutcome
from llmkick.gate.run import failed_gate
from llmkick.gate.summary import MOST_FLIPS, summary

HOSTILE = (
    "</details><script>alert(1)</script>\n| a | b |\n# title\r\n- list\n```\ncode ![i](http://e.com/x.png) [l](//e) "
    "<b>\x00\x1b[31m @user #12 https://e.com www.e.com a@e.com `tick` *em* _em_ ~~no~~ &amp; \u202e \ud800 end"
)


def flip(number: int, *, text: str = "x", lost: bool = True) -> Flip:
    before, after = (1.0, 0.0) if lost else (0.0, 1.0)
    return Flip(
        item_id=f"item-{number}",
        question=text,
        reference_answer=text,
        candidate_answer=text,
        reference_score=before,
        candidate_score=after,
    )


def task(outcome: Outcome, *, name: str = "factoid_qa", flips: tuple[Flip, ...] = (), **changes: Any) -> TaskOutcome:
    values: dict[str, Any] = {
        "task": name, "outcome": outcome, "reason": f"because of {name}", "items": 480, "asked": 320, "scored": 318,
        "reference_score": 0.8, "candidate_score": 0.76, "loss": 0.05, "bounds": (0.012, 0.088), "p_matching": 0.4,
        "p_not_matching": 0.6, "flips": flips, "notes": ("a note",),
    }  # fmt: skip
    return TaskOutcome(**{**values, **changes})


def result_of(*tasks: TaskOutcome, outcome: Outcome | None = None, name: str = "nightly") -> GateResult:
    final = outcome or tasks[0].outcome
    return GateResult(
        folder=Path(), name=name, outcome=final, exit_code=EXIT_CODES[final], candidate=name, reference="dense",
        margin=0.05, alpha=0.05, tasks=tasks, asked=Asked(reference_questions=3, candidate_items=320), warnings=(name,),
        seconds=12.5,
    )  # fmt: skip


def rendered(text: str) -> list[Any]:
    """Every token of the Markdown, those inside lines and cells too."""
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
    return [inner for token in tokens for inner in (token, *(token.children or []))]


def test_the_summary_has_a_row_for_each_task_with_bounds_n_and_margin():
    text = summary(result_of(task("matches"), task("undecided", name="context_qa:open", bounds=None, loss=None)))
    assert "| factoid&#95;qa | ✅ matches | 0.80 | 0.76 | 5.0 % | [1.2, 8.8] % | 318 | 480 |" in text
    assert "| context&#95;qa&#58;open | ❔ undecided | 0.80 | 0.76 | – | – | 318 | 480 |" in text
    assert "Margin: a loss of 5 %" in text
    assert "320 items of the candidate, 3 questions of the reference" in text


def test_a_gain_has_the_same_sign_in_value_and_bounds():
    text = summary(result_of(task("matches", loss=-0.018, bounds=(-0.076, 0.037))))
    assert "| loss (+ is a gain) | bounds |" in text
    assert "| +1.8 % | [+7.6, 3.7] % |" in text


def test_flipped_items_are_shown_with_both_answers_up_to_a_number():
    flips = tuple(flip(number) for number in range(MOST_FLIPS + 5))
    text = summary(result_of(task("loses", flips=(*flips, flip(99, lost=False)))))
    assert f"factoid&#95;qa: {MOST_FLIPS + 5} items lost, 1 gained" in text
    assert text.count("| item&#45;") == MOST_FLIPS
    assert "6 more are in gate.json" in text


def test_the_summary_of_many_tasks_fits_on_the_page_of_github():
    flips = tuple(flip(number, text="|" * 5000) for number in range(60))
    text = summary(result_of(*(task("loses", name=f"task-{number}", flips=flips) for number in range(57))))
    assert len(text.encode()) < 2**20
    assert "task&#45;56: 60 items lost, 0 gained" in text


def test_nothing_of_an_answer_is_markup():
    hostile = result_of(task("loses", flips=(flip(0, text=HOSTILE),), reason=HOSTILE), name=HOSTILE)
    plain = result_of(task("loses", flips=(flip(0),), reason="x"), name="x")
    kinds = [[token.type for token in rendered(summary(some)) if token.type != "text"] for some in (hostile, plain)]
    assert kinds[0] == kinds[1]
    html = [token.content for token in rendered(summary(hostile)) if token.type.startswith("html")]
    assert not any("script" in content or "<b>" in content for content in html)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_text_is_shown_as_it_is_in_one_cell(text: str):
    from llmkick.report.escaping import REPLACEMENT, markdown

    cells = [
        token for token in rendered(f"| a | b |\n| --- | --- |\n| {markdown(text)} | x |\n") if token.type == "inline"
    ]
    assert len(cells) == 4
    shown = "".join(child.content for child in cells[2].children)
    if text.isprintable() and text.strip() == text and text:
        assert shown == text
    assert all(child.type in ("text", "text_special", "softbreak") for child in cells[2].children)
    assert REPLACEMENT not in shown or not text.isprintable() or REPLACEMENT in text


@pytest.mark.parametrize(
    ("outcome", "element"), [("matches", None), ("loses", "failure"), ("undecided", "skipped"), ("unmeasured", "error")]
)
def test_a_test_case_for_each_task(outcome: Outcome, element: str | None):
    root = ElementTree.fromstring(junit(result_of(task(outcome), task("matches", name="other"))))
    (suite,) = root
    assert [case.get("name") for case in suite] == ["factoid_qa", "other"]
    assert [child.tag for child in suite[0]] == ([] if element is None else [element])
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    key = {"failure": "failures", "error": "errors"}.get(element or "", element)
    assert counts == {"tests": "2", "failures": "0", "errors": "0", "skipped": "0"} | ({key: "1"} if key else {})
    if element is not None:
        assert suite[0][0].get("message") == "because of factoid_qa"


def test_any_answer_gives_xml_that_can_be_read():
    text = junit(result_of(task("loses", flips=(flip(0, text=HOSTILE),), reason=HOSTILE), name=HOSTILE))
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert "lost item-0" in (root[0][0][0].text or "")
    assert len(root[0]) == 1


def test_a_gate_that_could_not_run_says_why_everywhere():
    failed = failed_gate(ModelError("there is no <model> | here"), name="nightly")
    assert (failed.exit_code, failed.matches) == (3, False)
    assert "there is no &#60;model&#62; &#124; here" in summary(failed)
    root = ElementTree.fromstring(junit(failed))
    assert root[0].get("errors") == "1"
    assert root[0][0][0].text == "there is no <model> | here"
    assert "there is no <model> | here" in str(failed)


def test_an_exit_code_that_contradicts_the_outcome_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="exit code 0 does not belong to the outcome 'loses'"):
        GateResult.model_validate({**result_of(task("loses")).model_dump(), "folder": tmp_path, "exit_code": 0})
