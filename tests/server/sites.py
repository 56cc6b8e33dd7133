"""A site with an audience, served from a thread over real HTTP; moments are fed by the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from agelens.analytics.store import open_store
from agelens.server.audience import AudienceHub
from agelens.server.site import SiteHandle, create_site_app, serve_site
from agelens.settings import ServerSettings
from agelens.video.audience import AudiencePlan
from agelens.video.camera import Person
from agelens.video.present import LiveAudience
from agelens.video.rules import RuleBook
from video.moments import moment


@dataclass(frozen=True)
class AudienceSite:
    """A site that is being served.

    Attributes:
        url: Its address, without a slash at the end.
        hub: Takes moments.
        handle: Ends it.
    """

    url: str
    hub: AudienceHub
    handle: SiteHandle

    def see(self, *people: Person) -> None:
        """Let its camera see these people."""
        self.hub.publish(moment(people))

    @property
    def websocket(self) -> str:
        return self.url.replace("http", "ws") + "/v1/audience/stream"


@contextmanager
def audience_site(
    folder: Path,
    *,
    plan: AudiencePlan | None = None,
    book: RuleBook | None = None,
    **settings: object,
) -> Iterator[AudienceSite]:
    """Serve a site with an empty store.

    Args:
        folder: Takes the store.
        plan: What counts; by default a camera is believed for a minute.
        book: The rules.
        **settings: Of the server.
    """
    store = folder / "visits.sqlite"
    open_store(store).close()
    live = LiveAudience(plan or AudiencePlan(forget_s=60), site="shop", book=book)
    given = {"port": 0, "log_level": "error", "grace_s": 0.4, **settings}
    hub = AudienceHub(live)
    app = create_site_app(
        ServerSettings(**given),  # type: ignore[arg-type]
        store=store,
        zone=ZoneInfo("UTC"),
        audience=hub,
    )
    with live, serve_site(app) as handle:
        yield AudienceSite(handle.address, hub, handle)


def blocks(text: str) -> Sequence[dict[str, str]]:
    """Server-sent events in a text, by field; comments stand under ""."""
    return [
        dict(
            (line.split(": ", 1) if line[0] != ":" else ["", line[2:]]) for line in one.split("\n")
        )
        for one in text.split("\n\n")
        if one
    ]
