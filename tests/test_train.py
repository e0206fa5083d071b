import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, fails, listing, script, train_here

import runs
import train

TINY = ["--corpus=books", "--vocab_size=300", "--n_layer=2", "--n_head=2", "--d_model=16", "--context=16", "--batch_size=8", "--optimizer=adam", "--tied=true", "--embedding_std=0.02"]


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out


def history(folder):
    """log.jsonl, but for the speed."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in lines]


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def wait_for(condition, process):
    deadline = time.time() + 120
    while not condition() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)


# --- a whole run, as a user sees it

@pytest.fixture(scope="module")
def trained(prepared):
    """(working folder, the run's folder, what it printed): a short run of three languages on the small corpus."""
    out = finish(script(prepared, "train.py", *TINY, "--ratio=0.6,0.3,0.1", "--steps=300", "--lr=0.01", "--run=three"))
    return prepared, prepared / "runs/three", out


def test_a_run_learns_and_says_what_it_learned(trained):
    _, folder, out = trained
    val = runs.read_log(folder, "val_loss")
    assert val[-1]["step"] == 300 and val[-1]["tokens"] == 300 * 8 * 16 == sum(val[-1]["tokens_seen"])
    first, last = val[0]["val_loss"], val[-1]["val_loss"]
    assert last[0] < 0.75 * first[0] and last[0] < 0.5 * math.log(900)
    assert last[0] < last[1] < last[2]  # the more of a language, the better
    assert f"{math.exp(last[2]):,.2f}" in out and "EN3" in out and "tokens/s" in out and "Next:" in out
    losses = runs.read_log(folder, "loss")
    assert all(len(line["loss"]) == 3 for line in losses) and losses[-1]["loss"][0] == pytest.approx(last[0], abs=0.3)
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert set(val[-1]["retrieval@1"]) == {"EN1-EN2", "EN1-EN3", "EN2-EN3"}


def test_shares_are_those_asked_for(trained):
    seen = runs.read_log(trained[1], "val_loss")[-1]["tokens_seen"]
    for tokens, share in zip(seen, (0.6, 0.3, 0.1)):
        assert abs(tokens / sum(seen) - share) < 0.06


def test_monolingual(prepared):
    train_here(prepared, *TINY, "--languages=1", "--steps=10", "--run=mono")
    assert runs.read_log(prepared / "runs/mono", "val_loss")[-1]["retrieval@1"] == {}


def test_a_run_without_a_name_gets_a_new_one_each_time(prepared):
    before = set(os.listdir(prepared / "runs")) if (prepared / "runs").exists() else set()
    for _ in range(2):
        train_here(prepared, *TINY, "--steps=2")
    assert len(set(os.listdir(prepared / "runs")) - before) == 2


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_optimisers_and_gradient_accumulation(prepared, optimizer):
    losses = []
    for micro in ("8", "3"):
        name = f"{optimizer}-{micro}"
        train_here(prepared, *TINY, "--steps=20", "--dtype=float32", f"--optimizer={optimizer}", f"--micro_batch={micro}", f"--run={name}")
        losses.append(runs.read_log(prepared / "runs" / name, "val_loss")[-1]["val_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=0.02 if optimizer == "muon" else 1e-4)  # muon orthogonalises in bf16
    assert losses[0][0] < math.log(600) - 0.2


# --- killed, interrupted, resumed

LONG = [*TINY, "--ratio=0.9", "--steps=200", "--lr=0.01", "--seed=3"]


@pytest.fixture(scope="module")
def uninterrupted(prepared):
    finish(script(prepared, "train.py", *LONG, "--run=whole"))
    return prepared / "runs/whole"


def test_kill_9_at_any_instant_and_resume(prepared, uninterrupted):
    folder, kills = prepared / "runs/killed", 0
    for extra in (0, 0.013, 0.031, 0.002, 0.047, 0.023):  # seconds after a checkpoint began to be written, or was
        process = script(prepared, "train.py", *LONG, "--run=killed", *(["--resume"] if (folder / "config.json").exists() else []))
        old = (folder / "model.pt").stat().st_mtime_ns if (folder / "model.pt").exists() else 0
        fresh = lambda: list(folder.glob(".model.pt*")) or (folder / "model.pt").exists() and (folder / "model.pt").stat().st_mtime_ns != old
        wait_for(fresh, process)
        time.sleep(extra)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if (folder / "model.pt").exists():
            torch.load(folder / "model.pt", weights_only=True)  # whole at every instant
    assert kills >= 3
    finish(script(prepared, "train.py", "--run=killed", "--resume"))
    assert history(folder) == history(uninterrupted)  # bit for bit
    assert all(torch.equal(a, b) for a, b in zip(weights(folder).values(), weights(uninterrupted).values()))
    assert not list(folder.glob(".*"))


def test_ctrl_c_saves_and_says_how_to_resume(prepared, uninterrupted):
    folder = prepared / "runs/interrupted"
    process = script(prepared, "train.py", *LONG, "--run=interrupted")
    wait_for(lambda: (folder / "log.jsonl").exists() and (folder / "log.jsonl").stat().st_size > 300, process)
    process.send_signal(signal.SIGINT)
    out = finish(process, code=130)
    assert "python train.py --run=interrupted --resume" in out
    assert 0 < torch.load(folder / "model.pt", weights_only=True)["step"] < 200
    finish(script(prepared, "train.py", "--run=interrupted", "--resume"))
    assert history(folder) == history(uninterrupted)


def test_one_process_at_a_time_trains_a_run(prepared, uninterrupted):
    first = script(prepared, "train.py", *LONG, "--run=held")
    wait_for((prepared / "runs/held/log.jsonl").exists, first)
    first.send_signal(signal.SIGSTOP)  # so that it is there for certain
    second = script(prepared, "train.py", "--run=held", "--resume")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2 and "is being trained by another process" in err and err.count("\n") == 1
    first.send_signal(signal.SIGCONT)
    finish(first)
    assert history(prepared / "runs/held") == history(uninterrupted)


def test_a_finished_run_resumed_stays_as_it_is(prepared, uninterrupted):
    before = history(uninterrupted)
    out = finish(script(prepared, "train.py", "--run=whole", "--resume"))
    assert history(uninterrupted) == before and "perplexity" in out


def test_two_processes_learn_what_one_does(prepared):
    options = [*TINY, "--ratio=0.8", "--steps=30", "--dtype=float32", "--lr=0.01"]
    train_here(prepared, *options, "--run=one")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--", str(ROOT / "train.py"), *options, "--run=two"]
    result = subprocess.run(command, cwd=prepared, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    one, two = (history(prepared / "runs" / name) for name in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a["step"] == b["step"]
        for key in {"loss", "val_loss"} & a.keys():
            assert [v is None for v in a[key]] == [v is None for v in b[key]]
            assert [v for v in a[key] if v] == pytest.approx([v for v in b[key] if v], abs=2e-4)
        assert a.get("tokens_seen") == b.get("tokens_seen")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(prepared):
    folder = prepared / "runs/nan"
    process = script(prepared, "train.py", *TINY, "--steps=400", "--dtype=float32", "--run=nan")
    wait_for((folder / "model.pt").exists, process)
    process.kill()
    process.communicate()
    state = torch.load(folder / "model.pt", weights_only=True)
    broken = {k: v.clone() for k, v in state["model"].items()}
    broken["position"][3] = math.nan
    torch.save({**state, "model": broken}, folder / "model.pt")
    stamp = (folder / "model.pt").read_bytes()
    process = script(prepared, "train.py", "--run=nan", "--resume")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "not finite" in err and "checkpoint" in err and "Traceback" not in err
    assert (folder / "model.pt").read_bytes() == stamp


def test_a_learning_rate_far_too_high_ends_in_a_message(prepared):
    process = script(prepared, "train.py", *TINY, "--steps=100", "--lr=1e30", "--run=wild")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "lower --lr" in err and "Traceback" not in err
    if (prepared / "runs/wild/model.pt").exists():
        assert all(p.isfinite().all() for p in weights(prepared / "runs/wild").values())


def test_a_full_disk(prepared):
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may be larger
    process = script(prepared, "train.py", *TINY, "--steps=20", "--run=full", preexec_fn=small)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "model.pt" in err and err.count("\n") == 1
    assert {p.name for p in (prepared / "runs/full").iterdir()} == {"config.json", "log.jsonl"}


# --- the parts

def test_learning_rate_is_the_papers():
    config = {"lr": 6e-4, "steps": 18265}
    rates = [train.learning_rate(step, config) for step in range(18265)]
    assert rates[199] == max(rates) == 6e-4 and rates[99] == pytest.approx(3e-4)
    assert rates[-1] == pytest.approx(6e-6, rel=1e-3) and rates[200:] == sorted(rates[200:], reverse=True)
    assert rates[(18265 + 200) // 2] == pytest.approx((6e-4 + 6e-6) / 2, rel=1e-3)


def test_evaluation_scores_every_language_on_the_same_text(prepared):
    import numpy as np

    import clone
    from model import GPT
    torch.manual_seed(0)
    model = GPT(dict(vocab_size=60, context=16, n_layer=2, n_head=2, d_head=8, d_model=16, tied=True, embedding_std=0.02))
    with torch.no_grad():
        model.embedding[30:] = model.embedding[:30]
    text = np.random.default_rng(0).integers(0, 29, 400).astype(np.uint16)
    losses, retrieval = train.evaluate(model, text, clone.clone_table(30, 2, 29), 16, torch.device("cpu"))
    assert losses[0] == losses[1] and retrieval["EN1-EN2"] > 0.95  # copies: aligned, but for the same token twice in the first position


# --- bad input: one clear line, exit code 2, nothing written

@pytest.mark.parametrize("options, expected", [
    (["--rato=0.9"], "did you mean --ratio?"),
    (["--ratio=1.5"], "between 0 and 1"),
    (["--ratio=-0.1"], "between 0 and 1"),
    (["--ratio=nan"], "between 0 and 1"),
    (["--ratio=0.5,0.6"], "sum to 1.1"),
    (["--ratio=0.5,0.5", "--languages=3"], "names 2 shares"),
    (["--ratio=half"], "expected a number"),
    (["--ratio=0.9", "--languages=1"], "--languages=1"),
    (["--languages=0"], "expected 1"),
    (["--languages=two"], "invalid int"),
    (["--schedule=first,second"], "--schedule=first,second: expected a number"),
    (["--schedule=0.9,2"], "between 0 and 1"),
    (["--schedule=0.9,0.1", "--ratio=0.5"], "leave --ratio out"),
    (["--cloned=1.5"], "no fraction"),
    (["--corpus=nowhere"], "neither a file"),
    (["--corpus=empty.txt"], "is empty"),
    (["--corpus=tiny.txt", "--vocab_size=257"], "--context=128 needs 257 tokens"),
    (["--corpus=word.txt", "--vocab_size=257"], "too small to be split"),
    (["--corpus=http://127.0.0.1:9/x.zip"], "need no network"),
    (["--corpus=books", "--vocab_size=256"], "make 257"),
    (["--corpus=books", "--vocab_size=9999"], "larger than the corpus supports"),
    (["--corpus=books", "--vocab_size=300", "--context=1000000"], "--context=1000000 needs"),
    (["--corpus=books", "--tokenizer=gpt2", "--vocab_size=300"], "a vocabulary of its own"),
    (["--steps=0"], "more than 0"),
    (["--batch_size=-1"], "more than 0"),
    (["--lr=nan"], "more than 0"),
    (["--seed=-1"], "0 or more"),
    (["--d_model=65"], "not a multiple"),
    (["--size=huge"], "invalid choice"),
    (["--tied=maybe"], "neither true nor false"),
    (["--device=tpu"], "expected cpu"),
    (["--dtype=int8"], "invalid choice"),
    (["--run=../outside"], "plain name"),
    (["--run=three"], "runs/three exists: add --resume"),
    (["--run=none", "--resume"], "is no run with a config.json"),
    (["--resume"], "--resume goes with --run=NAME"),
    (["--run=three", "--resume", "--lr=0.5"], "another configuration: lr=0.01"),
    (["--run=truncated", "--resume"], "not a whole checkpoint"),
    (["--run=foreign", "--resume"], "not a whole checkpoint"),
    (["--run=garbage", "--resume"], "not a whole checkpoint"),
    (["--run=other", "--resume"], "checkpoint of another configuration than config.json: n_layer"),
])
def test_bad_input_is_one_line_and_writes_nothing(trained, options, expected, monkeypatch, capsys):
    here, folder, _ = trained
    monkeypatch.chdir(here)
    (here / "empty.txt").write_text("")
    (here / "tiny.txt").write_text("A few words are not a corpus.\n" * 20)
    (here / "word.txt").write_text("w")
    config, model = (folder / "config.json").read_bytes(), (folder / "model.pt").read_bytes()
    state = torch.load(folder / "model.pt", weights_only=True)
    for name in ("truncated", "foreign", "garbage", "other"):
        (here / "runs" / name).mkdir(exist_ok=True)
        (here / "runs" / name / "config.json").write_bytes(config)
    (here / "runs/truncated/model.pt").write_bytes(model[:len(model) // 2])
    (here / "runs/garbage/model.pt").write_bytes(b"not a checkpoint")
    torch.save({"weights": torch.ones(3)}, here / "runs/foreign/model.pt")
    torch.save({**state, "config": state["config"] | {"n_layer": 7}}, here / "runs/other/model.pt")
    if not any(o.startswith(("--corpus", "--run", "--resume")) for o in options):
        options = ["--corpus=books", "--vocab_size=300", *options]
    before = listing(here / "runs")
    assert expected in fails(train.main, options, monkeypatch, capsys)
    assert listing(here / "runs") == before


def test_help_explains_every_option():
    out = finish(script(Path("."), "train.py", "--help"))
    for option in "ratio languages cloned schedule corpus vocab_size tokenizer size n_layer n_head d_model context tied embedding_std steps batch_size lr optimizer seed device dtype run resume".split():
        assert f"--{option} " in out or f"--{option}\n" in out, option
    assert out.count("default") >= 20
