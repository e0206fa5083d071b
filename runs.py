"""The folder of a run, runs/NAME: the only thing that passes between the scripts.

    config.json           all that defines the run
    tokenizer.tiktoken    how text becomes tokens; of real languages tokenizer-eng.tiktoken, ...
    languages.npz         and these the ids of each language: see Languages
    log.jsonl             a line of numbers at a time, training and validation
    model.pt              the last checkpoint: the weights, and what resuming needs
    loss.png              and later eval.json, align.json, align.png

It can be moved and copied. The corpus is needed to go on with the run, and for what is measured on
the test split.
"""
import io
import itertools
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

import clone
import data
from lib import cli, ddp
from lib.bpe import encoder, read_encoder
from lib.cli import BadInput, write, write_json
from model import GPT

# options that may differ when a run goes on
NOT_OF_THE_RUN = {"run", "resume", "device", "micro_batch", "compile"}
# what of a config the model is made from
MODEL = ("arch", "heads", "n_layer", "n_head", "d_head", "d_model", "context", "bias",
         "embedding_scale", "embedding_std", "tied")
# options that came later, and what runs are that do not have them
ADDED = {"arch": "decoder", "heads": "shared", "clone": "shift", "parallel": None,
         "vocabulary": None}
# raise it whenever the same config would train another model, or read other batches
VERSION = 2
# tokens of a text that a sample goes on from
PROMPT = 32


class Languages(NamedTuple):
    """What the languages of a run are: all that one has to know of its corpus to read its model."""
    encoders: list  # the tokeniser of each [N]; clones have one and the same
    table: np.ndarray  # the ids of each [N, V]: clone.make_table
    counts: np.ndarray  # how often each token is in the training text of each [N, V]
    prompts: np.ndarray  # the start of the test text of each [N, n]: for samples


@dataclass
class Run:
    """A run that is open: to be trained (train.py), or to be looked at (eval.py, align.py)."""
    folder: Path
    config: SimpleNamespace  # config.json: config.steps, config.ratio, ...
    # of each language [N], the manifest of its prepared corpus; clones have the same. None, if the
    # run was opened without
    corpora: list
    languages: Languages
    model: GPT
    test: np.ndarray = None  # a text to be looked at in place of the test split: open_runs

    # how far it is
    step: int = 0  # steps done
    tokens: list = None  # seen in each language, up to the last line of the log [N]
    sums: torch.Tensor = None  # since that line, of each language: losses, and sequences [2, N]
    optimizers: list = field(default_factory=list)
    lock: int = None  # while it is trained: see lock()

    @property
    def device(self):
        return self.model.embedding.device

    @property
    def clones(self):
        """Whether its languages are clones of one text, not real ones."""
        return are_clones(self.config)

    @property
    def names(self):
        """What its languages are called [N]: "EN1", "EN2", or "eng", "fra"."""
        return clone.language_names(self.config.corpus, self.config.languages)

    @property
    def table(self):
        """The ids of each language [N, V]."""
        return self.languages.table

    @property
    def encoders(self):
        """The tokeniser of each language [N]."""
        return self.languages.encoders

    def texts(self, split):
        """The token stream of each language [N]; clones have one and the same."""
        if split == "test" and self.test is not None:
            return [self.test] * len(self.table)
        return clone.open_texts(self.corpora, split)

    def keep_languages(self):
        """Write the tokenisers and languages.npz: from then on the folder needs no corpus."""
        if self.config.tokenizer == "bpe":
            for name, corpus in zip(tokenizer_files(self.config), self.corpora):
                with write(self.folder / name) as f:
                    f.write((Path(corpus["folder"]) / "tokenizer.tiktoken").read_bytes())
        buffer = io.BytesIO()
        np.savez(buffer, table=self.table, counts=self.languages.counts,
                 prompts=self.languages.prompts)
        with write(self.folder / "languages.npz") as f:
            f.write(buffer.getbuffer())

    def save(self):
        """Write model.pt, whole or not at all. A broken model never takes the place of a good one.

        Every process calls it, and the first one writes.
        """
        check_finite(self, self.model.parameters())
        if not ddp.first():
            return
        buffer = io.BytesIO()  # because torch.save itself hides the error of a full disk
        torch.save({
            "config": vars(self.config),
            "step": self.step,
            "tokens": self.tokens,
            "sums": self.sums,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }, buffer)
        with write(self.folder / "model.pt") as f:
            f.write(buffer.getbuffer())

    def go_on(self):
        """Load the last checkpoint, if there is one: the run is then as it was at that step."""
        if not (self.folder / "model.pt").exists():
            return
        state = load_checkpoint(self.folder, self.config)
        self.model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(optimizer_state)
        self.step, self.tokens = state["step"], state["tokens"]
        if ddp.first():  # the sums of all processes were saved: one of them has to carry them on
            self.sums.copy_(state["sums"])


def check_finite(run, tensors):
    """End the process, with one line, if a tensor has a value that is not finite."""
    if all(tensor.isfinite().all() for tensor in tensors):
        return
    if not ddp.first():
        sys.exit(1)
    kept = "there is no checkpoint yet"
    if (run.folder / "model.pt").exists():
        kept = "the last good checkpoint is kept"
    sys.exit(f"the loss is not finite at step {run.step:,}: stopped; {kept}. "
             "Start a new run with a lower --lr")


# ------------------------------------------------------------------------------------------------
# New folders and old ones

def check_new(name):
    """Raise BadInput unless a new run may have this name (None: one will be found)."""
    if name is None:
        return
    if not re.fullmatch(r"\w[\w.,-]*", name):
        raise BadInput(f"--run={name}: expected a plain name of letters, digits, - and _, "
                       "since it becomes a folder under runs/")
    folder = Path("runs") / name
    if folder.exists() and not empty(folder):
        raise taken(folder)


def taken(folder):
    return BadInput(f"{folder} exists: add --resume to go on with it, or choose another --run=NAME")


def empty(folder):
    """Whether a run's folder holds nothing yet, as after a kill before it had a config.json."""
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())


def new_folder(name, given, config):
    """Make runs/NAME, lock it, write its config.json. Returns (folder, its lock).

    Without a name, it has one after the options given, with a number if that is taken. Raises
    BadInput if NAME is taken. The lock comes before the first byte: of two trainings that are
    started together with one name, one is told, and of two without a name, one takes the next.
    """
    if name is None:
        kept = {key: value for key, value in given.items() if key not in NOT_OF_THE_RUN}
        words = [word.removeprefix("--").replace("=", "", 1) for word in cli.as_options(kept)]
        base = re.sub(r"[^\w.,-]+", "_", "-".join(words))[:80] or "default"
    else:
        base = name

    for i in itertools.count(1):
        folder = Path("runs") / (base if i == 1 else f"{base}-{i}")
        try:
            held = claim(folder)
        except BadInput:
            if name is not None:
                raise
            continue  # the next number
        write_json(folder / "config.json", vars(config))
        if i > 1:
            print(f"runs/{base} is there already: this is another one. To go on with that one: "
                  f"python train.py --run={base} --resume", flush=True)
        return folder, held


def claim(folder):
    """Make the folder of a new run and lock it; return the lock. Raises BadInput if it is taken."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file has that name
        raise taken(folder) from None
    held = lock(folder)
    if not empty(folder):
        cli.unlock(held)
        raise taken(folder)
    return held


def lock(folder):
    """Keep every other process from training this run, to the end of this process (cli.lock).

    Raises BadInput if another one trains it already.
    """
    try:
        return cli.lock(folder)
    except BlockingIOError:
        raise BadInput(f"{folder} is being trained by another process: "
                       "let that one finish, or stop it first") from None


def read_config(folder):
    """The config of a run's folder.

    Raises BadInput, naming the runs there are, if it is none; or if an older version made it.
    """
    try:
        config = SimpleNamespace(**ADDED | json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        # a folder of runs is taken for one of them, at times
        below = sorted(str(path.parent) for path in folder.glob("*/config.json"))
        there = below or sorted(path.parent.name for path in Path("runs").glob("*/config.json"))
        raise BadInput(f"{folder} is no run with a config.json; "
                       f"there are: {', '.join(there) or 'none yet'}") from None
    version = getattr(config, "version", 1)
    if version != VERSION:
        raise BadInput(f"{folder} was made by version {version} of the recipe, and this is version "
                       f"{VERSION}, whose model differs: train it anew, or check out older code")
    return config


def old_folder(name, given):
    """The folder of an existing run, and its config.

    What is given on the command line must agree with it, but for --corpus and --parallel, which may
    say where the text is now: whether it is the same is seen when it is opened. Raises BadInput.
    """
    if name is None:
        raise BadInput("--resume goes with --run=NAME")
    folder = Path("runs") / name
    config = read_config(folder)
    for key, value in given.items():
        was = getattr(config, key, None)
        decided_then = key == "dtype" and value == "auto"
        if key not in NOT_OF_THE_RUN | {"corpus", "parallel"} and was != value and not decided_then:
            raise BadInput(f"--{key}={value}, but {folder} is of another configuration: "
                           f"{key}={was}; leave the option out, or start a new run")
    return folder, config


# ------------------------------------------------------------------------------------------------
# What a config stands for

def are_clones(config):
    """Whether the languages of a config are clones of one text: real ones have a corpus each."""
    return not isinstance(getattr(config, "corpus", None), list)


def per_corpus(value):
    """What config.json holds of the corpora, as a list: one of each.

    That is corpus, corpus_sha256 or data_sha256, which are lists where languages are real.
    """
    return value if isinstance(value, list) else [value]


def open_corpora(folder, config, corpus=None, parallel=None):
    """The manifest of the corpus of each language of a run [N].

    What was prepared for it is looked for in data/, by its hash: so a run can be opened when its
    text has moved, or a package was upgraded. If it is no longer there it is prepared again, from
    `corpus`, one or a list, or from where the text was; so is the parallel text that was kept out
    of it. Raises BadInput if the text is no longer what it was.
    """
    if config.parallel is None:  # nothing was kept out
        parallel = None
    elif parallel is None:
        parallel = config.parallel
    manifests = []
    for source, files in zip(per_corpus(config.corpus), per_corpus(config.data_sha256)):
        manifest = data.find(files)
        candidates = per_corpus(corpus or source) if manifest is None else []
        for candidate in candidates:
            found = data.prepare(candidate, config.vocab_size, config.tokenizer, parallel)
            if found["files"] == files:
                manifest = found
                break
        if manifest is None:
            raise BadInput(f"the corpus {' or '.join(candidates)} is not what it was when {folder} "
                           "began: say with --corpus=PATH where that text is now, or start a new "
                           "run")
        manifests.append(manifest)
    return manifests * config.languages if are_clones(config) else manifests


def hashes(config, corpora):
    """What config.json keeps to know the text again: corpus_sha256 and data_sha256, a list of each
    where languages are real.
    """
    texts, files = ([corpus[key] for corpus in corpora] for key in ("sha256", "files"))
    return (texts[0], files[0]) if are_clones(config) else (texts, files)


def make_table(config, corpora, counts=None):
    """The ids of each language of a config [N, V]. counts [V]: as in clone.make_table."""
    return clone.make_table(corpora, config.corpus, config.cloned, config.anchor_seed,
                            config.vocabulary, mask=config.arch == "encoder",
                            permuted=config.clone == "permute", counts=counts)


def make_languages(config, corpora):
    """The Languages of a config, from its corpora."""
    if are_clones(config):  # one and the same
        encoders = [encoder(corpora[0])] * config.languages
    else:
        encoders = [encoder(corpus) for corpus in corpora]

    V = corpora[0]["vocab_size"] + (config.arch == "encoder")  # with the mask
    found, train = {}, clone.open_texts(corpora, "train")
    for text in train:
        if id(text) not in found:  # clones have one text
            found[id(text)] = data.count_tokens(text, V)
    counts = np.stack([found[id(text)] for text in train])

    test = clone.open_texts(corpora, "test")
    n = min(prompt_length(config), *(len(text) for text in test))
    return Languages(encoders, make_table(config, corpora, counts[0]), counts,
                     np.stack([text[:n] for text in test]))


def prompt_length(config):
    """How many tokens of a text a sample goes on from."""
    if config.arch == "encoder-decoder":  # as much as its encoder reads, and a token to go on
        return config.context // 2 + 1
    return PROMPT


def tokenizer_files(config):
    """What the files of a run's tokenisers are called: one, or of real languages one each."""
    if are_clones(config):
        return ["tokenizer.tiktoken"]
    names = clone.language_names(config.corpus, config.languages)
    return [f"tokenizer-{name}.tiktoken" for name in names]


def read_languages(folder, config):
    """The Languages that a run's folder holds; None of one that was made when none were kept.

    Raises BadInput if a file is not what it was.
    """
    path = folder / "languages.npz"
    if not path.exists():
        return None

    def damaged(path):
        return BadInput(f"{path} is missing, damaged or of another run: copy the folder again, or "
                        "delete its languages.npz, and the corpus is looked for")

    mask = config.arch == "encoder"
    try:
        with np.load(path) as arrays:
            table, counts, prompts = (arrays[key] for key in ("table", "counts", "prompts"))
        if not table.shape == counts.shape == (config.languages, config.vocab_size + mask):
            raise ValueError
    except Exception:  # np.load raises whatever its parsers raise
        raise damaged(path) from None

    if config.tokenizer != "bpe":  # one of tiktoken's own
        return Languages([encoder(vars(config))] * config.languages, table, counts, prompts)
    encoders = []
    for name, files in zip(tokenizer_files(config), per_corpus(config.data_sha256)):
        if data.damaged(folder, {name: files["tokenizer.tiktoken"]}):
            raise damaged(folder / name)
        encoders.append(read_encoder(folder / name))
    if are_clones(config):  # one and the same
        encoders = encoders * config.languages
    return Languages(encoders, table, counts, prompts)


def make_model(config, table, device):
    """The untrained model of a config, with the ids of a table [N, V]."""
    shape = {key: getattr(config, key) for key in MODEL} | {"vocab_size": table.size}
    return GPT(shape, getattr(torch, config.dtype), table).to(device)


def load_checkpoint(folder, config):
    """The last checkpoint of a run: the dict that Run.save writes.

    Raises BadInput for a truncated or foreign file, or one of another configuration.
    """
    path = folder / "model.pt"
    if not path.exists():
        raise BadInput(f"{folder} has no checkpoint yet: "
                       f"train it first, with --run={folder.name} --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_by = ADDED | state["config"]
    except Exception as error:  # torch.load raises whatever its parsers raise
        raise BadInput(f"{path} is not a whole checkpoint of nanoclone ({type(error).__name__}): "
                       "delete it and --resume starts again from step 0") from None

    broken = [name for name, weight in state["model"].items() if not weight.isfinite().all()]
    if broken:
        raise BadInput(f"{path} has weights that are not finite ({broken[0]}): "
                       "start a new run with a lower --lr")
    wanted = vars(config)
    if made_by != wanted:
        keys = wanted.keys() | made_by.keys()
        other = sorted(key for key in keys if wanted.get(key) != made_by.get(key))
        raise BadInput(f"{path} is a checkpoint of another configuration than config.json: "
                       f"{', '.join(other)} differ")
    return state


def open_runs(names, device, minimum=1, corpus=None, parallel=None, check=None, text=None,
              sampling=False):
    """Yield a Run for each finished run, given as runs/NAME or NAME, its model ready to be read.

    corpus, parallel: where their text is now, if not where it was (open_corpora). check: called
    with the folder and the config of each, and may raise BadInput. text: a path, to be looked at
    in place of the test split. With it, or for sampling, the corpus is not opened, but for a run
    that has no languages.npz.

    All configs are checked before the first run is yielded. Raises BadInput for a run that is not
    there, not finished, without a checkpoint, of another corpus than the others', or of fewer
    languages than the minimum; and where a text is to be looked at, for one of real languages.
    """
    found = []
    for name in names:
        if Path(name).is_file():  # eval.py runs/* names runs/align.png too
            continue
        # NAME alone is runs/NAME, unless that folder here is a run, or has some
        folder = Path(name)
        here = [*folder.glob("config.json"), *folder.glob("*/config.json")]
        if len(folder.parts) == 1 and not here:
            folder = Path("runs") / name
        config = read_config(folder)
        step = load_checkpoint(folder, config)["step"]
        if step < config.steps:
            raise BadInput(f"{folder} is still training, or was stopped, at step {step:,} of "
                           f"{config.steps:,}: finish it with "
                           f"python train.py --run={folder.name} --resume")
        if config.languages < minimum:
            raise BadInput(f"{folder} is monolingual: expected a run of two languages or more")
        if text is not None and not are_clones(config):
            raise BadInput(f"--text={text} is one text, and the languages of {folder} are real, "
                           "with a text each: leave --text out")
        if check:
            check(folder, config)
        found.append((folder, config))

    if not found:
        raise BadInput(f"{' '.join(names)}: expected folders of runs")
    check_one_text(found)
    for folder, config in found:
        languages, corpora = read_languages(folder, config), None
        if languages is None or not (sampling or text is not None):
            corpora = open_corpora(folder, config, corpus, parallel)
        languages = languages or make_languages(config, corpora)
        test = None if text is None else data.read_tokens(text, languages.encoders[0])
        state = load_checkpoint(folder, config)
        model = make_model(config, languages.table, device)
        model.load_state_dict(state["model"])
        yield Run(folder, config, corpora, languages, model.eval(), test, step=state["step"])


def result_name(what, text=None):
    """What the results of a measurement are called: "eval"; of a --text, "eval-my_novel"."""
    return what if text is None else f"{what}-{data.label(text)[:60] or 'text'}"


def check_length(run, name, text, n_windows):
    """Raise BadInput unless the test text [n] of a language has as many windows, side by side."""
    needed = n_windows * (run.config.context + 1)
    if len(text) < needed:
        raise BadInput(f"the test text of {name} has {cli.plural(len(text), 'token')}, fewer than "
                       f"{cli.plural(n_windows, 'window')} of {run.folder} ({needed})")


def check_one_text(found):
    """Raise BadInput unless runs [(folder, config)] can stand in one table.

    They have one corpus, or corpora of the run that has most of them: so monolingual runs of
    English and of French can stand beside a run of both.
    """
    widest, of_widest = max(found, key=lambda entry: len(per_corpus(entry[1].corpus_sha256)))
    for folder, config in found:
        if not set(per_corpus(config.corpus_sha256)) <= set(per_corpus(of_widest.corpus_sha256)):
            raise BadInput(f"{folder} is of another corpus ({in_words(config)}) than "
                           f"{widest} ({in_words(of_widest)}): give runs of one corpus")


def in_words(config):
    """The corpora of a config, for a screen."""
    return " and ".join(per_corpus(config.corpus))


# ------------------------------------------------------------------------------------------------
# log.jsonl

def trim_log(folder, step):
    """Drop what a killed run wrote after its last checkpoint, at `step`: it is written again."""
    path = folder / "log.jsonl"
    lines = path.read_bytes().splitlines(True) if path.exists() else []
    with write(path) as f:
        for line in lines:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                f.write(line)


def append_log(folder, line):
    """Add a line, a dict of finite numbers."""
    with open(folder / "log.jsonl", "a") as f:
        f.write(json.dumps(line, allow_nan=False) + "\n")


def read_log(folder, key):
    """The lines that have a key ("loss": training; "val_loss": validation), each a dict."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]
