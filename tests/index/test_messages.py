"""The protobuf messages that the adapter encodes by hand."""

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared.errors import Conflict
from shared.index import messages
from shared.index.base import Exact, Metric, Point, Recall, Spec
from shared.index.protobuf import pb

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays.arrays(np.float32, st.integers(1, 5000), elements=FLOATS))
def test_a_packed_vector_is_what_protobuf_would_have_written(vector: np.ndarray) -> None:
    packed = pb.DenseVector()
    messages.pack(packed, vector)
    assert packed == pb.DenseVector(data=vector.tolist())


@pytest.mark.parametrize("scale", ["exact", "hnsw", "hnsw-int8"])
@pytest.mark.parametrize("metric", list(Metric))
def test_the_spec_comes_back_from_the_collections_metadata(scale: str, metric: Metric) -> None:
    spec = Spec(dim=77, metric=metric, scale=scale, m=8, ef_construct=64)  # type: ignore[arg-type]
    info = pb.CollectionInfo()
    for key, value in messages.create("c", spec).metadata.items():
        info.config.metadata[key].CopyFrom(value)
    assert messages.spec_of(info) == spec


@pytest.mark.parametrize("metric", list(Metric))
def test_the_spec_comes_back_from_its_generations_row(metric: Metric) -> None:
    spec = Spec(dim=77, metric=metric, scale="exact", m=8, ef_construct=64, bits=32)
    assert spec.to_json() == {"dim": 77, "metric": metric.value, "scale": "exact", "m": 8, "ef": 64, "bits": 32}
    assert Spec.of(spec.to_json()) == spec


@pytest.mark.parametrize("text", [None, "", "{}", '{"dim": 3}', '{"dim": 3, "metric": "cosine", "new": 1}', "[]"])
def test_metadata_that_is_not_ours_is_a_conflict(text: str | None) -> None:
    info = pb.CollectionInfo()
    if text is not None:
        info.config.metadata[messages.SPEC_KEY].string_value = text
    with pytest.raises(Conflict):
        messages.spec_of(info)


def test_a_filtered_search_takes_more_effort_and_an_exact_one_no_graph() -> None:
    assert messages.params(Spec(dim=2), Exact(), 10).exact
    assert messages.params(Spec(dim=2, scale="exact"), Recall(0.9), 10).exact
    assert not messages.params(Spec(dim=2), Recall(0.9), 10).exact
    plain, narrow = (messages.params(Spec(dim=2), Recall(0.9), 10, filtered=narrow).hnsw_ef for narrow in (False, True))
    assert narrow > plain


def test_a_payload_reads_like_the_dict_it_was() -> None:
    point = Point(id=uuid.uuid4(), vector=np.ones(2, np.float32), payload={"revision": 2**40, "view": "", "study": -3})
    row = messages.upsert("c", [point], np.ones((1, 2), np.float32)).points[0]
    lazy = messages.LazyPayload(row.payload)
    assert lazy == point.payload
    assert lazy.get("patient") is None
    assert len(lazy) == 3  # reading made no entry
    with pytest.raises(KeyError):
        lazy["patient"]


def test_one_revision_for_all_is_guarded_by_one_condition() -> None:
    points = [Point(id=uuid.uuid4(), vector=np.ones(2, np.float32), payload={"revision": 4}) for _ in range(100)]
    guard = messages.not_newer(points)
    assert guard == pb.Filter(must=[pb.Condition(field=pb.FieldCondition(key="revision", range=pb.Range(lte=4)))])


def test_stored_vectors_are_read_from_old_and_new_servers() -> None:
    old, new = pb.VectorOutput(data=[1.0, 2.0]), pb.VectorOutput(dense=pb.DenseVector(data=[1.0, 2.0]))
    assert messages.unpack(old).tolist() == messages.unpack(new).tolist() == [1.0, 2.0]
