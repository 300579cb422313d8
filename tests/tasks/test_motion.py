"""Audit of the motion in a folder of clips: broken laws are shown, true clips pass, and what is not known says so."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import shutil
import struct
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("av")
pytest.importorskip("pymunk")

from upright import api
from upright.cli import app, main
from upright.contract import InputError
from upright.evidence.gate import fail_if
from upright.report import build_report
from upright.tasks.motion import LAWS
from upright.video.files import write_clip
from upright.video.render import draw, film
from upright.video.scenes import simulate
from upright.video.verifiers import TOLERANCES
from upright.video.violations import VIOLATIONS

SEED, MANY, FRAMES = 71, 8, 20  # on which no tolerance was measured


def saved(folder, clips, names=None, *, kind="mp4", side=64, fps=15):
    """Write clips (B, T, H, W, 3), enlarged to a side, and return their folder."""
    for i, clip in enumerate(clips):
        whole = np.round(255 * np.asarray(clip)).astype(np.uint8)
        zoom = side // whole.shape[1]
        path = folder / f"{names[i] if names else f'{i:02d}'}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, whole.repeat(zoom, 1).repeat(zoom, 2), fps)
    return folder


def run(folder, out, **options):
    return api.audit("video", folder, out=out / "audits", draws=200, **options)


def summary_of(result):
    return json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))


def level(result, statistic):
    rows = summary_of(result)["evidence"]["levels"]
    return next(x for x in rows if x["statistic"] == statistic and x["arm"] == "yours" and not x["group"])["value"]


def clips_of(result):
    return {row["clip"]: row for row in pl.read_csv(result.folder / "clips.csv").to_dicts()}


@pytest.fixture(scope="module")
def scenes():
    return simulate("collision", MANY, SEED, size=(64, 64), frames=FRAMES)


@pytest.fixture(scope="module")
def home(scenes, tmp_path_factory):
    """True clips at 256 px, and the same with things that vanish."""
    place = tmp_path_factory.mktemp("motion")
    saved(place / "true", film(scenes), side=256)
    one = VIOLATIONS["vanish"]
    saved(place / "gone", one.make(scenes, one.sizes[-1], 0)[0], side=256)
    return place


def test_laws_are_those_of_the_verifiers():
    # catches: a law that is checked and not told
    assert sorted(LAWS) == sorted(TOLERANCES)


def test_true_clips_pass_a_gate_and_broken_ones_do_not(home, tmp_path):
    # catches: a codec that is taken for a force, clips without an object that pass, an exit code of the wrong sign
    found = {}
    for name in ("true", "gone"):
        call = ["audit", "video", str(home / name), "--out", str(tmp_path / name), "--json"]
        done = CliRunner().invoke(app, [*call, "--fail-if", '"mean:newton" > 0.5'])
        found[name] = done.exit_code, json.loads(done.output[: done.output.rindex("}") + 1])
    assert (found["true"][0], found["gone"][0]) == (0, 1)
    assert fail_if(found["gone"][1], '"mean:permanence_excess" > 1')
    assert found["gone"][1]["evidence"]["verdict"]["word"] == "gap shown"
    assert found["true"][1]["evidence"]["verdict"]["word"] in ("none shown", "measured")
    assert found["gone"][1]["arms"][0]["notes"]["clips"][0]["excess"] > 1
    protocol = found["true"][1]["audit"]["protocol"]
    assert [protocol[x] for x in ("fps", "size", "tracked at", "context")] == ["15", "256x256", "64 px", "5"]


def test_the_page_names_what_is_broken_and_loads_nothing(home, tmp_path):
    # catches: a report without the laws, an address in it, a series that was not kept
    result = run(home / "gone", tmp_path)
    page = build_report(result.folder).read_text(encoding="utf-8")
    assert "The worst clips" in page
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)
    series = pl.read_csv(result.folder / "series.csv")
    lost = series.filter((pl.col("clip") == "00.mp4") & (pl.col("law") == "permanence"))
    assert lost["frame"].to_list() == list(range(FRAMES))
    assert lost["excess"][-1] > 0 == lost["excess"][:5].max()


def test_the_worst_clips_are_kept_in_motion_unless_they_are_not_to_be(home, tmp_path):
    # catches: pictures that are kept unasked, one that does not move, rings that stay as they are where a law is broken
    result = run(home / "gone", tmp_path)
    kept = sorted((result.folder / "artifacts").iterdir())
    assert [path.name for path in kept] == [f"yours.worst_{i}.webp" for i in range(MANY)]
    page = build_report(result.folder).read_text(encoding="utf-8")
    assert page.count("Worst clip ") >= MANY
    assert all(base64.b64encode(path.read_bytes()).decode() in page for path in kept)
    first = summary_of(result)["arms"][0]["notes"]["clips"][0]
    with Image.open(kept[0]) as picture:
        assert picture.n_frames == FRAMES
        colours = []
        for t in (0, first["frame"]):
            picture.seek(t)
            colours.append(np.asarray(picture.convert("RGB"), int))
    red = [((x[..., 0] > 180) & (x[..., 1:] < 110).all(-1)).sum() for x in colours]
    assert max(path.stat().st_size for path in kept) < 300_000
    assert red[1] > red[0] + 20
    none = run(home / "gone", tmp_path / "none", pictures=False)
    assert not [*(none.folder / "artifacts").iterdir()]
    assert "Worst clip 1" not in build_report(none.folder).read_text(encoding="utf-8")


def test_a_broken_file_is_named_and_the_others_are_measured(home, tmp_path, monkeypatch, capsys):
    # catches: one bad file that ends an audit, or one that nobody hears of
    place = tmp_path / "clips"
    shutil.copytree(home / "true", place)
    good = (place / "00.mp4").read_bytes()
    at = good.index(b"stts") + 16
    bad = {
        "empty.mp4": (b"", "empty.mp4: an empty file"),
        "list.mp4": (b"#EXTM3U\nhttp://127.0.0.1/a\n", "list.mp4: no clip by its first bytes"),
        "cut.mp4": (good[:-99], "cut.mp4: a file that is cut short"),
        "a\nb.mp4": (b"", "a\\nb.mp4: an empty file"),
    }
    for name, (data, _) in bad.items():
        (place / name).write_bytes(data)
    saved(place, np.zeros((1, 4, 64, 64, 3)), ["short"])
    (place / "out.mp4").symlink_to(home / "true" / "00.mp4")
    (place / "clock.mp4").write_bytes(good[:at] + struct.pack(">I", 0) + good[at + 4 :])
    wanted = {text for _, text in bad.values()}
    wanted |= {"short.mp4: 4 frames, 5 of them context", "out.mp4: a link out of the folder"}
    summary = summary_of(run(place, tmp_path))
    assert wanted <= {*summary["audit"]["left_out"]}
    assert {f"Left out: {text}." for text in wanted} <= {*summary["warnings"]}
    assert summary["data"]["clips"] - MANY + len(summary["audit"]["left_out"]) == len(wanted) + 1
    for path in place.glob("0*.mp4"):
        path.unlink()
    monkeypatch.setattr(sys, "argv", ["upright", "audit", "video", str(place), "--out", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(" ".join(text.split()) in said for text in {*wanted, "clock.mp4: no motion that can be judged"})
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_measured_is_undecided(scenes, tmp_path):
    # catches: a pass for clips in which nothing moves, a camera or a cut that is taken for a force
    true = film(scenes)[0].numpy()
    still, cut = np.repeat(true[:1], FRAMES, 0), true.copy()
    cut[FRAMES // 2 :] = 1 - cut[FRAMES // 2 :]
    noise = np.random.default_rng(0).random((64, 64 + FRAMES, 3))
    pan = np.stack([noise[:, t : t + 64] for t in range(FRAMES)])
    saved(tmp_path / "clips", [true, still, pan], ["true", "still", "pan"], kind="npy")
    result = run(tmp_path / "clips", tmp_path, fps=15.0)
    found = clips_of(result)
    assert {name for name, row in found.items() if row["newton"] is None} == {"still.npy", "pan.npy"}
    assert "2 clips whose motion cannot be judged: pan.npy; still.npy." in summary_of(result)["warnings"]
    assert level(result, "mean:newton") == pytest.approx(found["true.npy"]["newton"])
    saved(tmp_path / "cut", [cut], kind="npy")
    with pytest.raises(InputError) as error:
        run(saved(tmp_path / "still", [still], kind="npy"), tmp_path)
    said = "no clip in still that can be measured: 00.npy: no motion that can be judged"
    assert error.value.args == (said, "clips in which objects move on a background that does not", "hand in others")


def test_a_lone_object_is_judged_by_what_needs_no_motion(tmp_path):
    # catches: one that vanishes and is not judged, a pass in laws of motion that were not, a folder of such that ends
    scenes = simulate("pendulum", MANY, SEED, size=(64, 64), frames=FRAMES)
    clips = film(dataclasses.replace(scenes, radius=scenes.radius * [1.0, 0.0])).numpy()
    clips[0, 12:] = clips[0, :1, :1, :1]
    result = run(saved(tmp_path / "clips", clips, kind="npy"), tmp_path, fps=15.0)
    rows, said = clips_of(result), summary_of(result)["evidence"]["verdict"]["lines"]
    assert [row["broken"] for row in rows.values()] == [1.0] + [0.0] * (MANY - 1)
    assert rows["00.npy"]["permanence_excess"] == pytest.approx(19)
    assert not any("newton" in row or "acceleration_excess" in row for row in rows.values())
    assert said["clips"] == "1 of 8 clips break some law; most: 00.npy (permanence, frame 12)"
    assert said["judged without laws of motion"] == "8 clips"


def test_two_folders_are_compared_clip_by_clip(home, tmp_path, scenes):
    # catches: a sign, clips that are paired by place, one that has no partner and counts
    saved(tmp_path / "gone", film(scenes)[:1], ["alone"])
    saved(tmp_path / "gone", film(scenes)[:1], ["00"], side=256, fps=24)
    for i in range(1, MANY):
        shutil.copy(home / "gone" / f"{i:02d}.mp4", tmp_path / "gone" / f"{i:02d}.mp4")
    result = run(home / "true", tmp_path, compare=tmp_path / "gone")
    summary = summary_of(result)
    change = next(x for x in summary["evidence"]["levels"] if x["statistic"] == "change:permanence_excess")
    there = [x for x in summary["evidence"]["levels"] if x["statistic"] == "mean:permanence_excess"]
    assert change["value"] == pytest.approx(there[0]["value"] - there[1]["value"])
    assert change["high"] < 0
    assert summary["evidence"]["verdict"]["word"] == "told apart"
    assert summary["data"]["clips"] == MANY - 1
    assert "1 clip without a partner in the other folder left out." in summary["warnings"]
    assert "Not compared, being of another rate, length or size: 00.mp4." in summary["warnings"]
    with pytest.raises(InputError) as error:
        run(home / "true", tmp_path, compare=saved(tmp_path / "alone", film(scenes)[:1], ["alone"]))
    assert error.value.got == "0 clips of the same name, none of which can be compared"


def test_the_true_clip_is_at_no_distance_from_itself(home, scenes, tmp_path):
    # catches: frames or folders that are exchanged, a distance to another clip
    place = saved(tmp_path / "late", [np.concatenate([x[:5], x[4:-1]]) for x in film(scenes).numpy()], kind="gif")
    same, late = (run(one, tmp_path, truth=home / "true") for one in (home / "true", place))
    assert level(same, "mean:offset") == 0
    assert level(late, "mean:offset") > 0.5


@pytest.mark.parametrize("kind", ["points", "masks"])
def test_tracks_may_be_given(scenes, tmp_path, kind):
    # catches: pixels of the full size at 64 px, an object named by another's mask, frames counted from 1
    k, side = MANY // 2, 256
    place = saved(tmp_path / "clips", film(scenes)[:k] * 0 + 0.5, side=side)  # nothing is seen in them
    if kind == "points":
        p, r = (scenes.position[:k] + 0.5) * side / 64 - 0.5, scenes.radius[:k] * side / 64
        rows = [
            {"file": f"{b:02d}.mp4", "frame": t, "object": "ab"[o], "x": x, "y": y, "radius": r[b, o]}
            for (b, t, o), x, y in zip(np.ndindex(p.shape[:3]), p[..., 0].ravel(), p[..., 1].ravel(), strict=True)
        ]
        pl.DataFrame(rows).write_csv(tmp_path / "given.csv")
        given = tmp_path / "given.csv"
    else:
        import torch

        where, size = torch.as_tensor(scenes.position[:k]).float(), torch.as_tensor(scenes.radius[:k]).float()
        colour = torch.eye(3)[None, :2].expand(k, -1, -1)
        given = saved(tmp_path / "given", draw(where, size, colour, torch.zeros(k, 64, 64, 3)), kind="webm", side=side)
    result = run(place, tmp_path, tracks=given)
    found = clips_of(result)
    assert {row["objects"] for row in found.values()} == {2}
    assert level(result, "mean:newton") < 0.2
    assert math.isfinite(level(result, "mean:momentum_excess"))


@pytest.mark.parametrize("name", ["tracks.csv", "clips.csv"])
def test_columns_that_are_lacking_are_to_be_renamed(home, tmp_path, name):
    # catches: advice to pass an option that this verb does not have
    (shutil.copytree(home / "true", tmp_path / "clips") / "clips.csv").write_text("file\n00.mp4\n")
    place = tmp_path / ("clips" if name == "clips.csv" else "") / name
    place.write_text("name,frame,thing,x,y,radius\n00,0,a,1,2,3\n")
    with pytest.raises(InputError) as error:
        run(tmp_path / "clips", tmp_path, **({"tracks": place} if name == "tracks.csv" else {}))
    lacking = ["file", "object"][: 1 + (name == "tracks.csv")]
    assert error.value.todo == f"rename columns to {' and '.join(lacking)}"


def test_groups_and_scenes_come_from_folders_or_a_table(home, tmp_path):
    # catches: two futures of one scene that count as two, a group that is lost
    for name in ("true", "gone"):
        shutil.copytree(home / name, tmp_path / "clips" / name)
    summary = summary_of(run(tmp_path / "clips", tmp_path))
    groups = {x["group"]: x["n_units"] for x in summary["evidence"]["levels"] if x["statistic"] == "mean:newton:group"}
    assert groups == {"true": MANY, "gone": MANY}
    names = [f"{folder}/{i:02d}.mp4" for folder in ("true", "gone") for i in range(MANY)]
    rows = [{"file": name, "group": "all", "scene": name[-6:-4], "fps": 30} for name in names]
    pl.DataFrame(rows).write_csv(tmp_path / "clips" / "clips.csv")
    result = run(tmp_path / "clips", tmp_path)
    summary = summary_of(result)
    assert (summary["evidence"]["n_units"], summary["evidence"]["n_clusters"]) == (2 * MANY, MANY)
    assert {row["group"] for row in clips_of(result).values()} == {"all"}
    assert summary["audit"]["protocol"]["fps"] == "30"
