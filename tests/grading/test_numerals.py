"""Reading numbers."""

from decimal import Decimal
from fractions import Fraction

import pytest

from hardsample.grading.parsing.numerals import (
    decimals,
    latex_number_text,
    number_in_words,
    plain_number,
    read_integers,
)
from hardsample.grading.parsing.quantities import Quantity, same_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        ("-1,234.5", "-1234.5"),
        ("−7", "-7"),
        ("$7$", "7"),
        ("**3.**", "3"),
        ("５", "5"),
        ("٤٢", "42"),
        (".5", "0.5"),
        ("RM 6.90", "6.90"),
        ("$6.90", "6.90"),
        ("1,23", None),
        ("12%", None),
        ("1e3", None),
        ("x", None),
        ("", None),
        ("9" * 19, None),
    ],
)
def test_plain_number(text: str, number: str | None) -> None:
    assert plain_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("gold", "count"), [("3.1416", 4), ("0.125", 3), ("28.90", 6), ("7", 6), ("1.2345678", 6), ("a.bcd", 6)]
)
def test_decimals(gold: str, count: int) -> None:
    assert decimals(gold) == count


def test_numbers_round_to_the_golds_decimals_or_agree_to_parts_of_a_million() -> None:
    def same(answer: str, gold: str, digits: int) -> bool:
        return same_quantity(Quantity(Fraction(answer), None), Quantity(Fraction(gold), None), digits)

    assert same("3.14159", "3.1416", 4)
    assert not same("3.14", "3.1416", 4)
    assert not same("0.0000012", "0.0000013", 6)
    assert same("0.3333333", "0.333333", 6)
    assert not same("1000001", "1000000", 6)


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("3 circles, one square and 4 triangles", [[3, 1, 4]]),
        ("twenty-one three", [[21, 3]]),
        ("one hundred and five", [[105]]),
        ("two thousand three hundred forty two", [[2342]]),
        ("three, one, four", [[3, 1, 4]]),
        ("three one four", [[3, 1, 4]]),
        ("1,234", [[1234], [1, 234]]),
        ("3-1-4", [[3, 1, 4]]),
        ("-3", [[-3]]),
        ("(7,6)", [[7, 6]]),
        ("3.0", [[3]]),
        ("3.5 and 4", [[]]),
        ("H2O, the 2nd, 1e400", [[]]),
        ("none", [[]]),
        ("", [[]]),
        ("1 " * 5000, [[]]),
    ],
)
def test_read_integers(text: str, readings: list[list[int]]) -> None:
    assert read_integers(text) == readings


@pytest.mark.parametrize(
    ("text", "number"),
    [("Twenty-one.", 21), ("seven", 7), ("one two", None), ("seven apples", None), ("", None), ("and", None)],
)
def test_number_in_words(text: str, number: int | None) -> None:
    assert number_in_words(text) == number


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("½", r"\frac{1}{2}"),
        ("1½", r"1\frac{1}{2}"),
        ("x²", "x^{2}"),
        ("10⁻³", "10^{-3}"),
        ("５", "5"),
        ("90°", r"90^\circ"),
        (r"1\,234", "1234"),
        ("1{,}234", "1234"),
        ("12 cm²", "12 cm^{2}"),
    ],
)
def test_latex_number_text(text: str, latex: str) -> None:
    assert latex_number_text(text) == latex
