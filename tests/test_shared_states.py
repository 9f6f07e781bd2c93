"""Epochs in a bucket: what one machine has trained, any other goes on with, whatever else writes there."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.buckets import Bucket
from tune_inat.bucket import RemoteFolder
from tune_inat.rows import Row
from tune_inat.shared_states import SharedFamilyStates, SharedStates
from tune_inat.states import RECORD_FILE, FamilyStates

pytest_plugins = ["tests.bucket_fixtures"]


def row(epoch: int, loss: float = 1.0) -> Row:
    return {"epoch": epoch, "val_accuracy": 0.5, "val_loss": loss}


def states_on(machine: Path, bucket: Bucket) -> SharedFamilyStates:
    return SharedStates(RemoteFolder(bucket.uri("runs"), ".states")).family(machine, "abc")


def keep(states: FamilyStates, epoch: int, value: float | None = None, *, best: int = 1) -> None:
    """Keep an epoch as a trial does; only the best one's weights are wanted later."""
    number = float(epoch) if value is None else value
    states.save(epoch, {"w": torch.full((2,), number)}, {"0/step": torch.tensor(number)})
    states.append(row(epoch, loss=number), {"cut": "layer3"})
    states.prune(resume_epochs={epoch}, weight_epochs={best})


def train(states: FamilyStates, first: int, last: int) -> None:
    with states.exclusively():
        for epoch in range(first, last + 1):
            keep(states, epoch)


def files_in(bucket: Bucket) -> list[str]:
    return sorted(name.rpartition("-")[0] for name in bucket.files("runs/.states/abc") if "-" in name)


def value_of(states: FamilyStates, epoch: int) -> float | None:
    loaded = states.load(epoch)
    return None if loaded is None else float(loaded[0]["w"][0])


def test_another_machine_goes_on_where_the_first_was(bucket: Bucket, hostile_path: Path) -> None:
    train(states_on(hostile_path / "a", bucket), 1, 3)
    shutil.rmtree(hostile_path / "a")
    states = states_on(hostile_path / "b", bucket)
    assert [each["epoch"] for each in states.record().rows] == [1, 2, 3]
    with states.exclusively():
        assert states.record().rows == (row(1), row(2, 2.0), row(3, 3.0))
        assert states.resumable_epoch(9) == 3
        assert value_of(states, 3) == 3.0
        keep(states, 4)
    again = states_on(hostile_path / "a", bucket)
    with again.exclusively():
        assert len(again.record().rows) == 4


def test_bucket_has_no_more_than_the_record_names(bucket: Bucket, tmp_path: Path) -> None:
    train(states_on(tmp_path, bucket), 1, 4)
    assert files_in(bucket) == ["optimizer-00004", "weights-00001", "weights-00004"]


def test_weights_of_the_best_epoch_are_found_without_training(bucket: Bucket, tmp_path: Path) -> None:
    train(states_on(tmp_path / "a", bucket), 1, 3)
    weights = states_on(tmp_path / "head", bucket).load_weights(1)
    assert weights is not None
    assert weights["w"].tolist() == [1.0, 1.0]


def test_what_was_trained_without_a_bucket_is_brought_there(bucket: Bucket, tmp_path: Path) -> None:
    train(FamilyStates(tmp_path / "a", "abc"), 1, 3)
    with states_on(tmp_path / "a", bucket).exclusively():
        pass
    other = states_on(tmp_path / "b", bucket)
    with other.exclusively():
        assert len(other.record().rows) == 3
        assert value_of(other, 3) == 3.0


def test_copies_of_another_run_of_the_same_epochs_do_not_count(bucket: Bucket, tmp_path: Path) -> None:
    """On GPUs two runs may differ in the last bits: metrics and weights stay of the same one."""
    mine = FamilyStates(tmp_path / "a", "abc")
    with mine.exclusively():
        for epoch in (1, 2):
            keep(mine, epoch, 10.0 * epoch)
    train(states_on(tmp_path / "b", bucket), 1, 2)
    states = states_on(tmp_path / "a", bucket)
    with states.exclusively():
        assert states.record().rows == (row(1, 1.0), row(2, 2.0))
        assert value_of(states, 2) == 2.0


def test_trial_that_was_cut_off_takes_nothing_back(bucket: Bucket, tmp_path: Path) -> None:
    cut_off, successor = states_on(tmp_path / "a", bucket), states_on(tmp_path / "b", bucket)
    with cut_off.exclusively():
        keep(cut_off, 1)
        keep(cut_off, 2)
        with successor.exclusively():
            assert successor.resumable_epoch(9) == 2
            keep(successor, 3)
            keep(successor, 4)
            keep(cut_off, 3, 99.0)  # late, and another result
    third = states_on(tmp_path / "c", bucket)
    with third.exclusively():
        assert [each["val_loss"] for each in third.record().rows] == [1.0, 2.0, 3.0, 4.0]
        assert value_of(third, 4) == 4.0
        assert third.load_weights(1) is not None


def test_record_that_was_altered_or_torn_counts_as_none(bucket: Bucket, tmp_path: Path) -> None:
    train(states_on(tmp_path / "a", bucket), 1, 2)
    name = f"runs/.states/abc/{RECORD_FILE}"
    for content in (bucket.read(name)[:-20], bucket.read(name).replace(b"weights", b"weighty"), b"[]"):
        bucket.put(name, content)
        assert states_on(tmp_path / "b", bucket).record().rows == ()


@pytest.mark.parametrize("content", [b"torn", None])
def test_lost_tensors_are_trained_again(bucket: Bucket, tmp_path: Path, content: bytes | None) -> None:
    train(states_on(tmp_path / "a", bucket), 1, 2)
    for name in bucket.files("runs/.states/abc"):
        if name.startswith("optimizer"):
            if content is None:
                bucket.remove(f"runs/.states/abc/{name}")
            else:
                bucket.put(f"runs/.states/abc/{name}", content)
    states = states_on(tmp_path / "b", bucket)
    with states.exclusively():
        assert states.load(2) is None
        keep(states, 1)
        keep(states, 2)
    other = states_on(tmp_path / "c", bucket)
    with other.exclusively():
        assert value_of(other, 2) == 2.0
