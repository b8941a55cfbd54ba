"""Cards are built and added to the models folder, and the default model is added by itself."""

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from services.cli.models import bring
from services.embedded.default_model import SHIPPED
from shared.encoder import cards
from shared.encoder.build import build
from shared.encoder.runtime import prove
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Recipe


@pytest.fixture
def card(tmp_path):
    build(tmp_path / "elsewhere" / "tiny", "tiny", "null", "random:3", dim=16)
    return tmp_path / "elsewhere" / "tiny"


@pytest.fixture
def models(tmp_path):
    return tmp_path / "home" / "models"


def test_a_card_from_elsewhere_is_copied_whole(card, models):
    assert bring(card, models) == "tiny"
    assert cards.read(models / "tiny") == cards.read(card)
    assert [path.name for path in models.iterdir()] == ["tiny"]


def test_a_trained_model_is_found_by_the_name_of_its_card(card, models):
    """Every training writes a folder named `model`."""
    folder = card.rename(card.parent / "model")
    other = build(card.parent / "runs" / "model", "other", "null", "random:4", dim=16)
    assert bring(folder, models) == "tiny"
    assert bring(card.parent / "runs" / "model", models) == "other"
    assert cards.read(models / "other") == other


def test_a_card_that_is_there_already_is_named_only(card, models):
    bring(card, models)
    assert bring(card, models) == "tiny"
    assert bring(models / "tiny", models) == "tiny"
    assert bring(card.relative_to(card.parent), models) == "tiny"


def test_a_network_without_a_graph_gets_one_on_its_way(tmp_path, models):
    made = build(tmp_path / "whole", "small", "squeezenet1_0", "random:5", Recipe(size=64))
    folder = tmp_path / "small"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / cards.WEIGHTS, folder)
    cards.write(replace(made, graph=None), folder)
    assert bring(folder, models) == "small"
    assert prove(models / "small").fingerprint == made.fingerprint
    assert [path.name for path in models.iterdir()] == ["small"]


def test_a_model_may_be_brought_under_another_name(card, models, tmp_path):
    """As the shipped model is to an installation that has an earlier one of its name."""
    build(models / "tiny", "tiny", "null", "random:4", dim=16)
    assert bring(card, models, "tiny-2") == "tiny-2"
    assert cards.read(models / "tiny-2") == replace(cards.read(card), name="tiny-2")
    assert bring(card, models, "tiny-2") == "tiny-2"
    with pytest.raises(Conflict, match="--name"):
        bring(card, models, "tiny")
    with pytest.raises(Invalid, match="name"):
        bring(card, models, "../elsewhere/tiny")
    shutil.copytree(card, models / "tiny-3")  # a folder whose card has another name is no model of this name
    with pytest.raises(Conflict, match="--name"):
        bring(card, models, "tiny-3")
    assert sorted(path.name for path in models.iterdir()) == ["tiny", "tiny-2", "tiny-3"]


def test_a_brought_card_is_as_readable_as_it_was(card, models):
    (card / cards.CARD).chmod(0o644)
    before = os.umask(0o077)
    try:
        bring(card, models)
    finally:
        os.umask(before)
    assert (models / "tiny" / cards.CARD).stat().st_mode & 0o777 == 0o644


def test_a_shipped_model_is_the_one_that_is_renamed(models):
    build(models / SHIPPED.name, SHIPPED.name, "null", "random:4", dim=16)
    assert bring(Path(SHIPPED.name), models) == SHIPPED.name
    assert bring(Path(SHIPPED.name), models, "newer") == "newer"
    assert (card := prove(models / "newer")).name == "newer"
    assert card.fingerprint == cards.read(SHIPPED).fingerprint


def test_another_model_of_that_folder_name_is_not_overwritten(card, models):
    build(models / "tiny", "tiny", "null", "random:4", dim=16)
    before = cards.read(models / "tiny")
    with pytest.raises(Conflict):
        bring(card, models)
    assert cards.read(models / "tiny") == before


def test_a_damaged_card_is_not_copied(card, models):
    (card / cards.WEIGHTS).write_bytes(b"changed")
    with pytest.raises(Invalid):
        bring(card, models)
    assert not models.exists()


def test_a_folder_without_a_card_is_said(tmp_path, models):
    with pytest.raises(NotFound):
        bring(tmp_path, models)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(("status", "code"), [(400, 5), (401, 1), (403, 1), (404, 3), (409, 4)])
def test_of_a_model_that_the_server_refuses_no_copy_is_left(home, server, similis, card, status, code, there):
    if there:
        shutil.copytree(card, home / "models" / "tiny")
    server.problem("POST /v1/models", status, "it is not taken")
    assert similis("models", "add", card, "--home", home).code == code
    assert (home / "models" / "tiny").exists() == there


def test_of_a_model_that_no_server_was_told_of_no_copy_is_left(similis, card, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert similis("models", "add", card, "--url", url, "--models", tmp_path / "models").code == 3
    assert not (tmp_path / "models" / "tiny").exists()


def test_of_a_model_that_the_server_may_have_taken_the_copy_stays(home, server, similis, card):
    server.problem("POST /v1/models", 500, "it broke on the way")
    assert similis("models", "add", card, "--home", home).code == 1
    assert (home / "models" / "tiny" / cards.CARD).is_file()


def test_adding_tells_the_server_the_name_and_prints_the_fingerprint(home, server, similis, card, models):
    server.on("POST /v1/models", {"name": "tiny", "fingerprint": "f" * 64})
    ran = similis("models", "add", card, "--home", home)
    assert (ran.code, ran.out) == (0, f"tiny  {'f' * 64}\n")
    assert server.asked[0].json == {"card": "tiny"}
    assert (models / "tiny" / cards.CARD).is_file()


def test_a_model_is_made_in_the_models_folder_with_the_preprocessing_asked_for(similis, tmp_path):
    ran = similis("models", "make", "mine", "--architecture", "squeezenet1_0", "--weights", "random:5",
                  "--size", 64, "--crop", "breast", "--pad", "square", "--home", tmp_path)  # fmt: skip
    assert ran.code == 0
    folder = tmp_path / "models" / "mine"
    assert ran.out == f"{folder}\n"
    assert "untrained" in ran.err
    made = cards.read(folder)
    assert (made.recipe.size, made.recipe.crop, made.recipe.mirror, made.recipe.pad) == (64, "breast", "none", "square")


def test_a_model_normalises_its_inputs_as_its_weights_need(similis, tmp_path):
    ran = similis("models", "make", "mine", "--architecture", "squeezenet1_0", "--weights", "random:5", "--size", 64,
                  "--mean", 0.5, 0.5, 0.4, "--std", 0.5, 0.5, 0.6, "--home", tmp_path)  # fmt: skip
    assert ran.code == 0, ran.err
    made = cards.read(tmp_path / "models" / "mine")
    assert (made.mean, made.std) == ((0.5, 0.5, 0.4), (0.5, 0.5, 0.6))


def test_a_script_gets_the_folder_and_the_fingerprint_of_a_new_model_as_json(similis, tmp_path):
    ran = similis("models", "make", "mine", "--architecture", "null", "--weights", "random:5", "--json",
                  "--home", tmp_path)  # fmt: skip
    folder = tmp_path / "models" / "mine"
    made = cards.read(folder)
    assert (ran.code, json.loads(ran.out)) == (
        0,
        {
            "folder": str(folder), "name": "mine", "fingerprint": made.fingerprint, "label": made.label,
            "trained": False, "architecture": "null", "dim": made.dim, "bits": made.bits,
        },
    )  # fmt: skip


def test_a_word_that_the_recipe_does_not_know_is_a_usage_error(similis, tmp_path):
    asked = ("--architecture", "squeezenet1_0", "--weights", "random:5", "--crop", "face", "--home", tmp_path)
    ran = similis("models", "make", "mine", *asked)
    assert ran.code == 2
    assert not (tmp_path / "models").exists()


def test_an_unknown_architecture_exits_5_and_names_those_there_are(similis, tmp_path):
    ran = similis("models", "make", "mine", "--architecture", "x", "--weights", "random:5", "--home", tmp_path)
    assert ran.code == 5
    assert "densenet121" in ran.err


def test_a_model_is_made_of_what_its_options_say(similis, tmp_path):
    (tmp_path / "options.json").write_text('{"head": "metric"}')
    (tmp_path / "about.json").write_text('{"limits": "a test"}')
    ran = similis("models", "make", "mine", "--architecture", "squeezenet1_0", "--weights", "random:5", "--size", 64,
                  "--options", tmp_path / "options.json", "--about", tmp_path / "about.json", "--tta", "five", "--half",
                  "--home", tmp_path)  # fmt: skip
    assert ran.code == 0, ran.err
    made = cards.read(tmp_path / "models" / "mine")
    assert (made.options, made.about, made.tta) == ({"head": "metric"}, {"limits": "a test"}, "five")
    with safe_open(tmp_path / "models" / "mine" / cards.WEIGHTS, "pt") as file:
        assert file.get_tensor("head.layers.0.weight").dtype == torch.float16


@pytest.mark.parametrize(
    ("text", "code"), [(None, 2), ("[]", 2), ("{", 2), ("[" * 100_000, 2), ('{"head": "other"}', 5)]
)
def test_options_that_are_none_make_no_model(similis, tmp_path, text, code):
    if text is not None:
        (tmp_path / "o.json").write_text(text)
    ran = similis("models", "make", "mine", "--architecture", "squeezenet1_0", "--weights", "random:5",
                  "--options", tmp_path / "o.json", "--home", tmp_path / "home")  # fmt: skip
    assert ran.code == code
    assert not (tmp_path / "home" / "models" / "mine").exists()


def test_an_ensemble_is_made_of_models_by_name_or_folder(similis, tmp_path, monkeypatch):
    models = tmp_path / "models"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()  # a folder with the name of a model
    for name, seed in (("one", 1), ("two", 2)):
        build(models / name, name, "squeezenet1_0", f"random:{seed}", Recipe(size=64))
    models.joinpath("two").rename(tmp_path / "two")
    ran = similis("models", "ensemble", "both", "--members", "one", "--members", tmp_path / "two", "--join", "mean",
                  "--weight", 3, "--weight", 1, "--home", tmp_path)  # fmt: skip
    assert (ran.code, ran.out) == (0, f"{models / 'both'}\n")
    made = cards.read(models / "both")
    assert (made.dim, made.options["join"], made.options["weights"], made.tta) == (512, "mean", [3.0, 1.0], "none")
    refused = similis("models", "ensemble", "named", "--members", "one", "--members", tmp_path / "two",
                      "--preset", "best_two_metric", "--home", tmp_path)  # fmt: skip
    assert refused.code == 5
    assert "densenet121 (metric)" in refused.err
    assert not (models / "named").exists()
    assert similis("models", "ensemble", "x", "--members", "none", "--home", tmp_path).code == 3


def test_weights_are_converted_from_a_pickle_to_safetensors(similis, tmp_path):
    torch.save({"module.a": torch.ones(2, 3)}, tmp_path / "w.pth")
    ran = similis("models", "convert", tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'w.safetensors'}\n")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert list(file.keys()) == ["a"]


def test_a_model_is_shown_as_one_table_without_any_language_of_the_program(home, server, similis):
    card = {"dim": 8, "graph": None, "recipe": {"size": 112, "voi": "apply"}, "mean": [0.5]}
    server.on("GET /v1/models/small", {"name": "small", "trained": True, "card": card, "generations": [1, 2]})
    ran = similis("models", "show", "small", "--home", home)
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines == [
        ["field", "value"],
        ["name", "small"],
        ["trained", "yes"],
        ["generations", "1,", "2"],
        ["card.dim", "8"],
        ["card.graph"],
        ["card.recipe.size", "112"],
        ["card.recipe.voi", "apply"],
        ["card.mean", "0.5"],
    ]


def test_keys_are_made_shown_once_and_revoked(home, server, similis):
    key = {"id": 4, "name": "viewer", "prefix": "sml_ab", "scopes": ["search", "read"], "secret": "sml_secret"}
    server.on("POST /v1/keys", key, 201)
    server.on("GET /v1/keys", {"keys": [{k: v for k, v in key.items() if k != "secret"}]})
    server.on("DELETE /v1/keys/4", {})
    made = similis("keys", "create", "viewer", "--scope", "search", "--scope", "read", "--days", 90, "--home", home)
    assert (made.code, made.out) == (0, "sml_secret\n")
    assert server.asked[0].json == {"name": "viewer", "scopes": ["search", "read"], "days": 90}
    listed = similis("keys", "list", "--home", home)
    assert "viewer" in listed.out
    assert "sml_secret" not in listed.out
    assert similis("keys", "revoke", 4, "--home", home).code == 0
    assert server.asked[-1].method == "DELETE"
    assert similis("keys", "revoke", 4, "--home", home, "--json").json == {"id": 4}
