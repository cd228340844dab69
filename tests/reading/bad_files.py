"""Files that are damaged on purpose."""

import io
import json
import zipfile

import torch
import yaml


def rewrite(path, compression=zipfile.ZIP_STORED, **changes):
    """Change what is in a zip: `data` by a function of the JSON object, `weights` by one of the tensors, others by bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if "data" in changes:
        members["data"] = json.dumps(changes["data"](json.loads(members["data"]))).encode()
    if "weights" in changes:
        saved = io.BytesIO()
        torch.save(changes["weights"](torch.load(io.BytesIO(members["policy.pth"]))), saved)
        members["policy.pth"] = saved.getvalue()
    members |= {
        name.replace("_", "."): content
        for name, content in changes.items()
        if isinstance(content, bytes)
    }
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_card(hub, change):
    """Change the card of the hub's source as plain data."""
    path = hub / "good.yaml"
    plain = yaml.safe_load(path.read_text())
    change(plain)
    path.write_text(yaml.safe_dump(plain))
