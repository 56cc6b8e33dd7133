"""The pages as a visitor meets them: a real Chromium, its camera showing a photograph.

Whatever a page must never do is looked for on every visit: an error in the console, a broken
content security policy, a request to another host, something kept beyond the tab.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("playwright", reason="needs the package playwright")

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = ("/", "/gate", "/docs")

_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WATCH_POLICY = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI}`);
});
"""


@dataclass
class Visit:
    """One tab, and what went wrong in it.

    Attributes:
        page: The tab.
        url: Address of the server.
        expected: Beginnings of console errors that the test provokes.
        faults: Console errors, exceptions and requests elsewhere, as they came.
    """

    page: Page
    url: str
    expected: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note every fault from now on."""
        self.page.on(
            "console",
            lambda said: self._fault(said.text) if said.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self._fault(f"exception: {error}"))
        self.page.on("request", lambda request: self._look_at(request.url))
        self.page.on("websocket", lambda socket: self._look_at(socket.url))

    def _fault(self, text: str) -> None:
        if not text.startswith(self.expected or ("\0",)):
            self.faults.append(text)

    def _look_at(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("blob", "data") and parts.netloc != urlsplit(self.url).netloc:
            self.faults.append(f"request to {url}")

    def check(self) -> None:
        """Fail when anything went wrong."""
        assert not self.faults, "\n".join(self.faults)
        kept = self.page.evaluate("[document.cookie, localStorage.length]")
        assert kept == ["", 0], "a page keeps something beyond the tab"


OpenPage = Callable[..., Visit]
"""``open_page(url, path="/", expected=(), script="", **context options)``."""


def film(faces: Path) -> bytes:
    """The photograph of a face as what a camera sees: MJPEG, 640 x 480."""
    photo = Image.open(faces / "astronaut.jpg").convert("RGB")
    frame = Image.new("RGB", (640, 480), (120, 120, 120))
    frame.paste(photo.resize((480, 480)), (80, 0))
    taken = io.BytesIO()
    frame.save(taken, "JPEG", quality=92)
    return taken.getvalue() * 2


@pytest.fixture(scope="module")
def chromium(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with a camera before the photograph.

    A module has its own: Playwright holds an event loop, in which other tests could run none.
    """
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this computer")
    camera = tmp_path_factory.mktemp("camera") / "astronaut.mjpeg"
    camera.write_bytes(film(faces))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                *_QUIET,
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-video-capture={camera}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Opens tabs, each in a context of its own, and looks after the test for faults in them."""
    visits: list[Visit] = []
    contexts: list[BrowserContext] = []

    def open_(
        url: str,
        path: str = "/",
        *,
        expected: tuple[str, ...] = (),
        script: str = "",
        **options: Any,
    ) -> Visit:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.add_init_script(_WATCH_POLICY + script)
        visit = Visit(context.new_page(), url, expected)
        visit.watch()
        visits.append(visit)
        visit.page.goto(url + path)
        return visit

    yield open_
    try:
        for visit in visits:
            visit.check()
    finally:
        for context in contexts:
            context.close()


def until(page: Page, expression: str, timeout_s: float = 20) -> None:
    """Wait for an expression to be true; Playwright's own way is eval, which the pages forbid."""
    end = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise AssertionError(f"not so in {timeout_s} s: {expression}")
        page.wait_for_timeout(50)


def seeing(page: Page) -> None:
    """Wait for the preview of the camera to have a picture."""
    until(page, "document.querySelector('#video').videoWidth > 0")


# --- what every page owes those who use it --------------------------------------------------------

_CONTRASTS = """() => {
  const rgba = (text) => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    return numbers.length === 3 ? [...numbers, 1] : numbers;
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const canvas = dark ? [18, 18, 18] : [255, 255, 255];
    return layers.reduceRight((below, top) => over(top, below), canvas);
  };
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const seen = node.checkVisibility({ visibilityProperty: true });
    if (!walker.currentNode.data.trim() || !seen) continue;
    if (node.closest(".unseen, .dropping, script, noscript, option, :disabled")) continue;
    const style = getComputedStyle(node);
    const below = ground(node);
    const ink = over(rgba(node.namespaceURI.endsWith("svg") ? style.fill : style.color), below);
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


def contrasts(page: Page) -> list[tuple[float, str]]:
    """Contrast (WCAG 2) of every text that is shown with the ground behind it, and the text."""
    return [(float(ratio), str(text)) for ratio, text in page.evaluate(_CONTRASTS)]


_CONTROLS = {
    "button", "link", "textbox", "searchbox", "checkbox", "radio", "combobox", "spinbutton",
    "slider", "switch", "dialog", "region", "navigation", "image", "listbox", "DisclosureTriangle",
}  # fmt: skip


def unnamed(page: Page) -> list[str]:
    """Roles of controls, regions and pictures that a screen reader could not name."""
    session = page.context.new_cdp_session(page)
    tree = session.send("Accessibility.getFullAXTree")["nodes"]
    return [
        str(node["role"]["value"])
        for node in tree
        if not node.get("ignored")
        and node.get("role", {}).get("value") in _CONTROLS
        and not node.get("name", {}).get("value", "").strip()
    ]


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


__all__ = [
    "PAGES",
    "OpenPage",
    "Visit",
    "chromium",
    "contrasts",
    "film",
    "open_page",
    "overflow",
    "seeing",
    "unnamed",
    "until",
]
