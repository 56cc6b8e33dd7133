from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from agelens.errors import ArgumentError
from agelens.video.audience import AudiencePlan, AudienceState, GroupRule, GroupShare
from agelens.video.mqtt import MqttPlan
from agelens.video.rules import (
    Group,
    GroupCondition,
    Playlist,
    Rule,
    RuleBook,
    Showing,
    Slot,
    shipped_rule_books,
)
from video.moments import NOON

HEAD = """
schema = "agelens.audience-rules/1"
fallback = "house"
minimum_s = 8
steady_s = 1
release_s = 2
[slots.house]
title = "Welcome"
[slots.family]
title = "For families"
[slots.crowd]
title = "Upstairs"
[groups.children]
ages = [0, 12]
"""
CHILD = """
[[rules]]
slot = "family"
[[rules.groups]]
group = "children"
count_from = 1
confidence = 0.8
"""


def book(rules: str, head: str = HEAD) -> RuleBook:
    return RuleBook.parse(head + rules, "rules.toml")


def state(
    people: int = 1, *, children: Sequence[float | None] = (), attentive: int | None = None
) -> AudienceState:
    """People of whom some are children with these probabilities, the others not."""
    people = max(people, len(children))
    chances = [*children, *[0.0] * (people - len(children))]
    return AudienceState(
        NOON,
        cameras=1,
        people=people,
        attentive=people if attentive is None else attentive,
        groups=(GroupShare.of("children", chances),),
        age_s=0.0,
    )


BLIND = AudienceState(NOON)
NOBODY = state(0)
CERTAIN_CHILD = state(children=[0.95])


def played(
    rules: RuleBook, states: Iterable[AudienceState | None], step_s: float = 0.125
) -> list[Showing]:
    """What is shown at each of evenly spaced moments from noon on."""
    playlist = Playlist(rules)
    return [
        playlist.choose(one, NOON + timedelta(seconds=place * step_s))
        for place, one in enumerate(states)
    ]


def slots(shown: Iterable[Showing]) -> list[str]:
    """The slots one after another, each change once."""
    found: list[str] = []
    for one in shown:
        if not found or found[-1] != one.slot:
            found.append(one.slot)
    return found


def for_seconds(what: AudienceState | None, seconds: float) -> list[AudienceState | None]:
    return [what] * round(seconds / 0.125)


# --- what is chosen -------------------------------------------------------------------------------


def test_the_fallback_is_shown_until_a_rule_holds_and_again_afterwards() -> None:
    shown = played(
        book(CHILD),
        [*for_seconds(NOBODY, 10), *for_seconds(CERTAIN_CHILD, 20), *for_seconds(NOBODY, 20)],
    )

    assert slots(shown) == ["house", "family", "house"]
    assert shown[-1].rule is None
    begun = next(one for one in shown if one.slot == "family")
    assert begun.since == NOON + timedelta(seconds=11)
    assert begun.rule == "rule 1"


def test_the_first_rule_that_holds_goes_before_later_ones() -> None:
    rules = book('[[rules]]\nslot = "crowd"\npeople_from = 5\n' + CHILD)

    both = played(rules, for_seconds(state(6, children=[0.95]), 20))
    child = played(rules, for_seconds(state(2, children=[0.95]), 20))

    assert slots(both) == ["house", "crowd"]
    assert slots(child) == ["house", "family"]


@pytest.mark.parametrize(
    ("condition", "seen", "holds"),
    [
        ("count_from = 1\nconfidence = 0.8", [0.81], True),
        ("count_from = 1\nconfidence = 0.8", [0.79], False),
        # 1 - 0.5 * 0.5 * 0.5 = 0.875
        ("count_from = 1\nconfidence = 0.8", [0.5, 0.5, 0.5], True),
        ("count_from = 2\nconfidence = 0.8", [0.95, 0.5], False),
        ("count_under = 1\nconfidence = 0.9", [0.05, 0.04], True),
        ("count_under = 1\nconfidence = 0.9", [0.06, 0.06], False),
        # A face that allows no estimate could be a child's, and could be none.
        ("count_under = 1\nconfidence = 0.9", [0.0, None], False),
        ("count_from = 1\nconfidence = 0.1", [0.0, None], False),
        ("share_from = 0.5\nconfidence = 0.8", [0.9, 0.0], True),
        ("share_from = 0.5\nconfidence = 0.8", [0.9, 0.0, 0.0], False),
        ("share_under = 0.5\nconfidence = 0.8", [0.9, 0.0, 0.0], True),
        ("share_from = 0.3\nshare_under = 0.5\nconfidence = 0.8", [0.9, 0.0, 0.0], True),
        ("share_from = 0.3\nshare_under = 0.5\nconfidence = 0.8", [0.9, 0.9, 0.0], False),
        ("share_from = 0.5\ncount_from = 2\nconfidence = 0.6", [0.9, 0.9], True),
        ("share_from = 0.5\ncount_from = 2\nconfidence = 0.6", [0.9, 0.0], False),
    ],
)
def test_a_group_condition_holds_with_the_confidence_that_it_asks_for(
    condition: str, seen: list[float | None], holds: bool
) -> None:
    rules = book(f'[[rules]]\nslot = "family"\n[[rules.groups]]\ngroup = "children"\n{condition}\n')

    shown = played(rules, for_seconds(state(children=seen), 20))

    assert (shown[-1].slot == "family") is holds


@pytest.mark.parametrize(
    ("condition", "seen", "holds"),
    [
        ("people_from = 3", state(3), True),
        ("people_from = 3", state(2), False),
        ("people_to = 0", NOBODY, True),
        ("people_to = 0", BLIND, False),
        ("attentive_from = 1", state(3, attentive=0), False),
        ("attentive_to = 0", state(3, attentive=0), True),
        ("people_from = 2\nattentive_from = 2", state(3, attentive=1), False),
        ('weekdays = ["mon"]', BLIND, True),
        ('weekdays = ["sat", "sun"]', state(3), False),
    ],
)
def test_numbers_of_people_and_days_decide(
    condition: str, seen: AudienceState, holds: bool
) -> None:
    # NOON is on a Monday.
    shown = played(book(f'[[rules]]\nslot = "crowd"\n{condition}\n'), for_seconds(seen, 20))

    assert (shown[-1].slot == "crowd") is holds


@pytest.mark.parametrize(
    ("begin", "end", "moment", "holds"),
    [
        ("16:00", "18:00", "2026-06-01T15:59:59", False),
        ("16:00", "18:00", "2026-06-01T16:00:00", True),
        ("16:00", "18:00", "2026-06-01T17:59:59", True),
        ("16:00", "18:00", "2026-06-01T18:00:00", False),
        ("22:00", "02:00", "2026-06-01T23:00:00", True),
        ("22:00", "02:00", "2026-06-02T01:59:00", True),
        ("22:00", "02:00", "2026-06-02T02:00:00", False),
        ("22:00", "02:00", "2026-06-01T12:00:00", False),
        # The clocks go forward at 02:00 on 29 March and back at 03:00 on 25 October.
        ("03:00", "04:00", "2026-03-29T03:30:00", True),
        ("02:00", "03:00", "2026-10-25T02:30:00", True),
    ],
)
def test_times_of_day_are_those_of_the_site(begin: str, end: str, moment: str, holds: bool) -> None:
    zone = ZoneInfo("Europe/Zurich")
    rules = book(
        f'[[rules]]\nslot = "crowd"\ntime_from = "{begin}"\ntime_to = {end}:00\n'
        "steady_s = 0\nrelease_s = 0\n",
        HEAD.replace("minimum_s = 8", "minimum_s = 0"),
    )
    playlist = Playlist(rules, zone=zone)
    local = datetime.fromisoformat(moment).replace(tzinfo=zone)
    playlist.choose(None, local.astimezone(UTC) - timedelta(seconds=1))

    shown = playlist.choose(None, local.astimezone(UTC))

    assert (shown.slot == "crowd") is holds


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    rule = book(
        '[[rules]]\nslot = "crowd"\ntime_from = "22:00"\ntime_to = "02:00"\nweekdays = ["fri"]\n'
    ).rules[0]
    friday = datetime(2026, 6, 5, tzinfo=UTC)

    assert rule.is_met(None, friday + timedelta(hours=23), slack=0)
    assert rule.is_met(None, friday + timedelta(hours=25), slack=0)
    assert not rule.is_met(None, friday + timedelta(hours=1), slack=0)
    assert not rule.is_met(None, friday + timedelta(hours=47), slack=0)


def test_when_nobody_knows_who_is_there_only_rules_without_people_hold() -> None:
    rules = book('[[rules]]\nslot = "crowd"\npeople_from = 1\n' + CHILD)

    for unknown in (None, BLIND):
        shown = played(rules, [*for_seconds(CERTAIN_CHILD, 20), *for_seconds(unknown, 20)])
        assert slots(shown) == ["house", "crowd", "house"]


# --- how it changes -------------------------------------------------------------------------------

SEEN = st.one_of(
    st.none(),
    st.just(BLIND),
    st.builds(
        lambda people, children: state(people, children=children),
        st.integers(0, 6),
        st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=4),
    ),
)
WATCHED = st.lists(st.tuples(SEEN, st.floats(0.01, 3)), min_size=1, max_size=120)


@st.composite
def books(draw: st.DrawFn, strict: bool = False) -> RuleBook:
    head = HEAD.replace("minimum_s = 8", f"minimum_s = {draw(st.integers(0, 12))}")
    head = head.replace("steady_s = 1", f"steady_s = {draw(st.sampled_from([0, 0.5, 2]))}")
    head = head.replace("release_s = 2", f"release_s = {draw(st.sampled_from([0, 1, 4]))}")
    head = head.replace(
        'title = "Upstairs"', f'title = "Upstairs"\nminimum_s = {draw(st.integers(0, 12))}'
    )
    rules = ""
    for _ in range(draw(st.integers(1, 4))):
        rules += f'[[rules]]\nslot = "{draw(st.sampled_from(["family", "crowd", "house"]))}"\n'
        rules += f"people_from = {draw(st.integers(0, 5))}\n"
        if strict and draw(st.booleans()):
            rules += "strict = true\n"
        if draw(st.booleans()):
            asked = draw(
                st.sampled_from(["count_from = 1", "share_under = 0.5", "count_under = 1"])
            )
            sure = draw(st.sampled_from([0.5, 0.8, 0.95]))
            rules += f'[[rules.groups]]\ngroup = "children"\n{asked}\nconfidence = {sure}\n'
    return book(rules, head)


def watched(
    rules: RuleBook, seen: list[tuple[AudienceState | None, float]]
) -> list[tuple[float, AudienceState | None, Showing]]:
    playlist, now, found = Playlist(rules), 0.0, []
    for one, seconds in seen:
        now += seconds
        found.append((now, one, playlist.choose(one, NOON + timedelta(seconds=now))))
    return found


@settings(max_examples=150, deadline=None)
@given(books(), WATCHED)
def test_nothing_is_left_before_its_least_time(
    rules: RuleBook, seen: list[tuple[AudienceState | None, float]]
) -> None:
    shown = watched(rules, seen)

    begun, slot = shown[0][0], shown[0][2].slot
    for now, _, showing in shown:
        if showing.slot != slot:
            assert now - begun >= rules.least_s(slot) - 1e-4
            begun, slot = now, showing.slot


@settings(max_examples=150, deadline=None)
@given(books(strict=True), WATCHED)
def test_only_what_a_strict_rule_chose_is_left_early_and_only_when_it_fails(
    rules: RuleBook, seen: list[tuple[AudienceState | None, float]]
) -> None:
    shown = watched(rules, seen)

    begun, before = shown[0][0], shown[0][2]
    for now, one, showing in shown:
        if showing.slot != before.slot:
            if now - begun < rules.least_s(before.slot) - 1e-4:
                chose = dict(rules.named_rules)[str(before.rule)]
                assert chose.strict
                assert not chose.is_met(one, NOON, slack=0)
            begun = now
        before = showing


@settings(max_examples=60, deadline=None)
@given(books(strict=True), WATCHED)
def test_the_same_states_at_the_same_times_show_the_same(
    rules: RuleBook, seen: list[tuple[AudienceState | None, float]]
) -> None:
    again = RuleBook.parse(_text_of(rules))

    assert [one[2] for one in watched(rules, seen)] == [one[2] for one in watched(again, seen)]
    assert again.revision == rules.revision


def _text_of(rules: RuleBook) -> str:
    from agelens.toml import toml_text

    return toml_text(
        rules.model_dump(by_alias=True, exclude_defaults=True) | {"schema": rules.version}
    )


@settings(max_examples=80, deadline=None)
@given(st.lists(st.booleans(), min_size=10, max_size=400), st.sampled_from([0.05, 0.125, 0.3]))
def test_noise_that_lasts_less_than_the_rule_waits_for_never_shows(
    noise: list[bool], step_s: float
) -> None:
    """Seen for less than ``steady_s`` at a time, however often: it does not begin to hold."""
    most = int(1 / step_s)
    broken = [on and any(not other for other in noise[max(0, place - most + 1) : place + 1])
              for place, on in enumerate(noise)]  # fmt: skip
    broken[:most] = [False] * len(broken[:most])

    shown = played(book(CHILD), [CERTAIN_CHILD if on else NOBODY for on in broken], step_s)

    assert slots(shown) == ["house"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 15), min_size=1, max_size=60))
def test_short_gaps_do_not_end_what_is_shown(gaps: list[int]) -> None:
    """A face that is missed for under ``release_s`` again and again changes nothing."""
    seen: list[AudienceState | None] = for_seconds(CERTAIN_CHILD, 12)
    for gap in gaps:
        seen += [NOBODY] * gap + [CERTAIN_CHILD]

    shown = played(book(CHILD), seen)

    assert slots(shown) == ["house", "family"]


def test_a_chance_that_wavers_around_the_wanted_confidence_does_not_flicker() -> None:
    wavering = [state(children=[0.8 + 0.09 * (-1) ** (place // 30)]) for place in range(2000)]

    shown = played(book(CHILD), wavering)

    assert slots(shown) == ["house", "family"]


def test_a_strict_rule_leaves_at_once_and_comes_back_after_the_least_time_of_what_replaced_it() -> (
    None
):
    rules = book(
        '[[rules]]\nslot = "crowd"\nstrict = true\npeople_from = 1\n'
        '[[rules.groups]]\ngroup = "children"\ncount_under = 1\nconfidence = 0.9\n'
    )
    adult, child = state(1), state(children=[0.5])
    seen = [*for_seconds(adult, 12), child, *for_seconds(adult, 12)]

    shown = played(rules, seen)

    assert slots(shown) == ["house", "crowd", "house", "crowd"]
    left = 12 * 8
    assert [shown[left - 1].slot, shown[left].slot] == ["crowd", "house"]
    back = next(one for one in shown[left:] if one.slot == "crowd")
    assert back.since - shown[left].since == timedelta(seconds=8)


def test_a_clock_that_is_set_back_neither_hurries_nor_holds_up() -> None:
    playlist = Playlist(book(CHILD))
    hour = timedelta(hours=1)
    playlist.choose(CERTAIN_CHILD, NOON)
    playlist.choose(CERTAIN_CHILD, NOON + timedelta(seconds=5))

    assert playlist.choose(CERTAIN_CHILD, NOON - hour).slot == "house"
    assert playlist.choose(CERTAIN_CHILD, NOON - hour + timedelta(seconds=2.9)).slot == "house"
    assert playlist.choose(CERTAIN_CHILD, NOON - hour + timedelta(seconds=3)).slot == "family"


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_rule_books())
def test_the_rules_that_come_along_can_be_read(name: str) -> None:
    rules = RuleBook.load(name)

    assert rules.fallback in rules.slots
    assert {group.name for group in rules.group_rules()} == set(rules.groups)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fallback =", "rules.toml: not valid TOML: "),
        (
            "",
            "rules.toml: schema: missing\nrules.toml: fallback: missing\n"
            "rules.toml: slots: missing",
        ),
        (
            HEAD + "[slots.garden]\ntitel = 'x'\n",
            "rules.toml: slots.garden.titel: unknown key; did you mean slots.garden.title?",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\npeople_form = 3\n",
            "rules.toml: rules.0.people_form: unknown key; did you mean rules.0.people_from?",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\npeople_from = 'three'\n",
            "rules.toml: rules.0.people_from: expected a whole number, found 'three' (str)",
        ),
        (
            HEAD + "[[rules]]\nslot = 'cellar'\npeople_from = 1\n",
            "rules.toml: rules.0.slot: there is no slot 'cellar'; there are crowd, family, house",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\n[[rules.groups]]\ngroup = 'kids'\ncount_from = 1\n",
            "rules.toml: rules.0.groups.0.group: there is no group 'kids'; there are children",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\n[[rules]]\nslot = 'family'\npeople_from = 1\n",
            "rules.toml: rules.0: it has no condition, so that no rule after it is ever reached",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\npeople_from = 3\npeople_to = 2\n",
            "rules.toml: rules.0: people_from must not be over people_to, got 3 and 2",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\ntime_from = '16:00'\n",
            "rules.toml: rules.0: time_from and time_to go together",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\ntime_from = 'noon'\ntime_to = '18:00'\n",
            "rules.toml: rules.0.time_from: ",
        ),
        (
            HEAD + "[[rules]]\nslot = 'crowd'\n[[rules.groups]]\ngroup = 'children'\n",
            "rules.toml: rules.0.groups.0: group children: nothing is asked of it",
        ),
        (
            HEAD.replace("[0, 12]", "[12, 0]"),
            "rules.toml: groups.children: ages must be the youngest and the oldest within 0..100",
        ),
        (
            HEAD.replace('fallback = "house"', 'fallback = "home"'),
            "rules.toml: fallback: there is no slot 'home'; there are crowd, family, house",
        ),
        (
            'timezone = "Mars/Olympus"' + HEAD,
            "rules.toml: timezone: there is no zone 'Mars/Olympus'; give an IANA name",
        ),
        (
            HEAD + "[slots.'a b']\n",
            "rules.toml: slots: 'a b' is no name; use letters, digits, - and _",
        ),
        (
            HEAD + "[[rules]]\nname = 'x'\nslot = 'crowd'\npeople_from = 1\n" * 2,
            "rules.toml: rules: two are called 'x'",
        ),
        (
            HEAD.replace('title = "Upstairs"', 'image = "up.jpg"'),
            "rules.toml: slots.crowd.image: rules without a folder have no pictures",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_key(text: str, message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        RuleBook.parse(text, "rules.toml")

    assert str(refused.value).startswith(message)


def test_pictures_lie_beside_the_rules(tmp_path: Path) -> None:
    text = HEAD.replace('title = "Upstairs"', 'image = "pictures/up.png"')
    file = tmp_path / "rules.toml"
    file.write_text(text)

    with pytest.raises(ArgumentError, match=r"slots\.crowd\.image: there is no file .*up\.png"):
        RuleBook.load(file)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "up.png")

    rules = RuleBook.load(file)

    assert rules.image_path("crowd") == tmp_path / "pictures" / "up.png"
    assert rules.image_path("house") is None
    assert rules.image_path("cellar") is None
    assert rules.slots_dict()["slots"]["crowd"]["has_image"] is True
    assert "pictures" not in str(rules.slots_dict())


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "up.svg").write_text("<svg/>")
    file = tmp_path / "rules.toml"
    file.write_text(HEAD.replace('title = "Upstairs"', 'image = "up.svg"'))

    with pytest.raises(ArgumentError, match=r"expected a file \.jpg, \.jpeg, \.png, \.webp"):
        RuleBook.load(file)


# --- the pages about it ---------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


def test_the_rules_of_the_guide_can_be_used() -> None:
    page = (DOCS / "how-to" / "adaptive-content.md").read_text("utf-8")
    (text,) = [t for t in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "schema" in t]

    rules = RuleBook.parse(text, "guide")

    assert rules.named_rules[0][0] == "many people"


@pytest.mark.parametrize(
    "model", [RuleBook, Slot, Group, Rule, GroupCondition, AudiencePlan, GroupRule, MqttPlan]
)
def test_every_key_stands_on_the_page_of_reference(model: type) -> None:
    page = (DOCS / "reference" / "audience.md").read_text("utf-8")
    if issubclass(model, BaseModel):
        keys = [field.alias or name for name, field in model.model_fields.items()]
    else:
        assert is_dataclass(model)
        keys = [field.name for field in fields(model)]

    assert [key for key in keys if not re.search(rf"`{key}\b", page)] == []
