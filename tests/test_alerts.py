"""The alarms of docs/alerts.yml, by Prometheus's own tool: each is silent at first, and rings when it should."""

import re
import shutil
import subprocess
from typing import Any, NamedTuple

import pytest
import yaml

from tests.conftest import ROOT

RULES = ROOT / "docs" / "alerts.yml"


class Case(NamedTuple):
    alarm: str
    series: dict[str, str]  #: values by minute, in promtool's notation
    labels: dict[str, str] = {}  # noqa: RUF012 - of what rings; never changed
    at: str = "45m"  #: it rings then, and not after 19 minutes


BUCKET = 'similis_search_duration_seconds_bucket{stage="total",le="%s"}'
CASES = (
    Case("DatabaseAway", {"similis_database_up": "1x20 0x100"}),
    Case("FiguresAreOld", {"similis_database_reading_age_seconds": "5x20 700x100"}),
    Case("ScansWait", {'similis_queue_oldest_age_seconds{queue="scan"}': "0x20 700x100"}, {"queue": "scan"}),
    Case("ImagesWait", {'similis_queue_oldest_age_seconds{queue="ingest"}': "0x20 700x100"}, {"queue": "ingest"}),
    Case("IndexWaits", {'similis_queue_oldest_age_seconds{queue="index"}': "0x20 70x100"}, {"queue": "index"}),
    Case(
        "IndexIncomplete",
        {
            'similis_index_coverage_ratio{published="yes"}': "0.99x120",
            'similis_queue_depth{queue="ingest"}': "9x20 0x99",
        },
        {"published": "yes"},
    ),
    Case("RecallLow", {'similis_ann_recall_ratio{k="10"}': "0.99x20 0.9x100"}, {"k": "10"}),
    Case("DiskLow", {'similis_disk_free_bytes{place="home"}': "9e9x20 4e9x100"}, {"place": "home"}),
    Case(
        "DeadLetters", {'similis_dead_letters{kind="file",reason="x"}': "_x20 1x100"}, {"kind": "file", "reason": "x"}
    ),
    Case("OperationFailed", {'similis_operations_failed{kind="scan"}': "0x20 1x100"}, {"kind": "scan"}),
    Case("ImagesFailed", {'similis_images{status="failed"}': "0x20 1x100"}, {"status": "failed"}),
    Case(
        "QuarantineRises",
        {f'similis_quarantine_items{{gate="decode",state="{s}"}}': "_x20 60x100" for s in ("file", "quarantined")},
        {"gate": "decode"},
    ),
    Case("Uncalibrated", {'similis_images_uncalibrated{modality="MG"}': "_x20 400x100"}, {"modality": "MG"}, "85m"),
    Case("SearchSlow", {BUCKET % "1": "0+9x20 180x99", BUCKET % "2.5": "0+9x120", BUCKET % "+Inf": "0+9x120"}),
    Case("ReceiversGone", {"similis_dicom_receivers": "2x20 0x100"}),
    Case("SendersRefused", {'similis_dicom_associations_total{result="x"}': "_x20 11x100"}, {"result": "x"}),
    Case(
        "InstancesFail",
        {'similis_instances_received_total{source="dicom",result="failed"}': "_x40 1x100"},
        {"source": "dicom", "result": "failed"},
    ),
    Case(
        "ServerErrors",
        {'similis_http_request_duration_seconds_count{code="500",route="/v1/x"}': "_x40 1x100"},
        {"code": "500", "route": "/v1/x"},
    ),
)


def rules() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]}


def test_every_alarm_is_tried() -> None:
    assert {f"Similis{case.alarm}" for case in CASES} == rules().keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alarm)
def test_an_alarm_rings_when_it_should(case: Case, tmp_path) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool of Prometheus is not installed")
    name = f"Similis{case.alarm}"
    said = re.sub(
        r"{{ \$labels\.(\w+) }}", lambda found: case.labels[found[1]], rules()[name]["annotations"]["summary"]
    )
    rings = {"exp_labels": case.labels, "exp_annotations": {"summary": said}}
    tried = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [
            {"eval_time": "19m", "alertname": name, "exp_alerts": []},
            {"eval_time": case.at, "alertname": name, "exp_alerts": [rings]},
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [tried]}))
    ran = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, check=False, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
