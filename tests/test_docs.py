"""What README, CONTRIBUTING and benchmarks/README say, against the code. Fast: no Ray, no Redis.

Not here: whether an explanation is true, and figures; people check those.
"""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.main import get_command

from kitbash_ray.cli import app
from kitbash_ray.knowledge.checks import check_cartridge

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
BENCHMARKS = ROOT / "benchmarks" / "README.md"
DOCUMENTS = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", BENCHMARKS, *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = {"sh", "bash", "console"}
#: Folders whose files the map in CONTRIBUTING names one by one, and the kinds of files it leaves to their folder.
MAPPED = ("kitbash_ray", "actors", "scripts", "benchmarks", "monitoring", "docker")
NOT_MAPPED = {"__init__.py", "README.md"}


def tokens_of(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def fences(path: Path, *languages: str) -> Iterator[str]:
    for token in tokens_of(path):
        if token.type == "fence" and token.info.strip() in languages:
            yield token.content


def inline(path: Path, kind: str) -> Iterator[Token]:
    for token in tokens_of(path):
        yield from (child for child in token.children or () if child.type == kind)


def shell_commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell text as words, without comments, assignments and what follows a redirection."""
    lines = text.replace("\\\n", " ").splitlines()
    shown = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]  # the others are output then
    for line in shown or lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("|&;()<>"):
                yield command
                command = []
            elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
                command.append(word)


def kitbash_commands() -> list[tuple[str, ...]]:
    """Every `kitbash ...` of the README: in shell blocks, and between backticks in the text."""
    texts = [*fences(README, *SHELLS), *(code.content for code in inline(README, "code_inline"))]
    commands = {tuple(command) for text in texts for command in shell_commands(text)}
    return sorted(command for command in commands if command[:1] == ("kitbash",) and len(command) > 1)


@pytest.mark.parametrize("words", kitbash_commands(), ids=" ".join)
def test_each_command_in_the_readme_exists_with_its_options(words: tuple[str, ...]) -> None:
    command: Any = get_command(app)
    rest = list(words[1:])
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    if rest or not command.params:
        command.make_context(words[0], rest)  # parses and raises for what it does not know; runs nothing


def test_the_commands_of_the_readme_are_found_at_all() -> None:
    root: Any = get_command(app)
    assert set(root.commands) == {words[1] for words in kitbash_commands()}


def test_the_readmes_table_of_settings_is_the_generators() -> None:
    generator = runpy.run_path(str(ROOT / "scripts" / "settings_table.py"))
    text = README.read_text(encoding="utf-8")
    assert generator["written"](text) == text, "run: .venv/bin/python scripts/settings_table.py --write"
    assert text.count(generator["table"]()) == 1


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(path: Path) -> list[str]:
    tokens = tokens_of(path)
    return [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_relative_link_leads_somewhere(path: Path) -> None:
    links = [link.attrGet("href") for link in inline(path, "link_open")] + [
        image.attrGet("src") for image in inline(path, "image")
    ]
    for link in map(str, links):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in map(slug, headings(target)), f"{link} names no heading"


def mapped() -> set[str]:
    """The paths in CONTRIBUTING's map, read from its indentation."""
    [tree] = fences(CONTRIBUTING, "text")
    folders: list[str] = []
    found = set()
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        found.add("".join(folders))
    return found


def test_each_file_has_its_line_in_the_map() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in MAPPED
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.name not in NOT_MAPPED and not {"__pycache__", "data"} & set(path.parts)
    }
    assert files - mapped() == set()


def test_the_map_names_nothing_that_does_not_exist() -> None:
    assert {path for path in mapped() if not (ROOT / path).exists()} == set()


def test_each_folder_of_tests_is_in_the_map() -> None:
    folders = {f"tests/{path.name}/" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - mapped() == set()


@pytest.mark.parametrize("script", sorted(path.name for path in BENCHMARKS.parent.glob("*.py") if path.name not in NOT_MAPPED))
def test_each_benchmark_is_in_the_readme_of_the_benchmarks(script: str) -> None:
    assert f"`{script}`" in BENCHMARKS.read_text(encoding="utf-8")


def test_the_readmes_example_of_a_cartridge_has_no_fault(tmp_path: Path) -> None:
    folder = tmp_path / "home_lab"
    folder.mkdir()
    for file, language in (("cartridge.toml", "toml"), ("facts.yaml", "yaml"), ("questions.jsonl", "json")):
        [text] = fences(README, language)
        (folder / file).write_text(text, encoding="utf-8")
    assert check_cartridge(folder) == []


def test_the_python_of_the_readme_is_python() -> None:
    for text in fences(README, "python"):
        compile(text, str(README), "exec")


def test_the_cartridge_about_kitbash_cites_sections_of_the_readme_that_exist() -> None:
    facts = yaml.safe_load((ROOT / "cartridges" / "kitbash" / "facts.yaml").read_text(encoding="utf-8"))
    cited = {part for fact in facts if fact["source"].startswith("Kitbash README, ") for part in fact["source"].split(", ")[1:]}
    assert cited - set(headings(README)) == set()
