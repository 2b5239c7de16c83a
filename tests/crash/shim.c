/* Stands between the gateway and the C library, so that a test can fail its disk and move its clock.
 *
 * The tests compile it and load it into `gateway serve` by LD_PRELOAD. It looks at the calls that change files whose
 * path begins with SHIM_DATABASE (the database, its log, its mark; not what a power cut may take anyway), and
 *
 *   - notes each of them, in order, in the file SHIM_JOURNAL: a test plays the notes and so knows what a disk has
 *     after a power cut (shim.rs, "Journal");
 *   - makes some of them fail, and moves the wall clock, as the numbers in the file SHIM_CONTROL say. The file is
 *     mapped: a test changes them while the server runs.
 *
 * Each variable may be missing; what it is for is then left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The function of this name that would have been called without us. */
#define REAL(name)                                                                                                     \
    ({                                                                                                                 \
        static __typeof__(&name) real;                                                                                 \
        if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                  \
        real;                                                                                                          \
    })

/* What a call does, as far as a fault is concerned. Truncating writes. */
enum operation { WRITE, SYNC, OPERATIONS };

/* Which file a call is about. */
enum file { NONE = 0, DATABASE = 1, LOG = 2, OTHER = 4, FOLDER = 8 };

/* The numbers of SHIM_CONTROL; shim.rs has the same. */
struct control {
    int64_t files;                     /* sum of `enum file`: whose calls are counted and fail */
    int64_t error;                     /* errno of those that fail */
    int64_t many;                      /* how many fail, one after the other */
    int64_t from[OPERATIONS];          /* the first to fail, counted from 1; 0: none does */
    _Atomic int64_t seen[OPERATIONS];  /* calls counted so far */
    int64_t clock_ahead;               /* nanoseconds: added to the wall clock */
    int64_t clock_drift;               /* added for each nanosecond */
    int64_t clock_since;               /* of the wall clock since this moment, in nanoseconds */
};

/* The head of a note; the name and `length` bytes of data follow. */
struct note {
    uint32_t kind;
    uint32_t name_length;
    uint64_t offset;
    uint64_t length;
};

enum kind {
    WRITTEN = 1,   /* data at offset */
    TRUNCATED = 2, /* to offset */
    SYNCED = 3,    /* what the first `offset` bytes of the journal say of this file is on the disk */
    LOST = 4,      /* and this is not, and will never be: the sync failed */
    UNLINKED = 5,
    RENAMED = 6, /* the data is the new name */
    LISTED = 7,  /* what the first `offset` bytes of the journal say of names in the folder is on the disk */
};

static char database[PATH_MAX];
static char folder[PATH_MAX];
static int journal = -1;
static struct control *control;

__attribute__((constructor)) static void set_up(void) {
    const char *path = getenv("SHIM_DATABASE");
    if (path && realpath(path, database) == NULL) snprintf(database, sizeof database, "%s", path);
    snprintf(folder, sizeof folder, "%s", database);
    char *slash = strrchr(folder, '/');
    if (slash) *slash = 0;
    if ((path = getenv("SHIM_JOURNAL"))) journal = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((path = getenv("SHIM_CONTROL"))) {
        int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
        void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (mapped == MAP_FAILED) {
            fprintf(stderr, "shim: %s cannot be mapped\n", path);
            abort();
        }
        control = mapped;
        close(fd);
    }
}

/* Which file a path is, and what follows the database's path in it. The index, the lock and the ballast have nothing
 * that a power cut could take. */
static enum file which(const char *path, const char **name) {
    size_t length = strlen(database);
    if (length == 0) return NONE;
    if (strcmp(path, folder) == 0) {
        *name = "";
        return FOLDER;
    }
    if (strncmp(path, database, length) != 0) return NONE;
    *name = path + length;
    if (**name == 0) return DATABASE;
    if (strcmp(*name, "-wal") == 0) return LOG;
    if (!strcmp(*name, "-shm") || !strcmp(*name, ".lock") || !strcmp(*name, ".ballast")) return NONE;
    return OTHER;
}

/* The same of a file that is open. `path` keeps what `name` points into. */
static enum file which_open(int fd, char path[PATH_MAX], const char **name) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return NONE;
    path[length] = 0;
    return which(path, name);
}

/* Appends a note. One writev to a file opened with O_APPEND is one piece, whoever else writes. */
static void note(enum kind kind, const char *name, uint64_t offset, const void *data, size_t length) {
    if (journal < 0) return;
    struct note head = {kind, (uint32_t)strlen(name), offset, length};
    struct iovec pieces[] = {{&head, sizeof head}, {(void *)name, head.name_length}, {(void *)data, length}};
    int saved = errno;
    if (writev(journal, pieces, 3) != (ssize_t)(sizeof head + head.name_length + length)) {
        fprintf(stderr, "shim: the journal cannot be written\n");
        abort();
    }
    errno = saved;
}

/* How long the journal is: a sync that begins now covers what it says, and not what comes while the sync runs. */
static uint64_t noted(void) {
    struct stat now;
    return journal >= 0 && fstat(journal, &now) == 0 ? (uint64_t)now.st_size : 0;
}

/* Whether this call is one that fails; errno is set then. */
static int fails(enum operation operation, enum file file) {
    if (!control || !(control->files & file)) return 0;
    int64_t number = atomic_fetch_add(&control->seen[operation], 1) + 1;
    int64_t from = control->from[operation];
    if (from == 0 || number < from || number - from >= control->many) return 0;
    errno = (int)control->error;
    return 1;
}

static ssize_t written(int fd, const void *data, size_t length, off_t offset) {
    char path[PATH_MAX];
    const char *name;
    enum file file = which_open(fd, path, &name);
    if (file != NONE && fails(WRITE, file)) return -1;
    ssize_t done = REAL(pwrite)(fd, data, length, offset);
    if (file != NONE && done > 0) note(WRITTEN, name, (uint64_t)offset, data, (size_t)done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return written(fd, data, length, offset); }

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return written(fd, data, length, offset); }

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    const char *name;
    enum file file = which_open(fd, path, &name);
    if (file == NONE) return REAL(write)(fd, data, length);
    if (fails(WRITE, file)) return -1;
    ssize_t done = REAL(write)(fd, data, length);
    if (done > 0) note(WRITTEN, name, (uint64_t)(lseek(fd, 0, SEEK_CUR) - done), data, (size_t)done);
    return done;
}

static int truncated(int fd, off_t length) {
    char path[PATH_MAX];
    const char *name;
    enum file file = which_open(fd, path, &name);
    if (file != NONE && fails(WRITE, file)) return -1;
    int done = REAL(ftruncate)(fd, length);
    if (file != NONE && done == 0) note(TRUNCATED, name, (uint64_t)length, NULL, 0);
    return done;
}

int ftruncate(int fd, off_t length) { return truncated(fd, length); }

int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }

static int synced(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    const char *name;
    enum file file = which_open(fd, path, &name);
    if (file == NONE) return real(fd);
    uint64_t covered = noted();
    if (fails(SYNC, file)) {
        /* The kernel forgets what it could not write, and each open file is told once. The log is written by one
         * connection and synced by several, so only of the database is it known that nobody else is told. */
        if (file == DATABASE) note(LOST, name, covered, NULL, 0);
        return -1;
    }
    int done = real(fd);
    if (done == 0) note(file == FOLDER ? LISTED : SYNCED, name, covered, NULL, 0);
    return done;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }

int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

int unlink(const char *path) {
    const char *name;
    int done = REAL(unlink)(path);
    if (done == 0 && which(path, &name) != NONE) note(UNLINKED, name, 0, NULL, 0);
    return done;
}

int rename(const char *from, const char *to) {
    const char *name, *new_name;
    int done = REAL(rename)(from, to);
    if (done == 0 && which(from, &name) != NONE && which(to, &new_name) != NONE)
        note(RENAMED, name, 0, new_name, strlen(new_name));
    return done;
}

static int opened(int fd, const char *path, int flags) {
    const char *name;
    enum file file = fd >= 0 && (flags & O_TRUNC) ? which(path, &name) : NONE;
    if (file != NONE) note(TRUNCATED, name, 0, NULL, 0);
    return fd;
}

/* The third argument is only there when a file may be made; the real function looks no sooner than we would. */
static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return opened(REAL(open)(path, flags, mode), path, flags);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return opened(REAL(open)(path, flags | O_LARGEFILE, mode), path, flags);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = REAL(clock_gettime)(clock, now);
    if (done != 0 || clock != CLOCK_REALTIME || !control) return done;
    const int64_t second = 1000000000;
    int64_t real = (int64_t)now->tv_sec * second + now->tv_nsec;
    int64_t moved = real + control->clock_ahead + control->clock_drift * (real - control->clock_since);
    now->tv_sec = moved / second;
    now->tv_nsec = moved % second;
    return 0;
}
