"""What a card says of the other libraries that load a pack: what its outputs are, and code that was tried with each.

The code blocks are run by the checks of consumers (`noxfile.py`), each with its library, as they stand in a card.
"""

from __future__ import annotations

from matexport.consumers.layouts import DTYPES
from matexport.spec.facts import FamilyFacts, ProfileFacts

#: What weights are called in such a folder, and in no family as it was exported.
_WEIGHTS = ".onnx_data"

_PLAIN = """import numpy as np
import onnxruntime
import tokenizers

tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")  # it cuts and pads as the parent does
rows = tokenizer.encode_batch(["a text", "another text"])
feeds = {{
    "input_ids": np.array([row.ids for row in rows]),
    "attention_mask": np.array([row.attention_mask for row in rows]),
    "token_type_ids": np.array([row.type_ids for row in rows]),
}}
session = onnxruntime.InferenceSession("{graph}")
(vectors,) = session.run(["sentence_embedding"], feeds)  # (2, {dim}) float32"""

_SENTENCE_TRANSFORMERS = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".", backend="onnx", model_kwargs={{"file_name": "{graph}", "export": False}})
vectors = model.encode(["a text", "another text"])  # (2, {dim}) float32"""

_FASTEMBED = """from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

TextEmbedding.add_custom_model(
    model="pack", pooling=PoolingType.MEAN, normalization={normalize}, dim={dim}, model_file="{graph}",
    sources=ModelSource(hf="pack"),
)
model = TextEmbedding("pack", specific_model_path=".")
vectors = list(model.embed(["a text", "another text"]))  # 2 of ({dim},) float32"""

_TRANSFORMERS_JS = """import {{ env, pipeline }} from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "/";
const extract = await pipeline("feature-extraction", process.cwd(), {{ dtype: "{dtype}" }});
const vectors = await extract(["a text", "another text"], {{ pooling: "mean", normalize: {small} }});"""


def describe_consumers(facts: FamilyFacts) -> list[str]:
    """Blocks of Markdown; none for a family that was not packed for others."""
    profile = next(iter(facts.profiles.values()))
    if not profile.weights.endswith(_WEIGHTS):
        return []
    values = {
        "graph": profile.graph,
        "dim": profile.dim,
        "normalize": facts.readout.normalize,
        "small": str(facts.readout.normalize).lower(),
        "dtype": _name_dtype(profile),
    }
    examples = [("onnxruntime", "python", _PLAIN)]
    if "modules.json" in facts.files:  # the vector at every token
        examples += [
            ("sentence-transformers 5", "python", _SENTENCE_TRANSFORMERS), ("fastembed", "python", _FASTEMBED)
        ]  # fmt: skip
    if facts.copies:  # the names under onnx/
        examples.append(("transformers.js", "js", _TRANSFORMERS_JS))
    blocks = [_describe_outputs(facts), _describe_cut(facts)]
    for title, language, code in examples:
        blocks += [f"### {title}", f"```{language}\n{code.format(**values)}\n```"]
    return ["## With other libraries", *filter(None, blocks)]


def _name_dtype(profile: ProfileFacts) -> str:
    name = profile.weights.rpartition("/")[2].removesuffix(_WEIGHTS)
    return DTYPES.get(name, "fp32")


def _describe_outputs(facts: FamilyFacts) -> str:
    if "modules.json" not in facts.files:
        return "The graph has one output, `sentence_embedding` (batch, dim)."
    return (
        "The graph has the outputs `last_hidden_state` (batch, sequence, dim), which is the finished vector **repeated "
        "for every token**, and `sentence_embedding` (batch, dim), which is that vector. A library that pools tokens "
        "gets the vector, whichever way it pools. `last_hidden_state` holds no states of tokens: late interaction and "
        "token classification cannot use it. What was packed with `--token-states` has a third output, "
        "`token_embeddings`, which they can."
    )


def _describe_cut(facts: FamilyFacts) -> str:
    text = facts.text
    if text is None:
        return ""
    said = f"`tokenizer.json` and `tokenizer_config.json` cut texts where the parent does: {text.describe()}."
    if text.prompts:
        said += " Of other libraries, sentence-transformers alone puts a prompt before a text by itself."
    return said
