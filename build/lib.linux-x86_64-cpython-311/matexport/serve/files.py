"""Files over HTTP, with ranges: a family's, whose digests were checked, and those of the page.

What is served is held open: a request names a file, and no path is ever made of that name. Of a family it is what was
digested, whoever replaces the folder meanwhile (`family.integrity.Contents`). An entity tag is the sha256, so a client
that has a part of a file gets more of the same file or is told that it is another. Ranges, conditions and their order
are those of RFC 9110, sections 13 and 14; several ranges in one request are answered with the whole file, as it allows.
"""

from __future__ import annotations

import hashlib
import mimetypes
import mmap
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from matexport.errors import FamilyError, Problem
from matexport.family.integrity import check_files
from matexport.family.manifest import MANIFEST, MAX_MANIFEST_BYTES, Family
from matexport.family.weights_file import Buffer
from matexport.io.files import open_file
from matexport.serve.refusal import RefusedError

#: Bytes that are written to a client at a time.
CHUNK_BYTES = 256 << 10

#: A name that says the digest of what it names stands for the same bytes for ever; all else is asked for again.
IMMUTABLE, ASK_AGAIN = "public, max-age=31536000, immutable", "no-cache"

_MEDIA = {".json": "application/json", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))", re.ASCII)
#: What a bundler calls a file: its name, and a hash of its content.
_HASHED = re.compile(r".+-[A-Za-z0-9_-]{8,}\.[a-z]+")


class Served(NamedTuple):
    """A file that is served; a `compressed` one lies there with gzip, and is sent as it lies."""

    content: Buffer
    sha256: str
    media: str
    compressed: bool = False


def open_family(family: Family) -> dict[str, Served]:
    """The manifest, and every file that it lists, by name.

    Raises:
        FamilyError: a file is not the one that was exported, or the manifest is another one than was read.
    """
    contents = check_files(family, family.facts.files)
    opened = open_file(family.path / MANIFEST, MAX_MANIFEST_BYTES)
    if isinstance(opened, Problem):
        raise FamilyError(f"{family.path}: {opened}")
    with opened as file:
        manifest = file.read()
    if hashlib.sha256(manifest).hexdigest() != family.digest:
        raise FamilyError(f"{family.path}: {MANIFEST} was replaced while it was opened; start again")
    files = {
        name: Served(contents.read(name), facts.sha256, _find_media(name)) for name, facts in family.facts.files.items()
    }
    return {MANIFEST: Served(manifest, family.digest, _find_media(MANIFEST)), **files}


def open_page(folder: Path) -> dict[str, Served]:
    """The files of a built page, by their paths below `folder`; none where it was not built."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                size = path.stat().st_size
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            name = path.relative_to(folder).as_posix().removesuffix(".gz")
            digest = hashlib.sha256(content).hexdigest()
            found[name] = Served(content, digest, _find_media(name), path.suffix == ".gz")
    return found if "index.html" in found else {}


def answer_file(request: Request, files: Mapping[str, Served], name: str) -> Response:
    """One of the files, or the part of it that is asked for.

    A request may say in ``?sha256=`` which file it means. The answer may then be kept for ever.

    Raises:
        RefusedError: 404 there is no such file, or it is not the one with that digest.
    """
    served = files.get(name)
    meant = request.query_params.get("sha256")
    if served is None:
        raise RefusedError(404, f"there is no file {name[:100]!r} here", code="no_such_file")
    if meant is not None and meant != served.sha256:
        raise RefusedError(404, f"{name} has another sha256 than {meant[:64]!r}: read {MANIFEST} again", code="changed")
    tag = f'"{served.sha256}"'
    fixed = meant is not None or _HASHED.fullmatch(name)
    encoded = {"Content-Encoding": "gzip"} if served.compressed else {}
    headers = {**encoded, "ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": IMMUTABLE if fixed else ASK_AGAIN}
    known = request.headers.get("if-none-match", "")
    if known.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in known.split(",")):
        return Response(status_code=304, headers=headers)
    size = len(served.content)
    part = None if request.headers.get("if-range", tag) != tag else find_range(request.headers.get("range"), size)
    start, end = part if part is not None else (0, size)
    if part is not None and start >= end:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 200 if part is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=served.media)
    return StreamingResponse(_read_chunks(served.content, start, end), status, headers, served.media)


def find_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one behind the last that a ``Range`` asks for of `size` bytes; (0, 0) for none of them.

    None where the whole file is to be sent: there is no such header, or it is not one range of bytes.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return (max(0, size - int(suffix)), size) if int(suffix) and size else (0, 0)
    if last is not None and int(last) < int(first):
        return None
    end = size if last is None else min(int(last) + 1, size)
    return (int(first), end) if int(first) < size else (0, 0)


async def _read_chunks(content: Buffer, start: int, end: int) -> AsyncIterator[bytes]:
    for place in range(start, end, CHUNK_BYTES):
        yield content[place : min(place + CHUNK_BYTES, end)]


def _find_media(name: str) -> str:
    known = _MEDIA.get(Path(name).suffix)
    return known or mimetypes.guess_type(name)[0] or "application/octet-stream"
