"""Other programs on the folders that `matexport pack` writes, each in an environment of its own; see docs/consumers.md.

    nox                      all of it: the family, its folders, every consumer, then the table's numbers
    nox -s consumers-light   one environment

An environment is what its lock in ``ci/consumers/locks`` says, installed without looking for more. What the environment
that runs nox (or another of these) has at the same version is linked from there: torch alone has 700 MB. Environments
are kept; one whose lock has changed is installed over.

Nothing here reaches a model hub. What is written lies in ``artifacts/consumers``.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent
SCRIPTS, MADE = ROOT / "ci" / "consumers", ROOT / "artifacts" / "consumers"
FAMILY, CASES, RAW, OUT = (MADE / name for name in ("family", "cases", "raw", "out"))

#: Environment -> what runs in it. Consumers share one where their own requirements allow it.
CONSUMERS: Mapping[str, tuple[str, ...]] = {
    "light": ("fastembed", "light_embed", "chromadb", "pymilvus", "onnxruntime"),
    "onnxruntime-1.22": ("fastembed", "embed_anything"),
    "onnxruntime-1.24": ("onnxruntime",),
    "optimum": ("sentence_transformers_onnx", "optimum", "infinity", "llama_index"),
    "openvino": ("sentence_transformers_openvino",),
    "txtai": ("txtai",),
}
#: What runs where matexport itself is installed, with its extra [export].
HERE = ("sentence_transformers_torch", "sentence_transformers_module")
IN_NODE = ("fastembed", "transformers")

#: Where an environment's packages lie.
ASK_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.stop_on_first_error = False


@nox.session(venv_backend="none")
def family(session: nox.Session) -> None:
    """The family, its folders, and the vectors that they should give."""
    if not (FAMILY / "family.json").is_file():
        session.run("python", "-m", "matexport", "export", str(SCRIPTS / "minilm.toml"), "--out", str(FAMILY))
    session.run("python", str(SCRIPTS / "prepare.py"), str(FAMILY), str(CASES))
    for kept in (RAW, OUT):
        shutil.rmtree(kept, ignore_errors=True)


@nox.session(venv_backend="none")
def here(session: nox.Session) -> None:
    """The consumers that run where matexport does."""
    run_scripts(session, HERE)


def make_session(name: str, consumers: tuple[str, ...]) -> None:
    """One session for an environment; they differ in data alone."""

    @nox.session(name=f"consumers-{name}")
    def consumers_in(session: nox.Session) -> None:
        install_locked(session, SCRIPTS / "locks" / f"{name}.txt")
        run_scripts(session, consumers)


for _name, _consumers in CONSUMERS.items():
    make_session(_name, _consumers)


@nox.session(venv_backend="none")
def node(session: nox.Session) -> None:
    """The consumers that run in Node."""
    folder = Path(session.cache_dir) / "node"
    folder.mkdir(parents=True, exist_ok=True)
    lock, kept = SCRIPTS / "node" / "package-lock.json", folder / "package-lock.json"
    if not (folder / "node_modules").is_dir() or kept.read_bytes() != lock.read_bytes():
        for file in ("package.json", "package-lock.json"):
            shutil.copyfile(SCRIPTS / "node" / file, folder / file)
        # Its packages bring their libraries along; what their scripts would download is for graphics cards.
        session.run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), external=True)
    environment = environment_of(session) | {"CONSUMERS_NODE": str(folder)}
    for name in IN_NODE:
        session.run("node", str(SCRIPTS / f"with_{name}.mjs"), str(CASES), str(RAW), env=environment, external=True)
    session.run("python", str(SCRIPTS / "judge_node.py"), str(CASES), str(RAW), "--out", str(OUT), silent=True)


@nox.session(venv_backend="none")
def table(session: nox.Session) -> None:
    """Every consumer's numbers as one result, and a non-zero exit code where one is off or was not run."""
    session.run("python", "benchmarks/consumers.py", str(OUT), *session.posargs)


def run_scripts(session: nox.Session, consumers: tuple[str, ...]) -> None:
    """Run each consumer's script, the others after one that failed, too, and fail when one did."""
    failed = []
    for name in consumers:
        command = ("python", str(SCRIPTS / f"with_{name}.py"), str(CASES), "--out", str(OUT))
        try:
            session.run(*command, env=environment_of(session), silent=True)
        except CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"{session.name}: {', '.join(failed)}")


def install_locked(session: nox.Session, lock: Path) -> None:
    """What a lock says and no more: linked where it lies on this machine already, and installed where it does not."""
    site = Path(str(session.run("python", "-c", ASK_SITE, silent=True)).strip())
    mine = [Path(sysconfig.get_path("purelib"))]
    others = sorted(path for path in site.parents[3].glob("*/lib/python*/site-packages") if path != site)
    linked = link_packages(dict(read_lock(lock)), site, [*mine, *others])
    session.log(f"linked {len(linked)} packages: {', '.join(linked)}")
    session.install("--no-deps", "-r", str(lock), env={"PIP_COMPILE": "0"})
    session.run("python", "-m", "pip", "check", silent=True)


def read_lock(lock: Path) -> Iterator[tuple[str, str]]:
    """(name, version) of each line of a lock."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            yield canonicalize_name(name), version


def link_packages(wanted: Mapping[str, str], site: Path, sources: list[Path]) -> list[str]:
    """Link the files of packages that are wanted and lie in a source at the wanted version; returns their names.

    A package whose files cannot be linked (the source is on another disk) is left to pip, as one that is nowhere.
    """
    known, linked = [list_installed(source) for source in sources], []
    for name in sorted(wanted.keys() - list_installed(site).keys()):
        found = next((at[name] for at in known if name in at and public(at[name].version) == wanted[name]), None)
        if found is not None and found.files and link_files(found, site):
            linked.append(name)
    return linked


def link_files(found: importlib.metadata.Distribution, site: Path) -> bool:
    """Link a package's modules and metadata; not its scripts, which name the interpreter that they are for."""
    for file in found.files or ():
        if ".." in file.parts or "__pycache__" in file.parts or "direct_url.json" in file.parts:
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(found.locate_file(file), target)
        except FileExistsError:
            continue  # a file of two packages
        except OSError:
            return False
    return True


def list_installed(site: Path) -> dict[str, importlib.metadata.Distribution]:
    """Name -> package, of those in a folder."""
    found = importlib.metadata.distributions(path=[str(site)])
    return {canonicalize_name(package.metadata["Name"]): package for package in found}


def public(version: str) -> str:
    """A version without what a local build adds, such as ``+cpu``."""
    return version.partition("+")[0]


def environment_of(session: nox.Session) -> dict[str, str]:
    """No hub, no telemetry, and a home and caches of its own."""
    home = Path(session.create_tmp()) / "home"
    home.mkdir(exist_ok=True)
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "ANONYMIZED_TELEMETRY": "False",
        "TOKENIZERS_PARALLELISM": "false",
    }
