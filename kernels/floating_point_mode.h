#pragma once

// Internal: for what computes with floats and must not depend on the caller's mode.

#include <cfenv>

namespace shardwright {

/// The default floating-point mode (to nearest even, subnormals as they are, no traps) as long as it lives,
/// and then the caller's again.
class DefaultFloatingPointMode {
 public:
  DefaultFloatingPointMode() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  DefaultFloatingPointMode(const DefaultFloatingPointMode&) = delete;
  DefaultFloatingPointMode& operator=(const DefaultFloatingPointMode&) = delete;
  ~DefaultFloatingPointMode() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_{};
};

}  // namespace shardwright
