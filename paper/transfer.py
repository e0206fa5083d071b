"""Does a task that is learned in EN1 carry over to EN2? The paper's GLUE experiment, on our text.

    python -m paper.transfer runs/a runs/b         # a table, and transfer.json in each folder
    python -m paper.transfer runs/a runs/b --out=transfer   # and a .json and a .png of them all
    python -m paper.transfer runs/a --task=my.tsv  # a task of your own

A model is given a new task in EN1 alone: with its learning rate, its stopping point and all else
chosen in EN1. Then it does the same task in EN2, in which it was never shown what to do. Tasks:

    source   which package, or which author, is this passage of one context from? Of the last state
             (while it learns, of each in the second half)
    marks    is this token code or prose (docs), speech or narration (novels)? Of every state. The
             text's own marks say which, >>> and quotation marks, and are taken out of what is read
    a path   lines of a text, a tab and a label; or a word and its label a line, with a blank line
             between sentences (CoNLL)

The test is of documents that were in no training text, neither of the task nor of the model. A
model learns a task in two ways:

    probe       a logistic regression on its states; the model stays as it is
    fine-tuned  a linear layer on its states, and every weight of the model goes along

Some tasks need no model, since single tokens give the answer away. So a score stands beside that of
the best guess that does not look (chance), and beside what is known from the tokens alone, without
a model: of a passage a logistic regression on which tokens it has, of a token how often it is
either.
"""
import copy
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import align
import data
import runs
from lib import plots
from lib.cli import (
    BadInput,
    Parser,
    make_folder,
    plural,
    progress,
    run_main,
    write_json,
)
from model import pick_device
from paper import numbers
from paper.report import stat

BUILT_IN = ("source", "marks")
# source: passages of each class; marks: windows; each for training, validation and test
PASSAGES, WINDOWS = (150, 50, 100), (400, 100, 300)
MOST, LEAST = 8, 4  # classes of source
FEWEST = 20  # passages of training, and of test, below which there is no task, or no class
MIXED = (0.1, 0.9)  # windows of marks have such a share of tokens that are code, or speech
MARKED = 0.05  # a document that has less of it marks it in another way, or has none
L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the logistic regression, chosen on validation text
RATES = (3e-4, 1e-3, 3e-3)  # of Adam, chosen on validation text
EPOCHS, BATCH = 3, 16  # of fine-tuning
NO_LABEL = -1


class Examples(NamedTuple):
    """Passages, as tokenised, and what is to be said of their tokens.

    ids, labels [n, T] int64: the label of a token is the number of its class, or NO_LABEL where
    nothing is asked. Where a passage has one label it is at its last token (in training text at
    others too: spread), and what comes after is padding. With T = 5, two passages of classes 1 and
    0, the second one of three tokens:

        ids     7  3  9  2  4      labels  -1 -1 -1 -1  1
                8  3  6 99 99              -1 -1  0 -1 -1
    """
    ids: np.ndarray
    labels: np.ndarray


@dataclass
class Task:
    classes: list  # their names; of a task of tokens the first is what a token is if it is nothing
    whole: bool  # whether a passage has one label, or each of its tokens
    train: Examples
    validation: Examples
    test: list  # of each language, Examples in its own tokens; clones have the same
    note: str = ""  # what a user has to know of how it was made

    @property
    def measure(self):
        return "accuracy" if self.whole else "F1"


# ------------------------------------------------------------------------------------------------
# The run's own documents

def documents(corpus, splits):
    """[(name, ids [n])] of the documents of some splits, without their end-of-text."""
    found = []
    for split in splits:
        found += [(name, ids.astype(np.int64)) for name, ids in data.each_document(corpus, split)]
    return found


def passages(ids, T):
    """Cut a document into passages [n, T], side by side; what is left at its end is left out."""
    n = len(ids) // T
    return ids[:n * T].reshape(n, T)


def draw(rng, pool, n):
    """n of a pool of passages [m, ...], in a random order; all of them if there are fewer."""
    return pool[rng.permutation(len(pool))[:n]]


def at_the_end(ids, labels):
    """Examples of passages ids [n, T] of one label each, labels [n], said at the last token."""
    of_tokens = np.full(ids.shape, NO_LABEL)
    of_tokens[:, -1] = labels
    return Examples(ids, of_tokens)


def spread(examples):
    """The same passages, with the label at each token of their second half, not at the last alone.

    For learning: the answer is the same all along a passage, and more places are asked at no cost.
    What is scored is the last token.
    """
    labels = examples.labels.copy()
    for row in labels:
        last = (row != NO_LABEL).argmax()
        row[(last + 1) // 2:last] = row[last]
    return Examples(examples.ids, labels)


def hold_out(found, rng, enough):
    """Divide passages of training documents, a list of [n, T], into (training, validation).

    No document is in both, but where there is only one: then its last tenth is for validation.
    enough: of so many passages for validation no further document is taken.
    """
    if len(found) == 1:
        [only] = found
        cut = len(only) - len(only) // 10
        return only[:cut], only[cut:]
    order = rng.permutation(len(found))
    n = 1
    while n < len(found) - 1 and sum(len(found[i]) for i in order[:n]) < enough:
        n += 1
    return (np.concatenate([found[i] for i in order[n:]]),
            np.concatenate([found[i] for i in order[:n]]))


# ------------------------------------------------------------------------------------------------
# source: who wrote this?

def source_of(name):
    """The package or the author of a document: numpy#8 -> numpy, ENG18410_Trollope/3 -> Trollope,
    Austen_Emma_1815 -> Austen.
    """
    name = re.sub(r"([#/]\d+)+$", "", name)
    of_eltec = re.match(r"[A-Z]{3}\d+_(\w+)", name)
    return of_eltec[1] if of_eltec else name.split("_")[0]


def source_task(run, seed):
    """Which package or author is a passage from? As many passages of each. Raises BadInput."""
    corpus, T = run.corpora[0], run.config.context
    rng = np.random.default_rng([seed, 5])
    by_class = {}  # {class: [passages of each document]}, of training text and held out
    for part, splits in (("train", ["train"]), ("test", ["val", "test"])):
        for name, ids in documents(corpus, splits):
            of_class = by_class.setdefault(source_of(name), {"train": [], "test": []})
            of_class[part].append(passages(ids, T))

    pools = {}  # {class: its passages for training, validation and test, [n, T] each}
    for name, found in sorted(by_class.items()):
        if found["train"] and found["test"]:
            parts = (*hold_out(found["train"], rng, PASSAGES[1]), np.concatenate(found["test"]))
            fewest = FEWEST, FEWEST // 4, FEWEST
            if all(len(part) >= least for part, least in zip(parts, fewest)):
                pools[name] = parts
    if len(pools) < LEAST:
        raise BadInput(f"--task=source: {run.folder} has {len(pools)} packages or authors with "
                       f"documents both in the training text and held out, expected {LEAST} or "
                       "more: try --task=marks")
    classes = sorted(sorted(pools, key=lambda name: -len(pools[name][2]))[:MOST])

    # balanced: every class has as many passages as the poorest one
    parts = []
    for i, wanted in enumerate(PASSAGES):
        n = min(wanted, *(len(pools[name][i]) for name in classes))
        ids = np.concatenate([draw(rng, pools[name][i], n) for name in classes])
        parts.append(at_the_end(ids, np.repeat(np.arange(len(classes)), n)))
    train, validation, test = parts
    return Task(classes, True, spread(train), validation, [test] * len(run.table))


# ------------------------------------------------------------------------------------------------
# marks: code or prose, speech or narration?

# quoted speech; what is not closed ends with its line, which is a paragraph in novels
SPEECH = re.compile(r'“(.*?)(?:”|$)|«\s?(.*?)(?:\s?»|$)|"(.*?)(?:"|$)')
QUOTES = re.compile(r'«\s?|\s?»|[“”"]')
DASH = re.compile(r"\s*[—–-]")  # how a line begins that is speech, as French has it
PROMPT = re.compile(r"([ \t]*)(>>>|\.\.\.)(?: |$)")


def without_prompts(text):
    """[(piece of a text, 1 if it is code)], without prompts. Code: the lines of a doctest, from a
    >>> to the next blank line, so with what it prints.
    """
    pieces, inside = [], False
    for line in text.split("\n"):
        prompt = PROMPT.match(line)
        if not line.strip():
            inside = False
        elif prompt and prompt[2] == ">>>":
            inside = True
        if inside and prompt:
            line = prompt[1] + line[prompt.end():]
        pieces.append((line + "\n", int(inside)))
    return pieces


def without_quotes(text):
    """[(piece of a text, 1 if it is speech)], without quotation marks. Speech: what stands between
    “ ”, « » or " ". Of a line that begins with a dash nothing is asked (NO_LABEL): it is speech,
    but nothing says where that ends.
    """
    pieces = []
    for line in text.split("\n"):
        if DASH.match(line):
            pieces.append((line + "\n", NO_LABEL))
            continue
        end = 0
        for quote in SPEECH.finditer(line):
            said = next(words for words in quote.groups() if words is not None)
            pieces += [(line[end:quote.start()], 0), (said, 1)]
            end = quote.end()
        pieces.append((line[end:] + "\n", 0))
    return [(QUOTES.sub("", piece), label) for piece, label in pieces]


def label_tokens(pieces, enc):
    """Encode a text that is in pieces [(text, label)]: (ids, labels), int64 [n] both.

    A token has the label of its last byte, since it takes the blank before a word along:

        He said, “Go on.”   ->   He| said|,| Go| on|.
                                  0    0  0   1   1 1
    """
    text = "".join(piece for piece, _ in pieces)
    sizes = [len(piece.encode()) for piece, _ in pieces]
    of_bytes = np.repeat([label for _, label in pieces], sizes)
    ids = np.array(enc.encode(text, disallowed_special=()), dtype=np.int64)
    ends = np.cumsum([len(enc.decode_single_token_bytes(i)) for i in ids.tolist()])
    return ids, of_bytes[ends.astype(int) - 1].astype(np.int64)


def mixed_windows(ids, enc, strip, T):
    """The windows of a document [n, 2, T], ids and labels, that have some of both labels.

    strip: without_prompts or without_quotes. None of a document with hardly any marks.
    """
    ids, labels = label_tokens(strip(enc.decode(ids.tolist())), enc)
    windows = np.stack([passages(ids, T), passages(labels, T)], axis=1)
    if len(windows) == 0 or (labels == 1).mean() < MARKED:
        return windows[:0]
    share = (windows[:, 1] == 1).mean(1)
    return windows[(share >= MIXED[0]) & (share <= MIXED[1])]


def marks_of(corpus, enc):
    """(names of the two labels, the function that takes the marks out), by what the text has."""
    lines, prompts = 0, 0
    for _, ids in documents(corpus, ["val", "test"]):
        text = enc.decode(ids.tolist())
        lines += text.count("\n") + 1
        prompts += len(re.findall(r"^[ \t]*>>> ", text, re.MULTILINE))
    if prompts > lines / 200:
        return ["prose", "code"], without_prompts
    return ["narration", "speech"], without_quotes


def marked_windows(corpus, enc, strip, T, rng, splits):
    """[windows [n, 2, T] of a document], of documents in a random order, until there are enough.

    No document has more than an eighth of what is wanted for training.
    """
    found = documents(corpus, splits)
    kept, wanted = [], WINDOWS[0] + WINDOWS[1]
    for i in rng.permutation(len(found)):
        windows = draw(rng, mixed_windows(found[i][1], enc, strip, T), WINDOWS[0] // 8)
        if len(windows):
            kept.append(windows)
        if sum(len(windows) for windows in kept) > 1.5 * wanted:
            break
    return kept


def marks_task(run, seed):
    """Is a token code or prose, speech or narration? Raises BadInput.

    Real languages have a text each, so their test is of their own documents.
    """
    T, encoders = run.config.context, run.encoders
    names, strip = marks_of(run.corpora[0], encoders[0])
    rng = np.random.default_rng([seed, 6])
    found = marked_windows(run.corpora[0], encoders[0], strip, T, rng, ["train"])
    tests = []
    for corpus, enc in zip(run.corpora[:1] if run.clones else run.corpora, encoders):
        tests.append(marked_windows(corpus, enc, strip, T, rng, ["val", "test"]))

    for part in (found, *tests):
        if sum(len(windows) for windows in part) < FEWEST:
            raise BadInput(f"--task=marks: the text of {run.folder} has hardly any {names[1]} "
                           "that is marked (doctests, or speech in “ ”, « » or \" \"): "
                           "try --task=source")
    train, validation = hold_out(found, rng, WINDOWS[1])
    parts = [train, validation] + [np.concatenate(test) for test in tests]
    sizes = WINDOWS + (WINDOWS[2],) * len(tests)
    examples = []
    for part, n in zip(parts, sizes):
        ids, labels = draw(rng, part, n).swapaxes(0, 1)
        examples.append(Examples(ids, labels))
    train, validation, *test = examples
    return Task(names, False, train, validation, test * len(run.table) if run.clones else test)


# ------------------------------------------------------------------------------------------------
# The user's own data

def read_file(path):
    """(whether a line is a text and its label, [(text, label)] or [[(word, label), ...], ...]).

    A file with a blank line in it is of words and their labels. Raises BadInput, with the numbers
    of the lines that are neither.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadInput(f"--task={path}: expected {', '.join(BUILT_IN)} or a file that can be read "
                       f"({reason})") from None

    whole = all(line.strip() for line in lines)
    entries, bad = [[]], []
    for number, line in enumerate(lines, 1):
        parts = line.strip().split("\t" if whole else None)
        if len(parts) == 2 and all(part.strip() for part in parts):
            entries[-1].append((parts[0], parts[1]))
        elif line.strip() or whole:
            bad.append(number)
        elif entries[-1]:
            entries.append([])  # the next sentence
    if bad:
        expected = "a text, a tab and a label" if whole else "a word and its label, or nothing"
        some = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
        raise BadInput(f"{path}: line {some}: expected {expected}")
    return whole, entries[0] if whole else [entry for entry in entries if entry]


def file_task(run, path, seed):
    """A task from a file: nine of ten examples to learn from, a ninth of these for validation.

    Long ones are cut to the context, and short ones padded with end-of-text. Raises BadInput.
    """
    whole, entries = read_file(path)
    T, enc, eot = run.config.context, run.encoders[0], run.corpora[0]["eot"]
    if whole:
        said = [label for _, label in entries]
    else:
        said = [label for entry in entries for _, label in entry]
    # the commonest first: of words that is what most are, O in CoNLL's tasks
    classes = sorted(set(said), key=lambda label: (-said.count(label), label))
    if len(classes) < 2 or len(entries) < 10:
        raise BadInput(f"{path} has {plural(len(entries), 'example')} of "
                       f"{plural(len(classes), 'label')}: expected ten or more, of two or more")

    number = {name: i for i, name in enumerate(classes)}
    ids = np.full((len(entries), T), eot)
    labels, n_cut = np.full(ids.shape, NO_LABEL), 0
    for i, entry in enumerate(entries):
        tokens, of_tokens = [], []
        for j, (words, label) in enumerate([entry] if whole else entry):
            new = enc.encode(words if j == 0 else f" {words}", disallowed_special=())
            tokens += new
            of_tokens += [number[label]] * len(new)
        n_cut += len(tokens) > T
        n = min(len(tokens), T)
        ids[i, :n] = tokens[:n]
        if whole:
            labels[i, n - 1] = number[label]
        else:
            labels[i, :n] = of_tokens[:n]

    order = np.random.default_rng([seed, 7]).permutation(len(entries))
    tenth = len(entries) // 10
    test, validation, train = (Examples(ids[part], labels[part]) for part in
                               (order[:tenth], order[tenth:2 * tenth], order[2 * tenth:]))
    if whole:
        train = spread(train)
    example = "example" if n_cut == 1 else "examples"
    note = f"{n_cut} of {len(entries)} {example} cut to {T} tokens" if n_cut else ""
    return Task(classes, whole, train, validation, [test] * len(run.table), note)


def make_task(run, name, seed):
    """The Task of a name, one of BUILT_IN or the path of a file. Raises BadInput."""
    if name == "source":
        return source_task(run, seed)
    if name == "marks":
        return marks_task(run, seed)
    return file_task(run, name, seed)


# ------------------------------------------------------------------------------------------------
# Scores

def score(task, predicted, labels):
    """How right the predicted classes [m] are, from 0 to 1, of labels [m].

    Of passages accuracy. Of tokens F1, of all classes but the first: so what most tokens are earns
    nothing, and with two classes it is the F1 of the second, code or speech.
    """
    hit = predicted == labels
    if task.whole:
        return hit.mean().item()
    found, there = predicted > 0, labels > 0
    n = (found.sum() + there.sum()).item()
    return 2 * (hit & there).sum().item() / n if n else 0.0


def asked(examples):
    """The labels [m] of all tokens of which something is asked, row by row."""
    return examples.labels[examples.labels != NO_LABEL]


def chance(task):
    """The score of the best guess that does not look: always the same class."""
    labels = asked(task.test[0])
    guesses = [np.full(len(labels), i) for i in range(len(task.classes))]
    return max(score(task, guess, labels) for guess in guesses)


def from_tokens(task, V, device):
    """The score of what the tokens say without a model, trained and tested as a model is."""
    if not task.whole:
        # the logistic regression on which token it is: of each, the class that it mostly is. A
        # token that was never seen is what most are
        labels = asked(task.train)
        times = np.bincount(labels, minlength=len(task.classes)) / len(labels)
        table = np.tile(times, (V, 1))
        np.add.at(table, (task.train.ids[task.train.labels != NO_LABEL], labels), 1)
        predicted = table.argmax(1)[task.test[0].ids[task.test[0].labels != NO_LABEL]]
        return score(task, predicted, asked(task.test[0]))

    def bag(examples):
        """log(1 + how often a passage has each token) [n, V], of what is no padding."""
        counts = np.zeros((len(examples.ids), V), dtype=np.float32)
        for row, ids, labels in zip(counts, examples.ids, examples.labels):
            last = np.flatnonzero(labels != NO_LABEL)[-1]
            np.add.at(row, ids[:last + 1], 1)
        return torch.from_numpy(np.log1p(counts)).to(device)

    y = task.train.labels.max(1)  # one a passage
    classify, _ = choose_logistic(task, bag(task.train), y, bag(task.validation))
    return score(task, classify(bag(task.test[0])), asked(task.test[0]))


# ------------------------------------------------------------------------------------------------
# Logistic regression

def logistic_regression(x, y, n_classes, l2):
    """The (weight [F, K], bias [K]) that make mean cross-entropy + l2 / 2 * |weight|^2 smallest.

    x [n, F]: features; y [n]: the number of the class. All at once, by L-BFGS.
    """
    weight = torch.zeros(x.shape[1], n_classes, device=x.device, requires_grad=True)
    bias = torch.zeros(n_classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def choose_logistic(task, train, labels, validation):
    """The regression whose L2 is best on validation text: (a function from features [n, F] to
    classes [n], its L2). train, validation [n, F]: features; labels [n]: those of train.
    """
    y = torch.from_numpy(labels).to(train.device)
    best = -1
    for l2 in L2:
        weight, bias = logistic_regression(train, y, len(task.classes), l2)

        def predict(x, weight=weight, bias=bias):
            return (x @ weight + bias).argmax(1).cpu().numpy()

        reached = score(task, predict(validation), asked(task.validation))
        if reached > best:
            best, chosen, chosen_l2 = reached, predict, l2
    return chosen, chosen_l2


# ------------------------------------------------------------------------------------------------
# The model and its states

def states_of(model, base, labels, row):
    """The last states [m, D], fp32, of those tokens of passages base [n, T] that have a label.

    row [V]: the ids of the language that it is read in.
    """
    device = model.embedding.device
    ids, here = torch.from_numpy(row[base]).to(device), torch.from_numpy(labels != NO_LABEL)
    return model.norm(model.residual_stream(ids)[-1])[here.to(device)].float()


@torch.no_grad()
def read(model, examples, row):
    """The same of all passages, a few at a time."""
    n, T = examples.ids.shape
    at_a_time, found = max(1, 4096 // T), []
    for i in range(0, n, at_a_time):
        here = slice(i, i + at_a_time)
        found.append(states_of(model, examples.ids[here], examples.labels[here], row))
    return torch.cat(found)


def probe(model, task, table):
    """Learn the task from the model's states in EN1: ([score in each language], the L2 chosen)."""
    train = read(model, task.train, table[0])
    mean, std = train.mean(0), train.std(0) + 1e-5
    validation = read(model, task.validation, table[0])
    classify, l2 = choose_logistic(task, (train - mean) / std, asked(task.train),
                                   (validation - mean) / std)
    scores = []
    for test, row in zip(task.test, table):
        x = (read(model, test, row) - mean) / std
        scores.append(score(task, classify(x), asked(test)))
    return scores, l2


def finetune(model, task, row, rate, seed, say=None):
    """A copy of the model, and a linear head on its states, trained on the task: (model, head).

    row [V]: the ids of EN1. rate: the learning rate of Adam, which falls to zero.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(model)
    head = torch.nn.Linear(len(model.norm.weight), len(task.classes))  # drawn on the CPU
    head = head.to(model.embedding.device)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    n = len(task.train.ids)
    steps = EPOCHS * -(-n // BATCH)

    rng, step = np.random.default_rng([seed, 8]), 0
    for _ in range(EPOCHS):
        order = rng.permutation(n)
        for i in range(0, n, BATCH):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            base, labels = task.train.ids[order[i:i + BATCH]], task.train.labels[order[i:i + BATCH]]
            logits = head(states_of(model, base, labels, row))
            y = torch.from_numpy(labels[labels != NO_LABEL]).to(logits.device)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            step += 1
            if say:
                say(step / steps)
    return model, head


@torch.no_grad()
def classify(model, head, examples, row):
    """The classes [m] that a fine-tuned model gives all tokens of which something is asked."""
    return head(read(model, examples, row)).argmax(1).cpu().numpy()


def choose_finetuned(model, task, row, seed, say=None):
    """Fine-tune with each learning rate; what is best on validation text: (model, head, rate)."""
    best = -1
    for rate in RATES:
        say_rate = partial(say, rate) if say else None
        tuned, head = finetune(model, task, row, rate, seed, say_rate)
        reached = score(task, classify(tuned, head, task.validation, row), asked(task.validation))
        if reached > best:
            best, chosen = reached, (tuned, head, rate)
    return chosen


# ------------------------------------------------------------------------------------------------
# A run

def transfer(run, name, seed, say=None):
    """Learn a task in the run's first language, do it in each: what transfer.json has of it.

    name: of the task, for make_task. say: called with a learning rate, and how much is done.
    Raises BadInput.
    """
    task = make_task(run, name, seed)
    probed, l2 = probe(run.model, task, run.table)
    tuned, head, rate = choose_finetuned(run.model, task, run.table[0], seed, say)
    scores, accuracy = [], []
    for test, row in zip(task.test, run.table):
        predicted = classify(tuned, head, test, row)
        scores.append(score(task, predicted, asked(test)))
        accuracy.append((predicted == asked(test)).mean().item())
    return {
        "classes": task.classes,
        "measure": task.measure,
        "note": task.note,
        "examples": [len(part.ids) for part in (task.train, task.validation, task.test[0])],
        "seed": seed,
        "chance": chance(task),
        "tokens": from_tokens(task, run.corpora[0]["vocab_size"], run.device),
        "probe": dict(zip(run.names, probed)),
        "fine-tuned": dict(zip(run.names, scores)),
        # the same fine-tuned: F1 is high in EN2 too where a model says "code" of everything
        "accuracy": dict(zip(run.names, accuracy)),
        "l2": l2,
        "learning_rate": rate,
    }


def tasks_before(folder, checkpoint):
    """The tasks that transfer.json has of this checkpoint already, which others are not to take the
    place of; {} if there are none.
    """
    try:
        before = json.loads((folder / "transfer.json").read_text())
        return before["tasks"] if before["checkpoint"] == checkpoint else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def alignment(run):
    """Centred cosine of the run's languages in its middle layer, from its align.json, or None where
    there is none of this model.
    """
    try:
        result = json.loads((run.folder / "align.json").read_text())
    except (OSError, ValueError):
        return None
    # of another checkpoint, or of an older align.py
    if result.get("checkpoint") != data.file_sha256(run.folder / "model.pt"):
        return None
    if "names" not in result:
        return None
    layer = align.summary(result)["layers"][len(run.model.blocks) // 2]
    return layer["centred" if run.clones else "matched_centred"]["value"]


def first_and_others(result):
    """The scores of a task, for tables and pictures: [probe, first language, probe, mean of the
    others, and the same two fine-tuned].
    """
    scores = []
    for way in ("probe", "fine-tuned"):
        first, *others = result[way].values()
        scores += [first, float(np.mean(others))]
    return scores


def accuracy_elsewhere(result):
    """The accuracy, fine-tuned, in the languages that the task was not learned in: their mean."""
    return float(np.mean(list(result["accuracy"].values())[1:]))


def by_mix(found, name):
    """{mix: [first_and_others of each run]} of a task. found: what --out writes of each run."""
    mixes = {}
    for entry in found:
        mixes.setdefault(entry["mix"], []).append(first_and_others(entry["tasks"][name]))
    return mixes


def follows(found, name):
    """How the others' accuracy, fine-tuned, goes with the centred cosine, over the runs that have
    it: (how many, the correlation of all, that within a mix), None where there are too few.

    Within a mix: each run's difference to the mean of its mix, so that two mixes which differ in
    both do not look like a law.
    """
    runs_with = [entry for entry in found if entry["centred"] is not None]
    points = np.array([(entry["centred"], accuracy_elsewhere(entry["tasks"][name]))
                       for entry in runs_with])
    if len(points) < 3:
        return len(points), None, None
    mixes = np.array([entry["mix"] for entry in runs_with])
    within = points.copy()
    for mix in set(mixes):
        within[mixes == mix] -= within[mixes == mix].mean(0)
    free = len(points) - len(set(mixes))  # differences that are not 0 by construction
    return len(points), correlation(points), correlation(within) if free > 1 else None


def correlation(points):
    """Pearson's, of points [n, 2]; None where one of the two does not vary."""
    x, y = points.T - points.mean(0)[:, None]
    size = np.sqrt(x @ x * (y @ y))
    return float(x @ y / size) if size > 1e-12 else None


# ------------------------------------------------------------------------------------------------
# The command

def print_result(folder, name, result):
    """One run and task: what was done, and the score in each language."""
    train, validation, test = result["examples"]
    what = ", ".join(result["classes"][:MOST]) + (" ..." if len(result["classes"]) > MOST else "")
    print(f"\n{folder}, {name}: {what}\n  {result['measure']} on {plural(test, 'passage')}, "
          f"{train} to learn from, {validation} to choose by")
    if result["note"]:
        print(f"  {result['note']}")
    print(f"  chance {result['chance']:.3f}, tokens alone {result['tokens']:.3f}")
    for way, chosen in (("probe", f"L2 {result['l2']:g}"),
                        ("fine-tuned", f"learning rate {result['learning_rate']:g}")):
        scores = "  ".join(f"{language} {value:.3f}" for language, value in result[way].items())
        print(f"  {way:10}  {scores}  ({chosen})", flush=True)


def print_mixes(found, name, languages):
    """The mean over the runs of each mix, beside the paper's, and whether it follows alignment."""
    measure = found[0]["tasks"][name]["measure"]
    print(f"\n{name}, {measure}: mean over runs, ± their standard deviation")
    second = languages[1] if len(languages) == 2 else "others"
    head = "".join(f"{way} {language}".rjust(18) for way in ("probe", "fine-tuned")
                   for language in (languages[0], second))
    beside = numbers.GLUE if name == "source" else {}  # which is scored as GLUE is
    print(f"{'mix':14}{'runs':>5}{head}" + ("   paper: GLUE, fine-tuned" if beside else ""))
    for mix, scores in by_mix(found, name).items():
        cells = ""
        for values in zip(*scores):
            cells += stat(values, ".3f").rjust(18)
        paper = beside.get(mix)
        theirs = "   EN1 {:.2f}  EN2 {:.2f}".format(*paper) if paper else ""
        print(f"{mix:14}{len(scores):5}{cells}{theirs}")

    n, overall, within = follows(found, name)
    if overall is not None:
        words = f", within a mix {within:.2f}" if within is not None else ""
        print(f"accuracy of {second}, fine-tuned, with the centred cosine of the middle layer: "
              f"correlation {overall:.2f} over {n} runs{words}")


def check_run(folder, config, names):
    """Raise BadInput for a run that cannot do these tasks."""
    if config.arch == "encoder-decoder":
        raise BadInput(f"{folder} is an encoder-decoder, whose states are of halves of a passage: "
                       "give decoders or encoders")
    for name in names:
        if not runs.are_clones(config) and name != "marks":
            raise BadInput(f"--task={name}: the languages of {folder} are real, and what it asks "
                           "is in one of them: --task=marks has a text for each")


def kind_of(config):
    """What runs have to have in common for their mean to say something."""
    return tuple(config[key] for key in ("arch", "heads", "cloned", "clone", "languages", "steps",
                                         "n_layer", "d_model"))


def mix_of(config):
    """What a mix is called, as in paper/numbers.py: "ratio0.9", or "schedule0.9,0.1"."""
    return f"schedule{config.schedule}" if config.schedule else f"ratio{config.ratio}"


def main():
    parser = Parser(__doc__)
    parser.positional("runs", "folders of finished runs of two languages or more, of one corpus")
    parser.option("--task", None, "source, marks or the path of a file; may be given again "
                  "(default: source and marks)", several=True)
    parser.option("--seed", None, "of what is drawn: passages, their order, the head (default: "
                  "the run's)", int)
    parser.option("--device", "auto", "cpu, cuda or mps; auto takes the best there is")
    parser.option("--out", None, "a folder for transfer.json and transfer.png of all runs "
                  "(default: none)")
    args, _ = parser.parse()
    names = args.task or list(BUILT_IN)
    names = list(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in names:
        if name not in BUILT_IN:
            read_file(name)  # before anything is measured

    if args.seed is not None and args.seed < 0:
        raise BadInput(f"--seed={args.seed}: expected 0 or more")
    if args.out:
        make_folder("--out", args.out)

    found, without = [], []  # without: those of which nobody knows how alike the languages are
    check = partial(check_run, names=names)
    for run in runs.open_runs(args.runs, pick_device(args.device), minimum=2, check=check):
        tasks = {}
        for name in names:
            def say(rate, share, name=name, folder=run.folder):
                progress(f"{folder}, {name}: fine-tuned at {rate:g}, {share:.0%}")

            progress(f"{run.folder}, {name}: probe")
            seed = run.config.seed if args.seed is None else args.seed
            tasks[name] = transfer(run, name, seed, say)
            progress("")
            print_result(run.folder, name, tasks[name])
        checkpoint = data.file_sha256(run.folder / "model.pt")
        before = tasks_before(run.folder, checkpoint)
        write_json(run.folder / "transfer.json", {"checkpoint": checkpoint,
                                                  "tasks": before | tasks})
        found.append({
            "run": run.folder.name,
            "mix": mix_of(run.config),
            "config": vars(run.config),
            "checkpoint": checkpoint,
            "centred": alignment(run),
            "tasks": tasks,
        })
        if found[-1]["centred"] is None:
            without.append(run.folder)
        languages = run.names

    print("\nF1: of all labels but the first, 1 if all of them are found and nothing else. chance: "
          "the best guess that\ndoes not look. tokens alone: what can be known without a model. "
          "Both of the first language")
    alike = len({kind_of(entry["config"]) for entry in found}) == 1
    if alike:
        for name in names:
            print_mixes(found, name, languages)
    else:
        print("\nthe runs differ in more than their mix and seed: no means, and no picture")
    if without:
        print(f"\n{plural(len(without), 'run')} without an align.json, which says how alike the "
              f"languages are: python align.py {without[0]}")

    print("\ntransfer.json is in each run's folder")
    if args.out:
        write_json(f"{args.out}/transfer.json", {"runs": found})
        if alike:
            plots.transfer(f"{args.out}/transfer.png", picture(found, names, languages))
            print(f"{args.out}/transfer.png shows them all")
    else:
        print("next: the same with --out=FOLDER draws what it says of all runs")


def picture(found, names, languages):
    """What plots.transfer draws: {task: its numbers}."""
    result = {}
    for name in names:
        tasks = [entry["tasks"][name] for entry in found]
        mixes = by_mix(found, name)
        result[name] = {
            "measure": tasks[0]["measure"],
            "languages": [languages[0], languages[1] if len(languages) == 2 else "others"],
            "mixes": {mix: [list(seeds) for seeds in zip(*scores)]
                      for mix, scores in mixes.items()},
            "chance": [task["chance"] for task in tasks],
            "tokens": [task["tokens"] for task in tasks],
            "paper": numbers.GLUE if name == "source" else {},
            "alike": [(entry["centred"], entry["mix"], accuracy_elsewhere(entry["tasks"][name]))
                      for entry in found if entry["centred"] is not None],
        }
    return result


if __name__ == "__main__":
    run_main(main)
