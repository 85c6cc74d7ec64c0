#pragma once

#include <time.h>

#include <cstdint>
#include <thread>

namespace nested_kvm {

inline int64_t NowNs() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

inline void CpuRelax() { __builtin_ia32_pause(); }

// How long it pays to poll before sleeping, as halt_poll_ns decides it: while waits are short, polling saves a
// wake-up each; after one long wait it stops, so an idle guest costs no CPU.
class PollWindow {
 public:
  static constexpr int64_t kMaxNs = 200'000;

  // 0 where polling would only keep the other side from its processor.
  int64_t ns() const { return ns_; }
  void Learn(int64_t waited_ns) {
    static const bool alone = std::thread::hardware_concurrency() < 2;
    ns_ = waited_ns < kMaxNs && !alone ? kMaxNs : 0;
  }

 private:
  int64_t ns_ = 0;
};

}  // namespace nested_kvm
