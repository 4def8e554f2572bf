"""Format rows as a table of plain text, whatever their content. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Sequence


def show_plain(text: str) -> str:
    """A text from a file, with question marks in place of characters that control a terminal (escapes, line breaks)."""
    return "".join(character if character.isprintable() else "?" for character in text)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """A table with a header, as wide as its cells need. Columns are aligned to the right, those in `left` to the left.

    Args:
        header: a title for each column.
        rows: a cell for each column.
        left: indices of columns.
    """
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
