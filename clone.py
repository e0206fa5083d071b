"""Token stream -> batches in N languages that share grammar, statistics and meaning, but no token.

    python clone.py --ratio=0.9   # see what cloning is: one sentence in each language,
                                  # and a check of the batches

Language 0 (EN1) is the text as tokenised. In language l (EN2, EN3, ...) every token id is shifted
by l * V. Each sequence of a batch is in one language, drawn by the shares that --ratio gives; no
text is seen in two languages but by chance of another epoch (paper: Cloning).

Batches are a pure function of (seed, step): a permutation of the windows for each epoch, and a
counter-based random generator for the languages. So resuming needs no state, processes never
overlap, and two runs that differ in ratio only see the same text in the same order.
"""
from functools import lru_cache

import numpy as np

import data
from lib.bpe import encoder
from lib.cli import BadInput, Parser, run_main

# ------------------------------------------------------------------------------------------------
# The languages: how much of each, and the ids of their tokens

def parse_shares(ratio, languages):
    """A --ratio -> shares [N] that sum to 1. Raises BadInput.

    "0.9" is the share of the main language; the others have the rest, split evenly.
    "0.5,0.3,0.2" has a share for each.
    """
    values = numbers("--ratio", ratio)
    if any(not 0 <= v <= 1 for v in values):
        raise BadInput(f"--ratio={ratio}: a share lies between 0 and 1, e.g. --ratio=0.9")

    if len(values) == 1 and languages == 1 and values != [1]:
        raise BadInput(f"--ratio={ratio} leaves {1 - values[0]:g} to other languages, but "
                       "--languages=1: use --ratio=1 or --languages=2")
    if len(values) == 1 and languages > 1:
        others = languages - 1
        values += [(1 - values[0]) / others] * others

    if len(values) != languages:
        raise BadInput(f"--ratio={ratio} names {len(values)} shares for --languages={languages}: "
                       "give one share, or one each")
    if abs(sum(values) - 1) > 1e-6:
        raise BadInput(f"--ratio={ratio}: the shares sum to {sum(values):g}, expected 1")
    return np.array(values)


def parse_stages(ratio, languages, schedule=None):
    """The shares in each stage of a run [S, N] (paper: Language schedule). Raises BadInput.

    A schedule "0.9,0.1" cuts the run into two equal stages, with 90 % and then 10 % of the main
    language. Without one there is a single stage, as --ratio says.
    """
    if languages < 1:
        raise BadInput(f"--languages={languages}: expected 1 (monolingual) or more")
    stages = [ratio]
    if schedule:
        stages = [repr(v) for v in numbers("--schedule", schedule)]
    return np.stack([parse_shares(stage, languages) for stage in stages])


def numbers(option, text):
    """"0.9,0.1" -> [0.9, 0.1]. Raises BadInput."""
    try:
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise BadInput(f"{option}={text}: expected a number or several, comma-separated, "
                       f"e.g. {option}=0.9,0.1") from None


def clone_table(vocab_size, languages, eot, cloned=1.0, seed=0):
    """table[lang, id] -> the id of a token in a language, int64 [N, V].

    A cloned token is id + lang * V; end-of-text and the anchor points are the same in all. With
    V = 5, three languages, end-of-text 4 and token 1 an anchor point:

        the text    0  1  2  3  4
        EN1         0  1  2  3  4
        EN2         5  1  7  8  4
        EN3        10  1 12 13  4

    cloned: the fraction of the vocabulary that is cloned, drawn at random by seed; the rest are
    anchor points (paper: Partial cloning). A larger fraction clones all that a smaller one does,
    because it takes a longer piece of the same permutation. Raises BadInput.
    """
    if not 0 <= cloned <= 1:
        raise BadInput(f"--cloned={cloned} is no fraction of the vocabulary: "
                       "expected 0 to 1, e.g. --cloned=0.8")
    ordinary = np.delete(np.arange(vocab_size), eot)
    order = np.random.default_rng([seed, 2]).permutation(ordinary)
    chosen = order[:round(cloned * len(ordinary))]

    table = np.tile(np.arange(vocab_size), (languages, 1))
    table[:, chosen] += np.arange(languages)[:, None] * vocab_size
    return table


def cloned_positions(base, row_a, row_b):
    """Where a text base [...] has tokens whose ids differ between two languages, bool [...].

    row_a, row_b [V]: rows of clone_table. Everywhere, if no id differs.
    """
    differ = (row_a != row_b)[base]
    return differ if differ.any() else ~differ


# ------------------------------------------------------------------------------------------------
# The batches

def windows(ids, context):
    """How many windows of context + 1 ids an epoch has. Raises BadInput for none.

    One fewer may fit than the text holds, so that every epoch can start elsewhere.
    """
    n = (len(ids) - context) // (context + 1)
    if n < 1:
        raise BadInput(f"--context={context} needs {2 * context + 1} tokens, but the split has "
                       f"{len(ids)}: a shorter context or a larger corpus")
    return n


def consecutive(text, context, n):
    """The first n windows of a text as it stands: [n, T + 1].

    The last id of each is the first of the next, so that every token is a target once.
    """
    return np.stack([text[i * context:(i + 1) * context + 1] for i in range(n)])


def make_batches(ids, table, stages, context, batch_size, steps, seed, rank=0, world=1):
    """Return batch(step) -> (ids int64 [B / world, T + 1], lang int64 [B / world]).

    ids: a token stream; table [N, V]: clone_table; stages [S, N]: parse_stages. batch_size is that
    of all processes together; process `rank` of `world` gets its part of it.

    A worked example: ids 0 to 20, T = 3, so windows are 4 ids wide and an epoch has 4 of them. Say
    that epoch 0 starts at offset 2 and takes the windows in the order 3 1 0 2. With B = 2:

        step 0    windows 3 and 1    14 15 16 17    6  7  8  9
        step 1    windows 0 and 2     2  3  4  5   10 11 12 13
        step 2    epoch 1: another offset, another order

    Then each sequence is moved to its language: with V = 100, EN2 reads 114 115 116 117.
    """
    n, width = windows(ids, context), context + 1

    # shares [.9, .1] -> limits [.9, inf]: a number u in [0, 1) is in the first language if u < .9
    limits = stages.cumsum(1)
    limits[:, -1] = np.inf

    @lru_cache(2)
    def epoch(e):
        """The offset and the order of the windows in one epoch."""
        rng = np.random.Generator(np.random.Philox(key=[seed, e]))
        return int(rng.integers(width)), rng.permutation(n)

    def window_starts(step):
        """Where each sequence of the whole batch starts in the text, int64 [B]."""
        k = step * batch_size + np.arange(batch_size)  # the number of each sequence in the run
        starts = np.empty(batch_size, dtype=np.int64)
        for e in np.unique(k // n):  # a batch may span epochs
            offset, order = epoch(int(e))
            here = k // n == e
            starts[here] = offset + order[k[here] % n] * width
        return starts

    def languages(step):
        """The language of each sequence of the whole batch, int64 [B]."""
        philox = np.random.Philox(key=[seed, 1 << 32], counter=[0, 0, 0, step])
        uniform = np.random.Generator(philox).random(batch_size)
        stage = step * len(stages) // steps
        return np.searchsorted(limits[stage], uniform, side="right")

    def batch(step):
        mine = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        starts, lang = window_starts(step)[mine], languages(step)[mine]
        text = ids[starts[:, None] + np.arange(width)]  # [B / world, T + 1]
        return table[lang[:, None], text], lang

    return batch


# ------------------------------------------------------------------------------------------------
# The command: see what cloning is

def add_options(parser, cloned=1.0):
    """The options that say which languages there are, and how much of each."""
    parser.group("languages")
    parser.option("--ratio", None, "share of sequences in the main language, 0 to 1, the rest "
                  "split evenly; or one share a language, e.g. 0.5,0.3,0.2 (default: even shares)")
    parser.option("--languages", None, "N, how many languages: 1 is monolingual "
                  "(default: 2, or as many as --ratio names)", int)
    parser.option("--cloned", cloned, "fraction of the vocabulary that is cloned, 0 to 1; "
                  "the rest are anchor points, shared by all languages", float)
    parser.option("--schedule", None, "the main language's share in each of several equal stages "
                  "of the run, e.g. 0.9,0.1 (default: --ratio throughout)")


def resolve(args):
    """(ratio, languages) of a command line that may leave either out. Raises BadInput."""
    if args.schedule and args.ratio:
        raise BadInput("--schedule gives the shares of each stage: leave --ratio out")
    languages = args.languages
    if languages is None:
        named = len(args.ratio.split(",")) if args.ratio else 1
        languages = max(named, 2)
    even = ",".join([repr(1 / max(languages, 1))] * languages)
    return args.ratio or even, languages


def show_sentence(sentence, enc, table):
    """One sentence [n] in each language: its ids, and what they decode to."""
    V = table.shape[1]
    print("tokens      " + " ".join(f"{enc.decode([i]):>7}" for i in sentence))
    for lang, row in enumerate(table):
        ids = row[sentence]
        print(f"EN{lang + 1:<4} ids   " + " ".join(f"{i:7}" for i in ids)
              + f"   decoded: {enc.decode(list(ids % V))}")


def check_batches(batch, table, steps, seed):
    """Print that the languages of the first batches share statistics and no token.

    The measure is the total variation between a language's token distribution and EN1's, beside
    that of the same sequences with their languages dealt out again: what chance alone gives.
    """
    N, V = table.shape
    sequences = np.zeros(N)
    counts, by_chance = np.zeros((N, V)), np.zeros((N, V))
    rng = np.random.default_rng(seed)
    for step in range(steps):
        ids, lang = batch(step)
        for l, other, row in zip(lang, rng.permutation(lang), ids % V):  # % V undoes the shift
            count = np.bincount(row, minlength=V)
            counts[l] += count
            by_chance[other] += count
            sequences[l] += 1

    def distances(counts):
        frequencies = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        return np.abs(frequencies - frequencies[0]).sum(1) / 2

    print(f"{'':6}{'vocabulary':>12}{'share':>9}{'tokens':>12}{'distance':>10}{'by chance':>11}")
    measured, chance = distances(counts), distances(by_chance)
    for l, row in enumerate(table):
        print(f"EN{l + 1:<4}{len(np.unique(row)):12,}{sequences[l] / sequences.sum():9.1%}"
              f"{int(counts[l].sum()):12,}{measured[l]:10.3f}{chance[l]:11.3f}")


def main():
    parser = Parser(__doc__)
    add_options(parser)
    data.add_options(parser)
    parser.option("--seed", 0, "of the anchor points and the batches", int)
    args, _ = parser.parse()
    ratio, languages = resolve(args)
    stages = parse_stages(ratio, languages, args.schedule)
    corpus = data.prepare(args.corpus, args.vocab_size, args.tokenizer)
    enc, V = encoder(corpus), corpus["vocab_size"]
    table = clone_table(V, languages, corpus["eot"], args.cloned, args.seed)

    shared = np.count_nonzero(table[-1] == np.arange(V))
    print(f"\n{V:,} ids a language, {len(np.unique(table)):,} in all; "
          f"{shared:,} of them shared by all languages\n")
    show_sentence(enc.encode_ordinary("The main language helps the other one."), enc, table)

    steps, batch_size, context = 200, 64, 128
    text = data.tokens(corpus, "train")
    batch = make_batches(text, table, stages, context, batch_size, steps, args.seed)
    print(f"\nthe first {steps} batches of {batch_size} sequences, ids shifted back; distance: "
          "total variation between a language's token\ndistribution and EN1's, from 0 (the same) "
          "to 1 (no token in common), beside what two random samples of one text have")
    check_batches(batch, table, steps, args.seed)
    print(f"next: python train.py --ratio={args.ratio or 0.9}")


if __name__ == "__main__":
    run_main(main)
