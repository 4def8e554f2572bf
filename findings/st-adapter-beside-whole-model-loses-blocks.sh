#!/usr/bin/env bash
# sentence-transformers 6.2.0: blocks vanish when adapter_config.json lies beside a whole model.
#
# Expected: a folder with a whole model (config.json, model.safetensors) and an adapter for it (adapter_config.json,
#   adapter_model.safetensors) loads as transformers itself loads it: AutoModel.from_pretrained takes configuration,
#   weights and adapter from the folder. At the least, an adapter weight with no place to go should be an error.
# What happens: SentenceTransformer reads the configuration from the adapter's base_model_name_or_path, here another
#   folder whose model has fewer blocks, but the weights and the adapter from the folder itself. The blocks beyond the
#   other model's depth are dropped with their adapters and the vectors are different ones. No error is raised: the
#   dropped weights are named as UNEXPECTED in two load reports that are logged as warnings.
#
# Output seen:
#   sentence-transformers 6.2.0 transformers 5.23.0 peft 0.21.2
#   transformers AutoModel: blocks, adapted blocks = (4, 4)
#   SentenceTransformer:    blocks, adapted blocks = (2, 2)
#   largest difference of the mean-pooled vectors > 0.01: True
#   load reports logged: 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 \
  tokenizers==0.23.3 peft==0.21.2
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>messages.txt <<'PY' || { cat messages.txt; exit 1; }
import numpy as np, peft, sentence_transformers, torch, transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers

print("sentence-transformers", sentence_transformers.__version__, "transformers", transformers.__version__,
      "peft", peft.__version__)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue"]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")

def bert(layers):
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32)).eval()

bert(2).save_pretrained("other")  # what base_model_name_or_path names
bert(4).save_pretrained("whole")  # the model that the adapter was made for
tokenizer.save_pretrained("whole")
adapted = peft.get_peft_model(bert(4), peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
adapted.peft_config["default"].base_model_name_or_path = "other"
adapted.save_pretrained("whole")  # adds the adapter's two files

def blocks(model):
    return len(model.encoder.layer), sum("lora_A" in name for name, _ in model.named_parameters())

by_transformers = transformers.AutoModel.from_pretrained("whole").eval()
loaded = SentenceTransformer("whole")
by_st = loaded[0].model
print("transformers AutoModel: blocks, adapted blocks =", blocks(by_transformers))
print("SentenceTransformer:    blocks, adapted blocks =", blocks(by_st))
assert blocks(by_transformers) == (4, 4), "behaviour changed"
assert blocks(by_st) == (2, 2), "behaviour changed"
with torch.no_grad():
    expected = by_transformers(**tokenizer("red green blue", return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
difference = float(np.abs(loaded.encode("red green blue") - expected).max())
print("largest difference of the mean-pooled vectors > 0.01:", difference > 0.01)
assert difference > 0.01, "behaviour changed"
PY
echo "load reports logged: $(grep -c 'LOAD REPORT' messages.txt)"
