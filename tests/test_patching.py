import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clone
import patching
from model import GPT

V, T = 40, 12
TABLE = clone.clone_table(np.ones(V), 2)
TEXT = np.random.default_rng(0).integers(0, V, (30, T + 1))


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
    """All losses of interchange, for each softmax: [(what is replaced, losses)]."""
    found = [("all", losses) for losses in result["all"].values()]
    for layer in result["layers"]:
        for what, by_softmax in layer.items():
            found += [(what, losses) for losses in by_softmax.values()]
    return found


def test_a_copy_can_be_interchanged_everywhere():
    result = patching.interchange(copy(), TEXT, *TABLE)
    assert [list(layer) for layer in result["layers"]] == [["here", "before"]] * 2 + [["here"]]
    for what, losses in every(result):
        assert losses["patched"] == pytest.approx(losses["own"], abs=1e-6), what
        assert abs(losses["other"] - losses["own"]) > 0.01, what
        assert losses["value"] == pytest.approx(1), what


def test_the_streams_of_two_models_side_by_side_say_nothing_of_each_other():
    result = patching.interchange(glued(), TEXT, *TABLE)
    for by_softmax in (result["all"], *(layer["here"] for layer in result["layers"])):
        losses = by_softmax["within"]
        assert abs(losses["other"] - losses["own"]) > 0.05
        assert abs(losses["value"]) < 0.15
    # whatever it attends to, it finds next to nothing: the norm, which both share, lets a little in
    for layer in result["layers"][:2]:
        losses = layer["before"]["within"]
        assert losses["patched"] == pytest.approx(losses["other"], abs=0.03)


def test_interchange_by_hand():
    """One window at a time, from the logits, in a model with anchor points."""
    model, table = make(), clone.clone_table(np.ones(V), 2, cloned=0.5)
    text = TEXT[:6]
    result = patching.interchange(model, text, *table)
    own_ids = np.unique(table[1])
    losses = {}

    def look(key, x, layer, i, kept):
        for block in model.blocks[layer:]:
            x = block(x)
        logits = (model.norm(x) @ model.unembedding.T)[0]
        for t in kept:
            a, b = table[0][text[i, t + 1]], table[1][text[i, t + 1]]
            p = logits[t].softmax(0)
            both = p[b] if a == b else p[a] + p[b]
            for softmax, likely in (("within", p[b] / p[own_ids].sum()), ("sum", both)):
                losses.setdefault((*key, softmax), []).append(-likely.log().item())

    for layer in range(3):
        for i in range(6):
            streams = {}
            for case, words, row in (("own", text[i], table[1]), ("patched", text[i], table[0]),
                                     ("other", text[(i + 3) % 6], table[0])):
                ids = torch.from_numpy(row[words[:-1]])[None]
                streams[case] = model.residual_stream(ids)[layer]
            for case, stream in streams.items():
                here, before = streams["own"].clone(), stream.clone()
                here[:, -1], before[:, -1] = stream[:, -1], streams["own"][:, -1]
                look(("here", layer, case), here, layer, i, [T - 1])
                look(("before", layer, case), before, layer, i, [T - 1])
                # replaced at all positions: after whatever layer, it is the same
                look(("all", layer, case), stream, layer, i, range(T))

    for layer, of_layer in enumerate(result["layers"]):
        for what, by_softmax in (*of_layer.items(), ("all", result["all"])):
            for softmax, measured in by_softmax.items():
                for case in ("own", "patched", "other"):
                    expected = np.mean(losses[what, layer, case, softmax])
                    assert measured[case] == pytest.approx(expected, rel=1e-4)
                worth = measured["other"] - measured["own"]
                assert measured["value"] == pytest.approx(
                    (measured["other"] - measured["patched"]) / worth)


def test_a_text_in_several_batches_is_one_text():
    model, long = make(), np.tile(TEXT, (8, 1))
    assert long.size > 2 * 1024
    few, many = (patching.interchange(model, text, *TABLE) for text in (TEXT, long))
    for (_, one), (_, other) in zip(every(few), every(many), strict=True):
        # the other text of each window is another one, all else is as it was
        for case in ("own", "patched"):
            assert other[case] == pytest.approx(one[case], rel=1e-5)


# ------------------------------------------------------------------------------------------------
# Ablation

def test_parts_of_a_copy_serve_both_and_of_two_models_one():
    both = patching.ablation(copy(), TEXT, *TABLE)
    assert both["units"] == ["layer 1, head 1", "layer 1, head 2", "layer 1, MLP",
                             "layer 2, head 1", "layer 2, head 2", "layer 2, MLP"]
    assert both["rise"][0] == pytest.approx(both["rise"][1], abs=1e-6)
    assert both["correlation"] == pytest.approx(1)

    first, second = patching.ablation(glued(), TEXT, *TABLE)["rise"]
    for layer in (0, 3):
        assert abs(first[layer]) > 10 * abs(first[layer + 1])
        assert abs(second[layer + 1]) > 10 * abs(second[layer])


@pytest.mark.parametrize("bias", [True, False])
def test_a_part_is_taken_out_by_hand_and_put_back(bias):
    model = make(bias=bias)
    before = {name: p.clone() for name, p in model.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    result = patching.ablation(model, TEXT, *TABLE)
    assert [name for name, _ in model.named_parameters()] == names
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])

    # the second head of the first layer, and the MLP of the second, in EN2
    ids = torch.from_numpy(TABLE[1][TEXT])
    plain = model(ids).mean().item()

    def loss(change):
        x = model.embed(ids[:, :-1])
        for layer, block in enumerate(model.blocks):
            heads = change(layer, "heads", block.attend(x))
            x = x + F.linear(heads, block.proj, block.proj_bias)
            hidden = change(layer, "mlp", block.hidden(x))
            x = x + F.linear(hidden, block.down, block.down_bias)
        logits = model.norm(x) @ model.unembedding.T
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()

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

    assert result["rise"][1][1] == pytest.approx(loss(no_head) - plain, abs=1e-5)
    assert result["rise"][1][5] == pytest.approx(loss(no_mlp) - plain, abs=1e-5)


def test_rank_correlation_sees_the_order_alone():
    assert patching.rank_correlation([1, 2, 3, 50], [0.1, 0.2, 7, 8]) == pytest.approx(1)
    assert patching.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert patching.rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
