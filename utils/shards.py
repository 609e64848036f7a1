"""Index of a checkpoint that is stored in several files (shards)."""

from pathlib import Path

from utils.errors import UserError
from utils.io import read_json

MAX_BYTES = 255  # of a file name


def shards_of_index(index: Path) -> list[str]:
    """The file names that an index lists. Raises UserError unless each is a file of weights in the index's folder."""
    content = read_json(index, "download it again")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: lists no files (weight_map); download it again")
    if not all(isinstance(name, str) and _is_file_name(name) for name in weight_map.values()):
        raise UserError(f"{index}: lists what is no file of weights in its folder, or lies outside its folder")
    return sorted(set(weight_map.values()))


def _is_file_name(name: str) -> bool:
    whole = Path(name).name == name != ".." and "\0" not in name and not name.endswith(".json")
    return whole and 0 < len(name.encode(errors="replace")) <= MAX_BYTES
