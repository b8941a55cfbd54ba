"""The sandbox child, started by `shared.imaging.launch`. It takes open files and returns decoded pictures.

Jobs are messages with descriptors on standard input (a socket). Answers, with a length prefix, go to the original
standard output; descriptors 0 to 2 are then /dev/null, so a decoder that prints cannot corrupt an answer.
"""

import json
import mmap
import os
import socket
import struct
import sys
import warnings
import zlib  # before gdcm: imported first, gdcm's zlib would replace this one and corrupt memory

import gdcm
import openjpeg
import PIL.Image
import PIL.Jpeg2KImagePlugin
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin  # reads Exif
import rle

from shared.errors import Rejected
from shared.imaging import confine, wire
from shared.imaging.decode import decode_bytes, inspect_bytes
from shared.imaging.limits import MIB, Limits
from shared.imaging.read import quiet_pydicom
from shared.imaging.reasons import Reason, failed, hostile
from shared.imaging.recipe import Recipe
from shared.process import die_with_parent

EAGER_BYTES = 64 * MIB  #: files up to this size are mapped with MAP_POPULATE: cheaper than a fault per page
CODECS = (zlib, gdcm, openjpeg, PIL, rle)  # imported here: the confined process may not be allowed to


def main() -> None:
    limits, parent = Limits(**json.loads(sys.argv[1])), int(sys.argv[2])
    die_with_parent(parent)
    jobs = socket.socket(fileno=os.dup(0))
    replies = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    warnings.simplefilter("ignore")  # warnings may quote values
    quiet_pydicom()
    PIL.Image.preinit()
    confine.confine(limits, parent)
    serve(jobs, replies, limits)


def serve(jobs: socket.socket, replies: int, limits: Limits) -> None:
    """Answer jobs in order until the parent closes the socket or this child has had `limits.files` jobs."""
    base = confine.used_bytes()
    os.write(replies, wire.READY)
    for _ in range(limits.files):
        message, descriptors, _, _ = socket.recv_fds(jobs, 4096, 2)
        if not message:
            return
        confine.allow_cpu(limits.cpu_s)
        reply, spent = _answer(wire.unpack_job(message), descriptors, limits, base)
        os.write(replies, struct.pack("<I", len(reply)) + reply)
        for descriptor in descriptors:
            os.close(descriptor)
        if spent:  # memory ran out: the state of this process is no longer reliable
            return


def _answer(recipe: Recipe | None, descriptors: list[int], limits: Limits, base: int) -> tuple[bytes, bool]:
    try:
        return _work(recipe, descriptors, limits, base), False
    except Rejected as rejected:
        return wire.pack_rejected(rejected), rejected.reason == Reason.MEMORY
    except MemoryError:
        return wire.pack_rejected(hostile(Reason.MEMORY)), True
    except RecursionError:
        return wire.pack_rejected(hostile(Reason.DEPTH)), False
    except Exception:  # a file that no check anticipated
        return wire.pack_rejected(failed(Reason.MALFORMED)), False


def _work(recipe: Recipe | None, descriptors: list[int], limits: Limits, base: int) -> bytes:
    size = os.fstat(descriptors[0]).st_size
    if size == 0:
        raise failed(Reason.NOT_A_STUDY_OBJECT)
    idle = base + limits.working_bytes + 2 * size
    confine.allow_memory(idle)
    # no `with`: arrays reference the map, which is released with the last of them
    flags = mmap.MAP_PRIVATE | (mmap.MAP_POPULATE if size <= EAGER_BYTES else 0)
    view = memoryview(mmap.mmap(descriptors[0], size, prot=mmap.PROT_READ, flags=flags))
    if recipe is None:
        return wire.pack_inspected(inspect_bytes(view, limits))
    room = wire.room_for(recipe)
    decoded = decode_bytes(
        view, recipe, limits, reserve=lambda frame: confine.allow_memory(idle + 3 * frame + 3 * room)
    )
    with mmap.mmap(descriptors[1], room) as memory:
        return wire.pack_decoded(decoded, memory)


if __name__ == "__main__":
    main()
