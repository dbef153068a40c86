"""Where a recording is cut: at pauses, without loss, with silence and music left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.transcribe import pauses
from cellmd.transcribe.pauses import MAX_SECONDS, RATE_HZ, Span, pieces, spans_of, speech
from noises import NOISES, SOUNDS, heard
from spoken import recording, silence, voice


def test_pieces_hold_all_speech_and_none_of_the_pauses() -> None:
    found = pieces(recording())
    spoken = [(2.0, 5.0), (9.0, 41.0), (44.0, 46.0)]
    assert len(found) == 4  # the long passage is two
    for start, stop in spoken:
        inside = [piece for piece in found if piece.start_s < stop and piece.stop_s > start]
        assert inside[0].start_s <= start + 0.1
        assert inside[-1].stop_s >= stop - 0.1
    assert sum(piece.stop_s - piece.start_s for piece in found) < 37 + 3 * 1.2
    assert all(piece.stop_s - piece.start_s <= MAX_SECONDS for piece in found)


@pytest.mark.parametrize("what", [*SOUNDS, *NOISES])
def test_where_nobody_speaks_there_are_no_pieces(what: str) -> None:
    for level in (1.0, 0.1):
        assert pieces((level * heard(what)).astype(np.float32)) == []


@pytest.mark.parametrize("what", [*SOUNDS, "noise", "deep noise", "steps"])
def test_words_between_music_are_found_and_the_music_is_not(what: str) -> None:
    other = heard(what, 8).astype(np.float32)
    found = pieces(np.concatenate([other, silence(0.5), voice(5), silence(0.5), other]))
    assert found
    assert found[0].start_s > 8
    assert found[0].start_s < 8.8
    assert 13 < found[-1].stop_s < 14.5


@pytest.mark.parametrize("what", [*SOUNDS, "noise"])
def test_words_over_quiet_music_are_found(what: str) -> None:
    other = heard(what, 12)
    mixed = other * (0.03 / np.sqrt(np.mean(other**2)))  # the voice is about 15 dB above it
    mixed[4 * RATE_HZ : 8 * RATE_HZ] += voice(4)
    found = pieces(mixed.astype(np.float32))
    assert found
    assert 3.0 < found[0].start_s < 4.6
    assert 7.4 < found[-1].stop_s < 9.0


def test_a_recording_nobody_waits_for_is_not_looked_through() -> None:
    assert pieces(voice(40), lambda seconds: seconds < 20) == []


def test_a_long_passage_is_cut_where_it_is_quiet() -> None:
    waveform = np.concatenate([voice(20), 1e-4 * voice(0.3), voice(20, 1)])
    first = pauses._cut(waveform, Span(0, len(waveform)))[0]
    assert 20.0 <= first.stop_s <= 20.3


@given(st.lists(st.booleans(), max_size=400), st.integers(0, pauses._FRAME - 1))
def test_spans_hold_every_run_of_speech_and_never_touch(frames: list[bool], beyond: int) -> None:
    active = np.array(frames, dtype=bool)
    n_samples = max(0, len(active) * pauses._FRAME - beyond)
    spans = spans_of(active, n_samples)
    for before, after in itertools.pairwise(spans):
        assert before.stop < after.start
    covered = np.zeros(len(active) * pauses._FRAME, dtype=bool)
    for span in spans:
        assert 0 <= span.start < span.stop <= n_samples
        covered[span.start : span.stop] = True
    run = 0
    for i, spoken in enumerate([*frames, False]):
        if spoken:
            run += 1
        elif run >= 8:  # no run this long may be lost
            assert covered[(i - run) * pauses._FRAME : min(i * pauses._FRAME, n_samples)].all()
            run = 0
        else:
            run = 0


@given(st.integers(1, 100 * RATE_HZ), st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_cutting_neither_doubles_nor_loses(n: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    cuts = pauses._cut(waveform, Span(0, n))
    assert cuts[0].start == 0
    assert cuts[-1].stop == n
    assert all(a.stop == b.start for a, b in itertools.pairwise(cuts))
    assert all(0 < cut.stop - cut.start <= MAX_SECONDS * RATE_HZ for cut in cuts)


def test_speech_is_the_same_whatever_stands_around_it() -> None:
    one = speech(np.concatenate([silence(3), voice(2), silence(3)]))
    assert len(one) == 1
    assert 2.5 < one[0].start_s < 3.1
    assert 4.9 < one[0].stop_s < 5.6
