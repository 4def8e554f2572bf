"""How the frozen families beside this file were made: `python tests/golden/make.py schema2 OUT`, and `measurements`
taken out. Run once per schema, by the matexport that wrote that schema.

They are never made again: what is frozen is what an older matexport wrote, and that must verify forever.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec
from conftest import write_texts
from parents import calm, edit_json, make_parent

from matexport.export import export_family
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision

PROBES = ['{"text": "the cat sits on the mat"}', '{"text": "a dog", "prompt": "query"}', '{"text": "red snow!"}']
#: From schema 4 on.
TASK_PROBES = ['{"text": "the cat sits on the mat and the dog runs in the snow", "task": "query"}']
PROMPTS = {"query": "a cat: "}


def make_schema1(folder: Path) -> ExportJob:
    """fp32 alone."""
    make_parent(folder / "parent", "bert", pooling="cls", dense=[16], prompts=PROMPTS)
    return ExportJob(ParentSource("parent"), (Point(1, 8), Point(2, 16), Point(3, 16)))


def make_schema2(folder: Path) -> ExportJob:
    """fp32 and int8, each with every output encoding. The table has 64 KiB, so that it is quantized as well."""
    config = {"vocab_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 48}
    make_parent(folder / "parent", "bert", pooling="mean", prompts=PROMPTS, config=config, change=calm)
    return ExportJob(
        ParentSource("parent"),
        (Point(1, 20),),
        precisions=(Precision.FP32, Precision.INT8),
        encodings=tuple(Encoding),
        calibration=write_texts(folder / "texts.txt"),
    )


def make_schema3(folder: Path) -> ExportJob:
    """fp32 and int8 with a graph of all exits each, and the trained points."""
    job = make_schema2(folder)
    points = (Point(1, 12), Point(1, 20), Point(2, 20))
    return msgspec.structs.replace(job, points=points, encodings=(Encoding.FLOAT32,), trained=points[-1:])


def make_schema4(folder: Path) -> ExportJob:
    """The judge, the parent's token ids, and what asks for tokens: tasks, texts cut on the left, unpooled prompts."""
    config = {"vocab_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 48}
    parent = make_parent(folder / "parent", "bert", pooling="mean", prompts=PROMPTS, config=config)
    edit_json(parent / "1_Pooling" / "config.json", lambda pooling: pooling.update(include_prompt=False))
    edit_json(parent / "tokenizer_config.json", lambda tokenizer: tokenizer.update(truncation_side="left"))
    edit_json(parent / "sentence_bert_config.json", lambda settings: settings.update(query_length=9))
    return ExportJob(ParentSource("parent"), (Point(1, 20), Point(2, 20)))


def main(schema: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make = {"schema1": make_schema1, "schema2": make_schema2, "schema3": make_schema3, "schema4": make_schema4}
        job = make[schema](folder)
        probes = folder / "probes.jsonl"
        probes.write_text("\n".join(PROBES if schema < "schema4" else PROBES + TASK_PROBES))
        export_family(msgspec.structs.replace(job, probes=probes, base=folder), out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
