"""Clips on disk: what comes back, what is refused before it costs anything, and in which words."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from upright.contract import InputError
from upright.video.files import Caps, list_clips, read_clip, write_clip

KINDS = "mp4, mov, webm, mkv, gif, .npy (T, H, W, 3) or (T, H, W), or a folder of numbered png or jpg pictures"
VALUES = "uint8, or floats in [0, 1], of shape (T, H, W, 3), or (T, H, W) where it is grey"


def moving(side=32, frames=8):
    clip = np.full((frames, side, side, 3), 200, np.uint8)
    for t in range(frames):
        clip[t, side // 4 : side // 2, side // 16 + t * side // 32 : side // 4 + t * side // 32] = 250, 10, 30
    return clip


def video(path, clip, codec="libx264", pixels="yuv420p", *, rate=15, times=None, **options):
    """Write a clip as FFmpeg can and `write_clip` does not."""
    name = {".mkv": "matroska"}.get(path.suffix, path.suffix[1:])
    with path.open("wb") as file, av.open(file, "w", format=name, options=options) as out:
        stream = out.add_stream(codec, rate)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], pixels
        for i, one in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(one, "rgba" if one.shape[2] == 4 else "rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def turned(path):
    """Put a matrix into the header that turns the picture by 90 degrees, against the clock."""
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    path.write_bytes(data[:at] + struct.pack(">9i", 0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 0, 1 << 30) + data[at + 36 :])


def packets(path, data):
    """Write pictures as they are, whatever the header says of 64 x 64 pixels."""
    with path.open("wb") as file, av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("mjpeg", 15, width=64, height=64, pix_fmt="yuvj420p")
        for i, one in enumerate(data):
            packet = av.Packet(one)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 15)
            out.mux(packet)


def jpeg(side):
    held = io.BytesIO()
    Image.new("RGB", (side, side), (9, 9, 9)).save(held, "JPEG")
    return held.getvalue()


def saved(array):
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def header_of(shape):
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return held.getvalue() + bytes(64)


def long_gif(frames):
    one = b"\x21\xf9\x04\x00\x05\x00\x00\x00\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1024, 1024, 0x80, 0, 0) + bytes(6) + one * frames + b";"


def sound(path):
    with path.open("wb") as file, av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("aac", 16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def spoilt(data):
    place = data.index(b"mdat") + 720
    return data[:place] + bytes(one ^ 0x5A for one in data[place : place + 60]) + data[place + 60 :]


def refused(path, **more):
    with pytest.raises(InputError) as error:
        read_clip(path, **more)
    return error.value.args


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good file of each kind, as bytes; `fast`: an mp4 whose header comes first."""
    place = tmp_path_factory.mktemp("whole")
    for kind in ("mp4", "webm", "gif", "npy"):
        write_clip(place / f"a.{kind}", moving())
    video(place / "fast.mp4", moving(), movflags="faststart")
    return {path.name.removeprefix("a."): path.read_bytes() for path in place.iterdir()}


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "npy"])
def test_what_was_written_comes_back(whole, tmp_path, kind):
    # catches: BGR for RGB, a frame lost at the end or twice, a rate rounded to hundredths, a kind told by its name
    (tmp_path / "b.mp4").write_bytes(whole[kind])
    clip = read_clip(tmp_path / "b.mp4")
    assert clip.frames.shape == (8, 32, 32, 3)
    assert np.abs(clip.frames.astype(int) - moving()).mean() < (3 if kind in ("mp4", "webm") else 1e-9)
    assert (clip.fps, clip.name, clip.notes) == (None if kind == "npy" else pytest.approx(15, rel=0.01), "b.mp4", ())


def test_still_frames_and_floats_are_kept(tmp_path):
    # catches: equal frames merged into one, floats cut instead of rounded
    for suffix in (".gif", ".mp4", ".webm", ".npy"):
        write_clip(tmp_path / f"a{suffix}", np.full((6, 16, 16, 3), 0.5), 29.97)
        clip = read_clip(tmp_path / f"a{suffix}")
        assert len(clip.frames) == 6
        assert abs(clip.frames.astype(int) - 128).max() <= 2
    assert np.unique(clip.frames).tolist() == [128]


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_reduced_by_the_mean_of_areas_and_never_enlarged(tmp_path, seed):
    # catches: nearest or bilinear samples, height and width exchanged, squares made of wide pictures
    rng = np.random.default_rng(seed)
    t, h, w, a, b = rng.integers(1, 6, 5).tolist()
    clip = rng.integers(0, 256, (t, a * h, b * w, 3), dtype=np.uint8)
    write_clip(tmp_path / "a.npy", clip)
    found = read_clip(tmp_path / "a.npy", size=(h, w)).frames
    assert np.abs(found - clip.reshape(t, h, a, w, b, 3).mean((2, 4))).max() <= 0.5 + 1e-6
    sides, shape = np.array([a * h, b * w]), read_clip(tmp_path / "a.npy", size=4).frames.shape[1:3]
    assert np.abs(shape - np.maximum(sides * min(1, 4 / sides.max()), 1)).max() <= 0.5


@pytest.mark.parametrize("shape", [(6, 8, 12), (6, 8, 12, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_grey_arrays_are_read_as_equal_channels(tmp_path, shape, kind):
    # catches: grey that is refused, or is spread over the columns
    grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", grey if kind == np.uint8 else np.asfortranarray(grey / 255, kind))
    found = read_clip(tmp_path / "a.npy").frames
    assert np.array_equal(found, np.repeat(grey.reshape(6, 8, 12, 1), 3, 3))


FIRST, CUT, TYPE = ("no clip by its first bytes", KINDS), ("a file that is cut short", "a whole one"), "an array of "
BAD = {
    "empty.mp4": (lambda good: b"", "an empty file", KINDS),
    "text.mp4": (lambda good: b"no clip at all\n" * 9, *FIRST),
    "concat.mp4": (lambda good: b"ffconcat version 1.0\nfile good.mp4\n", *FIRST),
    "list.mp4": (lambda good: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a\n", *FIRST),
    "picture.mp4": (lambda good: jpeg(16), *FIRST),
    "zipped.npy": (lambda good: b"PK\x03\x04" + bytes(99), *FIRST),
    "pickled.npy": (lambda good: pickle.dumps(moving()), *FIRST),
    "script.mp4": (lambda good: b"#EXTftyp\nfile good.mp4\n" * 9, *CUT),
    "cut.mp4": (lambda good: good["mp4"][:-300], *CUT),
    "cut-late.mp4": (lambda good: good["fast.mp4"][:-30], *CUT),
    "cut.webm": (lambda good: good["webm"][:-30], *CUT),
    "cut.gif": (lambda good: good["gif"][:-30], *CUT),
    "cut.npy": (lambda good: good["npy"][:-1], "cannot be decoded (ValueError)", KINDS),
    "head.npy": (lambda good: good["npy"][:9], "cannot be decoded (ValueError)", KINDS),
    "damaged.mp4": (lambda good: spoilt(good["mp4"]), "cannot be decoded (InvalidDataError)", KINDS),
    "long.gif": (lambda good: long_gif(100_000), "more than 3,000 frames", "at most 3,000"),
    "object.npy": (lambda good: saved(np.full((2, 4, 4, 3), None)), f"{TYPE}object of shape (2, 4, 4, 3)", VALUES),
    "nan.npy": (lambda good: saved(np.full((2, 4, 4, 3), np.nan)), "values from nan to nan", VALUES),
    "inf.npy": (lambda good: saved(np.full((2, 4, 4, 3), np.inf)), "values from inf to inf", VALUES),
    "bytes.npy": (lambda good: saved(np.full((2, 4, 4, 3), 255.0)), "values from 255 to 255", VALUES),
    "whole.npy": (lambda good: saved(np.zeros((2, 4, 4, 3), int)), f"{TYPE}int64 of shape (2, 4, 4, 3)", VALUES),
    "flat.npy": (lambda good: saved(np.zeros((4, 4, 3), np.uint8)), f"{TYPE}uint8 of shape (4, 4, 3)", VALUES),
    "first.npy": (lambda good: saved(np.zeros((2, 3, 4, 4))), f"{TYPE}float64 of shape (2, 3, 4, 4)", VALUES),
    "none.npy": (lambda good: saved(np.zeros((0, 4, 4, 3))), f"{TYPE}float64 of shape (0, 4, 4, 3)", VALUES),
    "less.npy": (lambda good: header_of((-9, 4, 4, 3)), f"{TYPE}uint8 of shape (-9, 4, 4, 3)", VALUES),
    "huge.npy": (lambda good: header_of((2**40, 64, 64, 3)), "more than 3,000 frames", "at most 3,000"),
    "wide.npy": (lambda good: header_of((9, 4096, 4096, 3)), "4096 x 4096 pixels", "at most 2,088,960, 8,192 a side"),
    "thin.npy": (lambda good: header_of((9, 1, 9999, 3)), "9999 x 1 pixels", "at most 2,088,960, 8,192 a side"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_three_parts(whole, tmp_path, name):
    # catches: a bare traceback of a decoder, a path of this machine in a message, an array that is unpickled or mapped
    make, got, accepted = BAD[name]
    (tmp_path / name).write_bytes(make(whole))
    said = refused(tmp_path / name, root=tmp_path)
    assert said[:2] == (f"{name}: {got}", accepted)
    assert said[2]
    assert str(tmp_path) not in str(said)


def test_a_large_picture_is_refused_by_its_header(tmp_path):
    # catches: a clip of a few kB that takes gigabytes
    video(tmp_path / "large.mp4", np.zeros((3, 4096, 4096, 3), np.uint8))
    assert (tmp_path / "large.mp4").stat().st_size < 7_000
    assert refused(tmp_path / "large.mp4")[0] == "large.mp4: 4096 x 4096 pixels"
    video(tmp_path / "slow.mp4", moving(), rate=Fraction(1, 60))
    assert refused(tmp_path / "slow.mp4") == ("slow.mp4: 480 s", "at most 120 s", "cut it")
    video(tmp_path / "many.mp4", moving())
    assert refused(tmp_path / "many.mp4", caps=Caps(frames=7))[0] == "many.mp4: more than 7 frames"
    assert refused(tmp_path / "many.mp4", caps=Caps(bytes=9000))[0] == "many.mp4: too many pixels in all"
    assert len(read_clip(tmp_path / "many.mp4", caps=Caps(bytes=9000), size=16).frames) == 8


def test_a_header_that_lies_does_not_help(whole, tmp_path):
    # catches: caps that are held to the header alone
    packets(tmp_path / "wide.mkv", [jpeg(64), jpeg(64), jpeg(4096)])
    name = "ArgumentError" if int(av.__version__.partition(".")[0]) >= 17 else "ValueError"  # as PyAV has it
    assert refused(tmp_path / "wide.mkv")[0] == f"wide.mkv: cannot be decoded ({name})"
    packets(tmp_path / "many.mkv", [jpeg(64)] * 9)
    assert refused(tmp_path / "many.mkv", caps=Caps(frames=8))[0] == "many.mkv: more than 8 frames"
    assert refused(tmp_path / "many.mkv", caps=Caps(seconds=0.4))[0] == "many.mkv: 1 s"
    packets(tmp_path / "two.mkv", [jpeg(64), jpeg(32)])
    assert refused(tmp_path / "two.mkv")[0] == "two.mkv: frames of several sizes"


def test_memory_holds_what_is_returned_and_one_frame(tmp_path):
    # catches: all frames kept in full before they are reduced
    write_clip(tmp_path / "a.mp4", np.repeat(moving(512, 4), 10, 0))
    tracemalloc.start()
    clip = read_clip(tmp_path / "a.mp4", size=32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.frames.shape == (40, 32, 32, 3)
    assert peak < 4 * 512 * 512 * 3


CLEAR = np.concatenate([moving(), np.full((8, 32, 32, 1), 90, np.uint8)], 3)
UNEVEN = ([0, 66, 133, 400, 466, 533, 600, 666], "variable rate, 0.0667 to 0.267 s a frame: frames as they are")
NOTED = {
    "turned.mp4": (lambda p: turned(video(p, moving())), ["rotated by 90 degrees, as its metadata says"]),
    "deep.mp4": (lambda p: video(p, moving(), pixels="yuv420p10le"), ["10 bits a channel, read as 8"]),
    "grey.mkv": (lambda p: video(p, moving(), "ffv1", "gray"), []),
    "clear.mov": (lambda p: video(p, CLEAR, "png", "rgba"), ["alpha dropped"]),
    "clear.webm": (lambda p: video(p, CLEAR, "libvpx-vp9", "yuva420p"), ["alpha dropped"]),
    "uneven.mp4": (lambda p: video(p, moving(), times=UNEVEN[0]), [UNEVEN[1]]),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_a_reader_should_know_is_noted(tmp_path, name):
    # catches: a clip on its side, ten bits read as sixteen, half a clip at another speed
    make, notes = NOTED[name]
    make(tmp_path / name)
    clip = read_clip(tmp_path / name)
    assert list(clip.notes) == notes
    assert clip.frames.shape == (8, 32, 32, 3)
    assert clip.fps == pytest.approx(10.5 if name == "uneven.mp4" else 15)
    wanted = np.rot90(moving(), axes=(1, 2)) if name == "turned.mp4" else moving()
    wanted = np.asarray([cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in wanted])
    got = np.asarray([cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in clip.frames])
    assert np.abs(got.astype(int) - wanted).mean() < 3
    assert read_clip(tmp_path / name, size=(16, 8)).frames.shape == (8, 16, 8, 3)


def test_a_clip_without_a_rate_has_none(whole, tmp_path):
    # catches: a division by zero, an invented rate
    data = whole["fast.mp4"]
    place = data.index(b"stts") + 16
    (tmp_path / "zero.mp4").write_bytes(data[:place] + bytes(4) + data[place + 4 :])
    clip = read_clip(tmp_path / "zero.mp4")
    assert (clip.fps, clip.notes[-1]) == (None, "no frame rate: its time stamps do not grow")
    assert clip.notes[0] == f"{len(clip.frames)} of the 8 frames of its header"
    video(tmp_path / "one.mp4", moving()[:1])
    clip = read_clip(tmp_path / "one.mp4")
    assert (len(clip.frames), clip.fps) == (1, None)
    sound(tmp_path / "sound.mp4")
    assert refused(tmp_path / "sound.mp4")[0] == "sound.mp4: no moving picture in it"


def outward(data):
    """An mp4 whose frames are all zeros, with a Macintosh alias to good.mp4 beside it as the place of its data."""
    name = b"/x/good.mp4"
    body = bytes(10) + b"\x01x" + bytes(26 + 12 + 64 + 16) + struct.pack(">HH", 1, 1) + bytes(16)
    body += struct.pack(">HH", 2, len(name) + 1) + name + b"\0" + b"\xff\xff\0\0"
    alias = struct.pack(">I4sI", 12 + len(body), b"alis", 0) + body
    place = data.index(b"url ") - 4
    data = data[:place] + alias + data[place + 12 :]
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.index(box) - 4
        (length,) = struct.unpack(">I", data[at : at + 4])
        data = data[:at] + struct.pack(">I", length + len(alias) - 12) + data[at + 4 :]
    at = data.index(b"mdat")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    return data[: at + 4] + bytes(length - 8) + data[at + length - 4 :]


def test_a_clip_cannot_read_another_file(whole, tmp_path):
    # catches: a reference that is followed out of the clip; the first half shows that this one can be
    (tmp_path / "good.mp4").write_bytes(whole["mp4"])
    (tmp_path / "outward.mp4").write_bytes(outward(whole["mp4"]))
    with av.open(str(tmp_path / "outward.mp4"), options={"enable_drefs": "1"}) as followed:
        assert len(list(followed.decode(video=0))) == 8
    assert refused(tmp_path / "outward.mp4")[0] == "outward.mp4: no frame"


def test_links_out_of_the_folder_and_pipes_are_refused(whole, tmp_path):
    # catches: a file from elsewhere in an audit, a pipe that never ends
    inside, outside = tmp_path / "in", tmp_path / "out"
    for place in (inside, outside, inside / "frames"):
        place.mkdir()
    (outside / "good.mp4").write_bytes(whole["mp4"])
    (outside / "001.png").write_bytes(b"")
    (inside / "a.mp4").symlink_to(outside / "good.mp4")
    (inside / "frames" / "1.png").symlink_to(outside / "001.png")
    (inside / "b.mp4").symlink_to(inside / "b.mp4")
    os.mkfifo(inside / "c.mp4")
    said = refused(inside / "a.mp4", root=inside)
    assert said == ("a.mp4: a link out of the folder", "files inside it", "copy the file there")
    assert refused(inside / "frames", root=inside)[0] == "frames: a link out of the folder"
    assert refused(inside / "frames")[0] == "frames: a link out of the folder"
    assert refused(inside / "b.mp4")[0].startswith("b.mp4: ")
    assert refused(inside / "c.mp4")[0] == "c.mp4: no such file or folder"
    assert len(read_clip(inside / "a.mp4").frames) == 8


def test_a_name_cannot_write_to_the_terminal(tmp_path):
    # catches: a second line in a report, a colour code that is obeyed
    bad = tmp_path / "a\nb\x1b[31m.mp4"
    bad.write_bytes(b"")
    assert refused(bad, root=tmp_path)[0] == "a\\nb\\x1b[31m.mp4: an empty file"
    (tmp_path / "é\udcff.npy").write_bytes(saved(moving()))
    assert read_clip(tmp_path / "é\udcff.npy").name == "é\\udcff.npy"


def test_a_folder_of_pictures_is_one_clip_in_the_order_of_its_numbers(tmp_path):
    # catches: 10 before 9, a picture of sixteen bits cut to white, a missing frame that nobody hears of
    place = tmp_path / "clips" / "frames"
    place.mkdir(parents=True)
    clip = moving(frames=4)
    for number, one in zip((8, 9, 10, 12), clip, strict=True):
        Image.fromarray(one).save(place / f"frame_{number}.png")
    write_clip(tmp_path / "clips" / "a.mp4", clip)
    (tmp_path / "clips" / "notes.txt").write_text("x")
    (tmp_path / "clips" / "old.avi").write_text("x")
    assert [one.name for one in list_clips(tmp_path / "clips")] == ["a.mp4", "frames", "old.avi"]
    found = read_clip(place, root=tmp_path)
    assert np.array_equal(found.frames, clip)
    assert (found.fps, found.name) == (None, "clips/frames")
    assert found.notes == ("numbers of frames are missing or come twice",)
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(place / "frame_11.png")
    found = read_clip(place)
    assert found.notes == ("16 bits a channel, read as 8",)
    assert np.unique(found.frames[3]).tolist() == [40_000 >> 8]
    (place / "frame_13.png").write_bytes((place / "frame_8.png").read_bytes()[:90])
    assert refused(place)[0] == "frames: cannot be decoded (OSError)"
    (place / "frame_13.png").write_bytes(b"P6 9 9 255")
    assert refused(place)[0] == "frames: cannot be decoded (UnidentifiedImageError)"


def test_what_is_no_folder_or_cannot_be_written_is_refused(tmp_path):
    # catches: a zip that is taken for an empty folder, a file of noise or of another shape
    (tmp_path / "clips.zip").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(InputError) as error:
        list_clips(tmp_path / "clips.zip")
    assert error.value.got == "clips.zip, which is no folder"
    (tmp_path / "none").mkdir()
    assert list_clips(tmp_path / "none") == []
    assert refused(tmp_path / "none")[0] == "none: no frame"
    for name, clip in {"a.avi": moving(), "odd.mp4": moving(15), "a.mp4": moving()[0], "a.gif": moving() / 1.0}.items():
        with pytest.raises(InputError):
            write_clip(tmp_path / name, clip)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("kind", ["mp4", "fast.mp4", "webm", "gif", "npy"])
def test_bytes_that_were_changed_are_read_or_refused(whole, tmp_path, kind):
    # catches: any other exception, or no answer at all
    answers = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        data = bytearray(whole[kind])
        for place in rng.integers(0, len(data), rng.integers(1, 12)):
            data[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(data[: len(data) if seed % 2 else int(rng.integers(len(data)))])
        try:
            answers.add(read_clip(tmp_path / "a").frames.ndim)
        except InputError as error:
            answers.add(error.got[:3])
    assert answers == {4, "a: "}
