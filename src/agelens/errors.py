"""
Every error AgeLens raises on purpose, in one hierarchy.

    AgeLensError
    ├── ImageError              (ValueError)    a picture that cannot be analysed; has a ``code``
    ├── ArgumentError           (ValueError)    a value from the caller is out of range or form
    ├── ModelError              (ValueError)    a model, its card or its detector cannot be used
    │   ├── ModelNotFound       (LookupError)   no model of that name or at that path
    │   ├── ModelCorrupt                        its SHA-256 is not the one that its card states
    │   ├── CardError                           the card is incomplete or contradicts the network
    │   └── LicenceNotAccepted  (PermissionError)  research-class weights without consent
    ├── DataError               (ValueError)    a data set or table is wrong; names row and column
    ├── TrainingError           (RuntimeError)  a training run cannot start, go on or be resumed
    ├── AuditError              (ValueError)    a signed audit does not hold for what it is used on
    ├── GateError               (RuntimeError)  an age gate must not open, or its keys do not hold
    │   ├── JournalError                        a journal of decisions is not what was written
    │   └── TokenError                          a token is refused; has a ``code``
    ├── StoreError              (RuntimeError)  a store of visits cannot be opened, read or written
    ├── ServiceError            (RuntimeError)  a service refused or failed; has a ``code``
    └── MissingExtra            (ImportError)   an optional dependency is missing; names the extra
"""

from __future__ import annotations

from typing import Final

IMAGE_ERROR_CODES: Final = (
    "not_found",
    "is_directory",
    "not_readable",
    "empty",
    "not_an_image",
    "unsupported_format",
    "truncated",
    "corrupt",
    "too_many_bytes",
    "too_many_pixels",
    "bad_array",
    "url_disabled",
    "fetch_failed",
    "internal",
)
"""What ``ImageError.code`` and the ``code`` of an error row can be."""


TOKEN_ERROR_CODES: Final = (
    "malformed",
    "unknown_key",
    "altered",
    "expired",
    "not_yet_valid",
    "wrong_issuer",
    "wrong_audience",
    "wrong_nonce",
    "wrong_claims",
    "too_young",
    "too_old",
    "replayed",
)
"""What ``TokenError.code`` can be."""


class AgeLensError(Exception):
    """Base of every error that AgeLens raises on purpose."""


class ImageError(AgeLensError, ValueError):
    """A picture that cannot be analysed.

    Attributes:
        code: One of ``IMAGE_ERROR_CODES``.
        message: One sentence: what was found, what is expected, what to do.
        where: The path or name of the picture, or None.
    """

    def __init__(self, code: str, message: str, *, where: str | None = None) -> None:
        if code not in IMAGE_ERROR_CODES:
            raise AssertionError(f"unknown image error code {code!r}")
        self.code = code
        self.message = message
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_image_error, (self.code, self.message, self.where))


def _rebuild_image_error(code: str, message: str, where: str | None) -> ImageError:
    return ImageError(code, message, where=where)


class ArgumentError(AgeLensError, ValueError):
    """A value the caller passed is out of range or of the wrong form."""


class ModelError(AgeLensError, ValueError):
    """A model, its card or its detector cannot be used."""


class ModelNotFound(ModelError, LookupError):
    """No model of that name or at that path."""


class ModelCorrupt(ModelError):
    """The file's SHA-256 is not the one its card states."""


class CardError(ModelError):
    """The card is missing a field, or contradicts the network it describes."""


class LicenceNotAccepted(ModelError, PermissionError):
    """Research-class weights were asked for without accepting their licence."""


class DataError(AgeLensError, ValueError):
    """A data set, manifest or table is wrong; the message names row and column."""


class TrainingError(AgeLensError, RuntimeError):
    """A training run cannot start, go on or be resumed."""


class AuditError(AgeLensError, ValueError):
    """A signed audit is not whole, not trusted, out of date, or about something else."""


class GateError(AgeLensError, RuntimeError):
    """An age gate must not open: its audit, its model, its keys or its journal do not hold."""


class JournalError(GateError):
    """A journal of decisions was changed, cut, or is in use by another gate."""


class TokenError(GateError):
    """A token is refused.

    Attributes:
        code: One of ``TOKEN_ERROR_CODES``.
        message: One sentence: what was found, what is expected.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in TOKEN_ERROR_CODES:
            raise AssertionError(f"unknown token error code {code!r}")
        self.code = code
        self.message = message
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (TokenError, (self.code, self.message))


class StoreError(AgeLensError, RuntimeError):
    """A store of visits cannot be opened, read or written, or does not hold what it should."""


class ServiceError(AgeLensError, RuntimeError):
    """A service did not give what was asked for.

    Attributes:
        code: Code of the problem, as in the reference of the HTTP API; "unreachable" when there is
            no answer, "bad_answer" when it is none of AgeLens.
        message: One sentence: what was found, what is expected, what to do.
        status: HTTP status, or None without an answer.
        request_id: The request's id in the service's log, or None.
        retry_after_s: Seconds after which the service asks to try again, or None.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        super().__init__(f"{code}: {message}")

    def __reduce__(self) -> tuple[object, ...]:
        members = (self.code, self.message, self.status, self.request_id, self.retry_after_s)
        return (_rebuild_service_error, members)


def _rebuild_service_error(
    code: str,
    message: str,
    status: int | None,
    request_id: str | None,
    retry_after_s: float | None,
) -> ServiceError:
    return ServiceError(
        code, message, status=status, request_id=request_id, retry_after_s=retry_after_s
    )


class MissingExtra(AgeLensError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        extra: The extra to install, as in ``pip install 'agelens[extra]'``.
    """

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra = extra
        self.purpose = purpose
        super().__init__(f"{purpose} needs the {extra!r} extra: pip install 'agelens[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return (MissingExtra, (self.extra, self.purpose))
