from hypothesis import given
from hypothesis import strategies as st

from ramify.verifier.recent import ENTRY_BYTES, Recent

KEYS = [bytes([65 + index]) * 10 for index in range(20)]


@given(
    st.integers(0, 12).map(lambda entries: entries * (ENTRY_BYTES + 20)),
    st.lists(st.tuples(st.booleans(), st.sampled_from(KEYS), st.binary(min_size=1, max_size=20)), max_size=200),
)
def test_it_holds_what_it_says_and_never_more_than_it_may(bytes_max: int, uses: list[tuple[bool, bytes, bytes]]) -> None:
    forgotten: list[bytes] = []
    recent, model = Recent(bytes_max, forgotten.append), dict[bytes, bytes]()
    for puts, key, value in uses:
        forgotten.clear()
        if puts:
            recent.put(key, value)
            model[key] = value
        else:
            assert recent.get(key) == model.get(key)
        for gone in forgotten:
            del model[gone]
        assert len(recent) == len(model)
        assert recent.bytes == sum(len(key) + len(value) + ENTRY_BYTES for key, value in model.items()) <= bytes_max


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    recent = Recent(9 * (ENTRY_BYTES + 10))
    for number in range(1000):
        recent.put(b"%08d" % number, b"vv")
        recent.put(b"always", b"used")
        assert recent.get(b"always") == b"used"
    assert recent.get(b"%08d" % 0) is None
    assert recent.get(b"%08d" % 999) == b"vv"


def test_a_large_cache_holds_at_least_a_third() -> None:
    recent = Recent(300 * (ENTRY_BYTES + 10))
    for number in range(1000):
        recent.put(b"%08d" % number, b"vv")
    assert all(recent.get(b"%08d" % number) is not None for number in range(901, 1000))
