"""Parallel text, for languages that are no clones: pairs of lines that translate each other.

    python parallel.py --parallel=PATH --corpus=eng=PATH --corpus=fra=PATH   # look at it

Clones read one text, position by position. Real languages do not: a translation has other tokens,
in another order. So align.py compares them on pairs of lines. This file reads the pairs, packs them
into windows whose two sides stay translations of each other, and matches the tokens of one side
with those of the other (paper: Hidden-state similarity, English-French).

A parallel text is a folder or a .zip. Each document in it is one .txt for each language, and line i
of one translates line i of the other; blank lines do not count. The language stands in the name of
the file, or of its folder: a_eng.txt and a_fra.txt, or eng/a.txt and fra/a.txt.
"""
import re
from typing import NamedTuple

import numpy as np

import clone
import data
from lib.bpe import encoder
from lib.cli import BadInput, Parser, plural, run_main
from lib.corpora import locate_parallel, parallel_texts, sketch

# ------------------------------------------------------------------------------------------------
# Pairs of lines

def read_pairs(source, names, passed_over=None):
    """The lines of a parallel text in two languages: a list of documents, each [(line, line)].

    source: a path, or a name that is downloaded. names: the two languages, such as ["eng", "fra"].
    passed_over: as in parallel_texts. Raises BadInput.
    """
    documents, seen = [], set()
    for versions in parallel_texts(locate_parallel(source), names, passed_over):
        by_language = {}
        for path, text in versions.items():
            name = language_of(path, names)
            if name in by_language and name is not None:
                raise BadInput(f"{source}: {by_language[name][0]} and {path} are both in {name} "
                               "and have one name: expected one .txt a document and language")
            lines = [line.strip() for line in text.split("\n") if line.strip()]
            by_language[name] = (path, lines)
        seen |= by_language.keys()
        if not set(names) <= by_language.keys():
            continue

        (path_a, lines_a), (path_b, lines_b) = (by_language[name] for name in names)
        if len(lines_a) != len(lines_b):
            raise BadInput(f"{source}: {path_a} has {len(lines_a):,} lines that are not blank, and "
                           f"{path_b} has {len(lines_b):,}: line i of one has to translate line i "
                           "of the other")
        documents.append(list(zip(lines_a, lines_b)))

    for name in names:
        if name not in seen:
            raise BadInput(f"the parallel text {source} has no {name}: a .txt is in {name} if its "
                           f"name ends so, or has the word {name}, or its folder's name has; a "
                           f"corpus is named so with --corpus={name}=PATH")
    if not documents:
        raise BadInput(f"the parallel text {source} has no document in both {' and '.join(names)}")
    return documents


def language_of(path, names):
    """Which of the languages a file of a parallel text is in; None for none.

    Its name may end so, or the name of its folder may have the word, the innermost folder first, or
    its own name:

        plain-eng/FRA01401_Fleuriot_eng.txt -> eng    plain1/FRA01401_Fleuriot.txt -> fra
    """
    words = re.findall("[a-z]+", path.stem.lower())
    for word in words[-1:]:
        if word in names:
            return word
    for place in [*reversed(path.parent.parts), path.stem]:
        for word in re.findall("[a-z]+", place.lower()):
            if word in names:
                return word
    return None


def check_held_out(run, source):
    """Raise BadInput if a training document of a run is in the parallel text; return how many
    documents were looked at. By the same check as keeps them out (data.held_out).
    """
    sketches = data.held_out_sketches(locate_parallel(source))
    looked_at = 0
    for name, corpus in zip(run.names, run.corpora):
        enc, found = encoder(corpus), []
        for document, ids in data.each_document(corpus, "train"):
            if data.held_out(sketch(enc.decode(ids.tolist())), sketches):
                found.append(document)
            looked_at += 1
        if found:
            more = " ..." if len(found) > 3 else ""
            raise BadInput(f"{run.folder} was trained on {plural(len(found), 'document')} of "
                           f"{name} that the parallel text has ({', '.join(found[:3])}{more}): "
                           f"train anew with --parallel={source}, which keeps them out")
    return looked_at


# ------------------------------------------------------------------------------------------------
# Windows

class Window(NamedTuple):
    """Consecutive pairs of lines, of one document, one after the other: a text and its translation.

    a, b: the ids of the two sides [at most T], as the model has them. ends: up to where each line
    reaches in a and in b.

        a       The|cat|sleeps|\\n|It|is|late|\\n      ends  (4, 5)
        b       Le|chat|dor|t|\\n|Il|est|tard|\\n            (8, 9)
    """
    a: np.ndarray
    b: np.ndarray
    ends: list


def pack(documents, encoders, rows, context):
    """The windows of a parallel text, as many pairs in each as fit the context on both sides.

    documents: of read_pairs. encoders, rows [V]: tokeniser and ids of the two languages. A pair
    that does not fit by itself is left out. Returns (windows, how many pairs there are, how many
    are in the windows).
    """
    windows, pairs, packed = [], 0, 0
    for document in documents:
        sides, ends = ([], []), []  # of the open window
        for lines in document:
            ids = []
            for line, enc, row in zip(lines, encoders, rows):
                ids.append(row[enc.encode_ordinary(line + "\n")].tolist())
            pairs += 1
            if max(len(side) + len(new) for side, new in zip(sides, ids)) > context:
                windows += close(sides, ends)
                sides, ends = ([], []), []
            if max(len(new) for new in ids) <= context:
                for side, new in zip(sides, ids):
                    side += new
                ends.append((len(sides[0]), len(sides[1])))
                packed += 1
        windows += close(sides, ends)
    return windows, pairs, packed


def close(sides, ends):
    """The window [Window] that two lists of ids make; none of no pair."""
    return [Window(*(np.array(side) for side in sides), ends)] if ends else []


# ------------------------------------------------------------------------------------------------
# Matching: which token of the translation goes with which?

def match(weights):
    """The maximum-weight bipartite matching: (rows, columns) of the pairs, min(n, m) of them.

    weights [n, m]: how well each of n goes with each of m. Each is in one pair at most, and the sum
    of the pairs' weights is as large as it can be:

        weights  3 2      the best pair of all, 3, leaves the last two with 0: 3 in all;
                 2 0      the pairs (0, 1) and (1, 0) have 2 + 2 = 4

    Shortest augmenting paths (Jonker and Volgenant 1987; Crouse 2016), in O(n^3). One row after the
    other is added. A new row that wants a taken column has its owner look for another one, and so
    on: the chain of changes that costs least is a shortest path, and Dijkstra's algorithm finds it.
    Two lists of prices, u of rows and v of columns, keep all costs in it from falling below 0.
    """
    if weights.shape[0] > weights.shape[1]:
        rows, columns = match(weights.T)
        return columns, rows
    cost = -np.asarray(weights, dtype=np.float64)
    n, m = cost.shape
    u, v = np.zeros(n), np.zeros(m)
    column_of, row_of = np.full(n, -1), np.full(m, -1)

    for new in range(n):
        # Dijkstra: how much more does it cost to free each column, and by which row's move?
        distance, mover = np.full(m, np.inf), np.full(m, -1)
        reached = np.zeros(m, dtype=bool)
        row, so_far = new, 0.0
        while True:
            through = so_far + cost[row] - u[row] - v
            shorter = ~reached & (through < distance)
            distance[shorter], mover[shorter] = through[shorter], row
            nearest = int(np.where(reached, np.inf, distance).argmin())
            reached[nearest], so_far = True, distance[nearest]
            if row_of[nearest] < 0:  # a free column: the path ends here
                break
            row = row_of[nearest]

        # new prices, by which every pair on the path costs 0
        taken = reached & (row_of >= 0)
        u[new] += so_far
        u[row_of[taken]] += so_far - distance[taken]
        v[reached] -= so_far - distance[reached]

        # along the path, from its end: each row moves to the column that was freed for it
        column = nearest
        while column >= 0:
            row = mover[column]
            row_of[column] = row
            column_of[row], column = column, column_of[row]  # the new row had none, -1: the end
    return np.arange(n), column_of


# ------------------------------------------------------------------------------------------------
# The command

def main():
    parser = Parser(__doc__)
    data.add_options(parser)
    args, _ = parser.parse()
    if args.parallel is None or not isinstance(args.corpus, list) or len(args.corpus) != 2:
        raise BadInput("expected --parallel=PATH and two --corpus, one of each language")
    names = clone.language_names(args.corpus, 2)
    documents = read_pairs(args.parallel, names)
    corpora = clone.open_corpora(args.corpus, 2, args.vocab_size, args.tokenizer, args.parallel)
    encoders = [encoder(corpus) for corpus in corpora]
    rows = [np.arange(corpus["vocab_size"]) for corpus in corpora]
    context = 128
    windows, pairs, packed = pack(documents, encoders, rows, context)
    print(f"{plural(len(documents), 'document')}, {pairs:,} pairs of lines; {packed:,} of them fit "
          f"a window of {context} tokens, in {len(windows):,} windows")
    if windows:
        middle = windows[len(windows) // 2]
        for name, enc, ids in zip(names, encoders, (middle.a, middle.b)):
            print(f"{name}  " + "|".join(enc.decode([i]) for i in ids).replace("\n", "\\n"))


if __name__ == "__main__":
    run_main(main)
