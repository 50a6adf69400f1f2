"""The batch receiver in C, under the sanitizers: Linux's way and that of other platforms, on a group on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bare_kernel  # options of multicast sockets, LeakSanitizer

ROOT = Path(__file__).resolve().parents[2]

HARNESS = r"""
#define _GNU_SOURCE 1
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>
#include "workers/sources/multicast.h"

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static size_t packet(uint8_t *p, unsigned first, unsigned messages) {
    memcpy(p, "TESTING001", 10);
    memset(p + 10, 0, 10 + messages * 10);
    p[16] = (uint8_t)(first >> 8), p[17] = (uint8_t)first, p[19] = (uint8_t)messages;
    for (unsigned i = 0; i < messages; i++) p[20 + i * 10 + 1] = 8;
    return 20 + messages * 10;
}

int main(void) {
    uint32_t group = inet_addr("239.255.74.1"), loop = inet_addr("127.0.0.1");
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {group}};
    socklen_t size = sizeof at;
    int rx = socket(AF_INET, SOCK_DGRAM, 0), tx = socket(AF_INET, SOCK_DGRAM, 0);
    struct in_addr interface = {loop};
    if (bind(rx, (void *)&at, sizeof at) || getsockname(rx, (void *)&at, &size)) return 2;
    if (mc_join(rx, group, loop, 0) || mc_stamp(rx)) return 3;
    if (mc_join(rx, inet_addr("10.0.0.1"), loop, 0) == 0) return 4;  /* no group */
    if (setsockopt(tx, IPPROTO_IP, IP_MULTICAST_IF, &interface, sizeof interface)) return 5;

    struct arbiter a;
    struct mc_socket s = {.fd = rx, .line = 1};
    if (!arb_open(&a, ARB_MOLD, 4, 8, 128)) return 6;
    if (mc_receive(&s, &a, 1) != 0) return 7;  /* nothing is there: it does not wait */
    uint8_t data[256];
    int64_t before = now_ns();
    for (unsigned n = 1; n <= 20; n++) sendto(tx, data, packet(data, n, 1), 0, (void *)&at, sizeof at);
    sendto(tx, data, packet(data, 21, 20), 0, (void *)&at, sizeof at);  /* 220 bytes: longer than a slot */
    sendto(tx, data, packet(data, 21, 1), 0, (void *)&at, sizeof at);
    int got = 0, frames = 0, wrong = 0;
    while (got < 22) {
        struct pollfd ready = {rx, POLLIN, 0};
        if (poll(&ready, 1, 30000) != 1) return 8;
        int more = mc_receive(&s, &a, 7);
        if (more < 0 || more > 12) return 9;  /* no more than slots are free */
        got += more;
        for (uint32_t i = 0; i < a.frames; i++, frames++) {
            const struct tk_frame *frame = &a.frame[i];
            wrong += a.arena[frame->offset + 17] != frames + 1;
            wrong += frame->ts_receive < before / 1000 * 1000 || frame->ts_receive > now_ns();  /* not the caller's 7 */
        }
        arb_recycle(&a);
    }
    printf("%d received %d frames %d wrong %u truncated %u refused %u unstamped %u won\n", got, frames, wrong,
           (unsigned)s.truncated, (unsigned)a.line[1].refused, (unsigned)s.unstamped, (unsigned)a.line[1].won);
    sendto(tx, data, packet(data, 22, 1), 0, (void *)&at, sizeof at);
    struct pollfd ready = {rx, POLLIN, 0};
    if (poll(&ready, 1, 30000) != 1 || mc_discard(&s) != 1 || mc_receive(&s, &a, 1) != 0) return 10;
    close(rx);
    if (mc_receive(&s, &a, 1) != -EBADF) return 11;
    arb_close(&a);
    close(tx);
    return 0;
}
"""


@pytest.mark.parametrize("way", ["", "-DTK_MC_PORTABLE"], ids=["native", "portable"])
def test_datagrams_come_whole_in_order_and_stamped_by_the_kernel(tmp_path: Path, way: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, binary = tmp_path / "receive.c", tmp_path / "receive"
    source.write_text(HARNESS)
    command = [compiler, "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-Wall", "-Werror", "-Wno-unused-function", f"-I{ROOT}", *([way] if way else []), str(source)]
    command += ["-o", str(binary), *(["-lrt"] if sys.platform == "linux" else [])]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -l" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler has no sanitizers here")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(binary)], capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, f"{ran.returncode}: {ran.stderr[-3000:]}"
    assert ran.stdout == "22 received 21 frames 0 wrong 1 truncated 1 refused 0 unstamped 21 won\n"
