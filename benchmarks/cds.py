"""CDS Hooks calls at a running server: answer times, and the shares answered within the deadline and with the model's words.

    python -m benchmarks.cds --url http://127.0.0.1:8000 [--concurrency 8] [--calls 64] [--deadline 4.5] [--out bench-cds.json]

The server runs with MEDTHINK_EHR_AUTH=off on loopback. Every call is another patient's chart, so that none reuses a run; half of
them open a chart, half sign an order against an allergy. Nobody follows the links: with a slow engine, runs behind them take
up the engine while later calls wait, as they would in a clinic. Ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LIMIT_S = 600.0
_PROBLEMS = ("原发性高血压", "2型糖尿病", "冠心病", "慢性肾脏病3期", "哮喘", "甲状腺功能减退", "痛风", "高脂血症")
_MEDICINES = ("二甲双胍片0.5g", "氨氯地平片5mg", "阿托伐他汀钙片20mg", "厄贝沙坦片150mg", "左甲状腺素钠片50ug")
_LABS = (("血钾", 4.1, "mmol/L"), ("肌酐", 88, "umol/L"), ("血红蛋白", 132, "g/L"), ("糖化血红蛋白", 7.2, "%"))


@dataclass(frozen=True)
class Answered:
    """One call: seconds to its answer, its status, whether a critical card came, and whether the model was in time."""

    seconds: float
    status: int
    critical: bool
    in_time: bool


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--deadline", type=float, default=4.5, help="seconds; the server's MEDTHINK_EHR_DEADLINE_S")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    answers = asyncio.run(measure(options.url, options.calls, options.concurrency))
    found = figures(answers, options.deadline)
    print(f"{options.calls} calls, {options.concurrency} at a time: {json.dumps(found)}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if found["failed"] == 0 else 1


async def measure(url: str, calls: int, concurrency: int) -> list[Answered]:
    """All calls, `concurrency` at a time; progress goes to standard error."""
    left, answers = itertools.count(), list[Answered]()

    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:

        async def worker() -> None:
            while (n := next(left)) < calls:
                answers.append(await _call(client, n))
                print(f"\r{len(answers)}/{calls}", end="", file=sys.stderr, flush=True)

        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(worker() for _ in range(concurrency)))
    print(file=sys.stderr)
    return answers


def figures(answers: Sequence[Answered], deadline_s: float) -> dict[str, float]:
    """Times in milliseconds; shares of all calls."""
    times = sorted(answer.seconds for answer in answers)
    good = [answer for answer in answers if answer.status == 200]
    total = len(answers)
    return {
        "p50_ms": round(statistics.median(times) * 1000, 1),
        "p95_ms": round(times[min(total - 1, int(total * 0.95))] * 1000, 1),
        "max_ms": round(times[-1] * 1000, 1),
        "within_deadline": sum(a.status == 200 and a.seconds <= deadline_s for a in answers) / total,
        "with_model_text": sum(a.in_time for a in good) / total,
        "critical_cards": sum(a.critical for a in good) / total,
        "failed": total - len(good),
    }


async def _call(client: httpx.AsyncClient, n: int) -> Answered:
    service, body = chart(n)
    begun = time.perf_counter()
    response = await client.post(f"/cds-services/{service}", json=body)
    seconds = time.perf_counter() - begun
    cards = response.json().get("cards", [])
    critical = any(card["indicator"] == "critical" for card in cards)
    summaries = [card for card in cards if card["source"]["topic"]["code"] == "summary"]
    in_time = bool(summaries) and "正在分析" not in summaries[0]["summary"]
    return Answered(seconds, response.status_code, critical, in_time)


def chart(n: int) -> tuple[str, dict[str, Any]]:
    """The service and the body of call number `n`; odd ones sign amoxicillin for somebody allergic to penicillin."""
    patient = f"bench-{uuid.uuid4()}"

    def of(kind: str, **fields: Any) -> dict[str, Any]:
        return {"resource": {"resourceType": kind, "subject": {"reference": f"Patient/{patient}"}, **fields}}

    def bundle(*entries: dict[str, Any]) -> dict[str, Any]:
        return {"resourceType": "Bundle", "type": "searchset", "entry": list(entries)}

    def some(names: Sequence[str]) -> list[str]:
        return [names[(n + k) % len(names)] for k in range(3)]

    prefetch: dict[str, Any] = {
        "patient": {"resourceType": "Patient", "id": patient, "gender": "male", "birthDate": f"{1940 + n % 60}-05-01"},
        "conditions": bundle(*(of("Condition", code={"text": name}) for name in some(_PROBLEMS))),
        "medications": bundle(
            *(of("MedicationRequest", status="active", medicationCodeableConcept={"text": t}) for t in some(_MEDICINES))
        ),
        "observations": bundle(
            *(of("Observation", code={"text": t}, valueQuantity={"value": v, "unit": u}) for t, v, u in _LABS)
        ),
        "allergies": bundle(of("AllergyIntolerance", code={"text": "青霉素"})),
        "encounters": bundle(),
    }
    context: dict[str, Any] = {"userId": "Practitioner/bench", "patientId": patient}
    hook, service = "patient-view", "medthink-patient-summary"
    if n % 2:
        hook, service = "order-sign", "medthink-order-review"
        order = of("MedicationRequest", status="draft", medicationCodeableConcept={"text": "阿莫西林胶囊0.5g"})
        context["draftOrders"] = bundle(order)
    return service, {"hook": hook, "hookInstance": str(uuid.uuid4()), "context": context, "prefetch": prefetch}


if __name__ == "__main__":
    sys.exit(main())
