"""The house rules of docs and DESIGN that a program can check, by reading the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, ACTORS = ROOT / "kitbash_ray", ROOT / "actors"
SOURCES = sorted([*LIBRARY.rglob("*.py"), *ACTORS.rglob("*.py"), ROOT / "serve_app.py"])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 50
#: Settings are read in the first, a C library is told of one in the second; tests set them.
READS_ENVIRONMENT = {"kitbash_ray.config", "kitbash_ray.engines.compute"}
KEY_TABLE = "kitbash_ray.blackboard"

#: Run with `python -m`; it stands above everything, whatever folder it lies in.
PROGRAMS = {"actors.launch", "actors.keeper"}

#: Floors of the library, the lowest first: a module imports from its own floor or from below.
FLOORS: list[set[str]] = [
    {"errors", "types", "redis_url"},
    {"config"},
    {
        "bounds",
        "shared_budget",
        "breaker",
        "replicas",
        "consensus",
        "calibration",
        "policy",
        "http_types",
        "work_types",
        "openai_types",
        "knowledge.text",
        "knowledge.quantities",
        "knowledge.evidence",
    },
    {
        "blackboard",
        "redis_client",
        "spool",
        "ledger",
        "feed",
        "work",
        "edge",
        "queue",
        "callback",
        "recorder",
        "redis_server",
        "token",
        "keys",
        "watch",
        "state",
        "devices",
        "render",
        "knowledge",
        "engines",
        "download",
        "hub",
        "models",
        "adapters",
        "learn.manifest",
        "learn.recipe",
    },
    {"questions", "cascade", "layers", "gate", "asgi", "report", "replay", "doctor"},
    {"evaluation", "fitting", "plots", "learn"},
    {"direct", "one_layer", "testing", "tiny_model"},
    {"client", "worker"},
    {"cli"},
]
#: Values in, values out: of the library these know nothing but each other, types and errors.
PURE = {
    "bounds",
    "shared_budget",
    "consensus",
    "calibration",
    "policy",
    "knowledge.text",
    "knowledge.quantities",
    "knowledge.evidence",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_in(nodes: list[ast.stmt], *, deep: bool) -> Iterator[str]:
    """Imported modules; `deep` also those inside functions, but never those for type checkers only."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports_in(node.orelse, deep=deep)
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.iter_child_nodes(node):
                if isinstance(inner, ast.stmt | ast.excepthandler | ast.match_case):
                    yield from imports_in([inner] if isinstance(inner, ast.stmt) else inner.body, deep=deep)


def imports_of(path: Path, *, deep: bool = False) -> set[str]:
    return set(imports_in(tree_of(path).body, deep=deep))


def strings_of(path: Path) -> Iterator[tuple[int, str]]:
    """String literals with their lines, without docstrings."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def names(module: str, tops: set[str]) -> bool:
    return module.partition(".")[0] in tops


def floor_of(module: str) -> int:
    inside = module.removeprefix("kitbash_ray").lstrip(".")
    while inside:
        for floor, members in enumerate(FLOORS):
            if inside in members:
                return floor
        inside = inside.rpartition(".")[0]
    return len(FLOORS) if module == "kitbash_ray" else -1


def per_file(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths])


LIBRARY_FILES = [path for path in SOURCES if path.is_relative_to(LIBRARY)]


@per_file(LIBRARY_FILES)
def test_the_library_does_not_know_ray_the_actors_or_the_front_door(path: Path) -> None:
    in_cli = path.is_relative_to(LIBRARY / "cli")
    known = {
        name for name in imports_of(path, deep=not in_cli) if names(name, {"ray", "actors", "serve_app", "tests", "benchmarks"})
    }
    assert known == set()


@per_file([path for path in SOURCES if path.is_relative_to(ACTORS) and module_of(path) not in PROGRAMS])
def test_actors_do_not_know_the_front_door_the_command_line_or_the_tests(path: Path) -> None:
    known = imports_of(path, deep=True)
    assert {
        name for name in known if names(name, {"serve_app", "tests", "benchmarks"}) or name.startswith("kitbash_ray.cli")
    } == set()


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_program_is_imported_by_nobody(program: str) -> None:
    assert [name for name, path in MODULES.items() if program in imports_of(path, deep=True)] == []


@per_file(LIBRARY_FILES)
def test_a_module_imports_from_its_own_floor_or_from_below(path: Path) -> None:
    own = floor_of(module_of(path))
    assert own >= 0, f"give {module_of(path)} a floor in FLOORS"
    above = {name for name in imports_of(path) if name.startswith("kitbash_ray.") and floor_of(name) > own}
    assert above == set()


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_knows_only_pure_ones(name: str) -> None:
    allowed = {f"kitbash_ray.{other}" for other in PURE | {"types", "errors"}}
    known = imports_of(MODULES[f"kitbash_ray.{name}"], deep=True)
    assert {other for other in known if other.startswith("kitbash_ray")} <= allowed
    assert not known & {"asyncio", "time", "random", "redis", "socket", "threading", "os", "ray"}


def test_the_cascade_knows_nothing_of_redis_ray_http_and_who_listens() -> None:
    known = imports_of(MODULES["kitbash_ray.cascade"], deep=True)
    assert {name for name in known if name.startswith("kitbash_ray")} <= {
        f"kitbash_ray.{name}" for name in ("breaker", "consensus", "errors", "policy", "types")
    }
    assert not {name for name in known if names(name, {"redis", "ray", "httpx", "fastapi", "starlette"})}


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        name: {other for other in imports_of(path) if other in MODULES and other != name} for name, path in MODULES.items()
    }
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"import cycle: {' -> '.join((*above[above.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*above, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@per_file(SOURCES)
def test_the_environment_is_read_in_one_module_only(path: Path) -> None:
    reads = {
        node.lineno
        for node in ast.walk(tree_of(path))
        if (
            isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv") and ast.unparse(node.value) == "os"
        )
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {a.name for a in node.names} & {"environ", "getenv"})
    }
    assert module_of(path) in READS_ENVIRONMENT or reads == set()


@per_file([path for path in SOURCES if module_of(path) != KEY_TABLE])
def test_keys_of_redis_stand_in_the_blackboards_table_only(path: Path) -> None:
    assert [(line, text) for line, text in strings_of(path) if re.search(r"kitbash:(\w|$)", text)] == []


@per_file(SOURCES)
def test_imports_are_absolute(path: Path) -> None:
    assert [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.level] == []


@per_file([path for path in SOURCES if not path.is_relative_to(LIBRARY / "learn")])
def test_only_what_teaches_knows_pytorch(path: Path) -> None:
    assert {name for name in imports_of(path, deep=True) if names(name, {"torch"})} == set()


@per_file([path for path in LIBRARY_FILES if not path.is_relative_to(LIBRARY / "learn")])
def test_what_needs_pytorch_is_imported_inside_functions_only(path: Path) -> None:
    needing = {f"kitbash_ray.learn.{name}" for name in ("student", "train", "export")}
    assert imports_of(path) & needing == set()


@per_file([*SOURCES, *TESTS])
def test_nothing_is_mocked(path: Path) -> None:
    assert {name for name in imports_of(path, deep=True) if name.startswith(("unittest", "mock", "pytest_mock"))} == set()


@per_file(SOURCES)
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE


@per_file(SOURCES)
def test_a_function_has_at_most_50_lines(path: Path) -> None:
    functions = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    sizes = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION} == {}


@per_file(SOURCES)
def test_a_module_says_what_it_does(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@per_file(SOURCES)
def test_no_handler_catches_everything_without_naming_it(path: Path) -> None:
    bare = [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert bare == []


@per_file([path for path in SOURCES if path.is_relative_to(ACTORS)])
def test_actors_are_plain_classes_without_a_decorator_of_ray(path: Path) -> None:
    classes = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef))
    decorated = {node.name for node in classes if any("ray" in ast.unparse(decorator) for decorator in node.decorator_list)}
    assert decorated == set()
