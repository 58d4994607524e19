"""Recipes parse, print and refuse as the documentation says."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkick.compression.kernels.patterns import BITS
from llmkick.compression.recipe import (
    GPTQ,
    NM,
    RTN,
    Chain,
    Dense,
    Grid,
    Magnitude,
    Recipe,
    SparseGPT,
    Unstructured,
    Wanda,
)
from llmkick.compression.registry import METHODS, parse_recipe
from llmkick.errors import ConfigError

HALF = Unstructured(sparsity=0.5)
TYPED = {
    "dense": Dense(),
    "magnitude@0.5": Magnitude(pattern=HALF),
    "wanda@2:4": Wanda(pattern=NM(kept=2, group=4)),
    "sparsegpt@4:8": SparseGPT(pattern=NM(kept=4, group=8)),
    "sparsegpt@0.5+4b": SparseGPT(pattern=HALF, grid=Grid(bits=4)),
    "sparsegpt@2:4+4b-g128": SparseGPT(pattern=NM(kept=2, group=4), grid=Grid(bits=4, group_size=128)),
    "gptq@4b": GPTQ(grid=Grid(bits=4)),
    "gptq@3b-g128": GPTQ(grid=Grid(bits=3, group_size=128)),
    "gptq@4b-g128-act": GPTQ(grid=Grid(bits=4, group_size=128), act_order=True, static_groups=True),
    "gptq@4b-g128-static": GPTQ(grid=Grid(bits=4, group_size=128), static_groups=True),
    "gptq@4b-act": GPTQ(grid=Grid(bits=4), act_order=True),
    "gptq@4b-sym": GPTQ(grid=Grid(bits=4, symmetric=True)),
    "rtn@8b": RTN(grid=Grid(bits=8)),
    "rtn@4b-g128-sym": RTN(grid=Grid(bits=4, group_size=128, symmetric=True)),
    "wanda@0.5+gptq@4b": Chain(steps=(Wanda(pattern=HALF), GPTQ(grid=Grid(bits=4)))),
    "wanda@0.5+rtn@4b": Chain(steps=(Wanda(pattern=HALF), RTN(grid=Grid(bits=4)))),
}


@pytest.mark.parametrize(("text", "recipe"), TYPED.items())
def test_text_and_type_are_the_same_thing(text: str, recipe: Recipe) -> None:
    assert parse_recipe(text) == recipe
    assert str(recipe) == text


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [
        ("gptq@4b-g128-act-static", "gptq@4b-g128-act"),
        ("gptq@4b-act-g128", "gptq@4b-g128-act"),
        ("gptq@4b-sym-g064", "gptq@4b-g64-sym"),
        ("wanda@0.50", "wanda@0.5"),
        ("wanda@.5", "wanda@0.5"),
        (" rtn@4b ", "rtn@4b"),
        ("wanda@0.00001", "wanda@0.00001"),
    ],
)
def test_other_spellings_become_the_canonical_one(spelled: str, canonical: str) -> None:
    assert str(parse_recipe(spelled)) == canonical
    assert parse_recipe(spelled) == parse_recipe(canonical)


@pytest.mark.parametrize("text", [example for info in METHODS.values() for example in info.examples])
def test_examples_of_the_methods_are_canonical(text: str) -> None:
    assert str(parse_recipe(text)) == text


FACTS = ("method", "needs_calibration", "needs_hessian", "is_rounding", "sparsity", "bits", "multiple")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("dense", ("dense", False, False, False, None, None, 1)),
        ("magnitude@0.3", ("magnitude", False, False, False, 0.3, None, 1)),
        ("magnitude@1:4", ("magnitude", False, False, False, 0.75, None, 4)),
        ("wanda@0.5", ("wanda", True, False, False, 0.5, None, 1)),
        ("wanda@2:4", ("wanda", True, False, False, 0.5, None, 4)),
        ("sparsegpt@0.7", ("sparsegpt", True, True, False, 0.7, None, 1)),
        ("sparsegpt@3:6+2b-g4", ("sparsegpt", True, True, True, 0.5, 2, 6)),
        ("rtn@8b-g32", ("rtn", False, False, True, None, 8, 1)),
        ("gptq@3b", ("gptq", True, True, True, None, 3, 1)),
        ("magnitude@0.5+rtn@4b", ("magnitude+rtn", False, False, True, 0.5, 4, 1)),
        ("wanda@2:4+rtn@4b", ("wanda+rtn", True, False, True, 0.5, 4, 4)),
        ("magnitude@2:4+gptq@4b-g6", ("magnitude+gptq", True, True, True, 0.5, 4, 4)),
    ],
)
def test_facts(text: str, facts: tuple[object, ...]) -> None:
    assert tuple(getattr(parse_recipe(text), fact) for fact in FACTS) == facts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty", "wanda@2:4"]),
        ("  ", ["empty"]),
        ("prune@0.5", ["'prune'", "dense, magnitude, wanda, sparsegpt, rtn, gptq"]),
        ("Wanda@0.5", ["'Wanda'", "wanda"]),
        ("@0.5", ["unknown method ''"]),
        ("wanda", ["needs a level", "wanda@0.5"]),
        ("wanda@", ["needs a level", "wanda@0.5"]),
        ("gptq", ["needs a level", "gptq@4b"]),
        ("dense@0.5", ["dense takes no level", "'0.5'"]),
        ("wanda@0", ["0.0", "between 0 and 1"]),
        ("wanda@1", ["1.0", "between 0 and 1"]),
        ("magnitude@1.5", ["1.5", "between 0 and 1"]),
        ("wanda@-0.5", ["-0.5", "between 0 and 1"]),
        ("wanda@50%", ["'50%'", "wanda@0.5"]),
        ("wanda@nan", ["'nan'"]),
        ("wanda@1e-3", ["unknown option '3' of wanda"]),
        ("wanda@3:2", ["3:2", "1 ≤ N < M ≤ 64", "2:4"]),
        ("wanda@4:4", ["4:4", "N < M"]),
        ("wanda@0:4", ["0:4", "1 ≤ N"]),
        ("wanda@1:65", ["1:65", "M ≤ 64"]),
        ("wanda@1:" + "9" * 5000, ["neither"]),
        ("wanda@2:4-0.5", ["both a ratio and an N:M pattern", "'2:4-0.5'"]),
        ("wanda@0.5-2:4", ["both a ratio and an N:M pattern"]),
        ("wanda@2:4@0.5", ["both a ratio and an N:M pattern"]),
        ("sparsegpt@0.5+2:4", ["both a ratio and an N:M pattern"]),
        ("sparsegpt@2:4+0.5", ["both a ratio and an N:M pattern"]),
        ("wanda@0.5+4b", ["'0.5+4b'", "wanda@0.5+gptq@4b"]),
        ("wanda@0.5-sym", ["unknown option 'sym' of wanda"]),
        ("sparsegpt@0.5-g128", ["unknown option 'g128' of sparsegpt", "only a grid"]),
        ("gptq@4", ["'4'", "2b, 3b, 4b, 8b"]),
        ("gptq@5b", ["'5b'", "2b, 3b, 4b, 8b"]),
        ("gptq@16b", ["'16b'", "2b, 3b, 4b, 8b"]),
        ("gptq@2:4", ["'2:4'", "2b, 3b, 4b, 8b"]),
        ("gptq@4b-fast", ["'fast'", "gN, sym, act, static"]),
        ("rtn@4b-act", ["'act'", "gN, sym"]),
        ("gptq@4b-", ["unknown option ''"]),
        ("gptq@4b-act-act", ["'act'", "once"]),
        ("gptq@4b-g128-g64", ["'g64'", "'g128'", "once"]),
        ("gptq@4b-g1", ["group size 1 ", "≥ 2"]),
        ("gptq@4b-g0", ["group size 0 "]),
        ("gptq@4b-g", ["group size ''", "-g128"]),
        ("gptq@4b-g12.5", ["group size '12.5'"]),
        ("gptq@4b-static", ["static groups without groups", "gptq@4b-g128-static"]),
        ("gptq@4b+wanda@0.5", ["one pruning step, then one rounding step", "gptq@4b then wanda@0.5"]),
        ("wanda@0.3+magnitude@0.5", ["one pruning step"]),
        ("rtn@4b+gptq@4b", ["one pruning step"]),
        ("dense+gptq@4b", ["one pruning step"]),
        ("sparsegpt@0.5+4b+gptq@4b", ["one pruning step"]),
        ("wanda@0.5+gptq@4b+rtn@4b", ["one pruning step"]),
    ],
)
def test_bad_text_is_refused_by_name(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe(text)
    message = str(raised.value)
    assert message.startswith(f"recipe {text!r}: ")
    assert [part for part in parts if part not in message] == [], message


def test_types_refuse_what_the_text_cannot_say() -> None:
    with pytest.raises(ConfigError, match="nan"):
        Unstructured(sparsity=float("nan"))
    with pytest.raises(ConfigError, match=r"group size 12\.5"):
        Grid(bits=4, group_size=12.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="6 bits"):
        Grid(bits=6)
    with pytest.raises(ConfigError, match="not empty"):
        Chain(steps=())
    assert Grid(bits=16).bits == 16  # the control that no text asks for


def test_recipes_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_recipe("wanda@0.5").pattern = NM(kept=2, group=4)  # type: ignore[misc, union-attr]
    with pytest.raises(TypeError):
        NM(2, 4)  # type: ignore[call-arg]
    assert len({parse_recipe("gptq@4b-g128-act"), parse_recipe("gptq@4b-g128-act-static")}) == 1


shares = st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True).map(
    lambda share: Unstructured(sparsity=share)
)
groups = st.integers(2, 64).flatmap(
    lambda group: st.integers(1, group - 1).map(lambda kept: NM(kept=kept, group=group))
)
patterns = shares | groups
grids = st.builds(
    Grid,
    bits=st.sampled_from(BITS),
    group_size=st.none() | st.integers(2, 4096),
    symmetric=st.booleans(),
)
pruners = st.builds(Magnitude, pattern=patterns) | st.builds(Wanda, pattern=patterns)
gptqs = st.builds(
    lambda grid, act, static: GPTQ(grid=grid, act_order=act, static_groups=static and grid.group_size is not None),
    grids,
    st.booleans(),
    st.booleans(),
)
rounders = gptqs | st.builds(RTN, grid=grids)
sparse_only = pruners | st.builds(SparseGPT, pattern=patterns)
chains = st.builds(lambda first, second: Chain(steps=(first, second)), sparse_only, rounders)
joint = st.builds(SparseGPT, pattern=patterns, grid=grids)


@given(sparse_only | rounders | chains | joint)
def test_every_recipe_survives_the_detour_over_its_text(recipe: Recipe) -> None:
    assert parse_recipe(str(recipe)) == recipe
    assert str(parse_recipe(str(recipe))) == str(recipe)


@given(st.text(alphabet="wandgptqrs@+-.:0123459b ", max_size=24))
def test_any_text_parses_or_is_a_config_error(text: str) -> None:
    try:
        recipe = parse_recipe(text)
    except ConfigError:
        return
    assert parse_recipe(str(recipe)) == recipe
