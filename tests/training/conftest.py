"""Prepared faces made on the spot: the brightness is the age, the stripes are the gender."""

import hashlib
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

if importlib.util.find_spec("torch") is None:
    # Recipes are checked without the 'train' extra; everything else here needs it.
    collect_ignore_glob = ["test_[!r]*.py"]

LANDMARKS = [[0.214, 0.232], [0.786, 0.232], [0.5, 0.545], [0.25, 0.78], [0.75, 0.78]]
CHIP = 72
MARGIN = 0.6

Row = dict[str, Any]


def picture(age: float, female: bool, rng: np.random.Generator) -> bytes:
    """An encoded chip: brighter when older, stripes across when female and upright when male."""
    stripes = np.where(np.arange(CHIP) // 4 % 2, 25.0, -25.0)
    pattern = stripes[:, None] if female else stripes[None, :]
    pixels = 40 + 1.8 * age + pattern[..., None] + rng.normal(0, 8, (CHIP, CHIP, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def face(index: int, split: str, rng: np.random.Generator) -> Row:
    """Every third face has a range instead of an age, every fifth no gender."""
    age, female = int(rng.integers(0, 90)), bool(rng.integers(0, 2))
    ranged = index % 3 == 0
    low, high = (age // 10 * 10, age // 10 * 10 + 9) if ranged else (age, age)
    return {
        "image": picture(age, female, rng),
        "dataset": "ranged" if ranged else "exact",
        "split": split,
        "source_file": f"{split}-{index}.png",
        "age_min": low,
        "age_max": high,
        "age_std": 3.0 if index % 7 == 0 and not ranged else None,
        "age_kind": "apparent",
        "gender": None if index % 5 == 0 else ("female" if female else "male"),
        "subject": None,
        "race": ("a", "b", None)[index % 3],
    }


def write_shards(folder: Path, rows: list[Row], *, shards: int = 2, margin: float = MARGIN) -> Path:
    """Write rows as a folder of prepared faces."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [
            ("image", pa.binary()),
            ("dataset", pa.string()),
            ("split", pa.string()),
            ("source_file", pa.string()),
            ("age_min", pa.int16()),
            ("age_max", pa.int16()),
            ("age_std", pa.float32()),
            ("age_kind", pa.string()),
            ("gender", pa.string()),
            ("subject", pa.string()),
            ("race", pa.string()),
        ]
    )
    listed = []
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        name = f"shard-{number:05d}.parquet"
        table = pa.Table.from_pylist([rows[i] for i in part], schema=schema)
        pq.write_table(table, folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        listed.append({"file": name, "rows": len(part), "sha256": digest})
    manifest = {
        "schema": "agelens.prepared/1",
        "size": CHIP,
        "margin": margin,
        "landmarks": LANDMARKS,
        "rows": len(rows),
        "shards": listed,
        "datasets": {
            "exact": {"licence": "made for a test", "licence_class": "commercial"},
            "ranged": {"licence": "research only", "licence_class": "research"},
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 faces to learn from and 64 to validate on."""
    rng = np.random.default_rng(7)
    rows = [face(i, "train", rng) for i in range(192)] + [face(i, "val", rng) for i in range(64)]
    return write_shards(tmp_path_factory.mktemp("prepared"), rows)


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Path]:
    return write_shards


@pytest.fixture(scope="session")
def make_face() -> Callable[..., Row]:
    return face


def tiny_table(**changes: Any) -> dict[str, Any]:
    """A recipe of a few seconds; ``changes`` replaces keys, with ``__`` for the dot."""
    table: dict[str, Any] = {
        "name": "tiny",
        "network": {
            "backbone": "test_efficientnet",
            "size": 32,
            "margin": 0.4,
            "representation": 32,
            "dropout": 0.1,
        },
        "heads": {"distribution": {}, "gender": {}},
        "data": {"workers": 0},
        "augmentation": {"preset": "light"},
        "optimizer": {"learning_rate": 3e-3, "warmup_epochs": 0.5},
        "loop": {
            "epochs": 2,
            "batch_size": 16,
            "device": "cpu",
            "threads": 1,
            "ema_decay": 0.9,
            "tensorboard": False,
            "save_every_steps": 5,
        },
    }
    for key, value in changes.items():
        inner = table
        *path, last = key.split("__")
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return table


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    return tiny_table
