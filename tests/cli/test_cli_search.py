"""Output of `similis search`."""

import pytest

from services.cli import terminal

UID = "1.2.3"


def match(**more):
    return {
        "query_sop_instance_uid": "1.1", "query_frame": 1, "sop_instance_uid": "9.1", "frame": 1, "score": 0.914,
        "laterality": "L", "view": "MLO", "modality": "MG", "birads": 4, "density": "C", "pathology": None,
        "same_view": True, "thumbnail": "/v1/instances/9.1/thumbnail",
    } | more  # fmt: skip


def ranking(**more):
    study = {
        "rank": 1, "study_instance_uid": "9.8.7", "score": 0.9321, "study_date": "2021-03-04",
        "labels": {"birads": [4, 5], "density": ["C"], "pathology": ["malignant"]},
        "matches": [match(), match(view="CC", same_view=False, score=0.5)],
    }  # fmt: skip
    return {
        "query": {"study_instance_uid": UID, "images": [{"view": "MLO", "laterality": "L"}], "stopped_by": []},
        "studies": [study],
        "hidden": {"studies": 2, "images": 8},
        "excluded": ["patient", "self", "study"],
        "model": {"name": "m", "fingerprint": "abcdef0123456789", "label": "densenet121 (file)", "trained": True},
        "generation": 3, "exact": False, "emulated": [], "took_ms": 4.21, "timings_ms": {}, "next": None,
    } | more  # fmt: skip


@pytest.fixture
def similar(server):
    return lambda **more: server.on(f"GET /v1/studies/{UID}/similar", ranking(**more))


def test_the_answer_has_rank_score_labels_and_pairs_with_their_views(home, similar, similis):
    similar()
    ran = similis("search", "--study", UID, "--home", home)
    assert ran.code == 0
    row = next(line for line in ran.out.splitlines() if "9.8.7" in line)
    assert row.split()[:4] == ["1", "0.9321", "9.8.7", "2021-03-04"]
    assert "BI-RADS 4, 5, density C, malignant" in row
    assert "L-MLO 0.91  L-CC 0.50*" in row
    assert "hidden, as the query's own: 2 studies, 8 images" in ran.out
    assert "generation 3" in ran.out
    assert "4.2 ms" in ran.out
    assert "abcdef012345" in ran.out
    assert ran.err == ""
    assert not [line for line in ran.out.splitlines() if line != line.rstrip()], "columns end where their text does"


def test_the_score_of_an_equal_image_under_l2_has_no_sign(home, similar, similis):
    """The score is the distance below zero."""
    study = ranking()["studies"][0] | {"score": -0.0, "matches": [match(score=-0.0), match(score=-1e-6)]}
    similar(studies=[study, study | {"score": -1e-6}, study | {"score": -3.25}])
    ran = similis("search", "--study", UID, "--home", home)
    assert [line.split()[1] for line in ran.out.splitlines() if "9.8.7" in line] == ["0.0000", "0.0000", "-3.2500"]
    assert "-0.00" not in ran.out


def test_one_hidden_study_is_one_study(home, similar, similis):
    similar(hidden={"studies": 1, "images": 1})
    assert "own: 1 study, 1 image" in similis("search", "--study", UID, "--home", home).out


def test_an_untrained_model_is_said_loudly(home, similar, similis):
    label = "densenet121 (untrained, seed 0)"
    similar(model={"name": "m", "fingerprint": "ab" * 32, "label": label, "trained": False})
    ran = similis("search", "--study", UID, "--home", home)
    assert "UNTRAINED MODEL" in ran.err
    assert label in ran.out


def test_json_is_the_servers_answer_whole(home, similar, similis):
    similar()
    assert similis("search", "--study", UID, "--json", "--home", home).json == ranking()


def test_filters_are_sent_under_their_dicom_names_and_what_was_not_asked_is_left_out(home, similar, similis, server):
    similar()
    similis("search", "--study", UID, "-k", 3, "--birads", "4,5", "--date", "20200101-", "--modality", "MG",
            "--view", "match", "--exclude", "none", "--exact", "--home", home)  # fmt: skip
    asked = dict(pair.split("=") for pair in server.asked[0].path.partition("?")[2].split("&"))
    assert asked == {
        "k": "3", "exclude": "none", "view": "match", "Modality": "MG", "birads": "4%2C5", "StudyDate": "20200101-",
        "exact": "true",
    }  # fmt: skip


def test_an_image_is_uploaded_without_its_name(home, server, similis, tmp_path):
    query = {"study_instance_uid": None, "images": [{"view": None}], "stopped_by": []}
    server.on("POST /v1/searches", ranking(query=query))
    file = tmp_path / "DOE^JANE.dcm"
    file.write_bytes(b"\0" * 128 + b"DICM-and-more")
    ran = similis("search", "--image", file, "--home", home)
    assert ran.code == 0
    assert "*" not in ran.out
    assert b"DICM-and-more" in server.asked[0].body
    assert b"DOE" not in server.asked[0].body
    assert "k=10" in server.asked[0].path


def test_a_query_image_that_a_gate_would_stop_is_answered_and_said(home, similar, similis):
    stop = {"gate": "pixels", "reason": "blank", "explanation": "the picture is blank"}
    similar(query={"study_instance_uid": None, "images": [], "stopped_by": [stop]})
    ran = similis("search", "--study", UID, "--home", home)
    assert "would not be taken in: the picture is blank" in ran.err
    assert "9.8.7" in ran.out


def test_each_gate_is_told_with_both_votes_of_the_third(home, similar, similis):
    """A model without a decoder has no score, only a distance."""
    none = dict.fromkeys(("reason", "score", "threshold", "distance", "distance_threshold"))
    metadata = none | {"gate": "metadata", "verdict": "passed"}
    features = none | {"gate": "features", "verdict": "stopped", "distance": 0.81234, "distance_threshold": 0.7}
    query = {"study_instance_uid": None, "images": [], "stopped_by": []}
    both = features | {"score": 0.5, "verdict": "passed", "distance_threshold": None}
    similar(query=query | {"gates": [metadata, features, both]})
    lines = similis("search", "--study", UID, "--home", home).out.splitlines()
    assert "gate metadata: passed" in lines
    assert "gate features: stopped, distance 0.8123 (threshold 0.7)" in lines
    no = "(no threshold for its modality)"
    assert f"gate features: passed, score 0.5 {no}, distance 0.8123 {no}" in lines


@pytest.mark.parametrize(("cursor", "offered"), [("abc", True), (None, False)])
def test_an_answer_for_which_not_all_was_looked_at_says_so(home, similar, similis, cursor, offered):
    similar(cut=True, next=cursor)
    ran = similis("search", "--study", UID, "--home", home)
    assert ran.code == 0
    assert "images were left out of the search" in ran.err
    assert ("ask for the next page" in ran.err) is offered


def test_no_neighbour_is_said_and_is_no_error(home, similar, similis):
    similar(studies=[])
    ran = similis("search", "--study", UID, "--home", home)
    assert ran.code == 0
    assert "no study is left" in ran.out


def test_an_image_file_that_is_not_there_exits_3_without_its_name(home, similis, tmp_path):
    ran = similis("search", "--image", tmp_path / "DOE^JANE.dcm", "--home", home)
    assert ran.code == 3
    assert "DOE" not in ran.err


@pytest.mark.parametrize("asked", [[], ["--study", "1.2", "--image", "x.dcm"]])
def test_one_of_study_and_image_must_be_named(home, similis, asked):
    assert similis("search", *asked, "--home", home).code == 2


def test_a_study_is_shown_image_by_image_with_the_reason_why_one_is_not_searchable(home, server, similis):
    image = {"sop_instance_uid": "1.1", "laterality": "L", "view": "CC", "labels": {"birads": 2}}
    good = image | {"status": "encoded", "gate": None, "reason": None, "searchable": True, "why_not": None}
    bad = image | {"status": "quarantined", "gate": "pixels", "reason": "blank", "searchable": False}
    series = [{"series_instance_uid": "1.5", "modality": "MG", "images": [good, bad | {"why_not": "held back"}]}]
    server.on(f"GET /v1/studies/{UID}", {"study_instance_uid": UID, "study_date": None, "series": series})
    line = {"event": "arrived", "outcome": "taken", "reason": None, "source": "dicom", "sender": "ROOM1", "rule": ""}
    lines = [line | {"at": f"2026-11-20T10:00:0{second}"} for second in (5, 3)]
    server.on(f"GET /v1/studies/{UID}/journal", {"journal": lines})
    out = similis("studies", "show", UID, "--home", home).out
    assert ["2026-11-20T10:00", "arrived", "taken", "2", "dicom", "ROOM1"] in [
        line.split() for line in out.splitlines()
    ]
    assert "encoded" in out
    assert "held back" in out
    assert "BI-RADS 2" in out


def test_of_a_study_that_was_refused_the_journal_is_shown(home, server, similis):
    server.problem(f"GET /v1/studies/{UID}", 404, "no such study")
    line = {"event": "arrived", "outcome": "refused", "reason": "site-rule", "source": "stow", "sender": "gateway"}
    lines = [line | {"rule": "no MR", "at": "2026-11-20T10:00:03"}]
    server.on(f"GET /v1/studies/{UID}/journal", {"study_instance_uid": UID, "journal": lines})
    told = similis("studies", "show", UID, "--home", home).out
    assert "2026-11-20T10:00 arrived refused 1 site-rule stow gateway no MR" in " ".join(told.split())
    assert similis("studies", "show", UID, "--json", "--home", home).json == {
        "study_instance_uid": UID, "series": [], "journal": lines
    }  # fmt: skip
    for path in ("", "/journal"):
        server.problem(f"GET /v1/studies/9.8{path}", 404, "no such study")
    assert similis("studies", "show", "9.8", "--home", home).code == 3


def test_in_a_narrow_terminal_no_uid_is_broken_over_two_lines(home, similar, similis, monkeypatch):
    monkeypatch.setattr(terminal, "_WIDE", 80)
    long = "1." + "2345678901" * 6 + "12"
    study = ranking()["studies"][0] | {"study_instance_uid": long}
    similar(studies=[study])
    lines = similis("search", "--study", UID, "--home", home).out.splitlines()
    assert len(long) == 64
    assert any(line.split()[-1:] == [long] for line in lines)
    assert any("2021-03-04; BI-RADS 4, 5, density C" in line for line in lines)
