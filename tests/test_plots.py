import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from lib import plots


def panel():
    return Figure().subplots()


def curves(ax):
    """[(x, y)] of the lines of a panel, as lists."""
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]


def test_every_draw_is_a_dot_and_a_mean_is_of_all_seeds_or_not_there():
    ax = panel()
    values = [[1.0, 3.0], [5.0, None], [], [7.0]]
    plots.points(ax, [1, 2, 3, 4], values, marker="o", line="-", color="red", label="EN1")
    dots, means, of_the_legend = ax.lines
    assert dots.get_xydata().tolist() == [[1, 1], [1, 3], [4, 7]]
    assert (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
    assert means.get_xydata().tolist() == [[1, 2], [4, 7]]
    assert (means.get_marker(), means.get_linestyle()) == ("None", "-")
    assert ax.get_legend_handles_labels() == ([of_the_legend], ["EN1"])

    # a floor is a line alone, and a language of the sweep dots alone
    for marker, line, expected in (("", ":", [[1, 2], [4, 7]]),
                                   ("o", "", [[1, 1], [1, 3], [4, 7]])):
        ax = panel()
        plots.points(ax, [1, 2, 3, 4], values, marker, line, color="red")
        drawn, _ = ax.lines
        assert drawn.get_xydata().tolist() == expected


def test_a_loss_that_is_not_there_is_no_point():
    train = [{"tokens": 1e6, "loss": [5.0, None]}, {"tokens": 2e6, "loss": [4.0, 6.0]}]
    val = [{"tokens": 2e6, "val_loss": [4.5, 6.5]}]
    ax = panel()
    plots.draw_losses(ax, ["EN1", "EN2"], train, val)
    assert curves(ax) == [([1, 2], [5, 4]), ([2], [4.5]), ([2], [6]), ([2], [6.5])]
    one, two, *_ = plots.COLOURS
    assert [line.get_color() for line in ax.lines] == [one, one, two, two]


@pytest.mark.parametrize("languages", [1, 2, 10])
def test_a_page_of_losses_for_any_number_of_languages(tmp_path, languages):
    """Retrieval has a panel where there are pairs; and there may be no validation yet."""
    names = [f"EN{l + 1}" for l in range(languages)]
    pairs = {f"EN{a + 1}-EN{b + 1}": 0.5 for b in range(languages) for a in range(b)}
    train = [{"tokens": 1e6 * i, "loss": [3.0] * languages} for i in range(3)]
    val = [{"tokens": 2e6, "val_loss": [3.0] * languages, "retrieval@1": pairs}]
    plots.loss_curves(tmp_path / "loss.png", "a run", names, train, val)
    plots.loss_curves(tmp_path / "early.png", "a run", names, train, [])
    for name in ("loss.png", "early.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_gradient_map_has_a_row_a_layer_and_a_column_a_parameter():
    gradients = {"embedding": 9.0}
    for layer in range(3):
        for column, parameter in enumerate(plots.PARAMETERS):
            gradients[f"blocks.{layer}.{parameter}"] = layer / 10 + column / 100
    fig = Figure()
    ax = fig.subplots()
    plots.draw_gradient_map(fig, ax, gradients, ["0", "1", "2", "3"])
    image, = ax.images
    expected = np.arange(3)[:, None] / 10 + np.arange(10) / 100
    np.testing.assert_allclose(np.asarray(image.get_array()), expected)
    assert [label.get_text() for label in ax.get_xticklabels()] == plots.PARAMETERS
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "2", "3"]
    words = {text.get_position(): text.get_text() for text in ax.texts}
    assert words[3, 2] == "0.23"


def summary(n_layer=2, value=0.5):
    """What align.summary returns."""
    entry = {"value": value, "floor": value / 4, "above": True}
    bins = [{"tokens_per_million": 10.0**i, "cosine": value, "floor": 0.1} for i in range(4)]
    kinds = {"single": value, "same": value, "other": value / 2, "within": 2 * value}
    return {
        "names": [str(layer) for layer in range(n_layer + 1)],
        "layers": [{measure: entry for measure in plots.MEASURES} for _ in range(n_layer + 1)],
        "gradients": {f"blocks.{i}.{parameter}": kinds
                      for i in range(n_layer) for parameter in plots.PARAMETERS},
        "gradient": kinds,
        "embeddings": {"tied": entry | {"by_frequency": bins}},
    }


def test_every_measure_is_drawn_above_its_floor():
    shown = summary()
    shown["layers"][1] |= {"cka": {"value": 0.9, "floor": 0.2, "above": True}}
    ax = panel()
    plots.draw_layers(ax, shown, plots.MEASURES, "alike?")
    assert len(ax.lines) == 2 * len(plots.MEASURES) == 10
    value, floor = ax.lines[4:6]  # of the third measure
    assert list(value.get_ydata()) == [0.5, 0.9, 0.5]
    assert list(floor.get_ydata()) == [0.125, 0.2, 0.125]
    _, labels = ax.get_legend_handles_labels()
    assert labels == list(plots.MEASURES.values())


def test_an_encoder_and_a_decoder_are_drawn_apart():
    shown = summary(n_layer=3)
    shown["names"] = ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]
    ax = panel()
    plots.draw_layers(ax, shown, plots.MEASURES, "alike?")
    assert [list(line.get_xdata()) for line in ax.lines[:4]] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "encoder\n0", "encoder\n1", "decoder\n0", "decoder\n1"]
    _, labels = ax.get_legend_handles_labels()
    assert labels == list(plots.MEASURES.values())


def test_pages_of_alignment(tmp_path):
    plots.alignment_page(tmp_path / "one.png", "a run", ["EN1", "EN2", "EN3"], summary())
    # runs of another depth beside one another, and more of them than there are colours
    many = {f"run{i}": summary(n_layer=1 + i % 3, value=i / 10) for i in range(10)}
    plots.alignment_of_runs(tmp_path / "many.png", many)
    for name in ("one.png", "many.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_ratio_sweep_says_the_share_of_en2_beside_its_points():
    ax = panel()
    numbers = {"EN1": {"tokens": [9.0, 5.0], "ppl": [[20.0, 22.0], [30.0]]},
               "EN2": {"tokens": [1.0, 5.0], "ppl": [[40.0, 44.0], [31.0]]}}
    plots.draw_beside_monolingual(ax, [0.9, 0.5], numbers, {2.0: [35.0], 4.0: [30.0]},
                                  ([1.0, 10.0], [45.0, 25.0]))
    assert [(text.get_text(), text.xy) for text in ax.texts] == [
        ("10 %", (1.0, 42.0)), ("50 %", (5.0, 31.0))]
    drawn = curves(ax)
    assert ([1, 10], [45, 25]) in drawn  # the law
    assert ([2, 4], [35, 30]) in drawn  # the monolingual runs
    assert ([9, 9, 5], [20, 22, 30]) in drawn and ([1, 1, 5], [40, 44, 31]) in drawn


def test_a_column_for_each_language_and_mix_has_a_dot_for_each_draw():
    ax = panel()
    languages = {"EN1": {"teff": [[1.0, 1.2], [0.8]]}, "EN2": {"teff": [[2.0, None], [0.9, 0.7]]}}
    plots.draw_draws(ax, languages, "teff")
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "EN1\n90/10", "EN1\n50/50", "EN2\n90/10", "EN2\n50/50"]
    dots, means = ax.lines[::2], ax.lines[1::2]
    assert [list(line.get_ydata()) for line in dots] == [[1.0, 1.2], [0.8], [0.9, 0.7]]
    assert [np.mean(line.get_xdata()) for line in dots] == pytest.approx([0, 1, 3])
    assert [line.get_ydata()[0] for line in means] == pytest.approx([1.1, 0.8, 0.8])


def test_the_papers_layers_are_spread_over_the_depth_of_ours():
    ax = panel()
    paper = list(np.linspace(0.1, 1.2, 12))
    mixes = {"90/10": {"layers": {"cosine": {"value": [[0.1]] * 7, "floor": [[0.0]] * 7}},
                       "paper_cosine": paper}}
    plots.draw_layers_of_mixes(ax, mixes, "cosine")
    x, y = curves(ax)[-1]
    assert x == pytest.approx([6 * i / 12 for i in range(1, 13)])
    assert y == pytest.approx(paper)


def test_one_legend_for_all_panels_and_a_whole_file(tmp_path):
    with plots.figure(tmp_path / "page.png", 1, 2, (6, 3)) as (fig, axes):
        assert axes.shape == (1, 2)
        for ax in axes[0]:
            ax.plot([1, 2], label="EN1")
        axes[0, 1].plot([2, 1], label="EN2")
        plots.legend(fig)
        words = [text.get_text() for text in fig.legends[0].get_texts()]
    assert words == ["EN1", "EN2"]
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")

    # a drawing that fails leaves the old picture as it is
    before = (tmp_path / "page.png").read_bytes()
    with pytest.raises(ZeroDivisionError):
        with plots.figure(tmp_path / "page.png", 1, 1, (6, 3)):
            math.floor(1 / 0)
    assert (tmp_path / "page.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]


def test_no_two_languages_have_one_colour():
    for n in (2, 8, 10, 50):
        colours = plots.language_colours(n)
        assert len({str(colour) for colour in colours}) == n
        assert colours[:2] == plots.COLOURS[:2]  # EN1 and EN2 keep theirs
