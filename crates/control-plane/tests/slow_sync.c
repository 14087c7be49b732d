/* fsync and fdatasync that take SYNC_MICROS longer, for whoever loads this first (LD_PRELOAD). */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_longer(void) {
    const char *text = getenv("SYNC_MICROS");
    long micros = text ? atol(text) : 0;
    struct timespec time = {micros / 1000000, micros % 1000000 * 1000};
    nanosleep(&time, 0);
}

int fsync(int fd) {
    int result = syscall(SYS_fsync, fd);
    wait_longer();
    return result;
}

int fdatasync(int fd) {
    int result = syscall(SYS_fdatasync, fd);
    wait_longer();
    return result;
}
