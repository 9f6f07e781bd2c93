"""What a search has done already and what is left of it, by its plan and its journal."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tune_inat.config import TrialConfig
from tune_inat.inputs import Inputs
from tune_inat.leaderboard import (
    BEST_MODEL_FOLDER,
    LEADERBOARD_FILE,
    PREDICTIONS_FILE,
    SUMMARY_FILE,
    TrialResult,
    trial_result,
)
from tune_inat.ledger import Ledger, TrialRecord
from tune_inat.plan import PlannedTrial, TrialNamer, complete_config, is_of_space
from tune_inat.progress import Terminal
from tune_inat.report import REPORT_FILE
from tune_inat.runs import STUDY_FILE

if TYPE_CHECKING:
    from tune_inat.searchers import Proposer


class Remaining:
    """The trials of one run of the command on a search's folder.

    Attributes:
        is_to_begin_anew: whether what earlier runs of the command left counts for nothing, and is to go once
            nothing can be refused any more.
    """

    def __init__(self, inputs: Inputs, folder: Path, ledger: Ledger) -> None:
        self._inputs = inputs
        self._folder = folder
        self._ledger = ledger
        self.is_to_begin_anew = not inputs.settings.reuse

    def begin(self) -> None:
        """Nothing is refused from here on: remove what this run must not go on from.

        W&B's runs stay: they are a record.
        """
        if not self.is_to_begin_anew:
            return
        self._ledger.forget()
        shutil.rmtree(self._folder / BEST_MODEL_FOLDER, ignore_errors=True)
        for name in (SUMMARY_FILE, LEADERBOARD_FILE, PREDICTIONS_FILE, STUDY_FILE, REPORT_FILE):
            (self._folder / name).unlink(missing_ok=True)
        self.is_to_begin_anew = False

    def records(self) -> dict[str, TrialRecord]:
        """What the ledger has on trials of this space, by id. Under a name it may know others, too."""
        inputs = self._inputs
        if self.is_to_begin_anew:
            return {}
        planned = {trial.trial_id for trial in inputs.plan.trials}
        return {
            trial_id: record
            for trial_id, record in self._ledger.records().items()
            if trial_id in planned or is_of_space(record.config, inputs.space, inputs.fixed)
        }

    def finished(self) -> dict[str, TrialRecord]:
        """The records of trials that need no more work."""
        return {trial_id: record for trial_id, record in self.records().items() if record.is_finished}

    def planned(self) -> list[PlannedTrial]:
        """The trials of the plan that are not done."""
        finished = self.finished()
        return [trial for trial in self._inputs.plan.trials if trial.trial_id not in finished]

    def count(self) -> int:
        """How many trials are not done. Fewer may be asked for than there are."""
        if self._inputs.space.method == "bayes":
            return max(0, self._inputs.plan.n_trials - len(self.finished()))
        return len(self.planned())

    def results(self) -> list[TrialResult]:
        """All trials of the plan, also those that did not come to run, and all others that ran before."""
        metric = self._inputs.space.metric
        planned = {
            trial.trial_id: TrialRecord(trial.trial_id, trial.config.model_dump())
            for trial in self._inputs.plan.trials
        }
        wanted = {**planned, **self.records()}.values()
        return [trial_result(record, metric.name, metric.goal) for record in wanted]

    def proposer(self, n_left: int, terminal: Terminal) -> "Proposer":
        """Where the trials that are left come from; a study that was damaged is said on `terminal`."""
        from tune_inat.searchers import (
            OptunaProposer,
            PlannedProposer,
            name_study,
            set_aside_damaged_study,
        )

        space, fixed = self._inputs.space, self._inputs.fixed
        if space.method != "bayes":
            return PlannedProposer(self.planned())
        damage = set_aside_damaged_study(self._folder / STUDY_FILE)
        if damage is not None:
            terminal.warn(damage)
        finished = self.finished()
        namer = TrialNamer()
        for record in finished.values():
            namer.name(TrialConfig(**record.config))
        return OptunaProposer(
            space,
            self._folder,
            study=name_study(self._folder.name, space),
            earlier=tuple(finished.values()),
            failed=tuple(record for record in self.records().values() if record.status == "ERROR"),
            n_trials=n_left,
            seed=self._inputs.seed,
            complete=lambda point: namer.name(complete_config(point, fixed)),
        )
