"""What the tests share: a small corpus, a small model, and scripts that are run on them.

A script starts in a process of its own (script), or in this one (train_here, fails), which is
faster: the imports alone take seconds.
"""
import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

# What the tests compare to the last digit is computed on the CPU, whose sums have one order. A test
# of the GPU gives its scripts the environment as it was (test_cuda.py).
WITH_GPU = {**os.environ, "OMP_NUM_THREADS": "1"}
if WITH_GPU.get("CUDA_VISIBLE_DEVICES") == "":  # by this file, of which pytest-xdist is a child
    del WITH_GPU["CUDA_VISIBLE_DEVICES"]
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# the models of the tests are tiny: more threads would only wait for one another
torch.set_num_threads(1)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

# a run that takes a second or two, on the books of the fixture `prepared`
TINY = [
    "--corpus=books", "--vocab_size=300", "--context=16", "--batch_size=8", "--optimizer=adam",
    "--n_layer=2", "--n_head=2", "--d_model=16", "--tied=true", "--embedding_std=0.02",
]

# ------------------------------------------------------------------------------------------------
# A corpus

NOUNS = ("cat dog bird fish horse child woman king "
         "river tree stone house letter ship garden winter").split()
VERBS = "sees hears follows loves fears finds carries leaves remembers forgets".split()
ADJECTIVES = "old young red quiet small bright hungry patient".split()


def phrase(rng):
    return f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def sentence(rng):
    return f"{phrase(rng).capitalize()} {rng.choice(VERBS)} {phrase(rng)} near {phrase(rng)}."


def translate(text):
    """The same text in another language: its words are spelt backwards, and an adjective stands
    after its noun.
    """
    text = re.sub(r"\b(the|The) (\w+) (\w+)", r"\1 \3 \2", text)
    return re.sub(r"\w+", lambda word: word[0][::-1], text)


def write_corpus(folder, documents=20, sentences=600, seed=0, language=str):
    """A folder of .txt files in a tiny language of its own, about 25 kB each.

    language: what is done to each text, e.g. translate.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        text = " ".join(sentence(rng) for _ in range(sentences)).replace(". ", ".\n")
        (folder / f"book{i:02}.txt").write_text(language(text))
    return folder


def write_parallel(folder, documents=2, sentences=200, seed=99):
    """A parallel text: folder/eng and folder/fra, line by line the same in the two languages."""
    write_corpus(folder / "eng", documents, sentences, seed)
    write_corpus(folder / "fra", documents, sentences, seed, translate)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder: data/ and runs/ of a test are made in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A working folder with a corpus of 20 small books in it; tests that train use it."""
    folder = tmp_path_factory.mktemp("work")
    write_corpus(folder / "books")
    return folder


# of real languages: English, and the one that translate() makes of it
REAL = ["--corpus=eng=books", "--corpus=fra=livres"]


@pytest.fixture(scope="session")
def bilingual(tmp_path_factory):
    """A working folder with a corpus in each of two languages, and a parallel text in both."""
    folder = tmp_path_factory.mktemp("bilingual")
    write_corpus(folder / "books", documents=12)
    write_corpus(folder / "livres", documents=8, seed=7, language=translate)
    write_parallel(folder / "both")
    return folder


# ------------------------------------------------------------------------------------------------
# Scripts

def script(folder, name, *options, **kwargs):
    """Start a script in a folder, as a user would; returns the Popen."""
    kwargs = {"env": ONE_THREAD} | kwargs
    return subprocess.Popen([sys.executable, str(ROOT / name), *options], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def finish(process, code=0):
    """Wait for a script that is to end with a code; returns what it printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out


def start_two_processes(folder, path, *options, restarts=0):
    """Start a script in two processes, as `torchrun --nproc_per_node=2` does; returns the Popen."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc_per_node=2", f"--max-restarts={restarts}"]
    return subprocess.Popen([*torchrun, "--", str(path), *options], cwd=folder, env=ONE_THREAD,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def two_processes(folder, path, *options):
    """Run a script in two processes; returns how they ended, and what they printed."""
    process = start_two_processes(folder, path, *options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train_here(folder, *options, eval_tokens=4096):
    """train.py with the options, in this process. Returns what it printed.

    eval_tokens: how much validation text is scored, less than train.py does; None for as much.
    """
    import train
    whole = train.EVAL_TOKENS
    out, argv = io.StringIO(), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.argv = ["train.py", *options]
        train.EVAL_TOKENS = eval_tokens or whole
        with contextlib.chdir(folder), contextlib.redirect_stdout(out):
            train.main()
    finally:
        sys.argv, train.EVAL_TOKENS = argv, whole
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return out.getvalue()


def fails(main, options, monkeypatch, capsys):
    """Run main() with options in this process.

    It must exit with code 2 and one line on stderr, which is returned.
    """
    from lib.cli import run_main
    monkeypatch.setattr(sys, "argv", ["script.py", *options])
    with pytest.raises(SystemExit) as end:
        run_main(main)
    error = capsys.readouterr().err
    assert end.value.code == 2, error
    assert error.count("\n") == 1, error
    assert error.startswith("script.py: error: "), error
    return error


# ------------------------------------------------------------------------------------------------
# What they leave

def history(folder):
    """The lines of a run's log.jsonl, but for the speed."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_s", None)
    return lines


def listing(folder):
    """Every file below a folder: what must not change where nothing may be written."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
