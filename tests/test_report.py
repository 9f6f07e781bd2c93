"""The report of a search: one whole page, whatever the folder holds, in which no name can do anything."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report_searches import (
    HOSTILE,
    QUOTED,
    write_journal,
    write_predictions,
    write_search,
    write_summary_file,
)
from tune_inat.errors import UserError
from tune_inat.report import is_current, write_report
from tune_inat.report_facts import read_search_to_report

MAX_BYTES = 25_000_000


class Page(HTMLParser):
    """What a browser would find in a page: elements with their attributes, the text outside of scripts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._is_hidden = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._is_hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._is_hidden = False

    def handle_data(self, data: str) -> None:
        if not self._is_hidden:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(write_search(tmp_path_factory.mktemp("runs") / HOSTILE.replace("/", "_"), 24, 4))


def test_page_has_each_part_once(ended: Page) -> None:
    anchors = [attributes["id"] for attributes in ended.all("section")]
    assert anchors == [
        *("leaderboard", "curves", "parameters", "rungs", "timeline"),
        *("confusion", "classes", "calibration", "mistakes", "images", "again"),
    ]


def test_page_loads_nothing(ended: Page) -> None:
    sources = [
        value for _, a in ended.elements for key, value in a.items() if key in ("src", "href") and value
    ]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_plotly_is_inside_once(ended: Page, tmp_path: Path) -> None:
    content = write_report(write_search(tmp_path / "a", 6, 2)).read_text()
    assert len(re.findall(r"\* plotly\.js v", content)) == 1


def test_foreign_names_are_text_and_nothing_else(ended: Page) -> None:
    assert HOSTILE in ended.text
    n_charts = len([a for a in ended.all("div") if a.get("class") == "plot"])
    assert len(ended.all("script")) == n_charts + 2  # data of each chart, plotly, ours: none of a name's
    assert not [a for _, a in ended.elements if any(key.startswith("on") for key in a)]


def test_ids_are_unique(ended: Page) -> None:
    ids = [attributes["id"] for _, attributes in ended.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_headers_of_tables_say_what_they_head(ended: Page) -> None:
    assert all(attributes.get("scope") in ("col", "row") for attributes in ended.all("th"))
    assert len(ended.all("caption")) == len(ended.all("table"))


def test_first_screen_says_what_was_found(ended: Page) -> None:
    for text in ("0.9100", "0.8720 to 0.9380 (Wilson)", "of 23 other trials", "McNemar's exact", "Holm's"):
        assert text in ended.text


def test_plan_stands_beside_what_it_came_to(ended: Page) -> None:
    for text in ("50 s", "1 min 02 s", "2.5 MB", "1,300", "1,100"):
        assert text in ended.text


def test_images_are_told_with_counts_sizes_copies_and_warnings(ended: Page) -> None:
    images = ended.text.partition("The images of this search")[2]
    for text in (
        "Images of each class",
        f"{HOSTILE} 3712",  # of the last class: 7 train, 1 val, 2 test
        "JPEG1,000",
        "width40, 640, 4,000",
        "Files that cannot be read (50 of 1,234)",
        f"{QUOTED}, is cut short",
        "Files with the same content (1 of 1)",
        f"{QUOTED} = b.png",
        "Files that show nearly the same (1 of 1)",
        f"c.png = {HOSTILE}.png = \\udcff.png",
        f"Near copies stand in two parts (3): {HOSTILE}.",
        "Ignored 4 files that are no images by their names: .txt 4.",
        "2 files cannot be read and were left out",
    ):
        assert text in images
    assert "Near copies that stand in two parts" not in images  # there are none


def test_mistakes_are_pictures_inside_the_page(ended: Page) -> None:
    pictures = [attributes["src"] or "" for attributes in ended.all("img")]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures)
    assert "of these files are not there any more" in ended.text


def test_data_of_charts_is_json_that_cannot_leave_its_script(tmp_path: Path) -> None:
    content = write_report(write_search(tmp_path / "a", 12, 3)).read_text()
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', content, re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        assert "<" not in block
        json.loads(block)


def test_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    folder = write_search(tmp_path / "a", 24, 3)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_report_is_current_until_what_it_shows_changes(tmp_path: Path) -> None:
    folder = write_search(tmp_path, 6, 3)
    assert not is_current(folder)
    write_report(folder)
    assert is_current(folder)
    _change_summary(folder, wall_seconds=1.0)  # by the same command, later
    assert is_current(folder)
    _change_summary(folder, status="INTERRUPTED")
    assert not is_current(folder)
    for name in ("predictions.csv", "trials.jsonl"):
        write_report(folder)
        assert is_current(folder)
        (folder / name).unlink()
        assert not is_current(folder)


def _change_summary(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_running_search_has_a_report(tmp_path: Path) -> None:
    write_journal(tmp_path, 5)
    page = page_of(tmp_path)
    assert "This search still runs, or was cut off" in page.text
    assert "There is no predictions.csv" in page.text


def test_report_leaves_the_journal_of_a_running_search_alone(tmp_path: Path) -> None:
    write_journal(tmp_path, 5)
    with (tmp_path / "trials.jsonl").open("a") as journal:
        journal.write('{"event": "epoch", "trial_id": "t000')  # being written at this moment
    before = (tmp_path / "trials.jsonl").read_bytes()
    write_report(tmp_path)
    assert (tmp_path / "trials.jsonl").read_bytes() == before


def test_search_that_went_on_after_its_summary_is_running(tmp_path: Path) -> None:
    write_search(tmp_path, 4, 2)
    assert not read_search_to_report(tmp_path).is_running
    other = tmp_path / "other"
    write_journal(other, 6)
    shutil.copyfile(other / "trials.jsonl", tmp_path / "trials.jsonl")
    search = read_search_to_report(tmp_path)
    assert search.is_running
    assert len(search.trials) == 6


def test_test_of_an_earlier_best_is_not_said_to_be_of_the_best(tmp_path: Path) -> None:
    write_search(tmp_path, 6, 3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    model = json.loads((tmp_path / "best_model" / "config.json").read_text())
    for told in (summary["best"], model):
        told |= {"trial_id": summary["best"]["trial_id"], "epoch": 1}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "best_model" / "config.json").write_text(json.dumps(model))
    text = page_of(tmp_path).text
    assert "91.0%" not in text
    assert "It was not tested." in text
    assert f"trial {summary['best']['trial_id']}, epoch 1. The best trial is another one by now" in text


def test_journal_without_times_or_images_says_so(tmp_path: Path) -> None:
    write_journal(tmp_path, 4)
    journal = tmp_path / "trials.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    old = [{k: v for k, v in event.items() if k not in ("at", "correct", "worker")} for event in events]
    journal.write_text("".join(json.dumps(event) + "\n" for event in old))
    text = page_of(tmp_path).text
    assert "has no times, so there is no timeline" in text
    assert "does not say which images each trial had right" in text


def test_summary_alone_is_enough(tmp_path: Path) -> None:
    write_search(tmp_path, 6, 2)
    (tmp_path / "trials.jsonl").unlink()
    page = page_of(tmp_path)
    assert "No trial's epochs are in the journal" in page.text
    assert "t00000" in page.text


def test_two_trials_are_too_few_for_importances(tmp_path: Path) -> None:
    assert "with fewer than 4 this would say nothing" in page_of(write_search(tmp_path / "a", 2, 2)).text


@pytest.mark.parametrize(
    ("same", "shown"),
    [
        ({"lr": 0.001, "optimizer": "adam"}, "of each trial over"),
        ({"lr": 0.001, "optimizer": "adam", "freeze": 0.8}, "no parameter varies"),
    ],
)
def test_few_varied_parameters_are_shown_as_they_are(
    tmp_path: Path, same: dict[str, Any], shown: str
) -> None:
    write_journal(tmp_path, 6)
    journal = tmp_path / "trials.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    for event in events:
        if event["event"] == "start":
            event["config"] |= same
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert shown in page_of(tmp_path).text


def test_torn_predictions_are_said_to_be_so(tmp_path: Path) -> None:
    write_search(tmp_path, 4, 2)
    (tmp_path / "predictions.csv").write_text("part,file,class,predicted,confidence,calibrated\ntest,a,b,c\n")
    assert "predictions.csv cannot be read" in page_of(tmp_path).text


def test_thousands_of_trials_and_a_thousand_classes_stay_small(tmp_path: Path) -> None:
    folder = write_search(tmp_path / "large", 2_000, 1_000, n_images=20_000)
    path = write_report(folder)
    assert path.stat().st_size < MAX_BYTES
    page = Page(path.read_text())
    assert "A matrix of 1,000 classes cannot be read" in page.text
    assert "2,000 trials" in page.text


def test_no_such_folder_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        write_report(tmp_path / "none")


def test_folder_without_a_search_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is no search"):
        write_report(tmp_path)


def test_hostile_path_is_no_problem(hostile_path: Path) -> None:
    write_journal(hostile_path, 4)
    write_summary_file(hostile_path)
    write_predictions(hostile_path, 3)
    assert hostile_path.name in page_of(hostile_path).text
