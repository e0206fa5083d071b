import hashlib
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from conftest import ONE_THREAD, ROOT, fails, finish, listing, script, write_corpus

import data
from lib import bpe
from lib.cli import BadInput


def texts_of(manifest, split):
    """The documents of a split, decoded."""
    text = bpe.encoder(manifest).decode(data.tokens(manifest, split).tolist())
    return text.split(bpe.EOT)[:-1]


def names(manifest):
    """The documents of all splits."""
    return sorted(sum(manifest["documents"].values(), []))


# ------------------------------------------------------------------------------------------------
# Documents: repeats dropped, split into train, val and test

def sentences(start, end):
    """Sentences that are like no other ones, each with its own number in letters."""
    said = []
    for i in range(start, end):
        number = "abcdefghij"[i % 10] * (1 + i // 10)
        said.append(f"Sentence number {number} is like no other one. ")
    return "".join(said)


def test_a_repeated_document_is_dropped_and_a_new_one_is_not(here, capsys):
    write_corpus(here / "books", documents=8)
    again, new = (here / "books/book03.txt").read_text(), sentences(0, 200)
    preface = "A preface of the editor's, which was not there before.\n"
    edition = again.replace("\n", " ").replace("cat", "CAT")
    (here / "edition.txt").write_text(preface + edition + new[:2000])
    (here / "other.txt").write_text(new + again[:3000])

    manifest = data.prepare("books,edition.txt,other.txt", 300)
    assert manifest["dropped"] == ["edition"]
    said = capsys.readouterr().out
    assert "1 dropped that repeat most of an earlier one: edition" in said
    kept = {name.partition("/")[0] for name in names(manifest)}  # eight books are cut: book00/0 ...
    assert kept == {f"book{i:02}" for i in range(8)} | {"other"}


def test_a_document_that_repeats_more_than_half_is_a_repeat(here):
    write_corpus(here / "books", documents=8)
    (here / "first.txt").write_text(sentences(0, 200))
    (here / "three_fifths.txt").write_text(sentences(80, 280))
    (here / "two_fifths.txt").write_text(sentences(200, 300) + sentences(0, 80))
    manifest = data.prepare("books,first.txt,three_fifths.txt,two_fifths.txt", 300)
    assert manifest["dropped"] == ["three_fifths"]

    # and nothing of it stands in the text, of which a corpus has its number
    whole = ""
    for name in ["books", "first.txt", "two_fifths.txt"]:
        for path in sorted((here / name).glob("*")) or [here / name]:
            whole += path.read_text()
    assert manifest["sha256"] == hashlib.sha256(whole.encode()).hexdigest()


def test_whole_documents_make_the_splits_and_every_token_is_there_once(here):
    write_corpus(here / "books", documents=100, sentences=60)
    manifest = data.prepare("books", 300)
    documents = manifest["documents"]
    assert len(set(names(manifest))) == 100
    total = sum(manifest["tokens"].values())
    for split, share in data.SPLITS.items():
        assert abs(manifest["tokens"][split] / total - share) < 0.015
        ids = data.tokens(manifest, split)
        assert len(ids) == manifest["tokens"][split]
        assert (ids == manifest["eot"]).sum() == len(documents[split])
        originals = [(here / f"books/{name}.txt").read_text() for name in documents[split]]
        assert texts_of(manifest, split) == originals


def test_the_splits_are_drawn_from_all_of_a_corpus_and_always_the_same():
    entries = [data.Document(f"{i:02}", offset=1000 * i, size=1000) for i in range(100)]
    parts = data.split_documents(entries)
    found = {split: [document.name for document in part] for split, part in parts.items()}
    # held fast: in another order, a corpus would be another one for every run there is
    assert found["val"] == ["49", "97", "53", "05", "33"]
    assert found["test"] == ["65", "62", "51", "38", "61"]
    assert found["train"][:5] == ["45", "74", "27", "64", "17"]
    assert sorted(sum(found.values(), [])) == [f"{i:02}" for i in range(100)]


def test_memory_does_not_grow_with_a_corpus(here):
    """Of a file 128 times as large as what is read at a time; here that is 256 kB."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(2000)]

    def text(n_bytes):
        return ".\n".join(" ".join(rng.choices(words, k=20)) for _ in range(n_bytes // 141))

    def peak(corpus):
        code = ("import data, bench, lib.corpora, torch; lib.corpora.PIECE = 1 << 18; "
                f"data.prepare('{corpus}', 300); print(bench.peak_memory(torch.device('cpu')))")
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                 env=ONE_THREAD | {"PYTHONPATH": str(ROOT)}, check=True)
        return float(process.stdout.split()[-1])

    (here / "small.txt").write_text(text(4 << 20))
    (here / "large.txt").write_text(text(32 << 20))
    assert peak("large.txt") < peak("small.txt") + 16  # MB, where the text has 29 more


def test_one_text_is_cut_into_three(here):
    path = write_corpus(here / "books", documents=1, sentences=3000) / "book00.txt"
    manifest = data.prepare(str(path), 300)
    sizes = {split: len(part) for split, part in manifest["documents"].items()}
    assert sizes == {"train": 36, "val": 2, "test": 2}

    whole = path.read_text()
    texts = []
    for split in data.SPLITS:
        texts += texts_of(manifest, split)
    assert "".join(sorted(texts, key=whole.index)) == whole
    assert sum(text.endswith(".\n") for text in texts) == 39  # at line ends; the last has none


def test_a_text_without_line_ends_or_spaces_is_cut_between_characters(here):
    # three bytes a character, and fortieths of the text that do not fall between two of them
    (here / "one.txt").write_text("日本語" * 3001)
    manifest = data.prepare("one.txt", 257)
    assert sum(manifest["bytes"].values()) == 27009  # and every piece was decoded


# ------------------------------------------------------------------------------------------------
# Ids

def test_merges_are_learned_from_training_text_alone(here):
    # each document has a character of its own, three bytes long and frequent enough to be learned
    characters = {}
    for i, path in enumerate(sorted(write_corpus(here / "books").iterdir())):
        characters[path.stem] = chr(0x4E00 + i)
        path.write_text(path.read_text() + f" {characters[path.stem]}" * 2000)
    manifest = data.prepare("books", 400)
    ranks = bpe.load_ranks(Path(manifest["folder"]) / "tokenizer.tiktoken")

    known = set()
    for name, character in characters.items():
        if any(character.encode() in token for token in ranks):
            known.add(name)
    assert known == set(manifest["documents"]["train"])


@pytest.mark.parametrize("vocab_size, dtype", [(65536, "uint16"), (65537, "uint32")])
def test_many_ids_need_uint32(here, monkeypatch, vocab_size, dtype):
    write_corpus(here / "books", documents=3, sentences=50)
    enc = tiktoken.Encoding("big", pat_str=bpe.PATTERN,
                            mergeable_ranks={bytes([i]): i for i in range(256)},
                            special_tokens={bpe.EOT: vocab_size - 1})
    monkeypatch.setattr(data, "encoder", lambda manifest: enc)
    manifest = data.prepare("books", 257)
    ids = data.tokens(manifest, "val")
    assert ids.dtype == dtype == manifest["dtype"]
    assert ids[-1] == vocab_size - 1


# ------------------------------------------------------------------------------------------------
# A prepared corpus on the disk

def damage(path, how):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    if how == "remove":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(whole[:-20])
    else:
        path.write_bytes(whole)


@pytest.mark.parametrize("file, how", [
    ("train.bin", "flip"),
    ("train.bin", "truncate"),
    ("train.bin", "remove"),
    ("test.bin", "flip"),
    ("tokenizer.tiktoken", "flip"),
    ("manifest.json", "truncate"),
])
def test_a_damaged_cache_is_made_again(here, file, how):
    write_corpus(here / "books", documents=4)
    manifest = data.prepare("books", 300)
    folder = Path(manifest["folder"])
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder / file, how)
    with pytest.raises(BadInput):
        data.load(folder)

    assert data.prepare("books", 300) == manifest
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
    assert [path.name for path in Path("data").iterdir()] == [folder.name]  # nothing lies about


def test_a_cache_of_another_format_is_made_again(here, monkeypatch):
    write_corpus(here / "books", documents=4)
    folder = data.prepare("books", 300)["folder"]
    manifest = json.loads(Path(folder, "manifest.json").read_text())
    Path(folder, "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(BadInput, match="of another version"):
        data.load(folder)
    assert data.prepare("books", 300)["format"] == data.FORMAT


def test_a_valid_cache_is_used_and_a_changed_corpus_is_not(here):
    write_corpus(here / "books", documents=4)
    first = data.prepare("books", 300)
    stamp = os.stat(first["folder"] + "/train.bin").st_mtime_ns
    assert data.prepare("books", 300) == first
    assert os.stat(first["folder"] + "/train.bin").st_mtime_ns == stamp
    (here / "books/book00.txt").write_text("Something else. " * 50)
    assert data.prepare("books", 300)["sha256"] != first["sha256"]


def test_preparing_is_killed_and_then_done_again(here):
    write_corpus(here / "books", documents=30, sentences=3000)
    reference = data.prepare("books", 300)
    os.rename("data", "reference")
    for delay in (0.1, 0.3, 0.6):
        process = script(here, "data.py", "--corpus=books", "--vocab_size=300")
        deadline = time.time() + 60
        while not list(here.glob("data/.*")) and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for folder in here.glob("data/[a-z]*"):  # either nothing or the whole
            data.load(folder)
    assert data.prepare("books", 300)["files"] == reference["files"]


def test_processes_that_prepare_one_corpus_at_once_do_not_disturb_each_other(here):
    write_corpus(here / "books", documents=20)
    options = ["--corpus=books", "--vocab_size=350"]
    for process in [script(here, "data.py", *options) for _ in range(3)]:
        finish(process)
    assert len(list(here.glob("data/*"))) == 1
    data.load(next(here.glob("data/*")))


def test_a_copy_that_another_process_has_just_made_stays(here, monkeypatch):
    """It is as good as this one, and may be in use."""
    write_corpus(here / "books", documents=20)
    plainly, other = data.build, []

    def build(folder, *args):
        plainly(folder, *args)
        if not other:  # meanwhile, in the other process
            other.append(None)
            other[0] = data.prepare("books", 300)
            (Path(other[0]["folder"]) / "tokenizer.tiktoken").chmod(0o600)  # to know it again

    monkeypatch.setattr(data, "build", build)
    manifest = data.prepare("books", 300)
    assert manifest == other[0] and len(list((here / "data").iterdir())) == 1
    assert (Path(manifest["folder"]) / "tokenizer.tiktoken").stat().st_mode & 0o777 == 0o600


def test_what_is_not_whole_yet_is_never_found(here):
    write_corpus(here / "books", documents=20)
    manifest = data.prepare("books", 300)
    assert data.find(manifest["files"]) == manifest
    Path(manifest["folder"]).rename(f"data/{data.PREPARING}books-old")
    assert data.find(manifest["files"]) is None


# ------------------------------------------------------------------------------------------------
# Downloads

@pytest.fixture
def server(here):
    """A web server on this machine: (its address, the paths that were asked for).

    /corpus.zip is whole, /short.zip breaks off, /bad.zip is no archive, /missing.zip is not there.
    """
    write_corpus(here / "books", documents=4)
    with zipfile.ZipFile(here / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((here / "books").iterdir()):
            archive.write(path, path.name)
    whole, requests = (here / "corpus.zip").read_bytes(), []
    broken = {"/short.zip": whole[:500], "/bad.zip": b"x" * len(whole)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(broken.get(self.path, whole))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", requests
        httpd.shutdown()


def test_a_corpus_is_downloaded_once(server, here):
    address, requests = server
    manifest = data.prepare(f"{address}/corpus.zip", 300)
    data.prepare(f"{address}/corpus.zip", 320)
    assert requests == ["/corpus.zip"]
    assert manifest["documents"].keys() == data.SPLITS.keys()
    assert manifest["sha256"] == data.prepare("books", 300)["sha256"]

    record = json.loads(next(here.glob("data/downloads/*.json")).read_text())
    assert record["url"] == f"{address}/corpus.zip"
    assert record["sha256"] == data.file_sha256("corpus.zip")
    assert [record["sha256"]] == list(manifest["sources"].values())


@pytest.mark.parametrize("name", ["short.zip", "bad.zip", "missing.zip"])
def test_a_broken_download_leaves_nothing_behind(server, here, name, monkeypatch, capsys):
    address, _ = server
    error = fails(data.main, [f"--corpus={address}/{name}"], monkeypatch, capsys)
    assert "could not download" in error
    assert "--corpus=docs" in error
    assert [path for path in here.glob("data/**/*") if path.is_file()] == []


# ------------------------------------------------------------------------------------------------
# Bad input: one clear line, exit code 2, nothing written

FILES = {
    "small.txt": b"A small text, and a small text again. " * 40,
    "empty.txt": b"",
    "binary.txt": b"\0\1\2" * 99,
    "latin.txt": "été".encode("latin-1"),
    "picture.png": b"\x89PNG",
    "broken.zip": b"PK\3\4 no",
    "broken.txt.gz": b"\x1f\x8b no",
    "broken.txt.xz": b"\xfd7zXZ no",
    "broken.xml": b"<TEI><p>",
}

BAD_SOURCES = [
    ("nowhere.txt", "neither a file, nor a folder, nor one of docs, eltec-eng"),
    ("empty.txt", "is empty"),
    ("blank", "expected .txt"),
    ("binary.txt", "is not text"),
    ("latin.txt", "is not UTF-8"),
    ("picture.png", "is not text"),
    ("broken.zip", "is damaged"),
    ("broken.txt.gz", "is damaged"),
    ("broken.txt.xz", "is damaged"),
    ("broken.xml", "not well-formed"),
    ("http://127.0.0.1:9/x.zip", "need no network"),
]

BAD_SETTINGS = [
    ("--vocab_size=256", "256 bytes and end-of-text make 257"),
    ("--vocab_size=60000", "larger than the corpus supports: at most"),
    ("--vocab_size=many", "invalid int value"),
    ("--tokenizer=gtp2", "unknown"),
    ("--corpsu=small.txt", "did you mean --corpus?"),
]


@pytest.fixture
def refused(here, monkeypatch, capsys):
    """refused(options) -> what data.py says to them; it must leave everything as it was."""
    for name, content in FILES.items():
        (here / name).write_bytes(content)
    (here / "blank").mkdir()

    def refused(*options):
        before = listing(here)
        error = fails(data.main, options, monkeypatch, capsys)
        new = [path for path in listing(here) if path not in before]
        assert [path for path in new if not (here / path).is_dir()] == []
        return error

    return refused


@pytest.mark.parametrize("source, expected", BAD_SOURCES)
def test_a_corpus_that_is_none(refused, source, expected):
    assert expected in refused(f"--corpus={source}")


@pytest.mark.parametrize("option, expected", BAD_SETTINGS)
def test_settings_that_are_none(refused, option, expected):
    assert expected in refused("--corpus=small.txt", option)


def test_tokens_of_a_long_text_are_counted_in_all_its_pieces():
    ids = np.zeros((1 << 24) + 5, dtype=np.uint16)
    ids[-3:] = 2
    assert data.count_tokens(ids, 4).tolist() == [(1 << 24) + 2, 0, 3, 0]
