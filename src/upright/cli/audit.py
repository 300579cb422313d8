"""``upright audit``: a command for every installed kind, with the options of its config, and a look at files."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import typer
from typer.core import TyperGroup

from upright.contract import InputError
from upright.evidence.gate import check_syntax, example

__all__ = ["AuditGroup", "propose"]
_CLIP = re.compile(r".*(\.(mp4|m4v|mov|webm|mkv|gif|npy)|\d\.(png|jpe?g))", re.IGNORECASE | re.DOTALL)


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
            if re.search(r"[./]", cmd_name):
                raise InputError(f"no file {cmd_name}", "a kind of audit, or files", "check the path")
            return None

        def look(more: Sequence[str], encoding: str) -> None:
            words, unused = propose([cmd_name, *more], encoding)
            typer.echo(shlex.join(words))
            typer.echo(f"not used: {', '.join(unused)}\n" if unused else "", err=True, nl=False)

        rest, encoding = click.Argument(["more"], nargs=-1), click.Option(["--encoding"], default="utf-8")
        return click.Command(cmd_name, params=[rest, encoding], callback=look)


def _command(kind: str) -> click.Command:
    from upright.experiment.audit import file_fields
    from upright.experiment.config import describe
    from upright.experiment.registry import load_audit

    spec = load_audit(kind)
    rows = describe(spec.config)
    first = file_fields(spec.config)[0]
    several = next("tuple" in row["type"] for row in rows if row["name"] == first)
    params: list[click.Parameter] = [click.Argument([first], nargs=-1 if several else 1, required=True)]
    for row in (row for row in rows if row["name"] != first):
        option, shown = f"--{row['name'].replace('_', '-')}", row["doc"].replace("`", "")
        if row["type"] == "bool":
            params.append(click.Option([f"{option}/--no-{option[2:]}"], default=None, help=shown))
            continue
        default, needed = row["default"], "MISSING" in str(row["default"])
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default
        usual = "" if default is None or needed else f" [{default}]"
        words = row["type"].replace("'", "").replace(" | ", "|").removesuffix(" or none")
        kinds = {"a": "FILE", "int": "N", "float": "X", "str": "NAME"}  # the first word of what is accepted
        metavar = words if "|" in words else kinds.get(words.split()[0], "A,B,...")
        params.append(click.Option([option], required=needed, metavar=metavar, help=f"{shown}{usual}"))
    params += [
        click.Option(["--seed"], type=click.IntRange(min=0), default=0, help="Of everything that is drawn. [0]"),
        click.Option(["--out"], type=click.Path(path_type=Path), default=Path("audits"), help="Where the folder goes."),
        click.Option(["--margin"], multiple=True, help="Smallest change that matters: X, or METRIC=X."),
        click.Option(["--fail-if"], help=f"Exit with 1 when this holds, in SQL, e.g. '{example(kind)}'."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ]

    def run(seed: int, out: Path, margin: Sequence[str], fail_if: str | None, as_json: bool, **given: Any) -> None:
        from upright.cli.verbs import finish, read_margins

        if fail_if is not None:
            check_syntax(fail_if)
        from upright.api import audit

        settings = {name: value for name, value in given.items() if value is not None and name != first}
        files = given[first] if several else [given[first]]
        settings["command"] = shlex.join(["upright", *sys.argv[1:]])
        result = audit(kind, *files, out=out, seed=seed, margins=read_margins(margin), **settings)
        from upright.report import build_report

        finish(result.summary, result.folder, build_report(result.folder), as_json, fail_if)

    return click.Command(kind, params=params, callback=run, help=(spec.read.__doc__ or "").partition("\n")[0])


# -- a look at files ------------------------------------------------------------------------------------------------


def propose(files: Sequence[str], encoding: str = "utf-8") -> tuple[list[str], list[str]]:
    """Return the words of the command that fits some files, in capitals what a person has to name, and unused files.

    Raises
    ------
    InputError
        For files that no audit takes.
    """
    from upright.data.arrays import ARRAYS, file_and_name

    found: dict[str, list[str]] = {}
    headers: dict[str, list[str]] = {}
    for file in files:
        path = file_and_name(file)[0]
        if path.is_dir():
            clips = any(_CLIP.fullmatch(one.name) for one in path.rglob("*"))
            role = "model" if (path / "config.json").is_file() else "clips" if clips else ""
        elif path.suffix.lower() in ARRAYS:
            role = "vectors"
        else:
            role, headers[file] = _role(path, encoding)
        found.setdefault(role, []).append(file)

    def take(role: str, usual: str = "") -> list[str]:
        own = found.get(role, [])
        return [own.pop(0)] if own else [usual] * bool(usual)

    def option(name: str, role: str, usual: str = "") -> list[str]:
        own = take(role, usual)
        return [name, *own] if own else []

    header = headers.get(found["users"][0], []) if "users" in found else []
    column = ["COLUMN"] if len(header) > 2 and not {"group", "attribute"} & {*header} else []

    if "preferences" in found:
        words = ["alignment", *take("model", "MODEL"), *option("--pairs", "preferences")]
        words += option("--negatives", "records")
    elif "requests" in found:
        words = ["edit", *take("model", "MODEL"), *option("--base", "model", "BASE"), *option("--edits", "requests")]
    elif {"model", "records"} & found.keys():
        words = ["forgetting", *take("model", "MODEL"), *option("--forget", "records", "FORGET.jsonl")]
        words += option("--retain", "records", "RETAIN.jsonl")
    elif "clips" in found:
        words = ["video", *take("clips"), *option("--compare", "clips")]
    elif "vectors" in found:
        words = ["embeddings", *found.pop("vectors"), *option("--labels", "users", "LABELS.csv")]
        words += [*option("--ids", "ids"), *(["--attribute", *column] if column else [])]
    elif {"lists", "pairs"} & found.keys():
        words = ["ranking", *(take("lists") or take("pairs")), *option("--held-out", "pairs", "HELD_OUT.csv")]
        words += [*option("--users", "users"), *option("--items", "items"), *(["--group", *column] if column else [])]
    elif "cases" in found:
        file = found["cases"].pop(0)
        words = ["predictions", file, *_columns_of_cases(headers[file])]
    else:
        shown = "; ".join(f"{file}: {', '.join(headers.get(file, []))}" for file in files)
        todo = "name the kind and its columns: upright audit predictions FILE --group COLUMN --score COLUMN ..."
        accepted = "lists, vectors, decisions, or a folder of a model or of clips"
        raise InputError(f"nothing that tells what it is, {shown}", accepted, todo)
    words += ["--encoding", encoding] if encoding != "utf-8" else []
    return ["upright", "audit", *words], [file for own in found.values() for file in own]


def _role(path: Path, encoding: str) -> tuple[str, list[str]]:
    """Return what a table is for, and the names of its columns."""
    from upright.data.columns import known_names
    from upright.data.formats import open_columns

    header = open_columns(path, encoding).header
    names, folded = known_names(header), {own.lower() for own in header}
    if {"chosen", "rejected"} <= folded:
        return "preferences", header
    if {"prompt", "target"} <= folded or {"src", "alt"} <= folded:
        return "requests", header
    if folded & {"question", "messages", "instruction"} or {"prompt", "completion"} <= folded:
        return "records", header
    if _columns_of_cases(header)[2:] and "item" not in names:
        return "cases", header
    if "item" in names or sum(own.rpartition("_")[2].isdigit() for own in header) > 1:
        ordered = {"rank", "score"} & names or "item" not in names or "items" in names
        return "lists" if "user" in names and ordered else "pairs" if "user" in names else "items", header
    if "user" in names or len(header) == 1:
        return ("users" if len(header) > 1 else "ids"), header
    return "", header


def _columns_of_cases(header: Sequence[str]) -> list[str]:
    """Return options that name columns of decisions, those that are found."""

    def named(option: str, *words: str) -> list[str]:
        own = next((own for own in header if own.lower() in words), None)
        return [option, own] if own else []

    shares = [own for own in header if re.match(r"(p|prob|proba)_", own.lower())]
    decided = named("--prediction", "prediction", "predicted", "decision", "decided", "y_pred")
    decided = decided or (["--proba", ",".join(shares)] if len(shares) > 1 else [])
    decided = decided or named("--score", "score", "probability", "y_score")
    group = named("--group", "group", "sex", "gender", "race", "ethnicity", "region") or ["--group", "COLUMN"]
    return [*group, *decided, *(named("--label", "label", "truth", "y_true", "target", "outcome") if decided else [])]
