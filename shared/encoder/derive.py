"""New models from existing models: ensembles, fitted hash codes, and a graph for a model without one."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from shared.disk import regular
from shared.encoder.build import as_json, beside
from shared.encoder.cards import GRAPH, WEIGHTS, Card, check_name, read, sha256_of, write
from shared.encoder.ensemble import PRESETS
from shared.encoder.export import export, measure
from shared.encoder.hashing import COMPONENTS, MEAN, directions, fit_hash
from shared.encoder.kinds import body, kind, load_network
from shared.encoder.network import State, fill, save_state
from shared.encoder.null import NULL
from shared.encoder.weights import Source
from shared.errors import Invalid, NotFound
from shared.types import Embeddings

_PROJECTED = 512  #: most components of an ensemble's projection; fewer training images give fewer


def build_hashed(
    folder: Path,
    base: Path,
    embeddings: Embeddings,
    bits: int,
    seed: int = 0,
    name: str | None = None,
    *,
    rotate: bool = False,
) -> Card:
    """Write the base model with a hash head fitted to these embeddings. The graph is copied.

    Args:
        folder: a new folder; `name` is by default its name.
        base: folder of a model without a hash code; the null encoder is allowed.
        embeddings: (n, dim), the base model's: of the archive's images, or of a training split.
        bits, seed, rotate: as in `fit_hash`.

    Raises:
        Conflict: the folder is not empty.
        Invalid: the base has a hash code, or embeddings and bits do not fit the base.
    """
    name = folder.name if name is None else name
    check_name(name)
    card = read(base)
    if card.bits:
        raise Invalid("the model has a hash code already")
    if not len(embeddings):
        raise Invalid("the model has no stored encodings; a hash code is fitted to embeddings of images")
    if embeddings.ndim != 2 or embeddings.shape[1] != card.dim:
        raise Invalid(f"the embeddings must have the model's shape (n, {card.dim})")
    head = fit_hash(embeddings, bits, seed, rotate=rotate)
    with beside(folder) as temporary:
        fitted = {MEAN: torch.from_numpy(head.mean), COMPONENTS: torch.from_numpy(head.components)}
        state = load_file(base / WEIGHTS) | fitted
        save_state(state, temporary / WEIGHTS, card.weights.source)
        if card.graph is not None:
            shutil.copyfile(base / GRAPH, temporary / GRAPH)
        card = replace(
            card,
            name=name,
            bits=bits,
            options={**card.options, "hash": "itq" if rotate else "pca"},
            weights=replace(card.weights, sha256=sha256_of(temporary / WEIGHTS)),
            about={**card.about, "hash": {"images": len(embeddings), "seed": seed, "base": card.fingerprint}},
        )
        write(card, temporary)
    return card


def build_ensemble(  # noqa: PLR0913 - as in `build`
    folder: Path,
    name: str,
    members: Sequence[Path],
    join: str = "unit",
    *,
    tta: str = "none",
    weights: Sequence[float] = (),
    features: Embeddings | None = None,
    preset: str | None = None,
    note: str = "",
    about: Mapping[str, Any] | None = None,
) -> Card:
    """Write one model that joins several and contains their weights.

    Args:
        members: folders of models with the same recipe; no null encoder, no ensemble.
        join: unit, raw, mean or pca; see `shared.encoder.ensemble.Join`.
        tta: views over which each member is averaged before the vectors are joined.
        weights: one per member, for the join mean.
        features: for pca, (n, dim): vectors of training images by the unit ensemble of the same members.
        preset: a name of `shared.encoder.ensemble.PRESETS`; the members must be those of the preset, in its order.

    Raises:
        Conflict: the folder is not empty.
        Invalid: members, join and the other arguments do not fit together.
    """
    check_name(name)
    cards = [read(member) for member in members]
    _check(cards, preset)
    options, state = _joined(members, cards)
    options |= {"join": join, **({"weights": list(weights)} if weights else {})}
    if (join == "pca") != (features is not None):
        raise Invalid("the join pca needs features of training images; other joins take none")
    if features is not None:
        _check_features(features, [card.dim for card in cards])
        state |= _projection(features)
        options["projection"] = list(state["projection.components"].shape)
    module = body("ensemble", options, empty=True)
    fill(module, state, "ensemble")
    first = next((card.weights for card in cards if not card.weights.trained), None)
    origin = {"source": "members"} if first is None else {"source": first.source, "trained": False, "seed": first.seed}
    known, recipe = kind("ensemble"), cards[0].recipe
    with beside(folder) as temporary:
        saved = Source(body=module, **origin).save(temporary / WEIGHTS, note)
        card = Card(
            name=name,
            architecture="ensemble",
            options=as_json(options),
            tta=tta,
            recipe=recipe,
            pooling=known.pooling,
            channels=1,
            mean=known.mean,
            std=known.std,
            weights=saved,
            about=as_json({"members": [card.fingerprint for card in cards], **(about or {})}),
            **measure(module, known.mean, known.std, tta, recipe.size, temporary / GRAPH),
        )
        write(card, temporary)
    return card


def read_features(file: Path) -> Embeddings:
    """Read (n, dim) features from a .npy file. Raises: `NotFound` or `Invalid`."""
    try:
        with regular(file, "the file of features").open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
    except FileNotFoundError:
        raise NotFound("there is no such file of features") from None
    except (OSError, Invalid):
        raise
    except Exception:  # a damaged header can raise any exception
        raise Invalid("the features are not in .npy format") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f" or len(found) < 2:
        raise Invalid("the features must be floating-point numbers of shape (n, dim), from at least two images")
    with np.errstate(over="ignore"):
        features = found.astype(np.float32)
    if not np.isfinite(features).all():
        raise Invalid("a feature is NaN or infinite")
    return features


def with_graph(folder: Path, base: Path, name: str | None = None) -> Card:
    """Write the base model to `folder` with a graph exported on this machine. The fingerprint does not change.

    `name`: another one than the base's.

    Raises:
        Conflict: the folder is not empty.
        Invalid: the base is malformed, has no network, or the graph does not agree with the network.
    """
    card = read(base)
    if card.architecture == NULL:
        raise Invalid("the null encoder has no network, and so no graph")
    with beside(folder) as temporary:
        shutil.copyfile(base / WEIGHTS, temporary / WEIGHTS)
        graph = export(load_network(card, base / WEIGHTS), card.recipe.size, temporary / GRAPH)
        card = replace(card, graph=graph, name=name or card.name)
        write(card, temporary)
    return card


def _check(cards: Sequence[Card], preset: str | None) -> None:
    if not cards:
        raise Invalid("an ensemble needs at least one member")
    if any(card.recipe != cards[0].recipe for card in cards):
        raise Invalid("the members of an ensemble must have equal recipes, because they see the same pixels")
    if any(card.architecture == NULL or card.tta != "none" for card in cards):
        raise Invalid("members cannot be the null encoder or use test-time augmentation; set it on the ensemble")
    if preset is None:
        return
    if preset not in PRESETS:
        raise Invalid(f"unknown ensemble; there are: {', '.join(PRESETS)}")
    wanted = [(part.architecture, part.head) for part in PRESETS[preset]]
    if wanted != [(card.architecture, card.options.get("head")) for card in cards]:
        names = ", ".join(f"{part.architecture} ({part.training})" for part in PRESETS[preset])
        raise Invalid(f"{preset} takes, in this order: {names}")


def _joined(members: Sequence[Path], cards: Sequence[Card]) -> tuple[dict[str, Any], State]:
    """Return the ensemble's options and the members' weights, without any fitted hash head."""
    options: list[dict[str, Any]] = []
    state: State = {}
    for i, (folder, card) in enumerate(zip(members, cards, strict=True)):
        options.append(
            {
                "architecture": card.architecture,
                "options": dict(card.kind_options),
                "mean": list(card.mean),
                "std": list(card.std),
            }
        )
        weights = load_file(folder / WEIGHTS)
        state |= {f"members.{i}.body.{key}": value for key, value in weights.items() if key not in (MEAN, COMPONENTS)}
    return {"members": options}, state


def _check_features(features: Embeddings, dims: Sequence[int]) -> None:
    """Raises: `Invalid` unless each row joins a unit vector of each member's width, in their order.

    Other models of the same widths cannot be told apart.
    """
    if features.shape[1] != sum(dims):
        raise Invalid(f"the features must have the members' joined shape (n, {sum(dims)})")
    parts = np.split(features, np.cumsum(dims)[:-1], axis=1)
    if not all(np.allclose(np.linalg.norm(part, axis=1), 1, atol=0.01) for part in parts):
        raise Invalid("the features must be vectors of the unit ensemble of the same members, in the same order")


def _projection(features: Embeddings) -> State:
    """Fit at most 512 components, and no more than the images span: n - 1 directions, fewer if some are equal.

    Raises: `Invalid` if all images are equal.
    """
    components = directions(features.astype(np.float64) - features.mean(0, dtype=np.float64), _PROJECTED)
    if not len(components):
        raise Invalid("the features of all images are equal")
    return {
        "projection.mean": torch.from_numpy(features.mean(0, dtype=np.float64)).float(),
        "projection.components": torch.from_numpy(components).float(),
    }
