"""Find speech in a recording with silero-vad, a trained model with If nodes and LSTM cells.

The same loop runs twice, once through ``parallax.InferenceSession`` and once through
``onnxruntime.InferenceSession``: the speech segments and the difference between the two are printed,
and the exit status is 1 if they disagree.

    python examples/voice_activity.py [RECORDING.wav]

The recording must be 16 kHz, mono, 16-bit PCM. The model comes from the PyPI package ``silero-vad``
(installed without its dependencies, see ``requirements-demo.txt``); only its ONNX file is read.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import parallax

SAMPLE_RATE_HZ = 16_000
CHUNK_SAMPLES = 512
CONTEXT_SAMPLES = 64
"""Each chunk is fed with the tail of the one before it, as the model was trained."""

THRESHOLD = 0.5
EXIT_THRESHOLD = THRESHOLD - 0.15
"""Speech goes on until the probability falls below this, so that it does not flicker."""
MIN_SPEECH_SAMPLES = SAMPLE_RATE_HZ * 250 // 1000
MIN_SILENCE_SAMPLES = SAMPLE_RATE_HZ * 100 // 1000
PAD_SAMPLES = SAMPLE_RATE_HZ * 30 // 1000

TOLERANCE = 1e-4
PASSES = 7

Samples = NDArray[np.float32]


class Speech(NamedTuple):
    """A stretch of speech, in samples: [start, end)."""

    start: int
    end: int


class Pass(NamedTuple):
    """One run over the whole recording: a probability and a duration per chunk."""

    probabilities: NDArray[np.float32]
    chunk_ns: list[int]


def find_model() -> Path:
    """The ONNX file inside the installed silero-vad package, found without importing it (it would import torch)."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "silero-vad is not installed; run `make demo`, "
            "or: pip install --no-deps --requirement examples/requirements-demo.txt"
        )
    return Path(spec.submodule_search_locations[0], "data", "silero_vad.onnx")


def read_recording(path: Path) -> Samples:
    """Samples in [-1, 1) of a 16 kHz mono 16-bit WAV file."""
    with wave.open(str(path), "rb") as recording:
        found = (recording.getframerate(), recording.getnchannels(), 8 * recording.getsampwidth())
        if found != (SAMPLE_RATE_HZ, 1, 16):
            rate, channels, bits = found
            raise SystemExit(f"{path}: {rate} Hz, {channels} channel(s), {bits} bit; needs 16000 Hz, mono, 16 bit")
        frames = recording.readframes(recording.getnframes())
    samples = np.frombuffer(frames, dtype="<i2").astype(np.float32)
    samples /= 32768
    return samples


def listen(session: onnxruntime.InferenceSession, samples: Samples) -> Pass:
    """Feed the recording chunk by chunk, carrying the LSTM's state, as silero's own streaming loop does."""
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros((1, CONTEXT_SAMPLES), np.float32)
    rate = np.array(SAMPLE_RATE_HZ, np.int64)
    padded = np.pad(samples, (0, -len(samples) % CHUNK_SAMPLES))
    probabilities, chunk_ns = [], []
    for chunk in padded.reshape(-1, 1, CHUNK_SAMPLES):
        window = np.concatenate([context, chunk], axis=1)
        began_ns = time.perf_counter_ns()
        output, state = session.run(None, {"input": window, "state": state, "sr": rate})
        chunk_ns.append(time.perf_counter_ns() - began_ns)
        probabilities.append(output[0, 0])
        context = window[:, -CONTEXT_SAMPLES:]
    return Pass(np.array(probabilities, np.float32), chunk_ns)


def find_speech(probabilities: Sequence[float] | NDArray[np.float32], length: int) -> list[Speech]:
    """Turn one probability per chunk into stretches of speech, padded on both sides.

    The rule of silero-vad's ``get_speech_timestamps`` with its defaults: speech starts at ``THRESHOLD``,
    ends where the probability stays below ``EXIT_THRESHOLD`` for ``MIN_SILENCE_SAMPLES``, and counts if it
    is longer than ``MIN_SPEECH_SAMPLES``. ``length`` is the recording's, in samples.
    """
    found: list[Speech] = []
    start: int | None = None
    silence: int | None = None
    for index, probability in enumerate(probabilities):
        now = index * CHUNK_SAMPLES
        if probability >= THRESHOLD:
            silence = None
            start = now if start is None else start
        elif probability < EXIT_THRESHOLD and start is not None:
            silence = now if silence is None else silence
            if now - silence >= MIN_SILENCE_SAMPLES:
                found.append(Speech(start, silence))
                start = silence = None
    if start is not None:
        found.append(Speech(start, length))
    return _pad([speech for speech in found if speech.end - speech.start > MIN_SPEECH_SAMPLES], length)


def _pad(found: Sequence[Speech], length: int) -> list[Speech]:
    """Widen each stretch by ``PAD_SAMPLES``; neighbours closer than twice that share the gap evenly."""
    starts = [speech.start for speech in found]
    ends = [speech.end for speech in found]
    for index in range(len(found) - 1):
        gap = starts[index + 1] - ends[index]
        pad = min(gap // 2, PAD_SAMPLES)
        ends[index] += pad
        starts[index + 1] -= pad
    if found:
        starts[0] = max(0, starts[0] - PAD_SAMPLES)
        ends[-1] = min(length, ends[-1] + PAD_SAMPLES)
    return [Speech(start, end) for start, end in zip(starts, ends, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description="Find speech in a recording, through Parallax and ONNX Runtime.")
    parser.add_argument("recording", nargs="?", type=Path, default=Path(__file__).parent / "data" / "speech.wav")
    options = parser.parse_args(arguments)

    model = find_model()
    samples = read_recording(options.recording)
    # One thread, as silero-vad itself sets: a chunk is too little work to share.
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = session_options.inter_op_num_threads = 1
    sessions = {
        "parallax": parallax.InferenceSession(model, session_options, providers=["CPUExecutionProvider"]),
        "onnxruntime": onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"]),
    }
    # Interleaved, so that a busy moment of the machine falls on both alike.
    passes: dict[str, list[Pass]] = {name: [] for name in sessions}
    for _ in range(PASSES):
        for name, session in sessions.items():
            passes[name].append(listen(session, samples))

    # Every pass is compared, not only the first: a runtime that is right once is not yet right.
    ours, theirs = (np.stack([run.probabilities for run in passes[name]]) for name in ("parallax", "onnxruntime"))
    speech = find_speech(ours[0], len(samples))
    print(f"{options.recording.name}: {len(samples) / SAMPLE_RATE_HZ:.2f} s, model {model.name}")
    for index, (start, end) in enumerate(speech, 1):
        print(f"  speech {index}: {start / SAMPLE_RATE_HZ:6.2f} s to {end / SAMPLE_RATE_HZ:6.2f} s")
    if not speech:
        print("  no speech")

    same_speech = all(find_speech(run, len(samples)) == speech for run in (*ours, *theirs))
    difference = float(np.abs(ours - theirs).max(initial=0.0))
    agreement = "equal bit for bit" if ours.tobytes() == theirs.tobytes() else f"largest difference {difference:.2e}"
    print(f"onnxruntime finds {'the same' if same_speech else 'DIFFERENT'} segments")
    print(
        f"{PASSES} x {ours.shape[1]} probabilities, {ours.min(initial=1):.4f} to {ours.max(initial=0):.4f}: {agreement}"
    )
    for name, runs in passes.items():
        medians_us = [statistics.median(run.chunk_ns) / 1000 for run in runs if run.chunk_ns]
        if medians_us:
            print(
                f"{name:>12}: {statistics.median(medians_us):6.0f} µs per chunk of 32 ms "
                f"(median; {PASSES} passes: {min(medians_us):.0f} to {max(medians_us):.0f})"
            )
    return 0 if same_speech and difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
