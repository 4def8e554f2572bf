"""The parent with fewer blocks, written for torch: read with transformers alone, and pooled by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Run
from conftest import TEXTS
from safetensors.torch import load_file, save_file

from matexport import load_family
from matexport.errors import DestinationError, ParityError, RequestError
from matexport.export.parents.folder import write
from matexport.export.parents.folder.write import write_torch_folder
from matexport.spec.readout import FinalNorm

NAME, LAYERS, DIM = "L01-D008-fp32", 1, 8
#: No shorter than the parent's limit.
LONG = " ".join(["the red cat sits on a mat in the snow"] * 30)


def encode(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    vectors: np.ndarray = SentenceTransformer(str(folder), device="cpu").encode(texts)
    return vectors


def test_it_gives_the_parents_exit(exported: Path, parent: Path, tmp_path: Path) -> None:
    """Mean of the attended states, cut, scaled; the states are those of the parent's own model after one block."""
    from transformers import AutoModel, AutoTokenizer

    parity = write_torch_folder(exported, NAME, tmp_path / "out", parent=str(parent))
    assert parity.max_abs <= 1e-6
    tokenizer, whole = AutoTokenizer.from_pretrained(parent), AutoModel.from_pretrained(parent).eval()
    cut = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert len(cut.encoder.layer) == cut.config.num_hidden_layers == LAYERS
    expected = []
    limit = load_family(exported).text.max_tokens
    for text in [*TEXTS, LONG]:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)
        with torch.inference_mode():
            state = whole(**given, output_hidden_states=True).hidden_states[LAYERS]
            torch.testing.assert_close(cut(**given).last_hidden_state, state, atol=1e-6, rtol=0)
        vector = state[0].mean(0)[:DIM]
        expected.append((vector / vector.norm()).numpy())
    found = encode(tmp_path / "out", [*TEXTS, LONG])
    assert found.shape == (len(TEXTS) + 1, DIM)
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)


def test_its_modules_are_those_that_every_version_reads(exported: Path, parent: Path, tmp_path: Path) -> None:
    write_torch_folder(exported, NAME[:8], tmp_path / "out", parent=str(parent))
    modules = json.loads((tmp_path / "out" / "modules.json").read_text(encoding="utf-8"))
    assert [(module["path"], module["type"].rpartition(".")[2]) for module in modules] == [
        ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"),
    ]  # fmt: skip
    assert all(module["type"].startswith("sentence_transformers.models.") for module in modules)
    weight = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")["linear.weight"]
    torch.testing.assert_close(weight, torch.eye(weight.shape[1])[:DIM])


def test_its_card_has_code_that_runs_and_licences_go_along(
    family: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (family / "LICENSE").write_bytes(b"terms")
    parity = write_torch_folder(family, NAME, tmp_path / "out", parent=str(parent))
    assert (tmp_path / "out" / "LICENSE").read_bytes() == b"terms"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlibrary_name: "sentence-transformers"\n')
    for words in ("# out\n", "1 of 3 blocks, and the first 8 of", f"at most {parity.max_abs:.1e}"):
        assert words in card
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    ran: dict[str, Any] = {}
    exec(code, ran)
    np.testing.assert_array_equal(ran["vectors"], encode(tmp_path / "out", ["a text", "another text"]))


def test_it_can_be_trained(exported: Path, parent: Path, tmp_path: Path) -> None:
    """Gradients reach the one block, and a step changes its vectors."""
    from sentence_transformers import SentenceTransformer

    write_torch_folder(exported, NAME, tmp_path / "out", parent=str(parent))
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu").train()
    before = encode(tmp_path / "out", TEXTS)
    model(model.preprocess(TEXTS))["sentence_embedding"].sum().backward()
    assert all(parameter.grad is not None for parameter in model[0].model.encoder.layer.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert np.abs(model.eval().encode(TEXTS) - before).max() > 1e-4


def test_a_spoilt_weight_is_noticed(
    exported: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(folder: Path, *given: Any) -> None:
        save(folder, *given)
        tensors = load_file(folder / "model.safetensors")
        tensors["encoder.layer.0.output.LayerNorm.weight"] *= 1.001
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    save = write._save
    monkeypatch.setattr(write, "_save", spoil)
    with pytest.raises(ParityError, match="on what was written, is off the parent's own vectors: max abs difference"):
        write_torch_folder(exported, NAME, tmp_path / "out", parent=str(parent))
    assert not (tmp_path / "out").exists()


def test_a_warning_is_heard(exported: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the libraries were told to be quiet, as the command line tells them."""
    import transformers

    def add(folder: Path, *given: Any) -> None:
        save(folder, *given)
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {"odd.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})

    save, level = write._save, transformers.utils.logging.get_verbosity()
    monkeypatch.setattr(write, "_save", add)
    transformers.utils.logging.set_verbosity_error()
    try:
        with pytest.raises(ParityError, match=r"warns of the folder: .*odd.weight"):
            write_torch_folder(exported, NAME, tmp_path / "out", parent=str(parent))
    finally:
        transformers.utils.logging.set_verbosity(level)


def test_each_stage_counts_its_own_steps(exported: Path, parent: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    write_torch_folder(exported, NAME, tmp_path / "out", parent=str(parent), progress=lambda *it: told.append(it))
    assert told == [(stage, done, 1) for stage in ("load the parent", "load the folder") for done in (0, 1)]


def test_a_parent_that_is_not_where_the_family_says(exported: Path, tmp_path: Path, run: Run) -> None:
    run("pack", exported, NAME, tmp_path / "out", "--for", "torch").complains(
        f"the family says that it was made of {load_family(exported).facts.parent.source}",
        "say where that is by --parent",
    )
    result = run("pack", exported, NAME, tmp_path / "out", "--for", "torch", "--parent", tmp_path / "nowhere")
    result.complains(str(tmp_path / "nowhere"))
    assert "--parent" not in result.err


def test_refusals(exported: Path, left_exported: Path, parent: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(DestinationError, match="exists; choose another"):
        write_torch_folder(exported, NAME, tmp_path / "full", parent=str(parent))
    run("pack", exported, NAME, tmp_path / "o", "--for", "torch", "--parent", tmp_path / "none").complains("none")
    run("pack", exported, NAME, tmp_path / "o", "--for", "torch", "--overwrite").complains("writes a folder that is no")
    run("pack", exported, "L09-D016", tmp_path / "o", "--for", "torch").complains("'L09-D016' was asked")
    assert not (tmp_path / "o").exists()


def test_a_final_norm_that_is_left_out(tmp_path: Path, left_exported: Path) -> None:
    """No class of transformers leaves it out; of the family itself the norm is kept, so its manifest says otherwise."""
    from msgspec.structs import replace

    family = load_family(left_exported)
    readout = replace(family.facts.readout, final_norm=FinalNorm.DROP)
    dropped = type(family)(family.path, replace(family.facts, readout=readout), family.digest)
    with pytest.raises(RequestError, match="is read without the parent's final norm"):
        write_torch_folder(dropped, family.profiles[0].name, tmp_path / "out")
