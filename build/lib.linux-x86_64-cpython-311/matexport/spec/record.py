"""What a record is, and plain data (parsed TOML or JSON) -> a record, refusing what a record does not have.

msgspec checks keys and types and names the path of what is wrong; of a misspelt key or choice it does not say what
there is to choose from, which is looked up here.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what is read from a file or named in one. As a dataclass each would take 1 ms of a cold start to define.

    `msgspec.structs.replace` changes a copy. `read_record` reads one, and refuses what it does not have.
    """


T = TypeVar("T", bound=Record)


def read_record(data: object, record: type[T], where: str, error: Callable[[str], Exception]) -> T:
    """Convert parsed TOML or JSON into a record, strictly.

    Args:
        data: what the parser returned.
        record: its type.
        where: how to call the source in a message, such as the file's path.
        error: makes the exception to raise of a message.

    Raises:
        error: a key is unknown or missing, or a value has the wrong type.
    """
    try:
        return msgspec.convert(data, record, strict=True)
    except msgspec.ValidationError as problem:
        if unknown := _find_unknown(data, record):
            name, asked, known = unknown
            meant = suggest(asked, known)
            raise error(f"{where}: unknown {name}; known here: {', '.join(known)}{meant}") from None
        raise error(f"{where}: {problem}") from None


def _find_unknown(data: object, annotation: Any, path: str = "") -> tuple[str, str, list[str]] | None:
    """The first key or choice that a record does not have: as messages name it, alone, and those that there are."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum) and isinstance(data, str):
        known = [str(choice.value) for choice in annotation]
        return None if data in known else (f"{path} {data!r}", data, known)
    if isinstance(annotation, types.UnionType):
        branches = typing.get_args(annotation)
        found = [_find_unknown(data, branch, path) for branch in branches if branch is not types.NoneType]
        return next((hit for hit in found if hit), None)
    if isinstance(annotation, type) and issubclass(annotation, Record) and isinstance(data, dict):
        hints = typing.get_type_hints(annotation)
        known = list(annotation.__struct_fields__)
        for key, value in data.items():
            here = f"{path}.{key}" if path else str(key)
            if key not in known:
                return f"key {here!r}", str(key), known
            if hit := _find_unknown(value, hints[key], here):
                return hit
        return None
    arguments = typing.get_args(annotation)
    if isinstance(data, dict) and len(arguments) == 2:
        wrong = next((hit for key in data if (hit := _find_unknown(key, arguments[0], path))), None)
        if wrong:
            return wrong
        children = ((f"{path}.{key}", value) for key, value in data.items())
    elif isinstance(data, list) and arguments:
        children = ((f"{path}[{index}]", value) for index, value in enumerate(data))
    else:
        return None
    element = arguments[-1] if arguments[-1] is not Ellipsis else arguments[0]
    return next((hit for where, value in children if (hit := _find_unknown(value, element, where))), None)


def suggest(asked: str, known: Iterable[str]) -> str:
    """The end of a message: ``; did you mean 'points'?`` where a known name is close to the asked one, else nothing.

    Close is what `difflib.get_close_matches` calls so: a ratio of at least 0.6.
    """
    from difflib import get_close_matches  # only where something is wrong

    close = get_close_matches(asked, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
