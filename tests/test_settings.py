import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, SecretStr, ValidationError

from shared.config import Settings, read

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / ".env.example"
LINE = re.compile(r"^(SIMILIS_[A-Z0-9_]+)=(.*)$")


def example():
    """Name -> (value, the comment above it) of each setting in the example."""
    found, comment = {}, ""
    for line in EXAMPLE.read_text().splitlines():
        if line.startswith("#"):
            comment = line.lstrip("# ")
        elif (match := LINE.match(line)) is not None:
            found[match[1]] = (match[2], comment)
            comment = ""
        else:
            assert line == ""
            comment = ""
    return found


def leaves(part, prefix="SIMILIS_"):
    """Name -> default of each setting in the tree."""
    found = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            found |= leaves(value, f"{prefix}{name.upper()}__")
        else:
            found[prefix + name.upper()] = value
    return found


def test_the_example_lists_exactly_the_settings_there_are():
    assert set(example()) == set(leaves(Settings()))


def test_the_example_states_every_default(monkeypatch):
    defaults = leaves(Settings())
    for name, (value, _) in example().items():
        monkeypatch.setenv(name, value)
        if value == "":
            secret = isinstance(defaults[name], SecretStr) and defaults[name].get_secret_value() == ""
            assert secret or defaults[name] in (None, "", ()) or name == "SIMILIS_HOME", name
    assert leaves(Settings()) == defaults


def test_each_setting_has_a_sentence():
    assert [name for name, (_, comment) in example().items() if len(comment.split()) < 4] == []


def test_every_secret_is_called_one_and_has_no_default():
    for name, value in leaves(Settings()).items():
        if isinstance(value, SecretStr):
            assert "secret" in example()[name][1].lower(), name
            assert example()[name][0] == "", name


def test_a_secret_may_stand_in_a_file(monkeypatch, tmp_path):
    path = tmp_path / "url"
    path.write_text("postgresql+psycopg://somebody:word@/similis\n")
    monkeypatch.setenv("SIMILIS_DATABASE__URL_FILE", str(path))
    assert Settings().database.url.get_secret_value() == "postgresql+psycopg://somebody:word@/similis"
    assert "word" not in repr(Settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIMILIS_INTAKE__ROOTS", '["/archive", "archive"]'),
        ("SIMILIS_INTAKE__ROOTS", '["~/archive"]'),
        *(
            ("SIMILIS_INTAKE__DICOMWEB_SOURCES", json.dumps([{"name": "pacs", "url": "http://pacs", kind: "secret"}]))
            for kind in ("token_file", "password_file", "ca_file")
        ),
    ],
)
def test_a_path_in_a_list_is_absolute(monkeypatch, name, value):
    """Nothing resolves it where the caller stands: the processes of `similis up` run in the home."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=rf"{name}.*: must be an absolute path"):
        read("similis")
    monkeypatch.setenv(name, value.replace('"archive"', '"/archive"').replace("~", "").replace("secret", "/secret"))
    assert read("similis")


@pytest.mark.parametrize("name", ["SIMILIS_INTAKE_ROOTS", "SIMILIS_QDRANT_API_KEY"])
def test_a_setting_of_a_part_with_one_underscore_is_not_ignored(monkeypatch, name):
    monkeypatch.setenv(name, "secret-word")
    with pytest.raises(SystemExit, match=f"wrong: {name}: is written SIMILIS_[A-Z]+__[A-Z_]+$"):
        read("similis")


def test_a_part_as_a_whole_is_no_setting(monkeypatch):
    """Such roots of scans did not hold under `similis up`, and a relative path was that of another folder."""
    for name, value in (("DICOM", '{"peers": "peers.toml"}'), ("INTAKE", '{"roots": ["/archive"]}')):
        with monkeypatch.context() as its:
            its.setenv(f"SIMILIS_{name}", value)
            with pytest.raises(SystemExit, match=f"wrong: SIMILIS_{name}: each setting .* such as SIMILIS_{name}__"):
                read("similis")


def test_an_unknown_setting_of_a_part_is_refused(monkeypatch):
    monkeypatch.setenv("SIMILIS_INTAKE__BATSH", "8")
    with pytest.raises(ValidationError, match="batsh"):
        Settings()


def test_the_clients_own_key_file_is_no_setting(monkeypatch):
    monkeypatch.setenv("SIMILIS_KEY_FILE", "/nowhere")
    assert "SIMILIS_KEY" not in leaves(Settings())


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("api", ("-m", "services.api")),
        ("dicom", ("-m", "services.dicom")),
        ("migrate", ("-m", "services.embedded.setup")),
        ("worker", ("-m", "celery", "-A", "workers.app", "worker")),
    ],
)
def test_a_process_ends_with_a_sentence_that_names_a_wrong_setting_and_does_not_repeat_it(program, words):
    wrong = {"SIMILIS_DATABASE__URLL": "postgresql://u:SECRET@host/similis"}
    ran = subprocess.run(
        [sys.executable, *words], env=os.environ | wrong, capture_output=True, text=True, timeout=60, check=False
    )
    said = f"similis {program}: the settings are wrong: SIMILIS_DATABASE__URLL: there is no such setting\n"
    assert (ran.returncode, ran.stderr) == (1, said)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("-m", "services.api"), "DATABASE__URL"),
        (("-m", "services.api"), "PSEUDONYM_KEY"),
        (("-m", "services.dicom"), "DATABASE__URL"),
        (("-m", "services.dicom"), "PSEUDONYM_KEY"),
        (("-m", "services.embedded.setup"), "DATABASE__URL"),
        (("-m", "celery", "-A", "workers.app", "worker"), "BROKER__URL"),
        (("-m", "celery", "-A", "workers.app", "worker"), "DATABASE__URL"),
        (("-m", "celery", "-A", "workers.app", "worker"), "PSEUDONYM_KEY"),
        (("-m", "celery", "-A", "workers.app", "beat"), "BROKER__URL"),
    ],
)
def test_a_process_without_a_secret_that_it_needs_ends_instead_of_refusing_its_callers(words, missing, tmp_path):
    given = {
        "PYTHONPATH": str(ROOT),  # the schedule of beat is written into the folder of the call
        "SIMILIS_HOME": str(tmp_path),
        "SIMILIS_API__PORT": "0",
        "SIMILIS_DICOM__PORT": "0",
        "SIMILIS_DATABASE__URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "SIMILIS_BROKER__URL": "redis://127.0.0.1:1/0",
        "SIMILIS_PSEUDONYM_KEY": "k" * 40,
    }
    ran = subprocess.run(
        [sys.executable, *words], env=os.environ | given | {f"SIMILIS_{missing}": ""}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].endswith(f": SIMILIS_{missing} or SIMILIS_{missing}_FILE is not set")


def test_a_pseudonym_key_is_long_enough(monkeypatch):
    monkeypatch.setenv("SIMILIS_PSEUDONYM_KEY", "k" * 31)
    with pytest.raises(SystemExit, match="SIMILIS_PSEUDONYM_KEY: must have at least 32 bytes"):
        read("similis api")
    monkeypatch.setenv("SIMILIS_PSEUDONYM_KEY", "k" * 32)
    assert read("similis api")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://similis:p%40ss@db/similis",
        "postgresql+psycopg://similis:a:b/c@db:5432/similis?sslmode=require",
        "postgresql+psycopg://similis:secret@/similis?host=/run/pg",
        "postgresql+psycopg://similis@[::1]:5432/similis",
        "postgresql+psycopg://nobody@/nothing?host=/nonexistent",
        "postgresql://db",
        "",
    ],
)
def test_an_address_of_the_database_is_taken_as_sqlalchemy_takes_it(monkeypatch, url):
    monkeypatch.setenv("SIMILIS_DATABASE__URL", url)
    assert Settings().database.url.get_secret_value() == url
    if url:
        assert sa.make_url(url).get_backend_name() == "postgresql"


DATABASE, BROKER = ("SIMILIS_DATABASE__URL", "postgresql+psycopg://"), ("SIMILIS_BROKER__URL", "redis://")


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        (DATABASE, "SECRET"),
        (DATABASE, "postgres://similis:SECRET@db/similis"),
        (DATABASE, "mysql://similis:SECRET@db/similis"),
        (DATABASE, "postgresql+psycopg2://similis:SECRET@db/similis"),
        (DATABASE, "postgresql+psycopg://similis:p@SECRET:w0rd@db/similis"),
        (DATABASE, "postgresql+psycopg://similis:SECRET@db:port/similis"),
        (BROKER, "SECRET"),
        (BROKER, "http://:SECRET@broker:6379/0"),
        (BROKER, "redis://:SECRET@broker:port/0"),
        (BROKER, "redis://:p@SECRET@broker"),
    ],
)
def test_what_is_no_address_is_told_without_its_password(monkeypatch, setting, url):
    name, begins = setting
    monkeypatch.setenv(name, url)
    with pytest.raises(SystemExit) as ended:
        read("similis worker")
    assert f"{name}: the URL must have the form {begins}" in str(ended.value)
    assert "SECRET" not in str(ended.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://broker",
        "redis://:p%40ss@broker:6379/0",
        "rediss://user:pass@10.0.0.1:6380/1?ssl_cert_reqs=required",
        "redis://[::1]:6379/0",
        "redis+socket:///run/valkey.sock",
        "redis+socket:///run/valkey.sock?virtual_host=1",
        "sentinel://a:26379;sentinel://b:26379",
    ],
)
def test_addresses_of_a_broker_are_taken(monkeypatch, url):
    monkeypatch.setenv("SIMILIS_BROKER__URL", url)
    assert Settings().broker.url.get_secret_value() == url


@pytest.mark.parametrize("url", ["similis.example", "ftp://a", "https://me:word@a", "https://a/?b", "https://a b"])
def test_the_public_address_is_one_of_http(monkeypatch, url):
    monkeypatch.setenv("SIMILIS_API__PUBLIC_URL", "https://similis.example/archive")
    assert Settings().api.public_url == "https://similis.example/archive"
    monkeypatch.setenv("SIMILIS_API__PUBLIC_URL", url)
    with pytest.raises(SystemExit, match="SIMILIS_API__PUBLIC_URL"):
        read("similis api")


def test_how_much_is_logged_is_a_word_of_four_in_any_case(monkeypatch):
    monkeypatch.setenv("SIMILIS_LOG_LEVEL", "warning")
    assert Settings().log_level == "WARNING"
    monkeypatch.setenv("SIMILIS_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit, match="SIMILIS_LOG_LEVEL"):
        read("similis api")
