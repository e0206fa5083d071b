"""The transformer, by hand: the decoder-only language model of the paper, read from token ids to one loss per sequence.

Pre-LayerNorm, GELU, learned positions, no dropout (paper: Model and training). Three things make it fast, and change nothing else:
weights stay in fp32 and are cast where used, so that activations can be bf16; the loss is taken in chunks, so that the logits of all
positions never exist at once; attention is written out on a CPU in bf16, where scaled_dot_product_attention is slow.
Shapes: B batch, T context, D width (d_model), H heads, V all ids of all languages.
"""
import contextlib
import ctypes
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from cli import BadInput

# The paper's sizes, and nano for a laptop. mini's attention (8 heads x 32) is narrower than its residual stream.
SIZES = {
    "nano": dict(n_layer=6, n_head=2, d_head=32, d_model=64, context=128, tied=False, embedding_std=0.001, vocab_size=512, cloned=0.95, batch_size=32, steps=6000, lr=3e-3, optimizer="adam"),
    "mini": dict(n_layer=4, n_head=8, d_head=32, d_model=512, context=512, tied=False, embedding_std=0.02, vocab_size=16384, cloned=1.0, batch_size=128, steps=18265, lr=6e-4, optimizer="adam"),
    "small": dict(n_layer=12, n_head=12, d_head=64, d_model=768, context=512, tied=False, embedding_std=0.02, vocab_size=16384, cloned=1.0, batch_size=128, steps=18265, lr=6e-4, optimizer="adam"),
    "medium": dict(n_layer=24, n_head=16, d_head=64, d_model=1024, context=512, tied=False, embedding_std=0.02, vocab_size=16384, cloned=1.0, batch_size=256, steps=18265, lr=6e-4, optimizer="adam"),
}


def linear(x, weight):
    """x [..., D_in] @ weight.T, in the type of x; weight [D_out, D_in] is kept in fp32 for the optimiser."""
    return F.linear(x, weight.to(x.dtype))


def attention(q, k, v):
    """Causal softmax attention over q, k, v [B, H, T, d_head]: the same function two ways, each where it is faster."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    B, H, T, d_head = q.shape
    q, k, v = (x.reshape(B * H, T, d_head) for x in (q, k, v))
    future = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)  # -inf where a query would look ahead
    scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=1 / math.sqrt(d_head))
    return (scores.softmax(-1) @ v).view(B, H, T, d_head)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy in nats [n] of targets [n] under the logits hidden [n, D] @ weight [V, D].T, `chunk` positions at a time.

    The logits of one chunk stay in the processor's cache, in fp32. What is kept for the backward pass is their gradient, softmax minus the
    one-hot target, in the type of hidden: one exp a logit instead of two, and the weight's gradient is one matmul, not a sum of many rounded
    ones. hidden and targets come first, `chunk` last: ChunkedCrossEntropy.apply(hidden, weight, targets, chunk)."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        weight, losses, grads = weight.to(hidden.dtype), [], []
        for h, y in zip(hidden.split(chunk), targets[:, None].split(chunk)):
            logits = F.linear(h, weight).float()
            top, right = logits.amax(-1, keepdim=True), logits.gather(1, y)
            total = logits.sub_(top).exp_().sum(-1, keepdim=True)  # in place, so that one chunk is all there is
            losses.append(total.log() + top - right)
            grads.append(logits.div_(total).scatter_add_(1, y, -torch.ones_like(total)).to(hidden.dtype))
        ctx.save_for_backward(hidden, weight, *grads)
        return torch.cat(losses)[:, 0]

    @staticmethod
    def backward(ctx, grad_loss):
        hidden, weight, *grads = ctx.saved_tensors
        scale, chunk = grad_loss[:, None].to(hidden.dtype), len(grads[0])
        grad_weight = torch.zeros(weight.shape, device=weight.device)
        for h, g in zip((hidden * scale).split(chunk), grads):
            grad_weight += g.T @ h
        return torch.cat([g @ weight for g in grads]) * scale, grad_weight, None, None


class LayerNorm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype))


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each position; both add to the residual stream."""

    def __init__(self, d_model, n_head, d_head):
        super().__init__()
        self.n_head, self.d_head = n_head, d_head
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.qkv = nn.Parameter(torch.empty(3 * n_head * d_head, d_model))
        self.proj = nn.Parameter(torch.empty(d_model, n_head * d_head))
        self.up = nn.Parameter(torch.empty(4 * d_model, d_model))
        self.down = nn.Parameter(torch.empty(d_model, 4 * d_model))

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = linear(self.norm1(x), self.qkv).view(B, T, 3, self.n_head, self.d_head).permute(2, 0, 3, 1, 4)  # each [B, H, T, d_head]
        x = x + linear(attention(q, k, v).transpose(1, 2).reshape(B, T, -1), self.proj)
        return x + linear(F.gelu(linear(self.norm2(x), self.up)), self.down)


class GPT(nn.Module):
    """model(ids [B, T + 1]) -> loss of each sequence [B], in nats per token. config: vocab_size (all languages), context, n_layer, n_head,
    d_head, d_model, tied, embedding_std. dtype: the type of the activations."""

    def __init__(self, config, dtype=torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        d_model, vocab_size = config["d_model"], config["vocab_size"]
        self.embedding = nn.Parameter(torch.empty(vocab_size, d_model))
        self.position = nn.Parameter(torch.empty(config["context"], d_model))
        self.blocks = nn.ModuleList(Block(d_model, config["n_head"], config["d_head"]) for _ in range(config["n_layer"]))
        self.norm = LayerNorm(d_model)
        self.unembedding = self.embedding if config["tied"] else nn.Parameter(torch.empty(vocab_size, d_model))
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02
                if name.endswith(("proj", "down")):  # what writes to the residual stream starts smaller, so that its variance does not grow with depth
                    std /= math.sqrt(2 * config["n_layer"])
                if name in ("embedding", "unembedding"):
                    std = config["embedding_std"]
                nn.init.normal_(p, std=std)

    def residual_stream(self, ids):
        """ids [B, T] -> the residual stream after the embedding and after every layer: n_layer + 1 tensors [B, T, D]."""
        x = (F.embedding(ids, self.embedding) + self.position[:ids.shape[1]]).to(self.dtype)
        stream = [x]
        for block in self.blocks:
            stream.append(block(stream[-1]))
        return stream

    def token_losses(self, ids, last=None, rows=None):
        """ids [B, T + 1] -> cross-entropy in nats of each next token [B, T], or of the last `last` ones [B, last], fp32.

        rows: the ids [n] that the softmax runs over, where it is not all of them; the targets have to be among them."""
        hidden = self.norm(self.residual_stream(ids[:, :-1])[-1][:, -(last or 0):])
        targets, weight = ids[:, -hidden.shape[1]:].reshape(-1), self.unembedding
        if rows is not None:
            place = torch.empty(len(weight), dtype=torch.int64, device=ids.device)
            place[rows] = torch.arange(len(rows), device=ids.device)
            targets, weight = place[targets], weight[rows]
        chunk = 256 if hidden.device.type == "cpu" else 4096
        return ChunkedCrossEntropy.apply(hidden.flatten(0, 1), weight, targets, chunk).view(ids.shape[0], -1)

    def forward(self, ids):
        return self.token_losses(ids).mean(1)

    @torch.no_grad()
    def sample(self, ids, n, temperature=0.8, top_k=40, seed=0):
        """Continue ids [T] by n tokens; return all of them [T + n]. The context slides once it is full."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n):
            window = ids[-self.config["context"]:]
            hidden = self.norm(self.residual_stream(window[None])[-1][0, -1])
            values, top = linear(hidden, self.unembedding).float().cpu().topk(top_k)
            pick = torch.multinomial((values / temperature).softmax(0), 1, generator=generator)
            ids = torch.cat([ids, top[pick].to(ids.device)])
        return ids


def pick_device(name):
    """The torch.device of --device=NAME; under torchrun on CUDA, this process's own. Raises BadInput if it is not here."""
    auto = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(auto if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BadInput(f"--device={name} is not here: expected cpu{', cuda' * torch.cuda.is_available()}{', mps' * torch.backends.mps.is_available()} or auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if str(device) == "cuda" else device


def faster_dtype(device):
    """torch.bfloat16 where this machine multiplies matrices faster in it than in fp32, else torch.float32. On a CPU it is timed, not asked."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)  # small: a CPU without bf16 instructions takes 0.1 s for it
        a @ b  # the first one sets things up
        times = []
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.7 * seconds[torch.float32] else torch.float32


def keep_freed_memory():
    """Have glibc keep what is freed: it hands large blocks back to the kernel, and a train step on a CPU then spends 10 % on page faults."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
                ctypes.CDLL(None).mallopt(parameter, 1 << 30)
