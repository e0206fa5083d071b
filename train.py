"""Train one transformer on several clones of one language; watch how well it learns each.

    python train.py --ratio=0.9                  # 90 % EN1, 10 % EN2: minutes on 2 cores
    python train.py --ratio=0.5 --run=balanced   # the contrast
    python train.py --languages=1 --steps=500    # monolingual
    python train.py --corpus=eltec-eng --corpus=eltec-fra --ratio=0.9   # two real languages
    python train.py --run=balanced --resume      # go on where a killed run stopped

Several processes or GPUs read the same batches, a part each; the -- keeps --run from torchrun:

    torchrun --nproc_per_node=2 -- train.py --ratio=0.9

A run is a folder runs/NAME: config.json, log.jsonl, model.pt (weights and what resuming needs),
loss.png; and its tokeniser and the ids of its languages, so that it can be moved and copied.
"""
import math
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

import align
import clone
import data
import runs
from eval import (
    interpolate,
    monolingual_beside,
    monolingual_options,
    print_short_samples,
    teff_between,
)
from lib import ddp, plots
from lib.cli import BadInput, Parser, as_options, plural, run_main, say
from model import (
    ARCHITECTURES,
    HEADS,
    SIZES,
    check_compile,
    faster_dtype,
    keep_freed_memory,
    pick_device,
)

EVAL_TOKENS = 32768  # of validation text, the same for every clone
RETRIEVAL_STATES = 1024
SAVE_SECONDS = 300  # after so long the next line of the log comes with a checkpoint

# ------------------------------------------------------------------------------------------------
# The command line -> config, which says everything about a run

def options():
    parser = Parser(__doc__)

    def by_size(name, type, help, choices=None):
        """An option whose default --size decides."""
        presets = {size: preset[name] for size, preset in SIZES.items()}
        parser.option(f"--{name}", presets, help, type, choices)

    clone.add_options(parser, cloned={size: preset["cloned"] for size, preset in SIZES.items()})
    data.add_options(parser, vocab_size={size: p["vocab_size"] for size, p in SIZES.items()})

    parser.group("model")
    parser.option("--size", "nano", "a model and the recipe that goes with it: nano is for a CPU, "
                  "pico is nano half as wide, the others are the paper's", choices=list(SIZES))
    by_size("arch", str, "decoder (the paper's), encoder (masked tokens, each sees both sides), or "
            "encoder-decoder (the first half of a window is read, the second half written)",
            choices=ARCHITECTURES)
    by_size("heads", str, "shared: one softmax over the ids of all languages (the paper's); "
            "per-language: each language has one over its own ids", choices=HEADS)
    by_size("n_layer", int, "layers; of an encoder-decoder, half of them are the encoder's")
    by_size("n_head", int, "attention heads a layer, each d_model / n_head wide, but mini's 32")
    by_size("d_model", int, "width of the residual stream")
    by_size("context", int, "T, tokens of a sequence")
    by_size("tied", bool, "whether input and output embeddings are one matrix")
    by_size("bias", bool, "whether linear layers have a bias, all but the output")
    by_size("embedding_scale", bool, "whether the input embedding is multiplied by sqrt(d_model)")
    by_size("embedding_std", float, "standard deviation of the initial embeddings")

    parser.group("optimisation")
    by_size("steps", int, "optimiser steps")
    by_size("batch_size", int, "sequences a step, of all processes together")
    by_size("optimizer", str, "adam (the paper's: betas 0.9, 0.95, no weight decay), adamw (weight "
            "decay 0.1 on matrices), or muon (torch.optim.Muon for the matrices of the blocks, "
            "adam for the rest)", choices=["adam", "adamw", "muon"])
    by_size("lr", float, "peak learning rate; 200 steps of warm-up (a quarter of the run if "
            "that is less), then cosine to a hundredth")
    parser.option("--seed", 0, "of the initial weights and the batches", int)

    parser.group("this machine")
    parser.option("--device", "auto", "cpu, cuda or mps; auto takes the best there is")
    parser.option("--dtype", "auto", "type of the activations; auto takes the faster (on a CPU it "
                  "is timed)", choices=["auto", "float32", "bfloat16"])
    parser.option("--micro_batch", None, "sequences a forward pass; fewer need less memory, the "
                  "gradient is the same (default: the whole batch of a process)", int)
    parser.option("--compile", False, "torch.compile the model: a minute of warm-up, then faster "
                  "on a GPU", bool)

    parser.group("this run")
    parser.option("--run", None, "the run's name, its folder under runs/ (default: from the "
                  "options given)")
    parser.option("--resume", False, "go on with the run --run=NAME, killed or interrupted", bool)
    return parser


def make_config(args, given):
    """The config of a new run, a namespace: the preset, overridden by what was given.

    Raises BadInput.
    """
    # argparse's None is "not given": the preset decides
    chosen = {}
    for key, value in vars(args).items():
        if key not in runs.NOT_OF_THE_RUN and value is not None:
            chosen[key] = value
    config = SimpleNamespace(**runs.ADDED | SIZES[args.size] | chosen)

    for name in ("n_layer", "n_head", "d_model", "context", "steps", "batch_size", "lr",
                 "embedding_std"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"--{name}={value}: expected more than 0")
    if not 0 <= args.seed < 1 << 63:  # what numpy and torch both take
        raise BadInput(f"--seed={args.seed}: expected 0 to 2**63 - 1")
    preset = SIZES[args.size]
    if (config.n_head, config.d_model) != (preset["n_head"], preset["d_model"]):
        if config.d_model % config.n_head:
            raise BadInput(f"--d_model={config.d_model} is not a multiple of "
                           f"--n_head={config.n_head}")
        config.d_head = config.d_model // config.n_head
    if config.arch == "encoder-decoder" and config.n_layer % 2:
        raise BadInput(f"--n_layer={config.n_layer}: of an encoder-decoder, half of the layers are "
                       "the encoder's: expected an even number")
    if config.arch == "encoder-decoder" and config.context < 2:
        raise BadInput(f"--context={config.context}: an encoder-decoder splits it in two: "
                       "expected 2 or more")
    if args.tokenizer != "bpe" and "vocab_size" in given:
        raise BadInput(f"--tokenizer={args.tokenizer} has a vocabulary of its own: "
                       "leave --vocab_size out")

    config.ratio, config.languages = clone.resolve(args)
    config.schedule = args.schedule
    if not runs.are_clones(config):
        config.vocabulary = args.vocabulary or "disjoint"
    clone.parse_stages(config.ratio, config.languages, config.schedule)  # raises if they are wrong
    config.version = runs.VERSION
    return config


# ------------------------------------------------------------------------------------------------
# What a step is made of

def forward_backward(model, batch, micro_batch=None):
    """Add the gradient of the mean loss of a batch to the weights' .grad.

    batch: what the model takes, first of all ids [B, T + 1]. Returns the loss of each sequence in
    nats per token [B]. micro_batch: sequences at a time.
    """
    losses, B = [], len(batch[0])
    for part in zip(*(x.split(micro_batch or B) for x in batch)):
        loss = model(*part)
        (loss.sum() / B).backward()
        losses.append(loss.detach())
    return torch.cat(losses)


def update(optimizers, lr):
    """One step of each optimiser at a learning rate; the gradients are gone after it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()


def learning_rate(step, config):
    """Linear warm-up, then cosine to a hundredth of the peak (paper: 6e-4 -> 6e-6).

    The warm-up takes 200 steps, or a quarter of the run if that is less.
    """
    warmup = min(200, max(1, config.steps // 4))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def make_optimizers(model, config):
    """The optimisers of a config, as a list.

    Adam(W) for everything, or Muon for the matrices of the blocks and Adam for the rest.
    """
    settings = dict(lr=config.lr, betas=(0.9, 0.95))
    settings["fused"] = model.embedding.device.type != "mps"

    if config.optimizer == "muon":
        blocks = [p for p in model.blocks.parameters() if p.dim() == 2]
        rest = [p for p in model.parameters() if all(p is not block for block in blocks)]
        # its updates are scaled to the size of Adam's, so that one rate serves both
        muon = torch.optim.Muon(blocks, lr=config.lr, weight_decay=0.0,
                                adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(rest, weight_decay=0.0, **settings)]

    decay = 0.1 if config.optimizer == "adamw" else 0.0
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, **settings)]


# ------------------------------------------------------------------------------------------------
# What is measured on the way

def show(names, losses):
    """["EN1", "EN2"], [3.14159, None] -> "EN1 3.142  EN2   -  "."""
    cells = []
    for name, loss in zip(names, losses):
        cells.append(f"{name} {'  -  ' if loss is None else f'{loss:.3f}'}")
    return "  ".join(cells)


def log_training(run, tokens_per_s):
    """Log and print the mean loss of each language since the last line, and the time left.

    run.sums [2, N] holds the losses of each language and how many there were, of all processes.
    """
    config = run.config
    tokens_a_step = config.batch_size * config.context
    losses, counts = run.sums.tolist()
    means = [loss / n if n else None for loss, n in zip(losses, counts)]
    run.tokens = [seen + round(n) * config.context for seen, n in zip(run.tokens, counts)]
    runs.append_log(run.folder, {
        "step": run.step,
        "tokens": run.step * tokens_a_step,
        "loss": means,
        "lr": learning_rate(run.step - 1, config),
        "tokens_per_s": round(tokens_per_s),
    })
    seconds = round((config.steps - run.step) * tokens_a_step / tokens_per_s)
    say(f"step {run.step:6,}  train  {show(run.names, means)}  {tokens_per_s:9,.0f} tokens/s  "
        f"{seconds // 60:3}:{seconds % 60:02} left")


def log_validation(run, texts):
    """Log and print the validation loss of each language, and whether their states are alike."""
    losses, retrieval = evaluate(run.model, texts, run.table, run.names, run.config.context)
    runs.check_finite(run, [torch.tensor(losses)])
    runs.append_log(run.folder, {
        "step": run.step,
        "tokens": run.step * run.config.batch_size * run.config.context,
        "tokens_seen": run.tokens,
        "val_loss": losses,
        "retrieval@1": retrieval,
    })
    aligned = ""
    if retrieval:
        aligned = f"  retrieval@1 {sum(retrieval.values()) / len(retrieval):.3f}"
    say(f"{'':11}  val    {show(run.names, losses)}{aligned}")


@torch.no_grad()
def evaluate(model, texts, table, names, context):
    """(losses, retrieval) of each language; of clones on one and the same text.

    texts [N]: validation text of each language. losses [N]: mean loss in nats per token, in windows
    of the context spread over the text. retrieval: for each pair of clones {"EN1-EN2": share},
    retrieval@1 of the middle layer at positions of cloned tokens (align.retrieval_at_1). Real
    languages have other texts, and so no pairs of positions: {}.
    """
    device = model.embedding.device
    losses = []
    n = max(1, EVAL_TOKENS // context)
    bases = {id(text): clone.spread(text, context, n) for text in texts}  # of each, [n, T + 1]
    for text, row in zip(texts, table):
        ids = row[bases[id(text)]]
        of_parts, at_a_time = [], max(1, 4096 // context)
        for i in range(0, len(ids), at_a_time):
            of_parts.append(model.text_losses(ids[i:i + at_a_time], row, first=i).mean(1))
        losses.append(torch.cat(of_parts).mean().item())

    retrieval = {}
    if len(bases) > 1:
        return losses, retrieval
    middle = len(model.blocks) // 2  # of an encoder-decoder, what the decoder sees of the encoder
    _, where = model.stream_names(context)[middle]
    some = bases[id(texts[0])][:max(1, RETRIEVAL_STATES // (where.stop - where.start)), :-1]
    cloned = clone.cloned_positions(some[:, where], table[0], table[-1])
    states = []
    for row in table:
        stream = model.residual_stream(torch.from_numpy(row[some]).to(device))
        states.append(stream[middle][cloned].float()[:RETRIEVAL_STATES])
    for b in range(len(table)):
        for a in range(b):
            retrieval[f"{names[a]}-{names[b]}"] = align.retrieval_at_1(states[a], states[b])
    return losses, retrieval


# ------------------------------------------------------------------------------------------------
# The run

def open_run(args, given):
    """A Run that is ready to be trained, new or gone on with, and its text.

    Returns (run, {"train": texts, "val": texts}), a token stream for each language. Nothing is
    written before all input has proved good. Raises BadInput.
    """
    device = pick_device(args.device)
    if args.micro_batch is not None and args.micro_batch < 1:
        raise BadInput(f"--micro_batch={args.micro_batch}: expected more than 0")
    args.resume = args.resume or begun_before(args, given)
    if args.resume:
        folder, config = runs.old_folder(args.run, given)
    else:
        runs.check_new(args.run)
        folder, config = None, make_config(args, given)
    if config.batch_size % ddp.world():
        raise BadInput(f"--batch_size={config.batch_size} cannot be split evenly over "
                       f"{ddp.world()} processes: use a multiple")
    if args.compile:
        check_compile(device)
    ddp.start(device)

    with ddp.one_before_the_others():
        if folder:
            corpora = runs.open_corpora(folder, config, given.get("corpus"),
                                        given.get("parallel"))
        else:
            corpora = clone.open_corpora(config.corpus, config.languages, config.vocab_size,
                                         config.tokenizer, config.parallel)
    texts = {split: clone.open_texts(corpora, split) for split in ("train", "val")}
    for text in texts["train"] + texts["val"]:
        clone.count_windows(text, config.context)  # raises if there is too little of it

    # a new run: its config is complete now, so write it down
    held = None  # the lock, which the first process holds to its end
    if folder is None:
        config.vocab_size = corpora[0]["vocab_size"]
        if config.dtype == "auto":
            config.dtype = str(faster_dtype(device)).removeprefix("torch.")
        config.corpus_sha256, config.data_sha256 = runs.hashes(config, corpora)
        config = ddp.share(config)  # two processes may find different types faster
        if ddp.first():
            folder, held = runs.new_folder(args.run, given, config)
        folder = ddp.share(folder)
    elif ddp.first():
        held = runs.lock(folder)

    torch.manual_seed(config.seed)
    languages = runs.make_languages(config, corpora)
    model = runs.make_model(config, languages.table, device)
    run = runs.Run(folder, config, corpora, languages, model)
    run.lock = held
    run.optimizers = make_optimizers(run.model, config)
    run.tokens = [0] * config.languages
    run.sums = torch.zeros(2, config.languages, device=device)
    return run, texts


def begun_before(args, given):
    """Whether torchrun has started this command again, and its run is there: then it goes on.

    Raises BadInput if the run of that name is another one.
    """
    if not ddp.restarted() or args.run is None:
        return False
    folder = Path("runs") / args.run
    if not (folder / "config.json").exists():
        return False
    was = vars(runs.read_config(folder))
    for key, value in vars(make_config(args, given)).items():
        decided_later = key in ("dtype", "vocab_size")
        if not decided_later and was.get(key) != value:
            raise runs.taken(folder)
    return True


def make_batches(run, texts):
    """batch(step) -> what the model takes, this process's part of a batch, on the device.

    (ids [B, T + 1], lang [B]), and for an encoder also what it is shown, and where it is asked:
    (shown [B, T], places [B, P]), clone.mask_tokens.
    """
    config = run.config
    stages = clone.parse_stages(config.ratio, config.languages, config.schedule)
    numpy_batch = clone.make_batches(texts, run.table, stages, config.context,
                                     config.batch_size, config.steps, config.seed,
                                     ddp.rank(), ddp.world(), config.arch == "encoder")

    def batch(step):
        return [torch.from_numpy(array).to(run.device) for array in numpy_batch(step)]

    return batch


def begin(run, resume, texts):
    """Go on from the last checkpoint, if there is one, and cut the log back to it.

    texts [N]: the training text, for the first lines on the screen.
    """
    if resume:
        run.go_on()
    if ddp.first():
        for leftover in run.folder.glob(".*.tmp"):
            leftover.unlink()
        runs.trim_log(run.folder, run.step)
        run.keep_languages()
        print_headline(run)
        if not run.clones:
            print_shared(run)
        print_text_use(run, texts)


def print_headline(run):
    """What is about to be trained, in one line."""
    config = run.config
    parameters = sum(p.numel() for p in run.model.parameters())
    processes = f" x {ddp.world()}" if ddp.world() > 1 else ""
    going_on = f", from step {run.step:,}" if run.step else ""
    heads = ", a head per language" if config.heads == "per-language" else ""
    say(f"{run.folder}: {config.arch} of {parameters:,} parameters{heads}, "
        f"{plural(config.languages, 'language')} of {run.table.shape[1]:,} ids, "
        f"{config.steps:,} steps of {config.batch_size} x {config.context} tokens, "
        f"{config.optimizer}, {config.dtype} on {run.device.type}{processes}{going_on}")


def print_shared(run):
    """How many ids real languages share, and how much of each one's text that is."""
    V, shares = run.table.shape[1], []
    shared = clone.shared_tokens(run.table, run.languages.counts)
    for name, (n, share) in zip(run.names, shared):
        shares.append(f"{n:,} of {name}'s {V:,} ids, {share:.1%} of its text")
    say(f"{run.config.vocabulary} vocabularies; shared: {'; '.join(shares)}")


def print_text_use(run, texts):
    """How often the training text is read, and whether any of it is read in two languages."""
    config = run.config
    stages = clone.parse_stages(config.ratio, config.languages, config.schedule)
    sequences = config.steps * config.batch_size
    streams, speakers = clone.find_streams(texts)
    if len(streams) > 1:
        epochs = []
        for text, langs in zip(streams, speakers):
            share = stages[:, langs].sum(1).mean()
            read = share * sequences / clone.count_windows(text, config.context)
            epochs.append(f"{read:.2f} of {' and '.join(run.names[l] for l in langs)}")
        say(f"epochs of the training text: {', '.join(epochs)}")
        return

    n_windows = clone.count_windows(texts[0], config.context)
    twice = clone.read_in_two_languages(n_windows, stages, config.batch_size, config.steps,
                                        config.seed)
    in_two = ""
    if twice:
        in_two = (f"; {twice:,} of {n_windows:,} windows are read in two languages, "
                  "since the schedule changes between their epochs")
    say(f"{sequences / n_windows:.2f} epochs of the training text{in_two}")


def report(run, texts):
    """The table at the end of a run, what it writes, and what to do next.

    texts [N]: the validation text of each language.
    """
    folder, config = run.folder, run.config
    final = runs.read_log(folder, "val_loss")[-1]
    laws = [[] for _ in run.names]  # of each language, the monolingual runs beside it
    if config.languages > 1:
        laws = [monolingual_beside(folder, config, l) for l in range(config.languages)]
        # too few tell nothing
        laws = [points if len({n for n, _ in points}) >= 3 else [] for points in laws]

    beside = f"{'monolingual':>13}{'TEff':>7}" if any(laws) else ""
    whose = "the same for every language" if run.clones else "each language has its own"
    unit = "masked token" if config.arch == "encoder" else "token"
    print(f"\n{'':6}{'share':>8}{'tokens seen':>14}{'loss':>9}{'perplexity':>12}{beside}   "
          f"(validation text, {whose}; loss in nats per {unit})")
    for name, tokens, loss, points in zip(run.names, final["tokens_seen"], final["val_loss"], laws):
        perplexity = math.exp(min(loss, 700))
        line = (f"{name:6}{tokens / final['tokens']:8.1%}{tokens:14,}{loss:9.3f}"
                f"{perplexity:12,.2f}")
        if any(laws):
            line += beside_monolingual(points, tokens, perplexity)
        print(line)
    if any(laws):
        n_runs = len(laws[0]) if run.clones else sum(len(points) for points in laws)
        print("\nmonolingual: perplexity of a monolingual model on as many tokens, interpolated "
              f"between {plural(n_runs, 'run')} in {folder.parent}/\n"
              "TEff: token efficiency, the tokens on which a monolingual model is as good, over "
              "those seen here.\n      Above 1, something crossed over from another language\n"
              "-: outside the range of these runs")

    if config.arch != "encoder":
        print("\nwhat it writes after the start of the validation text:")
        print_short_samples(run, [text[:runs.prompt_length(config)] for text in texts])

    parallel = "" if run.clones else f" --parallel={config.parallel or 'PATH'}"
    print(f"\n{folder / 'loss.png'} shows the run. Next:")
    print(f"  python eval.py {folder}            # test perplexity per language")
    if config.arch != "encoder":
        print(f"  python eval.py {folder} --sample --prompt=\"...\"   # what it writes after your "
              "words")
    if config.languages > 1:
        print(f"  python align.py {folder}{parallel}           # are the languages represented "
              "alike?")
    if config.languages > 1 and not config.schedule:
        main_share = float(config.ratio.split(",")[0])
        if main_share <= 1 / config.languages + 1e-6:
            print(f"  {command(config, ratio=0.9)}   # an imbalanced mix, for contrast")
        else:
            print(f"  {command(config)}   # the balanced mix, for contrast")
    if config.languages > 1 and not all(laws):
        print_monolingual_commands(run)


def beside_monolingual(points, tokens, perplexity):
    """Two cells of the table: what a monolingual model has on as many tokens, token efficiency.

    points: [(tokens, perplexity)] of monolingual runs; between them it is interpolated.
    """
    cells = ["-", "-"]
    if tokens:
        ppl, teff = interpolate(points, n=tokens), teff_between(points, perplexity, tokens)
        if ppl:
            cells[0] = f"{ppl:,.2f}"
        if teff:
            cells[1] = f"{teff:.2f}"
    return f"{cells[0]:>13}{cells[1]:>7}"


def print_monolingual_commands(run):
    """How to see what a monolingual model has on as many tokens: the runs that it takes."""
    folder, config = run.folder, run.config
    percents = (5, 10, 20, 50, 100)  # 5, since EN2's windows are drawn: it may have less than 10 %
    corpora = runs.per_corpus(config.corpus)
    print("\nHow good is that? Train monolingual models on a part of these tokens, with batches so "
          "small that they have steps enough;\n"
          f"together they take about {len(corpora) * sum(percents) / 100:.1f} times as long as "
          "this run:")
    names = []
    for name, corpus in zip(run.names, corpora):
        for percent in percents:
            options = monolingual_options(config.steps, config.batch_size, percent)
            own = "" if run.clones else f"-{name}"
            names.append(f"{folder.name}{own}-mono{percent}")
            words = command(config, corpus=corpus, **options)
            print(f"  {words} --dtype={config.dtype} --run={names[-1]}")
    print("Then the token efficiency of each language:\n"
          f"  python eval.py {' '.join([folder.name, *names])}")


def command(config, ratio=None, **changes):
    """The command of a run like this one, with what is not a default.

    ratio: the main language's share; None: even shares. changes: options that are to differ.
    """
    values = vars(config) | changes
    words = ["python train.py"]
    if ratio is not None:
        words.append(f"--ratio={ratio}")
    if values["languages"] != 2:
        words.append(f"--languages={values['languages']}")
    elif ratio is None:
        words.append("--ratio=0.5")

    # the mix is named above, d_head follows from the width, dtype is what auto found here
    left_out = {"ratio", "languages", "schedule", "d_head", "dtype"}
    if values["tokenizer"] != "bpe":  # it has a vocabulary of its own
        left_out.add("vocab_size")
    if not isinstance(values["corpus"], list):  # several say how many languages there are
        left_out.add("vocabulary")
    defaults = options().defaults | SIZES[values["size"]] | {"vocabulary": "disjoint"}
    kept = {}
    for key, value in values.items():
        if key in defaults and key not in left_out and value != defaults[key]:
            kept[key] = value
    return " ".join(words + [shlex.quote(word) for word in as_options(kept)])


def main():
    args, given = options().parse()
    keep_freed_memory()
    run, texts = open_run(args, given)
    config, model, device = run.config, run.model, run.device
    begin(run, args.resume, texts["train"])
    batch = make_batches(run, texts["train"])
    forward = torch.compile(model) if args.compile else model

    # the loop: a line of the log every log_every steps, a validation every eval_every
    log_every = min(100, max(1, config.steps // 50))
    eval_every = log_every * max(1, round(config.steps / 10 / log_every))
    tokens_a_step = config.batch_size * config.context
    stop = ddp.stop_signal()
    saved = since = time.time()
    since_step = run.step
    for step in range(run.step, config.steps):
        # ---- one training step -----------------------------------------------------------------
        ids, lang, *masked = batch(step)  # masked: for an encoder alone
        losses = forward_backward(forward, (ids, lang, *masked), args.micro_batch)  # [B]
        ddp.average_gradients(model)  # over all processes; does nothing for one
        update(run.optimizers, learning_rate(step, config))
        # ----------------------------------------------------------------------------------------

        # one line more than in a loop for one language: the losses of each are kept apart
        run.sums.index_add_(1, lang, torch.stack([losses, torch.ones_like(losses)]))
        run.step = step + 1
        last = run.step == config.steps
        log_now, eval_now = run.step % log_every == 0 or last, run.step % eval_every == 0 or last
        stop_now = ddp.any_of_them(stop.is_set(), device)

        if log_now or stop_now:
            ddp.add_up(run.sums)
            runs.check_finite(run, [run.sums])
        if log_now:
            if ddp.first():
                tokens = (run.step - since_step) * tokens_a_step
                seconds = max(time.time() - since, 1e-3)  # some clocks tick in 16 ms
                log_training(run, tokens / seconds)
            run.sums.zero_()
        if eval_now and ddp.first():
            log_validation(run, texts["val"])
        if eval_now or stop_now or log_now and time.time() - saved > SAVE_SECONDS:
            run.save()
            saved = time.time()
        if log_now:  # measuring and saving do not count as training time
            since, since_step = time.time(), run.step
        if stop_now and not last:
            break

    ddp.finish()  # here all processes but the first end
    train, val = runs.read_log(run.folder, "loss"), runs.read_log(run.folder, "val_loss")
    if train:
        plots.loss_curves(run.folder / "loss.png", run.folder.name, run.names, train, val)
    if run.step < config.steps:
        print(f"interrupted and saved at step {run.step:,}; "
              f"go on with: python train.py --run={run.folder.name} --resume")
        sys.exit(130)
    report(run, texts["val"])


if __name__ == "__main__":
    run_main(main)
