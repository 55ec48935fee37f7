"""A real HTTP server on loopback that speaks OpenAI's chat completions, streamed or whole, and can misbehave."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests import chat_completions as wire
from tests.training.engine.scripted import Ask, Experts, read_ask


@dataclass
class Said:
    """A response; ``status`` other than 200 refuses, ``breaks_off`` ends it in the middle."""

    text: str
    finish: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    breaks_off: bool = False
    code: str | None = None
    """Of an error, as OpenAI gives it."""


Tamper = Callable[[Ask, Said], Said]


@dataclass
class ModelServer:
    """``tamper`` may change what an expert says; ``gate`` is called before an answer is sent, and may hold it back."""

    experts: Experts
    tamper: Tamper | None = None
    gate: Callable[[Ask, str], bool] | None = None
    url: str = ""
    answered: Counter[str] = field(default_factory=Counter)
    """How often a request was answered with 200, by its body."""
    asked: int = 0
    streamed: int = 0
    """Of those, how many wanted a stream."""
    busiest: int = 0
    """Most requests at a time."""
    _now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def repeated(self) -> int:
        """Requests answered more than once."""
        return sum(count - 1 for count in self.answered.values())


@contextmanager
def serving(server: ModelServer) -> Iterator[ModelServer]:
    """Run until the block ends."""

    class Handler(_Handler):
        state = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: ModelServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        state, request = self.state, json.loads(body)
        ask = read_ask(request)
        with state.lock:
            state.asked += 1
            state.streamed += bool(request.get("stream"))
            state._now += 1
            state.busiest = max(state.busiest, state._now)
        try:
            said = Said(json.dumps(state.experts.answer(ask)))
            if state.tamper is not None:
                said = state.tamper(ask, said)
            key = f"{self.headers['Host']}{body.decode()}"
            if state.gate is not None and not state.gate(ask, key):
                self.close_connection = True
                return
            if said.status == 200 and not said.breaks_off:
                with state.lock:
                    state.answered[key] += 1
            self._say(said, request)
        finally:
            with state.lock:
                state._now -= 1

    def _say(self, said: Said, request: dict[str, Any]) -> None:
        usage = {
            "prompt_tokens": len(str(request["messages"])) // 4,
            "completion_tokens": len(said.text) // 4 + 1,
        }
        usage["total_tokens"] = sum(usage.values())
        if said.status != 200:
            error = {"message": said.text, "type": "error", "code": said.code}
            self._send(said.status, json.dumps({"error": error}), said.headers)
        elif request.get("stream"):
            self._stream(said, request["model"], usage)
        elif said.breaks_off:
            self._send(200, '{"id": "1", "choices": [', {"X-Broken": "1"})
        else:
            self._send(200, json.dumps(wire.completion(request["model"], said.text, usage, said.finish)), {})

    def _stream(self, said: Said, model: str, usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for start in range(0, max(1, len(said.text)), 400):
            self.wfile.write(wire.event(model, wire.said(said.text[start : start + 400])))
            if said.breaks_off:
                return
        self.wfile.write(wire.event(model, wire.over(said.finish)))
        self.wfile.write(wire.event(model, [], usage=usage) + wire.DONE)

    def _send(self, status: int, text: str, headers: dict[str, str]) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""
