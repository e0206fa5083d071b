import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ONE_THREAD, ROOT, fails, write_corpus
from test_report import plant

import train
from model import SIZES
from paper import numbers, real, report, reproduce

# ------------------------------------------------------------------------------------------------
# The grid

@pytest.mark.parametrize("scale", list(SIZES))
def test_every_run_of_the_grid_is_one_that_train_takes(scale, monkeypatch):
    size = SIZES[scale]
    assert scale in numbers.BESIDE
    for name, options in reproduce.grid(scale).items():
        given = [f"--{key}={value}" for key, value in options.items()]
        monkeypatch.setattr(sys, "argv", ["train.py", f"--size={scale}", *given])
        config = train.make_config(*train.options().parse())
        if config.languages == 1:
            # enough steps, but for those with the batches of the bilingual runs
            if name.endswith("-plain"):
                assert config.batch_size == size["batch_size"]
            else:
                assert config.steps >= 1500
        assert reproduce.cost(scale, options) > 0
        if name == "mono5":  # smaller batches, as many tokens
            wanted = size["steps"] * size["batch_size"] / 20
            assert config.steps * config.batch_size == pytest.approx(wanted, rel=0.01)

    # nothing is run for no table, and no table asks for what is not run
    needed = set()
    for table in report.tables(scale).values():
        needed.update(table.runs + table.needs)
    assert needed == reproduce.grid(scale).keys()


def test_the_cost_of_a_run_follows_its_tokens_and_its_vocabulary():
    def cost(**options):
        return reproduce.cost("nano", options)

    assert cost(languages=1, steps=600) == 2 * cost(languages=1, steps=300)
    assert cost(languages=1) < cost(ratio=0.9) < cost(languages=10)
    assert cost(ratio=0.9) < cost(ratio=0.9, d_model=512, n_head=16)


def test_the_time_left_counts_what_is_begun_but_not_finished():
    one_job = reproduce.time_left(total=8, finished=1, spent=60, jobs=1, elapsed=60)
    assert one_job == 7 * 60
    # the other job has done as much as this one
    two_jobs = reproduce.time_left(total=8, finished=1, spent=60, jobs=2, elapsed=60)
    assert two_jobs == 6 * 60 / 2
    assert reproduce.time_left(total=2, finished=2, spent=120, jobs=2, elapsed=70) == 0


def test_the_order_leaves_the_most_when_it_is_stopped_early(tmp_path):
    names = list(reproduce.grid("nano"))
    main = report.tables("nano")["main"].runs
    todo = reproduce.plan(report.tables("nano"), names, 2, {})
    assert len(todo) == 2 * len(names) == len(set(todo))

    # the main table first, for all seeds; then the others, seed by seed
    first, n_rest = todo[:2 * len(main)], len(names) - len(main)
    assert {name for name, _ in first} == set(main)
    assert [seed for _, seed in todo] == (
        [0] * len(main) + [1] * len(main) + [0] * n_rest + [1] * n_rest)

    # what is finished is not repeated, but for the one of another configuration
    plant(tmp_path, "nano", ["ratio0.9", "mono100", "ten-hub"], seeds=2)
    changed = tmp_path / "mono100.seed0.json"
    result = json.loads(changed.read_text())
    result["config"]["lr"] = 1.0
    changed.write_text(json.dumps(result))
    left = reproduce.plan(report.tables("nano"), names, 2,
                          reproduce.read(tmp_path, "nano", "float32"))
    assert set(todo) - set(left) == {
        ("ratio0.9", 0), ("ratio0.9", 1), ("mono100", 1), ("ten-hub", 0), ("ten-hub", 1)}
    assert left == [run for run in todo if run in left]  # in the same order

    # nor does one in another type stand in for one in this, nor one of an older version
    assert reproduce.pick_dtype(tmp_path) == "float32"
    assert reproduce.read(tmp_path, "nano", "bfloat16") == {}
    for path in tmp_path.glob("*.json"):
        result = json.loads(path.read_text())
        result["config"]["version"] -= 1
        path.write_text(json.dumps(result))
    assert reproduce.read(tmp_path, "nano", "float32") == {}


def test_the_results_that_are_kept_in_the_repository_are_still_read():
    """Every JSON of a scale's corpus is of a run of the grid, with its token efficiency."""
    folders = [path for path in (ROOT / "paper/results").glob("*/*") if path.is_dir()]
    assert folders
    for out in folders:
        scale, options = out.parent.name, None  # of clones
        if re.fullmatch(r"\w+-\w+-[0-9a-f]{8}-[0-9a-f]{8}", out.name):  # eng-fra-HASH-HASH
            options = real.grid(scale, out.name.split("-")[:2], ["a", "b"], "c")
        found = reproduce.read(out, scale, reproduce.pick_dtype(out), options)
        files = {path.stem for path in out.glob("*.seed*.json")}
        read = {f"{name}.seed{seed}" for name, by_seed in found.items() for seed in by_seed}
        assert read == files
        for name, by_seed in found.items():
            for result in by_seed.values():
                layers = result.get("align", {"layers": []})["layers"]
                measure = "matched" if options else "retrieval"
                assert all(measure in layer for layer in layers), name


# ------------------------------------------------------------------------------------------------
# The command

TINY_NANO = """
SIZES["nano"] = SIZES["nano"] | dict(
    n_layer=1, n_head=2, d_head=8, d_model=16, context=16, tied=False, embedding_std=0.02,
    bias=True, embedding_scale=True,
    vocab_size=300, cloned=1.0, batch_size=8, steps=400, lr=3e-3, optimizer="adam",
)
"""

LITTLE_TEXT = {
    "train.py": {"EVAL_TOKENS": 2048},
    "eval.py": {"TEST_TOKENS": 8192, "SWITCH_TOKENS": 4096},
    "align.py": {"TOKENS": 8192, "SEQUENCES": 50},
}


@pytest.fixture
def tiny(tmp_path):
    """A working folder with a copy of the scripts in which nano is tiny, and a corpus."""
    for path in [*ROOT.glob("*.py"), ROOT / "requirements.txt"]:
        shutil.copy(path, tmp_path)
    for package in ("lib", "paper"):
        shutil.copytree(ROOT / package, tmp_path / package,
                        ignore=shutil.ignore_patterns("results", "__pycache__"))
    with open(tmp_path / "model.py", "a") as f:
        f.write(TINY_NANO)
    # and in which little text is measured
    for name, constants in LITTLE_TEXT.items():
        code = (tmp_path / name).read_text()
        for constant, value in constants.items():
            code, n = re.subn(rf"^{constant} = \d+", f"{constant} = {value}", code, flags=re.M)
            assert n == 1
        (tmp_path / name).write_text(code)
    write_corpus(tmp_path / "books")
    return tmp_path


def start(folder, *options):
    """python -m paper.reproduce, as a user would; returns the Popen."""
    command = [sys.executable, "-m", "paper.reproduce", "--corpus=books", "--seeds=1", *options]
    return subprocess.Popen(command, cwd=folder, text=True, env=ONE_THREAD,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_an_interrupted_grid_goes_on_and_a_failed_run_does_not_stop_the_others(tiny):
    # stopped in the middle of its first run
    first = start(tiny, "--tables=alignment")
    deadline = time.time() + 120
    while time.time() < deadline:
        logs = list(tiny.glob("runs/nano-books-*-ratio0.9-seed0/log.jsonl"))
        if logs and logs[0].read_text().count("\n") > 5:
            break
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    out = first.communicate(timeout=120)[0]
    assert first.returncode == 130 and "goes on where" in out, out
    run = logs[0].parent.name  # nano-books-HASH-ratio0.9-seed0, the hash that of the text
    text = run.removeprefix("nano-").removesuffix("-ratio0.9-seed0")
    results = tiny / "paper/results/nano" / text
    said = (tiny / f"runs/{run}.txt").read_text()
    assert "interrupted and saved" in said
    assert not list(results.glob("*.json"))

    # the same command goes on; the second run has a folder that train.py will not overwrite
    bad = tiny / "runs" / run.replace("0.9", "0.5")
    bad.mkdir()
    (bad / "something.txt").write_text("in the way")
    second = start(tiny, "--tables=alignment")
    out = second.communicate(timeout=300)[0]
    assert second.returncode == 1 and "FAILED ratio0.5 seed 0: train.py" in out, out
    assert "exists: add --resume" in out, out
    # every call, as a person would make it
    dtype = json.loads((tiny / f"runs/{run}/config.json").read_text())["dtype"]
    resume = (f"train.py --run={run} --resume --size=nano --corpus=books --ratio=0.9 "
              f"--dtype={dtype} --seed=0")
    for call in (resume, f"eval.py runs/{run}", f"align.py runs/{run}"):
        assert f"  python {call}\n" in out
    done = results / "ratio0.9.seed0.json"
    result = json.loads(done.read_text())
    one, two = result["eval"]["languages"]
    assert one["ppl"] < two["ppl"]
    assert len(result["align"]["layers"]) == 2
    assert [line["step"] for line in result["log"]] == [40 * i for i in range(1, 11)]
    assert result["command"] == (
        "python train.py --size=nano --corpus=books --ratio=0.9 "
        f"--dtype={result['config']['dtype']} --seed=0")
    assert result["config"]["corpus_sha256"].startswith(results.name.removeprefix("books-"))
    assert "threads" in result["machine"] and not result["machine"].startswith(("Linux", ","))

    # the failed one alone is done again
    shutil.rmtree(bad)
    before = done.stat().st_mtime_ns
    third = start(tiny, "--tables=alignment", "--jobs=2")
    out = third.communicate(timeout=300)[0]
    assert third.returncode == 0 and "1 run to do" in out and "ratio0.9-seed0" not in out, out
    assert done.stat().st_mtime_ns == before
    assert "Not there yet: mono5, " in (results / "README.md").read_text()

    # those of another type would take their place
    other = "float32" if dtype == "bfloat16" else "bfloat16"
    refused = start(tiny, f"--dtype={other}", "--tables=alignment")
    out = refused.communicate(timeout=120)[0]
    assert refused.returncode == 2 and f"are in {dtype}, and would be replaced" in out, out
    assert done.stat().st_mtime_ns == before

    listed = start(tiny, "--list").communicate(timeout=120)[0]
    assert "2 of 2 runs finished\n" in listed and "2 of 9 runs finished, " in listed

    # the same name with another text in it: none of its runs is finished
    write_corpus(tiny / "books", seed=1)
    listed = start(tiny, "--list").communicate(timeout=120)[0]
    assert "0 of 2 runs finished, " in listed and "0 of 9 runs finished, " in listed


@pytest.mark.parametrize("options, expected", [
    (["--tables=main,nothing"], "there is no table nothing; expected some of main, alignment"),
    (["--seeds=0"], "expected 1 or more"),
    (["--jobs=0"], "expected 1 or more"),
    (["--scale=huge"], "invalid choice"),
])
def test_bad_input_is_one_line(options, expected, here, monkeypatch, capsys):
    assert expected in fails(reproduce.main, options, monkeypatch, capsys)
    assert not list(here.iterdir())
