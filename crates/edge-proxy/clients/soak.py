"""`make soak`: an edge under load while the routes change every few seconds, as deploys do. SOAK_MINUTES, 60 without.

A deploy starts another backend, routes to it alone, waits until the edge has that table, waits until the old one has nothing under way (30 s at most, as `stop.timeout`),
and stops it. No request may fail, and memory and open files of the edge are to be at the end what they were after the first minutes.
"""

import asyncio
import os
import random
import ssl
import sys
import tempfile
import time

import aiohttp
import websockets

from backend import pattern
from stand import HERE, HTTP_HOST, HTTPS_HOST, Backend, Stand, route

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
DEPLOY_SECONDS = float(os.environ.get("SOAK_DEPLOY_SECONDS", "5"))
CLIENTS = 12
# What may differ between the sample after the warming up and the one at the end.
MOST_MORE_KIB, MOST_MORE_FILES = 8 * 1024, 16


class Counts:
    def __init__(self):
        self.done, self.failures, self.took = {}, [], []

    def ok(self, kind, seconds):
        self.done[kind] = self.done.get(kind, 0) + 1
        if kind.startswith("get"):
            self.took.append(seconds)
        if len(self.took) > 100_000:
            del self.took[:50_000]

    def fail(self, kind, error):
        self.failures.append(kind)
        print(f"FAILED {kind} at {time.strftime('%H:%M:%S')}: {type(error).__name__}: {error}", flush=True)


async def counted(counts, kind, work):
    begun = time.monotonic()
    try:
        await asyncio.wait_for(work, 60)
    except Exception as error:
        counts.fail(kind, error)
    else:
        counts.ok(kind, time.monotonic() - begun)


def want(condition, what):
    if not condition:
        raise AssertionError(what)


async def get(session, url, context, length):
    async with session.get(f"{url}/bytes/{length}", ssl=context) as answer:
        body = await answer.read()
        want(answer.status == 200 and body == pattern(0, length), f"{answer.status}, {len(body)} bytes of {length}: {body[:200]!r}")


async def post(session, url, context, length):
    sent = pattern(0, length)
    async with session.post(url + "/echo", data=sent, ssl=context) as answer:
        body = await answer.read()
        want(answer.status == 200 and body == sent, f"{answer.status}, {len(body)} bytes of {length}: {body[:200]!r}")


async def stream(session, url, context):
    """An upload and a download at once, for seconds."""
    async def body():
        for _ in range(30):
            yield b"s" * 10_000
            await asyncio.sleep(0.1)

    async with session.post(url + "/stream", data=body(), ssl=context) as answer:
        read = len(await answer.read())
        want(answer.status == 200 and read == 300_000, f"{answer.status}, {read} bytes")


async def events(session, url, context):
    async with session.get(url + "/drip/40", ssl=context) as answer:
        text = await answer.text()
        want(answer.status == 200 and text.count("data: ") == 40, f"{answer.status}, {text.count('data: ')} events")


async def websocket(url, context):
    """Messages for some seconds."""
    async with websockets.connect(url.replace("http", "ws", 1) + "/ws", ssl=context if "https" in url else None) as sock:
        for number in range(20):
            message = f"{number} " + "x" * random.randrange(20_000)
            await sock.send(message)
            want(await sock.recv() == message, "another message came back")
            await asyncio.sleep(0.2)


async def client(counts, number, bases, context, end):
    url = bases[number % len(bases)]
    kept = aiohttp.TCPConnector(limit=2)
    async with aiohttp.ClientSession(connector=kept, timeout=aiohttp.ClientTimeout(50), trust_env=False) as session:
        while time.monotonic() < end:
            pick = random.random()
            if pick < 0.70:
                await counted(counts, "get, kept", get(session, url, context, random.choice([10, 1000, 50_000])))
            elif pick < 0.82:
                async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as once:
                    await counted(counts, "get, new", get(once, url, context, 1000))
            elif pick < 0.93:
                await counted(counts, "post", post(session, url, context, random.choice([0, 100, 200_000])))
            elif pick < 0.95:
                await counted(counts, "download", get(session, url, context, 5_000_000))
            elif pick < 0.965:
                await counted(counts, "stream", stream(session, url, context))
            elif pick < 0.98:
                await counted(counts, "events", events(session, url, context))
            else:
                await counted(counts, "websocket", websocket(url, context))
            await asyncio.sleep(random.random() * 0.05)


async def h2_client(counts, url, context, end):
    import httpx
    async with httpx.AsyncClient(http2=True, verify=context, timeout=50, trust_env=False) as session:
        async def one(length):
            answer = await session.get(f"{url}/bytes/{length}")
            want(answer.status_code == 200 and answer.content == pattern(0, length), f"{answer.status_code}, {len(answer.content)} bytes")
            want(answer.http_version == "HTTP/2", answer.http_version)

        while time.monotonic() < end:
            lengths = [random.choice([10, 1000, 100_000]) for _ in range(8)]
            await asyncio.gather(*(counted(counts, "get, h2", one(length)) for length in lengths))
            await asyncio.sleep(0.2)


async def deploys(stand, counts, end):
    """Gives how many there were."""
    number, current, stopping = 0, [stand.backend], []

    def replace(old):
        # Each second deploy has two instances.
        new = [Backend() for _ in range(1 + number % 2)]
        ports = [backend.port for backend in new]
        table = stand.server.publish({HTTP_HOST: route(ports), HTTPS_HOST: route(ports)})
        stand.server.wait_acknowledged(table)
        return new

    while time.monotonic() < end:
        await asyncio.sleep(DEPLOY_SECONDS)
        number += 1
        try:
            old, current = current, await asyncio.to_thread(replace, current)
        except Exception as error:
            counts.fail("deploy", error)
            break
        # SIGTERM lets a backend end what is under way.
        stopping += [asyncio.create_task(asyncio.to_thread(backend.stop)) for backend in old]
        stopping = [task for task in stopping if not task.done()]
    await asyncio.gather(*stopping)
    stand.backend = current[0]
    for backend in current[1:]:
        backend.stop()
    return number


async def settled(stand):
    """Memory and open files when nothing was asked for a while, so that connections to backends are closed."""
    await asyncio.sleep(22)
    return stand.rss_kib(), stand.open_files()


async def soak(stand):
    counts, context = Counts(), ssl.create_default_context(cafile=stand.ca)
    bases = [f"http://127.0.0.1:{stand.http}", f"https://localhost:{stand.https}"]

    async def phase(seconds):
        end = time.monotonic() + seconds
        work = [client(counts, number, bases, context, end) for number in range(CLIENTS)]
        if stand.has_h2:
            # httpx changes what its context offers by ALPN.
            own = ssl.create_default_context(cafile=stand.ca)
            work.append(h2_client(counts, bases[1], own, end))
        results = await asyncio.gather(deploys(stand, counts, end), *work)
        return results[0]

    seconds = MINUTES * 60
    changed = await phase(seconds * 0.25)
    before = await settled(stand)
    print(f"after a quarter: {before[0]} KiB, {before[1]} open files", flush=True)
    changed += await phase(seconds * 0.75)
    after = await settled(stand)
    counts.took.sort()
    p99 = counts.took[int(len(counts.took) * 0.99)] if counts.took else 0
    print(f"{changed} deploys; " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.done.items())))
    print(f"at the end: {after[0]} KiB, {after[1]} open files; p99 of the latest gets {p99 * 1000:.0f} ms")
    failures = len(counts.failures)
    done = sum(counts.done.values())
    if not done or not changed:
        failures += 1
        print("FAILED nothing was asked, or nothing was deployed")
    if after[0] - before[0] > MOST_MORE_KIB or after[1] - before[1] > MOST_MORE_FILES:
        failures += 1
        print("FAILED memory or open files grew")
    if "panicked" in (stand.folder / "edge.log").read_text() or stand.process.poll() is not None:
        failures += 1
        print("FAILED the edge panicked")
    print(f"{done} passed, {failures} failed, {0 if stand.has_h2 else 1} skipped" + ("" if stand.has_h2 else " (HTTP/2: the edge does not offer it)"))
    return failures


def main():
    with tempfile.TemporaryDirectory(prefix="edge-soak-") as folder, Stand(folder) as stand:
        failures = asyncio.run(soak(stand))
        if failures:
            kept = HERE.parents[2] / "target" / "soak-edge.log"
            kept.write_bytes((stand.folder / "edge.log").read_bytes())
            (HERE.parents[2] / "target" / "soak-access.log").write_bytes((stand.data / "access.log").read_bytes())
            print(f"the edge's log: {kept}, and soak-access.log beside it")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
