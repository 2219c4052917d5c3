"""Network sources that are interrupted and reconnected."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import make_faststart, make_video, noise, read_all
from flaky_server import Flaky

from vosengine.errors import ConfigError, SourceError
from vosengine.video import SourceFrame, network, open_source

COUNT = 30


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_S", 0.02)


@pytest.fixture
def server() -> Iterator[list[Flaky]]:
    running: list[Flaky] = []
    yield running
    for flaky in running:
        flaky.close()


@pytest.fixture
def live(tmp_path: Path) -> bytes:
    """A stream as it is broadcast: no duration, a key frame every fifth."""
    options = {"g": "5", "bf": "0"}
    path = tmp_path / "live.mkv"
    return make_video(
        path, noise(COUNT), options=options, container_options={"live": "1"}
    ).read_bytes()


def read(
    address: str, tries: int
) -> tuple[list[SourceFrame], list[dict[str, object]], SourceError | None]:
    frames: list[SourceFrame] = []
    with open_source(address, reconnect=tries) as source:
        try:
            for frame in source:
                frames.append(frame)
            fault = None
        except SourceError as error:
            fault = error
        return frames, source.facts()["gaps"], fault


def test_a_live_stream_that_drops_goes_on(server: list[Flaky], live: bytes) -> None:
    half = live[: len(live) // 2]
    server.append(Flaky(half))
    with pytest.raises(SourceError, match="broke off after") as caught:
        list(open_source(server[0].address("live.mkv")))
    before = int(str(caught.value).split("broke off after ")[1].split()[0])
    assert 10 < before < 20
    server.append(Flaky(half, None, live))
    frames, gaps, fault = read(server[1].address("live.mkv"), 2)
    assert [f.index for f in frames] == list(range(before + COUNT))
    assert [f.name for f in frames] == [f"{i:05d}" for i in range(before + COUNT)]
    (gap,) = gaps
    assert gap["after_frame"] == before - 1 and gap["tries"] == 2 and gap["frames_lost"] is None
    assert gap["reason"] == "Input/output error"
    steps = np.diff([f.time_s or 0.0 for f in frames])
    np.testing.assert_allclose(np.delete(steps, before - 1), 0.04, atol=1e-6)
    assert isinstance(gap["seconds"], float) and 0.02 < gap["seconds"] < 5
    assert steps[before - 1] == pytest.approx(0.04 + gap["seconds"], abs=2e-3)
    # The end of what has no length cannot be told from a drop, and there are no tries left.
    assert fault is not None and "reconnected 2 times, as allowed" in str(fault)
    assert "secret" not in str(fault)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.slow
def test_a_file_behind_an_address_goes_on_at_the_next_frame(
    tmp_path: Path, server: list[Flaky], name: str
) -> None:
    path = make_video(tmp_path / name, noise(COUNT), container_options={"movflags": "faststart"})
    data = path.read_bytes()
    cuts = [data[: len(data) * part // 10] for part in (4, 7)]
    server.append(Flaky(*cuts, data, length=len(data)))
    frames, gaps, fault = read(server[0].address(name), 3)
    assert fault is None and len(frames) == COUNT
    whole = read_all(path)
    for frame, wanted in zip(frames, whole, strict=True):
        assert (frame.name, frame.time_s) == (wanted.name, wanted.time_s)
        np.testing.assert_array_equal(frame.image, wanted.image)
    assert [gap["frames_lost"] for gap in gaps] == [0, 0]
    assert server[0].connections == 3


def test_a_finished_broadcast_with_a_length_is_read_once(server: list[Flaky], live: bytes) -> None:
    server.append(Flaky(live[: len(live) // 3], live, live, length=len(live)))
    frames, gaps, fault = read(server[0].address("live.mkv"), 5)
    assert (len(frames), len(gaps), fault) == (COUNT, 1, None)
    assert server[0].connections == 2


def test_the_end_without_a_length_is_the_end_where_every_frame_came(
    tmp_path: Path, server: list[Flaky]
) -> None:
    data = make_faststart(tmp_path / "a.mp4", COUNT).read_bytes()
    server.append(Flaky(data))
    with open_source(server[0].address("a.mp4")) as source:
        assert len(list(source)) == COUNT


@pytest.mark.slow
def test_it_gives_up(server: list[Flaky], live: bytes) -> None:
    """Tries are limited, for a server that drops every time and for one that is gone."""
    server.append(Flaky(*[live[: len(live) // 2]] * 9))
    frames, gaps, fault = read(server[0].address("live.mkv"), 3)
    assert fault is not None and "reconnected 3 times" in str(fault)
    assert server[0].connections == 4 and len(gaps) == 3 and len(frames) > 40
    server.append(Flaky(live[: len(live) // 2]))
    frames, gaps, fault = read(server[1].address("live.mkv"), 3)
    assert fault is not None and "Connection refused" in str(fault)
    assert len(frames) < COUNT and gaps == []


@pytest.mark.slow
def test_tries_come_back_to_a_stream_that_holds(
    server: list[Flaky], live: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "STEADY_S", 0.0)
    server.append(Flaky(*[live[: len(live) // 2]] * 4, live))
    frames, gaps, _ = read(server[0].address("live.mkv"), 1)
    assert len(gaps) == 4 and len(frames) > COUNT


def test_waits_grow(server: list[Flaky], live: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def wait(self: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        return False

    server.append(Flaky(live[: len(live) // 2]))
    with open_source(server[0].address("live.mkv"), reconnect=8) as source:
        monkeypatch.setattr(network, "FIRST_WAIT_S", 0.5)
        monkeypatch.setattr(threading.Event, "wait", wait)
        with pytest.raises(SourceError):
            list(source)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_closing_ends_the_waiting(
    server: list[Flaky], live: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_S", 60.0)
    server.append(Flaky(live[: len(live) // 2]))
    source = open_source(server[0].address("live.mkv"), reconnect=1)
    reader = threading.Thread(target=lambda: list(source))
    began = time.monotonic()
    reader.start()
    while server[0].bodies or time.monotonic() - began < 0.3:
        time.sleep(0.01)
    source.close()
    reader.join(10)
    assert not reader.is_alive()


def test_reconnect_is_for_addresses(tmp_path: Path, server: list[Flaky]) -> None:
    for source in (str(tmp_path), "0"):
        with pytest.raises(ConfigError, match="is no network address"):
            open_source(source, reconnect=1)
    with pytest.raises(ConfigError, match="reconnect: is -1, wanted 0 or more"):
        open_source("http://127.0.0.1:1/a.mp4", reconnect=-1)
    with pytest.raises(SourceError, match="Connection refused"):  # a wrong address shows at once
        open_source("http://127.0.0.1:1/a.mp4", reconnect=50)
