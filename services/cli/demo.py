"""`similis demo`: runs a whole stack once, in a temporary home that is removed at the end."""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.status import Status

from services.cli.client import Answer, Client, connect
from services.cli.follow import follow, summarise
from services.cli.ingest import begin
from services.cli.search import like_image, like_study, present
from services.cli.terminal import err, say, table, tell
from services.embedded.client import Embedded
from services.embedded.home import Home
from shared.errors import SimilisError

if TYPE_CHECKING:  # pydicom takes half a second, which every other command would pay
    from shared.datasets.archive import Record

SEED = 7
MODEL_PATIENCE_S = 180.0
LAST_LINES = 6


def register(app: typer.Typer) -> None:
    """Add the command `demo`."""
    app.command()(demo)


def demo(
    studies: Annotated[int, typer.Option(min=4, max=1000, help="Synthetic mammography studies.")] = 8,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the home and the archive, and say where.")] = False,
) -> None:
    """Start a temporary stack, take in a sample archive, search for similar studies, and stop."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="similis-demo-"))
    home = folder / "home"
    try:
        with _stack(home) as (stack, clock):
            _show(stack, folder / "archive", studies, clock)
            with clock.step("stop", "stopping everything in order"):
                stopped = stack.stop()
            if stopped != 0:
                raise SimilisError(f"the stack ended with code {stopped}")  # noqa: TRY301 - told like any failure
            clock.tell()
    except (SimilisError, OSError) as error:
        say(f"\nthe demo failed: {error}")
        _last_words(home)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say("\nstopped")
        raise typer.Exit(130) from None
    finally:
        if keep:
            say(f"kept: {folder}; serve it again with `similis up --home {home}`")
        else:
            _remove(folder, home)


@dataclass
class Clock:
    """Records how long each step took, and prints the times at the end."""

    began: float = field(default_factory=time.monotonic)
    steps: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, doing: str = "") -> Iterator[None]:
        """Record the time of a step; `doing` is said first, with a spinner on a terminal."""
        started = time.monotonic()
        if doing:
            say(f"{doing} ...")
        with Status("", console=err()) if doing and sys.stderr.isatty() else nullcontext():
            yield
        self.steps.append((name, time.monotonic() - started))

    def tell(self) -> None:
        tell("")
        rows = [(name, f"{seconds:.1f}") for name, seconds in self.steps]
        table(("step", "s"), [*rows, ("all", f"{time.monotonic() - self.began:.1f}")], right=("s",))


@contextmanager
def _stack(home: Path) -> Iterator[tuple[Embedded, Clock]]:
    """A ready stack, which is stopped after the block, also on an error."""
    stack, clock = Embedded(home), Clock()
    try:
        with clock.step("start", "starting PostgreSQL, Valkey, Qdrant Edge, the API and the workers"):
            stack.start()
        say(f"ready at {stack.url}")
        yield stack, clock
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # an interrupted stop would leave processes behind
        stack.stop()


def _show(stack: Embedded, archive: Path, studies: int, clock: Clock) -> None:
    from shared.datasets.archive import LABELS, write_archive

    with clock.step("sample archive", f"writing {studies} synthetic mammography studies as DICOM files"):
        records = write_archive(archive, studies, SEED)
    with connect(stack.url, stack.home / "api.key", stack.home.path, say) as client:
        operation = begin(client, archive, archive / LABELS)  # files are registered while the model is built
        with clock.step("model", "making the ONNX graph of the shipped model"):
            _await_model(client)
        with clock.step("intake"):
            answer = follow(client, str(operation["id"]))
        _heading("what became of the files")
        summarise(answer)
        if answer["state"] != "succeeded":
            raise SimilisError(f"the intake has {answer['state']}")
        _ask(client, archive, records, clock)


def _await_model(client: Client) -> None:
    """Wait until a model is published. Raises: `SimilisError` after `MODEL_PATIENCE_S`."""
    deadline = time.monotonic() + MODEL_PATIENCE_S
    while not any(model.get("published") for model in client.get("/v1/models")["models"]):
        if time.monotonic() > deadline:
            raise SimilisError("no model was published in time")
        time.sleep(0.3)


def _ask(client: Client, archive: Path, records: "list[Record]", clock: Clock) -> None:
    """Search by a study's UID, then by one of its files as an upload, and print both rankings."""
    record = records[0]
    with clock.step("search by study"):
        answer = like_study(client, record.study, k=5)
    _heading(f"the studies most like {record.study}\n({_described(record)}; its own patient is hidden)")
    _found(answer)
    with clock.step("search by image"):
        answer = like_image(client, archive / record.file, k=3)
    _heading(f"the studies most like one uploaded image of it ({record.laterality}-{record.view})")
    _found(answer)


def _found(answer: Answer) -> None:
    """Print the ranking. Raises: `SimilisError` where it is empty."""
    if not answer["studies"]:
        raise SimilisError("the search found nothing")
    present(answer)


def _described(record: "Record") -> str:
    return f"BI-RADS {record.birads}, density {record.density}, {record.pathology}"


def _remove(folder: Path, home: Path) -> None:
    """Remove the demo's folder, and its sockets, which lie elsewhere where the home's path is too long for them."""
    if home.exists():
        shutil.rmtree(Home(home).sockets, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _heading(text: str) -> None:
    tell(f"\n— {text}")


def _last_words(home: Path) -> None:
    """Print the last lines of the stack's logs, which hold no patient data by design."""
    for log in sorted((home / "logs").glob("*.log")):
        with suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            for line in lines:
                say(f"{log.stem} | {line[:300]}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
