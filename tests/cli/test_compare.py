"""`kick compare` and `kick eval` of models made elsewhere, from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Kick, Outcome
from llmkick import cli
from llmkick.models.server import failures as endpoint_failures
from llmkick.study.results.results import read_results
from loopback import chat, completion, refused, serving
from toy import save_toy


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(cli.out, "_width", 200)
        patch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_toy(folder / "dense", max_position_embeddings=512)
    save_toy(folder / "other", seed=1, max_position_embeddings=512)
    return folder


@pytest.fixture
def kick(kick: Kick) -> Kick:
    """As everywhere, without the layout of the tables."""

    def run(*arguments: object) -> Outcome:
        code, *streams = kick(*arguments)
        return Outcome(code, *(" ".join(stream.split()) for stream in streams))

    return run


def test_compare_writes_a_run_and_shows_verdicts_sizes_and_where_it_is(
    models: Path, tmp_path: Path, kick: Kick, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    arguments = (
        "compare", models / "dense", models / "other", f"twin={models / 'dense'}", "-t", "multiple_choice:cloze",
        "--limit", "4", "--dtype", "float32", "--quiet",
    )  # fmt: skip
    code, out, err = kick(*arguments)
    assert (code, err) == (0, "")
    assert "twin" in out
    assert "18,544" in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("compare-")
    assert f"report: {Path('runs') / folder.name / 'report.html'}" in out
    result = read_results(folder)
    assert result.labels == ["other", "twin"]
    verdicts = {entry.recipe: (entry.lost, entry.gained) for entry in result.comparisons}
    assert verdicts["twin"] == (0, 0)  # the same model: not an answer differs
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "18,544 parameters" in page
    assert (folder / "tables" / "models.csv").read_text(encoding="utf-8").count("\n") == 4
    written = (folder / "results.json").stat().st_mtime_ns
    assert kick(*arguments)[:2] == (0, out)  # resumed: the same words
    assert (folder / "results.json").stat().st_mtime_ns >= written
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("others", "options", "code", "message"),
    [
        (("nowhere",), (), 1, "unknown model 'nowhere'"),
        (("dense={models}/other",), (), 2, "'dense' already names the dense model"),
        (("openai:http://h/v1",), (), 2, "cannot read the server"),
        (("{models}/other",), ("--limit", "0"), 2, "limit must be at least 1"),
        (("{models}/other",), ("--concurrency", "0"), 2, "concurrency"),
        (("{models}/other",), ("--prompting", "chat"), 2, "has no chat template"),
    ],
)
def test_what_cannot_be_compared(
    others: tuple[str, ...], options: tuple[str, ...], code: int, message: str, models: Path, tmp_path: Path, kick: Kick
):
    named = [other.format(models=models) for other in others]
    found = kick("compare", models / "dense", *named, "-t", "factoid_qa", "-o", tmp_path / "run", *options, "--quiet")
    assert found[0] == code
    assert message in found[2]


def test_a_server_is_evaluated_and_says_how_letters_were_chosen(kick: Kick):
    def script(path: str, body: dict[str, Any]) -> Any:
        if body.get("echo"):
            return refused("no echo")
        return chat("B") if "chat" in path else completion(" B")

    with serving(script) as server:
        code, out, err = kick("eval", server.reference(), "-t", "multiple_choice:letter", "--limit", "4", "--quiet")
        assert (code, err) == (0, "")
        assert "options were chosen by generated letter" in out
        assert "cannot be verified" in out
        code, _, err = kick("eval", server.reference(), "-t", "perplexity", "--quiet")
        assert (code, "leave perplexity out" in err) == (2, True)
        code, _, err = kick("compress", server.reference(), "wanda@0.5", "-o", "nowhere", "--quiet")
        assert code == 2
        assert "is a server" in err


def test_a_server_that_is_down(kick: Kick):
    code, _, err = kick("eval", "openai:http://127.0.0.1:9/v1#m", "-t", "factoid_qa", "--quiet")
    assert code == 1
    assert "cannot reach http://127.0.0.1:9/v1 (5 attempts)" in err
