"""Three hosts with Kitbash on them, started once by `ray up` and ended by `ray down`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .bed import missing
from .devices import ThreeDevices, three_devices

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.hosts)
            item.add_marker(pytest.mark.timeout(900))
    items.sort(key=lambda item: HERE in item.path.parents)  # last: they take minutes


@pytest.fixture(scope="session")
def devices(_clean_session: None) -> Iterator[ThreeDevices]:
    if why := missing():
        pytest.skip(why)
    with three_devices(diagnostic_level="debug") as up:
        yield up
