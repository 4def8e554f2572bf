"""Environments of the tools that matexport is compared with: made once in the user's cache, or given.

Their pins exclude those of matexport, so each tool runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common import run_process, say

#: The newest optimum-onnx, and the newest transformers it takes. torch is the one of constraints.txt.
TORCH = "torch==2.13.0"
OPTIMUM = ("optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime")
#: What writes the int8 presets; the newest sentence-transformers that takes that transformers.
SENTENCE_TRANSFORMERS = (*OPTIMUM, "sentence-transformers==5.7.0")
#: Needs no torch.
FASTEMBED = ("fastembed==0.9.1", "onnxruntime")


def add_optimum_option(parser: argparse.ArgumentParser) -> None:
    """``--optimum-python``, for an environment that is there already."""
    parser.add_argument(
        "--optimum-python", type=Path, help="python of an environment with optimum-onnx; made if absent"
    )


def make_environment(name: str, packages: Sequence[str]) -> Path:
    """Python of an environment with these packages, made once in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "matexport-benchmarks" / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        say(f"making an environment for {name} in {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        torch = (TORCH,) if packages is not FASTEMBED else ()
        for wanted in filter(None, (torch, (*torch, *packages))):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
        (folder / "made").touch()
    return python


def read_versions_in(
    python: Path, packages: Sequence[str], *, common: Sequence[str] = ("optimum", "torch"), peer: str = "optimum"
) -> dict[str, str]:
    """Versions in a peer's environment, each under a name that says so."""
    names = (*common, *(package.partition("==")[0] for package in packages))
    code = (
        "import json, sys; from importlib.metadata import version as v; print(json.dumps([v(n) for n in sys.argv[1:]]))"
    )
    versions = json.loads(run_process([python, "-c", code, *names]).stdout)
    return {f"{name} (with {peer})": found for name, found in zip(names, versions, strict=True)}
