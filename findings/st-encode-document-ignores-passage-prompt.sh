#!/usr/bin/env bash
# sentence-transformers 6.2.0: encode_document never uses a "passage" (or "corpus") prompt.
#
# Expected: encode_document is documented to take the first available of the prompts "document", "passage", "corpus".
#   With the prompts {"query": "query: ", "passage": "passage: "} (the very example of the constructor's documentation)
#   that is "passage": encode_document(t) should equal encode("passage: " + t).
# What happens: the constructor adds an empty "document" prompt to every model that has none. It is found first, so
#   encode_document(t) equals encode(t) with no prompt, without a message. It does not matter whether the prompts were
#   given to the constructor or read from a saved folder that names only "query" and "passage". Even with
#   default_prompt_name="passage", encode uses the prompt and encode_document does not (an info message then says that a
#   method's own empty prompt goes first; the documentation of encode_document does not).
#
# Output seen:
#   sentence-transformers 6.2.0 transformers 5.23.0
#   prompts given to the constructor: {'query': 'query: ', 'document': '', 'passage': 'passage: '}
#     encode_document equals no prompt: True, equals 'passage: ': False
#   prompts read from a saved folder: {'query': 'query: ', 'document': '', 'passage': 'passage: '}
#     encode_document equals no prompt: True, equals 'passage: ': False
#   prompts passage made the default: {'query': 'query: ', 'document': '', 'passage': 'passage: '}
#     encode_document equals no prompt: True, equals 'passage: ': False
#     encode with that default equals 'passage: ': True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 tokenizers==0.23.3
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>messages.txt <<'PY' || { cat messages.txt; exit 1; }
import json, pathlib
import numpy as np, sentence_transformers, torch, transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers

print("sentence-transformers", sentence_transformers.__version__, "transformers", transformers.__version__)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":", "red", "green", "blue"]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained("bert")
torch.manual_seed(0)
transformers.BertModel(transformers.BertConfig(
    vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=32)).save_pretrained("bert")

prompts = {"query": "query: ", "passage": "passage: "}
SentenceTransformer("bert").save("folder")
settings = pathlib.Path("folder/config_sentence_transformers.json")
settings.write_text(json.dumps({**json.loads(settings.read_text()), "prompts": prompts}))

text = "red green"
for name, model in [
    ("given to the constructor", SentenceTransformer("bert", prompts=prompts)),
    ("read from a saved folder", SentenceTransformer("folder")),
    ("passage made the default", SentenceTransformer("folder", default_prompt_name="passage")),
]:
    plain, passage = model.encode(text, prompt=""), model.encode("passage: " + text, prompt="")
    document = model.encode_document(text)
    as_plain, as_passage = np.allclose(document, plain), np.allclose(document, passage)
    print(f"prompts {name}: {model.prompts}")
    print(f"  encode_document equals no prompt: {as_plain}, equals 'passage: ': {as_passage}")
    assert not np.allclose(plain, passage, atol=1e-3), "the prompt makes no difference to this model"
    assert as_plain and not as_passage, "behaviour changed"
    if model.default_prompt_name:
        by_encode = np.allclose(model.encode(text), passage)
        print(f"  encode with that default equals 'passage: ': {by_encode}")
        assert by_encode, "behaviour changed"
PY
