"""
A program's way to the service: pictures to another computer, the same results back.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Final,
    Literal,
    Self,
    TypedDict,
    TypeGuard,
    Unpack,
    overload,
)

from agelens.errors import (
    IMAGE_ERROR_CODES,
    ArgumentError,
    ImageError,
    MissingExtra,
    ServiceError,
)
from agelens.images import source_name
from agelens.results import Analysis, AnalysisError

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLE: Final = "AGELENS_API_KEY"
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path, the bytes of a picture, or a file opened in binary mode, which is read to its end."""

_PICTURES_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 16 * 1024 * 1024
_LONGEST_WAIT_S: Final = 30.0
# Of a gate only what was refused at the door may be asked again: a decision may have been written.
_AT_THE_DOOR: Final = frozenset({"overloaded", "not_ready", "rate_limited"})
_WHOLE_REQUEST: Final = frozenset({"too_many_images", "body_too_large"})


class AnalyzeOptions(TypedDict, total=False):
    """What may be asked of ``Client.analyze``; what is left out is as in ``AnalyzerOptions``.

    Attributes:
        model: Name of a model of ``Client.models``; None takes the service's own.
        detector: "none" when each picture is one face.
        crops: Each picture is one face crop: the whole picture when no face is found.
        gender: False switches the gender estimate off.
        min_face: Smallest face to look for, in pixels.
        max_faces: Keep this many faces, the most prominent first; None keeps all.
        flip: Average each face with its mirror image.
    """

    model: str | None
    detector: Literal["default", "none"]
    crops: bool
    gender: bool
    min_face: int
    max_faces: int | None
    flip: bool


@dataclass(frozen=True)
class ServedModel:
    """A model that the service offers.

    Attributes:
        name: For the argument ``model``.
        version: Its version.
        model: "name@version", as analyses carry it.
        summary: What it is.
        licence: Its licence.
        licence_class: Whether it may be used commercially.
        attribution: Whom to name.
        gender: Whether it estimates perceived gender.
        default: Whether it answers when no model is named.
    """

    name: str
    version: str
    model: str
    summary: str
    licence: str
    licence_class: Literal["commercial", "research"]
    attribution: str
    gender: bool
    default: bool


@dataclass(frozen=True)
class GateAnswer:
    """What a gate says of one person.

    Attributes:
        id: Of the decision, as in the gate's journal.
        outcome: "accept", "refuse", "step_up" (to another proof) or "retry".
        reasons: Why, in words; the first one decided.
        token: A signed JWT that says so to others, or None.
        wire: The whole answer; see the reference of the gate.
    """

    id: str
    outcome: Literal["accept", "refuse", "step_up", "retry"]
    reasons: tuple[str, ...]
    token: str | None
    wire: Mapping[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the person may pass."""
        return self.outcome == "accept"


@dataclass(frozen=True)
class AskedMoves:
    """Moves that a gate asks a person to make before the camera.

    Attributes:
        challenge: To send along with the frames.
        moves: What to do, in order, as "left", "right", "closer".
        expires: Until when the frames must have come.
    """

    challenge: str
    moves: tuple[str, ...]
    expires: datetime


class Client:
    """Asks a service over HTTP; holds connections, so close it or use it in a ``with``.

    Thread-safe. A refusal with 503 or 429 is asked again after the time that the service names.

    Example:
        >>> from agelens import Client
        >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     analysis = client.analyze("tests/faces/astronaut.jpg")
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Address of the service; https for all but this computer.
            key: API key or token; by default that of the variable AGELENS_API_KEY, if set.
            timeout_s: For one answer.
            retries: How often to ask again when the service is overloaded or starting, or when
                one has asked too often.

        Raises:
            MissingExtra: Without the ``client`` extra.
            ArgumentError: The address is none, or a number is out of range.
        """
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtra("client", "agelens.Client") from error
        if not url.startswith(("http://", "https://")):
            raise ArgumentError(f"url must begin with http:// or https://, got {url!r}")
        if retries < 0 or not timeout_s > 0:
            raise ArgumentError(
                f"retries must be 0 or more and timeout_s over 0, got {retries} and {timeout_s}"
            )
        key = os.environ.get(KEY_VARIABLE) if key is None else key
        self._url = url.rstrip("/")
        self._retries = retries
        self._pictures_at_once = _PICTURES_AT_ONCE
        self._bytes_at_once = _BYTES_AT_ONCE
        self._http = httpx2.Client(
            base_url=self._url,
            timeout=timeout_s,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )

    def __repr__(self) -> str:
        return f"Client({self._url!r})"  # never the key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- pictures --------------------------------------------------------------------------------

    # A path in text is also an iterable of text; the first fitting signature counts.
    @overload
    def analyze(  # type: ignore[overload-overlap]
        self, source: Source, **options: Unpack[AnalyzeOptions]
    ) -> Analysis: ...

    @overload
    def analyze(
        self, source: Iterable[Source], **options: Unpack[AnalyzeOptions]
    ) -> list[Analysis]: ...

    def analyze(
        self, source: Source | Iterable[Source], **options: Unpack[AnalyzeOptions]
    ) -> Analysis | list[Analysis]:
        """Find the faces of pictures and estimate age and gender.

        The whole distribution of each age is fetched, so that groups and intervals of every level
        can be asked of the result as if it had been made here. Boxes, landmarks and scores are
        rounded as in files.

        Args:
            source: A path, bytes or a binary file for one analysis; several of them for a list, in
                order, sent in as few requests as sensible and as the service takes.
            **options: See ``AnalyzeOptions``.

        Raises:
            ArgumentError: A source is none.
            ImageError: The one picture cannot be read; of several, its row has the ``error``.
            ServiceError: The service refused or failed; ``code`` says why. Of several pictures,
                one that the service refuses by itself has the ``error`` in its row.
        """
        given: dict[str, object] = {**options, "distribution": True}
        query = {name: _text(value) for name, value in given.items() if value is not None}
        if _is_one(source):
            (analysis,) = self._analyze([source], query, in_rows=False)
            if analysis.error is not None:
                raise _image_error(analysis)
            return analysis
        sources: list[Source] = list(source)  # type: ignore[arg-type]
        return self._analyze(sources, query, in_rows=True)

    def _analyze(
        self, sources: Sequence[Source], query: Mapping[str, str], *, in_rows: bool
    ) -> list[Analysis]:
        analyses: list[Analysis] = []
        batch: list[tuple[int, bytes]] = []
        for source in sources:
            analyses.append(Analysis(source_name(source), 0, 0))
            try:
                data = _bytes(source)
            except ImageError as error:
                failed = AnalysisError(error.code, error.message)
                analyses[-1] = replace(analyses[-1], error=failed)
                continue
            size = sum(len(other) for _, other in batch)
            is_full = len(batch) >= self._pictures_at_once
            if batch and (is_full or size + len(data) > self._bytes_at_once):
                self._answer(batch, query, analyses, in_rows=in_rows)
                batch = []
            batch.append((len(analyses) - 1, data))
        if batch:
            self._answer(batch, query, analyses, in_rows=in_rows)
        return analyses

    def _answer(
        self,
        batch: Sequence[tuple[int, bytes]],
        query: Mapping[str, str],
        into: list[Analysis],
        *,
        in_rows: bool,
    ) -> None:
        if not batch:
            return
        files = [("image", (str(place), data, "application/octet-stream")) for place, data in batch]
        answer, told = self._tried("POST", "/v1/analyze", params=dict(query), files=files)
        code = None if answer.is_success else told["code"]
        if code in _WHOLE_REQUEST and len(batch) > 1:
            self._send_less(code, batch)
            half = len(batch) // 2
            self._answer(batch[:half], query, into, in_rows=in_rows)
            self._answer(batch[half:], query, into, in_rows=in_rows)
            return
        blamed = _blamed(told, len(batch)) if code is not None and in_rows else None
        if blamed is not None:
            row, error = batch[blamed][0], AnalysisError(told["code"], told["detail"])
            into[row] = replace(into[row], error=error)
            self._answer([*batch[:blamed], *batch[blamed + 1 :]], query, into, in_rows=in_rows)
            return
        if code is None:
            found = [Analysis.from_dict(wire) for wire in told["analyses"]]
        elif code == "unreadable_image" and told.get("errors"):
            found = [
                Analysis(None, 0, 0, (), AnalysisError(row["code"], row["message"]))
                for row in told["errors"]
            ]
        else:
            raise _service_error(answer, told)
        if len(found) != len(batch):
            raise ServiceError(
                "bad_answer", f"{len(batch)} pictures were sent, {len(found)} came back"
            )
        for (place, _), analysis in zip(batch, found, strict=True):
            into[place] = replace(analysis, path=into[place].path)

    def _send_less(self, code: str, batch: Sequence[tuple[int, bytes]]) -> None:
        """Learn from a refusal, so that the next requests are not refused too."""
        if code == "too_many_images":
            self._pictures_at_once = min(self._pictures_at_once, len(batch) // 2)
        else:
            size = sum(len(data) for _, data in batch)
            self._bytes_at_once = min(self._bytes_at_once, size // 2)

    def models(self) -> list[ServedModel]:
        """The models of the service, the default one first.

        Raises:
            ServiceError: The service refused or failed.
        """
        rows = self._ask("GET", "/v1/models")["models"]
        return [ServedModel(**row) for row in rows]

    # --- gates -----------------------------------------------------------------------------------

    def policies(self) -> list[dict[str, Any]]:
        """The gates of the service; see the reference of the HTTP API.

        Raises:
            ServiceError: The service refused or failed.
        """
        rows: list[dict[str, Any]] = self._ask("GET", "/v1/policies")["policies"]
        return rows

    def challenge(self, policy: str) -> AskedMoves:
        """Moves for the person before the camera to make; they hold once, and not for long.

        Args:
            policy: Name of the gate's policy.

        Raises:
            ServiceError: The service refused or failed.
        """
        found = self._ask("POST", "/v1/gate/challenge", json={"policy": policy})
        return AskedMoves(
            found["challenge"], tuple(found["moves"]), datetime.fromisoformat(found["expires"])
        )

    def gate(
        self,
        policy: str,
        frames: Source | Iterable[Source],
        *,
        challenge: str | None = None,
        nonce: str | None = None,
    ) -> GateAnswer:
        """Let a gate decide on one person.

        Args:
            policy: Name of the gate's policy.
            frames: Pictures in the order they were taken; or one path, bytes or binary file: a
                clip.
            challenge: That of the moves that the person was asked for.
            nonce: Of the party that accepts the token; without it there is no token.

        Raises:
            ImageError: A file cannot be read.
            ServiceError: The service refused or failed, or the gate is shut.
        """
        fields = {"policy": policy, "challenge": challenge, "nonce": nonce}
        clip = _is_one(frames)
        sources: list[Source] = [frames] if clip else list(frames)  # type: ignore[arg-type,list-item]
        part = "clip" if clip else "frame"
        files = [
            (part, (str(n), _bytes(source), "application/octet-stream"))
            for n, source in enumerate(sources)
        ]
        wire = self._ask(
            "POST",
            "/v1/gate",
            files=files,
            data={name: value for name, value in fields.items() if value is not None},
            again=_AT_THE_DOOR,
        )
        token = wire["token"]
        return GateAnswer(
            wire["id"],
            wire["outcome"],
            tuple(reason["text"] for reason in wire["reasons"]),
            None if token is None else token["jwt"],
            wire,
        )

    # --- the service -----------------------------------------------------------------------------

    def health(self) -> bool:
        """True when the service takes requests, False when it starts or ends.

        Raises:
            ServiceError: There is no service.
        """
        try:
            self._ask("GET", "/readyz", again=frozenset())
        except ServiceError as error:
            if error.code == "not_ready":
                return False
            raise
        return True

    def _ask(
        self, method: str, path: str, *, again: frozenset[str] | None = None, **request: Any
    ) -> Any:
        """What a request is answered with.

        Raises:
            ServiceError: It is refused.
        """
        answer, told = self._tried(method, path, again=again, **request)
        if not answer.is_success:
            raise _service_error(answer, told)
        return told

    def _tried(
        self, method: str, path: str, *, again: frozenset[str] | None = None, **request: Any
    ) -> tuple[httpx2.Response, Any]:
        """One request, asked again while the service says when to come back."""
        import httpx2

        for tries in range(self._retries + 1):
            try:
                answer = self._http.request(method, path, **request)
            except httpx2.HTTPError as error:
                raise ServiceError(
                    "unreachable",
                    f"{self._url}{path}: no answer ({type(error).__name__}); check that the "
                    "service runs and that the address is right",
                ) from error
            told = _json(answer)
            may_retry = answer.status_code in (429, 503) and (
                again is None or told["code"] in again
            )
            if not may_retry or tries == self._retries:
                break
            wait_s = min(_retry_after_s(answer) or 1.0, _LONGEST_WAIT_S)
            # A little by chance, so that not all come back at once.
            time.sleep(wait_s * random.uniform(1.0, 1.25))
        return answer, told


def _blamed(problem: Mapping[str, Any], pictures: int) -> int | None:
    """The place of the picture for which alone a request was refused."""
    if problem["code"] == "body_too_large" and pictures == 1:
        return 0
    place = problem.get("index")
    is_place = isinstance(place, int) and 0 <= place < pictures
    return place if problem["code"] == "poison" and is_place else None


def _service_error(answer: httpx2.Response, problem: Mapping[str, Any]) -> ServiceError:
    return ServiceError(
        problem["code"],
        problem["detail"],
        status=answer.status_code,
        request_id=problem.get("request_id"),
        retry_after_s=_retry_after_s(answer),
    )


def _retry_after_s(answer: httpx2.Response) -> float | None:
    text: str = answer.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _json(answer: httpx2.Response) -> Any:
    try:
        found = answer.json()
        if answer.is_success or {"code", "detail"} <= set(found):
            return found
    except (ValueError, TypeError):
        pass
    raise ServiceError(
        "bad_answer",
        f"{answer.request.url} answered {answer.status_code} with "
        f"{answer.headers.get('content-type', 'no content')}; is this an AgeLens service?",
        status=answer.status_code,
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_one(source: object) -> TypeGuard[Source]:
    """Whether it is one source; a binary file could also be iterated over, by lines."""
    is_given = isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
    return is_given or hasattr(source, "read")


def _bytes(source: Source) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return _read(Path(source))
    found: object = source.read() if hasattr(source, "read") else None
    if not isinstance(found, bytes):
        raise ArgumentError(
            f"a picture can't be sent from {type(source).__name__}; pass a path, bytes, or a file "
            "opened in binary mode"
        )
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("not_found", "no such file; check the path", where=str(path)) from error
    except IsADirectoryError as error:
        message = "this is a folder; pass the files in it"
        raise ImageError("is_directory", message, where=str(path)) from error
    except OSError as error:
        message = f"the system can't read it ({error.strerror}); check the path and the disk"
        raise ImageError("not_readable", message, where=str(path)) from error


def _image_error(analysis: Analysis) -> ImageError | ServiceError:
    assert analysis.error is not None  # the caller looked
    if analysis.error.code in IMAGE_ERROR_CODES:
        return ImageError(analysis.error.code, analysis.error.message, where=analysis.path)
    return ServiceError(analysis.error.code, analysis.error.message)


__all__ = ["AnalyzeOptions", "AskedMoves", "Client", "GateAnswer", "ServedModel"]
