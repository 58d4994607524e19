"""Check a wheel: python .ci/check_wheel.py dist/llmkick-….whl, with a Python that can run the tests.

The wheel is installed into an empty environment, where it finds the packages that it declares and no others (links to
those of this environment, so that it takes seconds). There `kick` must run a study from its command line to its report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MAKE_TOY = "from pathlib import Path; from toy import save_toy; save_toy(Path('toy'), max_position_embeddings=512)"
STUDY = ["-r", "magnitude@0.5", "-r", "rtn@8b", "-t", "factoid_qa", "-t", "perplexity", "--limit", "6",
         "--sequences", "2", "--length", "16", "--dtype", "float32", "--quiet"]  # fmt: skip


def check_files(wheel: Path) -> None:
    """Refuse a wheel that lacks a file of the package, or has one that is not in it any more."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    source = ROOT / "src"
    files = (path for path in (source / "llmkick").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(source).as_posix() for path in files}
    if packed != expected:
        raise SystemExit(f"{wheel.name} lacks {sorted(expected - packed)} and has {sorted(packed - expected)} too many")


def install(wheel: Path, environment: Path) -> Path:
    """Make an environment with the wheel and what it declares. Returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    link_dependencies(packages)
    return python


def link_dependencies(packages: Path) -> None:
    """Link the packages that llmkick needs, those that they need, and so on, from this environment."""
    installed = next(iter(metadata.distributions(name="llmkick", path=[str(packages)])))
    waiting = [Requirement(text) for text in installed.requires or []]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            key = canonicalize_name(requirement.name), extra
            if key in seen or not applies(requirement, ""):
                continue
            seen.add(key)
            distribution = metadata.distribution(requirement.name)
            link(distribution, packages)
            needed = map(Requirement, distribution.requires or [])
            waiting += [further for further in needed if applies(further, extra)]


def applies(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement holds on this machine, for somebody who asks for the extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def link(distribution: metadata.Distribution, packages: Path) -> None:
    """Link the folders and modules of a distribution."""
    tops = {file.parts[0] for file in distribution.files or [] if file.suffix != ".pth"}
    for top in tops - {"..", "__pycache__"}:
        place = packages / top
        if not place.exists():
            place.symlink_to(Path(str(distribution.locate_file(top))))


def run(command: list[str], folder: Path, **variables: str) -> str:
    """Run a command in an empty folder, without this environment's variables. Returns what it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    surroundings = {**kept, "LLMKICK_CACHE": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ends with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(condition: bool, message: str) -> None:
    """End with the message unless the condition holds."""
    if not condition:
        raise SystemExit(message)


def main(wheel: Path) -> None:
    """Check the files of the wheel, then install and use it."""
    check_files(wheel)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        python = install(wheel, folder / "environment")
        kick = str(python.parent / "kick")
        place = run([str(python), "-c", "import llmkick; print(llmkick.__file__)"], folder).strip()
        expect(Path(place).is_relative_to(folder), f"llmkick comes from {place}, not from the wheel")
        expect(wheel.name.split("-")[1] in run([kick, "--version"], folder), "kick --version names another version")
        expect("factoid_qa" in run([kick, "tasks"], folder), "kick tasks does not list factoid_qa")
        run([str(python), "-c", MAKE_TOY], folder, PYTHONPATH=str(ROOT / "tests"))
        run([kick, "run", "-m", "toy", *STUDY, "-o", "run"], folder)
        results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
        cells = {(row["recipe"], row["task"]) for row in results["results"]}
        expected = {(r, t) for r in ("dense", "magnitude@0.5", "rtn@8b") for t in ("factoid_qa", "perplexity")}
        expect(cells == expected, f"the study has the cells {sorted(cells)}, not {sorted(expected)}")
        page = (folder / "run" / "report.html").read_text(encoding="utf-8")
        expect("<style" in page and "<script" in page, "report.html has no style or no script")
    print(f"{wheel.name}: installed alone, it ran a study and wrote its report")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
