"""A family or a pack as a model of sentence-transformers: its `encode`, computed by onnxruntime.

sentence-transformers 6 has no ONNX back end that can be installed (it wants optimum-onnx, which stops at transformers
4.57), and loads no class of others from a folder without ``trust_remote_code``. A model can be put together in Python
instead, and that needs no trust: its first and only module is the family, read and checked by `Embedder`, so that token
ids, prompts, lengths and vectors are those of `matexport embed`.

    from matexport.adapters.sentence_transformers import load_model

    model = load_model("artifacts/minilm-small")
    model.encode_query("a question")

Whoever calls this has sentence-transformers and torch; nothing else of matexport imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from matexport.errors import RequestError
from matexport.family.manifest import Family
from matexport.runtime.embedder import Embedder
from matexport.spec.inputs import TextFacts
from matexport.spec.profile import Encoding

#: What sentence-transformers takes from a batch when it has gone through a model.
OUTPUT = "sentence_embedding"


def load_model(family: Family | Path | str, profile: str | None = None, *, threads: int | None = None) -> Any:
    """One profile of a family as a `sentence_transformers.SentenceTransformer`, with the parent's prompts.

    Args:
        family, profile, threads: as for `matexport.Embedder`.

    Returns:
        the model, on the CPU. Its vectors are those of `Embedder.embed`, (n, dim) float32; there are no token states.

    Raises:
        RequestError: the family takes no texts, or the profile encodes its output.
        FamilyError: as `matexport.Embedder`.
    """
    module = OnnxFamily(Embedder(family, profile, threads=threads))
    text = module.text
    return SentenceTransformer(
        modules=[module], prompts=dict(text.prompts), default_prompt_name=text.default_prompt, device="cpu"
    )


class OnnxFamily(InputModule):  # type: ignore[misc]  # which ships no types that --strict can follow
    """The one module of such a model: texts -> token ids -> vectors.

    Args:
        embedder: of a profile that takes texts and gives float32 vectors, one for each.

    Raises:
        RequestError: it is of another.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        text = embedder.family.facts.inputs
        if not isinstance(text, TextFacts):
            raise RequestError(f"{embedder.family.path} takes {text.noun}s; sentence-transformers is given texts here")
        if embedder.encoding is not Encoding.FLOAT32:
            raise RequestError(
                f"{embedder.profile} gives {embedder.encoding} codes; sentence-transformers takes float32 vectors: "
                "choose a profile without an encoding, and pass encode's precision"
            )
        self.embedder, self.text = embedder, text

    @property
    def max_seq_length(self) -> int:
        """Tokens after which a text is cut, special tokens counted."""
        return self.text.max_tokens

    def get_embedding_dimension(self) -> int:
        """Numbers of a vector."""
        return self.embedder.dim

    #: What 5.x asks for.
    get_sentence_embedding_dimension = get_embedding_dimension

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, task: str | None = None, **_others: Any
    ) -> dict[str, torch.Tensor]:
        """The graph's inputs for some texts, by name, each (len(inputs), longest) int64.

        Args:
            prompt: the text of one of the parent's prompts, as `encode` found it by its name.
            task: ``query`` or ``document``, from `encode_query` and `encode_document`.

        Raises:
            RequestError: the prompt is none of the parent's, or not the one of the task, or a text has no tokens.
        """
        if task is None or (task not in self.text.tasks and self.text.route is None):
            rows = self.embedder.prepare(inputs, prompt=self._find_prompt(prompt))
        else:
            self._check_task_prompt(task, prompt)
            rows = self.embedder.prepare(inputs, task=task)
        return {name: torch.from_numpy(array) for name, array in self.embedder.feed(rows).items()}

    def forward(self, features: dict[str, Any], **_others: Any) -> dict[str, Any]:
        """The batch with ``sentence_embedding``, (n, dim) float32, on the device that the batch is on."""
        feeds = {name: features[name].cpu().numpy() for name in self.text.inputs}
        vectors = torch.from_numpy(self.embedder.compute(feeds))
        return {**features, OUTPUT: vectors.to(features[self.text.inputs[0]].device)}

    def save(self, output_path: str, *_arguments: Any, **_options: Any) -> NoReturn:
        """Refused: there is nothing here but the files of the family.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"saving the model to {output_path} was asked; it is the files in {self.embedder.family.path}: copy those"
        )

    def _find_prompt(self, prompt: str | None) -> str:
        """The name of the prompt with a text; ``""`` where there is none."""
        if not prompt:
            return ""
        found = next((name for name, text in self.text.prompts.items() if text == prompt), None)
        if found is None:
            known = ", ".join(map(repr, self.text.prompts.values())) or "none"
            raise RequestError(f"the prompt {prompt!r} was asked; the parent has: {known}")
        return found

    def _check_task_prompt(self, task: str, prompt: str | None) -> None:
        """Refuse a prompt that the parent does not put before texts of a task: each has its own, and its own length."""
        facts = self.text.tasks.get(task)
        if facts is None:  # of a route that the parent does not take the task by; `prepare` says so
            return
        name = self.text.default_prompt if facts.prompt is None else facts.prompt
        own = self.text.prompts[name] if name else ""
        if (prompt or "") != own:
            raise RequestError(
                f"the prompt {prompt!r} and the task {task!r} were asked; the parent puts {own!r} before its texts: "
                "leave the prompt out, or call encode"
            )
