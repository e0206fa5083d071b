"""The tables and figures of paper/reproduce.py: from the JSON of finished runs to Markdown and PNG.

found, everywhere: {name of a run: [what its JSON holds, one for each seed]}. Every number is the
mean over all seeds that were run ± one standard deviation. In the ten-language runs "EN2" is one of
the nine others, as in the paper. What a figure shows is computed here, and drawn by lib/plots.py.
"""
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

import align
from eval import fit_law, law_points, monolingual_options
from lib import plots
from lib.cli import plural, write
from model import ARCHITECTURES, HEADS, SIZES
from paper import numbers

# what is varied
RATIOS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # EN1's share
PERCENT = (5, 10, 20, 50, 100, 200)  # tokens of the monolingual runs, of 1x
LAW_PERCENT = (5, 10, 20, 50, 100)  # those without which there is no monolingual law
PLAIN_PERCENT = (20, 50)  # of those with the batches of the bilingual runs
LONGER = (0.5, 1, 2)  # length, times 1x
ANCHORS = (0, 5, 50, 100)  # anchor points, % of the vocabulary

# the mixes that are looked at by patching
PATCHED = ("ratio0.9", "ratio0.8", "ratio0.5")

# the two runs that the paper contrasts, and what they are called in the figures
MIXES = {"ratio0.9": "90/10", "ratio0.5": "50/50"}

# the measures of alignment that the tables show, and their names there
MEASURES = {
    "cosine": "cosine",
    "centred": "centred cosine",
    "cka": "linear CKA",
    "retrieval": "retrieval@1",
}

# ------------------------------------------------------------------------------------------------
# Numbers of one result, the JSON of one run and seed

def value_of(result, language, key):
    """A number of eval.json, of "EN1", "EN2" or the "others" of EN1, their mean; None for none."""
    languages = result["eval"]["languages"]
    chosen = {"EN1": languages[:1], "EN2": languages[1:2], "others": languages[1:]}[language]
    values = [of_language.get(key) for of_language in chosen]
    if not values or None in values:
        return None
    return float(np.mean(values))


def million_tokens(result, language):
    """How many tokens a language saw, in millions."""
    return value_of(result, language, "tokens_seen") / 1e6


def extra_perplexity(result):
    """What the other languages cost EN1: 0.02 where its perplexity is 2 % above that of a
    monolingual model of the same EN1 tokens. None where no monolingual run had so few or so many.
    """
    monolingual_ppl = value_of(result, "EN1", "mlpe_interpolated")
    if monolingual_ppl is None:
        return None
    return value_of(result, "EN1", "ppl") / monolingual_ppl - 1


def retrieval(result):
    """retrieval@1 in the middle layer, the one that train.py watches."""
    return result["align"]["layers"][middle(result)]["retrieval"]["value"]


def middle(result):
    """The number of the middle layer."""
    return (len(result["align"]["layers"]) - 1) // 2


def shared(result):
    """How much of the vocabulary the languages share, in percent: 0 in the paper's main runs."""
    return round(100 - 100 * result["config"]["cloned"])


def gradient(result, kind="single"):
    """Cosine of the two languages' gradients, mean over the tensors of the blocks.

    kind: "single", of single sequences, as the paper's; or "same", of one long text.
    """
    return align.block_mean(result["align"]["gradients"], kind)


def with_patching(found, names):
    """{name: results} of some runs, without those from before align.py did patching."""
    kept = {}
    for name in names:
        results = [r for r in found.get(name, []) if "interchange" in r.get("align", {})]
        if results:
            kept[name] = results
    return kept


def interchange(result, what, layer=None):
    """How well EN1's stream does in EN2: "all", or "here" or "around" after a layer; None where
    there was nothing to lose.
    """
    found = result["align"]["interchange"][what]
    return (found if layer is None else found[layer])["value"]


def ablation(result, key):
    """The rank "correlation" of what heads and MLPs are worth to both languages, or its "floor" or
    "ceiling".
    """
    return result["align"]["ablation"][key]


def tensor_gradient(result, tensor):
    """Gradient cosine of single sequences, of one tensor."""
    return result["align"]["gradients"][tensor]["single"]


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


def perplexities(found, names, beside):
    """Tokens, perplexity and token efficiency of each language; how alike they are represented.

    Beside them stand the paper's numbers (beside {run: numbers.Numbers}) of the same kind of run:
    as much of the vocabulary shared, the same mix, the same length in units of 1x.
    """
    head = ["run", "shared, % of the vocabulary", "language", "tokens, M", "perplexity",
            "TEff", "TEff, law", "TEff, plain", "paper: PPL", "paper: TEff",
            "retrieval@1, middle layer", "gradient cosine, single sequences", "seeds"]

    # a row a language; what is of the whole run stands in the first
    rows = []
    for name in names:
        n_languages = found[name][0]["config"]["languages"]
        languages = ["EN1", "EN2"][:n_languages]
        if n_languages > 2:
            languages.append("others")
        for language in languages:
            theirs = ["", ""]
            if name in beside and language != "others":
                i = languages.index(language)
                theirs = [f"{beside[name].ppl[i]:.4g}", f"{beside[name].teff[i]:.2f}"]
            # a monolingual run of few tokens would stand here beside itself
            plain = []
            if n_languages > 1:
                plain = seeds(found, name, value_of, language, "teff_same_batch")
            numbers_of_language = [
                language if language != "others" else f"mean of the {n_languages - 1} others",
                stat([million_tokens(found[name][0], language)]),
                stat(seeds(found, name, value_of, language, "ppl")),
                stat(seeds(found, name, value_of, language, "teff_interpolated")),
                stat(seeds(found, name, value_of, language, "teff")),
                stat(plain),
                *theirs,
            ]
            if language != "EN1":
                rows.append(["", "", *numbers_of_language, "", "", ""])
                continue
            alike = ["", ""]
            if "align" in found[name][0]:
                alike = [stat(seeds(found, name, retrieval), ".3f"),
                         stat(seeds(found, name, gradient))]
            of_vocabulary = shared(found[name][0]) if n_languages > 1 else ""
            rows.append([name, of_vocabulary, *numbers_of_language, *alike, len(found[name])])
    return markdown(head, rows)


def architectures(found, names, beside):
    """Perplexity, token efficiency and alignment of 90/10 and 50/50, by architecture and head."""
    head = ["architecture", "heads", "mix", "EN1: perplexity", "EN2: perplexity",
            "EN1: TEff", "EN2: TEff", "retrieval@1, middle layer",
            "gradient cosine, single sequences", "seeds"]
    rows = []
    for name in names:
        config = found[name][0]["config"]
        row = [config["arch"], config["heads"], MIXES["ratio" + config["ratio"]]]
        for key in ("ppl", "teff_interpolated"):
            for language in ("EN1", "EN2"):
                row.append(stat(seeds(found, name, value_of, language, key)))
        row += [stat(seeds(found, name, retrieval), ".3f"), stat(seeds(found, name, gradient)),
                len(found[name])]
        rows.append(row)
    return markdown(head, rows) + (
        "\nCompare TEff, not perplexities, from one architecture to another: a decoder's is of the "
        "last quarter of a window, an encoder's of masked tokens, and an encoder-decoder's of the "
        "last half of what it writes.\n")


def interchanges(found, names, beside):
    """What EN2 can do with EN1's states, and whether the same heads and MLPs serve both."""
    head = ["run", "at all positions", "at every 16th, after the middle layer",
            "at all but these, after the embedding", "worth of heads and MLPs, rank correlation",
            "its floor", "its ceiling", "seeds"]
    rows, found = [], with_patching(found, names)
    for name, results in found.items():
        row = [name, stat(seeds(found, name, interchange, "all")),
               stat(seeds(found, name, interchange, "here", middle(results[0]))),
               stat(seeds(found, name, interchange, "around", 0))]
        for key in ("correlation", "floor", "ceiling"):
            row.append(stat(seeds(found, name, ablation, key)))
        rows.append([*row, len(results)])
    return markdown(head, rows) + (
        "\nEN1's residual stream in the place of EN2's own, of the same text. 1: as good as its "
        "own. 0: no better than that of another text.\nWorth: how much the loss of a language "
        "rises without a head or MLP; the floor is of heads shuffled within a layer, the ceiling "
        "of EN1 on two texts.\n")


def costs(found, names, beside):
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


def alignments(found, names, beside):
    """Each measure by layer, with its floor; then what is one number a run."""
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

    raw, gradients, gaps = [], [], []
    for name in names:
        theirs = " ".join(f"{cosine:.2f}" for cosine in numbers.COSINE[name])
        raw.append(f"- {name}: {theirs}")
        single = stat(seeds(found, name, gradient))
        same = stat(seeds(found, name, gradient, "same"))
        gradients.append(f"- {name}: {single} of single sequences "
                         f"(paper: {numbers.GRADIENT[name]}); {same} of one long text")
        gaps.append(f"- {name}: {stat(seeds(found, name, switch_gap), '.3f')}")
    return "\n".join([
        markdown(head, rows),
        "In brackets the floor: shuffled pairs. Layer 0 is the embedding.\n",
        "The paper's raw cosine after each of its 12 layers; \"cosine\" above is raw too:\n",
        *raw,
        "\nGradient cosine of the two languages, mean over the tensors of the blocks:\n",
        *gradients,
        "\nCode-switch gap within EN2 after a first half in EN1, in nats; 0 means that all context "
        "carries across:\n",
        *gaps,
        "",
    ])


def similarities(found, names, beside):
    """Cosine of a token's embedding and its clone's, by ratio, beside that of all pairs.

    The paper has "input" and "output"; a tied matrix stands beside neither.
    """
    head = ["run"]
    for side in sides(found, names):
        head += [f"{side} embedding", "shuffled", "all pairs", f"paper: {side}"]
    rows = []
    for name in names:
        row = [name]
        for side in sides(found, names):
            for kind in ("value", "floor", "all_pairs"):
                row.append(stat(seeds(found, name, embedding_cosine, side, kind), ".3f"))
            ratio = float(name.removeprefix("ratio"))
            row.append(numbers.EMBEDDING.get(side, {}).get(ratio, ""))
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

def draw_main(path, found):
    """The two mixes."""
    languages = by_language(found, list(MIXES))
    plots.contrast(path, [0.9, 0.5], languages, monolingual_runs(found))


def draw_ratio(path, found):
    """The ratio sweep, of those of its runs that are there."""
    ratios, names = sweep(found)
    languages = by_language(found, names)
    alike = {
        "retrieval@1, middle layer": [seeds(found, name, retrieval) for name in names],
        "gradient cosine": [seeds(found, name, gradient) for name in names],
    }
    mono = monolingual_runs(found)
    plots.ratio_sweep(path, ratios, languages, mono, law_curve(mono), alike)


def by_language(found, names):
    """What plots.contrast and plots.ratio_sweep call languages: EN1 and EN2 in runs of a sweep."""
    languages = {}
    for i, language in enumerate(("EN1", "EN2")):
        of_language = {"tokens": [million_tokens(found[name][0], language) for name in names]}
        for key, of_result in (("ppl", "ppl"), ("teff", "teff_interpolated"),
                               ("teff_plain", "teff_same_batch")):
            of_language[key] = [seeds(found, name, value_of, language, of_result) for name in names]
        languages[language] = of_language | {"paper": paper_sweep(i)}
    return languages


def paper_sweep(i):
    """{EN1's share: TEff of EN1 (i = 0) or EN2 (i = 1)} in the paper's ratio sweep, of small."""
    teff = {}
    for ratio in RATIOS:
        if f"ratio{ratio}" in numbers.SMALL:
            teff[ratio] = numbers.SMALL[f"ratio{ratio}"].teff[i]
    return teff


def sweep(found):
    """EN1's shares in the ratio sweep, and the names of their runs: those that are there."""
    ratios = [ratio for ratio in RATIOS if f"ratio{ratio}" in found]
    return ratios, [f"ratio{ratio}" for ratio in ratios]


def monolingual_runs(found):
    """{millions of tokens: perplexities} of the monolingual runs, at their best."""
    results = []
    for percent in PERCENT:
        for result in found.get(f"mono{percent}", ()):
            results.append((SimpleNamespace(**result["config"]), result["eval"]))

    runs = {}
    for n, ppl in sorted(law_points(results)):
        runs.setdefault(n / 1e6, []).append(ppl)
    return runs


def law_curve(mono):
    """The law through monolingual runs, as a curve: its millions of tokens, its perplexities."""
    points = [(1e6 * million, ppl) for million, seeds in mono.items() for ppl in seeds]
    law = fit_law(*zip(*points), n_bootstrap=0)
    tokens = np.geomspace(law.smallest * 0.8, law.largest * 1.2, 200)
    return tokens / 1e6, [law.ppl(n) for n in tokens]


def draw_alignment(path, found):
    """Alignment of the 90/10 and the 50/50 runs."""
    mixes = {}
    for name, mix in MIXES.items():
        layers = {}
        for measure in MEASURES:
            layers[measure] = {}
            for kind in ("value", "floor"):
                layers[measure][kind] = [seeds(found, name, layer_measure, layer, measure, kind)
                                         for layer in range(n_layers(found, name))]
        gradients = {}
        for tensor in found[name][0]["align"]["gradients"]:
            gradients[tensor] = np.mean(seeds(found, name, tensor_gradient, tensor))
        mixes[mix] = {
            "layers": layers,
            "gradients": gradients,
            "gradient": seeds(found, name, gradient),
            "switch_gap": seeds(found, name, switch_gap),
            "paper_cosine": numbers.COSINE[name],
            "paper_gradient": numbers.GRADIENT[name],
        }
    plots.alignment_of_mixes(path, mixes)


def draw_embeddings(path, found):
    """A token's embedding and its clone's: by ratio, and of the two mixes by frequency."""
    ratios, names = sweep(found)
    by_side = {}
    for side in sides(found, names):
        by_frequency = {}
        for name, mix in MIXES.items():
            if name in found:
                by_frequency[mix] = bins_of(found, name, side)
        by_side[side] = {
            "value": [seeds(found, name, embedding_cosine, side, "value") for name in names],
            "floor": [seeds(found, name, embedding_cosine, side, "floor") for name in names],
            "by_frequency": by_frequency,
        }
    plots.embeddings(path, [1 - ratio for ratio in ratios], by_side)


def bins_of(found, name, side):
    """The cosines of a run by the tokens' frequency, which all seeds share: they have one text."""
    first = found[name][0]["align"]["embeddings"][side]["by_frequency"]
    bins = range(len(first))
    return {
        "tokens_per_million": [first[i]["tokens_per_million"] for i in bins],
        "cosine": [seeds(found, name, cosine_of_bin, side, i, "cosine") for i in bins],
        "floor": [seeds(found, name, cosine_of_bin, side, i, "floor") for i in bins],
    }


def draw_interchanges(path, found):
    """Every draw of every mix: interchange layer by layer, and the correlation of worth."""
    exchange, worth, found = {}, {}, with_patching(found, PATCHED)
    for name in found:
        exchange[name] = [{what: [entry["value"] for entry in result["align"]["interchange"][what]]
                           for what in ("here", "around")} for result in found[name]]
        worth[name] = {key: seeds(found, name, ablation, key)
                       for key in ("correlation", "floor", "ceiling")}
    if exchange:
        plots.interchanges(path, exchange, worth)


def draw_architectures(path, found):
    """EN2's token efficiency by architecture and head, both mixes."""
    kinds, teff = [], {mix: [] for mix in MIXES.values()}
    for arch in ARCHITECTURES:
        for heads in HEADS:
            names = {mix: arch_run(arch, name, heads) for name, mix in MIXES.items()}
            if all(name in found for name in names.values()):
                kinds.append(f"{arch},\n{heads.replace('-', ' ')}")
                for mix, name in names.items():
                    teff[mix].append(seeds(found, name, value_of, "EN2", "teff_interpolated"))
    plots.architectures(path, kinds, teff)


def draw_against(path, found, groups, xlabel):
    """Both mixes against x; groups {"ratio0.9": {x: run}, "ratio0.5": {x: run}}."""
    mixes = {}
    for name, mix in MIXES.items():
        names = list(groups[name].values())
        mixes[mix] = {
            "x": list(groups[name]),
            "ppl": {},
            "teff": {},
            "retrieval": [seeds(found, run, retrieval) for run in names],
        }
        for language in ("EN1", "EN2"):
            mixes[mix]["ppl"][language] = [
                seeds(found, run, value_of, language, "ppl") for run in names]
            mixes[mix]["teff"][language] = [
                seeds(found, run, value_of, language, "teff_interpolated") for run in names]
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


def arch_run(arch, name, heads="shared"):
    """What a run of the grid is called with another architecture, or with heads per language."""
    words = [] if arch == "decoder" else [arch]
    if heads != "shared":
        words.append("heads")
    return "-".join([*words, name])


def width_runs(scale, mix):
    """{width of the residual stream: run} of a mix: a quarter of the scale's own, a half, all."""
    width = SIZES[scale]["d_model"]
    return {
        width // 4: f"{mix}-wide{width // 4}",
        width // 2: f"{mix}-wide{width // 2}",
        width: mix,
    }


def in_turn(groups):
    """The runs of {mix: {x: run}} as a list: for each x, one mix after the other."""
    names = []
    for x in groups["ratio0.5"]:
        for runs in groups.values():
            if x in runs:
                names.append(runs[x])
    return names


def plain_percents(scale):
    """Percentages at which a monolingual run at its best has other batches than a bilingual one."""
    size, chosen = SIZES[scale], []
    for percent in PLAIN_PERCENT:
        best = monolingual_options(size["steps"], size["batch_size"], percent)
        if best["batch_size"] != size["batch_size"]:
            chosen.append(percent)
    return chosen


class Table(NamedTuple):
    """A section of the report: a table, and often a figure."""
    title: str
    runs: list  # that it shows
    needs: list  # those that it cannot be made without, shown or not
    text: Callable = perplexities  # (found, names, beside) -> Markdown
    draw: Callable | None = None  # (path, found) writes the figure


def tables(scale):
    """{name: Table} of a scale, in the order in which they are made."""
    law = [f"mono{percent}" for percent in LAW_PERCENT]
    plain = [f"mono{percent}-plain" for percent in plain_percents(scale)]
    ratios = [f"ratio{ratio}" for ratio in RATIOS]
    longer = {mix: longer_runs(mix) for mix in MIXES}
    anchors = {mix: anchor_runs(scale, mix) for mix in MIXES}
    widths = {mix: width_runs(scale, mix) for mix in MIXES}

    # a model of another width has a law of its own
    width = SIZES[scale]["d_model"]
    mono_widths = [f"mono{percent}-wide{other}"
                   for other in (width // 4, width // 2) for percent in LAW_PERCENT]

    # and so has another architecture
    arch_mixes = [arch_run(arch, mix, heads)
                  for arch in ARCHITECTURES for heads in HEADS for mix in MIXES]
    arch_laws = [arch_run(arch, name) for arch in ARCHITECTURES[1:] for name in law]

    return {
        "main": Table(
            "Imbalanced against balanced", [*MIXES, *law, *plain], [*MIXES, *law], draw=draw_main),
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
        "patching": Table(
            "Are they interchangeable?", list(PATCHED), [], interchanges, draw_interchanges),
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
        "architectures": Table(
            "Other architectures, and a head per language", arch_mixes, [*law, *arch_laws],
            architectures, draw_architectures),
    }


# ------------------------------------------------------------------------------------------------
# The report

def write_report(out, scale, found, changed, sections=None, options=""):
    """Write README.md, with every table of those of its runs that are there, and the figures.

    found {name: {seed: JSON}}. changed: the run that is new, so that only the figures which it is
    part of are drawn again; None: all are. sections {name: Table}: None for those of clones.
    options: of paper.reproduce, that make what is not there yet.
    """
    found = {name: list(by_seed.values()) for name, by_seed in found.items()}
    parts = [
        f"# {scale}, {out.name}: what was measured\n",
        f"Run on {'; '.join(machines(found))}.\n"
        "Made by `python -m paper.reproduce`; each run's command, configuration and numbers are "
        "in its JSON beside this page.\n"
        "Perplexity is on the test split; ± is one standard deviation over seeds. "
        f"1x is {SIZES[scale]['steps']:,} steps.\n"
        "TEff: against the monolingual runs of all seeds, at their best: a short one has smaller "
        "batches, and so more steps.\n"
        "It is interpolated between the two nearest ones. \"TEff, law\": by 1/PPL = c - a n^-b, "
        "fitted to all.\n"
        "\"TEff, plain\", of clones: against monolingual runs with the batches of the bilingual "
        "ones, as the paper's are; these are easier to beat.\n"
        "\"-\": outside the range of the monolingual runs, or there are too few of them.\n"
        "The paper's numbers are of its own vocabulary: compare token efficiencies.\n"
        "Beside nano and pico stand those of its small, of 85M parameters and 1.197e9 tokens.\n",
    ]
    for name, table in (sections or tables(scale)).items():
        parts += section(out, name, table, found, changed, numbers.BESIDE[scale], options)
    with write(out / "README.md") as f:
        f.write("\n".join(parts).encode())


def machines(found):
    """["AMD EPYC, ... 1 threads (20 runs, float32)", ...]: what all runs were made on."""
    runs_on = Counter()
    for results in found.values():
        runs_on.update((result["machine"], result["config"]["dtype"]) for result in results)
    return [f"{machine} ({plural(n, 'run')}, {dtype})"
            for (machine, dtype), n in sorted(runs_on.items())]


def section(out, name, table, found, changed, beside, options):
    """The Markdown of one table, as a list of parts, and its figure, if it is due."""
    needed = list(dict.fromkeys(table.runs + table.needs))  # each once
    shown = [run for run in table.runs if run in found]
    missing = [run for run in needed if run not in found]
    parts = [f"## {table.title}\n"]
    if missing:
        parts.append(f"Not there yet: {', '.join(missing)}. "
                     f"`python -m paper.reproduce {options}--tables={name}`\n")

    # a table of one or two runs of many says nothing yet, nor does one without its law
    enough = len(shown) >= min(3, len(table.runs))
    if not enough or any(run not in found for run in table.needs):
        return parts
    parts.append(table.text(found, shown, beside))

    if table.draw:
        path = out / f"{name}.png"
        if changed is None or changed in needed or not path.exists():
            table.draw(path, found)
        if path.exists():
            parts.append(f"![{table.title}]({path.name})\n")
    return parts
