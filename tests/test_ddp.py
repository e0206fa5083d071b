"""Several processes: what lib/ddp.py promises, of one alone and of two that talk over gloo.

This file is also the script that the two processes run: see its end.
"""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    TINY,
    fails,
    history,
    start_two_processes,
    train_here,
    two_processes,
)

import train
from lib import ddp
from model import GPT

CPU = torch.device("cpu")


def example():
    """(model, ids [8, 17]), the same whenever it is called."""
    torch.manual_seed(0)
    model = GPT(dict(vocab_size=60, context=16, n_layer=2, n_head=2, d_head=8, d_model=16,
                     tied=False, embedding_std=0.5, bias=True, embedding_scale=True,
                     arch="decoder", heads="shared"))
    return model, torch.randint(60, (8, 17))


def gradients(model):
    return [p.grad for p in model.parameters()]


# ------------------------------------------------------------------------------------------------
# One process alone

def test_one_process_alone_has_nothing_to_do():
    assert (ddp.rank(), ddp.local_rank(), ddp.world(), ddp.first()) == (0, 0, 1, True)
    ddp.start(CPU)
    assert not torch.distributed.is_initialized()

    value = {"folder": Path("runs/one")}
    assert ddp.share(value) is value
    assert ddp.any_of_them(True, CPU) is True
    assert ddp.any_of_them(False, CPU) is False

    tensor = torch.tensor([1.0, 2.0])
    ddp.add_up(tensor)
    assert tensor.tolist() == [1, 2]

    model, ids = example()
    train.forward_backward(model, [ids])
    before = [gradient.clone() for gradient in gradients(model)]
    ddp.average_gradients(model)
    torch.testing.assert_close(gradients(model), before, rtol=0, atol=0)

    entered = False
    with ddp.one_before_the_others():
        entered = True
    assert entered
    ddp.finish()  # and goes on


# ------------------------------------------------------------------------------------------------
# Two processes

def tell(folder):
    """What one of the two processes finds out, saved as folder/RANK.pt."""
    ddp.start(CPU)
    rank = ddp.rank()
    found = {"who": (rank, ddp.local_rank(), ddp.world(), ddp.first())}

    # each has its half of the batch
    model, ids = example()
    half = ids[4 * rank:4 * rank + 4]
    found["losses"] = train.forward_backward(model, [half])
    found["own"] = [gradient.clone() for gradient in gradients(model)]
    ddp.average_gradients(model)
    found["averaged"] = gradients(model)

    found["shared"] = ddp.share({"rank": rank, "batch": list(range(rank + 1))})
    found["any"] = []
    for flags in [(False, False), (True, False), (False, True), (True, True)]:
        found["any"].append(ddp.any_of_them(flags[rank], CPU))
    tensor = torch.tensor([[1.0, 10.0], [rank, 0.0]])
    ddp.add_up(tensor)
    found["added"] = tensor.tolist()

    # the first one takes its time; the other must not come in before it is through
    with ddp.one_before_the_others():
        found["ready"] = (folder / "ready").exists()
        if rank == 0:
            time.sleep(1)
            (folder / "ready").touch()

    torch.save(found, folder / f"{rank}.pt")
    ddp.finish()
    (folder / f"after-{rank}").touch()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(what process 0 found out, what process 1 did, their folder)."""
    folder = tmp_path_factory.mktemp("two")
    result = two_processes(folder, __file__, str(folder))
    assert result.returncode == 0, result.stdout + result.stderr
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return first, second, folder


def test_each_process_knows_who_it_is(told):
    first, second, _ = told
    assert first["who"] == (0, 0, 2, True)
    assert second["who"] == (1, 1, 2, False)


def test_gradients_are_the_mean_over_the_processes(told):
    first, second, _ = told
    # the gradients themselves, because Adam divides any factor out again
    model, ids = example()
    losses = train.forward_backward(model, [ids])
    torch.testing.assert_close(torch.cat([first["losses"], second["losses"]]), losses)
    for found in (first, second):
        torch.testing.assert_close(found["averaged"], gradients(model), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(first["averaged"], second["averaged"], rtol=0, atol=0)

    # and that says something: each gradient is far from nothing, and from that of either half
    for i, whole in enumerate(gradients(model)):
        assert whole.norm() > 1e-4
        for found in (first, second):
            assert (found["own"][i] - whole).norm() > 0.1 * whole.norm()


def test_what_the_first_process_has_is_shared(told):
    for found in told[:2]:
        assert found["shared"] == {"rank": 0, "batch": [0]}


def test_a_flag_that_one_has_all_have(told):
    for found in told[:2]:
        assert found["any"] == [False, True, True, True]


def test_a_tensor_is_added_up(told):
    for found in told[:2]:
        assert found["added"] == [[2, 20], [1, 0]]


def test_one_goes_before_the_other(told):
    first, second, _ = told
    assert not first["ready"]
    assert second["ready"]


def test_all_but_the_first_end_early(told):
    _, _, folder = told
    assert (folder / "after-0").exists()
    assert not (folder / "after-1").exists()


# ------------------------------------------------------------------------------------------------
# Two processes that train

def assert_alike(one, other):
    """Two logs (lists of dicts) are the same, but for the rounding of sums in another order."""
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        for key in a.keys() - {"loss", "val_loss", "retrieval@1"}:
            assert a[key] == b[key]
        for key in {"loss", "val_loss"} & a.keys():
            assert b[key] == pytest.approx(a[key], abs=2e-4)


def test_two_processes_learn_what_one_does(prepared):
    options = [*TINY, "--ratio=0.8", "--steps=30", "--dtype=float32", "--lr=0.01"]
    train_here(prepared, *options, "--run=one", eval_tokens=None)
    result = two_processes(prepared, train.__file__, *options, "--run=two")
    assert result.returncode == 0, result.stdout + result.stderr
    assert_alike(history(prepared / "runs/one"), history(prepared / "runs/two"))
    assert result.stdout.count("Next:") == 1  # one of them talks


class StopAfter:
    """A stop signal that comes in a certain step."""

    def __init__(self, steps):
        self.steps = steps

    def is_set(self):
        self.steps -= 1
        return self.steps == 0


def train_until_one_is_told_to_stop(options):
    """train.py, in which process 1, and that one alone, is told to stop in step 5."""
    if ddp.rank() == 1:
        ddp.stop_signal = lambda: StopAfter(5)
    sys.argv = ["train.py", *options]
    train.main()


def test_when_one_process_is_told_to_stop_all_stop_and_no_loss_is_lost(prepared):
    # a line of the log every 2 steps: the losses of step 5 are in no line yet
    options = [*TINY, "--ratio=0.8", "--steps=100", "--dtype=float32"]
    result = two_processes(prepared, __file__, "train", *options, "--run=stopped")
    assert "interrupted and saved at step 5; go on with" in result.stdout, result.stderr
    folder = prepared / "runs/stopped"
    assert torch.load(folder / "model.pt", weights_only=True)["step"] == 5

    result = two_processes(prepared, train.__file__, "--run=stopped", "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    train_here(prepared, *options, "--run=not_stopped", eval_tokens=None)
    assert_alike(history(prepared / "runs/not_stopped"), history(folder))


def test_where_one_process_is_killed_torchrun_goes_on_from_the_last_checkpoint(prepared):
    options = [*TINY, "--ratio=0.8", "--steps=200", "--dtype=float32"]
    ended = two_processes(prepared, ROOT / "train.py", *options, "--run=undisturbed")
    assert ended.returncode == 0, ended.stderr

    folder = prepared / "runs/struck"
    torchrun = start_two_processes(prepared, ROOT / "train.py", *options, "--run=struck",
                                   restarts=1)
    while torchrun.poll() is None and not (folder / "model.pt").exists():
        time.sleep(0.01)
    found = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True)
    workers = [int(pid) for pid in found.stdout.split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    out, err = torchrun.communicate(timeout=300)
    assert torchrun.returncode == 0, err
    assert "from step" in out
    assert history(folder) == history(prepared / "runs/undisturbed")  # to the last digit


def test_a_batch_that_cannot_be_split_evenly(here, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    error = fails(train.main, ["--batch_size=32"], monkeypatch, capsys)
    assert "--batch_size=32 cannot be split evenly over 3 processes" in error


# ------------------------------------------------------------------------------------------------
# What the two processes run: `test_ddp.py FOLDER`, or `test_ddp.py train OPTIONS`

if __name__ == "__main__":
    if sys.argv[1] == "train":
        train_until_one_is_told_to_stop(sys.argv[2:])
    else:
        tell(Path(sys.argv[1]))
