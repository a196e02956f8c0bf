"""One tree of errors, each of which crosses processes."""

from __future__ import annotations

import pickle

import pytest

from kitbash_ray import errors
from kitbash_ray.errors import ClientError, KitbashError


def tree(kind: type[KitbashError] = KitbashError, depth: int = 0) -> list[tuple[type[KitbashError], int]]:
    below = [kind for kind in kind.__subclasses__() if kind.__module__ == errors.__name__]
    return [(kind, depth)] + [entry for child in below for entry in tree(child, depth + 1)]


CLASSES = [kind for kind, _ in tree()]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickle_with_type_and_message(kind: type[KitbashError]) -> None:
    error = kind("Do this, not that: „ü“.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert back.exit_code == error.exit_code


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, ClientError)])
@pytest.mark.parametrize("status", [0, 401, 503])
def test_a_clients_error_survives_pickle_with_its_status(kind: type[ClientError], status: int) -> None:
    back = pickle.loads(pickle.dumps(kind("no", status=status)))
    assert type(back) is kind
    assert (str(back), back.status) == ("no", status)


@pytest.mark.parametrize("kind", CLASSES)
def test_only_the_message_is_needed(kind: type[KitbashError]) -> None:
    assert str(kind("a message")) == "a message"


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        head, _, name = line.rpartition("── ")
        name = (name or line).split()[0] if (name or line).strip() else ""
        if name and (head or name == "KitbashError"):
            drawn.append((name, (len(head) - 4 + 3) // 4 if head else 0))
    assert drawn == [(kind.__name__, depth) for kind, depth in tree()]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_says_what_it_is_and_exits_with_a_failure(kind: type[KitbashError]) -> None:
    assert kind.__doc__
    assert 0 < kind.exit_code < 128
