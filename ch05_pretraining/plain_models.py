"""Which models a file can hold: not the ones that were wrapped, packed or changed."""

from torch import nn

from shared.gpt_layers import check_finite, foreign_layer

__all__ = ["unwrapped", "check_plain_gpt", "check_model_kind"]

MERGE = "fold the updates into the weights first: shared.appendix_e.merge_lora(model)"
REMEDIES = {
    "LinearWithLoRA": MERGE,
    "LoRALayer": MERGE,
    "PackedLinear": "save the model that was packed, not its packed copy",
    "Int8Linear": "save the model that it was before its weights were rounded",
    "Int4Linear": "save the model that it was before its weights were rounded",
    "GPTClassifier": "save_checkpoint saves a classifier, load_classifier reads it",
    "LlamaModel": "save_checkpoint saves models of chapter 8",
}
# A setting, or a part of a tensor's name, that only models of this kind have.
KINDS = {
    "prompt_style": "follows instructions: load it with shared.ch07.load_instructed",
    "num_classes": "is a classifier: load it with shared.ch06.load_classifier",
    "n_kv_heads": "is one of chapter 8's: load it with build=LlamaModel",
    ".lora.": "has LoRA's updates beside its weights: before it is saved, "
    "shared.appendix_e.merge_lora(model) folds them in",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of `torch.compile` and of data parallelism."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's
        if isinstance(model, wrappers):
            inner = model.module
        if inner is None:
            return model
        model = inner


def check_plain_gpt(gpt: nn.Module) -> None:
    """Refuse a model that GPT-2's format cannot hold, before anything is written.

    Raises:
        TypeError: if it is no `GPTModel`, or one with layers of another kind.
        ValueError: if a matrix is not of the size that the settings say, or numbers are
            nan or infinite.
    """
    if found := foreign_layer(gpt):
        place, kind = found
        remedy = REMEDIES.get(kind, "give a GPTModel as chapter 4 builds it")
        raise TypeError(
            f"GPT-2's format holds a GPTModel; {place} is a {kind}: {remedy}"
        )
    if type(gpt).__name__ != "GPTModel":
        raise TypeError(f"GPT-2's format holds a GPTModel, not a {type(gpt).__name__}")
    rows, V = gpt.out_head.weight.shape[0], gpt.cfg["vocab_size"]
    if rows != V:
        raise ValueError(
            f"out_head has {rows} rows and the vocabulary {V} tokens: this is the "
            f"inside of a classifier; {REMEDIES['GPTClassifier']}"
        )
    if gpt.cfg.get("tie_weights") and gpt.out_head.weight is not gpt.tok_emb.weight:
        raise ValueError(
            "out_head has weights of its own, and cfg says tie_weights True, so they "
            "would be lost; set model.cfg['tie_weights'] to False"
        )
    check_finite(gpt.named_parameters())


def check_model_kind(config: dict, tensors, where: str) -> None:
    """Refuse a checkpoint of another kind of model, and say what reads it."""
    for mark, kind in KINDS.items():
        if mark in config or any(mark in name for name in tensors):
            raise ValueError(f"{where} holds no plain GPTModel; its model {kind}")
