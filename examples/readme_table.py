"""Print a run's verdicts as the Markdown table that the README shows.

python examples/readme_table.py runs/quickstart
"""

import sys
from pathlib import Path

from llmkick.study.results import read_results


def main(folder: str) -> None:
    result = read_results(Path(folder))
    tasks = [task["name"] for task in result.tasks]
    cells = {(row["recipe"], row["task"]): row for row in result.comparisons}
    dense = {row["task"]: row["value"] for row in result.results if row["recipe"] == "dense"}
    print("| recipe | " + " | ".join(tasks) + " |\n|" + " --- |" * (len(tasks) + 1))
    print("| dense | " + " | ".join(f"{dense[task]:.3g}" for task in tasks) + " |")
    for recipe in result.study["recipes"]:
        print(f"| {recipe} | " + " | ".join(cell(cells.get((recipe, task))) for task in tasks) + " |")
    minutes = sum(sum(parts.values()) for parts in result.timing["seconds"].values()) / 60
    machine = result.environment
    print(
        f"\nScore and verdict (loss with its 95 % interval). From `make demo` on {machine['cores']} cores of an "
        f"{machine['processor']} in {result.model['dtype']}, {minutes:.0f} minutes of work, "
        f"{result.timing['finished'][:10]}, llmkick {machine['packages']['llmkick']}."
    )


def cell(row: dict | None) -> str:
    if row is None:
        return "–"
    change = row.get("relative_drop", row.get("relative_increase"))
    low, high = row["interval"] or (None, None)
    numbers = "" if change is None else f" ({100 * change:+.0f} %"
    numbers += f" [{100 * low:+.0f}, {100 * high:+.0f}])" if low is not None else ")" if numbers else ""
    if row.get("verdict") == "no signal":
        return f"{row['compressed']:.2f} no signal"
    if "outcome" in row:
        return f"{row['compressed']:.3g}{numbers}"
    return f"{row['compressed']:.2f} {row['verdict']}{numbers}"


if __name__ == "__main__":
    main(*sys.argv[1:])
