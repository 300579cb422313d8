"""Audit user vectors that somebody already has: how much of a private attribute an attacker reads off them."""

import tempfile
from pathlib import Path

import numpy as np

from upright import audit


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
    rows = [f"u{i}" for i in range(300)]
    (folder / "ids.csv").write_text("\n".join(["user", *rows]) + "\n")  # whose row each vector is
    files = {"labels": folder / "labels.csv", "ids": folder / "ids.csv"}
    found = audit(
        "embeddings", folder / "users.npy", **files, attribute="gender", aligned="fitted", out=folder / "audits"
    )
    print(found.verdict)
    for row in found.summary["audit"]["rows"]:
        print(f"{row['attacker']}, {row['protocol']}: AUC {row['auc']:.2f}, p {row['p']:.3f}")


if __name__ == "__main__":
    main()
