import pytest
import torch

import bench
from model import GPT, SIZES


@pytest.mark.parametrize("tied", [True, False])
def test_the_plain_way_computes_the_same_loss_and_gradients(tied):
    torch.manual_seed(0)
    model = GPT(SIZES["nano"] | {"vocab_size": 300, "tied": tied})
    ids = torch.randint(300, (3, 129))
    losses = [model(ids), bench.plain_loss(model, ids)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.mean(), list(model.parameters())) for loss in losses))
