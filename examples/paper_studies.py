"""Write the study files in examples/paper from the templates of the package: python examples/paper_studies.py"""

from pathlib import Path

from llmkick.paper.study_files import ready_files

FOLDER = Path(__file__).parent / "paper"


def main() -> None:
    """Replace every file of the folder."""
    for old in FOLDER.glob("*.toml"):
        old.unlink()
    for name, text in ready_files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
