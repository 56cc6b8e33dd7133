"""The site beside its cameras: who gets in, what it gives, and how it begins and ends."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("sqlalchemy", reason="needs the 'visitors' extra")

from agelens.analytics.overview import overview
from agelens.analytics.period import Period
from agelens.analytics.presence import Selection
from agelens.analytics.store import Scope as StoreScope
from agelens.analytics.store import open_store
from agelens.analytics.suppression import DEFAULT_MINIMUM
from agelens.errors import ArgumentError, StoreError
from agelens.server.keys import KeyFile, Scope
from agelens.server.site import create_site_app, serve_site
from agelens.settings import ServerSettings
from command_line import agelens
from server.charted import check_csv
from server.conftest import RunningServer, StartServer
from server.visitor_sites import JPEG, Site, served
from server.visitors_month import BERLIN, FIRST, LAST, SPRING

SATURDAY = FIRST + timedelta(days=5)


@pytest.fixture(scope="module")
def site(month: Path) -> Iterator[Site]:
    with served(month) as found:
        yield found


@pytest.fixture(scope="module")
def exact(month: Path) -> Iterator[Site]:
    """The same with every count as it is, so that it can be held against the visits."""
    with served(month, minimum=1) as found:
        yield found


# --- beginning and ending -------------------------------------------------------------------------


def test_it_is_served_from_a_thread_and_leaves_signals_alone(month: Path) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    with served(month) as found:
        assert found.get("/readyz").json() == {"ready": True}
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
        assert "site" in [thread.name for thread in threading.enumerate()]

    with pytest.raises(httpx2.ConnectError):
        found.get("/healthz")
    assert "site" not in [thread.name for thread in threading.enumerate()]


def test_it_can_be_stopped_twice_and_before_it_has_begun(month: Path) -> None:
    app = create_site_app(
        ServerSettings(port=0, log_level="error", grace_s=0.4), store=month, zone=BERLIN
    )
    handle = serve_site(app)
    handle.stop()
    handle.stop()

    assert not handle.is_alive


def test_an_address_that_is_taken_is_told(month: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = create_site_app(ServerSettings(port=taken.getsockname()[1]), store=month, zone=BERLIN)
        with pytest.raises(ArgumentError, match="choose another port"):
            serve_site(app)


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        create_site_app(ServerSettings(), store=tmp_path / "none.sqlite", zone=BERLIN)

    assert list(tmp_path.iterdir()) == []


def test_the_fewest_that_is_shown_is_that_of_suppression() -> None:
    assert ServerSettings().minimum == DEFAULT_MINIMUM


# --- who gets in ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(month: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A site with keys; its address and a key for each scope."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys = {scope.value: KeyFile(file).add(scope.value, [scope]).text for scope in Scope}
    with served(month, keys=file) as found:
        yield {"site": found, **keys}


@pytest.mark.parametrize("path", ["", "/overview", "/csv?chart=by-hour", "/cameras"])
def test_figures_want_the_scope_visitors(guarded: dict[str, Any], path: str) -> None:
    found: Site = guarded["site"]
    where = f"/v1/visitors{path}"

    assert found.get(where).status_code == 401
    assert found.get(where, key=guarded["analyze"]).json()["code"] == "forbidden"
    assert found.get(where, key=guarded["audience"]).json()["code"] == "forbidden"
    assert found.get(where, key=guarded["visitors"]).status_code in (200, 422)


def test_the_picture_of_a_camera_wants_the_scope_admin(guarded: dict[str, Any]) -> None:
    found: Site = guarded["site"]
    where = "/v1/visitors/picture?camera=door"
    answer = found.get(where, key=guarded["admin"])

    assert found.get(where).status_code == 401
    assert found.get(where, key=guarded["visitors"]).json()["code"] == "forbidden"
    assert (answer.status_code, answer.content) == (200, JPEG)
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "no-store"


def test_pages_hold_no_figure_and_want_no_key(guarded: dict[str, Any]) -> None:
    found: Site = guarded["site"]
    for path in ("/visitors", "/visitors/setup"):
        answer = found.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        for name in ("shop", "museum", "door", "till"):
            assert name not in answer.text


def test_another_host_name_and_another_site_are_refused(site: Site) -> None:
    assert site.get("/v1/visitors", headers={"host": "evil.example"}).json()["code"] == (
        "host_not_allowed"
    )
    elsewhere = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert site.get("/v1/visitors/cameras", headers=elsewhere).json()["code"] == "forbidden"


def test_it_takes_no_pictures_and_its_first_page_is_that_of_visitors(site: Site) -> None:
    assert httpx2.post(f"{site.url}/v1/analyze", content=b"x").status_code == 404
    assert site.get("/gate").status_code == 404
    home = site.get("/", follow_redirects=False)
    assert (home.status_code, home.headers["location"]) == (307, "/visitors")


def test_an_address_that_others_reach_needs_keys() -> None:
    with pytest.raises(ValueError, match="agelens keys add"):
        ServerSettings(host="0.0.0.0")


# --- what it gives --------------------------------------------------------------------------------


def test_places_are_those_of_the_store_with_their_own_days(site: Site) -> None:
    told = site.get("/v1/visitors").json()
    museum, shop = told["sites"]

    assert (museum["name"], museum["timezone"]) == ("museum", "America/New_York")
    assert (shop["title"], shop["cameras"]) == ("Shop in the Lange Strasse", ["door", "till"])
    assert shop["today"] == datetime.now(BERLIN).date().isoformat()
    assert {"camera": "till", "zone": "window"} in shop["zones"]
    assert told["pictures"] == ["door", "till"]
    assert not told["live"]


def test_cameras_tell_how_they_are(site: Site, month: Path) -> None:
    door, till = site.get("/v1/visitors/cameras").json()["cameras"]

    assert (door["state"], door["frames_in"], door["dropped"]) == ("running", 900, 3)
    assert door["silent_s"] < 60
    assert (till["state"], till["silent_s"]) == ("down", None)
    assert till["message"] == "no answer for 40 s"
    with served(month, watched=False) as alone:
        assert alone.get("/v1/visitors/cameras").json() == {"watched": False, "cameras": []}
        assert alone.get("/v1/visitors/picture?camera=door").json()["code"] == "unknown_camera"


def test_a_camera_without_a_picture_and_an_unknown_one_say_so(site: Site) -> None:
    none = site.get("/v1/visitors/picture?camera=till")
    unknown = site.get("/v1/visitors/picture?camera=roof")

    assert (none.status_code, none.json()["code"]) == (503, "no_picture")
    assert none.headers["retry-after"] == "5"
    assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_camera")


def counted(month: Path, first: Any, last: Any, site: str) -> int:
    """Visits of a site on these days of its calendar, one by one."""
    period = Period(first, last, BERLIN)
    with open_store(month, read_only=True) as store:
        scope = StoreScope(period.start, period.end, sites=(site,))
        return sum(1 for _ in store.visits(scope))


def test_figures_are_those_of_the_visits(exact: Site, month: Path) -> None:
    asked = f"/v1/visitors/overview?site=shop&first={SATURDAY}&last={SATURDAY}"
    told = exact.get(asked).json()

    assert told["overview"]["visitors"] == counted(month, SATURDAY, SATURDAY, "shop")
    (before,) = [one for one in told["against"] if one["title"].startswith("Friday")]
    friday = SATURDAY - timedelta(days=1)
    assert before["before"] == counted(month, friday, friday, "shop")
    assert told["title"] == "Saturday 8 March 2025"


def test_figures_are_the_same_as_those_of_the_reports(site: Site, month: Path) -> None:
    told = site.get(f"/v1/visitors/overview?site=shop&camera=till&first={SATURDAY}").json()
    with open_store(month, read_only=True) as store:
        found = overview(
            store,
            Period(SATURDAY, SATURDAY, BERLIN),
            selection=Selection(sites=("shop",), cameras=("till",)),
        )

    assert told["overview"]["visitors"] == found.visitors
    assert told["overview"]["hours"] == found.to_dict()["hours"]
    assert all(count is None or count % 5 == 0 for count in
               (hour["visitors"] for hour in told["overview"]["hours"]))  # fmt: skip


def test_the_day_on_which_the_clocks_are_put_on_has_no_hour_two(exact: Site, month: Path) -> None:
    told = exact.get(f"/v1/visitors/overview?site=shop&first={SPRING}").json()["overview"]
    by_hour = {hour["hour"]: hour for hour in told["hours"]}
    period = Period(SPRING, SPRING, BERLIN)
    clock: dict[int, int] = {}
    with open_store(month, read_only=True) as store:
        for visit in store.visits(StoreScope(period.start, period.end, sites=("shop",))):
            hour = visit.start.astimezone(BERLIN).hour
            clock[hour] = clock.get(hour, 0) + 1

    assert by_hour[2]["open_hours"] == 0
    assert sum(hour["open_hours"] for hour in by_hour.values()) == 23
    assert {n: hour["visitors"] for n, hour in by_hour.items() if hour["visitors"]} == clock
    assert any("put forward" in note for note in told["notes"])


def test_a_csv_says_what_the_table_of_its_chart_says(site: Site) -> None:
    query = f"site=shop&first={SATURDAY}"
    charts = site.get(f"/v1/visitors/overview?{query}").json()["charts"]
    assert {"by-hour", "pyramid", "cameras", "zones", "lines"} <= {one["name"] for one in charts}
    for chart in charts:
        answer = site.get(f"/v1/visitors/csv?{query}&chart={chart['name']}")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"] == (
            f'attachment; filename="{chart["name"]}-{SATURDAY}-{SATURDAY}.csv"'
        )
        check_csv(answer.text, chart["head"], chart["rows"])


@pytest.mark.parametrize(
    "query",
    [
        "site=nowhere",
        "site=shop&camera=hall",
        "camera=roof",
        f"first={LAST}&last={FIRST}",
        "first=2024-01-01&last=2025-12-31",
        "first=0001-01-01&last=0001-01-01",
        "first=9999-12-31&last=9999-12-31",
        "first=yesterday",
        "site=shop&site=museum",
        "colour=red",
        "site=",
    ],
)
def test_what_cannot_be_asked_for_is_told(site: Site, query: str) -> None:
    answer = site.get(f"/v1/visitors/overview?{query}")

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_option")


def test_a_chart_that_is_not_there_is_told(site: Site) -> None:
    answer = site.get(f"/v1/visitors/csv?first={SATURDAY}&chart=by-moon")

    assert answer.status_code == 422
    assert "by-hour" in answer.json()["detail"]


def test_a_store_that_cannot_be_read_is_told_without_its_place(month: Path) -> None:
    app = create_site_app(
        ServerSettings(port=0, log_level="error", grace_s=0.4), store=month, zone=BERLIN
    )
    with serve_site(app) as handle:
        app.state.service.visitors.close()
        answer = Site(handle.address).get("/v1/visitors")

    assert (answer.status_code, answer.json()["code"]) == (503, "store_failed")
    assert str(month) not in answer.text


def test_many_who_ask_the_same_cost_one_reading(month: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with served(month) as fresh:
        asked = f"/v1/visitors/overview?site=shop&first={FIRST}&last={LAST}"
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(fresh.get, [asked] * 8))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["overview"]["made_at"] for answer in answers}) == 1


# --- the description ------------------------------------------------------------------------------


def test_it_describes_itself(site: Site) -> None:
    told = site.get("/openapi.json").json()
    paths = told["paths"]
    names = set(told["components"]["schemas"])

    assert "/v1/analyze" not in paths
    assert {f"/v1/visitors{end}" for end in ("", "/overview", "/csv", "/cameras", "/picture")} <= (
        set(paths)
    )
    assert {tag["name"] for tag in told["tags"]} == {"visitors", "about"}
    assert {"PlacesAnswer", "OverviewAnswer", "CamerasAnswer"} <= names
    for path in paths:
        if path.startswith("/v1/visitors"):
            statuses_told = set(paths[path]["get"]["responses"])
            assert {"200", "400", "401", "403", "429", "503"} <= statuses_told, path
            assert paths[path]["get"]["description"], path


# --- with the rest of the service -----------------------------------------------------------------


def test_the_service_shows_a_store_beside_its_other_pages(
    month: Path, start_server: StartServer
) -> None:
    store = ("--set", f"store={month}", "--set", "timezone=Europe/Berlin", "--set", "minimum=1")
    running = start_server("--workers", "1", *store, ready=False)
    asked = f"/v1/visitors/overview?site=shop&first={SATURDAY}"
    told = running.get(asked).json()["overview"]
    page = running.get("/visitors").text
    description = running.get("/openapi.json").json()

    assert told["visitors"] == counted(month, SATURDAY, SATURDAY, "shop")
    assert all(f'href="{path}"' in page for path in ("/", "/gate", "/visitors", "/docs"))
    assert {"/v1/analyze", "/v1/visitors/overview"} <= set(description["paths"])
    assert "/visitors" in running.get("/").text


def test_without_a_store_there_is_nothing_about_visitors(server: RunningServer) -> None:
    assert server.get("/v1/visitors").status_code == 404
    assert server.get("/visitors").status_code == 404
    assert "/visitors" not in server.get("/").text


def test_a_store_that_is_not_there_stops_the_service(tmp_path: Path) -> None:
    outcome = agelens("serve", "--set", f"store={tmp_path / 'none.sqlite'}", "--port", "0")

    assert outcome.status == 2
    assert "no such store" in outcome.err
