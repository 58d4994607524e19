"""The hub's files, from a hub on this machine: pinned revisions, stated checksums, and the lock of the first download.

The real hub is not asked by any test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import published as files
from llmkick.errors import DataError
from llmkick.tasks.data.published import MMLU, MT_BENCH
from llmkick.tasks.data.readers.dialogues import read_dialogues
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import Task

COMMIT = MMLU.revision
LOCK = "data/cais--mmlu.lock.json"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[files.Hub]:
    hub = files.Hub(tmp_path / "hub", COMMIT)
    rows = [
        {"question": f"Q{n}?", "subject": "astronomy", "choices": ["None", "NA", "1", "nan"], "answer": n % 4}
        for n in range(8)
    ]
    for split in ("test", "dev"):
        files.parquet(hub.folder / f"cais/mmlu/all/{split}-00000-of-00001.parquet", rows)
    mt = [{"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]}]
    files.put(hub.folder / "HuggingFaceH4/mt_bench_prompts/raw/question.jsonl", files.lines(mt))
    files.put(
        hub.folder / "github/kelvin-jiang/FreebaseQA/master/FreebaseQA-eval.json",
        files.freebaseqa([files.freebaseqa_question(n) for n in range(3)]),
    )
    with files.serving(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("LLMKICK_GITHUB", address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def mmlu(**options: str) -> Task:
    return get_task("multiple_choice", source="hub", **options)


def test_files_come_from_the_pinned_revision_once_and_then_from_the_cache(hub, tmp_path: Path):
    items = mmlu().items()
    assert [item.id for item in items] == [f"astronomy-test-{n:04d}" for n in range(1, 9)]
    assert items[0].choices == ("None", "NA", "1", "nan")  # words, never missing values
    assert any(f"/revision/{COMMIT}" in asked for asked in hub.served)
    lock = json.loads((tmp_path / "cache" / LOCK).read_text())[COMMIT]
    assert lock["commit"] == COMMIT
    assert sorted(lock["sha256"]) == ["all/dev-00000-of-00001.parquet", "all/test-00000-of-00001.parquet"]
    hub.served.clear()
    assert mmlu().items() == items
    assert hub.served == []
    assert mmlu().key["origin"]["revision"] == COMMIT


def test_another_commit_than_the_one_asked_for_is_refused(hub):
    hub.commit = "0" * 40
    with pytest.raises(DataError, match=f"asked for revision {COMMIT}, but the hub answers with {'0' * 40}"):
        mmlu().items()


def test_bytes_other_than_the_hub_states_are_refused(hub):
    hub.lie["all/test-00000-of-00001.parquet"] = b"something else"
    with pytest.raises(DataError, match=r"sha256 checksum \w+, but the hub states \w+: the download is damaged"):
        mmlu().items()


def test_a_small_file_is_checked_by_its_git_blob(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    origin = Origin(task="mt", dataset=MT_BENCH, source="hub")
    hub.lie["raw/question.jsonl"] = b'{"question_id": 1}\n'
    with pytest.raises(DataError, match="has git checksum"):
        origin.files("questions")
    hub.lie.clear()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "another"))
    assert read_dialogues(origin)[0].turns == ("One?", "Two?")


def test_a_file_changed_after_the_first_download_is_refused(hub, tmp_path: Path):
    mmlu().items()
    cached = next((tmp_path / "hf").rglob("snapshots/*/all/test-*.parquet"))
    target = cached.resolve()
    target.chmod(0o644)
    target.write_bytes(target.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"but the first download was .*Delete .*to pin anew"):
        mmlu().items()


def test_a_branch_stays_at_the_commit_of_the_first_download(hub, tmp_path: Path):
    mmlu(revision="main").items()
    hub.commit = "1" * 40
    hub.served.clear()
    mmlu(revision="main").items()
    assert json.loads((tmp_path / "cache" / LOCK).read_text())["main"]["commit"] == COMMIT
    assert hub.served == []


def test_the_study_may_demand_a_checksum(hub):
    task = get_task("factoid_qa", source="hub", sha256="0" * 64)
    with pytest.raises(DataError, match=f"but the study demands {'0' * 64}"):
        task.items()


def test_github_files_are_pinned_by_the_first_download(hub, tmp_path: Path):
    assert len(get_task("factoid_qa", source="hub").items()) == 3
    cached = next((tmp_path / "cache" / "data").rglob("FreebaseQA-eval.json"))
    cached.write_text(files.freebaseqa([files.freebaseqa_question(9)]))
    with pytest.raises(DataError, match=r"FreebaseQA-eval.json of FreebaseQA has sha256 \w+, but the first download"):
        get_task("factoid_qa", source="hub").items()


def test_a_file_that_is_not_there_and_a_hub_that_is_not_there(hub, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"cais/mmlu at \w+ has no file all/validation-\*.parquet; it has all/dev-"):
        mmlu(split="val").items()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r'cannot get PopQA .* and it is not cached.*\n.*give source = "FOLDER"'):
        get_task("factoid_qa:popqa", source="hub").items()


def test_a_damaged_lock_is_named(hub, tmp_path: Path):
    files.put(tmp_path / "cache" / LOCK, "{")
    with pytest.raises(DataError, match=r"the lock file .*cais--mmlu.lock.json is damaged"):
        mmlu().items()
