"""The screen that adapts, in a real browser: by rules, by a real camera, and when all is lost."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, Self

import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("sqlalchemy", reason="needs the 'visitors' extra")
pytest.importorskip("playwright", reason="needs the package playwright")

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from agelens.server.keys import KeyFile, Scope
from agelens.video.rules import RuleBook
from command_line import command
from server.browser import OpenPage, chromium, contrasts, open_page, overflow, unnamed, until
from server.sites import AudienceSite, audience_site
from video.moments import person
from video.scenes import Cutout, Scene, Walk
from video.scenes import Person as Walker
from video.scenes_small import portraits, wall
from video.streams import MjpegCamera, Pixels, free_port

__all__ = ["chromium", "open_page"]

RULES: Final = """
schema = "agelens.audience-rules/1"
fallback = "house"
minimum_s = 0.4
steady_s = 0.2
release_s = 0.3

[groups.grown]
ages = [18, 59]
[groups.seniors]
ages = [60, 100]

[slots.house]
title = "Welcome"
theme = "calm"
[slots.garden]
title = "The garden café"
text = "Seats for everybody."
theme = "fresh"
[slots.music]
title = "Late night live"
theme = "night"
[slots.crowd]
title = "Plenty of room upstairs"
theme = "bold"
image = "up.png"

[[rules]]
slot = "crowd"
people_from = 2
[[rules]]
slot = "garden"
[[rules.groups]]
group = "seniors"
share_from = 0.5
confidence = 0.7
[[rules]]
slot = "music"
[[rules.groups]]
group = "grown"
share_from = 0.5
confidence = 0.7
"""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    gradient = np.linspace(0, 255, 64, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(gradient, (36, 1))] * 3, axis=2)).save(folder / "up.png")
    (folder / "rules.toml").write_text(RULES)
    return folder / "rules.toml"


@pytest.fixture(scope="module")
def site(rules: Path) -> Iterator[AudienceSite]:
    with audience_site(rules.parent, book=RuleBook.load(rules)) as running:
        yield running


def shows(page: Page, slot: str, timeout_s: float = 15) -> None:
    """Wait for the screen to show a slot."""
    until(page, f"document.body.dataset.slot === {slot!r}", timeout_s)


def is_connected(page: Page, how: str = "live", timeout_s: float = 15) -> None:
    until(page, f"document.body.dataset.connection === {how!r}", timeout_s)


# --- driven by a video ----------------------------------------------------------------------------

_SIZE: Final = (640, 360)


@cache
def _act(name: str) -> tuple[Pixels, ...]:
    """Frames, to be played in a circle: those who are in view sway to and fro."""
    astronaut, hopper = portraits()
    places: dict[str, list[tuple[Cutout, int, int]]] = {
        "nobody": [],
        "astronaut": [(astronaut, 200, 150)],
        "hopper": [(hopper, 420, 150)],
        "both": [(astronaut, 200, 150), (hopper, 420, 150)],
    }
    people = tuple(
        Walker(cutout, Walk(((0, x, y, 62), (1.2, x + 25, y, 62)))) for cutout, x, y in places[name]
    )
    scene = Scene("act", wall(_SIZE), people, 1.2, 10.0)
    frames = tuple(np.ascontiguousarray(drawn.pixels[:, :, ::-1]) for drawn in scene.frames())
    return (*frames, *frames[::-1])


class Stage:
    """A camera whose picture the test decides, act by act."""

    def __init__(self) -> None:
        self.frames = _act("nobody")

    def show(self, act: str) -> None:
        self.frames = _act(act)

    def __call__(self, tick: int) -> Pixels:
        return self.frames[tick % len(self.frames)]


@contextmanager
def watching(*arguments: str | Path, log: Path) -> Iterator[str]:
    """``agelens watch ARGUMENTS --listen`` in a process of its own; the address of its pages."""
    with log.open("wb") as errors:
        running = subprocess.Popen(
            command("watch", *arguments, "--listen", "127.0.0.1:0"),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        end = time.monotonic() + 60
        while (found := re.search(r"pages at (\S+)", log.read_text())) is None:
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        running.terminate()
        running.wait(30)


def test_the_screen_follows_those_whom_a_camera_sees(
    rules: Path, tmp_path: Path, open_page: OpenPage
) -> None:
    stage = Stage()
    for act in ("nobody", "astronaut", "hopper", "both"):
        _act(act)
    with (
        MjpegCamera(stage, rate=10) as camera,
        watching(
            f"screen={camera.address}",
            *("--store", tmp_path / "visits.sqlite", "--audience-rules", rules),
            log=tmp_path / "log",
        ) as url,
    ):
        page = open_page(url, "/signage").page
        is_connected(page, timeout_s=30)
        page.evaluate(_NOTE_SLOTS)
        for act, slot in (
            ("nobody", "house"),
            ("astronaut", "music"),
            ("hopper", "garden"),
            ("both", "crowd"),
            ("nobody", "house"),
        ):
            stage.show(act)
            shows(page, slot, 20)
        changes = page.evaluate("window.slots")

    # On the way from one person to another nobody, or both, may be in view for a moment.
    assert [slot for slot in changes if slot not in ("house", "crowd")] == ["music", "garden"]
    assert changes[-1] == "house"


_NOTE_SLOTS = """() => {
  window.slots = [];
  new MutationObserver(() => {
    const slot = document.body.dataset.slot;
    if (slot !== window.slots.at(-1)) window.slots.push(slot);
  }).observe(document.body, { attributes: true, attributeFilter: ["data-slot"] });
}"""


# --- the page -------------------------------------------------------------------------------------


def test_a_slot_is_shown_with_its_words_and_its_picture(
    site: AudienceSite, open_page: OpenPage
) -> None:
    page = open_page(site.url, "/signage").page
    site.see()
    shows(page, "house")
    site.see(person(70))
    shows(page, "garden")
    until(page, "document.querySelectorAll('.slide').length === 1")
    assert page.inner_text("#stage h1") == "The garden café"
    assert page.inner_text("#stage p") == "Seats for everybody."
    assert page.get_attribute("#stage .slide", "data-theme") == "fresh"
    site.see(person(70), person(30))
    shows(page, "crowd")
    until(page, "document.querySelector('.slide img')?.naturalWidth === 64")


def test_when_the_server_goes_the_fallback_is_shown_and_it_connects_again(
    rules: Path, tmp_path: Path, open_page: OpenPage
) -> None:
    port = free_port()
    lost = ("Failed to load resource", "WebSocket", "exception: ")
    with audience_site(tmp_path, book=RuleBook.load(rules), port=port) as site:
        page = open_page(site.url, "/signage", expected=lost).page
        site.see(person(70))
        shows(page, "garden")
    is_connected(page, "lost")
    shows(page, "house")
    assert "fallback" in page.inner_text("#connection")
    with audience_site(tmp_path, book=RuleBook.load(rules), port=port) as site:
        site.see(person(30))
        is_connected(page, "live", 20)
        shows(page, "music")


def test_a_network_that_falls_silent_counts_as_lost(
    site: AudienceSite, open_page: OpenPage
) -> None:
    with Relay(int(site.url.rsplit(":", 1)[1])) as relay:
        page = open_page(relay.url, "/signage").page
        page.clock.install()
        page.reload()
        site.see(person(70))
        shows(page, "garden")
        relay.freeze()
        page.clock.fast_forward(6_500)
        is_connected(page, "lost")
        shows(page, "house")
        relay.thaw()
        page.clock.fast_forward(20_000)
        is_connected(page)
        shows(page, "garden")


class Relay:
    """A network in between: it can go silent without closing anything."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.thaw()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, giver: socket.socket, taker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := giver.recv(65536):
                self._flows.wait()
                taker.sendall(data)
        for one in (giver, taker):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_the_numbers_are_for_whoever_sets_it_up(site: AudienceSite, open_page: OpenPage) -> None:
    page = open_page(site.url, "/signage").page
    site.see(person(70, 0.99), person(72, 0.99), person(71, 0.5, attentive=False))
    is_connected(page)
    assert page.is_hidden("#numbers")
    page.mouse.move(100, 100)
    page.click("#numbers-button")

    until(page, "document.querySelector('#facts').innerText.includes('crowd')")
    facts = page.inner_text("#facts").split("\n")
    assert facts[facts.index("In view") + 1] == "3"
    assert facts[facts.index("Looking here") + 1] == "2"
    assert facts[facts.index("Gender uncertain") + 1] == "1"
    row = page.locator("#groups tr", has_text="seniors").inner_text().split()
    assert row[:2] == ["seniors", "3.0"]
    page.click("#numbers-button")
    assert page.is_hidden("#numbers")


def test_a_screen_has_its_key_from_the_part_of_the_address_that_is_sent_to_nobody(
    rules: Path, tmp_path: Path, open_page: OpenPage
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("screen", [Scope.AUDIENCE]).text
    with audience_site(tmp_path, book=RuleBook.load(rules), keys=keys.path) as site:
        site.see(person(70))
        page = open_page(site.url, f"/signage#key={key}").page
        shows(page, "garden")

        assert key not in page.url


@pytest.mark.parametrize(("width", "scheme"), [(1920, "light"), (390, "dark")])
def test_everybody_can_read_it(
    site: AudienceSite, open_page: OpenPage, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 844 if width < 600 else 1080}
    page = open_page(site.url, "/signage", viewport=size, color_scheme=scheme).page
    site.see(person(70))
    shows(page, "garden")
    page.mouse.move(20, 20)
    page.click("#numbers-button")

    until(page, "document.querySelectorAll('.slide').length === 1")
    assert overflow(page) <= 0
    assert unnamed(page) == []
    assert min(contrasts(page)) >= (4.5, "")


def test_without_rules_it_says_what_is_missing(tmp_path: Path, open_page: OpenPage) -> None:
    with audience_site(tmp_path) as site:
        page = open_page(site.url, "/signage", expected=("Failed to load resource",)).page
        is_connected(page, "unruled")

        assert "--audience-rules" in page.inner_text("#connection")
        assert page.inner_text("#stage h1") == "Welcome"


def test_words_of_the_rules_are_text_and_never_markup(tmp_path: Path, open_page: OpenPage) -> None:
    bad = "<img src=x onerror=alert(1)>"
    book = RuleBook.parse(
        f'schema = "agelens.audience-rules/1"\nfallback = "house"\n[slots.house]\ntitle = "{bad}"\n'
    )
    with audience_site(tmp_path, book=book) as site:
        page = open_page(site.url, "/signage").page
        shows(page, "house")
        until(page, "document.querySelectorAll('.slide').length === 1")
        assert page.inner_text("#stage h1") == bad
        assert page.locator("#stage img").count() == 0
