"""Import of a published EntiGraph corpus into journals of passages."""

from collections.abc import Iterator
from pathlib import Path

from data.generation import methods
from data.generation.methods import GenerationSettings
from data.generation.passages import FINISHED, PassageStore
from tasks.documents import Document, uid_of
from utils.errors import UserError
from utils.io import read_json, sha256_text


def import_passages(folder: Path, documents: list[Document], settings: GenerationSettings, store: PassageStore) -> None:
    """Append the passages of JSON files, one per document: a list of [entities, summary, text, text, ...].

    A file named after a title of the task belongs to that document, whose generation then continues from
    the imported entities. The files do not tell which entities a text is about.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"--import_json {folder}: contains no .json file; name the folder of the published corpus")
    titles = {document.title: document for document in documents}
    for file in files:
        value = read_json(file, "name the folder of the published corpus")
        if not _is_published(value):
            raise UserError(f"{file}: not a JSON list of entities (a list), summary and texts; move it elsewhere")
        document = titles.get(file.stem) or Document(uid_of(file.stem), file.stem, "", "", "")
        list_id = methods.list_request(document, settings).id
        store.open(document.uid, list_id)
        for record in _records(document, list_id, value):
            if record["id"] not in store.done[document.uid]:
                origin = {"model": settings.model, "prompt": "imported", "finish_reason": FINISHED, "usage": {}}
                store.append(document.uid, record | origin, list_id)


def _records(document: Document, list_id: str, value: list) -> Iterator[dict]:
    names, summary, *texts = value
    entities = methods.distinct_names([" ".join(name.split()) for name in names])
    yield {"kind": "entities", "entities": entities, "summary": summary, "id": list_id}
    for text in texts:
        id = sha256_text(f"{document.uid}\n{text}", 24)
        yield {"id": id, "kind": "imported", "entities": [], "text": text}


def _is_published(value: object) -> bool:
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], list):
        return False
    return all(isinstance(text, str) for text in value[0] + value[1:])
