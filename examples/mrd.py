"""MRD in a loop of your own: score what must be forgotten, draw the easy records more often, look at what is left."""

import tempfile

import numpy as np

from upright.data.forget import tofu_records
from upright.language.encoding import encode_all
from upright.language.evaluation import Speaker
from upright.language.pretraining import teach
from upright.language.trainer import UnlearnArguments, UnlearnTrainer
from upright.methods.mrd import mrd
from upright.models.tiny import tiny_llama, tiny_tokenizer

records = tofu_records()[:40]  # two authors
forget, retain = records[:20], records[20:]
tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=600)
model = tiny_llama(tokenizer, hidden=48, layers=2)
teach(model, encode_all(tokenizer, records), epochs=60, batch_size=8, learning_rate=1e-2)


def known(part: list) -> float:
    """Mean probability of an answer token."""
    return float(np.exp(-Speaker(model, tokenizer).read(part).mean_nll).mean())


print(f"before  forget {known(forget):.2f}  retain {known(retain):.2f}")
difficulty = mrd(model, tokenizer, forget)
print(f"MRD from {difficulty.mrd.min():.2f} (hard) to {difficulty.mrd.max():.2f} (easy), "
      f"split-half reliability {difficulty.reliability:.2f} after {difficulty.probes} pairs of noise")  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    args = UnlearnArguments(
        folder, loss="npo", sampling="mrd", num_train_epochs=8, per_device_train_batch_size=4, learning_rate=1e-3,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    sides = encode_all(tokenizer, forget), encode_all(tokenizer, retain)
    trainer = UnlearnTrainer(model, *sides, args=args, processing_class=tokenizer, difficulty=difficulty)
    trainer.train()
print(f"after   forget {known(forget):.2f}  retain {known(retain):.2f}")
