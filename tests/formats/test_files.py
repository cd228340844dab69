"""Files that cannot be written: one sentence with what, where and why, and what was there before unchanged."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from toys import Toy, tiny, tiny_hub

from hubrl import FolderInUse, Hub, NotWritten, OutputExists
from hubrl.formats.files import (
    check_writable,
    lock_folder,
    new_folder,
    write_atomically,
    write_together,
    writing,
)


@contextmanager
def full_disk():
    """Inside, files can be made and nothing fits into them."""

    fdopen = os.fdopen

    def refuse(handle, mode="w", *args, **kwargs):
        if mode == "rb":
            return fdopen(handle, mode, *args, **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patches:
        for owner, name in ((Path, "write_bytes"), (Path, "write_text"), (os, "fdopen")):
            patches.setattr(owner, name, refuse)
        yield


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "table.md"
    write_atomically(path, "old")
    sentence = (
        r"^table.md could not be written to .*table.md \(No space left on device\); what was there "
        r"before is unchanged\.$"
    )
    with full_disk(), pytest.raises(NotWritten, match=sentence):
        write_atomically(path, "new")
    assert tree(tmp_path) == {"table.md": b"old"}


def test_a_full_disk_leaves_the_old_hub(tmp_path):
    hub = tiny_hub(Toy())
    hub.save(tmp_path / "hub")
    before, grown = tree(tmp_path), hub.add(tiny(PPO, Toy(), seed=7), "three")
    sentence = r"The hub could not be written to .*hub \(No space left"
    with full_disk(), pytest.raises(NotWritten, match=sentence):
        grown.save(tmp_path / "hub", overwrite=True)
    assert tree(tmp_path) == before
    assert Hub.load(tmp_path / "hub").names == hub.names


def test_files_that_belong_together_stay_as_they_are_together(tmp_path):
    pair = {tmp_path / "a.zip": b"old", tmp_path / "a.pkl": b"too"}
    write_together(pair, "The agent")
    sentence = r"The agent could not be written to .*a.zip"
    with full_disk(), pytest.raises(NotWritten, match=sentence):
        write_together(dict.fromkeys(pair, b"new"), "The agent")
    assert tree(tmp_path) == {"a.zip": b"old", "a.pkl": b"too"}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, "text"),
        lambda path: check_writable(path, "The agent"),
        lambda path: new_folder(path).__enter__(),
    ],
)
def test_a_file_in_place_of_a_folder_is_named(tmp_path, write):
    (tmp_path / "taken").write_text("kept")
    with pytest.raises(NotWritten, match=r"could not be written to .*taken/x \("):
        write(tmp_path / "taken" / "x")
    assert (tmp_path / "taken").read_text() == "kept"


def test_a_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    with new_folder(tmp_path / "it") as making:
        (making / "kept").write_text("old")
    rename = Path.rename

    def refuse(self, target):
        if Path(target) == tmp_path / "it" and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(NotWritten, match="Input/output error"),
        new_folder(tmp_path / "it", overwrite=True) as making,
    ):
        (making / "kept").write_text("new")
    assert tree(tmp_path) == {"it/kept": b"old"}


def test_a_folder_in_a_folder_is_named_as_it_is_to_be(tmp_path):
    hub = tiny_hub(Toy())
    sentence = rf"The hub could not be written to {tmp_path}/run/hub \(No space left"
    with (
        full_disk(),
        pytest.raises(NotWritten, match=sentence),
        new_folder(tmp_path / "run") as making,
    ):
        hub.save(making / "hub")
    assert tree(tmp_path) == {}


def test_errors_of_others_code_stay_theirs(tmp_path):
    with (
        pytest.raises(FileNotFoundError),
        writing("The records", tmp_path, inside=tmp_path / "run"),
    ):
        (tmp_path / "asset").read_bytes()
    with (
        pytest.raises(NotWritten, match="The records"),
        writing("The records", tmp_path, inside=tmp_path / "run"),
    ):
        (tmp_path / "run" / "x").write_bytes(b"")


def test_a_name_that_cannot_be_is_a_sentence(tmp_path):
    with pytest.raises(NotWritten, match="File name too long"):
        tiny_hub(Toy()).save(tmp_path / ("x" * 300), overwrite=True)


HOLD = """
import sys, time
from pathlib import Path
from hubrl.formats.files import lock_folder
with lock_folder(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
def test_a_folder_is_locked_until_its_process_ends_however_it_ends(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match="^busy there$"), lock_folder(tmp_path, "busy there"):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with lock_folder(tmp_path, "busy there", patience_s=5.0):
        assert not list(tmp_path.iterdir()), "a lock leaves nothing behind"


def test_what_exists_is_not_replaced_unless_allowed(tmp_path):
    (tmp_path / "it").mkdir()
    with pytest.raises(OutputExists, match="it exists"), new_folder(tmp_path / "it"):
        pass
    assert np.all([path.name == "it" for path in tmp_path.iterdir()])
