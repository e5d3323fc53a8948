"""What reading a language model from a GGUF file refuses, and talking with it."""

from collections.abc import Collection, Mapping, Sequence

from ch05_pretraining.guards import check_same_shapes

__all__ = ["check_same_shapes", "check_settings", "check_kinds", "check_tokenizer"]
__all__ += ["check_whole_blocks", "check_messages", "check_room", "ROLES"]

ROLES = ("system", "user", "assistant")
# Settings that `LlamaModel` cannot follow: with one of these it would be wrong.
_FOREIGN = ("rope.scaling", "expert_count", "attention.sliding_window")


def check_settings(metadata: Mapping, keys: Collection[str], tensors: Mapping) -> None:
    """Refuse a file that is no Llama, lacks a setting, or claims more than it holds."""
    found = metadata.get("general.architecture")
    if found != "llama":
        raise ValueError(
            f"the file's general.architecture is {found!r}; this chapter's model is "
            "'llama'"
        )
    for key in keys:
        value = metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(
                f"the file's {key} must be a number above 0, not {value!r}"
            )
    for key in metadata:
        if key.startswith(tuple(f"llama.{name}" for name in _FOREIGN)):
            raise ValueError(f"the file has {key}, which LlamaModel does not have")
    width = metadata["llama.embedding_length"] // metadata["llama.attention.head_count"]
    if metadata.get("llama.rope.dimension_count", width) != width:
        raise ValueError(
            f"the file rotates {metadata['llama.rope.dimension_count']} of {width} "
            "numbers of a head; LlamaModel rotates all"
        )
    # A few bytes of settings can ask for a model of any size.
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    if metadata["llama.block_count"] != len(blocks):
        raise ValueError(
            f"the file's llama.block_count is {metadata['llama.block_count']}, but it "
            f"has tensors of {len(blocks)} blocks"
        )


def check_kinds(tensors: Mapping, known: Collection[str]) -> None:
    """Refuse a tensor that is stored in a way we cannot read."""
    for name, tensor in tensors.items():
        if tensor.kind not in known:
            raise ValueError(
                f"{name} is stored as {tensor.kind}; this chapter reads "
                f"{', '.join(known)}, and gguf.quants.dequantize many others"
            )


def check_whole_blocks(count: int, size: int) -> None:
    """Refuse numbers that are no whole blocks."""
    if count == 0 or count % size != 0:
        raise ValueError(f"{count} numbers are not whole blocks of {size}")


def check_tokenizer(metadata: Mapping, characters: Collection[str]) -> None:
    """Refuse a tokenizer other than SmolLM2's: its kind, its split, its tables."""
    found = {
        key: metadata.get(f"tokenizer.ggml.{key}")
        for key in ("model", "pre", "tokens", "token_type", "merges")
    }
    for key, wanted in (("model", "gpt2"), ("pre", "smollm")):
        if found[key] != wanted:
            raise ValueError(
                f"the file's tokenizer.ggml.{key} is {found[key]!r}, not {wanted!r}"
            )
    tokens, kinds, rules = (found[key] for key in ("tokens", "token_type", "merges"))
    lists = all(isinstance(table, list) for table in (tokens, kinds, rules))
    if not lists or len(tokens) != len(kinds):
        raise ValueError("the file's tokens, token_type and merges do not fit together")
    known = set()
    for token, kind in zip(tokens, kinds, strict=True):
        if token in known:
            raise ValueError(f"the file has the token {token!r} twice")
        if kind != 3 and not all(character in characters for character in token):
            raise ValueError(f"the file's token {token!r} spells no bytes")
        known.add(token)
    for rule in rules:
        left, _, right = rule.partition(" ")
        if not {left, right, left + right} <= known:
            raise ValueError(f"the file's merge {rule!r} joins or makes unknown tokens")


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Refuse a conversation that is none, or in which somebody unknown speaks."""
    if isinstance(messages, str | Mapping) or not messages:
        raise ValueError(
            "a conversation is a list such as [{'role': 'user', 'content': 'Hello'}], "
            f"not {messages!r}"
        )
    for number, message in enumerate(messages, start=1):
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(
                f"message {number} has the role {role!r}; there are {', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str):
            raise ValueError(
                f"message {number} has the content {message.get('content')!r}, no text"
            )


def check_room(n_prompt: int, max_new_tokens: int, longest: int) -> None:
    """Refuse a conversation that leaves no room for its answer."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if n_prompt + max_new_tokens > longest:
        raise ValueError(
            f"{n_prompt} tokens of conversation and {max_new_tokens} of answer do not "
            f"fit into context_length {longest}; leave out the oldest messages"
        )
