"""Spellings of a blocked term that match, and similar words that do not."""

import random

import pytest

from onesug_jax.decode.blocking import Terms, fold


def found(term, text, **options):
    return Terms([term], **options).found_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "gun",
        "toy GUN red",
        "ｇｕｎ",
        "g\u200bun",  # zero-width space
        "\ufeffgun",
        "g\u00adu\u2060n",  # soft hyphen, word joiner
        "gu\u034fn\ufe0f",  # grapheme joiner, variation selector
        "g\u0000un",
        "ɡun",  # script g
        "gυn",  # Greek upsilon
        "guո",  # Armenian
        "toy_gun",
        "gun-shop",
        "gun's",
        "玩具gun枪",
    ],
)
def test_other_spellings_match(text):
    assert found("gun", text)
    assert found(text, text) and fold(fold(text)) == fold(text)


@pytest.mark.parametrize("text", ["shotgun", "gunner", "guns", "gun2", "gün", "gu n", "", "lamp"])
def test_other_words_do_not_match(text):
    assert not found("gun", text)


def test_mixed_cyrillic_and_latin_letters_match():
    assert found("пистолет", "пиcтoлет")  # c and o are Latin
    assert found("ёлка", "e\u0308лка")  # a Latin e with an accent
    assert not found("пистолет", "пистолетик")


def test_plurals_match_if_they_are_configured():
    for term, text in [("gun", "toy guns"), ("box", "boxes red"), ("berry", "goji berries")]:
        assert found(term, text, plurals=True) and not found(term, text)
    assert not found("gun", "gunsmith", plurals=True)


def test_a_plural_term_matches_its_singular():
    for term, text in [("tents", "red tent"), ("knife sharpeners", "knife sharpener")]:
        assert found(term, text, plurals=True) and not found(term, text)
    for term, text in [("boxes", "a box"), ("berries", "goji berry"), ("matches", "match 5")]:
        assert found(term, text, plurals=True)
    for term, text in [("glass", "glas"), ("lotus", "lotu"), ("tennis", "tenni"), ("gas", "ga")]:
        assert not found(term, text, plurals=True)


def test_chinese_japanese_and_korean_terms_match_anywhere():
    assert found("拖鞋", "儿童拖鞋女") and not found("拖鞋", "拖 鞋")
    assert found("ピストル", "水ピストルおもちゃ") and found("ピストル", "ﾋﾟｽﾄﾙ")
    assert found("총", "장난감총을")


def test_thai_lao_khmer_and_burmese_terms_match_anywhere():
    assert found("ปืน", "ขายปืนฉีดน้ำ") and not found("ปืน", "ปลา")
    assert found("น้ำ", "ปืนฉีดน้ำเด็ก")
    assert found("ປືນ", "ຂາຍປືນນ້ຳ")
    assert found("កាំភ្លើង", "លក់កាំភ្លើងជ័រ")
    assert found("သေနတ်", "ကစားစရာသေနတ်များ")


def test_turkish_dotted_and_dotless_i_are_equal():
    for text in ("SİLAH", "silah", "sılah", "SILAH", "s\u0131lah", "si\u0307lah"):
        assert found("silah", f"oyuncak {text}") and found(text, "oyuncak silah")
    assert found("kılıç", "KILIÇ seti") and found("kılıç", "kiliç")
    assert not found("silah", "silahlık")


def test_indian_words_do_not_end_before_a_vowel_sign():
    assert found("कम", "कम दाम") and not found("कम", "कमी")


def test_a_term_that_folds_to_nothing_matches_nothing():
    assert not Terms(["", " ", "\u200b"]).found_in("gun")
    assert not Terms([]).found_in("")


def test_overlapping_terms_are_all_found():
    """First the longer term does not end a word but the shorter does; then two terms overlap."""
    assert Terms(["gun lamps", "gun"]).found_in("gun lampshade")
    assert Terms(["toy gun", "gun red"]).found_in("mytoy gun red")


def test_many_terms_match_as_a_search_for_each():
    rng = random.Random(0)

    def word(least, most):
        return "".join(rng.choices("ab ", k=rng.randint(least, most))).strip()

    terms = [word(1, 5) for _ in range(30)]
    blocked = Terms(terms)
    for _ in range(2000):
        text = word(3, 12)
        padded = f" {' '.join(text.split())} "
        expected = any(f" {' '.join(term.split())} " in padded for term in terms if term)
        assert blocked.found_in(text) == expected, (terms, text)
