from tests.pipeline.conftest import platform  # noqa: F401 - a fixture
