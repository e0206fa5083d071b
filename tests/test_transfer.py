import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch
from conftest import fails, train_here

import align
import clone
import data
import runs
from lib.bpe import PATTERN
from model import GPT
from paper import transfer
from paper.transfer import Examples, Task

V, T = 200, 8
TABLE = clone.clone_table(np.ones(V), 2)


def make(copied=False, **changes):
    """A decoder of two languages. In EN1, tokens below V / 2 have something in common.

    copied: the second language is a copy of the first.
    """
    torch.manual_seed(0)
    config = dict(vocab_size=2 * V, context=T, n_layer=1, n_head=2, d_head=8, d_model=32,
                  embedding_std=0.2, tied=False, bias=True, embedding_scale=True, arch="decoder",
                  heads="shared")
    model = GPT(config | changes)
    with torch.no_grad():
        model.embedding[:V // 2, :4] += 1
        if copied:
            model.embedding[V:] = model.embedding[:V]
    return model


def planted(whole=True, n=(120, 40, 100)):
    """A task that the tokens decide: is a token, or the last one of a passage, below V / 2?"""
    rng, parts = np.random.default_rng(0), []
    for size in n:
        ids = rng.integers(0, V, (size, T))
        labels = (ids < V // 2).astype(np.int64)
        parts.append(transfer.at_the_end(ids, labels[:, -1]) if whole else Examples(ids, labels))
    train, validation, test = parts
    return Task(["high", "low"], whole, train, validation, [test, test])


def run_of(model, table=TABLE, **more):
    return SimpleNamespace(model=model, table=table, names=["EN1", "EN2"], clones=True,
                           corpora=[{"vocab_size": V}] * 2, device=torch.device("cpu"), **more)


# ------------------------------------------------------------------------------------------------
# Transfer

@pytest.mark.parametrize("whole", [True, False])
def test_a_planted_task_is_learned_in_EN1_and_strange_rows_know_nothing_of_it(whole, monkeypatch):
    task = planted(whole)
    monkeypatch.setattr(transfer, "make_task", lambda run, name, seed: task)
    monkeypatch.setattr(transfer, "RATES", (1e-2,))
    result = transfer.transfer(run_of(make()), "planted", 0)
    for way in ("probe", "fine-tuned"):
        assert result[way]["EN1"] > 0.85, way
        assert result[way]["EN2"] < result["chance"] + 0.15, way
    assert json.loads(json.dumps(result)) == result


def test_a_copied_language_is_as_good_to_the_last_answer():
    task, model = planted(), make(copied=True)
    [mine, theirs], _ = transfer.probe(model, task, TABLE)
    assert mine == theirs > 0.9
    states = [transfer.read(model, task.test[0], row) for row in TABLE]
    assert torch.equal(*states)

    # fine-tuning moves EN1's rows alone: the copy knows nearly all of it, and EN1's own ids all
    tuned, head = transfer.finetune(model, task, TABLE[0], 1e-2, 0)
    labels = transfer.asked(task.test[0])
    for row in TABLE:
        assert transfer.score(task, transfer.classify(tuned, head, task.test[0], row), labels) > 0.9


def test_fine_tuning_trains_a_copy_in_the_language_that_it_is_given():
    task, model = planted(n=(40, 10, 10)), make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned, _ = transfer.finetune(model, task, TABLE[0], 1e-3, 0)
    again, _ = transfer.finetune(model, task, TABLE[0], 1e-3, 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(tuned.state_dict()[name], again.state_dict()[name]), name
    assert torch.equal(tuned.embedding[V:], model.embedding[V:])
    used = np.unique(task.train.ids)
    assert (tuned.embedding[used] != model.embedding[used]).any(1).all()
    assert not torch.equal(tuned.blocks[0].up, model.blocks[0].up)


def test_the_learning_rate_of_fine_tuning_falls_to_zero(monkeypatch):
    rates = []

    class Adam(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    task = planted(n=(3 * transfer.BATCH, 10, 10))
    transfer.finetune(make(), task, TABLE[0], 0.01, 0)
    steps = 3 * transfer.EPOCHS
    assert rates == pytest.approx([0.01 * (1 - step / steps) for step in range(steps)])


def test_the_states_of_many_passages_are_those_of_each():
    model, many = make(), planted(False, n=(1, 1, 1200)).test[0]  # 1,200 x 8 tokens: three batches
    states = transfer.read(model, many, TABLE[1])
    for i in (0, 511, 512, 1023, 1024, 1199):
        one = transfer.read(model, Examples(many.ids[i:i + 1], many.labels[i:i + 1]), TABLE[1])
        torch.testing.assert_close(states[i * T:(i + 1) * T], one)
    assert len(states) == 1200 * T


def test_all_is_chosen_on_validation_text_alone(monkeypatch):
    """With test labels turned round, a choice by test text would take what learns nothing."""
    monkeypatch.setattr(transfer, "RATES", (1e-7, 1e-2))
    monkeypatch.setattr(transfer, "L2", (1e8, 1e-2))
    chosen = []
    for turn in (False, True):
        task = planted(n=(100, 40, 40))
        if turn:
            ids, labels = task.test[0]
            task.test = [Examples(ids, np.where(labels >= 0, 1 - labels, labels))] * 2
        monkeypatch.setattr(transfer, "make_task", lambda run, name, seed, task=task: task)
        result = transfer.transfer(run_of(make()), "planted", 0)
        chosen.append((result["learning_rate"], result["l2"]))
    assert chosen == [(1e-2, 1e-2)] * 2


def test_padding_does_not_change_what_a_decoder_answers():
    model, rng = make(), np.random.default_rng(0)
    short = transfer.at_the_end(rng.integers(0, V, (5, 6)), np.arange(5) % 2)
    ids, labels = np.full((5, T), V - 1), np.full((5, T), transfer.NO_LABEL)
    ids[:, :6], labels[:, :6] = short
    padded = Examples(ids, labels)
    states = [transfer.read(model, part, TABLE[1]) for part in (short, padded)]
    assert torch.allclose(*states, atol=1e-5) and states[0].shape == (5, 32)
    assert transfer.asked(padded).tolist() == [0, 1, 0, 1, 0]


def test_an_encoder_is_read_too_and_sees_what_comes_after():
    model, ids = make(arch="encoder"), np.random.default_rng(0).integers(0, V, (2, T))
    ids[1, :-1] = ids[0, :-1]  # they differ in the last token alone
    first = np.full(ids.shape, transfer.NO_LABEL)
    first[:, 0] = 0
    a, b = transfer.read(model, Examples(ids, first), TABLE[0])
    assert not torch.allclose(a, b)
    a, b = transfer.read(make(), Examples(ids, first), TABLE[0])
    assert torch.allclose(a, b, atol=1e-6)


# ------------------------------------------------------------------------------------------------
# Scores, and what is known without a model

def test_scores_by_hand():
    tokens = planted(whole=False)
    labels, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    assert transfer.score(tokens, predicted, labels) == pytest.approx(2 / 3)  # of 3 and 3, 2
    assert transfer.score(planted(), predicted, labels) == pytest.approx(3 / 5)
    assert transfer.score(tokens, np.zeros(5, dtype=int), labels) == 0
    # of three classes the first counts for nothing, and a wrong one of the others is no hit
    labels, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 0, 2, 2])
    assert transfer.score(tokens, predicted, labels) == pytest.approx(1 / 2)


def test_chance_is_the_best_guess_that_does_not_look():
    ids = np.zeros((1, 10), dtype=np.int64)
    labels = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]])
    task = Task(["prose", "code"], False, None, None, [Examples(ids, labels)])
    assert transfer.chance(task) == pytest.approx(2 * 3 / (10 + 3))
    task = Task(["a", "b"], True, None, None, [transfer.at_the_end(np.zeros((4, 3)), [0, 0, 0, 1])])
    assert transfer.chance(task) == 3 / 4


def test_what_tokens_give_away_needs_no_model():
    assert transfer.from_tokens(planted(whole=False), V, "cpu") > 0.95
    # the last token of a passage is lost in its bag, but a rare token in any place is not
    assert transfer.from_tokens(planted(), V, "cpu") < 0.8
    task = planted()
    for part in (task.train, task.validation, task.test[0]):
        part.ids[:] = part.ids % 50
        part.ids[np.arange(len(part.ids)), np.arange(len(part.ids)) % T] = 60 + transfer.asked(part)
    assert transfer.from_tokens(task, V, "cpu") == 1


def test_padding_is_in_no_bag():
    """Here all that tells the two classes apart stands after the last token."""
    rng, parts = np.random.default_rng(0), []
    for n in (200, 40, 200):
        ids, labels = rng.integers(0, 20, (n, T)), np.full((n, T), transfer.NO_LABEL)
        labels[:, 4] = np.arange(n) % 2
        ids[:, 5:] = 30 + labels[:, 4:5]
        parts.append(Examples(ids, labels))
    task = Task(["a", "b"], True, *parts[:2], parts[2:])
    assert transfer.from_tokens(task, V, "cpu") < 0.65


def test_logistic_regression_finds_a_plane_and_nothing_in_noise():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(600, 10, generator=rng)
    planes = torch.randn(10, 3, generator=rng)
    y = (x @ planes).argmax(1)
    weight, bias = transfer.logistic_regression(x[:400], y[:400], 3, 1e-4)
    right = ((x[400:] @ weight + bias).argmax(1) == y[400:]).float().mean()
    assert right > 0.93
    noise = torch.randint(3, (600,), generator=rng)
    weight, bias = transfer.logistic_regression(x[:400], noise[:400], 3, 1e-4)
    right = ((x[400:] @ weight + bias).argmax(1) == noise[400:]).float().mean()
    assert 0.2 < right < 0.47


def test_logistic_regression_is_at_the_minimum_of_what_it_says():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 5, generator=rng), torch.randint(3, (80,), generator=rng)
    weight, bias = transfer.logistic_regression(x, y, 3, 0.1)
    error = (x @ weight + bias).softmax(1) - torch.eye(3)[y]
    assert torch.allclose(x.T @ error / 80 + 0.1 * weight, torch.zeros(5, 3), atol=1e-4)
    assert torch.allclose(error.mean(0), torch.zeros(3), atol=1e-4)


# ------------------------------------------------------------------------------------------------
# source

@pytest.mark.parametrize("name, source", [
    ("numpy#8", "numpy"), ("typing-extensions", "typing-extensions"), ("torch#12/3", "torch"),
    ("ENG18410_Trollope", "Trollope"), ("FRA01002_DelarueMardrus.xml", "DelarueMardrus"),
    ("Austen_Emma_1815/7", "Austen"), ("Austen_Emma.txt", "Austen"),
])
def test_the_source_of_a_document(name, source):
    assert transfer.source_of(name) == source


def corpus_of(folder, splits):
    """A prepared corpus {split: [(name, passages)]}, and {token: (split, name)}: each document has
    a token of its own and no other, so that a passage says where it is from.
    """
    where, names = {}, {}
    for split, found in splits.items():
        ids = []
        for name, n in found:
            token = len(where)
            where[token] = split, name
            ids += [token] * (n * T + 3) + [999]
        names[split] = [name for name, _ in found]
        np.array(ids, dtype=np.uint16).tofile(folder / f"{split}.bin")
    return {"folder": folder, "dtype": "uint16", "eot": 999, "documents": names,
            "vocab_size": V}, where


def source_run(folder, splits):
    corpus, where = corpus_of(folder, splits)
    run = run_of(None, folder="runs/a", config=SimpleNamespace(context=T))
    run.corpora = [corpus] * 2
    return run, where


# d has one training document; e is nowhere held out, f in no training text, g hardly held out
SPLITS = {
    "train": [("a", 70), ("a#1", 80), ("a#2", 60), ("b", 90), ("b#1", 90), ("c", 100), ("c#1", 30),
              ("d", 120), ("e", 300), ("g", 200)],
    "val": [("a#3", 25), ("b#2", 60), ("c#2", 40), ("g#1", 2)],
    "test": [("a#4", 10), ("c#3", 30), ("d#1", 50), ("f", 100)],
}


def test_passages_are_of_documents_that_were_held_out_and_balanced(tmp_path):
    run, where = source_run(tmp_path, SPLITS)
    task = transfer.source_task(run, 0)
    assert task.classes == ["a", "b", "c", "d"] and task.whole
    seen = []
    for part in (task.train, task.validation, task.test[0]):
        assert (part.ids == part.ids[:, :1]).all()  # none crosses the end of a document
        labels = part.labels[:, -1]
        asked = T // 2 if part is task.train else 1  # of each passage, its last tokens
        assert (part.labels[:, -asked:] == labels[:, None]).all()
        assert len(transfer.asked(part)) == asked * len(part.ids)
        assert len(set(np.bincount(labels))) == 1  # as many of each class
        for token, label in zip(part.ids[:, 0], labels):
            assert transfer.source_of(where[token][1]) == task.classes[label]
        seen.append({where[token] for token in part.ids[:, 0]})
    train, validation, test = seen
    assert {split for split, _ in train | validation} == {"train"}
    assert {split for split, _ in test} == {"val", "test"}
    assert train & validation == {("train", "d")}  # the only document of its class
    assert len(task.test[0].ids) == 4 * 35  # what a, the poorest, has
    assert task.test[0] is task.test[1]


def test_the_seed_draws_the_passages(tmp_path):
    run, _ = source_run(tmp_path, SPLITS)
    one, same, other = (transfer.source_task(run, seed) for seed in (0, 0, 1))
    assert np.array_equal(one.train.ids, same.train.ids)
    assert not np.array_equal(one.train.ids, other.train.ids)


def test_the_last_tenth_of_an_only_document_is_for_validation():
    rng = np.random.default_rng(0)
    ids = np.arange(40).reshape(20, 2)
    train, validation = transfer.hold_out([ids], rng, 5)
    assert train.tolist() == ids[:18].tolist() and validation.tolist() == ids[18:].tolist()
    # of several, whole documents, until there are enough, and never all of them
    several = [np.full((4, 2), i) for i in range(5)]
    for enough, n in ((1, 1), (4, 1), (5, 2), (100, 4)):
        train, validation = transfer.hold_out(several, rng, enough)
        assert len(validation) == 4 * n and len(train) == 4 * (5 - n)
        assert not set(train[:, 0]) & set(validation[:, 0])


def test_eight_sources_at_most_and_four_at_least(tmp_path):
    many = {"train": [(f"s{i}", 30) for i in range(10)], "val": [("t", 1)],
            "test": [(f"s{i}#1", 30 + i) for i in range(10)]}
    many["train"] += [(f"s{i}#2", 30) for i in range(10)]  # for validation
    run, _ = source_run(tmp_path, many)
    assert transfer.source_task(run, 0).classes == [f"s{i}" for i in range(2, 10)]
    few = {split: [entry for entry in found if entry[0][1:2] in ("", "0", "1", "2")]
           for split, found in many.items()}
    run, _ = source_run(tmp_path, few)
    with pytest.raises(runs.BadInput, match="has 3 packages or authors .* expected 4"):
        transfer.source_task(run, 0)


# ------------------------------------------------------------------------------------------------
# marks

def encoding(*merges):
    """A tokeniser of single bytes, and some merges."""
    ranks = {bytes([i]): i for i in range(256)}
    for merge in merges:
        ranks[merge] = len(ranks)
    return tiktoken.Encoding("test", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": len(ranks)})


def parts(pieces):
    """(all text, the text that has label 1) of a text, token by token of single bytes."""
    enc = encoding()
    ids, labels = transfer.label_tokens(pieces, enc)
    return enc.decode(ids.tolist()), enc.decode(ids[labels == 1].tolist())


def test_the_lines_of_a_doctest_are_code():
    text = ("Adds two. Use ... as you like.\n\n    >>> def f(a):\n    ...     return a\n    ...\n"
            "    >>> f(3)\n    3\n\nSee also >>> there.\n>>> 1\n1")
    whole, code = parts(transfer.without_prompts(text))
    assert code == "    def f(a):\n        return a\n    \n    f(3)\n    3\n1\n1\n"
    assert whole == ("Adds two. Use ... as you like.\n\n    def f(a):\n        return a\n    \n"
                     "    f(3)\n    3\n\nSee also >>> there.\n1\n1\n")


def test_what_stands_between_quotation_marks_is_speech():
    text = ('“Go on,” he said. “And then?”\n"Nothing." She "laughed."\n« Oui », dit-il.\n'
            "“An open one\nends with its line.\n“One “again.”\nNo speech” here’s a stray mark\n")
    whole, speech = parts(transfer.without_quotes(text))
    assert speech == "Go on,And then?Nothing.laughed.OuiAn open oneOne again."
    assert whole == ("Go on, he said. And then?\nNothing. She laughed.\nOui, dit-il.\n"
                     "An open one\nends with its line.\nOne again.\n"
                     "No speech here’s a stray mark\n\n")
    assert not set('“”«»"') & set(whole)


def test_of_a_line_with_a_dash_nothing_is_asked():
    pieces = transfer.without_quotes("« Oui », dit-il.\n— Non, « dit » -elle.\nBien—sûr.")
    ids, labels = transfer.label_tokens(pieces, encoding())
    unasked = encoding().decode(ids[labels == transfer.NO_LABEL].tolist())
    assert unasked == "— Non, dit -elle.\n"
    assert encoding().decode(ids[labels == 1].tolist()) == "Oui"


def test_a_token_with_the_blank_before_it_is_labelled_by_its_word():
    enc = encoding(b"He", b" s", b"ai", b" sai", b" said", b" G", b" Go", b" on", "é".encode())
    ids, labels = transfer.label_tokens(transfer.without_quotes("He said, “Go on.” é"), enc)
    spelt = [(enc.decode([i]), label) for i, label in zip(ids.tolist(), labels.tolist())]
    assert spelt == [("He", 0), (" said", 0), (",", 0), (" Go", 1), (" on", 1), (".", 1),
                     (" ", 0), ("é", 0), ("\n", 0)]


def test_windows_have_some_of_both():
    enc, T = encoding(), 10
    text = "x" * 30 + "\n" + "aaaa“bbbbbb”" * 3 + "c" * 50
    ids = np.array(enc.encode(text))
    windows = transfer.mixed_windows(ids, enc, transfer.without_quotes, T)
    shares = windows[:, 1].mean(1)
    assert len(windows) and ((shares >= 0.1) & (shares <= 0.9)).all()
    assert (windows[:, 0][windows[:, 1] == 1] == ord("b")).all()
    assert (windows[:, 0][windows[:, 1] == 0] != ord("b")).all()
    # a text that has hardly any marks marks its speech in another way, or has none
    ids = np.array(enc.encode(text + "d" * 900))
    assert len(transfer.mixed_windows(ids, enc, transfer.without_quotes, T)) == 0


# ------------------------------------------------------------------------------------------------
# The user's own

def file_run(T=T):
    enc = encoding()
    run = run_of(None, config=SimpleNamespace(context=T), encoders=[enc, enc])
    run.corpora = [{"eot": 256, "vocab_size": 257}] * 2
    return run


def test_lines_of_a_text_and_its_label(here):
    lines = [f"{'word' if i % 3 else 'a longer text'} {i}\t{'pos' if i % 3 else 'neg'}"
             for i in range(30)]
    (here / "a.tsv").write_text("\n".join(lines) + "\n")
    task = transfer.make_task(file_run(), "a.tsv", 0)
    assert task.classes == ["pos", "neg"] and task.whole and task.measure == "accuracy"
    assert [len(part.ids) for part in (task.train, task.validation, task.test[0])] == [24, 3, 3]
    assert task.note == "10 of 30 examples cut to 8 tokens"
    texts = set()
    for part in (task.train, task.validation, task.test[0]):
        for ids, labels in zip(part.ids, part.labels):
            *before, last = np.flatnonzero(labels >= 0)
            assert before == (list(range((last + 1) // 2, last)) if part is task.train else [])
            assert (labels[before] == labels[last]).all()
            text = bytes(ids[:last + 1].tolist()).decode()
            assert (ids[last + 1:] == 256).all()
            assert text.startswith("word" if labels[last] == 0 else "a longer")
            texts.add(text)
    assert len(texts) == 21  # none in two parts: those that were cut are one and the same


def test_words_and_their_labels(here):
    sentence = "He\tO\nsaw O\nAda\tPER\n"
    (here / "a.conll").write_text("\n".join([sentence] * 12) + "\n\n")
    task = transfer.make_task(file_run(T=12), "a.conll", 0)
    assert task.classes == ["O", "PER"] and not task.whole and task.note == ""
    assert len(task.train.ids) == 10
    ids, labels = task.train.ids[0], task.train.labels[0]
    assert bytes(ids[:10].tolist()) == b"He saw Ada" and (ids[10:] == 256).all()
    assert labels.tolist() == [0] * 6 + [1] * 4 + [transfer.NO_LABEL] * 2


@pytest.mark.parametrize("text, expected", [
    ("good\tpos\nbad neg\nfine\tpos\n\tneg\n", "a.txt: line 2, 4: expected a text, a tab and a"),
    ("a\tb\tc\n" * 8, "line 1, 2, 3, 4, 5 ...: expected a text"),
    ("He O\nsaw\n\nAda PER x\n", "line 2, 4: expected a word and its label"),
    ("a\tpos\nb\tneg\n", "2 examples of 2 labels: expected ten or more"),
    ("a\tpos\n" * 20, "of 1 label: expected"),
])
def test_malformed_lines_are_refused_by_number(text, expected, here):
    (here / "a.txt").write_text(text)
    with pytest.raises(runs.BadInput) as error:
        transfer.make_task(file_run(), "a.txt", 0)
    assert expected in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------
# Many runs, and the command

def entry(mix, cosine, second, name="source"):
    ways = {way: {"EN1": 0.9, "EN2": second} for way in ("probe", "fine-tuned", "accuracy")}
    return {"run": "a", "mix": mix, "centred": cosine, "tasks": {name: ways}}


def test_what_two_mixes_differ_in_is_no_law_within_them():
    found = [entry("ratio0.9", 0.7, 0.61), entry("ratio0.9", 0.8, 0.6),
             entry("ratio0.9", 0.9, 0.59), entry("ratio0.5", 0.1, 0.21),
             entry("ratio0.5", 0.2, 0.2), entry("ratio0.5", None, 0.9)]
    n, overall, within = transfer.follows(found, "source")
    assert n == 5 and overall > 0.9 and within == pytest.approx(-1)
    assert transfer.follows(found[:2], "source") == (2, None, None)
    assert transfer.by_mix(found, "source")["ratio0.5"][0] == [0.9, 0.21, 0.9, 0.21]


def test_real_languages_and_halves_are_refused():
    config = SimpleNamespace(arch="decoder", corpus=["a", "b"], languages=2)
    transfer.check_run("runs/a", config, ["marks"])
    for name in ("source", "a.tsv"):
        with pytest.raises(runs.BadInput, match="are real"):
            transfer.check_run("runs/a", config, [name])
    config = SimpleNamespace(arch="encoder-decoder", corpus="a", languages=2)
    with pytest.raises(runs.BadInput, match="halves"):
        transfer.check_run("runs/a", config, ["marks"])


def marks_corpus(folder, letters):
    """A prepared corpus in which every document has a letter of its own: half speech, half told."""
    folder.mkdir()
    names, it = {}, iter(letters)
    for split, n in (("train", 10), ("val", 3), ("test", 3)):
        ids, names[split] = [], []
        for c in (next(it) for _ in range(n)):
            ids += [*f"“{c * 5}”{c * 5}".encode() * 12, 256]
            names[split].append(c)
        np.array(ids, dtype=np.uint16).tofile(folder / f"{split}.bin")
    return {"folder": folder, "dtype": "uint16", "eot": 256, "documents": names, "vocab_size": 257}


def test_marks_are_tested_on_documents_that_were_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "WINDOWS", (64, 16, 32))
    corpora = [marks_corpus(tmp_path / "a", "ABCDEFGHIJKLMNOP"),
               marks_corpus(tmp_path / "b", "abcdefghijklmnop")]
    enc = encoding()
    for clones in (True, False):
        run = SimpleNamespace(config=SimpleNamespace(context=10), encoders=[enc, enc],
                              corpora=[corpora[0]] * 2 if clones else corpora, clones=clones,
                              table=TABLE, folder="runs/a")
        task = transfer.marks_task(run, 0)
        seen = [set(bytes(part.ids.ravel().tolist()).decode().replace("\n", ""))
                for part in (task.train, task.validation, *task.test)]
        assert seen[0] | seen[1] <= set("ABCDEFGHIJ") and not seen[0] & seen[1]
        assert seen[2] <= set("KLMNOP")
        assert seen[3] <= set("KLMNOP" if clones else "klmnop")
        assert [len(p.ids) for p in (task.train, task.validation, *task.test)] == [64, 16, 32, 32]


def test_alignment_is_the_centred_cosine_of_the_middle_layer(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    kinds = ("cosine", "centred", "matched", "matched_centred")
    layers = [{kind: {"value": 10 * layer + i, "floor": 0, "above": True}
               for i, kind in enumerate(kinds)} for layer in range(5)]
    pair = {"layers": layers, "embeddings": {},
            "gradients": {"blocks.0.q": dict.fromkeys(align.GRADIENTS, 0.0)}}
    result = {"checkpoint": data.file_sha256(tmp_path / "model.pt"), "names": list("01234"),
              "pairs": {"EN1-EN2": pair}}
    run = SimpleNamespace(folder=tmp_path, clones=True, model=SimpleNamespace(blocks=[None] * 4))
    assert transfer.alignment(run) is None
    (tmp_path / "align.json").write_text(json.dumps(result))
    assert transfer.alignment(run) == 21
    run.clones = False
    assert transfer.alignment(run) == 23
    (tmp_path / "model.pt").write_bytes(b"others")
    assert transfer.alignment(run) is None


def test_what_the_numbers_of_many_runs_are_of():
    result = {"probe": {"EN1": 0.1, "EN2": 0.2, "EN3": 0.4},
              "fine-tuned": {"EN1": 0.5, "EN2": 0.6, "EN3": 0.8},
              "accuracy": {"EN1": 0.9, "EN2": 0.7, "EN3": 0.3}}
    assert transfer.first_and_others(result) == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert transfer.accuracy_elsewhere(result) == pytest.approx(0.5)


def test_accuracy_stands_beside_F1(monkeypatch):
    """Of a model that says the second class of everything."""
    task = planted(whole=False)
    labels = transfer.asked(task.test[0])
    monkeypatch.setattr(transfer, "make_task", lambda *_: task)
    monkeypatch.setattr(transfer, "probe", lambda *_: ([0, 0], 0.1))
    monkeypatch.setattr(transfer, "choose_finetuned", lambda *_: (None, None, 0.1))
    monkeypatch.setattr(transfer, "classify", lambda *_: np.ones(len(labels), dtype=int))
    result, share = transfer.transfer(run_of(make()), "planted", 0), labels.mean()
    assert result["fine-tuned"]["EN2"] == pytest.approx(2 * share / (1 + share))
    assert result["accuracy"]["EN2"] == pytest.approx(share)


def test_a_probe_is_scaled_by_EN1_alone(monkeypatch):
    """EN2's states are EN1's, but moved: what was learned in EN1 then says one class of all."""
    task = planted()

    def read(model, examples, row):
        x = 2.0 * transfer.asked(examples)[:, None] - 1
        x = x + 0.1 * np.random.default_rng(0).standard_normal((len(x), 3))
        return torch.from_numpy(x + 9 * (row[0] > 0)).float()

    monkeypatch.setattr(transfer, "read", read)
    [first, second], _ = transfer.probe(None, task, TABLE)
    assert first == 1 and second == transfer.asked(task.test[0]).mean()


@pytest.mark.parametrize("options, expected", [
    (["runs/a", "--task=no.tsv"], "expected source, marks or a file that can be read"),
    (["runs/a"], "runs/a is no run"),
    (["runs/a", "--seed=-1"], "--seed=-1: expected 0 or more"),
])
def test_bad_input_is_one_line(options, expected, here, monkeypatch, capsys):
    assert expected in fails(transfer.main, options, monkeypatch, capsys)
    assert not list(here.iterdir())


def test_the_command(tmp_path, monkeypatch, capsys):
    """Two runs on four authors who quote: both tasks, all files, and what the screen says."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(80):
        words = [f"{'abcd'[i % 4]}{word}" for word in ("sun", "tree", "river", "hill")]
        lines = []
        for _ in range(30):
            said, told = (" ".join(rng.choice(words, 5)) for _ in range(2))
            lines.append(f"“{said.upper()},” said {told}.")
        (folder / f"Writer{'abcd'[i % 4]}_Book{i}_1900.txt").write_text("\n".join(lines))
    tiny = ["--corpus=books", "--vocab_size=290", "--context=16", "--batch_size=8", "--n_layer=1",
            "--n_head=2", "--d_model=16", "--steps=3"]
    train_here(tmp_path, *tiny, "--run=a", "--ratio=0.9")
    train_here(tmp_path, *tiny, "--run=b", "--ratio=0.5", "--seed=3")
    monkeypatch.chdir(tmp_path)
    for size, values in (("PASSAGES", (20, 5, 20)), ("WINDOWS", (40, 10, 40)), ("L2", (0.1,)),
                         ("RATES", (1e-3,))):
        monkeypatch.setattr(transfer, size, values)
    monkeypatch.setattr("sys.argv", ["transfer.py", "runs/a", "runs/b", "--out=t"])
    transfer.main()
    screen = capsys.readouterr().out
    assert "Writera, Writerb, Writerc, Writerd" in screen and "narration, speech" in screen
    assert "paper" in screen and "EN1 0.71  EN2 0.65" in screen
    assert "2 runs without an align.json" in screen and "python align.py runs/a" in screen
    for name, seed in (("a", 0), ("b", 3)):
        result = json.loads((tmp_path / "runs" / name / "transfer.json").read_text())
        assert list(result["tasks"]) == ["source", "marks"]
        assert result["tasks"]["marks"]["seed"] == seed
        assert 0 <= result["tasks"]["marks"]["fine-tuned"]["EN2"] <= 1
    both = json.loads((tmp_path / "t/transfer.json").read_text())["runs"]
    assert [run["mix"] for run in both] == ["ratio0.9", "ratio0.5"]
    assert (tmp_path / "t/transfer.png").read_bytes().startswith(b"\x89PNG")
