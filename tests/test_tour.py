"""tour.ipynb: it is a notebook, its committed outputs are there, and its cells run, in order.

They run as they stand, but for STEPS and CORPUS, in a copy of the scripts: so that data/ and runs/
are made there, and nothing in the checkout.
"""
import ast
import base64
import contextlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from conftest import ROOT

import runs
from eval import monolingual_options

NOTEBOOK = ROOT / "tour.ipynb"
STEPS = 3  # with these books, EN2 is read in the last two


def cells(kind="code"):
    """The cells of a kind, as dicts, each with its source in one piece as "text"."""
    found = []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == kind:
            found.append(cell | {"text": "".join(cell["source"])})
    return found


def replaced(text, name, value):
    """A cell with another value of a variable, which stands there once."""
    text, n = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", text, flags=re.M)
    assert n == 1, f"{name} is not set in the first code cell"
    return text


def called(text):
    """The names of what a cell calls outside of its functions: {"print", "train", "show", ...}."""
    names = set()
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.FunctionDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                names.add(getattr(node.func, "id", None) or getattr(node.func, "attr", None))
    return names


# ------------------------------------------------------------------------------------------------
# The file

def test_it_is_a_notebook_of_version_4():
    text = NOTEBOOK.read_text()
    book = json.loads(text)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["language"] == "python"
    assert text == json.dumps(book, indent=1, ensure_ascii=False) + "\n"  # diffs stay readable
    assert len(text) < 400_000

    for cell in book["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
        assert set(cell) == keys
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)


def test_text_and_code_take_turns():
    kinds = [cell["cell_type"] for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    assert 10 <= len(kinds) <= 15
    assert kinds == (["markdown", "code"] * len(kinds))[:len(kinds)]


def test_every_code_cell_compiles_and_fits_the_page():
    for cell in cells():
        compile(cell["text"], cell["id"], "exec")
        assert max(map(len, cell["text"].splitlines())) <= 100


def test_the_committed_outputs_are_there():
    for number, cell in enumerate(cells(), start=1):
        assert cell["execution_count"] == number
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert set(kinds) <= {"stream", "display_data"}  # no error
        names = called(cell["text"])
        if names & {"print", "run", "train"}:
            printed = [o for o in cell["outputs"] if o["output_type"] == "stream"]
            assert printed and "".join(printed[0]["text"]).strip()
        assert kinds.count("display_data") == ("show" in names)
        for output in cell["outputs"]:
            if output["output_type"] == "display_data":
                assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")


def test_the_committed_outputs_are_of_the_committed_steps():
    first, _, third = cells()[:3]
    steps = re.search(r"^STEPS = (\d+)", first["text"], re.M)[1]
    assert f"runs/tour-{steps}-ratio0.9\n" in third["outputs"][0]["text"]


# ------------------------------------------------------------------------------------------------
# The cells

def write_books(folder, documents=20, words=350, seed=0):
    """A folder of small .txt files. They have more words than the corpus of the other tests, since
    the notebook's vocabulary is the default one, and its merges have to be found in the text.
    """
    rng = random.Random(seed)
    known = []
    for _ in range(300):
        syllables = [rng.choice("bdgklmnprst") + rng.choice("aeiou") for _ in range(4)]
        known.append("".join(syllables[:rng.randint(1, 4)]))
    folder.mkdir()
    for i in range(documents):
        (folder / f"book{i:02}.txt").write_text(" ".join(rng.choices(known, k=words)))


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """What is left when all code cells have run: their variables (space), what each one printed,
    how many pictures each one showed, and the folder.
    """
    folder = tmp_path_factory.mktemp("tour")
    for path in [*ROOT.glob("*.py"), ROOT / "requirements.txt"]:
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    write_books(folder / "books")

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    space, printed, pictures = {"__name__": "__main__"}, [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(plt, "show", lambda: pictures.append(len(printed)))
        for i, cell in enumerate(cells()):
            text = cell["text"]
            if i == 0:
                text = replaced(replaced(text, "STEPS", STEPS), "CORPUS", "books")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, cell["id"], "exec"), space)
            printed.append(out.getvalue())
        plt.close("all")
        yield SimpleNamespace(space=space, printed=printed, pictures=pictures, folder=folder)


def test_every_cell_prints_and_shows_what_it_does_in_the_file(tour):
    for i, cell in enumerate(cells()):
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert bool(tour.printed[i].strip()) == ("stream" in kinds), cell["id"]
        assert tour.pictures.count(i) == ("display_data" in kinds), cell["id"]


def test_the_clone_of_a_sentence_has_every_id_shifted(tour):
    table, sentence, V = (tour.space[name] for name in ("table", "sentence", "V"))
    rows = re.findall(r" +(\d+) +(\d+)$", tour.printed[1], re.M)
    assert [int(a) for a, _ in rows] == list(sentence)
    assert [int(b) - int(a) for a, b in rows] == [V] * len(sentence)
    assert np.array_equal(table[1], table[0] + V)
    assert "EN2 mapped back: The main language helps the other one." in tour.printed[1]


def test_both_mixes_are_trained_and_read_the_same_text(tour):
    assert sorted(path.name for path in (tour.folder / "runs").iterdir() if path.is_dir()) == [
        f"tour-{STEPS}-alone", f"tour-{STEPS}-ratio0.5", f"tour-{STEPS}-ratio0.9"]
    seen = {}
    for mix, run in tour.space["mixes"].items():
        folder = tour.folder / run
        config = json.loads((folder / "config.json").read_text())
        assert (config["steps"], config["languages"], config["seed"]) == (STEPS, 2, 0)
        last = runs.read_log(folder, "val_loss")[-1]
        assert len(last["val_loss"]) == 2 and np.isfinite(last["val_loss"]).all()
        seen[mix] = last["tokens_seen"]
        assert (folder / "model.pt").exists() and (folder / "align-part.json").exists()
    assert sum(seen["90/10"]) == sum(seen["50/50"]) == STEPS * 16 * 128
    assert seen["90/10"][1] < seen["50/50"][1]
    assert not (ROOT / "runs" / f"tour-{STEPS}-alone").exists()


def test_the_monolingual_model_has_a_tenth_of_the_tokens(tour):
    config = json.loads((tour.folder / tour.space["alone"] / "config.json").read_text())
    options = monolingual_options(STEPS, 16, 10)
    assert {key: config[key] for key in options} == options
    assert tour.space["tokens_alone"] == round(STEPS * 16 / 10) * 128
    assert f"{tour.space['loss_alone']:.3f}" in tour.printed[3]


def test_the_cosines_are_of_the_embeddings(tour):
    embedding, table = tour.space["opened"].model.embedding.detach(), tour.space["table"]
    token = tour.space["frequent"][0]
    a, b = embedding[table[0, token]], embedding[table[1, token]]
    cosine = (a @ b / a.norm() / b.norm()).item()
    assert f"{cosine:8.3f}" in tour.printed[5]


def test_a_language_of_ones_own_is_learned_in_place_of_the_clone(tour):
    ids = np.arange(6).reshape(2, 3)
    changed = tour.space["my_language"](ids.copy(), np.array([0, 1]))
    assert changed.tolist() == [[0, 1, 2], [5, 4, 3]]

    # the same windows in the same languages; another model comes of it
    plain, mine = tour.space["results"].values()
    assert np.isfinite([plain, mine]).all()
    assert plain[1] != mine[1]
    for losses in (plain, mine):
        assert f"EN1 {losses[0]:.3f}  EN2 {losses[1]:.3f}" in tour.printed[6]


def test_a_cell_may_run_again(tour):
    log = tour.folder / tour.space["alone"] / "log.jsonl"
    before = log.read_text()
    options = tour.space["as_options"](tour.space["options"])
    with contextlib.chdir(tour.folder):
        tour.space["train"](f"tour-{STEPS}-alone", *options)
    assert log.read_text() == before


def test_a_script_that_fails_says_why(tour):
    with pytest.raises(RuntimeError, match="out of luck"):
        tour.space["run"]("-c", "raise SystemExit('out of luck')", show="no such word")


# ------------------------------------------------------------------------------------------------
# The first cell, where there is no checkout

@pytest.fixture
def elsewhere(here, monkeypatch):
    """An empty working folder, in which the first cell may change to another."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return here


def test_the_first_cell_gets_the_repository(elsewhere):
    origin = elsewhere / "origin"
    origin.mkdir()
    (origin / "train.py").write_text("print('hello from the clone')\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(origin)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "train.py"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], check=True)

    text, space = replaced(cells()[0]["text"], "REPOSITORY", str(origin)), {}
    exec(text, space)
    assert os.getcwd() == str(elsewhere / "nanoclone")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(text, space)  # once more: nothing is left to get
        space["run"]("train.py")
    assert os.getcwd() == str(elsewhere / "nanoclone")
    assert "hello from the clone" in out.getvalue()


def test_the_first_cell_asks_for_the_address(elsewhere):
    with pytest.raises(AssertionError, match="REPOSITORY"):
        exec(cells()[0]["text"], {})
    assert not any(elsewhere.iterdir())
