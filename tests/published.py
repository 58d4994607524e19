"""Small files in the official layouts of the published data sets, and a hub on this machine that serves them."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).resolve().parents[1]
# Real copies of the data sets, where they are at hand; never part of the project.
REAL = Path(os.environ.get("LLMKICK_REAL_DATA") or ROOT.parent / "shared" / "data")


def freebaseqa_question(number: int, names: Sequence[str | None] = ("paris", "city of light")) -> dict[str, Any]:
    return {
        "Question-ID": f"q-{number}",
        "RawQuestion": f"Question number {number}?",
        "Parses": [{"InferentialChain": "location.capital", "Answers": [{"AnswersMid": "m", "AnswersName": [*names]}]}],
    }


def freebaseqa(questions: Sequence[Any]) -> str:
    return json.dumps({"Dataset": "FreebaseQA-dev", "Questions": list(questions)})


def triviaqa_row(number: int, pages: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    row = {
        "question": f"Which capital is number {number}?",
        "question_id": f"tc_{number}",
        "entity_pages": {"title": [f"Page {number}"] * len(pages), "wiki_context": list(pages)},
        "search_results": {"title": [], "search_context": []},
        "answer": {"value": "Paris", "aliases": ["Paris", "City of Light"]},
    }
    return {**row, **changes}


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def put(path: Path, data: bytes | str) -> Path:
    """Write a file with its folders; .gz files are packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    return path


class Hub:
    """What huggingface_hub asks of a hub, for the files of one folder: repository / path. Counts what it serves."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder, self.commit = folder, commit
        self.served: list[str] = []
        self.lie: dict[str, bytes] = {}  # served instead of the file that the metadata describe

    def info(self, repository: str) -> dict[str, Any]:
        root = self.folder / repository
        siblings = []
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            content = path.read_bytes()
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            entry = {"rfilename": path.relative_to(root).as_posix(), "size": len(content), "blobId": blob}
            if not fnmatch(path.name, "*.jsonl"):
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": repository, "sha": self.commit, "private": False, "downloads": 0, "likes": 0, "tags": [],
                "siblings": siblings}  # fmt: skip

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        path = path.partition("?")[0].strip("/")
        if path.startswith("api/datasets/"):
            owner, name = path.split("/")[2:4]
            return 200, {"Content-Type": "application/json"}, json.dumps(self.info(f"{owner}/{name}")).encode()
        if path.startswith("datasets/"):
            repository, _, rest = path.removeprefix("datasets/").partition("/resolve/")
            name = rest.partition("/")[2]
            file = self.folder / repository / name
            if not file.is_file():
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, b""
            content = self.lie.get(name, file.read_bytes())
            etag = hashlib.sha256(content).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit}, content
        file = self.folder / "github" / path
        return (200, {}, file.read_bytes()) if file.is_file() else (404, {}, b"")


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address of the hub while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def _send(self, *, body: bool) -> None:
            status, headers, content = hub.answer(self.path)
            hub.served.append(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_GET(self) -> None:
            self._send(body=True)

        def do_HEAD(self) -> None:
            self._send(body=False)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
