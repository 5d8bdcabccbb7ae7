"""A throw-away PostgreSQL server with the extension, and what the parts of the stress tests share.

PG_CONFIG names the installation. Must not be run as root, as PostgreSQL refuses that.
"""

import contextlib
import ctypes
import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

import psycopg

EXTENSION = "idempotent_ingest"


def progress(database, done, size):
    """Says now and then how far a process has come."""
    if done and done % 1000 == 0:
        print(f"# {database}: {done} of {size}", flush=True)


def status(pid):
    """State and parent of a process, and more that we do not need."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def is_alive(pid):
    """Not if it only waits for an init that takes its time."""
    try:
        return status(pid)[0] != "Z"
    except OSError:
        return False


class SmallDisk:
    """A directory on a small file system that can be filled. Use it in a with statement.

    It is mounted in a namespace of its own, for this process and those that it starts from now on: that takes no
    rights, and leaves nothing behind. Where users may not have such namespaces, refusal says why, and it is not small.
    """

    CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
    libc = ctypes.CDLL(None, use_errno=True)
    has_namespace = False

    def __init__(self, size):
        self.dir = tempfile.mkdtemp(prefix="stress.")
        self.balloon = os.path.join(self.dir, "balloon")
        self.refusal = None
        try:
            self.enter_namespace()
            self.call("mount", b"none", self.dir.encode(), b"tmpfs", 0, f"size={size},mode=700".encode())
        except OSError as error:
            self.refusal = str(error)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.refusal:
            self.call("umount", self.dir.encode())
        shutil.rmtree(self.dir)

    def enter_namespace(self):
        if SmallDisk.has_namespace:
            return
        uid, gid = os.getuid(), os.getgid()
        self.call("unshare", self.CLONE_NEWUSER | self.CLONE_NEWNS)
        for name, text in (("uid_map", f"{uid} {uid} 1"), ("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(text)
        SmallDisk.has_namespace = True

    def call(self, function, *arguments):
        """A function of the C library that Python does not offer."""
        if getattr(self.libc, function)(*arguments) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{function}: {os.strerror(error)}")

    def free(self):
        """In bytes."""
        stat = os.statvfs(self.dir)
        return stat.f_bavail * stat.f_bsize

    def fill(self, left):
        """Leaves so many bytes."""
        with open(self.balloon, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(self.free() - int(left), 1))

    def empty(self):
        if os.path.exists(self.balloon):
            os.unlink(self.balloon)


class Cluster:
    """A server in a directory of its own, which listens on a Unix socket there. Use it in a with statement."""

    def __init__(self, initdb=(), **settings):
        self.bindir = subprocess.run(
            [os.environ.get("PG_CONFIG", "pg_config"), "--bindir"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        self.dir = tempfile.mkdtemp(prefix="stress.")
        self.data = os.path.join(self.dir, "data")
        self.initdb = initdb
        self.log = os.path.join(self.dir, "log")
        self.settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.dir,
            "max_prepared_transactions": 20,
            "timezone": "UTC",
            "log_line_prefix": "%m [%p] %e ",
            **settings,
        }

    def __enter__(self):
        try:
            options = ("-N", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", *self.initdb)
            self.run("initdb", "-D", self.data, *options)
            with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as conf:
                for name, value in self.settings.items():
                    conf.write(f"{name} = '{value}'\n")
            self.start()
        except BaseException:
            shutil.rmtree(self.dir)
            raise
        return self

    def __exit__(self, *_):
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            self.run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.dir)

    def run(self, program, *arguments):
        """Runs a program of PostgreSQL; what it says is shown if it fails."""
        done = subprocess.run(
            [os.path.join(self.bindir, program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{self.read_log()[-4000:]}")

    def start(self):
        self.run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "start")

    def read_log(self):
        if not os.path.exists(self.log):
            return ""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def failures(self, expected="$^"):
        """Lines of the log that tell of a crash, a failed assertion or an internal error, and do not match expected."""
        bad = re.compile(r" PANIC: |TRAP: | XX\d\d\d |was terminated by signal")
        return [line for line in self.read_log().splitlines() if bad.search(line) and not re.search(expected, line)]

    def postmaster(self):
        with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
            return int(file.readline())

    def is_running(self):
        try:
            return is_alive(self.postmaster())
        except FileNotFoundError:
            return False

    def processes(self):
        """The titles of the server's processes, by process number."""
        parent = str(self.postmaster())
        titles = {}
        for path in glob.glob("/proc/[0-9]*"):
            pid = int(os.path.basename(path))
            try:
                with open(f"{path}/cmdline", encoding="utf-8", errors="replace") as file:
                    title = file.read()
                if status(pid)[1] == parent:
                    titles[pid] = title
            except OSError:
                # It has ended meanwhile.
                pass
        return titles

    def kill_postmaster(self, and_all=False):
        """kill -9; returns once the other processes have noticed, or were killed, too. The lock files go, for the
        number of a process that nobody has waited for is taken still."""
        postmaster = self.postmaster()
        # From here on it starts no process.
        os.kill(postmaster, signal.SIGSTOP)
        others = self.processes()
        for pid in [postmaster, *(others if and_all else ())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while left := [pid for pid in [postmaster, *others] if is_alive(pid)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"these did not end with the postmaster: {[others.get(pid) for pid in left]}")
            time.sleep(0.01)
        for path in [os.path.join(self.data, "postmaster.pid"), *glob.glob(os.path.join(self.dir, ".s.PGSQL.*"))]:
            os.unlink(path)

    def connect(self, database="postgres", **parameters):
        return psycopg.connect(host=self.dir, user="postgres", dbname=database, autocommit=True, **parameters)

    def connect_again(self, database):
        """After a crash, as soon as the server is back; one that did not come back is started."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.connect(database)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
            if not self.is_running():
                self.start()
            time.sleep(0.01)

    def create_database(self, name):
        """A database with the extension."""
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        with self.connect(name) as connection:
            connection.execute(f"CREATE EXTENSION {EXTENSION}")
