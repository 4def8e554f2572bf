"""What somebody may have meant by a name that is none: of a command, an option, a profile or a key."""

from __future__ import annotations

from collections.abc import Iterable


def suggest(asked: str, known: Iterable[str]) -> str:
    """The end of a message: ``; did you mean 'points'?`` where a known name is close to the asked one, else nothing.

    Close is what `difflib.get_close_matches` calls so: a ratio of at least 0.6.
    """
    from difflib import get_close_matches  # only where something is wrong

    close = get_close_matches(asked, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
