"""`kitbash calibrate` over a small library with the real embedding model: fit, save, use, check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kitbash_ray.calibration import load_calibration
from kitbash_ray.cli import app
from kitbash_ray.config import load_settings
from kitbash_ray.direct import calibration_file, open_calibration
from kitbash_ray.errors import CartridgeError, ConfigError

BULBS = [
    (
        f"lamp-{number}",
        f"Lamp {number} of the harbour of Zarquon burns with {number * 7} watts.",
        f"How bright is lamp {number}?",
        f"What is the power of lamp {number} at Zarquon?",
    )
    for number in range(1, 6)
]


@pytest.fixture
def library(library_folder: Path, write_cartridge: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_cartridge("zarquon", *BULBS)
    (folder / "questions.jsonl").write_text(
        '{"query": "power of the third lamp at Zarquon", "expected": ["zarquon:lamp-3"], "kind": "paraphrase"}\n'
        '{"query": "who painted the harbour of Zarquon", "expected": [], "kind": "near_miss"}\n'
    )
    monkeypatch.setenv("CARTRIDGES_DIR", str(library_folder))
    monkeypatch.setenv("COLUMNS", "160")
    return library_folder


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_a_calibration_is_fitted_shown_saved_and_used_from_then_on(library: Path) -> None:
    done = run("calibrate")
    assert done.exit_code == 0, done.output
    settings = load_settings()
    saved = load_calibration(calibration_file(settings))
    for part in ("grain", "cartridge", "threshold", "bound", saved.version, "expected calibration error"):
        assert part in done.output
    assert (calibration_file(settings).parent / "calibrations" / f"{saved.version}.json").exists()
    assert (settings.state_dir / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert open_calibration(settings) == saved
    answer = json.loads(run("ask", "--mode", "direct", "--json", "How bright is lamp 3?").stdout)
    assert (answer["status"], answer["calibration"]) == ("answered", saved.version)


def test_on_too_few_questions_of_ones_own_nothing_is_proven_and_that_is_said(library: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"query": "watts of lamp 2", "expected": ["zarquon:lamp-2"]}\n')
    done = run("calibrate", str(mine), "--alone")
    assert done.exit_code == 0, done.output
    assert "Too few answers to prove a threshold" in done.output
    assert "exact matches only" in done.output
    answer = json.loads(run("ask", "--mode", "direct", "--json", "brightness of lamp 3 at Zarquon").stdout)
    assert answer["status"] == "abstained"


@pytest.mark.parametrize(
    ("expected", "code", "says"),
    [("zarquon:lamp-{n}", 0, "too few answers to prove"), ("zarquon:lamp-99", 1, "has left the budget")],
)
def test_check_tells_when_the_error_has_left_the_budget(
    library: Path, tmp_path: Path, expected: str, code: int, says: str
) -> None:
    file = tmp_path / "asked.jsonl"
    lines = [{"query": f"How bright is lamp {n}?", "expected": [expected.format(n=n)]} for n in range(1, 6)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("calibrate", str(file), "--check")
    assert (done.exit_code, says in done.output) == (code, True), done.output


def test_check_without_anything_to_check_says_what_to_do(library: Path) -> None:
    done = run("calibrate", "--check")
    assert done.exit_code == 0
    assert "kitbash feedback" in done.output


def test_a_file_that_is_no_questions_is_refused(library: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert isinstance(run("calibrate", str(tmp_path / "bad.jsonl")).exception, CartridgeError)


def test_a_calibration_of_another_version_is_refused_but_can_be_replaced(library: Path, tmp_path: Path) -> None:
    old = calibration_file(load_settings())
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text(
        '{"version": "old", "exact": 0.9, "exact_bound": 0.1, "layers": {"grain": {"features": ["cosine"],'
        ' "trees": [], "bias": 0, "questions": 1, "accuracy": 1, "thresholds": []}}}'
    )
    with pytest.raises(ConfigError, match="another version"):
        open_calibration(load_settings())
    assert run("calibrate").exit_code == 0
    assert open_calibration(load_settings()).version != "old"


def test_eval_compares_policies_in_one_go(library: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"query": "How bright is lamp 3?", "expected": ["zarquon:lamp-3"]}\n{"query": "Who is the mayor?"}\n')
    found = json.loads(run("eval", str(file), "--compare", "fixed,calibrated", "--json").stdout)
    assert set(found) == {"fixed", "calibrated"}
    for run_ in found.values():
        assert (run_["right"], run_["wrong"], run_["abstained_rightly"]) == (1, 0, 1)
    assert found["fixed"]["calibration"] is None
    assert isinstance(run("eval", str(file), "--compare", "fixed,best").exception, ConfigError)
