from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from conftest import fails, write_corpus
from torch.utils.flop_counter import FlopCounterMode

import bench
import data
from model import GPT, SIZES


@pytest.mark.parametrize("tied", [True, False])
def test_the_plain_way_computes_the_same_loss_and_gradients(tied):
    torch.manual_seed(0)
    model = GPT(SIZES["nano"] | {"vocab_size": 300, "tied": tied})
    ids = torch.randint(300, (3, 129))
    ours, plain = model(ids), bench.plain_loss(model, ids)
    torch.testing.assert_close(ours, plain)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(ours.mean(), parameters),
                               torch.autograd.grad(plain.mean(), parameters))


def test_the_flops_of_a_step_are_those_that_torch_counts():
    shape = SIZES["nano"] | {"vocab_size": 300, "batch_size": 2, "n_layer": 3}
    model = GPT(shape | {"vocab_size": 2 * 300}, torch.bfloat16)  # two languages
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(600, (2, 129))).mean().backward()
    assert bench.matmul_flops(shape) == counter.get_total_flops()


def test_batches_are_of_two_languages_at_90_to_10():
    shape = SIZES["nano"] | {"vocab_size": 300}
    batch = bench.make_batches(shape, 100)
    langs = np.concatenate([batch(step)[1] for step in range(100)])
    assert set(langs) == {0, 1}
    assert (langs == 0).mean() == pytest.approx(0.9, abs=0.03)
    ids, lang = batch(0)
    assert ids.shape == (16, 129)
    assert ids.min() >= 0 and ids.max() < 600


def test_a_row_is_of_the_medians_over_the_turns():
    """Planted turns: (seconds a step, seconds a batch, MB); one of them was slow."""
    shape = SIZES["nano"] | {"batch_size": 10, "context": 100}  # 1,000 tokens a step
    fast = [(0.5, 0.005, 100), (9.0, 0.090, 130), (0.5, 0.005, 110)]
    plain = [(1.0, 0.005, 200), (9.0, 0.090, 190), (1.0, 0.005, 210)]
    row = bench.compare(shape, fast, plain, peak=bench.matmul_flops(shape) * 4)
    assert row == {
        "tokens_per_s": 2000,
        "plain_tokens_per_s": 1000,
        "ratio": 2,
        "ratios": [2, 1, 2],
        "of_matmul_peak": 0.5,  # one step's in half a second, where the peak is four a second
        "batch_share": pytest.approx(0.01),
        "memory_mb": 130,
        "plain_memory_mb": 210,
    }


# ------------------------------------------------------------------------------------------------
# --vs

# what is asked of a checkout of nanoGPT: its shape, its optimiser, and each next token's loss
CHECKOUT = '''
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, weight_decay, lr, betas, device_type):
        assert device_type == "cpu"
        return torch.optim.SGD(self.parameters(), lr=100.0)

    def forward(self, idx, targets):
        logits = self.table(idx)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "model.py").write_text(CHECKOUT)
    return str(tmp_path)


def test_theirs_has_our_shape_and_learns_our_next_tokens(checkout):
    """Theirs is a table of bigrams here, which learns the one batch that it is given."""
    shape = SIZES["nano"] | {"vocab_size": 300, "context": 12, "n_layer": 3}
    model, *_ = bench.their_model(checkout, shape, 600)
    config = model.config
    assert (config.block_size, config.vocab_size, config.n_layer) == (12, 600, 3)
    assert (config.n_head, config.n_embd, config.bias) == (8, 256, True)

    optimizer, loss = bench.set_up(bench.Way(checkout, torch.float32), shape, torch.device("cpu"))
    ids, lang = torch.arange(26).view(2, 13), torch.tensor([0, 1])
    for _ in range(20):
        loss(ids, lang).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(ids, lang) < 0.05  # each id is followed by the next one
    assert loss(ids.flip(1), lang) > 5


def test_times_are_of_our_best_way_turn_by_turn():
    """Planted turns, in which ours is best when compiled."""
    shape = SIZES["nano"] | {"batch_size": 10, "context": 100}  # 1,000 tokens a step
    measured = {
        "nanoclone": [(1.0, 0, 5), (1.0, 0, 6), (1.0, 0, 5)],
        "nanoclone compiled": [(0.5, 0, 7), (0.4, 0, 7), (0.5, 0, 7)],
        "nanoGPT": [(2.0, 0, 9), (1.0, 0, 9), (1.0, 0, 9)],
    }
    rows = bench.compare_theirs(shape, measured, peak=bench.matmul_flops(shape) * 4)
    assert rows["nanoGPT"] == {
        "tokens_per_s": 1000,
        "of_matmul_peak": 0.25,
        "memory_mb": 9,
        "times": 2,
        "times_by_turn": [4, 2.5, 2],
    }
    assert rows["nanoclone compiled"]["times_by_turn"] == [1, 1, 1]
    assert rows["nanoclone"]["memory_mb"] == 6


@pytest.mark.parametrize("options, expected", [
    (["--vs=nowhere"], "a checkout of nanoGPT"),
    (["--vs=CHECKOUT", "--arch=encoder"], "leave --arch=encoder out"),
    (["--vs=."], "expected transformers, or a checkout of nanoGPT"),
    (["--models=nano,huge"], "there is no huge"),
    (["--turns=0"], "expected 1 or more of each"),
    (["--out=nowhere/a.json"], "expected a file, in a folder that is there"),
    (["--scale", "--models=nano"], "train nothing"),
    (["--text=nowhere"], "neither a file, nor a folder, nor one of docs"),
    (["--text=EMPTY"], "empty.txt is empty"),
    (["--scale", "--out=/"], "--out=/: expected a file, in a folder that is there"),
])
def test_what_cannot_be_measured_is_refused(tmp_path, options, expected, checkout, monkeypatch,
                                            capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    options = [option.replace("CHECKOUT", checkout).replace("EMPTY", str(empty))
               for option in options]
    assert expected in fails(bench.main, options, monkeypatch, capsys)


# ------------------------------------------------------------------------------------------------
# --scale

def test_a_text_is_measured_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "text.bin"
    found = []
    for n_tokens in (10**6, 10**8):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a peak of its own
            found.append(pool.submit(bench.measure_text, n_tokens, path).result())
    assert list(tmp_path.iterdir()) == []
    (_, small, _), (_, large, _) = found
    # two numbers of 8 bytes a window of 129 tokens, and some room: the whole text would be 200 MB
    assert small < large < small + 2 * 8 * 10**8 / 129 / 1e6 + 40


# ------------------------------------------------------------------------------------------------
# --text

def test_the_stages_are_those_of_data_py_on_all_of_a_text(here, monkeypatch):
    """Each of them is given what data.build gives it."""
    write_corpus(here / "books", documents=8)
    calls = []

    def spy_on(name):
        function = getattr(data, name)

        def spy(*args):
            calls.append((name, args[1] if name in ("count_words", "encode") else None))
            return function(*args)
        monkeypatch.setattr(data, name, spy)

    for name in ("gather", "count_words", "learn_bpe", "encode"):
        spy_on(name)

    monkeypatch.setattr(data, "VOCAB_SIZE", 300)
    megabytes, seconds, _ = bench.measure_preparing("books")
    assert [path.name for path in here.iterdir()] == ["books"]
    measured = calls.copy()
    calls.clear()
    manifest = data.prepare("books", 300)
    assert measured == calls
    assert megabytes * 1e6 == sum(manifest["bytes"].values())
    assert list(seconds)[-1] == "tiktoken alone" and min(seconds.values()) > 0
