"""How fast the course's GPT trains and writes, beside transformers' GPT-2.

    python benchmarks/model.py training      one training step, tokens per second
    python benchmarks/model.py generation    cached greedy text, tokens per second

Both models have GPT-2's shapes and the same random weights, and take turns within one
run, so that a busy machine slows both; the table shows medians and their ratio.
"""

import argparse
import statistics
import time

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from shared.ch04 import GPT_CONFIG_124M, GPTModel, generate_text_simple

SIZES = {
    "124M": {},
    "30M": {"emb_dim": 384, "n_heads": 6, "n_layers": 6},
}
PROMPT_TOKENS, NEW_TOKENS = 16, 64


@torch.no_grad()
def optimize_layout_for_generation(model):
    """Store the matrix of each `nn.Linear` column by column, in place.

    Row after row, a product with a single vector is as many products of a row with the
    vector; column after column it is a sum of multiples of columns, and PyTorch's
    float32 routines for CPUs read a matrix faster so. Values, shapes and names stay as
    they are, tied weights stay tied, and logits agree up to rounding. The `state_dict`
    holds matrices by rows (copies), which is all that safetensors takes; loading keeps
    the new layout. Worth it for float32 on a CPU and one text at a time; it was not
    found to help in bfloat16, and a GPU does not need it.
    """
    turned = False
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.t().is_contiguous():
            layer.weight.data = layer.weight.data.t().contiguous().t()
            turned = True
    if turned:
        model.register_state_dict_post_hook(_rows_again)


def _rows_again(module, state_dict, prefix, metadata):
    """State-dict hook: lay out by rows what `optimize_layout_for_generation` turned."""
    for key, tensor in state_dict.items():
        if isinstance(tensor, torch.Tensor):
            state_dict[key] = tensor.contiguous()


def build_models(size, device):
    """Our model and transformers', of the same shapes, without dropout."""
    # Here, for it takes seconds, and the tests of the layout need none of it.
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = {**GPT_CONFIG_124M, **SIZES[size], "drop_rate": 0.0, "qkv_bias": True}
    ours = GPTModel({**cfg, "tie_weights": True})
    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_embd=cfg["emb_dim"],
            n_head=cfg["n_heads"],
            n_layer=cfg["n_layers"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    return ours.to(device), theirs.to(device)


def training_steps(size, device, dtype, context=256, batch=2):
    """One training step of each model, as functions, and the tokens that each reads."""
    torch.manual_seed(123)
    ours, theirs = build_models(size, device)
    ids = torch.randint(50257, (batch, context + 1), device=device)
    inputs, targets = ids[:, :-1], ids[:, 1:]

    def stepper(model, logits_of):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        model.train()

        def step():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = logits_of(model(inputs))
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    steps = {
        "ours": stepper(ours, lambda logits: logits),
        "transformers": stepper(theirs, lambda output: output.logits),
    }
    return steps, batch * context


def generation_runs(size, device, dtype):
    """Cached greedy generation by each model, as functions, and the tokens made."""
    torch.manual_seed(123)
    ours, theirs = build_models(size, device)
    plain = GPTModel(ours.cfg).to(device=device, dtype=dtype).eval()
    ours = ours.to(dtype).eval()
    optimize_layout_for_generation(ours)
    theirs = theirs.to(dtype).eval()
    theirs.generation_config.pad_token_id = 0
    theirs.generation_config.eos_token_id = None
    prompt = torch.randint(50257, (1, PROMPT_TOKENS), device=device)
    runs = {
        "ours": lambda: generate_text_simple(
            ours, prompt, NEW_TOKENS, 1024, use_cache=True
        ),
        "ours, plain layout": lambda: generate_text_simple(
            plain, prompt, NEW_TOKENS, 1024, use_cache=True
        ),
        "transformers": lambda: theirs.generate(
            prompt, max_new_tokens=NEW_TOKENS, do_sample=False
        ),
    }
    return runs, NEW_TOKENS


def measure(functions, tokens, rounds, device):
    """Run the functions in turn; a table of tokens per second and ratios."""
    seconds = {name: [] for name in functions}
    for round_number in tqdm(range(rounds + 1), unit="round"):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: tokens / statistics.median(s) for name, s in seconds.items()}
    table = pd.DataFrame({"tokens per second": pd.Series(rates)})
    table["times transformers"] = table.iloc[:, 0] / rates["transformers"]
    return table.round(2)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["training", "generation"])
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare = training_steps if options.what == "training" else generation_runs
    functions, tokens = prepare(options.size, device, getattr(torch, options.dtype))
    table = measure(functions, tokens, options.rounds, device)
    print(f"{options.what}, {options.size}, {options.dtype}, {device.type}")
    print(table.to_string())


if __name__ == "__main__":
    main()
