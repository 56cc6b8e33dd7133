"""
What the service may be told: environment, file and command line become one typed object.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from agelens.errors import ArgumentError

PREFIX: Final = "AGELENS_"
MIB: Final = 1024 * 1024
MOST_IN_A_LIST: Final = 4096
"""Pictures or frames that a request may list, whatever the settings say."""
_OTHERS_VARIABLES: Final = frozenset(
    {"AGELENS_HOME", "AGELENS_AUDIT_KEY", "AGELENS_API_KEY", "AGELENS_MQTT_PASSWORD"}
)
"""Variables of the same prefix that other parts read."""
# Kubernetes gives every container the addresses of services; one may be called agelens.
_SERVICE_LINK: Final = re.compile(r"AGELENS_(SERVICE_.*|PORT_\d+_.*)")


def _listed(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Count = Annotated[int, Field(ge=1)]
Listed = Annotated[int, Field(ge=1, le=MOST_IN_A_LIST)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Location = Annotated[Path, AfterValidator(_absolute)]


class ServerSettings(BaseSettings):
    """How ``agelens serve`` works.

    A value comes from the command line, else from the variable ``AGELENS_`` and its name in
    capitals, else from the file given with ``--config``, else it is the one here. Lists are
    separated by commas in variables. Times are in seconds, sizes in bytes unless the name says so.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    workers: Count | None = Field(
        default=None, description="Inference processes; by default one a core."
    )
    model: str = Field(
        default="default", description="Model that answers unless a request names another."
    )
    models: Names = Field(default=(), description="Further models that requests may name.")
    detector: str = Field(default="default", description="default, none, or insightface:DIR.")
    accept_licence: bool = Field(
        default=False, description="Use models licensed for research only."
    )

    keys: Location | None = Field(default=None, description="Key file; made by `agelens keys`.")
    oidc_issuer: str | None = Field(
        default=None, description="Issuer of the bearer tokens to accept."
    )
    oidc_audience: str | None = Field(
        default=None, description="Audience that those tokens must name."
    )
    oidc_jwks: str | None = Field(
        default=None, description="Their keys: a file or an https address."
    )
    oidc_scope_claim: str = Field(default="scope", description="Claim that holds the scopes.")
    allowed_hosts: Names = Field(
        default=(), description="Host names to answer to; default: its own; * for any, with keys."
    )
    cors_origins: Names = Field(
        default=(), description="Origins of pages elsewhere that may call it."
    )
    rate_per_minute: Count = Field(
        default=600, description="Pictures and other requests a minute for each key."
    )
    rate_per_address: Count = Field(
        default=1200, description="Requests a minute for each address, with keys."
    )
    proxy_headers: bool = Field(default=False, description="Believe X-Forwarded-For and -Proto.")
    trusted_proxies: Names = Field(
        default=("127.0.0.1", "::1"), description="From these addresses only."
    )

    max_body_bytes: Count = Field(default=25 * MIB, description="Largest body of a request.")
    max_bodies_bytes: Count = Field(
        default=256 * MIB,
        description="All bodies at a time; beyond it requests are refused with 503.",
    )
    max_image_bytes: Count = Field(default=20 * MIB, description="Largest encoded picture.")
    max_pixels: Count = Field(
        default=50_000_000, description="Largest picture to decode, in pixels."
    )
    max_images: Listed = Field(default=32, description="Pictures of one request.")
    max_frames: Listed = Field(default=300, description="Frames of one gate request.")
    max_clip_seconds: Seconds = Field(default=30.0, description="Length of a clip.")
    max_faces: Count = Field(default=200, description="Faces of one picture.")
    max_header_bytes: int = Field(default=16_384, ge=1024, description="Head of a request.")
    header_timeout_s: Seconds = Field(
        default=10.0, description="For the head of a request to arrive."
    )
    body_timeout_s: Seconds = Field(
        default=20.0, description="For the body of a request to arrive."
    )
    keep_alive_s: Seconds = Field(
        default=75.0, description="Longest pause on a connection; longer than a proxy's."
    )
    max_connections: Count = Field(default=1000, description="Connections at a time.")
    connections_per_address: Count = Field(
        default=200,
        description="Connections of one address at a time; proxies and this computer excepted.",
    )
    max_streams: Count = Field(default=64, description="Open WebSocket streams at a time.")
    streams_per_key: Count = Field(default=8, description="Open streams of one key.")
    stream_frame_bytes: Count = Field(default=4 * MIB, description="Largest frame of a stream.")
    stream_idle_s: Seconds = Field(default=30.0, description="Longest pause between two frames.")
    stream_max_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = Field(
        default=3600.0, description="Longest stream."
    )

    queue: Count = Field(default=64, description="Pictures waiting for a worker at most.")
    batch: Count = Field(default=16, description="Pictures that a worker takes at a time at most.")
    deadline_s: Seconds = Field(
        default=10.0,
        description="Longest time to an answer; also for fetching the pictures of a request.",
    )
    grace_s: Seconds = Field(default=10.0, description="Longest time from SIGTERM to the end.")
    memory_limit_mb: Annotated[int, Field(ge=256)] = Field(
        default=2048, description="Memory that one worker may take, in MB."
    )

    fetch_urls: bool = Field(
        default=False, description="Fetch pictures from addresses in requests."
    )
    fetch_hosts: Names = Field(
        default=(), description="Hosts to fetch from: HOST, *.SUFFIX, HOST:PORT."
    )
    fetch_allow_private: Names = Field(
        default=(), description="Exact hosts to fetch from though they lie in a private network."
    )
    policies: Location | None = Field(
        default=None, description="Folder of the gates' policies NAME.toml."
    )
    store: str | None = Field(
        default=None, description="Visits to show at /visitors: a SQLite file or a PostgreSQL URL."
    )
    timezone: str = Field(
        default="UTC", description="Time zone of sites that the store knows none of."
    )
    minimum: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Fewest visitors of a number that is shown."
    )
    pages: bool = Field(default=True, description="Serve the pages for people.")
    docs: bool = Field(
        default=True, description="Serve /openapi.json, and /docs where pages are served."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe lines to log."
    )

    @classmethod
    def load(cls, config: Path | None = None, **overrides: Any) -> ServerSettings:
        """Settings from a file, the environment and the command line; the last wins.

        Args:
            config: TOML file with settings at its top level.
            **overrides: Settings by name; None counts as not given.

        Raises:
            ArgumentError: The file cannot be read, a key is unknown or a value is wrong; a line
                each, with where it stands.
        """
        table = {} if config is None else _read(config)
        given = {name: value for name, value in overrides.items() if value is not None}
        _check_environment(cls)

        class Configured(ServerSettings):
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, _Table(settings_cls, table)

        try:
            loaded = Configured(**given)
        except ValidationError as error:
            faults = (_explain(fault, given, table, config) for fault in error.errors())
            raise ArgumentError("\n".join(faults)) from error
        return cls.model_construct(**loaded.model_dump())

    @model_validator(mode="after")
    def _starts_closed(self) -> ServerSettings:
        if not self.is_open and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached by others, and there are neither keys nor an "
                "oidc_issuer; make a key with `agelens keys add NAME --file keys.toml` and pass "
                "--keys keys.toml, or listen on 127.0.0.1"
            )
        if self.oidc_issuer is not None and not (self.oidc_audience and self.oidc_jwks):
            raise ValueError(
                "oidc_issuer needs oidc_audience (or tokens for other services would be taken) "
                "and oidc_jwks (a file or an https address)"
            )
        if "*" in self.trusted_proxies:
            raise ValueError(
                "trusted_proxies may not be *: anybody could give a false address and escape the "
                "limits by address; name the proxies' addresses or networks"
            )
        if self.fetch_urls and not (self.fetch_hosts or self.fetch_allow_private):
            raise ValueError("fetch_urls needs fetch_hosts: the host names to fetch from")
        if self.max_image_bytes > self.max_body_bytes:
            raise ValueError(
                f"max_image_bytes {self.max_image_bytes} is over max_body_bytes "
                f"{self.max_body_bytes}; no such picture could arrive"
            )
        if self.max_body_bytes > self.max_bodies_bytes:
            raise ValueError(
                f"max_body_bytes {self.max_body_bytes} is over max_bodies_bytes "
                f"{self.max_bodies_bytes}; no such body could arrive"
            )
        return self

    @property
    def is_open(self) -> bool:
        """True when callers prove who they are, so that others than this computer may ask."""
        return self.keys is not None or self.oidc_issuer is not None


class _Table(PydanticBaseSettingsSource):
    """The values of a TOML file."""

    def __init__(self, settings_cls: type[BaseSettings], table: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._table = dict(table)

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._table.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._table


def is_loopback(host: str) -> bool:
    """True when only this computer can reach the address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise ArgumentError(
            f"{config}: cannot be read ({error.strerror}); check --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{config}: not valid TOML: {error}") from error


def _check_environment(cls: type[ServerSettings]) -> None:
    known = {PREFIX + name.upper() for name in cls.model_fields}
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known | _OTHERS_VARIABLES:
            continue
        if _SERVICE_LINK.fullmatch(upper) is None:
            raise ArgumentError(f"environment: {name}: unknown setting{_suggest(upper, known)}")


def _explain(
    fault: ErrorDetails,
    given: Mapping[str, Any],
    table: Mapping[str, Any],
    config: Path | None,
) -> str:
    key = str(fault["loc"][0]) if fault["loc"] else ""
    message = fault["msg"].removeprefix("Value error, ")
    if not key:
        return message
    variable = PREFIX + key.upper()
    if key in given:
        where, found = f"--{key.replace('_', '-')}", given[key]
    elif key in table and variable not in os.environ:
        where, found = f"{config}: {key}", table[key]
    else:
        where, found = variable, os.environ.get(variable)
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown setting{_suggest(key, ServerSettings.model_fields)}"
    return f"{where}: {message[0].lower()}{message[1:]}, found {found!r}"


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
