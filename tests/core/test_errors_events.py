"""Errors that name the nearest choice; events that survive being written and read."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import get_args

import pytest

from npd_core import errors
from npd_core.errors import NPDError, UnknownNameError, unknown_name
from npd_core.events import (
    EpochEnd,
    Event,
    Failed,
    Finished,
    Measured,
    Started,
    StepEnd,
    to_record,
)


def test_every_error_is_of_the_family():
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(kinds) == 7
    assert all(issubclass(kind, NPDError) for kind in kinds)


def test_unknown_name_names_the_nearest_and_all():
    error = unknown_name("layer", "layer4.1.conv", ["layer3.1.conv1", "layer4.1.conv1"])
    assert isinstance(error, UnknownNameError)
    message = str(error)
    assert re.findall("'(.*?)'", message) == ["layer4.1.conv", "layer4.1.conv1"]
    assert message.endswith("layer3.1.conv1, layer4.1.conv1.")


def test_unknown_name_guesses_nothing_when_nothing_is_near():
    message = str(unknown_name("norm", "zzz", ["l2", "linf"]))
    assert re.findall("'(.*?)'", message) == ["zzz"]
    assert message.endswith("l2, linf.")


def test_unknown_name_with_no_choice_at_all():
    assert re.findall("'(.*?)'", str(unknown_name("model", "x", []))) == ["x"]


def test_unknown_name_stays_short():
    message = str(unknown_name("layer", "x", [f"conv{n}" for n in range(40)]))
    assert "conv11" in message
    assert "28" in message
    assert "conv12" not in message


EXAMPLES = [
    Started(
        epochs=3, warmup_epochs=1, steps_per_epoch=2, clean_images=250, device="cpu", layer="layer4.1.conv1"
    ),
    StepEnd(-1, 0, {"bn": 0.5, "total": 0.5}),
    EpochEnd(
        0,
        {"bn": 0.5, "asr": 0.1, "bce1": 0.2, "bce2": 0.3, "total": 0.9},
        seconds=1.5,
        kept=False,
        objective=0.7,
    ),
    Measured(0, acc=0.9, asr=0.1, ra=0.8, images=100),
    Finished(
        2, seconds=4.0, stopped=True, result={"der": 0.97}, details={"pruned": {"layer4.1.bn2": [3, 5]}}
    ),
    Failed("NaN in the loss", 1, seconds=2.0),
]


def test_there_is_an_example_of_every_event():
    assert {type(event) for event in EXAMPLES} == set(get_args(Event))


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_a_record_is_json_with_every_field_but_the_result(event):
    record = json.loads(json.dumps(to_record(event)))
    assert record.pop("type") == type(event).__name__
    assert record == {f.name: getattr(event, f.name) for f in fields(event) if f.name != "result"}


def test_a_step_reads_its_tensors_only_when_it_is_recorded():
    class OnDevice:
        read = 0

        def __float__(self):
            OnDevice.read += 1
            return 0.25

    event = StepEnd(0, 3, {"total": OnDevice()})
    assert OnDevice.read == 0
    assert to_record(event) == {"type": "StepEnd", "epoch": 0, "step": 3, "losses": {"total": 0.25}}
    assert OnDevice.read == 1
