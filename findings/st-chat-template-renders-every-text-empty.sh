#!/usr/bin/env bash
# sentence-transformers 6.2.0: with a valid chat template, every text can get the same vector.
#
# Expected: a chat template that renders texts under apply_chat_template, given its kind of content (a string, "flat", or
#   a list of parts, "structured"), gives different texts different token ids; the library chooses the kind by looking
#   at the template. If a template renders nothing of a text, that should be an error.
# What happens: the choice looks for a few substrings. message['content'][0]['text'] has none of them, so a template
#   that reads only structured content is given a string (case B); one that reads only strings is given a list because
#   it mentions "type" for tools (case E). Jinja renders what is not there as nothing, so every text becomes the same
#   ids and the same vector. Nothing is logged. The same happens where a saved folder's modality_config names the other
#   message format (cases C and F): it is not checked against the template. A and D are the cases that work.
#
# Output seen:
#   sentence-transformers 6.2.0 transformers 5.23.0
#   A reads structured, .content[0].text: given structured, ids [[2, 3, 6, 0], [2, 3, 7, 8]], same vector False
#   B reads structured, ['content'][0]['text']: given flat, ids [[2, 3], [2, 3]], same vector True
#   C reads structured, folder says flat: given flat, ids [[2, 3], [2, 3]], same vector True
#   D reads flat: given flat, ids [[2, 3, 6, 0], [2, 3, 7, 8]], same vector False
#   E reads flat, names a type for tools: given structured, ids [[2, 3], [2, 3]], same vector True
#   F reads flat, folder says structured: given structured, ids [[2, 3], [2, 3]], same vector True
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
words = ["<pad>", "<unk>", "user", ":", "type", "text", "red", "green", "blue"]
base = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
base.pre_tokenizer = pre_tokenizers.Whitespace()

def load(template, format=None):
    """A tiny model whose tokenizer has this chat template; with format, saved with that message format set."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained("llama")
    torch.manual_seed(0)
    transformers.LlamaModel(transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, max_position_embeddings=64)).save_pretrained("llama")
    model = SentenceTransformer("llama")
    if format:
        model.save("saved")
        path = pathlib.Path("saved/sentence_bert_config.json")
        settings = json.loads(path.read_text())
        settings["modality_config"]["message"]["format"] = format
        path.write_text(json.dumps(settings))
        model = SentenceTransformer("saved")
    return model

structured_dot = "{% for message in messages %}{{ message.role }} : {{ message.content[0].text }}{% endfor %}"
structured_key = "{% for message in messages %}{{ message['role'] }} : {{ message['content'][0]['text'] }}{% endfor %}"
tools = "{% if tools %}{{ '{\"type\": \"function\"}' }}{% endif %}"
flat = ("{% for message in messages %}{{ message.role }} : "
        "{% if message.content is string %}{{ message.content }}{% endif %}{% endfor %}")
for name, template, format, chosen in [
    ("A reads structured, .content[0].text", structured_dot, None, "structured"),
    ("B reads structured, ['content'][0]['text']", structured_key, None, "flat"),
    ("C reads structured, folder says flat", structured_dot, "flat", "flat"),
    ("D reads flat", flat, None, "flat"),
    ("E reads flat, names a type for tools", tools + flat, None, "structured"),
    ("F reads flat, folder says structured", flat, "structured", "structured"),
]:
    model = load(template, format)
    ids = model[0].preprocess(["red", "green blue"])["input_ids"]
    a, b = model.encode(["red", "green blue"])
    used, same = model[0].input_formatter.message_format, bool(np.allclose(a, b))
    print(f"{name}: given {used}, ids {ids.tolist()}, same vector {same}")
    assert used == chosen and same == (name[0] in "BCEF"), "behaviour changed"
PY
