"""Which machines may come to a cluster: what the autoscaler on this machine was told, and nobody else."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.local.config import prepare_local

from tests.readme import README, own_machines
from tune_inat.autoscaling import machines_on_demand, n_kept_up, workers_of
from tune_inat.devices import Node


def test_workers_are_those_of_cluster_yaml_without_its_head() -> None:
    config = yaml.safe_load((README.parent / "cluster.yaml").read_text())
    assert workers_of(config) == (Node(4, 1),) * 4
    assert workers_of(config | {"max_workers": 3}) == (Node(4, 1),) * 3


def test_machines_of_ones_own_do_not_come_by_themselves() -> None:
    assert workers_of(yaml.safe_load(own_machines())) == ()


def test_gpus_are_of_the_type_that_the_file_names() -> None:
    kind = {"resources": {"CPU": 4, "GPU": 1, "accelerator_type:A10G": 1}, "max_workers": 2}
    config = {"available_node_types": {"head": {}, "gpu": kind}, "head_node_type": "head"}
    assert workers_of(config) == (Node(4, 1, "A10G"),) * 2


@pytest.fixture
def processes(tmp_path: Path) -> Path:
    """Of a machine on which the autoscaler of one cluster runs, and other things."""
    settings = tmp_path / "cluster.yaml"
    settings.write_text((README.parent / "cluster.yaml").read_text())
    (own, _), at_home = prepare_local(yaml.safe_load(own_machines())), tmp_path / "own.yaml"
    at_home.write_text(yaml.safe_dump(own))
    commands = {
        "1": ["/sbin/init"],
        "20": ["python", "monitor.py", "--gcs-address=10.0.0.1:6379", f"--autoscaling-config={settings}"],
        "25": ["python", "monitor.py", "--gcs-address=10.0.0.5:6379", f"--autoscaling-config={at_home}"],
        "30": ["python", "monitor.py", "--gcs-address=10.0.0.2:6379", ""],
        "40": ["python", "monitor.py", "--gcs-address=10.0.0.3:6379", "--autoscaling-config=~/gone.yaml"],
    }
    for number, words in commands.items():
        (tmp_path / "proc" / number).mkdir(parents=True)
        (tmp_path / "proc" / number / "cmdline").write_text("\0".join(words))
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("address", "n"), [("10.0.0.1", 4), ("10.0.0.2", 0), ("10.0.0.3", 0), ("10.0.0.4", 0)]
)
def test_autoscaler_of_the_very_cluster_counts(processes: Path, address: str, n: int) -> None:
    assert len(machines_on_demand(f"{address}:6379", processes)) == n


@pytest.mark.parametrize(("address", "n"), [("10.0.0.1", 0), ("10.0.0.5", 2), ("10.0.0.4", 0)])
def test_machines_of_ones_own_are_all_kept_up(processes: Path, address: str, n: int) -> None:
    assert n_kept_up(f"{address}:6379", processes) == n
