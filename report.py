"""The tables and figures of reproduce.py: from the JSON of finished runs to Markdown and PNG.

found, everywhere: {run: [what its JSON holds, one for each seed]}. Every number is the mean over seeds ± one standard deviation; in figures
a bar. EN1 and EN2 have their colours everywhere; in the ten-language runs "EN2" is the mean of the nine others.
"""
from typing import Callable, NamedTuple

import numpy as np

import align
import clone
import eval as eval_
import runs
from cli import write
from model import SIZES

RATIOS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
ANCHORS = (0, 5, 20, 50, 100)  # % of the vocabulary
LONGER = (0.5, 1, 2, 3)  # times 1x
PERCENT = (5, 10, 20, 50, 100, 200)  # of 1x: the monolingual points
# What the paper found at 85M parameters and 1.197e9 tokens: PPL and TEff of EN1, of EN2
PAPER = {"ratio0.9": (22.46, 32.81, 1.00, 2.08), "ratio0.5": (26.13, 26.14, 0.89, 0.89), "schedule0.9,0.1": (26.53, 24.44, 0.83, 1.18),
         "schedule1,0": (9e10, 31.39, 0.05, 0.47), "ratio0.6": (24.97, 27.63), "ratio0.7": (23.95, 29.65), "ratio0.9-3x": (19.03, 22.27), "ratio0.5-3x": (22.17, 22.17)}
PAPER_COSINE = {"ratio0.5": [.55, .79, .83, .88, .85, .83, .78, .66, .56, .46, .25, -.21], "ratio0.9": [.86, .93, .96, .96, .96, .96, .96, .95, .94, .90, .67, .11]}
PAPER_GRADIENT = {"ratio0.5": 0.07, "ratio0.9": 0.53}
EN = (("EN1", clone.COLOURS[0]), ("EN2", clone.COLOURS[1]))
MIXES = (("ratio0.9", "90/10", "o-", clone.COLOURS[2]), ("ratio0.5", "50/50", "s--", clone.COLOURS[3]))

# ---------------------------------------------------------------------------------------------------------------------
# Tables

def of(result, which, key):
    """A number of eval.json, of EN1 or the mean over the others ("EN2"); None where there is none."""
    values = [x.get(key) for x in result["eval"]["languages"][slice(0, 1) if which == "EN1" else slice(1, None)]]
    return None if not values or None in values else float(np.mean(values))


def stat(values, form=".2f"):
    """Mean and standard deviation over seeds, as text."""
    if not values or None in values:
        return "-"
    form = ".1e" if max(values) >= 1e6 else form  # a forgotten language
    return format(np.mean(values), form) + (f" ± {format(np.std(values, ddof=1), form.lstrip('+'))}" if len(values) > 1 else "")


def markdown(head, rows):
    return "\n".join(["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]) + "\n"


def perplexities(found, names):
    """Tokens, perplexity and token efficiency of each language, beside the paper's where it has the run, and how alike the two are represented."""
    rows, paper = [], any(name in PAPER for name in names)
    for name in names:
        for i, which in enumerate(("EN1", "EN2")[:found[name][0]["config"]["languages"]]):
            column = lambda key: stat([of(r, which, key) for r in found[name]])
            more = found[name][0]["config"]["languages"] > 2 and i
            theirs = [f"{PAPER[name][j]:.4g}" if len(PAPER.get(name, ())) > j else "" for j in (i, 2 + i)] if paper else []
            alike = [stat([measure(r) for r in found[name]]) for measure in (retrieval, gradient)] if i == 0 and "align" in found[name][0] else ["", ""]
            rows.append([name if i == 0 else "", "the nine others" if more else which, stat([of(r, which, "tokens_seen") / 1e6 for r in found[name]][:1]),
                         column("ppl"), column("teff_interpolated"), column("teff"), *theirs, *alike, len(found[name]) if i == 0 else ""])
    return markdown(["run", "language", "tokens, M", "perplexity", "TEff, interpolated", "TEff, law"] + ["paper: PPL", "paper: TEff"] * paper
                    + ["retrieval@1, middle layer", "gradient cosine", "seeds"], rows)


def costs(found, names):
    """EN1's perplexity against a monolingual model of the same EN1 tokens, and against one of all the run's tokens."""
    whole = stat([of(r, "EN1", "ppl") for r in found["mono100"]])
    rows = []
    for name in names:
        column = lambda which, key, form=".2f": stat([of(r, which, key) for r in found[name]], form)
        extra = [of(r, "EN1", "ppl") / of(r, "EN1", "mlpe_interpolated") - 1 for r in found[name]]
        rows.append([name, stat([of(found[name][0], "EN1", "tokens_seen") / 1e6]), column("EN1", "ppl"), column("EN1", "mlpe_interpolated"), stat(extra, "+.1%"), whole,
                     column("EN2", "teff_interpolated")])
    return markdown(["run", "EN1 tokens, M", "EN1 perplexity", "monolingual, the same EN1 tokens", "cost to EN1", "monolingual, all the run's tokens", "what EN2 gets: TEff"], rows)


def alignments(found, names):
    """Each measure by layer, with its floor; and the gradient cosine."""
    rows = []
    for layer in range(len(found[names[0]][0]["align"]["layers"])):
        cells = []
        for m in ("cosine", "centred", "cka", "there"):
            for name in names:
                values = [r["align"]["layers"][layer][m] for r in found[name]]
                cells.append(f"{stat([v['value'] for v in values])} ({np.mean([v['floor'] for v in values]):.2f})")
        rows.append([layer, *cells])
    text = markdown(["layer", *(f"{words}, {name}" for words in ("cosine", "centred cosine", "linear CKA", "retrieval@1") for name in names)], rows)
    text += "\nIn brackets the floor: shuffled pairs. Layer 0 is the embedding.\n\nGradient cosine of the two languages on one text, mean over the tensors of the blocks: "
    text += "; ".join(f"{name} {stat([gradient(r) for r in found[name]])} (paper: {PAPER_GRADIENT[name]})" for name in names)
    text += ".\n\nThe paper's cosine, layers 1 to 12: " + "; ".join(f"{name} {' '.join(f'{v:.2f}' for v in PAPER_COSINE[name])}" for name in names) + "."
    text += "\n\nCode-switch gap within EN2 after a first half in EN1, nats (0: all context carries across): " + "; ".join(
        f"{name} {stat([switch_gap(r) for r in found[name]], '.3f')}" for name in names) + ".\n"
    return text


def retrieval(result):
    layers = result["align"]["layers"]
    return layers[(len(layers) - 1) // 2]["there"]["value"]  # the layer that train.py watches


def gradient(result):
    return align.block_mean(result["align"]["gradients"], "same")


def switch_gap(result):
    return result["eval"]["code_switch"]["EN1->EN2"]["within"]["gap"]


def similarities(found, names):
    """Cosine of a token's embedding and its clone's by ratio."""
    sides = list(found[names[0]][0]["align"]["embeddings"])
    cell = lambda name, side, key: stat([r["align"]["embeddings"][side][key] for r in found[name]], ".3f")
    return markdown(["run", *(f"{side} embedding{words}" for side in sides for words in ("", ", shuffled"))],
                    [[name, *(cell(name, side, key) for side in sides for key in ("value", "floor"))] for name in names])


# ---------------------------------------------------------------------------------------------------------------------
# Figures: EN1 and EN2 in their colours everywhere; bars are one standard deviation over seeds

def points(ax, x, values, **style):
    """A line through the means of values, a list of seeds for each x, with bars of one standard deviation; a single seed has none. Where a seed
    has no value there is no point: the others would be those that do worse, or better."""
    kept = [(a, v) for a, v in zip(x, map(list, values)) if v and None not in v]
    ax.errorbar([a for a, _ in kept], [np.mean(v) for _, v in kept], [np.std(v, ddof=1) if len(v) > 1 else np.nan for _, v in kept], capsize=3, ms=5, **style)


def draw_law(ax, found):
    """The monolingual runs and the law through them."""
    mono = eval_.law_points([(r["config"], r["eval"]) for p in PERCENT for r in found.get(f"mono{p}", ())])
    law, tokens = eval_.fit_law(*zip(*mono), n_bootstrap=0), sorted({n for n, _ in mono})
    n = np.geomspace(law.smallest * 0.8, law.largest * 1.2, 200)
    ax.plot(n / 1e6, [law.ppl(v) for v in n], color="0.6", lw=1, label="monolingual law")
    points(ax, [n / 1e6 for n in tokens], [[ppl for n_, ppl in mono if n_ == n] for n in tokens], fmt="x--", color="0.4", lw=0.8, label="monolingual runs")


def sweep(found):
    """Shares of EN1 of the ratio sweep, and their runs: those that are there."""
    ratios = [r for r in RATIOS if f"ratio{r}" in found]
    return ratios, [f"ratio{r}" for r in ratios]


def draw_ratio(fig, axes, found):
    law, teff, alike = axes[0]
    ratios, names = sweep(found)
    draw_law(law, found)
    for i, (which, colour) in enumerate(EN):
        tokens = [of(found[n][0], which, "tokens_seen") / 1e6 for n in names]
        points(law, tokens, [[of(r, which, "ppl") for r in found[n]] for n in names], fmt="o", color=colour, label=which)
        for ratio, n, x in zip(ratios, names, tokens):
            if which == "EN2":
                law.annotate(f"{100 * (1 - ratio):.0f} %", (x, np.mean([of(r, which, "ppl") for r in found[n]])), xytext=(5, 5), textcoords="offset points", fontsize=9)
        points(teff, ratios, [[of(r, which, "teff_interpolated") for r in found[n]] for n in names], fmt="o-", color=colour, label=which)
        teff.plot([0.9, 0.5], [PAPER[n][2 + i] for n in ("ratio0.9", "ratio0.5")], "D", mfc="none", ms=8, color=colour, label=f"{which} in the paper")
    law.set_xscale("log")
    law.set_yscale("log")
    for axis in (law.xaxis, law.yaxis):
        axis.set_major_formatter("{x:g}")
    law.yaxis.set_minor_formatter("{x:g}")
    teff.axhline(1, color="0.6", lw=1)
    for measure, words, colour in ((retrieval, "retrieval@1, middle layer", clone.COLOURS[4]), (gradient, "gradient cosine", clone.COLOURS[5])):
        points(alike, ratios, [[measure(r) for r in found[n]] for n in names], fmt="o-", color=colour, label=words)
    runs.tidy(law, xlabel="million tokens seen in the language", ylabel="test perplexity", title="Beside monolingual models\n(numbers: the share of EN2)")
    runs.tidy(teff, xlabel="share of EN1", ylabel="token efficiency", title="TEff: above 1,\nsomething crossed over")
    runs.tidy(alike, xlabel="share of EN1", ylabel="EN1 with EN2, from 0 to 1", ylim=(-0.03, 1.03), title="Are the two\nrepresented alike?")


def draw_alignment(fig, axes, found):
    panels = iter(axes.flat)
    fig.suptitle("The same text in two languages (dotted: shuffled pairs, the floor)", fontsize=12)
    for m in ("cosine", "centred", "cka", "there"):
        ax = next(panels)
        for n, words, style, colour in MIXES:
            layers = range(len(found[n][0]["align"]["layers"]))
            for kind, line in (("value", style), ("floor", ":")):
                points(ax, layers, [[r["align"]["layers"][i][m][kind] for r in found[n]] for i in layers], fmt=line, color=colour, label=words if kind == "value" else None)
            if m == "cosine":
                depth = np.arange(1, 13) / 12 * layers[-1]
                ax.plot(depth, PAPER_COSINE[n], style[1:], color=colour, lw=1, alpha=0.6, label=f"{words} in the paper, its 12 layers over ours")
        runs.tidy(ax, xlabel="layer (0: the embedding)", ylabel=align.MEASURES[m], ylim=(None, 1.03))
    for n, words, _, _ in MIXES:
        ax = next(panels)
        align.draw_gradients(fig, ax, {k: {"same": np.mean([r["align"]["gradients"][k]["same"] for r in found[n]])} for k in found[n][0]["align"]["gradients"]})
        ax.set_title(f"Gradients of the two languages, {words}")
    for measure, theirs, ylabel, title in ((gradient, PAPER_GRADIENT, "cosine", "Gradients of the two languages, mean over the blocks"),
                                           (switch_gap, {}, "nats", "Code-switch gap in EN2 after EN1\n(0: all context carries across)")):
        ax = next(panels)
        for x, (n, words, style, colour) in enumerate(MIXES):
            points(ax, [x], [[measure(r) for r in found[n]]], fmt=style[0], color=colour)
            if n in theirs:
                ax.plot([x], [theirs[n]], "D", mfc="none", ms=8, color=colour, label=f"{words} in the paper")
        runs.tidy(ax, ylabel=ylabel, title=title, xlim=(-0.5, 1.5), ylim=(0, None))
        ax.set_xticks(range(len(MIXES)), [words for _, words, _, _ in MIXES])


def draw_embeddings(fig, axes, found):
    ratios, names = sweep(found)
    for ax, colour, side in zip(axes[0, 1:], align.SIDE_COLOURS, found[names[0]][0]["align"]["embeddings"]):
        for kind, style in (("value", "o-"), ("floor", ":")):
            points(axes[0, 0], [1 - r for r in ratios], [[x["align"]["embeddings"][side][kind] for x in found[n]] for n in names], fmt=style, color=colour,
                   label=f"{side} embedding" if kind == "value" else None)
        for n, words, style, mix in (m for m in MIXES if m[0] in found):
            bins = [r["align"]["embeddings"][side]["by_frequency"] for r in found[n]]
            for kind, line in (("cosine", style), ("floor", ":")):
                points(ax, [b["tokens_per_million"] for b in bins[0]], list(zip(*([b[kind] for b in seed] for seed in bins))), fmt=line, color=mix, label=words if kind == "cosine" else None)
        ax.set_xscale("log")
        runs.tidy(ax, xlabel="occurrences per million tokens", ylabel="cosine", title=f"{side} embedding, by frequency\n(dotted: all pairs)")
    runs.tidy(axes[0, 0], xlabel="share of EN2", ylabel="cosine", title="A token's embedding and its clone's\n(dotted: shuffled, the floor)")


def lines(groups, xlabel):
    """Draw test perplexity and token efficiency of EN1 and EN2, and their retrieval@1, against x, for each mix in groups, {mix: {x: run}}."""
    def draw(fig, axes, found):
        for mix, words, style, colour in MIXES:
            names = groups[mix]
            for ax, key in zip(axes.flat, ("ppl", "teff_interpolated")):
                for which, language in EN:
                    points(ax, names, [[of(r, which, key) for r in found.get(n, ())] for n in names.values()], fmt=style, color=language, label=f"{which}, {words}")
            points(axes[0, 2], names, [[retrieval(r) for r in found.get(n, ())] for n in names.values()], fmt=style, color=colour, label=f"EN1 with EN2, {words}")
        axes[0, 1].axhline(1, color="0.6", lw=1)
        for ax, labels in zip(axes.flat, ({"ylabel": "test perplexity"}, {"ylabel": "token efficiency"}, {"ylabel": "retrieval@1, middle layer", "ylim": (-0.03, 1.03)})):
            runs.tidy(ax, xlabel=xlabel, xticks=[x for x, n in groups["ratio0.5"].items() if n in found], **labels)
    return draw


# ---------------------------------------------------------------------------------------------------------------------
# The report

class Table(NamedTuple):
    title: str
    runs: list  # that it shows
    needs: list  # other runs that it is made from
    text: Callable = perplexities  # (found, runs) -> Markdown
    draw: Callable | None = None  # (fig, axes, found), with axes of rows x columns panels, size in inches
    panels: tuple = (1, 3, (12, 4.2))


def anchor_runs(scale, mix):
    """{% of the vocabulary shared: run} of a mix; the scale's own percentage is the run without a word about it. At 100 % the languages are one,
    and all mixes the same run to the last bit: 50/50 stands for all."""
    return {p: mix if p == round(100 - 100 * SIZES[scale]["cloned"]) else f"anchors{p}-{mix}" for p in ANCHORS if p < 100 or mix == "ratio0.5"}


def longer_runs(mix):
    """{length, times 1x: run} of a mix."""
    return {k: mix if k == 1 else f"{mix}-{k}x" for k in LONGER}


def tables(scale):
    """{name: Table} of a scale, in the order in which they are made."""
    d = SIZES[scale]["d_model"]
    mono, law = [f"mono{p}" for p in PERCENT], [f"mono{p}" for p in PERCENT if p <= 100]
    mixes, ratios = [n for n, *_ in MIXES], [f"ratio{r}" for r in RATIOS]
    anchors, longer = {n: anchor_runs(scale, n) for n in mixes}, {n: longer_runs(n) for n in mixes}
    wide = {n: {d // 2: f"{n}-wide{d // 2}", d: n, d * 2: f"{n}-wide{d * 2}"} for n in mixes}
    in_turn = lambda of_mix: [of_mix[n][x] for x in of_mix["ratio0.5"] for n in mixes if x in of_mix[n]]
    return {
        "main": Table("Imbalanced against balanced", mixes + mono, []),
        "alignment": Table("Are the two languages represented alike?", mixes, [], alignments, draw_alignment, (4, 2, (10, 13))),
        "ratio": Table("Ratio sweep, to the extreme split", ratios, law, draw=draw_ratio),
        "cost": Table("What imbalance costs the dominant language", ratios, law, costs),
        "embeddings": Table("A token's embedding and its clone's", ratios, [], similarities, draw_embeddings),
        "longer": Table("Longer training", in_turn(longer) + mono[len(law):], law, draw=lines(longer, "training tokens, times 1x")),
        "languages": Table("Ten languages", ["ten-hub", "ten-even"], law),
        "schedule": Table("Language schedules", ["schedule0.9,0.1", "schedule1,0", "ratio0.5"], law),
        "anchors": Table("Anchor points: a part of the vocabulary shared", in_turn(anchors), law, draw=lines(anchors, "anchor points, % of the vocabulary")),
        "size": Table("Model size", in_turn(wide) + [f"mono{p}-wide{w}" for w in (d // 2, d * 2) for p in (10, 50, 100)], law,
                      draw=lines(wide, "d_model, the width of the residual stream"))}


def write_report(out, scale, found, changed):
    """README.md with every table, of those of its runs that are there (found: {run: {seed: JSON}}), and the figures of those that the run `changed` is part of (None: of all)."""
    text = [f"# {scale}, {out.name}: what was measured\n", "Made by `reproduce.py`; each run's command, configuration and numbers are in its JSON beside this page. "
            "Perplexity is on the test split; ± is one standard deviation over seeds. 1x is "
            f"{SIZES[scale]['steps']:,} steps. TEff: against the monolingual runs of all seeds, interpolated between the two neighbouring ones, and by the law 1/PPL = c - a n^-b fitted to all of them; "
            "\"-\" where a perplexity or a number of tokens lies outside theirs.\n"]
    found = {name: list(by_seed.values()) for name, by_seed in found.items()}
    for name, table in tables(scale).items():
        needed, shown = table.runs + table.needs, [n for n in table.runs if n in found]
        missing = [n for n in needed if n not in found]
        text.append(f"## {table.title}\n")
        if missing:
            text.append(f"Not there yet: {', '.join(missing)}. `python reproduce.py --tables={name}`\n")
        if len(shown) < min(3, len(table.runs)) or not set(table.needs) <= found.keys():
            continue
        text.append(table.text(found, shown))
        if table.draw:
            if changed is None or changed in needed or not (out / f"{name}.png").exists():
                runs.figure(out / f"{name}.png", lambda fig, axes: (table.draw(fig, axes, found), legend(fig)), *table.panels)
            text.append(f"![{table.title}]({name}.png)\n")
    with write(out / "README.md") as f:
        f.write("\n".join(text).encode())


def legend(fig):
    """One legend for all panels, below them."""
    entries = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels())}
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, len(entries)), frameon=False, fontsize=10)
