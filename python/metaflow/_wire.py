"""Frames of the front-end protocol (docs/contributing/front-end-protocol.md): a little-endian
u32 length and that many bytes of JSON over a Unix stream socket, descriptors with the first byte.

What the messages mean does not belong here.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Message = dict[str, Any]

PROTOCOL_VERSION = 1

# How many descriptors travel with a frame, by its type; all other frames carry none.
DESCRIPTORS = {"open_zygote": 1, "task": 3}

_LENGTH = struct.Struct("<I")
_MOST_DESCRIPTORS = 16
_ANCILLARY_SPACE = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
_READ_SIZE = 1 << 15

_encode_json = json.JSONEncoder(separators=(",", ":")).encode


def encode(message: Message) -> bytes:
    """One frame. Text that is not valid Unicode (undecodable arguments) is replaced."""
    text = _encode_json(message)
    if "\\ud" in text:
        text = _encode_json(_without_lone_surrogates(message))
    body = text.encode("ascii")
    return _LENGTH.pack(len(body)) + body


def _without_lone_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {
            _without_lone_surrogates(key): _without_lone_surrogates(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_lone_surrogates(item) for item in value]
    return value


class Frame:
    """A received message and the descriptors that came with it."""

    __slots__ = ("descriptors", "message")

    def __init__(self, message: Message, descriptors: list[int]) -> None:
        self.message = message
        self.descriptors = descriptors


class Connection:
    """One end of a protocol socket. Sending blocks; reading is done by `receive` (blocks for one
    frame) or by `receive_available` (takes what is there)."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, descriptors: Iterable[int] = ()) -> None:
        data = encode(message)
        passed = array.array("i", descriptors)
        if not passed:
            self._socket.sendall(data)
            return
        sent = self._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        if sent < len(data):
            self._socket.sendall(memoryview(data)[sent:])

    def send_encoded(self, frames: bytes) -> None:
        """Send frames that `encode` made, several at once."""
        self._socket.sendall(frames)

    def receive(self) -> Frame:
        """The next frame. Raises `EOFError` when the other side closed."""
        while (frame := self._next_frame()) is None:
            self._read(0)
        return frame

    def receive_available(self) -> Frame | None:
        """The next frame if it has arrived in full. Raises `EOFError` like `receive`."""
        while (frame := self._next_frame()) is None:
            try:
                self._read(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
        return frame

    def close(self) -> None:
        """Close this process' copy of the socket and of descriptors not yet handed out."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._socket.close()

    def _read(self, flags: int) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                _READ_SIZE, _ANCILLARY_SPACE, flags | socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            raise EOFError("the other side closed the socket") from None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._descriptors.extend(received)
        if not data:
            raise EOFError("the other side closed the socket")
        self._buffer += data

    def _next_frame(self) -> Frame | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        message: Message = json.loads(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        wanted = DESCRIPTORS.get(str(message.get("type")), 0)
        descriptors, self._descriptors = self._descriptors[:wanted], self._descriptors[wanted:]
        return Frame(message, descriptors)


class Control:
    """The task's end of its control channel."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)

    def send(self, message: Message) -> None:
        """Send one `wire.TaskMessage`. A vanished engine is not the task's failure."""
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> Message:
        return self._connection.receive().message
