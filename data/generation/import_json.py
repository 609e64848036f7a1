"""TODO data.generation.import_json."""

import hashlib
from pathlib import Path

from data.generation import methods
from data.generation.methods import GenerationSettings
from data.generation.passages import FINISHED, PassageStore
from tasks.documents import Document, uid_of
from utils.errors import UserError
from utils.io import read_json


def import_published(folder: Path, documents: list[Document], recipe: GenerationSettings, store: PassageStore) -> None:
    """Take over passages published as JSON files, one a document: a list of the entities (a list),
    the summary, and the texts. A file named like a title of the task goes to that document, so that
    generation goes on from its entities; which entities a text was about is not known."""
    if recipe.method != "entigraph":
        raise UserError("--import_json: what was published is EntiGraph's; leave --method out")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"--import_json {folder}: holds no .json file")
    titles = {document.title: document for document in documents}
    for file in files:
        value = read_json(file, "name the folder of the published corpus")
        if not _is_published(value):
            raise UserError(f"{file}: not a JSON list of entities (a list), summary and texts")
        document = titles.get(file.stem) or Document(uid_of(file.stem), file.stem, "", "", "")
        listing = methods.list_request(document, recipe)
        store.open(document.uid, listing.id)
        entities = methods.distinct_names([" ".join(name.split()) for name in value[0]])
        head = {"kind": "entities", "entities": entities, "summary": value[1]}
        records = [head | {"id": listing.id}]
        for text in value[2:]:
            id = hashlib.sha256(f"{document.uid}\n{text}".encode()).hexdigest()[:24]
            records.append({"id": id, "kind": "imported", "entities": [], "text": text})
        for record in records:
            if record["id"] not in store.done[document.uid]:
                tail = {"model": recipe.model, "prompt": "imported", "finish_reason": FINISHED, "usage": {}}
                store.append(document.uid, record | tail, listing.id)
    print(f"{len(files)} documents, {sum(map(len, store.done.values())):,} records in {store.folder}")


def _is_published(value: object) -> bool:
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], list):
        return False
    return all(isinstance(text, str) for text in value[0] + value[1:])
