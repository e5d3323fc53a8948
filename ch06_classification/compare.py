"""Compare ways to finetune the spam classifier, on several splits of the data.

    python -m ch06_classification.compare                    five splits, every method
    python -m ch06_classification.compare --methods head --seeds 2

Each split is drawn, and each model trained, with a seed of its own. What is found is
printed, and written to `five_seeds.json` beside this file, which the notebook shows.
A split takes about two minutes on two CPU cores. After Ctrl-C the finished runs are
kept, and the next call goes on with those that are missing. Runs on other messages,
from another base or with other settings are made again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader

from shared.appendix_e import replace_linear_with_lora
from shared.ch02 import get_tokenizer
from shared.ch05 import load_base
from shared.ch06 import (
    GPTClassifier,
    SpamDataset,
    calc_accuracy_loader,
    create_balanced_dataset,
    create_spam_loader,
    frozen_features,
    let_rate_fall,
    load_sms,
    random_split,
    remove_duplicates,
    set_trainable,
    train_classifier_simple,
)
from shared.data import FILES
from shared.files import write_atomically

RECORD = Path(__file__).with_name("five_seeds.json")
BATCH_SIZE = 16
LORA_RANK, LORA_ALPHA = 8, 16

# Which part learns, for how many epochs, and at which rate at the start. The settings
# were chosen by validation, on two splits with other seeds than those shown.
METHODS: dict[str, tuple[str, int, float]] = {
    "head": ("head", 10, 1e-2),
    "last block": ("last block", 3, 2e-3),
    "LoRA": ("head", 3, 2e-3),  # and the low-rank updates of the frozen matrices
    "all": ("all", 3, 4e-4),
    "all, not pretrained": ("all", 3, 4e-4),
    "all, not pretrained, twice as long": ("all", 6, 4e-4),
}


def loaders_for(seed: int, messages: pd.DataFrame) -> list[DataLoader]:
    """Training, validation and test loader of the split that a seed gives."""
    balanced = create_balanced_dataset(messages, seed)
    loaders = []
    for number, part in enumerate(random_split(balanced, 0.7, 0.1, seed)):
        with tempfile.TemporaryDirectory() as folder:
            part.to_csv(Path(folder) / "part.csv", index=False)
            dataset = SpamDataset(Path(folder) / "part.csv", get_tokenizer())
        generator = torch.Generator().manual_seed(seed)
        loaders.append(create_spam_loader(dataset, BATCH_SIZE, number == 0, generator))
    return loaders


def classifier_for(method: str, device: str) -> GPTClassifier:
    """A fresh classifier, of which only what the method trains needs gradients."""
    gpt = load_base(device)
    if "not pretrained" in method:
        gpt.init_weights()
    net = GPTClassifier(gpt)
    set_trainable(net, METHODS[method][0])
    if method == "LoRA":
        replace_linear_with_lora(net.gpt, LORA_RANK, LORA_ALPHA)
    return net.to(device)


def run(method: str, seed: int, loaders: list[DataLoader], device: str) -> dict:
    """Finetune a fresh base by one method; return accuracies and seconds."""
    _, num_epochs, rate = METHODS[method]
    train_loader, val_loader, test_loader = loaders
    torch.manual_seed(seed)
    train_loader.generator.manual_seed(seed)  # the same batches for every method
    start = time.perf_counter()
    net = classifier_for(method, device)
    learner, learning_from = net, (train_loader, val_loader)
    if method == "head":  # what is frozen says the same each time: ask it once
        learner = net.gpt.out_head
        features = [frozen_features(net, loader, device) for loader in learning_from]
        learning_from = [
            DataLoader(features[0], 64, shuffle=True, generator=train_loader.generator),
            DataLoader(features[1], 64),
        ]
    learning = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.1, fused=True)
    let_rate_fall(optimizer, num_epochs * len(learning_from[0]))
    train_classifier_simple(
        *(learner, *learning_from, optimizer, device),
        num_epochs=num_epochs,
        eval_freq=10**9,
        eval_iter=2,
    )
    seconds = time.perf_counter() - start
    return {
        "method": method,
        "seed": seed,
        "validation": calc_accuracy_loader(val_loader, net, device),
        "test": calc_accuracy_loader(test_loader, net, device),
        "numbers": sum(p.numel() for p in learning),
        "seconds": round(seconds, 1),
    }


def new_record(name: str, device: str) -> dict:
    """What the runs depend on, before the first of them."""
    return {
        "data": name,
        "base": FILES["base/model.safetensors"].sha256,
        "parameters": sum(p.numel() for p in load_base().parameters()),
        "device": f"{device}, {torch.get_num_threads()} threads",
        "settings": {method: list(settings) for method, settings in METHODS.items()},
        "runs": [],
    }


def earlier_runs(path: Path, record: dict) -> list[dict]:
    """The runs in a file, as far as they depend on the same things as the record."""
    if not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old.get(key) != record[key] for key in ("data", "base", "device")):
        return []
    same = {m for m, s in record["settings"].items() if old["settings"].get(m) == s}
    return [entry for entry in old["runs"] if entry["method"] in same]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", default="sms-spam", help="sms-spam or sms-spam-uci")
    parser.add_argument("--seeds", type=int, default=5, help="how many splits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = new_record(options.data, device)
    record["runs"] = earlier_runs(options.out, record)
    done = {(entry["method"], entry["seed"]) for entry in record["runs"]}
    messages = remove_duplicates(load_sms(options.data))
    for seed in range(options.seeds):
        loaders = loaders_for(seed, messages)
        for method in options.methods:
            if (method, seed) not in done:
                print(f"seed {seed}: {method}", flush=True)
                record["runs"].append(run(method, seed, loaders, device))
                write_atomically(options.out, json.dumps(record, indent=1) + "\n")
                print(record["runs"][-1], flush=True)
    runs = pd.DataFrame(record["runs"]).groupby("method")
    print(runs["test"].agg(["mean", "min", "max"]).join(runs["seconds"].mean()))


if __name__ == "__main__":
    main()
