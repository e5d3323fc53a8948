"""What chapter 7 compares when it compares two answers: words, numbers and signs."""

import unicodedata

import regex

__all__ = ["words_of"]

_ALIKE = str.maketrans("\u2019\u2212\u2013", "'--")  # apostrophe, minus, dash
_ARROW_OR_COMMA = regex.compile(r"[-=]+>|(?<=\d),(?=\d{3})")  # -> and 6,000
_LETTER = r"[\p{L}\p{Nl}\p{No}]"
_PARTS = regex.compile(
    r"\d+(?:\.\d+)?|(?<![\w.])\.\d+"  # a number
    # a word: letters with their marks, such as accents and the vowel signs of Hindi
    rf"|{_LETTER}(?:{_LETTER}|\p{{M}})*(?:'\p{{L}}[\p{{L}}\p{{M}}]*)*"
    # the minus of -7, 5 - 3 and x - y, but no dash or hyphen between words
    r"|(?<!\w)-(?=\d)|(?<=\d|\b\p{L})\s?\K[-*](?=\s?(?:\d|\p{L}\b))"
    # C#, #1; then what changes the meaning: 50%, 1/2, C++, 5 < 6, an emoji
    r"|(?<=\w)#|#(?=\w)|[%&@/^\p{Sm}\p{Sc}\p{So}]"
)


def words_of(text: str) -> list[str]:
    """Words, numbers and signs, in small letters and without punctuation.

    A text that has none, such as "?", is compared as it is.
    """
    text = unicodedata.normalize("NFC", text).casefold().translate(_ALIKE)
    return _PARTS.findall(_ARROW_OR_COMMA.sub("", text)) or text.split()
