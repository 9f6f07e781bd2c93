"""The pass through frozen layers on all nodes of a cluster: each image once, then on each node's disk."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_inat.config import TrialConfig
from tune_inat.errors import UserError
from tune_inat.frozen import STORED_TYPE
from tune_inat.handout import ASSUMED_FLOPS_RATE, Handout, Rates, ShardCost
from tune_inat.job import Job
from tune_inat.keeper import THREADS, Arrays, Keeper
from tune_inat.meter import Meter, SilentMeter
from tune_inat.neighbours import Neighbours, hand_out_weights
from tune_inat.places import Caches, at_this_host
from tune_inat.prefixes import PrefixPass, compute_shard, find_passes
from tune_inat.shards import Shard, cut_into_shards
from tune_inat.workbench import Work, Workbench, open_driver_bench

LOST_CACHE = "its cache was lost"
LOOK_SECONDS = 0.5  # between two looks, for Ctrl-C to come through
START_SECONDS = 15.0  # in which a process gets a device that is free


@dataclass(frozen=True)
class TrialNode:
    """A node that takes trials: its devices work for the pass, one process on each."""

    node_id: str
    host: str
    n_devices: int
    cpus: int  # of each process
    gpus: int


@dataclass
class Spread:
    """What a pass over the nodes left.

    Attributes:
        neighbours: what trials can have from other nodes.
        is_here: whether the machine that conducts the search takes trials.
        work: what all nodes have done, together.
        notices: what the user must be told.
    """

    neighbours: Neighbours
    is_here: bool
    work: Work = field(default_factory=Work)
    notices: list[str] = field(default_factory=list)


def trial_nodes(nodes: Sequence[Mapping[str, Any]], *, cpus: int, device: str) -> list[TrialNode]:
    """Of the nodes, as Ray describes them, those that are up and have room for a trial.

    Args:
        cpus: of a trial.
        device: what it computes on, `cpu` or `cuda`.
    """
    found = []
    for node in nodes:
        n_cpus, n_gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
        if not node["Alive"] or n_cpus < cpus or (device == "cuda" and n_gpus == 0):
            continue
        n_devices = n_gpus if device == "cuda" else 1
        gpus = 1 if device == "cuda" else 0
        share = max(1, n_cpus // n_devices)
        found.append(TrialNode(node["NodeID"], node["NodeManagerHostname"], n_devices, share, gpus))
    return found


def spread(bench: Workbench, configs: Sequence[TrialConfig], meter: Meter) -> Spread:
    """Compute what these trials will read, where it is kept, and bring it to each node that takes trials.

    Where that is the machine that conducts the search alone, it does so itself.

    Raises:
        UserError: a node cannot get at the images.
    """
    job = bench.job
    rates = Rates(ASSUMED_FLOPS_RATE[job.device])
    nodes = trial_nodes(ray.nodes(), cpus=job.n_threads, device=job.device)  # type: ignore[no-untyped-call]
    here = ray.get_runtime_context().get_node_id()
    neighbours = Neighbours(Caches.of(job), hand_out_weights(bench, configs), rates)
    spread = Spread(neighbours, is_here=any(node.node_id == here for node in nodes))
    if [node.node_id for node in nodes] == [here]:
        bench.prepare(configs)
    elif job.reuse:
        passes = find_passes(bench, configs)
        bench.rest()
        if passes and nodes:
            _Fleet(job, nodes, spread, meter).run(passes)
    return spread


class Computer:
    """Runs frozen layers on a device that it has to itself, in a process of its own."""

    def __init__(self, job: Job, neighbours: Neighbours, n_threads: int) -> None:
        self._job, self._neighbours, self._n_threads = job, neighbours, n_threads
        self._bench: Workbench | None = None

    def open(self) -> None:
        """Bring the images to this node.

        Raises:
            DataError: it cannot get at them.
        """
        self._bench = open_driver_bench(
            at_this_host(self._job), SilentMeter(), n_threads=self._n_threads, peers=self._neighbours
        )

    def compute(self, work: PrefixPass, shard: Shard) -> tuple[list[Any], tuple[float, Work]]:
        """The activations of a shard at each cut; and the seconds and the work that they took."""
        assert self._bench is not None, "it was opened"
        started = time.perf_counter()
        parts = compute_shard(self._bench, work, shard)
        return parts, (time.perf_counter() - started, self._bench.take_work())


@dataclass
class _Place:
    """A cache, the process that keeps it, and those that compute for it."""

    keeper: Any
    nodes: list[TrialNode]
    whole: frozenset[str] = frozenset()  # the arrays that it had when the search began
    computers: list[Any] = field(default_factory=list)  # all that were started
    ready: list[Any] = field(default_factory=list)  # those that have their devices
    idle: list[Any] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.nodes[0].host


class _Fleet:
    """The processes that work for a pass, wherever they run.

    Searches share devices and the arrays' locks, and never wait for each other in a ring. Who holds arrays of
    a place has a device there, or all of them elsewhere to fetch: it fills them, whatever others do. Who
    keeps a device and waits for another one fills arrays with it, or waits for one who fills those.
    """

    def __init__(self, job: Job, nodes: Sequence[TrialNode], spread: Spread, meter: Meter) -> None:
        self._job, self._nodes, self._spread, self._meter = job, nodes, spread, meter
        self._rates = spread.neighbours.rates
        self._places: dict[str, _Place] = {}
        self._actors: list[Any] = []
        self._opening: dict[Any, Callable[[], None]] = {}  # answers that are awaited, whatever the pass
        self._awaited: dict[Any, Callable[[], None]] = {}  # those of the pass
        self._unbegun: set[str] = set()  # places whose arrays of the pass are not open
        self._asked_since: float | None = None  # for the first device
        self._has_device = False
        self._handout = Handout((), self._rates)
        self._advance: Callable[[int], None] = lambda shard: None

    def run(self, passes: Sequence[PrefixPass]) -> None:
        """All passes, one after the other."""
        try:
            self._find_places()
            keys = [cut.key for work in passes for cut in work.cuts]
            self._find_whole(keys)
            everywhere = frozenset(keys).intersection(*(place.whole for place in self._places.values()))
            for work in passes:
                left = work.without(everywhere)
                if left is not None:
                    self._pass(left)
        finally:
            _end(self._actors)

    def _find_places(self) -> None:
        """A keeper for each cache: nodes may share one."""
        caches = self._spread.neighbours.caches
        options = {"num_cpus": 0, "max_concurrency": THREADS}
        keepers = [(node, self._start(Keeper, node, options, caches)) for node in self._nodes]
        answers = [(node, keeper, keeper.place.remote()) for node, keeper in keepers]
        for node, keeper, answer in answers:
            try:
                name = ray.get(answer)
            except RayError as error:
                self._tell(node.host, "its process for the cache did not start", error)
                continue
            if name in self._places:
                self._places[name].nodes.append(node)
            else:
                self._places[name] = _Place(keeper, [node])

    def _find_whole(self, keys: Sequence[str]) -> None:
        """Which arrays each place has already."""
        asked = {name: place.keeper.whole.remote(keys) for name, place in self._places.items()}
        for name, ref in asked.items():
            try:
                self._places[name].whole = frozenset(ray.get(ref))
            except RayError as error:
                self._lose(name, LOST_CACHE, error)

    def _start(self, kind: type, node: TrialNode, options: Mapping[str, Any], *arguments: Any) -> Any:
        pinned = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        actor: Any = ray.remote(kind).options(scheduling_strategy=pinned, **options).remote(*arguments)
        self._actors.append(actor)
        return actor

    @cached_property
    def _job_for_all(self) -> ObjectRef[Any]:
        return ray.put(self._job)

    def _start_computers(self, name: str) -> None:
        """A computer for each device of a place, once there is something to compute."""
        place = self._places[name]
        for node in place.nodes:
            options = {"num_cpus": node.cpus, "num_gpus": node.gpus}
            for _ in range(node.n_devices):
                arguments = (self._job_for_all, self._spread.neighbours, node.cpus)
                computer = self._start(Computer, node, options, *arguments)
                place.computers.append(computer)
                self._asked_since = self._asked_since or time.monotonic()
                placed = computer.__ray_ready__.remote()
                self._opening[placed] = partial(self._placed, placed)
                ref = computer.open.remote()
                self._opening[ref] = partial(self._opened, ref, name, computer)

    # ---- one pass

    def _pass(self, work: PrefixPass) -> None:
        n_devices = sum(node.n_devices for node in self._nodes)
        row_bytes = sum(work.row_bytes)
        shards = cut_into_shards(work.n_rows, bytes_per_row=row_bytes, n_devices=n_devices)
        costs = [ShardCost(len(shard) * row_bytes, len(shard) * sum(work.row_flops)) for shard in shards]
        self._handout = Handout(costs, self._rates)
        dtype = np.dtype(STORED_TYPE[work.cuts[0].precision][0]).str
        arrays = Arrays(tuple(cut.key for cut in work.cuts), work.n_rows, work.row_bytes, dtype)
        self._unbegun = set(self._places)
        self._begin(arrays, shards)
        title = f"Frozen layers up to {work.cuts[-1].cut} on {len(self._places)} nodes"
        with (
            self._meter.task(title, work.n_rows * len(work.cuts), "images") as advance,
            ExitStack() as waiting,
        ):
            self._advance = lambda shard: advance(len(shards[shard]) * len(work.cuts))
            while self._awaited or (self._opening and (self._unbegun or not self._handout.is_done)):
                waited = [*self._awaited, *self._opening]
                ready, _ = ray.wait(waited, num_returns=1, timeout=LOOK_SECONDS)
                for ref in ready:
                    (self._awaited if ref in self._awaited else self._opening).pop(ref)()
                self._show_wait(waiting)
                self._give_up_what_waits_for_devices()
                self._begin(arrays, shards)
                self._hand_out(work, shards, costs)

    def _begin(self, arrays: Arrays, shards: Sequence[Shard]) -> None:
        """Open the arrays of each place that has a device by now, or has or can fetch all of them."""
        can_fetch = any(not self._handout.misses(name) for name in self._handout.places)
        for name in tuple(self._unbegun):
            place = self._places[name]
            if place.ready or can_fetch or place.whole.issuperset(arrays.keys):
                self._unbegun.remove(name)
                ref = place.keeper.begin.remote(arrays, shards)
                self._awaited[ref] = partial(self._begun, ref, name)
            elif not place.computers:
                self._start_computers(name)

    def _hand_out(self, work: PrefixPass, shards: Sequence[Shard], costs: Sequence[ShardCost]) -> None:
        """Give all that are idle something to do."""
        handout = self._handout
        for name in handout.places:
            place = self._places[name]
            while (fetched := handout.next_to_fetch(name)) is not None:
                number, source = fetched
                rows = self._places[source].keeper.read.remote(number)
                ref = place.keeper.keep.remote(number, [rows])
                self._awaited[ref] = partial(self._fetched, ref, name, number, costs[number])
            while place.idle and (chosen := handout.next_to_compute(name)) is not None:
                computer = place.idle.pop()
                parts, told = computer.compute.options(num_returns=2).remote(work, shards[chosen])
                answer = partial(self._computed, told, parts, name, computer, chosen, costs[chosen])
                self._awaited[told] = answer

    def _placed(self, ref: ObjectRef[Any]) -> None:
        with suppress(RayError):  # it was dismissed, or lost
            ray.get(ref)
            self._has_device = True

    def _show_wait(self, shown: ExitStack) -> None:
        """Say that devices are waited for, once that has taken longer than it does where any is free."""
        if self._has_device:
            shown.close()
        elif self._asked_since is not None and time.monotonic() - self._asked_since > START_SECONDS:
            self._asked_since = math.inf  # once
            shown.enter_context(self._meter.task("Waiting for devices that are free", None, ""))

    def _begun(self, ref: ObjectRef[Any], name: str) -> None:
        try:
            there = ray.get(ref)
        except RayError as error:
            self._lose(name, LOST_CACHE, error)
            return
        place = self._places[name]
        if there is None:
            self._dismiss(place)  # for those who can use its devices
            self._spread.notices.append(
                f"Node {place.host} has no room for the activations of the frozen layers: "
                "trials there run those layers in every epoch."
            )
            return
        is_new = [self._handout.is_new(number) for number in there]
        self._handout.add(name, there)
        if not place.ready:
            self._handout.lose_devices(name)
        for number, new in zip(there, is_new, strict=True):
            if new:
                self._advance(number)
        self._finish_if_whole(name)

    def _opened(self, ref: ObjectRef[Any], name: str, computer: Any) -> None:
        try:
            ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            self._lose_computer(name, computer, error)
        except RayError as error:
            self._lose_computer(name, computer, error)
        else:
            place = self._places.get(name)
            if place is not None and computer in place.computers:
                place.ready.append(computer)
                place.idle.append(computer)
                self._handout.gain_devices(name)

    def _computed(
        self,
        told: ObjectRef[Any],
        parts: ObjectRef[Any],
        name: str,
        computer: Any,
        number: int,
        cost: ShardCost,
    ) -> None:
        try:
            seconds, work = ray.get(told)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            self._handout.fail_to_compute(name, number)
            self._lose_computer(name, computer, error)
            return
        except RayError as error:
            self._handout.fail_to_compute(name, number)
            self._lose_computer(name, computer, error)
            return
        self._rates.note_computing(cost.flops, seconds)
        self._spread.work.prefix_images += work.prefix_images
        self._spread.work.pixels_decoded += work.pixels_decoded
        if name in self._places:
            ref = self._places[name].keeper.keep.remote(number, [parts])
            self._awaited[ref] = partial(self._kept, ref, name, computer, number)

    def _kept(self, ref: ObjectRef[Any], name: str, computer: Any, number: int) -> None:
        try:
            ray.get(ref)
        except RayError as error:
            self._lose(name, LOST_CACHE, error)
            return
        if name in self._places:
            self._places[name].idle.append(computer)
            self._have(name, number)

    def _fetched(self, ref: ObjectRef[Any], name: str, number: int, cost: ShardCost) -> None:
        try:
            seconds = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):  # its disk
                self._lose(name, LOST_CACHE, error)
            else:
                self._handout.fail_to_fetch(name, number)
        except RayError as error:
            self._lose(name, LOST_CACHE, error)
        else:
            self._rates.note_fetching(cost.n_bytes, seconds)
            self._have(name, number)

    def _have(self, name: str, number: int) -> None:
        if self._handout.is_new(number):
            self._advance(number)
        self._handout.have(name, number)
        self._finish_if_whole(name)

    def _finish_if_whole(self, name: str) -> None:
        if name in self._handout.places and not self._handout.misses(name):
            ref = self._places[name].keeper.finish.remote()
            self._awaited[ref] = partial(self._finished, ref, name)

    def _finished(self, ref: ObjectRef[Any], name: str) -> None:
        try:
            ray.get(ref)
        except RayError as error:
            self._lose(name, LOST_CACHE, error)

    # ---- what is lost

    def _lose(self, name: str, what: str, error: RayError) -> None:
        """A place is gone: what it was at goes to others."""
        place = self._places.get(name)
        self._give_up(name)
        if place is not None:
            self._tell(place.host, what, error)

    def _give_up(self, name: str) -> None:
        """Let go of all that is held of a place."""
        self._handout.lose(name)
        self._unbegun.discard(name)
        place = self._places.pop(name, None)
        if place is not None:
            self._dismiss(place)
            _end([place.keeper])

    def _give_up_what_waits_for_devices(self) -> None:
        """Hold no arrays that nothing fills any more until a device is free: another search may have it."""
        names = self._handout.places
        if not any(self._places[name].ready or not self._handout.misses(name) for name in names):
            for name in names:
                self._give_up(name)

    def _dismiss(self, place: _Place) -> None:
        """Give the devices of a place back."""
        _end(place.computers)
        for computers in (place.computers, place.ready, place.idle):
            computers.clear()

    def _lose_computer(self, name: str, computer: Any, error: RayError) -> None:
        place = self._places.get(name)
        if place is None or computer not in place.computers:  # it was dismissed
            return
        if computer in place.ready:
            place.ready.remove(computer)
        if not place.ready:
            self._handout.lose_devices(name)
        self._tell(place.host, "a process that ran frozen layers was lost", error)

    def _tell(self, host: str, what: str, error: RayError) -> None:
        cause = error.cause if isinstance(error, RayTaskError) else error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        self._spread.notices.append(f"Node {host}: {what} ({reason}). Others take over what it was at.")


def _end(actors: Sequence[Any]) -> None:
    for actor in actors:
        with suppress(RayError):
            ray.kill(actor)
