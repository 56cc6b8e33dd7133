from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agelens.errors import ArgumentError
from agelens.video.audience import AudiencePlan
from agelens.video.present import AudienceEvent, LiveAudience
from agelens.video.rules import RuleBook
from video.moments import moment, person

RULES = """
schema = "agelens.audience-rules/1"
fallback = "house"
minimum_s = 0
steady_s = 0
release_s = 0
[slots.house]
[slots.crowd]
[[rules]]
name = "many"
slot = "crowd"
people_from = 3
"""


@contextmanager
def listening(
    live: LiveAudience,
) -> Iterator[queue.SimpleQueue[AudienceEvent]]:
    heard: queue.SimpleQueue[AudienceEvent] = queue.SimpleQueue()
    live.listen(heard.put)
    with live:
        yield heard


def people(event: AudienceEvent) -> int:
    return event.state.people


def heard_with(heard: queue.SimpleQueue[AudienceEvent], count: int) -> AudienceEvent:
    """The next event with so many people."""
    while True:
        event = heard.get(timeout=5)
        if people(event) == count:
            return event


def test_a_moment_is_told_at_once_with_what_the_rules_choose() -> None:
    live = LiveAudience(AudiencePlan(), site="shop", book=RuleBook.parse(RULES))
    with listening(live) as heard:
        live.add(moment([person()] * 3))
        begun = time.monotonic()
        event = heard_with(heard, 3)
        passed = time.monotonic() - begun

    assert passed < 0.3
    assert event.showing is not None
    assert (event.showing.slot, event.showing.rule) == ("crowd", "many")
    assert event.to_dict()["site"] == "shop"
    assert live.newest() == event


def test_of_moments_that_come_too_fast_only_the_newest_is_told() -> None:
    live = LiveAudience(AudiencePlan(), site="shop")
    with listening(live) as heard:
        begun = time.monotonic()
        for count in range(500):
            live.add(moment([person()] * (count % 7 + 1)))
        live.add(moment([person()] * 9))
        heard_with(heard, 9)
        passed = time.monotonic() - begun

    assert heard.qsize() == 0
    assert int(live.newest().id.rsplit("-")[1]) <= 2 + 10 * passed


def test_a_camera_that_falls_silent_is_told_without_a_moment() -> None:
    live = LiveAudience(AudiencePlan(forget_s=0.3), site="shop", book=RuleBook.parse(RULES))
    with listening(live) as heard:
        live.add(moment([person()] * 3))
        assert not heard_with(heard, 3).state.is_blind
        event = heard_with(heard, 0)

    assert event.state.is_blind
    assert event.showing is not None
    assert event.showing.slot == "house"


def test_nothing_new_is_not_told_again_and_again() -> None:
    live = LiveAudience(AudiencePlan(), site="shop")
    with listening(live) as heard:
        for _ in range(10):
            live.add(moment([person()]))
            time.sleep(0.05)
        time.sleep(0.2)

    assert heard.qsize() == 1


def test_cameras_of_many_threads_are_one_sequence_with_rising_numbers() -> None:
    live = LiveAudience(AudiencePlan(), site="shop")

    def camera(name: str, count: int) -> None:
        for turn in range(40):
            live.add(moment([person()] * (count + turn % 2), camera=name))
            time.sleep(0.005)
        live.add(moment([person()] * count, camera=name))

    with listening(live) as heard:
        threads = [threading.Thread(target=camera, args=(f"camera {n}", n + 1)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.3)

    events = [heard.get() for _ in range(heard.qsize())]
    numbers = [int(event.id.rsplit("-")[1]) for event in events]
    assert numbers == sorted(set(numbers))
    assert len({event.id.rsplit("-")[0] for event in events}) == 1
    assert (events[-1].state.cameras, people(events[-1])) == (3, 6)


def test_who_no_longer_listens_is_told_nothing() -> None:
    live = LiveAudience(AudiencePlan(), site="shop")
    heard: queue.SimpleQueue[AudienceEvent] = queue.SimpleQueue()
    stop = live.listen(heard.put)
    with live:
        live.add(moment([person()]))
        heard_with(heard, 1)
        stop()
        live.add(moment([person()] * 2))
        time.sleep(0.3)

    assert heard.qsize() == 0


def test_rules_that_cannot_be_used_are_refused_at_once() -> None:
    with pytest.raises(ArgumentError, match="no such file of rules"):
        LiveAudience(AudiencePlan(rules="nowhere.toml"), site="shop")
