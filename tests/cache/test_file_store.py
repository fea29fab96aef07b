"""The SQLite file: damage, full disks, other programs' files, killed writers."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sk_cnncodes import CacheWarning, CNNCodeTransformer, CodeCache
from sk_cnncodes.cache import database as module
from sk_cnncodes.cache.database import CacheDatabase, file_system
from sk_cnncodes.cache.file_store import FileStore
from tests.conftest import run_python

CODES = np.arange(12, dtype=np.float32).reshape(4, 3)
KEYS = [b"a", b"b", b"c", b"d"]


def filled(path: Path) -> CodeCache:
    cache = CodeCache(path)
    cache.put_many([("spec", KEYS, CODES)])
    assert cache.info().rows == 4
    return cache


def checkpoint(path: Path) -> None:
    """Move the contents of the log into the file."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def test_it_is_in_wal_mode_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "codes.sqlite3"
    filled(path)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA application_id").fetchone() == (module.APPLICATION_ID,)
    assert db.execute("PRAGMA user_version").fetchone() == (module.SCHEMA_VERSION,)
    db.close()


def test_it_persists(tmp_path: Path) -> None:
    path = tmp_path / "codes.sqlite3"
    filled(path)
    later = CodeCache(path)
    np.testing.assert_array_equal(later.get_many("spec", KEYS), CODES)


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE notes (text)")
    db.commit()
    db.close()
    before = path.read_bytes()
    cache = CodeCache(path)
    with pytest.warns(CacheWarning, match="other.sqlite3.*another program"):
        cache.put_many([("spec", KEYS, CODES)])
    assert cache.get_many("spec", KEYS) == [None] * 4
    assert path.read_bytes() == before


def test_a_newer_schema_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "codes.sqlite3"
    filled(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.warns(CacheWarning, match="schema 99, of a newer version"):
        assert CodeCache(path).get_many("spec", KEYS) == [None] * 4


def test_a_damaged_file_is_reported_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "codes.sqlite3"
    filled(path)
    checkpoint(path)
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    for leftover in tmp_path.glob("codes.sqlite3-*"):
        leftover.unlink()
    with pytest.warns(CacheWarning, match="damaged|cannot be opened"):
        assert CodeCache(path).get_many("spec", KEYS) == [None] * 4


def test_a_changed_code_is_a_miss_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "codes.sqlite3"
    cache = filled(path)
    db = sqlite3.connect(path)
    wrong = (CODES[1] + 1).tobytes()
    db.execute("UPDATE codes SET code = ? WHERE image = ?", (wrong, b"b"))
    db.commit()
    db.close()
    found = cache.get_many("spec", KEYS)
    assert found[1] is None
    np.testing.assert_array_equal(found[2], CODES[2])
    cache.put_many([("spec", [b"b"], CODES[1:2])])
    np.testing.assert_array_equal(cache.get_many("spec", KEYS), CODES)


def test_a_code_under_another_image_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "codes.sqlite3"
    cache = filled(path)
    db = sqlite3.connect(path)
    db.execute("UPDATE codes SET image = ? WHERE image = ?", (b"z", b"b"))
    db.commit()
    db.close()
    assert cache.get_many("spec", [b"z"]) == [None]


def test_a_full_disk_keeps_existing_codes(tmp_path: Path) -> None:
    cache = filled(tmp_path / "codes.sqlite3")
    store = cache._open()
    assert isinstance(store, FileStore)
    db = store._database._connect()
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 1}")
    large = np.ones((50, 2000), np.float32)
    keys = [f"image {i}".encode() for i in range(50)]
    with pytest.warns(CacheWarning, match="the disk is full") as caught:
        cache.put_many([("spec", keys, large)])
        cache.put_many([("spec", keys, large)])
    assert len(caught) == 1
    np.testing.assert_array_equal(cache.get_many("spec", KEYS), CODES)
    assert cache.get_many("spec", keys[:1]) == [None]


def test_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "codes.sqlite3"
    filled(path)
    checkpoint(path)
    monkeypatch.setattr(CacheDatabase, "_open", CacheDatabase._open_read_only)
    monkeypatch.setattr(CacheDatabase, "_is_writable", lambda self: False)
    cache = CodeCache(path)
    np.testing.assert_array_equal(cache.get_many("spec", KEYS), CODES)
    with pytest.warns(CacheWarning, match="it cannot be written") as caught:
        cache.put_many([("spec", [b"new"], CODES[:1])])
        cache.put_many([("spec", [b"new"], CODES[:1])])
    assert len(caught) == 1
    assert CodeCache(path).info().rows == 4


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path / "no" / "codes.sqlite3")
    with pytest.warns(
        CacheWarning, match="cannot be opened.*existing, writable folder"
    ):
        cache.put_many([("spec", KEYS, CODES)])


def test_network_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "file_system", lambda path: "nfs4")
    path = tmp_path / "codes.sqlite3"
    with pytest.warns(CacheWarning, match=r"network file system \(nfs4\)"):
        CodeCache(path).put_many([("spec", KEYS, CODES)])
    assert not path.exists()


@pytest.mark.skipif(not Path("/proc/mounts").exists(), reason="needs /proc/mounts")
def test_file_system_of_a_path() -> None:
    assert file_system("/proc/self") == "proc"


WRITER = """
import sys, numpy as np
from sk_cnncodes import CodeCache
path, number = sys.argv[1], int(sys.argv[2])
cache = CodeCache(path)
count = 0
while True:
    keys = [f"{number} {count + i}".encode() for i in range(16)]
    codes = np.array([[number, count + i, i] for i in range(16)], np.float32)
    cache.put_many([("spec", keys, codes)])
    count += 16
    print(count, flush=True)  # acknowledged
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Eight processes write; two of them are killed repeatedly."""
    path = tmp_path / "codes.sqlite3"
    rounds = int(os.environ.get("SK_CNNCODES_KILLS", "4"))
    acknowledged: dict[int, int] = {}
    logs = []

    def start(number: int) -> subprocess.Popen[bytes]:
        log = open(tmp_path / f"log {number}", "wb")  # noqa: SIM115
        logs.append(log)
        arguments = [sys.executable, "-c", WRITER, str(path), str(number)]
        return subprocess.Popen(arguments, stdout=log)

    processes = {number: start(number) for number in range(8)}
    reader = CodeCache(path)
    deadline = time.monotonic() + 60
    firsts = [f"{number} 0".encode() for number in range(8)]
    while time.monotonic() < deadline:
        if all(code is not None for code in reader.get_many("spec", firsts)):
            break
        time.sleep(0.1)
    longest = 0.0
    for round_ in range(rounds):
        time.sleep(0.3)
        began = time.monotonic()
        reader.get_many("spec", firsts)
        longest = max(longest, time.monotonic() - began)
        for victim in sorted(processes)[:2]:
            process = processes.pop(victim)
            process.send_signal(signal.SIGKILL)
            process.wait()
            new = 8 + 2 * round_ + victim % 2
            while new in processes or (tmp_path / f"log {new}").exists():
                new += 1
            processes[new] = start(new)
    time.sleep(1)
    for process in processes.values():
        process.kill()
        process.wait()
    for log in logs:
        log.close()
    for log in tmp_path.glob("log *"):
        lines = log.read_text().splitlines()
        acknowledged[int(log.name.split()[1])] = int(lines[-1]) if lines else 0
    assert sum(acknowledged.values()) > 500
    cache = CodeCache(path)
    for number, count in acknowledged.items():
        keys = [f"{number} {i}".encode() for i in range(count)]
        expected = [[number, i, i % 16] for i in range(count)]
        found = cache.get_many("spec", keys)
        np.testing.assert_array_equal(
            np.reshape(found, (-1, 3)), np.reshape(expected, (-1, 3))
        )
    assert longest < 5
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


@pytest.mark.skipif(sys.platform == "win32", reason="deletes an open file")
@pytest.mark.parametrize("damaged", [False, True])
def test_a_deleted_file_is_created_again(damaged: bool, tmp_path: Path) -> None:
    path = tmp_path / "codes.sqlite3"
    if damaged:
        path.write_bytes(b"no database" * 100)
        cache = CodeCache(path)
        with pytest.warns(CacheWarning, match="not an SQLite file"):
            cache.put_many([("spec", KEYS, CODES)])
    else:
        cache = filled(path)
    for file in tmp_path.iterdir():
        file.unlink()
    assert cache.get_many("spec", KEYS) == [None] * 4
    cache.put_many([("spec", KEYS, CODES)])
    np.testing.assert_array_equal(CodeCache(path).get_many("spec", KEYS), CODES)


def test_a_writer_that_timed_out_does_not_wait_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.5)
    path = tmp_path / "codes.sqlite3"
    cache = filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(CacheWarning, match="kept it locked"):
        cache.put_many([("other", KEYS, CODES)])
    waits: list[float] = []
    monkeypatch.setattr(
        module, "set_busy_timeout", lambda _db, seconds: waits.append(seconds)
    )
    cache.put_many([("other", KEYS, CODES)])
    assert waits == [0.1]  # set by this failure; the timeout was not restored before
    other.execute("ROLLBACK")
    other.close()
    monkeypatch.setattr(module, "_BACKOFF_SECONDS", -1)
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    cache.put_many([("other", KEYS, CODES)])
    assert waits == [0.1, 0.5]
    np.testing.assert_array_equal(cache.get_many("other", KEYS), CODES)


def test_a_locked_file_that_cannot_be_opened_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an open connection to shorten its timeout, each look-up waited 30 s."""
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.3)
    path = tmp_path / "codes.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    waited: list[float] = []
    switch = module._use_write_ahead_log

    def watched(db: sqlite3.Connection, busy_timeout: float) -> None:
        waited.append(busy_timeout)
        switch(db, busy_timeout)

    monkeypatch.setattr(module, "_use_write_ahead_log", watched)
    monkeypatch.setattr(module.CacheDatabase, "_is_ours", lambda *_: False)
    cache = CodeCache(path)
    with pytest.warns(CacheWarning, match="kept it locked"):
        cache.get_many("spec", KEYS)
    cache.get_many("spec", KEYS)
    other.close()
    assert waited == [0.3, 0.1]


def test_updating_the_last_use_keeps_the_busy_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(tmp_path / "codes.sqlite3")
    store = cache._open()
    assert isinstance(store, FileStore)
    store._database._backoff_until = module.time.monotonic() + 100
    now = int(module.time.time())
    monkeypatch.setattr("sk_cnncodes.cache.file_store.time.time", lambda: now + 9999)
    store._database.spec_numbers.clear()
    assert cache.get_many("spec", KEYS)[0] is not None
    (busy_timeout,) = (
        store._database._connect().execute("PRAGMA busy_timeout").fetchone()
    )
    assert busy_timeout == 100


def test_a_cache_among_the_images_is_not_read(tmp_path: Path) -> None:
    """Closing the file after reading it released SQLite's locks: codes were lost."""
    path = tmp_path / "codes.sqlite3"
    cache = filled(path)
    names = [str(path) + end for end in ("", "-wal", "-shm")]
    transformer = CNNCodeTransformer(on_error="nan", cache=None)
    image = np.zeros((9, 9, 3), np.uint8)
    with pytest.warns(UserWarning, match="3 of 4 images.*\n.*code cache in use"):
        codes = transformer.transform([*names, image])
    assert np.isnan(codes).any(axis=1).tolist() == [True] * 3 + [False]
    # This process still holds its locks, so another one must not delete the log.
    other = f"from sk_cnncodes import CodeCache; print(CodeCache({str(path)!r}).info())"
    assert "rows=4" in run_python(other)
    cache.put_many([("more", KEYS, CODES)])
    assert "rows=8" in run_python(other)
