"""The desk `upright forget`: verbs only. Exit status: 0 fine, 1 a guard failed, 2 bad input, 3 our fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upright.cli.options import say, settings_of, sharing, stay_offline
from upright.language import pages
from upright.lazy import LazyModule

if TYPE_CHECKING:
    from upright.language import desk, receipts
else:
    desk = LazyModule("upright.language.desk")
    receipts = LazyModule("upright.language.receipts")

__all__ = ["forget_app"]

forget_app = typer.Typer(no_args_is_help=True, help="Make a language model forget records, and show what can be shown.")

Model = Annotated[Path, typer.Argument(help="Model folder as save_pretrained writes it; never written to.")]
Forget = Annotated[Path, typer.Argument(help="JSON lines: what must go.")]
Request = Annotated[str, typer.Argument(help="Id of a request.")]
Out = Annotated[Path, typer.Option(help="New folder for the new model.")]
# Written out: to ask for the names would load torch.
LOSS = "Bounded: npo, pdu, jensun; others: ce_u, ga, grad_diff, grad_diff_kl, satimp, simnpo, undial, wga."
ADAPTER = "Model folder under an adapter: MODEL is then an adapter of peft."
BUDGET = "Steps of the relearning attack that enters the verdict; 0: none."
#: options of several verbs: type, default, help, and the word where it is not the name
SHARED: dict[str, tuple[Any, ...]] = {
    "desk": (Path, Path("forget-desk"), "Folder of ledger and requests."),
    "batch_size": (int, 8, "Records at once."),
    "accumulate": (int, 1, "Batches an update."),
    "bf16": (bool, False, "Compute in bfloat16 while training.", "--bf16"),
    "lora": (int, 0, "Rank of a new adapter that is trained and written alone; 0 trains all."),
    "template": (str, "auto", "How prompt and answer become one text: auto, raw, plain or chat."),
    "cluster": (str, "author", "Key of what records have in common: they are drawn together."),
    "allow_similar": (bool, False, "Go on though two files hold nearly the same record.", "--allow-similar"),
    "base": (Path | None, None, ADAPTER),
    "device": (str, "auto", "auto, cpu or cuda: every phase runs there."),
    "holdout": (Path | None, None, "JSON lines that no model saw: for attacks and over-unlearning."),
    "reference": (Path | None, None, "Model folder trained without the records: the level to aim at."),
    "earlier": (list[Path], [], "Records of earlier requests, measured again; repeatable."),
    "utility_floor": (float, 0.9, "Share of the utility before that must be left."),
    "relearn_steps": (int, 10, BUDGET),
    "keep_failed": (bool, False, "Write the model though a guard failed.", "--keep-failed"),
    "rouge": (bool, True, "Write answers out and compare them: slow.", "--rouge/--no-rouge"),
    "seed": (int, 0, "Of sampling, noise and resampling."),
    "key": (Path | None, None, "Key file: ledger lines are signed with it."),
    "as_json": (bool, False, "Print JSON.", "--json"),
}
READING = "desk batch_size base device cluster seed key as_json "
TRAINING = "template allow_similar holdout accumulate bf16 lora utility_floor relearn_steps keep_failed rouge "
_sharing = sharing(SHARED)


@forget_app.callback()
def _options() -> None:
    """Make a language model forget records, and show what can be shown."""
    stay_offline()


@forget_app.command()
@_sharing(READING)
def score(
    model: Model,
    forget: Forget,
    probes: Annotated[int | None, typer.Option(min=1, help="Draws of noise; else until the ranking settles.")] = None,
    **given: Any,
) -> None:
    """Score how hard each record is to forget."""
    as_json = given.pop("as_json")
    found = desk.score(model, forget, probes=probes or "auto", **given)
    say(found, as_json, pages.score_page(found))


@forget_app.command()
@_sharing(f"{READING}{TRAINING}reference earlier")
def unlearn(
    model: Model,
    forget: Forget,
    retain: Annotated[Path, typer.Argument(help="JSON lines: what must stay.")],
    out: Out,
    loss: Annotated[str, typer.Option(help=LOSS)] = "npo",
    sampling: Annotated[str, typer.Option(help="uniform or difficulty.")] = "uniform",
    learning_rate: Annotated[
        str, typer.Option(help="Of AdamW; auto tries three on a quarter of the records.")
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="Most passes; a record at its level is left alone.")] = 40,
    require_forgotten: Annotated[
        bool, typer.Option("--require-forgotten", help="Exit with 1 unless the verdict is forgotten.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, say what it takes, change nothing.")] = False,
    **given: Any,
) -> None:
    """Unlearn records into a new model folder, guarded, and write the receipt."""
    given |= {"loss": loss, "sampling": sampling, "learning_rate": _rate(learning_rate), "epochs": epochs}
    as_json, settings = given.pop("as_json"), settings_of(desk.Settings, given)
    found = desk.unlearn(model, forget, retain, out=out, settings=settings, dry_run=dry_run, **given)
    say(found, as_json, pages.dry_page(found) if dry_run else pages.unlearn_page(found))
    if found.get("status") == "failed":
        raise typer.Exit(1)
    if require_forgotten and not dry_run and not pages.is_forgotten(found["forgotten"]):
        typer.echo(f"not forgotten, as --require-forgotten asks; the model is written and kept: {out.name}", err=True)
        raise typer.Exit(1)


def _rate(text: str) -> float | str:
    """Return a learning rate as a number where it is one; Settings refuses other words than auto."""
    try:
        return float(text)
    except ValueError:
        return text


@forget_app.command()
@_sharing(READING.replace("base ", "") + TRAINING)
def retrain(
    base: Annotated[Path, typer.Argument(help="Model folder before the stage; never written to.")],
    retain: Annotated[Path, typer.Argument(help="JSON lines that the stage is trained on: without the records.")],
    model: Annotated[Path, typer.Option(help="Model folder after the stage with the records, or its adapter.")],
    forget: Annotated[Path, typer.Option(help="JSON lines: what must go.")],
    out: Out,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, the highest.")] = 2e-5,
    epochs: Annotated[int, typer.Option(help="Passes over the records.")] = 3,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant_with_warmup.")] = "linear",
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    scope: Annotated[str, typer.Option(help="answer or sequence: which tokens are learnt.")] = "answer",
    **given: Any,
) -> None:
    """Do the fine-tuning stage again without the records; the same command goes on after a kill."""
    given |= {"learning_rate": learning_rate, "epochs": epochs, "schedule": schedule, "warmup": warmup}
    given |= {"weight_decay": weight_decay, "scope": scope}
    as_json, recipe = given.pop("as_json"), settings_of(desk.Recipe, given)
    found = desk.retrain(base, retain, model_dir=model, forget_file=forget, out=out, recipe=recipe, **given)
    say(found, as_json, pages.unlearn_page({**found, "reevaluated": None}))
    if found["status"] == "failed":
        raise typer.Exit(1)


@forget_app.command("eval")
@_sharing(f"{READING}template allow_similar holdout reference earlier rouge")
def eval_(
    model: Model,
    forget: Forget,
    retain: Annotated[Path | None, typer.Option(help="JSON lines: what must stay.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("forget-eval.json"),
    robust: Annotated[
        bool, typer.Option("--robustness", help="Attack copies too: 4-bit rounding, paraphrase, relearning.")
    ] = False,
    before: Annotated[
        Path | None, typer.Option(help="Model folder before unlearning, for the share that an attack brings back.")
    ] = None,
    **given: Any,
) -> None:
    """Measure a model on records, against a reference where there is one; with --earlier also earlier requests."""
    as_json, earlier, key = (given.pop(name) for name in ("as_json", "earlier", "key"))
    given |= {"out": out, "robust": robust, "before": before}
    found = desk.evaluate(model, forget, retain, other=[*earlier, key], **given)
    shared = {name: given[name] for name in ("batch_size", "base", "device", "cluster")}
    again = desk.reevaluate(given["desk"], model, earlier, key=key, **shared) if earlier else None
    say({**found, "reevaluated": again}, as_json, pages.eval_page(found, again, out))


@forget_app.command()
@_sharing("desk key as_json")
def receipt(request: Request, **given: Any) -> None:
    """Write and show the receipt of a request: aggregates only."""
    found = receipts.receipt(given["desk"], request, key=given["key"])
    say(found, given["as_json"], pages.page(found))


@forget_app.command()
@_sharing("desk key as_json")
def purge(request: Request, **given: Any) -> None:
    """Destroy salt, scores and caches of a request; the ledger's lines stay."""
    found = receipts.purge(given["desk"], request, key=given["key"])
    say(found, given["as_json"], pages.purge_page(found))


@forget_app.command("list")
@_sharing("desk as_json")
def list_(**given: Any) -> None:
    """List the requests of a desk and how they ended."""
    rows = receipts.listing(given["desk"])
    say(rows, given["as_json"], pages.list_page(rows))


@forget_app.command()
@_sharing("desk key as_json")
def verify(
    head: Annotated[str | None, typer.Option(help="Hash of a line, kept elsewhere.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="receipt.json or .txt: must say what its line says.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder: must be what a line, or --receipt, wrote.")] = None,
    mend: Annotated[bool, typer.Option("--mend", help="Take a torn end out, and note it.")] = False,
    **given: Any,
) -> None:
    """Check every line of the ledger, a receipt, a model folder; exit status 1 when one does not hold."""
    place, key = given["desk"], given["key"]
    found = receipts.verify(place, head=head, receipt_file=receipt, model=model, key=key, mend=mend)
    say(found, given["as_json"], pages.verify_page(found))
    if not found["intact"]:
        raise typer.Exit(1)
