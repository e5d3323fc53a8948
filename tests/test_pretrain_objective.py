"""The losses of pretraining: a part of the vocabulary, a guide for three heads."""

import math

import pytest
import torch
import torch.nn.functional as F

from ch05_pretraining.copying import (
    PROMPTS,
    Guide,
    asked_for_words,
    follows_the_same,
    induction_scores,
    random_text_twice,
    repeat_losses,
)
from pretrain.objective import Objective, PartOfVocabulary
from shared.ch02 import get_tokenizer
from shared.ch03 import attention_weights
from shared.ch04 import GPTModel
from shared.ch05 import load_base

V, T = 40, 12
COUNTS = torch.arange(V, 0, -1, dtype=torch.float64) ** 3


def small_gpt(n_layers=4, seed=1):
    torch.manual_seed(seed)
    sizes = {"vocab_size": V, "context_length": T, "emb_dim": 16, "n_heads": 2}
    rest = {"n_layers": n_layers, "drop_rate": 0.0, "qkv_bias": True}
    return GPTModel({**sizes, **rest, "tie_weights": True})


def test_a_part_holds_the_common_tokens_and_all_targets():
    part = PartOfVocabulary(COUNTS, 10, 6)
    targets = torch.tensor([[3, 39, 20], [20, 0, 38]])
    ids, places = part.choose(targets)
    assert ids[:10].tolist() == list(range(10)) and len(ids.unique()) == len(ids)
    assert torch.equal(ids[places], targets)
    assert torch.all(part.log_q[:10] == 0) and torch.all(part.log_q[10:] < 0)


def test_rare_tokens_count_as_often_as_their_chance_says():
    """On average over batches, the sum over the part is the sum over all tokens."""
    torch.manual_seed(0)
    part, scores = PartOfVocabulary(COUNTS, 5, 8), torch.randn(V)
    share, sums = (COUNTS + 1) / (COUNTS + 1).sum(), []
    for _ in range(4000):
        targets = torch.multinomial(share, 8, replacement=True).view(2, 4)
        ids, _ = part.choose(targets)
        sums.append((scores - part.log_q)[ids].exp().sum())
    sums = torch.stack(sums)
    error = sums.std().item() / math.sqrt(len(sums))
    assert abs(sums.mean().item() - scores.exp().sum().item()) < 4 * error
    assert error < 0.02 * scores.exp().sum().item()


def test_the_whole_vocabulary_as_a_part_gives_the_whole_loss():
    gpt, ids = small_gpt(), torch.randint(V, (3, T + 1))
    part = PartOfVocabulary(COUNTS, V, 3 * T)
    loss = Objective(gpt, [part, None])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    whole = F.cross_entropy(gpt(inputs).flatten(0, 1), targets.flatten())
    for stage in (0, 1, None):
        assert torch.allclose(loss(inputs, targets, stage), whole, atol=1e-5)


def test_where_the_likes_of_a_token_were_followed():
    ids = torch.tensor([[5, 6, 5, 7, 5], [1, 2, 3, 4, 0]])
    expected = torch.zeros(2, 5, 5, dtype=torch.bool)
    expected[0, 2, 1] = expected[0, 4, 1] = expected[0, 4, 3] = True
    assert torch.equal(follows_the_same(ids), expected)


def test_the_guide_measures_attention_and_what_heads_say():
    """Its sum, from the weights of chapter 3 and loops over positions."""
    gpt = small_gpt()
    guide, ids = Guide(gpt), torch.tensor([[1, 2, 3, 1, 2, 3, 9, 1, 9]])
    inputs = {}
    for i in (1, 2, 3):
        gpt.trf_blocks[i].att.register_forward_pre_hook(
            lambda _, given, i=i: inputs.update({i: given[0]})
        )
    targets = torch.cat([ids[:, 1:], torch.tensor([[4]])], dim=1)
    rows = gpt.out_head.weight
    gpt(ids)
    total = guide.loss(ids, rows, targets)
    weights = {
        i: attention_weights(gpt.trf_blocks[i].att, x)[0, 0] for i, x in inputs.items()
    }
    n, text = ids.shape[1], ids[0].tolist()
    wanted = -sum(weights[1][t, t - 1].log() for t in range(1, n)) / (n - 1)
    for i in (2, 3):
        found = []
        for t in range(n):
            after = [k for k in range(1, t + 1) if text[k - 1] == text[t]]
            if after:
                found.append(weights[i][t, after].sum().log())
        wanted -= sum(found) / len(found)
        att = gpt.trf_blocks[i].att
        said = []
        for t in range(1, n, 4):
            value = att.W_value(inputs[i][0, t])[:8]
            scores = gpt.final_norm(att.out_proj.weight[:, :8] @ value) @ rows.T
            said.append(F.cross_entropy(scores, ids[0, t]))
        wanted += sum(said) / len(said)
    assert torch.allclose(total, wanted, atol=1e-5)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_the_guide_fits_models_of_few_blocks(n_layers):
    loss = Objective(small_gpt(n_layers), [None], guided=True)
    ids = torch.randint(V, (2, T + 1))
    loss(ids[:, :-1], ids[:, 1:], 0, True).backward()


def test_guided_heads_learn_to_copy_a_random_text(monkeypatch):
    """With the guide a small model soon repeats random tokens; without it, not yet."""
    monkeypatch.setattr("pretrain.objective.GUIDE_WEIGHT", 0.5)
    ends = {}
    for guided in (True, False):
        gpt = small_gpt(seed=3)
        loss = Objective(gpt, [None], guided=True)
        optimizer = torch.optim.AdamW(gpt.parameters(), 3e-3)
        for step in range(200):
            ids = random_text_twice(32, T // 2, V, seed=step)
            loss(ids[:, :-1], ids[:, 1:], 0, guided).backward()
            optimizer.step()
            optimizer.zero_grad()
        test = random_text_twice(64, T // 2, V, seed=-1)
        ends[guided] = (
            repeat_losses(gpt, test)[1],
            induction_scores(gpt, test)[2:, 0].max().item(),
        )
    assert ends[True][0] < ends[False][0] - 0.5
    assert ends[True][1] > ends[False][1] + 0.3


def test_repeat_losses_are_those_of_a_loop():
    gpt, ids = small_gpt().eval(), random_text_twice(3, 5, V)
    assert torch.equal(ids[:, :5], ids[:, 5:]) and ids.max() > 20
    sums = {1: [], 2: []}
    for row in ids:
        for t in range(1, 10):
            if t != 5:
                scores = gpt(row[None, :t])[0, -1]
                sums[1 + t // 5].append(F.cross_entropy(scores, row[t]).item())
    first, second = repeat_losses(gpt, ids)
    assert math.isclose(first, sum(sums[1]) / 12, abs_tol=1e-5)
    assert math.isclose(second, sum(sums[2]) / 12, abs_tol=1e-5)


def test_induction_scores_are_those_of_a_loop():
    gpt, ids = small_gpt().eval(), random_text_twice(2, 5, V)
    inputs = []
    gpt.trf_blocks[2].att.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    scores = induction_scores(gpt, ids)
    weights = attention_weights(gpt.trf_blocks[2].att, inputs[0])
    for head in range(2):
        seen = [weights[b, head, t, t - 4] for b in range(2) for t in range(5, 10)]
        assert torch.isclose(scores[2, head], sum(seen) / len(seen))
    assert scores.shape == (4, 2)
    assert not any(block.att._forward_pre_hooks for block in gpt.trf_blocks[:2])


def test_asked_for_words_are_compared_with_the_likeliest_token():
    tokenizer = get_tokenizer()
    lamp = tokenizer.encode(" lamp")[0]

    class AlwaysLamp(torch.nn.Embedding):
        def forward(self, ids):
            return F.one_hot(torch.full(ids.shape, lamp), 50_257).float()

    always_lamp = AlwaysLamp(1, 1)
    found = asked_for_words(always_lamp, tokenizer, [" lamp", " river"])
    assert found == [True, False] * len(PROMPTS)


@torch.no_grad()
def test_the_base_looks_back():  # long_run_deeper.ipynb counts the words it finds
    base = load_base().eval()
    text = random_text_twice(8, 40, base.cfg["vocab_size"])
    first, second = repeat_losses(base, text)
    assert second < first - 2
