"""The vectors process refuses by name every field and message that it does not implement."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor

from services.vectors import optimize, translate
from services.vectors.codes import CodeTable
from services.vectors.translate import ALLOWED, Refused
from shared.index import messages
from shared.index.base import Spec
from shared.index.protobuf import pb

DENSE = translate.Layout(sizes={"dense": 2}, bits={})
NO_UUID = pb.Condition(has_id=pb.HasIdCondition(has_id=[pb.PointId(uuid="x")]))
KINDS = {
    FieldDescriptor.CPPTYPE_STRING: "x",
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_ENUM: 1,
    FieldDescriptor.CPPTYPE_DOUBLE: 1.0,
    FieldDescriptor.CPPTYPE_FLOAT: 1.0,
}


def with_field(name: str, field: FieldDescriptor) -> Any:
    """The message with only this field set."""
    message = getattr(pb, name)()
    if field.message_type is None:
        value = KINDS.get(field.cpp_type, 1)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    elif field.message_type.GetOptions().map_entry:
        entry = getattr(message, field.name)["x"]
        entry.SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).add()
    else:
        getattr(message, field.name).SetInParent()
    return message


def unlisted() -> Iterator[Any]:
    for name, allowed in ALLOWED.items():
        for field in getattr(pb, name).DESCRIPTOR.fields:
            if field.name not in allowed:
                yield pytest.param(name, field, id=f"{name}.{field.name}")


@pytest.mark.parametrize(("name", "field"), list(unlisted()))
def test_a_field_that_is_not_implemented_is_refused_by_name(name: str, field: FieldDescriptor) -> None:
    with pytest.raises(Refused, match=rf"{name}\.{field.name} ") as caught:
        translate.check(with_field(name, field))
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


def test_a_refused_field_is_found_at_any_depth() -> None:
    request = pb.QueryBatchPoints(collection_name="c")
    inner = request.query_points.add().filter.must.add().filter.should.add()
    translate.check(request)
    inner.field.geo_radius.radius = 3.0
    with pytest.raises(Refused, match=r"FieldCondition\.geo_radius"):
        translate.check(request)


@pytest.mark.parametrize("name", list(ALLOWED))
def test_the_list_names_fields_that_exist_and_messages_that_are_listed_too(name: str) -> None:
    fields = {field.name: field for field in getattr(pb, name).DESCRIPTOR.fields}
    assert ALLOWED[name] <= fields.keys()
    for field in (fields[allowed] for allowed in ALLOWED[name]):
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is not None and inner.name != "Value":
            assert inner.name in ALLOWED


def test_a_message_that_nobody_sends_is_refused_as_a_whole() -> None:
    with pytest.raises(Refused, match="DeletePointVectors"):
        translate.check(pb.DeletePointVectors(collection_name="c"))


@pytest.mark.parametrize("kind", ["double_value", "bool_value", "null_value", "list_value", "struct_value"])
def test_a_payload_value_that_edge_would_hold_otherwise_is_refused(kind: str) -> None:
    point = pb.PointStruct(id=pb.PointId(uuid="00000000-0000-0000-0000-000000000001"))
    value = point.payload["birads"]
    if kind in {"list_value", "struct_value"}:
        getattr(value, kind).SetInParent()
    else:
        setattr(value, kind, 0)
    with pytest.raises(Refused, match="payload value"):
        translate.point_of(point, DENSE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(Refused, match="NaN or infinity"):
        translate.vector_of(pb.DenseVector(data=[1.0, bad, 2.0]), 3)


def test_a_vector_arrives_bit_for_bit() -> None:
    sent = np.random.default_rng(3).standard_normal(300).astype(np.float32)
    got = translate.vector_of(pb.DenseVector(data=sent.tolist()), 300)
    assert got.tobytes() == sent.tobytes()


def test_a_finite_vector_whose_square_overflows_is_not_called_infinite() -> None:
    assert translate.vector_of(pb.DenseVector(data=[1e30, 1e30]), 2).tolist() == pytest.approx([1e30, 1e30])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: translate.vector_of(pb.DenseVector(data=[1.0]), 3), "1 dimensions"),
        (lambda: translate.query_of(pb.QueryPoints(using="other"), DENSE), "using"),
        (lambda: translate.query_of(pb.QueryPoints(using="dense"), DENSE), "nearest"),
        (lambda: translate.point_of(pb.PointStruct(), DENSE), "has no vector"),
        (lambda: translate.ids_of([pb.PointId(num=3)]), "UUID"),
        (lambda: CodeTable(8).top(np.zeros(1, np.uint8), 1, None, pb.Filter(must=[NO_UUID])), "UUID"),
        (lambda: translate.filter_of(pb.Filter(must=[NO_UUID])), "UUID"),
        (lambda: translate.filter_of(pb.Filter(must=[pb.Condition()])), "empty"),
        (lambda: translate.config_of(pb.CreateCollection()), "named vectors"),
    ],
)
def test_a_request_that_lacks_something_is_told_what(make: Any, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        make()
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_no_graph_is_too_large_to_be_merged() -> None:
    """Edge's own limit would be seen only with some 600 MB of vectors."""
    optimizers = translate.config_of(messages.create("a", Spec(dim=1024)), optimize.MERGED).optimizers
    assert optimizers is not None
    assert (optimizers.max_segment_size or 0) * 1024 > 100_000_000 * 1024 * 4
