"""Import of a published EntiGraph corpus into journals of passages."""

from collections import Counter
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
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    if not files:
        raise UserError(f"--import_json {folder}: contains no .json file; name the folder of the published corpus")
    counts, unknown = Counter(document.title for document in documents), 0
    titles = {document.title: document for document in documents}
    for file in files:
        value = read_json(file, "name the folder of the published corpus")
        if not _is_published(value):
            raise UserError(f"{file}: not a JSON list of entities (a list), summary and texts; move it elsewhere")
        if counts[file.stem] > 1:
            raise UserError(f"{file}: {counts[file.stem]} documents have this title; rename all but one in the corpus")
        unknown += file.stem not in titles
        document = titles.get(file.stem) or Document(uid_of(file.stem), file.stem, "", "", "")
        list_id = methods.list_request(document, settings).id
        store.open(document.uid, list_id)
        for record in _records(document, list_id, value):
            if record["id"] not in store.done[document.uid]:
                origin = {"model": settings.model, "prompt": "imported", "finish_reason": FINISHED, "usage": {}}
                store.append(document.uid, record | origin, list_id)
    if unknown:
        print(
            f"{unknown} of {len(files)} files are named after no title of the task; their passages stand by themselves"
        )


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
