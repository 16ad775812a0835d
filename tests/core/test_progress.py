"""How far a training is and how long it will take, by its events."""

from __future__ import annotations

import pytest

from npd_core.events import EpochEnd, Finished, Measured, Started, StepEnd, to_record
from npd_core.progress import Progress

STARTED = Started(epochs=3, warmup_epochs=1, steps_per_epoch=2, clean_images=8, device="cpu")


def records(until: int):
    """An event record a second: the start, then two steps and the end of each epoch up to `until`."""
    events = [STARTED]
    for epoch in range(-1, until):
        events += [StepEnd(epoch, step, {"total": 1.0}) for step in range(2)]
        events += [
            EpochEnd(epoch, {"total": 1.0}, seconds=2.0 * (epoch + 2)),
            Measured(epoch, 0.9, 0.1, 0.8, 9),
        ]
    return [to_record(event) | {"time": float(at)} for at, event in enumerate(events)]


def test_nothing_is_known_before_the_first_event():
    progress = Progress()
    assert (progress.share, progress.epoch, progress.seconds_left()) == (0.0, None, None)


def test_share_and_time_left_by_the_pace_so_far():
    seen = records(until=2)
    progress = Progress.of(seen)
    assert (progress.epoch, progress.step, progress.done_epochs, progress.epochs) == (1, 1, 2, 3)
    assert not progress.warmup
    assert (progress.steps, progress.total_steps, progress.share) == (6, 8, 0.75)
    assert progress.seconds == 6.0
    # from the end of the warm-up (second 2) to the last measurement (second 12): two epochs
    now = seen[-1]["time"]
    assert progress.seconds_left(now) == pytest.approx(5.0)
    assert progress.seconds_left(now + 2) == pytest.approx(3.0)


def test_the_warm_up_counts_as_training_but_gives_no_pace():
    progress = Progress.of(records(until=0))
    assert progress.warmup
    assert progress.share == 0.25
    assert progress.seconds_left() is None


def test_a_finished_training_is_done():
    progress = Progress.of([*records(until=2), to_record(Finished(1, 6.5))])
    assert (progress.share, progress.seconds) == (1.0, 6.5)


def test_live_events_count_as_their_records_do_and_leave_tensors_alone():
    class OnDevice:
        def __float__(self):
            raise AssertionError("a host sync")

    progress = Progress()
    for event in (STARTED, StepEnd(-1, 0, {"total": OnDevice()})):
        progress.add_event(event)
    assert (progress.steps, progress.epoch, progress.step) == (1, -1, 0)


@pytest.mark.parametrize("record", [{"type": "EpochEnd"}, {"type": "StepEnd", "epoch": "x", "step": 0}, {}])
def test_a_damaged_record_is_passed_over(record):
    progress = Progress.of([record, *records(until=1)])
    assert progress.done_epochs == 1
