"""A tiny OpenAI-compatible server on loopback that records what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.chat_completions import DONE, completion, event, over, said

WORDS = ("A lesion", " in the", " liver.")
USAGE = {
    "prompt_tokens": 300,
    "completion_tokens": 4,
    "total_tokens": 304,
    "prompt_tokens_details": {"cached_tokens": 256},
}


@dataclass
class FakeServer:
    """``status`` other than 200 refuses chat requests; ``breaks_off`` leaves a stream without its end.

    ``refusals`` are statuses of the first chat requests, before ``status`` counts; ``retry_after`` goes with each.
    ``hangs`` says where it falls silent, until ``released``: before its answer, or in the middle of it.
    ``listed`` is the answer to ``GET /models`` in place of a list of ``models``.
    """

    models: list[dict[str, str]]
    status: int = 200
    message: str = "refused"
    breaks_off: bool = False
    finish_reason: str = "stop"
    refusals: list[int] = field(default_factory=list)
    retry_after: str | None = None
    hangs: Literal["", "before", "within"] = ""
    released: threading.Event = field(default_factory=threading.Event)
    listed: Any = ...
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def serve(fake: FakeServer) -> Iterator[FakeServer]:
    """Run until the block ends."""

    class Handler(_Handler):
        state = fake

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeServer

    def do_GET(self) -> None:
        models = [
            {"object": "model", "created": 0, "owned_by": "test", **model} for model in self.state.models
        ]
        listed = {"object": "list", "data": models}
        self._send_json(200, listed if self.state.listed is ... else self.state.listed)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.requests.append(request)
        self.state.keys.append(self.headers["Authorization"])
        if self.state.hangs == "before":
            self.state.released.wait(30)
            return
        status = self.state.refusals.pop(0) if self.state.refusals else self.state.status
        if status != 200:
            self._send_json(status, {"error": {"message": self.state.message, "type": "error"}})
        elif request.get("stream"):
            self._stream(request["model"])
        else:
            self._answer(request["model"])

    def _answer(self, model: str) -> None:
        self._send_json(200, completion(model, "".join(WORDS), USAGE))

    def _stream(self, model: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in WORDS:
            if self.state.hangs == "within" and word == WORDS[-1]:
                self.state.released.wait(30)
                return
            self.wfile.write(event(model, said(word)))
        if self.state.breaks_off:
            return
        self.wfile.write(event(model, over(self.state.finish_reason)))
        self.wfile.write(event(model, [], usage=USAGE) + DONE)

    def _send_json(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.state.retry_after is not None:
            self.send_header("Retry-After", self.state.retry_after)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""
