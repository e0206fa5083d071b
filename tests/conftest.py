"""What the tests share: a small corpus, and a way to run a script's main() as the command line does."""
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # the models of the tests are tiny: more threads would only wait for one another

NOUNS = "cat dog bird fish horse child woman king river tree stone house letter ship garden winter".split()
VERBS = "sees hears follows loves fears finds carries leaves remembers forgets".split()
ADJECTIVES = "old young red quiet small bright hungry patient".split()


def write_corpus(folder, documents=20, sentences=600, seed=0):
    """A folder of .txt files in a tiny language of its own, about 25 kB each."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        phrase = lambda: f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        text = " ".join(f"{phrase().capitalize()} {rng.choice(VERBS)} {phrase()} near {phrase()}." for _ in range(sentences))
        (folder / f"book{i:02}.txt").write_text(text.replace(". ", ".\n"))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder: data/ and runs/ of a test are made in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A working folder with a prepared corpus of 20 small books in it; tests that train use it."""
    folder = tmp_path_factory.mktemp("work")
    write_corpus(folder / "books")
    return folder


def script(folder, name, *options, **kwargs):
    """Start a script in a folder, as a user would; returns the Popen."""
    kwargs = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}} | kwargs
    return subprocess.Popen([sys.executable, str(ROOT / name), *options], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def train_here(folder, *options):
    """train.py with the options, in this process: a script that starts anew spends seconds on its imports. Returns what it printed."""
    import train
    out, argv, handlers = io.StringIO(), sys.argv, {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.argv = ["train.py", *options]
        with contextlib.chdir(folder), contextlib.redirect_stdout(out):
            train.main()
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return out.getvalue()


def fails(main, options, monkeypatch, capsys):
    """Run main() with options in this process; it must exit with code 2 and one line on stderr, which is returned."""
    import cli
    monkeypatch.setattr(sys, "argv", ["script.py", *options])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("script.py: error: "), error
    return error


def listing(folder):
    """Every file below a folder: what must not change where nothing may be written."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))
