"""Every picture of the project, fed with plain numbers.

    loss_curves             loss.png of a run, drawn by train.py
    alignment_page          align.png of a run, drawn by align.py
    alignment_of_runs       align.png of several runs
    contrast and on         the figures of paper/: report, real, word2vec, transfer

Nothing is computed here but the mean over seeds. Importing matplotlib takes a second, so it is
imported only where a picture is drawn.

In the docstrings "seeds" is a list of numbers, one for each seed that a run was repeated with. It
is empty where the run is not there, and has None for a seed without such a number. "[n] seeds" is
n such lists.
"""
import contextlib

import numpy as np

from lib.cli import write

# the colours of Okabe and Ito, which colour-blind readers can tell apart. A language keeps its
# colour in every picture: EN1 has the first, EN2 the second
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]
SIDE_COLOURS = {"input": "black", "output": "0.55", "tied": "black"}  # of the embedding matrices


def language_colours(n):
    """A colour for each of n languages; those that the eight do not reach share a scale."""
    if n <= len(COLOURS):
        return COLOURS[:n]
    from matplotlib import colormaps
    others = n - 2
    return COLOURS[:2] + [colormaps["viridis"](i / others) for i in range(others)]


# marker, line and colour of the two mixes that the paper contrasts
MIXES = {"90/10": ("o", "-", COLOURS[2]), "50/50": ("s", "--", COLOURS[3])}

# what the pictures call each of align.py's measures
MEASURES = {
    "cosine": "cosine",
    "centred": "centred cosine",
    "cka": "linear CKA",
    "retrieval": "retrieval@1, EN1 to other",
    "retrieval_back": "retrieval@1, other to EN1",
}

# the same of real languages, on a text and its translation
PARALLEL_MEASURES = {
    "matched": "cosine of matched tokens",
    "matched_centred": "centred cosine of matched tokens",
    "line": "retrieval@1 of a line's translation",
    "line_back": "the same, the other way",
    "line_cka": "linear CKA of lines",
    "shared": "centred cosine of shared tokens' use",
}

# the parameters of a block, in the order in which a token meets them
PARAMETERS = ["norm1.weight", "norm1.bias", "q", "k", "v", "proj",
              "norm2.weight", "norm2.bias", "up", "down"]

# ------------------------------------------------------------------------------------------------
# A page, and what its panels share

@contextlib.contextmanager
def figure(path, rows, columns, size, dpi=130, **layout):
    """A page of rows x columns panels, to be filled, and then written to path as a PNG:

        with figure("loss.png", 1, 2, size=(10, 4)) as (fig, axes):
            axes[0, 1].plot(x, y)

    size is in inches; layout goes to matplotlib's subplots.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # letters large enough to be read when the page is shown at half its size
    with rc_context({"font.size": 11, "axes.titlesize": 11}):
        fig = Figure(figsize=size, layout="constrained")
        yield fig, fig.subplots(rows, columns, squeeze=False, **layout)
        with write(path) as f:
            fig.savefig(f, dpi=dpi, format="png")


def tidy(ax, **labels):
    """Label one panel, with a light grid and no box."""
    ax.set(**labels)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)


def legend(fig, ncols=4):
    """One legend for all panels, below them; what several panels show has one entry."""
    entries = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            entries[label] = handle
    fig.legend(entries.values(), entries.keys(), loc="outside lower center",
               ncols=min(ncols, len(entries)), frameon=False, fontsize=10)


def run_colours(names):
    """{name: its colour} of runs or mixes; those of EN1 and EN2, which mean a language, last."""
    palette = COLOURS[2:] + COLOURS[:2]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def points(ax, x, values, marker, line, color, label=None, **style):
    """A dot for each seed, and a line through their means.

    x [n], values [n] seeds. Without a marker ("") there are no dots, without a line no means. A dot
    is a draw: of three to eight of them the dots say more than a bar would.
    Where one of the seeds has no number there is no point: the mean of the others would be that of
    the better ones, or of the worse.
    """
    draws, means = [], []
    for at, seeds in zip(x, values):
        if len(seeds) == 0 or None in seeds:
            continue
        draws += [(at, seed) for seed in seeds]
        means.append((at, np.mean(seeds)))
    if marker and draws:
        ax.plot(*zip(*draws), marker, color=color, ms=5, alpha=0.6)
    if line and means:
        ax.plot(*zip(*means), line, color=color, **style)
    ax.plot([], [], marker + line, color=color, ms=5, label=label, **style)  # for the legend


# ------------------------------------------------------------------------------------------------
# One run: its losses

def loss_curves(path, name, languages, train, val):
    """loss.png: the loss of each language and, where there are several clones, retrieval@1 of each
    pair.

    languages: what they are called, ["EN1", "EN2"]. train, val: the lines of log.jsonl that have
    "loss" and those that have "val_loss", as dicts.
    """
    pairs = list(val[-1]["retrieval@1"]) if val else []
    if pairs:
        columns, size, width_ratios = 2, (10, 4), [3, 2]
    else:
        columns, size, width_ratios = 1, (6, 4), [1]
    with figure(path, 1, columns, size, dpi=150, width_ratios=width_ratios) as (fig, axes):
        fig.suptitle(name, fontsize=10)
        draw_losses(axes[0, 0], languages, train, val)
        if pairs:
            draw_retrieval(axes[0, 1], pairs, val)


def draw_losses(ax, languages, train, val):
    """Training loss, noisy and thin, under validation loss, of each language."""
    for i, (language, colour) in enumerate(zip(languages, language_colours(len(languages)))):
        # a rare language may have had no sequence since the line before: then it has no loss
        seen = [line for line in train if line["loss"][i] is not None]
        ax.plot(million_tokens(seen), [line["loss"][i] for line in seen],
                color=colour, lw=0.6, alpha=0.5)
        ax.plot(million_tokens(val), [line["val_loss"][i] for line in val], "o-",
                ms=3, color=colour, label=language)
    # of fifty languages the first and the last are named
    handles, labels = ax.get_legend_handles_labels()
    if len(languages) > 12:
        handles, labels = handles[:3] + handles[-1:], [*labels[:3], f"... {labels[-1]}"]
    ax.legend(handles, labels, frameon=False)
    tidy(ax, xlabel="million tokens seen, of all languages", ylabel="loss, nats per token",
         title="thin: training text; dots: validation text")


def draw_retrieval(ax, pairs, val):
    """retrieval@1 of each pair of languages; ten languages have 45 pairs, too many for a legend."""
    from matplotlib import colormaps

    for i, pair in enumerate(pairs):
        ax.plot(million_tokens(val), [line["retrieval@1"][pair] for line in val], "o-",
                ms=3, label=pair, color=colormaps["viridis"](i / len(pairs)))
    tidy(ax, xlabel="million tokens seen, of all languages", ylabel="retrieval@1, middle layer",
         ylim=(-0.03, 1.03), title="do the languages align?")
    if len(pairs) < 7:
        ax.legend(frameon=False)


def million_tokens(lines):
    return [line["tokens"] / 1e6 for line in lines]


# ------------------------------------------------------------------------------------------------
# Alignment of one run, and of several

def alignment_page(path, name, languages, summary):
    """align.png of one run: a page that a reader understands without the code.

    languages: ["EN1", "EN2", ...]. summary: what align.summary returns.
    """
    words, title = measures_of(summary)
    columns, width = (3, 17) if "interchange" in summary else (2, 11)
    with figure(path, 2, columns, (width, 8.5)) as (fig, axes):
        fig.suptitle(f"{name}: are {languages[0]} and {', '.join(languages[1:])} represented "
                     "alike?")
        if words is MEASURES:
            draw_layers(axes[0, 0], summary, words, title)
            draw_by_frequency(axes[1, 0], summary["embeddings"])
        else:  # real languages: tokens above, lines below
            lines = {measure: w for measure, w in words.items() if measure.startswith("line")}
            tokens = {measure: w for measure, w in words.items() if measure not in lines}
            draw_layers(axes[0, 0], summary, tokens, f"Tokens. {title}")
            draw_layers(axes[1, 0], summary, lines, f"Lines. {title}")
        gradients = {tensor: cosines["same"] for tensor, cosines in summary["gradients"].items()}
        draw_gradient_map(fig, axes[0, 1], gradients, summary["names"])
        axes[0, 1].set_title("Cosine of the two languages' gradients\n"
                             "(1: what helps one helps the other)")
        draw_gradient_bars(axes[1, 1], summary["gradient"], languages[0])
        if "interchange" in summary:
            draw_interchange(axes[0, 2], summary)
            draw_ablation(axes[1, 2], summary["ablation"])


def draw_interchange(ax, summary):
    """How well EN1's stream does in the place of the other language's, layer by layer."""
    exchange = summary["interchange"]
    shown = {"all": "at all positions", "here": "at every 16th", "around": "at all but these"}
    for colour, (what, words) in zip(COLOURS[4:1:-1], shown.items()):
        # at all positions it is the same after every layer
        entries = exchange[what] if what != "all" else [exchange["all"]] * len(exchange["here"])
        values = [np.nan if entry["value"] is None else entry["value"] for entry in entries]
        ax.plot(values, "o-", ms=4, color=colour, label=words)
    for level in (0, 1):
        ax.axhline(level, color="0.6", lw=1, ls=":")
    label_layers(ax, [summary])
    ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    tidy(ax, ylabel="interchange", title="EN1's stream in place of the other's\n"
                                         "(1: as good as its own, 0: as that of another text)")


def draw_ablation(ax, ablation):
    """What each head and MLP is worth to EN1 and to the other language, a point a unit."""
    mlps = np.array(["MLP" in unit for unit in ablation["units"]])
    first, other = np.array(ablation["worth"])
    for chosen, marker, words in ((~mlps, "o", "a head"), (mlps, "s", "an MLP")):
        ax.plot(first[chosen], other[chosen], marker, color=COLOURS[2], alpha=0.7, label=words)
    ax.legend(frameon=False, fontsize=8)
    tidy(ax, xlabel="rise of EN1's loss without it, nats", ylabel="rise of the other's, nats",
         title=f"What each part is worth to both\n(rank correlation {ablation['correlation']:.2f}, "
               f"floor {ablation['floor']:.2f}, ceiling {ablation['ceiling']:.2f})")


def measures_of(summary):
    """({measure: what it is called}, what it is measured on) of the layers of a summary."""
    layer = summary["layers"][0]
    if "matched" in layer:
        words = {m: w for m, w in PARALLEL_MEASURES.items() if m in layer}
        return words, "A text and its translation\n(dotted: that of another text, the floor)"
    return MEASURES, "The same text in two languages\n(dotted: shuffled pairs, the floor)"


def draw_layers(ax, summary, words, title):
    """Every measure of words {measure: its name}, layer by layer, above its floor."""
    for colour, (measure, name) in zip(COLOURS, words.items()):
        draw_profile(ax, summary, measure, colour, name)
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    label_layers(ax, [summary])
    tidy(ax, ylabel="similarity", ylim=(None, 1.05), title=title)


def draw_profile(ax, summary, measure, colour, name):
    """A measure layer by layer and, dotted, its floor. An encoder and a decoder are apart."""
    layers = summary["layers"]
    values = [layer[measure]["value"] for layer in layers]
    floors = [layer[measure]["floor"] for layer in layers]
    starts = [i for i, layer in enumerate(summary["names"]) if layer.split()[-1] == "0"]
    for start, end in zip(starts, [*starts[1:], len(layers)]):
        x = range(start, end)
        ax.plot(x, values[start:end], "o-", ms=4, color=colour, label=name if start == 0 else None)
        ax.plot(x, floors[start:end], ":", color=colour)


def label_layers(ax, summaries):
    """The names of the layers on the x axis, where they are the same in all summaries."""
    names = max((summary["names"] for summary in summaries), key=len)
    for summary in summaries:
        if summary["names"] != names[:len(summary["names"])]:  # of different architectures
            names = [str(i) for i in range(len(names))]
    ax.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    ax.set_xlabel("layer (0: the embedding)")


def draw_gradient_map(fig, ax, gradients, names=()):
    """A heat map, layer by parameter, of gradients {tensor: cosine of two languages' gradients}.

    names: of the layers, each stack's embedding ("0") among them; without them, layers are counted.
    A decoder's attention to an encoder has no column.
    """
    n_layer = sum(tensor.endswith(".up") for tensor in gradients)
    cosines = np.empty((n_layer, len(PARAMETERS)))
    for layer in range(n_layer):
        for column, parameter in enumerate(PARAMETERS):
            cosines[layer, column] = gradients[f"blocks.{layer}.{parameter}"]

    image = ax.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    fig.colorbar(image, ax=ax)
    ax.set_xticks(range(len(PARAMETERS)), PARAMETERS, rotation=45, ha="right")
    of_blocks = [name for name in names if name.split()[-1] != "0"]
    if len(of_blocks) != n_layer:  # not given, or an encoder's alone
        of_blocks = range(1, n_layer + 1)
    ax.set_yticks(range(n_layer), of_blocks)
    ax.set_ylabel("layer")

    # the numbers themselves, where they fit: white on dark cells, black on light ones
    if n_layer <= 8:
        for (layer, column), cosine in np.ndenumerate(cosines):
            ax.text(column, layer, f"{cosine:.2f}", ha="center", va="center", fontsize=7,
                    color="white" if abs(cosine) > 0.6 else "black")


def draw_by_frequency(ax, embeddings):
    """Cosine of a token's embedding and its clone's, from rare tokens to frequent ones."""
    for side, similarity in embeddings.items():
        bins = similarity["by_frequency"]
        frequencies = [b["tokens_per_million"] for b in bins]
        ax.plot(frequencies, [b["cosine"] for b in bins], "o-",
                color=SIDE_COLOURS[side], label=f"{side} embedding")
        ax.plot(frequencies, [b["floor"] for b in bins], ":", color=SIDE_COLOURS[side])
    ax.set_xscale("log")
    ax.legend(frameon=False, fontsize=8)
    tidy(ax, xlabel="how often the token occurs, per million tokens", ylabel="cosine",
         title="A token's embedding and its clone's\n"
               "(dotted: all pairs of about that frequency, the floor)")


def draw_gradient_bars(ax, gradient, first):
    """The mean gradient cosine of two languages, beside that of two texts in one language.

    first: what the first language is called.
    """
    words = {"single": f"{first} and other,\none sequence",
             "same": f"{first} and other,\none text",
             "other": f"{first} and other,\ntwo texts",
             "within": "one language,\ntwo texts"}
    bars = ax.bar(list(words.values()), [gradient[case] for case in words],
                  color=[COLOURS[4], COLOURS[1], COLOURS[5], "0.7"])
    ax.tick_params(axis="x", labelsize=8)
    ax.bar_label(bars, fmt="%.2f")
    tidy(ax, ylabel="gradient cosine, mean over blocks",
         title="Do the languages pull the same way?\n"
               "(right: how alike two texts of one language are)")


def alignment_of_runs(path, summaries):
    """A panel a measure, and in it every run, layer by layer, above its floor.

    summaries {name of a run: what align.summary returns}.
    """
    colours = run_colours(summaries)

    # the measures that all runs have: those with a vocabulary of their own share no token
    words, title = measures_of(next(iter(summaries.values())))
    for summary in summaries.values():
        words = {m: w for m, w in words.items() if m in summary["layers"][0]}

    columns = -(-(len(words) + 1) // 2)  # rounded up
    title = title.replace("\n", " ")
    with figure(path, 2, columns, (14, 8)) as (fig, axes):
        fig.suptitle(f"Are the languages represented alike? {title}")
        for ax, (measure, name_of_measure) in zip(axes.flat, words.items()):
            for name, summary in summaries.items():
                draw_profile(ax, summary, measure, colours[name], name)
            label_layers(ax, list(summaries.values()))
            tidy(ax, title=name_of_measure)
        axes[0, 0].legend(frameon=False, fontsize=8)
        for ax in axes.flat[len(words):-1]:  # of an odd number
            ax.axis("off")

        # the last panel: one bar a run, and the most that it could be
        gradient = axes[1, -1]
        means = [summary["gradient"]["same"] for summary in summaries.values()]
        most = [summary["gradient"]["within"] for summary in summaries.values()]
        bars = gradient.barh(list(summaries), means, color=list(colours.values()))
        gradient.bar_label(bars, fmt="%.2f")
        gradient.plot(most, list(summaries), "|", color="0.3", markersize=24)
        gradient.margins(x=0.15)
        tidy(gradient, title="gradient cosine, mean over blocks\n(|: one language on two texts)")


# ------------------------------------------------------------------------------------------------
# The paper's figures, over several seeds; paper/report.py computes what they show

def contrast(path, ratios, languages, mono):
    """90/10 against 50/50: perplexity beside monolingual models, and TEff, a dot a draw.

    ratios [2]: EN1's share in each of MIXES, 0.9 and 0.5.
    languages {"EN1": numbers, "EN2": numbers}, where numbers is
        {"tokens": [n], the millions that it saw; "ppl": [n] seeds;
         "teff": [n] seeds, against monolingual models at their best;
         "teff_plain": [n] seeds, against those with the same batches;
         "paper": {EN1's share: the TEff that the paper has there}}.
    mono {millions of tokens: seeds}: perplexity of the monolingual runs.
    """
    with figure(path, 1, 3, (12, 4.2), width_ratios=[4, 3, 3]) as (fig, axes):
        beside, best, plain = axes[0]
        draw_beside_monolingual(beside, ratios, languages, mono)
        for ax, key, baseline in ((best, "teff", "at their best"),
                                  (plain, "teff_plain", "with the same batches")):
            draw_draws(ax, languages, key)
            ax.axhline(1, color="0.6", lw=1)
            ax.set_ylim(0, None)
            tidy(ax, ylabel="token efficiency",
                 title=f"TEff, against monolingual models\n{baseline}")

        # the paper's monolingual models have the same batches as its bilingual ones
        column = 0
        for colour, (language, numbers) in zip(COLOURS, languages.items()):
            theirs = [numbers["paper"][ratio] for ratio in ratios]
            plain.plot(range(column, column + len(ratios)), theirs, "D", mfc="none", ms=9,
                       color=colour, label=f"{language} in the paper")
            column += len(ratios)
        legend(fig)


def draw_draws(ax, languages, key):
    """A column for each language and mix: a dot for each draw, side by side, and their mean."""
    ticks = []
    for colour, (language, numbers) in zip(COLOURS, languages.items()):
        for mix, draws in zip(MIXES, numbers[key]):
            column = len(ticks)
            ticks.append(f"{language}\n{mix}")
            if not draws or None in draws:
                continue
            offsets = np.linspace(-0.15, 0.15, len(draws)) if len(draws) > 1 else [0]
            ax.plot(column + np.array(offsets), draws, "o", color=colour, ms=5, alpha=0.7)
            ax.plot([column - 0.25, column + 0.25], [np.mean(draws)] * 2, color=colour, lw=1)
    ax.set_xticks(range(len(ticks)), ticks, fontsize=9)


def ratio_sweep(path, ratios, languages, mono, law, alike):
    """From 50/50 to the extreme split: perplexity, token efficiency, alignment.

    ratios [n]: EN1's share in each of n runs.
    languages {"EN1": numbers, "EN2": numbers}, where numbers is
        {"tokens": [n], the millions that it saw; "ppl": [n] seeds; "teff": [n] seeds;
         "paper": {EN1's share: the TEff that the paper has there}}.
    mono {millions of tokens: seeds}: perplexity of the monolingual runs.
    law: the curve fitted to them, as two lists, millions of tokens and perplexity.
    alike {words: [n] seeds}: how alike the two languages are represented, from 0 to 1.
    """
    with figure(path, 1, 3, (12, 4.2)) as (fig, axes):
        draw_beside_monolingual(axes[0, 0], ratios, languages, mono, law)
        draw_efficiency(axes[0, 1], ratios, languages)
        for colour, (words, values) in zip(COLOURS[4:], alike.items()):
            points(axes[0, 2], ratios, values, "o", "-", color=colour, label=words)
        tidy(axes[0, 2], xlabel="share of EN1", ylabel="EN1 with EN2, from 0 to 1",
             ylim=(-0.03, 1.03), title="Are the two\nrepresented alike?")
        legend(fig)


def draw_beside_monolingual(ax, ratios, languages, mono, law=None):
    """Perplexity against the tokens seen in a language: below the line, something crossed over."""
    if law:
        ax.plot(*law, color="0.6", lw=1, label="monolingual law")
    points(ax, mono.keys(), mono.values(), "x", "--", color="0.4", lw=0.8,
           label="monolingual runs")
    for colour, (language, numbers) in zip(COLOURS, languages.items()):
        points(ax, numbers["tokens"], numbers["ppl"], "o", "", color=colour, label=language)

    # EN2's share beside each of its points: 10 % where the ratio is 0.9
    rare = languages["EN2"]
    for ratio, million, ppl in zip(ratios, rare["tokens"], rare["ppl"]):
        ax.annotate(f"{100 * (1 - ratio):.0f} %", (million, np.mean(ppl)), fontsize=9,
                    xytext=(5, 5), textcoords="offset points")

    # both axes are logarithmic, and say 20, not 2 x 10^1; millions are written where runs are
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(list(mono), [f"{million:.2g}" for million in mono])
    ax.set_xticks([], minor=True)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    tidy(ax, xlabel="million tokens seen in the language", ylabel="test perplexity",
         title="Beside monolingual models\n(numbers: the share of EN2)")


def draw_efficiency(ax, ratios, languages):
    """Token efficiency against EN1's share; diamonds where the paper has it."""
    for colour, (language, numbers) in zip(COLOURS, languages.items()):
        points(ax, ratios, numbers["teff"], "o", "-", color=colour, label=language)
        if numbers["paper"]:
            shares, theirs = zip(*numbers["paper"].items())
            ax.plot(shares, theirs, "D", mfc="none", ms=8, color=colour,
                    label=f"{language} in the paper")
    ax.axhline(1, color="0.6", lw=1)
    tidy(ax, xlabel="share of EN1", ylabel="token efficiency",
         title="TEff: above 1,\nsomething crossed over")


def efficiency_of_vocabularies(path, first, panels):
    """Token efficiency of two real languages against the share of the first.

    panels {"disjoint": numbers, "anchored": numbers}, where numbers is {"ratios": [n]; "languages":
    what draw_efficiency takes}.
    """
    with figure(path, 1, len(panels), (9, 4.2), sharey=True) as (fig, axes):
        for ax, (vocabulary, numbers) in zip(axes[0], panels.items()):
            draw_efficiency(ax, numbers["ratios"], numbers["languages"])
            tidy(ax, title=f"{vocabulary} vocabularies", xlabel=f"share of {first}")
        legend(fig)


def word2vec(path, found):
    """Cosine of a token's word2vec vector and its clone's, against EN1's share: a panel a side.

    found {EN1's share: [what paper.word2vec.measure returns, one for each seed]}.
    """
    with figure(path, 1, 2, (9, 4.2), sharey=True) as (fig, axes):
        for ax, side in zip(axes[0], ("input", "output")):
            for kind, words, colour, line in (
                    ("value", "a token and its clone", COLOURS[2], "-"),
                    ("floor", "a token and another about as frequent", COLOURS[2], ":"),
                    ("all_pairs", "all pairs", "0.5", ":")):
                values = [[result[side][kind] for result in found[ratio]] for ratio in found]
                points(ax, list(found), values, "o", line, color=colour, label=words)
            tidy(ax, xlabel="share of EN1", title=f"{side} vectors of word2vec")
        axes[0, 0].set_ylabel("cosine")
        legend(fig, ncols=3)


def transfer(path, tasks):
    """Does a task that was learned in EN1 carry over? By mix, and by how alike the two are.

    tasks {name: numbers}, a row of two panels each, where numbers is
        {"measure": "accuracy" or "F1"; "languages": ["EN1", "EN2"];
         "mixes": {mix: [probe EN1, probe EN2, fine-tuned EN1, fine-tuned EN2], seeds each};
         "chance", "tokens": [a number for each run], without a model;
         "paper": {mix: (EN1, EN2)}; "alike": [(centred cosine, mix, accuracy of EN2)]}.
    """
    with figure(path, len(tasks), 2, (11, 4.2 * len(tasks))) as (fig, axes):
        for (by_mix, by_cosine), (name, numbers) in zip(axes, tasks.items()):
            mixes, measure = list(numbers["mixes"]), numbers["measure"]
            scores = list(zip(*numbers["mixes"].values()))  # [4, mixes] seeds
            x = range(len(mixes))
            ways = ("probe", "s", ":"), ("fine-tuned", "o", "-")
            for i, (way, marker, line) in enumerate(ways):
                for j, (colour, language) in enumerate(zip(COLOURS, numbers["languages"])):
                    points(by_mix, x, scores[2 * i + j], marker, line, color=colour,
                           label=f"{language}, {way}")
            for j, (colour, language) in enumerate(zip(COLOURS, numbers["languages"])):
                theirs = [(mixes.index(mix), pair[j]) for mix, pair in numbers["paper"].items()
                          if mix in mixes]
                if theirs:
                    by_mix.plot(*zip(*theirs), "D", mfc="none", ms=8, color=colour,
                                label=f"{language} in the paper: GLUE")
            for key, words, style in (("chance", "chance", ":"), ("tokens", "tokens alone", "--")):
                by_mix.axhline(np.mean(numbers[key]), color="0.6", lw=1, ls=style, label=words)
            by_mix.set_xticks(x, [mix.replace("ratio", "") for mix in mixes], fontsize=9)
            tidy(by_mix, xlabel="share of EN1", ylabel=f"{measure}, learned in EN1 alone",
                 title=f"{name}: by mix")

            second = numbers["languages"][1]
            for mix, colour in run_colours(mixes).items():
                draws = [(cosine, score) for cosine, of, score in numbers["alike"] if of == mix]
                if draws:
                    by_cosine.plot(*zip(*draws), "^", color=colour, alpha=0.8,
                                   label=f"a run of {mix.replace('ratio', '')}")
            # the whole range: of runs that are all alike it would show nothing but noise
            tidy(by_cosine, xlabel="centred cosine, middle layer", xlim=(-0.1, 1), ylim=(0, 1),
                 ylabel=f"accuracy in {second}, fine-tuned", title=f"{name}: by alignment")
        legend(fig, ncols=3)


def alignment_of_vocabularies(path, measures, runs):
    """How alike real languages are represented, layer by layer: a panel a measure.

    measures {measure: what it is called}. runs {("disjoint", "90/10"): {measure: {"value": [L]
    seeds, "floor": [L] seeds}}}, the embedding first.
    """
    colours = {"disjoint": COLOURS[4], "anchored": COLOURS[5]}
    with figure(path, 1, len(measures), (15, 4.2)) as (fig, axes):
        for ax, (measure, words) in zip(axes[0], measures.items()):
            for (vocabulary, mix), numbers in runs.items():
                if measure in numbers:
                    marker, line, _ = MIXES[mix]
                    values, floors = numbers[measure]["value"], numbers[measure]["floor"]
                    layers, colour = range(len(values)), colours[vocabulary]
                    ax.set_xticks(layers)
                    points(ax, layers, values, marker, line, color=colour,
                           label=f"{vocabulary} {mix}")
                    points(ax, layers, floors, "", ":", color=colour)
            tidy(ax, xlabel="layer (0: the embedding)", title=f"{words}\n(dotted: the floor)")
        legend(fig)


def alignment_of_mixes(path, mixes):
    """Are the two languages represented alike? By layer, by parameter, and by what carries over.

    mixes {"90/10": numbers, "50/50": numbers}, where numbers is
        {"layers": {measure: {"value": [L] seeds, "floor": [L] seeds}}, the embedding first;
         "gradients": {tensor: cosine}; "gradient": seeds, the mean over the blocks;
         "switch_gap": seeds, in nats;
         "paper_cosine": [12], the cosine after each of the paper's 12 blocks;
         "paper_gradient": the paper's mean over the blocks}.
    """
    with figure(path, 4, 2, (10, 13)) as (fig, axes):
        fig.suptitle("The same text in two languages (dotted: shuffled pairs, the floor)",
                     fontsize=12)

        # the states, layer by layer: a panel a measure. Retrieval one way is enough
        for ax, measure in zip(axes.flat, ("cosine", "centred", "cka", "retrieval")):
            draw_layers_of_mixes(ax, mixes, measure)

        # the gradients, parameter by parameter: a map a mix
        for ax, (mix, numbers) in zip(axes[2], mixes.items()):
            draw_gradient_map(fig, ax, numbers["gradients"])
            ax.set_title(f"Gradients of the two languages, {mix}")

        # what is one number a run: a column a mix, a dot a seed
        gradient, switch_gap = axes[3]
        for x, (mix, numbers) in enumerate(mixes.items()):
            marker, _, colour = MIXES[mix]
            points(gradient, [x], [numbers["gradient"]], marker, "", color=colour)
            gradient.plot([x], [numbers["paper_gradient"]], "D", mfc="none", ms=8, color=colour,
                          label=f"{mix} in the paper")
            points(switch_gap, [x], [numbers["switch_gap"]], marker, "", color=colour)
        tidy(gradient, ylabel="cosine", xlim=(-0.5, 1.5), ylim=(0, None),
             title="Gradients of the two languages, mean over the blocks")
        tidy(switch_gap, ylabel="nats", xlim=(-0.5, 1.5), ylim=(0, None),
             title="Code-switch gap in EN2 after EN1\n(0: all context carries across)")
        for ax in (gradient, switch_gap):
            ax.set_xticks(range(len(mixes)), list(mixes))
        legend(fig, ncols=2)


def draw_layers_of_mixes(ax, mixes, measure):
    """One measure of both mixes, layer by layer, above its floor."""
    for mix, numbers in mixes.items():
        marker, line, colour = MIXES[mix]
        values = numbers["layers"][measure]["value"]
        floors = numbers["layers"][measure]["floor"]
        layers = range(len(values))
        points(ax, layers, values, marker, line, color=colour, label=mix)
        points(ax, layers, floors, "", ":", color=colour)

        # the paper has the cosine only, after 12 blocks: they are spread over the depth of ours
        if measure == "cosine":
            depth = np.arange(1, 13) / 12 * layers[-1]
            ax.plot(depth, numbers["paper_cosine"], line, color=colour, lw=1, alpha=0.6,
                    label=f"{mix} in the paper, its 12 layers over ours")
    tidy(ax, xlabel="layer (0: the embedding)", xticks=layers, ylabel=MEASURES[measure],
         ylim=(None, 1.03))


def embeddings(path, shares, sides):
    """How alike are a token's embedding and its clone's? By ratio, and by the token's frequency.

    shares [n]: EN2's share in each of n runs.
    sides {"input": numbers, "output": numbers}, where numbers is
        {"value": [n] seeds; "floor": [n] seeds;
         "by_frequency": {mix: {"tokens_per_million": [b], from rare to frequent;
                                "cosine": [b] seeds; "floor": [b] seeds}}}.
    """
    with figure(path, 1, 3, (12, 4.2)) as (fig, axes):
        by_ratio, *by_frequency = axes[0]
        for ax, (side, numbers) in zip(by_frequency, sides.items()):
            colour = SIDE_COLOURS[side]
            points(by_ratio, shares, numbers["value"], "o", "-", color=colour,
                   label=f"{side} embedding")
            points(by_ratio, shares, numbers["floor"], "", ":", color=colour)

            for mix, bins in numbers["by_frequency"].items():
                marker, line, colour = MIXES[mix]
                frequency = bins["tokens_per_million"]
                points(ax, frequency, bins["cosine"], marker, line, color=colour, label=mix)
                points(ax, frequency, bins["floor"], "", ":", color=colour)
            ax.set_xscale("log")
            tidy(ax, xlabel="occurrences per million tokens", ylabel="cosine",
                 title=f"{side} embedding, by frequency\n(dotted: all pairs)")
        tidy(by_ratio, xlabel="share of EN2", ylabel="cosine",
             title="A token's embedding and its clone's\n(dotted: shuffled, the floor)")
        legend(fig)


def interchanges(path, exchange, worth):
    """Can EN2 use EN1's states, and are heads and MLPs worth the same to both? By mix, every draw.

    exchange {mix: [{"here": [layers], "around": [layers]} for each draw]}: from 0, as that of
    another text, to 1, as EN2's own; None where nothing was lost. worth {mix: {"correlation",
    "floor", "ceiling": [draws] each}}.
    """
    with figure(path, 1, 2, (11, 4.4)) as (fig, axes):
        by_layer, by_mix = axes[0]
        n_layers = len(next(iter(exchange.values()))[0]["here"])
        lines = {"here": ("o-", "at every 16th position"), "around": ("s:", "at all but these")}
        colours = run_colours(exchange)
        for mix, draws in exchange.items():
            for what, (style, words) in lines.items():
                for i, draw in enumerate(draws):
                    values = [np.nan if value is None else value for value in draw[what]]
                    label = f"{mix.replace('ratio', '')}, {words}" if i == 0 else None
                    by_layer.plot(values, style, ms=4, color=colours[mix], alpha=0.7, label=label)
        for level in (0, 1):
            by_layer.axhline(level, color="0.6", lw=1, ls=":")
        by_layer.set_xticks(range(n_layers))
        tidy(by_layer, xlabel="after layer", ylabel="interchange",
             title="EN1's stream in place of EN2's\n(1: as good as its own)")

        for x, found in enumerate(worth.values()):
            for key, marker, colour in (("ceiling", "^", "0.6"), ("correlation", "o", COLOURS[0]),
                                        ("floor", "v", "0.6")):
                by_mix.plot([x] * len(found[key]), found[key], marker, color=colour, alpha=0.7,
                            label=key if x == 0 else None)
        by_mix.margins(x=0.3)
        by_mix.set_xticks(range(len(worth)), [mix.replace("ratio", "") for mix in worth])
        tidy(by_mix, xlabel="share of EN1", ylabel="rank correlation",
             title="What heads and MLPs are worth\nto EN1 and to EN2")
        legend(fig, ncols=3)


def architectures(path, kinds, teff):
    """What EN2 gets, in each architecture and with each kind of head.

    kinds [n]: "decoder", ..., in the order of x. teff {"90/10": [n] seeds, "50/50": [n] seeds}: the
    token efficiency of EN2.
    """
    with figure(path, 1, 1, (9, 4.5)) as (fig, axes):
        ax = axes[0][0]
        for mix, values in teff.items():
            marker, _, colour = MIXES[mix]
            points(ax, range(len(kinds)), values, marker, "", color=colour, label=mix)
        ax.axhline(1, color="0.6", lw=1)
        ax.set_xticks(range(len(kinds)), kinds, fontsize=9)
        tidy(ax, ylabel="token efficiency of EN2", title="1: nothing crosses over")
        legend(fig)


def against(path, xlabel, ticks, mixes):
    """Perplexity, token efficiency and retrieval of both mixes, against x: length, width ...

    ticks: where x is written below the panels.
    mixes {"90/10": numbers, "50/50": numbers}, where numbers is
        {"x": [n]; "ppl": {"EN1": [n] seeds, "EN2": [n] seeds}; "teff": the same;
         "retrieval": [n] seeds}.
    """
    with figure(path, 1, 3, (12, 4.2)) as (fig, axes):
        ppl, teff, retrieval = axes[0]
        for mix, numbers in mixes.items():
            marker, line, mix_colour = MIXES[mix]
            x = numbers["x"]
            for ax, key in ((ppl, "ppl"), (teff, "teff")):
                for colour, (language, values) in zip(COLOURS, numbers[key].items()):
                    points(ax, x, values, marker, line, color=colour, label=f"{language}, {mix}")
            points(retrieval, x, numbers["retrieval"], marker, line, color=mix_colour,
                   label=f"EN1 with EN2, {mix}")
        teff.axhline(1, color="0.6", lw=1)
        tidy(ppl, xlabel=xlabel, xticks=ticks, ylabel="test perplexity")
        tidy(teff, xlabel=xlabel, xticks=ticks, ylabel="token efficiency")
        tidy(retrieval, xlabel=xlabel, xticks=ticks, ylabel="retrieval@1, middle layer",
             ylim=(-0.03, 1.03))
        legend(fig)
