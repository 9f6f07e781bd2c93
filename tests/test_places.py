"""What a process of another machine keeps there: data sets stay, what is not reused goes with the process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benches import make_bench
from tune_inat.places import at_this_host
from tune_inat.scratch import PREFIX
from tune_inat.store import Store

# A trial's process of a search without reuse that another machine conducts, which ends when it is told to.
GUEST = """
import sys
from pathlib import Path
from tune_inat.places import Caches
from tune_inat.store import Store

store = Caches(host="elsewhere", home=Store(Path("/nowhere")), is_kept=False, budget_bytes=None).here()
store.get_or_build("things", "a", lambda folder: (folder / "x").touch())
print(store.root, flush=True)
sys.stdin.read()
"""


def start_guest(place: Path) -> "tuple[subprocess.Popen[str], Path]":
    """The process and its cache."""
    process = subprocess.Popen(
        [sys.executable, "-c", GUEST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(place)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_cache_of_a_process_without_reuse_goes_with_it(hostile_path: Path) -> None:
    process, root = start_guest(hostile_path)
    assert (root / "things" / "a" / "x").exists()
    process.communicate()
    assert not list(hostile_path.glob(f"{PREFIX}*"))


def test_cache_of_a_killed_process_goes_with_the_next_search_on_its_machine_and_one_in_use_stays(
    hostile_path: Path, images: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, orphan = start_guest(hostile_path)
    other, in_use = start_guest(hostile_path)
    killed.kill()
    killed.communicate()
    assert orphan.exists()
    monkeypatch.setattr("tempfile.tempdir", str(hostile_path))
    at_this_host(replace(make_bench(images, store).job, host="elsewhere", source=str(images)))
    assert not orphan.exists()
    assert in_use.exists()
    other.communicate()


def test_data_set_is_copied_once_to_a_machine_that_reuses_nothing(
    images: Path, store: Store, own_cache: Path
) -> None:
    job = replace(make_bench(images, store).job, host="elsewhere", source=images.as_uri(), reuse=False)
    here = at_this_host(job)
    assert here.store.root != own_cache
    assert here.files.keys() == job.files.keys()
    assert all(path.is_relative_to(own_cache) for path in here.files.values())
