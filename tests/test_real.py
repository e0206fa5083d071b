import json
import subprocess
import sys

import pytest
from conftest import NOUNS, ONE_THREAD, translate, write_corpus
from test_report import Recorder, mean, planted_align, planted_config, planted_law, rows
from test_reproduce import tiny  # noqa: F401, a fixture

import align
import train
from model import SIZES
from paper import numbers, real, report, reproduce

NAMES, CORPORA = ["eng", "fra"], ["eltec-eng", "eltec-fra"]


# ------------------------------------------------------------------------------------------------
# The grid

@pytest.mark.parametrize("scale", list(SIZES))
def test_every_run_of_the_grid_is_one_that_train_takes(scale, monkeypatch):
    options = real.grid(scale, NAMES, CORPORA, "both.zip")
    for name, given in options.items():
        words = reproduce.as_options(given)
        monkeypatch.setattr(sys, "argv", ["train.py", f"--size={scale}", *words])
        config = train.make_config(*train.options().parse())
        assert config.parallel == "both.zip"
        if "mono" in name:
            assert config.languages == 1 and config.steps >= 1500
            assert config.corpus == f"eltec-{name[:3]}"
        else:
            assert config.languages == 2 and config.corpus == CORPORA
            assert config.vocabulary == name.partition("-")[0]

    needed = set()
    for table in real.tables(scale, NAMES).values():
        needed.update(table.runs + table.needs)
    assert needed == options.keys()
    assert numbers.ENGLISH_FRENCH.keys() <= options.keys()


# ------------------------------------------------------------------------------------------------
# Tables and figures

def plant(out, teff, names=NAMES, seeds=2):
    """Write the JSON of the whole grid. French is 1.5 times as hard as English; in a mix, both
    are as good as a monolingual model on teff(run, language) times as many tokens.
    """
    out.mkdir(parents=True, exist_ok=True)
    size = SIZES["nano"]
    for name, options in real.grid("nano", names, CORPORA, "both.zip").items():
        total = (options.get("steps", size["steps"]) * size["context"]
                 * options.get("batch_size", size["batch_size"]))
        mono = "languages" in options
        share = float(options.get("ratio", 0.5))
        shares = {name[:3]: 1.0} if mono else dict(zip(names, (share, 1 - share)))
        for seed in range(seeds):
            languages = []
            for language, part in shares.items():
                hard = 1.5 if language == names[1] else 1
                times = 1 if mono else teff(name, language)
                languages.append({"name": "EN1" if mono else language, "tokens_seen": total * part,
                                  "ppl": hard * planted_law(total * part * times)})
            config = planted_config("nano", options)
            config["data_sha256"] = names if not mono else name[:3]
            if "schedule" in options:
                config["ratio"] = "0.5,0.5"
            result = {"config": config, "machine": "an abacus",
                      "eval": {"languages": languages, "code_switch": {}}}
            if not mono:
                result["align"] = planted_layers(options["vocabulary"])
            (out / f"{name}.seed{seed}.json").write_text(json.dumps(result))
    return reproduce.read(out, "nano", "float32", real.grid("nano", names, CORPORA, "both.zip"))


def planted_layers(vocabulary):
    layers = []
    for layer in range(3):
        measures = {"matched": 0.8 - 0.1 * layer, "matched_centred": 0.3, "line": 0.2,
                    "line_back": 0.1, "line_cka": 0.4}
        if vocabulary == "anchored":
            measures["shared"] = 0.6
        layers.append({measure: {"value": value, "floor": value / 2, "above": True}
                       for measure, value in measures.items()})
        assert layers[-1].keys() <= align.PARALLEL_MEASURES.keys()
    return planted_align(6, 0) | {"layers": layers, "embeddings": {}}


def teff(name, language):
    return {"eng": 0.8, "fra": 1.3 if name.startswith("anchored") else 1.1}.get(language, 1.2)


def test_planted_efficiency_of_each_language_comes_out(tmp_path):
    found = plant(tmp_path, teff)
    report.write_report(tmp_path, "nano", found, None, real.tables("nano", NAMES))
    text = (tmp_path / "README.md").read_text()
    assert "Not there yet" not in text
    for vocabulary in real.VOCABULARIES:
        for ratio in (0.9, 0.5):
            name = f"{vocabulary}-ratio{ratio}"
            eng, fra = rows(text, name)
            assert (eng[1], fra[1]) == ("eng", "fra")
            assert mean(eng[4]) == pytest.approx(teff(name, "eng"), abs=0.06)  # interpolated
            assert mean(eng[5]) == pytest.approx(teff(name, "eng"), abs=0.01)  # by the law
            assert mean(fra[5]) == pytest.approx(teff(name, "fra"), abs=0.01)
            theirs = numbers.ENGLISH_FRENCH[name].teff
            assert (float(eng[6]), float(fra[6])) == theirs
            assert eng[-1] == "2"

    # the middle layer of three, its floor, and the paper's gradient cosine
    row = next(line for line in text.splitlines() if line.startswith("| anchored-ratio0.5 | 0.7"))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert [mean(cell) for cell in cells[:4]] == [0.7, 0.3, 0.2, 0.6]
    assert "(0.350)" in cells[0] and cells[-1] == "0.17"
    assert "- disjoint-ratio0.9: 0.80 (0.40), 0.70 (0.35), 0.60 (0.30); paper: 0.71 0.83" in text
    for picture in ("languages.png", "alignment.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_other_languages_have_no_numbers_of_the_paper_beside_them(tmp_path):
    for names in (["deu", "ita"], ["fra", "eng"]):
        out = tmp_path / names[0]
        found = plant(out, teff, names=names)
        report.write_report(out, "nano", found, None, real.tables("nano", names))
        text = (out / "README.md").read_text()
        first, _ = rows(text, "disjoint-ratio0.9")
        assert first[6] == ""
        assert "; paper: 0" not in text and "0.051" not in text


def test_a_run_that_was_not_aligned_is_not_finished_where_there_is_a_parallel_text(tmp_path):
    plant(tmp_path, teff, seeds=1)
    path = tmp_path / "anchored-ratio0.9.seed0.json"
    result = json.loads(path.read_text())
    del result["align"]
    path.write_text(json.dumps(result))
    for text, finished in (("both.zip", False), (None, True)):
        grid = real.grid("nano", NAMES, CORPORA, text)
        found = reproduce.read(tmp_path, "nano", "float32", grid)
        assert ("anchored-ratio0.9" in found) == finished
        assert "anchored-ratio0.5" in found and "fra-mono5" in found
    # without one the page is made of the rest
    report.write_report(tmp_path, "nano", found, None, real.tables("nano", NAMES),
                        options="--corpus=a --corpus=b ")
    assert "| anchored-ratio0.9 | eng |" in (tmp_path / "README.md").read_text()


def test_a_table_with_a_gap_names_the_command_for_these_languages(tmp_path):
    plant(tmp_path, teff, seeds=1)
    (tmp_path / "eng-mono20.seed0.json").unlink()
    found = reproduce.read(tmp_path, "nano", "float32", real.grid("nano", NAMES, CORPORA, "p"))
    report.write_report(tmp_path, "nano", found, None, real.tables("nano", NAMES),
                        options="--corpus=a --corpus=b --parallel=p ")
    text = (tmp_path / "README.md").read_text()
    assert ("Not there yet: eng-mono20. `python -m paper.reproduce --corpus=a --corpus=b "
            "--parallel=p --tables=languages`") in text


# ------------------------------------------------------------------------------------------------
# The command

ONE_RUN = """
from pathlib import Path
from paper import real, reproduce
options = real.grid("nano", ["eng", "fra"], ["eng=books", "fra=livres"], "both")
name = "anchored-ratio0.9"
out = Path("results")
out.mkdir()
wrong = reproduce.do(out, "nano", name, options[name], 0, {}, set())
assert wrong is None, wrong
"""


def test_one_run_of_two_languages_from_its_command_to_its_json(tiny):  # noqa: F811
    write_corpus(tiny / "livres", documents=12, seed=7, language=translate)
    # lines so short that some fit the 16 tokens of its context
    for language, change in (("eng", str), ("fra", translate)):
        (tiny / "both" / language).mkdir(parents=True)
        lines = [f"the {noun}." for noun in NOUNS] * 3
        (tiny / "both" / language / "a.txt").write_text(change("\n".join(lines)))
    done = subprocess.run([sys.executable, "-c", ONE_RUN], cwd=tiny, env=ONE_THREAD, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tiny / "results/anchored-ratio0.9.seed0.json").read_text())
    assert result["command"] == (
        "python train.py --size=nano --corpus=eng=books --corpus=fra=livres --vocabulary=anchored "
        "--parallel=both --ratio=0.9 --seed=0")
    assert [language["name"] for language in result["eval"]["languages"]] == ["eng", "fra"]
    assert result["align"]["layers"][0].keys() == align.PARALLEL_MEASURES.keys()


def test_tables_and_figures_of_real_languages(tmp_path, monkeypatch):
    found = {name: list(by_seed.values()) for name, by_seed in plant(tmp_path, teff).items()}
    text = real.alignments(found, ["anchored-ratio0.5"], {}, NAMES)
    cells = [cell.strip() for cell in text.splitlines()[4].split("|")[1:-1]]
    assert cells[0] == "anchored-ratio0.5" and cells[5] == "0.200 ± 0.000"
    assert cells[6] == "0.300 ± 0.000"
    stand_in = Recorder()
    monkeypatch.setattr(real, "plots", stand_in)
    real.draw_efficiencies("a.png", found, NAMES)
    _, panels = stand_in.drawn.args
    for vocabulary, panel in panels.items():
        for l, name in enumerate(NAMES):
            i = panel["ratios"].index(0.5)
            assert panel["languages"][name]["teff"][i] == [
                r["eval"]["languages"][l]["teff_interpolated"]
                for r in found[f"{vocabulary}-ratio0.5"]]
