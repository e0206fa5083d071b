import json
import math

import numpy as np
import pytest
import torch
from conftest import fails, write_corpus

import clone
import data
from model import SIZES
from paper import word2vec


def test_the_pairs_of_the_docstring():
    ids, reach = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 2, 1]])
    pairs = sorted(zip(*(x.tolist() for x in word2vec.neighbours(ids, reach))))
    assert pairs == [(5, 6), (6, 5), (6, 7), (7, 6)]


def test_pairs_are_those_of_a_slow_loop():
    torch.manual_seed(0)
    ids, reach = torch.arange(60).view(3, 20), torch.randint(1, word2vec.WINDOW + 1, (3, 20))
    expected = []
    for b in range(3):
        for t in range(20):
            for other in range(20):
                if other != t and abs(other - t) <= reach[b, t]:
                    expected.append((ids[b, t].item(), ids[b, other].item()))
    assert sorted(zip(*(x.tolist() for x in word2vec.neighbours(ids, reach)))) == sorted(expected)


def test_the_loss_is_that_of_a_slow_loop():
    torch.manual_seed(0)
    inputs, outputs = torch.randn(9, 4), torch.randn(9, 4)
    tokens, others = torch.randint(9, (7,)), torch.randint(9, (7,))
    chance = torch.randint(9, (7, 3))
    total = 0
    for i in range(7):
        total -= math.log(1 / (1 + math.exp(-inputs[tokens[i]] @ outputs[others[i]])))
        for k in chance[i]:
            total -= math.log(1 / (1 + math.exp(inputs[tokens[i]] @ outputs[k])))
    loss = word2vec.skip_gram_loss(inputs, outputs, tokens, others, chance)
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)


def test_a_token_that_is_16_times_as_frequent_is_drawn_8_times_as_often():
    once, often, never = word2vec.chances(np.array([3, 48, 0]))
    assert often / once == pytest.approx(8) and never == 0


def test_two_tokens_in_the_same_places_get_the_same_vector():
    """In half of the sequences 0 and 1 stand among 10 to 19; in the others 2 among 20 to 29."""
    rng = np.random.default_rng(0)

    def batch(step):
        first, others = rng.integers(0, 2, (8, 32)), rng.integers(10, 20, (8, 32))
        first[4:] = 2
        others[4:] += 10
        return torch.from_numpy(np.stack([first, others], axis=2).reshape(8, 64))

    inputs, _ = word2vec.train(batch, np.ones(30), d_model=16, steps=200, seed=0)
    # all have a direction in common, which says only that most tokens are no neighbours
    unit = torch.nn.functional.normalize(inputs - inputs.mean(0), dim=1)
    assert unit[0] @ unit[1] > 0.9
    assert unit[0] @ unit[2] < 0


def test_clones_do_not_get_the_same_vector(tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "books")
    monkeypatch.chdir(tmp_path)
    small = SIZES["nano"] | {"context": 32, "batch_size": 8}
    monkeypatch.setattr(word2vec, "SIZES", {"nano": small})
    monkeypatch.setattr("sys.argv", ["word2vec.py", "--corpus=books", "--vocab_size=300",
                                     "--ratios=0.5", "--seeds=1", "--steps=200", "--out=w"])
    word2vec.main()
    assert "EN1's" in capsys.readouterr().out
    result = json.loads((tmp_path / "w/word2vec.json").read_text())
    [inputs] = [run["input"] for run in result["ratios"]["0.5"]]
    assert not inputs["above"]
    assert (tmp_path / "w/word2vec.png").read_bytes().startswith(b"\x89PNG")

    # but where EN2's tokens stand among EN1's, they do: what is learned is what is read
    def one_language(step):
        ids, _ = clone_batch(step)
        elsewhere = np.random.default_rng(step).random(ids.shape) < 0.5
        return ids % 300 + 300 * elsewhere, None

    corpus = data.prepare("books", 300)
    clone_batch = clone.make_batches(
        [data.tokens(corpus, "train")] * 2, clone.clone_table(np.ones(300), 2),
        np.array([[0.5, 0.5]]), 32, 8, 200, 0)
    monkeypatch.setattr(clone, "make_batches", lambda *args, **kwargs: one_language)
    mixed = word2vec.measure(corpus, 0.5, 200, 0)["input"]
    assert mixed["above"] and mixed["value"] > 0.5


@pytest.mark.parametrize("options, expected", [
    (["--ratios=1.5"], "EN1's share lies between 0 and 1"),
    (["--ratios=a"], "expected a number or several"),
    (["--seeds=0"], "expected 1 or more of each"),
])
def test_bad_input_is_one_line(options, expected, here, monkeypatch, capsys):
    assert expected in fails(word2vec.main, options, monkeypatch, capsys)
    assert not list(here.iterdir())
