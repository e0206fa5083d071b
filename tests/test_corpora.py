import gzip
import lzma
import os
import zipfile

from lib import corpora

TEI = """
<TEI xmlns="http://www.tei-c.org/ns/1.0">
  <teiHeader><p>not this</p></teiHeader>
  <text>
    <front><p>nor this</p></front>
    <body>
      <head>Chapter   I</head>
      <div><p>One <hi>two</hi>
three.</p><quote><l>A line</l></quote><p>With <quote><p>a paragraph</p></quote> inside.</p>
      <note>no</note></div>
    </body>
  </text>
</TEI>
"""

MODULE = '''
"""The docstring of the module."""
raise SystemExit("imported")
class A:
    """The docstring of class A."""
    if True:
        async def f():
            """The docstring of method f."""
            "no docstring, only a string"
        def g():
            """Too short."""
'''


def names_and_texts(path):
    return list(corpora.documents(str(path)))


# ------------------------------------------------------------------------------------------------
# Files

def test_the_text_of_a_tei_novel(here):
    (here / "novel.xml").write_text(TEI)
    text = "Chapter I\nOne two three.\nA line\nWith\na paragraph\ninside."
    assert names_and_texts(here / "novel.xml") == [("novel", text)]


def test_every_way_to_store_a_text_gives_the_same_documents(here):
    texts = {"a": "First, été.\n", "b": "Second.\n"}
    (here / "folder/deep").mkdir(parents=True)
    with zipfile.ZipFile(here / "both.zip", "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"x/{name}.txt", text)
            (here / f"folder/deep/{name}.txt").write_text(text)
            (here / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
            (here / f"{name}.txt.xz").write_bytes(lzma.compress(text.encode()))
        archive.writestr("x/README.md", "not a document")
        archive.writestr("__MACOSX/x/._a.txt", b"\xff\0 nor this")

    expected = list(texts.items())
    assert names_and_texts("both.zip") == expected
    assert names_and_texts("folder") == expected
    for ending in ("gz", "xz"):
        assert names_and_texts(f"a.txt.{ending}") + names_and_texts(f"b.txt.{ending}") == expected
    (here / "b.xml.gz").write_bytes(gzip.compress(TEI.strip().encode()))
    assert names_and_texts("b.xml.gz")[0][1].startswith("Chapter I")


def test_a_large_file_is_read_in_pieces_of_bounded_size(here, monkeypatch):
    text = "".join(f"Line {i} with a euro: €.\n" for i in range(5000))
    (here / "large.txt").write_text(text)
    monkeypatch.setattr(corpora, "PIECE", 1 << 12)
    names, pieces = zip(*names_and_texts("large.txt"))
    assert "".join(pieces) == text
    assert len(pieces) > 20
    assert names[:3] == ("large", "large#1", "large#2")
    assert max(len(piece.encode()) for piece in pieces) < (1 << 12) + 100


# ------------------------------------------------------------------------------------------------
# Docstrings

def test_docstrings_are_read_and_never_imported(here):
    (here / "module.py").write_text(MODULE)
    assert corpora.file_docstrings(here / "module.py") == [
        "The docstring of the module.",
        "The docstring of class A.",
        "The docstring of method f.",
    ]
    (here / "broken.py").write_text('"""A docstring in a broken file."""\ndef\n')
    assert corpora.file_docstrings(here / "broken.py") == []
    assert corpora.file_docstrings(here / "missing.py") == []


def test_the_packages_of_the_default_corpus():
    asked_for = {"torch", "numpy", "matplotlib", "tiktoken", "pytest"}
    what_they_need = {"sympy", "networkx", "regex"}
    assert asked_for | what_they_need <= corpora.packages().keys()


# ------------------------------------------------------------------------------------------------
# Comparing

def test_a_fingerprint_changes_with_a_file(here):
    (here / "folder").mkdir()
    book = here / "folder/book.txt"
    book.write_text("One text.")
    first = corpora.fingerprint("folder")
    assert corpora.fingerprint("folder") == first

    # another size, another time, another file
    book.write_text("One longer text.")
    longer = corpora.fingerprint("folder")
    os.utime(book, ns=(0, 12345))
    touched = corpora.fingerprint("folder")
    (here / "folder/other.txt").write_text("Another text.")
    more = corpora.fingerprint("folder")
    assert first != longer != touched != more


def test_a_sketch_is_of_letters_alone():
    text = "The cat sat on the mat all day. Yes! And where was the dog, then, we may ask?"
    edition = "THE CAT\nSAT on the mat -- all  day. No. And where was the dog then we may ask?"
    assert len(corpora.sketch(text)) == 2  # "Yes" is too short
    assert corpora.sketch(text) == corpora.sketch(edition)


def test_a_sketch_keeps_the_smallest_hashes():
    text = ". ".join("a sentence of letters alone" + "x" * i for i in range(500))
    every = sorted(corpora.sketch(text, size=1000))
    assert len(every) == 500
    assert sorted(corpora.sketch(text)) == every[:256]


def test_overlap_compares_what_both_sketches_are_complete_on():
    assert corpora.overlap({2, 5, 9}, {2, 9, 40}) == 1  # the example of the docstring
    assert corpora.overlap({1, 2, 3, 9}, {2, 5, 7, 9}) == 0.5
    assert corpora.overlap({1, 3}, {2, 4}) == 0
