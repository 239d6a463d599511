"""Files are written whole or not at all, whatever fails and whenever the writer is killed."""

import ast
import json
import multiprocessing
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import owl_swin
from owl_swin.errors import CheckpointError, OwlSwinError
from owl_swin.files import (
    make_folder_of,
    read_safetensors,
    remove_parts,
    write_bytes,
    write_image,
    write_json,
    write_safetensors,
    write_text,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3)}


def write_tensors(path):
    write_safetensors(path, TENSORS, {"key": "k"}, what="the tensors", error=CheckpointError)


# name → (writes a file, whether a file holds it all)
WRITERS = {
    "bytes": (lambda path: write_bytes(path, b"new" * 1000), lambda path: path.read_bytes() == b"new" * 1000),
    "text": (lambda path: write_text(path, "neü"), lambda path: path.read_text("utf-8") == "neü"),
    "json": (
        lambda path: write_json(path, {"a": [1]}),
        lambda path: path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n',
    ),
    "image": (lambda path: write_image(path, Image.new("RGB", (3, 2))), lambda path: Image.open(path).size == (3, 2)),
    "safetensors": (write_tensors, lambda path: torch.equal(load_file(path)["a"], TENSORS["a"])),
}


@pytest.fixture(params=WRITERS)
def writer(request):
    return WRITERS[request.param]


@pytest.mark.parametrize("old", [None, b"old"])
def test_what_is_written_is_there_and_nothing_beside_it(writer, tmp_path, old):
    write, holds_all = writer
    path = tmp_path / "file.png"
    if old is not None:
        path.write_bytes(old)
    write(path)
    assert holds_all(path)
    assert list(tmp_path.iterdir()) == [path]


# --- Failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "chmod", "fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_at_any_step_leaves_the_old_file_and_nothing_else(
    writer, tmp_path, monkeypatch, step, failure
):
    write, _ = writer
    path = tmp_path / "file.png"
    path.write_bytes(b"old")

    def fail(*_args, **_kwargs):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "chmod" else os, step, fail)
        with pytest.raises((OwlSwinError, KeyboardInterrupt)) as caught:
            write(path)
    if isinstance(failure, OSError):
        assert str(caught.value).startswith(f"{path}: cannot write the ")
        assert str(caught.value).endswith(" here (No space left on device)")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def write_and_be_killed(path, step):
    """A process that is killed at a step of its writing, having written half of the bytes."""
    owner = Path if step in ("write_bytes", "chmod") else os

    def die(*args, **_kwargs):
        if step == "write_bytes":
            with open(args[0], "wb") as file:
                file.write(args[1][: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, step, die)
    WRITERS["bytes"][0](path)


@pytest.mark.parametrize("step", ["write_bytes", "fsync", "chmod", "replace"])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path, step):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    # Of this very process: who only writes bytes waits for no thread.
    process = multiprocessing.get_context("fork").Process(target=write_and_be_killed, args=(path, step))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2  # the unfinished part cannot go by itself
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        honest = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, honest=honest: (order.append(name), honest(*a)))
    write_bytes(tmp_path / "file", b"new")
    assert order == ["fsync", "replace", "fsync"]  # the file, its place, the folder


@pytest.mark.parametrize("place", ["missing/file.png", "plain/file.png", "folder", "nul\0.png"])
def test_a_place_that_cannot_be_written_is_one_sentence(writer, tmp_path, place):
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    place = tmp_path / (place + ".png" if place == "folder" else place)
    if place.name == "folder.png":
        place.mkdir()
    with pytest.raises(OwlSwinError, match="cannot write the ") as caught:
        writer[0](place)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir() if path != place) == ["folder", "plain"]


def test_a_full_device_is_one_sentence_and_stays_a_device(writer, tmp_path):
    full = tmp_path / "full.png"
    full.symlink_to("/dev/full")
    with pytest.raises(OwlSwinError, match="No space left on device"):
        writer[0](full)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode) and full.is_symlink()


def test_a_pipe_is_written_to_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        write_json(pipe, [1], indent=None)
        assert reader.stdout.read() == b"[1]\n"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_object_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == 1


def test_a_picture_of_another_ending_is_refused(tmp_path):
    with pytest.raises(OwlSwinError, match=r"a\.tga: the name of the sheet must end in \.jpg, \.jpeg, \.png, \.webp"):
        write_image(tmp_path / "a.tga", Image.new("RGB", (3, 2)), what="the sheet")


# --- What the place was --------------------------------------------------------------------------------------------


def test_a_link_goes_on_pointing_to_the_file(writer, tmp_path):
    write, holds_all = writer
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "file.png")
    write(tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and holds_all(tmp_path / "real" / "file.png")


@pytest.mark.parametrize("old, mode", [(None, 0o640), (0o600, 0o600), (0o664, 0o664)])
def test_who_may_read_a_file_stays_or_is_as_for_every_new_file(writer, tmp_path, old, mode):
    path = tmp_path / "file.png"
    if old is not None:
        path.touch()
        path.chmod(old)
    before = os.umask(0o027)
    try:
        writer[0](path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 127)  # 254 bytes
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


# --- Before and after ----------------------------------------------------------------------------------------------


def test_a_place_is_made_or_refused_before_the_work(tmp_path):
    make_folder_of(tmp_path / "new" / "deep" / "file.json")
    assert (tmp_path / "new" / "deep").is_dir()
    make_folder_of(Path("/dev/full"))
    with pytest.raises(OwlSwinError, match=r"new: cannot write a file here \(Is a directory\)"):
        make_folder_of(tmp_path / "new")


def test_tensors_come_back_with_what_was_said_of_them(tmp_path):
    write_tensors(tmp_path / "t.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "t.safetensors", error=CheckpointError)
    assert torch.equal(tensors["a"], TENSORS["a"]) and metadata == {"key": "k"}


def test_tensors_cut_off_anywhere_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            read_safetensors(path, error=CheckpointError)


# --- The other rooms -----------------------------------------------------------------------------------------------


def writing_calls(source: str) -> set[str]:
    """What a source calls to write a file by itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        modes = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        if name == "open" and any(re.fullmatch(r"[rwaxbt+]*[wax+][rwaxbt+]*", str(mode)) for mode in modes):
            found.add(name)
        if name == "save_file" or (method and name in ("write_bytes", "write_text")):
            found.add(name)
    return found


@pytest.mark.parametrize(
    "source, calls",
    [
        ('open(p, "w")', {"open"}),
        ('p.open(mode="ab")', {"open"}),
        ('open(p, "rb")', set()),
        ("p.write_text(x)", {"write_text"}),
        ("write_text(p, x)", set()),
        ("torch.save_file(x, p)", {"save_file"}),
    ],
)
def test_calls_that_write_are_found(source, calls):
    assert writing_calls(source) == calls


def test_nothing_else_in_the_package_writes_files():
    package = Path(owl_swin.__file__).parent
    rooms = {str(path.relative_to(package)): writing_calls(path.read_text()) for path in package.rglob("*.py")}
    # A lock, lines that are added while a run goes on, a file that lives as long as a request, and what a video writes
    # into the files that files.growing_file names when it is done; and the null device for a stderr that was closed.
    apart = {"files.py", "labelling/journal.py", "locks.py", "training/journal.py", "server/serving.py"}
    apart |= {"cli/video.py", "video_output.py", "cli/printing.py"}
    assert {room: calls for room, calls in rooms.items() if calls and room not in apart} == {}
