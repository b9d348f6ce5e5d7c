"""WordPiece, the tokenizer of BERT: loaded from a pretrained folder, or trained on a log's texts.

A thin layer over the `tokenizers` package that never pads and always truncates: the encoder decides
on shapes. Chinese characters are split one by one, as BERT does. A text's last space means that its
last word is complete ("nike " against "nike"); tokenizers of BERT drop it, the ones trained here
write it as a piece of its own.
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
SPACE = "[SPACE]"  # stands for the space a text ends with, where the vocabulary has it
_CONTINUES = "##"


class WordPiece:
    """Texts to token ids `[CLS] pieces [SEP]`, at most `max_length` of them."""

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
            # Half a surrogate pair can arrive in a prefix by JSON; it must not stop a service.
            texts = [text.encode("utf-8", "replace").decode() for text in texts]
            encodings = self._tokenizer.encode_batch_fast(texts)
        found = [encoding.ids for encoding in encodings]
        if self._space is None:
            return found
        for text, ids in zip(texts, found, strict=True):
            if text.endswith(" "):  # before [SEP], and in place of a piece where there is no room
                place = min(len(ids) - 1, self.max_length - 2)
                ids[place:-1] = [self._space]
        return found

    @classmethod
    def load(cls, folder: str, max_length: int) -> WordPiece:
        """From `tokenizer.json`, or else `vocab.txt`, of a folder in the Hugging Face layout.

        Raises:
          UserError: neither file is there, or the one found is not a tokenizer.
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
          texts: queries and prefixes; each distinct one counts once.
          vocab_size: pieces in all, special ones included; fewer come out of few texts.
          min_count: how often a piece must occur to become one. Rare words left in smaller pieces
            share them with others, and with prefixes that stop within a word.
          most_texts: of more, an even sample is taken in byte order.

        Raises:
          UserError: there is no text, or `vocab_size` leaves no room for letters.
        """
        distinct = sorted({text for text in texts if text.strip()})
        if not distinct:
            raise UserError("training a tokenizer: expected at least one text, found none.")
        distinct = distinct[:: -(-len(distinct) // most_texts)]
        room = (vocab_size - len(SPECIAL) - 1) // 2
        if room < 2:
            raise UserError(f"vocab_size={vocab_size}: expected at least {len(SPECIAL) + 5}.")
        # The trainer numbers characters in the order of a hash table and breaks ties by number. As
        # "special" pieces they have fixed numbers, and the result no longer depends on chance.
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
    """Rows of ids as `[N, length]`, long ones cut before their last id, and lengths `[N]`."""
    tokens = np.full((len(ids), length), padding, np.int32)
    lengths = np.empty(len(ids), np.int32)
    for row, one in enumerate(ids):
        if len(one) > length:
            one = [*one[: length - 1], one[-1]]
        tokens[row, : len(one)] = one
        lengths[row] = len(one)
    return tokens, lengths


def _alphabet(texts: Sequence[str], room: int) -> list[str]:
    """The commonest characters, as they begin a word and, where they do, continue one; sorted.

    At most `room` pieces. The trainer passes over a character that cannot begin a word.
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
    """BERT's tokenizer over a vocabulary, its special pieces included."""
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
    """What `tokenizer_config.json` says of upper case, accents and Chinese characters."""
    path = os.path.join(folder, SETTINGS)
    if not os.path.isfile(path):
        return {}
    found = read_json(path, "the tokenizer's settings", "copy it again.")
    return {
        "lowercase": found.get("do_lower_case", True),
        "accents": found.get("strip_accents"),
        "chinese": found.get("tokenize_chinese_chars", True),
    }
