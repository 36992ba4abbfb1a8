# ruff: noqa: RUF001  (look-alikes are what is read)
r"""Units, currencies and other words that stand beside a number.

split_unit("5.4 cents")       -> ("5.4", "cents")
split_unit("3 million")       -> ("3 million", "")
measure("km^2")               -> ("length2", Fraction(1000000))
"""

from fractions import Fraction

import regex as re

from jaxgrpo.rewards.maths.normalization import strip_fonts

# "\$", "€", "USD", "Rs." before a number
_CURRENCY = re.compile(r"\\\$|[€£¥₩₴₽฿₹₫₦]|\bUSD\b|\bRs\.?(?=\s?\d)")
# A unit is a percent or degree sign, anything set as text, or up to three words after a space: of
# three letters at least, for "5 x" is not 5. In scripts that use no spaces it may follow at once.
_UNIT = re.compile(
    r"""(?<=[\d.}])(?:
        \s*(?:\\?%|°|\^\{?\\circ\}?)                    # "5\%", "90^\circ"
      | \s*\\(?:text|mathrm|mbox|textrm)\s*\{[^{}\d]*\}(?:\^\{?[23]\}?)?    # "\text{ cm}^2"
      | \s*(?:[cdkm]m|ft|in)(?:\^\{?[23]\}?)            # "cm^2", "ft^{3}"
      | \s+(?:[cdkm]m|ft|in)
      | \s*(?:k?m|ft|mi)/(?:s|h|hr|min)                 # "km/h"
      | \s+(?:kg|mg|ml|lb|oz|mi|hr)
      | \s*(?:cm|mm|km|kg)
      | \s*(?:[кмсд]?м|к?г|м?л|грн|руб|год|хв|шт|ч|с)(?![\p{L}])
      | (?:\s+[\p{Latin}\p{Cyrillic}]{3,}){1,3}         # "red apples", "dollars per hour"
      | \s*(?:(?!\d)[\p{Han}\p{Hangul}\p{Hiragana}\p{Katakana}\p{Thai}\p{M}])+      # "42個"
      | (?:\s*-?(?:(?!\d)[\p{Devanagari}\p{Bengali}\p{Telugu}\p{Tamil}\p{Arabic}\p{M}])+){1,4}
    )$""",
    re.VERBOSE,
)
_MAX_UNIT_LENGTH = 100
# Words after a number that change it, or do not end what is said: "3 million", "42 or 43", "3만".
_NOT_A_UNIT = re.compile(
    r"""\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|third|quarter|fourth|fifth
        |sixth|seventh|eighth|ninth|tenth|times|plus|minus|over|and|or|to|sqrt|pi|root|squared|cubed
        |mod|not|base
        |mille|milliard|cents?\ mille|douzaine|demi
        |tausend|milliarde|hundert|dutzend|halb|oder|und|mal
        |mil|millones|millón|medio|media|docena|elfu|milioni|laki|mia
        |nghìn|ngàn|triệu|trăm|rưỡi|hoặc
        |тис|тыс|міль|мілл|милл|млн|млрд|сот|сто|десят|дюжин|полов|трет|чверт|четверт|або|или
        |плюс|мінус|минус)
      | [十百千万萬亿億兆半割십백천만억조반或和또]
      | สิบ|ร้อย|พัน|หมื่น|แสน|ล้าน|ครึ่ง|หรือ|และ
      | हज़ार|हजार|लाख|करोड़|सौ|दर्जन|आधा
      | হাজার|লাখ|লক্ষ|কোটি|শত|অর্ধ
      | వేల|లక్ష|కోటి|వంద
      | ألف|آلاف|مليون|مئة|مائة|نصف|أو
      | या|বা""",
    re.VERBOSE | re.IGNORECASE,
)


def changes_number(words: str) -> bool:
    """Returns whether words after a number change it ("million") or add another ("or")."""
    return _NOT_A_UNIT.match(words) is not None


def split_unit(text: str) -> tuple[str, str]:
    """Returns (rest, unit) of a normalized text, without the sign of a currency.

    The unit is "" where there is none, and where the words are none, as in "3 million".
    """
    text = _CURRENCY.sub("", text).strip()
    unit = _UNIT.search(text, max(0, len(text) - _MAX_UNIT_LENGTH))
    if unit is None or _NOT_A_UNIT.search(unit[0]):
        return text, ""
    return text[: unit.start()], strip_fonts(unit[0]).strip()


# By what they measure, and by their size in metres, grams, seconds, litres or dollars.
_UNIT_NAMES = {
    "length": {
        "1/1000": "mm millimeter",
        "1/100": "cm centimeter centimetre",
        "1/10": "dm",
        "1": "m meter metre",
        "1000": "km kilometer kilometre",
        "127/5000": "in inch inche",  # "inches" without its s
        "381/1250": "ft foot feet",
        "1143/1250": "yard",
        "201168/125": "mi mile",
    },
    "mass": {"1/1000": "mg milligram", "1": "g gram", "1000": "kg kilogram"},
    "time": {
        "1": "s sec second",
        "60": "min minute",
        "3600": "h hr hour",
        "86400": "day",
        "604800": "week",
    },
    "volume": {"1/1000": "ml milliliter", "1": "l liter litre"},
    "money": {"1/100": "cent", "1": "dollar"},
}


def _unit_table() -> dict[str, tuple[str, Fraction]]:
    """Returns (dimension, size) by the name of a unit."""
    table = {}
    for dimension, names_by_size in _UNIT_NAMES.items():
        for size, names in names_by_size.items():
            for name in names.split():
                table[name] = (dimension, Fraction(size))
    return table


_UNITS = _unit_table()


def measure(unit: str) -> tuple[str, Fraction]:
    """Returns (dimension, size) of a unit, its square or its cube; ("", 1) if it is not known.

    The dimension of "cm^2" is "length2".
    """
    word, _, power = unit.partition("^")
    word = word.strip().lower()
    power = power.strip("{}")
    dimension, size = (
        _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or ("", Fraction(1))
    )
    exponent = int(power) if power in ("2", "3") else 1
    return (f"{dimension}{exponent}" if dimension else ""), size**exponent
