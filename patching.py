"""Is what is alike also interchangeable? Change what a model computes, and see what it costs.

    interchange   while the model reads a text in EN2, its residual stream after a layer is replaced
                  by that of the same text in EN1, and the remaining layers go on from there. Does
                  it still know the next token?
    ablation      each head and each MLP is taken out, one at a time. Does what hurts EN1 hurt EN2?

align.py calls both; they are no script. Of decoders and their clones: an encoder has no next token,
and a translation no token at the same place.
"""
import numpy as np
import torch
from torch import nn

from model import linear

SOFTMAXES = ("within", "sum")  # of losses_of

# ------------------------------------------------------------------------------------------------
# Interchange

@torch.no_grad()
def interchange(model, base, row_a, row_b):
    """What EN2 loses if the stream of EN1 takes the place of its own.

    base [n, T + 1]: windows of a text as tokenised; row_a, row_b [V]: the ids of EN1 and EN2.
    Returns {"all": losses, "layers": [{"here": losses, "before": losses}]}.

    all: the stream is replaced at all positions. After which layer makes no difference: what goes
    on from there is EN1's. So it is one number, and says whether the output rows of EN2 read EN1's
    states. The others are of the last token of each window, and for the stream after each layer:
    here, it is replaced where that token is predicted; before, at all positions before that one, to
    which it attends. (After the last layer nothing attends any more: there is no "before".)

    losses: {"within" or "sum": numbers in nats}, as in losses_of, and the numbers are
        own       nothing is replaced
        patched   by the stream of the same text in EN1
        other     by that of another text in EN1, at the same positions: the floor
        value     (other - patched) / (other - own): 1 where EN1's stream is as good as EN2's own,
                  0 where it is no better than that of another text
    """
    n, n_layer = len(base), len(model.blocks)
    far = np.roll(base, n // 2, axis=0)  # another text for each window
    found = {}  # (what is replaced, by what): the losses of each batch, [2, tokens]
    at_a_time = max(1, 1024 // base.shape[1])  # all logits of a batch exist at once
    for i in range(0, n, at_a_time):
        text = base[i:i + at_a_time]
        own, same, other = (stream_of(model, words[:, :-1], row) for words, row in (
            (text, row_b), (text, row_a), (far[i:i + at_a_time], row_a)))
        for case, stream in (("own", own), ("patched", same), ("other", other)):
            found.setdefault(("all", case), []).append(
                losses_of(model, stream[-1], text[:, 1:], row_a, row_b))
            for layer in range(n_layer + 1):
                theirs, mine = stream[layer], own[layer]
                here = torch.cat([mine[:, :-1], theirs[:, -1:]], dim=1)
                before = torch.cat([theirs[:, :-1], mine[:, -1:]], dim=1)
                for what, x in (("here", here), ("before", before)):
                    last = model.through(model.blocks[layer:], x)[-1][:, -1:]
                    found.setdefault((what, layer, case), []).append(
                        losses_of(model, last, text[:, -1:], row_a, row_b))

    means = {}
    for key, losses in found.items():
        means[key] = torch.cat(losses, dim=1).double().mean(1).tolist()
    layers = []
    for layer in range(n_layer + 1):
        of_layer = {"here": by_softmax(means, "here", layer)}
        if layer < n_layer:
            of_layer["before"] = by_softmax(means, "before", layer)
        layers.append(of_layer)
    return {"all": by_softmax(means, "all"), "layers": layers}


def by_softmax(means, *what):
    """{softmax: with_value(...)} of {(*what, case): [a mean loss for each softmax]}."""
    cases = [means[*what, case] for case in ("own", "patched", "other")]
    return {softmax: with_value(*losses) for softmax, *losses in zip(SOFTMAXES, *cases)}


def with_value(own, patched, other):
    """What interchange says of three losses."""
    worth = other - own
    value = (other - patched) / worth if worth else 0.0
    return {"own": own, "patched": patched, "other": other, "value": value}


def stream_of(model, base, row):
    """The residual stream of a text base [n, T] in a language, a tensor [n, T, D] a layer."""
    return model.residual_stream(torch.from_numpy(row[base]).to(model.embedding.device))


def losses_of(model, x, targets, row_a, row_b):
    """The losses of the next token after states x [B, P, D] of the last layer, fp32 [2, B * P].

    targets [B, P]: the tokens. Twice, since a stream of EN1's may well make the model expect EN1:
    "within" takes the softmax over EN2's ids only; "sum" counts a token's probability and its
    clone's together.
    """
    logits = linear(model.norm(x), model.unembedding).float().flatten(0, 1)  # [B * P, ids]
    ids_a, ids_b = (torch.from_numpy(row[targets]).to(x.device).view(-1, 1)
                    for row in (row_a, row_b))
    right_a, right_b = logits.gather(1, ids_a)[:, 0], logits.gather(1, ids_b)[:, 0]

    own_ids = torch.from_numpy(np.unique(row_b)).to(x.device)
    within = logits[:, own_ids].logsumexp(1) - right_b
    # an anchor point has one id in both, which counts once
    same = (ids_a == ids_b)[:, 0]
    either = torch.where(same, right_b, torch.logaddexp(right_a, right_b))
    return torch.stack([within, logits.logsumexp(1) - either])


# ------------------------------------------------------------------------------------------------
# Ablation

@torch.no_grad()
def ablation(model, base, row_a, row_b):
    """By how much the loss of EN1 and of EN2 rises without each head and each MLP.

    base, row_a, row_b: as in interchange. Returns {"units": [their names], "rise": [[EN1's],
    [EN2's]] in nats a token, "correlation": of the two, by rank}. What is taken out is replaced by
    its mean over the text, in the same language.
    """
    names, rises = [], [[], []]
    for rise, row in zip(rises, (row_a, row_b)):
        ids = row[base]
        before = mean_loss(model, ids, row)
        means = unit_means(model, ids[:, :-1])
        names = list(means)
        for (layer, kind), mean in means.items():
            rise.append(without(model, layer, kind, mean, ids, row) - before)
    words = [f"layer {layer + 1}, {'MLP' if kind == 'mlp' else f'head {kind + 1}'}"
             for layer, kind in names]
    return {"units": words, "rise": rises, "correlation": rank_correlation(*rises)}


def mean_loss(model, ids, row):
    """Mean loss of windows ids [n, T + 1] of a language, in nats a token."""
    at_a_time, total = max(1, 4096 // ids.shape[1]), 0.0
    for i in range(0, len(ids), at_a_time):
        total += model.text_losses(ids[i:i + at_a_time], row).double().sum().item()
    return total / (len(ids) * (ids.shape[1] - 1))


def unit_means(model, ids):
    """{(layer, head) or (layer, "mlp"): its mean output before the matrix that follows it}.

    Of a head [d_head], of an MLP [4 D], over all positions of windows ids [n, T].
    """
    sums, count, at_a_time = {}, ids.size, max(1, 4096 // ids.shape[1])
    for i in range(0, len(ids), at_a_time):
        x = model.embed(torch.from_numpy(ids[i:i + at_a_time]).to(model.embedding.device))
        for layer, block in enumerate(model.blocks):
            heads = block.attend(x)
            middle = x + linear(heads, block.proj, block.proj_bias)
            hidden = block.hidden(middle)
            x = middle + linear(hidden, block.down, block.down_bias)
            outputs = dict(enumerate(heads.chunk(block.n_head, dim=2))) | {"mlp": hidden}
            for kind, output in outputs.items():
                here = output.float().sum((0, 1)) / count
                sums[layer, kind] = sums.get((layer, kind), 0) + here
    return sums


def without(model, layer, kind, mean, ids, row):
    """mean_loss where a head (its number) or the MLP ("mlp") of a layer always gives its mean.

    So the columns of the matrix that follows are zero, and what they make of the mean is in its
    bias. Both are put back at the end.
    """
    block, name = model.blocks[layer], "down" if kind == "mlp" else "proj"
    weight, bias = getattr(block, name), getattr(block, f"{name}_bias")
    columns = slice(0, len(mean))
    if kind != "mlp":
        columns = slice(kind * len(mean), (kind + 1) * len(mean))

    constant = weight[:, columns] @ mean
    changed = weight.clone()
    changed[:, columns] = 0
    setattr(block, name, nn.Parameter(changed))
    setattr(block, f"{name}_bias", nn.Parameter(constant if bias is None else bias + constant))
    loss = mean_loss(model, ids, row)
    setattr(block, name, weight)
    setattr(block, f"{name}_bias", bias)
    return loss


def rank_correlation(x, y):
    """Spearman's: the correlation of the ranks of x [n] and y [n], without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])
