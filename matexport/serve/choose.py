"""Which profile a request means: ``model`` names one, ``dimensions`` another width of the same."""

from __future__ import annotations

from matexport.errors import RequestError
from matexport.family.manifest import Family
from matexport.serve.refusal import RefusedError
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.spec.record import suggest


def choose_default(family: Family) -> str:
    """The profile of a request that names none: the nearest to the whole parent.

    Of those that give floats, if there are any: the deepest, of these the widest, of these the first precision in the
    order of `Precision` (fp32, fp16, int8, ...).
    """
    precisions, encodings = list(Precision), list(Encoding)

    def rank(profile: Profile) -> tuple[int, int, int, int]:
        encoding = encodings.index(profile.encoding)
        return (encoding, -profile.point.layers, -profile.point.dim, precisions.index(profile.precision))

    return min(family.profiles, key=rank).name


def check_servable(family: Family) -> None:
    """Raise RequestError where a family gives no embeddings of texts."""
    if family.facts.text is None:
        raise RequestError(
            f"{family.path} takes {family.facts.inputs.noun}s; `serve` answers with vectors of texts: use `embed`"
        )
    if family.facts.readout.classes:
        raise RequestError(
            f"{family.path} tells classes apart and gives no vectors of texts, which `serve` answers with"
        )


def resolve(family: Family, default: str, model: str | None, dimensions: int | None) -> str:
    """The name of the profile that a request means.

    Raises:
        RefusedError: 404 there is no such profile, 400 it is not there with so many dims; both list what there is.
    """
    names = [profile.name for profile in family.profiles]
    name = default if model is None else model
    if name not in names:
        known = ", ".join(names)
        raise RefusedError(
            404,
            f"the model {name[:100]!r} was asked; this family's are: {known}{suggest(name[:100], names)}",
            param="model",
            code="model_not_found",
        )
    if dimensions is None:
        return name
    chosen = Profile.parse(name)
    point = Point(chosen.point.layers, dimensions, chosen.point.tokens)
    wanted = Profile(point, chosen.precision, chosen.encoding).name
    if wanted in names:
        return wanted
    dims = sorted(
        profile.point.dim
        for profile in family.profiles
        if (profile.point.layers, profile.precision, profile.encoding)
        == (chosen.point.layers, chosen.precision, chosen.encoding)
    )
    raise RefusedError(
        400,
        f"dimensions={dimensions} was asked of {name}; with its layers and precision there are: "
        f"{', '.join(map(str, dims))}",
        param="dimensions",
    )
