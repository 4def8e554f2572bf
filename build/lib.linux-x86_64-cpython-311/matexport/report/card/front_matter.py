"""The front matter of a card as YAML, without a library: a dozen keys, every string quoted."""

from __future__ import annotations

from typing import Any


def format_yaml(value: Any, indent: int = 0) -> str:
    """Mappings and lists of them in blocks, every string in double quotes: YAML 1.1 and 1.2 read the same."""
    space = "  " * indent
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            if isinstance(item, dict | list):
                lines.append(f"{space}{key}:\n{format_yaml(item, indent + 1)}")
            else:
                lines.append(f"{space}{key}: {_scalar(item)}")
        return "\n".join(lines)
    lines = []
    for item in value:
        block = format_yaml(item, indent + 1).lstrip() if isinstance(item, dict | list) else _scalar(item)
        lines.append(f"{space}- {block}")
    return "\n".join(lines)


def _scalar(value: object) -> str:
    if isinstance(value, float):
        text = f"{value:.6f}"
        return text.rstrip("0") + ("0" if text.rstrip("0").endswith(".") else "")
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(map(_quote, str(value))) + '"'


def _quote(character: str) -> str:
    code = ord(character)
    if character in '"\\':
        return f"\\{character}"
    if 0x20 <= code < 0x7F:
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
