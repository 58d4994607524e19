"""Print a run's verdicts as the Markdown table of benchmarks/results/quickstart.md; the README shows some of its cells.

python examples/readme_table.py runs/quickstart
"""

import sys
from pathlib import Path

from llmkick.report.exports import markdown
from llmkick.study.results.results import read_results


def main(folder: str) -> None:
    result = read_results(Path(folder))
    table, _, note = markdown(result).partition("\n\n")
    minutes = sum(sum(parts.values()) for parts in result.timing["seconds"].values()) / 60
    machine = result.environment
    print(
        f"{table}\n\n{note.strip()} From `make demo` on {machine['cores']} cores of an {machine['processor']} in "
        f"{result.model['dtype']}, {minutes:.0f} minutes of work, {result.timing['finished'][:10]}, "
        f"llmkick {machine['packages']['llmkick']}."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
