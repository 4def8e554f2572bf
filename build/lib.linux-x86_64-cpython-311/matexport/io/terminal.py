"""Plain text for a terminal, whatever its content, and tables of it. Needs nothing but Python.

What comes from a family, a parent or a library may hold anything. Characters that control a terminal, reverse the order
of what follows or cannot be seen are shown as escapes, as Python writes them.
"""

from __future__ import annotations

from collections.abc import Sequence


def show_plain(text: str) -> str:
    """A text on one line, with escapes such as ``\\x1b`` and ``\\n`` in place of characters that control a terminal."""
    return text if text.isprintable() else "".join(map(_escape, text))


def show_lines(text: str) -> str:
    """Lines of text, each as `show_plain` shows it."""
    return "\n".join(map(show_plain, text.split("\n")))


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


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
