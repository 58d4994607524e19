"""Protocol `paper`: its prompts, and each of its quirks by what it does to a score. Beside it the original's mistakes
that are not repeated.
"""

from __future__ import annotations

import pytest

from llmkick.errors import ConfigError
from llmkick.models.language_model import GenerateRequest, Generation, Unanswered
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.prompting import resolve_prompting
from llmkick.tasks.registry import get_task
from llmkick.tasks.suite.context_qa import ContextQA
from llmkick.tasks.suite.factoid_qa import FactoidQA
from llmkick.tasks.suite.multiple_choice import MultipleChoice
from llmkick.tasks.task import Item
from scripted import ScriptedModel, says

NAMES = ["factoid_qa", "multiple_choice", "context_qa:closed", "context_qa:open"]
ART = Item(
    id="x", cluster="c", question="What is painting?", references=("art", "St. Louis"), context="Painting is art."
)
CHOICE = Item(id="x", cluster="anatomy", question="Q?", references=("b",), choices=("a", "b", "c", "d"), answer=1)


def both(task: type[FactoidQA | ContextQA], answer: str, item: Item = ART) -> tuple[float | None, float | None]:
    """Scores of one answer: (strict, paper)."""
    strict, paper = (task(protocol=protocol).score(item, [says(answer)]).score for protocol in ("strict", "paper"))
    return strict, paper


def test_prompts_are_the_papers():
    (factoid,) = FactoidQA(protocol="paper").requests(ART, "raw")
    assert factoid == GenerateRequest(
        "Please give answer to this question: What is painting? The answer is", max_new_tokens=32
    )
    (closed,) = ContextQA(protocol="paper").requests(ART, "raw")
    assert closed.prompt == "Answer these questions:\n\nQ: What is painting?\nA:"
    (opened,) = ContextQA(protocol="paper", variant="open").requests(ART, "raw")
    assert opened.prompt == "Painting is art.\nAnswer these questions:\nQ: What is painting?\nA:"
    assert closed.stops == opened.stops == ("\n",)
    task = MultipleChoice(protocol="paper", shots=0)
    item = task.items()[0]
    (choice,) = task.requests(item, "raw")
    subject = item.cluster.replace("_", " ")
    assert choice == GenerateRequest(
        f"The following are multiple choice questions (with answers) about {subject}.\n\n{item.question}\n"
        + "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", item.choices, strict=True))
        + "Answer:",
        max_new_tokens=1,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_model_is_asked_in_raw_text(name: str):
    model = ScriptedModel(chat=True)
    evaluate(model, get_task(name, protocol="paper", limit=3))
    assert all(isinstance(request.prompt, str) for call in model.calls for request in call)
    assert resolve_prompting(model, "auto", required="raw") == "raw"
    with pytest.raises(ConfigError, match="prompting 'chat' contradicts protocol \"paper\""):
        evaluate(model, get_task(name, protocol="paper", limit=3), prompting="chat")


@pytest.mark.parametrize("name", NAMES)
def test_the_protocols_have_different_keys(name: str):
    assert get_task(name).key != get_task(name, protocol="paper").key


def test_cloze_is_not_in_the_paper():
    with pytest.raises(ConfigError, match="protocol paper has no multiple_choice:cloze"):
        get_task("multiple_choice:cloze", protocol="paper")


# The quirks, each by the two scores (strict, paper)


def test_an_alias_inside_a_word_counts():
    assert both(FactoidQA, "a party") == both(ContextQA, "a party") == (0, 1)


def test_an_alias_across_words_counts():
    assert both(FactoidQA, "the car trips") == both(ContextQA, "the car trips") == (0, 1)


def test_the_place_of_the_answer_in_the_prompt_of_factoid_qa():
    """The paper asked quantized models with a line break before "The answer is", and the others with a space."""
    prompts = [
        FactoidQA(protocol="paper", answer_line=line).requests(ART, "raw")[0].prompt for line in (None, "same", "new")
    ]
    question = f"Please give answer to this question: {ART.question}"
    assert prompts == [f"{question} The answer is", f"{question} The answer is", f"{question}\nThe answer is"]
    keys = [FactoidQA(protocol="paper", answer_line=line).key for line in (None, "new")]
    assert keys[1] == {**keys[0], "answer_line": "new"}
    with pytest.raises(ConfigError, match="answer_line of factoid_qa 'next' is unknown; choose from: same, new"):
        FactoidQA(protocol="paper", answer_line="next")
    with pytest.raises(ConfigError, match="answer_line of factoid_qa is of the paper's prompt"):
        FactoidQA(answer_line="new")


def test_the_whole_output_counts_in_factoid_qa_and_the_first_line_in_context_qa():
    assert both(FactoidQA, "unknown.\nQ: next?\nA: art") == (0, 1)
    assert both(ContextQA, "unknown.\nQ: next?\nA: art") == (0, 0)


def test_part_of_an_alias_counts_in_context_qa():
    assert both(ContextQA, "a") == both(ContextQA, "t") == (0, 1)
    assert both(FactoidQA, "t") == (0, 0)


def test_punctuation_must_match():
    assert both(FactoidQA, "St Louis") == (1, 0)
    assert both(FactoidQA, "st.louis") == (1, 1)


def test_a_sentence_is_right_in_both():
    assert both(FactoidQA, "It is ART.") == both(ContextQA, "It is ART.") == (1, 1)
    record = ContextQA(protocol="paper").score(ART, [says("It is art.")])
    assert record.details == {"exact_match": 0.0, "f1": 0.5, "whole_words": 1.0}


@pytest.mark.parametrize(
    ("token", "score", "named"),
    [(" B", 1, True), ("B", 1, True), ("AB", 1, True), ("b", 0, False), (" The", 0, False), ("", 0, False),
     ("\n", 0, False), ("B.", 0, False), ("C", 0, True), ("BA", 0, True)],
)  # fmt: skip
def test_the_last_character_of_one_token_decides(token: str, score: float, named: bool):
    record = MultipleChoice(protocol="paper").score(CHOICE, [Generation(text=token, tokens=1, finish="length")])
    assert (record.score, record.details["names_an_option"], record.response) == (score, named, token)
    assert record.truncated is False  # one token is what was asked for


def test_a_format_failure_counts_as_lost_knowledge():
    # The model knows: B is the likeliest of the four letters. It only would rather say "The".
    task, paper = get_task("multiple_choice", limit=20), get_task("multiple_choice", protocol="paper", limit=20)
    gold = {item.question: " " + "ABCD"[item.answer or 0] for item in task.items()}
    model = ScriptedModel(
        generation=lambda _: " The",
        logprob=lambda r: -5.0 if gold[next(q for q in gold if q in str(r.prompt))] == r.continuation else -9.0,
    )
    assert [record.score for record in evaluate(model, task)] == [1.0] * 20
    assert [record.score for record in evaluate(model, paper)] == [0.0] * 20


# Mistakes of the original that are not repeated


@pytest.mark.parametrize("name", ["factoid_qa", "context_qa:closed", "context_qa:open", "multiple_choice"])
def test_an_empty_answer_is_wrong(name: str):
    records = evaluate(ScriptedModel(generation=lambda _: " "), get_task(name, protocol="paper", limit=20))
    assert [record.score for record in records] == [0.0] * 20


def test_gold_text_in_the_prompt_is_no_answer():
    item = Item(id="x", cluster="c", question="Which art is art?", references=("art",), context="Art.")
    for task in (FactoidQA, ContextQA):
        assert both(task, "no idea", item) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_answered_is_unscored_not_wrong_and_every_item_counts_once(name: str):
    task = get_task(name, protocol="paper", limit=10)
    records = evaluate(ScriptedModel(generation=lambda _: Unanswered(reason="too long")), task)
    assert [(record.score, record.unscored_reason) for record in records] == [(None, "too long")] * 10
    assert [record.item_id for record in records] == [item.id for item in get_task(name, limit=10).items()]
