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

from upright.contract import InputError
from upright.data.arrays import read_ids, read_vectors

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
        path = f"{path}::users" if kind == "named" else path
    values, own = read_vectors(path)
    np.testing.assert_array_equal(values, x)
    assert own == (None if Path(path).name.startswith(("v.npy", "v.safetensors")) else tuple(users))


def test_half_precision_tensors(tmp_path):
    # catches brain floats read as halves: 1.5 and -2 are exact in both
    exact = np.array([[1.5, -2.0], [0.25, 3.0]])
    brain = (exact.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    np.testing.assert_array_equal(
        read_vectors(tensor_file(tmp_path / "a.safetensors", {"x": ("BF16", brain)}))[0], exact
    )
    half = tensor_file(tmp_path / "b.safetensors", {"x": ("F16", exact.astype("<f2"))})
    np.testing.assert_array_equal(read_vectors(half)[0], exact)


def test_the_format_is_that_of_its_own_package(tmp_path):
    # catches a reader that agrees with our own writer alone
    package = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    package.save_file({"users": x, "other": np.zeros(3)}, str(tmp_path / "v.safetensors"))
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.safetensors")[0], x)


@pytest.mark.parametrize("kind", [str, np.bytes_])
def test_ids_beside_the_vectors_are_theirs(tmp_path, kind):
    # catches ids that lie in the file and are not seen, and those of other arrays taken for them
    x, users = np.random.default_rng(0).normal(size=(4, 2)), ["d", "a", "c", "b"]
    np.savez(tmp_path / "v.npz", x=x, y=x[:3], item_ids=["p", "q", "r"], user_ids=np.array(users, dtype=kind))
    assert read_vectors(f"{tmp_path}/v.npz::x")[1] == tuple(users)
    assert read_vectors(f"{tmp_path}/v.npz::y")[1] == ("p", "q", "r")
    np.savez(tmp_path / "v.npz", x=x, ids=["a", "a", "b", "c"])
    assert three(lambda: read_vectors(tmp_path / "v.npz"))[0].startswith("v.npz (data frame) row 1")


@pytest.mark.parametrize("outer", ["state_dict", "model_state_dict"])
def test_checkpoints_are_reached_into(tmp_path, outer):
    # catches a tensor that only a program can reach, moments of an optimiser among the candidates
    torch = pytest.importorskip("torch")
    users, items = torch.rand(4, 2), torch.rand(3, 2)
    weights = {"items.weight": items, "users.weight": users, "bias": users[0]}
    torch.save({"epoch": 3, outer: weights, "optimizer": {"state": {0: {"exp_avg": users}}}}, tmp_path / "c.pt")
    for name in ("users.weight", f"{outer}.users.weight"):
        np.testing.assert_array_equal(read_vectors(f"{tmp_path}/c.pt::{name}")[0], users.double().numpy())
    got, accepted, todo = three(lambda: read_vectors(tmp_path / "c.pt"))
    assert got == "c.pt holds 2 arrays of two dimensions"
    assert accepted == f"one of its arrays: '{outer}.items.weight' (3, 2), '{outer}.users.weight' (4, 2)"
    assert todo == f"name it: {tmp_path}/c.pt::{outer}.users.weight"
    assert three(lambda: read_vectors(f"{tmp_path}/c.pt::weight"))[0] == "c.pt holds 2 arrays 'weight'"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("b\na\n", ("b", "a")),
        ("7\n3\n", ("7", "3")),
        ("id\nb\n", ("b",)),
        ("customer\nb\n", ("b",)),
        ("n,uid\n1,b\n", ("b",)),
    ],
)
def test_a_file_of_ids_needs_no_header(tmp_path, text, ids):
    # catches a first id taken for a name, in silence
    (tmp_path / "ids.txt").write_text(text)
    found, said = read_ids(tmp_path / "ids.txt")
    assert found == ids
    assert bool(said) == (ids[0] == text.splitlines()[0])


# -- bad input ----------------------------------------------------------------------------------------------------

FINITE = "finite numbers in every row"
DIVERGED = "find where the model diverged, or leave those users out"
PACKED = (
    "arrays of numbers, read without pickle",
    "save it with numpy.save as an array of floats, ids as text: ids.astype(str)",
)
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
    ("v.npy", b"", "v.npy holds no whole array", *PACKED),
    ("v.csv", b"usr,d\na,1\n", "v.csv line 1 has no column 'user'", "its columns are 'usr', 'd'",
     "name them: --ids usr"),
    ("v.csv", b"user\na\n", "v.csv has no column besides 'user'",
     "one column for each dimension, or one column of lists", "export the vectors with it"),
    ("v.safetensors", b"\xff" * 20, "v.safetensors is no whole safetensors file",
     "a .safetensors file of numbers", "export it again"),
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
    names = "one of its arrays: 'a' (4, 2), 'b' (4, 2)"
    todo = f"name it: {path}::a"
    assert three(lambda: read_vectors(path)) == ("v.safetensors holds 2 arrays of two dimensions", names, todo)
    assert three(lambda: read_vectors(f"{path}::c")) == ("v.safetensors holds no array 'c'", names, todo)
    broken = ("v.safetensors is no whole safetensors file", "a .safetensors file of numbers", "export it again")
    path.write_bytes(path.read_bytes()[:-4])
    assert three(lambda: read_vectors(f"{path}::b")) == broken
    for header in (b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', b"{"):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert three(lambda: read_vectors(path)) == broken
    wild = {"dtype": "F32", "shape": [-1, -8], "data_offsets": [0, 32]}
    header = json.dumps({"a": wild}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + two.tobytes())
    assert three(lambda: read_vectors(path)) == broken


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
        assert np.isfinite(read_vectors(path)[0]).all()
