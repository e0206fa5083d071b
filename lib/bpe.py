"""Byte-pair encoding: merges are learned here, in plain Python, and applied by tiktoken.

A text is first cut into words (pre-tokens); a token never reaches from one word into the next.
Every word starts as single bytes. Then, again and again, the most frequent pair of neighbouring
tokens becomes one new token, until the vocabulary is full.
"""
import base64
import heapq
from collections import Counter, defaultdict
from pathlib import Path

import tiktoken

from lib.cli import BadInput, progress

# The token that ends every document, written as GPT-2 writes it. The same letters in a text are
# text: they never become this token.
EOT = "<|endoftext|>"

# Where a text is cut into words: GPT-2's idea, in what both `regex` and tiktoken understand. To
# both a letter's marks are part of it, as the vowel signs of Hindi are; Python's own `re` would
# cut there. A word takes the space before it along, so that "the" is one token wherever it stands.
PATTERN = "|".join([
    r"['’](?:[sdmt]|ll|ve|re)",  # the endings of it's, I'd, I'm, don't, we'll, I've, you're
    r" ?[^\W\d_]+",  # letters
    r" ?\d{1,3}",  # digits, at most three at a time
    r" ?(?:[^\w\s]|_)+",  # punctuation and other signs
    r"\s{1,1000}(?!\S)",  # white space, all but the last of it where a word follows, and never
    # more at a time than tiktoken has memory to go back over (a million blanks are too many) ...
    r"\s+",  # ... and what is left then, such as one line break
])


def learn_bpe(counts, vocab_size):
    """Learn merges from {word as bytes: how often it occurs}; return {token as bytes: rank}.

    The 256 single bytes have ranks 0 to 255, the merges follow in the order in which they are
    learned. There are vocab_size - 1 tokens in all: the last id is left for end-of-text.
    Raises BadInput when no pair is left that occurs twice.

    Each round merges the most frequent pair wherever it stands, left to right. Of two pairs as
    frequent as each other, the first in byte order goes first. An example of three words:

        hug 10 times, pug 5 times, hugs 5 times

        start       h u g   p u g   h u g s     ug 20, hu 15, pu 5, gs 5
        merge ug    h ug    p ug    h ug s      hug 15, pug 5, ugs 5
        merge hug   hug     p ug    hug s       pug 5, hugs 5

        learn_bpe({b"hug": 10, b"pug": 5, b"hugs": 5}, 259)
        -> {the 256 bytes: 0 to 255, b"ug": 256, b"hug": 257}
    """
    # Every word starts as single bytes.
    ranks = {bytes([i]): i for i in range(256)}
    words = [[bytes([byte]) for byte in word] for word in counts]
    times = list(counts.values())

    # Count every pair once. A pair is named by what it spells, for tiktoken too merges by that.
    # `where` has the words that a pair stands in, so that a merge need not look at the others.
    pairs = Counter()
    where = defaultdict(set)
    for i, word in enumerate(words):
        for pair in neighbours(word):
            pairs[pair] += times[i]
            where[pair].add(i)

    # The heap hands out the pair with the largest count first, hence the minus: Python's heaps
    # give the smallest. A count that changes is pushed again, and the old entry stays behind.
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)

    while len(ranks) < vocab_size - 1:
        # Stop where even the most frequent pair occurs but once: a token for it saves nothing.
        if not heap or heap[0][0] > -2:
            progress("")
            raise BadInput(
                f"--vocab_size={vocab_size} is larger than the corpus supports: "
                f"at most {len(ranks) + 1}"
            )

        progress(f"merge {len(ranks) - 255:,} of {vocab_size - 257:,}")

        # An entry whose count is no longer true is an old one: leave it out.
        minus_count, token = heapq.heappop(heap)
        if -minus_count != pairs[token]:
            continue
        ranks[token] = len(ranks)

        # Merge in the words that have the pair, and count what this changes, no more.
        changed = set()
        for i in where.pop(token):
            gone, new = merge(words[i], token)
            for pair in gone:
                pairs[pair] -= times[i]
            for pair in new:
                pairs[pair] += times[i]
                where[pair].add(i)
            changed.update(gone, new)

        # The heap learns the new counts. Pairs that have died out need no entry.
        for pair in changed:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
    progress("")
    return ranks


def neighbours(word):
    """What each token of a word spells with the next one: [h, ug, s] -> [hug, ugs]."""
    return [left + right for left, right in zip(word, word[1:])]


def merge(word, token):
    """Make every pair that spells the token one, in place, left to right: [h, ug, s] -> [hug, s].

    Returns the pairs that are gone with it and the pairs that are new: [hug, ugs] and [hugs].
    """
    gone, new = [], []
    i = 0
    while i < len(word) - 1:
        if word[i] + word[i + 1] == token:
            first = max(i - 1, 0)  # the token before the pair, where there is one
            gone += neighbours(word[first:i + 3])
            word[i:i + 2] = [token]
            new += neighbours(word[first:i + 2])
        i += 1
    return gone, new


def save_ranks(path, ranks):
    """Write {token: rank} in tiktoken's own format: a line a token, in base64, and its rank."""
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    Path(path).write_bytes(b"".join(lines))


def load_ranks(path):
    """Read back what save_ranks wrote: {token as bytes: rank}."""
    ranks = {}
    for line in Path(path).read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return ranks


def encoder(manifest):
    """The tiktoken.Encoding of a prepared corpus, given its manifest.json as a dict.

    Of one learned from the corpus, end-of-text is the id after the last merge.
    """
    if manifest["tokenizer"] != "bpe":
        return named_tokenizer(manifest["tokenizer"])
    return read_encoder(Path(manifest["folder"]) / "tokenizer.tiktoken")


def read_encoder(path):
    """The tiktoken.Encoding of a file that save_ranks wrote."""
    ranks = load_ranks(path)
    return tiktoken.Encoding(
        "nanoclone", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={EOT: len(ranks)}
    )


def token_bytes(enc):
    """What each token of an encoding spells, as bytes [V]; end-of-text as it is written.

    An id that stands for nothing, which some of tiktoken's own have, spells a note of its number.
    """
    spellings = []
    for i in range(enc.n_vocab):
        try:
            spellings.append(enc.decode_single_token_bytes(i))
        except KeyError:
            spellings.append(b"\0unused %d" % i)
    return spellings


def named_tokenizer(name):
    """One of tiktoken's own tokenizers; the first use of each downloads it.

    Raises BadInput for a name that tiktoken does not know, or where there is no network.
    """
    # A misspelt name is known as such before anything is downloaded.
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise BadInput(
            f"--tokenizer={name} is unknown: "
            f"expected bpe (learned from the corpus) or {', '.join(known)}"
        )
    # tiktoken downloads with `requests`, whose errors are OSErrors.
    try:
        return tiktoken.get_encoding(name)
    except OSError as error:
        raise BadInput(
            f"could not download the tokenizer {name} ({type(error).__name__}): "
            "--tokenizer=bpe needs no network"
        ) from error
