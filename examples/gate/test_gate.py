"""A gate as a test: `pytest examples/gate`, with the candidate in the environment variable CANDIDATE.

The fixture `llmkick_gate` comes with llmkick.
"""

import os
from pathlib import Path

POLICY = Path(__file__).with_name("gate.toml")


def test_the_build_is_shown_to_match(llmkick_gate):
    result = llmkick_gate(POLICY, model=os.environ.get("CANDIDATE"))
    assert result.matches
