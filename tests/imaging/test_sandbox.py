import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import damage
import numpy as np
import pytest
from blake3 import blake3
from pictures import EXPLICIT, breast, dataset, file_of

from shared import mounts
from shared.errors import Gate, Outcome, Rejected, Unavailable
from shared.imaging import sandbox as sandbox_module
from shared.imaging import sources, wire
from shared.imaging.answers import Inspected
from shared.imaging.limits import Limits
from shared.imaging.reasons import Reason
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.imaging.sources import readable
from shared.types import Decoded, Header

GOOD = damage.BUNDLED / "CT_small.dcm"
RECIPE = Recipe()
HUGE = 1 << 50


@pytest.fixture
def slow():
    """A file that takes a child seconds if the limit on elements is lifted."""
    return damage.crowded_file(1_000_000)


def when_busy(box, act):
    """Call `act(pid)` shortly after the child has received its first job."""
    pid = box._process.pid

    def run():
        time.sleep(0.4)
        act(pid)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_nothing_is_started_before_it_is_needed():
    with Sandbox() as box:
        assert box.starts == 0


def test_the_parent_loads_no_codec():
    code = (
        "import sys, shared.imaging.sandbox, shared.imaging.gates\n"
        "print([m for m in ('gdcm', 'openjpeg', 'PIL', 'pydicom') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_a_path_and_its_bytes_decode_alike(sandbox):
    by_path, by_bytes = sandbox.decode(GOOD, RECIPE), sandbox.decode(GOOD.read_bytes(), RECIPE)
    assert by_path.header == by_bytes.header
    assert np.array_equal(by_path.pixels, by_bytes.pixels)
    assert by_path.pixels.dtype == np.float32
    assert by_path.pixels.shape == (1, 224, 224)
    assert by_path.thumbnail.dtype == np.uint8


def test_decoding_is_deterministic_across_children(boxes):
    first, second = boxes().decode(GOOD, RECIPE), boxes().decode(GOOD, RECIPE)
    assert np.array_equal(first.pixels, second.pixels)
    assert first.stats == second.stats
    assert np.array_equal(first.thumbnail, second.thumbnail)


def test_a_bad_file_in_a_batch_costs_only_itself_and_order_is_kept(sandbox):
    sources = [GOOD, b"nonsense" * 10, GOOD, damage.rle_bomb(), GOOD]
    answers = list(sandbox.decode_many(sources, RECIPE))
    assert [isinstance(answer, Decoded) for answer in answers] == [True, False, True, False, True]


def test_a_batch_larger_than_the_window_is_answered_whole(sandbox):
    answers = list(sandbox.decode_many([GOOD] * 70, RECIPE))
    assert all(isinstance(answer, Decoded) for answer in answers)
    assert len(answers) == 70


def test_an_answer_that_was_handed_out_is_not_kept(sandbox):
    answers = sandbox.decode_many([GOOD] * 3, RECIPE)
    first = weakref.ref(next(answers).pixels)
    next(answers)
    assert first() is None


def test_what_was_asked_of_a_child_that_cannot_start_is_not_done_before_the_next_callers(boxes, monkeypatch):
    box = boxes(files=1)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        with pytest.raises(Unavailable):
            list(box.decode_many([GOOD] * 40, RECIPE))
    before = box.starts
    assert isinstance(box.decode(GOOD, RECIPE), Decoded)
    assert box.starts - before == 1  # one job per file would have started a child after each one


def test_a_caller_that_leaves_takes_along_what_the_child_has_not_been_given(boxes):
    box = boxes(files=1)
    answers = box.decode_many([GOOD] * 40, RECIPE)
    next(answers)
    answers.close()
    before = box.starts
    assert isinstance(box.decode(GOOD, RECIPE), Decoded)
    assert box.starts - before < 20


def test_a_fork_starts_a_child_of_its_own():
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from shared.imaging.sandbox import Sandbox
        box, path = Sandbox(), Path(sys.argv[1])
        box.inspect(path)
        if (fork := os.fork()) == 0:
            signal.alarm(20)
            box.inspect(path)
            box.close()
            os._exit(0)
        assert os.waitpid(fork, 0)[1] == 0
        box.inspect(path)
        assert box.starts == 1
    """
    subprocess.run([sys.executable, "-c", code, str(GOOD)], check=True)


def test_a_fork_amid_files_does_not_take_the_answers_of_its_parent():
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from shared.errors import Unavailable
        from shared.imaging.sandbox import Sandbox
        from shared.imaging.recipe import Recipe
        box, paths = Sandbox(), [Path(path) for path in sys.argv[1:]] * 10
        digests = [found.digest for found in box.inspect_many(paths)]
        decoded = box.decode_many(paths, Recipe())
        seen = [next(decoded)]
        if (fork := os.fork()) == 0:
            signal.alarm(20)
            try:
                next(decoded)
                os._exit(1)
            except Unavailable:
                pass
            assert [found.digest for found in box.inspect_many(paths)] == digests
            box.close()
            os._exit(0)
        seen += decoded
        assert os.waitpid(fork, 0)[1] == 0
        assert [one.header.sop_instance_uid for one in seen] == [one.header.sop_instance_uid for one in seen[:2]] * 10
        assert (box.starts, box.deaths) == (1, 0)
    """
    subprocess.run([sys.executable, "-c", code, str(GOOD), str(damage.BUNDLED / "MR_small.dcm")], check=True)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, Reason.CRASH),
        (signal.SIGABRT, Reason.CRASH),
        (signal.SIGBUS, Reason.CRASH),
        (signal.SIGXCPU, Reason.CPU),
    ],
)
def test_a_child_that_dies_costs_only_the_file_it_was_on(boxes, slow, number, reason):
    box = boxes(elements=HUGE, header_bytes=HUGE)
    box.decode(GOOD, RECIPE)
    thread = when_busy(box, lambda pid: os.kill(pid, number))
    hostile, *others = box.decode_many([slow, GOOD, GOOD], RECIPE)
    thread.join()
    assert (hostile.outcome, hostile.gate, hostile.reason) == (Outcome.QUARANTINED, Gate.LIMITS, reason)
    assert all(isinstance(other, Decoded) for other in others)
    assert (box.deaths, box.starts) == (1, 2)


def test_a_file_that_is_cut_while_it_is_read_is_read_again(boxes, tmp_path):
    """Pages mapped by the child are gone: SIGBUS, as from a failing share."""
    path, box, good = tmp_path / "long.dcm", boxes(), GOOD.read_bytes()
    path.write_bytes(good)
    for _ in range(20):
        os.truncate(path, 400 << 20)
        cut = threading.Timer(0.03, os.truncate, (path, len(good)))
        cut.start()
        box.inspect(path)
        cut.join()
        if box.starts > 1:
            break
    assert (box.starts, box.deaths) == (2, 0)


def test_a_file_on_which_children_die_again_and_again_is_hostile_if_all_of_it_can_be_read(boxes, tmp_path):
    path, box = tmp_path / "slow.dcm", boxes(elements=HUGE, header_bytes=HUGE)
    path.write_bytes(damage.crowded_file(1_000_000))
    box.decode(GOOD, RECIPE)
    over = threading.Event()

    def die():
        while not over.wait(0.1):
            process = box._process
            if process is not None and box._ready:  # a child killed during its start has not begun the file
                os.kill(process.pid, signal.SIGBUS)

    thread = threading.Thread(target=die)
    thread.start()
    (found,) = box.inspect_many([path])
    over.set()
    thread.join()
    assert found.reason == Reason.CRASH, "every byte can be read: it is the file"


def test_a_file_whose_share_stalls_is_read_again(boxes):
    """The child waits in a page fault and uses no processor time, like a stopped process."""
    box = boxes(wall_s=1.0)
    box.decode(GOOD, RECIPE)
    os.kill(box._process.pid, signal.SIGSTOP)
    stalled, good = box.inspect_many([GOOD, GOOD])
    assert (stalled.outcome, stalled.reason) == (Outcome.FAILED, Reason.STALLED)
    assert isinstance(good, Inspected)


def test_after_a_few_files_of_a_share_stalled_its_others_are_not_tried(boxes, tmp_path, monkeypatch):
    """Each would cost the time limit. Files of other shares are read."""
    monkeypatch.setattr(sandbox_module, "mount_of", lambda path: path.parent)
    box = boxes(elements=HUGE, header_bytes=HUGE, wall_s=1.0)
    dead = [tmp_path / f"{n}.dcm" for n in range(30)]
    for path in dead:
        path.write_bytes(damage.crowded_file(1_000_000))
    box.decode(GOOD, RECIPE)
    stopped, over = [], threading.Event()

    def stall():
        while not over.wait(0.01):
            process, first = box._process, next(iter(box._waiting), None)
            if process is not None and box._ready and first is not None and first.source in dead:
                os.kill(process.pid, signal.SIGSTOP)
                stopped.append(first.source)

    thread = threading.Thread(target=stall)
    thread.start()
    answers = box.inspect_many([dead[0], GOOD, *dead[1:], GOOD])
    over.set()
    thread.join()
    assert [isinstance(answer, Rejected) and answer.reason for answer in answers] == [
        Reason.STALLED,
        False,
        *[Reason.STALLED] * 29,
        False,
    ]
    assert set(stopped) == set(dead[:2])
    assert not box._waiting


def test_what_waits_behind_a_stalled_file_may_be_dropped(boxes):
    box = boxes(wall_s=1.0)
    box.decode(GOOD, RECIPE)
    os.kill(box._process.pid, signal.SIGSTOP)
    answers = box.decode_many([GOOD] * 5, RECIPE)
    assert next(answers).reason == Reason.STALLED
    answers.close()
    assert not box._waiting
    assert isinstance(box.decode(GOOD, RECIPE), Decoded)
    assert box.starts == 2


def test_a_file_that_is_not_even_opened_in_time_is_read_again(boxes, tmp_path, monkeypatch):
    """Opening a pipe waits for its writer, as opening a file waits for a share that does not answer."""
    for module in (sources, sandbox_module):
        monkeypatch.setattr(module, "mount_of", lambda path: path.parent)
    pipe, beside, really, opened, box = tmp_path / "pipe", tmp_path / "beside.dcm", os.open, [], boxes(wall_s=1.0)
    os.mkfifo(pipe)
    beside.write_bytes(GOOD.read_bytes())
    box.decode(GOOD, RECIPE)

    def stalls(path, flags, *mode):
        opened.append(path)
        return really(path, flags & ~os.O_NONBLOCK if path == pipe else flags, *mode)

    monkeypatch.setattr(os, "open", stalls)
    stalled, other, good = box.inspect_many([pipe, beside, GOOD])
    assert (stalled.outcome, stalled.reason) == (Outcome.FAILED, Reason.STALLED)
    assert other.reason == Reason.STALLED
    assert isinstance(good, Inspected)
    assert beside not in opened
    assert box.deaths == 0
    before = set(os.listdir("/proc/self/fd"))
    os.close(really(pipe, os.O_WRONLY))  # the share is back
    while mounts._stalled:
        time.sleep(0.01)
    box.inspect(beside)
    assert len(os.listdir("/proc/self/fd")) <= len(before), "what came too late is closed"


def test_nothing_but_the_decoder_can_stall_on_bytes_in_memory(boxes):
    box = boxes(wall_s=1.0)
    box.decode(GOOD, RECIPE)
    os.kill(box._process.pid, signal.SIGSTOP)
    with pytest.raises(Rejected, match="time-limit"):
        box.decode(GOOD.read_bytes(), RECIPE)


def test_a_file_that_is_computed_on_up_to_the_time_limit_is_hostile(boxes, tmp_path):
    path, box = tmp_path / "slow.dcm", boxes(elements=HUGE, header_bytes=HUGE, wall_s=1.0)
    path.write_bytes(damage.crowded_file(3_000_000))
    box.decode(GOOD, RECIPE)
    with pytest.raises(Rejected, match="time-limit"):
        box.inspect(path)


def test_what_can_no_longer_be_read_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("", "pipe", "endless", "gone"):
        assert not readable(tmp_path / name, Limits())
    assert readable(GOOD, Limits())
    assert readable(GOOD.read_bytes(), Limits())


def test_any_number_of_files_may_be_open_beside_it(boxes):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 1200), before[1]))
    held = []
    try:
        while not held or held[-1] < 1024:
            held.append(os.dup(0))
        boxes().inspect(GOOD)
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_child_killed_from_outside_is_no_fault_of_the_file(boxes, slow):
    box = boxes(elements=HUGE, header_bytes=HUGE)
    box.decode(GOOD, RECIPE)
    thread = when_busy(box, lambda pid: os.kill(pid, signal.SIGKILL))
    answers = list(box.decode_many([slow, GOOD], RECIPE))
    thread.join()
    assert all(isinstance(answer, Decoded) for answer in answers)
    assert box.deaths == 0


def test_an_idle_child_that_was_killed_is_replaced(boxes):
    box = boxes()
    box.decode(GOOD, RECIPE)
    os.kill(box._process.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert isinstance(box.decode(GOOD, RECIPE), Decoded)
    assert (box.starts, box.deaths) == (2, 0)


def test_a_child_is_replaced_after_its_share_of_files(boxes):
    box = boxes(files=10)
    answers = list(box.decode_many([GOOD] * 35, RECIPE))
    assert all(isinstance(answer, Decoded) for answer in answers)
    assert (box.starts, box.deaths) == (4, 0)


def test_a_closed_sandbox_may_be_used_again(boxes):
    box = boxes()
    box.decode(GOOD, RECIPE)
    box.close()
    assert isinstance(box.decode(GOOD, RECIPE), Decoded)


def test_a_sandbox_that_was_closed_within_a_batch_may_be_used_again(boxes):
    box = boxes()
    answers = box.decode_many([GOOD] * 3, RECIPE)
    next(answers)
    box.close()
    assert isinstance(box.decode(GOOD, RECIPE), Decoded)
    answers.close()
    assert isinstance(box.decode(GOOD, RECIPE), Decoded)


def test_the_child_ends_when_its_parent_is_killed():
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from shared.imaging.sandbox import Sandbox\n"
        "from shared.imaging.recipe import Recipe\n"
        "box = Sandbox()\n"
        "box.decode(Path(sys.argv[1]), Recipe())\n"
        "print(box._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(GOOD)], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_outlives_the_thread_that_first_needed_it(boxes):
    box = boxes()
    thread = threading.Thread(target=lambda: box.decode(GOOD, RECIPE))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert alive(box._process.pid)
    assert box.starts == 1


def test_the_child_has_given_up_what_it_does_not_need(boxes):
    box = boxes()
    box.decode(GOOD, RECIPE)
    try:
        with open(f"/proc/{box._process.pid}/limits", encoding="ascii") as table:
            limits = {line[:26].strip(): line[26:].split()[:2] for line in table}
        with open(f"/proc/{box._process.pid}/status", encoding="ascii") as table:
            status = dict(line.split(":", 1) for line in table)
        environment = Path(f"/proc/{box._process.pid}/environ").read_bytes()
    except PermissionError:
        pytest.skip("only root may look at a process that cannot be dumped")
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max open files"] == ["64", "64"]
    assert int(limits["Max address space"][1]) <= Limits().address_bytes
    assert status["NoNewPrivs"].strip() == "1"
    assert b"SIMILIS" not in environment
    if os.getuid() == 0:
        assert os.readlink(f"/proc/{box._process.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def test_several_threads_may_share_a_sandbox(boxes):
    box, answers = boxes(), []
    threads = [threading.Thread(target=lambda: answers.append(box.decode(GOOD, RECIPE))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert box.starts == 1


def test_links_pipes_folders_and_missing_files_are_refused_without_waiting(sandbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")  # by a short name: an address has 107 letters at most
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(GOOD)
    closed = tmp_path / ("x" * 300)  # even lstat fails, as in a folder that may be listed but not entered
    paths = [*(tmp_path / name for name in ("pipe", "link", "socket", "", "none")), closed, GOOD]
    *refused, good = sandbox.inspect_many(paths)
    regular, unreadable = Reason.NOT_REGULAR.value, Reason.UNREADABLE.value
    assert [answer.reason for answer in refused] == [regular] * 4 + [unreadable] * 2
    assert good.kind == "dicom"


def test_an_empty_file_is_no_study_object(sandbox, tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(Rejected, match="not-a-study-object"):
        sandbox.decode(tmp_path / "empty", RECIPE)
    with pytest.raises(Rejected, match="not-a-study-object"):
        sandbox.decode(b"", RECIPE)


def test_an_inspection_gives_the_digest_and_no_patient_is_shown(sandbox):

    found = sandbox.inspect(GOOD)
    assert found.digest == blake3(GOOD.read_bytes()).digest()
    assert found.header.patient_id == "1CT1"
    assert "1CT1" not in repr(found)


def test_no_patient_attribute_is_in_a_rejection(sandbox):
    values = breast(64, 64)
    data = file_of(dataset(values, PatientID="CANARY-0815", PatientName="CANARY^NAME", Rows=65), values, EXPLICIT)
    with pytest.raises(Rejected) as caught:
        sandbox.decode(data, RECIPE)
    assert "CANARY" not in repr(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__)


SAID = wire.pack_inspected(
    Inspected(
        header=Header(sop_instance_uid="1.1", study_instance_uid="1.2", series_instance_uid="1.3"),
        digest=bytes(32),
        kind="dicom",
    )
)


def test_an_answer_is_read_as_it_was_written():
    assert wire.pack_inspected(wire.unpack(SAID, None, None)) == SAID


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"{}",
        b"[]",
        b'{"rejected": ["encoded", "blank", null]}',
        b'{"rejected": ["failed", "our secret", null]}',
        b'{"inspected": ["no header", "' + b"00" * 32 + b'", "dicom"]}',
        SAID.replace(b'"rows"', b'"lines"'),
        SAID.replace(b'"rows": 0', b'"rows": -1'),
        SAID.replace(b"00" * 32, b"00"),
        SAID.replace(b"dicom", b"exe"),
        b"[" * 100_000,
    ],
)
def test_a_garbled_answer_is_recognised(reply):
    with pytest.raises(wire.Garbled):
        wire.unpack(reply, None, None)
