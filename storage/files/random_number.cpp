#include "storage/files/random_number.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "planner/error.h"
#include "storage/files/uninterrupted.h"

namespace shardwright {

// Not std::random_device: libstdc++'s asks for a later glibc than anything else that a wheel has inside.
std::uint64_t random_number() {
  std::uint64_t number = 0;
  if (uninterrupted([&] { return ::getrandom(&number, sizeof number, 0); }) !=
      static_cast<ssize_t>(sizeof number))
    throw Error(ErrorKind::io,
                "getrandom: expected 8 random bytes from the kernel, found an error: " +
                    std::string(std::strerror(errno)),
                errno);
  return number;
}

}  // namespace shardwright
