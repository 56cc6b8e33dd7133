"""
What is watched, and how: cameras, their lines and zones, who is staff, and where visits go.

    WatchPlan             one site; a TOML file, or the options of ``agelens watch``
    ├── cameras           CameraPlan: a source, its lines and zones, and how faces are followed
    ├── staff             StaffRules
    ├── audience          AudiencePlan: what is said of those who are in front of a screen now
    └── mqtt              MqttPlan: to which broker
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import ConfigDict

from agelens.detection import DEFAULT_MIN_FACE
from agelens.errors import ArgumentError
from agelens.toml import checked_table, parsed_toml, toml_file_text, toml_text
from agelens.video.attention import AttentionRules
from agelens.video.audience import AudiencePlan
from agelens.video.frames import SourceOptions
from agelens.video.mqtt import MqttPlan
from agelens.video.zones import Line, Zone

DEFAULT_SITE: Final = "here"
DEFAULT_STORE: Final = "visits.sqlite"
_LONGEST_NAME: Final = 200


@dataclass(frozen=True)
class StaffRules:
    """Who is held for staff, without any stored appearance.

    Attributes:
        zones: Names of zones, of any camera, that only staff enters; beside those with
            ``Zone.staff``.
        longer_than_s: Whoever is in view longer is staff; None: nobody by that.
    """

    zones: tuple[str, ...] = ()
    longer_than_s: float | None = None

    def __post_init__(self) -> None:
        if self.longer_than_s is not None:
            _require_number(self, "longer_than_s", 1, 86_400)


@dataclass(frozen=True)
class CameraPlan:
    """One camera or video.

    Attributes:
        name: One of its kind at the site; visits are stored under it.
        source: Path of a video or a folder, rtsp:// or http(s):// address, or the number of a
            webcam.
        detections_per_second: How often faces are looked for; frames between are skipped.
        min_face: Smallest face that is looked for, pixels of the picture.
        lines: Lines whose crossings are counted.
        zones: Zones whose stays are counted.
        options: How the source is opened.
        rejoin_s: A person who is lost and seen again within this time, where and as fast as
            expected, goes on with the same visit.
        attention: When a face counts as turned to the screen.
    """

    name: str
    source: str | int
    detections_per_second: float = 8.0
    min_face: int = DEFAULT_MIN_FACE
    lines: tuple[Line, ...] = ()
    zones: tuple[Zone, ...] = ()
    options: SourceOptions = field(default_factory=SourceOptions)
    rejoin_s: float = 10.0
    attention: AttentionRules = field(default_factory=AttentionRules)

    def __post_init__(self) -> None:
        _require_name(self.name, "a camera")
        where = f"camera {self.name}: "
        if isinstance(self.source, bool) or self.source == "":
            raise ArgumentError(f"{where}source is empty; give a path or an address")
        _require_number(self, "detections_per_second", 0.1, 60, where)
        _require_number(self, "min_face", 8, 4096, where)
        _require_number(self, "rejoin_s", 0, 600, where)
        for what, named in (("lines", self.lines), ("zones", self.zones)):
            _require_different([one.name for one in named], f"{where}{what}")


@dataclass(frozen=True)
class WatchPlan:
    """One site: what is watched, and where visits go.

    Attributes:
        cameras: One or more, with different names.
        site: Name of the place; visits are stored under it.
        timezone: Name of the site's time zone, as "Europe/Berlin"; None: the one that the store
            has noted, or this computer's.
        store: File for SQLite, or postgresql:// URL.
        staff: Who is held for staff.
        retention_days: Visits older than so many whole days are deleted; None keeps them.
        minimum: Fewest visitors of a cell that retention keeps and pages show; None: as by default
            (``suppression.DEFAULT_MINIMUM``).
        model: As for ``AnalyzerOptions``.
        detector: As for ``AnalyzerOptions``.
        gender: False switches the gender estimate off.
        accept_licence: Use a model licensed for research only.
        audience: What is said of those in front of a screen; None: nothing.
        mqtt: The broker that it is said to; None: to none.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    cameras: tuple[CameraPlan, ...]
    site: str = DEFAULT_SITE
    timezone: str | None = None
    store: str = field(default=DEFAULT_STORE, repr=False)
    staff: StaffRules = field(default_factory=StaffRules)
    retention_days: int | None = None
    minimum: int | None = None
    model: str = "default"
    detector: str = "default"
    gender: bool = True
    accept_licence: bool = False
    audience: AudiencePlan | None = None
    mqtt: MqttPlan | None = None

    def __post_init__(self) -> None:
        _require_name(self.site, "a site")
        if not self.cameras:
            raise ArgumentError("there is no camera to watch; add [[cameras]]")
        names = [camera.name for camera in self.cameras]
        _require_different(names, "cameras")
        if not self.store:
            raise ArgumentError("store is empty; give a file or a postgresql:// URL")
        if self.retention_days is not None:
            _require_number(self, "retention_days", 0, 36_500)
        if self.minimum is not None:
            _require_number(self, "minimum", 1, 1000)
        zones = [zone.name for camera in self.cameras for zone in camera.zones]
        _require_known(self.staff.zones, zones, "staff.zones: no camera has a zone")
        if self.audience is not None:
            _require_known(self.audience.cameras, names, "audience.cameras: there is no camera")
            _require_known(self.audience.zones, zones, "audience.zones: no camera has a zone")


def system_timezone() -> str:
    """Name of this computer's time zone; "UTC" where it does not say."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named == "UTC" or ("/" in named and not named.startswith("/")):
        return named
    _, mark, name = os.path.realpath("/etc/localtime").partition("zoneinfo/")
    if mark:
        return name
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path("/etc/timezone").read_text("utf-8").strip() or "UTC"
    return "UTC"


# --- files ----------------------------------------------------------------------------------------

_NOUN: Final = "plan"


def read_plan(path: str | Path) -> WatchPlan:
    """Read a plan.

    Args:
        path: A TOML file; relative paths in it are taken from its folder.

    Raises:
        ArgumentError: There is no such file, it is not TOML, or a key or value is wrong; a line
            for each.
    """
    where = str(path)
    table = parsed_toml(toml_file_text(path, _NOUN), where)
    plan = checked_table(WatchPlan, table, where)
    return _from_folder(plan, Path(path).expanduser().absolute().parent)


def plan_toml(plan: WatchPlan) -> str:
    """The plan as TOML that ``read_plan`` reads back; what is as by default is left out."""
    return toml_text(_changed(plan))


def camera_name(source: str | int) -> str:
    """What a source is called that was given no name.

    >>> camera_name("videos/door.mp4"), camera_name("rtsp://user:secret@cam1.local:554/stream1")
    ('door', 'cam1.local stream1')
    """
    if isinstance(source, int):
        return f"webcam {source}"
    if is_address(source):
        parts = urlsplit(source)
        return " ".join([parts.hostname or parts.scheme, *parts.path.strip("/").split("/")]).strip()
    return Path(source).absolute().stem


def is_address(text: str) -> bool:
    """Whether this is a URL rather than a path."""
    return "://" in text


def _from_folder(plan: WatchPlan, folder: Path) -> WatchPlan:
    """The plan with its relative paths taken from a folder."""

    def found(path: str) -> str:
        return path if is_address(path) else str(folder / Path(path).expanduser())

    cameras = tuple(
        replace(one, source=found(one.source)) if isinstance(one.source, str) else one
        for one in plan.cameras
    )
    audience, mqtt = plan.audience, plan.mqtt
    if audience is not None and audience.rules is not None:
        rules = found(audience.rules)
        # What is no file there may be the name of rules that come with AgeLens.
        audience = replace(audience, rules=rules if os.path.exists(rules) else audience.rules)
    if mqtt is not None:
        files = {name: getattr(mqtt, name) for name in _MQTT_FILES}
        given: dict[str, Any] = {name: found(path) for name, path in files.items() if path}
        mqtt = replace(mqtt, **given)
    return replace(plan, cameras=cameras, store=found(plan.store), audience=audience, mqtt=mqtt)


_MQTT_FILES: Final = ("password_file", "ca", "certificate", "key")


def _changed(part: Any) -> dict[str, Any]:
    """What differs from the defaults, as plain values."""
    found = {}
    for one in fields(part):
        value = getattr(part, one.name)
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if value != default:
            found[one.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _changed(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


# --- checks ---------------------------------------------------------------------------------------


def _require_name(name: str, what: str) -> None:
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ArgumentError(
            f"{what} needs a name of 1 to {_LONGEST_NAME} printable characters, got {name!r}"
        )


def _require_number(owner: object, name: str, low: float, high: float, where: str = "") -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
        raise ArgumentError(f"{where}{name} must be {low:g} to {high:g}, got {value!r}")


def _require_different(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(f"{what}: the name {twice[0]!r} is given twice; give each its own")


def _require_known(names: Sequence[str], known: Sequence[str], complaint: str) -> None:
    for name in names:
        if name not in known:
            there = ", ".join(sorted(set(known))) or "none"
            raise ArgumentError(f"{complaint} {name!r}; there are {there}")
