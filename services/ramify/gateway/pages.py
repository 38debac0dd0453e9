"""Pages of listings, and the tokens that lead from one to the next."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode

from ramify.gateway.errors import InvalidRequest

SIZE_MAX = 1000
PLACE_MAX = 2**62


def page_size(asked: int, default: int) -> int:
    """The size of a page, within its bound; 0 asks for the default."""
    return min(asked or default, SIZE_MAX)


def token(listing: str, place: int | str | None) -> str:
    """The token of a place in a listing; empty where there is no further page."""
    return "" if place is None else urlsafe_b64encode(f"{listing}:{place}".encode()).decode()


def read_token(listing: str, text: str) -> str | None:
    """The place that a token names; None for the first page. Raises `InvalidRequest`."""
    if not text:
        return None
    try:
        name, _, place = urlsafe_b64decode(text.encode()).decode().partition(":")
    except (ValueError, binascii.Error):
        raise no_place(text) from None
    if name != listing or not place:
        raise no_place(text)
    return place


def read_index(listing: str, text: str) -> int | None:
    """The same, of a listing whose places are indexes."""
    place = read_token(listing, text)
    try:
        if place is None or 0 <= int(place) <= PLACE_MAX:
            return None if place is None else int(place)
    except ValueError:  # no number, which is told as one that is too large
        pass
    raise no_place(text)


def no_place(text: str) -> InvalidRequest:
    """That a token leads nowhere."""
    return InvalidRequest(
        f"page_token {text!r:.100} is none of this listing's, or the job that it goes on after is gone: leave it empty for the "
        "first page"
    )
