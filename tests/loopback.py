"""A scripted OpenAI-compatible server on this machine, for everything a real one may do wrong."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

# A reply that nobody lets go is sent in the end, so that its thread ends.
HELD_SECONDS = 60.0


@dataclass
class Reply:
    """One HTTP answer. `promised` bytes more than there are drop the connection half-way; None sends nothing."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    promised: int = 0
    after: float = 0.0  # seconds
    nothing: bool = False
    held: threading.Event | None = None  # it is sent once this is set


Script = Callable[[str, dict[str, Any]], Any]


@dataclass
class Server:
    """`script` gets path and body of a POST; its value is a Reply, or the body of a good one."""

    script: Script
    models: Any
    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reference(self, name: str = "m") -> str:
        return f"openai:{self.url}#{name}"

    def answer(self, path: str, body: dict[str, Any] | None) -> Reply:
        if body is None:
            found = self.models if path.endswith("/models") else Reply(status=404, body={"error": {"message": "no"}})
            return found if isinstance(found, Reply) else Reply({"object": "list", "data": found})
        with self._lock:
            self.asked.append((path, body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            found = self.script(path, body)
            reply = found if isinstance(found, Reply) else Reply(found)
            time.sleep(reply.after)
            if reply.held is not None:
                reply.held.wait(timeout=HELD_SECONDS)
            return reply
        finally:
            with self._lock:
                self._at_once -= 1


def chat(text: str, *, model: str = "m", finish: str = "stop", tokens: int = 3, **choice: Any) -> dict[str, Any]:
    """A chat completion that says `text`."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}],
        "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens},
    }  # fmt: skip


def completion(text: str, *, model: str = "m", finish: str = "stop", tokens: int = 3, **choice: Any) -> dict[str, Any]:
    """A completion that says `text`."""
    return {
        "id": "1", "object": "text_completion", "created": 1, "model": model,
        "choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None, **choice}],
        "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens},
    }  # fmt: skip


def refused(message: str, status: int = 400, **headers: str) -> Reply:
    return Reply({"error": {"message": message}}, status=status, headers=headers)


@contextlib.contextmanager
def serving(script: Script, *, models: Any = ({"id": "m", "object": "model"},)) -> Iterator[Server]:
    """The server, while the block runs."""
    server = Server(script=script, models=list(models) if isinstance(models, tuple) else models)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one packet. Otherwise the body waits 40 ms for the client to acknowledge the head.
        disable_nagle_algorithm = True
        wbufsize = -1

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._reply(server.answer(self.path, None))

        def do_POST(self) -> None:
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self._reply(server.answer(self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))

        def _reply(self, reply: Reply) -> None:
            if reply.nothing:
                self.close_connection = True
                return
            text = reply.body if isinstance(reply.body, str | bytes) else json.dumps(reply.body)
            raw = text.encode() if isinstance(text, str) else text
            with contextlib.suppress(OSError):  # the client may have given up
                self.send_response(reply.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw) + reply.promised))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)
                self.wfile.flush()
            self.close_connection = bool(reply.promised)

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=lambda: listener.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}/v1"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
