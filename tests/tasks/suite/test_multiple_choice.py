"""Multiple choice: how the options are put, and which one a model has chosen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llmkick.errors import ConfigError
from llmkick.models.language_model import Message, ScoreRequest, Unanswered
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.prompting import PHRASE_EXAMPLES
from llmkick.tasks.registry import get_task
from llmkick.tasks.suite.multiple_choice import LETTERS, MultipleChoice
from llmkick.tasks.task import Item
from scripted import ScriptedModel, scored

LETTER, CLOZE = "multiple_choice:letter", "multiple_choice:cloze"
COLOURS = Item(
    id="x",
    cluster="everyday_knowledge",
    question="Which colour is the sky?",
    references=("Blue",),
    choices=("Red", "Yellowish green", "Blue", "Grün"),
    answer=2,
)


def choose(variant: str, *logprobs: float, item: Item = COLOURS, moved: bool = False):
    answers = [scored(value, tokens=2, boundary_moved=moved) for value in logprobs]
    return MultipleChoice(variant=variant).score(item, answers)


# Which option was chosen


def test_the_likeliest_letter_is_the_choice():
    record = choose("letter", -3.0, -2.0, -0.5, -4.0)
    assert (record.score, record.response) == (1.0, "C. Blue")
    assert record.tokens == 8
    assert record.details == {"choice_logprobs": [-3.0, -2.0, -0.5, -4.0], "margin": 1.5}
    record = choose("letter", -3.0, -2.0, -2.5, -4.0)
    assert (record.score, record.response, record.details["margin"]) == (0.0, "B. Yellowish green", -0.5)


def test_a_tie_of_the_best_is_no_choice():
    record = choose("letter", -3.0, -0.5, -0.5, -4.0)
    assert (record.score, record.response) == (0.0, "(no single best option)")
    # A broken model that gives every option the same must score 0, not chance or one for each first option.
    assert [choose("letter", *[-1.0] * 4, item=replace(COLOURS, answer=answer)).score for answer in range(4)] == [0] * 4


def test_a_tie_below_the_best_does_not_matter():
    assert choose("letter", -3.0, -3.0, -0.5, -3.0).score == 1


def test_cloze_weighs_options_by_their_bytes():
    # By sum "Blue" wins; by byte "Yellowish green" does: −6/15 against −2/4.
    values = (-9.0, -6.0, -2.0, -9.0)
    assert choose("letter", *values).response == "C. Blue"
    record = choose("cloze", *values)
    assert (record.score, record.response) == (0.0, "B. Yellowish green")
    assert record.details["margin"] == pytest.approx(-2 / 4 + 6 / 15, abs=1e-6)
    assert record.details["choice_logprobs"] == list(values)


def test_cloze_counts_bytes_not_characters():
    # "Grün" has 5 bytes, "Blue" 4: at the same sum the longer is the likelier a byte.
    assert choose("cloze", -99.0, -99.0, -2.0, -2.0).response == "D. Grün"
    assert choose("cloze", -99.0, -99.0, -2.0, -2.5).response == "(no single best option)"


def test_one_failed_option_leaves_the_item_unscored():
    answers = [scored(-1.0), Unanswered(reason="NaN"), scored(-2.0), scored(-3.0)]
    record = MultipleChoice(variant="letter").score(COLOURS, answers)
    assert (record.score, record.unscored_reason, record.details) == (None, "NaN", {})


def test_merged_tokens_are_noted():
    assert choose("letter", -1.0, -2.0, -3.0, -4.0, moved=True).details["boundary_moved"] is True
    assert "boundary_moved" not in choose("letter", -1.0, -2.0, -3.0, -4.0).details


@pytest.mark.parametrize("name", [LETTER, CLOZE])
@pytest.mark.parametrize("chat", [False, True])
def test_a_model_that_knows_and_one_that_does_not(name: str, chat: bool):
    task = get_task(name, limit=30)
    items = {item.question: item for item in task.items()}

    def knows(request: ScoreRequest) -> float:
        asked = request.prompt[-1].content if chat else str(request.prompt)
        item = next(item for question, item in items.items() if question in asked.rpartition("\n\n")[2])
        gold = LETTERS[item.answer] if name == LETTER else item.references[0]
        # Of several options scored by the byte, the right one is still best when it is certain.
        return 0.0 if str(request.continuation).strip() == gold else -50.0

    assert [record.score for record in evaluate(ScriptedModel(logprob=knows, chat=chat), task)] == [1.0] * 30
    fool = ScriptedModel(logprob=lambda request: -50.0 - knows(request), chat=chat)
    assert [record.score for record in evaluate(fool, task)] == [0.0] * 30


# What is asked


def letter_prompt(shots: int, style: str = "raw"):
    task = MultipleChoice(variant="letter", shots=shots)
    item = task.items()[30]
    requests = task.requests(item, style)  # type: ignore[arg-type]
    assert len({request.prompt for request in requests}) == 1
    return item, requests


def options(item: Item) -> str:
    return "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", item.choices, strict=True)) + "\nAnswer:"


@pytest.mark.parametrize("shots", range(6))
def test_letter_prompts_in_raw_text_are_those_of_mmlu(shots: int):
    item, requests = letter_prompt(shots)
    prompt = requests[0].prompt
    subject = item.cluster.replace("_", " ")
    header = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    assert prompt.startswith(header)
    assert prompt.endswith("\n\n" + item.question + options(item))
    blocks = prompt.removeprefix(header).split("\n\n")
    assert len(blocks) == shots + 1
    assert all(re.fullmatch(r".+\nA\. .+\nB\. .+\nC\. .+\nD\. .+\nAnswer: [ABCD]", block) for block in blocks[:-1])
    assert [request.continuation for request in requests] == [" A", " B", " C", " D"]


@pytest.mark.parametrize("shots", [0, 2, 5])
def test_letter_prompts_of_a_conversation(shots: int):
    item, requests = letter_prompt(shots, "chat")
    messages = requests[0].prompt
    assert [message.role for message in messages] == ["user", "assistant"] * shots + ["user"]
    assert messages[-1].content.endswith(item.question + options(item))
    assert sum("The following are multiple choice questions" in message.content for message in messages) == 1
    assert messages[0].content.startswith("The following are multiple choice questions")
    assert all(message.content in LETTERS for message in messages[1::2])
    # The template ends at the start of a line: no space before the letter.
    assert [request.continuation for request in requests] == ["A", "B", "C", "D"]


def test_worked_examples_are_of_the_subject_right_and_never_the_question():
    task = MultipleChoice(variant="letter", shots=5)
    for item in task.items():
        prompt = str(task.requests(item, "raw")[0].prompt)
        assert prompt.count(item.question) == 1
        shown = task._examples[item.cluster]
        assert [example.cluster for example in shown] == [item.cluster] * 5
        for example in shown:
            assert f"{example.question}{options(example)} {LETTERS[example.answer]}\n\n" in prompt


def test_cloze_asks_the_bare_question():
    task = MultipleChoice(variant="cloze")
    item = task.items()[0]
    raw = task.requests(item, "raw")
    shown = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in PHRASE_EXAMPLES)
    assert raw[0].prompt == f"{shown}Question: {item.question}\nAnswer:"
    assert [request.continuation for request in raw] == [f" {choice}" for choice in item.choices]
    chat = task.requests(item, "chat")
    assert chat[0].prompt[-1] == Message("user", item.question)
    assert [request.continuation for request in chat] == list(item.choices)


@pytest.mark.parametrize("shots", [-1, 6, 100, 2.0, "3", True])
@pytest.mark.parametrize("name", [LETTER, CLOZE])
def test_shots_out_of_range_are_refused(name: str, shots: object):
    with pytest.raises(ConfigError) as refused:
        get_task(name, shots=shots)
    assert str(refused.value) == f"shots of {name} must be a whole number from 0 to 5; got {shots!r}"


def test_the_key_holds_the_shots():
    for name, usual in ((LETTER, 5), (CLOZE, 0)):
        assert get_task(name, shots=3).key["shots"] == 3
        assert get_task(name).key == get_task(name, shots=usual).key != get_task(name, shots=3).key


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_cloze_shows_worked_examples_of_the_subject(shots: int):
    """After the two examples of the form; the answers are the options' texts, as the question asks for."""
    task = MultipleChoice(variant="cloze", shots=shots)
    item = task.items()[30]
    solved = [(example.question, example.choices[example.answer]) for example in task._examples[item.cluster][:shots]]
    raw = task.requests(item, "raw")
    shown = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in [*PHRASE_EXAMPLES, *solved])
    assert {request.prompt for request in raw} == {f"{shown}Question: {item.question}\nAnswer:"}
    assert [request.continuation for request in raw] == [f" {choice}" for choice in item.choices]
    turns = [message.content for message in task.requests(item, "chat")[0].prompt]
    assert turns == [text for pair in [*PHRASE_EXAMPLES, *solved] for text in pair] + [item.question]


def test_worked_examples_are_not_asked():
    task = MultipleChoice()
    assert not {item.id for item in task.items()} & {item.id for item in task._read[1]}
    assert all("-test-" in item.id for item in task.items())
