"""matexport: one trained Matryoshka encoder in, a family of verified ONNX sub-models out.

The light half (everything named here) needs numpy, onnxruntime and tokenizers; `matexport.build` makes families and
needs the ``[build]`` extra. Names are imported when they are first used, so that ``import matexport`` costs
milliseconds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matexport.embed import Embedder
    from matexport.errors import MatexportError
    from matexport.manifest import Family, load_family
    from matexport.pack import pack_profile
    from matexport.profiles import load_job
    from matexport.verify import Verification, verify_family

__version__ = "0.1.0"

# onnxruntime's Linux wheels report usage from 1.29 on; only this, set before its import, turns it off for good.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Embedder": "matexport.embed",
    "Family": "matexport.manifest",
    "MatexportError": "matexport.errors",
    "Verification": "matexport.verify",
    "load_family": "matexport.manifest",
    "load_job": "matexport.profiles",
    "pack_profile": "matexport.pack",
    "verify_family": "matexport.verify",
}

__all__ = [
    "Embedder",
    "Family",
    "MatexportError",
    "Verification",
    "__version__",
    "load_family",
    "load_job",
    "pack_profile",
    "verify_family",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'matexport' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
