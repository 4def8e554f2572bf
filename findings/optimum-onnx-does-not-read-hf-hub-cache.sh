#!/usr/bin/env bash
# optimum-onnx 0.1.0: a model in the cache that HF_HUB_CACHE names is not found; HF_HOME is heeded.
#
# Expected: ORTModel.from_pretrained(repository) looks where huggingface_hub and transformers look.
# What happens: its default for cache_dir is huggingface_hub.constants.HUGGINGFACE_HUB_CACHE, which follows the older
#   variable HUGGINGFACE_HUB_CACHE and HF_HOME alone. Offline it ends in LocalEntryNotFoundError for a model that
#   transformers' AutoTokenizer has just loaded from the same cache.
#
# Output seen:
#   optimum-onnx 0.1.0 looks in elsewhere: False
#   huggingface_hub looks in elsewhere: True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optimum-onnx==0.1.0 onnxruntime==1.32.0 torch==2.13.0
HF_HUB_CACHE="$work/elsewhere" "$work/venv/bin/python" -W ignore - "$work/elsewhere" <<'PY'
import inspect
import sys
from importlib.metadata import version

from huggingface_hub import constants
from optimum.onnxruntime import ORTModelForFeatureExtraction

looks = inspect.signature(ORTModelForFeatureExtraction._from_pretrained).parameters["cache_dir"].default
print("optimum-onnx", version("optimum-onnx"), "looks in elsewhere:", looks == sys.argv[1])
print("huggingface_hub looks in elsewhere:", constants.HF_HUB_CACHE == sys.argv[1])
PY
