"""The record of decisions: nothing answered is lost, nothing written can be changed unseen."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="needs the 'gate' extra")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.errors import ArgumentError, JournalError
from agelens.evaluation.signing import canonical_json, key_folder, public_key_text, sign
from agelens.gate.journal import (
    Journal,
    JournalCheck,
    Recovery,
    head_path,
    verify_journal,
)
from agelens.identifiers import new_identifier

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUSTED = public_key_text(KEY)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)

DECISIONS: list[dict[str, Any]] = [
    {"outcome": "accept", "reasons": ["over the limit"], "confidence": 0.95},
    {"outcome": "refuse", "reasons": ["unter 18: ä, 零"], "confidence": 0.0},
    {"outcome": "step_up", "reasons": [], "confidence": 0.5},
    {"outcome": "retry", "reasons": ["no face", "line\nfeed"], "confidence": None},
]


def written(folder: Path, *, entries: list[dict[str, Any]] | None = None) -> Path:
    """A journal of decisions, closed."""
    path = folder / "gate.jsonl"
    with Journal(path, key=KEY) as journal:
        for entry in DECISIONS if entries is None else entries:
            journal.append(entry)
    return path


def check(path: Path, **options: Any) -> JournalCheck:
    return verify_journal(path, trusted_key=TRUSTED, **options)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal that tests may read but not change."""
    return written(tmp_path_factory.mktemp("kept"))


def changed(kept: Path, folder: Path, content: bytes, *, head: bytes | None = None) -> Path:
    """A copy of a journal with other content."""
    path = folder / kept.name
    path.write_bytes(content)
    head_path(path).write_bytes(head_path(kept).read_bytes() if head is None else head)
    return path


# --- what is written ------------------------------------------------------------------------------


def test_a_journal_holds_the_decisions_in_order_and_verifies(tmp_path: Path) -> None:
    path = written(tmp_path)

    found = check(path)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]

    assert found.intact
    assert (found.lines, found.decisions, found.signed) == (5, 4, 5)
    assert [{k: v for k, v in line.items() if k not in ("seq", "prev")} for line in lines[1:]] == (
        DECISIONS
    )


def test_each_line_states_the_sha256_of_the_bytes_of_the_line_before(tmp_path: Path) -> None:
    lines = written(tmp_path).read_bytes().split(b"\n")[:-1]

    assert json.loads(lines[0])["prev"] == "0" * 64
    for before, line in itertools.pairwise(lines):
        assert json.loads(line)["prev"] == hashlib.sha256(before + b"\n").hexdigest()
    assert [json.loads(line)["seq"] for line in lines] == [0, 1, 2, 3, 4]


def test_a_receipt_names_the_line(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", key=KEY) as journal:
        receipt = journal.append({"outcome": "accept"})

    line = (tmp_path / "j").read_bytes().split(b"\n")[receipt.seq] + b"\n"
    assert receipt.sha256 == hashlib.sha256(line).hexdigest()


def test_the_head_verifies_with_the_bare_library(kept: Path) -> None:
    """Signature over the sorted, spaceless JSON of everything but the signature."""
    document = json.loads(head_path(kept).read_bytes())
    signature = document.pop("signature")
    signed = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    KEY.public_key().verify(base64.b64decode(signature["value"]), signed)
    assert document["count"] == 5
    assert document["bytes"] == kept.stat().st_size


def test_a_closed_journal_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = written(tmp_path)

    with Journal(path, key=KEY) as journal:
        assert journal.recovery is None
        assert journal.append({"outcome": "accept"}).seq == 5

    assert check(path).decisions == 5


def test_several_decisions_can_be_written_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", key=KEY, batch=4) as journal:
        receipts = journal.extend(DECISIONS)
        assert journal.extend([]) == []

    assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4]
    assert check(tmp_path / "j").decisions == 4


def test_threads_may_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, key=KEY) as journal:
        workers = [
            threading.Thread(target=lambda: [journal.append({"n": n}) for n in range(10)])
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    assert check(path).decisions == 40


def test_only_the_owner_can_read_a_journal(tmp_path: Path) -> None:
    path = written(tmp_path)

    assert path.stat().st_mode & 0o077 == 0
    assert head_path(path).stat().st_mode & 0o077 == 0


def test_without_a_key_that_of_the_installation_signs(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append({"outcome": "accept"})

    found = verify_journal(tmp_path / "j")

    assert found.intact
    assert found.key == (key_folder() / "audit.pub").read_text().strip()


@pytest.mark.parametrize("entry", [{"seq": 1}, {"prev": ""}, {"x": float("nan")}, {"x": object()}])
def test_what_cannot_be_an_entry_is_refused_and_leaves_no_trace(
    tmp_path: Path, entry: dict[str, Any]
) -> None:
    with Journal(tmp_path / "j", key=KEY) as journal:
        with pytest.raises(ArgumentError):
            journal.append(entry)
        journal.append({"outcome": "accept"})

    assert check(tmp_path / "j").lines == 2


def test_more_entries_at_once_than_the_batch_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", key=KEY) as journal, pytest.raises(ArgumentError, match="batch"):
        journal.extend(DECISIONS)


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", key=KEY)
    journal.close()

    with pytest.raises(JournalError, match="closed"):
        journal.append({})


# --- tampering ------------------------------------------------------------------------------------


def line_of(content: bytes, position: int) -> int:
    """Number, from 1, of the line that holds a byte."""
    return content[:position].count(b"\n") + 1


@settings(max_examples=300)
@given(data=st.data())
def test_flipping_any_one_byte_is_found_at_its_line(
    data: st.DataObject, kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = kept.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    bad = bytearray(content)
    bad[position] ^= flip
    path = changed(kept, tmp_path_factory.mktemp("flip"), bytes(bad))

    found = check(path)

    assert not found.intact
    assert found.line == line_of(content, position)


@settings(max_examples=100)
@given(data=st.data())
def test_flipping_any_one_byte_of_the_head_is_found(
    data: st.DataObject, kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    head = bytearray(head_path(kept).read_bytes())
    position = data.draw(st.integers(0, len(head) - 1))
    head[position] ^= data.draw(st.integers(1, 255))
    path = changed(kept, tmp_path_factory.mktemp("h"), kept.read_bytes(), head=bytes(head))

    found = check(path)

    assert not found.intact
    assert found.line is None


@settings(max_examples=100)
@given(data=st.data())
def test_cutting_the_tail_anywhere_is_found(
    data: st.DataObject, kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = kept.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    path = changed(kept, tmp_path_factory.mktemp("cut"), content[:length])

    found = check(path)

    assert not found.intact
    assert found.line == line_of(content, length)


@pytest.mark.parametrize("dropped", range(5))
def test_dropping_a_line_is_found(kept: Path, tmp_path: Path, dropped: int) -> None:
    lines = kept.read_bytes().splitlines(keepends=True)
    path = changed(kept, tmp_path, b"".join(lines[:dropped] + lines[dropped + 1 :]))

    found = check(path)

    assert not found.intact
    assert found.line == dropped + 1
    assert "missing" in str(found.problem) or "cut" in str(found.problem)


@pytest.mark.parametrize("first", range(4))
def test_exchanging_two_lines_is_found(kept: Path, tmp_path: Path, first: int) -> None:
    lines = kept.read_bytes().splitlines(keepends=True)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    path = changed(kept, tmp_path, b"".join(lines))

    assert check(path).line == first + 1


def forged(lines: list[bytes]) -> bytes:
    """The lines with a chain that holds: what somebody without the key can do."""
    last, content = "0" * 64, b""
    for seq, line in enumerate(lines):
        entry = {**json.loads(line), "seq": seq, "prev": last}
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        whole = text.encode() + b"\n"
        last = hashlib.sha256(whole).hexdigest()
        content += whole
    return content


def test_a_chain_that_was_written_anew_is_found_by_the_head(kept: Path, tmp_path: Path) -> None:
    lines = kept.read_bytes().splitlines()
    lines[2] = lines[2].replace(b"refuse", b"accept")
    path = changed(kept, tmp_path, forged(lines))

    found = check(path)

    assert found.line == 5
    assert "signed" in str(found.problem)


def test_an_added_line_is_found(kept: Path, tmp_path: Path) -> None:
    content = kept.read_bytes()
    added = {"seq": 5, "prev": hashlib.sha256(content.splitlines(True)[-1]).hexdigest()}
    path = changed(kept, tmp_path, content + json.dumps(added).encode() + b"\n")

    found = check(path)

    assert found.line == 6
    assert "after the signed head" in str(found.problem)


def test_a_journal_at_work_is_intact(tmp_path: Path) -> None:
    stop = threading.Event()
    with Journal(tmp_path / "j", key=KEY, batch=5000) as journal:
        journal.extend([{"outcome": "accept", "pad": "a" * 500}] * 5000)

        def work() -> None:
            while not stop.is_set():
                journal.append({"outcome": "refuse"})

        gate = threading.Thread(target=work)
        gate.start()
        try:
            found = [check(tmp_path / "j") for _ in range(5)]
        finally:
            stop.set()
            gate.join()

    assert [(one.state, one.problem) for one in found] == [("intact", None)] * 5
    assert all(one.lines == one.signed > 5000 for one in found)


@pytest.mark.parametrize("forge", ["a line changed", "a line of another hand", "the end cut"])
def test_a_later_head_excuses_nothing(tmp_path: Path, forge: str) -> None:
    """The head moves on while the file is read, and what it signs is not there as it was."""
    path = written(tmp_path)
    early, content = head_path(path).read_bytes(), path.read_bytes()
    with Journal(path, key=KEY) as journal:
        for _ in range(3):
            journal.append({"outcome": "refuse"})
    late, lines = head_path(path).read_bytes(), path.read_bytes().splitlines(True)
    if forge == "a line changed":
        lines[6] = lines[6].replace(b"refuse", b"accept")
    elif forge == "the end cut":
        del lines[6:]
    else:
        alien = {"seq": 5, "prev": hashlib.sha256(content.splitlines(True)[-1]).hexdigest()}
        lines[5:] = [json.dumps(alien).encode() + b"\n"]
    path.write_bytes(b"".join(lines))
    head_path(path).write_bytes(early)
    moved_on = threading.Timer(0.2, lambda: head_path(path).write_bytes(late))
    moved_on.start()

    found = check(path)
    moved_on.join()

    assert found.state == "broken"


@pytest.mark.parametrize(("after", "state"), [(b'{"outcome":"acc', "unsigned"), (b"", "intact")])
def test_a_line_in_flight_is_neither_intact_nor_broken(
    kept: Path, tmp_path: Path, after: bytes, state: str
) -> None:
    found = check(changed(kept, tmp_path, kept.read_bytes() + after))

    assert found.state == state


def test_two_lines_after_the_head_are_no_line_in_flight(tmp_path: Path) -> None:
    path = written(tmp_path)
    head = head_path(path).read_bytes()
    with Journal(path, key=KEY) as journal:
        journal.append({"outcome": "accept"})
        one = path.read_bytes()
        journal.append({"outcome": "accept"})
    two = path.read_bytes()
    head_path(path).write_bytes(head)

    assert check(path).state == "broken"
    path.write_bytes(one)
    assert check(path).state == "unsigned"
    assert two != one


def test_the_key_of_the_variable_is_the_one_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(tmp_path / "own").close()
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    monkeypatch.setenv("AGELENS_AUDIT_KEY", pem)
    Journal(tmp_path / "j").close()
    assert verify_journal(tmp_path / "j").key == TRUSTED

    monkeypatch.delenv("AGELENS_AUDIT_KEY")
    found = verify_journal(tmp_path / "j")

    assert not found.intact
    assert f"signed by the key {TRUSTED}" in str(found.problem)
    assert "that of AGELENS_AUDIT_KEY when the gate runs with it" in str(found.problem)


def test_the_head_of_another_journal_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = written(tmp_path / "a"), written(tmp_path / "b")
    shutil.copy(head_path(other), head_path(one))

    assert not check(one).intact


def test_a_head_signed_by_another_key_is_found(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", key=OTHER_KEY) as journal:
        journal.append({"outcome": "accept"})

    found = check(tmp_path / "j")

    assert found.line is None
    assert "not the trusted one" in str(found.problem)


def test_putting_back_an_older_copy_is_found_by_an_anchor_that_was_kept_elsewhere(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    older = path.read_bytes(), head_path(path).read_bytes()
    with Journal(path, key=KEY) as journal:
        journal.append({"outcome": "refuse"})
    anchor = shutil.copy(head_path(path), tmp_path / "anchor")
    assert check(path, anchors=[anchor]).intact

    path.write_bytes(older[0])
    head_path(path).write_bytes(older[1])

    assert check(path).intact
    found = check(path, anchors=[anchor])
    assert found.line == 6
    assert "cut" in str(found.problem)


def test_a_missing_journal_and_a_missing_key_are_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be read"):
        check(tmp_path / "none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGELENS_HOME", str(tmp_path / "empty"))
        with pytest.raises(JournalError, match="no key to trust"):
            verify_journal(tmp_path / "none")


# --- opening again --------------------------------------------------------------------------------


def test_a_line_torn_by_a_crash_is_reported_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path)
    with open(path, "ab") as file:
        file.write(b'{"outcome":"acc')

    assert not check(path).intact
    with Journal(path, key=KEY) as journal:
        assert journal.recovery == Recovery(unsigned=0, torn_bytes=15)
        journal.append({"outcome": "accept"})

    found = check(path)
    assert found.intact
    assert found.recoveries == (6,)
    note = json.loads(path.read_bytes().splitlines()[5])
    assert note["event"] == "recovered"
    assert note["torn_sha256"] == hashlib.sha256(b'{"outcome":"acc').hexdigest()


def test_a_line_written_but_not_yet_signed_is_kept_and_reported(tmp_path: Path) -> None:
    path = written(tmp_path)
    head = head_path(path).read_bytes()
    with Journal(path, key=KEY) as journal:
        journal.append({"outcome": "accept", "last": True})
    head_path(path).write_bytes(head)  # as if the power had failed between line and head

    with Journal(path, key=KEY) as journal:
        assert journal.recovery == Recovery(unsigned=1, torn_bytes=0)

    assert check(path).intact
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert lines[5]["last"]
    assert lines[6]["event"] == "recovered"


@pytest.mark.parametrize("written_of_first_line", [0, 20, None], ids=["none", "a part", "all"])
def test_a_crash_at_the_very_beginning_is_no_obstacle(
    tmp_path: Path, written_of_first_line: int | None
) -> None:
    """The head of an empty journal is on disk before the first line."""
    path = written(tmp_path, entries=[])
    path.write_bytes(path.read_bytes()[:written_of_first_line])
    document = json.loads(head_path(path).read_bytes())
    document |= {"count": 0, "bytes": 0, "sha256": "0" * 64}
    head_path(path).write_bytes(canonical_json(sign(document, KEY)) + b"\n")

    with Journal(path, key=KEY) as journal:
        journal.append({"outcome": "accept"})

    assert check(path).intact
    assert check(path).decisions == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change_the_last_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"line\\nfeed", b"line_xfeed"))


def remove_the_head(path: Path) -> None:
    head_path(path).unlink()


def garble_the_head(path: Path) -> None:
    head_path(path).write_bytes(head_path(path).read_bytes().replace(b'"count":5', b'"count":4'))


def add_a_foreign_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"seq":5,"prev":"00"}\n')


def add_two_chained_lines(path: Path) -> None:
    path.write_bytes(forged([*path.read_bytes().splitlines(), b"{}", b"{}"]))


def remove_the_journal(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (cut, "it was cut"),
        (change_the_last_line, "line 5 is not the one that the head signed"),
        (remove_the_head, "is missing"),
        (garble_the_head, "changed after it was signed"),
        (add_a_foreign_line, "not written by this gate"),
        (add_two_chained_lines, "2 lines come after the signed head"),
        (remove_the_journal, "it was cut"),
    ],
)
def test_a_gate_does_not_go_on_with_a_journal_that_was_tampered_with(
    tmp_path: Path, tamper: Any, words: str
) -> None:
    path = written(tmp_path)
    tamper(path)
    before = path.read_bytes() if path.exists() else b""

    with pytest.raises(JournalError, match=words):
        Journal(path, key=KEY)

    assert path.read_bytes() == before


def test_a_gate_with_another_key_does_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="not the trusted one"):
        Journal(written(tmp_path), key=OTHER_KEY)


def test_there_is_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "j", key=KEY),
        pytest.raises(JournalError, match="another gate writes"),
    ):
        Journal(tmp_path / "j", key=KEY)
    Journal(tmp_path / "j", key=KEY).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_does_not_write_into_its_parents_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", key=KEY) as journal:
        child = os.fork()
        if child == 0:
            try:
                journal.append({"outcome": "accept"})
            except JournalError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        journal.append({"outcome": "accept"})

    assert check(tmp_path / "j").decisions == 1


def test_a_full_disk_leaves_a_journal_that_holds_what_was_answered(tmp_path: Path) -> None:
    """A limit on the file's size stands for the full disk."""
    program = """
import resource, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from agelens.errors import JournalError
from agelens.gate.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
with Journal(sys.argv[1], key=key) as journal:
    journal.append({"outcome": "accept"})
    free = Path(sys.argv[1]).stat().st_size + 100
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limit[1]))
    try:
        journal.append({"outcome": "refuse", "long": "x" * 1000})
    except JournalError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    journal.append({"outcome": "step_up"})
"""
    pytest.importorskip("resource")
    path = tmp_path / "j"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )

    assert "give no answer" in done.stdout
    assert check(path).intact
    outcomes = [json.loads(line).get("outcome") for line in path.read_bytes().splitlines()]
    assert outcomes == [None, "accept", "step_up"]


WRITER = """
import sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from agelens.gate.journal import Journal

key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
with Journal(sys.argv[1], key=key) as journal:
    for number in range(1_000_000):
        journal.append({"outcome": "accept", "number": number, "padding": "x" * 300})
        print(number, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
@pytest.mark.parametrize("after_s", [0.05, 0.13, 0.21, 0.37])
def test_kill_9_while_writing_loses_at_most_the_decision_not_yet_answered(
    tmp_path: Path, after_s: float
) -> None:
    path = tmp_path / "gate.jsonl"
    answered = _killed(path, after_s)

    with Journal(path, key=KEY) as journal:
        journal.append({"outcome": "accept", "number": -1})

    found = check(path)
    numbers = [
        entry["number"]
        for entry in map(json.loads, path.read_bytes().splitlines())
        if "number" in entry
    ]
    assert found.intact
    assert numbers[-1] == -1
    assert numbers[:-1] == list(range(len(numbers) - 1))
    assert answered <= len(numbers) - 1 <= answered + 1


def _killed(path: Path, after_s: float) -> int:
    """How many decisions a writer had answered when it was killed."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"  # it writes now
        killer = threading.Timer(after_s, process.kill)
        killer.start()
        rest = process.stdout.read()
        killer.join()
    assert process.returncode == -signal.SIGKILL
    return 1 + rest.count("\n")


# --- identifiers ----------------------------------------------------------------------------------


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)))
def test_identifiers_are_uuids_of_version_7_that_sort_by_time(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    first, later = new_identifier(aware), new_identifier(aware + timedelta(milliseconds=2))

    parsed = uuid.UUID(first)
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert abs((parsed.int >> 80) / 1000 - aware.timestamp()) < 0.0011
    assert first < later
    assert first != new_identifier(aware)
