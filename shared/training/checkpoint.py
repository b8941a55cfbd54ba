"""The output folder of a training: the experiment, its checkpoint after each epoch, and the final figures."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.disk import sync
from shared.errors import Conflict, Invalid
from shared.training.experiment import Experiment, Json

EXPERIMENT, CHECKPOINT, METRICS, MODEL = "experiment.json", "checkpoint.pt", "metrics.json", "model"

State = dict[str, Tensor]


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """The state of a training between two epochs. Each epoch has its own seed, so no generator state is saved."""

    data: str = ""  #: digest of the training data
    epoch: int = 0  #: the next epoch
    model: State = field(default_factory=dict)
    optimiser: Json = field(default_factory=dict)
    best: State = field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = float("nan")  #: NaN also if no figure can be measured: then the last epoch counts as the best
    history: list[Json] = field(default_factory=list)  #: one entry per epoch
    seconds: float = 0.0

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - 1 - self.best_epoch


@contextmanager
def claimed(folder: Path, experiment: Experiment, *, resume: bool) -> Iterator[None]:
    """Lock the folder for this experiment until the block ends; if the block raises before a checkpoint, free it again.

    Raises:
        Conflict: the folder holds a finished model, another experiment, an unfinished training that is not to be
            resumed, other files, or a training that is running.
    """
    described = {"digest": experiment.digest, **experiment.to_json()}
    path = folder / EXPERIMENT
    ours = not folder.exists()
    if (folder / METRICS).exists():
        raise Conflict("the output folder holds a finished model: name another one")
    if path.exists():
        _check(json.loads(path.read_text(encoding="utf-8")), described, resume=resume)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict("the output folder contains files that no training wrote")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, described)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("a training is running in this folder") from None
        try:
            yield
        except BaseException:
            if not (folder / CHECKPOINT).exists():  # no epoch is lost, so another experiment may use the folder
                path.unlink(missing_ok=True)
                if ours:
                    with suppress(OSError):  # somebody else has put a file there
                        folder.rmdir()
            raise


def _check(found: Json, wanted: Json, *, resume: bool) -> None:
    if found.get("digest") != wanted["digest"]:
        differ = sorted(key for key in {*found, *wanted} - {"digest"} if found.get(key) != wanted.get(key))
        raise Conflict(f"the output folder holds another experiment; they differ in {', '.join(differ)}")
    if not resume:
        raise Conflict("the output folder holds an unfinished training: resume it, or name another folder")


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the folder's checkpoint atomically: also after a power cut, the file is complete, old or new."""
    values = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    with replacing(folder / CHECKPOINT) as path, path.open("wb") as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:  # torch covers the error of the disk, such as a full one, by its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(folder: Path) -> Checkpoint:
    """Return the last checkpoint, or a fresh one if there is none. Raises: `Invalid` if it is damaged."""
    path = folder / CHECKPOINT
    if not path.exists():
        return Checkpoint()
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception:  # a damaged pickle can raise any exception
        raise Invalid("the checkpoint in the output folder is damaged: name another folder") from None


def begun(folder: Path, data: str) -> Checkpoint:
    """Return the checkpoint, as `load`, of a training on these data. Raises: `Conflict` if it began with other data."""
    found = load(folder)
    if found.epoch and found.data != data:
        raise Conflict("the images or their labels are not those that this training began with: name another folder")
    found.data = data
    return found


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write the value with null for NaN, which is not valid JSON."""
    valid = json.loads(json.dumps(value), parse_constant=lambda _: None)
    with replacing(path) as beside:
        beside.write_text(json.dumps(valid, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path: atomically and durably renamed to `path` if the block succeeds, else removed."""
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        sync(beside)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)
