"""
The log: a JSON object a line on standard error, with the request's id and without its content.

What is logged is named here and nowhere else: method, route template, status, problem code,
durations, sizes and events of the server. Never a body, a file name, a query, an address, a key
or a result.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any, Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# What these say holds addresses of clients and paths with their queries.
_UNSAFE_LOGGERS: Final = ("uvicorn.access", "uvicorn.asgi", "websockets")


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


def adopt_uvicorn(log: FilteringBoundLogger) -> None:
    """Pass on what uvicorn says of itself; drop what it says of requests."""
    for name in _UNSAFE_LOGGERS:
        logging.getLogger(name).disabled = True
    logger = logging.getLogger("uvicorn.error")
    logger.handlers = [_Adopted(log)]
    logger.propagate = False
    logger.setLevel(logging.WARNING)


class _Adopted(logging.Handler):
    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        facts: EventDict = {}
        if record.exc_info and record.exc_info[1] is not None:
            facts = dict(where_it_broke(record.exc_info[1]))
        # The format only: its arguments may be addresses or paths.
        self._log.log(record.levelno, "server", message=str(record.msg).strip(), **facts)
