"""Files by their hash: what comes out is what went in, whatever happened to the file, the disk and the other processes in between."""

import errno
import logging
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer.store import FileStore, StoreError, default_directory, digest_of

DATA = bytes(range(256)) * 40
IN_USE_S = 600


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "stages")


@pytest.fixture
def kept(store, tmp_path):
    """The path of DATA in the store."""
    return tmp_path / "stages" / store.put(DATA)


def age(path, seconds):
    """As if the file had been used that much earlier."""
    info = path.stat(follow_symlinks=False)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns - int(seconds * 1e9)), follow_symlinks=False)


def names(directory):
    return sorted(path.name for path in Path(directory).iterdir())


# -- what goes in comes out


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=3000), st.sampled_from([bytes, bytearray, memoryview]))
def test_what_is_kept_is_found_by_its_hash_also_by_another_process(content, kind):
    with tempfile.TemporaryDirectory() as directory:
        digest = FileStore(Path(directory, "s")).put(kind(content))
        found = FileStore(Path(directory, "s")).get(digest)
        assert found == content
        assert found.readonly
        assert names(Path(directory, "s")) == [digest]


def test_the_hash_is_that_of_sha256sum(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    said = subprocess.run(["sha256sum", tmp_path / "file"], capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == digest_of(DATA)


def test_missing_files_are_named_once_and_in_order(store):
    here, one, two = store.put(DATA), digest_of(b"1"), digest_of(b"2")
    assert store.get(one) is None
    assert (store.has(here), store.has(one)) == (True, False)
    assert store.missing([two, here, one, two]) == [two, one]


def test_nothing_is_written_where_it_is_there_already(store, kept):
    before = kept.stat().st_ino
    assert store.put(bytearray(DATA)) == kept.name
    assert kept.stat().st_ino == before


def test_only_this_user_can_read_it(store, kept):
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "digest", ["", "..", "a" * 63, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61, "0" * 63 + "\u0663", digest_of(b"") + ".part"]
)
def test_what_is_no_hash_becomes_no_path(store, digest):
    for ask in (store.get, store.has, lambda name: store.missing([name])):
        with pytest.raises(StoreError, match="no SHA-256"):
            ask(digest)


@given(st.text(max_size=70))
def test_no_text_becomes_a_path(digest):
    with pytest.raises(StoreError, match="no SHA-256"):
        FileStore(Path("/nowhere")).has(digest)


# -- what was altered is not handed out


def truncated(path):
    os.truncate(path, 5000)


def emptied(path):
    os.truncate(path, 0)


def extended(path):
    path.write_bytes(DATA + b"\0")


def flipped(path):
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))


def linked(path):
    """To a file with the very content: whoever may write there could alter it between check and use."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def piped(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("alter", [truncated, emptied, extended, flipped, linked, piped])
def test_an_altered_file_is_missing_and_removed_and_can_be_kept_again(store, kept, alter, caplog):
    alter(kept)
    with caplog.at_level(logging.WARNING):
        assert store.get(kept.name) is None
    assert f"{kept} is not what was kept there" in caplog.text
    assert not kept.is_symlink()
    assert store.missing([kept.name]) == [kept.name]
    assert store.put(DATA) == kept.name
    assert store.get(kept.name) == DATA


@pytest.mark.parametrize("alter", [truncated, emptied, extended, flipped, linked, piped])
def test_keeping_a_file_mends_an_altered_one(store, kept, alter):
    alter(kept)
    store.put(DATA)
    assert store.get(kept.name) == DATA


def test_a_directory_in_the_place_of_a_file_stays_and_is_an_error(store, kept):
    kept.unlink()
    kept.mkdir()
    assert store.get(kept.name) is None
    with pytest.raises(StoreError, match="Is a directory"):
        store.put(DATA)
    assert names(kept.parent) == [kept.name]


def test_content_outlives_the_file(store, kept):
    found = store.get(kept.name)
    kept.unlink()
    store.put(DATA[::-1])
    assert found == DATA


# -- several processes

WRITER = """
import sys
from pathlib import Path
from splitinfer.store import FileStore
store = FileStore(Path(sys.argv[1]))
contents = [bytes([n]) * 300_000 for n in range(40)]
print("ready", flush=True)
sys.stdin.readline()
for content in contents:
    assert store.get(store.put(content)) == content
"""


def test_processes_that_keep_the_same_files_at_once_agree(tmp_path):
    command = [sys.executable, "-W", "error", "-c", WRITER, tmp_path / "s"]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=60)[1] for writer in writers] == [""] * 4  # no warning either
    assert names(tmp_path / "s") == sorted(digest_of(bytes([n]) * 300_000) for n in range(40))


# -- room


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    store = FileStore(tmp_path / "s", most_nbytes=400)
    a, b, c, d = (store.put(bytes([n]) * 100) for n in range(4))
    for digest, seconds in ((b, 4000), (a, 3000), (d, 2000), (c, 1000)):
        age(tmp_path / "s" / digest, seconds)
    assert store.get(b) is not None  # read now
    assert store.has(a)  # and asked for
    assert store.missing([store.put(b"e" * 150)]) == []
    assert store.missing([a, b, c, d]) == [c, d]


def test_what_is_in_use_stays_and_the_new_file_is_refused_with_both_numbers(tmp_path):
    store = FileStore(tmp_path / "s", most_nbytes=400)
    old, young = store.put(b"o" * 200), store.put(b"y" * 150)
    age(tmp_path / "s" / old, IN_USE_S + 5)
    age(tmp_path / "s" / young, IN_USE_S - 5)
    with pytest.raises(StoreError, match=r"a file of 300 B beside 150 B .* keeps 400 B"):
        store.put(b"n" * 300)
    assert store.missing([young]) == []


def test_a_file_larger_than_the_store_is_refused_and_costs_no_other_its_place(tmp_path):
    store = FileStore(tmp_path / "s", most_nbytes=400)
    held = store.put(bytes(400))
    age(tmp_path / "s" / held, 5000)
    with pytest.raises(StoreError, match=r"a file of 401 B; the store keeps 400 B"):
        store.put(bytes(401))
    assert store.has(held)


def test_a_clock_that_was_ahead_keeps_no_file_for_ever(tmp_path):
    store = FileStore(tmp_path / "s", most_nbytes=400)
    future = store.put(b"f" * 300)
    age(tmp_path / "s" / future, -10 * 365 * 86400)
    store.put(b"n" * 300)
    assert not store.has(future)


def test_parts_that_a_dead_process_left_make_room_and_foreign_files_stay(store, kept):
    store.most_nbytes = len(DATA) + 10
    for name in ("part-dead", "notes.txt"):
        (kept.parent / name).write_bytes(bytes(10))
        age(kept.parent / name, 5000)
    store.put(b"12345")
    assert names(kept.parent) == sorted([kept.name, digest_of(b"12345"), "notes.txt"])


operations = st.lists(st.tuples(st.sampled_from(["put", "get", "has"]), st.integers(0, 7), st.integers(1, 900)), max_size=25)


@settings(deadline=None, max_examples=60)
@given(operations)
def test_the_store_is_a_cache_by_last_use_with_a_time_of_grace(steps):
    """Against a model in a dictionary, under a clock that advances by changing the times of all files."""
    used = {}  # content -> seconds since its last use
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory, "s")
        store = FileStore(home, most_nbytes=1000)
        for verb, number, seconds in steps:
            content = bytes([number]) * (60 * number + 40)
            if verb == "put" and content not in used:
                room = 1000 - sum(map(len, used))
                for old in sorted(used, key=used.get, reverse=True):
                    if room < len(content) and used[old] > IN_USE_S:
                        room += len(old)
                        del used[old]
                if room < len(content):
                    with pytest.raises(StoreError, match="in use"):
                        store.put(content)
                else:
                    store.put(content)
                    used[content] = 0
            else:
                there = store.get(digest_of(content)) is not None if verb == "get" else store.has(digest_of(content))
                assert there == (content in used)
                used |= {content: 0} if there else {}
            if home.is_dir():
                assert names(home) == sorted(map(digest_of, used))
                for path in home.iterdir():
                    age(path, seconds)
            used = {content: since + seconds for content, since in used.items()}


# -- machines that have no place for it


def test_a_write_that_fails_half_way_leaves_nothing(store, kept):
    """The kernel refuses what is written beyond a size, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = os.urandom(3 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StoreError, match=r"a file of 3 MiB cannot be kept in .*: File too large"):
            store.put(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(kept.parent) == [kept.name]
    assert store.put(data) == digest_of(data)


def test_a_full_disk_makes_room_among_old_files_or_is_an_error(store, kept, monkeypatch):
    usage = shutil.disk_usage(kept.parent)
    monkeypatch.setattr("splitinfer.store.shutil.disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(StoreError, match=r"a file of 200 B beside 10 KiB .* keeps 10.1 KiB"):
        store.put(bytes(200))
    age(kept, 5000)
    assert store.has(store.put(bytes(200)))
    assert not kept.exists()


def test_a_disk_that_fills_while_a_file_is_written_is_an_error(store, kept, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("splitinfer.store.tempfile.mkstemp", full)
    with pytest.raises(StoreError, match=r"a file of 1 B cannot be kept in .*: No space left on device"):
        store.put(b"1")
    assert store.get(kept.name) == DATA  # what is there can be read


def of_a_file(path):
    path.write_bytes(b"")


def open_to_all(path):
    path.mkdir()
    path.chmod(0o777)


def a_link(path):
    (path.parent / "target").mkdir(mode=0o700)
    path.symlink_to(path.parent / "target")


@pytest.mark.parametrize("spoil", [of_a_file, open_to_all, a_link])
def test_without_a_directory_of_its_own_nothing_is_found_and_keeping_is_an_error(tmp_path, spoil):
    spoil(tmp_path / "s")
    store = FileStore(tmp_path / "s")
    digest = digest_of(DATA)
    with pytest.raises(StoreError, match=r"no directory for stage files: .*SPLITINFER_CACHE"):
        store.put(DATA)
    if (tmp_path / "s").is_dir():  # what others may have put there is not read
        (tmp_path / "s" / digest).write_bytes(DATA)
    assert (store.get(digest), store.has(digest), store.missing([digest])) == (None, False, [digest])


def test_a_directory_that_is_only_read_still_serves_what_it_holds(store, kept):
    kept.parent.chmod(0o500)
    try:
        if os.access(kept.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(StoreError, match="Permission denied"):
            store.put(b"1")
        assert store.get(kept.name) == DATA
    finally:
        kept.parent.chmod(0o700)


def test_a_kernel_that_sets_no_times_still_serves_what_is_there(store, kept, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("splitinfer.store.os.utime", read_only)
    assert store.has(kept.name)
    assert store.get(kept.name) == DATA


def test_a_user_without_a_home_has_no_store(monkeypatch):
    monkeypatch.delenv("SPLITINFER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    assert FileStore().missing([digest_of(b"")]) == [digest_of(b"")]
    with pytest.raises(StoreError, match=r"Could not determine home directory\.; name another in SPLITINFER_CACHE"):
        FileStore().put(b"")


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SPLITINFER_CACHE", raising=False)
    assert default_directory() == Path("/home/somebody/.cache/splitinfer/stages")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_directory() == Path("/caches/splitinfer/stages")
    monkeypatch.setenv("SPLITINFER_CACHE", str(tmp_path))
    assert default_directory() == tmp_path / "stages"
    FileStore().put(DATA)
    assert names(tmp_path / "stages") == [digest_of(DATA)]


def test_tests_touch_no_cache_of_the_user():
    assert default_directory().is_relative_to(tempfile.gettempdir())


def test_it_loads_no_torch():
    code = "import sys, splitinfer.store; print([name for name in ('torch', 'ray', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
