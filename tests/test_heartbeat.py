import threading

from shared import heartbeat


def test_work_that_gets_on_shows_it_and_no_other() -> None:
    shown: list[str] = []
    heartbeat.beat()
    with heartbeat.shown_by(lambda: shown.append("outer")):
        with heartbeat.shown_by(lambda: shown.append("inner")):
            heartbeat.beat()
        heartbeat.beat()
    heartbeat.beat()
    assert shown == ["inner", "outer"]


def test_a_thread_beside_the_work_shows_nothing() -> None:
    """One renews the leases, and would go on while the work hangs."""
    shown: list[int] = []
    with heartbeat.shown_by(lambda: shown.append(1)):
        beside = threading.Thread(target=heartbeat.beat)
        beside.start()
        beside.join()
    assert shown == []
