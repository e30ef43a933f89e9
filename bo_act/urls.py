"""URLs without secrets, for printing, records and reports.

Passwords and secret parameters are removed, in malformed URLs, too: anything that may be part of a
password is left out, even if that is too much.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_SCHEME = re.compile(r"[A-Za-z][\w+.-]{,30}://")  # bounded: texts may be long
# A password may contain white space: without a valid port it extends to the next @ of its line.
_IN_TEXT = re.compile(_SCHEME.pattern + r"(?:[^\s:/@]*:(?!\d+(?:[\s/?#]|$))[^@\n]*@)?\S*")

# Names of parameters with secret values.
_SECRET = re.compile(
    r"pass|pwd|^pw$|secret|token|key|cred|auth|jwt|(^|[-_.])sig|^odbc_connect$|^dsn$|^conninfo$",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Return a text in which no URL has a secret; URLs end at white space."""
    return _IN_TEXT.sub(lambda match: _shown(match[0]), text)


def shown_url(url: str) -> str:
    """Return a URL, or what ends with one (``--storage=URL``), without its secrets.

    The URL extends to the end, so white space in a password does not end it.
    """
    match = _SCHEME.search(url)
    return url[: match.start()] + _shown(url[match.start() :]) if match else url


def without_secrets_of(url: str, text: str) -> str:
    """Return a text, such as a library's error, without the secrets of ``url``."""
    text = without_secrets(text)
    for piece in sorted(_hidden(url), key=len, reverse=True):
        # A short secret may also be part of an unrelated word.
        start, end = (r"(?<!\w)", r"(?!\w)") if len(piece) < 4 else ("", "")
        text = re.sub(start + re.escape(piece) + end, "***", text)
    return text


def _shown(url: str) -> str:
    scheme, _, rest = url.partition("://")
    address = _without_login(scheme.lower(), _without_secret_parameters(scheme.lower(), rest))
    return f"{scheme}://{address}"


def _without_login(scheme: str, rest: str) -> str:
    if rest.startswith("/"):  # a file
        return rest
    login, at, address = rest.rpartition("@")
    if at:
        user, colon, _ = login.partition(":")
        if scheme.startswith("http"):  # the user may be a token
            return address if colon or "/" not in login else rest
        address = _without_false_port(address)
        return f"{user}@{address}" if user or not colon else address
    return _without_false_port(rest)


def _without_false_port(address: str) -> str:
    """Remove an unfinished password in the port's place, and everything after it."""
    host, colon, port = re.split(r"[/?#]", address, maxsplit=1)[0].partition(":")
    if colon and port and not port[0].isdecimal() and not host.startswith("["):
        return host
    return address


def _without_secret_parameters(scheme: str, rest: str) -> str:
    if scheme.startswith("http"):  # signed URLs: each service has its own names
        return re.split(r"[?#]", rest, maxsplit=1)[0]
    shown, *parts = re.split(r"([?&;#])", rest)
    begun = False
    for separator, part in zip(parts[::2], parts[1::2], strict=True):
        name, equals, _ = part.partition("=")
        if equals and _SECRET.search(unquote(name)):
            continue
        shown += ("?" if separator == "&" and not begun else separator) + part
        begun = True
    return shown


def _hidden(url: str) -> set[str]:
    """Return the parts of a URL that are hidden in display, as typed and decoded."""
    hidden: set[str] = set()
    shown = _pieces(shown_url(url))
    for text in (url, unquote(url), unquote(url.replace("+", " "))):
        hidden |= {piece for piece in _pieces(text) if piece not in shown}
        password = re.search(r"://[^:/@]*:(.*)@", text, re.DOTALL)
        hidden |= {password[1]} if password else set()
    return hidden - {""}


def _pieces(url: str) -> set[str]:
    return set(re.split(r"\W+", url))
