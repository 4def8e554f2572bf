"""Text that we write into a file that people may edit: it stands between two marks, and the rest of the file is theirs.

The first mark holds a digest of what follows, so that words that somebody wrote between the marks are noticed, too. A
mark is a comment: of YAML in the front matter of a Markdown file, of HTML elsewhere. Knows no family.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from matexport.errors import DestinationError

#: A page is replaced whole if it has this line.
GENERATOR = "matexport report"
PAGE_MARK = f'<meta name="generator" content="{GENERATOR}">'


class MarksError(DestinationError):
    """Marks are incomplete, or somebody wrote between them."""


@dataclass(frozen=True)
class Marks:
    """How the two marks are written."""

    opening: str
    closing: str

    def wrap(self, text: str) -> str:
        """A text between its marks, without a line break at the end."""
        text = text.encode("utf-8", "replace").decode()
        kept = "what is outside of these two marks is kept"
        begin = f"{self.opening}{GENERATOR}: begin {_digest(text)}, {kept}{self.closing}"
        return f"{begin}\n{text}\n{self.opening}{GENERATOR}: end{self.closing}"

    def find(self, text: str) -> re.Match[str] | None:
        """What stands between the marks (group ``text``), marks included; None where there are none.

        Raises:
            MarksError: there are several, or one without the other.
        """
        opening, closing, line_end = re.escape(self.opening), re.escape(self.closing), r"[^\n]*"
        begin, end = f"^{opening}{GENERATOR}: begin", f"^{opening}{GENERATOR}: end"
        counts = [len(re.findall(mark, text, re.MULTILINE)) for mark in (begin, end)]
        if counts == [0, 0]:
            return None
        whole = rf"{begin} ?(?P<digest>\w*){line_end}\n(?P<text>.*?)\n?{end}{line_end}?{closing}"
        found = re.search(whole, text, re.MULTILINE | re.DOTALL)
        if counts != [1, 1] or not found:
            raise MarksError(f"the marks of `{GENERATOR}` do not stand once each, begin before end: mend them")
        return found


YAML, HTML = Marks("# ", ""), Marks("<!-- ", " -->")


def is_edited(found: re.Match[str]) -> bool:
    """Whether somebody changed what stands between two marks; nothing between them is an invitation."""
    return bool(found["text"].strip()) and found["digest"] != _digest(found["text"])


def is_whole(text: str) -> bool:
    """Whether all of a text is ours: nothing but what we wrote stands in it."""
    if PAGE_MARK in text.splitlines():
        return True
    try:
        regions = [found for marks in (YAML, HTML) if (found := marks.find(text))]
    except MarksError:
        return False
    if not regions or any(map(is_edited, regions)):
        return False
    for found in regions:
        text = text.replace(found[0], "")
    return not text.replace("---", "").strip()


def _digest(text: str) -> str:
    """Of the lines, however they end: an editor may have changed that."""
    lines = text.replace("\r\n", "\n").removesuffix("\r")
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
