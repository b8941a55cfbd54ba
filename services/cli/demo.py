"""`similis demo`: everything once, in a home of its own that goes away again."""

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
    """Add the command that shows it all."""
    app.command()(demo)


def demo(
    studies: Annotated[int, typer.Option(min=4, max=1000, help="Synthetic mammography studies.")] = 8,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the home and the archive, and say where.")] = False,
) -> None:
    """Start a stack of its own, take in a sample archive, ask for similar studies, and end."""
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
    """How long each step took, shown while it runs and once more at the end."""

    began: float = field(default_factory=time.monotonic)
    steps: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[None]:
        """Takes note of the time, and turns a spinner where there is a terminal."""
        started = time.monotonic()
        say(f"{doing} ...")
        with Status("", console=err()) if sys.stderr.isatty() else nullcontext():
            yield
        self.steps.append((name, time.monotonic() - started))

    @contextmanager
    def quietly(self, name: str) -> Iterator[None]:
        """Takes note of the time of a step that shows itself."""
        started = time.monotonic()
        yield
        self.steps.append((name, time.monotonic() - started))

    def tell(self) -> None:
        tell("")
        rows = [(name, f"{seconds:.1f}") for name, seconds in self.steps]
        table(("step", "s"), [*rows, ("all", f"{time.monotonic() - self.began:.1f}")], right=("s",))


@contextmanager
def _stack(home: Path) -> Iterator[tuple[Embedded, Clock]]:
    """A stack is ready, and has ended after the block whatever happened in it."""
    stack, clock = Embedded(home), Clock()
    try:
        with clock.step("start", "starting PostgreSQL, Valkey, Qdrant Edge, the API and the workers"):
            stack.start()
        say(f"ready at {stack.url}")
        yield stack, clock
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # impatience would only leave processes behind
        stack.stop()


def _show(stack: Embedded, archive: Path, studies: int, clock: Clock) -> None:
    from shared.datasets.archive import LABELS, write_archive

    with clock.step("sample archive", f"writing {studies} synthetic mammography studies as DICOM files"):
        records = write_archive(archive, studies, SEED)
    with connect(stack.url, stack.home / "api.key", stack.home.path, say) as client:
        operation = begin(client, archive, archive / LABELS)  # files are registered while the model is built
        with clock.step("model", "making the ONNX graph of the shipped model"):
            _await_model(client)
        with clock.quietly("intake"):
            answer = follow(client, str(operation["id"]))
        _heading("what became of the files")
        summarise(answer)
        if answer["state"] != "succeeded":
            raise SimilisError(f"the intake has {answer['state']}")
        _ask(client, archive, records, clock)


def _await_model(client: Client) -> None:
    """A model is published. Raises: `SimilisError` where none comes."""
    deadline = time.monotonic() + MODEL_PATIENCE_S
    while not any(model.get("published") for model in client.get("/v1/models")["models"]):
        if time.monotonic() > deadline:
            raise SimilisError("no model was published in time")
        time.sleep(0.3)


def _ask(client: Client, archive: Path, records: "list[Record]", clock: Clock) -> None:
    """By the ID of a study, then by one of its files as if it came from outside."""
    record = records[0]
    with clock.quietly("search by study"):
        answer = like_study(client, record.study, k=5)
    _heading(f"the studies most like {record.study}\n({_described(record)}; its own patient is hidden)")
    _found(answer)
    with clock.quietly("search by image"):
        answer = like_image(client, archive / record.file, k=3)
    _heading(f"the studies most like one uploaded image of it ({record.laterality}-{record.view})")
    _found(answer)


def _found(answer: Answer) -> None:
    """Shown. Raises: `SimilisError` for an empty ranking."""
    if not answer["studies"]:
        raise SimilisError("the search found nothing")
    present(answer)


def _described(record: "Record") -> str:
    return f"BI-RADS {record.birads}, density {record.density}, {record.pathology}"


def _remove(folder: Path, home: Path) -> None:
    """Nothing of the demo is left; its sockets stand elsewhere where the home's path is too long for them."""
    if home.exists():
        shutil.rmtree(Home(home).sockets, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _heading(text: str) -> None:
    tell(f"\n— {text}")


def _last_words(home: Path) -> None:
    """The ends of the stack's logs; they hold no patient data by design."""
    for log in sorted((home / "logs").glob("*.log")):
        with suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            for line in lines:
                say(f"{log.stem} | {line[:300]}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
