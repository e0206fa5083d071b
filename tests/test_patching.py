import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clone
import patching
from model import GPT

V, T = 40, 32
TABLE = clone.clone_table(np.ones(V), 2)
TEXT = np.random.default_rng(0).integers(0, V, (60, T + 1))


def make(seed=0, **changes):
    torch.manual_seed(seed)
    config = dict(vocab_size=2 * V, context=T, n_layer=2, n_head=2, d_head=8, d_model=32,
                  embedding_std=0.02, tied=False, bias=True, embedding_scale=True, arch="decoder",
                  heads="shared")
    model = GPT(config | changes)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def copy():
    """A model whose second language is a copy of the first."""
    model = make()
    with torch.no_grad():
        for rows in (model.embedding, model.unembedding):
            rows[V:] = rows[:V]
    return model


def glued():
    """Two models side by side that share nothing: EN1 lives in the first 16 dimensions and in the
    first head of each layer, EN2 in the others.
    """
    model = make()
    halves = slice(0, 16), slice(16, 32)
    with torch.no_grad():
        model.position.zero_()
        for language, others in enumerate(halves[::-1]):
            rows = slice(language * V, (language + 1) * V)
            model.embedding[rows, others] = 0
            model.unembedding[rows, others] = 0
            for block in model.blocks:
                for part in block.qkv.view(3, 2, 8, 32):  # of q, k, v: [head, d_head, D]
                    part[language, :, others] = 0
                block.proj[others, 8 * language:8 * (language + 1)] = 0
                hidden = slice(64 * language, 64 * (language + 1))
                block.up[hidden, others] = 0
                block.down[others, hidden] = 0
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            if "norm" in name and name.endswith("weight"):
                p.fill_(1)
    return model


# ------------------------------------------------------------------------------------------------
# Interchange

def every(result):
    """All entries of interchange."""
    return [result["all"], *result["here"], *result["around"]]


def test_a_copy_can_be_interchanged_everywhere():
    result = patching.interchange(copy(), TEXT, *TABLE)
    assert len(result["here"]) == 3 and len(result["around"]) == 2
    for entry in every(result):
        assert entry["patched"] == pytest.approx(entry["own"], abs=1e-6)
        assert abs(entry["other"] - entry["own"]) > 1e-3
        assert entry["value"] is None or entry["value"] == pytest.approx(1, abs=1e-3)


def trained(model, seed=0):
    """A model that has learned, in both languages, to count up by one or by two: which of them, the
    context says.
    """
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    frozen = {id(p): p == 0 for p in model.parameters()}  # the zeros of glued() stay
    for _ in range(250):
        ids = torch.from_numpy(TABLE[rng.integers(0, 2, 16)[:, None], counting(16, rng)])
        optimizer.zero_grad()
        model(ids).mean().backward()
        for p in model.parameters():
            p.grad[frozen[id(p)]] = 0
        optimizer.step()
    return model


def counting(n, rng):
    """n texts [n, T + 1] that count up from anywhere, by one or by two."""
    return (rng.integers(0, V, (n, 1)) + np.arange(T + 1) * rng.integers(1, 3, (n, 1))) % V


def test_two_models_side_by_side_cannot_be_interchanged_and_a_trained_copy_can():
    text = counting(200, np.random.default_rng(9))
    apart = patching.interchange(trained(glued()), text, *TABLE)
    for entry in (apart["all"], *apart["here"]):
        assert entry["own"] < 1 < entry["other"] and entry["clear"]
        assert abs(entry["value"]) < 0.25
    same = trained(copy())
    with torch.no_grad():
        for rows in (same.embedding, same.unembedding):
            rows[V:] = rows[:V]
    for entry in every(patching.interchange(same, text, *TABLE)):
        if entry["clear"]:
            assert entry["value"] == pytest.approx(1)


def test_interchange_by_hand():
    """One window at a time, from the logits, in a model with anchor points."""
    model, table = make(), clone.clone_table(np.ones(V), 2, cloned=0.7)
    text = TEXT[:10]
    result = patching.interchange(model, text, *table)
    own_ids = np.unique(table[1])
    looked_at = [t for t in range(T) if t % 16 == 15]
    losses = {}

    def look(key, x, layer, i, kept):
        for block in model.blocks[layer:]:
            x = block(x)
        logits = (model.norm(x) @ model.unembedding.T)[0]
        for t in kept:
            here, right = text[i, t], text[i, t + 1]
            if table[0][here] != table[1][here] and table[0][right] != table[1][right]:
                p = logits[t][own_ids].softmax(0)
                loss = -p[np.searchsorted(own_ids, table[1][right])].log().item()
                losses.setdefault(key, {}).setdefault(i, []).append(loss)

    for layer in range(3):
        for i in range(10):
            streams = {}
            for case, words, row in (("own", text[i], table[1]), ("patched", text[i], table[0]),
                                     ("other", text[(i + 5) % 10], table[0])):
                ids = torch.from_numpy(row[words[:-1]])[None]
                streams[case] = model.residual_stream(ids)[layer]
            for case, stream in streams.items():
                here, around = streams["own"].clone(), stream.clone()
                here[:, looked_at] = stream[:, looked_at]
                around[:, looked_at] = streams["own"][:, looked_at]
                look(("here", layer, case), here, layer, i, looked_at)
                look(("around", layer, case), around, layer, i, looked_at)
                # replaced at all positions: after whatever layer, it is the same
                look(("all", layer, case), stream, layer, i, range(T))

    def mean(of_windows):
        return np.mean([loss for window in of_windows.values() for loss in window])

    for layer in range(3):
        entries = {"here": result["here"][layer], "all": result["all"]}
        if layer < 2:
            entries["around"] = result["around"][layer]
        for what, entry in entries.items():
            for case in ("own", "patched", "other"):
                expected = mean(losses[what, layer, case])
                assert entry[case] == pytest.approx(expected, rel=1e-4)

    # the error of own against other, windows as draws
    own, other = losses["all", 0, "own"], losses["all", 0, "other"]
    n = {i: len(own[i]) for i in own}
    excess = [sum(other[i]) - sum(own[i]) - (mean(other) - mean(own)) * n[i] for i in own]
    error = math.sqrt(sum(x**2 for x in excess)) / sum(n.values())
    assert result["all"]["error"] == pytest.approx(error, rel=1e-3)


def test_a_value_is_given_where_there_is_something_to_lose():
    clear = patching.with_value({"own": 2.0, "patched": 2.5, "other": 4.0, "error": 0.1})
    assert clear["clear"] and clear["value"] == 0.75
    for own, error in ((2.0, 0.6), (4.5, 0.1)):  # hardly more than noise; worse than the floor
        vague = patching.with_value({"own": own, "patched": 2.5, "other": 4.0, "error": error})
        assert not vague["clear"] and vague["value"] is None


def test_a_text_in_several_batches_is_one_text():
    # an odd number of times, so that the other text of each window is what it was
    model, long = make(), np.tile(TEXT, (9, 1))
    assert long.size > 2 * 4096
    few, many = (patching.interchange(model, text, *TABLE) for text in (TEXT, long))
    for one, other in zip(every(few), every(many), strict=True):
        for case in ("own", "patched", "other"):
            assert other[case] == pytest.approx(one[case], rel=1e-5)
    for unit, worth in patching.worths(model, np.tile(TEXT, (8, 1)), TABLE[0]).items():
        assert worth == pytest.approx(patching.worths(model, TEXT, TABLE[0])[unit], abs=1e-5)


def test_where_hardly_a_token_is_cloned_all_are_scored():
    table = clone.clone_table(np.ones(V), 2, cloned=0.03)
    assert np.isfinite(patching.interchange(make(), TEXT[:4], *table)["here"][0]["own"])


# ------------------------------------------------------------------------------------------------
# Ablation

def test_parts_of_a_copy_serve_both_and_of_two_models_one():
    first, second = (patching.worths(copy(), TEXT, row) for row in TABLE)
    both = patching.compare_worths(first, second)
    assert both["units"] == ["layer 1, head 1", "layer 1, head 2", "layer 1, MLP",
                             "layer 2, head 1", "layer 2, head 2", "layer 2, MLP"]
    assert both["worth"][0] == pytest.approx(both["worth"][1], abs=1e-6)
    assert both["correlation"] == pytest.approx(1)

    first, second = (patching.worths(glued(), TEXT, row) for row in TABLE)
    for layer in range(2):
        for half in range(2):
            assert abs(first[layer, 0][half]) > 10 * abs(first[layer, 1][half])
            assert abs(second[layer, 1][half]) > 10 * abs(second[layer, 0][half])


def test_the_floor_and_the_ceiling_of_a_correlation():
    """Three layers of four heads and an MLP. MLPs matter most, and the first layer more."""
    rng = np.random.default_rng(0)

    def planted(alike):
        worth = {}
        for layer in range(3):
            for unit in (0, 1, 2, 3, "mlp"):
                own = unit + 1 if alike and unit != "mlp" else rng.uniform(0, 4)
                size = 100 - 10 * layer if unit == "mlp" else 50 - 10 * layer + own
                worth[layer, unit] = [size, size + rng.uniform(0, 1e-3)]
        return worth

    strangers = patching.compare_worths(planted(False), planted(False))
    assert strangers["correlation"] > 0.7  # which would look like much, but for its floor
    assert strangers["floor"] == pytest.approx(strangers["correlation"], abs=0.12)
    alike = patching.compare_worths(planted(True), planted(True))
    assert alike["correlation"] == pytest.approx(1) and alike["floor"] < 0.95
    assert alike["ceiling"] == pytest.approx(1)

    # two halves that say the contrary
    noise = {key: [i, -i] for i, key in enumerate(planted(True))}
    assert patching.compare_worths(noise, planted(True))["ceiling"] == pytest.approx(-1)


def test_shuffled_heads_stay_in_their_layer():
    units = [(layer, unit) for layer in range(2) for unit in (0, 1, 2, "mlp")]
    seen = set()
    for seed in range(50):
        order = patching.shuffled_heads(units, np.random.default_rng(seed))
        assert sorted(order[:3]) == [0, 1, 2] and sorted(order[4:7]) == [4, 5, 6]
        assert order[3] == 3 and order[7] == 7
        seen.add(tuple(order))
    assert len(seen) > 20


@pytest.mark.parametrize("bias", [True, False])
def test_a_part_is_taken_out_by_hand_and_put_back(bias):
    model = make(bias=bias)
    before = {name: p.clone() for name, p in model.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    result = patching.worths(model, TEXT, TABLE[1])
    assert [name for name, _ in model.named_parameters()] == names
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])

    # the second head of the first layer, and the MLP of the second, in EN2
    ids = torch.from_numpy(TABLE[1][TEXT])

    def losses(change):
        x = model.embed(ids[:, :-1])
        for layer, block in enumerate(model.blocks):
            heads = change(layer, "heads", block.attend(x))
            x = x + F.linear(heads, block.proj, block.proj_bias)
            hidden = change(layer, "mlp", block.hidden(x))
            x = x + F.linear(hidden, block.down, block.down_bias)
        logits = model.norm(x) @ model.unembedding.T
        of_tokens = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return np.array([of_tokens[0::2].mean().item(), of_tokens[1::2].mean().item()])

    def no_head(layer, kind, output):
        if (layer, kind) != (0, "heads"):
            return output
        output = output.clone()
        output[:, :, 8:] = output[:, :, 8:].mean((0, 1))
        return output

    def no_mlp(layer, kind, output):
        if (layer, kind) != (1, "mlp"):
            return output
        return output.mean((0, 1)).expand_as(output)

    plain = losses(lambda layer, kind, output: output)
    assert result[0, 1] == pytest.approx(losses(no_head) - plain, abs=1e-5)
    assert result[1, "mlp"] == pytest.approx(losses(no_mlp) - plain, abs=1e-5)


def test_rank_correlation_sees_the_order_alone():
    assert patching.rank_correlation([1, 2, 3, 50], [0.1, 0.2, 7, 8]) == pytest.approx(1)
    assert patching.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert patching.rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
