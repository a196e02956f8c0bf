"""Three hosts with Kitbash on them, started once by `ray up` and ended by `ray down`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .bed import missing
from .devices import ThreeDevices, three_devices

HERE = Path(__file__).parent
#: What `make test` leaves to `make test-hosts`: one fault after the other, some minutes of them.
LONG = HERE / "test_faults.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.hosts)
        item.add_marker(pytest.mark.timeout(900))
    if config.option.markexpr != "hosts":
        config.hook.pytest_deselected(items=[item for item in ours if item.path == LONG])
        ours = [item for item in ours if item.path != LONG]
    if ours and (why := missing()):  # one line says it, not one for each
        ours[0].add_marker(pytest.mark.skip(f"tests/hosts: {why}"))
        config.hook.pytest_deselected(items=ours[1:])
        ours = ours[:1]
    items[:] = [item for item in items if HERE not in item.path.parents] + ours  # last: they take minutes


@pytest.fixture(scope="session")
def devices(_clean_session: None) -> Iterator[ThreeDevices]:
    with three_devices(diagnostic_level="debug") as up:
        yield up
