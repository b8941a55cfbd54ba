"""`similis search`: the studies most like one in the archive, or like an image in a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.client import Answer, Client, connected, part
from services.cli.terminal import AsJson, shown, table, tell, tell_json, warn
from shared.errors import Invalid, NotFound

Filter = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command that searches."""
    app.command()(search)


@connected
def search(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    *,
    study: Annotated[str | None, typer.Option(help="StudyInstanceUID of a study in the archive.")] = None,
    image: Annotated[Path | None, typer.Option(help="A DICOM, PNG or JPEG file; nothing of it is kept.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many studies.")] = 10,
    exclude: Annotated[
        str, typer.Option(help="What to leave out of the query's own: self,study,patient, or none.")
    ] = "self,study,patient",
    view: Annotated[str, typer.Option(help="match: only images of the same view; any: all.")] = "any",
    modality: Annotated[str | None, typer.Option(help="Such as MG,CT.")] = None,
    view_position: Annotated[str | None, typer.Option(help="Such as CC,MLO.")] = None,
    laterality: Annotated[str | None, typer.Option(help="L, R or B.")] = None,
    birads: Annotated[str | None, typer.Option(help="Such as 4,5.")] = None,
    density: Annotated[str | None, typer.Option(help="Such as C,D.")] = None,
    date: Annotated[str | None, typer.Option(help="StudyDate range, such as 20200101-20211231.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every image, not by the graph.")] = False,
    cursor: Annotated[str | None, typer.Option(help="The next page, from an earlier answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the studies most like a study, or like an image."""
    if (study is None) == (image is None):
        raise typer.BadParameter("name one of --study and --image")
    asked = {
        "k": k,
        "exclude": exclude,
        "view": view,
        "Modality": modality,
        "ViewPosition": view_position,
        "ImageLaterality": laterality,
        "birads": birads,
        "density": density,
        "StudyDate": date,
        "exact": "true" if exact else None,
        "cursor": cursor,
    }
    answer = like_study(client, study, **asked) if study is not None else like_image(client, image or Path(), **asked)
    if as_json:
        tell_json(answer)
    else:
        present(answer)


def like_study(client: Client, study_uid: str, **asked: Any) -> Answer:  # noqa: ANN401 - query parameters
    """The ranking for a study of the archive."""
    return client.get(f"/v1/studies/{part(study_uid)}/similar", **asked)


def like_image(client: Client, path: Path, **asked: Any) -> Answer:  # noqa: ANN401
    """The ranking for the image in a file of this machine; its name stays here."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFound("there is no such image file") from None
    except OSError as error:
        raise Invalid(f"the image file cannot be read: {error.strerror}") from None
    given = {name: value for name, value in asked.items() if value is not None}
    return client.post("/v1/searches", params=given, files={"file": ("image", content, "application/octet-stream")})


def present(answer: Answer) -> None:
    """The ranking as a table, best first, and a line about who answered."""
    rows = [
        (
            study.get("rank", place),
            f"{study['score']:.4f}",
            study["study_instance_uid"],
            study.get("study_date"),
            labelled(study.get("labels") or {}),
            "  ".join(pair(match) for match in (study.get("matches") or [])[:4]),
        )
        for place, study in enumerate(answer["studies"], 1)
    ]
    if rows:
        table(("rank", "score", "study", "date", "labels", "matched images"), rows, right=("rank", "score"))
    else:
        tell("no study is left to compare with: see --exclude and the filters")
    _who_answered(answer)


def labelled(labels: Answer) -> str:
    """`BI-RADS 4, density C, malignant`; what is unknown is left out."""
    named = {"birads": "BI-RADS ", "density": "density ", "pathology": ""}
    return ", ".join(
        f"{before}{shown(labels[key])}" for key, before in named.items() if labels.get(key) not in (None, [])
    )


def pair(match: Answer) -> str:
    """`L-MLO 0.93`: the found image, marked where it is another view than the one asked with."""
    side, view = match.get("laterality") or "", match.get("view") or ""
    name = "-".join(text for text in (side, view) if text) or match.get("modality") or "image"
    return f"{name}{'' if match.get('same_view', True) else '*'} {match['score']:.2f}"


def _who_answered(answer: Answer) -> None:
    model, hidden = answer.get("model") or {}, answer.get("hidden") or {}
    how = "exact" if answer.get("exact") else "approximate"
    tell(
        f"model {model.get('name')} ({model.get('label')}, {str(model.get('fingerprint', ''))[:12]}), "
        f"generation {answer.get('generation')}, {how}; hidden: {hidden.get('studies', 0)} studies, "
        f"{hidden.get('images', 0)} images of the query's own; {shown(answer.get('took_ms'))} ms"
    )
    if not model.get("trained", True):
        warn(f"UNTRAINED MODEL: {model.get('name')} has random weights; its ranking means nothing medically")
    for stop in (answer.get("query") or {}).get("stopped_by") or []:
        warn(f"the query image would not be taken in: {_stop(stop)}")
    if answer.get("next"):
        tell(f"more: --cursor {answer['next']}")


def _stop(stop: Any) -> str:  # noqa: ANN401 - an object or a word
    return " ".join(shown(stop.get(key)) for key in ("gate", "reason")) if isinstance(stop, dict) else shown(stop)
