"""Recovered recipes parse, print and refuse as the documentation says, and keep the level of their base."""

import pytest

from llmkick.compression.levels import level_of
from llmkick.compression.recipe import (
    GPTQ,
    Chain,
    Dense,
    Grid,
    Magnitude,
    Recipe,
    Recovered,
    SparseGPT,
    Unstructured,
    Wanda,
    steps_of,
    with_training,
)
from llmkick.compression.recoveries import (
    RECOVERIES,
    RECOVERY_EXAMPLES,
    EoRA,
    LoRA,
    Reconstruct,
    Training,
    recovery_of,
)
from llmkick.compression.registry import parse_recipe
from llmkick.errors import ConfigError
from llmkick.study.levels import level_of_text

HALF = Wanda(pattern=Unstructured(sparsity=0.5))
FOUR = GPTQ(grid=Grid(bits=4))
TYPED = {
    "wanda@0.5+lora": Recovered(base=HALF, recovery=LoRA()),
    "wanda@0.5+lora-r16": Recovered(base=HALF, recovery=LoRA(rank=16)),
    "gptq@4b+eora-r64": Recovered(base=FOUR, recovery=EoRA(rank=64)),
    "wanda@0.5+reconstruct": Recovered(base=HALF, recovery=Reconstruct()),
    "wanda@0.5+gptq@4b+eora-r32": Recovered(base=Chain(steps=(HALF, FOUR)), recovery=EoRA(rank=32)),
    "sparsegpt@0.5+4b+eora": Recovered(
        base=SparseGPT(pattern=Unstructured(sparsity=0.5), grid=Grid(bits=4)), recovery=EoRA()
    ),
}


@pytest.mark.parametrize(("text", "recipe"), TYPED.items())
def test_text_and_type_are_the_same_thing(text: str, recipe: Recovered) -> None:
    assert parse_recipe(text) == recipe
    assert str(recipe) == text == f"{recipe.base}+{recipe.recovery}"


@pytest.mark.parametrize("text", [text for texts in RECOVERY_EXAMPLES.values() for text in texts])
def test_examples_are_canonical(text: str) -> None:
    assert str(parse_recipe(text)) == text


def test_every_recovery_has_examples() -> None:
    assert set(RECOVERY_EXAMPLES) == set(RECOVERIES)
    assert all(f"+{name}" in text for name, texts in RECOVERY_EXAMPLES.items() for text in texts)


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [
        ("wanda@0.50+lora-r8", "wanda@0.5+lora"),
        ("wanda@0.5+lora-r016", "wanda@0.5+lora-r16"),
        ("gptq@4b+eora-r128", "gptq@4b+eora"),
        (" wanda@0.5+lora ", "wanda@0.5+lora"),
    ],
)
def test_other_spellings_become_the_canonical_one(spelled: str, canonical: str) -> None:
    assert str(parse_recipe(spelled)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora", r"recipe 'lora': lora recovers a compressed model: write a compression first, as wanda@2:4\+lora"),
        ("lora+wanda@0.5", "write a compression first"),
        ("dense+lora", "dense has lost nothing that lora could recover"),
        ("wanda@0.5+lora+gptq@4b", r"last step of a recipe; write wanda@0\.5\+gptq@4b\+lora"),
        ("wanda@0.5+lora+eora-r4", "lora and eora-r4 are two recoveries; a recipe has one"),
        ("wanda@0.5+lora+lora", "two recoveries"),
        ("wanda@0.5+reconstruct-r4", "unknown option 'r4' of reconstruct, which takes none"),
        ("wanda@0.5+lora-x", "unknown option 'x' of lora; write its rank as in lora-r16"),
        ("wanda@0.5+lora-r", "unknown option 'r' of lora"),
        ("wanda@0.5+lora-r-4", "one option, its rank, not r and 4"),
        ("wanda@0.5+lora-r4-r8", "one option, its rank, not r4 and r8"),
        ("wanda@0.5+lora-r0", "rank 0 of lora is not a whole number ≥ 1"),
        ("wanda@0.5+lora@16", "write its rank as in lora-r16"),
        ("gptq@4b+wanda@0.5+lora", "a chain is one pruning step, then one rounding step"),
        ("wand@0.5+lora", "unknown method 'wand'"),
        ("wanda+lora", "wanda needs a level"),
        ("wanda@0.5+lorax", "neither a share of zeros nor N:M"),
    ],
)
def test_a_wrong_text_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(text)


def test_wrong_values_are_refused_too() -> None:
    for build in (
        lambda: Recovered(base=Dense(), recovery=LoRA()),
        lambda: Recovered(base=Recovered(base=HALF, recovery=LoRA()), recovery=EoRA()),
        lambda: Chain(steps=(Recovered(base=HALF, recovery=LoRA()), FOUR)),
        lambda: LoRA(rank=0),
        lambda: EoRA(rank=2.5),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            build()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps -1 of a training"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"batch": 0}, "batch 0"),
        ({"tokens": 0}, "tokens 0"),
        ({"minutes": 0.0}, "minutes 0.0"),
        ({"objective": "mse"}, "unknown objective 'mse'; choose from: distillation, next-token"),
    ],
)
def test_settings_of_a_training_are_checked(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("wanda@2:4+lora", ("wanda+lora", True, False, False, 0.5, None, 4)),
        ("magnitude@0.5+reconstruct", ("magnitude+reconstruct", True, True, False, 0.5, None, 1)),
        ("rtn@3b-g128+lora-r16", ("rtn+lora-r16", True, False, True, None, 3, 1)),
        ("wanda@0.5+gptq@4b+eora-r32", ("wanda+gptq+eora-r32", True, True, True, 0.5, 4, 1)),
    ],
)
def test_facts_are_those_of_the_base(text: str, facts: tuple[object, ...]) -> None:
    names = ("method", "needs_calibration", "needs_hessian", "is_rounding", "sparsity", "bits", "multiple")
    recipe = parse_recipe(text)
    assert tuple(getattr(recipe, name) for name in names) == facts


def test_steps_are_those_of_the_base() -> None:
    assert steps_of(parse_recipe("wanda@0.5+gptq@4b+lora")) == (HALF, FOUR)
    assert steps_of(parse_recipe("wanda@0.5+lora")) == (HALF,)


def test_only_a_training_has_settings() -> None:
    training = Training(steps=3)
    recipe = with_training(parse_recipe("wanda@0.5+lora"), training)
    assert isinstance(recipe, Recovered)
    assert isinstance(recipe.recovery, LoRA)
    assert recipe.recovery.training == training
    for text in ("wanda@0.5", "wanda@0.5+eora"):
        assert with_training(parse_recipe(text), training) == parse_recipe(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("wanda@2:4+lora-r16", ("wanda@2:4", "lora-r16")),
        ("wanda@0.5+gptq@4b+eora-r32", ("wanda@0.5+gptq@4b", "eora-r32")),
        ("sparsegpt@0.5+4b+reconstruct", ("sparsegpt@0.5+4b", "reconstruct")),
        ("mine@3+lora", ("mine@3", "lora")),
        ("wanda@0.5+lora [sequences=8]", ("wanda@0.5 [sequences=8]", "lora")),
        ("wanda@0.5", None),
        ("wanda@0.5 [sequences=8]", None),
        ("sparsegpt@0.5+4b", None),
        ("dense", None),
        ("my-model+lora", None),
        ("a model+lora", None),
        ("wanda@0.5+lorax", None),
    ],
)
def test_the_base_of_a_label_is_read_from_its_text(text: str, parts: tuple[str, str] | None) -> None:
    assert recovery_of(text) == parts


@pytest.mark.parametrize("text", TYPED)
def test_the_level_is_that_of_the_base(text: str) -> None:
    level = level_of(parse_recipe(text))
    base_text, recovery = recovery_of(text) or ("", "")
    base: Recipe = parse_recipe(base_text)
    expected = level_of(base)
    assert level == level_of_text(text)
    assert (level.kind, level.label, level.severity, level.sparsity) == (
        expected.kind,
        expected.label,
        expected.severity,
        expected.sparsity,
    )
    assert (level.recipe, level.method, level.recovery) == (text, f"{base.method}+{recovery}", recovery)
    assert expected.recovery == ""


def test_a_level_of_an_axis_is_a_method_of_its_own() -> None:
    level = level_of_text("wanda@0.5+lora [sequences=8]")
    assert (level.method, level.label, level.recovery) == ("wanda+lora [sequences=8]", "0.5", "lora")
    assert level_of_text("mine@0.5+eora-r4").method == "mine+eora-r4"
    assert level_of(Magnitude(pattern=Unstructured(sparsity=0.5))).recovery == ""
