"""The cache under threads, processes and kills."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tumorchain_agent.errors import OutputError
from tumorchain_agent.tools.cache import Cache, content_key

MB = 1_000_000


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10 * MB)


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


def size(length: int) -> Callable[[Path], None]:
    return text("x" * length)


def folder(path: Path) -> None:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "a.txt").write_text("a")
    (path / "b.txt").write_text("b")


def python(code: str, root: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process with ``cache`` and ``sys`` at hand."""
    head = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tumorchain_agent.tools.cache import Cache\n"
    )
    head += "cache = Cache(Path(sys.argv[1]), 10_000_000)\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(root), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def rest(process: subprocess.Popen[str]) -> list[str]:
    """The lines that a process still writes until it ends."""
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    assert process.wait(60) == 0
    return lines


def leftovers(cache: Cache) -> list[str]:
    return [path.name for name in ("tmp", "locks") for path in (cache.root / name).iterdir()]


def test_an_entry_is_found_after_it_was_put(cache: Cache) -> None:
    assert cache.get("a.txt") is None
    path = cache.put("a.txt", text("hello"))
    assert path.read_text() == "hello"
    assert cache.get("a.txt") == path
    assert Cache(cache.root, MB).get("a.txt") == path
    assert leftovers(cache) == []


def test_the_writer_sees_the_suffix_of_the_key(cache: Cache) -> None:
    path = cache.put("a.npy", lambda path: np.save(path, np.arange(3)))
    assert np.load(path).tolist() == [0, 1, 2]


def test_a_folder_is_an_entry_too(cache: Cache) -> None:
    path = cache.put("model", folder)
    assert (path / "sub" / "a.txt").read_text() == "a"
    assert cache.put("model", folder) == path
    assert leftovers(cache) == []
    cache.remove("model")
    assert cache.get("model") is None
    assert leftovers(cache) == []


def test_a_writer_that_fails_leaves_nothing(cache: Cache) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyError("no")

    with pytest.raises(KeyError):
        cache.put("a", fail)
    assert cache.get("a") is None
    assert leftovers(cache) == []


def test_a_writer_that_writes_nothing_is_an_error(cache: Cache) -> None:
    with pytest.raises(FileNotFoundError):
        cache.put("a", lambda path: None)
    assert cache.get("a") is None


def test_a_full_disk_is_one_error_that_names_the_remedy(cache: Cache) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"No space left.*TUMORCHAIN_CACHE_DIR"):
        cache.put("a", full)
    assert leftovers(cache) == []


def test_a_root_that_is_a_file_is_one_error_that_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="TUMORCHAIN_CACHE_DIR"):
        Cache(tmp_path / "file", MB).put("a", text("a"))


@pytest.mark.parametrize("key", ["", "../a", "a/b", ".hidden", "a b", "x" * 201])
def test_a_key_is_never_a_path(cache: Cache, key: str) -> None:
    with pytest.raises(ValueError, match="cache key"):
        cache.get(key)


def test_folders_are_private(cache: Cache) -> None:
    cache.put("model", folder)
    for path in (cache.root, *(cache.root / name for name in ("entries", "tmp", "locks"))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_nothing_is_made_on_disk_before_the_first_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", MB)
    assert cache.get("a") is None
    assert not (tmp_path / "cache").exists()


def use(cache: Cache, key: str, when: int) -> None:
    """Set when an entry was last used, in seconds."""
    path = cache.get(key)
    assert path is not None
    os.utime(path, (when, when))


def test_the_least_recently_used_entries_are_removed_above_the_cap(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 250)
    for index, key in enumerate(("old", "older", "new")):
        cache.put(key, size(80))
        use(cache, key, (20, 10, 30)[index])
    cache.put("fresh", size(80))
    assert cache.get("older") is None
    assert cache.get("old") is not None
    use(cache, "old", 20)
    cache.put("model", folder)
    cache.put("big", size(80))
    assert cache.get("old") is None
    assert cache.get("new") is not None
    assert cache.size_bytes() <= 250


def test_reading_an_entry_keeps_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 200)
    for key in ("a", "b"):
        cache.put(key, size(90))
        use(cache, key, 10)
    assert cache.get("a") is not None
    cache.put("c", size(90))
    assert cache.get("a") is not None
    assert cache.get("b") is None


def test_an_entry_whose_lock_is_held_is_not_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100)
    cache.put("a", size(90))
    use(cache, "a", 10)
    with cache.lock("a"):
        cache.put("b", size(90))
        assert cache.get("a") is not None
        use(cache, "a", 10)
    cache.put("c", size(90))
    assert cache.get("a") is None
    assert leftovers(cache) == []


def test_one_entry_above_the_cap_stays_until_the_next(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10)
    assert cache.put("a", size(90)).exists()
    cache.put("b", size(5))
    assert cache.get("a") is None


def test_many_threads_make_an_entry_once(cache: Cache) -> None:
    made: list[int] = []
    start = threading.Barrier(8)
    paths: list[Path] = []

    def make(path: Path) -> None:
        made.append(1)
        path.write_text("x")

    def run() -> None:
        start.wait()
        paths.append(cache.get_or_make("key", make))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(paths) == {cache.get("key")}
    assert len(paths) == 8
    assert leftovers(cache) == []


def test_several_processes_make_an_entry_once(cache: Cache) -> None:
    """The first maker goes on only after the others have asked."""
    code = """
def make(path):
    print("making", flush=True)
    sys.stdin.readline()
    path.write_text(sys.argv[2])

print("asking", flush=True)
print(cache.get_or_make("key", make).read_text(), flush=True)
"""
    processes = [python(code, cache.root, str(index)) for index in range(3)]
    try:
        for process in processes:
            assert line(process) == "asking\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        outputs = [rest(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert sum("making" in output for output in outputs) == 1
    maker = next(index for index, output in enumerate(outputs) if "making" in output)
    assert [output[-1] for output in outputs] == [str(maker)] * 3
    assert leftovers(cache) == []


def test_a_killed_writer_leaves_no_entry_and_its_temporary_files_are_cleaned(cache: Cache) -> None:
    code = """
def die(path):
    path.mkdir()
    (path / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

cache.get_or_make("key", die)
"""
    assert python(code, cache.root).wait(60) == -signal.SIGKILL
    assert len(list((cache.root / "tmp").iterdir())) == 1
    fresh = Cache(cache.root, MB)
    assert fresh.get("key") is None
    assert fresh.get_or_make("key", text("whole")).read_text() == "whole"
    assert leftovers(fresh) == []


def test_a_dead_owner_never_blocks_a_lock(cache: Cache) -> None:
    code = "with cache.lock('key'):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert python(code, cache.root).wait(60) == -signal.SIGKILL
    with cache.lock("key"):
        pass
    assert leftovers(cache) == []


def test_an_orphaned_child_of_a_dead_owner_does_not_keep_the_lock(cache: Cache) -> None:
    """The child was forked inside the lock and lives on until its input closes."""
    code = """
with cache.lock("key"):
    if os.fork() == 0:
        print("child", flush=True)
        sys.stdin.readline()
        os._exit(0)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = python(code, cache.root)
    assert line(process) == "child\n"
    assert process.wait(60) == -signal.SIGKILL
    with cache.lock("key"):
        pass
    process.communicate("\n", timeout=60)


def test_a_forked_child_that_leaves_the_lock_does_not_open_it(cache: Cache) -> None:
    code = """
with cache.lock("key"):
    child = os.fork()
    if child == 0:
        sys.exit()
    os.waitpid(child, 0)
    print((cache.root / "locks" / "key").exists(), flush=True)
"""
    assert rest(python(code, cache.root)) == ["True"]
    assert leftovers(cache) == []


def test_a_lock_excludes_other_threads_and_processes(cache: Cache) -> None:
    """Unlocked, some of these increments would be lost."""
    code = """
import threading

def count():
    for _ in range(40):
        with cache.lock("key"):
            path = cache.root / "counter"
            path.write_text(str(int(path.read_text()) + 1))

threads = [threading.Thread(target=count) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    cache.put("other", text("x"))
    (cache.root / "counter").write_text("0")
    for process in [python(code, cache.root) for _ in range(3)]:
        assert rest(process) == []
    assert (cache.root / "counter").read_text() == "240"
    assert leftovers(cache) == []


def test_cleaning_spares_the_temporary_files_of_a_living_writer(cache: Cache) -> None:
    code = """
def slow(path):
    path.write_text("half")
    print("writing", flush=True)
    sys.stdin.readline()

cache.put("key", slow)
print("done", flush=True)
"""
    process = python(code, cache.root)
    assert line(process) == "writing\n"
    Cache(cache.root, MB).put("other", text("x"))
    assert process.communicate("\n", timeout=60)[0] == "done\n"
    assert cache.get("key") is not None


def test_taking_the_same_lock_twice_in_a_thread_is_an_error_and_no_deadlock(cache: Cache) -> None:
    with cache.lock("key"), pytest.raises(RuntimeError, match="already holds"), cache.lock("key"):
        pass


def test_a_content_key_depends_on_type_shape_order_and_value() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    keys = [
        content_key("a", "b"),
        content_key("ab"),
        content_key("b", "a"),
        content_key(1),
        content_key("1"),
        content_key(1.0),
        content_key(True),
        content_key(None),
        content_key(b"1"),
        content_key(["a"], "b"),
        content_key(["a", "b"]),
        content_key({"a": 1, "b": 2}),
        content_key({"a": 2, "b": 1}),
        content_key(array),
        content_key(array.reshape(3, 2, 4)),
        content_key(array.astype(np.float64)),
        content_key(np.zeros((2, 3, 4), np.float32)),
        content_key(np.zeros((0, 3), np.float32)),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 40 for key in keys)


def test_a_content_key_does_not_depend_on_memory_order_or_on_the_order_of_names() -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert (
        content_key(array)
        == content_key(np.asfortranarray(array))
        == content_key(array[:, :, ::-1][:, :, ::-1])
    )
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})


def test_a_content_key_of_an_unknown_type_is_an_error() -> None:
    with pytest.raises(TypeError, match="Path"):
        content_key(Path("a"))  # type: ignore[arg-type]
