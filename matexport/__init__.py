"""matexport: one trained Matryoshka encoder in, a family of verified ONNX sub-models out.

The light half (everything named here) needs numpy, onnxruntime and tokenizers; `matexport.build` makes families and
needs the ``[build]`` extra. Names are imported when they are first used, so that ``import matexport`` costs
milliseconds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from matexport.version import __version__

if TYPE_CHECKING:
    from matexport.bench import BenchPlan, bench_family
    from matexport.devices import Device, load_device
    from matexport.errors import MatexportError
    from matexport.evaluate import evaluate_family
    from matexport.family.manifest import Family, load_family
    from matexport.family.measurements import load_bench, load_measurement, load_quality, record_bench, record_quality
    from matexport.family.summary import describe_profiles
    from matexport.family.survey import Survey, survey_family
    from matexport.findings import gather_findings
    from matexport.host import read_host
    from matexport.io.jobs import load_job
    from matexport.pack import pack_profile
    from matexport.pick import Choice, choose
    from matexport.report import write_report
    from matexport.runtime.corpus.ray import embed_corpus
    from matexport.runtime.embedder import Embedder, Sessions
    from matexport.spec.job import Budget
    from matexport.spec.measured import Bench
    from matexport.tasks import load_retrieval, load_sts, load_unlabelled
    from matexport.verify.drift import Drift, compare_families
    from matexport.verify.judge import verify_family
    from matexport.verify.junit import write_junit
    from matexport.verify.verdict import Verification, record_measurement

# onnxruntime's Linux wheels report usage from 1.29 on; only this, set before its import, turns it off for good.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: Where each public name lives. The imports above say the same to a type checker; a test holds the two together.
_HOMES = {
    "BenchPlan": "matexport.bench",
    "bench_family": "matexport.bench",
    "Device": "matexport.devices",
    "load_device": "matexport.devices",
    "MatexportError": "matexport.errors",
    "evaluate_family": "matexport.evaluate",
    "Family": "matexport.family.manifest",
    "load_family": "matexport.family.manifest",
    "load_bench": "matexport.family.measurements",
    "load_measurement": "matexport.family.measurements",
    "load_quality": "matexport.family.measurements",
    "record_bench": "matexport.family.measurements",
    "record_quality": "matexport.family.measurements",
    "describe_profiles": "matexport.family.summary",
    "Survey": "matexport.family.survey",
    "survey_family": "matexport.family.survey",
    "gather_findings": "matexport.findings",
    "read_host": "matexport.host",
    "load_job": "matexport.io.jobs",
    "pack_profile": "matexport.pack",
    "Choice": "matexport.pick",
    "choose": "matexport.pick",
    "write_report": "matexport.report",
    "embed_corpus": "matexport.runtime.corpus.ray",
    "Embedder": "matexport.runtime.embedder",
    "Sessions": "matexport.runtime.embedder",
    "Budget": "matexport.spec.job",
    "Bench": "matexport.spec.measured",
    "load_retrieval": "matexport.tasks",
    "load_sts": "matexport.tasks",
    "load_unlabelled": "matexport.tasks",
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
