"""The judge of a text tower: what transformers' own tokenizer and model make of texts. Run as a script.

It shares no code with matexport and imports nothing of it (a test reads its imports). A text is tokenized as the
parent's users do, with rows of full length for SigLIP, and run alone through the parent's own model with all hidden
states. What a state becomes is the textbook: the final norm, the token that the paper reads, the linear map; at full
depth, what the library itself gives.

One request per line of standard input, as JSON; one answer per line of standard output. Arrays go through files.
The process ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np


class TextJudge:
    """transformers' text model and tokenizer of a folder."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch
        import transformers

        folder, local = request["folder"], {"local_files_only": True}
        config: Any = transformers.AutoConfig.from_pretrained(folder, **local)
        self.config = getattr(config, "text_config", None) or config
        self.clip = self.config.model_type == "clip_text_model"
        cls = transformers.CLIPTextModelWithProjection if self.clip else transformers.SiglipTextModel
        self.model: Any = cls.from_pretrained(folder, dtype=torch.float32, **local).float().eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
        self.name = f"transformers {transformers.__version__} {cls.__name__}"

    def read(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        """``ids`` of all texts one after the other, their ``counts``, and for each depth ``layers_k`` (n, W)."""
        import torch

        ids: list[int] = []
        counts: list[int] = []
        rows: dict[int, list[Any]] = {depth: [] for depth in request["depths"]}
        padding = {} if self.clip else {"padding": "max_length"}
        for text in request["texts"]:
            found = self.tokenizer([text], truncation=True, max_length=request["limit"], return_tensors="pt", **padding)
            row = found["input_ids"]
            with torch.no_grad():
                output = self.model(input_ids=row, output_hidden_states=True, return_dict=True)
                for depth, vectors in rows.items():
                    vectors.append(self.pool(output, row, depth, drops=request["drops"])[0].numpy())
            ids += row[0].tolist()
            counts.append(row.shape[1])
        arrays = {"ids": np.array(ids, np.int64), "counts": np.array(counts, np.int64)}
        return arrays | {f"layers_{depth}": np.stack(found) for depth, found in rows.items()}

    def pool(self, output: Any, ids: Any, depth: int, *, drops: bool) -> Any:
        """(1, W): the vector after so many blocks."""
        model = self.model
        whole = depth == len(output.hidden_states) - 1
        if whole:
            return output.text_embeds if self.clip else output.pooler_output
        state = output.hidden_states[depth]
        if self.clip:
            normed = state if drops else model.text_model.final_layer_norm(state)
            wanted = ids[0].max() if self.config.eos_token_id == 2 else self.config.eos_token_id
            place = next(index for index, token in enumerate(ids[0].tolist()) if token == wanted)
            return model.text_projection(normed[:, place])
        normed = state if drops else model.final_layer_norm(state)
        return model.head(normed[:, -1])


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
    import torch  # noqa: F401 - before the first request: it takes longest
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    judge: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                judge = TextJudge(request)
                said = {"judge": judge.name}
            elif request["do"] == "close":
                judge, said = None, {}
            else:
                np.savez(request["out"], **judge.read(request))
                said = {"judge": judge.name}
        except Exception as error:
            why = " ".join(str(error).split())[:400] or "no message"
            said = {"error": f"{type(error).__name__}: {why}"}
        answers.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
