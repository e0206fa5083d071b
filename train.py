"""Train one transformer on several clones of one language, and watch how well it learns each.

    python train.py --ratio=0.9                           # 90 % EN1, 10 % EN2: 6 to 18 minutes on 2 CPU cores
    python train.py --ratio=0.5 --run=balanced            # the contrast
    python train.py --languages=1 --steps=500             # monolingual
    python train.py --run=balanced --resume               # go on where a killed run stopped
    torchrun --nproc_per_node=2 -- train.py --ratio=0.9   # several processes or GPUs, the same batches; the -- keeps --run from torchrun

A run is a folder runs/NAME: config.json, log.jsonl, model.pt (weights and what resuming needs), loss.png.
"""
import io
import json
import math
import os
import signal
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

import align
import clone
import data
import runs
from cli import BadInput, Parser, run, write, write_json
from model import SIZES, faster_dtype, keep_freed_memory, pick_device

EVAL_TOKENS = 32768  # of validation text, the same for every language
RETRIEVAL_STATES = 1024

# ---------------------------------------------------------------------------------------------------------------------
# The command line -> config, a dict that says everything about a run

def options():
    parser = Parser(__doc__)
    by_size = lambda key: "(default: by --size: " + ", ".join(f"{name} {str(s[key]).lower()}" for name, s in SIZES.items()) + ")"
    clone.add_options(parser, cloned=None, default=" " + by_size("cloned"))
    data.add_options(parser, vocab_size=None, default=" " + by_size("vocab_size"))
    o = parser.option
    o("--size", "nano", "model size, and the defaults that go with it; nano is for a CPU, the others are the paper's", choices=list(SIZES))
    o("--n_layer", None, f"layers {by_size('n_layer')}", int)
    o("--n_head", None, f"attention heads a layer {by_size('n_head')}; each is d_model / n_head wide, but for mini's 32", int)
    o("--d_model", None, f"width of the residual stream {by_size('d_model')}", int)
    o("--context", None, f"T, tokens of a sequence {by_size('context')}", int)
    o("--tied", None, f"whether input and output embeddings are one matrix {by_size('tied')}", bool)
    o("--embedding_std", None, "standard deviation of the initial input and output embeddings; where it is small, no language starts with a geometry of its own "
      f"{by_size('embedding_std')}", float)
    o("--steps", None, f"optimiser steps {by_size('steps')}", int)
    o("--batch_size", None, f"sequences a step, of all processes together {by_size('batch_size')}", int)
    o("--micro_batch", None, "sequences a forward pass; fewer need less memory, the gradient is the same (default: the whole batch of a process)", int)
    o("--optimizer", None, "adam (the paper's: betas 0.9, 0.95, no weight decay), adamw (weight decay 0.1 on matrices), or muon "
      f"(torch.optim.Muon for the matrices of the blocks, adam for the rest) {by_size('optimizer')}", choices=["adam", "adamw", "muon"])
    o("--lr", None, f"peak learning rate; 200 steps of warm-up (a quarter of the run if shorter), then cosine to a hundredth {by_size('lr')}", float)
    o("--seed", 0, "of the initial weights, the batches and the anchor points", int)
    o("--device", "auto", "cpu, cuda or mps; auto takes the best there is")
    o("--dtype", "auto", "of the activations, auto, float32 or bfloat16; auto takes the faster (on a CPU it is timed)", choices=["auto", "float32", "bfloat16"])
    o("--compile", False, "torch.compile the model: a minute of warm-up, then faster on a GPU", bool)
    o("--run", None, "the run's name, its folder under runs/ (default: from the options given)")
    o("--resume", False, "go on with the run --run=NAME, killed or interrupted", bool)
    return parser


def make_config(args, given):
    """The config of a new run: presets, overridden by what was given. Raises BadInput."""
    config = SIZES[args.size] | {k: v for k, v in vars(args).items() if k not in runs.NOT_OF_THE_RUN and v is not None}
    for name in ("n_layer", "n_head", "d_model", "context", "steps", "batch_size", "lr", "micro_batch", "embedding_std"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"--{name}={value}: expected more than 0")
    if args.seed < 0:
        raise BadInput(f"--seed={args.seed}: expected 0 or more")
    if {"n_head", "d_model"} & given.keys():
        if config["d_model"] % config["n_head"]:
            raise BadInput(f"--d_model={config['d_model']} is not a multiple of --n_head={config['n_head']}")
        config["d_head"] = config["d_model"] // config["n_head"]
    if args.tokenizer != "bpe" and "vocab_size" in given:
        raise BadInput(f"--tokenizer={args.tokenizer} has a vocabulary of its own: leave --vocab_size out")
    config["ratio"], config["languages"] = clone.resolve(args)
    config["schedule"] = args.schedule
    clone.parse_stages(config["ratio"], config["languages"], config["schedule"])
    clone.clone_table(257, 1, 256, config["cloned"])
    return config


# ---------------------------------------------------------------------------------------------------------------------
# What is measured on the way

@torch.no_grad()
def evaluate(model, text, table, context, device):
    """Mean loss in nats per token of each language [N] on one and the same text, in windows of the context, and retrieval@1 of the middle
    layer, at positions of cloned tokens, for each pair of languages {"EN1-EN2": share}."""
    n = min(clone.windows(text, context), max(1, EVAL_TOKENS // context))
    base = np.stack([text[i:i + context + 1] for i in np.linspace(0, len(text) - context - 1, n).astype(int)])
    some = base[:max(1, RETRIEVAL_STATES // context), :-1]
    cloned = clone.cloned_positions(some, table[0], table[-1])
    losses, states = [], []
    for row in table:
        losses.append(torch.cat([model(part) for part in torch.from_numpy(row[base]).to(device).split(max(1, 4096 // context))]).mean().item())
        states.append(model.residual_stream(torch.from_numpy(row[some]).to(device))[len(model.blocks) // 2][cloned].float()[:RETRIEVAL_STATES])
    pairs = [(a, b) for b in range(len(table)) for a in range(b)]
    return losses, {f"EN{a + 1}-EN{b + 1}": align.retrieval_at_1(states[a], states[b]) for a, b in pairs}


def report(folder, config):
    """The table at the end of a run, and what to do next."""
    final = runs.read_log(folder, "val_loss")[-1]
    print(f"\n{'':6}{'share':>8}{'tokens seen':>14}{'loss':>9}{'perplexity':>12}   (validation text, the same for every language; loss in nats per token)")
    for l, (tokens, loss) in enumerate(zip(final["tokens_seen"], final["val_loss"])):
        print(f"EN{l + 1:<4}{tokens / final['tokens']:8.1%}{tokens:14,}{loss:9.3f}{math.exp(min(loss, 700)):12,.2f}")
    print(f"""\n{folder / 'loss.png'} shows the run. Next:
  python eval.py {folder}            # test perplexity per language
  python eval.py {folder} --sample   # what it writes
  python align.py {folder}           # are the languages represented alike?""")
    if config["languages"] > 1 and not config["schedule"]:
        balanced = float(config["ratio"].split(",")[0]) <= 1 / config["languages"] + 1e-6
        print(f"  python train.py --ratio={0.9 if balanced else 0.5}   # the {'im' if balanced else ''}balanced mix, for contrast")


# ---------------------------------------------------------------------------------------------------------------------
# The loop

def make_optimizers(model, config):
    """The optimisers of a config, as a list: Adam(W) for everything, or Muon for the matrices of the blocks and Adam for the rest."""
    settings = dict(lr=config["lr"], betas=(0.9, 0.95), fused=model.embedding.device.type != "mps")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    if config["optimizer"] != "muon":
        decay = 0.1 if config["optimizer"] == "adamw" else 0.0
        return [torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}], **settings)]
    blocks = [p for p in model.blocks.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not b for b in blocks)]
    return [torch.optim.Muon(blocks, lr=config["lr"], weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),  # so that one rate serves both
            torch.optim.AdamW(rest, weight_decay=0.0, **settings)]


def learning_rate(step, config):
    """Linear warm-up over 200 steps, or a quarter of a shorter run, then cosine to a hundredth of the peak (paper: 6e-4 -> 6e-6)."""
    warmup = min(200, max(1, config["steps"] // 4))
    if step < warmup:
        return config["lr"] * (step + 1) / warmup
    progress = (step - warmup) / max(1, config["steps"] - warmup)
    return config["lr"] * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def average(tensors, world):
    """Replace each tensor by its mean over all processes, in one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for t, mean in zip(tensors, (flat / world).split([t.numel() for t in tensors])):
        t.copy_(mean.view_as(t))


def main():
    args, given = options().parse()
    rank, world, local = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # set by torchrun
    device = pick_device(args.device)
    if args.resume:
        folder, config = runs.old_folder(args.run, given)
    else:
        folder, config = None, make_config(args, given)
        runs.check_new(args.run)
    if config["batch_size"] % world:
        raise BadInput(f"--batch_size={config['batch_size']} cannot be split evenly over {world} processes: use a multiple")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
    keep_freed_memory()

    # the corpus: one process of a machine prepares it, the others wait and find it ready
    if local > 0:
        dist.barrier()
    corpus = runs.open_corpus(folder, config) if folder else data.prepare(config["corpus"], config["vocab_size"], config["tokenizer"])
    if world > 1 and local == 0:
        dist.barrier()
    N, V, T, B = config["languages"], corpus["vocab_size"], config["context"], config["batch_size"]
    text = {split: data.tokens(corpus, split) for split in ("train", "val")}
    table = clone.clone_table(V, N, corpus["eot"], config["cloned"], config["seed"])
    stages = clone.parse_stages(config["ratio"], N, config["schedule"])
    batch = clone.make_batches(text["train"], table, stages, T, B, config["steps"], config["seed"], rank, world)
    clone.windows(text["val"], T)

    # the config of a new run is complete now, and all input has proved good: write it down
    if folder is None:
        dtype = config["dtype"] if config["dtype"] != "auto" else str(faster_dtype(device)).removeprefix("torch.")
        config |= {"vocab_size": V, "dtype": dtype, "corpus_sha256": corpus["sha256"], "data_sha256": corpus["files"]}
        if world > 1:
            shared = [config]
            dist.broadcast_object_list(shared)  # two processes may find different types faster
            config = shared[0]
        if rank == 0:
            folder = runs.new_folder(args.run, given)
            write_json(folder / "config.json", config)
    held = runs.lock(folder) if rank == 0 else None

    # the model and its optimisers, as they start or as they were
    torch.manual_seed(config["seed"])
    model = runs.make_model(config, device)
    optimizers = make_optimizers(model, config)
    first, tokens = 0, [0] * N
    sums = torch.zeros(2, N, device=device)  # since the last log line, of each language: losses and sequences
    if args.resume and (folder / "model.pt").exists():
        state = runs.load_checkpoint(folder, config)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(optimizer_state)
        first, tokens = state["step"], state["tokens"]
        if rank == 0:
            sums.copy_(state["sums"])
    forward = torch.compile(model) if args.compile else model

    # the log: what a killed run wrote after its last checkpoint goes, and will be written again
    if rank == 0:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        log_path = folder / "log.jsonl"
        lines = log_path.read_bytes().splitlines(True) if log_path.exists() else []
        with write(log_path) as f:
            f.writelines(line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= first)
        print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {N} language{'s' * (N > 1)} of {V:,} ids, "
              f"{config['steps']:,} steps of {B} x {T} tokens, {config['optimizer']}, {config['dtype']} on {device.type}"
              f"{f' x {world}' * (world > 1)}{f', from step {first:,}' * (first > 0)}", flush=True)
    show = lambda values: "  ".join(f"EN{l + 1} {'  -  ' if v is None else f'{v:.3f}'}" for l, v in enumerate(values))

    def log(line):
        with open(log_path, "a") as f:
            f.write(json.dumps(line) + "\n")

    def save(step):
        buffer = io.BytesIO()  # torch.save itself hides the error of a full disk
        torch.save({"config": config, "step": step, "tokens": tokens, "sums": sums,
                    "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}, buffer)
        with write(folder / "model.pt") as f:
            f.write(buffer.getbuffer())

    def stop_if_broken(step, values):
        if not all(v.isfinite().all() for v in values):
            kept = "the last good checkpoint is kept" if rank == 0 and (folder / "model.pt").exists() else "there is no checkpoint yet"
            sys.exit(f"the loss is not finite at step {step:,}: stopped; {kept}. Start a new run with a lower --lr" if rank == 0 else 1)

    # Ctrl-C and SIGTERM end the run after the step; a second Ctrl-C ends it at once
    stop = torch.zeros(1)
    def on_signal(number, frame):
        if stop.item() and world == 1:
            raise KeyboardInterrupt
        stop.fill_(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)

    log_every = min(100, max(1, config["steps"] // 50))
    eval_every = log_every * max(1, round(config["steps"] / 10 / log_every))
    clock, clocked, saved = time.time(), first, time.time()
    done = first
    for step in range(first, config["steps"]):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)

        # one step: forward and backward in parts, the mean gradient of all processes, the update
        ids, lang = (torch.from_numpy(array).to(device) for array in batch(step))
        for ids_part, lang_part in zip(ids.split(args.micro_batch or B), lang.split(args.micro_batch or B)):
            losses = forward(ids_part)
            (losses.sum() / len(ids)).backward()
            losses = losses.detach()
            sums.index_add_(1, lang_part, torch.stack([losses, torch.ones_like(losses)]))
        stopping = stop.to(device) if world > 1 else stop
        if world > 1:
            average([p.grad for p in model.parameters()] + [stopping], world)  # when one is told to stop, all do
        stopping = stopping.item() > 0
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        # the training loss of each language since the last log line
        done = step + 1
        at_log, at_eval = (done % every == 0 or done == config["steps"] for every in (log_every, eval_every))
        if at_log or stopping:
            if world > 1:
                dist.all_reduce(sums)
            stop_if_broken(done, [sums])
        if at_log and rank == 0:
            loss, count = sums.tolist()
            tokens = [t + round(c) * T for t, c in zip(tokens, count)]
            loss = [l / c if c else None for l, c in zip(loss, count)]
            speed = (done - clocked) * B * T / (time.time() - clock)
            minutes, rest = divmod(round((config["steps"] - done) * B * T / speed), 60)
            log({"step": done, "tokens": done * B * T, "loss": loss, "lr": learning_rate(step, config), "tokens_per_s": round(speed)})
            print(f"step {done:6,}  train  {show(loss)}  {speed:9,.0f} tokens/s  {minutes:3}:{rest:02} left", flush=True)
        if at_log:
            sums.zero_()

        # the validation loss of each language on one and the same text, whether their states are alike, and a checkpoint
        saving = at_eval or stopping or at_log and time.time() - saved > 300
        if saving:
            stop_if_broken(done, model.parameters())  # a broken model never takes the place of a good one
        if at_eval and rank == 0:
            val_loss, retrieval = evaluate(model, text["val"], table, T, device)
            log({"step": done, "tokens": done * B * T, "tokens_seen": tokens, "val_loss": val_loss, "retrieval@1": retrieval})
            aligned = f"  retrieval@1 {sum(retrieval.values()) / len(retrieval):.3f}" if retrieval else ""
            print(f"{'':11}  val    {show(val_loss)}{aligned}", flush=True)
        if saving and rank == 0:
            save(done)
        saved = time.time() if saving else saved
        if at_log:
            clock, clocked = time.time(), done
        if stopping and done < config["steps"]:
            break

    # what came of it
    if world > 1:
        dist.destroy_process_group()
    if rank > 0:
        os._exit(0)  # an ordinary exit this soon after the last message is now and then aborted by torch's own threads (gloo, torch 2.13)
    if log_path.stat().st_size:
        runs.plot(folder, config)
    if done < config["steps"]:
        print(f"interrupted and saved at step {done:,}; go on with: python train.py --run={folder.name} --resume")
        sys.exit(130)
    report(folder, config)


if __name__ == "__main__":
    run(main)
