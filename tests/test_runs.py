import importlib
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, fails, history, listing, train_here, write_corpus

import clone
import data
import runs
import train
from lib.cli import BadInput

CONFIG = SimpleNamespace(**runs.ADDED, steps=3, version=runs.VERSION)


@pytest.fixture(scope="module")
def made(prepared):
    """(working folder, the folder of a run): a few steps on the small corpus."""
    train_here(prepared, *TINY, "--ratio=0.9", "--steps=4", "--dtype=float32", "--run=made")
    return prepared, prepared / "runs/made"


def open_made(made, monkeypatch):
    """The Run of the fixture, as it would be trained on."""
    work, folder = made
    monkeypatch.chdir(work)
    config = runs.read_config(folder)
    corpora = runs.open_corpora(folder, config)
    languages = runs.make_languages(config, corpora)
    model = runs.make_model(config, languages.table, "cpu")
    run = runs.Run(folder, config, corpora, languages, model)
    run.optimizers = train.make_optimizers(model, config)
    run.tokens = [0, 0]
    run.sums = torch.zeros(2, 2)
    return run


# ------------------------------------------------------------------------------------------------
# log.jsonl

def write_log(folder, *lines):
    folder.joinpath("log.jsonl").write_text("".join(lines))


def test_a_log_is_cut_back_to_a_step(here):
    lines = [
        '{"step": 2, "loss": [3.0]}\n',
        '{"step": 4, "loss": [2.0]}\n',
        '{"step": 4, "val_loss": [2.5]}\n',
        '{"step": 6, "loss": [1.0]}\n',
    ]
    write_log(here, *lines)
    runs.trim_log(here, 4)
    assert (here / "log.jsonl").read_text() == "".join(lines[:3])
    # a second time, there is nothing left to cut
    runs.trim_log(here, 4)
    assert (here / "log.jsonl").read_text() == "".join(lines[:3])
    runs.trim_log(here, 0)
    assert (here / "log.jsonl").read_text() == ""
    assert listing(here) == ["log.jsonl"]


@pytest.mark.parametrize("half", ['{"step": 4, "lo', '{"step": 4}', "{"])
def test_a_half_written_last_line_is_dropped(here, half):
    # '{"step": 4}' may be the start of a longer line: it has no line end
    write_log(here, '{"step": 2}\n', half)
    runs.trim_log(here, 4)
    assert (here / "log.jsonl").read_text() == '{"step": 2}\n'


def test_a_run_without_a_log_gets_an_empty_one(here):
    runs.trim_log(here, 0)
    assert (here / "log.jsonl").read_text() == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_log_has_finite_numbers_alone(here, value):
    runs.append_log(here, {"step": 1, "loss": [2.0, None]})
    with pytest.raises(ValueError):
        runs.append_log(here, {"step": 2, "loss": [2.0, value]})
    assert history(here) == [{"step": 1, "loss": [2.0, None]}]


def test_the_log_is_read_by_what_a_line_has(here):
    training = {"step": 1, "loss": [2.0]}
    validation = {"step": 1, "val_loss": [2.5]}
    runs.append_log(here, training)
    runs.append_log(here, validation)
    assert runs.read_log(here, "loss") == [training]
    assert runs.read_log(here, "val_loss") == [validation]
    assert runs.read_log(here, "step") == [training, validation]


# ------------------------------------------------------------------------------------------------
# New folders and old ones

def test_a_run_without_a_name_has_one_after_its_options(here, capsys):
    config = CONFIG
    given = {"ratio": "0.9", "corpus": "my novels/a.txt", "device": "cpu", "micro_batch": 4}
    first, _ = runs.new_folder(None, given, config)
    assert first == Path("runs/ratio0.9-corpusmy_novels_a.txt")  # the machine is not in it
    assert "is there already" not in capsys.readouterr().out
    assert runs.new_folder(None, given, config)[0] == first.with_name(first.name + "-2")
    assert f"python train.py --run={first.name} --resume" in capsys.readouterr().out
    assert runs.new_folder(None, given, config)[0] == first.with_name(first.name + "-3")
    assert runs.new_folder(None, {}, config)[0] == Path("runs/default")
    assert runs.read_config(first) == config


def test_a_name_is_taken_once(here):
    config = CONFIG
    folder, held = runs.new_folder("mine", {}, config)
    assert folder == Path("runs/mine")
    with pytest.raises(BadInput, match="is being trained by another process"):
        runs.new_folder("mine", {}, config)
    os.close(held)
    for again in (lambda: runs.check_new("mine"), lambda: runs.new_folder("mine", {}, config)):
        with pytest.raises(BadInput, match="exists: add --resume"):
            again()


def test_a_folder_that_a_killed_run_left_empty_may_be_used(here):
    (here / "runs/mine").mkdir(parents=True)
    (here / "runs/mine/.config.json.123.tmp").write_text("{")
    runs.check_new("mine")
    assert runs.new_folder("mine", {}, CONFIG)[0] == Path("runs/mine")


def test_a_folder_that_is_no_run_names_those_that_are(here):
    with pytest.raises(BadInput, match="no run with a config.json; there are: none yet"):
        runs.read_config(Path("runs/three"))
    for name in ("two", "one"):
        runs.new_folder(name, {}, CONFIG)
    (here / "runs/three").mkdir()
    for content in ("", "[1]", "{"):
        (here / "runs/three/config.json").write_text(content)
        with pytest.raises(BadInput, match="no run with a config.json; there are: one, three, two"):
            runs.read_config(Path("runs/three"))


def test_of_two_runs_that_begin_at_once_neither_overwrites_the_other(here):
    """The folder is there and empty, as between another process's mkdir and its first file."""
    options = {"ratio": "0.9"}
    (here / "runs/ratio0.9").mkdir(parents=True)
    held = runs.lock(Path("runs/ratio0.9"))
    folder, _ = runs.new_folder(None, options, CONFIG)
    assert folder == Path("runs/ratio0.9-2")  # the next number
    with pytest.raises(BadInput, match="is being trained by another process"):
        runs.new_folder("ratio0.9", options, CONFIG)
    assert not list(Path("runs/ratio0.9").iterdir())
    os.close(held)


def test_a_file_of_that_name_is_no_folder(here):
    (here / "runs").mkdir()
    (here / "runs/mine").write_text("")
    with pytest.raises(BadInput, match="exists"):
        runs.new_folder("mine", {}, CONFIG)


def test_a_run_of_an_older_version_is_refused_in_a_line(here):
    runs.new_folder("old", {}, SimpleNamespace(steps=3))
    with pytest.raises(BadInput, match="made by version 1 of the recipe, and this is version 2"):
        runs.read_config(Path("runs/old"))


def test_a_run_is_locked_until_its_lock_is_let_go(here):
    held = runs.lock(here)
    with pytest.raises(BadInput, match="is being trained by another process"):
        runs.lock(here)
    os.close(held)
    os.close(runs.lock(here))


# ------------------------------------------------------------------------------------------------
# model.pt

def test_a_run_is_saved_with_all_that_going_on_needs(made, monkeypatch, tmp_path):
    run = open_made(made, monkeypatch)
    run.go_on()
    assert len(run.optimizers[0].state) == len(list(run.model.parameters()))
    run.folder = tmp_path
    run.step, run.tokens, run.sums = 3, [40, 8], torch.tensor([[9.5, 3.25], [2.0, 1.0]])
    with torch.no_grad():
        run.model.position.add_(1)
    run.save()

    again = open_made(made, monkeypatch)
    again.folder = tmp_path
    again.go_on()
    assert (again.step, again.tokens) == (3, [40, 8])
    assert torch.equal(again.sums, run.sums)
    for old, new in zip(run.model.parameters(), again.model.parameters()):
        assert torch.equal(old, new)
    for old, new in zip(run.optimizers, again.optimizers, strict=True):
        assert old.state_dict()["state"].keys() == new.state_dict()["state"].keys()
        for p, q in zip(run.model.parameters(), again.model.parameters()):
            torch.testing.assert_close(old.state[p], new.state[q], rtol=0, atol=0)


def test_the_sums_of_all_processes_go_on_in_one_of_them(made, monkeypatch, tmp_path):
    run = open_made(made, monkeypatch)
    run.folder, run.sums = tmp_path, torch.tensor([[9.5, 3.25], [2.0, 1.0]])
    run.save()
    monkeypatch.setenv("RANK", "1")
    other = open_made(made, monkeypatch)
    other.folder = tmp_path
    other.go_on()
    assert torch.equal(other.sums, torch.zeros(2, 2))


def test_a_broken_model_does_not_take_the_place_of_a_good_one(made, monkeypatch):
    run = open_made(made, monkeypatch)
    good = (run.folder / "model.pt").read_bytes()
    with torch.no_grad():
        run.model.position[3] = math.inf
    with pytest.raises(SystemExit, match="not finite .* the last good checkpoint is kept"):
        run.save()
    assert (run.folder / "model.pt").read_bytes() == good


# ------------------------------------------------------------------------------------------------
# What a config stands for

def test_a_finished_run_is_opened_as_it_was_left(made, monkeypatch):
    work, folder = made
    monkeypatch.chdir(work)
    by_name, = runs.open_runs(["made"], "cpu")
    by_path, = runs.open_runs([str(folder)], "cpu")
    saved = torch.load(folder / "model.pt", weights_only=True)["model"]
    for run in (by_name, by_path):
        assert run.step == run.config.steps == 4
        assert run.table.shape == (2, 300)
        assert run.corpora[0]["vocab_size"] == 300
        assert not run.model.training
        for name, weight in run.model.state_dict().items():
            assert torch.equal(weight, saved[name])


def test_a_run_whose_corpus_has_changed_does_not_go_on(here, monkeypatch, capsys):
    write_corpus(here / "books", documents=4)
    train_here(here, *TINY, "--steps=2", "--run=old")
    before = listing(here / "runs"), history(here / "runs/old")
    (here / "books/book00.txt").write_text("Something else, and again something else. " * 50)
    [run] = runs.open_runs(["old"], "cpu")  # what was prepared from the old text is there still
    assert run.corpora[0]["files"] == run.config.data_sha256

    data.shutil.rmtree(here / "data")
    error = fails(train.main, ["--run=old", "--resume"], monkeypatch, capsys)
    assert "the corpus books is not what it was when runs/old began" in error
    with pytest.raises(BadInput, match="not what it was"):
        list(runs.open_runs(["old"], "cpu"))
    assert (listing(here / "runs"), history(here / "runs/old")) == before


def test_the_languages_of_a_run_are_those_of_its_config(made, monkeypatch):
    run = open_made(made, monkeypatch)
    assert (run.table[1] - run.table[0] == 300).all()  # no token in common
    run.config.clone = "permute"
    permuted = clone.clone_table(np.ones(300), 2, permuted=True)
    assert (runs.make_table(run.config, run.corpora) == permuted).all()
    run.config.clone = "shift"

    # half of those that occur in the training text, by a seed of its own
    run.config.cloned = 0.5
    half = runs.make_table(run.config, run.corpora)
    occur = np.unique(data.tokens(run.corpora[0], "train"))
    assert (half[0] == half[1]).sum() == len(occur) - round(len(occur) / 2)
    run.config.seed += 1
    assert (runs.make_table(run.config, run.corpora) == half).all()
    run.config.anchor_seed += 1
    assert (runs.make_table(run.config, run.corpora) != half).any()
    assert data.tokens(run.corpora[0], "train").max() < 300


# ------------------------------------------------------------------------------------------------
# The text of a run

def test_a_run_is_opened_when_its_text_has_moved(made, monkeypatch, tmp_path):
    work, folder = made
    monkeypatch.chdir(work)
    config = runs.read_config(folder)
    config.corpus = "no/longer/there"
    corpora = runs.open_corpora(folder, config)  # what was prepared is in data/ still
    assert corpora[0]["files"] == config.data_sha256

    # prepared nowhere: it is made again, from where the text is now
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="neither a file, nor"):
        runs.open_corpora(folder, config)
    again = runs.open_corpora(folder, config, corpus=str(work / "books"))
    assert again[0]["files"] == config.data_sha256
    write_corpus(tmp_path / "others", seed=1)
    runs.data.shutil.rmtree(tmp_path / "data")
    with pytest.raises(BadInput, match="is not what it was .* say with --corpus=PATH"):
        runs.open_corpora(folder, config, corpus="others")


def test_the_command_that_made_a_run_goes_on_with_it(made, monkeypatch):
    work, _ = made
    monkeypatch.chdir(work)
    given = {"run": "made", "ratio": "0.9", "dtype": "auto", "steps": 4, "corpus": "elsewhere"}
    folder, config = runs.old_folder("made", given)
    assert config.dtype == "float32" and config.corpus == "books"
    with pytest.raises(BadInput, match="another configuration: dtype=float32"):
        runs.old_folder("made", {"dtype": "bfloat16"})


def kept_apart(made, tmp_path, monkeypatch):
    """A copy of the run, where there is no corpus: its folder."""
    shutil.copytree(made[1], tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "copy"


def test_a_run_tells_its_languages_without_its_corpus(made, tmp_path, monkeypatch):
    run = open_made(made, monkeypatch)
    train, test = run.texts("train")[0], run.texts("test")[0]
    folder = kept_apart(made, tmp_path, monkeypatch)
    kept = runs.read_languages(folder, run.config)
    assert kept.encoders[0] is kept.encoders[1]
    assert kept.encoders[0]._mergeable_ranks == run.encoders[0]._mergeable_ranks
    for key in ("table", "counts", "prompts"):
        np.testing.assert_array_equal(getattr(kept, key), getattr(run.languages, key))
    assert (kept.counts == np.bincount(train, minlength=300)).all()
    assert (kept.prompts == test[:32]).all()
    again, = runs.open_runs([str(folder)], "cpu", sampling=True)
    assert again.corpora is None


def test_a_run_that_was_made_before_is_made_whole_when_it_goes_on(made, tmp_path, monkeypatch):
    shutil.copytree(made[1], tmp_path / "runs/made")
    shutil.copytree(made[0] / "data", tmp_path / "data")
    files = {path.name: path.read_bytes() for path in (tmp_path / "runs/made").iterdir()}
    for name in ("tokenizer.tiktoken", "languages.npz"):
        (tmp_path / "runs/made" / name).unlink()
    monkeypatch.chdir(tmp_path)
    assert runs.read_languages(Path("runs/made"), runs.read_config(Path("runs/made"))) is None
    run, = runs.open_runs(["made"], "cpu", sampling=True)  # from the corpus, as ever
    assert run.corpora[0]["files"] == run.config.data_sha256
    train_here(tmp_path, "--run=made", "--resume")
    for name in ("tokenizer.tiktoken", "languages.npz"):
        assert (tmp_path / "runs/made" / name).read_bytes() == files[name]


def change(content):
    """Other bytes, one of which is another."""
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize("name", ["tokenizer.tiktoken", "languages.npz"])
@pytest.mark.parametrize("damage", [change, lambda content: content[:200], lambda content: b""])
def test_a_damaged_file_of_a_run_is_one_line(made, tmp_path, monkeypatch, capsys, name, damage):
    folder = kept_apart(made, tmp_path, monkeypatch)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    before = listing(tmp_path)
    error = fails(importlib.import_module("eval").main, [str(folder), "--sample"], monkeypatch,
                  capsys)
    assert f"{name} is missing, damaged or of another run: copy the folder again" in error
    assert listing(tmp_path) == before


def test_files_of_a_run_that_are_missing_or_of_another_one(made, tmp_path, monkeypatch):
    folder = kept_apart(made, tmp_path, monkeypatch)
    config = runs.read_config(folder)
    whole = dict(np.load(folder / "languages.npz"))
    config.languages = 3
    with pytest.raises(BadInput, match="languages.npz is missing, damaged or of another run"):
        runs.read_languages(folder, config)
    config.languages = 2
    # nothing in it is run
    np.savez(folder / "languages.npz", **whole | {"table": np.array([print], dtype=object)})
    with pytest.raises(BadInput, match="languages.npz is missing, damaged or of another run"):
        runs.read_languages(folder, config)
    np.savez(folder / "languages.npz", **whole)
    assert runs.read_languages(folder, config)
    (folder / "tokenizer.tiktoken").unlink()
    with pytest.raises(BadInput, match="tokenizer.tiktoken is missing, damaged or of another run"):
        runs.read_languages(folder, config)


def test_results_of_another_text_have_another_name():
    assert runs.result_name("eval") == "eval"
    assert runs.result_name("eval", "my novels/a b.txt") == "eval-a_b"
    assert runs.result_name("align", "a.txt,docs") == "align-a_docs"
    assert runs.result_name("align", ".") == "align-text"


def test_files_among_the_folders_of_runs_are_passed_over(made, monkeypatch):
    work, folder = made
    monkeypatch.chdir(work)
    (work / "runs/align.png").write_bytes(b"")
    names = [run.folder.name for run in runs.open_runs(["runs/align.png", "runs/made"], "cpu")]
    assert names == ["made"]
    with pytest.raises(BadInput, match="expected folders of runs"):
        list(runs.open_runs(["runs/align.png"], "cpu"))


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused(made, monkeypatch, tmp_path):
    run = open_made(made, monkeypatch)
    run.go_on()
    with torch.no_grad():
        run.model.embedding[7, 3] = math.nan
    run.folder = tmp_path
    monkeypatch.setattr(runs, "check_finite", lambda run, tensors: None)
    run.save()
    with pytest.raises(BadInput, match=r"weights that are not finite \(embedding\)"):
        runs.load_checkpoint(tmp_path, run.config)
