"""The laws of the layout: who may import whom, who prints, and what a process that only uses families ever loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import matexport

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
#: What a light module may import of the package itself: the layers below its own.
LAYERS = {
    "errors": 0, "spec": 0, "records": 1, "host": 1, "graphfile": 1, "nestedfile": 1, "profiles": 1, "manifest": 1,
    "batches": 1, "measurements": 2, "staging": 2, "parity": 2, "session": 2, "tokens": 2, "embed": 3, "timings": 3,
    "tokenrows": 2, "quality": 3, "exits": 3, "search": 3, "tasks": 3, "tables": 4, "survey": 4, "evaluate": 5,
    "columns": 0, "extras": 1, "devices": 1, "pick": 5, "choices": 6,
    "trial": 4, "verify": 4, "bench": 5, "bulk": 5, "drift": 5, "gate": 5, "pack": 5,
    "junit": 6, "pytest_plugin": 6,
    "plots": 4, "findings": 5, "words": 6, "heatmaps": 7, "datatables": 7, "card": 7, "page": 8, "report": 9,
    "__init__": 10, "arguments": 10, "cli": 11, "__main__": 12,
}  # fmt: skip
#: Records that the stages of the build share.
SHARED_STAGES = {
    "parents.text",
    "parents.layout",
    "parents.architecture",
    "parents.asking",
    "parents.loading",
    "preflight",
    "reach",
    "serialize",
    "sources",
    "vocabulary",
}
LIGHT_EXTERNAL = {
    "numpy": {
        "parity",
        "tokens",
        "tokenrows",
        "embed",
        "exits",
        "search",
        "evaluate",
        "verify",
        "drift",
        "bench",
        "cli",
    },
    "onnxruntime": {"session"},
    "tokenizers": {"tokens", "embed"},
    "safetensors": {"verify", "pack"},
    "msgspec": {
        "spec",
        "records",
        "profiles",
        "manifest",
        "measurements",
        "timings",
        "quality",
        "survey",
        "evaluate",
        "verify",
        "drift",
        "bench",
        "pack",
        "cli",
    },
    "google": {"graphfile"},
    "filelock": {"staging"},
    "tqdm": {"cli"},
    "pyarrow": {"bulk"},
    "ray": {"bulk"},
    "faiss": {"search", "evaluate"},
    "scipy": {"evaluate"},
    "ir_measures": {"evaluate"},
    "pytest": {"pytest_plugin"},
    "matplotlib": {"plots", "heatmaps"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
LIGHT = [name for name in SOURCES if not name.startswith(("build.", "train."))]
BUILD = [name.removeprefix("build.") for name in SOURCES if name.startswith("build.")]


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
    assert {"torch", "safetensors"} <= external("build.export")
    assert "onnx_ir" in external("build.trace")
    assert {"build.cut", "build.parents.text", "verify", "manifest"} <= own("build.export")
    assert "build.__init__" in own("cli")
    assert "build.__init__" not in own("cli", top_only=True)
    assert "verify" not in own("cli", top_only=True), "hidden by TYPE_CHECKING"
    assert len(LIGHT) >= 18
    assert len(BUILD) >= 10


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_half_imports_nothing_heavy(name: str) -> None:
    assert external(name) & HEAVY == set()


def test_the_command_line_imports_the_build_inside_functions_only() -> None:
    top = set(imports("cli", top_only=True))
    assert not any(found.startswith(("matexport.build", "transformers")) for found in top)


@pytest.mark.parametrize("name", [name for name in LIGHT if name not in ("cli", "build.__init__")])
def test_the_light_half_does_not_know_the_build(name: str) -> None:
    assert not any(found == "matexport.build" or found.startswith("matexport.build.") for found in imports(name))


def reach(name: str, *, top_only: bool = False) -> set[str]:
    seen: set[str] = set()
    pending = [name]
    while pending:
        for found in own(pending.pop(), top_only=top_only) - seen:
            seen.add(found)
            pending.append(found)
    return seen


@pytest.mark.parametrize("name", ["embed", "verify", "parity", "manifest"])
def test_the_judge_did_not_build_the_case(name: str) -> None:
    """Not through others either."""
    assert not any(found.startswith(("build", "train", "cli")) for found in reach(name))


def test_every_light_module_has_a_layer() -> None:
    assert LAYERS.keys() == set(LIGHT) - {"build.__init__"}


@pytest.mark.parametrize("name", LAYERS)
def test_imports_go_downwards(name: str) -> None:
    inside = {found for found in own(name) if not found.startswith("build.")} - {"__init__"}
    same_or_above = {found for found in inside if LAYERS[found] > LAYERS[name]}
    assert not same_or_above
    if LAYERS[name] != 1:  # which read files with what stands beside them
        assert not {found for found in inside if LAYERS[found] == LAYERS[name]}


def test_no_circle() -> None:
    for name in SOURCES:
        assert name not in reach(name, top_only=True), name


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_use_the_libraries_that_they_declare(name: str) -> None:
    assert external(name) - HEAVY <= {library for library, users in LIGHT_EXTERNAL.items() if name in users}


def test_the_nouns_import_the_standard_library_only() -> None:
    assert external("errors") == set()
    assert external("spec") == {"msgspec"}  # what a record is: as dataclasses they take 30 ms longer to define


def stage_of(module: str) -> str:
    """`quantize` is a package and one stage: its modules may import each other."""
    return "quantize" if module.startswith("quantize.") else module


def stages_known_to(name: str) -> set[str]:
    """The stages that a module of the build imports, its own aside."""
    found = {module.removeprefix("build.") for module in own(f"build.{name}") if module.startswith("build.")}
    return {stage_of(module) for module in found if not module.endswith("__init__")} - {stage_of(name)}


def test_the_walk_sees_the_stages() -> None:
    assert stages_known_to("export") >= {"quantize", "encode", "cut", "trace", "parents.text"}
    assert "build.quantize.sites" in own("build.quantize.int8")
    assert stages_known_to("quantize.int8") == set()
    assert stages_known_to("quantize.observe") == {"serialize"}


@pytest.mark.parametrize("name", [name for name in BUILD if name not in ("export", "__init__", "parents.__init__")])
def test_stages_do_not_import_each_other(name: str) -> None:
    assert stages_known_to(name) <= SHARED_STAGES


def test_only_the_pipeline_knows_the_order_of_the_stages() -> None:
    stages = {stage_of(name) for name in BUILD if name not in SHARED_STAGES and not name.endswith("__init__")}
    knows = {name: stages_known_to(name) & (stages - {"export"}) for name in BUILD}
    door = "__init__"  # which starts the judge before torch is imported, and calls the pipeline
    assert {name for name, known in knows.items() if len(known) > 1 and name != door} == {"export"}
    assert knows[door] == {"judge", "quiet"}
    assert knows["export"] >= {"cut", "encode", "nested", "quantize", "readout", "reference", "rewrite", "trace"}


def called(name: str) -> set[str]:
    return {
        ast.unparse(node.func) for node in ast.walk(SOURCES[name]) if isinstance(node, ast.Call)
    }  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_command_line_prints_or_exits(name: str) -> None:
    speaking = {"print", "sys.stdout.write", "sys.stderr.write", "logging.basicConfig", "sys.exit", "exit", "os._exit"}
    assert (called(name) & speaking == set()) == (name not in ("cli", "trial")), "trial is a process of its own"


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(SOURCES[name])


def test_the_public_names_exist_and_are_documented() -> None:
    for name in matexport.__all__:
        assert getattr(matexport, name) is not None
        assert name == "__version__" or getattr(matexport, name).__doc__, name
    assert dir(matexport) == sorted(matexport.__all__)
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
    assert loaded_after("import matexport, matexport.cli", *libraries) == set()
    assert loaded_after("import numpy", "numpy") == {"numpy"}


def test_help_costs_nothing() -> None:
    help_and_stay = (
        "import contextlib, matexport.cli\nwith contextlib.suppress(SystemExit): matexport.cli.main(['--help'])"
    )
    assert loaded_after(help_and_stay, "numpy", "onnxruntime", "tokenizers", *HEAVY) == set()


@pytest.mark.parametrize(
    "use",
    [
        "import matexport; assert matexport.Embedder({0!r}, 'L01-D008-fp32').embed(['a text']).shape == (1, 8)",
        "import matexport; assert matexport.verify_family({0!r}).passed",
        "import matexport.cli; matexport.cli.main(['show', {0!r}])",
        "import matexport.cli; matexport.cli.main(['embed', {0!r}, '--profile', 'L01-D008-fp32', 'a text'])",
        "import matexport; matexport.pack_profile({0!r}, 'L01-D008-fp32', {1!r})",
        "import matexport.build",
        "import matexport; assert matexport.load_job",
    ],
    ids=["embed", "verify", "show", "embed command", "pack", "build package", "load_job"],
)
def test_using_a_family_loads_nothing_heavy(use: str, exported: Path, tmp_path: Path) -> None:
    statement = use.format(str(exported), str(tmp_path / "pack"))
    assert loaded_after(statement, *HEAVY, "matexport.build.export") == set()


def test_embedding_loads_what_it_needs_and_no_more(exported: Path) -> None:
    statement = f"import matexport; matexport.Embedder({str(exported)!r}, 'L01-D008-fp32')"
    assert loaded_after(statement, "onnxruntime", "tokenizers", "tqdm", "filelock", "safetensors") == {
        "onnxruntime",
        "tokenizers",
    }


def test_without_the_build_extra_export_says_how_to_get_it(exported: Path, tmp_path: Path) -> None:
    """In a process where torch cannot be found, as on a device."""
    job = tmp_path / "job.toml"
    job.write_text('[parent]\nsource = "p"\n[points]\npairs = [[1, 8]]\n')
    hide = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "import matexport.cli\n"
        f"code = matexport.cli.main(['export', {str(job)!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "matexport: exporting needs torch, which is not installed here; "
        "install the [build] extra, in matexport's own directory: pip install -c constraints.txt -e '.[build]'\n"
    )
