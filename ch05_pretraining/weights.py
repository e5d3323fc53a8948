"""Chapter 5b: Weights.

You will save a training run and continue it as if it had never stopped, and load the
weights of a published model into your own.

Exported from weights.ipynb and weights_deeper.ipynb, which explain every line: change
it there, then run `python -m tools.export`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ch05_pretraining.gpt2_files import (
    GPT2_FILES,
    fetch_gpt2,
    gpt2_settings,
    gpt2_sources,
    read_gpt2_settings,
)
from ch05_pretraining.guards import (
    check_floating,
    check_model_size,
    check_not_tensorflow,
    check_qkv_bias,
    check_same_config,
    check_same_shapes,
    check_sizes,
    check_that_builds,
)
from ch05_pretraining.plain_models import check_model_kind, check_plain_gpt, unwrapped
from ch05_pretraining.tensor_files import (
    TensorFile,
    copy_tensor,
    named_tensors,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
    write_checkpoint,
)
from shared.ch02 import BPETokenizer
from shared.ch04 import GPT2_CONFIGS, GPTConfig, GPTModel, check_config
from shared.data import get as data_path
from shared.files import replacing, write_atomically

__all__ = [
    "save_checkpoint",
    "load_checkpoint",
    "load_weights_into_gpt",
    "read_gpt2_folder",
    "build_pretrained",
    "load_base",
    "load_base_tokenizer",
    "model_from_checkpoint",
    "save_gpt2_folder",
    "GPT2_REPOSITORIES",
    "download_and_load_gpt2",
]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Mapping | None = None,
) -> None:
    """Write a model, and what it takes to train it further, into one safetensors file.

    `progress` says how far the run has come: numbers, lists and tensors by name. The
    model's `cfg` is stored, too, if it has one.
    """
    model = unwrapped(model)
    tensors = {f"model.{name}": t for name, t in named_tensors(model).items()}
    record = {"config": getattr(model, "cfg", None)}
    if optimizer is not None:
        record["optimizer"], state = pack_optimizer(optimizer, model)
        tensors |= {f"optimizer.{name}": t for name, t in state.items()}
    if progress is not None:
        states = {k: v for k, v in progress.items() if isinstance(v, torch.Tensor)}
        tensors |= {f"progress.{name}": t for name, t in states.items()}
        record["progress"] = {k: v for k, v in progress.items() if k not in states}
    write_checkpoint(path, record, tensors)


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict | None:
    """Put back what `save_checkpoint` saved, and return its `progress`, if any.

    The model has to be of the same config (if no optimizer is given, `drop_rate` may
    differ), the optimizer made as when the run began; it gets the saved settings, too.
    If the file is damaged or does not fit, nothing is changed.
    """
    model = unwrapped(model)
    record, file = read_checkpoint(path)
    ignore = "drop_rate" if optimizer is None else ""
    own_config = getattr(model, "cfg", None)
    check_same_config(record["config"], own_config, str(path), ignore)
    own = {f"model.{name}": tensor for name, tensor in named_tensors(model).items()}
    found = {name: s for name, s in file.shapes.items() if name.startswith("model.")}
    check_same_shapes(found, {name: t.shape for name, t in own.items()}, str(path))
    if optimizer is not None:
        tensors = file.part("optimizer")
        state = unpack_optimizer(
            record.get("optimizer"), tensors, optimizer, model, str(path)
        )
        optimizer.load_state_dict(state)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(file[name])
    progress = record.get("progress")
    return None if progress is None else {**progress, **file.part("progress")}


_GPT2_BLOCK = {
    "ln_1.weight": ["norm1.scale"],
    "ln_1.bias": ["norm1.shift"],
    "attn.c_attn.weight": [f"att.W_{x}.weight" for x in ("query", "key", "value")],
    "attn.c_attn.bias": [f"att.W_{x}.bias" for x in ("query", "key", "value")],
    "attn.c_proj.weight": ["att.out_proj.weight"],
    "attn.c_proj.bias": ["att.out_proj.bias"],
    "ln_2.weight": ["norm2.scale"],
    "ln_2.bias": ["norm2.shift"],
    "mlp.c_fc.weight": ["ff.layers.0.weight"],
    "mlp.c_fc.bias": ["ff.layers.0.bias"],
    "mlp.c_proj.weight": ["ff.layers.2.weight"],
    "mlp.c_proj.bias": ["ff.layers.2.bias"],
}


_GPT2_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def _gpt2_layout(n_layers: int) -> dict[str, list[str]]:
    """GPT-2's names of its tensors, each with the names of ours that it is made of."""
    layout = {
        "wte.weight": ["tok_emb.weight"],
        "wpe.weight": ["pos_emb.weight"],
        "ln_f.weight": ["final_norm.scale"],
        "ln_f.bias": ["final_norm.shift"],
        "lm_head.weight": ["out_head.weight"],
    }
    for i in range(n_layers):
        for theirs, ours in _GPT2_BLOCK.items():
            layout[f"h.{i}.{theirs}"] = [f"trf_blocks.{i}.{name}" for name in ours]
    return layout


@torch.no_grad()
def load_weights_into_gpt(gpt: GPTModel, params: Mapping[str, torch.Tensor]) -> None:
    """Copy GPT-2's weights into a model, piece by piece; if they do not fit, none.

    Args:
        gpt: built from the settings that came with the weights, so with `qkv_bias`.
        params: tensors by GPT-2's names, with or without `transformer.` before them.

    Source: Build a Large Language Model (From Scratch), section 5.5; the layout is that
    of Radford et al. (2019), Language Models are Unsupervised Multitask Learners.
    """
    check_not_tensorflow(params)
    check_qkv_bias(gpt.cfg)
    layout, own = _gpt2_layout(gpt.cfg["n_layers"]), dict(gpt.named_parameters())
    sources = gpt2_sources(gpt, params, layout, _GPT2_TRANSPOSED)
    for theirs, source in sources.items():
        ours = [own[name] for name in layout[theirs]]
        copy_tensor(params, source, ours, theirs.endswith(_GPT2_TRANSPOSED))


def read_gpt2_folder(folder: str | Path) -> tuple[GPTConfig, TensorFile]:
    """Open a model folder as Hugging Face has it for GPT-2: settings and tensors.

    `GPTModel(settings)` builds the right model, `load_weights_into_gpt` fills it.
    """
    path = Path(folder) / "config.json"
    settings = read_gpt2_settings(path)
    file = TensorFile(path.with_name("model.safetensors"))
    check_sizes(settings, file.shapes, str(path))
    with check_that_builds(str(path)):
        check_config(settings)
    return settings, file


def build_pretrained(
    settings: GPTConfig,
    params: Mapping[str, torch.Tensor],
    device: torch.device | str = "cpu",
) -> GPTModel:
    """A model with the given weights, on `device` and in evaluation mode.

    At no time does this take much more memory than the model.
    """
    with torch.device(device):
        gpt = GPTModel(settings)
    load_weights_into_gpt(gpt, params)
    return gpt.eval()


def load_base(device: torch.device | str = "cpu") -> GPTModel:
    """The course's own pretrained model, in float32 and in evaluation mode."""
    config, _ = (data_path(f"base/{name}") for name in GPT2_FILES)
    return build_pretrained(*read_gpt2_folder(config.parent), device=device)


def load_base_tokenizer() -> BPETokenizer:
    """The tokenizer of `load_base()`: 8,192 tokens, learned from what it has read."""
    return BPETokenizer.load(data_path("base/tokenizer.json"))


def model_from_checkpoint(
    path: str | Path, build: Callable[[GPTConfig], nn.Module] = GPTModel
) -> nn.Module:
    """The model of a checkpoint, built by `build(config)`, filled, and in eval mode.

    Nothing is built unless the tensors in the file are as large as its config says.
    """
    record, file = read_checkpoint(path)
    config = record["config"] or {}
    if build is GPTModel:
        check_model_kind(config, file, str(path))
    check_sizes(config, file.shapes, str(path))
    with check_that_builds(str(path)):
        model = build(config)
    load_checkpoint(path, model)
    return model.eval()


def _as_gpt2(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Our tensors, joined and transposed into GPT-2's."""
    joined = torch.cat(parts)
    return joined.T if name.endswith(_GPT2_TRANSPOSED) else joined


def save_gpt2_folder(
    gpt: GPTModel, folder: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write `config.json` and `model.safetensors` as Hugging Face has them for GPT-2.

    Numbers are stored as `dtype`, such as `torch.bfloat16`; by default as they are.
    """
    gpt = unwrapped(gpt)
    check_plain_gpt(gpt)
    folder, dtype = Path(folder), dtype or gpt.tok_emb.weight.dtype
    check_floating(dtype)
    own = {name: p.detach() for name, p in gpt.state_dict().items()}
    no_bias = torch.zeros_like(own["final_norm.shift"])  # (C,)
    layout = _gpt2_layout(gpt.cfg["n_layers"])
    if gpt.cfg.get("tie_weights", False):
        del layout["lm_head.weight"]
    tensors = {}
    for theirs, ours in layout.items():
        tensor = _as_gpt2(theirs, [own.get(name, no_bias) for name in ours])
        prefix = "" if theirs == "lm_head.weight" else "transformer."
        tensors[prefix + theirs] = tensor.to("cpu", dtype).contiguous()
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    settings = gpt2_settings(gpt.cfg, str(dtype).removeprefix("torch."))
    write_atomically(folder / "config.json", json.dumps(settings, indent=2) + "\n")


GPT2_REPOSITORIES = {
    "124M": "openai-community/gpt2",
    "355M": "openai-community/gpt2-medium",
    "774M": "openai-community/gpt2-large",
    "1558M": "openai-community/gpt2-xl",
}


def download_and_load_gpt2(
    model_size: str, models_dir: str | Path
) -> tuple[GPTConfig, TensorFile]:
    """Fetch GPT-2's published weights, unless they are there: settings and tensors.

    Args:
        model_size: "124M", "355M", "774M" or "1558M"; 0.5, 1.5, 3.2 or 6.4 GB.
        models_dir: the files are kept in its subfolder `model_size`.

    Source: Build a Large Language Model (From Scratch), section 5.5.
    """
    check_model_size(model_size, GPT2_REPOSITORIES)
    folder = fetch_gpt2(GPT2_REPOSITORIES[model_size], Path(models_dir) / model_size)
    settings, params = read_gpt2_folder(folder)
    expected = GPT2_CONFIGS[model_size]
    check_same_config(settings, expected, str(params.path), "drop_rate")
    return settings, params
