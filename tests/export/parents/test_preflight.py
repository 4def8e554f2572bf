"""What is refused before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from parents import BLOCKS, WIDTH, edit_json, make_parent

from matexport.errors import MatexportError
from matexport.export.parents.preflight import locate
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point

JOB = '[parent]\nsource = "{source}"\n{more}[points]\nlayers = [{layers}]\ndims = [{dims}]\n'


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "./nowhere"}, "is not a directory"),
        ({"more": f'sha256 = "{"0" * 64}"\n'}, "the job pins 0000"),
        ({"layers": BLOCKS + 1}, f"layers={BLOCKS + 1} was asked"),
        ({"layers": 0}, f"layers=0 was asked; .* has {BLOCKS} blocks: ask for 1 to {BLOCKS}"),
        ({"dims": WIDTH + 1}, f"dim={WIDTH + 1} was asked"),
        ({"more": 'route = "query"\n'}, "has no Router: leave it out"),
    ],
)
def test_cheap_mistakes_are_named_without_torch(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    """In a process that would fail if torch, transformers or sentence-transformers were imported."""
    make_parent(tmp_path / "parent")
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(**{"source": "parent", "more": "", "layers": 1, "dims": 8} | changes), encoding="utf-8")
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'sentence_transformers'): sys.modules[name] = None\n"
        "import importlib.util\n"
        "importlib.util.find_spec = lambda name, *rest: object()\n"
        "import matexport.cli.main\n"
        f"sys.exit(matexport.cli.main.main(['export', {str(job)!r}, '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1
    import re

    assert re.search(words, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def _shard(root: Path) -> None:
    (root / "model.safetensors").rename(root / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _name_weights_elsewhere(root: Path) -> None:
    (root / "model.safetensors").rename(root / "model.safetensors.index.json")
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    (root.parent / "secret.safetensors").write_bytes(b"")


def _list_weights(root: Path) -> None:
    (root / "model.safetensors").rename(root / "model.safetensors.index.json")
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": ["model.safetensors"]}))


def _number_weights(root: Path) -> None:
    (root / "model.safetensors").rename(root / "model.safetensors.index.json")
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 7}}))


def _list_configuration(root: Path) -> None:
    (root / "config.json").write_text("[]")


def _name_one_file_elsewhere(root: Path) -> None:
    edit_json(root / "config.json", lambda config: config.update(transformers_weights="../secret.safetensors"))
    (root.parent / "secret.safetensors").write_bytes(b"")


def _nest_deeply(root: Path) -> None:
    (root / "modules.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_shard, r"names 2 files of weights; missing: model-00002-of-00002.safetensors"),
        (_name_weights_elsewhere, "outside its folder"),
        (_name_one_file_elsewhere, "which is not there"),
        (_list_weights, "names 0 files of weights; missing: all"),
        (_number_weights, "outside its folder"),
        (_list_configuration, "config.json holds no JSON object"),
        (_nest_deeply, "cannot read .*modules.json"),
    ],
)
def test_what_is_wrong_with_files_is_named(spoil: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    root = make_parent(tmp_path / "parent")
    spoil(root)
    with pytest.raises(MatexportError, match=words):
        locate(ExportJob(ParentSource(str(root)), (Point(1, 8),)))


def test_a_configuration_that_does_not_plainly_say_its_size_is_left_to_the_model(tmp_path: Path) -> None:
    root = make_parent(tmp_path / "parent")
    edit_json(root / "config.json", lambda config: config.pop("num_hidden_layers"))
    assert locate(ExportJob(ParentSource(str(root)), (Point(99, 8),))).weights
    edit_json(root / "sentence_bert_config.json", lambda told: told.update(config_args={"num_hidden_layers": 2}))
    with pytest.raises(MatexportError, match="has 2 blocks"):
        locate(ExportJob(ParentSource(str(root)), (Point(3, 8),)))
