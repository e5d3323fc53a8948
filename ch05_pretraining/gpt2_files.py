"""GPT-2's folders: their settings, the names in them, and where to fetch them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from ch05_pretraining.guards import check_same_shapes, check_tied
from ch05_pretraining.tensor_files import pieces_of
from shared.ch04 import GPTModel
from shared.data import DataUnavailable, sha256_of

__all__ = ["GPT2_FILES", "gpt2_settings", "read_gpt2_settings"]
__all__ += ["gpt2_sources", "fetch_gpt2"]

GPT2_FILES = ("config.json", "model.safetensors")

# The sha256 of `model.safetensors`, for each of these repositories as several
# independent projects state it. For gpt2-large none was found, so it is not checked.
GPT2_SHA256 = {
    "openai-community/gpt2": (
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
    ),
    "openai-community/gpt2-medium": (
        "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd"
    ),
    "openai-community/gpt2-xl": (
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a"
    ),
}

_KEYS = {  # our setting -> GPT-2's
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}

_FIXED = {  # what every GPT-2 has in common, and GPTModel computes
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def gpt2_settings(cfg: Mapping, dtype: str) -> dict:
    """The contents of `config.json` for a model of ours, stored as e.g. "bfloat16"."""
    # numbers of numpy's as Python's, since JSON holds no others
    cfg = {key: getattr(v, "item", lambda v=v: v)() for key, v in cfg.items()}
    last = cfg["vocab_size"] - 1  # where GPT-2 has <|endoftext|>
    return {
        "architectures": ["GPT2LMHeadModel"],
        **_FIXED,
        **{theirs: cfg[ours] for ours, theirs in _KEYS.items()},
        "n_ctx": cfg["context_length"],  # n_positions by its older name
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), cfg["drop_rate"]),
        "tie_word_embeddings": cfg.get("tie_weights", False),
        "bos_token_id": last,
        "eos_token_id": last,
        "dtype": dtype,
    }


def read_gpt2_settings(path: Path) -> dict:
    """A `config.json` as a config of ours.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or of another architecture than GPT-2, which may
            have the same keys and mean something else by them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; see save_gpt2_folder")
    try:
        published = dict(json.loads(path.read_text(encoding="utf-8")))
        settings = {ours: published[theirs] for ours, theirs in _KEYS.items()}
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; that is no GPT-2") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); get or save it again") from None
    for key, value in _FIXED.items():
        wanted = [value]
        if key == "activation_function":  # the same function by PyTorch's name
            wanted.append("gelu_pytorch_tanh")
        if key == "n_inner" and type(settings["emb_dim"]) is int:
            wanted.append(4 * settings["emb_dim"])
        if published.get(key, value) not in wanted:
            raise ValueError(
                f"{path}: {key} is {published[key]!r}, but GPTModel computes {value!r}"
            )
    settings["drop_rate"] = published.get("resid_pdrop", 0.1)
    settings["qkv_bias"] = True
    settings["tie_weights"] = published.get("tie_word_embeddings", True)
    return settings


def gpt2_sources(
    gpt: GPTModel,
    params: Mapping[str, torch.Tensor],
    layout: Mapping[str, list[str]],
    transposed: tuple[str, ...],
) -> dict[str, str]:
    """GPT-2's plain names, each with its name in `params`, if all of them fit.

    The names in `params` may begin with `transformer.`, as `transformers` writes them.
    Causal masks, which old versions stored too, are left out. A missing output head is
    the embedding. A model whose head is the embedding needs none; if there is one, it
    must be equal.

    Args:
        layout: each of GPT-2's names, with the names of the parameters of ours that it
            holds one below the other.
        transposed: how the names end whose tensors GPT-2 stores transposed.

    Raises:
        ValueError: if tensors are missing, unknown or of another shape.
    """
    masks = (".attn.bias", ".attn.masked_bias")
    sources = {
        name.removeprefix("transformer."): name
        for name in params
        if not name.endswith(masks)
    }
    wanted, tied = dict(layout), gpt.out_head.weight is gpt.tok_emb.weight
    if not tied and "wte.weight" in sources:
        sources.setdefault("lm_head.weight", sources["wte.weight"])
    elif "lm_head.weight" not in sources:
        del wanted["lm_head.weight"]
    shapes = getattr(params, "shapes", None) or {n: t.shape for n, t in params.items()}
    own = {name: p.shape for name, p in gpt.named_parameters(remove_duplicate=False)}
    for theirs, ours in wanted.items():
        parts = [own[name] for name in ours]
        shape = (sum(part[0] for part in parts), *parts[0][1:])
        wanted[theirs] = shape[::-1] if theirs.endswith(transposed) else shape
    found = {plain: shapes[source] for plain, source in sources.items()}
    check_same_shapes(found, wanted, "the set of weights")
    if tied and "lm_head.weight" in sources:
        both = [sources.pop("lm_head.weight"), sources["wte.weight"]]
        pairs = zip(*(pieces_of(params, name) for name in both), strict=True)
        check_tied(torch.equal(a, b) for (_, a), (_, b) in pairs)
    return sources


def fetch_gpt2(repository: str, folder: Path) -> Path:
    """A folder that holds the repository's two files, fetched if need be.

    Raises:
        DataUnavailable: a FileNotFoundError that says what was tried; also if the
            weights that came are not those published, which are deleted then.
    """
    import huggingface_hub  # a second to import, and needed here alone

    if all((folder / name).is_file() for name in GPT2_FILES):
        return folder
    cached = [
        huggingface_hub.try_to_load_from_cache(repository, name) for name in GPT2_FILES
    ]
    if all(isinstance(path, str) for path in cached):
        return Path(cached[0]).parent
    try:
        for name in GPT2_FILES:
            huggingface_hub.hf_hub_download(repository, name, local_dir=folder)
    except Exception as error:  # no network, no space, no such repository, ...
        raise DataUnavailable(
            f"{repository} could not be fetched. Tried:\n"
            f"  folder: {folder}: not there\n"
            "  Hugging Face's cache: not there\n"
            f"  https://huggingface.co/{repository}: {type(error).__name__}: {error}\n"
            "Remedy: connect to the network and try again (it goes on where it "
            f"stopped), or copy {' and '.join(GPT2_FILES)} into {folder}."
        ) from error
    _check_published(repository, folder / "model.safetensors")
    return folder


def _check_published(repository: str, path: Path) -> None:
    """Delete and refuse weights that are not those published."""
    published, found = GPT2_SHA256.get(repository), sha256_of(path)
    if published not in (None, found):
        path.unlink()
        raise DataUnavailable(
            f"what {repository} sent as {path.name} is not what was published: sha256 "
            f"{found} instead of {published}; it was deleted, so try again"
        )
