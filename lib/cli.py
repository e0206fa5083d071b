"""What every script shares of the command line and of the disk.

Options with their defaults in --help, errors of one line, and files that are whole or not there.
"""
import argparse
import contextlib
import difflib
import errno
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path


class BadInput(Exception):
    """Something the user gave cannot be used.

    The message says what is wrong and what would be right, in one line.
    """


# ------------------------------------------------------------------------------------------------
# Options

class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, every default in --help, and no abbreviations."""

    def __init__(self, doc):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=formatter, allow_abbrev=False)
        self.defaults = {}
        self.several = set()  # the options that may be given more than once
        self.section = self  # where the next option stands in --help

    def group(self, title):
        """Put the options that follow under a heading of their own."""
        self.section = self.add_argument_group(title)

    def option(self, name, default, help, type=str, choices=None, several=False):
        """Add --name=value, of a type that is str, int, float or bool.

        default: a value, which --help shows; None, if the help text explains by itself what
        happens without the option; or {size: value} for a default that --size decides.
        several: it may be given more than once, and is then a list of its values.
        """
        if isinstance(default, dict):
            by_size = ", ".join(f"{size} {_word(value)}" for size, value in default.items())
            if len(set(default.values())) == 1:  # the same in all
                help += f" (default: {_word(next(iter(default.values())))})"
            else:
                help += f" (default: by --size: {by_size})"
            default = None
        elif default is not None:
            help += f" (default: {_word(default)})"
        self.defaults[name.strip("-")] = default
        if several:
            self.several.add(name.strip("-"))

        # what is not given is left out of the result, so that parse() can tell it from a default
        common = {"default": argparse.SUPPRESS, "help": help.replace("%", "%%")}
        if type is bool:  # --name alone is --name=true
            self.section.add_argument(name, type=_true_or_false, nargs="?", const=True,
                                      metavar="BOOL", **common)
        else:
            metavar = None if choices else type.__name__.upper()
            action = "append" if several else "store"
            self.section.add_argument(name, type=type, choices=choices, metavar=metavar,
                                      action=action, **common)

    def positional(self, name, help):
        """Add one or more values without a name."""
        self.add_argument(name, nargs="+", help=help)

    def parse(self):
        """(all options, as a namespace; those given on the command line, as a dict)."""
        given = vars(self.parse_args())
        for name in self.several & given.keys():
            if len(given[name]) == 1:  # given once it is a value like any other
                given[name] = given[name][0]
        return argparse.Namespace(**self.defaults | given), given

    def error(self, message):
        """Called by argparse for a wrong command line. Raises BadInput, with the nearest option."""
        unknown = re.match(r"unrecognized arguments: (-*[\w-]*)", message)
        close = []
        if unknown:
            close = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
        advice = f"did you mean {close[0]}?" if close else "--help lists the options"
        raise BadInput(f"{message} ({advice})")


def as_options(values):
    """{"ratio": 0.9, "corpus": ["a", "b"]} -> ["--ratio=0.9", "--corpus=a", "--corpus=b"]."""
    words = []
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            words.append(f"--{name}={_word(one)}")
    return words


def _word(value):
    """A default as one would type it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _true_or_false(word):
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


# ------------------------------------------------------------------------------------------------
# A script from its start to its end

def run_main(main):
    """Call main(); a BadInput or a full disk becomes one line on stderr and exit code 2."""
    # what the screen cannot show is shown as "?", and nothing is lost if nobody reads on
    sys.stdout.reconfigure(errors="replace")
    # a process that is told to end cleans up first, as after Ctrl-C
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return main()
    except BadInput as error:
        message = str(error)
    except BrokenPipeError:  # nobody reads on, as after `| head -4`
        sys.stdout = open(os.devnull, "w")
        sys.exit(0)
    except OSError as error:
        of_the_disk = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
        if error.errno not in of_the_disk:
            raise
        advice = "free some space"
        if error.errno in (errno.EACCES, errno.EROFS):
            advice = "expected a file that you may read, or a folder you may write to"
        message = f"{error.filename or 'disk'}: {error.strerror}; {advice}"
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written was kept", file=sys.stderr)
        sys.exit(130)

    progress("")
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one voice
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def say(text):
    """Print a line at once. If nobody reads on, as after `| head -4`, go on without words."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")


line_due = None  # when progress() may next print a line to what is no terminal, in seconds


def progress(text):
    """Show how far something is: on a terminal in one line, in its place; else in a line a minute.

    progress("") says that it is done, and takes the line away.
    """
    global line_due
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1  # a longer line would not go away whole
        print(f"\r\033[K{text[:width]}", end="", flush=True)
    elif not text:
        line_due = None
    elif line_due is None:  # it has just begun
        line_due = time.monotonic() + 60
    elif time.monotonic() >= line_due:
        print(text, flush=True)
        line_due = time.monotonic() + 60


def plural(n, word):
    """plural(1, "run") -> "1 run"; plural(1200, "run") -> "1,200 runs"."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


# ------------------------------------------------------------------------------------------------
# Files

def make_folder(option, path):
    """Make the folder that an option names, and those above it. Raises BadInput for a file."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(f"{option}={path} is a file: expected a folder") from None


@contextlib.contextmanager
def write(path):
    """Open a binary file that takes the place of `path` only once it is whole and on the disk.

    A process that is killed on the way leaves what was there before, and a hidden .tmp file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def lock(folder, wait=False):
    """Lock a folder against other processes; return a descriptor that holds the lock while it is
    open.

    That is to the end of the process, killed or not, unless it is closed before. If another process
    has it: wait, or raise BlockingIOError. None on Windows, where folders cannot be locked.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def unlock(held):
    """Let go of what lock() returned."""
    if held is not None:
        os.close(held)


def write_json(path, value):
    """Write a value as JSON, whole or not at all."""
    with write(path) as f:
        f.write(json.dumps(value, indent=1).encode() + b"\n")
