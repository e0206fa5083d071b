"""Text -> documents -> BPE -> train.bin, val.bin, test.bin (memory-mapped token ids) in data/NAME/.

    python data.py                                        # the docstrings of the installed packages, no network needed
    python data.py --corpus=eltec-eng --vocab_size=4096   # 100 English novels, downloaded once
    python data.py --corpus=my_novels/                    # your own .txt or TEI .xml: a file, a folder, a .zip, .gz, .xz

A prepared corpus is a folder of five files: tokenizer.tiktoken (the merges), three .bin files of ids, and manifest.json, which says
what is in them. The folder is made under another name and renamed when whole, so two processes can prepare the same one at once.
"""
import ast, contextlib, errno, gzip, hashlib, heapq, http.client, importlib.metadata, itertools, json, lzma, multiprocessing, os
import random, re, shutil, signal, tempfile, time, urllib.request, zipfile, zlib
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bpe import PATTERN, encoder, learn_bpe, save_ranks
from cli import BadInput, Parser, progress, run, write, write_json

SPLITS = {"train": 0.90, "val": 0.05, "test": 0.05}
PIECE = 16 << 20  # bytes of one file held at a time: a larger one becomes several documents
BPE_TEXT = 256 << 20  # bytes of training text that the merges are learned from
FORMAT = 1  # raise it whenever the same text would give other ids, and old caches are rebuilt
GITHUB = "https://github.com/"
NAMED = {
    "eltec-eng": GITHUB + "COST-ELTeC/ELTeC-eng/archive/refs/tags/v1.0.1.zip",
    "eltec-fra": GITHUB + "COST-ELTeC/ELTeC-fra/archive/refs/tags/v1.0.1.zip",
    "100_english_novels": GITHUB + "computationalstylistics/100_english_novels/archive/143e601875d70e195f2cc5ebd8b034609271194d.zip",
}

# ---------------------------------------------------------------------------------------------------------------------
# Corpora: a name, a path or an address -> (document name, text), one after the other

def documents(source):
    """Yield (name, text) for each document of one source: "docs" or a path. Raises BadInput for what is not text."""
    if source == "docs":
        yield from docstrings()
        return
    for path in files(Path(source)):
        try:
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    for member in sorted(archive.namelist()):
                        if member.endswith((".txt", ".xml")):
                            with archive.open(member) as stream:
                                yield from read(Path(member), stream)
            else:
                opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
                with opener(path, "rb") as stream:
                    yield from read(path.with_suffix("") if opener is not open else path, stream)
        except (zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise BadInput(f"{path} is damaged ({error}): fetch it again")


def files(path):
    """The readable files at a path, itself or below it, in a fixed order."""
    kinds = (".txt", ".xml", ".zip", ".gz", ".xz")
    if not path.exists():
        raise BadInput(f"corpus {str(path)!r} is neither a file nor one of docs, {', '.join(NAMED)} (docs and files need no network)")
    found = sorted(p for p in path.rglob("*") if p.suffix in kinds and p.is_file()) if path.is_dir() else [path]
    if not found or found[0].suffix not in kinds:
        raise BadInput(f"corpus {path} is not text that can be read: expected {', '.join(kinds)}, or a folder of such files")
    return found


def read(path, stream):
    """Yield (name, text) from one open binary file, in pieces of at most about 16 MB so that memory stays bounded."""
    if path.suffix == ".xml":
        try:
            yield path.stem, tei(stream)
        except ET.ParseError as error:
            raise BadInput(f"{path} is not well-formed XML: {error}")
        return
    for i in itertools.count():
        block = stream.read(PIECE)
        block += stream.readline() if len(block) == PIECE else b""
        if not block:
            return
        try:
            text = block.decode("utf-8-sig" if i == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 text (byte {i * PIECE + error.start}): convert it, e.g. with iconv -t UTF-8")
        if "\0" in text:
            raise BadInput(f"{path} is not text: it has NUL bytes")
        yield f"{path.stem}#{i}" if i else path.stem, text.replace("\r\n", "\n")


def tei(stream):
    """The running text of a TEI XML novel: every <p>, <l> and <head> under <body>, one a line."""
    def lines(element):
        for child in element:
            if str(child.tag).rpartition("}")[2] in ("p", "l", "head"):
                yield " ".join("".join(child.itertext()).split())
            else:
                yield from lines(child)
    body = ET.parse(stream).find(".//{*}body")
    return "\n".join(filter(None, lines(body))) if body is not None else ""


def packages():
    """{name: distribution} of the installed packages that requirements.txt names and of all that they depend on."""
    todo = re.findall(r"^[\w.-]+", Path(__file__).with_name("requirements.txt").read_text(), re.M)
    found = {}
    for name in todo:  # grows as it goes
        key = re.sub(r"[-_.]+", "-", name).lower()
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if key not in found:
                found[key] = importlib.metadata.distribution(key)
                todo += [re.match(r"[\w.-]+", r)[0] for r in found[key].requires or [] if "extra ==" not in r]
    return dict(sorted(found.items()))


def docstrings():
    """Yield (package, its docstrings), each docstring once: the English that is on every disk with requirements.txt installed."""
    jobs = [(name, str(f.locate())) for name, d in packages().items() for f in d.files or [] if f.suffix == ".py"]
    seen = set()
    context = multiprocessing.get_context("spawn")  # torch has threads, and they do not fork
    with ProcessPoolExecutor(mp_context=context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        results = zip(jobs, pool.map(file_docstrings, [path for _, path in jobs], chunksize=64))
        for name, group in itertools.groupby(results, lambda r: r[0][0]):
            texts = [t for _, found in group for t in found if not (t in seen or seen.add(t))]
            yield name, "\n\n".join(texts)


def file_docstrings(path):
    """The docstrings of one Python file, read with ast and never imported; [] for a file that does not parse."""
    def visit(node):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            yield text
        for field in ("body", "orelse", "finalbody"):  # statements only: an expression holds no docstring
            for child in getattr(node, field, []) if not isinstance(node, (ast.Lambda, ast.IfExp)) else []:
                if isinstance(child, ast.stmt):
                    yield from visit(child)
    try:
        source = Path(path).read_bytes()
        return [t for t in visit(ast.parse(source)) if len(t) > 20] if b'"""' in source or b"'''" in source else []
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []


def download(url):
    """Fetch a URL once to data/downloads/, with progress; return its path. Its sha256 is kept beside it and in the manifest."""
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "corpus.txt"
    path = Path("data/downloads") / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        digest, done = hashlib.sha256(), 0
        with urllib.request.urlopen(url, timeout=30) as response, write(path) as f:
            size = int(response.headers.get("Content-Length") or 0)
            while block := response.read(1 << 18):
                f.write(block)
                digest.update(block)
                done += len(block)
                progress(f"downloading {url}: {done / 1e6:.1f}{f' of {size / 1e6:.1f}' if size else ''} MB")
            progress("")
            if done < size:
                raise OSError(f"the connection closed after {done} of {size} bytes")
            if path.suffix == ".zip":
                f.flush()
                if bad := zipfile.ZipFile(f.name).testzip():
                    raise OSError(f"{bad} in the archive is damaged")
    except (OSError, ValueError, http.client.HTTPException, zipfile.BadZipFile) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise BadInput(f"could not download {url} ({error}): --corpus=docs and --corpus=PATH need no network")
    write_json(path.with_name(path.name + ".json"), {"url": url, "sha256": digest.hexdigest(), "bytes": done})
    return path


def fingerprint(source):
    """What tells whether a source has changed, without reading it: package versions, or names, sizes and times of files."""
    if source == "docs":
        return [f"{name} {d.version}" for name, d in packages().items()]
    return [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files(Path(source))]


def sketch(text, size=256):
    """The `size` smallest hashes of a text's sentences (letters only): a sample that two editions of one novel share."""
    letters = (re.sub(r"[\W\d_]+", "", s).lower() for s in re.split(r"[.!?]", text))
    return set(heapq.nsmallest(size, {zlib.crc32(s.encode()) for s in letters if len(s) >= 20}))


def overlap(a, b):
    """The share of the smaller sketch's sentences that the other has too, below the limit to which both are complete: 0..1."""
    limit = min(max(a), max(b))
    a, b = ({h for h in s if h <= limit} for s in (a, b))
    return len(a & b) / min(len(a), len(b))


# ---------------------------------------------------------------------------------------------------------------------
# The cache: everything a run needs of a corpus, in one folder

def prepare(corpus="docs", vocab_size=2048, tokenizer="bpe"):
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
    stem = re.sub(r"[^\w.-]+", "_", "+".join(Path(part).stem for part in corpus.split(",")))[:60]
    folder = Path("data") / f"{stem}-{vocab}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
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


def add_options(parser, vocab_size=2048):
    """The three options that every script which reads a corpus has."""
    parser.option("--corpus", "docs", "what to train on: docs (docstrings of the installed packages, no network), eltec-eng, eltec-fra, "
                  "100_english_novels (downloaded once), a path (.txt, TEI .xml, .zip, .gz, .xz or a folder), a URL, or several, comma-separated")
    parser.option("--vocab_size", vocab_size, "V, ids of one language, the 256 bytes and end-of-text included; 257 is plain bytes", int)
    parser.option("--tokenizer", "bpe", "bpe, learned from the corpus, or one of tiktoken's own, e.g. gpt2 (downloaded once)")


if __name__ == "__main__":
    run(main)
