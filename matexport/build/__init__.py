"""Making families: everything that needs torch, transformers and onnx. Installed by the ``[build]`` extra.

`export_family` is the pipeline; the modules beside it are its stages, which know nothing of each other.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from matexport.errors import MissingExtraError

if TYPE_CHECKING:
    from matexport.build.export import Exported, export_family

__all__ = ["Exported", "export_family", "require_build_extra"]

_NEEDED = ("torch", "transformers", "sentence_transformers", "onnx", "onnx_ir", "onnxscript")


def require_build_extra() -> None:
    """Raise MissingExtraError, with the pip line, unless the packages of the ``[build]`` extra are there."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"exporting needs {', '.join(missing)}, which is not installed here; "
            "install the [build] extra, in matexport's own directory: pip install -c constraints.txt -e '.[build]'"
        )


def __getattr__(name: str) -> object:
    if name not in ("Exported", "export_family"):
        raise AttributeError(f"module 'matexport.build' has no attribute {name!r}")
    require_build_extra()
    from matexport.build import export

    return getattr(export, name)
