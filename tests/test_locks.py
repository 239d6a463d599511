"""One process at a time: who holds a lock is named, and a lock that its holder removes is not held twice."""

import contextlib
import fcntl
import os

import pytest

from owl_swin.errors import ArchiveError, DataError
from owl_swin.index.lock import lock_file, only_writer
from owl_swin.locks import hold_lock


def lock(path, **settings):
    return hold_lock(path, busy=DataError, failed=lambda error: DataError(error.strerror), **settings)


def test_a_held_lock_is_refused_with_the_name_of_its_holder(tmp_path):
    held, refused = lock(tmp_path / "lock"), pytest.raises(DataError, match=rf"process {os.getpid()} on ")
    with held, refused, lock(tmp_path / "lock"):
        pass
    with lock(tmp_path / "lock"):  # it was given back
        assert (tmp_path / "lock").exists()


def test_a_lock_is_removed_also_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path / "lock", remove=True):
        assert (tmp_path / "lock").exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_between_opening_and_locking_is_made_anew(tmp_path, monkeypatch):
    path, first, really = tmp_path / "lock", contextlib.ExitStack(), fcntl.flock
    first.enter_context(lock(path, remove=True))

    def flock(handle, how):
        first.close()
        return really(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(path, remove=True):
        assert path.exists()  # of the file that is gone nobody else would find the lock
        with pytest.raises(DataError), lock(path):
            pass
    assert not path.exists()


def test_who_waits_gets_the_lock_when_it_is_given_back(tmp_path):
    first, told = contextlib.ExitStack(), []
    first.enter_context(lock(tmp_path / "lock"))
    with lock(tmp_path / "lock", wait=True, waiting=lambda holder: (told.append(holder), first.close())):
        assert len(told) == 1 and f"process {os.getpid()}" in told[0]


def test_a_lock_that_cannot_be_made_is_said(tmp_path):
    with pytest.raises(DataError, match="No such file or directory"), lock(tmp_path / "gone" / "lock"):
        pass


def test_the_lock_of_an_archive_elsewhere_lies_in_no_folder_of_somebody_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = lock_file("s3://bucket/archive")
    with only_writer("s3://bucket/archive", wait=False):
        assert mine.parent.stat().st_mode & 0o777 == 0o700
    mine.unlink()
    mine.parent.rename(tmp_path / "theirs")
    mine.parent.symlink_to("theirs")
    with pytest.raises(ArchiveError, match="is not this user's own folder"), only_writer("s3://bucket/a", wait=False):
        pass
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to("mine")
    with pytest.raises(DataError), lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
