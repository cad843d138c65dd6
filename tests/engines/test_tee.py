"""Output is passed on at once and in full, and the supervisor's last word never."""

from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.engines.output import STDERR, STDOUT, Conversation
from crucible_worker.engines.tee import Tee

SECRET = bytes(range(1, 17))


@given(st.lists(st.binary(max_size=40) | st.sampled_from([SECRET, SECRET[:5], b"", b"\x01"])), st.booleans())
def test_all_that_the_code_says_and_nothing_else(pieces, ends):
    said: list[bytes] = []
    tee = Tee(said.append)
    output = b"".join(pieces)
    word = SECRET + b"E\x00" if ends else b""
    for piece in [*pieces, word[:3], word[3:]]:
        tee.feed(piece, SECRET)
    tee.finish(SECRET)
    if not ends and len(output) >= 16 and any(output[-n:].startswith(SECRET) for n in (16, 17, 18)):
        return  # code that knew the secret would not be heard; it cannot
    assert b"".join(said) == output


@given(st.binary(min_size=1).filter(lambda data: SECRET[0] not in data))
def test_nothing_waits_that_cannot_be_the_last_word(data):
    said: list[bytes] = []
    Tee(said.append).feed(data, SECRET)
    assert b"".join(said) == data


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def test_a_conversation_passes_on_what_is_said_after_the_start():
    said: list[tuple[int, bytes]] = []
    talk = Conversation(100, lambda stream, data: said.append((stream, data)))
    talk.feed(frame(STDERR, b"runtime: mumble\n") + frame(STDOUT, b"RS" + SECRET + b"one\n"))
    assert said == [(STDOUT, b"one\n")]
    talk.feed(frame(STDERR, b"two\n") + frame(STDOUT, b"three" + SECRET + b"E\x00"))
    assert said[1:] == [(STDERR, b"two\n"), (STDOUT, b"three")]
    assert talk.finish() is not None
    assert len(said) == 3
    assert talk.stdout.take().data == b"one\nthree"
