"""Which cases of a test every run has, and which only `make test-all` has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def others_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The cases of a parametrized test, with the mark `slow` on each that is not one of the quick ones."""
    cases = list(cases)
    assert all(one in cases for one in quick), [one for one in quick if one not in cases]
    return [case if case in quick else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
