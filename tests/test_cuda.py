"""On a GPU: the same training as on a CPU. Where there is none, these tests are skipped."""
import json
import shutil
import signal
import time

import pytest
from conftest import TINY, WITH_GPU, finish, history, script

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU here")

KINDS = {
    "decoder": [],
    "heads": ["--heads=per-language"],
    "encoder": ["--arch=encoder"],
    "encoder-decoder": ["--arch=encoder-decoder", "--heads=per-language"],
}


def train(folder, name, *options):
    """A short run; its log, but for the speed. The GPU is used if --device says so."""
    call = ["--ratio=0.8", "--steps=30", "--lr=0.01", *TINY, f"--run={name}", *options]
    finish(script(folder, "train.py", *call, env=WITH_GPU))
    return history(folder / "runs" / name)


def losses(lines):
    """All losses of a log, training and validation, in order."""
    return [loss for line in lines for loss in line.get("loss", []) + line.get("val_loss", [])
            if loss is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_learns_what_a_cpu_learns(prepared, kind):
    cpu = train(prepared, f"cpu-{kind}", "--device=cpu", "--dtype=float32", *KINDS[kind])
    gpu = train(prepared, f"gpu-{kind}", "--device=cuda", "--dtype=float32", *KINDS[kind])
    assert losses(gpu) == pytest.approx(losses(cpu), abs=2e-3)
    assert losses(gpu)[-1] < losses(gpu)[0] - 0.5  # and that is something


@pytest.mark.parametrize("kind", ["decoder", "heads"])
def test_compiled_and_in_bf16_it_learns_the_same(prepared, kind):
    plain = train(prepared, f"plain-{kind}", "--device=cuda", "--dtype=float32", *KINDS[kind])
    fast = train(prepared, f"fast-{kind}", "--device=cuda", "--dtype=bfloat16", "--compile",
                 *KINDS[kind])
    assert losses(fast) == pytest.approx(losses(plain), abs=0.05)


def test_it_is_interrupted_and_goes_on_to_the_same_losses(prepared):
    whole = train(prepared, "whole", "--steps=400", "--device=cuda", "--dtype=float32")
    options = ["--ratio=0.8", "--steps=400", "--lr=0.01", *TINY, "--run=parts", "--device=cuda"]
    process = script(prepared, "train.py", *options, "--dtype=float32", env=WITH_GPU)
    log = prepared / "runs/parts/log.jsonl"
    while process.poll() is None and not (log.exists() and '"step": 40' in log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    finish(process, code=130)
    assert 0 < history(prepared / "runs/parts")[-1]["step"] < 400

    finish(script(prepared, "train.py", "--run=parts", "--resume", env=WITH_GPU))
    parts = history(prepared / "runs/parts")
    assert [line["step"] for line in parts] == [line["step"] for line in whole]
    assert losses(parts) == pytest.approx(losses(whole), abs=5e-3)


def test_a_run_of_a_gpu_is_looked_at_there_and_on_a_cpu(prepared):
    train(prepared, "look", "--device=cuda", "--dtype=float32")
    folder, seen = prepared / "runs/look", {}
    for device in ("cuda", "cpu"):
        (folder / "eval.json").unlink(missing_ok=True)  # or eval.py would read it again
        finish(script(prepared, "eval.py", "look", f"--device={device}", env=WITH_GPU))
        finish(script(prepared, "align.py", "look", f"--device={device}", env=WITH_GPU))
        languages = json.loads((folder / "eval.json").read_text())["languages"]
        seen[device] = [language["loss"] for language in languages]
    assert seen["cuda"] == pytest.approx(seen["cpu"], abs=1e-3)
