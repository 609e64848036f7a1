"""Concurrent live calls: one reply per request, recorded as it arrives."""

import asyncio
import resource
import signal
import sys
import time

from data.generation.call_queue import CallQueue, DocumentQueue
from data.generation.calls import GenerationRun
from data.generation.methods import PassageRequest
from data.generation.passages import FILTERED
from inference.budget import BudgetExhausted
from inference.client import Client, for_each
from inference.completions import PROMPT_CUT, CallFailed, CallStopped, PromptCut
from inference.llama_cpp import slots_of
from inference.rate_limiter import RateLimiter
from utils.cli import progress_bar
from utils.errors import UserError

LIST_TRIES = 3  # a reply without a list is paid for, so the tries are bounded
FIGURES_INTERVAL_S = 0.5  # between two updates of the bar's figures: 15 us, and 2.5 us per lost call


class LiveRun(GenerationRun):
    """Calls answered one by one, `concurrency` in flight at a time; with llama.cpp's server one per slot."""

    async def run(self) -> None:
        """Send every missing request. Raises UserError if a call failed or the server refuses all calls."""
        calls = self.call_settings
        _raise_open_file_limit(calls.concurrency)
        limiter = RateLimiter(calls.requests_per_minute, calls.tokens_per_minute)
        self.client = Client(self.settings.model, calls.base_url, limiter, self.ledger, calls.timeout_s)
        self.refusal: UserError | None = None
        self.budget_spent = self.interrupted = False
        self._next_figures_s = 0.0
        total = sum(bool(self.missing_list_request(uid)) + self.count_missing(uid) for uid in self.documents)
        try:
            concurrency = await self._set_up_queue()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
            with progress_bar(total=total, unit="call") as self.bar:
                try:
                    await for_each(range(concurrency), self._work, concurrency)
                finally:
                    self.bar.set_postfix_str(self._figures(), refresh=False)
        finally:
            await self.client.close()
        self._report()

    async def _set_up_queue(self) -> int:
        """Choose the order of calls; returns the number of calls in flight."""
        requests = (list(self.documents), self.missing_list_request, self.missing_requests, len(self.settings.kinds))
        concurrency, slots = self.call_settings.concurrency, await slots_of(self.client)
        if not slots:
            self.queue = CallQueue(*requests)
            return concurrency
        concurrency = min(concurrency, slots)  # further calls would wait in the server, up to their timeout
        order = "the calls of a document follow each other, so that its prefix is computed once"
        self.queue = DocumentQueue(*requests)
        if self.ledger.has_budget:
            order = "documents take turns, because of the budget"
            self.queue = CallQueue(*requests)
        self.client.say([f"llama.cpp, slots: {slots}, calls in flight: {concurrency}; {order}"])
        return concurrency

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
            self.queue.call_ended(request, request.document.uid, success)

    async def _answer(self, request: PassageRequest) -> bool:
        """Send a request and record its reply; False if the call failed or a list request got no list."""
        reply = None
        for attempt in range(LIST_TRIES):
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
        self.record_failure(request, self.last_error, reply)
        return False

    def _stop(self) -> None:
        """Start no further call; calls in flight are paid for and may end."""
        self.queue.stop()
        self.client.stop()

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # a second Ctrl-C exits at once
        print("\nwaiting for the calls in flight, which are paid for; Ctrl-C again exits now", file=sys.stderr)

    def _update_bar(self, request: PassageRequest) -> None:
        if request.kind == self.settings.list_kind:
            self.bar.total += self.count_missing(request.document.uid)
        if time.monotonic() >= self._next_figures_s:
            self._next_figures_s = time.monotonic() + FIGURES_INTERVAL_S
            self.bar.set_postfix_str(self._figures(), refresh=False)
        self.bar.update()

    def _figures(self) -> str:
        figures = self.ledger.summary()
        tokens = figures["prompt_tokens"] + figures["completion_tokens"]
        parts = [f"{tokens / 1e6:.2f}M tokens"]
        if figures["usd"] is not None:
            parts.append(f"${figures['usd']:.2f}")
        if figures["prompt_tokens"]:
            parts.append(f"{figures['cached_tokens'] / figures['prompt_tokens']:.0%} cached")
        parts.append(f"{self.failed} failed")
        if self.client.refused:
            parts.append(f"{self.client.refused} rate-limited")
        return " · ".join(parts)

    def _report(self) -> None:
        if self.incomplete:
            print(f"{self.incomplete} replies of this run are incomplete (truncated or filtered); step 2 omits them")
        if cut := self.store.finish_reasons[PROMPT_CUT]:
            print(f"{cut} prompts were cut by the server; their replies are kept out; --retry_failed asks again")
        if self.refusal:
            raise self.refusal
        if self.interrupted:
            raise KeyboardInterrupt
        if self.budget_spent:
            print("The budget is spent; the same command with a larger budget resumes from here.")
        if self.failed:
            raise UserError(
                f"{self.failed} calls failed (the last: {self.last_error}); all other replies are saved; "
                "the same command retries the failed calls, and --retry_failed those that were paid for"
            )


def _raise_open_file_limit(concurrency: int) -> None:
    """Raise the soft limit on open files, often 1,024, if the connections need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = concurrency + 256
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
