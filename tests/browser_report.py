"""Open a report, leaderboard or gallery in headless Chromium, use it, and take pictures of it.

python tests/browser_report.py report.html OUT

Not part of the test suite, which needs no browser. Ends with status 1 at the first thing that is
not as it should be: an error in the console, a request for anything, a page wider than a phone, a
table that does not sort, a control that does nothing. Speaks the DevTools protocol over a pipe.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """A headless Chromium with one page."""

    def __init__(self, program: str, profile: str) -> None:
        down, up = os.pipe(), os.pipe()
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars"]
        # The browser reads commands from its file 3 and writes to its file 4.
        shell = f'exec 3<&{down[0]} 4>&{up[1]}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "browser", *command],
            pass_fds=(down[0], up[1]),
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        self._in, self._out = os.fdopen(down[1], "wb", 0), os.fdopen(up[0], "rb", 0)
        self._numbers, self._rest = itertools.count(1), b""
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._in.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self._next()

    def run(self, code: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        if "exceptionDetails" in found:
            raise SystemExit(f"{code}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def size(self, width: int, height: int = 900) -> None:
        """Set the size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 500 else 1,
            mobile=width < 500,
        )

    def media(self, media: str = "", scheme: str = "light") -> None:
        """Set the medium and the colour scheme of style sheets."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def picture(self, path: Path, clip: dict[str, float] | None = None) -> None:
        """Save a picture of the page, or of a part of it."""
        more = {"clip": {**clip, "scale": 1}} if clip else {}
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, **more
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """Close the browser."""
        self.call("Browser.close")
        self._process.wait(30)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._out.read(1 << 16)
            if not piece:
                raise SystemExit("the browser has gone")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        return dict(answer)


def check(truth: object, what: str) -> None:
    """Print a check, and exit if it fails."""
    print(f"{'ok' if truth else 'WRONG':<6}{what}")
    if not truth:
        raise SystemExit(1)


def use(browser: Browser) -> None:
    """Use the open report like a reader."""
    rows = "[...document.querySelectorAll('.rank-source tbody tr:not([data-fixed])')]"
    column = f"{rows}.map(r => r.cells[3].dataset.key)"
    ranked = browser.run(
        f"{rows}.filter(r => r.cells[0].dataset.key).map(r => r.cells[3].dataset.key)"
    )
    means = [float(text) for text in ranked if text]
    check(means == sorted(means, reverse=True), "the ranking begins with the best")
    check(browser.run(column)[: len(ranked)] == ranked, "those that are not ranked stand below")
    before = [float(text) for text in browser.run(column) if text]
    button = "document.querySelector('.rank-source th[data-column=\"3\"] button')"
    for order in ("descending", "ascending"):
        browser.run(f"{button}.click()")
        after = [float(text) for text in browser.run(column) if text]
        check(after == sorted(before, reverse=order == "descending"), f"a click sorts {order}")
        said = browser.run(f"{button}.closest('th').getAttribute('aria-sort')")
        check(said == order, f"and says so: aria-sort={said}")
    browser.run(f"{button}.focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13}
        browser.call("Input.dispatchKeyEvent", type=kind, **key)
    after = [float(text) for text in browser.run(column) if text]
    check(after == sorted(before, reverse=True), "the Enter key sorts, too")

    shown = "[...document.querySelectorAll('.pane')].filter(p => p.offsetParent).length"
    check(browser.run(shown) == 2, "one ranking and one heat map are shown")
    browser.run("document.getElementById('rank-pooled').click()")
    pooled = "document.querySelector('.rank-pooled').offsetParent !== null"
    check(browser.run(pooled), "choosing all points shows their ranking")
    browser.run("document.getElementById('rank-source').click()")
    area = "document.querySelector('.copy textarea').value"
    browser.run(f"document.execCommand = () => {{ window.copied = {area}; return true; }}")
    for n, begin in enumerate(("\\begin{tabular}{", "#,metric,")):
        browser.run(f"document.querySelectorAll('.rank-source .copy button')[{n}].click()")
        text = browser.run("window.copied")
        lines = len(ranked) + 1
        check(text.startswith(begin) and len(text.splitlines()) > lines, f"copied: {text[:40]!r}")
    browser.run("document.getElementById('pick-plcc').click()")
    check(
        browser.run("document.querySelector('.pane-plcc').offsetParent !== null"),
        "choosing PLCC shows its map",
    )
    browser.run("document.getElementById('pick-srocc').click()")
    cards = "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.id)"
    first = browser.run(cards)
    check(len(first) == 1, "one metric is shown")
    last = browser.run("[...document.querySelectorAll('.rank-source tbody a')].at(-1).hash")
    browser.run("[...document.querySelectorAll('.rank-source tbody a')].at(-1).click()")
    browser.run("new Promise(r => setTimeout(r, 100))")
    for _ in range(50):
        if browser.run(cards) == [last[1:]]:
            break
    check(browser.run(cards) == [last[1:]], "a link to a metric shows it")
    browser.run(
        "(c => {c.value = c.options[0].value; c.dispatchEvent(new Event('change'))})"
        "(document.getElementById('metric-choice'))"
    )
    check(browser.run(cards) == first, "the list of metrics shows another")
    drawn = "document.querySelectorAll('.card:not([hidden]) .plot .dots').length"
    check(browser.run(drawn), "its scatters are drawn")


def use_gallery(browser: Browser) -> None:
    """Use the open gallery like a reader."""
    told = "document.getElementById('told').textContent"
    shown = "document.querySelector('[data-slot=\"errors\"] img').src"
    browser.run(
        "(l => {l.value = 0; l.dispatchEvent(new Event('input'))})"
        "(document.getElementById('level'))"
    )
    check(browser.run(told) == "0", "the slider goes to the best level")
    before = browser.run(told), browser.run(shown)
    key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, **key)
    after = browser.run(told), browser.run(shown)
    check(int(after[0]) == int(before[0]) + 1, "an arrow key goes to the next level")
    check(after[1] != before[1], "and shows its errors")
    first = browser.run("document.querySelector('dl').textContent")
    browser.run(
        "(c => {c.value = c.options[1].value; c.dispatchEvent(new Event('input'))})"
        "(document.getElementById('codec'))"
    )
    check(browser.run("document.querySelector('dl').textContent") != first, "codecs can be chosen")


def use_board(browser: Browser) -> None:
    """Use the open leaderboard like a reader."""
    column = "[...document.querySelectorAll('#board-1 tbody tr')].map(r => r.cells[2].dataset.key)"
    button = "document.querySelector('#board-1 th[data-column=\"2\"] button')"
    for order in ("descending", "ascending"):
        browser.run(f"{button}.click()")
        means = [float(text) for text in browser.run(column) if text]
        check(means == sorted(means, reverse=order == "descending"), f"a click sorts {order}")
    copies = browser.run("[...document.querySelectorAll('.copy button')].map(b => b.textContent)")
    check(copies[:2] == ["LaTeX", "CSV"], "its table can be copied")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "report", type=Path, help="what `cfqa report`, `leaderboard` or `gallery` wrote"
    )
    parser.add_argument("out", type=Path, help="folder for the pictures")
    arguments = parser.parse_args()
    program = os.environ.get("BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(f"no browser found: install one of {', '.join(BROWSERS)}, or set BROWSER")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        browser.size(1280)
        browser.media()
        browser.open(arguments.report)
        gallery = browser.run("document.getElementById('told') !== null")
        board = browser.run("document.getElementById('board-1') !== null")
        (use_gallery if gallery else use_board if board else use)(browser)
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                browser.size(width)
                browser.media(scheme=scheme)
                wide = browser.run("document.documentElement.scrollWidth")
                check(wide <= width, f"at {width} pixels the page is {wide} wide")
                browser.picture(arguments.out / f"{width}-{scheme}.png")
        browser.media("print")
        browser.picture(arguments.out / "print.png")
        pdf = browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]
        (arguments.out / "print.pdf").write_bytes(base64.b64decode(pdf))
        for name in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            told = [event for event in browser.events if event["method"] == name]
            check(not told, f"{name}: {told or 'nothing'}")
        asked = {
            event["params"]["request"]["url"]
            for event in browser.events
            if event["method"] == "Network.requestWillBeSent"
        }
        own = {arguments.report.resolve().as_uri()}
        there = {url.split("#")[0] for url in asked if not url.startswith("data:")}
        check(there <= own, "nothing is fetched")
        browser.close()
    print(f"pictures: {arguments.out}")


if __name__ == "__main__":
    main()
