"""How fast is a train step here? This model against another way, in turns on the same machine.

    python bench.py                                  # about two minutes on 2 CPU cores
    python bench.py --arch=encoder                   # of another architecture
    python bench.py --vs=../nanoGPT                  # beside a checkout of nanoGPT
    python bench.py --vs=transformers                # beside Hugging Face's GPT-2
    python bench.py --scale                          # what a text of 2 billion tokens costs
    python bench.py --text=docs                      # how long it takes to make ids of a text
    python bench.py --out=paper/results/bench.json   # and keep the numbers

The plain way, written out in plain_loss, is what one writes first: fp32 throughout, one
scaled_dot_product_attention a layer, one cross-entropy over all logits, the C library's memory as
it comes. There is no other difference: weights, batches, loss and optimiser are the same. The two
take turns, A B A B, and every turn is a process of its own.

Shown for each model, nano and pico:
    nanoclone, plain    tokens/s of both ways, the medians over the turns
    ratio               of the two, and its range over the turns
    of peak             how much of this machine's own matmul peak the matmuls of a step reach
    batch               the share of a step that making the batch takes
    memory, plain       the peak memory of both ways

With --scale nothing is trained. A text of a million, a hundred million and two billion tokens is
opened, an empty file that takes no room on the disk, and batches are made of it. Shown are the
seconds until the first batch, once the text is open, the memory that it takes, and the
milliseconds of each further one.

With --text a text is made into ids, as data.py does it, and nothing is kept. Shown are the seconds
of each stage, and how many times as long it took as tiktoken alone, which does nothing but encode
the same documents on as many threads.

With --vs, ours and theirs take turns in the same manner, each as its README runs it and in what
else may be its best way: compiled, or in bf16 where the CPU has it. All have models of one shape,
except that theirs ties its two embedding matrices.
"""
import contextlib
import importlib.util
import io
import math
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import clone
import data
from lib.cli import BadInput, Parser, run_main, write_json
from model import (
    ARCHITECTURES,
    GPT,
    SIZES,
    check_compile,
    faster_dtype,
    keep_freed_memory,
    pick_device,
)

SHAPES = {
    "nano": SIZES["nano"],
    # half as wide: the wider a model is, the more of its time goes into matmuls
    "pico": SIZES["pico"],
    # the others know no attention narrower than the residual stream, as the paper's mini has it
    "mini": SIZES["mini"] | {"d_head": 64},
    "small": SIZES["small"],
    "medium": SIZES["medium"],
}
# sequences of a batch, for what has 512 tokens in each: what a step holds fits into memory
PAPER_BATCH = {"cpu": 4, "cuda": 64}


class Way(NamedTuple):
    """A way to train a model of some shape."""
    code: str  # "nanoclone", "plain", "transformers", or the folder of a checkout of nanoGPT
    dtype: torch.dtype
    compiled: bool = False


# ------------------------------------------------------------------------------------------------
# The plain way

def plain_loss(model, ids, lang=None, *masked):
    """ids [B, T + 1] -> loss of each sequence [B], the plain way, with the weights of `model`.

    T has to be the whole context of the model. masked: (shown, places) for an encoder. Of another
    architecture than the decoder the states are the model's own, which in fp32 are made alike.
    """
    if model.config["arch"] == "decoder":
        states, targets = plain_states(model, ids[:, :-1]), ids[:, 1:]
    else:
        states, targets = model.predictions(ids, *masked)

    # The logits of all positions exist at once here, B * T * V numbers in fp32, and then their
    # gradient too. model.py keeps the gradient alone, in the type of the activations.
    logits = F.linear(model.norm(states), model.unembedding)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


def plain_states(model, inputs):
    """inputs [B, T] -> the states after the last layer of a decoder, [B, T, D]."""
    B, T = inputs.shape
    x = F.embedding(inputs, model.embedding)  # [B, T, D]
    if model.config["embedding_scale"]:
        x = x * math.sqrt(model.config["d_model"])
    x = x + model.position
    for block in model.blocks:
        # Attention. One matmul gives q, k and v, which are taken apart here: [B, H, T, d_head].
        qkv = F.linear(block.norm1(x), block.qkv, block.qkv_bias)
        q, k, v = qkv.view(B, T, 3, block.n_head, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, T, d_head]
        heads = heads.transpose(1, 2).reshape(B, T, -1)
        x = x + F.linear(heads, block.proj, block.proj_bias)

        # MLP.
        hidden = F.linear(block.norm2(x), block.up, block.up_bias)  # [B, T, 4 D]
        x = x + F.linear(F.gelu(hidden, approximate="tanh"), block.down, block.down_bias)
    return x


# ------------------------------------------------------------------------------------------------
# Theirs

def check_theirs(vs):
    """Raise BadInput unless --vs names what can be measured here."""
    if vs == "transformers":
        if importlib.util.find_spec("transformers") is None:
            raise BadInput("--vs=transformers: it is not installed; pip install transformers")
        return
    source = Path(vs) / "model.py"
    if not source.is_file() or "class GPTConfig" not in source.read_text(errors="replace"):
        raise BadInput(f"--vs={vs}: expected transformers, or a checkout of nanoGPT with its "
                       "model.py: git clone https://github.com/karpathy/nanoGPT")


def their_ways(vs, device, dtype):
    """{name: Way}: as their README runs it, and what may be its best way here.

    dtype: the faster one here. A CPU that has no bf16 takes minutes for a turn in it.
    """
    name = "transformers" if vs == "transformers" else "nanoGPT"
    vs = vs if vs == "transformers" else str(Path(vs).resolve())  # whatever the folder is called
    if device.type == "cuda":
        return {name: Way(vs, torch.bfloat16), f"{name} compiled": Way(vs, torch.bfloat16, True)}
    ways = {name: Way(vs, torch.float32), f"{name} compiled": Way(vs, torch.float32, True)}
    if dtype == torch.bfloat16:
        ways[f"{name} bf16"] = Way(vs, torch.bfloat16)
    return ways


def their_model(code, shape, vocab_size):
    """(their model of a shape, what makes its optimiser, loss(called, ids [B, T + 1]) -> mean).

    called: the model, or what torch.compile made of it.
    """
    if code == "transformers":
        from transformers import GPT2Config, GPT2LMHeadModel
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=vocab_size, n_positions=shape["context"], n_embd=shape["d_model"],
            n_layer=shape["n_layer"], n_head=shape["n_head"], resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0, bos_token_id=None, eos_token_id=None))  # which would be GPT-2's

        def loss(called, ids):  # it shifts the labels by itself
            return called(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss
        return model, partial(torch.optim.AdamW, fused=True), loss

    # under another name than ours, which is model.py as well
    spec = importlib.util.spec_from_file_location("nanogpt", Path(code) / "model.py")
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    model = nanogpt.GPT(nanogpt.GPTConfig(
        block_size=shape["context"], vocab_size=vocab_size, n_layer=shape["n_layer"],
        n_head=shape["n_head"], n_embd=shape["d_model"], dropout=0.0, bias=shape["bias"]))

    def make_optimizer(parameters):  # which are the model's
        device_type = next(parameters).device.type
        return model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device_type)

    def loss(called, ids):
        return called(ids[:, :-1], ids[:, 1:].contiguous())[1]
    return model, make_optimizer, loss


# ------------------------------------------------------------------------------------------------
# Measuring

def take_turns(ways, shape, device, turns, steps):
    """Measure some ways {name: Way}, A B A B: {name: what turn() gave each time}.

    A machine can be busy or hot for a while: in turns, it is so for all ways alike. In a process
    of its own, no turn finds memory that an earlier one has left behind, and its peak is its own.
    """
    measured = {name: [] for name in ways}  # one (seconds, seconds, MB) a turn
    for _ in range(turns):
        for name, way in ways.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                future = pool.submit(turn, way, shape, device, steps)
                measured[name].append(future.result())
    return measured


def turn(way, shape, device, steps):
    """Measure one way: (seconds a train step, seconds a batch, peak MB).

    shape: a dict as in SIZES. There are two languages, so the model has 2 * vocab_size ids.
    """
    optimizer, loss = set_up(way, shape, device)
    batch = make_batches(shape, 5 + steps)

    def train(first, last):
        for step in range(first, last):
            loss(*(torch.from_numpy(x).to(device) for x in batch(step))).backward()
            optimizer.step()
            optimizer.zero_grad()

    def only_batches():
        for step in range(steps):
            batch(step)

    # The first steps set things up: memory, the optimiser's state, kernels. They do not count.
    train(0, 5)
    seconds = timed(partial(train, 5, 5 + steps), device) / steps
    batch_seconds = timed(only_batches, device) / steps
    return seconds, batch_seconds, peak_memory(device)


def set_up(way, shape, device):
    """(the optimiser of a way, its loss(ids, lang, *masked) -> mean loss of a batch)."""
    table = make_table(shape)
    torch.manual_seed(0)  # so that ours and the plain way start from the same weights
    if way.code in ("nanoclone", "plain"):
        if way.code == "nanoclone":
            keep_freed_memory()
        model = GPT(shape | {"vocab_size": table.size}, way.dtype, table).to(device)
        called = torch.compile(model) if way.compiled else model
        if way.code == "plain":
            called = partial(plain_loss, model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        return optimizer, lambda *batch: called(*batch).mean()

    # as they train: in another type than fp32 by autocast, with tf32 where fp32 is left
    torch.backends.cuda.matmul.allow_tf32 = True
    with contextlib.redirect_stdout(io.StringIO()):  # theirs say what they are
        model, make_optimizer, their_loss = their_model(way.code, shape, table.size)
        model.to(device)
        optimizer = make_optimizer(model.parameters())
    called = torch.compile(model) if way.compiled else model

    def loss(ids, lang):
        with torch.autocast(device.type, way.dtype, enabled=way.dtype != torch.float32):
            return their_loss(called, ids)
    return optimizer, loss


def make_table(shape):
    """The ids of two clones, with a mask for an encoder."""
    return clone.clone_table(np.ones(shape["vocab_size"] + (shape["arch"] == "encoder")), 2)


def make_batches(shape, steps):
    """batch(step) -> (ids, lang) of clone.make_batches, in two languages at 90/10, from a text that
    means nothing; for an encoder also (shown, places).

    Speed does not depend on what a text says. Its tokens are about as frequent as those of a
    real one, the most frequent far more often than the rest (Zipf's law).
    """
    V, context, batch_size = shape["vocab_size"], shape["context"], shape["batch_size"]
    rng = np.random.default_rng(0)
    # Zipf's numbers are 1, 2, 3, ... without end: 1 to V are kept, and ids are 0 to V - 1.
    text = rng.zipf(1.2, 2_000_000).clip(max=V).astype(np.uint16) - 1
    table, stages = make_table(shape), np.array([[0.9, 0.1]])
    return clone.make_batches([text, text], table, stages, context, batch_size, steps, seed=0,
                              masked=shape["arch"] == "encoder")


def measure_text(n_tokens, path):
    """(seconds to the first batch, MB that it takes, ms a batch) of a text of so many tokens.

    The text is made at a path, and gone after it: a sparse file, of zeros.
    """
    shape = SIZES["nano"]
    with open(path, "wb") as f:
        f.truncate(2 * n_tokens)
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    text = np.memmap(path, dtype=np.uint16, mode="r")
    path.unlink()  # it lasts as long as it is open

    start = time.perf_counter()
    batch = clone.make_batches([text, text], make_table(shape), np.array([[0.9, 0.1]]),
                               shape["context"], shape["batch_size"], shape["steps"], seed=0)
    batch(0)
    seconds = time.perf_counter() - start
    memory = peak_memory(cpu) - before
    each = [timed(partial(batch, step), cpu) for step in range(1, 201)]
    return seconds, memory, 1000 * statistics.median(each)


def measure_preparing(corpus):
    """(MB of text, {stage: seconds}, MB of memory) of making ids of a text, as data.build does.

    The last stage is tiktoken alone. The memory is of the others. Raises BadInput.
    """
    cpu, seconds = torch.device("cpu"), {}
    sources = data.locate(corpus)
    before = peak_memory(cpu)

    def stage(name, function, *args):
        start = time.perf_counter()
        result = function(*args)
        seconds[name] = seconds.get(name, 0) + time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "text", "w+b") as spool:
        kept, *_ = stage("read, and drop repeats", data.gather, sources, spool)
        if not kept:
            raise BadInput(f"--text={corpus} is empty")
        parts = data.split_documents(data.cut(spool, kept))
        counts = stage("count words", data.count_words, spool, parts["train"])
        ranks = stage("learn merges", data.learn_bpe, counts, data.VOCAB_SIZE)
        data.save_ranks(Path(folder) / "tokenizer.tiktoken", ranks)
        enc = data.encoder({"tokenizer": "bpe", "folder": folder})
        for part in parts.values():
            stage("encode", data.encode, spool, part, enc, np.dtype("uint16"),
                  Path(folder) / "ids.bin")
        memory = peak_memory(cpu) - before

        # tiktoken alone, on as many documents at a time as there are threads
        threads = data.encode_threads()
        with ThreadPoolExecutor(threads) as pool:
            for i in range(0, len(kept), threads):
                texts = [data.read_text(spool, document) for document in kept[i:i + threads]]
                stage("tiktoken alone", encode_alone, pool, enc, texts)
    return sum(document.size for document in kept) / 1e6, seconds, memory


def encode_alone(pool, enc, texts):
    """Encode some texts, one a thread, and leave the ids."""
    for _ in pool.map(partial(enc.encode_to_numpy, disallowed_special=()), texts):
        pass


def show_preparing(corpus):
    """What measure_preparing finds of a corpus, as a table and as a dict."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        megabytes, seconds, memory = pool.submit(measure_preparing, corpus).result()
    print(f"{corpus}: {megabytes:,.1f} MB of text, {data.encode_threads()} threads, "
          f"{memory:,.0f} MB of memory\n")
    print(f"{'stage':24}{'seconds':>10}{'MB/s':>10}{'times tiktoken alone':>22}")
    alone = seconds["tiktoken alone"]
    for name, s in seconds.items():
        print(f"{name:24}{s:10.2f}{megabytes / s:10.1f}{s / alone:22.2f}")
    return {"corpus": corpus, "megabytes": megabytes, "seconds": seconds, "memory_mb": memory}


def show_scale(sizes=(10**6, 10**8, 2 * 10**9)):
    """What measure_text finds of texts of some sizes, as a table and as a list of dicts."""
    print(f"{'tokens':>14}{'first batch, s':>16}{'memory, MB':>12}{'ms a batch':>12}")
    rows = []
    for n_tokens in sizes:
        with tempfile.TemporaryDirectory() as folder:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                path = Path(folder) / "text.bin"
                seconds, memory, ms = pool.submit(measure_text, n_tokens, path).result()
        print(f"{n_tokens:14,}{seconds:16.2f}{memory:12,.0f}{ms:12.3f}", flush=True)
        rows.append({"tokens": n_tokens, "first_batch_s": seconds, "memory_mb": memory,
                     "ms_a_batch": ms})
    return rows


def timed(function, device):
    """Seconds that one call takes, with all the work that it started on the device."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def wait(device):
    """Wait for a GPU, which works on after a call returns. A CPU has done its work by then."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(device):
    """The most memory that this process has held so far, in MB; on a GPU, of the GPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6

    status = Path("/proc/self/status")
    if status.exists():  # Linux. What the module below says there counts the parent's memory too
        of_peak = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(of_peak[0].split()[1]) / 1e3
    try:
        import resource
    except ImportError:  # Windows has no such module
        return math.nan
    units = 1e6 if sys.platform == "darwin" else 1e3  # bytes on a Mac, kB elsewhere, in an MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def matmul_peak(device, dtype):
    """FLOP/s of the fastest of several square matmuls on this machine."""
    # How large a matmul has to be to run at full speed depends on the machine, so several sizes
    # are tried. The fastest of five is the one that nothing else on the machine has slowed down.
    best = 0
    sizes = [1024, 2048, 4096]
    if device.type == "cuda":
        sizes.append(8192)
    for n in sizes:
        a = torch.randn(n, n, device=device, dtype=dtype)
        for _ in range(5):
            seconds = timed(partial(torch.matmul, a, a), device)
            best = max(best, 2 * n**3 / seconds)
    return best


def matmul_flops(shape):
    """FLOPs of the matmuls of one train step of a model in two languages.

    A token costs 6 a weight: a multiplication and an addition forwards, and twice that backwards.
    Attention's own two matmuls, of [T, d_head] with [d_head, S] and of [T, S] with [S, d_head],
    cost 6 * 2 * S * H * d_head a token and layer. The half of [T, T] that causality masks counts,
    for it is computed.
    """
    B, T = shape["batch_size"], shape["context"]
    D, L = shape["d_model"], shape["n_layer"]
    width = shape["n_head"] * shape["d_head"]  # of the attention

    # A layer has q, k, v and proj, and up and down, four times as wide as the residual stream.
    attends, works = 4 * width * D, 8 * D * D
    if shape["arch"] == "encoder-decoder":
        # half of the tokens in each half of the layers; the decoder has a second attention
        half, layers = T // 2, L // 2
        blocks = half * layers * (2 * (attends + works + 2 * half * width)
                                  + attends + 2 * half * width)
        predicted = half
    else:
        blocks = T * L * (attends + works + 2 * T * width)
        predicted = T
    if shape["arch"] == "encoder":
        predicted = clone.masked_places(clone.roll_dice([0], T)).shape[1]

    # The unembedding has a row for each id of both languages, or, with heads of their own, of one.
    ids = shape["vocab_size"] + (shape["arch"] == "encoder")
    if shape["heads"] == "shared":
        ids *= 2
    return 6 * B * (blocks + predicted * ids * D)


# ------------------------------------------------------------------------------------------------
# Showing

# The columns, over the numbers of print_row.
COLUMNS = """\
model        nanoclone     plain   ratio   over the turns   of peak   batch   memory   plain
              tokens/s  tokens/s                                   of a step      MB      MB"""


def compare(shape, fast, plain, peak):
    """The row of one model: a dict of numbers, from the turns of both ways and the matmul peak."""
    seconds, batch_seconds, memory = zip(*fast)
    plain_seconds, _, plain_memory = zip(*plain)
    tokens = shape["batch_size"] * shape["context"]

    # Medians, so that one turn in which the machine was busy does not count. The range of the
    # ratios, turn by turn, says how far to trust them.
    fast_step = statistics.median(seconds)
    plain_step = statistics.median(plain_seconds)
    return {
        "tokens_per_s": tokens / fast_step,
        "plain_tokens_per_s": tokens / plain_step,
        "ratio": plain_step / fast_step,
        "ratios": [slow / quick for quick, slow in zip(seconds, plain_seconds)],
        "of_matmul_peak": matmul_flops(shape) / fast_step / peak,
        "batch_share": statistics.median(batch_seconds) / fast_step,
        "memory_mb": max(memory),
        "plain_memory_mb": max(plain_memory),
    }


def print_head(result, columns):
    """Say what is measured, and on what, and name the columns."""
    # The machine first: no number means anything without it.
    print(
        f"{result['arch']}, torch {result['torch']}, {result['threads']} threads, "
        f"{result['device']}, activations {result['dtype']}, "
        f"matmul peak {result['matmul_peak_flops'] / 1e9:,.0f} GFLOP/s; "
        f"{result['turns']} turns of {result['steps']} steps\n"
    )
    print(columns)


def print_row(name, row):
    """One model under the columns of print_head."""
    low, high = min(row["ratios"]), max(row["ratios"])
    print(
        f"{name:10}{row['tokens_per_s']:12,.0f}{row['plain_tokens_per_s']:10,.0f}"
        f"{row['ratio']:8.2f}   {low:.2f} to {high:.2f}    "
        f"{row['of_matmul_peak']:8.1%}{row['batch_share']:8.2%}"
        f"{row['memory_mb']:9,.0f}{row['plain_memory_mb']:8,.0f}",
        flush=True,
    )


# The columns with --vs, over the numbers of print_theirs.
THEIR_COLUMNS = """\
model     way                       tokens/s   of peak   memory   ours, as many times as fast
                                                             MB   at its best, over the turns"""


def compare_theirs(shape, measured, peak):
    """The rows of one model, {name: a dict of numbers}, from the turns of all ways.

    times: how many times as fast our best way is as this one; its range is over the turns.
    """
    tokens = shape["batch_size"] * shape["context"]
    step = {name: [seconds for seconds, *_ in turns] for name, turns in measured.items()}
    ours = min((name for name in step if name.startswith("nanoclone")),
               key=lambda name: statistics.median(step[name]))
    rows = {}
    for name, seconds in step.items():
        median = statistics.median(seconds)
        rows[name] = {
            "tokens_per_s": tokens / median,
            "of_matmul_peak": matmul_flops(shape) / median / peak,
            "memory_mb": max(mb for *_, mb in measured[name]),
            "times": median / statistics.median(step[ours]),
            "times_by_turn": [slow / quick for slow, quick in zip(seconds, step[ours])],
        }
    return rows


def print_theirs(name, rows):
    """One model under the columns with --vs, a line each way."""
    for way, row in rows.items():
        low, high = min(row["times_by_turn"]), max(row["times_by_turn"])
        print(f"{name:10}{way:21}{row['tokens_per_s']:13,.0f}{row['of_matmul_peak']:10.1%}"
              f"{row['memory_mb']:9,.0f}{row['times']:8.2f}   {low:.2f} to {high:.2f}", flush=True)


def main():
    parser = Parser(__doc__)
    cuda = torch.cuda.is_available()
    parser.option("--vs", None, "whose model to measure beside ours: a folder with a checkout of "
                  "nanoGPT, or transformers, where it is installed (default: the plain way)")
    parser.option("--models", None, f"which of {', '.join(SHAPES)}, comma-separated (default: nano "
                  "and pico; with --vs mini too, and on a GPU nano and the paper's)")
    parser.option("--scale", False, "instead: how long batches take to make, and how much memory, "
                  "of ever longer texts", bool)
    parser.option("--text", None, "instead: how long each stage of data.py takes to make ids of "
                  "this text, what --corpus may be (default: none)")
    parser.option("--turns", 4, "turns of each way, A B A B ...", int)
    parser.option("--steps", 20, "train steps a turn", int)
    parser.option("--arch", "decoder", "architecture, as in train.py", choices=ARCHITECTURES)
    parser.option("--device", "cuda" if cuda else "cpu", "cpu or cuda", choices=["cpu", "cuda"])
    parser.option("--out", None, "a JSON file to write the numbers to as well (default: none)")
    args, _ = parser.parse()
    if args.turns < 1 or args.steps < 1:
        raise BadInput(f"--turns={args.turns} --steps={args.steps}: expected 1 or more of each")
    if args.out and (Path(args.out).is_dir() or not Path(args.out).parent.is_dir()):
        raise BadInput(f"--out={args.out}: expected a file, in a folder that is there")
    if (args.scale or args.text) and (args.vs or args.models):
        raise BadInput("--scale and --text train nothing: leave --vs and --models out")
    if args.scale or args.text:
        result = {}
        if args.scale:
            result["batches"] = show_scale()
        if args.text:
            result["text"] = show_preparing(args.text)
        if args.out:
            write_json(args.out, result)
        return
    if args.vs:
        check_theirs(args.vs)
        if args.arch != "decoder":
            raise BadInput(f"--vs={args.vs} is a decoder: leave --arch={args.arch} out")

    # What this machine is, and can do at best.
    device = pick_device(args.device)
    models = choose_models(args, device)
    dtype = faster_dtype(device)
    peak = matmul_peak(device, dtype)
    result = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "dtype": str(dtype),
        "threads": torch.get_num_threads(),
        "turns": args.turns,
        "steps": args.steps,
        "arch": args.arch,
        "vs": args.vs,
        "matmul_peak_flops": peak,
        "models": {},
        "batches": {},  # sequences, and tokens of each
    }

    # All ways on each model. A row is shown as soon as it is there.
    ways = {"nanoclone": Way("nanoclone", dtype)}
    if args.vs:
        ways["nanoclone compiled"] = Way("nanoclone", dtype, True)
        ways |= their_ways(args.vs, device, dtype)
        ways = leave_compiled_out(ways, device)
    else:
        ways["plain"] = Way("plain", torch.float32)
    print_head(result, THEIR_COLUMNS if args.vs else COLUMNS)
    for name in models:
        shape = SHAPES[name] | {"arch": args.arch}
        if name not in ("nano", "pico"):
            shape["batch_size"] = PAPER_BATCH[device.type]
        measured = take_turns(ways, shape, device, args.turns, args.steps)
        if args.vs:
            row = compare_theirs(shape, measured, peak)
            print_theirs(name, row)
        else:
            row = compare(shape, measured["nanoclone"], measured["plain"], peak)
            print_row(name, row)
        result["models"][name] = row
        result["batches"][name] = [shape["batch_size"], shape["context"]]
    if args.out:
        write_json(args.out, result)


def choose_models(args, device):
    """The names of the models to measure. Raises BadInput."""
    if args.models is None:
        if not args.vs:
            return ["nano", "pico"]
        if device.type == "cpu":
            return ["nano", "pico", "mini"]
        return ["nano", "mini", "small", "medium"]
    models = args.models.split(",")
    for name in models:
        if name not in SHAPES:
            raise BadInput(f"--models={args.models}: there is no {name}; "
                           f"expected some of {', '.join(SHAPES)}")
    return models


def leave_compiled_out(ways, device):
    """The ways that work here: without a compiler, those that are not compiled."""
    try:
        check_compile(device)
    except BadInput:
        print("the compiled ways are left out: torch.compile needs a C++ compiler, and Triton on "
              "a GPU")
        return {name: way for name, way in ways.items() if not way.compiled}
    return ways


if __name__ == "__main__":
    run_main(main)
