"""Qdrant's messages can be imported without the rest of its client, and together with it."""

import subprocess
import sys

import pytest


def done(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["services.vectors.server", "services.vectors.optimize", "shared.index.qdrant"])
def test_who_speaks_grpc_does_not_pay_for_the_rest_client(module: str) -> None:
    said = done(f"import sys, {module}; print([m for m in sys.modules if m.startswith('qdrant_client.')])")
    assert said.returncode == 0, said.stderr
    assert "qdrant_client.grpc.points_pb2" in said.stdout
    assert "qdrant_client.http" not in said.stdout


@pytest.mark.parametrize("first", ["from shared.index.protobuf import pb", "import qdrant_client"])
def test_the_whole_package_may_be_imported_before_or_after(first: str) -> None:
    said = done(f"""{first}
from qdrant_client import QdrantClient, grpc
from qdrant_client.conversions.conversion import GrpcToRest
from shared.index.protobuf import pb
assert pb is grpc
client = QdrantClient(":memory:")
assert GrpcToRest.convert_filter(pb.Filter()) is not None""")
    assert said.returncode == 0, said.stderr
