"""`make clients`: programs that others wrote, against the edge (docs/edge.md). Arguments: parts to run, all without.

What HTTP/2 is checked is where the edge offers `h2` by ALPN, and is named as skipped where not.
"""

import asyncio
import hashlib
import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import aiohttp
import httpx
import requests
import urllib3
import websockets

import autobahn
import slow
import tls
from backend import pattern
from report import Report, equal
from stand import HERE, Stand, free_port, wait_for


def run(*command, seconds=120, **more):
    return subprocess.run([str(part) for part in command], capture_output=True, timeout=seconds, **more)


class Curl:
    def __init__(self, stand, base, *options):
        self.base, self.options = base, ["--silent", "--show-error", "--max-time", "20", "--cacert", stand.ca, *options]

    def __call__(self, path, *options):
        """Status, version, head and body of the last answer."""
        with tempfile.NamedTemporaryFile() as head:
            told = "%{stderr}%{http_code} %{http_version} %{num_connects}"
            done = run("curl", *self.options, "--dump-header", head.name, "--write-out", told, *options, self.base + path)
            if done.returncode:
                raise AssertionError(f"curl ended by {done.returncode}: {done.stderr.decode()}")
            status, version, connects = done.stderr.decode().split()[-3:]
            self.connects = int(connects)
            return int(status), version, Path(head.name).read_text("latin-1"), done.stdout


def curl(report, stand):
    bases = [("http, 1.0", f"http://127.0.0.1:{stand.http}", "--http1.0"), ("http, 1.1", f"http://127.0.0.1:{stand.http}", "--http1.1"),
             ("https, 1.1", f"https://localhost:{stand.https}", "--http1.1"), ("https, 1.2", f"https://localhost:{stand.https}", "--http1.1", "--tls-max", "1.2")]
    if stand.has_h2:
        bases.append(("https, 2", f"https://localhost:{stand.https}", "--http2"))
    else:
        report.skip("curl: https, 2", "the edge does not offer h2")
    for name, base, *options in bases:
        ask = Curl(stand, base, *options)
        is_one, is_two = "1.0" in name, "2" == name[-1] and "1.2" not in name
        name = f"curl: {name}: "
        with report.check(name + "status, headers and body"):
            status, version, head, body = ask("/bytes/300000")
            equal((status, body), (200, pattern(0, 300000)))
            equal(version, "2" if is_two else "1.1", "the version of the answer")
            equal(head.lower().count("set-cookie: "), 2)
            equal("x-lower-CASE: as written" in head, not is_two, "the name as it was written")
        with report.check(name + "an answer in chunks"):
            status, _, head, body = ask("/chunked/70")
            equal((status, body), (200, pattern(0, 70000)))
            equal("transfer-encoding" in head.lower(), not is_one and not is_two)
        with report.check(name + "an answer that ends with its connection"):
            equal(ask("/until-close/50000")[3], pattern(0, 50000))
        with report.check(name + "a range"):
            status, _, head, body = ask("/bytes/1000", "--range", "100-299")
            equal((status, body), (206, pattern(100, 300)))
            equal("bytes 100-299/1000" in head, True)
        with report.check(name + "HEAD, 204, 304 and an OPTIONS"):
            status, _, head, body = ask("/bytes/777", "--head")
            equal((status, "content-length: 777" in head.lower()), (200, True))
            for wanted in (204, 304):
                equal(ask(f"/status/{wanted}")[0::3], (wanted, b""))
            equal("x-method: options" in ask("/echo", "-X", "OPTIONS")[2].lower(), True)
        with report.check(name + "an upload with its length"), tempfile.NamedTemporaryFile() as file:
            file.write(pattern(0, 3_000_000))
            file.flush()
            status, _, head, body = ask("/echo", "--upload-file", file.name)
            equal((status, hashlib.sha256(body).digest()), (200, hashlib.sha256(pattern(0, 3_000_000)).digest()))
            if not is_one:
                status, _, head, body = ask("/echo", "--upload-file", file.name, "-H", "Expect: 100-continue", "--expect100-timeout", "15")
                equal((status, len(body)), (200, 3_000_000))
                if not is_two:
                    # Over HTTP/2 curl begins its body at once, and then no 100 is needed (RFC 9110, 10.1.1).
                    equal(re.search(r"HTTP/[12.]+ 100", head) is not None, True, "an answer 100")
                status, _, _, body = ask("/refuse", "--upload-file", file.name)
                equal((status, body), (413, b"too much"), "an early answer")
        if not is_one:
            with report.check(name + "an upload in chunks"), tempfile.NamedTemporaryFile() as file:
                file.write(pattern(0, 200_000))
                file.flush()
                with open(file.name, "rb") as body:
                    done = run("curl", *ask.options, "-T", "-", "-X", "POST", ask.base + "/echo", stdin=body)
                equal(done.stdout, pattern(0, 200_000))
            with report.check(name + "103 before the answer"):
                status, _, head, body = ask("/hints")
                equal((status, body), (200, b"after the hints"))
                equal(re.search(r"HTTP/[12.]+ 103", head) is not None, True, "an answer 103")
            with report.check(name + "trailers"):
                _, _, head, body = ask("/trailers")
                equal(body, b"with a trailer")
                equal("x-sum: 4711" in head.lower(), True, "a trailer")
            with report.check(name + "one connection for three requests"):
                urls = [ask.base + f"/bytes/{length}" for length in (10, 20)]
                _, _, _, body = ask("/bytes/30", *urls)
                equal(len(body), 60)
                equal(ask.connects, 0 if len(urls) else 1, "new connections of the last request")
        with report.check(name + "a host that nobody routes"):
            equal(ask("/", "-H", "Host: nobody.test")[0] in (404, 421), True)
    ask = Curl(stand, f"http://127.0.0.1:{stand.http}")
    with report.check("curl: an offer of h2c is not passed on"):
        status, version, head, body = ask("/head", "--http2")
        equal((status, version), (200, "1.1"))
        equal(b"upgrade" in body.lower(), False)
    with report.check("curl: PROXY protocol of version 1, and of nobody who is trusted, is refused"):
        equal(ask("/head", "--haproxy-protocol")[0], 400)


def load(report, stand):
    for name, url in [("http", f"http://127.0.0.1:{stand.http}/bytes/128"), ("https", f"https://localhost:{stand.https}/bytes/128")]:
        with report.check(f"wrk: {name}, ten seconds"):
            text = run("wrk", "-t1", "-c32", "-d10s", url).stdout.decode()
            equal(re.search(r"Socket errors|Non-2xx", text), None, text)
            equal(int(re.search(r"(\d+) requests in", text)[1]) > 500, True, text)
    kinds = [("HTTP/1.1", ["--h1"])] + ([("HTTP/2", ["-m10"])] if stand.has_h2 else [])
    if not stand.has_h2:
        report.skip("h2load: HTTP/2", "the edge does not offer h2")
    for name, options in kinds:
        for path in ("/bytes/128", "/bytes/200000"):
            with report.check(f"h2load: {name} {path}"):
                text = run("h2load", "-n2000", "-c20", *options, f"https://localhost:{stand.https}{path}").stdout.decode()
                equal("2000 succeeded, 0 failed, 0 errored" in text, True, text)
                equal("status codes: 2000 2xx" in text, True, text)


def haproxy(report, stand):
    """haproxy in front, once as who is trusted and once as somebody."""
    config, ports = Path(stand.folder) / "haproxy.cfg", (free_port(), free_port())
    text = "defaults\n mode http\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n"
    for port, source in zip(ports, ("127.0.0.2", "127.0.0.3")):
        text += f"listen p{port}\n bind 127.0.0.1:{port}\n server edge 127.0.0.1:{stand.http} send-proxy-v2 source {source}\n"
    config.write_text(text)
    process = subprocess.Popen(["haproxy", "-db", "-f", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for port in ports:
            wait_for("haproxy", lambda: listens(port))
        with report.check("haproxy: PROXY v2 of a trusted one names the client"):
            for _ in range(3):
                status, _, _, body = Curl(stand, f"http://127.0.0.1:{ports[0]}")("/head", "--interface", "127.0.0.4", "-H", "Host: 127.0.0.1")
                equal((status, b"X-Real-IP: 127.0.0.4\r\n" in body), (200, True), body)
        with report.check("haproxy: PROXY v2 of another one is refused"):
            equal(Curl(stand, f"http://127.0.0.1:{ports[1]}")("/head", "-H", "Host: 127.0.0.1")[0] in (400, 502), True)
    finally:
        process.terminate()
        process.wait()


def listens(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def python(report, stand):
    http_url, https_url = f"http://127.0.0.1:{stand.http}", f"https://localhost:{stand.https}"
    context = ssl.create_default_context(cafile=stand.ca)
    for name, made in [("http", lambda: http.client.HTTPConnection("127.0.0.1", stand.http, timeout=20)),
                       ("https", lambda: http.client.HTTPSConnection("localhost", stand.https, context=context, timeout=20))]:
        with report.check(f"http.client: {name}: one connection, in turn"):
            connection = made()
            connection.connect()
            sock = connection.sock
            for method, path, body, wanted in [("GET", "/bytes/5000", None, pattern(0, 5000)), ("POST", "/echo", b"with a length", b"with a length"),
                                               ("PUT", "/echo", iter([b"in ", b"chunks"]), b"in chunks"), ("HEAD", "/bytes/5000", None, b""),
                                               ("DELETE", "/echo", None, b""), ("GET", "/chunked/3", None, pattern(0, 3000))]:
                connection.request(method, path, body, encode_chunked=True) if not isinstance(body, (bytes, type(None))) else connection.request(method, path, body)
                answer = connection.getresponse()
                equal((answer.status, answer.read()), (200, wanted), f"{method} {path}")
                equal(connection.sock is sock, True, "the connection")
    for name, url in [("http", http_url), ("https", https_url)]:
        with report.check(f"requests: {name}: a session, cookies, a redirect, an upload, an event stream"):
            with requests.Session() as session:
                session.verify, session.trust_env = str(stand.ca), False
                answer = session.get(url + "/status/302")
                equal((answer.status_code, answer.content, len(answer.history)), (200, pattern(0, 10), 1))
                equal({cookie.value for cookie in session.cookies if cookie.name == "a"}, {"1"})
                equal(b"a=1" in session.get(url + "/head").content, True)
                answer = session.post(url + "/echo", data=(bytes([65 + number]) * 50000 for number in range(10)))
                equal(len(answer.content), 500_000)
                answer = session.post(url + "/echo", files={"file": ("name.txt", pattern(0, 10000))})
                equal(pattern(0, 10000) in answer.content, True)
                with session.get(url + "/drip/5", stream=True) as answer:
                    equal([line for line in answer.iter_lines() if line], [b"data: %d" % number for number in range(5)])
                answer = session.get(url + "/status/500")
                equal((answer.status_code, answer.content), (500, b"body of the status"))
        with report.check(f"urllib3: {name}: a pool, and no connection more than it needs"):
            with urllib3.PoolManager(ca_certs=str(stand.ca), maxsize=2) as pool:
                for _ in range(20):
                    equal(pool.request("GET", url + "/bytes/100").data, pattern(0, 100))
                one = pool.connection_from_url(url)
                equal((one.num_connections, one.num_requests), (1, 20))
    for is_two in (False, True):
        name = "httpx: " + ("HTTP/2" if is_two else "HTTP/1.1")
        if is_two and not stand.has_h2:
            report.skip(name, "the edge does not offer h2")
            continue
        with report.check(name):
            # It changes what the context offers by ALPN, so it has one of its own.
            own = ssl.create_default_context(cafile=stand.ca)
            with httpx.Client(http2=is_two, verify=own, timeout=20, trust_env=False) as client:
                answer = client.get(https_url + "/bytes/100000")
                equal((answer.status_code, answer.content), (200, pattern(0, 100000)))
                equal(answer.http_version, "HTTP/2" if is_two else "HTTP/1.1")
                equal(client.post(https_url + "/echo", content=(b"x" * 1000 for _ in range(100))).content, b"x" * 100_000)
                equal(client.post(https_url + "/echo", content=pattern(0, 1_000_000)).content, pattern(0, 1_000_000))
                equal(b"x-forwarded-proto: https" in client.get(https_url + "/head").content.lower(), True)
    asyncio.run(python_async(report, stand, context))


async def python_async(report, stand, context):
    for name, url, of_tls in [("ws", f"ws://127.0.0.1:{stand.http}/ws", None), ("wss", f"wss://localhost:{stand.https}/ws", context)]:
        with report.check(f"websockets: {name}: text, bytes, fragments, pings, compressed and not, a clean close"):
            for compression in ("deflate", None):
                async with websockets.connect(url, ssl=of_tls, compression=compression, max_size=None) as socket_:
                    for message in ("Grüße", b"\0" * 100, "x" * 2_000_000, pattern(0, 1_000_000)):
                        await socket_.send(message)
                        equal(await socket_.recv(), message)
                    await socket_.send(["in ", "three ", "parts"])
                    equal(await socket_.recv(), "in three parts")
                    await asyncio.wait_for(await socket_.ping(), 10)
                    await socket_.close(1001, "going")
                    equal(socket_.protocol.close_rcvd.code, 1001)
    for name, url in [("http", f"http://127.0.0.1:{stand.http}"), ("https", f"https://localhost:{stand.https}")]:
        with report.check(f"aiohttp: {name}: a hundred requests at once, a stream both ways, a WebSocket"):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
                async def one(length):
                    async with session.get(f"{url}/bytes/{length}", ssl=context) as answer:
                        equal((answer.status, await answer.read()), (200, pattern(0, length)))

                await asyncio.gather(*(one(1000 + number) for number in range(100)))

                async def body():
                    for _ in range(100):
                        yield b"y" * 10_000

                async with session.post(url + "/stream", data=body(), ssl=context) as answer:
                    equal(len(await answer.read()), 1_000_000)
                async with session.post(url + "/echo", data=b"z" * 10000, expect100=True, ssl=context) as answer:
                    equal(await answer.read(), b"z" * 10000)
                async with session.ws_connect(url + "/ws", ssl=context) as socket_:
                    await socket_.send_str("from aiohttp")
                    equal(await socket_.receive_str(), "from aiohttp")


def program(report, name, command, seconds=300):
    """A program that writes a line for each check, and fails where one did."""
    done = run(*command, seconds=seconds)
    report.lines(done.stdout.decode())
    if done.returncode not in (0, 1) or not done.stdout:
        report.fail(name, f"ended by {done.returncode}: {done.stderr.decode()[-2000:]}")


def arguments(stand):
    return [f"http://127.0.0.1:{stand.http}", f"https://localhost:{stand.https}", stand.ca, "h2" if stand.has_h2 else "http/1.1"]


def java(report, stand):
    program(report, "java", ["java", HERE / "Clients.java", *arguments(stand)])


def go(report, stand):
    built = Path(stand.folder) / "go-clients"
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "CGO_ENABLED": "0"}
    done = run("go", "build", "-o", built, HERE / "clients.go", env=environment, seconds=600)
    if done.returncode:
        report.fail("go", done.stderr.decode())
        return
    program(report, "go", [built, *arguments(stand)])


PARTS = {"curl": curl, "haproxy": haproxy, "python": python, "go": go, "java": java, "load": load, "tls": tls.check, "slow": slow.check, "autobahn": autobahn.check}


def main():
    warnings.simplefilter("ignore", ResourceWarning)
    unknown = set(sys.argv[1:]) - set(PARTS)
    if unknown:
        sys.exit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="edge-clients-") as folder, Stand(folder) as stand:
        print(f"the edge offers {'h2 and http/1.1' if stand.has_h2 else 'http/1.1'}", flush=True)
        for name in sys.argv[1:] or PARTS:
            print(f"== {name}", flush=True)
            PARTS[name](report, stand)
        with report.check("the edge has logged no panic and is alive"):
            equal(stand.process.poll(), None)
            equal("panicked" in (stand.folder / "edge.log").read_text(), False)
        if report.failed:
            kept = HERE.parents[2] / "target" / "clients-edge.log"
            kept.write_bytes((stand.folder / "edge.log").read_bytes())
            print(f"the edge's log: {kept}")
    report.end()


if __name__ == "__main__":
    main()
