"""The paper's numbers and claims, as they are kept."""

from __future__ import annotations

import re

import pytest

from claims.made_up import made_up_run
from llmkick.claims.assess import assess
from llmkick.paper.numbers import paper_claims, paper_source, paper_tables


def test_the_source_says_which_version() -> None:
    assert "2310.01382 v2" in paper_source()


def test_tables_have_a_number_in_every_cell() -> None:
    for table in paper_tables().values():
        assert table.rows
        assert all(len(row.values) == len(table.columns) for row in table.rows), table.id


def test_table_3_breaks_the_papers_own_rule() -> None:
    """Magnitude pruning keeps less than 95 % of factoid QA at 10 % sparsity, and gains at 20 %."""
    table = paper_tables()["table-3"]
    dense, at_10, at_20 = (table.value("factoid QA", "magnitude", level) for level in ("0 %", "10 %", "20 %"))
    assert at_10 < 0.95 * dense < dense < at_20


def test_a_cell_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="60 %"):
        paper_tables()["table-3"].value("factoid QA", "Wanda", "60 %")


def test_every_claim_has_numbers_with_their_place() -> None:
    claims = paper_claims()
    assert list(claims) == list(range(1, 12))
    for claim in claims.values():
        assert claim.numbers, claim.id
        assert all(re.match(r"(Table|Figure|Section|Appendix|Figures) [\dA]", line) for line in claim.numbers), claim.id


def test_sentences_have_the_printed_numbers_and_the_change_from_the_dense_model() -> None:
    assert (
        "Table 3, factoid QA, Wanda: 65.44 at 0 %, 65.23 at 20 % (−0.3 %), 61.24 at 30 % (−6.4 %)"
        in paper_claims()[1].numbers
    )
    assert paper_claims()[5].numbers == ("Section 4, MMLU: magnitude 31.7, Wanda 45.3, SparseGPT 46.3, dense 7B 46.7",)


def test_every_claim_has_a_rule() -> None:
    rows = assess([made_up_run({("wanda@0.5", "factoid_qa"): 0.2}, items=20)])
    assert [row.id for row in rows] == list(paper_claims())
    assert len({row.rule for row in rows}) == len(rows)
