"""A Redis whose clock can be set: a preloaded library adds to the time what is in a file."""
from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

from tests.support.redis_server import RedisServer

_SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long added_us(void) {
    char text[64];
    const char *path = getenv("ADDED_SECONDS_FILE");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return 0;
    int size = read(file, text, sizeof text - 1);
    close(file);
    if (size <= 0) return 0;
    text[size] = 0;
    return (long) (atof(text) * 1e6);
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec real;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
    long us = real.tv_sec * 1000000L + real.tv_nsec / 1000 + added_us();
    now->tv_sec = us / 1000000;
    now->tv_usec = us % 1000000;
    return 0;
}

time_t time(time_t *into) {
    struct timeval now;
    gettimeofday(&now, 0);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
"""


class SteppedServer(RedisServer):
    """A redis-server of which the clock can be set.

    Skips the test where there is no C compiler.
    """

    def __init__(self, folder, *options, **kwargs):
        super().__init__(folder, *options, **kwargs)
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("there is no C compiler to build what sets the clock of Redis")
        self.folder.mkdir(parents=True, exist_ok=True)
        source, library = self.folder / "shim.c", self.folder / "shim.so"
        source.write_text(_SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        self._file = self.folder / "added-seconds"
        self._file.write_text("0")
        self.environment = {**os.environ, "LD_PRELOAD": str(library), "ADDED_SECONDS_FILE": str(self._file)}

    def set_clock(self, seconds):
        """Let the clock be so many seconds ahead of the host's, or behind it; return when Redis has noticed."""
        written = self._file.with_name("new-seconds")
        written.write_text(str(seconds))
        written.replace(self._file)
        with self.client() as client:
            while abs(client.time()[0] - time.time() - seconds) > 2:
                time.sleep(0.01)
