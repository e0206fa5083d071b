import json
import math
import os
import re
import resource
import shutil
import signal
import time
from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    ONE_THREAD,
    TINY,
    fails,
    finish,
    history,
    listing,
    script,
    train_here,
    write_corpus,
)

import clone
import data
import runs
import train
from eval import recipe as eval_recipe
from model import GPT


def checkpoint(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def wait_for(process, condition, *arguments):
    """Wait until condition(*arguments) holds, but no longer than the process lives."""
    deadline = time.time() + 120
    while not condition(*arguments) and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)


# ------------------------------------------------------------------------------------------------
# A whole run, as a user sees it

@pytest.fixture(scope="module")
def trained(prepared):
    """(working folder, the run's folder, what it printed): three languages, 300 steps."""
    options = ["--ratio=0.6,0.3,0.1", "--steps=300", "--lr=0.01", "--run=three"]
    out = finish(script(prepared, "train.py", *TINY, *options))
    return prepared, prepared / "runs/three", out


def test_a_run_learns_and_says_what_it_learned(trained):
    _, folder, out = trained
    val = runs.read_log(folder, "val_loss")
    assert val[-1]["step"] == 300
    assert val[-1]["tokens"] == 300 * 8 * 16
    assert sum(val[-1]["tokens_seen"]) == 300 * 8 * 16
    assert set(val[-1]["retrieval@1"]) == {"EN1-EN2", "EN1-EN3", "EN2-EN3"}

    first, last = val[0]["val_loss"], val[-1]["val_loss"]
    assert last[0] < 0.75 * first[0]
    assert last[0] < 0.5 * math.log(900)
    assert last[0] < last[1] < last[2]  # the more of a language, the better

    losses = runs.read_log(folder, "loss")
    assert all(len(line["loss"]) == 3 for line in losses)
    assert losses[-1]["loss"][0] == pytest.approx(last[0], abs=0.3)

    for word in (f"{math.exp(last[2]):,.2f}", "EN3", "tokens/s", "Next:", "--languages=3"):
        assert word in out
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_ends_with_what_it_writes(trained, monkeypatch):
    """A line a language: what the model makes of the start of the validation text."""
    work, folder, out = trained
    monkeypatch.chdir(work)
    run, = runs.open_runs(["three"], "cpu")
    enc, prompt = run.encoders[0], np.array(run.texts("val")[0][:32])
    lines = out.partition("what it writes after the start of the validation text:\n")[2]
    for line, name, row in zip(lines.split("\n"), run.names, run.table):
        ids = run.model.sample(torch.from_numpy(row[prompt]), 30)[32:].numpy()
        before, written = line.removeprefix(name).strip().split(" -> ")
        assert literal_eval(before) == enc.decode(prompt.tolist())[-40:]
        assert literal_eval(written.strip()) == clone.spell(ids, run.encoders, run.table)
    assert "what it writes" not in train_here(work, *TINY, "--arch=encoder", "--steps=2")


def test_shares_are_those_asked_for(trained):
    _, folder, _ = trained
    seen = runs.read_log(folder, "val_loss")[-1]["tokens_seen"]
    for tokens, share in zip(seen, (0.6, 0.3, 0.1)):
        assert abs(tokens / sum(seen) - share) < 0.06


def test_monolingual(prepared):
    train_here(prepared, *TINY, "--languages=1", "--steps=10", "--run=mono")
    assert runs.read_log(prepared / "runs/mono", "val_loss")[-1]["retrieval@1"] == {}


def test_a_schedule_is_followed(prepared):
    train_here(prepared, *TINY, "--schedule=0,1,0.5", "--steps=30", "--run=stages")
    lines = runs.read_log(prepared / "runs/stages", "loss")
    assert all(line["loss"][0] is None for line in lines[:10])
    assert all(line["loss"][1] is None for line in lines[10:20])
    assert all(None not in line["loss"] for line in lines[20:])


def test_where_no_token_is_cloned_the_languages_are_one(prepared):
    train_here(prepared, *TINY, "--cloned=0", "--steps=5", "--run=shared")
    en1, en2 = runs.read_log(prepared / "runs/shared", "val_loss")[-1]["val_loss"]
    assert en1 == en2


def test_a_run_without_a_name_gets_a_new_one_each_time(prepared):
    (prepared / "runs").mkdir(exist_ok=True)
    before = set(os.listdir(prepared / "runs"))
    for _ in range(2):
        train_here(prepared, *TINY, "--steps=2")
    assert len(set(os.listdir(prepared / "runs")) - before) == 2


# ------------------------------------------------------------------------------------------------
# What the log says is what happened

def plain_losses(model, ids):
    """model(ids [B, T + 1]) the plain way, from the logits of all positions: [B]."""
    hidden = model.norm(model.residual_stream(ids[:, :-1])[-1])
    logits = hidden @ model.unembedding.T
    return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(1)


@pytest.fixture(scope="module")
def standing_still(prepared):
    """A run whose weights stay as they were: (its config, folder, model, table, training text).

    Its embeddings are so large that every sequence has a loss of its own, nats from the next one.
    """
    train_here(prepared, *TINY, "--ratio=0.6,0.3,0.1", "--steps=100", "--lr=1e-30", "--seed=5",
               "--dtype=float32", "--embedding_std=1", "--micro_batch=3", "--run=still")
    folder = prepared / "runs/still"
    config = runs.read_config(folder)
    corpus = data.load(next(prepared.glob("data/books-300-*")))
    torch.manual_seed(5)
    table = clone.clone_table(np.ones(300), 3)
    model = runs.make_model(config, table, "cpu")
    torch.testing.assert_close(checkpoint(folder)["model"], dict(model.state_dict()),
                               rtol=0, atol=1e-20)
    return config, folder, model, table, data.tokens(corpus, "train")


def test_the_losses_of_the_log_are_those_of_their_languages(standing_still):
    config, folder, model, table, text = standing_still
    shares = np.array([[0.6, 0.3, 0.1]])
    batch = clone.make_batches([text] * 3, table, shares, context=16, batch_size=8, steps=100,
                               seed=5)
    lines = runs.read_log(folder, "loss")
    assert [line["step"] for line in lines] == list(range(2, 101, 2))

    seen = np.zeros(3)
    for line in lines:
        # the mean over the sequences of each language, in the two steps before the line
        of_language = {0: [], 1: [], 2: []}
        for step in (line["step"] - 2, line["step"] - 1):
            ids, lang = batch(step)
            for sequence, l in zip(ids, lang):
                loss = plain_losses(model, torch.from_numpy(sequence[None]))
                of_language[l].append(loss.item())
        seen += [16 * len(losses) for losses in of_language.values()]

        for logged, losses in zip(line["loss"], of_language.values()):
            if losses:
                assert logged == pytest.approx(np.mean(losses), rel=1e-4)
            else:
                assert logged is None
    assert runs.read_log(folder, "val_loss")[-1]["tokens_seen"] == seen.tolist()

    # the languages do differ here, and one of them was not there in every line
    whole = [line["loss"] for line in lines if None not in line["loss"]]
    assert np.abs(np.diff(whole, axis=1)).mean() > 0.5
    assert 5 < len(whole) < len(lines) - 5


def test_the_learning_rate_of_the_log_is_the_one_that_was_used(prepared, monkeypatch):
    used = []

    def watched(optimizers, lr):
        original(optimizers, lr)
        used.append({group["lr"] for optimizer in optimizers for group in optimizer.param_groups})

    original = train.update
    monkeypatch.setattr(train, "update", watched)
    train_here(prepared, *TINY, "--steps=20", "--lr=0.01", "--optimizer=muon", "--run=rates")
    config = runs.read_config(prepared / "runs/rates")
    lines = runs.read_log(prepared / "runs/rates", "loss")
    assert len(lines) == len(used) == 20
    for line, rates in zip(lines, used):
        assert rates == {line["lr"]} == {train.learning_rate(line["step"] - 1, config)}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_the_micro_batch_changes_nothing(prepared, optimizer):
    logs = []
    for micro_batch in (8, 3):
        name = f"{optimizer}-{micro_batch}"
        train_here(prepared, *TINY, "--steps=20", "--dtype=float32", f"--optimizer={optimizer}",
                   f"--micro_batch={micro_batch}", f"--run={name}")
        logs.append(history(prepared / "runs" / name))

    # muon orthogonalises in bf16
    near = 0.02 if optimizer == "muon" else 1e-4
    for one, other in zip(*logs, strict=True):
        for key in {"loss", "val_loss"} & one.keys():
            assert other[key] == pytest.approx(one[key], abs=near)
    assert logs[0][-1]["val_loss"][0] < math.log(600) - 0.2


# ------------------------------------------------------------------------------------------------
# Killed, interrupted, resumed

# of one dtype: which one is faster is timed, and may come out otherwise for another run
LONG = [*TINY, "--ratio=0.9", "--steps=200", "--lr=0.01", "--seed=3", "--dtype=float32"]


@pytest.fixture(scope="module")
def uninterrupted(prepared):
    finish(script(prepared, "train.py", *LONG, "--run=whole"))
    return prepared / "runs/whole"


def modified(path):
    """When a file was written; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def checkpoint_since(folder, before):
    """Whether a new checkpoint is there, or is being written."""
    return list(folder.glob(".model.pt*")) or modified(folder / "model.pt") != before


def test_kill_9_at_any_instant_and_resume(prepared, uninterrupted):
    folder, kills = prepared / "runs/killed", 0
    # seconds after a checkpoint began to be written, or was
    for delay in (0, 0.013, 0.031, 0.002, 0.047, 0.023):
        resume = ["--resume"] if (folder / "config.json").exists() else []
        before = modified(folder / "model.pt")
        process = script(prepared, "train.py", *LONG, "--run=killed", *resume)
        wait_for(process, checkpoint_since, folder, before)
        time.sleep(delay)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
        if (folder / "model.pt").exists():
            checkpoint(folder)  # whole at every instant
    assert kills >= 3

    finish(script(prepared, "train.py", "--run=killed", "--resume"))
    assert history(folder) == history(uninterrupted)  # to the last digit
    weights, expected = checkpoint(folder)["model"], checkpoint(uninterrupted)["model"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not list(folder.glob(".*"))


def has_some_lines(log):
    return log.exists() and log.stat().st_size > 300


def test_ctrl_c_saves_and_says_how_to_resume(prepared, uninterrupted):
    folder = prepared / "runs/interrupted"
    process = script(prepared, "train.py", *LONG, "--run=interrupted")
    wait_for(process, has_some_lines, folder / "log.jsonl")
    process.send_signal(signal.SIGINT)
    out = finish(process, code=130)
    assert "python train.py --run=interrupted --resume" in out
    assert 0 < checkpoint(folder)["step"] < 200
    finish(script(prepared, "train.py", "--run=interrupted", "--resume"))
    assert history(folder) == history(uninterrupted)


class StopAfter:
    """A stop signal that comes in a certain step."""

    def __init__(self, steps):
        self.steps = steps

    def is_set(self):
        self.steps -= 1
        return self.steps <= 0


def test_a_run_that_stops_between_two_lines_of_its_log_loses_no_loss(
        prepared, uninterrupted, monkeypatch):
    folder = prepared / "runs/between"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train.ddp, "stop_signal", lambda: StopAfter(6))
        patch.setattr(runs, "lock", lambda folder: None)  # it would hold as long as this process
        train_here(prepared, *LONG, "--run=between", eval_tokens=None)
    assert end.value.code == 130
    assert checkpoint(folder)["step"] == 6
    assert history(folder)[-1]["step"] == 4  # a line every 4 steps
    train_here(prepared, "--run=between", "--resume", eval_tokens=None)
    assert history(folder) == history(uninterrupted)


def test_one_process_at_a_time_trains_a_run(prepared, uninterrupted):
    first = script(prepared, "train.py", *LONG, "--run=held")
    wait_for(first, (prepared / "runs/held/log.jsonl").exists)
    first.send_signal(signal.SIGSTOP)  # so that it is there for certain
    second = script(prepared, "train.py", "--run=held", "--resume")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "is being trained by another process" in err
    assert err.count("\n") == 1
    first.send_signal(signal.SIGCONT)
    finish(first)
    assert history(prepared / "runs/held") == history(uninterrupted)


def test_a_finished_run_resumed_stays_as_it_is(prepared, uninterrupted):
    before = history(uninterrupted)
    out = finish(script(prepared, "train.py", "--run=whole", "--resume"))
    assert history(uninterrupted) == before
    assert "perplexity" in out


# ------------------------------------------------------------------------------------------------
# What can go wrong on the way

def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(prepared):
    folder = prepared / "runs/nan"
    process = script(prepared, "train.py", *TINY, "--steps=400", "--dtype=float32", "--run=nan")
    wait_for(process, (folder / "model.pt").exists)
    process.kill()
    process.communicate()

    # the weights so large that the next loss overflows
    state = checkpoint(folder)
    state["model"]["norm.weight"][:] = 1e38
    torch.save(state, folder / "model.pt")
    broken = (folder / "model.pt").read_bytes()
    process = script(prepared, "train.py", "--run=nan", "--resume")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "not finite" in err
    assert "the last good checkpoint is kept" in err
    assert "Traceback" not in err
    assert (folder / "model.pt").read_bytes() == broken


def test_one_step_at_a_learning_rate_far_too_high_is_no_success(prepared):
    """The loss of the only step is fine, the weights after it are not."""
    process = script(prepared, "train.py", *TINY, "--steps=1", "--lr=1e30", "--run=one-wild")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "lower --lr" in err
    assert not (prepared / "runs/one-wild/model.pt").exists()
    assert not runs.read_log(prepared / "runs/one-wild", "val_loss")


def test_a_run_whose_words_nobody_reads_to_the_end_goes_on(prepared):
    process = script(prepared, "train.py", *TINY, "--steps=60", "--run=head")
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    _, err = process.stderr.read(), process.wait(timeout=120)
    assert process.returncode == 0, err
    assert runs.read_log(prepared / "runs/head", "val_loss")[-1]["step"] == 60
    assert checkpoint(prepared / "runs/head")["step"] == 60


def test_compiling_without_a_compiler_is_one_line_and_takes_no_name(prepared):
    env = {**ONE_THREAD, "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(prepared / "cache")}
    process = script(prepared, "train.py", *TINY, "--compile", "--run=compiled", env=env)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--compile does not work here" in err
    assert err.count("\n") == 1
    assert not (prepared / "runs/compiled").exists()


def test_a_run_says_what_a_monolingual_model_has_on_as_many_tokens(tmp_path, monkeypatch):
    write_corpus(tmp_path / "books")

    def train_for(steps, *options):
        # auto is timed, and might take another type for one of the runs on a busy machine
        return train_here(tmp_path, *TINY, "--dtype=float32", f"--steps={steps}", *options)

    # with too few monolingual runs there it says how to make some, and it would count these
    train_for(20, "--languages=1", "--run=alone")
    out = train_for(40, "--run=before")
    assert "TEff" not in out
    of_the_run = runs.read_config(tmp_path / "runs/before")
    commands = [line for line in out.splitlines() if "--languages=1" in line]
    assert len(commands) == 5
    for command, percent in zip(commands, (5, 10, 20, 50, 100)):
        words = command.split()
        assert words[:2] == ["python", "train.py"] and words[-1] == f"--run=before-mono{percent}"
        monkeypatch.setattr("sys.argv", words[1:])
        config = train.make_config(*train.options().parse())
        tokens = config.steps * config.batch_size
        assert tokens == pytest.approx(40 * 8 * percent / 100, rel=0.05)
        config.corpus_sha256, config.data_sha256 = of_the_run.corpus_sha256, of_the_run.data_sha256
        assert eval_recipe(config) == eval_recipe(of_the_run)
        assert config.dtype == of_the_run.dtype
    shutil.rmtree(tmp_path / "runs/alone")

    # three runs that count, and three that do not: another model, a stopped run, an older version
    perplexities = []
    for steps in (20, 40, 80):
        train_for(steps, "--languages=1", f"--run=mono{steps}")
        loss = runs.read_log(tmp_path / f"runs/mono{steps}", "val_loss")[-1]["val_loss"][0]
        perplexities.append(math.exp(loss))
    train_for(60, "--languages=1", "--run=other", "--n_head=1")
    for name, change in (("stopped", {"steps": 90}), ("older", {"version": 1})):
        shutil.copytree(tmp_path / "runs/mono80", tmp_path / "runs" / name)
        path = tmp_path / "runs" / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    out = train_for(80, "--run=after", "--ratio=0.9")
    assert "between 3 runs in runs/" in out and "--languages=1" not in out

    seen = runs.read_log(tmp_path / "runs/after", "val_loss")[-1]
    log_tokens = np.log(np.array([20, 40, 80]) * 8 * 16)
    inverse = 1 / np.array(perplexities)
    assert (np.diff(inverse) > 0).all()
    lines = [line.split() for line in out.splitlines() if line.startswith("EN")]
    tokens, loss = seen["tokens_seen"][0], seen["val_loss"][0]
    expected = 1 / np.interp(np.log(tokens), log_tokens, inverse)
    assert float(lines[0][5]) == pytest.approx(expected, abs=0.006)
    equivalent = np.exp(np.interp(math.exp(-loss), inverse, log_tokens))
    assert float(lines[0][6]) == pytest.approx(equivalent / tokens, abs=0.006)
    assert lines[1][5] == "-"  # EN2 saw fewer tokens than any monolingual run


@pytest.mark.parametrize("options, expected", [
    ("--corpus=my/books --steps=5", "--ratio=0.5 --corpus=my/books --steps=5"),
    ("--languages=10 --ratio=0.5", "--languages=10"),
    ("--tokenizer=gpt2", "--ratio=0.5 --tokenizer=gpt2"),
    ("--tied --size=mini --n_layer=2", "--ratio=0.5 --tied=true --size=mini --n_layer=2"),
])
def test_the_contrast_is_the_same_run_in_another_mix(monkeypatch, options, expected):
    monkeypatch.setattr("sys.argv", ["train.py", *options.split()])
    config = train.make_config(*train.options().parse())
    if config.tokenizer == "gpt2":
        config.vocab_size = 50257  # as a run of it has in its config.json
    command = train.command(config)
    assert sorted(command.split()) == sorted(["python", "train.py", *expected.split()])


def test_a_default_that_is_given_changes_nothing(monkeypatch):
    configs = []
    for options in ([], ["--n_head=8"], ["--d_model=512"], ["--n_head=4"]):
        monkeypatch.setattr("sys.argv", ["train.py", "--size=mini", *options])
        configs.append(train.make_config(*train.options().parse()))
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].d_head == 32  # narrower than 512 / 8
    assert configs[3].d_head == 128


def test_a_learning_rate_far_too_high_ends_in_a_message(prepared):
    folder = prepared / "runs/wild"
    process = script(prepared, "train.py", *TINY, "--steps=100", "--lr=1e30", "--run=wild")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "lower --lr" in err
    assert "Traceback" not in err
    if (folder / "model.pt").exists():
        assert all(weight.isfinite().all() for weight in checkpoint(folder)["model"].values())


def no_file_over_20_kb():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk(prepared):
    process = script(prepared, "train.py", *TINY, "--steps=20", "--run=full",
                     preexec_fn=no_file_over_20_kb)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "model.pt" in err
    assert err.count("\n") == 1
    assert listing(prepared / "runs/full") == [
        "config.json", "languages.npz", "log.jsonl", "tokenizer.tiktoken"]


# ------------------------------------------------------------------------------------------------
# What a step is made of

def tiny_model(**changes):
    """A model of two languages of 30 ids, as it starts."""
    torch.manual_seed(0)
    return GPT(dict(vocab_size=60, context=16, n_layer=2, n_head=2, d_head=8, d_model=16,
                    tied=True, embedding_std=0.02, bias=True, embedding_scale=True,
                    arch="decoder", heads="shared") | changes)


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 8, 100])
def test_gradients_are_those_of_the_mean_loss(micro_batch):
    model, ids = tiny_model(embedding_std=0.5), torch.randint(60, (8, 17))
    expected = plain_losses(model, ids)
    gradients = torch.autograd.grad(expected.mean(), list(model.parameters()))

    losses = train.forward_backward(model, [ids], micro_batch)
    torch.testing.assert_close(losses, expected.detach())
    assert not losses.requires_grad
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_an_update_is_one_step_at_the_rate_given_and_leaves_no_gradient():
    a, b = torch.nn.Parameter(torch.tensor([1.0])), torch.nn.Parameter(torch.tensor([1.0]))
    optimizers = [torch.optim.SGD([a], lr=9.0), torch.optim.SGD([b], lr=7.0)]
    for expected in (0.5, 0.0):
        (a + 2 * b).sum().backward()
        train.update(optimizers, 0.5)
        assert a.item() == expected
        assert b.item() == 1 - 2 * (1 - expected)
        assert a.grad is None
        assert b.grad is None


def test_learning_rate_is_the_papers():
    config = SimpleNamespace(lr=6e-4, steps=18265)
    rates = [train.learning_rate(step, config) for step in range(18265)]
    assert rates[199] == max(rates) == 6e-4
    assert rates[99] == pytest.approx(3e-4)
    assert rates[-1] == pytest.approx(6e-6, rel=1e-3)
    assert rates[200:] == sorted(rates[200:], reverse=True)
    assert rates[(18265 + 200) // 2] == pytest.approx((6e-4 + 6e-6) / 2, rel=1e-3)


def test_a_short_run_warms_up_for_a_quarter_of_it():
    config = SimpleNamespace(lr=1.0, steps=40)
    rates = [train.learning_rate(step, config) for step in range(40)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert train.learning_rate(0, SimpleNamespace(lr=1.0, steps=1)) == 1.0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_every_weight_is_in_one_optimiser(optimizer, tied):
    model = tiny_model(tied=tied)
    config = SimpleNamespace(optimizer=optimizer, lr=0.01)
    found = {}
    for one in train.make_optimizers(model, config):
        for group in one.param_groups:
            for p in group["params"]:
                assert p not in found
                found[p] = type(one).__name__, group["weight_decay"]
    assert found.keys() == set(model.parameters())

    for name, p in model.named_parameters():
        kind, decay = found[p]
        matrix_of_a_block = name.startswith("blocks") and p.dim() == 2
        assert kind == ("Muon" if optimizer == "muon" and matrix_of_a_block else "AdamW")
        assert decay == (0.1 if optimizer == "adamw" and p.dim() == 2 else 0)


# ------------------------------------------------------------------------------------------------
# Validation

TWO = ["EN1", "EN2"]


def test_evaluation_scores_every_language_on_the_same_text():
    model = tiny_model()
    with torch.no_grad():
        model.embedding[30:] = model.embedding[:30]
    text = np.random.default_rng(0).integers(0, 29, 400).astype(np.uint16)
    table = clone.clone_table(np.ones(30), 2)
    losses, retrieval = train.evaluate(model, [text, text], table, TWO, 16)
    assert losses[0] == losses[1]
    # copies: aligned, but for the same token twice in the first position
    assert retrieval["EN1-EN2"] > 0.95


def test_the_loss_of_a_language_is_the_mean_over_windows_of_the_text():
    model = tiny_model(embedding_std=1)
    text = np.random.default_rng(0).integers(0, 29, 400).astype(np.uint16)
    table = clone.clone_table(np.ones(30), 2)
    losses, retrieval = train.evaluate(model, [text, text], table, TWO, 16)

    # 23 windows of 17 tokens, evenly spread from the first token to the last
    starts = [round(i * (400 - 17) / 22 - 0.499) for i in range(23)]
    for row, loss in zip(table, losses):
        windows = torch.from_numpy(np.stack([row[text[i:i + 17]] for i in starts]))
        assert loss == pytest.approx(plain_losses(model, windows).mean().item(), rel=1e-5)
    assert abs(losses[0] - losses[1]) > 0.02
    assert retrieval["EN1-EN2"] < 0.2  # they have nothing in common


def test_a_language_that_did_not_occur_has_no_loss():
    assert train.show(TWO, [3.14159, None]) == "EN1 3.142  EN2   -  "


# ------------------------------------------------------------------------------------------------
# Bad input: one clear line, exit code 2, nothing written

BAD_LANGUAGES = [
    ("--rato=0.9", "did you mean --ratio?"),
    ("--ratio=1.5", "between 0 and 1"),
    ("--ratio=-0.1", "between 0 and 1"),
    ("--ratio=nan", "between 0 and 1"),
    ("--ratio=half", "expected a number"),
    ("--ratio=0.5,0.6", "sum to 1.1"),
    ("--ratio=0.5,0.5 --languages=3", "names 2 shares"),
    ("--ratio=0.9 --languages=1", "--languages=1"),
    ("--languages=0", "expected 1"),
    ("--languages=two", "invalid int"),
    ("--schedule=first,second", "--schedule=first,second: expected a number"),
    ("--schedule=0.9,2", "between 0 and 1"),
    ("--schedule=0.9,0.1 --ratio=0.5", "leave --ratio out"),
    ("--cloned=1.5", "no fraction"),
    ("--clone=rotate", "invalid choice: 'rotate'"),
]

BAD_SETTINGS = [
    ("--steps=0", "more than 0"),
    ("--batch_size=-1", "more than 0"),
    ("--micro_batch=0", "more than 0"),
    ("--lr=nan", "more than 0"),
    ("--lr=inf", "more than 0"),
    ("--seed=-1", "expected 0 to 2**63 - 1"),
    ("--seed=18446744073709551616", "expected 0 to 2**63 - 1"),
    ("--anchor_seed=-1", "expected 0 or more"),
    ("--d_model=65", "not a multiple"),
    ("--size=huge", "invalid choice"),
    ("--tied=maybe", "neither true nor false"),
    ("--device=tpu", "expected cpu"),
    ("--dtype=int8", "invalid choice"),
]

BAD_TEXT = [
    ("--corpus=nowhere", "neither a file"),
    ("--corpus=empty.txt", "is empty"),
    ("--corpus=tiny.txt --vocab_size=257", "--context=128 needs 129 tokens"),
    ("--corpus=word.txt --vocab_size=257", "too small to be split"),
    ("--corpus=http://127.0.0.1:9/x.zip", "need no network"),
    ("--corpus=books --vocab_size=256", "make 257"),
    ("--corpus=books --vocab_size=9999", "larger than the corpus supports"),
    ("--corpus=books --vocab_size=300 --context=1000000", "--context=1000000 needs"),
    ("--corpus=books --tokenizer=gpt2 --vocab_size=300", "a vocabulary of its own"),
]

BAD_RUNS = [
    ("--run=three", "runs/three exists: add --resume"),
    ("--run=none --resume", "is no run with a config.json"),
    ("--resume", "--resume goes with --run=NAME"),
    ("--run=three --resume --lr=0.5", "another configuration: lr=0.01"),
    ("--run=three --resume --clone=permute", "another configuration: clone=shift"),
    ("--run=truncated --resume", "not a whole checkpoint"),
    ("--run=foreign --resume", "not a whole checkpoint"),
    ("--run=garbage --resume", "not a whole checkpoint"),
    ("--run=other --resume", "checkpoint of another configuration than config.json: n_layer"),
]


@pytest.fixture
def refused(trained, monkeypatch, capsys):
    """refused(options) -> what train.py says to them; it must leave runs/ as it was."""
    work, _, _ = trained
    monkeypatch.chdir(work)

    def refused(options):
        before = listing(work / "runs")
        error = fails(train.main, options.split(), monkeypatch, capsys)
        assert listing(work / "runs") == before
        return error

    return refused


@pytest.mark.parametrize("options, expected", BAD_LANGUAGES + BAD_SETTINGS)
def test_options_that_mean_nothing(refused, options, expected):
    assert expected in refused("--corpus=books --vocab_size=300 " + options)


@pytest.mark.parametrize("name", ["../outside", "a/b", ".hidden", "", "a b"])
def test_a_name_that_no_folder_may_have(refused, monkeypatch, capsys, name):
    # not through refused(), because one has a space in it
    error = fails(train.main, [f"--run={name}"], monkeypatch, capsys)
    assert "plain name" in error


@pytest.mark.parametrize("options, expected", BAD_TEXT)
def test_a_text_that_cannot_be_trained_on(refused, trained, options, expected):
    work, _, _ = trained
    (work / "empty.txt").write_text("")
    (work / "tiny.txt").write_text("A few words are not a corpus.\n" * 20)
    (work / "word.txt").write_text("w")
    assert expected in refused(options)


@pytest.mark.parametrize("options, expected", BAD_RUNS)
def test_a_run_that_cannot_go_on(refused, trained, options, expected):
    work, folder, _ = trained
    config, model = (folder / "config.json").read_bytes(), (folder / "model.pt").read_bytes()
    for name in ("truncated", "foreign", "garbage", "other"):
        (work / "runs" / name).mkdir(exist_ok=True)
        (work / "runs" / name / "config.json").write_bytes(config)

    (work / "runs/truncated/model.pt").write_bytes(model[:len(model) // 2])
    (work / "runs/garbage/model.pt").write_bytes(b"not a checkpoint")
    torch.save({"weights": torch.ones(3)}, work / "runs/foreign/model.pt")
    state = checkpoint(folder)
    state["config"]["n_layer"] = 7
    torch.save(state, work / "runs/other/model.pt")
    assert expected in refused(options)


# ------------------------------------------------------------------------------------------------
# --help

UNDER_HEADINGS = {
    "languages": "ratio languages cloned clone anchor_seed schedule vocabulary",
    "text": "corpus parallel vocab_size tokenizer",
    "model": "size arch heads n_layer n_head d_model context tied bias embedding_scale "
             "embedding_std",
    "optimisation": "steps batch_size optimizer lr seed",
    "this machine": "device dtype micro_batch compile",
    "this run": "run resume",
}


def test_help_explains_every_option_under_a_heading():
    out = finish(script(Path("."), "train.py", "--help"))
    assert out.count("default") >= 20

    # cut it at its headings: ["usage ...", "options", "...", "languages", "...", ...]
    parts = re.split(r"^([a-z ]+):$", out, flags=re.M)
    assert parts[1::2] == ["options", *UNDER_HEADINGS]
    for heading, section in zip(parts[3::2], parts[4::2]):
        options = re.findall(r"^  --(\w+)", section, flags=re.M)
        assert options == UNDER_HEADINGS[heading].split()


def test_muons_updates_are_as_large_as_adams():
    torch.manual_seed(0)
    shape = dict(vocab_size=20, context=8, n_layer=1, n_head=2, d_head=32, d_model=64, tied=False,
                 embedding_std=0.02, bias=True, embedding_scale=True, arch="decoder",
                 heads="shared")
    model = GPT(shape)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    train.update(train.make_optimizers(model, SimpleNamespace(optimizer="muon", lr=0.01)), 0.01)
    for name, p in model.named_parameters():
        if name.startswith("blocks") and p.dim() == 2:
            size = (p - before[name]).square().mean().sqrt().item()
            assert size == pytest.approx(0.2 * 0.01, rel=0.25), name


def test_the_loss_of_a_long_text_is_that_of_all_its_windows():
    torch.manual_seed(0)
    model = GPT(dict(vocab_size=60, context=16, n_layer=1, n_head=2, d_head=8, d_model=16,
                     tied=True, embedding_std=1, bias=True, embedding_scale=True,
                     arch="decoder", heads="shared"))
    # the second half of the text is another one
    text = np.concatenate([np.random.default_rng(0).integers(0, 5, 6000),
                           np.random.default_rng(1).integers(5, 29, 6000)])
    losses, _ = train.evaluate(model, [text] * 2, clone.clone_table(np.ones(30), 2),
                               ["EN1", "EN2"], 16)
    windows = torch.from_numpy(clone.spread(text, 16, train.EVAL_TOKENS // 16))
    assert len(windows) > 2 * 4096 // 16
    with torch.no_grad():
        assert losses[0] == pytest.approx(model(windows).mean().item(), rel=1e-5)
