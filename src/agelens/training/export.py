"""
Export: from a checkpoint to an ONNX file with its card, compared with the network it came from.

The graph takes what the crop gives, (N, S, S, 3) uint8 RGB, scales and normalises by itself, and
keeps every weight under its own name, so that training can go on from it. Its outputs are those
that ``agelens.calibration`` decodes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

try:
    import onnx
    import onnx_ir as ir
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from onnx_ir.passes import common as graph_passes
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules
    from torch import Tensor, nn
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "exporting a network") from error

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agelens.bundle import AgeOutput, ModelCard, card_faults, import_onnxruntime
from agelens.calibration import decode_age
from agelens.data.loading import BalancedDraws, PreparedFaces, ShardFolder, balance_weights
from agelens.errors import ArgumentError, CardError, DataError, ModelError
from agelens.results import AGE_COUNT
from agelens.training.checkpoint import Checkpoint, load_checkpoint
from agelens.training.journal import write_whole
from agelens.training.network import AgeGenderNetwork, log_probability_over
from agelens.training.recipe import toml_text

Precision = Literal["fp32", "fp16", "int8"]

CARD_SCHEMA: Final = "agelens.card/1"
OPSET: Final = 18
"""Read by ONNX Runtime 1.14 (2023) and later, in browsers and on phones too."""
LARGEST_AGE_DIFFERENCE: Final = 0.01
"""Years that an fp32 export may differ from its network on any face."""
PARITY_FACES: Final = 256
CALIBRATION_FACES: Final = 500

_HALF_SUFFIX: Final = ".half"
_SMALLEST_HALVED: Final = 1024
_EARLY_SHARE: Final = 0.01
"""Share of the weights, from the input on, that int8 leaves alone; halves its error at no size."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the network.

    Attributes:
        model: The ONNX file.
        card: Its card.
        precision: fp32, fp16 (weights stored in half precision) or int8.
        size_bytes: Of the ONNX file.
        sha256: Of the ONNX file.
        faces: Faces that were compared.
        faces_from: Where they came from.
        age_difference_max: Largest difference of the expected ages in years.
        age_difference_mean: Mean difference of the expected ages in years.
        gender_difference_max: Largest difference of P(female); NaN without gender.
        age_error_before: Mean distance in years of the network's ages from the labels; NaN without.
        age_error_after: The same of the exported model.
    """

    model: Path
    card: Path
    precision: Precision
    size_bytes: int
    sha256: str
    faces: int
    faces_from: str
    age_difference_max: float
    age_difference_mean: float
    gender_difference_max: float
    age_error_before: float
    age_error_after: float

    def lines(self) -> tuple[str, ...]:
        """The report as text."""
        lines = [
            f"{self.model} ({self.precision}, {self.size_bytes / 1e6:.2f} MB) and {self.card}",
            f"against the network on {self.faces} faces of {self.faces_from}: age differs by "
            f"{self.age_difference_max:.2g} years at most, {self.age_difference_mean:.2g} on "
            f"average; P(female) by {self.gender_difference_max:.2g} at most",
        ]
        if math.isfinite(self.age_error_before):
            lines.append(
                f"age error on them: {self.age_error_before:.3f} years before, "
                f"{self.age_error_after:.3f} after"
            )
        return tuple(lines)


def export(
    run_or_checkpoint: str | Path,
    out: str | Path,
    *,
    name: str,
    version: str,
    precision: Precision = "fp32",
    calibration_data: str | Path | None = None,
    summary: str | None = None,
    licence: str | None = None,
    limits: Sequence[str] = (),
) -> ExportReport:
    """Write ``NAME.onnx`` and its card ``NAME.toml``.

    Args:
        run_or_checkpoint: A run's folder (its best checkpoint) or a checkpoint.
        out: Folder to write to.
        name: Of the model: small letters, digits, dots, dashes.
        version: Of the model.
        precision: ``fp32``; ``fp16`` stores the weights in half precision and computes in single;
            ``int8`` quantises convolutions and matrix products.
        calibration_data: Folder of prepared faces that int8 is calibrated on and exports are
            compared on; None takes the run's own, or noise when they are gone.
        summary: One sentence for the card; None takes the recipe's.
        licence: Of the weights, in words; None names those of the training data.
        limits: What the model is not good for.

    Returns:
        Paths and differences.

    Raises:
        ModelNotFound, ModelCorrupt: The checkpoint cannot be read.
        ArgumentError: ``int8`` without faces to calibrate on.
        ModelError: The exported graph does not agree with the network; nothing is written then.
        CardError: ``name`` or another field is not one that a card can have; likewise.
    """
    checkpoint = load_checkpoint(run_or_checkpoint)
    faces, faces_from = _comparison_faces(checkpoint, calibration_data)
    if precision == "int8" and faces is None:
        raise ArgumentError(
            "int8 is calibrated on faces, and those of the run are gone: give calibration_data"
        )
    graph = export_graph(checkpoint.network)
    if precision == "fp16":
        graph = _with_half_weights(graph)
    elif precision == "int8":
        assert faces is not None
        graph = _quantised(graph, faces)
    content = graph.SerializeToString()
    age = age_output(checkpoint.network)
    report = _compare(checkpoint, content, age, faces, faces_from, precision, Path(out), name)
    if precision == "fp32" and not report.age_difference_max < LARGEST_AGE_DIFFERENCE:
        raise ModelError(
            f"{checkpoint.path}: the exported graph differs from the network by "
            f"{report.age_difference_max:.3g} years, allowed are {LARGEST_AGE_DIFFERENCE}"
        )
    card = toml_text(_card(checkpoint, report, age, name, version, summary, licence, limits))
    _check_card(card, report.card)
    report.model.parent.mkdir(parents=True, exist_ok=True)
    write_whole(report.model, content)
    write_whole(report.card, card)
    return report


class ExportedNetwork(nn.Module):
    """The network as its graph: one age output in a form that the card can name, and gender."""

    def __init__(self, network: AgeGenderNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, faces: Tensor) -> tuple[Tensor, ...]:
        """(N, S, S, 3) uint8 to (N, K) age and (N, 1) logit of female."""
        outputs = self.network(faces)
        age = self._age(outputs)
        return (age, outputs["gender"]) if "gender" in outputs else (age,)

    def _age(self, outputs: Mapping[str, Tensor]) -> Tensor:
        heads = self.network.heads_settings
        if heads.age_output == "mixture":
            return self.network.log_probabilities(outputs)
        if heads.age_output == "ordinal" and heads.ordinal and heads.ordinal.loss == "corn":
            log_over = log_probability_over(outputs["ordinal"], heads).clamp(max=-1e-7)
            return log_over - torch.log(-torch.expm1(log_over))
        return outputs[heads.age_output]


def age_output(network: AgeGenderNetwork) -> AgeOutput:
    """What the exported age output is, as the card says it."""
    heads = network.heads_settings
    kind = "distribution" if heads.age_output == "mixture" else heads.age_output
    starts = heads.ranges.starts if kind == "ranges" and heads.ranges else None
    return AgeOutput(output="age", kind=kind, starts=starts)


def export_graph(network: AgeGenderNetwork) -> onnx.ModelProto:
    """The network as an ONNX graph with a free batch size.

    Constants are folded, but no weight is merged with another or renamed; ONNX Runtime does the
    rest when it loads the graph.

    Args:
        network: On the CPU; switched to evaluation mode.
    """
    network.eval()
    size = network.settings.size
    faces = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    outputs = ["age", "gender"] if "gender" in network.heads else ["age"]
    program = torch.onnx.export(
        ExportedNetwork(network).eval(),
        (faces,),
        input_names=["faces"],
        output_names=outputs,
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes={"faces": {0: torch.export.Dim("batch", min=1, max=65536)}},
        optimize=False,
        verbose=False,
    )
    assert program is not None
    model = program.model
    _tidy(model)
    graph = ir.to_proto(model)
    onnx.checker.check_model(graph)
    return graph


# --- graphs ---------------------------------------------------------------------------------------


def _tidy(model: ir.Model) -> None:
    graph_passes.InlinePass()(model)
    weights = set(model.graph.initializers)

    def may_fold(node: ir.Node) -> bool | None:
        made_of_weights = any(v is not None and v.name in weights for v in node.inputs)
        # Types and lengths of weights may be folded, their values not.
        return None if not made_of_weights or node.op_type in ("CastLike", "Shape") else False

    simplifications = [
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.no_op_transpose_rule,
        rules.cast_cast_rule,
        rules.reshape_reshape_rule,
        rules.transpose_transpose_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.add_0_rule,
        rules.div_by_1_rule,
        rules.mul_by_1_rule,
        rules.collapse_slice_rule,
        rules.collapse_slice2_rule,
        rules.materialize_reshape_shape_rule,
        rules.normalize_pad_format_conv_rule,
        rules.fuse_pad_into_conv_rule,
    ]
    for _ in range(2):
        fold_constants_ir(model, onnx_shape_inference=True, should_fold=may_fold)
        rewrite(model, simplifications)
    graph_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph_passes.CommonSubexpressionEliminationPass()(model)
    graph_passes.RemoveUnusedNodesPass()(model)
    graph_passes.ClearMetadataAndDocStringPass()(model)
    graph_passes.NameFixPass()(model)


def _with_half_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    halved = onnx.ModelProto()
    halved.CopyFrom(graph)
    kept, casts = [], []
    for tensor in halved.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _SMALLEST_HALVED:
            kept.append(tensor)
            continue
        limit = float(np.finfo(np.float16).max)
        half = np.clip(values, -limit, limit).astype(np.float16)
        stored = f"{tensor.name}{_HALF_SUFFIX}"
        kept.append(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *halved.graph.node]
    del halved.graph.initializer[:], halved.graph.node[:]
    halved.graph.initializer.extend(kept)
    halved.graph.node.extend(nodes)
    onnx.checker.check_model(halved)
    return halved


def _quantised(graph: onnx.ModelProto, faces: PreparedFaces) -> onnx.ModelProto:
    import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        whole, fused, small = (Path(folder, f"{n}.onnx") for n in ("whole", "fused", "small"))
        onnx.save(graph, whole)
        quant_pre_process(str(whole), str(fused), skip_symbolic_shape=True)
        quantize_static(
            str(fused),
            str(small),
            _BalancedFaces(faces),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul"],
            nodes_to_exclude=_sensitive_nodes(onnx.load(fused)),
            per_channel=True,
            # Eight full bits overflow in the 16-bit sums of processors without VNNI.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        return onnx.load(small)


def _sensitive_nodes(graph: onnx.ModelProto) -> list[str]:
    """What stays in float: early layers, squeeze-and-excitation, heads; little work, much harm."""
    marks = (".se.", "conv_stem", "patch_embed", "representation", "heads.")
    sizes = {t.name: int(np.prod(t.dims)) for t in graph.graph.initializer}
    room, kept = _EARLY_SHARE * sum(sizes.values()), []
    early = True
    for number, node in enumerate(n for n in graph.graph.node if n.op_type in ("Conv", "MatMul")):
        room -= sum(sizes.get(name, 0) for name in node.input)
        early = early and room > 0
        if number == 0 or early or any(mark in name for name in node.input for mark in marks):
            kept.append(node.name)
    return kept


class _BalancedFaces:
    """Calibration faces, drawn so that every age, gender and group is among them."""

    def __init__(self, faces: PreparedFaces) -> None:
        weights = balance_weights(faces.labels, ("dataset", "decade", "gender", "group"))
        count = min(CALIBRATION_FACES, len(faces))
        draws = BalancedDraws(weights, batch_size=count, batches=1, seed=0)
        rows, _ = draws.epoch(0)
        self._batches: Iterator[NDArray[np.uint8]] = (
            np.stack([faces.face(int(row)) for row in rows[start : start + 25]])
            for start in range(0, count, 25)
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch under the input's name, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"faces": batch}


# --- comparison -----------------------------------------------------------------------------------


def _comparison_faces(
    checkpoint: Checkpoint, given: str | Path | None
) -> tuple[PreparedFaces | None, str]:
    recipe, settings = checkpoint.recipe, checkpoint.network.settings
    sources = [str(given)] if given is not None else list(checkpoint.data.folders[:1])
    for source in sources:
        try:
            folder = ShardFolder(source, group_column=recipe.data.group_column)
            faces = PreparedFaces(
                [folder],
                split=recipe.data.val_split,
                size=settings.size,
                margin=settings.margin,
                datasets=recipe.data.datasets if given is None else (),
            )
        except DataError:
            if given is not None:
                raise
            continue
        return faces, f"the {recipe.data.val_split} split of {Path(source).name}"
    return None, "noise (the run's faces are gone)"


def _compare(
    checkpoint: Checkpoint,
    content: bytes,
    age: AgeOutput,
    faces: PreparedFaces | None,
    faces_from: str,
    precision: Precision,
    out: Path,
    name: str,
) -> ExportReport:
    chips, rows = _some_chips(checkpoint.network.settings.size, faces)
    mean, female = _answers_of_graph(content, chips, age)
    wanted_mean, wanted_female = _answers_of_network(checkpoint.network, chips)
    before = after = math.nan
    if faces is not None:
        labels = faces.labels.take(rows)
        low, high = labels.low.astype(np.float64), labels.high.astype(np.float64)
        known = low >= 0
        before, after = (
            float(np.mean((np.maximum(low - m, 0) + np.maximum(m - high, 0))[known]))
            if known.any()
            else math.nan
            for m in (wanted_mean, mean)
        )
    difference = np.abs(mean - wanted_mean)
    return ExportReport(
        model=out / f"{name}.onnx",
        card=out / f"{name}.toml",
        precision=precision,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        faces=len(chips),
        faces_from=faces_from,
        age_difference_max=float(difference.max()),
        age_difference_mean=float(difference.mean()),
        gender_difference_max=float(np.abs(female - wanted_female).max()),
        age_error_before=before,
        age_error_after=after,
    )


def _some_chips(
    size: int, faces: PreparedFaces | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    if faces is None:
        noise = rng.integers(0, 256, (16, size, size, 3), dtype=np.uint8)
        return noise, np.empty(0, np.int64)
    rows = np.sort(rng.permutation(len(faces))[:PARITY_FACES])
    return np.stack([faces.face(int(row)) for row in rows]), rows


def _answers_of_graph(
    content: bytes, chips: NDArray[np.uint8], age: AgeOutput
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"faces": batch}) for batch in _batches(chips)]
    ages = decode_age(np.concatenate([part[0] for part in parts]), age) @ np.arange(AGE_COUNT)
    if len(parts[0]) == 1:
        return ages, np.full(len(chips), np.nan)
    logits = np.concatenate([part[1] for part in parts])[:, 0].astype(np.float64)
    return ages, 0.5 * (1 + np.tanh(logits / 2))


def _answers_of_network(
    network: AgeGenderNetwork, chips: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ages, females = [], []
    with torch.inference_mode():
        for batch in _batches(chips):
            outputs = network(torch.from_numpy(batch))
            ages.append(network.probabilities(outputs).double().numpy() @ np.arange(AGE_COUNT))
            logit = outputs.get("gender", torch.full((len(batch), 1), torch.nan))
            females.append(torch.sigmoid(logit[:, 0].double()).numpy())
    return np.concatenate(ages), np.concatenate(females)


def _batches(chips: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    # Unequal batches, so that a graph with a fixed batch size would not pass.
    starts = [0, 1, *range(8, len(chips), 32)]
    for start, end in zip(starts, [*starts[1:], len(chips)], strict=True):
        if start < end:
            yield chips[start:end]


# --- card -----------------------------------------------------------------------------------------

_UNITS: Final = {"mae": "years", "age_error": "years"}
_FIGURES: Final = (
    "mae",
    "cs5",
    "age_error",
    "age_nll",
    "coverage_90",
    "gender_accuracy",
    "gender_nll",
)


def _card(
    checkpoint: Checkpoint,
    report: ExportReport,
    age: AgeOutput,
    name: str,
    version: str,
    summary: str | None,
    licence: str | None,
    limits: Sequence[str],
) -> dict[str, Any]:
    recipe, data, settings = checkpoint.recipe, checkpoint.data, checkpoint.network.settings
    terms = list(dict.fromkeys(f"{used.name}: {used.licence}" for used in data.datasets))
    card: dict[str, Any] = {
        "schema": CARD_SCHEMA,
        "name": name,
        "version": version,
        "summary": summary or recipe.summary or f"{settings.backbone} trained by {recipe.name}.",
        "licence": licence or f"as the training data allow ({'; '.join(terms)})",
        "licence_class": data.licence_class,
        "limits": [*limits, *_standing_limits(report)],
        "files": [{"path": report.model.name, "sha256": report.sha256}],
        "input": {"name": "faces", "layout": "NHWC", "dtype": "uint8", "size": settings.size},
        "crop": {
            "margin": settings.margin,
            "landmarks": [list(point) for point in data.landmarks],
            "fill": data.fill,
        },
        "age": age.model_dump(exclude_none=True, exclude={"tail_years"}) | {"activation": "none"},
        "training_data": [
            {
                "name": used.name,
                "licence": used.licence,
                "licence_class": used.licence_class,
                "rows": used.rows,
            }
            for used in data.datasets
        ],
        "figures": _figures(checkpoint, report),
        "recipe": _public_recipe(recipe.to_table()),
    }
    if "gender" in checkpoint.network.heads:
        card["gender"] = {"output": "gender", "activation": "none"}
    return json.loads(json.dumps(card))  # type: ignore[no-any-return]


def _check_card(text: str, path: Path) -> None:
    try:
        ModelCard.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise CardError(f"{path}: would not be a valid card: {card_faults(error)}") from error


def _standing_limits(report: ExportReport) -> list[str]:
    limits = ["Not calibrated: its probabilities are the network's own until one is fitted."]
    if report.precision == "int8":
        limits.append(
            f"Quantised to int8: expected ages differ from the original network's by up to "
            f"{report.age_difference_max:.2f} years on {report.faces} faces."
        )
    return limits


def _figures(checkpoint: Checkpoint, report: ExportReport) -> list[dict[str, Any]]:
    names = ", ".join(u.name for u in checkpoint.data.datasets if u.rows is not None)
    split = f"{checkpoint.recipe.data.val_split} split, {names} (chosen on it)"
    figures = [
        {"metric": name, "data": split, "value": round(value, 4), "unit": _UNITS.get(name, "")}
        for name, value in checkpoint.metrics.items()
        if name in _FIGURES and math.isfinite(value)
    ]
    parity = {
        "metric": "largest difference of the expected age from the network before export",
        "data": f"{report.faces} faces of {report.faces_from}",
        "value": float(f"{report.age_difference_max:.3g}"),
        "unit": "years",
    }
    return [*figures, parity]


def _public_recipe(table: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without paths of the machine it ran on."""
    public = {key: value for key, value in table.items() if key != "init"}
    network = dict(public["network"])
    if network["weights"] not in ("timm", "none") and not network["weights"].startswith("pypi:"):
        network["weights"] = os.path.basename(network["weights"])
    public["network"] = network
    if "distillation" in public:
        teachers = [os.path.basename(teacher) for teacher in public["distillation"]["teachers"]]
        public["distillation"] = {**public["distillation"], "teachers": teachers, "unlabelled": []}
    return public


__all__ = [
    "CALIBRATION_FACES",
    "CARD_SCHEMA",
    "LARGEST_AGE_DIFFERENCE",
    "OPSET",
    "ExportReport",
    "ExportedNetwork",
    "age_output",
    "export",
    "export_graph",
]
