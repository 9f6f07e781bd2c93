"""The parts of a report on the best model's predictions and on the images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tune_inat.report_charts as charts
from tune_inat.metrics import ECE_BINS, wilson_interval
from tune_inat.report_facts import SearchToReport
from tune_inat.report_page import MISSING, Cell, Column, Html, Section, chart, element, join, paragraph, table
from tune_inat.report_predictions import (
    N_MISTAKES,
    Predictions,
    read_predictions,
    reliability,
    thumbnails,
)

N_CONFUSIONS = 30
N_LISTED = 50  # files of the audit
PARTS = {"test": "test", "val": "validation"}
AUDIT_LISTS = (
    ("unreadable", "Files that cannot be read"),
    ("misnamed", "Files that are named after another format"),
    ("tiny", "Files of few pixels"),
    ("extreme_shapes", "Files many times as long as wide"),
    ("duplicates", "Files with the same content"),
    ("near_copies", "Files that show nearly the same"),
    ("copies_between_parts", "Images that stand in two parts"),
    ("near_copies_between_parts", "Near copies that stand in two parts"),
    ("two_labels", "Images under two classes"),
    ("near_copies_of_two_labels", "Near copies under two classes"),
    ("notices", "Notices"),
)


def model_sections(search: SearchToReport) -> list[Section]:
    """Confusions, classes, calibration and mistakes, or why they are not there."""
    classes = search.model.get("classes")
    known = [str(name) for name in classes] if isinstance(classes, list) else []
    predictions, reason = read_predictions(search.folder, known)
    titles = (
        ("confusion", "Confusions"),
        ("classes", "Classes"),
        ("calibration", "Calibration"),
        ("mistakes", "The most confident mistakes"),
    )
    if predictions is None:
        return [Section(anchor, title, paragraph(f"Not shown. {reason}")) for anchor, title in titles]
    bodies = (
        join([_whose(search), _confusions(predictions)]),
        _classes(predictions),
        _calibration(predictions, search.model.get("temperature")),
        _mistakes(predictions, search),
    )
    return [Section(anchor, title, body) for (anchor, title), body in zip(titles, bodies, strict=True)]


def audit_section(search: SearchToReport) -> Section:
    """What is known of the images."""
    data = search.data
    if not data:
        return Section(
            "images", "Images", paragraph("What the images are is written when the search has ended.")
        )
    nested = data.get("audit")
    audit: Mapping[str, Any] = nested if isinstance(nested, dict) else {}
    rows = [
        [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)]
        for name, value in data.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    parts = [table("The images of this search", [Column("what"), Column("value")], rows)]
    skipped = data.get("skipped")
    if skipped:
        n = skipped if isinstance(skipped, int) else len(skipped)
        text = f"{n:,} files cannot be read and were left out; python -m tune_inat.data names them."
        parts.append(paragraph(text, class_="alert"))
    warnings = audit.get("warnings")
    for warning in warnings if isinstance(warnings, list) else []:
        parts.append(paragraph(str(warning), class_="alert"))
    parts += _audit_tables(audit)
    return Section("images", "Images", join(parts))


def _whose(search: SearchToReport) -> Html:
    """Which trial's model predicted, where it is not the best one any more."""
    made_by = (search.model.get("trial_id"), search.model.get("epoch"))
    best = search.best
    if None in made_by or best is None or best.best is None or made_by == (best.trial_id, best.best["epoch"]):
        return Html("")
    return paragraph(
        f"These predictions are of the model in best_model: trial {made_by[0]}, epoch {made_by[1]}. "
        "The best trial is another one by now, or has come further.",
        class_="alert",
    )


def _confusions(predictions: Predictions) -> Html:
    counts = predictions.confusion()
    part = PARTS[predictions.part]
    off = counts.copy()
    np.fill_diagonal(off, 0)
    n_wrong, n = int(off.sum()), len(predictions.labels)
    parts = [paragraph(f"{n_wrong:,} of {n:,} {part} images were taken for another class.")]
    n_classes = len(predictions.classes)
    if n_classes <= charts.MAX_HEATMAP:
        parts.append(
            chart(
                "confusion-matrix",
                charts.confusion(counts, predictions.classes),
                title="Confusion matrix",
                text="A row for each true class, a column for each prediction; the colour is the share of "
                "the row. The table below names the commonest confusions.",
                height=min(900, 260 + 28 * n_classes),
            )
        )
    else:
        parts.append(
            paragraph(f"A matrix of {n_classes:,} classes cannot be read: here are the commonest confusions.")
        )
    if not n_wrong:
        return join(parts)
    totals = counts.sum(axis=1)
    commonest = np.argsort(-off, axis=None, kind="stable")[:N_CONFUSIONS]
    pairs = [divmod(int(place), n_classes) for place in commonest]
    rows = [
        [
            predictions.classes[true],
            predictions.classes[taken],
            f"{off[true, taken]:,}",
            f"{off[true, taken] / totals[true]:.1%}",
        ]
        for true, taken in pairs
        if off[true, taken]
    ]
    columns = [
        Column("true class"),
        Column("taken for"),
        Column("images", True),
        Column("of the class", True),
    ]
    n_kinds = int((off > 0).sum())
    caption = f"The {len(rows)} commonest confusions" + (f" of {n_kinds:,}" if n_kinds > len(rows) else "")
    return join([*parts, table(caption, columns, rows)])


def _classes(predictions: Predictions) -> Html:
    counts = predictions.confusion()
    right, totals, taken = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    rows: list[list[str | Cell]] = []
    for index, name in enumerate(predictions.classes):
        n, hits, n_taken = int(totals[index]), int(right[index]), int(taken[index])
        recall, precision = hits / n if n else None, hits / n_taken if n_taken else None
        interval = MISSING if not n else "{:.1%} to {:.1%}".format(*wilson_interval(hits, n))
        rows.append([name, Cell(f"{n:,}", n), _share(recall), interval, _share(precision)])
    columns = [
        Column("class"),
        Column("images", True),
        Column("recall", True),
        Column("95 % interval of recall", True),
        Column("precision", True),
    ]
    text = (
        "Recall is the share of a class's images that were recognised; precision is the share of the images "
        "taken for the class that are of it. The interval is Wilson's."
    )
    caption = f"{len(rows):,} classes on the {PARTS[predictions.part]} images"
    return join([paragraph(text), table(caption, columns, rows, name="class-table")])


def _calibration(predictions: Predictions, temperature: Any) -> Html:
    before, after = reliability(predictions, "confidence"), reliability(predictions, "calibrated")
    fitted = f" with temperature {temperature:.3g}" if isinstance(temperature, int | float) else ""
    text = (
        "How many of the predictions of a confidence are right; on the dotted line, it is as many as the "
        f"confidence says. The mean gap (ECE, {ECE_BINS} bins) is {before.ece:.4f} before and "
        f"{after.ece:.4f} after scaling{fitted}."
    )
    figure = chart(
        "reliability", charts.calibration(before, after), title="Reliability", text=text, height=420
    )
    columns = [Column("confidence"), Column("images", True), Column("right", True)]
    rows = [
        [f"{confidence:.3f}", f"{n:,}", f"{accuracy:.1%}"]
        for confidence, accuracy, n in zip(after.confidence, after.accuracy, after.counts, strict=True)
    ]
    return join([figure, table("After temperature: mean confidence of each bin", columns, rows)])


def _mistakes(predictions: Predictions, search: SearchToReport) -> Html:
    wrong = predictions.mistakes()
    if not wrong:
        return paragraph(f"There is none: all {PARTS[predictions.part]} images were recognised.")
    shown = wrong[:N_MISTAKES]
    root = search.data.get("root")
    places = [Path(str(root))] if root else []
    pictures = thumbnails([predictions.files[index] for index in shown], [*places, search.folder])
    items = [_mistake(predictions, index, picture) for index, picture in zip(shown, pictures, strict=True)]
    n_gone = sum(picture is None for picture in pictures)
    text = f"{len(shown)} of {len(wrong):,} mistakes on the {PARTS[predictions.part]} images."
    text += f" {n_gone} of these files are not there any more." if n_gone else ""
    return join([paragraph(text), element("ul", *items, class_="mistakes")])


def _mistake(predictions: Predictions, index: int, picture: str | None) -> Html:
    true, taken = (
        predictions.classes[labels[index]] for labels in (predictions.labels, predictions.predicted)
    )
    file = Path(predictions.files[index]).name
    image = (
        element("img", src=picture, alt=f"{file}: a {true} taken for {taken}")
        if picture
        else element("div", "the file is gone", class_="gone")
    )
    caption = element(
        "figcaption",
        element("strong", true),
        f" taken for {taken}, confidence {predictions.calibrated[index]:.1%}. ",
        element("span", file),
    )
    return element("li", element("figure", image, caption))


def _audit_tables(audit: Mapping[str, Any]) -> list[Html]:
    parts: list[Html] = []
    counts = next((audit[key] for key in ("split", "classes") if isinstance(audit.get(key), dict)), None)
    if counts:
        names = list(dict.fromkeys(part for row in counts.values() if isinstance(row, dict) for part in row))
        rows: list[list[str | Cell]] = [
            [str(name), *(Cell(f"{row.get(part, 0):,}", float(row.get(part, 0))) for part in names)]
            for name, row in counts.items()
            if isinstance(row, dict)
        ]
        columns = [Column("class"), *(Column(part, True) for part in names)]
        parts.append(table("Images of each class", columns, rows, name="image-table"))
    for key, title, heads in (
        ("formats", "Files by format", ("format", "files")),
        ("sizes", "Sizes in pixels", ("side", "least, median, greatest")),
    ):
        if isinstance(audit.get(key), dict) and audit[key]:
            pairs = [[str(name), _plain(value)] for name, value in audit[key].items()]
            parts.append(table(title, [Column(head) for head in heads], pairs))
    totals = audit.get("totals")
    for key, title in AUDIT_LISTS:
        items = audit.get(key)
        if isinstance(items, list) and items:
            n = totals.get(key, len(items)) if isinstance(totals, dict) else len(items)
            caption = f"{title} ({min(len(items), N_LISTED):,} of {n:,})"
            parts.append(table(caption, [Column("what")], [[_plain(item)] for item in items[:N_LISTED]]))
    return parts


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(map(_plain, value.values()))
    if isinstance(value, list):
        return " = ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _share(value: float | None) -> Cell:
    return Cell(MISSING if value is None else f"{value:.1%}", value)
