"""How far the vectors of two families may lie from each other that were each proven to be near one parent.

What they may differ by follows from what each was proven to keep. A profile's vector lies within its tolerance of its
parent's. If both families have one parent, their vectors lie within the two tolerances of each other, by the triangle
inequality, whatever decided where in its tolerance each lies:

    coordinates, T each      |new - old| <= T_new + T_old
    least cosine, c each     angle(new, old) <= arccos(c_new) + arccos(c_old)
    mean cosine, m each      1 - mean <= (sqrt(1 - m_new) + sqrt(1 - m_old))^2, since the mean of the squared chords
                             2 - 2 cos is a squared distance (Minkowski)
    bits, a share h apart    h(new, old) <= h_new + h_old, since Hamming distance is one; cosines of ±1 are 1 - 2 h

The bound is as coarse as the precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matexport.family.manifest import Family
from matexport.spec.profile import Encoding
from matexport.spec.tolerance import Tolerance
from matexport.verify.codes import encode_tolerance
from matexport.verify.verdict import find_tolerance


def find_bound(new: Family, old: Family, name: str, count: int) -> Tolerance:
    """What the vectors, or codes, of a profile that two families have are held to on so many probes."""
    facts = new.profile_facts(name)
    pair = [find_tolerance(family, name) for family in (new, old)]
    combined = combine_tolerances(*pair)
    if facts.encoding is not Encoding.UBINARY:
        return combined
    signs = [encode_tolerance(tolerance, facts.encoding, facts.dim, count or None) for tolerance in pair]
    return Tolerance(
        max_abs=combined.max_abs,
        cosine_mean=_add_shares([sign.cosine_mean for sign in signs]),
        cosine_min=_add_shares([sign.cosine_min for sign in signs]),
    )


def _add_shares(cosines: Sequence[float | None]) -> float | None:
    """Cosine of two sign patterns that differ from a third in the shares (1 - cosine) / 2."""
    held = [cosine for cosine in cosines if cosine is not None]
    return 1 - sum(1 - cosine for cosine in held) if len(held) == len(cosines) else None


def combine_tolerances(new: Tolerance, old: Tolerance) -> Tolerance:
    """How far two vectors may be from each other that are each within a tolerance of a third; see the module.

    A number that either does not hold is not held.
    """

    def combine(name: str, add: Callable[[Sequence[float]], float]) -> float | None:
        pair = [value for value in (getattr(new, name), getattr(old, name)) if value is not None]
        return add(pair) if len(pair) == 2 else None

    return Tolerance(
        max_abs=combine("max_abs", sum),
        cosine_mean=combine("cosine_mean", _add_chords),
        cosine_min=combine("cosine_min", _add_angles),
    )


def _add_chords(cosines: Sequence[float]) -> float:
    return 1 - sum(math.sqrt(max(0.0, 1 - cosine)) for cosine in cosines) ** 2


def _add_angles(cosines: Sequence[float]) -> float:
    return math.cos(min(math.pi, sum(math.acos(max(-1.0, min(1.0, cosine))) for cosine in cosines)))
