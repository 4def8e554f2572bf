"""What answers a request for embeddings: profiles opened once, texts -> tokens -> a shared run -> JSON bytes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from matexport.errors import RequestError
from matexport.family.manifest import MANIFEST, Family
from matexport.host import count_cpus
from matexport.runtime.inputs.modality import Asked, Row
from matexport.runtime.sessions import Sessions
from matexport.serve.asked import EmbeddingsAsked, Format, Limits, read_asked
from matexport.serve.batcher import Batcher
from matexport.serve.choose import Catalogue, check_servable
from matexport.serve.refusal import RefusedError
from matexport.spec.measured import Engine

if TYPE_CHECKING:
    from matexport.runtime.embedder import Embedder, Vectors

T = TypeVar("T")

#: Bytes of a request, characters of its texts, and numbers of an answer, that are read, tokenized and written on the
#: spot, in about 0.1 ms: handing them to a thread takes as long as the work itself.
SMALL_BODY, SMALL_TEXTS, SMALL_ANSWER = 16 << 10, 1000, 16 << 10


class Service:
    """The profiles of one family, asked by many at a time. To be used from one event loop.

    Args:
        default: profile of a request that names none; see `choose.choose_default`.
        engine: what runs all profiles, and with how many threads for all runs together; onnxruntime, and all CPUs of
            this process by default.

    Raises:
        RequestError: the family gives no vectors of texts, or the engine cannot run the default profile.
        FamilyError: it has no such profile, or the files of that profile are not the ones that were exported.
    """

    def __init__(
        self, family: Family, *, default: str | None = None, engine: Engine | None = None, limits: Limits | None = None
    ) -> None:
        check_servable(family)
        self.family, self.limits = family, limits or Limits()
        self._catalogue = Catalogue(family, default)
        self.default = self._catalogue.default
        self._created = int((family.path / MANIFEST).stat().st_mtime)
        runs = self.limits.runs
        engine = engine or Engine()
        threads = max(1, (engine.threads or count_cpus()) // runs)
        self._sessions = Sessions(family, threads=threads, engine=engine.with_threads(threads))
        self._opened: dict[str, asyncio.Task[Embedder]] = {}
        self._ready = {self.default: self._sessions[self.default]}
        self.batcher = Batcher(runs, self.limits.waiting_texts)

    async def embed(self, body: bytes) -> bytes:
        """The answer to ``POST /v1/embeddings``, as JSON.

        Raises:
            RefusedError: what is asked cannot be, see `read_asked`; 422 a text has no tokens; 503 too much is waiting.
            FamilyError: a profile's files are no longer those that were exported, or it cannot be run.
        """
        asked = await _offload(len(body) > SMALL_BODY, read_asked, body, self.limits)
        name = self._catalogue.resolve(asked.model, asked.dimensions)
        with self.batcher.admit(len(asked.texts)):
            embedder = self._ready.get(name) or await self._open(name)
            rows = await _offload(_takes_long(asked), _prepare, embedder, asked)
        vectors = await self.batcher.run(embedder, rows)
        tokens = sum(embedder.inputs.size(row) for row in rows)
        return await _offload(vectors.size > SMALL_ANSWER, write_answer, vectors, asked.format, name, tokens)

    def list_models(self) -> list[dict[str, object]]:
        """The profiles, as ``GET /v1/models`` lists them, with what tells them apart besides."""
        return [self.describe_model(name) for name in self._catalogue.names]

    def describe_model(self, name: str) -> dict[str, object]:
        """One of them.

        Raises:
            RefusedError: 404 there is no such profile.
        """
        facts = self.family.profile_facts(self._catalogue.resolve(name, None))
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "matexport",
            "layers": facts.layers,
            "dimensions": facts.dim,
            "precision": facts.precision,
            "encoding": facts.encoding,
            "max_tokens": self.family.text.max_tokens,
            "default": name == self.default,
        }

    def close(self) -> None:
        """Let what runs end, and release all sessions."""
        self.batcher.close()
        for name in self._ready:
            self._sessions.release(name)

    async def _open(self, name: str) -> Embedder:
        """A profile that was not asked for before, opened once for all who ask for it meanwhile."""
        opening = self._opened.get(name)
        if opening is None:
            opening = self._opened[name] = asyncio.create_task(asyncio.to_thread(self._sessions.__getitem__, name))
        try:
            self._ready[name] = await asyncio.shield(opening)  # one of them may go; the others still wait for it
        except RequestError as error:  # of the engine that was asked for: it does not run this precision
            raise RefusedError(400, str(error), param="model") from None
        finally:
            if opening.done():
                self._opened.pop(name, None)
        return self._ready[name]


def _takes_long(asked: EmbeddingsAsked) -> bool:
    """A task may have a limit of its own, and so a tokenizer, which is read when it is first asked for."""
    return asked.task is not None or sum(map(len, asked.texts)) > SMALL_TEXTS


def _prepare(embedder: Embedder, asked: EmbeddingsAsked) -> list[Row]:
    reading = Asked(asked.prompt, asked.task)
    try:
        embedder.inputs.check(reading)
    except RequestError as error:
        raise RefusedError(400, str(error), param="prompt" if asked.task is None else "task") from None
    try:
        return embedder.inputs.prepare(asked.texts, reading)
    except RequestError as error:
        raise RefusedError(422, str(error), param="input") from None


def write_answer(vectors: Vectors, form: Format, name: str, tokens: int) -> bytes:
    """An answer in OpenAI's shape.

    Args:
        vectors: (n, numbers of a vector) float32, or codes.
        name: of the profile.
        tokens: of all texts, special ones counted.
    """
    numbers: Sequence[Any] = vectors.tolist() if form is Format.FLOAT else [_spell(vector) for vector in vectors]
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": item} for index, item in enumerate(numbers)],
            "model": name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _spell(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


async def _offload(heavy: bool, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function, in a thread if that takes long enough to be worth one."""
    return await asyncio.to_thread(function, *arguments) if heavy else function(*arguments)


def find_page() -> Path:
    """Where the page is, if it was built."""
    return Path(__file__).with_name("page")
