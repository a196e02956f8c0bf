"""A folder of cartridges: its fingerprint, and what a bad cartridge does to the good ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.library import Library

WriteCartridge = Callable[..., Path]


def test_the_fingerprint_stays_while_nothing_changes(write_cartridge: WriteCartridge, library_folder: Path) -> None:
    write_cartridge("bio", ("atp", "ATP carries energy."))
    assert Library(library_folder).fingerprint() == Library(library_folder).fingerprint()


def _edit(folder: Path) -> None:
    (folder / "facts.yaml").write_text((folder / "facts.yaml").read_text().replace("energy", "charge"))


def _describe(folder: Path) -> None:
    (folder / "cartridge.toml").write_text((folder / "cartridge.toml").read_text().replace("test", "text"))


def _add_passages(folder: Path) -> None:
    (folder / "passages.jsonl").write_text('{"id": "p", "text": "a passage"}\n')


def _remove(folder: Path) -> None:
    (folder / "cartridge.toml").unlink()


def _rename(folder: Path) -> None:
    folder.rename(folder.with_name("chem"))


@pytest.mark.parametrize("change", [_edit, _describe, _add_passages, _remove, _rename])
def test_the_fingerprint_follows_every_change_of_what_is_indexed(
    change: Callable[[Path], None], write_cartridge: WriteCartridge, library_folder: Path
) -> None:
    folder = write_cartridge("bio", ("atp", "ATP carries energy."))
    library = Library(library_folder)
    before = library.fingerprint()
    change(folder)
    assert library.fingerprint() != before
    assert library.fingerprint() == Library(library_folder).fingerprint()


def test_questions_and_notes_do_not_change_the_fingerprint(write_cartridge: WriteCartridge, library_folder: Path) -> None:
    folder = write_cartridge("bio", ("atp", "ATP carries energy."))
    library = Library(library_folder)
    before = library.fingerprint()
    (folder / "questions.jsonl").write_text("")
    (folder / "README.md").write_text("notes")
    (library_folder / "no cartridge").mkdir()
    assert library.fingerprint() == before


def test_files_are_read_again_only_when_one_was_touched(
    write_cartridge: WriteCartridge, library_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cartridge("bio", ("atp", "ATP carries energy."))
    reads: list[Path] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), original(path))[1])
    library = Library(library_folder)
    # Given a fingerprint that was taken once
    before = library.fingerprint()
    first = len(reads)
    # When nothing is touched, nothing is read
    assert library.fingerprint() == before
    assert len(reads) == first > 0
    # When a file is touched but not changed, it is read, and the fingerprint stays
    os.utime(folder / "facts.yaml", ns=(1, 1))
    assert library.fingerprint() == before
    assert len(reads) > first


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("facts.yaml", b"- id: [broken"),
        ("facts.yaml", b""),
        ("facts.yaml", b"\xff\xfe\x00"),
        ("cartridge.toml", b"name = "),
        ("cartridge.toml", b'name = "other"\nversion = "1"\nlicence = "x"\ndescription = "y"\n'),
        ("passages.jsonl", b"{not json}\n"),
        ("questions.jsonl", b'{"query": 1}\n'),
    ],
)
def test_a_broken_cartridge_is_a_problem_and_does_not_stop_the_others(
    file: str, content: bytes, write_cartridge: WriteCartridge, library_folder: Path
) -> None:
    write_cartridge("good", ("atp", "ATP carries energy."))
    (write_cartridge("bad", ("dna", "DNA stores heredity.")) / file).write_bytes(content)
    contents = Library(library_folder).load()
    assert [cartridge.name for cartridge in contents.cartridges] == ["good"]
    assert [fact.id for fact in contents.facts] == ["good:atp"]
    assert len(contents.problems) == 1
    assert "bad" in contents.problems[0]
    assert "\n" not in contents.problems[0]


def test_cartridges_come_in_the_order_of_their_names(write_cartridge: WriteCartridge, library_folder: Path) -> None:
    for name in ("zoo", "art", "bio"):
        write_cartridge(name, ("one", f"A fact of {name}."))
    assert [cartridge.name for cartridge in Library(library_folder).load().cartridges] == ["art", "bio", "zoo"]


def test_an_empty_library_holds_nothing(library_folder: Path) -> None:
    library = Library(library_folder)
    assert library.load().facts == ()
    assert library.fingerprint()


@pytest.mark.parametrize("call", [Library.folders, Library.fingerprint, Library.load])
def test_a_library_that_is_not_there_says_what_to_do(call: Callable[[Library], object], tmp_path: Path) -> None:
    with pytest.raises(CartridgeError, match="CARTRIDGES_DIR"):
        call(Library(tmp_path / "nowhere"))
