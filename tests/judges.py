"""An OpenAI-compatible endpoint on this machine that answers as a test tells it to, good and bad."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789abcdef"
MODEL = "scripted-judge"
# An answer that nobody lets go is sent in the end, so that its thread ends.
HELD_SECONDS = 60.0


@dataclass
class Answer:
    """What is sent back: a chat completion with this text, or another status or body."""

    text: str | None = None
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    # It is sent once this is set.
    held: threading.Event | None = None
    # Bytes promised beyond those sent: the connection breaks in the middle.
    torn: int = 0

    def payload(self, request: dict[str, Any]) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text or f"status {self.status}", "code": None}}).encode()
        asked = sum(len(message["content"].split()) for message in request["messages"])
        choice = {"index": 0, "finish_reason": self.finish, "message": {"role": "assistant", "content": self.text}}
        usage = {"prompt_tokens": asked, "completion_tokens": 7, "total_tokens": asked + 7}
        return json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice],
             "usage": usage}
        ).encode()  # fmt: skip


@dataclass
class Endpoint:
    """Answers by a function of the request and its number; remembers what it was asked."""

    answer: Callable[[dict[str, Any], int], Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""

    @property
    def reference(self) -> str:
        return f"openai:{self.url}#{MODEL}"

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0


def asked_of(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def is_probe(request: dict[str, Any]) -> bool:
    return len(request["messages"]) == 1


@contextmanager
def answering(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[Endpoint]:
    endpoint = Endpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                endpoint.requests.append(request)
                number = len(endpoint.requests) - 1
                endpoint.open += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint.open)
            try:
                self._answer(request, number)
            finally:
                with endpoint.lock:
                    endpoint.open -= 1

        def _answer(self, request: dict[str, Any], number: int) -> None:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                said = Answer(status=401, text=f"Incorrect API key provided: {self.headers['Authorization'][7:]}")
            elif request["model"] != MODEL:
                said = Answer(status=404, text=f"The model {request['model']!r} does not exist")
            else:
                said = endpoint.answer(request, number)
            if said.held is not None:
                said.held.wait(timeout=HELD_SECONDS)
            content = said.payload(request)
            try:
                self.send_response(said.status)
                for name, value in {"Content-Type": "application/json", **said.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content) + said.torn))
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked did not wait

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True).start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
