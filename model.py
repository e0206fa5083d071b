"""The transformer, by hand: from token ids to one loss per sequence.

The decoder-only language model of the paper, block for block (paper: Model and training):
pre-LayerNorm, tanh GELU, learned positions, no dropout, a bias in every linear layer but the
output, the input embedding times sqrt(d_model). Three things make it fast, and change nothing
else: weights stay in fp32 and are cast where used, so that activations can be bf16; the loss is
taken in chunks, so that the logits of all positions never exist at once; attention is written out
on a CPU in bf16, where scaled_dot_product_attention is slow.

Two other architectures are made of the same block; the paper has neither. Which way a token takes:

    decoder               encoder                  encoder-decoder
    all tokens            all, 15 % masked         first half          second half
        |                     |                        |                    |
    embedding             embedding                embedding            embedding
        |                     |                        |                    |
    n_layer blocks,       n_layer blocks,          n_layer / 2,         n_layer / 2 blocks,
    each token sees       each token sees          each token sees      each sees those before it,
    those before it       all of them              all of that half --> and the encoder's states
        |                     |                                             |
    the next token        what was masked                               the next token

Shapes: B batch, T context, D width (d_model), H heads, V all ids of all languages.
"""
import contextlib
import ctypes
import math
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import clone
from data import VOCAB_SIZE
from lib import ddp
from lib.cli import BadInput

# A size is a model and the recipe that goes with it. What all share is the paper's.
PAPER = dict(
    arch="decoder", heads="shared",
    context=512, bias=True, embedding_scale=True, embedding_std=0.02, tied=False,
    vocab_size=16384, cloned=1.0, batch_size=128, steps=18265, lr=6e-4, optimizer="adam",
)
# for a laptop: the paper's block and no token shared, but smaller in everything, with a higher
# learning rate; half of the default corpus is read, once (paper/search.md)
LAPTOP = PAPER | dict(
    n_layer=2, d_head=32,
    context=128, vocab_size=VOCAB_SIZE, batch_size=16, steps=2000, lr=1.5e-3,
)
SIZES = {
    # wide and shallow, since width is what helps EN2 most
    "nano": LAPTOP | dict(n_head=8, d_model=256),
    # half as wide: a third of the time, and EN2 gains less
    "pico": LAPTOP | dict(n_head=4, d_model=128),
    # 8 heads x 32: its attention is narrower than its residual stream
    "mini": PAPER | dict(n_layer=4, n_head=8, d_head=32, d_model=512),
    "small": PAPER | dict(n_layer=12, n_head=12, d_head=64, d_model=768),
    # batches twice as large, so half the steps for the same tokens
    "medium": PAPER | dict(
        n_layer=24, n_head=16, d_head=64, d_model=1024, batch_size=256, steps=9132,
    ),
}

# What else there is to choose from: see the drawing above, and GPT
ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
HEADS = ("shared", "per-language")


# ------------------------------------------------------------------------------------------------
# The parts

def linear(x, weight, bias=None):
    """x [..., D_in] @ weight.T + bias, in the type of x; weight [D_out, D_in], bias [D_out]."""
    if bias is not None:
        bias = bias.to(x.dtype)
    return F.linear(x, weight.to(x.dtype), bias)


def attention(q, k, v, causal=True):
    """Softmax attention of q [B, H, T, d_head] over k, v [B, H, S, d_head] -> [B, H, T, d_head].

    causal: position t of q sees those up to t alone; S is T then. The same function two ways, each
    where it is faster.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    B, H, T, d_head = q.shape
    q, k, v = (x.reshape(B * H, -1, d_head) for x in (q, k, v))
    # -inf where a query would look ahead; baddbmm adds it to q @ k.T in one pass
    mask = torch.zeros(T, k.shape[1], dtype=q.dtype)
    if causal:
        mask = torch.full_like(mask, -torch.inf).triu(1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(d_head))
    return (scores.softmax(-1) @ v).view(B, H, T, d_head)


def split_heads(x, n, n_head):
    """x [B, T, n * H * d_head] -> n tensors [B, H, T, d_head], as q, k, v are from one matmul."""
    B, T, _ = x.shape
    return x.view(B, T, n, n_head, -1).permute(2, 0, 3, 1, 4)


def join_heads(x):
    """x [B, H, T, d_head] -> [B, T, H * d_head]: the heads side by side again."""
    return x.transpose(1, 2).flatten(2)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy in nats [n] of targets [n] under the logits hidden [n, D] @ weight [V, D].T.

    The plain way makes logits [n, V] for all positions at once: 2,048 x 1,024 floats for nano,
    65,536 x 32,768 for the paper's small. Here a few positions at a time (`chunk`) have theirs, in
    fp32, in the processor's cache, and what is kept of them for the backward pass is their
    gradient: softmax minus the one-hot target, in the type of hidden. So each logit costs one exp
    instead of two, and the weight's gradient is summed in fp32.

    Called as ChunkedCrossEntropy.apply(hidden, weight, targets, chunk).
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

    causal: each position sees those before it and itself, else all. With cross, the block has a
    second attention between the two, which looks at a memory: the states of an encoder.
    """

    def __init__(self, d_model, n_head, d_head, bias, causal=True, cross=False):
        super().__init__()
        self.n_head, self.causal, self.cross = n_head, causal, cross
        d_attention = n_head * d_head  # d_model, but for mini
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        shapes = {
            "qkv": (3 * d_attention, d_model),
            "proj": (d_model, d_attention),
            "up": (4 * d_model, d_model),
            "down": (d_model, 4 * d_model),
        }
        if cross:
            self.cross_norm = LayerNorm(d_model)
            shapes["cross_q"] = d_attention, d_model
            shapes["cross_kv"] = 2 * d_attention, d_model
            shapes["cross_proj"] = d_model, d_attention
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        for name, (d_out, _) in shapes.items():
            self.register_parameter(
                f"{name}_bias", nn.Parameter(torch.zeros(d_out)) if bias else None)

    def forward(self, x, memory=None):
        """x [B, T, D] -> [B, T, D]. memory [B, S, D]: what the second attention looks at."""
        x = x + linear(self.attend(x), self.proj, self.proj_bias)
        if self.cross:
            query = linear(self.cross_norm(x), self.cross_q, self.cross_q_bias)
            [q] = split_heads(query, 1, self.n_head)
            k, v = split_heads(linear(memory, self.cross_kv, self.cross_kv_bias), 2, self.n_head)
            heads = join_heads(attention(q, k, v, causal=False))
            x = x + linear(heads, self.cross_proj, self.cross_proj_bias)

        return x + linear(self.hidden(x), self.down, self.down_bias)

    def attend(self, x):
        """What the heads find in x [B, T, D], side by side: [B, T, H * d_head]."""
        qkv = linear(self.norm1(x), self.qkv, self.qkv_bias)
        q, k, v = split_heads(qkv, 3, self.n_head)
        return join_heads(attention(q, k, v, self.causal))

    def hidden(self, x):
        """The hidden layer of the MLP on x [B, T, D]: [B, T, 4 D]."""
        return F.gelu(linear(self.norm2(x), self.up, self.up_bias), approximate="tanh")


# ------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    """model(ids [B, T + 1]) -> loss of each sequence [B], in nats per token that is predicted.

    A decoder predicts each next token; an encoder-decoder those of the second half, after a first
    half that it sees whole; an encoder those at some places, of a text in which most of these are
    masked (clone.mask_tokens).

    config: a dict with arch, heads, vocab_size (the ids of all languages), context, n_layer,
    n_head, d_head, d_model, bias, embedding_scale, embedding_std, tied. dtype: the type of the
    activations. table [N, V]: the ids of each language; heads per language need it, whose softmax
    runs over one language's ids, where the shared one runs over all.
    """

    def __init__(self, config, dtype=torch.float32, table=None):
        super().__init__()
        self.config, self.dtype = config, dtype
        d_model, vocab_size = config["d_model"], config["vocab_size"]
        self.embedding = nn.Parameter(torch.empty(vocab_size, d_model))
        self.position = nn.Parameter(torch.empty(config["context"], d_model))
        self.blocks = nn.ModuleList()
        for layer in range(config["n_layer"]):
            self.blocks.append(self.make_block(layer))
        self.norm = LayerNorm(d_model)
        if config["arch"] == "encoder-decoder":
            self.encoder_norm = LayerNorm(d_model)
        if config["tied"]:
            self.unembedding = self.embedding
        else:
            self.unembedding = nn.Parameter(torch.empty(vocab_size, d_model))

        if config["heads"] == "per-language":
            self.register_buffer("table", torch.from_numpy(table), persistent=False)

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

    def make_block(self, layer):
        """The block of a layer: of an encoder-decoder, the first half of them are the encoder's."""
        config = self.config
        cross = config["arch"] == "encoder-decoder" and layer >= config["n_layer"] // 2
        causal = config["arch"] == "decoder" or cross
        return Block(config["d_model"], config["n_head"], config["d_head"], config["bias"],
                     causal, cross)

    def residual_stream(self, ids, split=None):
        """ids [B, T] -> the residual stream after the embedding and after every layer.

        n_layer + 1 tensors [B, T, D]. Of an encoder-decoder n_layer + 2: those of the encoder, of
        the first `split` positions (default: half), then those of the decoder, of the others.
        """
        if self.config["arch"] != "encoder-decoder":
            return self.through(self.blocks, self.embed(ids))

        split = ids.shape[1] // 2 if split is None else split
        encoder = self.encode(ids[:, :split])
        memory = self.encoder_norm(encoder[-1])
        # its positions are those of the second half, however much the encoder has read
        x = self.embed(ids[:, split:], first=self.config["context"] // 2)
        return encoder + self.through(self.blocks[len(self.blocks) // 2:], x, memory)

    def encode(self, ids):
        """What residual_stream has of the encoder of an encoder-decoder, which reads ids [B, T]."""
        return self.through(self.blocks[:len(self.blocks) // 2], self.embed(ids))

    def embed(self, ids, first=0):
        """ids [B, T], which stand at the positions from `first` on -> [B, T, D]."""
        x = F.embedding(ids, self.embedding)
        if self.config["embedding_scale"]:
            # rows of std .02 enter the stream at .02 * sqrt(768) = .55 for the paper's small, and
            # under Adam, whose steps are all of one size, move that much faster than the rest
            x = x * math.sqrt(self.config["d_model"])
        x = x + self.position[first:first + ids.shape[1]]
        return x.to(self.dtype)

    @staticmethod
    def through(blocks, x, memory=None):
        """[x, and what it is after each of some blocks], each [B, T, D]."""
        stream = [x]
        for block in blocks:
            stream.append(block(stream[-1], memory))
        return stream

    def stream_names(self, T):
        """What residual_stream gives of T tokens: [(name, the positions that it is of)].

        "0" (the embedding), "1", ...; of an encoder-decoder "encoder 0", ..., "decoder 0", ...
        """
        n = len(self.blocks)
        if self.config["arch"] != "encoder-decoder":
            return [(str(layer), slice(0, T)) for layer in range(n + 1)]
        encoder, decoder = slice(0, T // 2), slice(T // 2, T)
        return ([(f"encoder {layer}", encoder) for layer in range(n // 2 + 1)]
                + [(f"decoder {layer}", decoder) for layer in range(n // 2 + 1)])

    def predictions(self, ids, shown=None, places=None):
        """What the loss is taken of: (hidden [B, P, D], targets [B, P]), at P places.

        ids [B, T + 1]. For an encoder shown [B, T] and places [B, P], of clone.mask_tokens.
        """
        if self.config["arch"] != "encoder":
            hidden = self.residual_stream(ids[:, :-1])[-1]
            return hidden, ids[:, -hidden.shape[1]:]
        hidden = self.residual_stream(shown)[-1]
        hidden = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
        return hidden, ids.gather(1, places)

    def cross_entropy(self, hidden, targets, rows=None):
        """Cross-entropy in nats, fp32 [B, P], of targets [B, P] after states hidden [B, P, D].

        rows: the ids [n] that the softmax runs over, where it is not all of them; the targets have
        to be among them.
        """
        B, weight = len(hidden), self.unembedding
        hidden, targets = self.norm(hidden).flatten(0, 1), targets.reshape(-1)
        if rows is not None:
            # place[id]: where an id stands among the rows
            place = torch.empty(len(weight), dtype=torch.int64, device=hidden.device)
            place[rows] = torch.arange(len(rows), device=hidden.device)
            targets, weight = place[targets], weight[rows]

        chunk = 256 if hidden.device.type == "cpu" else 4096
        return ChunkedCrossEntropy.apply(hidden, weight, targets, chunk).view(B, -1)

    def token_losses(self, ids, last=None, rows=None, shown=None, places=None):
        """ids [B, T + 1] -> cross-entropy in nats of each token that is predicted, fp32 [B, P].

        P is T for a decoder, half of it for an encoder-decoder, and as many as there are places for
        an encoder. last: of the last `last` of them only. rows: as in cross_entropy. shown, places:
        as in predictions.
        """
        hidden, targets = self.predictions(ids, shown, places)
        if last is not None:
            hidden, targets = hidden[:, -last:], targets[:, -last:]
        return self.cross_entropy(hidden, targets, rows)

    def text_losses(self, ids, row, last=None, first=0):
        """The same of a text in one language, int64 numpy ids [B, T + 1]; row [V]: its ids.

        Its softmax is that of the language, if it has one. An encoder is asked where it always is
        when something is measured: windows first, first + 1, ... of a text have masks of their own.
        """
        device, masked = self.embedding.device, []
        if self.config["arch"] == "encoder":
            n, width = ids.shape
            dice = clone.roll_dice(range(first, first + n), width - 1)
            lang = np.zeros(n, dtype=np.int64)  # the only one
            for array in clone.mask_tokens(ids, row[None], lang, dice):
                masked.append(torch.from_numpy(array).to(device))
        return self.token_losses(torch.from_numpy(ids).to(device), last, self.own_ids(row), *masked)

    def own_ids(self, row):
        """The ids that the softmax of a language runs over; None for all. row [V]: its ids."""
        if self.config["heads"] == "shared":
            return None
        return torch.as_tensor(row, device=self.embedding.device).unique()

    def forward(self, ids, lang=None, shown=None, places=None):
        """ids [B, T + 1] -> [B]. lang [B]: the language of each, which heads per language need;
        shown and places: what an encoder needs.
        """
        hidden, targets = self.predictions(ids, shown, places)
        if self.config["heads"] == "shared":
            return self.cross_entropy(hidden, targets).mean(1)
        losses = torch.zeros(len(ids), device=ids.device)
        for l, row in enumerate(self.table):
            mine = (lang == l).nonzero()[:, 0]
            if len(mine):
                of_mine = self.cross_entropy(hidden[mine], targets[mine], self.own_ids(row))
                losses = losses.index_copy(0, mine, of_mine.mean(1))
        return losses

    @torch.no_grad()
    def sample(self, ids, n, temperature=0.8, top_k=40, seed=0, rows=None):
        """Continue ids [T] by n tokens; return all of them [T + n]. Not of an encoder.

        The context slides once it is full. An encoder-decoder reads all but the last of the ids in
        its encoder, as many as fit, and its decoder goes on from there. rows: the ids that are
        chosen among, where it is not all of them.
        """
        generator = torch.Generator().manual_seed(seed)
        weight = self.unembedding if rows is None else self.unembedding[rows]
        width, split = self.config["context"], None
        if self.config["arch"] == "encoder-decoder":
            half = width // 2
            split = min(len(ids) - 1, half)
            width = split + half
        for _ in range(n):
            window = ids[-width:]
            hidden = self.norm(self.residual_stream(window[None], split)[-1][0, -1])
            values, top = linear(hidden, weight).float().cpu().topk(top_k)
            pick = torch.multinomial((values / temperature).softmax(0), 1, generator=generator)
            chosen = top[pick].to(ids.device)
            ids = torch.cat([ids, chosen if rows is None else rows[chosen]])
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
        if str(device) == "cuda":
            device = torch.device("cuda", ddp.local_rank())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise BadInput(f"--device={name} is not here: "
                       f"expected {', '.join(there)} or auto") from None
    return device


def faster_dtype(device):
    """torch.bfloat16 where this machine multiplies matrices faster in it than in fp32, else fp32.

    On a CPU it is timed, not asked. An older GPU, a T4 say, would imitate bf16 and be slow. Such a
    one is fast in fp16, but its gradients vanish there unless the loss is scaled: it gets fp32.
    """
    if device.type == "cuda":
        in_hardware = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if in_hardware else torch.float32
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


def check_compile(device):
    """Raise BadInput where torch.compile does not work: a run is to know before it takes a name."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # whatever the compilers raise
        raise BadInput(f"--compile does not work here ({type(error).__name__}): it needs a C++ "
                       "compiler, and Triton on a GPU; leave it out") from None


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
