"""What a verification found of each profile, the floor it was held to, and its place among the measurements.

Only numpy's arrays are left out: a verdict that was recorded is read back and judged again without running anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matexport.errors import FamilyError, ParityError, Problem, ProblemKind
from matexport.family.manifest import Family
from matexport.family.measurements.records import Measurement, load_measurement, record_parity
from matexport.family.pixel_rows import stores_pixel_rows
from matexport.family.proof import load_probes, open_proof
from matexport.family.token_rows import stores_token_rows
from matexport.runtime.inputs.image import read_pillow_version
from matexport.runtime.inputs.modality import list_ways
from matexport.runtime.inputs.tokenizer import read_tokenizers_version
from matexport.spec.measured import CPU, Engine, EngineFacts, Host
from matexport.spec.parity import (
    RANGES_CHECK,
    TOGETHER_WAY,
    Breach,
    Parity,
    PixelParity,
    Prepared,
    Spread,
    TokenParity,
    worst_of,
)
from matexport.spec.profile import Encoding, Profile
from matexport.spec.tolerance import FLOORS, Tolerance, tighten
from matexport.verify.codes import (
    RANGES_TOLERANCE,
    encode_tolerance,
)

#: Checks beside the ways of running: what a text's vector owes to its batch, and codes held to the vectors they are of.
SPREAD_CHECK = "alone and in a batch"
VECTORS_CHECK = "as float32"


#: Behind the name of a way of running: an engine's vectors held to those of onnxruntime on the CPU.
ENGINE_CHECK = "as onnxruntime"


@dataclass(frozen=True)
class EngineVerdict:
    """How far an engine's vectors are from those of the same graph in onnxruntime on the CPU.

    Attributes:
        parity: by way of running; empty of codes whose precision has a floor of coordinates alone, which are held to
            the parent's vectors.
        tolerance: the floor between engines that they are held to.
    """

    parity: Mapping[str, Parity]
    tolerance: Tolerance


@dataclass(frozen=True)
class ProfileVerdict:
    """Parity of one profile in each way it was run, and the floor it was held to.

    Attributes:
        parity: by way of running.
        spread: what the same text gave alone and in a batch, as the runtime pads it (on the right).
        ranges: of int8 outputs, how much their ranges cut off of the parent's own vectors. No way of running.
        vectors: what is wrong with the float32 profile whose vectors these are, where the outputs are codes.
        engine: of another engine than onnxruntime on the CPU, how far it is from that.
    """

    profile: str
    tolerance: Tolerance
    parity: Mapping[str, Parity]
    spread: Spread | None = None
    ranges: Parity | None = None
    vectors: Breach | None = None
    engine: EngineVerdict | None = None

    @property
    def passed(self) -> bool:
        return self.find_breach() is None

    def find_breach(self) -> tuple[str, Breach] | None:
        """The first check that failed, and why; None when all passed."""
        return next(((check, breach) for check, breach in self.list_checks() if breach), None)

    @property
    def worst(self) -> tuple[str, Parity]:
        """The way of running, and its parity, with the largest difference."""
        return worst_of(self.parity)

    def list_checks(self) -> list[tuple[str, Breach | None]]:
        """Every check that the profile was held to, and what is wrong with it."""
        checks = [(way, parity.find_breach(self.tolerance)) for way, parity in self.parity.items()]
        if self.ranges is not None:
            checks.append((RANGES_CHECK, self.ranges.find_breach(RANGES_TOLERANCE)))
        if self.tolerance.spread is not None and self.spread is not None:
            checks.append((SPREAD_CHECK, self.spread.find_breach(self.tolerance)))
        if self.engine:
            checks += [
                (f"{way}, {ENGINE_CHECK}", parity.find_breach(self.engine.tolerance))
                for way, parity in self.engine.parity.items()
            ]
        if self.vectors:
            checks.append((VECTORS_CHECK, self.vectors))
        return checks

    def find_measured(self, check: str) -> Parity | Spread | None:
        """The numbers behind one of the checks; of those that are of no way of running, the spread."""
        if self.engine and check.endswith(f", {ENGINE_CHECK}"):
            return self.engine.parity.get(check.removesuffix(f", {ENGINE_CHECK}"))
        return self.parity.get(check) or self.spread


@dataclass(frozen=True)
class Verification:
    """What `verify_family` found on one host.

    Attributes:
        token_ids: the probes' token ids here against the parent's; None where the family does not store those.
        digest: of the manifest of the family that was verified.
        pixels: the probes' pixels here against the parent's; None where the family does not store those.
        engine: what ran the graphs; None where that is onnxruntime on the CPU.
    """

    host: Host
    verdicts: tuple[ProfileVerdict, ...]
    token_ids: TokenParity | None = None
    digest: str = ""
    pixels: PixelParity | None = None
    engine: EngineFacts | None = None

    @property
    def prepared(self) -> Prepared | None:
        """What the probes were prepared to here, against the parent's; None where the family does not store that."""
        return self.token_ids or self.pixels

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts) and (self.prepared is None or self.prepared.passed)

    def require_passed(self, stage: str, effect: str) -> None:
        """Refuse a family that does not give the parent's token ids or pixels, and vectors, on this host.

        Args:
            stage: what is being done, for the error.
            effect: what came of it, such as ``nothing was written``.

        Raises:
            ParityError: naming the first profile that is off.
        """
        if self.prepared and (reason := self.prepared.find_difference()):
            only = f"{self.verdicts[0].profile}: " if len(self.verdicts) == 1 else ""
            raise ParityError(f"{only}{reason}; {effect}", stage)
        for verdict in self.verdicts:
            if found := verdict.find_breach():
                check, breach = found
                why = f"{verdict.profile} is off its floor on this host: {breach} ({check}); {effect}"
                raise ParityError(why, stage)

    @property
    def measured(self) -> Measurement:
        """What of it is a measurement: the floors are the family's."""
        return Measurement(
            parity={verdict.profile: verdict.parity for verdict in self.verdicts},
            spread={verdict.profile: verdict.spread for verdict in self.verdicts},
            ranges={verdict.profile: verdict.ranges for verdict in self.verdicts if verdict.ranges is not None},
            token_ids=self.token_ids,
            pixels=self.pixels,
            engine=self.engine,
            engines={verdict.profile: verdict.engine.parity for verdict in self.verdicts if verdict.engine},
        )


def list_expected_checks(family: Family, name: str) -> tuple[str, ...]:
    """Names of the checks that a profile will be held to, as `ProfileVerdict.list_checks` names them.

    Of codes, `VECTORS_CHECK` is among them where the family has the float32 profile that they are of; a verdict lists
    it only when it fails.
    """
    facts = family.profile_facts(name)
    checks = [*list_ways(family.facts.inputs)]
    if facts.precision in family.facts.exits:
        checks.append(TOGETHER_WAY)
    if facts.encoding is Encoding.INT8:
        checks.append(RANGES_CHECK)
    if find_tolerance(family, name).spread is not None:
        checks.append(SPREAD_CHECK)
    if find_float32_profile(family, name):
        checks.append(VECTORS_CHECK)
    return tuple(checks)


def explain_unchecked(problems: Sequence[Problem]) -> str:
    """Why a check was not made, in one line, given what is wrong with the files, or with what is to run them."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    why = "" if problems[0].kind is ProblemKind.UNUSABLE else ", since the family's files are refused"
    return f"not checked{why}: {' '.join(str(problems[0]).split())}{more}"


def find_float32_profile(family: Family, name: str) -> str | None:
    """The profile of a family that gives the float32 vectors which another's codes are of; None where there is none."""
    profile = Profile.parse(name)
    plain = Profile(profile.point, profile.precision).name
    return plain if plain != name and plain in family.facts.profiles else None


def find_tolerance(family: Family, name: str) -> Tolerance:
    """What a profile's float32 vectors are held to: its precision's floor, or the family's own where it is tighter."""
    precision = family.profile_facts(name).precision
    return tighten(family.facts.tolerances[precision], FLOORS[precision])  # one that loosens it is not believed


def hold_codes_to_vectors(verdicts: Sequence[ProfileVerdict]) -> tuple[ProfileVerdict, ...]:
    """Codes of vectors that are off their floor are off it, too, however few of their bits show it."""
    breaches = {verdict.profile: verdict.find_breach() for verdict in verdicts}

    def hold(verdict: ProfileVerdict) -> ProfileVerdict:
        profile = Profile.parse(verdict.profile)
        plain = Profile(profile.point, profile.precision).name
        breach = breaches.get(plain) if plain != profile.name else None
        return replace(verdict, vectors=breach[1]) if breach else verdict

    return tuple(map(hold, verdicts))


def record_measurement(family: Family, verification: Verification) -> Path:
    """Write a verification to ``measurements/<host>.json``, keeping what else is known of that host.

    Returns:
        the file. Written beside it and renamed, so that it is never half there.

    Raises:
        FamilyError: it is of another family, which lay there before or lies there now.
    """
    if verification.digest and verification.digest != family.digest:
        raise FamilyError(f"{family.path} was replaced while it was verified: nothing was recorded; do it again")
    ran = verification.engine
    label = Engine(ran.name, ran.provider).label if ran else CPU
    return record_parity(family, verification.host, verification.measured, label)


def load_verification(family: Family, host: Host) -> Verification | None:
    """What was recorded on a host, judged by the family's floors; None unless it covers every profile.

    And the token ids or pixels, as the installed version of tokenizers or Pillow gives them, where the family stores
    the parent's.
    """
    recorded = load_measurement(family, host)
    verdicts = judge_recorded(family, recorded) if recorded else ()
    if recorded is None or len(verdicts) != len(family.profiles):
        return None
    if stores_token_rows(family) and (
        recorded.token_ids is None or recorded.token_ids.tokenizers != read_tokenizers_version()
    ):
        return None
    if stores_pixel_rows(family) and (recorded.pixels is None or recorded.pixels.pillow != read_pillow_version()):
        return None
    return Verification(host, verdicts, recorded.token_ids, family.digest, recorded.pixels)


def judge_recorded(family: Family, recorded: Measurement) -> tuple[ProfileVerdict, ...]:
    """What was recorded on a host, judged by the family's floors: only the profiles that were run there."""
    names = [
        profile.name
        for profile in family.profiles
        if recorded.parity.get(profile.name) and profile.name in recorded.spread
    ]
    if not names:
        return ()
    probes = len(load_probes(open_proof(family)))
    return hold_codes_to_vectors(
        [
            ProfileVerdict(
                name,
                find_encoded_tolerance(family, name, probes),
                recorded.parity[name],
                recorded.spread[name],
                recorded.ranges.get(name),
            )
            for name in names
        ]
    )


def find_encoded_tolerance(family: Family, name: str, probes: int) -> Tolerance:
    """What a profile's outputs are held to on so many probes: `find_tolerance`, for codes where it gives codes."""
    facts = family.profile_facts(name)
    return encode_tolerance(find_tolerance(family, name), facts.encoding, facts.dim, probes)
