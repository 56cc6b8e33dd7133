"""
How long the page of visitors takes in a browser, from the click to the last chart.

    python benchmarks/visitors_month.py --store month.sqlite
    python benchmarks/visitors_pages.py month.sqlite [--goal 1.0] [--shots FOLDER]

Each page is opened in headless Chromium with nothing kept from before: the service forgets its
answers, and the tab is new. With --shots the pages are saved as pictures, wide and on a telephone.
Ends with status 1 when a page takes longer than the goal.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from zoneinfo import ZoneInfo

from playwright.sync_api import Browser, sync_playwright

from agelens.server.dashboard import Kept
from agelens.server.site import create_site_app, serve_site
from agelens.settings import ServerSettings

PAGES = {
    "a day, all sites": "period=days&first=2026-03-14&last=2026-03-14",
    "a day, one camera": "period=days&first=2026-03-14&last=2026-03-14&site=museum&camera=hall",
    "the day of 23 hours": "period=days&first=2026-03-29&last=2026-03-29",
    "a week, one site": "period=days&first=2026-03-09&last=2026-03-15&site=shop",
    "a month, all sites": "period=days&first=2026-03-01&last=2026-03-31",
    "two months, all sites": "period=days&first=2026-02-01&last=2026-03-31",
}
WINDOWS = {
    "wide": {"viewport": {"width": 1280, "height": 900}},
    "telephone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
_READY = """() => document.querySelector("#period-content").getAttribute("aria-busy") === "false"
  && document.querySelectorAll("#charts svg").length > 0"""


def main() -> int:
    """Open each page, and print how long it took."""
    options = _options()
    app = create_site_app(
        ServerSettings(port=0, log_level="error"), store=options.store, zone=ZoneInfo("UTC")
    )
    visitors = app.state.service.visitors
    slowest = 0.0
    with serve_site(app) as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        _seconds(browser, site.address, PAGES["a day, all sites"], None)  # imports, first reading
        print(f"{'page':<24}{'first':>8}{'again':>8}")
        for name, query in PAGES.items():
            visitors.kept = Kept()
            shot = None if options.shots is None else options.shots / name.replace(" ", "-")
            first = _seconds(browser, site.address, query, None)
            again = _seconds(browser, site.address, query, shot)
            slowest = max(slowest, first)
            print(f"{name:<24}{first:>7.2f}s{again:>7.2f}s", flush=True)
        browser.close()
    print(f"slowest {slowest:.2f} s, goal {options.goal:g} s")
    return int(slowest > options.goal)


def _seconds(browser: Browser, address: str, query: str, shot: Path | None) -> float:
    context = browser.new_context(**WINDOWS["wide"])  # type: ignore[arg-type]
    page = context.new_page()
    start = time.perf_counter()
    page.goto(f"{address}/visitors?{query}")
    while not page.evaluate(_READY):
        page.wait_for_timeout(10)
    seconds = time.perf_counter() - start
    context.close()
    if shot is not None:
        shot.parent.mkdir(parents=True, exist_ok=True)
        for name, window in WINDOWS.items():
            context = browser.new_context(**window)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(f"{address}/visitors?{query}")
            while not page.evaluate(_READY):
                page.wait_for_timeout(10)
            page.screenshot(path=f"{shot}-{name}.png", full_page=True)
            context.close()
    return seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the page of visitors in a browser.")
    parser.add_argument("store", type=Path, help="of visitors_month.py --store")
    parser.add_argument("--goal", type=float, default=1.0, help="seconds that a page may take")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the pages")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
