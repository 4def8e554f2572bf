#!/usr/bin/env bash
# transformers 5.23.0: an RGBA file gives other pixels by its path than as the picture that Pillow opens of it.
#
# Expected: an image processor prepares the same image whether it is given the path of a PNG file with transparency or
#   the picture that PIL.Image.open gives of that very file.
# What happens: a path goes through `load_image`, which converts to RGB and so drops the alpha channel: what lies behind
#   transparency shows. A picture goes to the processor with its mode, and with do_convert_rgb it is laid on white. Where
#   a model's users pass pictures and its indexer passes paths, the two sides embed different images. No warning.
#
# Output seen (the file is red at alpha 0, which no viewer shows):
#   transformers 5.23.0
#   by its path: [254, 0, 0]; as a picture: [255, 255, 255]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 pillow==13.0.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>messages.txt <<'PY' || { cat messages.txt; exit 1; }
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil

print("transformers", transformers.__version__)
Image.new("RGBA", (32, 32), (254, 0, 0, 0)).save("clear.png")
processor = CLIPImageProcessorPil(
    size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_normalize=False, do_rescale=False
)
seen = []
for given in ("clear.png", Image.open("clear.png")):
    pixels = processor(images=given, return_tensors="np")["pixel_values"][0]
    seen.append([int(channel[8, 8]) for channel in pixels])
path, picture = seen
print(f"by its path: {path}; as a picture: {picture}")
assert path == [254, 0, 0] and picture == [255, 255, 255], "behaviour changed"
PY
