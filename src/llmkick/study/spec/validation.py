"""Validation of plain values against a specification, with errors that name the line and the key of the wrong value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmkick.errors import ConfigError, plain_message
from llmkick.study.spec.sections import FORMS, Frozen
from llmkick.study.spec.source_lines import LocatedError, place_of

Spec = TypeVar("Spec", bound=Frozen)


def validated(
    kind: type[Spec],
    values: Mapping[str, object],
    *,
    sections: Mapping[str, type[Frozen]],
    text: str = "",
    origin: str,
) -> Spec:
    """Return the specification that plain values describe; `sections` maps each key of a table to its specification.

    `origin` names the file or what else the values are of, and `text` is the file's text. Raises ConfigError with one
    line for each problem.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problems = [_describe(problem, kind, sections, text, values, origin) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from error
    except LocatedError as error:
        raise ConfigError(f"{place_of(error.location, text, values, origin)}: {error}") from error


def _describe(
    problem: ErrorDetails,
    kind: type[Frozen],
    sections: Mapping[str, type[Frozen]],
    text: str,
    values: Mapping[str, object],
    origin: str,
) -> str:
    """Return one line for one problem from pydantic: the location in the file, then the problem."""
    location = tuple(part for part in problem["loc"] if part not in FORMS)
    place = place_of(location, text, values, origin)
    section = sections[str(location[0])] if len(location) > 1 and location[0] in sections else kind
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key; choose from: {', '.join(section.model_fields)}"
    if problem["type"] == "missing":
        return f"{place}: is missing"
    if problem["type"] == "literal_error":
        key = str(location[-1])
        choices = ", ".join(get_args(section.model_fields[key].annotation))
        return f"{place}: unknown {key} {problem['input']!r}{_section_name(location, values)}; choose from: {choices}"
    return f"{place}: {plain_message(problem['msg'])}, got {problem['input']!r}"


def _section_name(location: tuple[int | str, ...], values: Mapping[str, object]) -> str:
    """Return " for factoid_qa" for a value of that task, and " of the judge" for a value of the judge."""
    if location[0] == "judge":
        return " of the judge"
    tasks = values.get("tasks")
    if location[0] != "tasks" or not isinstance(tasks, list | tuple):
        return ""
    task = tasks[int(location[1])]
    return f" for {task['name']}" if isinstance(task, dict) and "name" in task else ""
