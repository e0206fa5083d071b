import importlib
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REAL, TINY, fails, listing, train_here, write_corpus

import clone
import data
import runs
import train
from lib.bpe import EOT
from lib.cli import BadInput
from model import GPT
from paper import numbers

eval_ = importlib.import_module("eval")  # the name of a builtin
CPU = torch.device("cpu")


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    config = dict(vocab_size=30, context=16, n_layer=1, n_head=2, d_head=4, d_model=8, tied=True,
                  embedding_std=0.02, bias=True, embedding_scale=False,
                  arch="decoder", heads="shared")
    return GPT(config | changes)


def bigram_model(probabilities, context):
    """A GPT without layers whose next-token distribution is planted.

    After token i it is exactly probabilities[i].
    """
    V = len(probabilities)
    model = tiny_model(vocab_size=V, context=context, n_layer=0, d_model=V, tied=False)
    with torch.no_grad():
        model.embedding.copy_(torch.eye(V))
        model.position.zero_()
        # else the rows of the hidden states sum to zero, and no inverse exists
        model.norm.bias.fill_(1.0)
        hidden = model.norm(torch.eye(V)).double()
        logits = torch.tensor(probabilities).double().log()
        model.unembedding.copy_(torch.linalg.solve(hidden, logits).T)
    return model


def chain(probabilities, n, seed=0):
    """A text of n tokens, drawn from a bigram table."""
    rng, text = np.random.default_rng(seed), [0]
    for u in rng.random(n - 1):
        token = int(np.searchsorted(np.cumsum(probabilities[text[-1]]), u))
        text.append(min(token, len(probabilities) - 1))
    return np.array(text, dtype=np.uint16)


# ------------------------------------------------------------------------------------------------
# Perplexity

@pytest.mark.parametrize("context, last_n, length", [
    (16, 4, 500), (16, 5, 500), (16, 16, 101), (16, 1, 17), (12, 7, 32),
])
def test_every_token_is_scored_once_in_its_right_context(context, last_n, length):
    model = tiny_model(context=context)
    text = np.random.default_rng(0).integers(0, 30, length).astype(np.uint16)
    token_losses, scored = model.token_losses, []

    def recording(ids, last, *others):
        scored.append(ids[:, -last:].numel())
        return token_losses(ids, last, *others)

    model.token_losses = recording
    losses = eval_.score(model, text, np.arange(30), context, last_n)
    first = context - last_n + 1
    assert np.isnan(losses[:first]).all() and not np.isnan(losses[first:]).any()
    # little twice: only where the last window meets the one before
    assert sum(scored) < length - first + last_n + 1

    # the slow way: all windows that have the token, and enough before it
    for t in (first, first + 1, length // 2 + 3, length - 1):
        t = min(max(t, first), length - 1)
        candidates = []
        for start in range(max(0, t - context), min(t - first, length - 1 - context) + 1):
            window = torch.from_numpy(text[start:start + context + 1].astype(np.int64))
            candidates.append(token_losses(window[None])[0, t - start - 1].item())
        assert min(abs(losses[t] - c) for c in candidates) < 1e-5


def test_a_part_of_a_long_text_is_scored_as_all_of_it_would_be():
    model = tiny_model(embedding_std=0.5)
    text = np.random.default_rng(0).integers(0, 30, 2000).astype(np.uint16)
    whole, part = (eval_.score(model, text, np.arange(30), 16, 4, most)
                   for most in (math.inf, 200))
    kept = ~np.isnan(part)
    assert kept.sum() == 200
    assert np.abs(part[kept] - whole[kept]).max() < 1e-5
    # from all over the text
    in_each_quarter = np.histogram(np.flatnonzero(kept), 4, (0, 2000))[0]
    assert in_each_quarter.tolist() == pytest.approx([50] * 4, abs=8)


def test_a_text_is_scored_in_the_ids_of_its_language():
    model = tiny_model(vocab_size=60, embedding_std=0.5)
    table = clone.clone_table(np.ones(30), 2, cloned=0.5)
    text = np.random.default_rng(0).integers(0, 30, 200)
    in_en2 = eval_.score(model, text, table[1], 16, 4)
    np.testing.assert_array_equal(
        in_en2, eval_.score(model, table[1][text], np.arange(60), 16, 4))
    assert np.nanmax(np.abs(in_en2 - eval_.score(model, text, table[0], 16, 4))) > 0.1


def test_the_perplexity_of_a_uniform_model_is_the_number_of_ids():
    model = tiny_model(vocab_size=50, context=8, n_layer=2, tied=False)
    with torch.no_grad():
        model.unembedding.zero_()
    text = np.random.default_rng(0).integers(0, 50, 300)
    losses = eval_.score(model, text, np.arange(50), 8, 2)
    mean, error = eval_.mean_and_error(losses, text, eot=49)
    assert math.exp(mean) == pytest.approx(50, rel=1e-6)
    assert error == pytest.approx(0, abs=1e-6)


def test_the_perplexity_of_a_bigram_table_is_its_entropy():
    p = np.random.default_rng(1).dirichlet(np.ones(12) * 0.5, size=12).clip(1e-4)
    p /= p.sum(1, keepdims=True)
    text = chain(p, 20000)
    losses = eval_.score(bigram_model(p, 16), text, np.arange(12), 16, 4)
    exact = -np.log(p[text[:-1], text[1:]])
    np.testing.assert_allclose(losses[13:], exact[12:], atol=2e-3)
    stationary = np.linalg.matrix_power(p, 200)[0]
    entropy = -(stationary[:, None] * p * np.log(p)).sum()
    assert losses[13:].mean() == pytest.approx(entropy, abs=0.03)


def test_standard_error_is_over_documents():
    rng = np.random.default_rng(0)
    text = np.where(np.arange(40_000) % 100 == 99, 9, 1)  # 400 documents of 100 tokens
    level = rng.normal(3, 0.5, 400).repeat(100)  # documents differ, the tokens of one do not
    mean, error = eval_.mean_and_error(level, text, eot=9)
    assert mean == pytest.approx(level.mean())
    assert error == pytest.approx(0.5 / math.sqrt(400), rel=0.1)
    assert eval_.mean_and_error(level[:50], text[:50], eot=9)[1] is None


def test_standard_error_of_five_documents_by_hand():
    # as long as one another: that of the mean of five numbers, with n - 1
    levels = np.array([1.0, 2.0, 4.0, 5.0, 8.0])
    text = np.tile([1, 1, 1, 9], 5)
    mean, error = eval_.mean_and_error(levels.repeat(4), text, eot=9)
    assert mean == pytest.approx(4)
    assert error == pytest.approx(np.std(levels, ddof=1) / math.sqrt(5), rel=1e-12)

    # of 1 to 5 tokens, the first of them not scored: only the others count
    text = np.repeat(1, 15)
    text[[0, 2, 5, 9, 14]] = 9
    losses = levels.repeat([1, 2, 3, 4, 5])
    losses[0] = np.nan
    mean, error = eval_.mean_and_error(losses, text, eot=9)
    assert mean == pytest.approx((2 * 2 + 3 * 4 + 4 * 5 + 5 * 8) / 14)
    excess = np.array([2 * (2 - mean), 3 * (4 - mean), 4 * (5 - mean), 5 * (8 - mean)])
    assert error == pytest.approx(math.sqrt((excess**2).sum() * 4 / 3) / 14)


# ------------------------------------------------------------------------------------------------
# The law

A, B, C = 1.7, 0.23, 0.06


def planted_law(n):
    """The perplexity of a monolingual model on n tokens, by a law that is planted."""
    return 1 / (C - A * n**-B)


def test_a_planted_law_is_recovered_exactly_from_exact_points():
    n = np.geomspace(1e7, 1e9, 6)
    law = eval_.fit_law(n, planted_law(n))
    assert (law.a, law.b, law.c) == pytest.approx((A, B, C), rel=1e-4)
    for x in (2e7, 3e8, 1.5e9):
        assert law.ppl(x) == pytest.approx(planted_law(x), rel=1e-6)
        assert law.tokens(law.ppl(x)) == pytest.approx(x, rel=1e-6)
    assert law.tokens(1 / C) == math.inf and law.ppl(1e3) == math.inf

    # outside of what it was fitted to, by more than a factor of 2
    assert law.extrapolated(law.ppl(4.9e6)) and not law.extrapolated(law.ppl(5.1e6))
    assert law.extrapolated(law.ppl(2.1e9)) and not law.extrapolated(law.ppl(1.9e9))

    # the order of the runs does not matter
    noisy = planted_law(n) * np.linspace(0.98, 1.02, 6)
    assert eval_.fit_law(n, noisy).interval(30) == eval_.fit_law(n[::-1], noisy[::-1]).interval(30)


def test_with_noise_the_interval_holds_the_truth_as_often_as_it_says():
    n, truth, hits = np.geomspace(1e7, 1e9, 7), 1e8, 0
    for seed in range(100):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(7)
        law = eval_.fit_law(n, planted_law(n) / (1 + noise), n_bootstrap=150)
        low, high = law.interval(planted_law(truth))
        hits += low <= truth <= high
    assert 85 <= hits < 100  # nominally 95


def test_the_noise_of_the_interval_is_as_large_in_percent_at_every_length():
    """Five points and three numbers to fit: at both ends the curve follows the noise."""
    law, n = paper_law("english"), np.array([0.05, 0.1, 0.2, 0.5, 1]) * numbers.ONE
    noise = [1.01, 0.99, 1.01, 0.99, 1.01]
    fit = eval_.fit_law(n, [law.ppl(tokens) * x for tokens, x in zip(n, noise)], 200)
    first, last = (np.std([1 / other.ppl(tokens) for other in fit.others]) / (1 / fit.ppl(tokens))
                   for tokens in (n[0], n[-1]))
    assert 0.6 < last / first < 1.6  # 1 / PPL itself is 3.6 times as large at the last


def paper_law(language):
    """The law that the authors fitted, in tokens."""
    a, b, c = numbers.LAWS[language]
    return eval_.Law(a * numbers.ONE**b, b, c, 0.05 * numbers.ONE, 3 * numbers.ONE, [])


@pytest.mark.parametrize("language, seen, ppl, teff", [
    # cloned: EN1 and EN2 of 90/10, 50/50, both schedules, two and three times the tokens
    ("english", 0.9, 22.46, 1.00),
    ("english", 0.1, 32.81, 2.08),
    ("english", 0.5, 26.13, 0.89),
    ("english", 0.5, 26.14, 0.89),
    ("english", 0.5, 26.53, 0.83),
    ("english", 0.5, 24.44, 1.18),
    ("english", 0.5, 31.39, 0.47),
    ("english", 0.2, 23.88, 3.29),
    ("english", 0.3, 22.27, 3.14),
    ("english", 1.5, 22.17, 0.64),
    # ten languages, the hub and one of the nine
    ("english", 0.5, 24.57, 1.15),
    ("english", 0.5 / 9, 33.41, 3.56),
    # English and French, disjoint and anchored
    ("english", 0.9, 22.47, 1.00),
    ("english", 0.5, 26.44, 0.85),
    ("english", 0.5, 25.97, 0.91),
    ("french", 0.1, 31.89, 1.05),
    ("french", 0.5, 19.39, 0.82),
    ("french", 0.1, 29.04, 1.27),
    ("french", 0.5, 19.01, 0.88),
    # and its own monolingual runs
    ("english", 0.1, 48.36, 0.92),
    ("english", 0.5, 25.31, 1.01),
    ("english", 1.0, 21.93, 1.03),
])
def test_the_papers_token_efficiency_from_the_papers_law(language, seen, ppl, teff):
    ours = paper_law(language).tokens(ppl) / (seen * numbers.ONE)
    assert ours == pytest.approx(teff, rel=0.01, abs=0.0051)  # they are printed to two digits


def test_the_papers_law_is_found_again_from_runs_on_it():
    law = paper_law("english")
    n = np.array(sorted(numbers.MONOLINGUAL)) * numbers.ONE
    again = eval_.fit_law(n, [law.ppl(tokens) for tokens in n], n_bootstrap=0)
    assert (again.a, again.b, again.c) == pytest.approx((law.a, law.b, law.c), rel=1e-3)


def test_a_law_through_the_papers_runs_gives_its_token_efficiency():
    """Eleven of its sixteen runs, as read off a figure: its table to some percent."""
    n, ppl = zip(*numbers.MONOLINGUAL.items())
    law = eval_.fit_law(n, ppl, n_bootstrap=0)
    for name in ("ratio0.9", "ratio0.5", "ratio0.9-2x", "ratio0.5-3x"):
        ratio, _, times = name.removeprefix("ratio").partition("-")
        total = float(times.removesuffix("x") or 1)
        for share, perplexity, teff in zip((float(ratio), 1 - float(ratio)), *numbers.SMALL[name]):
            assert law.tokens(perplexity) / (share * total) == pytest.approx(teff, rel=0.1)


def test_interpolation_between_the_monolingual_runs():
    points = [(1e6, 50), (4e6, 25), (4e6, 25), (8e6, 20)]
    at_points = [eval_.interpolate(points, ppl) for ppl in (50, 25, 20)]
    assert at_points == pytest.approx([1e6, 4e6, 8e6])
    # half-way in 1 / PPL is half-way in log tokens
    assert eval_.interpolate(points, 1 / 0.03) == pytest.approx(2e6)
    ppl = [eval_.interpolate(points, n=n) for n in (1e6, 2e6, 4e6)]
    assert ppl == pytest.approx([50, 1 / 0.03, 25])
    # nothing outside of them
    assert eval_.interpolate(points, 51) is None
    assert eval_.interpolate(points, 19) is None
    assert eval_.interpolate(points, n=9e6) is None
    assert eval_.interpolate(points, n=0.9e6) is None

    # of several runs on as many tokens the mean counts, of 1 / PPL: (0.05 + 0.03) / 2
    seeds = [(1e6, 50), (4e6, 20), (4e6, 1 / 0.03)]
    assert eval_.interpolate(seeds, n=4e6) == pytest.approx(25)
    # more tokens never count as worse
    worse = [(1e6, 50), (2e6, 25), (4e6, 40), (8e6, 20)]
    assert eval_.interpolate(worse, n=4e6) == pytest.approx(25)

    dense = [(n, planted_law(n)) for n in np.geomspace(1e7, 1e9, 40)]
    assert eval_.interpolate(dense, planted_law(7e7)) == pytest.approx(7e7, rel=0.01)


def test_too_few_runs_or_none_that_learn_are_refused():
    for n in range(3):
        with pytest.raises(BadInput, match=f"3 or more lengths, not {n}"):
            eval_.fit_law([1e6, 2e6][:n], [31, 20][:n])
    with pytest.raises(BadInput, match="3 or more lengths, not 2"):
        eval_.fit_law([1e6, 1e6, 2e6], [30, 31, 20])
    with pytest.raises(BadInput, match="does not fall"):
        eval_.fit_law([1e6, 2e6, 4e6], [20, 25, 30])


def mono(n, ppl, **setting):
    """(config, result) of a monolingual run."""
    config = SimpleNamespace(**{"languages": 1, "batch_size": 32, "lr": 1e-3} | setting)
    return config, {"languages": [{"tokens_seen": n, "ppl": ppl}]}


def test_runs_that_follow_no_power_law_are_remarked_on():
    def no_power_law(n):
        return 1 / (0.004 * np.log(n / 1e5) ** 1.5)

    for law, edge in ((planted_law, False), (no_power_law, True)):
        results = [(None, *mono(n, law(n))) for n in np.geomspace(1e7, 1e9, 6)]
        remarks = eval_.add_efficiency(results)
        assert any("at the edge of its range" in remark for remark in remarks) == edge


def test_the_law_is_of_the_best_monolingual_setting_at_each_number_of_tokens():
    two_languages = SimpleNamespace(languages=2), {"languages": [{"tokens_seen": 2e6, "ppl": 1.0}]}
    group = [
        mono(1e6, 50.0),
        mono(1e6, 30.0, batch_size=8),
        mono(1e6, 31.0, batch_size=8),
        mono(1e6, 29.0, batch_size=4),
        mono(1e6, 33.0, batch_size=4),
        mono(2e6, 20.0),
        mono(2e6, 25.0, lr=1e-2),
        two_languages,
    ]
    assert sorted(eval_.law_points(group)) == [(1e6, 30.0), (1e6, 31.0), (2e6, 20.0)]

    # a run of another setting, twice as bad, is measured against the best
    results = []
    for n in (1e7, 3e7, 1e8, 3e8):
        results.append((None, *mono(n, planted_law(n), batch_size=8)))
        results.append((None, *mono(n, 2 * planted_law(n))))
    eval_.add_efficiency(results)
    teff = {8: [], 32: []}
    for _, config, result in results:
        teff[config.batch_size].append(result["languages"][0]["teff"])
    assert teff[8] == pytest.approx([1] * 4)
    assert max(teff[32]) < 0.5

    # and beside it, the paper's way, against those of its own batch size alone
    two = SimpleNamespace(languages=2, batch_size=32, lr=1e-3)
    ppl = 2 * planted_law(3e7)
    for lr in (1e-3, 5e-3):
        config = SimpleNamespace(**vars(two) | {"lr": lr})
        results.append((None, config, {"languages": [{"tokens_seen": 1e7, "ppl": ppl}]}))
    eval_.add_efficiency(results)
    assert results[0][2]["languages"][0]["teff_same_batch"] == pytest.approx(1)
    assert results[1][2]["languages"][0]["teff_same_batch"] == pytest.approx(1)
    as_the_paper, of_another_rate = (result["languages"][0] for _, _, result in results[-2:])
    assert as_the_paper["teff_same_batch"] == pytest.approx(3)
    assert as_the_paper["teff_interpolated"] is None  # worse than 1e7 tokens at their best
    assert of_another_rate["teff_same_batch"] is None
    assert all(value < 0.5 for value in teff[32])


def test_each_real_language_has_its_own_law():
    """French is 1.5 times as hard. Both languages of a run are as good as on twice its tokens."""
    results = []
    for digest, times in {"e": 1, "f": 1.5}.items():
        for n in np.geomspace(1e7, 1e9, 6):
            run = mono(n, times * planted_law(n), corpus="x", data_sha256=digest)
            results.append((None, *run))
    both = SimpleNamespace(languages=2, batch_size=32, lr=1e-3, corpus=["eng", "fra"],
                           vocabulary="anchored", data_sha256=["e", "f"])
    languages = [{"name": "eng", "tokens_seen": 9e7, "ppl": planted_law(2 * 9e7)},
                 {"name": "fra", "tokens_seen": 2e7, "ppl": 1.5 * planted_law(2 * 2e7)}]
    results.append((None, both, {"languages": languages}))
    remarks = eval_.add_efficiency(results)
    assert [language["teff"] for language in languages] == pytest.approx([2, 2], rel=0.01)
    assert languages[1]["mlpe"] == pytest.approx(1.5 * planted_law(2e7), rel=0.01)
    assert [remark[:16] for remark in remarks] == ["eng: monolingual", "fra: monolingual"]

    # without French runs there is English's only
    remarks = eval_.add_efficiency([*results[:6], results[-1]])
    assert "teff" in languages[0] and "teff" not in languages[1]
    assert remarks[1].startswith("fra: no token efficiency for 1 of the runs")


def test_planted_efficiency_comes_out():
    """Two languages, as good as monolingual models of 2 and of 0.8 times their tokens."""
    results = [(None, *mono(n, planted_law(n))) for n in np.geomspace(1e7, 1e9, 12)]
    config = SimpleNamespace(languages=2, batch_size=32, lr=1e-3)
    languages = [
        {"tokens_seen": 1e8, "ppl": planted_law(2e8)},
        {"tokens_seen": 5e8, "ppl": planted_law(4e8)},
        {"tokens_seen": 3e6, "ppl": planted_law(4e6)},  # fewer than any monolingual run
        {"tokens_seen": 1e8, "ppl": 0.99 / C},  # better than any number of tokens gives
        {"tokens_seen": 0, "ppl": 1e9},
    ]
    results.append((None, config, {"languages": languages}))
    # another recipe has no monolingual runs
    other = SimpleNamespace(languages=2, n_layer=7), {"languages": [dict(languages[0])]}
    remarks = eval_.add_efficiency([*results, (None, *other)])
    assert "monolingual law: 1/PPL = 0.06 - 1.7 n^-0.230, from 12 runs" in remarks[0]
    assert "no token efficiency for 1 of the runs" in remarks[1]
    assert "teff" not in other[1]["languages"][0]

    rich, poor, few, perfect, none = languages
    assert rich["teff"] == pytest.approx(2, rel=1e-3)
    assert rich["mlte"] == pytest.approx(2e8, rel=1e-3)
    assert rich["mlpe"] == pytest.approx(planted_law(1e8), rel=1e-3)
    assert rich["teff_interpolated"] == pytest.approx(2, rel=0.02)
    assert rich["mlpe_interpolated"] == pytest.approx(planted_law(1e8), rel=0.02)
    assert not rich["extrapolated"]
    low, high = rich["teff_interval"]
    assert low == pytest.approx(2, rel=1e-2) and high == pytest.approx(2, rel=1e-2)
    assert poor["teff"] == pytest.approx(0.8, rel=1e-3)
    assert few["teff"] == pytest.approx(4 / 3, rel=1e-2)
    assert few["extrapolated"] and few["teff_interpolated"] is None
    assert perfect["teff"] is None and perfect["mlte"] is None
    assert perfect["extrapolated"]
    assert "teff" not in none

    # once more, without the monolingual runs: what was said before is gone
    eval_.add_efficiency(results[-1:])
    assert rich.keys() == {"tokens_seen", "ppl"}


# ------------------------------------------------------------------------------------------------
# Code-switching

@pytest.fixture
def switching():
    """(a model that listens to its context, a text, the table) of two languages."""
    model = tiny_model(vocab_size=60, n_layer=2, d_head=8, d_model=16, tied=False)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    table = clone.clone_table(np.ones(30), 2)
    return model, np.random.default_rng(0).integers(0, 29, 3000), table


def test_copied_rows_carry_all_of_the_context_and_strangers_none(switching):
    model, text, table = switching
    strangers = eval_.code_switch(model, text, table, 0, 1, 16)
    with torch.no_grad():
        for rows in (model.embedding, model.unembedding):
            rows[30:59] = rows[:29]
    copies = eval_.code_switch(model, text, table, 0, 1, 16)
    for kind in ("plain", "within"):
        assert copies[kind]["gap"] == 0 and abs(strangers[kind]["gap"]) > 1e-3
        assert copies[kind]["worth"] != 0
    # two copies of each id share its probability: log 2 more, but for the one end-of-text
    shared = copies["plain"]["same"] - copies["within"]["same"]
    assert shared == pytest.approx(math.log(2), abs=0.1)

    # over the second language's ids only, by hand
    own = np.unique(table[1])
    ids = torch.from_numpy(table[1][text[:17]])[None]
    hidden = model.norm(model.residual_stream(ids[:, :-1])[-1])
    logits = (hidden @ model.unembedding.T)[0][:, own]
    targets = torch.from_numpy(np.searchsorted(own, ids[0, 1:].numpy()))
    expected = F.cross_entropy(logits, targets, reduction="none")
    losses = model.token_losses(ids, rows=torch.from_numpy(own))
    torch.testing.assert_close(losses[0], expected)


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)])
def test_code_switching_by_hand(switching, first, second):
    """A window at a time, from the logits; 8 tokens of one language, then 8 of the other."""
    model, text, table = switching
    text = text[:6 * 17]  # six windows
    own = torch.from_numpy(np.unique(table[second]))
    losses = {(kind, case): [] for kind in ("plain", "within")
              for case in ("same", "switched", "none")}
    for start in range(0, 6 * 17, 17):
        before, after = text[start:start + 8], table[second][text[start + 8:start + 17]]
        for case, ids in (("same", np.append(table[second][before], after)),
                          ("switched", np.append(table[first][before], after)),
                          ("none", after)):
            ids = torch.from_numpy(ids)
            hidden = model.norm(model.residual_stream(ids[None, :-1])[-1][0, -8:])
            logits = hidden @ model.unembedding.T
            right = logits.gather(1, ids[-8:, None])[:, 0]
            losses["plain", case] += (logits.logsumexp(1) - right).tolist()
            losses["within", case] += (logits[:, own].logsumexp(1) - right).tolist()

    result = eval_.code_switch(model, text, table, first, second, 16)
    for kind in ("plain", "within"):
        mean = {case: np.mean(losses[kind, case]) for case in ("same", "switched", "none")}
        gap, worth = mean["switched"] - mean["same"], mean["none"] - mean["same"]
        assert abs(gap) > 1e-3 and abs(worth) > 1e-3  # or their signs would not show
        assert result[kind] == pytest.approx(mean | {"gap": gap, "worth": worth}, abs=1e-5)


def test_code_switching_reads_from_all_of_the_text(switching, monkeypatch):
    model, text, table = switching
    monkeypatch.setattr(eval_, "SWITCH_TOKENS", 2 * 16)
    both_ends = np.append(text[:17], text[-17:])
    assert eval_.code_switch(model, text, table, 0, 1, 16) == \
        eval_.code_switch(model, both_ends, table, 0, 1, 16)


# ------------------------------------------------------------------------------------------------
# The command

@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Monolingual runs of four lengths, a run of two languages, and one of another corpus."""
    here = tmp_path_factory.mktemp("eval")
    write_corpus(here / "books", documents=60, sentences=200)
    write_corpus(here / "others", seed=1)
    # auto is timed, and might take another type for one of the runs on a busy machine
    tiny = ["--dtype=float32",
            "--vocab_size=300", "--n_layer=2", "--d_model=16", "--context=16", "--batch_size=8",
            "--lr=0.01"]
    train_here(here, *tiny, "--corpus=books", "--ratio=0.7", "--steps=150", "--run=both")
    train_here(here, *tiny, "--corpus=others", "--ratio=0.7", "--steps=10", "--run=other")
    for steps in (30, 60, 120, 240):
        train_here(here, *tiny, "--corpus=books", "--languages=1", f"--steps={steps}",
                   f"--run=mono{steps}")
    return here


def test_one_table_for_all_runs(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    names = ["runs/both", *(f"runs/mono{n}" for n in (30, 60, 120, 240))]
    monkeypatch.setattr("sys.argv", ["eval.py", *names])
    eval_.main()
    out = capsys.readouterr().out
    result = json.loads((work / "runs/both/eval.json").read_text())
    for language in result["languages"]:
        assert f"{language['ppl']:,.2f}" in out
        assert language["ppl"] == pytest.approx(math.exp(language["loss"]))
        assert language["ppl_se"] > 0
        assert language["ppl_se"] == pytest.approx(language["ppl"] * language["loss_se"])
        assert language["teff"] == pytest.approx(language["mlte"] / language["tokens_seen"])
        assert language["teff_interval"][0] <= language["teff"] * 1.0001
    one, two = result["languages"]
    assert one["tokens_seen"] > two["tokens_seen"] and one["ppl"] < two["ppl"]
    assert result["code_switch"].keys() == {"EN1->EN2", "EN2->EN1"}

    # other text of the same kind
    val = runs.read_log(work / "runs/both", "val_loss")[-1]
    assert one["loss"] == pytest.approx(val["val_loss"][0], abs=0.4)
    assert [one["tokens_seen"], two["tokens_seen"]] == val["tokens_seen"]

    # bits per byte: nats per token over bytes per token
    manifest = json.loads(next(work.glob("data/books-300-*/manifest.json")).read_text())
    per_token = manifest["bytes"]["test"] / manifest["tokens"]["test"]
    assert one["bits_per_byte"] == pytest.approx(one["loss"] / math.log(2) / per_token, rel=0.02)

    # from eval.json, not measured again
    before = (work / "runs/both/eval.json").read_bytes()
    eval_.main()
    assert (work / "runs/both/eval.json").read_bytes() == before
    said = ("5 runs not scored anew, but as in eval.json: delete it if the code has changed "
            "since\n")
    again = capsys.readouterr().out
    assert said in again and again.replace(said, "") == out


def test_what_is_scored_is_kept_if_a_later_run_is_not(work, monkeypatch):
    monkeypatch.chdir(work)
    for name in ("both", "mono30"):
        (work / f"runs/{name}/eval.json").unlink(missing_ok=True)
    plainly = eval_.evaluate_run

    def interrupted(run, *args):
        if run.folder.name == "mono30":
            raise KeyboardInterrupt
        return plainly(run, *args)

    monkeypatch.setattr(eval_, "evaluate_run", interrupted)
    monkeypatch.setattr("sys.argv", ["eval.py", "runs/both", "runs/mono30"])
    with pytest.raises(KeyboardInterrupt):
        eval_.main()
    result = json.loads((work / "runs/both/eval.json").read_text())
    assert result["languages"][0]["ppl"] > 1 and "teff" not in result["languages"][0]
    assert not (work / "runs/mono30/eval.json").exists()


def test_a_run_is_evaluated_on_its_test_text_with_what_it_was_asked_for(work, monkeypatch):
    monkeypatch.chdir(work)
    run, = runs.open_runs(["both"], CPU)
    result = eval_.evaluate_run(run, last_n=5, most=1000)
    assert (result["last_n"], result["tokens"]) == (5, 1000)
    assert result["checkpoint"] == data.file_sha256(work / "runs/both/model.pt")

    text, enc, eot = run.texts("test")[0], run.encoders[0], run.corpora[0]["eot"]
    for language, row in zip(result["languages"], run.table):
        losses = eval_.score(run.model, text, row, 16, 5, 1000)
        scored = np.flatnonzero(~np.isnan(losses))
        assert (language["loss"], language["loss_se"]) == eval_.mean_and_error(losses, text, eot)
        assert language["loss"] == pytest.approx(losses[scored].mean())
        spelled = b"".join(enc.decode_single_token_bytes(int(i)) for i in text[scored] if i != eot)
        bits = losses[scored].sum() / math.log(2)
        assert language["bits_per_byte"] == pytest.approx(bits / len(spelled))
    for pair, (a, b) in {"EN1->EN2": (0, 1), "EN2->EN1": (1, 0)}.items():
        expected = eval_.code_switch(run.model, text, run.table, a, b, 16)
        assert result["code_switch"][pair] == expected

    # it is read again only for the same checkpoint and the same question
    (work / "runs/both/eval.json").write_text(json.dumps(result))
    assert eval_.load_result(run, 5, 1000) == result
    assert eval_.load_result(run, 4, 1000) is None
    assert eval_.load_result(run, 5, 999) is None
    (work / "runs/both/eval.json").write_text(json.dumps(result | {"checkpoint": "another"}))
    assert eval_.load_result(run, 5, 1000) is None
    (work / "runs/both/eval.json").unlink()
    assert eval_.load_result(run, 5, 1000) is None


def test_runs_of_real_languages_stand_in_one_table(bilingual, monkeypatch, capsys):
    options = [*TINY[1:], "--dtype=float32", "--parallel=both"]
    train_here(bilingual, *options, *REAL, "--ratio=0.7", "--steps=8", "--run=eng-fra")
    for name, corpus in {"eng": "books", "fra": "livres"}.items():
        for steps in (2, 4, 8):
            train_here(bilingual, *options, f"--corpus={corpus}", "--languages=1",
                       f"--steps={steps}", f"--run={name}{steps}")
    monkeypatch.chdir(bilingual)
    names = ["eng-fra", *(f"{name}{steps}" for name in ("eng", "fra") for steps in (2, 4, 8))]
    monkeypatch.setattr("sys.argv", ["eval.py", *names])
    eval_.main()
    out = capsys.readouterr().out
    assert "eng: monolingual law" in out and "fra: monolingual law" in out
    assert "Code-switching" not in out

    # each language is scored on its own test text, in its own ids
    run, = runs.open_runs(["eng-fra"], CPU)
    result = json.loads((bilingual / "runs/eng-fra/eval.json").read_text())
    for language, text, row in zip(result["languages"], run.texts("test"), run.table):
        losses = eval_.score(run.model, text, row, 16, 4, eval_.TEST_TOKENS)
        assert language["loss"] == pytest.approx(np.nanmean(losses))
    assert len(run.texts("test")[0]) != len(run.texts("test")[1])
    assert [language["name"] for language in result["languages"]] == ["eng", "fra"]

    # and train.py says the same of a run beside which they lie
    out = train_here(bilingual, *options, *REAL, "--ratio=0.7", "--steps=8", "--run=again")
    assert "monolingual   TEff" in out and "between 6 runs" in out


def test_a_run_that_is_given_twice_counts_once():
    n = np.geomspace(1e7, 1e9, 5)
    noisy = planted_law(n) * np.array([1.02, 0.98, 1.02, 0.98, 1.02])

    def results(times):
        return [(None, SimpleNamespace(languages=1), {
            "checkpoint": f"hash of {tokens}",
            "languages": [{"tokens_seen": tokens, "ppl": ppl}]})
            for tokens, ppl in zip(n, noisy) for _ in range(times)]

    once, thrice = results(1), results(3)
    assert len(eval_.law_points([(config, result) for _, config, result in thrice])) == 5
    eval_.add_efficiency(once)
    eval_.add_efficiency(thrice)
    interval = once[2][2]["languages"][0]["teff_interval"]
    assert interval == thrice[6][2]["languages"][0]["teff_interval"]
    assert interval[1] > 1.05 * interval[0]


def test_runs_of_two_types_are_remarked_on():
    results = [(None, SimpleNamespace(languages=2, dtype=dtype), {"languages": []})
               for dtype in ("float32", "bfloat16")]
    assert "some of the runs are in bfloat16 and some in float32" in (
        eval_.add_efficiency(results)[0])
    assert "bfloat16" not in " ".join(eval_.add_efficiency(results[:1]))


def test_a_loss_that_is_not_finite_is_no_score():
    model = tiny_model()
    text = np.random.default_rng(0).integers(0, 30, 300)
    with torch.no_grad():
        model.embedding[text[150]] = math.nan
    with pytest.raises(BadInput, match="a loss is not finite"):
        eval_.score(model, text, np.arange(30), 16, 4)


def test_without_monolingual_runs_there_is_no_efficiency_and_it_is_said(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    for others in ([], ["mono30"]):
        monkeypatch.setattr("sys.argv", ["eval.py", "both", *others])
        eval_.main()
        said = ("no token efficiency for 1 of the runs: a scaling law needs monolingual runs of "
                f"3 or more lengths, not {len(others)}")
        assert said in capsys.readouterr().out
        result = json.loads((work / "runs/both/eval.json").read_text())
        assert "teff" not in result["languages"][0]


def test_samples_are_text_in_each_language(capsys):
    table, said = clone.clone_table(np.ones(257), 2), np.frombuffer(b"the cat sat on the mat", "u1")
    text = np.frombuffer(b"Once upon a time, in the dead of winter", "u1")  # 32: "... dead of"

    def planted(ids, n, rows):
        """Goes on in the language of the prompt, but EN2's second half is in EN1."""
        row = table[int(ids[0] >= 257)]
        assert (ids.numpy() == row[text[:32]]).all()
        own, foreign = row[said[:11]], table[0][said[11:]]
        return torch.cat([ids, torch.from_numpy(np.concatenate([own, foreign]))])

    enc = SimpleNamespace(decode=lambda ids: bytes(ids).decode(),
                          decode_single_token_bytes=lambda i: bytes([i]))
    model = SimpleNamespace(embedding=torch.zeros(1), sample=planted, own_ids=lambda row: None)
    run = SimpleNamespace(model=model, table=table, encoders=[enc, enc], names=["EN1", "EN2"],
                          config=SimpleNamespace(arch="decoder"))
    eval_.print_samples(run, [text[:32]] * 2, 60)
    out = capsys.readouterr().out
    assert out.count("prompt: 'Once upon a time, in the dead of'") == 2
    assert "EN1 (100% of its tokens are EN1's)" in out
    assert "EN2 (50% of its tokens are EN2's)" in out
    assert out.count("the cat sat on the mat") == 2


def test_sampling_from_a_run(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.setattr("sys.argv", ["eval.py", "runs/both", "--sample"])
    eval_.main()
    out = capsys.readouterr().out
    assert "EN1 (" in out and "EN2 (" in out
    # 60 tokens of a short run: no more can be said of what it writes
    assert len(out.partition("EN2 (")[2].split()) > 20


# ------------------------------------------------------------------------------------------------
# A run that was carried away, and a text and a prompt of one's own

def call(monkeypatch, capsys, *options):
    """What eval.py prints."""
    monkeypatch.setattr("sys.argv", ["eval.py", *map(str, options)])
    eval_.main()
    return capsys.readouterr().out


KINDS = {
    "permuted": ["--corpus=eng=books", "--clone=permute", "--cloned=0.7", "--languages=4"],
    "both halves": ["--corpus=books", "--arch=encoder-decoder", "--heads=per-language"],
    "real": [*REAL, "--vocabulary=anchored"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_carried_away_writes_the_same(tmp_path, monkeypatch, capsys, kind):
    here, there = tmp_path / "here", tmp_path / "there"
    write_corpus(here / "books", documents=5)
    write_corpus(here / "livres", documents=5, seed=7, language=str.upper)
    train_here(here, *TINY[1:], *KINDS[kind], "--steps=4", "--dtype=float32", "--run=a")
    monkeypatch.chdir(here)
    run, = runs.open_runs(["a"], CPU)
    of_corpus = runs.make_languages(run.config, run.corpora)
    for key in ("table", "counts", "prompts"):
        np.testing.assert_array_equal(getattr(run.languages, key), getattr(of_corpus, key))
    # as an old run, which has but its corpus
    kept = listing(here / "runs/a")
    shutil.copytree("runs/a", "runs/old")
    for path in (here / "runs/old").glob("*.*"):
        if path.suffix in (".npz", ".tiktoken"):
            path.unlink()
    assert len(listing(here / "runs/old")) == len(kept) - (3 if kind == "real" else 2)

    def sample(name, *options):  # without its first lines, which name the folder
        return call(monkeypatch, capsys, name, "--sample", *options).split("\n", 2)[2]

    written = [sample(name, *options) for name in ("old", "a")
               for options in ([], ["--prompt=The old cat"])]
    assert written[:2] == written[2:]

    shutil.move("runs/a", there / "b")
    shutil.rmtree(here)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert written[2:] == [sample(there / "b"), sample(there / "b", "--prompt=The old cat")]
    assert not listing(tmp_path / "empty") and listing(there / "b") == kept

    # what it was tested on is gone
    error = fails(eval_.main, [str(there / "b")], monkeypatch, capsys)
    assert "is neither a file, nor a folder, nor one of docs" in error


def test_a_prompt_is_continued_in_each_language(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    out = call(monkeypatch, capsys, "both", "--sample", "--prompt=The red fish")
    assert out.startswith("\nruns/both\n")  # which of several it is
    assert out.count("prompt: 'The red fish'") == 2

    run, = runs.open_runs(["both"], CPU, sampling=True)
    assert run.corpora is None
    prompts = eval_.encode_prompt(run, "The red fish")
    written = eval_.go_on(run, prompts, 60)
    prompt = np.array(run.encoders[0].encode("The red fish"))
    words = out.split()
    for row, (text, own) in zip(run.table, written):
        ids = run.model.sample(torch.from_numpy(row[prompt]), 60)[len(prompt):].numpy()  # seed 0
        assert text == clone.spell(ids, run.encoders, run.table)
        assert own == np.isin(ids, row).mean()
        assert set(text.split()[:5]) <= set(words)
    assert written[0] != written[1]
    assert "the model sees" not in out
    out = call(monkeypatch, capsys, "both", "--sample", "--prompt=" + "The red fish " * 9)
    assert re.search(r"the prompt has \d\d tokens of EN2, of which the model sees the last 16", out)


def test_the_dice_of_a_sample(work, monkeypatch, capsys):
    """Another seed is another text, a length is in tokens, and without warmth all seeds agree."""
    monkeypatch.chdir(work)

    def sample(*options):
        return call(monkeypatch, capsys, "both", "--sample", "--prompt=The red fish", *options)

    assert sample("--seed=0") == sample() != sample("--seed=1")
    assert sample("--temperature=1e-6") == sample("--temperature=1e-6", "--seed=1") != sample()
    longer = sample("--length=90").split()
    assert len(sample("--length=10").split()) < len(sample().split()) < len(longer)


def write_split(work, name, folder):
    """Write the documents of a run's test split to a folder, in their order."""
    run, = runs.open_runs([name], CPU)
    text = run.encoders[0].decode(run.texts("test")[0].tolist())
    folder.mkdir(exist_ok=True)
    for i, document in enumerate(text.split(EOT)[:-1]):
        (folder / f"{i:03}.txt").write_text(document)
    return run


def test_the_text_of_the_test_split_has_the_numbers_of_the_test_split(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    names = ["both", "mono30", "mono60", "mono120", "mono240"]
    for name in names:  # all are scored anew
        (work / f"runs/{name}/eval.json").unlink(missing_ok=True)
    out = call(monkeypatch, capsys, *names)
    before = (work / "runs/both/eval.json").read_bytes()
    run = write_split(work, "both", work / "my text")
    (work / "my text/picture.png").write_bytes(b"")

    monkeypatch.setattr(runs, "open_corpora", None)  # no corpus is asked for
    of_text = call(monkeypatch, capsys, *names, "--text=my text")
    n, documents = len(run.texts("test")[0]), len(list((work / "my text").glob("*.txt")))
    said = (f"my text: {documents} documents, {n:,} tokens, in place of the test split; "
            "passed over: 1 .png\n")
    assert of_text.count(said) == 5
    assert of_text.replace(said, "").split("eval")[0] == out.split("eval")[0]  # the tables
    assert "eval-my_text.json is in each run's folder" in of_text

    result = json.loads((work / "runs/both/eval-my_text.json").read_text())
    assert result.pop("text") == "my text"
    assert result == json.loads(before)
    assert (work / "runs/both/eval.json").read_bytes() == before

    # another text has other numbers, and those of the test split stay what they are
    (work / "my text/000.txt").write_text("An umbrella of eleven iguanas. " * 99)
    call(monkeypatch, capsys, "both", "--text=my text")
    again = json.loads((work / "runs/both/eval-my_text.json").read_text())
    assert again["languages"][0]["loss"] > result["languages"][0]["loss"] + 0.01
    assert (work / "runs/both/eval.json").read_bytes() == before


@pytest.mark.parametrize("options, expected", [
    (["both", "--text=few.txt"], "the test text of EN1 has 6 tokens, fewer than 1 window of runs/"),
    (["both", "--text=nowhere"], "'nowhere' is neither a file, nor a folder, nor one of docs"),
    (["both", "--text="], "corpus '' has an empty part"),
    (["both", "--text=empty.txt"], "the text empty.txt is empty"),
    (["real", "--text=few.txt"], "--text=few.txt is one text, and the languages of runs/real are"),
    (["both", "--text=few.txt", "--sample"], "--sample goes on from a --prompt: leave --text out"),
    (["both", "--prompt=few"], "--prompt goes with --sample"),
    (["both", "--seed=1"], "--seed goes with --sample"),
    (["both", "--sample", "--seed=-1"], "--seed=-1: expected 1 or more, more than 0, and 0 or m"),
    (["both", "--sample", "--length=0"], "--length=0 "),
    (["both", "--sample", "--temperature=0"], "--temperature=0 "),
    (["both", "--sample", "--temperature=nan"], "--temperature=nan "),
    (["both", "--sample", "--prompt="], "--prompt is empty"),
    (["encoder", "--sample", "--prompt=few"], "is an encoder, which fills in masked tokens"),
    (["halves", "--sample", "--prompt=a"], "--prompt=a is one token of EN1, and runs/halves is an"),
])
def test_a_text_or_a_prompt_that_cannot_be_used(work, options, expected, monkeypatch, capsys):
    tiny = [*TINY[1:], "--steps=1"]
    if not (work / "runs/real").exists():
        train_here(work, *tiny, "--corpus=eng=books", "--corpus=fra=others", "--run=real")
        for name, arch in (("encoder", "encoder"), ("halves", "encoder-decoder")):
            train_here(work, *tiny, "--corpus=books", f"--arch={arch}", f"--run={name}")
    monkeypatch.chdir(work)
    (work / "few.txt").write_text("zZzZz")
    (work / "empty.txt").write_text("")
    before = listing(work / "runs")
    assert expected in fails(eval_.main, options, monkeypatch, capsys)
    assert listing(work / "runs") == before


@pytest.mark.parametrize("options, expected", [
    (["runs/nowhere"], "runs/nowhere is no run with a config.json; there are: "),
    (["runs"], "runs is no run with a config.json; there are: runs/"),  # which are below it
    ([], "required"),
    (["runs/both", "runs/other"], "is of another corpus (others) than runs/both (books)"),
    (["runs/both", "--last_n=99"], "expected 1 to 16"),
    (["runs/both", "--last_n=0"], "expected 1 to 16"),
    (["runs/both", "--tokens=0"], "expected 1 or more"),
    (["runs/unfinished"], "still training"),
    (["runs/empty"], "has no checkpoint yet"),
])
def test_bad_input_is_one_line(work, options, expected, monkeypatch, capsys):
    monkeypatch.chdir(work)
    config = (work / "runs/both/config.json").read_bytes()
    for name in ("unfinished", "empty"):
        (work / "runs" / name).mkdir(exist_ok=True)
        (work / "runs" / name / "config.json").write_bytes(config)
    state = torch.load(work / "runs/both/model.pt", weights_only=True)
    torch.save(state | {"step": 5}, work / "runs/unfinished/model.pt")
    assert expected in fails(eval_.main, options, monkeypatch, capsys)
    assert not list((work / "runs/unfinished").glob("eval.json"))


def test_code_switching_of_several_batches_is_that_of_all_windows(switching):
    model, _, table = switching
    text = np.random.default_rng(1).integers(0, 29, 800 * 17)
    parts = [eval_.code_switch(model, t, table, 0, 1, 16) for t in np.split(text, 2)]
    whole = eval_.code_switch(model, text, table, 0, 1, 16)
    for kind in ("plain", "within"):
        for case in ("same", "switched", "none"):
            mean = (parts[0][kind][case] + parts[1][kind][case]) / 2
            assert abs(parts[0][kind][case] - mean) > 1e-4
            assert whole[kind][case] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("option, same", [
    ("--context=64", False), ("--optimizer=adamw", False), ("--d_model=128", False),
    ("--n_layer=4", False), ("--n_head=4", False), ("--tied", False), ("--bias=false", False),
    ("--embedding_scale=false", False), ("--vocab_size=600", False), ("--tokenizer=gpt2", False),
    ("--arch=encoder", False), ("--ratio=0.9", True), ("--languages=1", True),
    ("--cloned=0.5", True), ("--schedule=1,0", True), ("--steps=9", True), ("--seed=9", True),
    ("--batch_size=4", True), ("--lr=1", True), ("--embedding_std=1", True),
])
def test_what_monolingual_runs_have_in_common_with_a_run(option, same, monkeypatch):
    recipes = []
    for given in ([], [option]):
        monkeypatch.setattr("sys.argv", ["train.py", *given])
        config = train.make_config(*train.options().parse())
        config.corpus_sha256 = config.data_sha256 = ""
        recipes.append(eval_.recipe(config))
    assert (recipes[0] == recipes[1]) == same


def test_what_the_screen_says_stands_under_its_heading(capsys):
    language = {"name": "EN2", "tokens_seen": 1000, "ppl": 20.0, "ppl_se": 0.5,
                "bits_per_byte": 2.0, "mlpe": 30.0, "mlte": 4000.0, "teff": 4.0,
                "teff_interpolated": 3.5, "teff_interval": [3.0, 5.0], "extrapolated": False,
                "teff_same_batch": 9.0}
    cases = {"same": 1.0, "switched": 2.0, "none": 3.0, "gap": 1.0}
    switch = {"EN1->EN2": {"plain": cases, "within": {k: v / 4 for k, v in cases.items()}}}
    result = [(SimpleNamespace(name="a"), None, {"languages": [language], "code_switch": switch})]
    eval_.print_table(result)
    head, line = capsys.readouterr().out.splitlines()[1:]
    for word, value in (("perplexity", "20.00"), ("MLPE", "30.00"), ("MLTE", "4,000"),
                        ("TEff, law", "4.00"), ("TEff  95", "3.50"), ("± se", "0.50")):
        end = head.index(word) + len(word.removesuffix("  95"))
        assert line[:end].endswith(f" {value}"), word
    assert line.endswith("3.00 to 5.00")
    eval_.print_switches(result)
    assert capsys.readouterr().out.splitlines()[-1].split()[2:] == [
        "1.000", "2.000", "3.000", "1.000", "0.250", "0.500", "0.750", "0.250"]
