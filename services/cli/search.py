"""`similis search`: the studies most like one in the archive, or like an image in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.client import Answer, Client, connected, given, part
from services.cli.terminal import AsJson, counted, out, say, shown, table, tell, tell_json, warn
from shared.disk import regular
from shared.errors import Invalid, NotFound

ONE_LINE = 160  #: columns from which a study is shown on one line


def register(app: typer.Typer) -> None:
    """Add the command `search`."""
    app.command()(search)


@connected
def search(  # noqa: PLR0913 - each argument is an option of the command
    client: Client,
    *,
    study: Annotated[str | None, typer.Option(help="StudyInstanceUID of a study in the archive.")] = None,
    image: Annotated[Path | None, typer.Option(help="A DICOM, PNG or JPEG file; it is not stored.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of studies to show.")] = 10,
    exclude: Annotated[
        str, typer.Option(help="The query's own images to exclude: self,study,patient, or none.")
    ] = "self,study,patient",
    view: Annotated[str, typer.Option(help="match: only images of the same view; any: all images.")] = "any",
    modality: Annotated[str | None, typer.Option(help="Such as MG,CT.")] = None,
    view_position: Annotated[str | None, typer.Option(help="Such as CC,MLO.")] = None,
    laterality: Annotated[str | None, typer.Option(help="L, R or B.")] = None,
    birads: Annotated[str | None, typer.Option(help="Such as 4,5.")] = None,
    density: Annotated[str | None, typer.Option(help="Such as C,D.")] = None,
    date: Annotated[str | None, typer.Option(help="StudyDate range, such as 20200101-20211231.")] = None,
    mode: Annotated[
        str, typer.Option(help="dense: the embedding; hash: codes; hybrid: codes, then embedding.")
    ] = "dense",
    radius: Annotated[
        int | None, typer.Option(min=0, help="With --mode hash: radius in bits. Default: as wide as -k needs.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every image instead of using the graph.")
    ] = False,
    cursor: Annotated[str | None, typer.Option(help="The next page, from an earlier answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the studies most like a study, or like an image."""
    if (study is None) == (image is None):
        raise typer.BadParameter("give either --study or --image")
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
        "mode": None if mode == "dense" else mode,
        "radius": radius,
        "exact": "true" if exact else None,
        "cursor": cursor,
    }
    answer = like_study(client, study, **asked) if study is not None else like_image(client, image or Path(), **asked)
    if as_json:
        tell_json(answer)
        return
    present(answer)
    if answer.get("next"):
        say(f"next page: repeat with --cursor {answer['next']}")


def like_study(client: Client, study_uid: str, **asked: Any) -> Answer:  # noqa: ANN401 - query parameters
    """The ranking for a study of the archive."""
    return client.get(f"/v1/studies/{part(study_uid)}/similar", **asked)


def like_image(client: Client, path: Path, **asked: Any) -> Answer:  # noqa: ANN401
    """The ranking for an image file on this machine; its name is not sent."""
    try:
        content = regular(path, "the image file").read_bytes()
    except FileNotFoundError:
        raise NotFound("there is no such image file") from None
    except OSError as error:
        raise Invalid(f"the image file cannot be read: {error.strerror}") from None
    return client.post(
        "/v1/searches", params=given(**asked), files={"file": ("image", content, "application/octet-stream")}
    )


def present(answer: Answer) -> None:
    """Print the ranking as a table, best first, then the model, generation, hidden counts and warnings."""
    views_known = any(image.get("view") for image in answer["query"]["images"])
    rows = [
        (
            study["rank"],
            f"{study['score']:z.4f}",
            study["study_instance_uid"],
            study["study_date"],
            labelled(study["labels"]),
            "  ".join(pair(match, views_known=views_known) for match in study["matches"][:4]),
        )
        for study in answer["studies"]
    ]
    if not rows:
        tell("no study is left to compare with: see --exclude, the filters and --radius")
    elif out().width >= ONE_LINE:
        table(("rank", "score", "study", "date", "labels", "matched images"), rows, right=("rank", "score"))
    else:  # a UID that is broken over two lines cannot be copied
        lines: list[Sequence[Any]] = []
        for rank, score, study, *rest in rows:
            lines += [(rank, score, study), ("", "", "; ".join(shown(cell) for cell in rest if cell))]
        table(("rank", "score", "study"), lines, right=("rank", "score"))
    if any("*" in row[-1] for row in rows):
        tell("* another view than the image it was compared with")
    _who_answered(answer)


def labelled(labels: Answer) -> str:
    """The labels as text, such as `BI-RADS 4, density C, malignant`; unknown ones are left out."""
    named = {"birads": "BI-RADS ", "density": "density ", "pathology": ""}
    return ", ".join(
        f"{before}{shown(labels[key])}" for key, before in named.items() if labels.get(key) not in (None, [])
    )


def pair(match: Answer, *, views_known: bool = True) -> str:
    """A match as text, such as `L-MLO 0.93`; a `*` marks another view than the query image's."""
    side, view = match.get("laterality") or "", match.get("view") or ""
    name = "-".join(text for text in (side, view) if text) or match.get("modality") or "image"
    other = views_known and not match["same_view"]
    bits = "" if match.get("hamming") is None else f"/{match['hamming']}"
    return f"{name} {match['score']:z.2f}{bits}{'*' if other else ''}"


def _who_answered(answer: Answer) -> None:
    model, hidden = answer["model"], answer["hidden"]
    how = "exact" if answer["exact"] else "approximate"
    if answer.get("mode", "dense") != "dense":
        how = f"by codes ({answer['mode']}; after the slash: bits that differ)"
    tell(
        f"model {model['name']}, {model['label']}, fingerprint {model['fingerprint'][:12]}; "
        f"generation {answer['generation']}, {how}; {answer['took_ms']:.1f} ms"
    )
    studies, images = counted(hidden["studies"], "study", "studies"), counted(hidden["images"], "image", "images")
    tell(f"hidden, as the query's own: {studies}, {images}")
    if not model["trained"]:
        warn(f"UNTRAINED MODEL: the weights of {model['name']} are random; this ranking means nothing medically")
    for stop in answer["query"]["stopped_by"]:
        warn(f"the query image would not be taken in: {stop.get('explanation') or stop['reason']}")
    for gate in answer["query"].get("gates", []):
        votes = [_vote(gate, "score", "threshold"), _vote(gate, "distance", "distance_threshold")]
        tell(", ".join([f"gate {gate['gate']}: {gate['verdict']}", *filter(None, votes)]))
    if answer.get("cut"):
        instead = "ask for the next page" if answer.get("next") else "a smaller --radius"
        warn(f"images were left out of the search: use filters, or {instead}")


def _vote(gate: Answer, name: str, limit: str) -> str:
    if gate[name] is None:
        return ""
    said = "no threshold for its modality" if gate[limit] is None else f"threshold {gate[limit]:.4g}"
    return f"{name} {gate[name]:.4g} ({said})"
