"""Twenty viewers of one live run: how long a refresh takes, and how much it slows the training.

The viewers speak the protocol of Streamlit, so that twenty of them fit beside the server. Slow, and dependent
on the machine: not in the default run.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import expect

VIEWERS, EVERY = 20, 0.5
WINDOW, ROUNDS = 8.0, 4
"""Seconds without viewers, then as many with them, and how often."""
P95, SLOWER = 0.150, 0.15
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Viewer:
    """One tab: opens a page, then requests its live part again and again, as the browser does."""

    def __init__(self, url: str, page: str, query: str) -> None:
        self.url, self.page, self.query = url, page, query
        self.seconds: list[float] = []
        self.fragments: set[str] = set()
        self.script = ""

    async def open(self) -> None:
        """Connect, and draw the whole page once."""
        from websockets.asyncio.client import connect

        self.socket = await connect(
            f"{self.url.replace('http', 'ws')}/_stcore/stream", subprotocols=["streamlit"]
        )
        self.socket.max_size = None
        await self._ask(page_name=self.page)
        while not await self._finished():
            pass

    async def watch(self, until: float, start: float) -> None:
        """Refresh every half second, from `start` on, until the moment `until`."""
        await asyncio.sleep(start)
        while time.monotonic() < until:
            began = time.monotonic()
            for fragment in sorted(self.fragments):
                await self._ask(fragment_id=fragment, is_auto_rerun=True, page_script_hash=self.script)
                while not await self._finished():
                    pass
            self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, EVERY - (time.monotonic() - began)))

    async def _ask(self, **state: object) -> None:
        from streamlit.proto.BackMsg_pb2 import BackMsg

        message = BackMsg()
        message.rerun_script.query_string = self.query
        for name, value in state.items():
            setattr(message.rerun_script, name, value)
        await self.socket.send(message.SerializeToString())

    async def _finished(self) -> bool:
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        message = ForwardMsg.FromString(await asyncio.wait_for(self.socket.recv(), 60))
        kind = message.WhichOneof("type")
        if kind == "auto_rerun":
            self.fragments.add(message.auto_rerun.fragment_id)
        elif kind == "new_session":
            self.script = message.new_session.page_script_hash
        return kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN


def epochs(folder: Path) -> list[float]:
    """When each epoch of the run ended, in unix seconds."""
    file = folder / "events.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record["time"] for record in records if record["type"] == "EpochEnd"]


async def crowd(
    url: str, query: str
) -> tuple[list[float], list[tuple[float, float]], list[tuple[float, float]]]:
    """Seconds of every refresh, and the windows (unix seconds) in which nobody and everybody watched."""
    viewers = [Viewer(url, "lab", query) for _ in range(VIEWERS)]
    for viewer in viewers:
        await viewer.open()
    assert all(viewer.fragments for viewer in viewers), "the run is over before it is watched"
    alone, watched = [], []
    for _ in range(ROUNDS):
        then = time.time()
        await asyncio.sleep(WINDOW)
        alone.append((then, time.time()))
        then, until = time.time(), time.monotonic() + WINDOW
        await asyncio.gather(*(v.watch(until, EVERY * k / VIEWERS) for k, v in enumerate(viewers)))
        watched.append((then, time.time()))
    for viewer in viewers:
        await viewer.socket.close()
    return [s for viewer in viewers for s in viewer.seconds], alone, watched


def test_twenty_viewers_of_one_run(server, visit, page, watch, capsys) -> None:
    visit("/lab?epochs=200&clean=360&seed=20")
    button = page.get_by_role("button", name="Train the polarizer")
    expect(button).to_be_enabled(timeout=180_000)
    button.click()
    page.wait_for_url(re.compile(r"[?&]run=[0-9a-f]{16}"))
    query = page.url.partition("?")[2]
    run = re.search(r"run=([0-9a-z_-]+)", query).group(1)
    page.goto("about:blank")
    folder = server.runs / run
    end = time.monotonic() + 180
    while len(epochs(folder)) < 8 and time.monotonic() < end:
        time.sleep(0.5)
    # On a thread of its own: Playwright keeps an event loop on this one.
    with ThreadPoolExecutor(1) as pool:
        seconds, alone, watched = pool.submit(lambda: asyncio.run(crowd(server.url, query))).result()
    (folder / "stop").touch()
    ended = epochs(folder)

    def rate(windows: list[tuple[float, float]]) -> float:
        return sum(sum(a <= at < b for at in ended) for a, b in windows) / sum(b - a for a, b in windows)

    p50, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    slower = 1 - rate(watched) / rate(alone)
    with capsys.disabled():
        print(
            f"\n{len(seconds)} refreshes: median {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms; "
            f"{rate(alone):.2f} epochs/s alone, {rate(watched):.2f} watched, {slower:.0%} slower"
        )
    assert p95 < P95
    assert slower < SLOWER
