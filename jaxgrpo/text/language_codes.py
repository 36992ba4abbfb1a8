# ruff: noqa: RUF001  (names in other scripts are the point here)
"""Maps what data sets call a language to its code, for the languages that can be told from words.

language_code("pt-BR")                   -> "pt"
language_code("cmn")                     -> "zh"
language_code("Chinese (Simplified)")    -> "zh"
language_code("Klingon")                 -> None
"""

import re
import unicodedata

_TABLE = {
    "Latn": """
        en eng: English
        de deu ger: German, Deutsch
        fr fra fre: French, français
        es spa: Spanish, Castilian, español, castellano
        pt por: Portuguese, português
        it ita: Italian, italiano
        nl nld dut: Dutch, Flemish, Nederlands, Vlaams
        ca cat: Catalan, Valencian, català, valencià
        gl glg: Galician, galego
        ro mo ron rum mol: Romanian, Moldavian, Moldovan, română
        pl pol: Polish, polski
        cs ces cze: Czech, čeština, český
        sk slk slo: Slovak, slovenčina
        sl slv: Slovenian, Slovene, slovenščina
        hr hrv scr: Croatian, hrvatski
        bs bos: Bosnian, bosanski
        sq sqi alb als: Albanian, shqip
        da dan: Danish, dansk
        no nb nor nob: Norwegian, Bokmål, Norwegian Bokmål, Bokmål Norwegian, norsk, norsk bokmål
        nn nno: Nynorsk, Norwegian Nynorsk, Nynorsk Norwegian, norsk nynorsk
        sv swe: Swedish, svenska
        is isl ice: Icelandic, íslenska
        fi fin: Finnish, suomi
        et est ekk: Estonian, eesti
        lv lav lvs: Latvian, latviešu
        lt lit: Lithuanian, lietuvių
        hu hun: Hungarian, magyar
        tr tur: Turkish, Türkçe
        az aze azj: Azerbaijani, Azeri, Azərbaycan, Azərbaycanca
        uz uzb uzn: Uzbek, oʻzbek, oʻzbekcha, o'zbek, o'zbekcha
        tk tuk: Turkmen, türkmen, türkmençe
        vi vie: Vietnamese, tiếng Việt
        id in ind: Indonesian, Bahasa Indonesia
        ms msa may zsm: Malay, Malaysian, Bahasa Melayu, Bahasa Malaysia
        tl tgl fil: Tagalog, Filipino
        jv jw jav: Javanese, basa Jawa
        su sun: Sundanese, basa Sunda
        sw swa swh: Swahili, Kiswahili
        af afr: Afrikaans
        ht hat: Haitian, Haitian Creole, kreyòl ayisyen
        eo epo: Esperanto
        eu eus baq: Basque, euskara
        cy cym wel: Welsh, Cymraeg
        ga gle: Irish, Irish Gaelic, Gaeilge
        gd gla: Gaelic, Scottish Gaelic, Scots Gaelic, Gàidhlig
        la lat: Latin, Latina
        mt mlt: Maltese, Malti
        lb ltz: Luxembourgish, Letzeburgesch, Lëtzebuergesch
        so som: Somali, Soomaali
        mg mlg plt: Malagasy
        yo yor: Yoruba, Yorùbá
    """,
    "Cyrl": """
        ru rus: Russian, русский
        uk ukr: Ukrainian, українська
        be bel: Belarusian, Belarusan, Byelorussian, беларуская
        bg bul: Bulgarian, български
        mk mkd mac: Macedonian, македонски
        sr srp scc: Serbian, српски
        kk kaz: Kazakh, қазақ, қазақша
        ky kir: Kyrgyz, Kirghiz, кыргыз, кыргызча
        tg tgk: Tajik, тоҷикӣ
        tt tat: Tatar, татар, татарча
        mn mon khk: Mongolian, монгол
        ba bak: Bashkir, башҡорт, башҡортса
        cv chv: Chuvash, чӑваш, чӑвашла
    """,
    "Arab": """
        ar ara arb arz ary apc acm acq aeb afb ajp ars: Arabic, العربية, عربي
        fa fas per pes prs: Persian, Farsi, Dari, فارسی, دری
        ur urd: Urdu, اردو
        ps pus pbt pbu pst: Pashto, Pushto, پښتو
        ug uig: Uyghur, Uighur, ئۇيغۇرچە
        sd snd: Sindhi, سنڌي
        ckb: Central Kurdish, Sorani, Sorani Kurdish, Kurdish Sorani, کوردی
    """,
    "Deva": """
        hi hin: Hindi, हिन्दी, हिंदी
        mr mar: Marathi, मराठी
        ne nep npi: Nepali, नेपाली
        sa san: Sanskrit, संस्कृतम्
    """,
    "Hebr": """
        he iw heb: Hebrew, עברית
        yi ji yid ydd: Yiddish, ייִדיש
    """,
    "Beng": """
        bn ben: Bengali, Bangla, বাংলা
        as asm: Assamese, অসমীয়া
    """,
    "Hans Hant Hani": """
        zh zho chi cmn: Chinese, Mandarin, Mandarin Chinese, Chinese Mandarin, 中文, 汉语, 漢語
        zh: 普通话, 普通話, 国语, 國語, 华语, 華語, 简体中文, 簡體中文, 繁体中文, 繁體中文
        zh yue wuu gan hak hsn nan: Cantonese, 粤语, 粵語
    """,
    "Jpan Hira Kana Hrkt Hani": "ja jpn: Japanese, 日本語",
    "Kore Hang": "ko kor: Korean, 한국어, 조선말",
    "Thai": "th tha: Thai, ไทย, ภาษาไทย",
    "Laoo": "lo lao: Lao, Laotian, ລາວ, ພາສາລາວ",
    "Khmr": "km khm: Khmer, Cambodian, ខ្មែរ, ភាសាខ្មែរ",
    "Mymr": "my mya bur: Burmese, Myanmar, မြန်မာ, မြန်မာဘာသာ",
    "Geor": "ka kat geo: Georgian, ქართული",
    "Armn": "hy hye arm: Armenian, հայերեն",
    "Grek": "el ell gre: Greek, ελληνικά",
    "Ethi": "am amh: Amharic, አማርኛ",
    "Taml": "ta tam: Tamil, தமிழ்",
    "Telu": "te tel: Telugu, తెలుగు",
    "Knda": "kn kan: Kannada, ಕನ್ನಡ",
    "Mlym": "ml mal: Malayalam, മലയാളം",
    "Gujr": "gu guj: Gujarati, ગુજરાતી",
    "Guru": "pa pan: Punjabi, Panjabi, ਪੰਜਾਬੀ",
    "Orya": "or ori ory: Odia, Oriya, ଓଡ଼ିଆ",
    "Sinh": "si sin: Sinhala, Sinhalese, සිංහල",
    "Tibt": "bo bod tib: Tibetan, བོད་སྐད།",
}
"""The languages that are told apart, a line each, by the scripts they are written in (ISO 15924).

First the code that a language goes by here, then its other codes of ISO 639, old ones and those of
languages that it comprises; then its names, in English and its own.
"""

_SCRIPT_NAMES = {
    "latin": "latn",
    "romanized": "latn",
    "romanised": "latn",
    "cyrillic": "cyrl",
    "arabic": "arab",
}

# fmt: off
_QUALIFIERS = {
    "american", "australian", "austrian", "brazilian", "british", "canadian", "egyptian",
    "european", "indian", "language", "latin", "mexican", "modern", "simplified", "standard",
    "traditional", "uk", "us", "мова", "язык",
}
# fmt: on
"""Words beside a language's name that leave it the same language here."""

_TAG = re.compile(r"(?P<code>[a-z]{2,3})(?P<subtags>(?:[-_.@][a-z0-9]+)*)\.?")
"""A BCP 47 tag, or a locale such as en_US.UTF-8, in small letters."""


def language_code(text: object) -> str | None:
    """Returns the code of the language that a text names, or None if it names none.

    None as well for a language that cannot be told from words, and for one that is told in another
    script alone ("sr-Latn").

    text: a tag ("pt-BR"), a locale ("zh_Hans"), a code of ISO 639 ("eng", "cmn") or a name, English
      or the language's own
    """
    if not isinstance(text, str):
        return None
    if text in LANGUAGE_CODES:
        return text
    folded = _fold(text).strip()
    tag = _TAG.fullmatch(folded)
    code: str | None
    if tag and tag["code"] in _CODES:
        code = _CODES[tag["code"]]
        qualifiers = _split_words(tag["subtags"])
    else:
        code, qualifiers = _parse_name(folded)
        # "English, French" names two languages.
        if _NAMES.get(" ".join(qualifiers), code) != code:
            return None
    if code is None:
        return None
    # Where a script is named, it has to be one in which the language can be told.
    scripts = {_SCRIPT_NAMES.get(word, word) for word in qualifiers} & _ALL_SCRIPTS
    return code if scripts <= _SCRIPTS[code] else None


def _parse_name(folded: str) -> tuple[str | None, list[str]]:
    """Returns a name's language, or None, and the words after it.

    "serbian (latin)" -> "sr", ["latin"]
    """
    full_name = " ".join(_split_words(folded))
    if full_name in _NAMES:
        return _NAMES[full_name], []
    # The name ends at the first of these signs.
    name, _, rest = re.sub(r"[-_(\[,;/]", "\n", folded, count=1).partition("\n")
    words = _split_words(name)
    unqualified = [word for word in words if word not in _QUALIFIERS]
    language = _NAMES.get(" ".join(words)) or _NAMES.get(" ".join(unqualified))
    return language, _split_words(rest)


def _split_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _fold(text: str) -> str:
    """Returns the text without case, accents and the differences of typography."""
    decomposed = unicodedata.normalize("NFKD", text)
    # Mn: the accents, which NFKD has set apart from their letters
    letters = [letter for letter in decomposed if unicodedata.category(letter) != "Mn"]
    return "".join(letters).casefold()


def _read_table(
    table: dict[str, str],
) -> tuple[dict[str, str], dict[str, str], dict[str, frozenset[str]]]:
    """Returns the language by code, the language by folded name, and scripts by language.

    Scripts are in small letters.
    """
    languages_by_code: dict[str, str] = {}
    languages_by_name: dict[str, str] = {}
    scripts_by_language: dict[str, frozenset[str]] = {}
    for script_names, lines in table.items():
        scripts = frozenset(script_names.lower().split())
        for line in lines.strip().splitlines():
            codes, _, names = line.partition(":")
            # The first code is the one that stands for all of them.
            language = codes.split()[0]
            scripts_by_language[language] = scripts
            for code in codes.split():
                languages_by_code[code] = language
            for name in names.split(","):
                languages_by_name[" ".join(_split_words(_fold(name)))] = language
    return languages_by_code, languages_by_name, scripts_by_language


_CODES, _NAMES, _SCRIPTS = _read_table(_TABLE)
_ALL_SCRIPTS = frozenset().union(*_SCRIPTS.values())

LANGUAGE_CODES = frozenset(_SCRIPTS)
"""The codes by which languages go here: ISO 639-1, and ckb."""
