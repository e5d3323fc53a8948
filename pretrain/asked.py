"""Where a story first has the words that the line before it asked for.

Only three words of a story of two hundred depend on the request. So a model that has
read little hardly learns to look at the request at all. `asked_weight` lets these words
count more often than the others.
"""

import re

import numpy as np

from ch07_instructions.word_forms import word_forms
from shared.ch02 import END_OF_TEXT, BPETokenizer

_REQUEST = re.compile(
    r"(?:Write a story with the words|Tell a story about) (?P<asked>[^\n]+)\.\n\n"
    rf"(?P<story>(?:(?!{re.escape(END_OF_TEXT)}).)*)",
    re.DOTALL,
)
_WORD = re.compile(r"[a-z]+")  # of a name all but its capital letter, which will do
NOT_ASKED = frozenset("a an and named called".split())


class AskedWords:
    """Finds the tokens that a request makes likely.

    Args:
        tokenizer: that of the sequences.
        weight: how often such a token counts.
    """

    def __init__(self, tokenizer: BPETokenizer, weight: float):
        self.weight = weight
        ids = range(tokenizer.n_vocab)  # latin-1: a character for each byte
        self.pieces = [tokenizer.decode_bytes([i]).decode("latin-1") for i in ids]

    def weights(self, sequence: np.ndarray) -> np.ndarray:
        """How often each target of a sequence counts: ids (T + 1,) -> (T,).

        It is `weight` where a story of the sequence first has a word, in any form, that
        the request before it asks for, and 1 everywhere else. A request that is not in
        the sequence, or only in part, asks for nothing.
        """
        pieces = [self.pieces[i] for i in sequence]
        text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
        weights = np.ones(len(sequence), dtype=np.float32)
        for request in _REQUEST.finditer(text):
            asked = set(_WORD.findall(request["asked"])) - NOT_ASKED
            missing = {word: word_forms(word) for word in asked}
            for found in _WORD.finditer(text, *request.span("story")):
                there = [word for word, forms in missing.items() if found[0] in forms]
                if there:
                    first, last = found.start(), found.end() - 1
                    first, last = np.searchsorted(ends, [first, last], side="right")
                    weights[first : last + 1] = self.weight
                for word in there:
                    del missing[word]
        return weights[1:]
