"""Tokens: they say "over N" and no more, hold for any JWT library, and count once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="needs the 'gate' extra")
pytest.importorskip("jwt", reason="needs the 'gate' extra")

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from hypothesis import given
from hypothesis import strategies as st

from agelens.errors import TOKEN_ERROR_CODES, ArgumentError, GateError, TokenError
from agelens.gate.token import ReplayCache, TokenIssuer, TokenKeys, TokenVerifier, thumbprint

ISSUER, AUDIENCE, NONCE = "https://gate.example", "https://shop.example", "n-0S6_WzA2Mj"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> TokenKeys:
    return TokenKeys.create(tmp_path_factory.mktemp("keys") / "gate-keys")


@pytest.fixture
def replays() -> Iterator[ReplayCache]:
    with ReplayCache() as cache:
        yield cache


def issuer(keys: TokenKeys, *, ago_s: float = 0, **options: Any) -> TokenIssuer:
    fields: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "lifetime_s": 300} | options
    return TokenIssuer.of(
        keys, clock=lambda: datetime.now(UTC) - timedelta(seconds=ago_s), **fields
    )


def verifier(keys: TokenKeys, replays: ReplayCache, **options: Any) -> TokenVerifier:
    options = {"issuer": ISSUER, "audience": AUDIENCE} | options
    return TokenVerifier(keys.jwks(), replays=replays, **options)


def refusal(
    checker: TokenVerifier,
    token: str,
    *,
    nonce: str = NONCE,
    at_least: int = 18,
    under: int | None = None,
) -> str:
    """The code with which a token is refused that must say "over" or, where given, "under"."""
    asked = {"at_least": at_least} if under is None else {"under": under}
    with pytest.raises(TokenError) as refused:
        checker.verify(token, nonce=nonce, **asked)
    return refused.value.code


def signed(keys: TokenKeys, claims: dict[str, Any], **header: Any) -> str:
    """A token with any claims, as a gate that breaks the rules would sign it."""
    header = {"kid": keys.signing.kid} | header
    return jwt.encode(claims, keys.private_key(), algorithm="EdDSA", headers=header)


def good_claims() -> dict[str, Any]:
    now = int(time.time())
    return {
        "over": 18,
        "iss": ISSUER,
        "aud": AUDIENCE,
        "nonce": NONCE,
        "iat": now,
        "exp": now + 60,
        "jti": "a",
    }


# --- what a token is ------------------------------------------------------------------------------


def test_a_token_verifies_with_a_standard_library_from_the_jwks_document_alone(
    keys: TokenKeys,
) -> None:
    token = issuer(keys).issue(18, NONCE)
    published = json.dumps(keys.jwks())

    key_set = jwt.PyJWKSet.from_json(published)
    key = key_set[jwt.get_unverified_header(token.text)["kid"]]
    claims = jwt.decode(token.text, key, audience=AUDIENCE, issuer=ISSUER)

    assert claims["over"] == 18
    assert claims["exp"] - claims["iat"] == 300
    assert claims["jti"] == token.jti


def test_a_token_verifies_by_the_letter_of_the_standards(keys: TokenKeys) -> None:
    """RFC 7515 and 8037 by hand: Ed25519 over header.payload with the x of the JWKS."""
    head, payload, signature = issuer(keys).issue(21, NONCE).text.split(".")
    (jwk,) = keys.jwks()["keys"]

    public = Ed25519PublicKey.from_public_bytes(unpadded(jwk["x"]))
    public.verify(unpadded(signature), f"{head}.{payload}".encode())
    with pytest.raises(InvalidSignature):
        public.verify(unpadded(signature), f"{head}.{payload}x".encode())

    header = json.loads(unpadded(head))
    assert (header["alg"], header["kid"]) == ("EdDSA", jwk["kid"])


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_token_holds_nothing_but_the_seven_claims(keys: TokenKeys) -> None:
    payload = json.loads(unpadded(issuer(keys).issue(18, NONCE).text.split(".")[1]))

    assert sorted(payload) == ["aud", "exp", "iat", "iss", "jti", "nonce", "over"]


def test_a_token_of_a_gate_for_the_young_says_under_and_nothing_of_over(
    keys: TokenKeys, replays: ReplayCache
) -> None:
    token = issuer(keys).issue_under(13, NONCE)
    payload = json.loads(unpadded(token.text.split(".")[1]))

    claims = verifier(keys, replays).verify(token.text, nonce=NONCE, under=13)

    assert sorted(payload) == ["aud", "exp", "iat", "iss", "jti", "nonce", "under"]
    assert (claims.under, claims.over) == (13, None)


def test_a_token_for_a_lower_age_serves_where_those_under_a_higher_one_are_let_in(
    keys: TokenKeys, replays: ReplayCache
) -> None:
    token = issuer(keys).issue_under(13, NONCE)

    assert verifier(keys, replays).verify(token.text, nonce=NONCE, under=16).under == 13


def test_over_and_under_do_not_stand_for_each_other(keys: TokenKeys, replays: ReplayCache) -> None:
    checker = verifier(keys, replays)
    over, under = issuer(keys).issue(18, NONCE).text, issuer(keys).issue_under(18, NONCE).text

    assert refusal(checker, over, under=18) == "too_old"
    assert refusal(checker, under, at_least=18) == "too_young"
    assert refusal(checker, under, at_least=13) == "too_young"
    assert refusal(checker, signed(keys, {**good_claims(), "under": 18})) == "wrong_claims"


@pytest.mark.parametrize("question", [{}, {"at_least": 18, "under": 18}], ids=["neither", "both"])
def test_a_verifier_has_to_ask_for_one_side(
    keys: TokenKeys, replays: ReplayCache, question: dict[str, int]
) -> None:
    token = issuer(keys).issue(18, NONCE).text

    with pytest.raises(ArgumentError, match="one of at_least and under"):
        verifier(keys, replays).verify(token, nonce=NONCE, **question)


def test_a_key_is_named_by_its_thumbprint() -> None:
    """The example of RFC 8037, appendix A.3."""
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"

    assert thumbprint(x) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_token_is_accepted_once(keys: TokenKeys, replays: ReplayCache) -> None:
    token = issuer(keys).issue(18, NONCE)
    checker = verifier(keys, replays)

    claims = checker.verify(token.text, nonce=NONCE, at_least=18)

    assert (claims.over, claims.issuer, claims.jti) == (18, ISSUER, token.jti)
    assert claims.expires == token.expires
    assert refusal(checker, token.text) == "replayed"


def test_a_token_for_a_higher_age_serves_a_lower_one(keys: TokenKeys, replays: ReplayCache) -> None:
    token = issuer(keys).issue(21, NONCE)

    assert verifier(keys, replays).verify(token.text, nonce=NONCE, at_least=18).over == 21


# --- what is refused ------------------------------------------------------------------------------


def test_each_reason_to_refuse_has_a_code_of_its_own(
    keys: TokenKeys, replays: ReplayCache, tmp_path: Path
) -> None:
    good = issuer(keys).issue(18, NONCE).text
    checker = verifier(keys, replays)
    stranger = TokenKeys.create(tmp_path / "stranger")
    head, payload, signature = good.split(".")
    older = base64.urlsafe_b64encode(
        json.dumps({**json.loads(unpadded(payload)), "over": 21}).encode()
    )

    refused = {
        "malformed": refusal(checker, "no.token"),
        "unknown_key": refusal(checker, issuer(stranger).issue(18, NONCE).text),
        "altered": refusal(checker, f"{head}.{older.decode().rstrip('=')}.{signature}"),
        "expired": refusal(checker, issuer(keys, ago_s=301).issue(18, NONCE).text),
        "not_yet_valid": refusal(checker, issuer(keys, ago_s=-60).issue(18, NONCE).text),
        "wrong_issuer": refusal(checker, issuer(keys, issuer="other").issue(18, NONCE).text),
        "wrong_audience": refusal(checker, issuer(keys, audience="other").issue(18, NONCE).text),
        "wrong_nonce": refusal(checker, good, nonce="another"),
        "wrong_claims": refusal(checker, signed(keys, {**good_claims(), "age": 34})),
        "too_young": refusal(checker, good, at_least=21),
        "too_old": refusal(checker, issuer(keys).issue_under(18, NONCE).text, under=13),
    }
    checker.verify(good, nonce=NONCE, at_least=18)
    refused["replayed"] = refusal(checker, good)

    assert refused == {code: code for code in refused}
    assert sorted(refused) == sorted(TOKEN_ERROR_CODES)


def test_a_refused_token_is_not_used_up(keys: TokenKeys, replays: ReplayCache) -> None:
    token = issuer(keys).issue(18, NONCE).text
    checker = verifier(keys, replays)

    assert refusal(checker, token, nonce="another") == "wrong_nonce"
    assert checker.verify(token, nonce=NONCE, at_least=18).over == 18


@given(data=st.data())
def test_altering_any_one_character_is_refused(data: st.DataObject, keys: TokenKeys) -> None:
    text = issuer(keys).issue(18, NONCE).text
    place = data.draw(st.integers(0, len(text) - 1))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.="
    letter = data.draw(st.sampled_from([c for c in letters if c != text[place]]))

    with ReplayCache() as replays, pytest.raises(TokenError) as refused:
        verifier(keys, replays).verify(
            text[:place] + letter + text[place + 1 :], nonce=NONCE, at_least=18
        )

    assert refused.value.code in ("altered", "malformed", "unknown_key")


def test_a_token_signed_with_a_shared_secret_is_refused(
    keys: TokenKeys, replays: ReplayCache
) -> None:
    """The public key used as an HMAC secret: the classic confusion of algorithms."""
    public = keys.jwks()["keys"][0]["x"]
    header = base64.urlsafe_b64encode(
        json.dumps({"alg": "HS256", "typ": "JWT", "kid": keys.signing.kid}).encode()
    ).rstrip(b"=")
    payload = base64.urlsafe_b64encode(json.dumps(good_claims()).encode()).rstrip(b"=")
    mac = hmac.digest(unpadded(public), header + b"." + payload, hashlib.sha256)
    forged = b".".join([header, payload, base64.urlsafe_b64encode(mac).rstrip(b"=")])

    assert refusal(verifier(keys, replays), forged.decode()) == "altered"


def test_an_unsigned_token_is_refused(keys: TokenKeys, replays: ReplayCache) -> None:
    forged = jwt.encode(good_claims(), "", algorithm="none", headers={"kid": keys.signing.kid})

    assert refusal(verifier(keys, replays), forged) in ("altered", "malformed")


@pytest.mark.parametrize(
    "change",
    [
        {"over": "18"},
        {"over": True},
        {"over": None},
        {"exp": 2e9},
        {"exp": None},
        {"jti": 7},
        {"nonce": 5},
        {"nbf": 0},
        {"picture": "..."},
        {"mean_age": 31.5},
    ],
    ids=str,
)
def test_a_token_with_other_claims_is_refused_though_the_gate_signed_it(
    keys: TokenKeys, replays: ReplayCache, change: dict[str, Any]
) -> None:
    token = signed(keys, {**good_claims(), **change})

    assert refusal(verifier(keys, replays), token) == "wrong_claims"


def test_an_audience_in_a_list_is_refused(keys: TokenKeys, replays: ReplayCache) -> None:
    token = signed(keys, {**good_claims(), "aud": [AUDIENCE, "https://other.example"]})

    assert refusal(verifier(keys, replays), token) == "wrong_audience"


def test_clocks_may_differ_by_the_leeway(keys: TokenKeys, replays: ReplayCache) -> None:
    token = issuer(keys, ago_s=305).issue(18, NONCE).text

    assert refusal(verifier(keys, replays), token) == "expired"
    checker = verifier(keys, replays, leeway_s=30)
    assert checker.verify(token, nonce=NONCE, at_least=18).over == 18
    assert refusal(checker, token) == "replayed"


@pytest.mark.parametrize("over", [0, 101, -1, 18.0, True, "18"])
def test_an_impossible_age_is_not_signed(keys: TokenKeys, over: Any) -> None:
    with pytest.raises(ArgumentError, match="over must be"):
        issuer(keys).issue(over, NONCE)


@pytest.mark.parametrize("nonce", ["", "x" * 257])
def test_an_empty_or_endless_nonce_is_not_signed(keys: TokenKeys, nonce: str) -> None:
    with pytest.raises(ArgumentError, match="nonce"):
        issuer(keys).issue(18, nonce)


@pytest.mark.parametrize(
    "options", [{"lifetime_s": 0}, {"lifetime_s": 86_401}, {"issuer": ""}, {"audience": ""}]
)
def test_an_impossible_issuer_is_refused(keys: TokenKeys, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        issuer(keys, **options)


@pytest.mark.parametrize(
    "jwks",
    [{}, {"keys": []}, {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}, {"keys": "x"}],
    ids=str,
)
def test_a_key_set_without_an_ed25519_key_is_refused(
    jwks: dict[str, Any], replays: ReplayCache
) -> None:
    with pytest.raises(ArgumentError, match="Key Set"):
        TokenVerifier(jwks, issuer=ISSUER, audience=AUDIENCE, replays=replays)


# --- keys -----------------------------------------------------------------------------------------


def test_after_a_rotation_new_tokens_have_a_new_key_and_old_ones_still_verify(
    tmp_path: Path, replays: ReplayCache
) -> None:
    keys = TokenKeys.create(tmp_path)
    before = keys.signing.kid
    old = issuer(keys).issue(18, NONCE).text

    keys.rotate()
    new = issuer(keys).issue(18, NONCE).text

    checker = verifier(keys, replays)
    assert jwt.get_unverified_header(new)["kid"] == keys.signing.kid != before
    assert [jwk["kid"] for jwk in keys.jwks()["keys"]] == [keys.signing.kid, before]
    assert checker.verify(old, nonce=NONCE, at_least=18).over == 18
    assert checker.verify(new, nonce=NONCE, at_least=18).over == 18


def test_the_private_half_of_a_rotated_key_is_gone(tmp_path: Path) -> None:
    keys = TokenKeys.create(tmp_path)
    before = keys.signing.kid

    keys.rotate()

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["keys.json", f"{keys.signing.kid}.pem"]
    )
    assert before not in {path.stem for path in tmp_path.iterdir()}


def test_a_rotated_key_leaves_the_key_set_when_its_last_token_has_expired(tmp_path: Path) -> None:
    keys = TokenKeys.create(tmp_path)
    before = keys.signing.kid
    now = datetime.now(UTC)

    keys.rotate(clock=lambda: now)

    def kids(after: timedelta) -> list[str]:
        return [jwk["kid"] for jwk in keys.jwks(now + after)["keys"]]

    assert before in kids(timedelta(hours=23, minutes=59))
    assert kids(timedelta(hours=24, seconds=1)) == [keys.signing.kid]
    keys.rotate(clock=lambda: now + timedelta(days=2))
    assert before not in (tmp_path / "keys.json").read_text()


def test_a_stolen_key_is_ended_at_once(tmp_path: Path, replays: ReplayCache) -> None:
    keys = TokenKeys.create(tmp_path)
    stolen = issuer(keys).issue(18, NONCE).text

    keys.rotate(at_once=True)

    assert len(keys.jwks()["keys"]) == 1
    assert refusal(verifier(keys, replays), stolen) == "unknown_key"


def test_no_earlier_key_verifies_after_a_theft_however_many_there_were(
    tmp_path: Path, replays: ReplayCache
) -> None:
    keys = TokenKeys.create(tmp_path)
    tokens = [issuer(keys).issue(18, NONCE).text]
    for _ in range(2):
        keys.rotate()
        tokens.append(issuer(keys).issue(18, NONCE).text)
    assert len(keys.verifying()) == 3

    keys.rotate(at_once=True)

    assert [key.kid for key in keys.verifying()] == [keys.signing.kid]
    for read in (keys, TokenKeys.open(tmp_path)):
        assert {refusal(verifier(read, replays), token) for token in tokens} == {"unknown_key"}


def test_a_rotation_does_not_lengthen_the_life_of_earlier_keys(tmp_path: Path) -> None:
    keys = TokenKeys.create(tmp_path)
    now = datetime.now(UTC).replace(microsecond=0)
    keys.rotate(clock=lambda: now)
    _, first = keys.verifying(now)

    keys.rotate(clock=lambda: now + timedelta(hours=1))

    assert first in keys.verifying(now + timedelta(hours=1))


def test_keys_are_the_same_when_they_are_read_again(tmp_path: Path) -> None:
    keys = TokenKeys.create(tmp_path)
    keys.rotate()

    assert TokenKeys.open(tmp_path).jwks() == keys.jwks()


def test_only_the_owner_and_perhaps_a_group_can_read_the_keys(tmp_path: Path) -> None:
    keys = TokenKeys.create(tmp_path / "k")

    for path in (tmp_path / "k").iterdir():
        assert path.stat().st_mode & 0o077 == 0
    private = tmp_path / "k" / f"{keys.signing.kid}.pem"
    for mode in (0o440, 0o640):  # as Kubernetes and systemd hand them over
        private.chmod(mode)
        assert keys.private_key()
    for mode in (0o644, 0o604, 0o660):
        private.chmod(mode)
        with pytest.raises(GateError, match="other users can read"):
            keys.private_key()


def test_the_published_document_has_no_private_half(keys: TokenKeys) -> None:
    private = keys.private_key().private_bytes_raw()

    assert all("d" not in jwk for jwk in keys.jwks()["keys"])
    assert base64.urlsafe_b64encode(private).rstrip(b"=").decode() not in json.dumps(keys.jwks())


def test_keys_are_not_made_twice(tmp_path: Path) -> None:
    TokenKeys.create(tmp_path)

    with pytest.raises(GateError, match="has keys already"):
        TokenKeys.create(tmp_path)


def write_other_key(folder: Path, keys: TokenKeys) -> None:
    other = TokenKeys.create(folder / "other")
    pem = (folder / "other" / f"{other.signing.kid}.pem").read_bytes()
    (folder / f"{keys.signing.kid}.pem").write_bytes(pem)


def delete_private(folder: Path, keys: TokenKeys) -> None:
    (folder / f"{keys.signing.kid}.pem").unlink()


def garble_private(folder: Path, keys: TokenKeys) -> None:
    (folder / f"{keys.signing.kid}.pem").write_bytes(b"-----BEGIN")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (write_other_key, "not the private half"),
        (delete_private, "cannot be read"),
        (garble_private, "no private key"),
    ],
)
def test_a_private_key_that_is_not_the_listed_one_is_said(
    tmp_path: Path, change: Any, words: str
) -> None:
    keys = TokenKeys.create(tmp_path)
    change(tmp_path, keys)

    with pytest.raises(GateError, match=words):
        issuer(TokenKeys.open(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no token keys; make them"),
        ("{", "no list of keys"),
        ('{"schema": "other", "keys": []}', "no list of keys"),
        ('{"schema": "agelens.gate-keys/1", "keys": []}', "exactly one key must sign"),
        (
            '{"schema": "agelens.gate-keys/1", "keys": [{"kid": "a", "x": "b", "created": '
            '"2026-01-01T00:00:00+00:00", "until": null}]}',
            "thumbprint",
        ),
    ],
)
def test_a_wrong_list_of_keys_is_said(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "keys.json").write_text(content)

    with pytest.raises(GateError, match=words):
        TokenKeys.open(tmp_path)


# --- the memory of used tokens --------------------------------------------------------------------


def test_used_tokens_are_remembered_over_a_restart_in_a_file(
    keys: TokenKeys, tmp_path: Path
) -> None:
    token = issuer(keys).issue(18, NONCE).text
    with ReplayCache(tmp_path / "used.sqlite") as cache:
        verifier(keys, cache).verify(token, nonce=NONCE, at_least=18)

    with ReplayCache(tmp_path / "used.sqlite") as cache:
        assert refusal(verifier(keys, cache), token) == "replayed"


def test_of_many_threads_one_may_use_a_token(keys: TokenKeys, replays: ReplayCache) -> None:
    token = issuer(keys).issue(18, NONCE).text
    checker = verifier(keys, replays)
    results: list[int | str | None] = []

    def use() -> None:
        try:
            results.append(checker.verify(token, nonce=NONCE, at_least=18).over)
        except TokenError as error:
            results.append(error.code)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results, key=str) == [18] + ["replayed"] * 7


def test_expired_tokens_are_forgotten(replays: ReplayCache) -> None:
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    soon = noon + timedelta(minutes=5)

    assert replays.first_use("a", soon, noon)
    assert not replays.first_use("a", soon, noon + timedelta(minutes=4))
    assert replays.first_use("a", soon, noon + timedelta(minutes=6))


def test_a_memory_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="cannot keep"):
        ReplayCache(tmp_path / "no folder" / "used.sqlite")
    cache = ReplayCache()
    cache.close()
    with pytest.raises(GateError, match="cannot be noted"):
        cache.first_use("a", datetime.now(UTC), datetime.now(UTC))


def test_a_token_shows_no_secret_in_its_repr(keys: TokenKeys) -> None:
    maker = issuer(keys)
    token = maker.issue(18, NONCE)

    assert token.text not in repr(token)
    assert "Private" not in repr(maker)
    assert isinstance(keys.private_key(), Ed25519PrivateKey)
