import itertools
import subprocess
import sys

import pytest
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
def test_any_text_comes_back_unchanged_and_in_bytes(vocabulary, text):
    pieces = vocabulary.piece_bytes()
    for form in (text, normalise_query(text), normalise_prefix(text)):
        ids = vocabulary.encode(form)
        assert vocabulary.decode(ids) == form
        assert vocabulary.decode([*ids, vocabulary.eos_id, *ids]) == form
        assert b"".join(pieces[i] for i in ids) == (b" " + form.encode() if form else b"")
        assert all(vocabulary.unk_id < i < vocabulary.pieces for i in ids)


def test_half_a_surrogate_pair_is_read_not_raised(vocabulary):
    assert vocabulary.decode(vocabulary.encode("lego \ud83d")) == "lego ?"


def test_the_id_space_has_no_overlap_and_fills_to_128(vocabulary):
    markers = [vocabulary.prefix_id, vocabulary.soft_id, vocabulary.ids_id]
    markers += [i for numbers in vocabulary.item_ids.values() for i in numbers]
    assert len(markers) == len(MARKERS)
    sids = [vocabulary.sid(level, code) for level in range(3) for code in range(5)]
    used = [*range(vocabulary.pieces), *markers, *sids]
    assert used == list(range(len(used)))
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert vocabulary.size % 128 == 0 and 0 <= vocabulary.size - len(used) < 128
    assert [vocabulary.sid_of(s) for s in sids] == [(a, b) for a in range(3) for b in range(5)]
    assert all(vocabulary.sid_of(i) is None for i in (*markers, len(used), 0))
    assert vocabulary.decode([*markers, *sids, 0]) == ""
    table = vocabulary.piece_bytes()
    assert len(table) == vocabulary.size and not any(table[i] for i in (0, 1, 2, *markers, *sids))
    for level, code in ((3, 0), (0, 5), (-1, 0)):
        with pytest.raises(IndexError):
            vocabulary.sid(level, code)


def test_same_texts_same_bytes_and_load_gives_the_same(tmp_path, vocabulary):
    again = Vocabulary.train(
        iter(TEXTS), str(tmp_path / "a"), pieces=400, sid_levels=3, sid_codes=5
    )
    assert again.fingerprint == vocabulary.fingerprint
    loaded = Vocabulary.load(str(tmp_path / "a"))
    assert loaded.fingerprint == again.fingerprint and loaded.size == again.size
    assert loaded.encode("red shoes") == again.encode("red shoes")
    other = Vocabulary.train(
        iter(TEXTS), str(tmp_path / "b"), pieces=400, sid_levels=3, sid_codes=6
    )
    assert other.fingerprint != again.fingerprint


def test_a_sample_is_seeded_and_keeps_out_the_rest(tmp_path):
    texts = [c * 3 for c in "abcdefghijklmnopqrstuvwxyz"]
    kinds = {"pieces": 400, "sid_levels": 0, "sid_codes": 0, "sample": 5}
    one, two, three = (
        Vocabulary.train(iter(texts), str(tmp_path / str(i)), seed=seed, **kinds)
        for i, seed in enumerate((0, 0, 1))
    )
    assert one.fingerprint == two.fingerprint != three.fingerprint
    known = {p for p in one.piece_bytes()[259:] if p.strip()}  # past the specials and the bytes
    assert len({p.strip().decode()[0] for p in known}) == 5


@pytest.mark.parametrize("texts", [["a"], ["手"], ["👍"], ["red shoes", ""], ["x"] * 3])
def test_tiny_corpora_work(tmp_path, texts):
    vocabulary = Vocabulary.train(iter(texts), str(tmp_path), pieces=4096)
    for text in (*texts, "never seen 新 "):
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_more_characters_than_pieces_leaves_room_for_words(tmp_path):
    rare = [chr(0x4E00 + i) for i in range(2000)]
    words = ["red shoes", "reds shoesbox", "redder shoe"] * 500
    vocabulary = Vocabulary.train(iter(rare + words), str(tmp_path), pieces=400)
    assert vocabulary.pieces <= 400
    assert len(vocabulary.encode("red shoes")) <= 4
    assert vocabulary.decode(vocabulary.encode("".join(rare[:50]))) == "".join(rare[:50])


@pytest.mark.parametrize("texts", [[], [""], [" ", "  "], ["▁"]])
def test_an_empty_corpus_is_the_users_mistake(tmp_path, texts):
    with pytest.raises(UserError, match="empty"):
        Vocabulary.train(iter(texts), str(tmp_path))


def test_broken_folders_name_the_mend(tmp_path):
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


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vocabulary", ("tensorflow", "seqio", "jax", "pyarrow", "grain")),
        ("features", ("tensorflow", "seqio", "jax", "pyarrow", "grain")),
        ("examples", ("tensorflow", "seqio", "jax")),
        ("loader", ("tensorflow", "seqio")),
    ],
)
def test_serving_and_loading_stay_free_of_tensorflow(project_root, module, heavy):
    code = (
        f"import sys, onesug_jax.tasks.{module}; print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
