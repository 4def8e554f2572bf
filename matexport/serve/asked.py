"""The body of ``POST /v1/embeddings`` -> what is asked, within the server's limits, or a `RefusedError` that says why.

The fields are those of OpenAI's endpoint, and two of our own, ``task`` and ``prompt``, as `Embedder.embed` has them. A
field that is not known is refused: it would change nothing, and whoever sent it expects that it does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from matexport.errors import MatexportError
from matexport.serve.refusal import RefusedError
from matexport.spec.record import Record, read_record


class Limits(Record, frozen=True):
    """What one request may be, how much may wait, and how much goes at a time.

    Attributes:
        body_bytes: of a request.
        texts: of one request; OpenAI's own limit.
        characters: of one request, all texts together. What is cut off a long text has to be tokenized all the same.
        waiting_texts: of all requests together that are not in a run yet; further ones are answered with 503.
        requests: in flight at a time, whatever they ask for.
        head_seconds: in which a request's head has to arrive, and the next one's on the same connection.
        body_seconds: in which a request's body has to arrive.
        runs: at a time, which share the threads.
    """

    body_bytes: int = 8 << 20
    texts: int = 2048
    characters: int = 2_000_000
    waiting_texts: int = 8192
    requests: int = 256
    head_seconds: float = 30.0
    body_seconds: float = 30.0
    runs: int = 1


class Format(StrEnum):
    """How numbers are written.

    ``float``: a list of numbers. ``base64``: the same numbers, little-endian float32, as OpenAI's own client asks for.
    """

    FLOAT = "float"
    BASE64 = "base64"


class Body(Record, frozen=True, kw_only=True):
    """The fields of the request; see `read_asked`. `user` says who asks, which nothing depends on."""

    input: str | list[Any]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Format | None = None
    user: str | None = None
    task: str | None = None
    prompt: str | None = None


class EmbeddingsAsked(Record, frozen=True):
    """What is asked: vectors of `texts`, of the profile that `model` and `dimensions` name."""

    texts: list[str]
    model: str | None
    dimensions: int | None
    format: Format
    task: str | None
    prompt: str | None


def read_asked(content: bytes, limits: Limits) -> EmbeddingsAsked:
    """Read and check the body of a request.

    Raises:
        RefusedError: 400 it is no JSON object of the known fields, 413 it has too many texts or characters, 422 it has
            token ids in place of texts.
    """
    try:
        data = msgspec.json.decode(content)
    except RecursionError:
        raise RefusedError(400, "the body is nested too deeply to be read", code="invalid_json") from None
    except msgspec.ValidationError as error:  # of a number that is too large for any field
        raise RefusedError(400, f"the body cannot be read: {error}", code="invalid_json") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise RefusedError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise RefusedError(400, f"the body is to be a JSON object; it is {_name_type(data)}", code="invalid_json")
    if "input" not in data:
        raise RefusedError(400, "input is missing: a text, or a list of texts", param="input")
    texts = _read_texts(data["input"], limits)
    _check_fields(data)
    body = read_record(data, Body, "the request", _refuse_field)
    form = body.encoding_format or Format.FLOAT
    return EmbeddingsAsked(texts, body.model, body.dimensions, form, body.task, body.prompt)


def _check_fields(data: dict[str, Any]) -> None:
    """Refuse a field of a wrong type by its name; null says what leaving it out says."""
    for name in ("model", "encoding_format", "user", "task", "prompt"):
        if not isinstance(data.get(name), str | None):
            raise RefusedError(400, f"{name} is {_name_type(data[name])}; it is to be a text", param=name)
    dimensions, form = data.get("dimensions"), data.get("encoding_format")
    if type(dimensions) is float:
        raise RefusedError(400, f"dimensions is {dimensions}; it is to be a whole number", param="dimensions")
    if dimensions is not None and type(dimensions) is not int:
        raise RefusedError(
            400, f"dimensions is {_name_type(dimensions)}; it is to be a whole number", param="dimensions"
        )
    if form is not None and form not in list(Format):
        raise RefusedError(
            400, f"encoding_format {form[:100]!r} was asked; known are: {', '.join(Format)}", param="encoding_format"
        )


def _read_texts(given: object, limits: Limits) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise RefusedError(400, f"input is {_name_type(given)}; it is to be a text or a list of texts", param="input")
    if not texts:
        raise RefusedError(400, "input is an empty list; give at least one text", param="input")
    if _are_tokens(texts):
        raise RefusedError(
            422,
            "input has token ids; this server takes texts, which it tokenizes with the family's own tokenizer",
            param="input",
            code="token_ids",
        )
    wrong = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise RefusedError(400, f"input[{wrong}] is {_name_type(texts[wrong])}; texts are strings", param="input")
    if len(texts) > limits.texts:
        raise RefusedError(
            413, f"input has {len(texts)} texts; {limits.texts} are the most of one request", param="input"
        )
    characters = sum(map(len, texts))
    if characters > limits.characters:
        raise RefusedError(
            413, f"input has {characters} characters; {limits.characters} are the most of one request", param="input"
        )
    return texts


def _are_tokens(items: list[Any]) -> bool:
    """Token ids, or lists of them."""
    ids = [one for item in items for one in (item if isinstance(item, list) else [item])]
    return bool(ids) and all(type(one) is int for one in ids)


def _name_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse_field(message: str) -> MatexportError:
    return RefusedError(400, message)
