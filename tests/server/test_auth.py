"""Who may ask: keys, tokens of an identity provider, and a server that starts closed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.requests import Request

from agelens.errors import ArgumentError
from agelens.server.app import create_app
from agelens.server.auth import Authority
from agelens.server.bearer import BearerVerifier, KeySet, TokenRefused, scopes_of
from agelens.server.intake import refuse_repeats
from agelens.server.keys import KeyFile, Scope
from agelens.settings import ServerSettings
from command_line import agelens_apart
from server.conftest import RunningServer, close, launch, serving

ISSUER, AUDIENCE = "https://id.example/realms/shop", "agelens"


# --- an identity provider -------------------------------------------------------------------------


def _jwk(key: Any, kid: str) -> dict[str, Any]:
    kind: Any = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    algorithm = next(found for base, found in kind.items() if isinstance(key, base))
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


@dataclass(frozen=True)
class Provider:
    """Signs tokens as an identity provider does."""

    rsa: rsa.RSAPrivateKey
    ec: ec.EllipticCurvePrivateKey
    ed: ed25519.Ed25519PrivateKey

    @property
    def key_set(self) -> dict[str, Any]:
        return {"keys": [_jwk(self.rsa, "r"), _jwk(self.ec, "e"), _jwk(self.ed, "d")]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        given = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "anna@shop.example",
            "iat": now,
            "exp": now + 300,
            "scope": "openid analyze",
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    def token(self, kid: str = "r", algorithm: str = "RS256", **changes: Any) -> str:
        key: Any = {"r": self.rsa, "e": self.ec, "d": self.ed}[kid]
        return jwt.encode(self.claims(**changes), key, algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider(
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    )


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token made by hand, unsigned or with HMAC, past what libraries refuse to make."""
    head = _base64url(json.dumps(header).encode())
    body = _base64url(json.dumps(claims).encode())
    signed = f"{head}.{body}"
    if secret is None:
        return f"{signed}."
    return f"{signed}.{_base64url(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


# --- one server with keys and a provider ----------------------------------------------------------


@dataclass(frozen=True)
class Guarded:
    """A running server that asks for keys, and what opens it."""

    server: RunningServer
    file: KeyFile
    keys: dict[str, str]

    def status(self, path: str, headers: dict[str, str] | None = None) -> int:
        return self.server.get(path, headers=headers or {}).status_code


@pytest.fixture(scope="module")
def guarded(
    own_registry: Path, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    path = folder / "keys.toml"
    file = KeyFile(path)
    keys = {scope.value: file.add(scope.value, [scope]).text for scope in Scope}
    keys["revoked"] = file.add("revoked", list(Scope)).text
    file.revoke("revoked")
    past = KeyFile(path, clock=lambda: datetime.now(UTC) - timedelta(days=2))
    keys["expired"] = past.add("expired", list(Scope), lifetime=timedelta(days=1)).text
    (folder / "jwks.json").write_text(json.dumps(provider.key_set))
    options = {
        "oidc_issuer": ISSUER,
        "oidc_audience": AUDIENCE,
        "oidc_jwks": str(folder / "jwks.json"),
        "rate_per_address": "100000",
    }
    given = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    server = launch(folder, "--keys", str(path), "--workers", "1", *given, ready=False)
    yield Guarded(server, file, keys)
    close(server)


OPEN = {"/healthz", "/readyz", "/.well-known/jwks.json"}
"""Health, and the public keys that those need who verify a gate's tokens."""


def test_every_route_but_health_and_public_keys_asks_for_a_key(guarded: Guarded) -> None:
    described = guarded.server.get("/openapi.json").json()["paths"]
    found = {}
    for path, operations in described.items():
        for method in operations:
            url = guarded.server.url + re.sub(r"\{[^}]*\}", "x", path)
            answer = httpx2.request(method.upper(), url)
            found[f"{method} {path}"] = answer.status_code
            if path not in OPEN:
                assert answer.json()["code"] == "unauthorized"
                assert answer.headers["www-authenticate"].startswith("Bearer")

    assert {"post /v1/analyze", "get /v1/models", "get /metrics"} <= set(found)
    closed = {name: status for name, status in found.items() if name.split()[1] not in OPEN}
    assert set(closed.values()) == {401}, closed


def test_key_opens_what_its_scope_covers(guarded: Guarded) -> None:
    routes = {"/v1/models": "analyze", "/v1/policies": "gate", "/metrics": "admin"}
    for path, needed in routes.items():
        for scope in Scope:
            answer = guarded.server.get(path, headers={"x-api-key": guarded.keys[scope]})
            if scope == needed:
                assert answer.status_code == 200
            else:
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "header", ["Authorization: Bearer KEY", "authorization: bearer KEY", "X-API-Key: KEY"]
)
def test_key_is_taken_from_either_header(guarded: Guarded, header: str) -> None:
    name, _, value = header.partition(": ")

    told = {name: value.replace("KEY", guarded.keys["analyze"])}
    assert guarded.status("/v1/models", told) == 200


WRONG = {
    "nothing": {},
    "empty": {"x-api-key": ""},
    "no such key": {"x-api-key": "al_abcdefgh_" + "A" * 43},
    "cut": {"x-api-key": "KEY[:-1]"},
    "basic": {"authorization": "Basic KEY"},
    "bare": {"authorization": "KEY"},
    "no value": {"authorization": "Bearer"},
    "revoked": {"x-api-key": "REVOKED"},
    "expired": {"x-api-key": "EXPIRED"},
    "two keys": {"x-api-key": "KEY", "authorization": "Bearer KEY"},
    "cookie": {"cookie": "key=KEY"},
    "its hash": {"x-api-key": "HASH"},
    "no token": {"authorization": "Bearer a.b.c"},
    "junk": {"authorization": "Bearer " + "\xff" * 8},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_without_a_key_that_counts_the_answer_is_401(
    guarded: Guarded, headers: dict[str, str]
) -> None:
    key = guarded.keys["analyze"]
    words = {
        "KEY[:-1]": key[:-1],
        "KEY": key,
        "REVOKED": guarded.keys["revoked"],
        "EXPIRED": guarded.keys["expired"],
        "HASH": hashlib.sha256(key.encode()).hexdigest(),
    }
    told = {}
    for name, value in headers.items():
        for word, meaning in words.items():
            value = value.replace(word, meaning)
        told[name] = value.encode("latin-1")
    answer = guarded.server.get("/v1/models", headers=told)

    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="agelens"')
    assert answer.headers["cache-control"] == "no-store"
    assert key not in answer.text


def test_key_in_the_query_is_no_key(guarded: Guarded) -> None:
    assert guarded.status(f"/v1/models?key={guarded.keys['analyze']}") == 401


def test_revocation_needs_no_restart(guarded: Guarded) -> None:
    made = guarded.file.add("leaver", [Scope.ANALYZE])
    headers = {"x-api-key": made.text}
    before = guarded.status("/v1/models", headers)
    guarded.file.revoke(made.key.id)

    assert (before, guarded.status("/v1/models", headers)) == (200, 401)


def test_broken_key_file_keeps_the_last_good_keys_and_is_told_of(guarded: Guarded) -> None:
    headers = {"x-api-key": guarded.keys["analyze"]}
    path = guarded.file.path
    good = path.read_bytes()
    path.write_bytes(good + b"[[keys]]\nid = 3\n")
    try:
        statuses = [guarded.status("/v1/models", headers) for _ in range(3)]
    finally:
        path.write_bytes(good)
    assert statuses == [200] * 3
    assert guarded.status("/v1/models", headers) == 200

    warnings = [
        line for line in guarded.server.log.read_text().splitlines() if "keys_not_read" in line
    ]
    assert len(warnings) == 1
    assert json.loads(warnings[0])["level"] == "warning"
    assert "keys.toml" in warnings[0]


def test_pages_need_no_key(guarded: Guarded) -> None:
    assert [guarded.status(path) for path in ("/", "/gate", "/docs")] == [200] * 3


def test_token_of_the_provider_opens_its_scopes(guarded: Guarded, provider: Provider) -> None:
    token = provider.token(scope="openid analyze agelens:gate")
    headers = {"authorization": f"Bearer {token}"}

    routes = ("/v1/models", "/v1/policies", "/metrics")
    assert [guarded.status(path, headers) for path in routes] == [200, 200, 403]


def test_token_without_a_scope_of_ours_opens_nothing(guarded: Guarded, provider: Provider) -> None:
    headers = {"authorization": f"Bearer {provider.token(scope='openid email')}"}

    answer = guarded.server.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "anna" not in answer.text


def test_expired_token_is_401_with_the_reason(guarded: Guarded, provider: Provider) -> None:
    token = provider.token(exp=int(time.time()) - 60)

    answer = guarded.server.get("/v1/models", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


# --- tokens, one by one ---------------------------------------------------------------------------


@pytest.fixture
def verifier(provider: Provider, tmp_path: Path) -> BearerVerifier:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(provider.key_set))
    return BearerVerifier(ISSUER, AUDIENCE, KeySet.open(str(path)))


def verified(verifier: BearerVerifier, token: str) -> Any:
    return asyncio.run(verifier.verify(token))


GOOD_TOKENS = [("r", "RS256"), ("r", "RS512"), ("r", "PS256"), ("e", "ES256"), ("d", "EdDSA")]


@pytest.mark.parametrize(("kid", "algorithm"), GOOD_TOKENS)
def test_asymmetric_signatures_hold(
    verifier: BearerVerifier, provider: Provider, kid: str, algorithm: str
) -> None:
    found = verified(verifier, provider.token(kid, algorithm))

    assert found.scopes == {Scope.ANALYZE}
    assert re.fullmatch(r"sub-[0-9a-f]{12}", found.id)


def test_subject_is_a_stable_pseudonym(verifier: BearerVerifier, provider: Provider) -> None:
    once, again = (verified(verifier, provider.token()).id for _ in range(2))

    assert once == again
    assert once != verified(verifier, provider.token(sub="ben@shop.example")).id


@cache
def stranger() -> rsa.RSAPrivateKey:
    """The key of one who is not the provider."""
    return rsa.generate_private_key(65537, 2048)


def _public(provider: Provider, encoding: Encoding) -> bytes:
    return provider.rsa.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)


def _signed(provider: Provider, key: Any, **headers: Any) -> str:
    return jwt.encode(provider.claims(), key, "RS256", headers=headers)


def _with_parts(provider: Provider, change: Callable[[str, str, str], str]) -> str:
    head, body, signature = provider.token().split(".")
    return change(head, body, signature)


_DEEP = _base64url(b'{"a":' * 900 + b"1" + b"}" * 900)
BAD_TOKENS: dict[str, Callable[[Provider], str]] = {
    "none": lambda p: forged({"alg": "none", "typ": "JWT"}, p.claims(), None),
    "None": lambda p: forged({"alg": "None", "kid": "r"}, p.claims(), None),
    "no alg": lambda p: forged({"kid": "r"}, p.claims(), b"x"),
    "HMAC with the public key": lambda p: forged(
        {"alg": "HS256", "kid": "r"}, p.claims(), _public(p, Encoding.PEM)
    ),
    "HMAC with the public key, DER": lambda p: forged(
        {"alg": "HS256", "kid": "r"}, p.claims(), _public(p, Encoding.DER)
    ),
    "HMAC with nothing": lambda p: forged({"alg": "HS256"}, p.claims(), b""),
    "RS256 said, HMAC done": lambda p: forged(
        {"alg": "RS256", "kid": "r"}, p.claims(), _public(p, Encoding.PEM)
    ),
    "algorithm and key apart": lambda p: _signed(p, p.rsa, kid="e"),
    "stranger's key": lambda p: _signed(p, stranger(), kid="r"),
    "stranger's key in the header": lambda p: _signed(
        p, stranger(), kid="r", jwk=_jwk(stranger(), "r")
    ),
    "key by address": lambda p: _signed(p, stranger(), kid="r", jku="http://127.0.0.1:9/"),
    "unknown key": lambda p: _signed(p, p.rsa, kid="x"),
    "kid as a path": lambda p: _signed(p, p.rsa, kid="../../dev/null"),
    "critical extension": lambda p: _signed(p, p.rsa, kid="r", crit=["x"], x=1),
    "claims changed": lambda p: _with_parts(
        p,
        lambda head, _, signature: (
            f"{head}.{_base64url(json.dumps(p.claims(scope='admin')).encode())}.{signature}"
        ),
    ),
    "signature cut": lambda p: _with_parts(p, lambda head, body, _: f"{head}.{body}."),
    "another issuer": lambda p: p.token(iss="https://id.example/realms/other"),
    "issuer with a slash": lambda p: p.token(iss=ISSUER + "/"),
    "no issuer": lambda p: p.token(iss=None),
    "another audience": lambda p: p.token(aud="payroll"),
    "no audience": lambda p: p.token(aud=None),
    "expired": lambda p: p.token(exp=int(time.time()) - 60),
    "no expiry": lambda p: p.token(exp=None),
    "not yet": lambda p: p.token(nbf=int(time.time()) + 600),
    "from the future": lambda p: p.token(iat=int(time.time()) + 600),
    "no subject": lambda p: p.token(sub=None),
    "too long": lambda p: p.token(padding="x" * 9000),
    "no token": lambda p: "a.b.c",
    "two parts": lambda p: _with_parts(p, lambda head, body, _: f"{head}.{body}"),
    "deep header": lambda p: _with_parts(p, lambda _, body, sign: f"{_DEEP}.{body}.{sign}"),
    "list header": lambda p: _with_parts(
        p, lambda _, body, sign: f"{_base64url(b'[]')}.{body}.{sign}"
    ),
    "empty": lambda p: "",
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_token_that_does_not_hold_is_refused(
    verifier: BearerVerifier, provider: Provider, name: str
) -> None:
    with pytest.raises(TokenRefused) as refused:
        verified(verifier, BAD_TOKENS[name](provider))
    assert "anna" not in str(refused.value)


def test_short_rsa_key_is_refused(provider: Provider, tmp_path: Path) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [_jwk(weak, "w")]}))
    verifier = BearerVerifier(ISSUER, AUDIENCE, KeySet.open(str(path)))

    with pytest.raises(TokenRefused, match="too short"):
        verified(verifier, _signed_weakly(weak, provider.claims()))


def _signed_weakly(key: rsa.RSAPrivateKey, claims: dict[str, Any]) -> str:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    head = _base64url(b'{"alg":"RS256","kid":"w"}')
    signed = f"{head}.{_base64url(json.dumps(claims).encode())}"
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{_base64url(signature)}"


@pytest.mark.parametrize(
    ("claims", "claim", "found"),
    [
        ({"scope": "analyze gate"}, "scope", {"analyze", "gate"}),
        ({"scp": ["agelens:admin", "x"]}, "scp", {"admin"}),
        ({"realm_access": {"roles": ["gate"]}}, "realm_access.roles", {"gate"}),
        ({"https://x.example/roles": ["gate"]}, "https://x.example/roles", {"gate"}),
        ({"scope": "ANALYZE analyzer other:gate"}, "scope", set()),
        ({"scope": {"analyze": True}}, "scope", set()),
        ({"scope": [["analyze"], 3, None]}, "scope", set()),
        ({"realm_access": "gate"}, "realm_access.roles", set()),
        ({}, "scope", set()),
    ],
)
def test_scopes_come_from_the_configured_claim(
    claims: dict[str, Any], claim: str, found: set[str]
) -> None:
    assert {scope.value for scope in scopes_of(claims, claim)} == found


# --- the provider's keys --------------------------------------------------------------------------


def test_changed_file_of_keys_is_read_again_and_a_broken_one_is_not(
    provider: Provider, tmp_path: Path
) -> None:
    path = tmp_path / "jwks.json"
    problems: list[str] = []
    path.write_text(json.dumps({"keys": [_jwk(provider.ec, "e")]}))
    key_set = KeySet.open(str(path), problems.append)
    verifier = BearerVerifier(ISSUER, AUDIENCE, key_set)

    async def story() -> None:
        with pytest.raises(TokenRefused):
            await verifier.verify(provider.token("r"))
        path.write_text(json.dumps(provider.key_set))
        await verifier.verify(provider.token("r"))
        path.write_text("{")
        await verifier.verify(provider.token("r"))

    asyncio.run(story())
    assert len(problems) == 1


KEY_FILES = {
    "not there": (None, "cannot be read"),
    "no JSON": ("{", "no key set"),
    "no list": ('{"keys": 3}', "no key set"),
    "symmetric only": ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "no public key"),
    "private": ('{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "", "d": ""}]}', "private key"),
}


@pytest.mark.parametrize(("text", "message"), KEY_FILES.values(), ids=KEY_FILES)
def test_file_without_public_keys_is_refused_at_start(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "jwks.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ArgumentError, match=message):
        KeySet.open(str(path))


@pytest.mark.parametrize("address", ["http://id.example/jwks", "ftp://id.example/jwks"])
def test_keys_over_an_open_line_are_refused(address: str) -> None:
    with pytest.raises(ArgumentError, match="https"):
        KeySet.open(address)


class _Published:
    """A provider's address, over plain HTTP on loopback; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.document: object = {}
        self.status = 200
        published = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                published.asked += 1
                self.send_response(published.status)
                self.send_header("location", "/elsewhere")
                self.end_headers()
                self.wfile.write(json.dumps(published.document).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"


@pytest.fixture
def published() -> Iterator[_Published]:
    found = _Published()
    with serving(found.server):
        yield found


def test_published_keys_are_kept_asked_for_again_and_survive_an_outage(
    provider: Provider, published: _Published
) -> None:
    now = [0.0]
    problems: list[str] = []
    key_set = KeySet(published.url, problems.append, clock=lambda: now[0])
    verifier = BearerVerifier(ISSUER, AUDIENCE, key_set)
    published.document = {"keys": [_jwk(provider.rsa, "r")]}

    async def story() -> None:
        for _ in range(20):
            await verifier.verify(provider.token("r"))
        assert published.asked == 1

        published.document = provider.key_set
        for _ in range(20):
            with pytest.raises(TokenRefused):
                await verifier.verify(provider.token("e", "ES256"))
        assert published.asked == 1
        now[0] = 31
        await verifier.verify(provider.token("e", "ES256"))
        assert published.asked == 2

        published.status = 302
        now[0] = 400
        await verifier.verify(provider.token("r"))
        assert published.asked == 3
        published.server.server_close()
        now[0] = 500
        await verifier.verify(provider.token("r"))

    asyncio.run(story())
    assert [("answered 302" in p) or ("cannot be fetched" in p) for p in problems] == [True, True]


def test_provider_that_was_never_reached_is_our_fault_and_not_the_callers(
    provider: Provider, published: _Published
) -> None:
    published.status = 500
    verifier = BearerVerifier(ISSUER, AUDIENCE, KeySet(published.url))

    with pytest.raises(TokenRefused) as refused:
        verified(verifier, provider.token())
    assert refused.value.retry


# --- starting closed ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "age.example"])
def test_without_keys_only_loopback_is_served(host: str) -> None:
    with pytest.raises(ArgumentError, match=r"agelens keys add .*--keys"):
        create_app(ServerSettings.load(host=host))
    for loopback in ("127.0.0.1", "::1", "localhost"):
        create_app(ServerSettings.load(host=loopback))


def test_command_without_keys_refuses_to_be_reached_by_others() -> None:
    outcome = agelens_apart("serve", "--port", "0", "--host", "0.0.0.0")

    assert outcome.status == 2
    assert "agelens keys add" in outcome.err
    assert "listening" not in outcome.out


def test_authority_itself_refuses_a_server_that_anyone_could_ask() -> None:
    settings = ServerSettings.model_construct(
        **{**ServerSettings.load().model_dump(), "host": "::"}
    )

    with pytest.raises(ArgumentError, match="agelens keys add"):
        Authority.open(settings)


def test_keys_or_a_provider_open_other_addresses_and_halves_of_them_do_not(
    tmp_path: Path, provider: Provider
) -> None:
    keys, jwks = tmp_path / "keys.toml", tmp_path / "jwks.json"
    KeyFile(keys).add("a", [Scope.ANALYZE])
    jwks.write_text(json.dumps(provider.key_set))
    oidc = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": str(jwks)}

    for good in ({"keys": keys}, oidc, {"keys": keys, **oidc}):
        create_app(ServerSettings.load(host="0.0.0.0", **good))
    broken: list[dict[str, Any]] = [
        {name: value for name, value in oidc.items() if name != missing} for missing in oidc
    ]
    broken += [{"keys": tmp_path / "no.toml"}, {**oidc, "oidc_jwks": "http://id.example/"}]
    for bad in broken:
        with pytest.raises(ArgumentError):
            create_app(ServerSettings.load(host="0.0.0.0", **bad))


def test_there_is_no_default_key(guarded: Guarded) -> None:
    guesses = ("al_", "admin", "agelens", "default", "test", "changeme", "al_test", "null")

    assert {guarded.status("/v1/models", {"x-api-key": guess}) for guess in guesses} == {401}


def test_server_without_keys_does_not_answer_through_a_proxy(server: RunningServer) -> None:
    for header in ("x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-proto", "via"):
        answer = server.get("/v1/models", headers={header: "for=192.0.2.1"})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_server_without_keys_does_not_answer_in_the_http_that_proxies_speak(
    server: RunningServer,
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 401 " in raw.recv(4096).partition(b"\r\n")[0]


def test_header_of_another_scheme_is_passed_over(guarded: Guarded) -> None:
    basic = {"authorization": "Basic YTpi"}

    assert guarded.status("/v1/models", {**basic, "x-api-key": guarded.keys["analyze"]}) == 200
    assert guarded.status("/v1/models", basic) == 401


def test_query_is_looked_at_after_the_key_and_in_no_time(guarded: Guarded) -> None:
    names = "&".join(f"{n:x}" for n in range(3300))
    asked = {
        "twice": "/v1/analyze?flip=true&flip=true",
        "many": f"/v1/analyze?{names}",
        "many twice": f"/v1/analyze?{names}&0",
    }
    key = {"x-api-key": guarded.keys["analyze"]}

    for path in asked.values():
        assert guarded.server.post(path, content=b"x").status_code == 401
    for path in asked.values():
        start = time.monotonic()
        answer = guarded.server.post(path, content=b"x", headers=key)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_option")
        assert time.monotonic() - start < 2


def test_names_of_a_long_query_are_compared_once_each() -> None:
    query = "&".join(f"{n:x}" for n in range(3300)).encode()
    request = Request({"type": "http", "query_string": query, "headers": []})

    start = time.process_time()
    for _ in range(5):
        refuse_repeats(request)
    assert time.process_time() - start < 0.5


def test_log_knows_a_caller_by_the_id_of_the_key_or_a_pseudonym(
    guarded: Guarded, provider: Provider
) -> None:
    key = guarded.file.add("logged", [Scope.ANALYZE])
    shown: dict[str, dict[str, str]] = {
        "by-key": {"x-api-key": key.text},
        "by-token": {"authorization": f"Bearer {provider.token()}"},
        "by-nobody": {},
    }
    for name, headers in shown.items():
        guarded.status("/v1/models", {**headers, "x-request-id": name})

    text = guarded.server.log.read_text()
    lines = {row["request_id"]: row for row in map(json.loads, text.splitlines()) if "ms" in row}
    assert lines["by-key"]["caller"] == key.key.id
    assert lines["by-token"]["caller"].startswith("sub-")
    assert lines["by-nobody"]["caller"] is None
    assert key.text not in text
    assert "anna" not in text
