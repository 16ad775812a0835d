"""A real server and a real browser that reaches only this machine.

A console error, a script error or a request to another host fails the test that caused it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, TimeoutError, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
SCREENSHOTS = ROOT / "test-results"
LOCAL = {"127.0.0.1", "localhost", "[::1]", ""}

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]

NOT_OURS: dict[str, tuple[str, str]] = {}
"""Rule -> (selector, reason): markup of Streamlit that we cannot change; the rest of the rule still fails."""
OWN_PROBES = r"_stcore/(health|host-config)"
"""Streamlit asks below the path of the page first, and takes the 404 as an answer."""
SLOW = 120_000
"""Milliseconds that a step may take on a busy machine with two cores."""

report_key = pytest.StashKey[pytest.TestReport]()
expect.set_options(timeout=SLOW)


def is_outside(address: str) -> bool:
    """Whether a request to this address leaves the machine."""
    parts = urlsplit(address)
    return parts.scheme in ("http", "https", "ws", "wss") and (parts.hostname or "") not in LOCAL


@dataclass
class Server:
    """`streamlit run` of one script, in a process that can be stopped, killed and started again."""

    script: Path
    folder: Path
    """For its runs and its log."""
    zoo: Path | None = None
    """Folder of its models; None: the shipped ones."""
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def start(self, timeout: float = 90.0) -> None:
        """Serve on a free port (the same one after a restart); returns when the server answers."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        options = {
            "server.port": str(self.port),
            "server.address": "127.0.0.1",
            "server.headless": "true",
            "server.fileWatcherType": "none",
            "browser.gatherUsageStats": "false",
        }
        environment = {k: v for k, v in os.environ.items() if k not in ("NPD_ZOO_DIR", "PYTHONWARNINGS")}
        environment |= {"NPD_RUNS_DIR": str(self.runs)}
        if self.zoo is not None:
            environment["NPD_ZOO_DIR"] = str(self.zoo)
        if SHARED_DATA.is_dir():
            environment["NPD_DATA_DIR"] = str(SHARED_DATA)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamlit", "run", str(self.script)]
                + [f"--{name}={value}" for name, value in options.items()],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2) as answer:
                    if answer.read() == b"ok":
                        return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"the server did not answer within {timeout:g} s:\n{self.log[-2000:]}")

    def stop(self) -> None:
        """End the server as Ctrl-C does; kill it after ten seconds."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self) -> None:
        """End the server without a chance to clean up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Watch:
    """Console errors and requests to other hosts, in every tab of the test."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=lambda: [OWN_PROBES])

    def allow(self, pattern: str) -> None:
        """Expect errors that match this regular expression, as in a test that stops the server."""
        self.allowed.append(pattern)

    def check(self) -> None:
        """Fail when there was an error or a request to another host."""
        errors = [e for e in self.errors if not any(re.search(pattern, e) for pattern in self.allowed)]
        assert not errors, "console errors:\n" + "\n".join(errors)
        assert not self.outside, "requests to other hosts:\n" + "\n".join(self.outside)

    def follow(self, context: BrowserContext) -> None:
        """Listen to everything that happens in `context`."""
        context.on(
            "console", lambda m: self.errors.append(f"{m.text} ({m.location})") if m.type == "error" else None
        )
        context.on("weberror", lambda e: self.errors.append(str(e.error)))
        context.on("request", lambda r: self.outside.append(r.url) if is_outside(r.url) else None)
        context.on("page", self._follow_page)

    def _follow_page(self, page: Page) -> None:
        page.on("websocket", lambda w: self.outside.append(w.url) if is_outside(w.url) else None)

    def look_at_links(self, page: Page) -> None:
        """Check the URLs of icons, style sheets and images, which cause no event."""
        elements = "Array.from(document.querySelectorAll('link[href],img[src],script[src]'))"
        script = f"{elements}.map(e => e.href || e.src)"
        self.outside.extend(url for url in page.evaluate(script) if is_outside(url))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a failed test again, reported as R: two cores are few for a browser, a server and a training."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "slow" not in item.keywords:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the outcome of each test for the fixture `page`."""
    report = yield
    if report.when == "call":
        item.stash[report_key] = report
    return report


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """serve(script, zoo) -> a running Server with a folder of its own; stopped at the end of the session."""
    servers: list[Server] = []

    def start(script: Path, zoo: Path | None = None) -> Server:
        servers.append(Server(script, tmp_path_factory.mktemp("server"), zoo))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server]) -> Server:
    """The app with the shipped zoo and an empty run store, shared by all browser tests."""
    return serve(ROOT / "app.py")


@pytest.fixture(scope="session")
def workshop(serve: Callable[..., Server], tiny_zoo_folder: Path) -> Server:
    """The app with the tiny zoo, where a training takes seconds."""
    return serve(ROOT / "app.py", tiny_zoo_folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Closed with the module: Playwright keeps an event loop on this thread."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail(
            "Chromium is missing: run `make test`, or `apt-get install chromium chromium-driver` as root."
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS, headless=True)
        yield chromium
        chromium.close()


@pytest.fixture
def watch() -> Watch:
    """The record of console errors and outside requests of this test."""
    return Watch()


@pytest.fixture(scope="module")
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """One visitor for the tests of a file, who fetches the app's own files once."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def context(visitor: BrowserContext, watch: Watch) -> Iterator[BrowserContext]:
    """The visitor, with nothing open and nothing remembered: open further tabs with `context.new_page()`."""
    watch.follow(visitor)
    yield visitor
    for tab in visitor.pages:
        if not tab.is_closed() and tab.url.startswith("http"):
            tab.evaluate("localStorage.clear(), sessionStorage.clear()")
        tab.close()
    visitor.clear_cookies()


@pytest.fixture
def page(context: BrowserContext, watch: Watch, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab. It is checked at its end; a failed test leaves a screenshot in test-results/."""
    tab = context.new_page()
    tab.set_default_timeout(SLOW)
    yield tab
    report = request.node.stash.get(report_key, None)
    if report is not None and report.failed:
        SCREENSHOTS.mkdir(exist_ok=True)
        tab.screenshot(path=SCREENSHOTS / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', request.node.name)}.png")
    if not tab.is_closed() and tab.url != "about:blank":
        watch.look_at_links(tab)
    watch.check()


@pytest.fixture
def visit(page: Page, server: Server) -> Callable[..., Page]:
    """visit("/lab?run=...") -> the page after its script has ended."""

    def go(address: str = "/", *, base: str | None = None) -> Page:
        page.goto((base or server.url) + address, wait_until="domcontentloaded")
        settled(page)
        return page

    return go


@pytest.fixture
def lab(visit: Callable[..., Page], workshop: Server) -> Callable[..., Page]:
    """lab("/lab?run=...") -> the page over the tiny zoo."""
    return lambda address="/": visit(address, base=workshop.url)


@pytest.fixture
def settle() -> Callable[[Page], None]:
    """settle(page) waits until the script of the page has ended, for example after a click."""
    return settled


@pytest.fixture
def insist() -> Callable[[Callable[[], object], Locator], None]:
    """insist(act, sign): act again after ten seconds without `sign`, as a person does.

    A page reacts to keys and to new buttons only a moment after its script has ended; what is pressed before
    is lost, and nothing on the page shows when that moment is over.
    """

    def go(act: Callable[[], object], sign: Locator) -> None:
        for _ in range(3):
            act()
            with contextlib.suppress(TimeoutError):
                sign.wait_for(timeout=10_000)
                return
        sign.wait_for()

    return go


def settled(page: Page) -> None:
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', state="attached")


def _violations(page: Page, rules: list[str] | None = None) -> list[str]:
    """Return what axe finds serious or critical, one line an element, without NOT_OURS."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    lines = []
    for found in Axe().run(page, options=options).response["violations"]:
        if found["impact"] not in ("serious", "critical"):
            continue
        selector = NOT_OURS.get(found["id"], ("", ""))[0]
        for node in found["nodes"]:
            where = node["target"]
            if selector and len(where) == 1 and isinstance(where[0], str):
                theirs = page.evaluate(
                    "([e, s]) => !!document.querySelector(e)?.closest(s)", [where[0], selector]
                )
                if theirs:
                    continue
            lines.append(
                f"{found['id']}: {where} {node['html'][:160]} | {node.get('failureSummary', '')[:240]}"
            )
    return lines


@pytest.fixture
def violations() -> Callable[..., list[str]]:
    """violations(page), or violations(page, [rule]) for some rules: what axe finds on the page."""
    return _violations
