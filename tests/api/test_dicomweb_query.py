"""QIDO-RS: matching, the contents of answers, and refusals."""

import re

import pytest

from services.api import qido, storing
from services.api.dicom_json import ATTRIBUTES
from shared.store.keys import Scope
from tests.api.conftest import CANARY, serving
from tests.conftest import ROOT
from tests.dicomweb import RELATED, instance, related, study_uid

STUDY, SERIES, SOP = "0020000D", "0020000E", "00080018"


def found(client, address, tag=STUDY):
    answer = client.get(f"/dicom-web/{address}")
    assert answer.status_code in (200, 204), answer.text
    if answer.status_code == 204:
        assert answer.content == b""
        return []
    assert answer.headers["content-type"] == "application/dicom+json"
    return [item[tag]["Value"][0] for item in answer.json()]


def test_a_study_is_told_with_all_that_is_kept_of_it(client, filled):
    (study,) = client.get("/dicom-web/studies?StudyInstanceUID=1.2.3.3").json()
    assert study == {
        "00080020": {"vr": "DA", "Value": ["20240104"]},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "00080061": {"vr": "CS", "Value": ["MG"]},
        "00081190": {"vr": "UR", "Value": ["http://127.0.0.1/dicom-web/studies/1.2.3.3"]},
        "0020000D": {"vr": "UI", "Value": ["1.2.3.3"]},
        "00201206": {"vr": "IS", "Value": [1]},
        "00201208": {"vr": "IS", "Value": [4]},
    }


@pytest.mark.parametrize("path", ["studies", "studies/1.2.3.3/metadata"])
def test_behind_a_proxy_addresses_begin_as_its_callers_reach_it(client, filled, path):
    api = filled.rt.settings.api.model_copy(update={"public_url": "https://similis.example/archive/"})
    filled.rt.settings = filled.rt.settings.model_copy(update={"api": api})
    urls = {item["00081190"]["Value"][0] for item in client.get(f"/dicom-web/{path}").json()}
    assert {url.rpartition("/studies/")[0] for url in urls} == {"https://similis.example/archive/dicom-web"}


def test_series_and_instances_are_told_below_their_study(client, filled):
    (series,) = client.get("/dicom-web/studies/1.2.3.3/series").json()
    assert (series[SERIES]["Value"], series["00201209"]["Value"]) == (["1.2.3.3.9"], [4])
    assert "00080070" not in series
    uids = [f"1.2.3.3.{n}" for n in range(4)]
    assert found(client, "studies/1.2.3.3/instances", SOP) == uids
    assert found(client, "studies/1.2.3.3/series/1.2.3.3.9/instances", SOP) == uids
    assert found(client, "studies/1.2.3.3/series/1.2.3.4.9/instances", SOP) == []
    assert len(found(client, "series", SERIES)) == 12
    assert len(found(client, "instances", SOP)) == 48


FOUND = (
    ("StudyInstanceUID=1.2.3.3,1.2.3.5", [3, 5]),
    ("0020000D=1.2.3.3&StudyInstanceUID=1.2.3.5", [3, 5]),
    ("0020000d=1.2.3.3", [3]),
    ("StudyDate=20240104", [3]),
    ("StudyDate=20240104-20240106", [3, 4, 5]),
    ("StudyDate=20240111-", [10, 11, 12]),
    ("00080020=-20240103", [1, 2]),
    ("StudyDate=20240104-20240106&StudyInstanceUID=1.2.3.5", [5]),
    ("SOPInstanceUID=1.2.3.7.2", [7]),
    ("ModalitiesInStudy=mg&limit=2", [1, 2]),
    ("ModalitiesInStudy=CT", []),
    ("ModalitiesInStudy=C*,M?&limit=1", [1]),
    ("Modality=M_", []),
    ("ImageLaterality=L&Rows=100,200&StudyDate=20240104", [3]),
    ("Rows=99", []),
    ("ViewPosition=M*&limit=1&offset=2", [3]),
    ("StudyDate=&ModalitiesInStudy=*&limit=1", [1]),
    ("PatientID=&PatientName=*&limit=1", [1]),
    ("limit=5&offset=10", [11, 12]),
    ("offset=12", []),
    ("offset=1000000000000", []),
)


def test_studies_are_found_by_what_is_kept_of_them(client, filled):
    answers = {query: found(client, f"studies?{query}") for query, _ in FOUND}
    assert answers == {query: [f"1.2.3.{n}" for n in studies] for query, studies in FOUND}


@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_the_modalities_of_a_study_are_those_of_its_own_images(client, filled, level):
    filled.take_in(20, modality="CT")
    assert set(found(client, f"{level}?ModalitiesInStudy=CT")) == {"1.2.3.20"}
    assert set(found(client, f"{level}?ModalitiesInStudy=CT&Modality=MG")) == set()
    assert len(set(found(client, f"{level}?ModalitiesInStudy=MG"))) == 12


def test_counts_are_those_of_the_study_not_of_what_matched(client, filled):
    (study,) = client.get("/dicom-web/studies?SOPInstanceUID=1.2.3.7.2").json()
    assert study["00201208"]["Value"] == [4]
    (series,) = client.get("/dicom-web/series?SOPInstanceUID=1.2.3.7.2").json()
    assert series["00201209"]["Value"] == [4]


def test_the_address_narrows_whatever_the_query_says(client, filled):
    assert set(found(client, "studies/1.2.3.3/instances?StudyInstanceUID=1.2.3.5")) == {"1.2.3.3"}


def test_more_attributes_come_when_they_are_asked_for(client, filled):
    (plain,) = client.get("/dicom-web/instances?SOPInstanceUID=1.2.3.3.1").json()
    (one,) = client.get("/dicom-web/instances?SOPInstanceUID=1.2.3.3.1&includefield=ImageLaterality,00185101").json()
    (all_,) = client.get("/dicom-web/instances?SOPInstanceUID=1.2.3.3.1&includefield=all").json()
    assert set(one) - set(plain) == {"00200062", "00185101"}
    assert (one["00200062"]["Value"], one["00185101"]["Value"]) == (["L"], ["MLO"])
    assert set(one) <= set(all_)


WARNED = (
    ("AccessionNumber=1", "AccessionNumber is not stored here and was not matched"),
    ("00100010.00080020=", None),
    ("includefield=PatientName", "PatientName is not available at this level and was left out"),
    ("includefield=00081030", "StudyDescription is not available"),
    ("fuzzymatching=true", "fuzzymatching is not supported: only literal matching has been performed"),
    ("fuzzymatching=false", None),
)


def test_what_is_not_matched_is_said_in_a_warning(client, filled):
    for query, warning in WARNED:
        answer = client.get(f"/dicom-web/studies?{query}")
        assert answer.status_code == 200, query
        said = answer.headers.get("warning", "")
        assert said.startswith(f'299 similis "{warning}') if warning else said == "", query


THERE_IS_MORE = '299 similis "There are additional results that can be requested"'
CUT = (
    ("studies", 5, True),
    ("studies?limit=1000000", 8, True),
    ("studies?limit=8&offset=4", 8, False),
    ("studies?limit=8&offset=3", 8, True),
    ("studies?limit=8&offset=10", 2, False),
    ("series?limit=7", 7, True),
    ("instances?limit=8&offset=40", 8, False),
    ("instances?limit=8&offset=39", 8, True),
    ("studies/1.2.3.3/instances?limit=3", 3, True),
    ("studies/1.2.3.3/instances?limit=4", 4, False),
)


def test_an_answer_that_was_cut_says_so(client, filled, monkeypatch):
    monkeypatch.setattr(qido, "LIMIT", 5)
    monkeypatch.setattr(qido, "MOST", 8)
    for address, count, more in CUT:
        answer = client.get(f"/dicom-web/{address}")
        assert len(answer.json()) == count, address
        assert answer.headers.get("warning") == (THERE_IS_MORE if more else None), address
    two = client.get("/dicom-web/studies?limit=1&AccessionNumber=1").headers["warning"]
    assert two == f'299 similis "AccessionNumber is not stored here and was not matched", {THERE_IS_MORE}'


def test_pages_of_a_study_do_not_shift_while_its_series_come(roomy):
    study = study_uid(1)
    with serving(roomy) as client:
        client.headers.update(roomy.key())

        def send(n, series):
            sent = related(instance(1, n, SeriesInstanceUID=series))
            assert client.post("/dicom-web/studies", content=sent, headers=RELATED).status_code == 200

        send(1, "1.2.5")
        send(2, "1.2.7")
        pages = found(client, f"studies/{study}/series?limit=1", SERIES)
        send(3, "1.2.3")
        send(4, "1.2.5")
        for offset in (1, 2):
            pages += found(client, f"studies/{study}/series?limit=1&offset={offset}", SERIES)
        assert pages == ["1.2.5", "1.2.7", "1.2.3"] == found(client, "series", SERIES)


WRONG = (
        "limit=0", "limit=-1", "limit=x", "offset=-1", "offset=1e3", "StudyDate=2024", "StudyDate=20249999",
        "StudyDate=20240101&StudyDate=20240102", "StudyInstanceUID=abc", "Rows=ten", f"Modality={'x' * 65}",
        "Modality=%00", "ViewPosition=0.5", "NoSuchAttribute=1", "includefield=NoSuchAttribute", "fuzzymatching=maybe",
        f"PatientID={CANARY}", f"00100010={CANARY}", f"OtherPatientIDs={CANARY}", "Rows=99999999999999999999",
        "StudyInstanceUID=" + ",".join(["1"] * 201),
)  # fmt: skip


def test_a_wrong_query_is_refused_and_not_repeated(client):
    for query in WRONG:
        answer = client.get(f"/dicom-web/studies?{query}")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), query
        assert CANARY not in answer.text
        if "Patient" in query or query.startswith("0010"):
            assert "pseudonyms" in answer.json()["detail"]


def test_what_was_erased_is_not_found(client, filled):
    assert client.delete("/v1/studies/1.2.3.3").status_code in (200, 202)
    assert found(client, "studies?StudyInstanceUID=1.2.3.3") == []
    assert found(client, "studies/1.2.3.3/instances") == []


def test_another_form_of_answer_is_refused(client, filled):
    assert client.get("/dicom-web/studies", headers={"Accept": "application/dicom+xml"}).status_code == 406
    assert client.get("/dicom-web/studies", headers={"Accept": "text/html, */*;q=0"}).status_code == 406
    for accepted in ("application/json", "application/dicom+json;q=0.5, */*;q=0.1", "*", "application/*", "*/*;q*=''1"):
        assert client.get("/dicom-web/studies", headers={"Accept": accepted}).status_code == 200, accepted


def test_what_is_accepted_may_stand_on_several_lines(client, filled):
    """RFC 9110 section 5.3: the same as one line with commas."""
    lines = [("Accept", 'multipart/related; type="application/dicom+xml"'), ("Accept", "application/dicom+json")]
    assert client.get("/dicom-web/studies", headers=lines).status_code == 200


def test_asking_needs_a_key_that_may_read(client, filled):
    client.headers.update(filled.key(Scope.INGEST))
    assert client.get("/dicom-web/studies").status_code == 403


def test_the_conformance_statement_names_every_attribute_and_reason():
    text = (ROOT / "docs" / "dicomweb.md").read_text(encoding="utf-8")
    for keyword in (*qido.MATCHED, *qido.DEFAULT["study"], *qido.DEFAULT["series"], *qido.DEFAULT["instance"]):
        assert ATTRIBUTES[keyword][0] in text, keyword
    codes = {value for name, value in vars(storing).items() if name.isupper() and isinstance(value, int)}
    assert {int(code, 16) for code in re.findall(r"^\| 0x([0-9A-F]{4}) ", text, re.MULTILINE)} == codes
