"""Every command has help, data goes to stdout and messages to stderr, and outside text cannot move the cursor."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import click
import pytest
import typer

from services.cli import main as entry
from services.cli.terminal import printable, shown, tell_json
from shared import errors
from shared.errors import SimilisError
from shared.version import software
from tests.conftest import ROOT


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


def commands() -> list[tuple[tuple[str, ...], click.Command]]:
    return list(walk(typer.main.get_command(entry.rooms())))


def test_every_command_and_every_option_has_a_word_of_help():
    silent = [" ".join(path) for path, command in commands() if path and not (command.help or "").strip()]
    silent += [
        f"{' '.join(path)} {parameter.name}"
        for path, command in commands()
        for parameter in command.params
        if parameter.name != "help" and not (getattr(parameter, "help", None) or "").strip()
    ]
    assert silent == []


def test_every_command_that_asks_a_server_answers_as_json_on_request():
    asking = [
        (" ".join(path), names)
        for path, command in commands()
        if {"url", "key_file"} <= (names := {parameter.name for parameter in command.params})
    ]
    assert len(asking) > 30
    assert [path for path, names in asking if "as_json" not in names] == []


def told() -> list[str]:
    """The command lines of README and docs, in code spans and at prompts, and of the unit for systemd."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    text += re.sub(r"^ExecStart=\S*/", "$ ", (ROOT / "docs" / "similis.service").read_text("utf-8"), flags=re.MULTILINE)
    found = re.findall(r"(?<!`)`(similis [^`\n]+)`|^\$ (similis .+?)(?: +#.*)?$", text, re.MULTILINE)
    return sorted({span or line for span, line in found})


@pytest.mark.parametrize("line", told())
def test_every_command_that_the_documents_tell_of_can_be_typed(line):
    command: click.Command = typer.main.get_command(entry.rooms())
    words = shlex.split(re.sub(r"[\[\]…]", " ", line.partition(" && ")[0]))[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    if getattr(command, "commands", None) or not words:  # a group, or a command without arguments
        assert not words or words[0].isupper(), words
        return
    options = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts) if name[:1] == "-"}
    given, arguments = set(), 0
    while words:
        word = words.pop(0)
        if word[:1] != "-" or word == "-":
            arguments += 1
            continue
        assert word in options, word
        given.add(options[word].name)
        if not options[word].is_flag:  # type: ignore[attr-defined]
            del words[: options[word].nargs]
    wanted = {one.name for one in command.params if one.required and one.param_type_name == "option"}
    assert wanted <= given, f"it needs {', '.join(wanted - given)}"
    assert arguments <= sum(one.param_type_name == "argument" for one in command.params)


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_help_can_be_asked_of_every_command(similis, path):
    ran = similis(*path, "--help")
    assert ran.code == 0
    assert "Usage" in ran.out
    assert ran.err == ""


def test_the_help_of_backup_names_the_files_that_were_sent(similis):
    """Whoever protects the backup must know that it contains the sent files."""
    said = " ".join(similis("backup", "--help").out.split())
    assert "C-STORE, STOW or backfill" in said


def test_all_that_the_first_task_asks_for_is_there():
    names = {" ".join(path) for path, _ in commands()}
    assert names >= {
        "up", "status", "down", "ingest", "search", "sample", "demo", "studies list", "studies show",
        "operations list", "operations show", "operations files", "operations cancel", "operations retry",
        "models add", "models list", "models show", "models make", "models convert",
        "keys create", "keys list", "keys revoke",
    }  # fmt: skip


def test_a_command_starts_without_loading_what_it_does_not_use():
    heavy = ("torch", "numpy", "pydicom", "onnxruntime", "sqlalchemy", "celery", "qdrant_client.grpc", "httpx")
    code = f"""import sys; from services.cli.main import rooms; rooms()
print([name for name in {heavy} if name in sys.modules])"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SIMILIS_DATABASE__URLL", "SIMILIS_DATABASE__URLL: there is no such setting"),
        ("SIMILIS_API__PORT", "SIMILIS_API__PORT: must be a whole number"),
        ("SIMILIS_API__PUBLIC_URL", "SIMILIS_API__PUBLIC_URL: must be an http:// or https:// address"),
        ("SIMILIS_DICOM__AE_TITLE", "SIMILIS_DICOM__AE_TITLE: must have 1 to 16 printable ASCII characters"),
        ("SIMILIS_LOG_LEVEL", "SIMILIS_LOG_LEVEL: must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("SIMILIS_INTAKE__ROOTS", "SIMILIS_INTAKE__ROOTS: must be JSON"),
        ("SIMILIS_INTAKE", "SIMILIS_INTAKE: each setting in it has its own name"),
        ("SIMILIS_PSEUDONYM_KEY_FILE", "the file named by SIMILIS_PSEUDONYM_KEY_FILE cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_and_what_it_was_set_to_is_not_shown(similis, monkeypatch, name, said):
    monkeypatch.setenv(name, "/SECRET:word@host\\")
    ran = similis("status")
    assert (ran.code, ran.out) == (5, "")
    assert said in ran.err
    assert "SECRET" not in ran.err


def test_the_version_can_be_asked_without_a_server(similis):
    ran = similis("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"similis {software()}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("search", "--study", "1.2", "-k", "0"), "'-k': must be at least 1"),
        (("search", "--study", "1.2", "-k", "many"), "'-k': must be a whole number"),
        (("up", "--port", "99999"), "'--port': must be at most 65535"),
        (("generations", "show", "x"), "'ID': must be a whole number"),
        (("train", "own_archive", "--label", "size"), "'--label': 'size' is not one of 'birads', 'density'"),
    ],
)
def test_a_wrong_argument_is_told_in_words_of_our_own(similis, words, said):
    ran = similis(*words)
    assert (ran.code, said in " ".join(ran.err.split())) == (2, True), ran.err


def test_a_word_that_is_no_command_is_a_usage_error(similis):
    assert similis("serach").code == 2


def test_whoever_needs_the_database_of_a_home_that_does_not_run_is_told_how_to_start_it(similis, tmp_path):
    for name in ("vectors.key", "pseudonym.key", "database.url"):
        (tmp_path / name).write_text("postgresql+psycopg://similis@/similis?host=/nowhere")
    (tmp_path / "pg").mkdir()
    (tmp_path / "tombstones").touch()
    for command in (["doctor"], ["tombstones", "replay", tmp_path / "tombstones"]):
        ran = similis(*command, "--home", tmp_path)
        assert (ran.code, ran.out) == (3, "")  # not 1, nor 6: a home at rest is not damaged
        assert f"nothing runs on the home {tmp_path}: start it with `similis up`" in ran.err


def test_what_the_system_refuses_is_a_sentence_and_no_traceback(similis, tmp_path):
    (tmp_path / "file").touch()
    ran = similis("secrets", tmp_path / "file" / "secrets")
    assert ran.code == 1
    assert ran.err == f"similis: Not a directory: {tmp_path / 'file' / 'secrets'}\n"
    (tmp_path / "circle").symlink_to("circle")
    for folder in (tmp_path / "circle", "~nobody-of-this-name/archive"):
        ran = similis("up", "--home", folder)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("similis: ")
        assert ran.err.count("\n") == 1
    copied = shutil.Error([("a", "b", "[Errno 28] No space left on device"), ("c", "d", "e")])
    assert entry.told(copied) == "[Errno 28] No space left on device"


def every_error() -> list[type[SimilisError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SimilisError)]
    assert len(kinds) > 5
    return kinds


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_an_exit_code(kind):
    assert 1 <= entry.exit_code(kind.__new__(kind)) <= 6


def test_a_file_name_cannot_move_the_cursor_or_colour_the_screen(home, server, similis):
    evil = "a\x1b[2J\x1b]0;owned\x07\r\u202eb\x9b.dcm"
    server.on(
        "GET /v1/operations/x/files",
        {"files": [{"path": evil, "outcome": "failed", "gate": None, "reason": "not_dicom"}], "next": None},
    )
    ran = similis("operations", "files", "x", "--home", home)
    assert ran.code == 0
    assert not set(ran.out) & set("\x1b\x07\r\u202e\x9b")
    assert r"\x1b[2J" in ran.out


@pytest.mark.parametrize(("words", "letter"), [((), rb"\xf6"), (("--json",), rb"\u00f6")])
def test_a_terminal_without_the_letters_of_a_name_is_shown_their_numbers(home, server, words, letter):
    server.on("GET /v1/operations/x/files", {"files": [{"path": "/a/Schröder", "outcome": "failed"}], "next": None})
    ran = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "operations", "files", "x", "--home", str(home), *words],
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=True,
    )  # fmt: skip
    assert b"/a/Schr" + letter + b"der" in ran.stdout
    assert not words or json.loads(ran.stdout)["files"][0]["path"] == "/a/Schröder"


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_command_whose_output_nobody_takes_does_its_work(home, server, closed):
    server.on("GET /v1/keys", {"keys": []})
    command = shlex.join([sys.executable, "-m", "services.cli.main", "keys", "list", "--home", str(home)])
    ran = subprocess.run(["/bin/sh", "-c", f"{command} {closed}>&-"], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_ctrl_c_while_the_command_still_loads_ends_it_without_a_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")  # shadows the real module
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["similis"].partition(":")
    ran = subprocess.run(
        [sys.executable, "-c", f"from {module} import {function}\n{function}()", "--help"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, b"", b"")


MAKE = ["models", "make", "new", "--architecture", "resnet50", "--weights", "random:1"]


@pytest.mark.parametrize(
    "words",
    [
        ["search", "--image", "pipe"],
        ["rules", "check", "pipe"],
        ["rules", "try", "pipe", "."],
        [*MAKE, "--options", "pipe"],
        [*MAKE, "--about", "pipe"],
        ["models", "ensemble", "new", "--members", "one", "--features", "pipe"],
        ["models", "add", "model"],
    ],
    ids=" ".join,
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(words, home, similis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMILIS_HOME", str(home))
    os.mkfifo("pipe")
    (tmp_path / "model").mkdir()
    os.mkfifo("model/card.json")
    ran = similis(*words)
    assert ran.code == 5
    assert "is not a regular file" in ran.err


def test_a_pipe_in_place_of_a_models_folder_has_no_card(home, similis, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ran = similis("models", "add", tmp_path / "pipe", "--home", home)
    assert (ran.code, ran.err) == (3, "similis: there is no model card\n")


def test_square_brackets_are_shown_and_not_read_as_markup(home, server, similis):
    server.on(
        "GET /v1/operations/x/files",
        {"files": [{"path": "[red]x[/red].dcm", "outcome": "failed"}], "next": None},
    )
    assert "[red]x[/red].dcm" in similis("operations", "files", "x", "--home", home).out


def test_json_carries_no_control_characters(capsys):
    data = {"path": "é\x1b[31m\x7f\x9b31m\u202e\U000e0001\n"}
    tell_json(data)
    told = capsys.readouterr().out.removesuffix("\n")
    assert told.isprintable()
    assert "é" in told
    assert json.loads(told) == data


def test_printable_text_is_left_as_it_is():
    assert printable("Müller [1] — ü\n2") == "Müller [1] — ü\n2"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        ([4, 5], "4, 5"),
        ([], ""),
        ("a\nb", "a b"),
        (0.5, "0.5"),
        ({"key": 2, "note": None, "scopes": ["search", "read"]}, "key 2, scopes (search, read)"),
    ],
)
def test_a_cell_is_one_line(value, cell):
    assert shown(value) == cell
