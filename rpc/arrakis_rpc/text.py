"""Text that came from a guest, for readers who take nothing but Unicode."""


def as_unicode(text: str) -> str:
    """Give text that can be encoded, which what comes from a guest need not be.

    Bytes that are not UTF-8, surrogate escapes in here, become U+FFFD; where surrogates stand
    for no bytes, all become escapes that can be read.
    """
    if text.isascii():
        return text
    try:
        data = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        data = text.encode(errors="backslashreplace")
    return data.decode(errors="replace")
