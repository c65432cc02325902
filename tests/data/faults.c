/* Preloaded into a process: the n-th call of a kind on anything below a folder fails, as faults_arm() says. Everything
   else goes on as ever. tests/python/faults.py is the other side. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>
#if __has_include(<liburing.h>)
#include <liburing.h>
#endif

/* The order is that of KINDS in faults.py. */
enum {
  OPEN, READ, WRITE, SYNC, RENAME, LINK, UNLINK, RMDIR, MKDIR, STAT, READDIR, MAP, LOCK, SPACE, CLOSE, READLINK, SUBMIT,
  RING_READ, KINDS
};

/* In place of an error number. */
enum { SHORT = -1, ENDED = -2, KILLED = -3 };

static char root[PATH_MAX];
static size_t root_length;
static atomic_int is_armed;
static int armed_kind, armed_fault, goes_on;
static long armed_call;
static atomic_long counts[KINDS];
static atomic_long hits;
static char hit_path[PATH_MAX];

/* `fault`: an error number, SHORT, ENDED, or KILLED: the process ends in place of the call. `on`: not that call alone, but all from it on. Call 0 only counts. */
void faults_arm(const char* folder, int kind, long call, int fault, int on) {
  atomic_store(&is_armed, 0);
  snprintf(root, sizeof root, "%s", folder);
  root_length = strlen(root);
  armed_kind = kind;
  armed_call = call;
  armed_fault = fault;
  goes_on = on;
  for (int i = 0; i < KINDS; ++i) atomic_store(&counts[i], 0);
  atomic_store(&hits, 0);
  hit_path[0] = '\0';
  atomic_store(&is_armed, 1);
}

void faults_disarm(void) { atomic_store(&is_armed, 0); }
long faults_count(int kind) { return atomic_load(&counts[kind]); }
long faults_hits(void) { return atomic_load(&hits); }
const char* faults_path(void) { return hit_path; }

static int is_below(const char* path) {
  return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == '\0');
}

/* 0: go on. */
static int fault_at(int kind, const char* path) {
  if (!is_below(path)) return 0;
  const long call = atomic_fetch_add(&counts[kind], 1) + 1;
  if (kind != armed_kind || armed_call == 0) return 0;
  if (goes_on ? call < armed_call : call != armed_call) return 0;
  if (atomic_fetch_add(&hits, 1) == 0) snprintf(hit_path, sizeof hit_path, "%s", path);
  if (armed_fault == KILLED) _exit(9);
  return armed_fault;
}

static int path_of(int descriptor, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const long got = syscall(SYS_readlink, link, path, PATH_MAX - 1);
  if (got < 0) return 0;
  path[got] = '\0';
  return 1;
}

static int by_descriptor(int kind, int descriptor) {
  if (!atomic_load(&is_armed)) return 0;
  const int before = errno;
  char path[PATH_MAX];
  const int fault = path_of(descriptor, path) ? fault_at(kind, path) : 0;
  errno = fault > 0 ? fault : before;
  return fault;
}

static int by_path(int kind, int folder, const char* name) {
  if (!atomic_load(&is_armed) || name == NULL) return 0;
  if (name[0] == '\0') return folder >= 0 ? by_descriptor(kind, folder) : 0;
  char path[2 * PATH_MAX];
  const int before = errno;
  if (name[0] == '/' || folder == AT_FDCWD) {
    if (name[0] != '/') return 0;
    snprintf(path, sizeof path, "%s", name);
  } else {
    if (!path_of(folder, path)) return 0;
    const size_t length = strlen(path);
    snprintf(path + length, sizeof path - length, "/%s", name);
  }
  const int fault = fault_at(kind, path);
  errno = fault > 0 ? fault : before;
  return fault;
}

#define ORIGINAL(name)                  \
  static __typeof__(&name) original;    \
  if (original == NULL) original = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Where there is no short or ended: EIO for those. */
static int fails(int fault) {
  if (fault != 0) errno = fault > 0 ? fault : EIO;
  return fault != 0;
}

/* --- opening -------------------------------------------------------------------------------------------------- */

#define MODE_OF(flags)                                 \
  mode_t mode = 0;                                     \
  if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { \
    va_list more;                                      \
    va_start(more, flags);                             \
    mode = va_arg(more, mode_t);                       \
    va_end(more);                                      \
  }

#define OPEN_PATH(name)                                         \
  int name(const char* path, int flags, ...) {                  \
    MODE_OF(flags)                                              \
    ORIGINAL(name);                                             \
    return fails(by_path(OPEN, AT_FDCWD, path)) ? -1 : original(path, flags, mode); \
  }
OPEN_PATH(open)
OPEN_PATH(open64)

#define OPEN_AT(name)                                           \
  int name(int folder, const char* path, int flags, ...) {      \
    MODE_OF(flags)                                              \
    ORIGINAL(name);                                             \
    return fails(by_path(OPEN, folder, path)) ? -1 : original(folder, path, flags, mode); \
  }
OPEN_AT(openat)
OPEN_AT(openat64)

#define OPEN_STREAM(name)                                       \
  FILE* name(const char* path, const char* how) {               \
    ORIGINAL(name);                                             \
    return fails(by_path(OPEN, AT_FDCWD, path)) ? NULL : original(path, how); \
  }
OPEN_STREAM(fopen)
OPEN_STREAM(fopen64)

DIR* opendir(const char* path) {
  ORIGINAL(opendir);
  return fails(by_path(OPEN, AT_FDCWD, path)) ? NULL : original(path);
}

int close(int descriptor) {
  ORIGINAL(close);
  const int fault = by_descriptor(CLOSE, descriptor);
  const int outcome = original(descriptor); /* which it is, whatever is said of it */
  return fails(fault) ? -1 : outcome;
}

/* --- reading and writing -------------------------------------------------------------------------------------- */

#define MOVE(kind, name, parameters, count, arguments)              \
  ssize_t name parameters {                                         \
    ORIGINAL(name);                                                 \
    const int fault = by_descriptor(kind, descriptor);              \
    if (fault == ENDED) return 0;                                   \
    if (fault > 0) return -1;                                       \
    if (fault == SHORT && count > 1) count /= 2;                    \
    return original arguments;                                      \
  }
MOVE(READ, read, (int descriptor, void* to, size_t count), count, (descriptor, to, count))
MOVE(READ, pread, (int descriptor, void* to, size_t count, off_t at), count, (descriptor, to, count, at))
MOVE(READ, pread64, (int descriptor, void* to, size_t count, off64_t at), count, (descriptor, to, count, at))
MOVE(WRITE, write, (int descriptor, const void* from, size_t count), count, (descriptor, from, count))
MOVE(WRITE, pwrite, (int descriptor, const void* from, size_t count, off_t at), count, (descriptor, from, count, at))
MOVE(WRITE, pwrite64, (int descriptor, const void* from, size_t count, off64_t at), count, (descriptor, from, count, at))
MOVE(WRITE, copy_file_range, (int descriptor, off64_t* from, int to, off64_t* at, size_t count, unsigned flags), count,
     (descriptor, from, to, at, count, flags))
MOVE(WRITE, sendfile, (int to, int descriptor, off_t* at, size_t count), count, (to, descriptor, at, count))
MOVE(WRITE, sendfile64, (int to, int descriptor, off64_t* at, size_t count), count, (to, descriptor, at, count))

/* A short one moves half of the first part. */
#define MOVE_PARTS(kind, name, parameters, short_arguments, arguments) \
  ssize_t name parameters {                                         \
    ORIGINAL(name);                                                 \
    const int fault = by_descriptor(kind, descriptor);              \
    if (fault == ENDED) return 0;                                   \
    if (fault > 0) return -1;                                       \
    if (fault == SHORT && parts[0].iov_len > 1) {                   \
      const struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2}; \
      return original short_arguments;                              \
    }                                                               \
    return original arguments;                                      \
  }
#define PARTS int descriptor, const struct iovec *parts, int count
MOVE_PARTS(READ, preadv, (PARTS, off_t at), (descriptor, &half, 1, at), (descriptor, parts, count, at))
MOVE_PARTS(READ, preadv64, (PARTS, off64_t at), (descriptor, &half, 1, at), (descriptor, parts, count, at))
MOVE_PARTS(READ, preadv2, (PARTS, off_t at, int flags), (descriptor, &half, 1, at, flags), (descriptor, parts, count, at, flags))
MOVE_PARTS(READ, preadv64v2, (PARTS, off64_t at, int flags), (descriptor, &half, 1, at, flags), (descriptor, parts, count, at, flags))
MOVE_PARTS(WRITE, pwritev, (PARTS, off_t at), (descriptor, &half, 1, at), (descriptor, parts, count, at))
MOVE_PARTS(WRITE, pwritev64, (PARTS, off64_t at), (descriptor, &half, 1, at), (descriptor, parts, count, at))
MOVE_PARTS(WRITE, writev, (PARTS), (descriptor, &half, 1), (descriptor, parts, count))

/* --- calls that succeed or fail ------------------------------------------------------------------------------- */

#define ON_DESCRIPTOR(kind, name, parameters, arguments)            \
  int name parameters {                                             \
    ORIGINAL(name);                                                 \
    return fails(by_descriptor(kind, descriptor)) ? -1 : original arguments; \
  }
ON_DESCRIPTOR(SYNC, fsync, (int descriptor), (descriptor))
ON_DESCRIPTOR(SYNC, fdatasync, (int descriptor), (descriptor))
ON_DESCRIPTOR(LOCK, flock, (int descriptor, int how), (descriptor, how))
ON_DESCRIPTOR(SPACE, fallocate, (int descriptor, int how, off_t at, off_t count), (descriptor, how, at, count))
ON_DESCRIPTOR(SPACE, fallocate64, (int descriptor, int how, off64_t at, off64_t count), (descriptor, how, at, count))
ON_DESCRIPTOR(SPACE, ftruncate, (int descriptor, off_t count), (descriptor, count))
ON_DESCRIPTOR(SPACE, ftruncate64, (int descriptor, off64_t count), (descriptor, count))
ON_DESCRIPTOR(STAT, fstat, (int descriptor, struct stat* into), (descriptor, into))
ON_DESCRIPTOR(STAT, fstat64, (int descriptor, struct stat64* into), (descriptor, into))
ON_DESCRIPTOR(STAT, fstatfs, (int descriptor, struct statfs* into), (descriptor, into))
ON_DESCRIPTOR(STAT, fstatfs64, (int descriptor, struct statfs64* into), (descriptor, into))

#define SET_ASIDE(name, offset)                                     \
  int name(int descriptor, offset at, offset count) {               \
    ORIGINAL(name);                                                 \
    const int fault = by_descriptor(SPACE, descriptor);             \
    return fault != 0 ? (fault > 0 ? fault : EIO) : original(descriptor, at, count); \
  }
SET_ASIDE(posix_fallocate, off_t)
SET_ASIDE(posix_fallocate64, off64_t)

#define ON_PATH(kind, name, parameters, folder, path, arguments)    \
  int name parameters {                                             \
    ORIGINAL(name);                                                 \
    return fails(by_path(kind, folder, path)) ? -1 : original arguments; \
  }
#define HERE AT_FDCWD
ON_PATH(RENAME, rename, (const char* from, const char* to), HERE, to, (from, to))
ON_PATH(RENAME, renameat, (int f, const char* from, int t, const char* to), t, to, (f, from, t, to))
ON_PATH(RENAME, renameat2, (int f, const char* from, int t, const char* to, unsigned how), t, to, (f, from, t, to, how))
ON_PATH(LINK, link, (const char* from, const char* to), HERE, to, (from, to))
ON_PATH(LINK, linkat, (int f, const char* from, int t, const char* to, int how), t, to, (f, from, t, to, how))
ON_PATH(LINK, symlink, (const char* text, const char* to), HERE, to, (text, to))
ON_PATH(UNLINK, unlink, (const char* path), HERE, path, (path))
ON_PATH(UNLINK, remove, (const char* path), HERE, path, (path))
ON_PATH(UNLINK, unlinkat, (int folder, const char* path, int how), folder, path, (folder, path, how))
ON_PATH(RMDIR, rmdir, (const char* path), HERE, path, (path))
ON_PATH(MKDIR, mkdir, (const char* path, mode_t mode), HERE, path, (path, mode))
ON_PATH(MKDIR, mkdirat, (int folder, const char* path, mode_t mode), folder, path, (folder, path, mode))
ON_PATH(STAT, stat, (const char* path, struct stat* into), HERE, path, (path, into))
ON_PATH(STAT, stat64, (const char* path, struct stat64* into), HERE, path, (path, into))
ON_PATH(STAT, lstat, (const char* path, struct stat* into), HERE, path, (path, into))
ON_PATH(STAT, lstat64, (const char* path, struct stat64* into), HERE, path, (path, into))
ON_PATH(STAT, fstatat, (int folder, const char* path, struct stat* into, int how), folder, path, (folder, path, into, how))
ON_PATH(STAT, fstatat64, (int folder, const char* path, struct stat64* into, int how), folder, path, (folder, path, into, how))
ON_PATH(STAT, statx, (int folder, const char* path, int how, unsigned mask, struct statx* into), folder, path,
        (folder, path, how, mask, into))
ON_PATH(STAT, access, (const char* path, int how), HERE, path, (path, how))
ON_PATH(STAT, faccessat, (int folder, const char* path, int how, int flags), folder, path, (folder, path, how, flags))
ON_PATH(STAT, statfs, (const char* path, struct statfs* into), HERE, path, (path, into))
ON_PATH(STAT, statfs64, (const char* path, struct statfs64* into), HERE, path, (path, into))
ON_PATH(STAT, statvfs, (const char* path, struct statvfs* into), HERE, path, (path, into))
ON_PATH(STAT, statvfs64, (const char* path, struct statvfs64* into), HERE, path, (path, into))

ssize_t readlink(const char* path, char* into, size_t count) {
  ORIGINAL(readlink);
  return fails(by_path(READLINK, AT_FDCWD, path)) ? -1 : original(path, into, count);
}

ssize_t readlinkat(int folder, const char* path, char* into, size_t count) {
  ORIGINAL(readlinkat);
  return fails(by_path(READLINK, folder, path)) ? -1 : original(folder, path, into, count);
}

char* realpath(const char* path, char* into) {
  static char* (*original)(const char*, char*); /* of two versions, the one that takes no memory to write to */
  if (original == NULL) original = (char* (*)(const char*, char*))dlvsym(RTLD_NEXT, "realpath", "GLIBC_2.3");
  return fails(by_path(READLINK, AT_FDCWD, path)) ? NULL : original(path, into);
}

#define LIST(name, entry)                                           \
  struct entry* name(DIR* folder) {                                 \
    ORIGINAL(name);                                                 \
    return fails(by_descriptor(READDIR, dirfd(folder))) ? NULL : original(folder); \
  }
LIST(readdir, dirent)
LIST(readdir64, dirent64)

#define MAPPING(name, offset)                                       \
  void* name(void* at, size_t count, int protection, int flags, int descriptor, offset from) { \
    ORIGINAL(name);                                                 \
    if (descriptor >= 0 && fails(by_descriptor(MAP, descriptor))) return MAP_FAILED; \
    return original(at, count, protection, flags, descriptor, from); \
  }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)

#ifdef LIB_URING_H
/* SUBMIT: the kernel refuses. RING_READ: the read completes with an error (that of a descriptor that is none), or with
   half of what was asked for. */
int io_uring_submit(struct io_uring* ring) {
  static int (*original)(struct io_uring*);
  /* It came with the module, after the libraries that RTLD_NEXT looks through. */
  if (original == NULL)
    original = (int (*)(struct io_uring*))dlsym(dlopen("liburing.so.2", RTLD_LAZY | RTLD_NOLOAD), "io_uring_submit");
  struct io_uring_sqe* entry = &ring->sq.sqes[(ring->sq.sqe_tail - 1) & *ring->sq.kring_mask];
  if (ring->sq.sqe_tail != *ring->sq.khead && entry->opcode == IORING_OP_READ) {
    const int refusal = by_descriptor(SUBMIT, entry->fd);
    if (refusal != 0) return refusal > 0 ? -refusal : -EIO;
    const int fault = by_descriptor(RING_READ, entry->fd);
    if (fault == ENDED) entry->off = (unsigned long long)1 << 50;
    if (fault == SHORT && entry->len > 1) entry->len /= 2;
    if (fault > 0) entry->fd = -1;
  }
  return original(ring);
}
#endif
