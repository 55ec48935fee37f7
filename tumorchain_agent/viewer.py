"""The local server of ``view``: the page, the answer and the scan, on loopback, to whoever has the address."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from tumorchain_agent.errors import InputError

ASSETS: Final = Path(__file__).parent / "assets" / "viewer"
HOST: Final = "127.0.0.1"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".gz": "application/gzip",
    ".txt": "text/plain; charset=utf-8",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; font-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Page:
    """What is served under which name, and nothing else: names are looked up, never joined to a folder."""

    files: dict[str, Path]
    data: bytes
    """``data.json``."""

    @classmethod
    def make(cls, data: dict[str, Any], scan: Path, labels: Path | None, labels_name: str) -> Page:
        files = {path.name: path for path in sorted(ASSETS.iterdir())}
        files |= {"": ASSETS / "index.html", "scan.nii.gz": scan}
        if labels is not None:
            files[labels_name] = labels
        return cls(files, json.dumps(data, ensure_ascii=False).encode())


class ViewServer(ThreadingHTTPServer):
    """On 127.0.0.1; the address holds a secret, so that other users of the machine don't see the scan."""

    daemon_threads = True

    def __init__(self, page: Page, port: int = 0) -> None:
        self.page = page
        self.secret = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as cause:
            reason = getattr(cause, "strerror", None) or "no such port"
            raise InputError(
                f"--port {port} can't be used ({reason}); leave it out, or name another"
            ) from cause

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error; anything else is told."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.secret}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host headers of the page's own requests; any other is a page that lies about its name."""
        return (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}")


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    server_version = "tumorchain-agent"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are nobody's business."""

    def _answer(self, *, body: bool) -> None:
        name = self._name()
        if name is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif name == "data.json":
            self._head(".json", len(self.server.page.data))
            if body:
                self.wfile.write(self.server.page.data)
        else:
            path = self.server.page.files[name]
            with path.open("rb") as file:
                self._head(path.suffix, path.stat().st_size)
                if body:
                    shutil.copyfileobj(file, self.wfile, 1 << 20)

    def _name(self) -> str | None:
        """What is asked for, if it may be had."""
        asked = self.path.partition("?")[0]
        prefix = f"/{self.server.secret}/"
        if self.headers.get("Host") not in self.server.hosts:
            return None
        if not secrets.compare_digest(asked[: len(prefix)].encode(), prefix.encode()):
            return None
        name = asked[len(prefix) :]
        return name if name == "data.json" or name in self.server.page.files else None

    def _head(self, suffix: str, length: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _TYPES[suffix])
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def end_headers(self) -> None:
        for name, value in (
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        super().end_headers()
