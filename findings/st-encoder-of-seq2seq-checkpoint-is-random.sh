#!/usr/bin/env bash
# sentence-transformers 6.2.0: the encoder of a Marian checkpoint (and five relatives) is loaded with random weights.
#
# Expected: SentenceTransformer takes the encoder of an encoder-decoder checkpoint alone. As for T5 (the first case), its
#   weights should be the checkpoint's, so that two loads of a folder give one vector, that of the checkpoint's encoder.
# What happens: for Marian, M2M100, Pegasus, PegasusX, Blenderbot and BlenderbotSmall it loads the bare encoder class,
#   whose weights are named "layers.0...", from a checkpoint that names them "encoder.layers.0..." or
#   "model.encoder.layers.0...". None matches, so the encoder keeps its random initial weights and each load gives
#   another vector. No error is raised: the names are listed as MISSING in a load report that is logged as a warning.
#
# Output seen:
#   sentence-transformers 6.2.0 transformers 5.23.0
#   T5ForConditionalGeneration: two loads agree True, equals the checkpoint's encoder True
#   MarianMTModel: two loads agree False, equals the checkpoint's encoder False
#   MarianModel: two loads agree False, equals the checkpoint's encoder False
#   M2M100ForConditionalGeneration: two loads agree False, equals the checkpoint's encoder False
#   M2M100Model: two loads agree False, equals the checkpoint's encoder False
#   PegasusForConditionalGeneration: two loads agree False, equals the checkpoint's encoder False
#   PegasusXForConditionalGeneration: two loads agree False, equals the checkpoint's encoder False
#   BlenderbotForConditionalGeneration: two loads agree False, equals the checkpoint's encoder False
#   BlenderbotSmallForConditionalGeneration: two loads agree False, equals the checkpoint's encoder False
#   load reports that name missing weights: 16
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 tokenizers==0.23.3
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>messages.txt <<'PY' || { cat messages.txt; exit 1; }
import numpy as np, sentence_transformers, torch, transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers

print("sentence-transformers", sentence_transformers.__version__, "transformers", transformers.__version__)
words = ["<pad>", "<s>", "</s>", "<unk>", "red", "green", "blue"]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
sizes = dict(
    vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, decoder_start_token_id=0)
t5 = dict(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=2,
          decoder_start_token_id=0)
for family, suffix, broken in [
    ("T5", "ForConditionalGeneration", False), ("Marian", "MTModel", True), ("Marian", "Model", True),
    ("M2M100", "ForConditionalGeneration", True), ("M2M100", "Model", True),
    ("Pegasus", "ForConditionalGeneration", True), ("PegasusX", "ForConditionalGeneration", True),
    ("Blenderbot", "ForConditionalGeneration", True), ("BlenderbotSmall", "ForConditionalGeneration", True),
]:
    config = getattr(transformers, family + "Config")(**(sizes if broken else t5))
    torch.manual_seed(0)
    whole = getattr(transformers, family + suffix)(config).eval()
    folder = family + suffix
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        ids = tokenizer("red green blue", return_tensors="pt")
        expected = whole.get_encoder()(ids["input_ids"])[0][0].mean(0).numpy()
    first, second = (SentenceTransformer(folder).encode("red green blue") for _ in range(2))
    repeatable, right = bool(np.allclose(first, second, atol=1e-5)), bool(np.allclose(first, expected, atol=1e-5))
    print(f"{folder}: two loads agree {repeatable}, equals the checkpoint's encoder {right}")
    assert repeatable == right == (not broken), "behaviour changed"
PY
echo "load reports that name missing weights: $(grep -c '^- MISSING' messages.txt)"
