"""What is made of a sandbox's streams, however they are cut, whatever they hold, and however much it is."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crucible_worker.engines.output import STDERR, STDOUT, Capture, Conversation, Demultiplexer, Trailer

SECRET = bytes(range(200, 216))
PREFIX = b"RS" + SECRET

messages = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR, 0]), st.binary(max_size=40)), max_size=10)
cuts = st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=20)


def packed(stream, payload):
    return struct.pack(">BxxxL", stream, len(payload)) + payload


def pieces(data, sizes):
    """`data` in pieces of the given sizes, over and over."""
    at = 0
    while at < len(data):
        for size in sizes:
            yield data[at : at + size]
            at += size


@given(messages, cuts)
@example([(STDOUT, b""), (STDERR, b"x"), (STDOUT, b"")], [1])
def test_a_multiplexed_stream_may_be_cut_anywhere(sent, sizes):
    demultiplexer = Demultiplexer()
    got = {0: b"", STDOUT: b"", STDERR: b""}
    for piece in pieces(b"".join(packed(*message) for message in sent), sizes):
        for stream, payload in demultiplexer.feed(piece):
            got[stream] += payload
    assert got == {stream: b"".join(p for s, p in sent if s == stream) for stream in got}


def test_a_payload_is_handed_on_before_its_end_has_come():
    demultiplexer = Demultiplexer()
    assert [bytes(p) for _, p in demultiplexer.feed(packed(STDOUT, b"abcdef")[:10])] == [b"ab"]


def captured(data, limit, sizes):
    capture = Capture(limit)
    for piece in pieces(data, sizes):
        capture.add(piece)
    return capture.take()


ascii_bytes = st.binary(max_size=200).map(lambda data: bytes(byte & 0x7F for byte in data))


@given(ascii_bytes, st.integers(min_value=2, max_value=100), cuts)
def test_head_and_tail_are_those_of_the_whole(data, limit, sizes):
    kept = captured(data, limit, sizes)
    half = limit // 2
    assert kept.total_bytes == len(data)
    assert kept.truncated == (len(data) > 2 * half)
    if kept.truncated:
        gap = b"\n[... %d bytes omitted ...]\n" % (len(data) - 2 * half)
        assert kept.data == data[:half] + gap + data[-half:]
    else:
        assert kept.data == data


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=100), cuts)
def test_the_line_in_the_gap_counts_what_is_not_shown(data, limit, sizes):
    kept = captured(data, limit, sizes)
    if not kept.truncated:
        assert kept.data == data
        return
    head, _, rest = kept.data.rpartition(b"\n[... ")
    count, _, tail = rest.partition(b" bytes omitted ...]\n")
    assert len(head) + int(count) + len(tail) == len(data)
    assert data.startswith(head)
    assert data.endswith(tail)


@given(st.text(alphabet="aé€😀", max_size=80), st.integers(min_value=2, max_value=40), cuts)
def test_utf_8_stays_utf_8(text, limit, sizes):
    """A cut through the middle of a character takes the whole of it away, and no more."""
    data = text.encode()
    kept = captured(data, limit, sizes)
    shown = kept.data.decode()
    if kept.truncated:
        head, tail = shown.split("\n[... ", 1)[0], shown.rsplit("omitted ...]\n", 1)[1]
        assert len(head.encode()) > limit // 2 - 4
        assert len(tail.encode()) > limit // 2 - 4


@pytest.mark.parametrize("size", [1, 100, 1 << 18])
def test_memory_does_not_grow_with_the_output(size):
    capture = Capture(1000)
    for _ in range(500):
        capture.add(bytes(size))
    assert capture.total == 500 * size
    assert len(capture._head) + len(capture._tail) <= 2000
    assert len(capture.take().data) < 1100


def conversation(*sent, sizes=(1 << 20,), limit=1 << 16):
    """A finished conversation and its trailer; bytes are a message on stdout."""
    peer = Conversation(limit)
    data = b"".join(packed(STDOUT, one) if isinstance(one, bytes) else packed(*one) for one in sent)
    for piece in pieces(data, sizes):
        peer.feed(piece)
    return peer, peer.finish()


@given(st.binary(max_size=60), st.binary(max_size=20), st.integers(min_value=0, max_value=255), cuts, cuts)
@example(b"", b"", 0, [1], [1])
@example(PREFIX, b"", 0, [1], [1])
@example(b"R", b"S", 0, [1], [1])
def test_prefix_output_and_trailer_are_told_apart_at_any_cut(out, err, code, messages_cut, reads_cut):
    stdout = PREFIX + out + SECRET + b"E" + bytes([code])
    sent = [*pieces(stdout, messages_cut), (STDERR, err)]
    peer, trailer = conversation(*sent, sizes=reads_cut)
    assert peer.ready
    assert peer.started
    assert trailer == Trailer(exit_code=code)
    assert peer.stdout.take().data == out
    assert peer.stderr.take().data == err


def test_every_split_of_prefix_and_trailer_in_two():
    whole = PREFIX + b"hello" + SECRET + b"K\x09"
    for at in range(len(whole) + 1):
        peer, trailer = conversation(whole[:at], (STDERR, b"between"), whole[at:])
        assert trailer == Trailer(signal=9)
        assert peer.stdout.take().data == b"hello"


@pytest.mark.parametrize(
    "forged",
    [
        SECRET + b"E\x00",
        b"RS" + bytes(16) + b"done" + bytes(16) + b"E\x00",
        SECRET,
        SECRET + b"E",
        SECRET + b"K\x09" + SECRET + b"E\x00",
    ],
)
def test_a_trailer_in_the_midst_of_the_output_is_output(forged):
    """Even one with the true secret; only the last bytes of all are the supervisor's."""
    peer, trailer = conversation(PREFIX + forged, b"more" + SECRET + b"E\x07")
    assert trailer == Trailer(exit_code=7)
    assert peer.stdout.take().data == forged + b"more"


@pytest.mark.parametrize(
    "last", [b"", b"output", bytes(16) + b"E\x00", SECRET + b"X\x00", SECRET + b"E", SECRET + b"E\x00\n"]
)
def test_what_is_no_trailer_is_output(last):
    peer, trailer = conversation(PREFIX + last)
    assert trailer is None
    assert peer.stdout.take().data == last
    assert peer.started


@given(st.binary(max_size=17).filter(lambda data: not data.startswith(b"R")))
def test_a_stream_that_is_not_ours_belongs_with_the_errors(said):
    """A runtime or an image without Python says why it fails, and says it on either stream."""
    peer, trailer = conversation(said, (STDERR, b"python3: not found"))
    assert trailer is None
    assert not peer.started
    assert peer.stdout.take().data == b""
    assert sorted(peer.stderr.take().data) == sorted(said + b"python3: not found")


@pytest.mark.parametrize("length", range(len(PREFIX)))
def test_a_stream_that_ends_before_the_start_has_not_started(length):
    peer, trailer = conversation(PREFIX[:length])
    assert (peer.ready, peer.started, trailer) == (length > 0, False, None)


def test_something_longer_than_a_prefix_that_is_not_one():
    said = b"exec format error: this image is for another architecture"
    peer, trailer = conversation(said + SECRET + b"E\x00")
    assert (peer.ready, peer.started, trailer) == (False, False, None)
    assert peer.stderr.take().data == said + SECRET + b"E\x00"
    assert peer.stdout.take().data == b""


def test_both_streams_count_towards_the_limit_while_they_come():
    peer = Conversation(10)
    peer.feed(packed(STDOUT, PREFIX + bytes(1000)) + packed(STDERR, bytes(500)))
    assert 1500 - 18 - 16 <= peer.output_bytes <= 1500


def test_memory_of_a_conversation_does_not_grow():
    peer = Conversation(1000)
    peer.feed(packed(STDOUT, PREFIX))
    for _ in range(200):
        peer.feed(packed(STDOUT, bytes(1 << 16)) + packed(STDERR, bytes(1 << 16)))
    assert peer.finish() is None
    assert peer.output_bytes == 2 * 200 << 16
    assert len(peer.stdout._tail) + len(peer.stdout._head) <= 2000


MARKED = packed(STDOUT, PREFIX + b"out" + SECRET + b"E\x00"), packed(STDERR, b"err" + SECRET)


@pytest.mark.parametrize("messages", [MARKED, MARKED[::-1]], ids=["stdout first", "stderr first"])
def test_all_is_said_once_both_streams_have_their_marks(messages):
    peer = Conversation(1000)
    whole = b"".join(messages)
    for at in range(len(whole)):
        assert not peer.complete
        peer.feed(whole[at : at + 1])
    assert peer.complete
    assert peer.finish() == Trailer(exit_code=0)
    assert (peer.stdout.take().data, peer.stderr.take().data) == (b"out", b"err")


@given(st.binary(max_size=60), cuts)
def test_errors_without_a_mark_are_kept_whole(said, sizes):
    peer = Conversation(1000)
    for piece in pieces(packed(STDOUT, PREFIX) + packed(STDERR, said), sizes):
        peer.feed(piece)
    assert not peer.complete
    peer.finish()
    assert peer.stderr.take().data == said
