"""Audit what federated clients sent: which of the items that an upload names its client trained on."""

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from upright import audit


def main() -> None:
    folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    items, truth = rng.normal(size=(300, 16)), []
    for noise in ("none", "device"):
        (folder / noise).mkdir()
    for client in range(20):
        user, liked = rng.normal(size=16), rng.choice(300, 10, replace=False)
        drawn = rng.choice(np.setdiff1d(np.arange(300), liked), 40, replace=False)
        rows, label = np.r_[liked, drawn], np.arange(50) < 10
        slope = (1 / (1 + np.exp(-items[rows] @ user)) - label) / 50  # of the loss, in the score of each item
        values = np.outer(slope, user)
        save_file({"rows": rows, "values": values}, folder / "none" / f"c{client}.1.safetensors")
        dense = rng.normal(size=items.shape)  # noise on every row, larger than the gradient
        dense[rows] += values
        save_file({"item": dense}, folder / "device" / f"c{client}.1.safetensors")
        truth += [f"c{client},i{item}" for item in liked]
    (folder / "truth.csv").write_text("\n".join(["client,item", *truth]) + "\n")
    (folder / "items.csv").write_text("\n".join(["item", *(f"i{item}" for item in range(300))]) + "\n")
    files = {"items": folder / "items.csv", "truth": folder / "truth.csv"}
    for noise in ("none", "device"):
        found = audit("updates", folder / noise, **files, out=folder / "audits")
        (auc,) = (one for one in found.summary["evidence"]["levels"] if one["statistic"] == "mean:auc")
        print(f"noise {noise}: AUC {auc['value']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}]")


if __name__ == "__main__":
    main()
