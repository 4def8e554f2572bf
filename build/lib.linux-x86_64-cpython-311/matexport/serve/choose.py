"""Which profile a request means: ``model`` names one, ``dimensions`` another width of the same."""

from __future__ import annotations

from matexport.errors import RequestError
from matexport.family.manifest import Family
from matexport.serve.refusal import RefusedError
from matexport.spec.profile import Encoding, Precision, Profile
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


class Catalogue:
    """The profiles of a family, looked up once: a request asks for one by name, and perhaps by its dims.

    Attributes:
        names: of the profiles, in the family's order.
        default: of a request that names none.
    """

    def __init__(self, family: Family, default: str | None) -> None:
        profiles = family.profiles
        self.names = {profile.name: None for profile in profiles}
        self.default = default or choose_default(family)
        self._beside: dict[object, dict[int, str]] = {}
        for profile in profiles:
            self._beside.setdefault(_leave_out_dim(profile), {})[profile.point.dim] = profile.name

    def resolve(self, model: str | None, dimensions: int | None) -> str:
        """The name of the profile that a request means.

        Raises:
            RefusedError: 404 there is no such profile, 400 it is not there with so many dims; both list what there is.
        """
        name = self.default if model is None else model
        if name not in self.names:
            raise RefusedError(
                404,
                f"the model {name[:100]!r} was asked; this family's are: {', '.join(self.names)}"
                f"{suggest(name[:100], self.names)}",
                param="model",
                code="model_not_found",
            )
        if dimensions is None:
            return name
        beside = self._beside[_leave_out_dim(Profile.parse(name))]
        if dimensions not in beside:
            raise RefusedError(
                400,
                f"dimensions={dimensions} was asked of {name}; with its layers and precision there are: "
                f"{', '.join(map(str, sorted(beside)))}",
                param="dimensions",
            )
        return beside[dimensions]


def _leave_out_dim(profile: Profile) -> object:
    return profile.point.layers, profile.point.tokens, profile.precision, profile.encoding
