"""The page for a photograph: every way in, what it shows, and what it never does."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final, Literal

import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("playwright", reason="needs the package playwright")

from PIL import Image, ImageFilter
from playwright.sync_api import TimeoutError

from agelens import Analyzer
from agelens.evaluation import pages as report_pages
from agelens.evaluation import plots
from agelens.server.pages import static_files
from command_line import agelens
from server.browser import (
    PAGES,
    OpenPage,
    Visit,
    chromium,
    contrasts,
    open_page,
    overflow,
    seeing,
    unnamed,
    until,
)
from server.conftest import RunningServer, StartServer, close, launch

__all__ = ["chromium", "open_page"]

LANDMARKS: Final[tuple[Literal["main", "banner", "contentinfo"], ...]] = (
    "main",
    "banner",
    "contentinfo",
)
HOSTILE = "<img src=x onerror=alert(1)>'\"; $(reboot) `id`.jpg"


def choose(visit: Visit, content: bytes, name: str = "photo.jpg", kind: str = "image/jpeg") -> None:
    """Give the page a file, and wait for the answer."""
    visit.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})
    answered(visit)


def answered(visit: Visit) -> None:
    visit.page.wait_for_selector(
        "#faces .face, #problem:not([hidden]), #summary:has-text('No face')"
    )


def jpeg(image: Image.Image) -> bytes:
    taken = io.BytesIO()
    image.save(taken, "JPEG", quality=95)
    return taken.getvalue()


# --- without a browser ----------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_nothing_inline_and_loads_only_from_its_own_server(
    server: RunningServer, path: str
) -> None:
    answer = server.get(path)
    tags = _Tags()
    tags.feed(answer.text)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    for tag, attributes in tags.found:
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("src", "href", "action"):
            assert not re.match(r"[a-z]+:|//", attributes.get(name) or "")


def test_no_module_reads_text_as_markup_or_names_another_server() -> None:
    for name, file in static_files().items():
        text = file.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|wss?://", text), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc",
            text,
        ), name


def test_every_module_that_is_imported_is_there(server: RunningServer) -> None:
    for name, file in static_files().items():
        for wanted in re.findall(r'from "\./([^"]+)"', file.content.decode()):
            assert wanted in static_files(), f"{name} imports {wanted}"
        assert server.get(f"/static/{name}").content == file.content


def test_a_file_is_sent_again_only_when_it_has_changed(server: RunningServer) -> None:
    first = server.get("/static/pages.css")
    again = server.get("/static/pages.css", headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["content-type"] == "text/css; charset=utf-8"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["none.js", "..%2Fpages.py", "%2e%2e/pages.py", "..\\pages.py", "layout.html.j2", ""]
)
def test_no_other_file_can_be_had(server: RunningServer, name: str) -> None:
    assert server.get(f"/static/{name}").status_code == 404


def test_the_pages_have_the_colours_of_the_reports(server: RunningServer) -> None:
    palette = server.get("/static/palette.css").text
    style = server.get("/static/pages.css").text
    report = (Path(report_pages.__file__).parent / "templates" / "page.html.j2").read_text("utf-8")

    for colours in (plots.LIGHT, plots.DARK):
        for name, value in colours.named().items():
            assert f"--plot-{name}: {value};" in palette
    for name in ("bad", "good", "warn"):
        assert re.findall(rf"--{name}: (#\w+)", style) == re.findall(rf"--{name}: (#\w+)", report)


# --- a photograph ---------------------------------------------------------------------------------


def test_a_chosen_photograph_shows_its_face_with_age_interval_and_gender(
    server: RunningServer, open_page: OpenPage, photo: bytes, analyzer: Analyzer
) -> None:
    (face,) = analyzer(photo).faces
    low, high = face.age.interval(0.9)
    assert face.gender is not None

    visit = open_page(server.url)
    choose(visit, photo)

    card = visit.page.locator("#faces .face")
    assert card.count() == 1
    words = card.inner_text().replace("\xa0", " ")
    assert f"About {face.age.mean:.0f}" in words
    assert f"90 % between {low} and {high}" in words
    assert re.search(rf"18 or over\s+{100 * face.age.probability_at_least(18):.0f} %", words)
    assert f"{face.gender.label}, {100 * face.gender.probability:.0f} %" in words


def test_the_chart_draws_the_distribution(
    server: RunningServer, open_page: OpenPage, photo: bytes, analyzer: Analyzer
) -> None:
    age = analyzer(photo).faces[0].age
    low, high = age.interval(0.9)

    visit = open_page(server.url)
    choose(visit, photo)

    drawn = visit.page.evaluate(
        """() => {
          const area = (css) => {
            const { x, y, width, height } = document.querySelector(`.age-chart ${css}`).getBBox();
            return { x, y, width, height };
          };
          return { interval: area(".interval"), inside: area(".inside"), base: area(".base") };
        }"""
    )
    year = drawn["base"]["width"] / 101
    assert drawn["interval"]["width"] == pytest.approx((high + 1 - low) * year, rel=0.01)
    assert drawn["interval"]["x"] - drawn["base"]["x"] == pytest.approx(low * year, rel=0.02)
    assert drawn["inside"]["height"] > 0.9 * drawn["interval"]["height"]  # the mode is in it


def test_boxes_lie_on_the_faces(
    server: RunningServer, open_page: OpenPage, faces: Path, analyzer: Analyzer
) -> None:
    content = (faces / "group.jpg").read_bytes()
    analysis = analyzer(content)

    visit = open_page(server.url)
    choose(visit, content)

    picture = visit.page.locator("#picture").bounding_box()
    assert picture is not None
    boxes = visit.page.locator("#boxes .box")
    assert boxes.count() == len(analysis.faces) == visit.page.locator("#faces .face").count()
    scale = picture["width"] / analysis.width
    for row, face in enumerate(analysis.faces):
        shown = boxes.nth(row).bounding_box()
        assert shown is not None
        assert shown["x"] - picture["x"] == pytest.approx(max(0, face.box[0]) * scale, abs=1.5)
        assert shown["y"] - picture["y"] == pytest.approx(max(0, face.box[1]) * scale, abs=1.5)
        assert boxes.nth(row).inner_text() == str(row + 1)


def test_a_face_that_allows_no_estimate_says_so_with_the_reasons(
    server: RunningServer, open_page: OpenPage, faces: Path, analyzer: Analyzer
) -> None:
    photo = Image.open(faces / "astronaut.jpg").filter(ImageFilter.GaussianBlur(7))
    content = jpeg(photo)
    (face,) = analyzer(content).faces
    assert face.age.abstained

    visit = open_page(server.url)
    choose(visit, content)

    card = visit.page.locator("#faces .face")
    assert "Cannot tell" in card.inner_text()
    assert card.locator(".reasons li").all_inner_texts() == list(face.quality.reasons)
    assert card.locator(".age-chart").count() == 0


def test_a_picture_without_a_face_says_so(server: RunningServer, open_page: OpenPage) -> None:
    visit = open_page(server.url)
    choose(visit, jpeg(Image.new("RGB", (300, 200), (90, 120, 90))))

    assert visit.page.locator("#summary").inner_text() == "No face found in this picture."


def test_a_photograph_lying_on_its_side_is_shown_upright_with_its_boxes(
    server: RunningServer, open_page: OpenPage, faces: Path
) -> None:
    turned = Image.open(faces / "astronaut.jpg").convert("RGB").crop((0, 0, 512, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    taken = io.BytesIO()
    turned.transpose(Image.Transpose.ROTATE_90).save(taken, "JPEG", quality=95, exif=exif)

    visit = open_page(server.url)
    choose(visit, taken.getvalue())

    picture, box = (visit.page.locator(css).bounding_box() for css in ("#picture", "#boxes .box"))
    assert picture is not None
    assert box is not None
    assert picture["width"] > picture["height"]
    assert 0.3 < (box["x"] + box["width"] / 2 - picture["x"]) / picture["width"] < 0.6


def test_a_format_that_only_the_service_reads_has_boxes_on_an_empty_ground(
    server: RunningServer, open_page: OpenPage, faces: Path
) -> None:
    taken = io.BytesIO()
    with Image.open(faces / "group.jpg") as group:
        group.save(taken, "TIFF")
        width, height = group.size

    visit = open_page(server.url)
    choose(visit, taken.getvalue(), "group.tiff", "image/tiff")

    ground = visit.page.locator("#shown").bounding_box()
    assert ground is not None
    assert ground["width"] / ground["height"] == pytest.approx(width / height, rel=0.02)
    assert visit.page.locator("#boxes .box").count() > 8
    assert "cannot show this file" in visit.page.inner_text("#shown")


def drop(visit: Visit, content: bytes, name: str, event: str = "drop") -> None:
    """Let go of a file over the page, or paste it."""
    visit.page.evaluate(
        """([bytes, name, kind]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
          const over = document.querySelector("#stage");
          if (kind === "paste") {
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
            return;
          }
          for (const one of ["dragenter", "dragover", "drop"]) {
            const init = { dataTransfer: data, bubbles: true, cancelable: true };
            over.dispatchEvent(new DragEvent(one, init));
          }
        }""",
        [list(content), name, event],
    )
    answered(visit)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photograph_can_be_dropped_and_pasted(
    server: RunningServer, open_page: OpenPage, photo: bytes, event: str
) -> None:
    visit = open_page(server.url)
    drop(visit, photo, "photo.jpg", event)

    assert visit.page.locator("#faces .face").count() == 1
    assert not visit.page.locator("#stage").evaluate("node => node.classList.contains('over')")


def test_a_hostile_file_name_stays_text(
    server: RunningServer, open_page: OpenPage, photo: bytes
) -> None:
    visit = open_page(server.url)
    visit.page.on("dialog", lambda dialog: visit.faults.append(f"dialog: {dialog.message}"))
    drop(visit, photo, HOSTILE)

    assert HOSTILE in (visit.page.locator("#picture").get_attribute("alt") or "")
    assert visit.page.locator("img[src=x]").count() == 0


def test_a_text_file_is_refused_in_words_and_another_picture_can_follow(
    server: RunningServer, open_page: OpenPage, photo: bytes
) -> None:
    visit = open_page(server.url, expected=("Failed to load resource: the server responded with",))
    choose(visit, b"once upon a time", "story.txt", "text/plain")
    problem = visit.page.locator("#problem")

    assert problem.get_attribute("role") == "alert"
    assert "The picture cannot be read" in problem.inner_text()
    assert "unreadable_image" in problem.inner_text()
    assert problem.locator("button").count() == 0  # the same file would be refused again
    assert visit.page.locator("#faces .face").count() == 0

    visit.page.set_input_files(
        "#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo}
    )
    visit.page.wait_for_selector("#faces .face")
    assert problem.is_hidden()


def test_a_server_that_is_gone_is_told_in_words(
    start_server: StartServer, open_page: OpenPage, photo: bytes
) -> None:
    gone = start_server("--workers", "1")
    visit = open_page(gone.url, expected=("Failed to load resource: net::ERR_",))
    until(visit.page, "document.querySelector('#model').options.length > 1")
    gone.stop()
    choose(visit, photo)

    assert "No answer from the server" in visit.page.locator("#problem").inner_text()
    assert visit.page.locator("#problem button").inner_text() == "Try again"


# --- options, JSON, command -----------------------------------------------------------------------


def test_options_change_the_question(
    server: RunningServer, open_page: OpenPage, faces: Path, photo: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    choose(visit, (faces / "group.jpg").read_bytes())
    page.click("#options summary")
    page.fill("#age-groups", "0, 18")
    page.uncheck("#gender")
    with page.expect_response(lambda answer: "max_faces=2" in answer.url) as told:
        page.fill("#max-faces", "2")
    until(page, "document.querySelectorAll('#faces .face').length === 2")

    assert told.value.status == 200
    assert "gender=false" in told.value.url
    assert "age_groups=0%2C18" in told.value.url
    card = page.locator("#faces .face").first
    assert "Perceived gender" not in card.inner_text()
    card.locator("summary").click()
    assert card.locator(".groups th").all_inner_texts() == ["0–17", "18 or over"]


def test_wrong_age_groups_are_told_at_their_field_and_not_sent(
    server: RunningServer, open_page: OpenPage, photo: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    choose(visit, photo)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("#options summary")
    for text in ("0,18,13", "0,abc", "0,130", ""):
        page.fill("#age-groups", text)
        assert "0,13,18" in page.locator("#groups-problem").inner_text()
        assert page.get_attribute("#age-groups", "aria-invalid") == "true"
    page.wait_for_timeout(600)

    assert [url for url in asked if "analyze" in url] == []


def test_every_model_of_the_server_can_be_chosen(
    server: RunningServer, open_page: OpenPage
) -> None:
    names = [model["name"] for model in server.get("/v1/models").json()["models"]]
    visit = open_page(server.url)
    until(visit.page, "document.querySelector('#model').options.length > 1")

    values = visit.page.eval_on_selector_all("#model option", "all => all.map((one) => one.value)")
    assert values == ["", *names]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this computer")
def test_the_curl_line_asks_the_same_question(
    server: RunningServer, open_page: OpenPage, photo: bytes, tmp_path: Path
) -> None:
    visit = open_page(server.url)
    visit.page.click("#options summary")
    visit.page.uncheck("#gender")
    for name in ("photo.jpg", "my holiday's best.jpg", "-x.jpg"):
        (tmp_path / name).write_bytes(photo)
        with visit.page.expect_response("**/v1/analyze*"):
            visit.page.set_input_files("#file", tmp_path / name)
        visit.page.wait_for_selector("#faces .face")
        line = visit.page.locator("#command").text_content() or ""
        shown = json.loads(visit.page.locator("#json").text_content() or "")
        ran = subprocess.run(
            ["sh", "-c", line.replace("curl", "curl --silent", 1)],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            timeout=60,
        )
        for face in shown["analyses"][0]["faces"]:
            assert face["gender"] is None
            del face["age"]["distribution"], face["age"]["coverage"]
        assert json.loads(ran.stdout)["analyses"] == shown["analyses"]


def test_json_and_command_can_be_copied(
    server: RunningServer, open_page: OpenPage, photo: bytes
) -> None:
    visit = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    page = visit.page
    choose(visit, photo)
    page.click("#wire > summary")
    for button, text in (("Copy the JSON", "#json"), ("Copy the command", "#command")):
        page.get_by_role("button", name=button).click()
        page.wait_for_selector("#announcer:has-text('Copied')", state="attached")
        assert page.evaluate("navigator.clipboard.readText()") == page.locator(text).text_content()


# --- the camera -----------------------------------------------------------------------------------

_TRACKS = """
window.tracks = [];
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const stream = await open(wanted);
  window.tracks.push(...stream.getTracks());
  return stream;
};
"""


def tracks(visit: Visit) -> list[str]:
    """States of the camera's tracks that the page has asked for."""
    states: list[str] = visit.page.evaluate("window.tracks.map((track) => track.readyState)")
    return states


def test_a_picture_is_taken_with_the_camera_which_then_goes_off(
    server: RunningServer, open_page: OpenPage
) -> None:
    visit = open_page(server.url, script=_TRACKS)
    page = visit.page
    page.click("#camera")
    page.wait_for_selector("#take:visible")
    assert page.evaluate("document.activeElement.id") == "take"
    assert tracks(visit) == ["live"]
    seeing(page)
    page.click("#take")
    answered(visit)

    assert page.locator("#faces .face").count() == 1
    assert tracks(visit) == ["ended"]
    assert page.locator("#viewfinder").is_hidden()


def test_live_faces_keep_their_number_until_it_is_stopped(
    server: RunningServer, open_page: OpenPage
) -> None:
    visit = open_page(server.url, script=_TRACKS)
    page = visit.page
    page.click("#camera")
    page.wait_for_selector("#live:visible")
    seeing(page)
    with page.expect_websocket() as socket:
        page.click("#live")
    page.wait_for_selector("#faces .face.live .age-chart")
    try:
        page.wait_for_selector("#faces .badge:has-text('#')")
    except TimeoutError:
        pytest.skip("this computer answers too few frames a second to follow a face")
    first = page.locator("#faces .badge").inner_text()
    page.wait_for_timeout(1000)

    assert page.get_attribute("#live", "aria-pressed") == "true"
    assert page.locator("#faces .badge").all_inner_texts() == [first]
    assert page.locator("#marks .box").count() == 1

    page.click("#live")
    page.wait_for_selector("#faces .face", state="detached")
    page.wait_for_timeout(300)
    assert socket.value.is_closed()
    assert tracks(visit) == ["live"]
    page.click("#stop")
    assert tracks(visit) == ["ended"]


def test_the_live_box_lies_on_the_face_of_the_mirrored_preview(
    server: RunningServer, open_page: OpenPage, faces: Path, analyzer: Analyzer
) -> None:
    from server.browser import film

    frame = film(faces)
    (face,) = analyzer(frame[: len(frame) // 2]).faces
    visit = open_page(server.url)
    page = visit.page
    page.click("#camera")
    seeing(page)
    width = page.evaluate("document.querySelector('#video').videoWidth")
    assert width == 640
    page.click("#live")
    page.wait_for_selector("#marks .box")
    # At once: each answer draws the marks anew.
    left, across, middle = page.evaluate(
        """() => {
          const [video, mark] = ["#video", "#marks .box"]
            .map((css) => document.querySelector(css).getBoundingClientRect());
          return [video.left, video.width, mark.left + mark.width / 2];
        }"""
    )
    middle = (middle - left) / (across / width)

    assert middle == pytest.approx(640 - (face.box[0] + face.box[2]) / 2, abs=8)


@pytest.mark.parametrize(
    ("name", "words"),
    [("NotAllowedError", "was not allowed"), ("NotFoundError", "has no camera")],
)
def test_no_camera_is_told_in_words(
    server: RunningServer, open_page: OpenPage, name: str, words: str
) -> None:
    refusal = f"async () => {{ throw new DOMException('', '{name}'); }}"
    script = f"navigator.mediaDevices.getUserMedia = {refusal};"
    visit = open_page(server.url, script=script)
    visit.page.click("#camera")

    visit.page.wait_for_selector("#problem:visible")
    assert words in visit.page.locator("#problem").inner_text()


# --- everybody ------------------------------------------------------------------------------------


def test_the_keyboard_alone_is_enough(
    server: RunningServer, open_page: OpenPage, faces: Path
) -> None:
    visit = open_page(server.url)
    page = visit.page

    page.on("filechooser", lambda chooser: chooser.set_files(faces / "group.jpg"))

    def tab_to(css: str, most: int = 25) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("css => document.activeElement.matches(css)", css):
                return
        raise AssertionError(f"{css} is not reached by Tab")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to("#choose")
    page.keyboard.press("Enter")
    answered(visit)

    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.matches('#boxes .box:last-child')")
    page.keyboard.press("Enter")
    last = page.locator("#faces .face").count() - 1
    assert page.evaluate("document.activeElement.id") == f"face-{last}"
    tab_to("#faces .face:last-child summary", 2)
    page.keyboard.press("Enter")
    assert page.locator("#faces .face:last-child details").get_attribute("open") is not None


def test_the_focus_can_be_seen(server: RunningServer, open_page: OpenPage) -> None:
    visit = open_page(server.url)
    page = visit.page
    for _ in range(9):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert page.evaluate("document.activeElement !== document.body")
        assert float(outline.removesuffix("px")) >= 2


def test_a_result_is_announced(server: RunningServer, open_page: OpenPage, photo: bytes) -> None:
    visit = open_page(server.url)
    choose(visit, photo)

    visit.page.wait_for_selector(
        "#announcer:has-text('1 face in this picture. Face 1: looks about')", state="attached"
    )
    assert visit.page.get_attribute("#announcer", "aria-live") == "polite"


def visited(visit: Visit, content: bytes) -> Iterator[str]:
    """Each page in turn, that for photographs with results, everything unfolded."""
    for path in PAGES:
        if path != PAGES[0]:
            visit.page.goto(visit.url + path)
        visit.page.wait_for_load_state("networkidle")
        if path == "/":
            choose(visit, content)
        visit.page.eval_on_selector_all(
            "details", "all => all.forEach((one) => { one.open = true; })"
        )
        yield path


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_needs_no_sideways_scrolling(
    server: RunningServer, open_page: OpenPage, faces: Path, width: int
) -> None:
    visit = open_page(
        server.url, viewport={"width": width, "height": 780}, is_mobile=True, has_touch=True
    )
    for path in visited(visit, (faces / "group.jpg").read_bytes()):
        assert overflow(visit.page) <= 0, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(
    server: RunningServer, open_page: OpenPage, photo: bytes, scheme: str
) -> None:
    visit = open_page(server.url, color_scheme=scheme)
    for path in visited(visit, photo):
        found = contrasts(visit.page)
        assert len(found) > 15
        assert [text for ratio, text in found if ratio < 4.5] == [], path
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_screen_reader_finds_names_landmarks_and_one_title(
    server: RunningServer, open_page: OpenPage, photo: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    for path in visited(visit, photo):
        assert unnamed(page) == [], path
        for landmark in LANDMARKS:
            assert page.get_by_role(landmark).count() == 1
        assert page.locator("h1:visible").count() == 1
        assert page.get_attribute("html", "lang") == "en"
        ids: list[str] = page.eval_on_selector_all("[id]", "all => all.map((one) => one.id)")
        assert len(ids) == len(set(ids))


def test_nothing_moves_for_those_who_want_no_motion(
    server: RunningServer, open_page: OpenPage, photo: bytes
) -> None:
    held: list[Any] = []
    visit = open_page(server.url, reduced_motion="reduce")
    page = visit.page
    page.route("**/v1/analyze*", lambda route: held.append(route))
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo})
    page.wait_for_selector("#progress:visible")

    assert page.evaluate("document.getAnimations().length") == 0
    held[0].continue_()
    answered(visit)


# --- keys -----------------------------------------------------------------------------------------

_ASKED = ("Failed to load resource: the server responded with a status of 401",)


@pytest.fixture(scope="module")
def guarded(
    own_registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, str]]:
    """A server with one key, and the key."""
    folder = tmp_path_factory.mktemp("guarded")
    file = str(folder / "keys.toml")
    made = agelens("keys", "add", "page", "--scope", "analyze", "--file", file).out
    (key,) = re.findall(r"al_\w+?_[\w-]{43}", made)
    running = launch(folder, "--keys", file, "--workers", "1")
    yield running, key
    close(running)


def test_a_key_is_asked_for_kept_in_the_tab_and_can_be_forgotten(
    guarded: tuple[RunningServer, str], open_page: OpenPage, photo: bytes
) -> None:
    server, key = guarded
    visit = open_page(server.url, expected=_ASKED)
    page = visit.page
    page.wait_for_selector("#key-dialog[open]")
    assert page.evaluate("document.activeElement.id") == "key-input"
    assert unnamed(page) == []

    page.fill("#key-input", "al_wrong_" + "x" * 43)
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-problem:has-text('not accepted')")
    page.fill("#key-input", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-dialog", state="hidden")
    choose(visit, photo)
    assert page.locator("#faces .face").count() == 1

    page.click("#wire > summary")
    assert "$AGELENS_KEY" in page.locator("#command").inner_text()
    assert key not in page.content()
    assert page.evaluate("Object.values(sessionStorage)") == [key]

    page.click("#key-forget")
    assert page.evaluate("sessionStorage.length") == 0
    page.set_input_files("#file", {"name": "b.jpg", "mimeType": "image/jpeg", "buffer": photo})
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#problem:visible")
    assert page.locator("#key-enter").is_visible()
    page.click("#key-enter")
    page.fill("#key-input", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#faces .face")


def test_pages_and_their_files_need_no_key(guarded: tuple[RunningServer, str]) -> None:
    server, _ = guarded
    for path in (*PAGES, *(f"/static/{name}" for name in static_files())):
        assert server.get(path).status_code == 200
    assert server.get("/v1/models").status_code == 401


def test_live_pictures_ask_for_the_key_too(
    guarded: tuple[RunningServer, str], open_page: OpenPage
) -> None:
    server, key = guarded
    visit = open_page(server.url, expected=_ASKED)
    page = visit.page
    page.wait_for_selector("#key-dialog[open]")
    page.click("#key-cancel")
    page.click("#camera")
    seeing(page)
    page.click("#live")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key-input", key)
    page.keyboard.press("Enter")

    page.wait_for_selector("#faces .face.live .age-chart")


def test_a_prefix_before_the_service_is_kept() -> None:
    from fastapi.testclient import TestClient

    from agelens.server.app import create_app
    from agelens.settings import ServerSettings

    html = TestClient(create_app(ServerSettings.load()), "http://localhost", root_path="/age").get(
        "/"
    )

    assert 'data-root="/age"' in html.text
    assert not re.search(r'(?:src|href)="/(?!age/)', html.text)


@pytest.mark.parametrize(("off", "gone"), [("pages", set(PAGES)), ("docs", {"/docs"})])
def test_pages_that_are_switched_off_are_gone_and_not_linked(off: str, gone: set[str]) -> None:
    from fastapi.testclient import TestClient

    from agelens.server.app import create_app
    from agelens.settings import ServerSettings

    switched: dict[str, Any] = {off: False}
    client = TestClient(create_app(ServerSettings.load(**switched)), "http://localhost")
    answers = {path: client.get(path) for path in PAGES}

    assert {path for path, answer in answers.items() if answer.status_code == 404} == gone
    for path in set(PAGES) - gone:
        menu = answers[path].text.partition("<nav")[2].partition("</nav>")[0]
        assert set(re.findall(r'href="([^"]+)"', menu)) == set(PAGES) - gone
