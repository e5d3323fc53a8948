"""What the playground computes: tokens, the next one, attention, what moved a verdict.

Nothing here knows of a page, so the tests need no browser and no Panel. What a reader
types comes in as a string, and what is wrong with it goes out as a ValueError whose
text can be shown as it is.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ch05_pretraining.copying import all_attention_weights
from shared.ch02 import BPETokenizer
from shared.ch04 import next_token_logits
from shared.ch05 import evaluating, next_token_probabilities
from shared.ch06 import GPTClassifier, encode_message

LONGEST_TEXT = 20_000  # characters; a page with more of them becomes slow
LONGEST_SENTENCE = 40  # tokens in a picture of attention
MOST_LEFT_OUT = 60  # how often a message is read again without some of its words
SHOWN_TOKENS = 8  # bars in a picture of the next token
LARGEST_VOCABULARY = 2_000  # of a tokenizer that is learned on the page


def checked(text: str, what: str = "text", longest: int = LONGEST_TEXT) -> str:
    """The text, if it can be read: not too long, and with whole characters only.

    Raises:
        ValueError: otherwise, in a sentence for the reader.
    """
    if len(text) > longest:
        raise ValueError(
            f"The {what} has more than {longest:,} characters, which is too long for "
            "this page. Shorten it, please."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Character {error.start + 1} of the {what} is half of a surrogate pair, "
            "which is no character. Delete it, please."
        ) from None
    return text


def required(text: str, what: str) -> str:
    """The text, if it is readable and not empty.

    Raises:
        ValueError: otherwise, in a sentence for the reader.
    """
    if not checked(text, what).strip():
        raise ValueError(f"The {what} is empty. Type something first, please.")
    return text


# Tokens


@dataclass(frozen=True)
class Token:
    """A token of a text: its id, and the bytes that it stands for."""

    id: int
    data: bytes

    @property
    def text(self) -> str | None:
        """Its characters, or None if it holds only a part of one."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            return None


def tokens_of(ids: Sequence[int], tokenizer: BPETokenizer) -> list[Token]:
    """Ids with what they stand for."""
    return [Token(i, tokenizer.decode_bytes([i])) for i in ids]


def read_tokens(text: str, tokenizer: BPETokenizer) -> list[Token]:
    """The tokens of a text, in which nothing is special."""
    return tokens_of(tokenizer.encode_ordinary(text), tokenizer)


def learn_tokenizer(text: str, vocab_size: int) -> BPETokenizer:
    """Chapter 2b's tokenizer, learned from a text, with `vocab_size` tokens at most.

    A short text runs out of pairs before that; then the vocabulary is smaller.

    Raises:
        ValueError: if the text is empty, or the size is not that of a vocabulary.
    """
    required(text, "text to learn from")
    if not 256 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(
            f"A vocabulary of {vocab_size:,} tokens cannot be learned here; choose a "
            f"size from 256, the bytes alone, to {LARGEST_VOCABULARY:,}."
        )
    tokenizer = BPETokenizer()
    try:
        tokenizer.train(text, vocab_size, allowed_special=())
    except ValueError as error:  # it says how many the text is good for
        found = re.search(r"vocab_size of at most (\d+)", str(error))
        if found is None:
            raise
        tokenizer.train(text, int(found[1]), allowed_special=())
    return tokenizer


# The next token


@dataclass(frozen=True)
class Chance:
    """A token that may come next.

    Attributes:
        token: which one.
        model: its probability as the model gives it.
        drawn: its probability after temperature, top-k and top-p.
    """

    token: Token
    model: float
    drawn: float


@dataclass(frozen=True)
class Step:
    """One new token, and the likeliest ones at its place.

    Attributes:
        token: the one that was drawn.
        likeliest: by the model's own probability; if the one that was drawn is not
            among them, it is the last.
    """

    token: Token
    likeliest: list[Chance]


@dataclass
class Sampling:
    """How the next token is drawn; `top_k` and `top_p` may be None, for all tokens."""

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None


@torch.no_grad()
def distributions(
    logits: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's probabilities and those it is drawn by: (V,) -> (V,), (V,)."""
    top_k = None if sampling.top_k is None else min(sampling.top_k, len(logits))
    drawn = next_token_probabilities(
        logits[None], sampling.temperature, top_k, sampling.top_p
    )
    return logits.softmax(-1), drawn[0]


def write(
    model: nn.Module,
    tokenizer: BPETokenizer,
    ids: Sequence[int],
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Continue a text for as long as one asks: a step for each new token.

    A text that is longer than the model's context is read from its end. `sampling` may
    be changed between two steps. The model should be in evaluation mode.

    Raises:
        ValueError: if there is no token to continue.
    """
    if len(ids) == 0:
        raise ValueError("there is no token to go on from; begin with eot_token")
    context = model.cfg["context_length"]
    device = next(model.parameters()).device
    idx = torch.tensor([list(ids)], device=device)  # (1, T)
    cache = model.new_cache()
    while True:
        with torch.no_grad():  # not around the yield: threads take turns in here
            logits = next_token_logits(model, idx, context, cache)[0].float()  # (V,)
            by_model, drawn = distributions(logits, sampling)
            if sampling.temperature == 0:
                new = drawn.argmax().item()
            else:
                new = torch.multinomial(drawn, 1, generator=generator).item()
        best = by_model.topk(min(SHOWN_TOKENS, len(by_model))).indices.tolist()
        shown = best if new in best else [*best[:-1], new]
        yield Step(
            tokens_of([new], tokenizer)[0],
            [
                Chance(token, by_model[token.id].item(), drawn[token.id].item())
                for token in tokens_of(shown, tokenizer)
            ],
        )
        idx = torch.cat([idx, torch.tensor([[new]], device=device)], dim=1)


# Attention


def attention_of(
    sentence: str, model: nn.Module, tokenizer: BPETokenizer
) -> tuple[list[Token], torch.Tensor]:
    """The first tokens of a sentence, and every head's weights: (n_layers, H, T, T).

    Row t holds what token t gives to each token up to itself.

    Raises:
        ValueError: if the sentence is empty.
    """
    ids = tokenizer.encode_ordinary(required(sentence, "sentence"))
    longest = min(LONGEST_SENTENCE, model.cfg["context_length"])
    ids = ids[:longest]
    with evaluating(model):
        weights = all_attention_weights(model, torch.tensor([ids]))
    return tokens_of(ids, tokenizer), torch.cat(weights)


def sharpest_head(weights: torch.Tensor) -> tuple[int, int]:
    """The block and the head that, at the last token, look hardest at an earlier one.

    The first token does not count, since heads that look for nothing look there, nor
    do the last two: nearly every model has a head that looks at the token before.
    Weights are (n_layers, H, T, T); of fewer than four tokens, it is the first head.
    """
    if weights.shape[-1] < 4:
        return 0, 0
    best = weights[:, :, -1, 1:-2].amax(-1)  # (n_layers, H)
    return divmod(best.argmax().item(), best.shape[1])


# The spam filter


@dataclass(frozen=True)
class Verdict:
    """What the filter says of a message.

    Attributes:
        log_odds: of being spam; above 0 it is more likely spam than not.
        pieces: the message in words, or in runs of words if it has many; joined they
            are the message.
        moved: how much each piece adds to the log-odds: what they lose without it.
        read: how many tokens the filter has read.
        tokens: how many the message has.
    """

    log_odds: float
    pieces: list[str]
    moved: list[float]
    read: int
    tokens: int

    @property
    def probability(self) -> float:
        """Of being spam."""
        return torch.tensor(self.log_odds, dtype=torch.float64).sigmoid().item()


def spam_log_odds(
    texts: Sequence[str], classifier: GPTClassifier, tokenizer: BPETokenizer
) -> list[float]:
    """How likely each text is to be spam: 0 is even, and each 1 more is e times that.

    Probabilities near 1 all look alike; their log-odds do not.
    """
    context, pad = classifier.cfg["context_length"], classifier.pad_token_id
    rows = [
        torch.tensor(encode_message(text, tokenizer, context, pad)) for text in texts
    ]
    found: list[float] = []
    with evaluating(classifier):
        for start in range(0, len(rows), 16):
            batch = rows[start : start + 16]
            ids = nn.utils.rnn.pad_sequence(batch, True, pad)  # (B, T)
            logits = classifier(ids).double()  # (B, 2)
            found += (logits[:, 1] - logits[:, 0]).tolist()
    return found


def runs_of_words(text: str, most: int = MOST_LEFT_OUT) -> list[str]:
    """A text in words, each with the spaces after it; if there are more than `most`, in
    runs of as many words, the last perhaps of fewer. Joined they are the text.

    >>> runs_of_words("Call now  to win!", most=2)
    ['Call now  ', 'to win!']
    """
    words = re.findall(r"\s*\S+\s*", text)
    size = max(1, -(-len(words) // most))  # rounded up
    return ["".join(words[i : i + size]) for i in range(0, len(words), size)]


def leave_one_out(
    pieces: Sequence[str], score: Callable[[list[str]], list[float]]
) -> tuple[float, list[float]]:
    """The score of a text, and how much of it each of its pieces brings.

    `score` gets the whole text and then the text without each piece.
    """
    without = ["".join([*pieces[:i], *pieces[i + 1 :]]) for i in range(len(pieces))]
    whole, *others = score(["".join(pieces), *without])
    return whole, [whole - other for other in others]


def judge(message: str, classifier: GPTClassifier, tokenizer: BPETokenizer) -> Verdict:
    """Whether a message is spam, and which words moved the filter.

    Raises:
        ValueError: if the message is empty or too long.
    """
    pieces = runs_of_words(required(message, "message"))
    log_odds, moved = leave_one_out(
        pieces, lambda texts: spam_log_odds(texts, classifier, tokenizer)
    )
    tokens = len(tokenizer.encode_ordinary(message))
    read = min(tokens, classifier.cfg["context_length"])
    return Verdict(log_odds, pieces, moved, read, tokens)
