import gzip
import lzma
import zipfile

import corpora


TEI = """<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><p>not this</p></teiHeader><text>
<front><p>nor this</p></front><body><head>Chapter   I</head><div><p>One <hi>two</hi>
three.</p><quote><l>A line</l></quote><p>With <quote><p>a paragraph</p></quote> inside.</p><note>no</note></div></body></text></TEI>"""


def names_and_texts(path):
    return list(corpora.documents(str(path)))


def test_the_text_of_a_tei_novel(here):
    (here / "novel.xml").write_text(TEI)
    assert names_and_texts(here / "novel.xml") == [("novel", "Chapter I\nOne two three.\nA line\nWith a paragraph inside.")]


def test_every_way_to_store_a_text_gives_the_same_documents(here):
    texts = {"a": "First, été.\n", "b": "Second.\n"}
    (here / "folder" / "deep").mkdir(parents=True)
    with zipfile.ZipFile(here / "both.zip", "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"x/{name}.txt", text)
            (here / "folder" / "deep" / f"{name}.txt").write_text(text)
            (here / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
            (here / f"{name}.txt.xz").write_bytes(lzma.compress(text.encode()))
        archive.writestr("x/README.md", "not a document")
        archive.writestr("__MACOSX/x/._a.txt", b"\xff\0 nor this")
    expected = list(texts.items())
    assert names_and_texts("both.zip") == names_and_texts("folder") == expected
    for ending in ("gz", "xz"):
        assert names_and_texts(f"a.txt.{ending}") + names_and_texts(f"b.txt.{ending}") == expected
    (here / "b.xml.gz").write_bytes(gzip.compress(TEI.encode()))
    assert names_and_texts("b.xml.gz")[0][1].startswith("Chapter I")


def test_a_large_file_is_read_in_pieces_of_bounded_size(here, monkeypatch):
    text = "".join(f"Line {i} with a euro: €.\n" for i in range(5000))
    (here / "large.txt").write_text(text)
    monkeypatch.setattr(corpora, "PIECE", 1 << 12)
    pieces = [t for _, t in names_and_texts("large.txt")]
    assert "".join(pieces) == text and len(pieces) > 20
    assert max(len(p.encode()) for p in pieces) < (1 << 12) + 100


def test_docstrings_are_read_and_never_imported(here):
    (here / "module.py").write_text('"""The docstring of the module."""\nraise SystemExit("imported")\nclass A:\n    """The docstring of class A."""\n'
                                    '    if True:\n        async def f():\n            """The docstring of method f."""\n            "no docstring, only a string"\n')
    assert corpora.file_docstrings(here / "module.py") == [f"The docstring of {x}." for x in ("the module", "class A", "method f")]
    (here / "broken.py").write_text('"""A docstring in a broken file."""\ndef\n')
    assert corpora.file_docstrings(here / "broken.py") == corpora.file_docstrings(here / "missing.py") == []


def test_the_packages_of_the_default_corpus():
    assert {"torch", "numpy", "matplotlib", "tiktoken", "pytest", "sympy", "networkx", "regex"} <= corpora.packages().keys()
