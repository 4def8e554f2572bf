"""What a parent's own model card says of its licence, in the front matter that a hub reads. Text alone is read here."""

from __future__ import annotations

import re
from pathlib import Path

CARD = "README.md"
#: Characters of a card that are read; front matters have a hundredth of it.
_MAX_CHARACTERS = 1 << 20
#: An SPDX identifier or a hub's name for a licence, such as ``apache-2.0``; alone, or the first of a list.
_LICENSE = re.compile(
    r"""^license:[ \t]*(?:\n[ \t]*-[ \t]*|\[[ \t]*)?["']?([A-Za-z0-9][\w.+-]{0,63})\b""", re.MULTILINE
)


def read_license(folder: Path) -> str | None:
    """The licence that the card in a parent's folder names; None where there is no card, or it names none."""
    try:
        with (folder / CARD).open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_CHARACTERS)
    except OSError:
        return None
    parts = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip("\ufeff \n"):
        return None
    found = _LICENSE.search(parts[1])
    return found[1] if found else None
