import itertools
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    ONE_THREAD,
    REAL,
    ROOT,
    TINY,
    fails,
    history,
    train_here,
    translate,
    write_corpus,
    write_parallel,
)

import clone
import data
import parallel
import runs
import train
from lib.bpe import encoder
from lib.cli import BadInput

# ------------------------------------------------------------------------------------------------
# Matching

def brute_force(weights):
    """The weight of the best of all matchings, by trying every one."""
    if weights.shape[0] > weights.shape[1]:
        weights = weights.T
    n, m = weights.shape
    return max(weights[range(n), columns].sum() for columns in itertools.permutations(range(m), n))


@pytest.mark.parametrize("kind", ["normal", "ties", "all alike"])
def test_a_matching_is_the_best_of_all(kind):
    rng = np.random.default_rng(0)
    for n, m in itertools.product(range(1, 8), range(1, 8)):
        weights = {"normal": rng.standard_normal((n, m)),
                   "ties": rng.integers(-1, 2, (n, m)).astype(float),
                   "all alike": np.full((n, m), 0.5)}[kind]
        rows, columns = parallel.match(weights)
        assert len(rows) == len(columns) == min(n, m)
        assert len(set(rows)) == len(set(columns)) == min(n, m)  # each in one pair at most
        assert weights[rows, columns].sum() == pytest.approx(brute_force(weights)), (n, m)


def test_the_example_of_the_docstring():
    rows, columns = parallel.match(np.array([[3.0, 2.0], [2.0, 0.0]]))
    assert list(zip(rows, columns)) == [(0, 1), (1, 0)]


def test_a_matching_finds_a_permutation_again():
    rng = np.random.default_rng(1)
    states = rng.standard_normal((120, 30))
    order = rng.permutation(120)
    rows, columns = parallel.match(states @ states[order].T)
    assert (order[columns] == rows).all()


@pytest.mark.parametrize("shape", [(90, 90), (60, 100), (100, 60)])
def test_a_matching_has_the_weight_of_scipys(shape):
    optimize = pytest.importorskip("scipy.optimize")
    weights = np.random.default_rng(2).standard_normal(shape)
    theirs = weights[optimize.linear_sum_assignment(weights, maximize=True)].sum()
    assert weights[parallel.match(weights)].sum() == pytest.approx(theirs)


# ------------------------------------------------------------------------------------------------
# Pairs of lines

LINES = {"eng": "One.\n\nTwo.\n  \nThree.\n", "fra": "Un.\nDeux.\n\nTrois."}
PAIRS = [("One.", "Un."), ("Two.", "Deux."), ("Three.", "Trois.")]


def place(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("names", [
    ("eng/a.txt", "fra/a.txt"),
    ("plain-eng/FRA01_Malot_eng.txt", "plain1/FRA01_Malot.txt"),  # ELTeC's
    ("a_eng.txt", "a.fra.txt"),
    ("eng/both/a.txt", "eng/both/a_fra.txt"),
    ("./eng/a.txt", "./fra/a.txt"),
    ("ELTeC-fra-83f0/eng/a.txt", "ELTeC-fra-83f0/plain1/a.txt"),
    ("ELTeC-fra-83f0/plain-eng/FRA01_Malot_eng.txt", "ELTeC-fra-83f0/plain1/FRA01_Malot.txt"),
])
def test_where_the_language_of_a_file_stands(here, names):
    files = dict(zip(names, LINES.values())) | {"plain1/FRA02_alone.txt": "Seul.\nSeul."}
    place(here / "both", files)
    assert parallel.read_pairs("both", ["eng", "fra"]) == [PAIRS]
    assert parallel.read_pairs("both", ["fra", "eng"]) == [[(b, a) for a, b in PAIRS]]

    # as well in a zip, and in a folder whose own name says nothing
    with zipfile.ZipFile("both.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    (here / "both").rename(here / "eng-fra")
    assert parallel.read_pairs("eng-fra", ["eng", "fra"]) == [PAIRS]
    assert parallel.read_pairs("both.zip", ["eng", "fra"]) == [PAIRS]


def test_what_looks_like_a_language_is_not_taken_for_one(here):
    place(here / "both", {"eng/tome_ii.txt": "One.", "eng/tome_iii.txt": "Two.",
                          "fra/tome_ii.txt": "Un.", "fra/tome_iii.txt": "Deux."})
    assert parallel.read_pairs("both", ["eng", "fra"]) == [[("One.", "Un.")], [("Two.", "Deux.")]]


@pytest.mark.parametrize("files, expected", [
    ({"eng/a.txt": "One.\nTwo.", "fra/a.txt": "Un."},
     r"a.txt has 2 lines that are not blank, and .*a.txt has 1: line i of one has to translate"),
    ({"eng/a.txt": "One.", "deu/a.txt": "Eins."}, "the parallel text both has no fra"),
    ({"eng/a.txt": "One.", "deu/a.txt": "Eins.", "eng/b.txt": "One.", "b.fra.txt": "Un."}, None),
    ({"eng/a.txt": "1", "deu/a.txt": "2", "fra/b.txt": "3", "deu/b.txt": "4"},
     "no document in both eng and fra"),
    ({"eng/a.txt": "One.", "fra/b.txt": "Un."}, "no two .txt files of one name"),
    ({"eng/p1/a.txt": "One.", "eng/p2/a.txt": "Two.", "fra/p1/a.txt": "Un."},
     "p1/a.txt and eng/p2/a.txt are both in eng and have one name"),
])
def test_what_is_no_parallel_text(here, files, expected):
    place(here / "both", files)
    if expected is None:
        assert parallel.read_pairs("both", ["eng", "fra"]) == [[("One.", "Un.")]]
        return
    with pytest.raises(BadInput, match=expected):
        parallel.read_pairs("both", ["eng", "fra"])


# ------------------------------------------------------------------------------------------------
# Windows

def test_windows_stay_parallel():
    """Bytes for tokens: every line of a window is beside its translation, whole."""
    rng = random.Random(0)
    documents, long = [], 0
    for d in range(3):
        lines = [f"{d}.{i} " + "x" * rng.randrange(40) for i in range(50)]
        documents.append([(line, translate(line) + "y" * rng.randrange(30)) for line in lines])
        long += sum(max(len(a), len(b)) + 1 > 60 for a, b in documents[-1])
    assert long > 5

    enc = SimpleNamespace(encode_ordinary=lambda text: list(text.encode()))
    row_b = np.arange(256) + 300
    windows, pairs, packed = parallel.pack(documents, [enc, enc], [np.arange(256), row_b], 60)
    assert (pairs, packed) == (150, 150 - long)

    found = []
    for window in windows:
        assert 0 < len(window.a) <= 60 and 0 < len(window.b) <= 60
        assert window.ends[-1] == (len(window.a), len(window.b))
        side_a, side_b = bytes(window.a.tolist()), bytes((window.b - 300).tolist())
        starts = [(0, 0), *window.ends[:-1]]
        for (from_a, from_b), (to_a, to_b) in zip(starts, window.ends):
            found.append((side_a[from_a:to_a].decode(), side_b[from_b:to_b].decode()))
        assert len({line[0] for line, _ in found[-len(window.ends):]}) == 1  # of one document
    every = [(a + "\n", b + "\n") for document in documents for a, b in document]
    assert found == [pair for pair in every if max(map(len, pair)) <= 60]

    # no window could have taken the pair that comes after it
    number = 0
    for window, following in zip(windows, windows[1:]):
        number += len(window.ends)
        last, first = (every.index(found[i]) for i in (number - 1, number))
        if first == last + 1 and first % 50:  # it follows at once, in the same document
            more_a, more_b = following.ends[0]
            assert len(window.a) + more_a > 60 or len(window.b) + more_b > 60


# ------------------------------------------------------------------------------------------------
# No leak

def plant(folder):
    """A parallel text of two documents; the first is in the French corpus, and the second's
    translation in the English one.
    """
    write_parallel(folder / "both")
    write_corpus(folder / "livres", documents=6, seed=7, language=translate)
    write_corpus(folder / "books", documents=6)
    (folder / "livres/leak.txt").write_text((folder / "both/fra/book00.txt").read_text())
    text = (folder / "both/eng/book01.txt").read_text()
    (folder / "books/leak.txt").write_text("A preface of a new edition. " * 3 + text)


def test_what_the_parallel_text_has_is_kept_out(here, capsys):
    plant(here)
    for corpus in ("livres", "books"):
        manifest = data.prepare(corpus, 300, parallel="both")
        assert manifest["kept_out"] == ["leak"]
        assert "leak" not in str(manifest["documents"])
        assert "1 document kept out, which the parallel text has: leak" in capsys.readouterr().out

        plain = data.prepare(corpus, 300)
        assert "leak" in str(plain["documents"])
        assert plain["folder"] != manifest["folder"]


def test_what_quotes_two_books_is_kept_out_if_one_of_them_is_held_out(here):
    """The document with which it shares most is not the one that is held out."""
    said = [f"This is sentence number {word} of a book that somebody wrote." for word in
            "one two three four five six seven eight".split()]
    place(here / "both", {"eng/a.txt": said[0], "fra/a.txt": "Une phrase."})
    place(here / "books", {"a.txt": "\n".join(said[1:5]), "b.txt": "\n".join(said[:3]),
                           "c.txt": "\n".join(said[5:])})
    with open("spool", "w+b") as spool:
        sketches = data.held_out_sketches("both")
        kept, dropped, kept_out, _ = data.gather(["books"], spool, sketches)
    assert ([document.name for document in kept], dropped, kept_out) == (["a", "c"], [], ["b"])


def test_a_run_that_was_trained_on_it_is_refused(here):
    plant(here)
    names = ["eng", "fra"]
    for kept_out in (True, False):
        corpora = [data.prepare(corpus, 300, parallel="both" if kept_out else None)
                   for corpus in ("books", "livres")]
        run = SimpleNamespace(names=names, corpora=corpora, folder=Path("runs/a"))
        if kept_out:
            expected = sum(len(corpus["documents"]["train"]) for corpus in corpora)
            assert parallel.check_held_out(run, "both") == expected
            continue
        in_training = ["leak" in corpus["documents"]["train"] for corpus in corpora]
        assert any(in_training)
        with pytest.raises(BadInput, match=r"was trained on 1 document of \w+ .*\(leak\): train "
                           "anew with --parallel=both"):
            parallel.check_held_out(run, "both")


# ------------------------------------------------------------------------------------------------
# A run of two real languages

def test_merged_vocabularies_decode_to_the_exact_text_of_every_language(bilingual, monkeypatch):
    monkeypatch.chdir(bilingual)
    corpora = clone.open_corpora(["eng=books", "fra=livres"], 2, 300, "bpe")
    encoders = [encoder(corpus) for corpus in corpora]
    for vocabulary in ("disjoint", "anchored"):
        table = clone.make_table(corpora, ["a", "b"], None, 0, vocabulary)
        if vocabulary == "disjoint":
            assert len(np.unique(table)) == 600  # they never meet
        else:
            assert 300 < len(np.unique(table)) < 344  # the 256 bytes at least are shared
        for text, row, enc in zip(clone.open_texts(corpora, "test"), table, encoders):
            some = text[:5000]
            assert clone.spell(row[some], encoders, table) == enc.decode(some.tolist())


DIES_AT_STEP_6 = """
import os, runs, train
save = runs.Run.save

def save_and_die(run):
    save(run)
    if run.step == 6:
        os._exit(9)  # at once, as by kill -9

runs.Run.save = save_and_die
train.main()
"""


@pytest.mark.parametrize("vocabulary", ["disjoint", "anchored"])
def test_a_run_that_is_killed_goes_on_to_the_same_losses(bilingual, vocabulary):
    options = [*TINY[1:], *REAL, f"--vocabulary={vocabulary}", "--parallel=both", "--ratio=0.7",
               "--steps=12", "--dtype=float32"]
    train_here(bilingual, *options, f"--run=whole-{vocabulary}", eval_tokens=None)

    stopped = f"stopped-{vocabulary}"
    call = [sys.executable, "-c", DIES_AT_STEP_6, *options, f"--run={stopped}"]
    dead = subprocess.run(call, cwd=bilingual, env={**ONE_THREAD, "PYTHONPATH": str(ROOT)})
    assert dead.returncode == 9
    assert history(bilingual / "runs" / stopped)[-1]["step"] == 6
    out = train_here(bilingual, f"--run={stopped}", "--resume", eval_tokens=None)
    assert "from step 6" in out
    whole, again = (history(bilingual / "runs" / name) for name in (f"whole-{vocabulary}", stopped))
    assert whole == again
    assert [line["retrieval@1"] for line in whole if "val_loss" in line] == [{}] * 12
    assert "eng" in out and "fra" in out and "EN1" not in out


def test_a_second_corpus_that_is_the_first_is_one_language(here):
    """Anchored: every token is shared, so which language a window is in makes no difference."""
    write_corpus(here / "books", documents=8)
    write_corpus(here / "copies", documents=8)
    losses = {}
    for ratio in ("0.9", "0.5"):
        train_here(here, *TINY[1:], "--corpus=aaa=books", "--corpus=bbb=copies",
                   "--vocabulary=anchored", f"--ratio={ratio}", "--steps=8", "--dtype=float32",
                   f"--run=r{ratio}")
        losses[ratio] = [line["val_loss"] for line in runs.read_log(here / f"runs/r{ratio}",
                                                                    "val_loss")]
    assert losses["0.9"] == losses["0.5"]
    assert all(a == b for a, b in losses["0.9"])


@pytest.mark.parametrize("options, expected", [
    (["--corpus=books", "--corpus=books"], "--corpus=books is given twice"),
    (["--corpus=eng=books", "--corpus=fra=books"], "--corpus=books is given twice"),
    ([*REAL, "--languages=3"], "--languages=3, but there are 2 --corpus"),
    ([*REAL, "--cloned=0.5"], "--cloned=0.5 is of clones"),
    ([*REAL, "--clone=permute"], "--clone=permute is of clones"),
    ([*REAL, "--ratio=0.5,0.3,0.2"], "3 shares for --languages=2"),
    (["--corpus=books", "--vocabulary=anchored"], "--vocabulary=anchored is of real languages"),
    (["--corpus=eng=books", "--corpus=eng=livres"], "two languages would be called eng"),
    ([*REAL, "--parallel=nowhere"], "--parallel=nowhere is neither a folder nor a .zip"),
    ([*REAL, "--parallel=books"], "has no two .txt files of one name"),
])
def test_options_that_do_not_fit_real_languages(bilingual, options, expected, monkeypatch, capsys):
    monkeypatch.chdir(bilingual)
    assert expected in fails(train.main, [*TINY[1:], *options, "--steps=2"], monkeypatch, capsys)
