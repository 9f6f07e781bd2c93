"""Where searches are kept: whose a folder in a bucket is, by what the bucket has and not by old copies."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import Bucket
from tune_inat.errors import UserError
from tune_inat.meter import SilentMeter
from tune_inat.runs import IDENTITY_FILE, find_run_folder
from tune_inat.settings import make_settings
from tune_inat.storages import Storage, open_storage

pytest_plugins = ["tests.bucket_fixtures"]

MINE: dict[str, Any] = {"space": 1, "images": "mine"}
OTHERS: dict[str, Any] = {"space": 1, "images": "others"}


class Quiet(SilentMeter):
    def say(self, text: str) -> None:
        pass


def storage_of(bucket: Bucket, **arguments: Any) -> Storage:
    return open_storage(make_settings(storage=bucket.uri("runs"), **arguments))


def folder_of(storage: Storage, name: str | None = None, proposed: str = "grid") -> Path:
    storage.look_up(name, proposed)
    return find_run_folder(storage.root, name, proposed, MINE, place=storage.place)


def leave(bucket: Bucket, name: str, identity: dict[str, Any]) -> None:
    bucket.put(f"runs/{name}/{IDENTITY_FILE}", json.dumps(identity).encode())


def test_folder_of_this_search_is_found_and_those_of_others_are_not_taken(bucket: Bucket) -> None:
    leave(bucket, "grid", OTHERS)
    leave(bucket, "grid-2", MINE)
    assert folder_of(storage_of(bucket)).name == "grid-2"


def test_folder_that_holds_something_else_is_left_alone(bucket: Bucket) -> None:
    bucket.put("runs/grid/photo.png", b"x")
    assert folder_of(storage_of(bucket)).name == "grid-2"
    with pytest.raises(UserError, match="s3://a-bucket/runs/grid holds other files"):
        folder_of(storage_of(bucket), name="grid")


def test_name_of_another_search_is_refused_by_its_uri(bucket: Bucket) -> None:
    leave(bucket, "mine", OTHERS)
    with pytest.raises(UserError, match="s3://a-bucket/runs/mine holds a search with other images"):
        folder_of(storage_of(bucket), name="mine")


def test_copies_of_what_has_left_the_bucket_do_not_count(bucket: Bucket) -> None:
    leave(bucket, "grid", OTHERS)
    assert folder_of(storage_of(bucket)).name == "grid-2"
    bucket.remove(f"runs/grid/{IDENTITY_FILE}")
    assert folder_of(storage_of(bucket)).name == "grid"


def test_what_a_search_writes_is_in_the_bucket_when_its_folder_is_let_go(bucket: Bucket) -> None:
    storage = storage_of(bucket)
    folder = folder_of(storage)
    with storage.kept(folder, Quiet()):
        (folder / "trials.jsonl").write_text("{}\n")
    assert bucket.files("runs/grid") == {"trials.jsonl": 3}


def test_dry_run_writes_nothing(bucket: Bucket) -> None:
    leave(bucket, "grid", MINE)
    bucket.put("runs/grid/trials.jsonl", b"{}\n")
    before = bucket.files()
    folder = folder_of(storage_of(bucket, dry_run=True))
    assert (folder / "trials.jsonl").read_bytes() == b"{}\n"  # what is left to plan follows from it
    assert bucket.files() == before


def test_epochs_without_reuse_are_of_one_run_and_go_with_it(bucket: Bucket) -> None:
    storage = storage_of(bucket, reuse=False, address="auto")
    other = storage_of(bucket, reuse=False, address="auto")
    assert storage.states is not None
    assert other.states is not None
    assert storage.states.below != other.states.below
    with storage.kept(folder_of(storage), Quiet()):
        storage.states.write("abc/epochs.json", b"{}")
    assert bucket.files("runs/.states") == {}
