"""Concurrent live calls: one reply per request, recorded as it arrives."""

import asyncio
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from data.generation.aiming import Progress, plan_requests
from data.generation.call_queue import CallQueue, DocumentQueue
from data.generation.calls import GenerationRun
from data.generation.coverage import Statements
from data.generation.methods import PassageRequest
from data.generation.passages import FILTERED, is_stale, read_records
from inference.budget import BudgetExhausted
from inference.client import Client
from inference.completions import PROMPT_CUT, CallFailed, CallStopped, PromptCut
from inference.parallel import for_each
from inference.rate_limiter import RateLimiter
from inference.server_facts import read_facts
from utils.errors import UserError
from utils.progress import progress_bar, short_count

LIST_TRIES = 3  # a reply without a list is paid for, so the tries are bounded
FIGURES_INTERVAL_S = 0.5  # between two updates of the bar's figures: 15 us, and 2.5 us per lost call


class LiveRun(GenerationRun):
    """Calls answered one by one, `concurrency` in flight at a time; with llama.cpp's server one per slot."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.failed_ids: set[str] = set()
        self._statements: dict[str, Statements] = {}

    async def run(self) -> None:
        """Send every missing request. Raises UserError if a call failed or the server refuses all calls."""
        calls = self.call_settings
        _raise_open_file_limit(calls.concurrency)
        limiter = RateLimiter(calls.requests_per_minute, calls.tokens_per_minute)
        self.client = Client(
            self.settings.model, calls.base_url, limiter, self.ledger, calls.timeout_s, calls.max_wait_s
        )
        self.refusal: UserError | None = None
        self.stopped, self.budget_spent, self.interrupted = self._has_target_tokens(), False, False
        self._next_figures_s = 0.0
        self._tokens_before = self.store.passage_tokens()
        self._planned = sum(bool(self.missing_list_request(uid)) + self.count_missing(uid) for uid in self.documents)
        try:
            await self._choose_order()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
            with progress_bar(total=self._planned, unit="call", leave=True) as self.bar:
                self.bar.waits_for = limiter.describe_wait
                try:
                    await self._send_all()
                    if not self.stopped or self._has_target_tokens():
                        self.bar.total = self.bar.n  # nothing is left, whatever was planned
                finally:
                    self.bar.set_postfix_str(self._figures(), refresh=False)
        finally:
            await self.client.close()
        self._report()

    async def _choose_order(self) -> None:
        """Choose the order of calls and their number in flight."""
        self._queue_type, self._concurrency = CallQueue, self.call_settings.concurrency
        if slots := (await read_facts(self.client)).slots:
            # Further calls would wait in the server, up to their timeout.
            self._concurrency = min(self._concurrency, slots)
            order = "the calls of a document follow each other, so that its prefix is computed once"
            if self.ledger.has_budget:
                order = "documents take turns, because of the budget"
            else:
                self._queue_type = DocumentQueue
            self.client.say([f"llama.cpp, slots: {slots}, calls in flight: {self._concurrency}; {order}"])

    async def _send_all(self) -> None:
        if not self.stopped:
            await self._send(self.missing_requests, len(self.settings.kinds), list(self.documents))
        while self.settings.aim_tellings and not self.stopped and (plan := self._plan()):
            self._planned += sum(map(len, plan.values()))
            self.bar.total = self._expected_calls(self.bar.n)
            await self._send(lambda uid, _, plan=plan: iter(plan.get(uid, [])), 1, list(plan))

    async def _send(
        self, requests: Callable[[str, int], Iterator[PassageRequest]], kinds: int, uids: list[str]
    ) -> None:
        """Send the missing list requests, and `requests(uid, kind)`, of documents in this order."""
        self.queue = self._queue_type(uids, self._untried_list_request, requests, kinds)
        await for_each(range(self._concurrency), self._work, self._concurrency)

    def _untried_list_request(self, uid: str) -> PassageRequest | None:
        request = self.missing_list_request(uid)
        return request if request and request.id not in self.failed_ids else None

    def _plan(self) -> dict[str, list[PassageRequest]]:
        """The next requests of --aim_tellings, by document, the least told one first; those that failed in this run are
        not repeated."""
        plans, told = {}, {}
        for uid, document in self.documents.items():
            statements = self._statements.setdefault(uid, Statements(document.title, document.text))
            path, done = self.store.path(uid), self.store.done[uid] | self.failed_ids
            records = list(read_records(path)) if path.exists() else []
            records = [record for record in records if not is_stale(record, document.source_sha256)]
            items = self.store.listed_items.get(uid, [])[: self.settings.max_listed_items]
            progress = Progress.from_records(statements, records)
            plans[uid] = plan_requests(document, statements, progress, items, done, self.settings)
            told[uid] = float((progress.tellings > 0).mean()) if len(progress.tellings) else 1.0
        return {uid: plans[uid] for uid in sorted(plans, key=lambda uid: (told[uid], uid)) if plans[uid]}

    async def _work(self, _: int) -> None:
        while request := await self.queue.next():
            success = False
            try:
                success = await self._answer(request)
                self._update_bar(request)
            except BudgetExhausted:
                self.budget_spent = True
                self._stop()
            except UserError as error:
                self.refusal = self.refusal or error
                self._stop()
            except CallStopped:
                pass
            if not success:
                self.failed_ids.add(request.id)
            self.queue.call_ended(request, request.document.uid, success)
            if self._has_target_tokens():
                self._stop()

    def _has_target_tokens(self) -> bool:
        """True if the passages on disk have the tokens that --target_tokens asks for."""
        target = self.call_settings.target_tokens
        return bool(target) and self.store.passage_tokens() >= target

    async def _answer(self, request: PassageRequest) -> bool:
        """Send a request and record its reply; False if the call failed or a list request got no list."""
        reply, earlier = None, self.store.list_tries.get(request.document.uid, 0)
        for attempt in range(earlier, earlier + LIST_TRIES):
            try:
                reply = await self.client.chat(
                    request.prompt(),
                    max_tokens=self.call_settings.max_tokens,
                    id=request.id,
                    cache_key=request.document.uid,
                    **self.request_fields(request, attempt),
                )
            except CallFailed as error:
                self.record_failure(request, str(error), error.reply if isinstance(error, PromptCut) else None)
                self.client.check_context()
                return False
            if self.record_reply(request, reply):
                return True
            if reply.finish_reason == FILTERED:
                break
        self.record_failure(request, self.last_error, reply, attempt + 1)
        return False

    def _stop(self) -> None:
        """Start no further call; calls in flight are paid for and may end."""
        self.stopped = True
        self.queue.stop()
        self.client.stop()

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # a second Ctrl-C exits at once
        print("\nwaiting for the calls in flight, which are paid for; Ctrl-C again exits now", file=sys.stderr)

    def _update_bar(self, request: PassageRequest) -> None:
        if request.kind == self.settings.list_kind:
            self._planned += self.count_missing(request.document.uid)
        self.bar.total = self._expected_calls(self.bar.n + 1)
        if time.monotonic() >= self._next_figures_s:
            self._next_figures_s = time.monotonic() + FIGURES_INTERVAL_S
            self.bar.set_postfix_str(self._figures(), refresh=False)
        self.bar.update()

    def _expected_calls(self, calls: int) -> int:
        """Calls of this run in all, after the first `calls`: the planned ones, or what --target_tokens needs at the mean
        length of the replies so far; --aim_tellings plans a few calls at a time."""
        target = self.call_settings.target_tokens
        written = self.store.passage_tokens() - self._tokens_before
        if not target or written <= 0:
            return self._planned
        needed = calls + math.ceil((target - self._tokens_before - written) * calls / written)
        return max(calls, needed if self.settings.aim_tellings else min(needed, self._planned))

    def _figures(self) -> str:
        """Figures at the end of the bar, which leaves room for 50 of 100 columns: troubles in place of the cache."""
        figures = self.ledger.summary()
        parts = [f"{short_count(figures['prompt_tokens'] + figures['completion_tokens'])} tokens"]
        if figures["usd"] is not None:
            parts.append(f"${figures['usd']:.2f}")
        troubles = [f"{n} {word}" for n, word in ((self.failed, "failed"), (self.client.refused, "limited")) if n]
        if figures["prompt_tokens"] and not troubles:
            parts.append(f"{figures['cached_tokens'] / figures['prompt_tokens']:.0%} cached")
        return " · ".join(parts + troubles)

    def _report(self) -> None:
        if self.incomplete:
            replies = "1 reply of this run is" if self.incomplete == 1 else f"{self.incomplete} replies of this run are"
            print(f"{replies} incomplete; step 2 trims those cut at --max_tokens")
        if cut := self.store.finish_reasons[PROMPT_CUT]:
            print(f"{cut} prompts were cut by the server; their replies are kept out; --retry_failed asks again")
        if self.refusal:
            raise self.refusal
        if self.interrupted:
            raise KeyboardInterrupt
        if self._has_target_tokens():
            print(f"the passages have {self.store.passage_tokens():,} tokens, which --target_tokens asks for")
        if self.budget_spent:
            print("The budget is spent; the same command with a larger budget resumes from here.")
        faults = []
        if self.failed:
            faults.append(
                f"{self.failed} calls failed (the last: {self.last_error}); all other replies are saved; "
                "the same command retries the failed calls, and --retry_failed those that were paid for"
            )
        if cut := [self.documents[uid] for uid in self.store.cut_lists if uid in self.documents]:
            faults.append(
                f"{len(cut)} lists of {self.settings.list_kind} were cut at --max_tokens (the last: {cut[-1].title}), and "
                "their documents have no passages; give a larger --max_tokens, or --retry_failed"
            )
        if faults:
            raise UserError("; ".join(faults))


def _raise_open_file_limit(concurrency: int) -> None:
    """Raise the soft limit on open files, often 1,024, if the connections need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = concurrency + 256
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
