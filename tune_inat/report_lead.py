"""The first screen of a report: what was searched on what, the best trial, how sure that is, what it took."""

from tune_inat.report_facts import SearchToReport
from tune_inat.report_page import MISSING, Html, count, element, join, number, paragraph, value_text
from tune_inat.significance import LEVEL
from tune_inat.tables import duration

STATUS_WORDS = {
    "DONE": "finished",
    "FAILURES": "finished, with failures",
    "INTERRUPTED": "was interrupted",
}


def lead(search: SearchToReport) -> Html:
    """The first screen."""
    tiles = [
        _best_tile(search),
        _test_tile(search),
        _ties_tile(search),
        _time_tile(search),
        _reuse_tile(search),
    ]
    state = (
        "has not ended" if search.is_running else STATUS_WORDS.get(str(search.summary.get("status")), "ended")
    )
    parts = [
        element("h1", search.name),
        paragraph(_what(search, state), class_="lede"),
    ]
    if search.is_running:
        parts.append(
            paragraph(
                "This search still runs, or was cut off: the page shows what its journal had at the time. ",
                element("code", f"python -m tune_inat.report {search.folder}"),
                " makes it again.",
                class_="alert",
            )
        )
    parts.append(element("dl", *tiles, class_="tiles"))
    parts.append(_ties_in_words(search))
    return join(parts)


def _what(search: SearchToReport, state: str) -> str:
    data, method = search.data, search.summary.get("method") or search.asked.get("method")
    how = {"grid": "a grid", "bayes": "Optuna's TPE", "random": "random draws"}.get(str(method), "a search")
    models = list(dict.fromkeys(str(trial.config.get("model")) for trial in search.trials))
    model = models[0] if len(models) == 1 else f"{len(models)} models"
    names = ", ".join(list(search.varied)[:8]) + (" and more" if len(search.varied) > 8 else "")
    text = f"{len(search.trials):,} trials of {how}, fine-tuning {model}"
    if data:
        text += f" on {data.get('name')}"
        text += f" ({count(data, 'classes')} classes; {count(data, 'train')} training, {count(data, 'val')} "
        text += f"validation and {count(data, 'test')} test images)"
    return f"{text}{f', over {names}' if names else ''}. The search {state}."


def _best_tile(search: SearchToReport) -> Html:
    best = search.best
    label = f"Best trial, by {search.metric.name.replace('_', ' ')}"
    if best is None:
        return _tile(label, MISSING, "No trial has a result yet.")
    chosen = ", ".join(f"{name} {value_text(best.config.get(name))}" for name in list(search.varied)[:6])
    text = f"trial {best.trial_id}{f': {chosen}' if chosen else ''}"
    return _tile(label, number(search.value(best)), text)


def _test_tile(search: SearchToReport) -> Html:
    best = search.tested_best
    if best is None:
        why = (
            "The test images are read when the search has ended, for the best trial alone."
            if search.is_running
            else "It was not tested."
        )
        return _tile("Its test accuracy", MISSING, why)
    text = f"on {count(best, 'n_test')} images that no trial saw"
    interval = best.get("test_interval")
    if interval:
        text = f"95 % interval {interval[0]:.4f} to {interval[1]:.4f} (Wilson), {text}"
    return _tile("Its test accuracy", f"{best['test_accuracy']:.4f}", text)


def _ties_tile(search: SearchToReport) -> Html:
    label = "Indistinguishable from the best"
    if not search.tests:
        return _tile(label, MISSING, "Not known: the journal does not say which images each trial had right.")
    n_ties = sum(test.is_tie for test in search.tests.values())
    text = f"of {len(search.tests):,} other trials cannot be told from it on the validation images"
    return _tile(label, f"{n_ties:,}", text)


def _ties_in_words(search: SearchToReport) -> Html:
    if not search.tests:
        return Html("")
    return paragraph(
        "Each trial, at its best epoch, is compared with the best trial on the very same validation images "
        "by McNemar's exact test, which looks at the images that only one of the two had right. Holm's "
        f"correction keeps the chance of any false difference among all {len(search.tests):,} comparisons "
        f"below {LEVEL:.0%}; a trial is indistinguishable from the best if its corrected p-value is "
        f"{LEVEL:g} or more. That is no proof that they are equal: more images might tell them apart. Trials "
        "and epochs were chosen on these images, so take the p-values as a guide.",
        class_="note",
    )


def _time_tile(search: SearchToReport) -> Html:
    measured = search.summary.get("search_seconds", search.summary.get("wall_seconds"))
    last, planned = (search.summary.get(name) for name in ("measured", "planned"))
    if measured is None:
        busy = sum(trial.seconds for trial in search.trials)
        return _tile("Time so far", duration(busy), "of all trials up to their last epoch, added up")
    seconds = planned.get("seconds") if isinstance(planned, dict) else None
    of_last = last.get("seconds") if isinstance(last, dict) else None
    text = "by the command"
    if of_last is not None and measured - of_last >= 1:
        text = f"by all runs of the command, {duration(of_last)} by the last"
    return _tile(
        "Time taken", duration(measured), text + (f"; planned {duration(seconds)}" if seconds else "")
    )


def _reuse_tile(search: SearchToReport) -> Html:
    asked = sum(int(trial.config.get("epochs", 0)) for trial in search.trials)
    trained = sum(trial.epochs_trained for trial in search.trials)
    came_to = sum(trial.epochs for trial in search.trials)
    spared = max(0, came_to - trained)
    text = f"epochs trained of {asked:,} asked for: {spared:,} reused"
    stopped = max(0, asked - came_to)
    text += f", {stopped:,} not needed or not run" if stopped else ""
    planned = search.summary.get("planned")
    epochs = planned.get("epochs") if isinstance(planned, dict) else None
    return _tile("Epochs", f"{trained:,}", text + (f"; planned {epochs:,}" if epochs else ""))


def _tile(label: str, value: str, more: str) -> Html:
    return element(
        "div", element("dt", label), element("dd", value, class_="value"), element("dd", more, class_="more")
    )
