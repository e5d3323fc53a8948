"""Appendix F: each fast way against the plain way, and bad input."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import TINY, random_gpt
from torch import nn

from shared.appendix_f import (
    KeptBelow,
    PackedLinear,
    chunked_cross_entropy,
    generate_fast,
    guess_next,
    packed,
    quantised,
    read_at,
    read_last,
    speculate,
    stream,
)
from shared.ch05 import calc_loss_batch, evaluating, generate
from shared.ch06 import (
    GPTClassifier,
    calc_classification_loss,
    class_logits,
    set_trainable,
)
from shared.ch08 import Int4Linear, Int8Linear, dequantize_q4_1, quantize_q4_1

V, CONTEXT = TINY["vocab_size"], TINY["context_length"]
MKL = torch.backends.mkl.is_available()
few = settings(max_examples=25, deadline=None)
ids = st.integers(0, V - 1)
# float64: no two logits are so near that rounding could choose between them
MODEL = random_gpt({**TINY, "qkv_bias": True}).double()


def make_model(seed=0, **changes):
    return random_gpt({**TINY, **changes}, seed)


def make_ids(*shape):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


# The loss in chunks


def loss_and_gradients(loss_of, *tensors):
    tensors = [t.clone().requires_grad_() for t in tensors]
    loss = loss_of(*tensors)
    (3 * loss).backward()  # not 1, so that the gradient from above matters
    return [loss.detach(), *(t.grad for t in tensors)]


def plain(features, weight, targets):
    logits = features @ weight.t()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@few
@given(
    shape=st.sampled_from([(1,), (5,), (2, 3), (2, 2, 4)]),
    chunk=st.integers(1, 20),
    ignored=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_loss_in_chunks_is_the_loss_and_so_are_its_gradients(
    shape, chunk, ignored, seed
):
    chance = torch.Generator().manual_seed(seed)
    features = torch.randn(*shape, 7, generator=chance, dtype=torch.float64)
    weight = 3 * torch.randn(11, 7, generator=chance, dtype=torch.float64)
    targets = torch.randint(11, shape, generator=chance)
    left_out = torch.rand(shape, generator=chance) < ignored
    left_out.view(-1)[0] = False
    targets[left_out] = -100
    expected = loss_and_gradients(
        lambda f, w: plain(f[None], w, targets[None]), features, weight
    )
    found = loss_and_gradients(
        lambda f, w: chunked_cross_entropy(f, w, targets, chunk), features, weight
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_handed_out_once():
    """They are not copied; so a second time they would be wrong, and are refused."""
    features, weight = torch.randn(5, 3), torch.randn(4, 3, requires_grad=True)
    loss = chunked_cross_entropy(features, weight, torch.tensor([0, 3, -100, 1, 1]))
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_loss_far_from_the_target_does_not_overflow():
    features, weight = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]])
    loss = chunked_cross_entropy(features, weight, torch.tensor([1]))
    assert loss.item() == pytest.approx(2e4)


def test_a_model_with_a_tied_head_gets_the_same_gradients():
    grads, inputs, targets = [], make_ids(3, 9), make_ids(3, 9)
    for chunked in (False, True):
        model = make_model(tie_weights=True).train()
        if chunked:
            weight = model.out_head.weight
            loss = chunked_cross_entropy(model.features(inputs), weight, targets, 4)
        else:
            loss = calc_loss_batch(inputs, targets, model, "cpu")
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_under_autocast_the_loss_is_that_of_bfloat16_products():
    features, weight, targets = torch.randn(6, 8), torch.randn(9, 8), make_ids(6) % 9
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradients(
            lambda f, w: chunked_cross_entropy(f, w, targets, 4), features, weight
        )
    exact = loss_and_gradients(
        lambda f, w: plain(f[None], w, targets[None]), features, weight
    )
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
    assert not torch.equal(found[0], exact[0])


def test_sums_of_bfloat16_are_kept_in_float32():
    features, weight, targets = torch.randn(6, 8), torch.randn(9, 8), make_ids(6) % 9
    features, weight = features.bfloat16(), weight.bfloat16()
    found = chunked_cross_entropy(features, weight, targets, 4)
    wanted = F.cross_entropy((features @ weight.t()).float(), targets)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_results_are_where_the_features_are():
    """And not on the device on which new tensors are made."""
    model, x, last = make_model(), torch.randn(2, 5, 24), torch.tensor([4, 1])
    features, weight, targets = torch.randn(6, 8), torch.randn(9, 8), make_ids(6) % 9
    with torch.device("meta"):
        loss = chunked_cross_entropy(features, weight, targets)
        vectors = read_last(model.trf_blocks[0], x, last)
    torch.testing.assert_close(loss, chunked_cross_entropy(features, weight, targets))
    torch.testing.assert_close(vectors, model.trf_blocks[0](x)[range(2), last])


@pytest.mark.parametrize(
    ("shapes", "chunk", "message"),
    [
        (((4, 8), (9, 8), (4,)), 0, "chunk must be 1 or more, not 0"),
        (((4, 8), (9, 7), (4,)), 2, r"do not fit; they should be \(..., C\)"),
        (((4, 8), (9, 8), (5,)), 2, r"targets \(5,\) do not fit"),
    ],
)
def test_what_the_loss_refuses(shapes, chunk, message):
    features, weight, targets = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        chunked_cross_entropy(features, weight, targets.long(), chunk)
    with pytest.raises(ValueError, match="no target counts"):
        nothing = torch.full((2,), -100)
        chunked_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), nothing)


# Finetuning without what is frozen

PAD = 60
PARTS = ["head", "last block", "two blocks"]


def make_classifier(part, **changes):
    torch.manual_seed(3)
    classifier = GPTClassifier(make_model(**changes), pad_token_id=PAD)
    set_trainable(classifier, part.replace("two blocks", "last block"))
    if part == "two blocks":
        classifier.gpt.trf_blocks[-2].requires_grad_(True)
    return classifier


def make_messages(*lengths):
    """Messages with padding on the right, (B, 12): some have a text in common."""
    texts = make_ids(len(lengths), 12) % PAD
    for text, length in zip(texts, lengths, strict=True):
        text[length:] = PAD
    return texts


@few
@given(data=st.data(), bias=st.booleans())
def test_a_block_read_at_one_place_is_the_block(data, bias):
    B, T = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    last = data.draw(st.lists(st.integers(0, T - 1), min_size=B, max_size=B))
    model = make_model(qkv_bias=bias).double()
    x = torch.randn(B, T, 24, dtype=torch.float64)
    results = []
    for read in (
        lambda block, x: block(x)[range(B), last],
        lambda block, x: read_last(block, x, torch.tensor(last)),
    ):
        block, inputs = model.trf_blocks[1], x.clone().requires_grad_()
        block.zero_grad()
        y = read(block, inputs)
        y.square().sum().backward()
        results.append([y.detach(), inputs.grad, *(p.grad for p in block.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_kept_gives_the_same_logits(part):
    """In every batch, beside every other text, and however long the padding."""
    classifier = make_classifier(part)
    fast, ids = KeptBelow(classifier), make_messages(5, 12, 1, 7)
    for rows in ([0, 1], [1], [2, 3, 0], [3, 2, 1, 0]):
        torch.testing.assert_close(fast(ids[rows]), classifier(ids[rows]))
        with evaluating(fast):
            found = class_logits(fast, ids[rows, :7], "cpu")
        torch.testing.assert_close(found, classifier(ids[rows, :7]))
    nothing = torch.full((1, 3), PAD)
    torch.testing.assert_close(fast(nothing), classifier(nothing))


@pytest.mark.parametrize("part", PARTS)
def test_training_on_what_is_kept_is_training(part):
    batches = [(make_messages(5, 12, 3), torch.tensor([0, 1, 1]))]
    batches += [(make_messages(2, 2, 9), torch.tensor([1, 0, 1]))]
    found = []
    for wrap in (lambda classifier: classifier, KeptBelow):
        classifier = make_classifier(part).double()
        model = wrap(classifier).train()
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=0.01)
        losses = []
        for ids, labels in batches * 4:
            loss = calc_classification_loss(ids, labels, model, "cpu")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append([torch.tensor(losses), *classifier.state_dict().values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert found[0][0][-1] < found[0][0][0]


def test_a_frozen_block_reads_a_text_once():
    classifier, read = make_classifier("last block"), []
    frozen = classifier.gpt.trf_blocks[0]
    frozen.register_forward_hook(lambda m, x, y: read.append(y.shape[0]))
    fast, ids = KeptBelow(classifier), make_messages(5, 12, 1, 7)
    for rows in ([0, 1], [1, 2], [0, 1, 2], [3], [3, 0, 2, 1]):
        fast(ids[rows])
    assert read == [2, 1, 1]
    assert sum(kept.shape[0] for kept in fast.kept.values()) == 5 + 12 + 1 + 7


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("all", {}, r"the embeddings learn, .* set_trainable\(classifier"),
        ("head", {"drop_rate": 0.1}, "drop_rate 0.1 .* a model with drop_rate 0"),
    ],
)
def test_what_cannot_be_kept(part, changes, message):
    with pytest.raises(ValueError, match=message):
        KeptBelow(make_classifier(part, **changes))


# Layout

VARIANTS = [
    {"qkv_bias": bias, "tie_weights": tied}
    for bias in (False, True)
    for tied in (False, True)
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 24])
def test_a_packed_model_gives_the_same_logits_and_texts(rows, variant):
    model, text = make_model(**variant), make_ids(2, 12)
    twin = packed(model, rows)
    layers = [m for m in twin.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == 3 * 6 + 1
    assert all((m.tiles is not None) == MKL for m in layers)
    assert torch.allclose(twin(text), model(text), atol=1e-5)  # 24 vectors, or 2
    prompts = make_ids(rows, 4).tolist()
    assert generate_fast(twin, prompts, 9, 16) == generate_fast(model, prompts, 9, 16)


def test_packing_takes_the_parameters_over_and_leaves_the_model_alone():
    model = make_model(tie_weights=True).train()
    kinds, text = [type(m) for m in model.modules()], make_ids(2, 9)
    twin = packed(model, 2)
    assert [type(m) for m in model.modules()] == kinds and model.training
    assert not twin.training
    places = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in twin.parameters()} == places
    assert calc_loss_batch(text[:, :-1], text[:, 1:], model, "cpu").requires_grad
    assert not PackedLinear(nn.Linear(4, 3), 2)(torch.ones(2, 4)).requires_grad


def test_what_cannot_be_packed_stays_an_ordinary_layer(monkeypatch):
    linear, x = nn.Linear(24, 72), torch.randn(7, 24)
    layer = PackedLinear(linear, 4)
    assert torch.equal(layer(x), linear(x))  # another number of vectors
    assert torch.allclose(layer(x[:4]), linear(x[:4]), atol=1e-6)
    assert PackedLinear(nn.Linear(4, 3).bfloat16(), 2).tiles is None
    assert PackedLinear(nn.Linear(4, 3, device="meta"), 2).tiles is None
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    layer = PackedLinear(linear, 7)
    assert layer.tiles is None and torch.equal(layer(x), linear(x))


@pytest.mark.parametrize("rows", [0, -1])
def test_tiles_are_for_one_vector_at_least(rows):
    with pytest.raises(ValueError, match=f"rows must be .*{rows}"):
        packed(make_model(), rows)


# Reading at positions


@few
@given(
    texts=st.lists(st.lists(ids, min_size=2, max_size=8), min_size=1, max_size=4),
    data=st.data(),
)
def test_texts_read_piece_by_piece_are_texts_read_whole(texts, data):
    """Each row is cut somewhere of its own; both of its pieces are padded."""
    cuts = [data.draw(st.integers(1, len(text) - 1)) for text in texts]
    slots = MODEL.pos_emb.weight.new_zeros(3, 2, len(texts), 3, CONTEXT, 8)
    found = [[] for _ in texts]
    for starts, ends in (([0] * len(texts), cuts), (cuts, map(len, texts))):
        pieces = [t[a:b] for t, a, b in zip(texts, starts, ends, strict=True)]
        T = max(map(len, pieces))
        padded = torch.tensor([piece + [60] * (T - len(piece)) for piece in pieces])
        positions = torch.tensor(starts)[:, None] + torch.arange(T)
        vectors = read_at(MODEL, padded, positions, slots)
        for parts, piece, row in zip(found, pieces, vectors, strict=True):
            parts.append(row[: len(piece)])
    for text, parts in zip(texts, found, strict=True):
        whole = MODEL.features(torch.tensor([text]))[0]
        torch.testing.assert_close(torch.cat(parts), whole)


# Texts together

prompt_lists = st.lists(
    st.lists(ids, min_size=1, max_size=CONTEXT + 4), min_size=1, max_size=5
)


def one_by_one(model, prompts, *arguments, **others):
    return [
        generate(model, torch.tensor([text]), *arguments, **others)[0].tolist()
        for text in prompts
    ]


@few
@given(
    prompts=prompt_lists,
    new=st.integers(0, 12),
    context=st.integers(1, CONTEXT),
    eos_id=st.one_of(st.none(), ids),
)
@example(prompts=[[1]], new=0, context=1, eos_id=None)
@example(prompts=[[3] * 20, [3]], new=6, context=4, eos_id=None)
def test_texts_together_are_texts_one_by_one(prompts, new, context, eos_id):
    """Whatever their lengths, their ends, and whether they outgrow the context."""
    wanted = one_by_one(MODEL, prompts, new, context, eos_id=eos_id)
    assert generate_fast(MODEL, prompts, new, context, eos_id=eos_id) == wanted


@pytest.mark.parametrize("variant", [{}, {"tie_weights": True}], ids=str)
def test_the_end_of_one_text_is_not_the_end_of_the_others(variant):
    model, prompts = make_model(**variant), [[1, 2, 3], [4], [5, 6]]
    free = one_by_one(model, prompts, 8, CONTEXT)
    eos_id = free[0][len(prompts[0]) + 2]
    wanted = one_by_one(model, prompts, 8, CONTEXT, eos_id=eos_id)
    assert len({len(t) - len(p) for t, p in zip(wanted, prompts, strict=True)}) > 1
    assert generate_fast(model, prompts, 8, CONTEXT, eos_id=eos_id) == wanted


def test_sampling_draws_as_chapter_5_does():
    text, options = make_ids(3, 6), {"temperature": 1.5, "top_k": 20, "top_p": 0.9}
    chances = [torch.Generator().manual_seed(5) for _ in range(2)]
    wanted = generate(MODEL, text, 14, CONTEXT, generator=chances[0], **options)
    found = generate_fast(MODEL, text, 14, CONTEXT, generator=chances[1], **options)
    assert found == wanted.tolist()


def test_dropout_and_gradients_stay_where_they_were():
    model = make_model(drop_rate=0.5).train()
    steps = stream(model, [[1, 2], [3]], 20, 8)
    assert not next(steps).requires_grad
    assert torch.is_grad_enabled() and model.training
    steps.close()
    assert torch.is_grad_enabled() and model.training
    quiet = make_model().eval()
    assert generate_fast(model, [[1, 2], [3]], 20, 8) == generate_fast(
        quiet, [[1, 2], [3]], 20, 8
    )


def test_a_prompt_is_read_in_one_pass_and_the_head_reads_one_vector_of_each_text():
    passes, calls, model = [], [], make_model()
    model.final_norm.register_forward_hook(lambda m, x, y: passes.append(y.shape[:2]))
    model.out_head.register_forward_hook(lambda m, x, y: calls.append(y.shape))
    for number, drawn in enumerate(stream(model, [[1] * 9, [5]], 3, 16), start=1):
        assert drawn.shape == (2,) and len(calls) == number  # each when it is drawn
    assert passes == [(2, 9), (2, 1), (2, 1)] and calls == [(2, V)] * 3


# Guesses


def naive_guess(text, n, k):
    starts = range(len(text) - n)
    found = [s for s in starts if text[s : s + n] == text[len(text) - n :]]
    return text[found[-1] + n :][:k] if found else []


@given(
    text=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    n=st.integers(1, 4),
    k=st.integers(1, 6),
)
def test_guesses_are_what_followed_before(text, n, k):
    if n <= len(text):
        assert guess_next(text, n, k) == naive_guess(text, n, k)
    else:
        assert guess_next(text, n, k) == []


@few
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=10),
    new=st.integers(0, 6),
    eos_id=st.one_of(st.none(), ids),
    n_gram=st.integers(1, 3),
    n_guesses=st.integers(1, 9),
)
def test_speculation_is_greedy(prompt, new, eos_id, n_gram, n_guesses):
    (wanted,) = one_by_one(MODEL, [prompt], new, CONTEXT, eos_id=eos_id)
    assert speculate(MODEL, prompt, new, eos_id, n_gram, n_guesses) == wanted


def test_speculation_ends_at_the_end_though_more_was_guessed_right():
    model = make_model()
    with torch.no_grad():
        model.out_head.weight.zero_()  # the likeliest token is always the first, 0
    assert speculate(model, [0, 0, 0, 0], 6, eos_id=0, n_gram=1) == [0] * 5


@pytest.mark.parametrize("right", [0, 1, 3, 8])
def test_right_guesses_save_passes_and_wrong_ones_do_not_matter(monkeypatch, right):
    """Guesses that are greedy's own up to some place, and wrong from there on."""
    prompt, new, passes = [1, 2, 3], 12, []
    (wanted,) = generate_fast(MODEL, [prompt], new, CONTEXT)

    def guess(text, n_gram, n_guesses):
        truth = wanted[len(text) : len(text) + n_guesses]
        return truth[:right] + [(i + 1) % V for i in truth[right:]]

    monkeypatch.setattr("appendix_f_speed.writing.guess_next", guess)
    hook = MODEL.final_norm.register_forward_hook(lambda *_: passes.append(1))
    try:
        assert speculate(MODEL, prompt, new, n_guesses=8) == wanted
    finally:
        hook.remove()
    assert len(passes) == -(-new // (right + 1))


# Fewer bits


def rounded(W, bits):
    """The matrix that a layer of so many bits stands for."""
    if bits == 4 and len(W) % 16 == 0:
        return dequantize_q4_1(quantize_q4_1(W)).view_as(W)
    layer = Int8Linear(W)
    return layer.scale.float()[:, None] * layer.numbers


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 32), (1, 1, 32), (2, 3, 32)])
def test_layers_are_their_rounded_matrix_and_their_bias(bits, bias, shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48, bias=bias), nn.Identity())
    x, small = torch.randn(shape), quantised(net, bits)
    wanted = F.linear(x, rounded(net[0].weight, bits), net[0].bias)
    torch.testing.assert_close(small(x), wanted, rtol=0.02, atol=0.02)
    kinds = {type(m) for m in small.modules()}
    assert {8: Int8Linear, 4: Int4Linear}[bits] in kinds


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_is_a_copy_that_still_writes(bits):
    model = make_model(tie_weights=True, emb_dim=32, n_heads=4)
    before = copy.deepcopy(model.state_dict())
    small = quantised(model, bits)
    assert not any(type(m) is nn.Linear for m in small.modules())
    assert not any(p.requires_grad for p in small.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert isinstance(small.out_head, Int8Linear)  # 61 rows are not sixteens
    prompts = [[1, 2, 3], [4]]
    assert [len(t) for t in generate_fast(small, prompts, 4, 16)] == [7, 5]
    assert len(speculate(small, [1, 2, 1, 2], 6)) == 10


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (8, "trf_blocks.0.att.W_query: a row of 24 numbers is no multiple of 32"),
        (4, "a row of 24 .* quantise a model whose emb_dim is one"),
        (5, "bits must be 8 or 4, not 5"),
        (nn.Linear, "bits must be 8 or 4"),
    ],
)
def test_bits_that_do_not_fit(bits, message):
    with pytest.raises(ValueError, match=message):
        quantised(make_model(), bits)


# What is refused


@pytest.mark.parametrize(
    ("prompts", "new", "context", "message"),
    [
        ([], 3, 8, "there are no prompts"),
        ([[1], []], 3, 8, "prompt 1 is .* at least one id"),
        ([1, 2], 3, 8, "prompt 0 is 1; each must be a list"),
        ([[1, V]], 3, 8, f"prompt 0 holds {V}, but vocab_size is {V}"),
        ([[1, -1]], 3, 8, "prompt 0 holds -1"),
        ([[1.5]], 3, 8, "prompt 0 holds 1.5"),
        ([[1]], -1, 8, "max_new_tokens must be 0 or more, not -1"),
        ([[1]], 3, 0, "context_size must be between 1 and .* 16, not 0"),
        ([[1]], 3, 17, "context_size must be between 1 and .* 16, not 17"),
    ],
)
def test_prompts_that_cannot_be_continued(prompts, new, context, message):
    with pytest.raises(ValueError, match=message):
        generate_fast(MODEL, prompts, new, context)


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": 0}, {"top_p": 2}])
def test_settings_without_a_distribution(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        generate_fast(MODEL, [[1]], 3, 8, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1] * 10, 7), "10 tokens and 7 new ones do not fit .* use generate_fast"),
        (([1], 3, None, 0), "n_gram must be 1 or more"),
        (([1], 3, None, 2, 0), "n_guesses must be 1 or more"),
        (([], 3), "prompt 0"),
    ],
)
def test_what_speculation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        speculate(MODEL, *arguments)


def test_every_length_up_to_the_context_can_be_speculated():
    for n, new in itertools.product((1, CONTEXT - 1, CONTEXT), (0, 1)):
        if n + new <= CONTEXT:
            assert len(speculate(MODEL, [1] * n, new)) == n + new
