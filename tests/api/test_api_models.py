"""Models over HTTP."""

import json
import shutil

from shared.encoder.cards import CARD


def test_a_model_that_does_not_run_here_does_not_become_the_one_that_serves(client, archive):
    models = archive.rt.settings.models_dir
    shutil.copytree(models / "null-b", models / "broken")
    card = json.loads((models / "broken" / CARD).read_text())
    card.pop("fingerprint")
    (models / "broken" / CARD).write_text(json.dumps(card | {"name": "broken", "dim": 7}))
    try:
        refused = client.post("/v1/models", json={"card": "broken"})
    finally:
        shutil.rmtree(models / "broken")
    assert refused.status_code == 400
    assert "another shape than its card says" in refused.json()["detail"]
    assert [(one["name"], one["published"]) for one in client.get("/v1/models").json()["models"]] == [("null-a", True)]
