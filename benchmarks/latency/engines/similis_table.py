"""The code table of the vectors process, called directly: the scan's part of a served search."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Engine, Found, InProcess
from services.vectors.codes import CodeTable
from shared.index.protobuf import pb


class _Table(InProcess):
    """Filled from the rows when opened, as the vectors process fills it from the shard; it has no file of its own."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        rows = np.load(folder / "rows.npy")
        self._table = CodeTable(8 * rows.shape[1])
        names = list(columns)
        values = np.stack([columns[name] for name in names], axis=1).tolist()
        for n, row in enumerate(rows):
            self._table.put(n, row, dict(zip(names, values[n], strict=True)))

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        del effort
        wanted = [_filter(clause) for clause in clauses] if clauses else [None] * len(queries)
        ids = np.full((len(queries), k), -1, np.int64)
        for row, (query, own) in enumerate(zip(queries, wanted, strict=True)):
            found = [hit.id for hit in self._table.top(query, k, None, own)]
            ids[row, : len(found)] = found
        return Found(ids)


def _filter(clause: Clause) -> pb.Filter:
    condition = pb.Condition(field=pb.FieldCondition(key=clause.field, match=pb.Match(integer=clause.value)))
    return pb.Filter(must_not=[condition]) if clause.exclude else pb.Filter(must=[condition])


def _build(folder: Path, rows: Array, columns: Columns) -> None:
    del columns
    np.save(folder / "rows.npy", rows)


ENGINES = (Engine(name="similis-table", build=_build, open=_Table, exact=True, kind="codes"),)
