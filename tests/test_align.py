import importlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REAL, TINY, fails, listing, train_here, write_corpus

import align
import clone
import data
import parallel
import patching
import runs
import train
from lib.bpe import EOT
from model import GPT

CPU = torch.device("cpu")
V, T = 200, 32
CONFIG = dict(
    vocab_size=2 * V, context=T, n_layer=3, n_head=2, d_head=8, d_model=32, embedding_std=0.02,
    bias=True, embedding_scale=True, arch="decoder", heads="shared",
)
TABLE = clone.clone_table(np.ones(V), 2)
# no token twice in a position: no two states alike
TEXT = np.stack([np.random.default_rng(t).permutation(V - 1)[:80] for t in range(T + 1)], axis=1)


def planted(kind, tied=False):
    """A model whose second language is a copy of the first, or a stranger to it."""
    torch.manual_seed(0)
    model = GPT(CONFIG | {"tied": tied})
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (1.0 if "embedding" in name else 0.2))
        model.position.mul_(0.1 if kind == "stranger" else 1)
        if kind == "copy":
            for rows in (model.embedding, model.unembedding):
                rows[V:] = rows[:V]
    return model


def random_rotation(d):
    return torch.linalg.qr(torch.randn(d, d))[0]


# ------------------------------------------------------------------------------------------------
# Measures on arrays

def slow_cka(a, b):
    """Linear CKA in kernel form: the cosine of the two centred Gram matrices [n, n]."""
    grams = []
    for x in (a.double(), b.double()):
        gram = x @ x.T
        mean = gram.mean(0)
        grams.append((gram - mean - mean[:, None] + mean.mean()).flatten())
    return F.cosine_similarity(*grams, dim=0).item()


def stream(a, b, batch=64, shuffle=False):
    cka = align.StreamingCKA()
    for x, y in zip(a.split(batch), b.split(batch)):
        orders = [torch.randperm(len(x)) for _ in range(align.SHUFFLES)] if shuffle else ()
        cka.add(x, y, orders)
    return cka


def test_streaming_cka_is_the_kernel_form_whatever_the_batches():
    torch.manual_seed(0)
    a = torch.randn(300, 20) + 100  # a large mean, as residual streams have
    b = a @ torch.randn(20, 15) + torch.randn(300, 15) * 5
    expected = slow_cka(a, b)
    assert 0.1 < expected < 0.95
    for batch in (1, 64, 300):
        assert stream(a, b, batch).value() == pytest.approx(expected, abs=1e-9)


def test_the_floor_of_streaming_cka_is_that_of_the_pairs_as_shuffled():
    torch.manual_seed(0)
    a = torch.randn(300, 20)
    b = a @ random_rotation(20)
    orders = [torch.randperm(300) for _ in range(align.SHUFFLES)]
    cka = align.StreamingCKA()
    cka.add(a, b, orders)
    for i, order in enumerate(orders):
        assert cka.value(i) == pytest.approx(slow_cka(a, b[order]), abs=1e-9)


def test_cka_does_not_see_rotation_scale_or_shift_and_sees_the_rest():
    torch.manual_seed(0)
    a = torch.randn(500, 16) * torch.linspace(0.1, 3, 16)
    assert stream(a, a @ random_rotation(16) * 7 + 3).value() == pytest.approx(1, abs=1e-6)
    assert stream(a, a[torch.randperm(500)]).value() < 0.1
    assert stream(a, a / a.std(0)).value() < 0.9  # whitening is no rotation


def test_random_arrays_are_at_the_shuffled_floor_and_related_ones_above():
    torch.manual_seed(0)
    a, b = torch.randn(2000, 32), torch.randn(2000, 32)
    for other, above in ((b, False), (a + b, True)):
        cka = stream(a, other, shuffle=True)
        floors = [cka.value(i) for i in range(align.SHUFFLES)]
        assert align.against_floor(cka.value(), floors)["above"] == above

        shuffles = [torch.randperm(2000) for _ in range(align.SHUFFLES)]
        floors = [align.cosine(a, other[s]) for s in shuffles]
        assert align.against_floor(align.cosine(a, other), floors)["above"] == above
        floors = [align.retrieval_at_1(a, other, s) for s in shuffles]
        assert align.against_floor(align.retrieval_at_1(a, other), floors)["above"] == above


def test_above_is_by_more_than_the_margin_and_5_standard_deviations_of_the_floor():
    # shuffles that spread by 0.1 around 0.5: what is above them is above 1.0
    floors = 0.5 + 0.1 * np.array([-1.0, 1.0, -1.0, 1.0]) * np.sqrt(3 / 4)
    assert np.std(floors, ddof=1) == pytest.approx(0.1)
    assert align.against_floor(0.99, floors) == {
        "value": 0.99, "floor": pytest.approx(0.5), "above": False}
    assert align.against_floor(1.01, floors)["above"]
    # shuffles that are all the same: the margin, 0.02, is what counts
    assert not align.against_floor(0.519, [0.5] * 8)["above"]
    assert align.against_floor(0.521, [0.5] * 8)["above"]
    assert not align.against_floor(0.1, [0.5] * 8)["above"]  # below it


def test_a_large_shared_direction_fools_the_cosine_and_not_its_floor():
    torch.manual_seed(0)
    a, b = torch.randn(2000, 32), torch.randn(2000, 32)
    a[:, 0] += 20
    b[:, 0] += 20
    floors = [align.cosine(a, b[torch.randperm(2000)]) for _ in range(align.SHUFFLES)]
    assert align.cosine(a, b) > 0.9
    assert not align.against_floor(align.cosine(a, b), floors)["above"]
    assert abs(align.cosine(align.centre(a), align.centre(b))) < 0.05
    assert align.retrieval_at_1(a, b) < 0.01


def test_retrieval_on_planted_states():
    torch.manual_seed(0)
    a = torch.randn(500, 32)
    assert align.retrieval_at_1(a, a * 3 + 7) == 1  # scale and a common shift do not matter
    rotation, near = random_rotation(32), a + 0.01 * torch.randn_like(a)
    assert align.retrieval_at_1(a @ rotation, near @ rotation) == 1
    assert align.retrieval_at_1(a, torch.randn(500, 32)) < 0.02  # chance is 1 in 500
    assert align.retrieval_at_1(a, a.roll(1, 0)) == 0
    assert align.retrieval_at_1(a, a.roll(1, 0), order=(torch.arange(500) + 1) % 500) == 1
    half = a.clone()
    half[:250] = torch.randn(250, 32)
    assert 0.45 < align.retrieval_at_1(a, half) < 0.55


def test_retrieval_there_and_back_are_two_measures():
    """b's states crowd around a few of a's, so that not many of a's are found again."""
    torch.manual_seed(0)
    a = torch.randn(300, 8)
    b = a + 3 * torch.randn(300, 1) * torch.randn(8) + 0.5 * torch.randn(300, 8)
    shuffles = [torch.randperm(300) for _ in range(align.SHUFFLES)]
    measured = align.compare_states(a, b, shuffles)

    def hits(x, y):
        """The slow way: one of x's states at a time, and its nearest of y's."""
        x, y = x - x.mean(0), y - y.mean(0)
        n = 0
        for i, state in enumerate(x):
            n += F.cosine_similarity(state[None], y, dim=1).argmax().item() == i
        return n / len(x)

    there, back = hits(a, b), hits(b, a)
    assert there != back
    assert measured["retrieval"]["value"] == pytest.approx(there)
    assert measured["retrieval_back"]["value"] == pytest.approx(back)
    # and so are their floors, which are of b's states shuffled, or of a's
    for measure, x, y in (("retrieval", a, b), ("retrieval_back", b, a)):
        floors = [align.retrieval_at_1(x, y, s) for s in shuffles]
        assert measured[measure]["floor"] == pytest.approx(np.mean(floors))
    # the cosines see the mean of all states, or do not
    assert measured["cosine"]["value"] == pytest.approx(align.cosine(a, b))
    assert measured["centred"]["value"] == pytest.approx(
        align.cosine(a - a.mean(0), b - b.mean(0)))


def test_shuffled_pairs_are_of_one_position_and_never_a_state_with_itself():
    positions = torch.from_numpy(np.random.default_rng(0).integers(0, 10, 500))
    order = align.shuffled(positions, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(500))
    assert (order != torch.arange(500)).all()
    assert (positions[order] == positions).all()
    other = align.shuffled(positions, torch.Generator().manual_seed(1))
    assert (order != other).float().mean() > 0.9


def test_a_state_that_is_alone_at_its_position_is_paired_with_a_neighbour():
    for positions in ([0, 1, 2, 3], [0, 0, 1, 2, 2], [0, 0, 0, 5], [4, 9], [1, 1, 2, 3, 3, 7]):
        positions = torch.tensor(positions)
        for seed in range(20):
            order = align.shuffled(positions, torch.Generator().manual_seed(seed))
            assert sorted(order.tolist()) == list(range(len(positions)))
            assert (order != torch.arange(len(positions))).all(), positions
            assert (positions[order] - positions).abs().max() <= 5
    assert align.join_single(torch.tensor([0, 0, 1, 2, 2])).tolist() == [0, 0, 1, 1, 1]
    assert align.join_single(torch.tensor([0, 0, 1])).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------------
# Hidden states of planted models

def test_a_copy_is_aligned_in_every_layer_by_every_measure():
    layers = align.layer_similarity(planted("copy"), TEXT[:, :-1], *TABLE)
    assert len(layers) == 4
    for layer in layers:
        assert layer.keys() == align.MEASURES.keys()
        for name in ("cosine", "centred", "cka"):
            assert layer[name]["value"] == pytest.approx(1, abs=1e-5)
            assert layer[name]["above"]
            assert layer[name]["floor"] < 0.6
        for name in ("retrieval", "retrieval_back"):
            assert layer[name]["value"] == 1
            assert layer[name]["floor"] < 0.01
            assert layer[name]["above"]


def test_a_stranger_is_at_the_floor_in_the_embedding_by_every_measure():
    layers = align.layer_similarity(planted("stranger"), TEXT[:, :-1], *TABLE)
    embedding = layers[0]
    assert not embedding["retrieval"]["above"] and not embedding["retrieval_back"]["above"]
    for name in ("cosine", "centred"):
        assert abs(embedding[name]["value"] - embedding[name]["floor"]) < 0.15
    assert embedding["cka"]["value"] < 0.3


def test_a_model_that_knows_only_positions_is_at_the_floor():
    model = planted("stranger")
    with torch.no_grad():
        model.embedding.mul_(0.01)
        model.position.mul_(10)
    for layer in align.layer_similarity(model, TEXT[:, :-1], *TABLE):
        for name in ("cosine", "centred", "cka"):
            assert layer[name]["value"] > 0.5
            assert layer[name]["value"] - layer[name]["floor"] < 0.02, name
            assert not layer[name]["above"], name
        assert layer["retrieval"]["value"] < 0.2


def test_states_of_the_last_layer_are_the_models_own():
    model, text = planted("stranger"), TEXT[:, :-1]
    with torch.no_grad():
        a, b = (model.residual_stream(torch.from_numpy(row[text]))[-1].flatten(0, 1)
                for row in TABLE)
    last = align.layer_similarity(model, text, *TABLE)[-1]
    assert last["cka"]["value"] == pytest.approx(slow_cka(a, b), abs=1e-6)
    # of all states, where the measure keeps a sample
    assert last["cosine"]["value"] == pytest.approx(align.cosine(a, b), abs=0.02)


def test_the_states_that_are_kept_are_from_all_of_the_text():
    # the words of the second half of the text are strangers, all others copies
    model = planted("copy")
    half = V // 2
    with torch.no_grad():
        model.embedding[V + half:] = torch.randn(V - half, CONFIG["d_model"])
    rng = np.random.default_rng(0)
    text = np.concatenate([rng.integers(0, half, (200, T)), rng.integers(half, V - 1, (200, T))])

    embedding = align.layer_similarity(model, text, *TABLE)[0]
    assert embedding["retrieval"]["value"] < 0.6
    model.position.data.zero_()  # what the words alone have in common
    cosine = align.layer_similarity(model, text, *TABLE)[0]["cosine"]["value"]
    assert cosine == pytest.approx(0.5, abs=0.05)


def test_about_2048_states_are_kept_in_windows_spread_evenly():
    kept = align.kept_windows(1000, 128)
    assert len(kept) == 16 == align.STATES / 128
    assert kept[0] == 0 and kept[-1] == 999
    assert np.diff(kept).min() >= 66 and np.diff(kept).max() <= 67
    assert align.kept_windows(1000, 100).shape == (21,)  # 20.48, rounded up
    assert align.kept_windows(5, 128).tolist() == [0, 1, 2, 3, 4]  # a short text: all of it


def test_anchor_points_do_not_count_as_alignment():
    model, table = planted("stranger"), clone.clone_table(np.ones(V), 2, cloned=0.5)
    text = TEXT[:, :-1]
    layers = align.layer_similarity(model, text, *table)
    assert abs(layers[0]["centred"]["value"]) < 0.1

    # with the anchors' positions, half of all
    with torch.no_grad():
        a, b = (model.residual_stream(torch.from_numpy(row[text]))[0].flatten(0, 1)
                for row in table)
    assert align.cosine(align.centre(a), align.centre(b)) > 0.3
    cloned = torch.from_numpy(clone.cloned_positions(text, *table)).flatten()
    without, with_them = slow_cka(a[cloned], b[cloned]), slow_cka(a, b)
    assert layers[0]["cka"]["value"] == pytest.approx(without, abs=1e-6)
    assert with_them > without + 0.1

    # all are anchors: nothing to leave out
    all_anchors = clone.clone_table(np.ones(V), 2, cloned=0.0)
    everywhere = align.layer_similarity(model, text, *all_anchors)
    assert everywhere[0]["centred"]["value"] == pytest.approx(1)


def test_nor_do_they_in_what_is_watched_during_training():
    model, table = planted("stranger"), clone.clone_table(np.ones(V), 2, cloned=0.5)
    text = TEXT.flatten()
    _, retrieval = train.evaluate(model, [text, text], table, ["EN1", "EN2"], T)
    assert retrieval["EN1-EN2"] < 0.1  # at an anchor's position the states share an embedding
    # the same windows, with the anchors' positions
    n = train.RETRIEVAL_STATES // T
    starts = np.linspace(0, len(text) - T - 1, clone.count_windows(text, T)).astype(int)[:n]
    some = np.stack([text[i:i + T] for i in starts])
    with torch.no_grad():
        a, b = (model.residual_stream(torch.from_numpy(row[some]))[1].flatten(0, 1)
                for row in table)
    assert align.retrieval_at_1(a, b) > 0.2
    cloned = torch.from_numpy(clone.cloned_positions(some, *table)).flatten()
    assert retrieval["EN1-EN2"] == align.retrieval_at_1(a[cloned], b[cloned])


# ------------------------------------------------------------------------------------------------
# Gradients of planted models

@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_a_copy_are_the_same_and_a_strangers_are_not(tied):
    copy = align.gradient_similarity(planted("copy", tied), TEXT, *TABLE)
    stranger = align.gradient_similarity(planted("stranger", tied), TEXT, *TABLE)
    names = {"embedding", "position", "blocks.0.q", "blocks.2.k", "blocks.1.v", "blocks.0.down",
             "blocks.2.norm1.weight"}
    assert names <= copy.keys()
    assert ("unembedding" in copy) != tied
    for name, g in copy.items():
        if name.endswith("k_bias"):  # added to all keys it changes no attention: rounding noise
            continue
        assert g["single"] == pytest.approx(1, abs=1e-4), name
        assert g["same"] == pytest.approx(1, abs=1e-4), name
        assert g["other"] == pytest.approx(g["within"], abs=1e-4)

    # of a stranger it does not matter whether the text is the same
    of_stranger = {kind: align.block_mean(stranger, kind) for kind in align.GRADIENTS}
    assert abs(of_stranger["same"] - of_stranger["other"]) < 0.05
    assert align.block_mean(copy, "same") == pytest.approx(1, abs=1e-4)
    assert of_stranger["same"] < of_stranger["within"] - 0.05
    assert align.block_mean(copy, "single") == pytest.approx(1, abs=1e-4)
    assert of_stranger["single"] < 0.5


@pytest.mark.parametrize("sequences", [500, 2])
def test_gradient_cosine_is_that_of_autograd(sequences, monkeypatch):
    monkeypatch.setattr(align, "SEQUENCES", sequences)
    model = planted("stranger")
    result = align.gradient_similarity(model, TEXT, *TABLE)["blocks.1.up"]

    # of single sequences, and their mean (paper: Gradient similarity)
    singles = []
    for sequence in TEXT[[0, -1]] if sequences == 2 else TEXT:  # from all of the text
        one, other = (torch.autograd.grad(model(torch.from_numpy(row[sequence][None])).sum(),
                                          model.blocks[1].up)[0].flatten() for row in TABLE)
        singles.append(F.cosine_similarity(one, other, dim=0).item())
    assert np.std(singles) > 0.01
    assert result["single"] == pytest.approx(np.mean(singles), abs=1e-5)

    # [language][half of the text]
    grads = []
    for row in TABLE:
        grads.append([])
        for half in (TEXT[::2], TEXT[1::2]):
            loss = model(torch.from_numpy(row[half])).mean()
            grads[-1].append(torch.autograd.grad(loss, model.blocks[1].up)[0].flatten())
    (a1, a2), (b1, b2) = grads
    for kind, pairs in {"same": [(a1, b1), (a2, b2)], "other": [(a1, b2), (a2, b1)],
                        "within": [(a1, a2), (b1, b2)]}.items():
        cosines = [F.cosine_similarity(x, y, dim=0).item() for x, y in pairs]
        assert result[kind] == pytest.approx(np.mean(cosines), abs=1e-5), kind


def test_the_mean_over_the_blocks_leaves_out_what_is_not_of_a_block():
    gradients = {
        "embedding": {"same": 0.9, "other": 0.8},
        "position": {"same": 0.9, "other": 0.8},
        "blocks.0.q": {"same": 0.1, "other": 0.0},
        "blocks.0.k_bias": {"same": -0.9, "other": -0.9},  # noise, as above
        "blocks.11.norm1.weight": {"same": 0.3, "other": -0.2},
        "norm.weight": {"same": 0.9, "other": 0.8},
        "unembedding": {"same": 0.9, "other": 0.8},
    }
    assert align.block_mean(gradients, "same") == pytest.approx(0.2)
    assert align.block_mean(gradients, "other") == pytest.approx(-0.1)


# ------------------------------------------------------------------------------------------------
# Embeddings of planted models

def test_embeddings_of_a_copy_and_of_a_stranger():
    frequency = np.arange(V, 0, -1).astype(float)
    frequency[-1] = 0
    for kind, expected in (("copy", 1), ("stranger", 0)):
        result = align.embedding_similarity(planted(kind), *TABLE, frequency)
        tied = align.embedding_similarity(planted(kind, True), *TABLE, frequency)
        assert result.keys() == {"input", "output"}
        assert tied.keys() == {"tied"}
        for side in result.values():
            assert side["value"] == pytest.approx(expected, abs=0.06)
            assert abs(side["floor"]) < 0.06
            assert side["above"] == (kind == "copy")
            rates = [b["tokens_per_million"] for b in side["by_frequency"]]
            assert rates == sorted(rates) and len(rates) == 8


def test_each_bin_is_of_its_own_tokens_against_all_pairs_of_the_two_languages():
    """The slow way, a token at a time with all others; the languages of this model lean apart."""
    model = planted("stranger")
    with torch.no_grad():
        lean = torch.randn(CONFIG["d_model"])
        for rows in (model.embedding, model.unembedding):
            rows[:V] += 0.7 * lean
            rows[V:] -= 0.4 * lean  # within a language tokens are alike, between them opposite
    frequency = np.random.default_rng(0).permutation(V).astype(float)  # one is never seen
    cloned = [i for i in np.argsort(frequency) if frequency[i] > 0]
    result = align.embedding_similarity(model, *TABLE, frequency)

    for side, rows in (("input", model.embedding), ("output", model.unembedding)):
        rows = rows.detach().double()

        def pairs(tokens, rows=rows):
            """The cosine of each token of EN1 with each of EN2 [n, n]."""
            others = rows[[V + j for j in tokens]]
            return np.stack([F.cosine_similarity(rows[i][None], others, dim=1) for i in tokens])

        everything = pairs(cloned)
        assert result[side]["value"] == pytest.approx(everything.diagonal().mean())
        assert result[side]["all_pairs"] == pytest.approx(everything.mean())
        assert result[side]["all_pairs"] < -0.1
        for measured, tokens in zip(result[side]["by_frequency"], np.array_split(cloned, 8)):
            of_bin = pairs(tokens)
            assert measured == {
                "tokens_per_million": pytest.approx(
                    1e6 * frequency[tokens].mean() / frequency.sum()),
                "cosine": pytest.approx(of_bin.diagonal().mean()),
                "floor": pytest.approx(of_bin.mean()),
            }


def test_the_floor_of_embeddings_is_of_tokens_that_are_as_frequent():
    """Rare tokens all look alike, as in a trained model; frequent ones are each their own."""
    model = planted("stranger")
    frequency = np.arange(1.0, V + 1)
    with torch.no_grad():
        common = torch.linspace(10, 0, 8).repeat_interleave(25)  # of each eighth of the tokens
        model.embedding.add_(common.repeat(2)[:, None])
    side = align.embedding_similarity(model, *TABLE, frequency)["input"]
    assert side["value"] == pytest.approx(side["floor"], abs=0.02)  # nothing but frequency
    assert not side["above"]
    assert side["value"] > side["all_pairs"] + 0.08  # which mixes rare ones with frequent ones


def test_tokens_that_are_never_seen_are_left_out():
    """They keep the embeddings that they started with, here a copy's."""
    model = planted("stranger")
    frequency = np.ones(V)
    frequency[::2] = 0
    with torch.no_grad():
        for rows in (model.embedding, model.unembedding):
            rows[V::2] = rows[:V:2]
    for side in align.embedding_similarity(model, *TABLE, frequency).values():
        assert abs(side["value"]) < 0.1
        assert not side["above"]
    assert align.embedding_similarity(model, *TABLE, np.ones(V))["input"]["value"] > 0.4
    # too few tokens for the bins: nothing is said
    assert align.embedding_similarity(model, *TABLE, np.arange(V) < 15) == {}


def test_anchor_points_are_left_out():
    table = clone.clone_table(np.ones(V), 2, cloned=0.5)
    result = align.embedding_similarity(planted("stranger"), *table, np.ones(V))
    assert result["input"]["value"] < 0.1  # an anchor would have cosine 1


# ------------------------------------------------------------------------------------------------
# Real languages

def translation(kind, n=100, seed=0):
    """Windows of two lines and their translations: the same tokens in another order, EN2's ids.

    Windows and lines differ in length, and a translation is as long as its text. Every line ends
    with token V - 1. kind: "own", or "other" where they are of another text altogether.
    """
    rng = np.random.default_rng(seed)
    windows = []
    for _ in range(n):
        size = rng.integers(8, T + 1)
        first = rng.integers(3, size - 3)
        text, other = rng.permutation(V - 1)[:size], rng.permutation(V - 1)[:size]
        text[[first - 1, -1]] = other[[first - 1, -1]] = V - 1
        source = text if kind == "own" else other
        # word order: within each line the tokens are shuffled, but for its end
        b = source.copy()
        b[:first - 1] = rng.permutation(source[:first - 1])
        b[first:-1] = rng.permutation(source[first:-1])
        windows.append(parallel.Window(text, b + V, [(first, first), (size, size)]))
    return windows


def bag_of_words(kind):
    """A model whose states are embeddings alone: no positions, and blocks that add nothing."""
    model = planted(kind)
    with torch.no_grad():
        model.position.zero_()
        for block in model.blocks:
            for p in (block.proj, block.proj_bias, block.down, block.down_bias):
                p.zero_()
    return model


def test_a_translation_in_another_order_is_found():
    layers = align.parallel_similarity(bag_of_words("copy"), translation("own"), [])
    assert len(layers) == 4
    for layer in layers:
        assert layer.keys() == align.PARALLEL_MEASURES.keys() - {"shared"}
        # but for a token or two, where a neighbour in length is shorter
        assert layer["matched"]["value"] == pytest.approx(1, abs=0.02)
        assert layer["matched_centred"]["value"] == pytest.approx(1, abs=0.02)
        # not all, since what is taken off at each position depends on the order
        assert min(layer["line"]["value"], layer["line_back"]["value"]) > 0.95
        assert layer["line_cka"]["value"] > 0.9
        assert all(entry["above"] for entry in layer.values())
        # a matching finds something in any two texts
        assert layer["matched_centred"]["floor"] > 0.1


@pytest.mark.parametrize("kind, text", [("stranger", "own"), ("copy", "other")])
def test_strangers_and_other_texts_are_at_the_floor(kind, text):
    """Though long windows match better than short ones, and short lines have more of their end."""
    for layer in align.parallel_similarity(bag_of_words(kind), translation(text), []):
        for measure, entry in layer.items():
            if measure == "line_cka" and text == "own":
                continue  # it sees which lines have tokens in common, whatever their states are
            assert not entry["above"], measure
            assert entry["value"] == pytest.approx(entry["floor"], abs=0.07), measure
        # a floor of lines of any length would not do
        assert layer["line_cka"]["floor"] > 0.2


def test_a_model_that_knows_positions_only_finds_no_line():
    """Lines stand where their translations do; without the mean of each position it is all."""
    model = bag_of_words("stranger")
    with torch.no_grad():
        model.embedding.mul_(1e-2)
        model.position.normal_()
    windows = translation("own")
    layer = align.parallel_similarity(model, windows, [])[0]
    assert layer["line"]["value"] < 0.1

    def plain_means(side):
        """The mean state of each line, with nothing taken off."""
        means = []
        for window in windows:
            states = align.states_of(model, [window[side]])[0][0]
            start = 0
            for ends in window.ends:
                means.append(states[start:ends[side]].mean(0))
                start = ends[side]
        return torch.stack(means)

    assert align.retrieval_at_1(plain_means(0), plain_means(1)) > 0.5


def test_the_floor_of_a_matching_is_of_windows_about_as_long():
    """Windows of 4 to 128 random states: the longer, the better a matching is."""
    torch.manual_seed(0)
    sizes = torch.linspace(4, 128, 40).long().tolist()
    a, b = ([torch.randn(n, 16) for n in sizes] for _ in range(2))
    entry = align.matched_similarity(a, b)["matched"]
    assert not entry["above"]
    assert entry["value"] == pytest.approx(entry["floor"], abs=0.01)
    assert align.matched_cosine(a[30:], b[30:], 0) > align.matched_cosine(a[:10], b[:10], 0) + 0.1


def test_no_window_is_its_own_floor_however_long_the_context(monkeypatch):
    """As many tokens as one window has would be one window, or none, to shuffle."""
    windows, model = translation("own"), bag_of_words("copy")
    few = align.parallel_similarity(model, windows[:align.LEAST_WINDOWS], [])
    for name in ("MATCHED_TOKENS", "LINE_TOKENS"):
        monkeypatch.setattr(align, name, model.config["context"] - 1)
    for layer, alike in zip(align.parallel_similarity(model, windows, []), few):
        assert layer.keys() == alike.keys()
        for measure in ("matched", "matched_centred"):
            assert layer[measure]["floor"] < 0.9

    a = [torch.eye(8)[i].repeat(4, 1) for i in range(align.LEAST_WINDOWS)]  # no two alike
    for shift in range(1, align.MATCHINGS + 1):
        assert align.matched_cosine(a, a, shift) == 0
    assert align.matched_cosine(a, a, 0) == pytest.approx(1)


def test_a_token_that_two_languages_share(monkeypatch):
    """Half of the tokens are shared; their states are those of a copy, or of a stranger."""
    monkeypatch.setattr(align, "MATCHED_TOKENS", 8192)
    shared = np.arange(0, V, 2)
    windows = []
    for window in translation("own", n=300):
        b = np.where(np.isin(window.b - V, shared), window.b - V, window.b)
        windows.append(window._replace(b=b))
    model = bag_of_words("copy")
    used_alike = align.parallel_similarity(model, windows, shared)[0]["shared"]
    assert used_alike["value"] > 0.99 and used_alike["above"]
    assert abs(used_alike["floor"]) < 0.1

    # states planted: a token's in the second language is that of another one
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20, 2000)
    vectors = torch.randn(20, 32)
    a, b = vectors[ids], vectors[(ids + 1) % 20]
    swapped = align.shared_similarity(a, b, ids, ids, np.arange(20))["shared"]
    assert swapped["value"] < 0.2 and not swapped["above"]


def test_each_language_has_its_own_mean_taken_off():
    torch.manual_seed(0)
    a = [torch.randn(n, 16) for n in range(8, 28)]
    b = [x[torch.randperm(len(x))] for x in a]
    plain = align.matched_similarity(a, b)["matched_centred"]
    moved = align.matched_similarity(a, [x + 5 for x in b])["matched_centred"]
    assert moved["value"] == pytest.approx(plain["value"], abs=1e-4)
    assert moved["floor"] == pytest.approx(plain["floor"], abs=1e-4) and moved["above"]


def test_shared_tokens_have_the_mean_of_each_language_taken_off_and_rare_ones_do_not_count():
    torch.manual_seed(0)
    ids, vectors = np.repeat(np.arange(20), 50), torch.randn(20, 32)
    a, b = vectors[ids] + 10, vectors[(ids + 1) % 20] - 10
    assert align.shared_similarity(a, b, ids, ids, range(20))["shared"]["value"] < 0.2
    alike = align.shared_similarity(a, vectors[ids] - 10, ids, ids, range(20))
    assert alike["shared"]["value"] > 0.99

    # token 20, 4 times in one language, is used in quite another way
    ids = np.append(ids, [20] * 4)
    a = torch.cat([vectors[ids[:-4]], torch.ones(4, 32)])
    b = torch.cat([vectors[ids[:-4]], -torch.ones(4, 32)])
    assert align.shared_similarity(a, b, ids, ids, range(21))["shared"]["value"] > 0.99


def test_gradients_of_several_batches_are_those_of_all_windows():
    model, long = planted("stranger"), np.tile(TEXT, (4, 1))
    assert long.size > 8192
    once, four = (align.gradients(model, TABLE[0][text], TABLE[0]) for text in (TEXT, long))
    for name in once:
        if not name.endswith("k_bias"):
            torch.testing.assert_close(four[name], 4 * once[name], rtol=1e-3, atol=1e-3)


def test_anchor_points_of_a_long_text_are_left_out():
    model, table = planted("stranger"), clone.clone_table(np.ones(V), 2, cloned=0.5)
    text = np.random.default_rng(0).integers(0, V, (300, T))  # three batches
    layer = align.layer_similarity(model, text, *table)[0]
    with torch.no_grad():
        a, b = (model.residual_stream(torch.from_numpy(row[text]))[0].flatten(0, 1)
                for row in table)
    cloned = torch.from_numpy(clone.cloned_positions(text, *table)).flatten()
    assert layer["cka"]["value"] == pytest.approx(stream(a[cloned], b[cloned]).value(), abs=1e-6)


def test_gradients_of_a_text_and_its_translation_by_hand():
    model = planted("stranger")
    windows = translation("own", n=6)
    sides = [[window[side] for window in windows] for side in (0, 1)]
    measured = align.compare_gradients(model, *sides, TABLE, embeddings=False)
    assert "embedding" not in measured and "blocks.0.q" in measured

    def by_hand(windows):
        model.zero_grad()
        for window in windows:
            model(torch.from_numpy(window[None])).mean().backward()
        return model.blocks[1].up.grad.flatten().clone()

    a, b = ([by_hand(side[::2]), by_hand(side[1::2])] for side in sides)
    cosine = F.cosine_similarity
    expected = {
        "same": (cosine(a[0], b[0], dim=0) + cosine(a[1], b[1], dim=0)) / 2,
        "other": (cosine(a[0], b[1], dim=0) + cosine(a[1], b[0], dim=0)) / 2,
        "within": (cosine(a[0], a[1], dim=0) + cosine(b[0], b[1], dim=0)) / 2,
        "single": np.mean([cosine(by_hand([x]), by_hand([y]), dim=0).item()
                           for x, y in zip(*sides)]),
    }
    for kind, value in expected.items():
        assert measured["blocks.1.up"][kind] == pytest.approx(float(value), abs=1e-5)


# ------------------------------------------------------------------------------------------------
# The mean over the pairs of languages

def test_a_summary_is_the_mean_over_the_pairs():
    def entry(value, above):
        return {"value": value, "floor": value / 2, "above": above}

    def pair(x, above):
        """What is measured of one pair, all of it planted from one number."""
        measures = {name: entry(x + i, above) for i, name in enumerate(align.MEASURES)}
        bins = [{"tokens_per_million": 5.0, "cosine": x, "floor": x / 4}]
        exchange = {"own": 1, "patched": 1 + x, "other": 3, "error": 0.1, "value": 7, "clear": True}
        gradient = {"single": x / 2, "same": x, "other": 2 * x, "within": 3 * x}
        return {
            "layers": [measures, {name: entry(2 * x, above) for name in align.MEASURES}],
            "gradients": {"embedding": dict.fromkeys(align.GRADIENTS, 7.0),
                          "blocks.0.q": gradient, "blocks.0.up": gradient},
            "embeddings": {"tied": entry(x, above) | {"all_pairs": x / 8, "by_frequency": bins}},
            "interchange": {"all": exchange, "here": [exchange] * 3, "around": [exchange] * 2},
            "ablation": {"units": ["a", "b"], "worth": [[x, 2], [3, 4 * x]], "correlation": x,
                         "floor": x / 2, "ceiling": 2 * x},
        }

    pairs = {"EN1-EN2": pair(0.1, True), "EN1-EN3": pair(0.2, True), "EN1-EN4": pair(0.6, False)}
    summary = align.summary({"names": ["0", "1"], "pairs": pairs})
    for i, name in enumerate(align.MEASURES):
        assert summary["layers"][0][name] == {
            "value": pytest.approx(0.3 + i), "floor": pytest.approx((0.3 + i) / 2), "above": True}
        assert summary["layers"][1][name]["value"] == pytest.approx(0.6)
    mean = {"single": pytest.approx(0.15), "same": pytest.approx(0.3),
            "other": pytest.approx(0.6), "within": pytest.approx(0.9)}
    assert summary["gradient"] == summary["gradients"]["blocks.0.q"] == mean
    assert summary["gradients"]["embedding"]["same"] == pytest.approx(7)
    assert summary["embeddings"]["tied"]["value"] == pytest.approx(0.3)
    assert summary["embeddings"]["tied"]["all_pairs"] == pytest.approx(0.3 / 8)
    assert summary["embeddings"]["tied"]["by_frequency"] == [
        {"tokens_per_million": 5.0, "cosine": pytest.approx(0.3), "floor": pytest.approx(0.075)}]

    exchange = summary["interchange"]
    assert len(exchange["here"]) == 3 and len(exchange["around"]) == 2
    for entry in (exchange["all"], *exchange["here"], *exchange["around"]):
        # of the mean losses, not of the values
        assert entry["patched"] == pytest.approx(1.3) and entry["value"] == pytest.approx(0.85)
    assert summary["ablation"] == {
        "units": ["a", "b"], "worth": [[pytest.approx(0.3), 2], [3, pytest.approx(1.2)]],
        "correlation": pytest.approx(0.3), "floor": pytest.approx(0.15),
        "ceiling": pytest.approx(0.6)}

    # above, where most pairs are: half of them is not enough
    del pairs["EN1-EN2"]
    assert not align.summary({"names": ["0", "1"], "pairs": pairs})["layers"][0]["cosine"]["above"]


# ------------------------------------------------------------------------------------------------
# The command

@pytest.fixture(autouse=True)
def few_sequences(monkeypatch):
    """Gradients of 500 single sequences take a while; 80 show as much. So with matchings."""
    monkeypatch.setattr(align, "SEQUENCES", 80)
    monkeypatch.setattr(align, "GRADIENT_WINDOWS", 40)
    monkeypatch.setattr(align, "MATCHED_TOKENS", 40 * T)
    monkeypatch.setattr(align, "PATCHED_TOKENS", 1024)
    monkeypatch.setattr(align, "ABLATED_TOKENS", 512)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Runs of two and of three languages, and a monolingual one."""
    here = tmp_path_factory.mktemp("align")
    write_corpus(here / "books")
    # auto is timed, and might take another type for one of the runs on a busy machine
    tiny = ["--dtype=float32",
            "--corpus=books", "--vocab_size=300", "--n_layer=2", "--d_model=16", "--context=16",
            "--batch_size=8", "--steps=40"]
    train_here(here, *tiny, "--ratio=0.6", "--tied=true", "--run=a")
    train_here(here, *tiny, "--ratio=0.4,0.3,0.3", "--tied=false", "--run=b")
    train_here(here, *tiny, "--languages=1", "--run=mono")
    return here


def test_one_page_a_run_and_one_for_all(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.setattr("sys.argv", ["align.py", "runs/a", "runs/b"])
    align.main()
    out = capsys.readouterr().out
    for picture in ("runs/a/align.png", "runs/b/align.png", "runs/align.png"):
        assert (work / picture).read_bytes().startswith(b"\x89PNG")
    result = json.loads((work / "runs/b/align.json").read_text())
    assert result["pairs"].keys() == {"EN1-EN2", "EN1-EN3"}
    for pair in result["pairs"].values():
        assert len(pair["layers"]) == 3
        assert pair["embeddings"].keys() == {"input", "output"}
    assert "above the floor" in out and "runs/b: EN1 with EN2, EN3" in out
    assert "  at every 16th, after each layer: " in out
    assert "of 18 heads and MLPs is worth to EN1" in out
    # the table has the mean over the pairs
    layer = align.summary(result)["layers"][2]["cosine"]
    assert f"{layer['value']:.3f} {layer['floor']:6.3f}" in out


def test_a_run_is_measured_on_its_test_text_by_its_own_model(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.setattr(align, "TOKENS", 30 * 16)
    monkeypatch.setattr(align, "PATCHED_TOKENS", 20 * 16)
    monkeypatch.setattr(align, "ABLATED_TOKENS", 10 * 16)
    run, = runs.open_runs(["runs/b"], CPU, minimum=2)
    result = align.measure(run)
    assert result["checkpoint"] == data.file_sha256(work / "runs/b/model.pt")

    # windows of the context, from the first token to the last
    text = data.tokens(run.corpora[0], "test")
    base, some, few = (
        np.stack([text[i:i + 17] for i in np.linspace(0, len(text) - 17, n).astype(int)])
        for n in (30, 20, 10))
    assert len(text) > 2 * 30 * 17 and result["tokens"] == 30 * 16
    frequency = np.bincount(data.tokens(run.corpora[0], "train"), minlength=300)
    for pair, row in (("EN1-EN2", run.table[1]), ("EN1-EN3", run.table[2])):
        measured = result["pairs"][pair]
        rows = run.table[0], row
        assert measured["layers"] == align.layer_similarity(run.model, base[:, :-1], *rows)
        assert measured["gradients"] == align.gradient_similarity(run.model, base, *rows)
        assert measured["embeddings"] == align.embedding_similarity(run.model, *rows, frequency)
        assert measured["interchange"] == patching.interchange(run.model, some, *rows)
        worths = [patching.worths(run.model, few, row) for row in rows]
        assert measured["ablation"] == patching.compare_worths(*worths)
    assert result["pairs"]["EN1-EN2"]["layers"] != result["pairs"]["EN1-EN3"]["layers"]


def close_to(value, expected):
    """Whether two results agree, number by number: to rounding, since sums have another order."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        value, expected = list(value.values()), list(expected.values())
    if isinstance(expected, (list, tuple)):
        return all(close_to(*pair) for pair in zip(value, expected, strict=True))
    if isinstance(expected, (float, np.floating)):
        return math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-4)
    return value == expected


def test_permuted_clones_with_their_rows_permuted_along_have_the_same_measures():
    model, permuted = planted("stranger"), planted("stranger")
    table = clone.clone_table(np.ones(V), 2, permuted=True)
    with torch.no_grad():
        for name in ("embedding", "unembedding"):
            getattr(permuted, name)[table] = getattr(model, name)[TABLE]
    frequency = np.arange(V) + 1
    eval_ = importlib.import_module("eval")

    def measured(model, rows):
        gradients = align.gradient_similarity(model, TEXT[:20], *rows)
        for tensor in [name for name in gradients if name.endswith("k_bias")]:
            del gradients[tensor]  # rounding noise: see block_mean
        return {
            "layers": align.layer_similarity(model, TEXT[:, :-1], *rows),
            "gradients": gradients,
            "embeddings": align.embedding_similarity(model, *rows, frequency),
            "interchange": patching.interchange(model, TEXT, *rows),
            "ablation": patching.compare_worths(
                *(patching.worths(model, TEXT[:20], row) for row in rows)),
            "code_switch": eval_.code_switch(model, TEXT.flatten(), rows, 0, 1, T),
            "loss": list(eval_.score(model, TEXT.flatten(), rows[1], T, 8)[T:]),
        }

    expected = measured(model, TABLE)
    assert close_to(measured(permuted, table), expected)
    assert not close_to(measured(model, table), expected)  # not permuted along


def test_a_text_of_ones_own(work, monkeypatch, capsys):
    """That of the test split has its numbers, and the corpus is not asked for."""
    monkeypatch.chdir(work)
    shutil.copytree("runs/a", "apart/a", dirs_exist_ok=True)
    run, = runs.open_runs(["runs/a"], CPU)
    expected = align.measure(run)
    text = run.encoders[0].decode(run.texts("test")[0].tolist())
    (work / "own").mkdir()
    for i, document in enumerate(text.split(EOT)[:-1]):
        (work / f"own/{i}.txt").write_text(document)

    monkeypatch.setattr(runs, "open_corpora", None)
    monkeypatch.setattr("sys.argv", ["align.py", "apart/a", "--text=own"])
    before = listing(work / "apart")
    align.main()
    out = capsys.readouterr().out
    assert f"own: {i + 1} document" in out and "in place of the test split" in out
    assert "align-own.json and align-own.png are in each run's folder" in out
    result = json.loads((work / "apart/a/align-own.json").read_text())
    assert result == expected | {"text": "own"}
    new = {"a/align-own.json", "a/align-own.png"}
    assert set(listing(work / "apart")) - set(before) == new


def test_too_short_a_test_text_is_refused(work, monkeypatch):
    monkeypatch.chdir(work)
    run, = runs.open_runs(["runs/a"], CPU)
    run.test = np.zeros(34, np.uint16)
    assert align.measure(run)["tokens"] == 2 * 16
    run.test = np.zeros(33, np.uint16)
    with pytest.raises(align.BadInput, match=r"has 33 tokens, fewer than 2 windows of .* \(34\)"):
        align.measure(run)


@pytest.fixture(scope="module")
def real_runs(bilingual):
    """A run of two real languages, disjoint and anchored."""
    for vocabulary in ("disjoint", "anchored"):
        train_here(bilingual, *TINY[1:], *REAL, f"--vocabulary={vocabulary}", "--parallel=both",
                   "--steps=10", "--dtype=float32", "--context=64", f"--run={vocabulary}")
    train_here(bilingual, *TINY, "--steps=2", "--dtype=float32", "--run=clones")
    return bilingual


def test_pages_of_real_languages(real_runs, monkeypatch, capsys):
    monkeypatch.chdir(real_runs)
    names = ["runs/disjoint", "runs/anchored"]
    monkeypatch.setattr("sys.argv", ["align.py", *names, "--parallel=both"])
    align.main()
    out = capsys.readouterr().out
    assert "eng-fra: 400 pairs of lines; 400 of them fit a window of 64 tokens" in out
    assert "runs/disjoint: eng with fra; each measure beside its floor" in out
    for name in names:
        result = json.loads((real_runs / name / "align.json").read_text())
        pair = result["pairs"]["eng-fra"]
        assert ("shared" in pair["layers"][0]) == (name == "runs/anchored")
        assert (real_runs / name / "align.png").exists()

        # by hand: the windows of the parallel text, in the run's own ids
        run, = runs.open_runs([name], CPU)
        documents = parallel.read_pairs("both", ["eng", "fra"])
        windows, _, _ = parallel.pack(documents, run.encoders, run.table, 64)
        shared = sorted(set(run.table[0]) & set(run.table[1]))
        assert pair["layers"] == align.parallel_similarity(run.model, windows, shared)
        some = align.evenly(windows, align.GRADIENT_WINDOWS)
        sides = [window.a for window in some], [window.b for window in some]
        assert pair["gradients"] == align.compare_gradients(run.model, *sides, run.table,
                                                            embeddings=False)
    assert (real_runs / "runs/align.png").exists()


@pytest.mark.parametrize("options, expected", [
    (["runs/disjoint"], "the languages of runs/disjoint are real: give lines and their transl"),
    (["runs/clones", "--parallel=both"], "are clones, which read one text: leave --parallel out"),
    (["runs/disjoint", "--parallel=nowhere"], "--parallel=nowhere is neither a folder nor a .zip"),
    (["runs/disjoint", "--parallel=german"], "the parallel text german has no fra"),
])
def test_bad_input_of_real_languages_is_one_line(real_runs, options, expected, monkeypatch, capsys):
    monkeypatch.chdir(real_runs)
    for language in ("eng", "deu"):
        write_corpus(real_runs / "german" / language, documents=1, sentences=50, seed=5)
    assert expected in fails(align.main, options, monkeypatch, capsys)


@pytest.mark.parametrize("options, expected", [
    (["runs/mono"], "is monolingual"),
    (["runs/a", "runs/mono"], "is monolingual"),
    (["runs/none"], "is no run"),
    ([], "required"),
    (["runs/a", "--devise=cpu"], "did you mean --device?"),
])
def test_bad_input_is_one_line(work, options, expected, monkeypatch, capsys):
    monkeypatch.chdir(work)
    assert expected in fails(align.main, options, monkeypatch, capsys)


def test_what_the_screen_says_of_patching(capsys):
    exchange = {"all": {"value": 0.7}, "here": [{"value": 0.1}, {"value": None}],
                "around": [{"value": 0.2}]}
    align.print_patching({"interchange": exchange, "ablation": {
        "units": ["a"], "correlation": 0.5, "floor": 0.2, "ceiling": 0.9}})
    out = capsys.readouterr().out
    assert "at all positions: 0.70" in out and "after each layer: 0.10, -\n" in out
    assert "all but these, after each layer: 0.20\n" in out
    assert "correlation 0.50; floor 0.20" in out and "ceiling 0.90" in out
