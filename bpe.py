"""Byte-pair encoding: the merges are learned here, in plain Python, and applied by tiktoken.

    A text is first cut into words (pre-tokens); a token never crosses from one to the next. Every word starts as single bytes. Then, again
    and again, the most frequent pair of neighbouring tokens becomes a new token, until the vocabulary is full.
"""
import base64, heapq
from collections import Counter, defaultdict
from pathlib import Path

import tiktoken

from cli import BadInput

EOT = "<|endoftext|>"
# Words with their leading space, numbers by threes, punctuation, white space: GPT-2's idea in what `re` and tiktoken both understand.
PATTERN = r"['’](?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d{1,3}| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+"


def learn_bpe(counts, vocab_size):
    """Learn merges from {pre-token bytes: count}; return {token bytes: rank}, the 256 bytes first, vocab_size - 1 in all.

    A candidate is what two neighbouring tokens spell together, since tiktoken too merges by what a pair spells. Each round merges the most
    frequent one (ties: the first in byte order) wherever it stands, left to right, and updates only the counts it changed.
    Raises BadInput when no candidate is left that occurs twice."""
    ranks = {bytes([i]): i for i in range(256)}
    words = [[bytes([b]) for b in word] for word in counts]
    times = list(counts.values())
    candidates, where = Counter(), defaultdict(set)  # candidate -> how often; in which words
    for i, word in enumerate(words):
        for left, right in zip(word, word[1:]):
            candidates[left + right] += times[i]
            where[left + right].add(i)
    heap = [(-n, token) for token, n in candidates.items()]
    heapq.heapify(heap)
    while len(ranks) < vocab_size - 1:
        if not heap or -heap[0][0] < 2:
            raise BadInput(f"--vocab_size={vocab_size} is larger than the corpus supports: at most {len(ranks) + 1}")
        n, token = heapq.heappop(heap)
        if -n != candidates[token]:  # stale: its count changed since, and stands further down in the heap
            continue
        ranks.setdefault(token, len(ranks))
        changed = set()
        for i in where.pop(token):
            old, new = words[i], []
            for piece in old:
                if new and new[-1] + piece == token:
                    new[-1] = token
                else:
                    new.append(piece)
            for sign, word in ((-1, old), (1, new)):
                for left, right in zip(word, word[1:]):
                    candidates[left + right] += sign * times[i]
                    changed.add(left + right)
                    if sign > 0:
                        where[left + right].add(i)
            words[i] = new
        for c in changed:
            if candidates[c] > 0:
                heapq.heappush(heap, (-candidates[c], c))
    return ranks


def save_ranks(path, ranks):
    """Write {token bytes: rank} in tiktoken's own format: a line a token, base64 and rank."""
    Path(path).write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))


def load_ranks(path):
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in Path(path).read_bytes().splitlines())}


def encoder(manifest):
    """The tiktoken.Encoding of a prepared corpus (its manifest.json); end-of-text is the id after the last merge."""
    if manifest["tokenizer"] != "bpe":
        return named_tokenizer(manifest["tokenizer"])
    ranks = load_ranks(Path(manifest["folder"]) / "tokenizer.tiktoken")
    return tiktoken.Encoding("nanoclone", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={EOT: len(ranks)})


def named_tokenizer(name):
    """One of tiktoken's own tokenizers; the first use of each downloads it. Raises BadInput for an unknown name or no network."""
    if name not in tiktoken.list_encoding_names():
        raise BadInput(f"--tokenizer={name} is unknown: expected bpe (learned from the corpus) or {', '.join(tiktoken.list_encoding_names())}")
    try:
        return tiktoken.get_encoding(name)
    except OSError as error:  # requests' errors are OSErrors
        raise BadInput(f"could not download the tokenizer {name} ({type(error).__name__}): --tokenizer=bpe needs no network")
