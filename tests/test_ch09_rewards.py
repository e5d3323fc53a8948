"""Chapter 9: the losses by hand and as TRL has them, drawing, rewards, bad input."""

import copy
import json
import math
import re

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from ch09_rewards import asked_words, compare, pictures
from ch09_rewards import rewards as module
from ch09_rewards.guards import as_rewards
from shared.ch09 import (
    LONGEST,
    Story,
    dpo_loss,
    draw_answers,
    draw_requests,
    draw_tokens,
    fixed_log_probs,
    group_advantages,
    grpo_loss,
    kl_to_reference,
    learn,
    learner,
    make_optimizer,
    make_pairs,
    pad_stories,
    pick_best,
    rate_stories,
    request,
    tell_stories,
    token_log_probs,
    train_dpo,
    train_grpo,
    train_on_best,
)
from shared.data import FILES
from tests.models import TINY, Letters, random_gpt, same_weights

CONFIG = {**TINY, "context_length": 256}
END = 60


class Tokenizer(Letters):
    """Ids below 61, of which the last ends a text."""

    eot_token = END


def story(answer, prompt=(5, 6, 7), text="", words=("kite", "brave", "climb")):
    return Story(words, list(prompt), list(answer), text, answer[-1:] == [END])


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    return random_gpt(CONFIG)


STORIES = [
    story([1, 2, 3, END]),
    story([4, 5]),
    story([9, 8, 7, 6, 5], prompt=(3,)),
    story([END], prompt=(8, 8)),
]


# --- Drawing --------------------------------------------------------------------------


def test_tokens_are_drawn_by_their_probability():
    probs = torch.tensor([0.5, 0.0, 0.2, 0.3])
    drawn = draw_tokens(probs.log().expand(20_000, 4), chance())
    shares = drawn.bincount(minlength=4) / 20_000
    assert shares[1] == 0
    assert torch.allclose(shares, probs, atol=0.015)


def test_rows_draw_apart_and_the_same_seed_draws_the_same():
    logits = torch.full((2, 5), -torch.inf)
    logits[0, 3], logits[1, 4] = 0.0, 0.0
    assert draw_tokens(logits, chance()).tolist() == [3, 4]
    logits = torch.randn(50, 30, generator=chance())
    assert torch.equal(draw_tokens(logits, chance(1)), draw_tokens(logits, chance(1)))
    assert not torch.equal(
        draw_tokens(logits, chance(1)), draw_tokens(logits, chance(2))
    )


def one_by_one(model, prompt, limit, temperature):
    """The likeliest tokens after one prompt, without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + limit:
            logits = model(torch.tensor([ids]))[0, -1] / temperature
            ids.append(logits.argmax().item())
            if ids[-1] == END:
                break
    return ids[len(prompt) :]


def test_drawing_together_is_drawing_one_by_one(model):
    """At a temperature near 0 a draw is the likeliest token, whoever else is there."""
    letters = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(0, END, (n,), generator=letters).tolist()
        for n in (3, 9, 4, 4, 7, 5, 6, 3)
    ]
    sharp = copy.deepcopy(model)
    with torch.no_grad():  # so that some rows end early, and leave the cache
        sharp.out_head.weight[END] += 0.6 * sharp.out_head.weight[:END].mean(0)
        sharp.out_head.weight[END] *= 1.5
    found = draw_answers(sharp, prompts, 12, END, 1e-7, chance())
    wanted = [one_by_one(sharp, prompt, 12, 1e-7) for prompt in prompts]
    assert found == wanted
    assert draw_answers(sharp, prompts, 12, END, 1e-7, chance(), 3) == wanted
    lengths = {len(answer) for answer in found}
    assert len(lengths) > 1 and 12 in lengths, "no row left early: a weak test"


def test_an_answer_keeps_its_end_and_one_that_never_ends_is_cut(model):
    ending, endless = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        ending.final_norm.scale.zero_()
        endless.final_norm.scale.zero_()
        ending.final_norm.shift.fill_(1.0)
        endless.final_norm.shift.fill_(1.0)
        ending.out_head.weight[:] = 0.0
        endless.out_head.weight[:] = 0.0
        ending.out_head.weight[END] = 10.0
        endless.out_head.weight[END] = -10.0
    assert draw_answers(ending, [[1], [2, 3]], 6, END) == [[END], [END]]
    cut = draw_answers(endless, [[1], [2, 3]], 6, END, 1.0, chance())
    assert [len(answer) for answer in cut] == [6, 6]
    assert all(END not in answer for answer in cut)
    told = tell_stories(endless, Tokenizer(), [("a", "b", "c")], 2, chance())
    assert [len(each.answer) for each in told] == [LONGEST] * 2
    assert not any(each.ended for each in told)
    empty = tell_stories(ending, Tokenizer(), [("a", "b", "c")], 2, chance())
    assert [each.text for each in empty] == ["", ""]
    rated = rate_stories(empty + told, random_gpt(CONFIG, 4))
    assert torch.isfinite(torch.tensor(rated.values)).all()
    assert (rated["whole"] == 0).all() and (rated["reward"] < 0).all()


def test_stories_come_in_the_order_of_their_requests(model):
    asked = [("a", "b", "c"), ("d", "e", "f")]
    told = tell_stories(model, Tokenizer(), asked, 3, chance())
    assert [each.words for each in told] == [asked[0]] * 3 + [asked[1]] * 3
    assert told[0].prompt == Tokenizer().encode(request(asked[0]))


def test_the_model_stays_in_its_mode(model):
    model.train()
    draw_answers(model, [[1, 2]], 3, END)
    assert model.training
    model.eval()


# --- Log-probabilities ----------------------------------------------------------------


def test_log_probs_are_those_of_each_story_alone(model):
    ids, targets = pad_stories(STORIES)
    found = fixed_log_probs(model, ids, targets, temperature=0.7, batch_size=3)
    for row, each in enumerate(STORIES):
        text = torch.tensor(each.prompt + each.answer)
        with torch.no_grad():
            logits = model(text[None, :-1])[0].double() / 0.7
        begin = len(each.prompt) - 1
        wanted = logits.log_softmax(-1)[begin:]
        wanted = wanted.gather(1, text[begin + 1 :, None])[:, 0]
        counts = targets[row] != -100
        assert torch.equal(targets[row][counts], torch.tensor(each.answer))
        assert torch.allclose(found[row][counts].double(), wanted, atol=1e-4)
        assert (found[row][~counts] == 0).all()
    assert not found.requires_grad
    again = token_log_probs(model, ids, targets, 0.7)
    assert again.requires_grad and torch.allclose(again, found, atol=1e-5)


def test_in_mixed_precision_the_ratio_is_1_at_the_start(model):
    """GRPO compares ln p of one block: float32 after products in bfloat16, twice."""
    ids, targets = pad_stories(STORIES)
    plain = fixed_log_probs(model, ids, targets)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        old = fixed_log_probs(model, ids, targets, batch_size=3)
        new = token_log_probs(model, ids[1:3], targets[1:3])
    assert old.dtype == new.dtype == torch.float32
    assert (old != plain).any(), "the products were not in bfloat16: a weak test"
    assert torch.allclose(old, plain, atol=0.05)
    assert (new - old[1:3]).abs().max() < 0.01


# --- Rewards --------------------------------------------------------------------------

LONG = (
    "Once upon a time there was a brave girl with a kite. One day it flew into a tall "
    "tree, and she climbed up to get it. Her mother was proud of her and made a big "
    "cake for all of her friends in the village."
)


def flat_model():
    """A model for which all tokens are equally likely."""
    model = random_gpt(CONFIG)
    with torch.no_grad():
        model.out_head.weight.zero_()
    return model


def test_the_reward_is_the_sum_of_its_parts():
    told = [
        story([1] * 50 + [END], text=LONG),
        story([1] * 50, text=LONG),  # cut off
        story([1, END], text="Kite, brave, climb."),  # too short
        story([1] * 50 + [END], text=LONG.replace("kite", "car") + " A cat sat there"),
        story([1] * 50 + [END], text="The cat sat on the mat. " * 10),
    ]
    rated = rate_stories(told, flat_model())
    lacking = -1.5 + math.log(CONFIG["vocab_size"])  # ln p is -ln V everywhere
    assert rated["words"].tolist() == pytest.approx([1, 1, 1, 2 / 3, 0])
    assert rated["whole"].tolist() == [1, 0, 0, 0, 1]
    assert rated["repeats"].tolist() == pytest.approx([0, 0, 0, 0, 51 / 57])
    wanted = [1, 0.75, 0.75, 4 / 9 - 0.25, -51 / 57]
    assert rated["reward"].tolist() == pytest.approx(
        [r - lacking for r in wanted], abs=1e-4
    )
    found = compare.summary(told, flat_model())
    assert found["all words"] == pytest.approx(3 / 5)
    assert found["tokens"] == pytest.approx((51 + 50 + 2 + 51 + 51) / 5)


def test_more_fluent_than_asked_earns_nothing(monkeypatch):
    monkeypatch.setattr(module, "LEAST_FLUENT", -100.0)
    told = [story([1] * 50 + [END], text=LONG)]
    assert rate_stories(told, flat_model())["reward"].tolist() == pytest.approx([1])


# --- Choosing -------------------------------------------------------------------------

REWARDS = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.2, 0.2], [0.9, -1.0, 0.9]])
NINE = [story([i + 1, END]) for i in range(9)]


def test_best_and_pairs_leave_out_groups_of_equal_rewards():
    assert pick_best(NINE, REWARDS) == [NINE[1], NINE[6]]
    assert make_pairs(NINE, REWARDS) == [(NINE[1], NINE[0]), (NINE[6], NINE[7])]
    same = torch.full((3, 3), 0.7)
    assert pick_best(NINE, same) == [] and make_pairs(NINE, same) == []


def test_each_story_is_in_one_pair_and_pairs_differ_enough():
    rewards = torch.tensor([[0.3, 0.9, 0.1, 0.32]])
    wanted = [(NINE[1], NINE[2]), (NINE[3], NINE[0])]
    assert make_pairs(NINE[:4], rewards, least=0.01) == wanted
    assert make_pairs(NINE[:4], rewards) == wanted[:1]


# --- DPO ------------------------------------------------------------------------------


def test_dpo_by_hand_in_float64():
    chosen, rejected = [-10.0, -20.5, -3.0], [-12.0, -19.0, -3.0]
    known_chosen, known_rejected = [-11.0, -20.0, -2.0], [-11.0, -22.0, -4.0]
    beta = 0.3
    losses = []
    rows = zip(chosen, rejected, known_chosen, known_rejected, strict=True)
    for a, b, a0, b0 in rows:
        margin = beta * ((a - a0) - (b - b0))
        losses.append(math.log1p(math.exp(-margin)))
    arguments = [
        torch.tensor(x).double()
        for x in (chosen, rejected, known_chosen, known_rejected)
    ]
    loss, won, lost = dpo_loss(*arguments, beta)
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert won.tolist() == pytest.approx([0.3, -0.15, -0.3])
    assert lost.tolist() == pytest.approx([-0.3, 0.9, 0.3])


@pytest.mark.parametrize(
    ("beta", "loss", "chosen", "rejected"),
    [
        (0.1, 0.6758375046265731, 0.04291075184422555, -0.006879756095909841),
        (0.5, 0.7469118668020767, 0.21455375922112774, -0.03439878047954914),
    ],
)
def test_dpo_is_that_of_trl(beta, loss, chosen, rejected):
    """What `DPOTrainer._compute_loss` of TRL 1.16.0 gave for the same numbers."""
    draw = chance(6)
    new, known = (
        -2 * torch.rand(6, 5, generator=draw, dtype=torch.double) for _ in range(2)
    )
    for each in (new, known):  # two answers are shorter
        each[1, 3:] = 0
        each[5, 2:] = 0
    found = dpo_loss(*new.sum(1).chunk(2), *known.sum(1).chunk(2), beta)
    for ours, theirs in zip(found, (loss, chosen, rejected), strict=True):
        assert ours.mean().item() == pytest.approx(theirs, rel=1e-12)


def test_dpo_slope_is_beta_times_sigmoid_of_minus_the_margin():
    chosen = torch.tensor([2.0], dtype=torch.double, requires_grad=True)
    rejected = torch.tensor([1.0], dtype=torch.double, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.double)
    dpo_loss(chosen, rejected, zero, zero, 0.5)[0].backward()
    wanted = 0.5 / (1 + math.exp(0.5))
    assert chosen.grad.item() == pytest.approx(-wanted)
    assert rejected.grad.item() == pytest.approx(wanted)


def test_dpo_of_huge_margins_is_a_number():
    far = torch.tensor([1e4])
    zero = torch.zeros(1)
    assert dpo_loss(-far, far, zero, zero, 1.0)[0].item() == pytest.approx(2e4)
    assert dpo_loss(far, -far, zero, zero, 1.0)[0].item() == 0


def test_log_probs_on_the_book_s_toy_tensors():
    """Two rows of logits that the book's DPO notebook evaluates: 1.4185."""
    logits = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]])
    loss = F.cross_entropy(logits, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(1.4185, abs=1e-4)

    class Fixed(torch.nn.Module):
        """A model whose head returns these logits for the two targets."""

        def features(self, ids):
            return torch.stack([logits, logits])

        out_head = torch.nn.Identity()

    targets = torch.tensor([[0, -100], [-100, 2]])
    found = token_log_probs(Fixed(), torch.zeros(2, 2).long(), targets, 1.0)
    assert -found.sum().item() / 2 == pytest.approx(1.4185, abs=1e-4)


def test_training_by_dpo_moves_pairs_apart(model):
    policy, reference = learner(model), copy.deepcopy(model)
    pairs = [(NINE[1], NINE[0]), (NINE[6], NINE[7])]
    steps = train_dpo(policy, reference, 20 * pairs, 0.5, 1e-3, batch_size=2)
    assert steps["loss"].iloc[0] == pytest.approx(math.log(2), abs=1e-5)
    assert steps["loss"].iloc[-1] < 0.3
    assert steps["chosen"].iloc[-1] > steps["rejected"].iloc[-1]
    assert same_weights(reference, model)
    assert torch.equal(policy.tok_emb.weight, model.tok_emb.weight)


def test_training_on_the_best_makes_them_likelier(model):
    policy = learner(model)
    losses = train_on_best(policy, NINE[:3], 1e-3, num_epochs=10, generator=chance())
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.2


def test_the_rate_falls_over_all_steps_of_a_training(model, monkeypatch):
    planned = []
    monkeypatch.setattr(module, "let_rate_fall", lambda _, n: planned.append(n))
    steps = [len(train_on_best(learner(model), NINE, 1e-3, 4, num_epochs=3))]
    pairs = [(NINE[1], NINE[0])] * 5
    steps.append(len(train_dpo(learner(model), model, pairs, 0.1, 1e-3, batch_size=2)))
    assert planned == steps == [9, 3]


# --- GRPO -----------------------------------------------------------------------------


def test_advantages_by_hand():
    found = group_advantages(REWARDS.double())
    for row, rewards in zip(found.tolist(), REWARDS.tolist(), strict=True):
        mean = sum(rewards) / 3
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 2)
        wanted = [(r - mean) / (deviation + 1e-4) for r in rewards]
        assert row == pytest.approx(wanted, abs=1e-6)
    assert found[1].abs().max() < 1e-6  # equal rewards: nothing, and no nan
    trl = [-0.9998000399920016, 0.9998000399920016, 0.0]  # TRL 1.16.0
    assert found[0].tolist() == pytest.approx(trl, abs=1e-7)


@pytest.mark.parametrize("group", [2, 3, 7, 8, 64])
@pytest.mark.parametrize("reward", [0.1, -0.3, 100.3, 1000.7, 123456.7, 1e-30, 3e38])
def test_equal_rewards_have_no_advantage_at_all(reward, group):
    """Also where float32 rounds their mean."""
    rewards = torch.full((2, group), reward)
    rewards[0, 0] = rewards[0, 0] * 0.5
    found = group_advantages(rewards)
    assert found[1].tolist() == [0.0] * group
    assert reward == 3e38 or found[0].abs().min() > 0


def by_hand(new, old, known, advantages, counts, beta, clip):
    """The loss of GRPO, token by token, in Python's float64."""
    gains = []
    for row, A in enumerate(advantages):
        for t, counted in enumerate(counts[row]):
            if counted:
                ratio = math.exp(new[row][t] - old[row][t])
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                d = known[row][t] - new[row][t]
                gains.append(min(ratio * A, clipped * A) - beta * (math.exp(d) - d - 1))
    return -sum(gains) / len(gains)


def test_grpo_by_hand_and_as_trl_has_it():
    """`GRPOTrainer._compute_loss` of TRL 1.16.0, with `loss_type="bnpo"`."""
    draw = chance(5)
    new, old, known = (
        -2 * torch.rand(4, 6, generator=draw, dtype=torch.double) for _ in range(3)
    )
    advantages = torch.tensor([1.5, -0.7, 0.0, -1.0], dtype=torch.double)
    counts = torch.rand(4, 6, generator=draw) < 0.7
    for beta, clip, trl in (
        (0.0, 0.2, 0.1346216989806714),
        (0.3, 0.1, 0.2829854991326697),
        (1.0, 0.5, 0.4444146981820342),
    ):
        found = grpo_loss(new, old, known, advantages, counts, beta, clip).item()
        parts = [x.tolist() for x in (new, old, known, advantages, counts)]
        assert found == pytest.approx(by_hand(*parts, beta, clip), rel=1e-12)
        assert found == pytest.approx(trl, rel=1e-12)


def test_the_slope_at_the_start_is_the_policy_gradient():
    new = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old, counts = new.detach().clone(), torch.ones(1, 2, dtype=torch.bool)
    grpo_loss(new, old, old, torch.tensor([3.0]), counts, 0.5).backward()
    assert new.grad.tolist() == [[-1.5, -1.5]]  # -A / tokens, and the leash is slack


def test_a_token_that_went_far_enough_is_pushed_no_more():
    old, counts = torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
    new = torch.tensor([[0.5], [-0.5]], requires_grad=True)
    grpo_loss(new, old, old, torch.tensor([1.0, -1.0]), counts, 0.0).backward()
    assert new.grad.abs().max() == 0
    new = torch.tensor([[0.5], [-0.5]], requires_grad=True)
    grpo_loss(new, old, old, torch.tensor([-1.0, 1.0]), counts, 0.0).backward()
    assert (new.grad.abs() > 0).all()  # the wrong way: pushed back


def test_the_estimate_of_the_divergence_is_right_on_average():
    pi, pi_0 = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    each = kl_to_reference(pi.log(), pi_0.log())
    assert (each >= 0).all()
    exact = (pi * (pi / pi_0).log()).sum()
    assert (pi * each).sum().item() == pytest.approx(exact.item(), abs=1e-6)


def says_token_3(stories):
    return torch.tensor([each.answer.count(3) / len(each.answer) for each in stories])


def test_training_by_grpo_raises_the_reward(model):
    policy, reference = learner(model), copy.deepcopy(model)
    steps = train_grpo(
        *(policy, reference, Tokenizer(), [("a", "b", "c")] * 12, says_token_3),
        beta=0.0,
        learning_rate=3e-3,
        requests_at_once=1,
        batch_size=4,
        generator=chance(),
    )
    assert len(steps) == 12 and steps["kl"].iloc[0] == pytest.approx(0, abs=1e-5)
    assert steps["reward"].iloc[-3:].mean() > 2 * steps["reward"].iloc[:3].mean() + 0.05
    assert same_weights(reference, model)


def test_equal_rewards_teach_nothing(model):
    policy = learner(model)
    train_grpo(
        *(policy, copy.deepcopy(model), Tokenizer(), [("a", "b", "c")]),
        lambda stories: torch.ones(len(stories)),
        beta=0.0,
        learning_rate=1e-2,
        group=2,
        generator=chance(),
    )
    assert same_weights(policy, model)


def test_the_rate_falls_to_zero(model):
    weight, moved = learner(model), []
    optimizer = make_optimizer(weight, 1e-3, 4)
    shift = weight.final_norm.shift
    for _ in range(4):
        before = shift.detach().clone()
        learn(optimizer, [1], lambda _: shift.sum(), 1)
        moved.append((shift - before).abs().mean().item())
    assert moved == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4], rel=1e-2)


def test_each_example_is_learned_once_a_pass(model):
    seen, shift = [], learner(model).final_norm.shift

    def loss_of(batch):
        seen.append(batch)
        return shift.sum()

    optimizer = torch.optim.SGD([shift], 0.0)
    assert len(learn(optimizer, range(7), loss_of, 3, chance())) == 3
    assert [len(batch) for batch in seen] == [3, 3, 1]
    assert sorted(sum(seen, [])) == list(range(7)) != sum(seen, [])


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_dpo_refuses_a_beta_without_sense(model, beta):
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="beta must be above 0"):
        dpo_loss(zero, zero, zero, zero, beta)


@pytest.mark.parametrize("beta", [-0.1, math.nan])
def test_grpo_refuses_a_beta_below_0(beta):
    zero = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="beta must be 0 or more"):
        grpo_loss(zero, zero, zero, torch.zeros(1), zero == 0, beta)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (torch.ones(4), "shape"),
        (torch.ones(4, 1), "compared with nothing"),
        (torch.tensor([[1.0, math.nan]]), "a reward is nan"),
        (torch.tensor([[1.0, -math.inf]]), "a reward is -inf"),
    ],
)
def test_groups_that_are_none_are_refused(rewards, message):
    for use in (group_advantages, lambda r: pick_best(NINE, r)):
        with pytest.raises(ValueError, match=message):
            use(rewards)
    with pytest.raises(ValueError, match=message):
        make_pairs(NINE, rewards)


def test_a_reference_that_is_the_policy_is_refused(model):
    policy = learner(model)
    half = copy.deepcopy(model)
    half.trf_blocks[0].ff = policy.trf_blocks[0].ff
    pairs = [(NINE[1], NINE[0])]
    for reference in (policy, half):
        with pytest.raises(ValueError, match="the reference is the model itself"):
            train_dpo(policy, reference, pairs, 0.1, 1e-3)
        with pytest.raises(ValueError, match="the reference is the model itself"):
            train_grpo(
                *(policy, reference, Tokenizer(), [("a", "b", "c")], says_token_3),
                beta=0.1,
                learning_rate=1e-3,
            )


def test_a_pair_of_equal_texts_is_refused(model):
    pairs = [(NINE[1], NINE[0]), (NINE[2], story([3, END]))]
    with pytest.raises(ValueError, match="both answers of pair 1 are the same"):
        train_dpo(learner(model), copy.deepcopy(model), pairs, 0.1, 1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: pad_stories([story([1]), story([])]), "answer 1 has no token"),
        (lambda m: pad_stories([]), "prompts is empty|answers is empty|is empty"),
        (lambda m: rate_stories([story([])], m), "answer 0 has no token"),
        (lambda m: train_on_best(m, [], 1e-3), "stories is empty"),
        (lambda m: train_dpo(learner(m), m, [], 0.1, 1e-3), "pairs is empty"),
        (lambda m: tell_stories(m, Tokenizer(), []), "requests is empty"),
        (lambda m: draw_answers(m, [[]], 3, END), "prompt 0 is empty"),
        (lambda m: draw_answers(m, [], 3, END), "prompts is empty"),
        (lambda m: draw_answers(m, [[1]], 0, END), "max_new_tokens must be 1 or more"),
        (lambda m: draw_answers(m, [[1]], 3, END, 0.0), "temperature must be above 0"),
        (lambda m: draw_answers(m, [[1]], 300, END), "300|301|context"),
    ],
)
def test_what_makes_no_sense_is_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda n: [1.0] * (n - 1), "reward gave 3 for 4 stories"),
        (lambda n: [1.0] * (2 * n), "reward gave 8 for 4 stories"),
        (lambda n: iter([1.0]), "reward gave 1 for 4 stories"),
        (lambda n: torch.ones(2, n), "reward gave 2 for 4 stories"),
        (lambda n: 0.5, "reward gave 0.5; it must return one number for each of the 4"),
        (lambda n: torch.tensor(0.5), "reward gave tensor.0.5"),
        (lambda n: None, "reward gave None; it must"),
        (lambda n: {"a": 1}, "reward gave .'a': 1"),
        (lambda n: torch.ones(n, 2), "reward 0 is tensor"),
        (lambda n: [1.0, None, 1.0, 1.0], "reward 1 is None; it must"),
        (lambda n: ["1"] * n, "reward 0 is '1'"),
        (lambda n: [1.0, math.nan, 1.0, 1.0], "a reward is nan"),
    ],
)
def test_a_reward_function_gives_one_number_for_each_story(model, gives, message):
    policy = learner(model)
    before = copy.deepcopy(policy)
    words = [("cat", "big", "run")] * 2
    with pytest.raises((TypeError, ValueError), match=message):
        train_grpo(
            policy,
            model,
            Tokenizer(),
            words,
            lambda stories: gives(len(stories)),
            0.0,
            1e-3,
            group=2,
        )
    assert same_weights(policy, before)


@pytest.mark.parametrize(
    "given",
    [[1, 2.5], (True, 0), torch.tensor([[1.0], [2.0]]), pd.Series([1, 2], [5, 7])],
)
def test_rewards_may_come_in_any_list(given):
    found = as_rewards(given, 2)
    assert found.dtype == torch.float32 and found.shape == (2,)
    assert found.tolist() == [float(x) for x in given]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fox", "three words such as .*, not 'fox'"),
        ("kite", "three words such as .*, not 'kite'"),
        (("fox", "run"), "has three words.* has 2"),
        (["a", "b", "c", "d"], "has three words.* has 4"),
        (("fox", 3, "run"), "3 in .* is no word"),
        (("fox", "", "run"), "has an empty word"),
        (None, "three words such as .*, not None"),
    ],
)
def test_a_request_is_three_words(model, words, message):
    for use in (request, lambda x: tell_stories(model, Tokenizer(), [x])):
        with pytest.raises((TypeError, ValueError), match=message):
            use(words)


def test_a_frozen_model_is_refused_before_any_story(model):
    frozen = learner(model).requires_grad_(False)  # as it is after merge_lora
    calls = [
        lambda: train_on_best(frozen, NINE, 1e-3),
        lambda: train_dpo(frozen, model, [(NINE[1], NINE[0])], 0.1, 1e-3),
        lambda: train_grpo(frozen, model, None, [("a", "b", "c")], None, 0.0, 1e-3),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match="frozen, so none could learn; train learn"
        ):
            call()


def test_a_reward_that_is_no_number_is_refused_before_any_step(model):
    policy = learner(model)
    with pytest.raises(ValueError, match="a reward is nan"):
        train_grpo(
            *(policy, copy.deepcopy(model), Tokenizer(), [("a", "b", "c")]),
            lambda stories: torch.full((len(stories),), math.nan),
            beta=0.1,
            learning_rate=1e-2,
            group=2,
        )
    assert same_weights(policy, model)


# --- Requests and the records ---------------------------------------------------------


def test_no_request_to_learn_from_has_a_held_out_word():
    kept = {word for words in draw_requests(1300, 1, held_out=True) for word in words}
    learned = {word for words in draw_requests(3000, 2) for word in words}
    assert not kept & learned
    assert set(asked_words.EXAMPLE) <= kept
    everything = {*asked_words.THINGS, *asked_words.QUALITIES, *asked_words.ACTIONS}
    assert kept | learned == everything
    assert len(everything) == 130  # no word twice


def test_requests_differ_and_come_back_with_their_seed():
    found = draw_requests(500, 7)
    assert len(set(found)) == 500 and found == draw_requests(500, 7)
    assert found != draw_requests(500, 8)


@pytest.mark.parametrize("number", [0, -1, 1301])
def test_more_requests_than_there_are_is_refused(number):
    with pytest.raises(ValueError, match="choose a number from 1 to 1300"):
        draw_requests(number, 1, held_out=True)


def test_points_count_every_time():
    told = story([1], text="A kite! The kite climbed. Kites climb, brave kites.")
    assert compare.points(told) == 7


def test_different_fours():
    told = [story([1], text="a b c d e"), story([1], text="a b c d")]
    assert compare.different_fours(told) == pytest.approx(2 / 3)
    assert compare.different_fours(told, 2) == 1
    assert compare.different_fours([]) == 0


def test_the_divergence_of_a_model_from_itself_is_0(model):
    assert compare.divergence(model, model, STORIES) == 0


RUNS = [
    {
        "seed": seed,
        "drawn": {"base": 0, "DPO": 1000 + seed},
        "scores": {"base": {"a": 0.5, "b": 1.0}, "DPO": {"a": 0.5 + seed, "b": 2.0}},
    }
    for seed in (1, 2)
]


def test_a_table_has_means_and_spreads():
    found = compare.table({"runs": RUNS}, ["a", "b"])
    assert found.loc["base"].tolist() == ["0.50 ± 0.00", "1.00 ± 0.00"]
    assert found.loc["DPO"].tolist() == ["2.00 ± 0.71", "2.00 ± 0.00"]
    assert compare.table({"runs": RUNS[:1]}, ["a"]).loc["DPO", "a"] == "1.50 ± 0.00"
    assert compare.facts({"runs": RUNS}).startswith("2 seeds; 1,001 to 1,002 tokens")


@pytest.mark.parametrize("path", [compare.RECORD, compare.GAMED, compare.INSTRUCTED])
def test_the_records_are_of_this_base_and_these_settings(path):
    made_of = compare.read_record(path)["made_of"]
    assert json.loads(json.dumps(compare.made_of())).items() <= made_of.items()
    assert made_of["base"] == FILES["base/model.safetensors"].sha256
    assert made_of.get("instructions") in (None, compare.instructions.made_of())


def test_other_abilities_are_before_and_after():
    found, record = compare.other_abilities(), compare.read_record(compare.INSTRUCTED)
    assert list(found.index) == ["before", "after"]
    for name, row in found.iterrows():
        wanted = 100 * record[name]["scores"]["closed, test"]
        assert row["closed, test"] == pytest.approx(wanted, abs=0.051)


def test_the_record_s_methods_drew_equally_much():
    for kept in compare.read_record()["runs"]:
        drawn = [n for n in kept["drawn"].values() if n]
        assert len(drawn) == 3
        assert max(drawn) < 1.25 * min(drawn)
        for scores in kept["scores"].values():
            assert 0 <= scores["all words"] <= scores["words"] <= 1
            assert scores["reward"] <= 1


def test_the_command_keeps_the_seeds_that_it_has(tmp_path, monkeypatch, capsys):
    begun = []

    def run(seed, device):
        begun.append(seed)
        return {**compare.read_record()["runs"][0], "seed": seed}

    monkeypatch.setattr(compare, "run", run)
    out = tmp_path / "record.json"
    compare.main(["--seeds", "1", "--out", str(out)])
    compare.main(["--seeds", "2", "--out", str(out)])
    assert begun == [123, 124]
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [kept["seed"] for kept in record["runs"]] == begun
    assert record["made_of"] == json.loads(json.dumps(compare.made_of()))
    assert "2 seeds; " in capsys.readouterr().out


def test_the_drawing_of_four_ways_has_no_minus_zero():
    labels = re.findall(r">(-?\d\.\d)<", pictures.four_ways().svg)
    assert len(labels) == 5 * len(pictures.REWARDS)
    assert "0.0" in labels and "-0.0" not in labels
