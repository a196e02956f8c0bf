"""A link with delay and loss, for a machine whose kernel has no netem: `python -m tests.hosts.poor_link A B MS SHARE`.

Carries every frame between the network devices A and B, each a given time late, and loses a given
share of them, in both directions. Frames have to be whole: checksums and segmentation that are left
to the hardware never happen here, so `complete` is called for whatever sends towards A or B.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import random
import select
import socket
import struct
import sys
import time

SIOCETHTOOL = 0x8946
#: ETHTOOL_STXCSUM, _SSG, _STSO, _SGSO, _SGRO: what is left to the hardware.
OFFLOADS = (0x17, 0x19, 0x1F, 0x24, 0x2C)
ALL_PROTOCOLS = 3
FRAME = 1 << 16
BUFFER = 8 << 20


def complete(device: str) -> None:
    """Have the kernel finish every frame before it goes out at `device`. Raises OSError."""
    with socket.socket() as any_socket:
        for command in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", device.encode(), ctypes.addressof(value))
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def opened(device: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    raw.bind((device, ALL_PROTOCOLS))
    raw.setblocking(False)
    return raw


def carry(first: str, second: str, delay_s: float, loss: float) -> None:
    """Never returns."""
    one, other = opened(first), opened(second)
    towards = {one: other, other: one}
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    number = 0
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select(list(towards), (), (), patience)
        for raw in ready:
            frame, address = raw.recvfrom(FRAME)
            if address[2] != socket.PACKET_OUTGOING and random.random() >= loss:  # what we sent is seen, too
                number += 1
                heapq.heappush(waiting, (time.monotonic() + delay_s, number, towards[raw], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, raw, frame = heapq.heappop(waiting)
            try:
                raw.send(frame)
            except OSError as error:  # the device is down, or its queue full: the frame is lost
                print(error, file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1] == "complete":
        complete(sys.argv[2])
    else:
        carry(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000, float(sys.argv[4]))
