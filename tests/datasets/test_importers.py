from typing import get_args

import pytest

from shared.datasets import importers
from shared.datasets.names import DatasetName
from shared.datasets.record import FINDINGS_LENGTH, label_table
from shared.datasets.tables import listing, read_csv
from shared.errors import Invalid, NotFound, Unavailable
from tests.datasets import made


def test_the_names_that_the_api_offers_are_those_that_there_are_importers_for():
    assert set(get_args(DatasetName)) == set(importers.IMPORTERS)


def test_an_unknown_set_is_not_found_and_a_file_is_no_set(tmp_path):
    with pytest.raises(NotFound, match="cdd-cesm"):
        importers.read("mias", tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Invalid, match="must be a folder"):
        importers.read("cdd-cesm", tmp_path / "file")


def test_a_share_that_is_away_is_waited_for(tmp_path):
    with pytest.raises(Unavailable):
        importers.read("cdd-cesm", tmp_path / "away")


def test_a_label_table_says_of_each_file_what_its_record_says_and_leaves_the_age_behind(tmp_path):
    root = made.cdd_cesm(tmp_path, {"P3_L_DM_CC": "3$2", "P3_L_CM_CC": 4}, Findings="x" * 999)
    read = importers.read("cdd-cesm", root)
    table = label_table(read)
    assert (len(table), table.compound) == (2, 1)
    row = table.find(root, root / made.LOW / "P3_L_DM_CC.jpg")
    assert row is not None
    assert (row.patient, row.study, row.laterality, row.view) == ("cdd-cesm/3", "cdd-cesm/3", "L", "CC")
    assert row.identity
    assert (row.labels.birads, row.labels.density, row.labels.pathology) == (3, "C", "normal")
    extra = dict(row.labels.extra)
    assert len(extra.pop("findings")) == FINDINGS_LENGTH
    assert extra == {
        "dataset": "cdd-cesm",
        "kind": "DM_low_energy",
        "scheme": "BI-RADS",
        "level": "image",
        "birads_raw": "3$2",
    }
    assert "50" not in repr(row)
    assert table.find(root, root / made.WORKBOOK) is None


def test_a_listing_is_in_order_and_has_no_links(tmp_path):
    for name in ("b/2", "b/1", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to("a")
    assert [path.as_posix() for path in listing(tmp_path)] == ["a", "b/1", "b/2"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,c\n1,2\n", b"a,b\n\xff,1\n", b"a,b\n\x00,1\n", b"a\nb\n"])
def test_what_is_no_such_csv_is_invalid(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(Invalid):
        list(read_csv(tmp_path / "t.csv", ("a", "b")))


def test_columns_are_found_whatever_their_case_and_punctuation_and_empty_rows_are_none(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffImage file-path , B (x)\n\n 1 ,2\n,\n".encode())
    (line,) = read_csv(tmp_path / "t.csv", ("imagefilepath", "bx"))
    assert (line.number, line["imagefilepath"], line["bx"], line["nothing"]) == (3, "1", "2", "")
