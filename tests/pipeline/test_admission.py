"""Rules of admission: the first match decides, and a faulty file is refused with the place of the fault."""

from pathlib import Path

import pytest

from shared.errors import Invalid
from shared.pipeline import admission
from shared.pipeline.admission import Action, Admission
from tests.conftest import ROOT
from tests.miniature import header

#: The example in the document.
RULES = (ROOT / "docs" / "admission.md").read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]


WAITS = "the test scanner waits for a person"


def read(folder: Path, text: str) -> Admission:
    path = folder / "rules.toml"
    path.write_text(text)
    return admission.read(path)


@pytest.mark.parametrize(
    ("image", "origin", "decided"),
    [
        ({}, {"source": "dicom", "sender": "ROOM1"}, (Action.ACCEPT, "mammography")),
        ({"presentation_intent": "FOR PROCESSING"}, {"source": "folder"}, (Action.DISCARD, "no raw detector data")),
        ({"presentation_intent": "FOR PRESENTATION"}, {"source": "folder"}, (Action.ACCEPT, "mammography")),
        ({}, {"source": "dicom", "sender": "test-7"}, (Action.QUARANTINE, WAITS)),
        ({}, {"source": "stow", "sender": "test-7"}, (Action.ACCEPT, "mammography")),
        ({"modality": "CT"}, {"source": "dicom", "sender": "TEST1"}, (Action.QUARANTINE, WAITS)),
        *(
            ({"modality": other}, {"source": "folder"}, (Action.REFUSE, "nothing else"))
            for other in ("MR", "CT", "RTIMAGE", "IVUS", "OPT", "M", "")
        ),
    ],
)
def test_the_first_rule_that_fits_decides(
    tmp_path: Path, image: dict[str, str], origin: dict[str, str], decided: tuple[Action, str]
) -> None:
    assert read(tmp_path, RULES).decide(header(1, **image), **origin) == decided


def test_the_file_may_come_from_a_windows_editor(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + RULES).decide(header(1), source="folder") == (Action.ACCEPT, "mammography")


def test_without_rules_all_is_accepted(tmp_path: Path) -> None:
    assert read(tmp_path, "").decide(header(1), source="folder") == (Action.ACCEPT, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule]\n", "not valid TOML"),
        ("rules = 1\n", "nothing else"),
        ('[[rule]]\nthen = "accept"\n', "rule 1 has no name"),
        ('[[rule]]\nname = "a"\nthen = "drop"\n', "'a': `then` must be one of accept, quarantine, discard, refuse"),
        ('[[rule]]\nname = "a"\nthen = "accept"\nwen = {}\n', "'a': unknown key 'wen'"),
        (
            '[[rule]]\nname = "a"\nthen = "accept"\nwhen = { PatientName = "X" }\n',
            "'a': the keys of `when` must be among",
        ),
        ('[[rule]]\nname = "a"\nthen = "accept"\nwhen = { modality = 7 }\n', "'a': modality must be a string"),
        ('[[rule]]\nname = "a"\nthen = "accept"\nwhen = { modality = [] }\n', "'a': modality must be a string"),
        (
            '[[rule]]\nname = "a"\nthen = "refuse"\nwhen = { source = "fodler" }\n',
            "'a': source must match one of folder, dicom",
        ),
        ('[[rule]]\nname = "a"\nthen = "refuse"\nwhen = { source = ["S*", "X*"] }\n', "'a': source must match one of"),
        ('[[rule]]\nname = "a"\nthen = "accept"\n[[rule]]\nname = "a"\nthen = "refuse"\n', "two admission rules"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        read(tmp_path, text)


@pytest.mark.parametrize(("pattern", "source"), [("FOLDER", "folder"), ("sto?", "stow"), ("s*e", "store")])
def test_a_source_may_be_a_pattern(tmp_path: Path, pattern: str, source: str) -> None:
    rules = f'[[rule]]\nname = "a"\nthen = "refuse"\nwhen = {{ source = "{pattern}" }}\n'
    assert read(tmp_path, rules).decide(header(1), source=source) == (Action.REFUSE, "a")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        admission.read(tmp_path / "none.toml")
