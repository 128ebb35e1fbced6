"""Read units of measurement after a number, in the spellings that people and models use, as one form each."""

from __future__ import annotations

import re
from functools import lru_cache

_ALIASES = {
    "mm": "millimeter millimetre millimeters millimetres 毫米",
    "cm": "centimeter centimetre centimeters centimetres 厘米",
    "dm": "decimeter decimetre decimeters decimetres 分米",
    "m": "meter metre meters metres 米",
    "km": "kilometer kilometre kilometers kilometres kms 千米 公里",
    "nm": "nanometer nanometre nanometers nanometres",
    "µm": "μm micrometer micrometre micrometers micrometres micron microns",
    "in": "inch inches ″",
    "ft": "foot feet ′",
    "yd": "yds yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams 毫克",
    "g": "gram grams gramme grammes 克",
    "kg": "kgs kilogram kilograms kilo kilos 千克 公斤",
    "t": "ton tons tonne tonnes 吨",
    "lb": "lbs pound-mass",
    "oz": "ounce ounces",
    "ms": "millisecond milliseconds 毫秒",
    "s": "sec secs second seconds 秒 秒钟",
    "min": "mins minute minutes 分钟",
    "h": "hr hrs hour hours 小时",
    "day": "days 天",
    "week": "weeks 周 星期",
    "month": "months 月 个月",
    "year": "years yr yrs 年",
    "L": "l liter litre liters litres 升",
    "mL": "ml milliliter millilitre milliliters millilitres 毫升",
    "gal": "gallon gallons",
    "N": "newton newtons",
    "kN": "kilonewton kilonewtons",
    "J": "joule joules",
    "kJ": "kilojoule kilojoules",
    "cal": "calorie calories",
    "kcal": "kilocalorie kilocalories",
    "W": "watt watts",
    "kW": "kilowatt kilowatts",
    "MW": "megawatt megawatts",
    "kWh": "kilowatt-hour kilowatt-hours",
    "V": "volt volts",
    "mV": "millivolt millivolts",
    "kV": "kilovolt kilovolts",
    "A": "amp amps ampere amperes",
    "mA": "milliamp milliamps milliampere milliamperes",
    "Ω": "Ω ohm ohms \\Omega",
    "kΩ": "kΩ kiloohm kiloohms",
    "C": "coulomb coulombs",
    "F": "farad farads",
    "µF": "μF microfarad microfarads",
    "T": "tesla teslas",
    "Hz": "hertz hz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "GHz": "gigahertz",
    "Pa": "pascal pascals",
    "kPa": "kilopascal kilopascals",
    "atm": "atmosphere atmospheres",
    "K": "kelvin kelvins",
    "°C": "℃ degC celsius",
    "°F": "℉ degF fahrenheit",
    "°": "deg degs degree degrees ^\\circ \\circ ^{\\circ} \\degree º 度",
    "rad": "radian radians",
    "mol": "mole moles",
    "M": "molar",
    "eV": "electronvolt electronvolts",
    "dB": "decibel decibels",
    "mph": "",
    "kph": "kmh",
    "acre": "acres",
    "ha": "hectare hectares",
    "%": "\\% percent pct ％ percentage",
    "unit": "units",
    "Wb": "weber webers",
    "H": "henry henries",
    "mH": "millihenry",
    "lx": "lux",
    "ly": "light-year light-years",
    "KB": "kB kilobyte kilobytes",
    "MB": "megabyte megabytes",
    "GB": "gigabyte gigabytes",
    "TB": "terabyte terabytes",
    "µs": "μs us microsecond microseconds",
    "ns": "nanosecond nanoseconds",
    "px": "pixel pixels",
    "$": "dollar dollars USD \\$ 美元",
    "cent": "cents ¢",
    "€": "euro euros EUR",
    "£": "pound pounds GBP",
    "¥": "yuan RMB CNY yen JPY 元 块",
    "₹": "rupee rupees INR Rs Rs.",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases.split())}
_LOWER = {alias.lower(): name for alias, name in _CANONICAL.items() if len(alias) > 3}
_COMPOUND = {"mph": (("h", -1), ("mi", 1)), "kph": (("h", -1), ("km", 1))}
_POWERS = {"²": 2, "³": 3, "squared": 2, "cubed": 3, "square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3, "cu.": 3}
_POWERS |= {"平方": 2, "立方": 3}
_FACTOR = re.compile(r"(?P<name>.*?)(?:\^?\{?(?P<power>-?[1-4])\}?|(?P<sign>[²³]))?")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_SUPERSCRIPTS = str.maketrans("⁻¹", "-1")
_WORD = re.compile(r"[a-z][a-z'’-]{2,}(?: [a-z][a-z'’-]*){0,3}")
# Words after a number that modify it or make it a formula.
_NO_UNIT = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|root|pi|half|halves|thirds?|quarters?|fifths?|tenths?|hundredths?"
    r"|minus|negative|plus|times|over|dozen|hundred|thousand|million|billion|trillion|squared|cubed|and|or|to|by|nor|not|more|less|fewer|greater|than|no|wrong|one|two|three|four|five|six|seven|eight|nine|ten"
    r"|st|nd|rd|th|x|of)\b"
)

Unit = tuple[tuple[str, int], ...]
"""Factors and their powers, sorted by name, ((“h”, −1), (“km”, 1)); empty for a thing that is counted ("apples")."""


@lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    r"""Read a unit: ``cm``, ``m/s``, ``km per hour``, ``cm^2``, ``square meters``, ``°C``, ``平方米``, ``apples``.

    Args:
        text: the text after a number, stripped.

    Returns:
        Its factors; empty for words that name no unit; None if the text cannot be a unit.
    """
    if not text or len(text) > 60:
        return None
    text = _FRACTION.sub(r"\1/\2", text.translate(_SUPERSCRIPTS))
    parts = re.split(r"\s*(/|\bper\b|每)\s*", text)
    factors: dict[str, int] = {}
    sign = 1
    for part in parts:
        if part in ("/", "per", "每"):
            sign = -1
            continue
        read = _product(part)
        if read is None:
            return _words(text) if _WORD.fullmatch(text) and not _NO_UNIT.search(text) else _counted(text)
        for name, power in read:
            factors[name] = factors.get(name, 0) + sign * power
    if len(factors) == 1 and (name := next(iter(factors))) in _COMPOUND:
        return _COMPOUND[name]
    return tuple(sorted((name, power) for name, power in factors.items() if power))


def compatible(first: Unit | None, second: Unit | None) -> bool:
    """Return whether two units may be the same: equal, or one of them is missing or names no unit.

    Args:
        first: a unit, or None.
        second: another.

    Returns:
        False only for two known units that differ, ``cm`` and ``m``.
    """
    if not first or not second or first == second:
        return True
    unnamed = any(len(unit) == 1 and unit[0][0] == "unit" for unit in (first, second))  # "square units"
    return unnamed and (_power(first) == _power(second) or 1 in (_power(first), _power(second)))


def is_percent(unit: Unit | None) -> bool:
    """Return whether a unit is the percent sign or word."""
    return unit == (("%", 1),)


def _words(text: str) -> Unit:
    """Return no factors for a counted thing, but those of a unit followed by words ("years old")."""
    return tuple(_product(text.partition(" ")[0]) or ())


def _power(unit: Unit) -> int:
    return sum(power for _, power in unit)


def _product(text: str) -> list[tuple[str, int]] | None:
    """Read factors with powers; None if one is not a unit."""
    factors: list[tuple[str, int]] = []
    next_power = 1
    for prefix in ("平方", "立方"):
        if text.startswith(prefix) and text != prefix:
            text, next_power = text[len(prefix) :], _POWERS[prefix]
    for word in re.split(r"\s*(?:·|⋅|\\cdot|\*|\s)\s*", text.strip("() ")):
        if word.lower() in _POWERS and not word.isdigit():
            power = _POWERS[word.lower()]
            if word.lower() in ("squared", "cubed", "²", "³") and factors:
                factors[-1] = (factors[-1][0], power)
            else:
                next_power = power
            continue
        name = _CANONICAL.get(word) or _LOWER.get(word.lower())
        power = 1
        if name is None:
            match = _FACTOR.fullmatch(word)
            if match is None:
                return None
            name = _CANONICAL.get(match["name"]) or _LOWER.get(match["name"].lower())
            power = _POWERS[match["sign"]] if match["sign"] else int(match["power"] or 1)
        if name is None:
            return None
        factors.append((name, power * next_power))
        next_power = 1
    return factors or None


def _counted(text: str) -> Unit | None:
    """Return no factors for Chinese words of counted things; None for any other text."""
    return () if re.fullmatch(r"[㐀-鿿]{1,8}", text) and not re.search("[百千万亿分之不错]", text) else None
