"""Encoder, encoder-decoder and heads per language: what each sees, and that all scripts take them.
"""
import importlib
import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REAL, TINY, fails, history, train_here
from torch.utils.flop_counter import FlopCounterMode

import align
import bench
import clone
import runs
import train
from model import ARCHITECTURES, GPT, HEADS, SIZES, attention

eval_ = importlib.import_module("eval")  # the name of a builtin
CPU = torch.device("cpu")
V, T = 30, 16
EVERY = [(arch, heads) for arch in ARCHITECTURES for heads in HEADS]


def make(arch, heads="shared", table=None, dtype=torch.float32, **changes):
    """(a model far from how it starts, so that every part of it matters, the ids of its languages).
    """
    torch.manual_seed(0)
    if table is None:
        table = clone.clone_table(np.ones(V + (arch == "encoder")), 2)
    config = dict(vocab_size=table.size, context=T, n_layer=2, n_head=2, d_head=8, d_model=24,
                  tied=False, embedding_std=0.02, bias=True, embedding_scale=True, arch=arch,
                  heads=heads)
    model = GPT(config | changes, dtype, table)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model, table


def texts(n=4, seed=0):
    """n windows of a text, [n, T + 1]."""
    return np.random.default_rng(seed).integers(0, V, (n, T + 1))


def copy_rows(model, table):
    """Make the second language a copy of the first."""
    with torch.no_grad():
        for rows in (model.embedding, model.unembedding):
            rows[table[1]] = rows[table[0]]


# ------------------------------------------------------------------------------------------------
# What is masked

def test_masks_are_as_many_and_of_the_kinds_that_are_said():
    table = clone.clone_table(np.ones(V + 1), 2)
    text = np.random.default_rng(1).integers(0, V, (2000, 101))
    lang = np.arange(2000) % 2
    ids = table[lang[:, None], text]
    dice = clone.roll_dice(range(2000), 100)
    shown, places = clone.mask_tokens(ids, table, lang, dice)
    assert shown.shape == (2000, 100) and places.shape == (2000, 15)  # 15 % of each sequence
    assert (np.diff(places, axis=1) > 0).all()
    # every position as often as any other
    assert np.bincount(places.ravel(), minlength=100) == pytest.approx([300] * 100, abs=90)

    # elsewhere the text is as it was
    elsewhere = np.ones_like(shown, dtype=bool)
    np.put_along_axis(elsewhere, places, False, 1)
    assert (shown == ids[:, :-1])[elsewhere].all()

    at, was = (np.take_along_axis(x, places, 1) for x in (shown, ids))
    mask = table[lang, -1:]
    assert (at == mask).mean() == pytest.approx(0.8, abs=0.01)
    # a token taken by chance is the same one in 30
    assert (at == was).mean() == pytest.approx(0.1 + 0.1 / V, abs=0.01)
    by_chance = at[(at != mask) & (at != was)]
    language = np.repeat(lang[:, None], 15, 1)[(at != mask) & (at != was)]
    assert (by_chance // (V + 1) == language).all()  # of the same language
    tokens = by_chance % (V + 1)
    assert set(tokens) == set(range(V))  # any of them
    mean = len(tokens) / V
    assert np.bincount(tokens) == pytest.approx([mean] * V, abs=4 * mean**0.5)


def test_what_the_dice_say_is_done():
    table = clone.clone_table(np.ones(V + 1), 2)
    ids, lang = table[1][texts(1)], np.array([1])
    for kind, token, expected in ((0.79, 0.5, table[1, V]), (0.81, 0.5, table[1, V // 2]),
                                  (0.89, 0.0, table[1, 0]), (0.89, 0.9999, table[1, V - 1]),
                                  (0.91, 0.5, None)):
        dice = np.full((1, 3, T), 0.5)
        dice[0, 0, [4, 11]] = 0.1, 0.2  # these two come first
        dice[0, 1:] = np.array([[kind], [token]])
        shown, places = clone.mask_tokens(ids, table, lang, dice)
        assert places.tolist() == [[4, 11]]
        wanted = ids[:, :T].copy()
        if expected is not None:
            wanted[0, [4, 11]] = expected
        assert (shown == wanted).all()


def test_a_text_is_masked_alike_in_every_language_and_otherwise_in_every_step():
    table, text = clone.clone_table(np.ones(V + 1), 2), texts(6)
    numbers = np.arange(30, 36)
    dice = clone.roll_dice(numbers, T, seed=3)
    (one, places), (two, same) = (
        clone.mask_tokens(table[l][text], table, np.full(6, l), dice) for l in range(2))
    assert (places == same).all() and (two == one + V + 1).all()
    # whatever else is in the batch
    assert (clone.roll_dice(numbers[2:4], T, seed=3) == dice[2:4]).all()
    for other in (clone.roll_dice(numbers + 6, T, 3), clone.roll_dice(numbers, T, 4)):
        assert (clone.masked_places(other) != places).any(1).sum() >= 4


def test_the_mask_is_shared_where_end_of_text_is(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    corpora = clone.open_corpora("books", 2, 300, "bpe")
    eot = corpora[0]["eot"]
    kinds = set()
    for cloned in (1.0, 0.5, 0.0):
        plain = clone.make_table(corpora, "books", cloned, 0, None)
        table = clone.make_table(corpora, "books", cloned, 0, None, mask=True)
        assert table.shape == (2, 301)
        # the same tokens are anchor points with a mask and without one
        np.testing.assert_array_equal(table[0, :300] == table[1, :300], plain[0] == plain[1])
        shared = table[0, eot] == table[1, eot]
        assert (table[0, 300] == table[1, 300]) == shared
        assert len(np.unique(table[0])) == 301
        kinds.add(bool(shared))
    assert kinds == {True, False}


# ------------------------------------------------------------------------------------------------
# What each architecture sees

def test_a_masked_position_carries_no_information_about_itself_and_an_encoder_sees_both_sides():
    model, table = make("encoder")
    row = table[1]
    ids, dice, lang = row[texts(1)], clone.roll_dice([0], T, seed=1), np.array([1])
    shown, places = clone.mask_tokens(ids, table, lang, dice)
    place = next(p for p in places[0] if shown[0, p] == row[-1])
    assert 0 < place < T - 1

    def states(ids):
        arrays = [torch.from_numpy(x) for x in (ids, *clone.mask_tokens(ids, table, lang, dice))]
        hidden, targets = model.predictions(*arrays)
        return hidden[0], targets[0]

    before, targets = states(ids)
    assert targets.tolist() == ids[0, places[0]].tolist()
    changed = ids.copy()
    changed[0, place] = row[(texts(1)[0, place] + 1) % V]
    hidden, other_targets = states(changed)
    assert torch.equal(hidden, before) and (other_targets != targets).any()

    # a token that is shown is seen at every place, on both sides of it
    for visible in set(range(T)) - set(places[0]):
        changed = ids.copy()
        changed[0, visible] = row[(texts(1)[0, visible] + 1) % V]
        hidden, _ = states(changed)
        assert (hidden != before).any(1).all()
    # the id after the window is not read
    changed = ids.copy()
    changed[0, T] = row[(texts(1)[0, T] + 1) % V]
    assert torch.equal(states(changed)[0], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_half_sees_all_of_the_encoder_half_and_no_future(dtype):
    model, table = make("encoder-decoder", dtype=dtype)
    ids = torch.from_numpy(table[0][texts(3)])
    before = model.token_losses(ids)
    assert before.shape == (3, T // 2)
    for t in range(T + 1):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % V
        moved = (model.token_losses(changed) != before).any(0).tolist()
        if t < T // 2:
            assert all(moved)
        else:  # the i-th loss is that of token T / 2 + 1 + i, after those before it
            first = max(t - T // 2 - 1, 0)
            assert moved == [i >= first for i in range(T // 2)]

    # and what the encoder says of its half knows nothing of the other, but of all its own
    stream = dict(zip([name for name, _ in model.stream_names(T)],
                      model.residual_stream(ids[:, :-1])))
    other_half, last_of_first = ids.clone(), ids.clone()
    other_half[:, T // 2:] = (ids[:, T // 2:] + 1) % V
    last_of_first[:, T // 2 - 1] = (ids[:, T // 2 - 1] + 1) % V
    for changed, same in ((other_half, True), (last_of_first, False)):
        again = model.residual_stream(changed[:, :-1])
        assert torch.equal(again[1][:, 0], stream["encoder 1"][:, 0]) == same
    assert list(stream) == ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]
    assert all(x.shape == (3, T // 2, 24) for x in stream.values())


@pytest.mark.parametrize("length", [16, 10, 7])
def test_an_encoder_decoder_written_out(length):
    """Number by number, with no line of model.py; two layers, so one each. The first half of a
    window, rounded down, is the encoder's, and the decoder always begins at position 8.
    """
    model, table = make("encoder-decoder")
    ids = torch.from_numpy(table[0][texts(2)[:, :length + 1]])
    half = length // 2
    p = {name: value.detach().double() for name, value in model.named_parameters()}

    def norm(x, name):
        return F.layer_norm(x, (24,), p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(x, name):
        return x @ p[name].T + p[f"{name}_bias"]

    def attend(q, k, v, causal):
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(8)
            if causal:
                future = torch.ones(scores.shape[1:]).triu(1).bool()
                scores = scores.masked_fill(future, -math.inf)
            heads.append(scores.softmax(-1) @ v[..., head])
        return torch.cat(heads, -1)

    def layer(x, name, memory=None):
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, memory is not None), f"{name}.proj")
        if memory is not None:
            q = linear(norm(x, f"{name}.cross_norm"), f"{name}.cross_q")
            k, v = linear(memory, f"{name}.cross_kv").chunk(2, -1)
            x = x + linear(attend(q, k, v, False), f"{name}.cross_proj")
        up = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.up"), approximate="tanh")
        return x + linear(up, f"{name}.down")

    x = p["embedding"][ids[:, :length]] * math.sqrt(24)
    memory = layer(x[:, :half] + p["position"][:half], "blocks.0")
    memory = norm(memory, "encoder_norm")
    x = x[:, half:] + p["position"][8:8 + length - half]
    x = norm(layer(x, "blocks.1", memory), "norm")
    right = (x @ p["unembedding"].T).log_softmax(-1).gather(-1, ids[:, half + 1:, None])[..., 0]
    torch.testing.assert_close(model.token_losses(ids).double(), -right, atol=1e-4, rtol=1e-5)


def test_attention_by_hand_to_both_sides_and_to_another_text():
    torch.manual_seed(0)
    q = torch.randn(2, 3, 20, 16).bfloat16()
    for length in (20, 7):
        k, v = (torch.randn(2, 3, length, 16).bfloat16() for _ in range(2))
        by_hand = attention(q, k, v, causal=False)  # bf16 on a CPU
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        torch.testing.assert_close(by_hand.float(), exact, atol=0.02, rtol=0.02)


def losses_of(model, table, text, lang):
    """The model's loss of each sequence of a text [B, T + 1] in the languages lang [B]."""
    ids = table[lang[:, None], text]
    arrays = [ids, lang]
    if model.config["arch"] == "encoder":
        arrays += clone.mask_tokens(ids, table, lang, clone.roll_dice(range(len(ids)), T))
    return model(*map(torch.from_numpy, arrays))


@pytest.mark.parametrize("arch, heads", EVERY)
def test_copied_rows_make_the_second_language_exactly_as_good(arch, heads):
    model, table = make(arch, heads)
    text, first = texts(5), np.zeros(5, dtype=np.int64)
    assert (losses_of(model, table, text, first) != losses_of(model, table, text, first + 1)).all()
    copy_rows(model, table)
    assert torch.equal(losses_of(model, table, text, first),
                       losses_of(model, table, text, first + 1))


# ------------------------------------------------------------------------------------------------
# Heads

@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("cloned", [1.0, 0.5])
def test_a_head_per_language_is_the_shared_one_without_the_others_logits(arch, cloned):
    table = clone.clone_table(np.ones(V + (arch == "encoder")), 3, cloned)
    own, table = make(arch, "per-language", table)
    shared, _ = make(arch, "shared", table)
    text, lang = texts(6), np.array([2, 1, 2, 0, 1, 1])
    got = losses_of(own, table, text, lang)

    for l in range(3):
        # what is not among the language's ids is forced out: its logit is far below the others
        others = np.setdiff1d(np.arange(table.size), table[l])
        hidden, targets = shared.predictions(*inputs(shared, table, text, lang))
        logits = shared.norm(hidden) @ shared.unembedding.T
        logits[..., others] = -1e4
        expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)
        mine = torch.from_numpy(lang == l)
        torch.testing.assert_close(got[mine], expected[mine])

        # and the others' rows get no gradient from it
        own.zero_grad()
        losses_of(own, table, text[lang == l], lang[lang == l]).sum().backward()
        assert (own.unembedding.grad[others] == 0).all()
        assert (own.unembedding.grad[np.unique(table[l])] != 0).any(1).all()


def inputs(model, table, text, lang):
    """(ids, shown, places), the last two for an encoder."""
    ids = table[lang[:, None], text]
    masked = []
    if model.config["arch"] == "encoder":
        masked = clone.mask_tokens(ids, table, lang, clone.roll_dice(range(len(ids)), T))
    return [torch.from_numpy(x) for x in (ids, *masked)]


@pytest.mark.parametrize("arch, heads", EVERY)
def test_what_is_measured_of_a_text_is_what_is_trained(arch, heads):
    model, table = make(arch, heads)
    text = texts(5)
    for l in range(2):
        trained = losses_of(model, table, text, np.full(5, l))
        measured = model.text_losses(table[l][text], table[l])
        torch.testing.assert_close(measured.mean(1), trained)
        # a part of it has the masks that it has there
        part = model.text_losses(table[l][text[3:]], table[l], first=3)
        torch.testing.assert_close(part, measured[3:])
        losses, _ = train.evaluate(model, [text[0], text[0]], table, ["EN1", "EN2"], T)
        assert losses[l] == pytest.approx(trained[0].item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------
# eval.py

@pytest.mark.parametrize("length", [100, 20000])  # at once, and in several groups
def test_an_encoder_is_scored_at_the_masked_tokens_of_windows_side_by_side(length):
    model, table = make("encoder")
    text, row = np.random.default_rng(0).integers(0, V, length), table[1]
    losses = eval_.score(model, text, row, T, None)
    # one window after the other, and one that ends with the text
    starts = [*range(0, length - T - 1, T), length - T - 1]
    n = len(starts)
    assert (n - 1) * 2 <= (~np.isnan(losses)).sum() <= n * 2  # 15 % of 16 are 2

    windows = np.stack([text[i:i + T + 1] for i in starts])
    dice, lang = clone.roll_dice(range(n), T), np.ones(n, dtype=np.int64)
    shown, places = clone.mask_tokens(row[windows], table, lang, dice)
    for i in (0, 1, n // 2, n - 1):
        states = model.norm(model.residual_stream(torch.from_numpy(shown[i:i + 1]))[-1])
        logits = (states @ model.unembedding.T)[0]
        for place in places[i]:
            right = logits[place].log_softmax(0)[row[text[starts[i] + place]]]
            assert losses[starts[i] + place] == pytest.approx(-right.item(), abs=1e-4)
    # a part of the text: as many tokens are read, not scored
    part = eval_.score(model, np.tile(text, 20), row, T, None, most=320)
    assert (~np.isnan(part)).sum() == 320 / T * 2


@pytest.mark.parametrize("arch", ARCHITECTURES[1:])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("context", [16, 15])
def test_code_switching_by_hand(arch, heads, context):
    model, table = make(arch, heads, context=context)
    text, half = np.random.default_rng(1).integers(0, V, 6 * (context + 1)), context // 2
    result = eval_.code_switch(model, text, table, 0, 1, context)

    windows = text.reshape(6, context + 1)
    before, after = windows[:, :half], table[1][windows[:, half:]]
    starts = {"same": table[1][before], "switched": table[0][before], "none": before[:, :0]}
    if arch == "encoder-decoder":  # which needs a first half: that of a window far away
        starts["none"] = table[1][before[[3, 4, 5, 0, 1, 2]]]
    own = np.unique(table[1])
    mean = {"plain": {}, "within": {}}
    for case, start in starts.items():
        ids = torch.from_numpy(np.concatenate([start, after], axis=1))
        if arch == "encoder":
            dice, lang = clone.roll_dice(range(6), context - half), np.ones(6, dtype=np.int64)
            shown, places = clone.mask_tokens(after, table, lang, dice)
            shown = torch.from_numpy(np.concatenate([start, shown], axis=1))
            states = model.residual_stream(shown)[-1]
            places = torch.from_numpy(places) + start.shape[1]
            assert places.min() >= start.shape[1]  # nothing is masked in the first half
            states = torch.stack([x[p] for x, p in zip(states, places)])
            targets = torch.stack([x[p] for x, p in zip(ids, places)])
        else:
            states, targets = model.residual_stream(ids[:, :-1])[-1], ids[:, half + 1:]
        logits = model.norm(states) @ model.unembedding.T
        right = logits.gather(2, targets[:, :, None])[:, :, 0]
        within = (logits[:, :, own].logsumexp(2) - right).mean().item()
        over_all = (logits.logsumexp(2) - right).mean().item()
        mean["within"][case] = within
        mean["plain"][case] = over_all if heads == "shared" else within
    for kind in ("plain", "within"):
        gap = mean[kind]["switched"] - mean[kind]["same"]
        worth = mean[kind]["none"] - mean[kind]["same"]
        assert abs(gap) > 1e-3 and abs(worth) > 1e-3  # or their signs would not show
        assert result[kind] == pytest.approx(mean[kind] | {"gap": gap, "worth": worth}, abs=1e-5)

    copy_rows(model, table)
    assert eval_.code_switch(model, text, table, 0, 1, context)["within"]["gap"] == 0


def test_an_encoder_decoder_continues_what_its_encoder_has_read():
    model, table = make("encoder-decoder")
    for length in (5, 9, 14, 40):  # shorter and longer than the encoder's half
        prompt = torch.from_numpy(np.random.default_rng(length).integers(0, V, length))
        out = model.sample(prompt, 12, top_k=1)
        assert torch.equal(out[:length], prompt)
        read = min(length - 1, T // 2)
        for t in range(length, length + 12):
            window = out[max(0, t - read - T // 2):t]
            stream = model.residual_stream(window[None], read)
            assert stream[0].shape[1] == read and stream[-1].shape[1] <= T // 2
            assert out[t] == (model.norm(stream[-1][0, -1]) @ model.unembedding.T).argmax()


def test_a_head_of_its_own_writes_its_own_language():
    for arch in ("decoder", "encoder-decoder"):
        model, table = make(arch, "per-language")
        for row in table:
            prompt = torch.from_numpy(row[texts(1)[0, :6]])
            out = model.sample(prompt, 50, temperature=5.0, top_k=30, rows=model.own_ids(row))
            assert np.isin(out, row).all() and len(set(out[6:].tolist())) > 10


# ------------------------------------------------------------------------------------------------
# align.py

@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_copy_is_aligned_in_every_layer_by_every_measure(arch):
    model, table = make(arch)
    text = np.stack([np.random.default_rng(t).permutation(V)[:24] for t in range(T + 1)], axis=1)
    before = align.layer_similarity(model, text[:, :-1], *table)
    copy_rows(model, table)
    after = align.layer_similarity(model, text[:, :-1], *table)
    assert len(after) == len(model.stream_names(T)) == (4 if arch == "encoder-decoder" else 3)
    for layer in after:
        for entry in layer.values():
            assert entry["value"] == pytest.approx(1) and entry["above"]
    assert before[0]["retrieval"]["value"] < 0.2
    for tensor, kinds in align.gradient_similarity(model, text, *table).items():
        if not tensor.endswith(".k_bias"):  # rounding noise
            assert kinds["same"] == pytest.approx(1, abs=1e-3), tensor


def test_each_window_of_an_encoder_has_masks_of_its_own():
    twice = np.repeat(texts(4), 2, axis=0)  # both samples are of the same text
    for arch in ("decoder", "encoder"):
        model, table = make(arch)
        within = align.gradient_similarity(model, twice, *table)["blocks.0.up"]["within"]
        assert (within == pytest.approx(1, abs=1e-4)) == (arch == "decoder")


def test_the_states_of_the_decoder_are_of_the_second_half():
    model, table = make("encoder-decoder")
    text = np.stack([np.random.default_rng(t).permutation(V)[:24] for t in range(T)], axis=1)
    # in the second half some tokens are anchor points, in the first all: there all are compared
    table = table.copy()
    table[1, :V // 2] = table[0, :V // 2]
    text[:, :T // 2] %= V // 2
    second = text[:, T // 2:] >= V // 2
    layers = align.layer_similarity(model, text, *table)
    both = [model.residual_stream(torch.from_numpy(row[text])) for row in table]
    for i, (layer, a, b) in enumerate(zip(layers, *both, strict=True)):
        if i >= 2:
            a, b = a[torch.from_numpy(second)], b[torch.from_numpy(second)]
        expected = align.cosine(a.flatten(0, -2), b.flatten(0, -2))
        assert layer["cosine"]["value"] == pytest.approx(expected, abs=1e-6)
    # what is watched during training is the encoder's last state, of all its tokens
    stream = np.append(text[0], 0)  # one window, in whose first half no id differs
    _, retrieval = train.evaluate(model, [stream, stream], table, ["EN1", "EN2"], T)
    assert retrieval == {"EN1-EN2": 1}  # of anchor points, which are alike


def test_the_mean_of_the_gradients_is_of_what_all_architectures_have():
    model, table = make("encoder-decoder")
    gradients = align.gradient_similarity(model, texts(4), *table)
    crosses = [name for name in gradients if "cross" in name]
    assert len(crosses) == 8  # a norm of two tensors, and three weights with their biases
    changed = {name: dict.fromkeys(align.GRADIENTS, 9.0) if name in crosses else kinds
               for name, kinds in gradients.items()}
    assert align.block_mean(changed, "same") == align.block_mean(gradients, "same")


# ------------------------------------------------------------------------------------------------
# bench.py

@pytest.mark.parametrize("arch, heads", EVERY)
def test_the_flops_and_the_loss_of_a_step(arch, heads):
    shape = SIZES["nano"] | {"vocab_size": 300, "batch_size": 2, "n_layer": 4, "arch": arch,
                             "heads": heads}
    table = bench.make_table(shape)
    batches = map(bench.make_batches(shape, 100), range(100))
    batch = next(batch for batch in batches if set(batch[1]) == {0, 1})  # both languages
    batch = [torch.from_numpy(x) for x in batch]
    model = GPT(shape | {"vocab_size": table.size}, torch.bfloat16, table)
    with FlopCounterMode(display=False) as counter:
        model(*batch).mean().backward()
    assert bench.matmul_flops(shape) == counter.get_total_flops()
    if heads == "shared":
        model.dtype = torch.float32
        torch.testing.assert_close(bench.plain_loss(model, *batch), model(*batch))


# ------------------------------------------------------------------------------------------------
# The scripts, from end to end

class Killed(Exception):
    """What ends a run at once, as kill -9 does: nothing more is written."""


@pytest.mark.parametrize("arch, heads", EVERY[1:])
def test_a_run_of_each_kind_killed_and_resumed(prepared, monkeypatch, capsys, arch, heads):
    name = f"{arch}-{heads}"
    options = [*TINY, f"--arch={arch}", f"--heads={heads}", "--ratio=0.8", "--steps=40",
               "--lr=0.01", "--dtype=float32"]
    out = train_here(prepared, *options, f"--run={name}")
    assert f"runs/{name}: {arch} of " in out
    log = history(prepared / "runs" / name)
    n_ids = 300 if heads == "per-language" else 600
    assert log[-1]["val_loss"][0] < math.log(n_ids) - 0.3  # it learns

    updates, update = iter(range(40)), train.update

    def killed_in_step_23(optimizers, lr):
        if next(updates) == 23:
            raise Killed
        update(optimizers, lr)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "lock", lambda folder: None)  # it would hold as long as this process
        patch.setattr(train, "update", killed_in_step_23)
        with pytest.raises(Killed):
            train_here(prepared, *options, f"--run={name}-killed")
    assert torch.load(prepared / f"runs/{name}-killed/model.pt")["step"] == 20
    train_here(prepared, f"--run={name}-killed", "--resume")
    assert history(prepared / f"runs/{name}-killed") == log

    # in parts: of each sequence, everything has to go along
    train_here(prepared, *options, "--micro_batch=3", f"--run={name}-parts")
    for one, other in zip(log, history(prepared / f"runs/{name}-parts"), strict=True):
        for key in {"loss", "val_loss"} & one.keys():
            assert other[key] == pytest.approx(one[key], abs=1e-4)

    # eval.py, its samples, and align.py
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(sys, "argv", ["eval.py", name, "--tokens=2000"])
    eval_.main()
    out = capsys.readouterr().out
    result = json.loads((prepared / "runs" / name / "eval.json").read_text())
    for language, loss in zip(result["languages"], log[-1]["val_loss"]):
        # another text, and of a decoder other positions: about as good
        assert language["loss"] == pytest.approx(loss, abs=0.5)
    assert ("masked tokens" in out) == (arch == "encoder")
    if arch == "encoder":
        assert "cannot continue a text" in fails(eval_.main, [name, "--sample"], monkeypatch,
                                                 capsys)
    else:
        monkeypatch.setattr(sys, "argv", ["eval.py", name, "--sample"])
        eval_.main()
        own = "(100% of its tokens are EN2's)" in capsys.readouterr().out
        assert own or heads == "shared"
    monkeypatch.setattr(align, "TOKENS", 1000)
    monkeypatch.setattr(align, "SEQUENCES", 3)
    monkeypatch.setattr(align, "PATCHED_TOKENS", 512)
    monkeypatch.setattr(align, "ABLATED_TOKENS", 512)
    monkeypatch.setattr(sys, "argv", ["align.py", name])
    align.main()
    out = capsys.readouterr().out
    assert ("decoder 1 " in out) == (arch == "encoder-decoder")


def test_the_parts_of_a_batch_are_those_of_one_process(prepared, monkeypatch):
    """With their masks."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--arch=encoder", "--ratio=0.5"])
    config = train.make_config(*train.options().parse())
    corpora = clone.open_corpora("books", 2, 300, "bpe")
    languages = runs.make_languages(config, corpora)
    config.dtype = "float32"
    model = runs.make_model(config, languages.table, "cpu")
    run = runs.Run(None, config, corpora, languages, model)
    text = run.texts("train")
    whole = train.make_batches(run, text)(7)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(train.ddp, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(train.ddp, "world", lambda: 4)
        parts.append(train.make_batches(run, text)(7))
    for one, of_parts in zip(whole, zip(*parts), strict=True):
        assert torch.equal(one, torch.cat(of_parts))
    assert len(whole) == 4


@pytest.mark.parametrize("arch, vocabulary, width, names", [
    ("encoder", "disjoint", 64, ["0", "1", "2"]),
    ("encoder-decoder", "anchored", 32, ["encoder 0", "encoder 1"]),  # the encoder's half
])
def test_real_languages_with_heads_of_their_own(
        bilingual, monkeypatch, capsys, arch, vocabulary, width, names):
    options = [o for o in TINY if not o.startswith("--corpus")]
    train_here(bilingual, *options, *REAL, f"--arch={arch}", "--heads=per-language",
               f"--vocabulary={vocabulary}", "--context=64", "--steps=10", "--dtype=float32",
               f"--run={arch}")
    monkeypatch.chdir(bilingual)
    run, = runs.open_runs([arch], CPU)
    if arch == "encoder":  # the mask is the last id of each
        assert run.table[:, -1].tolist() == [300, 601]
    for name, small in (("MATCHED_TOKENS", 1024), ("LINE_TOKENS", 4096), ("GRADIENT_WINDOWS", 4)):
        monkeypatch.setattr(align, name, small)
    monkeypatch.setattr(sys, "argv", ["align.py", arch, "--parallel=both"])
    align.main()
    assert f"of them fit a window of {width} tokens" in capsys.readouterr().out
    result = json.loads((bilingual / "runs" / arch / "align.json").read_text())
    assert result["names"] == names
    pair = result["pairs"]["eng-fra"]
    assert len(pair["layers"]) == len(names)
    assert pair["lines"] > 100  # however many windows these tokens take


def test_a_run_from_before_there_was_a_choice_is_a_decoder(prepared, monkeypatch, capsys):
    options = [*TINY, "--steps=4", "--dtype=float32"]
    train_here(prepared, *options, "--run=older")
    folder = prepared / "runs/older"
    state = torch.load(folder / "model.pt")
    for key in ("arch", "heads", "clone"):
        del state["config"][key]
    (folder / "config.json").write_text(json.dumps(state["config"]))
    torch.save(state, folder / "model.pt")
    monkeypatch.chdir(prepared)
    run, = runs.open_runs(["older"], CPU)
    config = run.config
    assert (config.arch, config.heads, config.clone) == ("decoder", "shared", "shift")


def test_monolingual_runs_are_of_one_architecture_whatever_the_heads(monkeypatch):
    recipes = {}
    for i, (arch, heads) in enumerate(EVERY):
        clones = ("shift", "permute")[i % 2]  # nor is there any difference in one language
        monkeypatch.setattr(sys, "argv", ["train.py", f"--arch={arch}", f"--heads={heads}",
                                          f"--clone={clones}"])
        config = train.make_config(*train.options().parse())
        config.corpus_sha256 = config.data_sha256 = ""
        recipes.setdefault(eval_.recipe(config), []).append((arch, heads))
    assert list(recipes.values()) == [[(arch, heads) for heads in HEADS] for arch in ARCHITECTURES]


@pytest.mark.parametrize("options, expected", [
    (["--arch=encoder-decoder", "--n_layer=3"], "--n_layer=3: of an encoder-decoder, half of the"),
    (["--arch=encoder-decoder", "--context=1"], "--context=1: an encoder-decoder splits it in two"),
    (["--arch=bert"], "argument --arch: invalid choice: 'bert'"),
    (["--heads=two"], "argument --heads: invalid choice: 'two'"),
])
def test_bad_input_is_one_line(here, options, expected, monkeypatch, capsys):
    assert expected in fails(train.main, options, monkeypatch, capsys)


@pytest.mark.parametrize("arch, last_n, expected", [
    ("encoder", 4, "is an encoder, which is scored where the text is masked"),
    ("encoder-decoder", 9, "expected 1 to 8, what the decoder writes in runs/"),
    ("decoder", 17, "expected 1 to 16, the context of"),
])
def test_positions_that_cannot_be_scored(prepared, arch, last_n, expected, monkeypatch, capsys):
    name = f"scored-{arch}"
    train_here(prepared, *TINY, f"--arch={arch}", "--steps=2", "--dtype=float32", f"--run={name}")
    monkeypatch.chdir(prepared)
    assert expected in fails(eval_.main, [name, f"--last_n={last_n}"], monkeypatch, capsys)
