"""The format of a cartridge: what is accepted, and one sentence with file and line for the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import load_cartridge

MANIFEST = 'name = "lab"\nversion = "1.0.0"\nfaction = "general"\nlicence = "CC0-1.0"\ndescription = "A lab."\n'
FACT = """\
- id: port
  fact: "The dashboard listens on port 8265."
  asks: ["Which port?", "What is the dashboard's port?"]
  source: "Handbook, p. 3"
  level: empirical
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "cartridge.toml").write_text(MANIFEST)
    (folder / "facts.yaml").write_text(FACT)
    return folder


def refusal(folder: Path) -> str:
    """The sentence with which `folder` is refused, the path of its parent taken away."""
    with pytest.raises(CartridgeError) as caught:
        load_cartridge(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message.replace(f"{folder}/", "")


def test_a_cartridge_loads_with_namespaced_ids_and_lines(lab: Path) -> None:
    (lab / "questions.jsonl").write_text('{"query": "Port?", "expected": ["lab:port"], "kind": "paraphrase"}\n')
    cartridge = load_cartridge(lab)
    [fact] = cartridge.facts
    assert (fact.id, fact.source, fact.line) == ("lab:port", "Handbook, p. 3", 1)
    assert len(fact.asks) == 2
    assert len(cartridge.questions) == 1


def test_passages_need_neither_asks_nor_source(lab: Path) -> None:
    (lab / "facts.yaml").unlink()
    (lab / "passages.jsonl").write_text('{"id": "a", "text": "One."}\n\n{"id": "b", "text": "Two.", "section": "S"}\n')
    assert [(fact.id, fact.source, fact.line) for fact in load_cartridge(lab).facts] == [("lab:a", None, 1), ("lab:b", None, 3)]


def test_a_bom_and_windows_line_ends_are_no_fault(lab: Path) -> None:
    for file, text in (("cartridge.toml", MANIFEST), ("facts.yaml", FACT)):
        (lab / file).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_cartridge(lab).facts[0].text == "The dashboard listens on port 8265."


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('  source: "Handbook, p. 3"\n', "", "facts.yaml:1: fact 'port': 'source' is missing."),
        ("  level: empirical", "  level: sure", "facts.yaml:5: fact 'port': 'level':"),
        ("  level: empirical", "  level: empirical\n  colour: red", "facts.yaml:6: fact 'port': 'colour' is not a known key."),
        ('"The dashboard listens on port 8265."', '"  "', "facts.yaml:2: fact 'port': 'fact' is empty."),
        ('"The dashboard listens on port 8265."', "8265", "facts.yaml:2: fact 'port': 'fact':"),
        ('["Which port?", "What is the dashboard\'s port?"]', '["Which port?"]', "facts.yaml:3: fact 'port': 'asks' needs at least 2"),
        ("- id: port", "- id: ../port", "facts.yaml:1: fact '../port': 'id':"),
        ("- id: port", "- id: 8265", "facts.yaml:1:"),
        ("  level: empirical", "  level: empirical\n  level: axiomatic", "facts.yaml:1: a key stands twice"),
        ("  level: empirical", "  level: empirical\n  valid_from: 2024-13-45", "facts.yaml"),
        ('fact: "The dash', 'fact: The "dash: ', "facts.yaml:2: this is not YAML"),
        ("- id: port", "-\tid: port\n\t- x", "facts.yaml:"),
        ("- id: port", "id: port", "facts.yaml:"),
        ("- id: port", "- !!python/object/apply:os.system ['true']\n- id: port", "facts.yaml:1: this is not YAML"),
    ],
)  # fmt: skip
def test_a_planted_fault_in_facts_is_named_with_its_line(lab: Path, old: str, new: str, sentence: str) -> None:
    assert old in FACT
    (lab / "facts.yaml").write_text(FACT.replace(old, new))
    assert refusal(lab).startswith(sentence)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "lab"', 'name = "bal"', "cartridge.toml: name is 'bal', but the folder is called 'lab'"),
        ('name = "lab"', 'name = "../lab"', "cartridge.toml: "),
        ('name = "lab"', "name = lab", "cartridge.toml: this is not TOML"),
        ('licence = "CC0-1.0"\n', "", "cartridge.toml: 'licence' is missing."),
        ('faction = "general"', 'faction = "secret"', "cartridge.toml: 'faction':"),
        ('faction = "general"', 'fraction = "general"', "cartridge.toml: 'fraction' is not a known key."),
        ('description = "A lab."', 'description = ""', "cartridge.toml: 'description' is empty."),
    ],
)
def test_a_planted_fault_in_the_manifest_is_named(lab: Path, old: str, new: str, sentence: str) -> None:
    (lab / "cartridge.toml").write_text(MANIFEST.replace(old, new))
    assert refusal(lab).startswith(sentence)


def test_a_duplicate_id_names_both_lines(lab: Path) -> None:
    (lab / "facts.yaml").write_text(FACT + "\n" + FACT)
    assert refusal(lab) == "facts.yaml:7: the id of 'lab:port' is taken by line 1 of facts.yaml."


def test_a_duplicate_id_is_found_across_facts_and_passages(lab: Path) -> None:
    (lab / "passages.jsonl").write_text('{"id": "other", "text": "x"}\n{"id": "port", "text": "y"}\n')
    assert refusal(lab) == "passages.jsonl:2: the id of 'lab:port' is taken by line 1 of facts.yaml."


def test_a_fact_that_ends_before_it_begins_is_refused(lab: Path) -> None:
    (lab / "facts.yaml").write_text(FACT + "  valid_from: 2025-01-02\n  valid_until: 2025-01-01\n")
    assert refusal(lab).startswith("facts.yaml:1: fact 'port' ends (valid_until) before it begins")


@pytest.mark.parametrize("file", ["facts.yaml", "cartridge.toml"])
@pytest.mark.parametrize(
    ("tail", "sentence"),
    [
        (b"# caf\xe9\n", "is not UTF-8"),
        (b"# a \x00 b\n", "NUL byte"),
        (b"# " + b"x" * 10_000_000 + b"\n", "the line is longer than 1 MiB"),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_line(lab: Path, file: str, tail: bytes, sentence: str) -> None:
    path = lab / file
    line = path.read_bytes().count(b"\n") + 1
    path.write_bytes(path.read_bytes() + tail)
    message = refusal(lab)
    assert message.startswith(f"{file}:{line}: ")
    assert sentence in message


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"id": "a", "text": "x"', "passages.jsonl:2: this is not JSON"),
        ('["id"]', "passages.jsonl:2: expected an object"),
        ('{"id": "a", "text": ' + "[" * 100_000 + "]" * 100_000 + "}", "passages.jsonl:2: this is not JSON"),
        ('{"id": "a", "text": ' + "1" * 10_000 + "}", "passages.jsonl:2:"),
        ('{"id": "a", "text": "x", "note": "y"}', "passages.jsonl:2: fact 'a': 'note' is not a known key."),
        ('{"id": "a", "text": "\\ud800"}', "passages.jsonl:2: fact 'a': 'text'"),
        ('{"id": "a/../b", "text": "x"}', "passages.jsonl:2: fact 'a/../b': 'id'"),
    ],
)
def test_a_planted_fault_in_passages_is_named_with_its_line(lab: Path, line: str, sentence: str) -> None:
    (lab / "passages.jsonl").write_text(f'{{"id": "good", "text": "Good."}}\n{line}\n')
    assert refusal(lab).startswith(sentence)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"query": "Why?", "expected": [], "kind": "direct"}', "questions.jsonl:1: 'kind'"),
        ('{"query": "Why?", "kind": "near_miss"}', "questions.jsonl:1: 'expected' is missing."),
        ('{"query": "", "expected": [], "kind": "near_miss"}', "questions.jsonl:1: 'query' is empty."),
    ],
)
def test_a_planted_fault_in_questions_is_named_with_its_line(lab: Path, line: str, sentence: str) -> None:
    (lab / "questions.jsonl").write_text(line + "\n")
    assert refusal(lab).startswith(sentence)


def _bomb(levels: int) -> str:
    """A YAML document that grows tenfold with each level when it is written out."""
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("key", ["fact", "asks", "source"])
def test_a_yaml_bomb_costs_nothing(lab: Path, key: str) -> None:
    (lab / "facts.yaml").write_text(f"- id: boom\n  {key}: &b\n" + "".join(f"    {line}\n" for line in _bomb(12).splitlines()))
    assert refusal(lab).startswith("facts.yaml:")


def test_a_yaml_bomb_as_an_id_is_not_written_out(lab: Path) -> None:
    (lab / "facts.yaml").write_text("- id:\n" + "".join(f"    {line}\n" for line in _bomb(5).splitlines()))
    assert refusal(lab).startswith("facts.yaml:")


def test_a_bomb_of_merge_keys_costs_nothing(lab: Path) -> None:
    lines = ["- &a0 {k: v}"] + [f"- &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 6)]
    (lab / "facts.yaml").write_text("\n".join(lines) + "\n")
    assert refusal(lab).startswith("facts.yaml:1: ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="flow"),
        pytest.param("- " * 100_000 + "x", id="block"),
        pytest.param("- " + "[" * 900 + "]" * 900, id="legal but deep"),
        pytest.param("{a: " * 5000, id="unclosed"),
        pytest.param("&a [*a]", id="itself"),
        pytest.param("- &a {id: *a}", id="itself as id"),
        pytest.param("- ? [a, b]\n  : c", id="list as key"),
    ],
)
def test_yaml_that_is_nested_too_deep_or_in_itself_is_refused(lab: Path, text: str) -> None:
    (lab / "facts.yaml").write_text(text)
    assert refusal(lab).startswith("facts.yaml")


def test_a_name_must_be_a_name_from_its_beginning(tmp_path: Path) -> None:
    folder = tmp_path / "My lab"
    folder.mkdir()
    (folder / "cartridge.toml").write_text(MANIFEST.replace('"lab"', '"My lab"'))
    (folder / "facts.yaml").write_text(FACT)
    assert refusal(folder).startswith("cartridge.toml: 'name'")


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 10_000], ids=["deep", "long number"])
def test_toml_that_python_cannot_hold_is_refused(lab: Path, value: str) -> None:
    (lab / "cartridge.toml").write_text(MANIFEST + f"extra = {value}\n")
    assert refusal(lab).startswith("cartridge.toml")


def test_an_empty_cartridge_is_refused_with_what_to_do(lab: Path) -> None:
    (lab / "facts.yaml").write_text("# nothing yet\n")
    assert "no fact" in refusal(lab)
    (lab / "facts.yaml").unlink()
    assert "neither facts.yaml nor passages.jsonl" in refusal(lab)


def test_a_folder_without_a_manifest_is_no_cartridge(tmp_path: Path) -> None:
    assert "is no cartridge" in refusal(tmp_path)
