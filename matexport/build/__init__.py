"""Making families: everything that needs torch, transformers and onnx. Installed by the ``[build]`` extra.

`export_family` is the pipeline; the modules beside it are its stages, which know nothing of each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matexport.extras import require_extra

if TYPE_CHECKING:
    from matexport.build.export import Exported, export_family

__all__ = ["Exported", "export_family", "require_build_extra"]

_NEEDED = ("torch", "transformers", "sentence_transformers", "onnx", "onnx_ir", "onnxscript")


def require_build_extra() -> None:
    """Raise MissingExtraError, with the pip line, unless the packages of the ``[build]`` extra are there."""
    require_extra("build", "exporting", {name: name for name in _NEEDED})


def __getattr__(name: str) -> object:
    if name not in ("Exported", "export_family"):
        raise AttributeError(f"module 'matexport.build' has no attribute {name!r}")
    require_build_extra()
    from matexport.build import export

    return getattr(export, name)
