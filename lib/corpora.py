"""A corpus: a name, a path or an address -> (document name, text), one document after the other.

    docs              docstrings of the installed packages: English that is on every disk
    eltec-eng, ...    named collections of novels, downloaded once
    PATH or URL       .txt or TEI .xml: plain, .gz, .xz, in a .zip, or in a folder

Each input is read as what it is and wholly, or it is refused in one line; what is passed over in a
folder or an archive is counted. Never more than one document is held at a time, so a corpus may be
larger than memory.
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
import os
import re
import signal
import threading
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import regex

from lib.cli import BadInput, progress, write, write_json

PIECE = 16 << 20  # bytes of one file held at a time: a larger file becomes several documents
DOCSTRINGS = 64_000  # characters of docstrings in a document of the corpus "docs"

# The files that can be read. A bare .gz is not: what is in it, its name does not say.
READABLE = re.compile(r"\.(txt|xml)(\.gz|\.xz)?$|\.zip$", re.IGNORECASE)
EXPECTED = "expected .txt or TEI .xml, each also as .txt.gz or .txt.xz, or a .zip of these"

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

# Parallel texts, by name: novels of eltec-fra with an English translation.
NAMED_PARALLEL = {
    "eltec-fra-eng": (
        GITHUB + "COST-ELTeC/ELTeC-fra/archive/83f0a43fdb967cd1db646027a1a237307e4924a1.zip"
    ),
}


# ------------------------------------------------------------------------------------------------
# Files

def locate(corpus):
    """The sources of a comma-separated --corpus: "docs" and paths.

    What has an address is downloaded, after all the others have been looked at. Raises BadInput.
    """
    sources = []
    for part in corpus.split(","):
        source = NAMED.get(part, os.path.expanduser(part))  # the shell leaves --corpus=~/a alone
        if not part.strip():
            raise BadInput(f"corpus {corpus!r} has an empty part: "
                           "expected names, paths or addresses, with a comma between two")
        if is_address(source):
            if not READABLE.search(file_name(source)):
                raise BadInput(f"the address {source} does not end as a text does: {EXPECTED}")
        elif source != "docs":
            files(Path(source))
        sources.append(source)
    return [str(download(source)) if is_address(source) else source for source in sources]


def is_address(source):
    return source.lower().startswith(("http://", "https://"))


def file_name(url):
    """The last part of a URL's path: "https://a.org/b/My%20novel.txt?raw=1" -> "My novel.txt"."""
    path = re.split("[?#]", url)[0]
    return urllib.parse.unquote(path.rpartition("/")[2])


def documents(source, passed_over=None):
    """Yield (name, text) for each document of one source: "docs" or a path.

    passed_over: a Counter, to which the endings of the files that are not read are added. Raises
    BadInput for what cannot be read.
    """
    if source == "docs":
        yield from docstrings()
        return
    passed_over = Counter() if passed_over is None else passed_over
    for path in files(Path(source), passed_over):
        try:
            with open(path, "rb") as stream:
                yield from read(path, stream, passed_over)
        except DAMAGED as error:
            raise BadInput(f"{path} is damaged ({error}): fetch it again") from error


def files(path, passed_over=None):
    """The readable files at a path, itself or all below it but hidden ones, in a fixed order.

    Raises BadInput where there is none. passed_over: as in documents.
    """
    if not path.exists():
        raise BadInput(
            f"corpus {str(path)!r} is neither a file, nor a folder, nor one of docs, "
            f"{', '.join(NAMED)} (docs and files need no network)"
        )
    passed_over = Counter() if passed_over is None else passed_over
    found = []
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if hidden(file.relative_to(path)) or file.is_dir():
                continue
            if READABLE.search(file.name) and file.is_file():
                found.append(file)
            else:
                passed_over[ending(file.name)] += 1
        if not found:
            there = in_words(passed_over) or "nothing"
            raise BadInput(f"folder {path} has no text that can be read, but {there}: {EXPECTED}")
    elif READABLE.search(path.name):
        found.append(path)
    else:
        advice = ""
        if path.suffix.lower() in (".gz", ".xz"):
            advice = f" (if text is in it, rename it to {path.stem}.txt{path.suffix})"
        raise BadInput(f"corpus {path} is not text that can be read: "
                       f"{EXPECTED}, or a folder{advice}")
    return found


def hidden(path):
    """Whether a file or a folder above it is hidden: .git/x.txt, or ._x.txt, which macOS makes."""
    return any(part.startswith(".") for part in path.parts)


def ending(name):
    """What says of which kind a file is: "a.PDF" -> ".pdf", "data.jsonl.gz" -> ".jsonl.gz"."""
    found = re.search(r"\.\w+(\.[gx]z)?$", name.lower())
    return found[0] if found else "without an ending"


def in_words(passed_over):
    """Counter({".md": 3, ".pdf": 1}) -> "3 .md, 1 .pdf"."""
    return ", ".join(f"{n:,} {what}" for what, n in passed_over.most_common())


def read(path, stream, passed_over):
    """Yield (name, text) from one open binary file; path says what it is called."""
    suffix = path.suffix.lower()
    if suffix == ".zip":
        yield from read_zip(path, stream, passed_over)
    elif suffix == ".gz":
        yield from read(path.with_suffix(""), gzip.open(stream), passed_over)
    elif suffix == ".xz":
        yield from read(path.with_suffix(""), lzma.open(stream), passed_over)
    elif suffix == ".xml":
        yield from read_xml(path, stream, passed_over)
    else:
        yield from read_txt(path, stream)


def read_zip(path, stream, passed_over):
    """Yield (name, text) from the texts in a zip archive, in order of their names."""
    with zipfile.ZipFile(stream) as archive:
        for member in sorted(archive.namelist()):
            if hidden(Path(member)) or member.endswith("/"):
                continue
            if not READABLE.search(member) or member.lower().endswith(".zip"):
                passed_over[ending(member)] += 1
                continue
            try:
                with archive.open(member) as inside:
                    yield from read(Path(member), inside, passed_over)
            except RuntimeError as error:  # a password, or a compression that Python has not
                raise BadInput(f"{path} cannot be read ({error}): "
                               "unpack it, and give the folder") from error


def read_txt(path, stream):
    """Yield (name, text) of a text file, in pieces of about 16 MB, so that memory stays bounded.

    A piece ends with a line. The first has the name of the file, the others are name#1, name#2 ...
    """
    start = 0  # byte of the file
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
                f"{path} is not UTF-8 text (byte {start + error.start}): "
                "convert it, e.g. with iconv -t UTF-8"
            ) from error
        # NUL bytes are valid UTF-8, but stand in programs and pictures, never in a text.
        if "\0" in text:
            raise BadInput(f"{path} is not text: it has NUL bytes")
        start += len(block)
        yield numbered(path.stem, i), text.replace("\r\n", "\n")


def numbered(name, i):
    """The name of document i, from 0, of those that one thing makes: name, name#1, name#2 ..."""
    return name if i == 0 else f"{name}#{i}"


# ------------------------------------------------------------------------------------------------
# Parallel texts: one document in several languages, line by line

def locate_parallel(source):
    """The path of a parallel text, a folder or a .zip; one with an address is downloaded.

    Raises BadInput.
    """
    path = NAMED_PARALLEL.get(source, os.path.expanduser(source))
    if is_address(path):
        return str(download(path))
    is_zip = Path(path).is_file() and Path(path).suffix.lower() == ".zip"
    if not is_zip and not Path(path).is_dir():
        raise BadInput(f"--parallel={source} is neither a folder nor a .zip, nor one of "
                       f"{', '.join(NAMED_PARALLEL)}: expected one with a .txt for each document "
                       "and language, such as eng/a.txt and fra/a.txt")
    return path


def parallel_texts(source, names=None, passed_over=None):
    """Yield {path: text} for each document of a parallel text: one .txt for each of its languages.

    Files belong together if their names agree, but for a language at the end:

        plain1/FRA01401_Fleuriot.txt    plain-eng/FRA01401_Fleuriot_eng.txt

    names: the languages, such as ["eng", "fra"]; None: any two or three letters may be one. The
    paths are within the source. A file that stands alone is passed over, and counted in
    passed_over, a Counter. Raises BadInput if all do.
    """
    path = Path(source)
    try:
        if path.is_dir():
            found = {}
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() == ".txt" and file.is_file():
                    found[file.relative_to(path)] = file
            yield from read_together(path, found, lambda file: open(file, "rb"), names, passed_over)
            return
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.namelist())
            found = {Path(m): m for m in members if m.lower().endswith(".txt")}
            yield from read_together(path, found, archive.open, names, passed_over)
    except DAMAGED as error:
        raise BadInput(f"{path} is damaged ({error}): fetch it again") from error
    except RuntimeError as error:  # a password, or a compression that Python has not
        raise BadInput(f"{path} cannot be read ({error}): "
                       "unpack it, and give the folder") from error


def read_together(source, found, open_file, names, passed_over):
    """The documents of parallel_texts; found {path: what open_file takes}."""
    ending = "[a-z]{2,3}" if names is None else "|".join(names)
    groups = {}
    for path in found:
        if not hidden(path):
            title = re.sub(rf"[._-]({ending})$", "", path.stem, flags=re.IGNORECASE)
            groups.setdefault(title, []).append(path)

    together = [group for group in groups.values() if len(group) > 1]
    if passed_over is not None:
        passed_over[".txt without a translation"] += len(groups) - len(together)
    if not together:
        raise BadInput(f"{source} has no two .txt files of one name: expected a parallel text, "
                       "such as eng/a.txt and fra/a.txt")
    for group in together:
        versions = {}
        for path in group:
            with open_file(found[path]) as stream:
                versions[path] = "".join(text for _, text in read_txt(path, stream))
        yield versions


# ------------------------------------------------------------------------------------------------
# TEI: the XML of the Text Encoding Initiative (tei-c.org/guidelines, P5)

# What is not running text: notes, what the printer adds to a page, what was struck out, what the
# encoder says about the text; and the title pages and indexes before and after it.
SKIPPED = set("teiHeader front back note noteGrp fw figDesc desc del index interp interpGrp "
              "span spanGrp metamark certainty respons witDetail".split())
# What stands on a line of its own. All else that is not known here, such as <hi>, is part of one.
BLOCKS = set("p l ab head item speaker stage cell lg sp u opener closer salute signed dateline "
             "byline addrLine argument epigraph postscript trailer".split())
# Where a line, a page or a column of the source ends: white space, unless it is within a word.
BREAKS = set("lb pb cb gb milestone space".split())
# Of several readings of one place, the edited one.
CHOICES = {"choice": ("reg", "corr", "expan", "ex"), "app": ("lem",)}

# Two marks that no XML can hold. A \n in XML is but white space.
END_OF_LINE, WITHIN_A_WORD = "\0", "\1"


def read_xml(path, stream, passed_over):
    """Yield (name, text) for each text of a TEI file; a <teiCorpus> has many."""
    n = 0
    try:
        for text in tei(stream):
            yield numbered(path.stem, n), text
            n += 1
    except ET.ParseError as error:
        raise BadInput(f"{path} is not well-formed XML: {error}") from error
    except (LookupError, ValueError) as error:  # an encoding that Python's XML parser has not
        raise BadInput(f"{path} cannot be read as XML ({error}): "
                       "convert it to UTF-8, and declare that") from error
    except RecursionError as error:
        raise BadInput(f"{path} cannot be read: its elements are nested too deeply") from error
    if n == 0:
        passed_over[".xml without a TEI <text>"] += 1


def tei(stream):
    """Yield the running text of each <text>; one in a <group> within another is part of that one.

    A text is forgotten once it is read, so that memory stays bounded.
    """
    depth = 0
    for event, element in ET.iterparse(stream, events=("start", "end")):
        if local_name(element) == "text":
            depth += 1 if event == "start" else -1
            if depth == 0:
                found = "".join(running_text(element))
                found = re.sub(rf"\s*{WITHIN_A_WORD}\s*", "", found)
                lines = [" ".join(line.split()) for line in found.split(END_OF_LINE)]
                yield "\n".join(line for line in lines if line)
                element.clear()


def local_name(element):
    """An element's name without its namespace: "{http://www.tei-c.org/ns/1.0}p" -> "p"."""
    return element.tag.rpartition("}")[2]


def running_text(element):
    """Yield the running text of an element, in pieces that have the two marks in them.

        <p>A <choice><sic>lettre</sic><corr>letter</corr></choice><lb/>came.<note>When?</note></p>
        -> "A letter came."
    """
    name = local_name(element)
    if name in SKIPPED or is_note_mark(element):
        return
    if name in BREAKS:
        yield WITHIN_A_WORD if element.get("break") == "no" else " "
        return

    if name in CHOICES and len(element):
        edited = [child for child in element if local_name(child) in CHOICES[name]]
        yield from running_text((edited or element)[0])
        return

    # What stands in a division is a line by itself, too, whatever it is: two <quote>, say.
    around = END_OF_LINE if name in BLOCKS else ""
    between = END_OF_LINE if name == "body" or name.startswith("div") else ""
    yield around
    yield element.text or ""
    for child in element:
        yield between
        yield from running_text(child)
        yield between
        yield child.tail or ""
    yield around


def is_note_mark(element):
    """Whether an element is the mark of a note elsewhere: <ref target="#note35">[35]</ref>."""
    if local_name(element) != "ref" or not element.get("target", "").startswith("#"):
        return False
    return not any(letter.isalpha() for letter in "".join(element.itertext()))


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
    """Yield (name, text) for the docstrings of each package; no docstring comes twice.

    A document is about 64,000 characters of one package, and ends where a file does. So a large
    package is many documents, and each split of the corpus is like the whole.
    """
    paths = []  # of all Python files, package after package
    n_files = {}  # package -> how many of them are its own
    for package, distribution in packages().items():
        own = [str(file.locate()) for file in distribution.files or [] if file.suffix == ".py"]
        if own:
            paths += own
            n_files[package] = len(own)

    # These are thousands of files, so every core reads some. The processes are spawned because a
    # process with threads, such as torch's, does not fork well.
    seen = set()
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(mp_context=spawn, initializer=start_worker)
    try:
        # One list of docstrings a file, in the order of the paths: a package's own come next.
        results = pool.map(file_docstrings, paths, chunksize=64)
        for package, n in n_files.items():
            made, texts, size = 0, [], 0
            for found in itertools.islice(results, n):
                for text in found:
                    if text not in seen:
                        seen.add(text)
                        texts.append(text)
                        size += len(text)
                if size >= DOCSTRINGS:
                    yield numbered(package, made), "\n\n".join(texts)
                    made, texts, size = made + 1, [], 0
            yield numbered(package, made), "\n\n".join(texts)
    finally:
        pool.shutdown(cancel_futures=True)  # what nobody waits for any more is not read


def start_worker():
    """A process that reads docstrings ignores Ctrl-C, so that one voice says goodbye.

    And it ends with the process that started it, even if that one is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


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
    name = re.sub(r"[^\w.-]", "_", file_name(url))
    prefix = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path("data/downloads") / f"{prefix}-{name}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)

    try:
        sha256, size = fetch(url, path)
    except (OSError, ValueError, RuntimeError, http.client.HTTPException,
            zipfile.BadZipFile) as error:  # RuntimeError: a zip with a password
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
        if path.suffix.lower() == ".zip":
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
    # Letters only, for editions differ in spaces, line breaks, punctuation and marks; and what ends
    # a sentence: . ! ? and those of all scripts.
    ends = r"\p{Sentence_Terminal}"
    hashes = set()
    for letters in regex.split(ends, regex.sub(rf"[^\p{{L}}{ends}]+", "", text)):
        # Short sentences are left out: "Yes", "he said" and the like stand in every novel.
        letters = letters.lower()
        for piece in [letters] if len(letters) < 1000 else pieces(letters):
            block = piece.encode()
            if len(block) >= 20:  # 20 letters of English, 7 characters of Chinese
                hashes.add(zlib.crc32(block))

    # Where there is nothing but short sentences, only the very same text is an edition of it.
    return set(heapq.nsmallest(size, hashes)) or {zlib.crc32(text.strip().encode())}


def pieces(letters):
    """Cut what has no sentence ends, such as Thai, where the letters themselves say so.

    A cut is before every six letters whose hash divides by 32. So two editions are cut alike but
    where they differ.
    """
    start = 0
    for i in range(1, len(letters) - 5):
        if zlib.crc32(letters[i:i + 6].encode()) % 32 == 0:
            yield letters[start:i]
            start = i
    yield letters[start:]


def overlap(a, b):
    """How alike two sketches are, 0 to 1: the share of the smaller one that is in the other too.

    A sketch has all of its text's hashes up to its largest one, and none above. So only hashes
    up to the lower of the two limits are compared: below it, both are complete. With sketches of
    three hashes,

        a = {2, 5, 9}, b = {2, 9, 40}: the limit is 9, {2, 5, 9} and {2, 9} are compared

    and both hashes of the smaller one, 2 and 9, are in the other: 2 / 2 = 1.
    """
    if not a & b:
        return 0.0
    limit = min(max(a), max(b))
    a = {value for value in a if value <= limit}
    b = {value for value in b if value <= limit}
    return len(a & b) / min(len(a), len(b))
