"""Readers and recorders of a family that is replaced by another all the time: what do they get?

    python benchmarks/replaced_families.py [--opens N] [--records N]

Two families have the same names and sizes and other weights, and change places in one step, as an export replaces a
family, as fast as the system can. An `Embedder` that opens must give the vectors of one of both, or say that the family
is not what its manifest says; a measurement that is recorded must lie with the family it was measured of.
`tests/family/test_replaced.py` does the same some hundred times. Linux alone has the call for the exchange.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import common
from fuzz_families import GOLDEN, sign

PROFILE = "L01-D008-fp32"
TEXTS = ["the cat sits", "a dog"]
WEIGHTS = "weights.fp32.safetensors"
BARS = (
    common.Bar("opens while it is replaced", 2_000, at_least=True),
    common.Bar("vectors of neither family, in these opens", 0),
    common.Bar("records while it is replaced", 200, at_least=True),
    common.Bar("measurements under another digest, in these records", 0),
)


class Counted(NamedTuple):
    """What came of the attempts."""

    done: int
    refused: int
    wrong: int


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Two families of one parent but for its weights: same names, same sizes, other vectors."""
    import numpy as np

    from matexport.family.weights_file import read_header

    first, second = (Path(shutil.copytree(GOLDEN / "schema1", folder / name)) for name in ("family", "other"))
    with (second / WEIGHTS).open("r+b") as file:
        for entry in read_header(second / WEIGHTS).entries:
            if entry.dtype == "F32" and entry.nbytes > 1024:
                file.seek(entry.offset)
                file.write(np.random.default_rng(0).standard_normal(entry.shape).astype("<f4").tobytes())
    sign(second)
    return first, second


@contextmanager
def exchanging(first: Path, second: Path) -> Iterator[Callable[[], int]]:
    """The two change places all the time, each time in one step. Gives how often they did."""
    libc, stop, times = ctypes.CDLL(None, use_errno=True), Event(), [0]

    def exchange() -> None:
        paths = os.fsencode(first), os.fsencode(second)
        while not stop.is_set():
            if libc.renameat2(-100, paths[0], -100, paths[1], 2) != 0:
                raise OSError(ctypes.get_errno(), "renameat2")
            times[0] += 1

    thread = Thread(target=exchange)
    thread.start()
    try:
        yield lambda: times[0]
    finally:
        stop.set()
        thread.join()


def read_replaced(pair: tuple[Path, Path], opens: int) -> Counted:
    """Open and embed so often, whether it is refused or not, and at least once to the end."""
    import numpy as np

    from matexport import Embedder
    from matexport.errors import FamilyError

    expected = [Embedder(path, PROFILE).embed(TEXTS) for path in pair]
    if np.abs(expected[0] - expected[1]).max() < 0.1:
        raise SystemExit("the two families give the same vectors: nothing could be told")
    done = refused = wrong = 0
    with exchanging(*pair) as count:
        while done + refused < opens or not done or count() < opens:
            try:
                with Embedder(pair[0], PROFILE, threads=1) as embedder:
                    vectors = embedder.embed(TEXTS)
            except FamilyError:
                refused += 1
                continue
            done += 1
            wrong += int(min(np.abs(vectors - other).max() for other in expected) > 1e-5)
    return Counted(done, refused, wrong)


def record_replaced(pair: tuple[Path, Path], records: int) -> Counted:
    """Verify and record so often. A record is told by a number that only one of the families has."""
    from matexport import load_family, verify_family
    from matexport.errors import FamilyError
    from matexport.family.measurements.records import load_measurements
    from matexport.verify.verdict import record_measurement

    numbers = {}
    for path in pair:
        family = load_family(path)
        numbers[family.digest] = verify_family(path).measured.parity[PROFILE]["single"].max_abs
    if len(set(numbers.values())) < 2:
        raise SystemExit("the two families measure the same: nothing could be told")
    done = refused = wrong = 0
    with exchanging(*pair):
        while done + refused < records or not done:
            try:
                family = load_family(pair[0])
                record_measurement(family, verify_family(pair[0]))
            except (FamilyError, OSError):
                refused += 1
            else:
                done += 1
    found = 0
    for path in pair:
        family = load_family(path)
        for host in load_measurements(family).hosts:
            found += 1
            wrong += host.parity is None or host.parity.parity[PROFILE]["single"].max_abs != numbers[family.digest]
    if not found:
        raise SystemExit("nothing was recorded")
    return Counted(done, refused, wrong)


def main() -> int:
    parser = common.make_parser("replaced_families", __doc__, repeats=1)
    parser.add_argument("--opens", type=int, default=2_000, help="how often a family is opened")
    parser.add_argument("--records", type=int, default=200, help="how often one is verified and recorded")
    options: argparse.Namespace = parser.parse_args()
    opens, records = (100, 20) if options.quick else (options.opens, options.records)
    with tempfile.TemporaryDirectory(prefix="matexport-replaced-") as folder:
        read = read_replaced(make_pair(Path(folder) / "read"), opens)
        recorded = record_replaced(make_pair(Path(folder) / "recorded"), records)
    values = (read.done + read.refused, read.wrong, recorded.done + recorded.refused, recorded.wrong)
    measured = {"read": read._asdict(), "recorded": recorded._asdict()}
    report = common.Report(
        list(zip(BARS, values, strict=True)), measured, {"opens": opens, "records": records, "profile": PROFILE}
    )
    return common.finish("replaced_families", options, report)


if __name__ == "__main__":
    sys.exit(main())
