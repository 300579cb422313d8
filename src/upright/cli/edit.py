"""The desk `upright edit`: verbs only. Exit status: 0 fine, 1 an edit or a check failed, 2 bad input, 3 our fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upright.cli.options import say, settings_of, sharing, stay_offline
from upright.contract import InputError
from upright.editing import pages
from upright.lazy import LazyModule

if TYPE_CHECKING:
    from upright.editing import desk
else:
    desk = LazyModule("upright.editing.desk")

__all__ = ["edit_app"]

edit_app = typer.Typer(no_args_is_help=True, help="Correct facts of a model, each by a file that can be undone.")

Model = Annotated[Path, typer.Argument(help="Model folder as save_pretrained writes it; never written to.")]
Edit = Annotated[str, typer.Argument(help="Id of an edit.")]
#: options of several verbs: type, default, help, and the word where it is not the name
_sharing = sharing({
    "place": (Path, Path("edit-desk"), "Folder of ledger and edits.", "--desk"),
    "editor": (str, "lora", "lora, dense or gated: low rank, a whole change, low rank behind a gate."),
    "rank": (int, 8, "Of lora and gated."),
    "steps": (int, 80, "Most steps; an edit ends earlier where it is learnt."),
    "learning_rate": (float, 1e-2, "Of Adam."),
    "tv": (float, 0.1, "Weight of the invariance penalty."),
    "reliability": (float, 1.0, "Budget: share of the request itself; below it, rejected."),
    "generality": (float, 0.7, "Budget: share of held-out wordings and views; below half of it, rejected."),
    "locality": (float, 0.7, "Budget: share of unrelated answers that stay; likewise."),
    "retention": (float, 1.0, "Budget: share of earlier edits that still hold; likewise."),
    "device": (str, "auto", "auto, cpu or cuda."),
    "seed": (int, 0, "Of weights, wordings and views."),
    "key": (Path | None, None, "Key file: ledger lines are signed with it."),
    "as_json": (bool, False, "Print JSON.", "--json"),
})  # fmt: skip
SETTINGS = "editor rank steps learning_rate tv reliability generality locality retention seed "
WITH_MODEL = "place device key as_json "


def _opened(model: Path, given: Mapping[str, Any]) -> desk.Opened:
    return desk.Opened(given["place"], model, device=given["device"], key=given["key"])


@edit_app.callback()
def _options() -> None:
    """Correct facts of a model, each by a file that can be undone."""
    stay_offline()


@edit_app.command()
@_sharing(SETTINGS + WITH_MODEL)
def apply(
    model: Model,
    requests: Annotated[Path, typer.Argument(help="JSON lines: prompt, target, image where it is about one, ...")],
    replaces: Annotated[bool, typer.Option("--replace", help="Let an edit take the place of another target.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Train and write nothing; say what would be.")] = False,
    **given: Any,
) -> None:
    """Make an edit of each request, measure it on held-out prompts, put it in force unless it is rejected."""
    settings = settings_of(desk.Settings, given)
    found = desk.apply(_opened(model, given), requests, settings=settings, replaces=replaces, dry_run=dry_run)
    say(found, given["as_json"], pages.dry_page(found) if dry_run else pages.apply_page(found))
    if any(one["verdict"] == "rejected" for one in found["edits"]):
        raise typer.Exit(1)


@edit_app.command("list")
@_sharing("place as_json")
def list_(**given: Any) -> None:
    """List the edits of a desk and which are in force."""
    rows = desk.listing(given["place"])
    say(rows, given["as_json"], pages.list_page(rows))


@edit_app.command()
@_sharing("place as_json")
def show(edit: Edit, **given: Any) -> None:
    """Show an edit: texts, verdict, numbers."""
    found = desk.show(given["place"], edit)
    say(found, given["as_json"], pages.show_page(found))


@edit_app.command()
@_sharing(WITH_MODEL)
def diff(
    model: Model,
    edit: Annotated[str | None, typer.Option(help="Id: this edit beside those in force; else all in force.")] = None,
    probes: Annotated[Path | None, typer.Option(help="JSON lines with prompt and image; else what was edited.")] = None,
    **given: Any,
) -> None:
    """Write answers out before and after."""
    found = desk.diff(_opened(model, given), edit, probes=probes)
    say(found, given["as_json"], pages.diff_page(found))


@edit_app.command()
@_sharing("place key as_json")
def revert(edit: Edit, **given: Any) -> None:
    """Take an edit out of force; the model folder was never written to."""
    found = desk.revert(given["place"], edit, key=given["key"])
    later = [f"  made with it applied, look at them again: {one}" for one in found["later"]]
    said = f"Edit {edit}: reverted in line {found['line']}; {found['in_force']} in force"
    say(found, given["as_json"], "\n".join([*later, said]))


@edit_app.command()
@_sharing(WITH_MODEL)
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="New folder.")],
    edit: Annotated[str | None, typer.Argument(help="Id of an edit.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All edits in force together.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="A copy of the model; else an adapter of peft.")] = False,
    **given: Any,
) -> None:
    """Write edits as an adapter of peft or as a copy of the model with them."""
    if every == bool(edit):
        got = "export with --all and an edit" if every else "export without an edit"
        raise InputError(got, "one of the two", "name an edit, or pass --all")
    found = desk.export(_opened(model, given), out, edit, merged=merged)
    what = "a copy of the model" if merged else "an adapter of peft"
    say(found, given["as_json"], f"{out.name}: {what}, {len(found['edits'])} edits, ledger line {found['line']}")


@edit_app.command()
@_sharing("place key as_json")
def verify(
    head: Annotated[str | None, typer.Option(help="Hash of a line, kept elsewhere.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder: must be what the edits were made for.")] = None,
    mend: Annotated[bool, typer.Option("--mend", help="Take a torn end out, and note it.")] = False,
    **given: Any,
) -> None:
    """Check ledger, edit files and model folder; exit status 1 when one does not hold."""
    found = desk.verify(given["place"], head=head, model=model, key=given["key"], mend=mend)
    say(found, given["as_json"], pages.verify_page(found))
    if not found["intact"]:
        raise typer.Exit(1)
