"""The experiments of the paper: what each compares on which tasks, at the paper's scale and at a small one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Scale = Literal["paper", "small"]
Value = str | int | Sequence[int]

# Short names, which stand in the names of the files, of the models of the paper.
MODELS: Mapping[str, str] = {
    "vicuna-7b": "lmsys/vicuna-7b-v1.3",
    "vicuna-13b": "lmsys/vicuna-13b-v1.3",
    "vicuna-33b": "lmsys/vicuna-33b-v1.3",
    "llama-1-7b": "huggyllama/llama-7b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
}

PRUNING = ("magnitude", "wanda", "sparsegpt")
ROUNDING = ("rtn", "gptq")
# 0.25 and 0.35 are not in the paper; between them it decides that facts go first.
SPARSITIES = ("0.1", "0.2", "0.25", "0.3", "0.35", "0.4", "0.5", "0.6", "0.7")
FEW_SPARSITIES = ("0.2", "0.3", "0.5")
PATTERNS = ("1:2", "2:4", "4:8")
BITS = ("8b", "4b", "3b", "2b")
SAME_SIZE = "0.4616"  # leaves a 13B model the parameters of a 7B one


@dataclass(frozen=True, kw_only=True)
class TaskText:
    """A task of a study file: its keys at the paper's scale, and those that differ at the small one."""

    name: str
    about: str = ""
    keys: Mapping[str, Value] = field(default_factory=dict)
    small: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment of the paper, for one model or several.

    `grids` lists (method, levels); `small_grids` the fewer ones of the small scale. `claims` are the claims that it can
    speak about. `others` are external models, with names. `judged` says whether a judge scores the answers.
    """

    name: str
    place: str
    summary: str
    models: tuple[str, ...]
    grids: Sequence[tuple[str, Sequence[str]]]
    small_grids: Sequence[tuple[str, Sequence[str]]]
    tasks: Sequence[TaskText]
    claims: tuple[int, ...]
    others: Mapping[str, str] = field(default_factory=dict)
    about_others: str = ""
    samples: tuple[int, ...] = ()  # counts of calibration windows; empty: one count
    judged: bool = False

    @property
    def paper_model(self) -> str:
        """The reference of the first of the paper's models."""
        return MODELS[self.models[0]]


def _grid(methods: Sequence[str], levels: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    return [(method, levels) for method in methods]


_UNSTRUCTURED, _N_M, _ROUNDED = _grid(PRUNING, SPARSITIES), _grid(PRUNING, PATTERNS), _grid(ROUNDING, BITS)
_WHOLE = [*_UNSTRUCTURED, *_N_M, *_ROUNDED]
_FEW_N_M, _FEW_BITS = _grid(PRUNING, ("2:4",)), [("rtn", ("8b", "4b")), ("gptq", ("8b", "4b", "3b"))]
_FEW = [*_grid(PRUNING, FEW_SPARSITIES), *_FEW_N_M, *_FEW_BITS]

_FACTS = TaskText(name="factoid_qa", about="FreebaseQA, as many questions as the paper asked.", keys={"limit": 1001})
_CHOICE = TaskText(
    name="multiple_choice:letter", about="MMLU, without and with worked examples.",
    keys={"limit": 2000, "shots": (0, 5)}, small={"shots": (0, 5)},
)  # fmt: skip
_CHOICE_0 = TaskText(
    name="multiple_choice:letter", about="MMLU, without worked examples.", keys={"limit": 2000, "shots": 0},
    small={"shots": 0},
)  # fmt: skip
_CLOSED = TaskText(name="context_qa:closed", about="TriviaQA, without and with the passage.", keys={"limit": 1000})
_OPEN = TaskText(
    name="context_qa:open", keys={"limit": 1000, "evidence_tokens": 1024}, small={"evidence_tokens": 192}
)  # fmt: skip
_TEXT = TaskText(
    name="perplexity", about="WikiText-2, the control that the tasks are held against.", small={"window": 256}
)  # fmt: skip
_STORIES = TaskText(
    name="summarization",
    about="CNN/DailyMail: 100 stories each of up to 470 words, up to 790, and more.",
    keys={"bucket_words": (470, 790), "per_bucket": 100},
    small={"per_bucket": 2, "words": 45, "max_new_tokens": 64},
)
_DIALOGUES = TaskText(
    name="instruction", about="MT-Bench: 80 questions of two turns.", keys={}, small={"limit": 4, "max_new_tokens": 64}
)
# Small models answer letters at chance; the text of an option tells more of them. The paper has letters only.
CLOZE = TaskText(name="multiple_choice:cloze")
_EXAMPLES = TaskText(
    name="instruction", about="Answers to read: those of the 50 % and the 4-bit models are in the report.",
    keys={"limit": 8, "max_new_tokens": 256}, small={"limit": 2, "max_new_tokens": 64},
)  # fmt: skip

EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="figure-1", place="Figure 1", claims=(),
            summary="perplexity against sparsity and bits, and answers to read",
            models=("vicuna-7b", "vicuna-13b", "vicuna-33b"),
            grids=[*_UNSTRUCTURED, *_ROUNDED], small_grids=[*_grid(PRUNING, FEW_SPARSITIES), *_FEW_BITS],
            tasks=[_TEXT, _EXAMPLES],
        ),
        Experiment(
            name="figure-2", place="Figure 2", claims=(1, 2, 9),
            summary="factoid QA against sparsity, N:M patterns and bits",
            models=("vicuna-7b", "vicuna-13b"), grids=_WHOLE, small_grids=_FEW, tasks=[_FACTS, _TEXT],
        ),
        Experiment(
            name="figure-3", place="Figure 3", claims=(2, 8, 9, 11),
            summary="MMLU and its disciplines, 0-shot and 5-shot",
            models=("vicuna-7b", "vicuna-13b"), grids=_WHOLE, small_grids=_FEW, tasks=[_CHOICE, _TEXT],
        ),
        Experiment(
            name="figure-4", place="Figure 4", claims=(2, 6, 9),
            summary="TriviaQA, closed and open book",
            models=("vicuna-7b", "vicuna-13b"), grids=_WHOLE, small_grids=_FEW, tasks=[_CLOSED, _OPEN, _TEXT],
        ),
        Experiment(
            name="figures-2-to-4", place="Figures 1 to 4", claims=(1, 2, 3, 6, 8, 9, 11),
            summary="all knowledge tasks in one run: each model is compressed once",
            models=("vicuna-7b", "vicuna-13b"), grids=_WHOLE, small_grids=_FEW,
            tasks=[_FACTS, _CHOICE, _CLOSED, _OPEN, _TEXT],
        ),
        Experiment(
            name="figure-5", place="Figure 5", claims=(7,), judged=True,
            summary="summaries of short, medium and long stories, judged",
            models=("vicuna-7b",), grids=_WHOLE, small_grids=_FEW, tasks=[_STORIES],
        ),
        Experiment(
            name="figure-6", place="Figure 6", claims=(4,), judged=True,
            summary="instruction following, judged; unique tokens an answer",
            models=("vicuna-7b",), grids=[*_UNSTRUCTURED, *_N_M],
            small_grids=[*_grid(PRUNING, FEW_SPARSITIES), *_FEW_N_M], tasks=[_DIALOGUES],
        ),
        Experiment(
            name="section-4", place="Section 4", claims=(5,),
            summary="a large sparse model against a small dense one",
            models=("vicuna-13b",), grids=_grid(PRUNING, (SAME_SIZE,)), small_grids=_grid(PRUNING, (SAME_SIZE,)),
            tasks=[_CHOICE_0], others={"vicuna-7b": MODELS["vicuna-7b"]},
            about_others="The small dense model. The sparsity leaves the large one as many parameters.",
        ),
        Experiment(
            name="figure-7", place="Figure 7", claims=(10,), samples=(1, 8, 32, 128),
            summary="how many calibration samples Wanda and SparseGPT need",
            models=("vicuna-7b",), grids=_grid(("wanda", "sparsegpt"), ("0.5", "0.7")),
            small_grids=_grid(("wanda", "sparsegpt"), ("0.5",)), tasks=[_CHOICE_0],
        ),
        Experiment(
            name="table-2", place="Table 2 (A.6)", claims=(3,), judged=True,
            summary="GPTQ, AWQ and LLM.int8() at 8 bits",
            models=("vicuna-7b",), grids=_grid(ROUNDING, ("8b",)), small_grids=_grid(ROUNDING, ("8b",)),
            tasks=[_FACTS, _CHOICE_0, _OPEN, _DIALOGUES],
            others={
                "gptq-8bit": "models/vicuna-7b-gptq-8bit", "awq-8bit": "models/vicuna-7b-awq-8bit",
                "llm-int8": "models/vicuna-7b-llm-int8",
            },
            about_others="Folders that the tools wrote themselves: GPTQ, AWQ, and bitsandbytes for LLM.int8().",
        ),
        Experiment(
            name="table-2-prompt", place="Table 2 (A.6)", claims=(),
            summary="do 8 bits lose facts, or does the other prompt? both prompts",
            models=("vicuna-7b",), grids=_grid(ROUNDING, ("8b",)), small_grids=_grid(ROUNDING, ("8b",)),
            tasks=[
                TaskText(
                    name="factoid_qa", about='"The answer is" behind the question: for dense and pruned models.',
                    keys={"id": "factoid_qa same line", "limit": 1001, "answer_line": "same", "protocol": "paper"},
                    small={"id": "factoid_qa same line", "answer_line": "same", "protocol": "paper"},
                ),
                TaskText(
                    name="factoid_qa", about="On a line of its own: for quantized models.",
                    keys={"id": "factoid_qa new line", "limit": 1001, "answer_line": "new", "protocol": "paper"},
                    small={"id": "factoid_qa new line", "answer_line": "new", "protocol": "paper"},
                ),
            ],
        ),
        Experiment(
            name="table-3", place="Table 3", claims=(1, 4, 7, 9), judged=True,
            summary="four tasks up to 50 % sparsity",
            models=("vicuna-7b",), grids=_grid(PRUNING, SPARSITIES[:7]), small_grids=_grid(PRUNING, FEW_SPARSITIES),
            tasks=[_FACTS, _CHOICE_0, _STORIES, _DIALOGUES, _TEXT],
        ),
        Experiment(
            name="appendix-7", place="A.7", claims=(11,),
            summary="worked examples in the prompt of sparse models",
            models=("vicuna-7b",), grids=_grid(("wanda",), SPARSITIES), small_grids=_grid(("wanda",), ("0.3", "0.5")),
            tasks=[
                TaskText(
                    name="multiple_choice:letter", about="MMLU with more and more worked examples.",
                    keys={"limit": 2000, "shots": (0, 1, 2, 3, 5)}, small={"shots": (0, 1, 3, 5)},
                )
            ],
        ),
        Experiment(
            name="appendix-9", place="A.9", claims=(1, 2, 6, 8, 9),
            summary="the knowledge tasks on LLaMA-1 and LLaMA-2",
            models=("llama-1-7b", "llama-2-7b"), grids=[*_UNSTRUCTURED, *_N_M],
            small_grids=[*_grid(PRUNING, FEW_SPARSITIES), *_FEW_N_M], tasks=[_FACTS, _CHOICE_0, _CLOSED, _OPEN, _TEXT],
        ),
    )
}  # fmt: skip
