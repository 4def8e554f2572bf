"""Write the cases that consumers are held to: folders packed from a family, texts, and the vectors they should have.

Runs where matexport is. At fp32 a probe's vector is the parent's own, as the family keeps it; that of an added text (at
and past the limit) is matexport's, which `verify` holds to the parent. At int8 all vectors are matexport's: what is
asked there is whether a consumer gives what the product gives, not what quantizing cost. Beside these, of texts that
are cut, the vectors of their first tokens without the closing one: what transformers.js makes of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from matexport import Embedder, load_family
from matexport.family.proof import load_references, open_proof
from matexport.runtime.inputs.text import Tokens
from matexport.spec.profile import Precision, Profile

PROFILES = ("L02-D064-fp32", "L02-D064-int8", "L06-D384-fp32", "L06-D384-int8")
#: layout -> profiles that are packed for it; the rest of the consumers take the first.
LAYOUTS = {"all": PROFILES, "infinity": PROFILES, "torch": ("L02-D064-fp32", "L06-D384-fp32")}
#: Words of one token each: 254 and 255 of them, with the two special tokens, are the limit of 256 and one more.
LENGTHS = (100, 253, 254, 255, 298, 510, 511, 698, 1500)
WORDS = ("river", "stone", "winter", "garden", "music", "paper", "window", "market", "letter", "morning", "bread")


def make_texts(probes: list[str]) -> list[str]:
    """The family's probes, then texts of known lengths about the limit, and text that has no tokens of its own."""
    longs = [" ".join(WORDS[(i * i + i // 7) % len(WORDS)] for i in range(length)) for length in LENGTHS]
    return [*probes, *longs, "   ", "\n\t"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    family, out = load_family(options.family), options.out
    shutil.rmtree(out, ignore_errors=True)
    (out / "vectors").mkdir(parents=True)
    probes, references = load_references(open_proof(family))
    texts = make_texts([probe.text for probe in probes])
    limit, uncut = family.facts.text.max_tokens, encode_uncut(options.family / "tokenizer.json", texts)
    cut = [len(row.ids) > limit for row in uncut]
    dims = {}
    for name in PROFILES:
        profile, embedder = Profile.parse(name), Embedder(family, name)
        vectors = embedder.embed(texts)
        if profile.precision is Precision.FP32:
            vectors[: len(probes)] = references[profile.point.name]
        vectors.astype("<f4").tofile(out / "vectors" / f"{name}.f32")
        for index, row in enumerate(uncut):
            if cut[index]:
                vectors[index] = embedder.run([Tokens(row.ids[:limit], row.type_ids[:limit])])[0]
        vectors.astype("<f4").tofile(out / "vectors" / f"{name}.unclosed.f32")
        dims[name] = vectors.shape[1]
    cases = {"texts": texts, "cut": cut, "dims": dims, "max_tokens": limit}
    (out / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for layout, profiles in LAYOUTS.items():
        for name in profiles:
            pack(options.family, name, out / layout / name, layout)


def encode_uncut(tokenizer: Path, texts: list[str]) -> list[Tokens]:
    """The tokens of each text, all of them."""
    from tokenizers import Tokenizer

    whole = Tokenizer.from_file(str(tokenizer))
    whole.no_truncation()
    whole.no_padding()
    return [Tokens.of(encoding) for encoding in whole.encode_batch(texts)]


def pack(family: Path, profile: str, out: Path, layout: str) -> None:
    """As a user would."""
    command = [sys.executable, "-m", "matexport", "pack", str(family), profile, str(out), "--for", layout]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
