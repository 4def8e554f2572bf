"""Weights by name, in a folder without a configuration: what research code saves."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from matexport.errors import ParentError

#: Weights that are read, in the order in which they are looked for; the others than the first may run code.
ENDINGS = (".safetensors", ".pt", ".pth", ".bin")

#: Keys under which checkpoints keep weights beside other things.
_INSIDE = ("state_dict", "model", "teacher")


def find_checkpoint(root: Path, *, allow_pickle: bool) -> Path:
    """The one file of weights in a folder.

    Raises:
        ParentError: there is none, or more than one, or it is pickled and that is not allowed.
    """
    for ending in ENDINGS:
        found = sorted(path for path in root.iterdir() if path.suffix == ending)
        if len(found) > 1:
            names = f"{found[0].name}, {found[1].name}"
            raise ParentError(f"{root} has {len(found)} files of weights ({names}): one is read")
        if found and ending != ENDINGS[0] and not allow_pickle:
            raise ParentError(
                f"{root} has pickled weights only ({found[0].name}); unpickling can run code, so it needs "
                "allow_pickle = true in the job's [parent]"
            )
        if found:
            return found[0]
    raise ParentError(f"{root} has no weights ({', '.join(ENDINGS)})")


def load_checkpoint(file: Path) -> dict[str, Tensor]:
    """Name -> weight. Of what is pickled, tensors alone are unpickled.

    Raises:
        ParentError: it cannot be read, or holds something else.
    """
    try:
        if file.suffix == ENDINGS[0]:
            loaded: dict[str, Tensor] = load_file(file)
            return loaded
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ParentError(f"{file} cannot be read as weights: {' '.join(str(error).split())[:300]}") from error
    for key in _INSIDE:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ParentError(f"{file} holds no weights by name")
    return {str(name): value for name, value in found.items()}
