"""What a language is, and batches in N languages: token streams -> ids of the model.

    python clone.py --ratio=0.9   # see what cloning is: one sentence in each language,
                                  # and a check of the batches
    python clone.py --corpus=eltec-eng --corpus=eltec-fra --vocabulary=anchored   # real languages

A language is a token stream, and the ids that its tokens have in the model. Clones share grammar,
statistics and meaning, but no token: all have one stream, and language l (EN2 for l = 1) has every
id shifted by l * V (paper: Cloning), and with --clone=permute permuted at random after that. Real
languages have a stream and a tokeniser each.

A stream is cut into windows of context + 1 tokens, and --ratio gives the languages' shares of them.
Which clone a window is read in is drawn once for the whole run: in a later epoch it is in the same
language again, so that no text is read in two. For real languages it is drawn for each sequence of
the run which stream it reads on, and each stream has its own epochs.

Batches are a pure function of (seed, step): so resuming needs no state, and processes never
overlap. Two runs that differ in ratio only see the same text in the same order: of clones all of
it, of real languages each stream, the one further and the other less far.
"""
import re
import shlex
from functools import lru_cache

import numpy as np

import data
from lib.bpe import encoder, token_bytes
from lib.cli import BadInput, Parser, as_options, run_main

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


def clone_table(counts, languages, cloned=1.0, seed=0, permuted=False):
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

    permuted: the shifted ids of each language but EN1 are in a random order, by the same seed. All
    rows of a new model are drawn alike, so nothing should depend on it. The example again:

        EN2         7  1  6  9  5
        EN3        11  1 13 14 12
    """
    V = len(counts)
    occurring = np.flatnonzero(counts)
    order = np.random.default_rng([seed, 2]).permutation(occurring)
    anchors = order[round(cloned * len(order)):]

    table = np.arange(V) + np.arange(languages)[:, None] * V
    if permuted:
        for l in range(1, languages):
            table[l] = np.random.default_rng([seed, 6, l]).permutation(table[l])
    table[:, anchors] = anchors
    return table


def vocabulary_table(vocabularies, anchored):
    """The same table for real languages, each with a tokeniser of its own, int64 [N, V].

    vocabularies: for each language, what its V tokens spell, as bytes. Disjoint: token i of
    language l is i + l * V. Anchored: a token that an earlier language spells the same, byte for
    byte, has the id that it has there (paper: English-French). With V = 3:

                                    disjoint    anchored
        eng   "the" "a" "on"         0  1  2     0  1  2
        fra   "le"  "a" "on"         3  4  5     3  1  2
    """
    V = len(vocabularies[0])
    table = np.arange(V) + np.arange(len(vocabularies))[:, None] * V
    if anchored:
        known = {}  # what a token spells -> its id in the model
        for row, vocabulary in zip(table, vocabularies):
            for i, spelling in enumerate(vocabulary):
                row[i] = known.setdefault(spelling, row[i])
    return table


def look_up(table):
    """The way back from a table [N, V]: of each id of the model, which language's token it is.

    (lang, token), int64 [N * V] both. An anchor point is the first language's. An id that none has,
    because an anchor point stands for it, counts as the token that a shift would put there.
    """
    N, V = table.shape
    lang, token = np.divmod(np.arange(N * V), V)
    for l in reversed(range(N)):
        lang[table[l]], token[table[l]] = l, np.arange(V)
    return lang, token


def spell(ids, encoders, table):
    """The text of ids of the model [n]; each is a token of a language's tokeniser, as look_up says.

    encoders [N]: one a language; those of clones are one and the same. table [N, V].
    """
    lang, token = look_up(table)
    pieces = []
    for i in ids:
        try:
            pieces.append(encoders[lang[i]].decode_single_token_bytes(int(token[i])))
        except KeyError:  # an id that stands for nothing: some of tiktoken's own have such
            pieces.append("\N{REPLACEMENT CHARACTER}".encode())
    return b"".join(pieces).decode(errors="replace")


def anchor_points(table, counts):
    """(how many tokens of the vocabulary are anchor points, their share of the running text).

    With one language there are none.
    """
    if len(table) == 1:
        return 0, 0.0
    shared = table[0] == table[1]
    return int(shared.sum()), float(counts[shared].sum() / counts.sum())


def shared_tokens(table, counts):
    """The same, of real languages: for each one, (how many of its tokens another has too, their
    share of its running text). table [N, V]: vocabulary_table; counts [N, V].
    """
    ids, times = np.unique(table, return_counts=True)
    several = ids[times > 1]
    result = []
    for row, count in zip(table, counts):
        mine = np.isin(row, several)
        result.append((int(mine.sum()), float(count[mine].sum() / count.sum())))
    return result


def cloned_positions(base, row_a, row_b):
    """Where a text base [...] has tokens whose ids differ between two languages, bool [...].

    row_a, row_b [V]: rows of clone_table. Everywhere, if no id differs.
    """
    differ = (row_a != row_b)[base]
    return differ if differ.any() else ~differ


# ------------------------------------------------------------------------------------------------
# The languages: their names

ENDINGS = {"txt", "xml", "zip", "gz", "xz"}  # of files, which are not a language's name


def language_names(corpus, languages):
    """What the languages of a config are called. Raises BadInput if two would have one name.

    corpus: one, whose clones are EN1, EN2 ...; or a list of them, each "eng=PATH" or named after
    its path: language_names(["ELTeC-eng-1.0.1.zip", "fr=novels/"], 2) -> ["eng", "fr"].
    """
    if isinstance(corpus, str):
        name = data.split_name(corpus)[0] or "EN"
        return [f"{name}{l + 1}" for l in range(languages)]

    names = [data.split_name(c)[0] or short_name(c) for c in corpus]
    for name in names:
        if names.count(name) > 1:
            again = " ".join(f"--corpus=NAME={data.split_name(c)[1]}" for c in corpus)
            raise BadInput(f"two languages would be called {name}: give each a name of its own of "
                           f"two or three letters, {again}")
    return names


def short_name(corpus):
    """A name of two or three letters, from a corpus's: its first word that is as short, else the
    start of its first word. "eltec-eng" -> "eng", "docs" -> "doc", "2020/" -> "l".
    """
    words = [w for w in re.findall("[a-z]{2,}", data.label(corpus).lower()) if w not in ENDINGS]
    for word in words:
        if len(word) in (2, 3):
            return word
    return words[0][:3] if words else "l"


# ------------------------------------------------------------------------------------------------
# The languages: their text and their table

def open_corpora(corpus, languages, vocab_size, tokenizer, parallel=None):
    """The prepared corpus of each language [N], a manifest of data.prepare: clones have the same.

    corpus: one, or a list. Raises BadInput.
    """
    if isinstance(corpus, str):
        return [data.prepare(corpus, vocab_size, tokenizer, parallel)] * languages
    return [data.prepare(c, vocab_size, tokenizer, parallel) for c in corpus]


def open_texts(corpora, split):
    """The token stream of each language [N] in a split. Languages of one text have one stream:
    the same object, as clones have, and two corpora that are the same to the last token.
    """
    streams = {}  # by the hash of the file
    texts = []
    for corpus in corpora:
        digest = corpus["files"][f"{split}.bin"]
        if digest not in streams:
            streams[digest] = data.tokens(corpus, split)
        texts.append(streams[digest])
    return texts


def make_table(corpora, corpus, cloned, anchor_seed, vocabulary, mask=False, permuted=False,
               counts=None):
    """The table [N, V] of the languages: vocabulary_table of real ones, clone_table of clones.

    mask: each language has one token more, the last one, which an encoder sees in the place of
    those that it has to find. Languages share it where they share end-of-text: so clones with no
    token in common have none here either. The table is [N, V + 1] then. counts: how often each
    token is in the training text, if it was counted before, as wide as the table.
    """
    if isinstance(corpus, list):
        vocabularies = [token_bytes(encoder(c)) + [b"<|mask|>"] * mask for c in corpora]
        return vocabulary_table(vocabularies, vocabulary == "anchored")
    if counts is None:
        text = data.tokens(corpora[0], "train")
        counts = data.count_tokens(text, corpora[0]["vocab_size"] + mask)
    table = clone_table(counts, len(corpora), cloned, anchor_seed, permuted)
    eot = corpora[0]["eot"]
    if mask and table[0, eot] == table[-1, eot]:
        table[:, -1] = table[0, -1]
    return table


# ------------------------------------------------------------------------------------------------
# The batches

def count_windows(ids, context):
    """How many windows of context + 1 ids a text has, side by side. Raises BadInput for none."""
    n = len(ids) // (context + 1)
    if n < 1:
        raise BadInput(f"--context={context} needs {context + 1} tokens, but the split has "
                       f"{len(ids)}: a shorter context or a larger corpus")
    return n


def spread(text, context, n):
    """n windows [n, T + 1] from all of a text, evenly spaced; fewer where so many do not fit.

    For measuring: the start of a text may be a single document, unlike the rest. Raises BadInput
    for a text that has not one window.
    """
    n = min(n, count_windows(text, context))
    starts = np.linspace(0, len(text) - context - 1, n).astype(int)
    return np.stack([text[i:i + context + 1] for i in starts])


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
    limits = upper_limits(stages)

    def languages(window, step):
        stage = step * len(stages) // steps
        return np.searchsorted(limits[stage], u[window], side="right")

    return languages


def upper_limits(stages):
    """Up to where each language reaches [S, N], if their shares [S, N] lie side by side."""
    limits = stages.cumsum(1)
    limits[:, -1] = np.inf  # the shares may sum to a hair less than 1
    return limits


def make_turns(stages, steps, batch_size, seed):
    """Which stream each sequence of a run reads, and how many have read it before, int64 [n] both.

    stages [S, streams]: the share of each stream. With one stream, as clones have, these are 0 and
    0, 1, 2, ... With two, say

        stream   0 0 1 0 1
        place    0 1 0 2 1     the 5th sequence reads the second window of stream 1
    """
    k = np.arange(steps * batch_size)
    u = np.random.default_rng([seed, 4]).random(len(k))
    stage = k // batch_size * len(stages) // steps
    stream = np.zeros(len(k), dtype=np.int64)
    for limit in upper_limits(stages).T[:-1]:
        stream += u >= limit[stage]

    place = np.empty_like(stream)
    for s in range(stages.shape[1]):
        mine = stream == s
        place[mine] = np.arange(mine.sum())
    return stream, place


def make_batches(texts, table, stages, context, batch_size, steps, seed, rank=0, world=1,
                 masked=False):
    """Return batch(step) -> (ids int64 [B / world, T + 1], lang int64 [B / world]).

    masked: for an encoder, also what it is shown and where it is asked, (shown [B / world, T],
    places [B / world, P]) of mask_tokens.

    texts [N]: the token stream of each language; clones have one and the same. table [N, V]: their
    ids; stages [S, N]: parse_stages. batch_size is that of all processes together; process `rank`
    of `world` gets its part of it.

    A worked example: two clones of ids 0 to 15 and T = 3, so there are four windows of 4 ids. Say
    that epoch 0 takes them in the order 3 1 0 2, and that window 1 is in EN2. With V = 100, B = 2:

        step 0    windows 3 and 1    12 13 14 15    104 105 106 107
        step 1    windows 0 and 2     0  1  2  3      8   9  10  11
        step 2    epoch 1: the same windows in another order, window 1 in EN2 again
    """
    width = context + 1
    streams, speakers = find_streams(texts)
    share = np.stack([stages[:, langs].sum(1) for langs in speakers], axis=1)  # [S, streams]
    stream, place = make_turns(share, steps, batch_size, seed)

    orders, languages = [], []  # of each stream
    for s, (text, langs) in enumerate(zip(streams, speakers)):
        data.expect_random_reads(text)
        n = count_windows(text, context)
        within = stages[:, langs] / np.maximum(share[:, s, None], 1e-12)
        orders.append(make_order(n, seed))
        languages.append(make_languages(n, within, steps, seed))

    def batch(step):
        k = step * batch_size + np.arange(batch_size)  # the number of each sequence in the run
        k = k[rank * batch_size // world:(rank + 1) * batch_size // world]
        lang, ids = np.empty_like(k), np.empty((len(k), width), dtype=np.int64)
        for s, (text, langs) in enumerate(zip(streams, speakers)):
            here = stream[k] == s
            window = orders[s](place[k[here]])
            lang[here] = langs[languages[s](window, step)]
            pieces = text[window[:, None] * width + np.arange(width)]  # [sequences, T + 1]
            ids[here] = table[lang[here][:, None], pieces]
        if masked:
            return ids, lang, *mask_tokens(ids, table, lang, roll_dice(k, context, seed))
        return ids, lang

    return batch


def find_streams(texts):
    """The different streams among the texts [N] of the languages, and the languages of each.

    Clones: one stream, of all languages. find_streams([a, a]) -> [a], [[0, 1]]; of two real
    languages, find_streams([a, b]) -> [a, b], [[0], [1]].
    """
    streams, speakers = {}, {}  # by the identity of the text
    for lang, text in enumerate(texts):
        streams[id(text)] = text
        speakers.setdefault(id(text), []).append(lang)
    return list(streams.values()), [np.array(langs) for langs in speakers.values()]


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
# What is masked, for an encoder

MASKED = 0.15  # of the positions (Devlin et al. 2019)


def roll_dice(numbers, context, seed=0):
    """What decides how sequences are masked: numbers in [0, 1), [n, 3, T]. The first of the three
    says where, the second whether a mask is shown, the third which token if not.

    A pure function of the seed and the number of each sequence, numbers [n]: in training its number
    in the run; where something is measured, that of the window, with seed 0.
    """
    return np.stack([np.random.default_rng([seed, 5, k]).random((3, context)) for k in numbers])


def masked_places(dice):
    """The positions that an encoder is asked about [n, P]: 15 % of the T of each sequence."""
    T = dice.shape[2]
    return np.sort(dice[:, 0].argsort(1)[:, :max(1, round(MASKED * T))], axis=1)


def mask_tokens(ids, table, lang, dice):
    """What an encoder reads of ids [n, T + 1], and where it is asked which token stands there.

    Returns (shown [n, T], places [n, P]). At 80 % of the places the mask is shown, at 10 % any
    token of the same language, and at 10 % the token itself, so that the states of a text without a
    mask are of use too (Devlin et al. 2019).

    table [N, V + 1]: the ids of the languages, the mask the last of each; lang [n]: the language of
    each sequence. dice: roll_dice. They know nothing of the language: a text is masked alike in all
    clones. Say, of T = 14

        ids      0 1 2 3 4 5 6 7 8 9 10 11 12 13 14      places  2 5
        shown    0 1 M 3 4 9 6 7 8 9 10 11 12 13         2 is masked, and for 5 stands another
    """
    places, V = masked_places(dice), table.shape[1] - 1
    which, token = (np.take_along_axis(dice[:, i], places, 1) for i in (1, 2))

    mask, itself = table[lang, -1][:, None], np.take_along_axis(ids, places, 1)
    other = table[lang[:, None], (token * V).astype(np.int64)]
    shown = ids[:, :-1].copy()
    instead = np.where(which < 0.8, mask, np.where(which < 0.9, other, itself))
    np.put_along_axis(shown, places, instead, 1)
    return shown, places


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
    parser.option("--clone", "shift", "shift: a clone has the ids of EN1 shifted, as in the paper; "
                  "permute: these in a random order", choices=["shift", "permute"])
    parser.option("--anchor_seed", 0, "of the choice of anchor points, and of the order of "
                  "--clone=permute, whatever --seed is", int)
    parser.option("--schedule", None, "the main language's share in each of several equal stages "
                  "of the run, e.g. 0.9,0.1 (default: --ratio throughout)")
    parser.option("--vocabulary", None, "of real languages, --corpus=A --corpus=B: disjoint ids, "
                  "or anchored: tokens that are spelt the same share one id (default: disjoint)",
                  choices=["disjoint", "anchored"])


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
    if isinstance(args.corpus, list):
        check_real_languages(args)
        languages = len(args.corpus)
    elif args.vocabulary:
        raise BadInput(f"--vocabulary={args.vocabulary} is of real languages, with a --corpus "
                       "each, e.g. --corpus=eltec-eng --corpus=eltec-fra; for clones there is "
                       "--cloned")
    if languages is None:
        named = len(args.ratio.split(",")) if args.ratio else 1
        languages = max(named, 2)
    even = ",".join([repr(1 / max(languages, 1))] * languages)
    return args.ratio or even, languages


def check_real_languages(args):
    """Raise BadInput unless the options fit several --corpus."""
    sources = [data.split_name(corpus)[1] for corpus in args.corpus]
    for source in sources:
        if sources.count(source) > 1:
            raise BadInput(f"--corpus={source} is given twice: real languages need a text each; "
                           "clones of one text need one --corpus")
    if args.languages not in (None, len(sources)):
        raise BadInput(f"--languages={args.languages}, but there are {len(sources)} --corpus, "
                       "one a language: leave --languages out")
    if args.cloned not in (None, 1):
        raise BadInput(f"--cloned={args.cloned} is of clones; of real languages "
                       "--vocabulary=anchored shares the tokens that are spelt the same")
    if args.clone != "shift":
        raise BadInput(f"--clone={args.clone} is of clones: leave it out")
    if args.anchor_seed:
        raise BadInput(f"--anchor_seed={args.anchor_seed} is of clones: leave it out")
    language_names(args.corpus, len(sources))  # raises if two have one name


def show_sentence(names, sentence, enc, table):
    """One sentence [n] in each clone: its ids, a dozen a line, and what they decode to."""
    for start in range(0, len(sentence), 12):
        some = sentence[start:start + 12]
        print("tokens    " + "".join(f"{enc.decode([i]):>7}" for i in some))
        for name, row in zip(names, table):
            print(f"{name:6}ids " + "".join(f"{i:7}" for i in row[some]))
        print()
    for name, row in zip(names, table):
        print(f"{name:6}decoded: {spell(row[sentence], [enc] * len(table), table)}")


def show_real_languages(names, corpora, texts, table):
    """Which tokens they share, and ten examples: those that the first language reads most."""
    counts = [data.count_tokens(text, table.shape[1]) for text in texts]
    print(f"\n{len(np.unique(table)):,} ids in all")
    for name, (n, share) in zip(names, shared_tokens(table, counts)):
        print(f"{name}: {len(table[0]):,} ids, {n:,} of them shared: {share:.1%} of its running "
              "text")

    most_read = np.argsort(-counts[0], kind="stable")
    shared = most_read[np.isin(table[0][most_read], table[1:])]
    spellings = token_bytes(encoder(corpora[0]))
    examples = [repr(spellings[i].decode(errors="replace")) for i in shared[:10]]
    print(f"shared, the most frequent in {names[0]}: {'  '.join(examples) or 'none'}\n")


def show_clones(names, corpus, texts, table, stages, seed):
    """A sentence in each language, and a check of the first batches."""
    enc, V = encoder(corpus), corpus["vocab_size"]
    shared, share = anchor_points(table, data.count_tokens(texts[0], V))
    print(f"\n{V:,} ids a language, {len(np.unique(table)):,} in all; {shared:,} of them are "
          f"anchor points, shared by all languages: {share:.1%} of the running text\n")
    show_sentence(names, enc.encode_ordinary("The main language helps the other one."), enc, table)

    steps, batch_size, context = 200, 64, 128
    batch = make_batches(texts, table, stages, context, batch_size, steps, seed)
    print(f"\nthe first {steps} batches of {batch_size} sequences, ids mapped back; distance: "
          "total variation between a language's token\ndistribution and EN1's, from 0 (the same) "
          "to 1 (no token in common), beside what two random samples of one text have")
    check_batches(names, batch, table, steps, seed)


def check_batches(names, batch, table, steps, seed):
    """Print that clones have their shares, and share statistics and no token, in the first batches.

    The measure is the total variation between a language's token distribution and EN1's, beside
    that of the same sequences with their languages dealt out again: what chance alone gives.
    """
    N, V = table.shape
    sequences = np.zeros(N)
    counts, by_chance = np.zeros((N, V)), np.zeros((N, V))
    rng = np.random.default_rng(seed)
    _, token = look_up(table)
    for step in range(steps):
        ids, lang = batch(step)
        for l, other, row in zip(lang, rng.permutation(lang), token[ids]):
            count = np.bincount(row, minlength=V)
            counts[l] += count
            by_chance[other] += count
            sequences[l] += 1

    def distances(counts):
        frequencies = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        return np.abs(frequencies - frequencies[0]).sum(1) / 2

    print(f"{'':6}{'vocabulary':>12}{'share':>9}{'tokens':>12}{'distance':>10}{'by chance':>11}")
    measured, chance = distances(counts), distances(by_chance)
    for l, (name, row) in enumerate(zip(names, table)):
        print(f"{name:6}{len(np.unique(row)):12,}{sequences[l] / sequences.sum():9.1%}"
              f"{int(counts[l].sum()):12,}{measured[l]:10.3f}{chance[l]:11.3f}")


def main():
    parser = Parser(__doc__)
    add_options(parser)
    data.add_options(parser)
    parser.option("--seed", 0, "of the batches", int)
    args, given = parser.parse()
    if args.seed < 0:
        raise BadInput(f"--seed={args.seed}: expected 0 or more")
    ratio, languages = resolve(args)
    stages = parse_stages(ratio, languages, args.schedule)
    names = language_names(args.corpus, languages)
    corpora = open_corpora(args.corpus, languages, args.vocab_size, args.tokenizer, args.parallel)
    table = make_table(corpora, args.corpus, args.cloned, args.anchor_seed, args.vocabulary,
                       permuted=args.clone == "permute")
    texts = open_texts(corpora, "train")
    if isinstance(args.corpus, list):
        show_real_languages(names, corpora, texts, table)
    else:
        show_clones(names, corpora[0], texts, table, stages, args.seed)
    if languages > 1 and not {"ratio", "schedule"} & given.keys():
        given = {"ratio": 0.9} | given
    print(f"next: python train.py {shlex.join(as_options(given))}")


if __name__ == "__main__":
    run_main(main)
