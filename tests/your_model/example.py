"""A GPT in one file that keeps all promises, written apart from the course's code.

Attention is spelled out, the cache is a list of pairs, and no argument is checked.
`tests/test_your_model.py` breaks it line by line and looks at what the tests say.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.scale + self.shift


class MultiHeadAttention(nn.Module):
    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        self.heads, self.width = num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, self.width).transpose(1, 2)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = (self.split(f(x)) for f in (self.W_query, self.W_key, self.W_value))
        if cache is not None:  # [keys, values] of the tokens before
            if cache:
                k = torch.cat([cache[0], k], dim=2)
                v = torch.cat([cache[1], v], dim=2)
            cache[:] = [k, v]
        scores = q @ k.transpose(2, 3) / math.sqrt(self.width)  # (B, H, T, past + T)
        past = k.shape[2] - T
        hidden = torch.ones(T, past + T, dtype=torch.bool).triu(diagonal=past + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
        weights = self.dropout(scores.softmax(dim=-1))
        context = (weights @ v).transpose(1, 2).reshape(B, T, C)
        return self.out_proj(context)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layers = nn.Sequential(up, nn.GELU(approximate="tanh"), down)

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C, rate = cfg["emb_dim"], cfg["drop_rate"]
        self.att = MultiHeadAttention(
            C, C, cfg["context_length"], rate, cfg["n_heads"], cfg["qkv_bias"]
        )
        self.ff = FeedForward(C)
        self.norm1, self.norm2 = LayerNorm(C), LayerNorm(C)
        self.drop = nn.Dropout(rate)

    def forward(self, x, cache=None):
        x = x + self.drop(self.att(self.norm1(x), cache))
        x = x + self.drop(self.ff(self.norm2(x)))
        return x


class GPTModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        V, C = cfg["vocab_size"], cfg["emb_dim"]
        self.tok_emb = nn.Embedding(V, C)
        self.pos_emb = nn.Embedding(cfg["context_length"], C)
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList(
            [TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = LayerNorm(C)
        self.out_head = nn.Linear(C, V, bias=False)
        nn.init.normal_(self.out_head.weight, std=0.02)

    def forward(self, ids, caches=None):
        past = caches[0][0].shape[2] if caches and caches[0] else 0
        positions = torch.arange(past, past + ids.shape[1])
        x = self.drop_emb(self.tok_emb(ids) + self.pos_emb(positions))
        for n, block in enumerate(self.trf_blocks):
            x = block(x, None if caches is None else caches[n])
        return self.out_head(self.final_norm(x))


@torch.no_grad()
def generate_text_simple(model, ids, count, context, use_cache=False):
    caches = [[] for _ in model.trf_blocks] if use_cache else None
    for n in range(count):
        new = ids[:, -1:] if use_cache and n else ids[:, -context:]
        logits = model(new, caches)[:, -1]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids


def calc_loss_batch(inputs, targets, model, device):
    logits = model(inputs.to(device))
    return F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())


def train_step(model, optimizer, inputs, targets):
    model.train()
    loss = calc_loss_batch(inputs, targets, model, "cpu")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def save_model(model, path):
    save_file(model.state_dict(), path)


def load_model(cfg, path):
    model = GPTModel(cfg)
    model.load_state_dict(load_file(path))
    return model


class GPTDatasetV1:
    def __init__(self, text, tokenizer, length, stride):
        ids = torch.tensor(tokenizer.encode(text))
        starts = range(0, len(ids) - length, stride)
        self.pairs = [
            (ids[i : i + length], ids[i + 1 : i + length + 1]) for i in starts
        ]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, n):
        return self.pairs[n]


class BPETokenizer:
    def __init__(self):
        self.merges, self.pieces = {}, {n: bytes([n]) for n in range(256)}

    def train(self, text, vocab_size):
        ids = list(text.encode())
        while len(self.pieces) < vocab_size:
            pairs = list(pairwise(ids))
            pair = max(pairs, key=pairs.count)
            self.merges[pair] = new = len(self.pieces)
            self.pieces[new] = self.pieces[pair[0]] + self.pieces[pair[1]]
            ids = self.merge(ids, pair)

    def merge(self, ids, pair):
        merged = []
        for n in ids:
            if merged and (merged[-1], n) == pair:
                merged[-1] = self.merges[pair]
            else:
                merged.append(n)
        return merged

    def encode(self, text):
        ids = list(text.encode())
        for pair in self.merges:
            ids = self.merge(ids, pair)
        return ids

    def decode(self, ids):
        return b"".join(self.pieces[n] for n in ids).decode()
