"""A corpus: a name, a path or an address -> (document name, text), one document after the other, never more than one held at a time.

    docs                  docstrings of the installed packages: English that is on every disk, no network needed
    eltec-eng, ...        named collections of novels, downloaded once
    PATH or URL           .txt or TEI .xml, plain, .gz, .xz, in a .zip or in a folder
"""
import ast, contextlib, errno, gzip, hashlib, heapq, http.client, importlib.metadata, itertools, lzma, multiprocessing, re, signal
import urllib.request, zipfile, zlib
import xml.etree.ElementTree as ET
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cli import BadInput, progress, write, write_json

PIECE = 16 << 20  # bytes of one file held at a time: a larger one becomes several documents
GITHUB = "https://github.com/"
NAMED = {
    "eltec-eng": GITHUB + "COST-ELTeC/ELTeC-eng/archive/refs/tags/v1.0.1.zip",
    "eltec-fra": GITHUB + "COST-ELTeC/ELTeC-fra/archive/refs/tags/v1.0.1.zip",
    "100_english_novels": GITHUB + "computationalstylistics/100_english_novels/archive/143e601875d70e195f2cc5ebd8b034609271194d.zip",
}


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
                        if member.endswith((".txt", ".xml")) and not Path(member).name.startswith("."):
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
    found = sorted(p for p in path.rglob("*") if p.suffix in kinds and p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
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
