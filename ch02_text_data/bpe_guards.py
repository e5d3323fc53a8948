"""What the byte-pair encoder refuses, and what it says then."""

from collections.abc import Collection, Container, Iterable


def require_text(text: str) -> None:
    """Refuse what is no text, and text that UTF-8 cannot write.

    Half of a surrogate pair, which comes from UTF-16, is no character.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a text (str), not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is {text[error.start]!r}, half of a "
            "surrogate pair; repair the text with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None


def require_vocab_size(vocab_size: int, special_tokens: Collection[str]) -> None:
    """Refuse special tokens that are no texts, and sizes that are too small for all."""
    for token in special_tokens:
        require_text(token)
        if len(token) < 2:
            raise ValueError(
                f"special token {token!r} is too short; give special tokens as a set "
                "of texts such as {'<|endoftext|>'}"
            )
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: 256 bytes and "
            f"{len(special_tokens)} special tokens need {least}"
        )


def require_learned(
    words: Collection, merges: Collection, vocab_size: int, special_tokens: Collection
) -> None:
    """Refuse a text without words, or with too few pairs for the vocabulary."""
    if not words:
        raise ValueError("the text to train on is empty; it needs at least a word")
    size = 256 + len(merges) + len(special_tokens)
    if size < vocab_size:
        raise ValueError(
            f"the text runs out of pairs after {len(merges)} merges; give more text, "
            f"or a vocab_size of at most {size}"
        )


def require_not_ordinary(
    special_tokens: Iterable[str], known: Container[bytes]
) -> None:
    """Refuse special tokens whose bytes are an ordinary token already."""
    if taken := [text for text in special_tokens if text.encode() in known]:
        raise ValueError(f"special tokens that are ordinary tokens too: {taken}")


def require_allowed(
    text: str,
    special_tokens: Collection[str],
    allowed: Collection[str] | str,
    disallowed: Collection[str] | str,
) -> set[str]:
    """The special tokens that become their id in this text, if it has no refused one.

    "all" means, of `allowed`, every special token, and of `disallowed`, every other.
    """
    require_text(text)
    known = set(special_tokens)
    taken = known if allowed == "all" else known & set(allowed)
    require_absent(text, known - taken if disallowed == "all" else disallowed)
    return taken


def require_absent(text: str, special_tokens: Iterable[str]) -> None:
    """Refuse a text that contains one of these special tokens."""
    for token in sorted(special_tokens):
        if token in text:
            raise ValueError(
                f"the text contains the special token {token!r}; pass it in "
                "allowed_special to encode it as such, or disallowed_special=() to "
                "encode it as ordinary text"
            )


def unknown_id(token_id: object, n_vocab: int) -> ValueError:
    """The error for an id that no token has."""
    return ValueError(
        f"token id {token_id!r} is not in the vocabulary: ids are integers from 0 to "
        f"{n_vocab - 1} (for a tensor, its tolist())"
    )


def require_has(token: str, special_tokens: Container[str]) -> None:
    """Refuse to give the id of a special token that this tokenizer does not have."""
    if token not in special_tokens:
        raise ValueError(f"this tokenizer has no special token {token!r}")
