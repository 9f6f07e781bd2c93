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
