"""
TOML: files by name or path, plain values as text, and what is wrong with a table that is refused.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from agelens.errors import ArgumentError

Checked = TypeVar("Checked")

# --- reading --------------------------------------------------------------------------------------

_LARGEST: Final = 1_000_000


@dataclass(frozen=True)
class TomlFolder:
    """The TOML files of one kind that come with AgeLens, found by name beside the user's own.

    Attributes:
        package: Package that holds them, as "agelens.gate".
        folder: Its folder of them.
        noun: What one of them is called in messages.
    """

    package: str
    folder: str
    noun: str

    def names(self) -> tuple[str, ...]:
        """Names of those that come with AgeLens, without ``.toml``."""
        there = (resources.files(self.package) / self.folder).iterdir()
        ends = ".toml"
        return tuple(sorted(e.name.removesuffix(ends) for e in there if e.name.endswith(ends)))

    def read(self, source: str | Path) -> tuple[str, str]:
        """What to call a file in messages, and its text.

        Args:
            source: A name of ``names``, or the path of a file.

        Raises:
            ArgumentError: There is no such file, or it is no text of a sensible size.
        """
        if str(source) in self.names():
            shipped = resources.files(self.package) / self.folder / f"{source}.toml"
            return f"{source}.toml", shipped.read_text(encoding="utf-8")
        instead = f" or one of {', '.join(self.names())}"
        return str(Path(source).expanduser()), toml_file_text(source, self.noun, instead=instead)


def toml_file_text(path: str | Path, noun: str, *, instead: str = "") -> str:
    """The text of a TOML file.

    Args:
        path: Where it is; "~" is one's home.
        noun: What it is called in messages.
        instead: What else could be given, for the message where there is no such file.

    Raises:
        ArgumentError: There is no such file, or it is no text of a sensible size.
    """
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _LARGEST:
            raise ArgumentError(f"{file}: no {noun}: it is larger than {_LARGEST:,} bytes")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArgumentError(
            f"{path}: no such {noun}; give the path of a TOML file{instead}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: cannot be read as a {noun}: {error}") from error


# --- explaining -----------------------------------------------------------------------------------

_EXPECTED: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dataclass_type": "a table",
}


def parsed_toml(text: str, where: str) -> dict[str, Any]:
    """The table that a text holds.

    Raises:
        ArgumentError: It is not TOML; the message begins with ``where``.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError(f"{where}: not valid TOML: {error}") from error


def checked_table(model: type[Checked], table: Mapping[str, Any], where: str) -> Checked:
    """A table as the object that it describes, strict about types.

    Args:
        model: A pydantic model, or a dataclass whose ``__pydantic_config__`` forbids extra keys.
        table: As TOML gives it.
        where: What error messages begin with, as the file's name.

    Raises:
        ArgumentError: A key is unknown or missing, or a value is wrong; a line each.
    """
    # JSON mode takes TOML's arrays for tuples.
    text = json.dumps(table, default=str)
    try:
        return TypeAdapter(model).validate_json(text, strict=True)
    except ValidationError as error:
        raise ArgumentError(table_faults(error, table, model, where)) from error


def table_faults(
    error: ValidationError, table: Mapping[str, Any], model: type[Any], where: str
) -> str:
    """What is wrong with which keys of a table, a line each.

    Args:
        error: What pydantic says.
        table: What was checked, as TOML gives it.
        model: What it was checked against; unknown keys are compared with its own.
        where: What the lines start with, as the file's name.
    """
    return "\n".join(f"{where}: {_explain_one(fault, table, model)}" for fault in error.errors())


def _explain_one(error: ErrorDetails, table: Mapping[str, Any], model: type[Any]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    found = _show(_value_at(table, path))
    kind = error["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key{_suggest(path, model)}"
    if kind == "missing":
        return f"{key}: missing"
    if kind in _EXPECTED:
        return f"{key}: expected {_EXPECTED[kind]}, found {found}"
    if kind == "literal_error":
        return f"{key}: expected one of {error['ctx']['expected']}, found {found}"
    if kind == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, found {found}"


def _value_at(table: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(table, Mapping):
            table = table.get(part)
        elif isinstance(table, list) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
    return table


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a table"
    return f"{value!r} ({type(value).__name__})"


def _suggest(path: Sequence[str], model: type[Any]) -> str:
    part: Any = model
    for name in path[:-1]:
        part = _part_of(part, name)
    known = _keys_of(part)
    close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join([*path[:-1], close[0]])}?"
    return f"; there are {', '.join(sorted(known))}" if known else ""


def _keys_of(part: Any) -> list[str]:
    if is_dataclass(part):
        return [field.name for field in fields(part)]
    if _is_table_type(part):
        return [field.alias or name for name, field in part.model_fields.items()]
    return []


def _part_of(part: Any, name: str) -> Any:
    """The table that a key of another holds, or that a list of tables is made of."""
    if name.isdigit():
        return part
    if is_dataclass(part) and isinstance(part, type):
        inner = get_type_hints(part).get(name)
    elif _is_table_type(part) and name in part.model_fields:
        inner = part.model_fields[name].annotation
    else:  # a name of the user's own, in a table of such tables
        return part
    return next((kind for kind in _types_in(inner) if _is_table_type(kind)), None)


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _types_in(argument)


def _is_table_type(kind: Any) -> bool:
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel))


# --- writing --------------------------------------------------------------------------------------


def toml_text(table: Mapping[str, Any]) -> str:
    """Write plain values as TOML.

    Args:
        table: Text, numbers, booleans, days, moments, lists of these, dicts, and lists of dicts;
            None is left out.

    Returns:
        TOML that ``tomllib`` reads back into equal values.

    Raises:
        ArgumentError: A value is of another type.
    """
    return "\n".join(_table_lines(table, ())).strip() + "\n"


_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    values = {k: v for k, v in table.items() if v is not None and not _is_table(v)}
    lines = [f"{_key(key)} = {_value(value, (*path, key))}" for key, value in values.items()]
    for key, value in table.items():
        inner = (*path, key)
        title = ".".join(_key(part) for part in inner)
        if isinstance(value, Mapping):
            lines += ["", f"[{title}]", *_table_lines(value, inner)]
        elif _is_table(value):
            for row in value:
                lines += ["", f"[[{title}]]", *_table_lines(row, inner)]
    return lines


def _is_table(value: Any) -> bool:
    rows = isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value)
    return isinstance(value, Mapping) or bool(rows)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any, path: tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else _special(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(v, path) for v in value)}]"
    raise ArgumentError(f"{'.'.join(path)}: cannot write {type(value).__name__} as TOML")


def _text(value: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _special(value: float) -> str:
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
