"""Two real languages: which runs there are, the table and the figures, beside the paper's.

    python -m paper.reproduce --corpus=eltec-eng --corpus=eltec-fra --parallel=eltec-fra-eng

What the paper did with English and French: disjoint and anchored vocabularies, several mixes, and a
monolingual law for each language. The paper's numbers stand beside eng and fra only.
"""
from functools import partial

import numpy as np

from eval import monolingual_options
from lib import plots
from model import SIZES
from paper import numbers
from paper.report import LAW_PERCENT, Table, gradient, markdown, middle, seeds, stat

VOCABULARIES = ("disjoint", "anchored")
RATIOS = (0.9, 0.5, 0.95, 0.1)  # the first language's share, in the order of what they teach
PAPER_NAMES = ["eng", "fra"]

# ------------------------------------------------------------------------------------------------
# The runs

def grid(scale, names, corpora, parallel):
    """{name: options of train.py} of two languages: their names, and what --corpus says of each.

    parallel: the parallel text that is the test of align.py, or None for none.
    """
    size, options = SIZES[scale], {}
    held_out = {"parallel": parallel} if parallel else {}
    for name, corpus in zip(names, corpora):
        for percent in LAW_PERCENT:
            options[f"{name}-mono{percent}"] = {"corpus": corpus} | held_out | monolingual_options(
                size["steps"], size["batch_size"], percent)
    for vocabulary in VOCABULARIES:
        both = {"corpus": list(corpora), "vocabulary": vocabulary} | held_out
        for name, mix in mixes(vocabulary).items():
            options[name] = both | mix
    return options


def mixes(vocabulary):
    """{name of a run: its mix} of all runs of both languages with a vocabulary."""
    found = {f"{vocabulary}-ratio{ratio}": {"ratio": ratio} for ratio in RATIOS}
    found[f"{vocabulary}-schedule0.9,0.1"] = {"schedule": "0.9,0.1"}
    return found


def tables(scale, names):
    """{name: Table}, as report.tables."""
    laws = [f"{name}-mono{percent}" for name in names for percent in LAW_PERCENT]
    both = [run for vocabulary in VOCABULARIES for run in mixes(vocabulary)]
    return {
        "languages": Table(" and ".join(names), [*laws, *both], laws,
                           partial(efficiencies, languages=names),
                           partial(draw_efficiencies, languages=names)),
        "alignment": Table("Are the two languages represented alike?", both, [],
                           partial(alignments, languages=names), draw_alignments),
    }


# ------------------------------------------------------------------------------------------------
# Numbers of one result

def of_language(result, name, key):
    """A number of eval.json of a language; None for none."""
    for language in result["eval"]["languages"]:
        if language["name"] == name:
            return language.get(key)
    return None


def measure_of(result, layer, measure, kind="value"):
    """A measure of alignment after a layer, or its floor; None where it was not measured."""
    layers = result.get("align", {"layers": []})["layers"]
    return layers[layer][measure][kind] if layers and measure in layers[layer] else None


def aligned(found, run):
    """Whether the alignment of a run was measured, in every seed: it takes a parallel text."""
    return run in found and all("align" in result for result in found[run])


def paper_teff(run, names, name):
    """Token efficiency of a language in the paper's run, or None."""
    if names != PAPER_NAMES or run not in numbers.ENGLISH_FRENCH:
        return None
    return numbers.ENGLISH_FRENCH[run].teff[names.index(name)]


# ------------------------------------------------------------------------------------------------
# Tables

def efficiencies(found, shown, beside, languages):
    """Tokens, perplexity and token efficiency of each language, beside the paper's."""
    head = ["run", "language", "tokens, M", "perplexity", "TEff", "TEff, law", "paper: TEff",
            "seeds"]
    rows = []
    for run in shown:
        first = found[run][0]["eval"]["languages"]
        mono = len(first) == 1
        for i, language in enumerate(first):
            name = language["name"]
            theirs = paper_teff(run, languages, name)
            rows.append([
                run if i == 0 else "",
                run.partition("-")[0] if mono else name,
                f"{language['tokens_seen'] / 1e6:.2f}",
                stat(seeds(found, run, of_language, name, "ppl")),
                "" if mono else stat(seeds(found, run, of_language, name, "teff_interpolated")),
                "" if mono else stat(seeds(found, run, of_language, name, "teff")),
                "" if theirs is None else f"{theirs:.2f}",
                len(found[run]) if i == 0 else "",
            ])
    return markdown(head, rows)


MEASURES = {"matched": "cosine of matched tokens", "matched_centred": "the same, centred",
            "line": "retrieval@1 of a line", "shared": "centred cosine of shared tokens"}


def alignments(found, shown, beside, languages):
    """Each measure in the middle layer, with its floor, and the gradients; then layer by layer."""
    shown = [run for run in shown if aligned(found, run)]
    if not shown:
        return "Not measured: there is no parallel text. Give one with --parallel.\n"
    head = ["run", *(f"{words} (floor)" for words in MEASURES.values()),
            "gradient cosine, one window", "one text", "paper, one window"]
    rows, by_layer = [], []
    for run in shown:
        row, middle_layer = [run], middle(found[run][0])
        for measure in MEASURES:
            values = seeds(found, run, measure_of, middle_layer, measure)
            floors = seeds(found, run, measure_of, middle_layer, measure, "floor")
            row.append("-" if None in values else f"{stat(values, '.3f')} ({np.mean(floors):.3f})")
        row += [stat(seeds(found, run, gradient), ".3f"),
                stat(seeds(found, run, gradient, "same"), ".3f"),
                numbers.MATCHED_GRADIENT.get(run, "") if languages == PAPER_NAMES else ""]
        rows.append(row)

        cosines = []
        for layer in range(found[run][0]["config"]["n_layer"] + 1):
            value = np.mean(seeds(found, run, measure_of, layer, "matched"))
            floor = np.mean(seeds(found, run, measure_of, layer, "matched", "floor"))
            cosines.append(f"{value:.2f} ({floor:.2f})")
        line = f"- {run}: {', '.join(cosines)}"
        if languages == PAPER_NAMES and run in numbers.MATCHED:
            line += f"; paper: {' '.join(f'{cosine:.2f}' for cosine in numbers.MATCHED[run])}"
        by_layer.append(line)
    return "\n".join([
        "In the middle layer:\n",
        markdown(head, rows),
        "In brackets the floor: other windows, and other lines, about as long; of shared tokens, "
        "other tokens.\n",
        "Cosine of matched tokens layer by layer, the embedding first; the paper's after each of "
        "its 12 layers, without a floor:\n",
        *by_layer,
        "",
    ])


# ------------------------------------------------------------------------------------------------
# Figures

def draw_efficiencies(path, found, languages):
    """TEff of both languages against the first one's share, disjoint and anchored."""
    panels = {}
    for vocabulary in VOCABULARIES:
        ratios = sorted(ratio for ratio in RATIOS if f"{vocabulary}-ratio{ratio}" in found)
        panels[vocabulary] = {"ratios": ratios, "languages": {}}
        for name in languages:
            paper, teff = {}, []
            for ratio in ratios:
                run = f"{vocabulary}-ratio{ratio}"
                teff.append(seeds(found, run, of_language, name, "teff_interpolated"))
                theirs = paper_teff(run, languages, name)
                if theirs is not None:
                    paper[ratio] = theirs
            panels[vocabulary]["languages"][name] = {"teff": teff, "paper": paper}
    plots.efficiency_of_vocabularies(path, languages[0], panels)


def draw_alignments(path, found):
    """Measures of alignment layer by layer, of 90/10 and 50/50, disjoint and anchored."""
    runs = {}
    for vocabulary in VOCABULARIES:
        for ratio, mix in ((0.9, "90/10"), (0.5, "50/50")):
            run = f"{vocabulary}-ratio{ratio}"
            if not aligned(found, run):
                continue
            numbers_of_run = {}
            for measure in found[run][0]["align"]["layers"][0].keys() & MEASURES.keys():
                kinds = {"value": [], "floor": []}
                for kind, of_layer in kinds.items():
                    for layer in range(found[run][0]["config"]["n_layer"] + 1):
                        of_layer.append(seeds(found, run, measure_of, layer, measure, kind))
                numbers_of_run[measure] = kinds
            runs[vocabulary, mix] = numbers_of_run
    if runs:
        plots.alignment_of_vocabularies(path, MEASURES, runs)
