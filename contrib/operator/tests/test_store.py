"""The store: what has changed between what was known and what is there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_operator.store import (
    Change,
    Key,
    Object,
    Store,
    by_label,
    by_namespace,
    by_owner,
    key_of,
    trim,
)


def made(
    name: str, *, namespace: str = "a", uid: str = "1", version: int = 1, **more: Any
) -> Object:
    metadata = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": {**metadata, **more}}


def shape(changes: Iterable[Change]) -> list[tuple[str, bool, bool]]:
    return [(str(each.key), each.before is not None, each.after is not None) for each in changes]


def test_what_is_new_changed_and_gone() -> None:
    store = Store()
    first, second = made("x"), made("x", version=2)
    assert store.put(first) == [Change(Key("a", "x"), None, first)]
    assert store.put(second) == [Change(Key("a", "x"), first, second)]
    assert store.get("a", "x") is second
    assert store.remove(Key("a", "x")) == [Change(Key("a", "x"), second, None)]
    assert store.remove(Key("a", "x")) == []
    assert store.get("a", "x") is None
    assert len(store) == 0


def test_the_same_version_is_no_change() -> None:
    store = Store()
    store.put(made("x"))
    assert store.put(made("x")) == []


def test_an_object_made_anew_under_its_name_is_a_deletion_and_a_new_one() -> None:
    store = Store()
    old, new = made("x"), made("x", uid="2", version=1)
    store.put(old)
    key = Key("a", "x")
    assert store.put(new) == [Change(key, old, None), Change(key, None, new)]
    assert store.list() == [new]


def test_the_last_state_of_what_is_gone_is_told_where_it_is_known() -> None:
    store = Store()
    store.put(made("x"))
    last = made("x", version=5)
    (change,) = store.remove(Key("a", "x"), last=last)
    assert change.before is change.object is last


def test_a_list_says_what_was_missed() -> None:
    store = Store()
    for name in ("stays", "changes", "goes", "is made anew"):
        store.put(made(name))
    found = [made("stays"), made("changes", version=2), made("is made anew", uid="2"), made("new")]
    assert shape(store.replace(found)) == [
        ("a/goes", True, False),
        ("a/changes", True, True),
        ("a/is made anew", True, False),
        ("a/is made anew", False, True),
        ("a/new", False, True),
    ]
    assert set(store.keys()) == {key_of(each) for each in found}
    assert shape(store.replace([])) == [(str(key_of(each)), True, False) for each in found]


def test_objects_are_found_by_namespace_label_and_owner() -> None:
    store = Store({"ns": by_namespace, "app": by_label("app"), "owner": by_owner})
    one = made("one", labels={"app": "x"}, ownerReferences=[{"uid": "o1"}, {"uid": "o2"}])
    two = made("two", namespace="b", labels={"app": "x"})
    three = made("three", namespace="", labels=None, ownerReferences=None)
    store.replace([one, two, three])
    assert store.by("app", "x") == [one, two]
    assert store.by("ns", "b") == store.list("b") == [two]
    assert store.by("ns", "") == [three]
    assert store.by("owner", "o1") == store.by("owner", "o2") == [one]
    assert store.by("app", "nothing") == []
    with pytest.raises(KeyError):
        store.by("colour", "x")
    moved = made("one", version=2, labels={"app": "y"})
    store.put(moved)
    assert store.by("app", "x") == [two]
    assert store.by("app", "y") == [moved]
    assert store.by("owner", "o1") == []
    store.replace([])
    assert store._found == {"ns": {}, "app": {}, "owner": {}}  # nothing stays behind


def test_iteration_bears_changes_in_between() -> None:
    store = Store()
    store.replace([made("x"), made("y")])
    for each in store:
        store.remove(key_of(each))
    assert len(store) == 0
    assert Key("a", "x") not in store


def test_trimming_leaves_out_what_nobody_reads_and_changes_nothing() -> None:
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    whole = made("x", managedFields=[{}], annotations={applied: "{}", "mine": "1"})
    before = repr(whole)
    assert trim(whole)["metadata"] == {**made("x")["metadata"], "annotations": {"mine": "1"}}
    assert repr(whole) == before


objects = st.builds(
    made,
    st.sampled_from("xyz"),
    namespace=st.sampled_from("ab"),
    uid=st.sampled_from("12"),
    version=st.integers(1, 3),
    labels=st.fixed_dictionaries({}, optional={"app": st.sampled_from("pq")}),
)


@given(
    st.lists(
        st.one_of(
            objects,
            st.lists(objects),
            st.builds(Key, st.sampled_from("ab"), st.sampled_from("xyz")),
        )
    )
)
def test_changes_add_up_to_what_is_there(steps: list[Object | list[Object] | Key]) -> None:
    """Whoever applies every change to an empty copy has what the store has."""
    store, copy = Store({"app": by_label("app")}), dict[Key, Object]()
    for step in steps:
        if isinstance(step, Key):
            changes = store.remove(step)
        else:
            changes = store.put(step) if isinstance(step, dict) else store.replace(step)
        for change in changes:
            assert copy.get(change.key) == change.before
            assert (change.before or change.after) is not None
            if change.after is None:
                del copy[change.key]
            else:
                copy[change.key] = change.after
        assert copy == {key_of(each): each for each in store}
    for value in "pq":
        found = {key_of(each) for each in store.by("app", value)}
        assert found == {
            key_of(each) for each in copy.values() if each["metadata"]["labels"].get("app") == value
        }
