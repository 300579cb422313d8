"""What is done about a page: one file that says, for its rights and the use that is asked for, what a tenant may have.

    version = 1
    jurisdiction = "US"        # whose law gives dates a meaning
    cap = 25                   # most words in a row of a protected work that an answer may hold
    unread = "refuse"          # a part that cannot be read: "refuse", or "pass" it on, recorded as unread
    unknown_key = "strict"     # a key that no tenant has: "strict", or "refuse"
    audit = "behind"           # an answer leaves once its line of the record is queued: "behind"; on disk: "before"
    full = "wait"              # a record whose queue is full: "wait" for it, or "refuse"; one for all tenants

    [rights.protected]         # a row; what is not said stays as in the table below
    quote = "allow"

    [tenants.reading-room]     # a tenant; what is not said is as above
    key = "9f86d0..."          # SHA-256 of its key, 64 hex digits
    cap = 60
    [tenants.reading-room.rights.protected]
    copy = "allow"             # reading aloud, private study: a switch, not code

===============  ==========  ==========  =====================================
rights           copy,       quote       summary, question, metadata, analysis,
                 translate,              other
                 paraphrase
===============  ==========  ==========  =====================================
public domain    allow       allow       allow
open licence     attribute   attribute   allow
protected        transform   attribute   allow
noticed          transform   attribute   allow
unknown          allow       allow       allow
own              allow       allow       allow
===============  ==========  ==========  =====================================

*noticed*: in no registry, and the page itself claims rights. *own*: the registry gives the work to this tenant.
*transform*: the model is asked for a summary in place of what was asked. *attribute*: allowed, and whoever shows the
answer is to name the work; the answer is not changed. *strict* is, cell by cell, the strictest of this table, the
file's and the tenants', with ``refuse`` for ``transform``. Whatever is let through, the cap bounds what an answer may
hold in a row of a work whose row says ``transform`` or ``refuse`` for a copy.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from upright.contract import InputError
from upright.guard.intent import Use

__all__ = ["Action", "Policy", "Row", "read_policy"]

Action = Literal["allow", "attribute", "transform", "refuse"]
Row = Literal["public domain", "open licence", "protected", "noticed", "unknown", "own"]

SEVERE: tuple[Action, ...] = ("allow", "attribute", "transform", "refuse")
_COPYING = ("copy", "translate", "paraphrase")
_MEANT: Mapping[Row, tuple[Action, Action]] = {
    "public domain": ("allow", "allow"),
    "open licence": ("attribute", "attribute"),
    "protected": ("transform", "attribute"),
    "noticed": ("transform", "attribute"),
    "unknown": ("allow", "allow"),
    "own": ("allow", "allow"),
}
_CHOICES = {
    "unread": ("refuse", "pass"),
    "unknown_key": ("strict", "refuse"),
    "audit": ("behind", "before"),
    "full": ("wait", "refuse"),
}
_WHOLE = ("unknown_key", "full")  # what a tenant cannot have for itself
_CAP = 100_000


def _table() -> dict[tuple[Row, Use], Action]:
    return {
        (row, use): copying if use in _COPYING else quote if use == "quote" else "allow"
        for row, (copying, quote) in _MEANT.items()
        for use in get_args(Use)
    }


@dataclass(frozen=True)
class Policy:
    """What one tenant may have; the head of this file says what each value means.

    Parameters
    ----------
    tenant : str
        Its name; "" for everybody without one.
    table : mapping of (row, use) to action
    cap : int
        1 to 100,000.
    tenants : mapping of str to Policy
        By the SHA-256 of their keys; of the whole file alone.
    """

    tenant: str = ""
    jurisdiction: str = "US"
    cap: int = 25
    unread: str = "refuse"
    unknown_key: str = "strict"
    audit: str = "behind"
    full: str = "wait"
    table: Mapping[tuple[Row, Use], Action] = field(default_factory=_table)
    tenants: Mapping[str, Policy] = field(default_factory=dict)

    def action(self, row: Row, use: Use) -> Action:
        """Return what is done about a use of a page with these rights."""
        return self.table[row, use]

    def for_key(self, key: str) -> Policy | None:
        """Return the policy of a client's key: its tenant's, the strictest one, or None where unknown keys are refused.

        Without tenants in the file, everybody has the policy of the file.
        """
        if not self.tenants:
            return self
        found = self.tenants.get(hashlib.sha256(key.encode()).hexdigest())
        if found is None and self.unknown_key == "strict":
            known = (_table(), self.table, *(one.table for one in self.tenants.values()))
            table = {cell: max((one[cell] for one in known), key=SEVERE.index) for cell in self.table}
            table = {cell: "refuse" if action == "transform" else action for cell, action in table.items()}
            cap = min(one.cap for one in (self, *self.tenants.values()))
            audit = "before" if any(one.audit == "before" for one in (self, *self.tenants.values())) else "behind"
            return replace(self, table=table, cap=cap, unread="refuse", audit=audit, tenants={})
        return found


def read_policy(path: Path | None = None) -> Policy:
    """Read a policy file; without one, the policy that stands at the head of this file.

    Raises
    ------
    InputError
        For a file that is no TOML, an unknown key (with the one that was meant, where it is close), a value out of
        range, a tenant without a key, and two tenants with one.
    """
    if path is None:
        return Policy()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        got = f"the policy {path.name} ({error.strerror})"
        raise InputError(got, "a file that can be read", "check the path") from None
    except ValueError as error:
        raise InputError(f"the policy {path.name}, which is no TOML: {error}", "a TOML file", "correct it") from None
    if data.pop("version", None) != 1:
        raise InputError(f"the policy {path.name} of another version", "version = 1", "write it in its first line")
    given = data.pop("tenants", {})
    whole = _read(Policy(), data, path.name)
    found: dict[str, Policy] = {}
    for name, own in _mapping(given, f"{path.name}: tenants").items():
        where = f"{path.name}: tenants.{name}"
        own = dict(_mapping(own, where))
        if whole_alone := [key for key in _WHOLE if key in own]:
            todo = "write it at the head of the file"
            raise InputError(f"{where}: {whole_alone[0]}, which is for all tenants", "a tenant's own keys", todo)
        key = own.pop("key", None)
        if not isinstance(key, str) or len(key) != 64 or set(key.lower()) - set("0123456789abcdef"):
            todo = "write the output of: printf %s KEY | sha256sum"
            raise InputError(f"{where} without the hash of its key", "key = SHA-256, 64 hex digits", todo)
        if key.lower() in found:
            raise InputError(f"{where} with the key of {found[key.lower()].tenant}", "a key each", "give one a new key")
        found[key.lower()] = replace(_read(whole, own, where), tenant=name)
    return replace(whole, tenants=found)


def _read(base: Policy, data: Mapping[str, Any], where: str) -> Policy:
    """Return a policy with what one table of the file says."""
    known = [one.name for one in fields(Policy) if one.name not in ("tenant", "table", "tenants")]
    more: dict[str, Any] = {}
    for key, value in data.items():
        if key == "rights":
            more["table"] = _rights(base.table, value, where)
        elif key not in known:
            raise _unknown(f"{where}: {key}", key, [*known, "rights", "tenants", "version"])
        elif key in _CHOICES and value not in _CHOICES[key]:
            accepted = " or ".join(_CHOICES[key])
            raise InputError(f"{where}: {key} = {value!r}", accepted, "choose one of them")
        elif key == "cap" and (type(value) is not int or not 1 <= value <= _CAP):
            todo = "to let no word through, refuse the use"
            raise InputError(f"{where}: cap = {value!r}", f"1 to {_CAP} words", todo)
        elif key == "jurisdiction" and not isinstance(value, str):
            raise InputError(f"{where}: jurisdiction = {value!r}", "the code of a country", "write it as a text")
        else:
            more[key] = value
    return replace(base, **more)


def _rights(table: Mapping[tuple[Row, Use], Action], data: Any, where: str) -> Mapping[tuple[Row, Use], Action]:
    found, rows, uses = dict(table), get_args(Row), get_args(Use)
    for row, cells in _mapping(data, f"{where}: rights").items():
        if row not in rows:
            raise _unknown(f"{where}: rights.{row}", row, rows)
        for use, action in _mapping(cells, f"{where}: rights.{row}").items():
            if use not in uses:
                raise _unknown(f"{where}: rights.{row}.{use}", use, uses)
            if action not in get_args(Action):
                accepted = ", ".join(get_args(Action))
                raise InputError(f"{where}: rights.{row}.{use} = {action!r}", accepted, "choose one of them")
            found[row, use] = action  # type: ignore[index]
    return found


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}, which is no table", "a table of TOML", "write it in square brackets")
    return value


def _unknown(got: str, key: str, known: Iterable[str]) -> InputError:
    names = list(known)
    near = get_close_matches(key, names, 1)
    return InputError(f"{got}, which is no key", ", ".join(names), f"write {near[0]}" if near else "leave it out")
