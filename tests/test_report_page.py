"""HTML of a report: text is escaped where it enters, markup is made by its functions alone."""

import json

from tune_inat.report_page import Cell, Column, Html, chart_text, element, escape, script_json, table

HOSTILE = "</script><img src=x onerror=alert(1)> \"q\" 'q' & \u202e"


def test_text_is_escaped() -> None:
    assert escape("<b>") == "&lt;b&gt;"


def test_markup_is_not_escaped_again() -> None:
    assert element("p", element("b", "x & y")) == "<p><b>x &amp; y</b></p>"


def test_attributes_are_escaped() -> None:
    assert element("img", alt='a "b" <c>') == '<img alt="a &quot;b&quot; &lt;c&gt;">'


def test_directions_cannot_be_turned_round() -> None:
    assert "\u202e" not in escape(HOSTILE)


def test_surrogates_of_file_names_can_be_written() -> None:
    assert escape("caf\udce9").encode() == b"caf\\udce9"


def test_json_in_a_script_holds_no_tag_and_means_the_same() -> None:
    text = script_json({"name": HOSTILE})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": HOSTILE}


def test_numbers_that_json_lacks_are_null() -> None:
    assert json.loads(script_json([float("nan"), float("inf"), 1.5])) == [None, None, 1.5]


def test_chart_text_is_no_markup_for_plotly() -> None:
    assert chart_text("<b>bold</b>") == "&lt;b&gt;bold&lt;/b&gt;"


def test_chart_text_is_cut_before_it_is_escaped() -> None:
    assert chart_text("&" * 50, 4) == "&amp;&amp;&amp;…"


def test_sortable_table_has_buttons_in_its_heads() -> None:
    rows: list[list[str | Cell]] = [[Cell("1", 1.0), "<x>"]]
    content = table("Some", [Column("n", True), Column("name")], rows, name="some")
    assert content.count('<button type="button">') == content.count('aria-sort="none"') == 2
    assert 'data-order="1.0"' in content
    assert "&lt;x&gt;" in content
    assert isinstance(content, Html)
