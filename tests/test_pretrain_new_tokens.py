"""A model gets other tokens, and its blocks go on knowing what they knew."""

import pytest
import torch

from pretrain.new_tokens import change_tokens, main, new_table
from shared.ch02 import END_OF_TEXT, BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import build_pretrained, read_gpt2_folder, save_gpt2_folder

TEXT = "the fox saw the other fox. the fox saw that the hat was on the cat. "
CONFIG = {
    "context_length": 16,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
    "tie_weights": True,
}


def learned(text: str, vocab_size: int) -> BPETokenizer:
    tokenizer = BPETokenizer()
    tokenizer.train([text], vocab_size, allowed_special={END_OF_TEXT})
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    """A model with 270 tokens of its own, in float32 that bfloat16 holds."""
    torch.manual_seed(123)
    tokenizer = learned(10 * TEXT, 270)
    gpt = GPTModel({**CONFIG, "vocab_size": tokenizer.n_vocab}).bfloat16().float()
    save_gpt2_folder(gpt, tmp_path / "old", dtype=torch.float32)
    tokenizer.save(tmp_path / "old/tokenizer.json")
    return tmp_path / "old"


def both(folder, out):
    """The two models and their tokenizers."""
    return [
        (
            build_pretrained(*read_gpt2_folder(place)),
            BPETokenizer.load(place / "tokenizer.json"),
        )
        for place in (folder, out)
    ]


def test_a_new_row_is_the_mean_of_the_old_ones_that_spell_it():
    old = torch.arange(12.0).view(4, 3)
    found = new_table(old, [[2], [0, 1], [3, 3, 0]])
    assert found.tolist() == [[6.0, 7.0, 8.0], [1.5, 2.5, 3.5], [6.0, 7.0, 8.0]]


def test_tokens_of_both_tables_keep_their_vectors_and_others_get_a_mean(folder):
    path, out = folder.parent / "new.json", folder.parent / "out"
    learned("a cat sat on the hat. " + TEXT, 280).save(path)
    change_tokens(folder, path, out)
    (old, old_tokens), (new, new_tokens) = both(folder, out)
    before, after = old.tok_emb.weight, new.tok_emb.weight
    assert after.shape == (280, 8) and new.out_head.weight is after
    ids = {token: i for i, token in old_tokens.vocab.items()}
    shared = [i for i in range(280) if new_tokens.vocab[i] in ids]
    assert 257 < len(shared) < 280  # all bytes, the special token, and some words
    for i in range(280):
        token = new_tokens.vocab[i]
        spelled = [ids[token]] if i in shared else old_tokens.encode(token.decode())
        assert len(spelled) == 1 or i not in shared
        mean = before[spelled].mean(dim=0)
        assert torch.allclose(after[i], mean, rtol=0.01)  # it is stored in bfloat16
    assert after[new_tokens.eot_token].equal(before[old_tokens.eot_token])
    for name, parameter in new.trf_blocks.named_parameters():
        assert parameter.equal(old.trf_blocks.get_parameter(name)), name
    assert new.pos_emb.weight.equal(old.pos_emb.weight)


def test_the_same_tokens_in_another_order_give_the_same_predictions(folder):
    tokens = BPETokenizer.load(folder / "tokenizer.json")
    path, out = folder.parent / "new.json", folder.parent / "out"
    learned(TEXT.replace("fox", "cat"), 262).save(path)
    change_tokens(folder, path, out)
    (old, tokens), (new, others) = both(folder, out)
    text = "q w z"  # letters and spaces that no merge joins
    assert len(tokens.encode(text)) == len(others.encode(text)) == 5
    with torch.no_grad():
        logits = old(torch.tensor([tokens.encode(text)]))
        found = new(torch.tensor([others.encode(text)]))
    letters = [bytes([i]) for i in range(256)]
    sides = []
    for tokenizer, values in ((tokens, logits), (others, found)):
        ids = {token: i for i, token in tokenizer.vocab.items()}
        sides.append(values[..., [ids[letter] for letter in letters]])
    assert torch.allclose(*sides, atol=1e-6)


def test_a_model_of_gpt2s_tokens_can_change_to_its_own(tmp_path):
    torch.manual_seed(123)
    gpt = GPTModel({**CONFIG, "vocab_size": 50257}).bfloat16().float()
    save_gpt2_folder(gpt, tmp_path / "old", dtype=torch.bfloat16)
    learned(TEXT, 270).save(tmp_path / "new.json")
    arguments = ["--tokenizer", str(tmp_path / "new.json"), "--out"]
    main([str(tmp_path / "old"), *arguments, str(tmp_path / "out")])
    new = build_pretrained(*read_gpt2_folder(tmp_path / "out"))
    eot = BPETokenizer.load(tmp_path / "out/tokenizer.json").eot_token
    assert new.tok_emb.weight[eot].equal(gpt.tok_emb.weight[50256])


def test_what_cannot_be_read_is_named(folder, tmp_path, capsys):
    for model, tokenizer in ((tmp_path / "none", folder / "tokenizer.json"),):
        with pytest.raises(SystemExit, match="error: .*none"):
            main(
                [
                    str(model),
                    "--tokenizer",
                    str(tokenizer),
                    "--out",
                    str(tmp_path / "o"),
                ]
            )
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(SystemExit, match="error: .*broken.json"):
        main([str(folder), "--tokenizer", str(broken), "--out", str(tmp_path / "o")])
    assert not (tmp_path / "o").exists()
