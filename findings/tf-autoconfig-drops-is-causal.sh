#!/usr/bin/env bash
# transformers 5.23.0: AutoConfig.from_pretrained(folder, is_causal=False) is dropped unless config.json has the key.
#
# Expected: is_causal=False makes Llama's attention bidirectional: the model reads it from its configuration. So
#   AutoConfig.from_pretrained(folder, is_causal=False), which is also what sentence-transformers does with the
#   config_kwargs it is given and with the config_args of a saved folder, should set it for every Llama folder.
# What happens: an override is applied only where the loaded configuration has that attribute already. LlamaConfig does
#   not declare is_causal, so it is dropped (return_unused_kwargs=True hands it back, as documented) and the model stays
#   causal without a message; where config.json happens to have the key, it is honoured. Assigning config.is_causal
#   after loading works for both. So one and the same call gives bidirectional or causal vectors by the folder.
#
# Output seen:
#   transformers 5.23.0 sentence-transformers 6.2.0
#   config.json without the key: config.is_causal absent, returned as unused {'is_causal': False}
#     bidirectional: transformers False, sentence-transformers False, its folder False, assigned to the configuration True
#   config.json with the key: config.is_causal False, returned as unused {}
#     bidirectional: transformers True, sentence-transformers True, its folder True, assigned to the configuration True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 tokenizers==0.23.3
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>messages.txt <<'PY' || { cat messages.txt; exit 1; }
import json, pathlib
import sentence_transformers, torch, transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel

print("transformers", transformers.__version__, "sentence-transformers", sentence_transformers.__version__)
words = ["<pad>", "<unk>", "red", "green", "blue"]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
sizes = dict(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
             intermediate_size=16, max_position_embeddings=32)

def sees_later_words(model):
    """Whether the first word's state depends on the last word: no under causal attention."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[2, 3, 3], [2, 3, 4]])).last_hidden_state[:, 0]
    return not torch.allclose(states[0], states[1], atol=1e-6)

for folder, extra in [("without", {}), ("with", {"is_causal": True})]:
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(**sizes, **extra)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config, unused = AutoConfig.from_pretrained(folder, is_causal=False, return_unused_kwargs=True)
    config = AutoConfig.from_pretrained(folder, is_causal=False)
    model = AutoModel.from_pretrained(folder, config=config).eval()
    st = SentenceTransformer(folder, config_kwargs={"is_causal": False})
    SentenceTransformer(folder).save(folder + "-saved")
    settings = pathlib.Path(folder + "-saved/sentence_bert_config.json")
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "config_args": {"is_causal": False}}))
    saved = SentenceTransformer(folder + "-saved")
    value, honoured = getattr(config, "is_causal", "absent"), folder == "with"
    seen, by_st, by_saved = (sees_later_words(each) for each in (model, st[0].model, saved[0].model))
    print(f"config.json {folder} the key: config.is_causal {value}, returned as unused {unused}")
    print(f"  bidirectional: transformers {seen}, sentence-transformers {by_st}, its folder {by_saved}", end=", ")
    assert seen == by_st == by_saved == honoured and unused == ({} if honoured else {"is_causal": False}), "behaviour changed"
    config.is_causal = False
    seen = sees_later_words(AutoModel.from_pretrained(folder, config=config).eval())
    print(f"assigned to the configuration {seen}")
    assert seen, "behaviour changed"
PY
