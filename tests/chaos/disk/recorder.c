/* Records what a process writes below one directory, and what it makes durable, in the order in which it happened.
 *
 * Loaded with LD_PRELOAD. DISK_ROOT is the directory, DISK_JOURNAL the file that the records are appended to, by all
 * processes together. A file named by DISK_FAIL makes the next fsync of the file that it names fail with EIO, once.
 * A record: struct head, the path (first of two for a rename, each ended by a zero byte), the data.
 * See tests/chaos/disk/model.py, which reads it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, SYNC_DIRECTORY, RENAME, UNLINK, MKDIR, SYNC_FAILED };

struct head {
    uint32_t op;
    uint32_t path;   /* bytes of the path */
    uint64_t inode;
    uint64_t offset; /* or the new size */
    uint64_t length; /* bytes of data that follow the path */
};

#define FILES 65536
static uint64_t inodes[FILES]; /* by descriptor; 0: not below the root */
static char is_directory[FILES];
static const char *root;
static size_t root_length;
static int journal = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real_##name)
#define NEXT(name) \
    static void *real_##name; \
    if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DISK_JOURNAL");
    root = getenv("DISK_ROOT");
    if (!root || !path) { root = NULL; return; }
    root_length = strlen(root);
    journal = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (journal >= 0) { /* out of the way of what the program expects to be the next descriptor */
        int high = (int)syscall(SYS_fcntl, journal, F_DUPFD_CLOEXEC, 1000);
        if (high >= 0) { syscall(SYS_close, journal); journal = high; }
    }
}

static void lock(void) { pthread_mutex_lock(&mutex); syscall(SYS_flock, journal, LOCK_EX); }
static void unlock(void) {
    int kept = errno;
    syscall(SYS_flock, journal, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = kept;
}

static void record(uint32_t op, uint64_t inode, uint64_t offset, const char *path, size_t path_length,
                   const struct iovec *data, int count, uint64_t length) {
    int kept = errno;
    struct head head = {op, (uint32_t)path_length, inode, offset, length};
    struct iovec all[64];
    all[0] = (struct iovec){&head, sizeof head};
    all[1] = (struct iovec){(void *)path, path_length};
    int used = 2;
    uint64_t left = length;
    for (int i = 0; i < count && left && used < 64; i++) {
        size_t part = data[i].iov_len < left ? data[i].iov_len : left;
        all[used++] = (struct iovec){data[i].iov_base, part};
        left -= part;
    }
    if (syscall(SYS_writev, journal, all, used) < 0) abort();
    errno = kept;
}

/* The path below the root, with a leading slash; NULL: it is not ours. Files that are made anew at each start or only
 * shared as memory say nothing. */
static const char *below(const char *path, char *buffer) {
    if (!root || !path) return NULL;
    if (path[0] != '/') {
        if (!getcwd(buffer, PATH_MAX)) return NULL;
        size_t used = strlen(buffer);
        snprintf(buffer + used, PATH_MAX - used, "/%s", path);
        path = buffer;
    }
    if (strncmp(path, root, root_length) || (path[root_length] != '/' && path[root_length])) return NULL;
    const char *found = path + root_length;
    size_t length = strlen(found);
    if (length >= 4 && !strcmp(found + length - 4, "-shm")) return NULL;
    if (length >= 5 && !strcmp(found + length - 5, ".lock")) return NULL;
    return *found ? found : "/";
}

static int opened(int fd, const char *path, int flags, int existed) {
    if (fd < 0 || fd >= FILES) return fd;
    inodes[fd] = 0;
    char buffer[PATH_MAX];
    const char *name = below(path, buffer);
    struct stat found;
    if (!name || fstat(fd, &found)) return fd;
    inodes[fd] = found.st_ino;
    is_directory[fd] = S_ISDIR(found.st_mode);
    if ((flags & O_CREAT) && !existed) record(CREATE, found.st_ino, 0, name, strlen(name) + 1, NULL, 0, 0);
    else if (flags & O_TRUNC) record(TRUNCATE, found.st_ino, 0, "", 0, NULL, 0, 0);
    return fd;
}

static int do_open(int directory, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    if (directory != AT_FDCWD || !below(path, buffer)) {
        int fd = (int)syscall(SYS_openat, directory, path, flags, mode);
        if (fd >= 0 && fd < FILES) inodes[fd] = 0;
        return fd;
    }
    lock();
    int existed = !access(path, F_OK);
    int fd = opened((int)syscall(SYS_openat, directory, path, flags, mode), path, flags, existed);
    unlock();
    return fd;
}

#define MODE(last) \
    mode_t mode = 0; \
    if (last & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return do_open(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return do_open(at, path, flags, mode); }
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
    if (fd >= 0 && fd < FILES) inodes[fd] = 0;
    return (int)syscall(SYS_close, fd);
}

static uint64_t ours(int fd) { return root && fd >= 0 && fd < FILES ? inodes[fd] : 0; }

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    uint64_t inode = ours(fd);
    if (!inode) return syscall(SYS_pwrite64, fd, data, size, offset);
    lock();
    ssize_t done = syscall(SYS_pwrite64, fd, data, size, offset);
    struct iovec part = {(void *)data, size};
    if (done > 0) record(WRITE, inode, (uint64_t)offset, "", 0, &part, 1, (uint64_t)done);
    unlock();
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    uint64_t inode = ours(fd);
    if (!inode || count > 60) return syscall(SYS_writev, fd, parts, count);
    lock();
    ssize_t done = syscall(SYS_writev, fd, parts, count);
    if (done > 0) {
        off_t end = (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
        record(WRITE, inode, (uint64_t)(end - done), "", 0, parts, count, (uint64_t)done);
    }
    unlock();
    return done;
}

ssize_t write(int fd, const void *data, size_t size) {
    if (!ours(fd)) return syscall(SYS_write, fd, data, size);
    struct iovec part = {(void *)data, size};
    return writev(fd, &part, 1);
}

int ftruncate64(int fd, off64_t size) {
    uint64_t inode = ours(fd);
    if (!inode) return (int)syscall(SYS_ftruncate, fd, size);
    lock();
    int code = (int)syscall(SYS_ftruncate, fd, size);
    if (!code) record(TRUNCATE, inode, (uint64_t)size, "", 0, NULL, 0, 0);
    unlock();
    return code;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int allocate(int fd, int mode, off64_t offset, off64_t length) {
    uint64_t inode = ours(fd);
    if (!inode) return (int)syscall(SYS_fallocate, fd, mode, offset, length);
    lock();
    int code = (int)syscall(SYS_fallocate, fd, mode, offset, length);
    struct stat found;
    if (!code && !fstat(fd, &found)) record(TRUNCATE, inode, (uint64_t)found.st_size, "", 0, NULL, 0, 0);
    unlock();
    return code;
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return allocate(fd, mode, offset, length); }
int fallocate(int fd, int mode, off_t offset, off_t length) { return allocate(fd, mode, offset, length); }
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return allocate(fd, 0, offset, length) ? errno : 0; }
int posix_fallocate(int fd, off_t offset, off_t length) { return allocate(fd, 0, offset, length) ? errno : 0; }

/* Whether this fsync is the one that is to fail. */
static int fails(int fd) {
    const char *order = getenv("DISK_FAIL");
    char wanted[PATH_MAX], link[64], path[PATH_MAX];
    if (!order) return 0;
    int file = (int)syscall(SYS_openat, AT_FDCWD, order, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return 0;
    ssize_t size = syscall(SYS_read, file, wanted, sizeof wanted - 1);
    syscall(SYS_close, file);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (size <= 0 || length < 0) return 0;
    wanted[size] = path[length] = 0;
    const char *name = strrchr(path, '/');
    if (!name || strcmp(name + 1, wanted)) return 0;
    return !syscall(SYS_unlinkat, AT_FDCWD, order, 0);
}

static int synced(long call, int fd) {
    uint64_t inode = ours(fd);
    if (!inode) return (int)syscall(call, fd);
    lock();
    int code;
    if (is_directory[fd]) {
        char link[64], path[PATH_MAX], buffer[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        code = (int)syscall(call, fd);
        if (!code && length > 0) {
            path[length] = 0;
            const char *name = below(path, buffer);
            if (name) record(SYNC_DIRECTORY, inode, 0, name, strlen(name) + 1, NULL, 0, 0);
        }
    } else if (fails(fd)) {
        record(SYNC_FAILED, inode, 0, "", 0, NULL, 0, 0);
        errno = EIO;
        code = -1;
    } else {
        code = (int)syscall(call, fd);
        if (!code) record(SYNC, inode, 0, "", 0, NULL, 0, 0);
    }
    unlock();
    return code;
}
int fsync(int fd) { return synced(SYS_fsync, fd); }
int fdatasync(int fd) { return synced(SYS_fdatasync, fd); }

static int renamed(const char *from, const char *to, unsigned flags) {
    char one[PATH_MAX], two[PATH_MAX], both[2 * PATH_MAX];
    const char *a = below(from, one), *b = below(to, two);
    if (!a || !b) return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
    lock();
    int code = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
    if (!code) {
        size_t first = strlen(a) + 1, second = strlen(b) + 1;
        memcpy(both, a, first);
        memcpy(both + first, b, second);
        record(RENAME, 0, 0, both, first + second, NULL, 0, 0);
    }
    unlock();
    return code;
}
int rename(const char *from, const char *to) { return renamed(from, to, 0); }
int renameat(int a, const char *from, int b, const char *to) {
    if (a == AT_FDCWD && b == AT_FDCWD) return renamed(from, to, 0);
    return (int)syscall(SYS_renameat2, a, from, b, to, 0);
}

static int unlinked(int at, const char *path, int flags) {
    char buffer[PATH_MAX], link[64], whole[2 * PATH_MAX];
    const char *full = path;
    if (at != AT_FDCWD && path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, whole, PATH_MAX - 1);
        if (length < 0) return (int)syscall(SYS_unlinkat, at, path, flags);
        snprintf(whole + length, sizeof whole - (size_t)length, "/%s", path);
        full = whole;
    }
    const char *name = below(full, buffer);
    if (!name) return (int)syscall(SYS_unlinkat, at, path, flags);
    lock();
    int code = (int)syscall(SYS_unlinkat, at, path, flags);
    if (!code) record(UNLINK, 0, 0, name, strlen(name) + 1, NULL, 0, 0);
    unlock();
    return code;
}
int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlinked(at, path, flags); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    char buffer[PATH_MAX];
    const char *name = below(path, buffer);
    if (!name) return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    lock();
    int code = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (!code) record(MKDIR, 0, 0, name, strlen(name) + 1, NULL, 0, 0);
    unlock();
    return code;
}
