"""Slow and many clients, while an honest one goes on being served.

They come from other addresses of loopback than the honest one, as they would come from others of the internet, and as many from each as the edge lets in. They are
a process of their own, and have a backend of their own: what is measured is the edge. `slow.py PORT` is that process.
"""

import asyncio
import json
import subprocess
import sys
import time

from report import equal
from stand import Backend, route

HONEST_SECONDS, FLOOD_SECONDS = 5, 45
# What the honest client may wait during the flood, on a machine that has two cores for edge, backend and flood.
MOST_P99_MS = 500
HONEST_HOST = "honest.test"
HONEST = b"GET /bytes/128 HTTP/1.1\r\nHost: honest.test\r\n\r\n"
HEAD = b"GET /chunked/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n"


async def honest(port, seconds):
    """Milliseconds of each request, half of them on a connection of their own."""
    took, kept = [], None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for is_new in (False, True):
            begun = time.monotonic()
            if is_new or kept is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                if not is_new:
                    kept = reader, writer
            else:
                reader, writer = kept
            writer.write(HONEST)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            equal(head.split(b" ")[1], b"200", "the status of an honest request")
            await asyncio.wait_for(reader.readexactly(128), 10)
            if is_new:
                writer.close()
            took.append((time.monotonic() - begun) * 1000)
        await asyncio.sleep(0.01)
    kept[1].close()
    return sorted(took)


class Flood:
    def __init__(self, port):
        self.port, self.ended, self.errors, self.tasks = port, {}, 0, []
        self.counts = {}

    def add(self, kind, address, count, act):
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.tasks += [asyncio.ensure_future(self.one(kind, address, act)) for _ in range(count)]

    async def one(self, kind, address, act):
        begun = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0), limit=1024)
            try:
                await act(reader, writer)
            finally:
                writer.transport.abort()
        except OSError:
            pass
        except asyncio.IncompleteReadError:
            pass
        self.ended.setdefault(kind, []).append(time.monotonic() - begun)

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def until_end(reader):
    while await reader.read(512):
        pass


async def idle(reader, writer):
    await until_end(reader)


async def drip(reader, writer, head, each):
    writer.write(head)

    async def more():
        while True:
            await asyncio.sleep(1)
            writer.write(each)
            await writer.drain()

    dripping = asyncio.ensure_future(more())
    try:
        await until_end(reader)
    finally:
        dripping.cancel()


async def slow_head(reader, writer):
    await drip(reader, writer, HEAD % 1, b"X-A: b\r\n")


async def slow_body(reader, writer):
    await drip(reader, writer, b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n", b"x")


async def slow_reader(reader, writer):
    writer.write(HEAD % 20_000 + b"\r\n")
    while await reader.read(1):
        await asyncio.sleep(1)


async def pipeline(reader, writer):
    # Requests, and nothing is read.
    writer.transport.pause_reading()
    while True:
        writer.write((HEAD % 100 + b"\r\n") * 10)
        await writer.drain()


async def large_heads(reader, writer):
    writer.write(HEAD % 1 + b"X-Large: " + b"x" * 70_000)
    await until_end(reader)


async def churn(port, address, until):
    """Connections that come and go, some with half a request."""
    number = 0
    while time.monotonic() < until:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            if number % 2:
                writer.write(HEAD % 1)
            writer.transport.abort()
        except OSError:
            pass
        number += 1
        await asyncio.sleep(0.01)
    return number


async def flood(port):
    """Until the time is over; prints how many there were of each kind, when those that the edge ended were ended, and how many came and went."""
    all_of_them = Flood(port)
    all_of_them.add("idle", "127.0.0.11", 1000, idle)
    all_of_them.add("slow head", "127.0.0.12", 400, slow_head)
    all_of_them.add("slow body", "127.0.0.13", 300, slow_body)
    all_of_them.add("slow reader", "127.0.0.14", 200, slow_reader)
    all_of_them.add("pipeline", "127.0.0.15", 20, pipeline)
    all_of_them.add("large heads", "127.0.0.16", 200, large_heads)
    # More than a client may have: the rest is refused.
    all_of_them.add("too many", "127.0.0.17", 1500, idle)
    churned = await churn(port, "127.0.0.18", time.monotonic() + FLOOD_SECONDS)
    # Those that end by our own end are not the edge's.
    ended = {kind: list(times) for kind, times in all_of_them.ended.items()}
    await all_of_them.stop()
    print(json.dumps({"counts": all_of_them.counts, "ended": ended, "churned": churned}))


async def run(report, stand):
    port = stand.http
    before = await honest(port, HONEST_SECONDS)
    memory = most = stand.rss_kib()
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, str(port), stdout=subprocess.PIPE)
    during = asyncio.ensure_future(honest(port, FLOOD_SECONDS))
    while not during.done():
        most = max(most, stand.rss_kib())
        await asyncio.wait([during], timeout=1)
    told = json.loads((await process.communicate())[0])
    during, counts = during.result(), told["counts"]
    ended = {kind: len(times) for kind, times in told["ended"].items()}
    slowest = max(told["ended"].get("slow head", [0]))
    p = lambda times, share: times[int(len(times) * share)]
    print(f"slow: before: {len(before)} requests, p50 {p(before, 0.5):.1f} ms, p99 {p(before, 0.99):.1f} ms")
    print(f"slow: during: {len(during)} requests, p50 {p(during, 0.5):.1f} ms, p99 {p(during, 0.99):.1f} ms; {told['churned']} connections came and went")
    print(f"slow: of {counts} the edge ended {ended}; the last slow head after {slowest:.0f} s; memory {memory} KiB before, at most {most} KiB during")
    with report.check(f"slow: the honest client waits at most {MOST_P99_MS} ms (p99) during the flood"):
        assert p(during, 0.99) <= MOST_P99_MS, f"{p(during, 0.99):.0f} ms"
    with report.check("slow: heads that take more than 30 s are ended"):
        equal(ended.get("slow head"), counts["slow head"])
        assert slowest < 40, f"after {slowest:.0f} s"
    with report.check("slow: a client has its share of connections, and no more"):
        refused = [seconds for seconds in told["ended"].get("too many", []) if seconds < 15]
        equal(len(refused), counts["too many"] - 1250, "the number of those that were refused at once")
    with report.check("slow: large heads are refused"):
        equal(ended.get("large heads"), counts["large heads"])
    with report.check("slow: memory is bounded"):
        connections = sum(counts.values())
        assert most - memory < connections * 32 + 20 * 1024, f"{most - memory} KiB more"


def check(report, stand):
    backend = Backend()
    try:
        stand.server.wait_acknowledged(stand.server.publish({HONEST_HOST: route([backend.port])}))
        with report.check("slow: every honest request is answered"):
            asyncio.run(run(report, stand))
    finally:
        backend.stop()


if __name__ == "__main__":
    asyncio.run(flood(int(sys.argv[1])))
