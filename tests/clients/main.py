"""Every check of the real clients: one line each, and `N passed, N failed` at the end."""

import concurrent.futures
import os
import sys
import threading
import time
import traceback

os.environ["NO_PROXY"] = "*"

import test_codex
import test_node
import test_openai
import test_openapi
import test_books
from gateway import Failed, Gateway


class Report:
    """Counts and prints; checks may run at the same time."""

    def __init__(self):
        self.passed = self.failed = 0
        self.lock = threading.Lock()

    def line(self, name, seconds, why=None):
        with self.lock:
            if why is None:
                self.passed += 1
                print(f"ok      {name} ({seconds:.1f} s)", flush=True)
            else:
                self.failed += 1
                print(f"FAILED  {name} ({seconds:.1f} s)\n        {why}", flush=True)

    def run(self, name, check, gateway):
        start = time.monotonic()
        why = None
        try:
            check(gateway)
        except Failed as failed:
            why = str(failed)
        except Exception:
            why = traceback.format_exc(limit=-3)
        self.line(name, time.monotonic() - start, why)


def wanted(name):
    return not sys.argv[1:] or any(word in name for word in sys.argv[1:])


def main():
    report, begun = Report(), time.monotonic()
    gateway = Gateway("main")
    try:
        test_books.prepare(gateway)
        groups = [test_openai.CHECKS, test_node.CHECKS, test_codex.CHECKS, test_openapi.CHECKS]
        for name, check in [pair for group in groups for pair in group if wanted(pair[0])]:
            report.run(name, check, gateway)
        # Codex waits between its tries, so these run side by side.
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for name, check in test_codex.REFUSALS:
                if wanted(name):
                    pool.submit(report.run, name, check, gateway)
        for name, check in test_books.CHECKS:
            if wanted(name):
                report.run(name, check, gateway)
    finally:
        gateway.stop()
    print(f"in {time.monotonic() - begun:.0f} s")
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed or not report.passed else 0


if __name__ == "__main__":
    sys.exit(main())
