"""How token states become a vector. It is never inferred silently: the parent's own files or the job say it."""

from __future__ import annotations

from enum import StrEnum

from matexport.spec.record import Record


class PoolingMode(StrEnum):
    """How (B, T, H) token states become (B, H): as sentence-transformers' Pooling module has it for texts.

    Of images, ``mean`` is that of the patches, without class token and registers, ``pooler`` the tower's own pooled
    vector (CLIP's projected class token, SigLIP's attention head, ViT's dense layer), and ``patches`` no pooling at
    all: each patch's own state, (B, patches, H), without class token and registers.
    """

    CLS = "cls"
    MEAN = "mean"
    MAX = "max"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean"
    LAST_TOKEN = "lasttoken"
    POOLER = "pooler"
    PATCHES = "patches"


#: Those of texts.
TEXT_POOLINGS = tuple(mode for mode in PoolingMode if mode not in (PoolingMode.POOLER, PoolingMode.PATCHES))


class FinalNorm(StrEnum):
    """What happens to the parent's final normalisation at an exit before the last block.

    ``keep`` applies it to the intermediate state, as cutting the layers of the module does; ``drop`` reads the raw
    residual stream, as `hidden_states[k]` does; ``absent``: the parent is post-norm and has none. The exit at full
    depth is the parent's own output in each case.
    """

    KEEP = "keep"
    DROP = "drop"
    ABSENT = "absent"


class ReadoutRequest(Record, frozen=True):
    """What a job says about the read-out; None leaves it to the parent's own files.

    Attributes:
        pooling: one mode, or several to be concatenated. Needed for a parent without ``modules.json``.
        final_norm: needed for a pre-norm parent that is read before its last block.
        normalize: scale each vector to unit length after it has been cut to ``dim``.
        max_tokens: a limit below the parent's own ``max_seq_length``.
        image_size: side of the square images that the graphs take, in place of what the parent's processor makes.
        features: of a classifier, give the feature, cut and then scaled, and not what its heads say of it.
    """

    pooling: PoolingMode | tuple[PoolingMode, ...] | None = None
    final_norm: FinalNorm | None = None
    normalize: bool = True
    max_tokens: int | None = None
    image_size: int | None = None
    features: bool = False


class Readout(Record, frozen=True):
    """How token states become a vector, in this order.

    Attributes:
        final_norm: see `FinalNorm`.
        pooling: modes whose results are concatenated.
        heads: the parent's own modules after pooling, at full width (``Dense(384->128, Tanh)``, ``LayerNorm(128)``,
            ``Normalize``), as readable text.
        normalize: L2 after the vector has been cut to the profile's dim.
        classes: of a classifier, how many numbers it says of an item, whatever the dim that they are worked out from;
            0 where the vector itself is given.
    """

    final_norm: FinalNorm
    pooling: tuple[PoolingMode, ...]
    heads: tuple[str, ...]
    normalize: bool
    classes: int = 0
