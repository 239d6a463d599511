"""Videos: which frames, when, upright, with the numbers of things, and what is wrong with a file."""

import re
import socket
import sys
import threading
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import av
import pytest
from PIL import Image
from torch.testing import assert_close
from videos import SeesColours, make_video, moving, turned_by_its_header

from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.errors import ImageError, MissingExtraError, OwlSwinError, QueryError
from owl_swin.mask_sampling import masks_in_view
from owl_swin.render import draw_detections
from owl_swin.tiling import Tiles
from owl_swin.tracking import Tracker
from owl_swin.video import _Video, detect_video
from owl_swin.video_output import video_writer
from owl_swin.video_source import is_live, is_video, shown_source


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve frames, a tenth of a second each."""
    return make_video(tmp_path_factory.mktemp("video") / "moving.mp4", moving(12))


def seen(source, *, detector=None, queries=("red", "blue"), **settings):
    return list(detect_video(detector or SeesColours(), source, list(queries), **settings))


def test_every_frame_with_its_time_its_boxes_and_the_numbers_of_things(video):
    frames = seen(video)
    assert [frame.number for frame in frames] == list(range(12))
    assert [round(frame.time_s, 3) for frame in frames] == [round(i / 10, 3) for i in range(12)]
    assert [len(frame.found) for frame in frames] == [1, 1, *[2] * 10]
    ids = [
        {frame.found.names[label]: own for label, own in zip(frame.found.labels.tolist(), frame.track_ids, strict=True)}
        for frame in frames
    ]
    # A thing has its number from the second frame on in which it is found, and keeps it.
    assert ids[:3] == [{"red": None}, {"red": 1}, {"red": 1, "blue": None}]
    assert ids[3:] == [{"red": 1, "blue": 2}] * 9
    assert all(frame.image.size == (96, 64) for frame in frames)
    red = [frame.found.boxes[frame.found.labels == 0][0] for frame in frames]
    assert_close(red[11] - red[0], red[0].new_tensor([22.0, 0, 22, 0]), atol=2, rtol=0)


def test_few_frames_are_in_memory_at_a_time(video):
    detector = SeesColours()
    frames = detect_video(detector, video, ["red"], batch_size=5)
    next(frames)
    assert detector.sizes == [5]
    assert len(list(frames)) == 11 and detector.sizes == [5, 5, 2]


@pytest.mark.parametrize(
    "settings, numbers",
    [
        ({"every": 1}, range(12)),
        ({"every": 5}, [0, 5, 10]),
        ({"every": 100}, [0]),
        ({"fps": 5}, [0, 2, 4, 6, 8, 10]),
        ({"fps": 4}, [0, 3, 5, 8, 10]),
        ({"fps": 0.5}, [0]),
        ({"fps": 1000}, range(12)),
    ],
)
def test_only_the_frames_that_are_wanted_are_looked_at(video, settings, numbers):
    detector = SeesColours()
    assert [frame.number for frame in seen(video, detector=detector, **settings)] == list(numbers)
    assert sum(detector.sizes) == len(numbers)


def test_times_of_a_video_without_a_fixed_rate_are_its_own(tmp_path):
    times = [0, 0.04, 0.08, 0.5, 0.52, 2.0]
    path = make_video(tmp_path / "uneven.mp4", [(t, [("red", (4, 4, 24, 24))]) for t in times])
    frames = seen(path)
    assert [round(frame.time_s, 3) for frame in frames] == times
    assert [round(frame.time_s, 3) for frame in seen(path, fps=2)] == [0, 0.5, 2.0]
    # A thing that is not seen for longer than a second is another one.
    assert [frame.track_ids for frame in frames] == [(None,), (1,), (1,), (1,), (1,), (None,)]


def test_a_turned_video_is_upright(tmp_path):
    path = make_video(tmp_path / "a.mp4", [(0, [("red", (4, 8, 24, 28))])])
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(turned_by_its_header(path.read_bytes()))
    (frame,) = seen(turned, queries=["red"])
    assert frame.image.size == (64, 96)
    assert_close(frame.found.boxes, frame.found.boxes.new_tensor([[36.0, 4, 56, 24]]), atol=1, rtol=0)


def test_a_weak_detection_continues_a_track_but_is_not_shown(tmp_path):
    path = make_video(tmp_path / "a.mp4", [(i / 10, [("red", (4, 4, 24, 24))]) for i in range(6)])
    scores = [0.9, 0.9, 0.3, 0.3, 0.9, 0.2]
    frames = seen(path, detector=SeesColours(scores), queries=["red"], threshold=0.5)
    assert [frame.track_ids for frame in frames] == [(None,), (1,), (), (), (1,), ()]
    assert frames[2].found.best.score == pytest.approx(0.3)
    frames = seen(path, detector=SeesColours(scores), queries=["red"], threshold=0.5, track=False)
    assert [frame.track_ids for frame in frames] == [(None,), (None,), (), (), (None,), ()]


def test_things_of_two_queries_never_change_numbers():
    tracker = Tracker([0.1, 0.1], 0.1)

    def frame(labels, time_s):
        one = draw_free(labels)
        return tracker.update(one, time_s)

    def draw_free(labels):
        import torch

        n = len(labels)
        boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(n, 4)
        return Detections(
            boxes, torch.full((n,), 0.9), torch.tensor(labels).long(), ("a", "b"), (99, 99), torch.zeros(n)
        )

    assert [frame([], 0), frame([0], 0.1), frame([0, 1], 0.2), frame([1, 0], 0.3), frame([1], 0.4)] == [
        [],
        [None],
        [1, None],
        [2, 1],
        [2],
    ]


def test_the_real_detector_looks_at_frames_like_at_pictures(detector, video):
    settings = {"threshold": 0.0, "top_k": 3}
    frames = list(detect_video(detector, video, ["cat"], every=6, track=False, **settings))
    for frame in frames:
        alone = detector.detect(frame.image, ["cat"], **settings)
        assert_close(frame.found.boxes, alone.boxes, atol=1e-3, rtol=1e-4)
    assert [len(frame.found) for frame in frames] == [3, 3]
    assert len(list(detect_video(detector, video, every=6, tiles=Tiles(64), threshold=0))) == 2
    assert isinstance(detector, Detector)


# --- What is wrong with a video ------------------------------------------------------------------------------------


def test_masks_are_made_of_what_is_shown_and_of_no_weaker_candidates(masked_detector, video, monkeypatch):
    made = []
    monkeypatch.setattr(
        "owl_swin.video.masks_in_view", lambda view, *of: made.append(len(of[0])) or masks_in_view(view, *of)
    )
    first = seen(video, every=6)[0].image
    scores = masked_detector.detect(first, ["cat"], threshold=0.0, nms_iou=None).scores
    asked = {"threshold": float(scores[len(scores) // 2]), "nms_iou": None, "masks": True}
    frames = list(detect_video(masked_detector, video, ["cat"], every=6, **asked))
    assert made == [len(frame.found) for frame in frames] and made[0] < len(scores)
    for frame in frames:
        alone = masked_detector.detect(frame.image, ["cat"], **asked)
        assert frame.found.patches.tolist() == alone.patches.tolist()
        assert_close(frame.found.masks.logits, alone.masks.logits, atol=0.1, rtol=0.01)
    tiled = list(detect_video(masked_detector, video, ["cat"], every=6, tiles=Tiles(64), threshold=0.0, masks=True))
    assert tiled[0].found.masks is not None


def test_a_video_that_is_cut_off_says_so_after_its_last_frame(tmp_path):
    path = make_video(tmp_path / "whole.mp4", moving(60))
    cut = tmp_path / "cut.mp4"
    content = path.read_bytes()
    cut.write_bytes(content[: (content.index(b"mdat") + len(content)) // 2])
    frames, detector = [], SeesColours()
    with pytest.raises(ImageError, match=r"^[^\n]*cut\.mp4: the video is (cut off: it ends after|damaged)[^\n]*$"):
        for frame in detect_video(detector, cut, ["red"], batch_size=50):
            frames.append(frame.number)
    assert 5 < len(frames) < 60 and frames == list(range(len(frames)))


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "cannot be opened as a video"), (b"text" * 99, "cannot be opened as a video"), (None, "No such file")],
)
def test_what_is_no_video_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=f"a.mp4: .*{reason}"):
        seen(path)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 44100
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match="there are no pictures in this file"):
        seen(path)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"fps": 0}, "fps must be a number of frames a second above 0, got 0"),
        ({"fps": float("nan")}, "fps must be"),
        ({"fps": float("inf")}, "fps must be"),
        ({"every": 0}, "every must be a whole number of frames, at least 1, got 0"),
        ({"every": 2.5}, "every must be"),
        ({"fps": 1, "every": 2}, "give one of them"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threshold": [0.1] * 3}, "one for each of the 2 queries"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_the_video_is_opened(settings, sentence):
    with pytest.raises(QueryError, match=re.escape(sentence)):
        detect_video(SeesColours(), "none.mp4", ["red", "blue"], **settings)


@pytest.mark.parametrize("module, what", [("av", "reading a video"), ("trackers", "numbering the things in a video")])
def test_a_missing_library_is_named(video, monkeypatch, module, what):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{what} needs packages .*owl_swin\[video\]"):
        seen(video)


# --- Cameras and addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, video, live",
    [
        ("a.mp4", True, False),
        ("a.MOV", True, False),
        ("a.jpg", False, False),
        ("rtsp://camera/1", True, True),
        ("RTSP://camera/1?profile=a.jpg", True, True),
        ("https://example.com/a.mp4?x=1", True, False),
        ("https://example.com/a.jpg?b.mp4", False, False),
        ("/dev/video0", True, True),
        ("video0", False, False),
        ("rtsp.jpg", False, False),
    ],
)
def test_what_a_video_and_a_camera_are_called(source, video, live):
    assert (is_video(source), is_live(source)) == (video, live)


def test_no_password_is_shown():
    assert shown_source("rtsp://me:secret@camera/1") == "rtsp://camera/1"
    assert shown_source("rtsp://me:se@cret@camera/1@2") == "rtsp://camera/1@2"
    assert shown_source("photos/me@home.mp4") == "photos/me@home.mp4"
    with pytest.raises(ImageError) as caught:
        seen("rtsp://me:secret@127.0.0.1:9/1")
    assert "secret" not in str(caught.value) and "rtsp://127.0.0.1:9/1: cannot be opened" in str(caught.value)


def test_a_stream_of_another_machine_comes_through_the_same_door(tmp_path, video):
    """A port of this machine sends, as a camera would; each frame is looked at when it comes."""
    content = tmp_path / "a.ts"
    with av.open(str(video)) as file, av.open(str(content), "w", format="mpegts") as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send():
            with server.accept()[0] as camera:
                camera.sendall(content.read_bytes())

        sender = threading.Thread(target=send)
        sender.start()
        detector = SeesColours()
        frames = seen(f"tcp://127.0.0.1:{server.getsockname()[1]}", detector=detector)
        sender.join(timeout=10)
    assert len(frames) == 12 and set(detector.sizes) == {1}
    assert frames[0].time_s == 0 and frames[-1].time_s == pytest.approx(1.1, abs=0.01)


def test_a_camera_is_opened_with_the_format_of_cameras(monkeypatch, video):
    opened = {}
    real = av.open

    def fake(address, **settings):
        opened[address] = settings
        return real(str(video))

    monkeypatch.setattr(av, "open", fake)
    assert len(seen("/dev/video7", every=4, open_options={"framerate": "30"})) == 3
    assert opened["/dev/video7"]["format"] == "v4l2" and opened["/dev/video7"]["options"] == {"framerate": "30"}
    seen("rtsp://camera/1", every=4)
    assert opened["rtsp://camera/1"]["options"] == {"rtsp_transport": "tcp"} and opened["rtsp://camera/1"]["timeout"]


# --- Written videos ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(97, 65), (1, 1), (2, 300)])
def test_any_size_is_written(tmp_path, size):
    path = tmp_path / "a.mp4"
    with video_writer(path) as writer:
        for i in range(3):
            writer.add(Image.new("RGB", size, (0, 0, 255)), i / 10)
        writer.add(Image.new("RGB", (50, 50)), 0.3)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 4 and frames[0].to_image().size == tuple(side + side % 2 for side in size)
    assert frames[0].to_image().getpixel((0, 0))[2] > 200


def test_without_h264_an_older_form_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("owl_swin.video_output.ENCODERS", ("none_such", "h264_cuvid", "mpeg4"))
    path = make_video(tmp_path / "a.mp4", moving(4))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert len(seen(path)) == 4
    monkeypatch.setattr("owl_swin.video_output.ENCODERS", ("none_such",))
    with pytest.raises(OwlSwinError, match="this PyAV writes no video; it has none of the encoders none_such"):
        make_video(tmp_path / "b.mp4", [])


def test_a_video_that_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), video_writer(path) as writer:
        writer.add(Image.new("RGB", (64, 64)), 0)
        _ = 1 / 0
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OwlSwinError, match="cannot write the video here"), video_writer(tmp_path / "none" / "a.mp4"):
        pass


def test_things_of_a_video_are_drawn_with_their_numbers(video):
    frame = seen(video)[-1]
    plain = draw_detections(frame.image, frame.found)
    numbered = draw_detections(frame.image, frame.found, track_ids=frame.track_ids)
    assert numbered.size == plain.size and numbered.tobytes() != plain.tobytes()
    assert numbered.tobytes() != draw_detections(frame.image, frame.found, track_ids=(7, 8)).tobytes()


def coded(path, form: str, n_frames: int = 20, **options) -> bytes:
    """A video in H.264, a tenth of a second a frame, in a container of FFmpeg's by that name."""
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(n_frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", (96, 64), (255, 0, 12 * i)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_frames_that_name_no_times_come_at_the_rate_of_the_video(tmp_path):
    coded(tmp_path / "raw.h264", "h264")
    frames = seen(tmp_path / "raw.h264")
    assert len(frames) == 20 and frames[0].time_s == 0.0
    steps = {round(after.time_s - before.time_s, 4) for before, after in pairwise(frames)}
    assert len(steps) == 1 and 0 < steps.pop() < 1
    assert 1 < len(seen(tmp_path / "raw.h264", fps=2)) < 20


def test_a_clock_that_begins_anew_goes_on_where_it_was(tmp_path):
    content = coded(tmp_path / "one.ts", "mpegts")
    (tmp_path / "two.ts").write_bytes(content + content)
    times = [frame.time_s for frame in seen(tmp_path / "two.ts")]
    assert len(times) == 40 and times == pytest.approx([i / 10 for i in range(40)], abs=1e-3)
    assert len(seen(tmp_path / "two.ts", fps=5)) == 20


def clock(*stamps_s: float) -> list[float]:
    """The times of frames of a camera, a tenth of a second apart, that name these."""

    def packet(stamp_s: float):
        stamp = {"pts": round(1000 * stamp_s), "time_base": Fraction(1, 1000), "duration": None, "is_corrupt": False}
        return SimpleNamespace(decode=lambda: [SimpleNamespace(**stamp)])

    stream = SimpleNamespace(average_rate=10, guessed_rate=10, duration=None, metadata={})
    container = SimpleNamespace(demux=lambda _: map(packet, stamps_s), start_time=None)
    return [round(time_s, 3) for _, time_s, _ in _Video(container, stream, "a camera", True).frames()]


def test_one_wrong_time_is_no_clock_that_began_anew():
    assert clock(0, 5, 10, 0.2, 10.4, 10.6) == [0, 5, 10, 10.1, 10.4, 10.6]
    assert clock(7, 12, 17, 0.2, 0.3, 0.4, 0.6) == [0, 5, 10, 10.1, 10.2, 10.3, 10.5]
    assert clock(0, 0.1, 0.2, 0.15, 0.3) == [0, 0.1, 0.2, 0.2, 0.3]


def test_a_whole_video_whose_clock_does_not_begin_at_0_is_not_cut_off(tmp_path):
    content = coded(tmp_path / "late.mkv", "matroska", 60, output_ts_offset="100")
    with av.open(str(tmp_path / "late.mkv")) as container:
        assert container.start_time == 100 * av.time_base
    frames = seen(tmp_path / "late.mkv")
    assert len(frames) == 60 and frames[-1].time_s == pytest.approx(5.9, abs=0.01)
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="the video is cut off"):
        seen(tmp_path / "cut.mkv")


@pytest.mark.parametrize("form", ["matroska", "flv"])
def test_a_cut_off_video_of_a_form_that_states_its_length_otherwise_says_so(tmp_path, form):
    content = coded(tmp_path / f"whole.{form}", form, 60)
    assert len(seen(tmp_path / f"whole.{form}")) == 60
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"the video is (cut off|damaged)|cannot be read beyond"):
        seen(tmp_path / "cut")
