"""Headless Chromium over its debugging pipe: open a page, click, read, take a picture; every request is noted."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu-sandbox", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--hide-scrollbars", "--mute-audio",
)  # fmt: skip
PATIENCE_S = 120.0


def chromium() -> str:
    """The browser's path; the test is skipped where there is none."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


class Browser:
    """One page. Commands are DevTools protocol messages over file descriptors 3 and 4."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 800)) -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._count = 0
        self._waiting = b""
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "chromium", chromium()]
        options = [
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            "--remote-debugging-pipe",
        ]
        self._process = subprocess.Popen(
            [*command, *SWITCHES, *options, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._reader, self._writer = ours_in, ours_out
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(item["targetId"] for item in targets if item["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._reader)
        os.close(self._writer)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to the page; its result."""
        return self._call(method, self._session, **parameters)

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def until(self, expression: str, wanted: Any) -> Any:
        """Ask until the expression has the wanted value, or is any other than what ``wanted`` excludes."""
        limit = time.monotonic() + PATIENCE_S
        while (found := self.value(expression)) != wanted:
            if time.monotonic() > limit:
                raise AssertionError(f"{expression} stays {found!r}; console: {self.problems}")
            select.select([self._reader], [], [], 0.05)
        return found

    def picture(self) -> bytes:
        """A PNG of the page as it is seen."""
        shot = self.send("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + PATIENCE_S
        while True:
            answer = self._next(limit)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self._note(answer)

    def _next(self, limit: float) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, limit - time.monotonic()))
            assert ready, "the browser doesn't answer"
            part = os.read(self._reader, 1 << 20)
            assert part, "the browser has ended"
            self._waiting += part
        message, _, self._waiting = self._waiting.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(str(event["params"]["exceptionDetails"]))
            case "Log.entryAdded":
                self.problems.append(event["params"]["entry"]["text"])
            case "Runtime.consoleAPICalled" if event["params"]["type"] in ("error", "warning"):
                self.problems.append(str(event["params"]["args"]))
