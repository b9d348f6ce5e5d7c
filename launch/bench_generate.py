"""Beam search of other libraries, timed for bench_decode.py.

    python bench_generate.py '{"engine": "transformers", "folder": "t5", "device": "cpu", ...}'

It runs in its own environment (requirements-compare.txt) and does not import onesug_jax. It reads a
T5 from a Hugging Face folder. Engine "transformers" is `generate` in PyTorch, "ctranslate2" the
runtime of that name. It writes one line of JSON when it is ready. Each input line names a file of
requests `[B, L]` and a number of repetitions; the output line has the milliseconds of each and the
last lists.
"""

import json
import os
import sys
import tempfile
import time

import numpy as np


class Transformers:
    """Hugging Face `generate` with beams."""

    def __init__(self, settings: dict):
        import torch
        import transformers

        if settings["device"] == "cuda" and not torch.cuda.is_available():
            raise SystemExit("this PyTorch sees no GPU")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(settings["threads"])
        self.torch, self.settings = torch, settings
        self.how = f"transformers {transformers.__version__}, torch {torch.__version__}"
        model = transformers.T5ForConditionalGeneration.from_pretrained(
            settings["folder"], dtype=getattr(torch, settings["dtype"])
        )
        self.model = model.to(settings["device"]).eval()

    def lists(self, tokens: np.ndarray):
        """Token ids `[B, returned, T]` of the lists of `tokens [B, L]`."""
        settings, torch = self.settings, self.torch
        inputs = torch.from_numpy(tokens).long().to(settings["device"])
        with torch.inference_mode():
            sequences = self.model.generate(
                input_ids=inputs,
                attention_mask=(inputs > 0).long(),
                do_sample=False,
                num_beams=settings["beams"],
                num_return_sequences=settings["returned"],
                min_new_tokens=settings["length"],
                max_new_tokens=settings["length"],
                length_penalty=0.0,
                early_stopping=False,
            )
        return sequences[:, 1:].cpu().numpy().reshape(len(tokens), settings["returned"], -1)

    def clear(self) -> None:
        """Frees cached GPU memory."""
        if self.settings["device"] == "cuda":
            self.torch.cuda.empty_cache()


class Tokenizer:
    """The tokenizer interface of CTranslate2's converter; token i has the name "i"."""

    pad_token, eos_token, unk_token = "0", "1", "2"
    added_tokens_encoder: dict = {}

    def __init__(self, size: int):
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        """Name -> id of every token."""
        return {str(i): i for i in range(self.size)}

    def convert_ids_to_tokens(self, i: int) -> str:
        """The name of one token."""
        return str(i)


class CTranslate2:
    """CTranslate2's translator, its weights in float32 or int8."""

    def __init__(self, settings: dict):
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        class Converter(TransformersConverter):
            def load_model(self, *args, **kwargs):
                model = super().load_model(*args, **kwargs)
                # The converter would scale the outputs, which does not fit these weights.
                model.config.tie_word_embeddings = False
                return model

            def load_tokenizer(self, tokenizer_class, folder, **kwargs):
                with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                    return Tokenizer(json.load(file)["vocab_size"])

        self.settings = settings
        self.how = f"ctranslate2 {ctranslate2.__version__}, {settings['dtype']}"
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "converted")
            Converter(settings["folder"]).convert(out)
            self.translator = ctranslate2.Translator(
                out, device="cpu", compute_type=settings["dtype"], intra_threads=settings["threads"]
            )

    def lists(self, tokens: np.ndarray):
        """See `Transformers.lists`."""
        settings = self.settings
        translations = self.translator.translate_batch(
            [[str(i) for i in row if i] for row in tokens],
            beam_size=settings["beams"],
            num_hypotheses=settings["returned"],
            min_decoding_length=settings["length"],
            max_decoding_length=settings["length"],
            length_penalty=0,
        )
        return np.array([[[int(t) for t in h] for h in one.hypotheses] for one in translations])

    def clear(self) -> None:
        """Nothing to free."""


def main(settings: dict) -> None:
    """Writes replies to the original standard output; libraries print to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    engines: dict[str, type[Transformers | CTranslate2]]
    engines = {"transformers": Transformers, "ctranslate2": CTranslate2}
    side = engines[settings["engine"]](settings)
    answer(how=side.how)
    for line in sys.stdin:
        request = json.loads(line)
        tokens, spent = np.load(request["requests"]), []
        try:
            for _ in range(request["times"]):
                began = time.perf_counter()
                ids = side.lists(tokens)
                spent.append(1000 * (time.perf_counter() - began))
        except RuntimeError as error:  # usually out of memory
            answer(error=str(error).strip().splitlines()[0])
        else:
            answer(milliseconds=spent, ids=ids[: request["lists"]].tolist())
        side.clear()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
