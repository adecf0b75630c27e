"""What every ``ports.ModelStore`` promises."""

from pathlib import Path

import pytest

from matl_common.errors import IntegrityError
from matl_common.ids import digest_of
from matl_coordinator.ports import ModelStore

CONTENT = b"a model"
DIGEST = digest_of(CONTENT)


def incoming(store: ModelStore, content: bytes = CONTENT, *, name: str = "candidate") -> Path:
    path = store.incoming / name
    path.write_bytes(content)
    return path


def test_an_adopted_file_is_found_by_its_digest(model_store: ModelStore) -> None:
    source = incoming(model_store)
    assert not model_store.has(DIGEST)
    assert model_store.adopt(source) == DIGEST
    assert model_store.has(DIGEST)
    assert model_store.path(DIGEST).name == f"{DIGEST}.safetensors"
    assert model_store.path(DIGEST).read_bytes() == CONTENT
    assert not source.exists()


def test_adopting_the_same_content_again_is_harmless(model_store: ModelStore) -> None:
    for name in ("first", "second", f"{DIGEST}.safetensors"):
        assert model_store.adopt(incoming(model_store, name=name)) == DIGEST
    assert list(model_store.digests()) == [DIGEST]
    assert list(model_store.incoming.iterdir()) == []


def test_adopting_a_file_that_was_moved_before_is_harmless(model_store: ModelStore) -> None:
    source = incoming(model_store, name=f"{DIGEST}.safetensors")
    assert model_store.adopt(source) == model_store.adopt(source) == DIGEST
    assert model_store.adopt(model_store.path(DIGEST)) == DIGEST
    assert model_store.path(DIGEST).read_bytes() == CONTENT


def test_a_file_whose_name_is_another_digest_is_refused(model_store: ModelStore) -> None:
    source = incoming(model_store, b"damaged", name=f"{DIGEST}.safetensors")
    with pytest.raises(IntegrityError):
        model_store.adopt(source)
    assert list(model_store.digests()) == []


def test_a_damaged_model_is_mended_by_adopting_it_again(model_store: ModelStore) -> None:
    model_store.adopt(incoming(model_store))
    model_store.path(DIGEST).write_bytes(b"rotten")
    model_store.adopt(incoming(model_store))
    assert model_store.path(DIGEST).read_bytes() == CONTENT


def test_digests_lists_models_only(model_store: ModelStore) -> None:
    contents = [b"1", b"2", b"3"]
    for content in contents:
        model_store.adopt(incoming(model_store, content))
    incoming(model_store, b"not yet", name=f"{DIGEST}.safetensors")
    assert list(model_store.digests()) == sorted(map(digest_of, contents))


def test_a_removed_model_is_gone_and_removing_it_again_is_harmless(model_store: ModelStore) -> None:
    model_store.adopt(incoming(model_store))
    for _ in range(2):
        model_store.remove(DIGEST)
        assert not model_store.has(DIGEST)
    assert model_store.adopt(incoming(model_store)) == DIGEST
