"""Checks for the exercises of chapter 5: each says what is wrong, and hints at why."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from shared import ladder
from shared.ch04 import GPTModel
from shared.ch05 import load_storyteller
from shared.exercises import checked, close, number, one_of, tensor

TINY = {
    "vocab_size": 40,
    "context_length": 8,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


def _pieces(sizes: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of random ids and targets with so many windows of eight tokens."""
    generator = torch.Generator().manual_seed(6)
    ids = [torch.randint(40, (size, 9), generator=generator) for size in sizes]
    return [(piece[:, :-1], piece[:, 1:]) for piece in ids]


@checked("5.1", wants="one number")
def bits_per_byte(answer: Callable[[float, int, int], float]) -> None:
    """Nats per token to bits per byte."""
    answer.hint = "all three arguments are plain numbers"
    found = number(answer(math.log(256), 100, 100))
    assert not math.isclose(found, math.log(256), rel_tol=1e-5), (
        "an even guess among 256 bytes gives 5.545, which still is nats: divide by ln 2"
    )
    assert math.isclose(found, 8, rel_tol=1e-5), (
        "an even guess among the 256 bytes, one token per byte, must cost 8 bits per "
        f"byte, not {found}"
    )
    found = number(answer(3.0, 250, 1000))
    assert not math.isclose(found, 3.0 * 4 / math.log(2), rel_tol=1e-5), (
        "that grows with the length of a token: multiply by the tokens, divide by the "
        "bytes"
    )
    assert math.isclose(found, 0.75 / math.log(2), rel_tol=1e-5), (
        "3 nats per token, four bytes per token: wanted 0.75 / ln 2 = 1.082 bits per "
        f"byte, found {found}"
    )
    print("Right: now models with different tokenizers can be compared.")


@checked("5.2", wants="one number")
def unigram_loss(answer: Callable[[list[int], list[int], int], float]) -> None:
    """The loss of add-one frequencies."""
    train, val = [0, 0, 0, 1, 1, 2], [0, 1, 3]
    answer.hint = (
        "if that is the logarithm of 0: a token that training never saw needs a "
        "probability above 0, so add 1 to each count"
    )
    found = number(answer(train, val, 4))
    wanted = -(math.log(0.4) + math.log(0.3) + math.log(0.1)) / 3
    assert math.isfinite(found), (
        "the loss is infinite: a token that training never saw needs a probability "
        "above 0, so add 1 to each count"
    )
    assert not math.isclose(found, 3 * wanted, rel_tol=1e-5), (
        "return the mean per token, not the sum"
    )
    assert not math.isclose(found, -wanted, rel_tol=1e-5), (
        "a loss is minus the logarithm"
    )
    assert math.isclose(found, wanted, rel_tol=1e-5), (
        f"trained on {train} with V = 4, the tokens 0, 1 and 3 have the probabilities "
        f"4/10, 3/10 and 1/10; so {val} costs {wanted:.4f} per token, not {found:.4f}"
    )
    answer.hint = (
        "that was an empty training text, with V = 50: each token counts once then, so "
        "the loss is ln V; a tensor of no ids needs dtype=torch.long"
    )
    found = number(answer([], [5], 50))
    assert math.isclose(found, math.log(50), rel_tol=1e-5), (
        f"without any training text the loss must be ln V = 3.9120, not {found:.4f}"
    )
    print("Right: a network has to do better than that to have learned from context.")


@checked("5.3", wants="a tensor (B, V) of probabilities", keeps=True)
def keep_min_p(answer: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    """Keep what has a share of the largest probability."""
    rows = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.12, 0.18, 0.3, 0.4]])
    answer.hint = (
        "if shapes do not match: the maximum and the sum of a row must stay columns, "
        "(B, 1), which is what keepdim=True does"
    )
    found = tensor(answer(rows, 0.4), 2, 4)
    wanted = torch.tensor([[0.625, 0.375, 0.0, 0.0], [0.0, 9 / 44, 15 / 44, 20 / 44]])
    kept, wanted_kept = (found > 0).tolist(), (wanted > 0).tolist()
    assert kept[0] == wanted_kept[0], (
        "of [0.5, 0.3, 0.15, 0.05] with p = 0.4 keep what is at least 0.4 * 0.5 = 0.2; "
        f"you kept {kept[0]}"
    )
    assert kept[1] == wanted_kept[1], (
        "of [0.12, 0.18, 0.3, 0.4] keep what is at least 0.4 * 0.4 = 0.16; you kept "
        f"{kept[1]}: each row has a largest probability of its own"
    )
    assert close(found.sum(-1), torch.ones(2)), (
        f"the rows sum to {found.sum(-1).tolist()}: divide by the sum of what is kept"
    )
    assert close(found, wanted), f"wanted {wanted.tolist()}"
    edge = tensor(answer(torch.tensor([[0.5, 0.25, 0.25]]), 0.5), 1, 3)
    assert (edge > 0).all(), "a token with exactly the share p is kept"
    assert close(tensor(answer(rows, 1e-9), 2, 4), rows), "a tiny p must keep all"
    one = tensor(answer(rows, 1.0), 2, 4)
    assert close(one, (rows == rows.amax(1, keepdim=True)).float()), (
        "with p = 1 only the likeliest token is left"
    )
    print("Right: sure or unsure, the tail is cut where it is thin against the top.")


@checked("5.4", wants=None)
def accumulate_gradients(answer: Callable[[GPTModel, list], None]) -> None:
    """The gradient of the mean over all tokens of all pieces."""
    torch.manual_seed(1)
    model = GPTModel(TINY)
    pieces = _pieces((3, 1, 2))
    whole = copy.deepcopy(model)
    inputs, targets = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    F.cross_entropy(whole(inputs).flatten(0, 1), targets.flatten()).backward()
    wanted = whole.tok_emb.weight.grad.clone()
    before = model.tok_emb.weight.detach().clone()
    largest = max(len(inputs) for inputs, _ in pieces)
    at_once = []
    watch = model.register_forward_pre_hook(
        lambda module, inputs: at_once.append(len(inputs[0]))
    )
    answer(model, pieces)
    watch.remove()
    assert max(at_once, default=0) <= largest, (
        f"the model got {max(at_once)} windows at once, and the largest piece has "
        f"{largest}: that batch would not fit into memory; send the pieces one by one"
    )
    found = model.tok_emb.weight.grad
    assert found is not None, (
        "the parameters have no gradient: the exercise is still unanswered, or "
        "`backward` was never called"
    )
    assert torch.equal(before, model.tok_emb.weight), "the weights must not change here"
    inputs, targets = pieces[-1]
    whole.zero_grad()
    F.cross_entropy(whole(inputs).flatten(0, 1), targets.flatten()).backward()
    assert not close(found, whole.tok_emb.weight.grad, atol=1e-6), (
        "this is the gradient of the last piece alone: forget the old gradients once, "
        "before the first piece"
    )
    ratio = (found.norm() / wanted.norm()).item()
    assert not math.isclose(ratio, 48, rel_tol=1e-3), (
        "the gradient is 48 times too large, and there are 48 tokens: divide by the "
        "number of all tokens"
    )
    assert not close(found, 3 * wanted) and ratio < 2, (
        f"the gradient is {ratio:.1f} times too large: a sum of means is not the mean; "
        "scale each piece's loss before `backward`"
    )
    assert close(found, wanted, atol=1e-6), (
        "close, but a piece of three windows must weigh three times as much as one of "
        "one: scale each loss by its share of the tokens"
    )
    answer(model, pieces)
    assert close(model.tok_emb.weight.grad, wanted, atol=1e-6), (
        "called a second time, the result differs: the old gradients must go first"
    )
    print("Right: three small passes left the gradient of one large batch.")


@checked("5.5", wants="two indices, the best look and the last one")
def early_stopping(answer: Callable[[list[float], int], tuple[int, int]]) -> None:
    """The best look, and the look at which one stops."""
    cases = [
        ([5.0, 4.0, 4.5, 4.6, 3.0], 2, (1, 3), "it never gets to see the 3.0"),
        ([5.0, 4.0, 4.5, 3.9, 4.0], 2, (3, 4), "the 3.9 came in time"),
        ([5.0, 4.0, 4.0, 4.0, 4.0], 3, (1, 4), "an equal loss is no improvement"),
        ([5.0, 4.0, 3.0], 1, (2, 2), "it never stops before the end"),
        ([2.0, 3.0], 1, (0, 1), "the first look can be the best"),
        ([7.0], 5, (0, 0), "there is only one look"),
    ]
    for losses, patience, wanted, why in cases:
        best, last = answer(losses, patience)
        found = number(best), number(last)
        assert found == wanted or found != wanted[::-1], (
            "first the best look, then the last one"
        )
        assert found == wanted, (
            f"losses {losses}, patience {patience}: wanted best and last look {wanted} "
            f"({why}), found {found}"
        )
    print("Right: all six runs stop where they should.")


def _text_and_model(n: int) -> tuple[torch.Tensor, GPTModel]:
    """n random ids, and a small model that is not indifferent to their order."""
    generator = torch.Generator().manual_seed(8)
    torch.manual_seed(3)
    model = GPTModel(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return torch.randint(40, (n,), generator=generator), model


def _losses_token_by_token(
    ids: torch.Tensor, model: GPTModel, windows: list[tuple[int, int]]
) -> torch.Tensor:
    """Loss of each target in windows of tokens begin to end, the end not included."""
    parts = []
    for begin, end in windows:
        logits = model(ids[None, begin : end - 1])[0]
        parts.append(F.cross_entropy(logits, ids[begin + 1 : end], reduction="none"))
    return torch.cat(parts)


@checked("5.6", wants="one number", keeps=True)
@torch.no_grad()
def sliding_loss(answer: Callable[[torch.Tensor, GPTModel, int], float]) -> None:
    """Each token once, in the first window that has it as a target."""
    T = TINY["context_length"]
    for n, stride in ((6, 8), (17, 8), (22, 8), (22, 3), (30, 1)):
        ids, model = _text_and_model(n)
        answer.hint = f"that was a text of {n} tokens, {T} at once, and stride {stride}"
        found = number(answer(ids, model, stride))
        windows, first_loss = [(0, min(T + 1, n))], {}
        while windows[-1][1] < n:
            begin = windows[-1][0] + stride
            windows.append((begin, min(begin + T + 1, n)))
        for begin, end in windows:
            losses = _losses_token_by_token(ids, model, [(begin, end)])
            for token, loss in zip(range(begin + 1, end), losses, strict=True):
                first_loss.setdefault(token, loss.item())
        wanted = sum(first_loss.values()) / (n - 1)
        case = f"{n} tokens, T = {T}, stride {stride}"
        assert not math.isclose(found, wanted * (n - 1), rel_tol=1e-5), (
            "that is the sum: divide by the number of tokens but one"
        )
        side_by_side = [(i, min(i + T + 1, n)) for i in range(0, n - 1, T)]
        plain = _losses_token_by_token(ids, model, side_by_side).mean().item()
        assert stride == T or not math.isclose(found, plain, rel_tol=1e-5), (
            f"{case}: this is the loss of windows side by side; begin each `stride` "
            "tokens after the one before"
        )
        twice = _losses_token_by_token(ids, model, windows).mean().item()
        assert stride == T or not math.isclose(found, twice, rel_tol=1e-5), (
            f"{case}: a token that is a target in several windows counts in the first "
            "of them only; set its later targets to -100"
        )
        assert math.isclose(found, wanted, rel_tol=1e-5), (
            f"{case}: wanted {wanted:.4f}, found {found:.4f}; the windows are "
            f"{windows} (from, to); the last may be short, and a mean must be weighed "
            "by how many tokens it counts"
        )
    print("Right: every token is guessed once, and from as much as possible.")


@checked("5.7", wants=None)
def adamw_step(answer: Callable[..., None]) -> None:
    """Twenty steps, equal to those of `torch.optim.AdamW`."""
    torch.manual_seed(2)
    ours = GPTModel(TINY).double()  # so that only formulas can differ
    theirs = copy.deepcopy(ours)
    settings = {"lr": 2e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    oracle = torch.optim.AdamW(theirs.parameters(), **settings)
    (inputs, targets), state = _pieces((4,))[0], {}
    for n in range(1, 21):
        for model in (ours, theirs):
            model.zero_grad()
            logits = model(inputs)
            F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        start = ours.tok_emb.weight.detach().clone()
        answer(list(ours.parameters()), state, n, **settings)
        oracle.step()
        assert not torch.equal(start, ours.tok_emb.weight), (
            "no weight has moved: the exercise is still unanswered, or the parameters "
            "were not changed in place"
        )
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        worst = max((a - b).abs().max().item() for a, b in pairs)
        if n == 1:
            hint = "the corrections by 1 - beta ** n, the decay, eps outside the root"
        else:
            hint = "m and v kept in `state` from step to step, and n counted from 1"
        assert worst < 1e-6, (
            f"after step {n} a weight differs by {worst:.1e} from PyTorch's; check "
            f"{hint}"
        )
    print("Right: twenty steps, and no weight differs by more than a millionth.")


STEPS = 40


@checked("5.8", wants="two losses, of training and of validation")
def learn_noise(train: Callable, predicted: Callable) -> None:
    """The losses that AdamW reaches; any prediction will do."""
    pairs = _pieces((4, 16))
    predicted.wants = "two words, for training and for validation"
    guess = predicted()
    guess = dict(zip(("training", "validation"), guess, strict=True))
    for loss in guess.values():
        one_of(loss, ["below", "near", "above"])
    torch.manual_seed(4)
    model = GPTModel(TINY)
    oracle = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _loss(oracle, *pairs[0]).backward()
        optimizer.step()
    with torch.no_grad():
        start = [_loss(model, *pair).item() for pair in pairs]
        wanted = [_loss(oracle, *pair).item() for pair in pairs]
    one, other = map(number, train(model, *pairs, STEPS, 1e-2))
    assert abs(one - start[0]) > 0.1, (
        f"the training loss is still {one:.2f}, as before the training: does each step "
        "compute a loss, call backward and then step?"
    )
    assert abs(one - wanted[0]) > 0.1 or abs(other - start[1]) > 0.02, (
        f"the validation loss {other:.2f} is that before training; compute it after it"
    )
    assert not abs(one - wanted[1]) < 0.02, "first the training loss, then the other"
    lines = []
    for name, found, true in zip(guess, (one, other), wanted, strict=True):
        assert abs(found - true) < 0.1, (
            f"after {STEPS} steps of AdamW at 1e-2 the {name} loss is {true:.2f}, not "
            f"{found:.2f}; forget old gradients in each step, train on the first pair "
            "alone, and compute both losses at the end"
        )
        side = "below" if found < math.log(40) else "above"
        lines.append(f"{name:10} loss: {side} ln V; predicted: {guess[name]}")
    print(*lines, sep="\n")
    print(f"Right: and ln V = {math.log(40):.2f} is the best possible on a new text.")


def _loss(model: GPTModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@checked("5.9", wants="one number, a share")
def seen_share(answer: Callable, predicted: Callable) -> None:
    """What training has seen of the validation tokens; any prediction will do."""
    predicted.wants = "one number between 0 and 1"
    guess = number(predicted())
    assert 0 <= guess <= 1, f"predict a share between 0 and 1, not {guess}"
    cases = [
        ([False, True, False], 4, 0.0, "windows side by side share no token"),
        ([False, True, True], 3, 1 / 7, "of tokens 3 to 9, training has seen token 3"),
        ([False, True, False], 2, 1.0, "a neighbour holds each half of the window"),
        ([True, True, False], 2, 2 / 6, "of tokens 0 to 5, training has seen 4 and 5"),
    ]
    for is_val, stride, wanted, why in cases:
        found = number(answer(list(is_val), 4, stride))
        case = f"is_val {is_val}, length 4, stride {stride}"
        if stride == 3:
            assert not math.isclose(found, 1 / 4, abs_tol=1e-5), (
                f"{case}: that is a share of the training tokens; divide by the number "
                "of validation tokens"
            )
            assert not math.isclose(found, 1 / 8, abs_tol=1e-5), (
                f"{case}: token 6 lies in two validation windows; count it once"
            )
        assert math.isclose(found, wanted, abs_tol=1e-5), (
            f"{case}: wanted {wanted:.3f} ({why}), found {found:.3f}"
        )
    generator = torch.Generator().manual_seed(9)
    is_val = (torch.rand(5_000, generator=generator) < 0.1).tolist()
    shares = [number(answer(list(is_val), 64, stride)) for stride in (64, 32)]
    print(f"windows side by side:    {shares[0]:.2f}")
    print(f"stride of half a window: {shares[1]:.2f}; predicted: {guess:.2f}")
    print("Right: such a validation loss would praise the model for reciting.")


@checked("5.10", wants="a tensor (B, T, C)", keeps=True)
def on_average(answer: Callable, predicted: Callable) -> None:
    """A head writes its mean everywhere; any prediction will do."""
    generator = torch.Generator().manual_seed(10)
    written = torch.rand(2, 3, 8, generator=generator)
    for head in (1, 3):
        found = tensor(answer(written, head, 2), 2, 3, 8)
        own = slice(2 * head, 2 * head + 2)
        others = [i for i in range(8) if i not in (2 * head, 2 * head + 1)]
        assert close(found[..., others], written[..., others]), (
            f"head {head} of width 2 has the columns {own.start} and {own.stop - 1}; "
            "leave the others as they are"
        )
        assert not close(found[..., own], torch.zeros(2, 3, 2)), (
            "those are zeros; the head should write its mean"
        )
        assert not close(found[..., own], written[..., own]), (
            f"columns {own.start} and {own.stop - 1} are as they were: the exercise is "
            "still unanswered, or you changed another head"
        )
        assert (found[..., own] == found[0, 0, own]).all(), (
            "the mean should be the same for each text and each position, so it is one "
            "over B and T"
        )
        assert not close(found[0, 0, own], written[..., own].mean().expand(2)), (
            "each column has a mean of its own; do not mix them"
        )
        wanted = written[..., own].mean(dim=(0, 1))
        assert close(found[0, 0, own], wanted), (
            f"the means of the columns are {wanted.tolist()}, "
            f"not {found[0, 0, own].tolist()}"
        )
    predicted.wants = "one word"
    guess = one_of(predicted(), ["back", "lost"])
    everything, zeros, means = _places_named(lambda *given: answer(*given))
    print(f"places named right, with all heads: {everything:.2f}")
    print(f"one head writes zeros: {zeros:.2f}; its mean: {means:.2f}")
    came = "back" if means > (everything + zeros) / 2 else "lost"
    print(f"With the mean the places are {came}; predicted: {guess}.")
    print("Right: now you know whether the zeros were to blame.")


@torch.no_grad()
def _places_named(on_average: Callable) -> tuple[float, float, float]:
    """With all heads, and with zeros or the mean of the one for places."""
    model, tokenizer = load_storyteller()
    exam = ladder.exam(20, ladder.REPORTING, simple=True)
    D = model.cfg["emb_dim"] // model.cfg["n_heads"]

    def where(change: Callable | None = None) -> float:
        hooks = []
        if change is not None:
            layer = model.trf_blocks[-1].att.out_proj
            hooks.append(
                layer.register_forward_pre_hook(lambda _, given: (change(given[0]),))
            )
        try:
            return ladder.examine(model, tokenizer, exam)["where"]
        finally:
            for hook in hooks:
                hook.remove()

    def silent(head: int) -> Callable:
        columns = torch.arange(model.cfg["emb_dim"]) // D == head
        return lambda written: written.masked_fill(columns, 0.0)

    zeros = [where(silent(head)) for head in range(model.cfg["n_heads"])]
    head = zeros.index(min(zeros))
    return where(), zeros[head], where(lambda written: on_average(written, head, D))
