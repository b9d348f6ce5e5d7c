import io
import itertools

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onesug_jax.errors import UserError
from onesug_jax.logs.schema import normalise_prefix, normalise_query
from onesug_jax.tasks.vocabulary import MARKERS, Vocabulary

WORDS = ["red", "shoes", "lego", "train", "running", "case", "phone", "手机", "壳", "女", "鞋"]
TEXTS = [" ".join(pair) for pair in itertools.permutations(WORDS, 2)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("vocab")
    return Vocabulary.train(iter(TEXTS), str(folder), pieces=400, sid_levels=3, sid_codes=5)


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("lego ")
@example("手机壳 😀👍🏽")
@example("▁")
@example("a ▁b▁▁ ﷐")
@example("</s> <unk> <0x41> <prefix>")
@example("\x00\x1f")
def test_any_text_is_decoded_unchanged_and_in_bytes(vocabulary, text):
    pieces = vocabulary.piece_bytes()
    for form in (text, normalise_query(text), normalise_prefix(text)):
        ids = vocabulary.encode(form)
        assert vocabulary.decode(ids) == form
        assert vocabulary.decode([*ids, vocabulary.eos_id, *ids]) == form
        assert b"".join(pieces[i] for i in ids) == (b" " + form.encode() if form else b"")
        assert all(vocabulary.unk_id < i < vocabulary.pieces for i in ids)


def test_half_a_surrogate_pair_is_read_as_a_question_mark(vocabulary):
    assert vocabulary.decode(vocabulary.encode("lego \ud83d")) == "lego ?"


def test_ids_do_not_overlap_and_the_size_is_a_multiple_of_128(vocabulary):
    markers = [vocabulary.prefix_id, vocabulary.soft_id, vocabulary.ids_id]
    markers += [i for numbers in vocabulary.item_ids.values() for i in numbers]
    assert len(markers) == len(MARKERS)
    sids = [vocabulary.sid(level, code) for level in range(3) for code in range(5)]
    used = [*range(vocabulary.pieces), *markers, *sids]
    assert used == list(range(len(used)))
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert vocabulary.size % 128 == 0 and 0 <= vocabulary.size - len(used) < 128
    assert vocabulary.decode([*markers, *sids, 0]) == ""
    table = vocabulary.piece_bytes()
    assert len(table) == vocabulary.size and not any(table[i] for i in (0, 1, 2, *markers, *sids))
    for level, code in ((3, 0), (0, 5), (-1, 0)):
        with pytest.raises(IndexError):
            vocabulary.sid(level, code)


def test_the_same_texts_give_the_same_vocabulary_and_it_loads_unchanged(tmp_path, vocabulary):
    options = {"pieces": 400, "sid_levels": 3}
    again = Vocabulary.train(iter(TEXTS), str(tmp_path / "a"), sid_codes=5, **options)
    assert again.fingerprint == vocabulary.fingerprint
    loaded = Vocabulary.load(str(tmp_path / "a"))
    assert loaded.fingerprint == again.fingerprint and loaded.size == again.size
    assert loaded.encode("red shoes") == again.encode("red shoes")
    other = Vocabulary.train(iter(TEXTS), str(tmp_path / "b"), sid_codes=6, **options)
    assert other.fingerprint != again.fingerprint


def test_the_order_of_texts_does_not_matter(tmp_path):
    """Texts are shuffled: SentencePiece is slow if equal texts follow one another."""
    repeated = [text for text in TEXTS for _ in range(20)]
    one, two = (
        Vocabulary.train(iter(texts), str(tmp_path / name), pieces=400)
        for name, texts in (("a", repeated), ("b", repeated[::-1]))
    )
    assert one.fingerprint == two.fingerprint


def test_only_a_seeded_sample_is_trained_on(tmp_path):
    texts = [c * 3 for c in "abcdefghijklmnopqrstuvwxyz"]
    kinds = {"pieces": 400, "sid_levels": 0, "sid_codes": 0, "sample": 5}
    one, two, three = (
        Vocabulary.train(iter(texts), str(tmp_path / str(i)), seed=seed, **kinds)
        for i, seed in enumerate((0, 0, 1))
    )
    assert one.fingerprint == two.fingerprint != three.fingerprint
    learnt = {p for p in one.piece_bytes()[259:] if p.strip()}  # past the specials and the bytes
    assert len({p.strip().decode()[0] for p in learnt}) == 5


@pytest.mark.parametrize("texts", [["a"], ["手"], ["👍"], ["red shoes", ""], ["x"] * 3])
def test_tiny_corpora_work(tmp_path, texts):
    vocabulary = Vocabulary.train(iter(texts), str(tmp_path), pieces=4096)
    for text in (*texts, "never seen 新 "):
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_with_more_characters_than_pieces_words_still_have_pieces(tmp_path):
    rare = [chr(0x4E00 + i) for i in range(2000)]
    words = ["red shoes", "reds shoesbox", "redder shoe"] * 500
    vocabulary = Vocabulary.train(iter(rare + words), str(tmp_path), pieces=400)
    assert vocabulary.pieces <= 400
    assert len(vocabulary.encode("red shoes")) <= 4
    assert vocabulary.decode(vocabulary.encode("".join(rare[:50]))) == "".join(rare[:50])


@pytest.mark.parametrize("texts", [[], [""], [" ", "  "], ["▁"]])
def test_an_empty_corpus_is_a_user_error(tmp_path, texts):
    with pytest.raises(UserError, match="empty"):
        Vocabulary.train(iter(texts), str(tmp_path))


def test_errors_of_missing_and_damaged_folders_have_a_way_out(tmp_path):
    with pytest.raises(UserError, match="pieces=100"):
        Vocabulary.train(iter(TEXTS), str(tmp_path), pieces=100)
    with pytest.raises(UserError, match="pieces.model is missing"):
        Vocabulary.load(str(tmp_path / "none"))
    Vocabulary.train(iter(TEXTS), str(tmp_path), pieces=400)
    described = tmp_path / "vocabulary.json"
    described.write_text(described.read_text().replace('"pieces": ', '"pieces": 1'))
    with pytest.raises(UserError, match="does not describe"):
        Vocabulary.load(str(tmp_path))
    described.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.load(str(tmp_path))


# ------------------------------------------------------------------ pieces of a pretrained model


def pretrained_pieces(texts, **changes) -> bytes:
    """A SentencePiece model like T5's, or mT5's with `byte_fallback=True`."""
    out = io.BytesIO()
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **changes}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return out.getvalue()


@pytest.fixture(scope="module", params=[False, True], ids=["T5", "mT5"])
def adopted(request, tmp_path_factory) -> tuple[Vocabulary, bool]:
    folder = tmp_path_factory.mktemp("adopted")
    texts = [text for text in TEXTS if text.isascii()]
    pieces = pretrained_pieces(texts, byte_fallback=request.param)
    (folder / "spiece.model").write_bytes(pieces)
    made = Vocabulary.adopt(
        str(folder / "spiece.model"), str(folder / "vocab"), rows=600, sid_levels=2, sid_codes=3
    )
    return made, request.param


def test_our_tokens_follow_all_rows_of_the_pretrained_table(adopted, tmp_path):
    vocabulary, _ = adopted
    assert vocabulary.pieces < 600
    assert vocabulary.first_marker == vocabulary.prefix_id == 600
    assert vocabulary.last_marker == 600 + len(MARKERS) - 1
    assert vocabulary.sid(0, 0) == vocabulary.last_marker + 1
    assert vocabulary.size == 768
    names = vocabulary.tokens()
    assert sorted(names.values()) == list(range(vocabulary.pieces, vocabulary.size))
    assert names["<prefix>"] == 600 and names["<sid_1_2>"] == vocabulary.sid(1, 2)
    assert names["<unused_599>"] == 599
    vocabulary.save(str(tmp_path))
    loaded = Vocabulary.load(str(tmp_path))
    assert loaded.fingerprint == vocabulary.fingerprint and loaded.prefix_id == 600
    plain = Vocabulary(vocabulary.model, sid_levels=2, sid_codes=3)
    assert plain.fingerprint != vocabulary.fingerprint and plain.prefix_id == plain.pieces


def test_adopted_pieces_encode_their_characters_and_the_last_space(adopted):
    vocabulary, has_bytes = adopted
    for text in ("red shoes", "lego train", "lego ", "red shoes "):
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert b"".join(vocabulary.piece_bytes()[i] for i in ids) == b" " + text.encode()
    assert vocabulary.encode("lego ") != vocabulary.encode("lego")
    assert vocabulary.encode("") == []
    for text in ("手机", "red 手机", "a▁b", "\ud83d", "😀 😀"):
        ids = vocabulary.encode(text)
        assert all(0 < i < vocabulary.pieces for i in ids)
        if has_bytes:
            assert vocabulary.unk_id not in ids
        else:
            assert vocabulary.decode(ids) in text.strip()
    assert (vocabulary.unk_id in vocabulary.encode("手机")) == (not has_bytes)


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({}, 10, "pieces, and the model's table only 10 rows"),
        ({"pad_id": 3, "eos_id": 2, "unk_id": 1}, 600, "found 3, 2 and 1"),
        ({"pad_id": -1, "bos_id": 0}, 600, "found -1, 1 and 2"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path, changes, rows, message):
    (tmp_path / "spiece.model").write_bytes(pretrained_pieces(TEXTS, **changes))
    with pytest.raises(UserError, match=message):
        Vocabulary.adopt(str(tmp_path / "spiece.model"), str(tmp_path / "v"), rows=rows)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "found no such file"), (b"junk", "reading it failed"), (b"", "")],
)
def test_missing_and_damaged_pieces_are_named(tmp_path, content, message):
    path = tmp_path / "spiece.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"spiece.model.*{message}"):
        Vocabulary.adopt(str(path), str(tmp_path / "v"), rows=600)
