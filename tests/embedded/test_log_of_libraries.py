import json
import logging

from shared import log


def test_a_library_may_log_and_its_arguments_are_dropped(capsys):
    root = logging.getLogger()
    before, level = root.handlers, root.level
    try:
        log.configure("test")
        logging.getLogger("some.library").info("Read %s", "a patient's name")
    finally:
        root.handlers, root.level = before, level
    err = capsys.readouterr().err
    assert json.loads(err)["event"] == "Read %s"
    assert "patient" not in err
