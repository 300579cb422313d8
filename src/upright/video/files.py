"""Reading and writing clips whose files nobody vouches for.

A clip is told by its first bytes, never by its name: mp4 or mov, webm or mkv, gif, .npy, or a folder of numbered
pictures. FFmpeg gets an open file and the name of one container format and is refused every other file, so that a
play list, a concat script or a reference inside a clip reaches neither the disk nor the network.

Sizes are read from the header before a frame is decoded, and counted again while frames come, since a header may lie.
Frames are decoded one by one on one thread and reduced as they come: memory holds what is returned and one full frame.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from upright.contract import InputError

__all__ = ["Caps", "Clip", "list_clips", "read_clip", "write_clip"]

_ACCEPTED = "mp4, mov, webm, mkv, gif, .npy (T, H, W, 3) or (T, H, W), or a folder of numbered png or jpg pictures"
_LISTED = re.compile(r"\.(mp4|m4v|mov|webm|mkv|gif|npy|avi|mpe?g|wmv|flv|ts|m3u8|webp|zip)", re.IGNORECASE)
_DEMUXERS = {b"\x1aE\xdf\xa3": "matroska", b"GIF8": "gif", **dict.fromkeys([b"ftyp", b"moov", b"mdat", b"free"], "mov")}
# threads for the pixels of one frame take longer to call than to work
_ALONE: dict[str, Any] = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
_CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    ".mp4": ("libx264", "yuv420p", {}),
    ".webm": ("libvpx-vp9", "yuv420p", {"b:v": "0", "deadline": "realtime", "cpu-used": "8"}),
    ".gif": ("gif", "pal8", {}),
    ".npy": ("", "", {}),
}
Frame = NDArray[np.uint8]
Place = str | os.PathLike[str]


class Caps(NamedTuple):
    """The most that is read of a clip; `bytes` holds of the file and of what is returned, `side` is in pixels."""

    pixels: int = 1920 * 1088
    frames: int = 3000
    seconds: float = 120.0
    bytes: int = 256 << 20
    side: int = 8192


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip as it was read.

    Parameters
    ----------
    frames : array of uint8, shape (T, H, W, 3)
        RGB, upright.
    fps : float or None
        Frames a second by the time stamps, a mean where they are uneven; None where there are none.
    name : str
        Below the root, where one was given; what cannot be printed is escaped.
    notes : tuple of str
        Rotation, alpha, depth, an uneven rate, missing frames.
    size : (int, int)
        Height and width before it was reduced.
    steady : bool
        Whether frames are even in time and none is known to be missing, as motion is measured from frame to frame.
    """

    frames: Frame
    fps: float | None
    name: str
    notes: tuple[str, ...]
    size: tuple[int, int]
    steady: bool


_CAPS = Caps()


def read_clip(
    path: Place, *, caps: Caps = _CAPS, root: Place | None = None, size: int | tuple[int, int] | None = None
) -> Clip:
    """Read a clip.

    Parameters
    ----------
    path : path
        Of a file, or of a folder of pictures. An array holds uint8, or floats in [0, 1].
    root : path, optional
        The folder that the clip lies in: a link that leads out of it is refused, and errors name the clip from there.
    size : int or (int, int), optional
        Height and width to reduce to by averaging areas, or the most of the longer side.

    Raises
    ------
    InputError
        For whatever cannot be read as a clip, or is larger than the caps; it names the clip without its folder.
    """
    place, notes, rates = Path(path), dict[str, bool](), list[float]()  # whether a note is of the clock
    name = _shown(place, root)
    try:
        _refuse_place(place, root)
        if place.is_dir():
            frames, full = _gather(_pictures(place, root or place, caps, notes), caps, size)
        else:
            with place.open("rb") as file:
                known = _demuxer(file, caps)
                source = _video(file, known, caps, notes, rates) if known else _array(file, caps)
                frames, full = _gather(source, caps, size)
    except InputError as error:
        raise InputError(f"{name}: {error.got}", error.accepted, error.todo) from None
    except Exception as error:  # whatever a decoder raises
        got = f"{name}: cannot be decoded ({type(error).__name__})"
        raise InputError(got, _ACCEPTED, "make it again, or leave it out") from None
    return Clip(frames, rates[0] if rates else None, name, tuple(notes), full, not any(notes.values()))


def _shown(place: Path, root: Place | None) -> str:
    """Return the name of a clip without what a terminal would obey."""
    whole, base = place.absolute(), Path(root or place.parent).absolute()
    name = whole.relative_to(base).as_posix() if whole != base and whole.is_relative_to(base) else whole.name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _refuse_place(place: Path, root: Place | None) -> None:
    if root is not None and not place.resolve().is_relative_to(Path(root).resolve()):
        raise InputError("a link out of the folder", "files inside it", "copy the file there")
    if not place.is_file() and not place.is_dir():  # a pipe would never end
        raise InputError("no such file or folder", _ACCEPTED, "correct the name")


def _refuse_size(caps: Caps, width: int, height: int, frames: int = 0, seconds: float = 0.0) -> None:
    if width * height > caps.pixels or max(width, height) > caps.side:
        accepted = f"at most {caps.pixels:,}, {caps.side:,} a side"
        raise InputError(f"{width} x {height} pixels", accepted, "save it smaller")
    if frames > caps.frames:
        raise InputError(f"more than {caps.frames:,} frames", f"at most {caps.frames:,}", "cut it")
    if seconds > caps.seconds:
        raise InputError(f"{seconds:.0f} s", f"at most {caps.seconds:g} s", "cut it")


def _demuxer(file: IO[bytes], caps: Caps) -> str:
    """Return FFmpeg's name for a file by its first bytes, "" for .npy; refuse what is no clip, large, or cut short."""
    head, end = file.read(512), file.seek(0, os.SEEK_END)
    demuxer = _DEMUXERS.get(head[:4]) or _DEMUXERS.get(head[4:8], "")
    if not demuxer and not head.startswith(b"\x93NUMPY"):
        got = "no clip by its first bytes" if head else "an empty file"
        raise InputError(got, _ACCEPTED, "convert it, or leave it out")
    if end > caps.bytes:
        raise InputError(f"a file of {end >> 20} MB", f"at most {caps.bytes >> 20} MB", "save it smaller")
    if not _is_whole(file, demuxer, head, end):
        raise InputError("a file that is cut short", "a whole one", "copy or make it again")
    file.seek(0)
    return demuxer


def _is_whole(file: IO[bytes], demuxer: str, head: bytes, end: int) -> bool:
    """Whether a file is as long as its outer parts say: boxes of mp4, the segment of webm, the last byte of a gif."""
    if demuxer == "gif":
        file.seek(max(0, end - 64))
        return file.read().rstrip(b"\0").endswith(b";")
    last, begin = 0, head.find(b"\x18S\x80g") + 4
    if demuxer == "matroska" and begin > 3:
        digits = 9 - head[begin].bit_length()  # of the length, as its first byte tells
        length = int.from_bytes(head[begin : begin + digits], "big") - (1 << 7 * digits)
        last = begin + digits + length if length + 1 < 1 << 7 * digits else 0  # all ones: not known
    for _ in range(100_000):
        if demuxer != "mov" or last >= end:
            break
        file.seek(last)
        length, long = struct.unpack(">IxxxxQ", file.read(16).ljust(16, b"\0"))
        last += max(8, long if length == 1 else length or end - last)
    return last <= end


def _gather(source: Iterable[Frame], caps: Caps, size: int | tuple[int, int] | None) -> tuple[Frame, tuple[int, int]]:
    """Return all frames in one array, reduced as they come, and the size that they had."""
    kept = list[Frame]()
    for frame in source:
        h, w = frame.shape[:2]
        _refuse_size(caps, w, h, len(kept) + 1)
        scale = min(1.0, size / max(h, w)) if isinstance(size, int) else 1.0
        to = size if isinstance(size, tuple) else (max(1, round(h * scale)), max(1, round(w * scale)))
        if to != (h, w):
            frame = cv2.resize(frame, to[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        if kept and frame.shape != kept[0].shape:
            raise InputError("frames of several sizes", "one size", "save them alike")
        kept.append(frame)
        if len(kept) * frame.nbytes > caps.bytes:
            accepted = f"at most {caps.bytes >> 20} MB of pixels"
            raise InputError("too many pixels in all", accepted, "cut it, or read it with a smaller size")
    if not kept:
        raise InputError("no frame", "a clip with frames", "make it again, or leave it out")
    return np.stack(kept), (h, w)


def _refuse_other_files(url: str, flags: int, options: Any) -> Any:
    raise PermissionError("a clip asks for another file")


def _video(file: IO[bytes], demuxer: str, caps: Caps, notes: dict[str, bool], rates: list[float]) -> Iterator[Frame]:
    """Yield the frames of a video upright and in RGB."""
    limit = {"max_pixels": str(caps.pixels)}  # FFmpeg's own, for a header that lies
    with av.open(file, "r", format=demuxer, options=limit, io_open=_refuse_other_files) as container:
        covers = av.stream.Disposition.attached_pic
        stream = next((one for one in container.streams.video if not one.disposition & covers), None)
        if stream is None:
            raise InputError("no moving picture in it", "a clip with frames", "leave it out")
        seconds = float((stream.duration or 0) * (stream.time_base or 0)) or (container.duration or 0) / av.time_base
        _refuse_size(caps, stream.width, stream.height, stream.frames, seconds)
        if stream.metadata.get("alpha_mode") == "1":  # a second picture, which is not decoded
            notes["alpha dropped"] = False
        times = list[float | None]()
        stream.codec_context.options, stream.codec_context.thread_count = limit, 1
        for count, packet in enumerate(container.demux(stream)):
            _refuse_size(caps, 1, 1, count // 2)  # packets without a picture cost as much
            for frame in packet.decode():
                times.append(frame.time)
                _refuse_size(caps, frame.width, frame.height, seconds=(frame.time or 0) - (times[0] or 0))
                if frame.is_corrupt:
                    raise InputError(f"frame {len(times) - 1} is damaged", "a whole clip", "make it again")
                yield _upright(frame, notes)
        if len(times) < stream.frames:
            notes[f"{len(times)} of the {stream.frames} frames of its header"] = True
        rates += _rate(times, stream.average_rate, notes)


def _upright(frame: av.VideoFrame, notes: dict[str, bool]) -> Frame:
    """Return the pixels of a frame in RGB as a player turns them."""
    parts = frame.format.components
    clear = any(part.is_alpha for part in parts)
    pixels: Any = frame.to_ndarray(format="rgba" if clear else "rgb24", **_ALONE)
    if clear and pixels[..., 3].min() < 255:
        notes["alpha dropped"] = False
    if (bits := max(part.bits for part in parts)) > 8:
        notes[f"{bits} bits a channel, read as 8"] = False
    if turn := round(frame.rotation / 90):
        notes[f"rotated by {90 * turn} degrees, as its metadata says"] = False
    return np.rot90(pixels[..., :3], turn)


def _rate(times: list[float | None], declared: Fraction | None, notes: dict[str, bool]) -> list[float]:
    """Return frames a second by the time stamps, as declared where that fits; note where they are uneven."""
    gaps = np.diff([math.nan if one is None else one for one in times])
    if not len(gaps):
        return []
    if not gaps.min() > 0:
        notes["no frame rate: its time stamps do not grow"] = True
        return []
    if gaps.max() - gaps.min() > 0.2 * np.median(gaps) + 0.02:  # a gif counts hundredths
        notes[f"variable rate, {gaps.min():.3g} to {gaps.max():.3g} s a frame: frames as they are"] = True
    rate = float(1.0 / gaps.mean())
    return [float(declared) if declared and abs(declared / rate - 1) < 0.02 else rate]


def _array(file: IO[bytes], caps: Caps) -> Iterator[Frame]:
    """Yield the frames of an .npy file, whose header is checked before anything is mapped."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, by_columns, kind = read[np.lib.format.read_magic(file)](file)
    accepted = "uint8, or floats in [0, 1], of shape (T, H, W, 3), or (T, H, W) where it is grey"
    depth = shape[3] if len(shape) == 4 else 1 if len(shape) == 3 and shape[2] > 4 else 0  # (H, W, 3) is a picture
    if depth not in (1, 3) or min(shape) < 1 or not (kind == np.uint8 or kind.kind == "f"):
        raise InputError(f"an array of {kind} of shape {shape}", accepted, "save it with its axes in that order")
    _refuse_size(caps, shape[2], shape[1], shape[0])
    for frame in np.memmap(file, kind, "r", file.tell(), shape, "F" if by_columns else "C"):
        if kind != np.uint8 and not (frame.min() >= 0 and frame.max() <= 1):  # NaN is in no range
            raise InputError(f"values from {frame.min():.3g} to {frame.max():.3g}", accepted, "see what made them")
        whole = np.array(frame if kind == np.uint8 else np.round(255 * frame), np.uint8)
        yield np.repeat(whole.reshape(*shape[1:3], depth), 3 // depth, 2)


def _number(place: Path) -> int:
    """Return the number at the end of a picture's name, -1 where there is none."""
    found = re.fullmatch(r".*?(\d{1,18})\.(png|jpe?g)", place.name, re.IGNORECASE | re.DOTALL)
    return int(found[1]) if found else -1


def _pictures(folder: Path, root: Place, caps: Caps, notes: dict[str, bool]) -> Iterator[Frame]:
    """Yield the numbered pictures of a folder in the order of their numbers."""
    places = sorted((place for place in folder.iterdir() if _number(place) >= 0), key=_number)
    _refuse_size(caps, 1, 1, len(places))
    if places and _number(places[-1]) - _number(places[0]) != len(places) - 1:
        notes["numbers of frames are missing or come twice"] = True
    for place in places:
        _refuse_place(place, root)
        with Image.open(place, formats=("PNG", "JPEG")) as picture:  # reads its header alone
            _refuse_size(caps, *picture.size)
            if "A" in picture.mode or "transparency" in picture.info:
                notes["alpha dropped"] = False
            if "exif" in picture.info and picture.getexif().get(274, 1) != 1:
                notes["rotated, as its metadata says"] = False
            if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut to white
                notes["16 bits a channel, read as 8"] = False
                yield np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[..., None], 3, 2)
            else:
                yield np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def list_clips(folder: Place) -> list[Path]:
    """Return the clips below a folder, sorted; a folder of numbered pictures alone is one clip.

    Videos that are not read are among them, so that reading names them. No link to a folder is followed. An
    `InputError` for what is no folder.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{_shown(Path(folder), None)}, which is no folder", "a folder of clips", "unpack or name one")
    found = list[Path]()
    for parent, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".")]
        files = [Path(parent, one) for one in names if not one.startswith(".")]
        clips = [one for one in files if _LISTED.fullmatch(one.suffix)]
        found += clips or [Path(parent)] * any(_number(one) >= 0 for one in files)
    return sorted(found)


def write_clip(path: Place, clip: Any, fps: float = 15.0, *, crf: int = 23) -> None:
    """Write a clip as .mp4 (H.264, 4:2:0), .webm (VP9), .gif (one palette of 256 colours) or .npy.

    Parameters
    ----------
    clip : array or tensor, shape (T, H, W, 3)
        uint8, or floats in [0, 1]; .mp4 and .webm take even sides. An `InputError` for anything else.
    crf : int
        Of .mp4 and .webm; larger is worse.
    """
    place, frames = Path(path), np.asarray(clip)
    fits = frames.ndim == 4 and frames.shape[-1] == 3 and frames.size and place.suffix in _CODECS and fps > 0
    if not fits or (place.suffix in (".mp4", ".webm") and any(n % 2 for n in frames.shape[1:3])):
        got = f"a clip of shape {frames.shape} for {_shown(place, None)} at {fps} fps"
        raise InputError(got, "(T, H, W, 3) for .mp4 or .webm (even sides), .gif or .npy", "correct it")
    if frames.dtype != np.uint8:
        if not (frames.min() >= 0 and frames.max() <= 1):
            got = f"values from {frames.min()} to {frames.max()}"
            raise InputError(got, "uint8, or floats in [0, 1]", "scale them")
        frames = np.round(255 * frames).astype(np.uint8)
    if place.suffix == ".npy":
        np.save(place, frames)
        return
    codec, pixels, options = _CODECS[place.suffix]
    with place.open("wb") as file, av.open(file, "w", format=place.suffix[1:]) as out:
        stream: Any = out.add_stream(codec, Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.options = options | ({} if codec == "gif" else {"crf": str(crf)})
        stream.codec_context.thread_count = 1
        for frame in _paletted(frames) if codec == "gif" else frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "pal8" if codec == "gif" else "rgb24")))
        out.mux(stream.encode())


def _paletted(frames: Frame) -> Iterator[Any]:
    """Yield the pixels of each frame as places in one palette, with it."""
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 16)])).quantize(256)
    own = np.asarray(palette.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours = np.full((256, 4), 255, np.uint8)
    colours[: len(own), 1:] = own
    for frame in frames:
        yield np.asarray(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)), colours
