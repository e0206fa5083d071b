"""What every script shares of the command line and of the disk: options, one-line errors, files that are whole or not there."""
import argparse, contextlib, difflib, errno, json, os, re, sys
from pathlib import Path


class BadInput(Exception):
    """Something the user gave cannot be used; the message says what is wrong and what would be right, in one line."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, every default in --help, and no abbreviations. parse() tells what was given from what is default."""

    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.defaults = {}

    def option(self, name, default, help, type=str, choices=None):
        """Add --name=value; a default of None is one that the help text itself explains."""
        self.defaults[name.strip("-")] = default
        help = help.replace("%", "%%") + ("" if default is None else f" (default: {str(default).lower() if type is bool else default})")
        if type is bool:
            self.add_argument(name, type=_true_or_false, nargs="?", const=True, default=argparse.SUPPRESS, metavar="BOOL", help=help)
        else:
            self.add_argument(name, type=type, choices=choices, default=argparse.SUPPRESS, help=help, metavar=None if choices else type.__name__.upper())

    def positional(self, name, help):
        """Add one or more values without a name."""
        self.add_argument(name, nargs="+", help=help)

    def parse(self):
        """(all options, as a namespace; those given on the command line, as a dict)."""
        given = vars(self.parse_args())
        return argparse.Namespace(**self.defaults | given), given

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (-*[\w-]*)", message)
        close = difflib.get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        raise BadInput(message + (f" (did you mean {close[0]}?)" if close else " (--help lists the options)"))


def _true_or_false(word):
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


def run(main):
    """Call main(); a BadInput or a full disk becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        return main()
    except BadInput as error:
        message = str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        message = f"{error.filename or 'disk'}: {error.strerror}; free some space, or work in a folder you may write to"
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: nothing half-written was kept")
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one voice
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def progress(text):
    """Show one line of progress in place, on a terminal; nothing elsewhere. progress("") takes it away."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


@contextlib.contextmanager
def write(path):
    """Open a binary file that takes the place of `path` only once it is whole and on the disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    with write(path) as f:
        f.write(json.dumps(value, indent=1).encode() + b"\n")
