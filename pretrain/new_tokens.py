"""Give a trained model another tokenizer, and keep what its blocks have learned.

    python -m pretrain.new_tokens runs/base-4/model --tokenizer tokenizer.json \\
        --out initial

A model's blocks see vectors, not tokens. So they can go on with other tokens, if those
get vectors that the blocks understand: each new token begins with the mean of the
vectors of the old tokens that spell it. A common word is one token in both tables and
keeps its vector. A run that has the result as its `initial` model learns the rest.

Source: Hewitt (2021), Initializing New Word Embeddings for Pretrained Language Models,
begins with a mean, too: that of all the old vectors.
"""

import argparse
import sys
from pathlib import Path

import torch

from pretrain.prepare import TOKENIZER
from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import build_pretrained, read_gpt2_folder, save_gpt2_folder
from shared.files import copy_file


def new_table(old: torch.Tensor, spelled: list[list[int]]) -> torch.Tensor:
    """The mean of some rows of a table, for each row of a new one.

    Args:
        old: (old V, C).
        spelled: V lists, each with the numbers of one or more rows of `old`.

    Returns:
        (V, C)
    """
    return torch.stack([old[ids].mean(dim=0) for ids in spelled])


def change_tokens(folder: Path, tokenizer_file: Path, out: Path) -> None:
    """Write the model of a folder, with tables for the tokens of another tokenizer.

    Args:
        folder: a model in the format of Hugging Face's GPT-2, with its tokenizer.json
            if it does not use GPT-2's tokens.
        tokenizer_file: the new tokenizer, as `pretrain.tokenizer` writes it.
        out: folder for the result.

    Raises:
        OSError, ValueError: if a file cannot be read or written, or is damaged.
    """
    own = folder / TOKENIZER
    old = BPETokenizer.load(own) if own.is_file() else BPETokenizer.from_gpt2()
    new = BPETokenizer.load(tokenizer_file)
    gpt = build_pretrained(*read_gpt2_folder(folder))
    ids = {token: i for i, token in old.vocab.items()}
    tokens = [new.decode_bytes([i]) for i in range(new.n_vocab)]
    spelled = [
        [ids[token]] if token in ids else old.encode(token.decode("utf-8", "replace"))
        for token in tokens
    ]
    changed = GPTModel({**gpt.cfg, "vocab_size": new.n_vocab})
    state = gpt.state_dict()
    for name in ("tok_emb.weight", "out_head.weight"):
        state[name] = new_table(state[name], spelled)
    changed.load_state_dict(state)
    save_gpt2_folder(changed, out, dtype=torch.bfloat16)
    copy_file(tokenizer_file, out / TOKENIZER)


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.new_tokens",
        description="Give a trained model another tokenizer.",
    )
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="its new tokenizer.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    given = parser.parse_args(arguments)
    try:
        change_tokens(given.model, given.tokenizer, given.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
