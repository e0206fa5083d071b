"""Is what is alike also interchangeable? Change what a model computes, and see what it costs.

    interchange   while the model reads a text in EN2, its residual stream after a layer is replaced
                  by that of the same text in EN1, and the remaining layers go on from there. Does
                  it still know the next token?
    ablation      each head and each MLP is taken out, one at a time. Does what hurts EN1 hurt EN2?

align.py calls both; this file is no script. Of decoders and their clones: an encoder has no next
token, and a translation no token at the same place.
"""
import numpy as np
import torch
from torch import nn

import clone
from model import linear

EVERY = 16  # every 16th position is looked at
SHUFFLES = 100  # of the heads of a layer, for the floor of ablation
# a difference counts if it is more than this many standard errors from 0
CLEARLY = 4

# ------------------------------------------------------------------------------------------------
# Interchange

@torch.no_grad()
def interchange(model, base, row_a, row_b):
    """What EN2 loses if the stream of EN1 takes the place of its own.

    base [n, T + 1]: windows of a text as tokenised; row_a, row_b [V]: the ids of EN1 and EN2.
    Returns {"all": of_losses, "here": [of_losses for each layer], "around": [...]}:

                replaced                          scored: the token after
        all     every position                    every position
        here    every 16th position               every 16th position
        around  all but every 16th position       every 16th position

    "all" is one number, since what goes on after any layer is EN1's then: do the output rows of EN2
    read the states of EN1? "here" asks the same of single positions, which attend to EN2's own
    states. "around" asks whether they can attend to EN1's, in the layers that are left; there is
    none after the last. Anchor points are not scored: they have one row in both languages.

    The softmax is over EN2's ids, since a stream of EN1's may well make the model expect EN1.
    """
    n, T, n_layer = len(base), base.shape[1] - 1, len(model.blocks)
    far = np.roll(base, n // 2, axis=0)  # another text for each window
    every = min(EVERY, T)
    here = torch.arange(T) % every == every - 1
    cloned = clone.cloned_positions(base, row_a, row_b)
    scored = torch.from_numpy(cloned[:, :-1] & cloned[:, 1:])  # [n, T], the token and the next
    if not (scored & here).any():  # hardly a token is cloned
        scored = torch.ones_like(scored)

    losses = {}  # (what is replaced, after which layer, by what): [windows of a batch, T], batches
    at_a_time = max(1, 1024 // T)  # all logits of a batch exist at once
    for i in range(0, n, at_a_time):
        text = base[i:i + at_a_time]

        def look(key, stream, layer, text=text):
            """Go on from a stream after a layer, and keep the losses."""
            of_text = losses_from(model, stream, layer, text[:, 1:], row_b)
            losses.setdefault(key, []).append(of_text)

        own = stream_of(model, text, row_b)
        look("own", own[-1], n_layer)
        for case, words in (("patched", text), ("other", far[i:i + at_a_time])):
            theirs = stream_of(model, words, row_a)
            look(("all", n_layer, case), theirs[-1], n_layer)
            for layer in range(n_layer + 1):
                mask = here[:, None].to(theirs[layer].device)  # [T, 1], of all windows and widths
                look(("here", layer, case), torch.where(mask, theirs[layer], own[layer]), layer)
                if layer < n_layer:
                    around = torch.where(mask, own[layer], theirs[layer])
                    look(("around", layer, case), around, layer)

    losses = {key: torch.cat(of_batches) for key, of_batches in losses.items()}

    def compare(what, layer):
        cases = losses["own"], losses[what, layer, "patched"], losses[what, layer, "other"]
        return of_losses(*cases, scored if what == "all" else scored & here)

    return {
        "all": compare("all", n_layer),
        "here": [compare("here", layer) for layer in range(n_layer + 1)],
        "around": [compare("around", layer) for layer in range(n_layer)],
    }


def of_losses(own, patched, other, scored):
    """The mean losses in nats of three cases, each [n, T], and what they say.

    own: nothing is replaced; patched: by the stream of the same text in EN1; other: by that of
    another text in EN1, the floor. scored [n, T]: which tokens count. value: (other - patched) /
    (other - own), 1 where EN1's stream is as good as EN2's own, 0 where it is no better than that
    of another text. clear: whether there is something to lose at all, other - own being clearly
    above 0; windows count as draws.
    """
    count = scored.sum(1).double()
    sums = [(x * scored).sum(1) for x in (own, patched, other)]  # of each window
    own, patched, other = ((x.sum() / count.sum()).item() for x in sums)
    excess = sums[2] - sums[0] - (other - own) * count
    error = (excess.square().sum().sqrt() / count.sum()).item()
    return with_value({"own": own, "patched": patched, "other": other, "error": error})


def with_value(means):
    """Add what three mean losses say: "value", and whether it is "clear"."""
    worth = means["other"] - means["own"]
    clear = worth > CLEARLY * means["error"]
    value = (means["other"] - means["patched"]) / worth if clear else None
    return means | {"value": value, "clear": clear}


def stream_of(model, base, row):
    """The residual stream of windows base [n, T + 1] in a language: [n, T, D] for each layer."""
    return model.residual_stream(torch.from_numpy(row[base[:, :-1]]).to(model.embedding.device))


def losses_from(model, stream, layer, targets, row):
    """Go on from a stream [B, T, D] after a layer: the losses of targets, float64 [B, T], in nats.

    targets [B, T]: the next tokens, of the language whose ids are row [V].
    """
    states = model.through(model.blocks[layer:], stream)[-1]
    ids = torch.from_numpy(row[targets]).to(states.device)
    own_ids = torch.from_numpy(np.unique(row)).to(states.device)
    return model.cross_entropy(states, ids, own_ids).cpu().double()


# ------------------------------------------------------------------------------------------------
# Ablation

@torch.no_grad()
def worths(model, base, row, say=None):
    """What each head and each MLP is worth to a language: {(layer, unit): [nats, nats]}.

    That is by how much the mean loss rises without it, on each half of the windows base [n, T + 1];
    unit: the number of a head, or "mlp". What is taken out is replaced by its mean over the text.
    row [V]: the ids of the language. say: called with the share that is done.
    """
    halves = [row[base[0::2]], row[base[1::2]]]
    before = [mean_loss(model, ids, row) for ids in halves]
    means = unit_means(model, row[base[:, :-1]])
    result = {}
    for (layer, unit), mean in means.items():
        after = without(model, layer, unit, mean, halves, row)
        result[layer, unit] = [b - a for a, b in zip(before, after)]
        if say:
            say(len(result) / len(means))
    return result


def mean_loss(model, ids, row):
    """Mean loss of windows ids [n, T + 1] of a language, in nats a token."""
    at_a_time, total = max(1, 4096 // ids.shape[1]), 0.0
    for i in range(0, len(ids), at_a_time):
        losses = model.text_losses(ids[i:i + at_a_time], row)
        total += losses.cpu().double().sum().item()
    return total / (len(ids) * (ids.shape[1] - 1))


def unit_means(model, ids):
    """{(layer, unit): its mean output before the matrix that follows it}, of windows ids [n, T].

    Of a head [d_head], of an MLP [4 D], over all positions.
    """
    sums, at_a_time = {}, max(1, 4096 // ids.shape[1])
    for i in range(0, len(ids), at_a_time):
        x = model.embed(torch.from_numpy(ids[i:i + at_a_time]).to(model.embedding.device))
        for layer, block in enumerate(model.blocks):
            heads = block.attend(x)
            middle = x + linear(heads, block.proj, block.proj_bias)
            hidden = block.hidden(middle)
            x = middle + linear(hidden, block.down, block.down_bias)
            outputs = dict(enumerate(heads.chunk(block.n_head, dim=2))) | {"mlp": hidden}
            for unit, output in outputs.items():
                of_batch = output.float().sum((0, 1))
                sums[layer, unit] = sums.get((layer, unit), 0) + of_batch
    return {key: total / ids.size for key, total in sums.items()}


def without(model, layer, unit, mean, texts, row):
    """mean_loss of each text where a head or the MLP of a layer always gives its mean.

    So the columns of the matrix that follows are zero, and what they make of the mean is in its
    bias. Both are put back at the end.
    """
    block, name = model.blocks[layer], "down" if unit == "mlp" else "proj"
    weight, bias = getattr(block, name), getattr(block, f"{name}_bias")
    first = 0 if unit == "mlp" else unit * len(mean)
    columns = slice(first, first + len(mean))

    constant = weight[:, columns] @ mean
    changed = weight.clone()
    changed[:, columns] = 0
    setattr(block, name, nn.Parameter(changed))
    setattr(block, f"{name}_bias", nn.Parameter(constant if bias is None else bias + constant))
    losses = [mean_loss(model, ids, row) for ids in texts]
    setattr(block, name, weight)
    setattr(block, f"{name}_bias", bias)
    return losses


def compare_worths(first, other):
    """Do two languages need the same parts? first, other: worths of EN1 and of the other.

    {"units": [their names], "worth": [[EN1's], [the other's]], in nats,
     "correlation": of the two by rank,
     "floor": the same where the heads of each layer are shuffled: that MLPs, or the first layer,
              matter more holds for any two languages,
     "ceiling": the rank correlation of EN1 on one half of the text with EN1 on the other}
    """
    units = list(first)
    mine, theirs = (np.array([np.mean(worth[unit]) for unit in units]) for worth in (first, other))
    halves = np.array([first[unit] for unit in units]).T
    rng, floors = np.random.default_rng(0), []
    for _ in range(SHUFFLES):
        floors.append(rank_correlation(mine, theirs[shuffled_heads(units, rng)]))
    names = [f"layer {layer + 1}, {'MLP' if unit == 'mlp' else f'head {unit + 1}'}"
             for layer, unit in units]
    return {
        "units": names,
        "worth": [mine.tolist(), theirs.tolist()],
        "correlation": rank_correlation(mine, theirs),
        "floor": float(np.mean(floors)),
        "ceiling": rank_correlation(*halves),
    }


def shuffled_heads(units, rng):
    """A permutation of units [(layer, unit)] that moves each head within its layer, and no MLP."""
    order = np.arange(len(units))
    for layer in {layer for layer, _ in units}:
        heads = [i for i, unit in enumerate(units) if unit[0] == layer and unit[1] != "mlp"]
        order[heads] = rng.permutation(heads)
    return order


def rank_correlation(x, y):
    """Spearman's: the correlation of the ranks of x [n] and y [n], whose numbers all differ."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])
