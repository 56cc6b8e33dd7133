"""The example deployments: each is checked by its own tool, or field by field, and tried out."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image

from agelens.server.keys import KeyFile, Scope
from agelens.settings import ServerSettings
from server.conftest import StartServer
from server.test_fetching import certificate as certificate

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
OWNER = "10001"
JPEG = {"content-type": "image/jpeg"}


# --- systemd --------------------------------------------------------------------------------------

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def _unit(folder: Path) -> Path:
    """The unit with the command of this installation, or the check would miss the file."""
    text = (DEPLOY / "agelens.service").read_text()
    path = folder / "agelens.service"
    path.write_text(text.replace("/opt/agelens/bin/agelens", shutil.which("true") or "/bin/true"))
    return path


@needs_systemd
def test_unit_has_no_fault_that_systemd_finds(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", _unit(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    faults = [line for line in done.stderr.splitlines() if "agelens.service" in line]
    assert (done.returncode, faults) == (0, [])


@needs_systemd
def test_unit_is_locked_down_by_the_measure_of_systemd(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager"),
            _unit(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    # In tenths: 2.0 of 10 at most, where an ordinary service has 9.6.
    assert done.returncode == 0, done.stdout[-400:]
    assert "OK" in done.stdout.splitlines()[-1]


def _options(unit: str) -> dict[str, str]:
    found = re.findall(r"^([A-Z]\w+)=(.*)$", unit, re.MULTILINE)
    return dict(found)


def test_unit_stops_and_limits_the_service_as_the_service_expects() -> None:
    options = _options((DEPLOY / "agelens.service").read_text())
    grace_s = ServerSettings.load().grace_s

    assert options["DynamicUser"] == options["NoNewPrivileges"] == "yes"
    assert options["ProtectSystem"] == "strict"
    assert options["KillMode"] == "mixed"
    assert float(options["TimeoutStopSec"]) >= grace_s + 5
    assert "MemoryMax" in options


def test_settings_file_of_the_unit_is_one(tmp_path: Path) -> None:
    settings = ServerSettings.load(DEPLOY / "serve.toml")

    assert settings.keys == Path("/etc/agelens/keys/keys.toml")
    assert settings.proxy_headers
    assert set(tomllib.loads((DEPLOY / "serve.toml").read_text())) <= set(settings.model_fields_set)


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"([0-9]+)([MGmg])i?", text).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 1024**2, "g": 1024**3}[unit.lower()]


def test_workers_and_front_fit_into_the_memory_of_each_deployment() -> None:
    """A body of JSON takes four times its size while it is read."""
    container = _manifest()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    service = _compose()["services"]["agelens"]
    given: list[tuple[dict[str, Any], str]] = [
        (
            tomllib.loads((DEPLOY / "serve.toml").read_text()),
            _options((DEPLOY / "agelens.service").read_text())["MemoryMax"],
        ),
        (service["environment"], service["mem_limit"]),
        (
            {row["name"]: row["value"] for row in container["env"]},
            container["resources"]["limits"]["memory"],
        ),
    ]

    for values, limit in given:
        named = {name.removeprefix("AGELENS_").lower(): value for name, value in values.items()}
        workers = int(named["workers"]) * int(named["memory_limit_mb"]) * 1_000_000
        front = 4 * ServerSettings.load().max_bodies_bytes + 150_000_000
        assert workers + front <= _bytes(limit)


# --- the image ------------------------------------------------------------------------------------


def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile as pairs of instruction and arguments, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in joined.splitlines()]


KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL"} | {
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


def test_image_runs_the_installed_wheel_as_nobody_in_particular() -> None:
    steps = _instructions()
    stages = [index for index, (name, _) in enumerate(steps) if name == "FROM"]
    last = dict(steps[stages[-1] :])

    assert {name for name, _ in steps} <= KNOWN
    assert steps[-1] == ("CMD", '["serve"]')
    assert last["USER"] == f"{OWNER}:{OWNER}"
    assert json.loads(last["ENTRYPOINT"]) == ["agelens"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    # The last stage holds what was installed and none of the tools that installed it.
    assert "RUN" not in last
    assert [arguments for name, arguments in steps[stages[-1] :] if name == "COPY"] == [
        "--from=build /opt/agelens /opt/agelens"
    ]
    assert not any("ADD" in name or "curl" in text or "http:" in text for name, text in steps[:-4])


def test_image_copies_files_that_are_there() -> None:
    root = DEPLOY.parents[1]
    copied = [arguments.split() for name, arguments in _instructions() if name == "COPY"]

    for *sources, _ in copied:
        for source in sources:
            assert source.startswith(("--from", "/")) or (root / source).exists(), source


def test_image_sets_variables_that_the_service_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    (given,) = (arguments for name, arguments in _instructions() if name == "ENV")
    variables = dict(pair.split("=", 1) for pair in given.split())
    for name, value in variables.items():
        if name.startswith("AGELENS_"):
            monkeypatch.setenv(name, value)

    settings = ServerSettings.load()
    assert (settings.host, settings.keys) == ("0.0.0.0", Path("/etc/agelens/keys.toml"))


def test_health_check_of_the_image_is_passed_by_a_server_and_by_nothing_else(
    start_server: StartServer, tmp_path: Path
) -> None:
    (given,) = (arguments for name, arguments in _instructions() if name == "HEALTHCHECK")
    program = json.loads(given.partition("CMD ")[2])
    keys = tmp_path / "keys.toml"
    KeyFile(keys).add("a", [Scope.ANALYZE])
    hosts = ("--set", "allowed_hosts=age.example")
    server = start_server("--keys", str(keys), "--workers", "1", *hosts, ready=False)

    def passes(port: int) -> bool:
        told = [part.replace(":8000/", f":{port}/") for part in program]
        done = subprocess.run([sys.executable, *told[1:]], capture_output=True, check=False)
        return done.returncode == 0

    assert any(passes(server.port) for _ in range(3))  # as often as Docker asks
    assert not passes(_free_port())


@pytest.mark.skipif(
    os.environ.get("AGELENS_TRY_DOCKERFILE") != "1",
    reason="builds and installs from a package index: set AGELENS_TRY_DOCKERFILE=1",
)
def test_steps_of_the_image_work_in_a_plain_environment(tmp_path: Path, photo: bytes) -> None:
    root = DEPLOY.parents[1]
    places = {"/opt/agelens": tmp_path / "opt", "/wheels": tmp_path / "wheels"}
    source = tmp_path / "src"
    source.mkdir()
    steps = _instructions()
    for name, arguments in steps:
        if name == "COPY" and not arguments.startswith("--from"):
            *given, _ = arguments.split()
            for one in given:
                if (root / one).is_dir():
                    skip = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(root / one, source / one, ignore=skip)
                else:
                    shutil.copy(root / one, source / one)
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    for name, command in steps:
        if name == "RUN":
            for place, here in places.items():
                command = command.replace(place, str(here))
            command = re.sub(r"^python ", f"{sys.executable} ", command)
            subprocess.run(["sh", "-ec", command], cwd=source, env=clean, check=True)

    program = tmp_path / "opt" / "bin" / "agelens"
    serving = [str(program), "serve", "--port", "0", "--workers", "1"]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True, env=clean) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("listening on ").strip()
            end = time.monotonic() + 120
            while httpx2.get(f"{url}/readyz").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.5)
            pages = [httpx2.get(url + path).status_code for path in ("/", "/gate", "/docs")]
            sent = httpx2.post(f"{url}/v1/analyze", content=photo, headers=JPEG, timeout=60)
        finally:
            process.terminate()
    assert pages == [200, 200, 200]
    assert [len(one["faces"]) for one in sent.json()["analyses"]] == [1]


# --- compose --------------------------------------------------------------------------------------


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


TEXT, FLAG, COUNT, LIST, TABLE = str, bool, int, list, dict
SERVICE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "build": TABLE,
    "image": TEXT,
    "environment": TABLE,
    "volumes": LIST,
    "networks": LIST,
    "expose": LIST,
    "ports": LIST,
    "user": TEXT,
    "read_only": FLAG,
    "tmpfs": LIST,
    "cap_drop": LIST,
    "security_opt": LIST,
    "mem_limit": TEXT,
    "pids_limit": COUNT,
    "restart": TEXT,
    "stop_grace_period": TEXT,
    "depends_on": TABLE,
}
"""Of the Compose specification, those in use, with their types."""


def test_compose_file_uses_fields_of_the_specification_and_defines_what_it_names() -> None:
    compose = _compose()

    assert set(compose) == {"name", "services", "networks"}
    for name, service in compose["services"].items():
        for field, value in service.items():
            assert isinstance(value, SERVICE_FIELDS[field]), (name, field)
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        for volume in service.get("volumes", ()):
            source, target, mode = volume.split(":")
            assert source.startswith("./")
            assert target.startswith("/")
            assert mode == "ro"
        for value in service.get("environment", {}).values():
            assert isinstance(value, str)
    build = compose["services"]["agelens"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_service_in_compose_is_reached_through_the_proxy_only_and_cannot_get_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compose = _compose()
    service = compose["services"]["agelens"]
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    settings = ServerSettings.load(host="0.0.0.0", keys=Path("keys.toml"))

    assert "ports" not in service
    assert service["networks"] == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True
    (network,) = compose["networks"]["inside"]["ipam"]["config"]
    assert settings.trusted_proxies == (network["subnet"],)
    assert service["user"].startswith(OWNER)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert float(service["stop_grace_period"].rstrip("s")) > settings.grace_s


# --- Kubernetes -----------------------------------------------------------------------------------


def _manifest() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


HTTP_GET = {"path": TEXT, "port": TEXT, "httpHeaders": [{"name": TEXT, "value": TEXT}]}
PROBE = {
    "httpGet": HTTP_GET,
    "periodSeconds": COUNT,
    "failureThreshold": COUNT,
    "timeoutSeconds": COUNT,
}
META = {"name": TEXT, "namespace": TEXT, "labels": {"*": TEXT}}
LABELS = {"matchLabels": {"*": TEXT}}
CONTAINER = {
    "name": TEXT,
    "image": TEXT,
    "ports": [{"name": TEXT, "containerPort": COUNT}],
    "env": [{"name": TEXT, "value": TEXT}],
    "resources": {"requests": {"*": TEXT}, "limits": {"*": TEXT}},
    "securityContext": {
        "allowPrivilegeEscalation": FLAG,
        "readOnlyRootFilesystem": FLAG,
        "capabilities": {"drop": [TEXT]},
    },
    "volumeMounts": [{"name": TEXT, "mountPath": TEXT, "readOnly": FLAG}],
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "lifecycle": {"preStop": {"exec": {"command": [TEXT]}}},
}
POD = {
    "automountServiceAccountToken": FLAG,
    "enableServiceLinks": FLAG,
    "terminationGracePeriodSeconds": COUNT,
    "securityContext": {
        "runAsNonRoot": FLAG,
        "runAsUser": COUNT,
        "runAsGroup": COUNT,
        "fsGroup": COUNT,
        "seccompProfile": {"type": TEXT},
    },
    "containers": [CONTAINER],
    "volumes": [
        {
            "name": TEXT,
            "secret": {"secretName": TEXT, "defaultMode": COUNT},
            "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
        }
    ],
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Namespace": ("v1", {}),
    "Deployment": (
        "apps/v1",
        {
            "replicas": COUNT,
            "selector": LABELS,
            "strategy": {
                "type": TEXT,
                "rollingUpdate": {"maxUnavailable": COUNT, "maxSurge": COUNT},
            },
            "template": {"metadata": META, "spec": POD},
        },
    ),
    "Service": (
        "v1",
        {
            "selector": {"*": TEXT},
            "ports": [{"name": TEXT, "port": COUNT, "targetPort": TEXT}],
        },
    ),
    "PodDisruptionBudget": ("policy/v1", {"minAvailable": COUNT, "selector": LABELS}),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        {
            "podSelector": LABELS,
            "policyTypes": [TEXT],
            "ingress": [
                {
                    "from": [{"namespaceSelector": LABELS}],
                    "ports": [{"port": COUNT, "protocol": TEXT}],
                }
            ],
            "egress": [TEXT],
        },
    ),
}
"""Of the Kubernetes API, the fields in use, with their types."""


def _faults(found: Any, wanted: Any, where: str) -> Iterator[str]:
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            yield f"{where}: no table"
            return
        for field, value in found.items():
            if field not in wanted and "*" not in wanted:
                yield f"{where}.{field}: unknown"
            else:
                yield from _faults(value, wanted.get(field, wanted.get("*")), f"{where}.{field}")
    elif isinstance(wanted, list):
        if not isinstance(found, list):
            yield f"{where}: no list"
            return
        for index, value in enumerate(found):
            yield from _faults(value, wanted[0], f"{where}[{index}]")
    elif type(found) is not wanted:
        yield f"{where}: {found!r} is no {wanted.__name__}"


def test_manifest_uses_fields_of_the_api_with_their_types() -> None:
    manifest = _manifest()

    assert set(manifest) == set(KINDS)
    for kind, document in manifest.items():
        version, spec = KINDS[kind]
        assert document["apiVersion"] == version
        whole = {"apiVersion": TEXT, "kind": TEXT, "metadata": META, "spec": spec}
        assert list(_faults(document, whole, kind)) == []


def test_parts_of_the_manifest_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = _manifest()
    deployment = manifest["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    settings = ServerSettings.load(host="0.0.0.0", keys=Path("keys.toml"))

    assert deployment["selector"]["matchLabels"] == labels
    assert manifest["Service"]["spec"]["selector"] == labels
    assert manifest["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in manifest["Service"]["spec"]["ports"]} == ports
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["keys"]["secret"]["defaultMode"] == 0o440
    assert str(pod["securityContext"]["runAsUser"]) == OWNER
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + settings.grace_s
    paths = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness")}
    assert paths == {"/readyz"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_reads_the_manifest(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "kubernetes.yaml", tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: [kubernetes.yaml]\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert {document["kind"] for document in yaml.safe_load_all(done.stdout)} == set(KINDS)


# --- nginx ----------------------------------------------------------------------------------------

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _nginx_conf(folder: Path, tls: Path, behind: int, port: int) -> Path:
    """The example with the places and ports of a test."""
    changes = {
        "agelens:8000;\n        keepalive": f"127.0.0.1:{behind};\n        keepalive",
        "listen 80 ": f"listen 127.0.0.1:{_free_port()} ",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "/etc/nginx/tls/fullchain.pem": str(tls / "cert.pem"),
        "/etc/nginx/tls/privkey.pem": str(tls / "key.pem"),
        "/var/run/nginx.pid": str(folder / "nginx.pid"),
        "/dev/stderr": str(folder / "error.log"),
        "/dev/stdout": str(folder / "access.log"),
    }
    text = (DEPLOY / "nginx.conf").read_text()
    for found, changed in changes.items():
        assert found in text
        text = text.replace(found, changed)
    kept = "".join(
        f"    {name}_temp_path {folder}/temp;\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(text.replace("http {\n", f"http {{\n{kept}", 1))
    return path


@contextmanager
def _nginx(folder: Path, conf: Path) -> Iterator[None]:
    command = ["nginx", "-p", str(folder), "-c", str(conf), "-e", str(folder / "error.log")]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _answering(url: str, trust: ssl.SSLContext) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            httpx2.get(url, verify=trust, headers={"host": "pics.test"})
            return
        except httpx2.TransportError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@needs_nginx
def test_nginx_takes_its_configuration(tmp_path: Path, certificate: Path) -> None:
    conf = _nginx_conf(tmp_path, certificate, 1, _free_port())
    done = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(conf), "-e", str(tmp_path / "error.log")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr.replace('the "user" directive', "")


def _large(photo: bytes) -> bytes:
    """The photograph as PNG, larger than what nginx keeps in memory."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        image.save(out, "PNG")
    assert len(out.getvalue()) > 100_000
    return out.getvalue()


@needs_nginx
def test_service_behind_nginx_answers_counts_true_addresses_and_writes_no_picture(
    start_server: StartServer, tmp_path: Path, certificate: Path, photo: bytes
) -> None:
    keys = tmp_path / "keys.toml"
    key = KeyFile(keys).add("a", [Scope.ANALYZE, Scope.ADMIN]).text
    options = ["--keys", str(keys), "--workers", "1", "--set", "proxy_headers=true"]
    options += ["--set", "allowed_hosts=pics.test", "--set", "rate_per_address=12"]
    server = start_server(*options)
    port = _free_port()
    folder = tmp_path / "nginx"
    folder.mkdir()
    trust = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    trust.check_hostname = False
    conf = _nginx_conf(folder, certificate, server.port, port)
    base = f"https://127.0.0.1:{port}"
    headers = {"host": "pics.test", "x-api-key": key}
    with _nginx(folder, conf), httpx2.Client(verify=trust, timeout=60) as client:
        _answering(f"{base}/healthz", trust)
        sent = client.post(
            f"{base}/v1/analyze?flip=true",
            files=[("image", ("a.png", _large(photo), "image/png"))],
            headers=headers,
        )
        closed = client.get(f"{base}/metrics", headers=headers)
        large = client.post(f"{base}/v1/analyze", content=bytes(27_000_000), headers=headers)
        other = client.get(f"{base}/healthz", headers={"host": "evil.example"})
        forged = [
            client.get(
                f"{base}/v1/models", headers={**headers, "x-forwarded-for": f"203.0.113.{i}"}
            ).status_code
            for i in range(16)
        ]

    assert sent.status_code == 200
    assert len(sent.json()["analyses"]) == 1
    assert sent.headers["strict-transport-security"].startswith("max-age=")
    assert closed.status_code == 404
    assert large.status_code == 413
    assert other.status_code == 400
    assert forged == [200] * 11 + [429] * 5
    assert "buffered to a temporary file" not in (folder / "error.log").read_text()
    assert [path for path in (folder / "temp").rglob("*") if path.is_file()] == []
    log = (folder / "access.log").read_text()
    assert "flip" not in log
    assert "127.0.0.1" not in log
    assert sent.headers["x-request-id"] in log
