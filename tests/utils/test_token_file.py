import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.token_file import TokenFile, write_tokens

DOCUMENTS = [np.arange(5), np.arange(3) + 100, np.arange(0), np.arange(7)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.bin"
    write_tokens(path, [DOCUMENTS[:2], [], DOCUMENTS[2:]], {"tokenizer": "t", "tokenizer_sha256": "s"})
    return path


def test_round_trip(path):
    file = TokenFile(path, "make it")
    file.verify()
    assert np.array_equal(np.memmap(path, dtype=np.int32), np.concatenate(DOCUMENTS))
    assert all(np.array_equal(a, b) for a, b in zip(file.documents(), DOCUMENTS, strict=True))
    assert file.meta["tokens"] == 15
    assert file.meta["documents"] == 4


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "folder", "loop"])
def test_damage_is_reported(path, suffix, damage):
    target = path.with_suffix(suffix)
    content = target.read_bytes()
    target.unlink()
    if damage == "cut":
        target.write_bytes(content[:-3])
    elif damage == "empty":
        target.write_bytes(b"")
    elif damage == "folder":
        target.mkdir()
    elif damage == "loop":
        target.symlink_to(target)
    with pytest.raises(UserError, match="make it"):
        TokenFile(path, "make it")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".bin", ".idx", ".json"]),
    change=st.sampled_from(["flip", "cut", "insert", "zeros", "swap"]),
    at=st.floats(0, 1, exclude_max=True),
    byte=st.integers(1, 255),
)
def test_damage_is_detected_or_harmless(path, suffix, change, at, byte):
    """Any change in one of the files raises a UserError, or the original content is read."""
    target = path.with_suffix(suffix)
    content = target.read_bytes()
    offset = int(at * len(content))
    damaged = {
        "flip": content[:offset] + bytes([content[offset] ^ byte]) + content[offset + 1 :],
        "cut": content[:offset],
        "insert": content[:offset] + bytes([byte]) * 8 + content[offset:],
        "zeros": content[:offset] + bytes(len(content) - offset),
        "swap": content[8:] + content[:8],
    }[change]
    target.write_bytes(damaged)
    try:
        file = TokenFile(path, "make it")
        file.verify()
        file.check_vocabulary("s", 103, "m")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(file.ids, np.concatenate(DOCUMENTS))
        assert list(file.ends) == [5, 8, 8, 15]
    finally:
        target.write_bytes(content)


def test_changed_content_of_the_same_length_is_rejected(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        TokenFile(path, "make it").verify()


def test_other_vocabularies_are_rejected(path):
    file = TokenFile(path, "")
    file.check_vocabulary("s", 103, "m")
    with pytest.raises(UserError, match="--tokenizer m"):
        file.check_vocabulary("other", 103, "m")
    with pytest.raises(UserError, match="token id 102"):
        file.check_vocabulary("s", 102, "m")
