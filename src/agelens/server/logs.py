"""
The log: a JSON object a line on standard error, with the request's id and without its content.

What is logged is named here and nowhere else: the caller by the id of the key or a pseudonym,
method, route template, status, problem code, durations, sizes and events of the server. Never a
body, a file name, a query, an address, a key or a result. What libraries say is passed on without
their words: who said it, and where.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# What these say holds addresses of clients and paths with their queries.
_UNSAFE_LOGGERS: Final = ("uvicorn.access", "uvicorn.asgi", "websockets")
_OWN_HANDLERS: Final = ("uvicorn", "uvicorn.error", "asyncio", "python_multipart")
_SERVER_LOGGERS: Final = ("uvicorn", "uvicorn.error", "python_multipart")


def open_log(level: str) -> FilteringBoundLogger:
    """A logger that writes JSON lines to standard error.

    Args:
        level: debug, info, warning or error.
    """
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        cache_logger_on_first_use=True,
    )
    return log


def where_it_broke(error: BaseException) -> dict[str, Any]:
    """Type and place of an error; not its message, which may hold what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "error": type(error).__name__,
        "at": [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames],
    }


def adopt_server(log: FilteringBoundLogger) -> None:
    """Pass on what the web server would print; what else the process logs is left as it is."""
    for name in _UNSAFE_LOGGERS:
        logging.getLogger(name).disabled = True
    for name in _SERVER_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Adopted(log)], False
        logger.setLevel(logging.WARNING)


def adopt_libraries(log: FilteringBoundLogger) -> None:
    """Pass on what libraries and Python itself would print, each as a line of the log."""
    for name in _UNSAFE_LOGGERS:
        logging.getLogger(name).disabled = True
    root = logging.getLogger()
    root.handlers = [_Adopted(log)]
    root.setLevel(logging.WARNING)
    for name in _OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a record that cannot be formatted would be printed

    def unraisable(found: UnraisableHookArgs) -> None:
        _told(log, "unraisable", found.exc_value, found.exc_traceback)

    def ended(found: threading.ExceptHookArgs) -> None:
        _told(log, "thread", found.exc_value, found.exc_traceback)

    sys.unraisablehook = unraisable
    threading.excepthook = ended


def _told(
    log: FilteringBoundLogger,
    where: str,
    error: BaseException | None,
    place: TracebackType | None,
) -> None:
    facts = {} if error is None else where_it_broke(error.with_traceback(place))
    log.error("library", logger=where, **facts)


class _Adopted(logging.Handler):
    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        facts: EventDict = {}
        if record.exc_info and record.exc_info[1] is not None:
            facts = dict(where_it_broke(record.exc_info[1]))
        # Not even the format: some libraries put into it what a client sent.
        place = f"{record.filename}:{record.lineno} {record.funcName}"
        self._log.log(record.levelno, "library", logger=record.name, place=place, **facts)
