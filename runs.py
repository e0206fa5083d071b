"""The folder of a run, runs/NAME: the only thing that passes between the scripts.

config.json, all that defines the run; log.jsonl, a line of numbers at a time; model.pt, the weights and what resuming needs; loss.png;
later eval.json, align.json and align.png.
"""
import itertools
import json
import os
import re
from pathlib import Path

import torch

import clone
import data
from cli import BadInput, write
from model import GPT

NOT_OF_THE_RUN = {"run", "resume", "device", "micro_batch", "compile"}  # options that may differ when a run goes on
MODEL = ("n_layer", "n_head", "d_head", "d_model", "context", "tied", "embedding_std")


def check_new(name):
    """Raise BadInput unless a new run may have this name (None: one will be found)."""
    if name is not None and not re.fullmatch(r"\w[\w.,-]*", name):
        raise BadInput(f"--run={name}: expected a plain name of letters, digits, - and _, since it becomes a folder under runs/")
    if name is not None and (Path("runs") / name).exists() and not empty(Path("runs") / name):
        raise BadInput(f"runs/{name} exists: add --resume to go on with it, or choose another --run=NAME")


def empty(folder):
    """Whether a run's folder holds nothing yet, as after a kill before it had a config.json."""
    return all(p.name.startswith(".") for p in folder.iterdir())


def new_folder(name, given):
    """Make runs/NAME; without a name, one after the options given, with a number if that is taken. Raises BadInput if NAME exists."""
    parts = [f"{key}{value}" for key, value in given.items() if key not in NOT_OF_THE_RUN]
    base = name or re.sub(r"[^\w.,-]+", "_", "-".join(parts))[:80] or "default"
    for i in itertools.count(1):
        folder = Path("runs") / (base if i == 1 else f"{base}-{i}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            check_new(name)
            if empty(folder):
                return folder


def lock(folder):
    """Keep every other process from training this run for as long as the returned file descriptor is open: to the end of the process, killed
    or not. Raises BadInput if one does already."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"{folder} is being trained by another process: let that one finish, or stop it first")
    return descriptor


def read_config(folder):
    """The config of a run's folder. Raises BadInput, naming the runs there are, if it is none."""
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        there = ", ".join(sorted(p.parent.name for p in Path("runs").glob("*/config.json"))) or "none yet"
        raise BadInput(f"{folder} is no run with a config.json; there are: {there}")


def old_folder(name, given):
    """The folder of an existing run and its config; what is given on the command line must agree with it. Raises BadInput."""
    if name is None:
        raise BadInput("--resume goes with --run=NAME")
    folder = Path("runs") / name
    config = read_config(folder)
    for key, value in given.items():
        if key not in NOT_OF_THE_RUN and config.get(key) != value:
            raise BadInput(f"--{key}={value}, but {folder} is of another configuration: {key}={config.get(key)}; leave the option out, or start a new run")
    return folder, config


def open_corpus(folder, config):
    """The manifest of the corpus that a run was trained on. Raises BadInput if it is no longer what it was."""
    corpus = data.prepare(config["corpus"], config["vocab_size"], config["tokenizer"])
    if config["data_sha256"] != corpus["files"]:
        raise BadInput(f"the corpus {config['corpus']} is not what it was when {folder} began: bring it back, or start a new run")
    return corpus


def make_model(config, device):
    """The untrained model of a config: languages x vocab_size ids."""
    sizes = {key: config[key] for key in MODEL} | {"vocab_size": config["languages"] * config["vocab_size"]}
    return GPT(sizes, getattr(torch, config["dtype"])).to(device)


def open_runs(names, device, minimum=1):
    """Yield (folder, config, corpus, table, model) for each finished run, given as runs/NAME or NAME: what eval.py and align.py look at.

    Everything is checked before the first is yielded. Raises BadInput for a run that is not there, not finished, without a checkpoint, of
    another corpus than the first one's, or of fewer languages than the minimum."""
    opened = []
    for name in names:
        folder = Path(name) if (Path(name) / "config.json").exists() else Path("runs") / name
        config = read_config(folder)
        step = load_checkpoint(folder, config)["step"]
        if step < config["steps"]:
            raise BadInput(f"{folder} is still training, or was stopped, at step {step:,} of {config['steps']:,}: finish it with --run={folder.name} --resume")
        if config["languages"] < minimum:
            raise BadInput(f"{folder} is monolingual: expected a run of two languages or more")
        if opened and config["corpus_sha256"] != opened[0][1]["corpus_sha256"]:
            raise BadInput(f"{folder} is of another corpus ({config['corpus']}) than {opened[0][0]} ({opened[0][1]['corpus']}): give runs of one corpus")
        opened.append((folder, config))
    for folder, config in opened:
        corpus = open_corpus(folder, config)
        table = clone.clone_table(config["vocab_size"], config["languages"], corpus["eot"], config["cloned"], config["seed"])
        model = make_model(config, device)
        model.load_state_dict(load_checkpoint(folder, config)["model"])
        yield folder, config, corpus, table, model.eval()


def load_checkpoint(folder, config):
    """The last checkpoint of a run. Raises BadInput for a truncated or foreign file, or one of another configuration."""
    path = folder / "model.pt"
    if not path.exists():
        raise BadInput(f"{folder} has no checkpoint yet: train it first, with --run={folder.name} --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_by = state["config"]
    except Exception as error:  # torch.load raises whatever its parsers raise
        raise BadInput(f"{path} is not a whole checkpoint of nanoclone ({type(error).__name__}): delete it and --resume starts again from step 0")
    if made_by != config:
        other = [k for k in config.keys() | made_by.keys() if config.get(k) != made_by.get(k)]
        raise BadInput(f"{path} is a checkpoint of another configuration than config.json: {', '.join(sorted(other))} differ")
    return state


def read_log(folder, key):
    """The lines of log.jsonl that have a key ("loss": training; "val_loss": validation), each a dict."""
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if key in line]


def figure(path, draw, rows, columns, size, dpi=130, **layout):
    """Make a page of rows x columns panels, size in inches, have draw(fig, axes) fill it, and write it to path."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    with plt.rc_context({"font.size": 11, "axes.titlesize": 11}):  # to be read at half size too
        fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **layout)
        draw(fig, axes)
        with write(path) as f:
            fig.savefig(f, dpi=dpi, format="png")
    plt.close(fig)


def tidy(ax, **labels):
    """Label one panel, with a light grid and no box."""
    ax.set(**labels)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)


def plot(folder, config):
    """loss.png: training (thin) and validation loss of each language, and retrieval@1, against the tokens seen in all."""
    train, val = read_log(folder, "loss"), read_log(folder, "val_loss")
    pairs = list(val[-1]["retrieval@1"]) if val else []
    million = lambda lines: [line["tokens"] / 1e6 for line in lines]

    def draw(fig, axes):
        from matplotlib import colormaps
        fig.suptitle(folder.name, fontsize=10)
        for l in range(config["languages"]):
            colour, seen = clone.COLOURS[l % len(clone.COLOURS)], [line for line in train if line["loss"][l] is not None]
            axes[0, 0].plot(million(seen), [line["loss"][l] for line in seen], color=colour, lw=0.6, alpha=0.5)
            axes[0, 0].plot(million(val), [v["val_loss"][l] for v in val], "o-", ms=3, color=colour, label=f"EN{l + 1}")
        axes[0, 0].legend(frameon=False)
        tidy(axes[0, 0], xlabel="million tokens seen, of all languages", ylabel="loss, nats per token", title="thin: training text; dots: validation text")
        for i, pair in enumerate(pairs):
            axes[0, 1].plot(million(val), [v["retrieval@1"][pair] for v in val], "o-", ms=3, label=pair, color=colormaps["viridis"](i / len(pairs)))
        if pairs:
            tidy(axes[0, 1], xlabel="million tokens seen, of all languages", ylabel="retrieval@1, middle layer", ylim=(-0.03, 1.03), title="do the languages align?")
        if 0 < len(pairs) < 7:
            axes[0, 1].legend(frameon=False)

    panels = 1 + bool(pairs)
    figure(folder / "loss.png", draw, 1, panels, (6 + 4 * bool(pairs), 4), dpi=150, width_ratios=[3, 2][:panels])
