"""How fast is a train step here? This model against the plain way, in turns A B A B on the same machine.

    python bench.py                              # nano and a 256-wide model: about two minutes on 2 CPU cores
    python bench.py --out=results/bench.json     # and keep the numbers

The plain way, written out below, is what one writes first: fp32, scaled_dot_product_attention, one cross-entropy over all logits, the C
library's memory as it comes; and no other difference: the same weights, batches, loss and optimiser. Every turn is a process of its own.
Shown per model: tokens/s of both (medians over the turns) and their ratio, the matmuls' share of this machine's own matmul peak, the share
of a step that making the batch takes, and the peak memory of both.
"""
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F

import clone
from cli import Parser, run, write_json
from model import GPT, SIZES, faster_dtype, keep_freed_memory

SHAPES = {"nano": SIZES["nano"], "256 wide": SIZES["nano"] | dict(d_model=256, n_head=4, d_head=64)}


def plain_loss(model, ids):
    """ids [B, T + 1] -> loss per sequence [B], the plain way, with the weights of `model`."""
    x = F.embedding(ids[:, :-1], model.embedding) + model.position
    B, T, _ = x.shape
    for b in model.blocks:
        qkv = F.linear(b.norm1(x), b.qkv).view(B, T, 3, b.n_head, b.d_head).permute(2, 0, 3, 1, 4)
        x = x + F.linear(F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2).reshape(B, T, -1), b.proj)
        x = x + F.linear(F.gelu(F.linear(b.norm2(x), b.up)), b.down)
    logits = F.linear(model.norm(x), model.unembedding)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(B, T).mean(1)


def turn(way, shape, device, dtype, steps):
    """Seconds a train step and seconds a batch, one way ("nanoclone" or "plain"), and the process's peak memory in MB."""
    T, B, V = shape["context"], shape["batch_size"], shape["vocab_size"]
    if way == "nanoclone":
        keep_freed_memory()
    torch.manual_seed(0)
    model = GPT(shape | {"vocab_size": 2 * V}, dtype if way == "nanoclone" else torch.float32).to(device)
    loss = model if way == "nanoclone" else lambda ids: plain_loss(model, ids)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    text = np.random.default_rng(0).zipf(1.2, 2_000_000).clip(max=V).astype(np.uint16) - 1  # speed does not depend on what it says
    batch = clone.make_batches(text, clone.clone_table(V, 2, V - 1), np.array([[0.9, 0.1]]), T, B, 1 << 20, seed=0)

    def train(first, last):
        for step in range(first, last):
            loss(torch.from_numpy(batch(step)[0]).to(device)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    train(0, 5)  # warm-up
    seconds = timed(lambda: train(5, 5 + steps), device) / steps
    batch_seconds = timed(lambda: [batch(step) for step in range(steps)], device) / steps
    return seconds, batch_seconds, peak_memory(device)


def peak_memory(device):
    """The most memory that this process has held so far, in MB; on a GPU, of the GPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def timed(function, device):
    """Seconds that one call takes, with all that it set going on the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def matmul_peak(device, dtype):
    """FLOP/s of the fastest of several square matmuls on this machine."""
    best = 0
    for n in (1024, 2048, 4096):
        a = torch.randn(n, n, device=device, dtype=dtype)
        best = max(best, *(2 * n**3 / timed(lambda: a @ a, device) for _ in range(5)))
    return best


def matmul_flops(shape):
    """FLOPs of the matmuls of one train step: 6 a weight and token, and attention's own (its causal half is computed, so it counts)."""
    attention, D, L = shape["n_head"] * shape["d_head"], shape["d_model"], shape["n_layer"]
    weights = L * (4 * attention * D + 8 * D * D) + 2 * shape["vocab_size"] * D
    return 6 * shape["batch_size"] * shape["context"] * (weights + 2 * L * shape["context"] * attention)


def main():
    parser = Parser(__doc__)
    parser.option("--turns", 4, "turns of each way, A B A B ...", int)
    parser.option("--steps", 20, "train steps a turn", int)
    parser.option("--device", "cuda" if torch.cuda.is_available() else "cpu", "cpu or cuda", choices=["cpu", "cuda"])
    parser.option("--out", None, "a JSON file to write the numbers to as well (default: none)")
    args, _ = parser.parse()
    device = torch.device(args.device)
    dtype = faster_dtype(device)
    peak = matmul_peak(device, dtype)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, activations {dtype}, matmul peak {peak / 1e9:,.0f} GFLOP/s; "
          f"{args.turns} turns of {args.steps} steps\n\n{'model':10}{'nanoclone':>12}{'plain':>10}{'ratio':>8}   {'over the turns':16}"
          f"{'of peak':>8}{'batch':>8}{'memory':>9}{'plain':>8}\n{'':10}{'tokens/s':>12}{'tokens/s':>10}{'':35}{'of a step':>8}{'MB':>8}{'MB':>8}")
    result = {"torch": torch.__version__, "device": args.device, "dtype": str(dtype), "threads": torch.get_num_threads(), "turns": args.turns,
              "steps": args.steps, "matmul_peak_flops": peak, "models": {}}
    for name, shape in SHAPES.items():
        measured = {"nanoclone": [], "plain": []}
        for _ in range(args.turns):
            for way in measured:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    measured[way].append(pool.submit(turn, way, shape, device, dtype, args.steps).result())
        seconds, batch_seconds, memory = zip(*measured["nanoclone"])
        plain_seconds, _, plain_memory = zip(*measured["plain"])
        tokens, fast, plain = shape["batch_size"] * shape["context"], statistics.median(seconds), statistics.median(plain_seconds)
        row = {"tokens_per_s": tokens / fast, "plain_tokens_per_s": tokens / plain, "ratio": plain / fast, "ratios": [p / f for f, p in zip(seconds, plain_seconds)],
               "of_matmul_peak": matmul_flops(shape) / fast / peak, "batch_share": statistics.median(batch_seconds) / fast,
               "memory_mb": max(memory), "plain_memory_mb": max(plain_memory)}
        print(f"{name:10}{row['tokens_per_s']:12,.0f}{row['plain_tokens_per_s']:10,.0f}{row['ratio']:8.2f}   {min(row['ratios']):.2f} to {max(row['ratios']):.2f}    "
              f"{row['of_matmul_peak']:8.1%}{row['batch_share']:8.2%}{row['memory_mb']:9,.0f}{row['plain_memory_mb']:8,.0f}", flush=True)
        result["models"][name] = row
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    run(main)
