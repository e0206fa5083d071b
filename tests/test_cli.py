import errno
import json
import subprocess
import sys

import pytest
from conftest import ONE_THREAD, ROOT, listing

from lib import cli
from lib.cli import BadInput, Parser, make_folder, plural, run_main, write, write_json


def make_parser():
    parser = Parser("A script.")
    parser.group("text")
    parser.option("--corpus", "docs", "what is read")
    parser.group("model")
    parser.option("--width", {"nano": 64, "mini": 512}, "100 % of the width", int)
    parser.option("--depth", {"nano": 2, "mini": 2}, "in all sizes alike", int)
    parser.option("--tied", False, "one matrix", bool)
    parser.option("--size", "nano", "a preset", choices=["nano", "mini"])
    return parser


def parse(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["script.py", *options])
    return make_parser().parse()


# ------------------------------------------------------------------------------------------------
# Options

def test_all_options_and_those_given(monkeypatch):
    args, given = parse(monkeypatch, "--width=32", "--size=nano")
    assert vars(args) == {"corpus": "docs", "width": 32, "depth": None, "tied": False,
                          "size": "nano"}
    # an option that is given counts as given, even if it says what the default says
    assert given == {"width": 32, "size": "nano"}


def test_a_default_that_depends_on_the_size_is_none_until_a_size_is_known(monkeypatch):
    args, given = parse(monkeypatch)
    assert args.width is None
    assert given == {}


@pytest.mark.parametrize("option, expected", [
    ("--tied", True),
    ("--tied=true", True),
    ("--tied=True", True),
    ("--tied=false", False),
])
def test_an_option_that_is_true_or_false(monkeypatch, option, expected):
    args, _ = parse(monkeypatch, option)
    assert args.tied is expected


def test_help_has_headings_and_every_default():
    help_text = " ".join(make_parser().format_help().split())
    assert "text: --corpus STR what is read (default: docs)" in help_text
    assert ("model: --width INT 100 % of the width (default: by --size: nano 64, mini 512) "
            "--depth INT in all sizes alike (default: 2) "
            "--tied [BOOL] one matrix (default: false)") in help_text


@pytest.mark.parametrize("option, expected", [
    ("--widht=3", "did you mean --width?"),
    ("--wid=3", "did you mean --width?"),  # no abbreviations
    ("--zzzz", "--help lists the options"),
    ("--width=wide", "invalid int value"),
    ("--tied=maybe", "neither true nor false"),
    ("--size=huge", "invalid choice"),
])
def test_a_wrong_option(monkeypatch, option, expected):
    with pytest.raises(BadInput) as error:
        parse(monkeypatch, option)
    assert expected in str(error.value)


# ------------------------------------------------------------------------------------------------
# How a script ends

def ending(error, monkeypatch, capsys):
    """(exit code, stderr) of a script whose main() raises an error."""
    def main():
        raise error

    monkeypatch.setattr("sys.argv", ["folder/script.py"])
    with pytest.raises(SystemExit) as end:
        run_main(main)
    return end.value.code, capsys.readouterr().err


def test_bad_input_and_a_full_disk_end_in_one_line(monkeypatch, capsys):
    code, err = ending(BadInput("--width=0: expected more"), monkeypatch, capsys)
    assert code == 2
    assert err == "script.py: error: --width=0: expected more\n"

    full = OSError(errno.ENOSPC, "No space left on device", "model.pt")
    code, err = ending(full, monkeypatch, capsys)
    assert code == 2
    assert err.startswith("script.py: error: model.pt: No space left on device; free some")
    assert err.count("\n") == 1

    secret = PermissionError(errno.EACCES, "Permission denied", "secret.txt")
    code, err = ending(secret, monkeypatch, capsys)
    assert code == 2
    assert err == ("script.py: error: secret.txt: Permission denied; expected a file that you may "
                   "read, or a folder you may write to\n")


def test_under_torchrun_one_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert ending(BadInput("wrong"), monkeypatch, capsys) == (2, "")


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    code, err = ending(KeyboardInterrupt(), monkeypatch, capsys)
    assert code == 130
    assert "interrupted" in err


def test_nobody_reads_on_is_no_traceback(monkeypatch, capsys):
    assert ending(BrokenPipeError(errno.EPIPE, "Broken pipe"), monkeypatch, capsys) == (0, "")


def test_what_the_screen_cannot_show_is_a_question_mark(here):
    (here / "script.py").write_text("from lib.cli import run_main\n"
                                    "run_main(lambda: print('caf\\xe9 \\u65e5'))\n")
    env = {**ONE_THREAD, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "script.py"], cwd=here, env=env, capture_output=True)
    assert out.stdout.decode("cp1252").strip() == "café ?", out.stderr


def test_a_process_that_is_told_to_end_cleans_up(here):
    (here / "script.py").write_text(
        "import time\nfrom lib.cli import run_main, write\n"
        "def main():\n    with write('file') as f:\n        f.write(b'half')\n"
        "        f.flush()\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "run_main(main)\n")
    env = {**ONE_THREAD, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "script.py"], cwd=here, env=env,
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert listing(here) == ["script.py"]


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main():
        raise OSError(errno.ENOENT, "No such file")

    with pytest.raises(OSError, match="No such file"):
        run_main(main)


def test_plural():
    assert [plural(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]


# ------------------------------------------------------------------------------------------------
# Progress

def test_a_file_gets_a_line_of_progress_a_minute(monkeypatch, capsys):
    clock = 1000
    monkeypatch.setattr(cli.time, "monotonic", lambda: clock)
    for what in ("reading", "encoding"):  # one after the other, seven looks of each
        for seconds in range(0, 140, 20):
            cli.progress(f"{what} for {seconds} s")
            clock += 20
        cli.progress("")
    assert capsys.readouterr().out.splitlines() == [
        "reading for 60 s", "reading for 120 s", "encoding for 60 s", "encoding for 120 s"]


def test_a_terminal_gets_progress_in_place(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "10")
    for text in ("reading 1", "reading 1,234 documents", ""):
        cli.progress(text)
    assert capsys.readouterr().out == "\r\033[Kreading 1\r\033[Kreading 1\r\033[K"


# ------------------------------------------------------------------------------------------------
# Files

def test_a_file_is_replaced_once_the_new_one_is_whole(here):
    write_json("file.json", {"step": 1})
    with write("file.json") as f:
        f.write(b"half of it")
        f.flush()
        assert json.loads((here / "file.json").read_text()) == {"step": 1}
        f.write(b", and the rest")
    assert (here / "file.json").read_text() == "half of it, and the rest"
    assert listing(here) == ["file.json"]


def test_a_folder_is_made_with_those_above_it(here):
    for _ in range(2):
        make_folder("--out", "a/b")
    assert (here / "a/b").is_dir()
    (here / "file").write_text("")
    for path in ("file", "file/below"):
        with pytest.raises(BadInput, match=f"--out={path} is a file: expected a folder"):
            make_folder("--out", path)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError("full")])
def test_a_file_that_was_not_finished_leaves_the_old_one(here, error):
    write_json("file.json", {"step": 1})
    with pytest.raises(type(error)), write("file.json") as f:
        f.write(b"half of it")
        raise error
    assert json.loads((here / "file.json").read_text()) == {"step": 1}
    assert listing(here) == ["file.json"]


def test_an_error_of_the_disk_names_the_file(here):
    with pytest.raises(OSError) as error, write("file.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == "file.json"
