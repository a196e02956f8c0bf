"""Print the README's table of settings, or write it there: `.venv/bin/python scripts/settings_table.py [--write]`.

Made from kitbash_ray.config.Settings, so that the two cannot differ; tests/test_docs.py compares them.
Not here: which source of a setting goes before which (kitbash_ray/config.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kitbash_ray.config import PROJECT, Settings

README = PROJECT / "README.md"
BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def table() -> str:
    """The table in Markdown, a row for each setting in the order of the class."""
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{name.upper()}` | {shown(field.default)} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def shown(default: Any) -> str:
    """A default as somebody would type it; a path never with the folders of this machine."""
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, Path):
        return f"`{short(default)}`"
    return f"`{default}`"


def short(path: Path) -> str:
    """Relative to the project, else to the home folder, else as it is."""
    for base, prefix in ((PROJECT, ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + path.relative_to(base).as_posix()
    return path.as_posix()


def written(text: str) -> str:
    """`text` with the table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    if "--write" in sys.argv[1:]:
        README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
