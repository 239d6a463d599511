"""`owl-swin detect VIDEO`: what comes out, also of a video that is cut off and after Ctrl-C."""

import csv
import json
import sys

import av
import pytest
from test_cli import assert_one_sentence, owl_swin  # noqa: F401
from videos import SeesColours, make_video, moving

from owl_swin import video_output
from owl_swin.detector import Detector
from owl_swin.errors import OwlSwinError
from owl_swin.signals import Terminated
from owl_swin.video_output import VideoWriter


@pytest.fixture
def detect(owl_swin, monkeypatch):  # noqa: F811
    """The command with a detector that sees colours."""

    class Named(SeesColours):
        name = "colours"

    def run(*arguments):
        return owl_swin("detect", "--query", "red", "--query", "blue", *arguments)

    monkeypatch.setattr(Detector, "from_pretrained", lambda *args, **kwargs: Named())
    return run


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("video") / "moving.mp4", moving(12))


@pytest.fixture
def cut(video, tmp_path):
    content = make_video(tmp_path / "whole.mp4", moving(60)).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(content[: (content.index(b"mdat") + len(content)) // 2])
    return path


def frames_of(path):
    """Times of the frames of a video."""
    with av.open(str(path)) as container:
        return [round(frame.time, 2) for frame in container.decode(video=0)]


def test_each_frame_is_a_line_with_its_time_and_the_numbers_of_things(detect, video, tmp_path):
    run = detect(video, "--every", "4", "--format", "jsonl", "--save", tmp_path / "drawn")
    assert [(line["frame"], line["time_s"]) for line in run.records] == [(0, 0.0), (4, 0.4), (8, 0.8)]
    first, last = run.records[0], run.records[-1]
    assert (first["video"], first["width"], first["height"]) == (str(video), 96, 64)
    assert [(row["label"], row["track_id"]) for row in first["detections"]] == [("red", None)]
    assert {(row["label"], row["track_id"]) for row in last["detections"]} == {("red", 1), ("blue", 2)}
    assert set(last["detections"][0]) == {"label", "query", "score", "box", "track_id"}
    assert frames_of(tmp_path / "drawn" / "moving.mp4") == [0, 0.4, 0.8]
    assert f"wrote {tmp_path / 'drawn' / 'moving.mp4'}" in run.err


def test_tables_and_csv_of_a_video(detect, video, tmp_path):
    run = detect(video, "--fps", "5", "--no-track", "--format", "csv", "--to", tmp_path / "out" / "found.csv")
    assert (run.code, run.out) == (0, "")
    rows = list(csv.DictReader((tmp_path / "out" / "found.csv").open()))
    assert [row["frame"] for row in rows] == ["0", *[str(2 * (i // 2)) for i in range(2, 12)]]
    assert {row["track_id"] for row in rows} == {""} and rows[0]["label"] == "red"
    lines = detect(video, "--every", "6").out.splitlines()
    assert lines[0].split() == ["time_s", "frame", "track", "score", "xmin", "ymin", "xmax", "ymax", "query", "label"]
    assert len(lines) == 4 and lines[1].split()[:2] == ["0.000", "0"] and lines[1].endswith("red")


def test_nothing_found_in_a_video_is_said_once(detect, video):
    run = detect(video, "--every", "6", "--threshold", "0.95", "--format", "jsonl")
    assert [line["detections"] for line in run.records] == [[], []]
    assert run.code == 0 and run.err.count("nothing at 0.95; best: red 0.9") == 1


def test_what_was_found_before_a_video_is_cut_off_is_written(detect, cut, video, tmp_path):
    run = detect(cut, video, "--format", "jsonl", "--to", tmp_path / "found.jsonl", "--save", tmp_path / "drawn")
    assert run.code == 2
    (sentence,) = [line for line in run.err.splitlines() if line.startswith("owl-swin: ")]
    assert sentence.startswith(f"owl-swin: {cut}: the video is ")
    records = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    of_cut = [record for record in records if record["video"] == str(cut)]
    assert 5 < len(of_cut) < 60 and len(records) == len(of_cut) + 12
    assert len(frames_of(tmp_path / "drawn" / "cut.mp4")) == len(of_cut)
    assert len(frames_of(tmp_path / "drawn" / "moving.mp4")) == 12


@pytest.mark.parametrize("raised, code", [(KeyboardInterrupt, 130), (Terminated(143), 143)])
def test_ctrl_c_and_sigterm_keep_what_was_found(detect, video, tmp_path, monkeypatch, raised, code):
    add = VideoWriter.add

    def interrupted(writer, image, time_s):
        if time_s > 0.35:
            raise raised
        add(writer, image, time_s)

    monkeypatch.setattr(VideoWriter, "add", interrupted)
    run = detect(video, "--format", "jsonl", "--to", tmp_path / "found.jsonl", "--save", tmp_path / "drawn")
    assert run.code == code and "stopped after 4 frames" in run.err
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 5
    assert frames_of(tmp_path / "drawn" / "moving.mp4") == [0, 0.1, 0.2, 0.3]


def test_another_hand_s_video_is_not_written_over(detect, video, tmp_path):
    folder = tmp_path / "drawn"
    folder.mkdir()
    theirs = folder / "moving.mp4"
    content = video.read_bytes().replace(b"made by owl-swin", b"made by somebody")
    assert content != video.read_bytes()
    theirs.write_bytes(content)
    for _ in range(2):  # and a drawing of before is
        assert detect(video, "--save", folder).code == 0
    assert theirs.read_bytes() == content
    assert sorted(path.name for path in folder.iterdir()) == ["moving-2.mp4", "moving.mp4"]
    theirs.write_bytes(b"no video")
    detect(video, "--save", folder)
    assert theirs.read_bytes() == b"no video"


def test_without_what_reads_videos_none_is_written_over(video, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert not video_output.video_may_be_written(video) and video_output.video_may_be_written(tmp_path / "new.mp4")


def test_what_was_found_before_a_drawing_cannot_be_written_is_kept(detect, video, tmp_path, monkeypatch):
    other = make_video(tmp_path / "other.mp4", moving(12))

    def refused(path):
        raise OwlSwinError(f"{path}: cannot write the video here (No space left on device)")

    written = video_output.video_writer
    monkeypatch.setattr(video_output, "video_writer", lambda path: (refused if "other" in path.name else written)(path))
    run = detect(video, other, "--format", "jsonl", "--to", tmp_path / "found.jsonl", "--save", tmp_path / "drawn")
    assert run.code == 2 and "No space left" in run.err
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) >= 12


def test_what_fails_half_way_leaves_no_half_file(detect, video, tmp_path, monkeypatch):
    monkeypatch.setattr(VideoWriter, "add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detect(video, "--to", tmp_path / "found.txt", "--save", tmp_path / "drawn")
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["photo.jpg", "{video}"], "videos and pictures go in calls of their own"),
        (["photo.jpg", "--fps", "2"], "--fps and --every choose frames of a video"),
        (["{video}", "--format", "coco"], "--format coco is for pictures; of videos choose table, jsonl or csv"),
        (["{video}", "--explain"], "--explain is for pictures"),
        (["{video}", "--fps", "0"], "fps must be a number of frames a second above 0, got 0"),
        (["{video}", "--fps", "1", "--every", "2"], "give one of them"),
        (["rtsp://me:secret@camera/1?a=*"], "rtsp://camera/1?a=*: pictures and videos are fetched from other machines"),
        (["none.mp4"], "none.mp4: cannot be opened as a video (No such file or directory)"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(detect, video, arguments, sentence):
    run = detect("--format", "jsonl", *[argument.format(video=video) for argument in arguments])
    assert_one_sentence(run, sentence)
    assert "secret" not in run.err


def test_a_pattern_that_the_shell_has_left_stands_for_videos(detect, video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).write_bytes(video.read_bytes())
    (tmp_path / "c.png").write_bytes(b"")
    run = detect("*.mp4", "--every", "9", "--format", "jsonl")
    assert [line["video"] for line in run.records] == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"]
    assert_one_sentence(detect("*.mkv"), "*.mkv: no video fits this pattern")
