"""What a run finds out about its model between two steps: loss, copying, writing."""

import contextlib
import math
import sys
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ch05_pretraining.copying import induction_scores, random_text_twice, repeat_losses
from pretrain.checkpoints import Log
from pretrain.hardware import Workers, autocast
from pretrain.mixture import Mixture, as_batch
from pretrain.prepare import TokenShards, open_sources, open_tokenizer
from pretrain.settings import Settings, Stage
from shared.ch04 import GPTModel
from shared.ch05 import evaluating, generate, text_to_token_ids, token_ids_to_text

REPEAT_LENGTH = 64  # random tokens that the model is shown twice
SAMPLE_TOKENS, TEMPERATURE, TOP_P = 120, 0.6, 0.9  # of what the model writes


class Looks:
    """Looks at the model of a run. They change neither the model nor what comes next.

    Its arguments are parts of the run, see `Pretraining`.

    Raises:
        ValueError: if there are prompts, and the model and the tokenizer do not fit.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Workers,
        gpt: GPTModel,
        objective: nn.Module,
        mixtures: list[Mixture],
        precision: str,
    ):
        self.settings, self.workers, self.precision = settings, workers, precision
        self.gpt, self.objective, self.mixtures = gpt, objective, mixtures
        self.held_out = [
            open_sources(settings.shards, "held_out", stage.context_length)
            for stage in settings.plan()
        ]
        # with FSDP a process has only its part of each layer
        self.whole = not any(isinstance(p, DTensor) for p in gpt.parameters())
        if settings.prompts:
            self.tokenizer = open_tokenizer(settings.shards)
            known, V = self.tokenizer.n_vocab, settings.model.vocab_size
            if known != V:
                raise ValueError(
                    f"prompts need a model with the tokenizer's {known} tokens, but "
                    f"model.vocab_size is {V}; set it to {known}, or leave prompts out"
                )

    def note(self, log: Log, step: int, end: bool = False) -> None:
        """Write into the log what is due after a step."""
        settings = self.settings
        if settings.prompts and self.whole and (step.bit_count() < 2 or end):
            tokens = settings.tokens(step)  # bit_count: step is 0 or a power of two
            log.write("sample", step, tokens=tokens, texts=self.samples())
        if step and step % settings.eval_every == 0 or end:
            self._note_losses(log, step, None if end else settings.eval_sequences)

    def _note_losses(self, log: Log, step: int, sequences: int | None) -> None:
        """Note the held-out losses, and their mean by the sources' shares of training.

        The mean is what the training loss would be on text that it has not seen.
        """
        losses = self.held_out_losses(step, sequences)
        counts = self.mixtures[self.settings.stage(step)[0]].counts
        total = sum(counts[name] for name in losses)
        if total:
            mean = sum(losses[name] * counts[name] for name in losses) / total
            log.write(
                "eval",
                step,
                tokens=self.settings.tokens(step),
                sequences=sequences,
                loss=round(mean, 4),
                losses={name: round(loss, 4) for name, loss in losses.items()},
                **(self.copying() if self.whole else {}),
            )

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """A block without dropout, gradients and compiled code.

        Compiled code is for the shapes of training, and the shapes here differ.
        """
        with torch.compiler.set_stance("force_eager"), evaluating(self.objective):
            yield

    # Held-out losses

    def held_out_losses(self, step: int, sequences: int | None) -> dict[str, float]:
        """Loss of each source on its held-out text, of at most so many sequences.

        They are as long as those of the step's stage, and the loss is over the whole
        vocabulary.
        """
        losses, (number, stage, _) = {}, self.settings.stage(step)
        with self._looking(), autocast(self.precision, self.workers.device):
            for name, shards in self.held_out[number].items():
                count = min(len(shards), sequences or len(shards))
                if count:
                    losses[name] = self._mean_loss(shards, count, stage)
        return losses

    def _mean_loss(self, shards: TokenShards, count: int, stage: Stage) -> float:
        """Mean loss of the first `count` windows, which the processes share.

        All make the same number of calls with the same shape; where windows run out,
        the targets are -100, which the loss does not count.
        """
        workers = self.workers
        size = self.settings.micro_batch(stage, workers.count)
        total, calls = 0.0, math.ceil(count / (size * workers.count))
        for call in range(calls):
            first = (call * workers.count + workers.rank) * size
            numbers = range(first, first + size)
            real = sum(i < count for i in numbers)
            inputs, targets = as_batch(
                [shards[min(i, count - 1)] for i in numbers], workers.device
            )
            targets = targets.clone()  # it shares its memory with the inputs
            targets[real:] = -100
            loss = self.objective(inputs, targets)
            total += loss.item() * real if real else 0.0
        return workers.sum([total])[0] / count

    def warn_if_nothing_is_held_out(self) -> None:
        """Say so if the run has no held-out sequence to look at."""
        held_out = [text for sources in self.held_out for text in sources.values()]
        if self.workers.first and not any(map(len, held_out)):
            print(
                "no held-out text is as long as a training sequence, so nothing will "
                "be evaluated; prepare the text with a larger --held-out, say 0.1",
                file=sys.stderr,
            )

    # Copying and writing

    def copying(self) -> dict:
        """How well the model repeats random tokens, and which head is best at that."""
        half = min(REPEAT_LENGTH, self.settings.model.context_length // 2)
        ids = random_text_twice(4, half, self.settings.model.vocab_size)
        ids = ids.to(self.workers.device)
        with self._looking():
            first, second = repeat_losses(self.gpt, ids)
            scores = induction_scores(self.gpt, ids)
        return {
            "repeat": [round(first, 4), round(second, 4)],
            "induction": [[round(x, 4) for x in row] for row in scores.tolist()],
        }

    def samples(self) -> list[str]:
        """The prompts with what the model writes after them, from the same seed."""
        T, device, texts = self.gpt.cfg["context_length"], self.workers.device, []
        for prompt in self.settings.prompts:
            idx = text_to_token_ids(prompt, self.tokenizer).to(device)
            seed = torch.Generator(device).manual_seed(self.settings.seed)
            end = self.tokenizer.eot_token
            drawing = {"eos_id": end, "top_p": TOP_P, "generator": seed}
            with self._looking():
                idx = generate(self.gpt, idx, SAMPLE_TOKENS, T, TEMPERATURE, **drawing)
            texts.append(token_ids_to_text(idx, self.tokenizer))
        return texts
