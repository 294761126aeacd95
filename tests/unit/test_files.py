from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gdps_ds.files import atomic_folder, atomic_path, atomic_write


def test_an_interrupted_write_leaves_neither_a_new_file_nor_litter(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_gets_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    """Others of a group read runs on shared storage; safetensors would keep them out."""
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "tensors") as partial:
        save_file({"x": np.zeros(1)}, partial)
        assert partial.stat().st_mode & 0o077 == 0, "permit is not needed any more"
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"\[Errno 28\] No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"\[Errno 122\] Disk quota exceeded"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), r"\[Errno 28\] No"),
    ],
)
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, error: Exception, message: str) -> None:
    path = tmp_path / "m.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(OSError, match=rf"{message}.*: '{path}'"), atomic_write(path):
        raise error
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(path) as partial:
            (partial / content).touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    with pytest.raises(RuntimeError), atomic_folder(path) as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert [file.name for file in path.iterdir()] == ["new"]
    with atomic_folder(path) as partial:
        assert not list(partial.iterdir()), "what was left behind is cleared away"
    assert list(tmp_path.iterdir()) == [path]
