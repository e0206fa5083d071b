"""The paper's cloned-language tables and figures, measured here: one command, as many runs as it takes.

    python reproduce.py --list                         # the tables, the runs that each needs, the time left on this machine
    python reproduce.py --tables=main --seeds=1        # the paper's main contrast, and the monolingual law it is measured against
    python reproduce.py                                # all of it; finished runs are never repeated, an interrupted one goes on
    python reproduce.py --corpus=eltec-eng --seeds=3   # on a hundred novels

Every run is train.py, then eval.py and align.py, called the way you would; each command is printed. What comes of them goes to
results/SCALE/CORPUS/: one JSON a run (it counts as finished once that is there), README.md with the tables so far, and the figures.
"""
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

import align
import bench
import data
import eval as eval_
import report
import runs
from cli import BadInput, Parser, run, write_json
from model import SIZES, faster_dtype, pick_device
from report import PERCENT, RATIOS, anchor_runs, longer_runs

HERE = Path(__file__).parent

# ---------------------------------------------------------------------------------------------------------------------
# The grid

def grid(scale):
    """{name: options of train.py}: every run there is. 1x is the scale's own number of steps."""
    size = SIZES[scale]
    steps, width, heads = size["steps"], size["d_model"], size["n_head"]

    def mono(p):
        """A monolingual run on p % of the tokens, at its best (results/search.md): 1,500 steps or more, of smaller batches where it must be, and below
        50 % from ordinary embeddings, since small ones take steps to grow."""
        n, batch = steps * p // 100, size["batch_size"]
        while n < 1500 and batch > 4:
            n, batch = n * 2, batch // 2
        return {"languages": 1, "steps": n, "batch_size": batch, "embedding_std": 0.02 if p < 50 else size["embedding_std"]}

    all_runs = {f"mono{p}": mono(p) for p in PERCENT} | {f"ratio{r}": {"ratio": r} for r in RATIOS}
    all_runs |= {"ten-even": {"languages": 10}, "ten-hub": {"languages": 10, "ratio": 0.5}}
    all_runs |= {f"schedule{s}": {"schedule": s} for s in ("0.9,0.1", "1,0")}
    all_runs |= {name: {"ratio": r, "steps": int(k * steps)} for r in (0.9, 0.5) for k, name in longer_runs(f"ratio{r}").items() if k != 1}
    all_runs |= {name: {"ratio": r, "cloned": round(1 - p / 100, 2)} for r in (0.9, 0.5) for p, name in anchor_runs(scale, f"ratio{r}").items() if name != f"ratio{r}"}
    for w, h in ((width // 2, heads // 2), (width * 2, heads * 2)):
        all_runs |= {f"{name}-wide{w}": options | {"d_model": w, "n_head": h}
                     for name, options in ({f"mono{p}": mono(p) for p in (10, 50, 100)} | {f"ratio{r}": {"ratio": r} for r in (0.9, 0.5)}).items()}
    return all_runs


def cost(scale, options):
    """Floating-point operations of a run's matmuls."""
    shape = SIZES[scale] | {k: v for k, v in options.items() if k in ("d_model", "n_head", "steps", "batch_size")}
    return shape["steps"] * bench.matmul_flops(shape | {"vocab_size": shape["vocab_size"] * options.get("languages", 2) / 2})


# ---------------------------------------------------------------------------------------------------------------------
# Runs

def do(out, scale, corpus, name, options, seed, threads, running):
    """Train, evaluate and align one run, or go on with it, and write its JSON. Returns what went wrong, in a line, or None.

    threads: {"OMP_NUM_THREADS": ...} or nothing; running: a set that holds the process as long as it runs."""
    run_name = f"{scale}-{data.label(corpus)}-{name}-seed{seed}"
    folder, log = Path("runs") / run_name, Path("runs") / f"{run_name}.txt"
    whole = [f"--size={scale}", f"--corpus={corpus}", *(f"--{k}={v}" for k, v in options.items()), f"--seed={seed}"]
    begun = (folder / "config.json").exists()
    calls = [["train.py", f"--run={run_name}", *(["--resume"] if begun else whole)], ["eval.py", str(folder)], ["align.py", str(folder)]]
    log.parent.mkdir(exist_ok=True)
    with open(log, "w") as f:
        for script, *rest in calls[:2 if options.get("languages") == 1 else 3]:
            print(f"  python {shlex.join([script, *rest])}", flush=True)
            process = subprocess.Popen([sys.executable, HERE / script, *rest], stdout=f, stderr=subprocess.STDOUT, env=os.environ | threads, start_new_session=True)
            running.add(process)
            process.wait()
            running.discard(process)
            if process.returncode:
                return f"{script}: {(log.read_text().strip().splitlines() or ['no word'])[-1]} (all it said: {log})"
    config, speed = runs.read_config(folder), [line["tokens_per_s"] for line in runs.read_log(folder, "loss")]
    result = {"command": shlex.join(["python", "train.py", *whole]), "tokens_per_s": float(np.median(speed)),
              "machine": f"{platform.system()} {platform.machine()}, {threads.get('OMP_NUM_THREADS', torch.get_num_threads())} threads, torch {torch.__version__}",
              "config": config, "eval": json.loads((folder / "eval.json").read_text()), "log": runs.read_log(folder, "val_loss")}
    if config["languages"] > 1:
        result["align"] = align.summary(json.loads((folder / "align.json").read_text()))
    write_json(out / f"{name}.seed{seed}.json", result)


def read(out, scale):
    """{run: {seed: its JSON}} of all finished runs, with token efficiency from the monolingual law of all of them together.
    A JSON of another configuration than the grid now has does not count."""
    found, options = {}, grid(scale)
    for path in sorted(out.glob("*.seed*.json")):
        name, _, seed = path.stem.rpartition(".seed")
        result = json.loads(path.read_text())
        wanted = SIZES[scale] | options.get(name, {})
        if name in options and all(str(result["config"][k]) == str(v) for k, v in wanted.items() if k != "d_head"):
            found.setdefault(name, {})[int(seed)] = result
    eval_.add_efficiency([(None, r["config"], r["eval"]) for by_seed in found.values() for r in by_seed.values()])
    return found


def plan(scale, names, seeds, found):
    """The runs still to do, [(name, seed)]: the main table for all seeds first, then seed by seed, so that stopping early leaves the most."""
    first = set(report.tables(scale)["main"].runs)
    todo = sorted(((name, seed) for seed in range(seeds) for name in names), key=lambda x: (x[0] not in first, x[1]))
    return [(name, seed) for name, seed in todo if seed not in found.get(name, {})]


def flops_per_second(scale, device):
    """What this machine does in a train step of a scale's model, in floating-point operations of its matmuls a second."""
    shape = SIZES[scale] if device.type == "cuda" else SIZES[scale] | {"batch_size": max(1, 4096 // SIZES[scale]["context"])}
    return bench.matmul_flops(shape) / bench.turn("nanoclone", shape, device, faster_dtype(device), 5)[0]


def time_left(total, finished, spent, jobs, elapsed):
    """Seconds until all work is done, if all of it goes as fast as what is finished did. total, finished: work, in any unit; spent: seconds that the
    finished part took, summed over runs; elapsed: seconds since the start, in which `jobs` runs at a time went on, finished or not."""
    return max(0, total * spent / finished / jobs - elapsed)


def hours(seconds):
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"


def main():
    parser = Parser(__doc__)
    parser.option("--scale", "nano", "model size; nano is for a CPU, the others are the paper's and want a GPU", choices=list(SIZES))
    parser.option("--corpus", "docs", "as in train.py: docs, eltec-eng, a path ...; several, comma-separated")
    parser.option("--seeds", 3, "how many seeds, 0, 1, ...; the tables give mean and standard deviation", int)
    parser.option("--tables", "all", "which tables, comma-separated; --list names them")
    parser.option("--jobs", 1, "runs at once, each on its share of the cores; more than 1 helps small models on a CPU", int)
    parser.option("--list", False, "show the tables, their runs and the time left, and run nothing", bool)
    args, _ = parser.parse()
    known = report.tables(args.scale)
    chosen = list(known) if args.tables == "all" else args.tables.split(",")
    for table in chosen:
        if table not in known:
            raise BadInput(f"--tables={args.tables}: there is no table {table}; expected some of {', '.join(known)}")
    if args.seeds < 1 or args.jobs < 1:
        raise BadInput(f"--seeds={args.seeds} --jobs={args.jobs}: expected 1 or more of each")
    out = Path("results") / args.scale / data.label(args.corpus)
    options, device = grid(args.scale), pick_device("auto")
    needs = {table: known[table].runs + known[table].needs for table in known}
    found = read(out, args.scale)
    todo = plan(args.scale, dict.fromkeys(name for table in chosen for name in needs[table]), args.seeds, found)
    speed = flops_per_second(args.scale, device) if todo else 1
    seconds = lambda todo: sum(cost(args.scale, options[name]) for name, _ in todo) / speed

    if args.list:
        for table in chosen:
            print(f"{table:11} {known[table].title}")
            left = plan(args.scale, needs[table], args.seeds, found)
            print(f"{'':11} {', '.join(needs[table])}\n{'':11} {len(needs[table]) * args.seeds - len(left)} of {len(needs[table]) * args.seeds} runs finished"
                  + f", {hours(seconds(left))} left" * bool(left))
    print(f"{args.scale} on {args.corpus}, {args.seeds} seed{'s' * (args.seeds > 1)}: {len(todo)} run{'s' * (len(todo) != 1)} to do, about {hours(seconds(todo))} of training at this machine's speed; "
          f"finished ones are in {out}")
    if args.list:
        return

    out.mkdir(parents=True, exist_ok=True)
    report.write_report(out, args.scale, found, None)
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // args.jobs))} if args.jobs > 1 else {}
    running, failed, start, total, finished, spent = set(), [], time.time(), seconds(todo), 0, 0

    def timed(*run):
        begun = time.time()
        return do(out, args.scale, args.corpus, *run, threads, running), time.time() - begun

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(timed, name, options[name], seed): (name, seed) for name, seed in todo}
        try:
            for future in as_completed(futures):
                name, seed = futures.pop(future)
                (wrong, took), work = future.result(), seconds([(name, seed)])
                if wrong:
                    total -= work
                    failed.append(f"{name} seed {seed}: {wrong}")
                    print(f"FAILED {failed[-1]}", flush=True)
                    continue
                found = read(out, args.scale)
                finished, spent = finished + work, spent + took
                rest = time_left(total, finished, spent, args.jobs, time.time() - start)
                languages = "  ".join(f"{x['name']} {x['ppl']:.2f}" for x in found[name][seed]["eval"]["languages"][:3])
                print(f"{name} seed {seed}: test perplexity {languages}; {len(futures)} run{'s' * (len(futures) != 1)} to do, about {hours(rest)}", flush=True)
                report.write_report(out, args.scale, found, name)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on where this one stopped", flush=True)
            sys.exit(130)
        finally:
            for future in futures:
                future.cancel()
            for process in list(running):
                process.terminate()  # train.py saves, and goes on from there next time
    print(f"\n{out / 'README.md'} has the tables and figures.")
    if failed:
        print("failed, and left out:\n  " + "\n  ".join(failed))
        sys.exit(1)


if __name__ == "__main__":
    run(main)
