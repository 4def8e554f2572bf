"""The judge: what a parent's vectors are, by the library of its users. Run as a script, in a process of its own.

It shares no code with matexport and imports nothing of it (a test reads its imports). A folder of sentence-transformers
is loaded and asked as its users do it: `SentenceTransformer(folder)`, then `encode`, `encode_query` or
`encode_document`. A plain folder of transformers is `AutoModel` and `AutoTokenizer`; how its states are pooled is the
user's to say, so that is done here with the textbook formulas, on one text's own states.

One request per line of standard input, as JSON; one answer per line of standard output. Arrays go through files.
The process ends when its standard input does, whatever it is doing then: whoever asked is gone, or wants no answer.
"""

from __future__ import annotations

import inspect
import json
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

POOL: dict[str, Callable[[np.ndarray], Any]] = {
    "cls": lambda states: states[0],
    "mean": lambda states: states.mean(0),
    "max": lambda states: states.max(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / np.sqrt(len(states)),
    "weightedmean": lambda states: np.average(states, axis=0, weights=np.arange(1, len(states) + 1)),
    "lasttoken": lambda states: states[-1],
}


class SentenceTransformersJudge:
    """`SentenceTransformer.encode`, on the parent or on the parent with its blocks cut."""

    def __init__(self, request: dict[str, Any]) -> None:
        import sentence_transformers
        import torch

        self.name = f"sentence-transformers {sentence_transformers.__version__}"
        options: dict[str, Any] = {"dtype": torch.float32}
        if request["safetensors"] is not None:
            options["use_safetensors"] = request["safetensors"]
        self.model = sentence_transformers.SentenceTransformer(
            request["folder"],
            device="cpu",
            trust_remote_code=request["trust"],
            local_files_only=True,
            model_kwargs=options,
        )
        self.model.float()
        self.task = None
        self.modules = list(self.model)
        if request["route"] is not None:
            place = next(place for place, module in enumerate(self.modules) if hasattr(module, "sub_modules"))
            router, route = self.modules[place], request["route"]
            self.task = next(task for task in (route, "query", "document", None) if leads(router, task, route))
            self.modules[place : place + 1] = router.sub_modules[route]
        if request["pooling"]:
            self.pool_by(tuple(request["pooling"]))
        if request["max_tokens"]:
            self.cut_at(request["max_tokens"])

    def pool_by(self, modes: tuple[str, ...]) -> None:
        """The job pools otherwise than the parent's folder."""
        pooling = next(module for module in self.modules if type(module).__name__ == "Pooling")
        pooling.pooling_mode = modes

    def cut_at(self, tokens: int) -> None:
        """The job cuts texts earlier than the parent's folder."""
        first = self.modules[0]
        for name in ("query_length", "document_length"):
            if getattr(first, name, None) is not None:
                setattr(first, name, min(getattr(first, name), tokens))
        for told in getattr(first, "processing_kwargs", {}).values():
            if "max_length" in told:
                told["max_length"] = min(told["max_length"], tokens)
        if type(first).__name__ == "StaticEmbedding":
            first.tokenizer.enable_truncation(tokens)
        else:
            first.max_seq_length = tokens

    def encode(self, items: list[dict[str, Any]], batch: int) -> np.ndarray:
        """(len(items), W) float32. Items that are asked for in the same way share a call."""
        rows: list[Any] = [None] * len(items)
        ways: dict[tuple[Any, Any], list[int]] = {}
        for place, item in enumerate(items):
            ways.setdefault((item["prompt"], item["task"]), []).append(place)
        for (prompt, task), places in ways.items():
            texts = [items[place]["text"] for place in places]
            for place, vector in zip(places, self.ask(texts, prompt, task, batch), strict=True):
                rows[place] = vector
        return np.stack(rows).astype(np.float32)

    def ask(self, texts: list[str], prompt: str | None, task: str | None, batch: int) -> np.ndarray:
        # Its users have the vectors cut where the folder says so; all coordinates are wanted here.
        options: dict[str, Any] = {"batch_size": batch, "show_progress_bar": False, "truncate_dim": 1 << 30}
        if task is not None:
            return np.asarray(getattr(self.model, f"encode_{task}")(texts, **options))
        if prompt is None or prompt != self.model.default_prompt_name:  # which its users get without asking for it
            options |= {"prompt_name": prompt} if prompt else {"prompt": ""}
        if self.task is not None:
            options["task"] = self.task
        return np.asarray(self.model.encode(texts, **options))

    def find_backbone(self) -> Any:
        return self.modules[0].model

    def describe(self, item: dict[str, Any]) -> dict[str, np.ndarray]:
        """What each module gives for one text: ``tokens``, then ``0 Transformer``, ``1 Pooling``, ..."""
        import torch

        prompt = self.model.prompts[item["prompt"]] if item["prompt"] else None
        task = item["task"] or self.task
        features = self.model.preprocess([item["text"]], prompt=prompt, **({"task": task} if task else {}))
        given = {"tokens": features["input_ids"].reshape(-1).numpy()}
        with torch.no_grad():
            for place, module in enumerate(self.modules):
                features = module(features)
                known = "sentence_embedding" if "sentence_embedding" in features else "token_embeddings"
                given[f"{place} {type(module).__name__}"] = features[known][0].numpy()
        return given


class AutoModelJudge:
    """`AutoModel` and `AutoTokenizer`, pooled as the job says."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch
        import transformers

        self.name = f"transformers {transformers.__version__} AutoModel"
        common = {"trust_remote_code": request["trust"], "local_files_only": True}
        folder = request["folder"]
        config = transformers.AutoConfig.from_pretrained(folder, **common)
        weights = {"dtype": torch.float32, **common}
        if request["safetensors"] is not None:
            weights["use_safetensors"] = request["safetensors"]
        model = transformers.MODEL_MAPPING.get(type(config), None)
        model = model[0] if isinstance(model, list | tuple) else model
        if model is not None and "decoder_input_ids" in inspect.signature(model.forward).parameters:
            # AutoModel has a decoder that wants inputs, too; the encoder alone is what sentence-transformers takes.
            import sentence_transformers
            from sentence_transformers.sentence_transformer.modules import Transformer

            first = Transformer(folder, model_kwargs=weights, processor_kwargs=common, config_kwargs=common)
            self.backbone, self.tokenizer = first.model, first.tokenizer
            self.name = f"sentence-transformers {sentence_transformers.__version__} encoder"
        else:
            self.backbone = transformers.AutoModel.from_pretrained(folder, **weights)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **common)
        self.backbone.float().eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.pooling, self.max_tokens = request["pooling"], request["max_tokens"]

    def encode(self, items: list[dict[str, Any]], batch: int) -> np.ndarray:
        """(len(items), W) float32."""
        rows = []
        for start in range(0, len(items), batch):
            texts = [item["text"] for item in items[start : start + batch]]
            rows += [self.pool(states) for states in self.run(texts)]
        return np.stack(rows).astype(np.float32)

    def pool(self, states: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(POOL[mode](states)) for mode in self.pooling])

    def run(self, texts: list[str]) -> list[np.ndarray]:
        """The states of each text's own tokens, (T, H)."""
        import torch

        encoded = self.tokenizer(
            texts, padding=len(texts) > 1, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        takes = inspect.signature(self.backbone.forward).parameters
        given = {name: value for name, value in encoded.items() if name in takes}
        with torch.no_grad():
            states = self.backbone(**given, return_dict=True).last_hidden_state
        masks = encoded["attention_mask"] if "attention_mask" in encoded else torch.ones_like(encoded["input_ids"])
        return [row[mask == 1].numpy() for row, mask in zip(states, masks, strict=True)]

    def find_backbone(self) -> Any:
        return self.backbone

    def describe(self, item: dict[str, Any]) -> dict[str, np.ndarray]:
        (states,) = self.run([item["text"]])
        ids = self.tokenizer([item["text"]], truncation=True, max_length=self.max_tokens)["input_ids"][0]
        return {"tokens": np.array(ids), "0 Transformer": states, "1 Pooling": self.pool(states)}


def leads(router: Any, task: str | None, route: str) -> bool:
    try:
        return bool(router._resolve_route(task=task, modality="text") == route)
    except ValueError:
        return False


def cut_blocks(backbone: Any, layers: int, blocks: str | None, dropped: list[str]) -> None:
    """Leave a model its first blocks, as its users cut one: by the list of its modules, where it has one."""
    import torch

    if blocks is not None:
        del backbone.get_submodule(blocks)[layers:]
    else:
        tell_depth(backbone, layers)
    for name in dropped:  # the exits are read before it
        backbone.set_submodule(name, torch.nn.Identity())


def tell_depth(backbone: Any, layers: int) -> None:
    """Change what a model's configuration, and the model itself, say of its depth."""
    config = backbone.config.get_text_config()
    count = config.num_hidden_layers
    for name in ("num_hidden_layers", "num_layers", "n_layer", "num_hidden_groups"):
        if getattr(config, name, None) == count:
            setattr(config, name, layers)
    for module in backbone.modules():  # which some models count by themselves
        if getattr(module, "n_layers", None) == count:
            module.n_layers = layers


def answer(judge: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "encode":
        together = [request["items"][place] for place in request["together"]]
        np.savez(
            request["out"],
            alone=judge.encode(request["items"], batch=1),
            together=judge.encode(together, batch=32) if together else np.zeros((0, 0)),
        )
    elif request["do"] == "cut":
        cut_blocks(judge.find_backbone(), request["layers"], request["blocks"], request["dropped"])
        try:
            alone = judge.encode(request["items"], batch=1)
        except (IndexError, AttributeError):  # a loop that counts to the depth in the configuration
            tell_depth(judge.find_backbone(), request["layers"])
            alone = judge.encode(request["items"], batch=1)
        np.savez(request["out"], alone=alone)
    elif request["do"] == "describe":
        given = judge.describe(request["item"])
        np.savez(
            request["out"],
            names=np.array(list(given)),
            **{f"given_{n}": value for n, value in enumerate(given.values())},
        )
    return {"judge": judge.name}


def read_requests() -> Iterator[str]:
    """The lines of standard input, which a thread reads from now on, so that its end is seen whatever goes on here."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print goes with the rest of what they say
    warnings.simplefilter("ignore")
    requests = read_requests()
    import torch  # before the first request: it takes longest
    import transformers

    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import sentence_transformers  # noqa: F401

    judge: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                judge = None
                judge = (AutoModelJudge if request["plain"] else SentenceTransformersJudge)(request)
                answers.write(json.dumps({"judge": judge.name}) + "\n")
            elif request["do"] == "close":
                judge = None
                answers.write(json.dumps({}) + "\n")
            else:
                answers.write(json.dumps(answer(judge, request)) + "\n")
        except Exception as error:
            said = " ".join(str(error).split())[:400] or "no message"
            answers.write(json.dumps({"error": f"{type(error).__name__}: {said}"}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
