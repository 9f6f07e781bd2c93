"""Files cut short, zeroed or altered at every kind of place: none is ever taken for whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benches import config_of, make_bench, numbers_of, reports_of
from tune_inat.errors import UserError
from tune_inat.images import INDEX_FILE, PIXELS_FILE
from tune_inat.ledger import LEDGER_FILE, Ledger
from tune_inat.runs import IDENTITY_FILE, find_run_folder, held, keep_identity
from tune_inat.shards import ARRAY_FILE, PROGRESS_FILE
from tune_inat.store import ENTRY_FILE, STAMPS_FILE, Store
from tune_inat.trial import EpochReport

Damage = Callable[[bytes], bytes]

# What a kill, power loss or a bad disk makes of a file.
DAMAGES: dict[str, Damage] = {
    "empty": lambda content: b"",
    "its first byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "all but a byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "its end zeros": lambda content: content[:-9] + bytes(len(content[-9:])),
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "longer": lambda content: content + b"x",
}
CUTS = ("empty", "its first byte", "half", "all but a byte", "longer")
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def spoil(path: Path, damage: Damage) -> None:
    path.write_bytes(damage(path.read_bytes()))


@damages
@pytest.mark.parametrize("name", ["weights-*", "optimizer-*", "epochs.json"])
def test_trial_goes_on_to_the_same_numbers_whatever_its_states_have_come_to(
    images: Path, store: Store, damage: Damage, name: str
) -> None:
    config = config_of(epochs=3, freeze=1.0)
    expected = numbers_of(reports_of(make_bench(images, Store(store.root.with_name("other"))), config))
    bench = make_bench(images, store)
    reports_of(bench, config.model_copy(update={"epochs": 2}))
    for file in bench.states(config).folder.glob(name):
        spoil(file, damage)
    assert numbers_of(reports_of(bench, config)) == expected


def test_epoch_is_reported_when_its_state_is_on_disk(images: Path, store: Store) -> None:
    bench, config = make_bench(images, store), config_of(epochs=4, freeze=1.0)
    kept: list[tuple[int, int]] = []

    def look(report: EpochReport) -> None:
        states, epoch = bench.states(config), int(report.row["epoch"])
        assert states.record().rows[epoch - 1] == report.row
        kept.append((epoch, states.resumable_epoch(epoch)))

    reports_of(bench, config, stop=look)
    assert kept == [(epoch, epoch) for epoch in (1, 2, 3, 4)]


@damages
@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_entry_of_the_cache_that_was_damaged_is_made_again(
    images: Path, store: Store, damage: Damage, kind: str
) -> None:
    config = config_of(epochs=1, freeze=0.9)
    expected = numbers_of(reports_of(make_bench(images, store), config))
    (entry,) = (store.root / kind).iterdir()
    (array,) = entry.glob("*.npy")
    before = array.read_bytes()
    spoil(array, damage)
    assert not Store(store.root).has(kind, entry.name)
    for family in (store.root / "states").glob("[!.]*"):
        family.rename(store.root / "states of before")
    assert numbers_of(reports_of(make_bench(images, Store(store.root)), config)) == expected
    assert array.read_bytes() == before


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["pixels", "features"])
@pytest.mark.parametrize("is_progress", [False, True], ids=["array", "progress"])
def test_build_that_was_left_in_pieces_is_begun_anew(
    images: Path, store: Store, cut: str, kind: str, is_progress: bool
) -> None:
    config = config_of(epochs=1, freeze=0.9)
    reports_of(make_bench(images, store), config)
    (entry,) = (store.root / kind).iterdir()
    array_file, progress_file = (PIXELS_FILE, INDEX_FILE) if kind == "pixels" else (ARRAY_FILE, PROGRESS_FILE)
    before = (entry / array_file).read_bytes()
    part = entry.with_name(f".{entry.name}.part")
    entry.rename(part)
    for name in (ENTRY_FILE, STAMPS_FILE):
        (part / name).unlink()
    if kind == "features":
        (part / PROGRESS_FILE).write_text("54")
    spoil(part / (progress_file if is_progress else array_file), DAMAGES[cut])
    for family in (store.root / "states").glob("[!.]*"):
        family.rename(store.root / "states of before")
    reports_of(make_bench(images, Store(store.root)), config)
    assert (entry / array_file).read_bytes() == before


CONFIG = {"epochs": 3, "lr": 0.1}


def write_journal(folder: Path) -> bytes:
    """The journal of a trial that has ended, one that was stopped and one that goes on."""
    ledger = Ledger(folder)
    for trial_id, n_epochs in (("done", 3), ("stopped", 2), ("cut off", 1)):
        ledger.start(trial_id, CONFIG)
        for epoch in range(1, n_epochs + 1):
            ledger.epoch(trial_id, {"epoch": epoch, "val_accuracy": epoch / 10}, trained=True, did={})
        if trial_id != "cut off":
            ledger.end(trial_id, "TERMINATED" if n_epochs == 3 else "STOPPED", seconds=1.0)
    return (folder / LEDGER_FILE).read_bytes()


def test_journal_cut_at_any_byte_keeps_what_came_before_and_goes_on(hostile_path: Path) -> None:
    whole = write_journal(hostile_path)
    path = hostile_path / LEDGER_FILE
    for n_bytes in range(len(whole) + 1):
        path.write_bytes(whole[:n_bytes])
        n_lines = whole[:n_bytes].count(b"\n") + (whole[n_bytes : n_bytes + 1] == b"\n")
        events = [json.loads(line) for line in whole.split(b"\n")[:n_lines]]
        ledger = Ledger(hostile_path)
        n_rows = sum(len(record.rows) for record in ledger.records().values())
        assert n_rows == sum(event["event"] == "epoch" for event in events)
        ended = {event["trial_id"] for event in events if event["event"] == "end"}
        full = {key for key, record in ledger.records().items() if len(record.rows) == 3}
        assert ledger.finished().keys() == ended | full
        ledger.start("next", CONFIG)
        assert Ledger(hostile_path).records() == ledger.records()


@damages
def test_trial_that_lacks_a_line_is_not_finished_and_the_others_are(
    hostile_path: Path, damage: Damage
) -> None:
    lines = write_journal(hostile_path).split(b"\n")
    for number in range(len(lines) - 1):
        trial_id = json.loads(lines[number])["trial_id"]
        spoiled = damage(lines[number])
        try:
            json.loads(spoiled)
            continue  # nothing that JSON would see
        except ValueError:
            pass
        (hostile_path / LEDGER_FILE).write_bytes(b"\n".join([*lines[:number], spoiled, *lines[number + 1 :]]))
        others = {"done", "stopped"} - {trial_id}
        finished = Ledger(hostile_path).finished()
        assert others <= finished.keys()
        is_known_all_the_same = b'"end"' in lines[number] and trial_id == "done"
        assert (trial_id in finished) == is_known_all_the_same


@damages
def test_search_whose_identity_was_damaged_is_not_taken_for_another(
    hostile_path: Path, damage: Damage
) -> None:
    identity = {"space": "grid", "images": "abc"}
    with held(hostile_path / "mine"):
        keep_identity(hostile_path / "mine", identity)
    spoil(hostile_path / "mine" / IDENTITY_FILE, damage)
    if find_run_folder(hostile_path, None, "mine", identity) == hostile_path / "mine":
        return  # what was damaged says nothing
    with pytest.raises(UserError, match=r"search\.json is damaged"):
        find_run_folder(hostile_path, "mine", "mine", identity)


def test_what_a_kill_left_half_written_takes_no_name_and_goes(hostile_path: Path) -> None:
    folder = hostile_path / "mine"
    folder.mkdir()
    left = folder / f".{IDENTITY_FILE}.12.34.tmp"
    left.write_text("{")
    assert find_run_folder(hostile_path, None, "mine", {"space": "grid"}) == folder
    with held(folder):
        assert not left.exists()
        keep_identity(folder, {"space": "grid"})
    assert find_run_folder(hostile_path, None, "mine", {"space": "grid"}) == folder
