"""`upright guard` as a person meets it: exit status, words at 80 columns, JSON, files."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from upright.guard import benchmark
from upright.guard.pages import draw_page, encode_page
from upright.guard.reading import default_engine
from upright.guard.record import Record
from upright.guard.registry import Registry
from upright.ledger import Ledger

DESK = "guard"

OWL = (
    "The owl of the north wing counts the shelves at night, and whoever leaves a lamp burning finds it moved by "
    "morning to the table of the clerk, with a feather laid beside it as a receipt for the oil that was spared."
)
REFUSING = 'version = 1\n[rights.protected]\ncopy = "refuse"\n'


@pytest.fixture(autouse=True)
def page(tmp_path):
    (tmp_path / "owl.txt").write_text(OWL)


@pytest.fixture
def owl(upright):
    """Register the page as protected."""
    status, out, _ = upright("registry", "add", "--title", "Owl", "--text", "owl.txt", "--declared", "protected")
    assert (status, out) == (0, "work 0 registered, 168 letters; works: 1\n")
    return upright


def chat(*content) -> str:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": list(content)}]})


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_a_page_and_a_request_are_decided_by_the_registry_and_the_policy(owl, tmp_path):
    # catches a verb that looks at no registry, a policy that is not read, a page wider than a terminal, another verdict
    # in JSON than in words, a request whose question is passed over, and a name that clears the terminal
    (tmp_path / "policy.toml").write_text(REFUSING)
    status, out, _ = owl("check", "owl.txt")  # the registry that the other verbs take, where it is there
    assert (status, out) == owl("check", "owl.txt", "--registry", "registry.db")[:2]
    assert (status, out.splitlines()[:6]) == (0, [
        "decision  transform", "rule      protected/copy", "use       copy", "work      0", "title     Owl",
        "why       This is a registered work (Owl): to copy it is not permitted here. A",
    ])  # fmt: skip
    assert max(map(len, out.splitlines())) <= 80
    with_policy = ("--registry", "registry.db", "--policy", "policy.toml")
    found = json.loads(owl("check", "owl.txt", *with_policy, "--json")[1])
    assert (found["decision"], found["rule"], found["work"], found["unread"]) == ("refuse", "protected/copy", 0, [])
    assert owl("check", "owl.txt", *with_policy, "--ask", "Who moves the lamp?")[1].startswith("decision  allow\n")
    (tmp_path / "registry.db").rename(tmp_path / "works.db")
    assert owl("check", "owl.txt")[1] == "decision  allow\nrule      allow\nuse       copy\nwhy       Allowed.\n"
    (tmp_path / "works.db").rename(tmp_path / "registry.db")
    (tmp_path / "request.json").write_text(chat(text(OWL), text("Translate all of it into French.")))
    assert owl("check", "request.json", *with_policy)[1].splitlines()[1] == "rule      protected/translate"
    (tmp_path / "other.json").write_text('[{"role": "user", "content": "Hello", "\\u001b[2J": 7}]')
    assert owl("check", "other.json")[1].splitlines()[-1] == "unread    messages[0].?[2J"


@pytest.mark.skipif(default_engine() is None, reason="no program that reads pictures")
def test_a_picture_is_read(owl, tmp_path):
    # catches a picture that is taken for a text, and one that passes unread
    (tmp_path / "owl.png").write_bytes(encode_page(draw_page(OWL)))
    assert owl("check", "owl.png", "--registry", "registry.db")[1].startswith("decision  transform\n")
    url = f"data:image/png;base64,{base64.b64encode((tmp_path / 'owl.png').read_bytes()).decode()}"
    (tmp_path / "request.json").write_text(chat({"type": "image_url", "image_url": {"url": url}}, text("Copy it.")))
    found = json.loads(owl("check", "request.json", "--registry", "registry.db", "--json")[1])
    assert (found["decision"], found["work"], found["unread"]) == ("transform", 0, [])
    (tmp_path / "torn.png").write_bytes((tmp_path / "owl.png").read_bytes()[:900])
    assert owl("check", "torn.png")[2].startswith("error: a damaged picture\n  accepted: PNG")


def test_a_registry_is_kept(owl, tmp_path):
    # catches a field that does not arrive, and a removal that leaves no line or no gap
    words = ("--title", "Tern", "--author", "A. Made", "--author", "B. Made", "--published", 1950, "--renewed")
    assert owl("registry", "add", *words, "--holder", "A Made-up House")[1] == (
        "work 1 registered, 0 letters; works: 2\n"
    )
    assert owl("registry", "add", "--title", "Heron", "--text", "owl.txt", "--fingerprints")[0] == 0
    assert owl("registry", "search", "made", "house")[1] == (
        "       1  Tern (1950); A. Made, B. Made; A Made-up House\n"
    )
    assert owl("registry", "search", "zebra")[1] == "no work with these words\n"
    (one,) = json.loads(owl("registry", "search", "tern", "--json")[1])
    assert (one["renewed"], one["noticed"], one["authors"]) == (True, None, ["A. Made", "B. Made"])
    status, out, _ = owl("registry", "remove", 0)
    assert (status, out) == (0, "work 0 removed, in line 1 of registry.db.ledger.jsonl\n")
    (line,) = Ledger(tmp_path / "registry.db.ledger.jsonl").lines()
    assert (line["kind"], line["body"]["work"], line["body"]["title"]) == ("removed", 0, "Owl")
    told = json.loads(owl("registry", "stats", "--json")[1])
    assert told == {"works": 2, "with text": 0, "with fingerprints alone": 1, "version": 5, "bundled": 0}
    assert owl("registry", "stats")[1].splitlines()[0] == "works                                  2"


def test_an_import_is_a_dry_run_until_it_is_told_to_write(upright, tmp_path):
    # catches a dry run that makes a registry, rows that are refused unsaid, and good rows that are left out with them
    (tmp_path / "list.csv").write_text("title,published\nOwl,1950\nTern,1950-02-31\nHeron,1999\n")
    refused = "refused: list.csv line 3: published '1950-02-31', which is not a year or a day\n"
    status, out, _ = upright("registry", "import", "list.csv")
    last = "2 works would go in, 1 rows refused; nothing was written: pass --yes to write\n"
    assert (status, out) == (0, refused + last)
    assert not (tmp_path / "registry.db").exists()
    assert upright("registry", "import", "list.csv", "--yes")[1] == (
        f"{refused}2 works went in, with ids from 0; 1 rows refused\n"
    )
    found = json.loads(upright("registry", "import", "list.csv", "--json")[1])
    assert (found["rows"], found["written"], found["refused"][0]["place"]) == (2, False, "list.csv line 3")
    assert json.loads(upright("registry", "stats", "--json")[1])["works"] == 2
    (tmp_path / "none.csv").write_text("title,published\nA,31 February\n")
    status, out, _ = upright("registry", "import", "none.csv", "--yes")
    assert (status, out.splitlines()[-1]) == (2, "0 works would go in, 1 rows refused; nothing was written")


def test_a_record_is_verified(upright, tmp_path):
    # catches a broken record with status 0, and a cut tail that is promised to be seen
    with Record(tmp_path / "record") as record:
        record.write({"number": 1})
    status, out, _ = upright("audit", "verify", "record")
    (path,) = (tmp_path / "record").glob("*.jsonl")
    head = Ledger(path).verify().head
    assert (status, out) == (0, (
        f"{path.name}: 3 lines, all hold\nhead {head}\n"
        "lines cut off at the end were not looked for: that takes the hash of a later\n  line (--head)\n"
    ))  # fmt: skip
    assert upright("audit", "verify", "record", "--head", head)[1].splitlines()[1:] == [f"head {head}"]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert upright("audit", "verify", "record")[0] == 0
    status, out, _ = upright("audit", "verify", "record", "--head", head)
    assert (status, out.splitlines()[-1]) == (1, "the record is broken")
    assert out.startswith(f"{path.name}: 2 lines, broken at line 3: a line known from elsewhere")
    path.write_bytes(lines[0] + lines[2])
    status, out, _ = upright("audit", "verify", "record", "--json")
    assert (status, json.loads(out)["intact"], json.loads(out)["files"][0]["broken"]) == (1, False, 2)


def test_the_benchmark_is_written_where_it_is_asked_for(upright, tmp_path, monkeypatch):
    # catches a seed that is not handed on; what is written is a matter of the benchmark's own tests
    def written(folder, *, seed, progress):
        progress(50, 250)
        return {"pairs": 125_000 + (seed or 0), "pages": len(str(folder))}

    monkeypatch.setattr(benchmark, "write_benchmark", written)
    assert upright("bench", "out") == (0, "pairs: 125,000 rows\npages: 3 rows\n", "50 of 250 pages drawn\n")
    assert json.loads(upright("bench", "out", "--vary", 7, "--json")[1])["pairs"] == 125_007


def test_a_server_stands_in_front_of_another_and_closes_its_record_when_it_is_ended(owl, tmp_path):
    # catches options that do not arrive, a record that is unclean after every stop, and user text in it
    pytest.importorskip("uvicorn")
    (tmp_path / "policy.toml").write_text(REFUSING)
    words = ("--upstream", "http://127.0.0.1:9/v1", "--registry", "registry.db", "--policy", "policy.toml")
    command = [sys.executable, "-m", "upright.cli", "guard", "serve", *words, "--port", "0", "--record", "record"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        try:
            said = next(found for line in run.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            body = chat(text(OWL), text("Copy this page word for word.")).encode()
            asked = urllib.request.Request(f"{said[0]}/v1/chat/completions", body, {"content-type": "application/json"})
            with urllib.request.urlopen(asked, timeout=30) as answer:
                assert answer.headers["x-guard-decision"] == "refuse"
        finally:
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=30)
    assert run.returncode == 0
    (path,) = (tmp_path / "record").glob("*.jsonl")
    assert [line["kind"] for line in Ledger(path).lines()] == ["began", "decision", "closed"]
    assert "shelves" not in path.read_text()
    assert owl("audit", "verify", "record")[0] == 0


def test_a_place_that_is_taken_is_told_and_the_record_is_closed(owl, tmp_path):
    # catches the status of a broken record where an address was asked for wrongly
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, words = taken.getsockname()[1], ("--upstream", "http://127.0.0.1:9/v1", "--record", "record")
        command = [sys.executable, "-m", "upright.cli", "guard", "serve", *words, "--port", str(port)]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("registry registry.db: works 1; tenants of the policy 0\n")
    assert run.stderr.endswith(
        "error: a server that did not start, as its lines above say\n  accepted: an address that is here and free\n"
        "  to do:    pass another --host or --port\n"
    )
    (path,) = (tmp_path / "record").glob("*.jsonl")
    assert Ledger(path).lines()[-1]["kind"] == "closed"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("serve --upstream http://127.0.0.1:9/v1 --registry bundled.db",
         ("a registry of a benchmark, whose rights are made up", "a registry of your own",
          "name another registry, or allow it to try the guard")),
        ("serve --upstream http://127.0.0.1:9/v1 --registry none.db",
         ("registry none.db, which is not there", "a registry that was made",
          "make one: upright guard registry add, or check the path")),
        ("serve --upstream http://127.0.0.1:9/v1 --registry bundled.db --days 3",
         ("--days without --record", "both, or neither", "name the folder of the record")),
        ("check none.txt", ("none.txt (No such file or directory)", "a file that can be read", "check the path")),
        ("check torn.json", ("torn.json, which is no JSON", "a request of chat messages", "check the file")),
        ("check deep.json", ("deep.json, which is no JSON", "a request of chat messages", "check the file")),
        ("check {}.json", ("{}.json without messages", 'a list of them, or an object with "messages"',
                           "check the file")),
        ("registry add", ("a work with neither a title nor a text", "one of them at least", "pass --title or --text")),
        ("registry add --title A --died 5000", ("a work with died = 5000", "a year from -3000 to 2100, or nothing",
                                                "correct the year, or leave it out")),
        ("registry add --text blank.txt", ("blank.txt, a text without letters", "the text of the work",
                                           "check the file")),
        ("registry remove 7 --registry bundled.db", ("work 7, which is not in registry bundled.db",
                                                     "the id of a registered work", "search for it")),
        ("registry remove 7 --registry postgresql://nobody@127.0.0.1:9/none",
         ("a removal from a database without a ledger", "a file for its line", "pass --ledger FILE")),
        ("registry import owl.txt", ("owl.txt of another kind",
                                     "a folder of .txt, .csv, .tsv, .jsonl, .xml, these as .gz or in a .zip",
                                     "save it as one of them")),
        ("registry stats --registry owl.txt", ("registry owl.txt that cannot be used (file is not a database)",
                                               "a registry that is there and free",
                                               "check the place, and who may write there")),
        ("audit verify empty", ("empty without a record", "a folder with guard-YYYY-MM.jsonl", "check the path")),
        ("audit verify empty --head 12", ("the head '12'", "the hash of a line, 64 hex digits",
                                          "copy the whole of it")),
        ("registry ad", ("No such command 'ad'", "add, import, remove, search, stats", "did you mean add?")),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_told_in_three_parts_and_changes_nothing(upright, tmp_path, words, told):
    # catches a traceback, a status that a script takes for a broken record, and a registry made by a typing error
    Registry(tmp_path / "bundled.db", bundled=True).close()
    for name, content in (("torn.json", "{"), ("deep.json", "[" * 10_000), ("{}.json", "{}"), ("blank.txt", " .\n")):
        (tmp_path / name).write_text(content)
    (tmp_path / "empty").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    got, accepted, todo = told
    said = f"error: {got}\n  accepted: {accepted}\n  to do:    {todo}\n"
    assert upright(*words.split()) == (2, "", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
