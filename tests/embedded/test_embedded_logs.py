from services.embedded.logs import Log


def test_a_long_log_is_copied_and_cut_while_its_writer_goes_on(tmp_path):
    path = tmp_path / "api.log"
    log = Log(path, largest=100)
    with path.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 50)
        log.rotate()
        writer.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "api.log.1").read_bytes() == b"old\n" * 50


def test_a_short_log_is_left(tmp_path):
    path = tmp_path / "api.log"
    path.write_bytes(b"x")
    Log(path, largest=100).rotate()
    assert path.read_bytes() == b"x"
    assert not (tmp_path / "api.log.1").exists()


def test_a_warning_written_in_two_pieces_is_told_once_and_whole(tmp_path):
    path = tmp_path / "api.log"
    log = Log(path)
    path.write_bytes(b'{"event": "a", "level": "war')
    assert list(log.important()) == []
    with path.open("ab") as file:
        file.write(b'ning", "count": 2}\n')
    assert list(log.important()) == ["a count=2"]
    assert list(log.important()) == []


def test_what_stood_there_before_is_not_told_again(tmp_path):
    path = tmp_path / "api.log"
    path.write_bytes(b'{"event": "old", "level": "error"}\n')
    assert list(Log(path).important()) == []
