"""Do clones align by co-occurrence alone? word2vec on the stream that the transformer reads.

    python -m paper.word2vec --ratios=0.9 --seeds=1   # one mix
    python -m paper.word2vec --out=word2vec           # five mixes, three seeds: 6 minutes; and
                                                      # word2vec/word2vec.json and .png

Skip-gram with negative sampling (Mikolov et al. 2013; paper: Embedding similarity). The input
vector of a token is to tell the tokens around it, by their output vectors, from tokens drawn by
chance. A token and its clone stand in the same places of the same sort of text. But a sequence is
in one language, so they have no neighbour in common, and nothing says that they are alike. If their
vectors came out alike all the same, then the transformer's would be no wonder.

Two things are simpler than in the original: the optimiser is Adam, and frequent tokens are not left
out now and then.
"""
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import align
import clone
import data
from lib import plots
from lib.cli import BadInput, Parser, make_folder, progress, run_main, write_json
from model import SIZES
from paper.report import stat

D_MODEL = 64  # width of the vectors
WINDOW = 5  # neighbours on each side, at most
NEGATIVES = 5  # tokens drawn by chance for each neighbour
LEARNING_RATE = 0.01  # of Adam, falling to zero

# ------------------------------------------------------------------------------------------------
# Skip-gram with negative sampling

def neighbours(ids, reach):
    """The pairs of a token and a neighbour, (tokens [n], neighbours [n]), of sequences ids [B, T].

    reach [B, T]: how far each token looks, to both sides. Of one sequence,

        ids 5 6 7    reach 1 2 1    ->    5 6    6 5    6 7    7 6
    """
    tokens, others = [], []
    for distance in range(1, WINDOW + 1):
        left, right = ids[:, :-distance], ids[:, distance:]
        sees_right = reach[:, :-distance] >= distance
        sees_left = reach[:, distance:] >= distance
        tokens += [left[sees_right], right[sees_left]]
        others += [right[sees_right], left[sees_left]]
    return torch.cat(tokens), torch.cat(others)


def skip_gram_loss(inputs, outputs, tokens, others, chance):
    """Mean over pairs of -log s(in . out) - sum of log s(-in . out of each token drawn by chance).

    inputs, outputs [V, D]: the vectors; s: the sigmoid. tokens, others [n]: the pairs. chance
    [n, NEGATIVES]: the tokens drawn by chance.
    """
    vector = inputs[tokens]
    neighbour = (vector * outputs[others]).sum(1)
    stranger = (vector[:, None] * outputs[chance]).sum(2)
    return -(F.logsigmoid(neighbour) + F.logsigmoid(-stranger).sum(1)).mean()


def chances(frequency):
    """How often a token is drawn by chance [V]: as its frequency to the 3/4, up to a factor."""
    return torch.as_tensor(frequency, dtype=torch.float64) ** 0.75


def train(batch, frequency, d_model, steps, seed):
    """Learn vectors from batches of sequences, batch(step) -> ids [B, T]: (inputs, outputs) [V, D].

    frequency [V]: how often each id is read, up to a factor.
    """
    torch.manual_seed(seed)
    V = len(frequency)
    inputs = torch.nn.Parameter((torch.rand(V, d_model) - 0.5) / d_model)
    outputs = torch.nn.Parameter(torch.zeros(V, d_model))
    optimizer = torch.optim.Adam([inputs, outputs], lr=LEARNING_RATE)
    odds = chances(frequency)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        ids = batch(step)
        # a window of a size of its own for each token, so that near neighbours count more
        reach = torch.randint(1, WINDOW + 1, ids.shape)
        tokens, others = neighbours(ids, reach)
        chance = torch.multinomial(odds, len(tokens) * NEGATIVES, replacement=True)
        loss = skip_gram_loss(inputs, outputs, tokens, others, chance.view(-1, NEGATIVES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return inputs.detach(), outputs.detach()


# ------------------------------------------------------------------------------------------------
# On clones

def measure(corpus, ratio, steps, seed):
    """{"input": ..., "output": ...} of align.embedding_similarity, of vectors learned from two
    clones, from as many steps of nano's sequences.
    """
    text = data.tokens(corpus, "train")
    counts = data.count_tokens(text, corpus["vocab_size"])
    table = clone.clone_table(counts, languages=2)
    stages = clone.parse_stages(str(ratio), 2)
    nano = SIZES["nano"]
    clone_batch = clone.make_batches([text, text], table, stages, nano["context"],
                                     nano["batch_size"], steps, seed)
    frequency = (stages[0][:, None] * counts).ravel()  # EN1's ids, then EN2's

    def batch(step):
        ids, _ = clone_batch(step)
        return torch.from_numpy(ids)

    inputs, outputs = train(batch, frequency, D_MODEL, steps, seed)
    vectors = SimpleNamespace(embedding=inputs, unembedding=outputs)
    return align.embedding_similarity(vectors, *table, counts)


def table_line(ratio, results):
    """A line of the table: the mean over seeds, and the standard deviation if there are several."""
    cells = [f"{ratio:<7}"]
    for side in ("input", "output"):
        for kind in ("value", "floor", "all_pairs"):
            values = [result[side][kind] for result in results]
            cells.append(stat(values, ".3f").rjust(16))
    return "".join(cells)


def parse_ratios(text):
    """"0.9,0.5" -> [0.9, 0.5]. Raises BadInput."""
    ratios = clone.numbers("--ratios", text)
    if any(not 0 < ratio < 1 for ratio in ratios):
        raise BadInput(f"--ratios={text}: EN1's share lies between 0 and 1, e.g. --ratios=0.9,0.5")
    return ratios


def main():
    parser = Parser(__doc__)
    nano = SIZES["nano"]
    parser.option("--corpus", "docs", "one text, as in train.py")
    parser.option("--vocab_size", nano["vocab_size"], "V, ids of one language", int)
    parser.option("--ratios", "0.95,0.9,0.8,0.7,0.5", "EN1's share in each mix, comma-separated")
    parser.option("--seeds", 3, "how many seeds, 0, 1, ...", int)
    parser.option("--steps", 500, f"steps of {nano['batch_size']} sequences", int)
    parser.option("--out", None, "a folder for word2vec.json and word2vec.png (default: none)")
    args, _ = parser.parse()
    ratios = parse_ratios(args.ratios)
    if args.seeds < 1 or args.steps < 1:
        raise BadInput(f"--seeds={args.seeds} --steps={args.steps}: expected 1 or more of each")
    if args.out:
        make_folder("--out", args.out)
    corpus = data.prepare(args.corpus, args.vocab_size)

    print("cosine of a token's vector and its clone's; floor: tokens about as frequent; all: the "
          "mean of all pairs")
    head = "".join(f"{side} {kind}".rjust(16) for side in ("input", "output")
                   for kind in ("clone", "floor", "all"))
    print(f"EN1's  {head}")
    found = {}
    for ratio in ratios:
        found[ratio] = []
        for seed in range(args.seeds):
            progress(f"ratio {ratio}, seed {seed}")
            found[ratio].append(measure(corpus, ratio, args.steps, seed))
        progress("")
        print(table_line(ratio, found[ratio]), flush=True)

    if args.out:
        write_json(f"{args.out}/word2vec.json", {
            "corpus": args.corpus,
            "sha256": corpus["sha256"],
            "vocab_size": corpus["vocab_size"],
            "d_model": D_MODEL,
            "steps": args.steps,
            "ratios": {str(ratio): results for ratio, results in found.items()},
        })
        plots.word2vec(f"{args.out}/word2vec.png", found)
        print(f"{args.out}/word2vec.png shows it")


if __name__ == "__main__":
    run_main(main)
