"""The paper's cloned-language tables and figures, measured here: one command, many runs.

    python -m paper.reproduce --list                     # tables, their runs, the time left
    python -m paper.reproduce --tables=main --seeds=1    # the paper's main contrast, and the
                                                         # monolingual law it is measured against
    python -m paper.reproduce                            # all of it
    python -m paper.reproduce --corpus=eltec-eng         # on a hundred novels
    python -m paper.reproduce --corpus=eltec-eng --corpus=eltec-fra --parallel=eltec-fra-eng
                                                         # real languages (paper/real.py)

Every run is train.py, then eval.py and align.py, called the way you would; each command is printed.
What comes of them goes to paper/results/SCALE/CORPUS-HASH/: one JSON a run; README.md, with the
tables so far; and the figures. The hash is of the corpus's text: another text has another folder.
A GPU's has -cuda at the end of its name, since no table is to mix the two.
A run whose JSON is there is finished and never repeated; an interrupted one goes on with the same
command.
"""
import contextlib
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
from types import SimpleNamespace

import numpy as np
import torch

import align
import bench
import clone
import data
import runs
from eval import add_efficiency, monolingual_options
from lib.cli import BadInput, Parser, as_options, plural, run_main, write_json
from model import ARCHITECTURES, SIZES, faster_dtype, pick_device
from paper import real, report

HERE = Path(__file__).parent.parent  # where train.py is

# ------------------------------------------------------------------------------------------------
# The grid

def grid(scale):
    """{name: options of train.py}: every run there is. 1x is the scale's own number of steps."""
    size, options = SIZES[scale], {}
    for percent in report.PERCENT:
        options[f"mono{percent}"] = monolingual_options(
            size["steps"], size["batch_size"], percent)
    # the same tokens in the batches of the bilingual runs, and so in fewer steps
    for percent in report.plain_percents(scale):
        options[f"mono{percent}-plain"] = {
            "languages": 1, "steps": size["steps"] * percent // 100}
    for ratio in report.RATIOS:
        options[f"ratio{ratio}"] = {"ratio": ratio}

    options["ten-even"] = {"languages": 10}
    options["ten-hub"] = {"languages": 10, "ratio": 0.5}
    for schedule in ("0.9,0.1", "1,0"):
        options[f"schedule{schedule}"] = {"schedule": schedule}

    # the two mixes at other lengths, and with other shares of anchor points; the run that has the
    # scale's own is in the ratio sweep already
    for ratio in (0.9, 0.5):
        for times, name in report.longer_runs(f"ratio{ratio}").items():
            if name not in options:
                options[name] = {"ratio": ratio, "steps": int(times * size["steps"])}
    for ratio in (0.9, 0.5):
        for percent, name in report.anchor_runs(scale, f"ratio{ratio}").items():
            if name not in options:
                options[name] = {"ratio": ratio, "cloned": round(1 - percent / 100, 2)}

    # other architectures, each with a monolingual law of its own, and heads per language in all
    for arch in ARCHITECTURES:
        for mix in report.MIXES:
            options[report.arch_run(arch, mix, "per-language")] = options[mix] | {
                "arch": arch, "heads": "per-language"}
        if arch != "decoder":
            for name in [f"mono{percent}" for percent in report.LAW_PERCENT] + list(report.MIXES):
                options[report.arch_run(arch, name)] = options[name] | {"arch": arch}

    # models of a quarter and half of the width, with heads of the same size
    for part in (4, 2):
        other_width = size["d_model"] // part
        shape = {"d_model": other_width, "n_head": size["n_head"] // part}
        for name in [f"mono{percent}" for percent in report.LAW_PERCENT] + list(report.MIXES):
            options[f"{name}-wide{other_width}"] = options[name] | shape
    return options


def runs_of(tables, chosen):
    """The names of all runs that some of the tables {name: Table} are made from, each once."""
    names = {}  # a dict keeps the order
    for table in chosen:
        for name in tables[table].runs + tables[table].needs:
            names[name] = True
    return list(names)


def plan(tables, names, seeds, found):
    """The runs still to do, [(name, seed)], in an order in which stopping early leaves the most.

    Those of the main table come first, for all seeds; then the others, seed by seed.
    """
    main_table = tables["main"].runs if "main" in tables else []
    first = [name for name in names if name in main_table]
    rest = [name for name in names if name not in main_table]
    todo = []
    for group in (first, rest):
        for seed in range(seeds):
            todo += [(name, seed) for name in group if seed not in found.get(name, {})]
    return todo


# ------------------------------------------------------------------------------------------------
# How long it takes

def cost(scale, options):
    """Floating-point operations of a run's matmuls."""
    shape = dict(SIZES[scale])
    for key in ("arch", "heads", "d_model", "n_head", "steps", "batch_size"):
        if key in options:
            shape[key] = options[key]

    # bench counts two languages, which have twice the vocabulary, or a head each
    if shape["heads"] == "shared":
        shape["vocab_size"] = shape["vocab_size"] * options.get("languages", 2) / 2
    return shape["steps"] * bench.matmul_flops(shape)


def work(scale, options, todo):
    """Floating-point operations of all runs of a plan; options: grid(scale)."""
    return sum(cost(scale, options[name]) for name, _ in todo)


def measure_speed(scale):
    """Floating-point operations that this machine does a second, in a train step of a scale."""
    device = pick_device("auto")
    shape = dict(SIZES[scale])
    if device.type != "cuda":  # a smaller batch is as fast there, and sooner done
        shape["batch_size"] = min(shape["batch_size"], max(1, 4096 // shape["context"]))
    seconds, *_ = bench.turn(bench.Way("nanoclone", faster_dtype(device)), shape, device, 5)
    return bench.matmul_flops(shape) / seconds


def time_left(total, finished, spent, jobs, elapsed):
    """Seconds until all work is done, if all of it goes as fast as what is finished did.

    total, finished: work, in any unit. spent: seconds that the finished part took, summed over
    runs. elapsed: seconds since the start, in which `jobs` runs at a time went on, finished or not.
    """
    return max(0, total * spent / finished / jobs - elapsed)


def duration(seconds):
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"


def print_tables(args, tables, options, chosen, found, speed):
    """What --list shows: each table, the runs that it needs, and how many of them are finished."""
    for table in chosen:
        names = runs_of(tables, [table])
        total = len(names) * args.seeds
        left = plan(tables, names, args.seeds, found)
        finished = f"{total - len(left)} of {total} runs finished"
        if left:
            finished += f", {duration(work(args.scale, options, left) / speed)} left"
        print(f"{table:13} {tables[table].title}")
        print(f"{'':13} {', '.join(names)}")
        print(f"{'':13} {finished}")


# ------------------------------------------------------------------------------------------------
# One run

def do(out, scale, name, options, seed, threads, running):
    """Train, evaluate and align one run, or go on with it, and write its JSON.

    options: of train.py. Real languages without a parallel text are not aligned. Returns what went
    wrong, in a line, or None. threads: {"OMP_NUM_THREADS": ...} or nothing. running: a set that
    holds the process for as long as it runs.
    """
    run_name = f"{scale}-{out.name}-{name}-seed{seed}"
    folder, log = Path("runs") / run_name, Path("runs") / f"{run_name}.txt"
    train_options = [f"--size={scale}", *as_options(options), f"--seed={seed}"]

    # a run that was begun goes on; train.py refuses if it was one of other options
    resume = ["--resume"] if (folder / "config.json").exists() else []
    calls = [
        ["train.py", f"--run={run_name}", *resume, *train_options],
        ["eval.py", str(folder)],
    ]
    clones = not isinstance(options["corpus"], list)
    if clones and options.get("languages") != 1:
        calls.append(["align.py", str(folder)])
    if not clones and "parallel" in options:
        calls.append(["align.py", str(folder), f"--parallel={options['parallel']}"])

    log.parent.mkdir(exist_ok=True)
    with open(log, "w") as f:
        for call in calls:
            print(f"  python {shlex.join(call)}", flush=True)
            if run_script(call, f, threads, running) != 0:
                said = log.read_text().strip().splitlines() or ["no word"]
                return f"{call[0]}: {said[-1]} (all it said: {log})"

    command = shlex.join(["python", "train.py", *train_options])
    write_json(out / f"{name}.seed{seed}.json", result_of(folder, command, threads))


def run_script(call, output, threads, running):
    """Run one of the scripts, [name, option, ...], with its words going to a file; its exit code.

    It gets a session of its own, so that Ctrl-C reaches this process alone, which then stops it.
    """
    script, *rest = call
    process = subprocess.Popen([sys.executable, HERE / script, *rest], stdout=output,
                               stderr=subprocess.STDOUT, env=os.environ | threads,
                               start_new_session=True)
    running.add(process)
    code = process.wait()
    running.discard(process)
    return code


def result_of(folder, command, threads):
    """All that the JSON of a run holds, from the folder of the finished run."""
    n_threads = threads.get("OMP_NUM_THREADS", torch.get_num_threads())
    config = vars(runs.read_config(folder))
    speeds = [line["tokens_per_s"] for line in runs.read_log(folder, "loss")]
    result = {
        "command": command,
        "tokens_per_s": float(np.median(speeds)),
        "machine": f"{processor()}, {platform.system()} {platform.machine()}, {n_threads} threads, "
                   f"torch {torch.__version__}",
        "config": config,
        "eval": json.loads((folder / "eval.json").read_text()),
        "log": runs.read_log(folder, "val_loss"),
    }
    if (folder / "align.json").exists():
        result["align"] = align.summary(json.loads((folder / "align.json").read_text()))
    return result


def processor():
    """The name of this machine's CPU, or GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError, StopIteration):  # Linux has it in a file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or "an unknown CPU"


def read(out, scale, dtype, options=None):
    """{run: {seed: its JSON}} of all finished runs of a grid, in one type.

    options: the grid; None for this scale's grid of clones. Token efficiency is computed anew, from
    the monolingual runs of all seeds together.
    """
    options, found = options or grid(scale), {}
    for path in sorted(out.glob("*.seed*.json")):
        name, _, seed = path.stem.rpartition(".seed")
        result = json.loads(path.read_text())
        result["config"] = runs.ADDED | result["config"]
        wanted = SIZES[scale] | options.get(name, {}) | {"dtype": dtype}
        # where a parallel text is given, two languages that were not compared on it are not done
        to_align = "parallel" in wanted and "languages" not in wanted
        if to_align and "align" not in result:
            continue
        if name in options and agrees(result["config"], wanted):
            found.setdefault(name, {})[int(seed)] = result

    results = []
    for by_seed in found.values():
        for result in by_seed.values():
            results.append((None, SimpleNamespace(**result["config"]), result["eval"]))
    add_efficiency(results)
    return found


def pick_dtype(out):
    """The type of the runs whose JSON is there; else the faster one here."""
    for path in sorted(out.glob("*.seed*.json")):
        return json.loads(path.read_text())["config"]["dtype"]
    return str(faster_dtype(pick_device("auto"))).removeprefix("torch.")


def agrees(config, wanted):
    """Whether a run has the configuration that the grid has now; one of another does not count."""
    if config.get("version") != runs.VERSION:
        return False
    # compared as text, since a ratio is a number in the grid, and text in a config
    for key, value in wanted.items():
        # where its text was says nothing: the folder of the results is of one text
        if key in ("d_head", "corpus", "parallel"):
            continue
        if str(config.get(key)) != str(value):
            return False
    return True


# ------------------------------------------------------------------------------------------------
# All runs

def do_all(out, args, tables, options, todo):
    """Do all runs of a plan, args.jobs at a time. Returns what failed, a line each.

    After each, the tables are written again, and the figures that it is part of.
    """
    # several at once share the cores; one alone takes as many as torch does
    threads = {}
    if args.jobs > 1:
        threads["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // args.jobs))

    running, failed = set(), []
    start, total, finished, spent = time.time(), work(args.scale, options, todo), 0, 0

    def timed_do(name, seed):
        begun = time.time()
        given = {"corpus": args.corpus} | options[name] | {"dtype": args.dtype}
        wrong = do(out, args.scale, name, given, seed, threads, running)
        return wrong, time.time() - begun

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    with ThreadPoolExecutor(args.jobs) as pool:
        left = {pool.submit(timed_do, name, seed): (name, seed) for name, seed in todo}
        try:
            for future in as_completed(left):
                name, seed = left.pop(future)
                wrong, seconds = future.result()
                flops = cost(args.scale, options[name])

                # a run that failed does not stop the others
                if wrong:
                    total -= flops
                    failed.append(f"{name} seed {seed}: {wrong}")
                    print(f"FAILED {failed[-1]}", flush=True)
                    continue

                # one more monolingual run moves the law, so all results are read anew
                found = read(out, args.scale, args.dtype, options)
                finished, spent = finished + flops, spent + seconds
                rest = time_left(total, finished, spent, args.jobs, time.time() - start)
                print(f"{name} seed {seed}: test perplexity {in_words(found[name][seed])}; "
                      f"{plural(len(left), 'run')} to do, about {duration(rest)}", flush=True)
                report.write_report(out, args.scale, found, name, tables, of_corpora(args))
        except KeyboardInterrupt:
            print("interrupted: the same command goes on where this one stopped", flush=True)
            sys.exit(130)
        finally:
            # nothing new is begun, and what runs is stopped: train.py saves, and goes on from
            # there next time
            for future in left:
                future.cancel()
            for process in list(running):
                process.terminate()
    return failed


def in_words(result):
    """The perplexity of the first languages of a run: EN1 15.36  EN2 21.60."""
    languages = result["eval"]["languages"][:3]
    return "  ".join(f"{language['name']} {language['ppl']:.2f}" for language in languages)


# ------------------------------------------------------------------------------------------------
# The command

def arguments():
    """The command line. Raises BadInput."""
    parser = Parser(__doc__)
    parser.option("--scale", "nano", "model size; nano and pico are for a CPU, the others are the "
                  "paper's and want a GPU", choices=list(SIZES))
    parser.option("--corpus", "docs", "as in train.py: docs, eltec-eng, a path ...; several, "
                  "comma-separated. Given twice: two real languages", several=True)
    parser.option("--parallel", None, "of real languages: a parallel text, as in align.py; it is "
                  "kept out of training (default: none, and no alignment is measured)")
    parser.option("--seeds", 3, "how many seeds, 0, 1, ...; the tables give mean and standard "
                  "deviation", int)
    parser.option("--tables", "all", "which tables, comma-separated; --list names them")
    parser.option("--dtype", "auto", "type of the activations, the same in all runs; auto: that of "
                  "the runs which are there, else the faster",
                  choices=["auto", "float32", "bfloat16"])
    parser.option("--jobs", 1, "runs at once, each on its share of the cores; more than 1 helps "
                  "small models on a CPU", int)
    parser.option("--list", False, "show the tables, their runs and the time left, and run "
                  "nothing", bool)
    args, _ = parser.parse()

    if args.seeds < 1 or args.jobs < 1:
        raise BadInput(f"--seeds={args.seeds} --jobs={args.jobs}: expected 1 or more of each")
    if isinstance(args.corpus, list) and len(args.corpus) != 2:
        raise BadInput(f"{len(args.corpus)} --corpus: expected one, or two for real languages")
    if isinstance(args.corpus, str) and args.parallel:
        raise BadInput("--parallel goes with two --corpus, of real languages")
    return args


def of_corpora(args):
    """The options that say which real languages there are, for a command; "" of clones."""
    if isinstance(args.corpus, str):
        return ""
    given = {"corpus": args.corpus} | ({"parallel": args.parallel} if args.parallel else {})
    return shlex.join(as_options(given)) + " "


def choose(text, tables):
    """The names of the tables that --tables asks for. Raises BadInput."""
    chosen = list(tables) if text == "all" else text.split(",")
    for table in chosen:
        if table not in tables:
            raise BadInput(f"--tables={text}: there is no table {table}; "
                           f"expected some of {', '.join(tables)}")
    return chosen


def main():
    args = arguments()
    # what there is to run: clones of one corpus, or two real languages
    if isinstance(args.corpus, list):
        names = clone.language_names(args.corpus, 2)
        tables = real.tables(args.scale, names)
        options = real.grid(args.scale, names, args.corpus, args.parallel)
    else:
        names = [data.label(args.corpus)]
        tables, options = report.tables(args.scale), grid(args.scale)
    chosen = choose(args.tables, tables)

    # results are of one text: that of another name, or of this name on another day, lie elsewhere
    vocab_size = SIZES[args.scale]["vocab_size"]
    corpora = clone.open_corpora(args.corpus, len(names), vocab_size, "bpe", args.parallel)
    label = "-".join([*names, *(corpus["sha256"][:8] for corpus in corpora)])
    # and so do those of a GPU, which adds up in another order, most of the time in another type
    if pick_device("auto").type == "cuda":
        label += "-cuda"
    out = Path("paper/results") / args.scale / label
    if args.dtype == "auto":
        args.dtype = pick_dtype(out)
    elif any(out.glob("*.seed*.json")):
        there = pick_dtype(out)
        if there != args.dtype:
            raise BadInput(f"--dtype={args.dtype}: the results in {out} are in {there}, and would "
                           "be replaced: leave it out, or move them away")
    found = read(out, args.scale, args.dtype, options)
    todo = plan(tables, runs_of(tables, chosen), args.seeds, found)
    speed = measure_speed(args.scale) if todo else 1

    if args.list:
        print_tables(args, tables, options, chosen, found, speed)
    print(f"{args.scale} on {' and '.join(runs.per_corpus(args.corpus))} in {args.dtype}, "
          f"{plural(args.seeds, 'seed')}: {plural(len(todo), 'run')} to do, "
          f"about {duration(work(args.scale, options, todo) / speed)} of training at this "
          f"machine's speed; finished ones are in {out}")
    if args.list:
        return

    out.mkdir(parents=True, exist_ok=True)
    report.write_report(out, args.scale, found, None, tables, of_corpora(args))
    failed = do_all(out, args, tables, options, todo)
    print(f"\n{out / 'README.md'} has the tables and figures.")
    if failed:
        print("failed, and left out:\n  " + "\n  ".join(failed))
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
