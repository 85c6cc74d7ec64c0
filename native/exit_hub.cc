#include "exit_hub.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>

#include "env_data.h"
#include "vcpu_thread.h"
#include "watched.h"

namespace nested_kvm {

namespace {
// A burst of exits may keep the event loop this long before timers and I/O get their turn.
constexpr int64_t kTurnNs = 2'000'000;
}  // namespace

ExitHub* ExitHub::Of(Napi::Env env) {
  EnvData* data = EnvData::Of(env);
  if (!data->hub) data->hub = new ExitHub(env);
  return data->hub;
}

ExitHub::ExitHub(Napi::Env env) : env_(env) {
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "nested-kvm"), 0, 1, nullptr, nullptr,
                                  this, &ExitHub::OnWake, &wake_);
  napi_unref_threadsafe_function(env, wake_);
  // Hooks run last in, first out: this one before the thread-safe function's own, which must outlive our threads.
  napi_add_env_cleanup_hook(env, &ExitHub::OnTeardown, this);
}

ExitHub::~ExitHub() {
  if (!watching_) return;
  ::eventfd_write(watcher_stop_.get(), 1);
  ::pthread_join(watcher_, nullptr);
}

void ExitHub::OnTeardown(void* self) {
  auto* hub = static_cast<ExitHub*>(self);
  for (VcpuThread* thread : hub->threads_) thread->Abort();
  EnvData::Of(hub->env_)->hub = nullptr;
  for (auto& [id, watched] : hub->watched_) watched->Forget();
  delete hub;
}

void ExitHub::Notify() {
  if (awake_.load()) return;
  if (!wake_pending_.exchange(true)) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void ExitHub::Hold(VcpuThread* thread) {
  if (std::find(threads_.begin(), threads_.end(), thread) == threads_.end()) {
    threads_.push_back(thread);
    thread->Ref();
  }
  KeepAlive();
}

void ExitHub::Release(VcpuThread* thread) {
  auto found = std::find(threads_.begin(), threads_.end(), thread);
  if (found == threads_.end()) return;
  threads_.erase(found);
  thread->Unref();
  KeepAlive();
}

void ExitHub::KeepAlive() {
  const bool needed = !threads_.empty() || !watched_.empty();
  if (needed == kept_alive_) return;
  kept_alive_ = needed;
  if (needed) {
    napi_ref_threadsafe_function(env_, wake_);
  } else {
    napi_unref_threadsafe_function(env_, wake_);
  }
}

void ExitHub::OnWake(napi_env env, napi_value, void* hub, void*) {
  if (env != nullptr) static_cast<ExitHub*>(hub)->Dispatch(env);
}

bool ExitHub::AnyMail() const {
  return any_fired_.load() || std::any_of(threads_.begin(), threads_.end(), [](auto* t) { return t->HasMail(); });
}

bool ExitHub::AnyRunning() const {
  return std::any_of(threads_.begin(), threads_.end(), [](auto* t) { return t->Running(); });
}

// Returns false when JS threw.
bool ExitHub::DeliverAll(Napi::Env env, bool* any) {
  *any = false;
  if (any_fired_.exchange(false)) {
    std::vector<std::pair<uint64_t, uint32_t>> fired;
    {
      std::lock_guard lock(fired_mutex_);
      fired.swap(fired_);
    }
    for (auto [id, events] : fired) {
      auto found = watched_.find(id);
      if (found != watched_.end() && !found->second->Deliver(env, events)) return false;
    }
    *any = true;
  }
  // A handler may start, pause or close threads: walk by index over what is there at each step.
  for (size_t i = 0; i < threads_.size(); i++) {
    VcpuThread* thread = threads_[i];
    if (!thread->HasMail()) continue;
    *any = true;
    if (!thread->Deliver(env)) return false;
  }
  return true;
}

void ExitHub::Dispatch(Napi::Env env) {
  wake_pending_.store(false);
  if (dispatching_) return;
  dispatching_ = true;
  awake_.store(true);
  int64_t now = NowNs();
  const int64_t turn_ends = now + kTurnNs;
  for (int spin = 1;; spin++) {
    bool any = false;
    if (!DeliverAll(env, &any)) break;  // JS threw: Node reports it
    if (any) {
      window_.Learn(now - last_delivery_ns_);
      now = last_delivery_ns_ = NowNs();
      if (now > turn_ends) break;
      continue;
    }
    if (spin % 32 == 0) {
      now = NowNs();
      if (now - last_delivery_ns_ > window_.ns() || now > turn_ends || !AnyRunning()) break;
    }
    CpuRelax();
  }
  awake_.store(false);
  dispatching_ = false;
  // Mail that came while `awake_` was still set woke nobody.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (AnyMail()) Notify();
}

int ExitHub::StartWatcher() {
  if (watching_) return 0;
  epoll_.Reset(::epoll_create1(EPOLL_CLOEXEC));
  watcher_stop_.Reset(::eventfd(0, EFD_CLOEXEC));
  if (!epoll_ || !watcher_stop_) return errno;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, watcher_stop_.get(), &event) < 0) return errno;
  const int error = ::pthread_create(
      &watcher_, nullptr,
      [](void* self) -> void* {
        static_cast<ExitHub*>(self)->WatcherMain();
        return nullptr;
      },
      this);
  watching_ = error == 0;
  return error;
}

void ExitHub::WatcherMain() {
  sigset_t blocked;
  ::sigfillset(&blocked);
  ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
  epoll_event events[16];
  for (;;) {
    const int count = ::epoll_wait(epoll_.get(), events, 16, -1);
    if (count < 0 && errno != EINTR) return;
    for (int i = 0; i < count; i++) {
      if (events[i].data.u64 == 0) return;
      std::lock_guard lock(fired_mutex_);
      // Copies: the struct is packed.
      fired_.emplace_back(uint64_t{events[i].data.u64}, uint32_t{events[i].events});
    }
    if (count > 0) {
      any_fired_.store(true);
      Notify();
    }
  }
}

int ExitHub::Watch(Watched* watched, int fd, uint32_t events, uint64_t* id) {
  if (int error = StartWatcher(); error != 0) return error;
  epoll_event event{};
  event.events = events;
  event.data.u64 = next_id_;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0) return errno;
  watched_[next_id_] = watched;
  *id = next_id_++;
  watched->Hold();
  KeepAlive();
  return 0;
}

int ExitHub::Rearm(uint64_t id, int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) < 0 ? errno : 0;
}

void ExitHub::Unwatch(uint64_t id, int fd) {
  auto found = watched_.find(id);
  if (found == watched_.end()) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  found->second->LetGo();
  watched_.erase(found);
  KeepAlive();
}

}  // namespace nested_kvm
