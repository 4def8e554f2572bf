"""Where the tests, the repository and the frozen families lie."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
#: One small family of each schema, which must verify for ever.
GOLDEN = TESTS / "golden"
#: Where this checkout is installed with its entry point, the plugin is loaded already.
INSTALLED = any(entry.name == "matexport" for entry in importlib.metadata.entry_points(group="pytest11"))
