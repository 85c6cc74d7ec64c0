#include "exit_hub.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "env_data.h"
#include "ioctl.h"
#include "vcpu_thread.h"
#include "watched.h"

namespace nested_kvm {

namespace {
// A burst of exits may keep the event loop this long before timers and I/O get their turn.
constexpr int64_t kTurnNs = 2'000'000;
// Within a burst, file descriptors are looked at this often.
constexpr int64_t kLookNs = 50'000;
// In place of the id of what is watched: the eventfd that tells of mail.
constexpr uint64_t kMail = 0;
}  // namespace

ExitHub* ExitHub::Of(Napi::Env env) {
  EnvData* data = EnvData::Of(env);
  if (data->hub) return data->hub;
  std::unique_ptr<ExitHub> hub(new ExitHub(env));
  if (int error = hub->Open(); error != 0) {
    ThrowKvmError(env, "epoll", error);
    return nullptr;
  }
  data->hub = hub.release();
  return data->hub;
}

int ExitHub::Open() {
  epoll_.Reset(::epoll_create1(EPOLL_CLOEXEC));
  wake_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !wake_) return errno;
  epoll_event event{};
  // Edge-triggered: nobody has to read it.
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = kMail;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) < 0) return errno;
  if (napi_async_init(env_, nullptr, Napi::String::New(env_, "nested-kvm"), &context_) != napi_ok) return ENOTSUP;
  if (int error = poll_.Start(env_, epoll_.get(), &ExitHub::OnReadable, this); error != 0) {
    napi_async_destroy(env_, context_);
    return error;
  }
  napi_add_async_cleanup_hook(env_, &ExitHub::OnTeardown, this, &teardown_);
  return 0;
}

void ExitHub::OnTeardown(napi_async_cleanup_hook_handle, void* self) {
  auto* hub = static_cast<ExitHub*>(self);
  for (VcpuThread* thread : hub->threads_) thread->Abort();
  EnvData::Of(hub->env_)->hub = nullptr;
  for (auto& [id, watched] : hub->watched_) watched->Forget();
  napi_async_destroy(hub->env_, hub->context_);
  hub->poll_.Close([](void* self) {
    std::unique_ptr<ExitHub> hub(static_cast<ExitHub*>(self));
    napi_remove_async_cleanup_hook(hub->teardown_);
  });
}

void ExitHub::Notify() {
  if (awake_.load()) return;
  if (!wake_pending_.exchange(true)) ::eventfd_write(wake_.get(), 1);
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
  poll_.KeepAlive(needed);
}

void ExitHub::OnReadable(void* self) {
  auto* hub = static_cast<ExitHub*>(self);
  napi_env env = hub->env_;
  Napi::HandleScope handles(env);
  napi_value resource = nullptr;
  napi_callback_scope scope = nullptr;
  // What JS leaves to be done next (microtasks) is done where the scope ends.
  if (napi_create_object(env, &resource) != napi_ok ||
      napi_open_callback_scope(env, resource, hub->context_, &scope) != napi_ok) {
    return;  // JS runs no more
  }
  hub->Dispatch();
  bool thrown = false;
  napi_value error = nullptr;
  if (napi_is_exception_pending(env, &thrown) == napi_ok && thrown &&
      napi_get_and_clear_last_exception(env, &error) == napi_ok) {
    napi_fatal_exception(env, error);
  }
  napi_close_callback_scope(env, scope);
}

bool ExitHub::AnyMail() const {
  return std::any_of(threads_.begin(), threads_.end(), [](auto* t) { return t->HasMail(); });
}

bool ExitHub::AnyRunning() const {
  return std::any_of(threads_.begin(), threads_.end(), [](auto* t) { return t->Running(); });
}

// Returns false when JS threw.
bool ExitHub::DeliverMail(bool* any) {
  // A handler may start, pause or close threads: walk by index over what is there at each step.
  for (size_t i = 0; i < threads_.size(); i++) {
    VcpuThread* thread = threads_[i];
    if (!thread->HasMail()) continue;
    *any = true;
    if (!thread->Deliver(env_)) return false;
  }
  return true;
}

// Returns false when JS threw.
bool ExitHub::DeliverEvents(bool* any) {
  epoll_event events[16];
  const int count = ::epoll_wait(epoll_.get(), events, 16, 0);
  for (int i = 0; i < count; i++) {
    // A handler may end the watch of what comes behind it.
    auto found = watched_.find(events[i].data.u64);
    if (found == watched_.end()) continue;
    *any = true;
    if (!found->second->Deliver(env_, events[i].events)) return false;
  }
  return true;
}

void ExitHub::Dispatch() {
  wake_pending_.store(false);
  awake_.store(true);
  int64_t now = NowNs();
  int64_t look_at = now;
  const int64_t turn_ends = now + kTurnNs;
  for (int spin = 1;; spin++) {
    bool any = false;
    if (!DeliverMail(&any)) break;  // JS threw: Node reports it
    if (now >= look_at) {
      if (!DeliverEvents(&any)) break;
      look_at = now + kLookNs;
    }
    if (any) {
      window_.Learn(now - last_delivery_ns_);
      now = last_delivery_ns_ = NowNs();
      if (now > turn_ends) break;
      continue;
    }
    if (window_.ns() == 0) break;
    if (spin % 32 == 0) {
      now = NowNs();
      if (now - last_delivery_ns_ > window_.ns() || now > turn_ends || !AnyRunning()) break;
    }
    CpuRelax();
  }
  awake_.store(false);
  // Mail that came while `awake_` was still set woke nobody.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (AnyMail()) Notify();
}

int ExitHub::Watch(Watched* watched, int fd, uint32_t events, uint64_t* id) {
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
