"""Exercises done and widgets moved in a real JupyterLab: `make browser`.

pytest finds this file only when it is named: it takes minutes and needs a browser.
"""

import re
import time

import nbformat
import pytest
from fixtures import *  # noqa: F403 (a second conftest.py would hide the first)

from tools.export import ROOT

# Of each check: what stands in the right answer, and what a typical wrong one has there
SLIPS = {
    "ch02_text_data": {
        "lossless_split": ("SPLIT_PATTERN.split(text)", "text.split()"),
        "context_sizes": ("n - max_length, stride", "n, stride"),
        "embedding_parameters": ("vocab_size + context_length", "vocab_size"),
        "stream": ('decode("utf-8")', 'decode("utf-8", "replace")'),
        "embedding_gradient": ("0, ids.flatten(),", "0, ids,"),
        "write": ("chance.choice(", "min("),
        "cheapest_first": ("len(tokenizer.encode(texts[name]))", "len(texts[name])"),
        "expand": (
            "expand(left, merges) + expand(right, merges)",
            "bytes([left, right])",
        ),
        "drop_merges": (">= p", "< p"),
        "longest_match": ("len(word), 0, -1", "1, len(word) + 1"),
        "packed": ("short.index(i)", "0"),
    },
    "ch03_attention": {
        "previous_token_head": (".roll(-1, dims=1)", ""),
        "safe_softmax": ("torch.where(total == 0, 1.0, total)", "total"),
        "leaks": ("range(1, T)", "range(T - 1, T)"),
        "longest_text": ("n_bytes // 4", "n_bytes"),
        "grouped_query_attention": (", is_causal=True", ""),
        "blockwise_attention": ("total * shrink", "total"),
        "reach": ("(window - 1)", "window"),
        "set_by_hand": ("large = 100", "large = 1"),
    },
    "ch04_gpt_model": {
        "rms_norm": ("(x**2).mean", "x.mean"),
        "gelu_slope": ("cumulative + z * density", "cumulative"),
        "shares": ("norm.scale * centred", "centred"),
        "obsessed": ("16 *", "0.1 *"),
        "generate_half_window": ("context_size // 2", "context_size"),
        "count_parameters": (" + 2 * C + head", " + head"),
        "largest_change": ("copy.deepcopy(model)", "model"),
    },
    "ch05_pretraining": {
        "bits_per_byte": ("math.log(2) * ", ""),
        "unigram_loss": ("(counts[i] + 1)", "counts[i]"),
        "keep_min_p": ("p * largest", "p"),
        "accumulate_gradients": (" * targets.numel() / total", " / len(pieces)"),
        "early_stopping": (">= patience", "> patience"),
        "sliding_loss": ("        targets[: done - begin - 1] = -100\n", ""),
        "adamw_step": (" / (1 - betas[0] ** n)", ""),
        "learn_noise": ('return "below", "above"', 'return "below"'),
        "seen_share": ("(validated if for_validation else trained)", "validated"),
    },
    "ch06_classification": {
        "padding_share": ("max(batch) * len(batch)", "max(lengths) * len(batch)"),
        "allowed_false_alarms": ("(1 - share_of_spam)", "share_of_spam"),
        "split_by_key": (
            "random.Random(seed).shuffle(groups)",
            "random.shuffle(groups)",
        ),
        "balanced_loss": ('reduction="none"', 'reduction="mean"'),
        "area_under_curve": (" + (spam == ham).double() / 2", ""),
        "tfidf_rows": ("set(text)", "text"),
        "accuracy_after": ("vectorizer.transform(", "vectorizer.fit_transform("),
    },
    "ch07_instructions": {
        "extract_answer": ('.partition("<|endoftext|>")', '.partition("\\n")'),
        "mask_prompts": ("lengths - 1", "lengths"),
        "encode_conversation": ("said.append(tokenizer.eot_token)", "pass"),
        "fair_verdict": ("first_wins(other, one)", "first_wins(one, other)"),
        "share_better": (
            "torch.randint(n, (repeats, n), generator=generator)",
            "torch.randint(n, (repeats, n))",
        ),
        "answer_loss": ("total += n * calc", "total += calc"),
    },
    "ch08_modern_models": {
        "rms_norm": ("x.square().mean", "x.mean"),
        "rotary_angles": ("-2 * pair", "-pair"),
        "grouped_cache_bytes": ('cfg["n_kv_heads"]', 'cfg["n_heads"]'),
        "take_apart": ("lower + upper", "upper + lower"),
        "changed_logits": ("copy.deepcopy(model)", "model"),
    },
    "ch09_rewards": {
        "stories_needed": ("math.ceil(", "math.floor("),
        "leave_one_out": ("(G - 1)", "G"),
        "preferred": ("beta * (", "("),
        "drawn_slope": ("(r - r.mean())", "r"),
        "used_words": (">= 4", ">= 1"),
    },
    "appendix_a_pytorch": {
        "one_hot": ("[..., None]", "[:, None]"),
        "strides": ("reversed(shape)", "shape"),
        "sigmoid": ("s * (1 - s)", "s"),
        "train_epoch": (" * len(x)", ""),
        "order_matters": ("(True, False)", "(False, True)"),
    },
    "appendix_d_training": {
        "same_memory": ("after / before", "before / after"),
        "three_groups": ('name.startswith("trf_blocks")', "True"),
        "short_steps": ("if step == 0", "if step"),
    },
    "appendix_e_lora": {
        "lora_parameters": ("0 if cfg", "rank * (C + V) if cfg"),
        "set_strength": ("s * layer.alpha / layer.rank", "s"),
        "adapt_queries_and_values": ("    model.requires_grad_(False)\n", ""),
        "low_rank": ("U[:, :rank] * S[:rank]", "U[:, :rank]"),
        "gpt3_lora_parameters": ("2 * rank", "rank"),
        "trained_error": (".square().sum()", ".square().mean()"),
    },
    "appendix_f_speed": {
        "step_operations": ("2 * frozen", "6 * frozen"),
        "tokens_per_second": (" + V * C,", ","),
        "quantise": ("2 ** (bits - 1) - 1", "2 ** (bits - 1)"),
        "calls_saved": ("model.final_norm", "model"),
    },
}
MARKS = re.compile(r"[ \t]*### (BEGIN|END) SOLUTION\n?")
FAULT = (".error", ".stderr")  # JupyterLab shows both alike
SENTENCE = re.compile(r"Exercise (2b|\d|[ADEF])\.\d: ")


@pytest.fixture
def copied(lab, visit):
    """Opens a copy of a notebook, as it was before it was run.

    A copy, since JupyterLab saves what is typed and run.
    """

    def open_it(path):
        copy = (lab.root / path).with_name("copy.ipynb")
        notebook = nbformat.read(lab.root / path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, copy)
        return visit(copy.relative_to(lab.root).as_posix())

    return open_it


def code_cells(path):
    """The code cells of a notebook, by their places among all cells."""
    cells = nbformat.read(ROOT / path, as_version=4).cells
    return {i: cell.source for i, cell in enumerate(cells) if "code" in cell.cell_type}


def fill_in(page, answers):
    for i, answer in answers.items():
        page.write(i, answer)
        page.run(i)


def refusal(page, check):
    """The one sentence by which a check refuses what stands above it."""
    page.run(check)
    [(kind, sentence)] = page.outputs(check)
    assert kind.endswith(FAULT) and SENTENCE.match(sentence), sentence
    assert "Traceback" not in sentence and len(sentence.splitlines()) < 10, sentence
    return sentence


@pytest.mark.parametrize("folder", SLIPS)
def test_exercises_are_refused_in_a_sentence_until_they_are_right(copied, folder):
    slips, right = dict(SLIPS[folder]), {}
    solutions = code_cells(f"{folder}/solutions.ipynb")
    page = copied(f"{folder}/exercises.ipynb")
    for i, source in code_cells(f"{folder}/exercises.ipynb").items():
        if source != solutions[i]:
            page.run(i)
            right[i] = MARKS.sub("", solutions[i]).rstrip()
        elif check := re.match(r"checks\.(\w+)", source):
            unanswered = refusal(page, i)
            assert re.search(r"unanswered|replace the `...`", unanswered), unanswered
            piece, slip = slips.pop(check[1])
            [j] = [j for j, answer in right.items() if piece in answer]
            fill_in(page, right | {j: right[j].replace(piece, slip)})
            assert refusal(page, i) != unanswered
            fill_in(page, right)
            page.run(i)
            assert not any(kind.endswith(FAULT) for kind, _ in page.outputs(i))
            assert re.search("^Right", page.outputs(i)[0][1], re.MULTILINE)
            right = {}
        else:
            page.run(i)
            assert not any(kind.endswith(FAULT) for kind, _ in page.outputs(i))
    assert not right and not slips and not page.noticed


def press(key, slider, times=1):
    def move(page, cell):
        for _ in range(times):
            cell.get_by_role("slider").nth(slider).press(key)

    return move


def click(role, name):
    return lambda page, cell: cell.get_by_role(role, name=name, exact=True).click()


def type_in(text):
    def move(page, cell):
        cell.locator(".widget-text input").fill(text)
        page.keyboard.press("Enter")

    return move


def settled(picture):
    """A picture that has not changed for half a second."""
    before = None
    while (shown := picture.get_attribute("src")) != before:
        before = shown
        time.sleep(0.5)
    return shown


# For each notebook the cells to run, by words in them, and for its widget the moves
WIDGETS = {
    "ch02_text_data/bpe.ipynb": (
        [
            *[
                "#| export",
                "import pydoc_data",
                "def shown",
                "def seconds",
                "story_words =",
                "merges = train_naive",
                "def encode_word",
            ],
            *["tokenizer = BPETok", "gpt2 = BPETok"],
        ],
        [
            press("ArrowLeft", 0),
            click("button", "the story"),
            type_in("Ten ponies."),
            type_in("m" * 61),
        ],
    ),
    "ch03_attention/attention.ipynb": (
        [""],  # every cell before it
        [
            click("button", "roof"),
            click("checkbox", "divide by √D"),
            click("checkbox", "mask the future"),
        ],
    ),
    "ch05_pretraining/pretraining.ipynb": (
        ["#| export", "import pandas"],
        [
            press("ArrowRight", 0, times=2),
            press("ArrowLeft", 1, times=2),
            press("ArrowRight", 2),
        ],
    ),
    "appendix_a_pytorch/pytorch.ipynb": (
        ["#| export", "import inspect", "X = torch.stack", "def line_loss"],
        [
            press("ArrowLeft", 0),
            press("ArrowRight", 1, times=2),
            press("ArrowRight", 2),
        ],
    ),
}


@pytest.mark.parametrize("path", WIDGETS)
def test_moving_a_control_changes_the_picture(copied, path):
    needed, moves = WIDGETS[path]
    page = copied(path)
    for i, source in code_cells(path).items():
        moving = re.search(r"^widgets\.", source, re.MULTILINE)
        if moving or any(words in source for words in needed):
            page.run(i)
        if moving:
            break
    cell, picture = page.cell(i), page.cell(i).locator(".jp-OutputArea img")
    picture.wait_for()
    for move in moves:
        before = settled(picture)
        move(page.page, cell)
        end = time.monotonic() + 60
        while picture.get_attribute("src") == before and time.monotonic() < end:
            time.sleep(0.1)
        assert settled(picture) != before and picture.count() == 1
        assert not any(kind.endswith(FAULT) for kind, _ in page.outputs(i))
    assert not page.noticed
