"""matexport: one trained Matryoshka encoder in, a family of verified ONNX sub-models out.

The light half (everything named here) needs numpy, onnxruntime and tokenizers; `matexport.build` makes families and
needs the ``[build]`` extra. Names are imported when they are first used, so that ``import matexport`` costs
milliseconds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matexport.bench import BenchPlan, bench_family
    from matexport.bulk import embed_corpus
    from matexport.devices import Device, load_device
    from matexport.drift import Drift, compare_families
    from matexport.embed import Embedder, Sessions
    from matexport.errors import MatexportError
    from matexport.evaluate import evaluate_family
    from matexport.findings import gather_findings
    from matexport.host import read_host
    from matexport.junit import write_junit
    from matexport.manifest import Family, load_family
    from matexport.pack import pack_profile
    from matexport.pick import Choice, choose
    from matexport.profiles import load_job
    from matexport.quality import load_quality, record_quality
    from matexport.report import write_report
    from matexport.spec import Budget
    from matexport.survey import Survey, survey_family
    from matexport.tables import describe_profiles
    from matexport.tasks import load_retrieval, load_sts, load_unlabelled
    from matexport.timings import Bench, load_bench, record_bench
    from matexport.verify import Verification, load_measurement, record_measurement, verify_family

__version__ = "0.1.0"

# onnxruntime's Linux wheels report usage from 1.29 on; only this, set before its import, turns it off for good.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Bench": "matexport.timings",
    "BenchPlan": "matexport.bench",
    "bench_family": "matexport.bench",
    "Drift": "matexport.drift",
    "compare_families": "matexport.drift",
    "embed_corpus": "matexport.bulk",
    "load_bench": "matexport.timings",
    "read_host": "matexport.host",
    "record_bench": "matexport.timings",
    "Budget": "matexport.spec",
    "Choice": "matexport.pick",
    "Device": "matexport.devices",
    "Embedder": "matexport.embed",
    "Family": "matexport.manifest",
    "MatexportError": "matexport.errors",
    "Sessions": "matexport.embed",
    "Survey": "matexport.survey",
    "Verification": "matexport.verify",
    "choose": "matexport.pick",
    "describe_profiles": "matexport.tables",
    "load_device": "matexport.devices",
    "evaluate_family": "matexport.evaluate",
    "gather_findings": "matexport.findings",
    "load_quality": "matexport.quality",
    "load_retrieval": "matexport.tasks",
    "load_sts": "matexport.tasks",
    "load_unlabelled": "matexport.tasks",
    "record_quality": "matexport.quality",
    "load_family": "matexport.manifest",
    "load_job": "matexport.profiles",
    "load_measurement": "matexport.verify",
    "pack_profile": "matexport.pack",
    "record_measurement": "matexport.verify",
    "survey_family": "matexport.survey",
    "verify_family": "matexport.verify",
    "write_junit": "matexport.junit",
    "write_report": "matexport.report",
}

__all__ = [
    "Bench",
    "BenchPlan",
    "Budget",
    "Choice",
    "Device",
    "Drift",
    "Embedder",
    "Family",
    "MatexportError",
    "Sessions",
    "Survey",
    "Verification",
    "__version__",
    "bench_family",
    "choose",
    "compare_families",
    "describe_profiles",
    "embed_corpus",
    "evaluate_family",
    "gather_findings",
    "load_bench",
    "load_device",
    "load_family",
    "load_job",
    "load_measurement",
    "load_quality",
    "load_retrieval",
    "load_sts",
    "load_unlabelled",
    "pack_profile",
    "read_host",
    "record_bench",
    "record_measurement",
    "record_quality",
    "survey_family",
    "verify_family",
    "write_junit",
    "write_report",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'matexport' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
