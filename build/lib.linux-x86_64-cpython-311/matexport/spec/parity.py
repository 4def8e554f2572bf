"""How far vectors, token ids and pixels are from the parent's, and a tolerance's `Breach`.

Computing the numbers is left to `verify.parity` and `verify.codes`. Apart from `tolerance`, which a process that only
embeds loads, since a dataclass takes 1 ms to define.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matexport.spec.tolerance import Tolerance


@dataclass(frozen=True)
class Parity:
    """Distance between two sets of n vectors.

    Attributes:
        max_abs: largest difference of one coordinate. Where the reference's largest value of that coordinate exceeds
            1, it is divided by that value, so that one floor serves unit vectors and raw residual streams alike, and
            a coordinate with huge values excuses no other.
        cosine_mean: mean over rows of the cosine between the two vectors of a row.
        cosine_min: the smallest of them.
        neighbours: share of each row's nearest rows (at most 5, by cosine) that is the same in both sets.
        worst: index of the row with the largest difference.
        farthest: index of the row with the smallest cosine.
    """

    max_abs: float
    cosine_mean: float
    cosine_min: float
    neighbours: float
    worst: int
    farthest: int

    def find_breach(self, tolerance: Tolerance) -> Breach | None:
        """What of a tolerance is not kept, such as ``mean cosine 0.9, allowed 0.99``; None when all is."""
        held = (  # `not (a <= b)`, since a comparison with NaN is false
            ("max abs difference", self.max_abs, tolerance.max_abs, 1, self.worst),
            ("mean cosine", self.cosine_mean, tolerance.cosine_mean, -1, self.farthest),
            ("least cosine", self.cosine_min, tolerance.cosine_min, -1, self.farthest),
        )
        for name, value, allowed, sign, probe in held:
            if allowed is not None and not sign * value <= sign * allowed:
                return Breach(f"{name} {value:.{6 if sign < 0 else 2}g}, allowed {allowed:g}", probe)
        return None


def worst_of(ways: Mapping[str, Parity]) -> tuple[str, Parity]:
    """Of the ways in which a profile was run, the one with the largest difference, and its parity."""
    return max(ways.items(), key=lambda item: item[1].max_abs)


@dataclass(frozen=True)
class Spread:
    """What an item's vector owes to its batch.

    Attributes:
        value: of float32 vectors, the largest difference of a coordinate alone and in a batch, scaled as
            `Parity.max_abs` is; of codes, the share of those that differ.
        worst: index of the row that differs most.
    """

    value: float
    worst: int

    def find_breach(self, tolerance: Tolerance) -> Breach | None:
        """The breach of `tolerance.spread`; None where it is kept, or nothing is asked."""
        if tolerance.spread is None or self.value <= tolerance.spread:
            return None
        return Breach(f"the same input differs by {self.value:.2g}, allowed {tolerance.spread:g}", self.worst)


@dataclass(frozen=True)
class Breach:
    """Why a tolerance is not kept, and the index of the probe that is furthest off."""

    reason: str
    probe: int

    def __str__(self) -> str:
        return f"{self.reason}; worst on probe {self.probe}"


#: Ids of a row that a message shows, and how many of them stand before the first that differs.
SHOWN_IDS, IDS_BEFORE = 8, 2


@dataclass(frozen=True)
class TokenParity:
    """The probes' token ids on this machine against the parent's.

    Attributes:
        probes: how many were compared.
        tokenizers: version of the library that gave those of this machine.
        differing: indices of the probes whose ids differ.
        first: the first of them, as messages quote it.
        here, parent: its token ids.
    """

    probes: int
    tokenizers: str
    differing: tuple[int, ...] = ()
    first: str = ""
    here: tuple[int, ...] = ()
    parent: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.differing

    @property
    def summary(self) -> str:
        """Such as ``token ids differ in 5 of 66 probes``."""
        if self.passed:
            return f"token ids of {self.probes} probes are the parent's"
        return f"token ids differ in {len(self.differing)} of {self.probes} probes"

    def find_difference(self) -> str | None:
        """The summary, the first probe whose ids differ, and both rows where they do; None when none differ."""
        if self.passed:
            return None
        pairs = zip(self.here, self.parent, strict=False)
        shorter = min(len(self.here), len(self.parent))
        place = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)
        here, parent = (_show_ids(row, place) for row in (self.here, self.parent))
        return (
            f"{self.summary}, first in {self.first}: {here} here, {parent} in the parent (tokenizers {self.tokenizers} "
            "here)"
        )


#: Grey levels of 255 that a pixel may be off from what the parent's own processor gives: what decoders of JPEG and
#: resamplers are off from each other.
MOST_LEVELS = 1


@dataclass(frozen=True)
class PixelParity:
    """The probes' pixels on this machine against the parent's, in grey levels from 0 to 255.

    Attributes:
        probes: how many were compared.
        pillow: version of the library that gave those of this machine.
        identical: share of the grey levels that are the parent's.
        most: the greatest difference of one.
        differing: indices of the probes with a difference of more than `MOST_LEVELS`.
        worst: the probe with the greatest, as messages quote it; empty where there is none.
    """

    probes: int
    pillow: str
    identical: float = 1.0
    most: int = 0
    differing: tuple[int, ...] = ()
    worst: str = ""

    @property
    def passed(self) -> bool:
        return self.most <= MOST_LEVELS

    @property
    def summary(self) -> str:
        """Such as ``pixels differ in 5 of 26 probes``."""
        if not self.passed:
            return f"pixels differ in {len(self.differing)} of {self.probes} probes"
        if not self.most:
            return f"pixels of {self.probes} probes are the parent's"
        return (
            f"pixels of {self.probes} probes are within {self.most} of 255 grey levels of the parent's "
            f"({self._say_identical()})"
        )

    def find_difference(self) -> str | None:
        """The summary, by how much, and the probe that is worst; None when none differ by more than is allowed."""
        if self.passed:
            return None
        return (
            f"{self.summary}, by up to {self.most} of 255 grey levels ({MOST_LEVELS} allowed), most in {self.worst}; "
            f"{self._say_identical()} (Pillow {self.pillow} here)"
        )

    def _say_identical(self) -> str:
        return f"{int(1000 * self.identical) / 10:g}% identical"


#: What the probes were prepared to on this machine, against what the parent's own preprocessing makes of them.
Prepared: TypeAlias = TokenParity | PixelParity


def _show_ids(row: Sequence[int], place: int) -> str:
    """Some ids around a place, such as ``[..., 7, 12, 9, ...]``."""
    start = max(0, place - IDS_BEFORE)
    shown = [str(token) for token in row[start : start + SHOWN_IDS]]
    before, after = ["..."] if start else [], ["..."] if start + SHOWN_IDS < len(row) else []
    return f"[{', '.join([*before, *shown, *after])}]"


#: The check beside the ways of running of int8 outputs: how much their ranges cut off of the parent's own vectors.
RANGES_CHECK = "ranges"

#: Read from the graph of all exits, which is what evaluates a family.
TOGETHER_WAY = "together"
