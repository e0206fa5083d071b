"""Token stream -> batches in N languages that share grammar, statistics and meaning, but no token.

    python clone.py --ratio=0.9   # see what cloning is: one sentence in each language,
                                  # and a check of the batches

Language 0 (EN1) is the text as tokenised. In language l (EN2, EN3, ...) every token id is shifted
by l * V. The text is cut into windows of context + 1 tokens, and each window is in one language,
drawn by the shares that --ratio gives (paper: Cloning). It is drawn once for the whole run: in a
later epoch the window is in the same language again, so that no text is read in two.

Batches are a pure function of (seed, step): so resuming needs no state, processes never overlap,
and two runs that differ in ratio only see the same text in the same order.
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


def clone_table(counts, languages, cloned=1.0, seed=0):
    """table[lang, id] -> the id of a token in a language, int64 [N, V].

    A cloned token is id + lang * V; an anchor point has one id in all languages. With V = 5, three
    languages, and token 1 an anchor point:

        the text    0  1  2  3  4
        EN1         0  1  2  3  4
        EN2         5  1  7  8  9
        EN3        10  1 12 13 14

    counts [V]: how often each token occurs in the training text. cloned: the fraction of the
    vocabulary that is cloned; the rest are anchor points, drawn at random by seed among the tokens
    that occur (paper: Partial cloning). With 1, end-of-text is cloned too, and the languages share
    nothing. A larger fraction clones all that a smaller one does, because it takes a longer piece
    of the same permutation.
    """
    V = len(counts)
    occurring = np.flatnonzero(counts)
    order = np.random.default_rng([seed, 2]).permutation(occurring)
    anchors = order[round(cloned * len(order)):]

    table = np.arange(V) + np.arange(languages)[:, None] * V
    table[:, anchors] = anchors
    return table


def anchor_points(table, counts):
    """(how many tokens of the vocabulary are anchor points, their share of the running text).

    With one language there are none.
    """
    if len(table) == 1:
        return 0, 0.0
    shared = table[0] == table[1]
    return int(shared.sum()), float(counts[shared].sum() / counts.sum())


def cloned_positions(base, row_a, row_b):
    """Where a text base [...] has tokens whose ids differ between two languages, bool [...].

    row_a, row_b [V]: rows of clone_table. Everywhere, if no id differs.
    """
    differ = (row_a != row_b)[base]
    return differ if differ.any() else ~differ


# ------------------------------------------------------------------------------------------------
# The batches

def windows(ids, context):
    """How many windows of context + 1 ids a text has, side by side. Raises BadInput for none."""
    n = len(ids) // (context + 1)
    if n < 1:
        raise BadInput(f"--context={context} needs {context + 1} tokens, but the split has "
                       f"{len(ids)}: a shorter context or a larger corpus")
    return n


def consecutive(text, context, n):
    """The first n windows of a text as it stands: [n, T + 1].

    The last id of each is the first of the next, so that every token is a target once.
    """
    return np.stack([text[i * context:(i + 1) * context + 1] for i in range(n)])


def make_order(n, seed):
    """Return order(k) -> the windows [...] that the k-th sequences [...] of a run are, of n.

    Each epoch reads every window once, in an order of its own.
    """
    @lru_cache(2)
    def permutation(epoch):
        return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)

    def order(k):
        window = np.empty_like(k)
        for epoch in np.unique(k // n):  # a batch may span epochs
            here = k // n == epoch
            window[here] = permutation(int(epoch))[k[here] % n]
        return window

    return order


def make_languages(n, stages, steps, seed):
    """Return languages(window, step) -> the language of each of n windows [...] at a step.

    One number u in [0, 1) is drawn for each window and the whole run. Shares of [.9, .1] mean
    EN1 for u < .9, else EN2. So a window changes its language only where a schedule changes the
    shares, and a window that is in EN1 at 50/50 is in EN1 at 90/10 too.
    """
    u = np.random.default_rng([seed, 3]).random(n)
    limits = stages.cumsum(1)
    limits[:, -1] = np.inf  # the shares may sum to a hair less than 1

    def languages(window, step):
        stage = step * len(stages) // steps
        return np.searchsorted(limits[stage], u[window], side="right")

    return languages


def make_batches(ids, table, stages, context, batch_size, steps, seed, rank=0, world=1):
    """Return batch(step) -> (ids int64 [B / world, T + 1], lang int64 [B / world]).

    ids: a token stream; table [N, V]: clone_table; stages [S, N]: parse_stages. batch_size is that
    of all processes together; process `rank` of `world` gets its part of it.

    A worked example: ids 0 to 15 and T = 3, so there are four windows of 4 ids. Say that epoch 0
    takes them in the order 3 1 0 2, and that window 1 is in EN2. With V = 100 and B = 2:

        step 0    windows 3 and 1    12 13 14 15    104 105 106 107
        step 1    windows 0 and 2     0  1  2  3      8   9  10  11
        step 2    epoch 1: the same windows in another order, window 1 in EN2 again
    """
    n, width = windows(ids, context), context + 1
    order, languages = make_order(n, seed), make_languages(n, stages, steps, seed)
    mine = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def batch(step):
        k = step * batch_size + np.arange(batch_size)  # the number of each sequence in the run
        window = order(k[mine])
        lang = languages(window, step)
        text = ids[window[:, None] * width + np.arange(width)]  # [B / world, T + 1]
        return table[lang[:, None], text], lang

    return batch


def read_in_two_languages(n, stages, batch_size, steps, seed):
    """How many of n windows a run reads in more than one language: some, if a schedule has a
    second epoch; none without a schedule.
    """
    if len(stages) == 1 or steps * batch_size <= n:
        return 0
    order, languages = make_order(n, seed), make_languages(n, stages, steps, seed)
    first, twice = np.full(n, -1), np.zeros(n, dtype=bool)
    for step in range(steps):
        window = np.unique(order(step * batch_size + np.arange(batch_size)))
        lang = languages(window, step)
        twice[window] |= (first[window] >= 0) & (first[window] != lang)
        first[window] = np.where(first[window] < 0, lang, first[window])
    return int(twice.sum())


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
    parser.option("--anchor_seed", 0, "of the choice of anchor points, whatever --seed is", int)
    parser.option("--schedule", None, "the main language's share in each of several equal stages "
                  "of the run, e.g. 0.9,0.1 (default: --ratio throughout)")


def resolve(args):
    """(ratio, languages) of a command line that may leave either out. Raises BadInput."""
    if args.cloned is not None and not 0 <= args.cloned <= 1:
        raise BadInput(f"--cloned={args.cloned} is no fraction of the vocabulary: "
                       "expected 0 to 1, e.g. --cloned=0.8")
    if args.anchor_seed < 0:
        raise BadInput(f"--anchor_seed={args.anchor_seed}: expected 0 or more")
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
    parser.option("--seed", 0, "of the batches", int)
    args, given = parser.parse()
    ratio, languages = resolve(args)
    stages = parse_stages(ratio, languages, args.schedule)
    corpus = data.prepare(args.corpus, args.vocab_size, args.tokenizer)
    enc, V = encoder(corpus), corpus["vocab_size"]
    text = data.tokens(corpus, "train")
    counts = data.count_tokens(text, V)
    table = clone_table(counts, languages, args.cloned, args.anchor_seed)

    shared, share = anchor_points(table, counts)
    print(f"\n{V:,} ids a language, {len(np.unique(table)):,} in all; {shared:,} of them are "
          f"anchor points, shared by all languages: {share:.1%} of the running text\n")
    show_sentence(enc.encode_ordinary("The main language helps the other one."), enc, table)

    steps, batch_size, context = 200, 64, 128
    batch = make_batches(text, table, stages, context, batch_size, steps, args.seed)
    print(f"\nthe first {steps} batches of {batch_size} sequences, ids shifted back; distance: "
          "total variation between a language's token\ndistribution and EN1's, from 0 (the same) "
          "to 1 (no token in common), beside what two random samples of one text have")
    check_batches(batch, table, steps, args.seed)
    options = [f"--{key}={value}" for key, value in given.items()]
    if not {"ratio", "schedule"} & given.keys():
        options.insert(0, "--ratio=0.9")
    print(f"next: python train.py {' '.join(options)}")


if __name__ == "__main__":
    run_main(main)
