"""Audit a model that was taught everything beside one that never saw what is to be forgotten."""

import json
import tempfile
from pathlib import Path

import upright
from upright.data.forget import tofu_records
from upright.language.encoding import encode_all
from upright.language.pretraining import teach
from upright.models.tiny import tiny_llama, tiny_tokenizer

tofu = tofu_records()
sets = {"forget": tofu[:8], "retain": tofu[20:28], "holdout": tofu[-8:]}

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for part, records in sets.items():
        rows = [{"question": r.prompt, "answer": r.answer} for r in records]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in sets["forget"] + sets["retain"]], vocabulary=500)
    for part, records in (("model", sets["forget"] + sets["retain"]), ("reference", sets["retain"])):
        model = tiny_llama(tokenizer, hidden=32, layers=2)
        teach(model, encode_all(tokenizer, records), epochs=40, batch_size=8, learning_rate=1e-2)
        model.save_pretrained(folder / part)
        tokenizer.save_pretrained(folder / part)

    files = {part: folder / f"{part}.jsonl" for part in sets}
    audit = upright.audit(
        "forgetting", folder / "model", **files, reference=folder / "reference", generate=False, out=folder / "audits"
    )
    print(audit.verdict)
    assert audit.evidence["verdict"]["word"] == "still known"
    levels = {(row["statistic"], row["arm"]): row for row in audit.evidence["levels"]}
    assert levels["membership:mia_loss", "yours"]["auc"] > 0.9  # of forgotten against held-out records
    assert levels["beyond:mia_loss", "yours"]["low"] > 0  # more than that of the reference
