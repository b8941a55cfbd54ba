"""A canary value in every identifying attribute of a patient must not appear anywhere outside the file."""

import io
import json
import logging
import sys

from opentelemetry import trace
from pydicom import dcmread
from pydicom.data import get_testdata_file

from shared.log import configure
from tests.api.conftest import CANARY, png


def planted():
    """A real file with the canary in every text that names a person."""
    dataset = dcmread(get_testdata_file("MR_small.dcm", download=False))
    for keyword in ("PatientName", "PatientID", "PatientAddress", "ReferringPhysicianName", "StudyID"):
        setattr(dataset, keyword, CANARY[:16])
    dataset.StudyDescription = dataset.SeriesDescription = CANARY
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def test_no_answer_log_line_or_metric_holds_the_canary(client, filled, monkeypatch, capsys):
    (filled.folder / f"{CANARY}-1-0.dcm").unlink()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    before = logging.getLogger().handlers[:]
    configure("test")
    try:
        answers = [
            client.get("/v1/studies"),
            client.get("/v1/studies/1.2.3.1"),
            client.get("/v1/studies/1.2.3.1/similar?exclude=none"),
            client.get(f"/v1/studies/1.2.3.1/similar?PatientName={CANARY}"),
            client.get(f"/v1/studies/{CANARY}"),
            client.get(f"/{CANARY}"),
            client.get("/v1/instances/1.2.3.1.0/rendered"),
            client.get("/v1/instances/1.2.3.1.0/thumbnail"),
            client.post("/v1/searches", files={"file": (f"{CANARY}.dcm", planted(), "application/dicom")}),
            client.post("/v1/searches", files={"file": (f"{CANARY}.dcm", planted()[:900], "application/dicom")}),
            client.post("/v1/searches", files={CANARY: (CANARY, png(), "image/png")}),
            client.post("/v1/searches", json={"studies": ["1.2.3.1"], CANARY: CANARY}),
            client.post("/v1/ingest/scans", json={"path": f"/{CANARY}"}),
            client.post("/v1/keys", json={"name": CANARY + "\n", "scopes": ["read"]}),
            client.get("/v1/operations"),
            client.get("/v1/quarantine"),
            client.get(f"/v1/quarantine?reason={CANARY}"),
            client.post("/v1/quarantine/image-1:reject", json={"note": CANARY}),
            client.post(f"/v1/quarantine/{CANARY}:release", json={"note": CANARY}),
            client.post("/v1/quarantine:replay", json={"model": CANARY, "modality": CANARY}),
            client.post("/v1/models/null-a/calibrations", json={"folder": f"/{CANARY}"}),
            client.get("/metrics"),
        ]
    finally:
        logging.getLogger().handlers = before
    assert {answer.status_code for answer in answers} == {200, 400, 404, 409, 410, 422}
    for answer in answers:
        assert CANARY[:16].encode() not in answer.content, answer.request.url
        assert CANARY not in str(answer.headers)
    logged = stream.getvalue()
    assert CANARY[:16] not in logged
    lines = [json.loads(line) for line in logged.splitlines()]
    ours = [line for line in lines if line["event"] == "request"]
    assert len(ours) == len(answers)
    assert {"route", "method", "code", "duration_ms", "trace_id"} <= set(ours[0])
    assert "1.2.3.1" not in logged


def test_a_sites_open_telemetry_is_told_nothing(client, monkeypatch):
    """As under `opentelemetry-instrument`; paths hold UIDs, and exceptions may quote a patient."""
    asked = []

    class Tracers(trace.TracerProvider):
        def get_tracer(self, *_, **__):
            asked.append("tracer")
            return trace.NoOpTracer()

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", Tracers())
    assert client.get("/v1/studies/1.2.3.1").status_code in (200, 404)
    assert asked == []
