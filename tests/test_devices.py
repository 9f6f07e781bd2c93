"""How devices are shared out, and what is refused before anything waits for it."""

import pytest

from tune_inat.devices import Asked, Cluster, Devices, Node, device_options, share_devices
from tune_inat.errors import ResourceError


def share(
    cluster: Cluster,
    n_trials: int = 12,
    *,
    cpus: int | None = None,
    gpus: float | None = None,
    concurrent: int | None = None,
) -> Devices:
    return share_devices(cluster, Asked(cpus, gpus, concurrent), n_trials=n_trials)


@pytest.mark.parametrize(
    ("n_cpus", "n_trials", "concurrent", "cpus_per_trial", "at_a_time"),
    [(2, 12, None, 1, 2), (8, 2, None, 4, 2), (8, 12, 1, 8, 1), (1, 12, None, 1, 1), (8, 12, 3, 2, 3)],
)
def test_cores_are_shared_out_over_concurrent_trials(
    n_cpus: int, n_trials: int, concurrent: int | None, cpus_per_trial: int, at_a_time: int
) -> None:
    devices = share(Cluster(n_cpus, 0), n_trials, concurrent=concurrent)
    assert (devices.cpus_per_trial, devices.max_concurrent) == (cpus_per_trial, at_a_time)
    assert devices.gpus_per_trial == 0


def test_cores_that_are_asked_for_bound_how_many_run() -> None:
    assert share(Cluster(8, 0), cpus=3).max_concurrent == 2


def test_each_trial_has_a_gpu_where_there_are_some() -> None:
    devices = share(Cluster(16, 4))
    assert (devices.gpus_per_trial, devices.max_concurrent, devices.cpus_per_trial) == (1.0, 4, 4)


@pytest.mark.parametrize(("gpus", "at_a_time"), [(0.5, 4), (0.3, 6), (2.0, 1)])
def test_share_of_a_gpu_says_how_many_run(gpus: float, at_a_time: int) -> None:
    assert share(Cluster(16, 2), gpus=gpus).max_concurrent == at_a_time


def test_no_gpu_is_used_when_none_is_asked_for() -> None:
    assert share(Cluster(8, 2), gpus=0.0).gpus_per_trial == 0


@pytest.mark.parametrize("gpus", [3.0, 1.5])
def test_gpus_that_can_never_be_given_are_refused(gpus: float) -> None:
    with pytest.raises(ResourceError, match="there are 2 GPUs"):
        share(Cluster(8, 2), gpus=gpus)


def test_all_that_is_refused_is_said_at_once() -> None:
    with pytest.raises(ResourceError) as refused:
        share(Cluster(4, 0), cpus=5, gpus=1.0)
    assert len(refused.value.problems) == 2


def test_on_cpus_few_threads_for_many_trials_are_compared_with_many_for_few() -> None:
    options = device_options(Cluster(4, 0), Asked(), n_trials=12)
    assert [(each.cpus_per_trial, each.max_concurrent) for each in options] == [(1, 4), (2, 2), (4, 1)]


def test_what_is_asked_for_is_not_compared() -> None:
    assert len(device_options(Cluster(4, 0), Asked(cpus_per_trial=2), n_trials=12)) == 1
    assert len(device_options(Cluster(4, 1), Asked(), n_trials=12)) == 1


def cluster_of(*nodes: tuple[int, int]) -> Cluster:
    machines = tuple(Node(n_cpus, n_gpus) for n_cpus, n_gpus in nodes)
    return Cluster(sum(n for n, _ in nodes), sum(n for _, n in nodes), machines)


def test_trial_never_gets_more_cores_than_one_machine_of_a_cluster_has() -> None:
    devices = share(cluster_of((4, 0), (4, 0)), n_trials=1)
    assert (devices.cpus_per_trial, devices.max_concurrent) == (4, 1)
    options = device_options(cluster_of((4, 0), (8, 0)), Asked(), n_trials=2)
    assert max(each.cpus_per_trial for each in options) == 8


def test_trials_are_counted_machine_by_machine() -> None:
    # 3 trials of 2 cores would fit into 6 cores, but only one into each of two machines of 3.
    devices = share(cluster_of((3, 0), (3, 0)), n_trials=3)
    assert (devices.cpus_per_trial, devices.max_concurrent) == (1, 3)
    assert share(cluster_of((3, 0), (3, 0)), cpus=2).max_concurrent == 2


def test_trials_on_gpus_share_the_cores_of_the_machines_that_have_some() -> None:
    devices = share(cluster_of((64, 0), (8, 2)))
    assert (devices.cpus_per_trial, devices.max_concurrent) == (4, 2)


def test_what_no_single_machine_has_is_refused() -> None:
    with pytest.raises(ResourceError) as refused:
        share(cluster_of((4, 1), (4, 1)), cpus=5, gpus=2.0)
    cpus_problem, gpus_problem = sorted(refused.value.problems)
    assert "there are 4 CPU cores on the largest machine" in cpus_problem
    assert "there are 1 GPUs on the largest machine" in gpus_problem


def test_shares_of_two_gpus_are_not_put_together() -> None:
    assert share(Cluster(16, 2), gpus=0.4).max_concurrent == 4  # two on each GPU
