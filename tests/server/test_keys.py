"""API keys: what the file holds, when a key counts, and the commands that change it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agelens.errors import ArgumentError
from agelens.server.keys import KeyFile, KeyRing, Scope
from command_line import agelens, command

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture
def file(path: Path) -> KeyFile:
    return KeyFile(path, clock=lambda: NOON)


# --- the file -------------------------------------------------------------------------------------


def test_file_holds_the_hash_of_a_key_and_not_the_key(path: Path, file: KeyFile) -> None:
    made = file.add("till 3", [Scope.ANALYZE, Scope.GATE])

    held = path.read_text()
    assert re.fullmatch(r"al_[a-z2-7]{8}_[A-Za-z0-9_-]{43}", made.text)
    assert hashlib.sha256(made.text.encode()).hexdigest() in held
    assert made.text not in held
    assert made.text.split("_", 2)[2] not in held
    assert made.text not in repr(made)


def test_only_the_owner_may_read_the_file_whatever_the_umask(path: Path, file: KeyFile) -> None:
    before = os.umask(0)
    try:
        file.add("a", [Scope.ANALYZE])
        file.add("b", [Scope.ANALYZE])
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.toml"]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o660, 0o666, 0o602])
def test_file_that_others_can_read_or_change_is_refused(
    path: Path, file: KeyFile, mode: int
) -> None:
    file.add("a", [Scope.ANALYZE])
    path.chmod(mode)

    with pytest.raises(ArgumentError, match=rf"keys\.toml: mode 0{mode:o}.*chmod 600"):
        KeyRing(path)


def test_group_that_may_read_the_file_still_may_after_a_change(path: Path, file: KeyFile) -> None:
    file.add("a", [Scope.ANALYZE])
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 0, 12345)
    before = path.stat()
    file.revoke("a")

    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_secrets_as_kubernetes_and_systemd_hand_them_over_are_taken(
    path: Path, file: KeyFile, mode: int
) -> None:
    made = file.add("a", [Scope.ANALYZE])
    path.chmod(mode)

    assert KeyRing(path).find(made.text) == made.key


GOOD = f"""
[[keys]]
id = "abcdefgh"
name = "a"
sha256 = "{"0" * 64}"
scopes = ["analyze"]
created = 2026-11-24T12:00:00Z
"""
FAULTS = {
    "no TOML": ("keys = [", "not valid TOML"),
    "no schema": (GOOD, "schema: missing"),
    "another schema": (f'schema = "x/1"\n{GOOD}', "schema: expected one of 'agelens.api-keys/1'"),
    "unknown key": (GOOD.replace("name", "nmae"), r"keys\.0\.nmae: unknown key"),
    "unknown scope": (GOOD.replace("analyze", "all"), r"keys\.0\.scopes\.0: .*'all'"),
    "no scope": (GOOD.replace('"analyze"', ""), r"keys\.0\.scopes"),
    "short hash": (GOOD.replace("0" * 64, "0" * 63), r"keys\.0\.sha256"),
    "no time zone": (GOOD.replace("00Z", "00"), r"keys\.0\.created: .*timezone"),
    "twice the same id": (GOOD + GOOD, "key abcdefgh is listed twice"),
    "id out of form": (GOOD.replace("abcdefgh", "../../et"), r"keys\.0\.id"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_malformed_file_is_refused_with_the_place(path: Path, text: str, message: str) -> None:
    head = "" if "schema" in text or "schema" in message else 'schema = "agelens.api-keys/1"\n'
    path.write_text(head + text)
    path.chmod(0o600)

    with pytest.raises(ArgumentError, match=rf"keys\.toml: .*{message}"):
        KeyRing(path)


def test_well_formed_file_written_by_hand_is_taken(path: Path) -> None:
    path.write_text(f'schema = "agelens.api-keys/1"\n{GOOD}')
    path.chmod(0o600)

    (key,) = KeyFile(path).read()
    assert (key.name, key.created, key.state(NOON)) == ("a", NOON, "active")


def test_missing_file_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"agelens keys add NAME --file .*keys\.toml"):
        KeyRing(path)


def test_key_pasted_into_the_file_by_mistake_is_not_repeated_in_the_message(
    path: Path, file: KeyFile
) -> None:
    made = file.add("a", [Scope.ANALYZE])
    path.write_text(path.read_text().replace(made.key.sha256, made.text))

    with pytest.raises(ArgumentError, match="sha256") as refused:
        KeyRing(path)
    assert made.text not in str(refused.value)


# --- when a key counts ----------------------------------------------------------------------------


def test_changed_or_foreign_keys_are_not_found(path: Path, file: KeyFile) -> None:
    made = file.add("a", [Scope.ANALYZE])
    other = file.add("b", [Scope.ANALYZE])
    ring = KeyRing(path)
    last = "A" if made.text[-1] != "A" else "B"
    mixed = made.text[:12] + other.text[12:]

    for wrong in ("", "al_", made.text[:-1], made.text[:-1] + last, made.text + "A", mixed):
        assert ring.find(wrong) is None
    for wrong in (made.text.upper(), f" {made.text}", f"{made.text}\n", "al_zzzzzzzz_" + "A" * 43):
        assert ring.find(wrong) is None
    assert ring.find(made.text) == made.key


def test_unknown_key_costs_the_time_of_a_wrong_one(path: Path, file: KeyFile) -> None:
    made = file.add("a", [Scope.ANALYZE])
    ring = KeyRing(path)

    def fastest(text: str) -> float:
        times = []
        for _ in range(300):
            start = time.perf_counter()
            for _ in range(10):
                ring.find(text)
            times.append(time.perf_counter() - start)
        return min(times)

    wrong, unknown = made.text[:12] + "A" * 43, "al_zzzzzzzz_" + "A" * 43
    assert 0.67 < fastest(wrong) / fastest(unknown) < 1.5


def test_expiry_and_revocation_end_a_key(file: KeyFile) -> None:
    short = file.add("short", [Scope.ANALYZE], lifetime=timedelta(days=1)).key
    ended = file.revoke(file.add("ended", [Scope.ANALYZE]).key.id)

    assert short.state(NOON + timedelta(hours=23, minutes=59)) == "active"
    assert short.state(NOON + timedelta(days=1)) == "expired"
    assert ended.state(NOON) == "revoked"


def test_revocation_reaches_a_ring_that_is_in_use(path: Path, file: KeyFile) -> None:
    made = file.add("a", [Scope.ANALYZE])
    ring = KeyRing(path)
    before = ring.find(made.text)
    file.revoke("a")
    later = file.add("b", [Scope.GATE])

    after = ring.find(made.text)
    assert before is not None
    assert after is not None
    assert (before.state(NOON), after.state(NOON)) == ("active", "revoked")
    assert ring.find(later.text) == later.key


def test_rotation_gives_an_equal_key_while_the_old_one_counts_for_the_overlap(
    path: Path, file: KeyFile
) -> None:
    old = file.add("till", [Scope.GATE], lifetime=timedelta(days=90))
    new = file.rotate("till", overlap=timedelta(hours=24))
    ring = KeyRing(path)

    ending = ring.find(old.text)
    assert ending is not None
    assert ending.state(NOON + timedelta(hours=23)) == "active"
    assert ending.state(NOON + timedelta(hours=24)) == "expired"
    found = ring.find(new.text)
    assert found is not None
    assert (found.name, found.scopes, found.replaces) == ("till", (Scope.GATE,), old.key.id)
    assert found.expires == NOON + timedelta(days=90)


def test_rotation_does_not_lengthen_the_life_of_the_old_key(path: Path, file: KeyFile) -> None:
    old = file.add("a", [Scope.GATE], lifetime=timedelta(hours=1))
    file.rotate("a", overlap=timedelta(days=7))

    found = KeyRing(path).find(old.text)
    assert found is not None
    assert found.expires == NOON + timedelta(hours=1)


def test_stolen_key_is_replaced_without_overlap(path: Path, file: KeyFile) -> None:
    old = file.add("a", [Scope.GATE])
    file.rotate("a", overlap=timedelta(0))

    found = KeyRing(path).find(old.text)
    assert found is not None
    assert found.state(NOON) == "expired"


@pytest.mark.parametrize("slip", ["keys = [", "", None, "mode"])
def test_file_that_turns_unreadable_keeps_the_last_good_keys(
    path: Path, file: KeyFile, slip: str | None
) -> None:
    problems: list[str] = []
    made = file.add("a", [Scope.ANALYZE])
    ring = KeyRing(path, problems.append)
    good = path.read_bytes()
    if slip is None:
        path.unlink()
    elif slip == "mode":
        path.chmod(0o644)
    else:
        path.write_text(slip)

    assert ring.find(made.text) == made.key
    assert ring.find(made.text) == made.key
    assert len(problems) == 1
    assert "keys.toml" in problems[0]

    path.write_bytes(good)
    path.chmod(0o600)
    later = file.add("b", [Scope.ANALYZE])
    assert ring.find(later.text) == later.key
    assert len(problems) == 1


@contextmanager
def _no_file_can_be_opened() -> Iterator[None]:
    import resource  # not on Windows, where files have no modes either

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_revocation_counts_though_the_file_could_not_be_opened_at_first(
    path: Path, file: KeyFile
) -> None:
    problems: list[str] = []
    made = file.add("a", [Scope.ANALYZE])
    ring = KeyRing(path, problems.append)
    file.revoke("a")
    with _no_file_can_be_opened():
        before = [ring.find(made.text) for _ in range(3)]

    assert before == [made.key] * 3
    assert len(problems) == 1
    found = ring.find(made.text)
    assert found is not None
    assert found.state(NOON) == "revoked"


# --- the commands ---------------------------------------------------------------------------------


def test_command_prints_the_key_alone_and_once(path: Path) -> None:
    made = agelens("keys", "add", "till", "--file", path, "--scope", "gate", "--expires", "90d")
    listed = agelens("keys", "list", "--file", path)
    (row,) = json.loads(agelens("keys", "list", "--file", path, "--json").out)

    key = made.out.strip()
    assert made.status == 0
    found = KeyRing(path).find(key)
    assert found is not None
    assert found.scopes == (Scope.GATE,)
    assert found.expires is not None
    assert found.expires - found.created == timedelta(days=90)
    assert key not in made.err + listed.out + listed.err
    assert found.sha256 not in listed.out + json.dumps(row)
    assert (row["name"], row["state"], row["id"]) == ("till", "active", found.id)
    assert "till" in listed.out


def test_no_id_is_cut_however_narrow_the_terminal(path: Path) -> None:
    agelens("keys", "add", "till", "--file", path)
    (row,) = json.loads(agelens("keys", "list", "--file", path, "--json").out)

    narrow = agelens("keys", "list", "--file", path, columns=30).out

    assert row["id"] in narrow
    assert "till" in narrow
    assert "…" not in narrow


def test_commands_rotate_and_revoke(path: Path) -> None:
    first = agelens("keys", "add", "a", "--file", path).out.strip()
    second = agelens("keys", "rotate", "a", "--file", path, "--overlap", "1h").out.strip()
    ring = KeyRing(path)
    old, new = ring.find(first), ring.find(second)
    assert old is not None
    assert new is not None
    assert agelens("keys", "revoke", old.id, "--file", path).status == 0
    assert agelens("keys", "revoke", "a", "--file", path).status == 0

    states = [row["state"] for row in json.loads(agelens("keys", "list", "-f", path, "--json").out)]
    assert states == ["revoked", "revoked"]


MISTAKES = {
    "name taken": (("add", "a"), "there is an active key 'a'"),
    "empty name": (("add", ""), "1 to 100 printable"),
    "bad span": (("add", "b", "--expires", "soon"), "as 90d"),
    "no such key": (("revoke", "b"), "no key 'b'"),
    "revoked twice": (("revoke", "ID"), "revoked already"),
    "rotated when revoked": (("rotate", "ID"), "is revoked"),
    "bad scope": (("add", "b", "--scope", "all"), "all"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_wrong_use_ends_with_2_and_changes_nothing(
    path: Path, file: KeyFile, arguments: tuple[str, ...], message: str
) -> None:
    file.add("a", [Scope.ANALYZE])
    ended = file.revoke(file.add("z", [Scope.ANALYZE]).key.id).id
    before = path.read_bytes()

    told = [ended if part == "ID" else part for part in arguments]
    outcome = agelens("keys", *told, "--file", path)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.out == ""
    assert path.read_bytes() == before


def test_key_file_can_be_named_by_the_variable_that_the_server_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGELENS_KEYS", str(path))

    assert agelens("keys", "add", "a").status == 0
    assert len(KeyFile(path).read()) == 1


def test_keys_added_at_the_same_time_are_all_kept_or_refused(path: Path) -> None:
    running = [
        subprocess.Popen(
            command("keys", "add", f"k{i}", "--file", path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    done = [(process.communicate(timeout=60), process.returncode) for process in running]

    made = [out.strip() for (out, _), status in done if status == 0]
    refused = [err for (_, err), status in done if status != 0]
    ring = KeyRing(path)
    assert made
    assert all(ring.find(text) for text in made)
    assert all("another process changes it" in err for err in refused)
    assert len(KeyFile(path).read()) == len(made)
