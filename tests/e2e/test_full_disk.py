"""A disk that is full, two ways, and a process without locked memory: an answer, no loss, and back by itself."""

import os
import shutil
import subprocess
import time

import pytest

from support.ledger import Load
from support.server import eventually

MIB = 1 << 20


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture
def small_filesystem(tmp_path):
    """Factory: an ext4 of `mib` on a loop device whose file lies in `host` (a directory)."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    mounted = []

    def make(mib, host, *options):
        image, mount = host / "image", tmp_path / "mount"
        mount.mkdir()
        with open(image, "wb") as f:
            f.truncate(mib * MIB)  # sparse: the host gives space as it is written
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", *options, str(image))
        loop = run("losetup", "--find", "--show", str(image))
        run("mount", loop, str(mount))
        mounted.append((mount, loop))
        return mount

    yield make
    for mount, loop in mounted:
        subprocess.run(["umount", "-l", str(mount)])
        subprocess.run(["losetup", "-d", loop])


LOG = {"segment_bytes": "1 MiB", "bytes_max": "1 GiB", "spare_segments": 1, "io_deadline": "3 s"}


def fill(path):
    """Takes every free block below `path`'s file system. An fsync makes sure of those that delayed allocation owes."""
    with open(path, "ab", buffering=0) as f:
        for size in (MIB, 4096, 512):
            block = os.urandom(size)
            while True:
                try:
                    if f.write(block) < size:
                        break
                except OSError:
                    break
        try:
            os.fsync(f.fileno())
        except OSError:
            pass


def through_the_full_disk(server, filler, tmp_path):
    """Load before, during and after; the disk is filled in between."""
    server.start()
    load = Load(server.ingest_port, tmp_path / "ledger", workers=4)
    eventually(lambda: len(load.acked) > 500, 10, "a load")
    fill(filler)

    def refused():
        try:
            answer = server.post("/write", b"x" * 10 + b" value=1", timeout=10)
        except OSError:
            return None
        fill(filler)
        return [answer] if answer.status_code == 503 else None  # an answer of 503 is false by itself

    [answer] = eventually(refused, 60, "503 on a full disk", every_s=0.02)
    assert 1 <= int(answer.headers["Retry-After"]) <= 30
    for phrase in ("partial write", "unable to parse", "database not found", "retention policy not found"):
        assert phrase not in answer.text
    time.sleep(2)
    assert server.alive(), server.log_tail()
    assert server.get("/metrics").text  # operators still see it
    os.remove(filler)
    eventually(lambda: server.post("/write", b"again value=1").status_code == 204, 30, "it resumes by itself")
    before = len(load.acked)
    eventually(lambda: len(load.acked) > before + 200, 20, "the load goes on")
    load.stop()
    server.kill()
    load.check_log(server.log_dump())


def test_a_full_file_system_gives_503_loses_nothing_and_resumes(
        real_server_only, small_filesystem, make_server, tmp_path):
    mount = small_filesystem(96, tmp_path)
    server = make_server(node={"shards": 1}, data_dir=mount / "data", log=LOG)
    try:
        through_the_full_disk(server, mount / "filler", tmp_path)
    finally:
        server.close()


def test_a_sparse_loop_file_whose_host_fills_gives_503_loses_nothing_and_resumes(
        real_server_only, small_filesystem, make_server, tmp_path):
    """Space that was there at preallocation fails at the write (EIO or ENOSPC): a failed flush is never retried."""
    host = tmp_path / "host"
    host.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(host))
    try:
        # Without a journal: a journal that meets EIO makes ext4 read-only for good, and only a person can undo that.
        mount = small_filesystem(256, host, "-O", "^has_journal")
        server = make_server(node={"shards": 1}, data_dir=mount / "data", log=LOG)
        try:
            through_the_full_disk(server, host / "filler", tmp_path)
        finally:
            server.close()
            subprocess.run(["umount", "-l", str(mount)])
    finally:
        subprocess.run(["umount", "-l", str(host)])


def test_a_disk_that_hangs_gives_503_loses_nothing_and_resumes(
        real_server_only, small_filesystem, make_server, tmp_path):
    if not shutil.which("fsfreeze"):
        pytest.skip("needs fsfreeze")
    mount = small_filesystem(96, tmp_path)
    server = make_server(node={"shards": 1}, data_dir=mount / "data", log=LOG | {"io_deadline": "1 s"}).start()
    frozen = False
    try:
        load = Load(server.ingest_port, tmp_path / "ledger", workers=4)
        eventually(lambda: len(load.acked) > 500, 10, "a load")
        run("fsfreeze", "--freeze", str(mount))
        frozen = True

        def refused():
            try:
                answer = server.post("/write", b"hung value=1", timeout=2)
            except OSError:
                return None
            return [answer] if answer.status_code == 503 else None

        [answer] = eventually(refused, 15, "503 while the disk hangs")
        assert 1 <= int(answer.headers["Retry-After"]) <= 30
        assert server.get("/metrics").text  # operators still see it
        time.sleep(4)
        acked = len(load.acked)
        time.sleep(1)
        assert len(load.acked) == acked, "acknowledged while the disk hangs"
        run("fsfreeze", "--unfreeze", str(mount))
        frozen = False
        eventually(lambda: server.post("/write", b"again value=1").status_code == 204, 15, "it resumes by itself")
        eventually(lambda: len(load.acked) > acked + 200, 35, "the load goes on")
        load.stop()
        server.kill()
        load.check_log(server.log_dump())
    finally:
        if frozen:
            run("fsfreeze", "--unfreeze", str(mount))
        server.close()


def test_too_little_locked_memory_is_said_in_one_sentence_or_suffices(real_server_only, make_server):
    if os.geteuid() != 0 or not shutil.which("capsh"):
        pytest.skip("needs root and capsh")
    for limit in ("0", "65536"):
        server = make_server(f"memlock-{limit}", prefix_command=[
            "prlimit", f"--memlock={limit}:{limit}", "capsh", "--drop=cap_ipc_lock", "--shell=/usr/bin/env", "--", "--"])
        server.spawn()
        try:
            code = server.process.wait(5)
        except subprocess.TimeoutExpired:
            server.wait_ready()
            server.write_lines("enough value=1")
            assert server.terminate() == 0
            continue
        assert code == 5, f"exit {code}: {server.log_tail()}"
        assert "MEMLOCK" in server.log_tail().upper(), server.log_tail()
