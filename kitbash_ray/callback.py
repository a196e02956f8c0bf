"""Telling whoever queued a query that it has ended: its answer, posted to the address they gave.

At least once: a worker that dies between the post and its note of it leaves it to the next.
Not here: when it is due (actors/queue_worker.py).
"""

from __future__ import annotations

import asyncio
import logging

import httpx

from kitbash_ray.types import Answer, encode

log = logging.getLogger(__name__)

DELIVERED = "delivered"
#: Seconds before each try; the last ones are for a receiver that is being restarted.
TRIES_S = (0.0, 0.5, 3.0)
#: Seconds that a receiver may take; a worker of the queue waits for it.
TIMEOUT_S = 5.0


async def deliver(http: httpx.AsyncClient, url: str, answer: Answer) -> str:
    """Post `answer` as JSON; DELIVERED once the receiver says 2xx, else what went wrong at the last try."""
    problem = ""
    for pause in TRIES_S:
        await asyncio.sleep(pause)
        try:
            reply = await http.post(
                url, content=encode(answer), headers={"Content-Type": "application/json"}, timeout=TIMEOUT_S
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = str(error) or type(error).__name__
            continue
        if reply.is_success:
            return DELIVERED
        problem = f"the receiver replied {reply.status_code}"
    log.warning("the answer to %s could not be delivered: %s", answer.query_id, problem)
    return f"failed: {problem[:200]}"
