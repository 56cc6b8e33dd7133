"""Two hundred bad bodies: each is refused within limits, and the service is as before."""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from hostile import bombs, encodings, mutated
from server.conftest import RunningServer, StartServer

MEGABYTE = 1_000_000
LONGEST_S = 10
"""For one answer: the deadline of the service."""


@dataclass(frozen=True)
class Bad:
    """A body that must not be answered with faces.

    Attributes:
        name: For the message of a failure.
        content: The body.
        kind: Its content type.
        may_be_read: True when a picture may be left of it.
        path: Where it is sent.
    """

    name: str
    content: bytes
    kind: str = "image/jpeg"
    may_be_read: bool = False
    path: str = "/v1/analyze"


def _zip(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def _pictures(photo: Path) -> list[Bad]:
    image = Image.open(photo).convert("RGB")
    image.thumbnail((200, 200))
    good = list(encodings(image).values())
    source = random.Random(7)
    jpeg = photo.read_bytes()
    archive = _zip("a.png", bytes(50 * MEGABYTE))
    html = b"<!doctype html><script>alert(1)</script>"
    found = [Bad(f"bomb {bomb.name}", bomb.data) for bomb in bombs(photo)]
    found += [Bad(f"cut at {n} %", jpeg[: len(jpeg) * n // 100]) for n in range(5, 100, 5)]
    found += [Bad(f"mutated {n}", mutated(source, good), may_be_read=True) for n in range(70)]
    found += [
        Bad("zip as png", archive, "image/png"),
        Bad("zip bomb in a zip", _zip("a.zip", archive), "image/png"),
        Bad("picture and zip", jpeg + archive, may_be_read=True),
        Bad("script before a picture", html + jpeg),
        Bad("gif and script", b"GIF89a=1/*" + bytes(30) + b"*/;alert(1)", "image/gif"),
        Bad("pdf", b"%PDF-1.7\n" + bytes(1000)),
        Bad("program", b"\x7fELF" + bytes(1000)),
        Bad("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', "image/svg+xml"),
        Bad("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n", "image/eps"),
        Bad("pickle", b"\x80\x04\x95\x1e\x00\x00\x00cos\nsystem\n(S'touch x'\ntR.", "image/png"),
        Bad("numpy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'shape': (1,)}", "image/png"),
        Bad("zeros", bytes(5 * MEGABYTE)),
        Bad("noise", random.Random(1).randbytes(2 * MEGABYTE)),
        Bad("empty", b""),
        Bad("one byte", b"\xff"),
    ]
    return found


def _json_bodies() -> list[Bad]:
    odd: list[Any] = [None, True, 1, 1.5, "", "x", [], {}, [[]], {"a": 1}]
    values: list[Any] = [
        *odd,
        *({"images": one} for one in odd),
        *({"images": [one]} for one in odd),
        *({"images": [{"base64": one}]} for one in odd),
        *({"images": [{"url": one}]} for one in odd),
        *({"images": [{"base64": "AAAA", "name": one}]} for one in odd[1:4]),
        {"images": [{"base64": "AAAA", "url": "https://example.com/"}]},
        {"images": [{"base64": "AAAA"}] * 33},
        {"images": [{"base64": "AAAA"}], "images2": []},
        {"images": [{"base64": "data:image/png;base64,AAAA"}]},
        {"images": [{"base64": "AAA=\n"}]},
        {"images": [{"base64": "ÄÖÜß"}]},
        {"images": [{"url": "file:///etc/passwd"}]},
        {"images": [{"url": "http://169.254.169.254/latest/meta-data"}]},
    ]
    texts = [json.dumps(value).encode() for value in values]
    texts += [
        b"",
        b"{",
        b'{"images": [' * 5000,
        b"[" * 200_000,
        b'{"images": [{"base64": "\\ud800"}]}',
        b'{"images": NaN}',
        b'{"images": 1e999}',
        b'{"images": ' + b"9" * 100_000 + b"}",
        b"\xff\xfe{\x00}\x00",
        b"\x00" * 1000,
        b'{"images": [{"base64": "' + b"A" * (20 * MEGABYTE) + b'"}]}',
        b'{"images": [' + b'{"base64": "AAAA"},' * 200_000 + b"]}",
    ]
    return [Bad(f"json {text[:60]!r}", text, "application/json") for text in texts]


def _many_faults() -> list[Bad]:
    """Small texts that each hold very many faults, each of which costs to find and to tell."""
    millions = [
        b'{"%s": [' + item + (b"," + item) * 1_000_000 + b"]}"
        for item in (b"1", b"{}", b'""', b"[]")
    ]
    thousands = [b'{"%s": [' + item + (b"," + item) * 60_000 + b"]}" for item in (b"1", b"{}")]
    keys = b",".join(b'"k%d":1' % n for n in range(60_000))
    texts = [*millions, *thousands, b'{"%s": [{' + keys + b"}]}", b"{" + keys + b',"%s": []}']
    return [
        Bad(f"{path} {row}", text % name, "application/json", path=path)
        for path, name in (("/v1/analyze", b"images"), ("/v1/gate", b"frames"))
        for row, text in enumerate(texts)
    ]


def _forms() -> list[Bad]:
    kind = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="'
    bodies = {
        "no part": b"--b--\r\n",
        "no end": part + b'a"\r\n\r\nx',
        "no header": b"--b\r\n\r\nx\r\n--b--\r\n",
        "wrong name": b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
        "attachment": b'--b\r\nContent-Disposition: attachment; name="image"\r\n\r\nx\r\n--b--\r\n',
        "path as name": part + b'../../../etc/passwd\0"\r\n\r\nx\r\n--b--\r\n',
        "long name": part + b"a" * 100_000 + b'"\r\n\r\nx\r\n--b--\r\n',
        "header without colon": b"--b\r\nimage\r\n\r\nx\r\n--b--\r\n",
        "many headers": b"--b\r\n" + b"A: b\r\n" * 10_000 + b"\r\nx\r\n--b--\r\n",
        "endless header": b"--b\r\nA: " + b"b" * MEGABYTE,
        "many parts": (part + b'a"\r\n\r\nx\r\n') * 10_000 + b"--b--\r\n",
        "only boundaries": b"--b\r\n" * 100_000,
        "not a form": b"x" * MEGABYTE,
    }
    return [Bad(f"form, {name}", body, kind) for name, body in bodies.items()]


def test_two_hundred_bad_bodies_do_no_harm(
    start_server: StartServer, faces: Path, photo: bytes
) -> None:
    started = start_server("--workers", "1", "--set", "memory_limit_mb=1200")
    bodies = [*_pictures(faces / "hopper.jpg"), *_json_bodies(), *_forms(), *_many_faults()]
    random.Random(3).shuffle(bodies)
    front = psutil.Process(started.process.pid)
    workers = front.children()
    with httpx2.Client(base_url=started.url, timeout=60) as client:
        before = _faces(client, photo)
        front_mb = _peak_mb(front)
        for bad in bodies:
            _check(client, bad)
        assert _faces(client, photo) == before
    assert len(bodies) >= 200
    assert front.children() == workers
    peaks = _peak_mb(front) - front_mb, _peak_mb(workers[0])
    print(f"{len(bodies)} bodies; at the most: front {peaks[0]:+.0f} MB, worker {peaks[1]:.0f} MB")
    assert peaks[0] < 250
    assert peaks[1] < 1200
    log = started.log.read_text()
    assert '"level": "error"' not in log
    assert "passwd" not in log


def _check(client: httpx2.Client, bad: Bad) -> None:
    """Send it; it must be refused, in words and in time."""
    start = time.monotonic()
    answer = client.post(bad.path, content=bad.content, headers={"content-type": bad.kind})
    took = time.monotonic() - start

    assert took < LONGEST_S, f"{bad.name} took {took:.1f} s"
    if bad.may_be_read and answer.status_code == 200:
        return
    assert answer.status_code in (400, 403, 413, 415, 422), f"{bad.name}: {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json", bad.name
    assert answer.json()["status"] == answer.status_code, bad.name


def test_a_list_of_a_million_faults_holds_up_nobody(server: RunningServer) -> None:
    body = Bad("ones", b'{"images": [' + b"1," * 1_000_000 + b"1]}", "application/json")

    start = time.monotonic()
    answer = server.post(body.path, content=body.content, headers={"content-type": body.kind})
    took = time.monotonic() - start

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_json")
    assert took < 3
    assert len(answer.content) < 2000


def test_a_list_over_every_limit_is_too_many_images(server: RunningServer) -> None:
    for count in (33, 5000):
        answer = server.post("/v1/analyze", json={"images": [{"base64": "AAAA"}] * count})
        assert (answer.status_code, answer.json()["code"]) == (422, "too_many_images")


def _peak_mb(process: psutil.Process) -> float:
    """The most memory that a process ever had; what it has now where the system does not tell."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / MEGABYTE
    return float(process.memory_info().rss) / MEGABYTE


def _faces(client: httpx2.Client, photo: bytes) -> Any:
    answer = client.post("/v1/analyze", content=photo, headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200
    return answer.json()["analyses"][0]["faces"]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\x00b", "\u202egpj.exe", "<script>", "x" * 300]
)
def test_a_name_is_only_a_name(server: RunningServer, photo: bytes, name: str) -> None:
    answer = server.post("/v1/analyze", files=[("image", (name, photo, "image/jpeg"))])

    (analysis,) = answer.json()["analyses"]
    assert analysis["error"] is None
    assert len(analysis["path"]) <= 255
