"""An edge on loopback with all that it needs: certificates, a membership, a server that sends it routes, and backends.

The edge is the example `loopback`, which runs the edge's own code. Its server is here: it answers the long poll of routes as the control plane does (whole, or what
changed since), and knows which table the edge has. Nothing leaves 127.0.0.0/8.
"""

import base64
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

HERE = Path(__file__).parent
PEM = "-----BEGIN CERTIFICATE-----"
# By HTTP: an address, so that no certificate makes the edge lead it to HTTPS. By HTTPS: a name that every resolver knows.
HTTP_HOST, HTTPS_HOST = "127.0.0.1", "localhost"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(what, condition, seconds=30):
    """Waits until the condition holds; gives what it gave."""
    end = time.monotonic() + seconds
    while not (got := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s still not: {what}")
        time.sleep(0.02)
    return got


def certificates(folder):
    """A CA, and a certificate of it for the hosts here. Names are of the files: ca, host."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "100", "-subj", "/CN=make clients",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", *key, "-keyout", "host.key", "-out", "host.csr", "-subj", "/CN=localhost")
    extensions = ["subjectAltName=DNS:localhost,IP:127.0.0.1", "extendedKeyUsage=serverAuth,clientAuth",
                  "basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"]
    (folder / "host.ext").write_text("\n".join(extensions))
    openssl("x509", "-req", "-in", "host.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "host.pem",
            "-days", "90", "-extfile", "host.ext")


class Server:
    """The control plane, as far as an edge asks it for routes."""

    def __init__(self, folder):
        self.changed = threading.Condition()
        self.counter, self.routes, self.history = 1, {}, {}
        # The table that the edge has: it names it when it asks for the next.
        self.acknowledged = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                url = urllib.parse.urlsplit(self.path)
                query = dict(urllib.parse.parse_qsl(url.query))
                wait = min(int(query.get("wait_ms", 0)) / 1000, 25)
                if url.path != "/v1/edge/routes":
                    # Nothing new there. What it waits for ends with the edge.
                    time.sleep(wait)
                    return self.send(204, None)
                table = outer.next_table(int(query["after"]), query.get("session"), wait)
                self.send(200 if table else 204, table)

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send(404, {"error": {"code": "not_found", "message": "only routes are here"}})

            do_PUT = do_POST

            def send(self, status, body):
                data = json.dumps(body).encode() if body is not None else b""
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                # An edge that ends closes its polls.
                if not isinstance(sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1], OSError):
                    super().handle_error(request, address)

        self.http = Quiet(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "host.pem", folder / "host.key")
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def next_table(self, after, session, wait):
        with self.changed:
            self.acknowledged = max(self.acknowledged, after)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.counter != after, wait)
            if self.counter == after:
                return None
            # The text of a session is the edge's own affair; it names the one that it was sent.
            table = {"generation": self.counter, "incarnation": "0000000000000001", "session": 1, "routes": self.routes}
            names = [self.history.get(counter) for counter in range(after + 1, self.counter + 1)]
            if session == "1" and after and all(names):
                table["since"] = after
                table["routes"] = {name: self.routes[name] for name in set().union(*names)}
            return table

    def publish(self, routes):
        """These routes are from now on where they lead; gives the number of the table."""
        with self.changed:
            self.counter += 1
            self.history[self.counter] = set(routes)
            self.history.pop(self.counter - 100, None)
            self.routes = {**self.routes, **routes}
            self.changed.notify_all()
            return self.counter

    def wait_acknowledged(self, counter, seconds=20):
        with self.changed:
            if not self.changed.wait_for(lambda: self.acknowledged >= counter, seconds):
                raise TimeoutError(f"the edge has not applied table {counter} after {seconds} s")


def route(ports, proxy_protocol=None):
    backends = [{"instance": f"{port:08x}", "address": f"127.0.0.1:{port}"} for port in ports]
    return {"env": {"app": "app", "env": "prod"}, "process": "web", "proxy_protocol": proxy_protocol, "backends": backends}


class Backend:
    """A process of `backend.py`, ready."""

    def __init__(self):
        self.port = free_port()
        self.process = subprocess.Popen([sys.executable, HERE / "backend.py", str(self.port)], stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def stop(self, seconds=30):
        """As a node stops an instance that edges were told to leave: a moment later, because a request may be on its way to it."""
        time.sleep(1)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stand:
    """The edge, its server and one backend; a context."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.data = self.folder / "edge"
        (self.data / "certificates").mkdir(parents=True)
        certificates(self.folder)
        self.ca = self.folder / "ca.pem"
        text = {name: (self.folder / name).read_text() for name in ("ca.pem", "host.pem", "host.key")}
        self.server = Server(self.folder)
        membership = {
            "version": 1, "server": self.server.url, "member": {"edge": "e1"}, "name": "edge", "region": "home",
            "cluster": "0011223344556677", "cluster_prefix": "fd12:3456:789a::", "mtu": 1420, "ca_pem": text["ca.pem"],
            "certificate_pem": text["host.pem"], "key_pem": text["host.key"],
            "wireguard_private_key": base64.b64encode(os.urandom(32)).decode(),
        }
        (self.data / "member.json").write_text(json.dumps(membership))
        kept = {"version": 1, "chain_pem": text["host.pem"] + text["ca.pem"], "key_pem": text["host.key"]}
        (self.data / "certificates" / "localhost.json").write_text(json.dumps(kept))
        for file in (self.data / "member.json", self.data / "certificates" / "localhost.json"):
            file.chmod(0o600)
        self.backend = Backend()
        self.http, self.https, self.metrics = free_port(), free_port(), free_port()
        self.log = open(self.folder / "edge.log", "wb")
        program = os.environ["EDGE_LOOPBACK"]
        addresses = [f"127.0.0.1:{port}" for port in (self.http, self.https, self.metrics)]
        self.process = subprocess.Popen([program, self.data, *addresses], stderr=self.log, stdout=self.log)
        table = self.server.publish({HTTP_HOST: route([self.backend.port]), HTTPS_HOST: route([self.backend.port])})
        self.server.wait_acknowledged(table)
        self.has_h2 = self.alpn() == "h2"

    def alpn(self):
        context = ssl.create_default_context(cafile=self.ca)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with socket.create_connection(("127.0.0.1", self.https)) as sock:
            with context.wrap_socket(sock, server_hostname=HTTPS_HOST) as tls:
                return tls.selected_alpn_protocol()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.backend.stop(5)
            self.log.close()

    def rss_kib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))
