"""The desk `upright guard`: verbs only. Exit status: 0 fine, 1 a record is broken, 2 bad input, 3 our fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upright.cli.options import say, sharing
from upright.lazy import LazyModule

if TYPE_CHECKING:
    from upright.guard import benchmark, desk, server
    from upright.tasks import copyright
else:
    benchmark = LazyModule("upright.guard.benchmark")
    desk = LazyModule("upright.guard.desk")
    server = LazyModule("upright.guard.server")
    copyright = LazyModule("upright.tasks.copyright")

__all__ = ["guard_app"]

guard_app = typer.Typer(no_args_is_help=True, help="Keep a model's answers within the rights in a page.")
registry_app = typer.Typer(no_args_is_help=True, help="Works and their rights: add, import, remove, search, stats.")
audit_app = typer.Typer(no_args_is_help=True, help="The record of decisions: verify.")
guard_app.add_typer(registry_app, name="registry")
guard_app.add_typer(audit_app, name="audit")

#: options of several verbs, and the fields of a work: type, default, help, and the word where it is not the name
_sharing = sharing({
    "registry": (str, "registry.db", "A file, or postgresql://..."),
    "policy": (Path | None, None, "TOML; without it what is protected may be summarised and quoted, not copied."),
    "title": (str, "", "Its title."),
    "holder": (str, "", "Who holds the rights."),
    "authors": (list[str], [], "An author; repeatable.", "--author"),
    "died": (int | None, None, "Year in which the last author died."),
    "published": (int | None, None, "Year of the first publication."),
    "country": (str, "US", "Of the first publication, such as US."),
    "corporate": (bool, False, "Made for hire, anonymous or under a pseudonym.", "--corporate"),
    "renewed": (bool | None, None, "Of a US work of 1963 or before.", "--renewed/--not-renewed"),
    "noticed": (bool | None, None, "Published with a notice of its rights.", "--noticed/--not-noticed"),
    "government": (bool, False, "Of the US federal government.", "--government"),
    "licence": (str, "", "SPDX id, such as CC-BY-4.0."),
    "declared": (str | None, None, "public domain, open licence, protected or unknown: goes before what dates say."),
    "until": (int | None, None, "Last year of protection, as declared."),
    "owner": (str, "", "Tenant of the policy to whom it belongs."),
    "as_json": (bool, False, "Print JSON.", "--json"),
})  # fmt: skip
FIELDS = "title holder authors died published country corporate renewed noticed government licence declared until owner"


@guard_app.command()
@_sharing("registry policy")
def serve(
    upstream: Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible server, with its /v1.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8800,
    record: Annotated[Path | None, typer.Option(help="Folder for a line a decision; without it none is kept.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Remove a month of the record so long after its end.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="Host from which pictures are fetched; repeatable.")] = None,
    **given: Any,
) -> None:
    """Stand in front of a server, or of SmolLM2, as an address for clients, until stopped."""
    options = server.Options(host=host, port=port, allow=tuple(allow or ()))
    with desk.opened(given["registry"], given["policy"], record=record, days=days) as (guard, kept, reader):
        answer = upstream or copyright.local_model(desk.eyes_of(reader))
        server.serve(server.make_app(guard, answer, record=kept, reader=reader, options=options), options)


@guard_app.command()
@_sharing("policy as_json")
def check(
    file: Annotated[Path, typer.Argument(help="A page, as text or picture, or a request of chat messages (.json).")],
    ask: Annotated[str, typer.Option(help="What is asked about a page.")] = "Copy this page word for word.",
    registry: Annotated[str | None, typer.Option(help="A file, or postgresql://...; registry.db if there.")] = None,
    **given: Any,
) -> None:
    """Say what would be done about a page or a request, and why."""
    found = desk.check(file, ask, registry=registry, policy=given["policy"])
    say(found, given["as_json"], desk.check_page(found))


@guard_app.command()
def bench(
    out: Annotated[Path, typer.Argument(help="Folder to write; made where it is not there.")],
    vary: Annotated[int | None, typer.Option(min=0, help="Seed: draw fonts, sizes, greys, turns, columns.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the benchmark's pages, pictures and pairs as Parquet."""

    def tell(done: int, pages: int) -> None:
        if done % 50 == 0:
            typer.echo(f"{done} of {pages} pages drawn", err=True)

    found = benchmark.write_benchmark(out, seed=vary, progress=tell)
    say(found, as_json, "\n".join(f"{name}: {rows:,} rows" for name, rows in found.items()))


@registry_app.command()
@_sharing(f"registry {FIELDS} as_json")
def add(
    text: Annotated[Path | None, typer.Option(help="File with its text, in UTF-8.")] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text/--fingerprints", help="Or its fingerprints alone.")] = True,
    **given: Any,
) -> None:
    """Register a work; a registry that is not there is made."""
    place, as_json = given.pop("registry"), given.pop("as_json")
    found = desk.add(place, given | {"authors": tuple(given["authors"])}, text, keep_text=keep_text)
    say(found, as_json, f"work {found['work']} registered, {found['letters']:,} letters; works: {found['works']:,}")


@registry_app.command("import")
@_sharing("registry as_json")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSON Lines, ONIX 3 (.xml), or a folder of .txt.")],
    yes: Annotated[bool, typer.Option("--yes", help="Write; without it nothing is.")] = False,
    **given: Any,
) -> None:
    """Say which rows of a file would go in and which not, and with --yes write them."""
    found = desk.import_works(given["registry"], file, write=yes)
    say(found, given["as_json"], desk.import_page(found))
    if not found["rows"]:
        raise typer.Exit(2)


@registry_app.command()
@_sharing("registry as_json")
def remove(
    work: Annotated[int, typer.Argument(help="Id of a work.")],
    ledger: Annotated[Path | None, typer.Option(help="File for the line; by default beside the registry.")] = None,
    **given: Any,
) -> None:
    """Take a work out; a line of a ledger says so."""
    found = desk.remove(given["registry"], work, ledger)
    say(found, given["as_json"], f"work {work} removed, in line {found['line']} of {found['ledger']}")


@registry_app.command()
@_sharing("registry as_json")
def search(
    words: Annotated[list[str], typer.Argument(help="Parts of title, holder or authors.")],
    limit: Annotated[int, typer.Option(min=1, help="Most works.")] = 20,
    **given: Any,
) -> None:
    """Find works; all words must stand in one."""
    found = desk.search(given["registry"], " ".join(words), limit)
    say(found, given["as_json"], desk.search_page(found))


@registry_app.command()
@_sharing("registry as_json")
def stats(**given: Any) -> None:
    """Count works."""
    found = desk.stats(given["registry"])
    say(found, given["as_json"], desk.stats_page(found))


@audit_app.command()
@_sharing("as_json")
def verify(
    folder: Annotated[Path, typer.Argument(help="What serve --record wrote.")],
    head: Annotated[str | None, typer.Option(help="Hash of a line, kept elsewhere: shows a cut tail.")] = None,
    **given: Any,
) -> None:
    """Check every line of the record; exit status 1 when one does not hold."""
    found = desk.audit(folder, head)
    say(found, given["as_json"], desk.audit_page(found))
    if not found["intact"]:
        raise typer.Exit(1)
