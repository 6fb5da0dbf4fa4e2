"""Answers pods' questions for names of Services and of pods behind a headless Service.

Debian has no CoreDNS. Only A records of `[HOSTNAME.]SERVICE.NAMESPACE.svc.cluster.local` are
known; everything else does not exist, at once, so that nothing in a pod waits for a time-out.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import time

from kubernetes_api import ApiError, KubernetesApi

SUFFIX = ".svc.cluster.local"
ADDRESS_RECORD, NO_SUCH_NAME, REFRESH_SECONDS = 1, 3, 0.2


class Names:
    """Name → addresses, read again from the API server when older than REFRESH_SECONDS."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self._read_at = 0.0
        self._names: dict[str, list[str]] = {}

    def addresses(self, name: str) -> list[str] | None:
        """None: there is no such name."""
        if time.monotonic() - self._read_at > REFRESH_SECONDS:
            try:
                self._names = self._read()
            except ApiError as error:  # the API server is away: what was known still holds
                print(f"cluster_dns: {error}", file=sys.stderr, flush=True)
            self._read_at = time.monotonic()
        return self._names.get(name)

    def _read(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for service in self._api.get("/api/v1/services")["items"]:
            address = service["spec"].get("clusterIP")
            addresses = [address] if address and address != "None" else []
            names[name_of(service) + SUFFIX] = addresses
        for endpoints in self._api.get("/api/v1/endpoints")["items"]:
            service_name = name_of(endpoints) + SUFFIX
            if names.get(service_name) is None or names[service_name]:
                continue
            ready = [a for s in endpoints.get("subsets") or [] for a in s.get("addresses") or []]
            for address in ready:
                if host := address.get("hostname"):
                    names[f"{host}.{service_name}".lower()] = [address["ip"]]
            names[service_name] = [address["ip"] for address in ready]
        return {name: addresses for name, addresses in names.items() if addresses}


def name_of(item: dict[str, dict[str, str]]) -> str:
    return f"{item['metadata']['name']}.{item['metadata']['namespace']}".lower()


def question_of(packet: bytes) -> tuple[str, int, int]:
    """Name, type, and where the question ends in the packet."""
    labels, position = [], 12
    while length := packet[position]:
        labels.append(packet[position + 1 : position + 1 + length].decode("ascii", "replace"))
        position += 1 + length
    (kind,) = struct.unpack_from("!H", packet, position + 1)
    return ".".join(labels).lower(), kind, position + 5


def answer_to(packet: bytes, names: Names) -> bytes:
    name, kind, end = question_of(packet)
    addresses = names.addresses(name)
    records = addresses if addresses and kind == ADDRESS_RECORD else []
    code = 0 if addresses is not None else NO_SUCH_NAME
    flags = 0x8580 | code  # an answer, authoritative, recursion asked for and given
    header = packet[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
    body = b"".join(
        struct.pack("!HHHIH", 0xC00C, ADDRESS_RECORD, 1, 1, 4) + socket.inet_aton(address)
        for address in records
    )
    return header + packet[12:end] + body


def serve(address: str, names: Names) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            packet, sender = server.recvfrom(1500)
            try:
                server.sendto(answer_to(packet, names), sender)
            except (IndexError, struct.error):
                print(f"cluster_dns: no DNS question from {sender}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--address", required=True, help="the address to listen on, port 53")
    options = parser.parse_args()
    with KubernetesApi(options.kubeconfig) as api:
        serve(options.address, Names(api))


if __name__ == "__main__":
    main()
