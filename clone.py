"""Token stream -> batches in N languages that share grammar, statistics and meaning, but no token.

    python clone.py --ratio=0.9          # see what cloning is: one sentence in each language, and a check of the batches

Language 0 (EN1) is the text as tokenised. In language l (EN2, EN3, ...) every token id is shifted by l * V. Each sequence of a batch is in
one language, drawn by the shares that --ratio gives; no text is ever seen in two languages but by chance of another epoch (paper: Cloning).

Batches are a pure function of (seed, step): a permutation of the windows for each epoch, and a counter-based random generator for the
languages. So resuming needs no state, processes never overlap, and two runs that differ in ratio only see the same text in the same order.
"""
from functools import lru_cache

import numpy as np

import data
from bpe import encoder
from cli import BadInput, Parser, run

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]  # Okabe-Ito: a language keeps its colour


def parse_shares(ratio, languages):
    """"0.9" (of the main language, the rest split evenly) or "0.5,0.3,0.2" -> shares [N] that sum to 1. Raises BadInput."""
    values = numbers("--ratio", ratio)
    if any(not 0 <= v <= 1 for v in values):
        raise BadInput(f"--ratio={ratio}: a share lies between 0 and 1, e.g. --ratio=0.9")
    if len(values) == 1:
        if languages == 1 and values != [1]:
            raise BadInput(f"--ratio={ratio} leaves {1 - values[0]:g} to other languages, but --languages=1: use --ratio=1 or --languages=2")
        values += [(1 - values[0]) / (languages - 1)] * (languages - 1) if languages > 1 else []
    if len(values) != languages:
        raise BadInput(f"--ratio={ratio} names {len(values)} shares for --languages={languages}: give one share, or one each")
    if abs(sum(values) - 1) > 1e-6:
        raise BadInput(f"--ratio={ratio}: the shares sum to {sum(values):g}, expected 1")
    return np.array(values)


def parse_stages(ratio, languages, schedule=None):
    """Shares per stage [S, N]: the run is cut into S equal stages, one for each --schedule share of the main language (paper: Language schedule)."""
    if languages < 1:
        raise BadInput(f"--languages={languages}: expected 1 (monolingual) or more")
    stages = [repr(v) for v in numbers("--schedule", schedule)] if schedule else [ratio]
    return np.stack([parse_shares(stage, languages) for stage in stages])


def numbers(option, text):
    try:
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise BadInput(f"{option}={text}: expected a number or several, comma-separated, e.g. {option}=0.9,0.1")


def clone_table(vocab_size, languages, eot, cloned=1.0, seed=0):
    """table[lang, id] -> id in that language, int64 [N, V]: id + lang * V, but for end-of-text and for the anchor points.

    cloned: the fraction of the vocabulary that is cloned, drawn at random by seed; the rest are anchor points, one id in all languages
    (paper: Partial cloning). A larger fraction clones all that a smaller one does."""
    if not 0 <= cloned <= 1:
        raise BadInput(f"--cloned={cloned} is no fraction of the vocabulary: expected 0 to 1, e.g. --cloned=0.8")
    ordinary = np.delete(np.arange(vocab_size), eot)
    chosen = np.random.default_rng([seed, 2]).permutation(ordinary)[:round(cloned * len(ordinary))]
    table = np.tile(np.arange(vocab_size), (languages, 1))
    table[:, chosen] += np.arange(languages)[:, None] * vocab_size
    return table


def cloned_positions(base, row_a, row_b):
    """Where a text base [...] has tokens whose ids differ between two languages (rows of clone_table), bool [...]; everywhere if none do."""
    differ = (row_a != row_b)[base]
    return differ if differ.any() else ~differ


def windows(ids, context):
    """How many windows of context + 1 ids an epoch has: one fewer may fit than the text holds, so that every epoch can start elsewhere."""
    n = (len(ids) - context) // (context + 1)
    if n < 1:
        raise BadInput(f"--context={context} needs {2 * context + 1} tokens, but the split has {len(ids)}: a shorter context or a larger corpus")
    return n


def consecutive(text, context, n):
    """The first n windows of a text as it stands, each of context + 1 ids, the last of which is the next one's first: [n, T + 1]."""
    return np.stack([text[i * context:(i + 1) * context + 1] for i in range(n)])


def make_batches(ids, table, stages, context, batch_size, steps, seed, rank=0, world=1):
    """Return batch(step) -> (ids int64 [B / world, T + 1], lang int64 [B / world]), the part of one process in the batch of one step.

    ids: a token stream; table [N, V]: clone_table; stages [S, N]: parse_stages. Within an epoch windows do not overlap; each epoch starts at
    another offset and has another order. batch_size is that of all processes together."""
    n, width = windows(ids, context), context + 1
    limits = stages.cumsum(1)
    limits[:, -1] = np.inf

    @lru_cache(2)
    def epoch(e):
        rng = np.random.Generator(np.random.Philox(key=[seed, e]))
        return int(rng.integers(width)), rng.permutation(n)

    def batch(step):
        mine = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        starts = np.empty(batch_size, dtype=np.int64)
        k = step * batch_size + np.arange(batch_size)  # the index of each sequence in the whole run
        for e in np.unique(k // n):
            offset, order = epoch(int(e))
            here = k // n == e
            starts[here] = offset + order[k[here] % n] * width
        uniform = np.random.Generator(np.random.Philox(key=[seed, 1 << 32], counter=[0, 0, 0, step])).random(batch_size)
        lang = np.searchsorted(limits[step * len(stages) // steps], uniform, side="right")[mine]
        base = ids[starts[mine, None] + np.arange(width)]
        return table[lang[:, None], base], lang

    return batch


def main():
    parser = Parser(__doc__)
    data.add_options(parser)
    add_options(parser)
    parser.option("--seed", 0, "of the anchor points and the batches", int)
    args, _ = parser.parse()
    ratio, languages = resolve(args)
    stages = parse_stages(ratio, languages, args.schedule)
    corpus = data.prepare(args.corpus, args.vocab_size, args.tokenizer)
    enc, V = encoder(corpus), corpus["vocab_size"]
    table = clone_table(V, languages, corpus["eot"], args.cloned, args.seed)
    text = data.tokens(corpus, "train")

    sentence = enc.encode_ordinary("The main language helps the other one.")
    print(f"\n{V:,} ids a language, {table.max() + 1:,} in all; {np.count_nonzero(table[-1] == np.arange(V)):,} of them shared by all languages\n")
    print("tokens      " + " ".join(f"{enc.decode([i]):>7}" for i in sentence))
    for lang in range(languages):
        row = table[lang, sentence]
        print(f"EN{lang + 1:<4} ids   " + " ".join(f"{i:7}" for i in row) + f"   decoded: {enc.decode(list(row % V))}")

    steps, batch_size, context = 200, 64, 128
    batch = make_batches(text, table, stages, context, batch_size, steps, args.seed)
    counts, sequences = np.zeros((2, languages, V)), np.zeros(languages)
    rng = np.random.default_rng(args.seed)
    for step in range(steps):
        ids, lang = batch(step)
        for l, shuffled, row in zip(lang, rng.permutation(lang), ids % V):  # % V undoes the shift
            count = np.bincount(row, minlength=V)
            counts[0, l] += count
            counts[1, shuffled] += count  # the same, had the languages been dealt out again: what chance alone gives
            sequences[l] += 1
    frequencies = counts / np.maximum(counts.sum(2, keepdims=True), 1)
    distance = np.abs(frequencies - frequencies[:, :1]).sum(2) / 2
    print(f"\nthe first {steps} batches of {batch_size} sequences, ids shifted back; distance: total variation between a language's token")
    print("distribution and EN1's, from 0 (the same) to 1 (no token in common), beside what two random samples of one text have")
    print(f"{'':6}{'vocabulary':>12}{'share':>9}{'tokens':>12}{'distance':>10}{'by chance':>11}")
    for l in range(languages):
        print(f"EN{l + 1:<4}{len(np.unique(table[l])):12,}{sequences[l] / sequences.sum():9.1%}{int(counts[0, l].sum()):12,}"
              f"{distance[0, l]:10.3f}{distance[1, l]:11.3f}")
    print(f"next: python train.py --ratio={args.ratio or 0.9}")


def add_options(parser, cloned=1.0, default=""):
    """The options that say which languages there are and how much of each; default: what to say of a default that depends."""
    parser.option("--ratio", None, "share of sequences in the main language, 0 to 1, the rest split evenly; or one share a language, "
                  "e.g. 0.5,0.3,0.2 (default: even shares)")
    parser.option("--languages", None, "N, how many languages: 1 is monolingual (default: 2, or as many as --ratio names)", int)
    parser.option("--cloned", cloned, f"fraction of the vocabulary that is cloned, 0 to 1; the rest are anchor points, shared by all languages{default}", float)
    parser.option("--schedule", None, "the main language's share in each of several equal stages of the run, e.g. 0.9,0.1 (default: --ratio throughout)")


def resolve(args):
    """(ratio, languages) of a command line that may leave either out."""
    if args.schedule and args.ratio:
        raise BadInput("--schedule gives the shares of each stage: leave --ratio out")
    given = len(args.ratio.split(",")) if args.ratio else 1
    languages = args.languages if args.languages is not None else max(given, 2)
    return args.ratio or ",".join([repr(1 / max(languages, 1))] * languages), languages


if __name__ == "__main__":
    run(main)
