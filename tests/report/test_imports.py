import subprocess
import sys

from report.synthetic import build_run


def imported(code, *arguments):
    """The modules that a fresh process has imported after some code."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


WRITE = """
import sys, pathlib
from llmkick.report.page.page import write_report
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


def test_a_study_of_local_models_needs_no_library_of_servers():
    assert not imported("import llmkick.study.run, llmkick.gate.run") & {"openai", "tenacity"}
