"""A headless Chromium, driven by its DevTools protocol over two pipes: JSON messages that end with a zero byte."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FOUND = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


class Browser:
    """One page. Its files lie in a folder that is the caller's. AssertionError for what the page throws."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        (hears, self.writes), (self.reads, says) = os.pipe(), os.pipe()
        flags = [
            "--headless",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
            "--no-first-run",
        ]
        flags += ["--disable-background-networking", f"--window-size={width},{height}"]
        flags += ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
        begin = ["sh", "-c", f'exec "$@" 3</dev/fd/{hears} 4>/dev/fd/{says}', "sh", str(FOUND), *flags, "about:blank"]
        self.process = subprocess.Popen(begin, pass_fds=(hears, says), stderr=subprocess.DEVNULL)
        os.close(hears)
        os.close(says)
        self.numbers, self.rest, self.session = itertools.count(1), b"", {}
        page = next(each for each in self.send("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "DOM"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.writes)
        os.close(self.reads)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command, which comes within a minute."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                assert select.select([self.reads], [], [], 60)[0], f"{method}: no answer"
                more = os.read(self.reads, 1 << 20)
                assert more, f"{method}: the browser has ended"
                self.rest += more
            said, _, self.rest = self.rest.partition(b"\0")
            heard = json.loads(said)
            assert heard.get("method") != "Runtime.exceptionThrown", heard
            if heard.get("id") == number:
                assert "error" not in heard, heard
                return heard["result"]

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true, at most half a minute."""
        until = time.monotonic() + 30
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < until, f"never: {expression}"
            time.sleep(0.02)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """`mousePressed`, `mouseMoved` or `mouseReleased`, with the left button."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self) -> bytes:
        """Of the whole window, a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])
