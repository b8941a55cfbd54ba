"""A site's admission rules: which images come in, which wait for a person, and which do not.

The rules stand in a small TOML file. The first rule whose conditions all hold decides; if none holds, the image is
accepted.

    [[rule]]
    name = "no raw detector data"
    when = { modality = ["MG", "DX"], presentation_intent = "FOR PROCESSING" }
    then = "discard"

    [[rule]]
    name = "the test scanner waits"
    when = { source = "dicom", sender = "TEST*" }
    then = "quarantine"
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shared.disk import toml
from shared.errors import Invalid
from shared.types import Header


class Action(StrEnum):
    ACCEPT = "accept"
    QUARANTINE = "quarantine"  #: kept, but not searchable until a person has released it
    DISCARD = "discard"  #: nothing is kept, and the sender gets success
    REFUSE = "refuse"  #: nothing is kept, and the sender gets a refusal


#: fields that a condition may name: of the header, and of the file's origin
HEADER = ("modality", "sop_class_uid", "transfer_syntax_uid", "body_part", "manufacturer", "presentation_intent",
          "photometric", "laterality", "view")  # fmt: skip
ORIGIN = ("source", "sender", "called")
SOURCES = ("folder", "dicom", "stow", "backfill", "store")  #: the values of `Origin.source`


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions are patterns (`*`, `?`, `[...]`), compared in upper case; of several for one field, one must match."""

    name: str
    when: Mapping[str, tuple[str, ...]]
    then: Action

    def holds(self, facts: Mapping[str, str]) -> bool:
        return all(any(fnmatchcase(facts[name], p) for p in patterns) for name, patterns in self.when.items())


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules, in order."""

    rules: tuple[Rule, ...] = ()

    def decide(self, header: Header, *, source: str, sender: str = "", called: str = "") -> tuple[Action, str]:
        """Return what to do with an image, and the name of the rule that decided, "" if none did."""
        if not self.rules:
            return Action.ACCEPT, ""
        facts = {name: str(getattr(header, name) or "").upper() for name in HEADER}
        facts |= {"source": source.upper(), "sender": sender.upper(), "called": called.upper()}
        found = next((rule for rule in self.rules if rule.holds(facts)), None)
        return (found.then, found.name) if found else (Action.ACCEPT, "")


def read(path: Path | None) -> Admission:
    """Return the rules of a file; without a file, all images are accepted. Raises: `Invalid`, naming the wrong rule."""
    if path is None:
        return Admission()
    found = toml(path, "the file of admission rules")
    if set(found) - {"rule"} or not isinstance(found.get("rule", []), list):
        raise Invalid("the file of admission rules must contain [[rule]] tables and nothing else")
    rules = tuple(_rule(number, told) for number, told in enumerate(found.get("rule", []), 1))
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Invalid(f"two admission rules have the name {twice[0]!r}")
    return Admission(rules)


def _rule(number: int, told: Any) -> Rule:  # noqa: ANN401 - any TOML value
    name = told.get("name") if isinstance(told, dict) else None
    if not isinstance(name, str) or not name:
        raise Invalid(f"admission rule {number} has no name")
    if odd := sorted(set(told) - {"name", "when", "then"}):
        raise Invalid(f"admission rule {name!r}: unknown key {odd[0]!r}; the keys are name, when and then")
    try:
        then = Action(told.get("then"))
    except ValueError:
        raise Invalid(f"admission rule {name!r}: `then` must be one of {', '.join(Action)}") from None
    when = told.get("when", {})
    if not isinstance(when, dict) or (odd := sorted(set(when) - {*HEADER, *ORIGIN})):
        known = ", ".join(sorted((*HEADER, *ORIGIN)))
        raise Invalid(f"admission rule {name!r}: the keys of `when` must be among {known}")
    return Rule(name, {key: _patterns(name, key, value) for key, value in when.items()}, then)


def _patterns(name: str, key: str, value: Any) -> tuple[str, ...]:  # noqa: ANN401
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(one, str) for one in values):
        raise Invalid(f"admission rule {name!r}: {key} must be a string or a list of strings")
    patterns = tuple(one.upper() for one in values)
    # a rule with a misspelt source would never hold
    if key == "source" and not all(any(fnmatchcase(one.upper(), p) for one in SOURCES) for p in patterns):
        raise Invalid(f"admission rule {name!r}: source must match one of {', '.join(SOURCES)}")
    return patterns
