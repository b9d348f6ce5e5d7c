"""The vocabulary: text pieces, section markers and semantic-id tokens in one id space.

A SentencePiece unigram model with byte fallback, trained on the shop's normalised queries, splits
texts into pieces; decoding gives any text back unchanged. After the pieces come the markers before
each item of the encoder input (PAPER.md section 1: prefix, related queries, history, profile), then
one token for every (level, code) of the semantic ids (section 2.4). The size is padded to a
multiple of 128, so that the embedding table divides over a mesh.

A pretrained model has its own SentencePiece model (`adopt`). Its table has more rows than pieces
(sentinels, padding), and the markers come after all of them, so that no row changes its meaning.
Characters that its pieces lack are read as unknown. If it strips the last space of a text, the
space is added as a piece, because "watch " and "watch" are different prefixes.

`logs.schema` normalises texts. Serving imports this file: it uses only numpy and sentencepiece.
"""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_write, fingerprint

PIECES_FILE = "pieces.model"
VOCABULARY_FILE = "vocabulary.json"
SECTIONS = ("related", "history", "profile")
RANKS = 16  # items of a section with a marker of their own; later items share the last marker
MARKERS = ("prefix", "soft", "ids", *(f"{s}{r}" for s in SECTIONS for r in range(1, RANKS + 1)))
MINIMUM_PIECES = 320  # 256 bytes, three specials, and a few characters

_ROUND = 128
_COVERAGE = 0.9998  # share of all characters that get a piece, if the vocabulary has room
_SPACE = "▁"  # SentencePiece writes a space as this character
_SPACE_BYTES = _SPACE.encode()


class Vocabulary:
    """Pieces, markers and semantic-id tokens in one id space.

    Ids: `[0, pieces)` SentencePiece (0 pad, 1 end, 2 unknown); with a pretrained model, the other
    rows of its table; the markers `[first_marker, last_marker]`; `sid(level, code)` level by level;
    unused ids up to `size`.

    Args:
      model: the serialised SentencePiece model; an attribute too.
      sid_levels: levels of the semantic ids (0: none).
      sid_codes: codes a level.
      first_marker: id of the first marker, at least the number of pieces; None: that number.

    Examples:
      >>> import tempfile
      >>> from onesug_jax import Vocabulary
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     vocabulary = Vocabulary.train(iter(["red lamp", "blue tent"]), folder, pieces=320)
      >>> vocabulary.decode(vocabulary.encode("red tent"))
      'red tent'
    """

    pad_id = 0
    eos_id = 1
    unk_id = 2

    def __init__(
        self,
        model: bytes,
        *,
        sid_levels: int = 0,
        sid_codes: int = 0,
        first_marker: int | None = None,
    ):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pieces: int = self._processor.get_piece_size()
        self.sid_levels, self.sid_codes = sid_levels, sid_codes
        self.first_marker = self.pieces if first_marker is None else first_marker
        self.last_marker = self.first_marker + len(MARKERS) - 1
        marker = {name: self.first_marker + i for i, name in enumerate(MARKERS)}
        self.prefix_id = marker["prefix"]
        self.soft_id = marker["soft"]  # replaced by a projected vector
        self.ids_id = marker["ids"]  # before a semantic id in the encoder input
        # A marker has both section and rank, so the model can tell the best related query.
        self.item_ids = {s: [marker[f"{s}{r}"] for r in range(1, RANKS + 1)] for s in SECTIONS}
        self._sid_base = self.last_marker + 1
        used = self._sid_base + sid_levels * sid_codes
        self.size: int = -(-used // _ROUND) * _ROUND
        strips = self._processor.encode("a ") == self._processor.encode("a")
        space = self._processor.piece_to_id(_SPACE)
        self._last_space = [space] if strips and space != self.unk_id else []
        self._byte_ids = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in range(256)]
        self.fingerprint: str = fingerprint(model, self._description())

    def _description(self) -> str:
        fields = {
            "pieces": self.pieces,
            "markers": MARKERS,
            "sid_levels": self.sid_levels,
            "sid_codes": self.sid_codes,
            "size": self.size,
        }
        if self.first_marker != self.pieces:
            fields["first_marker"] = self.first_marker
        return json.dumps(fields, indent=2) + "\n"

    def encode(self, text: str) -> list[int]:
        """Piece ids of normalised `text`, without an end token. Empty text gives no ids.

        A character without a piece or bytes, in an adopted model, is the unknown id. Half a
        surrogate pair, which JSON can contain, is read as "?".
        """
        if _SPACE in text:
            return self._encode_literal_space_mark(text)
        try:
            ids = self._processor.encode(text)
        except RuntimeError:
            ids = self._processor.encode(text.encode("utf-8", "replace").decode())
        return ids + self._last_space if text.endswith(" ") else ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, in one call unless a text needs special treatment."""
        if not any(_SPACE in text or text.endswith(" ") for text in texts):
            with contextlib.suppress(RuntimeError, TypeError):  # half a surrogate pair
                return self._processor.encode(list(texts))
        return [self.encode(text) for text in texts]

    def _encode_literal_space_mark(self, text: str) -> list[int]:
        # A literal U+2581 would be decoded as a space, so it is encoded as bytes. A noncharacter
        # that is not in `text` replaces it first: no piece contains one (`_trainable`), so it
        # becomes three bytes, which are exchanged. Without byte fallback it becomes unknown.
        substitute = next(chr(c) for c in itertools.count(0xFDD0) if chr(c) not in text)
        substitute_ids = [self._byte_ids[b] for b in substitute.encode()]
        space_mark_ids = [self._byte_ids[b] for b in _SPACE_BYTES]
        ids, out, at = self.encode(text.replace(_SPACE, substitute)), [], 0
        while at < len(ids):
            if ids[at : at + 3] == substitute_ids:
                out += space_mark_ids
                at += 3
            else:
                out.append(ids[at])
                at += 1
        return out

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first end token, without markers, semantic ids, padding."""
        pieces = []
        for i in ids:
            if i == self.eos_id:
                break
            if self.unk_id < i < self.pieces:
                pieces.append(int(i))
        return self._processor.decode(pieces)

    def sid(self, level: int, code: int) -> int:
        """The token of `code` at `level` (both from 0); IndexError if there is none."""
        if not (0 <= level < self.sid_levels and 0 <= code < self.sid_codes):
            raise IndexError(
                f"semantic id ({level}, {code}) outside {self.sid_levels} levels x "
                f"{self.sid_codes} codes"
            )
        return self._sid_base + level * self.sid_codes + code

    def piece_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each of the `size` ids; b"" for all that are not text.

        The bytes of `encode(text)` join to b" " + text (SentencePiece adds a space in front),
        unless adopted pieces normalise the text or lack a character.
        """
        out = [b""] * self.size
        for i in range(self.unk_id + 1, self.pieces):
            piece = self._processor.id_to_piece(i)
            if self._processor.is_byte(i):
                out[i] = bytes([int(piece[3:5], 16)])
            elif not self._processor.is_control(i):
                out[i] = piece.replace(_SPACE, " ").encode()
        return out

    @classmethod
    def train(
        cls,
        texts: Iterator[str],
        folder: str,
        *,
        pieces: int = 4096,
        sid_levels: int = 4,
        sid_codes: int = 512,
        sample: int = 2_000_000,
        seed: int = 0,
    ) -> Vocabulary:
        """Trains the pieces on normalised `texts`, writes `folder`, returns the vocabulary.

        The same texts, order and seed give the same bytes. A small corpus gives fewer than `pieces`
        pieces. If there are more than `sample` texts, a uniform sample (by `seed`) is used.

        Raises:
          UserError: no text, or fewer `pieces` than byte fallback needs.
        """
        if pieces < MINIMUM_PIECES:
            raise UserError(
                f"Vocabulary.train: pieces={pieces}, but byte fallback needs at least "
                f"{MINIMUM_PIECES}; set {MINIMUM_PIECES} or more."
            )
        sampled = _sample(texts, sample, seed)
        if not sampled:
            raise UserError(
                "Vocabulary.train: the corpus is empty (no text with a visible character); "
                "the train split needs at least one row with a query."
            )
        vocabulary = cls(_train_pieces(sampled, pieces), sid_levels=sid_levels, sid_codes=sid_codes)
        vocabulary.save(folder)
        return vocabulary

    @classmethod
    def adopt(
        cls, path: str, folder: str, *, rows: int, sid_levels: int = 4, sid_codes: int = 512
    ) -> Vocabulary:
        """The pieces of a pretrained model, followed by our tokens; writes `folder`, as `train`.

        Args:
          path: its SentencePiece model (spiece.model).
          rows: rows of its token table; the markers come after them.

        Raises:
          UserError: the file is missing or no SentencePiece model, it has more pieces than `rows`,
            or its padding, end and unknown pieces are not 0, 1 and 2.
        """
        try:
            with open(path, "rb") as file:
                model = file.read()
            vocabulary = cls(model, sid_levels=sid_levels, sid_codes=sid_codes, first_marker=rows)
        except FileNotFoundError:
            raise UserError(
                f"{path}: expected the SentencePiece model of a pretrained model, found no such "
                "file; it is in the folder of config.json (tokenizer.json is not enough)."
            ) from None
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{path}: expected a SentencePiece model; reading it failed: {error}. Copy it "
                "again."
            ) from error
        p = vocabulary._processor
        found = (p.pad_id(), p.eos_id(), p.unk_id())
        if found != (cls.pad_id, cls.eos_id, cls.unk_id):
            raise UserError(
                f"{path}: expected padding, end and unknown to be pieces 0, 1 and 2, as in T5, "
                f"found {found[0]}, {found[1]} and {found[2]}; choose a model of the T5 family."
            )
        if vocabulary.pieces > rows:
            raise UserError(
                f"{path} has {vocabulary.pieces:,} pieces, and the model's table only {rows:,} "
                "rows; the two do not belong to the same model."
            )
        vocabulary.save(folder)
        return vocabulary

    def tokens(self) -> dict[str, int]:
        """Names of all ids after the pieces: `<prefix>`, `<related1>`, .., `<sid_0_17>`, .. .

        Other rows of a pretrained table, and unused ids at the end, are `<unused_N>`.
        """
        named = {i: f"<unused_{i}>" for i in range(self.pieces, self.size)}
        named |= {self.first_marker + i: f"<{name}>" for i, name in enumerate(MARKERS)}
        for level in range(self.sid_levels):
            named |= {self.sid(level, c): f"<sid_{level}_{c}>" for c in range(self.sid_codes)}
        return {name: i for i, name in named.items()}

    def save(self, folder: str) -> None:
        """Writes pieces.model and vocabulary.json into `folder`."""
        files = {PIECES_FILE: self.model, VOCABULARY_FILE: self._description().encode()}
        for name, data in files.items():
            with atomic_write(os.path.join(folder, name)) as file:
                file.write(data)

    @classmethod
    def load(cls, folder: str) -> Vocabulary:
        """Reads a vocabulary of `train` or `adopt`; UserError if a file is missing or damaged."""
        path = os.path.join(folder, VOCABULARY_FILE)
        try:
            with open(os.path.join(folder, PIECES_FILE), "rb") as f:
                model = f.read()
            with open(path, encoding="utf-8") as f:
                text = f.read()
            fields = json.loads(text)
            vocabulary = cls(
                model,
                sid_levels=fields["sid_levels"],
                sid_codes=fields["sid_codes"],
                first_marker=fields.get("first_marker"),
            )
        except FileNotFoundError as e:
            raise UserError(
                f"{folder}: expected a vocabulary, but {os.path.basename(e.filename)} is missing; "
                "run the vocab stage."
            ) from e
        except (ValueError, KeyError, TypeError, RuntimeError) as e:
            raise UserError(
                f"{folder}: the vocabulary cannot be read ({e}); run the vocab stage again."
            ) from e
        if vocabulary._description() != text:
            raise UserError(
                f"{path} does not describe {PIECES_FILE} (expected {vocabulary.pieces} pieces, "
                f"found {fields.get('pieces')}); run the vocab stage again."
            )
        return vocabulary


def _sample(texts: Iterable[str], sample: int, seed: int) -> list[str]:
    """A uniform sample of at most `sample` of the trainable `texts`, shuffled.

    The pieces do not depend on the order, but the time does: to SentencePiece, a text that is
    repeated a thousand times in sequence is one very long substring.
    """
    rng = random.Random(seed)
    drawn: list[str] = []
    for number, text in enumerate(t for t in map(_trainable, texts) if t.strip()):
        if len(drawn) < sample:
            drawn.append(text)
        elif (slot := rng.randrange(number + 1)) < sample:
            drawn[slot] = text
    rng.shuffle(drawn)
    return drawn


def _train_pieces(texts: list[str], pieces: int) -> bytes:
    """The serialised SentencePiece model of `texts`."""
    # Rare characters are left to byte fallback, so that the pieces have room for words (Chinese has
    # more characters than a small vocabulary has pieces). SentencePiece's own character_coverage
    # does not go below 0.98, so they are removed here.
    frequency = collections.Counter(itertools.chain.from_iterable(texts)).most_common()
    total = np.cumsum([n for _, n in frequency])
    enough = int(np.searchsorted(total, _COVERAGE * total[-1])) + 1
    dropped = {ord(c): " " for c, _ in frequency[min(enough, (pieces - 259) * 3 // 5) :]}
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text.translate(dropped) for text in texts),
        model_writer=out,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=_SPACE,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_by_whitespace=True,
        shuffle_input_sentence=False,
        input_sentence_size=0,
        max_sentence_length=1 << 16,
        num_threads=4,  # fixed: the order of its sums, and so the bytes, depend on it
        pad_id=Vocabulary.pad_id,
        eos_id=Vocabulary.eos_id,
        unk_id=Vocabulary.unk_id,
        bos_id=-1,
        minloglevel=2,
    )
    return out.getvalue()


def _trainable(text: str) -> str:
    """`text` without characters that no piece may contain: U+2581, noncharacters and NUL."""
    return "".join(c for c in text if c != _SPACE and not 0xFDD0 <= ord(c) <= 0xFDEF and c != "\0")
