"""matexport: one trained Matryoshka encoder in, a family of verified ONNX sub-models out.

The light half (everything named here) needs numpy, onnxruntime and tokenizers; `matexport.export` makes families and
needs the ``[export]`` extra. Names are imported when they are first used, so that ``import matexport`` costs
milliseconds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from matexport.version import __version__

if TYPE_CHECKING:
    from matexport.errors import MatexportError
    from matexport.family.manifest import Family, load_family
    from matexport.family.measurements.records import (
        load_bench,
        load_measurement,
        load_quality,
        record_bench,
        record_quality,
    )
    from matexport.family.summary import describe_profiles
    from matexport.family.survey import Survey, survey_family
    from matexport.host import read_host
    from matexport.hub.pull import Part, pull_family, pull_pack
    from matexport.hub.push import PushTarget, push_family
    from matexport.io.jobs import load_job
    from matexport.measure.bench import BenchPlan, bench_family
    from matexport.measure.evaluate import evaluate_family
    from matexport.measure.tasks import load_retrieval, load_sts, load_unlabelled
    from matexport.pack.write import pack_profile
    from matexport.pick.choose import Choice, choose
    from matexport.pick.device import Device, load_device
    from matexport.pick.limits import Budget
    from matexport.report.findings import gather_findings
    from matexport.report.write import write_report
    from matexport.runtime.corpus.ray import CorpusJob, embed_corpus
    from matexport.runtime.embedder import Embedder
    from matexport.runtime.sessions import Sessions
    from matexport.spec.measured import Bench
    from matexport.verify.drift import Drift, compare_families
    from matexport.verify.judge import verify_family
    from matexport.verify.junit import write_junit
    from matexport.verify.verdict import Verification, record_measurement

# onnxruntime's Linux wheels report usage from 1.29 on; only this, set before its import, turns it off for good.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: Where each public name lives. The imports above say the same to a type checker; a test holds the two together.
_HOMES = {
    "MatexportError": "matexport.errors",
    "Family": "matexport.family.manifest",
    "load_family": "matexport.family.manifest",
    "load_bench": "matexport.family.measurements.records",
    "load_measurement": "matexport.family.measurements.records",
    "load_quality": "matexport.family.measurements.records",
    "record_bench": "matexport.family.measurements.records",
    "record_quality": "matexport.family.measurements.records",
    "describe_profiles": "matexport.family.summary",
    "Survey": "matexport.family.survey",
    "survey_family": "matexport.family.survey",
    "read_host": "matexport.host",
    "Part": "matexport.hub.pull",
    "pull_family": "matexport.hub.pull",
    "pull_pack": "matexport.hub.pull",
    "PushTarget": "matexport.hub.push",
    "push_family": "matexport.hub.push",
    "load_job": "matexport.io.jobs",
    "BenchPlan": "matexport.measure.bench",
    "bench_family": "matexport.measure.bench",
    "evaluate_family": "matexport.measure.evaluate",
    "load_retrieval": "matexport.measure.tasks",
    "load_sts": "matexport.measure.tasks",
    "load_unlabelled": "matexport.measure.tasks",
    "pack_profile": "matexport.pack.write",
    "Choice": "matexport.pick.choose",
    "choose": "matexport.pick.choose",
    "Device": "matexport.pick.device",
    "load_device": "matexport.pick.device",
    "Budget": "matexport.pick.limits",
    "gather_findings": "matexport.report.findings",
    "write_report": "matexport.report.write",
    "CorpusJob": "matexport.runtime.corpus.ray",
    "embed_corpus": "matexport.runtime.corpus.ray",
    "Embedder": "matexport.runtime.embedder",
    "Sessions": "matexport.runtime.sessions",
    "Bench": "matexport.spec.measured",
    "Drift": "matexport.verify.drift",
    "compare_families": "matexport.verify.drift",
    "verify_family": "matexport.verify.judge",
    "write_junit": "matexport.verify.junit",
    "Verification": "matexport.verify.verdict",
    "record_measurement": "matexport.verify.verdict",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'matexport' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
