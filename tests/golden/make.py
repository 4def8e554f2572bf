"""How the frozen families beside this file were made: `python tests/golden/make.py OUT`. Run once per schema.

They are never made again: what is frozen is what an older matexport wrote, and that must verify forever.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parents import make_parent

from matexport.build import export_family
from matexport.spec import ExportJob, ParentSource, Point


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_parent(Path(folder) / "parent", "bert", pooling="cls", dense=[16], prompts={"query": "a cat: "})
        probes = Path(folder) / "probes.jsonl"
        texts = ['{"text": "the cat sits on the mat"}', '{"text": "a dog", "prompt": "query"}', '{"text": "red snow!"}']
        probes.write_text("\n".join(texts))
        points = (Point(1, 8), Point(2, 16), Point(3, 16))
        export_family(ExportJob(ParentSource("parent"), points, probes=probes, base=Path(folder)), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
