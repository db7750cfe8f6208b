/* Stands between a program and libc (LD_PRELOAD): notes what it does to the files below one folder, makes calls on
 * them fail when told to, and moves its wall clock. `shim.py` compiles it and explains the environment.
 *
 * Each call is made and noted under one lock, so that the order of the notes is the order of the calls, whatever
 * thread made them. Memory that is mapped is not seen: SQLite maps only its -shm, which it rebuilds after a crash.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, READ = 8 };       /* kinds of calls that can fail */
enum { DATABASE = 1, WAL = 2, JOURNAL = 4, FOLDER = 8, OTHER = 16 }; /* whose */

struct control { /* mapped from a file, so that others can change it; `Control` in shim.py has the same layout */
    int64_t clock_offset; /* nanoseconds that the wall clock is ahead */
    int64_t countdown;    /* matching calls that still pass before one fails; negative: none fails */
    int64_t kinds;
    int64_t files;
    int64_t error;
    int64_t times;        /* how many fail, negative: all from there on */
    int64_t failed;       /* how many have */
    int64_t is_torn;      /* a write that fails has written its first half */
};

struct note { /* followed by the name and, for a write, by what was written */
    char what;
    char padding[3];
    uint32_t name_length;
    int64_t a, b;
};

#define FDS 4096
static struct { int file; char name[120]; } known[FDS];
static char root[4096];
static size_t root_length;
static int notes = -1;
static struct control none = {.countdown = -1}, *control = &none;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIM_ROOT");
    if (path && strlen(path) < sizeof root) {
        strcpy(root, path);
        root_length = strlen(root);
    }
    if ((path = getenv("SHIM_NOTES")))
        notes = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((path = getenv("SHIM_CONTROL"))) {
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
        void *at = fd < 0 ? MAP_FAILED : mmap(0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED) control = at;
        if (fd >= 0) syscall(SYS_close, fd);
    }
}

static int ends(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

/* The name of a path below the root, "." for the root itself; NULL for all that does not concern us. */
static const char *inside(const char *path) {
    if (!root_length || !path || strncmp(path, root, root_length)) return NULL;
    const char *name = path + root_length;
    if (!*name) return ".";
    if (*name != '/' || strlen(name) > sizeof known[0].name) return NULL;
    while (*name == '/') name++;
    if (!*name) return ".";
    return ends(name, "-shm") || ends(name, "-lock") || ends(name, ".lock") ? NULL : name;
}

static int sort_of(const char *name, int flags) {
    if (!strcmp(name, ".") || flags & O_DIRECTORY) return FOLDER;
    if (ends(name, "-wal")) return WAL;
    if (ends(name, "-journal")) return JOURNAL;
    return ends(name, ".db") ? DATABASE : OTHER;
}

static int is_ours(int fd) { return fd >= 0 && fd < FDS && known[fd].file; }

static void note(char what, const char *name, int64_t a, int64_t b, const struct iovec *data, int pieces) {
    if (notes < 0) return;
    struct note head = {what, {0}, strlen(name), a, b};
    struct iovec all[20] = {{&head, sizeof head}, {(void *)name, head.name_length}};
    int64_t left = b;
    int n = 2;
    for (int i = 0; i < pieces && n < 20 && left > 0; i++, n++) {
        all[n] = data[i];
        if ((int64_t)all[n].iov_len > left) all[n].iov_len = left;
        left -= all[n].iov_len;
    }
    int kept = errno;
    if (syscall(SYS_writev, notes, all, n) < 0) abort(); /* a gap in the notes would prove nothing */
    errno = kept;
}

static int fails(int kind, int file) {
    if (control->countdown < 0 || !(control->kinds & kind) || !(control->files & file)) return 0;
    if (control->countdown > 0) {
        control->countdown--;
        return 0;
    }
    if (control->times == 0) return 0;
    if (control->times > 0) control->times--;
    control->failed++;
    return (int)control->error;
}

/* --- opening and closing ------------------------------------------------------------------------------------ */

static int open_as(const char *path, int flags, mode_t mode) {
    const char *name = inside(path);
    if (!name) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&lock);
    int was_there = !faccessat(AT_FDCWD, path, F_OK, 0);
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && fd < FDS) {
        struct stat found;
        int is_folder = !fstat(fd, &found) && S_ISDIR(found.st_mode);
        known[fd].file = sort_of(name, is_folder ? O_DIRECTORY : 0);
        strcpy(known[fd].name, name);
        if (!was_there) note('C', name, 0, 0, NULL, 0);
        else if (flags & O_TRUNC) note('T', name, 0, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags) mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) return open_as(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_as(path, flags, mode); }

int close(int fd) {
    if (!is_ours(fd)) return syscall(SYS_close, fd);
    pthread_mutex_lock(&lock);
    known[fd].file = 0;
    int result = syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return result;
}

/* --- writing ------------------------------------------------------------------------------------------------ */

static ssize_t put(int fd, const struct iovec *data, int pieces, int64_t at) {
    pthread_mutex_lock(&lock);
    int error = fails(WRITE, known[fd].file);
    struct iovec half = {data->iov_base, data->iov_len / 2};
    if (error && control->is_torn) data = &half, pieces = 1;
    ssize_t n = -1;
    if (!error || control->is_torn) {
        n = at < 0 ? syscall(SYS_writev, fd, data, pieces) : syscall(SYS_pwritev, fd, data, pieces, at, 0);
        if (n > 0) {
            int64_t end = at < 0 ? lseek(fd, 0, SEEK_CUR) : at + n;
            note('W', known[fd].name, end - n, n, data, pieces);
        }
    }
    if (error) n = -1, errno = error;
    pthread_mutex_unlock(&lock);
    return n;
}

ssize_t write(int fd, const void *from, size_t length) {
    struct iovec all = {(void *)from, length};
    return is_ours(fd) ? put(fd, &all, 1, -1) : syscall(SYS_write, fd, from, length);
}
ssize_t writev(int fd, const struct iovec *from, int pieces) {
    return is_ours(fd) && pieces <= 16 ? put(fd, from, pieces, -1) : syscall(SYS_writev, fd, from, pieces);
}
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at) {
    struct iovec all = {(void *)from, length};
    return is_ours(fd) ? put(fd, &all, 1, at) : syscall(SYS_pwrite64, fd, from, length, at);
}
ssize_t pwrite(int fd, const void *from, size_t length, off_t at) { return pwrite64(fd, from, length, at); }

int ftruncate64(int fd, off64_t size) {
    if (!is_ours(fd)) return syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    int error = fails(TRUNCATE, known[fd].file), result = -1;
    if (error) errno = error;
    else if (!(result = syscall(SYS_ftruncate, fd, size))) note('T', known[fd].name, size, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

/* --- syncing ------------------------------------------------------------------------------------------------ */

static int sync_as(int fd, long call) {
    if (!is_ours(fd)) return syscall(call, fd);
    pthread_mutex_lock(&lock);
    int error = fails(SYNC, known[fd].file);
    /* The disk of the test machine proves nothing, so it is spared: what counts is what the notes say was synced. */
    note(error ? 'E' : 'F', known[fd].name, 0, 0, NULL, 0);
    if (error) errno = error;
    pthread_mutex_unlock(&lock);
    return error ? -1 : 0;
}
int fsync(int fd) { return sync_as(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_as(fd, SYS_fdatasync); }

/* --- reading ------------------------------------------------------------------------------------------------ */

ssize_t pread64(int fd, void *to, size_t length, off64_t at) {
    if (is_ours(fd)) {
        pthread_mutex_lock(&lock);
        int error = fails(READ, known[fd].file);
        pthread_mutex_unlock(&lock);
        if (error) return errno = error, -1;
    }
    return syscall(SYS_pread64, fd, to, length, at);
}
ssize_t pread(int fd, void *to, size_t length, off_t at) { return pread64(fd, to, length, at); }

/* --- names -------------------------------------------------------------------------------------------------- */

int unlink(const char *path) {
    const char *name = inside(path);
    if (!name) return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    int result = REAL(unlink)(path);
    if (!result) note('U', name, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode) {
    const char *name = inside(path);
    if (!name) return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&lock);
    int result = REAL(mkdir)(path, mode);
    if (!result) note('M', name, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) {
    if (inside(from) || inside(to)) abort(); /* nothing here renames; whoever begins to has to be noted */
    return REAL(rename)(from, to);
}

/* --- the clock ---------------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, which, now);
    if (!result && control->clock_offset && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        int64_t all = now->tv_sec * INT64_C(1000000000) + now->tv_nsec + control->clock_offset;
        now->tv_sec = all / 1000000000, now->tv_nsec = all % 1000000000;
    }
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &fine)) return -1;
    now->tv_sec = fine.tv_sec, now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *into) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
