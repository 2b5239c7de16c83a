"""A tap in a connection: forwards bytes as they come, and remembers what was asked and answered."""

import json
import re
import socket
import struct
import threading
import time


class Tap:
    """Listens on loopback and forwards to `target` (host, port), byte for byte; a reset stays a reset."""

    def __init__(self, target):
        self.target, self.connections, self.lock = target, [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()
                continue
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sent, got = bytearray(), bytearray()
            with self.lock:
                self.connections.append((sent, got))
            for args in ((client, server, sent), (server, client, got)):
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    @staticmethod
    def _pump(source, sink, record):
        try:
            while data := source.recv(65536):
                record += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for side in (source, sink):
                try:
                    # A socket that another thread reads from is not closed before that thread wakes up.
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    side.shutdown(socket.SHUT_RD)
                    side.close()
                except OSError:
                    pass

    def exchanges(self):
        """Everything that passed, as Exchange, connection by connection."""
        with self.lock:
            connections = [(bytes(sent), bytes(got)) for sent, got in self.connections]
        found = []
        for sent, got in connections:
            requests, answers = list(messages(sent)), list(messages(got))
            for at, request in enumerate(requests):
                found.append(Exchange(request, answers[at] if at < len(answers) else None))
        return found

    def posts(self):
        return [exchange for exchange in self.exchanges() if exchange.method == "POST"]

    def close(self):
        self.listener.close()


def messages(data):
    """Splits one direction of an HTTP/1.1 connection into (first line, headers, body)."""
    while data:
        head, gap, data = data.partition(b"\r\n\r\n")
        if not gap:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if re.match(r"HTTP/1\.. 1\d\d", first):
            continue
        if "chunked" in headers.get("transfer-encoding", ""):
            body, data = chunks(data)
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
        elif first.startswith("HTTP/"):
            body, data = data, b""
        else:
            body = b""
        yield first, headers, body


def chunks(data):
    """A chunked body, and what follows it."""
    body, at = bytearray(), 0
    while (end := data.find(b"\r\n", at)) >= 0:
        try:
            length = int(data[at:end].split(b";")[0], 16)
        except ValueError:
            break
        if length == 0:
            return bytes(body), data[end + 2 :].partition(b"\r\n")[2]
        body += data[end + 2 : end + 2 + length]
        at = end + 2 + length + 2
    return bytes(body), b""


class Exchange:
    """One request and its answer."""

    def __init__(self, request, answer):
        first, self.headers, self.body = request
        self.method, self.path = first.split(" ")[:2]
        self.status = int(answer[0].split(" ")[1]) if answer else None
        self.answer_headers, self.answer = (answer[1], answer[2]) if answer else ({}, b"")

    @property
    def model(self):
        return json.loads(self.body or b"{}").get("model", "")

    def events(self):
        """The JSON of the answer: each event of a stream, or the one body."""
        text = self.answer.decode("utf-8", "replace")
        lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        for piece in lines or [text]:
            try:
                event = json.loads(piece)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event

    def response_id(self):
        """The id the answer carries; None without one, as embeddings are."""
        ids = (event.get("id") or (event.get("response") or {}).get("id") for event in self.events())
        return next((found for found in ids if found), None)

    def usage(self):
        """The last usage the answer names, as (input, cached, cache writes, output); None without one."""
        named = [event.get("usage") or (event.get("response") or {}).get("usage") for event in self.events()]
        named = [usage for usage in named if usage]
        if not named:
            return None
        found = named[-1]
        details = found.get("input_tokens_details") or found.get("prompt_tokens_details") or {}
        return (
            found.get("input_tokens", found.get("prompt_tokens", 0)),
            details.get("cached_tokens") or 0,
            details.get("cache_write_tokens") or 0,
            found.get("output_tokens", found.get("completion_tokens", 0)) or 0,
        )


def wait_for(condition, seconds=10):
    """Waits until `condition()` is true, and says whether it became so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())
