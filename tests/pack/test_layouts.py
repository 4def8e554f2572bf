"""Folders for other consumers: read here as they would, with onnxruntime, tokenizers and json, and nothing of ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from commandline import Run
from conftest import TEXTS
from forge import edit_manifest, reseal
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from matexport import Embedder, load_family, pack_profile, verify_family
from matexport.consumers import files
from matexport.consumers.layouts import ALL, LAYOUTS, SINGLE_FILE, TORCH
from matexport.errors import DestinationError, FamilyError, ParityError, RequestError
from matexport.family.guard import inside
from matexport.pack import graph, write
from matexport.pack.write import pack_single_file

GOLDEN = Path(__file__).parents[1] / "golden"
#: Mean pooling, up to 48 tokens, a prompt; two precisions at each point.
SMALL, POINT, DIM = GOLDEN / "schema3", "L01-D012", 12
FP32, INT8 = f"{POINT}-fp32", f"{POINT}-int8"
LONG = " ".join(["the red cat sits on a mat in the snow"] * 20)
Vectors = NDArray[np.float32]


def read_as_stranger(folder: Path, graph: str, texts: list[str]) -> dict[str, Vectors]:
    """Every output, by name; where texts are cut and how rows are padded is said by tokenizer.json alone."""
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    session = onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    feeds = {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
        "token_type_ids": np.array([row.type_ids for row in rows]),
    }
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True)) | {"mask": feeds["attention_mask"]}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A point in both precisions, for all."""
    return pack_profile(SMALL, POINT, tmp_path_factory.mktemp("packs") / "both").path


@pytest.mark.parametrize("name", [FP32, INT8])
def test_every_way_of_pooling_gives_the_vector(name: str, tmp_path: Path) -> None:
    """Long and empty texts among them."""
    texts = [*TEXTS, "", LONG]
    folder = pack_profile(SMALL, name, tmp_path / "pack").path
    expected = Embedder(SMALL, name).embed(texts, prompt="")
    quantized = [] if name == FP32 else ["onnx/model_quantized.onnx"]
    for graph_file in ("model.onnx", "onnx/model.onnx", *quantized):
        found = read_as_stranger(folder, graph_file, texts)
        assert list(found) == ["last_hidden_state", "sentence_embedding", "mask"]
        np.testing.assert_allclose(found["sentence_embedding"], expected, atol=3e-7)
        states, mask = found["last_hidden_state"], found["mask"]
        assert states.shape == (len(texts), mask.shape[1], DIM)
        np.testing.assert_allclose(states[:, 0], expected, atol=3e-7)
        np.testing.assert_allclose(states[:, -1], expected, atol=3e-7)
        weights = mask[:, :, None].astype(np.float32)
        np.testing.assert_allclose((states * weights).sum(1) / weights.sum(1), expected, atol=5e-7)
        np.testing.assert_allclose(np.where(weights > 0, states, -np.inf).max(1), expected, atol=3e-7)
    assert (found["mask"].sum(1).max(), found["mask"].sum(1)[-1]) == (48, 48), "the long text was cut at the limit"


def test_a_parent_that_pads_on_the_left_and_reads_its_last_token(left_exported: Path, tmp_path: Path) -> None:
    """Its graph never took token types, which consumers feed all the same; what pools the first token is right, too."""
    name = "L01-D016-fp32"
    folder = pack_profile(left_exported, name, tmp_path / "pack").path
    texts = [*TEXTS, LONG]
    found = read_as_stranger(folder, "onnx/model.onnx", [f"a red house {text}" for text in texts])
    assert (found["mask"][:, 0] == 0).any(), "rows are padded on the left"
    expected = Embedder(left_exported, name).embed(texts, prompt="query")
    np.testing.assert_allclose(found["last_hidden_state"][:, -1], expected, atol=1e-6)
    np.testing.assert_allclose(found["last_hidden_state"][:, 0], expected, atol=1e-6)
    said = read_json(folder / "config_sentence_transformers.json")
    assert said["prompts"] == {"query": "a red house "}
    assert read_json(folder / "tokenizer_config.json")["padding_side"] == "left"


def test_a_point_lies_under_the_names_that_transformers_js_looks_for(both: Path) -> None:
    listed = {path.relative_to(both).as_posix() for path in both.rglob("*.onnx*")}
    assert listed == {
        "model.onnx", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_quantized.onnx",
        "onnx/model_quantized.onnx_data",
    }  # fmt: skip
    assert read_json(both / "config.json")["transformers.js_config"] == {
        "use_external_data_format": {"model.onnx": 1, "model_quantized.onnx": 1}
    }
    assert [profile.name for profile in load_family(both).profiles] == [FP32, INT8]
    assert load_family(both).facts.copies == {"onnx/model.onnx": FP32}
    assert verify_family(both).passed
    for name in (FP32, INT8):
        np.testing.assert_array_equal(Embedder(both, name).embed(TEXTS), Embedder(SMALL, name).embed(TEXTS))


def test_one_precision_tells_transformers_js_which_to_take(tmp_path: Path) -> None:
    pack_profile(SMALL, INT8, tmp_path / "pack")
    said = read_json(tmp_path / "pack" / "config.json")["transformers.js_config"]
    assert said == {"use_external_data_format": {"model_quantized.onnx": 1}, "dtype": "q8"}


def test_what_consumers_configure_themselves_from(both: Path) -> None:
    parent = read_json(SMALL / "config.json")
    config = read_json(both / "config.json")
    changed = {"hidden_size": DIM, "num_hidden_layers": 1, "max_position_embeddings": 48, "pad_token_id": 0}
    assert {key: config[key] for key in changed} == changed
    assert {key: value for key, value in config.items() if key not in changed and "transformers.js" not in key} == {
        key: value for key, value in parent.items() if key not in changed
    }
    tokenizer = read_json(both / "tokenizer_config.json")
    assert (tokenizer["model_max_length"], tokenizer["tokenizer_class"]) == (48, "PreTrainedTokenizerFast")
    assert (tokenizer["pad_token"], tokenizer["padding_side"]) == ("[PAD]", "right")
    assert "backend" not in tokenizer
    written = read_json(both / "tokenizer.json")
    assert written["truncation"]["max_length"] == 48
    assert written["padding"]["strategy"] == "BatchLongest"
    assert {**written, "truncation": None, "padding": None} == {
        **read_json(SMALL / "tokenizer.json"), "truncation": None, "padding": None
    }  # fmt: skip
    assert read_json(both / "special_tokens_map.json")["cls_token"] == "[CLS]"
    kinds = [(module["path"], module["type"]) for module in read_json(both / "modules.json")]
    assert kinds == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    pooling = read_json(both / "1_Pooling" / "config.json")
    assert pooling["word_embedding_dimension"] == DIM
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert read_json(both / "sentence_bert_config.json")["max_seq_length"] == 48
    said = read_json(both / "config_sentence_transformers.json")
    assert (said["prompts"], said["truncate_dim"]) == (load_family(SMALL).facts.text.prompts, None)  # type: ignore[union-attr]


def test_what_text_embeddings_inference_parses(both: Path) -> None:
    """Its router's required fields; the server itself cannot be had here, so this mirrors its parser and says so."""
    config = read_json(both / "config.json")
    assert isinstance(config["architectures"], list)
    assert isinstance(config["model_type"], str)
    whole = ("hidden_size", "num_hidden_layers", "max_position_embeddings", "pad_token_id")
    assert all(type(config[key]) is int for key in whole)
    pooling = read_json(both / "1_Pooling" / "config.json")
    assert all(type(pooling[f"pooling_mode_{mode}"]) is bool for mode in ("cls_token", "mean_tokens", "lasttoken"))
    assert type(read_json(both / "sentence_bert_config.json")["max_seq_length"]) is int
    assert isinstance(read_json(both / "config_sentence_transformers.json")["prompts"], dict)
    (graph_file,) = list(both.glob("*.onnx"))
    assert graph_file.name == "model.onnx"


def test_a_pack_of_a_pack_is_the_pack(both: Path, tmp_path: Path) -> None:
    again = pack_profile(both, POINT, tmp_path / "both").path
    ours, theirs = ({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
                    for folder in (again, both))  # fmt: skip
    assert ours == theirs


def test_lean_gives_one_output(tmp_path: Path) -> None:
    folder = pack_profile(SMALL, INT8, tmp_path / "pack", layout="lean").path
    found = read_as_stranger(folder, "model.onnx", [*TEXTS, LONG])
    assert list(found) == ["sentence_embedding", "mask"]
    np.testing.assert_allclose(found["sentence_embedding"], Embedder(SMALL, INT8).embed([*TEXTS, LONG]), atol=3e-7)
    assert not (folder / "onnx").exists()
    assert not (folder / "modules.json").exists(), "it has no states that could be pooled"


def test_infinity_has_one_graph(tmp_path: Path) -> None:
    folder = pack_profile(SMALL, FP32, tmp_path / "pack", layout="infinity").path
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx*")] in (
        ["model.onnx", "model.onnx_data"], ["model.onnx_data", "model.onnx"]
    )  # fmt: skip
    assert verify_family(folder).passed
    with pytest.raises(
        RequestError, match="a folder with one graph takes one profile: name one of L01-D012-fp32, L01-D012-int8"
    ):
        pack_profile(SMALL, POINT, tmp_path / "other", layout="infinity")


@pytest.mark.parametrize("name", [FP32, INT8])
def test_a_single_file_holds_its_weights(name: str, tmp_path: Path) -> None:
    folder = pack_single_file(SMALL, name, tmp_path / "pack")
    assert not list(folder.rglob("*_data")) + list(folder.rglob("*.safetensors")) + list(folder.glob("family.json"))
    alone = tmp_path / "alone"
    alone.mkdir()
    for part in ("model.onnx", "tokenizer.json"):
        shutil.copy(folder / part, alone / part)
    onnx.checker.check_model(str(alone / "model.onnx"), full_check=True)
    found = read_as_stranger(alone, "model.onnx", TEXTS)["sentence_embedding"]
    np.testing.assert_allclose(found, Embedder(SMALL, name).embed(TEXTS), atol=3e-7)
    with pytest.raises(DestinationError, match="exists; choose another"):
        pack_single_file(SMALL, name, folder)


@pytest.mark.parametrize("name", [FP32, INT8])
def test_the_card_of_a_single_file_has_code_that_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Path(shutil.copytree(SMALL, tmp_path / "family"))
    said = {"source": "someone/encoder", "license": "mit", "architecture": "Bert<b>"}
    edit_manifest(family, lambda data: data["parent"].update(said))
    card = (pack_single_file(family, name, tmp_path / "pack") / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlibrary_name: "onnx"\n')
    assert ('base_model_relation: "quantized"\n' in card) == (name == INT8)
    facts = load_family(family).facts.parent
    part = f"1 of {facts.blocks} blocks, and the first 12 of {facts.output_width} coordinates"
    for words in ('license: "mit"', 'base_model: "someone/encoder"', f"`{name}`", "# pack\n", "Bert&lt;b&gt;", part):
        assert words in card
    assert "matexport" not in card.replace("matexport.", ""), "no command of ours reads this folder"
    code = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path / "pack")
    ran: dict[str, Any] = {}
    exec(code, ran)
    texts = ["a text", "another text"]
    np.testing.assert_allclose(ran["vectors"], Embedder(SMALL, name).embed(texts, prompt=""), atol=3e-7)


LICENCES = {"LICENSE": b"terms", "NOTICE.md": b"who", "COPYING.LESSER": b"more"}


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != TORCH])
def test_licences_go_along(layout: str, tmp_path: Path) -> None:
    """And nothing else that lies beside a family; over what has such a name there."""
    family = Path(shutil.copytree(SMALL, tmp_path / "family"))
    for name, content in {**LICENCES, ".gitattributes": b"*", ".DS_Store": b"x"}.items():
        (family / name).write_bytes(content)
    out = tmp_path / "pack"
    if layout == SINGLE_FILE:
        pack_single_file(family, FP32, out)
    else:
        pack_profile(SMALL, INT8, out, layout=layout)
        (out / "LICENSE").write_bytes(b"of what was there before")
        (out / ".gitignore").write_bytes(b"mine")
        pack_profile(family, FP32, out, layout=layout, overwrite=True)
        assert verify_family(out).passed
        assert (out / ".gitignore").read_bytes() == b"mine"
    assert {name: (out / name).read_bytes() for name in LICENCES} == LICENCES
    assert not (out / ".gitattributes").exists()
    assert not (out / ".DS_Store").exists()


def test_a_licence_that_cannot_go_along(tmp_path: Path) -> None:
    family = Path(shutil.copytree(SMALL, tmp_path / "family"))
    (family / "LICENSE").write_bytes(bytes(5 << 20))
    with pytest.raises(RequestError, match=r"family: LICENSE has 5242880 bytes, .*; it goes where its family goes"):
        pack_profile(family, FP32, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_more_than_a_file_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "MAX_MESSAGE_BYTES", 10_000)
    with pytest.raises(RequestError, match="more than 2 GB"):
        pack_single_file(SMALL, FP32, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def cut_one_sooner(data: dict[str, Any]) -> None:
    data["truncation"]["max_length"] -= 1


def cut_on_the_left(data: dict[str, Any]) -> None:
    data["truncation"]["direction"] = "Left"


@pytest.mark.parametrize("spoil", [cut_one_sooner, cut_on_the_left])
def test_a_folder_that_cuts_elsewhere_is_refused(
    spoil: Callable[[dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matexport itself reads it right: the limit stands in the manifest, too."""
    family = tmp_path / "family"
    shutil.copytree(SMALL, family)
    probes = [json.loads(line) for line in (family / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    _lengthen_probe(family, probes)
    pack_profile(family, FP32, tmp_path / "sound")
    original = files._cut_and_pad

    def spoilt(*given: Any) -> dict[str, Any]:
        data = original(*given)
        spoil(data)
        return data

    monkeypatch.setattr(files, "_cut_and_pad", spoilt)
    with pytest.raises(ParityError, match=r"as other consumers run it \(sentence_embedding, batched\): max abs diff"):
        pack_profile(family, FP32, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def _lengthen_probe(family: Path, probes: list[dict[str, Any]]) -> None:
    """One of the probes past the limit, with the vectors that the family gives it."""
    probes[0]["text"] = LONG
    lines = "".join(json.dumps(probe) + "\n" for probe in probes)
    (family / "probes.jsonl").write_text(lines, encoding="utf-8")
    references = load_file(family / "reference.safetensors")
    from safetensors.numpy import save_file

    loaded = load_family(family)
    for point in {profile.point.name for profile in loaded.profiles}:
        reseal(family)
        prompt = probes[0].get("prompt") or ""
        references[point] = references[point].copy()
        references[point][0] = Embedder(family, f"{point}-fp32").embed([LONG], prompt=prompt)[0]
    kept = {name: tensor for name, tensor in references.items() if name not in ("token_ids", "token_counts")}
    save_file(kept, family / "reference.safetensors")
    reseal(family)


def test_states_that_are_not_the_vector_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in a thousandth off: whoever pools the first token would get it."""

    def spoilt(model: Any, dim: int) -> None:
        graph.repeat_vector(model, dim)
        (expand,) = [node for node in model.graph.node if node.output[0] == "last_hidden_state"]
        model.graph.initializer.add(name="off", dims=[1], data_type=1, raw_data=np.array([1.001], np.float32).tobytes())
        model.graph.node.add(op_type="Mul", name="off.node", input=[expand.input[0], "off"], output=["off.vector"])
        moved = model.graph.node.add()
        moved.CopyFrom(expand)
        moved.input[0] = "off.vector"
        model.graph.node.remove(expand)

    monkeypatch.setattr(write, "repeat_vector", spoilt)
    with pytest.raises(ParityError, match=r"as other consumers run it \(first token, batched\)"):
        pack_profile(SMALL, FP32, tmp_path / "pack")


def test_a_copy_that_is_another_graph(tmp_path: Path) -> None:
    """Every digest is right; one number of the copy's normalisation is not the graph's."""
    folder = pack_profile(SMALL, FP32, tmp_path / "pack").path
    model = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False)
    small = next(tensor for tensor in model.graph.initializer if tensor.data_type == 1 and tensor.raw_data)
    small.raw_data = (np.frombuffer(small.raw_data, np.float32) * np.float32(1.0001)).tobytes()
    (folder / "onnx" / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    reseal(folder)
    with pytest.raises(
        FamilyError, match=r"refused: onnx/model.onnx: is to be a copy of model.onnx, and is another gr"
    ):
        verify_family(folder)


def test_a_copy_of_nothing(tmp_path: Path) -> None:
    folder = pack_profile(SMALL, FP32, tmp_path / "pack").path
    edit_manifest(folder, lambda data: data["copies"].update({"onnx/model.onnx": INT8}))
    with pytest.raises(FamilyError, match="is to be a copy of the graph of L01-D012-int8, and one of them is not ther"):
        load_family(folder)


def test_what_lies_in_the_folders_is_looked_at(tmp_path: Path) -> None:
    folder = pack_profile(SMALL, FP32, tmp_path / "pack").path
    (folder / "onnx" / "run.py").write_text("print()")
    with pytest.raises(FamilyError, match=r"extra: onnx/run.py is not listed"):
        verify_family(folder)
    (folder / "onnx" / "run.py").unlink()
    (folder / "onnx").rename(tmp_path / "elsewhere")
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FamilyError, match=r"refused: onnx/model.onnx lies in a symbolic link"):
        verify_family(folder)
    (folder / "onnx").unlink()
    with pytest.raises(FamilyError, match=r"missing: onnx/model.onnx"):
        verify_family(folder)


def test_what_no_other_consumer_does_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="leaves the tokens of its prompts out of the pooling, and no other consume"):
        pack_profile(GOLDEN / "schema4", "L01-D020-fp32", tmp_path / "pack", layout=ALL)
    assert pack_profile(GOLDEN / "schema4", "L01-D020-fp32", tmp_path / "own").facts.copies == {}
    with pytest.raises(RequestError, match="gives int8 codes, which other consumers do not take: use --for matexport"):
        pack_profile(GOLDEN / "schema2", "L01-D020-int8-int8", tmp_path / "pack", layout=ALL)
    assert pack_profile(GOLDEN / "schema2", "L01-D020-int8-int8", tmp_path / "codes").facts.copies == {}
    with pytest.raises(RequestError, match=r"the layout 'al' was asked; known are: .*did you mean 'all'"):
        pack_profile(SMALL, FP32, tmp_path / "pack", layout="al")
    with pytest.raises(FamilyError, match=r"'L09-D012' was asked; .* has no such profile or point"):
        pack_profile(SMALL, "L09-D012", tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_code_of_the_card_runs_where_it_stands(both: Path) -> None:
    card = (both / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n# matexport report: begin")
    assert re.search(r"^# both$", card, re.MULTILINE)
    assert "**repeated for every token**" in card
    (code,) = re.findall(r"### onnxruntime\n\n```python\n(.*?)\n```", card, re.DOTALL)
    shown = "\nprint(vectors.shape, vectors.dtype)"
    done = subprocess.run([sys.executable, "-c", code + shown], cwd=both, capture_output=True, text=True, check=True)
    assert done.stdout == f"(2, {DIM}) float32\n"


def test_the_command(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    assert run("pack", SMALL, POINT, out).out.startswith(f"{out}: {FP32}, {INT8} for all, ")
    run("pack", SMALL, POINT, out).complains("pass --overwrite to replace it")
    assert run("pack", SMALL, FP32, out, "--overwrite", "--json").json["for"] == ALL
    assert verify_family(out).passed
    run("pack", SMALL, FP32, tmp_path / "file", "--for", SINGLE_FILE)
    run("pack", SMALL, FP32, tmp_path / "file", "--for", SINGLE_FILE, "--overwrite").complains(
        "writes a folder that is"
    )
    run("pack", SMALL, FP32, tmp_path / "o", "--parent", "x").complains("only --for torch reads the parent")
    run("pack", SMALL, FP32, tmp_path / "o", "--for", "alll").complains("did you mean 'all'")
    told = run("pack", "--help").out
    assert all(f"  {name} " in told for name in (*LAYOUTS, TORCH))


@pytest.mark.parametrize("name", [FP32, INT8])
def test_states_of_tokens_for_who_asks(name: str, tmp_path: Path) -> None:
    """Their mean over a text's own tokens, cut and scaled, is its vector; they are of the parent's width."""
    folder = pack_profile(SMALL, name, tmp_path / "pack", layout=replace(LAYOUTS[ALL], states=True)).path
    found = read_as_stranger(folder, "model.onnx", [*TEXTS, LONG])
    assert list(found) == ["last_hidden_state", "sentence_embedding", "token_embeddings", "mask"]
    states, weights = found["token_embeddings"], found["mask"][:, :, None].astype(np.float32)
    assert states.shape == (len(TEXTS) + 1, found["mask"].shape[1], 32)
    assert np.abs(states[0, 0] - states[0, 1]).max() > 0.01, "each token has its own"
    mean = ((states * weights).sum(1) / weights.sum(1))[:, :DIM]
    vectors = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, found["sentence_embedding"], atol=1e-6)


def test_states_of_another_block_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block 1's where block 2's were promised."""

    def spoilt(model: Any, profile: Any, facts: Any) -> None:
        graph.expose_states(model, replace(profile, layers=1), facts)

    monkeypatch.setattr(write, "expose_states", spoilt)
    with pytest.raises(ParityError, match=r"as other consumers run it \(pooled token_embeddings\)"):
        pack_profile(SMALL, "L02-D020-fp32", tmp_path / "pack", layout=replace(LAYOUTS[ALL], states=True))


def test_states_that_are_not_there(left_exported: Path, tmp_path: Path, run: Run) -> None:
    run("pack", left_exported, "L01-D016-fp32", tmp_path / "p", "--token-states").complains("the parent's final norm")
    shutil.copytree(SMALL, tmp_path / "narrowed")
    edit_manifest(tmp_path / "narrowed", lambda data: data["profiles"][FP32].update(narrowed_nodes=3))
    run("pack", tmp_path / "narrowed", FP32, tmp_path / "p", "--token-states").complains("computes the one token")
    run("pack", SMALL, FP32, tmp_path / "p", "--token-states", "--for", "matexport").complains("as it was exported")
    run("pack", SMALL, FP32, tmp_path / "p", "--token-states", "--for", "torch").complains("has no use for it")
    assert not (tmp_path / "p").exists()
    assert run("pack", SMALL, FP32, tmp_path / "p", "--token-states").code == 0


@pytest.mark.parametrize("kind", ["qwen3", "modernbert", "gemma3_text", "llama", "bert", "distilbert", "mpnet", "t5"])
def test_transformers_reads_the_configuration(kind: str) -> None:
    """It counts what stands there for each block, and wants heads that divide the width."""
    from transformers import AutoConfig

    facts = load_family(SMALL).facts
    said = AutoConfig.for_model(kind).to_dict() | {"model_type": kind}
    profile = replace(facts.profiles[FP32], dim=60, layers=2)
    config = files._describe_model(facts, profile, said)
    read = AutoConfig.for_model(**config)
    assert (read.hidden_size, read.num_hidden_layers) == (60, 2)
