"""Messages between a pool, its fork server and its workers: a length, then a pickle."""

from __future__ import annotations

import pickle
import socket
from typing import Any


def send_message(channel: socket.socket, message: Any) -> None:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    channel.sendall(len(body).to_bytes(8, "big") + body)


def receive_message(channel: socket.socket) -> Any:
    """Raises EOFError when the other side is gone."""
    return pickle.loads(_receive(channel, int.from_bytes(_receive(channel, 8), "big")))


def _receive(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other side closed the connection")
        data += piece
    return bytes(data)
