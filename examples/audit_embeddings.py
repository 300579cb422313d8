"""Audit user vectors that somebody already has: how much of a private attribute an attacker reads off them."""

import json
import tempfile
from pathlib import Path

import numpy as np

from upright.audits.embeddings import audit_embeddings


def main() -> None:
    folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    gender = rng.permutation(["f", "m"] * 150)
    fitted = np.arange(300) % 2  # users on whom somebody's defence was fitted
    vectors = rng.normal(size=(300, 16))
    vectors[:, 0] += 1.5 * (gender == "m")
    for c in ("f", "m"):  # what the audit should find: their means agree, those of the other users do not
        own = (fitted == 1) & (gender == c)
        vectors[own] -= vectors[own].mean(axis=0)
    np.save(folder / "users.npy", vectors)
    rows = [f"u{i},{g},{a}" for i, (g, a) in enumerate(zip(gender, fitted, strict=True))]
    (folder / "labels.csv").write_text("\n".join(["user,gender,fitted", *rows]) + "\n")
    audit = audit_embeddings(
        folder / "users.npy", folder / "labels.csv", attribute="gender", aligned="fitted", out=folder / "audits"
    )
    summary = json.loads((audit / "summary.json").read_text())
    print(summary["evidence"]["verdict"]["sentence"])
    for row in summary["audit"]["rows"]:
        print(f"{row['attacker']}, {row['protocol']}: AUC {row['auc']:.2f}, p {row['p']:.3f}")


if __name__ == "__main__":
    main()
