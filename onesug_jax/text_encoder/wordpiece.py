"""WordPiece, the tokenizer of BERT: loaded from a pretrained folder, or trained on a log's texts.

It wraps the `tokenizers` package, never pads and always truncates: the encoder chooses the shapes.
Every Chinese character is a word, as in BERT. A space at the end of a text means that its last word
is complete ("nike " against "nike"). BERT's tokenizers drop it; those trained here write it as a
piece.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from onesug_jax.errors import UserError
from onesug_jax.files import read_json

TOKENIZER, VOCAB, SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPACE = "[SPACE]"  # the space at the end of a text, if the vocabulary has this piece
_CONTINUES = "##"


class WordPiece:
    """Texts to at most `max_length` token ids: `[CLS] pieces [SEP]`."""

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._text = tokenizer.to_str()
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.pad = tokenizer.token_to_id("[PAD]") or 0
        self._space = tokenizer.token_to_id(SPACE)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def to_str(self) -> str:
        """The contents of `tokenizer.json`."""
        return self._text

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without padding."""
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts))
        except (TypeError, UnicodeEncodeError):
            # JSON can contain half a surrogate pair; such a prefix must not stop a service.
            texts = [text.encode("utf-8", "replace").decode() for text in texts]
            encodings = self._tokenizer.encode_batch_fast(texts)
        rows = [encoding.ids for encoding in encodings]
        if self._space is None:
            return rows
        for text, ids in zip(texts, rows, strict=True):
            if text.endswith(" "):  # before [SEP]; it replaces the last piece of a full row
                position = min(len(ids) - 1, self.max_length - 2)
                ids[position:-1] = [self._space]
        return rows

    @classmethod
    def load(cls, folder: str, max_length: int) -> WordPiece:
        """From `tokenizer.json`, or else `vocab.txt`, of a folder in the Hugging Face layout.

        Raises:
          UserError: neither file exists, or the file is not a tokenizer.
        """
        path = os.path.join(folder, TOKENIZER)
        if os.path.isfile(path):
            try:
                return cls(Tokenizer.from_file(path), max_length)
            except Exception as error:  # `tokenizers` raises Exception itself
                raise UserError(
                    f"{path}: expected a tokenizer of the `tokenizers` package; reading it failed: "
                    f"{error}. Copy the model's folder again."
                ) from error
        path = os.path.join(folder, VOCAB)
        if not os.path.isfile(path):
            raise UserError(
                f"{folder}: expected {TOKENIZER} or {VOCAB}, found neither; copy the model's whole "
                "folder."
            )
        with open(path, encoding="utf-8") as file:
            pieces = file.read().removesuffix("\n").split("\n")
        missing = [token for token in SPECIAL[:4] if token not in pieces]
        if missing:
            raise UserError(
                f"{path}: expected a BERT vocabulary, one piece a line; {missing[0]} is missing."
            )
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        return cls(_bert(vocabulary, **_settings(folder)), max_length)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        max_length: int,
        min_count: int = 2,
        most_texts: int = 1_000_000,
    ) -> WordPiece:
        """Learn pieces from texts; the same texts in any order give the same vocabulary.

        Args:
          texts: queries and prefixes; each distinct text counts once.
          vocab_size: most pieces, special pieces included; few texts give fewer.
          min_count: least occurrences of a piece. Rare words are then split into pieces that they
            share with other words and with prefixes that end within a word.
          most_texts: if there are more, an even sample in byte order is used.

        Raises:
          UserError: there is no text, or `vocab_size` has no room for letters.
        """
        distinct = sorted({text for text in texts if text.strip()})
        if not distinct:
            raise UserError("training a tokenizer: expected at least one text, found none.")
        distinct = distinct[:: -(-len(distinct) // most_texts)]
        room = (vocab_size - len(SPECIAL) - 1) // 2
        if room < 2:
            raise UserError(f"vocab_size={vocab_size}: expected at least {len(SPECIAL) + 5}.")
        # The trainer numbers characters in the order of a hash table and breaks ties by number.
        # "Special" pieces have fixed numbers, which makes the result deterministic.
        fixed = [*SPECIAL, SPACE, *_alphabet(distinct, room)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_count,
            special_tokens=fixed,
            limit_alphabet=0,
            continuing_subword_prefix=_CONTINUES,
            show_progress=False,
        )
        learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.normalizer, learner.pre_tokenizer = _normalizer(), pre_tokenizers.BertPreTokenizer()
        learner.train_from_iterator(distinct, trainer)
        return cls(_bert(learner.get_vocab(), marks=(SPACE,)), max_length)


def pad(ids: Sequence[Sequence[int]], length: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as `[N, length]`, and lengths `[N]`; a cut row retains its last id."""
    tokens = np.full((len(ids), length), padding, np.int32)
    lengths = np.empty(len(ids), np.int32)
    for number, row in enumerate(ids):
        if len(row) > length:
            row = [*row[: length - 1], row[-1]]
        tokens[number, : len(row)] = row
        lengths[number] = len(row)
    return tokens, lengths


def _alphabet(texts: Sequence[str], room: int) -> list[str]:
    """At most `room` pieces of the most frequent characters, sorted: each character as the
    beginning of a word and, if it occurs inside words, also as a continuation.

    The beginning is always included: the trainer ignores a character without it.
    """
    normalise, split = _normalizer().normalize_str, pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for start in range(0, len(texts), 4096):
        text = normalise(" ".join(texts[start : start + 4096]))
        for word, _ in split.pre_tokenize_str(text):
            counts.update(word)
            inside.update(word[1:])
    pieces: list[str] = []
    for char in sorted(counts, key=lambda char: (-counts[char], char)):
        new = [char, _CONTINUES + char] if char in inside else [char]
        if len(pieces) + len(new) > room:
            break
        pieces += new
    return sorted(pieces)


def _normalizer(lowercase: bool = True, accents: bool | None = None, chinese: bool = True):
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lowercase
    )


def _bert(vocabulary: dict[str, int], marks: Sequence[str] = (), **settings) -> Tokenizer:
    """BERT's tokenizer with a vocabulary that includes the special pieces."""
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=_CONTINUES)
    )
    tokenizer.normalizer = _normalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([token for token in (*SPECIAL, *marks) if token in vocabulary])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _settings(folder: str) -> dict:
    """Settings of `tokenizer_config.json` for upper case, accents and Chinese characters."""
    path = os.path.join(folder, SETTINGS)
    if not os.path.isfile(path):
        return {}
    settings = read_json(path, "the tokenizer's settings", "copy it again.")
    return {
        "lowercase": settings.get("do_lower_case", True),
        "accents": settings.get("strip_accents"),
        "chinese": settings.get("tokenize_chinese_chars", True),
    }
