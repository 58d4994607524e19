"""The table of `architectures.py`: families, the share of their block weights, and the forms that work."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
START = "<!-- written by python benchmarks/architectures.py --write-docs -->"
END = "<!-- end of the table -->"
# What the column says already, and the advice that follows a reason.
NOISE = (
    r"^(cannot load dense from dense: )?(dense(/\S+)?:? )?",
    r"^[\w@:.-]+: (?=\S+ has \d)",
    r"; compressed-tensors cannot.*",
    r", as compressed-tensors needs.*",
    r"; encoder-decoder and most.*",
    r"; use --packed.*",
)
FORMS = ("folder", "packed", "compressed-tensors")


def summary(rows: Iterable[Row]) -> str:
    """How many families work, are refused, are not built, or are at fault."""
    counts = Counter(kind_of(own) for own in by_family(rows).values())
    return (
        f"{counts.total()} families: {counts['works']} are compressed, {counts['refused']} are refused in words, "
        f"{counts['unbuilt']} could not be tried, {counts['fault']} have faults."
    )


def by_family(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each family, in the order of the alphabet."""
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["family"]].append(row)
    return dict(sorted(grouped.items()))


def kind_of(rows: list[Row]) -> str:
    """What became of a family: "works", "refused", "unbuilt" or "fault"."""
    outcomes = {row["outcome"] for row in rows if row["form"] != "build"}
    if not outcomes:
        return "unbuilt"
    return "fault" if "fault" in outcomes else "works" if "ok" in outcomes else "refused"


def table(rows: Iterable[Row]) -> str:
    """The section of docs/models.md between the two marks."""
    lines = [
        "| family | of block weights | streamed | folder | packed | compressed-tensors | otherwise |",
        "| --- " * 7 + "|",
    ]
    lines += [line_of(family, own) for family, own in by_family(rows).items()]
    return "\n".join(lines)


def line_of(family: str, rows: list[Row]) -> str:
    """A family's line."""
    kind, tried = kind_of(rows), [row for row in rows if row["form"] in FORMS]
    shares = [row["share"] for row in rows if row.get("share") is not None]
    streamed = {row["streamed"] for row in tried if row["streamed"] is not None}
    cells = [f"`{family}`", f"{100 * min(shares):.0f} %" if shares and kind == "works" else "–"]
    cells.append({(True,): "yes", (False,): "no"}.get(tuple(streamed), "–") if kind == "works" else "–")
    for form in FORMS:
        outcomes = {row["outcome"] for row in tried if row["form"] == form}
        cells.append(
            "fault" if "fault" in outcomes else "yes" if outcomes == {"ok"} else "some" if "ok" in outcomes else "–"
        )
    return f"| {' | '.join([*cells, reason_of(rows)])} |"


def reason_of(rows: list[Row]) -> str:
    """The reasons of what does not work, each once; a refusal of every form is said once."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["outcome"] != "ok":
            reasons[shortened(row["reason"])].append(row["form"])
    texts = []
    for reason, forms in reasons.items():
        only = set(forms) == {"compressed-tensors"} and kind_of(rows) == "works"
        texts.append(reason if not only else f"compressed-tensors: {reason}")
    return "; ".join(texts).replace("|", "\\|")


def shortened(reason: str) -> str:
    """A reason without what differs from run to run."""
    for pattern in NOISE:
        reason = re.sub(pattern, "", reason)
    return reason if len(reason) <= 200 else f"{reason[:200].rsplit(' ', 1)[0]} …"


def write_section(page: Path, versions: str, rows: Iterable[Row]) -> None:
    """Put summary and table between the marks of a page, after the versions that they were made with."""
    rows = list(rows)
    before, rest = page.read_text(encoding="utf-8").split(START, 1)
    after = rest.split(END, 1)[1]
    text = f"{versions}. {summary(rows)}\n\n{table(rows)}"
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")
