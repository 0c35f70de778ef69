"""A reader never meets half a file."""

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torchvision.utils import save_image

from hybridgen import files
from hybridgen.files import (
    LOCK,
    is_vacant,
    printable,
    remove_leftovers,
    save_picture,
    write_text,
    writing,
    written_aside,
)
from hybridgen.types import InputError


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_the_whole_text_into_folders_that_it_makes(tmp_path):
    write_text(tmp_path / "a" / "b" / "file.txt", "äöü\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == "äöü\n".encode()
    assert names(tmp_path / "a" / "b") == ["file.txt"]


def test_a_path_that_is_not_utf_8_can_be_printed():
    assert printable(os.fsdecode(b"\xc3\xbc/\xfc\\.png")) == "ü/\\xfc\\.png"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == path.parent  # on the same file system, so that renaming is one act
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_a_block_that_fails_leaves_the_old_file_and_its_own_error(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), written_aside(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("unexpected pos 5")])
def test_what_the_system_says_names_the_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(InputError) as caught, written_aside(path) as aside:
        aside.write_text("half")
        raise error
    reason = "No space left on device" if isinstance(error, OSError) else "unexpected pos 5"
    assert str(caught.value) == f"{path}: cannot be written: {reason}"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_failing_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def refused(source, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(InputError, match="Permission denied"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_path_below_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/folder/new: cannot be written: Not a directory"):
        write_text(tmp_path / "file" / "folder" / "new", "text")
    with pytest.raises(InputError, match=r"file/new: cannot be written: .*/file is not a folder"):
        write_text(tmp_path / "file" / "new", "text")


@contextmanager
def no_large_files():
    """Files end at 4 KiB for this process. Python ignores the signal, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_torchs_writer_tells_why_it_failed(tmp_path):
    with (
        no_large_files(),
        pytest.raises(InputError, match="cannot be written: File too large"),
        written_aside(tmp_path / "file") as aside,
        aside.open("wb") as file,
    ):
        torch.save({"tensor": torch.zeros(100_000)}, file)
    assert names(tmp_path) == []


def test_writing_passes_what_is_no_fault_of_the_file():
    with pytest.raises(ZeroDivisionError), writing("file"):
        _ = 1 / 0


def test_leftovers_of_killed_processes_do_not_count_and_are_removed_and_nothing_else_is(tmp_path):
    folder = tmp_path / "run"
    assert is_vacant(folder)
    (folder / "deep").mkdir(parents=True)
    left = [folder / ".config.yaml.123.tmp", folder / "deep" / ".step-00000001.pt.7.tmp"]
    mine = [folder / ".hidden.tmp", folder / "a.1.tmp", folder / "deep" / ".b.1.tmp~"]
    left[0].touch()
    (folder / LOCK).touch()
    assert not is_vacant(folder)  # a folder is no leftover
    (folder / "deep").rmdir()
    assert is_vacant(folder)
    (folder / "deep").mkdir()
    for path in left + mine:
        path.touch()
    remove_leftovers(folder)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted([*mine, folder / LOCK])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pictures_are_torchvisions_to_the_byte(tmp_path, dtype):
    image = torch.rand(3, 37, 23, generator=torch.Generator().manual_seed(0)).to(dtype) * 1.4 - 0.2
    image[:, 0] = torch.arange(23) / 510  # halves between two levels
    before = image.clone()
    save_picture(tmp_path / "ours.png", image.requires_grad_())
    save_image(image, tmp_path / "theirs.png")
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()
    assert torch.equal(image, before)


KILLED_BEFORE_RENAMING = """
import os, signal, sys
from hybridgen.files import write_text
os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
write_text(sys.argv[1], "new")
"""


def test_a_process_killed_before_renaming_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED_BEFORE_RENAMING, str(path)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "newer")
    assert path.read_text() == "newer"


def test_a_lock_whose_file_is_gone_or_anothers_is_not_held(tmp_path):
    path = tmp_path / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert files._is_at(file, path)
        path.unlink()
        assert not files._is_at(file, path)
        path.touch()
        assert not files._is_at(file, path)
    finally:
        os.close(file)
