"""Studies, series and instances under DICOM's names, for QIDO-RS queries and WADO-RS retrieval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from shared.store.tables import Image, Study

Level = Literal["study", "series", "instance"]

#: the columns that may be matched, by DICOM keyword
COLUMNS: Mapping[str, Any] = {
    "StudyInstanceUID": Study.uid,
    "SeriesInstanceUID": Image.series_uid,
    "SOPInstanceUID": Image.sop_uid,
    "SOPClassUID": Image.sop_class,
    "AvailableTransferSyntaxUID": Image.transfer_syntax,
    "Modality": Image.modality,
    "BodyPartExamined": Image.body_part,
    "Manufacturer": Image.manufacturer,
    "ImageLaterality": Image.laterality,
    "ViewPosition": Image.view,
    "PresentationIntentType": Image.presentation_intent,
    "Rows": Image.rows,
    "Columns": Image.columns,
    "NumberOfFrames": Image.frames,
}
_ALIVE = Image.status != "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Filters of a query; an empty one does not filter.

    Attributes:
        values: keyword of `COLUMNS` -> values of which one must match; `*` and `?` are wildcards.
        modalities_in_study: the study has an image of one of these modalities, whichever image matches the rest.
    """

    values: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    modalities_in_study: Sequence[str] = ()
    date_from: date | None = None
    date_to: date | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        found = [_any_of(COLUMNS[name], values) for name, values in self.values.items() if values]
        if self.date_from is not None:
            found.append(Study.study_date >= self.date_from)
        if self.date_to is not None:
            found.append(Study.study_date <= self.date_to)
        if self.modalities_in_study:
            other = aliased(Image)
            found.append(
                sa.exists().where(
                    other.study_id == Image.study_id,  # of the outer query, which may have no `Study`
                    other.status != "deleted",
                    _any_of(other.modality, self.modalities_in_study),
                )
            )
        return found


def _any_of(column: Any, values: Sequence[str | int]) -> sa.ColumnElement[bool]:  # noqa: ANN401
    plain = [value for value in values if not (isinstance(value, str) and set(value) & {"*", "?"})]
    tests = [column.in_(plain)] if plain else []
    tests += [column.like(_pattern(str(value)), escape="\\") for value in values if value not in plain]
    return sa.or_(*tests)


def _pattern(value: str) -> str:
    """DICOM's wildcards as those of SQL. Source: PS3.4 C.2.2.2.4."""
    for special in "\\%_":
        value = value.replace(special, "\\" + special)
    return value.replace("*", "%").replace("?", "_")


def find(connection: sa.Connection, level: Level, matching: Matching, limit: int, offset: int) -> Sequence[Any]:
    """A page of rows whose columns have DICOM's names, in order of arrival; series are ordered by study first.

    New rows come last, so that pages do not shift while images come in. Only the series of several studies may shift:
    to order those by arrival, every image would have to be read for each page.
    """
    query = {"study": _studies, "series": _series, "instance": _instances}[level]
    return connection.execute(query(matching, limit, offset)).mappings().all()


def _studies(matching: Matching, limit: int, offset: int) -> sa.Select[*tuple[Any, ...]]:
    page = (
        sa.select(Study.id, Study.uid, Study.study_date)
        .where(sa.exists().where(Image.study_id == Study.id, _ALIVE, *matching.conditions()))
        .order_by(Study.id)
        .limit(limit)
        .offset(offset)
        .subquery()  # so that nothing is aggregated for skipped studies
    )
    images = aliased(Image)
    of_study = [images.study_id == page.c.id, images.status != "deleted"]
    return sa.select(
        page.c.uid.label("StudyInstanceUID"),
        page.c.study_date.label("StudyDate"),
        _of(of_study, sa.func.array_agg(sa.distinct(images.modality)), "ModalitiesInStudy"),
        _of(of_study, sa.func.count(sa.distinct(images.series_uid)), "NumberOfStudyRelatedSeries"),
        _of(of_study, sa.func.count(), "NumberOfStudyRelatedInstances"),
    ).order_by(page.c.id)


def _series(matching: Matching, limit: int, offset: int) -> sa.Select[*tuple[Any, ...]]:
    first = sa.func.min(Image.id)
    page = (
        sa.select(Study.id, Study.uid, Study.study_date, Image.series_uid, first.label("first"))
        .join(Image, Image.study_id == Study.id)
        .where(_ALIVE, *matching.conditions())
        .group_by(Study.id, Image.series_uid)
        .order_by(Study.id, first)
        .limit(limit)
        .offset(offset)
        .subquery()
    )
    images = aliased(Image)
    of_series = [images.study_id == page.c.id, images.series_uid == page.c.series_uid, images.status != "deleted"]
    return sa.select(
        page.c.uid.label("StudyInstanceUID"),
        page.c.study_date.label("StudyDate"),
        page.c.series_uid.label("SeriesInstanceUID"),
        _of(of_series, sa.func.min(images.modality), "Modality"),
        _of(of_series, sa.func.min(images.body_part), "BodyPartExamined"),
        _of(of_series, sa.func.min(images.manufacturer), "Manufacturer"),
        _of(of_series, sa.func.count(), "NumberOfSeriesRelatedInstances"),
    ).order_by(page.c.id, page.c.first)


def _of(these: Sequence[sa.ColumnElement[bool]], what: Any, name: str) -> Any:  # noqa: ANN401 - SQLAlchemy's own
    return sa.select(what).where(*these).scalar_subquery().label(name)


def _instances(matching: Matching, limit: int | None = None, offset: int | None = None) -> sa.Select[*tuple[Any, ...]]:
    return (
        sa.select(
            *(column.label(name) for name, column in COLUMNS.items()),
            Study.study_date.label("StudyDate"),
            Image.status,
            Image.path,
            Image.digest,
        )
        .join(Study, Image.study_id == Study.id)
        .where(_ALIVE, *matching.conditions())
        .order_by(Image.id)
        .limit(limit)
        .offset(offset)
    )


def held(connection: sa.Connection, study: str, series: str = "", sop: str = "") -> Sequence[Any]:
    """The instances of a study or of one of its series, or a single one, with status, path and digest."""
    named = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": sop}
    matching = Matching(values={name: [uid] for name, uid in named.items() if uid})
    return connection.execute(_instances(matching)).mappings().all()
