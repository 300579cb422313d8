"""What a user of the forgetting desk has, made once for all files of tests."""

from __future__ import annotations

import pytest

import desk_world


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return desk_world.world_of(tmp_path_factory)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return desk_world.finished_of(tmp_path_factory)
