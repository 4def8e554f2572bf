"""docs/format.md says what the code and the frozen families hold: every key, both ways, every limit, its example.

Each check is a function of the page's text that lists what is wrong with it, so it can be shown to fail on another.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import places
import pytest
from forge import flip_byte
from msgspec import inspect
from places import ROOT
from safetensors.numpy import load_file

from matexport.consumers.layouts import NATIVE
from matexport.family import graph_file, manifest, pixel_rows, token_rows, weights_file
from matexport.family import modality as family_modality
from matexport.family.guard import operators, shapes, sizes
from matexport.family.guard import tokenizer as guard_of_tokenizers
from matexport.family.measurements import records, sections
from matexport.io import texts
from matexport.pack.write import pack_profile
from matexport.runtime.inputs import modality
from matexport.spec import facts as family_facts
from matexport.spec import inputs as family_inputs
from matexport.spec import parity, readout, tolerance
from matexport.spec import probe as probe_records
from matexport.spec import profile as profiles
from matexport.spec.record import Record
from matexport.verify import codes

PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
GOLDEN = {schema: places.GOLDEN / f"schema{schema}" for schema in manifest.READABLE}

#: How the page calls the enumerations.
TYPES: Mapping[type[Any], str] = {
    profiles.Precision: "precision",
    profiles.Encoding: "encoding",
    profiles.Target: "target",
    family_inputs.PaddingSide: "side",
    family_inputs.Resampling: "resampling",
    readout.FinalNorm: "final_norm",
    readout.PoolingMode: "pooling",
    probe_records.Dtype: "dtype",
}
SCALARS: Mapping[type[inspect.Type], str] = {
    inspect.StrType: "string",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "boolean",
}


@dataclass(frozen=True)
class Key:
    """A key as the page has it: its type, what it is if missing (JSON, or ``refuse``), and its first schema.

    `late`: the first families of that schema lack it.
    """

    kind: str
    missing: str
    since: int = 1
    late: bool = False


def read_section(page: str, title: str) -> str:
    """What stands under a heading."""
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return str(section)


def read_tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Each table's head and rows, as cells."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        head, _, *body = [[cell.strip() for cell in row] for row in rows]
        yield head, body


def read_table(text: str, first: str) -> list[list[str]]:
    """The rows of the one table whose first column is called `first`."""
    (rows,) = (rows for head, rows in read_tables(text) if head[0] == first)
    return rows


def list_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def read_keys(page: str, title: str, first: str) -> dict[str, Key]:
    """The keys of a table, by path such as ``profiles.*.dim``."""
    keys: dict[str, Key] = {}
    for names, kind, since, missing, *_ in read_table(read_section(page, title), first):
        for name in list_code(names):
            assert name not in keys, f"{name} is there twice"
            keys[name] = Key(kind, missing.strip("`"), int(since.rstrip("*")), since.endswith("*"))
    return keys


def list_fields(info: Any, path: str = "") -> dict[str, Key]:
    """The keys of a record and of all records in it, as msgspec knows them."""
    keys: dict[str, Key] = {}
    for field in info.fields:
        name = f"{path}{field.encode_name}"
        missing = "refuse" if field.required else _name_default(field)
        keys[name] = Key(name_type(field.type), missing)
        keys |= _list_inner(field.type, name)
    return keys


def _list_inner(info: Any, name: str) -> dict[str, Key]:
    match info:
        case inspect.UnionType():
            return {key: value for part in info.types for key, value in _list_inner(part, name).items()}
        case inspect.StructType():
            return list_fields(info, f"{name}.")
        case inspect.DictType():
            return _list_inner(info.value_type, f"{name}.*")
        case inspect.VarTupleType():
            return _list_inner(info.item_type, f"{name}[]")
    return {}


def name_type(info: Any) -> str:
    """A type in the words of the page."""
    match info:
        case inspect.UnionType():
            parts = [part for part in info.types if not isinstance(part, inspect.NoneType)]
            assert (len(parts), len(info.types)) == (1, 2), info
            return f"{name_type(parts[0])} or null"
        case inspect.StructType():
            return "object"
        case inspect.DictType():
            return f"{{{name_type(info.key_type)}: {name_type(info.value_type)}}}"
        case inspect.VarTupleType():
            return f"[{name_type(info.item_type)}]"
        case inspect.TupleType():
            (kind,) = {name_type(part) for part in info.item_types}
            return f"[{kind}]"
        case inspect.EnumType():
            return TYPES[info.cls]
    return SCALARS[type(info)]


def _name_default(field: inspect.Field) -> str:
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return json.dumps(msgspec.to_builtins(value))


RECORDS: Mapping[str, tuple[str, str, type[Record]]] = {
    "family.json": ("family.json", "key", family_facts.FamilyFacts),
    "probes.jsonl": ("The proof", "key of a probe", probe_records.Probe),
}


def find_key_problems(page: str) -> list[str]:
    """Where the page's keys, their types or what they are if missing differ from the records."""
    problems = []
    for title, first, record in RECORDS.values():
        said, held = read_keys(page, title, first), list_fields(inspect.type_info(record))
        problems += [f"{key} is on the page alone" for key in said.keys() - held.keys()]
        problems += [f"{key} is not on the page" for key in held.keys() - said.keys()]
        problems += [
            f"{key}: the page says {page_value}, the code {value}"
            for key in said.keys() & held.keys()
            for page_value, value in zip(
                (said[key].kind, said[key].missing), (held[key].kind, held[key].missing), strict=True
            )
            if page_value != value
        ]
    return sorted(problems)


def find_type_problems(page: str) -> list[str]:
    """Where the page's enumerations have other values than the code's."""
    said = {row[0]: list_code(row[1]) for row in read_table(read_section(page, "family.json"), "type")}
    held = {name: [str(value.value) for value in kind] for kind, name in TYPES.items()}
    return [f"{name}: {said.get(name)} {held.get(name)}" for name in {*said, *held} if said.get(name) != held.get(name)]


def find_golden_problems(page: str) -> list[str]:
    """Where the frozen family of a schema has other keys, or values of other types, than the page says."""
    problems: list[str] = []
    types = {row[0]: list_code(row[1]) for row in read_table(read_section(page, "family.json"), "type")}
    for schema, folder in GOLDEN.items():
        keys = read_keys(page, *RECORDS["family.json"][:2])
        data = json.loads((folder / manifest.MANIFEST).read_text(encoding="utf-8"))
        problems += [f"schema {schema}: {problem}" for problem in _compare_object(data, "", keys, schema, types)]
        keys = read_keys(page, *RECORDS["probes.jsonl"][:2])
        for line in (folder / family_modality.PROBES).read_text(encoding="utf-8").splitlines():  # without what is null
            found = _compare_object({"prompt": None, "task": None} | json.loads(line), "", keys, manifest.SCHEMA, types)
            young = [key for key in json.loads(line) if key in keys and keys[key].since > schema]
            problems += [f"schema {schema}: {problem}" for problem in [*found, *young]]
    return problems


def _compare_object(
    data: dict[str, Any], path: str, keys: Mapping[str, Key], schema: int, types: Mapping[str, list[str]]
) -> Iterator[str]:
    own = {key.removeprefix(path): value for key, value in keys.items() if key.startswith(path)}
    own = {key: value for key, value in own.items() if not set(key) & set(".[")}
    for name, value in data.items():
        if name not in own or own[name].since > schema:
            yield f"{path}{name} is there"
        else:
            yield from _compare_value(value, f"{path}{name}", own[name].kind, keys, schema, types)
    for name in own.keys() - data.keys():
        if own[name].since <= schema and not own[name].late:
            yield f"{path}{name} is not there"


def _compare_value(
    value: Any, path: str, kind: str, keys: Mapping[str, Key], schema: int, types: Mapping[str, list[str]]
) -> Iterator[str]:
    if kind.endswith(" or null"):
        if value is None:
            return
        kind = kind.removesuffix(" or null")
    inner = (keys, schema, types)
    if kind == "object" and isinstance(value, dict):
        yield from _compare_object(value, f"{path}.", *inner)
    elif kind.startswith("{") and isinstance(value, dict):
        key_kind, value_kind = kind[1:-1].split(": ", 1)
        for name, child in value.items():
            yield from _compare_value(name, f"{path}, a name", key_kind, *inner)
            yield from _compare_value(child, f"{path}.*", value_kind, *inner)
    elif kind.startswith("[") and isinstance(value, list):
        for child in value:
            yield from _compare_value(child, f"{path}[]", kind[1:-1], *inner)
    elif kind in types:
        if value not in types[kind]:
            yield f"{path} is {value!r}"
    else:
        allowed = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}.get(kind, ())
        if type(value) not in allowed:
            yield f"{path} is {value!r}"


def read_file_names(page: str) -> list[str]:
    return [name for row in read_table(read_section(page, "The folder"), "file") for name in list_code(row[0])]


def find_file_problems(page: str) -> list[str]:
    """Names that the page and the code do not share, and files of frozen families that the page does not name."""
    said = set(read_file_names(page))
    whole = {
        manifest.MANIFEST,
        family_modality.TOKENIZER,
        family_modality.PROBES,
        family_modality.ARRAY_PROBES,
        manifest.REFERENCE,
        manifest.RANGES,
        family_modality.NEWLINE_FILE,
    }
    whole |= {f"{manifest.MEASUREMENTS}/", *manifest.REPORTED, *family_modality.CONSUMER_FILES, "onnx/"}
    parents = {*family_modality.TEXT_FILES, *family_modality.IMAGE_FILES}
    named = {name for name in said if "PRECISION" in name}
    problems = [f"{name} is on one side alone" for name in (said - named) ^ (whole | parents)]
    precisions, encodings = "|".join(profiles.Precision), "|".join(profiles.Encoding)
    patterns = {
        name: re.escape(name)
        .replace("POINT", r"L\d{2}-D\d{3}(?:-T\d{3})?")
        .replace("PRECISION", f"(?:{precisions})")
        .replace("ENCODING", f"(?:{encodings})")
        for name in said
    }
    met = set()
    for folder in GOLDEN.values():
        for path in folder.iterdir():
            fitting = {name for name, pattern in patterns.items() if re.fullmatch(pattern, path.name)}
            met |= fitting
            if not fitting:
                problems.append(f"{folder.name} has {path.name}")
    problems += [f"no frozen family has {name}" for name in named - met]
    profile = profiles.Profile(profiles.Point(1, 8), profiles.Precision.INT8, profiles.Encoding.UBINARY)
    if not re.fullmatch(patterns.get("POINT.PRECISION.ENCODING.onnx", ""), profile.graph_file):
        problems.append(f"{profile.graph_file} is not named")
    return problems


LIMITS: Mapping[str, tuple[int, ...]] = {
    "`family.json`": (manifest.MAX_MANIFEST_BYTES,),
    "a graph": (graph_file.MAX_GRAPH_BYTES,),
    "other files, but `*.safetensors`": (family_modality.MAX_SIDE_FILE_BYTES,),
    "the header of a safetensors file": (2, weights_file.MAX_HEADER_BYTES),
    "`token_ids`": (token_rows.MAX_TOKEN_IDS,),
    "`pixels`": (pixel_rows.MAX_PIXEL_BYTES,),
    "probes": (2, texts.MAX_PROBES),
    "a prompt, `before` and `after` of a frame": (family_modality.MAX_PROMPT_CHARACTERS,),
    "`layers`, `dim`, `tokens` of a profile": (manifest.MAX_LAYERS, manifest.MAX_DIM, manifest.MAX_TOKENS),
    "digits of `offset` and `length`": (graph_file._MAX_DIGITS,),
    "a file of `measurements/`": (sections.MAX_BYTES,),
}


def find_limit_problems(page: str) -> list[str]:
    """Where the page's limits are not the code's constants, its patterns not the code's."""
    rows = dict(read_table(read_section(page, 'What "verified" means'), "what"))
    numbers = {what: tuple(map(int, re.findall(r"\d+", limit))) for what, limit in rows.items() if what in LIMITS}
    problems = [f"{what}: {numbers.get(what)} {value}" for what, value in LIMITS.items() if numbers.get(what) != value]
    patterns = {what: list_code(limit)[0].replace(r"\|", "|") for what, limit in rows.items() if what not in LIMITS}
    for what, pattern in (("name of a file", manifest._FILE_NAME), ("sha256", manifest._SHA256)):
        if patterns.pop(what, None) != pattern.pattern:
            problems.append(f"{what}: {pattern.pattern}")
    names = patterns.pop("name of a profile", "")
    points = [profiles.Point(*point) for point in product((0, 1, 99, 100), (1, 64, 1024), (0, 1, 576, 2880))]
    wanted = [profiles.Profile(*parts).name for parts in product(points, profiles.Precision, profiles.Encoding)]
    problems += [f"name of a profile: {name}" for name in wanted if not re.fullmatch(names, name)]
    wrong = [
        "L1-D008-fp32",
        "L01-D08-fp32",
        "L01-D008",
        "L01-D008-fp32-float32",
        "L01-D008-q5",
        "L01-D008-T36-fp32",
        "L01-T036-D008-fp32",
        "L01-D008-fp32-int8-int8",
    ]
    for name in wrong:
        with pytest.raises(ValueError, match="is not a profile name"):
            profiles.Profile.parse(name)
        if re.fullmatch(names, name):
            problems.append(f"name of a profile: {name}")
    return [*problems, *patterns]


def find_floor_problems(page: str) -> list[str]:
    """Where the page's floors are not the code's."""
    section = read_section(page, "The proof")
    ((head, rows),) = (table for table in read_tables(section) if table[0][0] == "precision")
    said = {
        list_code(row[0])[0]: {
            list_code(name)[0]: float(cell) for name, cell in zip(head[1:], row[1:], strict=True) if cell
        }
        for row in rows
    }
    held = {
        str(precision): {name: value for name, value in msgspec.structs.asdict(floor).items() if value is not None}
        for precision, floor in tolerance.FLOORS.items()
    }
    return [f"{name}: {said.get(name)} {held.get(name)}" for name in {*said, *held} if said.get(name) != held.get(name)]


#: What the page states in a sentence, each once -> what the code has for it.
STATED: Mapping[str, tuple[object, ...]] = {
    r"begin at a multiple of (\d+) bytes of the file": (weights_file.DATA_ALIGNMENT,),
    r"begins at a multiple of (\d+) bytes\. Where": (weights_file.TENSOR_ALIGNMENT,),
    r"whose name begins with `([^`]*)`": (weights_file.PADDING_NAME,),
    r"Domains, .*?, are among `\"(.*?)\"`, `(.*?)`, `(.*?)`\.": tuple(sorted(graph_file.ALLOWED_DOMAINS)),
    r"has the keys `(\w+)`, `(\w+)`, `(\w+)`, each once": ("location", "offset", "length"),
    r"\(of `(\w+)`, `(\w+)`, `(\w+)`, `(\w+)`, `(\w+)`; sizes": tuple(sizes.GROWING),
    r"Their versions are (\d+) to (\d+),\s+and (\d+) of the last; the IR version is (\d+) to (\d+)": (
        *(operators.OPSETS[""][0], operators.OPSETS[""][-1], *operators.OPSETS["com.microsoft"]),
        *(operators.IR_VERSIONS[0], operators.IR_VERSIONS[-1]),
    ),
    r"more numbers than (\d+), than the\s+largest weight or than (\d+) times the input, [^;]*; those that live "
    r"at one time have at\s+most (\d+) times": (sizes.MAX_FACTOR, shapes.MAX_GROWTH, shapes.MAX_LIVE),
    r"up to (\d+)\s+tokens, it has at most (\d+) numbers for each pair of a text's tokens and (\d+) for each token": (
        shapes.LONGEST,
        shapes.MAX_HEADS,
        shapes.MAX_WIDTH,
    ),
    r"hold for (\d+) places of the first": (shapes.MAX_EXPERTS,),
    r"a number that is no product counts as (\d+) of them, a sorted one as (\d+)\.": (shapes.COST, shapes.SORTING_COST),
    r"There are at most (\d+) nodes\.": (operators.MAX_NODES,),
    r"All products are at most (\d+) for each weight\s+\(or for (\d+)\)": (shapes.MAX_USES, sizes.MAX_FACTOR),
    r"a tensor above (\d+) numbers is": (shapes.SMALL,),
    r"one RGB image with sides of up to (\d+)": (family_inputs.LONGEST_SIDE,),
    r"images of (\d+) x \d+, (\d+) x \d+ and (\d+) x \d+ take the place": (
        shapes.SHORT[1],
        shapes.LONGER[1],
        min(shapes.LONGEST, family_inputs.LONGEST_SIDE),
    ),
    r"or (\d+) times the numbers of the image itself": (shapes.MAX_COPIES,),
    r"for each number of the image (\d+) for each row and each column that is kept, and (\d+)\.": (
        shapes.MAX_PASSES,
        shapes.MAX_STEPS,
    ),
    r"makes more than (\d+) characters of one, its template has the text more\s+than once, over (\d+) other tokens "
    r"or one that it does not define, or words of more than (\d+) characters": (
        guard_of_tokenizers.MAX_GROWTH,
        guard_of_tokenizers.MAX_PIECES,
        guard_of_tokenizers.MAX_WORD,
    ),
    r"cannot be followed is refused\) is at most (\d+), and at most (\d+) lengths": (
        sizes.MAX_FACTOR,
        sizes.MAX_LENGTHS,
    ),
    r"step` is \(row 1 - row 0\) / (\d+)\.": (codes.INT8_STEPS,),
    r"clip\(floor\(\(x - start\) / step\), 0, (\d+)\) - 128": (codes.INT8_STEPS,),
    r"`cosine_mean` MUST be at least ([\d.]+) and `cosine_min` at least ([\d.]+) \(`(\w+)`\)": (
        codes.RANGES_TOLERANCE.cosine_mean,
        codes.RANGES_TOLERANCE.cosine_min,
        parity.RANGES_CHECK,
    ),
    r"s = p \+ (\d+) √": (codes.SIGN_DEVIATIONS,),
    r"where one is asked for, ([\d.]+) is allowed": (codes.CODES_SPREAD,),
    r"`batched` \((\d+) at a time": (modality.BATCH,),
    r"`(\w+)` \(from the `exits` graph": (parity.TOGETHER_WAY,),
    r"1 to (\d+), which stands for no limit": (family_inputs.NO_LIMIT,),
    r"MUST be (\d), (\d), (\d) or (\d) \|": manifest.READABLE,
    r"It describes schema (\d)": (manifest.SCHEMA,),
    r"named `(\w+)` \(of texts, `(\w+)`\), \(batch, width\)": ("output", family_facts.OUTPUT_NAME),
    r"without the batch; 1 to (\d+) numbers": (family_modality.MAX_ARRAY_NUMBERS,),
    r"pixels of an image once it is prepared; each side 1 to (\d+)": (family_modality.MAX_SIDE,),
    r"may be fitted into, 1 to (\d+) of them: multiples of the side, each 1 to (\d+), of at most (\d+) tiles": (
        family_modality.MAX_PINPOINTS,
        family_modality.MAX_SIDE,
        family_modality.MAX_TILES,
    ),
    r"times the point's `dim`, is at most (\d+)": (family_modality.MAX_ARRAY_NUMBERS,),
    r"one F32 tensor `(\w+)`, \(dim\)": (family_modality.NEWLINE,),
    r"`(\w+)` is `attention_mask` less": (family_facts.POOLING_MASK,),
    r"`(\w+)`, I32 \(n\), and `(\w+)`, I32 \(their sum\)": (token_rows.TOKEN_COUNTS, token_rows.TOKEN_IDS),
    r"pixels of at most (\d+) of the probes: `(\w+)`, U8": (pixel_rows.MAX_PIXEL_PROBES, pixel_rows.PIXELS),
    r"and `(\w+)`, I32 \(m\), the places": (pixel_rows.PIXEL_PROBES,),
    r"made here is more than (\d) off from the parent's": (parity.MOST_LEVELS,),
}


def find_statement_problems(page: str) -> list[str]:
    """Where a sentence of the page states something else than the code has, or is not there once."""
    flat = " ".join(page.split())
    problems = []
    for pattern, expected in STATED.items():
        found = re.findall(pattern, flat)
        values = [match if isinstance(match, tuple) else (match,) for match in found]
        if len(values) != 1 or [_read(value) for value in values[0]] != [_read(str(value)) for value in expected]:
            problems.append(f"{pattern}: {values} {expected}")
    types = {name: {int(number) for number in numbers.split(", ")} for name, numbers in _read_stored_types(flat)}
    if types != graph_file._STORED_AS:
        problems.append(f"types: {types} {graph_file._STORED_AS}")
    return problems


def _read(value: str) -> object:
    return float(value) if re.fullmatch(r"[\d.]+", value) else value


def _read_stored_types(flat: str) -> list[tuple[str, str]]:
    (sentence,) = re.findall(r"\(safetensors: ONNX\): (.*?)\. ", flat)
    return re.findall(r"`(\w+)`: ([\d, ]*\d)", sentence)


def find_graph_problems(page: str) -> list[str]:
    """Where the graphs of the frozen families are not as the page says."""
    flat = " ".join(page.split())
    ((ir_version, opset, contrib),) = re.findall(
        r"IR version (\d+), opset (\d+), and version (\d+) of `com\.microsoft`", flat
    )
    (least,) = re.findall(r"Tensors of (\d+) bytes and more are external data", flat)
    problems = []
    for folder in GOLDEN.values():
        family = manifest.load_family(folder)
        points = sorted({profile.point.name for profile in family.profiles})
        outputs = {facts.graph: [family_facts.OUTPUT_NAME] for facts in family.facts.profiles.values()}
        outputs |= dict.fromkeys(family.facts.exits.values(), points)
        for name, expected in outputs.items():
            model = graph_file.parse_graph(name, (folder / name).read_bytes())
            versions = {entry.domain: entry.version for entry in model.opset_import}
            sizes = [(tensor.data_location, _measure(tensor)) for tensor in model.graph.initializer]
            sound = (
                model.ir_version == int(ir_version)
                and versions in ({"": int(opset)}, {"": int(opset), "com.microsoft": int(contrib)})
                and [value.name for value in model.graph.input] == list(family.facts.text.inputs)
                and sorted(value.name for value in model.graph.output) == expected
                and all((place == graph_file.EXTERNAL) == (size >= int(least)) for place, size in sizes)
            )
            if not sound:
                problems.append(f"{folder.name}/{name}")
    return problems


def _measure(tensor: Any) -> int:
    return int(math.prod(tensor.dims)) * graph_file._ITEM_BITS[tensor.data_type] // 8


def find_measurement_problems(page: str) -> list[str]:
    """Where the page names other sections of ``measurements/HOST.json`` than the code."""
    paragraph = read_section(page, "Measurements and packs").split("\n\n")[0]
    said = set(list_code(" ".join(paragraph.split())))
    held = {
        "family",
        "host",
        "parity",
        "ranges",
        "spread",
        "token_ids",
        "pixels",
        records.BENCH_SECTION,
        records.QUALITY_SECTION,
    }
    others = {
        "measurements/HOST.json",
        manifest.MANIFEST,
        f"{records.BENCH_SECTION} on PROVIDER",
        "NaN",
        "Infinity",
    }
    return sorted(said ^ (held | others))


CHECKS: list[Callable[[str], list[str]]] = [
    find_key_problems,
    find_type_problems,
    find_golden_problems,
    find_file_problems,
    find_limit_problems,
    find_floor_problems,
    find_statement_problems,
    find_graph_problems,
    find_measurement_problems,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_page_is_true(check: Callable[[str], list[str]]) -> None:
    assert check(PAGE) == []


ROW = "| `exits` | {precision: string} | 3 | `{}` | verify |"
ROUTE = "| `text.route` | string or null | 4* |"
#: What is altered -> (in whose eyes, the old text, the new one, what the check says).
ALTERED: Mapping[str, tuple[Callable[[str], list[str]], str, str, str]] = {
    "a key taken away": (find_key_problems, ROW, "| | {precision: string} | 3 | `{}` | verify |", "exits is not on"),
    "a key inside taken away": (find_key_problems, "`trained[].layers`, ", "", "trained[].layers is not on the page"),
    "a key too many": (find_key_problems, "| `exits` |", "| `exits`, `exit` |", "exit is on the page alone"),
    "another type": (find_key_problems, ROW, ROW.replace("precision:", "string:"), "exits: the page says {string"),
    "required": (find_key_problems, ROW, ROW.replace("`{}`", "refuse"), "exits: the page says refuse, the code {}"),
    "another default": (find_key_problems, '`"right"` | run', '`"left"` | run', 'text.cuts: the page says "left"'),
    "a probe's key": (find_key_problems, "| `task` | string", "| `tasks` | string", "task is not on the page"),
    "a value of a type": (find_type_problems, ", `weightedmean`", "", "pooling: "),
    "a value too many": (find_type_problems, "`right`, `left` |", "`right`, `left`, `both` |", "side: "),
    "since too late": (find_golden_problems, ROW, ROW.replace("| 3 |", "| 4 |"), "schema 3: exits is there"),
    "since too early": (find_golden_problems, ROW, ROW.replace("| 3 |", "| 2 |"), "schema 2: exits is not there"),
    "never missing": (find_golden_problems, ROUTE, ROUTE.replace("4*", "4"), "schema 4: text.route is not there"),
    "a value's type": (find_golden_problems, "`schema` | integer", "`schema` | string", "schema 1: schema is 1"),
    "a name of a map": (find_golden_problems, ROW, ROW.replace("precision:", "side:"), "exits, a name is 'fp32'"),
    "a file renamed": (find_file_problems, "| `ranges.safetensors` |", "| `range.safetensors` |", "range.safetensors"),
    "a kind of file": (find_file_problems, "| `exits.PRECISION.onnx` |", "| |", "has exits.fp32.onnx"),
    "a limit": (find_limit_problems, "at most 16777216 bytes", "at most 16777217 bytes", "`family.json`: (16777217,)"),
    "a lower limit": (find_limit_problems, "2 to 10000 |", "1 to 10000 |", "probes: (1, 10000)"),
    "a name's pattern": (find_limit_problems, "{0,127}`, and not", "{0,128}`, and not", "name of a file"),
    "a profile's pattern": (find_limit_problems, r"\|int8-static\|q8", r"\|q8", "L00-D001-int8-static"),
    "a looser pattern": (find_limit_problems, "D[0-9]{3,}(-T", "D[0-9]{2,}(-T", "name of a profile: L01-D08-fp32"),
    "a floor": (find_floor_problems, "| 0.993 | 0.975 |", "| 0.99 | 0.975 |", "int8: "),
    "a floor too many": (find_floor_problems, "| `fp32` | 0.00001 | |", "| `fp32` | 0.00001 | 0.9 |", "fp32: "),
    "an alignment": (find_statement_problems, "a multiple of 64 bytes", "a multiple of 32 bytes", "('32',)"),
    "a domain": (find_statement_problems, "`ai.onnx`, `com.microsoft`.", "`ai.onnx`, `com.google`.", "com.google"),
    "a data type": (find_statement_problems, "`U8`: 2, 21, 22;", "`U8`: 2, 21;", "types: "),
    "a sentence gone": (find_statement_problems, "for, 0.01 is", "for, little is", "is allowed: []"),
    "an opset": (find_graph_problems, "opset 20", "opset 21", "schema1/L01-D008.fp32.onnx"),
    "a size": (find_graph_problems, "Tensors of 1024 bytes", "Tensors of 2048 bytes", "schema2/"),
    "a section": (find_measurement_problems, "`token_ids`, `pixels`, `bench`", "`pixels`, `bench`", "token_ids"),
}  # fmt: skip


@pytest.mark.parametrize("what", ALTERED)
def test_a_page_that_is_not_true_is_found(what: str) -> None:
    check, old, new, says = ALTERED[what]
    assert PAGE.count(old) == 1
    assert any(says in problem for problem in check(PAGE.replace(old, new)))


def test_a_key_that_is_written_twice_is_found() -> None:
    with pytest.raises(AssertionError, match="exits is there twice"):
        find_key_problems(PAGE.replace("| `exits` |", "| `exits`, `exits` |"))


def read_example(page: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(block)


def run_example(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process that knows nothing of this checkout."""
    command = [sys.executable, "-I", "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def describe_first_weight(folder: Path) -> str:
    """What the example prints, as other code reads it: of the profile with the shortest prefix."""
    profile = min(
        manifest.load_family(folder).facts.profiles.values(), key=lambda profile: profile.weights_prefix_bytes
    )
    entry = weights_file.read_header(folder / profile.weights).entries[0]
    weight = load_file(folder / profile.weights)[entry.name]
    return (
        f"{profile.graph} {entry.name} {weight.dtype} {weight.shape} {hashlib.sha256(weight.tobytes()).hexdigest()}\n"
    )


def test_the_example_uses_nothing_of_ours() -> None:
    code = read_example(PAGE)
    imported = re.findall(r"^import (.*)$", code, re.MULTILINE)
    assert imported == ["hashlib, json, os, re, struct, sys", "numpy as np"]
    assert "matexport" not in code


@pytest.mark.parametrize("schema", GOLDEN)
def test_the_example_reads_a_family_of_each_schema(schema: int) -> None:
    done = run_example(read_example(PAGE), GOLDEN[schema])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == describe_first_weight(GOLDEN[schema])


def test_the_example_refuses_a_changed_file(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN[1], tmp_path / "family"))
    flip_byte(folder / "weights.fp32.safetensors")
    done = run_example(read_example(PAGE), folder)
    assert done.returncode == 1
    assert "AssertionError: weights.fp32.safetensors" in done.stderr


def test_the_example_reads_a_pack_for_other_libraries(tmp_path: Path) -> None:
    """Whose files lie in folders, too, and whose weights have another name."""
    pack_profile(GOLDEN[3], "L01-D012", tmp_path / "pack")
    done = run_example(read_example(PAGE), tmp_path / "pack")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("onnx/model_quantized.onnx ")


def test_an_example_that_reads_elsewhere_is_found() -> None:
    code = read_example(PAGE)
    assert code.count("8 + length + begin") == 1
    done = run_example(code.replace("8 + length + begin", "8 + length + begin + 64"), GOLDEN[1])
    assert done.returncode == 0
    assert done.stdout != describe_first_weight(GOLDEN[1])


@pytest.mark.parametrize(("schema", "name"), [(1, "L01-D008-fp32"), (2, "L01-D020-int8-int8"), (4, "L01-D020-fp32")])
def test_a_pack_is_what_the_page_says(schema: int, name: str, tmp_path: Path) -> None:
    """Its family's schema with all keys of this version; one profile, its prefix, its point, nothing else."""
    pack_profile(GOLDEN[schema], name, tmp_path / "pack", layout=NATIVE)
    data = json.loads((tmp_path / "pack" / manifest.MANIFEST).read_text(encoding="utf-8"))
    assert (data["schema"], list(data["profiles"]), data["exits"], data["refused"]) == (schema, [name], {}, {})
    assert set(data) == {key for key in read_keys(PAGE, *RECORDS["family.json"][:2]) if not set(key) & set(".[")}
    facts = data["profiles"][name]
    source = GOLDEN[schema]
    assert (tmp_path / "pack" / facts["graph"]).read_bytes() == (source / facts["graph"]).read_bytes()
    weights, whole = ((folder / facts["weights"]).read_bytes() for folder in (tmp_path / "pack", source))
    start = weights_file.read_header(source / facts["weights"]).data_start
    assert weights[start:] == whole[start : facts["weights_prefix_bytes"]]
    point = name[:8]
    tokens = {token_rows.TOKEN_IDS, token_rows.TOKEN_COUNTS} if schema == 4 else set()
    assert set(load_file(tmp_path / "pack" / manifest.REFERENCE)) == {point, *tokens}
    assert (tmp_path / "pack" / manifest.RANGES).exists() == name.endswith("-int8-int8")
    assert not (tmp_path / "pack" / manifest.MEASUREMENTS).exists(), "the golden families have none"
    done = run_example(read_example(PAGE), tmp_path / "pack")
    assert (done.returncode, done.stderr) == (0, "")
