"""Plans: read from TOML as they are meant, written back, and refused with what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agelens.errors import ArgumentError
from agelens.toml import checked_table
from agelens.video.attention import AttentionRules
from agelens.video.audience import AudiencePlan, GroupRule
from agelens.video.frames import SourceOptions
from agelens.video.mqtt import MqttPlan
from agelens.video.plan import (
    CameraPlan,
    StaffRules,
    WatchPlan,
    camera_name,
    plan_toml,
    read_plan,
    system_timezone,
)
from agelens.video.zones import Line, Zone

WHOLE = """
site = "museum"
timezone = "Europe/Berlin"
store = "postgresql://museum@db.example/visits"
retention_days = 30
minimum = 10
gender = false

[staff]
zones = ["desk"]
longer_than_s = 7200

[[cameras]]
name = "door"
source = "rtsp://10.0.0.5/stream1"
detections_per_second = 5
min_face = 40
rejoin_s = 4

[cameras.options]
stall_s = 5
backoff_s = [1, 60]

[cameras.attention]
yaw = 30

[[cameras.lines]]
name = "gate"
start = [0.5, 0]
end = [0.5, 1]
in_side = "right"

[[cameras.zones]]
name = "desk"
polygon = [[0, 0], [0.2, 0], [0.2, 1]]
staff = true

[[cameras]]
name = "hall"
source = 0

[[cameras]]
name = "last week"
source = "videos/week.mp4"

[cameras.options]
starts_at = 2026-03-10T09:00:00Z

[audience]
cameras = ["hall"]

[[audience.groups]]
name = "children"
high = 12

[mqtt]
host = "broker.example"
password_file = "secret"
user = "agelens"
tls = true
"""


def meant(folder: Path) -> WatchPlan:
    """What the text above means when it lies in this folder."""
    return WatchPlan(
        site="museum",
        timezone="Europe/Berlin",
        store="postgresql://museum@db.example/visits",
        retention_days=30,
        minimum=10,
        gender=False,
        staff=StaffRules(("desk",), 7200.0),
        cameras=(
            CameraPlan(
                "door",
                "rtsp://10.0.0.5/stream1",
                detections_per_second=5.0,
                min_face=40,
                rejoin_s=4.0,
                options=SourceOptions(stall_s=5.0, backoff_s=(1.0, 60.0)),
                attention=AttentionRules(yaw=30.0),
                lines=(Line("gate", (0.5, 0.0), (0.5, 1.0), "right"),),
                zones=(Zone("desk", ((0.0, 0.0), (0.2, 0.0), (0.2, 1.0)), staff=True),),
            ),
            CameraPlan("hall", 0),
            CameraPlan(
                "last week",
                str(folder / "videos/week.mp4"),
                options=SourceOptions(starts_at=datetime(2026, 3, 10, 9, tzinfo=UTC)),
            ),
        ),
        audience=AudiencePlan(cameras=("hall",), groups=(GroupRule("children", high=12),)),
        mqtt=MqttPlan(
            "broker.example", user="agelens", password_file=str(folder / "secret"), tls=True
        ),
    )


def written(folder: Path, text: str) -> Path:
    path = folder / "watch.toml"
    path.write_text(text)
    return path


def test_a_plan_is_read_as_it_is_meant_with_its_paths_from_its_own_folder(tmp_path: Path) -> None:
    assert read_plan(written(tmp_path, WHOLE)) == meant(tmp_path)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    plan = meant(tmp_path)

    assert read_plan(written(tmp_path, plan_toml(plan))) == plan


def test_what_is_as_by_default_is_not_written() -> None:
    assert plan_toml(WatchPlan(cameras=(CameraPlan("door", "door.mp4"),))) == (
        '[[cameras]]\nname = "door"\nsource = "door.mp4"\n'
    )


def test_the_store_of_a_plan_lies_beside_it(tmp_path: Path) -> None:
    text = '[[cameras]]\nname = "a"\nsource = "a.mp4"\n'

    assert read_plan(written(tmp_path, text)).store == str(tmp_path / "visits.sqlite")


CAMERA = '[[cameras]]\nname = "a"\nsource = "a.mp4"\n'
REFUSED = {
    "a misspelt key": (f"{CAMERA}min_fase = 3", "cameras.0.min_fase: unknown key; did you mean"),
    "a misspelt key of a line": (
        f'{CAMERA}[[cameras.lines]]\nname = "g"\nstart = [0, 0]\nend = [1, 1]\nin_sid = "left"',
        "cameras.0.lines.0.in_sid: unknown key; did you mean cameras.0.lines.0.in_side",
    ),
    "a misspelt key of the source": (
        f"{CAMERA}[cameras.options]\nstal_s = 3",
        "cameras.0.options.stal_s: unknown key; did you mean cameras.0.options.stall_s",
    ),
    "a misspelt table": (f"{CAMERA}[staf]\nzones = []", "staf: unknown key; did you mean staff"),
    "text for a number": (f'{CAMERA}min_face = "40"', "cameras.0.min_face: expected a whole"),
    "a line outside": (
        f'{CAMERA}[[cameras.lines]]\nname = "g"\nstart = [0, 0]\nend = [640, 360]',
        "cameras.0.lines.0: line 'g': point 2 is",
    ),
    "no camera": ('site = "a"', "cameras: missing"),
    "two cameras of one name": (CAMERA + CAMERA, "cameras: the name 'a' is given twice"),
    "staff in a zone that is not there": (
        f'{CAMERA}[staff]\nzones = ["till"]',
        "no camera has a zone 'till'; there are none",
    ),
    "an audience of an unknown camera": (
        f'{CAMERA}[audience]\ncameras = ["b"]',
        "there is no camera 'b'; there are a",
    ),
    "too many detections": (
        f"{CAMERA}detections_per_second = 1000",
        "camera a: detections_per_second must be 0.1 to 60, got 1000",
    ),
    "no TOML": ("cameras = [", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "complaint"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_plan_is_refused_with_the_file_and_the_key(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ArgumentError) as refused:
        read_plan(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert complaint in str(refused.value)


def test_all_faults_of_a_plan_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, f"{CAMERA}min_face = true\nreoin_s = 3\n[mqtt]\n")

    with pytest.raises(ArgumentError) as refused:
        read_plan(path)
    assert len(str(refused.value).splitlines()) == 3


def test_a_plan_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no such plan; give the path of a TOML file"):
        read_plan(tmp_path / "none.toml")


WRONG: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "an empty name": (CameraPlan, {"name": "", "source": "a.mp4"}),
    "a name of two lines": (CameraPlan, {"name": "a\nb", "source": "a.mp4"}),
    "an empty source": (CameraPlan, {"name": "a", "source": ""}),
    "yes for a source": (CameraPlan, {"name": "a", "source": True}),
    "staff after nothing": (StaffRules, {"longer_than_s": 0.0}),
    "no site": (WatchPlan, {"cameras": (CameraPlan("a", 0),), "site": ""}),
    "no store": (WatchPlan, {"cameras": (CameraPlan("a", 0),), "store": ""}),
    "a day less than none": (WatchPlan, {"cameras": (CameraPlan("a", 0),), "retention_days": -1}),
}


@pytest.mark.parametrize(("kind", "values"), WRONG.values(), ids=WRONG)
def test_values_out_of_range_are_refused(kind: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        kind(**values)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("videos/door.mp4", "door"),
        ("videos/door/", "door"),
        (2, "webcam 2"),
        ("rtsp://user:secret@cam1.local:554/stream/1", "cam1.local stream 1"),
        ("http://10.0.0.5", "10.0.0.5"),
    ],
)
def test_a_source_without_a_name_gets_one_that_holds_no_secret(
    source: str | int, name: str
) -> None:
    assert camera_name(source) == name


@pytest.fixture
def zone_of_this_computer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone_of_this_computer")
def test_the_time_zone_is_that_of_the_variable_tz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", ":Asia/Kolkata")

    assert system_timezone() == "Asia/Kolkata"


def test_without_the_variable_the_time_zone_is_that_of_the_clock_of_this_computer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from zoneinfo import ZoneInfo

    monkeypatch.delenv("TZ", raising=False)
    now = datetime.now(UTC)

    assert now.astimezone(ZoneInfo(system_timezone())).utcoffset() == now.astimezone().utcoffset()


def test_a_database_url_is_not_in_what_a_plan_prints() -> None:
    plan = WatchPlan(cameras=(CameraPlan("a", 0),), store="postgresql://me:secret@db/visits")

    assert "secret" not in repr(plan)


def test_a_dataclass_is_checked_as_a_table_is() -> None:
    with pytest.raises(ArgumentError, match=r"^here: cameras.0: expected a table, found 3"):
        checked_table(WatchPlan, {"cameras": [3]}, "here")


def test_the_example_of_the_reference_is_a_plan(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/reference/watch-plan.md"
    if not page.exists():
        pytest.skip("the pages are not here")
    text = page.read_text("utf-8").split("```toml\n")[1].split("```")[0]

    assert read_plan(written(tmp_path, text)).cameras
    assert str(tmp_path) in read_plan(written(tmp_path, text)).store
