#pragma once

#include <memory>

namespace nested_kvm {

// Around KVM_RUN on a JS thread. Terminating a Worker stops its JS, but a system call goes on, and whoever joins the
// Worker waits for it: forever, when the guest spins. So on a Worker's thread a timer signals now and then while KVM_RUN
// lasts, and KVM_RUN comes back for a look. The main thread is not waited for and needs none.
class RunTick {
 public:
  RunTick();
  ~RunTick();
  RunTick(const RunTick&) = delete;
  RunTick& operator=(const RunTick&) = delete;

  // Whether the timer has signalled since the last question.
  bool Took();

 private:
  struct Timer;
  static thread_local std::unique_ptr<Timer> own_timer_;
  static thread_local Timer* timer_;
  static thread_local bool known_;
  static void OnSignal(int);
  static void MakeTimer();
};

}  // namespace nested_kvm
