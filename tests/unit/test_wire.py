"""Frames: length, JSON, descriptors; in pieces and in heaps."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "python"))

from metaflow import _wire


def pair() -> tuple[_wire.Connection, _wire.Connection]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return _wire.Connection(one.detach()), _wire.Connection(two.detach())


def test_frames_arrive_in_order_whatever_their_size() -> None:
    one, two = pair()
    messages = [{"type": "x", "text": "ä" * size} for size in (0, 1, 1000, 30_000)]
    for message in messages:
        one.send(message)
    assert [two.receive().message for _ in messages] == messages
    assert two.receive_available() is None


def test_a_frame_in_pieces() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    receiver = _wire.Connection(two.detach())
    data = _wire.encode({"type": "x", "n": 1})
    for position in range(len(data)):
        assert receiver.receive_available() is None
        one.send(data[position : position + 1])
    frame = receiver.receive_available()
    assert frame is not None
    assert frame.message == {"type": "x", "n": 1}


def test_descriptors_stay_with_their_frames() -> None:
    one, two = pair()
    pipes = [os.pipe() for _ in range(4)]
    for number, (_, write_end) in enumerate(pipes):
        one.send({"type": "signal", "n": number})
        one.send({"type": "open_zygote", "n": number}, [write_end])
    for number, (read_end, write_end) in enumerate(pipes):
        os.close(write_end)
        assert two.receive().descriptors == []
        frame = two.receive()
        assert frame.message["n"] == number
        (received,) = frame.descriptors
        assert not os.get_inheritable(received)
        os.write(received, b"%d" % number)
        assert os.read(read_end, 10) == b"%d" % number
        os.close(received)
        os.close(read_end)


def test_closing_closes_descriptors_that_wait() -> None:
    one, two = pair()
    read_end, write_end = os.pipe()
    one.send({"type": "x"}, [write_end])
    os.close(write_end)
    two.receive()
    two.close()
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_end_of_file() -> None:
    one, two = pair()
    one.send({"type": "last"})
    one.close()
    assert two.receive().message == {"type": "last"}
    with pytest.raises(EOFError):
        two.receive()


def test_text_that_is_not_unicode_is_replaced() -> None:
    data = _wire.encode({"arguments": [os.fsdecode(b"a\xff"), "\U0001f600"]})
    assert b"\\udcff" not in data
    assert _wire.json.loads(data[4:]) == {"arguments": ["a\ufffd", "\U0001f600"]}


def test_a_control_channel_without_an_engine_is_no_error() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    control = _wire.Control(one.detach())
    two.close()
    control.send({"type": "metadata"})
    control.send({"type": "metadata"})
