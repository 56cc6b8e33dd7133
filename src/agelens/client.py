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
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, Unpack, overload

from agelens.errors import (
    IMAGE_ERROR_CODES,
    ArgumentError,
    ImageError,
    MissingExtra,
    ServiceError,
)
from agelens.results import Analysis, AnalysisError

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLE: Final = "AGELENS_API_KEY"
Source = str | os.PathLike[str] | bytes
"""A path, or the bytes of a picture."""

_PICTURES_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 16 * 1024 * 1024
_LONGEST_WAIT_S: Final = 30.0
# Of a gate only what was refused at the door may be asked again: a decision may have been written.
_AT_THE_DOOR: Final = frozenset({"overloaded", "not_ready"})


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

    Thread-safe. A refusal with 503 is asked again after the time that the service names.

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
            retries: How often to ask again when the service is overloaded or starting.

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
            source: A path or bytes for one analysis; several of them for a list, in order, sent in
                as few requests as sensible.
            **options: See ``AnalyzeOptions``.

        Raises:
            ImageError: The one picture cannot be read; of several, its row has the ``error``.
            ServiceError: The service refused or failed; ``code`` says why.
        """
        given: dict[str, object] = {**options, "distribution": True}
        query = {name: _text(value) for name, value in given.items() if value is not None}
        if isinstance(source, str | os.PathLike | bytes):
            (analysis,) = self._analyze([source], query)
            if analysis.error is not None:
                raise _image_error(analysis)
            return analysis
        return self._analyze(list(source), query)

    def _analyze(self, sources: Sequence[Source], query: Mapping[str, str]) -> list[Analysis]:
        analyses: list[Analysis] = []
        batch: list[tuple[int, bytes]] = []
        for source in sources:
            name = None if isinstance(source, bytes) else os.fspath(source)
            analyses.append(Analysis(name, 0, 0))
            try:
                data = source if isinstance(source, bytes) else _read(Path(source))
            except ImageError as error:
                failed = AnalysisError(error.code, error.message)
                analyses[-1] = replace(analyses[-1], error=failed)
                continue
            size = sum(len(other) for _, other in batch)
            if batch and (len(batch) == _PICTURES_AT_ONCE or size + len(data) > _BYTES_AT_ONCE):
                self._answer(batch, query, analyses)
                batch = []
            batch.append((len(analyses) - 1, data))
        if batch:
            self._answer(batch, query, analyses)
        return analyses

    def _answer(
        self, batch: Sequence[tuple[int, bytes]], query: Mapping[str, str], into: list[Analysis]
    ) -> None:
        files = [("image", (str(place), data, "application/octet-stream")) for place, data in batch]
        try:
            answer = self._ask("POST", "/v1/analyze", params=dict(query), files=files)
            found = [Analysis.from_dict(wire) for wire in answer["analyses"]]
        except _Unreadable as refused:
            found = [
                Analysis(None, 0, 0, (), AnalysisError(row["code"], row["message"]))
                for row in refused.rows
            ]
        if len(found) != len(batch):
            raise ServiceError(
                "bad_answer", f"{len(batch)} pictures were sent, {len(found)} came back"
            )
        for (place, _), analysis in zip(batch, found, strict=True):
            into[place] = replace(analysis, path=into[place].path)

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
            frames: Pictures in the order they were taken; or one path or bytes: a clip.
            challenge: That of the moves that the person was asked for.
            nonce: Of the party that accepts the token; without it there is no token.

        Raises:
            ImageError: A file cannot be read.
            ServiceError: The service refused or failed, or the gate is shut.
        """
        fields = {"policy": policy, "challenge": challenge, "nonce": nonce}
        clip = isinstance(frames, str | os.PathLike | bytes)
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
            if answer.is_success:
                return _json(answer)
            problem = _json(answer)
            may_retry = answer.status_code == 503 and (again is None or problem["code"] in again)
            if not may_retry or tries == self._retries:
                break
            time.sleep(_wait_s(answer.headers.get("retry-after")))
        if problem["code"] == "unreadable_image" and problem.get("errors"):
            raise _Unreadable(problem["errors"])
        raise ServiceError(
            problem["code"],
            problem["detail"],
            status=answer.status_code,
            request_id=problem.get("request_id"),
        )


class _Unreadable(Exception):
    """No picture of a request can be read."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows
        super().__init__(rows)


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


def _wait_s(retry_after: str | None) -> float:
    """What the service says, and a little by chance, so that not all come back at once."""
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
    return min(seconds, _LONGEST_WAIT_S) * random.uniform(1.0, 1.25)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bytes(source: Source) -> bytes:
    return source if isinstance(source, bytes) else _read(Path(source))


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
