import random
import re
from collections import Counter

import pytest

from lib import bpe
from lib.cli import BadInput

WORDS = ("aaaa aaab abab banana bandana can cancan low lower lowest newer wide wider "
         "été à €€€ 日本 日本語").split()


# ------------------------------------------------------------------------------------------------
# The same algorithms with nothing remembered, and so as short as they are slow

def slow_bpe(counts, vocab_size):
    """learn_bpe: count everything again for each merge."""
    ranks = {bytes([i]): i for i in range(256)}
    words = [([bytes([byte]) for byte in word], n) for word, n in counts.items()]
    while len(ranks) < vocab_size - 1:
        candidates = Counter()
        for word, n in words:
            for left, right in zip(word, word[1:]):
                candidates[left + right] += n
        token = min(candidates, key=lambda pair: (-candidates[pair], pair))
        ranks.setdefault(token, len(ranks))
        words = [(merge(word, token), n) for word, n in words]
    return ranks


def merge(word, token):
    merged = []
    for piece in word:
        if merged and merged[-1] + piece == token:
            merged[-1] = token
        else:
            merged.append(piece)
    return merged


def slow_encode(text, ranks):
    """Merge the neighbours that spell the token of lowest rank, until none do."""
    ids = []
    for word in re.findall(bpe.PATTERN, text):
        pieces = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [left + right for left, right in zip(pieces, pieces[1:])]
            known = [pair for pair in pairs if pair in ranks]
            if not known:
                break
            pieces = merge(pieces, min(known, key=ranks.get))
        ids += [ranks[piece] for piece in pieces]
    return ids


def random_counts(seed):
    rng = random.Random(seed)
    counts = {}
    for _ in range(200):
        word = "".join(rng.choices("abc", weights=[6, 3, 1], k=rng.randint(1, 9)))
        counts[word.encode()] = rng.randint(1, 30)
    for word in WORDS:
        counts[word.encode()] = rng.randint(1, 60)
    return counts


# ------------------------------------------------------------------------------------------------
# Learning

@pytest.mark.parametrize("seed", range(5))
def test_merges_are_those_of_the_slow_reference(seed):
    counts = random_counts(seed)
    assert list(bpe.learn_bpe(counts, 340)) == list(slow_bpe(counts, 340))


def test_the_example_of_the_docstring():
    ranks = bpe.learn_bpe({b"hug": 10, b"pug": 5, b"hugs": 5}, 259)
    assert list(ranks.items())[256:] == [(b"ug", 256), (b"hug", 257)]


def test_of_two_pairs_as_frequent_the_first_in_byte_order_goes_first():
    ranks = bpe.learn_bpe({b"xy": 3, b"ab": 3, b"mn": 3}, 260)
    assert list(ranks)[256:] == [b"ab", b"mn", b"xy"]


def test_257_ids_are_plain_bytes():
    ranks = bpe.learn_bpe({b"banana": 100}, 257)
    assert ranks == {bytes([i]): i for i in range(256)}


def test_a_vocabulary_larger_than_the_corpus_supports():
    counts = {b"ab": 5, b"cd": 1}  # one pair occurs twice
    assert len(bpe.learn_bpe(counts, 258)) == 257
    with pytest.raises(BadInput, match="at most 258"):
        bpe.learn_bpe(counts, 259)


# ------------------------------------------------------------------------------------------------
# Encoding

def test_tiktoken_applies_them_as_the_slow_reference_does_and_nothing_is_lost(tmp_path):
    ranks = bpe.learn_bpe(random_counts(0), 340)
    bpe.save_ranks(tmp_path / "tokenizer.tiktoken", ranks)
    assert bpe.load_ranks(tmp_path / "tokenizer.tiktoken") == ranks
    enc = bpe.encoder({"tokenizer": "bpe", "folder": tmp_path})
    assert enc.n_vocab == 340
    assert enc.eot_token == 339

    rng = random.Random(1)
    letters = "abc  \n\t'’ABC1234_.,!?é日本€😀\u0301\u00a0½" + "lowernewid"
    for _ in range(300):
        text = "".join(rng.choices(letters, k=rng.randint(0, 60)))
        ids = enc.encode_ordinary(text)
        assert enc.decode(ids) == text
        if text.isascii():  # beyond ASCII, re and tiktoken differ in what some rare marks are
            assert ids == slow_encode(text, ranks)


def test_an_unknown_tokenizer():
    with pytest.raises(BadInput, match="gtp2 is unknown: expected bpe .* gpt2"):
        bpe.encoder({"tokenizer": "gtp2"})
