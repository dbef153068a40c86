"""Languages by their codes (ISO 639-1), as OpenAI's interface takes them; the model is told their English names."""

from __future__ import annotations

import re

from cellmd.errors import ArgumentError

_NAMES: dict[str, str] = dict(
    re.findall(
        r"([a-z]{2}) ([^,\n]+)",
        """
        af Afrikaans, am Amharic, ar Arabic, as Assamese, az Azerbaijani, ba Bashkir, be Belarusian, bg Bulgarian,
        bn Bengali, bo Tibetan, br Breton, bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek,
        en English, eo Esperanto, es Spanish, et Estonian, eu Basque, fa Persian, fi Finnish, fo Faroese, fr French,
        ga Irish, gl Galician, gu Gujarati, ha Hausa, he Hebrew, hi Hindi, hr Croatian, ht Haitian Creole,
        hu Hungarian, hy Armenian, id Indonesian, ig Igbo, is Icelandic, it Italian, ja Japanese, jv Javanese,
        ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean, ku Kurdish, ky Kyrgyz, la Latin, lb Luxembourgish,
        ln Lingala, lo Lao, lt Lithuanian, lv Latvian, mg Malagasy, mi Maori, mk Macedonian, ml Malayalam,
        mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese, nb Norwegian Bokmål, ne Nepali, nl Dutch,
        nn Norwegian Nynorsk, no Norwegian, oc Occitan, or Odia, pa Punjabi, pl Polish, ps Pashto, pt Portuguese,
        ro Romanian, ru Russian, sa Sanskrit, sd Sindhi, si Sinhala, sk Slovak, sl Slovenian, sn Shona, so Somali,
        sq Albanian, sr Serbian, st Sesotho, su Sundanese, sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik,
        th Thai, ti Tigrinya, tk Turkmen, tl Tagalog, tr Turkish, tt Tatar, ug Uyghur, uk Ukrainian, ur Urdu, uz Uzbek,
        vi Vietnamese, wo Wolof, xh Xhosa, yi Yiddish, yo Yoruba, zh Chinese, zu Zulu
        """,
    )
)
_LONGEST_CODE = 3


def language_name(language: str) -> str:
    """The English name of a language, from its code (`de`, also `de-AT`) or the name itself.

    Raises ArgumentError for a code that is not known.
    """
    code = language.partition("-")[0].lower()
    if code in _NAMES:
        return _NAMES[code]
    if len(code) <= _LONGEST_CODE:
        raise ArgumentError(f"{language[:20]!r} is no language code that is known; give the language's English name")
    return language
