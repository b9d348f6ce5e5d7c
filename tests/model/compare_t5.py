"""T5 by PyTorch, for test_hf.py: makes small random models and computes their outputs.

    python compare_t5.py make FOLDER                   a folder per model, and its outputs
    python compare_t5.py run MODEL_FOLDER INPUTS OUT   the outputs of a model

It runs in a separate environment (requirements-compare.txt) and does not import onesug_jax. Inputs
(.npz): `tokens [B, L]`, `decoder [B, T]`, and `allowed [N, T]`, target sequences with their end,
padded with 0. Outputs (.npz): `logits [B, T, V]` and lists `[B, K, T]` of a beam search over the
allowed sequences, with scores `[B, K]`: `all_*` with a beam for every sequence, so that the search
is exact, `some_*` with few.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

BEAMS, LENGTH = 8, 12
SIZES = {
    "vocab_size": 96,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
# name: family, whether outputs are scaled, whether the head is separate, dtype
MODELS = {
    "t5_v1_1": ("T5", False, True, torch.float32),
    "flan_t5": ("T5", False, True, torch.bfloat16),
    "t5_tied": ("T5", True, False, torch.float32),
    "t5_tied_unscaled": ("T5", False, False, torch.float32),
    "mt5": ("MT5", None, True, torch.float32),
    "mt5_tied": ("MT5", None, False, torch.float16),
    "umt5": ("UMT5", None, True, torch.float32),
    "umt5_tied": ("UMT5", None, False, torch.float32),
}


def make(folder: str) -> None:
    inputs = pathlib.Path(folder, "inputs.npz")
    for number, (name, (family, scaled, own_head, dtype)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        config = getattr(transformers, f"{family}Config")(**SIZES)
        if scaled is not None:
            config.scale_decoder_outputs = scaled
        model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
        for parameter in model.parameters():  # so that norms are not 1 and all layers differ
            parameter.data += 0.1 * torch.randn_like(parameter)
        if own_head:
            head = torch.randn_like(model.shared.weight)
            model.lm_head.weight = torch.nn.Parameter(head * (4.0 if family == "UMT5" else 0.7))
        elif not model.config.to_dict().get("scale_decoder_outputs", family == "UMT5"):
            model.shared.weight.data *= 0.25
        home = pathlib.Path(folder, name)
        shard = "40KB" if name == "t5_v1_1" else "5GB"
        model.to(dtype).save_pretrained(home, max_shard_size=shard)
        run(str(home), str(inputs), str(home / "computed.npz"))


def run(folder: str, inputs_file: str, out: str) -> None:
    arrays = np.load(inputs_file)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()
    tokens = torch.from_numpy(arrays["tokens"]).long()
    inputs = {"input_ids": tokens, "attention_mask": (tokens > 0).long()}
    with torch.inference_mode():
        decoder = torch.from_numpy(arrays["decoder"]).long()
        logits = model(**inputs, decoder_input_ids=decoder).logits.float().numpy()
    allowed = [tuple(row[row > 0].tolist()) for row in arrays["allowed"]]
    outputs = {"logits": logits}
    for name, beams, alpha in (
        ("all_alpha_0", len(allowed), 0.0),
        ("all_alpha_07", len(allowed), 0.7),
        ("some_alpha_0", BEAMS, 0.0),
        ("some_alpha_07", BEAMS, 0.7),
    ):
        lists, scores = search(model, inputs, allowed, beams, alpha)
        outputs |= {name: lists, f"{name}_scores": scores}
    np.savez(out, **outputs)


def search(model, inputs, allowed, beams: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    children: dict[tuple[int, ...], set[int]] = {}
    for ids in allowed:
        for i, token in enumerate(ids):
            children.setdefault(ids[:i], set()).add(token)

    def next_tokens(_, prefix) -> list[int]:
        return sorted(children.get(tuple(prefix.tolist()[1:]), {0}))

    with torch.inference_mode():
        result = model.generate(
            **inputs,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=LENGTH,
            length_penalty=alpha,
            early_stopping="never",
            do_sample=False,
            prefix_allowed_tokens_fn=next_tokens,
            return_dict_in_generate=True,
            output_scores=True,
        )
    lists = result.sequences.numpy()[:, 1:].reshape(-1, beams, result.sequences.shape[1] - 1)
    lists = np.pad(lists, ((0, 0), (0, 0), (0, LENGTH - lists.shape[2])))
    ended = np.cumsum(lists == 1, axis=-1) - (lists == 1) > 0
    return np.where(ended, 0, lists), result.sequences_scores.numpy().reshape(-1, beams)


if __name__ == "__main__":
    {"make": make, "run": run}[sys.argv[1]](*sys.argv[2:])
