"""Terminal output: data goes to stdout, messages to stderr; control characters from outside are escaped in both."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

_WIDE = 240  #: columns of a table that is written to a file or a pipe


def out() -> Console:
    """A console on the present `sys.stdout`, which tests replace."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE, highlight=False, soft_wrap=False)


def err() -> Console:
    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else _WIDE, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    err().print(Text(printable(line)))


def warn(line: str) -> None:
    err().print(Text(printable(line), style="bold yellow"))


def tell(line: str = "") -> None:
    out().print(Text(printable(line)), soft_wrap=True)


def tell_json(data: object) -> None:
    every_letter = (sys.stdout.encoding or "utf-8").lower() == "utf-8"  # the stream's own escapes are not valid JSON
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(data, ensure_ascii=not every_letter, indent=indent)
    sys.stdout.write("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n")
    sys.stdout.flush()


def counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def printable(text: str) -> str:
    """The text with non-printable characters escaped, so that it cannot move the cursor or colour the screen."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:  # noqa: ANN401 - a cell of whatever JSON holds
    """A value as the one-line text of a table cell; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_inner(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{printable(name)} {_inner(item)}" for name, item in value.items() if item is not None)
    return printable(str(value)).replace("\n", " ")


def _inner(value: Any) -> str:  # noqa: ANN401
    """A value inside another one; parentheses keep its parts together."""
    return f"({shown(value)})" if isinstance(value, list | dict) else shown(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Print a table on stdout; long values are wrapped, never truncated."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(shown(value)) for value in row))
    console = out()
    if console.is_terminal:
        console.print(made)
        return
    with console.capture() as captured:
        console.print(made)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
