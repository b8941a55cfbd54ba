import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from shared.encoder.build import build
from shared.encoder.cards import CARD, GRAPH, WEIGHTS, Card, Graph, Weights, folders, read, write
from shared.encoder.ood import calibrate
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Recipe

DIGEST = "ab" * 32
CARD_1 = Card(
    name="one",
    architecture="densenet121",
    dim=1024,
    pooling="average",
    weights=Weights(source="random:7", sha256=DIGEST, trained=False, seed=7),
    graph=Graph(sha256="cd" * 32, opset=18, exporter="torch 2.13.0", max_abs_diff=1e-6, min_cosine=0.9999999),
)

#: The untrained densenet121 of seed 0, as in archives made before cards had options.
DEFAULT = Card(
    name="densenet121",
    architecture="densenet121",
    dim=1024,
    pooling="average",
    weights=Weights(
        source="random:0",
        sha256="112c2070b6e1571cd280bd415eb9331ba1e3ab2b864d088ede0c7b7387c580f0",
        trained=False,
        seed=0,
    ),
)
CALIBRATION = calibrate([1 + i / 10 for i in range(30)], DIGEST)

floats = st.floats(0.01, 2, allow_nan=False)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
cards = st.builds(
    Card,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
    architecture=st.sampled_from(["densenet121", "resnet50", "null"]),
    dim=st.integers(1, 4096),
    weights=st.builds(
        Weights,
        source=st.sampled_from(["file", "random:3", "torchvision:IMAGENET1K_V1"]),
        sha256=st.just(DIGEST),
        trained=st.booleans(),
        seed=st.none() | st.integers(0, 10**9),
        origin_sha256=st.none() | st.just(DIGEST),
        note=words,
    ),
    pooling=st.sampled_from(["average", "fc7", "boxes"]),
    graph=st.none() | st.just(CARD_1.graph),
    recipe=st.builds(
        Recipe,
        size=st.integers(32, 512),
        voi=st.sampled_from(["apply", "ignore"]),
        crop=st.sampled_from(["none", "breast"]),
        pad=st.sampled_from(["squash", "square"]),
    ),
    mean=st.tuples(floats, floats, floats),
    std=st.tuples(floats, floats, floats),
    bits=st.sampled_from([0, 8, 64]),
    options=st.dictionaries(words, st.integers() | st.lists(st.booleans(), max_size=2), max_size=2),
    tta=st.sampled_from(["none", "five", "five:7"]),
    reconstructs=st.booleans(),
    about=st.dictionaries(words, words | st.floats(-1, 1), max_size=2),
    calibrations=st.dictionaries(st.sampled_from(["MG", "US"]), st.just(CALIBRATION)),
)


@given(cards)
def test_a_card_survives_json(card: Card) -> None:
    again = Card.from_json(json.loads(json.dumps(card.to_json())))
    assert again == card
    assert again.fingerprint == card.fingerprint


def test_the_fingerprint_of_a_known_card_is_pinned() -> None:
    # stored vectors carry this fingerprint: if it changes, every archive must be encoded again
    assert CARD_1.fingerprint == "cb1c64cfada8c76137d5d071c517e1a05c25df6256f31ae708e4f25e3681049a"


def test_the_default_models_fingerprint_is_what_it_was_before_cards_had_options() -> None:
    assert DEFAULT.fingerprint == "c7cf7eec967ffad32cc403114ea15978ad7ce71cc1234ae9f35304149d81a8cf"


def test_a_card_that_is_older_than_options_loads_unchanged() -> None:
    data = CARD_1.to_json()
    for key in ("options", "tta", "reconstructs", "about", "calibrations"):
        data.pop(key)
    assert Card.from_json(data) == CARD_1


@pytest.mark.parametrize(
    "change",
    [
        {"weights": replace(CARD_1.weights, sha256="00" * 32)},
        {"architecture": "resnet50"},
        {"dim": 512},
        {"bits": 64},
        {"recipe": Recipe(pad="square")},
        {"recipe": Recipe(size=256)},
        {"recipe": Recipe(voi="ignore")},
        {"recipe": Recipe(frames=4)},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"channels": 1, "mean": (0.5,), "std": (0.5,)},
        {"pooling": "fc7"},
        {"options": {"head": "metric"}},
        {"tta": "five"},
        {"reconstructs": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_ingredient_of_a_vector_changes_the_fingerprint(change: dict) -> None:
    assert replace(CARD_1, **change).fingerprint != CARD_1.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"name": "two"},
        {"graph": None},
        {"graph": replace(CARD_1.graph, opset=20)},
        {"weights": replace(CARD_1.weights, note="another", source="file")},
        {"about": {"limits": "research use"}},
        {"calibrations": {"MG": CALIBRATION}},
    ],
    ids=["name", "no graph", "graph", "provenance", "about", "calibrations"],
)
def test_names_runtimes_and_provenance_do_not_change_the_fingerprint(change: dict) -> None:
    assert replace(CARD_1, **change).fingerprint == CARD_1.fingerprint


@pytest.mark.parametrize(
    "part", [(), ("recipe",), ("weights",), ("graph",)], ids=["card", "recipe", "weights", "graph"]
)
def test_an_unknown_key_is_refused_wherever_it_stands(part: tuple[str, ...]) -> None:
    data = CARD_1.to_json()
    inner = data
    for key in part:
        inner = inner[key]
    inner["surprise"] = 1
    with pytest.raises(Invalid):
        Card.from_json(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", "1024"),
        ("dim", 0),
        ("dim", True),
        ("name", "../up"),
        ("name", ""),
        ("mean", [0.5, 0.5]),
        ("std", [0.5, 0.5, 0.0]),
        ("pooling", "guess"),
        ("numeric", "int8"),
        ("bits", 12),
        ("tta", "six"),
        ("options", []),
        ("reconstructs", 1),
        ("about", "words"),
        ("calibrations", {"MG": {"rule": "mean+3sd"}}),
        ("calibrations", {"MG": {**asdict(CALIBRATION), "threshold": "2"}}),
        ("recipe", {"size": "224"}),
        ("recipe", {"size": 8}),
        ("recipe", {"crop": "nose"}),
        ("recipe", {"frames": 0}),
        ("recipe", {"size": 100_000}),
        ("recipe", {"frames": 10**9}),
        ("about", {"said": "\0"}),
        ("recipe", [224]),
        ("weights", None),
    ],
)
def test_an_ill_typed_value_is_refused(key: str, value: object) -> None:
    data = CARD_1.to_json()
    data.pop("fingerprint")  # so that the value is refused, not the fingerprint
    data[key] = value
    with pytest.raises(Invalid):
        Card.from_json(data)


def test_a_card_that_was_edited_is_refused() -> None:
    data = CARD_1.to_json()
    data["mean"] = [0.5, 0.5, 0.5]
    with pytest.raises(Invalid, match="fingerprint"):
        Card.from_json(data)


def test_untrained_weights_say_so_in_the_label() -> None:
    assert CARD_1.label == "densenet121 (untrained, seed 7)"
    trained = replace(CARD_1, weights=Weights(source="torchvision:IMAGENET1K_V1", sha256=DIGEST, trained=True))
    assert trained.label == "densenet121 (torchvision:IMAGENET1K_V1)"


def test_a_card_is_never_overwritten(tmp_path: Path) -> None:
    write(CARD_1, tmp_path)
    before = (tmp_path / CARD).read_bytes()
    with pytest.raises(Conflict):
        write(replace(CARD_1, name="two"), tmp_path)
    assert (tmp_path / CARD).read_bytes() == before
    assert read(tmp_path, verify=False) == CARD_1


def test_a_folder_without_a_card_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "one"}', pytest.param("[" * 100_000, id="deep")])
def test_a_malformed_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD).write_text(text)
    with pytest.raises(Invalid):
        read(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH])
def test_a_changed_or_missing_file_is_refused(tmp_path: Path, built, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built("squeezenet1_0"), folder)
    assert read(folder).architecture == "squeezenet1_0"
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(Invalid, match=name):
        read(folder)
    (folder / name).unlink()
    with pytest.raises(Invalid, match=name):
        read(folder)


def test_folders_lists_the_models_and_no_half_built_one(tmp_path: Path) -> None:
    for name in ("b", "a"):
        build(tmp_path / name, name, "null", "random:0")
    shutil.copytree(tmp_path / "a", tmp_path / ".building-x")
    (tmp_path / "empty").mkdir()
    assert [folder.name for folder in folders(tmp_path)] == ["a", "b"]
    assert folders(tmp_path / "nowhere") == []


def test_reading_a_card_takes_less_time_than_the_making_of_its_rules():
    """A list of models reads the card of each."""
    text = CARD_1.to_json()

    def processor_s(task):
        began = time.process_time()
        for _ in range(10):
            task()
        return time.process_time() - began

    Card.from_json(text)
    assert processor_s(lambda: Card.from_json(text)) < processor_s(lambda: TypeAdapter(Card)) / 2
