"""Fixtures for every test: shared data if present, and isolation from the developer's environment."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import shared.encoder  # noqa: F401 - before a test imports ONNX Runtime, whose telemetry it turns off

pytest_plugins = ["tests.engines", "tests.memory"]

if "PYTEST_XDIST_WORKER" in os.environ:  # other workers share the cores, and their threads would wait for each other
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# gRPC's fork handlers start its threads anew in a forked child, which closes their descriptors before it becomes
# another program: now and then a child of `process.spawn`, which forks, was aborted.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A shell that starts a test run in the background has it ignore Ctrl-C, which every child would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("similis", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("similis")

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"

for name in [n for n in os.environ if n.startswith("SIMILIS_") and n != "SIMILIS_QDRANT__URL"]:
    del os.environ[name]


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """`../shared/data`, or a visible skip."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here")
    return DATA


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks so small that more threads gain nothing, and wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
