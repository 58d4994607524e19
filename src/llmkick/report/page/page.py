"""The report of a run folder: tables, figures and one self-contained page that needs no network."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmkick.errors import ConfigError
from llmkick.files import cache_folder, write_cached, write_text
from llmkick.report import came_back, formatting, matrix, multiplicity, numbers
from llmkick.report.breakdown import groups_table, measures_table
from llmkick.report.claims import claim_payload, claims_of_run
from llmkick.report.figures.axes import axes_table
from llmkick.report.figures.figures import VEGA_LITE, Figure, figures, figures_drawn, size_figure
from llmkick.report.figures.flows import flow_name
from llmkick.report.figures.kept import KEPT
from llmkick.report.figures.layers import model_heat_maps
from llmkick.report.findings import Finding, find
from llmkick.report.lookup import control_name
from llmkick.report.page import first_screen, provenance
from llmkick.report.page.answers import ITEMS_FOLDER, write_answers
from llmkick.report.page.embedding import embedded, packed, sha256
from llmkick.report.payload import Payload
from llmkick.report.run_folder import Run, opened_run
from llmkick.report.tables import comparisons_table, compression_table, perplexity_table, plain_rows, write_tables
from llmkick.study.results.overlap import NGRAM
from llmkick.study.results.results import StudyResult

PAGE_FILE = "report.html"
SHOWN_FINDINGS = 2  # the others are collapsed, so that the verdicts are visible


def write_report(folder: Path) -> Path:
    """Write `tables/*.csv`, `figures/*` and `report.html` of a run; returns the page's path.

    The page of an unfinished or damaged run shows the available results and lists what is missing. If the answers
    are too many for one page, they are written to `report-items/` next to it.
    Raises DataError, which says what to do, when the folder holds nothing that can be shown.
    """
    with opened_run(Path(folder)) as run:
        return write_report_of(run)


def write_report_of(run: Run) -> Path:
    """As `write_report`, for a run that is open."""
    result = run.result
    groups, measures = groups_table(run), measures_table(run)
    write_tables(result, result.folder, more={"groups": groups, "answers": measures, "axes": axes_table(result)})
    drawn = figures(result, groups=groups, measures=measures)
    with figures_drawn(result, drawn) as write_figures:
        text = render(run, drawn)
        write_figures()
    return write_text(result.folder / PAGE_FILE, text)


def render(run: Run, drawn: list[Figure]) -> str:
    """The page as text; if the answers are too many for the page, they are written to files next to it."""
    environment = page_environment()
    return environment.get_template("page.html.jinja").render(_context(run, drawn, environment))


@functools.cache
def page_environment() -> Environment:
    """The template environment, which escapes all values. Its templates are compiled once."""
    environment = Environment(
        loader=PackageLoader("llmkick.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(quiet=_quiet, counted=formatting.counted, breakable=_breakable, short_hash=_short_hash)
    return environment


def _context(run: Run, drawn: list[Figure], environment: Environment) -> Payload:
    result = run.result
    lead, findings = first_screen.headline(find(result), recipes=len(result.labels))
    table = matrix.matrix(result)
    sizes = [size_figure(result)] if result.compression else []
    figure_data = {figure.name: figure_payload(figure) for figure in [*drawn, *sizes]}
    build = _build(run, figure_data)
    flows = dict.fromkeys(row.recipe for row in result.returned)
    layers = {**numbers.layers_payload(result), "spec": model_heat_maps()}
    return {
        "result": result,
        "missing": run.missing,
        "margin": formatting.setting(result.study.margin),
        "interval_name": formatting.interval_name(result.study.alpha),
        "interval_note": formatting.interval_note(result.study.alpha),
        "gain_sign": formatting.GAIN_SIGN,
        "questions": _questions(run),
        "tally": first_screen.tally(result),
        "lead": lead,
        "findings": findings[:SHOWN_FINDINGS],
        "more_findings": findings[SHOWN_FINDINGS:],
        "hero": next((figure for figure in drawn if figure.name == KEPT), None),
        "matrix": table,
        "rows": first_screen.page_rows(result, table),
        "methods": first_screen.methods(result),
        "density": first_screen.density(len(table.rows)),
        "marks": matrix.legend([table]),
        "numbers": numbers.numbers(result),
        "notes": numbers.notes(result),
        "correction": multiplicity.correction_sentence(result),
        "families": multiplicity.families(result),
        "control_numbers": numbers.control_numbers(result),
        "came_back": came_back.payload(result),
        "flows": {recipe: flow_name(recipe) for recipe in flows if flow_name(recipe) in figure_data},
        "back_legend": came_back.legend(result),
        "back_interval": came_back.interval_name(result),
        "overlap": came_back.overlap_texts(result),
        "ngram": NGRAM,
        "claims": claim_payload(claims_of_run(run)),
        "control_name": control_name(result),
        "alpha": formatting.setting(result.study.alpha),
        "figures": [figure for figure in drawn if figure.name not in (KEPT, *map(flow_name, flows))],
        "sizes": sizes,
        "compression": numbers.compression(result),
        "unscored": numbers.unscored(result),
        "missing_judgements": numbers.missing_judgements(result),
        "tasks": provenance.tasks(result),
        "provenance": provenance.sections(result),
        "commands": [] if run.journal is None else run.journal.commands(),
        "source_note": provenance.source_note(result),
        "data": {
            "figures": packed(figure_data),
            "tables": packed(_tables(result)),
            "layers": packed(layers),
            "answers": write_answers(run, result.folder, _start([lead, *findings]), build),
        },
        "items_beside": (result.folder / ITEMS_FOLDER).is_dir(),
        "nonce": build,
        **page_parts(environment, ("page.js", "page_matrix.js", "page_figures.js", "page_answers.js", "page_start.js")),
    }


def _questions(run: Run) -> int:
    """The number of items of all tasks: of the journal or, if it is lost, those that the dense model was asked."""
    return max(len(run.items), sum(row.n + row.unscored for row in run.result.results if row.recipe == "dense"))


def page_parts(environment: Environment, scripts: Sequence[str]) -> dict[str, str]:
    """Style, scripts, and their hashes for the page's content security policy."""
    library = _library()
    script = '"use strict";\n(() => {\n' + "\n".join(_source(environment, name) for name in scripts) + "})();\n"
    hashes = " ".join(f"'sha256-{sha256(text)}'" for text in (library, script))
    return {"css": _source(environment, "page.css"), "script": script, "library": library, "script_hashes": hashes}


def figure_payload(figure: Figure) -> Payload:
    """The data with which the page draws a figure, shows its numbers, and saves both."""
    return {"title": figure.title, "spec": figure.spec, "numbers": numbers_payload(figure.rows)}


def numbers_payload(frame: pd.DataFrame) -> Payload:
    """A table as JSON: its columns, and its rows with null for undefined values."""
    return {
        "columns": [str(column) for column in frame.columns],
        "rows": [list(row.values()) for row in plain_rows(frame)],
    }


def _tables(result: StudyResult) -> Payload:
    """The tables that the page can save in full precision."""
    held = {
        "comparisons": ("all numbers behind the verdicts", comparisons_table(result)),
        "perplexity": (f"all numbers of {control_name(result)}", perplexity_table(result)),
        "compression": ("what was compressed", compression_table(result)),
    }
    return {name: {"title": title, "numbers": numbers_payload(frame)} for name, (title, frame) in held.items()}


def _build(run: Run, figure_data: Payload) -> str:
    """An identifier of this version of the page; the page loads only data files that carry it.

    The page's content security policy admits those files by it. A model's answer cannot contain it, because it
    depends on the score of every answer.
    """
    content = [figure_data, [[*cell] for cell in run.cells], run.result.timing.facts, list(run.missing)]
    return hashlib.sha256(embedded(content).encode("utf-8")).hexdigest()[:32]


def _start(findings: list[Finding]) -> dict[str, str]:
    """The answers shown first: those of the clearest loss."""
    claims = [claim for finding in findings for claim in finding.claims if claim.verdict == "not matching"]
    return {"recipe": claims[0].recipe, "task": claims[0].task} if claims else {}


def _breakable(text: str) -> Markup:
    """A name with optional line breaks after its punctuation, which copying does not include."""
    return Markup("<wbr>").join(re.split(r"(?<=[@:_+])", text))


def _quiet(text: str) -> Markup:
    """A sentence whose bounds in brackets stand back."""
    parts = re.split(r"(\[[^\[\]]*\])", text)
    return Markup().join(
        Markup("<span class=bounds>{}</span>").format(part) if i % 2 else part for i, part in enumerate(parts)
    )


def _short_hash(text: str) -> str | Markup:
    """The first digits of a sha256, with all digits in a tooltip; other texts are unchanged."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        return text
    return Markup('<code title="{}">{}…</code>').format(text, text[:12])


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, in the Vega-Lite version that the figures use."""
    # Bundling takes a second, and its result depends on these versions only. A second is not worth a report: a cache
    # that cannot be written is done without.
    name = f"{importlib.metadata.version('vl-convert-python')}-{VEGA_LITE}.js"
    with contextlib.suppress(ConfigError):
        file = cache_folder("vega") / name
        if file.is_file():
            return file.read_text(encoding="utf-8")
    bundle: str = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    library = bundle.replace("</script", "<\\/script")
    with contextlib.suppress(ConfigError):
        write_cached(cache_folder("vega") / name, library)
    return library
