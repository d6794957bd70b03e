"""Files replaced in one step: only files, and their places looked at first."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from keymesh.adapters.files import PUBLIC_MODE, check_writable, write_file


def test_a_file_is_made_and_replaced_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content in (b"old", b"", b"new"):
        check_writable(path)
        write_file(path, content, mode=PUBLIC_MODE)
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == PUBLIC_MODE
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_keeps_its_name(tmp_path: Path) -> None:
    pipe, directory, link = tmp_path / "pipe", tmp_path / "directory", tmp_path / "link"
    os.mkfifo(pipe)
    directory.mkdir()
    link.symlink_to(os.devnull)
    before = sorted(tmp_path.iterdir())
    for path in (pipe, directory, link, Path(os.devnull)):
        with pytest.raises((FileExistsError, IsADirectoryError)):
            check_writable(path)
        with pytest.raises((FileExistsError, IsADirectoryError)):
            write_file(path, b"x")
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and link.is_symlink() and directory.is_dir()
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "absent" / "f", tmp_path / "file" / "f", tmp_path / ("x" * 300)):
        with pytest.raises(OSError):
            check_writable(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
