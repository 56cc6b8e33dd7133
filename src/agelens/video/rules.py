"""
Rules: which content is on the screen, by who is there; with a least time, and no flicker.

    RuleBook         a TOML file: slots of content, groups, rules in the order of their rank
    ├── Slot         one piece of content
    └── Rule         conditions that must all hold, and the slot that they choose
    Playlist         the book over time: each state -> Showing

The first rule that holds chooses; without one the fallback is shown. A rule begins to hold when
its conditions were met for ``steady_s``, and ends when they failed for ``release_s`` even with the
wanted confidence lowered by ``slack``. Whatever is shown stays for ``minimum_s``, but for slots
that ``strict`` rules chose: they leave as soon as their conditions fail.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agelens.errors import ArgumentError
from agelens.results import AGE_COUNT
from agelens.toml import TomlFolder, checked_table, parsed_toml
from agelens.video.audience import AudienceState, GroupGender, GroupRule, GroupShare
from agelens.video.visit import whole_milliseconds

SCHEMA: Final = "agelens.audience-rules/1"
IMAGE_TYPES: Final[Mapping[str, str]] = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
"""What a slot's picture may be, by the ending of its name."""

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Theme = Literal["plain", "calm", "warm", "fresh", "bold", "night"]

_FILES: Final = TomlFolder("agelens.video", "rulebooks", "file of rules")
_WEEKDAYS: Final[tuple[Weekday, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LARGEST_IMAGE: Final = 20 * 1024 * 1024
_MOST_RULES: Final = 200

Seconds = Annotated[float, Field(ge=0, le=86_400)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Slot(_Part):
    """One piece of content.

    Attributes:
        title: In large letters; also what a player of its own may know the content by.
        text: Under it.
        theme: Look of the demonstration page.
        image: Picture behind the words: a file relative to the rules.
        minimum_s: Least time on the screen; None takes the book's.
    """

    title: str = Field(default="", max_length=200)
    text: str = Field(default="", max_length=1000)
    theme: Theme = "plain"
    image: str | None = None
    minimum_s: Seconds | None = None


class Group(_Part):
    """People that rules speak of.

    Attributes:
        ages: Youngest and oldest age in completed years, both included.
        gender: "any", or how the face has to be perceived.
    """

    ages: tuple[int, int] = (0, AGE_COUNT - 1)
    gender: GroupGender = "any"

    @model_validator(mode="after")
    def _ages_rise(self) -> Self:
        low, high = self.ages
        if not 0 <= low <= high < AGE_COUNT:
            raise ValueError(
                f"ages must be the youngest and the oldest within 0..{AGE_COUNT - 1}, "
                f"got {list(self.ages)}"
            )
        return self


class GroupCondition(_Part):
    """What must be so of a group, and how surely.

    Whoever's face allows no estimate speaks against the condition.

    Attributes:
        group: Its name.
        share_from: Least share of all people, 0..1.
        share_under: Share that must not be reached.
        count_from: Fewest people of it.
        count_under: Number of people that must not be reached: 1 for nobody.
        confidence: Least probability that all this is so.
    """

    group: str
    share_from: Share | None = None
    share_under: Share | None = None
    count_from: Count | None = None
    count_under: Count | None = None
    confidence: Share = 0.8

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if {self.share_from, self.share_under, self.count_from, self.count_under} == {None}:
            raise ValueError(
                f"group {self.group}: nothing is asked of it; "
                "give share_from, share_under, count_from or count_under"
            )
        for kind in ("share", "count"):
            low, high = getattr(self, f"{kind}_from"), getattr(self, f"{kind}_under")
            if low is not None and high is not None and low >= high:
                raise ValueError(
                    f"group {self.group}: {kind}_from must be under {kind}_under, "
                    f"got {low} and {high}"
                )
        return self

    def chance(self, share: GroupShare) -> float:
        """Probability that it is so: the least of that of its shares and of its counts."""
        shares = counts = 1.0
        if (self.share_from, self.share_under) != (None, None):
            shares = share.chance_of_share(at_least=self.share_from, under=self.share_under)
        if (self.count_from, self.count_under) != (None, None):
            counts = share.chance_of_count(at_least=self.count_from, under=self.count_under)
        return min(shares, counts)


class Rule(_Part):
    """Conditions, all of which must hold, and what is then shown.

    Attributes:
        slot: Name of the slot.
        name: What it is called in events; None takes "rule" and its place from 1.
        people_from: Fewest people in view.
        people_to: Most people.
        attentive_from: Fewest who look at the screen.
        attentive_to: Most who look.
        groups: What must be so of groups.
        time_from: Time of day from which it may hold, "16:00", in the site's zone.
        time_to: Time of day from which it may not; earlier than ``time_from`` is the day after.
        weekdays: Days on which it may hold; a night counts to the day on which it begins.
        steady_s: As the book's, for this rule.
        release_s: As the book's, for this rule.
        strict: Leave its slot at once when the conditions fail, before the least time and without
            slack; for content that some must not see.
    """

    slot: str
    name: str | None = Field(default=None, min_length=1, max_length=80)
    people_from: Count | None = None
    people_to: Count | None = None
    attentive_from: Count | None = None
    attentive_to: Count | None = None
    groups: tuple[GroupCondition, ...] = ()
    time_from: dt.time | None = None
    time_to: dt.time | None = None
    weekdays: tuple[Weekday, ...] = ()
    steady_s: Seconds | None = None
    release_s: Seconds | None = None
    strict: bool = False

    @model_validator(mode="after")
    def _can_hold(self) -> Self:
        for kind in ("people", "attentive"):
            low, high = getattr(self, f"{kind}_from"), getattr(self, f"{kind}_to")
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"{kind}_from must not be over {kind}_to, got {low} and {high}; "
                    "the rule could never hold"
                )
        if (self.time_from is None) != (self.time_to is None):
            raise ValueError("time_from and time_to go together; give both or neither")
        if self.time_from is not None and self.time_from == self.time_to:
            raise ValueError("time_from and time_to are the same; leave both out for the whole day")
        if any(one is not None and one.tzinfo is not None for one in self._times):
            raise ValueError("time_from and time_to are in the site's zone; give them without one")
        if self.strict and self.release_s:
            raise ValueError("a strict rule ends at once; leave release_s out")
        return self

    @property
    def _times(self) -> tuple[dt.time | None, dt.time | None]:
        return self.time_from, self.time_to

    @property
    def asks_of_people(self) -> bool:
        """Some of its conditions are about who is there."""
        bounds = (self.people_from, self.people_to, self.attentive_from, self.attentive_to)
        return bool(self.groups) or any(bound is not None for bound in bounds)

    @property
    def asks_nothing(self) -> bool:
        """It always holds."""
        return not self.asks_of_people and self.time_from is None and not self.weekdays

    def is_met(self, state: AudienceState | None, local: dt.datetime, *, slack: float) -> bool:
        """Whether all conditions hold at this moment.

        Args:
            state: Who is there; None, or one without cameras, meets no condition about people.
            local: The moment in the site's zone.
            slack: By how much the wanted confidence is lowered.
        """
        if not self._in_time(local):
            return False
        if not self.asks_of_people:
            return True
        if state is None or state.is_blind:
            return False
        return (
            _within(state.people, self.people_from, self.people_to)
            and _within(state.attentive, self.attentive_from, self.attentive_to)
            and all(self._holds(condition, state, slack) for condition in self.groups)
        )

    def _in_time(self, local: dt.datetime) -> bool:
        day = local.date()
        if self.time_from is not None and self.time_to is not None:
            clock = local.time()
            if self.time_from < self.time_to:
                if not self.time_from <= clock < self.time_to:
                    return False
            elif clock < self.time_to:
                day -= dt.timedelta(days=1)
            elif clock < self.time_from:
                return False
        return not self.weekdays or _WEEKDAYS[day.weekday()] in self.weekdays

    def _holds(self, condition: GroupCondition, state: AudienceState, slack: float) -> bool:
        share = state.group(condition.group)
        if share is None:
            return False
        return condition.chance(share) >= condition.confidence - slack - 1e-9


def _within(value: int, low: int | None, high: int | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


class RuleBook(_Part):
    """A file of rules.

    Attributes:
        version: Key "schema".
        fallback: Slot that is shown when no rule holds, or nobody knows who is there.
        slots: Content by name: letters, digits, "-" and "_".
        groups: Groups by name.
        rules: In the order of their rank, the first first.
        timezone: IANA name of the zone of the times of day; None takes the site's.
        minimum_s: Least time that a slot is shown.
        steady_s: Seconds for which a rule's conditions must be met before it holds.
        release_s: Seconds for which they must fail before it ends.
        slack: By how much the wanted confidence is lowered while a rule holds.
    """

    version: Literal["agelens.audience-rules/1"] = Field(alias="schema")
    fallback: str
    slots: dict[str, Slot]
    groups: dict[str, Group] = {}
    rules: tuple[Rule, ...] = Field(default=(), max_length=_MOST_RULES)
    timezone: str | None = None
    minimum_s: Seconds = 8.0
    steady_s: Seconds = 1.0
    release_s: Seconds = 2.0
    slack: Share = 0.1

    _folder: Path | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        faults = list(self._faults())
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        for kind, names in (("slots", self.slots), ("groups", self.groups)):
            for name in names:
                if _NAME.fullmatch(name) is None:
                    yield f"{kind}: {name!r} is no name; use letters, digits, - and _, at most 64"
        if self.fallback not in self.slots:
            yield f"fallback: there is no slot {self.fallback!r}; there are {_listed(self.slots)}"
        for number, rule in enumerate(self.rules, 1):
            if rule.slot not in self.slots:
                yield (
                    f"rules.{number - 1}.slot: there is no slot {rule.slot!r}; "
                    f"there are {_listed(self.slots)}"
                )
            for place, condition in enumerate(rule.groups):
                if condition.group not in self.groups:
                    yield (
                        f"rules.{number - 1}.groups.{place}.group: there is no group "
                        f"{condition.group!r}; there are {_listed(self.groups)}"
                    )
            if rule.asks_nothing and number < len(self.rules):
                yield (
                    f"rules.{number - 1}: it has no condition, so that no rule after it is ever "
                    "reached; make it the last, or the fallback"
                )
        called = [name for name, _ in self._named()]
        for name in sorted({name for name in called if called.count(name) > 1}):
            yield f"rules: two are called {name!r}"
        if self.timezone is not None and not _is_zone(self.timezone):
            yield (
                f"timezone: there is no zone {self.timezone!r}; give an IANA name, as Europe/Zurich"
            )

    # --- reading ------------------------------------------------------------------------------

    @classmethod
    def load(cls, source: str | Path) -> RuleBook:
        """Read rules.

        Args:
            source: A TOML file, or the name of one that comes with AgeLens.

        Raises:
            ArgumentError: There is no such file, a key is unknown, a value is wrong, or a picture
                is missing; the message names file and key, a line each.
        """
        where, text = _FILES.read(source)
        shipped = str(source) in shipped_rule_books()
        folder = None if shipped else Path(source).expanduser().absolute().parent
        return cls.parse(text, where, folder=folder)

    @classmethod
    def parse(cls, text: str, where: str = "rules", *, folder: Path | None = None) -> RuleBook:
        """Rules from a text.

        Args:
            text: TOML.
            where: What messages begin with.
            folder: Where the pictures lie; without one, slots may have none.

        Raises:
            ArgumentError: As ``load``.
        """
        try:
            book = checked_table(cls, parsed_toml(text, where), where)
        except ArgumentError as error:
            # Several faults of the whole book come as one; each line says where it stands.
            raise ArgumentError(_each_line(str(error), where)) from error
        book._folder = folder
        faults = [f"{where}: {fault}" for fault in book._image_faults()]
        if faults:
            raise ArgumentError("\n".join(faults))
        return book

    def _image_faults(self) -> Iterator[str]:
        for name, slot in self.slots.items():
            if slot.image is None:
                continue
            place = f"slots.{name}.image"
            path = self.image_path(name)
            if path is None:
                yield f"{place}: rules without a folder have no pictures, found {slot.image!r}"
            elif path.suffix.lower() not in IMAGE_TYPES:
                yield f"{place}: expected a file {', '.join(IMAGE_TYPES)}, found {slot.image!r}"
            elif not path.is_file():
                yield f"{place}: there is no file {path}"
            elif path.stat().st_size > _LARGEST_IMAGE:
                yield f"{place}: {path} is larger than {_LARGEST_IMAGE:,} bytes"

    # --- asking -------------------------------------------------------------------------------

    @cached_property
    def revision(self) -> str:
        """Changes with what the book says."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()[:16]

    def group_rules(self) -> tuple[GroupRule, ...]:
        """The groups as the audience takes them."""
        return tuple(
            GroupRule(name, group.ages[0], group.ages[1], group.gender)
            for name, group in self.groups.items()
        )

    def image_path(self, name: str) -> Path | None:
        """File of a slot's picture; None without one."""
        slot = self.slots.get(name)
        if slot is None or slot.image is None or self._folder is None:
            return None
        return self._folder / slot.image

    def least_s(self, name: str) -> float:
        """Least time on the screen of a slot."""
        own = self.slots[name].minimum_s
        return self.minimum_s if own is None else own

    def _named(self) -> tuple[tuple[str, Rule], ...]:
        return tuple((rule.name or f"rule {n}", rule) for n, rule in enumerate(self.rules, 1))

    @cached_property
    def named_rules(self) -> tuple[tuple[str, Rule], ...]:
        """The rules with what each is called."""
        return self._named()

    def slots_dict(self) -> dict[str, Any]:
        """Wire form of the content: what a page needs to show it, and none of the conditions."""
        return {
            "revision": self.revision,
            "fallback": self.fallback,
            "slots": {
                name: {
                    "title": slot.title,
                    "text": slot.text,
                    "theme": slot.theme,
                    "has_image": slot.image is not None,
                }
                for name, slot in self.slots.items()
            },
        }


def shipped_rule_books() -> tuple[str, ...]:
    """Names of the files of rules that come with AgeLens."""
    return _FILES.names()


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _each_line(text: str, where: str) -> str:
    start = f"{where}: "
    return "\n".join(line if line.startswith(start) else start + line for line in text.split("\n"))


# --- over time ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Showing:
    """What is on the screen.

    Attributes:
        slot: Its name.
        rule: The rule that chose it; None for the fallback.
        since: Since when it is shown, in UTC.
    """

    slot: str
    rule: str | None
    since: dt.datetime

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "slot": self.slot,
            "rule": self.rule,
            "since": whole_milliseconds(self.since).isoformat(timespec="milliseconds"),
        }


@dataclass(eq=False)
class _Standing:
    """Whether a rule holds, and since when its conditions have said otherwise."""

    holds: bool = False
    contrary_s: float | None = None


class Playlist:
    """A book over time: what is shown depends on nothing but the states and times it was given.

    Not for several threads at a time. A clock that is set back makes no slot stay longer: the time
    that passed between two calls is then taken for none.

    Attributes:
        book: The rules.
        zone: Of the times of day.
    """

    def __init__(self, book: RuleBook, *, zone: dt.tzinfo = dt.UTC) -> None:
        """Begin with nothing shown.

        Args:
            book: The rules; the zone that it names goes before ``zone``.
            zone: The site's.
        """
        self.book = book
        self.zone = zone if book.timezone is None else ZoneInfo(book.timezone)
        self._standings = [_Standing() for _ in book.rules]
        self._showing: Showing | None = None
        self._shown_s = 0.0
        self._passed_s = 0.0
        self._before: dt.datetime | None = None

    def choose(self, state: AudienceState | None, now: dt.datetime) -> Showing:
        """What is on the screen from now on.

        Args:
            state: Who is there; None when nobody knows.
            now: With a time zone.
        """
        if self._before is not None:
            self._passed_s += max(0.0, (now - self._before).total_seconds())
        self._before = now
        for standing, (_, rule) in zip(self._standings, self.book.named_rules, strict=True):
            self._weigh(standing, rule, state, now)
        if self._showing is None:
            return self._show(self.book.fallback, None, now)
        slot, rule_name = self._wanted()
        if slot == self._showing.slot:
            # The same content by another rule goes on; what may cut it short is the newer rule.
            self._showing = Showing(slot, rule_name, self._showing.since)
        elif self._may_leave(self._showing):
            return self._show(slot, rule_name, now)
        return self._showing

    def _weigh(
        self, standing: _Standing, rule: Rule, state: AudienceState | None, now: dt.datetime
    ) -> None:
        book = self.book
        slack = book.slack if standing.holds and not rule.strict else 0.0
        if rule.is_met(state, now.astimezone(self.zone), slack=slack) == standing.holds:
            standing.contrary_s = None
            return
        if standing.contrary_s is None:
            standing.contrary_s = self._passed_s
        if standing.holds:
            wait_s = 0.0 if rule.strict else _or(rule.release_s, book.release_s)
        else:
            wait_s = _or(rule.steady_s, book.steady_s)
        if self._passed_s - standing.contrary_s >= wait_s:
            standing.holds, standing.contrary_s = not standing.holds, None

    def _wanted(self) -> tuple[str, str | None]:
        for standing, (name, rule) in zip(self._standings, self.book.named_rules, strict=True):
            if standing.holds:
                return rule.slot, name
        return self.book.fallback, None

    def _may_leave(self, showing: Showing) -> bool:
        if self._passed_s - self._shown_s >= self.book.least_s(showing.slot):
            return True
        for standing, (name, rule) in zip(self._standings, self.book.named_rules, strict=True):
            if name == showing.rule:
                return rule.strict and not standing.holds
        return False

    def _show(self, slot: str, rule: str | None, now: dt.datetime) -> Showing:
        self._showing = Showing(slot, rule, now)
        self._shown_s = self._passed_s
        return self._showing


def _or(own: float | None, default: float) -> float:
    return default if own is None else own


__all__ = [
    "IMAGE_TYPES",
    "Group",
    "GroupCondition",
    "Playlist",
    "Rule",
    "RuleBook",
    "Showing",
    "Slot",
    "shipped_rule_books",
]
