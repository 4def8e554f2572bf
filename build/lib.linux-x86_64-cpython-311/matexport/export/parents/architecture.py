"""What an architecture looks like from outside: how deep, how wide, what stands after its last block, what it takes.

Found by running the model once and watching: nothing here knows a model type by name. Between a block and the last
hidden state a model may turn its states round (a view, a permutation, a copy): such operators change no number, so they
are looked through. That also tells a final norm from none where the two ends are different tensors.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from matexport.errors import ParentError, one_line

#: Operators that move numbers and change none; dropout is the identity in a model that is not trained.
_MOVES = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "clone", "contiguous", "alias", "detach", "squeeze",
    "unsqueeze", "expand", "_to_copy", "to", "slice", "select", "native_dropout", "lift_fresh",
}  # fmt: skip

#: Modules that may stand behind the last block: a norm, a projection of it, and some room.
MOST_IN_TAIL = 4

#: Tokens that a model is watched with: enough for any convolution or window over neighbours.
WATCHED_TOKENS = 8


@dataclass(frozen=True)
class Architecture:
    """A backbone before its weights are loaded.

    Attributes:
        blocks: number of blocks, each of which gives a hidden state.
        width: of a token's state after the last block.
        tail: names of the modules between the last block and the last hidden state, in order: the final norm, and what
            may project its result; empty for post-norm models.
        takes: names of the arguments of its forward.
        block_list: name of the list of its blocks; None where one block runs several times.
    """

    blocks: int
    width: int
    tail: tuple[str, ...]
    takes: frozenset[str]
    block_list: str | None = None


def inspect_architecture(model: Any, *, source: str) -> Architecture:
    """Look at a transformers model, whose tensors may be fake ones.

    Raises:
        ParentError: it does not run on token ids alone, or gives no hidden states of a plain stack of blocks.
    """
    kind = getattr(model.config, "model_type", type(model).__name__)
    taken = inspect.signature(model.forward).parameters
    if "pixel_values" in taken and "input_ids" not in taken:
        raise ParentError(f'{source} ({kind}) takes images and no texts: say kind = "image" in [parent] of a job file')
    try:
        watched = _watch(model)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        hint = "; it wants images, too: export the folder of its text tower alone" if "pixel_values" in taken else ""
        raise ParentError(f"{source} ({kind}) does not run as a text encoder: {one_line(error)}{hint}") from error
    blocks = watched.count_blocks(source, kind)
    tail, listed = watched.find_tail(source, kind), watched.find_block_list(blocks)
    return Architecture(
        blocks=blocks,
        width=int(watched.last.shape[-1]),
        tail=tail,
        takes=frozenset(taken),
        block_list=next((name for name, module in model.named_modules() if module is listed), None),
    )


def find_tail(model: Any, source: str = "the parent") -> tuple[str, ...]:
    """Names of the modules between a model's last block and its last hidden state, in order.

    Raises:
        ParentError: something else than modules is there.
    """
    return _watch(model).find_tail(source, getattr(model.config, "model_type", type(model).__name__))


def find_blocks(model: Any) -> tuple[nn.ModuleList, int]:
    """The list of a model's blocks, and how many there are.

    Raises:
        ParentError: the model has no such list.
    """
    watched = _watch(model)
    count = len(watched.states) - 1
    found = watched.find_block_list(count)
    if found is None:
        raise ParentError(f"{type(model).__name__} has no list of {count} blocks; only plain stacks can be cut")
    return found, count


@dataclass
class _Call:
    """A module that ran: its first input and its first output, as they were."""

    name: str
    module: nn.Module
    given: Tensor
    gave: Tensor


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes, for each result of an operator that only moves numbers, what it was made from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origin: dict[int, Tensor] = {}
        self.kept: list[Tensor] = []  # or another tensor would get the same id

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        first = next((value for value in args if isinstance(value, Tensor)), None)
        out = result[0] if isinstance(result, tuple | list) and result else result
        if isinstance(out, Tensor):
            self.kept.append(out)
            if first is not None and function.overloadpacket.__name__ in _MOVES:
                self.origin[id(out)] = first
        return result

    def trace_back(self, tensor: Tensor) -> list[int]:
        """Ids of a tensor and of those that it is a rearrangement of."""
        chain = [id(tensor)]
        while chain[-1] in self.origin:
            chain.append(id(self.origin[chain[-1]]))
        return chain


@dataclass
class _Watched:
    """What was seen in one forward."""

    model: Any
    states: tuple[Tensor, ...]
    last: Tensor
    calls: list[_Call]
    origins: _Origins

    def count_blocks(self, source: str, kind: str) -> int:
        if not self.states:
            raise ParentError(
                f"{source} ({kind}) gives no hidden state for each of its blocks, so it cannot be read after fewer"
            )
        blocks = len(self.states) - 1
        if not all(isinstance(state, Tensor) for state in self.states):
            raise ParentError(f"{source} ({kind}) gives hidden states that are not one for each token")
        stated = getattr(_text_config(self.model), "num_hidden_layers", None)
        if isinstance(stated, int) and stated != blocks:
            raise ParentError(f"{source} ({kind}) gives {len(self.states)} hidden states for {stated} blocks")
        shapes = {tuple(state.shape[:2]) for state in self.states}
        if shapes != {(1, WATCHED_TOKENS)}:
            raise ParentError(f"{source} ({kind}) gives hidden states that are not one for each token")
        return blocks

    def find_tail(self, source: str, kind: str) -> tuple[str, ...]:
        raw = self._find_raw(len(self.states) - 1)
        behind = self.origins.trace_back(self.last)
        if raw is None:
            # Blocks that run past the hooks (`block.forward`), or lie in several lists: their parts have numbers in
            # their names, and what makes the last state has none if it stands behind them all.
            names = [call.name for call in self._list_makers(behind) if not _is_numbered(call.name)]
            return tuple(names[-1:])
        tail: list[str] = []
        while raw not in behind:
            makers = [call for call in self._list_makers(behind) if call.name not in tail]
            if not makers or len(tail) == MOST_IN_TAIL:
                raise ParentError(
                    f"{source} ({kind}): cannot tell what {type(self.model).__name__} does between its last block and "
                    "its last hidden state, so it is not known what a vector read earlier would have to go through"
                )
            tail.insert(0, makers[-1].name)
            behind = self.origins.trace_back(makers[-1].given)
        return tuple(tail)

    def _list_makers(self, behind: list[int]) -> list[_Call]:
        """Calls of modules without parts, or with such that gave nothing of it, whose output is one of some tensors."""
        made = [
            call
            for call in self.calls
            if id(call.gave) in behind and call.name and id(call.gave) not in self.origins.trace_back(call.given)
        ]  # not what passes its input on: dropout in a model that is not trained
        return [call for call in made if not any(other.name.startswith(f"{call.name}.") for other in made)]

    def find_block_list(self, count: int) -> nn.ModuleList | None:
        """The ModuleList whose modules made the hidden states."""
        ran = {id(call.module) for call in self.calls}
        lists = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.ModuleList)
            and len(module) == count
            and any(id(part) in ran for part in module[-1].modules())
        ]
        called = [blocks for blocks in lists if id(blocks[-1]) in ran]
        stacks = [blocks for blocks in called if self._makes_the_states(blocks)]
        # Blocks that run past the hooks (`block.forward`) are known by their parts alone.
        return next(iter([*stacks, *(blocks for blocks in lists if blocks not in called)]), None)

    def _makes_the_states(self, blocks: nn.ModuleList) -> bool:
        """Whether each module of a list, but the last, gave the state after it."""
        return all(
            any(call.module is block and self._is_state(call.gave, depth) for call in self.calls)
            for depth, block in enumerate(blocks[:-1], 1)
        )

    def _is_state(self, tensor: Tensor, depth: int) -> bool:
        return bool(set(self.origins.trace_back(tensor)) & set(self.origins.trace_back(self.states[depth])))

    def _find_raw(self, count: int) -> int | None:
        """Id of the tensor that the last block gave: of a list's last module, or of one that ran once per block."""
        blocks = self.find_block_list(count)
        if blocks is not None:
            mine = [call for call in self.calls if call.module is blocks[-1]]
            return id(mine[-1].gave) if mine else None
        for call in reversed(self.calls):  # in the order in which they ended: a shared block after what it holds
            same = [other for other in self.calls if other.module is call.module]
            if len(same) == count and all(self._is_state(other.given, depth) for depth, other in enumerate(same)):
                return id(same[-1].gave)
        return None


def _is_numbered(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _watch(model: Any) -> _Watched:
    """Run a model on a few tokens. Fake tensors have no values to look at: so no attention mask, whose values
    transformers 5 tests, and no padding token, which transformers 4 would look for in the ids when there is none."""
    calls: list[_Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            gave = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(given, Tensor) and isinstance(gave, Tensor):
                calls.append(_Call(name, module, given, gave))

        return hook

    hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in model.named_modules()]
    origins = _Origins()
    mode = _mode_of(model)
    padding = None if isinstance(mode, contextlib.nullcontext) else _without_padding_token(model)
    try:
        with torch.no_grad(), mode, origins:
            ids = torch.ones((1, WATCHED_TOKENS), dtype=torch.int64)
            output = model(input_ids=ids, output_hidden_states=True, return_dict=True)
    finally:
        _restore_padding_token(model, padding)
        for hook in hooks:
            hook.remove()
    states = getattr(output, "hidden_states", None) or ()
    return _Watched(model, tuple(states), output.last_hidden_state, calls, origins)


def _mode_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """What makes new tensors fake where a model's are."""
    fake = next((tensor for tensor in model.parameters() if isinstance(tensor, FakeTensor)), None)
    return contextlib.nullcontext() if fake is None else fake.fake_mode


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def _without_padding_token(model: Any) -> Any:
    config = _text_config(model)
    padding = getattr(config, "pad_token_id", None)
    try:
        config.pad_token_id = None
    except Exception:  # strict configurations say of what kind it is; those models do not look for it
        config.pad_token_id = padding
    return padding


def _restore_padding_token(model: Any, padding: Any) -> None:
    config = _text_config(model)
    if hasattr(config, "pad_token_id") and padding is not None:
        config.pad_token_id = padding
