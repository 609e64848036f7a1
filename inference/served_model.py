"""Identity of a model on a server: address, name, and its answer to one fixed request.

A server may put another model behind the same name; answers, vectors and scores of the two must not be mixed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from inference.client import Client
from inference.completions import CallFailed
from utils.errors import UserError
from utils.io import Journal, read_journal

# Unusual enough that models continue it in different words, likely enough that one model always does so in the same.
FIXED_TEXT = "The keeper of the lighthouse opened the ledger and wrote that on the night of the storm the"
FIXED_TOKENS = 16
OTHER_MODEL = "the earlier replies are by another model behind the same name; kept, and not used"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOLERANCE = 0.01  # of the largest number: servers compute in batches, with rounding errors of 1e-4 to 1e-3


@dataclass(frozen=True)
class ServedModel:
    """`root` is the folder or base model that the server lists (vLLM). `fixed` is the answer to the fixed request, a
    text or a list of numbers; None if two requests had two answers."""

    address: str
    model: str
    root: str | None
    fixed: Any

    def is_same(self, record: dict | None) -> bool | None:
        """True if `record` is of the same model; None if that is unknown."""
        if not record:
            return None
        if (record["address"], record["model"]) != (self.address, self.model):
            return False
        if record["root"] and self.root and record["root"] != self.root:
            return False
        if record["fixed"] is None or self.fixed is None:
            return None
        return agree(record["fixed"], self.fixed)

    def is_same_at_any_port(self, record: dict) -> bool | None:
        """`is_same`, but a server on this machine may have another port than before, as llama_server.py's has at each
        start, if its answer to the fixed request is known."""
        hosts = [urlsplit(address).hostname for address in (record["address"], self.address)]
        if set(hosts) <= set(LOOPBACK) and record["fixed"] is not None and self.fixed is not None:
            record = record | {"address": self.address}
        return self.is_same(record)


def agree(one: Any, other: Any) -> bool:
    """True if two answers are equal; numbers up to TOLERANCE."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return float(np.abs(np.subtract(one, other)).max()) <= TOLERANCE * float(np.abs([one, other]).max())
    return one == other


async def identify(client: Client, answer: Callable[[], Awaitable[Any]], flag: str) -> ServedModel:
    """Ask the fixed request twice. Raises UserError, which names `flag`, if it fails."""
    try:
        first, second = await answer(), await answer()
    except CallFailed as error:
        raise UserError(f"{flag} {client.model}: {error}; nothing was asked; finished work is saved") from error
    if first == "" or not agree(first, second):  # "": the reasoning of a model is longer
        client.say([f"{client.model}: no fixed reply to a fixed request, so a change of the model is not noticed"])
        first = None
    return ServedModel(client.url, client.model, await _root(client), first)


async def identify_by_completion(client: Client, flag: str) -> ServedModel:
    async def answer() -> str:
        settings = {"max_tokens": FIXED_TOKENS, "temperature": 0.0, "seed": 0}
        return (await client.complete(FIXED_TEXT, 1, **settings))[0]

    return await identify(client, answer, flag)


async def identify_by_chat(client: Client, flag: str) -> ServedModel:
    async def answer() -> str:
        return (await client.chat(FIXED_TEXT, max_tokens=FIXED_TOKENS, temperature=0.0, seed=0)).text

    return await identify(client, answer, flag)


async def _root(client: Client) -> str | None:
    """vLLM's `root` of the model, where it is not its name. `created` changes with every start of a server."""
    models = (await client.get("/models")).get("data")
    for model in models if isinstance(models, list) else []:
        if isinstance(model, dict) and model.get("id") == client.model:
            root = model.get("root")
            return root if isinstance(root, str) and root != client.model else None
    return None


def journal_of(
    path: Path, served: ServedModel, say: Callable[[list[str]], None], verify: Callable[[Path], bool | None]
) -> Path:
    """The journal with the records of a served model: `path`, or the same name with a number where `path` holds those
    of another model. Its first record is {"server": …}; journals by earlier versions have none, and `verify` says
    whether they are of the same model, None if that is unknown: then they are used. All but the usual is said."""
    number, journal, others = 1, path, []
    while journal.exists() and journal.stat().st_size:
        record = server_record(journal)
        same = served.is_same(record) if record else verify(journal)
        if same is None and served.fixed is not None:  # else `identify` has said so
            say([f"{journal}: not known to be of the same model, and used; delete it to ask again"])
        if same is not False:
            return journal
        others.append(str(journal))
        number += 1
        journal = path.with_name(f"{path.stem}-{number}{path.suffix}")
    if others:
        say([f"{', '.join(others)}: {OTHER_MODEL}"])
    return journal


def server_record(path: Path) -> dict | None:
    """The served model of a journal; None if it does not say."""
    return next((record["server"] for record in read_journal(path) if "server" in record), None)


def own_records(journal: Journal, served: ServedModel) -> list[dict]:
    """The records of a journal that `journal_of` chose, without its server's, which is added where it lacks."""
    if not any("server" in record for record in journal.records):
        journal.append({"server": asdict(served)})
    return [record for record in journal.records if "server" not in record]
