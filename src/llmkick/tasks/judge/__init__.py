"""The LLM judge: its prompts, its clients and the parsing of its replies."""

from llmkick.tasks.judge.verdicts import parse_scores

__all__ = ["parse_scores"]
