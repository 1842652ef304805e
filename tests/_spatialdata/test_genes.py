"""Genes asked, found by name, by Ensembl id, or by the table's other column."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from stpredict._spatialdata import match_genes

SYMBOLS = ["GNAS", "SCD", "ERBB2", "ACTB"]
IDS = ["ENSG00000087460", "ENSG00000099194", "ENSG00000141736", "ENSG00000075624"]


def find(wanted, available, **more):
    positions, missing = match_genes(wanted, available, what="table 'table'", **more)
    return positions.tolist(), missing


def test_positions_follow_the_order_asked():
    assert find(["ACTB", "GNAS"], SYMBOLS) == ([3, 0], [])


def test_a_partial_match_is_returned_and_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="stpredict"):
        assert find(["ACTB", "XIST", "SCD"], SYMBOLS) == ([3, -1, 1], ["XIST"])
    assert "table 'table' has 2 of 3 genes; missing: ['XIST']" in caplog.text


def test_a_full_match_says_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="stpredict"):
        find(SYMBOLS, SYMBOLS)
    assert not caplog.records


@pytest.mark.parametrize(("wanted", "available"), [
    (["ENSG00000099194.12"], IDS),
    (["ENSG00000099194"], [f"{each}.7" for each in IDS]),
    (["ENSG00000099194.12"], [f"{each}.7" for each in IDS]),
    (["ENSMUSG00000037071.3"], ["ENSMUSG00000000001", "ENSMUSG00000037071"]),
])  # fmt: skip
def test_the_version_of_an_id_does_not_count(wanted, available):
    assert find(wanted, available) == ([1], [])


def test_a_suffix_of_a_symbol_counts():
    assert find(["RP11-34P13.7", "SCD"], ["RP11-34P13.8", "SCD"]) == ([-1, 1], ["RP11-34P13.7"])


@pytest.mark.parametrize("column", ["gene_ids", "gene_id", "ensembl_id"])
def test_ids_asked_of_a_table_of_symbols(column, caplog):
    var = pd.DataFrame({column: IDS}, index=SYMBOLS)
    with caplog.at_level(logging.INFO, logger="stpredict"):
        assert find([IDS[2] + ".4", IDS[0]], SYMBOLS, var=var) == ([2, 0], [])
    assert f"matched by var['{column}']" in caplog.text


@pytest.mark.parametrize("column", ["gene_symbols", "gene_name", "feature_name"])
def test_symbols_asked_of_a_table_of_ids(column):
    var = pd.DataFrame({column: pd.Categorical(SYMBOLS)}, index=IDS)
    assert find(["ERBB2"], IDS, var=var) == ([2], [])


def test_the_names_are_used_where_they_find_as_much():
    var = pd.DataFrame({"gene_name": ["SCD", "GNAS", "x", "y"]}, index=SYMBOLS)
    assert find(["SCD", "GNAS"], SYMBOLS, var=var) == ([1, 0], [])


def test_a_gene_that_two_rows_of_the_column_have_is_ambiguous():
    var = pd.DataFrame({"gene_name": ["GNAS", "GNAS", "ERBB2", "ACTB"]}, index=IDS)
    assert find(["ERBB2"], IDS, var=var) == ([2], [])  # the double is not asked for
    with pytest.raises(ValueError, match=r"gene 'GNAS' occurs 2 times in table 'table', var\['gene_name'\]"):
        find(["ERBB2", "GNAS"], IDS, var=var)


def test_the_very_version_that_is_asked_is_taken():
    assert find([f"{IDS[0]}.2"], [f"{IDS[0]}.1", f"{IDS[0]}.2"]) == ([1], [])


def test_versions_that_make_two_rows_one_gene_are_ambiguous():
    with pytest.raises(ValueError, match="gene 'ENSG00000087460' occurs 2 times"):
        find([IDS[0]], [f"{IDS[0]}.1", f"{IDS[0]}.2"])


@pytest.mark.parametrize(("wanted", "available", "said"), [
    (["SCD", "SCD"], SYMBOLS, r"the genes asked are not unique: \['SCD'\]"),
    ([f"{IDS[0]}.1", f"{IDS[0]}.2"], IDS, r"the genes asked are not unique: \['ENSG00000087460'\]"),
    (["SCD", "ACTB"], ["SCD", "ACTB", "ACTB"], r"gene 'ACTB' occurs 2 times in table 'table'"),
    ([], SYMBOLS, "no genes were asked"),
    (["A1", "A2"], SYMBOLS, r"none of 2 genes is in table 'table': asked for \['A1', 'A2'\], there are \['GNAS'"),
    (IDS, SYMBOLS, "asked are Ensembl ids, those of table 'table' are gene symbols.*gene_ids"),
    (SYMBOLS, IDS, "asked are gene symbols, those of table 'table' are Ensembl ids"),
    (["Gnas", "Scd"], SYMBOLS, "agree when case is ignored: another species"),
])  # fmt: skip
def test_what_is_refused(wanted, available, said):
    with pytest.raises(ValueError, match=said):
        find(wanted, available)


def test_advice_ends_the_message():
    with pytest.raises(ValueError, match="none of 1 genes.*Pass table_added=.$"):
        find(["XIST"], SYMBOLS, advice="Pass table_added=.")


def test_a_name_that_occurs_twice_and_is_not_asked_does_not_matter():
    positions, missing = match_genes(["SCD", "GNAS"], ["ACTB", "SCD", "ACTB", "GNAS"], what="table 'table'")
    assert positions.tolist() == [1, 3]
    assert missing == []
