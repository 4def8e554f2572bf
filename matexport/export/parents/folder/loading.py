"""sentence-transformers loads the parent: with its weights, or, to plan, with none.

Nothing of what its folder says is interpreted here, so nothing can be misread: arguments for configuration, model and
tokenizer, old file names, encoders of encoder-decoders, adapters and classes of the parent's own all take effect as
they do for the parent's users. transformers is left one thing to decide, where `PreTrainedModel.from_pretrained` is
called: `_make_fake` builds the model of fake tensors (shapes without memory, 0.1 s), `_Recorder` loads it and keeps
transformers' loading report, which sentence-transformers throws away with a warning.
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
    """A parent as sentence-transformers holds it.

    Attributes:
        model: its SentenceTransformer; of a plain transformers folder, one of its Transformer module alone.
        first: the module that turns texts into token states.
        chain: the modules after it, in order, of the route that was asked for.
        task: what `encode` has to be asked for so that texts take the route.
        route: of a parent that routes its texts.
        unread: weights of the files that the model reads nothing from.
    """

    model: Any
    first: nn.Module
    chain: tuple[nn.Module, ...]
    task: str | None = None
    unread: tuple[str, ...] = ()
    route: str | None = None

    def takes(self, task: str) -> bool:
        """Whether texts of a task (``query``, ``document`` or a route) take this route; True where there are none."""
        if self.route is None:
            return True
        router = next(module for module in self.model if hasattr(module, "sub_modules"))
        return _leads(router, task, self.route)

    @property
    def backbone(self) -> Any:
        """transformers' model; None where tokens are looked up in a table."""
        return getattr(self.first, "model", None) if isinstance(self.first, module_class("Transformer")) else None


def open_fake(layout: Layout, parent: ParentSource) -> Opened:
    """A parent whose transformers model is made of fake tensors; its other modules have their weights.

    Raises:
        ParentError: sentence-transformers or transformers cannot make it.
    """
    with _loading_by(_make_fake):
        return _open(layout, parent, (), "")


def open_loaded(layout: Layout, parent: ParentSource) -> Opened:
    """A parent with its weights, float32, in eval mode; adapters are merged.

    Raises:
        ParentError: it cannot be loaded, or a weight is missing from the checkpoint.
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
    """sentence-transformers' Pooling for one mode and states of some width, in a spelling of both 5.x and 6.x."""
    pooling: nn.Module = module_class("Pooling")(width, pooling_mode=str(mode))
    return pooling.eval()


def module_class(name: str) -> Any:
    """One of sentence-transformers' module classes, by its name, such as ``Pooling``."""
    return getattr(importlib.import_module("sentence_transformers.sentence_transformer.modules"), name)


def merge_adapters(model: nn.Module) -> None:
    """Add low-rank adapters to the matrices that they are of, in place, computed in float64.

    In float32 the sum of a matrix and a product of two thin ones rounds otherwise than the parent, which adds their
    results: 1.8e-5 in a vector was seen, where fp32 has 1e-5.
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


#: What the libraries raise when a folder is not what they expect. Classes of the parent's own may raise anything.
_LOADING_ERRORS = (Exception,)


def _find_task(router: Any, route: str, source: str) -> str | None:
    """The task with which sentence-transformers takes a route."""
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


#: One parent at a time is loaded this way; other threads load as ever.
_PATCHING = threading.Lock()


@contextlib.contextmanager
def _loading_by(load: Callable[..., Any]) -> Iterator[None]:
    """Have `PreTrainedModel.from_pretrained` go through `load(original, class, path, ...)` meanwhile."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    mine = threading.get_ident()

    def replace(cls: type, *arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != mine:  # somebody else's model is none of ours
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
    # SentenceTransformer moves its modules to a device and a dtype, which fake tensors outside of their mode cannot.
    model._apply = lambda _function, *_options: model
    return model.eval()


def _compute_plainly(model: nn.Module) -> None:
    """Undo what a configuration says of memory alone: the feed-forward layer in chunks gives the same numbers, but a
    trace would freeze how many there are."""
    for module in model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            module.chunk_size_feed_forward = 0  # type: ignore[assignment]


def use_plain_experts(model: Any) -> None:
    """Have a mixture of experts multiply in batches, which can be traced; grouped products look at values."""
    with contextlib.suppress(ValueError, NotImplementedError, AttributeError, KeyError):  # models without experts
        model.set_experts_implementation("batched_mm")


@dataclass
class _Recorder:
    """Loads as transformers does, and keeps its reports."""

    reports: list[dict[str, Any]] = field(default_factory=list)

    def load(self, original: Callable[..., Any], _cls: type, *arguments: Any, **options: Any) -> Any:
        model, report = original(*arguments, **{**options, "output_loading_info": True})
        self.reports.append(report)
        return model

    def check(self, source: str) -> None:
        """Refuse a model that transformers filled up with random numbers.

        Raises:
            ParentError: naming a weight that the checkpoint lacks, and why it may.
        """
        # A pooler that the checkpoint lacks is initialised at random, and never reached by an exit.
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
    """A context in which transformers, 4.x or 5.x, initialises no weights: that would look at fake tensors' values."""
    try:
        from transformers.initialization import no_init_weights as switch
    except ImportError:
        from transformers.modeling_utils import no_init_weights as switch
    context: contextlib.AbstractContextManager[None] = switch()
    return context
