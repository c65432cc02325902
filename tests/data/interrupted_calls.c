/* Preloaded: every second system call that the library makes on files is interrupted by a signal, as far as it can
   tell: it fails with EINTR and does nothing. Calls of others, such as Python's own, are left alone. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static __thread unsigned calls;
static unsigned interrupted;

__attribute__((destructor)) static void tell(void) {
  const char* file = getenv("SHARDWRIGHT_TEST_INTERRUPTED");
  FILE* out = file == NULL ? NULL : fopen(file, "w");
  if (out == NULL) return;
  fprintf(out, "%u", interrupted);
  fclose(out);
}

static int is_interrupted(void* caller) {
  Dl_info of;
  if (dladdr(caller, &of) == 0 || of.dli_fname == NULL || strstr(of.dli_fname, "_core") == NULL) return 0;
  if (++calls % 2 == 0) return 0;
  __atomic_add_fetch(&interrupted, 1, __ATOMIC_RELAXED);
  errno = EINTR;
  return 1;
}

#define INTERRUPTED is_interrupted(__builtin_return_address(0))

#define CALL(result, name, parameters, arguments)                        \
  result name parameters {                                               \
    static result(*original) parameters;                                 \
    if (original == NULL) original = dlsym(RTLD_NEXT, #name);            \
    return INTERRUPTED ? -1 : original arguments;                        \
  }

CALL(int, stat, (const char* path, struct stat* status), (path, status))
CALL(int, lstat, (const char* path, struct stat* status), (path, status))
CALL(int, fstat, (int descriptor, struct stat* status), (descriptor, status))
CALL(ssize_t, pread, (int descriptor, void* to, size_t count, off_t offset), (descriptor, to, count, offset))
CALL(ssize_t, pwrite, (int descriptor, const void* from, size_t count, off_t offset),
     (descriptor, from, count, offset))
CALL(ssize_t, write, (int descriptor, const void* from, size_t count), (descriptor, from, count))
CALL(int, fsync, (int descriptor), (descriptor))
CALL(int, flock, (int descriptor, int operation), (descriptor, operation))
CALL(int, ftruncate, (int descriptor, off_t length), (descriptor, length))
CALL(int, fallocate, (int descriptor, int mode, off_t offset, off_t length), (descriptor, mode, offset, length))

int open(const char* path, int flags, ...) {
  static int (*original)(const char*, int, ...);
  if (original == NULL) original = dlsym(RTLD_NEXT, "open");
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return INTERRUPTED ? -1 : original(path, flags, mode);
}

struct dirent* readdir(DIR* directory) {
  static struct dirent* (*original)(DIR*);
  if (original == NULL) original = dlsym(RTLD_NEXT, "readdir");
  return INTERRUPTED ? NULL : original(directory);
}

/* Closes as Linux does: interrupted or not, the descriptor is gone. */
int close(int descriptor) {
  static int (*original)(int);
  if (original == NULL) original = dlsym(RTLD_NEXT, "close");
  const int outcome = original(descriptor);
  return INTERRUPTED ? -1 : outcome;
}
