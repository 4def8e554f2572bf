"""The command line: one function per command. The only module that prints or picks an exit code.

Standard output is a command's result (a table, vectors, or with ``--json`` one JSON document); progress and errors go
to standard error. Exit codes: 0 done; 1 a gate said no (parity off its floor, a family that is not what was
exported); 2 what was asked cannot be done; 130 interrupted. torch is imported by ``export`` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import matexport
from matexport.errors import DestinationError, FamilyError, MatexportError, ParityError, RequestError

if TYPE_CHECKING:
    from matexport.verify import Verification

DONE, REFUSED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

#: Texts embedded at a time when they come from a file: bounds memory, not speed.
CHUNK_TEXTS = 2048


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong takes one line; the usage is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parse(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except ParityError as error:
        return _complain(error, REFUSED)
    except MatexportError as error:
        return _complain(error, UNUSABLE)
    except KeyboardInterrupt:
        return _complain("interrupted; nothing was changed", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return DONE


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _make_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse closes a list of positionals at the first option, so `embed FAMILY --profile P TEXT` leaves TEXT over.
    options_end = rest.index("--") if "--" in rest else len(rest)
    if rest and (not hasattr(options, "texts") or any(text.startswith("-") for text in rest[:options_end])):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.texts += rest[:options_end] + rest[options_end + 1 :]
    return options


def run_export(options: argparse.Namespace) -> int:
    """``matexport export PROFILE.toml``"""
    from dataclasses import replace

    from matexport.profiles import load_job

    job = load_job(options.profile)
    if options.parent:
        # What the profile pins is its own parent; a path given here is relative to where the user is.
        source = str(Path(options.parent).resolve()) if Path(options.parent).is_dir() else options.parent
        job = replace(job, parent=replace(job.parent, source=source, sha256=None, revision=None))
    out = options.out or Path("artifacts") / options.profile.stem
    from matexport.build import export_family
    from matexport.build.quiet import quiet_libraries

    quiet_libraries()
    with _progress() as progress:
        exported = export_family(job, out, overwrite=options.overwrite, progress=progress)
    if options.json:
        document = {"family": str(out), "up_to_date": exported.up_to_date}
        _print_json(document | _describe_verification(out, exported.verification))
    else:
        _print_verification(out, exported.verification)
        state = "up to date" if exported.up_to_date else "written"
        if exported.family.facts.trace.fallback:
            print(f"\ntraced with the TorchScript exporter: {exported.family.facts.trace.fallback}")
        print(f"\n{out}: {state}, {len(exported.verification.verdicts)} profiles")
    return DONE if exported.verification.passed else REFUSED


def run_verify(options: argparse.Namespace) -> int:
    """``matexport verify FAMILY``"""
    from matexport.junit import write_junit
    from matexport.manifest import load_family
    from matexport.verify import record_measurement, verify_family

    family = load_family(options.family)  # not a family at all: exit code 2, as for any wrong argument
    try:
        with _progress() as progress:
            verification = verify_family(options.family, threads=options.threads, progress=progress)
    except FamilyError as error:
        if options.json:
            _print_json({"family": str(options.family), "passed": False, "problems": list(error.problems)})
        for problem in error.problems:
            _complain(problem, REFUSED)
        if options.junit:
            with _explain_os_errors(options.junit):
                write_junit(options.junit, options.family, error.problems)
        return REFUSED
    if options.junit:
        with _explain_os_errors(options.junit):
            write_junit(options.junit, options.family, verification)
    if options.record:
        with _explain_os_errors(options.family):
            record_measurement(family, verification)
    if options.json:
        _print_json({"family": str(options.family)} | _describe_verification(options.family, verification))
    else:
        _print_verification(options.family, verification)
    for verdict in verification.verdicts:
        if not verdict.passed:
            way, parity = verdict.worst
            _complain(
                f"{verdict.profile} differs from the parent by {parity.max_abs:.2g} ({way}, probe {parity.worst}); "
                f"allowed is {verdict.max_abs_allowed:g}",
                REFUSED,
            )
    return DONE if verification.passed else REFUSED


def run_show(options: argparse.Namespace) -> int:
    """``matexport show FAMILY``"""
    from matexport.host import read_host
    from matexport.manifest import load_family
    from matexport.tables import describe_profiles, format_profiles
    from matexport.verify import load_measurement

    family = load_family(options.family)
    rows = describe_profiles(family, load_measurement(family, read_host()))
    if options.json:
        import msgspec

        facts = msgspec.to_builtins(family.facts)
        _print_json({"family": str(options.family), "facts": facts, "profiles": rows})
        return DONE
    facts = family.facts
    heads = " -> ".join([" + ".join(facts.readout.pooling), *facts.readout.heads])
    print(f"parent    {facts.parent.source} ({facts.parent.architecture}, {facts.parent.blocks} blocks, ", end="")
    print(f"{facts.parent.output_width} dims)")
    print(f"read-out  {heads}, final norm {facts.readout.final_norm}, ", end="")
    print("unit length after the cut" if facts.readout.normalize else "not scaled after the cut")
    print(f"text      up to {facts.text.max_tokens} tokens; prompts: {', '.join(facts.text.prompts) or 'none'}\n")
    print(format_profiles(rows))
    if all(row["max_abs"] is None for row in rows):
        print("\nparity was not measured on this host: run matexport verify --record")
    return DONE


def run_embed(options: argparse.Namespace) -> int:
    """``matexport embed FAMILY``"""
    from matexport.embed import Embedder

    if options.output and options.output.suffix not in (".npy", ".jsonl"):
        raise RequestError(f"--output {options.output} was asked; its name must end in .npy or .jsonl")
    if options.json and options.output:
        raise RequestError("--json prints to standard output; leave out --output or --json")
    with _open_texts(options) as texts:
        embedder = Embedder(options.family, options.profile, threads=options.threads)
        chunks = _embed_chunks(embedder, texts, options)
        if options.output and options.output.suffix == ".npy":
            _write_npy(options.output, chunks, embedder.dim)
        elif options.output:
            with _replace_file(options.output) as file:
                file.writelines(line.encode() for line in _format_lines(chunks))
        elif options.json:
            pairs = [(text, row) for chunk in chunks for text, row in zip(*chunk, strict=True)]
            vectors = [row.tolist() for _, row in pairs]
            _print_json({"profile": embedder.profile, "dim": embedder.dim, "vectors": vectors})
        else:
            for line in _format_lines(chunks):
                sys.stdout.write(line)
            sys.stdout.flush()
    return DONE


def run_pack(options: argparse.Namespace) -> int:
    """``matexport pack FAMILY PROFILE OUT``"""
    from matexport.pack import pack_profile

    pack = pack_profile(options.family, options.profile, options.out, overwrite=options.overwrite)
    total = sum(file.bytes for file in pack.facts.files.values())
    if options.json:
        files = {name: file.bytes for name, file in pack.facts.files.items()}
        _print_json({"pack": str(options.out), "profile": options.profile, "bytes": total, "files": files})
    else:
        print(f"{options.out}: {options.profile}, {len(pack.facts.files) + 1} files, {total / 1e6:.1f} MB")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="matexport",
        description="Turn a 2D-Matryoshka encoder into a family of ONNX sub-models, one per (layers, dim) profile, "
        "each proven equal to its parent at that point.",
        epilog="exit codes: 0 done, 1 a gate said no (parity, changed files), 2 what was asked cannot be done",
    )
    parser.add_argument("--version", action="version", version=f"matexport {matexport.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    export = _add_command(
        commands, "export", run_export, "export a family and prove every profile against the parent",
        "Trace the parent once, cut one ONNX graph per (layers, dim) point, write the weights that all of them share, "
        "and compare each with the parent's own vectors on the probes. The destination appears when everything has "
        "passed; when it holds the family of the same inputs already, that is verified instead. Needs the [build] "
        "extra.",
        "example:\n  matexport export profiles/minilm.toml --out artifacts/minilm",
    )  # fmt: skip
    export.add_argument("profile", type=Path, metavar="PROFILE.toml", help="what to export; see profiles/")
    export.add_argument("--out", type=Path, metavar="DIR", help="directory to write (default: artifacts/NAME)")
    export.add_argument("--parent", metavar="SOURCE",
                        help="take this parent instead of the profile's: a directory, a hub id or package:NAME/path; "
                        "the profile's sha256 and revision are not applied to it")  # fmt: skip
    export.add_argument("--overwrite", action="store_true", help="replace a family of other inputs in DIR")

    verify = _add_command(
        commands, "verify", run_verify, "check a family's files and its parity on this machine",
        "Check every file's digest, that no path leaves the folder and that all weights are finite; then run every "
        "profile on the family's probes, batched and one by one, and compare with the parent's stored vectors. Needs "
        "neither torch nor the parent.",
        "example (a gate in CI):\n  matexport verify artifacts/minilm --junit parity.xml",
    )  # fmt: skip
    _add_family(verify)
    verify.add_argument("--junit", type=Path, metavar="FILE", help="also write the result as JUnit XML")
    verify.add_argument("--record", action="store_true", help="keep the result in FAMILY/measurements/<host>.json")
    _add_threads(verify)

    show = _add_command(
        commands, "show", run_show, "print what a family contains",
        "Print a family's parent, read-out and profiles: size of the download (graph and the prefix of the weights "
        "that it needs), parity as measured on this host, and the graph's file. Reads the manifest only.",
        "example:\n  matexport show artifacts/minilm",
    )  # fmt: skip
    _add_family(show)

    embed = _add_command(
        commands, "embed", run_embed, "embed texts with one profile",
        "Embed texts given as arguments, as the lines of a file, or on standard input. Without --output, prints one "
        "JSON object per text.",
        "examples:\n  matexport embed artifacts/minilm --profile L02-D064-fp32 'a text' 'another'\n"
        "  matexport embed artifacts/minilm --profile L02-D064-fp32 --input texts.txt --output vectors.npy\n"
        "  cat texts.txt | matexport embed artifacts/minilm --profile L02-D064-fp32 > vectors.jsonl",
    )  # fmt: skip
    _add_family(embed)
    embed.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed")
    embed.add_argument("--profile", metavar="NAME", help="profile, as `show` lists them; optional for a pack")
    embed.add_argument("--input", metavar="FILE", help="read one text per line; - is standard input")
    embed.add_argument("--output", type=Path, metavar="FILE", help="write to FILE.npy ((n, dim) float32) or FILE.jsonl")
    embed.add_argument("--prompt", metavar="NAME", help="one of the parent's prompts ('' for none; default: its own)")
    embed.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="texts per run (default: 32)")
    _add_threads(embed)

    pack = _add_command(
        commands, "pack", run_pack, "write one profile as a self-contained folder",
        "Copy one profile's graph, the prefix of the weights that it needs, the tokenizer and the proof into a folder "
        "of its own; embed, show and verify work on it.",
        "example:\n  matexport pack artifacts/minilm L02-D064-fp32 artifacts/small",
    )  # fmt: skip
    _add_family(pack)
    pack.add_argument("profile", metavar="PROFILE", help="profile, as `show` lists them")
    pack.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    pack.add_argument("--overwrite", action="store_true", help="replace the family or pack in OUT")
    return parser


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    import textwrap

    command.description = textwrap.fill(description, 80)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return command


def _add_family(command: argparse.ArgumentParser) -> None:
    command.add_argument("family", type=Path, metavar="FAMILY", help="directory of a family or a pack")


def _add_threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=_positive, metavar="N", help="threads (default: all CPUs of this process)")


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


@contextlib.contextmanager
def _open_texts(options: argparse.Namespace) -> Iterator[Iterable[str]]:
    """The texts of `embed`, one at a time."""
    if options.texts and options.input:
        raise RequestError("give texts as arguments or with --input, not both")
    if options.texts:
        yield options.texts
    elif options.input == "-" or (options.input is None and not sys.stdin.isatty()):
        sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
        yield _strip_lines(sys.stdin)
    elif options.input is None:
        raise RequestError("no texts: give them as arguments, with --input FILE, or on standard input")
    else:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(Path(options.input).open(encoding="utf-8", newline="\n"))
            except OSError as error:
                raise RequestError(f"cannot read {options.input}: {error.strerror}") from None
            yield _strip_lines(file)


def _strip_lines(lines: Iterable[str]) -> Iterator[str]:
    try:
        for line in lines:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise RequestError("the texts are not UTF-8") from None


def _embed_chunks(embedder: Any, texts: Iterable[str], options: argparse.Namespace) -> Iterator[tuple[list[str], Any]]:
    remaining = iter(texts)
    done = 0
    with _progress() as progress:
        while chunk := list(islice(remaining, CHUNK_TEXTS)):
            yield chunk, embedder.embed(chunk, prompt=options.prompt, batch_size=options.batch_size)
            done += len(chunk)
            progress("embed", done, 0)


def _format_lines(chunks: Iterable[tuple[list[str], Any]]) -> Iterator[str]:
    for texts, vectors in chunks:
        for text, vector in zip(texts, vectors, strict=True):
            yield json.dumps({"text": text, "embedding": vector.tolist()}, ensure_ascii=False) + "\n"


def _write_npy(path: Path, chunks: Iterable[tuple[list[str], Any]], dim: int) -> None:
    import numpy as np

    parts = [vectors for _, vectors in chunks]
    with _replace_file(path) as file:
        np.save(file, np.concatenate(parts) if parts else np.empty((0, dim), np.float32), allow_pickle=False)


@contextlib.contextmanager
def _explain_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DestinationError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None


@contextlib.contextmanager
def _replace_file(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` when all of it has been written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _describe_verification(path: Path, verification: Verification) -> dict[str, object]:
    import msgspec

    from matexport.manifest import load_family
    from matexport.tables import describe_profiles

    parities = {verdict.profile: verdict.parity for verdict in verification.verdicts}
    passed = {verdict.profile: verdict.passed for verdict in verification.verdicts}
    rows = describe_profiles(load_family(path), parities)
    return {
        "passed": verification.passed,
        "host": msgspec.to_builtins(verification.host),
        "profiles": [row | {"passed": passed[str(row["profile"])]} for row in rows],
    }


def _print_verification(path: Path, verification: Verification) -> None:
    from matexport.manifest import load_family
    from matexport.tables import describe_profiles, format_profiles

    parities = {verdict.profile: verdict.parity for verdict in verification.verdicts}
    print(format_profiles(describe_profiles(load_family(path), parities)))
    host = verification.host
    print(f"\nparity on {host.cpu} ({', '.join(host.instruction_sets)}), onnxruntime {host.onnxruntime}")


def _print_json(document: dict[str, Any]) -> None:
    # NaN is not JSON; a parity that could not be computed is null.
    print(json.dumps(_replace_nan(document), ensure_ascii=False, indent=1, allow_nan=False))


def _replace_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _complain(message: object, code: int) -> int:
    print(f"matexport: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on standard error, one per stage; nothing when that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
        return
    from tqdm import tqdm

    bar: Any = None

    def report(stage: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None or bar.desc.rstrip(": ") != stage:
            if bar is not None:
                bar.close()
            bar = tqdm(total=total or None, desc=stage, leave=True, dynamic_ncols=True)
        bar.n = done
        bar.refresh()

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


if __name__ == "__main__":
    raise SystemExit(main())
