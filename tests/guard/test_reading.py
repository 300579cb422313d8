"""Reading: bad pictures and addresses in exact words, pictures as they are seen, one engine for the same bytes."""

from __future__ import annotations

import base64
import io
import os
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from importlib.util import find_spec
from shutil import which

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from upright.contract import InputError
from upright.guard import reading
from upright.guard.pages import Look, draw_page, encode_page
from upright.guard.reading import Caps, Reader, decode_data_url, default_engine, open_picture

NOTICE = "Copyright © 2021 by Jane Q. Example. All rights reserved."
TEXT = "The miller woke before the bell and walked down to the water, where the wheel stood still. " * 3
FORMATS = "PNG, JPEG, WebP, GIF or BMP"
EMPTY = f"an empty picture|{FORMATS}|save it as PNG; SVG, PDF and other text must be drawn first"
OTHER = EMPTY.replace("an empty picture", "a picture of another format")
DAMAGED = f"a damaged picture|{FORMATS}|save it again, without metadata"
METADATA = DAMAGED.replace("|", " with more than 1 MB of metadata|", 1)
PARTS = "65,536 parts, 100 scans, a GIF of 2 MB at most, no BMP of run lengths"
SLOW = f"a picture that is slow to unpack|{PARTS}|save it as PNG"
LOAD = "load the picture yourself, and send it as a data: URL"
BASE64 = f"a picture in malformed base64|A-Z, a-z, 0-9, + and /, padded with =|{LOAD}"


def more(name, cap):
    return f"a picture of more {name} than is read|{name} up to {cap}|send it smaller, or in parts"


def refuses(said, call, *given):
    with pytest.raises(InputError) as error:
        call(*given)
    assert "|".join(error.value.args) == said


def saved(image, kind, **how):
    written = io.BytesIO()
    image.save(written, kind, **how)
    return written.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size, *parts):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(parts) + chunk(b"IDAT", zlib.compress(b"\0" * 90)) + chunk(b"IEND")


RGB, BOMB = Image.new("RGB", (40, 30), (200, 10, 10)), zlib.compress(b"\0" * (20 << 20))
GIF, JPEG, BMP = saved(Image.new("L", (8, 8)), "GIF"), saved(RGB, "JPEG"), saved(Image.new("P", (8, 8)), "BMP")
WEBP = b"RIFF\x22\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0" * 4 + b"\x5f\xea\0" * 2 + b"VP8L\4\0\0\0\0\0\0\0"
MOVES = {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]}
BAD = {
    "empty": (b"", EMPTY),
    "too many bytes": (b"\0" * 4_000_001, more("bytes", "4,000,000")),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", OTHER),
    "tiff": (saved(RGB, "TIFF"), OTHER),
    "60,000 x 60,000": (png(60_000), more("pixels", "33,554,432")),
    "10,000 x 10,000": (png(10_000), more("pixels", "33,554,432")),  # Pillow warns, and goes on
    "webp of 60,000 x 60,000": (WEBP, more("pixels", "33,554,432")),
    "gif of 10,000 frames": (GIF[:-1] + GIF[GIF.rindex(b",") : -1] * 9_999 + b";", more("frames", "1")),
    "animated png": (saved(RGB, "PNG", **MOVES), more("frames", "1")),
    "animated webp": (saved(RGB, "WEBP", **MOVES), more("frames", "1")),
    "cut jpeg": (JPEG[:-40], DAMAGED),
    "cut gif": (GIF[:20], DAMAGED),
    "sound": (b"RIFF" + b"\0" * 40, DAMAGED),
    "iCCP": (png(9, chunk(b"iCCP", b"x\0\0" + BOMB)), METADATA),
    "zTXt": (png(9, chunk(b"zTXt", b"x\0\0" + BOMB)), METADATA),
    "iTXt": (png(9, chunk(b"iTXt", b"x\0\1\0\0\0" + BOMB)), METADATA),
    "chunks": (png(9, chunk(b"teSt") * 100_000), SLOW),
    "comments": (JPEG[:2] + b"\xff\xfe\0\2" * 100_000 + JPEG[2:], SLOW),
    "scans": (JPEG + b"\xff\xda" * 101, SLOW),
    "blocks": (GIF[:13] + b"!\xfe" + b"\2ab" * 1_000_000 + b"\0" + GIF[13:], SLOW),
    "run lengths": (BMP[:30] + b"\1\0\0\0" + BMP[34:], SLOW),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused_in_little_memory(name):
    # catches: another decoder than the five, pixels decoded or metadata unpacked without a cap, a warning as traceback
    for filtering in ("error", "ignore"):
        tracemalloc.start()
        with warnings.catch_warnings(action=filtering):
            refuses(BAD[name][1], open_picture, BAD[name][0], Caps(bytes=4_000_000))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.stop()


@given(st.binary(max_size=60), st.sampled_from(["image/png", "IMAGE/JPEG", "image/svg+xml"]))
def test_a_data_url_gives_its_bytes(data, kind):
    # catches: a cap that counts letters for bytes
    assert decode_data_url(f"data:{kind};base64,{base64.b64encode(data).decode()}", Caps(bytes=60)) == data


def test_no_address_is_fetched_or_told():
    # catches: a request to an inner network, a key of an address in a log
    for start in ("http:", "HTTPS:", "ftp:", "file:", "data:", "data:text/html;base64,", "gopher:", "//", ""):
        kind = "some other" if start in ("gopher:", "//", "") else f"a {start.partition(':')[0].lower()}:"
        said = f"a picture at {kind} address|data:image/...;base64,...: nothing is fetched|{LOAD}"
        refuses(said, decode_data_url, f"{start}//host/secret", Caps())


@pytest.mark.parametrize("letters", ["QUJDRA=", "QUJDR", "QUJD====", "QU-_", "QUJD QUJD", "QUJé", "Q=JD", "===="])
def test_bad_base64(letters):
    # catches: letters that are passed over, so that two programs read two pictures; decoding before the cap
    refuses(BASE64, decode_data_url, f"data:image/png;base64,{letters}", Caps(bytes=99))
    refuses(more("bytes", "99"), decode_data_url, f"data:image/png;base64,{letters * 50}", Caps(bytes=99))


def test_pictures_are_turned_as_their_exif_data_say():
    # catches: a page that is read lying on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.fromarray(np.repeat(np.uint8([[0], [255]]), [16, 32], 0).repeat(24, 1))
    seen = np.asarray(open_picture(saved(half, "JPEG", exif=exif), Caps()))
    assert seen.shape == (24, 48)
    assert seen[:, -8:].max() < 30 < 200 < seen[:, :24].min()  # the top is on the right


@pytest.mark.parametrize("ink", [0, 255])
def test_letters_on_a_transparent_ground_are_seen(ink):
    # catches: dark letters on a ground that was black below its transparency, and light ones on white
    layer = np.full((20, 20, 4), [ink, ink, ink, 0], np.uint8)
    layer[8:12, 8:12, 3] = 255
    seen = np.asarray(open_picture(saved(Image.fromarray(layer), "PNG"), Caps()), int)
    assert abs(seen[10, 10] - seen[0, 0]) == 255


def test_sixteen_bits_are_scaled_and_further_pictures_of_a_phone_passed_over():
    # catches: a scan that becomes white, a photograph that is taken for an animation
    deep = Image.fromarray(np.full((4, 4), 30_000, np.uint16))
    assert np.asarray(open_picture(saved(deep, "PNG"), Caps())).max() == 30_000 >> 8
    assert open_picture(saved(RGB, "MPO", **MOVES), Caps()).size == RGB.size


PAGES = [saved(Image.new("L", (9, 9), i), "PNG") for i in range(4)]


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Put a program in the place of tesseract; return what lists its starts and what it notes."""

    def put(does):
        (tmp_path / "tesseract").write_text(f"#!/bin/sh\ncd {tmp_path}\ncat > none\necho $$ >> log\n{does}\n")
        (tmp_path / "tesseract").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return lambda: (tmp_path / "log").read_text().split()

    return put


def test_the_same_bytes_are_read_once_until_others_push_them_out(engine):
    # catches: a cache by time of entry, one that grows, an empty text that is read again
    log, reads = engine("echo"), []
    with Reader(cache=2) as reader:
        for i in (0, 1, 0, 2, 0, 1):  # 2 pushes 1 out
            assert reader.read(PAGES[i]) == ""
            reads.append(len(log()))
    assert reads == [1, 2, 2, 3, 3, 4]


def test_what_was_read_for_one_is_not_kept_for_another(engine):
    # catches: a tenant that learns, by the time it takes, that another has sent the same picture
    log = engine("echo words")
    with Reader() as reader:
        assert [reader.read(PAGES[0], whose) for whose in ("a", "a", "b", "", "b")] == ["words"] * 5
    assert len(log()) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_callers_share_a_reading_and_few_engines_run_at_once(engine, workers):
    # catches: two engines for the same bytes, more engines than workers
    log = engine("sleep 0.2; echo end >> log; echo words")
    with Reader(workers=workers) as reader, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reader.read, PAGES * 2)) == ["words"] * 8
    running = np.cumsum([-1 if line == "end" else 1 for line in log()])
    assert (len(running), running[-1], running.max()) == (8, 0, workers)


SLEPT = "a picture not read within 0.5 s|less print, or fewer at once|send it in parts, or later"
FAILED = f"an engine that fails|one that runs, with its English model|{reading._INSTALL}"


@pytest.mark.parametrize("does", [("exec sleep 60", SLEPT), ("exit 3", FAILED), ("echo 123456789", more("text", "8"))])
def test_an_engine_that_does_not_answer_well(engine, does):
    # catches: a caller that waits for ever, an engine left running, a failure that is kept as a text
    log = engine(does[0])
    with Reader(timeout=0.5, caps=Caps(text=8)) as reader:
        refuses(does[1], reader.read, PAGES[0])
        refuses(does[1], reader.read, PAGES[0])
    assert len(log()) == 2
    for process in log():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


def test_a_reader_that_cannot_read(engine, monkeypatch, tmp_path):
    # catches: a closed reader that goes on, and a machine without an engine that is found out at the first page
    engine("echo words")
    with Reader() as reader:
        pass
    refuses("a picture for a reader that was closed|an open one|make another", reader.read, b"")
    refuses("workers=1, cache=0, timeout=30|numbers above 0|correct them", lambda: Reader(cache=0))
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert default_engine() is None
    refuses(f"no program that reads pictures (auto)|tesseract or rapidocr|{reading._INSTALL}", Reader)


def read_back(engine, look, notice):
    with Reader(engine=engine) as reader:
        read = reader.read(encode_page(draw_page(TEXT, notice, look)))
    plain = ["".join(filter(str.isalnum, one)) for one in (TEXT + notice, read)]
    return " ".join(read.split()), SequenceMatcher(None, *plain, autojunk=False).ratio()


@pytest.mark.skipif(which("tesseract") is None, reason="the tesseract program is not installed")
@pytest.mark.parametrize(("look", "notice"), [(Look(), NOTICE), (Look(columns=2, angle=1.5, ink=90, paper=230), "")])
def test_tesseract_reads_a_page_and_its_notice(look, notice):
    # catches: print that is not enlarged, lines of two columns mixed
    read, right = read_back("tesseract", look, notice)
    assert right >= 0.98
    assert notice in read


@pytest.mark.slow
@pytest.mark.skipif(find_spec("rapidocr") is None, reason="the rapidocr package is not installed")
def test_rapidocr_reads_a_page():
    # catches: options under other names, a result of another shape
    assert read_back("rapidocr", Look(), NOTICE)[1] >= 0.98
