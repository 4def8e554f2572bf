"""The compiled extension: where it is, what it runs on here, and the records that cross its border.

It is a plain shared library, built with the wheel where there is a compiler (pyproject.toml), from the sources in
native/. Its functions take addresses and numbers; each address goes with how many numbers lie there.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from matexport.errors import RequestError

#: The version of the records below, which the library must have, too.
VERSION = 1

#: What the library is called in its folder, with the interpreter's own suffix.
STEM = "_encoder"

#: Says which instruction set is taken, of those that `list_kernels` names: tests and benchmarks compare them.
KERNELS_VARIABLE = "MATEXPORT_KERNELS"

_MESSAGE_BYTES = 256


class Span(ctypes.Structure):
    """An address, and how many numbers lie there."""

    _fields_ = [("data", c_void_p), ("count", c_int64)]


class StepRecord(ctypes.Structure):
    """A step, as native/program.hpp has it."""

    _fields_ = [
        ("op", c_int32),
        ("out", c_int32),
        ("sources", c_int32 * 3),
        ("numbers", c_int32 * 6),
        ("reals", c_float * 2),
        ("arrays", Span * 4),
    ]


class TableRecord(ctypes.Structure):
    """A table of rows to look up."""

    _fields_ = [
        ("rows", Span),
        ("scales", Span),
        ("count", c_int64),
        ("index", c_int32),
        ("shift", c_int32),
        ("uncounted", c_int64),
    ]


def find_library() -> Path | None:
    """The library's file; None where it was not built."""
    folder = Path(__file__).parent
    found = (folder / f"{STEM}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in found if path.is_file()), None)


@cache
def load_library() -> ctypes.CDLL:
    """The library, with the types of its functions.

    Raises:
        RequestError: it was not built, does not load here, or is of another version of this package.
    """
    path = find_library()
    if path is None:
        raise RequestError(
            "the engine native was asked; this installation has none: no C++ compiler was there that could build it; "
            "install matexport again where there is one, or leave out --engine"
        )
    try:
        library = ctypes.CDLL(str(path))
        version = library.matexport_version()
    except (OSError, AttributeError) as error:
        raise RequestError(f"the engine native was asked; its library does not load here: {error}") from None
    if version != VERSION:
        raise RequestError(
            f"the engine native was asked; its library is of version {version}, and this is version {VERSION}: install "
            "matexport again"
        )
    library.matexport_kernels.restype = c_char_p
    library.matexport_kernels.argtypes = [c_int32]
    library.matexport_open.restype = c_void_p
    library.matexport_open.argtypes = [
        c_char_p,
        POINTER(StepRecord),
        c_int64,
        POINTER(TableRecord),
        c_int64,
        POINTER(c_int32),
        c_int64,
        c_char_p,
        c_int64,
    ]
    library.matexport_close.restype = None
    library.matexport_close.argtypes = [c_void_p]
    library.matexport_run.restype = c_int32
    library.matexport_run.argtypes = [
        c_void_p,
        c_void_p,
        c_void_p,
        c_void_p,
        c_void_p,
        c_int64,
        c_int32,
        POINTER(c_void_p),
        c_char_p,
        c_int64,
    ]
    return library


def list_kernels() -> list[str]:
    """The instruction sets that run on this processor, from the fastest on."""
    library = load_library()
    found: list[str] = []
    while (name := library.matexport_kernels(len(found))) is not None:
        found.append(name.decode())
    return found


def choose_kernels() -> str:
    """The instruction set that is taken: the fastest, or what `KERNELS_VARIABLE` says.

    Raises:
        RequestError: the variable names one that does not run here.
    """
    known = list_kernels()
    asked = os.environ.get(KERNELS_VARIABLE)
    if asked and asked not in known:
        raise RequestError(f"{KERNELS_VARIABLE} is {asked!r}; this processor runs: {', '.join(known)}")
    return asked or known[0]


def make_message() -> ctypes.Array[ctypes.c_char]:
    """Room for what the library has to say."""
    return ctypes.create_string_buffer(_MESSAGE_BYTES)


def describe_library() -> str:
    """In words, whether there is a native engine here, and the instruction sets that it runs on."""
    if find_library() is None:
        return "no native engine: no C++ compiler was there that could build it"
    try:
        return f"native engine: {', '.join(list_kernels())}"
    except RequestError as problem:
        return f"no native engine: {problem}"
