"""What the verifier reads, and how its changes come into MiniLM's weights."""

from pathlib import Path

import numpy as np
import pytest

from kitbash_ray.knowledge import verifier
from kitbash_ray.knowledge.evidence import Candidate
from kitbash_ray.knowledge.verifier import MATRICES, SHIPPED, nearest_ask, read_changes, side_by_side, with_changes

ASKS = ("what is ATP", "what carries energy in cells")


@pytest.mark.parametrize(
    ("ask", "text"),
    [("what is ATP", "which molecule || what is ATP || ATP carries energy."), ("", "which molecule || ATP carries energy.")],
)
def test_question_and_fact_are_one_text(ask: str, text: str) -> None:
    assert side_by_side("which molecule", "ATP carries energy.", ask) == text


@pytest.mark.parametrize(
    ("asks", "cosines", "nearest"),
    [
        (ASKS, (0.9, 0.2, 0.3), ASKS[1]),  # the statement's cosine comes first and does not count
        (ASKS, (0.1, 0.5, 0.3), ASKS[0]),
        ((), (0.9,), ""),
    ],
)
def test_the_nearest_way_to_ask_is_read(asks: tuple[str, ...], cosines: tuple[float, ...], nearest: str) -> None:
    assert nearest_ask(Candidate("ATP carries energy.", asks, "ATP carries energy.", 0.9, cosines)) == nearest


def test_a_change_is_added_to_its_matrix_alone() -> None:
    name = "attention.self.query"
    weights = {f"encoder.layer.0.{part}.weight": np.ones((3, 2), np.float32) for part in MATRICES}
    up, down = np.array([[1.0], [0.0], [2.0]], np.float32), np.array([[3.0, 4.0]], np.float32)
    merged = with_changes(weights, {f"0.{name}.up": up, f"0.{name}.down": down})
    np.testing.assert_array_equal(merged[f"encoder.layer.0.{name}.weight"], [[4, 5], [1, 1], [7, 9]])
    assert all((merged[key] == 1).all() for key in merged if name not in key)


def test_the_shipped_changes_are_whole() -> None:
    changes = read_changes(SHIPPED)
    for block in range(6):
        for part in MATRICES:
            up, down = changes[f"{block}.{part}.up"], changes[f"{block}.{part}.down"]
            assert up.shape[1] == down.shape[0]
    assert all(np.isfinite(array).all() for array in changes.values())
    assert SHIPPED.stat().st_size < 3_500_000


def test_other_changes_get_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "ensure_encoder", lambda cache_dir, name, weights: cache_dir / name)
    paths = []
    for content in (b"one", b"two"):
        (tmp_path / "changes").write_bytes(content)
        paths.append(verifier.ensure_verifier(tmp_path, tmp_path / "changes"))
    assert paths[0] != paths[1]
