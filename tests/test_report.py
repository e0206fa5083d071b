import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest

import align
import runs
from model import SIZES
from paper import numbers, report, reproduce

# tokens of nano's 1x, in millions
ONE = SIZES["nano"]["steps"] * SIZES["nano"]["batch_size"] * SIZES["nano"]["context"] / 1e6


def planted_law(n):
    """The perplexity of a monolingual model on n tokens."""
    return 1 / (0.06 - 0.5 * n**-0.25)


def no_transfer(name, language):
    return 1.0


def plant(out, scale, names, seeds, teff=no_transfer, jitter=0.0):
    """Write the JSON of runs whose perplexity is what a monolingual model has on teff times their
    tokens, with a jitter that differs by seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        options = reproduce.grid(scale)[name]
        for seed in range(seeds):
            result = {
                "command": "planted",
                "config": planted_config(scale, options),
                "machine": "an abacus",
                "eval": planted_eval(scale, name, options, teff, jitter * (seed - (seeds - 1) / 2)),
                "align": planted_align(6, seed),  # six layers, so that the middle is at no end
            }
            (out / f"{name}.seed{seed}.json").write_text(json.dumps(result))


def planted_config(scale, options):
    config = SIZES[scale] | {"languages": options.get("languages", 2)} | options
    config |= {"version": runs.VERSION, "dtype": "float32"}
    if "ratio" in options:
        config["ratio"] = str(options["ratio"])  # as on the command line
    return config


def planted_eval(scale, name, options, teff, jitter):
    size = SIZES[scale]
    steps = options.get("steps", size["steps"])
    total = steps * options.get("batch_size", size["batch_size"]) * size["context"]

    # the main language has its share, and the others the rest, evenly
    n = options.get("languages", 2)
    main = float(options.get("ratio", 1 / n))
    shares = [1.0] if n == 1 else [main] + [(1 - main) / (n - 1)] * (n - 1)
    languages = []
    for l, share in enumerate(shares):
        ppl = planted_law(total * share * teff(name, l)) * (1 + jitter)
        languages.append({
            "name": f"EN{l + 1}", "tokens_seen": total * share, "loss": float(np.log(ppl)),
            "ppl": ppl, "ppl_se": 0.1, "bits_per_byte": 1.0,
        })
    gaps = {"EN1->EN2": {"plain": {"gap": 0.75}, "within": {"gap": 0.25}},
            "EN2->EN1": {"plain": {"gap": 0.95}, "within": {"gap": 0.85}}}
    return {"languages": languages, "code_switch": gaps}


def planted_align(n_layer, seed):
    """What align.summary returns; no two layers, measures or kinds have the same number."""
    def entry(value, floor=0.0):
        return {"value": value + 0.02 * seed, "floor": floor, "above": True}

    layers = []
    for layer in range(n_layer + 1):
        retrieval = 0.5 + 0.1 * (layer - n_layer // 2)  # 0.5 in the middle
        layers.append({"cosine": entry(retrieval / 2, 0.01), "centred": entry(retrieval / 4, 0.02),
                       "cka": entry(retrieval / 8, 0.03), "retrieval": entry(retrieval, 0.04),
                       "retrieval_back": entry(-retrieval, 0.05)})
        assert layers[-1].keys() == align.MEASURES.keys()

    kinds = ["norm1.weight", "norm1.bias", "q", "k", "v", "proj",
             "norm2.weight", "norm2.bias", "up", "down"]
    gradients = {"embedding": {"single": 0.9, "same": 0.9, "other": 0.9, "within": 0.9}}
    for i in range(n_layer):
        for kind in kinds:
            same = 0.3 + (0.1 if kind == "q" else -0.1 if kind == "k" else 0)
            gradients[f"blocks.{i}.{kind}"] = {
                "single": same - 0.1, "same": same, "other": 0.2, "within": 0.8}
        # of the linear layers' biases, that of k is noise
        gradients[f"blocks.{i}.k_bias"] = {"single": -1, "same": -1, "other": -1, "within": -1}

    embeddings = {}
    for side, value in (("input", 0.2), ("output", 0.6)):
        bins = [{"tokens_per_million": 10.0**i, "cosine": value * i / 2, "floor": 0.01 * i}
                for i in range(4)]
        embeddings[side] = entry(value) | {"all_pairs": value / 2, "by_frequency": bins}
    exchange = {"all": {"value": 0.7},
                "here": [{"value": 0.1 + 0.01 * layer} for layer in range(n_layer + 1)],
                "around": [{"value": 0.2 + 0.01 * layer} for layer in range(n_layer)]}
    return {"layers": layers, "gradients": gradients, "embeddings": embeddings,
            "interchange": exchange,
            "ablation": {"correlation": 0.5, "floor": 0.2, "ceiling": 0.9}}


def read(out, scale):
    return reproduce.read(out, scale, "float32")


def found_in(out, scale="nano"):
    """What report.py calls found: {name: [JSON of each seed]}."""
    return {name: list(by_seed.values()) for name, by_seed in read(out, scale).items()}


def rows(text, run):
    """The cells of a run's row in a Markdown table, and of the row below it."""
    lines = text.splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith(f"| {run} |"))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[i:i + 2]]


def mean(cell):
    """"2.00 ± 1.00" -> 2.0"""
    return float(cell.split()[0])


# ------------------------------------------------------------------------------------------------
# Numbers and tables

def test_mean_and_spread_in_words():
    assert report.stat([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert report.stat([1.5]) == "1.50"
    assert report.stat([1.0, None]) == "-"
    assert report.stat([]) == "-"
    assert report.stat([9.04e10]) == "9.0e+10"
    assert report.stat([0.01, 0.03], "+.1%") == "+2.0% ± 1.4%"


@pytest.mark.parametrize("n_layer", [2, 3])
def test_the_middle_layer_is_the_one_that_train_watches(n_layer):
    """Planted there: 0.5. Of 3 layers, so of 4 states, it is layer 1."""
    assert report.retrieval({"align": planted_align(n_layer, 0)}) == 0.5


def test_planted_efficiency_comes_out_in_the_tables(tmp_path):
    def teff(name, language):
        if name == "ratio0.9" and language == 1:
            return 2.5
        return 0.9 if name == "ratio0.5" else 1.0

    plant(tmp_path, "nano", reproduce.grid("nano"), seeds=3, teff=teff, jitter=1e-5)
    # those with the bilingual run's own batches are 5 % worse, so easier to beat
    for path in tmp_path.glob("mono*-plain.seed*.json"):
        result = json.loads(path.read_text())
        result["eval"]["languages"][0]["ppl"] *= 1.05
        path.write_text(json.dumps(result))
    found = found_in(tmp_path)
    text = report.perplexities(found, ["ratio0.9", "ratio0.5", "mono100"], numbers.SMALL)
    one, two = rows(text, "ratio0.9")
    by_law = [mean(one[6]), mean(two[6])]
    assert by_law == [pytest.approx(1, abs=0.01), pytest.approx(2.5, abs=0.02)]
    interpolated = [mean(one[5]), mean(two[5])]  # between few points
    assert interpolated == [pytest.approx(1, abs=0.05), pytest.approx(2.5, abs=0.2)]
    assert [row[1:3] for row in (one, two)] == [["0", "EN1"], ["", "EN2"]]
    assert mean(one[3]) == pytest.approx(0.9 * ONE, abs=0.005)  # million tokens, of 1x
    assert mean(two[3]) == pytest.approx(0.1 * ONE, abs=0.005)
    assert "±" in one[4]

    # against those 5 % worse: by hand, the tokens on which they have EN2's perplexity
    n = found["ratio0.9"][0]["eval"]["languages"][1]["tokens_seen"]
    grid = np.geomspace(n, 10 * n, 10000)
    as_good = grid[np.argmin(abs(1.05 * planted_law(grid) - planted_law(2.5 * n)))] / n
    assert mean(two[7]) == pytest.approx(as_good, rel=0.05) and as_good > 3

    # the paper's numbers; how alike in the middle layer, not in another; the blocks' gradients
    assert one[8:10] == ["22.46", "1.00"] and two[8:10] == ["32.81", "2.08"]
    assert one[10] == "0.520 ± 0.020" and one[11] == "0.20 ± 0.00"
    assert one[-1] == "3" and two[10:] == ["", "", ""]
    assert [mean(row[6]) for row in rows(text, "ratio0.5")] == pytest.approx([0.9] * 2, abs=0.01)

    # TEff 1: no cost, but for the curve between two points
    costs = report.costs(found, ["ratio0.9", "ratio0.5"], numbers.SMALL)
    assert rows(costs, "ratio0.9")[0][4].startswith(("+0.", "-0."))
    costly = rows(costs, "ratio0.5")[0]
    n = found["ratio0.5"][0]["eval"]["languages"][0]["tokens_seen"]
    expected = 100 * (planted_law(0.9 * n) / planted_law(n) - 1)
    assert float(costly[4].split("%")[0]) == pytest.approx(expected, abs=0.5)
    assert mean(costly[5]) == pytest.approx(planted_law(2 * n), abs=0.01)  # of all tokens, mono100
    assert mean(costly[6]) == pytest.approx(0.9, abs=0.05)


def test_a_table_with_a_gap_says_so(tmp_path):
    """EN1 of 90/10 has seen more tokens than any monolingual run that is there."""
    plant(tmp_path, "nano", ["mono5", "mono10", "mono20", "mono50", "mono100", "ratio0.9"], seeds=1)
    for path in tmp_path.glob("mono100*"):
        path.unlink()
    found = found_in(tmp_path)
    found["mono100"] = found["mono50"]  # its perplexity only stands in a column
    assert report.extra_perplexity(found["ratio0.9"][0]) is None
    cells = rows(report.costs(found, ["ratio0.9"], numbers.SMALL), "ratio0.9")[0]
    assert cells[3] == cells[4] == "-"


def test_en2_of_ten_languages_is_one_of_the_nine_with_their_mean_beside_it(tmp_path):
    def teff(name, language):
        return 0.5 + language**2  # each of its own; the mean is near none of them

    plant(tmp_path, "nano", [f"mono{p}" for p in report.PERCENT] + ["ten-hub"], 2, teff)
    found = found_in(tmp_path)
    languages = found["ten-hub"][0]["eval"]["languages"]
    others = [language["ppl"] for language in languages[1:]]
    assert len(others) == 9
    text = report.perplexities(found, ["ten-hub"], numbers.SMALL)
    hub, second = rows(text, "ten-hub")
    assert hub[0] == "ten-hub" and mean(hub[4]) == pytest.approx(languages[0]["ppl"], abs=0.01)
    assert second[2] == "EN2" and mean(second[4]) == pytest.approx(others[0], abs=0.01)
    assert [row[8:10] for row in (hub, second)] == [["24.57", "1.15"], ["33.41", "3.56"]]
    nine = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert nine[2] == "mean of the 9 others" and nine[8:10] == ["", ""]
    assert mean(nine[4]) == pytest.approx(np.mean(others), abs=0.01)
    assert min(abs(np.mean(others) - ppl) for ppl in others) > 0.05
    for key in ("ppl", "teff", "tokens_seen"):
        expected = np.mean([language[key] for language in languages[1:]])
        assert report.value_of(found["ten-hub"][0], "others", key) == pytest.approx(expected)
        assert report.value_of(found["ten-hub"][0], "EN2", key) == languages[1][key]
        assert report.value_of(found["ten-hub"][0], "EN1", key) == languages[0][key]
    # no mean of those that have a number, where one has none
    languages[4]["teff_interpolated"] = None
    assert report.value_of(found["ten-hub"][0], "others", "teff_interpolated") is None
    assert report.value_of(found["mono100"][0], "EN2", "ppl") is None


def test_what_the_others_cost_en1_is_against_the_runs_that_are_there_not_the_law():
    languages = [{"ppl": 22.0, "mlpe_interpolated": 20.0, "mlpe": 30.0},
                 {"ppl": 33.0, "mlpe_interpolated": 60.0, "mlpe": 40.0}]
    result = {"eval": {"languages": languages}}
    assert report.extra_perplexity(result) == pytest.approx(0.1)


def test_alignment_and_embeddings_in_the_tables(tmp_path):
    plant(tmp_path, "nano", ["ratio0.9", "ratio0.5"], seeds=1)
    found = found_in(tmp_path)
    text = report.alignments(found, ["ratio0.9", "ratio0.5"], numbers.SMALL)
    head, = [line for line in text.splitlines() if line.startswith("| layer |")]
    assert head.split(" | ")[1:4] == [
        "cosine, ratio0.9", "cosine, ratio0.5", "centred cosine, ratio0.9"]
    # layer 6 of 6: 0.8, its half, its quarter, its eighth, each with its floor
    cells = rows(text, "6")[0]
    assert cells[1:] == ["0.40 (0.01)"] * 2 + ["0.20 (0.02)"] * 2 + [
        "0.10 (0.03)"] * 2 + ["0.80 (0.04)"] * 2
    assert "- ratio0.9: 0.20 of single sequences (paper: 0.526); 0.30 of one long text" in text
    assert "- ratio0.5: 0.20 of single sequences (paper: 0.073); 0.30 of one long text" in text
    assert "- ratio0.9: 0.250\n- ratio0.5: 0.250\n" in text  # the gap within EN2 after EN1

    text = report.similarities(found, ["ratio0.9"], numbers.SMALL)
    assert rows(text, "ratio0.9")[0] == ["ratio0.9", "0.200", "0.000", "0.100", "0.2",
                                         "0.600", "0.000", "0.300", "0.36"]


# ------------------------------------------------------------------------------------------------
# Figures: what is computed for them

class Recorder:
    """Stands in for lib/plots.py: what would be drawn is kept."""

    def __getattr__(self, name):
        def record(path, *args, **kwargs):
            self.drawn = SimpleNamespace(name=name, path=path, args=args, kwargs=kwargs)
        return record


@pytest.fixture
def recorder(monkeypatch):
    stand_in = Recorder()
    monkeypatch.setattr(report, "plots", stand_in)
    return stand_in


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All runs, on two seeds. In EN2 a ratio has the efficiency 1 + what EN1 has more than half."""
    def teff(name, language):
        if language and name in [f"ratio{ratio}" for ratio in report.RATIOS]:
            return 0.5 + float(name.removeprefix("ratio"))
        return 1.0

    out = tmp_path_factory.mktemp("found")
    plant(out, "nano", reproduce.grid("nano"), 2, teff)
    return found_in(out)


def test_the_figure_of_the_ratio_sweep(found, recorder):
    found = {name: results for name, results in found.items() if name != "ratio0.7"}
    report.draw_ratio("ratio.png", found)
    ratios, languages, mono, law, alike = recorder.drawn.args
    assert (recorder.drawn.name, recorder.drawn.path) == ("ratio_sweep", "ratio.png")
    assert ratios == [0.99, 0.95, 0.9, 0.8, 0.6, 0.5]
    for language, shares in (("EN1", ratios), ("EN2", [1 - ratio for ratio in ratios])):
        numbers = languages[language]
        assert numbers["tokens"] == pytest.approx([ONE * share for share in shares])
        assert [len(seeds) for seeds in numbers["ppl"]] == [2] * 6
    expected = [planted_law(1e6 * ONE * (1 - r) * (0.5 + r)) for r in ratios]
    assert [np.mean(seeds) for seeds in languages["EN2"]["ppl"]] == pytest.approx(expected)
    # the rarest have fewer tokens than any monolingual run
    teff = languages["EN2"]["teff"]
    assert [np.mean(seeds) for seeds in teff[2:]] == pytest.approx([1.4, 1.3, 1.1, 1], rel=0.04)
    assert languages["EN1"]["paper"] == {
        0.95: 1.02, 0.9: 1.00, 0.8: 0.96, 0.7: 0.93, 0.6: 0.89, 0.5: 0.89}
    assert languages["EN2"]["paper"] == {
        0.95: 3.33, 0.9: 2.08, 0.8: 1.08, 0.7: 0.94, 0.6: 0.89, 0.5: 0.89}

    # the monolingual runs of both seeds, and the curve through them
    assert list(mono) == pytest.approx([ONE * p / 100 for p in report.PERCENT], rel=0.01)
    for million, seeds in mono.items():
        assert seeds == pytest.approx([planted_law(million * 1e6)] * 2)
    tokens, ppl = law
    assert tokens[0] < min(mono) and tokens[-1] > max(mono)
    assert ppl == pytest.approx([planted_law(million * 1e6) for million in tokens], rel=1e-3)
    assert alike["retrieval@1, middle layer"] == [[0.5, 0.52]] * 6
    assert alike["gradient cosine"] == [[pytest.approx(0.2)] * 2] * 6


def test_the_figure_of_alignment(found, recorder):
    report.draw_alignment("alignment.png", found)
    mixes, = recorder.drawn.args
    assert list(mixes) == ["90/10", "50/50"]
    balanced = mixes["50/50"]
    assert list(balanced["layers"]) == ["cosine", "centred", "cka", "retrieval"]
    assert balanced["layers"]["retrieval"]["value"][6] == pytest.approx([0.8, 0.82])
    assert balanced["layers"]["cka"]["value"][6] == pytest.approx([0.1, 0.12])
    assert balanced["layers"]["cka"]["floor"] == [[0.03, 0.03]] * 7
    assert balanced["gradients"]["blocks.5.q"] == pytest.approx(0.3)
    assert balanced["gradients"]["blocks.5.k"] == pytest.approx(0.1)
    assert balanced["gradient"] == pytest.approx([0.2, 0.2])
    assert balanced["switch_gap"] == [0.25, 0.25]
    assert balanced["paper_gradient"] == 0.073 and balanced["paper_cosine"][-1] == -0.21
    assert mixes["90/10"]["paper_gradient"] == 0.526 and mixes["90/10"]["paper_cosine"][-1] == 0.11


def test_the_figure_of_the_main_contrast(found, recorder):
    report.draw_main("main.png", found)
    ratios, languages, mono = recorder.drawn.args
    assert list(mono) == pytest.approx([ONE * p / 100 for p in report.PERCENT], rel=0.01)
    assert recorder.drawn.name == "contrast" and ratios == [0.9, 0.5]
    assert languages["EN1"]["tokens"] == pytest.approx([0.9 * ONE, 0.5 * ONE])
    assert languages["EN2"]["tokens"] == pytest.approx([0.1 * ONE, 0.5 * ONE])
    assert languages["EN2"]["paper"][0.9] == 2.08 and languages["EN1"]["paper"][0.5] == 0.89
    for key, name in (("ppl", "ppl"), ("teff", "teff_interpolated"),
                      ("teff_plain", "teff_same_batch")):
        for i, language in enumerate(("EN1", "EN2")):
            assert languages[language][key] == [
                [result["eval"]["languages"][i][name] for result in found[mix]]
                for mix in ("ratio0.9", "ratio0.5")]


def test_the_figure_of_embeddings(found, recorder):
    report.draw_embeddings("embeddings.png", found)
    shares, sides = recorder.drawn.args
    assert shares[0] == pytest.approx(0.01) and shares[-1] == 0.5
    assert sides["output"]["value"] == [[0.6, 0.62]] * len(shares)
    assert sides["input"]["floor"] == [[0.0, 0.0]] * len(shares)
    bins = sides["output"]["by_frequency"]["90/10"]
    assert bins["tokens_per_million"] == [1, 10, 100, 1000]
    assert bins["cosine"][3] == pytest.approx([0.9, 0.9])
    assert bins["floor"][3] == [0.03, 0.03]


def test_the_figures_against_length_anchor_points_and_width(found, recorder):
    tables = report.tables("nano")
    width = SIZES["nano"]["d_model"]
    for name, words, x in (("longer", "times 1x", [0.5, 1, 2]),
                           ("anchors", "% of the vocabulary", [0, 5, 50, 100]),
                           ("size", "d_model", [width // 4, width // 2, width])):
        tables[name].draw(f"{name}.png", found)
        xlabel, ticks, mixes = recorder.drawn.args
        assert recorder.drawn.name == "against" and words in xlabel and ticks == x
        assert mixes["50/50"]["x"] == x
        # at 100 % anchor points both mixes are one run, and 50/50 stands for both
        assert mixes["90/10"]["x"] == [at for at in x if at != 100]
        for of_mix in mixes.values():
            assert of_mix["retrieval"] == [[0.5, 0.52]] * len(of_mix["x"])
            assert list(of_mix["ppl"]) == list(of_mix["teff"]) == ["EN1", "EN2"]
    # 0.5, 1, 2 times the tokens, half of them each language's
    tables["longer"].draw("longer.png", found)
    ppl = recorder.drawn.args[2]["50/50"]["ppl"]["EN1"]
    n = [1e6 * ONE * times / 2 for times in report.LONGER]
    assert [np.mean(seeds) for seeds in ppl] == pytest.approx([planted_law(x) for x in n])


# ------------------------------------------------------------------------------------------------
# The report

def test_a_table_shows_what_is_there_and_names_what_is_not(tmp_path):
    out = tmp_path / "results"

    def write(changed=None):
        report.write_report(out, "nano", read(out, "nano"), changed)
        return (out / "README.md").read_text()

    # two runs: one table
    plant(out, "nano", ["ratio0.9", "ratio0.5"], seeds=1)
    text = write()
    assert "| 6 | 0.40 (0.01)" in text
    assert "Run on an abacus (2 runs, float32)." in text
    assert (out / "alignment.png").exists() and not (out / "ratio.png").exists()
    assert text.count("Not there yet") == len(report.tables("nano")) - 1
    missing = "mono5, mono10, mono20, mono50, mono100, mono20-plain, mono50-plain"
    assert f"Not there yet: {missing}. " in text

    # two monolingual runs make no law, so no table that needs one
    plant(out, "nano", ["mono50", "mono100", "ratio0.99"], seeds=1)
    text = write()
    assert text.count("| ratio0.99 |") == 1
    assert (out / "embeddings.png").exists() and not (out / "ratio.png").exists()

    # with all of them there is one
    monolingual = [f"mono{p}" for p in report.PERCENT]
    plant(out, "nano", monolingual + ["anchors50-ratio0.5", "ratio0.99"], seeds=1)
    text = write()
    anchors = text[text.index("## Anchor points"):text.index("## Model size")]
    assert "| anchors50-ratio0.5 | 50 | EN1 |" in anchors and "anchors50-ratio0.5," not in anchors
    assert "Not there yet: anchors5-ratio0.9, anchors5-ratio0.5, " in anchors
    assert text.count("| ratio0.99 |") == 3  # the sweep, the cost and the embeddings
    assert "| ratio0.9 | 0.200 | 0.000 |" in text
    for name in ("ratio", "anchors", "embeddings"):
        assert (out / f"{name}.png").exists()
    assert not (out / "size.png").exists()

    # all runs: all tables and all figures
    plant(out, "nano", reproduce.grid("nano"), seeds=2)
    text = write(changed="ratio0.9")
    assert "Not there yet" not in text and "0.510 ± 0.014" in text
    for name, table in report.tables("nano").items():
        if table.draw:
            assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
            assert f"]({name}.png)" in text


def test_only_the_figures_that_the_new_run_is_part_of_are_drawn_again(tmp_path, monkeypatch):
    plant(tmp_path, "nano", reproduce.grid("nano"), seeds=1)
    drawn, tables = [], {}
    for name, table in report.tables("nano").items():
        def draw(path, found):
            drawn.append(path.stem)
            path.write_text("drawn")
        tables[name] = table._replace(draw=table.draw and draw)
    monkeypatch.setattr(report, "tables", lambda scale: tables)

    def drawn_for(changed):
        drawn.clear()
        report.write_report(tmp_path, "nano", read(tmp_path, "nano"), changed)
        return set(drawn)

    everything = {name for name, table in tables.items() if table.draw}
    assert drawn_for("ten-hub") == everything  # none is there yet
    assert drawn_for("ten-hub") == set()
    assert drawn_for("ratio0.8") == {"ratio", "embeddings", "patching"}
    # by the law
    assert drawn_for("mono10") == {"main", "ratio", "longer", "anchors", "size", "architectures"}
    assert drawn_for("ratio0.9-wide128") == {"size"}
    assert drawn_for(None) == everything


def test_patching_is_of_the_runs_that_have_it(tmp_path):
    """Two seeds of each mix, of which one was aligned before patching was measured."""
    plant(tmp_path, "nano", report.PATCHED, seeds=2)
    for mix in report.PATCHED:
        path = tmp_path / f"{mix}.seed1.json"
        result = json.loads(path.read_text())
        del result["align"]["interchange"], result["align"]["ablation"]
        path.write_text(json.dumps(result))
    report.write_report(tmp_path, "nano", read(tmp_path, "nano"), "ratio0.9")
    text = (tmp_path / "README.md").read_text()
    assert "| ratio0.8 | 0.70 | 0.13 | 0.20 | 0.50 | 0.20 | 0.90 | 1 |" in text  # layer 3 of 6


def test_the_table_and_the_figure_of_architectures(found, recorder):
    found = copy.deepcopy(found)
    text = report.architectures(found, ["encoder-ratio0.9"], {})
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    languages = found["encoder-ratio0.9"][0]["eval"]["languages"]
    assert cells[:3] == ["encoder", "shared", "90/10"]
    assert cells[3:5] == [f"{x['ppl']:.2f} ± 0.00" for x in languages]
    for results in found.values():  # every number its own
        for result in results:
            for l, language in enumerate(result["eval"]["languages"]):
                share = language["tokens_seen"]
                language |= {"teff": 9, "teff_same_batch": 8, "teff_interpolated": share + l}
    report.draw_architectures("a.png", found)
    kinds, teff = recorder.drawn.args
    assert len(kinds) == 6 and kinds[0] == "decoder,\nshared"

    def teff_of(name, l):
        return [result["eval"]["languages"][l]["teff_interpolated"] for result in found[name]]

    assert teff["90/10"][3] == teff_of("encoder-heads-ratio0.9", 1)
    report.tables("nano")["longer"].draw("longer.png", found)
    mix = recorder.drawn.args[2]["90/10"]
    for l, language in enumerate(("EN1", "EN2")):
        assert mix["teff"][language][0] == teff_of("ratio0.9-0.5x", l)

    report.draw_interchanges("p.png", found)
    exchange, worth = recorder.drawn.args
    assert exchange["ratio0.8"][0]["here"][3] == pytest.approx(0.13)
    assert exchange["ratio0.8"][0]["around"][3] == pytest.approx(0.23)
    assert worth["ratio0.8"] == {"correlation": [0.5] * 2, "floor": [0.2] * 2, "ceiling": [0.9] * 2}
