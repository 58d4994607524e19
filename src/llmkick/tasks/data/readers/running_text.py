"""The readers of running text for perplexity: WikiText-2 as one text, and a seeded sample of C4 documents."""

from __future__ import annotations

import random

from llmkick.errors import DataError
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import read_table, read_text

# The number of C4 documents in the GPTQ code, which takes the first documents instead of a random sample.
C4_DOCUMENTS = 1100


def read_wikitext(origin: Origin) -> str:
    r"""The rows of the split, joined by blank lines as in GPTQ and later papers: `"\n\n".join(rows)`.

    A row is a line of the raw file with its line break; a blank line is an empty row, as on the hub.
    """
    rows: list[str] = []
    for file in origin.files(origin.chosen_split(("test", "validation")))[0]:
        if file.name.endswith(".parquet"):
            rows += [row.text("text", blank=True) for row in read_table(file.path, ("text",), name=file.name)]
        else:
            lines = read_text(file.path, file.name).removesuffix("\n").split("\n")
            rows += [f"{line}\n" if line.strip() else "" for line in lines]
    return "\n\n".join(rows)


def read_c4(origin: Origin, seed: int) -> str:
    """A seeded sample of the documents of the shard, in file order, joined by blank lines."""
    split = origin.chosen_split(("validation", "train"))
    documents = [
        row.text("text") for file in origin.files(split)[0] for row in read_table(file.path, ("text",), name=file.name)
    ]
    if not documents:
        raise DataError(f"{origin.source} holds no documents of {origin.dataset.name}")
    if len(documents) > C4_DOCUMENTS:
        chosen = sorted(random.Random(seed).sample(range(len(documents)), C4_DOCUMENTS))  # noqa: S311 - sampling
        documents = [documents[index] for index in chosen]
    return "\n\n".join(documents)
