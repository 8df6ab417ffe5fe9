from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.manifest import Record
from pneumoscope.errors import DataError
from pneumoscope.evaluation.boxes import Box, match_boxes, read_boxes

RSNA = """patientId,x,y,width,height,Target
a,10,20,30,40,1
a,100.0,20.0,30.0,40.0,1
b,,,,,0
a,10,20,30,40,1
c,1,2,3,4,1
"""


def written(tmp_path, text):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    return path


def records(*paths):
    return [Record(path, "pneumonia", path) for path in paths]


def test_the_layout_of_rsna(tmp_path):
    boxes = read_boxes(written(tmp_path, RSNA))
    assert boxes == {"a": (Box(10, 20, 30, 40), Box(100, 20, 30, 40)), "c": (Box(1, 2, 3, 4),)}
    matched, unmatched = match_boxes(boxes, records("x/a.dcm", "b.dcm"))
    assert matched == {"x/a.dcm": boxes["a"]}
    assert unmatched == 1


def test_the_plain_layout_by_path_and_by_name(tmp_path):
    table = "path,x,y,width,height\nx\\a.png,1,2,3,4\nx/a.png,5,6,7,8\nc.png,1,1,1,1\nd.png,,,,\n"
    boxes = read_boxes(written(tmp_path, table))
    matched, unmatched = match_boxes(boxes, records("x/a.png", "y/c.png"))
    assert matched == {"x/a.png": (Box(1, 2, 3, 4), Box(5, 6, 7, 8)), "y/c.png": (Box(1, 1, 1, 1),)}
    assert unmatched == 0


def test_a_manifest_with_boxes_in_shares_of_the_image(tmp_path):
    table = """path,label,patient_id,width,height,boxes
x/a.png,pneumonia,1,200,100,"0.1,0.2,0.3,0.4;0.5,0.5,0.25,0.5"
b.png,pneumonia,2,200,100,
"""
    boxes = read_boxes(written(tmp_path, table))
    assert boxes == {"x/a.png": (Box(20, 20, 60, 40), Box(100, 50, 50, 50))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,boxes\na,"0.1,0.1,0.1,0.1"\n', "row 1: boxes need the width and height"),
        ('path,width,height,boxes\na,9,no,"0.1,0.1,0.1,0.1"\n', "row 1: width and height .* must be numbers"),
        ('path,width,height,boxes\na,9,9,"10,20,30,40"\n', "row 1: box '10,20,30,40' must be in shares"),
        ("name,x,y,width,height\n", "not a table of boxes"),
        ("path,x,y,width\n", "not a table of boxes"),
        ("path,x,y,width,height\na,1,2,zero,4\n", "row 1: .* must be numbers"),
        ("path,x,y,width,height\na,1,2,3,4\na,1,2,-3,4\n", "row 2: .* above 0"),
        ("path,x,y,width,height\na,1,2,inf,4\n", "row 1: .* finite"),
        ("patientId,x,y,width,height,Target\na,,,,,1\n", "row 1: .* must be numbers"),
    ],
)
def test_what_is_not_a_table_of_boxes_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_boxes(written(tmp_path, text))


def test_boxes_of_other_images_and_names_of_several_are_rejected():
    boxes = {"a": (Box(1, 2, 3, 4),)}
    with pytest.raises(DataError, match=r"no box belongs .*: the table of boxes names a, the set b\.png;"):
        match_boxes(boxes, records("b.png"))
    with pytest.raises(DataError, match="matches 2 images"):
        match_boxes(boxes, records("x/a.png", "y/a.png"))


def test_an_entry_with_a_folder_is_no_other_image_of_the_same_name():
    a, b = (Box(1, 1, 1, 1),), (Box(2, 2, 2, 2),)
    table = {"siteA/0000.jpeg": a, "siteB/0000.jpeg": b}
    assert match_boxes(table, records("siteB/0000.jpeg")) == ({"siteB/0000.jpeg": b}, 1)
    with pytest.raises(DataError, match="no box belongs to an image of this set"):
        match_boxes({"siteA/0000.jpeg": a}, records("siteB/0000.jpeg", "siteC/0000.jpeg"))
    # A folder further up may be stated by one side alone.
    assert match_boxes(table, records("data/siteA/0000.jpeg")) == ({"data/siteA/0000.jpeg": a}, 1)
    assert match_boxes({"/data/p1/i.png": a, "/data/p2/i.png": b}, records("p1/i.png", "p2/i.png")) == (
        {"p1/i.png": a, "p2/i.png": b},
        0,
    )
    assert match_boxes({"i.png": a}, records("i.png", "p2/i.png")) == ({"i.png": a}, 0)
    with pytest.raises(DataError, match=r"p1/i\.png: this name .* matches 2 images; write their paths"):
        match_boxes({"p1/i.png": a}, records("x/p1/i.png", "y/p1/i.png"))
    with pytest.raises(DataError, match=r"p2/i\.png: the table of boxes names p1/i\.png too"):
        match_boxes({"p1/i.png": a, "p2/i.png": b}, records("i.png"))


@given(content=st.binary(max_size=200))
def test_any_bytes_are_boxes_or_one_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("boxes") / "boxes.csv"
    path.write_bytes(b"path,x,y,width,height\n" + content)
    try:
        boxes = read_boxes(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert all(box.width > 0 and box.height > 0 for found in boxes.values() for box in found)


def test_numbers_of_parquet_may_be_zero(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {
        "patientId": ["a", "b"],
        "x": [0.0, None],
        "y": [0, None],
        "width": [3, None],
        "height": [4, None],
    }
    parquet.write_table(pa.table(rows | {"Target": [1, 0]}), tmp_path / "boxes.parquet")
    assert read_boxes(tmp_path / "boxes.parquet") == {"a": (Box(0, 0, 3, 4),)}
