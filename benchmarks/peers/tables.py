"""The report: Markdown tables, and whether the targets are met."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peers.floor import floor

OVERALL = {"wanda": 2.0, "sparsegpt": 2.5, "gptq": 2.5}  # ours against the obvious procedure, whole compressions
SOLVE = 8.0  # ours against the obvious procedure, factorisation and columns
WANDA_QUALITY = 0.01  # of the obvious procedure's perplexity

Run = Mapping[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def median(values: Sequence[float]) -> float:
    """Written out, since beside this package lies a statistics.py that hides the standard library's."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def met(yes: bool | None) -> str:
    """As the reader shall see it; None: it cannot be told."""
    return "–" if yes is None else "met" if yes else "**not met**"


def of(runs: Sequence[Run], recipe: str, contender: str) -> list[Run]:
    """A contender's runs of a recipe that went well, by seed."""
    found = [run for run in runs if (run["recipe"], run["contender"]) == (recipe, contender) and "error" not in run]
    return sorted(found, key=lambda run: run["seed"])


def contenders_table(runs: Sequence[Run], recipes: Sequence[str], contenders: Sequence[str]) -> str:
    """Seconds, memory and perplexity of everyone."""
    rows = []
    for recipe in recipes:
        plain = of(runs, recipe, "obvious")
        for name in contenders:
            mine = of(runs, recipe, name)
            if not mine:
                failed = [r for r in runs if (r["recipe"], r["contender"]) == (recipe, name)]
                if failed:
                    rows.append([f"`{recipe}`", name, "–", failed[0]["error"], "–", "–", "–", "–"])
                continue
            seconds = [run["seconds"] for run in mine]
            # Only seeds that both have run: a peer may have been given fewer.
            seeds = {run["seed"] for run in mine}
            base = [run["seconds"] for run in plain if run["seed"] in seeds]
            rows.append(
                [
                    f"`{recipe}`",
                    name,
                    mine[0]["dtype"],
                    f"{median(seconds):.1f} ({', '.join(f'{s:.1f}' for s in seconds)})",
                    f"{median(base) / median(seconds):.2f}×" if base else "–",
                    f"{max(run['peak'] for run in mine) / 1e9:.2f} GB",
                    ", ".join(f"{run['perplexity']:.2f}" for run in mine),
                    f"{mine[0]['sparsity']:.2%}",
                ]
            )
    header = ["recipe", "contender", "dtype", "seconds, median (each seed)", "speed, obvious = 1", "peak memory"]
    return table([*header, "perplexity by seed", "zeros"], rows)


def criteria_table(runs: Sequence[Run], recipes: Sequence[str]) -> str:
    """The targets: speed at equal quality, for the dtype that ours picks by itself and for float32."""
    rows = []
    for recipe in recipes:
        method = recipe.partition("@")[0]
        goal, plain = OVERALL[method], of(runs, recipe, "obvious")
        for name in ("ours", "ours, float32"):
            mine = of(runs, recipe, name)
            if not mine or not plain:
                rows.append([f"`{recipe}`", name, "–", f"≥ {goal}×", met(None), "–", "–", met(None)])
                continue
            speed = median([run["seconds"] for run in plain]) / median([run["seconds"] for run in mine])
            rule, found, good = quality(method, mine, plain)
            rows.append(
                [f"`{recipe}`", name, f"{speed:.2f}×", f"≥ {goal}×", met(speed >= goal), found, rule, met(good)]
            )
    header = ["recipe", "contender", "speed", "target", "", "perplexity, against the obvious", "criterion", ""]
    return table(header, rows)


def quality(method: str, mine: Sequence[Run], plain: Sequence[Run]) -> tuple[str, str, bool | None]:
    """The criterion, what was found, and whether it holds; None where one seed has no spread."""
    theirs = {run["seed"]: run["perplexity"] for run in plain}
    pairs = [(run["perplexity"], theirs[run["seed"]]) for run in mine if run["seed"] in theirs]
    if method == "wanda":
        worst = max(abs(a / b - 1) for a, b in pairs)
        return f"every seed within {WANDA_QUALITY:.0%}", f"at most {worst:.2%} apart", worst <= WANDA_QUALITY
    spread = max(theirs.values()) - min(theirs.values())
    worst = max(abs(a - b) for a, b in pairs)
    # Of means, with the largest difference of a seed told beside it.
    rule = f"means within the spread of the obvious over {len(theirs)} seeds"
    if len(theirs) < 2:
        return rule, f"at most {worst:.2f} apart", None
    apart = abs(sum(a - b for a, b in pairs)) / len(pairs)
    return rule, f"means {apart:.2f} apart, a seed at most {worst:.2f}; spread {spread:.2f}", apart <= spread


def solve_table(processes: Sequence[Mapping[str, Sequence[Run]]]) -> str:
    """Kernel against kernel: the same rows by recipe of each process."""
    lines = []
    for recipe in processes[0]:
        for same in zip(*(rows[recipe] for rows in processes), strict=True):
            ordered = sorted(same, key=lambda row: row["obvious"] / row["ours"])
            ratios = [row["obvious"] / row["ours"] for row in ordered]
            row, ratio = ordered[len(ordered) // 2], ratios[len(ratios) // 2]
            goal = row["part"] == "both"
            errors = "–" if row["errors"] is None else " / ".join(f"{100 * error:.2f} %" for error in row["errors"])
            lines.append(
                [
                    f"`{recipe}`",
                    row["layer"],
                    row["part"],
                    f"{1000 * row['ours']:.1f}",
                    f"{1000 * row['obvious']:.1f}",
                    f"{ratio:.2f}×",
                    f"{ratios[0]:.1f} … {ratios[-1]:.1f}",
                    f"≥ {SOLVE:.0f}× {met(ratio >= SOLVE)}" if goal else "",
                    errors,
                ]
            )
    header = ["recipe", "weight", "part", "ours, ms", "obvious, ms", "speed", "of all processes", "target"]
    return table([*header, "output error, ours / obvious"], lines)


def floor_table(
    runs: Sequence[Run], recipes: Sequence[str], start: Run, machine: Run, *, sequences: int, length: int
) -> str:
    """The least work, at this machine's best speed, against our time."""
    rows = []
    for recipe in recipes:
        for name in ("ours", "ours, float32"):
            mine = of(runs, recipe, name)
            if not mine:
                continue
            dtype = mine[0]["dtype"]
            parts = floor(
                recipe.partition("@")[0],
                start["shapes"],
                start["blocks"],
                sequences=sequences,
                length=length,
                dtype=dtype,
            )
            times = [part.seconds(machine["flops"], machine["bandwidth"]) for part in parts]
            least, taken = sum(times), median([run["seconds"] for run in mine])
            operations = sum(part.operations for part in parts)
            detail = ", ".join(f"{part.name} {seconds:.2f}" for part, seconds in zip(parts, times, strict=True))
            rows.append(
                [
                    f"`{recipe}`",
                    dtype,
                    f"{operations / 1e12:.3f}",
                    f"{sum(part.bytes for part in parts) / 1e9:.2f}",
                    f"{least:.2f} ({detail})",
                    f"{taken:.1f}",
                    f"{least / taken:.0%}",
                ]
            )
    return table(
        ["recipe", "dtype", "10¹² operations", "GB moved", "floor, s (parts)", "ours, s", "floor ÷ ours"], rows
    )
