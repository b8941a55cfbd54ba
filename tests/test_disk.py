"""What is at a path is told, or it is an error."""

import pytest

from shared.disk import exists


def test_absent_is_what_is_not_there(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("none", "none/below", "file/below", "link"):
        assert not exists(tmp_path / name), name
    for name in ("", "file"):
        assert exists(tmp_path / name), name


def test_a_path_that_cannot_be_looked_at_is_not_absent(tmp_path):
    """As in a folder without permission or on an absent share; here the name is too long for the system."""
    with pytest.raises(OSError, match="File name too long"):
        exists(tmp_path / ("x" * 300))
