#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <vector>

#include "loop_poll.h"
#include "poll_window.h"
#include "unique_fd.h"

namespace nested_kvm {

class VcpuThread;
class Watched;

// Where the vCPU threads and watched file descriptors of one JS environment meet its event loop: all in one epoll instance, which the
// loop polls. Mail wakes it through an eventfd; then the JS thread polls for a short, adaptive while, so that a burst of exits pays
// for one wake-up, not for one each.
class ExitHub {
 public:
  // That of the environment, made where there is none yet; or nullptr with a KvmError pending.
  static ExitHub* Of(Napi::Env env);

  // Any thread: there is mail.
  void Notify();

  // JS thread. While held, the thread object is dispatched to and the event loop stays alive.
  void Hold(VcpuThread* thread);
  void Release(VcpuThread* thread);

  // JS thread. `events` are those of epoll(7). Returns 0 or an errno.
  int Watch(Watched* watched, int fd, uint32_t events, uint64_t* id);
  // Watches for other events.
  int Rearm(uint64_t id, int fd, uint32_t events);
  void Unwatch(uint64_t id, int fd);

 private:
  explicit ExitHub(Napi::Env env) : env_(env) {}

  static void OnReadable(void* hub);
  static void OnTeardown(napi_async_cleanup_hook_handle hook, void* hub);
  int Open();
  void Dispatch();
  bool DeliverMail(bool* any);
  bool DeliverEvents(bool* any);
  bool AnyMail() const;
  bool AnyRunning() const;
  void KeepAlive();

  Napi::Env env_;
  napi_async_context context_ = nullptr;
  napi_async_cleanup_hook_handle teardown_ = nullptr;
  UniqueFd epoll_, wake_;
  LoopPoll poll_;
  std::atomic<bool> wake_pending_{false};
  std::atomic<bool> awake_{false};  // the JS thread looks at the mail by itself: no wake-up needed
  bool kept_alive_ = false;
  PollWindow window_;
  int64_t last_delivery_ns_ = 0;
  std::vector<VcpuThread*> threads_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Watched*> watched_;
};

}  // namespace nested_kvm
