"""Ways to spoil a family. A careful forger rewrites the manifest as well, so that every digest agrees again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from matexport.family.integrity import Contents, describe_files, describe_prefixes
from matexport.family.manifest import MANIFEST, REFERENCE, Family, load_family, write_manifest
from matexport.family.modality import PROBES, TOKENIZER
from matexport.family.weights_file import read_header
from matexport.spec.measured import Bench, Host, ProfileBench, Quality, Sample, Score, TaskKind, TaskQuality, Timing


def flip_byte(path: Path, position: int = -1) -> None:
    """Invert one byte; the size stays. Negative positions count from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def hold(family: Path | Family) -> Contents:
    """A family's files as they are, whatever their digests: as if they had been checked."""
    family = family if isinstance(family, Family) else load_family(family)
    files = {path.name: path.read_bytes() for path in family.path.iterdir() if path.is_file()}
    return Contents(family, files)


def edit_manifest(family: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed manifest in place."""
    manifest = family / MANIFEST
    data = json.loads(manifest.read_text(encoding="utf-8"))
    edit(data)
    manifest.write_text(json.dumps(data), encoding="utf-8")


def reseal(family: Path) -> None:
    """Make the manifest agree with what the files hold now."""
    facts = load_family(family).facts
    told = all(profile.weights_prefix_sha256 for profile in facts.profiles.values())
    profiles = describe_prefixes(family, facts.profiles) if told else facts.profiles
    write_manifest(family, replace(facts, files=describe_files(family), profiles=profiles))


def store_token_rows(family: Path, change: Callable[[list[list[int]]], object] = lambda _rows: None) -> None:
    """Put the probes' token ids, as the family's own tokenizer gives them, beside its vectors; `change` spoils them."""
    facts = load_family(family).facts.text
    tokenizer = Tokenizer.from_file(str(family / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(facts.max_tokens)
    probes = [json.loads(line) for line in (family / PROBES).read_text(encoding="utf-8").split("\n") if line]
    texts = [facts.prompts.get(probe.get("prompt") or "", "") + probe["text"] for probe in probes]
    rows = [list(tokenizer.encode(text).ids) for text in texts]
    change(rows)
    ids = np.array([token for row in rows for token in row], np.int32)
    counts = np.array([len(row) for row in rows], np.int32)
    save_file(
        load_file(family / REFERENCE) | {"token_ids": ids, "token_counts": counts},
        family / REFERENCE,
    )
    reseal(family)


def edit_tokenizer(family: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed tokenizer in place, and the manifest with it."""
    tokenizer = json.loads((family / TOKENIZER).read_text(encoding="utf-8"))
    edit(tokenizer)
    (family / TOKENIZER).write_text(json.dumps(tokenizer), encoding="utf-8")
    reseal(family)


def overwrite_values(weights: Path, name: str, values: NDArray[Any]) -> None:
    """Put values at the start of a tensor of a nested weights file."""
    entry = next(entry for entry in read_header(weights).entries if entry.name == name)
    with weights.open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.asarray(values).tobytes())


def forge_bench(host: Host, calls_ms: Mapping[str, Mapping[int, float]]) -> Bench:
    """A bench that nobody ran: profile -> threads -> milliseconds of a call; the graph takes 3 of 4."""

    def sample(value: float) -> Sample:
        return Sample(10, value, value, value, value)

    def time(call: float) -> Timing:
        latency = {"1x16": sample(0.75 * call)}
        rate = 1000 / call if call else 0.0
        return Timing(
            sample(100 * call), latency, sample(call), sample(call / 8), sample(0.75 * call), sample(call), rate, 10**8
        )

    return Bench(
        host,
        "cpu",
        {
            name: ProfileBench(1, 1, 10, 1.0, 1, "0", {count: time(call) for count, call in calls.items()})
            for name, calls in calls_ms.items()
        },
    )


def forge_quality(host: Host, retentions: Mapping[str, Mapping[str, float]]) -> Quality:
    """An evaluation that nobody ran: a task's name, which is of its kind -> profile -> retention."""
    return Quality(
        host,
        {
            task: TaskQuality(
                TaskKind(task), "score", 10, "0", None, {name: Score(0.5, value) for name, value in scores.items()}
            )
            for task, scores in retentions.items()
        },
    )
