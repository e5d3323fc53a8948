"""The playground's finetuned models: trained when first needed, then kept.

They lie in the folder `playground` of the course's cache (see `shared.data`). The name
of a file depends on all that the model was made of, so another base model, other data
or other settings mean a new training, and never an old model.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ch06_classification import compare as spam
from ch07_instructions import compare as instructions
from ch07_instructions.stories import retold
from shared.ch05 import load_base, load_base_tokenizer, save_checkpoint
from shared.ch06 import (
    calc_classification_loss,
    create_spam_loaders,
    let_rate_fall,
    load_classifier,
)
from shared.ch07 import (
    InstructionDataset,
    create_instruction_loader,
    load_instructed,
    load_instructions,
    split_entries,
    train_on_responses,
)
from shared.data import FILES, cache_folder
from shared.precision import mixed_precision

SEED = 123


@dataclass
class Training:
    """A training that has not begun: go through `losses`, and `model` is trained.

    Attributes:
        model: what is trained, in place.
        losses: does a step each time it is asked, and gives the loss of its batch.
        steps: how many there will be.
    """

    model: nn.Module
    losses: Iterator[float]
    steps: int


@dataclass(frozen=True)
class Recipe:
    """A model that is trained once.

    Attributes:
        name: what its file's name begins with.
        made_of: all that the result depends on, as JSON can hold it.
        prepare: makes its training, which takes a few seconds.
        load: reads the model from its file.
    """

    name: str
    made_of: Callable[[], dict]
    prepare: Callable[[], Training]
    load: Callable[[Path], nn.Module]

    def path(self) -> Path:
        """Where the model is kept, or will be."""
        text = json.dumps(self.made_of(), sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_folder() / "playground" / f"{self.name}-{key}.safetensors"

    def kept(self) -> nn.Module | None:
        """The trained model, or None if there is none, or only a damaged file."""
        try:
            return self.load(self.path())
        except (FileNotFoundError, ValueError):
            return None

    def keep(self, model: nn.Module) -> None:
        """Write the trained model, and remove those that it takes the place of.

        Raises:
            OSError: if it cannot be written; then nothing is removed.
        """
        path = self.path()
        save_checkpoint(path, model)
        for old in path.parent.glob(f"{self.name}-*.safetensors"):
            if old != path:
                old.unlink(missing_ok=True)


def _sha256(*names: str) -> dict[str, str]:
    """The checksums of data files."""
    return {name: FILES[name].sha256 for name in names}


_BASE = ("base/model.safetensors", "base/tokenizer.json")


def prepare_spam_filter() -> Training:
    """Chapter 6's training of all weights, on its first split of the messages."""
    _, num_epochs, rate = spam.METHODS["all"]
    loader = create_spam_loaders(seed=SEED)[0]
    torch.manual_seed(SEED)
    classifier = spam.classifier_for("all", "cpu")
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=rate, weight_decay=0.1, fused=True
    )
    let_rate_fall(optimizer, num_epochs * len(loader))

    def losses() -> Iterator[float]:
        classifier.train()
        for _ in range(num_epochs):
            for inputs, labels in loader:
                optimizer.zero_grad()
                with mixed_precision():
                    loss = calc_classification_loss(inputs, labels, classifier, "cpu")
                loss.backward()
                optimizer.step()
                yield loss.item()
        classifier.eval()

    return Training(classifier, losses(), num_epochs * len(loader))


SPAM_FILTER = Recipe(
    name="spam-filter",
    made_of=lambda: {
        **_sha256(*_BASE, "sms-spam"),
        "method": spam.METHODS["all"],
        "seed": SEED,
    },
    prepare=prepare_spam_filter,
    load=load_classifier,
)


def prepare_follower() -> Training:
    """Chapter 7's finetuning, on the training part of its first split."""
    settings = instructions.SETTINGS
    style, num_epochs = settings["style"], settings["num_epochs"]
    torch.manual_seed(SEED)
    model = instructions.copy_to_finetune(load_base(), **instructions.COPY)
    model.cfg = {**model.cfg, "prompt_style": style}
    entries = retold(split_entries(load_instructions(), seed=SEED)[0])
    loader = create_instruction_loader(
        InstructionDataset(entries, load_base_tokenizer(), True, style),
        settings["batch_size"],
        allowed_max_length=model.cfg["context_length"],
        generator=torch.Generator().manual_seed(SEED),
    )
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=settings["learning_rate"], fused=True)
    let_rate_fall(optimizer, num_epochs * len(loader))

    def losses() -> Iterator[float]:
        for _ in range(num_epochs):
            steps = train_on_responses(model, loader, optimizer, "cpu")
            for _ in range(len(loader)):
                with mixed_precision():  # not around a yield: the page goes on there
                    loss = next(steps)
                yield loss
        model.eval()

    return Training(model, losses(), num_epochs * len(loader))


FOLLOWER = Recipe(
    name="instruction-follower",
    made_of=lambda: {
        **_sha256(*_BASE, "instructions"),
        **instructions.made_of(),
        "seed": SEED,
    },
    prepare=prepare_follower,
    load=lambda path: load_instructed(path, load_base()),
)
