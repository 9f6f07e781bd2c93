"""Searches whose folders and epochs are in a bucket: what is there, and what a new machine makes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import Bucket
from tests.end_to_end.command import run
from tests.faults.processes import Search, new_search, reported_twice, table_of

pytest_plugins = ["tests.bucket_fixtures"]
pytestmark = pytest.mark.end_to_end

SPACE = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  model: {value: shufflenet_v2_x0_5}
  weights: {value: none}
  image_size: {value: 32}
  batch_size: {value: 4}
  epochs: {values: [6, 12]}
  freeze: {values: [0.5, 0.9]}
"""
LEFT = {
    *("summary.json", "trials.csv", "report.html", "predictions.csv", "trials.jsonl", "search.json"),
    *("best_model/model.safetensors", "best_model/config.json"),
}
RUN = "runs/tiny-photos"


def events_in(bucket: Bucket) -> list[dict[str, Any]]:
    """The journal as it is in the bucket by now."""
    if "trials.jsonl" not in bucket.files(RUN):
        return []
    return [json.loads(line) for line in bucket.read(f"{RUN}/trials.jsonl").splitlines()]


def summary_in(bucket: Bucket) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(bucket.read(f"{RUN}/summary.json"))
    return read


def lose_machine(search: Search) -> None:
    """What was on its disk is gone, but for what the user's command names."""
    shutil.rmtree(search.cache)
    assert not search.folder.exists()


def test_search_goes_on_from_the_bucket_when_its_machine_is_lost(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    undisturbed = new_search(tmp_path / "alone", SPACE, "--wandb", "disabled")
    assert undisturbed.run().popen.returncode == 0

    search = new_search(tmp_path, SPACE, "--storage", bucket.uri("runs"))
    running = search.start()
    running.await_that(lambda: sum(e["event"] == "epoch" for e in events_in(bucket)) >= 6)
    running.kill("all")
    running.wait()
    running.seconds_until_idle()
    known = len(events_in(bucket))
    lose_machine(search)
    again = search.run()
    assert again.popen.returncode == 0, again.text
    assert bucket.files(RUN).keys() >= LEFT
    assert any(name.startswith("wandb/") for name in bucket.files(RUN))
    assert table_of(summary_in(bucket)) == table_of(undisturbed.summary)
    assert known > 0
    assert reported_twice(events_in(bucket)) == []
    trained = sum(e["event"] == "epoch" and e["trained"] for e in events_in(bucket))
    assert trained <= 24  # what two families have; what was in flight had not been reported

    lose_machine(search)
    sent = bucket.read(f"{RUN}/report.html")
    third = search.run()
    assert third.popen.returncode == 0, third.text
    assert "All 4 trials are done already." in third.text
    assert f"predict s3://a-bucket/{RUN} " in third.text
    assert summary_in(bucket)["reuse"]["epochs_trained"] == 0
    assert bucket.read(f"{RUN}/report.html") == sent

    cache = tmp_path / "elsewhere"
    listed = run("results", bucket.uri("runs"), "--json", cwd=tmp_path, cache=cache)
    assert [each["name"] for each in listed.json()] == ["tiny-photos"]
    image = tmp_path / "photos" / "red" / "0.png"
    predicted = run("predict", bucket.uri(RUN), image, "--json", cwd=tmp_path, cache=cache)
    assert predicted.code == 0, predicted.err
    assert predicted.json()[0]["predictions"][0]["class"] in {"red", "green", "blue"}
    bucket.remove(f"{RUN}/report.html")
    reported = run("report", bucket.uri(RUN), cwd=tmp_path, cache=cache)
    assert reported.out.strip() == f"s3://a-bucket/{RUN}/report.html"
    assert bucket.files(RUN)["report.html"] > 0


def test_bucket_that_is_missing_ends_the_command_before_anything(bucket: Bucket, tmp_path: Path) -> None:
    search = new_search(tmp_path, SPACE, "--storage", "s3://nobody-has-this/runs")
    ran = search.run()
    assert ran.popen.returncode == 2
    assert "--storage s3://nobody-has-this/runs" in ran.text
    assert "Is the bucket's name right?" in ran.text
    assert not list(search.cache.glob("pixels/*"))


def test_bucket_that_goes_away_ends_the_search_with_1_and_it_can_go_on(
    bucket: Bucket, tmp_path: Path
) -> None:
    search = new_search(tmp_path, SPACE, "--storage", bucket.uri("runs"), "--wandb", "disabled")
    running = search.start()
    running.await_that(lambda: any(e["event"] == "epoch" for e in events_in(bucket)))
    with bucket.refusing():
        assert running.wait() == 1
    assert "the same command goes on with it" in running.text
    assert "Traceback" not in running.text
    again = search.run()
    assert again.popen.returncode == 0, again.text
    assert {trial["status"] for trial in summary_in(bucket)["trials"]} == {"TERMINATED"}
