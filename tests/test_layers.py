"""The laws of the layout: who may import whom, who prints, and what a process that only uses families ever loads."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import matexport
from matexport.extras import spell_install

ROOT = Path(matexport.__file__).parent
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "optimum",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "huggingface_hub",
}
#: The law by wing: imports only go down. `__init__` is the front door, which nobody inside goes through.
WINGS = {
    "version": 0, "errors": 0, "spec": 0,
    "host": 1, "extras": 1, "marks": 1, "io": 1,
    "family": 2,
    "runtime": 3, "pick": 3, "consumers": 3,
    "verify": 4, "towers": 4,
    "measure": 5, "report": 5, "serve": 5,
    "pack": 6, "export": 6,
    "hub": 7, "adapters": 7,
    "cli": 8, "__init__": 8,
}  # fmt: skip
#: The same inside `export`, by room: the stages (trace, quantize, judge) know no other stage; nobody but `pipeline`
#: knows the order of those that are the same for all parents, and nobody but `kinds` that a parent has a judge.
EXPORT = {
    "graph": 0, "parents": 0, "quiet": 0,
    "trace": 1, "quantize": 1, "judge": 1, "trained": 1,
    "kinds": 2, "profiles": 2,
    "prepare": 3, "blame": 3, "outline": 3,
    "reuse": 4,
    "pipeline": 5,
    "towers": 5,
    "__init__": 6,
}  # fmt: skip
#: The wings outside `export` that use a library; `pick` and `report` do without numpy.
LIGHT_EXTERNAL = {
    "numpy": {"family", "runtime", "towers", "verify", "measure", "pack", "serve", "cli"},
    "onnxruntime": {"runtime"},
    "openvino": {"runtime"},
    "tract": {"runtime"},
    "cv2": {"runtime"},
    "tokenizers": {"runtime", "pack"},
    "safetensors": {"family", "verify", "pack"},
    "msgspec": {"spec", "io", "family", "runtime", "verify", "measure", "pack", "serve", "hub", "cli"},
    "google": {"family"},
    "filelock": {"io"},
    "tqdm": {"cli"},
    "shtab": {"cli"},
    "pyarrow": {"io", "runtime"},
    "PIL": {"runtime"},
    "ray": {"runtime"},
    "faiss": {"measure"},
    "scipy": {"measure"},
    "ir_measures": {"measure"},
    "pytest": {"verify"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
#: Classes for libraries that bring torch themselves: whoever imports one has it.
FOR_OTHERS = [name for name in SOURCES if name.startswith("adapters.")]
LIGHT = [name for name in SOURCES if not name.startswith(("export.", "train.", "adapters."))]
INSIDE_EXPORT = [name for name in SOURCES if name.startswith("export.")]


def wing_of(name: str) -> str:
    """The wing that a module stands in; the front door and the modules of the top folder are wings of their own."""
    wing = name.partition(".")[0]
    return "cli" if wing == "__main__" else wing  # `python -m matexport` is the command line


def imports(name: str, *, top_only: bool = False) -> Iterator[str]:
    """Full names of what a module imports, at any depth; not what only the type checker sees."""
    pending: list[ast.AST] = list(SOURCES[name].body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            pending.extend(ast.iter_child_nodes(node))


def own(name: str, *, top_only: bool = False) -> set[str]:
    """The package's modules that a module imports, named as in `SOURCES`."""
    found = {found.removeprefix("matexport.") for found in imports(name, top_only=top_only) if "matexport." in found}
    return {module for module in SOURCES if module in found or module.removesuffix(".__init__") in found}


def external(name: str) -> set[str]:
    roots = {found.partition(".")[0] for found in imports(name)}
    return {root for root in roots if root != "matexport" and root not in sys.stdlib_module_names}


def test_the_walk_sees_imports() -> None:
    """A law that sees nothing holds always."""
    assert {"torch", "safetensors"} <= external("export.pipeline")
    assert "onnx_ir" in external("export.trace.trace")
    assert {"export.trace.trace", "export.kinds.kind", "verify.judge", "family.manifest"} <= own("export.pipeline")
    assert "export.__init__" in own("cli.commands.export")
    assert "export.__init__" not in own("cli.commands.export", top_only=True)
    assert "verify.judge" not in own("cli.commands.verify", top_only=True), "hidden by TYPE_CHECKING"
    assert len(LIGHT) >= 18
    assert len(INSIDE_EXPORT) >= 10


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_half_imports_nothing_heavy(name: str) -> None:
    """But for `hub`, which is about model hubs, and loads their library in the functions that use it."""
    allowed = {"huggingface_hub"} if wing_of(name) == "hub" else set()
    assert external(name) & HEAVY <= allowed
    assert not any(found.partition(".")[0] in HEAVY for found in imports(name, top_only=True))


def test_a_class_for_another_library_imports_that_library_alone_and_is_imported_by_nobody() -> None:
    """And what that brings along. It is the only place outside of the export with torch, and nothing here needs it."""
    brought = {"sentence_transformers", "torch", "transformers", "tokenizers", "msgspec"}
    allowed = {"adapters.__init__": set[str](), "adapters.sentence_transformers": brought}
    assert {name: external(name) for name in FOR_OTHERS} == allowed
    assert {name for name in SOURCES if name not in FOR_OTHERS and own(name) & set(FOR_OTHERS)} == set()
    assert not any(found.startswith(("export.", "cli.")) for name in FOR_OTHERS for found in reach(name))


@pytest.mark.parametrize("name", [name for name in LIGHT if wing_of(name) == "cli"])
def test_the_command_line_imports_the_export_inside_functions_only(name: str) -> None:
    top = set(imports(name, top_only=True))
    assert not any(found.startswith(("matexport.export", "transformers")) for found in top)


@pytest.mark.parametrize("name", [name for name in LIGHT if wing_of(name) not in ("cli", "export")])
def test_the_light_half_does_not_know_the_export(name: str) -> None:
    assert not any(found == "matexport.export" or found.startswith("matexport.export.") for found in imports(name))


def reach(name: str, *, top_only: bool = False) -> set[str]:
    seen: set[str] = set()
    pending = [name]
    while pending:
        for found in own(pending.pop(), top_only=top_only) - seen:
            seen.add(found)
            pending.append(found)
    return seen


@pytest.mark.parametrize("name", ["runtime.embedder", "verify.judge", "verify.parity", "family.manifest"])
def test_the_judge_did_not_build_the_case(name: str) -> None:
    """Not through others either."""
    assert not any(found.startswith(("export", "train", "cli")) for found in reach(name))


def test_every_wing_has_a_layer_and_is_there() -> None:
    assert WINGS.keys() == {wing_of(name) for name in SOURCES}


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_down(name: str) -> None:
    """Into the module's own wing, or to one below: never up, and never to another wing of the same floor."""
    mine = wing_of(name)
    others = {found for found in own(name) if wing_of(found) != mine}
    assert {found for found in others if WINGS[wing_of(found)] >= WINGS[mine]} == set()


def test_no_wing_is_in_a_circle() -> None:
    """Held by the floors already; but the floors are held by people."""
    knows = {
        wing: {wing_of(found) for name in SOURCES if wing_of(name) == wing for found in own(name)} for wing in WINGS
    }
    order = graphlib.TopologicalSorter({wing: known - {wing} for wing, known in knows.items()})
    assert len(list(order.static_order())) == len(WINGS)


def test_no_circle() -> None:
    for name in SOURCES:
        assert name not in reach(name, top_only=True), name


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_use_the_libraries_that_they_declare(name: str) -> None:
    assert external(name) - HEAVY <= {library for library, users in LIGHT_EXTERNAL.items() if wing_of(name) in users}


def test_the_nouns_import_the_standard_library_only() -> None:
    assert external("errors") == set()
    nouns = [name for name in SOURCES if wing_of(name) == "spec"]
    assert {library for name in nouns for library in external(name)} == {"msgspec"}  # dataclasses take 30 ms to define


def room_of(name: str) -> str:
    """The room of `export` that one of its modules stands in."""
    return name.split(".")[1]


def test_every_room_of_the_export_has_a_floor() -> None:
    assert EXPORT.keys() == {room_of(name) for name in INSIDE_EXPORT}


@pytest.mark.parametrize("name", INSIDE_EXPORT)
def test_the_stages_of_an_export_do_not_know_each_other(name: str) -> None:
    known = {room_of(found) for found in own(name) if found.startswith("export.")} - {room_of(name)}
    assert {room for room in known if EXPORT[room] >= EXPORT[room_of(name)]} == set()


def test_only_the_pipeline_knows_the_stages_and_only_a_kind_its_judge() -> None:
    knows = {room: set[str]() for room in EXPORT}
    for name in INSIDE_EXPORT:
        knows[room_of(name)] |= {room_of(found) for found in own(name) if found.startswith("export.")} - {room_of(name)}
    assert {room for room, known in knows.items() if known >= {"trace", "quantize"}} == {"pipeline"}
    assert knows["pipeline"] >= set(EXPORT) - {"quiet", "trained", "outline", "judge", "__init__", "pipeline", "towers"}
    assert {room for room, known in knows.items() if "judge" in known} == {"kinds"}


#: What knows a kind of parent by name: the rest of the export takes any.
KNOWS_TEXT = (
    "export.kinds.",
    "export.parents.",
    "export.judge.",
    "export.outline",
    "export.trained",
    "export.towers",
)


@pytest.mark.parametrize("name", [name for name in INSIDE_EXPORT if not name.startswith(KNOWS_TEXT)])
def test_what_comes_after_a_parent_knows_no_kind(name: str) -> None:
    """Of `parents`, the neutral records alone; and nothing that makes tokens."""
    known = {found for found in own(name) if found.startswith(("export.parents.", "runtime.inputs."))}
    assert known <= {"export.parents.plan", "runtime.inputs.modality", "runtime.inputs.array"}


#: Outside of `runtime.inputs` and the commands, what is done with texts alone.
TEXTS_ALONE = {"measure.vectors", "pack.plain", "verify.verdict"}


@pytest.mark.parametrize("name", [name for name in LIGHT if wing_of(name) not in ("cli", "export")])
def test_who_runs_graphs_does_not_know_what_an_item_is(name: str) -> None:
    if not name.startswith("runtime.inputs.") and name not in TEXTS_ALONE:
        assert own(name) & {"runtime.inputs.text", "runtime.inputs.array"} == set()


def called(name: str) -> set[str]:
    return {
        ast.unparse(node.func) for node in ast.walk(SOURCES[name]) if isinstance(node, ast.Call)
    }  # fmt: skip


SPEAKING = {"print", "sys.stdout.write", "sys.stderr.write", "logging.basicConfig", "sys.exit", "exit", "os._exit"}
#: Processes of their own: their standard output is their result, and they end when whoever asked is gone.
PROCESSES = {
    "measure.trial",
    *(f"export.judge.{name}" for name in ("child", "image_child", "checkpoint_child", "text_tower_child")),
}


@pytest.mark.parametrize("name", [name for name in SOURCES if wing_of(name) != "cli" and name not in PROCESSES])
def test_only_the_command_line_prints_or_exits(name: str) -> None:
    assert called(name) & SPEAKING == set()


def test_the_walk_sees_what_is_printed() -> None:
    for name in ("cli.output", "cli.progress", *PROCESSES):
        assert called(name) & SPEAKING, name


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("cli.commands.")])
def test_commands_print_what_a_terminal_can_be_shown(name: str) -> None:
    """With `say` and `complain`, which escape what would control it; `init` writes a file, and asks on its own."""
    assert name == "cli.commands.init" or "print" not in called(name)


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_says_what_it_is(name: str) -> None:
    """But for the door of a wing, which holds nothing."""
    assert ast.get_docstring(SOURCES[name]) or (name.endswith(".__init__") and not SOURCES[name].body)


def test_the_public_names_exist_and_are_documented() -> None:
    for name in matexport.__all__:
        assert getattr(matexport, name) is not None
        assert name == "__version__" or getattr(matexport, name).__doc__, name
    assert dir(matexport) == sorted(matexport.__all__)
    imported = {
        alias.name: node.module
        for block in SOURCES["__init__"].body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == matexport._HOMES, "what a type checker sees"
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        matexport.no_such_name  # noqa: B018


def loaded_after(statements: str, *names: str) -> set[str]:
    """Which of the modules a fresh process has loaded after some statements."""
    code = f"{statements}\nimport sys\nprint('loaded', *(name for name in {names!r} if name in sys.modules))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "PYTEST"))}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return set(result.stdout.rpartition("loaded")[2].split())


def test_importing_costs_nothing() -> None:
    libraries = ("numpy", "onnxruntime", "tokenizers", "google.protobuf", "tqdm", *HEAVY)
    assert loaded_after("import matexport, matexport.cli.main", *libraries) == set()
    assert loaded_after("import numpy", "numpy") == {"numpy"}


def test_help_costs_nothing() -> None:
    help_and_stay = (
        "import contextlib\nfrom matexport.cli.main import main\nwith contextlib.suppress(SystemExit): main(['--help'])"
    )
    assert loaded_after(help_and_stay, "numpy", "onnxruntime", "tokenizers", *HEAVY) == set()


@pytest.mark.parametrize(
    "use",
    [
        "import matexport; assert matexport.Embedder({0!r}, 'L01-D008-fp32').embed(['a text']).shape == (1, 8)",
        "import matexport; assert matexport.verify_family({0!r}).passed",
        "import matexport.cli.main; matexport.cli.main.main(['show', {0!r}])",
        "import matexport.cli.main; matexport.cli.main.main(['embed', {0!r}, '--profile', 'L01-D008-fp32', 'a text'])",
        "import matexport; matexport.pack_profile({0!r}, 'L01-D008-fp32', {1!r})",
        "import matexport.export",
        "import matexport; assert matexport.load_job",
    ],
    ids=["embed", "verify", "show", "embed command", "pack", "export package", "load_job"],
)
def test_using_a_family_loads_nothing_heavy(use: str, exported: Path, tmp_path: Path) -> None:
    statement = use.format(str(exported), str(tmp_path / "pack"))
    assert loaded_after(statement, *HEAVY, "matexport.export.pipeline") == set()


def test_embedding_loads_what_it_needs_and_no_more(exported: Path) -> None:
    statement = f"import matexport; matexport.Embedder({str(exported)!r}, 'L01-D008-fp32')"
    assert loaded_after(statement, "onnxruntime", "tokenizers", "tqdm", "filelock", "safetensors") == {
        "onnxruntime",
        "tokenizers",
    }


def test_without_the_export_extra_export_says_how_to_get_it(exported: Path, tmp_path: Path) -> None:
    """In a process where torch cannot be found, as on a device."""
    job = tmp_path / "job.toml"
    job.write_text('[parent]\nsource = "p"\n[points]\npairs = [[1, 8]]\n')
    hide = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "import matexport.cli.main\n"
        f"code = matexport.cli.main.main(['export', {str(job)!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "matexport: exporting needs torch, which is not installed here; "
        f"install the [export] extra: {spell_install('export')}\n"
    )
