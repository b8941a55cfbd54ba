"""Searches by one stored study, by several, and by an uploaded picture."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from pydicom.data import get_testdata_file

from services.api.answers import BatchOut, RankingOut
from shared.encoder import cards
from shared.encoder.derive import build_hashed
from shared.pipeline import lifecycle
from tests.api.conftest import CANARY, png, serving, variants


def uids(answer):
    assert answer.status_code == 200, answer.text
    return [study["study_instance_uid"] for study in answer.json()["studies"]]


def test_a_study_finds_its_neighbours_and_not_its_own_patient(client, filled):
    answer = client.get("/v1/studies/1.2.3.1/similar?k=3")
    assert uids(answer) == ["1.2.3.3", "1.2.3.4", "1.2.3.5"]
    body = answer.json()
    assert body["hidden"] == {"studies": 2, "images": 8}
    assert body["model"]["name"] == "null-a"
    assert body["model"]["trained"] is False
    assert "untrained" in body["model"]["label"]
    assert (body["generation"], body["exact"], body["excluded"]) == (1, True, ["patient", "self", "study"])
    assert [study["rank"] for study in body["studies"]] == [1, 2, 3]
    scores = [study["score"] for study in body["studies"]]
    assert scores == sorted(scores, reverse=True)
    best = body["studies"][0]["matches"]
    assert {(m["query_sop_instance_uid"], m["sop_instance_uid"], m["same_view"]) for m in best} == {
        (f"1.2.3.1.{i}", f"1.2.3.3.{i}", True) for i in range(4)
    }
    assert client.get(best[0]["thumbnail"]).status_code == 200


def test_the_answer_fits_its_documented_shape(client, filled):
    """The answers of searches are sent as they are made: nothing else compares them with their shape."""
    ranking, batch = TypeAdapter(RankingOut), TypeAdapter(BatchOut)
    file = ("x.png", png(), "image/png")
    for answer, shape in (
        (client.get("/v1/studies/1.2.3.1/similar?k=2"), ranking),
        (client.post("/v1/searches?k=2", files={"file": file}), ranking),
        (client.post("/v1/searches", json={"studies": ["1.2.3.1"], "k": 2}), batch),
    ):
        assert shape.dump_python(shape.validate_json(answer.content), mode="json") == answer.json()


def test_exclusions_are_what_was_asked(client, filled):
    def similar(exclude):
        return uids(client.get(f"/v1/studies/1.2.3.1/similar?k=12&exclude={exclude}"))

    assert "1.2.3.1" in similar("none")
    assert "1.2.3.2" in similar("none")
    assert "1.2.3.1" not in similar("self")
    assert "1.2.3.2" in similar("study")
    assert "1.2.3.1" not in similar("self,study")
    assert not {"1.2.3.1", "1.2.3.2"} & set(similar("patient"))
    assert client.get("/v1/studies/1.2.3.1/similar?exclude=none,self").status_code == 400
    assert similar("PATIENT,Study") == similar("patient,study")
    refused = client.get("/v1/studies/1.2.3.1/similar?exclude=self,nobody")
    assert (refused.status_code, refused.json()["errors"]) == (
        400,
        [{"where": "query.exclude.1", "code": "literal_error",
          "message": "must be 'self', 'study', 'patient' or 'none'"}],
    )  # fmt: skip


def test_filters_keep_what_they_name(client, filled):
    filled.label("1.2.3.7", birads=4, density="C")
    filled.label("1.2.3.8", birads=5, density="D", pathology="malignant")

    def similar(filters):
        return set(uids(client.get(f"/v1/studies/1.2.3.1/similar?k=12&{filters}")))

    assert similar("birads=4,5") == {"1.2.3.7", "1.2.3.8"}
    assert similar("birads=4&birads=5") == {"1.2.3.7", "1.2.3.8"}
    assert similar("density=c") == {"1.2.3.7"}
    assert similar("StudyDate=20240104-20240105") == {"1.2.3.3", "1.2.3.4"}
    assert similar("StudyDate=20240111-") == {"1.2.3.10", "1.2.3.11", "1.2.3.12"}
    assert similar("StudyDate=20240104") == {"1.2.3.3"}
    assert similar("Modality=CT") == set()
    assert len(similar("ModalitiesInStudy=MG")) == 10
    answer = client.get("/v1/studies/1.2.3.1/similar?k=1&ViewPosition=mlo&ImageLaterality=R").json()
    assert {(m["laterality"], m["view"]) for m in answer["studies"][0]["matches"]} == {("R", "MLO")}
    labelled = client.get("/v1/studies/1.2.3.1/similar?k=1&birads=5").json()["studies"][0]["labels"]
    assert labelled == {"birads": [5], "density": ["D"], "pathology": ["malignant"]}


def test_filters_are_named_by_keyword_or_by_tag_as_in_qido(client, filled):
    filled.take_in(20, modality="CT")

    def similar(filters):
        return uids(client.get(f"/v1/studies/1.2.3.1/similar?k=12&{filters}"))

    def batch(address="", **fields):
        answer = client.post(f"/v1/searches?{address}", json={"studies": ["1.2.3.1"], **fields})
        return [study["study_instance_uid"] for study in answer.json()["rankings"][0]["studies"]]

    assert similar("00080060=CT") == similar("00080061=CT") == similar("Modality=CT") == ["1.2.3.20"]
    assert similar("00080020=20240104") == ["1.2.3.3"]
    assert similar("00185101=CC&00200062=L&00080060=MG") == similar("ViewPosition=CC&ImageLaterality=L&Modality=MG")
    assert "1.2.3.20" in similar("00080060=CT&Modality=MG")
    assert batch(**{"00080060": ["CT"]}) == ["1.2.3.20"]
    assert batch("Modality=MG", **{"00080060": ["CT"]}) == ["1.2.3.20"]


@pytest.mark.parametrize("filters", ["00080020=20240104&StudyDate=20240104", "00080018=1.2.3", "00080060=a*"])
def test_what_a_keyword_may_not_say_a_tag_may_not_either(client, filters):
    assert client.get(f"/v1/studies/1.2.3.1/similar?{filters}").status_code == 400


def test_of_one_attribute_under_two_names_no_body_loses_a_value(client):
    refused = client.post("/v1/searches", json={"studies": ["1.2.3.1"], "Modality": "CT", "00080060": "MG"})
    assert refused.status_code == 400
    assert "Modality is given by keyword and by tag; give one of them" in refused.json()["errors"][0]["message"]


def test_an_image_may_be_compared_with_its_own_view_only(client, filled):
    answer = client.get("/v1/studies/1.2.3.1/similar?k=5&view=match").json()
    assert all(match["same_view"] for study in answer["studies"] for match in study["matches"])


def test_pages_follow_one_another_without_gap_or_repeat(client, filled):
    whole = uids(client.get("/v1/studies/1.2.3.1/similar?k=10"))
    address, seen, ranks = "/v1/studies/1.2.3.1/similar?k=4", [], []
    while address:
        answer = client.get(address)
        seen += uids(answer)
        ranks += [study["rank"] for study in answer.json()["studies"]]
        if len(seen) == 4:
            filled.take_in(30)  # arrives between two pages, and must not affect them
        link = answer.headers.get("Link")
        assert (link is None) == (answer.json()["next"] is None)
        address = link and link.partition("<")[2].partition(">")[0]
    assert seen == whole
    assert ranks == list(range(1, len(whole) + 1))


def test_a_cursor_belongs_to_its_query(client, filled):
    cursor = client.get("/v1/studies/1.2.3.1/similar?k=2").json()["next"]
    assert client.get(f"/v1/studies/1.2.3.1/similar?k=3&cursor={cursor}").status_code == 400
    assert client.get("/v1/studies/1.2.3.1/similar?k=2&cursor=nonsense").status_code == 400
    inside = json.loads(zlib.decompress(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    for studies in ([2**63], [-1], [0]):
        packed = zlib.compress(json.dumps(inside | {"s": studies}).encode())
        made = base64.urlsafe_b64encode(packed).decode().rstrip("=")
        assert client.get(f"/v1/studies/1.2.3.1/similar?k=2&cursor={made}").status_code == 400, studies


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_cursor_has_one_spelling(client, filled, k):
    def status(cursor):
        return client.get("/v1/studies/1.2.3.1/similar", params={"k": k, "cursor": cursor}).status_code

    cursor = client.get(f"/v1/studies/1.2.3.1/similar?k={k}").json()["next"]
    assert status(cursor) == 200
    assert {other: status(other) for other in variants(cursor)} == dict.fromkeys(variants(cursor), 400)


@pytest.mark.parametrize("mode", ["hash", "hybrid"])
def test_a_mode_that_the_model_does_not_have_is_refused_in_words(client, filled, mode):
    refused = client.get(f"/v1/studies/1.2.3.1/similar?mode={mode}")
    assert refused.status_code == 409
    assert "mode=dense" in refused.json()["detail"]


def test_a_search_by_codes_tells_distance_and_content(client, archive, models):
    sample = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    if not (models / "coded").is_dir():
        build_hashed(models / "coded", models / "null-a", sample, 32, name="coded")
    with archive.rt.transaction() as db:  # nothing is encoded yet, so the newest model is published
        lifecycle.add_model(db, archive.rt.indexes, "coded", cards.read(models / "coded"))
    for study in range(1, 9):
        archive.take_in(study)
    answer = client.get("/v1/studies/1.2.3.1/similar?mode=hash&k=3").json()
    assert (answer["mode"], answer["exact"], answer["cut"]) == ("hash", True, False)
    match = answer["studies"][0]["matches"][0]
    assert 0 <= match["hamming"] <= 32
    assert match["content"] == match["score"]
    near = client.get("/v1/studies/1.2.3.1/similar?mode=hash&radius=2").json()
    assert all(m["hamming"] <= 2 for study in near["studies"] for m in study["matches"])
    hybrid = client.get("/v1/studies/1.2.3.1/similar?mode=hybrid&k=3").json()
    assert not hybrid["exact"]  # a ball of codes may miss a neighbour by embedding
    assert -1 <= hybrid["studies"][0]["matches"][0]["content"] <= 1
    dense = client.get("/v1/studies/1.2.3.1/similar?k=3").json()
    assert (dense["studies"][0]["matches"][0]["hamming"], dense["studies"][0]["matches"][0]["content"]) == (None, None)
    assert client.get("/v1/studies/1.2.3.1/similar?radius=3").status_code == 400


def test_k_has_a_limit_that_the_document_and_every_refusal_tell(archive):
    api = archive.rt.settings.api.model_copy(update={"max_k": 50})
    archive.rt.settings = archive.rt.settings.model_copy(update={"api": api})
    with serving(archive) as client:
        client.headers.update(archive.key())
        assert client.get("/v1/studies/1.2.3.1/similar?k=0").status_code == 400
        for k in (51, 201, 10_001):
            for answer in (
                client.get(f"/v1/studies/1.2.3.1/similar?k={k}"),
                client.post("/v1/searches", json={"studies": ["1.2.3.1"], "k": k}),
            ):
                assert (answer.status_code, answer.json()["detail"]) == (400, "k must be between 1 and 50"), k
        document = client.get("/openapi.json").json()
    told = [
        parameter["schema"]["maximum"]
        for methods in document["paths"].values()
        for what in methods.values()
        for parameter in what.get("parameters", [])
        if parameter["name"] == "k"
    ]
    told.append(document["components"]["schemas"]["BatchIn"]["properties"]["k"]["maximum"])
    assert told == [50, 50, 50]


def test_a_study_that_is_not_encoded_is_a_conflict_and_an_unknown_one_is_not_found(client, archive):
    import sqlalchemy as sa

    archive.take_in(1)
    with archive.rt.transaction() as db:
        db.execute(sa.text("DELETE FROM encoding"))
    assert client.get("/v1/studies/1.2.3.1/similar").status_code == 409
    assert client.get("/v1/studies/9.9/similar").status_code == 404


def test_before_the_first_model_a_search_says_to_come_back(bare):
    with serving(bare) as client:
        refused = client.get("/v1/studies/1.2/similar", headers=bare.key())
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "5"


def test_several_studies_are_asked_at_once(client, filled):
    asked = {"studies": ["1.2.3.5", "1.2.3.1"], "k": 2, "birads": [], "ViewPosition": "CC"}
    answer = client.post("/v1/searches", json=asked)
    assert answer.status_code == 200, answer.text
    rankings = answer.json()["rankings"]
    assert [r["query"]["study_instance_uid"] for r in rankings] == ["1.2.3.5", "1.2.3.1"]
    alone = client.get("/v1/studies/1.2.3.5/similar?k=2&ViewPosition=CC").json()
    assert rankings[0]["studies"] == alone["studies"]


def test_a_batch_says_which_of_its_studies_is_unknown(client, filled):
    refused = client.post("/v1/searches", json={"studies": ["1.2.3.5", "9.9.9", "1.2.3.1"]})
    assert (refused.status_code, refused.json()["detail"]) == (404, "no such study (number 2 of the 3 asked for)")


def test_a_batch_has_its_limits(client, filled):
    many = {"studies": ["1.2.3.1"] * 51}
    assert client.post("/v1/searches", json=many).status_code == 400
    dear = {"studies": ["1.2.3.1"] * 20, "k": 200}
    assert "at most" in client.post("/v1/searches", json=dear).json()["detail"]


def test_an_uploaded_picture_finds_studies_and_is_not_kept(client, filled, statuses):
    before = statuses()
    formed = client.post("/v1/searches?k=3", files={"file": (f"{CANARY}.png", png(), "image/png")})
    assert len(uids(formed)) == 3
    assert formed.json()["query"]["study_instance_uid"] is None
    raw = client.post("/v1/searches?k=3", content=png(), headers={"Content-Type": "image/png"})
    assert uids(raw) == uids(formed)
    assert statuses() == before


def test_an_uploaded_dicom_file_finds_studies(client, filled):
    path = get_testdata_file("MR_small.dcm", download=False)
    with open(path, "rb") as file:
        answer = client.post("/v1/searches?k=2", files={"file": ("x", file, "application/dicom")})
    assert len(uids(answer)) == 2


def test_a_picture_that_a_gate_would_stop_is_searched_and_says_so(client, filled):
    out = io.BytesIO()
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(out, "PNG")
    answer = client.post("/v1/searches?k=1", files={"file": ("x", out.getvalue(), "image/png")})
    assert answer.status_code == 200, answer.text
    (stop,) = answer.json()["query"]["stopped_by"]
    assert (stop["gate"], stop["reason"]) == ("pixels", "blank")
    assert stop["explanation"]


def test_what_is_no_picture_is_rejected_with_its_reason(client, filled):
    refused = client.post("/v1/searches", files={"file": ("x", b"hello, world" * 10, "image/png")})
    assert (refused.status_code, refused.json()["reason"]) == (422, "not-a-study-object")
    empty = client.post("/v1/searches", files={"other": ("x", b"x", "image/png")})
    assert empty.status_code == 400


def test_a_form_that_holds_anything_else_is_told_what_it_must_be(client):
    file = ("x.png", png(), "image/png")
    for asked in ({"files": {"file": file}, "data": {"k": "3"}}, {"files": [("file", file), ("file", file)]}):
        refused = client.post("/v1/searches", **asked)
        assert refused.status_code == 400
        assert "one file named `file` and nothing else" in refused.json()["detail"]


def test_a_model_that_this_process_lacks_is_told_as_unavailable(client, filled, tmp_path):
    filled.rt.settings = filled.rt.settings.model_copy(update={"models": tmp_path})
    filled.rt._encoders.clear()
    refused = client.post("/v1/searches", files={"file": ("x", png(), "image/png")})
    assert refused.status_code == 503
    assert client.get("/v1/studies/1.2.3.1/similar").status_code == 200
