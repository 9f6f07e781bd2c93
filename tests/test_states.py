"""What epochs leave: whole or not at all, and no more of it than the plan needs."""

import json
from pathlib import Path

import pytest
import torch

from tune_inat.rows import Row, best_row
from tune_inat.states import RAN_ON, RECORD_FILE, FamilyStates, ran_on


def row(epoch: int, accuracy: float = 0.5, loss: float = 1.0) -> Row:
    return {"epoch": epoch, "val_accuracy": accuracy, "val_loss": loss}


@pytest.fixture
def states(hostile_path: Path) -> FamilyStates:
    return FamilyStates(hostile_path, "abc")


def save_epochs(states: FamilyStates, n: int) -> None:
    for epoch in range(1, n + 1):
        states.save(epoch, {"w": torch.full((2,), float(epoch))}, {"0/step": torch.tensor(float(epoch))})
        states.append(row(epoch), {"cut": "layer3"})


def test_epochs_come_back_as_they_were(states: FamilyStates) -> None:
    save_epochs(states, 2)
    record = FamilyStates(states.folder.parent, "abc").record()
    assert record.rows == (row(1), row(2))
    assert record.did == {"cut": "layer3"}
    loaded = states.load(2)
    assert loaded is not None
    assert loaded[0]["w"].tolist() == [2.0, 2.0]
    assert loaded[1]["0/step"].item() == 2.0


def test_unknown_family_has_no_epochs(states: FamilyStates) -> None:
    assert states.record().rows == ()
    assert states.resumable_epoch(10) == 0
    assert states.load(1) is None


def test_epoch_on_record_is_not_recorded_again(states: FamilyStates) -> None:
    save_epochs(states, 2)
    states.append(row(1, accuracy=0.9), {})
    assert states.record().rows == (row(1), row(2))


def test_altered_record_counts_as_none(states: FamilyStates) -> None:
    save_epochs(states, 2)
    path = states.folder / RECORD_FILE
    content = json.loads(path.read_text())
    content["rows"][0]["val_accuracy"] = 0.99
    path.write_text(json.dumps(content))
    assert states.record().rows == ()


def test_torn_weights_do_not_count(states: FamilyStates) -> None:
    save_epochs(states, 1)
    file = states.folder / "weights-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert states.load(1) is None
    assert states.load_weights(1) is None


def test_resume_goes_to_the_last_epoch_that_is_not_too_late(states: FamilyStates) -> None:
    save_epochs(states, 3)
    assert states.resumable_epoch(10) == 3
    assert states.resumable_epoch(2) == 2


def test_pruning_keeps_what_is_asked_for(states: FamilyStates) -> None:
    save_epochs(states, 4)
    states.prune(resume_epochs={4}, weight_epochs={2})
    assert sorted(file.name for file in states.folder.glob("*.safetensors")) == [
        "optimizer-00004.safetensors",
        "weights-00002.safetensors",
        "weights-00004.safetensors",
    ]


def test_best_row_prefers_the_metric_then_the_loss_then_the_earlier_epoch() -> None:
    assert best_row([row(1, 0.5), row(2, 0.6), row(3, 0.4)], "val_accuracy", "maximize") == row(2, 0.6)
    tied = [row(1, 0.6, 0.9), row(2, 0.6, 0.7), row(3, 0.6, 0.7)]
    assert best_row(tied, "val_accuracy", "maximize") == row(2, 0.6, 0.7)
    assert best_row([row(1, loss=0.4), row(2, loss=0.3)], "val_loss", "minimize") == row(2, loss=0.3)


def test_epochs_say_where_each_was_trained_also_after_a_move(states: FamilyStates) -> None:
    states.folder.mkdir()
    for epoch in (1, 2):
        states.append(row(epoch), {RAN_ON: ran_on(states.record(), epoch, here="first cpu")})
    here = "second cuda:0 NVIDIA H100"
    assert ran_on(states.record(), 1) == [["first cpu", 1]]
    assert ran_on(states.record(), 3, here=here) == [["first cpu", 2], [here, 1]]
    states.append(row(3), {RAN_ON: ran_on(states.record(), 3, here=here)})
    assert ran_on(states.record(), 4, here="first cpu") == [["first cpu", 2], [here, 1], ["first cpu", 1]]


def test_epochs_of_older_records_were_trained_somewhere(states: FamilyStates) -> None:
    states.folder.mkdir()
    states.append(row(1), {"cut": "layer3"})
    assert ran_on(states.record(), 2, here="second cpu") == [["unknown", 1], ["second cpu", 1]]
