"""Other programs on the folders that `matexport pack` writes, each in an environment of its own; see docs/consumers.md.

    nox                      all of it: the family, its folders, every consumer, then the table's numbers
    nox -s consumers-light   one environment

An environment is what its lock in ``ci/consumers/locks`` says, installed without looking for more. What the environment
that runs nox (or another of these) has at the same version is linked from there: torch alone has 700 MB. Environments
are kept; one whose lock has changed is installed over.

Nothing here reaches a model hub. What is written lies in ``artifacts/consumers``.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "ci" / "consumers"))

from environments import find_complaints, link_packages, list_installed, read_lock  # noqa: E402

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
    wanted = dict(read_lock(lock))
    if extra := sorted(list_installed(site).keys() - wanted.keys() - {"pip", "setuptools"}):
        session.run("python", "-m", "pip", "uninstall", "-q", "-y", *extra)
    others = sorted(path for path in site.parents[3].glob("*/lib/python*/site-packages") if path != site)
    linked = link_packages(wanted, site, [Path(sysconfig.get_path("purelib")), *others])
    session.log(f"linked {len(linked)} packages: {', '.join(linked)}")
    session.install("--no-deps", "-r", str(lock), env={"PIP_COMPILE": "0"})
    said = session.run("python", "-m", "pip", "check", silent=True, success_codes=[0, 1])
    if complaints := find_complaints(lock, str(said)):
        session.error("; ".join(complaints))


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
