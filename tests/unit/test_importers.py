"""Importing other people's files: what becomes of them, and one sentence for what is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import load_cartridge
from kitbash_ray.knowledge.importers import Imported, import_path
from kitbash_ray.knowledge.readers.prose import PASSAGE_CHARS


class Desk:
    """A folder to write files in and import them from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cartridges = folder / "cartridges"

    def put(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def bring(self, name: str, content: str | bytes, cartridge: str = "notes") -> Imported:
        return import_path(self.put(name, content), cartridge, self.cartridges)

    def passages(self, name: str, content: str | bytes) -> list[dict[str, Any]]:
        imported = self.bring(name, content)
        load_cartridge(imported.folder)
        entries = [json.loads(line) for line in (imported.folder / "passages.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(entries) == imported.passages
        return entries

    def refusal(self, name: str, content: str | bytes, cartridge: str = "notes") -> str:
        """The sentence of the refusal; nothing may be left behind."""
        with pytest.raises(CartridgeError) as caught:
            self.bring(name, content, cartridge)
        assert not self.cartridges.exists() or not list(self.cartridges.iterdir())
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 500
        return message.replace(f"{self.folder}/", "")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# JSON Lines


def test_json_lines_keep_ids_asks_and_sources(desk: Desk) -> None:
    text = '{"id": 7, "text": "Seven."}\n\n{"id": "b", "text": " Two. ", "asks": "Which?", "source": "p. 2"}\n'
    text += '{"text": "Three.", "asks": ["A?", "B?"]}\n'
    first, second, third = desk.passages("facts.jsonl", text)
    assert first == {"id": "7", "text": "Seven.", "source": "facts.jsonl"}
    assert second == {"id": "b", "text": "Two.", "asks": ["Which?"], "source": "p. 2", "document": "facts.jsonl"}
    assert third["id"].startswith("text-")
    assert third["asks"] == ["A?", "B?"]


def test_the_cartridge_says_where_it_came_from(desk: Desk) -> None:
    imported = desk.bring("a.ndjson", '{"text": "One."}\n')
    manifest = load_cartridge(imported.folder).manifest
    assert (manifest.name, manifest.version, manifest.faction, manifest.licence) == ("notes", "1.0.0", "general", "unknown")
    assert manifest.description == "Imported from a.ndjson"


def test_a_file_name_with_quotes_and_backslashes_is_no_trouble(desk: Desk) -> None:
    imported = desk.bring('a "b" \\u0041 \x7f\n.txt', "Hello.")
    assert load_cartridge(imported.folder).manifest.description == 'Imported from a "b" \\u0041 ??.txt'


def test_made_ids_stay_when_other_lines_are_added(desk: Desk) -> None:
    [before] = desk.passages("a.jsonl", '{"text": "One."}\n')
    after = desk.passages("a.jsonl", '{"text": "Zero."}\n{"text": "One."}\n')
    assert after[1]["id"] == before["id"]


def test_repetitions_without_an_id_are_skipped_and_counted(desk: Desk) -> None:
    imported = desk.bring("a.jsonl", '{"text": "One."}\n{"text": "One."}\n{"text": "One.", "asks": "What?"}\n')
    assert (imported.passages, imported.skipped) == (2, 1)


def test_ids_are_cleaned_and_counted(desk: Desk) -> None:
    imported = desk.bring(
        "a.jsonl", '{"id": "../../etc/passwd", "text": "x"}\n{"id": "Käse 1", "text": "y"}\n{"id": "ok", "text": "z"}\n'
    )
    assert [fact.id for fact in load_cartridge(imported.folder).facts] == ["notes:etc-passwd", "notes:Kase-1", "notes:ok"]
    assert imported.renamed == 2
    assert sorted(path.name for path in desk.folder.iterdir()) == ["a.jsonl", "cartridges"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"id": "a", "text": "again"}', "the id 'a' is taken by line 1."),
        ('{"id": "a/", "text": "cleaned to the same"}', "the id 'a' is taken by line 1."),
        ('{"id": "b", "text": " \\n "}', "'text' is empty."),
        ('{"text": ""}', "'text' is empty."),
        ('{"id": "b"}', "'text' is missing."),
        ('{"id": "b", "text": 5}', "'text'"),
        ('{"id": "b", "text": null}', "'text'"),
        ('{"id": "b", "text": "x", "txt": "y"}', "'txt' is not a known key."),
        ('{"id": "b", "text": "x", "asks": [""]}', "'asks.0' is empty."),
        ('{"id": "b", "text": "x", "asks": {"a": 1}}', "'asks'"),
        ('{"id": "b", "text": "x", "source": 0}', "'source'"),
        ('{"id": "../", "text": "x"}', "the id '../' has no letter or digit"),
        ('{"id": "北京", "text": "x"}', "the id '北京' has no letter or digit"),
        ('{"id": true, "text": "x"}', "'id' is neither a string nor a number"),
        ('{"id": ["a"], "text": "x"}', "'id' is neither a string nor a number"),
        ('{"id": "b", "text": "' + "x" * 4001 + '"}', "'text'"),
        ('{"id": "b", "text": "\\ud800"}', "'text'"),
        ('{"id": "b", "text": "x"', "this is not JSON"),
        ("{'id': 'b'}", "this is not JSON"),
        ("[1]", "expected an object"),
        ("null", "expected an object"),
        ("[" * 100_000, "this is not JSON"),
        ('{"text": ' + "9" * 10_000 + "}", "this is not JSON"),
        ('{"text": "a\x00b"}', "NUL byte"),
        ('{"text": "' + "x" * 10_000_000 + '"}', "longer than 1 MiB"),
    ],
    ids=lambda value: str(value)[:40].replace("\x00", "NUL"),
)
def test_a_fault_in_json_lines_is_named_by_line_and_leaves_nothing(desk: Desk, line: str, sentence: str) -> None:
    message = desk.refusal("a.jsonl", '{"id": "a", "text": "x"}\n' + line + "\n")
    assert message.startswith("a.jsonl:2: ")
    assert sentence in message


# CSV


def test_csv_cells_may_hold_commas_quotes_and_lines(desk: Desk) -> None:
    first, second = desk.passages("a.csv", 'ID,Fact,asks,source\r\n1,"One, ""uno"",\r\nor so",A?| B? ||,\r\n\r\n,Two,,p. 2\r\n')
    assert first == {"id": "1", "text": 'One, "uno",\nor so', "asks": ["A?", "B?"], "source": "a.csv"}
    assert (second["text"], second["source"]) == ("Two", "p. 2")


def test_a_csv_with_a_bom_from_a_spreadsheet_is_read(desk: Desk) -> None:
    assert desk.passages("a.csv", b"\xef\xbb\xbftext\r\nHello\r\n")[0]["text"] == "Hello"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,asks\n1,x\n", "a.csv:1: there is no column 'text'"),
        ("text;asks\nx;y\n", "a.csv:1: there is no column 'text'"),
        ("text,colour\nx,red\n", "a.csv:1: the column 'colour' is unknown"),
        ("text,text\nx,y\n", "a.csv:1: a column stands twice"),
        ("text,fact\nx,y\n", "a.csv:1: a column stands twice"),
        ('text,id\n"a\nb",1\n"c",1\n', "a.csv:4: the id '1' is taken by line 2."),
        ("text,id\nx,1\n,2\n", "a.csv:3: fact '2': 'text' is empty."),
        ("text,id\nx,1\nHello, world,2\n", "a.csv:3: 3 cells for 2 columns"),
        ("text,id\nx\n", "a.csv:2: 1 cells for 2 columns"),
        ('text,id\nx,1\n"open,2\ny,3\n', "a.csv:3: this is not CSV"),
        ('text\n"a"b\n', "a.csv:2: this is not CSV"),
        ("text\n" + "x" * 200_000 + "\n", "a.csv:2: this is not CSV"),
        ("text\nx\ncaf\udce9\n", "a.csv:3: byte 4 of the line is not UTF-8"),
        ("text\n", "a.csv:1: there is nothing in this file"),
        ("", "a.csv:1: there is nothing in this file"),
    ],
)
def test_a_fault_in_csv_is_named_by_line_and_leaves_nothing(desk: Desk, text: str, sentence: str) -> None:
    assert desk.refusal("a.csv", text.encode("utf-8", "surrogateescape")).startswith(sentence)


# Markdown


GUIDE = """\
---
title: ignored
tags: [a]
---
Before any heading.

# Guide

A *short* [paragraph](http://example.org) over
two lines with `code`.

Second paragraph:

- one
  - nested
- two

<!-- a comment -->

## Install

```sh
# not a heading

pip install kitbash
```

### Deep

1. first
2. second

Usage
-----

| a | b |
|---|---|
| 1 | 2 |

***
"""


def test_markdown_becomes_passages_under_their_headings(desk: Desk) -> None:
    entries = [(entry.get("section"), entry["text"]) for entry in desk.passages("guide.md", GUIDE)]
    assert entries == [
        (None, "Before any heading."),
        ("Guide", "A short paragraph over two lines with `code`."),
        ("Guide", "Second paragraph:\n- one\n  - nested\n- two"),
        ("Guide > Install", "```sh\n# not a heading\n\npip install kitbash\n```"),
        ("Guide > Install > Deep", "1. first\n2. second"),
        ("Guide > Usage", "a | b\n1 | 2"),
    ]


def test_ids_of_markdown_begin_with_the_heading(desk: Desk) -> None:
    assert desk.passages("a.md", "# Über uns!\n\nHello.\n")[0]["id"].startswith("uber-uns-")


def test_windows_markdown_with_a_bom_is_the_same(desk: Desk) -> None:
    unix = desk.passages("guide.md", GUIDE)
    assert desk.passages("guide.md", b"\xef\xbb\xbf" + GUIDE.replace("\n", "\r\n").encode()) == unix


def test_a_rule_at_the_beginning_is_no_front_matter(desk: Desk) -> None:
    assert [entry["text"] for entry in desk.passages("a.md", "---\n\nFirst.\n\n---\n\nSecond.\n")] == ["First.", "Second."]


def test_long_paragraphs_are_cut_after_sentences(desk: Desk) -> None:
    sentences = [f"This is sentence number {number} of a long paragraph." for number in range(60)]
    texts = [entry["text"] for entry in desk.passages("a.md", " ".join(sentences))]
    assert len(texts) > 2
    assert all(len(text) <= PASSAGE_CHARS and text.endswith("paragraph.") for text in texts)
    assert " ".join(texts) == " ".join(sentences)


def test_long_lists_are_cut_between_items(desk: Desk) -> None:
    items = [f"- item {number} " + "x" * 90 for number in range(20)]
    texts = [entry["text"] for entry in desk.passages("a.md", "Intro:\n\n" + "\n".join(items))]
    assert texts[0].startswith("Intro:\n- item 0 ")
    assert all(len(text) <= PASSAGE_CHARS for text in texts)
    assert "\n".join(texts) == "Intro:\n" + "\n".join(items)


def test_code_stays_whole_beyond_the_length_of_a_passage(desk: Desk) -> None:
    code = "\n".join(f"line_{number} = {number}" for number in range(150))
    texts = [entry["text"] for entry in desk.passages("a.md", f"Before.\n\n```python\n{code}\n```\n\nAfter.\n")]
    assert texts == ["Before.", f"```python\n{code}\n```", "After."]


def test_code_that_no_passage_can_hold_is_cut_between_lines(desk: Desk) -> None:
    code = "\n".join(f"line_{number} = {number}" for number in range(1000))
    texts = [entry["text"] for entry in desk.passages("a.md", f"```\n{code}\n```\n")]
    assert "\n".join(texts) == f"```\n{code}\n```"


def test_html_inside_markdown_is_read_without_its_tags(desk: Desk) -> None:
    text = """# Dyna

<!-- not for readers -->
<p align="center"><img src="logo.png" alt="logo">Dyna links <b>calls</b>.<br>It is small &amp; fast.</p>

<pre>
Permission is hereby granted,
free of charge.
</pre>

<script>var hidden = 1;</script>
<details><summary>Why?</summary>

Because of *speed*.

</details>
"""
    assert [passage["text"] for passage in desk.passages("a.md", text)] == [
        "Dyna links calls.\nIt is small & fast.\nPermission is hereby granted,\nfree of charge.\nWhy?",
        "Because of speed.",
    ]


def test_deeply_nested_markdown_is_read(desk: Desk) -> None:
    assert desk.bring("a.md", ">" * 5000 + " deep\n\n" + "[" * 5000 + "\n\nEnd.\n").passages


@pytest.mark.parametrize("text", ["", "\n\n", "# Only\n\n## headings\n", "---\ntitle: x\n---\n", "***\n", "<!-- x -->\n"])
def test_markdown_without_a_text_is_refused(desk: Desk, text: str) -> None:
    assert desk.refusal("a.markdown", text) == "a.markdown:1: there is nothing in this file to import."


# Plain text


def test_text_is_cut_at_empty_lines_and_sentences(desk: Desk) -> None:
    long = "A sentence here. " * 100
    texts = [entry["text"] for entry in desk.passages("a.txt", f"First\nparagraph.\n\n \n-----\n\n{long}\n")]
    assert texts[0] == "First paragraph."
    assert all(len(text) <= PASSAGE_CHARS and text.endswith("here.") for text in texts[1:])


def test_text_without_any_place_to_cut_is_cut_anyway(desk: Desk) -> None:
    texts = [entry["text"] for entry in desk.passages("a.txt", "".join(chr(0x4E00 + number) for number in range(2000)))]
    assert [len(text) for text in texts] == [PASSAGE_CHARS, PASSAGE_CHARS, 400]


def test_chinese_sentences_are_cut_at_their_full_stop(desk: Desk) -> None:
    text = "".join(chr(0x4E00 + number) * 9 + "。" for number in range(200))
    assert all(entry["text"].endswith("。") for entry in desk.passages("a.txt", text))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"fine\n\xff\xfeh\x00", "a.txt:2: byte 1 of the line is not UTF-8"),
        (b"fine\nnot \x00 fine", "a.txt:2: the line holds a NUL byte"),
        (b"x" * 10_000_000, "a.txt:1: the line is longer than 1 MiB"),
        (b"\xef\xbb\xbf\r\n \r\n", "a.txt:1: there is nothing in this file"),
    ],
    ids=["utf-16", "nul", "long", "empty"],
)
def test_bytes_that_are_no_text_are_refused(desk: Desk, content: bytes, sentence: str) -> None:
    assert desk.refusal("a.txt", content).startswith(sentence)


# The folder


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "-a", "a b", "x" * 65, "a\n", "/tmp/x"])
def test_a_name_that_is_no_cartridge_name_is_refused(desk: Desk, name: str) -> None:
    assert "is no cartridge name" in desk.refusal("a.txt", "x", name)


@pytest.mark.parametrize("name", ["a.exe", "a", ".jsonl", "a.json"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(desk: Desk, name: str) -> None:
    message = desk.refusal(name, "x")
    assert message.startswith(f"{name}: cannot import")
    assert ".markdown" in message


def test_a_file_that_is_not_there_is_refused(desk: Desk) -> None:
    with pytest.raises(CartridgeError, match="there is no such file"):
        import_path(desk.folder / "a.txt", "notes", desk.cartridges)


def test_importing_again_replaces_the_passages_and_keeps_the_questions(desk: Desk) -> None:
    folder = desk.bring("a.txt", "Old.").folder
    (folder / "questions.jsonl").write_text("")
    desk.bring("b.txt", "New.")
    cartridge = load_cartridge(folder)
    assert [fact.text for fact in cartridge.facts] == ["New."]
    assert cartridge.manifest.description == "Imported from b.txt"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cartridge.toml",
        "imported.json",
        "passages.jsonl",
        "questions.jsonl",
    ]
    assert [path.name for path in desk.cartridges.iterdir()] == ["notes"]


def test_a_fault_leaves_what_was_imported_before(desk: Desk) -> None:
    folder = desk.bring("a.txt", "Old.").folder
    with pytest.raises(CartridgeError):
        desk.bring("a.jsonl", '{"text": "New."}\n{\n')
    assert [fact.text for fact in load_cartridge(folder).facts] == ["Old."]
    assert [path.name for path in desk.cartridges.iterdir()] == ["notes"]


def test_a_cartridge_written_by_hand_is_never_replaced(desk: Desk) -> None:
    folder = desk.cartridges / "notes"
    folder.mkdir(parents=True)
    (folder / "facts.yaml").write_text("# mine")
    with pytest.raises(CartridgeError, match=r"facts\.yaml:1: this cartridge was written by hand"):
        desk.bring("a.txt", "New.")
    assert [path.name for path in folder.iterdir()] == ["facts.yaml"]


def test_a_cartridges_folder_that_is_a_file_is_refused(desk: Desk) -> None:
    desk.cartridges.write_text("")
    with pytest.raises(CartridgeError, match="cannot be written"):
        desk.bring("a.txt", "New.")


def test_progress_counts_bytes_up_to_their_total(desk: Desk) -> None:
    calls: list[tuple[int, int]] = []
    path = desk.put("a.jsonl", "".join(f'{{"text": "Fact {number} is here."}}\n' for number in range(10_000)))
    import_path(path, "notes", desk.cartridges, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)
    assert len(calls) > 3


def test_a_hundred_thousand_lines_take_seconds(desk: Desk) -> None:
    path = desk.put("a.jsonl", "".join(f'{{"id": {number}, "text": "Fact number {number}."}}\n' for number in range(100_000)))
    started = time.perf_counter()
    assert import_path(path, "notes", desk.cartridges).passages == 100_000
    assert time.perf_counter() - started < 20  # about 1 s on an idle machine
