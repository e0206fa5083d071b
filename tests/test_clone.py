import numpy as np
import pytest

import clone
from cli import BadInput

TEXT = np.arange(10_000, dtype=np.uint16)  # every id tells its place in the text
STAGES = np.array([[0.9, 0.1]])


def identity(languages=2, V=1 << 16):
    return clone.clone_table(V, languages, V - 1)


def batches(stages=STAGES, context=15, batch_size=8, steps=400, seed=0, text=TEXT, **kwargs):
    return clone.make_batches(text, identity(stages.shape[1]), stages, context, batch_size, steps, seed, **kwargs)


def test_every_language_decodes_to_the_same_text():
    table = clone.clone_table(100, 4, eot=99)
    ids = np.random.default_rng(0).integers(0, 100, 1000)
    for lang in range(4):
        assert (table[lang, ids] % 100 == ids).all()
        assert (table[lang, ids[ids != 99]] // 100 == lang).all()
    assert (table[:, 99] == 99).all()  # end-of-text is never cloned


def test_anchor_points_are_shared_and_nested():
    clones = [set(np.flatnonzero(clone.clone_table(1001, 3, 1000, cloned=c, seed=5)[2] != np.arange(1001))) for c in (0, 0.2, 0.8, 1)]
    assert [len(c) for c in clones] == [0, 200, 800, 1000]
    assert clones[1] < clones[2] < clones[3]
    assert clones[1] != set(np.flatnonzero(clone.clone_table(1001, 3, 1000, cloned=0.2, seed=6)[2] != np.arange(1001)))


def test_shares():
    assert np.allclose(clone.parse_shares("0.5", 10), [0.5] + [0.5 / 9] * 9)
    assert np.allclose(clone.parse_shares("0.2,0.3,0.5", 3), [0.2, 0.3, 0.5])
    assert np.allclose(clone.parse_stages(None, 2, "1,0"), [[1, 0], [0, 1]])
    for ratio, languages in (("1.5", 2), ("-0.1", 2), ("0.5,0.6", 2), ("0.5,0.5", 3), ("x", 2), ("nan", 2), ("0.9", 1), ("", 2)):
        with pytest.raises(BadInput):
            clone.parse_shares(ratio, languages)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    ids, lang = batches()(137)
    assert ids.shape == (8, 16) and ids.dtype == np.int64 and lang.shape == (8,)
    later = batches()
    [later(step) for step in (300, 0, 136)]  # another order of calls
    assert all((a == b).all() for a, b in zip(later(137), (ids, lang)))
    assert (batches(seed=1)(137)[0] != ids).any()


def test_an_epoch_visits_every_window_once_and_the_next_starts_elsewhere():
    n, width = clone.windows(TEXT, 15), 16
    ids = np.concatenate([batches()(step)[0] for step in range(3 * n // 8)]) % (1 << 16)
    assert (np.diff(ids, axis=1) == 1).all()  # running text
    offsets = []
    for epoch in range(2):
        starts = np.sort(ids[epoch * n:(epoch + 1) * n, 0])
        assert (np.diff(starts) == width).all()  # side by side: no overlap, no gap
        offsets.append(starts[0])
    assert offsets[0] != offsets[1] and max(offsets) < width
    assert (ids[:n, 0] // width != ids[n:2 * n, 0] // width).mean() > 0.9  # and another order


def test_a_batch_larger_than_the_text_spans_epochs():
    ids, _ = batches(text=TEXT[:100], batch_size=50)(3)
    assert ids.shape == (50, 16) and (ids % (1 << 16) < 100).all()


def test_processes_share_out_the_batch_of_one():
    whole = batches()(5)
    parts = [batches(rank=r, world=4)(5) for r in range(4)]
    for i in range(2):
        assert (np.concatenate([p[i] for p in parts]) == whole[i]).all()
    assert len({row[0] % (1 << 16) for p in parts for row in p[0]}) == 8  # disjoint


def test_another_ratio_sees_the_same_text_in_the_same_order():
    for step in range(50):
        (a, lang_a), (b, lang_b) = (batches(np.array([[r, 1 - r]]))(step) for r in (0.9, 0.5))
        assert (a % (1 << 16) == b % (1 << 16)).all()
        assert (lang_a <= lang_b).all()  # a sequence in EN1 at 50 % is in EN1 at 90 % too
    shared = clone.clone_table(1 << 16, 2, (1 << 16) - 1, cloned=0)
    a, b = (clone.make_batches(TEXT, shared, np.array([[r, 1 - r]]), 15, 8, 400, 0)(7)[0] for r in (0.9, 0.5))
    assert (a == b).all()  # so that with every token an anchor point all mixes are one run


def test_shares_and_stages_hold_in_the_long_run():
    stages = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    batch = batches(stages, steps=4000)
    for stage, (first, last) in enumerate([(0, 2000), (2000, 4000)]):
        lang = np.concatenate([batch(step)[1] for step in range(first, last)])
        share = np.bincount(lang, minlength=3) / len(lang)
        assert np.abs(share - stages[stage]).max() < 4 * np.sqrt(0.25 / len(lang)), share
    assert not (lang == 0).any()  # a share of 0 is none at all


def test_the_language_is_drawn_for_each_sequence_by_itself():
    batch = batches(batch_size=64)
    drawn = np.array([batch(step)[1] for step in range(400)])
    assert drawn.sum(1).std() == pytest.approx((64 * 0.9 * 0.1) ** 0.5, rel=0.15)  # binomial; of one draw a batch it would be 19
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2 and abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.2
    batch = clone.make_batches(np.zeros(20000, np.uint16), clone.clone_table(50, 2, 49), np.array([[0.5, 0.5]]), 9, 64, 400, seed=0)
    assert {tuple(np.unique(row)) for row in batch(0)[0]} == {(0,), (50,)}  # a sequence is in one language from end to end


def test_the_language_says_nothing_about_the_text():
    V = 51
    text = np.random.default_rng(0).zipf(1.5, 400_000).clip(max=V - 1) - 1
    batch = clone.make_batches(text.astype(np.uint16), clone.clone_table(V, 2, eot=V - 1), np.array([[0.5, 0.5]]), 63, 64, 90, seed=0)
    counts = np.zeros((2, V))
    for step in range(90):
        ids, lang = batch(step)
        assert (ids // V == lang[:, None]).all()
        for l in (0, 1):
            counts[l] += np.bincount((ids[lang == l] % V).ravel(), minlength=V)
    p = counts / counts.sum(1, keepdims=True)
    assert np.abs(p[0] - p[1]).sum() / 2 < 0.01


def test_too_small_a_text():
    with pytest.raises(BadInput, match="--context=15 needs 31 tokens"):
        clone.windows(TEXT[:30], 15)
    assert clone.windows(TEXT[:31], 15) == 1


def test_the_page_that_shows_cloning(prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    monkeypatch.setattr("sys.argv", ["clone.py", "--corpus=books", "--vocab_size=300", "--ratio=0.9", "--languages=3"])
    clone.main()
    out = capsys.readouterr().out
    assert out.count("decoded: The main language helps the other one.") == 3
    vocabulary = {line.split()[1] for line in out.splitlines() if line.startswith("EN") and "%" in line}
    assert vocabulary == {"300"}
