"""Many answers at once over the packed forward pass.

One thread owns the model. Every step runs one row of each answer that is being decoded and a bounded share of the
prompts that are being read, so answers come and go at any token and a long prompt delays the others by a bounded time.
What an answer is does not depend on its company (`cellmd.backends.ops`): it is token for token what it would be alone.

A slot whose answer has ended keeps its keys and values until another needs the slot; a prompt that begins with the same
tokens and media goes on from there. One that begins like the prompt of an answer that is being made waits until that is
read so far, and goes on from a copy: what several share is computed once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field

import numpy as np

from cellmd.errors import BackendError, BusyError, CellmdError
from cellmd.runtime.batch import Part, Sequence, SoftTokens
from cellmd.runtime.fair_queue import FairQueue
from cellmd.runtime.generate import Runner
from cellmd.runtime.job import Counts, Deliver, Job, Request
from cellmd.runtime.logits import Logits
from cellmd.runtime.result import Piece, Timings
from cellmd.runtime.reuse import LEAST_KEPT, EncodedMedia, Slot, choose_slot, common
from cellmd.runtime.saved import Saved

_STEP_SECONDS = 0.25
"""How long the prompts of a step may delay the answers beside them, about."""

_FEWEST_ROWS = 16
"""Rows of prompts that a step runs at least."""

_IDLE_SECONDS = 2.0
"""After so long without requests, what slots hold is kept on disk."""

_LOADING_SECONDS = 0.02
"""How long new requests may go unnoticed while nothing is done but reading from disk."""

_log = logging.getLogger(__name__)


@dataclass
class _State:
    waiting: FairQueue[Job]
    running: list[Job] = field(default_factory=list)
    closing: bool = False
    abandon: bool = False


class Scheduler:
    """Runs answers in the slots of a runner's cache; see the module. Safe to use from several threads.

    queue_limit: requests that may wait for a slot. step_seconds: see `_STEP_SECONDS`. saved: what earlier ones
    computed, and where this one keeps what it computes; it is closed with the scheduler.
    """

    def __init__(
        self,
        runner: Runner,
        n_slots: int,
        *,
        queue_limit: int = 64,
        step_seconds: float = _STEP_SECONDS,
        saved: Saved | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.counts = Counts()
        self.n_slots = n_slots
        self._runner = runner
        self._queue_limit = queue_limit
        self._step_seconds = step_seconds
        self._on_close = on_close
        self._slots = [Slot(index) for index in range(n_slots)]
        self._encoded = EncodedMedia()
        self._saved = saved
        self._row_seconds = 0.0
        self._state = _State(FairQueue())
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cellmd-scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Deliver) -> Job:
        """Take a request in. Raises BusyError if too many wait, ContextLengthError, PromptError."""
        self._runner.check(request.prompt)
        self._runner.cache.check_room(len(request.prompt), request.settings.max_tokens)
        job = Job(request, deliver, self._notify)
        with self._changed:
            if self._state.closing:
                raise BusyError("no more answers are begun: the model is being closed")
            free = self.n_slots - len(self._state.running)
            if len(self._state.waiting) >= self._queue_limit + free:
                self.counts.refused += 1
                raise BusyError(f"{self._queue_limit} answers are waiting already; ask again later")
            self.counts.requests += 1
            self._state.waiting.put(*request.client, job)
            self._count()
            self._changed.notify()
        return job

    def stream(self, request: Request) -> Iterator[Piece]:
        """The pieces of one answer, for callers with a thread of their own. Close the iterator to end it early."""
        pieces: queue.SimpleQueue[Piece | CellmdError] = queue.SimpleQueue()
        job = self.submit(request, pieces.put)
        try:
            while True:
                piece = pieces.get()
                if isinstance(piece, CellmdError):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            job.cancel()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those taken in end for so long, and stop the thread. Again: does nothing."""
        with self._changed:
            self._state.closing = True
            self._changed.notify_all()
        self._thread.join(drain_seconds)
        with self._changed:
            self._state.abandon = True
            self._changed.notify_all()
        self._thread.join()
        on_close, self._on_close = self._on_close, lambda: None
        on_close()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    # ---- on the scheduler's own thread --------------------------------------------------------------------------

    def _run(self) -> None:
        state = self._state
        while True:
            with self._changed:
                while not state.running and not state.waiting and not state.closing:
                    if not self._changed.wait(_IDLE_SECONDS if self._to_save() else None):
                        break
                if state.abandon or (state.closing and not state.running and not state.waiting):
                    break
                self._admit()
                self._drop_cancelled()
                self._count()
            try:
                if not state.running:
                    self._save_slots()
                    continue
                self._copy_for([job for job in state.running if job.leader is not None])
                self._take_in_loaded()
                self._encode_one()
                self._step()
            except Exception as error:  # the thread must outlive whatever it is: others will ask
                self._fail(list(state.running), error)
        self._abandon()
        if self._saved is not None:
            self._save_slots()
            self._saved.close()

    def _abandon(self) -> None:
        error = BusyError("the answer was ended: the model is being closed")
        with self._changed:
            for job in [*self._state.running, *self._state.waiting.drain()]:
                job.deliver(error)
            self._state.running.clear()
            self._count()

    def _admit(self) -> None:
        state = self._state
        while state.waiting and len(state.running) < self.n_slots:
            job = state.waiting.take()
            if job.cancelled:
                self.counts.cancelled += 1
                continue
            try:
                self._place(job)
            except Exception as error:  # the thread must outlive whatever it is: others wait
                self.counts.failed += 1
                job.deliver(_as_failure(error))

    def _place(self, job: Job) -> None:
        """Give a job the slot that saves most, and begin."""
        state, prompt = self._state, job.request.prompt
        taken = {running.sequence.slot for running in state.running}
        idle = [slot for slot in self._slots if slot.index not in taken]
        slot, n_kept = choose_slot(idle, job.keys, self._runner.cache)
        leader, n_shared = self._leader_for(job)
        name, n_saved = self._saved.best(job.keys) if self._saved is not None else ("", 0)
        elsewhere = max(n_shared, n_saved)
        if elsewhere >= n_kept + LEAST_KEPT:
            slot, n_kept = min(idle, key=lambda slot: slot.last_used), 0
            if n_saved >= n_shared + LEAST_KEPT and self._saved is not None:
                # Asked for before anything is saved: that may take the place of what was found.
                job.loading, job.n_shared = (name, self._saved.load(name)), n_saved
            else:
                job.leader, job.n_shared = leader, n_shared
        self._save(slot, n_kept)
        slot.begin(n_kept)
        job.sequence = Sequence(slot.index, list(prompt.token_ids))
        if not job.is_waiting:
            self._start(job, n_kept)
        job.began = time.perf_counter()
        self.counts.prompt_tokens += len(prompt)
        state.running.append(job)

    def _save(self, slot: Slot, n_kept: int = 0, *, wait: bool = False) -> None:
        """Keep on disk what a slot holds before all but n_kept positions of it are lost, if that is most of it."""
        worth = slot.unsaved and len(slot.keys) > 2 * n_kept
        if self._saved is not None and worth:
            slot.unsaved = False
            self._saved.save(slot.index, slot.keys, slot.written(len(slot.keys)), wait=wait)

    def _to_save(self) -> bool:
        return self._saved is not None and any(slot.unsaved for slot in self._slots)

    def _save_slots(self) -> None:
        for slot in self._slots:
            self._save(slot, wait=True)

    def _take_in_loaded(self) -> None:
        """Let those go on whose beginnings have been read from disk."""
        running = self._state.running
        loading = {job.loading[1]: job for job in running if job.loading is not None}
        if not loading or self._saved is None:
            return
        idle = all(job.is_waiting for job in running)
        for future in wait(loading, _LOADING_SECONDS if idle else 0.0, FIRST_COMPLETED).done:
            job, loaded = loading[future], future.result()
            name, slot = job.loading[0] if job.loading else "", self._slots[job.sequence.slot]
            if self._saved.take_in(name, loaded, slot.index) and loaded is not None:
                slot.copied(loaded.n_written)
                self._start(job, job.n_shared)
            else:
                self._start(job, 0)

    def _leader_for(self, job: Job) -> tuple[Job | None, int]:
        """The running job with whose prompt this one's begins alike the furthest, and how far."""
        leader, n_shared = None, 0
        for other in self._state.running:
            n = common(other.keys, job.keys)
            done = other.sequence.n_done
            written = self._slots[other.sequence.slot].written(done)
            if other.loading is not None and n < other.n_shared:
                continue  # it will hold more at once than can be gone back from
            if n > n_shared and (done < n or self._runner.cache.can_go_back(written, n)):
                leader, n_shared = other, n
        return leader, n_shared

    def _start(self, job: Job, n_kept: int) -> None:
        job.start_at(n_kept)
        self.counts.cached_tokens += n_kept

    def _copy_for(self, followers: list[Job]) -> None:
        """Let those go on whose leaders have been read far enough."""
        for job in followers:
            leader = job.leader
            if leader is not None and leader.sequence.n_done >= job.n_shared:
                source, target = leader.sequence.slot, job.sequence.slot
                self._runner.copy_slot(source, target, job.n_shared)
                self._slots[target].copied(self._slots[source].written(leader.sequence.n_done))
                self._start(job, job.n_shared)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._state.running if job.cancelled]:
            self.counts.cancelled += 1
            self._release(job)

    def _release(self, job: Job) -> None:
        """The job's slot is free; what was run in it may be gone on from."""
        answer = np.asarray(job.sequence.token_ids[len(job.keys) :], dtype=np.int64)
        keys = np.concatenate([job.keys, answer])[: job.sequence.n_done]
        self._leave(job, keys)

    def _leave(self, job: Job, keys: np.ndarray) -> None:
        """The job's slot is free and holds the positions of these keys. Who waited for more starts alone."""
        followers = [other for other in self._state.running if other.leader is job]
        if len(keys):
            self._copy_for(followers)
        for follower in followers:
            if follower.leader is job:
                self._start(follower, 0)
        self._slots[job.sequence.slot].end(keys)
        self._state.running.remove(job)

    def _count(self) -> None:
        self.counts.waiting, self.counts.running = len(self._state.waiting), len(self._state.running)

    def _encode_one(self) -> None:
        """The next medium of the job that has waited longest: one a step, so that the others go on between."""
        job = next((job for job in self._state.running if job.to_encode), None)
        if job is None:
            return
        span, digest = job.to_encode.pop(0)
        n = span.features.n_soft_tokens
        values = self._encoded.get(digest)
        if values is None and self._saved is not None:
            values = self._saved.medium(digest, n)
            if values is not None:
                self._encoded.put(digest, values, n * self._runner.model.config.text.d_model * 4)
        if values is None:
            try:
                soft, encoder_ms = self._runner.encode([span])
            except Exception as error:
                self._fail([job], error)
                return
            values = soft[0].values
            self._encoded.put(digest, values, n * self._runner.model.config.text.d_model * 4)
            if self._saved is not None:
                self._saved.save_medium(digest, values)
            job.encoder_ms[span.kind] = job.encoder_ms.get(span.kind, 0.0) + encoder_ms[span.kind]
        job.sequence.soft.append(SoftTokens(span.start, n, values))

    def _step(self) -> None:
        jobs = [job for job in self._state.running if not job.is_waiting and not job.to_encode]
        parts, wanting = self._parts(jobs)
        if not parts:
            return
        began = time.perf_counter()
        try:
            rows = self._run_parts(parts, wanting)
        except Exception as error:
            self._fail(jobs, error)
            return
        seconds = time.perf_counter() - began
        n_rows = sum(part.n_rows for part in parts)
        self.counts.steps += 1
        self.counts.rows += n_rows
        if n_rows > len(wanting):  # prompts were read: what does a row of them cost?
            latest = seconds / n_rows
            self._row_seconds = latest if not self._row_seconds else 0.5 * (self._row_seconds + latest)
        for job, row in zip(wanting, rows, strict=True):
            try:
                self._take(job, row)
            except Exception as error:
                self._fail([job], error)

    def _run_parts(self, parts: list[Part], wanting: list[Job]) -> list[Logits]:
        """The logits that the jobs want. Where only answers go on, and nobody waits to be read, the next step may be
        begun ahead."""
        if any(job.n_prompt_left for job in wanting) or len(wanting) < len(parts):
            return self._runner.rows_of(self._runner.advance(parts))
        undisturbed = len(wanting) == len(self._state.running) and not self._state.waiting
        foreseen = [job.answering.foreseen() if undisturbed else None for job in wanting]
        return self._runner.steps([part.sequence for part in parts], foreseen)

    def _parts(self, jobs: list[Job]) -> tuple[list[Part], list[Job]]:
        """What the next step runs, and the jobs whose logits it gives, in their order."""
        decoding = [job for job in jobs if not job.n_prompt_left]
        # a step begun ahead is of those that are decoding: whoever came since is read from the next step on
        reading = [] if decoding and self._runner.is_ahead else [job for job in jobs if job.n_prompt_left]
        parts = [Part(job.sequence, 1, 1) for job in decoding]
        wanting = list(decoding)
        room = self._runner.cache.chunk - len(decoding)
        if decoding and self._row_seconds:
            room = min(room, max(_FEWEST_ROWS, int(self._step_seconds / self._row_seconds)))
        for i, job in enumerate(reading):
            share = -(-room // (len(reading) - i))
            n_rows = min(share, job.n_prompt_left)
            if n_rows < 1:
                continue
            room -= n_rows
            ends = n_rows == job.n_prompt_left
            parts.append(Part(job.sequence, n_rows, int(ends)))
            if ends:
                wanting.append(job)
        return parts, wanting

    def _take(self, job: Job, logits: Logits) -> None:
        answering = job.answering
        if not answering.n_tokens:
            job.answered = time.perf_counter()
            self.counts.first_token_seconds += job.answered - job.asked
        job.sequence.token_ids.append(answering.take(logits))
        self.counts.completion_tokens += 1
        if answering.finish is None:
            piece = answering.piece()
            if piece is not None:
                job.deliver(piece)
            return
        n_prompt, ended = len(job.keys), time.perf_counter()
        timings = Timings.of(
            n_prompt - job.n_cached,
            answering.n_tokens,
            features_ms=job.request.prompt.features_ms,
            encoder_ms=job.encoder_ms,
            prefill_ms=(job.answered - job.began) * 1000.0,
            decode_ms=(ended - job.answered) * 1000.0,
        )
        last = answering.last(answering.usage(n_prompt, job.n_cached), timings)
        with self._changed:
            self._release(job)
            self.counts.finished += 1
            self._count()
        job.deliver(last)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """End jobs whose step went wrong. What their slots hold is not to be trusted."""
        error = _as_failure(error)
        with self._changed:
            for job in jobs:
                self._leave(job, np.empty(0, np.int64))
                self.counts.failed += 1
            self._count()
        for job in jobs:
            job.deliver(error)


def _as_failure(error: Exception) -> CellmdError:
    """An error as whoever waits for the answer is told of it; what nobody foresaw is logged."""
    if isinstance(error, CellmdError):
        return error
    _log.exception("a step of the model failed", exc_info=error)
    return BackendError(f"the model failed while it made the answer: {type(error).__name__}")
