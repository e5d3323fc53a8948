"""Mixed precision: matrix products in bfloat16, where that is faster."""

import torch


def has_fast_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether a device has instructions that multiply numbers in bfloat16."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch only
    return device.type == "cpu" and capabilities.get("avx512_bf16", False)


def mixed_precision(device: torch.device | str = "cpu") -> torch.autocast:
    """A block whose matrix products are made in bfloat16, if the device is fast at it.

    Weights, gradients, norms and losses stay in float32. On other devices the block
    changes nothing. It may hold a whole training:

        with mixed_precision(device):
            train_model_simple(...)

    So it does not cache the weights in bfloat16, as `torch.autocast` does by itself:
    after the first step they would be old.

    Source: Micikevicius et al. (2018), Mixed Precision Training; for bfloat16
    Kalamkar et al. (2019), A Study of BFLOAT16 for Deep Learning Training.
    """
    return torch.autocast(
        torch.device(device).type,
        torch.bfloat16,
        enabled=has_fast_bfloat16(device),
        cache_enabled=False,
    )
