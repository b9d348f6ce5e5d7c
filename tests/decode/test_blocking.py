"""Which spellings of a blocked term are found, and which words that only look like it are not."""

import random

import pytest

from onesug_jax.decode.blocking import Terms, fold


def found(term, text, **how):
    return Terms([term], **how).found_in(text)


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
def test_no_spelling_hides_a_word(text):
    assert found("gun", text)
    assert found(text, text) and fold(fold(text)) == fold(text)


@pytest.mark.parametrize("text", ["shotgun", "gunner", "guns", "gun2", "gün", "gu n", "", "lamp"])
def test_other_words_stay(text):
    assert not found("gun", text)


def test_letters_of_cyrillic_and_latin_in_one_word_are_one_word():
    assert found("пистолет", "пиcтoлет")  # c and o are Latin
    assert found("ёлка", "e\u0308лка")  # and so is the letter below an accent
    assert not found("пистолет", "пистолетик")


def test_plurals_where_they_are_asked_for():
    for term, text in [("gun", "toy guns"), ("box", "boxes red"), ("berry", "goji berries")]:
        assert found(term, text, plurals=True) and not found(term, text)
    assert not found("gun", "gunsmith", plurals=True)


def test_a_term_in_the_plural_blocks_its_singular_too():
    for term, text in [("tents", "red tent"), ("knife sharpeners", "knife sharpener")]:
        assert found(term, text, plurals=True) and not found(term, text)
    for term, text in [("boxes", "a box"), ("berries", "goji berry"), ("matches", "match 5")]:
        assert found(term, text, plurals=True)
    for term, text in [("glass", "glas"), ("lotus", "lotu"), ("tennis", "tenni"), ("gas", "ga")]:
        assert not found(term, text, plurals=True)


def test_chinese_and_japanese_terms_count_anywhere():
    assert found("拖鞋", "儿童拖鞋女") and not found("拖鞋", "拖 鞋")
    assert found("ピストル", "水ピストルおもちゃ") and found("ピストル", "ﾋﾟｽﾄﾙ")
    assert found("총", "장난감총을")


def test_thai_lao_khmer_and_burmese_terms_count_anywhere():
    assert found("ปืน", "ขายปืนฉีดน้ำ") and not found("ปืน", "ปลา")
    assert found("น้ำ", "ปืนฉีดน้ำเด็ก")
    assert found("ປືນ", "ຂາຍປືນນ້ຳ")
    assert found("កាំភ្លើង", "លក់កាំភ្លើងជ័រ")
    assert found("သေနတ်", "ကစားစရာသေနတ်များ")


def test_turkish_letters_i_are_one():
    for text in ("SİLAH", "silah", "sılah", "SILAH", "s\u0131lah", "si\u0307lah"):
        assert found("silah", f"oyuncak {text}") and found(text, "oyuncak silah")
    assert found("kılıç", "KILIÇ seti") and found("kılıç", "kiliç")
    assert not found("silah", "silahlık")


def test_indian_words_do_not_end_before_a_vowel_sign():
    assert found("कम", "कम दाम") and not found("कम", "कमी")


def test_what_folds_to_nothing_blocks_nothing():
    assert not Terms(["", " ", "\u200b"]).found_in("gun")
    assert not Terms([]).found_in("")


def test_terms_within_terms_are_all_looked_for():
    """The longer term does not end a word here, the shorter one does; and one begins inside it."""
    assert Terms(["gun lamps", "gun"]).found_in("gun lampshade")
    assert Terms(["toy gun", "gun red"]).found_in("mytoy gun red")


def test_many_terms_agree_with_a_search_for_each():
    chance = random.Random(0)

    def word(least, most):
        return "".join(chance.choices("ab ", k=chance.randint(least, most))).strip()

    terms = [word(1, 5) for _ in range(30)]
    blocked = Terms(terms)
    for _ in range(2000):
        text = word(3, 12)
        padded = f" {' '.join(text.split())} "
        expected = any(f" {' '.join(term.split())} " in padded for term in terms if term)
        assert blocked.found_in(text) == expected, (terms, text)
