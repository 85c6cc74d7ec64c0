#pragma once

#include <time.h>

#include <algorithm>
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
// wake-up each; after one long wait it stops, so an idle guest costs no CPU. A poll that was in vain may also mean that
// the two sides share one processor, where polling only keeps the other from it: then more and more waits go by before
// the next try.
class PollWindow {
 public:
  static constexpr int64_t kMaxNs = 200'000;

  // 0 where polling would only keep the other side from its processor.
  int64_t ns() const { return ns_; }

  // After each wait.
  void Learn(int64_t waited_ns) {
    static const bool alone = std::thread::hardware_concurrency() < 2;
    const bool brief = waited_ns < kMaxNs;
    if (ns_ > 0) {
      penalty_ = brief ? penalty_ / 2 : std::min(penalty_ * 2 + 4, kMaxPenalty);
      if (!brief) skip_ = penalty_;
    } else if (skip_ > 0) {
      skip_--;
    }
    ns_ = brief && skip_ == 0 && !alone ? kMaxNs : 0;
  }

 private:
  static constexpr int kMaxPenalty = 500;

  int64_t ns_ = 0;
  int penalty_ = 0;  // waits to let go by after a poll in vain
  int skip_ = 0;     // of those, still to go
};

}  // namespace nested_kvm
