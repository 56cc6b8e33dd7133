"""A site with a month of visits and two cameras, served from a thread over real HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx2
from PIL import Image

from agelens.analytics.watching import CameraStatus
from agelens.server.site import create_site_app, serve_site
from agelens.settings import ServerSettings
from server.visitors_month import BERLIN


def picture() -> bytes:
    """A picture of 1280 x 720, as JPEG."""
    taken = io.BytesIO()
    Image.linear_gradient("L").resize((1280, 720)).convert("RGB").save(taken, "JPEG")
    return taken.getvalue()


JPEG: Final = picture()


def statuses() -> tuple[CameraStatus, ...]:
    """One camera that runs, and one that does not come back."""
    return (
        CameraStatus(
            "shop", "door", "rtsp://camera/1", "running", is_live=True, frames_in=900,
            dropped=3, reconnects=1, last_frame_at=datetime.now(UTC), width=1280, height=720,
        ),
        CameraStatus("shop", "till", "rtsp://camera/2", "down", message="no answer for 40 s"),
    )  # fmt: skip


def snapshot(camera: str) -> bytes | None:
    """The door has a picture; the till is down."""
    return JPEG if camera == "door" else None


@dataclass(frozen=True)
class Site:
    """A site that is being served."""

    url: str
    key: str | None = None

    def get(self, path: str, *, key: str | None = None, **options: Any) -> httpx2.Response:
        """One GET, with a key where there is one."""
        used = key or self.key
        headers = {**options.pop("headers", {})}
        if used is not None:
            headers["authorization"] = f"Bearer {used}"
        return httpx2.get(self.url + path, headers=headers, timeout=30, **options)


@contextmanager
def served(store: Path, *, watched: bool = True, **settings: Any) -> Iterator[Site]:
    """Serve a site with two cameras, or with a store alone."""
    given = {"port": 0, "log_level": "error", "grace_s": 0.4, **settings}
    app = create_site_app(
        ServerSettings(**given),
        store=store,
        zone=BERLIN,
        statuses=statuses if watched else None,
        snapshot=snapshot if watched else None,
    )
    with serve_site(app) as handle:
        yield Site(handle.address)
