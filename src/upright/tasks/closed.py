"""The test part of a task, which no method sees: the runner opens it after every arm is trained."""

from __future__ import annotations

from upright.contract import InputError

__all__ = ["Closed"]


class Closed:
    """A task whose test part is out of reach until it is opened."""

    _open = False

    def open_test(self) -> None:
        """Let `score` see the test part; the runner calls it after every arm is trained."""
        self._open = True

    def refuse_closed(
        self,
        split: str,
        part: str = "split",
        accepted: str = "'valid'",
        todo: str = "select on validation; the runner scores",
    ) -> None:
        """Raise `InputError` where the test is asked for before it is open."""
        if split == "test" and not self._open:
            raise InputError(f"the test {part} inside a method", accepted, todo)
