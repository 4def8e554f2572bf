"""A pack, run as a stranger would: onnxruntime opens the graph by its path, tokenizers what ``tokenizer.json`` says.

What stands in the files decides here where texts are cut and how rows are padded, and whatever a consumer makes of the
token states is made of them, too. So a folder that only matexport reads right does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from matexport.errors import ParityError, one_line
from matexport.family.integrity import Contents
from matexport.family.modality import TOKENIZER
from matexport.family.proof import load_references
from matexport.pack.graph import STATES_OUTPUT, TOKENS_OUTPUT
from matexport.runtime.engines.onnxruntime import open_session
from matexport.runtime.inputs.text import find_wrapping
from matexport.spec.facts import OUTPUT_NAME, ProfileFacts
from matexport.spec.inputs import TextFacts
from matexport.spec.readout import PoolingMode, Readout
from matexport.verify.parity import compare_vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    from matexport.spec.probe import Probe

    Vectors: TypeAlias = NDArray[np.float32]

#: Texts of one run: enough that rows of unlike length are padded.
BATCH = 8

#: Profile, its facts in the pack, and where else its graph lies.
Placed: TypeAlias = tuple[str, ProfileFacts, list[str]]


def prove_plain(folder: Path, contents: Contents, placed: Sequence[Placed]) -> None:
    """Hold every graph of a folder to the parent's vectors of the probes.

    Args:
        contents: what the folder was made of: it has the probes, and the parent's vectors.

    Raises:
        ParityError: naming the graph, and how the vectors were read.
    """
    from tokenizers import Tokenizer

    family = contents.family
    probes, references = load_references(contents)
    text = family.text
    # What a task changes of the limit is said by no file of a consumer.
    told = [index for index, probe in enumerate(probes) if _find_limit(text, probe.task) == text.max_tokens]  # type: ignore[union-attr]
    wrapped = [_wrap(text, probes[index]) for index in told]  # type: ignore[arg-type]
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    for name, facts, copies in placed:
        reference = references[facts.point.name][told]
        readout = family.facts.readout
        tolerance = family.facts.tolerances[facts.precision]
        for graph in (facts.graph, *copies):
            session = open_session(folder / graph)
            ways = [*_read_all_ways(session, tokenizer, wrapped)]
            if any(value.name == STATES_OUTPUT for value in session.get_outputs()):
                ways.append(("pooled token_embeddings", _pool_states(session, tokenizer, wrapped, readout, facts.dim)))
            for way, vectors in ways:
                if vectors.shape != reference.shape:
                    raise ParityError(f"{name}, {graph}: {way} has the shape {vectors.shape}", "pack")
                if breach := compare_vectors(vectors, reference).find_breach(tolerance):
                    raise ParityError(f"{name}, {graph}, as other consumers run it ({way}): {breach}", "pack")


def _find_limit(text: TextFacts, task: str | None) -> int:
    return find_wrapping(text, None if task else "", task).max_tokens


def _wrap(text: TextFacts, probe: Probe) -> str:
    wrapping = find_wrapping(text, None if probe.task else probe.prompt or "", probe.task)
    return wrapping.around(probe.text)


def _read_all_ways(
    session: InferenceSession, tokenizer: Tokenizer, texts: Sequence[str]
) -> Iterator[tuple[str, Vectors]]:
    """How the vectors are read, and they: the output itself, and what poolings make of the token states."""
    import numpy as np

    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    for size, runs in (("batched", batches), ("single", [[text] for text in texts])):
        read: dict[str, list[Vectors]] = {}
        for run in runs:
            for way, vectors in _run(session, tokenizer, run):
                read.setdefault(way, []).append(vectors)
        for way, parts in read.items():
            yield f"{way}, {size}", np.concatenate(parts)


def _pool_states(
    session: InferenceSession, tokenizer: Tokenizer, texts: Sequence[str], readout: Readout, dim: int
) -> Vectors:
    """What the parent's pooling makes of each text's own states, cut to `dim` and scaled as the read-out says."""
    import numpy as np

    pool: Callable[[Vectors], Vectors] = {
        PoolingMode.CLS: lambda states: states[0],
        PoolingMode.MEAN: lambda states: states.mean(axis=0),
        PoolingMode.MAX: lambda states: states.max(axis=0),
        PoolingMode.MEAN_SQRT_LEN: lambda states: states.sum(axis=0) / np.sqrt(len(states)),
        PoolingMode.WEIGHTED_MEAN: lambda states: np.average(states, axis=0, weights=np.arange(1, len(states) + 1)),
        PoolingMode.LAST_TOKEN: lambda states: states[-1],
    }[readout.pooling[0]]
    vectors = []
    for text in texts:
        feeds = _encode(tokenizer, [text])
        ((states,),) = session.run([STATES_OUTPUT], feeds)
        vector = pool(states[feeds["attention_mask"][0] == 1])[:dim]
        vectors.append(vector / np.linalg.norm(vector) if readout.normalize else vector)
    return np.array(vectors, np.float32)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    import numpy as np

    rows = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": np.array([row.ids for row in rows], np.int64),
        "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
        "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
    }


def _run(session: InferenceSession, tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[str, Vectors]]:
    import numpy as np

    feeds = _encode(tokenizer, texts)
    names = [value.name for value in session.get_outputs()]
    try:
        found = dict(zip(names, session.run(None, feeds), strict=True))
    except Exception as error:  # onnxruntime's own exception classes share no base but Exception
        raise ParityError(f"onnxruntime cannot run the pack as other consumers do: {one_line(error)}", "pack") from None
    yield OUTPUT_NAME, found[OUTPUT_NAME]
    if TOKENS_OUTPUT in found:
        states = found[TOKENS_OUTPUT]
        mask = feeds["attention_mask"][:, :, None].astype(np.float32)
        last = feeds["attention_mask"].cumsum(axis=1).argmax(axis=1)
        yield "first token", states[:, 0]
        yield "last token", states[np.arange(len(states)), last]
        yield "mean of tokens", (states * mask).sum(axis=1) / mask.sum(axis=1)
        yield "largest of tokens", np.where(mask > 0, states, -np.inf).max(axis=1)
