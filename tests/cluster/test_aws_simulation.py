"""`cluster.yaml` really brought up, as in the README: `ray up`, a search that has machines come, `ray down`.

AWS is simulated (see `aws`). All else is real: Ray's launcher and autoscaler, ssh and rsync, the setup
commands, the search. It takes four minutes: `TUNE_INAT_AWS=1 pytest tests/cluster/test_aws_simulation.py`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.benches import write_images
from tests.cluster.aws import SimulatedAws, filled_in, simulated_aws
from tests.cluster.testbed import REPOSITORY, why_not
from tests.faults.processes import reported_twice

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif("TUNE_INAT_AWS" not in os.environ, reason="TUNE_INAT_AWS=1 takes four minutes"),
    pytest.mark.skipif(why_not() is not None, reason=f"no test bed: {why_not()}"),
]

PROFILE = "tune-inat-worker"
WAIT_SECONDS = 400.0
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
# Two families of many short epochs: time to take a machine away in.
SPACE = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  model: {value: resnet18}
  weights: {value: none}
  image_size: {value: 224}
  batch_size: {value: 4}
  epochs: {values: [400, 800]}
  freeze: {value: 1.0}
  lr: {values: [1.0e-2, 1.0e-3]}
"""
N_EPOCHS = 1600  # that it trains
SEARCH = (
    "--address auto --space probes.yaml --data s3://tune/photos --storage s3://tune/runs --wandb offline "
    "--precision fp32 --gpus-per-trial 0 --cpus-per-trial 4 --max-concurrent 2"
)
LISTED = "ray job list --address http://127.0.0.1:8265"
STARTED = time.monotonic()


def say(what: str) -> None:
    """For who looks on (`pytest -s`): what has happened after how many seconds."""
    sys.stdout.write(f"[{time.monotonic() - STARTED:6.1f} s] {what}\n")


class Account:
    """A user's laptop, and what is in the user's account."""

    def __init__(self, aws: SimulatedAws) -> None:
        self.aws = aws

    def run(self, command: str, *, timeout: float = WAIT_SECONDS) -> CompletedProcess[str]:
        """A command in the checkout."""
        words = ("bash", "-c", f"cd {REPOSITORY}; {command}")
        return self.aws.laptop.run(*words, timeout=timeout, **ENVIRONMENT)

    def events(self) -> list[dict[str, Any]]:
        """The whole lines of the search's journal, as it is in the bucket."""
        code = "s3.download_file('tune', 'runs/probes-photos/trials.jsonl', '/tmp/journal')"
        self.aws.python(f"try: {code}\nexcept Exception: pass")
        path = self.aws.laptop.folder / "tmp" / "journal"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def workers(self, *states: str) -> list[str]:
        """The workers' ids."""
        return list(self.aws.of_type("gpu", *states))

    def await_that(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until something has happened."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{what}: it did not come to that; {self.aws.instances}"
            time.sleep(0.5)
        say(what)


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with simulated_aws(tmp_path / "aws") as aws:
        home = aws.laptop.folder / "root"
        (home / "cluster.yaml").write_text(filled_in())
        (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
        (home / ".netrc").chmod(0o600)
        write_images(home / "photos")
        aws.python(
            f"iam.create_instance_profile(InstanceProfileName={PROFILE!r})\n"
            "s3.create_bucket(Bucket='tune', CreateBucketConfiguration={'LocationConstraint': 'us-west-2'})\n"
            "from pathlib import Path\n"
            "for path in Path('photos').rglob('*.png'): s3.upload_file(str(path), 'tune', str(path))"
        )
        say("an account with a bucket of images, and a profile for workers")
        yield Account(aws)


def test_search_brings_its_machines_survives_the_loss_of_one_and_lets_them_go(account: Account) -> None:
    assert account.run("ray get-auth-token --generate").returncode == 0
    up = account.run("ray up -y --no-config-cache ~/cluster.yaml")
    assert up.returncode == 0, up.stdout + up.stderr
    (head,) = account.aws.of_type("head", "running").values()
    assert not head.facts["is_spot"]
    assert account.workers() == []
    say("ray up: a head, and no workers")
    head_home = account.aws.machine(head).folder / "root"
    (head_home / "probes.yaml").write_text(SPACE)
    assert (head_home / ".netrc").stat().st_mode & 0o077 == 0

    dashboard = subprocess.Popen(
        account.aws.laptop.command("ray", "dashboard", "cluster.yaml", **ENVIRONMENT)
    )
    try:
        submit = "ray job submit --address http://127.0.0.1:8265 --submission-id first"
        job = f"bash -c 'cd ~; python -m tune_inat.search {SEARCH}'"
        account.await_that("ray dashboard", lambda: account.run(LISTED).returncode == 0)
        submitted = account.run(f"{submit} --no-wait -- {job}")
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        say("ray job submit")
        account.await_that("2 workers on demand", lambda: len(account.workers("running")) == 2)
        account.await_that("both train", lambda: len(machines_in(account.events())) == 2)
        lost = account.workers("running")[0]
        account.aws.terminate(lost)
        say(f"a spot instance is taken: {lost}")
        account.await_that("another comes", lambda: len(set(account.workers("running")) - {lost}) == 2)
        status = "ray job status --address http://127.0.0.1:8265 first"
        account.await_that("the search ends", lambda: "succeeded" in account.run(status).stdout)
    finally:
        dashboard.terminate()
        dashboard.wait()

    events = account.events()
    assert [event["status"] for event in events if event["event"] == "end"] == ["TERMINATED"] * 4
    assert len([event for event in events if event["event"] == "failure"]) == 1
    assert reported_twice(events) == []
    trained = [event for event in events if event["event"] == "epoch" and event["trained"]]
    assert N_EPOCHS - 2 <= len(trained) <= N_EPOCHS
    say(f"{len(trained)} epochs trained, on {machines_in(events)}")
    again = account.run(f"ray submit ~/cluster.yaml tune_inat/search.py -- {SEARCH}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "All 4 trials are done already" in again.stdout + again.stderr
    account.await_that("idle workers go", lambda: account.workers("running", "pending") == [])
    fetched = account.run("python -m tune_inat.results s3://tune/runs/probes-photos")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    down = account.run("ray down -y ~/cluster.yaml")
    assert down.returncode == 0, down.stdout + down.stderr
    account.await_that("ray down: nothing is left", lambda: account.aws.of_type("head", "running") == {})


def machines_in(events: list[dict[str, Any]]) -> dict[str, int]:
    """How many epochs each machine has trained."""
    names = [
        event["worker"].split(" ")[0] for event in events if event["event"] == "epoch" and event["trained"]
    ]
    return {name: names.count(name) for name in sorted(set(names))}
