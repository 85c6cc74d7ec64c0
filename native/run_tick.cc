#include "run_tick.h"

#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <utility>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace nested_kvm {

namespace {
constexpr long kPeriodNs = 50'000'000;
}  // namespace

// A thread's own; what the handler touches is changed by this thread alone.
struct RunTick::Timer {
  timer_t id{};
  bool made = false;
  std::atomic<bool> armed{false};
  std::atomic<bool> running{false};
  std::atomic<bool> took{false};

  ~Timer() {
    timer_ = nullptr;
    if (made) ::timer_delete(id);
  }

  void Set(long period_ns) {
    armed.store(period_ns != 0);
    const itimerspec period{{0, period_ns}, {0, period_ns}};
    ::timer_settime(id, 0, &period, nullptr);
  }
};

thread_local std::unique_ptr<RunTick::Timer> RunTick::own_timer_;
// What the handler reads: without a constructor, so that it may.
constinit thread_local RunTick::Timer* RunTick::timer_ = nullptr;
constinit thread_local bool RunTick::known_ = false;

void RunTick::OnSignal(int) {
  Timer* timer = timer_;
  if (!timer) return;
  timer->took.store(true);
  // Nothing runs, so nothing needs it: an idle Worker is left alone.
  if (!timer->running.load()) timer->Set(0);
}

void RunTick::MakeTimer() {
  known_ = true;
  const pid_t thread = static_cast<pid_t>(::syscall(SYS_gettid));
  if (thread == ::getpid()) return;
  static const int number = [] {
    struct sigaction action{};
    action.sa_handler = &RunTick::OnSignal;
    // KVM_RUN comes back with EINTR all the same; other system calls of the Worker go on.
    action.sa_flags = SA_RESTART;
    const int rt = SIGRTMIN + 7;
    ::sigaction(rt, &action, nullptr);
    return rt;
  }();
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, number);
  ::pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = number;
  event.sigev_notify_thread_id = thread;
  auto timer = std::make_unique<Timer>();
  timer->made = ::timer_create(CLOCK_MONOTONIC, &event, &timer->id) == 0;
  // Without one, a Worker in KVM_RUN cannot be terminated; all else works.
  if (!timer->made) return;
  own_timer_ = std::move(timer);
  timer_ = own_timer_.get();
}

RunTick::RunTick() {
  if (!known_) MakeTimer();
  Timer* timer = timer_;
  if (!timer) return;
  timer->running.store(true);
  if (!timer->armed.load()) timer->Set(kPeriodNs);
}

RunTick::~RunTick() {
  if (timer_) timer_->running.store(false);
}

bool RunTick::Took() { return timer_ && timer_->took.exchange(false); }

}  // namespace nested_kvm
