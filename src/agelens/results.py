"""
The one vocabulary: what AgeLens says about a picture and the faces in it.

    Analysis             one picture: path, width, height, faces, error
    └── Face             box, landmarks, score, origin
        ├── Quality      what the pixels allow, and the reasons when they do not
        ├── AgeDistribution   a probability for each age 0..100
        └── GenderEstimate    perceived presentation, with a probability

All are frozen. ``to_dict`` gives the wire form that files have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, NotRequired

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import TypedDict

from agelens.errors import ArgumentError

SCHEMA: Final = "agelens.analysis/1"
AGE_COUNT: Final = 101
"""Ages 0..100 in completed years; 100 stands for 100 or more."""
DEFAULT_AGE_GROUPS: Final = (0, 13, 18, 25, 35, 50, 65)
DEFAULT_LEVEL: Final = 0.9

_erf = np.frompyfunc(math.erf, 1, 1)
_AGES: Final = np.arange(AGE_COUNT, dtype=np.float64)
_SUM_TOLERANCE: Final = 1e-4
_LESS_THAN_WRITTEN: Final = 1e-5

GenderLabel = Literal["female", "male", "uncertain"]
Origin = Literal["detector", "caller", "whole_picture"]


class AgeInterval(NamedTuple):
    """Ages ``low`` to ``high`` in completed years, both ends included."""

    low: int
    high: int


class AgeGroup(NamedTuple):
    """Probability of the ages ``low`` to ``high``, both ends included; NaN when abstained."""

    low: int
    high: int
    probability: float


class OlderAges(NamedTuple):
    """A table of its own for the ages from ``start`` on; see ``Coverage``."""

    start: int
    masses: tuple[float, ...]


class AgeBandMass(NamedTuple):
    """Central mass that the ages ``low`` to ``high``, both ends included, have to lie in."""

    low: int
    high: int
    mass: float


@dataclass(frozen=True)
class Coverage:
    """How far an interval has to reach to contain the true age at its stated rate.

    Split-conformal calibration (Vovk et al. 2005; Romano et al. 2019) of the distribution's own
    quantiles: ``inner(0.9)`` is the central mass whose quantiles held 90 % of the true ages on the
    calibration data. Linear between the knots. With ``older`` the mass depends on the age that is
    asked about, not on the one predicted (label-conditional conformal prediction, Vovk et al.
    2005, 4.5): an age belongs to the interval when it lies in the central mass of its own band, so
    that children are held as often as adults.

    Attributes:
        levels: Nominal levels, strictly rising from 0 to 1.
        masses: Central mass used for each level, never falling, within 0..1.
        older: Bands of ages, by rising start, that have masses of their own; the ages under the
            first start take ``masses``.
    """

    levels: tuple[float, ...]
    masses: tuple[float, ...]
    older: tuple[OlderAges, ...] = ()

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels)
        if levels.ndim != 1 or len(levels) < 2:
            raise ArgumentError(f"coverage needs at least two levels, got {self.levels}")
        if levels[0] != 0.0 or levels[-1] != 1.0 or not np.all(np.diff(levels) > 0):
            raise ArgumentError(f"coverage levels must rise from 0 to 1, got {self.levels}")
        starts = [0, *(band.start for band in self.older)]
        if any(a >= b for a, b in itertools.pairwise(starts)) or starts[-1] >= AGE_COUNT:
            raise ArgumentError(
                f"coverage bands must start at rising ages over 0 and under {AGE_COUNT}, "
                f"got {starts[1:]}"
            )
        for row in (self.masses, *(band.masses for band in self.older)):
            self._check_masses(row)

    def _check_masses(self, row: tuple[float, ...]) -> None:
        masses = np.asarray(row)
        if masses.shape != (len(self.levels),):
            raise ArgumentError(
                f"coverage needs as many levels as masses, got {len(self.levels)} and {len(row)}"
            )
        if not (np.all(np.diff(masses) >= 0) and masses[0] >= 0 and masses[-1] <= 1):
            raise ArgumentError(f"coverage masses must not fall and stay in 0..1: {row}")

    def inner(self, level: float) -> float:
        """Central mass whose quantiles hold the true age with frequency ``level``.

        With ``older`` that of the youngest ages only; see ``bands``.
        """
        return float(np.interp(level, self.levels, self.masses))

    def bands(self, level: float) -> tuple[AgeBandMass, ...]:
        """The central mass for each band of ages, from the youngest to the oldest."""
        rows = (OlderAges(0, self.masses), *self.older)
        ends = [*(row.start - 1 for row in self.older), AGE_COUNT - 1]
        return tuple(
            AgeBandMass(row.start, end, float(np.interp(level, self.levels, row.masses)))
            for row, end in zip(rows, ends, strict=True)
        )

    def to_rows(self) -> list[list[float]]:
        """Wire form: the levels, the masses, then for each older band its start and its masses."""
        older = [[float(band.start), *band.masses] for band in self.older]
        return [list(self.levels), list(self.masses), *older]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> Coverage:
        """Read back what ``to_rows`` wrote.

        Raises:
            ArgumentError: They are not such rows.
        """
        if len(rows) < 2 or any(not row or row[0] != int(row[0]) for row in rows[2:]):
            raise ArgumentError(
                "a coverage table is its levels, its masses, and a row for each older band: "
                f"first age and masses; got {len(rows)} rows"
            )
        older = tuple(OlderAges(int(row[0]), tuple(row[1:])) for row in rows[2:])
        return cls(tuple(rows[0]), tuple(rows[1]), older)


@dataclass(frozen=True, eq=False)
class AgeDistribution:
    """A probability for each age in completed years.

    Attributes:
        probabilities: (101,) float32, index = age, 100 means 100 or more; sums to 1. Read-only.
        abstained: True when the face allows no estimate. Then every number below is NaN, so that
            no comparison with it holds, and ``interval`` is the whole range; the reasons are in
            ``Face.quality``.
        coverage: Conformal table for ``interval``; None takes the distribution's own quantiles.

    Example:
        >>> age = AgeDistribution.from_normal(30, 4)
        >>> round(age.mean, 1), age.interval(0.9), round(age.probability_at_least(25), 2)
        (30.0, AgeInterval(low=23, high=37), 0.92)
    """

    probabilities: NDArray[np.float32]
    abstained: bool = False
    coverage: Coverage | None = None

    def __post_init__(self) -> None:
        values = np.array(self.probabilities, dtype=np.float32)
        if values.shape != (AGE_COUNT,):
            raise ArgumentError(
                f"age probabilities must have shape ({AGE_COUNT},), got {values.shape}"
            )
        total = float(values.sum(dtype=np.float64))
        if not np.isfinite(values).all() or values.min() < 0 or abs(total - 1) > _SUM_TOLERANCE:
            raise ArgumentError(
                "age probabilities must be finite, not negative and sum to 1, "
                f"got minimum {values.min():.3g} and sum {total:.6g}"
            )
        values.setflags(write=False)
        object.__setattr__(self, "probabilities", values)

    def __reduce__(self) -> tuple[object, ...]:
        # Through the constructor, so that a copy is as read-only as the original.
        return (AgeDistribution, (self.probabilities, self.abstained, self.coverage))

    # --- made from ---------------------------------------------------------------------------

    @classmethod
    def from_weights(
        cls, weights: ArrayLike, *, coverage: Coverage | None = None
    ) -> AgeDistribution:
        """Normalise 101 non-negative weights into a distribution.

        Raises:
            ArgumentError: The weights have another length, or are negative, or all zero.
        """
        values = np.asarray(weights, dtype=np.float64)
        if values.shape != (AGE_COUNT,) or not np.isfinite(values).all() or values.min() < 0:
            raise ArgumentError(f"weights must be {AGE_COUNT} finite numbers of 0 or more")
        total = values.sum()
        if total <= 0:
            raise ArgumentError("weights must not all be zero")
        return cls((values / total).astype(np.float32), coverage=coverage)

    @classmethod
    def from_normal(cls, mean: float, std: float) -> AgeDistribution:
        """Discretise a normal distribution: age ``a`` takes the mass of a-0.5 to a+0.5.

        The mass below 0 goes to age 0, the mass above 100 to age 100.

        Raises:
            ArgumentError: ``mean`` is not finite or ``std`` is not over 0.
        """
        if not math.isfinite(mean) or not math.isfinite(std) or std <= 0:
            raise ArgumentError(f"need a finite mean and a std over 0, got {mean} and {std}")
        return cls(normal_masses(np.array([mean]), np.array([std]))[0].astype(np.float32))

    @classmethod
    def unknown(cls) -> AgeDistribution:
        """The abstention: nothing can be said of this face's age."""
        return cls(np.full(AGE_COUNT, 1 / AGE_COUNT, dtype=np.float32), abstained=True)

    @classmethod
    def mix(
        cls, distributions: Sequence[AgeDistribution], weights: Sequence[float] | None = None
    ) -> AgeDistribution:
        """Weighted average of distributions (a linear opinion pool); abstentions are left out.

        Raises:
            ArgumentError: No distribution, a weight too many or too few, or a negative weight.
        """
        if not distributions:
            raise ArgumentError("mix needs at least one distribution")
        shares = [1.0] * len(distributions) if weights is None else list(weights)
        if len(shares) != len(distributions):
            raise ArgumentError(f"got {len(distributions)} distributions and {len(shares)} weights")
        if any(not math.isfinite(share) or share < 0 for share in shares):
            raise ArgumentError(f"weights must be finite and not negative, got {shares}")
        voters = [
            (d, share) for d, share in zip(distributions, shares, strict=True) if not d.abstained
        ]
        if not voters:
            return cls.unknown()
        if sum(share for _, share in voters) <= 0:
            raise ArgumentError("at least one weight must be over 0")
        total = sum(share * d.probabilities.astype(np.float64) for d, share in voters)
        tables = {d.coverage for d, _ in voters}
        return cls.from_weights(total, coverage=tables.pop() if len(tables) == 1 else None)

    # --- numbers -----------------------------------------------------------------------------

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        # float64: float32 sums lose the tail that P(age >= 25) is made of.
        cumulative = np.cumsum(self.probabilities, dtype=np.float64)
        cumulative /= cumulative[-1]
        return cumulative

    @property
    def mean(self) -> float:
        """Expected age in completed years."""
        return self._or_nan(float(self.probabilities.astype(np.float64) @ _AGES))

    @property
    def std(self) -> float:
        """Standard deviation in years."""
        values = self.probabilities.astype(np.float64)
        centre = values @ _AGES
        return self._or_nan(math.sqrt(max(0.0, float(values @ (_AGES - centre) ** 2))))

    @property
    def median(self) -> float:
        """Smallest age at which half the probability is reached."""
        return self._or_nan(float(self._quantile(0.5)))

    @property
    def mode(self) -> float:
        """Most probable age; the youngest of several."""
        return self._or_nan(float(np.argmax(self.probabilities)))

    def interval(self, level: float = DEFAULT_LEVEL) -> AgeInterval:
        """Ages that contain the true age with the stated frequency.

        Intervals of a higher level contain those of a lower one, and each contains the median.

        Args:
            level: Wanted frequency, 0..1.

        Raises:
            ArgumentError: ``level`` is outside 0..1.
        """
        if not 0 <= level <= 1:
            raise ArgumentError(f"level must be within 0..1, got {level}")
        if self.abstained:
            return AgeInterval(0, AGE_COUNT - 1)
        if self.coverage is None:
            return self._central(level)
        if not self.coverage.older:
            return self._central(self.coverage.inner(level))
        # Each band's own central interval as far as it lies in the band; their hull nests, as
        # each of them does. The band of the median always has a part: it contains the median.
        parts = []
        for band in self.coverage.bands(level):
            low, high = self._central(band.mass)
            if low <= band.high and high >= band.low:
                parts.append((max(low, band.low), min(high, band.high)))
        return AgeInterval(min(low for low, _ in parts), max(high for _, high in parts))

    def _central(self, mass: float) -> AgeInterval:
        """Ages between the quantiles that leave out the same mass below and above."""
        if mass >= 1:
            return AgeInterval(0, AGE_COUNT - 1)
        median = self._quantile(0.5)
        low = int(self._cumulative.searchsorted((1 - mass) / 2, side="right"))
        high = self._quantile((1 + mass) / 2)
        return AgeInterval(min(low, median), max(high, median))

    def probability_at_least(self, age: int) -> float:
        """P(true age >= ``age``); NaN when abstained, so that no threshold is passed.

        Raises:
            ArgumentError: ``age`` is not a whole number: ages are completed years.
        """
        if age != int(age):
            raise ArgumentError(f"age must be a whole number of completed years, got {age}")
        age = int(age)
        if age <= 0:
            return self._or_nan(1.0)
        if age >= AGE_COUNT:
            return self._or_nan(0.0)
        return self._or_nan(float(min(1.0, max(0.0, 1.0 - self._cumulative[age - 1]))))

    def group(self, edges: Sequence[int] = DEFAULT_AGE_GROUPS) -> tuple[AgeGroup, ...]:
        """Probability of each range that starts at an edge and ends before the next.

        Args:
            edges: Rising starts, 0..100; a first range from 0 is added when it is missing.

        Raises:
            ArgumentError: The edges do not rise, or leave 0..100.
        """
        starts = age_group_starts(edges)
        ends = [*starts[1:], AGE_COUNT]
        upto = np.concatenate([[0.0], self._cumulative])
        return tuple(
            AgeGroup(start, end - 1, self._or_nan(float(upto[end] - upto[start])))
            for start, end in zip(starts, ends, strict=True)
        )

    def _quantile(self, share: float) -> int:
        return min(int(self._cumulative.searchsorted(share - 1e-12)), AGE_COUNT - 1)

    def _or_nan(self, value: float) -> float:
        return math.nan if self.abstained else value

    # --- comparison and wire form ---------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AgeDistribution):
            return NotImplemented
        return (
            self.abstained == other.abstained
            and self.coverage == other.coverage
            and np.array_equal(self.probabilities, other.probabilities)
        )

    def __hash__(self) -> int:
        return hash((self.probabilities.tobytes(), self.abstained, self.coverage))

    def __repr__(self) -> str:
        if self.abstained:
            return "AgeDistribution(abstained)"
        low, high = self.interval()
        return f"AgeDistribution(mean={self.mean:.1f}, interval90=({low}, {high}))"

    def to_dict(
        self,
        *,
        edges: Sequence[int] = DEFAULT_AGE_GROUPS,
        level: float = DEFAULT_LEVEL,
        distribution: bool = False,
    ) -> AgeDict:
        """Wire form; numbers of an abstention are None.

        Args:
            edges: Starts of the age groups.
            level: Level of the interval.
            distribution: Add the 101 probabilities and the coverage table, so that
                ``from_dict`` gives back an equal object.
        """
        low, high = self.interval(level)
        wire: AgeDict = {
            "mean": _wire(self.mean, 2),
            "std": _wire(self.std, 2),
            "median": None if self.abstained else int(self.median),
            "interval": {"level": level, "low": low, "high": high},
            "at_least_18": _wire(self.probability_at_least(18), 4),
            "groups": [
                {"low": g.low, "high": g.high, "probability": _wire(g.probability, 4)}
                for g in self.group(edges)
            ],
            "abstained": self.abstained,
        }
        if distribution:
            # The shortest text of a float32 reads back as the same float32.
            wire["distribution"] = [float(str(p)) for p in self.probabilities]
            wire["coverage"] = None if self.coverage is None else self.coverage.to_rows()
        return wire

    @classmethod
    def from_dict(cls, wire: AgeDict) -> AgeDistribution:
        """Read back what ``to_dict(distribution=True)`` wrote.

        Raises:
            ArgumentError: There is no "distribution" in it, or it is not one.
        """
        if "distribution" not in wire:
            raise ArgumentError(
                "this age has no 'distribution'; write it with to_dict(distribution=True) "
                "or --distribution"
            )
        table = wire.get("coverage")
        return cls(
            np.asarray(wire["distribution"], dtype=np.float32),
            abstained=bool(wire.get("abstained", False)),
            coverage=None if table is None else Coverage.from_rows(table),
        )


@dataclass(frozen=True)
class GenderEstimate:
    """Perceived gender presentation; says nothing of a person's identity.

    Attributes:
        female_probability: Calibrated, 0..1.
        threshold: Probability that a label needs; under it the label is "uncertain".
    """

    female_probability: float
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.female_probability <= 1:
            raise ArgumentError(
                f"female_probability must be within 0..1, got {self.female_probability}"
            )
        if not 0.5 <= self.threshold <= 1:
            raise ArgumentError(f"the gender threshold must be 0.5 to 1, got {self.threshold}")

    @property
    def probability(self) -> float:
        """Probability of the likelier presentation, 0.5..1; that of the label when it has one."""
        return max(self.female_probability, 1 - self.female_probability)

    @property
    def label(self) -> GenderLabel:
        """The likelier presentation, or "uncertain" when it does not reach the threshold."""
        if self.probability < self.threshold or self.female_probability == 0.5:
            return "uncertain"
        return "female" if self.female_probability > 0.5 else "male"

    def to_dict(self) -> GenderDict:
        """Wire form."""
        return {
            "label": self.label,
            "probability": round(self.probability, 4),
            "female_probability": round(self.female_probability, 4),
        }

    @classmethod
    def from_dict(cls, wire: GenderDict) -> GenderEstimate:
        """Read back what ``to_dict`` wrote: the same label, probabilities to four digits.

        The threshold is not written; it becomes one that gives the label.
        """
        female, label = wire["female_probability"], wire["label"]
        if label == "uncertain":
            inside = min(max(female, _LESS_THAN_WRITTEN), 1 - _LESS_THAN_WRITTEN)
            return cls(inside, threshold=1.0)
        if female == 0.5:  # rounded from a little more or less
            female += _LESS_THAN_WRITTEN if label == "female" else -_LESS_THAN_WRITTEN
        return cls(female)


@dataclass(frozen=True)
class Quality:
    """What the pixels of a face allow.

    Attributes:
        size_px: Side of a square with the area of the face box, in pixels of the picture.
        sharpness: 0 (blurred) upwards; about 1 for an ordinary portrait. See ``quality.measure``.
        exposure: Mean luminance of the face, 0 (black) to 1 (white).
        yaw: Degrees the face turns to the right of the picture; None without landmarks.
        pitch: Degrees the face looks up; None without landmarks.
        roll: Degrees the head leans clockwise in the picture; None without landmarks.
        usable: False when an estimate would be a guess.
        reasons: Why it is not usable, in words; empty when it is.
    """

    size_px: float
    sharpness: float
    exposure: float
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    usable: bool = True
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> QualityDict:
        """Wire form."""
        return {
            "size_px": round(self.size_px),
            "sharpness": round(self.sharpness, 3),
            "exposure": round(self.exposure, 3),
            "yaw": _wire_or_none(self.yaw, 1),
            "pitch": _wire_or_none(self.pitch, 1),
            "roll": _wire_or_none(self.roll, 1),
            "usable": self.usable,
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_dict(cls, wire: QualityDict) -> Quality:
        """Read back what ``to_dict`` wrote, as rounded there."""
        return cls(
            wire["size_px"],
            wire["sharpness"],
            wire["exposure"],
            wire["yaw"],
            wire["pitch"],
            wire["roll"],
            wire["usable"],
            tuple(wire["reasons"]),
        )


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the upright picture.
        score: Detector confidence, 0..1; 1 for the caller's own boxes.
        quality: What the pixels allow.
        age: The age distribution; ``age.abstained`` when it cannot tell.
        gender: The gender estimate, or None when switched off.
        landmarks: (5, 2) float32 pixels: left eye, right eye, nose, left and right mouth corner,
            left and right as seen in the picture; None when unknown. Read-only.
        origin: "detector"; "caller" for the caller's own box; "whole_picture" when the picture
            itself was taken as the face (detector ``none``, or the fallback for crops).
    """

    box: tuple[float, float, float, float]
    score: float
    quality: Quality
    age: AgeDistribution
    gender: GenderEstimate | None
    landmarks: NDArray[np.float32] | None = None
    origin: Origin = "detector"

    def __post_init__(self) -> None:
        if self.landmarks is not None:
            points = np.array(self.landmarks, dtype=np.float32)
            if points.shape != (5, 2):
                raise ArgumentError(f"landmarks must have shape (5, 2), got {points.shape}")
            points.setflags(write=False)
            object.__setattr__(self, "landmarks", points)

    def __reduce__(self) -> tuple[object, ...]:
        return (Face, self._values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Face):
            return NotImplemented
        same = self.landmarks is other.landmarks or (
            self.landmarks is not None
            and other.landmarks is not None
            and np.array_equal(self.landmarks, other.landmarks)
        )
        return same and self._without_landmarks() == other._without_landmarks()

    def __hash__(self) -> int:
        return hash(self._without_landmarks())

    def __repr__(self) -> str:
        x0, y0, x1, y1 = self.box
        gender = "" if self.gender is None else f", {self.gender.label}"
        return f"Face({x1 - x0:.0f}x{y1 - y0:.0f} at {x0:.0f},{y0:.0f}, {self.age!r}{gender})"

    def _values(self) -> tuple[object, ...]:
        return (
            self.box,
            self.score,
            self.quality,
            self.age,
            self.gender,
            self.landmarks,
            self.origin,
        )

    def _without_landmarks(self) -> tuple[object, ...]:
        return (self.box, self.score, self.quality, self.age, self.gender, self.origin)

    def to_dict(
        self,
        *,
        edges: Sequence[int] = DEFAULT_AGE_GROUPS,
        level: float = DEFAULT_LEVEL,
        distribution: bool = False,
    ) -> FaceDict:
        """Wire form; see ``AgeDistribution.to_dict`` for the options."""
        return {
            "box": [round(float(v), 1) for v in self.box],
            "score": round(float(self.score), 4),
            "landmarks": (
                None
                if self.landmarks is None
                else [[round(float(x), 1), round(float(y), 1)] for x, y in self.landmarks]
            ),
            "origin": self.origin,
            "age": self.age.to_dict(edges=edges, level=level, distribution=distribution),
            "gender": None if self.gender is None else self.gender.to_dict(),
            "quality": self.quality.to_dict(),
        }

    @classmethod
    def from_dict(cls, wire: FaceDict) -> Face:
        """Read back what ``to_dict(distribution=True)`` wrote, as rounded there.

        Raises:
            ArgumentError: The age has no distribution.
        """
        x0, y0, x1, y1 = wire["box"]
        points, gender = wire["landmarks"], wire["gender"]
        return cls(
            (x0, y0, x1, y1),
            wire["score"],
            Quality.from_dict(wire["quality"]),
            AgeDistribution.from_dict(wire["age"]),
            None if gender is None else GenderEstimate.from_dict(gender),
            None if points is None else np.asarray(points, np.float32),
            wire["origin"],
        )


@dataclass(frozen=True)
class AnalysisError:
    """Why a picture could not be analysed.

    Attributes:
        code: One of ``errors.IMAGE_ERROR_CODES``.
        message: One sentence: what was found, what is expected, what to do.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Analysis:
    """What AgeLens found in one picture.

    Attributes:
        path: Where the picture came from, or None for an array.
        width: Pixels of the upright picture; 0 when it could not be read.
        height: Pixels of the upright picture; 0 when it could not be read.
        faces: From the most to the least prominent (box area times score).
        error: Why there is no answer, or None.
        model: "name@version" of the model that answered.
    """

    path: str | None
    width: int
    height: int
    faces: tuple[Face, ...] = ()
    error: AnalysisError | None = None
    model: str = ""

    @property
    def ok(self) -> bool:
        """True when the picture was read, whether or not a face was found."""
        return self.error is None

    def to_dict(
        self,
        *,
        edges: Sequence[int] = DEFAULT_AGE_GROUPS,
        level: float = DEFAULT_LEVEL,
        distribution: bool = False,
    ) -> AnalysisDict:
        """Wire form, one line of ``agelens analyze --format jsonl``."""
        return {
            "schema": SCHEMA,
            "path": self.path,
            "width": self.width,
            "height": self.height,
            "model": self.model,
            "faces": [
                face.to_dict(edges=edges, level=level, distribution=distribution)
                for face in self.faces
            ],
            "error": (
                None
                if self.error is None
                else {"code": self.error.code, "message": self.error.message}
            ),
        }

    @classmethod
    def from_dict(cls, wire: AnalysisDict) -> Analysis:
        """Read back what ``to_dict(distribution=True)`` wrote.

        The ages are equal to the original ones; boxes, landmarks, scores and qualities are as
        rounded there. Writing it again gives the same.

        Raises:
            ArgumentError: It is of another schema, or an age has no distribution.
        """
        if wire["schema"] != SCHEMA:
            raise ArgumentError(f"expected schema {SCHEMA!r}, got {wire['schema']!r}")
        error = wire["error"]
        return cls(
            wire["path"],
            wire["width"],
            wire["height"],
            tuple(Face.from_dict(face) for face in wire["faces"]),
            None if error is None else AnalysisError(error["code"], error["message"]),
            wire["model"],
        )


# --- wire types: the JSON schema is made from these ---------------------------------------------


class IntervalDict(TypedDict):
    level: float
    low: int
    high: int


class AgeGroupDict(TypedDict):
    low: int
    high: int
    probability: float | None


class AgeDict(TypedDict):
    mean: float | None
    std: float | None
    median: int | None
    interval: IntervalDict
    at_least_18: float | None
    groups: list[AgeGroupDict]
    abstained: bool
    distribution: NotRequired[list[float]]
    coverage: NotRequired[list[list[float]] | None]


class GenderDict(TypedDict):
    label: GenderLabel
    probability: float
    female_probability: float


class QualityDict(TypedDict):
    size_px: int
    sharpness: float
    exposure: float
    yaw: float | None
    pitch: float | None
    roll: float | None
    usable: bool
    reasons: list[str]


class FaceDict(TypedDict):
    box: list[float]
    score: float
    landmarks: list[list[float]] | None
    origin: Origin
    age: AgeDict
    gender: GenderDict | None
    quality: QualityDict


class ErrorDict(TypedDict):
    code: str
    message: str


class AnalysisDict(TypedDict):
    schema: str
    path: str | None
    width: int
    height: int
    model: str
    faces: list[FaceDict]
    error: ErrorDict | None


def analysis_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one analysis, as ``Analysis.to_dict`` writes it."""
    from pydantic import TypeAdapter

    return TypeAdapter(AnalysisDict).json_schema()


def normal_masses(mean: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Discretise normal distributions over the ages.

    Args:
        mean: (N,) years.
        std: (N,) years, over 0.

    Returns:
        (N, 101) masses; what lies under 0 or over 100 goes to the first and the last age.
    """
    edges = (np.arange(1, AGE_COUNT) - 0.5 - mean[:, None]) / (std[:, None] * math.sqrt(2))
    below = 0.5 * (1 + np.asarray(_erf(edges), np.float64))
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def age_group_starts(edges: Iterable[int]) -> tuple[int, ...]:
    """Check the starts of age groups and add a first one at 0 when it is missing.

    Raises:
        ArgumentError: There are none, they do not rise, or they leave 0..100.
    """
    given = tuple(edges)
    if any(edge != int(edge) for edge in given):
        raise ArgumentError(f"age groups must start at whole ages, got {given}")
    starts = tuple(int(edge) for edge in given)
    if not starts:
        raise ArgumentError("age groups need at least one start, for example 0,18,65")
    if starts[0] != 0:
        starts = (0, *starts)
    if any(a >= b for a, b in itertools.pairwise(starts)) or not (
        starts[0] >= 0 and starts[-1] < AGE_COUNT
    ):
        raise ArgumentError(
            f"age groups must start at rising ages within 0..{AGE_COUNT - 1}, got {starts}"
        )
    return starts


def _wire(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


def _wire_or_none(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


__all__ = [
    "AGE_COUNT",
    "DEFAULT_AGE_GROUPS",
    "SCHEMA",
    "AgeBandMass",
    "AgeDistribution",
    "AgeGroup",
    "AgeInterval",
    "Analysis",
    "AnalysisError",
    "Coverage",
    "Face",
    "GenderEstimate",
    "OlderAges",
    "Quality",
    "age_group_starts",
    "analysis_json_schema",
]
