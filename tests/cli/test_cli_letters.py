"""Dead letters and admission rules on the command line."""

import shutil

import pydicom.data
import pytest

RULES = """
[[rule]]
name = "no MR"
when = { modality = "MR" }
then = "refuse"
"""


def letter(name, **more):
    one = {"letter": name, "reason": "encoder-error", "attempts": 5, "since": "2026-11-20"}
    return one | {"sop_instance_uid": "1.2.3", "operation": None} | more


def test_letters_are_listed_and_tried_again(home, server, similis):
    server.on("GET /v1/dead-letters", {"letters": [letter("image-7"), letter("file-3")], "next": "c"})
    listed = similis("letters", "list", "--reason", "encoder-error", "--home", home)
    assert "image-7" in listed.out
    assert "--cursor c" in listed.err
    server.on("POST /v1/dead-letters/image-7:retry", {"retried": {"image": 1}}, 202)
    assert similis("letters", "retry", "image-7", "--home", home).out == "will be tried again: 1 image\n"
    server.on("POST /v1/dead-letters:retry", {"retried": {"image": 4, "point": 2}}, 202)
    assert "4 image, 2 point" in similis("letters", "retry", "--kind", "image", "--home", home).out
    assert server.asked[-1].json == {"kind": "image"}


@pytest.mark.parametrize("asked", [[], ["image-7", "--kind", "image"]])
def test_a_letter_or_a_kind_must_be_named(home, similis, asked):
    assert similis("letters", "retry", *asked, "--home", home).code == 2


def test_rules_are_tried_on_a_folder_before_they_are_in_force(similis, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("MR_small.dcm", "CT_small.dcm"):
        source = pydicom.data.get_testdata_file(name, download=False)
        shutil.copy(source, folder / name)
    (folder / "notes.txt").write_text("no image")
    assert "modality = MR" in similis("rules", "check", rules).out
    told = similis("rules", "try", rules, folder, "--each", "--json").json
    assert {(one["file"], one["then"]) for one in told["files"]} == {
        ("MR_small.dcm", "refuse"), ("CT_small.dcm", "accept"), ("notes.txt", "no study object"),
    }  # fmt: skip
    tried = similis("rules", "try", rules, folder)
    assert ("nothing was taken in" in tried.out, tried.err) == (True, "")
    misspelt = similis("rules", "try", rules, folder, "--source", "fodler")
    assert misspelt.code == 2
    assert "one of folder, dicom, stow, backfill, store" in " ".join(misspelt.err.split())


def test_rules_that_are_wrong_are_named(similis, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES.replace("refuse", "drop"))
    ran = similis("rules", "check", rules)
    assert ran.code == 5
    assert "'no MR'" in ran.err
