/* Preloaded into a rank: system calls on files of a checkpoint fail as SHARDWRIGHT_TEST_FAULT says, "pwrite:5", say,
   for EIO from every pwrite. Other files than *.safetensors and *.distcp are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char* call, int descriptor) {
  const char* fault = getenv("SHARDWRIGHT_TEST_FAULT");
  const size_t length = strlen(call);
  if (fault == NULL || strncmp(fault, call, length) != 0 || fault[length] != ':') return 0;
  errno = atoi(fault + length + 1);
  if (descriptor < 0) return 1; /* no matter which file */
  char link[64];
  char path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t got = readlink(link, path, sizeof path - 1);
  if (got < 0) return 0;
  path[got] = '\0';
  errno = atoi(fault + length + 1);
  return strstr(path, ".safetensors") != NULL || strstr(path, ".distcp") != NULL;
}

ssize_t pwrite64(int descriptor, const void* bytes, size_t count, off_t offset) {
  static ssize_t (*original)(int, const void*, size_t, off_t);
  if (original == NULL) original = dlsym(RTLD_NEXT, "pwrite64");
  return fails("pwrite", descriptor) ? -1 : original(descriptor, bytes, count, offset);
}

ssize_t pwrite(int descriptor, const void* bytes, size_t count, off_t offset) {
  return pwrite64(descriptor, bytes, count, offset);
}

int fsync(int descriptor) {
  static int (*original)(int);
  if (original == NULL) original = dlsym(RTLD_NEXT, "fsync");
  return fails("fsync", descriptor) ? -1 : original(descriptor);
}

int fallocate64(int descriptor, int mode, off_t offset, off_t length) {
  static int (*original)(int, int, off_t, off_t);
  if (original == NULL) original = dlsym(RTLD_NEXT, "fallocate64");
  return fails("fallocate", descriptor) ? -1 : original(descriptor, mode, offset, length);
}

int fallocate(int descriptor, int mode, off_t offset, off_t length) {
  return fallocate64(descriptor, mode, offset, length);
}

int link(const char* old, const char* new) {
  static int (*original)(const char*, const char*);
  if (original == NULL) original = dlsym(RTLD_NEXT, "link");
  return fails("link", -1) ? -1 : original(old, new);
}

int renameat2(int from, const char* old, int to, const char* new, unsigned flags) {
  static int (*original)(int, const char*, int, const char*, unsigned);
  if (original == NULL) original = dlsym(RTLD_NEXT, "renameat2");
  return fails("renameat2", -1) ? -1 : original(from, old, to, new, flags);
}
