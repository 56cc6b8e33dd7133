"""The page on which lines and zones are drawn: by mouse, finger and keyboard, into a plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("sqlalchemy", reason="needs the 'visitors' extra")
pytest.importorskip("playwright", reason="needs the package playwright")

from playwright.sync_api import Page

from agelens.server.keys import KeyFile, Scope
from agelens.video.plan import CameraPlan, read_plan
from server.browser import OpenPage, Visit, chromium, contrasts, open_page, overflow, unnamed, until
from server.hostile_names import HOSTILE_NAMES
from server.visitor_sites import JPEG, Site, served

__all__ = ["chromium", "open_page"]


@pytest.fixture(scope="module")
def site(month: Path) -> Iterator[Site]:
    with served(month) as found:
        yield found


def opened(open_page: OpenPage, site: Site, **options: object) -> Visit:
    found = open_page(site.url, "/visitors/setup", **options)
    until(found.page, "document.querySelector('#picture').naturalWidth === 1280")
    return found


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """A point of the picture in pixels of the window."""
    box = page.locator("#board").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def draw(page: Page, kind: str, *points: tuple[float, float]) -> None:
    """Draw a line or a zone with the mouse."""
    page.click(f"#add-{kind}")
    for point in points:
        page.mouse.click(*at(page, *point))
    if kind == "zone":
        page.click("#finish")


def plan_of(page: Page, folder: Path) -> CameraPlan:
    """What the page gives, read as a plan."""
    file = folder / "watch.toml"
    camera = '[[cameras]]\nname = "door"\nsource = "rtsp://camera/1"\n\n'
    file.write_text(camera + page.inner_text("#toml"), "utf-8")
    return read_plan(file).cameras[0]


ARROW = """() => {
  const path = document.querySelector("#board .arrow path:not(.halo)");
  const { width, height } = document.querySelector("#board").getBoundingClientRect();
  const [, tail, head] = /^M(\\S+) L(\\S+)/.exec(path.getAttribute("d"));
  const [tx, ty, hx, hy] = [...tail.split(","), ...head.split(",")].map(Number);
  return [[tx / width, ty / height], [hx / width, hy / height]];
}"""
"""Tail and head of the arrow, as fractions of the picture."""


def test_what_is_drawn_is_what_the_plan_has(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    page = opened(open_page, site).page
    draw(page, "line", (0.2, 0.5), (0.8, 0.6))
    draw(page, "zone", (0.5, 0.1), (0.9, 0.1), (0.9, 0.4), (0.6, 0.3))
    page.check("#shapes input[type=checkbox]")
    plan = plan_of(page, tmp_path)

    (line,), (zone,) = plan.lines, plan.zones
    assert (*line.start, *line.end) == pytest.approx((0.2, 0.5, 0.8, 0.6), abs=0.002)
    assert [*sum(zone.polygon, ())] == pytest.approx(
        [0.5, 0.1, 0.9, 0.1, 0.9, 0.4, 0.6, 0.3], abs=0.002
    )
    assert zone.staff
    assert (line.name, zone.name) == ("line 1", "zone 1")


def test_the_arrow_points_to_the_side_that_counts_as_in(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    page = opened(open_page, site).page
    for end in ((0.8, 0.5), (0.5, 0.9), (0.2, 0.3), (0.5, 0.1)):
        draw(page, "line", (0.5, 0.5), end)
        for side in ("left", "right"):
            tail, head = page.evaluate(ARROW)
            (line,) = plan_of(page, tmp_path).lines
            assert line.in_side == side
            assert (line.offset(head) > 0) == (side == "right")
            assert (line.offset(tail) > 0) == (side == "left")
            page.click("text=Swap in and out")
        page.click("#shapes button:text-is('Remove')")


def test_lines_and_zones_can_be_drawn_and_mended_with_the_keyboard_alone(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    page = opened(open_page, site).page
    page.focus("#add-line")
    page.keyboard.press("Enter")
    for key in ("Shift+ArrowLeft", "Shift+ArrowLeft", "Enter", *["Shift+ArrowRight"] * 4, "Enter"):
        page.keyboard.press(key)
    page.focus("#add-zone")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    for move in ("Right", "Down", "Left"):
        for _ in range(3):
            page.keyboard.press(f"Shift+Arrow{move}")
        page.keyboard.press("Enter")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    page.focus("#finish")
    page.keyboard.press("Enter")
    page.focus("#board [data-shape='0'][data-point='0']")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowUp")
    plan = plan_of(page, tmp_path)

    assert (plan.lines[0].start, plan.lines[0].end) == ((0.4, 0.455), (0.6, 0.5))
    assert plan.zones[0].polygon == ((0.5, 0.5), (0.65, 0.5), (0.65, 0.65), (0.5, 0.65))
    page.focus("#board [data-shape='1'][data-point='2']")
    page.keyboard.press("Delete")
    assert len(plan_of(page, tmp_path).zones[0].polygon) == 3
    page.keyboard.press("Delete")
    assert len(plan_of(page, tmp_path).zones[0].polygon) == 3
    assert unnamed(page) == []


def test_points_can_be_dragged(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    page = opened(open_page, site).page
    draw(page, "line", (0.2, 0.5), (0.8, 0.5))
    page.mouse.move(*at(page, 0.2, 0.5))
    page.mouse.down()
    page.mouse.move(*at(page, 0.3, 0.3), steps=4)
    page.mouse.up()
    page.mouse.move(*at(page, 0.5, 0.9))

    assert plan_of(page, tmp_path).lines[0].start == pytest.approx((0.3, 0.3), abs=0.002)


def test_fingers_draw_on_a_telephone(site: Site, open_page: OpenPage, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
    page = opened(open_page, site, **phone).page
    page.tap("#add-line")
    page.locator("#board").scroll_into_view_if_needed()
    for point in ((0.2, 0.5), (0.8, 0.6)):
        page.touchscreen.tap(*at(page, *point))

    assert plan_of(page, tmp_path).lines[0].end == pytest.approx((0.8, 0.6), abs=0.004)
    assert overflow(page) == 0
    assert [(ratio, text) for ratio, text in contrasts(page)
            if ratio < 4.5 and text != "line 1"] == []  # fmt: skip


def test_escape_gives_up_what_is_being_drawn(site: Site, open_page: OpenPage) -> None:
    page = opened(open_page, site).page
    page.click("#add-zone")
    page.mouse.click(*at(page, 0.2, 0.2))
    page.keyboard.press("Escape")

    assert page.locator("#shapes li").count() == 0
    assert page.locator("#cancel").is_hidden()


def test_names_and_corners_that_a_plan_would_refuse_are_told(
    site: Site, open_page: OpenPage
) -> None:
    page = opened(open_page, site).page
    draw(page, "zone", (0.2, 0.2), (0.8, 0.8), (0.8, 0.2), (0.2, 0.6))
    problem = page.locator("#shapes .problem-line")

    assert "cross" in problem.inner_text()
    assert "cameras.zones" not in page.inner_text("#toml")
    page.click("#shapes button:text-is('Remove')")
    draw(page, "line", (0.2, 0.5), (0.8, 0.5))
    draw(page, "line", (0.2, 0.7), (0.8, 0.7))
    page.locator("#shapes input").nth(1).fill("line 1")
    assert "Another one has this name" in problem.nth(1).inner_text()
    page.locator("#shapes input").nth(1).fill(" ")
    assert "Give it a name" in problem.nth(1).inner_text()
    page.locator("#shapes input").nth(1).fill("exit")
    assert page.inner_text("#toml").count("[[cameras.lines]]") == 2


def test_names_that_mean_harm_stay_text_and_reach_the_plan_as_they_are(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    visited = opened(open_page, site)
    page = visited.page
    page.on("dialog", lambda dialog: visited.faults.append(f"dialog: {dialog.message}"))
    draw(page, "line", (0.2, 0.5), (0.8, 0.5))
    for name in (*HOSTILE_NAMES, 'tab"\\', "Ümläut 門"):
        page.fill("#shapes input", name)
        assert plan_of(page, tmp_path).lines[0].name == name.strip()
    assert page.locator("main script, main iframe, main img:not(#picture)").count() == 0


def test_the_picture_is_asked_for_with_the_visitors_key_and_kept_nowhere(
    month: Path, open_page: OpenPage, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    both = keys.add("owner", [Scope.VISITORS, Scope.ADMIN]).text
    with served(month, keys=tmp_path / "keys.toml") as closed:
        refused = ("Failed to load resource: the server responded with a status of 401",)
        page = open_page(closed.url, "/visitors/setup", expected=refused).page
        assert page.locator("#picture").is_hidden()
        page.fill("#key-input", both)
        page.click("#key-form button.main")
        until(page, "document.querySelector('#picture').naturalWidth === 1280")

        assert (page.get_attribute("#picture", "src") or "").startswith("blob:")
        assert page.evaluate("caches.keys()") == []


def test_a_camera_without_a_picture_says_so(site: Site, open_page: OpenPage) -> None:
    refused = ("Failed to load resource: the server responded with a status of 503",)
    page = opened(open_page, site, expected=refused).page
    page.select_option("#camera", "till")
    page.wait_for_selector("#problem:visible")

    assert "no picture yet" in page.inner_text("#problem")
    assert page.locator("#picture").is_hidden()


def test_a_picture_of_this_computer_is_not_sent(
    month: Path, open_page: OpenPage, tmp_path: Path
) -> None:
    with served(month, watched=False) as alone:
        page = open_page(alone.url, "/visitors/setup").page
        asked: list[str] = []
        page.on("request", lambda one: asked.append(one.method))
        (tmp_path / "frame.jpg").write_bytes(JPEG)
        page.set_input_files("#file", tmp_path / "frame.jpg")
        until(page, "document.querySelector('#picture').naturalWidth === 1280")
        draw(page, "line", (0.1, 0.1), (0.9, 0.9))

        assert "POST" not in asked
        assert plan_of(page, tmp_path).lines[0].end == pytest.approx((0.9, 0.9), abs=0.002)
