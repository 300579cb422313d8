"""The desk `upright forget`: verbs only. Exit status: 0 fine, 1 a guard failed, 2 bad input, 3 our fault."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from upright.contract import InputError

__all__ = ["forget_app"]

forget_app = typer.Typer(no_args_is_help=True, help="Make a language model forget records, and show what can be shown.")

Model = Annotated[Path, typer.Argument(help="Model folder as save_pretrained writes it; never written to.")]
Forget = Annotated[Path, typer.Argument(help="JSON lines: what must go.")]
Desk = Annotated[Path, typer.Option(help="Folder of ledger and requests.")]
Request = Annotated[str, typer.Argument(help="Id of a request.")]
Holdout = Annotated[Path | None, typer.Option(help="JSON lines that no model saw: for attacks and over-unlearning.")]
Reference = Annotated[Path | None, typer.Option(help="Model folder trained without the records: the level to aim at.")]
Earlier = Annotated[list[Path] | None, typer.Option(help="Records of earlier requests, measured again; repeatable.")]
Batch = Annotated[int, typer.Option(min=1, help="Records at once.")]
Seed = Annotated[int, typer.Option(min=0, help="Of sampling, noise and resampling.")]
Key = Annotated[Path | None, typer.Option(help="Key file: ledger lines are signed with it.")]
Rouge = Annotated[bool, typer.Option("--rouge/--no-rouge", help="Write answers out and compare them: slow.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DESK = Path("forget-desk")
# Written out: to ask for the names would load torch.
LOSS = "Bounded: npo, pdu, jensun; others: ce_u, ga, grad_diff, grad_diff_kl, satimp, simnpo, undial, wga."
Base = Annotated[Path | None, typer.Option(help="Model folder under an adapter: MODEL is then an adapter of peft.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda: every phase runs there.")]
Template = Annotated[str, typer.Option(help="How prompt and answer become one text: auto, raw, plain or chat.")]
Cluster = Annotated[str, typer.Option(help="Key of what records have in common: they are drawn together.")]
Similar = Annotated[bool, typer.Option("--allow-similar", help="Go on though two files hold nearly the same record.")]
Lora = Annotated[int, typer.Option(help="Rank of a new adapter that is trained and written alone; 0 trains all.")]
Accumulate = Annotated[int, typer.Option(help="Batches an update.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 while training.")]
Floor = Annotated[float, typer.Option(help="Share of the utility before that must be left.")]
Relearn = Annotated[int, typer.Option(help="Steps of the relearning attack that enters the verdict; 0: none.")]
KeepFailed = Annotated[bool, typer.Option("--keep-failed", help="Write the model though a guard failed.")]


@forget_app.callback()
def _options() -> None:
    """Make a language model forget records, and show what can be shown."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _print(value: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) if as_json else text)


@contextlib.contextmanager
def _options_named() -> Iterator[None]:
    """Name a setting that was refused as the option that it came from."""
    try:
        yield
    except InputError as error:
        found = re.fullmatch(r"(?:(?:Settings|Recipe)\.)?(\w+) = (.*)", error.got)
        if found is None:
            raise
        choice = " | " in error.accepted or ", " in error.accepted
        todo = "choose one of these" if choice else "pass a value inside that range"
        value = found[2].strip("'\"")
        raise InputError(f"--{found[1].replace('_', '-')} {value}", error.accepted, todo) from None


def _of(given: Mapping[str, Any], names: str | Iterable[str]) -> dict[str, Any]:
    """Return the options of these names."""
    return {name: given[name] for name in (names.split() if isinstance(names, str) else names)}


@forget_app.command()
def score(
    model: Model,
    forget: Forget,
    desk: Desk = DESK,
    probes: Annotated[int | None, typer.Option(min=1, help="Draws of noise; else until the ranking settles.")] = None,
    batch_size: Batch = 8,
    base: Base = None,
    device: Device = "auto",
    cluster: Cluster = "author",
    seed: Seed = 0,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Score how hard each record is to forget."""
    from upright.language import desk as verbs
    from upright.language.pages import score_page

    rest = _of(locals(), "desk batch_size seed key base device cluster")
    found = verbs.score(model, forget, probes=probes or "auto", **rest)
    _print(found, as_json, score_page(found))


@forget_app.command()
def unlearn(
    model: Model,
    forget: Forget,
    retain: Annotated[Path, typer.Argument(help="JSON lines: what must stay.")],
    out: Annotated[Path, typer.Option(help="New folder for the new model.")],
    desk: Desk = DESK,
    loss: Annotated[str, typer.Option(help=LOSS)] = "npo",
    sampling: Annotated[str, typer.Option(help="uniform or difficulty.")] = "uniform",
    learning_rate: Annotated[
        str, typer.Option(help="Of AdamW; auto tries three on a quarter of the records.")
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="Most passes; a record at its level is left alone.")] = 40,
    batch_size: Batch = 8,
    accumulate: Accumulate = 1,
    bf16: Bf16 = False,
    lora: Lora = 0,
    template: Template = "auto",
    cluster: Cluster = "author",
    allow_similar: Similar = False,
    base: Base = None,
    device: Device = "auto",
    reference: Reference = None,
    holdout: Holdout = None,
    earlier: Earlier = None,
    utility_floor: Floor = 0.9,
    relearn_steps: Relearn = 10,
    keep_failed: KeepFailed = False,
    require_forgotten: Annotated[
        bool, typer.Option("--require-forgotten", help="Exit with 1 unless the verdict is forgotten.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, say what it takes, change nothing.")] = False,
    rouge: Rouge = True,
    seed: Seed = 0,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Unlearn records into a new model folder, guarded, and write the receipt."""
    given = {**locals(), "learning_rate": _rate(learning_rate), "earlier": earlier or []}
    from upright.language import desk as verbs
    from upright.language.intake import refuse_loss
    from upright.language.pages import dry_page, is_forgotten, unlearn_page

    with _options_named():
        refuse_loss(loss)
        settings = verbs.Settings(**_of(given, verbs.Settings.__dataclass_fields__))
    rest = _of(given, "out desk reference holdout earlier base device keep_failed dry_run key")
    found = verbs.unlearn(model, forget, retain, settings=settings, **rest)
    _print(found, as_json, dry_page(found) if dry_run else unlearn_page(found))
    if found.get("status") == "failed":
        raise typer.Exit(1)
    if require_forgotten and not dry_run and not is_forgotten(found["forgotten"]):
        typer.echo(f"not forgotten, as --require-forgotten asks; the model is written and kept: {out.name}", err=True)
        raise typer.Exit(1)


def _rate(text: str) -> float | str:
    """Return a learning rate as a number where it is one; Settings refuses other words than auto."""
    try:
        return float(text)
    except ValueError:
        return text


@forget_app.command()
def retrain(
    base: Annotated[Path, typer.Argument(help="Model folder before the stage; never written to.")],
    retain: Annotated[Path, typer.Argument(help="JSON lines that the stage is trained on: without the records.")],
    model: Annotated[Path, typer.Option(help="Model folder after the stage with the records, or its adapter.")],
    forget: Annotated[Path, typer.Option(help="JSON lines: what must go.")],
    out: Annotated[Path, typer.Option(help="New folder for the new model.")],
    desk: Desk = DESK,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, the highest.")] = 2e-5,
    epochs: Annotated[int, typer.Option(help="Passes over the records.")] = 3,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant_with_warmup.")] = "linear",
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    scope: Annotated[str, typer.Option(help="answer or sequence: which tokens are learnt.")] = "answer",
    batch_size: Batch = 8,
    accumulate: Accumulate = 1,
    bf16: Bf16 = False,
    lora: Lora = 0,
    template: Template = "auto",
    cluster: Cluster = "author",
    allow_similar: Similar = False,
    device: Device = "auto",
    holdout: Holdout = None,
    utility_floor: Floor = 0.9,
    relearn_steps: Relearn = 10,
    keep_failed: KeepFailed = False,
    rouge: Rouge = True,
    seed: Seed = 0,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Do the fine-tuning stage again without the records; the same command goes on after a kill."""
    given = locals()
    from upright.language import desk as verbs
    from upright.language.pages import unlearn_page

    with _options_named():
        recipe = verbs.Recipe(**_of(given, verbs.Recipe.__dataclass_fields__))
    rest = _of(given, "out desk holdout device keep_failed key")
    found = verbs.retrain(base, retain, model_dir=model, forget_file=forget, recipe=recipe, **rest)
    _print(found, as_json, unlearn_page({**found, "reevaluated": None}))
    if found["status"] == "failed":
        raise typer.Exit(1)


@forget_app.command("eval")
def eval_(
    model: Model,
    forget: Forget,
    retain: Annotated[Path | None, typer.Option(help="JSON lines: what must stay.")] = None,
    holdout: Holdout = None,
    reference: Reference = None,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("forget-eval.json"),
    earlier: Earlier = None,
    desk: Desk = DESK,
    rouge: Rouge = True,
    batch_size: Batch = 8,
    template: Template = "auto",
    cluster: Cluster = "author",
    allow_similar: Similar = False,
    base: Base = None,
    device: Device = "auto",
    seed: Seed = 0,
    robust: Annotated[
        bool, typer.Option("--robustness", help="Attack copies too: 4-bit rounding, paraphrase, relearning.")
    ] = False,
    before: Annotated[
        Path | None, typer.Option(help="Model folder before unlearning, for the share that an attack brings back.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Measure a model on records, against a reference where there is one; with --earlier also earlier requests."""
    given = locals()
    shared = _of(given, "batch_size base device cluster")
    rest = _of(given, "holdout reference out rouge template allow_similar seed robust before desk")
    from upright.language import desk as verbs
    from upright.language.pages import eval_page

    found = verbs.evaluate(model, forget, retain, other=[*(earlier or []), key], **rest, **shared)
    again = verbs.reevaluate(desk, model, earlier, key=key, **shared) if earlier else None
    _print({**found, "reevaluated": again}, as_json, eval_page(found, again, out))


@forget_app.command()
def receipt(request: Request, desk: Desk = DESK, key: Key = None, as_json: Json = False) -> None:
    """Write and show the receipt of a request: aggregates only."""
    from upright.language import receipts as verbs
    from upright.language.pages import page

    found = verbs.receipt(desk, request, key=key)
    _print(found, as_json, page(found))


@forget_app.command()
def purge(request: Request, desk: Desk = DESK, key: Key = None, as_json: Json = False) -> None:
    """Destroy salt, scores and caches of a request; the ledger's lines stay."""
    from upright.language import receipts as verbs
    from upright.language.pages import purge_page

    found = verbs.purge(desk, request, key=key)
    _print(found, as_json, purge_page(found))


@forget_app.command("list")
def list_(desk: Desk = DESK, as_json: Json = False) -> None:
    """List the requests of a desk and how they ended."""
    from upright.language import receipts as verbs
    from upright.language.pages import list_page

    rows = verbs.listing(desk)
    _print(rows, as_json, list_page(rows))


@forget_app.command()
def verify(
    desk: Desk = DESK,
    head: Annotated[str | None, typer.Option(help="Hash of a line, kept elsewhere.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="receipt.json or .txt: must say what its line says.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder: must be what a line, or --receipt, wrote.")] = None,
    key: Key = None,
    mend: Annotated[bool, typer.Option("--mend", help="Take a torn end out, and note it.")] = False,
    as_json: Json = False,
) -> None:
    """Check every line of the ledger, a receipt, a model folder; exit status 1 when one does not hold."""
    from upright.language import receipts as verbs
    from upright.language.pages import verify_page

    found = verbs.verify(desk, head=head, receipt_file=receipt, model=model, key=key, mend=mend)
    _print(found, as_json, verify_page(found))
    if not found["intact"]:
        raise typer.Exit(1)
