"""The vocabulary as Hugging Face tokenizer files: SentencePiece, markers, semantic-id tokens.

`AutoTokenizer` of transformers reads them and gives the ids of `Vocabulary.encode`. A marker is
written by its name, `<prefix>lego st<related1>lego star wars` (`Vocabulary.tokens`). One difference
remains: it reads a literal U+2581, which SentencePiece uses for a space, as a space.
"""

from __future__ import annotations

import os
from typing import Any

from onesug_jax.files import atomic_write, write_json
from onesug_jax.tasks.vocabulary import Vocabulary

SPIECE, TOKENIZER, CONFIG = "spiece.model", "tokenizer.json", "tokenizer_config.json"


def write_tokenizer(folder: str, vocabulary: Vocabulary) -> None:
    """Writes spiece.model (the pieces alone), tokenizer.json and tokenizer_config.json."""
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

    proto = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]  # generated
        vocabulary.model
    )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    has_bytes = proto.trainer_spec.byte_fallback
    tokenizer = tokenizers.Tokenizer(
        models.Unigram(pieces, unk_id=vocabulary.unk_id, byte_fallback=has_bytes)
    )
    steps: list = []
    if proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:  # all but the last, see `Vocabulary`
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    space: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**space)
    tokenizer.decoder = decoders.Sequence(
        [*([decoders.ByteFallback()] if has_bytes else []), decoders.Metaspace(**space)]
    )
    names = [pieces[i][0] for i in (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)]
    tokens = vocabulary.tokens()
    for name in (*names, *sorted(tokens, key=tokens.__getitem__)):
        tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])
    pad, end, unknown = names
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary.eos_id)]
    )
    files = {SPIECE: vocabulary.model, TOKENIZER: tokenizer.to_str(pretty=True).encode()}
    for name, data in files.items():
        with atomic_write(os.path.join(folder, name)) as file:
            file.write(data)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": end,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(os.path.join(folder, CONFIG), config)
