"""A run folder as tables, figures and one self-contained page that asks nothing of a network."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmkick.report import matrix, provenance, wording
from llmkick.report.answers import answers_payload, embedded, packed
from llmkick.report.figures import VEGA_LITE, Figure, figures, model_heat_maps, write_figures
from llmkick.report.findings import Finding, find
from llmkick.report.reading import Run, read_run
from llmkick.report.tables import write_tables
from llmkick.report.writing import write_text

PAGE_FILE = "report.html"
SHOWN_FINDINGS = 3  # the others fold away, so that the verdicts are in sight


def write_report(folder: Path) -> Path:
    """Write `tables/*.csv`, `figures/*.svg` and `report.html` of a finished run; gives the page's path.

    Raises DataError, saying what to do, when the folder holds no finished, undamaged run.
    """
    run = read_run(Path(folder))
    write_tables(run.result, run.result.folder)
    drawn = figures(run.result)
    write_figures(run.result, run.result.folder, drawn=drawn)
    return write_text(run.result.folder / PAGE_FILE, render(run, drawn))


def render(run: Run, drawn: list[Figure]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("llmkick", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(counted=wording.counted, breakable=_breakable, short_hash=_short_hash)
    return environment.get_template("page.html.jinja").render(_context(run, drawn, environment))


def _context(run: Run, drawn: list[Figure], environment: Environment) -> dict[str, Any]:
    result = run.result
    findings = find(result)
    script = _source(environment, "page.js")
    library = _library()
    return {
        "result": result,
        "margin": wording.setting(result.study["margin"]),
        "level": wording.setting(1 - result.study["alpha"]),
        "alpha": wording.setting(result.study["alpha"]),
        "questions": len(run.items),
        "lead": findings[0],
        "findings": findings[1 : 1 + SHOWN_FINDINGS],
        "more_findings": findings[1 + SHOWN_FINDINGS :],
        "matrix": matrix.matrix(result),
        "legend": matrix.legend(),
        "numbers": matrix.numbers(result),
        "notes": matrix.notes(result),
        "control_numbers": matrix.control_numbers(result),
        "figures": drawn,
        "compression": matrix.compression(result),
        "unscored": matrix.unscored(result),
        "tasks": provenance.tasks(result),
        "provenance": provenance.sections(result),
        "source_note": provenance.source_note(result),
        "data": {
            "figures": embedded({figure.name: figure.spec for figure in drawn}),
            "layers": packed({**matrix.layers_payload(result), "spec": model_heat_maps()}),
            "answers": packed({**answers_payload(run), "start": _start(findings)}),
        },
        "css": _source(environment, "page.css"),
        "script": script,
        "library": library,
        "script_hashes": " ".join(f"'sha256-{_sha256(text)}'" for text in (library, script)),
    }


def _start(findings: list[Finding]) -> dict[str, str]:
    """The answers to open with: those behind the most telling loss."""
    claims = [claim for finding in findings for claim in finding.claims if claim.verdict == "not matching"]
    return {"recipe": claims[0].recipe, "task": claims[0].task} if claims else {}


def _breakable(text: str) -> Markup:
    """A name that may be broken behind its signs, and copied without a trace of that."""
    return Markup("<wbr>").join(re.split(r"(?<=[@:_+])", text))


def _short_hash(text: str) -> str | Markup:
    """The first digits of a sha256, the others on hover; any other text as it is."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        return text
    return Markup('<code title="{}">{}…</code>').format(text, text[:12])


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, for the Vega-Lite that the figures are written for."""
    library: str = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    return library.replace("</script", "<\\/script")


def _sha256(text: str) -> str:
    """As a content security policy names a script."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
