"""Audit ranked lists that somebody already has: who is served worse, and which items are shown."""

import tempfile
from pathlib import Path

import numpy as np

from upright import audit


def main() -> None:
    folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    lists, held_out, users = ["user,item,rank"], ["user,item"], ["user,group"]
    for user in range(200):
        group = "new" if user % 2 else "regular"
        ranked = rng.permutation(100)[:10]
        likes = rng.choice(100, size=5, replace=False)
        if group == "regular":  # what the audit should find: regular users have a wanted item on top more often
            ranked = np.array([likes[0], *(i for i in ranked if i != likes[0])][:10])
        users.append(f"u{user},{group}")
        lists += [f"u{user},i{item},{rank}" for rank, item in enumerate(ranked, start=1)]
        held_out += [f"u{user},i{item}" for item in likes]
    items = ["item,count", *(f"i{i},{1000 // (i + 1)}" for i in range(100))]
    files = {}
    for name, rows in {"lists": lists, "held_out": held_out, "users": users, "items": items}.items():
        files[name] = folder / f"{name}.csv"
        files[name].write_text("\n".join(rows) + "\n")
    found = audit("ranking", files.pop("lists"), **files, k=10, out=folder / "runs")
    print(found.verdict)
    for row in found.summary["audit"]["exposure"]:
        print(f"{row['bin']}: {row['share_of_items']:.0%} of items, {row['share_of_exposure']:.0%} of places shown")


if __name__ == "__main__":
    main()
