"""The formats of JSON Schema 2020-12, asserted: a pattern to decode by and a check to validate by.

The language of a format's pattern lies within what its check accepts; unknown formats are annotations.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable

from localllm.inference.json_schema import patterns

HEX = "[0-9A-Fa-f]"
_28 = "(?:0[1-9]|1[0-9]|2[0-8])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_YEAR = "[0-9]{4}"
_DATE = f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:{_28}|29|30|31)|(?:0[469]|11)-(?:{_28}|29|30)|02-{_28})|{_LEAP}-02-29)"
_OFFSET = "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?{_OFFSET}"
_DURATION = (
    r"P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
    r"(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?"
    r"|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))"
)
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_H16 = f"{HEX}{{1,4}}"
_LS32 = f"(?:{_H16}:{_H16}|{_IPV4})"
_IPV6 = "(?:" + "|".join(
    [f"(?:{_H16}:){{6}}{_LS32}", f"::(?:{_H16}:){{5}}{_LS32}"]
    + [
        f"(?:(?:{_H16}:){{0,{before}}}{_H16})?::" + (f"(?:{_H16}:){{{after}}}{_LS32}" if after else _LS32)
        for before, after in ((0, 4), (1, 3), (2, 2), (3, 1), (4, 0))
    ]
    + [f"(?:(?:{_H16}:){{0,5}}{_H16})?::{_H16}", f"(?:(?:{_H16}:){{0,6}}{_H16})?::"]
) + ")"  # fmt: skip
_UCS = r"\x{A0}-\x{D7FF}\x{F900}-\x{FDCF}\x{FDF0}-\x{FFEF}\x{10000}-\x{1FFFD}\x{20000}-\x{2FFFD}\x{E1000}-\x{EFFFD}"
_DOMAIN_LABEL = rf"[A-Za-z0-9{_UCS}](?:[A-Za-z0-9{_UCS}-]{{0,61}}[A-Za-z0-9{_UCS}])?"


def _reference(more: str, *, absolute: bool) -> str:
    """RFC 3986, with `more` characters allowed where RFC 3987 allows them."""
    unreserved = rf"A-Za-z0-9._~\-{more}"
    sub = "!$&'()*+,;="
    escaped = f"%{HEX}{{2}}"
    pchar = f"(?:[{unreserved}{sub}:@]|{escaped})"
    host = rf"(?:\[(?:{_IPV6}|[vV]{HEX}+\.[{unreserved}{sub}:]+)\]|(?:[{unreserved}{sub}]|{escaped})*)"
    authority = f"(?:(?:[{unreserved}{sub}:]|{escaped})*@)?{host}(?::[0-9]*)?"
    absolute_path = f"/(?:{pchar}+(?:/{pchar}*)*)?"
    segments = f"(?:/{pchar}*)*"
    hierarchy = f"(?://{authority}{segments}|{absolute_path}|{pchar}+{segments}|)"
    tail = rf"(?:\?(?:{pchar}|[/?])*)?(?:#(?:{pchar}|[/?])*)?"
    scheme = "[A-Za-z][A-Za-z0-9+.-]*:"
    if absolute:
        return f"{scheme}{hierarchy}{tail}"
    first = f"(?:[{unreserved}{sub}@]|{escaped})+"  # a colon here would make it a scheme
    relative = f"(?://{authority}{segments}|{absolute_path}|{first}{segments}|)"
    return f"(?:{scheme}{hierarchy}|{relative}){tail}"


_VARIABLE = f"(?:[A-Za-z0-9_]|%{HEX}{{2}})(?:[A-Za-z0-9_.]|%{HEX}{{2}})*(?::[1-9][0-9]{{0,3}}|\\*)?"
_POINTER = "(?:/(?:[^/~]|~[01])*)*"

PATTERNS: dict[str, str] = {
    name: f"^(?:{body})$"
    for name, body in {
        "date": _DATE,
        "time": _TIME,
        "date-time": f"{_DATE}[Tt]{_TIME}",
        "duration": _DURATION,
        "email": rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@{_HOSTNAME}",
        "idn-email": rf"[A-Za-z0-9_%+{_UCS}-]+(?:\.[A-Za-z0-9_%+{_UCS}-]+)*@{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*",
        "hostname": _HOSTNAME,
        "idn-hostname": rf"{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*",
        "ipv4": _IPV4,
        "ipv6": _IPV6,
        "uuid": f"{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}",
        "uri": _reference("", absolute=True),
        "uri-reference": _reference("", absolute=False),
        "iri": _reference(_UCS, absolute=True),
        "iri-reference": _reference(_UCS, absolute=False),
        "uri-template": (
            r"(?:[\x21\x23\x24\x26\x28-\x3B\x3D\x3F-\x5B\x5D\x5F\x61-\x7A\x7E" + _UCS + f"]|%{HEX}{{2}}"
            rf"|\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
        ),
        "json-pointer": _POINTER,
        "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
    }.items()
}  # fmt: skip
# No regular language: parentheses nest.
CHECKED_AFTER = frozenset({"regex"})


def _is_regex(text: str) -> bool:
    try:
        patterns.translate(text)
    except patterns.PatternError:
        try:
            re.compile(text)
        except re.error:
            return False
    return True


def _is_leap_second(text: str) -> bool:
    """23:59:60 in UTC: the one time with a sixtieth second."""
    found = re.fullmatch(r"(\d\d):(\d\d):60(\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))", text, re.ASCII)
    if not found:
        return False
    hour, minute, _, sign, plus_hours, plus_minutes = found.groups()
    offset = 0 if sign is None else (int(plus_hours) * 60 + int(plus_minutes)) * (1 if sign == "+" else -1)
    if sign is not None and (int(plus_hours) > 23 or int(plus_minutes) > 59):
        return False
    return int(hour) < 24 and int(minute) < 60 and (int(hour) * 60 + int(minute) - offset) % 1440 == 1439


def _is_time(text: str) -> bool:
    return _matches("time", text) or _is_leap_second(text)


def _is_date_time(text: str) -> bool:
    if _matches("date-time", text):
        return True
    date, time = text[:10], text[11:]
    return text[10:11] in ("T", "t") and _matches("date", date) and _is_leap_second(time)


def _is_ip(kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            return "%" not in text and text.isascii() and bool(kind(text))
        except ValueError:
            return False

    return check


def _is_date(text: str) -> bool:
    try:
        return len(text) == 10 and text.isascii() and bool(datetime.date.fromisoformat(text))
    except ValueError:
        return _matches("date", text)  # the year 0000


def _is_hostname(text: str) -> bool:
    return len(text) <= 253 and _matches("hostname", text)


def _matches(name: str, text: str) -> bool:
    return patterns.matches(PATTERNS[name], text)


CHECKS: dict[str, Callable[[str], bool]] = {
    **{name: lambda text, name=name: _matches(name, text) for name in PATTERNS},  # type: ignore[misc]
    "regex": _is_regex,
    "date": _is_date,
    "time": _is_time,
    "date-time": _is_date_time,
    "ipv4": _is_ip(ipaddress.IPv4Address),
    "ipv6": _is_ip(ipaddress.IPv6Address),
    "hostname": _is_hostname,
}
# Longer ones match their pattern but fail the check.
MAX_LENGTH = {"hostname": 253}
