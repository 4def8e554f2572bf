"""Have sentence-transformers load the parent: with its weights, or, for planning, without them.

The folder's settings are not interpreted here, so none can be misread: arguments for configuration, model and
tokenizer, old file names, encoders of encoder-decoders, adapters and the parent's own classes all take effect as they
do for the parent's users. Only the call of `PreTrainedModel.from_pretrained` is replaced: `_make_fake` builds the model
of fake tensors (shapes without memory, 0.1 s), and `_Recorder` loads it and keeps transformers' loading report, which
sentence-transformers throws away with a warning.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from matexport.errors import ParentError, one_line
from matexport.export.parents.folder.layout import Layout
from matexport.export.parents.folder.source import uses_safetensors
from matexport.spec.job import ParentSource
from matexport.spec.readout import PoolingMode

#: Prefixes that training wrappers (DistributedDataParallel, torch.compile) leave on the names of weights.
_WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}


@dataclass(frozen=True)
class Opened:
    """A parent as sentence-transformers loaded it.

    Attributes:
        model: its SentenceTransformer; None for a plain transformers model.
        first: the module that turns texts into token states.
        chain: the modules after `first`, in order; of a parent that routes its texts, those of the chosen route.
        task: the `task` that `encode` has to be given so that texts take the route.
        unread: names of weights in the files that the model does not use.
        route: the chosen route, if the parent routes its texts.
    """

    model: Any
    first: nn.Module
    chain: tuple[nn.Module, ...]
    task: str | None = None
    unread: tuple[str, ...] = ()
    route: str | None = None

    def takes(self, task: str) -> bool:
        """Whether texts of a task (``query``, ``document`` or a route) take this route; True if there are no routes."""
        if self.route is None:
            return True
        router = next(module for module in self.model if hasattr(module, "sub_modules"))
        return _leads(router, task, self.route)

    @property
    def backbone(self) -> Any:
        """The transformers model; None where the first module is no Transformer, such as a table of tokens."""
        return getattr(self.first, "model", None) if isinstance(self.first, module_class("Transformer")) else None


def open_fake(layout: Layout, parent: ParentSource) -> Opened:
    """Load a parent with a transformers model of fake tensors; its other modules have their weights.

    Raises:
        ParentError: sentence-transformers or transformers cannot load it, or no task leads to the chosen route.
    """
    with _loading_by(_make_fake):
        return _open(layout, parent, (), "")


def open_loaded(layout: Layout, parent: ParentSource) -> Opened:
    """Load a parent with its weights, in float32 and eval mode; adapters are merged.

    Raises:
        ParentError: it cannot be loaded, a weight is missing from the checkpoint, or no task leads to the chosen route.
    """
    recorder = _Recorder()
    with _loading_by(recorder.load):
        opened = _open(layout, parent, recorder.reports, "the weights of ")
    recorder.check(parent.source)
    if opened.backbone is not None:
        merge_adapters(opened.backbone)
        _compute_plainly(opened.backbone)
        if hasattr(opened.backbone.config, "use_cache"):
            opened.backbone.config.use_cache = False
    for module in (opened.first, *opened.chain):
        module.float().eval()
    return opened


def make_pooling(mode: PoolingMode, width: int) -> nn.Module:
    """sentence-transformers' Pooling module for one mode and (B, T, width) states, made as 5.x and 6.x both allow."""
    pooling: nn.Module = module_class("Pooling")(width, pooling_mode=str(mode))
    return pooling.eval()


def module_class(name: str) -> Any:
    """One of sentence-transformers' module classes, by its name, such as ``Pooling``."""
    return getattr(importlib.import_module("sentence_transformers.sentence_transformer.modules"), name)


def merge_adapters(model: nn.Module) -> None:
    """Merge low-rank adapters into the matrices that they belong to, in place, computed in float64.

    The parent multiplies by the matrix and by the adapter and adds the results. If the merged matrix were computed in
    float32, its rounding would show: a difference of 1.8e-5 in a vector was seen, where the floor of fp32 is 1e-5.
    """
    if not any(hasattr(module, "merged_adapters") for module in model.modules()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.double()
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer().float())
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _open(layout: Layout, parent: ParentSource, reports: Sequence[dict[str, Any]], what: str) -> Opened:
    from sentence_transformers import SentenceTransformer

    weights = {"dtype": torch.float32}
    if layout.kind == "Transformer":
        weights["use_safetensors"] = uses_safetensors(layout)  # type: ignore[assignment]
    try:
        if layout.is_plain:
            first = module_class("Transformer")(
                str(layout.root),
                model_kwargs={**weights, "trust_remote_code": parent.trust_remote_code, "local_files_only": True},
                processor_kwargs={"trust_remote_code": parent.trust_remote_code, "local_files_only": True},
                config_kwargs={"trust_remote_code": parent.trust_remote_code, "local_files_only": True},
                modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
                module_output_name="token_embeddings",
            )
            return Opened(None, first, (), unread=_list_unread(reports))
        model = SentenceTransformer(
            str(layout.root),
            device="cpu",
            trust_remote_code=parent.trust_remote_code,
            local_files_only=True,
            model_kwargs=weights,
        )
    except _LOADING_ERRORS as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = "; it comes with Python code, which runs only with trust_remote_code = true in the job's [parent]"
        raise ParentError(
            f"sentence-transformers cannot load {what}{parent.source}: {one_line(error)}{hint}"
        ) from error
    modules, task = list(model), None
    if layout.route is not None:
        place, router = next((place, module) for place, module in enumerate(modules) if hasattr(module, "sub_modules"))
        task = _find_task(router, layout.route, parent.source)
        modules[place : place + 1] = router.sub_modules[layout.route]
    return Opened(model, modules[0], tuple(modules[1:]), task, _list_unread(reports), layout.route)


#: What loading may raise when a folder is not as expected. The parent's own classes may raise anything.
_LOADING_ERRORS = (Exception,)


def _find_task(router: Any, route: str, source: str) -> str | None:
    """The task for which sentence-transformers takes a route; None where the route is taken without a task."""
    for task in (route, "query", "document", None):
        if _leads(router, task, route):
            return task
    raise ParentError(f"no task leads texts to the route {route!r} of {source}: its route_mappings send them elsewhere")


def _leads(router: Any, task: str | None, route: str) -> bool:
    try:
        return bool(router._resolve_route(task=task, modality="text") == route)
    except ValueError:
        return False


def _list_unread(reports: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({key for report in reports for key in report.get("unexpected_keys", ())}))


#: Held while `from_pretrained` is replaced, so that one parent at a time is loaded; other threads load as usual.
_PATCHING = threading.Lock()


@contextlib.contextmanager
def _loading_by(load: Callable[..., Any]) -> Iterator[None]:
    """Have `PreTrainedModel.from_pretrained` call `load(original, class, path, ...)` in this thread meanwhile."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    mine = threading.get_ident()

    def replace(cls: type, *arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != mine:  # another thread loads a model of its own
            return original.__get__(None, cls)(*arguments, **options)
        return load(original.__get__(None, cls), cls, *arguments, **options)

    with _PATCHING:
        PreTrainedModel.from_pretrained = classmethod(replace)
        try:
            yield
        finally:
            PreTrainedModel.from_pretrained = original


def _make_fake(_original: Callable[..., Any], cls: Any, *_arguments: Any, config: Any = None, **_options: Any) -> Any:
    with FakeTensorMode(), no_init_weights():
        model = cls._from_config(config, attn_implementation="eager", dtype=torch.float32)
    use_plain_experts(model)
    _compute_plainly(model)
    # SentenceTransformer moves its modules to a device and a dtype, which fails for fake tensors outside of their mode.
    model._apply = lambda _function, *_options: model
    return model.eval()


def _compute_plainly(model: nn.Module) -> None:
    """Turn off feed-forward layers in chunks: they only save memory, and a trace would fix the number of chunks."""
    for module in model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            module.chunk_size_feed_forward = 0  # type: ignore[assignment]


def use_plain_experts(model: Any) -> None:
    """Have a mixture of experts multiply in batches, which can be traced; grouped products depend on values."""
    with contextlib.suppress(ValueError, NotImplementedError, AttributeError, KeyError):  # models without experts
        model.set_experts_implementation("batched_mm")


@dataclass
class _Recorder:
    """Loads models as transformers does, and keeps its loading reports."""

    reports: list[dict[str, Any]] = field(default_factory=list)

    def load(self, original: Callable[..., Any], _cls: type, *arguments: Any, **options: Any) -> Any:
        model, report = original(*arguments, **{**options, "output_loading_info": True})
        self.reports.append(report)
        return model

    def check(self, source: str) -> None:
        """Refuse a model in which transformers filled missing weights with random numbers.

        Raises:
            ParentError: the checkpoint lacks a weight; the message says why that may be.
        """
        # No exit reads a pooler, so the checkpoint may lack one.
        missing = sorted(
            key for report in self.reports for key in report["missing_keys"] if "pooler" not in key.split(".")
        )
        if not missing:
            return
        unread = _list_unread(self.reports)
        for prefix, wrapper in _WRAPPERS.items():
            if any(key.startswith(prefix) for key in unread):
                raise ParentError(
                    f"the weights of {source} have names that begin with {prefix!r}, as {wrapper} leaves them; "
                    "sentence-transformers finds none of them and takes random ones: take the prefix off and save again"
                )
        raise ParentError(
            f"{source} lacks {len(missing)} weights that its configuration asks for ({missing[0]}, ...); "
            "transformers would fill them with random numbers: is num_hidden_layers right?"
        )


def no_init_weights() -> contextlib.AbstractContextManager[None]:
    """A context in which transformers, 4.x or 5.x, initialises no weights, since fake tensors have no values."""
    try:
        from transformers.initialization import no_init_weights as switch
    except ImportError:
        from transformers.modeling_utils import no_init_weights as switch
    context: contextlib.AbstractContextManager[None] = switch()
    return context
