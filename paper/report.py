"""The tables and figures of paper/reproduce.py: from the JSON of finished runs to Markdown and PNG.

found, everywhere: {name of a run: [what its JSON holds, one for each seed]}. Every number is the
mean over seeds ± one standard deviation. In the ten-language runs "EN2" is the mean of the nine
others. What a figure shows is computed here, and drawn by lib/plots.py.
"""
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

import align
from eval import fit_law, law_points
from lib import plots
from lib.cli import write
from model import SIZES

# what is varied
RATIOS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # EN1's share
PERCENT = (5, 10, 20, 50, 100, 200)  # tokens of the monolingual runs, of 1x
LAW_PERCENT = (5, 10, 20, 50, 100)  # those without which there is no monolingual law
LONGER = (0.5, 1, 2, 3)  # length, times 1x
ANCHORS = (0, 5, 20, 50, 100)  # anchor points, % of the vocabulary

# the two runs that the paper contrasts, and what they are called in the figures
MIXES = {"ratio0.9": "90/10", "ratio0.5": "50/50"}

# the measures of alignment that the tables show, and their names there
MEASURES = {
    "cosine": "cosine",
    "centred": "centred cosine",
    "cka": "linear CKA",
    "retrieval": "retrieval@1",
}

# what the paper found with 85M parameters and 1.197e9 tokens: of EN1, of EN2
PAPER_PPL = {
    "ratio0.9": (22.46, 32.81),
    "ratio0.7": (23.95, 29.65),
    "ratio0.6": (24.97, 27.63),
    "ratio0.5": (26.13, 26.14),
    "schedule0.9,0.1": (26.53, 24.44),
    "schedule1,0": (9e10, 31.39),
    "ratio0.9-3x": (19.03, 22.27),
    "ratio0.5-3x": (22.17, 22.17),
}
PAPER_TEFF = {
    "ratio0.9": (1.00, 2.08),
    "ratio0.5": (0.89, 0.89),
    "schedule0.9,0.1": (0.83, 1.18),
    "schedule1,0": (0.05, 0.47),
}
# the cosine after each of its 12 layers, and the gradient cosine, mean over the blocks
PAPER_COSINE = {
    "ratio0.9": [0.86, 0.93, 0.96, 0.96, 0.96, 0.96, 0.96, 0.95, 0.94, 0.90, 0.67, 0.11],
    "ratio0.5": [0.55, 0.79, 0.83, 0.88, 0.85, 0.83, 0.78, 0.66, 0.56, 0.46, 0.25, -0.21],
}
PAPER_GRADIENT = {"ratio0.9": 0.53, "ratio0.5": 0.07}

# ------------------------------------------------------------------------------------------------
# Numbers of one result, the JSON of one run and seed

def value_of(result, language, key):
    """A number of eval.json, of EN1 or of the others' mean ("EN2"); None where there is none."""
    languages = result["eval"]["languages"]
    chosen = languages[:1] if language == "EN1" else languages[1:]
    values = [numbers.get(key) for numbers in chosen]
    if not values or None in values:
        return None
    return float(np.mean(values))


def million_tokens(result, language):
    """How many tokens a language saw, in millions."""
    return value_of(result, language, "tokens_seen") / 1e6


def extra_perplexity(result):
    """What the other languages cost EN1: 0.02 where its perplexity is 2 % above that of a
    monolingual model of the same EN1 tokens.
    """
    return value_of(result, "EN1", "ppl") / value_of(result, "EN1", "mlpe_interpolated") - 1


def retrieval(result):
    """retrieval@1 in the middle layer, the one that train.py watches."""
    layers = result["align"]["layers"]
    return layers[(len(layers) - 1) // 2]["retrieval"]["value"]


def gradient(result):
    """Cosine of the two languages' gradients on one text, mean over the tensors of the blocks."""
    return align.block_mean(result["align"]["gradients"], "same")


def tensor_gradient(result, tensor):
    """The same, of one tensor."""
    return result["align"]["gradients"][tensor]["same"]


def layer_measure(result, layer, measure, kind):
    """A measure of the states after a layer; kind: "value", or "floor", that of shuffled pairs."""
    return result["align"]["layers"][layer][measure][kind]


def embedding_cosine(result, side, kind):
    """Cosine of a token's embedding and its clone's; side: "input" or "output"."""
    return result["align"]["embeddings"][side][kind]


def cosine_of_bin(result, side, i, kind):
    """The same, of the tokens of the i-th bin of frequency."""
    return result["align"]["embeddings"][side]["by_frequency"][i][kind]


def switch_gap(result):
    """The code-switch gap within EN2 after a first half in EN1, in nats."""
    return result["eval"]["code_switch"]["EN1->EN2"]["within"]["gap"]


def seeds(found, name, measure, *args):
    """[measure(result, *args) for each seed] of a run; [] for a run that is not there.

    seeds(found, "ratio0.9", value_of, "EN2", "ppl") -> [22.3, 18.6, 25.5]
    """
    return [measure(result, *args) for result in found.get(name, ())]


# ------------------------------------------------------------------------------------------------
# Tables

def stat(values, form=".2f"):
    """Mean and standard deviation over seeds, as text: [1.0, 2.0, 3.0] -> "2.00 ± 1.00"."""
    if not values or None in values:
        return "-"
    if max(values) >= 1e6:  # the perplexity of a forgotten language
        form = ".1e"
    text = format(np.mean(values), form)
    if len(values) > 1:
        spread = np.std(values, ddof=1)
        text += " ± " + format(spread, form.lstrip("+"))
    return text


def markdown(head, rows):
    """A table in Markdown: head, a list of words; rows, lists of as many cells."""
    lines = []
    for cells in (head, ["---"] * len(head), *rows):
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def perplexities(found, names):
    """Tokens, perplexity and token efficiency of each language; how alike they are represented.

    Beside them stand the paper's numbers, where it has one of the runs.
    """
    with_paper = any(name in PAPER_PPL for name in names)
    head = ["run", "language", "tokens, M", "perplexity", "TEff, interpolated", "TEff, law"]
    if with_paper:
        head += ["paper: PPL", "paper: TEff"]
    head += ["retrieval@1, middle layer", "gradient cosine", "seeds"]

    # a row a language; what is of the whole run stands in the first
    rows = []
    for name in names:
        one_seed = found[name][0]  # its languages, and about as many tokens, are those of all
        n_languages = one_seed["config"]["languages"]
        for i, language in enumerate(("EN1", "EN2")[:n_languages]):
            first = language == "EN1"
            several = n_languages > 2 and not first
            row = [
                name if first else "",
                "the nine others" if several else language,
                stat([million_tokens(one_seed, language)]),
                stat(seeds(found, name, value_of, language, "ppl")),
                stat(seeds(found, name, value_of, language, "teff_interpolated")),
                stat(seeds(found, name, value_of, language, "teff")),
            ]
            if with_paper:
                row.append(f"{PAPER_PPL[name][i]:.4g}" if name in PAPER_PPL else "")
                row.append(f"{PAPER_TEFF[name][i]:.4g}" if name in PAPER_TEFF else "")
            if first and "align" in one_seed:  # a monolingual run has nothing to align
                row.append(stat(seeds(found, name, retrieval)))
                row.append(stat(seeds(found, name, gradient)))
            else:
                row += ["", ""]
            row.append(len(found[name]) if first else "")
            rows.append(row)
    return markdown(head, rows)


def costs(found, names):
    """EN1's perplexity, and that of a monolingual model: of the same EN1 tokens, of all tokens."""
    head = ["run", "EN1 tokens, M", "EN1 perplexity", "monolingual, the same EN1 tokens",
            "cost to EN1", "monolingual, all the run's tokens", "what EN2 gets: TEff"]
    rows = []
    for name in names:
        rows.append([
            name,
            stat([million_tokens(found[name][0], "EN1")]),
            stat(seeds(found, name, value_of, "EN1", "ppl")),
            stat(seeds(found, name, value_of, "EN1", "mlpe_interpolated")),
            stat(seeds(found, name, extra_perplexity), "+.1%"),
            stat(seeds(found, "mono100", value_of, "EN1", "ppl")),
            stat(seeds(found, name, value_of, "EN2", "teff_interpolated")),
        ])
    return markdown(head, rows)


def alignments(found, names):
    """Each measure by layer, with its floor; then what is one number a run."""
    # a column for each measure of each run
    head = ["layer"]
    for words in MEASURES.values():
        head += [f"{words}, {name}" for name in names]

    rows = []
    for layer in range(n_layers(found, names[0])):
        row = [layer]
        for measure in MEASURES:
            for name in names:
                values = seeds(found, name, layer_measure, layer, measure, "value")
                floors = seeds(found, name, layer_measure, layer, measure, "floor")
                row.append(f"{stat(values)} ({np.mean(floors):.2f})")
        rows.append(row)

    # below the table, each run in words
    gradients, cosines, gaps = [], [], []
    for name in names:
        ours = stat(seeds(found, name, gradient))
        gradients.append(f"{name} {ours} (paper: {PAPER_GRADIENT[name]})")
        theirs = " ".join(f"{cosine:.2f}" for cosine in PAPER_COSINE[name])
        cosines.append(f"{name} {theirs}")
        gaps.append(f"{name} {stat(seeds(found, name, switch_gap), '.3f')}")
    paragraphs = [
        markdown(head, rows),
        "In brackets the floor: shuffled pairs. Layer 0 is the embedding.\n",
        "Gradient cosine of the two languages on one text, mean over the tensors of the blocks: "
        f"{'; '.join(gradients)}.\n",
        f"The paper's cosine, layers 1 to 12: {'; '.join(cosines)}.\n",
        "Code-switch gap within EN2 after a first half in EN1, nats "
        f"(0: all context carries across): {'; '.join(gaps)}.\n",
    ]
    return "\n".join(paragraphs)


def similarities(found, names):
    """Cosine of a token's embedding and its clone's, by ratio."""
    head = ["run"]
    for side in sides(found, names):
        head += [f"{side} embedding", f"{side} embedding, shuffled"]
    rows = []
    for name in names:
        row = [name]
        for side in sides(found, names):
            for kind in ("value", "floor"):
                row.append(stat(seeds(found, name, embedding_cosine, side, kind), ".3f"))
        rows.append(row)
    return markdown(head, rows)


def n_layers(found, name):
    """How many layers the alignment of a run has, the embedding included."""
    return len(found[name][0]["align"]["layers"])


def sides(found, names):
    """The embedding matrices of a model: ["input", "output"]."""
    return list(found[names[0]][0]["align"]["embeddings"])


# ------------------------------------------------------------------------------------------------
# Figures: the numbers that go into each

def draw_ratio(path, found):
    """The ratio sweep, of those of its runs that are there."""
    ratios, names = sweep(found)

    # how well each language was learned
    languages = {}
    for i, language in enumerate(("EN1", "EN2")):
        languages[language] = {
            "tokens": [million_tokens(found[name][0], language) for name in names],
            "ppl": [seeds(found, name, value_of, language, "ppl") for name in names],
            "teff": [seeds(found, name, value_of, language, "teff_interpolated")
                     for name in names],
            "paper": {0.9: PAPER_TEFF["ratio0.9"][i], 0.5: PAPER_TEFF["ratio0.5"][i]},
        }

    # and how alike the two are
    alike = {
        "retrieval@1, middle layer": [seeds(found, name, retrieval) for name in names],
        "gradient cosine": [seeds(found, name, gradient) for name in names],
    }
    mono, law = monolingual(found)
    plots.ratio_sweep(path, ratios, languages, mono, law, alike)


def sweep(found):
    """EN1's shares in the ratio sweep, and the names of their runs: those that are there."""
    ratios = [ratio for ratio in RATIOS if f"ratio{ratio}" in found]
    return ratios, [f"ratio{ratio}" for ratio in ratios]


def monolingual(found):
    """The monolingual runs, {millions of tokens: perplexities}, and the law through them.

    The law comes as a curve: its millions of tokens, its perplexities.
    """
    # of several settings with the same number of tokens, law_points takes the best
    results = []
    for percent in PERCENT:
        for result in found.get(f"mono{percent}", ()):
            results.append((SimpleNamespace(**result["config"]), result["eval"]))
    points = law_points(results)

    runs = {}
    for n in sorted({n for n, _ in points}):
        runs[n / 1e6] = [ppl for tokens, ppl in points if tokens == n]

    # the curve reaches a little beyond the runs that it was fitted to
    law = fit_law([n for n, _ in points], [ppl for _, ppl in points], n_bootstrap=0)
    tokens = np.geomspace(law.smallest * 0.8, law.largest * 1.2, 200)
    return runs, (tokens / 1e6, [law.ppl(n) for n in tokens])


def draw_alignment(path, found):
    """Alignment of the 90/10 and the 50/50 runs."""
    mixes = {}
    for name, mix in MIXES.items():
        # [n_layers] lists of seeds for each measure, and for its floor
        layers = {}
        for measure in MEASURES:
            layers[measure] = {}
            for kind in ("value", "floor"):
                layers[measure][kind] = [seeds(found, name, layer_measure, layer, measure, kind)
                                         for layer in range(n_layers(found, name))]

        # a heat map has room for one number a tensor: the mean over seeds
        gradients = {}
        for tensor in found[name][0]["align"]["gradients"]:
            gradients[tensor] = np.mean(seeds(found, name, tensor_gradient, tensor))
        mixes[mix] = {
            "layers": layers,
            "gradients": gradients,
            "gradient": seeds(found, name, gradient),
            "switch_gap": seeds(found, name, switch_gap),
            "paper_cosine": PAPER_COSINE[name],
            "paper_gradient": PAPER_GRADIENT[name],
        }
    plots.alignment_of_mixes(path, mixes)


def draw_embeddings(path, found):
    """A token's embedding and its clone's: by ratio, and of the two mixes by frequency."""
    ratios, names = sweep(found)
    numbers = {}
    for side in sides(found, names):
        by_frequency = {}
        for name, mix in MIXES.items():
            if name in found:
                by_frequency[mix] = bins_of(found, name, side)
        numbers[side] = {
            "value": [seeds(found, name, embedding_cosine, side, "value") for name in names],
            "floor": [seeds(found, name, embedding_cosine, side, "floor") for name in names],
            "by_frequency": by_frequency,
        }
    plots.embeddings(path, [1 - ratio for ratio in ratios], numbers)


def bins_of(found, name, side):
    """The cosines of a run by the tokens' frequency, which all seeds share: they have one text."""
    first = found[name][0]["align"]["embeddings"][side]["by_frequency"]
    bins = range(len(first))
    return {
        "tokens_per_million": [first[i]["tokens_per_million"] for i in bins],
        "cosine": [seeds(found, name, cosine_of_bin, side, i, "cosine") for i in bins],
        "floor": [seeds(found, name, cosine_of_bin, side, i, "floor") for i in bins],
    }


def draw_against(path, found, groups, xlabel):
    """Both mixes against x; groups {"ratio0.9": {x: run}, "ratio0.5": {x: run}}."""
    mixes = {}
    for name, mix in MIXES.items():
        names = list(groups[name].values())
        ppl, teff = {}, {}
        for language in ("EN1", "EN2"):
            ppl[language] = [seeds(found, run, value_of, language, "ppl") for run in names]
            teff[language] = [seeds(found, run, value_of, language, "teff_interpolated")
                              for run in names]
        mixes[mix] = {
            "x": list(groups[name]),
            "ppl": ppl,
            "teff": teff,
            "retrieval": [seeds(found, run, retrieval) for run in names],
        }

    # a tick where 50/50 has a run: 90/10 has one there too, but for that with all anchor points
    ticks = [x for x, run in groups["ratio0.5"].items() if run in found]
    plots.against(path, xlabel, ticks, mixes)


# ------------------------------------------------------------------------------------------------
# Which runs there are, and in which tables

def longer_runs(mix):
    """{length, times 1x: run} of a mix, "ratio0.9" or "ratio0.5"."""
    return {times: mix if times == 1 else f"{mix}-{times}x" for times in LONGER}


def anchor_runs(scale, mix):
    """{% of the vocabulary that is shared: run} of a mix.

    The scale's own percentage is that of the run without a word about it. At 100 % the languages
    are one, and both mixes the same run to the last bit: 50/50 stands for both.
    """
    own = round(100 - 100 * SIZES[scale]["cloned"])
    runs = {}
    for percent in ANCHORS:
        if percent == own:
            runs[percent] = mix
        elif percent < 100 or mix == "ratio0.5":
            runs[percent] = f"anchors{percent}-{mix}"
    return runs


def width_runs(scale, mix):
    """{width of the residual stream: run} of a mix: half the scale's own, its own, twice."""
    width = SIZES[scale]["d_model"]
    return {
        width // 2: f"{mix}-wide{width // 2}",
        width: mix,
        width * 2: f"{mix}-wide{width * 2}",
    }


def in_turn(groups):
    """The runs of {mix: {x: run}} as a list: for each x, one mix after the other."""
    names = []
    for x in groups["ratio0.5"]:
        for runs in groups.values():
            if x in runs:
                names.append(runs[x])
    return names


class Table(NamedTuple):
    """A section of the report: a table, and often a figure."""
    title: str
    runs: list  # that it shows
    needs: list  # other runs that it is made from
    text: Callable = perplexities  # (found, names) -> Markdown
    draw: Callable | None = None  # (path, found) writes the figure


def tables(scale):
    """{name: Table} of a scale, in the order in which they are made."""
    mono = [f"mono{percent}" for percent in PERCENT]
    law = [f"mono{percent}" for percent in LAW_PERCENT]
    ratios = [f"ratio{ratio}" for ratio in RATIOS]
    longer = {mix: longer_runs(mix) for mix in MIXES}
    anchors = {mix: anchor_runs(scale, mix) for mix in MIXES}
    widths = {mix: width_runs(scale, mix) for mix in MIXES}

    # a model of another width has a law of its own, from three runs
    width = SIZES[scale]["d_model"]
    mono_widths = [f"mono{percent}-wide{other}"
                   for other in (width // 2, width * 2) for percent in (10, 50, 100)]

    return {
        "main": Table(
            "Imbalanced against balanced", list(MIXES) + mono, []),
        "alignment": Table(
            "Are the two languages represented alike?", list(MIXES), [],
            alignments, draw_alignment),
        "ratio": Table(
            "Ratio sweep, to the extreme split", ratios, law, draw=draw_ratio),
        "cost": Table(
            "What imbalance costs the dominant language", ratios, law, costs),
        "embeddings": Table(
            "A token's embedding and its clone's", ratios, [], similarities, draw_embeddings),
        "longer": Table(
            "Longer training", in_turn(longer) + ["mono200"], law,
            draw=partial(draw_against, groups=longer, xlabel="training tokens, times 1x")),
        "languages": Table(
            "Ten languages", ["ten-hub", "ten-even"], law),
        "schedule": Table(
            "Language schedules", ["schedule0.9,0.1", "schedule1,0", "ratio0.5"], law),
        "anchors": Table(
            "Anchor points: a part of the vocabulary shared", in_turn(anchors), law,
            draw=partial(draw_against, groups=anchors,
                         xlabel="anchor points, % of the vocabulary")),
        "size": Table(
            "Model size", in_turn(widths) + mono_widths, law,
            draw=partial(draw_against, groups=widths,
                         xlabel="d_model, the width of the residual stream")),
    }


# ------------------------------------------------------------------------------------------------
# The report

def write_report(out, scale, found, changed):
    """Write README.md, with every table of those of its runs that are there, and the figures.

    found {name: {seed: JSON}}. changed: the run that is new, so that only the figures which it is
    part of are drawn again; None: all are.
    """
    found = {name: list(by_seed.values()) for name, by_seed in found.items()}
    parts = [
        f"# {scale}, {out.name}: what was measured\n",
        "Made by `python -m paper.reproduce`; each run's command, configuration and numbers are "
        "in its JSON beside this page.\n"
        "Perplexity is on the test split; ± is one standard deviation over seeds. "
        f"1x is {SIZES[scale]['steps']:,} steps.\n"
        "TEff: against the monolingual runs of all seeds, interpolated between the two "
        "neighbouring ones,\n"
        "and by the law 1/PPL = c - a n^-b fitted to all of them;\n"
        "\"-\" where a perplexity or a number of tokens lies outside theirs.\n",
    ]

    # a section a table, also of those that have no runs yet
    for name, table in tables(scale).items():
        parts += section(out, name, table, found, changed)
    with write(out / "README.md") as f:
        f.write("\n".join(parts).encode())


def section(out, name, table, found, changed):
    """The Markdown of one table, as a list of parts, and its figure, if it is due."""
    needed = table.runs + table.needs
    shown = [run for run in table.runs if run in found]
    missing = [run for run in needed if run not in found]
    parts = [f"## {table.title}\n"]
    if missing:
        parts.append(f"Not there yet: {', '.join(missing)}. "
                     f"`python -m paper.reproduce --tables={name}`\n")

    # a table of one or two runs of many says nothing yet, nor does one without its law
    enough = len(shown) >= min(3, len(table.runs))
    if not enough or any(run not in found for run in table.needs):
        return parts
    parts.append(table.text(found, shown))

    # drawing takes a second or two: only what the new run changes
    if table.draw:
        path = out / f"{name}.png"
        if changed is None or changed in needed or not path.exists():
            table.draw(path, found)
        parts.append(f"![{table.title}]({path.name})\n")
    return parts
