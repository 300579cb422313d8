"""Readers of the audit of user vectors: every format holds the same numbers, every defect is named with its place."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.audits.tables import read_labels, read_vectors
from upright.contract import InputError

# -- files --------------------------------------------------------------------------------------------------------


def tensor_file(path, tensors, prefix=b""):
    """Write the format by hand: length, header, numbers."""
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, array) in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(blob), len(blob) + len(raw)]}
        blob += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + prefix + blob)
    return path


@pytest.mark.parametrize("kind", ["npy", "npy32", "csv", "tsv", "parquet", "list", "array", "safetensors", "named"])
def test_every_format_holds_the_same_vectors(tmp_path, kind):
    # catches transposed, re-ordered or rounded numbers, and a dimension that is lost
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32).astype(np.float64)
    users = [f"u{i}" for i in range(7)]
    columns = pl.DataFrame({"user": users, **{f"d{i}": x[:, i] for i in range(3)}})
    path = tmp_path / f"v.{kind}"
    if kind.startswith("npy"):
        path = tmp_path / "v.npy"
        np.save(path, x.astype(np.float32) if kind == "npy32" else np.asfortranarray(x))
    elif kind in ("csv", "tsv"):
        columns.write_csv(path, separator="," if kind == "csv" else "\t")
    elif kind == "parquet":
        columns.write_parquet(path)
    elif kind in ("list", "array"):
        path = tmp_path / "v.parquet"
        inner = pl.List(pl.Float32) if kind == "list" else pl.Array(pl.Float64, 3)
        pl.DataFrame({"vector": pl.Series(x.tolist(), dtype=inner), "user": users}).write_parquet(path)
    else:
        tensors = {"bias": ("F32", np.zeros(9, dtype="<f4")), "users": ("F32", x.astype("<f4"))}
        if kind == "named":
            tensors["items"] = ("F64", np.ones((5, 3)))
        path = tensor_file(tmp_path / "v.safetensors", tensors)
        path = Path(f"{path}:users") if kind == "named" else path
    found = read_vectors(path)
    np.testing.assert_array_equal(found.values, x)
    assert found.users == (None if path.name.startswith(("v.npy", "v.safetensors")) else tuple(users))


def test_half_precision_tensors(tmp_path):
    # catches brain floats read as halves: 1.5 and -2 are exact in both
    exact = np.array([[1.5, -2.0], [0.25, 3.0]])
    brain = (exact.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    np.testing.assert_array_equal(read_vectors(tensor_file(tmp_path / "a.safetensors", {"x": ("BF16", brain)})).values,
                                  exact)  # fmt: skip
    half = tensor_file(tmp_path / "b.safetensors", {"x": ("F16", exact.astype("<f2"))})
    np.testing.assert_array_equal(read_vectors(half).values, exact)


def test_the_format_is_that_of_its_own_package(tmp_path):
    # catches a reader that agrees with our own writer alone
    package = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    package.save_file({"users": x, "other": np.zeros(3)}, str(tmp_path / "v.safetensors"))
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.safetensors").values, x)


def test_numbers_as_classes(tmp_path):
    # catches one class written in two ways; whole floats of Parquet
    (tmp_path / "l.csv").write_text("user,band\na,1\nb,1.0\nc,2\nd,\ne, nan\n")
    assert read_labels(tmp_path / "l.csv", None).label == ("1", "1", "2", "", "")
    pl.DataFrame({"user": ["a", "b", "c"], "band": [1.0, 2.5, None]}).write_parquet(tmp_path / "l.parquet")
    assert read_labels(tmp_path / "l.parquet", None).label == ("1", "2.5", "")


# -- bad input ----------------------------------------------------------------------------------------------------

FINITE = "finite numbers in every row"
DIVERGED = "find where the model diverged, or leave those users out"
PACKED = ("a .npy array of numbers, read without pickle", "save it with numpy.save as an array of floats")
SHAPE = ("real numbers of shape (users, dimensions)", "save one row of numbers for each user")
VECTORS = [
    # name, content, got, accepted, to do
    ("v.npy", np.array([[0.0, np.nan], [1, 2], [np.inf, 1]]), "v.npy holds nan in rows 0, 2 (the first row is 0)",
     FINITE, DIVERGED),
    ("v.npy", np.where(np.arange(9)[:, None] == 4, -np.inf, 1.0), "v.npy holds -inf in row 4 (the first row is 0)",
     FINITE, DIVERGED),
    ("v.npy", np.full((9, 2), np.nan), "v.npy holds nan in rows 0, 1, 2, 3, 4 and 4 more (the first row is 0)",
     FINITE, DIVERGED),
    ("v.npy", np.array([[1, "a"]], dtype=object), "v.npy holds pickled Python objects", *PACKED),
    ("v.npy", pickle.dumps([1.0]), "v.npy holds pickled Python objects", *PACKED),
    ("v.npy", np.zeros(5), "v.npy holds float64 of shape (5,)", *SHAPE),
    ("v.npy", np.zeros((2, 2, 2)), "v.npy holds float64 of shape (2, 2, 2)", *SHAPE),
    ("v.npy", np.zeros((2, 2), dtype=complex), "v.npy holds complex128 of shape (2, 2)", *SHAPE),
    ("v.npy", np.zeros((0, 2)), "v.npy holds float64 of shape (0, 2)", *SHAPE),
    ("v.npy", b"", "v.npy is empty", "one row of numbers for each user", "check how it was exported"),
    ("v.csv", b"", "v.csv is empty", "one row of numbers for each user", "check how it was exported"),
    ("v.csv", b"\n\n", "v.csv is empty", "one row of numbers for each user", "check how it was exported"),
    ("v.csv", b"user,d\n", "v.csv has a header and no rows", "one row of numbers for each user",
     "check how the file was exported"),
    ("v.csv", b"user,d\na,1\nb,nan\n", "v.csv line 3: 'd' is 'nan', not finite", "a finite number in every row",
     "correct or delete those rows"),
    ("v.csv", b"user,d\na,1\nb,\n", "v.csv line 3: 1 missing 'd'", "a finite number in every row",
     "correct or delete those rows"),
    ("v.csv", b"user,d\na,1\nb,x\n", "v.csv line 3: 'd' is 'x', not a number", "a finite number in every row",
     "correct or delete those rows"),
    ("v.csv", b"user,d\na,1\nb,2\na,3\n", "v.csv line 4: user 'a' again", "each user once",
     "keep one row of each user"),
    ("v.csv", b"user,d\na,1\n,2\n", "v.csv line 3: 1 missing 'user'", "an id in every row",
     "fill in or delete those rows"),
    ("v.csv", b"usr,d\na,1\n", "v.csv has no column 'user'", "its columns are 'usr', 'd'",
     "did you mean 'usr'? Else name the column of ids with --ids COLUMN"),
    ("v.csv", b"user\na\n", "v.csv has no column besides 'user'",
     "one column for each dimension, or one column of lists", "export the vectors with it"),
    ("v.csv", b"user,d,d\na,1,2\n", "v.csv line 1 names 'd' twice", "each column once", "rename one of them"),
    ("v.txt", b"1 2", "v.txt ends in '.txt'", ".npy, .safetensors, .csv, .tsv, .tab, .parquet, .pq (by its ending)",
     "convert or rename the file"),
    ("v.safetensors", b"\xff" * 20, "v.safetensors is no whole safetensors file", "a .safetensors file",
     "export it again"),
]  # fmt: skip


def put(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    return path


def three(call):
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.got, caught.value.accepted, caught.value.todo


@pytest.mark.parametrize(("name", "content", *["got", "accepted", "todo"]), VECTORS, ids=[v[2] for v in VECTORS])
def test_vectors_are_refused(tmp_path, name, content, got, accepted, todo):
    # catches a bad row that is dropped or read in silence, and a message that does not say where
    assert three(lambda: read_vectors(put(tmp_path / name, content))) == (got, accepted, todo)


def test_lists_of_other_lengths_and_not_finite(tmp_path):
    # catches ragged lists cut or padded
    path = tmp_path / "v.parquet"
    pl.DataFrame({"user": ["a", "b", "c"], "v": [[1.0, 2.0], [1.0], [1.0, 2.0]]}).write_parquet(path)
    accepted, todo = "lists of finite numbers, all of one length", "correct or delete those rows"
    assert three(lambda: read_vectors(path)) == (
        "v.parquet row 2: 'v' has 1 number, most rows have 2", accepted, todo)  # fmt: skip
    pl.DataFrame({"user": ["a", "b"], "v": [[1.0, 2.0], [1.0, None]]}).write_parquet(path)
    assert three(lambda: read_vectors(path)) == ("v.parquet row 2: 'v' holds nan, not finite", accepted, todo)
    pl.DataFrame({"user": ["a", "b"], "v": [["x"], ["y"]]}).write_parquet(path)
    assert three(lambda: read_vectors(path)) == (
        "v.parquet: 'v' has type List(String)", accepted, "store one list of numbers for each user")  # fmt: skip


def test_tensors_are_refused(tmp_path):
    # catches a tensor picked by chance, a file cut short, numbers of an unknown type
    two = np.ones((4, 2), dtype="<f4")
    path = tensor_file(tmp_path / "v.safetensors", {"a": ("F32", two), "b": ("F32", two)})
    names = "one of its tensors: 'a' (4, 2), 'b' (4, 2)"
    todo = "name it: v.safetensors:TENSOR"
    assert three(lambda: read_vectors(path)) == ("v.safetensors holds 2 tensors of two dimensions", names, todo)
    assert three(lambda: read_vectors(Path(f"{path}:c"))) == ("v.safetensors holds no tensor 'c'", names, todo)
    broken = ("v.safetensors is no whole safetensors file", "a .safetensors file", "export it again")
    path.write_bytes(path.read_bytes()[:-4])
    assert three(lambda: read_vectors(Path(f"{path}:b"))) == broken
    tensor_file(path, {"a": ("F8_E4M3", two)})
    got, accepted, todo = three(lambda: read_vectors(path))
    assert (got, todo) == ("v.safetensors: tensor of type F8_E4M3", "save it as F32")
    assert accepted.startswith("F64, F32")
    for header in (b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', b"{"):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert three(lambda: read_vectors(path)) == broken
    wild = {"dtype": "F32", "shape": [-1, -8], "data_offsets": [0, 32]}
    header = json.dumps({"a": wild}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + two.tobytes())
    assert three(lambda: read_vectors(path)) == broken


HEADER = "a header line, then one user and one attribute a row"
LABELS = [
    ("user,gender,age\na,f,1\n", {}, "l.csv has 'gender', 'age' besides 'user'", "one attribute, or its name",
     "name the column with --attribute COLUMN"),
    ("user\na\n", {}, "l.csv has no column besides 'user'", "one attribute, or its name",
     "name the column with --attribute COLUMN"),
    ("user,gender\na,f\n", {"attribute": "gendr"}, "l.csv has no column 'gendr'", "its columns are 'user', 'gender'",
     "did you mean 'gender'? Else name the column with --attribute COLUMN"),
    ("user,gender\na,f\n", {"attribute": "user"}, "column 'user' as the attribute", "a column of its own",
     "name another column with --attribute"),
    ("user,gender\na,f\n", {"aligned": "fitted"}, "l.csv has no column 'fitted'", "its columns are 'user', 'gender'",
     "name a column or a file of ids with --aligned"),
    ("user,gender,al\na,f,1\nb,m,2\n", {"aligned": "al"}, "l.csv line 3: 'al' is 2",
     "1 for users that a defence was fitted on, else 0", "correct those rows"),
    ("user,gender\na,f\nb,m\na,f\n", {}, "l.csv line 4: user 'a' again", "each user once", "keep one row of each user"),
    ("user,age\n" + "".join(f"u{i},{i + 0.5}\n" for i in range(11)), {}, "l.csv: 'age' has 11 different numbers",
     "classes; numbers of at most 10 values", "cut them into ranges, such as <25, 25-45, >=45"),
    ("user,gender\na,m/f\n", {}, "l.csv: 'gender' has the class 'm/f'",
     "classes without a slash, which parts the names of attacks", "rename those classes"),
    ("", {}, "l.csv is empty", HEADER, "check how it was exported"),
    ("user,gender\n", {}, "l.csv has a header and no rows", HEADER, "check how the file was exported"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", *["got", "accepted", "todo"]), LABELS, ids=[v[2] for v in LABELS])
def test_labels_are_refused(tmp_path, text, options, got, accepted, todo):
    # catches a wrong column taken, a quantity taken for classes, a name that would part the name of an attack
    (tmp_path / "l.csv").write_text(text)
    options = {"attribute": None} | options
    assert three(lambda: read_labels(tmp_path / "l.csv", **options)) == (got, accepted, todo)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["npy", "safetensors"]), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4)
)
def test_a_damaged_file_is_refused_or_read(tmp_path_factory, kind, changes):
    # catches a damaged header that ends in anything but an error in three parts
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    x = np.ones((4, 2), dtype="<f4")
    np.save(path, x) if kind == "npy" else tensor_file(path, {"a": ("F32", x)})
    raw = bytearray(path.read_bytes())
    for place, value in changes:
        raw[place % len(raw)] = value
    path.write_bytes(raw)
    with contextlib.suppress(InputError):  # anything else is a defect, and what is read must be numbers
        assert np.isfinite(read_vectors(path).values).all()
