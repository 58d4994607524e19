"""Export of tasks to task files of lm-eval (lm-evaluation-harness), which give the same score to every item.

The folder contains a YAML file and the documents (JSON lines, each with its complete prompt) of each task, and one
utils.py that reads and scores the documents. It needs neither the network nor this package.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkick.errors import ConfigError
from llmkick.lm_eval import scoring as lm_eval_scoring
from llmkick.lm_eval.pairing import CHANCE_FIELD, GROUP_FIELDS
from llmkick.models.engine.encoding import encode_requests
from llmkick.models.language_model import GenerateRequest, Prompt, ScoreRequest
from llmkick.models.transformers_model import TransformersModel
from llmkick.output_folder import check_target, claimed, filling
from llmkick.tasks import metrics
from llmkick.tasks.data.readers.mmlu import LETTERS
from llmkick.tasks.prompting import Prompting, resolve_prompting
from llmkick.tasks.renaming import registry_name
from llmkick.tasks.task import Item, Task, groups_of

# A function of `lm_eval.scoring`: (document, answers) → {"acc": score}.
Scorer = Callable[..., dict[str, float]]
# A line of an exported file: field → JSON value.
Document = dict[str, object]

# (task, protocol) → its scorer. A task that is not listed cannot be exported.
SCORERS: dict[tuple[str, str], Scorer] = {
    ("factoid_qa", "strict"): lm_eval_scoring.alias_in_first_line,
    ("factoid_qa", "paper"): lm_eval_scoring.alias_anywhere,
    ("context_qa", "strict"): lm_eval_scoring.alias_in_first_line,
    ("context_qa", "paper"): lm_eval_scoring.alias_either_way,
    ("multiple_choice:letter", "strict"): lm_eval_scoring.likeliest_option,
    ("multiple_choice:letter", "paper"): lm_eval_scoring.letter_is_last,
    ("multiple_choice:cloze", "strict"): lm_eval_scoring.likeliest_option_per_byte,
}

LOADER = '''

def load(file, **_):
    """The documents of a task, from the file beside this one."""
    import json
    import pathlib

    import datasets

    path = pathlib.Path(__file__).with_name(file)
    lines = path.read_text(encoding="utf-8").split("\\n")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines if line])}
'''


@dataclass(frozen=True, kw_only=True)
class Export:
    """An exported folder: the names of its tasks in lm-eval, the command that runs them, and notes on differences."""

    folder: Path
    names: tuple[str, ...]
    command: str
    notes: tuple[str, ...]


def export_tasks(
    tasks: Sequence[Task], folder: Path, *, model: TransformersModel | None = None, prompting: str = "auto"
) -> Export:
    """Write tasks into a new folder for lm-eval.

    Without a model the prompts are whole raw text, which any model can read. With a model they are the prompts that
    this package gives to the model: in its chat template if it has one (or in the style `prompting`), with examples
    and evidence reduced to fit its context. The weights are not needed; see `llmkick.models.checkpoints.meta_model`.
    Raises ConfigError for a task or style that lm-eval cannot score identically, and for a folder that is not empty,
    cannot be written, or is being written by another command.
    """
    check_target(folder)
    styles = [_style(task, model, prompting) for task in tasks]
    scorers = [_scorer(task, style) for task, style in zip(tasks, styles, strict=True)]
    names, notes = [], []
    with claimed(folder), filling(folder) as temporary:
        for task, style, scorer in zip(tasks, styles, scorers, strict=True):
            names.append(_lm_eval_name(task))
            if names.count(names[-1]) > 1:
                raise ConfigError(f"{task.name} is listed twice")
            items = task.items(model)
            documents = [_document(task, item, style, model) for item in items]
            lines = [json.dumps(document, ensure_ascii=False) for document in documents]
            _write(temporary / f"{names[-1]}.jsonl", "\n".join(lines) + "\n")
            _write(temporary / f"{names[-1]}.yaml", _yaml(task, names[-1], documents[0], scorer))
            notes += [f"{task.name}: {note}" for note in (*task.notes, *_differences(task, items, style, model))]
        _write(temporary / "utils.py", _utils(scorers))
        command = _command(names, folder, model, chat="chat" in styles)
        _write(temporary / "README.md", _readme(command, model, notes, chat="chat" in styles))
    return Export(folder=folder, names=tuple(names), command=command, notes=tuple(notes))


def _style(task: Task, model: TransformersModel | None, prompting: str) -> Prompting:
    if model is not None:
        return resolve_prompting(model, prompting, required=task.prompting)
    if prompting == "chat":
        raise ConfigError("a chat prompt is rendered by a model's own template: give --model")
    if task.key.get("evidence_tokens") is not None:
        raise ConfigError(f"the evidence of {task.name} is cut by a model's tokens: give --model")
    return "raw"


def _scorer(task: Task, style: Prompting) -> Scorer:
    known, protocol = registry_name(task), str(task.key.get("protocol", ""))
    base = known.partition(":")[0]
    name = known if (known, protocol) in SCORERS else base
    if (name, protocol) not in SCORERS:
        names = ", ".join(dict.fromkeys(name for name, _ in SCORERS))
        why = " (lm-eval cuts text into windows of its own)" if base == "perplexity" else ""
        raise ConfigError(f"{task.name} cannot be exported to lm-eval{why}; choose from: {names}")
    if known == "multiple_choice:cloze" and style == "chat":
        raise ConfigError(
            f"{task.name} cannot be exported as chat: lm-eval counts the white space at the end of the chat "
            "template as part of every option, which changes their log-probability a byte; use --prompting raw"
        )
    return SCORERS[name, protocol]


def _lm_eval_name(task: Task) -> str:
    paper = "_paper" if task.key["protocol"] == "paper" else ""
    # A name that a study chose may have characters that no file and no task of lm-eval has.
    name = re.sub(r"[^\w.-]", "_", task.name)
    return f"llmkick_{name}{paper}"


def _document(task: Task, item: Item, style: Prompting, model: TransformersModel | None) -> Document:
    """A line of the data: the prompt for the model and the fields that the scorer and an import of the scores need."""
    requests = task.requests(item, style)
    prompt = _text(requests[0].prompt, model)
    document: Document = {
        "id": item.id, GROUP_FIELDS[groups_of(task)][0]: item.cluster, "prompt": prompt,
        CHANCE_FIELD: f"{task.chance_level:g}",
    }  # fmt: skip
    if isinstance(requests[0], GenerateRequest):
        letter = None if item.answer is None else LETTERS[item.answer]
        answers = list(item.references) if letter is None else [letter]
        return {**document, "answers": answers, "tokens": requests[0].max_new_tokens}
    options = [str(request.continuation) for request in requests if isinstance(request, ScoreRequest)]
    sizes = [len(choice.encode()) for choice in item.choices]
    return {**document, "options": options, "bytes": sizes, "answer": item.answer}


def _text(prompt: Prompt, model: TransformersModel | None) -> str:
    if isinstance(prompt, str):
        return prompt
    assert model is not None, "only a model renders a conversation"
    return model.render_chat(prompt)


def _yaml(task: Task, name: str, document: Document, scorer: Scorer) -> str:
    lines = [
        f"# {task.name}, version {task.version}, written by llmkick.",
        f"task: {name}",
        "custom_dataset: !function utils.load",
        f"dataset_kwargs: {{file: {name}.jsonl}}",
        "test_split: test",
        "num_fewshot: 0",
        "doc_to_text: prompt",
    ]
    if "options" in document:
        lines += ["output_type: multiple_choice", "doc_to_choice: options", "doc_to_target: answer"]
        lines += ['target_delimiter: ""']  # each option includes its leading space
    else:
        lines += ["output_type: generate_until", "doc_to_target: answers"]
        # No stop string, because lm-eval would stop at an empty first line of an answer. The score uses the first line
        # that is not empty.
        lines += [f"generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {document['tokens']}}}"]
    lines += [
        f"process_results: !function utils.{scorer.__name__}",
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
        f"metadata: {{version: {task.version}}}",
    ]
    return "\n".join(lines) + "\n"


def _utils(scorers: Sequence[Scorer]) -> str:
    """The source of utils.py, which needs the standard library and `datasets`, a dependency of lm-eval."""
    needed = [*dict.fromkeys(scorers), lm_eval_scoring._only_best]
    functions = "\n\n".join(inspect.getsource(function) for function in needed)
    source = inspect.getsource(metrics).replace(
        "from collections.abc import Sequence", "from collections.abc import Sequence\nfrom typing import Any"
    )
    return f"{source}\n\n{functions}{LOADER}"


def _differences(task: Task, items: Sequence[Item], style: Prompting, model: TransformersModel | None) -> list[str]:
    """Notes, with counts, on the items that lm-eval treats differently from this package."""
    if model is None:
        return []
    counts: Counter[str] = Counter()
    for item in items:
        requests = task.requests(item, style)
        scored = [request for request in requests if isinstance(request, ScoreRequest)]
        answer = max((r.max_new_tokens for r in requests if isinstance(r, GenerateRequest)), default=0)
        longest = max(len(model.encode(request.prompt)) for request in requests) + answer
        if longest > model.max_tokens:
            counts["longer than the model's context: unscored here, cut from the left by lm-eval"] += 1
        elif not _same_tokens(model, scored):
            counts["split otherwise between question and option by lm-eval, which may change their score"] += 1
    return [f"{count} of {len(items)} prompts are {what}" for what, count in counts.items()]


def _same_tokens(model: TransformersModel, requests: Sequence[ScoreRequest]) -> bool:
    """Whether lm-eval scores the same tokens as this package, apart from tokens that all options share.

    lm-eval moves the trailing white space of the prompt to the option. It tokenizes the prompt alone and then the
    prompt and option together.
    """
    extra = set()
    for request, ours in zip(requests, encode_requests(model.engine.encoder, requests), strict=True):
        text, chat = _text(request.prompt, model), not isinstance(request.prompt, str)
        tokens = [
            model.tokenizer(part, add_special_tokens=not chat, verbose=False)["input_ids"]
            for part in (text.rstrip(), text + str(request.continuation))
        ]
        theirs = tuple(tokens[1][len(tokens[0]) :])
        if theirs[len(theirs) - len(ours.continuation) :] != ours.continuation:
            return False
        extra.add(theirs[: len(theirs) - len(ours.continuation)])
    return len(extra) <= 1


def _command(names: Sequence[str], folder: Path, model: TransformersModel | None, *, chat: bool) -> str:
    weights = "MODEL" if model is None or model.checkpoint is None else str(model.checkpoint.folder)
    dtype = "float32" if model is None else model.info.dtype
    start = ",add_bos_token=False" if model is not None and chat and _adds_start_token(model) else ""
    return (
        f"lm_eval --model hf --model_args pretrained={weights},dtype={dtype}{start} --tasks {','.join(names)} "
        f"--include_path {folder} --batch_size 1 --log_samples --output_path OUT"
    )


def _adds_start_token(model: TransformersModel) -> bool:
    """Whether the tokenizer puts a start token before every text; a chat template has its own start token."""
    return bool(model.tokenizer("")["input_ids"])


def _readme(command: str, model: TransformersModel | None, notes: Sequence[str], *, chat: bool) -> str:
    chatting = ", in its chat template" if chat else ""
    whom = "any model: raw text" if model is None else f"{model.info.name}{chatting}"
    listed = "".join(f"- {note}\n" for note in notes)
    return (
        f"# Tasks of llmkick for lm-eval\n\nWritten by `kick export-lm-eval`, tried with lm-eval 0.4.13. "
        f"The prompts are for {whom}.\n\n    {command}\n\n"
        "The prompts are complete: leave `--num_fewshot` and `--apply_chat_template` out. Scores are equal item by "
        "item at batch size 1 in float32; in half precision or other batches near-ties may fall otherwise.\n"
        + (f"\n{listed}" if listed else "")
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
