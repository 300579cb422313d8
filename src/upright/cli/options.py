"""Options that the command line does not declare itself, of methods and of desks; errors in three parts."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
import typer
from typer.core import TyperCommand

from upright.contract import InputError, MethodSpec

__all__ = ["RunCommand", "explain", "read_settings", "say", "settings_of", "settings_text", "sharing", "stay_offline"]

#: option -> setting of a task that reads a person's file
COLUMNS = {name: f"{name}_column" for name in ("user", "item", "value", "time")}


def read_settings(spec: MethodSpec, ctx: click.Context) -> dict[str, str]:
    """Read ``--lam 0.1 --user COLUMN``: settings of a method or its task as options.

    Raises
    ------
    InputError
        For a word that is no option, an option without a value or given twice.
    """
    from upright.experiment.registry import load_object

    found: dict[str, str] = {}
    configs: tuple[Any, ...] = (spec.config, load_object(spec.task).Config)
    known = {f"--{name.replace('_', '-')}" for config in configs for name in config.__dataclass_fields__}
    known |= {f"--{name}" for name, own in COLUMNS.items() if f"--{own.replace('_', '-')}" in known}
    left = list(ctx.args)
    while left:
        option, equals, value = left.pop(0).partition("=")
        if not option.startswith("--"):
            got = f"{option!r} beside the method {spec.name!r}"
            raise InputError(got, "options", f"write --data {option}, if it is your data")
        if option.replace("_", "-") not in known and not option.startswith("--task."):
            names = sorted(known | {name for param in ctx.command.params for name in param.opts})
            near = difflib.get_close_matches(option, names, n=1)
            todo = f"did you mean {near[0]}?" if near else f"see upright run {spec.name} --help"
            raise InputError(f"no option {option}", ", ".join(names), todo)
        if not equals:
            if not left or left[0].startswith("--"):
                raise InputError(f"{option} without a value", "--setting VALUE", f"upright run {spec.name} --help")
            value = left.pop(0)
        key = option[2:].replace("-", "_")
        key = COLUMNS.get(key, key)
        if key in found:
            raise InputError(f"{option} given twice", "each setting once", "keep one of them")
        found[key] = value
    return found


def settings_text(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the settings of a method and its task, as ``upright show`` and the help of ``run`` list them."""
    lines: list[str] = []
    for owner, rows in tables.items():
        lines += ["", f"settings of the {owner} (--set key=value, or --key value)"]
        for row in rows:  # a name that the method has too is the method's, unless it says task.
            both = owner == "task" and any(row["name"] == own["name"] for own in tables["method"])
            lines += [f"  {'task.' * both}{row['name']} = {row['default']!r}   [{row['type']}]", f"      {row['doc']}"]
    return "\n".join(lines[1:])


class RunCommand(TyperCommand):
    """``upright run``, whose help lists the settings of the method that is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words: help is asked for before the name is read."""
        ctx.meta["upright.words"] = list(args)
        return super().parse_args(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, with the settings of the method."""
        from upright.experiment.config import describe
        from upright.experiment.registry import find, load_method, load_object

        text, known = super().get_help(ctx), find()
        name = next((word for word in ctx.meta.get("upright.words", ()) if word in known), None)
        if name is None:
            return f"{text}\n\nMethods: {', '.join(known)}. An example: upright run {next(iter(known))} --seeds 6"
        spec = load_method(name)
        tables = {"method": describe(spec.config), "task": describe(load_object(spec.task).Config)}
        return f"{text}\n\n{settings_text(tables)}"


def explain(error: click.ClickException | InputError) -> int:
    """Print what was refused in three parts, settings as options, with the nearest name, and return the exit status."""
    if isinstance(error, InputError):
        named = re.sub(r"^\w+Config\.(\w+)(?= = )", lambda found: f"--{found[1].replace('_', '-')}", str(error))
        typer.echo(f"error: {named}", err=True)
        return 2
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    ctx, said = getattr(error, "ctx", None), error.format_message()
    names: list[str] = []
    if ctx and isinstance(error, click.NoSuchOption):
        names = [name for param in ctx.command.params for name in param.opts if name.startswith("--")]
    elif ctx and isinstance(ctx.command, click.Group):
        names = ctx.command.list_commands(ctx)
    near = difflib.get_close_matches(re.sub(r"^[^']*'([^']*)'.*$", r"\1", said), names, n=1)
    path = ctx.command_path if ctx else "upright"
    todo = f"did you mean {near[0]}?" if near else f"see {path} --help"
    got = re.sub(r"[. (]*Did you mean.*$", "", said).rstrip(".")
    typer.echo(f"error: {InputError(got, ', '.join(names) or 'what the help lists', todo)}", err=True)
    return 2


# -- verbs of a desk ------------------------------------------------------------------------------------------------


def sharing(
    shared: Mapping[str, Sequence[Any]],
) -> Callable[[str], Callable[[Callable[..., None]], Callable[..., None]]]:
    """Return a decorator that adds options of a table, by name, to a verb, which gets them as keywords.

    A row has type, default and help, and the words where they are not the name.
    """

    def of(names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        def add(verb: Callable[..., None]) -> Callable[..., None]:
            own = inspect.signature(verb, eval_str=True)
            params = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
            for name in (name for name in shared if name in names.split()):
                kind, default, told, *word = shared[name]
                least = {"batch_size": 1, "seed": 0}.get(name)
                option = typer.Option(default, *word, help=told, min=least)
                params.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind))
            verb.__signature__ = own.replace(parameters=params)  # type: ignore[attr-defined]
            return verb

        return add

    return of


def stay_offline() -> None:
    """Let transformers ask no network, and print nothing but errors."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def say(value: Any, as_json: bool, text: str) -> None:
    """Print a value as JSON, or a text."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) if as_json else text)


def settings_of(kind: Any, given: dict[str, Any]) -> Any:
    """Take the options that are settings out of what was given."""
    with _options_named():
        return kind(**{name: given.pop(name) for name in kind.__dataclass_fields__})


@contextlib.contextmanager
def _options_named() -> Iterator[None]:
    """Name a setting that was refused as the option that it came from."""
    try:
        yield
    except InputError as error:
        found = re.fullmatch(r"(?:\w+\.)?(\w+) = (.*)", error.got)
        if found is None:
            raise
        choice = " | " in error.accepted or ", " in error.accepted
        todo = "choose one of these" if choice else "pass a value inside that range"
        value = found[2].strip("'\"")
        raise InputError(f"--{found[1].replace('_', '-')} {value}", error.accepted, todo) from None
