"""The two trained models in paper/models: they open anywhere, and are what they are said to be."""
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import clone
import eval as evaluation
import runs

MIXES = ("ratio0.9", "ratio0.5")


@pytest.fixture
def models(here):
    """Copies of both, with nothing beside them but a text."""
    for mix in MIXES:
        shutil.copytree(ROOT / "paper/models" / mix, here / mix)
    shutil.copy(ROOT / "README.md", here / "text.txt")
    return here


def test_the_rare_language_is_behind_at_90_to_10_and_the_two_are_level_at_50_to_50(models):
    """On a text that neither has seen: this project's README."""
    losses = {}
    for run in runs.open_runs(MIXES, torch.device("cpu"), text="text.txt"):
        text = run.texts("test")[0]
        windows = clone.spread(text, 128, 8).astype(np.int64)
        losses[run.folder.name] = [run.model.text_losses(row[windows], row).mean().item()
                                   for row in run.table]
    frequent, rare = losses["ratio0.9"]
    assert frequent < 4.5  # where a guess would have log(1024), 6.9
    assert rare > frequent + 0.3
    assert abs(losses["ratio0.5"][0] - losses["ratio0.5"][1]) < 0.15


def test_a_prompt_is_continued_in_both_languages_without_any_corpus(models, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval.py", *MIXES, "--sample", "--prompt=Return the sum of"])
    evaluation.main()
    assert capsys.readouterr().out.count("Return the sum of") == 4
    assert not (models / "data").exists()
