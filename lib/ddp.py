"""Several processes that train one model together, as torchrun starts them; or one alone.

torchrun tells each process by environment variables who it is: RANK among all of them, LOCAL_RANK
among those of its machine, and WORLD_SIZE, how many there are. Each function here does nothing, or
the obvious, for one process alone: so the training loop reads as if there were one.
"""
import contextlib
import os
import signal
import threading
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


def rank():
    return int(os.environ.get("RANK", 0))


def local_rank():
    return int(os.environ.get("LOCAL_RANK", 0))


def world():
    return int(os.environ.get("WORLD_SIZE", 1))


def restarted():
    """Whether torchrun --max-restarts has started these processes again, since one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def first():
    """Whether this process is the one that writes files and talks to the user."""
    return rank() == 0


def start(device):
    """Meet the other processes: over NCCL if they have GPUs, over gloo if not."""
    if world() == 1:
        return
    meeting = {"timeout": timedelta(hours=2)}  # the others wait while one prepares a corpus
    if restarted():
        # torchrun keeps the store in which processes leave their addresses: under another name
        # those that are started again do not find the addresses of the dead
        store, mine, size = next(rendezvous("env://"))
        times = os.environ["TORCHELASTIC_RESTART_COUNT"]
        meeting |= {"store": dist.PrefixStore(f"restart {times}", store), "rank": mine,
                    "world_size": size}
    if device.type == "cuda":
        torch.cuda.set_device(device)  # share() sends by way of it: else all would use the first
        dist.init_process_group("nccl", device_id=device, **meeting)
    else:
        dist.init_process_group("gloo", **meeting)


@contextlib.contextmanager
def one_before_the_others():
    """Let one process of each machine do what stands inside, then the others.

    The one that goes first prepares a corpus, say; the others come and find it ready.
    """
    if local_rank() > 0:
        dist.barrier()
    yield
    if world() > 1 and local_rank() == 0:
        dist.barrier()


def share(value):
    """The first process's value (anything that can be pickled), in every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def add_up(tensor):
    """Replace a tensor by its sum over all processes."""
    if world() > 1:
        dist.all_reduce(tensor)


def average_gradients(model):
    """Replace every gradient of a model by its mean over all processes, in one message.

    torch's DistributedDataParallel sends the gradients of the last layers while those of the first
    are still being computed. That hides the time of the message; it needs the model wrapped, and
    the last micro-batch told apart. Here it is after the backward pass, and the step reads as it
    does for one process.
    """
    if world() == 1:
        return
    gradients = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    mean = flat / world()
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def any_of_them(flag, device):
    """Whether a flag is true in one process or more: when one is told to stop, all stop."""
    if world() == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    dist.all_reduce(count)
    return count.item() > 0


def stop_signal():
    """An event that is set by the first Ctrl-C or SIGTERM, so that the loop can end after its step.

    A second one ends the process at once. Not under torchrun, which passes Ctrl-C on to processes
    that have had it from the terminal already.
    """
    asked = threading.Event()

    def on_signal(number, frame):
        if asked.is_set() and world() == 1:
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return asked


def finish():
    """Part from the other processes. All but the first end here."""
    if world() > 1:
        dist.destroy_process_group()
    if not first():
        # an ordinary exit this soon after the last message is now and then aborted by torch's own
        # threads (gloo, torch 2.13)
        os._exit(0)
