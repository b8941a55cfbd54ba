"""The graphs of FAISS and of Edge with int8 copies at other values of m and ef_construct.

Named `graph-faiss-m8-c100` and so on; measured only on request (`graph-*`).
"""

from dataclasses import replace
from itertools import product
from typing import Final

from benchmarks.latency.engines import edge_dense, faiss_hnsw
from benchmarks.latency.engines.base import Engine

TRIED: Final = tuple(product((8, 16, 32), (100, 200)))


def _named(engine: Engine, name: str, m: int, ef_construct: int) -> Engine:
    return replace(engine, name=f"graph-{name}-m{m}-c{ef_construct}", aside=True)


ENGINES = (
    *(_named(faiss_hnsw.engine(m, ef_construct), "faiss", m, ef_construct) for m, ef_construct in TRIED),
    *(_named(edge_dense.int8(m, ef_construct), "edge-int8", m, ef_construct) for m, ef_construct in TRIED),
)
