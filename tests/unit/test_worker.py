"""What of a worker's result is believed, and which addresses a worker gives its key to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kitbash_ray import worker as module
from kitbash_ray.cli.worker import _own_name
from kitbash_ray.errors import ConfigError, LayerError
from kitbash_ray.types import Generation, LayerResult, Source, Usage, encode
from kitbash_ray.work_types import MAX_EVIDENCE, MAX_REASON, MAX_SOURCES, MAX_TEXT, WorkerIn, read_result
from kitbash_ray.worker import Door, Pauses

SOURCE = Source("bio", "bio:atp", "ATP carries energy.", 0.9)
RESULT = LayerResult(
    "bitnet",
    "answered",
    text="ATP carries energy.",
    score=0.7,
    confidence=0.9,
    sources=(SOURCE,),
    evidence=(0.1, 0.2),
    generation=Generation(Usage(3, 4)),
)


def test_a_sound_result_is_taken_as_it_is() -> None:
    assert read_result("bitnet", encode(RESULT)) == RESULT


@pytest.mark.parametrize("outcome", ["abstained", "failed"])
def test_a_worker_may_abstain_and_fail(outcome: Any) -> None:
    said = LayerResult("bitnet", outcome, reason="why not")
    assert read_result("bitnet", encode(said)) == said


def test_what_is_the_front_doors_to_say_is_not_taken_from_a_worker() -> None:
    dear = Generation(Usage(3, 4), cost_usd=5.0)
    said = replace(RESULT, agrees=(("cartridge", 1.0),), latency_ms=1.0, generation=dear)
    assert read_result("bitnet", encode(said)) == RESULT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": "kobold"}, "of the layer 'kobold'"),
        ({"outcome": "timeout"}, "too long"),
        ({"text": None}, "no text"),
        ({"confidence": 1.5}, "between 0 and 1"),
        ({"confidence": -0.1}, "between 0 and 1"),
        ({"text": "a" * (MAX_TEXT + 1)}, "characters"),
        ({"reason": "a" * (MAX_REASON + 1)}, "characters"),
        ({"sources": (SOURCE,) * (MAX_SOURCES + 1)}, "sources"),
        ({"evidence": (0.5,) * (MAX_EVIDENCE + 1)}, "evidence"),
        ({"sources": (replace(SOURCE, text="a" * 300_000),)}, "bytes"),
    ],
)
def test_an_unsound_result_is_refused_with_what_is_wrong(change: dict[str, Any], said: str) -> None:
    with pytest.raises(LayerError, match=said):
        read_result("bitnet", encode(replace(RESULT, **change)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"layer": "bitnet"}',
        b'{"layer": "bitnet", "outcome": "knows"}',
        b'{"layer": "bitnet", "outcome": "answered", "text": "x", "confidence": "0.9"}',
        b'{"layer": "bitnet", "outcome": "answered", "text": "x", "confidence": NaN}',
        b'{"layer": "bitnet", "outcome": "answered", "text": "x", "confidence": 1e999}',
        b'{"layer": "bitnet", "outcome": "answered", "text": "\xff"}',
    ],
)
def test_what_is_no_result_is_refused(body: bytes) -> None:
    with pytest.raises(LayerError):
        read_result("bitnet", body)


@pytest.mark.parametrize(
    "url", ["https://kitbash.example", "http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"]
)
def test_a_key_travels_encrypted_or_not_at_all(url: str) -> None:
    assert Door(url + "/", "key", "bitnet").url == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://kitbash.example", "use https://"),
        ("http://192.168.0.7:8000", "use https://"),
        ("http://localhost.example", "use https://"),
        ("kitbash.example", "write it as"),
        ("ftp://kitbash.example", "write it as"),
        ("https://", "write it as"),
    ],
)
def test_a_key_does_not_travel_in_clear(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Door(url, "key", "bitnet")


def test_a_network_that_one_trusts_is_told_so() -> None:
    assert Door("http://192.168.0.7:8000", "key", "bitnet", insecure=True).url == "http://192.168.0.7:8000"


def test_a_file_that_holds_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=name):
            Door("https://kitbash.example", "key", "bitnet", ca=tmp_path / name)


def test_a_machines_own_name_is_a_name_of_a_worker() -> None:
    assert WorkerIn(worker=_own_name(), version="1", calibration="c").worker == _own_name()


async def test_pauses_grow_up_to_a_limit_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", (0.0001, 0.0008))
    pauses = Pauses()
    seen = []
    for _ in range(6):
        seen.append(pauses._next)
        await pauses.wait()
    assert seen == [0.0001, 0.0002, 0.0004, 0.0008, 0.0008, 0.0008]
    pauses.reset()
    assert pauses._next == 0.0001
