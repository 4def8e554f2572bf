"""Making families: everything that needs torch, transformers and onnx. Installed by the ``[export]`` extra.

`export_family` is the door. What a kind of parent (`kinds`) does without torch is done before it is imported: of a text
encoder, refusing what its files alone show to be wrong, and starting its judge, a process of its own that imports torch
as well. `pipeline` holds the order of the stages (`trace`, `quantize`), which know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from matexport.errors import RequestError
from matexport.extras import require_extra
from matexport.spec.job import TWO_TOWERS, ExportJob

if TYPE_CHECKING:
    from matexport.export.prepare import Exported

__all__ = ["Exported", "export_family", "export_towers", "require_export_extra"]

_NEEDED = ("torch", "transformers", "sentence_transformers", "onnx", "onnx_ir", "onnxscript")


def require_export_extra() -> None:
    """Raise MissingExtraError, with the pip line, unless the packages of the ``[export]`` extra are there."""
    require_extra("export", "exporting", {name: name for name in _NEEDED})


def export_family(
    job: ExportJob,
    out: Path | str | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    quiet: bool = False,
) -> Exported:
    """Export a family and prove every profile against the parent.

    Args:
        job: what to export; see `matexport.load_job`.
        out: the directory to write; ``artifacts/<job.name>`` by default. If it holds the family of the same inputs
            already, that is verified instead.
        overwrite: replace a family of other inputs. The old one stays until the new one has passed.
        progress: called with (stage, done, total).
        quiet: keep what torch and transformers say about themselves from the terminal; their logging is left alone
            otherwise.

    Raises:
        RequestError: the job asks for something that the parent does not have.
        ParentError: the parent cannot be read or is not supported, or what was read of it is not what its own library
            gives.
        DestinationError: `out` holds something else, is in use, or cannot be written.
        ParityError: a profile does not give the parent's vectors; the destination is as it was.
    """
    require_export_extra()
    from matexport.export.kinds.kind import find_kind

    if job.parent.kind == TWO_TOWERS:
        raise RequestError(f'a parent of kind = "{TWO_TOWERS}" gives two families: export_towers makes them')
    out = job.destination if out is None else Path(out)
    kind = find_kind(job)

    def attempt(*, reuse: bool) -> Exported | None:
        with kind.begin(job, out) as begun:
            if quiet:
                from matexport.export.quiet import quiet_libraries

                quiet_libraries()
            from matexport.export.pipeline import run_export

            return run_export(job, begun, out, overwrite=overwrite, reuse=reuse, progress=progress)

    exported = attempt(reuse=True) or attempt(reuse=False)
    assert exported is not None  # None says that what was there was not enough
    return exported


def export_towers(
    job: ExportJob,
    out: Path | str | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    quiet: bool = False,
) -> dict[str, Exported]:
    """Export both towers of a model (CLIP, SigLIP) as two families of one folder; see `matexport.towers`.

    Args:
        job: of ``kind = "two-towers"``.
        out, overwrite, progress, quiet: as for `export_family`, of each. A family that was made stays when the other
            cannot be: the next call goes on there.

    Returns:
        what was exported, by the families' names: ``text`` and ``image``.

    Raises:
        RequestError, ParentError, DestinationError, ParityError: as `export_family`.
    """
    require_export_extra()
    if quiet:
        from matexport.export.quiet import quiet_libraries

        quiet_libraries()
    from matexport.export.kinds.kind import find_kind
    from matexport.export.towers import refuse_others, split_job
    from matexport.towers import load_towers, write_towers

    out = job.destination if out is None else Path(out)
    jobs, pairs = split_job(job)
    refuse_others(out)
    for name, half in jobs.items():  # what is wrong with one is said before the other is made
        kind = find_kind(half)
        with kind.begin(half, out / name) as begun:
            kind.plan(half, begun)
    exported = {
        name: export_family(half, out / name, overwrite=overwrite, progress=progress, quiet=quiet)
        for name, half in jobs.items()
    }
    write_towers(out, pairs)
    load_towers(out)  # or it could not be read
    return exported


def __getattr__(name: str) -> object:
    if name != "Exported":
        raise AttributeError(f"module 'matexport.export' has no attribute {name!r}")
    require_export_extra()
    from matexport.export.prepare import Exported

    return Exported
