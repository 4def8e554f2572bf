"""The vectors that a family is evaluated by: every profile's for all texts of all tasks.

Where a family has graphs of all exits, blocks are computed once for all profiles of a precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from matexport.errors import RequestError
from matexport.family.integrity import check_files
from matexport.family.manifest import RANGES, Family
from matexport.family.proof import load_ranges
from matexport.io.progress import Progress
from matexport.measure.images import LabelledImages, UnlabelledImages
from matexport.measure.tasks import StsTask, Task, UnlabelledTask
from matexport.runtime.all_points import ExitsEmbedder
from matexport.runtime.embedder import Embedder
from matexport.runtime.inputs.modality import Asked
from matexport.runtime.inputs.text import TASKS_SCHEMA
from matexport.spec.measured import Engine
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.verify.codes import encode_vectors
from matexport.verify.parity import unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

#: Names under which models keep the prompts of the two sides of a search: where a family of an older schema does not
#: say what its parent does with queries and documents.
QUERY_PROMPTS, DOCUMENT_PROMPTS = ("query",), ("document", "passage", "corpus")

#: How a text is read, and the text.
Key = tuple[Asked, str]
T = TypeVar("T")


#: What a family may be evaluated on.
AnyTask: TypeAlias = Task | LabelledImages


def collect_texts(family: Family, tasks: Sequence[AnyTask]) -> list[Key]:
    """The different texts, or names of image files, of all tasks, each with how it is read, in the order of their use.

    Raises:
        RequestError: a task is of texts and the family takes images, or the other way round.
    """
    for task in tasks:
        wanted = "image" if isinstance(task, LabelledImages | UnlabelledImages) else "text"
        if wanted != family.facts.modality:
            noun = family.facts.inputs.noun
            raise RequestError(f"{family.path} takes {noun}s, and this is done with {wanted}s ({task.name})")
    default, query, document = choose_prompts(family)
    keys: dict[Key, None] = {}
    for task in tasks:
        if isinstance(task, StsTask):
            keys |= dict.fromkeys((default, text) for text in (*task.left, *task.right))
        elif isinstance(task, LabelledImages):
            keys |= dict.fromkeys((default, file) for file in task.files)
        elif isinstance(task, UnlabelledTask):
            keys |= dict.fromkeys((default, text) for text in task.texts)
        else:
            keys |= dict.fromkeys((query, text) for text in task.queries.values())
            keys |= dict.fromkeys((document, text) for text in task.documents.values())
    return list(keys)


def choose_prompts(family: Family) -> tuple[Asked, Asked, Asked]:
    """How a text, a query and a document are read; an image has only one way.

    Raises:
        FamilyError: the family takes arrays.
    """
    if family.facts.image:
        return Asked(), Asked(), Asked()
    prompts = family.text.prompts
    if family.facts.schema >= TASKS_SCHEMA:
        return Asked(), Asked(task="query"), Asked(task="document")
    query = next((name for name in QUERY_PROMPTS if name in prompts), None)
    document = next((name for name in DOCUMENT_PROMPTS if name in prompts), None)
    return Asked(), Asked(query), Asked(document)


def embed_profiles(
    family: Family,
    profiles: Sequence[Profile],
    texts: Sequence[Key],
    *,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Profile, NDArray[Any]]]:
    """What each profile gives for texts, in one pass per precision where the family has a graph of all exits.

    Args:
        profiles: in the order in which they are given, but for their precisions: those of one come together.
        texts: how each is read, and the text.
        engine: what runs the graphs; onnxruntime on the CPU by default.

    Returns:
        (profile, (len(texts), width) of its encoding), one after the other.
    """
    ranges, engine = {}, engine or Engine()
    if any(profile.encoding is Encoding.INT8 for profile in profiles):
        ranges = load_ranges(check_files(family, [RANGES]))
    for precision in dict.fromkeys(profile.precision for profile in profiles):
        mine = [profile for profile in profiles if profile.precision is precision]
        plain = not family.facts.readout.classes and not any(profile.point.tokens for profile in mine)
        if precision in family.facts.exits and len(mine) > 1 and plain:
            depths = _embed_depths(family, precision, mine, texts, engine, progress)
            normalize = family.facts.readout.normalize
            for profile in mine:
                cut = depths[profile.point.layers][:, : profile.point.dim]
                vectors = unit_rows(cut) if normalize else np.ascontiguousarray(cut)
                yield profile, encode_vectors(vectors, profile.encoding, ranges.get(profile.point.name))
        else:  # one, or a family of an older matexport
            for profile in mine:
                with Embedder(family, profile.name, engine=engine) as embedder:
                    parts = {
                        asked: embedder.embed([text for found, text in texts if found == asked], **asked._asdict())
                        for asked in dict.fromkeys(asked for asked, _ in texts)
                    }
                yield profile, _interleave(parts, texts)


def _embed_depths(
    family: Family,
    precision: Precision,
    profiles: Sequence[Profile],
    texts: Sequence[Key],
    engine: Engine,
    progress: Progress | None,
) -> dict[int, Vectors]:
    """Layers -> the vectors at the widest point of that depth; what is narrower is cut from them."""
    widest: dict[int, Point] = {}
    for point in sorted(profile.point for profile in profiles):
        widest[point.layers] = point
    found = {layers: np.empty((len(texts), point.dim), dtype=np.float32) for layers, point in widest.items()}
    done = 0
    with ExitsEmbedder(family, precision, engine=engine) as exits:
        for asked in dict.fromkeys(asked for asked, _ in texts):
            places = [place for place, (found_asked, _) in enumerate(texts) if found_asked == asked]
            first = 0
            for window in exits.embed_windows([texts[place][1] for place in places], **asked._asdict()):
                count = len(next(iter(window.values())))
                for layers, point in widest.items():
                    found[layers][places[first : first + count]] = window[point]
                first += count
                done += count
                if progress:
                    progress(f"embed {precision}", done, len(texts))
    return found


def _interleave(parts: Mapping[Asked, NDArray[Any]], texts: Sequence[Key]) -> NDArray[Any]:
    """Rows by how the texts are read, as rows in the order of the texts."""
    first = next(iter(parts.values()))
    rows = np.empty((len(texts), first.shape[1]), dtype=first.dtype)
    for asked, vectors in parts.items():
        rows[[found == asked for found, _ in texts]] = vectors
    return rows


def decode(codes: NDArray[Any], encoding: Encoding, dim: int) -> Vectors:
    """What an index compares: float32 vectors as they are, bits as ±1, int8 codes as numbers; at length 1."""
    if encoding is Encoding.UBINARY:
        codes = np.unpackbits(codes, axis=1, count=dim).astype(np.float32) * 2 - 1
    return unit_rows(codes.astype(np.float32))
