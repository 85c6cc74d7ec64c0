#pragma once

#include <napi.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "poll_window.h"
#include "unique_fd.h"

namespace nested_kvm {

class VcpuThread;
class Watched;

// Where the vCPU threads and watched file descriptors of one JS environment meet its event loop. Mail wakes the loop through a
// thread-safe function; then the JS thread polls for a short, adaptive while, so that a burst of exits pays for one
// wake-up, not for one each.
class ExitHub {
 public:
  static ExitHub* Of(Napi::Env env);

  // Any thread: there is mail.
  void Notify();

  // JS thread. While held, the thread object is dispatched to and the event loop stays alive.
  void Hold(VcpuThread* thread);
  void Release(VcpuThread* thread);

  // JS thread. `events` are those of epoll(7). Returns 0 or an errno.
  int Watch(Watched* watched, int fd, uint32_t events, uint64_t* id);
  // Watches for other events, or once more where EPOLLONESHOT is among them.
  int Rearm(uint64_t id, int fd, uint32_t events);
  void Unwatch(uint64_t id, int fd);

 private:
  explicit ExitHub(Napi::Env env);
  ~ExitHub();

  static void OnWake(napi_env env, napi_value, void* hub, void*);
  static void OnTeardown(void* hub);
  void Dispatch(Napi::Env env);
  bool DeliverAll(Napi::Env env, bool* any);
  bool AnyMail() const;
  bool AnyRunning() const;
  void KeepAlive();
  int StartWatcher();
  void WatcherMain();

  Napi::Env env_;
  napi_threadsafe_function wake_ = nullptr;
  std::atomic<bool> wake_pending_{false};
  std::atomic<bool> awake_{false};  // the JS thread looks at the mail by itself: no wake-up needed
  bool dispatching_ = false;
  bool kept_alive_ = false;
  PollWindow window_;
  int64_t last_delivery_ns_ = 0;
  std::vector<VcpuThread*> threads_;

  UniqueFd epoll_, watcher_stop_;
  pthread_t watcher_{};
  bool watching_ = false;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Watched*> watched_;
  std::mutex fired_mutex_;
  std::vector<std::pair<uint64_t, uint32_t>> fired_;  // id and events
  std::atomic<bool> any_fired_{false};
};

}  // namespace nested_kvm
