"""Small changes to families, signed again so that every digest is right: what do their readers do?

    python benchmarks/fuzz_families.py [--cases N] [--seed S] [--more]

A case is a family of `tests/golden` with one to three changes in its manifest, a graph, a header, the tokenizer, the
probes, the parent's vectors or a measurement; it is verified, embedded with, surveyed and picked from. Each may be
refused in one line or work. A traceback, a process that dies, takes over ten seconds or comes above a gigabyte, and a
file that appears outside of the family are counted, with the seed that makes them again.
`tests/family/test_fuzz_families.py` runs some thousands. Every tenth graph gets operators that make something large,
one after the other, whose sum is added to the vectors.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import common

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
SCHEMAS = ("schema1", "schema2", "schema4")
#: Cases of one process: one that dies loses no more.
CHUNK = 500
SECONDS, BYTES = 10, 1 << 30
BARS = (
    common.Bar("mutated families tried", 100_000, at_least=True),
    common.Bar("mutated families: tracebacks", 0),
    common.Bar("mutated families: processes that died or took over 10 s", 0),
    common.Bar("mutated families: processes above 1 GB", 0),
    common.Bar("mutated families: files outside of the family", 0),
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 255, 1 << 31, 1 << 53, 1 << 63, 10**400, -(1 << 63), 0.5, 1e308, "", "a", "..",
    "../x", "/etc/passwd", "L01-D008-fp32", "L99-D999-int8", "tokenizer.json", "family.json", "\x00", "\x1b[31m",
    "é" * 300, "x" * 70_000,
    [], [1], ["a"], [[]], {}, {"a": 1}, {"": ""},
)  # fmt: skip


class HungError(BaseException):
    """Not an Exception: what is tried would catch those."""


def change_json(data: Any, dice: random.Random) -> Any:
    """The same with one value changed, taken out, doubled or put elsewhere."""
    places = list(_walk(data))
    holder, key = dice.choice(places)
    what = dice.random()
    if what < 0.5:
        holder[key] = dice.choice(ODD)
    elif what < 0.65:
        del holder[key]
    elif what < 0.8:
        other, name = dice.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            holder[key] = json.loads(json.dumps(other[name]))
    elif isinstance(holder, dict):
        holder[dice.choice([str(key) + "x", "", "schema", "files", "__proto__", "x" * 500])] = holder[key]
    else:
        holder.insert(key, holder[key])
    return data


def _walk(data: Any) -> Iterator[tuple[Any, Any]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from _walk(value)


def change_bytes(content: bytes, dice: random.Random, most: int = 1 << 20) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8))):
        place = dice.randrange(min(len(changed), most) or 1)
        what = dice.random()
        if what < 0.6 and changed:
            changed[place] ^= 1 << dice.randrange(8)
        elif what < 0.8:
            del changed[place : place + dice.randrange(1, 9)]
        else:
            changed[place:place] = dice.randbytes(dice.randrange(1, 9))
    return bytes(changed)


def change_header(content: bytes, dice: random.Random) -> bytes:
    """A safetensors file with another header over the same bytes."""
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(change_json(json.loads(content[8 : 8 + length]), dice)).encode()
    if dice.random() < 0.7:
        text = text.ljust(length)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def change_graph(content: bytes, dice: random.Random) -> bytes:
    """A graph with one part of one node or tensor changed; or, now and then, bytes of it."""
    import onnx

    if dice.random() < 0.2:
        return change_bytes(content, dice)
    model = onnx.load_model_from_string(content)
    graph = model.graph
    if dice.random() < 0.1:
        _grow(graph, dice)
        return model.SerializeToString()
    names = [schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""]
    node, tensor = dice.choice(graph.node), dice.choice(graph.initializer)
    values = [name for one in graph.node for name in (*one.input, *one.output)]
    changes: list[Callable[[], object]] = [
        lambda: setattr(node, "op_type", dice.choice([other.op_type for other in graph.node])),
        lambda: setattr(node, "op_type", dice.choice(names)),
        lambda: setattr(node, "domain", dice.choice(["com.microsoft", "ai.onnx.ml", "x"])),
        lambda: node.input.append(dice.choice(values)),
        lambda: node.input.__setitem__(dice.randrange(len(node.input)), dice.choice(values)) if node.input else None,
        lambda: graph.node.remove(node),
        lambda: graph.node.add().CopyFrom(node),
        lambda: tensor.dims.append(dice.choice((0, 1, 2, 1 << 20, 1 << 40, -1))),
        lambda: tensor.dims.__setitem__(0, dice.choice((0, 1, 7, 1 << 31))) if tensor.dims else None,
        lambda: setattr(tensor, "data_type", dice.randrange(24)),
        lambda: setattr(tensor, "raw_data", change_bytes(tensor.raw_data or b"\0", dice)),
        lambda: _change_entry(tensor, dice),
        lambda: node.attribute.append(_draw_attribute(dice)),
        lambda: setattr(graph.output[0], "name", dice.choice(values)),
        lambda: setattr(graph.input[0], "name", dice.choice(values)),
    ]  # fmt: skip
    dice.choice(changes)()
    return model.SerializeToString()


def _grow(graph: Any, dice: random.Random) -> None:
    """Operators that make more and more of a few numbers, and their sum in every vector."""
    import onnx

    def hold(*numbers: float) -> str:
        whole = all(isinstance(number, int) for number in numbers)
        kind = onnx.TensorProto.INT64 if whole else onnx.TensorProto.FLOAT
        name = f"held_{len(graph.initializer)}"
        graph.initializer.append(onnx.helper.make_tensor(name, kind, [len(numbers)], numbers))
        return name

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"grown_{len(graph.node)}"
        graph.node.append(onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def draw() -> int:
        return int(2 ** (dice.random() * dice.choice((4, 12, 20, 34))))

    size, ids = draw(), graph.input[0].name
    last = graph.output[0].name
    grown = add("Expand", hold(1.0), hold(min(size, 1 << 20)))
    for _ in range(dice.randrange(1, 12)):
        steps: list[Callable[[str], str]] = [
            lambda value: add("Concat", value, value, axis=0),
            lambda value: add("Tile", value, hold(draw())),
            lambda value: add("Pad", value, hold(draw(), draw())),
            lambda value: add("Expand", value, hold(draw(), 1)),
            lambda value: add("Add", value, add("Unsqueeze", value, hold(-1))),
            lambda value: add("MatMul", add("Unsqueeze", value, hold(-1)), add("Unsqueeze", value, hold(-2))),
            lambda value: add("Gather", value, add("ConstantOfShape", hold(draw())), axis=0),
            lambda value: add("Reshape", value, hold(-1)),
            lambda value: add("Mul", value, add("Cast", add("Unsqueeze", ids, hold(-1)), to=1)),
            lambda value: add("Expand", value, add("Shape", ids)),
            lambda value: add("Expand", value, add("Mul", add("Div", add("Shape", ids), hold(draw())), hold(draw()))),
            lambda value: add(
                "Expand", value,
                add("Where", add("Equal", add("Shape", ids), hold(draw())), hold(draw()), add("Shape", ids))),
            lambda value: add("Expand", value, add("Concat", add("Shape", ids), add("Shape", ids), axis=0)),
            lambda value: add("Sin", add("Mul", value, value)),
            lambda _: add("Cast", add("ConstantOfShape", add("Mul", add("Shape", ids), hold(draw()))), to=1),
            lambda _: add("Cast", add("Range", hold(0), hold(draw()), hold(1)), to=1),
            lambda value: add("Einsum", value, value, value, equation="a,b,c->abc"),
        ]  # fmt: skip
        grown = dice.choice(steps)(grown)
    for node in graph.node:
        node.output[:] = ["before" if name == last else name for name in node.output]
    add("Add", "before", add("ReduceSum", grown, keepdims=0))
    graph.node[-1].output[0] = last


def _draw_attribute(dice: random.Random) -> Any:
    import onnx

    value = dice.choice([0, 1, -1, 1 << 40, [1, 0], "a", 0.5])
    return onnx.helper.make_attribute(dice.choice(["axis", "to", "perm", "value"]), value)


def _change_entry(tensor: Any, dice: random.Random) -> None:
    if tensor.external_data:
        entry = dice.choice(tensor.external_data)
        entry.value = dice.choice([entry.value + "0", "0", "64", "-1", "1e3", "family.json", "../x", str(1 << 62)])


def change_family(folder: Path, dice: random.Random) -> None:
    """One to three changes, then the digests as they are now."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        path = dice.choice(sorted(path for path in folder.iterdir() if path.is_file()))
        content = path.read_bytes()
        with contextlib.suppress(Exception):  # what was changed before may not be read any more
            if path.suffix == ".json":
                changed = json.dumps(change_json(json.loads(content), dice)).encode()
            elif path.suffix == ".safetensors":
                changed = change_header(content, dice) if dice.random() < 0.7 else change_bytes(content, dice, 4096)
            elif path.suffix == ".onnx":
                changed = change_graph(content, dice)
            else:
                changed = change_bytes(content, dice)
            path.write_bytes(changed)
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OSError):
        sign(folder)


def sign(folder: Path) -> None:
    """Digests and sizes of what lies there, in whatever the manifest has become."""
    manifest = folder / "family.json"
    data = json.loads(manifest.read_bytes())
    for name, facts in data["files"].items():
        if "/" not in name and (folder / name).is_file():
            content = (folder / name).read_bytes()
            facts.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    manifest.write_text(json.dumps(data), encoding="utf-8")
    for path in (folder / "measurements").glob("*.json"):
        measured = json.loads(path.read_bytes())
        measured["family"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        path.write_text(json.dumps(measured), encoding="utf-8")


def use(folder: Path, command: str) -> str:
    """What readers make of a family, a command of the command line among them: ``works``, ``off`` or ``refused``.

    Raises:
        Exception: anything but an error of matexport's own.
    """
    from matexport import Embedder, load_family, verify_family
    from matexport.cli.main import main
    from matexport.errors import MatexportError

    outcome = "works"
    try:
        if not verify_family(folder, threads=1).passed:
            outcome = "off"
    except MatexportError as error:
        if "\n" in str(error):
            raise ValueError(f"several lines: {error}") from error
        outcome = "refused"
    try:
        family = load_family(folder)
        with Embedder(family, family.profiles[0].name, threads=1) as embedder:
            embedder.embed(["a cat", "the dog sits on a mat " * 9])
    except MatexportError:
        pass
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main([command, str(folder)])
    assert "Traceback" not in said.getvalue(), said.getvalue()
    return outcome


def try_case(seed: int, scratch: Path) -> dict[str, Any]:
    """One case: its outcome, or what went wrong."""
    dice = random.Random(seed)
    folder = scratch / "in" / "family"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(GOLDEN / dice.choice(SCHEMAS), folder)
    (folder / "measurements").mkdir(exist_ok=True)
    change_family(folder, dice)
    signal.alarm(SECONDS)
    try:
        found: dict[str, Any] = {"outcome": use(folder, ("show", "pick")[seed % 2])}
    except HungError:
        found = {"outcome": "hung"}
    except Exception:
        found = {"outcome": "traceback", "reason": traceback.format_exc()[-1500:]}
    finally:
        signal.alarm(0)
    outside = [
        str(path) for path in scratch.rglob("*") if folder not in (path, *path.parents) and path != folder.parent
    ]
    return {"seed": seed, **found, "outside": outside}


def run_chunk(first: int, count: int, sink: Any) -> None:
    """Cases one after the other, each sent as it is known. Runs in a child."""

    def raise_hung(*_: object) -> None:
        raise HungError

    signal.signal(signal.SIGALRM, raise_hung)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with tempfile.TemporaryDirectory(prefix="matexport-fuzz-") as scratch:
        for seed in range(first, first + count):
            sink.send(try_case(seed, Path(scratch) / "case"))
    sink.send({"peak": common.read_peak_bytes()})


@dataclass
class Tally:
    """What came of cases so far; of what must not come, all that reproduces it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[dict[str, Any]] = field(default_factory=list)
    above: int = 0

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values())


def run_cases(first: int, count: int, tally: Tally) -> None:
    """Try cases by their seeds, some in each child, and count what comes of them."""
    context = multiprocessing.get_context("spawn")
    seed = first
    while seed < first + count:
        receive, send = context.Pipe(duplex=False)
        size = min(CHUNK, first + count - seed)
        child = context.Process(target=run_chunk, args=(seed, size, send), daemon=True)
        child.start()
        send.close()
        done = 0
        while receive.poll(60 if done else 300):
            try:
                case = receive.recv()
            except EOFError:
                break
            if "peak" in case:
                tally.above += case["peak"] > BYTES
                break
            done += 1
            tally.outcomes[case["outcome"]] += 1
            if case["outcome"] in ("traceback", "hung") or case["outside"]:
                tally.wrong.append(case)
        if done < size:
            tally.outcomes["died"] += 1
            tally.wrong.append({"seed": seed + done, "outcome": "died"})
            child.kill()
            done += 1
        child.join()
        seed += done


def run_beside(first: int, count: int, processes: int) -> Tally:
    """The same, by several processes at a time. What is interrupted says how far it came."""
    step = -(-count // processes)
    tallies = [Tally() for _ in range(0, count, step)]
    threads = [
        Thread(target=run_cases, args=(start, min(step, first + count - start), tally), daemon=True)
        for start, tally in zip(range(first, first + count, step), tallies, strict=True)
    ]
    for number in (signal.SIGINT, signal.SIGTERM):  # the first is ignored by what a shell starts in the background
        signal.signal(number, signal.default_int_handler)
    for thread in threads:
        thread.start()
    with contextlib.suppress(KeyboardInterrupt):
        while any(thread.is_alive() for thread in threads):
            time.sleep(30)
            common.say(
                f"{sum(tally.cases for tally in tallies)} of {count}: {[len(tally.wrong) for tally in tallies]} wrong"
            )
    total = Tally()
    for tally in tallies:
        total.outcomes.update(tally.outcomes)
        total.wrong += tally.wrong
        total.above += tally.above
    return total


def add_earlier(found: Tally, path: Path) -> list[int]:
    """Add what an earlier run counted, and give the seeds that it began with."""
    document = json.loads(path.read_text(encoding="utf-8"))
    settings = document["settings"]
    found.outcomes.update(document["measured"]["outcomes"])
    found.wrong.extend(document["measured"]["wrong"])
    found.above += int(next(bar["measured"] for bar in document["bars"] if "above 1 GB" in bar["bar"]))
    return list(settings.get("seeds", [settings.get("seed", 0)]))


def main() -> int:
    parser = common.make_parser("fuzz_families", __doc__, repeats=1)
    parser.add_argument("--cases", type=int, default=100_000, help="families to change")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    parser.add_argument("--processes", type=int, default=1, help="at a time")
    parser.add_argument("--more", action="store_true", help="add to what the result file counts; give another seed")
    options: argparse.Namespace = parser.parse_args()
    count = 200 if options.quick else options.cases
    found = run_beside(options.seed, count, options.processes)
    seeds = [options.seed]
    if options.more:
        seeds = add_earlier(found, options.out) + seeds
    values = (
        found.cases,
        found.outcomes["traceback"],
        found.outcomes["died"] + found.outcomes["hung"],
        found.above,
        sum(bool(case.get("outside")) for case in found.wrong),
    )
    measured = {"outcomes": dict(found.outcomes), "wrong": found.wrong[:50]}
    settings = {"cases": found.cases, "seeds": seeds, "processes": options.processes}
    report = common.Report(list(zip(BARS, values, strict=True)), measured, settings)
    return common.finish("fuzz_families", options, report)


if __name__ == "__main__":
    sys.exit(main())
