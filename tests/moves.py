"""A trigger in the test database that refuses every change of an image's status that `MOVES` lacks."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.types import MOVES

_ALLOWED = ", ".join(f"('{old}', '{new}')" for old, moves in MOVES.items() for new in sorted(moves))

GUARD = f"""
    CREATE FUNCTION refuse_move() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'an image cannot go from % to %', OLD.status, NEW.status;
    END $$;
    CREATE TRIGGER moves BEFORE UPDATE OF status ON image FOR EACH ROW
    WHEN (OLD.status <> NEW.status AND (OLD.status, NEW.status) NOT IN ({_ALLOWED})
          AND current_setting('tests.by_hand', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION refuse_move()
"""


def by_hand(db: Session) -> None:
    """Allow any change of status in this transaction, to set up damage or a shortcut."""
    db.execute(sa.text("SET LOCAL tests.by_hand = 'on'"))
