"""Every decoder family of transformers, tiny and random: compressed, written, read again, compared.

    python benchmarks/architectures.py [--only NAME …] [--out FOLDER] [--again] [--write-docs]

Each family is tried in a process of its own. Its rows go to rows.jsonl in the folder; a family that has rows there is
not tried again, unless `--again` is given. A row is a fault when the folder is wrong, a part of the blocks stays dense
in silence, a router is compressed, or an error is no refusal in words before the work.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPES = ("magnitude@0.5", "wanda@2:4", "gptq@4b-g32")
TIMEOUT = 180  # seconds for a family


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="model types, for example llama")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "architectures", help="folder of rows.jsonl")
    parser.add_argument("--again", action="store_true", help="try families again that have rows")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write-docs", action="store_true", help="write the table of docs/models.md")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / "rows.jsonl"
    preload()
    from tiny import families

    names = {name: cls for name, cls in families().items() if not options.only or name in options.only}
    if unknown := set(options.only) - set(names):
        parser.error(f"no decoder family of this transformers: {', '.join(sorted(unknown))}")
    rows = read_rows(journal)
    waiting = [name for name in names if options.again or not is_tried(name, rows, options.recipes)]
    started = time.monotonic()
    run_families({name: names[name] for name in waiting}, journal, options)
    rows = [row for row in read_rows(journal) if row["family"] in names]
    import transformers
    from architecture_table import summary, write_section

    from compression import commit

    print(f"{summary(rows)} {dict(Counter(row['outcome'] for row in rows))}; {time.monotonic() - started:.0f} s")
    if options.write_docs:
        versions = f"transformers {transformers.__version__}, commit {commit()}"
        write_section(ROOT / "docs" / "models.md", versions, rows)
    return int(any(row["outcome"] == "fault" for row in rows))


def preload() -> None:
    """What every family needs, imported and run once before the processes are made."""
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from architecture_trial import try_family

    from tiny import families

    for family in ("llama", "mixtral"):
        list(try_family(family, families()[family], RECIPES))


def read_rows(journal: Path) -> list[dict[str, Any]]:
    """The last row of each family, recipe and form."""
    if not journal.is_file():
        return []
    last: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["form"] == "build":  # what an earlier build led to is no longer true
            last = {
                key: other
                for key, other in last.items()
                if key[0] != row["family"] or other["recipe"] not in row["recipes"]
            }
        last[row["family"], row["recipe"], row["form"]] = row
    return list(last.values())


def is_tried(family: str, rows: list[dict[str, Any]], recipes: list[str]) -> bool:
    """Whether a family has rows of all these recipes, or cannot be built."""
    own = [row for row in rows if row["family"] == family]
    return set(recipes) <= {row["recipe"] for row in own} or any(row["outcome"] == "unbuilt" for row in own)


def run_families(families: dict[str, str], journal: Path, options: argparse.Namespace) -> None:
    """Try the families, some at a time; rows are appended when a family is done."""
    waiting = list(families.items())
    running: dict[int, tuple[str, Path, float]] = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name, architecture = waiting.pop(0)
            own = journal.parent / f".{name}.jsonl"
            own.write_text("")
            running[start_family(name, architecture, own, options.recipes)] = name, own, time.monotonic()
        time.sleep(0.05)
        for pid, (name, own, since) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            late = not ended and time.monotonic() - since > TIMEOUT
            if late:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            if ended or late:
                del running[pid]
                finish_family(name, families[name], own, journal, status, options.recipes)


def start_family(name: str, architecture: str, own: Path, recipes: list[str]) -> int:
    """A process that writes the family's rows to a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        from architecture_trial import try_family

        with own.open("a", encoding="utf-8") as stream:
            for row in try_family(name, architecture, recipes):
                stream.write(json.dumps(row) + "\n")
                stream.flush()
    finally:
        os._exit(0)


def finish_family(name: str, architecture: str, own: Path, journal: Path, status: int, recipes: list[str]) -> None:
    """Move a family's rows to the journal and print what they say."""
    rows = [json.loads(line) for line in own.read_text(encoding="utf-8").splitlines()]
    own.unlink()
    if status or not rows:
        reason = f"no end within {TIMEOUT} s" if status == signal.SIGKILL else f"the process died with status {status}"
        rows.append({"family": name, "architecture": architecture, "recipe": "", "form": "", "outcome": "fault",
                     "reason": reason, "seconds": 0.0})  # fmt: skip
    with journal.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({**row, "recipes": recipes}) + "\n" for row in rows)
    counts = Counter(row["outcome"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    first = next((row for row in rows if row["outcome"] != "ok"), None)
    said = f" {first['form']} {first['recipe']}: {first['reason']}" if first else ""
    print(f"{name:28} {dict(counts)} {seconds:.1f} s{said[:160]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
