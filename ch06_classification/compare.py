"""Compare ways to classify, on several splits of two tasks: spam, and word order.

    python -m ch06_classification.compare                    five splits of everything
    python -m ch06_classification.compare --methods head --seeds 2

Each split is drawn, and each model trained, with a seed of its own. What is found is
printed, and written to `five_seeds.json` beside this file, which the notebook shows.
A split takes about five minutes on two CPU cores. After Ctrl-C the finished runs are
kept, and the next call goes on with those that are missing, with any number of threads.
Runs on other messages, on another kind of device, with other settings or, if they begin
with pretrained weights, from another base are made again.
"""

import argparse
import contextlib
import io
import itertools
import json
import re
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from torch import nn
from torch.utils.data import DataLoader

from ch06_classification.word_order import make_twins, split_twins
from shared.appendix_e import replace_linear_with_lora
from shared.ch05 import load_base, load_base_tokenizer
from shared.ch06 import (
    GPTClassifier,
    calc_accuracy_loader,
    create_loaders,
    create_spam_loaders,
    frozen_features,
    let_rate_fall,
    set_trainable,
    train_classifier_simple,
)
from shared.data import FILES
from shared.files import write_atomically

RECORD = Path(__file__).with_name("five_seeds.json")
LORA_RANK, LORA_ALPHA = 8, 16

# Which part learns, for how many epochs, and at which rate at the start. The settings
# were chosen by validation on splits of the spam with other seeds than those here, for
# an earlier base; those of "all" were checked on one more split with a later one.
METHODS: dict[str, tuple[str, int, float]] = {
    "head": ("head", 10, 1e-2),
    "last block": ("last block", 3, 2e-3),
    "LoRA": ("head", 3, 2e-3),  # and the low-rank updates of the frozen matrices
    "all": ("all", 3, 4e-4),
    "all, not pretrained": ("all", 3, 4e-4),
}
# What is counted: words, runs of one to three words, or of two to five characters.
BASELINES: dict[str, dict] = {
    "TF-IDF, words": {},
    "TF-IDF, 1 to 3 words": {"ngram_range": [1, 3]},
    "TF-IDF, characters": {"analyzer": "char_wb", "ngram_range": [2, 5]},
}
# By what the epochs are multiplied. With the epochs of the spam, one of two sets of
# sentences was learned only in part; its validation part had said so.
TASKS = {"spam": 1, "word order": 2}


def accuracy_interval(
    right: int, count: int, deviations: float = 1.96
) -> tuple[float, float]:
    """Wilson's interval: where a true accuracy lies, given how many answers were right.

    Near 0 and 1 it is better than eq. 6.3, and never leaves [0, 1]. `deviations` is
    half its width in standard errors, 1.96 for 95 %. ValueError unless
    0 <= right <= count and count >= 1.

    Source: Wilson (1927), Probable Inference, the Law of Succession, and Statistical
    Inference.
    """
    if not 0 <= right <= count or count < 1:
        raise ValueError(f"{right} right answers of {count} make no accuracy")
    share, z2 = right / count, deviations**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = (share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5
    half *= deviations / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def all_settings() -> dict[str, list | dict]:
    """What each method does, in the form that a record keeps."""
    return {method: list(how) for method, how in METHODS.items()} | BASELINES


def tfidf(**settings) -> Pipeline:
    """Equation 6.5 and a logistic regression."""
    if "ngram_range" in settings:
        settings["ngram_range"] = tuple(settings["ngram_range"])
    return make_pipeline(
        TfidfVectorizer(**settings), LogisticRegression(C=10, max_iter=1000)
    )


def loaders_for(task: str, seed: int, name: str) -> tuple[DataLoader, ...]:
    """Training, validation and test loader of the split of a task that a seed gives."""
    if task == "spam":
        return create_spam_loaders(name, seed=seed)
    return create_loaders(split_twins(make_twins(seed=seed)), seed=seed)


def classifier_for(method: str, device: str) -> GPTClassifier:
    """A fresh classifier, of which only what the method trains needs gradients."""
    gpt = load_base(device)
    if "not pretrained" in method:
        gpt.init_weights()
    net = GPTClassifier(gpt, pad_token_id=load_base_tokenizer().eot_token)
    set_trainable(net, METHODS[method][0])
    if method == "LoRA":
        replace_linear_with_lora(net.gpt, LORA_RANK, LORA_ALPHA)
    return net.to(device)


def feature_loaders(
    net: GPTClassifier, train_loader: DataLoader, val_loader: DataLoader, device: str
) -> tuple[DataLoader, DataLoader]:
    """Loaders of what the head reads: what is frozen says the same each time."""
    train, val = (frozen_features(net, x, device) for x in (train_loader, val_loader))
    chance = train_loader.generator
    return DataLoader(train, 64, shuffle=True, generator=chance), DataLoader(val, 64)


def finetune(
    learner: nn.Module,
    method: str,
    train_loader: DataLoader,
    val_loader: DataLoader,
    device: str,
    factor: int = 1,
    eval_freq: int = 10**9,
    eval_iter: int | None = 1,
) -> tuple:
    """Train what needs gradients as a method does, for `factor` times its epochs.

    Looks, and returns what it saw, like `train_classifier_simple`.
    """
    _, num_epochs, rate = METHODS[method]
    num_epochs *= factor
    learning = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.1, fused=True)
    let_rate_fall(optimizer, num_epochs * len(train_loader))
    return train_classifier_simple(
        learner,
        train_loader,
        val_loader,
        optimizer,
        device,
        num_epochs,
        eval_freq,
        eval_iter,
    )


def run(task: str, method: str, seed: int, loaders, device: str) -> dict:
    """Classify by one method: accuracies, numbers that learned, seconds of a CPU."""
    train_loader, *others = loaders
    start = time.process_time()
    if method in BASELINES:
        train, *tables = (loader.dataset.data for loader in loaders)
        fitted = tfidf(**BASELINES[method]).fit(train["Text"], train["Label"])
        scores = [fitted.score(table["Text"], table["Label"]) for table in tables]
        numbers = fitted[-1].coef_.size + 1
    else:
        torch.manual_seed(seed)
        train_loader.generator.manual_seed(seed)  # the same batches for every method
        net = classifier_for(method, device)
        learner, learning_from = net, loaders[:2]
        if method == "head":
            learner = net.gpt.out_head
            learning_from = feature_loaders(net, *learning_from, device)
        with contextlib.redirect_stdout(io.StringIO()):  # we look at the end only
            finetune(learner, method, *learning_from, device, TASKS[task])
        scores = [calc_accuracy_loader(loader, net, device) for loader in others]
        numbers = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "validation": scores[0],
        "test": scores[1],
        "numbers": numbers,
        "seconds": round(time.process_time() - start, 1),
    }


def new_record(name: str, device: str) -> dict:
    """What the runs depend on, before the first of them."""
    return {
        "data": name,
        "base": FILES["base/model.safetensors"].sha256,
        "tokenizer": FILES["base/tokenizer.json"].sha256,
        "parameters": sum(p.numel() for p in load_base().parameters()),
        "device": f"{device}, {torch.get_num_threads()} threads",
        "tasks": TASKS,
        "settings": all_settings(),
        "runs": [],
    }


def read_record(path: Path = RECORD) -> dict:
    """What was found; with a warning if it was found with another base model."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if record["base"] != FILES["base/model.safetensors"].sha256:
        warnings.warn(
            f"{Path(path).name} was made with another base model than the present one; "
            "python -m ch06_classification.compare makes a new one",
            stacklevel=2,
        )
    return record


def earlier_runs(path: Path, record: dict) -> list[dict]:
    """The runs in a file, as far as they depend on the same things as the record."""
    if not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    needed = ("data", "tokenizer", "parameters", "tasks")
    if any(old.get(key) != record[key] for key in needed):
        return []
    if kind_of(old.get("device", "")) != kind_of(record["device"]):
        return []
    same = {m for m, s in record["settings"].items() if old["settings"].get(m) == s}
    if old.get("base") != record["base"]:
        same = {method for method in same if not starts_from_base(method)}
    return [entry for entry in old["runs"] if entry["method"] in same]


def kind_of(device: str) -> str:
    """Of "cpu, 2 threads" the "cpu": runs with other threads share a record."""
    return device.partition(",")[0]


def with_threads_of(device: str, earlier: str) -> str:
    """A device with the thread counts of both: "cpu, 1 or 2 threads"."""
    counts = {int(n) for n in re.findall(r"\d+", f"{device}, {earlier}")}
    return f"{kind_of(device)}, {' or '.join(map(str, sorted(counts)))} threads"


def starts_from_base(method: str) -> bool:
    """Whether a method begins with the base model's weights."""
    return method in METHODS and "not pretrained" not in method


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", default="sms-spam", help="sms-spam or sms-spam-uci")
    parser.add_argument("--seeds", type=int, default=5, help="how many splits")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    methods = list(all_settings())
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = new_record(options.data, device)
    record["runs"] = earlier_runs(options.out, record)
    if record["runs"]:
        earlier = json.loads(options.out.read_text(encoding="utf-8"))
        record["device"] = with_threads_of(record["device"], earlier["device"])
    done = {(entry["task"], entry["method"], entry["seed"]) for entry in record["runs"]}
    for task, method in itertools.product(options.tasks, options.methods):
        for seed in range(options.seeds):
            if (task, method, seed) not in done:
                loaders = loaders_for(task, seed, options.data)
                record["runs"].append(run(task, method, seed, loaders, device))
                write_atomically(options.out, json.dumps(record, indent=1) + "\n")
                print(record["runs"][-1], flush=True)
    runs = pd.DataFrame(record["runs"]).groupby(["task", "method"])
    print(runs["test"].agg(["mean", "min", "max"]).join(runs["seconds"].mean()))


if __name__ == "__main__":
    main()
