#!/usr/bin/env python3
"""Adds a survey of published rates to src/pricing/catalogue.json.

    tools/catalogue.py PRICES.json src/pricing/catalogue.json > new.json

Rows that are there stay, to the letter: databases have them, and take only what is new. What a survey says otherwise
than a model's last row is a row more, from the survey's date.

Rates are exact decimal strings, in dollars per million tokens (fees: per thousand calls). A null is no rate. A
vendor's zero is not taken over, because only an operator may write zero. A model whose price has a part that the
gateway cannot express or meter (a fee per request, per image, per search-model call) is left out.
"""

import json
import sys
from decimal import Decimal
from fractions import Fraction

TEXT = {"chat", "responses", "completion"}
CLASSES = {
    "input": "input",
    "cached_input": "cached_input",
    "cached": "cached_input",
    "cache_write": "cache_write",
    "cache_write_12h": "cache_write_12h",
    "audio_in": "audio_input",
    "output": "output",
    "reasoning_output": "reasoning_output",
    "audio_out": "audio_output",
}
TIERS = {"flex", "priority", "ultrafast", "batch"}
IMAGE = {"input": "image_text_input", "image_in": "image_input", "output": "image_text_output", "image_out": "image_output"}


def rates(source, classes=CLASSES):
    return {
        ours: source[theirs]
        for theirs, ours in classes.items()
        if isinstance(source.get(theirs), str) and source[theirs] != "0"
    }


def card(source):
    made = {"rates": rates(source)}
    long = source.get("long_context")
    if long:
        inclusive = ">=" in long["rule"]
        made["steps"] = [{"above": long["threshold"] - (1 if inclusive else 0), "rates": rates(long)}]
    return made


def window(entry):
    hours = entry["hours_utc"]
    return {"days": entry["weekdays"], "hours": [hours] if isinstance(hours, str) else hours}


def audio(row, modes):
    kind = "transcription" if "audio_transcription" in modes else "speech"
    made = {"kind": kind, "rates": rates(row)}
    minute, characters = row.get("per_minute"), row.get("per_million_characters")
    if minute:
        # Dollars per million seconds, which has to be exact.
        seconds = Fraction(minute) * 1_000_000 / 60
        if (seconds * 10**9).denominator != 1:
            return None
        made["rates"] = {"seconds": decimal(seconds)}
    elif characters:
        made["rates"] = {"characters": characters}
    elif not {"input", "output"} <= made["rates"].keys():
        return None
    for name, limit in (("max_input", row.get("max_input_tokens")), ("max_output", row.get("max_output_tokens"))):
        if limit:
            made[name] = limit
    return made


def decimal(number):
    return format((Decimal(number.numerator) / Decimal(number.denominator)).normalize(), "f")


def price(row):
    modes = set(row["modes"])
    if "image_generation" in modes and row["provider"] == "openai" and row["model"].startswith(("gpt-image", "chatgpt-image")):
        made = {"kind": "image", "rates": rates(row, IMAGE)}
        return made if "image_output" in made["rates"] else None
    if modes <= {"audio_transcription", "audio_speech"} and row["provider"] == "openai":
        return audio(row, modes)
    kind = "embedding" if "embedding" in modes else "text"
    if kind == "text" and not modes & TEXT:
        return None
    if any(row.get(part) is not None for part in ("per_image", "per_second", "per_minute", "per_session", "video_in", "image_out")):
        return None
    if row.get("image_in") not in (None, row.get("input")) or isinstance(row.get("web_search_per_1k_calls"), dict):
        return None
    if "search-preview" in row["model"] or "search-api" in row["model"] or "deep-research" in row["model"]:
        return None
    made = {"kind": kind}
    steps = row.get("tiered_by_input")
    if steps:
        made["rates"] = rates(steps[0])
        made["steps"] = [{"above": step["from_exclusive"], "rates": rates(step)} for step in steps[1:]]
    else:
        made.update(card(row))
    if "input" not in made["rates"] or ("output" not in made["rates"]) == (kind == "text"):
        return None
    tiers = {name: card(tier) for name, tier in (row.get("tiers") or {}).items() if name in TIERS and "input" in rates(tier)}
    if tiers:
        made["tiers"] = dict(sorted(tiers.items()))
    if row.get("off_peak"):
        off = row["off_peak"]
        made["off_peak"] = {"windows": [window(entry) for entry in off["windows_utc"]], "rates": rates(off)}
    if row.get("regional_uplift"):
        made["regional_uplift"] = row["regional_uplift"]
    if row["provider"] == "openai" and kind == "text":
        reasoning = not row["model"].startswith(("gpt-4", "gpt-3", "chatgpt-4o"))
        made["fees"] = {"web_search": "10", "web_search_preview": "10" if reasoning else "25", "file_search": "2.5", "container": "30"}
    limits = {"context_window": row.get("context_window"), "max_input": row.get("max_input_tokens"), "max_output": row.get("max_output_tokens")}
    if kind == "embedding":
        del limits["max_output"]
    made.update({name: limit for name, limit in limits.items() if limit})
    return made


def main():
    survey = json.load(open(sys.argv[1], encoding="utf-8"))
    rows = json.load(open(sys.argv[2], encoding="utf-8"))["prices"]
    last = {(row["list"], row["model"]): row["price"] for row in rows}
    for row in survey["models"]:
        made = price(row)
        if made and made != last.get((row["provider"], row["model"])):
            rows.append({"list": row["provider"], "model": row["model"], "from": row["as_of"][:10], "price": made})
    rows.sort(key=lambda row: (row["list"], row["model"], row["from"]))
    head = json.dumps({"as_of": max(row["from"] for row in rows)})[:-1]
    print(head + ', "prices": [')
    print(",\n".join(json.dumps(row, separators=(",", ":")) for row in rows))
    print("]}")


main()
