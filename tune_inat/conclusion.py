"""What a search ends with: its best model, tested and exported, W&B's charts of it, and the report."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tune_inat.course import Course
from tune_inat.errors import ResourceError, UserError
from tune_inat.export import MODEL_FILES
from tune_inat.leaderboard import (
    BEST_MODEL_FOLDER,
    PREDICTIONS_FILE,
    TestResult,
    TrialResult,
    exported_trial,
    read_summary,
    recorded_test,
)
from tune_inat.ledger import TrialRecord
from tune_inat.report import REPORT_FILE, is_current, write_report
from tune_inat.runs import short_name

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tune_inat.outcome import Examined
    from tune_inat.tracking import WandbTracker
    from tune_inat.workbench import Workbench


@dataclass(frozen=True)
class ExportedModel:
    """A model that stands in the search's folder, with its test: `None` where there are no test images."""

    test: TestResult | None


class Conclusion:
    """Makes of a search's best trial what the user takes away. What an earlier run of the command left stays.

    Args:
        has_run: whether trials ran now.

    Attributes:
        has_news: whether there is more to show than an earlier run of the command had.
    """

    def __init__(self, course: Course, *, has_run: bool) -> None:
        self._course = course
        self._inputs = course.inputs
        self._folder = course.folder
        self._terminal = course.terminal
        self._has_run = has_run
        self.has_news = has_run
        self._probabilities: npt.NDArray[np.float64] | None = None  # of validation images

    def exported(self, best: TrialResult) -> ExportedModel | None:
        """What an earlier run of the command has tested and exported, if that is this best trial's model."""
        earlier = read_summary(self._folder)
        files = [self._folder / BEST_MODEL_FOLDER / name for name in MODEL_FILES]
        is_whole = all(file.exists() for file in (*files, self._folder / PREDICTIONS_FILE))
        is_its_own = exported_trial(self._folder) == (best.trial_id, best.best_epoch)
        if earlier is None or not is_whole or not is_its_own:
            return None
        test = recorded_test(earlier)
        if test is None and self._inputs.data.test is not None:  # it was interrupted before that
            return None
        return ExportedModel(test)

    def export(self, best: TrialResult, examined: "Examined | None" = None) -> ExportedModel:
        """Test and export the best model, which a node of the cluster may have examined already."""
        from tune_inat.outcome import export_best

        data_name = short_name(self._inputs.data.name)
        with self._terminal.task("Testing and exporting the best model", None, ""):
            exported = export_best(
                self._folder, self._bench_for(best), best, data_name=data_name, examined=examined
            )
        self._probabilities = exported.val_probabilities
        self.has_news = True
        return ExportedModel(exported.test)

    def show(
        self,
        best: TrialResult,
        test: TestResult | None,
        record: TrialRecord,
        tracker: "WandbTracker | None",
    ) -> None:
        """Give the best trial's W&B run its charts, and with `--wandb-model` the model."""
        if tracker is None:
            return
        probabilities = self._probabilities
        if probabilities is None:
            from tune_inat.outcome import validation_probabilities

            probabilities = validation_probabilities(self._bench_for(best), best)
        with_model = self._inputs.settings.wandb_model
        problems = tracker.show_best(
            record,
            probabilities=probabilities,
            labels=self._inputs.data.val.labels,
            classes=self._inputs.data.classes,
            test_accuracy=None if test is None else test.test_accuracy,
            model_folder=self._folder / BEST_MODEL_FOLDER if with_model else None,
        )
        for problem in problems:
            self._terminal.warn(problem)

    def report(self) -> Path | None:
        """The report's file; written now, unless an earlier run of the command left it and it is current.

        Raises:
            ResourceError: there is no room for it.
        """
        path = self._folder / REPORT_FILE
        if is_current(self._folder):
            return path
        try:
            with self._terminal.task("Writing the report", None, ""):
                return write_report(self._folder)
        except ResourceError:
            raise
        except UserError as error:
            self._terminal.warn(str(error))
            return None

    def _bench_for(self, best: TrialResult) -> "Workbench":
        """The workbench as the trial had it: by its threads it finds its epochs, or comes to them again."""
        bench = self._course.bench
        bench.job = replace(bench.job, n_threads=int(best.did.get("threads", bench.job.n_threads)))
        if not self._has_run:  # a test alone is no reason to keep activations
            bench.job = replace(bench.job, has_room=False)
        return bench
