"""Pulling, finding and removing models, over a real HTTP server on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kitbash_ray import download, models
from kitbash_ray.cli import app
from kitbash_ray.engines.gguf_header import Header, read_header
from kitbash_ray.errors import ModelError
from kitbash_ray.models import Pulled, installed, pull, read_source, remove, resolve
from kitbash_ray.tiny_model import write_tiny_gguf

from .hub_server import COMMIT, HubServer, hub_server

ROOT = Path(models.__file__).parents[1]
NAME = "maker/Tiny-GGUF/tiny-F32.gguf"
#: Large enough to come in many pieces.
PADDING = 2_000_000
#: Where nothing listens: the discard port.
NOWHERE = "http://127.0.0.1:9"
#: Like the console script, with Ctrl-C at its default wherever pytest was started from.
KITBASH = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from kitbash_ray.cli import main; main()"


@pytest.fixture
def hub(tiny_gguf: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        server.files[NAME] = tiny_gguf.read_bytes() + bytes(PADDING)
        yield server


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's token nor their cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("KITBASH_CACHE_DIR", str(tmp_path / "cache"))


def pull_from(hub: HubServer, cache: Path, name: str = NAME, revision: str | None = None) -> Pulled:
    return pull(read_source(name, revision), cache, lambda *_: None, endpoint=hub.url)


def refusal(hub: HubServer, cache: Path, name: str = NAME, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        pull_from(hub, cache, name, revision)
    return str(caught.value)


def kitbash(*words: str, endpoint: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KITBASH, *words],
        env={**os.environ, "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bytes_sent(hub: HubServer) -> int:
    return sum(transfer.sent for transfer in hub.transfers)


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.parent.name != ".locks")


# The bytes


def test_a_pulled_file_is_the_hubs_and_lies_where_its_name_says(hub: HubServer, tmp_path: Path) -> None:
    pulled = pull_from(hub, tmp_path)
    assert pulled.path == tmp_path / "models" / "maker--Tiny-GGUF" / "tiny-F32.gguf"
    assert pulled.path.read_bytes() == hub.files[NAME]
    assert (pulled.fresh, pulled.size) == (True, len(hub.files[NAME]))
    assert left_over(tmp_path) == ["tiny-F32.gguf"]


def test_what_is_here_is_not_asked_for_again_even_without_a_network(hub: HubServer, tmp_path: Path) -> None:
    first = pull_from(hub, tmp_path)
    again = pull(read_source(NAME), tmp_path, lambda *_: None, endpoint=NOWHERE)
    assert (again.path, again.fresh) == (first.path, False)


def test_ctrl_c_and_the_same_command_transfer_every_byte_once(hub: HubServer, tmp_path: Path) -> None:
    size, hub.held = len(hub.files[NAME]), threading.Event()
    first = kitbash("models", "pull", NAME, endpoint=hub.url)
    assert hub.half_sent.wait(60)
    folder = tmp_path / "cache" / "models" / "maker--Tiny-GGUF"
    partial = folder / "tiny-F32.gguf.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size):  # another process writes it: there is no event to await
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, remark = first.communicate(timeout=60)
    assert first.returncode == 130, remark
    assert "the same command goes on from here" in remark
    had = partial.stat().st_size
    hub.held.set()
    hub.transfers.clear()

    second = kitbash("models", "pull", NAME, endpoint=hub.url)
    said, remark = second.communicate(timeout=60)
    assert second.returncode == 0, remark
    assert f"export KOBOLD_MODEL={folder / 'tiny-F32.gguf'}" in said
    assert "kitbash up" in said
    assert 0 < had < size
    assert {transfer.range for transfer in hub.transfers} == {f"bytes={had}-"}
    assert bytes_sent(hub) == size - had
    assert (folder / "tiny-F32.gguf").read_bytes() == hub.files[NAME]


def test_a_broken_connection_goes_on_by_itself_and_sends_nothing_twice(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts = [700_000, 300_000]
    assert pull_from(hub, tmp_path).path.read_bytes() == hub.files[NAME]
    assert bytes_sent(hub) == len(hub.files[NAME])


def test_a_server_that_ignores_range_is_read_from_the_beginning(hub: HubServer, tmp_path: Path) -> None:
    hub.resumes, hub.cuts = False, [700_000]
    assert pull_from(hub, tmp_path).path.read_bytes() == hub.files[NAME]
    assert bytes_sent(hub) == len(hub.files[NAME]) + 700_000


def test_a_connection_that_keeps_breaking_is_given_up_and_what_came_stays(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSES_S", (0.0, 0.0))
    hub.cuts = [700_000, 0, 0]
    assert "it goes on where it stopped" in refusal(hub, tmp_path)
    [partial] = tmp_path.rglob("*.partial")
    assert partial.read_bytes() == hub.files[NAME][:700_000]


def interrupted(hub: HubServer, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that stopped after 700,000 bytes."""
    with monkeypatch.context() as patch:
        patch.setattr(download, "PAUSES_S", ())
        hub.cuts = [700_000]
        refusal(hub, cache, name)
    hub.transfers.clear()


@pytest.mark.parametrize("plain", [False, True], ids=["hub", "address"])
def test_a_file_that_changed_since_is_not_glued_together(
    hub: HubServer, tmp_path: Path, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{hub.url}/plain/{NAME}" if plain else NAME
    interrupted(hub, tmp_path, name, monkeypatch)
    hub.files[NAME] = write_tiny_gguf(tmp_path / "other", seed=1).read_bytes() + bytes(PADDING)
    assert pull_from(hub, tmp_path, name).path.read_bytes() == hub.files[NAME]


def test_a_file_from_any_address_is_resumed_too(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{hub.url}/plain/{NAME}"
    interrupted(hub, tmp_path, address, monkeypatch)
    pulled = pull_from(hub, tmp_path, address)
    assert pulled.path == tmp_path / "models" / hub.url.removeprefix("http://") / "plain" / NAME
    assert pulled.path.read_bytes() == hub.files[NAME]
    assert [transfer.range for transfer in hub.transfers] == ["bytes=700000-"]


def test_bytes_that_are_not_what_the_hub_promised_are_deleted(hub: HubServer, tmp_path: Path) -> None:
    hub.promised[NAME] = (sha256(b"something else").hexdigest(), len(hub.files[NAME]))
    assert "SHA-256" in (said := refusal(hub, tmp_path))
    assert "was deleted" in said
    assert left_over(tmp_path) == []


def test_a_file_that_is_no_gguf_is_deleted(hub: HubServer, tmp_path: Path) -> None:
    hub.files[NAME] = b"<html>please log in</html>"
    assert "is no GGUF file" in refusal(hub, tmp_path)
    assert left_over(tmp_path) == []


def test_a_model_in_parts_is_pulled_as_a_whole_whichever_part_is_named(hub: HubServer, tmp_path: Path, tiny_gguf: Path) -> None:
    parts = [f"maker/Big-GGUF/Q8/big-{part:05}-of-00003.gguf" for part in (1, 2, 3)]
    hub.files |= {part: tiny_gguf.read_bytes() + part.encode() for part in parts}
    pulled = pull_from(hub, tmp_path, parts[1])
    assert pulled.path == tmp_path / "models" / "maker--Big-GGUF" / "Q8" / "big-00001-of-00003.gguf"
    [model] = installed(tmp_path)
    assert (model.name, model.size, model.whole) == (parts[0], pulled.size, True)
    assert pulled.size == sum(len(hub.files[part]) for part in parts)
    remove(parts[0], tmp_path)
    assert left_over(tmp_path) == []


def test_the_second_of_two_pulls_waits_and_finds_the_file(hub: HubServer, tmp_path: Path) -> None:
    hub.held, written, waits = threading.Event(), threading.Event(), threading.Event()

    def first() -> Pulled:
        return pull(read_source(NAME), tmp_path, lambda _, have, __: written.set() if have else None, endpoint=hub.url)

    def second() -> Pulled:
        return pull(read_source(NAME), tmp_path, lambda *_: None, waiting=waits.set, endpoint=hub.url)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert written.wait(60)
        two = pool.submit(second)
        assert waits.wait(60)
        with pytest.raises(ModelError, match="being pulled"):
            remove(NAME, tmp_path)
        hub.held.set()
        assert (one.result(60).fresh, two.result(60).fresh) == (True, False)
    assert bytes_sent(hub) == len(hub.files[NAME])


# What the hub refuses


def test_a_missing_file_is_named_with_its_near_relatives(hub: HubServer, tmp_path: Path) -> None:
    said = refusal(hub, tmp_path, "maker/Tiny-GGUF/tiny-f16.gguf")
    assert said == "maker/Tiny-GGUF has no file 'tiny-f16.gguf'; did you mean tiny-F32.gguf?"


def test_a_missing_repository_and_a_missing_revision_are_named(hub: HubServer, tmp_path: Path) -> None:
    assert "no repository nobody/Nothing" in refusal(hub, tmp_path, "nobody/Nothing/x.gguf")
    assert "no revision 'v9'" in refusal(hub, tmp_path, NAME, "v9")


def test_a_gated_repository_asks_for_a_token_which_only_the_hub_sees(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated, hub.token = {"maker/Tiny-GGUF"}, "hf_right"
    assert "set HF_TOKEN" in refusal(hub, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "set HF_TOKEN" in refusal(hub, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert pull_from(hub, tmp_path).fresh
    seen = {transfer.path.partition("/cdn/")[1]: transfer.authorization for transfer in hub.transfers}
    assert seen == {"": "Bearer hf_right", "/cdn/": None}


def test_without_a_network_one_sentence_says_so(tmp_path: Path) -> None:
    for name in (NAME, f"{NOWHERE}/tiny.gguf"):
        with pytest.raises(ModelError, match=r"check the .*network"):
            pull(read_source(name), tmp_path, lambda *_: None, endpoint=NOWHERE)


def test_a_file_that_does_not_fit_the_disk_is_not_begun(hub: HubServer, tmp_path: Path) -> None:
    hub.promised[NAME] = (hub.sha256(NAME), 10**18)
    assert "make room" in refusal(hub, tmp_path)
    assert hub.transfers == []


def test_another_revision_is_another_model_at_the_address_of_its_commit(hub: HubServer, tmp_path: Path) -> None:
    pulled = pull_from(hub, tmp_path, NAME, "v1")
    assert pulled.path.parent.name == "maker--Tiny-GGUF@v1"
    assert any(f"/resolve/{COMMIT}/" in transfer.path for transfer in hub.transfers)
    [model] = installed(tmp_path)
    assert model.name == "maker/Tiny-GGUF@v1/tiny-F32.gguf"
    assert resolve(model.name, tmp_path) == pulled.path


# Names


@pytest.mark.parametrize(
    "text",
    ["tiny.gguf", "maker/Tiny-GGUF", "maker/Tiny-GGUF/", "maker/Tiny-GGUF/weights.bin", "maker/Tiny-GGUF/../../x.gguf",
     "../x/y.gguf", "maker//x.gguf", "/maker/name/x.gguf", "ftp://host/x.gguf", "https://host/%2e%2e/x.gguf", "https://host/page"],
)  # fmt: skip
def test_what_names_no_file_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ModelError, match="write it as"):
        read_source(text)


@pytest.mark.parametrize("page", ["resolve", "blob"])
def test_a_page_of_the_hub_means_its_file(page: str) -> None:
    assert read_source(f"https://huggingface.co/maker/Tiny-GGUF/{page}/main/tiny-F32.gguf?download=true") == read_source(NAME)
    assert read_source(f"https://huggingface.co/maker/Tiny-GGUF/{page}/v1/tiny-F32.gguf") == read_source(NAME, "v1")


def test_a_setting_may_name_a_pulled_model_or_any_path(hub: HubServer, tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(ModelError, match=f"is not here yet: kitbash models pull {NAME}"):
        resolve(NAME, tmp_path)
    pulled = pull_from(hub, tmp_path)
    assert resolve(NAME, tmp_path) == resolve(Path(NAME), tmp_path) == pulled.path
    elsewhere = pull_from(hub, tmp_path, f"{hub.url}/plain/{NAME}")
    assert resolve(f"{hub.url.removeprefix('http://')}/plain/{NAME}", tmp_path) == elsewhere.path
    assert resolve(tiny_gguf, tmp_path) == tiny_gguf
    assert resolve("somewhere.gguf", tmp_path) == Path("somewhere.gguf")


# List and remove


def run(*words: str, given: str = "") -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["models", *words], input=given)
    return done.exit_code, done.stdout, done.stderr


def test_the_list_says_what_each_model_is_and_which_are_unfinished(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    pulled = pull_from(hub, cache)
    other = f"{hub.url}/plain/{NAME}"
    interrupted(hub, cache, other, monkeypatch)
    code, out, remarks = run("list", "--json")
    assert (code, json.loads(out)) == (
        0,
        [{"name": NAME, "size": pulled.size, "architecture": "llama", "quantization": "", "context": 4096, "path": str(pulled.path)}],
    )  # fmt: skip
    assert "unfinished:" in remarks
    assert "700.0 kB so far" in remarks
    assert "llama" in run("list")[1]


def test_remove_asks_first_and_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pull_from(hub, cache)
    assert run("remove", "tiny-F32.gguf", given="n\n")[0] == 1
    assert left_over(cache) == ["tiny-F32.gguf"]
    assert run("remove", "tiny-F32.gguf", "--yes")[0] == 0
    assert [path.name for path in (cache / "models").iterdir()] == [".locks"]
    with pytest.raises(ModelError, match="There is no model"):
        remove(NAME, cache)


def test_a_damaged_file_is_listed_as_such(hub: HubServer, tmp_path: Path) -> None:
    path = pull_from(hub, tmp_path).path
    path.write_bytes(path.read_bytes()[:40])
    [model] = installed(tmp_path)
    assert model.header is None
    with pytest.raises(ModelError, match="no whole GGUF"):
        read_header(path)


def test_a_header_is_read_past_a_vocabulary(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "odd.gguf"), "qwen2")
    writer.add_token_list(["a", "bc"] * 1000)
    writer.add_array("odd.nested", [[1, 2], [3]])
    writer.add_token_types([1] * 2000)
    writer.add_context_length(32768)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_header(tmp_path / "odd.gguf") == Header("qwen2", "Q4_K_M", 32768)


def test_more_parts_than_a_model_has_are_one_file(tmp_path: Path) -> None:
    assert models._parts("x-00001-of-99999.gguf") == ["x-00001-of-99999.gguf"]
