"""`kitbash cartridge` from end to end, except for `build`, which needs a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kitbash_ray.cli.cartridge import app
from kitbash_ray.errors import CartridgeError


class Shell:
    """Runs commands against one folder of cartridges."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--cartridges", str(self.folder)])

    def output(self, *words: str) -> str:
        """What a command that succeeds prints."""
        result = self.run(*words)
        if result.exception:
            raise result.exception
        return str(result.stdout)

    def refusal(self, *words: str) -> str:
        """The sentence of the CartridgeError that rises."""
        with pytest.raises(CartridgeError) as caught:
            self.output(*words)
        assert self.run(*words).stdout == ""
        return str(caught.value)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return Shell(tmp_path / "cartridges")


def test_a_new_cartridge_passes_its_check(shell: Shell) -> None:
    assert "kitbash cartridge check home_lab --cartridges" in shell.output("new", "home_lab")
    assert shell.output("check") == "1 cartridge, 2 facts: no problem\n"
    assert sorted(path.name for path in (shell.folder / "home_lab").iterdir()) == [
        "cartridge.toml",
        "facts.yaml",
        "questions.jsonl",
    ]
    assert "#" in (shell.folder / "home_lab" / "facts.yaml").read_text()


def test_new_does_not_touch_what_exists(shell: Shell) -> None:
    shell.output("new", "lab")
    (shell.folder / "lab" / "facts.yaml").write_text("mine")
    assert "exists already" in shell.refusal("new", "lab")
    assert (shell.folder / "lab" / "facts.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["../lab", "Lab", "a b", "..", "x" * 65])
def test_new_refuses_a_name_that_is_none(shell: Shell, name: str) -> None:
    assert "is no cartridge name" in shell.refusal("new", name)
    assert not shell.folder.exists()


def test_check_prints_every_fault_with_its_line_and_exits_with_3(shell: Shell) -> None:
    shell.output("new", "good")
    shell.output("new", "bad")
    facts = shell.folder / "bad" / "facts.yaml"
    facts.write_text(facts.read_text().replace("  level: heuristic\n", "").replace("level: empirical", "level: '[red]sure[/]'"))
    result = shell.run("check")
    assert result.exit_code == 3
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{facts}:18: fact 'coffee-cleaning-day': 'level':")
    assert second == f"{facts}:20: fact 'coffee-dose': 'level' is missing."
    assert shell.output("check", "good") == "1 cartridge, 2 facts: no problem\n"


def test_check_counts_warnings_and_exits_with_0(shell: Shell) -> None:
    shell.output("new", "lab")
    facts = shell.folder / "lab" / "facts.yaml"
    facts.write_text(facts.read_text().replace("# valid_until: 2030-12-31", "valid_until: 2021-12-31"))
    first, last = shell.output("check").splitlines()
    assert ": warning: fact 'coffee-dose' was valid until 2021-12-31" in first
    assert last == "1 cartridge, 2 facts: no error, 1 warning"


def test_check_finds_a_cartridge_that_lost_its_manifest(shell: Shell) -> None:
    shell.output("new", "lab")
    (shell.folder / "lab" / "cartridge.toml").unlink()
    result = shell.run("check")
    assert result.exit_code == 3
    assert "is no cartridge" in result.stdout


@pytest.mark.parametrize("words", [("check", "lba"), ("show", "lba"), ("show", "../lab")])
def test_an_unknown_name_is_refused_with_the_known_ones(shell: Shell, words: tuple[str, ...]) -> None:
    shell.output("new", "lab")
    assert shell.refusal(*words).endswith("there are: lab.")


@pytest.mark.parametrize("words", [("check",), ("list",), ("show", "lab")])
def test_a_missing_library_is_refused(shell: Shell, words: tuple[str, ...]) -> None:
    assert "There is no cartridges folder" in shell.refusal(*words)


def test_list_shows_good_cartridges_and_complains_of_bad_ones_on_stderr(shell: Shell) -> None:
    shell.output("new", "good")
    shell.output("new", "bad")
    (shell.folder / "bad" / "facts.yaml").write_text("[")
    result = shell.run("list", "--json")
    assert result.exit_code == 0
    [only] = json.loads(result.stdout)
    description = "The coffee corner: an example to replace."
    assert only == {
        "name": "good",
        "version": "0.1.0",
        "faction": "general",
        "facts": 2,
        "questions": 3,
        "description": description,
    }
    assert "this is not YAML" in result.stderr
    assert "good" in shell.output("list")


def test_show_prints_facts_one_fact_and_json(shell: Shell) -> None:
    shell.output("new", "lab")
    assert "lab:coffee-dose" in shell.output("show", "lab")
    one = shell.output("show", "lab", "coffee-dose")
    assert one.startswith("A double espresso takes about 18 grams")
    assert "House rules, section 3" in one
    assert "What is the coffee dose for a double shot?" in one
    assert shell.output("show", "lab", "lab:coffee-dose") == one
    [first, second] = json.loads(shell.output("show", "lab", "--json"))
    assert json.loads(shell.output("show", "lab", "coffee-dose", "--json")) == second
    assert (first["id"], second["valid_from"]) == ("lab:coffee-cleaning-day", "2020-01-01")


def test_show_prints_brackets_of_a_fact_as_they_are(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Use [bold] and [/] here.")
    shell.output("import", str(tmp_path / "a.txt"), "--name", "notes")
    assert "Use [bold] and [/] here." in shell.output("show", "notes")


def test_show_refuses_an_unknown_fact(shell: Shell) -> None:
    shell.output("new", "lab")
    assert "There is no fact 'lab:tea'" in shell.refusal("show", "lab", "tea")


def test_import_says_how_many_passages_and_what_to_ask(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": "a b", "text": "It\'s 8265.", "asks": "What\'s the port?"}\n{"text": "x"}\n{"text": "x"}\n'
    )
    first, skipped, renamed, last = shell.output("import", str(tmp_path / "a.jsonl"), "--name", "notes").splitlines()
    assert first == f"Imported 2 passages from {tmp_path / 'a.jsonl'} into {shell.folder / 'notes'}."
    assert skipped.endswith(": 1.")
    assert renamed.endswith(": 1.")
    assert last == f"""Ask next: kitbash ask --cartridges {shell.folder} 'What'"'"'s the port?'"""
    assert shell.output("check") == "1 cartridge, 2 facts: no problem\n"


def test_import_lets_the_fault_rise_and_leaves_nothing(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,id\nx,1\ny,1\n")
    assert shell.refusal("import", str(tmp_path / "a.csv"), "--name", "notes").startswith(f"{tmp_path / 'a.csv'}:3: ")
    assert not shell.folder.exists()


@pytest.mark.parametrize("command", ["new", "check", "build", "list", "show", "import", "remove", "propose"])
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"kitbash cartridge {command}" in result.stdout


def test_check_warns_of_facts_of_two_cartridges_but_not_of_what_was_cut_from_documents(shell: Shell, tmp_path: Path) -> None:
    for name, port in (("one", 8443), ("two", 9443)):
        shell.output("new", name)
        facts = f"""- id: gate
  fact: "The gate controller of the depot listens on port {port} for commands."
  asks: ["Gate port of {name}?", "Where does the {name} gate listen?"]
  source: "Manual"
  level: empirical
"""
        (shell.folder / name / "facts.yaml").write_text(facts)
        (shell.folder / name / "questions.jsonl").unlink()
    (tmp_path / "a.md").write_text("The gate controller of the depot listens on port 7443 for commands.\n")
    shell.output("import", str(tmp_path / "a.md"), "--name", "notes")
    *warnings, verdict = shell.output("check").splitlines()
    assert len(warnings) == 1
    assert "'one:gate' may contradict 'two:gate'" in warnings[0]
    assert verdict == "3 cartridges, 3 facts: no error, 1 warning"
