"""U2A in a loop of your own: weights of a planted pile of "bad" answers, and two trainers that act on them."""

import importlib.util
import warnings

from upright.experiment.folders import ArmRun
from upright.language.alignment import accuracies, read_pairs
from upright.language.trainer import UnlearnArguments, UnlearnTrainer
from upright.methods.u2a import u2a_weights
from upright.tasks.align import Align, AlignConfig

task, run = Align(AlignConfig()), ArmRun(None, 0, "example")
(model, tokenizer), (start, _) = task.model(run), task.model(run)  # was taught good and bad answers alike
negatives, steer, held_out = task.pool(run), task.pairs(run, "objective"), task.pairs(run, "valid")
found, kinds = u2a_weights(model, tokenizer, negatives, steer), task.kinds(run)  # trains nothing
for kind in ("negative", "mislabelled", "neutral"):  # known of planted answers alone
    own = [weight for weight, of in zip(found.weight, kinds, strict=True) if of == kind]
    print(f"{kind}: mean weight {sum(own) / len(own):.2f}")
given = {"learning_rate": 3e-4, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
given |= {"output_dir": "unused", "per_device_train_batch_size": 16, "max_steps": 20}
sides, args = (task.encoded(run, "pool"), task.encoded(run, "retain")), UnlearnArguments(loss="npo", **given)
UnlearnTrainer(model, *sides, args=args, processing_class=tokenizer, weights=found.weight).train()
models = {"before": start, "UnlearnTrainer, losses by weight": model}
if importlib.util.find_spec("trl") is None:
    print("KTOTrainer: left out, the package trl is not installed")
else:
    warnings.simplefilter("ignore", FutureWarning)  # trl 1.16 sets an argument by its old name
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class Weighted(KTOTrainer):
        """After each negative that is drawn comes a chosen answer."""

        def _get_train_sampler(self, *_):
            return [i for k, bad in enumerate(found.sampler(0, 160)) for i in (bad, len(negatives) + k % len(steer))]

    rows = [(r.prompt, r.answer, False) for r in negatives] + [(p.prompt, p.chosen, True) for p in steer]
    table = Dataset.from_list([dict(zip(("prompt", "completion", "label"), row, strict=True)) for row in rows])
    args = KTOConfig(loss_type="apo_zero_unpaired", bf16=False, **given)  # KTO's KL term needs the order of rows
    models["KTOTrainer, draws by weight"] = model = task.model(run)[0]
    Weighted(model, start, args, train_dataset=table, processing_class=tokenizer).train()
for name, one in models.items():
    right = accuracies(read_pairs(one, tokenizer, held_out))["ranking"].mean()
    print(f"{name}: {right:.2f} of {len(held_out)} held-out pairs are ranked right")
