/* Counts what a process asks the disk to make durable. Loaded into the gateway by LD_PRELOAD; the count is the first
 * eight bytes of the file SYNCS, mapped, so that the bench reads it while the process runs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic uint64_t *count;

__attribute__((constructor)) static void set_up(void) {
    int fd = open(getenv("SYNCS"), O_RDWR | O_CLOEXEC);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) abort();
    count = mapped;
    close(fd);
}

static int counted(const char *name, int fd) {
    atomic_fetch_add(count, 1);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd) { return counted("fsync", fd); }
int fdatasync(int fd) { return counted("fdatasync", fd); }
