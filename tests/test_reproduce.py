import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.figure import Figure

import align
import report
import reproduce
import train
from conftest import ROOT, fails, write_corpus
from model import SIZES

LAW = lambda n: 1 / (0.06 - 0.9 * n**-0.25)  # planted: the perplexity of a monolingual model on n tokens


def plant(out, scale, names, seeds, teff=lambda name, language: 1.0, jitter=0.0):
    """JSON of runs whose perplexity is what a monolingual model reaches on teff times their tokens, with a jitter that differs by seed."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = SIZES[scale]
    for name in names:
        options = reproduce.grid(scale)[name]
        n = options.get("languages", 2)
        main = float(options.get("ratio", 1 / n))
        total = options.get("steps", sizes["steps"]) * options.get("batch_size", sizes["batch_size"]) * sizes["context"]
        for seed in range(seeds):
            languages = []
            for l, share in enumerate([main] + [(1 - main) / (n - 1)] * (n - 1) if n > 1 else [1.0]):
                ppl = LAW(total * share * teff(name, l)) * (1 + jitter * (seed - (seeds - 1) / 2))
                languages.append({"name": f"EN{l + 1}", "tokens_seen": total * share, "loss": float(np.log(ppl)), "ppl": ppl, "ppl_se": 0.1, "bits_per_byte": 1.0})
            value = lambda v: {"value": v + 0.02 * seed, "floor": 0.0, "above": True}
            kinds = ["norm1.weight", "norm1.bias", "q", "k", "v", "proj", "norm2.weight", "norm2.bias", "up", "down"]
            bins = [{"tokens_per_million": 10.0**i, "cosine": 0.1 * i, "floor": 0.0} for i in range(4)]
            result = {"command": "planted", "config": sizes | {"languages": n},
                      "eval": {"languages": languages, "code_switch": {"EN1->EN2": {"within": {"gap": 0.25}}}},
                      "align": {"layers": [{m: value(0.5) for m in align.MEASURES} for _ in range(sizes["n_layer"] + 1)],
                                "gradients": {f"blocks.{i}.{k}": {"same": 0.3, "other": 0.2, "within": 0.8} for i in range(sizes["n_layer"]) for k in kinds},
                                "embeddings": {side: value(0.2) | {"by_frequency": bins} for side in ("input", "output")}}}
            result["config"] |= {k: str(v) if k == "ratio" else v for k, v in options.items()}
            (out / f"{name}.seed{seed}.json").write_text(json.dumps(result))


def rows(text, run):
    """The cells of a run's row in a Markdown table, and of the row below it."""
    lines = text.splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith(f"| {run} |"))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[i:i + 2]]


@pytest.mark.parametrize("scale", list(SIZES))
def test_every_run_of_the_grid_is_one_that_train_takes(scale, monkeypatch):
    for name, options in reproduce.grid(scale).items():
        monkeypatch.setattr(sys, "argv", ["train.py", f"--size={scale}", *(f"--{k}={v}" for k, v in options.items())])
        config = train.make_config(*train.options().parse())
        assert (config["steps"] >= 1500 or config["batch_size"] == 4) and reproduce.cost(scale, options) > 0
        if name == "mono5":  # smaller batches, as many tokens
            assert config["steps"] * config["batch_size"] == pytest.approx(SIZES[scale]["steps"] * SIZES[scale]["batch_size"] / 20, rel=0.01)
    needed = {name for table in report.tables(scale).values() for name in table.runs + table.needs}
    assert needed == reproduce.grid(scale).keys()  # nothing is run for no table, and no table asks for what is not run


def test_the_cost_of_a_run_follows_its_tokens_and_its_vocabulary():
    cost = lambda **options: reproduce.cost("nano", options)
    assert cost(languages=1, steps=600) == 2 * cost(languages=1, steps=300)
    assert cost(languages=1) < cost(ratio=0.9) < cost(languages=10) and cost(ratio=0.9) < cost(ratio=0.9, d_model=128, n_head=4)


def test_the_time_left_counts_what_is_begun_but_not_finished():
    assert reproduce.time_left(total=8, finished=1, spent=60, jobs=1, elapsed=60) == 7 * 60
    assert reproduce.time_left(total=8, finished=1, spent=60, jobs=2, elapsed=60) == 6 * 60 / 2  # the other job has done as much as this one
    assert reproduce.time_left(total=2, finished=2, spent=120, jobs=2, elapsed=70) == 0


def test_planted_efficiency_comes_out_in_the_tables(tmp_path):
    out, grid = tmp_path / "results", reproduce.grid("nano")
    plant(out, "nano", grid, seeds=3, teff=lambda name, language: 2.0 if name == "ratio0.9" and language else 0.9 if name == "ratio0.5" else 1.0, jitter=1e-5)
    found = {name: list(by_seed.values()) for name, by_seed in reproduce.read(out, "nano").items()}
    text = report.perplexities(found, ["ratio0.9", "ratio0.5", "mono100"])
    one, two = rows(text, "ratio0.9")
    assert float(one[5].split()[0]) == pytest.approx(1, abs=0.01) and float(two[5].split()[0]) == pytest.approx(2, abs=0.02)
    assert float(one[4].split()[0]) == pytest.approx(1, abs=0.05) and float(two[4].split()[0]) == pytest.approx(2, abs=0.1)  # between few points
    assert (one[6], one[7], two[6], two[7]) == ("22.46", "1", "32.81", "2.08") and one[8] == "0.52 ± 0.02" and one[-1] == "3" and "±" in one[3]
    assert [float(row[5].split()[0]) for row in rows(text, "ratio0.5")] == pytest.approx([0.9, 0.9], abs=0.01)
    assert rows(report.costs(found, ["ratio0.9"]), "ratio0.9")[0][4].startswith(("+0.", "-0."))  # TEff 1: no cost, but for the curve between two points
    costly = float(rows(report.costs(found, ["ratio0.5"]), "ratio0.5")[0][4].split("%")[0])
    n = found["ratio0.5"][0]["eval"]["languages"][0]["tokens_seen"]
    assert costly == pytest.approx(100 * (LAW(0.9 * n) / LAW(n) - 1), abs=0.5)
    assert report.stat([1.0, 2.0, 3.0]) == "2.00 ± 1.00" and report.stat([1.5]) == "1.50" and report.stat([1.0, None]) == "-" and report.stat([9.04e10]) == "9.0e+10"


def test_a_point_is_the_mean_of_all_seeds_or_not_there():
    ax = Figure().subplots()
    report.points(ax, [1, 2, 3, 4], [[1.0, 3.0], [5.0, None], [], [7.0]], fmt="o")
    line, _, (bars,) = ax.containers[0]
    assert line.get_xydata().tolist() == [[1, 2], [4, 7]]
    one, alone = bars.get_segments()
    assert one[:, 1] == pytest.approx([2 - 2**0.5, 2 + 2**0.5]) and not len(alone)


def test_a_table_shows_what_is_there_and_names_what_is_not(tmp_path):
    out = tmp_path / "results"
    plant(out, "nano", ["ratio0.9", "ratio0.5"], seeds=1)
    report.write_report(out, "nano", reproduce.read(out, "nano"), None)
    text = (out / "README.md").read_text()
    assert "| 6 | 0.50 (0.00)" in text and (out / "alignment.png").exists() and not (out / "ratio.png").exists()
    assert text.count("Not there yet") == len(report.tables("nano")) - 1 and "Not there yet: mono5, mono10, mono20, mono50, mono100, mono200. " in text
    plant(out, "nano", ["mono50", "mono100", "ratio0.99"], seeds=1)
    report.write_report(out, "nano", reproduce.read(out, "nano"), None)  # two monolingual runs make no law, so no table that needs one
    text = (out / "README.md").read_text()
    assert text.count("| ratio0.99 |") == 1 and (out / "embeddings.png").exists() and not (out / "ratio.png").exists()
    plant(out, "nano", [f"mono{p}" for p in report.PERCENT] + ["anchors50-ratio0.5", "ratio0.99"], seeds=1)
    report.write_report(out, "nano", reproduce.read(out, "nano"), None)
    text = (out / "README.md").read_text()
    anchors = text[text.index("## Anchor points"):text.index("## Model size")]
    assert "| anchors50-ratio0.5 | EN1 |" in anchors and "anchors50-ratio0.5," not in anchors and "Not there yet: anchors0-ratio0.9, anchors0-ratio0.5, " in anchors
    assert text.count("| ratio0.99 |") == 3 and "| ratio0.9 | 0.200 | 0.000 |" in text  # the sweep, the cost and the embeddings
    assert all((out / f"{name}.png").exists() for name in ("ratio", "anchors", "embeddings")) and not (out / "size.png").exists()
    plant(out, "nano", reproduce.grid("nano"), seeds=2)
    report.write_report(out, "nano", reproduce.read(out, "nano"), "ratio0.9")
    text = (out / "README.md").read_text()
    assert "Not there yet" not in text and "0.51 ± 0.01" in text
    assert all((out / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name, table in report.tables("nano").items() if table.draw)
    assert all(f"]({name}.png)" in text for name, table in report.tables("nano").items() if table.draw)


def test_the_order_leaves_the_most_when_it_is_stopped_early(tmp_path):
    names = list(reproduce.grid("nano"))
    todo = reproduce.plan("nano", names, 2, {})
    main = len(report.tables("nano")["main"].runs)
    assert len(todo) == 2 * len(names) == len(set(todo)) and {n for n, _ in todo[:2 * main]} == set(report.tables("nano")["main"].runs)
    assert [seed for _, seed in todo] == sorted([0, 1] * main) + sorted([0, 1] * (len(names) - main))
    plant(tmp_path, "nano", ["ratio0.9", "mono100", "ten-hub"], seeds=2)
    changed = tmp_path / "mono100.seed0.json"
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"config": json.loads(changed.read_text())["config"] | {"lr": 1.0}}))
    left = reproduce.plan("nano", names, 2, reproduce.read(tmp_path, "nano"))
    assert set(todo) - set(left) == {("ratio0.9", 0), ("ratio0.9", 1), ("mono100", 1), ("ten-hub", 0), ("ten-hub", 1)}  # not the one of another configuration


@pytest.fixture
def tiny(tmp_path):
    """A working folder with a copy of the scripts in which nano is tiny, and a corpus."""
    for path in [*ROOT.glob("*.py"), ROOT / "requirements.txt"]:
        shutil.copy(path, tmp_path)
    source = (tmp_path / "model.py").read_text()
    new = '    "nano": dict(n_layer=1, n_head=2, d_head=8, d_model=16, context=16, tied=False, embedding_std=0.02, vocab_size=300, cloned=1.0, batch_size=8, steps=400, lr=3e-3, optimizer="adam"),'
    (tmp_path / "model.py").write_text(re.sub(r'    "nano": dict.*', new, source))
    write_corpus(tmp_path / "books")
    return tmp_path


def start(folder, *options):
    return subprocess.Popen([sys.executable, "reproduce.py", "--corpus=books", "--seeds=1", *options], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_an_interrupted_grid_goes_on_and_a_failed_run_does_not_stop_the_others(tiny):
    first = start(tiny, "--tables=alignment")
    log = tiny / "runs/nano-books-ratio0.9-seed0/log.jsonl"
    deadline = time.time() + 120
    while not (log.exists() and log.read_text().count("\n") > 5) and time.time() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    out = first.communicate(timeout=120)[0]
    assert first.returncode == 130 and "goes on where" in out, out
    assert "interrupted and saved" in (tiny / "runs/nano-books-ratio0.9-seed0.txt").read_text()
    assert not list(tiny.glob("results/nano/books/*.json"))

    bad = tiny / "runs/nano-books-ratio0.5-seed0"
    bad.mkdir()
    (bad / "something.txt").write_text("in the way")  # a folder that train.py will not overwrite
    second = start(tiny, "--tables=alignment")
    out = second.communicate(timeout=300)[0]
    assert second.returncode == 1 and "FAILED ratio0.5 seed 0: train.py" in out and "exists: add --resume" in out, out
    for command in ("train.py --run={} --resume", "eval.py runs/{}", "align.py runs/{}"):
        assert f"  python {command.format('nano-books-ratio0.9-seed0')}\n" in out  # every call, as a person would make it
    done = tiny / "results/nano/books/ratio0.9.seed0.json"
    result = json.loads(done.read_text())
    assert result["eval"]["languages"][0]["ppl"] < result["eval"]["languages"][1]["ppl"] and len(result["align"]["layers"]) == 2
    assert [line["step"] for line in result["log"]] == [40 * i for i in range(1, 11)]

    shutil.rmtree(bad)
    before = done.stat().st_mtime_ns
    third = start(tiny, "--tables=alignment", "--jobs=2")
    out = third.communicate(timeout=300)[0]
    assert third.returncode == 0 and "1 run to do" in out and "ratio0.9-seed0" not in out, out
    assert done.stat().st_mtime_ns == before and "Not there yet: mono5, " in (tiny / "results/nano/books/README.md").read_text()
    listed = start(tiny, "--list").communicate(timeout=120)[0]
    assert "2 of 2 runs finished\n" in listed and "2 of 8 runs finished, " in listed


@pytest.mark.parametrize("options, expected", [
    (["--tables=main,nothing"], "there is no table nothing; expected some of main, alignment"),
    (["--seeds=0"], "expected 1 or more"),
    (["--jobs=0"], "expected 1 or more"),
    (["--scale=huge"], "invalid choice"),
])
def test_bad_input_is_one_line(options, expected, here, monkeypatch, capsys):
    assert expected in fails(reproduce.main, options, monkeypatch, capsys)
    assert not list(here.iterdir())
