"""How fast documents are imported, in pages of 3,000 characters a second, and how fast again.

500 Markdown files of three pages are made from templates, imported, one in ten of them changed and
one in ten removed, and imported again; and the same text as HTML.
Embedding is not in it: that happens at the next question, and takes 3 to 10 ms a passage.

    python -m benchmarks.importer [--quick]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from benchmarks.common import finish, print_table
from kitbash_ray.knowledge.importers import Imported, import_path

PAGE_CHARS = 3000
PAGES = 3
TARGETS = {"markdown_pages_per_s": (">=", 50.0)}
WORDS = """pump valve boiler pressure house garden cable switch server backup router cellar window meter filter
water heat power light sensor board network printer battery charger fan disk folder script update""".split()


def sentence(chance: random.Random) -> str:
    first, second, third = chance.sample(WORDS, 3)
    return f"The {first} beside the {second} is looked after every {chance.randint(2, 40)} weeks, and the {third} with it."


def sections(chance: random.Random) -> list[tuple[str, list[str]]]:
    """A document as titles with paragraphs, PAGES pages long."""
    made, size = [], 0
    while size < PAGES * PAGE_CHARS:
        paragraphs = [" ".join(sentence(chance) for _ in range(4)) for _ in range(3)]
        made.append((f"About the {chance.choice(WORDS)} {chance.randint(1, 999)}", paragraphs))
        size += sum(map(len, paragraphs))
    return made


def as_markdown(document: list[tuple[str, list[str]]]) -> str:
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(paragraphs) for title, paragraphs in document)


def as_html(document: list[tuple[str, list[str]]]) -> str:
    body = "".join(f"<h2>{title}</h2>" + "".join(f"<p>{text}</p>" for text in texts) for title, texts in document)
    return f"<!doctype html><html><head><title>House</title></head><body><nav>Home</nav><main>{body}</main></body></html>"


def timed(source: Path, name: str, library: Path) -> tuple[float, Imported]:
    began = time.perf_counter()
    imported = import_path(source, name, library)
    return time.perf_counter() - began, imported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50 files instead of 500")
    files = 50 if parser.parse_args().quick else 500
    rows: list[tuple[object, ...]] = []
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "cartridges"
        for kind, suffix, render in (("markdown", "md", as_markdown), ("html", "html", as_html)):
            chance = random.Random(0)
            source = Path(folder) / kind
            source.mkdir()
            for number in range(files):
                (source / f"{number}.{suffix}").write_text(render(sections(chance)))
            first, imported = timed(source, kind, library)
            for number in range(0, files, 10):
                (source / f"{number}.{suffix}").write_text(render(sections(chance)))
                (source / f"{number + 1}.{suffix}").unlink()
            again, changed = timed(source, kind, library)
            still, _ = timed(source, kind, library)
            pages = files * PAGES
            assert (len(changed.read), len(changed.gone)) == (files // 10, files // 10)
            metrics |= {
                f"{kind}_pages_per_s": round(pages / first),
                f"{kind}_changed_s": round(again, 3),
                f"{kind}_unchanged_s": round(still, 3),
            }
            rows.append(
                (kind, files, imported.passages, f"{first:.2f}", f"{pages / first:.0f}", f"{again:.2f}", f"{still:.2f}")
            )
    print_table(
        "Importing a folder", ("format", "files", "passages", "first s", "pages/s", "10 % changed s", "unchanged s"), rows
    )
    finish("importer", metrics, TARGETS)


if __name__ == "__main__":
    main()
