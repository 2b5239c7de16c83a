"""Hooks of Schemathesis: each request comes from an address of its own, so that none has to wait because others before it
had no key."""

import ipaddress
import random

import schemathesis


@schemathesis.hook
def before_call(_context, case, _kwargs):
    case.headers = dict(case.headers or {}) | {"X-Forwarded-For": str(ipaddress.IPv4Address(random.getrandbits(32)))}
