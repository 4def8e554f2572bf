"""Files over HTTP against the bytes on disk: ranges, digests, and nothing that the manifest does not list."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from places import GOLDEN
from serving import Client, serve

from matexport import pack_profile
from matexport.serve.files import find_range, open_page

FAMILY = GOLDEN / "schema3"
WEIGHTS = "weights.fp32.safetensors"
CONTENT = (FAMILY / WEIGHTS).read_bytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serve(FAMILY) as running:
        yield running


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server of a page of ours, in place of the built one."""
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_text("<h1>A page</h1>")
    (page / "assets").mkdir()
    (page / "assets" / "index-AbCd1234.js").write_text("let page")
    (page / "assets" / "ort-AbCd1234.wasm.gz").write_bytes(b"\x1f\x8bnot looked into")
    (page / "link.json").symlink_to(FAMILY / "family.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matexport.serve.server.find_page", lambda: page)
        with serve(FAMILY) as running:
            yield running


def test_all_listed_files_are_served_as_they_are(client: Client) -> None:
    for path in sorted(FAMILY.iterdir()):
        answer = client.get(f"/family/{path.name}")
        content = path.read_bytes()
        assert (answer.status, answer.body) == (200, content), path.name
        assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["cache-control"] == "no-cache"
        assert int(answer.headers["content-length"]) == len(content)


def test_files_in_the_folders_of_a_pack_are_served(tmp_path: Path) -> None:
    """Under their whole names, plain or escaped, and nothing beside them."""
    folder = pack_profile(FAMILY, "L01-D012", tmp_path / "pack").path
    weights = (folder / "onnx" / "model.onnx_data").read_bytes()
    with serve(folder) as running:
        for path in ("/family/onnx/model.onnx_data", "/family/onnx%2Fmodel.onnx_data"):
            answer = running.get(path, Range="bytes=100-199")
            assert (answer.status, answer.body) == (206, weights[100:200])
        for path in (
            "/family/model.onnx_data",
            "/family/onnx",
            "/family/onnx/",
            "/family/onnx/../family.json",
            "/family/",
        ):
            assert running.get(path).status == 404, path


RANGES = {
    "bytes=0-0": (0, 1),
    "bytes=0-4095": (0, 4096),
    "bytes=4096-104447": (4096, 104_448),
    "bytes=133000-": (133_000, SIZE),
    "bytes=133000-999999999": (133_000, SIZE),
    "bytes=-100": (SIZE - 100, SIZE),
    "bytes=-999999999": (0, SIZE),
    f"bytes={SIZE - 1}-{SIZE - 1}": (SIZE - 1, SIZE),
}


@pytest.mark.parametrize("header", RANGES)
def test_a_range_is_those_bytes(client: Client, header: str) -> None:
    start, end = RANGES[header]
    answer = client.get(f"/family/{WEIGHTS}", Range=header)
    assert (answer.status, answer.body) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["etag"] == f'"{DIGEST}"'


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(client: Client, header: str) -> None:
    answer = client.get(f"/family/{WEIGHTS}", Range=header)
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "header", ["bytes=5-2", "bytes=a-b", "bytes=-", "bytes", "lines=0-5", "bytes=0-1,4-5", "bytes=٣-٥", "bytes=1" * 40]
)
def test_what_is_no_single_range_gives_the_whole(client: Client, header: str) -> None:
    assert find_range(header, SIZE) is None
    if header.isascii():
        answer = client.get(f"/family/{WEIGHTS}", Range=header)
        assert (answer.status, answer.body) == (200, CONTENT)


def test_ranges_put_together_are_the_file(client: Client) -> None:
    places = [0, 8, 4096, 87_381, 104_448, SIZE]
    parts = [client.get(f"/family/{WEIGHTS}", Range=f"bytes={start}-{end - 1}").body for start, end in pairwise(places)]
    assert b"".join(parts) == CONTENT


def test_a_file_goes_out_in_parts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.serve.files.CHUNK_BYTES", 1000)
    assert client.get(f"/family/{WEIGHTS}").body == CONTENT
    assert client.get(f"/family/{WEIGHTS}", Range="bytes=999-3000").body == CONTENT[999:3001]


def test_a_digest_stands_for_the_same_bytes_for_ever(client: Client) -> None:
    answer = client.get(f"/family/{WEIGHTS}?sha256={DIGEST}", Range="bytes=0-7")
    assert (answer.status, answer.headers["cache-control"]) == (206, "public, max-age=31536000, immutable")
    other = client.get(f"/family/{WEIGHTS}?sha256={DIGEST[:-1]}0", Range="bytes=0-7")
    other.refuses(404, "another sha256")
    assert other.json["error"]["code"] == "changed"


def test_conditions(client: Client) -> None:
    path = f"/family/{WEIGHTS}"
    for known in (f'"{DIGEST}"', f'"other", W/"{DIGEST}"', "*"):
        answer = client.get(path, If_None_Match=known, Range="bytes=0-7")
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == f'"{DIGEST}"'
    assert client.get(path, If_None_Match='"other"').status == 200
    assert client.get(path, Range="bytes=0-7", If_Range=f'"{DIGEST}"').status == 206
    stale = client.get(path, Range="bytes=0-7", If_Range='"other"')
    assert (stale.status, stale.body) == (200, CONTENT), "a part of another file would be of no use"


def test_the_head_alone(client: Client) -> None:
    answer = client.ask("HEAD", f"/family/{WEIGHTS}")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) == SIZE


@pytest.mark.parametrize(
    "path",
    [
        "/family/../pyproject.toml",
        "/family/..%2f..%2f..%2fpyproject.toml",
        "/family/%2e%2e/%2e%2e/schema1/family.json",
        "/family//etc/passwd",
        "/family/%2fetc%2fpasswd",
        "/family/.",
        "/family/",
        "/family/family.json%00",
        "/family/FAMILY.JSON",
        "/family/notes.txt",
        "/family/measurements",
        "/../pyproject.toml",
        "/assets/../../server.py",
        "/%2e%2e/serve/server.py",
        "/page/index.html",
        "/link.json",
    ],
)
def test_nothing_else_is_within_reach(small: Client, path: str) -> None:
    small.get(path).refuses(404)


def test_a_file_that_is_not_listed_is_not_served(tmp_path: Path) -> None:
    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    (family / "notes.txt").write_text("private")
    (family / "measurements").mkdir()
    (family / "measurements" / "host.json").write_text("{}")
    with serve(family) as client:
        for name in ("notes.txt", "measurements", "measurements%2Fhost.json", "measurements/host.json"):
            client.get(f"/family/{name}").refuses(404)


def test_what_was_digested_is_what_is_served(tmp_path: Path) -> None:
    """Whoever replaces the folder meanwhile."""
    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    with serve(family) as client:
        family.rename(tmp_path / "old")
        shutil.copytree(GOLDEN / "schema4", family)
        assert client.get(f"/family/{WEIGHTS}").body == CONTENT
        assert client.get("/family/family.json").body == (FAMILY / "family.json").read_bytes()


def test_the_page_may_load_its_own_files_alone(small: Client) -> None:
    answer = small.get("/")
    assert (answer.status, answer.body) == (200, b"<h1>A page</h1>")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-cache"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe-inline" not in str(policy)
    assert "http" not in str(policy)
    script = small.get("/assets/index-AbCd1234.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["cache-control"].endswith("immutable"), "its name has its hash"
    assert script.headers["x-content-type-options"] == "nosniff"


def test_a_compressed_file_is_sent_as_it_lies(small: Client) -> None:
    answer = small.get("/assets/ort-AbCd1234.wasm")
    assert answer.body == b"\x1f\x8bnot looked into"
    assert (answer.headers["content-encoding"], answer.headers["content-type"]) == ("gzip", "application/wasm")
    small.get("/assets/ort-AbCd1234.wasm.gz").refuses(404)


def test_without_a_built_page_the_rest_works(tmp_path: Path) -> None:
    assert open_page(tmp_path / "none") == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matexport.serve.server.find_page", lambda: tmp_path / "none")
        with serve(FAMILY) as client:
            assert not client.server.has_page
            client.get("/").refuses(404, "npm ci && npm run build")
            assert client.embed(input="dog").status == 200
