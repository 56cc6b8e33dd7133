"""Small real ONNX graphs for tests: the signatures of outside models with weights easy to follow.

Every graph comes with its answer computed by hand in float64 (``expected``), so that a test never
compares a network with itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float64]

OPSET: Final = 17
GENDERAGE_SIZE: Final = 96
DISTRIBUTION_SIZE: Final = 16


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, NDArray[Any]],
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # IR 10: what the oldest supported ONNX Runtime reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _floats(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


# --- genderage.onnx of an InsightFace pack --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Genderage:
    """Input ``data`` (N, 3, 96, 96) float32; output ``fc1`` (N, 3): female, male, age / 100.

    Attributes:
        graph: The ONNX file.
        weights: (27648, columns) of the one linear layer.
        bias: (columns,).
    """

    graph: bytes
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def expected(self, planes: NDArray[Any]) -> Floats:
        """(N, columns) for (N, 3, 96, 96) bytes, in float64."""
        flat: Floats = planes.reshape(len(planes), -1).astype(np.float64)
        return flat @ self.weights.astype(np.float64) + self.bias


def genderage(
    *,
    batch: int | str = "None",
    columns: int = 3,
    bias: Sequence[float] = (0.2, -0.1, 0.35, 0.0, 0.0, 0.0),
    seed: int = 0,
) -> Genderage:
    """A linear layer over all 96 x 96 x 3 values, so that every pixel's place and channel counts.

    Args:
        batch: Size of the batch axis; a name leaves it free.
        columns: Outputs a face; InsightFace has 3.
        bias: Of the outputs; a NaN makes a network that answers nonsense.
        seed: Of the weights.
    """
    rng = np.random.default_rng(seed)
    inputs = 3 * GENDERAGE_SIZE**2
    weights = rng.normal(0, 5e-6, (inputs, columns)).astype(np.float32)
    offsets = np.array(bias[:columns], np.float32)
    graph = _model(
        [
            helper.make_node("Flatten", ["data"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["fc1"]),
        ],
        [_floats("data", (batch, 3, GENDERAGE_SIZE, GENDERAGE_SIZE))],
        [_floats("fc1", (batch, columns))],
        {"weights": weights, "bias": offsets},
    )
    return Genderage(graph, weights, offsets)


# --- SCRFD ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ScrfdLookAlike:
    """Input ``input.1`` (1, 3, H, W) float32; three outputs a stride: scores, boxes, landmarks.

    The score of a cell is the mean of one colour over that cell (red for the first stride, green
    for the second, blue for the third, and so on round), times ``anchor_scores``: a saturated
    square of that colour fires that cell. Distances are constants. With five strides a coarse
    square also fires the finer cells of its colour inside it, with lower scores.

    Attributes:
        graph: The ONNX file.
        strides: Pixels a cell, finest first.
        anchor_scores: (levels, anchors) factor on the cell's mean.
        distances: (levels, anchors, 4): left, top, right, bottom in strides.
        points: (levels, anchors, 10): x and y of five landmarks in strides, from the cell's corner.
    """

    graph: bytes
    strides: tuple[int, ...]
    anchor_scores: NDArray[np.float32]
    distances: NDArray[np.float32]
    points: NDArray[np.float32]

    def picture(self, width: int, height: int, fire: Sequence[tuple[int, int, int]]) -> Any:
        """(H, W, 3) uint8 that fires at these (level, column, row) cells and nowhere else."""
        image = np.zeros((height, width, 3), np.uint8)
        for level, column, row in fire:
            side = self.strides[level]
            y, x = row * side, column * side
            image[y : y + side, x : x + side, level % 3] = 255
        return image

    def expected(
        self, level: int, column: int, row: int, anchor: int = 0
    ) -> tuple[Floats, Floats, float]:
        """Box (4,), landmarks (5, 2) in pixels, and score of one fired anchor, by hand."""
        side = self.strides[level]
        left, top, right, bottom = (float(v) for v in self.distances[level, anchor])
        box = np.array([column - left, row - top, column + right, row + bottom]) * side
        offsets = self.points[level, anchor].astype(np.float64)
        landmarks = [
            [(column + offsets[2 * k]) * side, (row + offsets[2 * k + 1]) * side] for k in range(5)
        ]
        saturated = (255 - 127.5) / 128
        return box, np.array(landmarks), float(self.anchor_scores[level, anchor]) * saturated


def scrfd(
    *,
    levels: int = 3,
    anchors: int = 2,
    anchor_scores: Sequence[float] = (0.96, 0.9),
    batched: bool = False,
    side: int | None = None,
) -> ScrfdLookAlike:
    """An SCRFD of ``3 * levels`` outputs.

    Args:
        levels: Strides 8, 16, 32 and, with five, 64 and 128.
        anchors: Anchors a cell: two in the published three-level packs, one in the others.
        anchor_scores: Scores of a saturated cell's anchors; coarser strides have a little more.
        batched: Keep the batch axis on the outputs, as some packs do.
        side: Fixed height and width of the input; None leaves them free.
    """
    strides = tuple(8 * 2**level for level in range(levels))
    rng = np.random.default_rng(5)
    distances = rng.uniform(0.5, 3.0, (levels, anchors, 4)).astype(np.float32)
    points = rng.uniform(-1.5, 1.5, (levels, anchors, 10)).astype(np.float32)
    scores = np.array(anchor_scores[:anchors]) + 0.005 * np.arange(levels)[:, None]
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {"one_column": np.array([-1, 1], np.int64)}
    for width in (1, 4, 10):
        shape = [1, -1, width] if batched else [-1, width]
        constants[f"rows_of_{width}"] = np.array(shape, np.int64)
    for level, stride in enumerate(strides):
        constants[f"colour{level}"] = np.array([level % 3], np.int64)
        constants[f"anchors{level}"] = scores[level][None].astype(np.float32)
        constants[f"distances{level}"] = distances[level].reshape(1, -1)
        constants[f"points{level}"] = points[level].reshape(1, -1)
        constants[f"zero{level}"] = np.zeros(1, np.float32)
        nodes += [
            helper.make_node("Gather", ["input.1", f"colour{level}"], [f"plane{level}"], axis=1),
            helper.make_node(
                "AveragePool",
                [f"plane{level}"],
                [f"mean{level}"],
                kernel_shape=[stride, stride],
                strides=[stride, stride],
            ),
            helper.make_node("Reshape", [f"mean{level}", "one_column"], [f"cells{level}"]),
            helper.make_node("Relu", [f"cells{level}"], [f"light{level}"]),
            helper.make_node("Mul", [f"light{level}", f"anchors{level}"], [f"anchored{level}"]),
            helper.make_node("Reshape", [f"anchored{level}", "rows_of_1"], [f"score{level}"]),
            helper.make_node("Mul", [f"cells{level}", f"zero{level}"], [f"dark{level}"]),
            helper.make_node("Add", [f"dark{level}", f"distances{level}"], [f"reach{level}"]),
            helper.make_node("Reshape", [f"reach{level}", "rows_of_4"], [f"bbox{level}"]),
            helper.make_node("Add", [f"dark{level}", f"points{level}"], [f"marks{level}"]),
            helper.make_node("Reshape", [f"marks{level}", "rows_of_10"], [f"kps{level}"]),
        ]
    shapes = {"score": 1, "bbox": 4, "kps": 10}
    graph = _model(
        nodes,
        [_floats("input.1", (1, 3, side or "h", side or "w"))],
        [
            _floats(f"{kind}{level}", (1, f"n{level}", width) if batched else (f"n{level}", width))
            for kind, width in shapes.items()
            for level in range(levels)
        ],
        constants,
    )
    return ScrfdLookAlike(graph, strides, scores.astype(np.float32), distances, points)


# --- a model of our own kind ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DistributionNetwork:
    """Input ``image`` (N, 16, 16, 3) uint8; outputs ``age`` (N, 101) and ``gender`` (N, 1) logits.

    Attributes:
        graph: The ONNX file.
        age_weights: (768, 101).
        gender_weights: (768, 1).
    """

    graph: bytes
    age_weights: NDArray[np.float32]
    gender_weights: NDArray[np.float32]

    def expected(self, chips: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Age logits (N, 101) and gender logits (N, 1) of chips, in float64."""
        flat = chips.reshape(len(chips), -1).astype(np.float64) / 255
        return flat @ self.age_weights.astype(np.float64), flat @ self.gender_weights.astype(
            np.float64
        )


def distribution_network(
    *, classes: int = 101, batch: int | str = "n", poison: float = 0.0, seed: int = 1
) -> DistributionNetwork:
    """One linear layer for each output.

    Args:
        classes: Columns of the age output.
        batch: Size of the batch axis; a name leaves it free.
        poison: Added to every output; NaN makes a network that answers nonsense.
        seed: Of the weights.
    """
    rng = np.random.default_rng(seed)
    size = DISTRIBUTION_SIZE
    age = rng.normal(0, 0.3, (3 * size**2, classes)).astype(np.float32)
    gender = rng.normal(0, 0.3, (3 * size**2, 1)).astype(np.float32)
    graph = _model(
        [
            helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["values", "white"], ["unit"]),
            helper.make_node("Flatten", ["unit"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "age_weights", "poison"], ["age"]),
            helper.make_node("Gemm", ["flat", "gender_weights", "poison"], ["gender"]),
        ],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, size, size, 3])],
        [_floats("age", (batch, classes)), _floats("gender", (batch, 1))],
        {
            "white": np.array(255, np.float32),
            "poison": np.array([poison], np.float32),
            "age_weights": age,
            "gender_weights": gender,
        },
    )
    return DistributionNetwork(graph, age, gender)


def external_weights_graph(location: str, kind: str = "initializer") -> bytes:
    """A graph whose four weights lie in the first 16 bytes of another file.

    Args:
        location: Where, as the graph states it.
        kind: "initializer" of the graph, value of a "constant" node, or initializer of a
            "subgraph".
    """
    tensor = TensorProto()
    tensor.name, tensor.data_type = "w", TensorProto.FLOAT
    tensor.dims.extend([4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    add = helper.make_node("Add", ["x", "w"], ["y"])
    inside = [tensor]
    if kind == "constant":
        nodes, inside = [helper.make_node("Constant", [], ["w"], value=tensor), add], []
    elif kind == "subgraph":
        outcome = [_floats("z", [4])]
        then = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["z"])], "then", [], outcome, [tensor]
        )
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "else", [], outcome)
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
        inside = [helper.make_tensor("yes", TensorProto.BOOL, [], [True])]
    else:
        nodes = [add]
    graph = helper.make_graph(nodes, "test", [_floats("x", [4])], [_floats("y", [4])], inside)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


# --- cards and files ------------------------------------------------------------------------------


def distribution_card(graph: bytes, *, path: str = "small.onnx") -> dict[str, Any]:
    """The card of a ``distribution_network`` as a dictionary, to be changed and written."""
    return {
        "schema": "agelens.card/1",
        "name": "small",
        "version": "2.1",
        "summary": "A linear network for tests.",
        "licence": "CC0-1.0",
        "licence_class": "commercial",
        "limits": ["Knows nothing of faces."],
        "files": [{"path": path, "sha256": hashlib.sha256(graph).hexdigest()}],
        "input": {"name": "image", "size": DISTRIBUTION_SIZE, "layout": "NHWC", "dtype": "uint8"},
        "crop": {"margin": 0.2},
        "age": {"output": "age", "kind": "distribution"},
        "gender": {"output": "gender"},
    }


def toml(value: object) -> str:
    """A value as TOML; a dictionary inside another becomes an inline table."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            return f'"{escaped}"'
        case dict():
            return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(toml(item) for item in value) + "]"
        case _:
            raise TypeError(f"{type(value).__name__} has no TOML form")


def write_card(path: Path, card: Mapping[str, Any]) -> Path:
    """Write a card; gives its path back."""
    path.write_text(
        "".join(f"{key} = {toml(value)}\n" for key, value in card.items()), encoding="utf-8"
    )
    return path


def write_model(
    folder: Path, graph: bytes, card: Mapping[str, Any] | None = None, *, stem: str = "small"
) -> Path:
    """Write ``STEM.onnx`` and its card into a folder; gives the path of the ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / f"{stem}.onnx"
    network.write_bytes(graph)
    write_card(network.with_suffix(".toml"), card or distribution_card(graph, path=network.name))
    return network
