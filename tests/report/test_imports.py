import subprocess
import sys

from report.synthetic import build_run


def imported(code, *arguments):
    """The modules that a fresh process has imported after some code."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


WRITE = (
    "import sys, pathlib\nfrom llmkick.report.page.page import write_report\nwrite_report(pathlib.Path(sys.argv[1]))"
)


def test_a_report_is_written_without_torch(folder):
    build_run(folder, recipes=["rtn@8b"], items=12)
    assert "torch" not in imported(WRITE, str(folder))
    (folder / "results.json").unlink()
    assert "torch" not in imported(WRITE, str(folder))
