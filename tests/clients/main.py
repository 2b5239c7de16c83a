"""Every check of the real clients: one line each, and `N passed, N failed` at the end."""

import concurrent.futures
import os
import sys
import threading
import time
import traceback

os.environ["NO_PROXY"] = "*"

import test_codex
import test_connect
import test_endpoints
import test_node
import test_openai
import test_openapi
import test_refusals
import test_sessions
import test_translation
import test_versions
import test_websocket
import test_books
from gateway import Failed, Gateway


class Report:
    """Counts and prints; checks may run at the same time."""

    def __init__(self):
        self.passed = self.failed = 0
        self.lock = threading.Lock()

    def line(self, name, seconds, why=None, note=None):
        with self.lock:
            if why is None:
                self.passed += 1
                print(f"ok      {name} ({seconds:.1f} s)" + (f"\n        {note}" if note else ""), flush=True)
            else:
                self.failed += 1
                print(f"FAILED  {name} ({seconds:.1f} s)\n        {why}", flush=True)

    def run(self, name, check, gateway):
        start = time.monotonic()
        why = note = None
        try:
            note = check(gateway)
        except Failed as failed:
            why = str(failed)
        except Exception:
            why = traceback.format_exc(limit=-3)
        self.line(name, time.monotonic() - start, why, note)


def wanted(name):
    return not sys.argv[1:] or any(word in name for word in sys.argv[1:])


def main():
    report, begun = Report(), time.monotonic()
    gateway = Gateway("main")
    try:
        test_books.prepare(gateway)
        groups = [test_openai.CHECKS, test_node.CHECKS, test_codex.CHECKS, test_versions.CHECKS, test_sessions.CHECKS]
        groups += [test_translation.CHECKS, test_websocket.CHECKS, test_connect.CHECKS]
        for name, check in [pair for group in groups for pair in group if wanted(pair[0])]:
            report.run(name, check, gateway)
        # Codex waits between its tries, so these run side by side, and beside what takes its time on a gateway of its own.
        with concurrent.futures.ThreadPoolExecutor(7) as pool:
            for name, check in test_openapi.CHECKS + test_refusals.CHECKS:
                if wanted(name):
                    pool.submit(report.run, name, check, gateway)
        for name, check in test_books.CHECKS:
            if wanted(name):
                report.run(name, check, gateway)
    finally:
        gateway.stop()
    test_endpoints.run(report, wanted)
    print(f"in {time.monotonic() - begun:.0f} s")
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed or not report.passed else 0


if __name__ == "__main__":
    sys.exit(main())
