"""Rows as a plain text table. Knows nothing of what stands in them, and needs nothing but Python."""

from __future__ import annotations

from collections.abc import Sequence


def show_plain(text: str) -> str:
    """A text from a file, with what a terminal obeys (escapes, line breaks) shown as question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Columns as wide as they need be; numbers on the right, the columns in `left` on the left."""
    rows = [[show_plain(cell) for cell in row] for row in rows]
    header = [show_plain(cell) for cell in header]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        padded = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
