"""Syncing a shard's files, and reading them into the page cache."""

from pathlib import Path

from shared.disk import sync


def warm(folder: Path) -> None:
    """Read every file once: Edge maps them when it loads a shard, and page faults then would hold the GIL."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass


def sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            sync(path)
