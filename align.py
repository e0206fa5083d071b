"""Are the languages represented alike? Read off a model while it reads one text in each of them.

    python align.py runs/a              # a table, runs/a/align.json and runs/a/align.png
    python align.py runs/a runs/b ...   # and one figure that compares them layer by layer
    python align.py runs/a --text=my_novel.txt   # the same measures on a text of your own
    python align.py runs/c --parallel=eltec-fra-eng   # real languages: a text and its translation

Per layer (0: the embedding), for EN1 and each other language:
    cosine            of the residual streams at the same position
    centred cosine    the same after each language's mean is taken off
    linear CKA        are the states of one a rotation of those of the other?
    retrieval@1       how often is the nearest state of the other language the same position?

One number alone misleads. A few large directions that all states share, or all of one position,
make cosine and CKA high where no token is told from another. So each is shown with its floor, the
same measure of pairs shuffled among states of one position, and said to be above it or not.

Then the cosine of the two languages' loss gradients (paper: Gradient similarity), and that of each
token's embedding and its clone's (paper: Embedding similarity).

Then, of decoders and their clones, whether EN1's states can take the place of EN2's, and whether
both languages need the same heads and MLPs (patching.py).

A translation has other tokens, in another order. So for real languages tokens are matched, and
lines are compared whole (parallel.py). The floors are of windows, and of lines, that do not
translate each other and are about as long; and that of shared tokens, of different tokens.
"""
from collections import Counter
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

import clone
import data
import parallel
import patching
import runs
from lib import plots
from lib.cli import BadInput, Parser, plural, progress, run_main, write_json
from lib.plots import MEASURES, PARALLEL_MEASURES  # {key: what tables and pictures call it}
from model import pick_device

TOKENS = 65536  # of test text: for CKA and the gradients
STATES = 2048  # of them kept: for the cosines and retrieval
GRADIENTS = ("single", "same", "other", "within")  # the kinds of gradient_similarity
PATCHED_TOKENS, ABLATED_TOKENS = 32768, 8192  # of test text, for patching.py
SEQUENCES = 500  # for the gradient cosine of single sequences, as many as the paper's
SHUFFLES = 8  # of the pairs, for the floor
# of a parallel text: about how many tokens of a side are matched, and how many the lines have that
# are compared; windows for the gradients
MATCHED_TOKENS, LINE_TOKENS, GRADIENT_WINDOWS = 8192, 65536, 500
MATCHINGS = 4  # with other windows, for the floor: a matching takes a while
LEAST_WINDOWS = 2 * MATCHINGS  # so that none of these others is the window itself
ABOUT_AS_LONG = 4  # lines that are shuffled among one another, those next to each other in length
USES = 5  # a token counts as used in a language if it is there as often
# a measure is above its floor if by more than this, and by more than 5 standard deviations of the
# shuffles
MARGIN = 0.02

# ------------------------------------------------------------------------------------------------
# Measures of two sets of states a, b [n, D], where a[i] and b[i] are of the same token

def centre(x):
    return x - x.mean(0)


def cosine(a, b):
    """Mean cosine similarity of a[i] and b[i]."""
    return F.cosine_similarity(a.double(), b.double(), dim=1).mean().item()


def retrieval_at_1(a, b, order=None):
    """How often is the nearest of b's states to a's i-th, by centred cosine, b's i-th? 0..1.

    By chance 1 / n. order [n]: count a hit where it is b's order[i]-th, for the floor.
    """
    a = F.normalize(centre(a.float()), dim=1)
    b = F.normalize(centre(b.float()), dim=1)
    nearest = (a @ b.T).argmax(1).cpu()
    right = torch.arange(len(a)) if order is None else order
    return (nearest == right).double().mean().item()


class StreamingCKA:
    """Linear CKA of two streams of states (Kornblith et al. 2019), in bounded memory.

    CKA = |B'A|^2 / (|A'A| |B'B|): Frobenius norms of products [D, D] of the centred states. With
    sums of x, y and x'y alone, the product of the centred states is x'y - sum(x)' sum(y) / n, so
    nothing has to be kept that grows with the text. In float64. Beside it, the same for shuffled
    pairs: only B'A changes with the pairing.
    """

    def __init__(self):
        self.n = 0
        self.sum_a, self.sum_b = 0, 0
        self.aa, self.bb = 0, 0
        self.ab = [0] * (1 + SHUFFLES)  # of the pairs as they are, and of each shuffle

    def add(self, a, b, orders=()):
        """Add states a, b [n, D]. orders: SHUFFLES permutations [n], for the floor."""
        a, b = a.double(), b.double()
        self.n += len(a)
        self.sum_a = self.sum_a + a.sum(0)
        self.sum_b = self.sum_b + b.sum(0)
        self.aa = self.aa + a.T @ a
        self.bb = self.bb + b.T @ b
        for i, order in enumerate([slice(None), *orders]):
            self.ab[i] = self.ab[i] + a.T @ b[order]

    def norm(self, product, sum_x, sum_y):
        """The Frobenius norm of the product of the centred states, from that of the raw ones."""
        return (product - torch.outer(sum_x, sum_y) / self.n).norm()

    def value(self, shuffle=None):
        """CKA of the pairs as they are, or of the shuffle-th shuffled ones."""
        ab = self.norm(self.ab[0 if shuffle is None else 1 + shuffle], self.sum_a, self.sum_b)
        aa = self.norm(self.aa, self.sum_a, self.sum_a)
        bb = self.norm(self.bb, self.sum_b, self.sum_b)
        return (ab**2 / (aa * bb)).item()


def shuffled(positions, rng):
    """A permutation [n] that pairs each of n states with another of the same position.

    positions int64 [n]: where in its window each state stands. With this for a floor, a model
    which knows positions and nothing else is at it. For example

        positions   0 1 0 1 0      states 0, 2, 4 are first tokens, 1 and 3 second ones
        shuffled    4 3 0 1 2      each is paired with another of its kind, in a random cycle
    """
    groups = join_single(positions)

    # sort by group, and at random within one: mixed = 2 0 4 | 3 1, say
    tie_break = torch.rand(len(groups), generator=rng, dtype=torch.float64)
    mixed = (groups + tie_break).argsort()

    # each is paired with the one after it, and the last of a group with the first of it
    sorted_groups = groups[mixed]
    following = torch.arange(1, len(groups) + 1)
    group_start = torch.searchsorted(sorted_groups, sorted_groups)
    group_end = torch.searchsorted(sorted_groups, sorted_groups, right=True)
    following = torch.where(following < group_end, following, group_start)

    order = torch.empty_like(mixed)
    order[mixed] = mixed[following]
    return order


def join_single(positions):
    """The group [n] of each state: its position, but a state that is alone at its position joins
    the next one, since a pair of a state with itself is no floor. positions 0 0 1 2 2 -> 0 0 1 1 1.
    """
    _, group, counts = positions.unique(return_inverse=True, return_counts=True)
    join = torch.arange(len(counts))
    size = counts[0].item() if len(counts) else 0  # of the group that is open
    for i in range(1, len(counts)):
        last_and_alone = i == len(counts) - 1 and counts[i] == 1
        if size == 1 or last_and_alone:
            join[i] = join[i - 1]
            size += counts[i].item()
        else:
            size = counts[i].item()
    return join[group]


def against_floor(value, floors):
    """{"value", "floor": the mean of the shuffled ones, "above": is it clearly above them?}."""
    floor, spread = float(np.mean(floors)), float(np.std(floors, ddof=1))
    above = value - floor > max(MARGIN, 5 * spread)
    return {"value": float(value), "floor": floor, "above": bool(above)}


# ------------------------------------------------------------------------------------------------
# Hidden states

def kept_windows(n, T):
    """Which of n windows of T tokens have their states kept: about STATES, from all the text."""
    return evenly_spaced(n, -(-STATES // T))  # rounded up


def evenly_spaced(n, k):
    """k of the numbers 0 to n - 1, or all if there are fewer, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, k).astype(int))


@torch.no_grad()
def layer_similarity(model, base, row_a, row_b, say=None):
    """Each of MEASURES against its floor, for each layer, of one text in two languages.

    base [n, T]: ids of the text as tokenised; row_a, row_b [V]: the ids of the two languages.
    Returns [{measure: against_floor(...)}], a dict for each of GPT.stream_names. Positions of
    anchor points are left out: their states are alike by construction. say: called with the share
    that is done.
    """
    device = model.embedding.device
    exact = "cpu" if device.type == "mps" else device  # MPS has no float64
    T = base.shape[1]
    positions = [where for _, where in model.stream_names(T)]  # of each layer, a slice of them
    n_layers = len(positions)
    rng = torch.Generator().manual_seed(0)
    cloned = [torch.from_numpy(clone.cloned_positions(base[:, where], row_a, row_b)).to(exact)
              for where in positions]
    kept = kept_windows(len(base), cloned[0].shape[1])

    # read the text once: CKA takes all states as they pass, the other measures a sample of them
    ckas = [StreamingCKA() for _ in range(n_layers)]
    samples = [([], []) for _ in range(n_layers)]  # of each layer, the states in both languages
    per_batch = max(1, 4096 // T)
    for i in range(0, len(base), per_batch):
        text = base[i:i + per_batch]
        stream_a, stream_b = (
            [x.to(exact) for x in model.residual_stream(torch.from_numpy(row[text]).to(device))]
            for row in (row_a, row_b))
        chosen = [j for j in range(len(text)) if i + j in kept]
        orders = {}  # the shuffles: layers of the same positions have the same ones
        for layer, where in enumerate(positions):
            mask = cloned[layer][i:i + per_batch]
            if where.start not in orders:
                standing = mask.nonzero()[:, 1].cpu()
                orders[where.start] = [shuffled(standing, rng).to(exact) for _ in range(SHUFFLES)]
            a, b = stream_a[layer], stream_b[layer]
            ckas[layer].add(a[mask], b[mask], orders[where.start])
            for states, x in zip(samples[layer], (a, b)):
                states.append(x[chosen][mask[chosen]].float())
        if say:
            say(min(1, (i + per_batch) / len(base)))

    result = []
    for cka, (states_a, states_b), mask in zip(ckas, samples, cloned):
        a, b = torch.cat(states_a), torch.cat(states_b)
        standing = mask[kept].nonzero()[:, 1].cpu()
        shuffles = [shuffled(standing, rng) for _ in range(SHUFFLES)]
        result.append(compare_states(a, b, shuffles) | {
            "cka": against_floor(cka.value(), [cka.value(i) for i in range(SHUFFLES)])})
    return result


def compare_states(a, b, shuffles):
    """The measures that need the states a, b [n, D] themselves: cosines and retrieval."""
    ca, cb = centre(a), centre(b)
    return {
        "cosine": against_floor(cosine(a, b), [cosine(a, b[s]) for s in shuffles]),
        "centred": against_floor(cosine(ca, cb), [cosine(ca, cb[s]) for s in shuffles]),
        "retrieval": against_floor(retrieval_at_1(a, b),
                                   [retrieval_at_1(a, b, s) for s in shuffles]),
        "retrieval_back": against_floor(retrieval_at_1(b, a),
                                        [retrieval_at_1(b, a, s) for s in shuffles]),
    }


# ------------------------------------------------------------------------------------------------
# Gradients

def gradient_similarity(model, base, row_a, row_b):
    """Cosine of the loss gradients of two clones, for each parameter tensor: compare_gradients.

    base [n, T + 1]: ids of the text as tokenised. Of the embeddings' gradients only the language's
    rows are compared, a token's with its clone's.
    """
    return compare_gradients(model, row_a[base], row_b[base], (row_a, row_b))


def compare_gradients(model, windows_a, windows_b, rows, embeddings=True):
    """Cosine of the loss gradients of two languages, for each parameter tensor.

    windows_a, windows_b [n]: ids of one text in both, window by window. rows, embeddings: of
    gradients().
    Returns {name: {kind: cosine}}, the kinds being
        single   of the two languages on one window, mean over windows (paper: Gradient
                 similarity): most of such a gradient is of what this one window says
        same     of the two languages on one text, the sum over many windows
        other    of the two languages on two texts: each is every other window, so that they differ
                 as two samples of one text do, not as its first author and its last
        within   of one language on two texts: as alike as anything gets here
    """
    n = len(windows_a)
    a1, a2, b1, b2 = (gradients(model, windows[half::2], row, embeddings, first=half * n)
                      for windows, row in zip((windows_a, windows_b), rows) for half in (0, 1))
    result = {}
    for name in a1:
        same = flat_cosine(a1[name], b1[name]) + flat_cosine(a2[name], b2[name])
        other = flat_cosine(a1[name], b2[name]) + flat_cosine(a2[name], b1[name])
        within = flat_cosine(a1[name], a2[name]) + flat_cosine(b1[name], b2[name])
        result[name] = {"same": same / 2, "other": other / 2, "within": within / 2}

    singles = {name: [] for name in result}
    for i in evenly_spaced(n, SEQUENCES):
        a, b = (gradients(model, windows[i:i + 1], row, embeddings, i)
                for windows, row in zip((windows_a, windows_b), rows))
        for name in result:
            singles[name].append(flat_cosine(a[name], b[name]))
    for name in result:
        result[name]["single"] = float(np.mean(singles[name]))
    model.zero_grad()
    return result


def gradients(model, windows, row, embeddings=True, first=0):
    """{name: gradient of the summed loss of windows}, by the names of Block's tensors.

    windows: ids [n, T + 1] of a language, or a list of n windows that differ in length. row [V]:
    the language's ids. qkv counts as three tensors, and so does its bias. Of the embeddings'
    gradients only the language's rows are kept, so that they stand in the same order for every
    clone. Without embeddings these are left out: the tokens of real languages have no clones.
    first: the number of the first window, as in GPT.text_losses.
    """
    model.zero_grad()
    if isinstance(windows, list):
        parts = [window[None] for window in windows]
    else:
        at_a_time = max(1, 8192 // windows.shape[1])
        parts = [windows[i:i + at_a_time] for i in range(0, len(windows), at_a_time)]
    for part in parts:
        model.text_losses(part, row, first=first).mean(1).sum().backward()
        first += len(part)

    result = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        layer, _, tensor = name.rpartition(".")
        if tensor in ("embedding", "unembedding"):
            if embeddings:
                result[name] = gradient[torch.from_numpy(row).to(gradient.device)].clone()
        elif tensor in ("qkv", "qkv_bias"):
            for kind, part in zip("qkv", gradient.chunk(3)):
                result[f"{layer}.{tensor.replace('qkv', kind)}"] = part.clone()
        else:
            result[name] = gradient.clone()
    return result


def flat_cosine(x, y):
    """Cosine of two tensors of one shape, as vectors."""
    return F.cosine_similarity(x.float().flatten(), y.float().flatten(), dim=0).item()


def block_mean(gradients, kind):
    """Mean gradient cosine of a kind ("single", ...) over the tensors of the blocks.

    They are of ten types: q, k, v, proj, up, down, and the weight and bias of both norms. The
    biases of the linear layers are left out, as in the paper's mean over ten types: adding to all
    keys changes no attention, so the gradient of k's bias is rounding noise. So is the attention of
    a decoder to an encoder, which other architectures do not have.
    """
    cosines = []
    for name, by_kind in gradients.items():
        of_ten = name.startswith("blocks.") and not name.endswith("_bias") and "cross" not in name
        if of_ten:
            cosines.append(by_kind[kind])
    return float(np.mean(cosines))


# ------------------------------------------------------------------------------------------------
# Embeddings

@torch.no_grad()
def embedding_similarity(model, row_a, row_b, frequency, bins=8):
    """Cosine of each token's embedding with its clone's: {"input": ..., "output": ...} or "tied".

    frequency [V]: how often each token occurs. For each matrix, the mean over tokens against its
    floor, which is pairs shuffled among tokens of about the same frequency, since rare ones
    resemble one another; "all_pairs"; and "by_frequency", rarest first, in bins of as many tokens
    each. Anchor points and tokens never seen are left out.
    """
    cloned = np.flatnonzero((row_a != row_b) & (frequency > 0))
    if len(cloned) < 2 * bins:
        return {}
    by_frequency = cloned[np.argsort(frequency[cloned], kind="stable")]
    parts = np.array_split(by_frequency, bins)

    if model.unembedding is model.embedding:
        matrices = {"tied": model.embedding}
    else:
        matrices = {"input": model.embedding, "output": model.unembedding}

    result, rng = {}, np.random.default_rng(0)
    for side, weight in matrices.items():
        unit = F.normalize(weight.cpu().double(), dim=1).numpy()

        def cosines(tokens_a, tokens_b, unit=unit):
            return (unit[row_a[tokens_a]] * unit[row_b[tokens_b]]).sum(1)

        def all_pairs(tokens, unit=unit):
            """The mean cosine of every a with every b is the product of their means."""
            return float(unit[row_a[tokens]].mean(0) @ unit[row_b[tokens]].mean(0))

        floors = []
        for _ in range(SHUFFLES):
            shuffled_pairs = [cosines(part, rng.permutation(part)) for part in parts]
            floors.append(np.concatenate(shuffled_pairs).mean())

        of_part = [cosines(part, part) for part in parts]
        result[side] = against_floor(np.concatenate(of_part).mean(), floors)
        result[side]["all_pairs"] = all_pairs(cloned)
        result[side]["by_frequency"] = [{
            "tokens_per_million": float(1e6 * frequency[part].mean() / frequency.sum()),
            "cosine": float(cosine_of_part.mean()),
            "floor": all_pairs(part),
        } for part, cosine_of_part in zip(parts, of_part)]
    return result


# ------------------------------------------------------------------------------------------------
# Real languages: a text and its translation (paper: English-French)

@torch.no_grad()
def parallel_similarity(model, windows, shared, say=None):
    """Each of PARALLEL_MEASURES against its floor, for each layer, of a text and its translation.

    windows: of parallel.pack. shared: the ids that both languages have, [] if none. Returns
    [{measure: against_floor(...)}], a dict a layer. say: called with the share that is done.
    """
    # windows to match, in order of their length: so neighbours are about as long
    to_match = evenly(windows, max(LEAST_WINDOWS, MATCHED_TOKENS // room(model)))
    to_match.sort(key=lambda window: len(window.a) + len(window.b))
    tokens_a = states_of(model, [window.a for window in to_match])
    tokens_b = states_of(model, [window.b for window in to_match])
    ids_a, ids_b = (np.concatenate([window[side] for window in to_match]) for side in (0, 1))

    with_lines = windows_with_lines(model, windows)
    lines_a, lines_b = (mean_states(model, with_lines, side) for side in (0, 1))
    lengths = line_lengths(with_lines)

    result = []
    for layer, (a, b) in enumerate(zip(tokens_a, tokens_b)):
        measures = matched_similarity(a, b)
        measures |= line_similarity(lines_a[layer], lines_b[layer], lengths)
        if len(shared):
            measures |= shared_similarity(torch.cat(a), torch.cat(b), ids_a, ids_b, shared)
        result.append(measures)
        if say:
            say((layer + 1) / len(tokens_a))
    return result


def evenly(windows, n):
    """n of the windows, or all if there are fewer, spread evenly over the text."""
    return [windows[i] for i in evenly_spaced(len(windows), n)]


def room(model):
    """How many tokens of a text a model reads at once: of an encoder-decoder, its encoder does."""
    _, where = model.stream_names(model.config["context"])[0]
    return where.stop


def states_of(model, sides):
    """The residual stream of one side of windows, each ids [Ti]: a list of [Ti, D] a layer.

    Of an encoder-decoder that of the encoder, which alone reads a text and writes none.
    """
    read = model.residual_stream
    if model.config["arch"] == "encoder-decoder":
        read = model.encode
    of_window = []
    for ids in sides:
        stream = read(torch.from_numpy(ids[None]).to(model.embedding.device))
        of_window.append([x[0].float().cpu() for x in stream])
    return [list(of_layer) for of_layer in zip(*of_window)]


def mean_states(model, windows, side):
    """The mean state of each line of windows, on one side of them: [lines, D] for each layer.

    A line stands where its translation does. So that this alone does not tell them, the mean state
    at each position is taken off first.
    """
    result = []
    for states in states_of(model, [window[side] for window in windows]):
        longest = max(len(x) for x in states)
        at_position, times = torch.zeros(longest, states[0].shape[1]), torch.zeros(longest, 1)
        for x in states:
            at_position[:len(x)] += x
            times[:len(x)] += 1
        at_position /= times

        means = []
        for x, window in zip(states, windows):
            start = 0
            for end in (ends[side] for ends in window.ends):
                means.append((x[start:end] - at_position[start:end]).mean(0))
                start = end
        result.append(torch.stack(means))
    return result


def windows_with_lines(model, windows):
    """Those windows whose lines are compared, LINE_TOKENS of a side in all."""
    return evenly(windows, max(LEAST_WINDOWS, LINE_TOKENS // room(model)))


def line_lengths(windows):
    """How many tokens each line of windows has, on the first side [lines]."""
    lengths = []
    for window in windows:
        ends = [0, *(end for end, _ in window.ends)]
        lengths += np.diff(ends).tolist()
    return torch.tensor(lengths)


def matched_similarity(a, b):
    """Mean cosine of the tokens of windows with those of their translations that they go with best.

    a, b: the states of both sides, a list of [Ta, D] and one of [Tb, D], shortest windows first.
    Raw, and after each language's mean is taken off. A matching finds something in any two texts,
    and more in longer ones: so the floor is high, and of windows that are about as long.
    """
    mean_a, mean_b = torch.cat(a).mean(0), torch.cat(b).mean(0)
    centred_a, centred_b = [x - mean_a for x in a], [x - mean_b for x in b]
    result = {}
    for measure, sides in (("matched", (a, b)), ("matched_centred", (centred_a, centred_b))):
        floors = [matched_cosine(*sides, shift) for shift in range(1, MATCHINGS + 1)]
        result[measure] = against_floor(matched_cosine(*sides, 0), floors)
    return result


def matched_cosine(a, b, shift):
    """Mean over windows of the mean cosine of matched tokens (parallel.match).

    Each window of a [Ta, D] is matched with its own of b [Tb, D], or with one that stands `shift`
    places from it. Of all these as many tokens take part, so that no shift has more to choose from.
    """
    cosines = []
    for i in range(len(a)):
        others = [i + s if i + s < len(b) else i - s for s in range(MATCHINGS + 1)]
        shortest = min(len(b[j]) for j in others)
        other = b[others[shift]][:shortest]
        weights = F.normalize(a[i], dim=1) @ F.normalize(other, dim=1).T
        cosines.append(weights.numpy()[parallel.match(weights)].mean())
    return np.mean(cosines)


def line_similarity(a, b, lengths):
    """How alike are lines and their translations? a, b [lines, D]: the mean state of each.

    Is the nearest line of the other language, by centred cosine, the translation? And linear CKA. A
    long line and a short one differ in any language, since the end of a line is a larger part of
    the short one: so the floor is of lines that are about as long; lengths [lines].
    """
    rng = torch.Generator().manual_seed(0)
    rank = lengths.argsort(stable=True).argsort()  # by length: 0 is the shortest
    orders = [shuffled(rank // ABOUT_AS_LONG, rng) for _ in range(SHUFFLES)]
    cka = StreamingCKA()
    cka.add(a, b, orders)
    return {
        "line": against_floor(retrieval_at_1(a, b), [retrieval_at_1(a, b, o) for o in orders]),
        "line_back": against_floor(retrieval_at_1(b, a), [retrieval_at_1(b, a, o) for o in orders]),
        "line_cka": against_floor(cka.value(), [cka.value(i) for i in range(SHUFFLES)]),
    }


def shared_similarity(a, b, ids_a, ids_b, shared):
    """Is a token that two languages share used alike? Centred cosine of its mean states in both.

    a, b [n, D]: states; ids_a, ids_b [n]: of which tokens. The floor: of two different tokens.
    """
    use_a, use_b = [], []
    ca, cb = centre(a), centre(b)
    for token in shared:
        in_a, in_b = ids_a == token, ids_b == token
        if min(in_a.sum(), in_b.sum()) >= USES:
            use_a.append(ca[in_a].mean(0))
            use_b.append(cb[in_b].mean(0))
    if len(use_a) < 3:
        return {}
    use_a, use_b = torch.stack(use_a), torch.stack(use_b)
    floors = [cosine(use_a, use_b.roll(i + 1, 0)) for i in range(min(SHUFFLES, len(use_a) - 1))]
    return {"shared": against_floor(cosine(use_a, use_b), floors)}


# ------------------------------------------------------------------------------------------------
# A run

def measure(run, parallel_text=None):
    """All of align.json: {"names": of the layers, "pairs": {"EN1-EN2": ...}}, the first language
    with each other one.

    parallel_text: of real languages, where lines and their translations are. Raises BadInput.
    """
    names = [name for name, _ in run.model.stream_names(run.config.context)]
    if run.clones:
        measured = measure_clones(run)
    else:
        measured = measure_real(run, parallel_text)
        if run.config.arch == "encoder-decoder":  # of which only the encoder was looked at
            names = [name for name in names if name.startswith("encoder")]
    checkpoint = data.file_sha256(run.folder / "model.pt")
    return {"checkpoint": checkpoint, "names": names} | measured


def measure_clones(run):
    """What align.json holds of clones. Raises BadInput for too short a test text."""
    text, T = run.texts("test")[0], run.config.context
    runs.check_length(run, run.names[0], text, 2)
    base = clone.spread(text, T, max(2, TOKENS // T))  # [n, T + 1]
    frequency = run.languages.counts[0]

    worths = []  # of each language, what each head and MLP is worth to it
    if run.config.arch == "decoder":
        some = clone.spread(text, T, max(2, ABLATED_TOKENS // T))
        for name, row in zip(run.names, run.table):
            def say(share, name=name):
                progress(f"{run.folder}: {name} without a head or an MLP, {share:.0%}")

            worths.append(patching.worths(run.model, some, row, say))

    pairs = {}
    for l in range(1, len(run.table)):
        name, row_a, row_b = f"{run.names[0]}-{run.names[l]}", run.table[0], run.table[l]

        def say(share, name=name):
            progress(f"{run.folder}: {name}, hidden states {share:.0%}")

        layers = layer_similarity(run.model, base[:, :-1], row_a, row_b, say)
        progress(f"{run.folder}: {name}, gradients")
        pairs[name] = {
            "layers": layers,
            "gradients": gradient_similarity(run.model, base, row_a, row_b),
            "embeddings": embedding_similarity(run.model, row_a, row_b, frequency),
        }
        if worths:
            progress(f"{run.folder}: {name}, interchange")
            some = clone.spread(text, T, max(2, PATCHED_TOKENS // T))
            pairs[name] |= {
                "interchange": patching.interchange(run.model, some, row_a, row_b),
                "ablation": patching.compare_worths(worths[0], worths[l]),
            }
    progress("")
    return {"tokens": len(base) * T, "pairs": pairs}


def measure_real(run, parallel_text):
    """What align.json holds of real languages. Raises BadInput for a parallel text that cannot be
    read, is too short, or was trained on.
    """
    progress(f"{run.folder}: is any of the parallel text among its training documents?")
    n_documents = parallel.check_held_out(run, parallel_text)
    progress("")
    print(f"{run.folder}: none of its {n_documents} training documents is in the parallel text")

    pairs, encoders = {}, run.encoders
    for l in range(1, len(run.table)):
        names, rows = [run.names[0], run.names[l]], [run.table[0], run.table[l]]
        name = "-".join(names)
        windows = open_windows(run, parallel_text, names, [encoders[0], encoders[l]], rows)

        def say(share, name=name):
            progress(f"{run.folder}: {name}, hidden states {share:.0%}")

        layers = parallel_similarity(run.model, windows, np.intersect1d(*rows), say)
        progress(f"{run.folder}: {name}, gradients")
        some = [window for window in evenly(windows, GRADIENT_WINDOWS)
                if min(len(window.a), len(window.b)) > 2]  # of fewer there is no loss
        sides = [window.a for window in some], [window.b for window in some]
        pairs[name] = {
            "layers": layers,
            "gradients": compare_gradients(run.model, *sides, rows, embeddings=False),
            "embeddings": {},
            "lines": len(line_lengths(windows_with_lines(run.model, windows))),
        }
    progress("")
    return {"pairs": pairs}


def open_windows(run, parallel_text, names, encoders, rows):
    """The windows of a parallel text in two languages of a run; says how many there are.

    Raises BadInput for fewer than LEAST_WINDOWS.
    """
    width = room(run.model)
    passed_over = Counter()
    documents = parallel.read_pairs(parallel_text, names, passed_over)
    windows, n_pairs, packed = parallel.pack(documents, encoders, rows, width)
    if len(windows) < LEAST_WINDOWS:
        raise BadInput(f"the parallel text {parallel_text} has {len(windows)} windows of pairs "
                       f"that fit {width} tokens: expected {LEAST_WINDOWS} or more")
    lone = passed_over.total()
    over = f" ({plural(lone, 'file')} passed over, without a translation)" if lone else ""
    print(f"{'-'.join(names)}: {n_pairs:,} pairs of lines{over}; {packed:,} of them fit a window "
          f"of {width} tokens, in {len(windows):,} windows")
    return windows


def mean_over(entries):
    """The mean of several {"value", "floor", "above"}; above, where most of them are."""
    return {
        "value": float(np.mean([e["value"] for e in entries])),
        "floor": float(np.mean([e["floor"] for e in entries])),
        "above": sum(e["above"] for e in entries) * 2 > len(entries),
    }


def mean_numbers(entries):
    """The mean of several dicts of numbers, key by key."""
    return {key: float(np.mean([e[key] for e in entries])) for key in entries[0]}


def mean_exchange(entries):
    """The mean of several patching.of_losses: of the losses, and what these say together."""
    losses = ("own", "patched", "other", "error")
    return patching.with_value({key: float(np.mean([e[key] for e in entries])) for key in losses})


def summary(result):
    """The mean of align.json over its language pairs.

    {"names": [of the layers], "layers": [{measure: {"value", "floor", "above"}}],
     "gradients": {tensor: {kind: cosine}}, "gradient": their mean over the blocks,
     "embeddings": {"input": {"value", "floor", "above", "all_pairs", "by_frequency"}, ...}},
    and of decoders and their clones "interchange" and "ablation", as in patching.py.
    """
    pairs = list(result["pairs"].values())
    layers = []
    for of_layer in zip(*(pair["layers"] for pair in pairs)):
        measures = [m for m in of_layer[0] if all(m in layer for layer in of_layer)]
        layers.append({m: mean_over([layer[m] for layer in of_layer]) for m in measures})

    gradients = {}
    for tensor in pairs[0]["gradients"]:
        gradients[tensor] = mean_numbers([pair["gradients"][tensor] for pair in pairs])

    embeddings = {}
    for side in pairs[0]["embeddings"]:
        sides = [pair["embeddings"][side] for pair in pairs]
        embeddings[side] = mean_over(sides)
        embeddings[side]["all_pairs"] = float(np.mean([s["all_pairs"] for s in sides]))
        bins = zip(*(s["by_frequency"] for s in sides))
        embeddings[side]["by_frequency"] = [mean_numbers(of_bin) for of_bin in bins]

    by_patching = {}
    if "interchange" in pairs[0]:
        exchanges = [pair["interchange"] for pair in pairs]
        by_patching["interchange"] = {"all": mean_exchange([e["all"] for e in exchanges])}
        for what in ("here", "around"):
            of_layers = zip(*(exchange[what] for exchange in exchanges))
            by_patching["interchange"][what] = [mean_exchange(of_layer) for of_layer in of_layers]

        ablations = [pair["ablation"] for pair in pairs]
        by_patching["ablation"] = {"units": ablations[0]["units"]}
        for key in ("worth", "correlation", "floor", "ceiling"):
            mean = np.mean([ablation[key] for ablation in ablations], axis=0)
            by_patching["ablation"][key] = mean.tolist()
    return {
        "names": result["names"],
        "layers": layers,
        "gradients": gradients,
        "gradient": {kind: block_mean(gradients, kind) for kind in GRADIENTS},
        "embeddings": embeddings,
    } | by_patching


# ------------------------------------------------------------------------------------------------
# The command

def cell(entry):
    """A measure and its floor, and a star if it is above: "0.812  0.031 *"."""
    star = "*" if entry["above"] else " "
    return f"{entry['value']:.3f} {entry['floor']:6.3f} {star}"


HEADINGS = {  # of the columns of the table
    "cosine": "cosine", "centred": "centred cosine", "cka": "linear CKA",
    "retrieval": "retrieval@1 ->", "retrieval_back": "retrieval@1 <-",
    "matched": "matched cosine", "matched_centred": "matched, centred",
    "line": "line retr. ->", "line_back": "line retr. <-", "line_cka": "lines' CKA",
    "shared": "shared tokens",
}


def print_table(folder, languages, of_run):
    """The page in words; languages: ["EN1", "EN2", ...], of_run: summary(...)."""
    clones = "matched" not in of_run["layers"][0]
    words = MEASURES if clones else PARALLEL_MEASURES
    floor = "shuffled pairs" if clones else "other texts, about as long"
    print(f"\n{folder}: {languages[0]} with {', '.join(languages[1:])}; each measure beside its "
          f"floor ({floor}), * where it is clearly above it")
    width = max(5, *(len(name) for name in of_run["names"]))
    print(f"{'layer':{width}}   " + "".join(f"{HEADINGS[m]:18}" for m in of_run["layers"][0]))
    for name, layer in zip(of_run["names"], of_run["layers"]):
        print(f"{name:>{width}}   " + "".join(f"{cell(entry):18}" for entry in layer.values()))
    if not clones:
        print("matched: cosine of each token with the one of the translation that it goes with "
              "best, by a matching\nline retr.: how often is the nearest line of the other "
              "language, by its mean state, the translation?")
        if "shared" in of_run["layers"][0]:
            print("shared tokens: centred cosine of a token's mean states in the two languages; "
                  "its floor is of different tokens")

    gradient = of_run["gradient"]
    other = "EN1 and other" if clones else "the two languages"
    print(f"gradient cosine, mean over the tensors of the blocks: {other} on single "
          f"sequences (the paper's) {gradient['single']:.3f},\n  on one text "
          f"{gradient['same']:.3f}, on two texts {gradient['other']:.3f}, "
          f"one language on two texts {gradient['within']:.3f}")
    for side, entry in of_run["embeddings"].items():
        print(f"{side} embedding and its clone's: cosine {cell(entry)}, "
              f"all pairs {entry['all_pairs']:.3f}")

    if "interchange" in of_run:
        print_patching(of_run)

    above = []
    for m in of_run["layers"][0]:
        layers = [name for name, layer in zip(of_run["names"], of_run["layers"])
                  if layer[m]["above"]]
        if layers:
            word = "layer" if len(layers) == 1 else "layers"
            above.append(f"{words[m]} in {word} {', '.join(layers)}")
    print("above the floor: " + ("; ".join(above) or "nothing"))


def print_patching(of_run):
    """What patching.py measured, in words."""
    exchange, ablation = of_run["interchange"], of_run["ablation"]

    def words(entries):
        return ", ".join("-" if e["value"] is None else f"{e['value']:.2f}" for e in entries)

    print("interchange, EN1's stream in place of the other's own")
    print(f"  at all positions: {words([exchange['all']])}")
    print(f"  at every 16th, after each layer: {words(exchange['here'])}")
    print(f"  at all but these, after each layer: {words(exchange['around'])}")
    print("  1: as good as its own. 0: no better than that of another text. -: nothing to lose")
    print(f"ablation: what each of {len(ablation['units'])} heads and MLPs is worth to EN1, and to "
          "the other\n"
          f"  rank correlation {ablation['correlation']:.2f}; floor {ablation['floor']:.2f}, heads "
          f"shuffled; ceiling {ablation['ceiling']:.2f}, EN1 on two texts")


def main():
    parser = Parser(__doc__)
    parser.positional("runs", "folders of finished runs of two languages or more, of one corpus")
    parser.option("--parallel", None, "of real languages: lines and their translations, "
                  "eltec-fra-eng (downloaded once), a folder or a .zip with a .txt for each "
                  "document and language, e.g. eng/a.txt and fra/a.txt")
    parser.option("--text", None, "of clones: a text of your own, or any that --corpus takes, to "
                  "be read in place of the test split; the results go to align-TEXT.json and .png")
    parser.option("--corpus", None, "where the text of the runs is now, once for each (default: "
                  "where it was, or what data/ still has of it)", several=True)
    parser.option("--device", "auto", "cpu, cuda or mps; auto takes the best there is")
    args, _ = parser.parse()

    summaries = {}  # by folder
    opened = runs.open_runs(args.runs, pick_device(args.device), minimum=2, corpus=args.corpus,
                            parallel=args.parallel, text=args.text,
                            check=partial(check_parallel, parallel_text=args.parallel))
    # those of another text are never taken for those of the test split
    name = runs.result_name("align", args.text)
    for run in opened:
        result = measure(run, args.parallel)
        if args.text is not None:
            result["text"] = args.text
        write_json(run.folder / f"{name}.json", result)
        summaries[run.folder] = summary(result)
        print_table(run.folder, run.names, summaries[run.folder])
        plots.alignment_page(run.folder / f"{name}.png", run.folder.name, run.names,
                             summaries[run.folder])

    first = next(iter(summaries))
    print(f"\n{name}.json and {name}.png are in each run's folder: "
          f"look at {first / f'{name}.png'}")
    if len(summaries) > 1:
        path = first.parent / f"{name}.png"
        by_name = {folder.name: of_run for folder, of_run in summaries.items()}
        if len(by_name) < len(summaries):  # two runs of one name, in two places
            by_name = {str(folder): of_run for folder, of_run in summaries.items()}
        plots.alignment_of_runs(path, by_name)
        print(f"{path} compares the runs")


def check_parallel(folder, config, parallel_text):
    """Raise BadInput unless a parallel text is given for real languages, and none for clones."""
    clones = runs.are_clones(config)
    if clones and parallel_text:
        raise BadInput(f"the languages of {folder} are clones, which read one text: "
                       "leave --parallel out")
    if not clones and not parallel_text:
        raise BadInput(f"the languages of {folder} are real: give lines and their "
                       "translations, --parallel=PATH")


if __name__ == "__main__":
    run_main(main)
