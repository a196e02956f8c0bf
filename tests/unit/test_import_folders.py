"""Folders of documents: what each format becomes, and that importing again reads only what changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import Fact, load_cartridge
from kitbash_ray.knowledge.grain_index import is_grain
from kitbash_ray.knowledge.importers import Imported, import_path, remove_cartridge

WORD_XML = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


class Shelf:
    """A folder of documents and the cartridge that is made of it."""

    def __init__(self, folder: Path) -> None:
        self.documents, self.cartridges = folder / "documents", folder / "cartridges"
        self.documents.mkdir()

    def put(self, name: str, content: str | bytes) -> Path:
        path = self.documents / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def bring(self) -> Imported:
        return import_path(self.documents, "notes", self.cartridges)

    def facts(self) -> tuple[Fact, ...]:
        return load_cartridge(self.cartridges / "notes").facts

    def texts(self) -> list[str]:
        return [fact.text for fact in self.facts()]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


# Formats


def html(body: str, head: str = "") -> str:
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"


def docx(path: Path) -> None:
    """A Word document with a heading and a paragraph, as small as one can be."""

    def paragraph(text: str, style: str = "") -> str:
        kind = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
        return f"<w:p>{kind}<w:r><w:t>{text}</w:t></w:r></w:p>"

    kinds = (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
    )
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type='
        '"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>'
        "</Relationships>"
    )
    styles = (
        f'<w:styles xmlns:w="{WORD_XML}"><w:style w:type="paragraph" w:styleId="Heading1">'
        '<w:name w:val="heading 1"/></w:style></w:styles>'
    )
    body = paragraph("Boiler", "Heading1") + paragraph("The boiler is serviced in May.")
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("[Content_Types].xml", kinds)
        package.writestr("_rels/.rels", relations)
        package.writestr("word/styles.xml", styles)
        package.writestr(
            "word/_rels/document.xml.rels",
            relations.replace(
                "officeDocument/2006/relationships/officeDocument", "officeDocument/2006/relationships/styles"
            ).replace("word/document.xml", "styles.xml"),
        )
        package.writestr("word/document.xml", f'<w:document xmlns:w="{WORD_XML}"><w:body>{body}</w:body></w:document>')


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%b] /Count %d >>"
        % (b" ".join(b"%d 0 R" % (4 + 2 * at) for at in range(len(pages))), len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, text in enumerate(pages):
        stream = b"BT /F1 12 Tf 72 720 Td (%b) Tj ET" % text.encode("latin-1") if text else b""
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>"
            % (5 + 2 * at)
        )
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream))
    made, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return made + head + table + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(made))


def test_html_keeps_headings_and_drops_what_surrounds_the_text(shelf: Shelf) -> None:
    shelf.put(
        "page.html",
        html(
            "<nav>Home | About</nav><main><h1>Heating</h1><h2>Pressure</h2><p>The pressure is <b>1.5 bar</b>.</p></main>"
            "<footer>Imprint</footer><script>alert(1)</script>"
        ),
    )
    shelf.bring()
    (fact,) = shelf.facts()
    assert (fact.text, fact.section, fact.source) == ("The pressure is 1.5 bar.", "Heating > Pressure", "page.html")


def test_the_title_of_a_page_without_a_heading_is_its_section(shelf: Shelf) -> None:
    shelf.put("page.htm", html("<p>The pressure is 1.5 bar.</p>", "<title>Heating\n notes</title>"))
    shelf.bring()
    assert [fact.section for fact in shelf.facts()] == ["Heating notes"]


def test_a_word_document_is_cut_at_its_headings(shelf: Shelf) -> None:
    docx(shelf.documents / "house.docx")
    shelf.bring()
    (fact,) = shelf.facts()
    assert (fact.text, fact.section, fact.source) == ("The boiler is serviced in May.", "Boiler", "house.docx")


def test_a_pdf_names_the_page(shelf: Shelf) -> None:
    shelf.put("manual.pdf", pdf("The first page is about pumps.", "", "The third page is about valves."))
    shelf.bring()
    assert [(fact.text, fact.section) for fact in shelf.facts()] == [
        ("The first page is about pumps.", "page 1"),
        ("The third page is about valves.", "page 3"),
    ]


def test_a_notebook_gives_its_text_and_its_code(shelf: Shelf) -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Pumps\n", "\n", "A pump moves water."]},
        {"cell_type": "code", "metadata": {}, "source": "flow = 3", "outputs": [], "execution_count": None},
    ]
    shelf.put("lab.ipynb", json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    shelf.bring()
    (fact,) = shelf.facts()
    assert fact.section == "Pumps"
    assert fact.text.startswith("A pump moves water.")
    assert "flow = 3" in fact.text


def test_a_tsv_row_is_a_fact(shelf: Shelf) -> None:
    shelf.put("pumps.tsv", "id\ttext\tasks\np1\tThe pump draws 40 W, always.\tHow much power does the pump draw?\n")
    shelf.bring()
    (fact,) = shelf.facts()
    assert (fact.id, fact.text, len(fact.asks)) == ("notes:p1", "The pump draws 40 W, always.", 1)


def test_what_was_cut_from_a_document_is_no_grain_and_a_row_is_one(shelf: Shelf) -> None:
    shelf.put("a.md", "The pump draws 40 W.")
    shelf.put("b.jsonl", '{"text": "The fan draws 5 W."}\n')
    shelf.bring()
    assert {fact.text: is_grain(fact) for fact in shelf.facts()} == {"The pump draws 40 W.": False, "The fan draws 5 W.": True}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdf", b"%PDF-1.4 nothing", "not a PDF that can be read"),
        ("a.pdf", pdf(""), "only pictures"),
        ("a.docx", b"PK\x03\x04 broken", "not a Word document"),
        ("a.ipynb", b"{}", "not a Jupyter notebook"),
        ("a.ipynb", b"[1", "not a Jupyter notebook"),
        ("a.html", b"\xff\xfe", "not UTF-8"),
        ("a.html", b"<p></p>", "nothing in this file"),
    ],
)
def test_a_broken_document_alone_is_refused_and_in_a_folder_left_out(
    shelf: Shelf, name: str, content: bytes, reason: str
) -> None:
    path = shelf.put(name, content)
    with pytest.raises(CartridgeError, match=reason):
        import_path(path, "notes", shelf.cartridges)
    assert not shelf.cartridges.exists()
    shelf.put("good.txt", "Good.")
    imported = shelf.bring()
    assert shelf.texts() == ["Good."]
    (left_out,) = imported.left_out
    assert reason in left_out


# Again


def test_only_new_and_changed_files_are_read_again_and_those_gone_are_dropped(shelf: Shelf) -> None:
    for name in ("a.md", "deep/b.md", "c.txt"):
        shelf.put(name, f"This is {name}.")
    assert shelf.bring().read == ("a.md", "c.txt", "deep/b.md")
    shelf.put("a.md", "This is a new a.")
    (shelf.documents / "c.txt").unlink()
    shelf.put("d.txt", "This is d.")
    imported = shelf.bring()
    assert (imported.read, imported.kept, imported.gone) == (("a.md", "d.txt"), 1, ("c.txt",))
    assert sorted(shelf.texts()) == ["This is a new a.", "This is d.", "This is deep/b.md."]


def test_a_file_that_was_only_touched_is_not_read_again(shelf: Shelf) -> None:
    path = shelf.put("a.md", "Text.")
    shelf.bring()
    os.utime(path, (0, 0))
    assert shelf.bring().read == ()


def test_the_same_words_in_two_files_survive_when_one_goes(shelf: Shelf) -> None:
    first = shelf.put("a.md", "Same words.")
    shelf.put("b.md", "Same words.")
    assert shelf.bring().passages == 2
    first.unlink()
    shelf.bring()
    assert [(fact.text, fact.source) for fact in shelf.facts()] == [("Same words.", "b.md")]


def test_hidden_files_and_built_folders_are_passed_over(shelf: Shelf) -> None:
    shelf.put("a.md", "Seen.")
    for name in (".hidden.md", ".git/x.md", "node_modules/y.md", "~$z.docx", "picture.png"):
        shelf.put(name, "Unseen.")
    assert shelf.bring().left_out == ()
    assert shelf.texts() == ["Seen."]


def test_cartridges_below_the_imported_folder_are_not_imported(shelf: Shelf) -> None:
    shelf.put("a.md", "Seen.")
    for _ in range(2):
        import_path(shelf.documents, "notes", shelf.documents / "cartridges")
    assert [fact.text for fact in load_cartridge(shelf.documents / "cartridges" / "notes").facts] == ["Seen."]


def test_a_manifest_that_somebody_edited_stays(shelf: Shelf) -> None:
    shelf.put("a.md", "Text.")
    manifest = shelf.bring().folder / "cartridge.toml"
    manifest.write_text(manifest.read_text().replace('"general"', '"experiment"'))
    shelf.put("a.md", "Other.")
    shelf.bring()
    assert {fact.faction for fact in shelf.facts()} == {"experiment"}


def test_passages_that_something_else_changed_are_named(shelf: Shelf) -> None:
    shelf.put("a.md", "Text.")
    (shelf.bring().folder / "passages.jsonl").write_text("{")
    with pytest.raises(CartridgeError, match="was changed by something else"):
        shelf.bring()


def test_an_empty_folder_is_refused(shelf: Shelf) -> None:
    with pytest.raises(CartridgeError, match="no file to import"):
        shelf.bring()


# Away


def test_an_imported_cartridge_can_be_removed_and_a_written_one_cannot(shelf: Shelf) -> None:
    shelf.put("a.md", "One.\n\nTwo.")
    folder = shelf.bring().folder
    (folder / "facts.yaml").write_text("[]")
    with pytest.raises(CartridgeError, match="written by hand"):
        remove_cartridge("notes", shelf.cartridges)
    (folder / "facts.yaml").unlink()
    assert remove_cartridge("notes", shelf.cartridges) == 2
    assert not folder.exists()
    with pytest.raises(CartridgeError, match="no imported cartridge"):
        remove_cartridge("notes", shelf.cartridges)


def test_watch_imports_again_on_a_change_and_ends_with_an_interrupt(shelf: Shelf) -> None:
    shelf.put("a.md", "One.")
    command = ["import", str(shelf.documents), "--name", "notes", "--cartridges", str(shelf.cartridges), "--watch"]
    program = "from kitbash_ray.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "cartridge", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        first, _, watching = (process.stdout.readline() for _ in range(3))
        assert "Imported 1 passage " in first
        assert watching.startswith("Watching ")
        for number in range(20):  # the watcher starts a moment after it says so
            shelf.put("b.md", f"Two {number}.")
            if _readable(process.stdout, 1.0):
                break
        assert "Imported 2 passages" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, problems = process.communicate(timeout=10)
        assert rest.endswith("Stopped watching.\n")
        assert "Traceback" not in problems
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def _readable(stream: object, seconds: float) -> bool:
    import select

    return bool(select.select([stream], [], [], seconds)[0])
