"""The published data sets: repository, revision and file names of each, on its host and in a local folder.

A revision is a pinned commit if the commit is certain. `hub.py` describes the checksums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set. `hub` and `folder` map each split to file patterns; the first split is the default.

    In a folder the patterns are tried in order; the first pattern that matches files determines the layout. Splits in
    `beside` hold what is shown beside the questions of the others, and cannot be asked.
    """

    name: str
    host: str  # "hub" (Hugging Face data sets) or "github"
    repository: str
    revision: str
    licence: str
    hub: Mapping[str, str]
    folder: Mapping[str, tuple[str, ...]]
    beside: tuple[str, ...] = ()


FREEBASEQA = DataSet(
    name="FreebaseQA",
    host="github",
    repository="kelvin-jiang/FreebaseQA",
    revision="master",  # the commit is uncertain: the first download pins the bytes
    licence="CC-BY-4.0",
    hub={"eval": "FreebaseQA-eval.json", "dev": "FreebaseQA-dev.json"},
    folder={split: (f"FreebaseQA-{split}.json", f"FreebaseQA-{split}.json.gz") for split in ("eval", "dev")},
)
POPQA = DataSet(
    name="PopQA",
    host="hub",
    repository="akariasai/PopQA",
    revision="098765c79ea10a2cb19c828324e33281b8336ec0",
    licence="MIT",
    hub={"test": "test.tsv"},
    folder={"test": ("test.tsv", "popqa*.jsonl.gz", "popqa*.jsonl", "popqa*.tsv")},
)
MMLU = DataSet(
    name="MMLU",
    host="hub",
    repository="cais/mmlu",
    revision="c30699e8356da336a370243923dbaf21066bb9fe",
    licence="MIT",
    hub={
        "test": "all/test-*.parquet",
        "val": "all/validation-*.parquet",
        "dev": "all/dev-*.parquet",
    },
    folder={
        "test": ("test/*_test.csv", "data/test/*_test.csv", "all/test-*.parquet", "test-*.parquet"),
        "val": ("val/*_val.csv", "data/val/*_val.csv", "all/validation-*.parquet", "validation-*.parquet"),
        "dev": ("dev/*_dev.csv", "data/dev/*_dev.csv", "all/dev-*.parquet", "dev-*.parquet"),
    },
    beside=("dev",),  # worked examples
)
TRIVIAQA = DataSet(
    name="TriviaQA",
    host="hub",
    repository="mandarjoshi/trivia_qa",
    revision="0f7faf33a3908546c6fd5b73a660e0f8ff173c2f",
    licence="Apache-2.0",
    hub={"rc": "rc/validation-*.parquet", "rc.nocontext": "rc.nocontext/validation-*.parquet"},
    folder={
        "rc": ("rc/validation-*.parquet", "rc-validation.jsonl.gz", "rc-validation.jsonl", "validation-*.parquet"),
        "rc.nocontext": (
            "rc.nocontext/validation-*.parquet",
            "nocontext-dev.jsonl.gz",
            "nocontext-dev.jsonl",
            "rc.nocontext-validation.jsonl",
        ),
    },
)
WIKITEXT = DataSet(
    name="WikiText-2",
    host="hub",
    repository="Salesforce/wikitext",
    revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    licence="CC-BY-SA-3.0",
    hub={"test": "wikitext-2-raw-v1/test-*.parquet", "validation": "wikitext-2-raw-v1/validation-*.parquet"},
    folder={
        "test": ("wikitext-2-raw-v1/test-*.parquet", "test-*.parquet", "wiki.test.raw", "wiki.test.raw.gz"),
        "validation": (
            "wikitext-2-raw-v1/validation-*.parquet",
            "validation-*.parquet",
            "wiki.valid.raw",
            "wiki.valid.raw.gz",
        ),
    },
)
C4 = DataSet(
    name="C4",
    host="hub",
    repository="allenai/c4",
    revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
    licence="ODC-BY",
    # The first shard of the validation split, because calibration data comes from the training split.
    hub={"validation": "en/c4-validation.00000-of-00008.json.gz"},
    folder={
        "validation": ("en/c4-validation.00000-of-00008.json.gz", "c4-validation*.json.gz"),
        "train": ("c4-train*.json.gz",),
    },
)
CNN_DAILYMAIL = DataSet(
    name="CNN/DailyMail",
    host="hub",
    repository="abisee/cnn_dailymail",
    revision="96df5e686bee6baa90b8bee7c28b81fa3fa6223d",
    licence="Apache-2.0 (texts © their publishers)",
    hub={"test": "3.0.0/test-*.parquet", "validation": "3.0.0/validation-*.parquet"},
    folder={
        split: (f"3.0.0/{split}-*.parquet", f"{split}-*.parquet", f"{split}.jsonl.gz", f"{split}.jsonl")
        for split in ("test", "validation")
    },
)
MT_BENCH = DataSet(
    name="MT-Bench",
    host="hub",
    repository="HuggingFaceH4/mt_bench_prompts",
    revision="main",  # the commit is uncertain: the first download pins commit and bytes
    licence="Apache-2.0",
    hub={"questions": "raw/question.jsonl"},
    folder={
        "questions": ("mt_bench-question.jsonl", "raw/question.jsonl", "question.jsonl"),
        "references": ("mt_bench-reference_answer-gpt-4.jsonl", "reference_answer/gpt-4.jsonl"),
    },
    beside=("references",),
)
VICUNA_80 = DataSet(
    name="Vicuna-80",
    host="github",
    repository="lm-sys/FastChat",
    revision="main",
    licence="Apache-2.0",
    hub={"questions": "fastchat/llm_judge/data/vicuna_bench/question.jsonl"},
    folder={
        "questions": ("vicuna_bench-question.jsonl", "vicuna_bench/question.jsonl", "question.jsonl"),
        "references": ("vicuna_bench-reference_answer-gpt-4.jsonl", "vicuna_bench/reference_answer/gpt-4.jsonl"),
    },
    beside=("references",),
)
