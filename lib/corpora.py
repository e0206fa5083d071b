"""A corpus: a name, a path or an address -> (document name, text), one document after the other.

    docs              docstrings of the installed packages: English that is on every disk
    eltec-eng, ...    named collections of novels, downloaded once
    PATH or URL       .txt or TEI .xml: plain, .gz, .xz, in a .zip, or in a folder

Never more than one document is held at a time, so a corpus may be larger than memory.
"""
import ast
import errno
import gzip
import hashlib
import heapq
import http.client
import importlib.metadata
import itertools
import lzma
import multiprocessing
import re
import signal
import urllib.request
import xml.etree.ElementTree as ET
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lib.cli import BadInput, progress, write, write_json

# Bytes of one file that are held at a time: a larger file becomes several documents.
PIECE = 16 << 20

# The files that can be read. In a .gz or .xz there is one file, of text or XML.
KINDS = (".txt", ".xml", ".zip", ".gz", ".xz")

# What the readers of archives raise where one is damaged or cut off.
DAMAGED = (zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)

# Each name stands for one fixed version, so that it means the same text tomorrow.
GITHUB = "https://github.com/"
NAMED = {
    "eltec-eng": GITHUB + "COST-ELTeC/ELTeC-eng/archive/refs/tags/v1.0.1.zip",
    "eltec-fra": GITHUB + "COST-ELTeC/ELTeC-fra/archive/refs/tags/v1.0.1.zip",
    "100_english_novels": (
        GITHUB + "computationalstylistics/100_english_novels/archive/"
        "143e601875d70e195f2cc5ebd8b034609271194d.zip"
    ),
}


# ------------------------------------------------------------------------------------------------
# Files

def documents(source):
    """Yield (name, text) for each document of one source: "docs" or a path.

    Raises BadInput for what is not text.
    """
    if source == "docs":
        yield from docstrings()
        return
    for path in files(Path(source)):
        # A compressed file is read as what its name is without the ending: novel.xml.gz is XML.
        try:
            if path.suffix == ".zip":
                yield from read_zip(path)
            elif path.suffix == ".gz":
                with gzip.open(path, "rb") as stream:
                    yield from read(path.with_suffix(""), stream)
            elif path.suffix == ".xz":
                with lzma.open(path, "rb") as stream:
                    yield from read(path.with_suffix(""), stream)
            else:
                with open(path, "rb") as stream:
                    yield from read(path, stream)
        except DAMAGED as error:
            raise BadInput(f"{path} is damaged ({error}): fetch it again") from error


def files(path):
    """The readable files at a path, itself or all below it, in a fixed order."""
    if not path.exists():
        raise BadInput(
            f"corpus {str(path)!r} is neither a file nor one of docs, {', '.join(NAMED)} "
            "(docs and files need no network)"
        )

    # Sorted, for the order in which a disk lists its files differs from one machine to the next.
    found = []
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = file.name.startswith(".")
            if file.suffix in KINDS and file.is_file() and not hidden:
                found.append(file)
    elif path.suffix in KINDS:
        found.append(path)
    if not found:
        raise BadInput(
            f"corpus {path} is not text that can be read: "
            f"expected {', '.join(KINDS)}, or a folder of such files"
        )
    return found


def read_zip(path):
    """Yield (name, text) from the .txt and .xml files in a zip archive, in order of their names."""
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.namelist()):
            hidden = Path(member).name.startswith(".")  # such as those that macOS puts in
            if member.endswith((".txt", ".xml")) and not hidden:
                with archive.open(member) as stream:
                    yield from read(Path(member), stream)


def read(path, stream):
    """Yield (name, text) from one open binary file; path says what it is called.

    A text file is read in pieces of about 16 MB that end with a line, so that memory stays
    bounded. The first piece has the name of the file, the others are name#1, name#2, ...
    """
    if path.suffix == ".xml":
        try:
            yield path.stem, tei(stream)
        except ET.ParseError as error:
            raise BadInput(f"{path} is not well-formed XML: {error}") from error
        return

    for i in itertools.count():
        # A full piece goes on to the end of its line: no line, and no character, is cut in two.
        block = stream.read(PIECE)
        if len(block) == PIECE:
            block += stream.readline()
        if not block:
            return

        # A byte order mark ("utf-8-sig") can stand at the start of the file, and only there.
        encoding = "utf-8-sig" if i == 0 else "utf-8"
        try:
            text = block.decode(encoding)
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{path} is not UTF-8 text (byte {i * PIECE + error.start}): "
                "convert it, e.g. with iconv -t UTF-8"
            ) from error
        # NUL bytes are valid UTF-8, but stand in programs and pictures, never in a text.
        if "\0" in text:
            raise BadInput(f"{path} is not text: it has NUL bytes")

        name = path.stem if i == 0 else f"{path.stem}#{i}"
        yield name, text.replace("\r\n", "\n")


def tei(stream):
    """The running text of a TEI XML novel: every <p>, <l> and <head> under <body>, one a line."""
    # The header before the body is about the book, not of it. {*}: whatever the namespace.
    body = ET.parse(stream).find(".//{*}body")
    if body is None:
        return ""
    return "\n".join(line for line in tei_lines(body) if line)


def tei_lines(element):
    """Yield the text of each paragraph, line of verse and heading below an XML element."""
    for child in element:
        # "{http://www.tei-c.org/ns/1.0}p" -> "p"
        _, _, tag = child.tag.rpartition("}")

        # A paragraph is one line, with all that is marked up in it. White space only lays the
        # file out. Other elements, such as chapters, are looked into.
        if tag in ("p", "l", "head"):
            words = "".join(child.itertext()).split()
            yield " ".join(words)
        else:
            yield from tei_lines(child)


# ------------------------------------------------------------------------------------------------
# Docstrings

def packages():
    """{name: distribution} of what requirements.txt names and of all that it depends on.

    Packages that are not installed are left out.
    """
    # "torch==2.13.0" -> "torch"
    requirements = Path(__file__).parent.parent / "requirements.txt"
    todo = re.findall(r"^[\w.-]+", requirements.read_text(), re.M)
    found = {}
    while todo:
        # One spelling for each name: Foo_Bar -> foo-bar.
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue

        # What it depends on in turn: "numpy>=2; python_version>'3'" -> "numpy". Extras are
        # dependencies that one has to ask for, and nobody did.
        for requirement in found[name].requires or []:
            if "extra ==" not in requirement:
                todo.append(re.match(r"[\w.-]+", requirement)[0])
    return dict(sorted(found.items()))


def docstrings():
    """Yield (package, its docstrings in one text) for each package; no docstring comes twice."""
    paths = []  # of all Python files, package after package
    n_files = {}  # package -> how many of them are its own
    for package, distribution in packages().items():
        own = [str(file.locate()) for file in distribution.files or [] if file.suffix == ".py"]
        if own:
            paths += own
            n_files[package] = len(own)

    # These are thousands of files, so every core reads some. The processes are spawned because a
    # process with threads, such as torch's, does not fork well. They ignore Ctrl-C, so that it
    # is one process alone that ends the others.
    seen = set()
    with ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        # One list of docstrings a file, in the order of the paths: a package's own come next.
        results = pool.map(file_docstrings, paths, chunksize=64)
        for package, n in n_files.items():
            texts = []
            for found in itertools.islice(results, n):
                for text in found:
                    if text not in seen:
                        seen.add(text)
                        texts.append(text)
            yield package, "\n\n".join(texts)


def file_docstrings(path):
    """The docstrings of one Python file, those of more than 20 characters, in their order.

    The file is parsed and never imported. One that cannot be read or parsed has none: [].
    """
    try:
        # Parsing is what takes the time: leave it out where no docstring can be.
        source = Path(path).read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        return [text for text in node_docstrings(ast.parse(source)) if len(text) > 20]
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []


def node_docstrings(node):
    """Yield the docstring of a module, class or function, then those of what stands in it."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text:
            yield text

    # These fields hold statements, of `if`, `for` and `try` too. Only a statement can have a
    # docstring, so expressions are left out. So are the blocks of `except` and `case`.
    for field in ("body", "orelse", "finalbody"):
        for child in getattr(node, field, []):
            yield from node_docstrings(child)


# ------------------------------------------------------------------------------------------------
# Downloads

def download(url):
    """Fetch a URL once to data/downloads/ and return its path.

    A small JSON file beside it says where it came from, with its sha256 and size in bytes.
    Raises BadInput when it cannot be fetched, or does not arrive whole.
    """
    # Two addresses may end alike: the start of the hash tells their files apart.
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "corpus.txt"
    prefix = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path("data/downloads") / f"{prefix}-{name}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)

    try:
        sha256, size = fetch(url, path)
    except (OSError, ValueError, http.client.HTTPException, zipfile.BadZipFile) as error:
        # A full disk is no fault of the network, and cli.run_main has its own words for it.
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise BadInput(
            f"could not download {url} ({error}): "
            "--corpus=docs and --corpus=PATH need no network"
        ) from error
    write_json(path.with_name(path.name + ".json"), {"url": url, "sha256": sha256, "bytes": size})
    return path


def fetch(url, path):
    """Copy a URL to a path, showing progress; return (sha256 in hex, size in bytes).

    The file is there only once it is whole. Raises OSError when it is not, and what urllib and
    zipfile raise.
    """
    # The hash is taken while the blocks go by, so that the file is not read a second time.
    digest = hashlib.sha256()
    done = 0
    with urllib.request.urlopen(url, timeout=30) as response, write(path) as f:
        # A server need not say how much it will send: 0.
        size = int(response.headers.get("Content-Length") or 0)
        of_size = f" of {size / 1e6:.1f}" if size else ""
        while block := response.read(1 << 18):
            f.write(block)
            digest.update(block)
            done += len(block)
            progress(f"downloading {url}: {done / 1e6:.1f}{of_size} MB")
        progress("")
        if done < size:
            raise OSError(f"the connection closed after {done} of {size} bytes")

        # A zip has checksums of what is in it: look at them now, not in the middle of a run.
        if path.suffix == ".zip":
            f.flush()
            with zipfile.ZipFile(f.name) as archive:
                damaged = archive.testzip()
            if damaged:
                raise OSError(f"{damaged} in the archive is damaged")
    return digest.hexdigest(), done


# ------------------------------------------------------------------------------------------------
# Comparing: has a source changed, and are two documents the same?

def fingerprint(source):
    """What tells whether a source has changed, without reading it: a list of lines.

    Of "docs" these are the versions of the packages, of a path the names, sizes and times of the
    files.
    """
    if source == "docs":
        return [f"{name} {package.version}" for name, package in packages().items()]
    lines = []
    for path in files(Path(source)):
        stat = path.stat()
        lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return lines


def sketch(text, size=256):
    """A small sample of a text's sentences that two editions of one novel share: a set of hashes.

    These are the `size` smallest of all its sentences' hashes. Which sentences they come from is
    as good as random, but in every text it is the same ones.
    """
    hashes = set()
    for sentence in re.split(r"[.!?]", text):
        # Letters only, for editions differ in spaces, line breaks and punctuation. Short
        # sentences are left out: "Yes", "he said" and the like stand in every novel.
        letters = re.sub(r"[\W\d_]+", "", sentence).lower()
        if len(letters) >= 20:
            hashes.add(zlib.crc32(letters.encode()))
    return set(heapq.nsmallest(size, hashes))


def overlap(a, b):
    """How alike two sketches are, 0 to 1: the share of the smaller one that is in the other too.

    A sketch has all of its text's hashes up to its largest one, and none above. So only hashes
    up to the lower of the two limits are compared: below it, both are complete. With sketches of
    three hashes,

        a = {2, 5, 9}, b = {2, 9, 40}: the limit is 9, {2, 5, 9} and {2, 9} are compared

    and both hashes of the smaller one, 2 and 9, are in the other: 2 / 2 = 1.
    """
    limit = min(max(a), max(b))
    a = {value for value in a if value <= limit}
    b = {value for value in b if value <= limit}
    return len(a & b) / min(len(a), len(b))
