"""An output folder and what is kept in it: the experiment, its state after each epoch, and the figures at the end."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import Conflict, Invalid
from shared.training.experiment import Experiment, Json

EXPERIMENT, CHECKPOINT, METRICS, MODEL = "experiment.json", "checkpoint.pt", "metrics.json", "model"

State = dict[str, Tensor]


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """Where a training stands between two epochs. Every epoch draws from its own seed, so no generator is kept."""

    data: str = ""  #: the digest of what is trained on
    epoch: int = 0  #: the next one
    model: State = field(default_factory=dict)
    optimiser: Json = field(default_factory=dict)
    best: State = field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = float("-inf")
    history: list[Json] = field(default_factory=list)  #: one entry per epoch
    seconds: float = 0.0

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - 1 - self.best_epoch


@contextmanager
def claimed(folder: Path, experiment: Experiment, *, resume: bool) -> Iterator[None]:
    """The folder is this experiment's own until the block ends; where nothing is kept in it, it is free again.

    Raises:
        Conflict: it holds a finished model, another experiment, an unfinished one that is not to be resumed, things
            that no training wrote, or a training that runs now.
    """
    described = {"digest": experiment.digest, **experiment.to_json()}
    path = folder / EXPERIMENT
    ours = not folder.exists()
    if (folder / METRICS).exists():
        raise Conflict("the output folder holds a finished model: name another one")
    if path.exists():
        _check(json.loads(path.read_text(encoding="utf-8")), described, resume=resume)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict("there is something in the output folder that is no training's")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, described)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("a training runs in this folder now") from None
        try:
            yield
        except BaseException:
            if not (folder / CHECKPOINT).exists():  # another training may have it: nothing would be lost
                path.unlink(missing_ok=True)
                if ours:
                    with suppress(OSError):  # somebody put something there
                        folder.rmdir()
            raise


def _check(found: Json, wanted: Json, *, resume: bool) -> None:
    if found.get("digest") != wanted["digest"]:
        differ = sorted(key for key in {*found, *wanted} - {"digest"} if found.get(key) != wanted.get(key))
        raise Conflict(f"the output folder holds another experiment; they differ in {', '.join(differ)}")
    if not resume:
        raise Conflict("the output folder holds an unfinished training: resume it, or name another folder")


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """The checkpoint stands in the folder, whole, also after a power cut; the one before is gone."""
    values = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    with replacing(folder / CHECKPOINT) as path:
        torch.save(values, path)


def load(folder: Path) -> Checkpoint:
    """The last checkpoint, a fresh one where there is none. Raises: `Invalid` where it was damaged."""
    path = folder / CHECKPOINT
    if not path.exists():
        return Checkpoint()
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception:  # a damaged pickle fails in any way there is
        raise Invalid("the checkpoint in the output folder is damaged: name another folder") from None


def begun(folder: Path, data: str) -> Checkpoint:
    """The same, of a training on these data. Raises: `Conflict` where it began with others."""
    found = load(folder)
    if found.epoch and found.data != data:
        raise Conflict("the images or their labels are not those that this training began with: name another folder")
    found.data = data
    return found


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside, which becomes `path` in one step if the block ends well."""
    beside = path.with_name(f".{path.name}.part")
    yield beside
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.rename(path)


def summary(checkpoint: Checkpoint) -> Json:
    """What a reader wants to know of the training, without its tensors."""
    return {name: getattr(checkpoint, name) for name in ("best_epoch", "best_score", "history", "seconds")}
