"""What a client wants, by its `Accept` header."""

from python_multipart.multipart import parse_options_header


def prefers(accept: str, wanted: str, over: str) -> bool:
    """Whether the header prefers one media type: it must name it, and not rank the other one above it."""
    qualities: dict[str, float] = {}
    for part in accept.split(","):
        kind, options = parse_options_header(part.strip())
        qualities[kind.decode("latin-1")] = _quality(options.get(b"q", b"1"))
    quality = qualities.get(wanted, 0.0)
    return quality > 0 and quality >= qualities.get(over, 0.0)


def _quality(value: bytes) -> float:
    """RFC 9110, section 12.4.2; what is no number ranks like no mention."""
    try:
        return float(value)
    except ValueError:
        return 0.0
