"""A page in Chromium, driven through its own protocol over two pipes: no driver, no package, no
network.

For the tests of pages and the pictures of the documentation;
https://chromedevtools.github.io/devtools-protocol.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0  # seconds for an answer, on a busy machine


def found() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. What it complained of, and what it asked for outside itself, stand in `complaints`
    and `requests`.
    """

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of = to, of
        self._number, self._buffer = 0, b""
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def attach(self) -> None:
        """Open a page in a tab of its own, and listen to it."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its answer; raises RuntimeError with what went
        wrong.
        """
        self._number += 1
        call: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            call["sessionId"] = self._session
        os.write(self._to, json.dumps(call).encode() + b"\0")
        while (message := self._read()).get("id") != self._number:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return dict(message["result"])

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._of], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._of, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError(
                    "the browser does not answer" if not ready else "the browser ended"
                )
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(line))

    def _note(self, message: dict[str, Any]) -> None:
        method, given = message.get("method", ""), message.get("params", {})
        self._events.append(message)
        if method == "Network.requestWillBeSent":
            self.requests += (
                [url] if not (url := given["request"]["url"]).startswith("data:") else []
            )
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.complaints.append(given["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(
                given["exceptionDetails"].get("exception", {}).get("description", "exception")
            )
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.complaints.append(str(given["args"]))

    def show(self, page: Path, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Open a page of this machine in a window of so many pixels and wait until it stands."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._note(self._read())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives on the page."""
        answer = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def picture(self, whole: bool = False) -> bytes:
        """PNG of the window, or of the whole page."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh browser that knows nothing and forgets everything; raises ValueError where there is
    none.
    """
    program = found()
    if program is None:
        raise ValueError(
            f"no browser: expected one of {', '.join(NAMES)}; on Debian `apt-get install chromium`"
        )
    its_input, our_output = os.pipe()
    our_input, its_output = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # the protocol is spoken on descriptors 3 and 4, which a shell can put there in any process
        command = [
            "bash",
            "-c",
            f'exec "$0" "$@" 3<&{its_input} 4>&{its_output}',
            program,
            *ARGUMENTS,
        ]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}"],
            pass_fds=(its_input, its_output),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_input)
        os.close(its_output)
        try:
            tab = Browser(our_output, our_input)
            tab.attach()
            yield tab
        finally:
            os.close(our_output)
            os.close(our_input)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
