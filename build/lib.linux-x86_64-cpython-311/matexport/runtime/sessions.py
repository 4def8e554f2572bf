"""Several profiles of one family at once: the tokenizer, the threads and the page cache are shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock

from matexport.family.manifest import Family, load_family
from matexport.runtime.embedder import Embedder
from matexport.runtime.shared import Shared
from matexport.spec.measured import Engine


class Sessions(Mapping[str, Embedder]):
    """Several profiles of one family at once: profile name -> `Embedder`.

    Each is checked and opened when it is first asked for. All share what prepares items and one pool of threads, and on
    disk and in the page cache the weights; a session's own copy of its matrices, in the order that the CPU's kernels
    want, is not shared (onnxruntime offers that to C++ alone).

    Args:
        family: the directory of a family, or a loaded `Family`.
        threads: of each run, and how many runs go at a time for all profiles together; all CPUs of this process by
            default.
        engine: what runs all of them; onnxruntime on the CPU by default.

    Raises:
        FamilyError: when a profile is asked for that is not there, or whose files are not the ones that were exported.
    """

    def __init__(
        self, family: Family | Path | str, *, threads: int | None = None, engine: Engine | None = None
    ) -> None:
        self.family = family if isinstance(family, Family) else load_family(family)
        self._engine = engine or Engine()
        self._names = tuple(profile.name for profile in self.family.profiles)
        self._shared = Shared(threads)
        self._open: dict[str, Embedder] = {}
        self._lock = Lock()

    def __getitem__(self, name: str) -> Embedder:
        with self._lock:
            if name not in self._open:
                self._open[name] = Embedder(self.family, name, engine=self._engine, shared=self._shared)
            return self._open[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def release(self, name: str) -> None:
        """Close a profile's session; it is opened again when it is asked for again."""
        with self._lock:
            opened = self._open.pop(name, None)
        if opened is not None:
            opened.close()
