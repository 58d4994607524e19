import subprocess
import sys

from processes import print_modules, run_commands
from report.synthetic import build_run


def imported(code, *arguments):
    """The modules that a fresh process has imported after some code."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


# Figures are drawn by another process, which takes a second.
WRITE = """
import contextlib, sys, pathlib
from llmkick.report.figures import figure
from llmkick.report.page.page import write_report
figure.drawn_aside = lambda specs, _version: contextlib.nullcontext(lambda: ["<svg/>"] * len(specs))
folder = pathlib.Path(sys.argv[1])
write_report(folder)
(folder / "results.json").unlink()
write_report(folder)
"""


def test_a_report_is_written_without_torch(folder):
    """Of a finished run, and of one without results."""
    build_run(folder, recipes=["rtn@8b"], items=12)
    assert "torch" not in imported(WRITE, str(folder))
    assert not (folder / "results.json").exists()


def test_a_study_of_local_models_needs_no_library_of_servers(tmp_path):
    (done,) = run_commands(print_modules, tmp_path / "said", [{}], "llmkick.study.run", "llmkick.gate.run")
    assert "llmkick.gate.run" in done.out.split(), done.err
    assert not set(done.out.split()) & {"openai", "tenacity"}
