"""How what a model learned comes into MiniLM's weights."""

from pathlib import Path

import numpy as np
import pytest

from kitbash_ray.knowledge import extractor, low_rank, verifier
from kitbash_ray.knowledge.low_rank import MATRICES, read_changes, with_changes


def test_a_change_is_added_to_its_matrix_alone() -> None:
    name = "attention.self.query"
    weights = {f"encoder.layer.0.{part}.weight": np.ones((3, 2), np.float32) for part in MATRICES}
    up, down = np.array([[1.0], [0.0], [2.0]], np.float32), np.array([[3.0, 4.0]], np.float32)
    merged = with_changes(weights, {f"0.{name}.up": up, f"0.{name}.down": down})
    np.testing.assert_array_equal(merged[f"encoder.layer.0.{name}.weight"], [[4, 5], [1, 1], [7, 9]])
    assert all((merged[key] == 1).all() for key in merged if name not in key)


@pytest.mark.parametrize("shipped", [verifier.SHIPPED, extractor.SHIPPED], ids=["verifier", "extractor"])
def test_the_shipped_changes_are_whole(shipped: Path) -> None:
    changes = read_changes(shipped)
    for block in range(6):
        for part in MATRICES:
            up, down = changes[f"{block}.{part}.up"], changes[f"{block}.{part}.down"]
            assert up.shape[1] == down.shape[0]
    assert all(np.isfinite(array).all() for array in changes.values())
    assert shipped.stat().st_size < 3_500_000


def test_other_changes_get_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "ensure_encoder", lambda cache_dir, name, weights: cache_dir / name)
    paths = []
    for content in (b"one", b"two"):
        (tmp_path / "changes").write_bytes(content)
        paths.append(low_rank.ensure_changed(tmp_path, tmp_path / "changes"))
    assert paths[0] != paths[1]
