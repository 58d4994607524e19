"""The MMLU reader: four-option questions of 57 subjects, from the benchmark's CSV files or the hub's parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmkick.errors import DataError
from llmkick.tasks.data.hub import DataFile
from llmkick.tasks.data.readers import Loaded, counted
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import Row, read_csv, read_table
from llmkick.tasks.task import Item

LETTERS = "ABCD"

# The benchmark's mapping of subjects to disciplines (its categories.py). Anatomy, for example, is "health", so "other".
_SUBJECTS = {
    "stem": """
        abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics
        college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics
        high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics
        high_school_physics high_school_statistics machine_learning""",
    "humanities": """
        formal_logic high_school_european_history high_school_us_history high_school_world_history international_law
        jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law
        world_religions""",
    "social_sciences": """
        econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
        high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations
        security_studies sociology us_foreign_policy""",
    "other": """
        anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}
DISCIPLINES = {subject: discipline for discipline, names in _SUBJECTS.items() for subject in names.split()}


def read_mmlu(origin: Origin) -> tuple[Loaded, list[Item]]:
    """The questions of the split (test, or val if a folder has no test split), and the worked examples of dev.

    Raises DataError for a subject that is not among the 57, and for a subject without worked examples.
    """
    split = origin.chosen_split(("test", "val"))
    asked, shown = origin.files(split, "dev")
    items, examples = list(_read(asked, split)), list(_read(shown, "dev"))
    lacking = sorted({item.cluster for item in items} - {item.cluster for item in examples})
    if lacking:
        raise DataError(f"{origin.source}: no worked examples (dev) of {', '.join(lacking[:5])}")
    twins = sum(len(set(item.choices)) < len(item.choices) for item in items)
    missing = len(DISCIPLINES) - len({item.cluster for item in items})
    notes = (
        *counted(twins, "questions have two equal options"),
        *counted(missing, "of the 57 subjects are not in the data"),
        *((f"split {split}",) if split != "test" else ()),
    )
    return Loaded(items=tuple(items), notes=notes), examples


def _read(files: Sequence[DataFile], split: str) -> Iterator[Item]:
    """The questions of a split, numbered by subject; a subject can be in several files."""
    counts: dict[str, int] = {}
    for row, subject, question, choices, answer in (row for file in files for row in _rows(file, split)):
        if subject not in DISCIPLINES:
            row.fail("subject", f"{subject!r} is not one of MMLU's 57 subjects")
        counts[subject] = counts.get(subject, 0) + 1
        yield Item(
            id=f"{subject}-{split}-{counts[subject]:04d}",
            cluster=subject,
            question=question,
            references=(choices[answer],),
            choices=tuple(choices),
            answer=answer,
            details={"discipline": DISCIPLINES[subject]},
        )


def _rows(file: DataFile, split: str) -> Iterator[tuple[Row, str, str, Sequence[str], int]]:
    if file.name.endswith(".csv"):
        subject = file.path.name.removesuffix(f"_{split}.csv")
        for row in read_csv(file.path, ("question", *LETTERS, "answer"), name=file.name):
            letter = row.text("answer").strip()
            if letter not in tuple(LETTERS):
                row.fail("answer", f"is {letter!r}, not one of A, B, C, D")
            yield row, subject, row.text("question"), [row.text(column) for column in LETTERS], LETTERS.index(letter)
        return
    for row in read_table(file.path, ("question", "subject", "choices", "answer"), name=file.name):
        choices, answer = row.texts("choices", least=len(LETTERS)), row.whole("answer")
        if len(choices) != len(LETTERS):
            row.fail("choices", f"is a list of {len(choices)}, expected {len(LETTERS)}")
        if not 0 <= answer < len(LETTERS):
            row.fail("answer", f"is {answer}, expected 0 to {len(LETTERS) - 1}")
        yield row, row.text("subject"), row.text("question"), choices, answer
