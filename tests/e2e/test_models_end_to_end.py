"""A backbone, a super-ensemble and ACIR in turn on one archive, by the command line and over HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from services.embedded.client import Embedded
from shared import process
from shared.datasets.archive import Record, write_archive
from shared.encoder import cards
from shared.store.session import Store
from tests.e2e.test_end_to_end import similis
from tests.e2e.test_reindex_under_fire import command

STUDIES = 4  # three women; sixteen images, enough for a fitted code of eight bits
READY_WITHIN_S = 240.0  # the stack adds its default model after its start
ACIR = {"widths": "s", "bits": 64, "side": 112}

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

Json = dict[str, Any]


class Hospital:
    """A stack that holds a sample archive."""

    def __init__(self, stack: Embedded, records: list[Record]) -> None:
        self.stack, self.records, self.home = stack, records, stack.home.path
        self.store = Store((stack.home / "database.url").read_text().strip())
        self.http = httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {stack.api_key}"}, timeout=120)

    def similar(self, study: str, **params: Any) -> Json:
        answer = self.http.get(f"/v1/studies/{study}/similar", params={"k": 50, **params})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, *words: str) -> Json:
        return similis(self.home, *words, "--json")

    def change_to(self, model: str) -> int:
        """Build a generation of the model from the archive and publish it; return its number."""
        built = self.run("generations", "create", model, "--follow")
        assert (built["state"], built["live"]) == ("ready", False)
        images = built["images"]
        assert (images["covered"], images["exceptions"]) == (len(self.records), 0)
        assert self.run("generations", "publish", str(built["id"]))["live"]
        return int(built["id"])

    def others(self, study: str) -> set[str]:
        """The studies of other patients than this study's."""
        (patient,) = {record.patient for record in self.records if record.study == study}
        return {record.study for record in self.records if record.patient != patient}

    def codes(self, fingerprint: str) -> dict[str, int]:
        """The stored codes of a model, by SOP Instance UID."""
        statement = sa.text(
            "SELECT i.sop_uid, e.code FROM encoding e JOIN image i ON i.id = e.image_id "
            "JOIN model m ON m.id = e.model_id WHERE m.fingerprint = :fingerprint"
        )
        with self.store.reading() as connection:
            rows = connection.execute(statement, {"fingerprint": fingerprint})
            return {uid: int.from_bytes(code) for uid, code in rows}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("models")
    records = write_archive(folder / "archive", STUDIES, 7)
    stack = Embedded(folder / "home", workers=1)
    stack.start()
    try:
        made = Hospital(stack, records)
        ready = process.until(lambda: made.http.get("/readyz").json()["model"] == "similis-base", READY_WITHIN_S, 0.5)
        assert ready
        labels = str(folder / "archive" / "labels.csv")
        taken = made.run("ingest", str(folder / "archive" / "mammography"), "--labels", labels)
        assert [(o["outcome"], o["count"]) for o in taken["outcomes"]] == [("encoded", len(records))]
        yield made
        made.http.close()
        made.store.close()
    finally:
        stack.stop()


def make_models(hospital: Hospital) -> None:
    """Build the models that need no archive: weights, options and graphs, in the stack's models folder."""
    home = hospital.home
    options = home.parent / "acir.json"
    options.write_text(json.dumps(ACIR))
    for name in ("densenet121", "resnet50"):
        command(home, "models", "make", name, "--architecture", name, "--weights", "random:0")
    members = ("--members", "densenet121", "--members", "resnet50")
    command(home, "models", "ensemble", "super", *members, "--join", "unit", "--tta", "five")
    command(
        home, "models", "make", "acir-s", "--architecture", "acir", "--weights", "random:0",
        "--size", "112", "--options", str(options),
    )  # fmt: skip


def studies_of(answer: Json) -> list[tuple[str, float]]:
    return [(study["study_instance_uid"], study["score"]) for study in answer["studies"]]


def check_dense(hospital: Hospital, study: str, who: tuple[str, int]) -> Json:
    answer = hospital.similar(study)
    assert (answer["model"]["fingerprint"], answer["generation"], answer["mode"]) == (*who, "dense")
    found = studies_of(answer)
    assert {uid for uid, _ in found} == hospital.others(study)
    assert found == studies_of(hospital.similar(study, exact=True)) == sorted(found, key=lambda one: -one[1])
    return answer


def check_codes(hospital: Hospital, study: str, who: tuple[str, int], bits: int) -> None:
    """Distances are those of the stored codes, a ball is complete, and hybrid mode ranks by embedding."""
    stored = hospital.codes(who[0])
    assert len(stored) == len(hospital.records)
    assert len(set(stored.values())) > 1
    assert max(stored.values()).bit_length() <= bits
    whole = hospital.similar(study, mode="hash", radius=bits)
    pairs = [match for one in whole["studies"] for match in one["matches"]]
    nearest = min(match["hamming"] for match in pairs)
    ball = hospital.similar(study, mode="hash", radius=nearest)
    hybrid = hospital.similar(study, mode="hybrid")
    assert studies_of(hospital.similar(study, mode="hash", radius=bits)) == studies_of(whole)
    assert {uid for uid, _ in studies_of(whole)} == hospital.others(study)
    assert ball["studies"]
    assert all(match["hamming"] <= nearest for one in ball["studies"] for match in one["matches"])
    assert dict(studies_of(hybrid)) == pytest.approx(dict(studies_of(hospital.similar(study, exact=True))), abs=1e-5)
    for answer in (whole, ball, hospital.similar(study, mode="hash"), hybrid):
        assert (answer["model"]["fingerprint"], answer["generation"]) == who
        assert not answer["cut"]
        for match in (match for one in answer["studies"] for match in one["matches"]):
            query, hit = stored[match["query_sop_instance_uid"]], stored[match["sop_instance_uid"]]
            assert match["hamming"] == (query ^ hit).bit_count()
            assert -1 <= match["content"] <= 1


def test_backbone_super_ensemble_and_acir_are_added_built_published_searched_and_rolled_back(
    hospital: Hospital,
) -> None:
    make_models(hospital)
    study = hospital.records[0].study
    assert hospital.others(study)
    answers: list[Json] = []
    for name, base, dim, bits in (
        ("densenet121", None, 1024, 0),
        ("densenet121-code", "densenet121", 1024, 8),
        ("super", None, 3072, 0),
        ("super-code", "super", 3072, 8),
        ("acir-s", None, 1152, 64),
    ):
        if base is None:
            known = hospital.run("models", "add", name)
        else:  # a code is fitted to the encodings of the archive
            known = hospital.run("models", "hash", base, "--name", name, "--bits", str(bits))
        assert (known["dim"], known["bits"]) == (dim, bits)
        assert known["fingerprint"] == cards.read(hospital.home / "models" / name).fingerprint
        who = known["fingerprint"], hospital.change_to(name)
        answers.append(check_dense(hospital, study, who))
        if bits:
            check_codes(hospital, study, who, bits)
        else:
            assert hospital.http.get(f"/v1/studies/{study}/similar?mode=hash").status_code == 409
    assert len({answer["model"]["fingerprint"] for answer in answers}) == len(answers)
    hospital.run("generations", "rollback")
    before = answers[-2]
    after = check_dense(hospital, study, (before["model"]["fingerprint"], before["generation"]))
    assert studies_of(after) == studies_of(before)
