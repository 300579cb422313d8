"""Audit decisions at two hospitals: men are granted more often over all, but not at the second one."""

import json
import tempfile
from pathlib import Path

import upright

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    rows = ["sex,site,truth,decided"]
    for site, sex, granted in (
        ("north", "men", 70),
        ("north", "women", 40),
        ("south", "men", 30),
        ("south", "women", 35),
    ):
        rows += [f"{sex},{site},{'yes' if i % 2 else 'no'},{'yes' if i < granted else 'no'}" for i in range(100)]
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")

    audit = upright.audit(
        "predictions", folder / "cases.csv", group="sex", prediction="decided", label="truth", client="site",
        out=folder / "audits",
    )  # fmt: skip
    print(audit.verdict)
    assert audit.evidence["headline"]["group"] == "men minus women"
    assert audit.evidence["verdict"]["lines"]["clients"].startswith("gap shown at 'north'")
    gaps = [row for row in audit.evidence["levels"] if "disparity:predicted:" in row["statistic"]]
    print({row["statistic"]: round(row["value"], 3) for row in gaps})
    assert [round(row["value"], 12) for row in gaps] == [0.125, 0.3, 0.175]  # of all, worst client, mean of clients
    stored = json.loads((audit.folder / "summary.json").read_text())["audit"]["fairness"][0]
    assert stored["small"] == []  # a hundred rows of each are enough
    assert stored["conflicts"] == []  # the gap at south points the other way, but is not beyond chance
