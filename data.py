"""Text -> documents -> BPE -> train.bin, val.bin, test.bin: token ids, memory-mapped.

    python data.py                                        # docstrings of the installed packages
    python data.py --corpus=eltec-eng --vocab_size=4096   # 100 English novels, downloaded once
    python data.py --corpus=my_novels/                    # your own .txt or TEI .xml: a file,
                                                          # a folder, a .zip, .txt.gz or .txt.xz

A prepared corpus is a folder data/NAME of five files: tokenizer.tiktoken (the merges), three .bin
files of ids, and manifest.json, which says what is in them. The folder is made under another name
and renamed when whole, so two processes can prepare the same one at once.
"""
import contextlib
import hashlib
import json
import math
import mmap
import os
import random
import re
import shlex
import shutil
import tempfile
import time
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex

from lib.bpe import PATTERN, encoder, learn_bpe, save_ranks
from lib.cli import (
    BadInput,
    Parser,
    as_options,
    lock,
    plural,
    progress,
    run_main,
    unlock,
    write_json,
)
from lib.corpora import (
    documents,
    fingerprint,
    in_words,
    locate,
    locate_parallel,
    overlap,
    parallel_texts,
    sketch,
)

VOCAB_SIZE = 512  # V, the default
SPLITS = {"train": 0.90, "val": 0.05, "test": 0.05}
PREPARING = ".preparing-"  # how the name of a folder begins that is not yet whole
BPE_TEXT = 256 << 20  # bytes of training text that the merges are learned from
LARGEST, PIECE = 1 / 16, 1 / 40  # of a corpus: a document larger than that is cut, into such pieces
LONGEST = 1000  # characters of a word that its merges are learned from
FORMAT = 2  # raise it whenever the same text would give other ids, and old caches are rebuilt


class Document(NamedTuple):
    """One document of a corpus, and where in the spool file its text lies."""
    name: str
    offset: int  # bytes
    size: int  # bytes


# ------------------------------------------------------------------------------------------------
# A prepared corpus: made, loaded, read

def prepare(corpus="docs", vocab_size=VOCAB_SIZE, tokenizer="bpe", parallel=None):
    """Return the manifest (a dict) of a prepared corpus, made now unless it is there and whole.

    corpus: comma-separated names, paths or addresses; a language's name before it, as in eng=PATH,
    does not matter. vocab_size: ids of one language, end-of-text
    included; a tokenizer of tiktoken's own brings its own size. parallel: a parallel text whose
    documents are kept out of all splits, since it is to be a test. Text is read once and encoded
    document by document, so memory stays bounded. Raises BadInput.
    """
    if tokenizer == "bpe" and vocab_size < 257:
        raise BadInput(f"--vocab_size={vocab_size} is too small: "
                       "256 bytes and end-of-text make 257")

    _, corpus = split_name(corpus)
    sources = locate(corpus)

    # the folder's name says all that decides the ids: another text or setting, another folder
    vocab = vocab_size if tokenizer == "bpe" else tokenizer
    decides = [FORMAT, PATTERN, SPLITS, vocab, [fingerprint(s) for s in sources]]
    if parallel:
        parallel = locate_parallel(parallel)
        decides.append(fingerprint(parallel))
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    folder = Path("data") / f"{label(corpus)[:60]}-{vocab}-{digest[:8]}"
    was_there = folder.exists()
    if was_there:
        try:
            return load(folder)
        except BadInput as error:
            print(f"{error}: preparing it again", flush=True)

    # make it under another name, and give it its own once it is whole
    folder.parent.mkdir(exist_ok=True)
    remove_leftovers(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=PREPARING + folder.name + "-", dir=folder.parent))
    aside = temporary.with_name(temporary.name + "-old")
    held = lock(temporary, wait=True)  # remove_leftovers of another process may just look at it
    try:
        build(temporary, corpus, sources, vocab_size, tokenizer, parallel)
        if was_there:
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder, aside)
        # it fails if another process has just put its own copy there, as good as this one
        with contextlib.suppress(OSError):
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        unlock(held)
    return load(folder)


def remove_leftovers(parent):
    """Remove the folders of processes that were killed while they prepared a corpus.

    The folder of a living one is locked, and empty until it is.
    """
    for folder in parent.glob(PREPARING + "*"):
        try:
            held = lock(folder)
        except (BlockingIOError, FileNotFoundError):  # in use, or it has just got its own name
            continue
        if held is not None:
            with contextlib.suppress(FileNotFoundError):
                if any(folder.iterdir()):
                    shutil.rmtree(folder, ignore_errors=True)
            unlock(held)


def load(folder):
    """Return the manifest of a prepared corpus, with its "folder".

    Raises BadInput unless every file is just as it was written.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        bad = damaged(folder, manifest["files"])
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder} is not a whole prepared corpus ({error})") from error
    if bad or manifest["format"] != FORMAT:
        what = ", ".join(bad) or "format"
        raise BadInput(f"{folder} is damaged or of another version ({what})")
    return manifest | {"folder": str(folder)}


def damaged(folder, files):
    """The names of those files {name: sha256} that are not what they were, or not there."""
    bad = []
    for name, digest in files.items():
        path = folder / name
        if not path.exists() or file_sha256(path) != digest:
            bad.append(name)
    return bad


def find(files):
    """The manifest of a prepared corpus in data/ that has just these files, or None.

    files: {name: sha256}, as a run keeps them. So a run can be opened when its text has moved.
    """
    for path in sorted(Path("data").glob("[!.]*/manifest.json")):
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if manifest.get("files") == files and not damaged(path.parent, files):
            return manifest | {"folder": str(path.parent)}
    return None


def tokens(manifest, split):
    """The ids of one split ("train", "val", "test"): a read-only memory map [number of tokens].

    uint16, or uint32 for more than 65,536 ids. Documents are joined by end-of-text.
    """
    path = Path(manifest["folder"]) / f"{split}.bin"
    return np.memmap(path, dtype=manifest["dtype"], mode="r")


def each_document(manifest, split):
    """Yield (name, ids [n]) of each document of a split, without its end-of-text."""
    ids, start = tokens(manifest, split), 0
    ends = np.flatnonzero(ids == manifest["eot"])
    for name, end in zip(manifest["documents"][split], ends):
        yield name, ids[start:end]
        start = end + 1


def expect_random_reads(ids):
    """Tell the system that a memory map will be read here and there.

    Else it reads on for 128 kB after each place, in the hope of saving time: on a text of gigabytes
    a batch then takes 60 times as long (bench.py --scale).
    """
    mapped = getattr(ids, "_mmap", None)  # an array in memory has none
    if mapped is not None and hasattr(mmap, "MADV_RANDOM"):  # Windows has no such advice
        mapped.madvise(mmap.MADV_RANDOM)


def count_tokens(ids, vocab_size):
    """How often each id occurs in a token stream, int64 [V], a piece of it at a time."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for i in range(0, len(ids), 1 << 24):
        counts += np.bincount(ids[i:i + (1 << 24)], minlength=vocab_size)
    return counts


def file_sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------
# From text to ids

def build(folder, corpus, sources, vocab_size, tokenizer, parallel):
    """Read, split, learn the merges, encode: all files of a prepared corpus, in an empty folder.

    Raises BadInput for a corpus that is empty or too small.
    """
    start = time.time()

    def say(text):
        print(f"{corpus}: {text}  [{time.time() - start:.0f} s]", flush=True)

    # the text goes to disk, because it is read twice and may be larger than memory
    spool_path = folder / "text"
    with open(spool_path, "w+b") as spool:
        sketches = held_out_sketches(parallel) if parallel else []
        kept, dropped, kept_out, passed_over = gather(sources, spool, sketches)
        if passed_over:
            say(f"passed over: {in_words(passed_over)}")
        if not kept:
            raise BadInput(f"corpus {corpus} is empty: no text in it")
        megabytes = sum(document.size for document in kept) / 1e6
        names = f": {', '.join(dropped)}" if dropped else ""
        say(f"{len(kept)} documents, {megabytes:.1f} MB; "
            f"{len(dropped)} dropped that repeat most of an earlier one{names}")
        if parallel:
            names = f": {', '.join(kept_out)}" if kept_out else ""
            say(f"{plural(len(kept_out), 'document')} kept out, which the parallel text has{names}")

        parts = split_documents(cut(spool, kept))
        if not all(parts.values()):
            raise BadInput(f"corpus {corpus} is too small to be split into train, val and test")
        n_bytes = {split: sum(d.size for d in part) for split, part in parts.items()}
        shares = [f"{split} {n / megabytes / 1e4:.1f} %" for split, n in n_bytes.items()]
        say(f"{', '.join(shares)} of the text")

        # merges are learned on training text alone
        if tokenizer == "bpe":
            counts = count_words(spool, parts["train"])
            ranks = learn_bpe(counts, vocab_size)
            save_ranks(folder / "tokenizer.tiktoken", ranks)
            say(f"learned {len(ranks) - 256:,} merges from {len(counts):,} different words")

        enc = encoder({"tokenizer": tokenizer, "folder": folder})
        dtype = np.dtype("uint16" if enc.n_vocab <= 1 << 16 else "uint32")
        n_tokens = {}
        for split, part in parts.items():
            n_tokens[split] = encode(spool, part, enc, dtype, folder / f"{split}.bin")

        digest = text_sha256(spool, kept)

    spool_path.unlink()
    more = {"kept_out": kept_out} if parallel else {}
    write_json(folder / "manifest.json", more | {
        "format": FORMAT,
        "corpus": corpus,
        "sha256": digest,
        "tokenizer": tokenizer,
        "vocab_size": enc.n_vocab,
        "eot": enc.eot_token,
        "dtype": dtype.name,
        "tokens": n_tokens,
        "bytes": n_bytes,
        "dropped": dropped,
        "documents": {split: [d.name for d in part] for split, part in parts.items()},
        "sources": {source: source_sha256(source) for source in sources},
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    })
    per_token = sum(n_bytes.values()) / sum(n_tokens.values())
    say(f"{sum(n_tokens.values()):,} tokens of {per_token:.2f} bytes")


def read_text(spool, document):
    """The text of one document."""
    spool.seek(document.offset)
    return spool.read(document.size).decode()


def text_sha256(spool, kept):
    """The hash of all documents, one after another."""
    digest = hashlib.sha256()
    for document in kept:
        spool.seek(document.offset)
        digest.update(spool.read(document.size))
    return digest.hexdigest()


def count_words(spool, part):
    """{word as bytes: how often it occurs} in the first 256 MB of the documents of `part`.

    Of what is longer than a word can be, a megabyte of base64 for one, only the start counts.
    """
    found, budget = Counter(), BPE_TEXT
    for document in part:
        if budget > 0:
            found.update(regex.findall(PATTERN, read_text(spool, document)))
            budget -= document.size
    counts = Counter()
    for word, n in found.items():
        counts[word[:LONGEST].encode()] += n
    return counts


def encode(spool, part, enc, dtype, path):
    """Write the ids of all documents of `part` to a file, each with its end-of-text.

    Returns how many ids there are. Raises BadInput for a text that the tokenizer cannot take.
    """
    threads, total = encode_threads(), sum(document.size for document in part)
    done = 0  # bytes
    with ThreadPoolExecutor(threads) as pool, open(path, "wb") as f:
        # a few documents at a time, one a thread, so that few are held at once
        for i in range(0, len(part), threads):
            some = part[i:i + threads]
            names = [document.name for document in some]
            texts = [read_text(spool, document) for document in some]
            for ids in pool.map(partial(encode_document, enc), names, texts):
                f.write(ids.astype(dtype).tobytes())
            done += sum(document.size for document in some)
            progress(f"encoding {path.stem}: {done / total:.0%}")
        progress("")
        return f.tell() // dtype.itemsize


def encode_threads():
    return min(8, os.cpu_count())


def encode_document(enc, name, text):
    """The ids of one document, with its end-of-text. Raises BadInput, as encode does."""
    try:
        ids = enc.encode_to_numpy(text, disallowed_special=())
    except ValueError as error:  # tiktoken's own patterns fail on a million blanks
        raise BadInput(f"{enc.name} cannot encode {name} ({error}): "
                       "--tokenizer=bpe can") from error
    return np.append(ids, enc.eot_token)


def read_tokens(source, enc):
    """The ids of any text, int64 [n]: of all its documents, each with its end-of-text, as in a
    split; none is dropped or cut.

    source: what --corpus may be. Says what was read. Raises BadInput.
    """
    parts, passed_over = [], Counter()
    for path in locate(source):
        for name, text in documents(path, passed_over):
            parts.append(encode_document(enc, name, text).astype(np.int64))
    if not parts:
        raise BadInput(f"the text {source} is empty")
    ids = np.concatenate(parts)
    over = f"; passed over: {in_words(passed_over)}" if passed_over else ""
    print(f"{source}: {plural(len(parts), 'document')}, {len(ids):,} tokens, in place of the test "
          f"split{over}")
    return ids


def source_sha256(source):
    """The hash of a source that is one file; a word for one that is not."""
    if source == "docs":
        return "installed packages"
    if Path(source).is_dir():
        return "a folder"
    return file_sha256(source)


# ------------------------------------------------------------------------------------------------
# Documents: repeats dropped, split into train, val and test

def held_out_sketches(parallel):
    """The sketch of each document of a parallel text, in all its languages."""
    sketches = []
    for versions in parallel_texts(parallel):
        sketches += [sketch(text) for text in versions.values()]
    return sketches


def held_out(mine, sketches):
    """Whether a document, of which `mine` is the sketch, is an edition of one that is held out."""
    return any(overlap(mine, other) > 0.5 for other in sketches)


def gather(sources, spool, sketches_held_out=()):
    """Copy the documents of all sources to the spool, and find those that repeat an earlier one.

    Returns ([Document], [names of those that repeat], [names of those kept out], {ending: files
    passed over}). One that shares more than half of its sketch with that of any that is held out
    is kept out: it is not copied.
    """
    found, kept_out, passed_over = [], [], Counter()
    sketches, starts = array("I"), [0]  # all sketches in a row, and where each begins
    for source in sources:
        # closed at once if a signal comes: those who read for us are not to go on
        with contextlib.closing(documents(source, passed_over)) as texts:
            for name, text in texts:
                mine, block = sketch(text), text.encode()
                if held_out(mine, sketches_held_out):
                    kept_out.append(name)
                elif block.strip():
                    found.append(Document(name, spool.tell(), len(block)))
                    spool.write(block)
                    sketches.extend(mine)
                    starts.append(len(sketches))
                    progress(f"reading: {len(found):,} documents, {spool.tell() / 1e6:,.0f} MB")
    progress("")
    kept, dropped = drop_repeats(found, sketches, starts)
    return kept, dropped, kept_out, passed_over


def drop_repeats(found, sketches, starts):
    """([Document] that are new, [names of those that repeat an earlier one]).

    Two editions of one novel must not land in two splits: a document goes if its sketch, a sample
    of its sentences, shares more than half with that of an earlier document, the one with which it
    shares most. sketches: array of the hashes of all, starts: where in it each document's begin.

    A corpus of gigabytes in small files has tens of millions of hashes, so they stand in arrays,
    4 bytes each: in sets and a dict they would take more than the text.
    """
    kept, dropped = [], []
    hashes = np.unique(sketches)
    owner = np.full(len(hashes), -1, dtype=np.int32)  # of each: the first document that has it
    for i, document in enumerate(found):
        mine = sketches[starts[i]:starts[i + 1]]
        places = np.searchsorted(hashes, mine)
        owners = owner[places]

        shared = Counter(owners[owners >= 0].tolist())
        if shared:
            rival, _ = shared.most_common(1)[0]
            other = sketches[starts[rival]:starts[rival + 1]]
            if overlap(set(mine), set(other)) > 0.5:
                dropped.append(document.name)
                continue

        owner[places[owners < 0]] = i
        kept.append(document)
    return kept, dropped


def cut(spool, entries):
    """Cut each document that is larger than a sixteenth of all text into consecutive small ones.

    For whole documents can only be split 90/5/5 where there are many and none is large. A cut is at
    the end of a line where there is one near, else at a space, else between two characters (bytes
    80 to bf go on with a character in UTF-8).
    """
    total = sum(document.size for document in entries)
    pieces = []
    for document in entries:
        if document.size <= LARGEST * total:
            pieces.append(document)
            continue
        n = math.ceil(document.size / math.ceil(PIECE * total))
        name, offset, size = document
        marks = [offset]
        for i in range(1, n):
            position = spool.seek(offset + i * size // n)
            near = spool.read(min(1000, max(size // n, 4)))
            found = (re.search(rb"\n", near) or re.search(rb"\s", near)
                     or re.search(rb"(?![\x80-\xbf])", near))
            marks.append(max(marks[-1], min(position + found.end(), offset + size)))
        marks.append(offset + size)

        for i, (start, end) in enumerate(zip(marks, marks[1:])):
            if end > start:
                pieces.append(Document(f"{name}/{i}", start, end - start))
    return pieces


def split_documents(entries):
    """{"train": [Document], "val": ..., "test": ...}: whole documents, in an order drawn once.

    val and test take a document if that brings them nearer to their share of the bytes; train has
    the rest.
    """
    rest = random.Random(0).sample(entries, len(entries))
    total = sum(document.size for document in entries)
    parts = {}
    for split in ("val", "test"):
        room, parts[split], left = SPLITS[split] * total, [], []
        for document in rest:
            if document.size < 2 * room:
                room -= document.size
                parts[split].append(document)
            else:
                left.append(document)
        rest = left
    return {"train": rest, **parts}


# ------------------------------------------------------------------------------------------------
# The command

def split_name(corpus):
    """The name that is given to a language, and its corpus: "fra=a.txt" -> ("fra", "a.txt").

    Without a name: "a.txt" -> (None, "a.txt").
    """
    found = re.fullmatch("([a-z]{2,3})=(.+)", corpus)
    return found.groups() if found else (None, corpus)


def label(corpus):
    """A name for a corpus that a folder may have: "a/my novels.txt,docs" -> "my_novels_docs"."""
    stems = [Path(part).stem for part in corpus.split(",")]
    return re.sub(r"[^\w.-]+", "_", "+".join(stems))


def add_options(parser, vocab_size=VOCAB_SIZE):
    """The options that every script which reads a corpus has."""
    parser.group("text")
    parser.option("--corpus", "docs", "what to train on: docs (docstrings of the installed "
                  "packages, no network), eltec-eng, eltec-fra, 100_english_novels (downloaded "
                  "once), a path (.txt, TEI .xml, .txt.gz, .txt.xz, .zip or a folder), a URL, or "
                  "several, comma-separated. Given twice or more: real languages, a corpus each, "
                  "named after it or as in --corpus=eng=PATH", several=True)
    parser.option("--parallel", None, "a parallel text (see align.py) that is to be the test: its "
                  "documents are kept out of the corpus (default: none)")
    parser.option("--vocab_size", vocab_size, "V, ids of one language, the 256 bytes and "
                  "end-of-text included; 257 is plain bytes", int)
    parser.option("--tokenizer", "bpe", "bpe, learned from the corpus, or one of tiktoken's own, "
                  "e.g. gpt2 (downloaded once)")


def main():
    parser = Parser(__doc__)
    add_options(parser)
    args, given = parser.parse()
    if isinstance(args.corpus, list):
        raise BadInput("data.py prepares one --corpus at a time; train.py takes several")
    manifest = prepare(args.corpus, args.vocab_size, args.tokenizer, args.parallel)

    for split in SPLITS:
        names = manifest["documents"][split]
        more = " ..." if len(names) > 6 else ""
        print(f"{split:5} {manifest['tokens'][split]:12,} tokens  {len(names):4} documents: "
              f"{', '.join(names[:6])}{more}")

    enc = encoder(manifest)
    some = [enc.decode([int(i)]) for i in tokens(manifest, "val")[:40]]
    print("the first validation tokens:", "|".join(some).replace("\n", "\\n"))
    options = shlex.join(as_options(given))
    print(f"in {manifest['folder']}; next: python clone.py {options}".rstrip())


if __name__ == "__main__":
    run_main(main)
