"""What an architecture looks like from outside: how deep, how wide, what stands after its last block, what it takes.

Found by building the model of fake tensors (shapes without memory) and running it once; nothing here knows a model
type by name.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from matexport.errors import ParentError


@dataclass(frozen=True)
class Architecture:
    """A backbone before its weights are loaded.

    Attributes:
        blocks: number of transformer blocks.
        width: of a token's state.
        final_norm: name of the norm between the last block and the last hidden state; None for post-norm models.
        takes: names of the arguments of its forward.
    """

    blocks: int
    width: int
    final_norm: str | None
    takes: frozenset[str]


def inspect_architecture(config: Any, *, source: str, trust_remote_code: bool) -> Architecture:
    """Read a transformers configuration and look at the model it describes.

    Raises:
        ParentError: it does not say its size, or the model is not a plain stack of blocks.
    """
    from transformers import AutoModel

    blocks, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(blocks, int) or not isinstance(width, int):
        raise ParentError(f"{source} ({config.model_type}) does not say how many blocks it has and how wide it is")
    try:
        with FakeTensorMode(), _no_init_weights():
            model = AutoModel.from_config(config, attn_implementation="eager", trust_remote_code=trust_remote_code)
            norm = find_final_norm(model.eval(), blocks)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ParentError(f"{source} ({config.model_type}) does not run as a text encoder: {reason}") from error
    return Architecture(blocks, width, norm, frozenset(inspect.signature(model.forward).parameters))


def find_final_norm(model: nn.Module, blocks: int) -> str | None:
    """Name of the module between a model's last block and its last hidden state; None when nothing is there.

    Args:
        model: transformers' model, on the CPU; its tensors may be fake ones.
        blocks: its number of transformer blocks.

    Raises:
        ParentError: something else than one module is there.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == blocks]
    if not lists:
        raise ParentError(f"{type(model).__name__} has no list of {blocks} blocks; only plain stacks can be cut")
    raw: list[object] = []
    after: list[tuple[str, object]] = []

    def note_block(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raw.append(output[0] if isinstance(output, tuple | list) else output)

    def note_followers(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, inputs: Any, output: Any) -> None:
            if raw and inputs and inputs[0] is raw[-1]:
                after.append((name, output))

        return note

    hooks = [lists[0][-1].register_forward_hook(note_block)]
    hooks += [module.register_forward_hook(note_followers(name)) for name, module in model.named_modules()]
    config: Any = model.config
    pad_token_id = config.pad_token_id
    try:
        # Fake tensors have no values to look at: so no attention mask, whose values transformers 5 tests, and no
        # padding token, which transformers 4 would look for in the ids when there is no mask.
        config.pad_token_id = None
        with torch.no_grad():
            last = model(input_ids=torch.ones((1, 2), dtype=torch.int64)).last_hidden_state
    finally:
        config.pad_token_id = pad_token_id
        for hook in hooks:
            hook.remove()
    if raw and last is raw[-1]:
        return None
    names = [name for name, output in after if output is last]
    if len(names) != 1:
        raise ParentError(
            f"cannot tell what {type(model).__name__} does between its last block and its last hidden state"
        )
    return names[0]


def _no_init_weights() -> contextlib.AbstractContextManager[None]:
    """transformers' own switch, where 5.x and 4.x keep it: initialising looks at values, which fake tensors lack."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    context: contextlib.AbstractContextManager[None] = no_init_weights()
    return context
