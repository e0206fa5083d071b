import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bench
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
