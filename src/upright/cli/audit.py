"""``upright audit``: a command for every installed kind, with the options of its config, and a look at files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import typer
from typer.core import TyperGroup

from upright.contract import InputError
from upright.evidence.gate import check_syntax, example

__all__ = ["AuditGroup", "propose"]


class AuditGroup(TyperGroup):
    """Kinds of audit, loaded when one is asked for; in place of a kind, files for which a command is proposed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the installed kinds."""
        from upright.experiment.registry import find

        return list(find("audits"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a kind, or the one that looks at files."""
        if cmd_name in self.list_commands(ctx):
            return _command(cmd_name)
        if not Path(cmd_name.partition("::")[0]).exists():
            return None
        rest = click.Argument(["more"], nargs=-1)
        return click.Command(
            cmd_name, params=[rest], callback=lambda more: typer.echo(shlex.join(propose([cmd_name, *more])))
        )


def _command(kind: str) -> click.Command:
    from upright.experiment.audit import file_fields
    from upright.experiment.config import describe
    from upright.experiment.registry import load_audit

    spec = load_audit(kind)
    rows = describe(spec.config)
    first = file_fields(spec.config)[0]
    several = next("tuple" in row["type"] for row in rows if row["name"] == first)
    params: list[click.Parameter] = [click.Argument([first], nargs=-1 if several else 1, required=True)]
    for row in rows:
        if row["name"] == first:
            continue
        option, shown = f"--{row['name'].replace('_', '-')}", row["doc"].replace("`", "")
        if row["type"] == "bool":
            params.append(click.Option([f"{option}/--no-{option[2:]}"], default=None, help=shown))
            continue
        usual = "" if row["default"] is None or "MISSING" in str(row["default"]) else f" [{_plain(row['default'])}]"
        needed = "MISSING" in str(row["default"])
        words = row["type"].replace("'", "").replace(" | ", "|").removesuffix(" or none")
        metavar = words if "|" in words else words.split()[0].upper()
        params.append(click.Option([option], required=needed, metavar=metavar, help=f"{shown}{usual}"))
    params += [
        click.Option(["--seed"], type=click.IntRange(min=0), default=0, help="Of everything that is drawn. [0]"),
        click.Option(["--out"], type=click.Path(path_type=Path), default=Path("audits"), help="Where the folder goes."),
        click.Option(["--margin"], multiple=True, help="Smallest change that matters: X, or METRIC=X."),
        click.Option(["--fail-if"], help=f"Exit with 1 when this holds, in SQL, e.g. '{example(kind)}'."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ]
    doc = (spec.read.__doc__ or "").partition("\n")[0]

    def run(seed: int, out: Path, margin: Sequence[str], fail_if: str | None, as_json: bool, **given: Any) -> None:
        from upright.cli.verbs import finish, read_margins

        if fail_if is not None:
            check_syntax(fail_if)
        margins = read_margins(margin)
        from upright.api import audit

        settings = {name: value for name, value in given.items() if value is not None and name != first}
        files = given[first] if several else [given[first]]
        command = shlex.join(["upright", *sys.argv[1:]])
        result = audit(kind, *files, out=out, seed=seed, margins=margins, command=command, **settings)
        from upright.report import build_report

        finish(result.summary, result.folder, build_report(result.folder), as_json, fail_if)

    return click.Command(kind, params=params, callback=run, help=doc)


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


# -- a look at files ------------------------------------------------------------------------------------------------


def propose(files: Sequence[str]) -> list[str]:
    """Return the words of the command that fits some files, in capitals what a person has to name.

    Raises
    ------
    InputError
        For files that no audit takes.
    """
    from upright.data.arrays import ARRAYS, file_and_name
    from upright.data.columns import ALIASES, open_columns

    tables: dict[str, set[str]] = {}
    arrays, models = list[str](), list[str]()
    for file in files:
        path = file_and_name(file)[0]
        if path.is_dir():
            models.append(file)
        elif path.suffix.lower() in ARRAYS:
            arrays.append(file)
        else:
            header = [name.lower().replace("_", "") for name in open_columns(path).header]
            known = {
                n for n, words in ALIASES.items() if any(h in (w, f"{w}id", f"{w}s") for h in header for w in words)
            }
            tables[file] = {*known, *header}
    if models:
        return ["upright", "audit", "forgetting", models[0], *_records(list(tables))]
    if arrays:
        return ["upright", "audit", "embeddings", *arrays, "--labels", *(list(tables) or ["LABELS.csv"])[:1]]
    lists = [file for file, own in tables.items() if "item" in own and own & {"rank", "score", "user"}]
    if lists:
        lists.sort(key=lambda file: not tables[file] & {"rank", "score"})
        return ["upright", "audit", "ranking", lists[0], *_beside(lists[1:], tables)]
    asked = next(iter(tables), None)
    if asked is not None and {"question", "prompt", "messages", "instruction"} & tables[asked]:
        return ["upright", "audit", "forgetting", "MODEL", *_records(list(tables))]
    if asked is not None:
        words = ["upright", "audit", "predictions", asked, "--group", "COLUMN", "--prediction"]
        return [
            *words,
            next((own for own in ("prediction", "predicted", "decision") if own in tables[asked]), "COLUMN"),
        ]
    raise InputError("no file", "tables, vectors or the folder of a model", "name your files")


def _records(files: list[str]) -> list[str]:
    forget, retain = [*files, "FORGET.jsonl", "RETAIN.jsonl"][:2] if len(files) != 1 else (files[0], "RETAIN.jsonl")
    return ["--forget", forget, "--retain", retain]


def _beside(held_out: Sequence[str], tables: Mapping[str, set[str]]) -> list[str]:
    words = ["--held-out", *(held_out or ["HELD_OUT.csv"])[:1]]
    for file, own in tables.items():
        if "item" not in own and "user" in own:
            words += ["--users", file]
        elif "item" in own and "count" in own and "user" not in own:
            words += ["--items", file]
    return words
