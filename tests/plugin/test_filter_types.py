"""Filters over columns of every type, against rows that plain Python compares exactly."""

from __future__ import annotations

import datetime as dt
import itertools
import operator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from headrace._binding import bind_filter
from headrace._filter import FilterError, parse_filter

NAN, INF = float("nan"), float("inf")
OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

NUMBERS = [
    "0",
    "1",
    "-1",
    "30",
    "127",
    "128",
    "-128",
    "-129",
    "255",
    "256",
    "65536",
    "16777216",
    "16777217",
    "20000000",
    "2147483648",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "0.0",
    "-0.0",
    "0.1",
    "0.57",
    "0.571",
    "0.575",
    "0.35",
    "1.5",
    "-2.5",
    "1e7",
    "5e3",
    "1e23",
    "3.4028235e38",
    "1e39",
    "-1e39",
    "1e300",
    "-1e300",
    "9999999999.99",
    "9999999999.995",
    "57/100",
    "1/3",
    "0.12345678901234567890123456789012345678",
]
MOMENTS = [
    "date('1970-01-01')",
    "date('1994-01-02')",
    "date('0001-01-01')",
    "date('3000-01-01')",
    "timestamp('1970-01-01')",
    "timestamp('1994-01-02T12:00')",
    "timestamp('1994-01-02T00:00:00.000000001')",
    "timestamp('1969-12-31T23:59:59.999999999')",
    "timestamp('1994-01-02T00:00:00.123456789')",
    "timestamp('1994-01-02T00:00:00.1234567891')",
    "timestamp('9999-12-31T23:59:59.999999')",
]
TIMES = ["time('00:00')", "time('12:00')", "time('12:00:00.000000001')", "time('23:59:59.999999999')"]

NS_PER_DAY = 86_400 * 10**9
DAY = (dt.date(1994, 1, 2) - dt.date(1970, 1, 1)).days  # as MOMENTS has it
NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def moment_ns(text: str) -> Fraction:
    """Return what a constant of MOMENTS or TIMES stands for, by its digits alone."""
    written = text.split("'")[1]
    day, _, clock = ("", "", written) if text.startswith("time(") else written.partition("T")
    hours, minutes, seconds = [*map(Fraction, filter(None, clock.split(":"))), 0, 0, 0][:3]
    days = dt.date.fromisoformat(day).toordinal() - dt.date(1970, 1, 1).toordinal() if day else 0
    return days * NS_PER_DAY + (hours * 3600 + minutes * 60 + seconds) * 10**9


def whole(bits: int, *, signed: bool) -> list[int]:
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return [least, least + 1, most, most - 1, *(n for n in (-1, 0, 1, 30, 20_000_000) if least <= n <= most)]


def floats(kind: type[np.floating]) -> list[float]:
    most = np.finfo(kind).max
    values = [0.0, -0.0, 0.1, 0.57, 1.5, -2.5, INF, -INF, NAN, 30, 2048, 16777216, 2**53, 2**63, 1e23]
    with np.errstate(over="ignore"):
        return [float(kind(value)) for value in (*values, most, -most)]


def decimals(*texts: str) -> list[Decimal]:
    return [Decimal(text) for text in texts]


CENTS = decimals("0", "0.35", "0.41", "0.57", "-0.57", "0.58", "30.00", "9999999999.99", "-9999999999.99")
FEW = decimals("0", "0.57", "-2.50", "99.99")
BIG = decimals("0", "1", "9" * 38, "-" + "9" * 38, "18446744073709551615")
TINY = decimals("0", "0.12345678901234567890123456789012345678", "0." + "9" * 38)
WIDE = decimals("0", "0.57", "0.571", "-2.5", f"{'9' * 66}.{'9' * 10}", f"-{'9' * 66}.{'9' * 10}")
EXACT: dict[pa.DataType, list[Any]] = {
    pa.int8(): whole(8, signed=True),
    pa.int16(): whole(16, signed=True),
    pa.int32(): whole(32, signed=True),
    pa.int64(): whole(64, signed=True),
    pa.uint8(): whole(8, signed=False),
    pa.uint16(): whole(16, signed=False),
    pa.uint32(): whole(32, signed=False),
    pa.uint64(): whole(64, signed=False),
    pa.decimal32(4, 2): FEW,
    pa.decimal64(12, 2): CENTS,
    pa.decimal128(12, 2): CENTS,
    pa.decimal128(38, 0): BIG,
    pa.decimal128(38, 38): TINY,
    pa.decimal128(5, -3): decimals("0", "5E3", "-5E3", "99999E3"),
    pa.decimal256(76, 10): WIDE,
}
FLOATS: dict[pa.DataType, list[Any]] = {
    pa.float32(): floats(np.float32),
    pa.float64(): floats(np.float64),
}
TICKS = [0, 1, -1, DAY * 86_400, DAY * 86_400 * 10**9, 2**63 - 1, -(2**63)]
CLOCKS: dict[pa.DataType, list[Any]] = {
    pa.date32(): [0, 1, -1, DAY, 2**31 - 1, -(2**31)],
    pa.date64(): [n * 86_400_000 for n in (0, 1, -1, DAY, 10**9)],
    **{pa.timestamp(unit): [*TICKS, DAY * NS_PER_DAY // NS[unit]] for unit in NS},
}
ZONED: dict[pa.DataType, list[Any]] = {pa.timestamp(unit, "Europe/Berlin"): TICKS for unit in NS}
OF_A_DAY: dict[pa.DataType, list[Any]] = {
    kind: [0, 1, 12 * 3600 * 10**9 // NS[kind.unit], NS_PER_DAY // NS[kind.unit] - 1]
    for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))
}
WORDS = ["AIR", "", "RAIL", "\N{MICRO SIGN}", "\U0001f600", "\uffff"]
TEXTS: dict[pa.DataType, list[Any]] = {
    pa.string(): WORDS,
    pa.large_string(): WORDS,
    pa.dictionary(pa.int8(), pa.string()): WORDS,
    pa.binary(): [word.encode() for word in WORDS],
    pa.large_binary(): [word.encode() for word in WORDS],
    pa.binary(4): [b"RAIL", b"AIR\0", b"\xff\xff\xff\xff"],
}


def exact(value: Any, type_: pa.DataType) -> Any:
    """Return what plain Python compares."""
    if pa.types.is_temporal(type_):
        unit = "ms" if type_ == pa.date64() else getattr(type_, "unit", "s")
        return value * (NS_PER_DAY if type_ == pa.date32() else NS[unit])
    if isinstance(value, str):
        return value.encode()
    return Fraction(value) if isinstance(value, Decimal) else value


def array(values: list[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_temporal(type_):
        return pa.array(values, pa.int32() if type_.bit_width == 32 else pa.int64()).view(type_)
    return pa.array(values, type_)


def number(text: str, type_: pa.DataType) -> Any:
    """Return the number that is meant: beside floats it is the nearest of them."""
    if not pa.types.is_floating(type_):
        return Fraction(text)
    with np.errstate(over="ignore"):
        return float((np.float32 if type_ == pa.float32() else float)(float(Fraction(text))))


def answers(table: pa.Table, texts: list[str]) -> list[list[bool | None]]:
    conditions = {
        str(place): bind_filter(parse_filter(text), table.schema) for place, text in enumerate(texts)
    }
    return [column.to_pylist() for column in ds.dataset(table).to_table(columns=conditions).columns]


def assert_answers(table: pa.Table, expected: dict[str, list[bool | None]]) -> None:
    found = dict(zip(expected, answers(table, list(expected)), strict=True))
    assert {text: rows for text, rows in found.items() if rows != expected[text]} == {}


def assert_compares(values: list[Any], type_: pa.DataType, constants: dict[str, Any]) -> None:
    """Compare each value with each constant, in all ways, and with null."""
    table = pa.table({"x": array([*values, None], type_)})
    expected: dict[str, list[bool | None]] = {}
    for (text, constant), (symbol, apply) in itertools.product(constants.items(), OPERATORS.items()):
        rows = [apply(exact(value, type_), constant) for value in values]
        expected[f"x {symbol} {text}"] = expected[f"{text} {MIRRORED[symbol]} x"] = [*rows, None]
        expected[f"not x {symbol} {text}"] = [*(not row for row in rows), None]
        if symbol in ("==", "!="):
            expected[f"x {'in' if symbol == '==' else 'not in'} [{text}, None]"] = [*rows, None]
    expected["x in []"] = [*(False for _ in values), None]
    expected["x not in [None]"] = [*(True for _ in values), None]
    expected["x is None"] = [*(False for _ in values), True]
    assert_answers(table, expected)


@pytest.mark.parametrize("type_", [*EXACT, *FLOATS], ids=str)
def test_numbers(type_: pa.DataType):
    assert_compares((EXACT | FLOATS)[type_], type_, {text: number(text, type_) for text in NUMBERS})


@pytest.mark.parametrize("type_", [*CLOCKS, *OF_A_DAY], ids=str)
def test_dates_and_times(type_: pa.DataType):
    constants = TIMES if type_ in OF_A_DAY else MOMENTS
    assert_compares((CLOCKS | OF_A_DAY)[type_], type_, {text: moment_ns(text) for text in constants})


@pytest.mark.parametrize("type_", ZONED, ids=str)
def test_times_with_a_zone(type_: pa.DataType):
    constants = {
        "timestamp('1970-01-01T01:00+01:00')": 0,
        "timestamp('1994-01-02T12:00:00.5Z')": DAY * NS_PER_DAY + NS_PER_DAY // 2 + 5 * 10**8,
    }
    assert_compares(ZONED[type_], type_, constants)


@pytest.mark.parametrize("type_", TEXTS, ids=str)
def test_texts(type_: pa.DataType):
    assert_compares(TEXTS[type_], type_, {repr(word): word.encode() for word in [*WORDS, "AIS", "\0"]})


def test_booleans():
    assert_compares([True, False], pa.bool_(), {"True": True, "False": False})


def test_nothing_is_known_of_nulls():
    table = pa.table({"x": pa.nulls(1), "y": [1]})
    texts = ["x", "x == 1", "x in ['a']", "x + 1 > y", "-x > 0", "x < y", "not x > 1"]
    assert answers(table, texts) == [[None]] * len(texts)
    assert answers(table, ["x is None", "y in [1, 2]"]) == [[True], [True]]


@pytest.mark.parametrize("text", ["x", "x == 1", "1 < x", "x in [1]", "-x < 1", "x < y", "not y < x"])
def test_a_column_of_nulls_has_to_be_one_in_all_files(text: str, tmp_path):
    for name, values in {"0": [None], "1": [1]}.items():
        pq.write_table(pa.table({"x": values, "y": [1]}), tmp_path / f"{name}.parquet")
    dataset = ds.dataset(tmp_path)
    condition = bind_filter(parse_filter(text), dataset.schema)
    with pytest.raises(NotImplementedError, match="int64 to null"):
        dataset.to_table(filter=condition)


def crossed(one: list[Any], one_type: pa.DataType, other: list[Any], other_type: pa.DataType):
    """Return a table of each value beside each, and what plain Python compares."""
    pairs = list(itertools.product(one, other))
    table = pa.table(
        {"x": array([a for a, _ in pairs], one_type), "y": array([b for _, b in pairs], other_type)}
    )
    return table, [(exact(a, one_type), exact(b, other_type)) for a, b in pairs]


def fits_a_float(type_: pa.DataType) -> bool:
    return pa.types.is_floating(type_) or (pa.types.is_integer(type_) and type_.bit_width <= 32)


@pytest.mark.parametrize(
    "family", [EXACT | FLOATS, CLOCKS, ZONED, OF_A_DAY, TEXTS], ids=lambda f: str(next(iter(f)))
)
def test_columns_with_columns(family: dict[pa.DataType, list[Any]]):
    for one, other in itertools.combinations_with_replacement(family, 2):
        table, pairs = crossed(family[one], one, family[other], other)
        is_float = pa.types.is_floating(one) or pa.types.is_floating(other)
        if is_float and not (fits_a_float(one) and fits_a_float(other)):
            with pytest.raises(
                FilterError, match=r"no type compares them exactly; as floats it is '\([xy]\) / 1'"
            ):
                answers(table, ["x < y"])
        elif pa.decimal256(76, 10) in (one, other) and pa.decimal128(38, 38) in (one, other):
            with pytest.raises(FilterError, match="may take more than the 76 digits"):
                answers(table, ["x < y"])
        else:
            assert_answers(
                table,
                {f"x {symbol} y": [apply(a, b) for a, b in pairs] for symbol, apply in OPERATORS.items()},
            )


def written(value: Fraction) -> str:
    """Return all digits of a decimal."""
    return f"{value.numerator * 10**80 // value.denominator}e-80"


@pytest.mark.parametrize("symbol", ["+", "-", "*"])
def test_whole_numbers_and_decimals_are_calculated_exactly(symbol: str):
    apply = getattr(operator, {"+": "add", "-": "sub", "*": "mul"}[symbol])
    for one, other in itertools.combinations_with_replacement(EXACT, 2):
        table, pairs = crossed(EXACT[one], one, EXACT[other], other)
        results = [apply(Fraction(a), Fraction(b)) for a, b in pairs]
        try:
            answers(table, [f"x {symbol} y == 0"])
        except FilterError as error:
            assert "digits" in str(error)  # noqa: PT017 - whether it is raised depends on the types
            assert "256" in f"{one} {other}" or {one, other} <= {pa.decimal128(38, 0), pa.decimal128(38, 38)}
            continue
        some = {min(results), max(results), results[len(results) // 2]}
        assert_answers(
            table,
            {
                f"x {symbol} y {sign} {written(result)}": [compare(found, result) for found in results]
                for result in some
                for sign, compare in OPERATORS.items()
            },
        )


@pytest.mark.parametrize("type_", [*EXACT, *FLOATS], ids=str)
def test_arithmetic_with_constants(type_: pa.DataType):
    values = (EXACT | FLOATS)[type_]
    table = pa.table({"x": array(values, type_)})
    kind = float if type_ in FLOATS else Fraction
    if type_ == pa.decimal256(76, 10):
        with pytest.raises(FilterError, match="'-x' may take more than the 76 digits"):
            answers(table, ["-x < 0"])
    else:
        assert_answers(
            table,
            {
                "-x < 0": [-kind(value) < 0 for value in values],
                "-x == -1": [-kind(value) == -1 for value in values],
                "x + 100 > 150": [kind(value) + 100 > 150 for value in values],
                "1 - x >= 0.5": [1 - kind(value) >= kind("0.5") for value in values],
                "x * 2.5 < 3": [kind(value) * kind("2.5") < 3 for value in values],
            },
        )
    assert_answers(
        table,
        {
            "x / 2 > 3": [float(value) / 2 > 3 for value in values],
            "x / 1 == 0.57": [float(value) == 0.57 for value in values],
            "x * (1/3) <= 10": [float(value) * float(Fraction(1, 3)) <= 10 for value in values],
        },
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nothing > 1", "no column 'nothing'; there are number, "),
        ("struct.z > 1", "'struct' is struct<a: int8> and has no field 'z'"),
        ("number.z > 1", "'number' is int64 and has no field 'z'"),
        ("number", "'number' is int64, not a condition"),
        ("number + 1", "not a condition"),
        ("flag and 1", "'1' is a constant"),
        ("number == 'x'", "'number' is int64 and compares with numbers, not with \"'x'\""),
        ("number == True", "not with 'True'"),
        ("number in (1, 'x')", "not with \"'x'\""),
        ("number > day", "not with 'day'"),
        ("number > timestamp('2020-01-01')", "compares with numbers"),
        ("flag == 1", "'flag' is bool and compares with True and False"),
        ("flag + 1 > 1", "'flag' is bool, no number"),
        ("word > 1", "'word' is string and compares with strings"),
        ("day > '2020-01-01'", r"'day' is date32\[day\] and compares with date\("),
        ("at > timestamp('2020-01-01')", r"tz=UTC\] and compares with timestamp\(.*an offset"),
        ("at == day", "not with 'day'"),
        ("day > timestamp('2020-01-01T00:00Z')", "compares with date"),
        ("struct == 1", "compares with nothing but 'is None'"),
        ("list == list", "compares with nothing but 'is None'"),
        ("half > 1", "'half' is halffloat and compares with nothing but 'is None'"),
        ("wide * wide > 1", "'wide [*] wide' may take more than the 76 digits"),
    ],
)
def test_what_cannot_be_exact_is_refused(text: str, complaint: str):
    schema = pa.schema(
        {
            "number": pa.int64(),
            "flag": pa.bool_(),
            "word": pa.string(),
            "day": pa.date32(),
            "at": pa.timestamp("us", "UTC"),
            "struct": pa.struct({"a": pa.int8()}),
            "list": pa.list_(pa.int8()),
            "wide": pa.decimal256(60, 2),
            "half": pa.float16(),
        }
    )
    with pytest.raises(FilterError, match=complaint):
        bind_filter(parse_filter(text), schema)


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([("x", pa.struct([("a", pa.int8())])), ("x", pa.int8())]),
        pa.schema([("x", pa.struct([("a", pa.int8()), ("a", pa.int8())]))]),
    ],
    ids=["columns", "fields"],
)
def test_a_name_that_is_there_twice_is_refused(schema: pa.Schema):
    with pytest.raises(FilterError, match="Multiple matches"):
        bind_filter(parse_filter("x.a == 1"), schema)


def test_names_are_those_that_were_written():
    micro, mu = "\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"
    table = pa.table({micro: [1], mu: [2], "s": [{micro: 3, mu: 4}]})
    texts = [f"{micro} == 1", f"{mu} == 2", f"s.{micro} == 3", f"(s\n.  {mu}) == 4"]
    assert answers(table, texts) == [[True]] * len(texts)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array(range(40), pa.uint64()), "x > 29.5"),
        (pa.array(range(40), pa.int8()), "x in (33, 35, 1e30)"),
        (pa.array(range(40), pa.float32()), "30.1 <= x"),
        (pa.array([Decimal(n) for n in range(40)], pa.decimal128(12, 2)), "x > 29.999"),
        (pa.array(range(40), pa.timestamp("ms")), "x >= timestamp('1970-01-01T00:00:00.0295')"),
        (pa.array([chr(65 + n) for n in range(40)]), "x > 'b'"),
    ],
    ids=str,
)
def test_row_groups_are_skipped_by_their_statistics(values: pa.Array, text: str, tmp_path):
    pq.write_table(pa.table({"x": values}), tmp_path / "x.parquet", row_group_size=10)
    dataset = ds.dataset(tmp_path / "x.parquet")
    condition = bind_filter(parse_filter(text), dataset.schema)
    (fragment,) = dataset.get_fragments()
    assert [group.id for group in fragment.subset(condition).row_groups] == [3]


@pytest.mark.parametrize(("text", "rows"), [("not x < 10", [1]), ("x < 10", [0, 2]), ("x != 1", [1, 2])])
def test_statistics_without_nan_skip_no_nan(text: str, rows: list[int], tmp_path):
    pq.write_table(pa.table({"x": [1.0, NAN, 5.0], "row": [0, 1, 2]}), tmp_path / "x.parquet")
    dataset = ds.dataset(tmp_path / "x.parquet")
    condition = bind_filter(parse_filter(text), dataset.schema)
    assert dataset.to_table(filter=condition)["row"].to_pylist() == rows
