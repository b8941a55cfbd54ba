from tests.memory import quick_path as tmp_path  # noqa: F401 - a fixture
