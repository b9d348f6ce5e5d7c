"""Blocked terms: one automaton over a folded form of the text, so that a spelling hides nothing.

Terms and texts are folded alike (`fold`): compatibility forms, case, invisible characters and
letters that look alike make no difference. Aho-Corasick then finds all terms in one pass, however
many there are. A term counts where it stands as whole words; in scripts that set no spaces between
words it counts anywhere.

This file judges spelling alone: no synonyms, no digits for letters ("gvn", "9un"), no letter drawn
by two ("rn" for "m"), no accents left out, and plurals of English only.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

import ahocorasick

# Names of characters begin with their script. Korean sets spaces, but particles follow its nouns.
_WITHOUT_SPACES = (
    *("CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "BOPOMOFO ", "HANGUL ", "YI "),
    *("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI ", "BALINESE ", "JAVANESE "),
)
# Default-ignorable characters that are no format characters (category Cf).
_INVISIBLE = (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0)
_PLURALS = ("s", "es")


def fold(text: str) -> str:
    """The form in which terms and texts are compared; equal for texts that look alike.

    NFKC and case folding; the Turkish dotless and dotted i as i; without control and invisible
    characters; letters that Unicode's table of confusables draws like a Latin one as that one;
    white space as single spaces.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.lower().split())
    # Decomposed, so that the letter below an accent is seen.
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    text = unicodedata.normalize("NFC", text.translate(_table()))
    return " ".join(text.replace("i\u0307", "i").split())


class Terms:
    """Blocked terms, ready to be looked for.

    Args:
      terms: as people wrote them; those that fold to nothing are left out.
      plurals: also their English plurals, -s, -es and -ies, and where a term is one, its singular.
    """

    def __init__(self, terms: Iterable[str], plurals: bool = False):
        self._endings = _PLURALS if plurals else ()
        self._automaton = ahocorasick.Automaton()
        for term in filter(None, map(fold, terms)):
            forms = {term, *_others(term)} if plurals else {term}
            for form in forms:
                self._automaton.add_word(form, len(form))
        self._any = len(self._automaton) > 0
        if self._any:
            self._automaton.make_automaton()

    def found_in(self, text: str) -> bool:
        """Whether a text holds a term."""
        if not self._any:
            return False
        text = fold(text)
        for last, length in self._automaton.iter(text):
            if not _inside_word(text, last + 1 - length) and self._ends(text, last + 1):
                return True
        return False

    def _ends(self, text: str, end: int) -> bool:
        """Whether a term that ends before `end` ends a word there, perhaps in the plural."""
        if not _inside_word(text, end):
            return True
        return any(
            text.startswith(ending, end) and not _inside_word(text, end + len(ending))
            for ending in self._endings
        )


def _others(term: str) -> Iterable[str]:
    """The plural in -ies of a term, and its singulars; other plurals are a term and an ending."""
    if term[-1] == "y":
        yield term[:-1] + "ies"
    if len(term) > 3 and term[-1] == "s" and term[-2] not in "isu":
        yield term[:-1]
        if term.endswith(("ches", "shes", "sses", "xes", "zes")):
            yield term[:-2]
        if term.endswith("ies"):
            yield term[:-3] + "y"


def _inside_word(text: str, at: int) -> bool:
    """Whether the characters before and at a place belong to one word."""
    return 0 < at < len(text) and _of_word(text[at - 1]) and _of_word(text[at])


@functools.lru_cache(1 << 16)
def _of_word(character: str) -> bool:
    """Whether this is a letter, digit or mark of a script that sets spaces between words."""
    if not (character.isalnum() or unicodedata.category(character)[0] == "M"):
        return False
    return not _without_spaces(character)


def _without_spaces(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_WITHOUT_SPACES)


class _Table(dict):
    """For `str.translate`: what becomes of a character, found out when it is first met."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        found: str | None = _look_alikes().get(character, character)
        if character.isspace():
            found = " "
        elif unicodedata.category(character) in ("Cc", "Cf") or code in _INVISIBLE:
            found = None
        elif 0xFE00 <= code <= 0xFE0F or 0xE0000 <= code <= 0xE0FFF:  # variants of a character
            found = None
        self[code] = found
        return found


_table = functools.cache(_Table)


@functools.cache
def _look_alikes() -> dict[str, str]:
    """Letter -> the Latin letter, a to z, that it is drawn like.

    Only letters written from left to right, of scripts with spaces: Arabic or Thai letters have
    look-alikes too, which nobody takes for a Latin word.
    """
    from confusable_homoglyphs.confusables import confusables_data

    found = {}
    for latin in map(chr, range(ord("a"), ord("z") + 1)):
        for other in confusables_data.get(latin, ()):
            letter = other["c"]
            if len(letter) != 1 or letter.isascii() or not letter.isalpha():
                continue
            if unicodedata.bidirectional(letter) == "L" and not _without_spaces(letter):
                found[letter] = latin
    return found
