"""Schemathesis over the whole OpenAPI document: every generated request is answered as documented, never by a 5xx."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks

from services.api.app import create
from shared.config import Api, Database, Intake, Settings
from shared.encoder import cards
from shared.pipeline import encode, lifecycle, project
from shared.store import keys
from tests.api.conftest import TwinRuntime
from tests.dicomweb import RELATED, instance, related, served, sop_uid, study_uid
from tests.engines import _fresh

EXAMPLES = 4  #: generated requests per route, besides those that cover its parameters one by one
CHECKS = (
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.ignored_auth,
)
KNOWN = {
    "study_instance_uid": study_uid(1),
    "series_instance_uid": f"{study_uid(1)}.1",
    "sop_instance_uid": sop_uid(1, 1),
}

load_all_checks()


@schemathesis.serializer("application/dicom", 'multipart/related; type="application/dicom"')
def as_it_is(_, value):
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


described = json.loads(Path(__file__).with_name("openapi.json").read_text(encoding="utf-8"))
schema = schemathesis.openapi.from_dict(described)


@pytest.fixture(scope="module")
def server(postgres, migrated, models, tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    """The API with two studies behind a real server: its address, and headers of a key with all scopes."""
    for url in _fresh(postgres, migrated):
        rt = TwinRuntime(
            Settings(
                home=tmp_path_factory.mktemp("home"),
                models=models,
                pseudonym_key="k" * 40,
                database=Database(url=url, pool_size=4),
                intake=Intake(reserve_mb=0),
                api=Api(rate_per_s=1e6, burst=1_000_000),
            )
        )
        secret = keys.generate()
        with rt.transaction() as db:
            lifecycle.add_model(db, rt.indexes, "null-a", cards.read(rt.folder("null-a")))
            for n in range(40):  # keys that generated requests may guess and revoke
                keys.ensure(db, keys.generate(), name=f"other {n}")
            keys.ensure(db, secret, name="schemathesis")
        headers = {"Authorization": f"Bearer {secret}"}
        with served(create(rt)) as address:
            body = related(*(instance(study, n) for study in (1, 2) for n in (1, 2)))
            sent = httpx.post(f"{address}/dicom-web/studies", content=body, headers=RELATED | headers)
            assert sent.status_code == 200
            encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort)
            project.drain(rt.transaction, rt.index, gather_s=0)
            yield address, headers
        rt.close()


@schema.hook
def map_path_parameters(_, parameters):
    """Use known identifiers in half of the addresses."""
    if parameters and sum(map(ord, str(sorted(parameters.items())))) % 2:
        return {name: KNOWN.get(name, value) for name, value in parameters.items()}
    return parameters


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_route_answers_as_it_says(case, server):
    address, headers = server
    case.call_and_validate(base_url=address, headers=headers, checks=CHECKS, timeout=30)


def test_what_it_has_found_stays_found(server):
    """On the second study, because generated requests know the first one and may have erased it."""
    address, headers = server
    for path, body in (
        ("/v1/searches", {"studies": [study_uid(2)], "exclude": [{}]}),  # was an internal error
        ("/v1/ingest/backfills", {"dicomweb": "0", "query": {"StudyInstanceUID": [{}]}}),  # was an internal error, too
    ):
        assert httpx.post(address + path, json=body, headers=headers).status_code == 400, path
    assert httpx.get(f"{address}/v1/quarantine?since=0.5", headers=headers).status_code == 400  # seconds since 1970
    body = {"studies": [study_uid(2)], "birads": [4]}
    assert httpx.post(f"{address}/v1/searches", json=body, headers=headers).status_code == 200
