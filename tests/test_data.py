import http.server
import json
import os
import signal
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import fails, listing, script, write_corpus

import bpe
import data
from cli import BadInput

def test_a_repeated_document_is_dropped_and_a_new_one_is_not(here, capsys):
    write_corpus(here / "books", documents=8)
    again = (here / "books" / "book03.txt").read_text()
    new = "".join(f"Sentence number {'abcdefghij'[i % 10] * (1 + i // 10)} is like no other one. " for i in range(200))
    (here / "edition.txt").write_text("A preface of the editor's, which was not there before.\n" + again.replace("\n", " ").replace("cat", "CAT") + new[:2000])
    (here / "other.txt").write_text(new + again[:3000])
    manifest = data.prepare("books,edition.txt,other.txt", 300)
    assert manifest["dropped"] == ["edition"]
    assert "1 dropped that repeat most of an earlier one: edition" in capsys.readouterr().out
    assert sorted(sum(manifest["documents"].values(), [])) == sorted([f"book{i:02}" for i in range(8)] + ["other"])


def test_whole_documents_make_the_splits_and_every_token_is_there_once(here):
    write_corpus(here / "books", documents=100, sentences=60)
    manifest = data.prepare("books", 300)
    docs = manifest["documents"]
    assert len(set(sum(docs.values(), []))) == 100
    total = sum(manifest["tokens"].values())
    for split, share in data.SPLITS.items():
        assert abs(manifest["tokens"][split] / total - share) < 0.015
        ids = data.tokens(manifest, split)
        assert len(ids) == manifest["tokens"][split] and (ids == manifest["eot"]).sum() == len(docs[split])
        texts = bpe.encoder(manifest).decode(ids.tolist()).split(bpe.EOT)[:-1]
        assert texts == [(here / "books" / f"{name}.txt").read_text() for name in docs[split]]


def test_one_text_is_cut_into_three(here):
    text = write_corpus(here / "books", documents=1, sentences=3000) / "book00.txt"
    manifest = data.prepare(str(text), 300)
    assert {k: len(v) for k, v in manifest["documents"].items()} == {"train": 18, "val": 1, "test": 1}
    texts = [t for split in data.SPLITS for t in bpe.encoder(manifest).decode(data.tokens(manifest, split).tolist()).split(bpe.EOT)[:-1]]
    whole = text.read_text()
    assert "".join(sorted(texts, key=whole.index)) == whole
    assert sum(t.endswith(".\n") for t in texts) == 19  # cut at line ends; the last has none


def test_a_text_without_line_ends_or_spaces_is_cut_between_characters(here):
    (here / "one.txt").write_text("日本語" * 3000)
    manifest = data.prepare("one.txt", 257)
    assert sum(manifest["bytes"].values()) == 27000  # and every piece was decoded


def test_many_ids_need_uint32(here, monkeypatch):
    write_corpus(here / "books", documents=3, sentences=50)
    ranks = {bytes([i]): i for i in range(256)}
    import tiktoken
    for vocab, dtype in ((65536, "uint16"), (65537, "uint32")):
        enc = tiktoken.Encoding("big", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={bpe.EOT: vocab - 1})
        monkeypatch.setattr(data, "encoder", lambda manifest: enc)
        manifest = data.prepare("books", 257 + (dtype == "uint32"))
        assert data.tokens(manifest, "val").dtype == dtype == manifest["dtype"] and data.tokens(manifest, "val")[-1] == vocab - 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_cache_is_made_again(here, damage):
    write_corpus(here / "books", documents=4)
    manifest = data.prepare("books", 300)
    good, path = np.array(data.tokens(manifest, "train")), Path(manifest["folder"]) / ("manifest.json" if damage == "manifest" else "train.bin")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.unlink() if damage == "remove" else path.write_bytes(whole if damage == "flip" else whole[:-20])
    with pytest.raises(BadInput):
        data.load(manifest["folder"])
    again = data.prepare("books", 300)
    assert (data.tokens(again, "train") == good).all()
    assert [p.name for p in Path("data").iterdir()] == [Path(manifest["folder"]).name]  # and nothing is left lying about


def test_a_valid_cache_is_used_and_a_changed_corpus_is_not(here):
    write_corpus(here / "books", documents=4)
    first = data.prepare("books", 300)
    stamp = os.stat(first["folder"] + "/train.bin").st_mtime_ns
    assert data.prepare("books", 300) == first and os.stat(first["folder"] + "/train.bin").st_mtime_ns == stamp
    (here / "books" / "book00.txt").write_text("Something else. " * 50)
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
    all_three = [script(here, "data.py", "--corpus=books", "--vocab_size=350") for _ in range(3)]
    outputs = [p.communicate() for p in all_three]
    assert [p.returncode for p in all_three] == [0, 0, 0], outputs
    assert len(list(here.glob("data/*"))) == 1
    data.load(next(here.glob("data/*")))


@pytest.fixture
def server(here):
    """A web server on this machine: /corpus.zip is whole, /short.zip breaks off, /bad.zip is no archive."""
    write_corpus(here / "books", documents=4)
    with zipfile.ZipFile(here / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for p in sorted((here / "books").iterdir()):
            archive.write(p, p.name)
    body, requests = (here / "corpus.zip").read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write({"/short.zip": body[:500], "/bad.zip": b"x" * len(body)}.get(self.path, body))

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
    assert manifest["documents"].keys() == data.SPLITS.keys() and manifest["sha256"] == data.prepare("books", 300)["sha256"]
    record = json.loads(next(here.glob("data/downloads/*.json")).read_text())
    assert record["sha256"] == data.file_sha256("corpus.zip") == list(manifest["sources"].values())[0]


@pytest.mark.parametrize("name", ["short.zip", "bad.zip", "missing.zip"])
def test_a_broken_download_leaves_nothing_behind(server, here, name, monkeypatch, capsys):
    error = fails(data.main, [f"--corpus={server[0]}/{name}"], monkeypatch, capsys)
    assert "could not download" in error and "--corpus=docs" in error
    assert [p for p in here.glob("data/**/*") if p.is_file()] == []


@pytest.mark.parametrize("options, expected", [
    (["--corpus=nowhere.txt"], "neither a file nor one of docs, eltec-eng"),
    (["--corpus=empty.txt"], "is empty"),
    (["--corpus=blank"], "expected .txt"),
    (["--corpus=binary.txt"], "is not text"),
    (["--corpus=latin.txt"], "is not UTF-8"),
    (["--corpus=picture.png"], "is not text"),
    (["--corpus=broken.zip"], "is damaged"),
    (["--corpus=broken.txt.gz"], "is damaged"),
    (["--corpus=broken.xml"], "not well-formed"),
    (["--corpus=http://127.0.0.1:9/x.zip"], "need no network"),
    (["--corpus=small.txt", "--vocab_size=256"], "256 bytes and end-of-text make 257"),
    (["--corpus=small.txt", "--vocab_size=60000"], "larger than the corpus supports: at most"),
    (["--corpus=small.txt", "--vocab_size=many"], "invalid int value"),
    (["--corpus=small.txt", "--tokenizer=gtp2"], "unknown"),
    (["--corpsu=small.txt"], "did you mean --corpus?"),
])
def test_bad_input_is_one_line_and_writes_nothing(here, options, expected, monkeypatch, capsys):
    (here / "blank").mkdir()
    for name, content in {"empty.txt": b"", "binary.txt": b"\0\1\2" * 99, "latin.txt": "été".encode("latin-1"), "picture.png": b"\x89PNG",
                          "broken.zip": b"PK\3\4 no", "broken.txt.gz": b"\x1f\x8b no", "broken.xml": b"<TEI><p>",
                          "small.txt": b"A small text, and a small text again. " * 40}.items():
        (here / name).write_bytes(content)
    before = listing(here)
    assert expected in fails(data.main, options, monkeypatch, capsys)
    assert [p for p in listing(here) if p not in before and not Path(p).is_dir()] == []
