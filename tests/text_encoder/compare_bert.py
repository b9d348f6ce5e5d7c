"""Vectors by PyTorch's BERT: python compare_bert.py MODEL_FOLDER TEXTS.json OUT.npy

test_encoder.py runs it in a separate environment (requirements-compare.txt). It does not import
onesug_jax, so that the two computations share no code.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


def main(folder: str, given: str, out: str) -> None:
    texts = json.loads(pathlib.Path(given).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    np.save(out, torch.nn.functional.normalize(pooled, dim=1).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
