"""TODO data.generation.live_run."""

import asyncio
import resource
import signal
import sys

from data.generation.call_queue import CallQueue
from data.generation.calls import FILTERED, LIST_TRIES, GenerationRun
from data.generation.methods import PassageRequest
from inference.budget import BudgetExhausted
from inference.client import Client, for_each
from inference.completions import CallFailed, CallStopped
from inference.rate_limiter import RateLimiter
from utils.errors import UserError
from utils.progress import Progress


class LiveRun(GenerationRun):
    """Calls answered one by one, as many at once as --concurrency says."""

    async def run(self) -> None:
        args = self.args
        _allow_connections(args.concurrency)
        pace = RateLimiter(args.requests_per_minute, args.tokens_per_minute)
        self.client = Client(args.model, args.base_url, pace, self.ledger, args.timeout)
        self.schedule = CallQueue(list(self.documents), self.list_request, self.requests, len(self.recipe.kinds))
        self.refusal: UserError | None = None
        self.budget_spent = self.interrupted = False
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        async with Progress("call", self._figures) as self.progress:
            for uid in self.documents:
                self.progress.total += self.missing(uid) + bool(self.list_request(uid))
            try:
                await for_each(range(args.concurrency), self._work, args.concurrency)
            finally:
                await self.client.close()
        self._report()

    async def _work(self, _: int) -> None:
        while request := await self.schedule.next():
            uid, goes_on = request.document.uid, False
            try:
                goes_on = await self._answer(request)
                self.progress.done += 1
                if request.kind == self.recipe.list_kind:
                    self.progress.total += self.missing(uid)
            except BudgetExhausted:
                self.budget_spent = True
                self._stop()
            except UserError as error:
                self.refusal = self.refusal or error
                self._stop()
            except CallStopped:
                pass
            self.schedule.ended(request, uid, goes_on)

    async def _answer(self, request: PassageRequest) -> bool:
        """Ask, and record what comes; whether that was what was asked for."""
        reply = None
        for attempt in range(LIST_TRIES):
            try:
                reply = await self.client.chat(
                    request.text(),
                    max_tokens=self.args.max_tokens,
                    id=request.id,
                    cache_key=request.document.uid,
                    **self.settings(request, attempt),
                )
            except CallFailed as error:
                self.record_failure(request, str(error))
                return False
            if self.take(request, reply):
                return True
            if reply.finish_reason == FILTERED:
                break
        self.record_failure(request, self.last_error, reply)
        return False

    def _stop(self) -> None:
        """Begin nothing more; what is under way is paid for, and may end."""
        self.schedule.stop()
        self.client.stop()

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # the next one leaves
        print(
            "\nwaiting for the calls that are under way, which are paid for; Ctrl-C again leaves now", file=sys.stderr
        )

    def _figures(self) -> str:
        figures = self.ledger.summary()
        tokens = figures["prompt_tokens"] + figures["completion_tokens"]
        parts = [f"{tokens / 1e6:.2f}M tokens"]
        if figures["usd"] is not None:
            parts.append(f"${figures['usd']:.2f}")
        if figures["prompt_tokens"]:
            parts.append(f"{figures['cached_tokens'] / figures['prompt_tokens']:.0%} cached")
        parts += [f"{self.failed} failed"]
        if self.client.refused:
            parts.append(f"{self.client.refused} asked to wait")
        return " · ".join(parts)

    def _report(self) -> None:
        """Say how the run ended; raise where it did not end well."""
        if self.poor:
            print(f"{self.poor} replies of this run did not end by themselves; step 2 leaves them out")
        if self.refusal:
            raise self.refusal
        if self.interrupted:
            raise KeyboardInterrupt
        if self.budget_spent:
            print("The budget is spent; the same command with a larger one goes on from here.")
        if self.failed:
            raise UserError(
                f"{self.failed} calls failed (the last: {self.last_error}); the others are saved, "
                "and the same command tries the failed ones again"
            )


def _allow_connections(concurrency: int) -> None:
    """Raise the limit of open files, which is often 1,024, where the calls need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = concurrency + 256
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
