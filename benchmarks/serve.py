"""Requests per second of `matexport serve` against a server with the parent in torch, 8 clients over HTTP.

    pip install -c constraints.txt -e '.[demo,serve]'
    python benchmarks/serve.py FAMILY

FAMILY is MiniLM's, with its full point in int8 (`profiles/minilm-int8.toml` makes it). The other side is what one
writes in an afternoon: starlette and uvicorn as here, `SentenceTransformer.encode` in a thread, all that waits in one
call, so that both sides batch; the same without batching is measured beside, and the better of the two is compared.
Of ours, the native engine is held to the same bar; two runs at a time on one thread each are measured beside as well,
and are held to nothing.
Each server is a process of its own on all CPUs, and so are the clients together. Both answer the same texts in the same
order, turn by turn. A client sends its next request when it has the answer to the one before, so with the number of
clients fixed, whoever answers more requests has the shorter latency: that ours has no longer a p95 is held besides.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    STSB,
    Bar,
    Report,
    count_repeats,
    finish,
    locate_minilm,
    make_parser,
    median,
    print_bars,
    say,
    take_turns,
)

RATE = Bar("requests/s, int8 full point / the parent in torch, 8 clients", 3.0, " x", at_least=True)
NATIVE = Bar(
    "requests/s, int8 full point in --engine native / the parent in torch, 8 clients", 3.0, " x", at_least=True
)
P95 = Bar("p95 of a request, int8 full point / the parent in torch, 8 clients", 1.0, " x")
CLIENTS = 8
PROFILE = "L06-D384-int8"
OURS, OTHERS = ("ours", "ours, native", "ours, two runs"), ("torch", "torch, unbatched")
SIDES = (*OURS, *OTHERS)
SECONDS, WARM_SECONDS = 10.0, 3.0


def read_texts(count: int) -> list[str]:
    """Sentences of STS-B where a workplace has it, else made of words; the same on every machine."""
    dev = STSB / "stsb-en-dev.csv"
    if dev.is_file():
        with dev.open(encoding="utf-8", newline="") as file:
            return [row[0] for row, _ in zip(csv.reader(file), range(count), strict=False)]
    words = "a man woman child dog plays runs eats the big red small house river market fell today".split()  # noqa: SIM905
    return [" ".join(words[(k * j + j * j) % len(words)] for j in range(4, 5 + k % 17)) for k in range(count)]


# --- the other side's server


def serve_torch(batched: bool) -> None:
    """In a process of its own."""
    import uvicorn
    from sentence_transformers import SentenceTransformer
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    model = SentenceTransformer(str(locate_minilm()), device="cpu")
    pool = ThreadPoolExecutor(1)
    waiting: list[tuple[str, asyncio.Future[list[float]]]] = []
    running = False

    def encode(texts: list[str]) -> list[list[float]]:
        return model.encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist()

    async def run_waiting() -> None:
        nonlocal running
        running = True
        while waiting:
            taken = waiting[:] if batched else waiting[:1]
            del waiting[: len(taken)]
            loop = asyncio.get_running_loop()
            vectors = await loop.run_in_executor(pool, encode, [text for text, _ in taken])
            for (_, done), vector in zip(taken, vectors, strict=True):
                done.set_result(vector)
        running = False

    async def answer(request: Request) -> Response:
        asked = await request.json()
        done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        waiting.append((asked["input"], done))
        if not running:
            tasks.add(task := asyncio.create_task(run_waiting()))
            task.add_done_callback(tasks.discard)
        vector = await done
        return JSONResponse({"data": [{"object": "embedding", "index": 0, "embedding": vector}]})

    tasks: set[asyncio.Task[None]] = set()
    app = Starlette(routes=[Route("/v1/embeddings", answer, methods=["POST"])])
    config = uvicorn.Config(app, port=0, http="httptools", log_level="error", access_log=False)
    server = uvicorn.Server(config)
    bound = config.bind_socket()
    print(f"at http://127.0.0.1:{bound.getsockname()[1]}/", flush=True)
    server.run(sockets=[bound])


@contextmanager
def start(side: str, family: Path) -> Iterator[int]:
    """A server of a side: its port."""
    command = [sys.executable, "-m", "matexport", "serve", str(family), "--port", "0", "--profile", PROFILE]
    if side == "ours, two runs":
        command += ["--runs", "2"]
    elif side == "ours, native":
        command += ["--engine", "native"]
    elif side in OTHERS:
        command = [sys.executable, __file__, "--serve-torch", side, str(family)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        assert process.stdout
        found = next(
            (hit for line in process.stdout if (hit := re.search(r"at http://127\.0\.0\.1:(\d+)/", line))), None
        )
        if found is None:
            raise SystemExit(f"the server of {side} did not start")
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


# --- the clients


def ask(port: int, seconds: float, texts: list[str], place: int, count: int) -> list[float]:
    """Latencies in ms of one client, which asks one text after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    taken, end = [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        body = json.dumps({"input": texts[place % len(texts)]}).encode()
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {content[:200]!r}")
        taken.append((time.perf_counter() - begun) * 1e3)
        place += count
    connection.close()
    return taken


def measure(port: int, clients: int, seconds: float, texts: list[str]) -> dict[str, float]:
    """Requests per second, and the median and the 95th percentile of their latency."""
    with ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        found = pool.map(partial(ask, port, seconds, texts, count=clients), range(clients))
        latencies = sorted(latency for of_one in found for latency in of_one)
        spent = time.perf_counter() - begun
    return {
        "clients": clients,
        "requests_per_s": len(latencies) / spent,
        "median_ms": statistics.median(latencies),
        "p95_ms": latencies[int(len(latencies) * 0.95)],
    }


def measure_in_process(port: int, clients: int, seconds: float) -> dict[str, float]:
    """The clients in a process of their own: they take CPU, and no server is to share its interpreter with them."""
    command = [sys.executable, __file__, "--ask", f"{port} {clients} {seconds}", "-"]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure_side(side: str, family: Path, seconds: float) -> dict[str, float]:
    with start(side, family) as port:
        measure_in_process(port, CLIENTS, min(WARM_SECONDS, seconds))
        return measure_in_process(port, CLIENTS, seconds)


def main() -> int:
    parser = make_parser("serve", __doc__, repeats=5)
    parser.add_argument("family", type=Path)
    parser.add_argument("--serve-torch", metavar="SIDE", help=argparse.SUPPRESS)
    parser.add_argument("--ask", metavar="PORT CLIENTS SECONDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_torch:
        serve_torch(options.serve_torch == "torch")
        return 0
    if options.ask:
        port, clients, seconds = options.ask.split()
        print(json.dumps(measure(int(port), int(clients), float(seconds), read_texts(512))))
        return 0
    print_bars([RATE, NATIVE, P95])
    seconds = 2.0 if options.quick else SECONDS
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for side in take_turns(SIDES, count_repeats(options, quick=1)):
        runs[side].append(found := measure_side(side, options.family, seconds))
        say(f"{side}: {found['requests_per_s']:.0f} requests/s, p95 {found['p95_ms']:.1f} ms")
    middle = {
        side: {name: median(run[name] for run in runs[side]) for name in ("requests_per_s", "median_ms", "p95_ms")}
        for side in SIDES
    }
    ours, theirs = middle["ours"], max(OTHERS, key=lambda side: middle[side]["requests_per_s"])
    held = [
        (RATE, ours["requests_per_s"] / middle[theirs]["requests_per_s"]),
        (NATIVE, middle["ours, native"]["requests_per_s"] / middle[theirs]["requests_per_s"]),
        (P95, ours["p95_ms"] / middle[theirs]["p95_ms"]),
    ]
    measured: dict[str, Any] = {"compared_with": theirs, **middle, "runs": runs}
    settings = {"profile": PROFILE, "clients": CLIENTS, "seconds": seconds, "texts": len(read_texts(512))}
    return finish("serve", options, Report(held, measured, settings))


if __name__ == "__main__":
    sys.exit(main())
