"""Ray's view of its nodes as what a search shares out."""

from tune_inat.cluster import cluster_of
from tune_inat.devices import Cluster, Node


def test_devices_are_those_of_the_nodes_that_are_up() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1e9}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    assert cluster_of(nodes) == Cluster(12, 2, (Node(4, 0), Node(8, 2)))


def test_devices_are_those_of_the_machines_that_come_on_demand_where_these_are_more() -> None:
    head = [{"Alive": True, "Resources": {"CPU": 0.0}}]
    workers = [Node(4, 1), Node(4, 1)]
    assert cluster_of(head, workers) == Cluster(8, 2, (Node(4, 1), Node(4, 1)))
    up = [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}]
    assert cluster_of(up, workers) == Cluster(16, 4, (Node(16, 4),))
