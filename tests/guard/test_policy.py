"""Policies: what a file may say, and who has which."""

from __future__ import annotations

import hashlib

import pytest

from upright.contract import InputError
from upright.guard.policy import Policy, read_policy


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_the_table_of_the_page_holds_without_a_file():
    # catches: free and protected swapped
    policy = read_policy()
    assert [policy.action(row, "copy") for row in ("public domain", "open licence", "protected", "noticed")] == [
        "allow", "attribute", "transform", "transform",
    ]  # fmt: skip
    assert {policy.action(row, "summary") for row in ("protected", "noticed", "unknown", "own")} == {"allow"}
    assert policy.action("protected", "quote") == "attribute"
    assert policy.action("own", "translate") == "allow"


def test_a_tenant_has_what_it_says_over_what_the_file_says(tmp_path):
    # catches: a tenant that begins from the defaults again, and one that changes another
    key = hashlib.sha256(b"secret").hexdigest()
    other = hashlib.sha256(b"other").hexdigest()
    policy = read_policy(written(tmp_path / "policy.toml", f"""
version = 1
cap = 30
[rights.protected]
quote = "allow"
[tenants.reader]
key = "{key}"
cap = 60
[tenants.reader.rights.protected]
copy = "allow"
[tenants.second]
key = "{other.upper()}"
"""))  # fmt: skip
    reader, second = policy.for_key("secret"), policy.for_key("other")
    assert (reader.tenant, reader.cap, reader.action("protected", "copy")) == ("reader", 60, "allow")
    assert reader.action("protected", "quote") == "allow"
    assert (second.tenant, second.cap, second.action("protected", "copy")) == ("second", 30, "transform")
    strict = policy.for_key("nobody")
    assert (strict.tenant, strict.cap) == ("", 30)
    assert strict.action("protected", "copy") == "refuse"
    assert strict.action("protected", "quote") == "attribute"  # what the file loosened is not for everybody


def test_when_an_answer_may_leave_is_a_tenants_and_what_a_full_queue_does_is_everybodys(tmp_path):
    # catches a default that waits for the disk, a tenant's word that is not heard, an unknown key less strict
    key = hashlib.sha256(b"secret").hexdigest()
    assert (read_policy().audit, read_policy().full) == ("behind", "wait")
    policy = read_policy(written(tmp_path / "policy.toml", f"""
version = 1
full = "refuse"
[tenants.a]
key = "{key}"
audit = "before"
"""))  # fmt: skip
    assert (policy.audit, policy.full) == ("behind", "refuse")
    assert (policy.for_key("secret").audit, policy.for_key("secret").full) == ("before", "refuse")
    assert policy.for_key("nobody").audit == "before"


def test_unknown_keys_may_be_refused_and_without_tenants_there_are_none(tmp_path):
    key = hashlib.sha256(b"secret").hexdigest()
    text = f'version = 1\nunknown_key = "refuse"\n[tenants.a]\nkey = "{key}"\n'
    assert read_policy(written(tmp_path / "policy.toml", text)).for_key("nobody") is None
    assert Policy().for_key("anything") == Policy()


@pytest.mark.parametrize(
    ("text", "got", "todo"),
    [
        ("version = ", "the policy policy.toml, which is no TOML", "correct it"),
        ("cap = 5", "the policy policy.toml of another version", "write it in its first line"),
        ("version = 1\ncapp = 5", "policy.toml: capp, which is no key", "write cap"),
        ("version = 1\ncap = 0", "policy.toml: cap = 0", "to let no word through, refuse the use"),
        ("version = 1\ncap = true", "policy.toml: cap = True", "to let no word through, refuse the use"),
        ("version = 1\nunread = 'drop'", "policy.toml: unread = 'drop'", "choose one of them"),
        ("version = 1\naudit = 'after'", "policy.toml: audit = 'after'", "choose one of them"),
        ("version = 1\nfull = 'drop'", "policy.toml: full = 'drop'", "choose one of them"),
        ("version = 1\n[tenants.a]\nfull = 'wait'", "tenants.a: full, which is for all", "write it at the head"),
        ("version = 1\nrights = 3", "policy.toml: rights, which is no table", "write it in square brackets"),
        ("version = 1\n[rights.protectd]", "policy.toml: rights.protectd, which is no key", "write protected"),
        ("version = 1\n[rights.protected]\ncopying='allow'", "rights.protected.copying, which is no key", "write copy"),
        ("version = 1\n[rights.protected]\ncopy='yes'", "rights.protected.copy = 'yes'", "choose one of them"),
        ("version = 1\n[tenants.a]\ncap = 3", "tenants.a without the hash of its key", "write the output of"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, got, todo):
    with pytest.raises(InputError) as caught:
        read_policy(written(tmp_path / "policy.toml", text))
    assert got in caught.value.got
    assert caught.value.todo.startswith(todo)


def test_two_tenants_with_one_key_are_refused(tmp_path):
    key = hashlib.sha256(b"secret").hexdigest()
    text = f'version = 1\n[tenants.a]\nkey = "{key}"\n[tenants.b]\nkey = "{key}"\n'
    with pytest.raises(InputError, match=r"tenants\.b with the key of a"):
        read_policy(written(tmp_path / "policy.toml", text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"the policy none\.toml \(No such file"):
        read_policy(tmp_path / "none.toml")


def test_who_has_no_key_has_the_strictest_cell_of_all_tables(tmp_path):
    # catches: one tenant that undoes what the file refuses to everybody
    path = tmp_path / "policy.toml"
    path.write_text(
        'version = 1\n[rights.protected]\nquote = "refuse"\n'
        f'[tenants.a]\nkey = "{"0" * 64}"\n[tenants.a.rights.protected]\nquote = "allow"\nsummary = "transform"\n'
    )
    found = read_policy(path).for_key("nobody's")
    assert found is not None
    assert found.action("protected", "quote") == found.action("protected", "summary") == "refuse"
    assert found.action("public domain", "copy") == "allow"
