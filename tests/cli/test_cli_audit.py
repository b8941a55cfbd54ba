"""The audit on the command line."""


def entry(number, action, **more):
    one = {"id": number, "at": "2026-11-20T10:00:00Z", "actor": "Anna", "key": 2, "action": action}
    return one | {"item": None, "details": {}} | more


def test_the_audit_is_listed_with_who_and_what(home, server, similis):
    released = entry(2, "release", item="image-17", details={"gate": "features", "reason": None})
    server.on("GET /v1/audit", {"entries": [released, entry(1, "erase", details={"of": "study"})], "next": None})
    rows = [line.split() for line in similis("audit", "list", "--home", home).out.splitlines()]
    assert rows[0] == ["at", "by", "action", "item", "details"]
    assert rows[1][1:] == ["Anna", "release", "image-17", "gate", "features"]
    assert rows[2][1:] == ["Anna", "erase", "of", "study"]


def test_one_action_may_be_asked_for_and_a_limit_is_said(home, server, similis):
    server.on("GET /v1/audit", {"entries": [entry(2, "erase")], "next": "c"})
    ran = similis("audit", "list", "--action", "erase", "--limit", 1, "--home", home)
    assert "action=erase" in server.asked[0].path
    assert "--limit" in ran.err
