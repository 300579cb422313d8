"""Train the classifier of what a query asks, and write its weights.

    python benchmarks/make_guard_intent.py [--out src/upright/guard/bundled/intent.bin]

Sentences and templates stand in guard_intent.txt. Prose, what a pasted page says, comes from the documentation of this
repository and from texts in the public domain (``public-domain-texts`` of ``UPRIGHT_DATA``). Each sentence written by
hand counts as much as `WEIGHT` drawn ones. With ``--check`` the sentences of one style after another are left out.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from upright.guard import intent

HERE = Path(__file__).parent
CLASSES = (*intent.USES, "prose")
WEIGHT, C, PROSE, NOISE = 0.3, 30.0, 1500, 200
Row = tuple[str, str, str]  # use, style, sentence


def alternatives(text: str) -> list[str]:
    """Split at each ``|`` outside of brackets."""
    found, depth = [""], 0
    for one in text:
        depth += (one in "[{") - (one in "]}")
        if one == "|" and not depth:
            found.append("")
        else:
            found[-1] += one
    return found


def written_sentences() -> list[Row]:
    """Return the sentences that were written one by one."""
    rows, use, style = list[Row](), "", ""
    for line in (HERE / "guard_intent.txt").read_text("utf-8").partition("\n\n")[2].splitlines():
        if line.startswith("# "):
            use, style = line[2:].split()
        elif line and line[:2] not in (": ", "= "):
            rows.append((use, style, line))
    return rows


def drawn_sentences(seed: int = 0) -> list[Row]:
    """Return sentences drawn from the templates, one in seventeen with a slip of the pen."""
    lines = [
        one[2:].partition(" = ")
        for one in (HERE / "guard_intent.txt").read_text("utf-8").splitlines()
        if one[:2] in (": ", "= ")
    ]
    kinds = {head: alternatives(body) for head, _, body in lines if " " not in head}
    rows = list[Row]()
    for head, _, body in lines:
        if " " in head:
            use, family, n = head.split()
            draw, seen, templates = random.Random(f"{seed}{use}{family}"), set[str](), alternatives(body)
            for _ in range(3 * int(n)):
                if len(seen) < int(n):
                    seen.add(drawn_sentence(draw.choice(templates), kinds, draw))
            rows += [(use, f"{use} {family}", one) for one in sorted(seen)]
    return rows


def drawn_sentence(text: str, kinds: dict[str, list[str]], draw: random.Random) -> str:
    """Return a template with every choice made."""
    while found := re.search(r"\{(\w+)\}|\[([^\[\]]*)\]", text):
        one = draw.choice(kinds[found[1]] if found[1] else found[2].split("|"))
        text = text[: found.start()] + one + text[found.end() :]
    text = re.sub(r"([.!?])\.+", r"\1", re.sub(r" ([.,?!;])", r"\1", " ".join(text.split())))
    case = draw.random()
    text = text[:1].upper() + text[1:] if case < 0.5 else text.lower().rstrip(".") if case < 0.62 else text
    if draw.random() < 0.06 and len(text) > 12:
        i = draw.randrange(3, len(text) - 3)
        text = text[:i] + (text[i + 1] + text[i] if draw.random() < 0.5 else text[i]) + text[i + 2 :]
    return text


def prose_sentences(data: Path) -> list[Row]:
    """Return `PROSE` sentences or lines of each source, and `NOISE` words without a sense."""
    sources = {"docs": " ".join(one.read_text() for one in sorted((HERE.parent / "docs").rglob("*.md")))}
    for name in sorted((data / "public-domain-texts").glob("*.zip")):
        with zipfile.ZipFile(name) as file:
            texts = [file.read(one).decode("utf-8", "replace") for one in sorted(file.namelist())[::2] if "." in one]
        sources[name.stem] = re.sub("<[^>]*>", " ", "\n".join(texts))
    rows = list[Row]()
    for name, text in sources.items():
        ends = r"\n+" if name == "shakespeare" else r"(?<=[.!?])\s+"
        pieces = [" ".join(one.split()) for one in re.split(ends, text)]
        pieces = sorted({one for one in pieces if 20 < len(one) < 300})
        rows += [("prose", f"prose {name}", one) for one in random.Random(name).sample(pieces, min(PROSE, len(pieces)))]
    draw = random.Random("noise")
    letters = "abcdefghijklmnopqrstuvwxyz"
    for _ in range(NOISE):
        words = ["".join(draw.choices(letters, k=draw.randint(1, 8))) for _ in range(draw.randint(1, 5))]
        kind = draw.random()
        if kind < 0.3:
            words = ["".join(draw.choices("0123456789", k=draw.randint(1, 40)))]
        elif kind < 0.5:
            words = ["".join(chr(draw.randint(0x4E00, 0x9FFF)) for _ in range(draw.randint(1, 12)))]
        rows.append(("other", "other noise", " ".join(words)))
    return rows


def feature_rows(texts: list[str]) -> csr_array:
    """Return the features of n sentences, shape (n, features)."""
    found = [intent.request_features(intent.clean_words(text))[:2] for text in texts]
    ends = np.cumsum([0, *(len(places) for places, _ in found)])
    places, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return csr_array((values, places, ends), shape=(len(texts), sum(intent.SIZES)))


def trained_weights(rows: list[Row], features: csr_array) -> NDArray[np.int8]:
    """Return weights in steps, shape (features + 1, classes); the last row is the constant."""
    weight = [WEIGHT if " " in style else 1.0 for _, style, _ in rows]
    model = LogisticRegression(C=C, max_iter=120, tol=1e-3)
    model.fit(features, [CLASSES.index(use) for use, _, _ in rows], sample_weight=weight)
    weights = np.zeros((features.shape[1] + 1, len(CLASSES)))
    weights[:, model.classes_] = np.vstack([model.coef_.T, model.intercept_[None]]) / intent.STEP
    return np.round(weights).clip(-127, 127).astype(np.int8)


def copying(rows: list[Row], weights: NDArray[np.int8]) -> list[bool]:
    """Return which sentences are read as a copy, a translation or a paraphrase."""
    read = [
        intent.read_request(intent.clean_words(text), weights=weights * np.float32(intent.STEP)) for _, _, text in rows
    ]
    return [one.use in intent.USES[:3] for one in read]


def main() -> None:
    """Train on everything, or check style by style."""
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, default=HERE.parent / "src/upright/guard/bundled/intent.bin")
    options.add_argument("--check", action="store_true")
    chosen = options.parse_args()
    rows = written_sentences() + drawn_sentences() + prose_sentences(Path(os.environ["UPRIGHT_DATA"]))
    features = feature_rows([text for _, _, text in rows])
    styles = np.array([style for _, style, _ in rows])
    for style in dict.fromkeys(styles) if chosen.check else ():
        if "prose" in style or "noise" in style:
            continue
        out = styles == style
        weights = trained_weights([rows[i] for i in np.flatnonzero(~out)], features[~out])
        left = [rows[i] for i in np.flatnonzero(out)]
        found, right = np.array(copying(left, weights)), np.array([use in intent.USES[:3] for use, _, _ in left])
        print(
            f"{style}: {found[right].sum()} of {right.sum()} copying, {found[~right].sum()} of {(~right).sum()} others"
        )
    if not chosen.check:
        data = zlib.compress(trained_weights(rows, features).tobytes(), 9)
        chosen.out.parent.mkdir(exist_ok=True)
        chosen.out.write_bytes(data)
        print(f"{len(rows)} sentences, {len(data)} bytes")


if __name__ == "__main__":
    main()
