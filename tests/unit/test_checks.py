"""`check_cartridge`: all faults at once, and those that only comparing finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import load_cartridge
from kitbash_ray.knowledge.checks import check_cartridge

MANIFEST = 'name = "lab"\nversion = "1.0.0"\nlicence = "CC0-1.0"\ndescription = "A lab."\n'


def fact(name: str, *asks: str, more: str = "") -> str:
    asks = asks or (f"What is {name}?", f"Tell me of {name}")
    lines = "".join(f'    - "{ask}"\n' for ask in asks)
    return f'- id: {name}\n  fact: "It is {name}."\n  asks:\n{lines}  source: "Book"\n  level: empirical\n{more}'


class Lab:
    """A cartridge folder to plant faults in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.write("cartridge.toml", MANIFEST.replace('"lab"', f'"{folder.name}"'))
        self.write("facts.yaml", fact("one") + fact("two"))

    def write(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text)

    def findings(self) -> list[str]:
        findings = check_cartridge(self.folder)
        loads = True
        try:
            load_cartridge(self.folder)
        except CartridgeError:
            loads = False
        assert loads or any(finding.severity == "error" for finding in findings), "what cannot be loaded has an error"
        return [str(finding).replace(f"{self.folder}/", "") for finding in findings]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def test_a_good_cartridge_has_no_findings(lab: Lab) -> None:
    lab.write("questions.jsonl", '{"query": "Which is first?", "expected": ["lab:one"], "kind": "paraphrase"}\n')
    assert lab.findings() == []


@pytest.mark.parametrize("name", ["biochemistry", "ray_redis"])
def test_the_cartridges_of_the_project_have_no_findings(name: str) -> None:
    assert check_cartridge(Path(__file__).parents[2] / "cartridges" / name) == []


def test_every_bad_fact_is_found_and_not_only_the_first(lab: Lab) -> None:
    bad = [
        fact("two").replace('  source: "Book"\n', ""),
        fact("three").replace("empirical", "sure"),
        fact("one"),
        "- just a line\n",
    ]
    lab.write("facts.yaml", fact("one") + "".join(bad))
    found = lab.findings()
    assert [line.partition(": ")[0] for line in found] == ["facts.yaml:8", "facts.yaml:20", "facts.yaml:21", "facts.yaml:28"]
    assert found[0].endswith("fact 'two': 'source' is missing.")
    assert found[2].endswith("the id 'one' is taken by line 1 of facts.yaml.")


def test_faults_of_all_files_come_together(lab: Lab) -> None:
    lab.write("cartridge.toml", MANIFEST.replace('"lab"', '"bal"'))
    lab.write("facts.yaml", "- id: one\n")
    lab.write("passages.jsonl", '{"id": "p"}\n{\n{"id": "one", "text": "x"}\n')
    lab.write("questions.jsonl", "[]\n\x00\n")
    assert [line.partition(": ")[0] for line in lab.findings()] == [
        "cartridge.toml:1", "facts.yaml:1", "passages.jsonl:1", "passages.jsonl:2", "passages.jsonl:3",
        "questions.jsonl:1", "questions.jsonl:2",
    ]  # fmt: skip


def test_an_asking_that_two_facts_claim_is_an_error_at_the_second(lab: Lab) -> None:
    lab.write("facts.yaml", fact("one", "Which port?", "b") + fact("two", "which  PORT", "c"))
    [found] = lab.findings()
    assert found.startswith("facts.yaml:10: 'which  PORT' asks for 'two' and also for 'one' (line 3 of facts.yaml)")


def test_facts_of_different_times_may_share_an_asking(lab: Lab) -> None:
    early, late = "  valid_until: 2999-12-31\n", "  valid_from: 3000-01-01\n"
    lab.write("facts.yaml", fact("one", "Who leads?", "b", more=early) + fact("two", "Who leads?", "c", more=late))
    assert lab.findings() == []


def test_signs_that_carry_meaning_keep_askings_apart(lab: Lab) -> None:
    lab.write("facts.yaml", fact("one", "What is C?", "b") + fact("two", "What is C++?", "c"))
    assert lab.findings() == []


def test_an_expired_fact_is_a_warning(lab: Lab) -> None:
    lab.write("facts.yaml", fact("one", more="  valid_until: 2001-02-03\n"))
    assert lab.findings() == [
        "facts.yaml:1: warning: fact 'one' was valid until 2001-02-03 and is no longer given as an answer."
    ]


def test_a_fact_that_ends_before_it_begins_is_an_error(lab: Lab) -> None:
    lab.write("facts.yaml", fact("one", more="  valid_from: 2999-01-02\n  valid_until: 2999-01-01\n"))
    assert "ends (valid_until) before it begins" in lab.findings()[0]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ('"query": "what is ONE", "expected": ["lab:one"], "kind": "paraphrase"', "this is an asking of fact 'one'"),
        ('"query": "Q?", "expected": ["lab:six"], "kind": "paraphrase"', "there is no fact 'lab:six'."),
        ('"query": "Q?", "expected": ["gone:one"], "kind": "paraphrase"', "there is no fact 'gone:one'."),
        ('"query": "Q?", "expected": ["../lab:one"], "kind": "paraphrase"', "there is no fact '../lab:one'."),
        ('"query": "Q?", "expected": [":one"], "kind": "paraphrase"', "there is no fact ':one'."),
        ('"query": "Q?", "expected": ["one"], "kind": "paraphrase"', "is not namespaced; write 'lab:one'."),
        ('"query": "Q?", "expected": [], "kind": "paraphrase"', "a paraphrase must say in 'expected'"),
        ('"query": "Q?", "expected": ["lab:one"], "kind": "near_miss"', "'expected' must be []"),
        ('"query": "Q?", "expected": ["lab:one"], "kind": "out_of_scope"', "'expected' must be []"),
        ('"query": "Q?", "expected": [], "kind": "direct"', "'kind'"),
    ],
)
def test_a_planted_fault_in_a_question_is_an_error_with_its_line(lab: Lab, question: str, sentence: str) -> None:
    lab.write("questions.jsonl", f'{{"query": "Good?", "expected": [], "kind": "near_miss"}}\n{{{question}}}\n')
    [found] = lab.findings()
    assert found.startswith("questions.jsonl:2: ")
    assert sentence in found


def test_a_question_may_expect_a_fact_of_another_cartridge(lab: Lab, tmp_path: Path) -> None:
    Lab(tmp_path / "other").write("facts.yaml", fact("far"))
    line = '{"query": "Q?", "expected": ["other:far", "other:gone"], "kind": "paraphrase"}\n'
    lab.write("questions.jsonl", line)
    assert lab.findings() == ["questions.jsonl:1: there is no fact 'other:gone'."]


def test_a_faulty_fact_is_not_reported_as_missing_too(lab: Lab) -> None:
    lab.write("facts.yaml", fact("one").replace("empirical", "sure"))
    lab.write("questions.jsonl", '{"query": "Q?", "expected": ["lab:one"], "kind": "paraphrase"}\n')
    [found] = lab.findings()
    assert "'level'" in found


def test_a_broken_file_is_one_error_and_not_one_for_each_question(lab: Lab) -> None:
    lab.write("facts.yaml", fact("one") + "- id: [\n")
    lab.write("questions.jsonl", '{"query": "Q?", "expected": ["lab:one"], "kind": "paraphrase"}\n' * 5)
    [found] = lab.findings()
    assert "this is not YAML" in found


def test_a_cartridge_without_facts_or_without_anything_is_an_error(lab: Lab, tmp_path: Path) -> None:
    lab.write("facts.yaml", "")
    assert "there is no fact" in lab.findings()[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    [found] = check_cartridge(empty)
    assert found.where == f"{empty / 'cartridge.toml'}:1"
    assert "is no cartridge" in found.message


def test_findings_stand_in_the_order_of_their_lines(lab: Lab) -> None:
    lab.write("passages.jsonl", '{"id": "p"}\n' * 12)
    lines = [int(line.split(":")[1]) for line in lab.findings()]
    assert lines == sorted(lines)
    assert len(lines) == 12 + 11
