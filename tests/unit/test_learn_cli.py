"""`kitbash distil` without PyTorch, interrupted, and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kitbash_ray.cli import distil
from kitbash_ray.errors import ModelError
from kitbash_ray.knowledge.library import Library
from kitbash_ray.learn.corpus import load_corpus
from kitbash_ray.learn.recipe import Recipe, Shape

WriteCartridge = Callable[..., Path]


def test_without_pytorch_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distil, "NEEDED", ("no_such_torch",))
    with pytest.raises(ModelError, match=r"Training needs no_such_torch: run pip install 'kitbash-ray\[train\]'\."):
        distil.distil(out=tmp_path / "out", cartridges=None, steps=None, resume=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def training(write_cartridge: WriteCartridge, library_folder: Path) -> Callable[[int], Any]:
    """Trainings over two facts; one is interrupted before the step that is given."""
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    from kitbash_ray.learn.tokenizer import Vocabulary
    from kitbash_ray.learn.train import Training

    class Interrupted(Training):
        last = 0

        def advance(self) -> None:
            if self.step == self.last:
                raise KeyboardInterrupt
            super().advance()

    write_cartridge("metals", ("gold", "Gold melts at 1064 °C."), ("iron", "Iron rusts in damp air."))
    corpus = load_corpus(Library(library_folder).load())
    shape = Shape(width=256, inner=256, blocks=1, heads=4, vocabulary=400, context=128)
    vectors = np.random.default_rng(0).normal(size=(len(corpus.meanings), 384)).astype(np.float32)

    def make(last: int) -> Any:
        found = Interrupted(corpus, Vocabulary.learn(corpus.texts, 400), Recipe(shape=shape, steps=3, batch=4), vectors)
        found.last = last
        return found

    return make


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(
    training: Callable[[int], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        distil._train(training(1), checkpoint, resume=True)
    assert "stopped after step 1; the same command goes on from" in capsys.readouterr().err
    again = training(-1)
    distil._train(again, checkpoint, resume=True)
    assert "going on from step 1" in capsys.readouterr().err
    assert again.step == 3


def test_a_checkpoint_that_does_not_fit_is_told(
    training: Callable[[int], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"cut short")
    distil._train(training(-1), tmp_path / "checkpoint.pt", resume=True)
    assert "starting anew: the checkpoint cannot be read" in capsys.readouterr().err


def test_fresh_does_not_look_at_the_checkpoint(
    training: Callable[[int], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"cut short")
    distil._train(training(-1), tmp_path / "checkpoint.pt", resume=False)
    assert capsys.readouterr().err.strip() == ""
