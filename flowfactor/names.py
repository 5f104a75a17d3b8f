"""Names that anyone may have chosen, made safe to show and to be parts of file names."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

# Bytes that a name may take in the name of a file, two of which are joined at most.
_BYTES = 60
_RESERVED = re.compile(r"con|prn|aux|nul|(?:com|lpt)[0-9¹²³]", re.IGNORECASE)

# White space other than a space.
_BREAK = re.compile(r"[^\S ]+")
# Control characters, halves of pairs that no encoding can write, and what reverses a text.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """Return, for each label, a part of a file name that leads nowhere and is its own.

    Letters and digits of any script remain, all else becomes ``_``. Labels that would have one
    name on some file system are told apart by a checksum. The name of a label depends on neither
    the order of the labels nor on anything else.

    Args:
        labels: all that share a folder.

    Example:
        >>> file_names(["hue", "β-VAE (4)", "../../etc", "con", ""])
        {'hue': 'hue', 'β-VAE (4)': 'β_VAE_4', '../../etc': 'etc', 'con': 'con_', '': 'unnamed'}
        >>> file_names(["a b", "a/b"])
        {'a b': 'a_b~c8687a08', 'a/b': 'a_b~c14cddc0'}
    """
    names = {label: _file_name(label) for label in labels}
    counts = Counter(name.casefold() for name in names.values())
    return {
        label: name if counts[name.casefold()] == 1 else f"{name}~{_checksum(label)}"
        for label, name in names.items()
    }


def show_invisible(text: str) -> str:
    r"""Return a text whose control characters, line feeds and tabs aside, are shown as escapes.

    Example:
        >>> show_invisible("a\x1b[31m")
        'a\\x1b[31m'
    """
    return _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str, length: int | None = None) -> str:
    r"""Return a text in one line, with nothing invisible in it.

    Args:
        text: any text.
        length: letters to keep; of a longer text, the middle is left out.

    Example:
        >>> one_line("two\nlines"), one_line("a very long name", 9)
        ('two lines', 'a ve…name')
    """
    line = show_invisible(_BREAK.sub(" ", text).strip())
    if length is None or len(line) <= length:
        return line
    return f"{line[: length // 2]}…{line[len(line) - (length - 1) // 2 :]}"


def _file_name(label: str) -> str:
    # Of the categories of Unicode: letters, marks upon them, digits.
    letters = (
        letter if letter == "_" or unicodedata.category(letter)[0] in "LMN" else " "
        for letter in unicodedata.normalize("NFC", label)
    )
    name = "_".join("".join(letters).split()).encode()[:_BYTES].decode(errors="ignore").strip("_")
    return f"{name}_" if _RESERVED.fullmatch(name) else name or "unnamed"


def _checksum(label: str) -> str:
    return hashlib.sha256(label.encode(errors="surrogatepass")).hexdigest()[:8]
