"""The pytest plug-in: the fixture `llmkick_gate` runs a gate and shows its summary if the test fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # torch takes seconds to import, and most test runs have no gate
    from llmkick.gate.result import GateResult

RunGate = Callable[..., "GateResult"]


@pytest.fixture
def llmkick_gate(request: pytest.FixtureRequest) -> RunGate:
    """Run a gate: `assert llmkick_gate("gate.toml", model="./build").matches`.

    The first argument is the path of a policy file or the values of a policy. Keywords replace its values. A gate that
    cannot run raises KickError.
    """

    def run(policy: Path | str | Mapping[str, object], **overrides: object) -> GateResult:
        from llmkick.gate.policy import load_policy, make_policy
        from llmkick.gate.run import run_gate

        if isinstance(policy, Mapping):
            loaded = make_policy({**policy, **overrides})
        else:
            loaded = load_policy(Path(policy), overrides)
        result = run_gate(loaded)
        request.node.add_report_section("call", "llmkick gate", str(result))
        return result

    return run
