"""A family or a pack as a model of sentence-transformers: its `encode`, computed by onnxruntime.

sentence-transformers 6 has no ONNX back end that can be installed (it wants optimum-onnx, which stops at transformers
4.57), and loads no class of others from a folder without ``trust_remote_code``. A model can be put together in Python
instead, and that needs no trust: its first and only module is the family, read and checked by `Embedder`, so that token
ids, prompts, lengths and vectors are those of `matexport embed`.

    from matexport.adapters.sentence_transformers import load_model

    model = load_model("artifacts/minilm-small")
    model.encode_query("a question")

What `save_pretrained` writes of such a model, `load_model` loads again, as does sentence-transformers itself with
``trust_remote_code=True``: it imports the class below then, and nothing that lies in the folder.

Whoever calls this has sentence-transformers and torch; nothing else of matexport imports it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from msgspec.structs import replace
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from matexport.consumers.files import SPECIAL_TOKENS
from matexport.consumers.layouts import NATIVE
from matexport.errors import FamilyError, RequestError
from matexport.family.integrity import check_files
from matexport.family.manifest import Family
from matexport.family.modality import TOKENIZER
from matexport.pack.write import pack_profile
from matexport.runtime.embedder import Embedder
from matexport.runtime.inputs.modality import Asked, open_inputs
from matexport.spec.inputs import NO_LIMIT, TextFacts
from matexport.spec.profile import Encoding

#: What sentence-transformers takes from a batch when it has gone through a model.
OUTPUT = "sentence_embedding"

#: Where a model that was saved has its module, and the module its pack.
SAVED, PACK = "0_OnnxFamily", "pack"

#: What says where a folder is, of all that sentence-transformers says when it loads a module.
_WHERE = ("token", "cache_folder", "revision", "local_files_only")


def load_model(family: Family | Path | str, profile: str | None = None, *, threads: int | None = None) -> Any:
    """One profile of a family as a `sentence_transformers.SentenceTransformer`, with the parent's prompts.

    Args:
        family, profile, threads: as for `matexport.Embedder`; or a folder that such a model was saved to.

    Returns:
        the model, on the CPU. Its vectors are those of `Embedder.embed`, (n, dim) float32; there are no token states.

    Raises:
        RequestError: the family takes no texts, or the profile encodes its output.
        FamilyError: as `matexport.Embedder`.
    """
    if isinstance(family, Path | str) and (Path(family) / SAVED).is_dir():
        module = OnnxFamily.load(str(family), SAVED, threads=threads)
    else:
        module = OnnxFamily(Embedder(family, profile, threads=threads))
    text = module.text
    return SentenceTransformer(
        modules=[module], prompts=dict(text.prompts), default_prompt_name=text.default_prompt, device="cpu"
    )


class OnnxFamily(InputModule):  # type: ignore[misc]  # which ships no types that --strict can follow
    """The one module of such a model: texts -> token ids -> vectors.

    Args:
        embedder: of a profile that takes texts and gives float32 vectors, one for each.
        max_seq_length: as the attribute.

    Raises:
        RequestError: it is of another.
    """

    save_in_root = False  # where sentence-transformers has files of its own
    config_keys = ["max_seq_length"]  # noqa: RUF012 - as it is spelt there

    def __init__(self, embedder: Embedder, max_seq_length: int | None = None) -> None:
        super().__init__()
        text = embedder.family.facts.inputs
        if not isinstance(text, TextFacts):
            raise RequestError(f"{embedder.family.path} takes {text.noun}s; sentence-transformers is given texts here")
        if embedder.encoding is not Encoding.FLOAT32:
            raise RequestError(
                f"{embedder.profile} gives {embedder.encoding} codes; sentence-transformers takes float32 vectors: "
                "choose a profile without an encoding, and pass encode's precision"
            )
        self.embedder, self.text, self._inputs = embedder, text, embedder.inputs
        if max_seq_length is not None:
            self.max_seq_length = max_seq_length

    @property
    def max_seq_length(self) -> int:
        """Tokens after which a text is cut, special tokens counted: at first the parent's limit. None sets that again.

        Raises:
            RequestError: more are set than the parent reads, or another number where all rows have one.
        """
        return self._inputs.facts.max_tokens  # type: ignore[union-attr]

    @max_seq_length.setter
    def max_seq_length(self, count: int | None) -> None:
        text, family = self.text, self.embedder.family
        count = text.max_tokens if count is None else count
        least = text.max_tokens if text.full else 1
        if type(count) is not int or not least <= count <= text.max_tokens:
            most = "any number of" if text.max_tokens == NO_LIMIT else f"{least} to {text.max_tokens}"
            raise RequestError(f"max_seq_length={count} was asked; the parent takes {most} tokens")
        tasks = {
            name: task if task.max_tokens is None else replace(task, max_tokens=min(task.max_tokens, count))
            for name, task in text.tasks.items()
        }
        shorter = replace(family.facts, text=replace(text, max_tokens=count, tasks=tasks))
        self._inputs = open_inputs(check_files(replace(family, facts=shorter), family.input_files))

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The parent's tokenizer, in transformers' class, cutting where this model does; changing it changes nothing.

        It puts no prompt and no chat template around a text: `preprocess` does.
        """
        text, family = self.text, self.embedder.family
        names = [name for name in (TOKENIZER, "tokenizer_config.json") if name in family.facts.files]
        opened = check_files(family, names)
        said = json.loads(bytes(opened.read(names[-1]))) if len(names) > 1 else {}
        special = {name: said[name] for name in SPECIAL_TOKENS if isinstance(said.get(name), str)}
        written = Tokenizer.from_str(bytes(opened.read(TOKENIZER)).decode())
        special["pad_token"] = written.id_to_token(text.pad_token_id)
        return PreTrainedTokenizerFast(
            tokenizer_object=written,
            model_max_length=self.max_seq_length,
            padding_side=str(text.padding_side),
            truncation_side=str(text.cuts),
            model_input_names=list(text.inputs),
            **special,
        )

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
            rows = self._inputs.prepare(inputs, Asked(self._find_prompt(prompt)))
        else:
            self._check_task_prompt(task, prompt)
            rows = self._inputs.prepare(inputs, Asked(task=task))
        return {name: torch.from_numpy(array) for name, array in self._inputs.feed(rows).items()}

    def forward(self, features: dict[str, Any], **_others: Any) -> dict[str, Any]:
        """The batch with ``sentence_embedding``, (n, dim) float32, on the device that the batch is on."""
        feeds = {name: features[name].cpu().numpy() for name in self.text.inputs}
        vectors = torch.from_numpy(self.embedder.compute(feeds))
        return {**features, OUTPUT: vectors.to(features[self.text.inputs[0]].device)}

    def save(self, output_path: str, *_arguments: Any, **_options: Any) -> None:
        """Write the profile as a pack, which is proven there, and how long texts may be.

        Raises:
            FamilyError, DestinationError, ParityError: as `matexport.pack_profile`.
        """
        folder = Path(output_path)
        pack_profile(self.embedder.family, self.embedder.profile, folder / PACK, layout=NATIVE, overwrite=True)
        self.save_config(str(folder))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *, threads: int | None = None, **options: Any) -> Self:
        """What `save` wrote.

        Args:
            model_name_or_path, subfolder, options: as sentence-transformers gives them, which finds the folder.

        Raises:
            FamilyError: the files are not those that were saved.
        """
        where = {name: options[name] for name in _WHERE if name in options}
        folder = cls.load_dir_path(model_name_or_path, subfolder, **where)
        if folder is None:
            raise FamilyError(f"{model_name_or_path} has no {subfolder}, which a model of matexport is saved to")
        config = cls.load_config(model_name_or_path, subfolder, **where)
        return cls(Embedder(Path(folder) / PACK, threads=threads), config.get("max_seq_length"))

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
