"""The result of a gate as JUnit XML: one test case for each task."""

from __future__ import annotations

from xml.etree import ElementTree

from llmkick.gate.result import Flip, GateResult, TaskOutcome
from llmkick.gate.summary import MOST_FLIPS
from llmkick.report.escaping import xml

# The elements of JUnit. A skipped case does not fail a report; the exit code tells "undecided" from a match.
ELEMENTS = {"loses": "failure", "undecided": "skipped", "unmeasured": "error"}
COUNTED = {"failure": "failures", "skipped": "skipped", "error": "errors"}


def junit(result: GateResult) -> str:
    """Return the XML text. A gate that could not run is one test case with an error."""
    counts = dict.fromkeys(COUNTED.values(), 0)
    suite = ElementTree.Element("testsuite", name=xml(result.name))
    if result.error is not None:
        case = ElementTree.SubElement(suite, "testcase", classname="llmkick.gate", name=xml(result.name), time="0")
        _add(case, "error", "could not run", xml(result.error))
        counts["errors"] += 1
    for entry in result.tasks:
        classname = f"llmkick.gate.{xml(result.name)}"
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=xml(entry.task), time="0")
        element = ELEMENTS.get(entry.outcome)
        if element is not None:
            _add(case, element, xml(entry.reason), _details(entry))
            counts[COUNTED[element]] += 1
    suite.attrib |= {"tests": str(len(suite)), **{name: str(count) for name, count in counts.items()}}
    suite.set("time", f"{result.seconds:.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(case: ElementTree.Element, element: str, message: str, text: str) -> None:
    child = ElementTree.SubElement(case, element, message=message, type="llmkick")
    child.text = text


def _details(entry: TaskOutcome) -> str:
    """Return the notes and the items that flipped, as plain text."""
    lines = [*entry.notes, *(_line(flip) for flip in entry.flips[:MOST_FLIPS])]
    if len(entry.flips) > MOST_FLIPS:
        lines.append(f"{len(entry.flips) - MOST_FLIPS} more flipped items are in gate.json")
    return xml("\n".join(lines))


def _line(flip: Flip) -> str:
    way = "lost" if flip.is_lost else "gained"
    return (
        f"{way} {flip.item_id}: {flip.question!r}; reference {flip.reference_answer!r} ({flip.reference_score:.3g}), "
        f"candidate {flip.candidate_answer!r} ({flip.candidate_score:.3g})"
    )
