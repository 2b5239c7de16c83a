"""What the clients did is in the books, to the nano-dollar."""

import collections
import fractions

from gateway import expect, expect_equal
from tap import wait_for

# Dollars per million tokens, with remainders: input, cached input, cache writes, output.
RATES = {
    "gpt-6.1-sol": ("1.234567891", "0.123456789", "1.543209877", "9.876543211"),
    "gpt-5.5": ("5", "0.5", "5", "30"),
    "text-embedding-3-small": ("0.02", "0.02", "0.02", "0"),
}


def prepare(gateway):
    """Prices that are rounded often, and the users of the other checks."""
    rates = RATES["gpt-6.1-sol"]
    names = ("--input", "--cached-input", "--cache-write", "--output")
    flags = [word for pair in zip(names, rates) for word in pair]
    gateway.cli("price", "set", "gpt-6.1-sol", "--list", "openai", "--like", "gpt-6.1-sol", *flags)
    gateway.alice = gateway.user("alice", "1000")
    gateway.poor = gateway.user("poor", "0.000001")
    gateway.suspended = gateway.user("gone")
    gateway.cli("user", "suspend", "gone")


def charge(model, usage):
    """Nano-dollars, rounded once, ties up: written anew here, so that it can disagree with the gateway."""
    total, cached, written, output = usage
    rates = [fractions.Fraction(rate) for rate in RATES[model]]
    counts = (total - cached - written, cached, written, output)
    nanos = sum(count * rate for count, rate in zip(counts, rates)) * 1000
    return int(nanos + fractions.Fraction(1, 2))


def nanos(text):
    return int(fractions.Fraction(text) * 10**9)


def settled(gateway):
    """Waits until no call is open, and gives the receipts."""
    wait_for(lambda: nanos(gateway.json("user", "show", "alice")["held"]) == 0, 20)
    return gateway.receipts()


def every_request_has_its_row(gateway):
    receipts = settled(gateway)
    sent = sum(int(receipt.get("attempts", 1)) for receipt in receipts)
    expect(receipts, "there are no receipts")
    expect_equal(sent, len(gateway.tap.posts()), "attempts in usage rows, against requests at the upstream")


def every_charge_is_what_the_upstream_counted(gateway, least=10):
    receipts = settled(gateway)
    billed, counted = collections.Counter(), collections.Counter()
    # Ended at the output limit: the upstream goes on, and may have told its usage to nobody any more.
    ended = {receipt["response_id"] for receipt in receipts if receipt["state"] == "limited"}
    for receipt in receipts:
        if not receipt["estimated"] and nanos(receipt["cost"]) and receipt["response_id"] not in ended:
            billed[receipt["model"], receipt["response_id"], nanos(receipt["cost"])] += 1
            collected = nanos(receipt["charge"]) + nanos(receipt["uncollected"])
            expect_equal(collected, nanos(receipt["cost"]), "charge without a markup, and what was not collected")
    for exchange in gateway.tap.posts():
        usage = exchange.usage()
        if exchange.status == 200 and usage and exchange.response_id() not in ended and (cost := charge(exchange.model, usage)):
            counted[exchange.model, exchange.response_id(), cost] += 1
    expect(sum(counted.values()) > least, f"only {sum(counted.values())} counted")
    expect(billed == counted, f"billed only: {billed - counted}; counted only: {counted - billed}")


def the_books_balance(gateway):
    gateway.cli("ledger", "verify")


CHECKS = [
    ("books: requests at the upstream = usage rows", every_request_has_its_row),
    ("books: charges = the upstream's count, to the nano-dollar", every_charge_is_what_the_upstream_counted),
    ("books: ledger verify", the_books_balance),
]
