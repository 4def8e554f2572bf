"""`POST /v1/embeddings` over a real socket: the embedder's own vectors, everyone their own, and every refusal."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import edit_manifest
from places import GOLDEN
from serving import JSON, Client, serve, wait_for

from matexport import Embedder, load_family
from matexport.errors import FamilyError, RequestError
from matexport.serve import service
from matexport.serve.asked import Limits
from matexport.serve.choose import choose_default
from matexport.serve.server import open_server
from matexport.spec.measured import Engine

TEXTS = ["the cat sits on the mat", "dog", "a big red house of snow and money", "", "river " * 90]
FAMILY = GOLDEN / "schema3"
DEFAULT = "L02-D020-fp32"
LIMITS = Limits(body_bytes=20_000, texts=40, characters=15_000)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serve(FAMILY, limits=LIMITS) as running:
        yield running


def read_vectors(document: Any) -> np.ndarray:
    assert [item["index"] for item in document["data"]] == list(range(len(document["data"])))
    assert {item["object"] for item in document["data"]} == {"embedding"}
    return np.array([item["embedding"] for item in document["data"]], np.float32)


@pytest.mark.parametrize("profile", ["L01-D012-fp32", "L01-D020-int8", "L02-D020-fp32", "L02-D020-int8"])
def test_vectors_are_the_embedder_s_own(client: Client, profile: str) -> None:
    answer = client.embed(input=TEXTS, model=profile)
    assert answer.status == 200
    document = answer.json
    assert (document["object"], document["model"]) == ("list", profile)
    with Embedder(FAMILY, profile) as embedder:
        np.testing.assert_allclose(read_vectors(document), embedder.embed(TEXTS), atol=1e-7, rtol=0)
        tokens = sum(len(row.ids) for row in embedder.prepare(TEXTS))
    assert document["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_one_text_is_bit_for_bit_the_embedder_s(client: Client) -> None:
    """In both ways of writing numbers: nothing is lost between the graph and the client."""
    with Embedder(FAMILY, DEFAULT) as embedder:
        expected = embedder.embed(TEXTS[:1])
    plain = client.embed(input=TEXTS[0]).json
    packed = client.embed(input=TEXTS[0], encoding_format="base64", user="someone").json
    (item,) = packed["data"]
    assert read_vectors(plain).tobytes() == expected.tobytes()
    assert np.frombuffer(base64.b64decode(item["embedding"]), "<f4").tobytes() == expected[0].tobytes()
    assert plain["model"] == packed["model"] == DEFAULT


def test_codes_are_whole_numbers() -> None:
    family = GOLDEN / "schema2"
    with serve(family, profile="L01-D020-int8-ubinary") as client, Embedder(family, "L01-D020-int8-int8") as embedder:
        codes = client.embed(input=TEXTS[:2], model="L01-D020-int8-int8").json
        expected = embedder.embed(TEXTS[:2])
        assert [item["embedding"] for item in codes["data"]] == expected.tolist()
        packed = client.embed(input=TEXTS[:2], model="L01-D020-int8-int8", encoding_format="base64").json
        found = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4").tolist() for item in packed["data"]]
        assert found == expected.tolist()
        assert len(client.embed(input="dog").json["data"][0]["embedding"]) == 3, "20 bits, in the default profile"


def test_dimensions_choose_the_profile_beside(client: Client) -> None:
    document = client.embed(input=TEXTS, model="L01-D020-int8", dimensions=12).json
    assert document["model"] == "L01-D012-int8"
    with Embedder(FAMILY, "L01-D012-int8") as embedder:
        np.testing.assert_allclose(read_vectors(document), embedder.embed(TEXTS), atol=1e-7, rtol=0)
    assert client.embed(input="dog", dimensions=20).json["model"] == DEFAULT
    refused = client.embed(input="dog", model="L01-D020-int8", dimensions=16)
    refused.refuses(400, "dimensions=16", "there are: 12, 20", param="dimensions")
    client.embed(input="dog", dimensions=0).refuses(400, "there are: 20", param="dimensions")


def test_prompts_and_tasks_are_the_parent_s() -> None:
    family = GOLDEN / "schema4"
    with serve(family) as client, Embedder(family, DEFAULT) as embedder:
        long = "the cat sits on the mat and the dog runs in the snow"
        for asked in ({"task": "query"}, {"prompt": "query"}, {"prompt": ""}, {}):
            expected = embedder.embed([long], **asked)
            found = read_vectors(client.embed(input=long, **asked).json)
            assert found.tobytes() == expected.tobytes(), asked
        assert not np.allclose(embedder.embed([long], task="query"), embedder.embed([long]), atol=1e-3)
        client.embed(input=long, prompt="passage").refuses(400, "prompts are: query", param="prompt")
        client.embed(input=long, task="clustering").refuses(400, "query, document", param="task")


def test_models_are_listed(client: Client) -> None:
    listed = client.get("/v1/models").json
    assert listed["object"] == "list"
    names = [profile.name for profile in load_family(FAMILY).profiles]
    assert [model["id"] for model in listed["data"]] == names
    assert [model["id"] for model in listed["data"] if model["default"]] == [DEFAULT]
    (model,) = [model for model in listed["data"] if model["id"] == "L01-D012-int8"]
    assert (model["layers"], model["dimensions"], model["precision"]) == (1, 12, "int8")
    assert model == client.get("/v1/models/L01-D012-int8").json
    client.get("/v1/models/gpt").refuses(404, "'gpt'", DEFAULT, param="model")
    assert client.get("/health").json == {"status": "ok", "model": DEFAULT, "waiting": 0}


def test_the_default_is_the_nearest_to_the_parent() -> None:
    assert choose_default(load_family(FAMILY)) == DEFAULT
    assert choose_default(load_family(GOLDEN / "schema2")) == "L01-D020-fp32", "floats before codes"
    assert choose_default(load_family(GOLDEN / "schema1")) == "L03-D016-fp32"


REFUSED = {
    "not JSON": (b"{", 400, "not JSON", None),
    "not UTF-8": (b'{"input": "\xff"}', 400, "not JSON", None),
    "nested": (b"[" * 19_000, 400, "nested too deeply", None),
    "a list": (b"[]", 400, "it is a list", None),
    "no input": (b"{}", 400, "input is missing", "input"),
    "null": (b'{"input": null}', 400, "input is null", "input"),
    "a number": (b'{"input": 1}', 400, "input is a number", "input"),
    "an object": (b'{"input": {"text": "dog"}}', 400, "input is an object", "input"),
    "no text": (b'{"input": []}', 400, "empty list", "input"),
    "a mixed list": (b'{"input": ["dog", null]}', 400, "input[1] is null", "input"),
    "token ids": (b'{"input": [5, 7, 8]}', 422, "takes texts", "input"),
    "lists of token ids": (b'{"input": [[5, 7], [8], []]}', 422, "takes texts", "input"),
    "many token ids": (json.dumps({"input": list(range(50))}).encode(), 422, "takes texts", "input"),
    "a lone surrogate": (b'{"input": "\\ud800"}', 400, "not JSON", None),
    "another model": (b'{"input": "dog", "model": "L02-D020-fp16"}', 404, "did you mean 'L02-D020-fp32'", "model"),
    "a misspelt field": (b'{"input": "dog", "dimension": 20}', 400, "did you mean 'dimensions'", None),
    "dimensions as a text": (b'{"input": "dog", "dimensions": "20"}', 400, "dimensions is a text", "dimensions"),
    "half a dimension": (b'{"input": "dog", "dimensions": 20.5}', 400, "dimensions is 20.5", "dimensions"),
    "dimensions that are none": (b'{"input": "dog", "dimensions": true}', 400, "whole number", "dimensions"),
    "another format": (b'{"input": "dog", "encoding_format": "int8"}', 400, "'int8' was asked", "encoding_format"),
    "a format as a list": (b'{"input": "dog", "encoding_format": []}', 400, "is a list", "encoding_format"),
    "a model as a number": (b'{"input": "dog", "model": 5}', 400, "model is a number; it is to be", "model"),
    "a user as an object": (b'{"input": "dog", "user": {}}', 400, "user is an object", "user"),
    "a task as a list": (b'{"input": "dog", "task": ["query"]}', 400, "task is a list", "task"),
    "a text, and a number": (b'{"input": ["dog", 5]}', 400, "input[1] is a number; texts are strings", "input"),
    "a number with a fraction": (b'{"input": [0.5]}', 400, "input[0] is a number", "input"),
    "a list of nothing": (b'{"input": [[]]}', 400, "input[0] is a list", "input"),
    "a number with many digits": (b'{"input": "dog", "dimensions": ' + b"1" * 5000 + b"}", 400, "cannot be read", None),
    "too many texts": (json.dumps({"input": ["dog"] * 41}).encode(), 413, "40 are the most", "input"),
    "too many characters": (json.dumps({"input": ["dog" * 5001]}).encode(), 413, "15000 are the most", "input"),
    "too large": (b'{"input": "dog"}' + b" " * 20_000, 413, "20000 bytes", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_in_words(client: Client, name: str) -> None:
    body, status, words, param = REFUSED[name]
    client.ask("POST", "/v1/embeddings", body, JSON).refuses(status, words, param=param)
    assert client.embed(input="dog").status == 200, "the next one is answered"


def test_as_much_as_is_allowed_is_answered(client: Client) -> None:
    assert len(client.embed(input=["dog"] * 40).json["data"]) == 40
    assert client.embed(input="dog" * 5000).status == 200


@pytest.mark.parametrize("announced", [False, True])
def test_a_body_that_is_too_large_is_told_so_and_not_reset(client: Client, announced: bool) -> None:
    """Far more than the kernel's buffers hold, from a client that reads nothing before it has sent all."""
    size = 24 << 20
    body: Any = b" " * size if announced else iter([b" " * (1 << 20)] * 24)
    connection = client.connect()
    connection.request("POST", "/v1/embeddings", body, JSON, encode_chunked=not announced)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("connection")) == (413, "close")
    assert "20000 bytes" in json.loads(answer.read())["error"]["message"]
    connection.close()


def test_a_client_that_never_ends_its_body_is_left(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.serve.app.LINGER_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as sock:
        sock.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        sock.sendall(b"Content-Length: 99999999\r\n\r\n")
        answer = read_to_the_end(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")


def read_to_the_end(sock: socket.socket) -> bytes:
    """Until the server closes the connection."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("before", "sent", "status"),
    [
        (b"", HEAD, b"HTTP/1.1 408 "),
        (b"", b"", b""),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", HEAD, b"HTTP/1.1 408 "),
        (b"", HEAD + b"X: " + b"x" * (64 << 10), b"HTTP/1.1 431 "),
        (b"", b"this is no HTTP\r\n\r\n", b"HTTP/1.1 400 "),
    ],
    ids=["a part of it", "nothing", "behind another", "too large", "none"],
)
def test_a_client_that_does_not_say_what_it_wants_is_left(before: bytes, sent: bytes, status: bytes) -> None:
    """As slow clients do, which hold connections open; an honest one beside them is answered."""
    seconds = 60 if b"431" in status or b"400" in status else 2.0
    with serve(FAMILY, limits=Limits(head_seconds=seconds)) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=60) as sock:
            if before:
                sock.sendall(before)
                answer = b""
                while not answer.endswith(b"}"):  # the head and the body may come apart
                    answer += sock.recv(1 << 16)
                assert b" 200 OK" in answer
            sock.sendall(sent)
            answer = read_to_the_end(sock)
        assert answer.startswith(status)
        if status:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        else:
            assert answer == b""
        assert client.embed(input="dog").status == 200


def test_a_request_that_takes_longer_than_its_head_may_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(FAMILY, limits=Limits(head_seconds=1.5)) as client, ThreadPoolExecutor(1) as pool:
        begun, free, _ = hold_runs(client, monkeypatch)
        first = pool.submit(client.embed, input="dog")
        assert begun.wait(60)
        threading.Timer(2.5, free.set).start()
        assert first.result().status == 200


def test_null_is_what_leaving_it_out_is(client: Client) -> None:
    fields = dict.fromkeys(("model", "dimensions", "encoding_format", "user", "task", "prompt"))
    assert client.embed(input="dog", **fields).json == client.embed(input="dog").json


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    """As the embedder does: the parent has no vector for it."""
    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))

    def leave_out(manifest: dict[str, Any]) -> None:
        manifest["text"]["special_tokens"] = False

    edit_manifest(family, leave_out)
    with serve(family) as client:
        client.embed(input=["dog", ""]).refuses(422, "text 1", "no tokens", param="input")
        assert client.embed(input=["dog"]).status == 200


def test_what_is_no_request_for_embeddings_is_refused(client: Client) -> None:
    client.get("/v1/embeddings").refuses(405, "Method Not Allowed")
    client.ask("POST", "/v1/embeddings", b'{"input": "dog"}', {"Content-Type": "text/plain"}).refuses(
        415, "application/json"
    )
    zipped = {**JSON, "Content-Encoding": "gzip"}
    client.ask("POST", "/v1/embeddings", b"\x1f\x8b", zipped).refuses(415, "content encoding is 'gzip'")
    client.get("/v1/chat/completions").refuses(404, "Not Found")
    client.get("/health", Host="rebound.test").refuses(421, "rebound.test", "127.0.0.1")
    assert client.get("/health", Host="localhost:1").status == 200


@pytest.mark.parametrize("runs", [1, 2])
def test_clients_at_the_same_time_get_their_own(runs: int) -> None:
    words = ["the", "cat", "dog", "sits", "on", "mat", "runs", "in", "snow", "of", "and", "house", "red", "blue"]
    with Embedder(FAMILY, DEFAULT) as deep, Embedder(FAMILY, "L01-D012-int8") as shallow:

        def ask(number: int, client: Client) -> None:
            embedder = shallow if number % 3 == 0 else deep
            texts = [" ".join(words[(number + k) % 14 : (number * k) % 14 + 1 + number % 9]) for k in range(number % 7)]
            texts.append(words[number % 14])
            found = read_vectors(client.embed(input=texts, model=embedder.profile).json)
            np.testing.assert_allclose(found, embedder.embed(texts), atol=1e-6, rtol=0)

        with serve(FAMILY, limits=Limits(runs=runs), engine=Engine(threads=2)) as client, ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(48), [client] * 48)) == {None}


def hold_runs(client: Client, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event, list[int]]:
    """Make runs wait: (one has begun, they may go on, sizes of runs)."""
    begun, free, sizes = threading.Event(), threading.Event(), []
    own = Embedder.embed_rows

    def embed_rows(self: Embedder, rows: Any, **options: Any) -> Any:
        sizes.append(len(rows))
        begun.set()
        assert free.wait(60)
        return own(self, rows, **options)

    monkeypatch.setattr(Embedder, "embed_rows", embed_rows)
    return begun, free, sizes


def test_what_waits_when_a_run_ends_goes_together(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, free, sizes = hold_runs(client, monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.embed, input="dog")
        assert begun.wait(60)
        others = [pool.submit(client.embed, input="cat") for _ in range(6)]
        wait_for(lambda: client.server.service.batcher.waiting == 6)
        free.set()
        assert {answer.result().status for answer in (first, *others)} == {200}
    assert sizes == [1, 6]


def test_a_client_that_goes_takes_its_texts_along(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, free, sizes = hold_runs(client, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.embed, input="dog")
        assert begun.wait(60)
        body = json.dumps({"input": ["cat"] * 5}).encode()
        gone = client.connect()
        gone.request("POST", "/v1/embeddings", body, JSON)
        wait_for(lambda: client.server.service.batcher.waiting == 5)
        assert gone.sock is not None
        gone.sock.shutdown(socket.SHUT_RDWR)
        gone.close()
        wait_for(lambda: client.server.service.batcher.waiting == 0)
        free.set()
        assert first.result().status == 200
    assert sizes == [1]
    assert client.embed(input="dog").status == 200


def test_too_much_at_a_time_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(FAMILY, limits=Limits(waiting_texts=3)) as client, ThreadPoolExecutor(3) as pool:
        begun, free, _ = hold_runs(client, monkeypatch)
        first = pool.submit(client.embed, input="dog")
        assert begun.wait(60)
        second = pool.submit(client.embed, input=["cat", "mat"])
        wait_for(lambda: client.server.service.batcher.waiting == 2)
        refused = client.embed(input=["cat", "mat"])
        third = pool.submit(client.embed, input="mat")
        wait_for(lambda: client.server.service.batcher.waiting == 3)
        free.set()
        assert [answer.result().status for answer in (first, second, third)] == [200] * 3
    refused.refuses(503, "2 texts are waiting, and 3 are the most")
    assert int(refused.headers["retry-after"]) >= 1


def test_what_there_is_no_room_for_is_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what comes while others are: their rows wait as soon as they are made."""
    tokenized, held, free = [], threading.Event(), threading.Event()

    def prepare(embedder: Any, asked: Any) -> Any:
        tokenized.append(list(asked.texts))
        held.set()
        assert free.wait(60)
        return prepare_own(embedder, asked)

    prepare_own = service._prepare
    monkeypatch.setattr(service, "_prepare", prepare)
    long = "dog " * 400  # which is tokenized in a thread
    with serve(FAMILY, limits=Limits(waiting_texts=3)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.embed, input=[long, long])
        assert held.wait(60)
        client.embed(input=["cat", long]).refuses(503, "2 texts are waiting, and 3 are the most")
        free.set()
        assert first.result().status == 200
        assert client.embed(input=["cat"] * 4).status == 200, "all have left, and an empty queue takes what comes"
    assert tokenized == [[long, long], ["cat"] * 4]


def test_too_many_requests_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(FAMILY, limits=Limits(requests=1)) as client, ThreadPoolExecutor(1) as pool:
        begun, free, _ = hold_runs(client, monkeypatch)
        first = pool.submit(client.embed, input="dog")
        assert begun.wait(60)
        refused = client.embed(input="dog")
        assert client.get("/health").status == 200
        free.set()
        assert first.result().status == 200
        refused.refuses(503, "1 requests are in flight")
        assert refused.headers["retry-after"]
        assert client.embed(input="dog").status == 200


def test_one_client_s_trouble_is_not_another_s(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, free, _ = hold_runs(client, monkeypatch)
    held = Embedder.embed_rows

    def embed_rows(self: Embedder, rows: Any, **options: Any) -> Any:
        found = held(self, rows, **options)
        if any(len(row.ids) == 7 for row in rows):
            raise FamilyError("not finite")
        return found

    monkeypatch.setattr(Embedder, "embed_rows", embed_rows)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.embed, input="dog")
        assert begun.wait(60)
        wrong = pool.submit(client.embed, input="the cat sits on mat")
        right = pool.submit(client.embed, input="the dog runs in snow and money")
        wait_for(lambda: client.server.service.batcher.waiting == 2)
        free.set()
        assert first.result().status == 200
        wrong.result().refuses(500, "FamilyError")
        found = right.result()
    with Embedder(FAMILY, DEFAULT) as embedder:
        expected = embedder.embed(["the dog runs in snow and money"])
    np.testing.assert_allclose(read_vectors(found.json), expected, atol=1e-7, rtol=0)


def test_requests_in_flight_are_answered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serve(FAMILY) as client:
            begun, free, _ = hold_runs(client, monkeypatch)
            first = pool.submit(client.embed, input="dog")
            assert begun.wait(60)
            client.server.should_exit = True
            threading.Timer(0.3, free.set).start()
        assert first.result().status == 200
        with pytest.raises(ConnectionRefusedError):
            client.connect().connect()


def test_what_cannot_be_served_is_refused_before_the_first_request(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="L02-D020-fp16"):
        open_server(FAMILY, profile="L02-D020-fp16")
    with pytest.raises(RequestError, match="cannot listen at 127"), serve(FAMILY) as client:
        open_server(FAMILY, port=client.port)
    changed = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    content = bytearray((changed / "exits.int8.onnx").read_bytes())
    content[-1] ^= 1
    (changed / "exits.int8.onnx").write_bytes(content)
    with pytest.raises(FamilyError, match=r"exits\.int8\.onnx has another sha256"):
        open_server(changed)
