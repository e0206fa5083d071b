"""Text that people really have: read as what it is, wholly, or refused in one line."""
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
from conftest import ROOT, fails, script, write_corpus

import data
from lib import bpe, corpora
from lib.cli import BadInput


def texts_of(manifest):
    """{name: text} of all documents of a prepared corpus, decoded."""
    enc, found = bpe.encoder(manifest), {}
    for split in data.SPLITS:
        text = enc.decode(data.tokens(manifest, split).tolist())
        found |= dict(zip(manifest["documents"][split], text.split(bpe.EOT)))
    return found


def number(name):
    """The 12 of the piece "novel/12" of a document that was cut."""
    return int(name.rpartition("/")[2])


def read(path):
    """[(name, text)] of a source, and what was passed over on the way."""
    passed_over = Counter()
    return list(corpora.documents(str(path), passed_over)), passed_over


def lines(n, seed=0):
    """A text of n lines of random words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(2000)]
    return "".join(" ".join(rng.choices(words, k=8)) + ".\n" for _ in range(n))


def test_of_a_text_of_ones_own_nothing_is_dropped_or_cut(here, capsys):
    """Two of a kind, blanks and a text that is much longer than the others stay what they are."""
    documents = [lines(20), lines(20), " \n ", lines(900, seed=1), "<|endoftext|> is text"]
    (here / "own").mkdir()
    for i, text in enumerate(documents):
        (here / f"own/{i}.txt").write_text(text)
    (here / "own/picture.png").write_bytes(b"")
    ranks = {bytes([i]): i for i in range(256)}
    bpe.save_ranks(here / "bytes", ranks)
    enc = bpe.read_encoder(here / "bytes")
    ids = data.read_tokens("own", enc)
    expected = []
    for text in documents:
        expected += [*text.encode(), 256]
    assert ids.tolist() == expected
    assert "own: 5 documents" in capsys.readouterr().out
    assert data.read_tokens("own/0.txt,own", enc).tolist() == [*lines(20).encode(), 256, *expected]
    said = capsys.readouterr().out
    assert "own/0.txt,own: 6 documents" in said and "passed over: 1 .png" in said


# ------------------------------------------------------------------------------------------------
# Splits

SHAPES = {  # lines of each document
    "one": [4000],
    "two, one of them small": [4000, 20],
    "seven alike": [600] * 7,
    "two large and many small": [2000, 3000] + [20] * 60,
    "thirty alike": [100] * 30,
    "two hundred": [random.Random(1).randint(5, 60) for _ in range(200)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_corpus_is_split_90_5_5_whatever_its_shape(here, shape, monkeypatch, capsys):
    monkeypatch.setattr(corpora, "PIECE", 1 << 16)  # 64 kB: the largest files are read in pieces
    (here / "books").mkdir()
    for i, n in enumerate(SHAPES[shape]):
        (here / f"books/{i:03}.txt").write_text(lines(n, seed=i))
    manifest = data.prepare("books", 257)

    # about 90/5/5, and the screen says so
    total = sum(manifest["bytes"].values())
    said = []
    for split, share in data.SPLITS.items():
        tolerance = 0.04 if split == "train" else 0.02  # whole documents do not fit to the byte
        assert manifest["bytes"][split] / total == pytest.approx(share, abs=tolerance)
        said.append(f"{split} {100 * manifest['bytes'][split] / total:.1f} %")
    assert f"{', '.join(said)} of the text" in capsys.readouterr().out

    # every line is there once, and none was cut
    whole = "".join(path.read_text() for path in (here / "books").iterdir())
    assert sorted("".join(texts_of(manifest).values()).splitlines()) == sorted(whole.splitlines())


def test_documents_of_normal_size_stay_whole_and_large_ones_are_cut(here):
    books = here / "books"
    books.mkdir()
    for i in range(50):
        (books / f"novel{i}.txt").write_text(lines(40, seed=i))
    (books / "large.txt").write_text(lines(200, seed=99))  # a twelfth of the whole
    names = sum(data.prepare("books", 257)["documents"].values(), [])
    assert {f"novel{i}" for i in range(50)} < set(names)
    assert sorted(set(names) - {f"novel{i}" for i in range(50)}) == [f"large/{i}" for i in range(4)]


def test_a_text_of_a_few_words_is_split_or_refused(here):
    for text in ("日本語で" * 8, "😀😃😄😁" * 8, "One long line after another. " * 30 + "\n"):
        (here / "few.txt").write_text(text * 4)  # cut between two characters, and in none
        manifest = data.prepare("few.txt", 257)
        texts = texts_of(manifest)
        assert "".join(texts[name] for name in sorted(texts, key=number)) == text * 4
        assert manifest["bytes"]["train"] / len(text.encode()) / 4 == pytest.approx(0.9, abs=0.03)
    (here / "fewer.txt").write_text("One")
    with pytest.raises(BadInput, match="too small to be split"):
        data.prepare("fewer.txt", 257)


@pytest.mark.parametrize("n, expected", [(48, 2), (52, 3)])
def test_a_document_is_taken_if_that_brings_a_split_nearer_to_its_share(n, expected):
    parts = data.split_documents([data.Document(str(i), 0, 1000) for i in range(n)])
    assert len(parts["val"]) == len(parts["test"]) == expected
    assert len(set(sum(parts.values(), []))) == n


def test_a_large_package_is_several_documents_that_end_with_a_file(here, monkeypatch):
    def package(name, n):
        """A package of n files, each with a docstring of some 2,000 characters."""
        paths = []
        for i in range(n):
            paths.append(here / f"{name}{i:03}.py")
            word = f"{name}{i:03} "
            paths[-1].write_text(f'"""start {word * 200}end"""\n')
        files = [SimpleNamespace(suffix=".py", locate=lambda path=path: path) for path in paths]
        return SimpleNamespace(files=files)

    found = {"large": package("large", 100), "small": package("small", 3)}
    monkeypatch.setattr(corpora, "packages", lambda: found)
    documents = dict(corpora.documents("docs"))
    assert list(documents) == ["large", "large#1", "large#2", "small"]
    for text in documents.values():
        assert text.startswith("start ") and text.endswith(" end")
        assert len(text) < corpora.DOCSTRINGS + 3000
    assert sum(text.count("start") for text in documents.values()) == 103


# ------------------------------------------------------------------------------------------------
# Words

SCRIPTS = {
    "Hindi": "यह हिन्दी में लिखा हुआ वाक्य है। क्या आप पढ़ सकते हैं? १२३४ ",
    "Thai": "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรคระหว่างคำ ที่นี่มีน้ำ ๑๒๓ ",
    "Arabic": "بِسْمِ ٱللَّهِ ٱلرَّحْمَـٰنِ ٱلرَّحِيمِ، كِتَابٌ جَدِيدٌ؟ ٤٢ می‌خواهم ",
    "Chinese": "他说：“今天天气很好。”我们一起去公园吧！二〇二四年 ",
    "emoji": "Well 👩‍👩‍👧 done 👍🏽 ❤️ 1️⃣ 🇫🇷 it's ½ of x² _ok_ ",
    "decomposed": "de\u0301ja\u0300 vu, l'e\u0301te\u0301 a\u0300 la plage\u00a0! ",
    "English": "\"It's a dog's life,\" he'd said;\tthey’ve 12345 -- don't they?\r\n\n  No.\n",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_merges_are_learned_on_the_words_that_tiktoken_cuts(here, name):
    text = SCRIPTS[name] * 3
    with open("spool", "w+b") as spool:
        spool.write(text.encode())
        counts = data.count_words(spool, [data.Document("it", 0, len(text.encode()))])

    # with every word a token, tiktoken's tokens are its words
    ranks = {bytes([i]): i for i in range(256)}
    for word in counts:
        ranks.setdefault(word, len(ranks))
    enc = tiktoken.Encoding("words", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert Counter(enc.decode_tokens_bytes(enc.encode_ordinary(text))) == counts


def test_vowel_signs_are_part_of_a_word():
    ranks = {bytes([i]): i for i in range(256)} | {"हिन्दी".encode(): 256, " में".encode(): 257}
    enc = tiktoken.Encoding("words", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert enc.encode_ordinary("हिन्दी में") == [256, 257]


def test_a_million_blanks_in_a_row(here):
    text = lines(300) + " " * 1_100_000 + "\n" * 1_100_000 + lines(300, seed=1)
    (here / "blanks.txt").write_text(text)
    manifest = data.prepare("blanks.txt", 300)
    texts = texts_of(manifest)
    assert "".join(texts[name] for name in sorted(texts, key=number)) == text


def test_white_space_is_one_word_up_to_a_thousand():
    ranks = {bytes([i]): i for i in range(256)} | {b" " * 999: 256, b" " * 1000: 257, b" x": 258}
    enc = tiktoken.Encoding("blanks", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert enc.encode_ordinary(" " * 1000 + "x") == [256, 258]
    assert enc.encode_ordinary(" " * 2001 + "x") == [257, 257, 258]


def test_a_text_that_a_tokenizer_cannot_take_is_refused_in_one_line(here):
    ranks = {bytes([i]): i for i in range(256)}
    theirs = tiktoken.Encoding("theirs", pat_str=r"\s+(?!\S)|\s+|\S+", mergeable_ranks=ranks,
                               special_tokens={bpe.EOT: 256})
    with open("spool", "w+b") as spool:
        spool.write(b" " * 1_100_000 + b"x")
        part = [data.Document("blanks", 0, spool.tell())]
        with pytest.raises(BadInput, match="theirs cannot encode blanks.* .*--tokenizer=bpe"):
            data.encode(spool, part, theirs, data.np.dtype("uint16"), "train.bin")


def test_of_a_word_of_a_megabyte_the_start_is_learned_from(here):
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyzéè", k=1_000_000))
    with open("spool", "w+b") as spool:
        spool.write(f"{word} is long".encode())
        counts = data.count_words(spool, [data.Document("long", 0, spool.tell())])
    assert counts == {word[:1000].encode(): 1, b" is": 1, b" long": 1}


# ------------------------------------------------------------------------------------------------
# TEI

def tei(body):
    return f'<TEI xmlns="http://www.tei-c.org/ns/1.0"><text><body>{body}</body></text></TEI>'


BODIES = {
    "line, page and column ends": (
        '<p>one<lb/>two<pb n="2"/>three<cb/>four<gb/>five<milestone unit="x"/>six</p>',
        "one two three four five six"),
    "within a word": ('<p>in<pb break="no"/>dul-\n <lb break="no"/>\n ged <lb break="yes"/>so</p>',
                      "indul-ged so"),
    "notes": ('<p>A<note place="foot"><p>not this</p></note> b.</p><note>nor <p>this</p></note>',
              "A b."),
    "the mark of a note": (
        '<p>A b<ref target="#n1">[1]</ref>. See <ref target="#c3">chapter 3</ref> of '
        '<ref target="http://a.org">1984</ref></p>', "A b. See chapter 3 of 1984"),
    "what is not running text": (
        "<fw>page 7</fw><p>A<del>x</del><gap><desc>torn</desc></gap></p><figure><head>Fig</head>"
        "<figDesc>a ship</figDesc></figure><index><term>ship</term></index>", "A\nFig"),
    "one reading of a choice": (
        "<p><choice><orig>olde</orig><reg>old</reg></choice> "
        "<choice><corr>letter</corr><sic>lettre</sic></choice> "
        "<choice>\n<abbr>Mr</abbr>\n<expan>Mister</expan>\n</choice> "
        "<choice><unclear>cat</unclear><unclear>cut</unclear></choice> "
        "<app><rdg>no</rdg><lem>yes</lem></app> <sic>alone</sic></p>",
        "old letter Mister cat yes alone"),
    "a line for each block": (
        "<head>I</head><sp><speaker>ROMEO</speaker><l>But <hi>soft</hi>,</l><l>what light?</l>"
        "<stage>Exit</stage></sp><list><item>a</item><item>b</item></list>"
        "<table><row><cell>c</cell><cell>d</cell></row></table><ab>e</ab><closer>f</closer>",
        "I\nROMEO\nBut soft,\nwhat light?\nExit\na\nb\nc\nd\ne\nf"),
    "verse and letters within a paragraph": (
        "<p>He sang <quote><l>One</l><l>Two</l></quote> and left.</p>",
        "He sang\nOne\nTwo\nand left."),
    "stray text": (
        "Stray<div>here<p>A</p>there<quote>B</quote><quote>C</quote></div><label>end</label>",
        "Stray\nhere\nA\nthere\nB\nC\nend"),
    "a text within the text": (
        "<p>A</p><floatingText><front><p>title</p></front><body><p>B</p></body></floatingText>"
        "<p>C</p>", "A\nB\nC"),
}


@pytest.mark.parametrize("what", BODIES)
def test_the_running_text_of_tei(here, what):
    body, expected = BODIES[what]
    (here / "novel.xml").write_text(tei(body))
    assert read("novel.xml")[0] == [("novel", expected)]


@pytest.mark.parametrize("block", "p l ab head item speaker stage cell".split())
def test_a_block_is_a_line(here, block):
    (here / "a.xml").write_text(tei(f"<quote>a<{block}>b<hi>c</hi></{block}>d</quote>"))
    assert read("a.xml")[0] == [("a", "a\nbc\nd")]


def test_one_text_of_a_corpus_is_held_at_a_time(here):
    texts = "".join(tei("<p>One more paragraph.</p>" * 1000) for _ in range(30))
    (here / "all.xml").write_text(f"<teiCorpus>{texts}</teiCorpus>")
    tracemalloc.start()
    with open("all.xml", "rb") as stream:
        assert sum(1 for _ in corpora.tei(stream)) == 30
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6  # bytes; all of them together would take twice as much


def test_every_text_of_a_corpus_is_a_document_and_a_group_is_one(here):
    header = "<teiHeader><p>about</p></teiHeader>"
    one, two = tei("<p>One</p>"), tei("<p>Two</p>")
    group = ("<TEI><text><front><p>no</p></front><group><text><body><p>a</p></body></text>"
             "<text><body><p>b</p></body></text></group><back><p>no</p></back></text></TEI>")
    (here / "all.XML").write_text(f"<teiCorpus>{header}{one}{two}{group}</teiCorpus>")
    assert read("all.XML")[0] == [("all", "One"), ("all#1", "Two"), ("all#2", "a\nb")]


def test_xml_that_is_not_tei_is_passed_over_and_said(here, capsys):
    write_corpus(here / "books", documents=3)
    (here / "books/pom.xml").write_text("<project><p>not a text</p></project>")
    data.prepare("books", 257)
    assert "passed over: 1 .xml without a TEI <text>" in capsys.readouterr().out


def test_xml_in_utf_16_is_read(here):
    (here / "wide.xml").write_bytes(tei("<p>été 日本</p>").encode("utf-16"))
    assert read("wide.xml")[0] == [("wide", "été 日本")]


# ------------------------------------------------------------------------------------------------
# Names and kinds

def test_names_in_capitals_are_read_and_the_rest_is_counted(here, capsys):
    (here / "all/.git").mkdir(parents=True)
    texts = {"A.TXT": lines(40).encode(), "b.xml": tei("<p>B</p>").encode()}
    texts["c.txt.GZ"] = gzip.compress(lines(40, seed=1).encode())
    for name in ("README.md", "a.MD", "b.pdf", "data.jsonl.gz", "LICENSE", "._A.txt", ".git/x.txt"):
        texts[name] = b"not read"
    with zipfile.ZipFile("all.zip", "w") as archive:
        for name, content in texts.items():
            archive.writestr(f"all/{name}", content)
            (here / "all" / name).write_bytes(content)

    documents, passed_over = read("all")
    assert documents == [("A", lines(40)), ("b", "B"), ("c", lines(40, seed=1))]
    assert passed_over == {".md": 2, ".pdf": 1, ".jsonl.gz": 1, "without an ending": 1}
    assert read("all.zip") == (documents, passed_over)
    assert data.prepare("all", 257)["sources"] == {"all": "a folder"}
    assert f"passed over: {corpora.in_words(passed_over)}" in capsys.readouterr().out
    assert corpora.in_words(passed_over).startswith("2 .md, 1 ")


def encrypted_zip(path):
    """A zip archive that says of its one member that it has a password."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("novel.txt", "secret " * 100)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flags of the member, before it ...
    content[content.index(b"PK\1\2") + 8] |= 1  # ... and in the list at the end
    path.write_bytes(content)


@pytest.mark.parametrize("corpus, expected", [
    ("", "has an empty part"),
    ("novel.txt,", "has an empty part"),
    (" ,novel.txt", "has an empty part"),
    ("novel.gz", "rename it to novel.txt.gz"),
    ("novel.xz", "rename it to novel.txt.xz"),
    ("data.jsonl", "is not text that can be read: expected .txt"),
    ("data.jsonl.gz", "is not text that can be read: expected .txt"),
    ("notes", "but 1 .md, 1 .pdf: expected .txt"),
    ("secret.zip", "secret.zip cannot be read (File 'novel.txt' is encrypted"),
    ("gb.xml", "gb.xml cannot be read as XML (multi-byte encodings are not supported): convert"),
    ("klingon.xml", "klingon.xml cannot be read as XML (unknown encoding: klingon): convert"),
    ("deep.xml", "nested too deeply"),
    ("https://a.org/novel.html", "does not end as a text does: expected .txt"),
    ("https://a.org/?file=novel.txt", "does not end as a text does: expected .txt"),
    ("HTTPS://a.org/novel.txt,https://a.org/data.json", "data.json does not end as a text does"),
])
def test_what_cannot_be_read_is_refused_in_one_line(here, corpus, expected, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(corpora, "fetch", lambda url, path: asked.append(url))
    for name in ("novel.txt", "novel.gz", "novel.xz", "data.jsonl", "data.jsonl.gz"):
        (here / name).write_text(lines(100))
    (here / "notes").mkdir()
    (here / "notes/a.md").write_text("# Notes")
    (here / "notes/b.pdf").write_text("%PDF")
    encrypted_zip(here / "secret.zip")
    declared = '<?xml version="1.0" encoding="GB2312"?>'
    (here / "gb.xml").write_bytes((declared + tei("<p>中文</p>")).encode("gb2312"))
    (here / "klingon.xml").write_text('<?xml version="1.0" encoding="klingon"?><TEI/>')
    (here / "deep.xml").write_text(tei("<hi>" * 3000 + "</hi>" * 3000))

    assert expected in fails(data.main, [f"--corpus={corpus}"], monkeypatch, capsys)
    assert asked == []
    assert list(here.glob("data/*")) == []


def test_the_kind_of_an_address_is_that_of_its_path(here, monkeypatch):
    def fetch(url, path):
        path.write_text(lines(100))
        return "00", 1

    monkeypatch.setattr(corpora, "fetch", fetch)
    address = "https://a.org/b/My%20novel.TXT?raw=true&as=x.zip#top"
    assert corpora.locate(address)[0].endswith("-My_novel.TXT")
    record = json.loads(next(here.glob("data/downloads/*.json")).read_text())
    assert record["url"] == address
    manifest = data.prepare(address, 257)
    assert "".join(sorted(texts_of(manifest).values(), key=lines(100).index)) == lines(100)


def test_an_encrypted_zip_is_refused_as_soon_as_it_is_downloaded(here):
    encrypted_zip(here / "secret.zip")
    with pytest.raises(BadInput, match="could not download .* is encrypted"):
        corpora.download((here / "secret.zip").as_uri())
    assert list(here.glob("data/downloads/*")) == []


def test_where_a_long_text_is_no_utf8(here, monkeypatch):
    """The byte of the file: pieces are longer than PIECE, by the rest of a line."""
    monkeypatch.setattr(corpora, "PIECE", 100)
    block = b"seventeen bytes.\n" * 30
    (here / "long.txt").write_bytes(block[:400] + b"\xe9" + block[400:])
    with pytest.raises(BadInput, match=r"is not UTF-8 text \(byte 400\)"):
        list(corpora.documents("long.txt"))


def test_a_corpus_in_the_home_folder(here, monkeypatch):
    """The shell leaves the ~ of --corpus=~/a.txt alone."""
    monkeypatch.setenv("HOME", str(here))
    (here / "a.txt").write_text("A cat.")
    assert corpora.locate("~/a.txt") == [str(here / "a.txt")]
    (here / "both").mkdir()
    assert corpora.locate_parallel("~/both") == str(here / "both")


# ------------------------------------------------------------------------------------------------
# Editions of one text

def chinese(n, seed):
    """n sentences of 8 to 18 random characters."""
    rng = random.Random(seed)
    said = []
    for _ in range(n):
        said.append("".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(rng.randint(8, 18))))
    return said


def thai(n, seed):
    """n random letters without a space or a sentence end."""
    return "".join(random.Random(seed).choices([chr(0x0E01 + i) for i in range(46)], k=n))


def alike(a, b):
    """Whether the second of two texts is dropped as another edition of the first."""
    Path("a.txt").write_text(a)
    Path("b.txt").write_text(b)
    with open("spool", "w+b") as spool:
        kept, dropped, _, _ = data.gather(["a.txt", "b.txt"], spool)
    assert [document.name for document in kept] + dropped == ["a", "b"]
    return dropped == ["b"]


def test_two_chinese_editions_are_one_text(here):
    said = chinese(400, seed=0)
    first = "。".join(said) + "。"
    second = "前言。" + "！\n　　".join(said[:150] + chinese(60, seed=1) + said[150:]) + "。"
    assert alike(first, second)
    assert not alike(first, "。".join(chinese(400, seed=2) + said[:100]) + "。")


def test_two_editions_without_sentence_ends_are_one_text(here):
    text = thai(20_000, seed=0)
    wrapped = "\n".join(text[i:i + 70] for i in range(5, len(text), 70))
    assert alike(text, thai(333, seed=1) + wrapped[:6000] + thai(77, seed=2) + wrapped[6100:])
    assert not alike(text, thai(15_000, seed=3) + text[:5000])


@pytest.mark.parametrize("end", ["।", "؟", "።", "។", "．"])
def test_every_script_ends_its_sentences(here, end):
    said = [thai(30, seed=i) for i in range(100)]
    order = random.Random(0).sample(said, 100)  # the same sentences, whatever stands between
    assert alike(f"{end} ".join(said), f"{end} ".join(order))


def test_arabic_with_and_without_its_vowel_signs_is_one_text(here):
    rng = random.Random(0)
    said = ["".join(rng.choices("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", k=40)) for _ in range(100)]
    signs = [letter + rng.choice(["", "\u064e", "\u0650"]) for letter in ". ".join(said)]
    assert alike(". ".join(said), "".join(signs))


def test_the_very_same_short_text_is_one_text_and_another_is_not(here):
    assert alike("Yes. No. Why?", "Yes. No. Why?\n")
    assert not alike("Yes. No. Why?", "Yes. No. Who?")
    assert not alike("1 2 3", "4 5 6")


def test_repeats_are_those_of_a_slow_search(here):
    """Of 300 documents, made of parts of others, each is held against all that are kept."""
    rng = random.Random(0)
    said = ["".join(rng.choices("abcdefghij", k=30)) for _ in range(1000)]
    folder = here / "many"
    folder.mkdir()
    kept, sketches = [], {}
    for i in range(300):
        place, n = rng.randrange(980), rng.randint(1, 10)
        text = ".\n".join(rng.sample(said[place:place + 20], n))
        mine = corpora.sketch(text)

        # how many of its sentences each document that is kept had before all others
        shared = {name: len(mine & first) for name, (_, first) in sketches.items()}
        most = max(shared.values(), default=0)
        rivals = [name for name, n in shared.items() if n == most > 0]
        repeats = [corpora.overlap(mine, sketches[name][0]) > 0.5 for name in rivals]
        if True in repeats and False in repeats:  # either would be right
            continue
        (folder / f"{i:03}.txt").write_text(text)
        if not any(repeats):
            kept.append(f"{i:03}")
            known = set().union(*(first for _, first in sketches.values()))
            sketches[f"{i:03}"] = mine, mine - known

    with open("spool", "w+b") as spool:
        found, dropped, _, _ = data.gather(["many"], spool)
        assert [document.name for document in found] == kept
        assert [data.read_text(spool, document) for document in found] == [
            (folder / f"{name}.txt").read_text() for name in kept]
    assert len(dropped) > 50 and len(kept) > 50


def test_many_small_documents_take_less_memory_than_their_text(here, monkeypatch):
    """A thousand, of which each sentence is held against all before it."""
    monkeypatch.setattr(corpora, "PIECE", 1 << 16)
    rng = random.Random(0)
    folder = here / "many"
    folder.mkdir()
    for i in range(1000):
        said = ["".join(rng.choices("abcdefghij", k=30)) for _ in range(100)]
        (folder / f"{i:03}.txt").write_text(".\n".join(said))
    with open("spool", "w+b") as spool:
        data.gather(["many/000.txt"], spool)  # which loads some of numpy
        tracemalloc.start()
        kept, *_ = data.gather(["many"], spool)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(kept) == 1000
    assert peak < 0.75 * sum(document.size for document in kept)


# ------------------------------------------------------------------------------------------------
# Killed on the way

def start_preparing(here):
    """Start data.py on a corpus of some size, and wait until it writes."""
    if not (here / "books").exists():
        write_corpus(here / "books", documents=40, sentences=6000)
    process = script(here, "data.py", "--corpus=books", "--vocab_size=300")
    deadline = time.time() + 60
    while not list(here.glob("data/.*/text")) and time.time() < deadline:
        time.sleep(0.01)
    return process


def test_a_terminated_process_leaves_nothing(here):
    process = start_preparing(here)
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert process.returncode == 143, out + error
    assert list((here / "data").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(here):
    process = start_preparing(here)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left, = here.glob("data/.*")
    living = here / f"data/{data.PREPARING}other"
    living.mkdir()
    (living / "text").write_text("half")
    held = data.lock(living, wait=True)
    new = here / f"data/{data.PREPARING}new"  # just made, and not yet locked
    new.mkdir()

    write_corpus(here / "others", documents=3)
    manifest = data.prepare("others", 257)
    assert not left.exists()
    there = {living.name, new.name, Path(manifest["folder"]).name}
    assert {path.name for path in (here / "data").iterdir()} == there
    assert (living / "text").exists()
    os.close(held)
    data.prepare("others", 258)
    assert not living.exists()


def test_a_folder_is_locked_while_a_corpus_is_prepared_in_it(here, monkeypatch):
    write_corpus(here / "books", documents=3)
    build, seen = data.build, []

    def watched(folder, *rest):
        build(folder, *rest)
        data.remove_leftovers(folder.parent)  # as another process would
        seen.append(sorted(path.name for path in folder.iterdir()))

    monkeypatch.setattr(data, "build", watched)
    data.prepare("books", 257)
    assert "train.bin" in seen[0]


def test_a_reader_of_docstrings_ends_with_the_process_that_started_it(here):
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "import multiprocessing, os\n"
            "from concurrent.futures import ProcessPoolExecutor\n"
            "from lib import corpora\n"
            "spawn = multiprocessing.get_context('spawn')\n"
            "pool = ProcessPoolExecutor(1, spawn, corpora.start_worker)\n"
            "print(pool.submit(os.getpid).result(), flush=True)\n"
            "os.kill(os.getpid(), 9)\n")
    with open("reader", "w") as f:  # no pipe, which a reader that lives on would keep open
        subprocess.run([sys.executable, "-c", code], stdout=f, stderr=subprocess.DEVNULL,
                       timeout=60)
    reader, deadline = int(Path("reader").read_text()), time.time() + 10
    while time.time() < deadline:
        try:
            os.kill(reader, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(reader, signal.SIGKILL)
    pytest.fail("it is still there")
