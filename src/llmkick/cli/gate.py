"""`kick gate`: is a candidate shown to match its reference? The exit code says so."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from llmkick.cli.advice import words_of
from llmkick.cli.common import STUDIES, app, check_file_target, err, out, print_line, print_notes
from llmkick.cli.options import OUTPUT, STUDY, Json, Quiet
from llmkick.cli.streams import drop_unwritable, print_error, unwritable_ignored
from llmkick.errors import ConfigError, KickError
from llmkick.exit_codes import COULD_NOT_RUN

if TYPE_CHECKING:
    from llmkick.gate.policy import GatePolicy
    from llmkick.gate.result import GateResult

GITHUB_SUMMARY = "GITHUB_STEP_SUMMARY"


class GateCommand(TyperCommand):
    """A command whose errors have the exit code of a gate that could not run, for theirs are those of verdicts."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Parse the command line."""
        try:
            return super().make_context(*arguments, **options)
        except Exception as error:
            if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of click or of typer's copy
                error.exit_code = COULD_NOT_RUN
            raise
        except SystemExit as stop:  # rich's, for the reader of the help who has left
            raise typer.Exit(COULD_NOT_RUN) from stop

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Its exit code is that of the outcome, or COULD_NOT_RUN."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - SystemExit: as above, for the progress
            _show_unexpected(error)
            _end(error)


Overridden = Annotated[
    str | None, typer.Option("--model", "-m", help="Candidate, instead of the policy's.", rich_help_panel=STUDY)
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="Reference model or FILE.jsonl, instead of the policy's.", rich_help_panel=STUDY),
]
Items = Annotated[
    int | None, typer.Option("--items", help="Most items of each task, instead of the policy's.", rich_help_panel=STUDY)
]
Minutes = Annotated[
    float | None, typer.Option("--minutes", help="Most minutes, instead of the policy's.", rich_help_panel=STUDY)
]
Refresh = Annotated[
    bool,
    typer.Option("--refresh-reference", help="Ask the reference anew, not its cache.", rich_help_panel=STUDY),
]
Store = Annotated[
    Path | None,
    typer.Option(
        "--store-reference", help="Ask only the reference, and store its answers here.", rich_help_panel=OUTPUT
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the run. Default: a new one in runs/.", rich_help_panel=OUTPUT),
]
Junit = Annotated[Path | None, typer.Option("--junit", help="JUnit XML file to write.", rich_help_panel=OUTPUT)]
Summary = Annotated[Path | None, typer.Option("--summary", help="Markdown summary to write.", rich_help_panel=OUTPUT)]


@app.command(cls=GateCommand, rich_help_panel=STUDIES)
def gate(
    policy: Annotated[Path, typer.Argument(metavar="[POLICY.toml]", help="Policy file.")] = Path("gate.toml"),
    model: Overridden = None,
    reference: Reference = None,
    items: Items = None,
    minutes: Minutes = None,
    refresh_reference: Refresh = False,
    store_reference: Store = None,
    folder: Folder = None,
    junit: Junit = None,
    summary: Summary = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Gate a candidate: is it shown to match its reference? Asks more items until every task is decided.

    Exit code: 0 shown to match on every task, 1 shown to lose more than the margin on some task, 2 undecided within the
    budget, 3 could not run. The answers of the reference are cached, so that a nightly run asks only the candidate.

    Examples:

        kick gate gate.toml --model ./build/model-awq

        kick gate gate.toml --model openai:http://127.0.0.1:8000/v1#nightly --junit gate.xml --summary gate.md

        kick gate gate.toml --store-reference reference.jsonl
    """
    overrides = {"model": model, "reference": reference, "budget": {"items": items, "minutes": minutes}}
    files = {"--out": folder, "--junit": junit, "--summary": summary, "--json": as_json or None}
    try:
        if store_reference is not None:
            _refuse({"--model": model, "--minutes": minutes, **files})
        for path in (junit, summary, store_reference):
            if path is not None:
                check_file_target(path)
    except KickError as error:
        _end(error)
    if store_reference is not None:
        _store(policy, overrides, store_reference, refresh=refresh_reference, quiet=quiet)
        return
    try:
        result = _run(policy, overrides, folder, refresh=refresh_reference, quiet=quiet)
    except Exception as error:  # noqa: BLE001 - Python's exit code of an error is that of a shown loss
        result = _failed(error, policy, overrides)
    _write(result, junit, summary)
    try:
        _print(result, as_json=as_json)
    except (BrokenPipeError, SystemExit):  # the reader has left; the verdict is in the files
        drop_unwritable()
    raise typer.Exit(result.exit_code)


def _refuse(options: Mapping[str, object]) -> None:
    """Raise ConfigError for options of a gate, given where only a reference is stored: they would do nothing."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"--store-reference takes no {', '.join(given)}: it asks only the reference, every item")


def _store(path: Path, overrides: Mapping[str, object], target: Path, *, refresh: bool, quiet: bool) -> None:
    from llmkick.cli.progress import TerminalProgress
    from llmkick.gate.run import store_reference

    try:
        with TerminalProgress(err, quiet=quiet, words=words_of("gate")) as progress:
            chosen = _policy(path, overrides, needs_model=False)
            asked = store_reference(chosen, target, refresh=refresh, observer=progress)
    except Exception as error:  # noqa: BLE001 - Python's exit code of an error is that of a shown loss
        _show_unexpected(error)
        _end(error)
    print_line(f"{asked:,} new answers: {target}")


def _end(error: BaseException) -> NoReturn:
    if str(error):
        print_error(error)
    raise typer.Exit(COULD_NOT_RUN) from error


def _policy(path: Path, overrides: Mapping[str, object], *, needs_model: bool = True) -> GatePolicy:
    from llmkick.gate.policy import load_policy

    return load_policy(path, overrides, needs_model=needs_model)


def _run(path: Path, overrides: Mapping[str, object], folder: Path | None, *, refresh: bool, quiet: bool) -> GateResult:
    from llmkick.cli.progress import TerminalProgress
    from llmkick.gate.run import run_gate

    policy = _policy(path, overrides)
    if folder is None:
        name = re.sub(r"[^\w.-]+", "-", policy.name)
        folder = Path("runs") / f"gate-{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with TerminalProgress(err, quiet=quiet, words=words_of("gate")) as progress:
        return run_gate(policy, out=folder, refresh=refresh, observer=progress)


def _failed(error: Exception, path: Path, overrides: Mapping[str, object]) -> GateResult:
    """Return the result for an error; one that nobody expected shows where it came from."""
    from llmkick.gate.run import failed_gate

    _show_unexpected(error)
    names = {key: _without_secrets(str(overrides[key] or "")) for key in ("model", "reference")}
    return failed_gate(error, name=path.stem, candidate=names["model"], reference=names["reference"])


def _show_unexpected(error: BaseException) -> None:
    if not isinstance(error, KickError | OSError | SystemExit):
        with unwritable_ignored():
            traceback.print_exc()


def _without_secrets(reference: str) -> str:
    """Return a reference; nothing of an address that was refused, which may hold a credential."""
    from llmkick.models.server.address import parse_address
    from llmkick.models.server_scheme import SERVER_SCHEME

    _, scheme, address = reference.partition(SERVER_SCHEME)
    try:
        if scheme:
            parse_address(scheme + address)
    except KickError:
        return ""
    return reference


def _write(result: GateResult, junit: Path | None, summary: Path | None) -> None:
    """Write the files that were asked for. Where that fails, the gate could not run."""
    from llmkick.files import write_text
    from llmkick.gate import junit as junit_file
    from llmkick.gate import summary as summary_file

    try:
        if junit is not None:
            write_text(junit, junit_file.junit(result))
        if summary is not None:
            text = summary_file.summary(result)
            if str(summary) == os.environ.get(GITHUB_SUMMARY):  # what earlier commands of the step wrote stays
                text = (summary.read_text(encoding="utf-8") if summary.exists() else "") + text
            write_text(summary, text)
    except (KickError, OSError) as error:
        _end(error)


def _print(result: GateResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
        return
    if result.error is not None:
        print_error(result.error)
        return
    print_notes(result.warnings)
    for line in str(result).splitlines():
        print_line(line)
    out.print(f"run folder: {result.folder}; exit code {result.exit_code}", markup=False, highlight=False)
