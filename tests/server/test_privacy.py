"""What a caller sends is found nowhere afterwards: not in logs, counters, answers or files."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from agelens.server.keys import KeyFile, Scope
from command_line import agelens_apart
from server.conftest import RunningServer, close, launch

NAME = "canary-name-anna-born-2011.jpg"
PLACE = b"canary-place-48.8583701-2.2944813"
QUERY = "canary-query-7f3b"
ALLOWED = {"keys.toml"}
"""The caller's key stands there as its hash; nothing else may hold anything of it."""


@dataclass(frozen=True)
class Canaries:
    """What was sent, and every form in which it could come to light."""

    picture: bytes
    key: str

    def forms(self) -> dict[str, list[bytes]]:
        middle = len(self.picture) // 2
        with Image.open(io.BytesIO(self.picture)) as image:
            pixels = image.convert("RGB").tobytes()
        start = (len(pixels) // 2) // 3 * 3
        given = {
            "file name": NAME.encode(),
            "place": PLACE,
            "query": QUERY.encode(),
            "key": self.key.encode(),
            "secret of the key": self.key.split("_", 2)[2].encode(),
            "bytes of the picture": self.picture[middle : middle + 24],
            "pixels": pixels[start : start + 48],
        }
        return {name: [raw, raw.hex().encode(), *_base64_cores(raw)] for name, raw in given.items()}

    def found_in(self, text: bytes) -> list[str]:
        return [name for name, forms in self.forms().items() if any(form in text for form in forms)]


def _base64_cores(raw: bytes) -> Iterator[bytes]:
    """The middle of the text in base64, wherever in a longer one it begins."""
    for lead in range(3):
        yield base64.b64encode(bytes(lead) + raw)[4:-4]


def _with_place(photo: bytes) -> bytes:
    """The photograph with a place in its EXIF data."""
    with Image.open(io.BytesIO(photo)) as image:
        exif = image.getexif()
        exif.get_ifd(0x8825)[27] = b"ASCII\0\0\0" + PLACE
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90, exif=exif)
    return out.getvalue()


def _use(server: RunningServer, canaries: Canaries, rounds: int) -> bytes:
    """Ask in every way, rightly and wrongly; give all that was answered to wrong requests."""
    picture, encoded = canaries.picture, base64.b64encode(canaries.picture).decode()
    broken = picture[: len(picture) * 2 // 3]
    told = b""
    with httpx2.Client(
        base_url=server.url, timeout=60, headers={"authorization": f"Bearer {canaries.key}"}
    ) as client:
        for _ in range(rounds):
            good = [
                client.post("/v1/analyze", files=[("image", (NAME, picture, "image/jpeg"))]),
                client.post("/v1/analyze", content=picture, headers={"content-type": "image/jpeg"}),
                client.post("/v1/analyze", json={"images": [{"base64": encoded}]}),
            ]
            assert [answer.status_code for answer in good] == [200, 200, 200]
            for answer in good:
                told += json.dumps([a["faces"] for a in answer.json()["analyses"]]).encode()
            wrong = [
                client.post("/v1/analyze", files=[("image", ("x.jpg", broken, "image/jpeg"))]),
                client.post(f"/v1/analyze?min_face={QUERY}", content=picture),
                client.post(f"/v1/analyze?model={QUERY}", content=picture),
                client.post(
                    "/v1/analyze", content=picture, headers={"content-type": "application/json"}
                ),
                client.post("/v1/analyze", json={"images": [{"base64": encoded[:-7] + "*"}]}),
                client.post("/v1/analyze", json={"images": [{NAME: encoded}]}),
                client.post("/v1/analyze", json={"images": [{"url": f"http://x.test/{QUERY}"}]}),
                client.get(f"/v1/nowhere/{NAME}?q={QUERY}"),
                client.get("/v1/models", headers={"x-api-key": canaries.key}),
                client.get("/v1/models", headers={"authorization": f"Basic {canaries.key}"}),
                client.get("/v1/models", headers={"authorization": f"Bearer {canaries.key}x"}),
                client.post(f"/v1/gate?{QUERY}", json={"policy": NAME, "frames": [encoded]}),
            ]
            assert all(400 <= answer.status_code < 500 for answer in wrong)
            told += b"".join(answer.content for answer in wrong)
    return told


def _everything_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ALLOWED
    }


def test_nothing_of_what_was_sent_is_left_after_many_calls_a_kill_and_a_restart(
    own_registry: Path, tmp_path: Path, photo: bytes
) -> None:
    file = KeyFile(tmp_path / "keys.toml")
    caller = file.add("caller", [Scope.ANALYZE, Scope.GATE]).text
    admin = {"x-api-key": file.add("admin", [Scope.ADMIN]).text}
    canaries = Canaries(_with_place(photo), caller)
    env = {name: str(tmp_path / name) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    for place in env.values():
        Path(place).mkdir()
    options = ["--keys", str(file.path), "--workers", "1", "--set", "rate_per_minute=100000"]
    options += ["--set", "rate_per_address=100000", "--set", "log_level=debug"]

    first = launch(tmp_path / "logs", *options, env=env)
    told = _use(first, canaries, 6)
    counters = first.get("/metrics", headers=admin).content
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait(20)
    close(first)
    second = launch(tmp_path / "logs", *options, env=env)
    told += _use(second, canaries, 1)
    counters += second.get("/metrics", headers=admin).content
    assert second.stop() == 0
    close(second)

    # The caller may be told the file name that the caller gave; nobody else.
    assert set(canaries.found_in(told)) <= {"file name"}
    assert canaries.found_in(counters) == []
    kept = _everything_in(tmp_path)
    logs = [name for name in kept if name.startswith("logs/")]
    assert len(logs) == 2
    assert all(b'"request"' in kept[name] for name in logs)
    assert {name: canaries.found_in(content) for name, content in kept.items()} == {
        name: [] for name in kept
    }
    assert [name for name in kept if name.startswith("TMPDIR/")] == []
    assert canaries.found_in(b"".join(_everything_in(own_registry).values())) == []
    assert canaries.found_in(file.path.read_bytes()) == []


@pytest.mark.parametrize("where", range(3))
def test_the_search_finds_what_it_looks_for(photo: bytes, where: int) -> None:
    canaries = Canaries(_with_place(photo), "al_abcdefgh_" + "kQ7" * 14 + "z")
    whole = canaries.picture + NAME.encode() + canaries.key.encode() + QUERY.encode()
    with Image.open(io.BytesIO(canaries.picture)) as image:
        whole += image.convert("RGB").tobytes()

    for hidden in (whole, whole.hex().encode(), base64.b64encode(bytes(where) + whole)):
        assert sorted(canaries.found_in(hidden)) == sorted(canaries.forms())
    assert canaries.found_in(b"nothing of it") == []


def test_the_runtime_of_the_networks_keeps_no_record_of_its_use(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)

    assert agelens_apart("analyze", faces / "astronaut.jpg").status == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
