import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REAL

import clone
from lib.cli import BadInput
from model import ARCHITECTURES, GPT, HEADS

V = 1 << 16
TEXT = np.arange(10_000, dtype=np.uint16)  # every id tells its place in the text
ANCHOR_1 = 4  # a seed that draws token 1 of 5 as the anchor point


def two(share):
    """The one stage of a run that has two languages, EN1 with this share."""
    return np.array([[share, 1 - share]])


def batches(stages=None, context=15, batch_size=8, steps=400, seed=0, text=TEXT, **processes):
    """clone.make_batches, of two languages at 90/10 unless told otherwise."""
    stages = two(0.9) if stages is None else stages
    table = clone.clone_table(np.ones(V), stages.shape[1])
    texts = [text] * stages.shape[1]
    return clone.make_batches(texts, table, stages, context, batch_size, steps, seed, **processes)


def languages(batch, steps):
    """The language of every sequence in a range of steps [steps, B]."""
    return np.array([batch(step)[1] for step in steps])


# ------------------------------------------------------------------------------------------------
# The languages: how much of each, and the ids of their tokens

def test_every_language_decodes_to_the_same_text():
    table = clone.clone_table(np.ones(100), 4)
    ids = np.random.default_rng(0).integers(0, 100, 1000)
    for lang in range(4):
        assert (table[lang, ids] % 100 == ids).all()
        assert (table[lang, ids] // 100 == lang).all()  # end-of-text, the last id, too
    assert len(np.unique(table)) == 400  # no token in common


def test_the_table_of_the_docstring():
    table = clone.clone_table(np.ones(5), 3, cloned=0.8, seed=ANCHOR_1)
    assert table.tolist() == [
        [0, 1, 2, 3, 4],
        [5, 1, 7, 8, 9],
        [10, 1, 12, 13, 14],
    ]


def cloned_tokens(fraction, seed):
    table = clone.clone_table(np.ones(1000), 3, cloned=fraction, seed=seed)
    cloned = table[2] != np.arange(1000)
    assert (cloned == (table[1] != np.arange(1000))).all()
    return set(np.flatnonzero(cloned))


def test_anchor_points_are_shared_and_nested():
    clones = [cloned_tokens(fraction, seed=5) for fraction in (0, 0.2, 0.8, 1)]
    assert [len(tokens) for tokens in clones] == [0, 200, 800, 1000]
    assert clones[1] < clones[2] < clones[3]
    assert clones[1] != cloned_tokens(0.2, seed=6)


def test_a_token_that_never_occurs_is_no_anchor_point():
    counts = np.zeros(300, dtype=int)
    counts[100:200] = np.arange(1, 101)
    for fraction in (0, 0.5, 0.9):
        table = clone.clone_table(counts, 2, fraction)
        anchors = np.flatnonzero(table[0] == table[1])
        assert len(anchors) == round(100 * (1 - fraction))
        assert (counts[anchors] > 0).all()
        assert clone.anchor_points(table, counts) == (
            len(anchors), pytest.approx(sum(anchors - 99) / 5050))
    assert clone.anchor_points(clone.clone_table(counts, 1), counts) == (0, 0)


def test_where_two_languages_differ():
    table = clone.clone_table(np.ones(5), 3, cloned=0.8, seed=ANCHOR_1)
    base = np.array([[0, 1, 4], [3, 2, 1]])
    cloned = clone.cloned_positions(base, table[0], table[2])
    assert cloned.tolist() == [[True, False, True], [True, True, False]]
    # of a language and itself no id differs: then all positions count
    assert clone.cloned_positions(base, table[1], table[1]).all()


def test_shares():
    assert np.allclose(clone.parse_shares("0.5", 10), [0.5] + [0.5 / 9] * 9)
    assert np.allclose(clone.parse_shares("0.2,0.3,0.5", 3), [0.2, 0.3, 0.5])
    assert np.allclose(clone.parse_stages(None, 2, "1,0"), [[1, 0], [0, 1]])
    assert np.allclose(clone.parse_stages("0.9", 3), [[0.9, 0.05, 0.05]])


@pytest.mark.parametrize("ratio, languages", [
    ("1.5", 2),
    ("-0.1", 2),
    ("0.5,0.6", 2),
    ("0.5,0.5", 3),
    ("x", 2),
    ("nan", 2),
    ("0.9", 1),
    ("", 2),
])
def test_shares_that_are_none(ratio, languages):
    with pytest.raises(BadInput):
        clone.parse_shares(ratio, languages)


@pytest.mark.parametrize("ratio, languages, expected", [
    ("0.9", None, ("0.9", 2)),
    ("0.5,0.3,0.2", None, ("0.5,0.3,0.2", 3)),
    ("0.5", 10, ("0.5", 10)),
    (None, None, ("0.5,0.5", 2)),
    (None, 4, ("0.25,0.25,0.25,0.25", 4)),
    (None, 1, ("1.0", 1)),
])
def test_what_the_command_line_leaves_out(ratio, languages, expected):
    args = SimpleNamespace(ratio=ratio, languages=languages, schedule=None, cloned=None,
                           anchor_seed=0, corpus="docs", vocabulary=None)
    assert clone.resolve(args) == expected


# ------------------------------------------------------------------------------------------------
# The batches: which text

def test_a_batch_is_a_pure_function_of_seed_and_step():
    ids, lang = batches()(137)
    assert ids.shape == (8, 16)
    assert ids.dtype == np.int64
    assert lang.shape == (8,)

    # after another order of calls
    later = batches()
    for step in (300, 0, 136):
        later(step)
    ids_later, lang_later = later(137)
    assert (ids_later == ids).all()
    assert (lang_later == lang).all()


def test_another_seed_has_another_text_and_other_languages():
    one, other = batches(two(0.5)), batches(two(0.5), seed=1)
    assert (one(137)[0] % V != other(137)[0] % V).any()
    same = languages(one, range(100)) == languages(other, range(100))
    assert 0.4 < same.mean() < 0.6  # as of two coins


def test_an_epoch_visits_every_window_once_and_the_next_in_another_order():
    n, width, batch = clone.count_windows(TEXT, 15), 16, batches()
    ids = np.concatenate([batch(step)[0] for step in range(3 * n // 8)]) % V
    assert (np.diff(ids, axis=1) == 1).all()  # running text
    for epoch in range(2):
        starts = np.sort(ids[epoch * n:(epoch + 1) * n, 0])
        assert (starts == width * np.arange(n)).all()  # side by side: no overlap, no gap
    assert (ids[:n, 0] != ids[n:2 * n, 0]).mean() > 0.9


def test_the_order_of_the_windows_is_shuffled():
    n, width, batch = clone.count_windows(TEXT, 15), 16, batches()
    ids = np.concatenate([batch(step)[0] for step in range(n // 8)]) % V
    window = ids[:, 0] // width
    assert abs(np.corrcoef(window, np.arange(len(window)))[0, 1]) < 0.2
    assert (np.diff(window) == 1).mean() < 0.05  # no two that follow each other in the text


def test_a_batch_larger_than_the_text_spans_epochs():
    ids, _ = batches(text=TEXT[:100], batch_size=50)(3)
    assert ids.shape == (50, 16)
    assert (ids % V < 100).all()


def test_processes_share_out_the_batch_of_one():
    whole = batches()(5)
    parts = [batches(rank=rank, world=4)(5) for rank in range(4)]
    for i in range(2):
        assert (np.concatenate([part[i] for part in parts]) == whole[i]).all()
    starts = [row[0] % V for ids, _ in parts for row in ids]
    assert len(set(starts)) == 8  # disjoint


def test_too_small_a_text():
    with pytest.raises(BadInput, match="--context=15 needs 16 tokens"):
        clone.count_windows(TEXT[:15], 15)
    assert clone.count_windows(TEXT[:31], 15) == 1
    assert clone.count_windows(TEXT[:32], 15) == 2


@pytest.mark.parametrize("n", [2, 3, 20])
def test_windows_to_measure_by_come_from_all_of_a_text(n):
    text = np.arange(1000)  # each id says where it stood
    windows = clone.spread(text, 15, n)
    assert (windows == windows[:, :1] + np.arange(16)).all()
    starts = windows[:, 0]
    assert len(starts) == n and starts[0] == 0 and starts[-1] == 1000 - 16
    gaps = np.diff(starts)
    assert gaps.min() >= 16 and gaps.max() - gaps.min() <= 1


def test_no_more_windows_to_measure_by_than_stand_side_by_side():
    windows = clone.spread(np.arange(5 * 16), 15, 100)
    assert (windows.ravel() == np.arange(5 * 16)).all()
    assert (clone.spread(np.arange(16), 15, 100) == np.arange(16)).all()


# ------------------------------------------------------------------------------------------------
# The batches: which language

def test_another_ratio_sees_the_same_text_in_the_same_order():
    nine, five = batches(two(0.9)), batches(two(0.5))
    for step in range(50):
        ids_nine, lang_nine = nine(step)
        ids_five, lang_five = five(step)
        assert (ids_nine % V == ids_five % V).all()
        # a sequence in EN1 at 50 % is in EN1 at 90 % too
        assert (lang_nine <= lang_five).all()


def test_where_every_token_is_an_anchor_point_all_mixes_are_one_run():
    shared = clone.clone_table(np.ones(V), 2, cloned=0)
    nine, five = (clone.make_batches([TEXT, TEXT], shared, two(share), 15, 8, 400, 0)
                  for share in (0.9, 0.5))
    assert (nine(7)[0] == five(7)[0]).all()


def windows_read_in(batch, steps):
    """{window: the languages that it is read in} over a range of steps."""
    read = {}
    for step in steps:
        for ids, lang in zip(*batch(step)):
            read.setdefault(ids[0] % V // 16, set()).add(lang)
    return read


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_no_text_is_read_in_two_languages_whatever_the_number_of_epochs(share):
    n = clone.count_windows(TEXT, 15)
    steps = 3 * n // 8 + 1  # three epochs
    read = windows_read_in(batches(two(share), steps=steps), range(steps))
    assert len(read) == n
    assert all(len(langs) == 1 for langs in read.values())
    assert clone.read_in_two_languages(n, two(share), 8, steps, seed=0) == 0
    rare = sum(langs == {1} for langs in read.values()) / n
    assert rare == pytest.approx(1 - share, abs=0.06)


def test_windows_that_a_schedule_reads_in_two_languages_are_counted():
    n, stages = clone.count_windows(TEXT, 15), np.array([[0.9, 0.1], [0.1, 0.9]])
    for steps in (n // 8, n // 6, 3 * n // 8):  # one epoch, a part of a second, three
        read = windows_read_in(batches(stages, steps=steps), range(steps))
        counted = clone.read_in_two_languages(n, stages, 8, steps, seed=0)
        assert counted == sum(len(langs) == 2 for langs in read.values())
    assert counted == pytest.approx(0.8 * n, abs=0.06 * n)  # those with .1 < u < .9


def test_shares_and_stages_hold_in_the_long_run():
    # a text of 5,000 windows, so that the shares of one draw a window are close to those asked for
    text = np.arange(80_000) % V
    stages = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    batch = batches(stages, steps=1250, text=text)
    for stage, steps in enumerate((range(625), range(625, 1250))):
        lang = languages(batch, steps).ravel()
        share = np.bincount(lang, minlength=3) / len(lang)
        assert np.abs(share - stages[stage]).max() < 4 * np.sqrt(0.25 / len(lang)), share
    assert not (lang == 0).any()  # a share of 0 is none at all


def test_a_stage_begins_at_its_step():
    batch = batches(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), steps=10)
    lang = languages(batch, range(10))
    assert (lang == lang[:, :1]).all()
    # three stages of ten steps: the second begins where step * 3 / 10 reaches 1
    assert lang[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_the_language_is_drawn_for_each_sequence_by_itself():
    drawn = languages(batches(batch_size=64), range(400))
    # binomial; of one draw a batch it would be 19
    assert drawn.sum(1).std() == pytest.approx((64 * 0.9 * 0.1) ** 0.5, rel=0.15)
    # two sequences of a step, and one place in two steps, say nothing about each other
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.2


def test_a_sequence_is_in_one_language_from_end_to_end():
    zeros, table = np.zeros(20_000, np.uint16), clone.clone_table(np.ones(50), 29)
    batch = clone.make_batches([zeros, zeros], table, two(0.5), 9, 64, 400, seed=0)
    ids, lang = batch(0)
    assert (ids == 50 * lang[:, None]).all()
    assert set(lang) == {0, 1}


def test_the_language_says_nothing_about_the_text():
    size = 51  # ids of a language
    text = np.random.default_rng(0).zipf(1.5, 400_000).clip(max=size - 1).astype(np.uint16) - 1
    table = clone.clone_table(np.ones(size), 2)
    batch = clone.make_batches([text, text], table, two(0.5), 63, 64, 90, seed=0)
    counts = np.zeros((2, size))
    for step in range(90):
        ids, lang = batch(step)
        assert (ids // size == lang[:, None]).all()
        for l in (0, 1):
            counts[l] += np.bincount((ids[lang == l] % size).ravel(), minlength=size)
    frequencies = counts / counts.sum(1, keepdims=True)
    assert np.abs(frequencies[0] - frequencies[1]).sum() / 2 < 0.01


# ------------------------------------------------------------------------------------------------
# Real languages

def test_the_tables_of_the_docstring():
    words = [[b"the", b"a", b"on"], [b"le", b"a", b"on"]]
    assert clone.vocabulary_table(words, anchored=False).tolist() == [[0, 1, 2], [3, 4, 5]]
    anchored = clone.vocabulary_table(words, anchored=True)
    assert anchored.tolist() == [[0, 1, 2], [3, 1, 2]]
    # of ten tokens read in each: "a" and "on" are 7 of the first's, 5 of the second's
    counts = np.array([[3, 3, 4], [5, 2, 3]])
    assert clone.shared_tokens(anchored, counts) == [(2, 0.7), (2, 0.5)]

    # a third language shares with whichever has the word
    three = clone.vocabulary_table([*words, [b"le", b"der", b"on"]], anchored=True)
    assert three[2].tolist() == [3, 7, 2]


@pytest.mark.parametrize("corpus, names", [
    ("docs", ["EN1", "EN2"]),
    ("fra=eltec-fra", ["fra1", "fra2"]),
    (["eltec-eng", "eltec-fra"], ["eng", "fra"]),
    (["../x/ELTeC-eng-1.0.1.zip", "fr=novels/"], ["eng", "fr"]),
    (["docs", "100_english_novels"], ["doc", "eng"]),
    (["a_tale.txt.gz", "2020/"], ["tal", "l"]),
])
def test_what_languages_are_called(corpus, names):
    assert clone.language_names(corpus, 2) == names


LONG, SHORT = np.arange(8_000) % V, np.arange(1_000)  # 500 and 62 windows of 16


def real(stages, **options):
    """clone.make_batches of two texts that differ in length."""
    kwargs = dict(context=15, batch_size=8, steps=400, seed=0) | options
    table = clone.clone_table(np.ones(V), 2)
    return clone.make_batches([LONG, SHORT], table, stages, **kwargs)


def windows_of(batch, steps, lang):
    """The windows that a language reads, in order."""
    read = []
    for step in steps:
        for ids, l in zip(*batch(step)):
            assert (ids // V == l).all()
            if l == lang:
                start = ids[0] % V
                assert (ids % V == start + np.arange(16)).all()
                read.append(start // 16)
    return read


def test_each_stream_has_its_own_epochs():
    for lang, n in ((0, 500), (1, 62)):
        read = windows_of(real(two(0.7)), range(400), lang)
        for epoch in range(len(read) // n):
            assert sorted(read[epoch * n:(epoch + 1) * n]) == list(range(n))
        assert len(read) > 1.5 * n
        assert read[:n] != read[n:2 * n]  # in another order


def test_another_ratio_reads_each_stream_in_the_same_order():
    for lang in (0, 1):
        nine, five = (windows_of(real(two(share)), range(200), lang) for share in (0.9, 0.5))
        n = min(len(nine), len(five))
        assert n > 50 and nine[:n] == five[:n]


def test_the_shares_and_stages_of_real_languages():
    batch = real(np.array([[0.8, 0.2], [0, 1.0]]), steps=1000)
    first, second = languages(batch, range(500)), languages(batch, range(500, 1000))
    assert (first == 0).mean() == pytest.approx(0.8, abs=0.02)
    assert (second == 1).all()
    assert first.sum(1).std() == pytest.approx((8 * 0.8 * 0.2) ** 0.5, rel=0.15)


def test_batches_of_real_languages_are_a_pure_function_and_are_shared_out():
    whole, later = real(two(0.7)), real(two(0.7))
    for step in (300, 0, 136):
        later(step)
    for a, b in zip(whole(137), later(137)):
        assert (a == b).all()
    parts = [real(two(0.7), rank=rank, world=4)(137) for rank in range(4)]
    for i in range(2):
        assert (np.concatenate([part[i] for part in parts]) == whole(137)[i]).all()


def test_languages_of_one_text_share_its_stream():
    """Three languages, the first and the last of one text: no window of it is read in both."""
    table = clone.clone_table(np.ones(V), 3)
    stages = np.array([[0.4, 0.3, 0.3]])
    batch = clone.make_batches([LONG, SHORT, LONG], table, stages, 15, 8, 130, seed=0)
    first, last = (windows_of(batch, range(130), lang) for lang in (0, 2))
    assert not set(first) & set(last)
    assert len(first + last) > 500  # more than an epoch, so that there was a chance to
    assert len(first) / len(first + last) == pytest.approx(4 / 7, abs=0.07)


# ------------------------------------------------------------------------------------------------
# Permuted clones

def both_tables(V, cloned=1.0):
    """The tables of three languages, with the ids of clones shifted, and permuted; and to [3 V],
    which id of the second stands for each of the first.
    """
    shift, permute = (clone.clone_table(np.ones(V), 3, cloned, permuted=permuted)
                      for permuted in (False, True))
    to = np.arange(3 * V)
    unused = [np.setdiff1d(to, table) for table in (shift, permute)]
    to[unused[0]] = unused[1]
    to[shift] = permute
    return shift, permute, to


def test_permuted_clones_are_shifted_ones_in_another_order():
    shift, permute, _ = both_tables(100)
    for row, ordered in zip(permute, shift):
        assert (np.sort(row) == ordered).all()
    assert len(np.unique(permute)) == 300  # no token in common
    assert (permute[0] == shift[0]).all()
    # each of the others in an order of its own, drawn by the seed
    orders = [tuple(permute[1] - 100), tuple(permute[2] - 200), tuple(range(100))]
    orders.append(tuple(clone.clone_table(np.ones(100), 3, seed=1, permuted=True)[1] - 100))
    assert len(set(orders)) == 4
    assert (clone.clone_table(np.ones(100), 2, permuted=True) == permute[:2]).all()

    # the same tokens are anchor points
    shift, permute, _ = both_tables(100, cloned=0.8)
    np.testing.assert_array_equal(permute == permute[0], shift == shift[0])
    assert (permute[0] == permute[1]).sum() == 20

    table = clone.clone_table(np.ones(5), 3, cloned=0.8, seed=ANCHOR_1, permuted=True)
    assert table[1:].tolist() == [[7, 1, 6, 9, 5], [11, 1, 13, 14, 12]]  # of the docstring


@pytest.mark.parametrize("cloned", [1.0, 0.5])
def test_the_way_back_from_an_id(cloned):
    for table in both_tables(50, cloned)[:2]:
        lang, token = clone.look_up(table)
        for l, row in enumerate(table):
            assert (token[row] == np.arange(50)).all()
            anchors = row == table[0]
            assert (lang[row] == np.where(anchors, 0, l)).all()
    lang, token = clone.look_up(both_tables(50, cloned)[0])  # of a shift: all ids, used or not
    assert (lang * 50 + token == np.arange(150)).all()


def test_a_text_is_spelt_in_every_permuted_language():
    encoders = [SimpleNamespace(decode_single_token_bytes=lambda i: bytes([i]))] * 3
    said = np.frombuffer(b"the cat sat on the mat", "u1")
    for cloned in (1.0, 0.5):
        table = both_tables(257, cloned)[1]
        for row in table:
            assert clone.spell(row[said], encoders, table) == "the cat sat on the mat"


def test_an_id_that_stands_for_nothing_is_a_question_mark():
    """Some of tiktoken's own vocabularies have such, and an untrained model may write them."""
    enc = SimpleNamespace(decode_single_token_bytes={0: b"a", 2: b"c"}.__getitem__)
    table = clone.clone_table(np.ones(3), 2)
    assert clone.spell([0, 1, 5, 4], [enc, enc], table) == "a\ufffdc\ufffd"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("cloned", [1.0, 0.8])
def test_nothing_depends_on_the_order_of_the_ids(arch, heads, cloned):
    """Where the rows are permuted along, losses and gradients are the same.

    They are equal to the last digit of fp32, not to the last bit: the terms of a softmax are summed
    in the order of the ids, and each order rounds in its own way.
    """
    masked, context = arch == "encoder", 16
    shift, permute, to = both_tables(60 + masked, cloned)
    torch.manual_seed(0)
    config = dict(vocab_size=shift.size, context=context, n_layer=2, n_head=2, d_head=8, d_model=24,
                  tied=False, embedding_std=0.3, bias=True, embedding_scale=True, arch=arch,
                  heads=heads)
    one, other = (GPT(config, table=table) for table in (shift, permute))
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        other.embedding[to], other.unembedding[to] = one.embedding, one.unembedding

    text = np.random.default_rng(0).integers(0, 60, 3000)
    batches = [clone.make_batches([text] * 3, table, np.array([[0.5, 0.3, 0.2]]), context, 32,
                                  steps=4, seed=0, masked=masked) for table in (shift, permute)]
    for step in range(4):
        ids, permuted = (batch(step) for batch in batches)
        assert (permuted[0] == to[ids[0]]).all()
        if masked:  # what is shown, and where
            assert (permuted[2] == to[ids[2]]).all() and (permuted[3] == ids[3]).all()
        losses, same = (model(*map(torch.from_numpy, arrays))
                        for model, arrays in ((one, ids), (other, permuted)))
        torch.testing.assert_close(same, losses, rtol=3e-7, atol=0)
        losses.sum().backward()
        same.sum().backward()
    for (name, a), b in zip(one.named_parameters(), other.parameters()):
        back = b.grad[to] if "embedding" in name else b.grad
        torch.testing.assert_close(back, a.grad, rtol=1e-4, atol=1e-4)
    # the rows have to be permuted along: without that it is another model
    other.load_state_dict(one.state_dict())
    wrong = other(*map(torch.from_numpy, permuted))
    assert (wrong[permuted[1] > 0] - same[permuted[1] > 0]).abs().min() > 1e-3


# ------------------------------------------------------------------------------------------------
# The command

@pytest.mark.parametrize("cloned", ["1", "0.5"])
def test_the_page_that_shows_permuted_clones(prepared, monkeypatch, capsys, cloned):
    monkeypatch.chdir(prepared)
    options = ["--corpus=books", "--vocab_size=300", "--ratio=0.9", f"--cloned={cloned}"]
    pages = []
    for kind in ("shift", "permute"):
        monkeypatch.setattr("sys.argv", ["clone.py", *options, f"--clone={kind}"])
        clone.main()
        pages.append(capsys.readouterr().out)
    assert pages[1].count("decoded: The main language helps the other one.") == 2
    assert "--clone=permute" in pages[1]  # in the next command
    # other ids, and the same check of the batches
    ids, checks = ([page.partition("the first 200")[i] for page in pages] for i in (0, 2))
    assert ids[0] != ids[1]
    assert checks[0].split("next:")[0] == checks[1].split("next:")[0]


def test_the_page_that_shows_cloning(prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    options = ["--corpus=books", "--vocab_size=300", "--ratio=0.9", "--languages=3"]
    monkeypatch.setattr("sys.argv", ["clone.py", *options])
    clone.main()
    out = capsys.readouterr().out
    assert out.count("decoded: The main language helps the other one.") == 3

    rows = [line.split() for line in out.splitlines() if line.startswith("EN") and "%" in line]
    assert [row[0] for row in rows] == ["EN1", "EN2", "EN3"]
    assert {row[1] for row in rows} == {"300"}


def test_the_page_that_shows_what_real_languages_share(bilingual, monkeypatch, capsys):
    monkeypatch.chdir(bilingual)
    monkeypatch.setattr("sys.argv", ["clone.py", *REAL, "--vocab_size=300",
                                     "--vocabulary=anchored"])
    clone.main()
    out = capsys.readouterr().out
    # the two corpora share most of their text: letters, marks
    assert re.search(r"eng: 300 ids, 2[56]\d of them shared: \d\d.\d% of its running text", out)
    examples = re.search(r"shared, the most frequent in eng: (.*)", out)[1]
    assert len(re.findall("'.*?'", examples)) == 10
    assert "next: python train.py --ratio=0.9 --corpus=eng=books --corpus=fra=livres" in out


def test_the_masks_of_a_run_are_those_of_the_number_of_each_sequence():
    table = clone.clone_table(np.ones(31), 2)
    text = np.random.default_rng(0).integers(0, 30, 2000)

    def batches(seed):
        return clone.make_batches([text] * 2, table, two(0.5), 15, 8, 60, seed,
                                  masked=True)

    found = []
    for seed, step in ((0, 3), (0, 4), (1, 3), (0, 3 + 125 // 8)):
        ids, lang, shown, places = batches(seed)(step)
        dice = clone.roll_dice(range(8 * step, 8 * step + 8), 15, seed)
        for got, expected in zip((shown, places), clone.mask_tokens(ids, table, lang, dice)):
            assert (got == expected).all()
        found.append(places)
    for other in found[1:]:
        assert (other != found[0]).any(1).sum() >= 6


def test_the_check_of_the_batches_measures_distances(capsys):
    """EN1 reads token 0 alone, EN2 token 1 in half of its places, EN3 another one everywhere."""
    said = np.array([[0, 0], [0, 1], [2, 2]])

    def batch(step):
        lang = np.arange(30) % 3
        return said[lang] + 5 * lang[:, None], lang

    table = clone.clone_table(np.ones(5), 3)
    clone.check_batches(["EN1", "EN2", "EN3"], batch, table, 20, 0)
    cells = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[4] for row in cells] == ["0.000", "0.500", "1.000"]
    assert [row[2] for row in cells] == ["33.3%"] * 3 and [row[3] for row in cells] == ["400"] * 3
    assert all(float(row[5]) < 0.2 for row in cells)
