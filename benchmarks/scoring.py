"""The engine against its peers, same model, questions and machine: python benchmarks/scoring.py [--questions N].

Scoring: 5-shot multiple choice by letter, beside lm-eval's `hf` backend (installed into an environment of its
own). Generation: closed- and open-book questions, 32 new tokens, beside transformers' `generate` one at a time
and in left-padded batches. The sides take turns in one run; each peer may first pick its fastest batch size.
"""

import argparse
import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from llmkick.files import cache_folder
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.language_model import ContinuationScore, GenerateRequest, Generation, ScoreRequest
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.results.noise_floor import NoiseFloor, compare_runs
from llmkick.tasks.registry import get_task
from llmkick.tasks.suite.multiple_choice import MultipleChoice

PEER = "lm_eval[hf]==0.4.13"
ROOT = Path(__file__).resolve().parents[1]
LETTERS = "ABCD"
NEW_TOKENS = 32
SCORING_BATCHES = (1, 4, 16)
GENERATION_BATCHES = (8, 16, 32)


@dataclass(frozen=True)
class Question:
    """A question, its options, the place of the right one, and the worked examples of its subject."""

    id: str
    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int
    examples: "tuple[Question, ...]" = ()

    def shown(self) -> str:
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True))
        return f"{self.text.strip()}\n{options}\nAnswer:"

    def prompt(self) -> str:
        examples = "".join(f"{one.shown()} {LETTERS[one.answer]}\n\n" for one in self.examples)
        return description(self.subject) + examples + self.shown()

    def requests(self) -> list[ScoreRequest]:
        prompt = self.prompt()
        return [ScoreRequest(prompt, f" {letter}") for letter in LETTERS]


def description(subject: str) -> str:
    """The line above the examples, as in MMLU."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def pocket_questions() -> list[Question]:
    """The project's own multiple-choice questions."""
    task = MultipleChoice()

    def question(item: Any, examples: tuple[Question, ...] = ()) -> Question:
        return Question(item.id, item.cluster, item.question, item.choices, item.answer, examples)

    examples = {subject: tuple(map(question, some[:5])) for subject, some in task._examples.items()}
    return [question(item, examples[item.cluster]) for item in task._read[0].items]


def mmlu_questions(folder: Path) -> list[Question]:
    """The official CSV files: dev for the examples, test (or val) for the questions."""
    split = "test" if (folder / "test").is_dir() else "val"

    def read(part: str, subject: str, examples: tuple[Question, ...] = ()) -> list[Question]:
        with (folder / part / f"{subject}_{part}.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
        return [
            Question(f"{subject}-{part}-{n}", subject, row[0], tuple(row[1:5]), LETTERS.index(row[5]), examples)
            for n, row in enumerate(rows)
        ]

    subjects = sorted(path.name.removesuffix(f"_{split}.csv") for path in (folder / split).glob("*.csv"))
    return [one for subject in subjects for one in read(split, subject, tuple(read("dev", subject)[:5]))]


def whole_subjects(questions: Sequence[Question], count: int) -> list[Question]:
    """All questions of some subjects, drawn by a fixed seed: what sharing saves is how many share their examples."""
    drawn = set(random.Random(0).sample(sorted({one.subject for one in questions}), count))
    return [one for one in questions if one.subject in drawn]


# The peer


def peer_python() -> Path:
    """The interpreter of lm-eval's environment, made the first time (about 700 MB)."""
    folder = cache_folder("benchmarks") / PEER.replace("[hf]", "").replace("==", "-")
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), PEER]
        subprocess.run(command, check=True, stdout=sys.stderr)
        ready.touch()
    return python


class Peer:
    """lm-eval in its own process, the model loaded; one question set at a time."""

    def __init__(self, model: TransformersModel, threads: int) -> None:
        assert model.checkpoint is not None, "a loaded model has a checkpoint"
        hidden = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            # -P: beside the script lies a statistics.py that would hide the standard library's.
            [str(peer_python()), "-P", str(Path(__file__).with_name("scoring_peer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(Path(self.folder.name) / "log").open("w"),
            text=True,
            env={**os.environ, **hidden, "HF_HOME": self.folder.name, "OMP_NUM_THREADS": str(threads)},
        )
        self._ask(
            {
                "model": str(model.checkpoint.folder),
                "dtype": model.info.dtype,
                "device": str(model.device),
                "threads": threads,
            }
        )

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            log = (Path(self.folder.name) / "log").read_text(encoding="utf-8")
            raise RuntimeError(f"lm-eval ended without an answer:\n{log[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def score(self, questions: Sequence[Question], batch: int) -> tuple[float, dict[str, list[float]]]:
        """Seconds, and the letters' log-probabilities by question."""
        with tempfile.TemporaryDirectory(dir=self.folder.name) as folder:
            names = write_tasks(Path(folder), questions)
            answer = self._ask({"tasks": folder, "names": names, "batch": batch})
        return answer["seconds"], answer["logprobs"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def write_tasks(folder: Path, questions: Sequence[Question]) -> list[str]:
    """One lm-eval task a subject, as its own MMLU has them, reading local files; their names."""
    names = []
    for subject in dict.fromkeys(question.subject for question in questions):
        name = f"local_{subject}"
        files = {}
        own = [question for question in questions if question.subject == subject]
        for part, rows in (("test", own), ("dev", own[0].examples)):
            path = folder / f"{name}-{part}.jsonl"
            lines = [{"id": one.id, "question": one.text, "choices": one.choices, "answer": one.answer} for one in rows]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            files[part] = str(path)
        options = "\n".join(f"{letter}. {{{{choices[{n}]}}}}" for n, letter in enumerate(LETTERS))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "description": description(subject),
            "doc_to_text": f"{{{{question.strip()}}}}\n{options}\nAnswer:",
            "doc_to_choice": list(LETTERS),
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
        names.append(name)
    return names


def hf_generate(model: TransformersModel, requests: Sequence[GenerateRequest], batch: int) -> list[str]:
    """Transformers' own greedy decoding: of similar length together, left-padded, with its stop strings."""
    tokenizer, network = model.tokenizer, model.network
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    encoded = [model.encode(request.prompt) for request in requests]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    texts = [""] * len(requests)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = tokenizer.pad({"input_ids": [encoded[index] for index in chosen]}, return_tensors="pt")
        with torch.inference_mode():
            output = network.generate(
                **inputs.to(model.device),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                stop_strings=list(requests[chosen[0]].stops) or None,
                tokenizer=tokenizer,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        for index, text in zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            ends = [place for stop in requests[index].stops if (place := text.find(stop)) >= 0]
            texts[index] = text[: min(ends, default=None)]
    return texts


# What must be computed


@dataclass(frozen=True)
class Machine:
    """Measured: products and copies of the sizes that the model makes."""

    flops: float  # a second
    bytes: float  # a second


def measure_machine(model: TransformersModel) -> Machine:
    """Best of several matrix products (1,024 tokens × the widest linear layer), and of copies of 256 MB."""
    config = model.network.config.get_text_config(decoder=True)
    left = torch.randn(1024, config.hidden_size, dtype=model.network.dtype, device=model.device)
    right = torch.randn(config.intermediate_size, config.hidden_size, dtype=model.network.dtype, device=model.device)
    product = best_of(20, lambda: torch.nn.functional.linear(left, right))
    source = torch.empty(2**26, dtype=torch.float32, device=model.device).fill_(1.0)
    target = torch.empty_like(source)
    copy = best_of(5, lambda: target.copy_(source))
    return Machine(flops=2 * left.numel() * right.shape[0] / product, bytes=source.nbytes / copy)


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def distinct_tokens(texts: Sequence[Sequence[int]]) -> int:
    """Tokens that must run when everything that texts begin with alike runs once: the nodes of their trie."""
    total, previous = 0, list[int]()
    for text in sorted(map(list, texts)):
        shared = 0
        while shared < min(len(previous), len(text)) and previous[shared] == text[shared]:
            shared += 1
        total, previous = total + len(text) - shared, text
    return total


def repetition(texts: Sequence[Sequence[int]]) -> float:
    """How many tokens there are for one that must run."""
    return sum(map(len, texts)) / distinct_tokens(texts)


def floor(model: TransformersModel, machine: Machine, tokens: int, positions: int, reads: int) -> str:
    """The least time for `tokens` through the blocks, `positions` through the head and `reads` of all weights."""
    head = model.network.get_output_embeddings().weight.numel()
    embedding = model.network.get_input_embeddings().weight
    tied = model.network.get_output_embeddings().weight is embedding
    blocks = model.info.parameters - embedding.numel() - (0 if tied else head)
    arithmetic = 2 * (tokens * blocks + positions * head) / machine.flops
    moved = reads * (blocks + head) * model.network.dtype.itemsize / machine.bytes
    return (
        f"{tokens:,} tokens × {2 * blocks / 1e6:.0f} MFLOP + {positions:,} positions × {2 * head / 1e6:.0f} MFLOP at "
        f"{machine.flops / 1e9:.0f} GFLOP/s = {arithmetic:.2f} s; weights read {reads:,} times at "
        f"{machine.bytes / 1e9:.1f} GB/s = {moved:.2f} s"
    )


# The measurements


def turns(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each side, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side())
            sys.stderr.write(f"round {number + 1} of {rounds}: {name}, {seconds[name][-1]:.2f} s\n")
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Seconds of one run."""
    return best_of(1, work)


def fastest(batches: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The batch size that takes least time."""
    return min(batches, key=seconds)


def scoring_report(
    model: TransformersModel, questions: Sequence[Question], every: Sequence[Question], machine: Machine, args: Any
) -> str:
    """Questions a second beside lm-eval, and how far the log-probabilities are apart; `every`: whence they come."""
    requests = [request for question in questions for request in question.requests()]
    warm = questions[: min(16, len(questions))]
    peer = Peer(model, args.threads)
    try:
        peer.score(warm[:2], 1)
        batch = fastest(SCORING_BATCHES, lambda size: peer.score(warm, size)[0])
        model.logprobs(requests[:8])
        ours: list[Any] = []
        theirs: list[dict[str, list[float]]] = []

        def run_ours() -> float:
            return timed(lambda: ours.append(model.logprobs(requests)))

        def run_theirs() -> float:
            seconds, logprobs = peer.score(questions, batch)
            theirs.append(logprobs)
            return seconds

        seconds = turns(args.rounds, {"llmkick": run_ours, f"lm-eval, batch {batch}": run_theirs})
    finally:
        peer.close()
    expected = [value for question in questions for value in theirs[-1][question.id]]
    prompts = [model.encode(question.prompt()) for question in questions]
    rows = [
        [name, f"{min(some):.2f}", f"{len(questions) / min(some):.2f}", ratio(seconds, name), spread(some)]
        for name, some in seconds.items()
    ]
    least = floor(model, machine, distinct_tokens(prompts), len(questions), 1)
    tokens = sum(map(len, prompts)) / len(prompts)
    subjects = len({question.subject for question in questions})
    all_prompts = [model.encode(question.prompt()) for question in every]
    return "\n\n".join(
        [
            f"## Scoring: {len(questions)} questions in {subjects} subjects, 5 examples each, {tokens:.0f} tokens a "
            f"prompt, {model.info.dtype}",
            f"Of the prompts' tokens one in {repetition(prompts):.2f} is distinct, of those of all {len(every):,} "
            f"questions one in {repetition(all_prompts):.2f}.",
            table(["", "seconds", "questions/s", "llmkick is faster by", "all rounds"], rows),
            f"Log-probabilities of the {len(expected)} letters: {apart(ours[-1], expected, len(LETTERS))}.",
            f"Floor: {least}. llmkick takes {min(seconds['llmkick']):.2f} s.",
        ]
    )


def apart(found: Sequence[Any], expected: Sequence[float], options: int) -> str:
    """Largest difference of two sets of log-probabilities, and how many choices differ."""
    other = [ContinuationScore(logprob=value, tokens=1, is_greedy=False) for value in expected]
    questions = [range(start, start + options) for start in range(0, len(expected), options)]
    difference = compare_runs(questions, found, other)
    return (
        f"largest difference {difference.largest_shift:.2g} nats, mean {difference.mean_shift:.2g}; "
        f"{difference.flipped} of {difference.questions} choices differ"
    )


def exactness_report(model: TransformersModel, questions: Sequence[Question], args: Any) -> str:
    """The same questions by both in float32, where nothing hides a difference."""
    exact = load_model(args.model, dtype="float32", device=str(model.device))
    peer = Peer(exact, args.threads)
    try:
        _, theirs = peer.score(questions, 1)
    finally:
        peer.close()
    found = exact.logprobs([request for question in questions for request in question.requests()])
    expected = [value for question in questions for value in theirs[question.id]]
    return (
        f"## Exactness: {len(questions)} questions in float32, beside lm-eval\n\n"
        f"Log-probabilities of the {len(expected)} letters: {apart(found, expected, len(LETTERS))}."
    )


def generation_report(model: TransformersModel, variant: str, machine: Machine, args: Any) -> str:
    """Answers a second beside transformers' own decoding."""
    task = get_task(f"context_qa:{variant}", limit=args.answers)
    some = [task.requests(item, "chat" if model.has_chat_template else "raw")[0] for item in task.items()]
    requests = [GenerateRequest(one.prompt, one.stops, NEW_TOKENS) for one in some if isinstance(one, GenerateRequest)]
    warm = requests[: min(32, len(requests))]
    batch = fastest(GENERATION_BATCHES, lambda size: timed(lambda: hf_generate(model, warm, size)))
    model.generate(requests[:2])
    answers: dict[str, list[str]] = {}

    def ours() -> None:
        answers["llmkick"] = [one.text for one in model.generate(requests) if isinstance(one, Generation)]

    def theirs(size: int) -> None:
        answers["peer"] = hf_generate(model, requests, size)

    names = {"llmkick": ours, "generate, one at a time": lambda: theirs(1)}
    sides = {**names, f"generate, batch {batch}": lambda: theirs(batch)}
    seconds = turns(args.rounds, {name: lambda side=side: timed(side) for name, side in sides.items()})  # type: ignore[misc]
    rows = [
        [name, f"{min(values):.2f}", f"{len(requests) / min(values):.2f}", ratio(seconds, name), spread(values)]
        for name, values in seconds.items()
    ]
    same = sum(one.strip() == other.strip() for one, other in zip(answers["llmkick"], answers["peer"], strict=True))
    lengths = [one.tokens for one in model.generate(requests) if isinstance(one, Generation)]
    tokens = distinct_tokens([model.encode(request.prompt) for request in requests]) + sum(lengths)
    least = floor(model, machine, tokens, sum(lengths), max(lengths))
    return "\n\n".join(
        [
            f"## Generation, {variant} book: {len(requests)} questions, up to {NEW_TOKENS} new tokens "
            f"({sum(lengths) / len(lengths):.1f} on average), {model.info.dtype}",
            table(["", "seconds", "answers/s", "llmkick is faster by", "all rounds"], rows),
            f"{same} of {len(requests)} answers are the same as the batched peer's.",
            f"Floor: {least}. llmkick takes {min(seconds['llmkick']):.2f} s.",
        ]
    )


def agreement_report(model: TransformersModel, questions: Sequence[Question], batches: Sequence[int]) -> str:
    """How often the engine's choice differs from the naive forward's, and that from itself in other batches."""
    rows = [
        [name, one.flipped, f"{100 * one.share:.1f} %", f"{one.mean_shift:.3f}", f"{one.largest_shift:.3f}"]
        for name, one in agreement(model, questions, batches).items()
    ]
    header = [f"{len(questions)} questions, {model.info.dtype}", "choices that differ", "", "mean nats", "largest"]
    return f"## Agreement\n\n{table(header, rows)}"


def agreement(model: TransformersModel, questions: Sequence[Question], batches: Sequence[int]) -> dict[str, NoiseFloor]:
    """The engine, and the naive forward in batches, against the naive forward of one question at a time."""
    requests = [request for question in questions for request in question.requests()]
    places = [range(start, start + 4) for start in range(0, len(requests), 4)]
    alone = naive_logprobs(model, questions, 1)
    found = {"engine": compare_runs(places, model.logprobs(requests), alone)}
    for batch in batches:
        found[f"naive forward in batches of {batch}"] = compare_runs(
            places, naive_logprobs(model, questions, batch), alone
        )
    return found


def naive_logprobs(model: TransformersModel, questions: Sequence[Question], batch: int) -> list[ContinuationScore]:
    """Each prompt whole in one plain forward, right-padded in batches of neighbours: no cache, nothing shared."""
    letters = [model.encode("Answer:", f" {letter}")[-1] for letter in LETTERS]
    found = []
    for start in range(0, len(questions), batch):
        prompts = [model.encode(question.prompt()) for question in questions[start : start + batch]]
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=model.device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in prompts], device=model.device)
        with torch.inference_mode():
            logits = model.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, prompt in enumerate(prompts):
            values = torch.log_softmax(logits[row, len(prompt) - 1].float(), dim=-1)[letters].tolist()
            found += [ContinuationScore(logprob=value, tokens=1, is_greedy=False) for value in values]
    return found


# The report


def ratio(seconds: dict[str, list[float]], name: str) -> str:
    """How many times as long as ours, by the best round of each."""
    return "" if name == "llmkick" else f"**{min(seconds[name]) / min(seconds['llmkick']):.1f} ×**"


def spread(seconds: Sequence[float]) -> str:
    return ", ".join(f"{one:.2f}" for one in seconds)


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that ran, marked when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--questions", type=int, default=200, help="multiple-choice questions to score")
    parser.add_argument("--subjects", type=int, default=0, help="score all questions of so many drawn subjects instead")
    parser.add_argument("--answers", type=int, default=100, help="questions of each kind to answer by generation")
    parser.add_argument("--exact", type=int, default=16, help="questions to compare in float32")
    parser.add_argument("--agreement", type=int, default=0, help="questions to compare with the naive forward")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="of the naive forward")
    parser.add_argument("--shots", type=int, default=5, help="worked examples of the questions compared with it")
    parser.add_argument("--mmlu", type=Path, help="folder with MMLU's dev and test (or val) CSV files")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/scoring.md")
    return parser.parse_args()


def main() -> None:
    """Measure, print the report, write it with --write."""
    args = parse()
    started = time.perf_counter()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    model = load_model(args.model, dtype=args.dtype, device=args.device)
    every = mmlu_questions(args.mmlu) if args.mmlu else pocket_questions()
    machine = measure_machine(model)
    both = [*every, *pocket_questions()] if args.mmlu else every
    wanted: list[Callable[[], str]] = []
    if args.questions or args.subjects:
        asked = whole_subjects(every, args.subjects) if args.subjects else every[: args.questions]
        wanted.append(lambda: scoring_report(model, asked, every, machine, args))
    if args.exact:
        wanted.append(lambda: exactness_report(model, every[: args.exact], args))
    if args.answers:
        wanted += [lambda one=one: generation_report(model, one, machine, args) for one in ("closed", "open")]  # type: ignore[misc]
    if args.agreement:
        fewer = [replace(one, examples=one.examples[: args.shots]) for one in both]
        fitting = [one for one in fewer if len(model.encode(one.prompt())) < model.max_tokens]
        spaced = fitting[:: max(1, len(fitting) // args.agreement)][: args.agreement]
        wanted.append(lambda: agreement_report(model, spaced, args.batches))
    parts = []
    for measure in wanted:
        parts.append(measure())
        sys.stderr.write(parts[-1] + "\n\n")  # what is measured is told, whatever becomes of the rest
    head = (
        f"# Scoring and generation beside lm-eval and transformers\n\n"
        f"`python benchmarks/scoring.py {' '.join(a for a in sys.argv[1:] if a != '--write')}` · commit {commit()} · "
        f"{time.perf_counter() - started:.0f} s\n\n"
        f"{model.info.name} in {model.info.dtype} on {model.device} · questions: "
        f"{'MMLU' if args.mmlu else 'pocket suite'} · {processor()}, {args.threads} of {os.cpu_count()} cores · "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{PEER}\n\n"
        f"Loading is not counted, tokenising is. Times are the best of {args.rounds} rounds in which the sides take "
        f"turns. The least time is what the arithmetic and the memory traffic alone would take at the measured speeds."
    )
    report = "\n\n".join([head, *parts, *(f"Note: {note}" for note in model.notes)]) + "\n"
    sys.stdout.write(report)
    if args.write:
        target = Path(__file__).parent / "results" / "scoring.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
