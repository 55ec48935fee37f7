"""A scripted LLM behind a real OpenAI-compatible address on loopback; replies are streamed word by word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from tests.chat_completions import DONE, event, over, said
from tests.model.fake_server import USAGE, FakeServer, _Handler

Reply = Callable[[dict[str, Any]], str]
"""Request → what is said."""
MODEL = "scripted"


@contextmanager
def scripted(reply: Reply) -> Iterator[FakeServer]:
    """Run until the block ends; ``requests`` are kept."""
    fake = FakeServer(models=[{"id": MODEL}])

    class Handler(_Handler):
        state = fake

        def _stream(self, model: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for word in reply(self.state.requests[-1]).split(" "):
                self.wfile.write(event(model, said(f"{word} ")))
            self.wfile.write(event(model, over()) + event(model, [], usage=USAGE) + DONE)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def text_of(request: dict[str, Any]) -> str:
    """All text of the conversation."""
    found = []
    for content in (message["content"] for message in request["messages"]):
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found += [part["text"] for part in parts if part["type"] == "text"]
    return " ".join(found)


def pictures_of(request: dict[str, Any]) -> list[str]:
    content = request["messages"][-1]["content"]
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
