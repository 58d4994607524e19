"""Recoveries: the typed, frozen form of the last part of a recipe such as `wanda@2:4+lora`, and how it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, get_args

from llmkick.errors import ConfigError

# What a training minimises: the divergence from the dense model's next-token distributions, or the loss on the tokens.
Objective = Literal["distillation", "next-token"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of a training. It ends after `steps`, or earlier at a limit of tokens or minutes, if there is one.

    Every step reads `batch` calibration windows.
    """

    steps: int = 60
    learning_rate: float = 1e-3
    objective: Objective = "distillation"
    batch: int = 2
    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, object, bool, str], ...] = (
            ("steps", self.steps, _is_whole(self.steps, 0), "a whole number ≥ 0; 0 changes nothing"),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate <= 1, "between 0 and 1; usual is 0.001"),
            ("batch", self.batch, _is_whole(self.batch, 1), "a whole number of windows ≥ 1"),
            ("tokens", self.tokens, self.tokens is None or _is_whole(self.tokens, 1), "a whole number ≥ 1"),
            ("minutes", self.minutes, self.minutes is None or 0 < self.minutes < 1e6, "more than 0"),
        )
        for name, value, is_allowed, allowed in checks:
            if not is_allowed:
                raise ConfigError(f"{name} {value} of a training must be {allowed}")
        if self.objective not in get_args(Objective):
            raise ConfigError(f"unknown objective {self.objective!r}; choose from: {', '.join(get_args(Objective))}")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What is done to compressed weights to bring lost knowledge back: the base class.

    by_layer: the recovery is computed for one layer from the second moments of its inputs, in the same walk as the
    compression; otherwise the whole network is trained.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    by_layer: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class LowRank(Recovery):
    """A recovery by two thin matrices. `rank` is written unless it is the usual one."""

    rank: int

    def __post_init__(self) -> None:
        if not _is_whole(self.rank, 1):
            raise ConfigError(f"rank {self.rank} of {self.name} is not a whole number ≥ 1 (as in {self.name}-r16)")

    def __str__(self) -> str:
        usual = type(self).__dataclass_fields__["rank"].default
        return self.name if self.rank == usual else f"{self.name}-r{self.rank}"


@dataclass(frozen=True, kw_only=True)
class EoRA(LowRank):
    """A low-rank compensation in the eigenspace of the layer's inputs, without training (arXiv 2410.21271)."""

    name = "eora"
    summary = (
        "add the low-rank matrix that best restores the layer's output, kept beside the weights (arXiv 2410.21271)"
    )

    rank: int = 128


@dataclass(frozen=True, kw_only=True)
class LoRA(LowRank):
    """Low-rank matrices trained on top of frozen compressed weights (arXiv 2106.09685, masked as in 2312.15230)."""

    name = "lora"
    summary = "train low-rank matrices towards the dense model; zeros stay zeros (arXiv 2106.09685, 2312.15230)"
    by_layer = False

    rank: int = 8
    training: Training = field(default_factory=Training)


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Recovery):
    """Least squares on the kept weights, or on the scales of the grid, against the outputs of the dense layer."""

    name = "reconstruct"
    summary = "refit the kept weights, or the scales of rounded ones, to the outputs of the dense layer"


RECOVERIES: Mapping[str, type[Recovery]] = {kind.name: kind for kind in (EoRA, LoRA, Reconstruct)}
RECOVERY_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "eora": ("gptq@3b-g128+eora-r64", "wanda@2:4+gptq@4b+eora-r32"),
    "lora": ("wanda@2:4+lora", "gptq@3b-g128+lora-r16"),
    "reconstruct": ("wanda@0.5+reconstruct", "rtn@4b-g128+reconstruct"),
}


class RecoveredText(NamedTuple):
    """The two parts of the text of a recovered recipe: `wanda@2:4+lora-r16` → `wanda@2:4`, `lora-r16`."""

    base: str
    recovery: str


def recovery_of(text: str) -> RecoveredText | None:
    """The recipe that a label's recipe recovers, and the recovery; None for any other label.

    No method need be installed. A level of an axis keeps it: `wanda@0.5+lora [sequences=8]` recovers
    `wanda@0.5 [sequences=8]`.
    """
    match = re.fullmatch(rf"([^ ]+@[^ ]+)\+((?:{'|'.join(RECOVERIES)})(?:-r[0-9]+)?)( \[[^\[\]]+\])?", text)
    return None if match is None else RecoveredText(match[1] + (match[3] or ""), match[2])


def split_recovery(text: str) -> tuple[str, Recovery | None]:
    """The recipe before a recovery, and the recovery: `wanda@2:4+lora` → `wanda@2:4`, LoRA; None where there is none.

    Raises ConfigError for a recovery that is not the last step, or has options that it does not take.
    """
    parts = text.split("+")
    places = [place for place, part in enumerate(parts) if re.split("[-@]", part.strip())[0] in RECOVERIES]
    if not places:
        return text, None
    if places[0] == 0:
        raise ConfigError(f"{parts[0]} recovers a compressed model: write a compression first, as wanda@2:4+{parts[0]}")
    if len(places) > 1:
        raise ConfigError(f"{' and '.join(parts[place] for place in places)} are two recoveries; a recipe has one")
    if places[0] != len(parts) - 1:
        rest = "+".join(parts[: places[0]] + parts[places[0] + 1 :])
        raise ConfigError(f"a recovery is the last step of a recipe; write {rest}+{parts[places[0]]}")
    return "+".join(parts[:-1]), parse_recovery(parts[-1].strip())


def parse_recovery(text: str) -> Recovery:
    """Parse `eora-r64`, `lora` or `reconstruct`. Raises ConfigError for another name, or an option that it lacks."""
    name, *options = text.split("-")
    if "@" in name:
        raise ConfigError(f"{text} has a level, but a recovery takes none; write its rank as in lora-r16")
    if name not in RECOVERIES:
        raise ConfigError(f"unknown recovery {name!r}; choose from: {', '.join(RECOVERIES)}")
    kind = RECOVERIES[name]
    if not options:
        return kind()
    if not issubclass(kind, LowRank):
        raise ConfigError(f"unknown option {options[0]!r} of {name}, which takes none")
    if len(options) > 1:
        raise ConfigError(f"{name} takes one option, its rank, not {' and '.join(options)}")
    if not re.fullmatch(r"r[0-9]{1,9}", options[0]):
        raise ConfigError(f"unknown option {options[0]!r} of {name}; write its rank as in {name}-r16")
    return kind(rank=int(options[0][1:]))


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
