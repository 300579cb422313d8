"""One correction in a loop of your own: made, asked on held-out prompts, saved, loaded, and taken off again."""

import tempfile
from pathlib import Path

import numpy as np

from upright.editing import flags
from upright.editing.edits import base_checksum, load_edit, refuse_other_base
from upright.editing.environments import environments
from upright.editing.measures import before, measure
from upright.editing.prompts import Question
from upright.methods.odedit import odedit

world, rng = flags.world(0, small=True), np.random.default_rng(0)
model, processor, _ = flags.teach(world)  # of your own: upright.models.hub.load_editable, and read_requests of a file
base = base_checksum(model)
(request,) = flags.requests(world, rng, 1, kind="correction")  # a capital as it once was, to the present one
own = next(one for one in world.countries if request.id.endswith(one.code))
others = [one for one in world.countries if one != own][:4]
keep = [flags.questions(world, rng, "capital", image=seen, held_out=False, of=others) for seen in (True, False)]
asked = [flags.wordings("country", held_out=held, image=True)[:2] for held in (False, True)]
beside = [Question(one, own.country, request.edit.image) for one in (*asked[0], *asked[1])]
given = environments(request, unrelated=[*keep[0], *keep[1]], same=beside)  # what trains, and what is held out

was = before(model, processor, {request.id: given})  # what it says before any edit
made = odedit(model, processor, given, id=request.id).edit  # hooks: the weights stay as they are
print(f"{request.edit.prompt} should be: {request.edit.answer}")
with tempfile.TemporaryDirectory() as folder:
    digest = made.save(file := Path(folder) / "capital.safetensors")
    print(f"{file.name}: {file.stat().st_size:,} bytes, SHA-256 {digest[:12]}")
    edit = load_edit(file)
refuse_other_base(edit, model)
with edit.applied(model):
    edited = measure(model, processor, was)
undone = measure(model, processor, was)  # outside of the context it is the old model, bit for bit
for name, seen in (("edited", edited), ("undone", undone)):
    values = {metric: float(value[0]) for metric, value in seen.values()[1].items()}
    general, local = ("text_generality", "image_generality"), ("text_locality", "image_locality", "same_image")
    told = [f"{metric} {values[f'{metric}_written']:.2f}" for metric in ("reliability", *general, *local)]
    print(f"{name}: answers {seen.answers[0]!r}; {', '.join(told)}")
print(f"weights {'as before' if base_checksum(model) == base else 'changed'}")
