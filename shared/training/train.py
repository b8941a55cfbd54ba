"""The training loop. It is independent of the method: `Experiment` defines what is trained and how."""

import math
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.datasets.collection import Collection
from shared.errors import Invalid
from shared.training import checkpoint as kept
from shared.training.checkpoint import MODEL, Checkpoint
from shared.training.data import batches, encode, parts
from shared.training.experiment import Batch, Experiment, Json
from shared.training.progress import Progress


def train(experiment: Experiment, root: Path, out: Path, *, resume: bool = True, threads: int | None = None) -> Json:
    """Train the model, write `model/` (weights and card) and `metrics.json` to `out`, and return the metrics.

    Deterministic: on a CPU the same experiment, data and number of threads give the same weights, bit by bit,
    however often the training was stopped and resumed. A checkpoint is written after each epoch.

    Args:
        root: the folder of the data sets.
        out: a new folder, or the folder of the same unfinished experiment.
        threads: number of torch's threads; None keeps torch's choice.

    Raises:
        Conflict: `out` is not free (see `shared.training.checkpoint.claimed`), or the training began with other data.
        Invalid: the data or the side do not fit, the selection figure is unknown, or the loss is no longer finite.
    """
    if experiment.method.takes not in (None, experiment.side):
        raise Invalid(
            f"the network takes images of {experiment.method.takes} pixels, but the experiment has {experiment.side}"
        )
    with kept.claimed(out, experiment, resume=resume), _settled(experiment.seed, threads):
        data = experiment.data.load(root)
        fit, held = parts(data)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: nn.Module = experiment.method.build(fit).to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast in bf16 on a CPU
        optimiser = experiment.optimiser.build(experiment.method.groups(model))
        state = kept.begun(out, data.digest)
        if state.epoch:
            model.load_state_dict(state.model)
            optimiser.load_state_dict(state.optimiser)

        with Progress(experiment.name, state.epoch, experiment.epochs, experiment.selection) as progress:
            progress.images(len(fit), len(held), data.note)
            while state.epoch < experiment.epochs and state.stale < experiment.patience:
                started = time.monotonic()
                losses = _epoch(experiment, model, optimiser, fit, state.epoch, progress)
                figures = _validate(experiment, model, held)
                if experiment.selection not in figures:
                    raise Invalid(f"selection must be one of {', '.join(figures)}")
                _record(state, model, optimiser, losses, figures, figures[experiment.selection])
                state.seconds += time.monotonic() - started
                kept.save(state, out)
                progress.epoch(state)

        model.load_state_dict(state.best if experiment.reload_best else state.model)
        shutil.rmtree(out / MODEL, ignore_errors=True)  # left by a run that was killed while writing it
        about = _about(experiment, state, fit, held)
        experiment.method.save(model.eval().cpu(), out / MODEL, experiment, about)
        metrics = about | _of_the_run(state, device)
        kept.write_json(out / kept.METRICS, metrics)
    return metrics


def _epoch(
    experiment: Experiment,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    fit: Collection,
    epoch: int,
    progress: Progress,
) -> Mapping[str, float]:
    """Train on every batch of the epoch once; return the mean of the loss and its parts."""
    seed = experiment.seed * 100_003 + epoch  # a seed per epoch: an epoch does not depend on a resume before it
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    plan = list(experiment.sampler.batches(fit.labels, fit.groups, seed))
    sums: dict[str, float] = {}
    model.train()
    for number, batch in enumerate(batches(experiment, fit, plan, device)):
        for group in optimiser.param_groups:
            group["lr"] = experiment.schedule.rate(group["base"], epoch + number / len(plan), experiment.epochs)
        for name, value in _step(experiment, model, optimiser, batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        progress.batch(len(batch.labels), (number + 1) / len(plan))
    return {name: total / len(plan) for name, total in sums.items()}


def _step(
    experiment: Experiment, model: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch
) -> Mapping[str, Tensor]:
    """Take one optimiser step; return the loss and its parts before the step."""
    optimiser.zero_grad(set_to_none=True)
    with _mixed(experiment, batch.labels.device):
        loss, loss_parts = experiment.method.step(model, batch)
    if not torch.isfinite(loss):
        raise Invalid("the loss is no longer finite: try a lower learning rate")
    loss.backward()  # type: ignore[no-untyped-call]
    if experiment.clip is not None:
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, experiment.clip)
    optimiser.step()
    return {"loss": loss.detach(), **{name: value.detach() for name, value in loss_parts.items()}}


def _validate(experiment: Experiment, model: nn.Module, held: Collection) -> Mapping[str, float]:
    device = next(model.parameters()).device
    model.eval()
    embed = partial(experiment.method.embed, model)
    with _mixed(experiment, device):
        return experiment.method.validate(model, held, lambda data: encode(embed, data, experiment.side, device))


def _record(
    state: Checkpoint,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    losses: Mapping[str, float],
    figures: Mapping[str, float],
    score: float,
) -> None:
    """Add an epoch to the state, and keep the weights if they are the best so far."""
    state.model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    state.optimiser = optimiser.state_dict()
    state.history.append({"epoch": state.epoch, **losses, **figures})
    if score > state.best_score or math.isnan(state.best_score):
        state.best, state.best_epoch, state.best_score = state.model, state.epoch, score
    state.epoch += 1


@contextmanager
def _settled(seed: int, threads: int | None) -> Iterator[None]:
    """Set the training's seed and threads for the block, then restore the caller's."""
    before = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _mixed(experiment: Experiment, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=experiment.precision == "bf16")


def _about(experiment: Experiment, state: Checkpoint, fit: Collection, held: Collection) -> Json:
    """The facts for the readers of the card."""
    return {
        "experiment": experiment.name,
        "preset": experiment.preset,
        "digest": experiment.digest,
        "seed": experiment.seed,
        "data": fit.name,
        "images": {"train": len(fit), "val": len(held)},
        "note": fit.note,
        "classes": list(fit.classes),
        "licence": fit.licence,
        "selection": experiment.selection,
        "best_epoch": state.best_epoch,
        "best_score": None if math.isnan(state.best_score) else state.best_score,
        "torch": torch.__version__,
    }


def _of_the_run(state: Checkpoint, device: torch.device) -> Json:
    return {
        "history": state.history,
        "seconds": state.seconds,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads",
    }
