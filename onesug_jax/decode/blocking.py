"""Blocked terms: one Aho-Corasick automaton over a folded form of the text.

Terms and texts are folded in the same way (`fold`): compatibility forms, case, invisible characters
and look-alike letters make no difference. One pass finds all terms, for any number of them. A term
matches as whole words; in scripts without spaces between words it matches anywhere.

Not covered: synonyms, other characters for letters ("gvn", "9un"), two letters that look like one
("rn" for "m"), missing accents, and plurals of languages other than English.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

import ahocorasick

# Unicode names of characters start with their script. Korean is included because particles follow
# its nouns without a space.
_WITHOUT_SPACES = (
    *("CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "BOPOMOFO ", "HANGUL ", "YI "),
    *("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI ", "BALINESE ", "JAVANESE "),
)
# Default-ignorable characters that are not format characters (category Cf).
_INVISIBLE = (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0)
_PLURALS = ("s", "es")


def fold(text: str) -> str:
    """The form in which terms and texts are compared; equal for texts that look alike.

    NFKC and case folding. The Turkish dotless and dotted i become i. Control and invisible
    characters are removed. Letters that look like a Latin letter by Unicode's table of confusables
    become that letter. White space becomes single spaces.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.lower().split())
    # Decomposed first, so that a letter with an accent is translated too.
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    text = unicodedata.normalize("NFC", text.translate(_table()))
    return " ".join(text.replace("i\u0307", "i").split())


class Terms:
    """A set of blocked terms, compiled for search.

    Args:
      terms: as people wrote them; terms that fold to "" are ignored.
      plurals: block also the English plurals (-s, -es, -ies) of terms, and singulars of plurals.
    """

    def __init__(self, terms: Iterable[str], plurals: bool = False):
        self._endings = _PLURALS if plurals else ()
        self._automaton = ahocorasick.Automaton()
        for term in filter(None, map(fold, terms)):
            for form in {term, *_other_forms(term)} if plurals else {term}:
                self._automaton.add_word(form, len(form))
        if self._automaton:
            self._automaton.make_automaton()

    def found_in(self, text: str) -> bool:
        """Whether a text contains a term."""
        text = fold(text)
        return bool(self._automaton) and any(
            not _inside_word(text, last + 1 - length) and self._ends(text, last + 1)
            for last, length in self._automaton.iter(text)
        )

    def _ends(self, text: str, end: int) -> bool:
        """Whether a word ends at `end`, or after a plural ending from there."""
        if not _inside_word(text, end):
            return True
        return any(
            text.startswith(ending, end) and not _inside_word(text, end + len(ending))
            for ending in self._endings
        )


def _other_forms(term: str) -> Iterable[str]:
    """The -ies plural of a term, and its singulars; `Terms._ends` matches -s and -es plurals."""
    if term[-1] == "y":
        yield term[:-1] + "ies"
    if len(term) > 3 and term[-1] == "s" and term[-2] not in "isu":
        yield term[:-1]
        if term.endswith(("ches", "shes", "sses", "xes", "zes")):
            yield term[:-2]
        if term.endswith("ies"):
            yield term[:-3] + "y"


def _inside_word(text: str, at: int) -> bool:
    """Whether the characters before and at an index belong to one word."""
    return 0 < at < len(text) and _in_words(text[at - 1]) and _in_words(text[at])


@functools.lru_cache(1 << 16)
def _in_words(character: str) -> bool:
    """Whether this is a letter, digit or mark of a script with spaces between words."""
    if not (character.isalnum() or unicodedata.category(character)[0] == "M"):
        return False
    return not _without_spaces(character)


def _without_spaces(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_WITHOUT_SPACES)


class _Table(dict):
    """A table for `str.translate` that is filled on demand."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        replacement: str | None = _look_alikes().get(character, character)
        if character.isspace():
            replacement = " "
        elif unicodedata.category(character) in ("Cc", "Cf") or code in _INVISIBLE:
            replacement = None
        elif 0xFE00 <= code <= 0xFE0F or 0xE0000 <= code <= 0xE0FFF:  # variation selectors, tags
            replacement = None
        self[code] = replacement
        return replacement


_table = functools.cache(_Table)


@functools.cache
def _look_alikes() -> dict[str, str]:
    """Letter -> the Latin letter, a to z, that it looks like.

    Only letters of left-to-right scripts with spaces: Arabic or Thai look-alikes do not make a text
    that passes for a Latin word.
    """
    from confusable_homoglyphs.confusables import confusables_data

    latin_of = {}
    for latin in map(chr, range(ord("a"), ord("z") + 1)):
        for other in confusables_data.get(latin, ()):
            letter = other["c"]
            if len(letter) != 1 or letter.isascii() or not letter.isalpha():
                continue
            if unicodedata.bidirectional(letter) == "L" and not _without_spaces(letter):
                latin_of[letter] = latin
    return latin_of
