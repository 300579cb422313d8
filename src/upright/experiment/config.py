"""From words to a typed config: unknown keys are errors with a suggestion, strings become typed values."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import inspect
import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from upright.contract import Config, InputError, MethodSpec, accepted, reading

__all__ = ["describe", "parse_assignments", "resolve", "suggest", "to_config"]

C = TypeVar("C", bound=Config)


def suggest(name: str, known: Sequence[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest known name, or the whole list."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "take one of: " + ", ".join(known)


def to_config(cls: type[C], settings: Mapping[str, Any]) -> C:
    """Make a config from plain values; text is read as the field's type (``"0.1"`` for a float).

    Raises
    ------
    InputError
        For an unknown key (with the closest known one) or a value outside its range.
    """
    hints = get_type_hints(cls, include_extras=True)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"unknown key {key!r} for {cls.__name__}", ", ".join(known), suggest(key, known))
        found = next(filter(None, (reading(one, hints[key]) for one in _readings(value, str(hints[key])))), ())
        if not found:
            raise InputError(
                f"{cls.__name__}.{key} = {value!r}", accepted(hints[key]), f"set {key} to a value of that kind"
            )
        values[key] = found[0]
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]  # type: ignore[arg-type]
    if lacking := [name for name in needed if name not in values]:
        raise InputError(f"{cls.__name__} without {', '.join(lacking)}", ", ".join(known), f"give {lacking[0]}")
    return cls(**values)


def _readings(value: Any, hint: str) -> Iterator[Any]:
    """Yield what a value may mean: itself, what its text says, a tuple for a list, parts of ``a,b,c``."""
    told = [value, _loads(value)] if isinstance(value, str) else [value]
    for one in reversed(told) if told[-1] is None else told:  # none is no text where a field may be empty
        yield tuple(one) if isinstance(one, list) and "tuple" in hint else one
    if isinstance(value, list | tuple) and "tuple" not in hint and all(isinstance(one, str) for one in value):
        yield ",".join(value)  # what a command line writes a,b,c
    if isinstance(value, str) and "tuple" in hint:  # a,b,c on a command line
        yield tuple(_loads(part.strip()) for part in value.split(",") if part.strip())


def _loads(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    try:
        return float(text) if text.lower().lstrip("+-") in ("inf", "infinity") else json.loads(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def resolve(
    spec: MethodSpec, passed: Mapping[str, Any], preset: str = "full", data: str | None = None
) -> tuple[Config, Config]:
    """Return the method's and the task's config from a preset and the settings that were passed.

    A key belongs to the method or to the task; ``task.key`` says which.

    Raises
    ------
    InputError
        For an unknown preset, key or value.
    """
    if preset not in spec.presets:
        raise InputError(f"preset {preset!r}", ", ".join(spec.presets), suggest(preset, list(spec.presets)))
    module, _, name = spec.task.partition(":")
    task_type = getattr(importlib.import_module(module), name).Config
    own, other = set(spec.config.__dataclass_fields__), set(task_type.__dataclass_fields__)  # type: ignore[attr-defined]
    method_settings = dict(spec.presets[preset].get("method", {}))
    task_settings = dict(spec.presets[preset].get("task", {})) | ({"data": data} if data else {})
    for key, value in passed.items():
        name = key.removeprefix("task.")
        if key in own:
            method_settings[key] = value
        elif name in other:
            task_settings[name] = value
        else:
            known = sorted(own | other if name == key else other)
            raise InputError(f"unknown key {key!r}", ", ".join(known), suggest(name, known))
    return to_config(spec.config, method_settings), to_config(task_type, task_settings)


def parse_assignments(pairs: Sequence[str]) -> dict[str, str]:
    """Split ``key=value`` words.

    Raises
    ------
    InputError
        For a word without ``=`` or a key given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise InputError(f"--set {pair}", "--set key=value", "write the key, an equals sign and the value")
        if key in found:
            raise InputError(f"--set {key} given twice", "each key once", f"keep one of {key}={found[key]}, {pair}")
        found[key] = value
    return found


def describe(cls: type[Config]) -> list[dict[str, Any]]:
    """Return name, type in words, default and docstring of each field, inherited ones among them."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if owner is not Config and issubclass(owner, Config):
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
            for pair in itertools.pairwise(ast.iter_child_nodes(tree.body[0])):
                match pair:  # a field, and its docstring below it
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                        docs[name] = " ".join(str(text).split())
    hints = get_type_hints(cls, include_extras=True)
    return [
        {"name": f.name, "type": accepted(hints[f.name]), "default": f.default, "doc": docs.get(f.name, "")}
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
    ]
