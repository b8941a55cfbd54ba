"""`file:PATH[:KEY]`: a .npy, .npz, .parquet or .h5 file of your own vectors, (n, dim); codes are of type uint8.

KEY names the array in an .npz or .h5 file, or the column of lists in a .parquet file; without it the first is taken.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.datasets.base import Made, held_out
from benchmarks.latency.engines.base import Array
from shared.errors import Invalid, NotFound, SimilisError


def make(text: str, queries: int, seed: int) -> Made:
    """The queries are rows held out by `seed`."""
    name, _, key = text.partition(":")
    path = Path(name)
    if not path.is_file():
        raise NotFound("there is no such file of vectors")
    try:
        rows = _read(path, key)
    except (SimilisError, MemoryError):
        raise
    except Exception:  # a damaged file can raise any exception
        raise Invalid(f"{path.name} cannot be read: it is damaged, or of another format") from None
    if rows.ndim != 2 or len(rows) < 10 or rows.dtype.kind not in "fiu":
        raise Invalid("vectors are a table of numbers, of at least ten rows")
    rows = np.ascontiguousarray(rows if rows.dtype == np.uint8 else rows.astype(np.float32))
    kept, asked = held_out(rows, queries, seed)
    about = {"source": f"{path.name}, {len(asked)} rows held out by seed {seed}", "seed": seed}
    return Made(rows=rows[kept], queries=rows[asked], about=about)


def fingerprint(text: str) -> str:
    """The hash of the file."""
    path = Path(text.partition(":")[0])
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, key: str) -> Array:
    match path.suffix:
        case ".npy":
            with path.open("rb") as file:
                return np.asarray(np.load(file))
        case ".npz":
            with path.open("rb") as file, np.load(file) as arrays:
                return np.asarray(arrays[_key(key, arrays.files)])
        case ".h5" | ".hdf5":
            h5py = _module("h5py")
            with h5py.File(path) as held:
                return np.asarray(held[_key(key, list(held))])
        case ".parquet":
            table = _module("pyarrow.parquet").read_table(path)
            column = table[_key(key, table.column_names)].combine_chunks()
            return np.asarray(column.flatten()).reshape(len(column), -1)
    raise Invalid("vectors are read from .npy, .npz, .h5 and .parquet files")


def _key(key: str, known: list[str]) -> str:
    if key and key not in known:
        raise NotFound(f"the file holds {', '.join(known)}")
    return key or known[0]


def _module(name: str) -> Any:  # noqa: ANN401 - a module
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise Invalid(f"reading this file needs the package {name.partition('.')[0]}") from None
