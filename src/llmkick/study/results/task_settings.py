"""Settings that two tasks of the same name must share, so that their scores can be paired or read side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from llmkick.study.results.records import TaskSummary

# The properties that two tasks of the same name must share, with the words that describe a difference.
TASK_KEYS: Mapping[str, str] = {
    "version": "versions of the task",
    "protocol": "protocols",
    "source": "sources",
    "data": "questions",
    "limit": "samples (limit)",
    "seed": "samples (seed)",
    "split": "splits",
    "shots": "numbers of worked examples",
    "window": "windows",
    "evidence_tokens": "lengths of evidence",
    "words": "lengths of summaries",
    "bucket_words": "lengths of stories",
    "per_bucket": "numbers of stories of each length",
    "max_new_tokens": "lengths of answers",
    "answer_line": "places of the answer in the prompt",
    "unit": "units",
    "prompting": "prompts",
    "metric": "metrics",
    "chance_level": "levels of chance",
    "judge": "judges",
    "judge_protocol": "protocols of the judge",
    "judge_reference": "references of the judge",
    "judge_prompt": "versions of the judge's prompt",
    "judge_reading": "versions of the reader of its replies",
}
# What a result had before it named the setting.
EARLIER: Mapping[str, JsonValue] = {"thinking": "off"}


def differing_settings(first: TaskSummary, second: TaskSummary) -> list[str]:
    """The settings in which two tasks differ: "protocols (strict, paper)"; empty if both were asked alike."""
    settings, others = first.facts, second.facts
    return [
        f"{words} ({short_value(settings.get(key))}, {short_value(others.get(key))})"
        for key, words in TASK_KEYS.items()
        if settings.get(key, EARLIER.get(key)) != others.get(key, EARLIER.get(key))
    ]


def short_value(value: JsonValue | Sequence[JsonValue]) -> str:
    """A setting as text; of a hash, the first digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {short_value(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(short_value, value)) + "]"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
