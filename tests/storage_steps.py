"""What any `Storage` promises, as steps that two nodes take: for a folder, a bucket, and the fake of one."""

from __future__ import annotations

from raytrain_nlp.storage import Storage


def keeps_its_promises(here: Storage, there: Storage) -> None:
    """Two nodes' views of one storage path."""
    mine, theirs = here.root / "run", there.root / "run"
    assert not here.fetch(mine / "a") and not here.refetch(mine / "a") and here.list_tree(mine) == {}

    # what one pushes the other fetches, once asked again for what has changed
    mine.mkdir(parents=True, exist_ok=True)
    (mine / "a").write_text("one")
    here.push(mine / "a")
    assert there.fetch(theirs / "a") and (theirs / "a").read_text() == "one"
    (mine / "a").write_text("two")
    here.push(mine / "a")
    assert there.refetch(theirs / "a") and (theirs / "a").read_text() == "two"
    (here.root / "elsewhere").write_text("copied")
    here.push(here.root / "elsewhere", to=mine / "sub" / "b")
    assert there.fetch(theirs / "sub" / "b") and (theirs / "sub" / "b").read_text() == "copied"
    assert there.list_tree(theirs) == {"a": 3, "sub/b": 6}

    # small files: written whole, created once
    here.write(mine / "word", "hear")
    assert there.refetch(theirs / "word") and (theirs / "word").read_text() == "hear"
    assert here.has_conditions() and here.create(mine / "lease", "mine")
    assert not there.create(theirs / "lease", "theirs")
    assert there.refetch(theirs / "lease") and (theirs / "lease").read_text() == "mine"
    assert there.modified(theirs / "lease") >= there.modified(theirs / "a")

    before = here.modified(mine / "a")
    here.touch(mine / "a.beat")
    here.touch(mine / "a.beat")
    assert there.modified(theirs / "a.beat") >= before and there.list_tree(theirs)["a.beat"] == 0
    there.delete([theirs / "a.beat"])

    # folders, but for what is kept, and files
    for name in ("manifest.json", "x", "y/z"):
        (mine / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / "tree" / name).write_text(name)
    here.push_tree(mine / "tree", last="manifest.json")
    there.fetch_tree(theirs / "tree", lambda name: name != "x")
    assert there.fetch(theirs / "tree" / "x") and (theirs / "tree" / "y" / "z").read_text() == "y/z"
    there.delete_tree(theirs / "tree", first="manifest.json", keep=["x"])
    assert here.list_tree(mine / "tree") == {"x": 1} and not (theirs / "tree" / "y").exists()
    there.delete_tree(theirs / "tree")
    assert here.list_tree(mine / "tree") == {} and not (theirs / "tree").exists()
    there.delete([theirs / "a", theirs / "word", theirs / "nothing"])
    assert not here.refetch(mine / "a") and not (mine / "a").exists() and not (theirs / "word").exists()
    assert here.list_tree(mine).keys() == {"lease", "sub/b"}
    assert here.check() == []
