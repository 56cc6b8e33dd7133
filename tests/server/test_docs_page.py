"""The page of the interface: all of it, and command lines that run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")

from agelens.server.problems import CODES
from server.browser import OpenPage, chromium, open_page, until
from server.conftest import RunningServer

__all__ = ["chromium", "open_page"]


def test_every_operation_of_the_description_is_there_with_all_parameters(
    server: RunningServer, open_page: OpenPage
) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    wanted = {
        (method.upper(), path): [one["name"] for one in operation.get("parameters", [])]
        for path, item in paths.items()
        for method, operation in item.items()
    }

    page = open_page(server.url, "/docs").page
    page.wait_for_selector(".operation")
    shown: dict[tuple[str, str], list[str]] = {}
    for section in page.locator(".operation").all():
        method, path = (section.locator(f"h3 {css}").inner_text() for css in (".method", ".path"))
        table = section.locator(
            "h4:has-text('Parameters') + .scroll tbody tr > td:first-child code"
        )
        shown[method, path] = table.all_inner_texts()

    assert shown == wanted
    assert page.locator("#contents-endpoints a").count() == len(wanted)


def test_every_problem_code_is_explained(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "/docs").page
    rows = page.locator("#problems tbody tr").all()
    shown = {
        row.locator("td").nth(0).inner_text(): row.locator("td").nth(1).inner_text() for row in rows
    }

    assert shown == dict(CODES)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this computer")
def test_the_commands_for_pictures_and_models_run_as_they_stand(
    server: RunningServer, open_page: OpenPage, photo: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    page = open_page(server.url, "/docs").page
    page.wait_for_selector(".operation")
    page.eval_on_selector_all("details", "all => all.forEach((one) => { one.open = true; })")
    lines = [page.inner_text("#first-command")]
    for operation in ("post-v1-analyze", "get-v1-models", "get-healthz"):
        pres = page.locator(f"#{operation} pre").all_inner_texts()
        lines += [text for text in pres if text.startswith("curl")]

    assert len(lines) >= 6
    for line in lines:
        ran = subprocess.run(
            ["sh", "-c", line.replace("curl", "curl --silent --write-out '%{http_code}'", 1)],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        # The example of a JSON body is a grey pixel, which has no face but can be read.
        assert ran.stdout.endswith("200"), f"{line}\n{ran.stdout}"


def test_texts_of_the_description_stay_text(server: RunningServer, open_page: OpenPage) -> None:
    hostile = "<img src=x onerror=alert(1)> `<b>`"
    visit = open_page(server.url, "/docs")
    page = visit.page

    def altered(route: Any) -> None:
        answer = route.fetch()
        told = answer.json()
        for item in told["paths"].values():
            for operation in item.values():
                operation["summary"] = operation["description"] = hostile
                for parameter in operation.get("parameters", []):
                    parameter["description"] = hostile
        route.fulfill(response=answer, json=told)

    page.route("**/openapi.json", altered)
    page.reload()
    page.wait_for_selector(".operation")

    assert page.locator("img[src=x]").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator(".operation").first.inner_text()


def test_a_link_to_an_operation_leads_to_it(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "/docs#get-v1-models").page
    page.wait_for_selector("#get-v1-models")
    until(
        page, "Math.abs(document.querySelector('#get-v1-models').getBoundingClientRect().top) < 60"
    )


def test_fields_of_answers_have_their_whole_names(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = open_page(server.url, "/docs").page
    page.wait_for_selector(".operation")
    page.eval_on_selector_all("details", "all => all.forEach((one) => { one.open = true; })")
    names = page.locator("#post-v1-analyze td:first-child code").all_inner_texts()

    for name in ("analyses[].faces[].age.interval.low", "analyses[].error.code", "images[].url"):
        assert name in names
