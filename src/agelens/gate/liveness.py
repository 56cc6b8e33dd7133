"""
Is it one living person before the camera, or a picture of one? Checks that a gate can ask.

    AttackDetector       the interface of every check, built in or of a vendor, and its card
    AttackDetectorCard   what is known of it: APCER by kind of attack, BPCER, limits
    ConsistencyCheck     passive: the frames show more than one flat picture, and one person
    ChallengeCheck       active: the head moves as asked, in an order drawn for this occasion
    measure_detector     the error rates of ISO/IEC 30107-3 from presentations of known kind

The built-in checks need no weights and are weak: they stop a photograph held up, not a played
video, a mask or an injected stream. Nothing here is certified after ISO/IEC 30107-3; see
docs/explanation/presentation-attacks.md. Pictures and what is measured on them live as long as
the call.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, Literal, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from agelens.alignment import CropSpec, align
from agelens.errors import ArgumentError
from agelens.evaluation.gate_errors import exact_interval
from agelens.identifiers import utc_now
from agelens.quality import head_pose
from agelens.results import Face

CARD_SCHEMA: Final = "agelens.attack-detector-card/1"

Move = Literal["left", "right", "closer"]
MOVES: Final[tuple[Move, ...]] = ("left", "right", "closer")
INSTRUCTIONS: Final[dict[Move, str]] = {
    "left": "Turn your head slowly to your left, and back.",
    "right": "Turn your head slowly to your right, and back.",
    "closer": "Come closer to the camera, and go back.",
}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Reason:
    """Why a decision is what it is.

    Attributes:
        code: One word for programs.
        text: One sentence for people; it says nothing that could identify a face.
    """

    code: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """Wire form."""
        return {"code": self.code, "text": self.text}


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """One frame with its one face.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright, not mirrored.
        face: The face, in pixels of the frame.
        seconds: When it was taken, counted from any moment; None when unknown.
        missed: Frames since the one before that showed no face to compare.
    """

    pixels: Pixels
    face: Face
    seconds: float | None = None
    missed: int = 0


# --- cards ----------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AttackRate(_Part):
    """How a detector does on one kind of attack instrument.

    Attributes:
        kind: Attack instrument, such as "print" or "replay on a phone".
        presentations: Attacks that were presented.
        passed: Those that were taken for a living person.
    """

    kind: str = Field(min_length=1)
    presentations: int = Field(ge=1)
    passed: int = Field(ge=0)

    @property
    def apcer(self) -> float:
        """Attack presentation classification error rate of this kind."""
        return self.passed / self.presentations

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval of the APCER at level 0.95."""
        return exact_interval(self.passed, self.presentations)


class AttackDetectorCard(_Part):
    """What is known of a presentation attack detector.

    Attributes:
        name: Name.
        version: Version.
        summary: One sentence.
        rates: By kind of attack; empty when it was not measured.
        bona_fide: Presentations by people that were made.
        bona_fide_refused: Those that were taken for attacks.
        data: What was presented, by whom, before which camera.
        certificate: Laboratory and number of a certificate; None when there is none.
        limits: What it does not stop, in sentences.
    """

    card_schema: Literal["agelens.attack-detector-card/1"] = Field(
        default=CARD_SCHEMA, alias="schema"
    )
    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    summary: str = ""
    rates: tuple[AttackRate, ...] = ()
    bona_fide: int = Field(default=0, ge=0)
    bona_fide_refused: int = Field(default=0, ge=0)
    data: str = ""
    certificate: str | None = None
    limits: tuple[str, ...] = ()

    @property
    def apcer(self) -> float:
        """The worst kind's rate, as ISO/IEC 30107-3 asks for; NaN when not measured."""
        return max((rate.apcer for rate in self.rates), default=math.nan)

    @property
    def bpcer(self) -> float:
        """Bona fide presentation classification error rate; NaN when not measured."""
        return self.bona_fide_refused / self.bona_fide if self.bona_fide else math.nan

    def lines(self) -> tuple[str, ...]:
        """The card in words, one line a fact."""
        rows = [f"{self.name} {self.version}: {self.summary}".rstrip(": ")]
        for rate in self.rates:
            low, high = rate.interval
            rows.append(
                f"APCER, {rate.kind}: {100 * rate.apcer:.1f} % ({100 * low:.1f} to "
                f"{100 * high:.1f} %; {rate.passed:,} of {rate.presentations:,})"
            )
        if not self.rates:
            rows.append("APCER: not measured")
        if self.bona_fide:
            low, high = exact_interval(self.bona_fide_refused, self.bona_fide)
            rows.append(
                f"BPCER: {100 * self.bpcer:.1f} % ({100 * low:.1f} to {100 * high:.1f} %; "
                f"{self.bona_fide_refused:,} of {self.bona_fide:,})"
            )
        else:
            rows.append("BPCER: not measured")
        rows.append(f"certificate after ISO/IEC 30107-3: {self.certificate or 'none'}")
        return (*rows, *self.limits)


class AttackDetector(Protocol):
    """A presentation attack detector. Thread-safe: it remembers nothing of a presentation."""

    @property
    def card(self) -> AttackDetectorCard:
        """What is known of it."""
        ...

    def check(self, frames: Sequence[LiveFrame], challenge: Challenge | None) -> tuple[Reason, ...]:
        """Look at the frames of one presentation, in their order.

        Args:
            frames: Frames with one face each.
            challenge: What was asked for; None when nothing was.

        Returns:
            Why it does not look like one living person; empty when it does.
        """
        ...


@dataclass(frozen=True, eq=False)
class Presentation:
    """Frames of which it is known what was before the camera.

    Attributes:
        frames: As ``AttackDetector.check`` takes them.
        kind: Kind of attack instrument; None for a living person.
        challenge: What was asked for.
    """

    frames: Sequence[LiveFrame]
    kind: str | None
    challenge: Challenge | None = None


def measure_detector(
    detector: AttackDetector, presentations: Iterable[Presentation], *, data: str
) -> AttackDetectorCard:
    """The detector's card with its error rates on presentations of known kind.

    A presentation without an answer (no face) has to be left out and reported apart, as ISO/IEC
    30107-3 has it (non-response rates).

    Args:
        detector: The detector.
        presentations: Attacks and living people.
        data: What was presented, by whom, before which camera; for the card.
    """
    passed: dict[str, list[bool]] = {}
    refused: list[bool] = []
    for one in presentations:
        found = bool(detector.check(one.frames, one.challenge))
        if one.kind is None:
            refused.append(found)
        else:
            passed.setdefault(one.kind, []).append(not found)
    rates = tuple(
        AttackRate(kind=kind, presentations=len(hits), passed=sum(hits))
        for kind, hits in passed.items()
    )
    measured = {
        "rates": rates,
        "bona_fide": len(refused),
        "bona_fide_refused": sum(refused),
        "data": data,
    }
    return detector.card.model_copy(update=measured)


# --- what the built-in checks see -----------------------------------------------------------------

_CROP: Final = CropSpec(size=96, margin=0.15)
_FACE_CENTRE: Final = (48, 50)
_FACE_AXES: Final = (33, 44)
_COLOURS: Final = 32
_FINE, _COARSE = 1.5, 3.0
_DEFOCUS_PX: Final = (0.7, 1.0, 1.5, 2.0, 3.0)
_SMEAR_PX: Final = (5, 9, 13)
_SMEAR_DEG: Final = (0, 45, 90, 135)


def _face_mask() -> Pixels:
    mask = np.zeros((_CROP.size, _CROP.size), np.uint8)
    cv2.ellipse(mask, _FACE_CENTRE, _FACE_AXES, 0, 0, 360, 255, -1)
    return mask


@dataclass(frozen=True, eq=False)
class _Sight:
    """What the checks compare of one frame; it ends with the call and is no recognition template.

    Attributes:
        yaw: Degrees to the right of the picture.
        scale: Distance from the eyes to the mouth in pixels; a turn of the head leaves it.
        centre: (2,) of the face in pixels.
        proportions: (2,) logarithms of eye distance and mouth width over ``scale``.
        fine: (96, 96) float32 luminance of the aligned face, a little blurred.
        shades: Standardised coarse luminance inside the face.
        colours: Distribution of the face's colours without their lightness.
        mean: Expected age, NaN when abstained.
        ages: (101,) probabilities.
        female: P(female); NaN when unknown.
        seconds: Of the frame.
        missed: Frames before it that show nothing.
    """

    yaw: float
    scale: float
    centre: NDArray[np.float64]
    proportions: NDArray[np.float64]
    fine: NDArray[np.float32]
    shades: NDArray[np.float32]
    colours: NDArray[np.float32]
    mean: float
    ages: NDArray[np.float32]
    female: float
    seconds: float | None
    missed: int

    @property
    def clear(self) -> bool:
        """Whether there is an estimate, and so a picture that is good enough for one."""
        return not math.isnan(self.mean)


def _sights(frames: Sequence[LiveFrame]) -> list[_Sight]:
    """Frames without landmarks show nothing to compare, and count as missed."""
    found: list[_Sight] = []
    missed = 0
    for frame in frames:
        missed += frame.missed
        if frame.face.landmarks is None:
            missed += 1
            continue
        found.append(_sight(frame, missed))
        missed = 0
    return found


def _sight(frame: LiveFrame, missed: int) -> _Sight:
    landmarks = frame.face.landmarks
    assert landmarks is not None  # those without are left out
    points = landmarks.astype(np.float64)
    chip = align(frame.pixels, points, _CROP)
    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mask = _face_mask()
    coarse = cv2.GaussianBlur(grey, (0, 0), _COARSE)[mask > 0]
    shades = (coarse - coarse.mean()) / max(float(coarse.std()), 1.0)
    colours = _colours(chip, mask)
    eyes, mouth = points[1] - points[0], points[4] - points[3]
    scale = float(np.linalg.norm(points[:2].mean(axis=0) - points[3:].mean(axis=0)))
    widths = np.maximum([np.linalg.norm(eyes), np.linalg.norm(mouth)], 1e-6)
    gender = frame.face.gender
    return _Sight(
        yaw=head_pose(points)[0],
        scale=max(scale, 1e-6),
        centre=points[[0, 1, 3, 4]].mean(axis=0),
        proportions=np.log(widths / max(scale, 1e-6)),
        fine=cv2.GaussianBlur(grey, (0, 0), _FINE).astype(np.float32),
        shades=shades.astype(np.float32),
        colours=colours,
        mean=frame.face.age.mean,
        ages=frame.face.age.probabilities,
        female=math.nan if gender is None else gender.female_probability,
        seconds=frame.seconds,
        missed=missed,
    )


def _colours(chip: Pixels, mask: Pixels) -> NDArray[np.float32]:
    """Distribution of the shares of red and green, which brighter light does not change."""
    light = chip.astype(np.float32) + 1
    shares = light[..., :2] / light.sum(axis=2, keepdims=True)
    counts = cv2.calcHist(
        [np.ascontiguousarray(shares)], [0, 1], mask, [_COLOURS, _COLOURS], [0.2, 0.6, 0.2, 0.6]
    )
    smooth = cv2.GaussianBlur(counts, (0, 0), 1.0)
    return (smooth / max(float(smooth.sum()), 1e-6)).astype(np.float32)


# --- frame consistency ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ConsistencyRules:
    """Limits of ``ConsistencyCheck``.

    ``docs/explanation/presentation-attacks.md`` has the measurements behind them.

    Attributes:
        min_change: Least unexplained share of a frame's contrast, once the flat picture of the
            first frame has been moved, scaled, tilted and blurred onto it. A photograph with a
            camera's noise stays under 0.006; a turn of twelve degrees or a blink is over 0.012.
        min_changed: Frames that must show such a change.
        comparisons: Frames that are compared with the first at most.
        max_shades: Difference of two aligned faces (1 - correlation) over which they are two.
        max_colours: Distance (Hellinger) of two faces' colours, times two.
        max_years: Difference of the expected ages over which a frame is of another person than
            the first one to the camera, however the head is turned.
        weak_shades: From which difference of shades two weak signs make a change of person.
        weak_colours: The same for the colours.
        weak_proportions: The same for the landmarks' proportions (logarithm).
        weak_years: The same for the expected age.
        weak_female: The same for P(female), which only faces to the camera are compared by: it
            moves by up to 0.8 when one head turns.
        facing_deg: Only frames that face the camera so far are compared as people by all signs.
        step_deg: Turn between two neighbouring frames up to which they are compared so, too.
        tolerated: Share of frames that may look like another person; with few frames none.
        max_unclear: Share of the turned frames that may be too poor for an estimate.
    """

    min_change: float = 0.012
    min_changed: int = 2
    comparisons: int = 8
    max_shades: float = 0.35
    max_colours: float = 0.40
    max_years: float = 20.0
    weak_shades: float = 0.20
    weak_colours: float = 0.20
    weak_proportions: float = 0.20
    weak_years: float = 10.0
    weak_female: float = 0.6
    facing_deg: float = 12.0
    step_deg: float = 8.0
    tolerated: float = 0.1
    max_unclear: float = 0.5


DEFAULT_CONSISTENCY: Final = ConsistencyRules()


@dataclass(frozen=True)
class ConsistencyCheck:
    """Passive: the frames are more than one flat picture moved about, and of one person.

    Attributes:
        rules: Its limits.
    """

    rules: ConsistencyRules = DEFAULT_CONSISTENCY

    @property
    def card(self) -> AttackDetectorCard:
        """What is known of it."""
        return AttackDetectorCard(
            name="agelens-consistency",
            version="2",
            summary="passive; the frames are not one flat picture, and show one person",
            limits=(
                "Stops a still picture, held still, moved or blurred, and most changes of person.",
                "Does not stop a played video, a picture that something is moved across, a mask, "
                "a mannequin that is moved, or an injected stream.",
                "Somebody who does not move is taken for a picture.",
            ),
        )

    def check(self, frames: Sequence[LiveFrame], challenge: Challenge | None) -> tuple[Reason, ...]:
        """See ``AttackDetector.check``; the challenge is not looked at."""
        sights, rules = _sights(frames), self.rules
        clear = [sight for sight in sights if sight.clear]
        if len(clear) <= rules.min_changed:
            return (
                Reason("too_few_frames", "too few frames with a face to see a living person in"),
            )
        reasons = []
        if not _is_changing(clear, rules):
            reasons.append(
                Reason(
                    "still_picture",
                    "the face does not move as a living one does; please turn your head a little",
                )
            )
        if _is_exchanged(sights, rules):
            reasons.append(Reason("person_changed", "the frames do not all show the same person"))
        turned = [sight.clear for sight in sights if abs(sight.yaw) > rules.facing_deg]
        if turned.count(False) > rules.max_unclear * len(turned):
            reasons.append(
                Reason("unclear", "the turned face is too blurred or dark to compare; more light")
            )
        return tuple(reasons)


def _is_changing(sights: Sequence[_Sight], rules: ConsistencyRules) -> bool:
    """Whether enough frames show more than the first one's flat picture, moved and blurred."""
    rows = np.unique(np.linspace(1, len(sights) - 1, rules.comparisons).round().astype(int))
    changed = 0
    for row in rows:
        changed += not _is_flat(sights[0].fine, sights[row].fine, rules.min_change)
        if changed >= rules.min_changed:
            return True
    return False


def _is_flat(first: NDArray[np.float32], other: NDArray[np.float32], min_change: float) -> bool:
    """Whether one flat picture explains both, the sharper one blurred as it fits best.

    Pictures that cannot be laid onto each other are taken for flat: nothing is known.
    """
    mask = _face_mask()
    rest = _unexplained(first, other, mask)
    if not rest >= min_change:
        return True
    sharper_first = _detail(first, mask) >= _detail(other, mask)
    sharper, softer = (first, other) if sharper_first else (other, first)
    return any(
        _unexplained(blurred, softer, mask) < min_change for blurred in _blurred_ways(sharper)
    )


def _detail(picture: NDArray[np.float32], mask: Pixels) -> float:
    edges = cv2.Laplacian(picture, cv2.CV_32F)[mask > 0]
    return float(edges.var() / max(float(picture[mask > 0].var()), 1e-6))


def _blurred_ways(picture: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The picture out of focus, then as a shaken camera smears it."""
    for sigma in _DEFOCUS_PX:
        yield cv2.GaussianBlur(picture, (0, 0), sigma).astype(np.float32, copy=False)
    for length in _SMEAR_PX:
        for degrees in _SMEAR_DEG:
            kernel = np.zeros((length, length), np.float32)
            kernel[length // 2] = 1
            middle = ((length - 1) / 2, (length - 1) / 2)
            turn = cv2.getRotationMatrix2D(middle, degrees, 1)
            line = cv2.warpAffine(kernel, turn, (length, length))
            smeared = cv2.filter2D(picture, -1, line / line.sum(), borderType=cv2.BORDER_REFLECT)
            yield smeared.astype(np.float32, copy=False)


def _unexplained(first: NDArray[np.float32], other: NDArray[np.float32], mask: Pixels) -> float:
    """How far two faces are from one flat picture: 0 when a plane's motion explains them.

    The first face is registered onto the other by the homography that fits best (ECC, Evangelidis
    and Psarakis, PAMI 2008), which takes up every motion of a flat picture, and a change of
    brightness and contrast; what is left is 1 - the correlation. NaN when none fits.
    """
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    start = np.eye(3, dtype=np.float32)
    try:
        correlation, _ = cv2.findTransformECC(
            first, other, start, cv2.MOTION_HOMOGRAPHY, stop, mask, 1
        )
    except cv2.error:  # it does not converge: nothing is known
        return math.nan
    return max(0.0, 1 - float(correlation))


def _is_exchanged(sights: Sequence[_Sight], rules: ConsistencyRules) -> bool:
    """Whether frames are of another person than the first to the camera, or than their neighbour.

    The neighbours are compared once with the poor frames among them and once without, so that a
    poor frame between two people hides no change.
    """
    clear = [sight for sight in sights if sight.clear]
    first = _front(clear or sights, rules)
    facing = [_is_facing(sight, rules) for sight in sights]
    others = [
        is_another_turned(first, sight, rules)
        or (front and _is_facing(first, rules) and is_another_person(first, sight, rules))
        for sight, front in zip(sights, facing, strict=True)
    ]
    for side in (True, False):
        here = [other for other, front in zip(others, facing, strict=True) if front is side]
        if sum(here) > rules.tolerated * len(here):
            return True
    return _has_break(sights, rules) or _has_break(clear, rules)


def _is_facing(sight: _Sight, rules: ConsistencyRules) -> bool:
    return abs(sight.yaw) <= rules.facing_deg


def _front(sights: Sequence[_Sight], rules: ConsistencyRules) -> _Sight:
    """The first frame to the camera; the one turned least when there is none."""
    facing = (sight for sight in sights if _is_facing(sight, rules))
    return next(facing, min(sights, key=lambda sight: abs(sight.yaw)))


def _has_break(sights: Sequence[_Sight], rules: ConsistencyRules) -> bool:
    """Whether the person changes from one frame to the next, and stays changed.

    A single odd frame, such as one with a hand before the face, has neighbours that are alike;
    such frames are tolerated in their share.
    """

    def alike(one: int, two: int) -> bool:
        if not (one >= 0 and two < len(sights)):
            return False
        near = abs(sights[two].yaw - sights[one].yaw) <= rules.step_deg
        return near and not is_another_person(sights[one], sights[two], rules)

    broken = [
        row
        for row, (one, two) in enumerate(pairwise(sights))
        if abs(two.yaw - one.yaw) <= rules.step_deg and is_another_person(one, two, rules)
    ]
    if any(not alike(row, row + 2) and not alike(row - 1, row + 1) for row in broken):
        return True
    return len(broken) > rules.tolerated * len(sights)


def is_another_turned(first: _Sight, other: _Sight, rules: ConsistencyRules) -> bool:
    """Whether a frame is of another person by the signs that hardly change when a head turns."""
    # Comparisons with NaN (an abstention) are False: no sign.
    colours, years = _colour_distance(first, other), abs(first.mean - other.mean)
    if colours > rules.max_colours or years > rules.max_years:
        return True
    return colours > rules.weak_colours and years > rules.weak_years


def is_another_person(first: _Sight, other: _Sight, rules: ConsistencyRules) -> bool:
    """Whether two faces in one pose look like two people: one strong sign, or two weak ones."""
    shades = 1 - float(np.mean(first.shades * other.shades))
    colours = _colour_distance(first, other)
    if shades > rules.max_shades or colours > rules.max_colours:
        return True
    facing = _is_facing(first, rules) and _is_facing(other, rules)
    # Comparisons with NaN (an abstention, no gender) are False: no sign.
    weak = (
        shades > rules.weak_shades,
        colours > rules.weak_colours,
        float(np.abs(first.proportions - other.proportions).max()) > rules.weak_proportions,
        abs(first.mean - other.mean) > rules.weak_years,
        facing and abs(first.female - other.female) > rules.weak_female,
    )
    return sum(weak) >= 2


def _colour_distance(first: _Sight, other: _Sight) -> float:
    overlap = float(np.sqrt(first.colours * other.colours).sum())
    return math.sqrt(max(0.0, 1 - overlap))


# --- the challenge --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Challenge:
    """Moves that are asked of the person, drawn for one occasion.

    Attributes:
        nonce: Names the occasion; a challenge is answered once.
        moves: In this order, each from the start position and back to it.
        issued: When it was drawn.
        expires: An answer after it is refused.
        drawn: The moves were drawn at random, and not given by somebody.
    """

    nonce: str
    moves: tuple[Move, ...]
    issued: datetime
    expires: datetime
    drawn: bool = True

    @property
    def instructions(self) -> tuple[str, ...]:
        """What to tell the person, in English; left and right are the person's own."""
        return ("Look into the camera.", *(INSTRUCTIONS[move] for move in self.moves))

    def to_dict(self) -> dict[str, object]:
        """Wire form."""
        return {
            "nonce": self.nonce,
            "moves": list(self.moves),
            "issued": self.issued.isoformat(),
            "expires": self.expires.isoformat(),
        }

    @classmethod
    def draw(
        cls,
        moves: int = 3,
        *,
        time_limit_s: float = 30.0,
        clock: Callable[[], datetime] = utc_now,
    ) -> Self:
        """Draw moves at random, no two alike one after the other.

        A recording of another occasion fits with probability 1 / (3 * 2^(moves - 1)): one in
        twelve for three moves, one in twenty-four for four.

        Args:
            moves: How many, 2 to 8.
            time_limit_s: Seconds until it expires.
            clock: Gives the time, with its zone.

        Raises:
            ArgumentError: A number is out of range.
        """
        if not 2 <= moves <= 8:
            raise ArgumentError(f"a challenge has 2 to 8 moves, got {moves}")
        if not time_limit_s > 0:
            raise ArgumentError(f"time_limit_s must be over 0, got {time_limit_s}")
        drawn: list[Move] = []
        for _ in range(moves):
            drawn.append(secrets.choice([move for move in MOVES if move not in drawn[-1:]]))
        now = clock()
        return cls(
            secrets.token_urlsafe(16), tuple(drawn), now, now + timedelta(seconds=time_limit_s)
        )


@dataclass(frozen=True)
class ChallengeRules:
    """Limits of ``ChallengeCheck``.

    Attributes:
        turn_deg: Measured turn from the start position that counts as one.
        back_deg: Turn within which the head is back.
        closer: Growth of the face that counts as closer.
        back_scale: Growth within which the face is back.
        hold: Frames that a position must last.
        start: Frames that show the start position.
        max_start_deg: Furthest turn at the start.
        max_step_deg: Furthest turn from one frame to the next; pictures that are exchanged jump.
        max_step_scale: Largest growth or shrinking from one frame to the next.
        max_step_shift: Furthest way of the face from one frame to the next, in distances from
            eyes to mouth.
        max_gap_s: Longest time between two frames that show the face.
        every_s: Time from one frame to the next where their times are not given.
        mirrored: The frames are mirrored, as the selfie view of a phone shows them.
    """

    turn_deg: float = 18.0
    back_deg: float = 8.0
    closer: float = 1.25
    back_scale: float = 1.12
    hold: int = 2
    start: int = 3
    max_start_deg: float = 20.0
    max_step_deg: float = 16.0
    max_step_scale: float = 1.2
    max_step_shift: float = 0.6
    max_gap_s: float = 0.5
    every_s: float = 0.1
    mirrored: bool = False


DEFAULT_CHALLENGE: Final = ChallengeRules()


@dataclass(frozen=True)
class ChallengeCheck:
    """Active: the head moves as the challenge says, in its order, without a jump.

    Whether the challenge is the gate's own, unused and in time is for the gate to see.

    Attributes:
        rules: Its limits.
    """

    rules: ChallengeRules = field(default=DEFAULT_CHALLENGE)

    @property
    def card(self) -> AttackDetectorCard:
        """What is known of it."""
        return AttackDetectorCard(
            name="agelens-head-turn",
            version="1",
            summary="active; the head turns and comes closer in an order drawn for the occasion",
            limits=(
                "Stops photographs, also several exchanged one for another, and a recording whose "
                "moves are in another order.",
                "Does not stop a live face swap, a mask that is worn, or somebody who plays many "
                "recordings until one fits (1 in 12 for three moves): limit the tries.",
                "People who cannot turn their head need another way.",
            ),
        )

    def check(self, frames: Sequence[LiveFrame], challenge: Challenge | None) -> tuple[Reason, ...]:
        """See ``AttackDetector.check``; without a challenge there is nothing to pass."""
        if challenge is None:
            return (Reason("no_challenge", "no moves were asked for"),)
        sights, rules = _sights(frames), self.rules
        if len(sights) < rules.start + 2 * rules.hold * len(challenge.moves):
            return (Reason("too_few_frames", "too few frames with a face to follow the moves in"),)
        start_yaw = float(np.median([sight.yaw for sight in sights[: rules.start]]))
        if abs(start_yaw) > rules.max_start_deg:
            return (Reason("not_facing", "the moves must begin facing the camera"),)
        jump = _jump(sights, rules)
        if jump is not None:
            return (jump,)
        seen = moves_seen(sights, rules)
        if seen != list(challenge.moves):
            return (Reason("wrong_moves", "the moves were not those that were asked for"),)
        return ()


def moves_seen(sights: Sequence[_Sight], rules: ChallengeRules) -> list[str]:
    """The moves that were made, each from the start position; "unclear" for two at once."""
    start = sights[: rules.start]
    yaw = float(np.median([sight.yaw for sight in start]))
    scale = float(np.median([sight.scale for sight in start]))
    moves: list[str] = []
    gesture: list[str] = []
    for sight in sights[rules.start :]:
        place = _place(sight.yaw - yaw, sight.scale / scale, rules)
        if place == "start":
            moves += _gesture(gesture, rules)
            gesture = []
        else:
            gesture.append(place)
    return moves + _gesture(gesture, rules)


def _place(turn: float, growth: float, rules: ChallengeRules) -> str:
    # Positive yaw is to the right of the picture, which is the person's own left.
    to_the_left = -turn if rules.mirrored else turn
    if abs(turn) >= rules.turn_deg:
        return "left" if to_the_left > 0 else "right"
    if growth >= rules.closer:
        return "closer"
    if abs(turn) <= rules.back_deg and growth <= rules.back_scale:
        return "start"
    return "between"


def _gesture(places: Sequence[str], rules: ChallengeRules) -> list[str]:
    held = [move for move in MOVES if places.count(move) >= rules.hold]
    if len(held) > 1:
        return ["unclear"]
    return [str(move) for move in held]


def _jump(sights: Sequence[_Sight], rules: ChallengeRules) -> Reason | None:
    for one, two in pairwise(sights):
        growth = max(one.scale, two.scale) / min(one.scale, two.scale)
        way = float(np.linalg.norm(two.centre - one.centre)) / max(one.scale, two.scale)
        if (
            abs(two.yaw - one.yaw) > rules.max_step_deg
            or growth > rules.max_step_scale
            or way > rules.max_step_shift
        ):
            return Reason("jump", "the face jumps from one frame to the next; please move slowly")
        if one.seconds is None or two.seconds is None:
            gap = (two.missed + 1) * rules.every_s
        else:
            gap = two.seconds - one.seconds
        if not 0 <= gap <= rules.max_gap_s:
            return Reason("gap", "frames with the face are missing, or not in their order")
    return None


__all__ = [
    "CARD_SCHEMA",
    "INSTRUCTIONS",
    "MOVES",
    "AttackDetector",
    "AttackDetectorCard",
    "AttackRate",
    "Challenge",
    "ChallengeCheck",
    "ChallengeRules",
    "ConsistencyCheck",
    "ConsistencyRules",
    "LiveFrame",
    "Move",
    "Presentation",
    "Reason",
    "measure_detector",
]
