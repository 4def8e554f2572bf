#!/usr/bin/env bash
# sentence-transformers 6.2.0: with pad_to_multiple_of, the padding of a prompt is left out of the pooling as prompt.
#
# Expected: a Pooling module with include_prompt = False leaves out the tokens of the prompt, however batches are padded.
#   With a prompt of two words, a text of one word keeps its own token and the closing special token.
# What happens: how many tokens to leave out is the length of the prompt's own input_ids, and these are padded as any
#   text is. With pad_to_multiple_of = 8 in processing_kwargs, a prompt of four tokens (two of them special) counts as
#   seven, so that short texts are left with no token: mean pooling gives a vector of zeros. No error, no warning.
#
# Output seen:
#   sentence-transformers 6.2.0 transformers 5.23.0
#   prompt_length: 3, with pad_to_multiple_of = 8: 7
#   length of the vector > 0.1: True, with pad_to_multiple_of = 8: 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 tokenizers==0.23.3
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>messages.txt <<'PY' || { cat messages.txt; exit 1; }
import numpy as np, sentence_transformers, torch, transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

print("sentence-transformers", sentence_transformers.__version__, "transformers", transformers.__version__)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue"]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
torch.manual_seed(0)
transformers.BertModel(transformers.BertConfig(
    vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=32)).save_pretrained("model")
transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
).save_pretrained("model")

seen = []
for told in ({}, {"text": {"pad_to_multiple_of": 8}}):
    first = Transformer("model", processing_kwargs=told)
    model = SentenceTransformer(modules=[first, Pooling(16, "mean", include_prompt=False)], device="cpu")
    length = int(model.preprocess(["blue"], prompt="red green ")["prompt_length"])
    seen.append((length, float(np.linalg.norm(model.encode("blue", prompt="red green ")))))
(plain, norm), (padded, none) = seen
print(f"prompt_length: {plain}, with pad_to_multiple_of = 8: {padded}")
print(f"length of the vector > 0.1: {norm > 0.1}, with pad_to_multiple_of = 8: {none}")
assert (plain, padded, norm > 0.1, none) == (3, 7, True, 0.0), "behaviour changed"
PY
