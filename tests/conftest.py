"""Fixtures that several folders share."""

from __future__ import annotations

import sys

import pytest

from commands import CONTROL, Kick, Outcome


@pytest.fixture
def kick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kick:
    """Run a command in this process, exactly as the installed script does; tables come in one piece."""
    from llmkick import cli

    monkeypatch.setattr(cli.out, "_width", 200)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["kick", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert not CONTROL.search(out + err), "control characters, and this is no terminal"
        assert "Traceback" not in out + err
        assert isinstance(stop.value.code, int)
        return Outcome(stop.value.code, out, err)

    return run
