import json

import numpy as np
import pytest
import torch
from conftest import fails, train_here, write_corpus

import align
import clone
from model import GPT

CPU = torch.device("cpu")
V, T = 200, 32
CONFIG = dict(vocab_size=2 * V, context=T, n_layer=3, n_head=2, d_head=8, d_model=32, embedding_std=0.02)
TABLE = clone.clone_table(V, 2, V - 1)
TEXT = np.stack([np.random.default_rng(t).permutation(V - 1)[:80] for t in range(T + 1)], axis=1)  # no token twice in a position: no two states alike


def planted(kind, tied=False):
    """A model whose second language is a copy of the first, or a stranger to it."""
    torch.manual_seed(0)
    model = GPT(CONFIG | {"tied": tied})
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (1.0 if "embedding" in name else 0.2))
        model.position.mul_(0.1 if kind == "stranger" else 1)
        if kind == "copy":
            for rows in (model.embedding, model.unembedding):
                rows[V:] = rows[:V]
    return model


# --- measures on arrays

def slow_cka(a, b):
    """Linear CKA in kernel form: the cosine of the two centred Gram matrices [n, n]."""
    grams = []
    for x in (a.double(), b.double()):
        gram, h = x @ x.T, torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
        grams.append((h @ gram @ h).flatten())
    return (grams[0] @ grams[1] / grams[0].norm() / grams[1].norm()).item()


def stream(a, b, batch=64, shuffle=False):
    cka = align.StreamingCKA()
    for x, y in zip(a.split(batch), b.split(batch)):
        cka.add(x, y, [torch.randperm(len(x)) for _ in range(align.SHUFFLES)] if shuffle else ())
    return cka


def test_streaming_cka_is_the_kernel_form_whatever_the_batches():
    torch.manual_seed(0)
    a = torch.randn(300, 20) + 100  # a large mean, as residual streams have
    b = a @ torch.randn(20, 15) + torch.randn(300, 15) * 5
    expected = slow_cka(a, b)
    assert 0.1 < expected < 0.95
    for batch in (1, 64, 300):
        assert stream(a, b, batch).value() == pytest.approx(expected, abs=1e-9)


def test_cka_does_not_see_rotation_scale_or_shift_and_sees_the_rest():
    torch.manual_seed(0)
    a = torch.randn(500, 16) * torch.linspace(0.1, 3, 16)
    rotation = torch.linalg.qr(torch.randn(16, 16))[0]
    assert stream(a, a @ rotation * 7 + 3).value() == pytest.approx(1, abs=1e-6)
    assert stream(a, a[torch.randperm(500)]).value() < 0.1
    assert stream(a, a / a.std(0)).value() < 0.9  # whitening is no rotation


def test_random_arrays_are_at_the_shuffled_floor_and_related_ones_above():
    torch.manual_seed(0)
    a, b = torch.randn(2000, 32), torch.randn(2000, 32)
    for other, above in ((b, False), (a + b, True)):
        cka = stream(a, other, shuffle=True)
        assert align.against_floor(cka.value(), [cka.value(i) for i in range(align.SHUFFLES)])["above"] == above
        shuffles = [torch.randperm(2000) for _ in range(align.SHUFFLES)]
        for measure in (lambda x, y, s=None: align.cosine(x, y if s is None else y[s]), align.retrieval_at_1):
            assert align.against_floor(measure(a, other), [measure(a, other, s) for s in shuffles])["above"] == above


def test_a_large_shared_direction_fools_the_cosine_and_not_its_floor():
    torch.manual_seed(0)
    a, b = torch.randn(2000, 32), torch.randn(2000, 32)
    a[:, 0] += 20
    b[:, 0] += 20
    floors = [align.cosine(a, b[torch.randperm(2000)]) for _ in range(align.SHUFFLES)]
    assert align.cosine(a, b) > 0.9 and not align.against_floor(align.cosine(a, b), floors)["above"]
    assert abs(align.cosine(align.centre(a), align.centre(b))) < 0.05
    assert align.retrieval_at_1(a, b) < 0.01


def test_retrieval_on_planted_states():
    torch.manual_seed(0)
    a = torch.randn(500, 32)
    rotation = torch.linalg.qr(torch.randn(32, 32))[0]
    assert align.retrieval_at_1(a, a * 3 + 7) == 1  # scale and a common shift do not matter
    assert align.retrieval_at_1(a @ rotation, (a + 0.01 * torch.randn_like(a)) @ rotation) == 1
    assert align.retrieval_at_1(a, torch.randn(500, 32)) < 0.02  # chance is 1 in 500
    assert align.retrieval_at_1(a, a.roll(1, 0)) == 0
    assert align.retrieval_at_1(a, a.roll(1, 0), order=(torch.arange(500) + 1) % 500) == 1
    half = a.clone()
    half[:250] = torch.randn(250, 32)
    assert 0.45 < align.retrieval_at_1(a, half) < 0.55


# --- measures on planted models

def test_a_copy_is_aligned_in_every_layer_by_every_measure():
    for layer in align.layer_similarity(planted("copy"), TEXT[:, :-1], *TABLE, CPU):
        for name in ("cosine", "centred", "cka"):
            assert layer[name]["value"] == pytest.approx(1, abs=1e-5) and layer[name]["above"]
            assert layer[name]["floor"] < 0.6
        for name in ("there", "back"):
            assert layer[name]["value"] == 1 and layer[name]["floor"] < 0.01 and layer[name]["above"]


def test_a_stranger_is_at_the_floor_in_the_embedding_by_every_measure():
    embedding = align.layer_similarity(planted("stranger"), TEXT[:, :-1], *TABLE, CPU)[0]
    assert not embedding["there"]["above"] and not embedding["back"]["above"]
    for name in ("cosine", "centred"):
        assert abs(embedding[name]["value"] - embedding[name]["floor"]) < 0.15
    assert embedding["cka"]["value"] < 0.3


def test_shuffled_pairs_are_of_one_position_and_never_a_state_with_itself():
    positions = torch.from_numpy(np.random.default_rng(0).integers(0, 10, 500))
    order = align.shuffled(positions, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(500)) and (order != torch.arange(500)).all()
    assert (positions[order] == positions).all()
    assert (order != align.shuffled(positions, torch.Generator().manual_seed(1))).float().mean() > 0.9


def test_a_model_that_knows_only_positions_is_at_the_floor():
    model = planted("stranger")
    with torch.no_grad():
        model.embedding.mul_(0.05)
        model.position.mul_(10)
    for layer in align.layer_similarity(model, TEXT[:, :-1], *TABLE, CPU):
        for name in ("cosine", "centred", "cka"):
            assert layer[name]["value"] > 0.5 and layer[name]["value"] - layer[name]["floor"] < 0.02 and not layer[name]["above"], name
        assert layer["there"]["value"] < 0.2


def test_states_of_the_last_layer_are_the_models_own():
    model = planted("stranger")
    with torch.no_grad():
        a, b = (model.residual_stream(torch.from_numpy(row[TEXT[:, :-1]]))[-1].flatten(0, 1) for row in TABLE)
    last = align.layer_similarity(model, TEXT[:, :-1], *TABLE, CPU)[-1]
    assert last["cka"]["value"] == pytest.approx(slow_cka(a, b), abs=1e-6)
    assert last["cosine"]["value"] == pytest.approx(align.cosine(a, b), abs=0.02)  # of all states, where the measure keeps a sample


def test_anchor_points_do_not_count_as_alignment():
    model, table = planted("stranger"), clone.clone_table(V, 2, V - 1, cloned=0.5)
    text = TEXT[:, :-1]
    layers = align.layer_similarity(model, text, *table, CPU)
    assert abs(layers[0]["centred"]["value"]) < 0.1
    a, b = (model.residual_stream(torch.from_numpy(row[text]))[0].flatten(0, 1) for row in table)
    assert align.cosine(align.centre(a), align.centre(b)) > 0.3  # with the anchors' positions, half of all
    everywhere = align.layer_similarity(model, text, *clone.clone_table(V, 2, V - 1, cloned=0.0), CPU)
    assert everywhere[0]["centred"]["value"] == pytest.approx(1)  # all are anchors: nothing to leave out


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_a_copy_are_the_same_and_a_strangers_are_not(tied):
    copy = align.gradient_similarity(planted("copy", tied), TEXT, *TABLE, CPU)
    stranger = align.gradient_similarity(planted("stranger", tied), TEXT, *TABLE, CPU)
    names = {"embedding", "position", "blocks.0.q", "blocks.2.k", "blocks.1.v", "blocks.0.down", "blocks.2.norm1.weight"}
    assert names <= copy.keys() and ("unembedding" in copy) != tied
    for name, g in copy.items():
        assert g["same"] == pytest.approx(1, abs=1e-4), name
        assert g["other"] == pytest.approx(g["within"], abs=1e-4)
    assert abs(align.block_mean(stranger, "same") - align.block_mean(stranger, "other")) < 0.05  # whether the text is the same does not matter
    assert align.block_mean(copy, "same") == pytest.approx(1, abs=1e-4)
    assert align.block_mean(stranger, "same") < align.block_mean(stranger, "within") - 0.05


def test_gradient_cosine_is_that_of_autograd():
    model = planted("stranger")
    result = align.gradient_similarity(model, TEXT, *TABLE, CPU)["blocks.1.up"]["same"]
    cosines = []
    for half in np.array_split(TEXT, 2):
        grads = [torch.autograd.grad(model(torch.from_numpy(row[half])).mean(), model.blocks[1].up)[0].flatten() for row in TABLE]
        cosines.append(torch.nn.functional.cosine_similarity(*grads, dim=0).item())
    assert result == pytest.approx(np.mean(cosines), abs=1e-5)


def test_embeddings_of_a_copy_and_of_a_stranger():
    frequency = np.arange(V, 0, -1).astype(float)
    frequency[-1] = 0
    for kind, expected in (("copy", 1), ("stranger", 0)):
        result = align.embedding_similarity(planted(kind), *TABLE, frequency)
        assert result.keys() == {"input", "output"} and align.embedding_similarity(planted(kind, True), *TABLE, frequency).keys() == {"tied"}
        for side in result.values():
            assert side["value"] == pytest.approx(expected, abs=0.06) and abs(side["floor"]) < 0.06 and side["above"] == (kind == "copy")
            rates = [b["tokens_per_million"] for b in side["by_frequency"]]
            assert rates == sorted(rates) and len(rates) == 8


def test_anchor_points_are_left_out():
    table = clone.clone_table(V, 2, V - 1, cloned=0.5)
    result = align.embedding_similarity(planted("stranger"), *table, np.ones(V))
    assert result["input"]["value"] < 0.1  # an anchor would have cosine 1


# --- the command

@pytest.fixture(scope="module")
def work(tmp_path_factory):
    here = tmp_path_factory.mktemp("align")
    write_corpus(here / "books")
    for options in (["--ratio=0.6", "--tied=true", "--run=a"], ["--ratio=0.4,0.3,0.3", "--tied=false", "--run=b"], ["--languages=1", "--run=mono"]):
        train_here(here, "--corpus=books", "--vocab_size=300", "--n_layer=2", "--d_model=16", "--context=16", "--batch_size=8", "--steps=40", *options)
    return here


def test_one_page_a_run_and_one_for_all(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.setattr("sys.argv", ["align.py", "runs/a", "runs/b"])
    align.main()
    out = capsys.readouterr().out
    for picture in ("runs/a/align.png", "runs/b/align.png", "runs/align.png"):
        assert (work / picture).read_bytes().startswith(b"\x89PNG")
    result = json.loads((work / "runs/b/align.json").read_text())
    assert result["pairs"].keys() == {"EN1-EN2", "EN1-EN3"} and len(result["pairs"]["EN1-EN2"]["layers"]) == 3
    assert "above the floor" in out and "runs/b: EN1 with EN2, EN3" in out


@pytest.mark.parametrize("options, expected", [
    (["runs/mono"], "is monolingual"), (["runs/a", "runs/mono"], "is monolingual"), (["runs/none"], "is no run"), ([], "required"), (["runs/a", "--devise=cpu"], "did you mean --device?")])
def test_bad_input_is_one_line(work, options, expected, monkeypatch, capsys):
    monkeypatch.chdir(work)
    assert expected in fails(align.main, options, monkeypatch, capsys)
