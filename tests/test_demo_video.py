"""Videos in the demo, without a browser: what is kept of a run, and what is refused."""

import json
import shlex
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner
from videos import SeesColours, make_video, moving, turned_by_its_header

gr = pytest.importorskip("gradio")
av = pytest.importorskip("av")

from owl_swin import Detector, ImageError, detect_video, to_video_record  # noqa: E402
from owl_swin.cli.main import app as cli  # noqa: E402
from owl_swin.demo import app, clips, watching  # noqa: E402
from owl_swin.demo.exports import Call  # noqa: E402
from owl_swin.demo.models import Models  # noqa: E402
from owl_swin.demo.pieces import Upload  # noqa: E402
from owl_swin.demo.refusals import Refused  # noqa: E402
from owl_swin.demo.running import Runs  # noqa: E402
from owl_swin.demo.session import Session  # noqa: E402


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve frames, a tenth of a second each, on which a blue thing comes later than a red one."""
    return make_video(tmp_path_factory.mktemp("video") / "moving.mp4", moving(12))


def watched(path, to, *, stop=None, fps=10.0):
    clip = clips.take_clip(str(path), "my video.mp4")
    detector, stop = SeesColours(), stop or threading.Event()
    queries = detector.encode_queries(["red", "blue"])
    return clip, clips.watch(detector, clip, queries, fps=fps, threshold=0.2, overlap=0.5, to=to, stop=stop)


def n_frames(path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_video_is_looked_at_frame_by_frame_and_its_things_are_followed(video, tmp_path):
    clip, steps = watched(video, tmp_path / "a.mp4")
    assert (clip.width, clip.height) == (96, 64) and clip.length_s == pytest.approx(1.2, abs=0.15)
    *_, last = steps
    plain = detect_video(SeesColours(), video, ["red", "blue"], fps=10)
    assert [json.loads(line) for line in last.lines] == [
        to_video_record("my video.mp4", one.number, one.time_s, one.found, one.track_ids) for one in plain
    ]
    assert n_frames(tmp_path / "a.mp4") == len(last.lines) == 12 and last.why == ""
    value = watching.found_value(clip, last, tmp_path / "a.mp4", 0.2)
    assert [(one["name"], one["number"], one["frames"]) for one in value["things"]] == [("red", 1, 11), ("blue", 2, 9)]
    assert (value["things"][1]["from"], value["things"][1]["to"]) == (0.3, 1.1)
    assert value["about"] == "my video.mp4: 12 frames, 22 boxes, 2 things followed"
    video_file, lines = watching.found_files(clip, last, tmp_path / "a.mp4")["files"]
    assert video_file["file"]["path"] == str(tmp_path / "a.mp4") and lines["text"].count("\n") == 12


def test_what_was_found_before_a_stop_a_bound_or_a_damaged_place_is_kept(video, tmp_path, monkeypatch):
    stop = threading.Event()
    _, steps = watched(video, tmp_path / "a.mp4", stop=stop)
    next(steps)
    stop.set()
    *_, last = steps
    assert last.why.startswith("Stopped after 0.0 s") and n_frames(tmp_path / "a.mp4") == len(last.lines) == 1
    content = make_video(tmp_path / "whole.mp4", moving(40, step=1)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: (content.index(b"mdat") + len(content)) // 2])
    *_, last = watched(tmp_path / "cut.mp4", tmp_path / "b.mp4")[1]
    assert last.why.startswith("The rest cannot be read: the video is ")
    assert n_frames(tmp_path / "b.mp4") == len(last.lines) > 0
    for bound, value in [("MOST_FRAMES", 3), ("MOST_S", 0.25)]:
        with monkeypatch.context() as patch:
            patch.setattr(clips, bound, value)
            *_, last = watched(video, tmp_path / "c.mp4")[1]
        assert len(last.lines) == 3 and "takes any length" in last.why
    monkeypatch.setattr(clips, "MOST_WORK_S", -1.0)
    *_, last = watched(video, tmp_path / "d.mp4")[1]
    assert last.lines == [] and "took too long" in last.why


def test_a_video_that_was_held_upright_is_shown_so(video, tmp_path):
    (tmp_path / "turned.mp4").write_bytes(turned_by_its_header(video.read_bytes()))
    clip = clips.take_clip(str(tmp_path / "turned.mp4"), "turned.mp4")
    assert (clip.width, clip.height) == (64, 96)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video",
        b"#EXTM3U\n#EXTINF:1,\nmoving.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile moving.mp4\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_no_video_or_a_list_of_other_files_is_refused_by_its_name(content, video):
    path = video.with_name("playlist.mp4")  # beside a video that it names
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"^mine & yours\.mp4: not a video"):
        clips.take_clip(str(path), "mine & yours.mp4")


def test_a_video_that_is_too_large_is_refused_by_its_name(video, monkeypatch):
    monkeypatch.setattr(clips, "MOST_BYTES", 100)
    with pytest.raises(ImageError, match=r"^large\.mp4: a video may have"):
        clips.take_clip(str(video), "large.mp4")


def test_without_the_packages_the_tab_says_what_to_install(detector, monkeypatch):
    monkeypatch.setattr(watching, "installed", lambda: False)
    parts = app.build_demo(detector).get_config_file()["components"]
    (missing,) = [part for part in parts if part["props"].get("elem_id") == "video-missing"]
    assert "pip install 'owl_swin[video]'" in missing["props"]["value"]
    assert not [part for part in parts if part["props"].get("elem_id") == "video-upload"]


def test_nothing_found_says_how_near_it_was(video, tmp_path):
    clip, steps = watched(video, tmp_path / "a.mp4")
    *_, last = steps
    value = watching.found_value(clip, replace(last, n_found=0, best=0.07), tmp_path / "a.mp4", 0.2)
    assert value["note"] == "Nothing reaches the threshold of 0.20; the best score was 0.07."


def test_what_waits_for_the_work_before_it_is_done_after_it():
    runs, mine, done = watching.Runs("Photos are being added"), SimpleNamespace(session_hash="a"), []

    def second():
        with runs.begun(mine, wait=True):
            done.append("second")

    with runs.begun(mine):
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        thread.join(0.1)
        done.append("first")
    thread.join(20)
    assert done == ["first", "second"]


def test_a_visitor_runs_one_work_at_a_time_and_stops_only_that():
    runs = Runs("A video is being looked at")
    mine, yours = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")
    with runs.begun(mine) as stop, runs.begun(yours) as other:
        with pytest.raises(Refused, match="stop it first"), runs.begun(mine):
            pass
        runs.stop(mine)
        assert stop.is_set() and not other.is_set()
    runs.stop(mine)
    with runs.begun(mine) as again:
        assert not again.is_set()
        runs.let_go(mine)
        with runs.begun(mine) as newer:
            assert again.is_set() and again.let_go and not newer.is_set()
    with runs.begun(mine) as last, pytest.raises(Refused), runs.begun(mine):
        pass
    assert not last.is_set()


@pytest.mark.parametrize("names", [[], ["a cat", 'it\'s a "dog"']])
def test_copied_code_gives_what_was_found(detector, video, tmp_path, monkeypatch, names):
    clip = clips.take_clip(str(video), "moving.mp4")
    asked = {"fps": 5, "threshold": 0.02, "overlap": 0.5, "to": tmp_path / "a.mp4", "stop": threading.Event()}
    *_, last = clips.watch(detector, clip, detector.encode_queries(names) if names else None, **asked)
    python, command = clips.copies(clip, Call("nano", names, 0.02, 0.5), 5)
    monkeypatch.chdir(video.parent)
    monkeypatch.setattr(Detector, "from_pretrained", lambda *_, **__: detector)
    scope = {}
    exec(python["copy"], scope)
    assert scope["frame"].number == json.loads(last.lines[-1])["frame"] and last.n_found
    result = CliRunner().invoke(cli, shlex.split(command["copy"])[1:])
    assert result.exit_code == 0, result.output
    assert [json.loads(line) for line in result.stdout.splitlines()] == [json.loads(line) for line in last.lines]


def test_a_run_shows_its_stop_and_leaves_nothing_half_done(detector, video, monkeypatch):
    on = watching.Handlers(Models(detector))
    asked = (0.02, "10", 0.5, "normal", Session(""), SimpleNamespace(session_hash="a"))
    with pytest.warns(UserWarning, match="First choose a video"):
        assert list(on.on_find("a cat", None, *asked)) == []
    (clip, name, *_), *steps = on.on_try(*asked)
    assert (clip.name, name) == ("cat.mp4", "a cat") == (clips.sample().name, watching.TRIED)
    assert steps and all(step[:2] == (gr.skip(), gr.skip()) for step in steps)  # the visitor's own may be there by then
    clip, *_ = on.on_upload(Upload(str(video), "a/b & c.mp4"), asked[-1])
    first, *_, last = on.on_find("a cat", clip, *asked)
    assert first[-1]["visible"] and not last[-1]["visible"]
    folder, value, files, _ = last
    assert value["video"]["path"] == f"{folder.name}/b & c.boxes.mp4"
    assert [file["name"] for file in files["files"]] == ["b & c.boxes.mp4", "b & c.jsonl"]
    long, *_ = on.on_upload(Upload(str(video), "猫" * 90 + ".mp4"), asked[-1])
    *_, (_, _, files, _) = on.on_find("a cat", long, *asked)
    assert files["files"][0]["name"].startswith("猫" * 15)
    steps = on.on_find("a cat", clip, *asked)
    assert next(steps)[1]["frame"] == clip.src
    on.on_upload(Upload(str(video), "another.mp4"), asked[-1])
    assert [step[-1]["visible"] for step in steps] == [False]  # nothing of the one before is shown any more
    monkeypatch.setattr(detector.model, "encode_image", None)
    with pytest.warns(UserWarning, match="a fault of the program"):
        *_, last = on.on_find("a cat", clip, *asked)
    assert not last[-1]["visible"] and last[1] == watching.clip_value(clip)
