"""Colours and shapes of methods: each has its own in all figures, also for colour-blind readers and on a dark page."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkick.report.page
from llmkick.report.figures.figures import figures, size_figure
from llmkick.report.figures.methods import GLYPHS, OTHER_COLOURS, OTHER_SHAPES, OTHER_STYLES, STYLES, Methods
from llmkick.report.page.first_screen import methods
from llmkick.report.several.page import LOOKS
from llmkick.study.results.results import StudyResult
from report.specs import layers, write_figures
from report.synthetic import SEVERITY, build_run

COLOURS = [colour for colour, _ in STYLES.values()] + list(OTHER_COLOURS)
# Machado et al. 2009 (doi:10.1109/TVCG.2009.113), severity 1: what readers without one kind of cone see, linear RGB.
SEEN_AS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour: str) -> np.ndarray:
    """A colour as linear RGB."""
    share = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB as CIE L*a*b*, in which distances are about as they are seen."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""
    high, low = sorted((float([0.2126, 0.7152, 0.0722] @ linear(c)) for c in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def drawn_looks(spec: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What the points of a figure look like: name → colour and shape."""
    looks = {}
    for layer, _ in layers(spec):
        if "shape" in (encoding := layer.get("encoding", {})):
            colour, shape = encoding["color"]["scale"], encoding["shape"]["scale"]
            assert colour["domain"] == shape["domain"]
            looks |= dict(zip(colour["domain"], zip(colour["range"], shape["range"], strict=True), strict=True))
    return looks


def test_no_two_methods_look_alike():
    several = Methods.named([*STYLES, *map(str, range(24))])
    looks = list(zip(several.colours, several.shapes, strict=True))
    assert len(set(looks)) == len(looks) == 29
    assert len({*STYLES.values(), *OTHER_STYLES}) == len(STYLES) + len(OTHER_COLOURS) * len(OTHER_SHAPES)
    assert set(several.shapes) == set(GLYPHS)
    # The first ones differ in both, and no method has the colour of a named one.
    first = OTHER_STYLES[: len(OTHER_COLOURS)]
    assert len(dict(first)) == len({shape for _, shape in first}) == len(first)
    assert not {colour for colour, _ in OTHER_STYLES} & {colour for colour, _ in STYLES.values()}
    assert not Methods.named(map(str, range(len(OTHER_COLOURS)))).share_colours
    assert several.share_colours
    assert len(set(LOOKS)) == len(LOOKS) >= 24  # of studies on one page


@pytest.mark.parametrize("seen", SEEN_AS)
def test_colours_differ_for_colour_blind_readers(seen: str):
    places = {colour: lab(np.array(SEEN_AS[seen]) @ linear(colour)) for colour in COLOURS}
    nearest = min(
        (float(np.linalg.norm(places[one] - places[other])), one, other)
        for one, other in itertools.combinations(COLOURS, 2)
    )
    assert nearest[0] > 9.5, nearest  # 2.3 is a difference that is just noticed


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_stand_out_from_the_light_and_the_dark_page(colour: str):
    css = (Path(llmkick.report.page.__file__).parent / "page.css").read_text(encoding="utf-8")
    papers = set(re.findall(r"--paper: (#[0-9a-f]{6})", css))
    assert len(papers) == 2
    # WCAG asks for 3 between a mark and its page; two of Okabe and Ito's bright colours have less on white.
    least = 2.2 if colour in ("#e69f00", "#56b4e9") else 3.0
    assert min(contrast(colour, paper) for paper in papers) >= least


def test_a_method_looks_the_same_in_every_figure_of_a_study(tmp_path: Path):
    """Also one that a figure shows alone, and on the page; without a level in common, each figure shows only some."""
    recipes = ["wanda@0.5+lora", "wanda@0.25", "rtn@3b-g64+lora", "rtn@8b", "rtn@8b+eora-r4", "mine"]
    with pytest.MonkeyPatch.context() as patch:
        for recipe in recipes:
            patch.setitem(SEVERITY, recipe, 0.2)
        result = build_run(tmp_path / "run", recipes=recipes, tasks=("factoid_qa", "perplexity"), items=40)
    looks = {mark.name: mark for mark in methods(result)}
    assert list(looks) == ["wanda", "rtn", "wanda+lora", "rtn+lora", "rtn+eora-r4", "mine"]
    seen = set()
    for figure in figures(result):
        for name, (colour, shape) in drawn_looks(figure.spec).items():
            assert (looks[name].colour, looks[name].glyph) == (colour, GLYPHS[shape]), (figure.name, name)
            seen.add(name)
    assert seen == set(looks)
    (bars, _), *_ = layers(size_figure(result).spec)
    scale = bars["encoding"]["color"]["scale"]
    assert (
        dict(zip(scale["domain"], scale["range"], strict=True)).items()
        <= {name: mark.colour for name, mark in looks.items()}.items()
    )


def test_bars_of_one_colour_are_told_apart_by_shapes(tmp_path: Path):
    names = [f"wanda@2:4+lora-r{rank}" for rank in range(1, len(OTHER_COLOURS) + 2)]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(SEVERITY, name, 0.2)
        runs = {
            count: build_run(tmp_path / str(count), recipes=names[:count], tasks=("factoid_qa",), items=20)
            for count in (len(OTHER_COLOURS), len(OTHER_COLOURS) + 1)
        }
    for count, result in runs.items():
        (figure,) = [figure for figure in figures(result) if figure.name == "n-m"]
        assert "bar" in json.dumps(figure.spec)
        looks = drawn_looks(figure.spec)
        assert len(set(looks.values())) == len(looks) == (0 if count == len(OTHER_COLOURS) else count)
        if looks:
            write_figures(result, [figure])


def test_the_dense_study_has_no_method(plain: StudyResult):
    without = plain.model_copy(update={"comparisons": (), "study": plain.study.model_copy(update={"recipes": []})})
    assert Methods.of_study(without).names == ()
