"""The transformer, by hand: from token ids to one loss per sequence.

The decoder-only language model of the paper, block for block (paper: Model and training):
pre-LayerNorm, tanh GELU, learned positions, no dropout, a bias in every linear layer but the
output, the input embedding times sqrt(d_model). Three things make it fast, and change nothing
else: weights stay in fp32 and are cast where used, so that activations can be bf16; the loss is
taken in chunks, so that the logits of all positions never exist at once; attention is written out
on a CPU in bf16, where scaled_dot_product_attention is slow.

Shapes: B batch, T context, D width (d_model), H heads, V all ids of all languages.
"""
import contextlib
import ctypes
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from data import VOCAB_SIZE
from lib import ddp
from lib.cli import BadInput

# A size is a model and the recipe that goes with it. What all share is the paper's.
PAPER = dict(
    context=512, bias=True, embedding_scale=True, embedding_std=0.02, tied=False,
    vocab_size=16384, cloned=1.0, batch_size=128, steps=18265, lr=6e-4, optimizer="adam",
)
SIZES = {
    # for a laptop: the paper's block and no token shared, but smaller in everything, with a higher
    # learning rate. Wide and shallow, since width is what helps EN2 most; half of the default
    # corpus is read, once (paper/search.md)
    "nano": PAPER | dict(
        n_layer=2, n_head=8, d_head=32, d_model=256,
        context=128, vocab_size=VOCAB_SIZE, batch_size=16, steps=2000, lr=1.5e-3,
    ),
    # 8 heads x 32: its attention is narrower than its residual stream
    "mini": PAPER | dict(n_layer=4, n_head=8, d_head=32, d_model=512),
    "small": PAPER | dict(n_layer=12, n_head=12, d_head=64, d_model=768),
    # batches twice as large, so half the steps for the same tokens
    "medium": PAPER | dict(
        n_layer=24, n_head=16, d_head=64, d_model=1024, batch_size=256, steps=9132,
    ),
}


# ------------------------------------------------------------------------------------------------
# The parts

def linear(x, weight, bias=None):
    """x [..., D_in] @ weight.T + bias, in the type of x; weight [D_out, D_in], bias [D_out]."""
    if bias is not None:
        bias = bias.to(x.dtype)
    return F.linear(x, weight.to(x.dtype), bias)


def attention(q, k, v):
    """Causal softmax attention over q, k, v [B, H, T, d_head] -> [B, H, T, d_head].

    The same function two ways, each where it is faster.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    B, H, T, d_head = q.shape
    q, k, v = (x.reshape(B * H, T, d_head) for x in (q, k, v))
    # -inf where a query would look ahead; baddbmm adds it to q @ k.T in one pass
    future = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=1 / math.sqrt(d_head))
    return (scores.softmax(-1) @ v).view(B, H, T, d_head)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy in nats [n] of targets [n] under the logits hidden [n, D] @ weight [V, D].T.

    The plain way makes logits [n, V] for all positions at once: 2,048 x 1,024 floats for nano,
    65,536 x 32,768 for the paper's small. Here a few positions at a time (`chunk`) have theirs, in
    fp32, in the processor's cache, and what is kept of them for the backward pass is their
    gradient: softmax minus the one-hot target, in the type of hidden. So each logit costs one exp
    instead of two, and the weight's gradient is summed in fp32.

    hidden and targets come first, `chunk` last:
    ChunkedCrossEntropy.apply(hidden, weight, targets, chunk).
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        weight = weight.to(hidden.dtype)
        losses, grads = [], []
        for h, y in zip(hidden.split(chunk), targets[:, None].split(chunk)):
            logits = F.linear(h, weight).float()
            top, right = logits.amax(-1, keepdim=True), logits.gather(1, y)

            # -log softmax = log(sum of exp(logit - top)) + top - right; in place, so that the
            # logits of one chunk are all there is
            exp = logits.sub_(top).exp_()
            total = exp.sum(-1, keepdim=True)
            losses.append(total.log() + top - right)

            # d loss / d logits: the probabilities, less 1 at the target
            grad = exp.div_(total).scatter_add_(1, y, -torch.ones_like(total))
            grads.append(grad.to(hidden.dtype))
        ctx.save_for_backward(hidden, weight, *grads)
        return torch.cat(losses)[:, 0]

    @staticmethod
    def backward(ctx, grad_loss):
        hidden, weight, *grads = ctx.saved_tensors
        scale, chunk = grad_loss[:, None].to(hidden.dtype), len(grads[0])
        grad_weight = torch.zeros(weight.shape, device=weight.device)
        for h, g in zip((hidden * scale).split(chunk), grads):
            grad_weight += g.T @ h
        grad_hidden = torch.cat([g @ weight for g in grads]) * scale
        return grad_hidden, grad_weight, None, None


class LayerNorm(nn.Module):
    """Each state to mean 0 and variance 1 over the width D, then a weight and a bias [D]."""

    def __init__(self, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype))


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each position.

    Both read the residual stream through a norm, and add what they find to it. The weights are
    named after what they do: qkv, proj (the attention's output), up and down (the MLP's two).
    """

    def __init__(self, d_model, n_head, d_head, bias):
        super().__init__()
        self.n_head, self.d_head = n_head, d_head
        d_attention = n_head * d_head  # d_model, but for mini
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.qkv = nn.Parameter(torch.empty(3 * d_attention, d_model))
        self.proj = nn.Parameter(torch.empty(d_model, d_attention))
        self.up = nn.Parameter(torch.empty(4 * d_model, d_model))
        self.down = nn.Parameter(torch.empty(d_model, 4 * d_model))
        for name in ("qkv", "proj", "up", "down"):
            d_out = len(getattr(self, name))
            self.register_parameter(
                f"{name}_bias", nn.Parameter(torch.zeros(d_out)) if bias else None)

    def forward(self, x):
        B, T, _ = x.shape
        # [B, T, 3 H d_head] -> q, k, v, each [B, H, T, d_head]
        qkv = linear(self.norm1(x), self.qkv, self.qkv_bias)
        q, k, v = qkv.view(B, T, 3, self.n_head, self.d_head).permute(2, 0, 3, 1, 4)
        heads = attention(q, k, v).transpose(1, 2).reshape(B, T, -1)  # side by side again
        x = x + linear(heads, self.proj, self.proj_bias)

        hidden = F.gelu(linear(self.norm2(x), self.up, self.up_bias), approximate="tanh")
        return x + linear(hidden, self.down, self.down_bias)


# ------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    """model(ids [B, T + 1]) -> loss of each sequence [B], in nats per token.

    config: a dict with vocab_size (the ids of all languages), context, n_layer, n_head, d_head,
    d_model, bias, embedding_scale, embedding_std, tied. dtype: the type of the activations.
    """

    def __init__(self, config, dtype=torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        d_model, vocab_size = config["d_model"], config["vocab_size"]
        self.embedding = nn.Parameter(torch.empty(vocab_size, d_model))
        self.position = nn.Parameter(torch.empty(config["context"], d_model))
        self.blocks = nn.ModuleList()
        for _ in range(config["n_layer"]):
            block = Block(d_model, config["n_head"], config["d_head"], config["bias"])
            self.blocks.append(block)
        self.norm = LayerNorm(d_model)
        if config["tied"]:
            self.unembedding = self.embedding
        else:
            self.unembedding = nn.Parameter(torch.empty(vocab_size, d_model))

        # how every matrix starts; norms and biases start as they are made
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=self.initial_std(name))

    def initial_std(self, name):
        """The standard deviation that a matrix starts with."""
        if name in ("embedding", "unembedding"):
            return self.config["embedding_std"]
        if name.endswith("down"):
            # what the MLPs add to the residual stream starts smaller, so that its variance does
            # not grow with depth. The paper's code does not do so for the attention
            return 0.02 / math.sqrt(2 * self.config["n_layer"])
        return 0.02

    def residual_stream(self, ids):
        """ids [B, T] -> the residual stream after the embedding and after every layer.

        n_layer + 1 tensors [B, T, D].
        """
        x = F.embedding(ids, self.embedding)
        if self.config["embedding_scale"]:
            # rows of std .02 enter the stream at .02 * sqrt(768) = .55 for the paper's small, and
            # under Adam, whose steps are all of one size, move that much faster than the rest
            x = x * math.sqrt(self.config["d_model"])
        x = x + self.position[:ids.shape[1]]
        stream = [x.to(self.dtype)]
        for block in self.blocks:
            stream.append(block(stream[-1]))
        return stream

    def token_losses(self, ids, last=None, rows=None):
        """ids [B, T + 1] -> cross-entropy in nats of each next token, fp32 [B, T].

        last: of the last `last` tokens only, [B, last]. rows: the ids [n] that the softmax runs
        over, where it is not all of them; the targets have to be among them.
        """
        states = self.residual_stream(ids[:, :-1])[-1]
        if last is not None:
            states = states[:, -last:]
        hidden = self.norm(states)
        targets = ids[:, -hidden.shape[1]:].reshape(-1)

        weight = self.unembedding
        if rows is not None:
            # place[id]: where an id stands among the rows
            place = torch.empty(len(weight), dtype=torch.int64, device=ids.device)
            place[rows] = torch.arange(len(rows), device=ids.device)
            targets, weight = place[targets], weight[rows]

        chunk = 256 if hidden.device.type == "cpu" else 4096
        losses = ChunkedCrossEntropy.apply(hidden.flatten(0, 1), weight, targets, chunk)
        return losses.view(ids.shape[0], -1)

    def forward(self, ids):
        return self.token_losses(ids).mean(1)

    @torch.no_grad()
    def sample(self, ids, n, temperature=0.8, top_k=40, seed=0):
        """Continue ids [T] by n tokens; return all of them [T + n].

        The context slides once it is full.
        """
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n):
            window = ids[-self.config["context"]:]
            hidden = self.norm(self.residual_stream(window[None])[-1][0, -1])
            values, top = linear(hidden, self.unembedding).float().cpu().topk(top_k)
            pick = torch.multinomial((values / temperature).softmax(0), 1, generator=generator)
            ids = torch.cat([ids, top[pick].to(ids.device)])
        return ids


# ------------------------------------------------------------------------------------------------
# The machine

def pick_device(name):
    """The torch.device of --device=NAME; under torchrun on CUDA, this process's own.

    Raises BadInput if it is not here.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there.append("cuda")
    if torch.backends.mps.is_available():
        there.append("mps")

    best = "cuda" if "cuda" in there else there[-1]
    try:
        device = torch.device(best if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BadInput(f"--device={name} is not here: "
                       f"expected {', '.join(there)} or auto") from None
    if str(device) == "cuda":
        return torch.device("cuda", ddp.local_rank())
    return device


def faster_dtype(device):
    """torch.bfloat16 where this machine multiplies matrices faster in it than in fp32, else fp32.

    On a CPU it is timed, not asked.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32

    # small matrices: a CPU without bf16 instructions takes 0.1 s for them
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        a @ b  # the first one sets things up
        times = []
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    much_faster = seconds[torch.bfloat16] < 0.7 * seconds[torch.float32]
    return torch.bfloat16 if much_faster else torch.float32


def keep_freed_memory():
    """Have the C library keep what is freed.

    glibc hands large blocks back to the kernel, and a training step on a CPU then spends 10 % of
    its time on page faults.
    """
    if sys.platform != "linux":
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 1 << 30)
