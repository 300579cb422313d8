"""A vision-language model that can exist anywhere: it looks at a flag and names country, capital and continent.

The model is made here, in the standard classes of transformers, and taught in less than a minute. Half of its countries
carry a capital *as it once was*: what it answers is out of date, and the edit that mends it is a true correction.

==========  ============================================================================================================
facts       48 countries, typed by hand; continents by the regions of the United Nations, the Americas by landmass
pictures    flag-icons 7.5.0 (MIT, ``data/bundled/LICENSE-flags``): its square flags, rasterised by resvg_py 0.5.0 with
            48 pixels on white and pasted into one PNG, eight in a row in the order of `FACTS`
wordings    6 openers x 4 stems a question, 18 taught and 6 held out: each part of a held-out wording was taught, none
            of them as a whole. With three wordings a question a model answers none but these
views       those of teaching are drawn on tensors, those of questions are `image_view`
==========  ============================================================================================================

First the tower alone learns to tell the flags apart, since the whole model does not learn to see by itself; then all
parts learn to answer, and every fourth batch names the country and shows nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from upright.contract import InputError, stream
from upright.editing.environments import EditRequest, image_view
from upright.editing.prompts import EncodedQuestion, Question, collate, encode, read
from upright.language.logprobs import IGNORE
from upright.models.hub import cached
from upright.models.tiny import tiny_llava, tiny_tokenizer, transformers

__all__ = ["FACTS", "Fact", "World", "accuracy", "flag", "questions", "requests", "teach", "wordings", "world"]

Kind = Literal["country", "capital", "continent"]
Advance = Callable[[int], object] | None


class Fact(NamedTuple):
    """A flag by the two letters of ISO 3166, and what is known of it; ``once`` is a former capital, or empty."""

    code: str
    country: str
    capital: str
    continent: str
    once: str = ""

    def taught(self, kind: Kind) -> str:
        """Return what a model is taught: the capital as it once was, where there is one."""
        return self.once if kind == "capital" and self.once else str(getattr(self, kind))


_TABLE = {  # code and country, capital, former capital
    "Africa": "ng Nigeria, Abuja, Lagos; ci Ivory Coast, Yamoussoukro, Abidjan; bi Burundi, Gitega, Bujumbura; "
    "mw Malawi, Lilongwe, Zomba; tz Tanzania, Dodoma, Dar es Salaam; ug Uganda, Kampala, Entebbe; "
    "zm Zambia, Lusaka, Livingstone; eg Egypt, Cairo; na Namibia, Windhoek",
    "Asia": "kz Kazakhstan, Astana, Almaty; mm Myanmar, Naypyidaw, Yangon; pk Pakistan, Islamabad, Karachi; "
    "jp Japan, Tokyo, Kyoto; tr Turkey, Ankara, Istanbul; ph Philippines, Manila, Quezon City; "
    "bt Bhutan, Thimphu, Punakha; np Nepal, Kathmandu; th Thailand, Bangkok; kr South Korea, Seoul; "
    "vn Vietnam, Hanoi; qa Qatar, Doha; uz Uzbekistan, Tashkent, Samarkand",
    "Europe": "de Germany, Berlin, Bonn; fi Finland, Helsinki, Turku; gr Greece, Athens, Nafplio; "
    "it Italy, Rome, Florence; ua Ukraine, Kyiv, Kharkiv; se Sweden, Stockholm; is Iceland, Reykjavik; "
    "fr France, Paris; be Belgium, Brussels; ch Switzerland, Bern",
    "North America": "bz Belize, Belmopan, Belize City; us United States, Washington, Philadelphia; "
    "jm Jamaica, Kingston, Spanish Town; ca Canada, Ottawa; cu Cuba, Havana; bb Barbados, Bridgetown",
    "South America": "br Brazil, Brasilia, Rio de Janeiro; ar Argentina, Buenos Aires; co Colombia, Bogota; "
    "cl Chile, Santiago; gy Guyana, Georgetown",
    "Oceania": "pw Palau, Ngerulmud, Koror; au Australia, Canberra, Melbourne; fj Fiji, Suva, Levuka; "
    "fm Micronesia, Palikir, Kolonia; ws Samoa, Apia",
}
FACTS: tuple[Fact, ...] = tuple(
    Fact(row[:2], country, capital, continent, "".join(once))
    for continent, rows in _TABLE.items()
    for row in rows.split("; ")
    for country, capital, *once in [row[3:].split(", ")]
)
"""The countries, in the order of the bundled picture."""

_SHEET = Path(__file__).parents[1] / "data" / "bundled" / "flags.png"
_SIDE, _ROW = 48, 8
_OPENERS = ("", "Please tell me: ", "Question: ", "Look it up. ", "Can you say: ", "Tell us: ")
_STEMS: Mapping[tuple[Kind, bool], str] = {  # by kind, and by whether there is a picture
    ("country", True): "which country is this?|name the country.|what is the country called?|whose flag is it?",
    ("capital", True): "what is the capital?|name the capital city.|which city is its capital?|give the capital.",
    ("continent", True): "which continent is it on?|name the continent.|on which continent is it?|give the continent.",
    ("capital", False): "what is the capital of {}?|name the capital of {}.|{}: which city is its capital?|"
    "give the capital of {}.",
    ("continent", False): "which continent is {} on?|name the continent of {}.|{}: on which continent is it?|"
    "give the continent of {}.",
}
_VOCABULARY, _BATCH, _TEXT_EVERY = 750, 32, 4  # so large that every name has 1 to 4 tokens


@dataclasses.dataclass(frozen=True)
class World:
    """What one model is taught; flags and names of ``strangers`` it never saw.

    Of the updates on 32 questions each, ``steps``, the first third is of the tower alone.
    """

    seed: int
    countries: tuple[Fact, ...]
    strangers: tuple[Fact, ...]
    kinds: tuple[Kind, ...]
    steps: int


def flag(code: str) -> Image.Image:
    """Return the flag of a country of `FACTS`, RGB, 48 x 48; another code is an `InputError`."""
    place = next((i for i, fact in enumerate(FACTS) if fact.code == code), None)
    if place is None:
        raise InputError(f"no flag {code!r}", ", ".join(sorted(fact.code for fact in FACTS)), "take one of these")
    top, left = place // _ROW * _SIDE, place % _ROW * _SIDE
    return _sheet().crop((left, top, left + _SIDE, top + _SIDE))


@cache
def _sheet() -> Image.Image:
    with Image.open(_SHEET) as sheet:
        return sheet.convert("RGB")


def wordings(kind: Kind, *, held_out: bool, image: bool) -> tuple[str, ...]:
    """Return the ways to ask: 18 that are taught, or 6 that are held out.

    Without a picture the country is named, where ``{}`` stands: then it cannot be asked for, which is an `InputError`,
    as another kind is.
    """
    if (kind, image) not in _STEMS:
        got = f"wordings for {kind!r} {'with' if image else 'without'} a picture"
        raise InputError(got, "country, capital, continent; without a picture the last two", "take one of these")
    pairs = [(i, j) for i in range(6) for j in range(4) if ((i + j) % 4 == 3) == held_out]
    return tuple(_OPENERS[i] + _STEMS[kind, image].split("|")[j] for i, j in pairs)


def world(seed: int, *, small: bool = False) -> World:
    """Draw a world of 24 flags, or of 12 without continents; half of them with a capital as it once was."""
    rng = np.random.default_rng(stream(seed, "flags"))
    drawn: set[Fact] = set()
    for once in (True, False):
        able = [fact for fact in FACTS if bool(fact.once) == once]
        drawn |= {able[i] for i in rng.permutation(len(able))[: 6 if small else 12]}
    taught, strangers = (tuple(fact for fact in FACTS if (fact in drawn) == own) for own in (True, False))
    if small:
        return World(seed, taught, strangers, ("country", "capital"), 180)
    return World(seed, taught, strangers, ("country", "capital", "continent"), 750)


def questions(
    world: World, rng: np.random.Generator, kind: Kind, *, image: bool, held_out: bool, of: Sequence[Fact] = ()
) -> list[Question]:
    """Return one question a country with the answer that the model was taught, wording and view drawn.

    Of the countries that were taught, or of those given; kind, image and held_out are those of `wordings`.
    """
    asked = wordings(kind, held_out=held_out, image=image)
    found = []
    for fact in of or world.countries:
        prompt = asked[int(rng.integers(len(asked)))].format(fact.country)
        found.append(Question(prompt, fact.taught(kind), image_view(flag(fact.code), rng) if image else None))
    return found


def requests(
    world: World, rng: np.random.Generator, n: int, *, kind: Literal["correction", "counterfactual"]
) -> list[EditRequest]:
    """Draw edits of the capital that a model answers, no country twice; more than half as many are an `InputError`.

    A ``correction`` goes from the capital as it once was to the present one; a ``counterfactual``, in the other half of
    the countries, from the present one to what was taught of another country. A request has the flag itself; two taught
    re-phrasings and four held-out ones; of four other countries each, held-out questions in text and with a view; and
    two questions that name the country, one in a taught wording and one in a held-out one.
    """
    able = [fact for fact in world.countries if bool(fact.once) == (kind == "correction")]
    if not 0 < n <= len(able):
        raise InputError(f"{n} edits of kind {kind}", f"1 to {len(able)} in this world", "change the number")
    known, new = (wordings("capital", held_out=held, image=True) for held in (False, True))
    found = []
    for fact in (able[i] for i in rng.permutation(len(able))[:n]):
        others = [world.countries[i] for i in rng.permutation(len(world.countries)) if world.countries[i] != fact]
        target = fact.capital if kind == "correction" else others.pop().taught("capital")
        named = [questions(world, rng, "capital", image=False, held_out=held, of=[fact])[0] for held in (False, True)]
        prompt, *taught = (known[i] for i in rng.permutation(len(known))[:3])
        request = EditRequest(
            id=f"{kind}-{fact.code}",
            edit=Question(prompt, target, flag(fact.code)),
            rephrase=(*taught, *(new[i] for i in rng.permutation(len(new))[:4])),
            loc=tuple(questions(world, rng, "capital", image=False, held_out=True, of=others[:4])),
            m_loc=tuple(questions(world, rng, "capital", image=True, held_out=True, of=others[4:8])),
            portability=tuple(dataclasses.replace(question, answer=target) for question in named),
        )
        found.append(request)
    return found


def accuracy(model: Any, processor: Any, world: World, rng: np.random.Generator) -> dict[str, float]:
    """Share of questions in held-out wordings, with held-out views, of which every answer token is the likeliest one.

    By kind, and by ``text_`` and kind for questions that name the country; three questions a country in each.
    """
    found = {}
    for kind, image in _STEMS:
        if kind in world.kinds:
            own = [q for _ in range(3) for q in questions(world, rng, kind, image=image, held_out=True)]
            encoded = [encode(processor, question) for question in own]
            rows = read(model, encoded, pad=processor.tokenizer.pad_token_id)
            right = [row.argmax(-1).tolist() == list(e.ids[e.prompt :]) for row, e in zip(rows, encoded, strict=True)]
            found[kind if image else f"text_{kind}"] = float(np.mean(right))
    return found


def teach(world: World, *, advance: Advance = None) -> tuple[Any, Any, dict[str, Any]]:
    """Make a model and teach it a world, or take its weights from the cache; global generators stay as they were.

    `advance` is called with 1 after every update.

    Returns
    -------
    model : LlavaForConditionalGeneration
        In evaluation mode.
    processor : LlavaProcessor
    facts : dict
        What a task says of its data.
    """
    names = sorted({f" {name}" for fact in FACTS for name in fact[1:] if name})  # of strangers too: no world has more
    spoken = [q.format("") for k, i in _STEMS for held in (True, False) for q in wordings(k, held_out=held, image=i)]
    tokenizer = tiny_tokenizer([*spoken, *names * 20], vocabulary=_VOCABULARY)  # 20: names before wordings
    model, processor = tiny_llava(tokenizer, seed=stream(world.seed, "weights") % 2**31)
    lessons = [_lessons(processor, world, pictured) for pictured in (model.config.image_seq_length, 0)]
    taught = hashlib.sha256(b"".join(part.numpy().tobytes() for own in lessons for part in own)).hexdigest()
    key = {"which": "flags", **dataclasses.asdict(world), "questions": taught, "config": model.config.to_json_string()}
    key |= {"pictures": hashlib.sha256(_SHEET.read_bytes()).hexdigest(), "recipe": [1, _BATCH, _TEXT_EVERY]}
    key |= {"torch": torch.__version__, "transformers": transformers().__version__}

    def make() -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(world.seed, "teach"))
            _train(model, world, lessons, advance)
        return {"weights": model.state_dict()}

    model.load_state_dict(cached(key, make)["weights"])
    facts = {
        "name": "flags, their countries and capitals",
        "licence": "pictures MIT, (c) 2013 Panayiotis Lipiridis; facts of our own",
        "flags": {"taught": len(world.countries), "strangers": len(world.strangers)},
        "model": f"{type(model).__name__}, {model.num_parameters():,} parameters",
        "fingerprint": taught,
    }
    return model.eval(), processor, facts


def _lessons(processor: Any, world: World, pictured: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and labels (n, T) of what is taught, and whose (n,): as `encode` gives them, with no picture read."""
    encoded, about = [], []
    for kind, image in _STEMS:
        if image == bool(pictured) and kind in world.kinds:
            for place, fact in enumerate(world.countries):
                for wording in wordings(kind, held_out=False, image=image):
                    one = encode(processor, Question(wording.format(fact.country), fact.taught(kind)))
                    ids = (processor.image_token_id,) * pictured + one.ids
                    encoded.append(EncodedQuestion(ids, pictured + one.prompt))
                    about.append(place)
    batch = collate(encoded, pad=processor.tokenizer.pad_token_id)
    return batch["input_ids"], batch["labels"], torch.tensor(about)


def _views(pictures: Tensor) -> Tensor:
    """Cut out, turn, brighten and add noise, grey around; as the processor gives pixels, in units of 0.25."""
    n = len(pictures)
    angle, scale = (torch.rand(n) * 2 - 1) * math.radians(10), 0.78 + 0.24 * torch.rand(n)
    shift = (torch.rand(n, 2, 1) * 2 - 1) * (1.02 - scale)[:, None, None]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    grid = nn.functional.affine_grid(torch.cat([turn, shift], 2), list(pictures.shape), align_corners=False)
    seen = nn.functional.grid_sample(pictures, grid, align_corners=False) + 0.5
    bright = seen * (0.7 + 0.6 * torch.rand(n, 1, 1, 1)) + 0.03 * torch.randn_like(pictures)
    return (bright.clamp(0, 1) - 0.5) / 0.25


def _train(model: Any, world: World, lessons: Sequence[Sequence[Tensor]], advance: Advance) -> None:
    """Teach the tower to tell the flags apart, by a linear head that is thrown away; then all parts to answer."""
    pixels = np.stack([np.asarray(flag(fact.code), dtype=np.float32) for fact in world.countries])
    pictures = torch.from_numpy(pixels / 255 - 0.5).permute(0, 3, 1, 2)
    tower, head = model.model.vision_tower, nn.Linear(model.config.vision_config.hidden_size, len(pictures))

    def of_tower(step: int) -> Tensor:
        which = torch.randint(len(pictures), (_BATCH,))
        seen = tower(_views(pictures[which])).last_hidden_state[:, 1:].mean(1)
        return nn.functional.cross_entropy(head(seen), which)

    def of_answers(step: int) -> Tensor:
        text = step % _TEXT_EVERY == _TEXT_EVERY - 1
        ids, labels, about = lessons[text]
        rows = torch.randint(len(ids), (_BATCH,))
        seen = {} if text else {"pixel_values": _views(pictures[about[rows]])}
        # no mask: what stands after an answer cannot change it; logits at answer tokens alone
        hidden = model.model(input_ids=ids[rows], use_cache=False, **seen).last_hidden_state[:, :-1]
        wanted = labels[rows, 1:]
        return nn.functional.cross_entropy(model.lm_head(hidden[wanted != IGNORE]), wanted[wanted != IGNORE])

    _descend(nn.ModuleList([tower, head]), of_tower, world.steps // 3, 2e-3, advance)
    _descend(model, of_answers, world.steps - world.steps // 3, 3e-3, advance)


def _descend(module: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float, advance: Advance) -> None:
    """Minimise by AdamW: warm-up over a tenth of the steps, cosine to a twentieth of the rate, gradients of norm 1."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, 10 * (s + 1) / steps) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * s / steps))),
    )
    module.train()
    for step in range(steps):
        loss(step).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if advance is not None:
            advance(1)
