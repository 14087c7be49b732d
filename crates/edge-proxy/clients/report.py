"""Names of checks, and what became of them."""

import contextlib
import sys
import traceback


class Report:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], 0

    def ok(self, name, note=""):
        self.passed += 1
        print(f"ok {name}{': ' if note else ''}{note}", flush=True)

    def fail(self, name, why):
        self.failed.append(name)
        print(f"FAILED {name}: {why}", flush=True)

    def skip(self, name, why):
        self.skipped += 1
        print(f"skipped {name}: {why}", flush=True)

    @contextlib.contextmanager
    def check(self, name):
        try:
            yield
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            self.fail(name, f"{type(error).__name__}: {error} ({line.name}:{line.lineno}: {line.line})")
        else:
            self.ok(name)

    def lines(self, text):
        """Takes the lines of a program that writes them as this does."""
        for line in text.splitlines():
            kind, _, rest = line.partition(" ")
            print(line, flush=True)
            if kind == "ok":
                self.passed += 1
            elif kind == "FAILED":
                self.failed.append(rest)
            elif kind == "skipped":
                self.skipped += 1

    def end(self):
        print(f"{self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped", flush=True)
        sys.exit(1 if self.failed else 0)


def equal(got, wanted, what="it"):
    if got != wanted:
        shown = [repr(value) if len(repr(value)) < 300 else repr(value)[:300] + "…" for value in (got, wanted)]
        raise AssertionError(f"{what} is {shown[0]}, not {shown[1]}")
