"""The demo: its rule for segments on made-up probabilities, and the whole of it on the recording."""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path

import numpy as np
import pytest

from examples import voice_activity
from examples.voice_activity import CHUNK_SAMPLES, PAD_SAMPLES, SAMPLE_RATE_HZ, Speech, find_speech

RECORDING = Path(voice_activity.__file__).parent / "data" / "speech.wav"


def test_speech_is_padded_on_both_sides() -> None:
    probabilities = [0.0] * 10 + [0.9] * 20 + [0.0] * 10
    assert find_speech(probabilities, 40 * CHUNK_SAMPLES) == [
        Speech(10 * CHUNK_SAMPLES - PAD_SAMPLES, 30 * CHUNK_SAMPLES + PAD_SAMPLES)
    ]


def test_a_silence_under_100_ms_does_not_end_speech() -> None:
    pause = [0.0] * 3  # 96 ms
    found = find_speech([0.9] * 20 + pause + [0.9] * 20, 43 * CHUNK_SAMPLES)
    assert found == [Speech(0, 43 * CHUNK_SAMPLES)]


def test_a_probability_between_the_thresholds_does_not_end_speech() -> None:
    found = find_speech([0.9] * 20 + [0.4] * 20 + [0.9] * 20, 60 * CHUNK_SAMPLES)
    assert found == [Speech(0, 60 * CHUNK_SAMPLES)]


def test_a_sound_under_250_ms_is_not_speech() -> None:
    assert find_speech([0.0] * 10 + [0.9] * 7 + [0.0] * 10, 27 * CHUNK_SAMPLES) == []


def test_speech_to_the_end_stops_at_the_recordings_length() -> None:
    length = 20 * CHUNK_SAMPLES - 100
    assert find_speech([0.9] * 20, length) == [Speech(0, length)]


def test_a_recording_of_another_rate_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "narrow.wav"
    with wave.open(str(path), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(8000)
        recording.writeframes(b"\0\0" * 100)
    with pytest.raises(SystemExit, match=r"narrow\.wav: 8000 Hz.*needs 16000 Hz"):
        voice_activity.read_recording(path)


def test_the_recording_has_sound_and_silence() -> None:
    samples = voice_activity.read_recording(RECORDING)
    loudness = np.abs(samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)).max(axis=1)
    assert len(samples) == 92_559
    assert loudness.max() > 0.2
    assert loudness.min() < 0.01


# `make` installs the model; a plain `pip install -e .[dev]` does not, and then the missing thing is named.
@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="needs examples/requirements-demo.txt")
def test_the_demo_finds_both_phrases_and_agrees_with_onnxruntime(capsys: pytest.CaptureFixture[str]) -> None:
    status = voice_activity.main([str(RECORDING)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "onnxruntime finds the same segments" in printed
    spans = [line.split(":")[1].split() for line in printed.splitlines() if line.startswith("  speech")]
    seconds = [(float(span[0]), float(span[3])) for span in spans]
    # "go forward ten meters" in the first half, another phrase in the second; each longer than a second.
    assert [round(start) for start, _ in seconds] == [0, 3]
    assert all(1 < end - start < 2 for start, end in seconds)
    assert seconds[-1][1] < 92_559 / SAMPLE_RATE_HZ
