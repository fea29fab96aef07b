"""Open pages in headless Chromium, by its DevTools protocol over a pipe.

    python -m tests.inspection.page.chromium report.html screenshots

takes pictures at the widths of a phone and a desktop, and of the first printed pages.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Domains of the protocol whose events a page's faults are in.
_DOMAINS = ("Page", "Runtime", "Log", "Network", "Audits")


def find_chromium() -> str | None:
    """The program, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A page in headless Chromium.

    Attributes
    ----------
    requests : list of str
        Addresses that were asked for, but for ``data:`` ones.
    messages : list of str
        What the page wrote to the console, and what the browser reported of it.
    """

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process = process
        self._write, self._read = write, read
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self._loaded = False
        self.requests: list[str] = []
        self.messages: list[str] = []

    def attach(self) -> None:
        """Use the tab that is there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in _DOMAINS:
            self.call(f"{domain}.enable")

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Load a page, and wait for it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._loaded = False
        self.requests.clear()
        self.messages.clear()
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 60
        while not self._loaded and time.monotonic() < deadline:
            self._receive(deadline)
        assert self._loaded, f"{address} was not loaded"

    def run(self, script: str) -> Any:
        """The value of a script, after its promise."""
        found = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Run scripts in the page of the only frame, which has a process of its own."""
        session, self._session = self._session, None
        targets = self.call("Target.getTargets")["targetInfos"]
        (target,) = [each["targetId"] for each in targets if each["type"] == "iframe"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        try:
            yield
        finally:
            self._session = session

    def press(self, key: str) -> None:
        """Press and release a key, such as Tab or Enter."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r")}
        number, text = codes[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=number,
                text=text,
            )

    def hover(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a picture of the page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path: Path) -> None:
        """Print to a file."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF")["data"]))

    # -- the protocol ----------------------------------------------------------

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._write, content) :]
        deadline = time.monotonic() + 60
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._read], [], [], max(left, 0))
            assert ready, "Chromium does not answer"
            part = os.read(self._read, 2**20)
            assert part, f"Chromium ended with {self._process.poll()}"
            self._buffer += part
        content, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, found: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            address = found["request"]["url"]
            if not address.startswith("data:"):
                self.requests.append(address)
        elif event == "Runtime.consoleAPICalled":
            self.messages.append(json.dumps(found["args"]))
        elif event == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(found["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.messages.append(found["entry"]["text"])
        elif event == "Audits.issueAdded":
            self.messages.append(json.dumps(found["issue"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium with an empty profile, and end it."""
    program = find_chromium()
    assert program is not None
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def use_pipes() -> None:
            # The protocol reads from descriptor 3 and writes to 4.
            given, taken = os.dup(to_browser), os.dup(from_browser)
            os.dup2(given, 3)
            os.dup2(taken, 4)

        process = subprocess.Popen(
            [
                program,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
                *("--no-first-run", "--disable-dev-shm-usage"),
                *("--disable-background-networking", "--disable-component-update"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=use_pipes,
            close_fds=False,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            found = Browser(process, write, read)
            found.attach()
            yield found
        finally:
            os.close(write)
            process.kill()
            process.wait()
            os.close(read)


def main() -> None:
    page, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    with browser() as chromium:
        for name, width in (("phone", 390), ("desktop", 1280)):
            chromium.open(page.as_uri(), width)
            chromium.screenshot(folder / f"{page.stem}-{name}.png")
        chromium.pdf(folder / f"{page.stem}.pdf")
        print(chromium.messages, chromium.requests)


if __name__ == "__main__":
    main()
