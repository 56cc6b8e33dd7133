"""
Connections to SQLite and PostgreSQL: safe settings, one writing process, tables brought up to date.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import quote

from agelens.errors import MissingExtra, StoreError

if TYPE_CHECKING:
    import sqlalchemy as sa

Made = TypeVar("Made")

SAFE_SQLITE: Final = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""First release without the WAL-reset bug, and the older branches that it was mended in."""

_BUSY_SECONDS: Final = 30.0
_FULL_CODES: Final = ("53100", "53200")
_PASSING_CODES: Final = ("57P01", "57P02", "57P03", "40001", "40P01")
_FULL_WORDS: Final = ("database or disk is full", "no space left on device")
_DAMAGED_WORDS: Final = ("malformed", "not a database", "file is encrypted")


def import_sqlalchemy() -> Any:
    """The sqlalchemy module, with alembic beside it.

    Raises:
        MissingExtra: One of them is not installed.
    """
    try:
        import alembic  # noqa: F401
        import sqlalchemy
    except ImportError as error:
        raise MissingExtra("visitors", "storing visits") from error
    return sqlalchemy


def sqlite_driver() -> ModuleType:
    """The SQLite to use: that of pysqlite3, which is newer than most systems' own."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return importlib.import_module("sqlite3")


def has_safe_wal(version: str) -> bool:
    """Whether this SQLite is free of the WAL-reset bug (3.7.0 to 3.51.2).

    See https://sqlite.org/wal.html#the_wal_reset_bug: two connections that write and checkpoint at
    once can damage the database.
    """
    found = tuple(int(part) for part in version.split("."))
    newest, *mended = SAFE_SQLITE
    return found >= newest or any(found[:2] == one[:2] and found >= one for one in mended)


# --- SQLite ---------------------------------------------------------------------------------------


def sqlite_engine(path: Path, *, read_only: bool) -> sa.Engine:
    """An engine on one file; a writing one has a single connection.

    Every transaction of a writing engine holds SQLite's write lock from its beginning. A commit is
    on disk when it returns (synchronous FULL), and what is deleted is overwritten. Journal is the
    WAL, or the older rollback journal where this SQLite's WAL has the WAL-reset bug.
    """
    alchemy = import_sqlalchemy()
    driver = sqlite_driver()
    mode = "ro" if read_only else "rwc"
    uri = f"file:{quote(os.fspath(path.absolute()))}?mode={mode}"

    def connect() -> Any:
        found = driver.connect(
            uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        found.execute("PRAGMA foreign_keys = ON")
        if read_only:
            return found
        journal = "WAL" if has_safe_wal(driver.sqlite_version) else "DELETE"
        try:
            got = found.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0]
            found.execute("PRAGMA synchronous = FULL")
            found.execute("PRAGMA secure_delete = ON")
        except driver.DatabaseError:
            found.close()
            raise
        if got.upper() != journal:
            found.close()
            raise StoreError(
                f"{path}: the journal is {got}, and {journal} cannot be set: another program has "
                "the file open, or its folder is a network share; close it, or use another folder"
            )
        return found

    engine: sa.Engine = alchemy.create_engine(
        "sqlite+pysqlite://",
        module=driver,
        creator=connect,
        poolclass=alchemy.pool.QueuePool,
        pool_size=4 if read_only else 1,
        max_overflow=0,
        pool_timeout=_BUSY_SECONDS,
    )
    # The driver's own transactions begin too late, and leave out changes of tables.
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
    alchemy.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


class WriterLock:
    """Keeps a second writing process out; the lock goes with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock beside a database.

        Raises:
            StoreError: Another process has it, or the file cannot be made.
        """
        self.path = path.with_name(f"{path.name}.lock")
        try:
            self._file: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be made: {error.strerror}") from error
        try:
            _take(self._file)
        except OSError as error:
            self.close()
            raise StoreError(
                f"{path}: another process writes to this store; give each its own file, use "
                "PostgreSQL, or open it with read_only=True to look at it"
            ) from error

    def close(self) -> None:
        """Let another process write; safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _take(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- PostgreSQL -----------------------------------------------------------------------------------


def postgres_engine(url: str) -> sa.Engine:
    """An engine on a PostgreSQL database; connections are tried before use.

    Raises:
        MissingExtra: psycopg is not installed.
        StoreError: It is no URL of PostgreSQL.
    """
    alchemy = import_sqlalchemy()
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingExtra("postgres", "a store in PostgreSQL") from error
    try:
        made = alchemy.make_url(url)
    except alchemy.exc.ArgumentError as error:
        raise StoreError("the store's URL cannot be read; expected postgresql://…") from error
    if made.get_backend_name() != "postgresql":
        raise StoreError(
            f"a store is a SQLite file or a postgresql:// URL, got {made.get_backend_name()}://"
        )
    engine: sa.Engine = alchemy.create_engine(
        made.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10},
    )
    return engine


# --- errors ---------------------------------------------------------------------------------------


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn errors of the database into a ``StoreError`` that says what to do."""
    alchemy = import_sqlalchemy()
    try:
        yield
    except (alchemy.exc.DBAPIError, sqlite_driver().Error) as error:
        raise StoreError(f"{where}: {_explained(error)}") from error
    except alchemy.exc.SQLAlchemyError as error:
        raise StoreError(f"{where}: {_first_line(error)}") from error


def _explained(error: Exception) -> str:
    words = _first_line(getattr(error, "orig", None) or error)
    if is_full(error):
        return (
            f"the disk is full ({words}); what was acknowledged is kept, this change is not; make "
            "room and try again"
        )
    if any(word in words.lower() for word in _DAMAGED_WORDS):
        return f"the file is damaged or no store ({words}); put it back from a copy"
    if "locked" in words.lower():
        return f"another program holds the database ({words}); close it and try again"
    return words


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_full(error: Exception) -> bool:
    """Whether the disk had no room."""
    original = getattr(error, "orig", None) or error
    words = str(original).lower()
    return getattr(original, "sqlstate", None) in _FULL_CODES or any(
        word in words for word in _FULL_WORDS
    )


def is_passing(error: Exception) -> bool:
    """Whether the same may succeed later: the server restarts, or two writers met."""
    alchemy = import_sqlalchemy()
    if not isinstance(error, alchemy.exc.DBAPIError) or is_full(error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state in _PASSING_CODES or (state or "").startswith("08"):
        return True
    # A connection that was refused has no state.
    refused = isinstance(error, alchemy.exc.OperationalError) and state is None
    return refused and hasattr(error.orig, "sqlstate")


def retried(work: Callable[[], Made], seconds: float) -> Made:
    """Do something again while its error is a passing one, for so many seconds at most."""
    until = time.monotonic() + seconds
    pause = 0.05
    while True:
        try:
            return work()
        except Exception as error:
            if not is_passing(error) or time.monotonic() + pause > until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


# --- tables ---------------------------------------------------------------------------------------


def migrate(connection: sa.Connection, where: str) -> None:
    """Bring the tables to the newest form, or refuse ones that are newer still.

    Raises:
        StoreError: The tables were made by a newer AgeLens.
    """
    from alembic.runtime.environment import EnvironmentContext

    script, config = _scripts()
    found = current_revision(connection)
    _check_known(found, where)
    if found == script.get_current_head():
        return

    def upgrade(revision: Any, context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(config, script, fn=upgrade) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()


def require_current(connection: sa.Connection, where: str) -> None:
    """Refuse tables that are not of the newest form.

    Raises:
        StoreError: They are older or newer, or there are none.
    """
    script, _ = _scripts()
    found = current_revision(connection)
    _check_known(found, where)
    if found != script.get_current_head():
        raise StoreError(
            f"{where}: no store, or one of an older form ({found}); open it once for writing"
        )


def current_revision(connection: sa.Connection) -> str | None:
    """Form of the tables; None where there are none."""
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def _check_known(found: str | None, where: str) -> None:
    script, _ = _scripts()
    known = {one.revision for one in script.walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(
            f"{where}: its tables are of the form {found}, and this AgeLens knows up to "
            f"{script.get_current_head()}; install the newer AgeLens that made them"
        )


def _scripts() -> tuple[Any, Any]:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", os.fspath(folder).replace("%", "%%"))
    config.set_main_option("version_locations", os.fspath(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return ScriptDirectory.from_config(config), config


# --- rows -----------------------------------------------------------------------------------------

Conflict = Literal["add", "ignore", "replace"]

_MANY_ROWS: Final = 500


def insert_rows(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Sequence[Any]],
    *,
    conflict: Conflict | None = None,
    where: str = "",
) -> None:
    """Insert many rows at the driver's own speed.

    Args:
        connection: In a transaction.
        table: All of its columns are given, in order.
        rows: Their values.
        conflict: What becomes of a row whose key is there: its other columns are added up, the new
            row is ignored, or it replaces the old one. None: an error.
        where: SQL of a condition under which it replaces; "excluded" is the new row.
    """
    if not rows:
        return
    names = [column.name for column in table.columns]
    listed = ", ".join(names)
    ending = _on_conflict(table, conflict, where)
    if connection.dialect.name == "postgresql" and len(rows) >= _MANY_ROWS:
        _copy_rows(connection, table, listed, rows, ending)
        return
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    values = ", ".join([mark] * len(names))
    statement = f"INSERT INTO {table.name} ({listed}) VALUES ({values}){ending}"
    connection.exec_driver_sql(statement, [tuple(row) for row in rows])


def _on_conflict(table: sa.Table, conflict: Conflict | None, where: str) -> str:
    if conflict is None:
        return ""
    keys = ", ".join(column.name for column in table.primary_key.columns)
    old = f"{table.name}.{{0}} + " if conflict == "add" else ""
    changes = [
        f"{column.name} = {old.format(column.name)}excluded.{column.name}"
        for column in table.columns
        if not column.primary_key
    ]
    if conflict == "ignore" or not changes:
        return f" ON CONFLICT ({keys}) DO NOTHING"
    condition = f" WHERE {where}" if where else ""
    return f" ON CONFLICT ({keys}) DO UPDATE SET {', '.join(changes)}{condition}"


def _copy_rows(
    connection: sa.Connection,
    table: sa.Table,
    listed: str,
    rows: Sequence[Sequence[Any]],
    ending: str,
) -> None:
    """Send rows as one stream to a table of this connection, and insert them from there."""
    import psycopg
    import sqlalchemy as sa

    staged = f"staged_{table.name}"
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {staged} (LIKE {table.name}) ON COMMIT DELETE ROWS"
    )
    statement = f"COPY {staged} ({listed}) FROM STDIN"
    try:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(statement) as stream:
            for row in rows:
                stream.write_row(row)
    except psycopg.Error as error:
        raise sa.exc.DBAPIError.instance(statement, None, error, psycopg.Error) from error
    connection.exec_driver_sql(
        f"INSERT INTO {table.name} ({listed}) SELECT {listed} FROM {staged}{ending}"
    )
    connection.exec_driver_sql(f"TRUNCATE {staged}")
