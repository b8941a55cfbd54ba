"""A published set from folder to search, with the real scan, sandbox and rows."""

from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

import workers.ingest
from shared.pipeline import encode, project
from tests.datasets import made


@pytest.fixture
def work(archive, monkeypatch):
    """Runs the workers' tasks in this process until no work is left."""
    monkeypatch.setattr(workers.ingest, "runtime", lambda: archive.rt)

    def run():
        rt = archive.rt
        workers.ingest.scan_folders()
        encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort)
        project.drain(rt.transaction, rt.index, gather_s=0)

    return run


@pytest.fixture
def take_in(client, work):
    def run(path: Path, dataset: str):
        asked = client.post("/v1/ingest/scans", json={"path": str(path), "dataset": dataset})
        assert asked.status_code == 202, asked.text
        work()
        return client.get(f"/v1/operations/{asked.json()['id']}").json()

    return run


def three_women(folder: Path) -> Path:
    """Woman 1 has both breasts, 2 and 3 one each; every image in both kinds."""
    names = {f"P{p}_{side}_{kind}_CC": f"{p + 2}$1" for p, side in ((1, "L"), (1, "R"), (2, "L"), (3, "L"))
             for kind in ("DM", "CM")}  # fmt: skip
    root = made.cdd_cesm(folder / "CDD-CESM", names)
    made.docx(root / "Medical reports for cases" / "P1.docx", ["OPINION:", "Left Breast:", "(BIRADS 2)"])
    (root / "~$P54.docx").write_bytes(b"lock")
    return root


def images_of(client, uid):
    return [image for series in client.get(f"/v1/studies/{uid}").json()["series"] for image in series["images"]]


def listed(client):
    return {study["study_instance_uid"]: study for study in client.get("/v1/studies").json()["studies"]}


def test_a_download_of_cdd_cesm_is_searchable_by_exam_with_its_labels(client, take_in, tmp_path):
    body = take_in(three_women(tmp_path), "cdd-cesm")
    assert [(row["outcome"], row["count"]) for row in body["outcomes"]] == [("encoded", 8)]
    assert body["counts"] == {
        "taken": 8,
        "unchanged": 0,
        "settling": 0,
        "dataset:compound-birads": 8,
        "dataset:lock-file": 1,
        "dataset:report-differs": 1,
        **{f"label:BI-RADS {n}, {kind}": 2 if n == 3 else 1 for n in (3, 4, 5)
           for kind in ("CESM_subtracted", "DM_low_energy")},
    }  # fmt: skip
    studies = listed(client)
    assert len(studies) == 3
    whole = {uid: images_of(client, uid) for uid in studies}
    assert sorted(len(images) for images in whole.values()) == [2, 2, 4]
    uid, first = next((uid, images) for uid, images in whole.items() if len(images) == 4)
    assert Counter((i["laterality"], i["view"]) for i in first) == {("L", "CC"): 2, ("R", "CC"): 2}
    labels = first[0]["labels"]
    assert (labels["birads"], labels["density"], labels["pathology"]) == (3, "C", "normal")
    assert {i["labels"]["kind"] for i in first} == {"DM_low_energy", "CESM_subtracted"}
    assert labels["birads_raw"] == "3$1"
    found = client.get(f"/v1/studies/{uid}/similar", params={"k": 10}).json()
    assert len(found["studies"]) == 2
    assert uid not in {study["study_instance_uid"] for study in found["studies"]}


def test_taking_it_in_again_changes_nothing(client, archive, take_in, tmp_path):
    root = three_women(tmp_path)
    take_in(root, "cdd-cesm")
    before = listed(client)
    with archive.rt.transaction() as db:
        revisions = db.execute(sa.text("SELECT id, revision FROM image ORDER BY id")).all()
    again = take_in(root, "cdd-cesm")
    assert (again["counts"]["unchanged"], again["total"], again["outcomes"]) == (8, 8, [])
    assert listed(client) == before
    with archive.rt.transaction() as db:
        assert db.execute(sa.text("SELECT id, revision FROM image ORDER BY id")).all() == revisions


def test_a_corrected_sheet_changes_the_labels_and_nothing_else(client, archive, take_in, tmp_path):
    root = three_women(tmp_path)
    take_in(root, "cdd-cesm")
    names = [f"P{p}_{s}_{k}_CC" for p, s in ((1, "L"), (1, "R"), (2, "L"), (3, "L")) for k in ("DM", "CM")]
    made.workbook(root / made.WORKBOOK, [made.row(name, 6) for name in names])
    take_in(root, "cdd-cesm")
    with archive.rt.transaction() as db:
        assert db.execute(sa.text("SELECT DISTINCT birads FROM image")).scalars().all() == [6]
        assert db.execute(sa.text("SELECT count(*) FROM image")).scalar_one() == 8
        assert db.execute(sa.text("SELECT count(*) FROM encoding")).scalar_one() == 8


def inbreast(folder: Path) -> Path:
    """Two women, the first with two images; all headers name the same patient."""
    root = folder / "INbreast"
    women = ("6c613a14b80a8591", "6c613a14b80a8591", "036aff49b8ac84f0")
    rows = []
    for n, woman in enumerate(women):
        number = 20586908 + n
        side = "LR"[n % 2]
        made.dicom(
            root / "AllDICOMs" / f"{number}_{woman}_MG_{side}_CC_ANON.dcm", made.noise(n, 96).cumsum(axis=1) % 251, n
        )
        rows.append(["removed", "removed", side, "CC", "201001", number, "2", "4a"])
    head = ["Patient ID", "Patient age", "Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads"]
    made.table(root / "INbreast.csv", head, rows, ";")
    return root


def test_where_headers_make_strangers_one_patient_the_set_says_who_is_who(client, archive, take_in, tmp_path):
    take_in(inbreast(tmp_path), "inbreast")
    studies = listed(client)
    assert len(studies) == 2
    with archive.rt.transaction() as db:
        assert db.execute(sa.text("SELECT count(DISTINCT patient_key) FROM study")).scalar_one() == 2
        assert set(db.execute(sa.text("SELECT birads FROM image")).scalars()) == {4}


def test_what_identifies_nobody_else_reaches_the_database(archive, take_in, tmp_path):
    take_in(inbreast(tmp_path), "inbreast")
    with archive.rt.transaction() as db:
        told = str(db.execute(sa.text("SELECT to_jsonb(s), to_jsonb(i) - 'path' FROM study s, image i")).all())
    assert "6c613a14b80a8591" not in told
    assert "removed" not in told


def test_a_folder_that_is_no_such_download_fails_the_operation_and_says_what_is_missing(take_in, tmp_path):
    root = three_women(tmp_path)
    (root / made.WORKBOOK).unlink()
    body = take_in(root, "cdd-cesm")
    assert body["state"] == "failed"
    assert body["error"] == "the data set has no Radiology-manual-annotations.xlsx"
    assert take_in(root, "vindr-mammo")["state"] == "failed"


@pytest.mark.parametrize("more", [{"dataset": "mias"}, {"dataset": "cdd-cesm", "watch": True},
                                  {"dataset": "cdd-cesm", "labels": "/labels.csv"}])  # fmt: skip
def test_an_unknown_set_or_one_with_a_table_or_a_watch_is_refused(client, tmp_path, more):
    answer = client.post("/v1/ingest/scans", json={"path": str(tmp_path)} | more)
    assert answer.status_code == 400
    assert "set" in answer.json()["detail"]
