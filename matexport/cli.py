"""The command line: one function per command. The only module that prints or picks an exit code.

Standard output is a command's result (a table, vectors, or with ``--json`` one JSON document); progress and errors go
to standard error. Exit codes: 0 done; 1 a gate said no (parity off its floor, a family that is not what was
exported, a budget that nothing fits); 2 what was asked cannot be done; 130 interrupted. torch is imported by
``export`` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.arguments import UNUSABLE, parse_arguments
from matexport.errors import DestinationError, FamilyError, MatexportError, ParityError, RequestError

if TYPE_CHECKING:
    from matexport.family.manifest import Family
    from matexport.family.summary import Parities, Spreads
    from matexport.measure.tasks import Task
    from matexport.pick.devices import Device
    from matexport.runtime.embedder import Embedder
    from matexport.verify.drift import Drift
    from matexport.verify.judge import Case
    from matexport.verify.verdict import Verification

DONE, REFUSED, INTERRUPTED = 0, 1, 130

#: Texts between two moves of the progress bar.
PROGRESS_TEXTS = 256


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse_arguments(arguments, COMMANDS)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except ParityError as error:
        return _complain(error, REFUSED)
    except MatexportError as error:
        return _complain(error, UNUSABLE)
    except KeyboardInterrupt:
        return _complain(_describe_interruption(options), INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return DONE


def _describe_interruption(options: argparse.Namespace) -> str:
    if getattr(options, "engine", None) == "ray":
        return "interrupted; the same command goes on where it was"
    return "interrupted; no file was changed"


def run_export(options: argparse.Namespace) -> int:
    """``matexport export PROFILE.toml``"""
    from msgspec.structs import replace

    from matexport.io.jobs import change_precisions, load_job
    from matexport.spec.profile import Precision

    job = load_job(options.profile)
    if options.parent is not None:
        # What the profile pins is its own parent; a path given here is relative to where the user is.
        source = str(Path(options.parent).resolve()) if Path(options.parent).is_dir() else options.parent
        job = replace(job, parent=replace(job.parent, source=source, sha256=None, revision=None))
    if options.precision:
        job = change_precisions(job, [Precision(name) for name in options.precision])
    from matexport.export import export_family

    with _progress() as progress:
        exported = export_family(job, options.out, overwrite=options.overwrite, progress=progress, quiet=True)
    out = exported.family.path
    if options.json:
        document = {
            "family": str(out),
            "up_to_date": exported.up_to_date,
            "refused": dict(exported.family.facts.refused),
        }
        _print_json(document | _describe_verification(out, exported.verification))
    else:
        _print_verification(out, exported.verification)
        state = "up to date" if exported.up_to_date else "written"
        if exported.family.facts.trace.fallback:
            print(f"\ntraced with the TorchScript exporter: {exported.family.facts.trace.fallback}")
            print("its graphs say no shapes, so a cls profile computes all tokens of its last block")
        _print_decisions(exported.family)
        _print_unread(exported.family)
        print(f"\n{out}: {state}, {len(exported.verification.verdicts)} profiles")
    for reason in exported.family.facts.refused.values():
        _complain(f"not in the family: {reason}", REFUSED)
    return DONE if exported.verification.passed and not exported.family.facts.refused else REFUSED


def _print_unread(family: Family) -> None:
    """Weights that the parent's own library leaves lying: heads of another task, or something it no longer has."""
    unread = family.facts.parent.unread
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        print(f"weights that the parent's own library reads nothing from: {', '.join(unread[:3])}{more}")


def run_verify(options: argparse.Namespace) -> int:
    """``matexport verify FAMILY``"""
    from matexport.family.manifest import load_family
    from matexport.verify.drift import compare_families, find_common
    from matexport.verify.judge import open_case, verify_case
    from matexport.verify.junit import write_junit
    from matexport.verify.verdict import record_measurement

    family, case, drift = None, None, None
    compared: tuple[str, ...] = ()
    baseline = load_family(options.baseline) if options.baseline else None
    try:
        family = load_family(options.family)
        if baseline:
            compared = tuple(find_common(family, baseline))
        case, old = open_case(family), _open_baseline(baseline) if baseline else None  # both, before any session
        for problem in _list_token_problems(case):
            _complain(problem, REFUSED)
        with _progress() as progress:
            verification = verify_case(case, threads=options.threads, progress=progress)
            if old is not None:
                drift = compare_families(case, old, threads=options.threads, progress=progress)
    except FamilyError as error:
        problems = (*_list_token_problems(case), *error.problems)
        if options.json:
            _print_json({"family": str(options.family), "passed": False, "problems": list(problems)})
        for problem in error.problems:
            _complain(problem, REFUSED)
        if options.junit:
            with _explain_os_errors(options.junit):
                write_junit(options.junit, family or options.family, problems, compared)
        return UNUSABLE if family is None else REFUSED  # not a family at all is a wrong argument
    if options.junit:
        with _explain_os_errors(options.junit):
            write_junit(options.junit, family, verification, drift)
    if options.record:
        with _explain_os_errors(options.family):
            record_measurement(family, verification)
    if options.json:
        document = {"family": str(options.family)} | _describe_verification(options.family, verification)
        _print_json(document | ({"drift": _describe_drift(drift)} if drift else {}))
    else:
        _print_verification(options.family, verification)
        if drift:
            _print_drift(drift)
    sys.stdout.flush()  # so that what is wrong follows the table where both go to one file
    for name, failure in _describe_failures(family, verification).items():
        _complain(f"{name} is off its floor: {failure['message']}", REFUSED)
    for profile in drift.profiles if drift else ():
        for reason in profile.reasons:
            _complain(f"{profile.profile} is not compatible with {options.baseline}: {reason}", REFUSED)
    passed = verification.passed and (drift is None or drift.compatible)
    if not options.json:
        print(f"\n{_format_verdict(verification, drift)}")
    return DONE if passed else REFUSED


def _list_token_problems(case: Case | None) -> tuple[str, ...]:
    difference = case.token_ids.find_difference() if case and case.token_ids else None
    return (difference,) if difference else ()


def _open_baseline(family: Family) -> Case:
    """The other family of a comparison; what is wrong with it says that it is that one."""
    from matexport.verify.judge import open_case

    try:
        return open_case(family)
    except FamilyError as error:
        problems = [f"baseline {family.path}: {problem}" for problem in error.problems]
        raise FamilyError("; ".join(problems), problems) from None


def run_bench(options: argparse.Namespace) -> int:
    """``matexport bench FAMILY``"""
    from matexport.family.manifest import load_family
    from matexport.family.measurements import record_bench
    from matexport.io.texts import MAX_MIX_TEXTS, read_texts
    from matexport.measure.bench import BenchPlan, bench_family
    from matexport.tables import format_bench

    family = load_family(options.family)
    if options.parent is not None and not options.against:
        raise RequestError("--parent is for --against torch")
    if options.against:
        from matexport.export import require_export_extra

        require_export_extra()
    texts = read_texts(options.texts, MAX_MIX_TEXTS, "the texts") if options.texts else ()
    if options.texts and not texts:
        raise RequestError(f"the texts {options.texts} are empty: give one per line")
    plan = BenchPlan(
        profiles=tuple(options.profile),
        threads=tuple(options.threads),
        shapes=tuple(options.shape),
        texts=texts,
        runs=options.runs,
        seconds=options.seconds,
        provider=options.provider,
        parent=(options.parent or family.facts.parent.source) if options.against else None,
    )
    with _progress() as progress:
        bench = bench_family(family, plan, progress=progress)
    if not options.json:  # before it is kept: that may fail, and took minutes
        mix = next(iter(bench.profiles.values())).mix_texts
        print(format_bench(bench))
        print(f"\n{bench.host.cpu}, {bench.host.cpus} CPUs, onnxruntime {bench.host.onnxruntime}, ", end="")
        print(f"provider {bench.provider}; texts/s on {mix} {'texts of yours' if texts else 'probes'}")
        print("medians, in brackets their 95 % interval", flush=True)
    with _explain_os_errors(options.family):
        path = record_bench(family, bench)
    if options.json:
        import msgspec

        _print_json({"family": str(options.family), "recorded": str(path)} | msgspec.to_builtins(bench, str_keys=True))
    else:
        print(f"kept in {path}")
    return DONE


def run_evaluate(options: argparse.Namespace) -> int:
    """``matexport evaluate FAMILY``"""
    from matexport.family.manifest import load_family
    from matexport.family.measurements import record_quality
    from matexport.measure.evaluate import evaluate_family, require_evaluate_extra
    from matexport.measure.tasks import load_retrieval, load_sts, load_unlabelled, read_shipped_texts
    from matexport.tables import format_adaptive, format_quality

    require_evaluate_extra()
    family = load_family(options.family)
    tasks: list[Task] = [
        *(load_sts(path) for path in options.sts),
        *(load_retrieval(path, options.split) for path in options.retrieval),
        *(load_unlabelled(path) for path in options.texts),
    ]
    if options.shortlist and not options.retrieval:
        raise RequestError("--shortlist is for --retrieval")
    with _progress() as progress:
        quality = evaluate_family(
            family,
            tasks or [read_shipped_texts()],
            profiles=options.profile,
            shortlist=options.shortlist,
            threads=options.threads,
            progress=progress,
        )
    if not options.json:  # before it is kept: that may fail, and took minutes
        print(format_quality(family, quality), flush=True)
        if any(task.adaptive for task in quality.tasks.values()):
            print(f"\n{format_adaptive(quality)}", flush=True)
    with _explain_os_errors(options.family):
        path = record_quality(family, quality)
    if options.json:
        import msgspec

        _print_json(
            {"family": str(options.family), "recorded": str(path)} | msgspec.to_builtins(quality, str_keys=True)
        )
        return DONE
    if all(task.parent is None for task in quality.tasks.values()):
        print("\nretention is unknown: the family lacks the whole parent in fp32; export with that point to have it")
    print(f"\nkept in {path}")
    return DONE


def run_pick(options: argparse.Namespace) -> int:
    """``matexport pick FAMILY``"""
    from msgspec.structs import fields, replace

    from matexport.family.manifest import load_family
    from matexport.family.survey import survey_family
    from matexport.host import read_host
    from matexport.pick.choose import choose
    from matexport.pick.limits import Budget
    from matexport.pick.wording import describe_choice, format_choice, list_unchecked, summarise_rejections

    if options.overwrite and options.out is None:
        raise RequestError("--overwrite is for --out DIR")
    asked = {field.name: getattr(options, field.name) for field in fields(Budget)}
    budget, device, host = Budget(), None, None
    if options.device is not None:
        from matexport.pick.devices import load_device

        device = load_device(options.device)
        budget, host = device.limits, device.host
    budget = replace(budget, **{name: limit for name, limit in asked.items() if limit is not None})
    family = load_family(options.family)
    if options.out is not None:
        from matexport.family.integrity import refuse_occupied

        refuse_occupied(options.out, overwrite=options.overwrite)
    if options.measure:
        _measure_missing(family, device, options)
    survey = survey_family(
        family,
        host if device else read_host(),
        threads=options.threads,
        shape=options.shape,
        task=options.task,
    )
    choice = choose(survey, budget, trained_only=options.trained_only)
    unchecked = list_unchecked(choice) if options.strict else ()
    pack = None
    if options.out is not None and choice.chosen and not unchecked:
        from matexport.pack import pack_profile

        with _progress() as progress:
            pack = pack_profile(
                family, choice.chosen.profile, options.out, overwrite=options.overwrite, progress=progress
            )
    if options.json:
        document = {"family": str(options.family), "device": device.name if device else None}
        written = str(options.out) if pack else None
        _print_json(document | describe_choice(survey, choice) | {"pack": written})
    else:
        if device:
            print(f"device: {device.name} ({', '.join(device.sources)})\n")
        print(format_choice(survey, choice, str(options.family)))
        if pack:
            total = sum(file.bytes for file in pack.facts.files.values())
            print(f"\n{options.out}: {len(pack.facts.files) + 1} files, {total / 1e6:.1f} MB")
    if choice.chosen is None:
        return _complain(f"nothing fits: {summarise_rejections(choice.rejections)}", REFUSED)
    if unchecked:
        unwritten = "; nothing was written" if options.out else ""
        return _complain(f"--strict: {', '.join(unchecked)} could not be checked{unwritten}", REFUSED)
    return DONE


def _measure_missing(family: Family, device: Device | None, options: argparse.Namespace) -> None:
    """Bench what lacks timings of this host, and keep them."""
    from matexport.family.measurements import record_bench
    from matexport.family.survey import list_unmeasured
    from matexport.host import read_host
    from matexport.measure.bench import DEFAULT_SHAPES, BenchPlan, bench_family

    here = read_host()
    if device and not (device.host and device.host.matches(here)):
        raise RequestError(
            f"--measure was asked for {device.name}; this machine is another one ({here.cpu}, {here.cpus} CPUs): run "
            f"matexport bench on the device, and copy its {options.family}/measurements/*.json here"
        )
    profiles = list_unmeasured(family, here, threads=options.threads, shape=options.shape)
    if not profiles:
        return
    shapes: tuple[tuple[int, int], ...] = ()
    if options.shape and options.shape not in DEFAULT_SHAPES:
        most = family.facts.text.max_tokens
        shapes = (*(shape for shape in DEFAULT_SHAPES if shape[1] <= most), options.shape)
    threads = (options.threads,) if options.threads else ()
    if shapes:  # other shapes take the place of what was timed before, at any number of threads
        threads = (1, here.cpus, *threads)
    with _progress() as progress:
        bench = bench_family(family, BenchPlan(profiles, threads, shapes), progress=progress)
    with _explain_os_errors(options.family):
        record_bench(family, bench)


def run_show(options: argparse.Namespace) -> int:
    """``matexport show FAMILY``"""
    from matexport.family.manifest import load_family
    from matexport.family.measurements import load_measurement
    from matexport.family.summary import describe_profiles
    from matexport.host import read_host
    from matexport.tables import format_profiles

    family = load_family(options.family)
    measured = load_measurement(family, read_host())
    rows = describe_profiles(family, *((measured.parity, measured.spread) if measured else ()))
    if options.json:
        import msgspec

        facts = msgspec.to_builtins(family.facts)
        _print_json({"family": str(options.family), "facts": facts, "profiles": rows})
        return DONE
    facts = family.facts
    heads = " -> ".join(filter(None, [" + ".join(facts.readout.pooling), *facts.readout.heads]))
    print(f"parent    {facts.parent.source} ({facts.parent.architecture}, {facts.parent.blocks} blocks, ", end="")
    print(f"{facts.parent.output_width} dims)")
    print(f"read-out  {heads}, final norm {facts.readout.final_norm}, ", end="")
    print("unit length after the cut" if facts.readout.normalize else "not scaled after the cut")
    if facts.parent.judge:
        print(f"judge     {facts.parent.judge}")
    print(f"text      {facts.text.describe_limit()}; prompts: {', '.join(facts.text.prompts) or 'none'}\n")
    print(format_profiles(rows))
    if measured and measured.token_ids and (difference := measured.token_ids.find_difference()):
        print(f"\non this host, {difference}")
    _print_decisions(family)
    _print_unread(family)
    for reason in facts.refused.values():
        print(f"not in the family: {reason}")
    if all(row["max_abs"] is None for row in rows):
        print("\nparity was not measured on this host: run matexport verify --record")
    return DONE


def run_embed(options: argparse.Namespace) -> int:
    """``matexport embed FAMILY``"""
    if options.engine == "ray":
        return _embed_on_ray(options)
    if options.workers or options.column:
        raise RequestError("--workers and --column are for --engine ray")
    from matexport.runtime.embedder import Embedder

    if options.output and options.output.suffix not in (".npy", ".jsonl"):
        raise RequestError(f"--output {options.output} was asked; its name must end in .npy or .jsonl")
    if options.json and options.output:
        raise RequestError("--json prints to standard output; leave out --output or --json")
    with _open_texts(options) as texts, _progress() as progress:
        embedder = Embedder(options.family, options.profile, threads=options.threads)
        pairs = _embed_pairs(embedder, texts, options, progress)
        if options.output and options.output.suffix == ".npy":
            _write_npy(options.output, (vector for _, vector in pairs), embedder)
        elif options.output:
            with _replace_file(options.output) as file:
                file.writelines(line.encode() for line in _format_lines(pairs))
        elif options.json:
            vectors = [vector.tolist() for _, vector in pairs]
            _print_json({"profile": embedder.profile, "dim": embedder.dim, "vectors": vectors})
        else:
            for line in _format_lines(pairs):
                sys.stdout.write(line)
            sys.stdout.flush()
    return DONE


def _embed_on_ray(options: argparse.Namespace) -> int:
    from matexport.runtime.corpus.ray import embed_corpus

    if len(options.texts) != 2 or options.input or options.output:
        raise RequestError(
            "--engine ray takes a Parquet corpus and a folder to write: embed FAMILY ... CORPUS.parquet OUT"
        )
    corpus, out = options.texts
    with _progress() as progress:
        result = embed_corpus(
            options.family,
            corpus,
            out,
            profile=options.profile,
            prompt=options.prompt,
            task=options.task,
            progress=progress,
            **{
                name: value
                for name in ("column", "workers", "threads", "batch_tokens")
                if (value := getattr(options, name)) is not None
            },
        )
    if options.json:
        _print_json({"out": out, "rows": result.rows, "parts": result.parts, "done_before": result.parts_done_before})
    else:
        before = f", {result.parts_done_before} of them there before" if result.parts_done_before else ""
        print(f"{out}: {result.rows} vectors in {result.parts} files{before}")
    return DONE


def run_pack(options: argparse.Namespace) -> int:
    """``matexport pack FAMILY PROFILE OUT``"""
    from matexport.pack import pack_profile

    with _progress() as progress:
        pack = pack_profile(
            options.family, options.profile, options.out, overwrite=options.overwrite, progress=progress
        )
    total = sum(file.bytes for file in pack.facts.files.values())
    if options.json:
        files = {name: file.bytes for name, file in pack.facts.files.items()}
        _print_json({"pack": str(options.out), "profile": options.profile, "bytes": total, "files": files})
    else:
        print(f"{options.out}: {options.profile}, {len(pack.facts.files) + 1} files, {total / 1e6:.1f} MB")
    return DONE


def run_report(options: argparse.Namespace) -> int:
    """``matexport report FAMILY``"""
    from matexport.pick.limits import Budget
    from matexport.report.findings import gather_findings
    from matexport.report.write import require_report_extra, write_report

    require_report_extra()
    budget = Budget(
        max_latency_ms=options.max_latency_ms,
        max_disk_mb=options.max_disk_mb,
        max_ram_mb=options.max_ram_mb,
        min_retention=options.min_retention,
    )
    findings = gather_findings(options.family, budget=budget, threads=options.threads, task=options.task)
    report = write_report(findings, options.out)
    if options.json:
        files = {str(report.page): report.page_bytes, str(report.card): report.card_bytes}
        _print_json(
            {"family": str(options.family), "report": str(report.page), "card": str(report.card), "bytes": files}
        )
    else:
        print(f"{report.page}: {report.page_bytes / 1e3:.0f} kB; {report.card}: {report.card_bytes / 1e3:.0f} kB")
    return DONE


@contextlib.contextmanager
def _open_texts(options: argparse.Namespace) -> Iterator[Iterable[str]]:
    """The texts of `embed`, one at a time."""
    if options.texts and options.input:
        raise RequestError("give texts as arguments or with --input, not both")
    if options.texts:
        yield options.texts
    elif options.input == "-" or (options.input is None and not sys.stdin.isatty()):
        sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
        lines = _strip_lines(sys.stdin)
        first = next(lines, None)
        if first is None and options.input is None:  # nothing was piped in: more likely a TEXT that was forgotten
            raise RequestError("no texts: give them as arguments, with --input FILE, or on standard input")
        yield lines if first is None else chain([first], lines)
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


def _embed_pairs(
    embedder: Embedder, texts: Iterable[str], options: argparse.Namespace, progress: Callable[[str, int, int], None]
) -> Iterator[tuple[str, Any]]:
    """(text, vector) for each text of a stream."""
    waiting: deque[str] = deque()

    def note() -> Iterator[str]:
        for text in texts:
            waiting.append(text)
            yield text

    vectors = embedder.embed_iter(note(), prompt=options.prompt, task=options.task, batch_tokens=options.batch_tokens)
    for done, vector in enumerate(vectors, 1):
        yield waiting.popleft(), vector
        if not done % PROGRESS_TEXTS:
            progress("embed", done, 0)


def _format_lines(pairs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for text, vector in pairs:
        yield json.dumps({"text": text, "embedding": vector.tolist()}, ensure_ascii=False) + "\n"


def _write_npy(path: Path, vectors: Iterable[Any], embedder: Embedder) -> None:
    """An array of as many rows as there turn out to be, written as they come."""
    import numpy as np
    from numpy.lib import format as npy

    empty = embedder.embed([])
    count = 0
    with _replace_file(path) as file:  # first: what cannot be written is said before anything is embedded
        header = npy.header_data_from_array_1_0(empty)
        npy.write_array_header_1_0(file, header)
        body = file.tell()
        for vector in vectors:
            file.write(np.ascontiguousarray(vector).data)
            count += 1
        file.seek(0)  # numpy leaves room in a header for the first axis to grow
        npy.write_array_header_1_0(file, header | {"shape": (count, *empty.shape[1:])})
        assert file.tell() == body


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

    from matexport.family.manifest import load_family

    family, token_ids = load_family(path), verification.token_ids
    described = None
    if token_ids:
        described = {"passed": token_ids.passed, **msgspec.to_builtins(token_ids)}
        described["message"] = token_ids.find_difference()
    return {
        "passed": verification.passed,
        "host": msgspec.to_builtins(verification.host),
        "another_instruction_set": _is_another(family, verification),
        "token_ids": described,
        "profiles": _describe_rows(family, verification),
    }


def _describe_rows(family: Family, verification: Verification) -> list[dict[str, object]]:
    """One row per profile: `describe_profiles`, whether it passed, and what failed first if it did not."""
    from matexport.family.summary import describe_profiles

    failures = _describe_failures(family, verification)
    rows = describe_profiles(family, *_split_measured(verification))
    found = [failures.get(str(row["profile"])) for row in rows]
    return [row | {"passed": not failure, "failure": failure} for row, failure in zip(rows, found, strict=True)]


def _describe_failures(family: Family, verification: Verification) -> dict[str, dict[str, object]]:
    """Profile that is off its floor -> which check, why, on which probe, and all of it as a message."""
    from matexport.family.manifest import PROBES
    from matexport.family.token_rows import quote_probe
    from matexport.io.texts import load_probes

    probes = () if verification.passed else load_probes(family.path / PROBES)
    failures: dict[str, dict[str, object]] = {}
    for verdict in verification.verdicts:
        if found := verdict.find_breach():
            check, breach = found
            message = f"{breach.reason} ({check}), worst on {quote_probe(probes, breach.probe)}"
            said = {"check": check, "reason": breach.reason, "probe": breach.probe}
            failures[verdict.profile] = {**said, "message": message}
    return failures


def _describe_drift(drift: Drift) -> dict[str, Any]:
    import msgspec

    profiles = [msgspec.to_builtins(profile) | {"compatible": profile.compatible} for profile in drift.profiles]
    return msgspec.to_builtins(drift) | {"compatible": drift.compatible, "profiles": profiles}  # type: ignore[no-any-return]


def _print_drift(drift: Drift) -> None:
    from matexport.tables import format_drift

    parent = "the same parent" if drift.same_parent else "another parent (its weights have other digests)"
    print(f"\nNEW {drift.new} against OLD {drift.old}: {parent}, {len(drift.texts)} texts\n")
    print(format_drift(drift))
    for side, names in (("NEW", drift.only_new), ("OLD", drift.only_old)):
        if names:
            print(f"only in {side}, so not compared: {', '.join(names)}")
    for note in drift.notes:
        print(note)
    if drift.compatible:
        count = len(drift.profiles)
        print(
            f"an index that was built with OLD may be queried with NEW, and the other way round, by the {count} ",
            end="",
        )
        print("profile(s) that both have")
        if drift.only_old:
            print(f"an index of one of the {len(drift.only_old)} that only OLD has cannot be queried with NEW")


def _format_verdict(verification: Verification, drift: Drift | None) -> str:
    """The last line of `verify`: what was proven, and how near it was; or how much failed."""
    from matexport.report.findings import measure_floor_use

    verdicts, token_ids = verification.verdicts, verification.token_ids
    total, off = len(verdicts), sum(not verdict.passed for verdict in verdicts)
    failed = []
    if token_ids and not token_ids.passed:
        failed.append(token_ids.summary)
    if off:
        failed.append(f"{off} of {total} profiles {'is off its floor' if off == 1 else 'are off their floor'}")
    if drift and not drift.compatible:
        moved = sum(not profile.compatible for profile in drift.profiles)
        are = "is" if moved == 1 else "are"
        failed.append(f"{moved} of {len(drift.profiles)} profiles {are} not compatible with {drift.old}")
    if failed:
        return f"failed: {'; '.join(failed)}"
    worst = max(
        (measure_floor_use(verification.host, verdict) for verdict in verdicts), key=lambda standing: standing.used
    )
    if worst.number == "least cosine":
        nearest = f"worst least cosine {worst.value:.6f}, at least {worst.allowed:g} asked"
    elif worst.allowed is None:
        nearest = f"worst {worst.value:.1e}"
    else:
        nearest = f"worst {worst.value:.1e} of {worst.allowed:g} allowed"
    profiles = (
        "1 profile is the parent at its point" if total == 1 else f"{total} profiles are the parent at their points"
    )
    proven = [f"{profiles} on this machine ({nearest}, {worst.verdict.profile})"]
    proven += [token_ids.summary] if token_ids else []
    proven += [f"compatible with {drift.old}"] if drift else []
    return f"passed: {'; '.join(proven)}"


def _print_verification(path: Path, verification: Verification) -> None:
    from matexport.family.manifest import load_family
    from matexport.tables import format_profiles

    family, host = load_family(path), verification.host
    print(format_profiles(_describe_rows(family, verification)))
    print(f"\nparity on {host.cpu} ({', '.join(host.instruction_sets)}), onnxruntime {host.onnxruntime}")
    if _is_another(family, verification):
        first = ", ".join(family.facts.instruction_sets)
        print(f"measured anew: the family's own parity was measured on another instruction set ({first})")


def _split_measured(verification: Verification) -> tuple[Parities, Spreads]:
    verdicts = verification.verdicts
    return {it.profile: it.parity for it in verdicts}, {it.profile: it.spread for it in verdicts}


def _is_another(family: Family, verification: Verification) -> bool:
    """Whether a family was measured on another instruction set than now; False where either is not known."""
    first, now = family.facts.instruction_sets, verification.host.instruction_sets
    return bool(first and now and first != now)


def _print_decisions(family: Family) -> None:
    """What was decided while precisions were made, and what pruning the vocabulary did."""
    for precision, facts in family.facts.precisions.items():
        if facts.kept:
            kept = ", ".join(f"{part} in {held}" for part, held in facts.kept.items())
            print(f"\n{precision}: keeps {kept}")
    vocabulary = family.facts.vocabulary
    if vocabulary:
        print(
            f"\nvocabulary: {vocabulary.tokens} of {vocabulary.parent_tokens} tokens ({vocabulary.kept_by}); "
            f"{len(vocabulary.changed_probes)} probes have other tokens now and are left out"
        )


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
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


COMMANDS = {
    "export": run_export,
    "verify": run_verify,
    "show": run_show,
    "bench": run_bench,
    "evaluate": run_evaluate,
    "pick": run_pick,
    "embed": run_embed,
    "pack": run_pack,
    "report": run_report,
}


if __name__ == "__main__":
    raise SystemExit(main())
