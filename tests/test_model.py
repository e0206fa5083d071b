import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import train
from model import GPT, SIZES, ChunkedCrossEntropy, attention

TINY = dict(
    vocab_size=60, context=16, n_layer=3, n_head=2, d_head=8, d_model=24,
    tied=False, embedding_std=0.02, bias=True, embedding_scale=True, arch="decoder", heads="shared",
)


def make(seed=0, dtype=torch.float32, **changes):
    """A tiny model, far from how it starts, so that every part of it matters."""
    torch.manual_seed(seed)
    model = GPT(TINY | changes, dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def always(logits):
    """A model that has the same logits {id: logit} after any text; -100 for the other ids."""
    model = make(n_layer=0)
    with torch.no_grad():
        # every hidden state is 1 in each of its dimensions, whatever was read
        model.norm.weight.zero_()
        model.norm.bias.fill_(1.0)
        model.unembedding.fill_(-100 / TINY["d_model"])
        for i, logit in logits.items():
            model.unembedding[i] = logit / TINY["d_model"]
    return model


# ------------------------------------------------------------------------------------------------
# The parts

@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_loss_is_the_full_loss_with_its_gradients(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(64, 10, requires_grad=True)
    weight = torch.randn(50, 10, requires_grad=True)
    targets, upstream = torch.randint(50, (64,)), torch.randn(64)
    full = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    expected = torch.autograd.grad(full, (hidden, weight), upstream)

    ours = ChunkedCrossEntropy.apply(hidden, weight, targets, chunk)
    got = torch.autograd.grad(ours, (hidden, weight), upstream)
    torch.testing.assert_close(ours, full)
    torch.testing.assert_close(got, expected)


def test_chunked_loss_survives_extreme_logits():
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    loss = ChunkedCrossEntropy.apply(hidden, weight, torch.tensor([1]), 8)
    loss.sum().backward()
    assert loss.item() == 2000
    assert hidden.grad.item() == 2


def test_chunked_loss_in_bf16_is_close_to_fp32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(600, 32), torch.randn(300, 32) * 0.3
    targets = torch.randint(300, (600,))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        h = hidden.bfloat16().to(dtype).requires_grad_()
        w = weight.clone().requires_grad_()
        losses = ChunkedCrossEntropy.apply(h, w, targets, 100)
        assert losses.dtype == torch.float32
        losses.mean().backward()
        found.append((losses.detach(), h.grad.float(), w.grad))
    for exact, rounded in zip(*found):
        assert (exact - rounded).norm() < 0.01 * exact.norm()


def test_attention_by_hand_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 16).bfloat16().requires_grad_() for _ in range(3))
    upstream = torch.randn(2, 3, 20, 16)
    by_hand = attention(q, k, v)  # bf16 on a CPU
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    torch.testing.assert_close(by_hand.float(), exact, atol=0.02, rtol=0.02)

    ours = torch.autograd.grad(by_hand, (q, k, v), upstream.bfloat16())
    theirs = torch.autograd.grad(exact, (q, k, v), upstream)
    for a, b in zip(ours, theirs):
        assert (a.float() - b.float()).norm() < 0.02 * b.float().norm()


# ------------------------------------------------------------------------------------------------
# The model

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_changed_token_changes_no_earlier_loss(dtype):
    model, ids = make(dtype=dtype), torch.randint(60, (2, 17))
    changed = ids.clone()
    changed[:, 9] = (ids[:, 9] + 1) % 60
    before, after = model.token_losses(ids), model.token_losses(changed)
    assert torch.equal(before[:, :8], after[:, :8])  # position t predicts token t + 1
    assert (before[:, 8:] != after[:, 8:]).all()


def test_loss_is_that_of_the_logits_read_off_the_residual_stream():
    model, ids = make(), torch.randint(60, (3, 17))
    stream = model.residual_stream(ids[:, :-1])
    assert len(stream) == TINY["n_layer"] + 1
    assert all(states.shape == (3, 16, 24) for states in stream)

    logits = model.norm(stream[-1]) @ model.unembedding.T
    expected = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(model(ids), expected.mean(1))
    # of each token, and of the last few alone
    torch.testing.assert_close(model.token_losses(ids), expected)
    torch.testing.assert_close(model.token_losses(ids, last=5), expected[:, -5:])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copied_rows_make_the_clone_exactly_as_good(tied, dtype):
    model, ids = make(tied=tied, dtype=dtype), torch.randint(30, (4, 17))
    with torch.no_grad():
        for rows in (model.embedding, model.unembedding):
            rows[30:] = rows[:30]
    assert torch.equal(model(ids + 30), model(ids))


def test_an_untrained_model_knows_nothing():
    torch.manual_seed(0)
    loss = GPT(TINY)(torch.randint(60, (8, 17)))
    assert loss.shape == (8,)
    assert abs(loss.mean().item() - math.log(60)) < 0.05


def test_a_model_learns_what_can_be_learned():
    torch.manual_seed(0)
    model = GPT(TINY, torch.bfloat16)
    ids = torch.arange(17).repeat(4, 1) + torch.arange(4)[:, None]  # the next id is one more
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids).mean().backward()
        optimizer.step()
    assert model(ids).max() < 0.3 < math.log(4)  # the first token alone tells which row


@pytest.mark.parametrize("size, layers, width, attention, ids, context", [
    ("nano", 2, 256, 8 * 32, 512, 128),
    ("pico", 2, 128, 4 * 32, 512, 128),
    ("mini", 4, 512, 8 * 32, 16384, 512),  # its attention is narrower than its residual stream
    ("small", 12, 768, 12 * 64, 16384, 512),
    ("medium", 24, 1024, 16 * 64, 16384, 512),
])
def test_every_parameter_of_a_size_is_counted(size, layers, width, attention, ids, context):
    with torch.device("meta"):
        model = GPT(SIZES[size] | {"vocab_size": 2 * SIZES[size]["vocab_size"]})
    norm = 2 * width
    attends = 3 * (width * attention + attention) + attention * width + width
    mlp = width * 4 * width + 4 * width + 4 * width * width + width
    block = 2 * norm + attends + mlp
    embeddings = 2 * ids * width  # of two languages
    expected = context * width + layers * block + norm + 2 * embeddings  # no bias in the output
    assert sum(p.numel() for p in model.parameters()) == expected
    if size == "small":
        assert layers * block == 85_054_464  # "85M without embeddings"


def test_a_forward_pass_is_that_of_the_papers_block_written_out():
    """Number by number, in the words of the paper's settings, with no line of model.py."""
    model, ids = make(), torch.randint(60, (2, 17))
    p = {name: value.detach().double() for name, value in model.named_parameters()}

    def norm(x, weight, bias):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def tanh_gelu(x):
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = p["embedding"][ids[:, :-1]] * math.sqrt(24) + p["position"]
    for layer in range(3):
        w = {name.removeprefix(f"blocks.{layer}."): value for name, value in p.items()
             if name.startswith(f"blocks.{layer}.")}
        h = norm(x, w["norm1.weight"], w["norm1.bias"])
        q, k, v = (h @ w["qkv"].T + w["qkv_bias"]).chunk(3, -1)
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(8)
            scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[..., head])
        x = x + torch.cat(heads, -1) @ w["proj"].T + w["proj_bias"]
        h = norm(x, w["norm2.weight"], w["norm2.bias"])
        x = x + tanh_gelu(h @ w["up"].T + w["up_bias"]) @ w["down"].T + w["down_bias"]

    logits = norm(x, p["norm.weight"], p["norm.bias"]) @ p["unembedding"].T
    right = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(model.token_losses(ids).double(), -right, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("change", ["bias", "embedding_scale"])
def test_what_is_the_papers_can_be_taken_away(change):
    model, plain = make(), make(**{change: False})
    ids = torch.randint(60, (2, 17))
    if change == "bias":
        assert not any(name.endswith("_bias") for name, _ in plain.named_parameters())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("_bias"):
                    p.zero_()
    plain.load_state_dict(model.state_dict() if change != "bias" else {
        name: p for name, p in model.state_dict().items() if not name.endswith("_bias")})
    if change == "embedding_scale":
        with torch.no_grad():
            plain.embedding.mul_(math.sqrt(24))
    torch.testing.assert_close(plain(ids), model(ids))


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_starts_at_its_own_scale(tied):
    torch.manual_seed(0)
    shape = dict(vocab_size=2000, d_model=64, d_head=32, embedding_std=0.003, tied=tied)
    model = GPT(TINY | shape)
    std = {name: p.std().item() for name, p in model.named_parameters() if p.dim() == 2}
    expected = {}
    for name in std:
        if name.endswith("embedding"):
            expected[name] = 0.003
        elif name.endswith("down"):  # and not the attention's output
            expected[name] = 0.02 / math.sqrt(6)  # 2 x 3 layers
        else:
            expected[name] = 0.02
    assert std == pytest.approx(expected, rel=0.07)
    assert ("unembedding" in std) != tied


# ------------------------------------------------------------------------------------------------
# Sampling

def test_sampling_goes_past_the_context_and_repeats_itself_for_a_seed():
    model, prompt = make(), torch.randint(60, (5,))
    once, again, other = (model.sample(prompt, 30, seed=s) for s in (1, 1, 2))
    assert len(once) == 35 and torch.equal(once[:5], prompt)
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_sampling_follows_the_model():
    model = always({7: 240.0})  # one id is all there is
    assert model.sample(torch.tensor([1]), 5).tolist() == [1, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("temperature, share", [(0.5, 16 / 17), (1.0, 4 / 5), (2.0, 2 / 3)])
def test_temperature_sharpens_and_flattens_the_distribution(temperature, share):
    # 4 to 1 at temperature 1; the logits are divided by it, so 16 to 1 at 0.5, and 2 to 1 at 2
    model = always({7: math.log(4), 8: 0.0})
    said = model.sample(torch.tensor([1]), 1000, temperature=temperature)[1:]
    assert set(said.tolist()) == {7, 8}
    assert (said == 7).double().mean().item() == pytest.approx(share, abs=0.04)


def test_only_the_top_k_are_sampled():
    logits = {i: 0.0 for i in range(60)} | {5: 0.3, 9: 0.2, 11: 0.1}  # nearly all are as likely
    model = always(logits)
    assert set(model.sample(torch.tensor([0]), 100, top_k=3)[1:].tolist()) == {5, 9, 11}
    assert model.sample(torch.tensor([0]), 20, top_k=1)[1:].tolist() == [5] * 20
    assert len(set(model.sample(torch.tensor([0]), 300, top_k=60).tolist())) > 40


# ------------------------------------------------------------------------------------------------
# The optimiser that a model is trained with

@pytest.mark.parametrize("optimizer, decay", [("adam", 0.0), ("adamw", 0.1)])
def test_adam_is_the_papers_to_the_letter(optimizer, decay):
    """Betas 0.9 and 0.95, on gradients that change, against Adam written out."""
    lr, model = 0.01, make()
    config = SimpleNamespace(optimizer=optimizer, lr=lr)
    optimizers = train.make_optimizers(model, config)
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}

    for step in range(1, 6):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p) * 10.0 ** -step  # ever smaller: the second moment shows
            gradient = p.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            mean = first[name] / (1 - 0.9**step)
            square = second[name] / (1 - 0.95**step)
            if p.dim() == 2:  # norms do not decay
                expected[name] -= lr * decay * expected[name]
            expected[name] -= lr * mean / (square.sqrt() + 1e-8)
        train.update(optimizers, lr)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [5, 16, 30])
def test_a_decoder_goes_on_from_as_many_tokens_as_its_context_holds(length):
    model = make()
    out = model.sample(torch.randint(60, (length,)), 20, top_k=1)
    for t in range(length, length + 20):
        hidden = model.residual_stream(out[None, max(0, t - 16):t])[-1][0, -1]
        assert out[t] == (model.norm(hidden) @ model.unembedding.T).argmax()
    assert len(set(out[length:].tolist())) > 1


def test_the_gradient_of_the_output_is_summed_in_fp32():
    """Each of 2,000 positions adds 0.5: in bf16 the sum would stay at 128."""
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, requires_grad=True)
    targets = torch.zeros(2000, dtype=torch.int64)
    ChunkedCrossEntropy.apply(hidden, weight, targets, 1).sum().backward()
    assert weight.grad.flatten().tolist() == [-1000, 1000]


PAPERS = dict(arch="decoder", heads="shared", context=512, vocab_size=16384, cloned=1.0, bias=True,
              tied=False, embedding_scale=True, embedding_std=0.02, lr=6e-4, optimizer="adam")


@pytest.mark.parametrize("size, steps, batch_size", [
    ("mini", 18265, 128), ("small", 18265, 128), ("medium", 9132, 256)])
def test_the_recipe_is_the_papers(size, steps, batch_size):
    recipe = {key: value for key, value in SIZES[size].items() if not key.startswith(("n_", "d_"))}
    assert recipe == PAPERS | {"steps": steps, "batch_size": batch_size}
    assert steps * batch_size * 512 == pytest.approx(1.197e9, rel=1e-3)
