r"""Read what stands in a picture: decoded under caps, read by a process of its own, remembered by its bytes.

    data: URL -> bytes -> picture (size and frames from the header, then pixels) -> grey, upright -> engine -> text

All of it is given by strangers: what makes a decoder slow or large is counted before a pixel is decoded, and the
engine sees no byte that was sent. Tesseract finds the layout by itself; told of one column, it mixes the lines of two.
Not read: print as light as its ground, whatever its colour; letters below some 9 px in pictures whose shorter side
has 1,600 px or more; scripts that the engine's English model does not know.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import islice
from typing import Literal

from PIL import Image, ImageOps

from upright.contract import Config, InputError, PositiveInt
from upright.guard.pages import to_grey

__all__ = ["Caps", "Reader", "decode_data_url", "default_engine", "open_picture"]

Engine = Literal["auto", "tesseract", "rapidocr"]
_KINDS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP", b"GIF8": "GIF", b"BM": "BMP"}
_FORMATS = "PNG, JPEG, WebP, GIF or BMP"
_PARTS, _SCANS, _GIF = 1 << 16, 100, 2 << 20  # most parts of a file, scans of a JPEG, and bytes of a GIF
_SMALL = 1600  # px of the shorter side below which print is taken to be small
_INSTALL = "apt-get install tesseract-ocr tesseract-ocr-eng, or pip install 'upright[guard-ocr]'"
_RAPIDOCR = """
import sys
from rapidocr import RapidOCR
threads = {f"EngineConfig.onnxruntime.{one}_op_num_threads": 1 for one in ("intra", "inter")}
found = RapidOCR(params={"Global.log_level": "error", **threads})(sys.stdin.buffer.read())
sys.stdout.buffer.write("\\n".join(found.txts or ()).encode())
"""
_COMMANDS = {  # several threads spin more than they read
    "tesseract": ["env", "OMP_THREAD_LIMIT=1", "tesseract", "stdin", "stdout", "-l", "eng", "--psm", "3"],
    "rapidocr": [sys.executable, "-c", _RAPIDOCR],
}


class Caps(Config):
    """The most that one picture may be: bytes as sent, pixels, frames (the first is read), characters read."""

    bytes: PositiveInt = 20 << 20
    pixels: PositiveInt = 1 << 25
    frames: PositiveInt = 1
    text: PositiveInt = 200_000


_CAPS = Caps()


def decode_data_url(url: str, caps: Caps) -> bytes:
    """Return the bytes of ``data:image/...;base64,...``; an `InputError`, without the address, for any other."""
    todo = "load the picture yourself, and send it as a data: URL"
    start = re.match("data:image/[a-z0-9.+-]{1,40};base64,", url, re.IGNORECASE)
    if start is None:
        scheme = re.match(r"https?:|ftp:|file:|data:", url, re.IGNORECASE)
        got = f"a picture at {f'a {scheme[0].lower()}' if scheme else 'some other'} address"
        raise InputError(got, "data:image/...;base64,...: nothing is fetched", todo)
    if len(url) - start.end() > -(-caps.bytes // 3) * 4:
        raise _too_much("bytes", caps)
    with suppress(ValueError):
        if (len(url) - start.end()) % 4 == 0 and not url.endswith("==="):  # which Python's decoder passes over
            return base64.b64decode(url[start.end() :], validate=True)
    raise InputError("a picture in malformed base64", "A-Z, a-z, 0-9, + and /, padded with =", todo)


def open_picture(data: bytes, caps: Caps) -> Image.Image:
    """Decode a picture as it is seen, in grey (mode ``"L"``): its first frame, turned as its EXIF data say.

    An `InputError` for what is empty, above a cap, of another format, slow to unpack, or damaged.
    """
    if len(data) > caps.bytes:
        raise _too_much("bytes", caps)
    kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        got = "a picture of another format" if data else "an empty picture"
        raise InputError(got, _FORMATS, "save it as PNG; SVG, PDF and other text must be drawn first")
    if _is_slow(data, kind):
        accepted = f"{_PARTS:,} parts, {_SCANS} scans, a GIF of {_GIF >> 20} MB at most, no BMP of run lengths"
        raise InputError("a picture that is slow to unpack", accepted, "save it as PNG")
    try:
        picture = Image.open(io.BytesIO(data), formats=[kind])  # its header alone
        if picture.width * picture.height > caps.pixels:
            raise Image.DecompressionBombError
        with suppress(EOFError):  # no such frame; further pictures in a JPEG, as of phones, are what no viewer shows
            picture.seek(caps.frames if kind != "JPEG" else 1 << 30)
            raise _too_much("frames", caps)
        picture.draft("L", None)  # a JPEG need not be decoded in colour
        picture.load()
        with suppress(Exception):  # EXIF data that cannot be read turn nothing, as in a viewer
            ImageOps.exif_transpose(picture, in_place=True)
        return to_grey(picture)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_much("pixels", caps) from None
    except Exception as error:  # whatever a decoder raises
        large = " with more than 1 MB of metadata" if "MAX_TEXT" in str(error) else ""  # Pillow's cap, once unpacked
        raise InputError(f"a damaged picture{large}", _FORMATS, "save it again, without metadata") from None


def _too_much(name: str, caps: Caps) -> InputError:
    got, accepted = f"a picture of more {name} than is read", f"{name} up to {getattr(caps, name):,}"
    return InputError(got, accepted, "send it smaller, or in parts")


def _is_slow(data: bytes, kind: str) -> bool:
    """Whether Pillow goes through a file in Python for long, or many times over its pixels."""
    if kind == "JPEG":
        parts = sum(1 for _ in islice(re.finditer(rb"\xff[\xc0-\xcf\xd8-\xfe]", data), _PARTS + 1))
        return parts > _PARTS or data.count(b"\xff\xda") > _SCANS
    at, parts = 8, 0
    while kind == "PNG" and at < len(data) and parts <= _PARTS:
        at, parts = at + 12 + int.from_bytes(data[at : at + 4], "big"), parts + 1
    runs = kind == "BMP" and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    return parts > _PARTS or runs or (kind == "GIF" and len(data) > _GIF)


def default_engine() -> Literal["tesseract", "rapidocr"] | None:
    """Return what ``"auto"`` means here: Tesseract where the program is found, RapidOCR where it can be imported."""
    packages = all(map(importlib.util.find_spec, ("rapidocr", "onnxruntime")))
    return "tesseract" if shutil.which("tesseract") else "rapidocr" if packages else None


class Reader(AbstractContextManager["Reader"]):
    """Read pictures: at most `workers` at once, each by a process of one thread that ends within `timeout` seconds.

    The same bytes are read once for each `whose`; `cache` texts are kept by SHA-256, the least recently used go first.
    A call takes at most twice `timeout`, its wait for its turn included. An `InputError` where no engine is found.
    """

    def __init__(
        self, *, engine: Engine = "auto", workers: int = 1, cache: int = 1024, timeout: float = 30, caps: Caps = _CAPS
    ) -> None:
        if min(workers, cache) < 1 or not timeout > 0:
            raise InputError(f"workers={workers}, cache={cache}, timeout={timeout}", "numbers above 0", "correct them")
        command = _COMMANDS.get(engine if engine != "auto" else default_engine() or "")
        if command is None:
            raise InputError(f"no program that reads pictures ({engine})", "tesseract or rapidocr", _INSTALL)
        self._command, self._caps, self._cache, self._limit = command, caps, cache, timeout
        self._pool, self._lock, self._closed = ThreadPoolExecutor(workers), threading.Lock(), False
        self._texts: OrderedDict[tuple[str, bytes], Future[str]] = OrderedDict()

    def read(self, data: bytes, whose: str = "") -> str:
        """Return the text in a picture, empty where there is none; an `InputError` where it is not read in time.

        What was read for one tenant, `whose`, is not kept for another: not even the time it takes tells of it.
        """
        key = (whose, hashlib.sha256(data).digest())
        with self._lock:
            if self._closed:
                raise InputError("a picture for a reader that was closed", "an open one", "make another")
            found = self._texts.get(key) or self._texts.setdefault(key, self._pool.submit(self._read_new, data))
            self._texts.move_to_end(key)
            if len(self._texts) > self._cache:
                self._texts.popitem(last=False)
        try:
            return found.result(2 * self._limit)
        except Exception as error:
            with self._lock:
                if self._texts.get(key) is found:
                    del self._texts[key]  # it may be read another time
            found.cancel()
            if isinstance(error, TimeoutError | subprocess.TimeoutExpired | CancelledError):
                got, accepted = f"a picture not read within {self._limit:g} s", "less print, or fewer at once"
                raise InputError(got, accepted, "send it in parts, or later") from None
            if isinstance(error, OSError | subprocess.CalledProcessError):
                raise InputError("an engine that fails", "one that runs, with its English model", _INSTALL) from None
            raise

    def close(self, *_: object) -> None:
        """Read no more; what is being read is ended by its own time."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    __exit__ = close

    def _read_new(self, data: bytes) -> str:
        picture, pgm = open_picture(data, self._caps), io.BytesIO()
        if min(picture.size) < _SMALL and 4 * picture.width * picture.height <= self._caps.pixels:
            picture = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS)
        picture.save(pgm, "PPM")
        run = subprocess.run(self._command, input=pgm.getvalue(), capture_output=True, timeout=self._limit, check=True)
        text = run.stdout.decode(errors="replace").replace("\f", "").strip()
        if len(text) > self._caps.text:
            raise _too_much("text", self._caps)
        return text
