"""The platform as its users have it: the real stack, the real command line, the sample archive."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from blake3 import blake3
from PIL import Image

from services.embedded import attach
from services.embedded import backup as backups
from services.embedded.client import Embedded
from shared import process
from shared.datasets.archive import write_archive
from shared.store.blobs import Blobs
from tests import tiny
from tests.imaging.pictures import breast, dataset, file_of


def similis(home: Path, *words: str) -> Any:
    """Run one command; return its JSON output."""
    env = {**os.environ, "SIMILIS_HOME": str(home), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli.main", *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class World:
    """A stack that has ingested the sample archive with the null encoder."""

    def __init__(self, folder: Path) -> None:
        self.home, self.archive = folder / "home", folder / "archive"
        self.records = write_archive(self.archive, studies=6, seed=7, size="small")
        self.stack = Embedded(self.home, workers=2)

    def start(self) -> None:
        self.stack.start()

    def run(self, *words: str) -> Any:
        return similis(self.home, *words)

    def status(self, study: str) -> str:
        """The status of the study's first image."""
        headers = {"Authorization": f"Bearer {self.stack.api_key}"}
        answer = httpx.get(f"{self.stack.url}/v1/studies/{study}", headers=headers, timeout=30).json()
        return str(answer["series"][0]["images"][0]["status"])

    def similar(self, study: str, **params: Any) -> Any:
        answer = httpx.get(
            f"{self.stack.url}/v1/studies/{study}/similar",
            params=params,
            headers={"Authorization": f"Bearer {self.stack.api_key}"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def world(quick_folder: Path) -> Iterator[World]:
    made = World(quick_folder)
    made.start()
    env = {**os.environ, "SIMILIS_HOME": str(made.home)}
    for words in (
        ["models", "make", "null", "--architecture", "null", "--weights", "random:0"],
        ["models", "add", str(made.home / "models" / "null")],
    ):
        subprocess.run([sys.executable, "-m", "services.cli.main", *words], env=env, check=True)
    made.taken = made.run("ingest", str(made.archive), "--labels", str(made.archive / "labels.csv"), "--json")  # type: ignore[attr-defined]
    yield made
    made.stack.stop()


def studies_of(answer: Any) -> list[tuple[str, float]]:
    return [(s["study_instance_uid"], s["score"]) for s in answer["studies"]]


def test_every_file_has_its_outcome(world: World) -> None:
    outcomes = {(o["outcome"], o["reason"]): o["count"] for o in world.taken["outcomes"]}  # type: ignore[attr-defined]
    assert outcomes[("encoded", None)] >= len(world.records)
    assert any(outcome == "failed" for outcome, _ in outcomes)
    assert ("empty", "not-an-image") in outcomes


def test_taking_it_in_again_changes_nothing(world: World) -> None:
    again = world.run("ingest", str(world.archive), "--labels", str(world.archive / "labels.csv"), "--json")
    assert again["counts"]["unchanged"] == again["total"]
    assert again["outcomes"] == []


def test_similar_studies_are_other_patients(world: World) -> None:
    record = world.records[0]
    hers = {r.study for r in world.records if r.patient == record.patient}
    answer = world.run("search", "--study", record.study, "--json")
    assert answer["studies"]
    assert not hers & {uid for uid, _ in studies_of(answer)}
    assert answer["hidden"]["studies"] == len(hers)
    assert answer["model"]["trained"] is False


def test_an_image_finds_its_own_study(world: World) -> None:
    record = world.records[0]
    image = world.archive / record.file
    answer = world.run("search", "--image", str(image), "--exclude", "none", "--json")
    assert answer["studies"][0]["study_instance_uid"] == record.study
    assert answer["studies"][0]["score"] > 0.99


def test_filters_hold(world: World) -> None:
    answer = world.similar(world.records[0].study, birads="1", exclude="none", k=50)
    wanted = {r.study for r in world.records if r.birads == 1}
    found = {uid for uid, _ in studies_of(answer)}
    assert found
    assert found <= wanted


#: identifying attributes of a header, none of which may be stored anywhere
PERSON = {
    "PatientName": "CANARY^NAME",
    "PatientID": "CANARY-PATIENT-ID",
    "IssuerOfPatientID": "CANARY-ISSUER",
    "OtherPatientIDs": "CANARY-OTHER-ID",
    "PatientBirthDate": "19010203",
    "PatientAddress": "CANARY ADDRESS",
    "PatientComments": "CANARY COMMENTS",
    "AccessionNumber": "CANARY-ACCESSION",
    "ReferringPhysicianName": "CANARY^PHYSICIAN",
    "InstitutionName": "CANARY INSTITUTION",
    "StudyDescription": "CANARY STUDY",
    "StudyID": "CANARY-STUDY-ID",
}
TABLE = {"patient_id": "CANARY-TABLE-ID", "patient_name": "CANARY TABLE NAME", "birth_date": "1902-03-04"}


def stored(world: World) -> str:
    """Every column of every row, as text; bytes as hex."""
    engine = sa.create_engine(attach.settings(world.home).database.url.get_secret_value())
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        rows = [connection.execute(sa.text(f'SELECT CAST(t AS text) FROM "{table}" t')).scalars() for table in tables]
        said = "\n".join(row for found in rows for row in found)
    engine.dispose()
    return said


def test_no_patient_reaches_a_log_or_the_database(world: World) -> None:
    folder = world.home.parent / "canaries"
    folder.mkdir()
    values = (breast(400, 300)).astype("uint16")
    uids = {"SOPInstanceUID": "1.2.826.0.1.4711.1", "StudyInstanceUID": "1.2.826.0.1.4711.2"}
    (folder / "one.dcm").write_bytes(file_of(dataset(values, **uids, **PERSON), values))
    Image.fromarray((values >> 4).astype("uint8")).save(folder / "two.png")
    (folder / "labels.csv").write_text(
        f"file,study,birads,{','.join(TABLE)}\none.dcm,,2,{','.join(TABLE.values())}\n"
        f"two.png,a study,2,{','.join(TABLE.values())}\n"
    )
    taken = world.run("ingest", str(folder), "--labels", str(folder / "labels.csv"), "--json")
    assert taken["counts"]["taken"] == 2
    names = {r.patient for r in world.records} | set(PERSON.values()) | set(TABLE.values()) | {"CANARY"}
    names |= {name.encode().hex() for name in names}
    text = stored(world)
    assert uids["SOPInstanceUID"] in text  # proves that the stored rows were read
    assert [name for name in names if name in text] == []
    for log in (world.home / "logs").iterdir():
        text = log.read_text(encoding="utf-8", errors="replace")
        assert [name for name in names if name in text] == [], log.name


def test_the_same_answer_after_a_restart(world: World) -> None:
    study = world.records[0].study
    before = studies_of(world.similar(study, k=50))
    assert world.stack.stop() == 0
    world.start()
    assert studies_of(world.similar(study, k=50)) == before


def test_the_same_answer_after_the_power_went(world: World) -> None:
    study = world.records[0].study
    before = studies_of(world.similar(study, k=50))
    world.stack.kill()
    world.start()
    assert studies_of(world.similar(study, k=50)) == before


def sent_between_dump_and_copy(home: Path) -> str:
    """Write a file to the store that the backup's database does not know; return its study's UID."""
    part = home.parent / "sent.dcm"
    tiny.write(part, 90, 0)
    content = part.read_bytes()
    place = Blobs(home / "blobs").place(blake3(content).digest())
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    return "1.2.826.0.1.3680043.8.91"


@pytest.mark.soak
def test_another_model_with_codes_answers_and_a_restored_backup_answers_alike(world: World, tmp_path: Path) -> None:
    study = world.records[0].study
    assert world.run("models", "hash", "null", "--name", "coded", "--bits", "8", "--json")["bits"] == 8
    built = world.run("generations", "create", "coded", "--follow", "--json")
    assert (built["state"], built["images"]["exceptions"]) == ("ready", 0)
    assert world.run("generations", "publish", str(built["id"]), "--json")["live"]

    def ask(of: World) -> list[list[tuple[str, float]]]:
        answers = [of.similar(study, k=50, **how) for how in ({}, {"mode": "hash"}, {"mode": "hash", "radius": 8})]
        assert {(one["model"]["name"], one["generation"]) for one in answers} == {("coded", built["id"])}
        return [studies_of(one) for one in answers]

    before = ask(world)
    assert all(before)
    late = sent_between_dump_and_copy(world.home)
    backups.backup(world.home, tmp_path / "kept", print)
    world.stack.stop()
    assert backups.restore(tmp_path / "kept", tmp_path / "new", print, verify=True).findings == []
    world.home, world.stack = tmp_path / "new", Embedded(tmp_path / "new", workers=1)
    world.start()
    assert ask(world) == before
    assert process.until(lambda: world.status(late) == "encoded", 30, 0.2)
