"""Are the languages represented alike? Read off a model while it reads the same text in each of them.

    python align.py runs/a                   # a table, runs/a/align.json and runs/a/align.png
    python align.py runs/a runs/b ...        # and one figure that compares them layer by layer

Per layer (0: the embedding), for EN1 and each other language: cosine of the residual streams at the same position; the same after each
language's mean is taken off; linear CKA; retrieval@1, how often the nearest state of the other language is the same position. One number
alone misleads: a few large directions that all states share, or all of one position, make cosine and CKA high where no token is told from
another. So each is shown with its floor, the same measure of pairs shuffled among states of one position, and said to be above it or not.
Then the cosine of the two languages' loss gradients (paper: Gradient similarity), and that of each token's embedding and its clone's
(paper: Embedding similarity).
"""
import numpy as np
import torch
import torch.nn.functional as F

import clone
import data
import runs
from cli import BadInput, Parser, progress, run, write_json
from model import pick_device

TOKENS = 65536  # of test text: for CKA and the gradients
STATES = 2048  # of them kept: for the cosines and retrieval
SHUFFLES = 8  # of the pairs, for the floor
MARGIN = 0.02  # a measure is above its floor if by more than this and by more than 5 standard deviations of the shuffles
SIDE_COLOURS = "black", "0.55"  # of the input and the output embedding
MEASURES = {"cosine": "cosine", "centred": "centred cosine", "cka": "linear CKA", "there": "retrieval@1, EN1 to other", "back": "retrieval@1, other to EN1"}

# ---------------------------------------------------------------------------------------------------------------------
# Measures of two sets of states a, b [n, D], where a[i] and b[i] are of the same token

def centre(x):
    return x - x.mean(0)


def cosine(a, b):
    """Mean cosine similarity of a[i] and b[i]."""
    return F.cosine_similarity(a.double(), b.double(), dim=1).mean().item()


def retrieval_at_1(a, b, order=None):
    """How often is the nearest of b's states, by centred cosine, to a's i-th b's i-th (or the order[i]-th)? 0..1; by chance 1 / n."""
    a, b = (F.normalize(centre(x.float()), dim=1) for x in (a, b))
    order = torch.arange(len(a)) if order is None else order
    return ((a @ b.T).argmax(1).cpu() == order).double().mean().item()


class StreamingCKA:
    """Linear CKA of two streams of states (Kornblith et al. 2019) from running sums, so that memory does not grow with the text:
    |B'A|^2 / (|A'A| |B'B|), Frobenius norms of the centred cross-products [D, D], in float64. Beside it, the same for shuffled pairs."""

    def __init__(self):
        self.n, self.sum_a, self.sum_b, self.aa, self.bb, self.ab = 0, 0, 0, 0, 0, [0] * (1 + SHUFFLES)

    def add(self, a, b, orders=()):
        """Add states a, b [n, D]; orders: SHUFFLES permutations [n], for the floor."""
        a, b = a.double(), b.double()
        self.n += len(a)
        self.sum_a, self.sum_b = self.sum_a + a.sum(0), self.sum_b + b.sum(0)
        self.aa, self.bb = self.aa + a.T @ a, self.bb + b.T @ b
        for i, order in enumerate([slice(None), *orders]):
            self.ab[i] = self.ab[i] + a.T @ b[order]

    def value(self, shuffle=None):
        """CKA of the pairs as they are, or of the shuffle-th shuffled ones."""
        off = lambda product, x, y: (product - torch.outer(x, y) / self.n).norm()  # cross-product of the centred states, from that of the raw
        ab = off(self.ab[0 if shuffle is None else 1 + shuffle], self.sum_a, self.sum_b)
        return (ab**2 / (off(self.aa, self.sum_a, self.sum_a) * off(self.bb, self.sum_b, self.sum_b))).item()


def shuffled(positions, rng):
    """A permutation [n] that pairs each of n states with another of the same position in its window, so that a model which knows positions
    and nothing else is at the floor. positions int64 [n]."""
    mixed = (positions + torch.rand(len(positions), generator=rng, dtype=torch.float64)).argsort()  # by position, in random order within one
    groups, following = positions[mixed], torch.arange(1, len(positions) + 1)
    following = torch.where(following < torch.searchsorted(groups, groups, right=True), following, torch.searchsorted(groups, groups))  # the last: the first
    order = torch.empty_like(mixed)
    order[mixed] = mixed[following]
    return order


def against_floor(value, floors):
    """{"value", "floor": the mean of the shuffled ones, "above": whether the value is clearly above it}."""
    floor, spread = float(np.mean(floors)), float(np.std(floors, ddof=1))
    return {"value": float(value), "floor": floor, "above": bool(value - floor > max(MARGIN, 5 * spread))}


# ---------------------------------------------------------------------------------------------------------------------
# What is read off a model

def kept_windows(n, T):
    """Which of n windows of T tokens have their states kept: about STATES of them, from all over the text."""
    return np.unique(np.linspace(0, n - 1, -(-STATES // T)).astype(int))


@torch.no_grad()
def layer_similarity(model, base, row_a, row_b, device, say=lambda share: None):
    """Each measure of MEASURES against its floor, for each layer, of one text in two languages: [{measure: against_floor(...)}].

    base [n, T]: ids of the text as tokenised; row_a, row_b [V]: the ids of the two languages. Positions of anchor points are left out: their
    states are alike by construction."""
    exact = "cpu" if device.type == "mps" else device  # MPS has no float64
    n_layers, T = len(model.blocks) + 1, base.shape[1]
    ckas, kept = [StreamingCKA() for _ in range(n_layers)], [([], []) for _ in range(n_layers)]
    rng, per_batch = torch.Generator().manual_seed(0), max(1, 4096 // T)
    whole = kept_windows(len(base), T)
    cloned = torch.from_numpy(clone.cloned_positions(base, row_a, row_b)).to(exact)
    for i in range(0, len(base), per_batch):
        streams = [[x.to(exact) for x in model.residual_stream(torch.from_numpy(row[base[i:i + per_batch]]).to(device))] for row in (row_a, row_b)]
        mask = cloned[i:i + per_batch]
        orders = [shuffled(mask.nonzero()[:, 1].cpu(), rng).to(exact) for _ in range(SHUFFLES)]
        chosen = [j for j in range(len(streams[0][0])) if i + j in whole]
        for layer, (a, b) in enumerate(zip(*streams)):
            ckas[layer].add(a[mask], b[mask], orders)
            for states, x in zip(kept[layer], (a, b)):
                states.append(x[chosen][mask[chosen]].float())
        say(min(1, (i + per_batch) / len(base)))
    result, positions = [], cloned[whole].nonzero()[:, 1].cpu()
    for cka, states in zip(ckas, kept):
        a, b = (torch.cat(s) for s in states)
        ca, cb = centre(a), centre(b)
        shuffles = [shuffled(positions, rng) for _ in range(SHUFFLES)]
        result.append({
            "cosine": against_floor(cosine(a, b), [cosine(a, b[s]) for s in shuffles]),
            "centred": against_floor(cosine(ca, cb), [cosine(ca, cb[s]) for s in shuffles]),
            "cka": against_floor(cka.value(), [cka.value(i) for i in range(SHUFFLES)]),
            "there": against_floor(retrieval_at_1(a, b), [retrieval_at_1(a, b, s) for s in shuffles]),
            "back": against_floor(retrieval_at_1(b, a), [retrieval_at_1(b, a, s) for s in shuffles])})
    return result


def gradient_similarity(model, base, row_a, row_b, device):
    """Cosine of the loss gradients of two languages, per parameter tensor: {name: {"same": on one text, "other": on two halves of it,
    "within": of one language on the two halves}}. qkv counts as three tensors; an embedding's rows are compared with their clones'."""
    def gradients(row, part):
        model.zero_grad()
        for ids in torch.from_numpy(row[part]).to(device).split(max(1, 8192 // base.shape[1])):
            model(ids).sum().backward()
        mine = torch.from_numpy(row).to(device)
        grads = {}
        for name, p in model.named_parameters():
            if name.endswith("embedding"):
                grads[name] = p.grad[mine].clone()
            elif name.endswith("qkv"):
                grads |= {name.removesuffix("qkv") + kind: g.clone() for kind, g in zip("qkv", p.grad.chunk(3))}
            else:
                grads[name] = p.grad.clone()
        return grads

    halves = np.array_split(base, 2)
    a1, a2, b1, b2 = (gradients(row, half) for row in (row_a, row_b) for half in halves)
    model.zero_grad()
    cos = lambda x, y: F.cosine_similarity(x.cpu().double().flatten(), y.cpu().double().flatten(), dim=0).item()
    return {name: {"same": (cos(a1[name], b1[name]) + cos(a2[name], b2[name])) / 2, "other": (cos(a1[name], b2[name]) + cos(a2[name], b1[name])) / 2,
                   "within": (cos(a1[name], a2[name]) + cos(b1[name], b2[name])) / 2} for name in a1}


@torch.no_grad()
def embedding_similarity(model, row_a, row_b, frequency, bins=8):
    """Cosine of each token's embedding with its clone's, per matrix ("input" and "output", or "tied"): the mean over tokens, against pairs
    shuffled among tokens of about the same frequency, since rare ones resemble one another; over all pairs; and by frequency in the text,
    rarest first, in bins of as many tokens each. Anchor points and tokens never seen are left out."""
    cloned = np.flatnonzero((row_a != row_b) & (frequency > 0))
    if len(cloned) < 2 * bins:
        return {}
    parts = np.array_split(cloned[np.argsort(frequency[cloned], kind="stable")], bins)
    matrices = {"tied": model.embedding} if model.unembedding is model.embedding else {"input": model.embedding, "output": model.unembedding}
    result, rng = {}, np.random.default_rng(0)
    for side, weight in matrices.items():
        unit = F.normalize(weight.cpu().double(), dim=1).numpy()
        shuffled = [np.concatenate([(unit[row_a[p]] * unit[row_b[rng.permutation(p)]]).sum(1) for p in parts]).mean() for _ in range(SHUFFLES)]
        cosines = [(unit[row_a[p]] * unit[row_b[p]]).sum(1) for p in parts]
        every = lambda p: float(unit[row_a[p]].mean(0) @ unit[row_b[p]].mean(0))  # the mean over all pairs
        result[side] = against_floor(np.concatenate(cosines).mean(), shuffled) | {"all_pairs": every(cloned), "by_frequency": [
            {"tokens_per_million": float(1e6 * frequency[p].mean() / frequency.sum()), "cosine": float(c.mean()), "floor": every(p)}
            for p, c in zip(parts, cosines)]}
    return result


def measure(folder, config, corpus, table, model, device):
    """All of align.json: for EN1 with each other language, and the mean over them."""
    text, T = data.tokens(corpus, "test"), config["context"]
    n = min((len(text) - 1) // T, max(2, TOKENS // T))
    if n < 2:
        raise BadInput(f"the test split of {config['corpus']} has {len(text)} tokens, fewer than two windows of {folder} ({2 * T + 1})")
    base = clone.consecutive(text, T, n)
    frequency = np.zeros(config["vocab_size"])
    train = data.tokens(corpus, "train")
    for i in range(0, len(train), 1 << 24):
        frequency += np.bincount(train[i:i + (1 << 24)], minlength=len(frequency))
    pairs = {}
    for l in range(1, len(table)):
        say = lambda share: progress(f"{folder}: EN1 and EN{l + 1} of {len(table)}, {share:.0%} of {n * T:,} tokens read")
        pairs[f"EN1-EN{l + 1}"] = {
            "layers": layer_similarity(model, base[:, :-1], table[0], table[l], device, say),
            "gradients": gradient_similarity(model, base, table[0], table[l], device),
            "embeddings": embedding_similarity(model, table[0], table[l], frequency)}
    progress("")
    states = int(clone.cloned_positions(base[:, :-1], table[0], table[1])[kept_windows(n, T)].sum())
    return {"checkpoint": data.file_sha256(folder / "model.pt"), "tokens": n * T, "states": states, "pairs": pairs}


def block_mean(gradients, kind):
    """Mean gradient cosine over the parameter tensors of the blocks, as the paper gives it."""
    return float(np.mean([g[kind] for name, g in gradients.items() if name.startswith("blocks.")]))


def over_pairs(entries):
    """The mean of several {"value", "floor", "above"}; above where most of them are."""
    return {"value": float(np.mean([e["value"] for e in entries])), "floor": float(np.mean([e["floor"] for e in entries])),
            "above": sum(e["above"] for e in entries) * 2 > len(entries)}


def summary(result):
    """The mean over language pairs: {"layers": [{measure: ...}], "gradients": {tensor: ...}, "embeddings": {"input": ..., "output": ...}}."""
    pairs = list(result["pairs"].values())
    layers = [{m: over_pairs([p["layers"][i][m] for p in pairs]) for m in MEASURES} for i in range(len(pairs[0]["layers"]))]
    gradients = {name: {k: float(np.mean([p["gradients"][name][k] for p in pairs])) for k in g} for name, g in pairs[0]["gradients"].items()}
    embeddings = {side: over_pairs([p["embeddings"][side] for p in pairs]) | {
        "by_frequency": [{k: float(np.mean([p["embeddings"][side]["by_frequency"][i][k] for p in pairs])) for k in bin}
                         for i, bin in enumerate(pairs[0]["embeddings"][side]["by_frequency"])]} for side in pairs[0]["embeddings"]}
    return {"layers": layers, "gradients": gradients, "embeddings": embeddings}


# ---------------------------------------------------------------------------------------------------------------------
# What is shown

def print_table(folder, result):
    s, cell = summary(result), lambda e: f"{e['value']:.3f} {e['floor']:6.3f} {'*' if e['above'] else ' '}"
    print(f"\n{folder}: EN1 with {', '.join(pair.split('-')[1] for pair in result['pairs'])}; each measure beside its floor (shuffled pairs), * where it is clearly above it")
    print("layer   " + "".join(f"{head:18}" for head in ("cosine", "centred cosine", "linear CKA", "retrieval@1 ->", "retrieval@1 <-")))
    for i, layer in enumerate(s["layers"]):
        print(f"{i:5}   " + "".join(f"{cell(layer[m]):18}" for m in MEASURES))
    print("gradient cosine, mean over the tensors of the blocks: " + ", ".join(
        f"{words} {block_mean(s['gradients'], k):.3f}" for k, words in (("same", "EN1 and other on one text"), ("other", "on two texts"), ("within", "one language on two texts"))))
    for side, e in s["embeddings"].items():
        print(f"{side} embedding and its clone's: cosine {cell(e)}")
    print("above the floor: " + ("; ".join(
        f"{name} in layer{'s' * (len(ls) > 1)} {', '.join(map(str, ls))}" for m, name in MEASURES.items() if (ls := [i for i, layer in enumerate(s["layers"]) if layer[m]["above"]])) or "nothing"))


def draw_gradients(fig, ax, gradients):
    """Heat map of the gradient cosine of the two languages on one text: layer by kind of parameter."""
    kinds = ["norm1.weight", "norm1.bias", "q", "k", "v", "proj", "norm2.weight", "norm2.bias", "up", "down"]
    n_layer = sum(name.endswith(".up") for name in gradients)
    grid = np.array([[gradients[f"blocks.{i}.{k}"]["same"] for k in kinds] for i in range(n_layer)])
    image = ax.imshow(grid, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    ax.set(xticks=range(len(kinds)), yticks=range(n_layer), yticklabels=range(1, n_layer + 1), ylabel="layer",
           title="Cosine of the two languages' gradients\n(1: what helps one helps the other)")
    ax.set_xticklabels(kinds, rotation=45, ha="right")
    for (i, j), v in np.ndenumerate(grid if n_layer <= 8 else np.empty((0, 0))):
        ax.text(j, i, f"{v:.2f}", ha="center", va="center", fontsize=7, color="white" if abs(v) > 0.6 else "black")
    fig.colorbar(image, ax=ax)


def draw_one(folder, result):
    """align.png: one page a reader understands without the code."""
    s = summary(result)

    def draw(fig, ax):
        fig.suptitle(f"{folder.name}: are EN1 and {', '.join(p.split('-')[1] for p in result['pairs'])} represented alike?")
        for i, (m, name) in enumerate(MEASURES.items()):
            for kind, style in (("value", "o-"), ("floor", ":")):
                ax[0, 0].plot([layer[m][kind] for layer in s["layers"]], style, color=clone.COLOURS[i], ms=4, label=name if kind == "value" else None)
        ax[0, 0].legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
        runs.tidy(ax[0, 0], xlabel="layer (0: the embedding)", ylabel="similarity", ylim=(None, 1.05), title="The same text in two languages\n(dotted: shuffled pairs, the floor)")
        draw_gradients(fig, ax[0, 1], s["gradients"])
        for colour, (side, e) in zip(SIDE_COLOURS, s["embeddings"].items()):
            for kind, style in (("cosine", "o-"), ("floor", ":")):
                ax[1, 0].plot([b["tokens_per_million"] for b in e["by_frequency"]], [b[kind] for b in e["by_frequency"]], style, color=colour,
                              label=f"{side} embedding" if kind == "cosine" else None)
        ax[1, 0].set_xscale("log")
        ax[1, 0].legend(frameon=False, fontsize=8)
        runs.tidy(ax[1, 0], xlabel="how often the token occurs, per million tokens", ylabel="cosine",
             title="A token's embedding and its clone's\n(dotted: all pairs of about that frequency, the floor)")
        words = {"same": "EN1 and other,\none text", "other": "EN1 and other,\ntwo texts", "within": "one language,\ntwo texts"}
        bars = ax[1, 1].bar(list(words.values()), [block_mean(s["gradients"], k) for k in words], color=[clone.COLOURS[1], clone.COLOURS[5], "0.7"])
        ax[1, 1].bar_label(bars, fmt="%.2f")
        runs.tidy(ax[1, 1], ylabel="gradient cosine, mean over blocks", title="Do the languages pull the same way?\n(right: how alike two texts of one language are)")

    runs.figure(folder / "align.png", draw, 2, 2, (11, 8.5))


def draw_several(path, results):
    """One panel a measure: every run, layer by layer, with its floor."""
    colours = [(clone.COLOURS[2:] + clone.COLOURS[:2])[i % len(clone.COLOURS)] for i in range(len(results))]  # those of EN1 and EN2 last
    summaries = [summary(result) for _, result in results]

    def draw(fig, ax):
        fig.suptitle("Are the languages represented alike? Several runs, layer by layer (dotted: shuffled pairs, the floor)")
        for panel, (m, name) in zip(ax.flat, MEASURES.items()):
            for (folder, _), s, colour in zip(results, summaries, colours):
                panel.plot([layer[m]["value"] for layer in s["layers"]], "o-", ms=4, color=colour, label=folder.name)
                panel.plot([layer[m]["floor"] for layer in s["layers"]], ":", color=colour)
            runs.tidy(panel, title=name, xlabel="layer (0: the embedding)")
        bars = ax.flat[-1].barh([folder.name for folder, _ in results], [block_mean(s["gradients"], "same") for s in summaries], color=colours)
        ax.flat[-1].bar_label(bars, fmt="%.2f")
        ax.flat[-1].margins(x=0.15)
        runs.tidy(ax.flat[-1], title="gradient cosine, mean over blocks")
        ax.flat[0].legend(frameon=False, fontsize=8)

    runs.figure(path, draw, 2, 3, (14, 8))


def main():
    parser = Parser(__doc__)
    parser.positional("runs", "folders of finished runs of two languages or more, of one corpus")
    parser.option("--device", "auto", "cpu, cuda or mps; auto takes the best there is")
    args, _ = parser.parse()
    device, results = pick_device(args.device), []
    for folder, config, corpus, table, model in runs.open_runs(args.runs, device, minimum=2):
        result = measure(folder, config, corpus, table, model, device)
        write_json(folder / "align.json", result)
        draw_one(folder, result)
        print_table(folder, result)
        results.append((folder, result))
    print(f"\nalign.json and align.png are in each run's folder: look at {results[0][0] / 'align.png'}")
    if len(results) > 1:
        path = results[0][0].parent / "align.png"
        draw_several(path, results)
        print(f"{path} compares the runs")


if __name__ == "__main__":
    run(main)
