"""What the kernel says about a path without a look at it."""

from pathlib import Path

import pytest

from shared.disk import mount_of


def test_the_mount_of_a_path_need_not_be_looked_at() -> None:
    assert mount_of(Path("/proc/1/no such file")) == Path("/proc")
    assert mount_of(Path("/no such folder/file")) == Path("/")


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/archive/a/b", "/archive"),
        ("/archive/deep/b", "/archive/deep"),
        ("/archive2/b", "/"),
        ("/with space/b", "/with space"),
        ("/\udcff/b", "/\udcff"),
    ],
)
def test_the_longest_mount_point_above_a_path_holds_it(tmp_path: Path, path: str, mount: str) -> None:
    table = tmp_path / "mountinfo"
    points = [b"/", b"/archive", b"/archive/deep", rb"/with\040space", b"/\xff"]
    table.write_bytes(b"".join(b"36 35 98:0 / " + point + b" rw - nfs server rw\n" for point in points))
    assert mount_of(Path(path), table) == Path(mount)
