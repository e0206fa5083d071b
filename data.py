"""Text -> documents -> BPE -> train.bin, val.bin, test.bin (memory-mapped token ids) in data/NAME/.

    python data.py                                        # the docstrings of the installed packages, no network needed
    python data.py --corpus=eltec-eng --vocab_size=4096   # 100 English novels, downloaded once
    python data.py --corpus=my_novels/                    # your own .txt or TEI .xml: a file, a folder, a .zip, .gz, .xz

A prepared corpus is a folder of five files: tokenizer.tiktoken (the merges), three .bin files of ids, and manifest.json, which says
what is in them. The folder is made under another name and renamed when whole, so two processes can prepare the same one at once.
"""
import contextlib, hashlib, json, os, random, re, shutil, tempfile, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bpe import PATTERN, encoder, learn_bpe, save_ranks
from cli import BadInput, Parser, run, write_json
from corpora import NAMED, documents, download, fingerprint, overlap, sketch

SPLITS = {"train": 0.90, "val": 0.05, "test": 0.05}
BPE_TEXT = 256 << 20  # bytes of training text that the merges are learned from
FORMAT = 1  # raise it whenever the same text would give other ids, and old caches are rebuilt


def prepare(corpus="docs", vocab_size=512, tokenizer="bpe"):
    """Return the manifest (a dict) of a prepared corpus, made now unless a whole and undamaged one is there already.

    corpus: comma-separated names, paths or addresses. vocab_size: ids of one language, end-of-text included; a tokenizer of tiktoken's own
    brings its own size. Text is read once and encoded document by document; memory stays bounded. Raises BadInput."""
    if tokenizer == "bpe" and vocab_size < 257:
        raise BadInput(f"--vocab_size={vocab_size} is too small: 256 bytes and end-of-text make 257")
    sources = []
    for part in corpus.split(","):
        url = NAMED.get(part, part)
        sources.append(str(download(url)) if url.startswith(("http://", "https://")) else part)
    vocab = vocab_size if tokenizer == "bpe" else tokenizer
    key = json.dumps([FORMAT, PATTERN, SPLITS, vocab, [fingerprint(s) for s in sources]])
    folder = Path("data") / f"{label(corpus)[:60]}-{vocab}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if folder.exists():
        try:
            return load(folder)
        except BadInput as error:
            print(f"{error}: preparing it again", flush=True)

    folder.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(temporary, corpus, sources, vocab_size, tokenizer)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, temporary.with_name(temporary.name + "-old"))  # what is there is damaged
        with contextlib.suppress(OSError):  # another process has just put its own copy there, as good as this one
            os.replace(temporary, folder)
    finally:
        for leftover in (temporary, temporary.with_name(temporary.name + "-old")):
            shutil.rmtree(leftover, ignore_errors=True)
    return load(folder)


def load(folder):
    """Return the manifest of a prepared corpus, with its "folder". Raises BadInput unless every file is just as it was written."""
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        bad = [name for name, digest in manifest["files"].items() if file_sha256(Path(folder) / name) != digest]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder} is not a whole prepared corpus ({error})")
    if bad or manifest["format"] != FORMAT:
        raise BadInput(f"{folder} is damaged or of another version ({', '.join(bad) or 'format'})")
    return manifest | {"folder": str(folder)}


def tokens(manifest, split):
    """The ids of one split ("train", "val", "test") as a read-only memory map, uint16 or uint32 [number of tokens]."""
    return np.memmap(Path(manifest["folder"]) / f"{split}.bin", dtype=manifest["dtype"], mode="r")


def file_sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def build(folder, corpus, sources, vocab_size, tokenizer):
    """Read, split, learn the merges on the training text, encode: write all files of a prepared corpus into an empty folder."""
    start = time.time()
    say = lambda text: print(f"{corpus}: {text}  [{time.time() - start:.0f} s]", flush=True)
    with open(folder / "text", "w+b") as spool:  # on disk, because it is read twice and may be larger than memory
        entries, dropped = gather(sources, spool)
        if not entries:
            raise BadInput(f"corpus {corpus} is empty: no text in it")
        repeats = f"{len(dropped)} dropped that repeat most of an earlier one{': ' * bool(dropped)}{', '.join(dropped)}"
        say(f"{len(entries)} documents, {sum(size for *_, size in entries) / 1e6:.1f} MB; {repeats}")
        parts = split_documents(entries if len(entries) > 2 else cut(spool, entries))
        if not all(parts.values()):
            raise BadInput(f"corpus {corpus} is too small to be split into train, val and test")
        text = lambda entry: (spool.seek(entry[1]), spool.read(entry[2]).decode())[1]
        if tokenizer == "bpe":
            counts, budget = Counter(), BPE_TEXT
            for entry in parts["train"]:
                if budget > 0:
                    counts.update(re.findall(PATTERN, text(entry)))
                    budget -= entry[2]
            ranks = learn_bpe({word.encode(): n for word, n in counts.items()}, vocab_size)
            save_ranks(folder / "tokenizer.tiktoken", ranks)
            say(f"learned {len(ranks) - 256:,} merges from {len(counts):,} different words")
        enc = encoder({"tokenizer": tokenizer, "folder": folder})
        dtype = np.dtype("uint16" if enc.n_vocab <= 1 << 16 else "uint32")
        n_tokens, threads = {}, min(8, os.cpu_count())
        with ThreadPoolExecutor(threads) as pool:
            for split, part in parts.items():
                with open(folder / f"{split}.bin", "wb") as f:
                    for i in range(0, len(part), threads):  # a few documents at a time, so that few are held at once
                        texts = [text(entry) for entry in part[i:i + threads]]
                        for ids in pool.map(lambda t: enc.encode_to_numpy(t, disallowed_special=()), texts):
                            f.write(np.append(ids, enc.eot_token).astype(dtype).tobytes())
                    n_tokens[split] = f.tell() // dtype.itemsize
    digest = file_sha256(folder / "text")
    (folder / "text").unlink()
    n_bytes = {split: sum(size for *_, size in part) for split, part in parts.items()}
    write_json(folder / "manifest.json", {
        "format": FORMAT, "corpus": corpus, "sha256": digest, "tokenizer": tokenizer, "vocab_size": enc.n_vocab, "eot": enc.eot_token,
        "dtype": dtype.name, "tokens": n_tokens, "bytes": n_bytes, "dropped": dropped,
        "documents": {split: [name for name, *_ in part] for split, part in parts.items()},
        "sources": {s: "installed packages" if s == "docs" or Path(s).is_dir() else file_sha256(s) for s in sources},
        "files": {p.name: file_sha256(p) for p in sorted(folder.iterdir())}})
    say(f"{sum(n_tokens.values()):,} tokens of {sum(n_bytes.values()) / sum(n_tokens.values()):.2f} bytes")


def gather(sources, spool):
    """Copy every document to the spool, but those that repeat most of an earlier one: ([(name, offset, bytes)], [names dropped])."""
    entries, dropped, sketches, owner = [], [], [], {}  # owner: sentence hash -> the first sketch it is in
    for source in sources:
        for name, text in documents(source):
            mine, block = sketch(text), text.encode()
            rivals = Counter(owner[h] for h in mine if h in owner).most_common(1)
            if rivals and overlap(mine, sketches[rivals[0][0]]) > 0.5:
                dropped.append(name)
            elif block.strip():
                for h in mine:
                    owner.setdefault(h, len(sketches))
                sketches.append(mine)
                entries.append((name, spool.tell(), len(block)))
                spool.write(block)
    return entries, dropped


def cut(spool, entries, n=20):
    """One or two documents cannot fill three splits: cut each into n consecutive ones, at line ends where there are any."""
    pieces = []
    for name, offset, size in entries:
        marks = [offset]
        for i in range(1, n):
            position = spool.seek(offset + i * size // n)
            window = spool.read(1000)
            found = re.search(rb"\n", window) or re.search(rb"\s", window) or re.search(rb"(?![\x80-\xbf])", window)
            marks.append(min(position + found.end(), offset + size))
        marks.append(offset + size)
        pieces += [(f"{name}/{i}", a, b - a) for i, (a, b) in enumerate(zip(marks, marks[1:])) if b > a]
    return pieces


def split_documents(entries):
    """{"train": ..., "val": ..., "test": ...}: whole documents, in seeded order; val and test take what fits their share of the bytes."""
    rest = random.Random(0).sample(entries, len(entries))
    total, parts = sum(size for *_, size in entries), {}
    for split in ("val", "test"):
        room, parts[split] = SPLITS[split] * total, []
        for entry in list(rest):
            if entry[2] <= room:
                room -= entry[2]
                parts[split].append(entry)
        if not parts[split] and len(rest) > 1:  # few and large documents: the smallest
            parts[split] = [min(rest, key=lambda entry: entry[2])]
        rest = [entry for entry in rest if entry not in parts[split]]
    return {"train": rest, **parts}


def main():
    parser = Parser(__doc__)
    add_options(parser)
    args, _ = parser.parse()
    manifest = prepare(args.corpus, args.vocab_size, args.tokenizer)
    enc = encoder(manifest)
    for split in SPLITS:
        names = manifest["documents"][split]
        print(f"{split:5} {manifest['tokens'][split]:12,} tokens  {len(names):4} documents: {', '.join(names[:6])}{' ...' * (len(names) > 6)}")
    some = tokens(manifest, "val")[:40]
    print("the first validation tokens:", "|".join(enc.decode([int(i)]) for i in some).replace("\n", "\\n"))
    print(f"in {manifest['folder']}; next: python clone.py --corpus={args.corpus}")


def label(corpus):
    """A name for a corpus that a folder may have."""
    return re.sub(r"[^\w.-]+", "_", "+".join(Path(part).stem for part in corpus.split(",")))


def add_options(parser, vocab_size=512, default=""):
    """The three options that every script which reads a corpus has; default: what to say of a vocab_size that depends."""
    parser.option("--corpus", "docs", "what to train on: docs (docstrings of the installed packages, no network), eltec-eng, eltec-fra, "
                  "100_english_novels (downloaded once), a path (.txt, TEI .xml, .zip, .gz, .xz or a folder), a URL, or several, comma-separated")
    parser.option("--vocab_size", vocab_size, f"V, ids of one language, the 256 bytes and end-of-text included; 257 is plain bytes{default}", int)
    parser.option("--tokenizer", "bpe", "bpe, learned from the corpus, or one of tiktoken's own, e.g. gpt2 (downloaded once)")


if __name__ == "__main__":
    run(main)
