"""
The audience: who is in front of the screen now, as counts and shares with their confidence.

    AudiencePlan     which cameras and zones count, and which groups are told apart
    ├── GroupRule    a range of ages, and perhaps a perceived gender
    Audience         the newest moment of each camera -> AudienceState
    └── AudienceState  people, attentive, GroupShare of each group, how old all this is

A person belongs to a group with a probability, never by a label: the count of a group is the sum of
the calibrated probabilities of those in view, and what is said about it ("at least half of them")
has a probability of its own, by the Poisson-binomial distribution (Poisson 1837; computed by
convolution, Hong 2013). It takes the errors of two people for independent. Nothing in a state tells
one person from another: no track, no place in the picture, no single estimate beside a name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError
from agelens.results import AGE_COUNT, DEFAULT_AGE_GROUPS
from agelens.video.visit import whole_milliseconds

if TYPE_CHECKING:
    from agelens.video.camera import Moment, Person

SCHEMA: Final = "agelens.audience/1"

GroupGender = Literal["any", "female", "male"]
Counted = Literal["people", "attentive"]

_NEAR: Final = 0.25
"""A share is right within this: ``GroupShare.confidence`` is the probability of that."""
SHARES_FROM: Final = 3
"""Of two people, each could work out the other's estimate from the shares of both."""
_LONGEST_NAME: Final = 80
_MOST_GROUPS: Final = 64


@dataclass(frozen=True)
class GroupRule:
    """Who belongs to a group: a range of ages, and perhaps a perceived gender.

    Attributes:
        name: 1 to 80 printable characters.
        low: Youngest age in completed years, 0..100.
        high: Oldest age, both ends included; 100 means 100 or more.
        gender: "any", or how the face has to be perceived.
    """

    name: str
    low: int = 0
    high: int = AGE_COUNT - 1
    gender: GroupGender = "any"

    def __post_init__(self) -> None:
        if not (0 < len(self.name) <= _LONGEST_NAME and self.name.isprintable()):
            raise ArgumentError(
                f"a group's name must be 1 to {_LONGEST_NAME} printable characters, "
                f"got {self.name[:100]!r}"
            )
        if not 0 <= self.low <= self.high < AGE_COUNT:
            raise ArgumentError(
                f"group {self.name}: ages must be within 0..{AGE_COUNT - 1} and not fall, "
                f"got {self.low} to {self.high}"
            )
        if self.gender not in get_args(GroupGender):
            raise ArgumentError(
                f"group {self.name}: gender must be one of {', '.join(get_args(GroupGender))}, "
                f"got {self.gender!r}"
            )

    def probability(self, person: Person) -> float | None:
        """Probability that a person belongs to it; None when the face does not allow to say.

        Age and gender are taken for independent given the face.
        """
        chance = 1.0
        if (self.low, self.high) != (0, AGE_COUNT - 1):
            if person.age is None or person.age.abstained:
                return None
            older = person.age.probability_at_least(self.high + 1)
            chance = person.age.probability_at_least(self.low) - older
        if self.gender != "any":
            if person.gender is None:
                return None
            female = person.gender.female_probability
            chance *= female if self.gender == "female" else 1 - female
        return min(1.0, max(0.0, chance))


def age_groups(starts: Sequence[int] = DEFAULT_AGE_GROUPS) -> tuple[GroupRule, ...]:
    """A group for each range of ages that starts at an edge and ends before the next.

    >>> [group.name for group in age_groups((0, 18, 65))]
    ['0-17', '18-64', '65+']
    """
    ends = [*starts[1:], AGE_COUNT]
    return tuple(
        GroupRule(f"{low}+" if end == AGE_COUNT else f"{low}-{end - 1}", low, end - 1)
        for low, end in zip(starts, ends, strict=True)
    )


@dataclass(frozen=True)
class AudiencePlan:
    """What is said of those in front of a screen.

    Attributes:
        cameras: Names of the cameras that see the audience; none for all. Two that see the same
            people would count them twice.
        zones: Who is in one of these zones counts; none for the whole picture.
        counted: Whom the groups are made of: all in view, or those who look at the screen.
        groups: Groups that are told apart; they may overlap. A file of rules can name further ones.
        forget_s: Seconds without a frame after which a camera says nothing any more.
        shares_from: Fewest people whose shares leave this process; of fewer only the count does.
            With 1, the share of a lone visitor is the estimate of one person. Rules that choose
            the content decide here, by the shares of however many there are.
        rules: File of the rules that choose the content, or the name of a shipped one; None
            chooses none.
    """

    cameras: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    counted: Counted = "people"
    groups: tuple[GroupRule, ...] = field(default_factory=age_groups)
    forget_s: float = 3.0
    shares_from: int = SHARES_FROM
    rules: str | None = None

    def __post_init__(self) -> None:
        if self.counted not in get_args(Counted):
            raise ArgumentError(
                f"counted must be one of {', '.join(get_args(Counted))}, got {self.counted!r}"
            )
        if not (math.isfinite(self.forget_s) and self.forget_s > 0):
            raise ArgumentError(f"forget_s must be over 0, got {self.forget_s!r}")
        if self.shares_from < 1:
            raise ArgumentError(f"shares_from must be 1 or more, got {self.shares_from!r}")
        names = [group.name for group in self.groups]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ArgumentError(f"two groups are called {twice[0]!r}; give each its own name")
        if len(names) > _MOST_GROUPS:
            raise ArgumentError(f"at most {_MOST_GROUPS} groups are told apart, got {len(names)}")


@dataclass(frozen=True)
class GroupShare:
    """How many of those in view belong to a group, as far as the faces tell.

    Attributes:
        name: Of the group.
        count: Expected number of people in it, 0 to ``known``.
        share: Expected share of those whose faces allow an estimate; None when there is none.
        confidence: Probability that the true share lies within 0.25 of ``share``, times the part
            of the people that allows an estimate; 0 without people.
        known: People whose faces allow an estimate.
        people: All that are counted.
        chances: Probability that exactly 0, 1, ... ``known`` of them belong to it; sums to 1.
    """

    name: str
    count: float
    share: float | None
    confidence: float
    known: int
    people: int
    chances: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, name: str, probabilities: Sequence[float | None]) -> GroupShare:
        """The share of a group among people.

        Args:
            name: Of the group.
            probabilities: That each of them belongs to it, 0..1; None where nothing can be said.
        """
        members = [one for one in probabilities if one is not None]
        chances = number_chances(members)
        people, known = len(probabilities), len(members)
        count = math.fsum(members)
        share, confidence = None, 0.0
        if known:
            share = count / known
            shares = np.arange(known + 1) / known
            near = np.abs(shares - share) <= _NEAR + 1e-9
            confidence = float(chances[near].sum()) * known / people
        return cls(name, count, share, min(1.0, confidence), known, people, tuple(chances.tolist()))

    def chance_of_count(self, *, at_least: int | None = None, under: int | None = None) -> float:
        """Probability that the number of people in the group is within bounds.

        Whoever allows no estimate speaks against it: for ``at_least`` as if outside the group, for
        ``under`` as if inside.

        Args:
            at_least: Fewest.
            under: One more than the most.
        """
        unknown = self.people - self.known
        low = 0 if at_least is None else max(0, at_least)
        high = self.people if under is None else under - 1 - unknown
        if high < 0 or low > self.known:
            return 0.0
        return min(1.0, math.fsum(self.chances[low : high + 1]))

    def chance_of_share(
        self, *, at_least: float | None = None, under: float | None = None
    ) -> float:
        """Probability that the share of the group in all people is within bounds; 0 without any.

        Whoever allows no estimate speaks against it, as in ``chance_of_count``.

        Args:
            at_least: Smallest share, 0..1.
            under: The share that must not be reached.
        """
        if not self.people:
            return 0.0
        # A third of three people is one of them, whatever the last digit of 1/3 says.
        return self.chance_of_count(
            at_least=None if at_least is None else math.ceil(at_least * self.people - 1e-9),
            under=None if under is None else math.ceil(under * self.people - 1e-9),
        )

    def to_dict(self) -> dict[str, Any]:
        """Wire form, without ``chances``."""
        return {
            "name": self.name,
            "count": round(self.count, 2),
            "share": None if self.share is None else round(self.share, 3),
            "confidence": round(self.confidence, 3),
            "known": self.known,
        }


def number_chances(probabilities: Iterable[float]) -> NDArray[np.float64]:
    """Probability that exactly 0, 1, ... N of N independent events happen.

    Args:
        probabilities: Of each event, 0..1.

    Returns:
        (N + 1,) float64, sums to 1.
    """
    chances = np.ones(1)
    # In one order of values, so that the order of the people changes no last digit.
    for one in sorted(probabilities):
        chances = np.convolve(chances, [1 - one, one])
    return chances


@dataclass(frozen=True)
class AudienceState:
    """Who is in front of the screen now.

    Attributes:
        at: The moment that it is about, in UTC.
        cameras: Cameras that were heard from lately; without any, nothing is known.
        people: People in view, staff left out.
        attentive: How many of them look at the screen.
        groups: Share of each group, in the order of the plan.
        female: Share of those perceived as female; None when nothing is known.
        gender_uncertain: People of those counted whose perceived gender is uncertain or not
            estimated.
        age_s: Seconds since the newest frame that it rests on was taken; None without one.
        may_tell_shares: Those who are counted are none, or as many as the plan's ``shares_from``:
            shares may leave this process.
    """

    at: datetime
    cameras: int = 0
    people: int = 0
    attentive: int = 0
    groups: tuple[GroupShare, ...] = ()
    female: GroupShare | None = None
    gender_uncertain: int = 0
    age_s: float | None = None
    may_tell_shares: bool = True

    @property
    def is_blind(self) -> bool:
        """No camera was heard from lately, so that nobody knows who is there."""
        return self.cameras == 0

    @property
    def female_share(self) -> float | None:
        """Expected share of those perceived as female; None when it is not known."""
        return None if self.female is None else self.female.share

    def group(self, name: str) -> GroupShare | None:
        """A group's share by its name; None when there is no such group, or nothing is known."""
        return next((group for group in self.groups if group.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Wire form: counts, and shares where enough people stand behind them."""
        told = self.may_tell_shares
        return {
            "schema": SCHEMA,
            "at": whole_milliseconds(self.at).isoformat(timespec="milliseconds"),
            "cameras": self.cameras,
            "people": self.people,
            "attentive": self.attentive,
            "attention": round(self.attentive / self.people, 3) if self.people else None,
            "groups": [group.to_dict() for group in self.groups] if told else [],
            "female": self.female.to_dict() if told and self.female else None,
            "gender_uncertain": self.gender_uncertain if told else None,
            "age_s": None if self.age_s is None else round(self.age_s, 3),
        }


@dataclass(frozen=True, eq=False)
class _Heard:
    moment: Moment
    arrived: datetime


class Audience:
    """Keeps the newest moment of each camera and adds them up; not for several threads at a time.

    Attributes:
        plan: What counts.
        groups: The groups of the plan, then those of the rules.
    """

    def __init__(self, plan: AudiencePlan, groups: Iterable[GroupRule] = ()) -> None:
        """Start with nothing heard.

        Args:
            plan: What counts.
            groups: Further ones, as those of a file of rules; one of the same name as a group of
                the plan takes its place.
        """
        self.plan = plan
        self.groups = tuple({group.name: group for group in (*plan.groups, *groups)}.values())
        self._heard: dict[str, _Heard] = {}

    def add(self, moment: Moment, *, arrived: datetime | None = None) -> bool:
        """Take what a camera sees; an older moment than the one before is passed over.

        Args:
            moment: Of any camera; those that the plan does not name are passed over.
            arrived: When it came, by the clock that ``state`` is asked by; None takes
                ``moment.at``, which fits cameras and not files.

        Returns:
            Whether it counts.
        """
        if self.plan.cameras and moment.camera not in self.plan.cameras:
            return False
        came = moment.at if arrived is None else arrived
        before = self._heard.get(moment.camera)
        if before is not None and came < before.arrived:
            return False
        self._heard[moment.camera] = _Heard(moment, came)
        return True

    def state(self, now: datetime) -> AudienceState:
        """Who is there now, of the cameras that were heard from lately.

        Args:
            now: With a time zone.
        """
        patience = timedelta(seconds=self.plan.forget_s)
        lately = [heard for heard in self._heard.values() if now - heard.arrived <= patience]
        if not lately:
            return AudienceState(now)
        people = [one for heard in lately for one in heard.moment.people if self._counts(one)]
        attentive = sum(one.attentive for one in people)
        counted = people
        if self.plan.counted == "attentive":
            counted = [one for one in people if one.attentive]
        return AudienceState(
            at=now,
            cameras=len(lately),
            people=len(people),
            attentive=attentive,
            groups=tuple(_share(group, counted) for group in self.groups),
            female=_share(_FEMALE, counted),
            gender_uncertain=sum(
                one.gender is None or one.gender.label == "uncertain" for one in counted
            ),
            age_s=min(
                (now - heard.arrived).total_seconds() + heard.moment.latency_s for heard in lately
            ),
            may_tell_shares=not counted or len(counted) >= self.plan.shares_from,
        )

    def _counts(self, person: Person) -> bool:
        zones = self.plan.zones
        return not person.staff and (not zones or any(zone in zones for zone in person.zones))


_FEMALE: Final = GroupRule("female", gender="female")


def _share(group: GroupRule, people: Sequence[Person]) -> GroupShare:
    return GroupShare.of(group.name, [group.probability(person) for person in people])


__all__ = [
    "SCHEMA",
    "SHARES_FROM",
    "Audience",
    "AudiencePlan",
    "AudienceState",
    "GroupRule",
    "GroupShare",
    "age_groups",
    "number_chances",
]
