"""Searches whose folders and epochs are in a bucket: what is there, and what a new machine makes of it."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import Bucket, open_bucket
from tests.end_to_end.command import Ran, run
from tests.faults.processes import GRID, TWO_FAMILIES, Search, new_search, reported_twice, table_of
from tests.slow import slow
from tune_inat.errors import EXIT_INTERRUPTED

pytest_plugins = ["tests.bucket_fixtures"]
pytestmark = pytest.mark.end_to_end

PROMPT_SECONDS = 30.0  # it takes a moment; pyarrow would wait for 90 s
N_EPOCHS = 16  # of the two families
LEFT = {
    *("summary.json", "trials.csv", "report.html", "predictions.csv", "trials.jsonl", "search.json"),
    *("best_model/model.safetensors", "best_model/config.json"),
}
RUN = "runs/tiny-photos"


@dataclass
class Life:
    """What became of a search whose bucket went away, whose machine was lost, and that then came to its end.

    Attributes:
        undisturbed: the summary of the same search that nothing happened to.
        cut_off: the command that lost its bucket.
        n_before: epochs in the journal when the machine was lost.
        ended: the command, on a new machine.
        again: the same, on one more.
    """

    bucket: Bucket
    folder: Path
    undisturbed: dict[str, Any]
    cut_off: Ran
    n_before: int
    ended: Ran
    events: list[dict[str, Any]]
    summary: dict[str, Any]
    again: Ran

    def run(self, module: str, *arguments: str | Path) -> Ran:
        """Run one of the package's commands on a machine that has not seen the search."""
        environment = self.bucket.environment
        return run(
            module, *arguments, cwd=self.folder, cache=self.folder / "other cache", environment=environment
        )


def events_in(bucket: Bucket) -> list[dict[str, Any]]:
    """The journal as it is in the bucket by now."""
    if "trials.jsonl" not in bucket.files(RUN):
        return []
    return [json.loads(line) for line in bucket.read(f"{RUN}/trials.jsonl").splitlines()]


def n_trained(bucket: Bucket) -> int:
    return sum(event["event"] == "epoch" and event["trained"] for event in events_in(bucket))


def summary_in(bucket: Bucket) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(bucket.read(f"{RUN}/summary.json"))
    return read


def ran(search: Search) -> Ran:
    running = search.run()
    return Ran(running.popen.returncode, running.text, running.text)


@pytest.fixture(scope="module")
def life(bucket_server: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Life:
    bucket, folder = bucket_server, tmp_path_factory.mktemp("life")
    undisturbed = new_search(tmp_path_factory.mktemp("undisturbed"), TWO_FAMILIES, "--wandb", "disabled")
    assert undisturbed.run().popen.returncode == 0
    search = new_search(folder, TWO_FAMILIES, "--storage", bucket.uri("runs"))
    search.environment = {**bucket.environment, "TUNE_INAT_STORAGE_SECONDS": "0"}  # give up at once

    running = search.start()
    running.await_that(lambda: n_trained(bucket) >= 1)
    with bucket.refusing():
        running.wait()
    cut_off = Ran(running.popen.returncode, running.text, running.text)
    search.environment = bucket.environment

    running = search.start()
    known = n_trained(bucket)
    running.await_that(lambda: n_trained(bucket) > known)
    running.kill("all")
    running.wait()
    shutil.rmtree(search.cache)
    n_before = n_trained(bucket)

    ended, summary = ran(search), summary_in(bucket)
    shutil.rmtree(search.cache)
    assert not search.folder.exists()  # all that was on the disk is gone
    return Life(
        bucket, folder, undisturbed.summary, cut_off, n_before, ended, events_in(bucket), summary, ran(search)
    )


@slow
def test_bucket_that_goes_away_ends_the_search_with_1(life: Life) -> None:
    assert life.cut_off.code == 1, life.cut_off.out
    assert "the same command goes on with it" in life.cut_off.out
    assert "Traceback" not in life.cut_off.out


@slow
def test_search_goes_on_from_the_bucket_when_its_machine_is_lost(life: Life) -> None:
    assert life.ended.code == 0, life.ended.out
    assert 0 < life.n_before < N_EPOCHS
    assert table_of(life.summary) == table_of(life.undisturbed)
    assert reported_twice(life.events) == []  # only what had not been reported was trained again


@slow
def test_bucket_has_all_that_a_folder_would_have(life: Life) -> None:
    left = life.bucket.files(RUN).keys()
    assert left >= LEFT
    assert any(name.endswith(".wandb") for name in left)
    assert life.bucket.files("runs/.states")


@slow
def test_same_command_on_one_more_machine_trains_nothing(life: Life) -> None:
    assert life.again.code == 0, life.again.out
    assert "All 4 trials are done already." in life.again.out
    assert f"predict s3://a-bucket/{RUN} " in life.again.out
    assert summary_in(life.bucket)["reuse"]["epochs_trained"] == 0


@slow
def test_results_report_and_predict_read_from_the_bucket(life: Life) -> None:
    listed = life.run("results", life.bucket.uri("runs"), "--json")
    assert [each["name"] for each in listed.json()] == ["tiny-photos"]
    life.bucket.remove(f"{RUN}/report.html")
    assert life.run("report", life.bucket.uri(RUN)).out.strip() == f"s3://a-bucket/{RUN}/report.html"
    assert life.bucket.files(RUN)["report.html"] > 0
    image = life.folder / "photos" / "red" / "0.png"
    predicted = life.run("predict", life.bucket.uri(RUN), image, "--json")
    assert predicted.code == 0, predicted.err
    assert predicted.json()[0]["predictions"][0]["class"] in {"red", "green", "blue"}


@slow
def test_what_is_not_in_the_bucket_is_said_by_its_uri(life: Life) -> None:
    missing = life.run("report", life.bucket.uri("nowhere"))
    assert (missing.code, missing.err) == (2, "s3://a-bucket/nowhere: there is nothing here.\n")
    image = life.folder / "photos" / "red" / "0.png"
    no_model = life.run("predict", life.bucket.uri("runs/.states"), image)
    assert no_model.code == 2
    assert no_model.err.startswith("s3://a-bucket/runs/.states: there is no model here.")


def test_bucket_that_is_missing_is_refused_before_anything(bucket_server: Bucket, tmp_path: Path) -> None:
    search = new_search(tmp_path, TWO_FAMILIES, "--storage", "s3://nobody-has-this/runs")
    search.environment = bucket_server.environment
    refused = ran(search)
    assert refused.code == 2
    assert "--storage s3://nobody-has-this/runs" in refused.out
    assert "Is the bucket's name right?" in refused.out
    assert not list(search.cache.glob("pixels/*"))


@pytest.mark.parametrize("option", ["--data", "--storage"])
def test_ctrl_c_ends_a_search_while_its_bucket_is_silent(option: str, hostile_path: Path) -> None:
    with open_bucket("silent") as bucket, bucket.silent():
        search = new_search(hostile_path, GRID, option, bucket.uri("x"))
        search.environment = bucket.environment
        running = search.start()
        running.await_that(bucket.keeps_waiting.is_set)
        running.popen.send_signal(signal.SIGINT)
        assert running.wait(PROMPT_SECONDS) == EXIT_INTERRUPTED, running.text
        assert running.text.endswith("Interrupted.\n")
