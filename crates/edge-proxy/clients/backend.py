"""An app for `make clients` and `make soak`: an echo of HTTP/1.1 and WebSockets that says on the wire exactly what a check asks for.

`backend.py PORT` listens on 127.0.0.1. It is written on sockets, because servers of Python's libraries cannot send interim answers, trailers, or an answer before
they have read the request. SIGTERM: it accepts no more, ends what is under way, and exits.
"""

import asyncio
import json
import signal
import sys

from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.server import ServerProtocol

PATTERN = bytes(range(251)) * 262  # 65,762 bytes
MAX_BODY = 64 << 20
under_way = set()
is_ending = False


def pattern(start, end):
    """Bytes [start, end) of the endless pattern."""
    first = start % 251
    whole = -(-(end - start + first) // 251)
    return (PATTERN[: 251] * whole)[first : first + end - start]


class Request:
    def __init__(self, head):
        self.head = head
        lines = head.decode("latin-1").split("\r\n")[:-2]
        self.method, self.target, self.version = lines[0].split(" ")
        self.fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:]]
        self.path, _, self.query = self.target.partition("?")
        self.trailers = []

    def get(self, name):
        values = [value for key, value in self.fields if key.lower() == name]
        return ", ".join(values) if values else None


async def read_body(reader, request, to):
    """Calls `to` with each piece of the body."""
    if (request.get("transfer-encoding") or "").lower() == "chunked":
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if size == 0:
                break
            await to(await reader.readexactly(size))
            assert await reader.readexactly(2) == b"\r\n"
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, value = line.decode("latin-1").split(":", 1)
            request.trailers.append((name, value.strip()))
        return
    left = int(request.get("content-length") or 0)
    while left > 0:
        piece = await reader.read(min(left, 65536))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        await to(piece)


async def whole_body(reader, request):
    pieces = []

    async def keep(piece):
        pieces.append(piece)

    await read_body(reader, request, keep)
    return b"".join(pieces)


def head(status, fields):
    lines = [f"HTTP/1.1 {status}"] + [f"{name}: {value}" for name, value in fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


async def websocket(reader, writer, request):
    extensions = [ServerPerMessageDeflateFactory()] if "nodeflate" not in request.query else []
    protocol = ServerProtocol(extensions=extensions, max_size=32 << 20)
    protocol.receive_data(request.head)
    kind, parts = None, []

    def echo():
        nonlocal kind, parts
        for event in protocol.events_received():
            if not hasattr(event, "opcode"):
                protocol.send_response(protocol.accept(event))
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                kind, parts = (kind, parts) if event.opcode is Opcode.CONT else (event.opcode, [])
                parts.append(bytes(event.data))
                if event.fin and protocol.state.name == "OPEN":
                    data = b"".join(parts)
                    if kind is Opcode.TEXT:
                        try:
                            data.decode()
                        except UnicodeDecodeError:
                            protocol.fail(1007, "no UTF-8")
                            return
                        protocol.send_text(data)
                    else:
                        protocol.send_binary(data)

    echo()
    while True:
        for data in protocol.data_to_send():
            if data:
                writer.write(data)
            else:
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
        await writer.drain()
        if protocol.close_expected() and protocol.state.name == "CLOSED":
            return
        data = await reader.read(65536)
        if not data:
            protocol.receive_eof()
            echo()
            return
        # A frame that breaks the rules does not undo the message before it, however many bytes came at once.
        size = 1 if len(data) < 2048 else len(data)
        for start in range(0, len(data), size):
            protocol.receive_data(data[start : start + size])
            echo()


async def answer(reader, writer, request):
    """Answers one request; whether the connection can be kept."""
    path, _, argument = request.path.lstrip("/").partition("/")
    bodiless = request.method == "HEAD"
    if path == "ws":
        await websocket(reader, writer, request)
        return False
    if path == "refuse":
        writer.write(head("413 Content Too Large", [("Content-Length", 8), ("Connection", "close"), ("X-Early", "yes")]) + b"too much")
        await writer.drain()
        return False
    if path == "drip":
        writer.write(head("200 OK", [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]))
        for number in range(int(argument)):
            writer.write(chunk(b"data: %d\n\n" % number))
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.write(chunk(b""))
        return True
    if path == "stream":
        # The echo of a body as it comes, in chunks.
        writer.write(head("200 OK", [("Transfer-Encoding", "chunked")]))

        async def back(piece):
            writer.write(chunk(piece))
            await writer.drain()

        await read_body(reader, request, back)
        trailer = "".join(f"{name}: {value}\r\n" for name, value in request.trailers)
        writer.write(b"0\r\n" + trailer.encode("latin-1") + b"\r\n")
        return True
    body = await whole_body(reader, request)
    fields = [("X-Method", request.method), ("x-lower-CASE", "as written"), ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2")]
    status = "200 OK"
    if path == "head":
        body = request.head
    elif path == "bytes":
        length = int(argument)
        start, end = 0, length
        fields.append(("Accept-Ranges", "bytes"))
        if (wanted := request.get("range")) and wanted.startswith("bytes="):
            first, last = wanted[6:].split("-")
            start, end = int(first), min(int(last) + 1 if last else length, length)
            status = "206 Partial Content"
            fields.append(("Content-Range", f"bytes {start}-{end - 1}/{length}"))
        body = pattern(start, end)
    elif path == "status":
        status, body = f"{argument} Status", b"" if argument in ("204", "304") else b"body of the status"
        if argument in ("301", "302", "307", "308"):
            fields.append(("Location", "/bytes/10"))
        if argument in ("204", "304"):
            writer.write(head(status, fields))
            return True
    elif path == "slow":
        await asyncio.sleep(int(argument) / 1000)
        body = b"slow"
    elif path == "hints":
        writer.write(head("103 Early Hints", [("Link", "</a.css>; rel=preload")]))
        body = b"after the hints"
    elif path == "trailers-in":
        body = json.dumps({"body": len(body), "trailers": request.trailers, "te": request.get("te")}).encode()
    elif path == "trailers":
        writer.write(head("200 OK", fields + [("Trailer", "X-Sum"), ("Transfer-Encoding", "chunked")]))
        if not bodiless:
            writer.write(chunk(b"with a trailer") + b"0\r\nX-Sum: 4711\r\n\r\n")
        return True
    elif path == "chunked":
        writer.write(head("200 OK", fields + [("Transfer-Encoding", "chunked")]))
        if not bodiless:
            for number in range(int(argument)):
                writer.write(chunk(pattern(number * 1000, number * 1000 + 1000)))
                await writer.drain()
            writer.write(chunk(b""))
        return True
    elif path == "until-close":
        writer.write(head("200 OK", fields + [("Connection", "close")]) + pattern(0, int(argument)))
        return False
    elif path != "echo":
        status, body = "404 Not Found", b"no such path"
    writer.write(head(status, fields + [("Content-Length", len(body))]))
    if not bodiless:
        writer.write(body)
    await writer.drain()
    return (request.get("connection") or "").lower() != "close"


async def connection(reader, writer):
    try:
        while not is_ending:
            try:
                request = Request(await reader.readuntil(b"\r\n\r\n"))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            under_way.add(writer)
            keep = await answer(reader, writer, request)
            await writer.drain()
            under_way.discard(writer)
            if not keep:
                break
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        pass
    finally:
        under_way.discard(writer)
        writer.close()


async def main(port):
    global is_ending
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    server = await asyncio.start_server(connection, "127.0.0.1", port, backlog=1024, limit=1 << 20)
    print("ready", flush=True)
    await end.wait()
    is_ending = True
    server.close()
    while under_way:
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
