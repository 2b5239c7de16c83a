"""A tap that changes what passes: so that the real client meets what it would not ask for by itself."""

import json

from tap import Tap


class Meddler(Tap):
    """Changes each POST on its way. `change` gets the first line, the headers and the body of a request and gives the same,
    or the bytes to send, in pieces or not."""

    change = staticmethod(lambda first, headers, body: (first, headers, body))

    def _pump(self, source, sink, record):
        if sink.getpeername()[1] != self.target[1]:
            return super()._pump(source, sink, record)
        try:
            buffered = b""
            while True:
                while b"\r\n\r\n" not in buffered:
                    data = source.recv(65536)
                    if not data:
                        return sink.shutdown(1)
                    buffered += data
                head, _, buffered = buffered.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = [tuple(part.strip() for part in line.split(":", 1)) for line in lines]
                length = int(next((value for name, value in headers if name.lower() == "content-length"), 0))
                while len(buffered) < length:
                    buffered += source.recv(65536)
                body, buffered = buffered[:length], buffered[length:]
                changed = self.change(first, headers, body) if first.startswith("POST") else (first, headers, body)
                for piece in changed if not isinstance(changed, tuple) else [written(*changed)]:
                    record += piece
                    sink.sendall(piece)
        except (OSError, ValueError):
            for side in (source, sink):
                side.close()


def written(first, headers, body, length=None):
    """A request as bytes; its length is true unless another is named."""
    lines = [first] + [f"{name}: {value}" for name, value in headers if name.lower() != "content-length"]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def meddler(change):
    """A tap of this kind that makes this change."""
    return type("Meddler", (Meddler,), {"change": staticmethod(change)})


def of_body(change):
    """Changes the body's JSON."""

    def changed(first, headers, body):
        document = json.loads(body)
        told = change(document)
        return first, headers, json.dumps(document).encode() if told is None else told

    return changed
